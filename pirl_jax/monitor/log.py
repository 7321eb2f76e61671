"""The run directory: what was run and what came out, in files that outlive the run.

    config.json        the configuration; a resume that changes it keeps the old one
                       as config_before_<iteration>.json
    environment.json   git revision, package versions, devices, renderer; one entry per start or
                       resume
    metrics.jsonl      one JSON object per write: {"iteration": 3, "actor/loss": 0.1, ...}
    tensorboard/       the same numbers as TensorBoard events
    checkpoints/  assets/  evaluation/   filled by others

A file that is damaged decides about no other: a resume sets it aside as NAME.damaged, says what is
lost and goes on.
Knows no reinforcement learning: a metric is a name with a '/' and a number.
Everything but time/* is deterministic and can be compared between runs with ==;
`read(path, timing=False)` gives exactly that part.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
import datetime
import itertools
import json
import math
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import time
from typing import Any

from flax import traverse_util
import jax

from pirl_jax.core import atomic, lines, outside, secrets
from pirl_jax.monitor import columns, events, mirror, packages, services

NAMELESS = services.Labels()


class RunDir:
    """The files of one run.

    `changed` names the fields that a resume changed, `lost` what damaged files took along.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        config: dict,
        resume_at: int | None = None,
        backends: Collection[str] = ("tensorboard",),
        labels: services.Labels = NAMELESS,
        writes: bool = True,
    ) -> None:
        """Start a run, or continue the one that stands there.

        Args:
          config: the configuration, a nested dict of what JSON can hold.
          resume_at: None starts a run where none stands; a number continues the standing one from
            that iteration (0: killed before its first checkpoint).
          backends: which of tensorboard, wandb and swanlab get the numbers too.
          labels: what the run is called there.
          writes: False for the processes of other hosts, which leave the files to the first one.

        Raises:
          ValueError: a run stands there, or none where one should go on; a service does not start.
        """
        # Absolute: nobody who changes the working directory moves the run.
        self.path = pathlib.Path(path).absolute()
        self.metrics_path = self.path / "metrics.jsonl"
        self.writes = writes
        self.changed: list[str] = []
        self.lost: list[str] = []
        if not writes:
            return
        standing = holds_run(self.path)
        if resume_at is None and standing:
            raise standing_run_error(self.path)
        if resume_at is not None and not standing:
            raise ValueError(
                f"run directory {self.path} holds no run to continue; start one without --resume"
            )
        first_iteration = resume_at or 0
        # Before any other file: where a service fails, nothing is left of the start.
        self._mirrors = mirror.start(
            self.path, config, backends, labels, self._set_aside, began=standing
        )
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self.changed = self._write_config(_as_json(config), resume_at)
        self._record_environment(first_iteration)
        if resume_at is not None:
            self._truncate(first_iteration)
        self._lines = lines.Lines(self.metrics_path)
        self._events = None
        if "tensorboard" in backends:
            self._events = events.Events(self.path / "tensorboard", first_iteration)

    @property
    def checkpoints(self) -> pathlib.Path:
        return self.path / "checkpoints"

    def write(self, iteration: int, metrics: dict[str, Any]) -> dict[str, float]:
        """Append one row and hand it on to TensorBoard; returns the numbers as Python floats.

        Arrays come to the host in one explicit transfer.  Several writes may share an iteration.

        Raises:
          ValueError: a metric's name has no group.
        """
        without_group = sorted(name for name in metrics if "/" not in name)
        if without_group:
            names = ", ".join(without_group)
            raise ValueError(f"metric names are group/name; these have no group: {names}")
        on_host = jax.device_get(metrics)
        row = {name: float(value) for name, value in on_host.items()}
        if not self.writes:
            return row
        written = {name: _number(value) for name, value in row.items()}
        # In this order: whoever has a row in metrics.jsonl has it in TensorBoard, after any kill.
        if self._events:
            self._events.write(iteration, row, time.time())
        # A watcher and a killed run's successor see every finished iteration.
        self._lines.append(json.dumps({"iteration": iteration} | written))
        self._tell(lambda service: service.log(iteration, row))
        return row

    def show(
        self,
        iteration: int,
        name: str,
        rows: Sequence[Mapping[str, Any]],
        videos: Iterable[pathlib.Path] = (),
    ) -> None:
        """A table and videos beside the numbers, wherever they can be shown.

        Their files are the caller's; a table has a row at least, all with the same names.
        """
        if not self.writes:
            return
        if self._events:
            self._events.write_text(iteration, name, columns.of_rows(rows), time.time())
        self._tell(lambda service: service.table(iteration, name, rows))
        self.show_videos(iteration, {f"{name}/{path.stem}": path for path in videos})

    def show_videos(self, iteration: int, videos: Mapping[str, pathlib.Path]) -> None:
        """{name: file}, wherever they can be shown."""
        for name, path in videos.items():
            self._tell(lambda service, name=name, path=path: service.video(iteration, name, path))

    def _tell(self, what: Callable[[services.Service], None]) -> None:
        for one in self._mirrors:
            one.tell(what)

    def go_back(self, iteration: int, stays: Callable[[dict], bool]) -> None:
        """The run goes on from an iteration; of the rows so far, some are true still.

        stays: says so of a row.
        """
        if not self.writes:
            return
        self._lines.close()
        rows = [row for row in read(self.metrics_path) if stays(row)]
        atomic.write_text(self.metrics_path, "".join(json.dumps(row) + "\n" for row in rows))
        self._lines = lines.Lines(self.metrics_path)
        if self._events:
            self._events.close()
            self._events = events.Events(self.path / "tensorboard", iteration)
            for row in rows:
                if row["iteration"] >= iteration:
                    self._show(row)

    def _show(self, row: dict[str, Any]) -> None:
        """Once more in TensorBoard, which hides what was shown before."""
        numbers = {name: float(value) for name, value in row.items() if name != "iteration"}
        self._events.write(row["iteration"], numbers, time.time())

    def close(self) -> None:
        if not self.writes:
            return
        self._lines.close()
        if self._events:
            self._events.close()
        for one in self._mirrors:
            one.finish()

    def _write_config(self, config: dict, resume_at: int | None) -> list[str]:
        """-> one line per field that differs from the configuration before the resume."""
        path = self.path / "config.json"
        old = config
        if resume_at is not None:
            old = self._standing_json(path, dict, config)
        changed = config_changes(old, config)
        if changed:
            aside = atomic.vacant(self.path / f"config_before_{resume_at}.json")
            atomic.write_json(aside, old)
        atomic.write_json(path, config)
        return changed

    def _record_environment(self, first_iteration: int) -> None:
        path = self.path / "environment.json"
        starts = self._standing_json(path, list, [])
        starts.append({"first_iteration": first_iteration} | environment())
        atomic.write_json(path, starts)

    def _standing_json(self, path: pathlib.Path, kind: type, otherwise: Any) -> Any:
        """A JSON file of an earlier start; `otherwise` where there is none, or a damaged one."""
        if not path.exists():
            return otherwise
        try:
            return outside.read_json(path, kind)
        except ValueError as error:
            self._set_aside(path, str(error))
            return otherwise

    def _set_aside(self, path: pathlib.Path, reason: str) -> None:
        aside = atomic.set_aside(path)
        self.lost.append(f"{reason}; kept as {aside.name}, written anew")

    def _truncate(self, first_iteration: int) -> None:
        """Drop the rows of iterations that run again, and what is no row any more."""
        noted = lines.read(self.metrics_path)
        kept = []
        there = set()
        damaged = []
        for number, line in enumerate(noted, 1):
            try:
                iteration = _row(line, self.metrics_path, number)["iteration"]
            except ValueError as error:
                damaged.append(str(error))
                continue
            if iteration < first_iteration:
                kept.append(line + b"\n")
                there.add(iteration)
        # A run that starts over without any checkpoint replaces rows that nobody else has.
        if damaged or (len(noted) > len(kept) and not first_iteration):
            copy = atomic.vacant(self.path / f"metrics_before_{first_iteration}.jsonl")
            with atomic.writing(copy) as temporary:
                shutil.copyfile(self.metrics_path, temporary)
            self.lost += [*damaged, f"{self.metrics_path} as it was is kept as {copy.name}"]
        missing = [i for i in range(first_iteration) if i not in there]
        if missing:
            self.lost.append(f"{self.metrics_path} has no rows of iterations {_ranges(missing)}")
        with atomic.writing(self.metrics_path) as temporary:
            temporary.write_bytes(b"".join(kept))


