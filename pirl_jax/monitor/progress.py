"""Shows that long work is alive: a moving bar on a terminal, a plain line now and then elsewhere.

    with progress.track("rollout", total=640, unit="decisions") as step:
        step(16, "success 0.25")

Work that cannot count (a compilation) leaves `total` out: it gets a spinner, or a heartbeat line with the elapsed time.
"""

import contextlib
import sys
import threading
import time

from rich import console, progress

INTERVAL_S = 10.0  # between plain lines: a log stays readable, a watcher never waits long


@contextlib.contextmanager
def track(
    name: str, total: int | None = None, unit: str = "", stream=None, interval_s: float = INTERVAL_S
):
    """Yield `step(count=1, note="")`.  stream: where to write (standard output); its isatty() picks the form."""
    stream = stream or sys.stdout
    show = _bar if stream.isatty() else _lines
    with show(name, total, unit, stream, interval_s) as step:
        yield step


@contextlib.contextmanager
def _bar(name: str, total: int | None, unit: str, stream, interval_s: float):
    columns = (
        progress.TextColumn("{task.description:<12}"),
        progress.SpinnerColumn() if total is None else progress.BarColumn(),
        progress.TextColumn("" if total is None else f"{{task.completed:.0f}}/{total} {unit}"),
        progress.TimeElapsedColumn(),
        *(() if total is None else (progress.TimeRemainingColumn(),)),
        progress.TextColumn("{task.fields[note]}"),
    )
    with progress.Progress(*columns, console=console.Console(file=stream)) as display:
        task = display.add_task(name, total=total, note="")
        yield lambda count=1, note="": display.update(task, advance=count, note=note)


@contextlib.contextmanager
def _lines(name: str, total: int | None, unit: str, stream, interval_s: float):
    lines = _Lines(name, total, unit, stream)
    finished = threading.Event()

    def heartbeat():  # a thread, because a compilation never calls step
        while not finished.wait(interval_s):
            lines.print()

    thread = threading.Thread(target=heartbeat, name=f"progress-{name}", daemon=True)
    thread.start()
    state = "failed"
    try:
        yield lines.step
        state = "done"
    finally:
        finished.set()
        thread.join()
        lines.print(state)


class _Lines:
    """Counts, and writes one line when asked."""

    def __init__(self, name: str, total: int | None, unit: str, stream):
        self.name, self.total, self.unit, self.stream = name, total, unit, stream
        self.count, self.note, self.start = 0, "", time.monotonic()

    def step(self, count: int = 1, note: str = "") -> None:
        self.count, self.note = self.count + count, note

    def print(self, state: str = "") -> None:
        elapsed_s = time.monotonic() - self.start
        parts = [f"{self.name}:"]
        if self.total is not None:
            parts.append(f"{self.count}/{self.total} {self.unit}".strip() + ",")
        parts.append(f"{elapsed_s:.1f} s")
        if self.count and not state and self.total:
            parts.append(f"(about {elapsed_s / self.count * (self.total - self.count):.0f} s left)")
        print(*parts, *filter(None, (self.note, state)), file=self.stream, flush=True)
