"""Shows that long work is alive: a moving bar on a terminal, a plain line now and then elsewhere.

    with progress.track("rollout", total=640, unit="decisions") as advance:
        advance(16, "success 0.25")

Work that cannot count (a compilation) leaves `total` out: it gets a spinner, or a heartbeat line
with the elapsed time.  Knows nothing of the work but its name and its count.
"""

from collections.abc import Iterator
import contextlib
import functools
import sys
import threading
import time
from typing import Protocol, TextIO

from rich import console, progress

INTERVAL_S = 10.0  # between plain lines: a log stays readable, a watcher never waits long


class Advance(Protocol):
    """Say that `count` more units are done; the note stands beside them until the next one."""

    def __call__(self, count: int = 1, note: str = "") -> None: ...


@contextlib.contextmanager
def track(
    name: str,
    total: int | None = None,
    unit: str = "",
    stream: TextIO | None = None,
    interval_s: float = INTERVAL_S,
    before: int = 0,
) -> Iterator[Advance]:
    """Show the work of the block, which calls what this yields.

    stream: where to write (standard output); its isatty() picks the form.
    interval_s: between plain lines.
    before: units of the total that an earlier process did.
    """
    # Asked for here and not as a default: who captures output replaces sys.stdout later.
    stream = stream or sys.stdout
    if stream.isatty():
        shown = _bar(name, total, unit, stream, before)
    else:
        shown = _lines(_Line(name, total, unit, stream, before), interval_s)
    with shown as advance:
        yield advance


@functools.lru_cache(maxsize=1)
def console_of(stream: TextIO) -> console.Console:
    """One for a terminal: what is shown within something else must know of it."""
    return console.Console(file=stream)


@contextlib.contextmanager
def _bar(name: str, total: int | None, unit: str, stream: TextIO, before: int) -> Iterator[Advance]:
    columns = _columns(total, unit)
    with progress.Progress(*columns, console=console_of(stream)) as display:
        task = display.add_task(name, total=total, completed=before, note="")

        def advance(count: int = 1, note: str = "") -> None:
            display.update(task, advance=count, note=note)

        yield advance


def _columns(total: int | None, unit: str) -> list[progress.ProgressColumn]:
    """What a bar consists of; what cannot be counted has a spinner and no end in sight."""
    name = progress.TextColumn("{task.description:<12}")
    elapsed = progress.TimeElapsedColumn()
    note = progress.TextColumn("{task.fields[note]}")
    if total is None:
        return [name, progress.SpinnerColumn(), elapsed, note]
    count = progress.TextColumn(f"{{task.completed:.0f}}/{total} {unit}")
    remaining = progress.TimeRemainingColumn()
    return [name, progress.BarColumn(), count, elapsed, remaining, note]


@contextlib.contextmanager
def _lines(line: "_Line", interval_s: float) -> Iterator[Advance]:
    finished = threading.Event()

    def heartbeat() -> None:
        while not finished.wait(interval_s):
            line.print()

    # A thread, because a compilation never calls advance.
    thread = threading.Thread(target=heartbeat, name=f"progress-{line.name}", daemon=True)
    thread.start()
    state = "not finished"  # whether it failed or was asked to end, others say
    try:
        yield line.advance
        state = "done"
    finally:
        finished.set()
        thread.join()
        line.print(state)


class _Line:
    """Counts, and writes one line when asked."""

    def __init__(
        self, name: str, total: int | None, unit: str, stream: TextIO, before: int
    ) -> None:
        self.name = name
        self.total = total
        self.unit = unit
        self.stream = stream
        self.before = before
        self.count = before
        self.note = ""
        self.start_s = time.monotonic()

    def advance(self, count: int = 1, note: str = "") -> None:
        self.count += count
        self.note = note

    def print(self, state: str = "") -> None:
        """state: how it ended; "" while it goes on."""
        elapsed_s = time.monotonic() - self.start_s
        words = [f"{self.name}:"]
        if self.total is not None:
            counted = f"{self.count}/{self.total} {self.unit}".strip()
            words.append(f"{counted},")
        words.append(f"{elapsed_s:.1f} s")
        # What has not begun has no pace yet, what has ended has nothing left.
        here = self.count - self.before
        if self.total and here and not state:
            left_s = elapsed_s / here * (self.total - self.count)
            words.append(f"(about {left_s:.0f} s left)")
        if self.note:
            words.append(self.note)
        if state:
            words.append(state)
        # Flushed: standard output in a file or a pipe would keep the line back for minutes.
        print(*words, file=self.stream, flush=True)
