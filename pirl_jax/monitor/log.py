"""The run directory: what was run and what came out, in files that outlive the run.

    config.json        the configuration; a resume that changes it keeps the old one
                       as config_before_<iteration>.json
    environment.json   git revision, package versions, devices, renderer; one entry per start or
                       resume
    metrics.jsonl      one JSON object per write: {"iteration": 3, "actor/loss": 0.1, ...}
    tensorboard/       the same numbers as TensorBoard events
    checkpoints/  assets/  evaluation/   filled by others

Knows no reinforcement learning: a metric is a name with a '/' and a number.
Everything but time/* is deterministic and can be compared between runs with ==;
`read(path, timing=False)` gives exactly that part.
"""

import datetime
import json
import math
import os
import pathlib
import platform
import subprocess
import sys
from typing import Any

from flax import traverse_util
import jax
import tensorboardX

from pirl_jax.core import atomic, secrets
from pirl_jax.monitor import mirror, packages


class RunDir:
    """The files of one run; `changed` names the fields that a resume changed."""

    def __init__(
        self,
        path: str | os.PathLike,
        config: dict,
        resume_at: int | None = None,
        tensorboard: bool = True,
        wandb: bool = False,
        writes: bool = True,
    ) -> None:
        """Start a run, or continue the one that stands there.

        Args:
          config: the configuration, a nested dict of what JSON can hold.
          resume_at: None starts a run where none stands; a number continues the standing one from
            that iteration (0: killed before its first checkpoint).
          writes: False for the processes of other hosts, which leave the files to the first one.

        Raises:
          ValueError: a run stands there, or none where one should go on; wandb does not start.
        """
        # Absolute: nobody who changes the working directory moves the run.
        self.path = pathlib.Path(path).absolute()
        self.metrics_path = self.path / "metrics.jsonl"
        self.writes = writes
        self.changed: list[str] = []
        if not writes:
            return
        if resume_at is None and holds_run(self.path):
            raise standing_run_error(self.path)
        if resume_at is not None and not self.metrics_path.exists():
            raise ValueError(
                f"run directory {self.path} holds no run to continue; start one without --resume"
            )
        first_iteration = resume_at or 0
        # Before any other file: where wandb fails, what stands stays as it is.
        self._wandb = mirror.start(self.path, config) if wandb else None
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self.changed = self._write_config(_as_json(config), resume_at)
        self._record_environment(first_iteration)
        self._truncate(first_iteration)
        self._file = self.metrics_path.open("a", encoding="utf-8")
        self._tensorboard = None
        if tensorboard:
            events = str(self.path / "tensorboard")
            # purge_step: TensorBoard hides what ran beyond the checkpoint and runs again.
            self._tensorboard = tensorboardX.SummaryWriter(events, purge_step=first_iteration)

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
        self._file.write(_line({"iteration": iteration} | written))
        # A watcher and a killed run's successor see every finished iteration.
        self._file.flush()
        if self._tensorboard:
            for name, value in row.items():
                self._tensorboard.add_scalar(name, value, iteration)
        if self._wandb:
            self._wandb.log({"iteration": iteration} | row)
        return row

    def close(self) -> None:
        if not self.writes:
            return
        self._file.close()
        if self._tensorboard:
            self._tensorboard.close()
        if self._wandb:
            self._wandb.finish()

    def _write_config(self, config: dict, resume_at: int | None) -> list[str]:
        """-> one line per field that differs from the configuration before the resume."""
        path = self.path / "config.json"
        old = config
        if resume_at is not None and path.exists():
            old = json.loads(path.read_text())
        changed = config_changes(old, config)
        if changed:
            atomic.write_json(self.path / f"config_before_{resume_at}.json", old)
        atomic.write_json(path, config)
        return changed

    def _record_environment(self, first_iteration: int) -> None:
        path = self.path / "environment.json"
        starts = []
        if path.exists():
            starts = json.loads(path.read_text())
        starts.append({"first_iteration": first_iteration} | environment())
        atomic.write_json(path, starts)

    def _truncate(self, first_iteration: int) -> None:
        """Drop the rows of iterations that run again, and the half line of a killed write."""
        if not self.metrics_path.exists():
            return
        rows = read(self.metrics_path)
        kept = [_line(row) for row in rows if row["iteration"] < first_iteration]
        atomic.write_text(self.metrics_path, "".join(kept))


def holds_run(path: str | os.PathLike) -> bool:
    """Whether a run wrote metrics there.

    One that ended before its first row left nothing to lose.
    """
    path = pathlib.Path(path) / "metrics.jsonl"
    return path.exists() and path.stat().st_size > 0


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
    """
    path = pathlib.Path(path)
    if path.is_dir():
        path = path / "metrics.jsonl"
    # What follows the last newline is an unfinished write, or nothing.
    *lines, _ = path.read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines]
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


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row) + "\n"


def _number(value: float) -> float | str:
    """JSON has no nan and no infinity."""
    return value if math.isfinite(value) else str(value)


def _without_timing(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not name.startswith("time/")}
