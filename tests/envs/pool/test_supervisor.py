"""Fault injection: what becomes of workers, episodes and the caller when simulators misbehave.

They fail, die, hang, are stopped, or grow.
"""

import contextlib
import functools
import logging
import os
import random
import signal
import threading
import time

import psutil
import pytest
import troubled
from troubled import STATE, WELL, make, reset, send

from pirl_jax.envs.pool import process, queue, supervisor
from tests import pools


@pytest.fixture(scope="module", autouse=True)
def nothing_left_behind():
    """The tests of this file leave no process and no open file, once the shared pool is closed."""
    this = psutil.Process()
    children = set(this.children())
    num_files = this.num_fds()
    yield
    assert not set(this.children()) - children
    assert this.num_fds() <= num_files


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


def begin(envs, slots, init_states):
    reset(envs, slots, init_states)
    step = envs.recv(slots)
    assert not step.lost.any()
    assert step.num_steps.tolist() == [0] * len(slots)


def lost_after(envs, slots):
    send(envs, slots)
    return envs.recv(slots).lost.tolist()


def counted_since(envs, before):
    return {name: count - before[name] for name, count in envs.counters().items()}


def kill(pid):
    """Returns when the process is dead, but its parent does not know."""
    os.kill(pid, signal.SIGKILL)
    until_s = time.monotonic() + 5
    while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE and time.monotonic() < until_s:
        time.sleep(0.01)


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


def play(envs, slots) -> list[int]:
    """One chunk of each slot, then the next episode where one ended -> process that answered."""
    send(envs, slots)
    step = envs.recv(slots)
    assert not step.lost.any()
    over = [slot for slot, end in zip(slots, step.terminated, strict=True) if end]
    if over:
        begin(envs, over, [WELL] * len(over))
    return step.state[:, -1].astype(int).tolist()


def play_until(envs, slots, condition, limit_s=30.0):
    until_s = time.monotonic() + limit_s
    while not condition(played := play(envs, slots)) and time.monotonic() < until_s:
        pass
    assert condition(played)


def test_slots_move_to_a_fresh_worker_one_by_one():
    """Slot 1 stays in the middle of an episode while slot 0 plays on: no wait, nothing lost."""
    factory = functools.partial(troubled.Marked, 3)
    with pools.start(factory, num_envs=2, num_workers=1, recycle_episodes=4) as envs:
        begin(envs, [0, 1], [WELL, WELL])
        old = play(envs, [0, 1])[1]
        play_until(envs, [0], lambda played: played != [old])
        assert envs.counters()["recycled"] == 0 and psutil.pid_exists(old)
        assert play(envs, [1]) == [old]  # its episode goes on where it began
        begin(envs, [1], [WELL])
        assert play(envs, [0, 1]) == [envs.process_ids[0]] * 2 and old not in envs.process_ids
        assert envs.counters() == {"restarts": 0, "recycled": 1, "lost_episodes": 0}
        play_until(
            envs, [0, 1], lambda _: not psutil.pid_exists(old) and envs.counters()["recycled"] == 2
        )


def test_a_slot_without_an_episode_does_not_hold_the_old_worker():
    factory = functools.partial(troubled.Marked, 1)
    with pools.start(factory, num_envs=2, num_workers=1, recycle_episodes=3) as envs:
        begin(envs, [0, 1], [WELL, WELL])
        send(envs, [1])
        assert envs.recv([1]).terminated.all()
        play_until(envs, [0], lambda _: envs.counters()["recycled"] == 1)
        begin(envs, [1], [WELL])


def test_the_end_of_either_worker_during_the_change():
    factory = functools.partial(troubled.Marked, 3)
    with pools.start(factory, num_envs=2, num_workers=1, recycle_episodes=4) as envs:
        begin(envs, [0, 1], [WELL, WELL])
        old = play(envs, [0, 1])[1]
        play_until(envs, [0], lambda played: played != [old])
        kill(envs.process_ids[0])  # the fresh one
        assert lost_after(envs, [0]) == [True] and play(envs, [1]) == [old]
        begin(envs, [0], [WELL])
        play_until(envs, [0], lambda played: played != [old])
        kill(old)
        assert lost_after(envs, [1]) == [True]
        begin(envs, [1], [WELL])
        assert play(envs, [0])[0] == play(envs, [1])[0] != old
        assert envs.counters() == {"restarts": 2, "recycled": 0, "lost_episodes": 2}


def test_a_worker_that_grows_is_replaced_in_time():
    factory = functools.partial(troubled.Marked, 1, leak_bytes=20_000_000)
    with pools.start(factory, num_envs=1, recycle_growth_gb=0.1) as envs:
        begin(envs, [0], [WELL])
        first = psutil.Process(envs.process_ids[0]).memory_info().rss
        until_s = time.monotonic() + 30
        while envs.counters()["recycled"] < 2 and time.monotonic() < until_s:
            play(envs, [0])
            # A leak of 20 MB in 50 ms: it shall not outrun the start of the successor.
            time.sleep(0.05)
        counters = envs.counters()
        assert counters["recycled"] == 2 and counters["lost_episodes"] == 0
        assert psutil.Process(envs.process_ids[0]).memory_info().rss < first + 1e9


def test_two_thousand_resets_do_not_grow():
    factory = functools.partial(troubled.Marked, 1)
    with pools.start(factory, num_envs=2, num_workers=1, recycle_growth_gb=0.02) as envs:
        both = (psutil.Process(), psutil.Process(envs.process_ids[0]))
        for _ in range(100):
            begin(envs, [0, 1], [WELL, WELL])
        sizes = [process.memory_info().rss for process in both]
        num_files = [process.num_fds() for process in both]
        for _ in range(1900):
            begin(envs, [0, 1], [WELL, WELL])
        for process, size in zip(both, sizes, strict=True):
            assert process.memory_info().rss - size < 5e6
        assert [process.num_fds() for process in both] == num_files
        assert envs.counters()["recycled"] == 0


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
        deadly = generator.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
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
