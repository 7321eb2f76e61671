"""Which episode is played when and where, on a pool in this process whose answers are easy to predict."""

import functools

import numpy as np
import pytest

from pirl_jax.monitor import timeline
from pirl_jax.rollout import episodes

CHUNK = np.zeros((3, 7), np.float32)


@pytest.fixture
def play(make_pool):
    return functools.partial(_play, make_pool)


def _play(make_pool, num_envs, num_groups, lengths, record=()):
    """-> pool, the turns, results; episode e is (task e % 3, init state lengths[e])."""
    pool, turns, finished = make_pool(num_envs), [], []
    names = [episodes.Episode(e % 3, state) for e, state in enumerate(lengths)]

    def decide(turn):
        turns.append(turn)
        return np.repeat(CHUNK[None], len(turn.row), 0)

    results = episodes.play(pool, names, num_groups, decide, timeline.Timers(), record, finished.append)
    assert [result.episode for result in results] == names
    assert sum(finished) == len(names)
    assert not pool.answer, "nothing stays under way"
    return pool, turns, results


@pytest.mark.parametrize("num_envs, num_groups", [(1, 1), (4, 1), (4, 2), (6, 3), (16, 2)])
def test_every_episode_is_played_once_and_to_its_end(play, num_envs, num_groups):
    lengths = [2, 0, 3, 1, 1, 4, 0, 2, 5, 1, 0]
    _, turns, results = play(num_envs, num_groups, lengths)
    for result, state in zip(results, lengths, strict=True):
        assert (result.num_decisions, result.num_steps, result.reward) == (state + 1, 3 * (state + 1), state + 1)
        assert result.success == (state % 2 == 0) and result.frames is None
    seen = [pair for turn in turns for pair in zip(turn.episode, turn.decision, turn.finished, strict=True)]
    expected = [(e, c, c > state) for e, state in enumerate(lengths) for c in range(state + 2)]
    assert sorted(seen) == expected  # every decision once, and the last observation, which only offers its value
    for turn in turns:
        assert (turn.task == turn.episode % 3).all() and (turn.task == turn.step.state[:, 0]).all()
        assert (turn.decision == turn.step.state[:, 2]).all()


def test_a_slot_that_finishes_starts_the_next_episode_before_the_others_are_done(play):
    pool, turns, _ = play(2, 1, [5, 0, 0, 0])
    assert [turn.episode.tolist() for turn in turns] == [[0, 1], [0, 1], [0, 2], [0, 2], [0, 3], [0, 3], [0]]
    assert [slot for what, slot in pool.log if what == "reset"] == [0, 1, 1, 1]


def test_groups_take_turns(play):
    pool, turns, _ = play(4, 2, [1] * 4)
    received = [slots for what, slots in pool.log if what == "recv"]
    assert received == [(0, 1), (2, 3)] * 3
    assert all(turn.row.tolist() == [0, 1] for turn in turns)
    # while one group is decided on, the other one simulates
    assert pool.log[4:8] == [("recv", (0, 1)), ("send", (0, 1)), ("recv", (2, 3)), ("send", (2, 3))]


def test_rows_keep_their_place_in_the_batch_when_others_retire(play):
    _, turns, _ = play(3, 1, [0, 2, 0])
    assert [turn.row.tolist() for turn in turns] == [[0, 1, 2], [0, 1, 2], [1], [1]]


def test_fewer_episodes_than_slots(play):
    pool, _, results = play(8, 2, [1, 1, 1])
    assert len(results) == 3
    assert {slot for what, slots in pool.log if what == "recv" for slot in slots} == {0, 1, 2}


def test_only_the_recorded_episodes_keep_frames(play):
    _, _, results = play(2, 1, [1, 0, 2], record=(0, 2))
    assert [result.frames and len(result.frames) for result in results] == [6, None, 9]
    assert [int(frame.max()) for frame in results[2].frames] == [0, 0, 0, 1, 1, 1, 2, 2, 2]  # in order
