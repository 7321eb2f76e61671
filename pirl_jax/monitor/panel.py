"""Training as a person watches it: one live panel on a terminal, short lines elsewhere.

What a run waits for is said when it changes.  Knows rows of metrics by their names, and nothing of
who makes them.
"""

from collections.abc import Iterator, Mapping
import contextlib
import sys
import time
from typing import Protocol, TextIO

from rich import console, live, table, text
from rich import panel as panels

from pirl_jax.monitor import progress, timeline

BAR = 40  # characters
FAULTS = {
    "env/restarts": "simulators replaced",
    "env/lost_episodes": "episodes lost",
    "actor/nonfinite_updates": "updates not finite",
}
COLOURS = ("blue", "yellow", "green", "magenta", "red", "cyan", "bright_black", "white")


class Board(Protocol):
    """What the training loop tells."""

    def __call__(self, count: int = 0, note: str = "") -> None:
        """What is under way within an iteration; the count is for work that has one."""

    def finished(self, row: Mapping[str, float]) -> None:
        """An iteration is over; these are its numbers."""


@contextlib.contextmanager
def watching(
    total: int,
    stream: TextIO | None = None,
    interval_s: float = progress.INTERVAL_S,
    before: int = 0,
) -> Iterator[Board]:
    """Shows the iterations of the block.

    total: of the run.
    before: of these, those that an earlier process learned.
    stream: where to write (standard output); its isatty() picks the form.
    interval_s: between plain lines.
    """
    stream = stream or sys.stdout
    if stream.isatty():
        board = _Panel(total, before)
        # Redrawn by a thread: the elapsed time moves while devices compute.
        with live.Live(get_renderable=board.drawn, console=progress.console_of(stream)):
            yield board
        return
    shown = progress.track("training", total, "iterations", stream, interval_s, before)
    with shown as advance:
        yield _Lines(advance, stream)


class _Lines:
    """Beside the line that comes at a fixed rate: what the run waits for, when that changes."""

    def __init__(self, advance: progress.Advance, stream: TextIO) -> None:
        self._advance = advance
        self._stream = stream
        self._numbers = ""
        self._bound = ""

    def __call__(self, count: int = 0, note: str = "") -> None:
        del count  # iterations are counted, not what they consist of
        self._advance(0, "; ".join(filter(None, (self._numbers, note))))

    def finished(self, row: Mapping[str, float]) -> None:
        self._numbers = timeline.line(row)
        self._advance(1, self._numbers)
        bound = timeline.bound(row)
        if bound != self._bound:
            print(f"training: {timeline.verdict(row)}", file=self._stream, flush=True)
        self._bound = bound


class _Panel:
    """Draws what it has been told."""

    def __init__(self, total: int, before: int = 0) -> None:
        self._total = total
        self._before = before
        self._count = before
        self._note = ""
        self._row: Mapping[str, float] = {}
        self._faults = dict.fromkeys(FAULTS, 0.0)
        self._start_s = time.monotonic()

    def __call__(self, count: int = 0, note: str = "") -> None:
        del count
        self._note = note

    def finished(self, row: Mapping[str, float]) -> None:
        self._count += 1
        self._note = ""
        self._row = row
        for name in FAULTS:
            self._faults[name] += row.get(name, 0.0)

    def drawn(self) -> console.Group:
        """The panel as it is now."""
        grid = table.Table.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, shown in self._lines():
            grid.add_row(name, shown)
        title = f"training: {self._count}/{self._total} iterations"
        frame = panels.Panel(grid, title=title, title_align="left", expand=False)
        # rich draws what is shown within over the last line.
        return console.Group(frame, "")

    def _lines(self) -> Iterator[tuple[str, text.Text | str]]:
        elapsed_s = time.monotonic() - self._start_s
        left = ""
        here = self._count - self._before
        if here:
            left_s = elapsed_s / here * (self._total - self._count)
            left = f", about {_duration(left_s)} left"
        yield "time", f"{_duration(elapsed_s)}{left}"
        if self._row:
            yield "success", timeline.success(self._row)
            yield "learning", timeline.learning(self._row)
            yield "budget", _budget(self._row)
            yield "", timeline.verdict(self._row)
        counts = [f"{count:.0f} {FAULTS[name]}" for name, count in self._faults.items() if count]
        yield "faults", ", ".join(counts) or "none"
        if self._note:
            yield "now", self._note


def _budget(row: Mapping[str, float]) -> text.Text:
    """A bar of the parts of an iteration, with their names and shares."""
    bar = text.Text()
    names = text.Text()
    for place, (name, share) in enumerate(timeline.shares(row).items()):
        colour = COLOURS[place % len(COLOURS)]
        bar.append("█" * round(BAR * share), style=colour)
        if share >= 0.005:
            names.append(f" {name} {share:.0%}", style=colour)
    return bar + names


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
