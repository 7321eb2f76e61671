"""gymnasium's own checker finds nothing to say; the wrapper adds nothing to the env it wraps."""

import warnings

import gymnasium
from gymnasium.utils import env_checker
import numpy as np
import pytest

from pirl_jax.envs import base, gym
from pirl_jax.envs.tabletop import suite as tabletop

TABLETOP = "pirl_jax.envs.gym:pirl_jax/Tabletop-v0"
LIBERO = "pirl_jax.envs.gym:pirl_jax/LIBERO-v0"


@pytest.fixture
def env():
    env = gymnasium.make(TABLETOP, task=1, image_size_px=16, render_mode="rgb_array")
    yield env
    env.close()


def test_tabletop_passes_check_env(env):
    env_checker.check_env(env.unwrapped)


# robosuite, LIBERO and numba warn about themselves when they are imported.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_libero_passes_check_env(libero_assets):
    env = gymnasium.make(
        LIBERO, suite="libero_object", task=3, assets=str(libero_assets), image_size_px=32
    )
    env.reset(seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env_checker.check_env(env.unwrapped)
    env.close()


def test_the_id_alone_is_enough_once_the_module_is_imported():
    gymnasium.make("pirl_jax/Tabletop-v0", image_size_px=16).close()


def test_an_episode_is_that_of_the_env(env):
    observation, info = env.reset(options={"init_state": 7})
    assert info == {"instruction": "lift the green cube", "is_success": False, "init_state": 7}
    action = np.float32([0.3, -0.2, 0.1, 0, 0, 0.2, 1])
    then, reward, terminated, truncated, info = env.step(action)
    reference = tabletop.make(image_size_px=16)
    start = reference.reset(1, 7)
    step = reference.step_chunk(action[None])
    for got, wanted in ((observation, start), (then, step)):
        np.testing.assert_array_equal(np.stack([got["agentview"], got["wrist"]]), wanted.images)
        np.testing.assert_array_equal(got["state"], wanted.state)
    assert (reward, terminated, truncated, info["is_success"]) == (0.0, False, False, False)
    np.testing.assert_array_equal(env.render(), step.images[0])
    reference.close()


def test_seeds_choose_the_init_state(env):
    seeds = [0, 1, 2, 0, None]
    chosen = [env.reset(seed=seed)[1]["init_state"] for seed in seeds]
    assert chosen[0] == chosen[3] and len(set(chosen)) == 4
    np.random.seed(5)  # noqa: NPY002 the global generator is what must not matter
    assert env.reset(seed=0)[1]["init_state"] == chosen[0]


def test_the_end_of_an_episode_is_truncation_at_the_limit():
    env = gymnasium.make(TABLETOP, image_size_px=16, max_episode_steps=2)
    env.reset(seed=0)
    flags = [env.step(np.zeros(7, np.float32))[2:4] for _ in range(2)]
    assert flags == [(False, False), (False, True)] and env.render() is None
    env.close()


def test_wrong_names():
    with pytest.raises(ValueError, match="task 9 does not exist; choose one of: 0, 1"):
        gymnasium.make(TABLETOP, task=9)
    sentence = "render_mode 'ascii' does not exist; choose one of: rgb_array"
    with pytest.raises(ValueError, match=sentence):
        gym.Tabletop(render_mode="ascii")


def test_faulty_numbers_reach_no_one(env, monkeypatch):
    """Neither after a reset nor after a step; a reset mends it."""
    env.reset(seed=0)
    wrapped = env.unwrapped._env
    for request, call in (
        ("step_chunk", lambda: env.step(env.action_space.sample())),
        ("reset", lambda: env.reset(seed=0)),
    ):

        def faulty(*args, request=request):
            step = getattr(type(wrapped), request)(wrapped, *args)
            step.state = step.state * np.nan
            return step

        with monkeypatch.context() as patch:
            patch.setattr(wrapped, request, faulty)
            with pytest.raises(base.FaultyNumbers, match="its state has entries that are not"):
                call()
        observation, _ = env.reset(seed=0)
        assert np.isfinite(observation["state"]).all()
