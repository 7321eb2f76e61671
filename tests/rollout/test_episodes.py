"""Which episode is played when and where, on a pool in this process whose answers are easy to predict."""

import functools

import numpy as np
import pytest

from pirl_jax.monitor import timeline
from pirl_jax.rollout import stream

CHUNK = np.zeros((3, 7), np.float32)


@pytest.fixture
def play(make_pool):
    return functools.partial(_play, make_pool)


def _play(
    make_pool,
    num_envs,
    num_groups,
    lengths,
    record=(),
    lockstep=True,
    tasks=None,
    cached_tasks=1,
    **fault,
):
    """-> pool, the turns, results; episode e is (task e % 3, or tasks[e], init state lengths[e])."""
    pool, turns, finished = make_pool(num_envs, **fault), [], []
    names = [
        stream.Episode(e % 3 if tasks is None else tasks[e], state)
        for e, state in enumerate(lengths)
    ]
    schedule = stream.Schedule(num_groups, lockstep, cached_tasks)

    def decide(turn):
        turns.append(turn)
        return np.repeat(CHUNK[None], len(turn.row), 0)

    results = stream.play(
        pool,
        names,
        schedule,
        decide,
        timeline.Timers(),
        record=record,
        finished=lambda e, result: finished.append((e, result.success)),
    )
    assert [result.episode for result in results] == names
    assert sorted(finished) == [(e, result.success) for e, result in enumerate(results)]
    assert not pool.answer, "nothing stays under way"
    return pool, turns, results


LENGTHS = [2, 0, 3, 1, 1, 4, 0, 2, 5, 1, 0]


@pytest.mark.parametrize("lockstep", [True, False], ids=["lockstep", "as ready"])
@pytest.mark.parametrize("num_envs, num_groups", [(1, 1), (4, 1), (4, 2), (6, 3), (16, 2)])
def test_every_episode_is_played_once_and_to_its_end(play, num_envs, num_groups, lockstep):
    lengths = LENGTHS
    _, turns, results = play(num_envs, num_groups, lengths, lockstep=lockstep)
    for result, state in zip(results, lengths, strict=True):
        assert (result.num_decisions, result.num_steps, result.reward) == (
            state + 1,
            3 * (state + 1),
            state + 1,
        )
        assert result.success == (state % 2 == 0) and result.frames is None
    seen = [
        pair
        for turn in turns
        for pair in zip(turn.episode, turn.decision, turn.finished, strict=True)
    ]
    expected = [(e, c, c > state) for e, state in enumerate(lengths) for c in range(state + 2)]
    assert (
        sorted(seen) == expected
    )  # every decision once, and the last observation, which only offers its value
    for turn in turns:
        assert (turn.task == turn.episode % 3).all() and (turn.task == turn.step.state[:, 0]).all()
        assert (turn.decision == turn.step.state[:, 2]).all()


@pytest.mark.parametrize("lockstep", [True, False], ids=["lockstep", "as ready"])
def test_simulators_can_start_before_anyone_decides(make_pool, lockstep):
    names, schedule = (
        [stream.Episode(e % 3, state) for e, state in enumerate(LENGTHS)],
        stream.Schedule(2, lockstep),
    )
    decide = lambda turn: np.repeat(CHUNK[None], len(turn.row), 0)  # noqa: E731
    early, late = make_pool(4), make_pool(4)
    begun = stream.begin(early, names, schedule)
    assert early.log == [("reset", slot) for slot in range(4)], "all at once, and nobody waits"
    results = stream.play(early, names, schedule, decide, timeline.Timers(), begun=begun)
    assert (
        results == stream.play(late, names, schedule, decide, timeline.Timers())
        and early.log == late.log
    )


def test_a_slot_that_finishes_starts_the_next_episode_before_the_others_are_done(play):
    pool, turns, _ = play(2, 1, [5, 0, 0, 0])
    assert [turn.episode.tolist() for turn in turns] == [
        [0, 1],
        [0, 1],
        [0, 2],
        [0, 2],
        [0, 3],
        [0, 3],
        [0],
    ]
    assert [slot for what, slot in pool.log if what == "reset"] == [0, 1, 1, 1]


def test_groups_take_turns(play):
    pool, turns, _ = play(4, 2, [1] * 4)
    received = [slots for what, slots in pool.log if what == "get"]
    assert received == [(0, 1), (2, 3)] * 3
    assert all(turn.row.tolist() == [0, 1] for turn in turns)
    # while one group is decided on, the other one simulates
    assert pool.log[4:8] == [("get", (0, 1)), ("send", (0, 1)), ("get", (2, 3)), ("send", (2, 3))]


def test_rows_keep_their_place_in_the_batch_when_others_retire(play):
    _, turns, _ = play(3, 1, [0, 2, 0])
    assert [turn.row.tolist() for turn in turns] == [[0, 1, 2], [0, 1, 2], [1], [1]]


def test_fewer_episodes_than_slots(play):
    pool, _, results = play(8, 2, [1, 1, 1])
    assert len(results) == 3
    assert {slot for what, slots in pool.log if what == "get" for slot in slots} == {0, 1, 2}


def test_only_the_recorded_episodes_keep_frames(play):
    _, _, results = play(2, 1, [1, 0, 2], record=(0, 2))
    assert [result.frames and len(result.frames) for result in results] == [6, None, 9]
    assert [int(frame.max()) for frame in results[2].frames] == [
        0,
        0,
        0,
        1,
        1,
        1,
        2,
        2,
        2,
    ]  # in order


