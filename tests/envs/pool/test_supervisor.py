"""Fault injection: what becomes of workers, episodes and the caller when simulators misbehave.

They fail, die, hang or are stopped; those that grow: test_recycling.
"""

import contextlib
import functools
import logging
import os
import random
import signal
import threading
import time

import numpy as np
import psutil
import pytest
import troubled
from troubled import STATE, WELL, begin, kill, lost_after, make, reset, send

from pirl_jax.envs.pool import process, queue, supervisor
from tests import pools

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


@pytest.fixture(scope="module")
def shared_pool():
    """Slots 0 and 2 share a worker, slot 1 has its own; episodes of two chunks.

    Restarts are enough for the whole file.
    """
    with make(num_envs=3, num_workers=2, decisions=2, restarts_per_hour=100) as envs:
        yield envs


@pytest.fixture
def envs(shared_pool):
    """All three have begun an episode without trouble, and every worker has started."""
    shared_pool._supervisor.timeout_s = 60.0
    reset(shared_pool, [0, 1, 2], [WELL] * 3)
    assert not shared_pool.recv([0, 1, 2]).lost.any()
    return shared_pool


def counted_since(envs, before):
    return {name: count - before[name] for name, count in envs.counters().items()}


# ---- what all workers share ---------------------------------------------------------------------


def test_what_every_worker_fails_of_ends_the_run_with_its_cause():
    """And not with episodes that are all lost, long before the restarts of an hour are spent."""
    with make(num_envs=3, num_workers=3, restarts_per_hour=100) as envs:
        reset(envs, [0, 1, 2], [STATE["raise in reset"]] * 3)
        with pytest.raises(supervisor.EnvError, match="the objects overlap") as error:
            envs.recv([0, 1, 2])
        assert "No worker could play anything" in str(error.value)
        assert envs.counters()["restarts"] == 2


def test_a_crash_that_comes_again_in_every_worker_ends_the_run():
    with make(num_envs=1, num_workers=1, restarts_per_hour=100) as envs:
        for once_more in (True, False):
            kill(envs.process_ids[0])
            if once_more:
                reset(envs, [0], [WELL])
                assert envs.recv([0]).lost.all(), "once may be by chance"
        reset(envs, [0], [WELL])
        with pytest.raises(supervisor.EnvError, match="No worker could play anything"):
            envs.recv([0])


def test_who_has_played_once_is_replaced(envs):
    before = envs.counters()
    reset(envs, [0, 1], [STATE["raise in reset"]] * 2)
    assert envs.recv([0, 1]).lost.all()
    assert counted_since(envs, before)["restarts"] == 2


# ---- one that fails ------------------------------------------------------------------------------

