"""Worn workers: their slots move to a fresh one, episode by episode, and nothing is lost."""

import functools
import time

import psutil
import pytest
import troubled
from troubled import WELL, begin, kill, lost_after, send

from tests import pools

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


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
