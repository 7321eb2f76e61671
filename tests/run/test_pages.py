"""report.html of a run: it follows the run, and whatever is wrong with it ends nothing."""

import time

import pytest

from pirl_jax.monitor import timeline
from pirl_jax.run import pages, story
from tests import run_folders

SLOWEST_S = 3.0  # 0.2 on an idle machine


def test_it_follows_the_run_and_holds_its_videos_at_the_end(tmp_path):
    run = run_folders.run(tmp_path / "a", finished=False)
    videos = run / "evaluation" / "before" / "videos"
    videos.mkdir()
    (videos / "task_0_init_0_success.mp4").write_bytes(b"a film")
    page = pages.Page(run)
    page.refresh()
    first = page.path.read_text()
    assert page.path == run / "report.html" and "./evaluation/before/videos/task_0" in first
    run_folders.evaluation(run / "evaluation" / "after", run_folders.outcomes(6))
    page.finish()
    last = page.path.read_text()
    assert '"name":"after"' in last and '"name":"after"' not in first
    assert "./evaluation/before/videos/task_0" not in last


def test_it_follows_every_so_many_iterations(tmp_path):
    run = run_folders.run(tmp_path / "a")
    timers = timeline.Timers()
    for every, written in ((0, []), (1, [0, 1, 2, 3]), (2, [1, 3])):
        page = pages.Page(run, every)
        found = []
        for iteration in range(4):
            page.follow(iteration, timers)
            if page.path.exists():
                found.append(iteration)
                page.path.unlink()
        assert found == written
    assert timers.take()["time/report"] > 0


@pytest.mark.parametrize("bug", [KeyError("x"), OSError(28, "No space left"), ValueError("bad")])
def test_what_is_wrong_with_it_is_said_once(tmp_path, monkeypatch, capsys, bug):
    def broken(*args):
        raise bug

    run = run_folders.run(tmp_path / "a")
    page = pages.Page(run)
    monkeypatch.setattr(story, "told", broken)
    page.refresh()
    page.finish()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and type(bug).__name__ in said[0] and str(page.path) in said[0]
    monkeypatch.undo()
    page.refresh()
    assert page.path.exists(), "it goes on"


def test_a_damaged_file_of_the_run_ends_nothing(tmp_path, capsys):
    run = run_folders.run(tmp_path / "a")
    (run / "evaluation" / "before" / "evaluation.json").write_text("{")
    pages.Page(run).refresh()
    assert "before/evaluation.json is no JSON" in capsys.readouterr().err


def test_a_refresh_is_cheap(tmp_path):
    run = run_folders.run(tmp_path / "a", iterations=200)
    run_folders.evaluation(run / "evaluation" / "after", run_folders.outcomes(100, 250))
    start = time.monotonic()
    pages.Page(run).refresh()
    assert (run / "report.html").exists() and time.monotonic() - start < SLOWEST_S