def test_a_slow_slot_delays_nobody(play):
    """Slot 0 is ready only when nothing else is; the batches keep half of the slots under way."""
    pool, turns, _ = play(4, 2, [3] * 12, lockstep=False, hurry=lambda slot: slot == 0)
    received = [slots for what, slots in pool.log if what == "get"]
    sizes = [len(slots) for slots in received]
    assert sizes == sorted(sizes, reverse=True) and set(sizes) == {2, 1} and sizes.count(2) > 20, (
        "smaller in the tail only"
    )
    assert all(turn.row.tolist() == list(range(len(turn.row))) for turn in turns)
    finished_first = [e for turn in turns for e in turn.episode[turn.finished]]
    assert finished_first[-1] == 0 and len(finished_first) == 12, (
        "slot 0 kept its first episode, the others went on"
    )


def test_a_slot_prefers_the_task_it_holds(play):
    tasks = [0, 1, 2] * 4
    for cached_tasks, most in ((1, 3), (3, 3)):
        pool, turns, _ = play(1, 1, [0] * 12, tasks=tasks, cached_tasks=cached_tasks)
        played = [int(turn.task[0]) for turn in turns if turn.finished[0]]
        changes = sum(a != b for a, b in zip(played, played[1:], strict=False)) + 1
        assert changes == most, played
    _, turns, _ = play(2, 1, [0] * 12, tasks=tasks)
    assert [set(turn.task[:1]) for turn in turns[:8]] == [{0}] * 8, (
        "slot 0 plays all of task 0 first"
    )


def test_slots_of_one_process_share_its_tasks(play):
    """Six slots in two processes, four tasks: a process never plays more than two tasks at a time."""
    tasks, lengths = [0, 1, 2, 3] * 9, [2, 0, 1] * 12
    for cached_tasks, num_workers, most in ((2, 2, 2), (2, 6, 4)):
        _, turns, _ = play(
            6,
            1,
            lengths,
            tasks=tasks,
            cached_tasks=cached_tasks,
            num_workers=num_workers,
            lockstep=True,
        )
        for turn in turns:
            workers = [turn.task[turn.row % 2 == worker] for worker in (0, 1)]
            assert all(len(set(playing)) <= most for playing in workers)
    assert [set(turn.task) for turn in turns[:1]] == [{0, 1, 2, 3}], (
        "where each slot is a process, they spread"
    )


def test_the_first_one_waiting_is_overtaken_by_a_bounded_number(play):
    """One slot, which holds task 0; behind the one episode of task 1 there are only more of task 0."""
    tasks = [0, 1] + [0] * 40
    _, turns, _ = play(1, 1, [0] * 42, tasks=tasks)
    order = [int(turn.episode[0]) for turn in turns if turn.finished[0]]
    assert order.index(1) == stream.LOOKAHEAD and sorted(order) == list(range(42))


@pytest.mark.parametrize("lockstep", [True, False], ids=["lockstep", "as ready"])
@pytest.mark.parametrize("faults", [{0}, {4}, {7, 13}, {1, 2, 3}], ids=str)
def test_a_lost_episode_is_played_once_more_from_its_start(play, make_pool, lockstep, faults):
    _, turns, results = play(
        4, 2, LENGTHS, lockstep=lockstep, faults=faults, record=range(len(LENGTHS))
    )
    for result, state in zip(results, LENGTHS, strict=True):
        assert (result.num_decisions, result.num_steps, result.reward) == (
            state + 1,
            3 * (state + 1),
            state + 1,
        )
        assert (
            result.success == (state % 2 == 0)
            and not result.lost
            and len(result.frames) == 3 * (state + 1)
        )
    assert not any(turn.step.lost.any() for turn in turns), "nobody decides on what means nothing"
    assert all(len(turn.row) == len(turn.step.state) for turn in turns)


def test_an_episode_that_is_lost_again_stays_lost(make_pool):
    """One slot: request 2 of the first attempt is lost, then its second reset; the other episodes are played."""
    pool, forgotten, finished = make_pool(1, faults={2, 3}), [], []
    names = [stream.Episode(0, 4), stream.Episode(1, 1)]
    results = stream.play(
        pool,
        names,
        stream.Schedule(),
        lambda turn: np.repeat(CHUNK[None], len(turn.row), 0),
        timeline.Timers(),
        forget=forgotten.append,
        finished=lambda e, result: finished.append((e, result.lost)),
    )
    assert forgotten == [0, 0] and finished == [(0, True), (1, False)]
    assert results[0] == stream.Result(names[0], lost=True)
    assert results[1].num_decisions == 2 and not results[1].lost


def test_what_is_known_already_is_not_played_again(make_pool):
    known = {1: stream.Result(stream.Episode(1, 0), success=True, num_steps=7)}
    names, pool, seen = [stream.Episode(e, 0) for e in range(3)], make_pool(2), []

    def decide(turn):
        seen.extend(turn.episode.tolist())
        return np.repeat(CHUNK[None], len(turn.row), 0)

    results = stream.play(pool, names, stream.Schedule(), decide, timeline.Timers(), done=known)
    assert (
        results[1] is known[1]
        and set(seen) == {0, 2}
        and [result.num_steps for result in results] == [3, 7, 3]
    )
