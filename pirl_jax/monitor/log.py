"""The run directory: what was run (config, revision, versions) and what came out (metrics), in files that outlive it.

    config.json        the configuration; a resume that changes it keeps the old one as config_before_<iteration>.json
    environment.json   git revision, package versions, devices, renderer; one entry per start or resume
    metrics.jsonl      one JSON object per write: {"iteration": 3, "actor/loss": 0.1, ...}
    tensorboard/       the same numbers as TensorBoard events
    checkpoints/  assets/  evaluation/   filled by others

Knows no reinforcement learning: a metric is a name with a '/' and a number.  Everything but time/* is deterministic and
can be compared between runs with ==; `read(path, timing=False)` gives exactly that part.
"""

import datetime
import importlib.metadata
import importlib.util
import json
import math
import os
import pathlib
import platform
import subprocess
import sys
import uuid

import jax
import tensorboardX

PACKAGES = [
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "ml_collections",
    "chex",
    "numpy",
    "scipy",
    "mujoco",
    "robosuite",
    "hf-libero",
    "bddl",
    "openpi-client",
    "numba",
    "pillow",
    "opencv-python-headless",
    "gymnasium",
    "tensorstore",
    "tensorboardX",
    "imageio-ffmpeg",
]


class RunDir:
    """The files of one run."""

    def __init__(
        self, path, config: dict, resume_at=None, tensorboard=True, wandb=False, writes: bool = True
    ):
        """resume_at: None starts a run where none stands; a number continues the standing one from that iteration (0:
        killed before its first checkpoint).

        writes: False for the processes of other hosts, which leave the files to the first one."""
        self.path, self.writes, self.changed = pathlib.Path(path).absolute(), writes, []
        self.metrics_path = self.path / "metrics.jsonl"
        if not writes:
            return
        if resume_at is None and holds_run(self.path):
            raise standing(self.path)
        if resume_at is not None and not self.metrics_path.exists():
            raise ValueError(
                f"run directory {self.path} holds no run to continue; start one without --resume"
            )
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        first_iteration = resume_at or 0
        self._wandb = _start_wandb(self.path, config) if wandb else None
        self.changed = self._write_config(_jsonable(config), resume_at)
        self._record_environment(first_iteration)
        self._truncate(first_iteration)
        self._file = self.metrics_path.open("a", encoding="utf-8")
        events = str(self.path / "tensorboard")
        self._tensorboard = (
            tensorboardX.SummaryWriter(events, purge_step=first_iteration) if tensorboard else None
        )

    @property
    def checkpoints(self) -> pathlib.Path:
        return self.path / "checkpoints"

    def write(self, iteration: int, metrics: dict) -> dict[str, float]:
        """Append one row and hand it on to TensorBoard; returns the numbers as Python floats.

        Arrays come to the host in one explicit transfer.  Several writes may share an iteration.
        """
        wrong = sorted(name for name in metrics if "/" not in name)
        if wrong:
            raise ValueError(
                f"metric names are group/name; these have no group: {', '.join(wrong)}"
            )
        row = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not self.writes:
            return row
        self._file.write(
            json.dumps({"iteration": iteration} | {n: _number(v) for n, v in row.items()}) + "\n"
        )
        self._file.flush()
        for name, value in row.items() if self._tensorboard else ():
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
        old = json.loads(path.read_text()) if resume_at is not None and path.exists() else config
        changed = config_changes(old, config)
        if changed:
            write_json(self.path / f"config_before_{resume_at}.json", old)
        write_json(path, config)
        return changed

    def _record_environment(self, first_iteration: int) -> None:
        path = self.path / "environment.json"
        starts = json.loads(path.read_text()) if path.exists() else []
        write_json(path, starts + [{"first_iteration": first_iteration} | environment()])

    def _truncate(self, first_iteration: int) -> None:
        """Drop the rows of iterations that run again, and the half line of a killed write."""
        if not self.metrics_path.exists():
            return
        kept = [row for row in read(self.metrics_path) if row["iteration"] < first_iteration]
        _replace(self.metrics_path, "".join(json.dumps(row) + "\n" for row in kept))


def holds_run(path) -> bool:
    """Whether a run wrote metrics there; one that ended before its first row left nothing to lose."""
    path = pathlib.Path(path) / "metrics.jsonl"
    return path.exists() and path.stat().st_size > 0


def standing(path) -> ValueError:
    return ValueError(
        f"run directory {path} already holds a run; continue it with --resume auto or give another"
    )


def read(path, timing: bool = True) -> list[dict]:
    """Rows of a metrics.jsonl (or of the run directory that holds it); timing=False leaves out time/*.

    Numbers that JSON cannot write stand as the strings "nan", "inf", "-inf", so that rows compare with ==.
    """
    path = pathlib.Path(path)
    lines = (
        (path / "metrics.jsonl" if path.is_dir() else path).read_text(encoding="utf-8").split("\n")
    )
    rows = [
        json.loads(line) for line in lines[:-1]
    ]  # what follows the last newline is an unfinished write
    return [
        {name: row[name] for name in row if timing or not name.startswith("time/")} for row in rows
    ]


def config_changes(old: dict, new: dict) -> list[str]:
    """One line per field, "learner.lr: 0.1 -> 0.2"; None stands for a field that is absent."""
    a, b = _flat(old), _flat(new)
    return [
        f"{k}: {a.get(k)!r} -> {b.get(k)!r}"
        for k in sorted(a.keys() | b.keys())
        if a.get(k) != b.get(k)
    ]


def environment() -> dict:
    """What a reader needs to repeat a run: revision, versions, machine."""
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "git": git_revision(pathlib.Path(__file__).parents[2]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_cores": os.cpu_count(),
        "devices": [f"{device.platform}:{device.device_kind}" for device in jax.devices()],
        "mujoco_gl": os.environ.get("MUJOCO_GL"),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def git_revision(root) -> str | None:
    """Commit of the checkout, "-dirty" when files differ from it; None outside of a checkout."""
    command = [
        "git",
        "-C",
        str(root),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude=*",
    ]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None


def write_json(path, value) -> None:
    """Write a JSON file so that a reader sees the old one or the new one, never half."""
    _replace(pathlib.Path(path), json.dumps(value, indent=2) + "\n")


def _replace(path: pathlib.Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _jsonable(config: dict) -> dict:
    """Tuples as lists, as json reads them back, so that an unchanged configuration compares equal."""
    return json.loads(json.dumps(config))


def _flat(tree: dict, prefix: str = "") -> dict:
    flat = {}
    for name, value in tree.items():
        flat |= (
            _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
    return flat


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _start_wandb(path: pathlib.Path, config: dict):
    """Optional mirror of the metrics; the run id lies in the run directory, so that a resume continues the same run."""
    if importlib.util.find_spec("wandb") is None:
        raise ValueError(
            "run.wandb is True but wandb is not installed; run pip install wandb or set it to False"
        )
    import wandb  # an optional package

    id_path = path / "wandb_id.txt"
    if not id_path.exists():
        id_path.write_text(uuid.uuid4().hex)
    project, run_id = os.environ.get("WANDB_PROJECT", "pirl_jax"), id_path.read_text()
    run = wandb.init(
        project=project, id=run_id, resume="allow", dir=str(path), config=config, name=path.name
    )
    # wandb's own step may not go back after a resume; iteration is the axis instead.
    run.define_metric("*", step_metric="iteration")
    return run
