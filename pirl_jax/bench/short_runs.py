"""Short training runs for measurements: a process each, nothing but iterations.  Knows no variant
that is compared."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

# Next to no teaching, no evaluation, no files.
SHORT = {
    "sft.steps": 1,
    "sft.demonstrations": 1,
    "eval.baseline": False,
    "eval.every": 0,
    "eval.episodes_per_task": 1,
    "eval.num_videos": 0,
    "run.backends": "jsonl",
    "run.save_every": 1000,
}


@contextlib.contextmanager
def trained(recipe: str, fields: Mapping[str, Any], more: Sequence[str]) -> Iterator[pathlib.Path]:
    """The directory of a finished run; it is gone afterwards.

    fields, more: other values of the recipe, the latter as "section.field=value".

    Raises:
      ValueError: the run failed.
    """
    overrides = [f"--config.{name}={value}" for name, value in (SHORT | fields).items()]
    overrides += [f"--config.{change}" for change in more]
    with tempfile.TemporaryDirectory() as folder:
        directory = pathlib.Path(folder) / "run"
        overrides.append(f"--config.run.directory={directory}")
        argv = [sys.executable, "-m", "pirl_jax.train", "--config", recipe, *overrides]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            # Commands end in one sentence; what stands above it is log.
            *_, last_line = [f"exit code {done.returncode}", *done.stderr.strip().splitlines()]
            raise ValueError(f"a run of {recipe} ended with: {last_line}")
        yield directory


def iterations(directory: pathlib.Path) -> list[dict[str, float]]:
    """Metrics of the iterations of a run, the first left out."""
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    # Evaluations write rows of their own.
    return [row for row in rows if "time/iteration" in row][1:]
