"""ReadyQueue: first ready or lockstep, bounded, errors reach the caller, nothing waits for ever."""

import os
import signal
import sys
import threading
import time

import numpy as np
import pytest
import troubled
from troubled import CHUNK, make, reset, send

from pirl_jax.envs.pool import queue, supervisor


@pytest.fixture(scope="module")
def envs():
    """Four envs in two workers; init state 0 makes a chunk last 0.5 s, init state 1 is quick."""
    with make("slow", num_envs=4, num_workers=2) as shared:
        yield shared


def wait_until(condition, limit_s=5.0):
    deadline_s = time.monotonic() + limit_s
    while not condition() and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert condition()


def test_first_ready(envs):
    with queue.ReadyQueue(envs) as ready:
        reset(envs, [0, 1, 2, 3], [1, 0, 1, 0])
        assert sorted(ready.get(4)[0]) == [0, 1, 2, 3]
        envs.send([1, 3, 0, 2], np.stack([CHUNK] * 4))
        slots, step = ready.get(2)
        assert sorted(slots) == [0, 2] and step.reward.tolist() == [0.5, 0.5]
        assert step.images.shape == (2, 2, 4, 4, 3)
        assert step.frames is None
        slots, step = ready.get(2)
        assert sorted(slots) == [1, 3] and step.reward.tolist() == [-0.5, -0.5]


def test_a_listener_hears_every_answer(envs):
    heard = []
    with queue.ReadyQueue(envs) as ready:
        ready.listen(heard.append)
        reset(envs, [0, 1], [1, 1])
        ready.get(2)
        send(envs, [0])
        ready.get(1)
        envs.listen(None)
        send(envs, [1])
        ready.get(1)
    assert sorted(answer.slot for answer in heard) == [0, 0, 1]
    assert [bool(answer.memory_bytes) for answer in heard] == [True, True, False]
    for answer in heard:
        assert answer.cpu_s >= 0 and answer.env_s > 0


def test_who_waits_can_be_interrupted(envs):
    with queue.ReadyQueue(envs) as ready:
        reset(envs, [0], [0])
        ready.get(1)
        send(envs, [0])
        threading.Timer(0.05, ready.interrupt).start()
        for _ in range(2):  # and stays so
            with pytest.raises(queue.Interrupted):
                ready.get(1)
        ready.go_on()
        assert ready.get(1)[0].tolist() == [0], "nothing was lost"
    while envs.num_busy:
        envs.recv_any(1)


def test_how_many_are_ready(envs):
    """At once where as many as wanted are, else after the timeout; nothing is taken."""
    with queue.ReadyQueue(envs) as ready:
        assert ready.ready(1, 0.0) == 0
        reset(envs, [0, 1], [1, 1])
        assert ready.ready(2, 60.0) == 2 == ready.ready(3, 0.0)
        assert sorted(ready.get(2)[0]) == [0, 1]
        ready.interrupt()
        with pytest.raises(queue.Interrupted):
            ready.ready(1, 60.0)


def test_lockstep_has_the_order_asked_for(envs):
    with queue.ReadyQueue(envs) as ready:
        reset(envs, [0, 1, 2, 3], [1, 0, 1, 0])
        slots, step = ready.get(3, slots=np.array([3, 0, 1]))
        assert slots.tolist() == [3, 0, 1] and step.state[:, 0].tolist() == [-1, 1, -1]
        envs.send([0, 3], np.stack([CHUNK] * 2), record=[True, False])
        slots, step = ready.get(2, slots=[3, 0])
        assert step.frames[0] is None
        assert len(step.frames[1]) == 5
        assert ready.get(1)[0].tolist() == [2]


def test_capacity_bounds_what_is_taken_out_of_the_pool(envs):
    with queue.ReadyQueue(envs, capacity=2) as ready:
        reset(envs, [0, 1, 2, 3], [1, 1, 1, 1])
        wait_until(lambda: len(ready._ready) == 2 and len(envs._answers) <= 2)
        time.sleep(0.05)
        assert len(ready._ready) == 2 and envs.num_busy == 2
        taken = np.concatenate([ready.get(2)[0], ready.get(2)[0]])
        assert sorted(taken) == [0, 1, 2, 3]


