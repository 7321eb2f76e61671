"""Envs that share simulators: nobody's trajectory notices; few simulators exist; memory does not grow."""

import collections
import functools

import numpy as np
import psutil
import pytest

from pirl_jax.envs.libero import cache as libero_cache
from pirl_jax.envs.libero import suite as libero
from tests import pools

# robosuite, LIBERO and numba warn about themselves when they are imported.
pytestmark = pytest.mark.filterwarnings("ignore")

ACTIONS = np.random.default_rng(0).uniform(-1, 1, (12, 7))


class Counter:
    """A simulator whose whole state is a number; counts how many of its kind are alive."""

    alive = 0

    def __init__(self, task):
        self.task, self.value = task, None
        Counter.alive += 1

    def start(self, init_state):
        self.value = 100 * init_state
        self.starts = getattr(self, "starts", 0) + 1

    def step(self):
        self.value += 1

    def snapshot(self):
        return self.task, self.value

    def restore(self, snapshot):
        task, self.value = snapshot
        assert task == self.task

    def close(self):
        Counter.alive -= 1


class Env:
    saved = None


@pytest.fixture
def cache(monkeypatch):
    monkeypatch.setattr(libero_cache.libero_sim, "Simulator", Counter)
    monkeypatch.setattr(libero_cache.gc, "collect", lambda: 0)  # 0.1 s in the process of the tests
    cache = libero_cache.SimulatorCache()
    yield cache
    assert Counter.alive == 0, "the last env to leave frees all"


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_interleaved_episodes_keep_their_own_state(cache, limit):
    """Seven envs on three tasks, resets and steps in any order."""
    rng = np.random.default_rng(limit)
    envs = [Env() for _ in range(7)]
    expected = {}
    for _ in range(400):
        k = int(rng.integers(len(envs)))
        if k not in expected or rng.uniform() < 0.1:
            task, init_state = int(rng.integers(3)), int(rng.integers(5))
            built = cache.start(envs[k], (task,), limit, init_state)
            expected[k] = task, 100 * init_state
        else:
            built = cache.hold(envs[k], (expected[k][0],), limit)
            built.simulator.step()
            expected[k] = expected[k][0], expected[k][1] + 1
        assert built.simulator.snapshot() == expected[k]
        assert Counter.alive <= limit
    for k, env in enumerate(envs):
        assert cache.hold(env, (expected[k][0],), limit).simulator.snapshot() == expected[k]
    for env in envs:
        cache.leave(env)


def test_the_least_recently_used_task_goes(cache):
    env = Env()
    first = cache.start(env, (1,), 2, 0)
    second = cache.start(env, (2,), 2, 0)
    assert cache.start(env, (1,), 2, 0) is first
    cache.start(env, (3,), 2, 0)
    assert cache.start(env, (1,), 2, 0) is first and cache.start(env, (2,), 2, 0) is not second
    cache.leave(env)


def test_settling_happens_once(cache):
    """Also when the simulator has been evicted in between; a reset drops the old episode."""
    one, other = Env(), Env()
    for env in (one, other, one):
        built = cache.start(env, (1,), 1, 3)
        assert built.simulator.value == 300
        built.simulator.step()
    assert built.simulator.starts == 1
    cache.start(one, (2,), 1, 0)
    built = cache.start(one, (1,), 1, 3)
    assert built.simulator.value == 300 and not hasattr(built.simulator, "starts")
    assert cache.hold(other, (1,), 1).simulator.value == 301
    for env in (one, other):
        cache.leave(env)


