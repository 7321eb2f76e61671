"""EnvPool: order, copies, episodes, misuse; errors of the constructor.

What happens in trouble: test_supervisor.
"""

import os

import numpy as np
import psutil
import pytest
from troubled import CHUNK, make

from pirl_jax.envs.pool import supervisor


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """No test of this file leaves a process, a shared block or an open file."""
    this = psutil.Process()
    shared = set(os.listdir("/dev/shm"))
    children = set(this.children())
    num_files = this.num_fds()
    yield
    assert not set(this.children()) - children
    assert not set(os.listdir("/dev/shm")) - shared
    assert this.num_fds() <= num_files


@pytest.fixture(scope="module")
def shared_pool():
    """Three envs in two workers (0 and 2 share one), for tests in which nothing goes wrong."""
    with make("slow", num_envs=3, num_workers=2) as envs:
        yield envs


def test_batches_have_the_order_of_the_slots(shared_pool):
    envs = shared_pool
    assert envs.spec.suite == "probe_conditioned"
    envs.reset([0, 1, 2], [0, 0, 0], [1, 0, 1])
    first = envs.recv([2, 1, 0])
    assert first.images.shape == (3, 2, 4, 4, 3)
    assert first.images.dtype == np.uint8
    assert first.state[:, 0].tolist() == [1, -1, 1]
    assert first.images[:, 0, 0, 0, 0].tolist() == [255, 0, 255]
    assert first.num_steps.tolist() == [0, 0, 0]
    assert not first.terminated.any()
    envs.send([1, 0, 2], np.stack([CHUNK, CHUNK * 0.5, CHUNK * 2]))
    last = envs.recv([0, 1, 2])
    assert last.reward.tolist() == [0.25, -0.5, 1.0]
    assert last.terminated.tolist() == [True] * 3
    assert last.truncated.tolist() == [False] * 3
    assert last.num_steps.tolist() == [5, 5, 5]
    assert last.frames is None
    assert last.lost.dtype == bool
    assert not last.lost.any() and not first.lost.any()


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
    before_s = envs.env_seconds.copy()
    envs.send([1, 0, 2], np.stack([CHUNK] * 3))
    slots, step = envs.recv_any(2)
    assert slots.tolist() == [0, 2] and step.reward.tolist() == [0.5, 0.5]
    envs.reset([0], [0], [0])  # slot 0 goes on while slot 1 is still in its chunk
    assert envs.recv([0]).state[0, 0] == -1
    slots, step = envs.recv_any(1)
    assert slots.tolist() == [1] and step.reward.tolist() == [-0.5]
    inside_s = envs.env_seconds - before_s
    assert inside_s[1] > 0.49
    assert inside_s[[0, 2]].max() < 0.4


def test_frames_only_when_asked_for(shared_pool):
    shared_pool.reset([0, 1], [0, 0], [1, 1])
    shared_pool.recv([0, 1])
    shared_pool.send([0, 1], np.stack([CHUNK] * 2), record=[False, True])
    frames = shared_pool.recv([0, 1]).frames
    assert frames[0] is None
    assert len(frames[1]) == 5
    assert frames[1][0].shape == (4, 4, 3)


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
    envs.send([0], CHUNK[None])
    envs.recv([0])
    with pytest.raises(ValueError, match="slot 0 has no episode"):
        envs.send([0], CHUNK[None])
    sentence = "task 1, init state 0 does not exist: probe_conditioned has 1 tasks"
    with pytest.raises(ValueError, match=sentence):
        envs.reset([0], [1], [0])
    assert envs.num_busy == 0
    with pytest.raises(ValueError, match="num_workers is 4"):
        make(num_envs=3, num_workers=4)


def test_slots_that_share_a_worker(shared_pool):
    assert shared_pool.slot_workers.tolist() == [0, 1, 0]
    first, second, third = shared_pool.process_ids
    assert first == third != second


def test_what_the_user_can_mend_comes_out_of_the_constructor_as_it_is():
    with pytest.raises(ValueError) as error:
        make("wrong", num_envs=2, num_workers=2)
    assert str(error.value) == "assets are not in /typo; give their folder"


def test_an_env_that_cannot_be_built_is_an_error_of_the_constructor():
    with pytest.raises(supervisor.EnvError, match=r"(?s)env 0 .*ImportError: libEGL is missing"):
        make("construct", num_envs=1)


def test_close_twice_and_use_after_close():
    envs = make(num_envs=1)
    envs.close()
    envs.close()
    with pytest.raises(ValueError, match="closed"):
        envs.reset([0], [0], [0])
