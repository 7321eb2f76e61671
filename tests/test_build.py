"""What build.py adds to the parts it puts together."""

import jax
import pytest

from configs import probe as recipe
from pirl_jax import build
from pirl_jax import config
from pirl_jax.core import mesh as meshes
from pirl_jax.policy import normalize
from pirl_jax.rollout import collector


@pytest.mark.parametrize("iteration, level", [(0, 0.8), (5, 0.5), (10, 0.2), (99, 0.2)])
def test_an_annealed_noise_level_reaches_the_sampler(iteration, level):
    page = recipe.get_config()
    page.model.update(noise_anneal=True, noise_params=(0.8, 0.2, 10))
    mesh = meshes.make_mesh(1, 1, jax.devices()[:1])
    actor = collector.Actor(None, (), 3, explore=lambda params, key, id_B, obs, level=None: level, exploit=None, put=None)
    at = build.at_iteration(actor, config.settings(page), iteration, mesh)
    assert float(at.explore(None, None, None, None)) == pytest.approx(level)
    page.model.noise_anneal = False
    assert build.at_iteration(actor, config.settings(page), iteration, mesh) is actor


def test_given_statistics_of_another_robot_are_an_error(tmp_path):
    page = recipe.get_config()
    page.model.norm_stats = str(tmp_path / "norm_stats.json")
    for state_dim, action_dim, sentence in ((7, 7, "state.mean has 7 dims and the robot has 8"), (8, 6, "actions.std has 6 dims")):
        normalize.save(page.model.norm_stats, normalize.identity(state_dim, action_dim))
        with pytest.raises(ValueError, match=f"do not fit: .*{sentence}.*; give those of the checkpoint's data set"):
            build.given_stats(config.settings(page))
    normalize.save(page.model.norm_stats, normalize.identity(32, 32))  # openpi's may be padded
    build.given_stats(config.settings(page))
