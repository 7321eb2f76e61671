import io
import time

import pytest

from pirl_jax.monitor import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_when_not_a_terminal():
    stream = io.StringIO()
    with progress.track(
        "rollout", total=4, unit="decisions", stream=stream, interval_s=60
    ) as advance:
        for _ in range(4):
            advance(1, "success 0.25")
    (line,) = stream.getvalue().splitlines()
    assert line.startswith("rollout: 4/4 decisions, ") and line.endswith("success 0.25 done")
    assert "\r" not in line and "\x1b" not in line


def test_heartbeat_while_uncountable_work_blocks():
    stream = io.StringIO()
    with progress.track("compile", stream=stream, interval_s=0.02):
        time.sleep(0.2)
    lines = stream.getvalue().splitlines()
    assert len(lines) >= 3 and all(line.startswith("compile: ") for line in lines)
    assert lines[-1].endswith("done")


def test_what_raises_is_passed_on():
    stream = io.StringIO()
    with pytest.raises(RuntimeError), progress.track("update", total=2, stream=stream) as advance:
        advance()
        raise RuntimeError
    assert stream.getvalue().startswith("update: 1/2") and stream.getvalue().rstrip().endswith(
        "not finished"
    )


@pytest.mark.parametrize("total", [None, 3])
def test_bar_on_a_terminal_may_be_nested(total, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with (
        progress.track("evaluation", total=total, unit="episodes", stream=stream) as advance,
        progress.track("compile", stream=stream),
    ):
        advance(2, "success 1.00")
    assert "evaluation" in stream.getvalue() and "\x1b[" in stream.getvalue()
    if total:
        assert "2/3 episodes" in stream.getvalue()