def holds_run(path: str | os.PathLike) -> bool:
    """Whether anything of a run stands there: rows, a configuration or checkpoints."""
    # Also 12.damaged: what is left of a run that somebody may want to save.
    return began(path) or any((pathlib.Path(path) / "checkpoints").glob("[0-9]*"))


def began(path: str | os.PathLike) -> bool:
    """Whether a run left its rows or its configuration there."""
    path = pathlib.Path(path)
    metrics = path / "metrics.jsonl"
    rows = metrics.exists() and metrics.stat().st_size
    return bool(rows) or (path / "config.json").exists()


def standing_run_error(path: str | os.PathLike) -> ValueError:
    """The error for a run that would overwrite another, to be raised by the caller."""
    return ValueError(
        f"run directory {path} already holds a run; continue it with --resume auto or give another"
    )


def read(path: str | os.PathLike, timing: bool = True) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl (or of the run directory that holds it).

    Numbers that JSON cannot write stand as the strings "nan", "inf", "-inf", so that rows compare
    with ==.

    timing: False leaves out time/*.

    Raises:
      ValueError: no such file, or a damaged line.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        path = path / "metrics.jsonl"
    outside.require_file(path, "give the directory of a run")
    rows = [_row(line, path, number) for number, line in enumerate(lines.read(path), 1)]
    if timing:
        return rows
    return [_without_timing(row) for row in rows]


def config_changes(old: dict, new: dict) -> list[str]:
    """One line per field, "learner.lr: 0.1 -> 0.2"; None stands for a field that is absent."""
    before = traverse_util.flatten_dict(old, sep=".")
    after = traverse_util.flatten_dict(new, sep=".")
    changes = []
    for field in sorted(before.keys() | after.keys()):
        was = before.get(field)
        now = after.get(field)
        if was != now:
            changes.append(f"{field}: {was!r} -> {now!r}")
    return changes


def environment() -> dict[str, Any]:
    """What a reader needs to repeat a run: revision, versions, machine."""
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": secrets.arguments(sys.argv),
        "git": git_revision(pathlib.Path(__file__).parents[2]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_cores": os.cpu_count(),
        "devices": [f"{device.platform}:{device.device_kind}" for device in jax.devices()],
        "mujoco_gl": os.environ.get("MUJOCO_GL"),
        "packages": packages.recorded(),
    }


def git_revision(root: str | os.PathLike) -> str | None:
    """Commit of the checkout, "-dirty" when files differ from it; None outside of a checkout."""
    # --exclude=*: the commit itself, never the name of a tag near it.
    describe = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    command = ["git", "-C", str(root), *describe]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _as_json(config: dict) -> dict:
    """As the file has it (tuples as lists): an unchanged configuration compares equal."""
    return json.loads(json.dumps(secrets.cleaned(config)))


def _row(line: bytes, path: pathlib.Path, number: int) -> dict[str, Any]:
    """ValueError where it is none."""
    where = f"line {number} of {path}"
    remedy = "--resume auto leaves it out and goes on"
    row = outside.parse_json(line, where, remedy)
    outside.part(row, "iteration", int, where, remedy)
    return row


def _ranges(numbers: list[int]) -> str:
    """Sorted numbers, "0-3, 7"."""
    words = []
    for _, run in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        members = [number for _, number in run]
        words.append(f"{members[0]}-{members[-1]}" if members[1:] else f"{members[0]}")
    return ", ".join(words)


def _number(value: float) -> float | str:
    """JSON has no nan and no infinity."""
    return value if math.isfinite(value) else str(value)


def _without_timing(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not name.startswith("time/")}