def test_a_failed_start_is_not_remembered(cache, monkeypatch):
    env = Env()
    cache.start(env, (1,), 1, 0)
    with monkeypatch.context() as patch:
        patch.setattr(Counter, "start", lambda self, init_state: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            cache.start(env, (1,), 1, 4)
    assert cache.start(env, (1,), 1, 4).simulator.value == 400
    cache.leave(env)


class Blind(libero.Libero):
    """Renders nothing."""

    def _render(self, camera):
        return np.zeros((2, 2, 3), np.uint8)


def blind(libero_assets, seed, cached_tasks=2):
    env = libero.make(
        "libero_object", libero_assets, image_size_px=2, seed=seed, cached_tasks=cached_tasks
    )
    env.__class__ = Blind
    return env


@pytest.fixture(scope="module")
def assets_built(libero_assets):
    """The assets, with the simulator of (task 0, seed 11) kept alive from test to test."""
    keeper = blind(libero_assets, seed=11)
    keeper.reset(0, 49)
    yield libero_assets
    keeper.close()


def play(libero_assets, episodes, cached_tasks, seed):
    """States after every chunk of 4 actions and the physics at the end, of episodes that take turns."""
    envs = [blind(libero_assets, seed, cached_tasks) for _ in episodes]
    states = [[env.reset(*episode).state] for env, episode in zip(envs, episodes)]
    for chunk in np.split(ACTIONS, 3):
        for sign, env, rows in zip((1, -1, 1, -1), envs, states):
            rows.append(env.step_chunk(sign * chunk).state)
    ends = [env.simulator.snapshot().physics for env in envs]
    for env in envs:
        env.close()
    return [(np.stack(rows), end) for rows, end in zip(states, ends)]


def alone(libero_assets, episode, index, seed):
    """The same episode in an env of its own, in one chunk."""
    env = blind(libero_assets, seed)
    env.reset(*episode)
    state = env.step_chunk((1, -1, 1, -1)[index] * ACTIONS).state
    end = env.simulator.snapshot().physics
    env.close()
    return state, end


def assert_undisturbed(libero_assets, episodes, cached_tasks, seed):
    for i, (states, end) in enumerate(play(libero_assets, episodes, cached_tasks, seed)):
        state, expected = alone(libero_assets, episodes[i], i, seed)
        np.testing.assert_array_equal(states[-1], state)
        np.testing.assert_array_equal(end, expected)


def test_two_slots_share_one_task(assets_built):
    assert_undisturbed(assets_built, [(0, 1), (0, 2), (0, 1)], cached_tasks=1, seed=11)


@pytest.mark.slow
def test_three_tasks_through_one_simulator(libero_assets):
    assert_undisturbed(libero_assets, [(0, 1), (1, 1), (2, 1)], cached_tasks=1, seed=12)


def test_a_settled_state_from_the_cache_is_a_fresh_one(libero_assets):
    """The first reset settles, the second restores: same observation, same trajectory.  Also after a task switch."""
    env = blind(libero_assets, seed=13)
    ends = collections.defaultdict(list)
    for task in (0, 0, 1, 0):
        first = env.reset(task, 4).state
        last = env.step_chunk(ACTIONS).state
        ends[task].append((first, last, env.simulator.snapshot().physics))
    for other in ends[0][1:]:
        for ours, theirs in zip(ends[0][0], other):
            np.testing.assert_array_equal(ours, theirs)
    env.close()


def test_nobody_reads_another_envs_episode(assets_built):
    one, other = blind(assets_built, seed=11), blind(assets_built, seed=11)
    with pytest.raises(RuntimeError, match="call reset first"):
        _ = one.simulator
    one.reset(0, 0)
    state = one.simulator.state()
    other.reset(0, 1)
    assert one.simulator is other.simulator and not np.array_equal(other.simulator.state(), state)
    np.testing.assert_array_equal(one.simulator.state(), state)
    one.close()
    other.step_chunk(ACTIONS)
    other.close()


def test_wrong_cached_tasks(libero_assets):
    with pytest.raises(ValueError, match="cached_tasks 0 leaves no simulator"):
        libero.make("libero_object", libero_assets, cached_tasks=0)


def test_actions_that_are_not_finite(assets_built):
    """MuJoCo would warn in a file and put the scene back to its beginning."""
    env = blind(assets_built, seed=11)
    env.reset(0, 0)
    with pytest.raises(ValueError, match="not finite"):
        env.step_chunk(np.full((1, 7), np.nan))
    env.close()


def resident_mb() -> float:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096 / 1e6


@pytest.mark.slow
def test_two_thousand_resets_do_not_grow(libero_assets):
    """All init states of one task over and over, one step each; in a process that does nothing else."""
    with pools.start(
        functools.partial(blind, libero_assets, seed=11), num_envs=1, timeout_s=300
    ) as envs:
        process = psutil.Process(envs.process_ids[0])
        for i in range(2100):
            if i == 100:
                before = process.memory_info().rss
            envs.reset([0], [0], [i % 50])
            envs.recv([0])
            envs.send([0], ACTIONS[None, :1])
            envs.recv([0])
        assert process.memory_info().rss - before < 5e6


@pytest.mark.slow
def test_task_switches_do_not_grow(libero_assets):
    env = blind(libero_assets, seed=11, cached_tasks=1)
    for i in range(4):
        env.reset(i % 2, 0)
    before = resident_mb()
    for i in range(16):
        env.reset(i % 2, 0)
    assert resident_mb() - before < 50
    env.close()


@pytest.mark.slow
def test_slots_of_a_worker_share(libero_assets):
    """Four slots, two tasks, one worker: the images are those of this process."""
    make = functools.partial(libero.make, "libero_object", libero_assets, 64, cached_tasks=1)
    with pools.start(make, num_envs=4, num_workers=1, timeout_s=120) as envs:
        envs.reset(range(4), [0, 1, 0, 1], [0, 1, 2, 3])
        envs.recv(range(4))
        envs.send(range(4), np.stack([ACTIONS] * 4))
        last = envs.recv(range(4))
    here = make()
    for i in range(4):
        here.reset(i % 2, i)
        step = here.step_chunk(ACTIONS)
        np.testing.assert_array_equal(last.images[i], step.images)
        np.testing.assert_array_equal(last.state[i], step.state)
    here.close()
