"""An evaluation plays each episode once, films what is asked for and notes what is over."""

import json

import numpy as np
import pytest

from pirl_jax.core import page
from pirl_jax.monitor import journal
from pirl_jax.rollout import stream as streams
from pirl_jax.run import evaluation, results
from tests.rollout import conftest as simulators

EPISODES = [streams.Episode(e % 3, state) for e, state in enumerate([2, 0, 3, 1])]
SUCCESS = [True, True, False, False]  # of the fake simulators: where the init state is even


@pytest.fixture
def asked():
    return []


@pytest.fixture
def make_evaluation(tmp_path, asked, monkeypatch):
    """faults: requests that lose their simulator.  Films are names in a list."""
    monkeypatch.setattr(
        results.video, "write_episode", lambda path, frames, *_: films.append((path.name, frames))
    )
    films = []

    def decide(turn):
        asked.append(turn)
        return np.zeros((len(turn.row), 3, 7))

    def make(filmed, faults=()):
        this = evaluation.Evaluation(
            settings=None,
            envs=simulators.Pool(2, faults=faults),
            rollout=page.Rollout(num_groups=1, lockstep=True),
            cached_tasks=1,
            decide=decide,
            episodes=EPISODES,
            measured={"policy": {"name": "any"}},
            directory=tmp_path,
            filmed=filmed,
        )
        return this, films

    return make


def test_failures_are_filmed_and_no_frames_stay(make_evaluation, asked):
    this, films = make_evaluation(results.chosen_videos("failures"))
    played = this.play(this.start())
    assert [result.success for result in played] == SUCCESS
    names = {name for name, _ in films}
    assert names == {"task_2_init_3_failure.mp4", "task_0_init_1_failure.mp4"}
    assert all(len(frames) > 0 for _, frames in films)
    assert all(result.frames is None for result in played)
    assert not any(turn.finished.all() for turn in asked), "nobody goes on: nothing to decide"


def test_the_first_episodes_are_filmed(make_evaluation):
    this, films = make_evaluation(results.first_videos(EPISODES, 2))
    this.play(this.start())
    names = {name for name, _ in films}
    assert names == {"task_0_init_2_success.mp4", "task_1_init_0_success.mp4"}


@pytest.mark.parametrize("faults, lost", [((), []), ({0, 1}, []), ({0, 1, 2, 3}, [0, 1])])
def test_what_is_over_is_noted_and_never_played_again(make_evaluation, tmp_path, faults, lost):
    """Slots that are all lost at once leave a turn that nobody decides on."""
    this, _ = make_evaluation(results.first_videos(EPISODES, 0), faults)
    with journal.Journal(tmp_path / "episodes.jsonl", this.measured) as notes:
        played = this.play(this.start(), notes)
    assert [e for e, result in enumerate(played) if result.lost] == lost
    _, *lines = (tmp_path / "episodes.jsonl").read_text().splitlines()
    noted = [results.from_row(json.loads(line)) for line in lines]
    by_name = {result.episode: result for result in noted}
    kept = [result for result in played if not result.lost]
    assert [by_name[result.episode] for result in kept] == kept and len(noted) == len(kept)
    done = {e: result for e, result in enumerate(played) if not result.lost}
    again, _ = make_evaluation(results.first_videos(EPISODES, 0))
    stream = again.start(done)
    assert stream.num_left == len(lost)
    again.play(stream)
    assert [result.success for result in stream.results] == SUCCESS
