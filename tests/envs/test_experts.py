"""The scripted experts solve every tabletop task, and their demonstrations replay."""

import itertools
import types

import numpy as np
import pytest

from pirl_jax.envs import experts
from pirl_jax.envs.tabletop import suite as tabletop


@pytest.fixture(scope="module")
def env():
    env = tabletop.make(image_size_px=16)
    yield env
    env.close()


def solve(env, task, init_state, noise):
    """Control steps until success; None: not solved."""
    env.reset(task, init_state)
    act = experts.expert(env)
    rng = np.random.default_rng(init_state)
    for num_steps in itertools.count(1):
        step = env.step_chunk(experts.perturbed(act(), noise, rng)[None])
        if step.terminated or step.truncated:
            return num_steps if step.terminated else None


@pytest.mark.parametrize("task", range(len(tabletop.TASKS)))
def test_solves_within_the_task_budget(env, task):
    for init_state in tabletop.TEST_INIT_STATES[:3]:
        steps = solve(env, task, init_state, noise=0.1)
        assert steps is not None and steps <= env.tasks[task].max_episode_steps


@pytest.mark.slow
@pytest.mark.parametrize("noise", (0.0, 0.1, 0.2))
@pytest.mark.parametrize("task", range(len(tabletop.TASKS)))
def test_solves_95_of_100(env, task, noise):
    solved = [
        solve(env, task, init_state, noise) is not None
        for init_state in tabletop.TEST_INIT_STATES[:50]
    ]
    assert np.mean(solved) >= 0.95


def test_demonstrations_replay(env):
    episodes = experts.collect_demonstrations(env, 0, [4, 5], seed=3, noise=0.0)
    for episode in episodes:
        length = len(episode["actions"])
        assert episode["success"] and episode["instruction"] == "lift the red cube"
        assert episode["images"].shape == (length, 2, 16, 16, 3)
        assert episode["images"].dtype == np.uint8
        assert episode["state"].shape == (length, 8) and episode["actions"].dtype == np.float32
        assert np.abs(episode["actions"]).max() <= 1.0
        env.reset(0, episode["init_state"])
        step = env.step_chunk(episode["actions"][: length // 2])
        np.testing.assert_array_equal(step.images, episode["images"][length // 2])
        assert env.step_chunk(episode["actions"][length // 2 :]).terminated


def test_disturbed_demonstrations_repeat_with_their_seed_and_record_the_clean_action(env):
    (first,) = experts.collect_demonstrations(env, 0, [5], seed=3, noise=0.2)
    (again,) = experts.collect_demonstrations(env, 0, [5], seed=3, noise=0.2)
    (other,) = experts.collect_demonstrations(env, 0, [5], seed=4, noise=0.2)
    np.testing.assert_array_equal(first["actions"], again["actions"])
    assert not np.array_equal(first["state"][:10], other["state"][:10])
    env.reset(0, 5)
    np.testing.assert_array_equal(first["actions"][0], experts.expert(env)().astype(np.float32))


def test_driven_plays_the_experts_episode_whatever_it_is_told(env):
    env.reset(0, 5)
    act = experts.expert(env)
    alone = []
    while not (alone and alone[-1].terminated):
        alone.append(env.step_chunk(act()[None]))
    driven = experts.Driven(env)
    assert driven.spec is env.spec and driven.reset(0, 5).num_steps == 0
    rng = np.random.default_rng(0)
    chunks = []
    while not (chunks and chunks[-1].terminated):
        chunks.append(driven.step_chunk(rng.uniform(-1, 1, (10, 7)), record=True))
    assert [step.num_steps for step in chunks[:-1]] == [10] * (len(chunks) - 1)
    assert sum(step.num_steps for step in chunks) == len(alone)
    assert [len(step.frames) for step in chunks] == [step.num_steps for step in chunks]
    assert [step.reward for step in chunks] == [0.0] * (len(chunks) - 1) + [1.0]
    np.testing.assert_array_equal(chunks[0].images, alone[9].images)
    np.testing.assert_array_equal(chunks[0].state, alone[9].state)
    assert chunks[0].frames is not None and driven.reset(0, 5).frames is None
    assert driven.step_chunk(np.zeros((2, 7))).frames is None


def test_driven_stops_at_the_time_limit():
    env = tabletop.make(image_size_px=16, max_episode_steps=7)
    driven = experts.Driven(env)
    driven.reset(0, 5)
    steps = [driven.step_chunk(np.zeros((5, 7))) for _ in range(2)]
    assert [step.num_steps for step in steps] == [5, 2]
    assert [step.truncated for step in steps] == [False, True]
    driven.close()


def test_an_episode_of_a_task_without_an_expert_is_refused():
    """In a list by the task's number there: libero_goal's task 0 is the eleventh."""
    for suite, task in [("libero_90", 3), ("libero_goal", 0), ("libero_10,libero_goal", 10)]:
        other = types.SimpleNamespace(spec=types.SimpleNamespace(suite=suite), task=task)
        with pytest.raises(ValueError, match=f"env.suite='{suite}' has no scripted expert"):
            experts.expert(other)


class Faulty:
    """The tabletop env; the third observation of its first `count` episodes is not finite."""

    def __init__(self, env, count):
        self._env = env
        self._count = count
        self.spec = env.spec

    def __getattr__(self, name):
        return getattr(self._env, name)

    def reset(self, task, init_state):
        self._count -= 1
        self._requests = 0
        return self._env.reset(task, init_state)

    def step_chunk(self, actions_Ia, record=False):
        step = self._env.step_chunk(actions_Ia, record)
        self._requests += 1
        if self._count >= 0 and self._requests == 2:
            step.state[1] = np.nan
        return step


def test_faulty_numbers_are_in_no_demonstration(env):
    """Once: the episode is played again and is the same; twice: it is lost, others are not."""
    (sound,) = experts.collect_demonstrations(env, 0, [5], seed=3, noise=0.2)
    (again,) = experts.collect_demonstrations(Faulty(env, 1), 0, [5], seed=3, noise=0.2)
    for name, value in sound.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)
    lost, other = experts.collect_demonstrations(Faulty(env, 2), 0, [4, 5], seed=3, noise=0.2)
    assert lost.keys() == {"init_state", "success", "fault"} and not lost["success"]
    assert lost["init_state"] == 4 and "its state has entries that are not finite" in lost["fault"]
    np.testing.assert_array_equal(other["state"], sound["state"])
