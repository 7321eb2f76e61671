"""What run/ adds to the parts it puts together."""

import jax
import numpy as np
import pytest

from pirl_jax.core import mesh as meshes
from pirl_jax.policy import normalize, observation
from pirl_jax.recipes import probe as recipe
from pirl_jax.rollout import actor as actors
from pirl_jax.run import config, policies
from pirl_jax.weights import folders, store


@pytest.mark.parametrize("iteration, level", [(0, 0.8), (5, 0.5), (10, 0.2), (99, 0.2)])
def test_an_annealed_noise_level_reaches_the_sampler(iteration, level):
    page = recipe.get_config()
    page.model.update(noise_anneal=True, noise_params=(0.8, 0.2, 10))
    mesh = meshes.make_mesh(1, 1, jax.devices()[:1])
    actor = actors.Actor(
        None,
        (),
        3,
        explore=lambda params, key, id_B, obs, level=None: level,
        exploit=None,
        put=None,
    )
    at = policies.at_iteration(actor, config.settings(page), iteration, mesh)
    assert float(at.explore(None, None, None, None)) == pytest.approx(level)
    page.model.noise_anneal = False
    assert policies.at_iteration(actor, config.settings(page), iteration, mesh) is actor


def test_given_statistics_of_another_robot_are_an_error(tmp_path):
    page = recipe.get_config()
    page.model.norm_stats = str(tmp_path / "norm_stats.json")
    for state_dim, action_dim, sentence in (
        (7, 7, "state.mean has 7 dims and the robot has 8"),
        (8, 6, "actions.std has 6 dims"),
    ):
        normalize.save(page.model.norm_stats, normalize.identity(state_dim, action_dim))
        with pytest.raises(
            ValueError, match=f"do not fit: .*{sentence}.*; give those of the checkpoint's data set"
        ):
            policies.given_stats(config.settings(page))
    normalize.save(page.model.norm_stats, normalize.identity(32, 32))  # openpi's may be padded
    policies.given_stats(config.settings(page))


def test_no_run_starts_from_a_damaged_checkpoint(tmp_path):
    """Said before the new run has a folder, which would be in the way of the next attempt."""
    opened = store.Store(tmp_path / "run" / "checkpoints")
    opened.save(8, {"w": np.ones(3)})
    opened.wait()
    opened.close()
    (tmp_path / "run" / "checkpoints" / "8" / folders.SUMS).unlink()
    page = recipe.get_config()
    page.model.checkpoint = str(tmp_path / "run")
    with pytest.raises(ValueError, match=r"8 is damaged .checksums.json is missing"):
        policies.check_start(config.settings(page))


PROMPTS = ["push the cube", "lift it"]


@pytest.mark.parametrize("pi05", [False, True], ids=["pi0", "pi05 with the state in the prompt"])
def test_prompts_in_a_short_bucket_give_the_same_decisions(pi05):
    """Padding is masked out and positions do not count it; what is left is rounding."""
    page = recipe.get_config()
    page.model.update(max_token_len=100, pi05=pi05, discrete_state=pi05)
    settings, mesh = config.settings(page), meshes.make_mesh(1, 1, jax.devices()[:1])
    long, short = (
        policies.transform(settings, policies.given_stats(settings), PROMPTS, only_these=only)
        for only in (False, True)
    )
    longest = observation.check(long, PROMPTS)
    assert (
        longest <= short.max_token_len < longest + 16
        and short.max_token_len % 16 == 0
        and long.max_token_len == 100
    )
    params, generator = (
        policies.fresh_params(settings, mesh, jax.random.key(0)),
        np.random.default_rng(0),
    )
    images, state = (
        generator.integers(0, 256, (4, 2, 16, 16, 3), np.uint8),
        generator.uniform(-1, 1, (4, 8)).astype(np.float32),
    )
    chains = []
    for to_model in (long, short):
        actor = policies.actor(settings, mesh, to_model, PROMPTS)
        obs = observation.encode(to_model, images, state, [PROMPTS[0], PROMPTS[1]] * 2)
        assert obs.token_mask.sum(1).max() <= longest
        chain, _, prefix = actor.explore(
            params, jax.random.key(1), *actor.put((np.arange(4, dtype=np.int32), obs))
        )
        assert (
            prefix.mask.shape[1]
            == prefix.k.shape[2]
            == 2 * settings.policy.network.image_tokens + to_model.max_token_len
        )
        chains.append(chain)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *chains)


def test_images_resized_by_the_model_are_those_resized_by_the_host():
    """A grey level is 1/127 of the range; the decisions differ by no more than it can make them."""
    page = recipe.get_config()
    params, images = None, np.random.default_rng(0).integers(0, 256, (2, 2, 40, 48, 3), np.uint8)
    encoded, keys = [], []
    for where in ("host", "device"):
        page.model.resize = where
        settings, mesh = config.settings(page), meshes.make_mesh(1, 1, jax.devices()[:1])
        to_model = policies.transform(settings, policies.given_stats(settings), PROMPTS)
        params = params or policies.fresh_params(settings, mesh, jax.random.key(0))
        obs = observation.encode(to_model, images, np.zeros((2, 8), np.float32), PROMPTS)
        encoded.append(obs.images.shape[2:4])
        _, _, prefix = policies.actor(settings, mesh, to_model, PROMPTS).explore(
            params, jax.random.key(1), np.arange(2), obs
        )
        keys.append(np.asarray(prefix.k))
    assert encoded == [(16, 16), (40, 48)] and keys[0].shape == keys[1].shape
    assert 0 < np.abs(keys[0] - keys[1]).max() < 0.05 < np.abs(keys[0]).max()


@pytest.mark.parametrize("limit, bucket", [(20, 20), (17, 17), (48, 32)])
def test_no_bucket_is_longer_than_the_page_allows(limit, bucket):
    page = recipe.get_config()
    page.model.max_token_len = limit
    settings = config.settings(page)
    prompt = "push it forward "  # 17 tokens with its first and last
    assert (
        policies.transform(
            settings, policies.given_stats(settings), [prompt], only_these=True
        ).max_token_len
        == bucket
    )
