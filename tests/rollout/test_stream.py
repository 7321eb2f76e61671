"""Which episode is played when and where, on a pool in this process whose answers are easy to
predict."""

import functools
import itertools

import numpy as np
import pytest

from pirl_jax.core import page
from pirl_jax.monitor import timeline
from pirl_jax.rollout import stream as streams

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
    """-> pool, turns, results; episode e is (task e % 3, or tasks[e], init state lengths[e])."""
    pool = make_pool(num_envs, **fault)
    tasks = [e % 3 for e in range(len(lengths))] if tasks is None else tasks
    episodes = [streams.Episode(task, state) for task, state in zip(tasks, lengths, strict=True)]
    schedule = page.Rollout(num_groups=num_groups, lockstep=lockstep)
    stream = streams.Stream(pool, episodes, schedule, cached_tasks, record=record)
    turns = finish(stream)
    assert [result.episode for result in stream.results] == episodes
    ended = [e for turn in turns for e in turn.ended]
    assert sorted(ended) == list(range(len(episodes))) and stream.num_left == 0
    assert not pool.answer, "nothing stays under way"
    return pool, turns, stream.results


def finish(stream):
    """Play to the end with any actions -> the turns."""
    turns = []
    for turn in stream.turns(timeline.Timers()):
        turns.append(turn)
        stream.send(turn, np.repeat(CHUNK[None], len(turn.row), 0))
    return turns


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
    episodes = [streams.Episode(e % 3, state) for e, state in enumerate(LENGTHS)]
    pool = make_pool(4)
    stream = streams.Stream(pool, episodes, page.Rollout(num_groups=2, lockstep=lockstep), 1)
    assert pool.log == [("reset", slot) for slot in range(4)], "all at once, and nobody waits"
    assert stream.num_left == len(episodes) and stream.batch_size == 2
    finish(stream)
    assert [result.num_decisions for result in stream.results] == [s + 1 for s in LENGTHS]


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
        _, turns, _ = play(1, 1, [0] * 12, tasks=tasks, cached_tasks=cached_tasks)
        played = [int(turn.task[0]) for turn in turns if turn.finished[0]]
        changes = sum(a != b for a, b in itertools.pairwise(played)) + 1
        assert changes == most, played
    _, turns, _ = play(2, 1, [0] * 12, tasks=tasks)
    assert [set(turn.task[:1]) for turn in turns[:8]] == [{0}] * 8, (
        "slot 0 plays all of task 0 first"
    )


def test_slots_of_one_process_share_its_tasks(play):
    """Six slots in two processes, four tasks: a process never plays more than two at a time."""
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
    """One slot, which holds task 0; behind the one episode of task 1 are only more of task 0."""
    tasks = [0, 1] + [0] * 40
    _, turns, _ = play(1, 1, [0] * 42, tasks=tasks)
    order = [int(turn.episode[0]) for turn in turns if turn.finished[0]]
    assert order.index(1) == streams.LOOKAHEAD and sorted(order) == list(range(42))


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
    """One slot: request 2 of the first attempt is lost, then its second reset.

    The other episodes are played.
    """
    episodes = [streams.Episode(0, 4), streams.Episode(1, 1)]
    stream = streams.Stream(make_pool(1, faults={2, 3}), episodes, page.Rollout(num_groups=1), 1)
    turns = finish(stream)
    assert [(turn.lost, turn.ended) for turn in turns if turn.lost] == [([0], []), ([0], [0])]
    assert [e for turn in turns for e in turn.ended] == [0, 1]
    assert stream.results[0] == streams.Result(episodes[0], lost=True)
    assert stream.results[1].num_decisions == 2 and not stream.results[1].lost


@pytest.mark.parametrize("lockstep", [True, False], ids=["lockstep", "as ready"])
def test_a_turn_whose_slots_were_all_lost_is_empty_and_still_indexes(make_pool, lockstep):
    """Its arrays index the grids of a book, where those of floats would not."""
    episodes = [streams.Episode(e, 1) for e in range(3)]
    pool = make_pool(2, faults={0, 1})
    stream = streams.Stream(pool, episodes, page.Rollout(num_groups=1, lockstep=lockstep), 1)
    turns = stream.turns(timeline.Timers())
    turn = next(turns)
    assert turn.lost == [0, 1] and turn.ended == [] and stream.num_left == 3
    assert len(turn.row) == len(turn.step.state) == len(turn.finished) == 0
    grid = np.zeros((4, 3))
    grid[turn.decision, turn.episode] = turn.step.reward
    assert turn.task.dtype == turn.decision.dtype == turn.episode.dtype == int
    assert [what for what, _ in pool.log] == ["reset", "reset", "get", "reset", "reset"]
    stream.send(turn, np.zeros((0, 3, 7)))
    assert pool.log[-1][0] == "reset", "nothing is sent where nobody goes on"
    for turn in turns:
        stream.send(turn, np.repeat(CHUNK[None], len(turn.row), 0))
    assert [result.num_decisions for result in stream.results] == [2, 2, 2]


@pytest.mark.parametrize("lockstep", [True, False], ids=["lockstep", "as ready"])
@pytest.mark.parametrize("faults", [(), {0}, {20, 21}], ids=str)
def test_more_episodes_once_the_others_are_over(make_pool, lockstep, faults):
    """Slots that had nothing left go on, as in a stream of their own; what is known stays."""
    episodes = [streams.Episode(e % 3, state) for e, state in enumerate(LENGTHS)]
    schedule = page.Rollout(num_groups=2, lockstep=lockstep)
    pool = make_pool(4, faults=faults)
    stream = streams.Stream(pool, episodes[:5], schedule, 1)
    finish(stream)
    first, requests = list(stream.results), len(pool.log)
    stream.extend(episodes[5:])
    assert pool.log[requests:] == [("reset", slot) for slot in range(4)] and stream.num_left == 6
    turns = finish(stream)
    assert stream.results[:5] == first and stream.num_left == 0
    assert [result.episode for result in stream.results] == episodes
    assert [result.num_decisions for result in stream.results] == [s + 1 for s in LENGTHS]
    assert sorted(e for turn in turns for e in turn.ended) == list(range(5, 11))
    if not faults:
        alone = streams.Stream(make_pool(4), episodes[5:], schedule, 1)
        assert [(turn.episode - 5).tolist() for turn in turns] == [
            turn.episode.tolist() for turn in finish(alone)
        ]


def test_what_is_known_already_is_not_played_again(make_pool):
    known = {1: streams.Result(streams.Episode(1, 0), success=True, num_steps=7)}
    episodes = [streams.Episode(e, 0) for e in range(3)]
    stream = streams.Stream(make_pool(2), episodes, page.Rollout(num_groups=1), 1, done=known)
    assert stream.num_left == 2
    seen = {e for turn in finish(stream) for e in turn.episode.tolist()}
    assert stream.results[1] is known[1] and seen == {0, 2}
    assert [result.num_steps for result in stream.results] == [3, 7, 3]
