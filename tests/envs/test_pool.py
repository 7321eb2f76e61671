"""EnvPool: order, copies, episodes; and what the caller sees when a simulator fails, dies or hangs."""

import functools
import os
import signal
import time

import numpy as np
import psutil
import pytest

from pirl_jax.envs import pool, probes

CHUNK = np.full((5, 7), 0.5, np.float32)


class Troubled(probes.Conditioned):
    """A probe with trouble in its chunk when its init state is 0; init state 1 is well."""

    def __init__(self, trouble: str):
        super().__init__(image_size_px=4, chunk=5)
        self.trouble = trouble
        if trouble == "wrong":
            raise ValueError("assets are not in /typo; give their folder")
        if trouble == "construct":
            raise ImportError("libEGL is missing")

    def step_chunk(self, actions_IA, record=False):
        if self._init_state == 1:
            return super().step_chunk(actions_IA, record)
        if self.trouble == "raise":
            raise FloatingPointError("the arm exploded")
        if self.trouble == "exit":
            os._exit(7)
        if self.trouble == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.trouble == "sleep":
            time.sleep(30)
        if self.trouble == "slow":
            time.sleep(0.5)
        return super().step_chunk(actions_IA, record)


def make(trouble="", num_envs=3, num_workers=None, timeout_s=60.0):
    return pool.EnvPool(functools.partial(Troubled, trouble), num_envs, num_workers, timeout_s)


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """No test of this file leaves a process or a shared block."""
    shared, children = set(os.listdir("/dev/shm")), set(psutil.Process().children())
    yield
    left = [one for one in set(psutil.Process().children()) - children if "resource_tracker" not in str(one.cmdline())]
    assert not left
    assert not set(os.listdir("/dev/shm")) - shared


@pytest.fixture(scope="module")
def shared_pool():
    """Three envs in two workers (slots 0 and 2 share one), for the tests in which nothing goes wrong."""
    with make("slow", num_envs=3, num_workers=2) as envs:
        yield envs


def test_batches_have_the_order_of_the_slots(shared_pool):
    envs = shared_pool
    assert envs.spec.suite == "probe_conditioned"
    envs.reset([0, 1, 2], [0, 0, 0], [1, 0, 1])
    first = envs.recv([2, 1, 0])
    assert first.images.shape == (3, 2, 4, 4, 3) and first.images.dtype == np.uint8
    assert first.state[:, 0].tolist() == [1, -1, 1] and first.images[:, 0, 0, 0, 0].tolist() == [255, 0, 255]
    assert first.num_steps.tolist() == [0, 0, 0] and not first.terminated.any()
    envs.send([1, 0, 2], np.stack([CHUNK, CHUNK * 0.5, CHUNK * 2]))
    last = envs.recv([0, 1, 2])
    assert last.reward.tolist() == [0.25, -0.5, 1.0]
    assert last.terminated.tolist() == [True] * 3 and last.truncated.tolist() == [False] * 3
    assert last.num_steps.tolist() == [5, 5, 5] and last.frames is None


def test_the_images_are_a_copy(shared_pool):
    shared_pool.reset([0], [0], [0])
    dark = shared_pool.recv([0])
    shared_pool.reset([0], [0], [1])
    bright = shared_pool.recv([0])
    assert (dark.images == 0).all() and (bright.images == 255).all()
    assert (dark.state == -1).all() and (bright.state == 1).all()


def test_the_first_ready_do_not_wait_for_the_slow(shared_pool):
    envs = shared_pool
    envs.reset([0, 1, 2], [0, 0, 0], [1, 0, 1])  # slot 1 will be slow
    slots, _ = envs.recv_any(3)
    assert sorted(slots) == [0, 1, 2]
    seconds = envs.env_seconds.copy()
    envs.send([1, 0, 2], np.stack([CHUNK] * 3))
    slots, step = envs.recv_any(2)
    assert slots.tolist() == [0, 2] and step.reward.tolist() == [0.5, 0.5]
    envs.reset([0], [0], [0])  # slot 0 goes on while slot 1 is still in its chunk
    assert envs.recv([0]).state[0, 0] == -1
    slots, step = envs.recv_any(1)
    assert slots.tolist() == [1] and step.reward.tolist() == [-0.5]
    assert (envs.env_seconds - seconds)[1] > 0.49 and (envs.env_seconds - seconds)[[0, 2]].max() < 0.4