def test_requests_that_could_never_be_met_are_refused(envs):
    with queue.ReadyQueue(envs, capacity=2) as ready:
        with pytest.raises(ValueError, match="only 0 slots are ready or under way"):
            ready.get(1)
        with pytest.raises(ValueError, match="does not fit a capacity of 2"):
            ready.get(3)
        with pytest.raises(ValueError, match="lockstep needs capacity 4"):
            ready.get(1, slots=[0])
        with pytest.raises(ValueError, match="batch is 2, but 1"):
            ready.get(2, slots=[0])


def test_lockstep_with_an_idle_slot_is_refused(envs):
    with queue.ReadyQueue(envs) as ready:
        reset(envs, [0, 1], [1, 1])
        sentence = r"slots \[2\] are asked for, but nothing is under way there"
        with pytest.raises(ValueError, match=sentence):
            ready.get(2, slots=[0, 2])
        ready.get(2)


def test_errors_of_the_pool_reach_the_caller_again_and_again():
    with make("raise", num_envs=2, restarts_per_hour=0) as envs, queue.ReadyQueue(envs) as ready:
        reset(envs, [0, 1], [1, 0])
        ready.get(2)
        envs.send([0, 1], np.stack([CHUNK] * 2))
        start_s = time.monotonic()
        for _ in range(2):
            with pytest.raises(supervisor.EnvError, match=r"(?s)env 1 .*the arm exploded"):
                ready.get(2)
        assert time.monotonic() - start_s < 5


def test_a_lost_episode_is_a_row_of_the_batch():
    with make("raise", num_envs=2, decisions=2) as envs, queue.ReadyQueue(envs) as ready:
        reset(envs, [0, 1], [1, 0])
        ready.get(2)
        troubled.send(ready, [0, 1])
        assert ready.num_pending == 2
        step = ready.recv([1, 0])
        assert step.lost.tolist() == [True, False]
        assert step.reward.tolist() == [0, 0.5]
        assert not step.images[0].any()
        assert ready.num_pending == 0
        assert ready.counters() == {"restarts": 1, "recycled": 0, "lost_episodes": 1}


def test_an_idle_worker_that_dies_is_noticed_without_a_request():
    with make(num_envs=1, restarts_per_hour=0) as envs, queue.ReadyQueue(envs) as ready:
        reset(envs, [0], [1])
        ready.get(1)
        os.kill(envs.process_ids[0], signal.SIGKILL)
        ready._thread.join(5)
        with pytest.raises(supervisor.EnvError, match="died"):
            ready.get(1)


def test_whatever_ends_the_thread_comes_out_of_get(envs, monkeypatch):
    monkeypatch.setattr(envs, "wait", lambda limit_s: sys.exit("not even an Exception"))
    with queue.ReadyQueue(envs) as ready, pytest.raises(SystemExit, match="not even"):
        ready.get(1)


def test_close_ends_a_get_that_waits_for_a_hung_env(monkeypatch):
    monkeypatch.setattr(supervisor, "CLOSE_S", 0.1)  # the pool need not be patient with this env
    with make("hang", num_envs=1) as envs:
        ready = queue.ReadyQueue(envs)
        reset(envs, [0], [0])
        ready.get(1)
        envs.send([0], CHUNK[None])
        caught = []

        def wait():
            with pytest.raises(ValueError, match="closed") as error:
                ready.get(1)
            caught.append(error)

        waiting = threading.Thread(target=wait)
        waiting.start()
        start_s = time.monotonic()
        ready.close()
        ready.close()
        waiting.join(3)
        assert caught and time.monotonic() - start_s < 3
        with pytest.raises(ValueError, match="closed"):
            ready.get(1)


def test_close_of_a_full_queue_leaves_the_rest_in_the_pool(envs):
    full = queue.ReadyQueue(envs, capacity=1)
    reset(envs, [0, 1], [1, 1])
    wait_until(lambda: len(full._ready) == 1)
    full.close()
    assert envs.num_busy == 1
    envs.recv_any(1)


def test_many_rounds_lose_nothing(envs):
    """Two hundred short rounds, sends racing the thread: every request is answered exactly once."""
    with queue.ReadyQueue(envs) as ready:
        counts = np.zeros(4, int)
        reset(envs, [0, 1, 2, 3], [1] * 4)
        for _ in range(200):
            slots, _ = ready.get(2)
            counts[slots] += 1
            reset(envs, slots, [1] * 2)
        ready.get(4)
        assert counts.sum() == 400 and envs.num_busy == 0
