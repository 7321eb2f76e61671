"""TensorBoard's event files, a row at a time: on the disk as soon as `write` returns.

tensorboardX's own SummaryWriter hands rows to a thread, which a kill takes along and a full disk
ends without a word.
"""

import contextlib
import pathlib
import time

from tensorboardX import event_file_writer, summary
from tensorboardX.proto import event_pb2

from pirl_jax.core import atomic

# What people look at first, on one page (TensorBoard's tab "Custom Scalars"): chart -> metrics.
OVERVIEW = {
    "success": ("eval/success_once", "env/success_once"),
    "return": ("eval/return", "env/return"),
    "KL to the policy that played": ("actor/approx_kl3",),
    "clipped ratios": ("actor/pg_clipfrac",),
    "explained variance": ("critic/explained_variance",),
    "seconds of an iteration": ("time/iteration", "time/env", "time/inference", "time/update"),
}


class Events:
    """One file of events, new with every start."""

    def __init__(self, folder: pathlib.Path, first_iteration: int) -> None:
        """TensorBoard hides what earlier files have from the first iteration on."""
        self._folder = folder
        with atomic.naming(folder):
            folder.mkdir(exist_ok=True)
            # Two starts within a second would write one file.
            name = str(folder / "events")
            self._writer = event_file_writer.EventsWriter(name, f".{time.time_ns()}")
            started = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            for what in ({"file_version": "brain.Event:2"}, {"session_log": started}):
                self._writer.write_event(event_pb2.Event(step=first_iteration, **what))
            layout = {chart: ["Multiline", list(names)] for chart, names in OVERVIEW.items()}
            overview = summary.custom_scalars({"overview": layout})
            self._writer.write_event(event_pb2.Event(step=first_iteration, summary=overview))
            self._writer.flush()
            atomic.sync_folder(folder)

    def write(self, iteration: int, row: dict[str, float], time_s: float) -> None:
        """All numbers of a row in one event."""
        event = event_pb2.Event(step=iteration, wall_time=time_s)
        for name, value in row.items():
            event.summary.value.extend(summary.scalar(name, value).value)
        self._write(event)

    def write_text(self, iteration: int, name: str, text: str, time_s: float) -> None:
        """A text of fixed width."""
        # TensorBoard reads Markdown, in which an indented block is as it stands.
        block = "\n".join(f"    {line}" for line in text.splitlines())
        event = event_pb2.Event(step=iteration, wall_time=time_s, summary=summary.text(name, block))
        self._write(event)

    def _write(self, event: event_pb2.Event) -> None:
        with atomic.naming(self._folder):
            self._writer.write_event(event)
            self._writer.flush()  # with fsync

    def close(self) -> None:
        # Rows are on the disk; what a full disk refused has been said and is refused again.
        with contextlib.suppress(OSError):
            self._writer.close()
