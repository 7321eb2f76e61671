"""The panel of a terminal and the lines of a log: what they say, when, and that they fit."""

import io
import os
import pathlib
import pty
import re
import subprocess
import sys
import textwrap

import pytest
from rich import console

from pirl_jax.monitor import panel, timeline

ROOT = pathlib.Path(__file__).parents[2]
ROW = {
    "env/success_once": 0.5,
    "env/num_trajectories": 64.0,
    "env/return": 0.5,
    "env/restarts": 1.0,
    "actor/approx_kl3": 0.0123,
    "actor/pg_clipfrac": 0.1,
    "critic/explained_variance": 0.3,
    "time/env": 8.0,
    "time/update": 1.5,
    "time/iteration": 10.0,
}
LEARNING = {"time/env": 1.0, "time/update": 8.0}


def test_the_hint_is_said_when_it_changes():
    stream = io.StringIO()
    with panel.watching(6, stream, interval_s=60) as board:
        for change in ({}, {}, LEARNING, LEARNING, {"time/env": 3.0}, {}):
            board.finished(ROW | change)
    *hints, last = stream.getvalue().splitlines()
    assert [re.search(r"[\w-]+(?=:)", line.partition(" ")[2])[0] for line in hints] == [
        "simulation-bound",
        "learning-bound",
        "balanced",
        "simulation-bound",
    ]
    assert last.startswith("training: 6/6 iterations, ") and last.endswith("done")
    assert "-bound" not in last and "success 0.50 [0.38, 0.62]" in last


def test_lines_come_at_a_fixed_rate_and_keep_the_numbers():
    stream = io.StringIO()
    with panel.watching(2, stream, interval_s=60) as board:
        for k in range(100):
            board(0, f"rollout {k}/100 episodes")
        board.finished(ROW)
        board(0, "rollout 1/100 episodes")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2, "one hint, one line at the end"
    assert "kl 0.0123" in lines[1] and "10.0 s; rollout 1/100 episodes not" not in lines[1]
    assert all("\x1b" not in line and len(line) < 160 for line in lines)


def test_the_panel_says_everything():
    board = panel._Panel(8)
    board(0, "rollout 3/64 episodes")
    board.finished(ROW | LEARNING)
    board.finished(ROW)
    board(0, "rollout 4/64 episodes")
    paper = console.Console(file=io.StringIO(), width=80)
    paper.print(board.drawn())
    said = paper.file.getvalue()
    for words in (
        "training: 2/8 iterations",
        "left",
        "0.50 [0.38, 0.62]",
        "kl 0.0123  clip 0.10  ev 0.30",
        "env 80%",
        "simulation-bound",
        "2 simulators replaced",
        "rollout 4/64 episodes",
    ):
        assert words in said, words
    assert max(map(len, said.splitlines())) <= 80
    env, update = said.count("█"), round(panel.BAR * 0.8)
    assert update <= env <= panel.BAR


def test_a_resumed_run_counts_what_was_learned_before(monkeypatch):
    stream = io.StringIO()
    with panel.watching(8, stream, interval_s=60, before=5) as board:
        board.finished(ROW)
    assert stream.getvalue().splitlines()[-1].startswith("training: 6/8 iterations, ")
    monkeypatch.setattr(panel.time, "monotonic", iter((100.0, 110.0)).__next__)
    board = panel._Panel(8, before=5)
    board.finished(ROW)
    words = dict(board._lines())
    assert words["time"] == "10 s, about 20 s left", "at the pace of this process"


def test_a_row_without_episodes_has_no_interval():
    assert timeline.success(ROW | {"env/success_once": float("nan")}) == "nan"
    assert timeline.success({"env/success_once": 0.5}) == "0.50"


SCRIPT = """
    import time
    from pirl_jax.monitor import panel, progress
    row = {row}
    with panel.watching(2) as board:
        for k in range(2):
            board(0, f"rollout {{k}}/2 episodes")
            time.sleep(0.3)
            board.finished(row)
            print("what somebody else prints")
        with progress.track("evaluation", total=2, unit="episodes") as advance:
            advance(1)
            time.sleep(0.3)
"""


@pytest.mark.slow
def test_on_a_terminal_it_stays_in_its_place():
    """In a terminal of its own: the frame is drawn anew over itself, other lines stay above."""
    ours, theirs = pty.openpty()
    code = textwrap.dedent(SCRIPT.format(row=ROW))
    variables = os.environ | {"TERM": "xterm", "COLUMNS": "90", "PYTHONPATH": str(ROOT)}
    options = {"stdin": theirs, "stdout": theirs, "stderr": theirs, "env": variables}
    process = subprocess.Popen([sys.executable, "-c", code], **options)
    os.close(theirs)
    said = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the terminal is closed
            break
        if not part:
            break
        said += part
    os.close(ours)
    assert process.wait() == 0
    shown = said.decode()
    assert shown.count("training: ") >= 3 and "\x1b[1A" in shown, "drawn over"
    assert shown.count("what somebody else prints") == 2 and "1/2 episodes" in shown
    assert "success" in shown and "training: 2/2 iterations" in shown