def test_frames_only_when_asked_for(shared_pool):
    shared_pool.reset([0, 1], [0, 0], [1, 1])
    shared_pool.recv([0, 1])
    shared_pool.send([0, 1], np.stack([CHUNK] * 2), record=[False, True])
    frames = shared_pool.recv([0, 1]).frames
    assert frames[0] is None and len(frames[1]) == 5 and frames[1][0].shape == (4, 4, 3)


def test_misuse_is_named(shared_pool):
    envs = shared_pool
    with pytest.raises(ValueError, match="idle"):
        envs.recv([0])
    envs.reset([0], [0], [1])
    with pytest.raises(ValueError, match="slot 0 has a request under way"):
        envs.send([0], CHUNK[None])
    with pytest.raises(ValueError, match="recv of 2 slots, but 1"):
        envs.recv_any(2)
    envs.recv([0])
    with pytest.raises(ValueError, match="num_workers is 4"):
        make(num_envs=3, num_workers=4)


@pytest.mark.parametrize(
    "trouble, words",
    [
        ("raise", ["FloatingPointError: the arm exploded", "in step_chunk"]),
        ("exit", ["died", "exit code 7"]),
        ("kill", ["died", "signal 9"]),
    ],
)
def test_trouble_in_one_env_surfaces_within_5_s(trouble, words):
    """Slots 0 and 2 share a worker; slot 2 is the bad one, slot 0 has been served before it."""
    with make(trouble, num_envs=3, num_workers=2) as envs:
        envs.reset([0, 1, 2], [0, 0, 0], [1, 1, 0])
        envs.recv([0, 1, 2])
        start_s = time.monotonic()
        envs.send([0, 1, 2], np.stack([CHUNK] * 3))
        with pytest.raises(pool.EnvError, match=r"env 2 \(task 0, init state 0\)") as caught:
            envs.recv([0, 1, 2])
        assert time.monotonic() - start_s < 5
    assert all(word in str(caught.value) for word in words)
    assert (caught.value.slot, caught.value.task, caught.value.init_state) == (2, 0, 0)


def test_an_idle_worker_that_dies_is_noticed():
    with make(num_envs=2) as envs:
        envs.reset([0, 1], [0, 0], [1, 1])
        envs.recv([0, 1])
        envs._workers[1].process.kill()
        envs._workers[1].process.join()
        with pytest.raises(pool.EnvError, match=r"env 1 \(task 0, init state 1\) died.*signal 9"):
            envs.send([0, 1], np.stack([CHUNK] * 2))
            envs.recv([0, 1])


def test_a_hung_env_is_named_after_the_timeout(monkeypatch):
    monkeypatch.setattr(pool, "CLOSE_S", 0.1)  # the pool need not be patient with this env
    envs = make("sleep", num_envs=2, timeout_s=20)
    envs.reset([0, 1], [0, 0], [1, 0])
    envs.recv([0, 1])
    envs.timeout_s = 0.8  # the start of the workers is not what is tested
    envs.send([0, 1], np.stack([CHUNK] * 2))
    start_s = time.monotonic()
    with pytest.raises(pool.EnvError, match=r"env 1 \(task 0, init state 0\) did not answer within 0.8 s"):
        envs.recv([0, 1])
    assert time.monotonic() - start_s < 5
    envs.close()


def test_what_the_user_can_mend_comes_out_of_the_constructor_as_it_is():
    with pytest.raises(ValueError) as error:
        make("wrong", num_envs=2, num_workers=2)
    assert str(error.value) == "assets are not in /typo; give their folder"


def test_an_env_that_cannot_be_built_is_an_error_of_the_constructor():
    with pytest.raises(pool.EnvError, match="(?s)env 0 .*ImportError: libEGL is missing"):
        make("construct", num_envs=1)


def test_close_twice_and_use_after_close():
    envs = make(num_envs=1)
    envs.close()
    envs.close()
    with pytest.raises(ValueError, match="closed"):
        envs.reset([0], [0], [0])