FAULTS = {
    "raise": "failed: FloatingPointError: the arm exploded",
    "exit": "died without a word (exit code 7)",
    "kill": "died without a word (signal 9, SIGKILL",
    "stop": "did not answer within 0.8 s: its process is stopped (SIGSTOP)",
    "hang": "did not answer within 0.8 s: it hangs",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_a_chunk_costs_the_episodes_of_its_worker_and_nothing_else(envs, fault, caplog):
    """Slot 2 fails; slot 0 of the same worker has just been answered; slot 1 goes on."""
    begin(envs, [2], [STATE[fault]])
    before = envs.process_ids
    counters = envs.counters()
    envs._supervisor.timeout_s = 0.8 if fault in ("stop", "hang") else 30.0
    send(envs, [0, 1, 2])
    step = envs.recv([0, 1, 2])
    assert step.lost.tolist() == [False, False, True]
    assert step.reward.tolist() == [0.5, 0.5, 0]
    assert not step.images[2].any() and not step.state[2].any()
    assert step.num_steps.tolist() == [5, 5, 0]
    assert not step.terminated.any() and not step.truncated.any()
    envs._supervisor.timeout_s = 60.0
    # The episode of slot 0 died between two chunks.
    assert lost_after(envs, [0, 1]) == [True, False]
    with pytest.raises(ValueError, match="slot 0 has no episode"):
        send(envs, [0])
    begin(envs, [0, 2], [WELL, WELL])
    assert lost_after(envs, [0, 2]) == [False, False]
    after = envs.process_ids
    assert after[0] == after[2] != before[0]
    assert after[1] == before[1]
    assert not psutil.pid_exists(before[0])
    assert counted_since(envs, counters) == {"restarts": 1, "recycled": 0, "lost_episodes": 2}
    (record,) = caplog.records
    said = record.getMessage()
    assert record.levelno == logging.WARNING and "\n" not in said
    assert FAULTS[fault] in said
    assert f"env 2 (task 0, init state {STATE[fault]})" in said
    assert "worker of slots [0, 2] replaced" in said
    assert "of at most 100 within an hour; episodes lost: 2; env 2" in said


def test_a_fault_in_a_reset(envs, caplog):
    counters = envs.counters()
    reset(envs, [1], [STATE["raise in reset"]])
    assert envs.recv([1]).lost.tolist() == [True]
    assert "failed: RuntimeError: the objects overlap" in caplog.text
    begin(envs, [1], [WELL])
    assert lost_after(envs, [0, 1, 2]) == [False] * 3
    assert counted_since(envs, counters)["lost_episodes"] == 1


def test_a_hang_is_reported_while_others_answer_all_the_time(envs):
    begin(envs, [1], [STATE["hang"]])
    envs._supervisor.timeout_s = 1.0
    send(envs, [1])
    until_s = time.monotonic() + 20
    while not envs.wait(0) and time.monotonic() < until_s:
        pass
    lost = False
    while not lost and time.monotonic() < until_s:
        reset(envs, [0], [WELL])
        slots, step = envs.recv_any(1)
        while 0 not in slots and not step.lost.any():
            slots, step = envs.recv_any(1)
        lost = bool(step.lost.any())
    assert lost and slots.tolist() == [1]
    envs.recv([0])


def test_idle_workers_that_die(envs):
    """Only slot 1 is in the middle of an episode and has something to lose; 0 and 2 have none."""
    for _ in range(2):
        send(envs, [0, 2])
        ends = envs.recv([0, 2])
    assert ends.terminated.all()
    counters = envs.counters()
    for pid in set(envs.process_ids):
        kill(pid)
    assert lost_after(envs, [1]) == [True]
    begin(envs, [0, 1, 2], [WELL] * 3)
    assert lost_after(envs, [0, 1, 2]) == [False] * 3
    assert counted_since(envs, counters) == {"restarts": 2, "recycled": 0, "lost_episodes": 1}


def test_answers_that_had_arrived_stay_valid(envs):
    send(envs, [0, 1, 2])
    until_s = time.monotonic() + 5
    while len(envs._answers) < 3 and time.monotonic() < until_s:
        envs.wait(0.1)
        envs._collect(0.1)
    for pid in set(envs.process_ids):
        kill(pid)
    envs._collect(0.1)
    step = envs.recv([0, 1, 2])
    assert not step.lost.any()
    assert step.reward.tolist() == [0.5] * 3
    assert (step.images == 255).all()
    assert lost_after(envs, [0, 1, 2]) == [True] * 3


def test_time_in_which_the_pool_did_not_look_is_no_silence(envs, monkeypatch):
    """As after Ctrl-Z: everything was stopped for longer than the deadline."""
    monkeypatch.setattr(supervisor, "AWAY_S", 1.0)
    envs._supervisor.timeout_s = 2.0
    pid = envs.process_ids[1]
    os.kill(pid, signal.SIGSTOP)
    send(envs, [1])
    time.sleep(2.2)
    os.kill(pid, signal.SIGCONT)
    assert envs.recv([1]).lost.tolist() == [False]


def test_posting_never_waits_for_the_start_of_a_worker(envs):
    reset(envs, [1], [STATE["kill"]])
    envs.recv([1])
    assert lost_after(envs, [1]) == [True]
    start_s = time.monotonic()
    reset(envs, [1], [WELL])  # kept in the channel of the process that is just starting
    assert time.monotonic() - start_s < 0.1
    assert envs.recv([1]).lost.tolist() == [False]


@pytest.mark.parametrize("hang, function", [("hang", "wait_for_a_driver"), ("spin", "spin")])
def test_the_message_of_a_hang_has_the_stack(hang, function):
    """Even where the interpreter's lock is held."""
    with make(num_envs=1, restarts_per_hour=0) as envs:
        begin(envs, [0], [STATE[hang]])
        envs._supervisor.timeout_s = 0.5
        send(envs, [0])
        sentence = r"did not answer within 0.5 s: it hangs"
        with pytest.raises(supervisor.EnvError, match=sentence) as caught:
            envs.recv([0])
    assert f"in {function}" in str(caught.value)
    assert "in step_chunk" in str(caught.value)


def test_a_crash_in_c_leaves_the_stack():
    with make(num_envs=1, restarts_per_hour=0) as envs:
        begin(envs, [0], [STATE["hang"]])
        send(envs, [0])
        time.sleep(0.3)
        os.kill(envs.process_ids[0], signal.SIGSEGV)
        with pytest.raises(supervisor.EnvError, match="signal 11, SIGSEGV") as caught:
            envs.recv([0])
    assert "in wait_for_a_driver" in str(caught.value)


def test_a_spent_budget_tells_the_first_cause_once(caplog):
    with make(num_envs=3, restarts_per_hour=2) as envs:
        for fault in ("raise", "exit"):
            begin(envs, [2], [STATE[fault]])
            assert lost_after(envs, [2]) == [True]
        begin(envs, [0, 2], [WELL, STATE["kill"]])
        send(envs, [0, 2])
        first = rf"env 2 \(task 0, init state {STATE['raise']}\)"
        with pytest.raises(supervisor.EnvError, match=first) as caught:
            envs.recv([0, 2])
        message = str(caught.value)
        # The summary, and the end of its traceback.
        assert message.count("FloatingPointError: the arm exploded") == 2
        assert "in step_chunk" in message
        assert "exit code" not in message and "SIGKILL" not in message
        assert "first of 3 failures within an hour" in message
        assert "restarts_per_hour allows to replace 2" in message
        reset(envs, [1], [WELL])  # says nothing: recv does, and always the same
        with pytest.raises(supervisor.EnvError) as again:
            envs.recv([1])
        assert again.value is caught.value
    assert len(caplog.records) == 2 == envs.counters()["restarts"]


def test_the_budget_is_one_of_an_hour(monkeypatch):
    monkeypatch.setattr(supervisor, "HOUR_S", 0.0)
    with make(num_envs=1, restarts_per_hour=1) as envs:
        for _ in range(3):
            begin(envs, [0], [STATE["kill"]])
            assert lost_after(envs, [0]) == [True]
        assert envs.counters()["restarts"] == 3


def test_a_worker_that_dies_while_it_starts_again(tmp_path):
    counter = tmp_path / "deaths"
    counter.write_text("0")
    with pools.start(functools.partial(troubled.Fragile, counter), num_envs=1) as envs:
        begin(envs, [0], [STATE["kill"]])
        counter.write_text("2")
        assert lost_after(envs, [0]) == [True]
        for _ in range(10):
            reset(envs, [0], [WELL])
            if not envs.recv([0]).lost[0]:
                break
        assert lost_after(envs, [0]) == [False]
        assert envs.counters()["restarts"] == 3


def test_a_start_that_always_fails_spends_the_budget(tmp_path):
    counter = tmp_path / "deaths"
    counter.write_text("0")
    factory = functools.partial(troubled.Fragile, counter)
    with pools.start(factory, num_envs=1, restarts_per_hour=3) as envs:
        begin(envs, [0], [STATE["raise"]])
        counter.write_text("1000")
        assert lost_after(envs, [0]) == [True]
        with pytest.raises(supervisor.EnvError, match=r"(?s)arm exploded.*first of 4 failures"):
            for _ in range(10):
                reset(envs, [0], [WELL])
                envs.recv([0])


def test_two_pools_in_one_process_do_not_touch_each_other():
    """Both replace a worker at the same time, each in its queue's thread."""
    variables = dict(os.environ)
    with make(num_envs=2) as left, make(num_envs=2) as right:
        with queue.ReadyQueue(left) as first, queue.ReadyQueue(right) as second:
            for ready in (first, second):
                reset(ready, [0, 1], [WELL, STATE["kill"]])
            for ready in (first, second):
                ready.get(2)
                send(ready, [0, 1])
            for ready in (first, second):
                assert ready.recv([0, 1]).lost.tolist() == [False, True]
                reset(ready, [0, 1], [WELL, WELL])
            for ready in (first, second):
                assert not ready.recv([0, 1]).lost.any()
                assert ready.counters()["restarts"] == 1
        left.close()
        begin(right, [0, 1], [WELL, WELL])
    assert dict(os.environ) == variables


def test_random_kills_lose_episodes_but_no_answer():
    """One thread posts, one receives, one kills; nothing hangs.

    Every episode ends or is reported lost.
    """
    started = ended = lost = 0
    with (
        make(num_envs=6, num_workers=2, decisions=2, restarts_per_hour=1000) as envs,
        queue.ReadyQueue(envs) as ready,
    ):
        done = threading.Event()
        killer = threading.Thread(target=kill_at_random, args=(envs, done))
        killer.start()
        try:
            reset(ready, range(6), [WELL] * 6)
            started += 6
            while (going := not done.is_set()) or ready.num_pending:
                slots, step = ready.get(min(2, ready.num_pending))
                over = step.terminated | step.lost
                ended += step.terminated.sum()
                lost += step.lost.sum()
                if not over.all():
                    send(ready, slots[~over])
                if going and over.any():
                    reset(ready, slots[over], [WELL] * over.sum())
                    started += over.sum()
        finally:
            done.set()
            killer.join()
        assert started == ended + lost
        assert lost == ready.counters()["lost_episodes"]
        assert ended > 100
        assert lost >= 4 and ready.counters()["restarts"] >= 4


def kill_at_random(envs, done, kills=6):
    generator = random.Random(0)
    for _ in range(kills):
        if done.wait(generator.uniform(0.3, 1.2)):
            return
        pid = generator.choice(envs.process_ids)
        deadly = generator.choice([signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV])
        # One that was killed before may just be being replaced.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, deadly)
    done.set()


def test_a_process_with_a_full_channel_can_be_killed(envs):
    """The pool must not wait for a stopped worker, even to tell it something long."""
    stopped = envs._supervisor.slot_processes[1]
    os.kill(stopped.pid, signal.SIGSTOP)
    for _ in range(20):
        stopped.channel.put(b"x" * 100_000)
    assert stopped.channel.has_unsent
    envs._supervisor.timeout_s = 0.5
    send(envs, [1])
    start_s = time.monotonic()
    assert envs.recv([1]).lost.tolist() == [True]
    assert time.monotonic() - start_s < 5 + process.STACK_S


# ---- faulty numbers ---------------------------------------------------------------------------

NAN_STATE = np.full(8, np.nan, np.float32)
FAULTY = {
    2: (0, "state", NAN_STATE),
    3: (1, "state", NAN_STATE),
    4: (2, "reward", float("nan")),
    5: (1, "images", np.full((2, 4, 4, 3), np.nan, np.float32)),
    6: (1, "num_steps", 6),
    7: (0, "state", np.zeros(1, np.float32)),
}


def faulty_pool(**settings):
    return pools.start(functools.partial(troubled.Faulty, FAULTY), 3, 1, **settings)


def test_faulty_numbers_cost_their_own_episode_and_nothing_else(caplog):
    """In any request and field; the others of the same worker go on, and it stays."""
    with faulty_pool() as envs:
        for init_state, (request, _, _) in FAULTY.items():
            begin(envs, [0, 2], [0, 1])
            reset(envs, [1], [init_state])
            lost = envs.recv([1]).lost.tolist()
            for _ in range(request):
                assert lost == [False]
                lost = lost_after(envs, [1])
            assert lost == [True]
            with pytest.raises(ValueError, match="slot 1 has no episode"):
                send(envs, [1])
            begin(envs, [1], [0])  # the same simulator, after a reset
            for _ in range(2):
                send(envs, [0, 1, 2])
                step = envs.recv([0, 1, 2])
                assert not step.lost.any() and np.isfinite(step.state).all()
            assert step.reward.tolist() == [1, 1, 1]
        count = len(FAULTY)
        assert envs.counters() == {"restarts": 0, "recycled": 0, "lost_episodes": count}
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3, "at 1, 2, 4: a flood of faults is no flood of lines"
    assert said[0].startswith("env 1 (task 0, init state 2) sent faulty numbers, 1 times so far")
    assert "its state has entries that are not finite: [nan" in said[0]


def test_what_lies_in_shared_memory_was_sound(monkeypatch):
    """A faulty observation is not written: the row that follows is zero, not what was there."""
    with faulty_pool() as envs:
        begin(envs, [0, 1, 2], [1, 1, 1])
        reset(envs, [1], [2])
        step = envs.recv([1])
        assert step.lost.all() and not step.state.any()
        assert np.isfinite(envs._supervisor.memory.state_EQ).all()


def test_a_simulator_that_a_reset_does_not_mend_is_replaced_and_spends_the_budget():
    """Every episode faults: the run ends with the cause."""
    with faulty_pool(restarts_per_hour=1) as envs:
        lost = 0
        with pytest.raises(supervisor.EnvError) as error:
            while True:
                reset(envs, [0], [3])
                assert envs.recv([0]).lost.tolist() == [False]
                assert lost_after(envs, [0]) == [True]
                lost += 1
        assert lost == 2 * supervisor.FAULTY_IN_A_ROW - 1, "the last one is the error"
        assert envs.counters()["restarts"] == 1
    said = str(error.value)
    assert (
        "env 0 (task 0, init state 3) sent faulty numbers in 3 episodes in a row: its state" in said
    )
    assert "This is the first of 2 failures within an hour; restarts_per_hour allows" in said


def test_a_sound_episode_forgives_the_faulty_ones_before():
    with faulty_pool() as envs:
        for init_state in (2, 2, 0) * 3:
            reset(envs, [0], [init_state])
            if not envs.recv([0]).lost[0]:
                assert lost_after(envs, [0]) == [False] and lost_after(envs, [0]) == [False]
        assert envs.counters() == {"restarts": 0, "recycled": 0, "lost_episodes": 6}
