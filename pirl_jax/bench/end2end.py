"""Whole iterations of a recipe, by part: with kept prefixes and overlap of simulation and inference, and without.

Each repeat is a short training run of its own, in a process of its own; the first iteration of a run, which compiles, does not count.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

PARTS = ("iteration", "env", "inference", "transfer", "update", "idle")
# The straightforward run: simulation and inference take turns, and every microbatch computes its prefixes again.
WITHOUT = {"rollout.num_groups": 1, "rollout.prefix_cache": "recompute"}
SHORT = {
    "sft.steps": 1,
    "sft.demonstrations": 1,
    "eval.baseline": False,
    "eval.every": 0,
    "eval.episodes_per_task": 1,
    "eval.num_videos": 0,
    "run.tensorboard": False,
    "run.save_every": 1000,
}


def add_arguments(parser) -> None:
    parser.add_argument(
        "--recipe", default="configs/quickstart.py", help="a recipe that teaches its model itself"
    )
    parser.add_argument(
        "--iterations", type=int, default=3, help="of every run; the first does not count"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.FIELD=VALUE",
        help="other values, for both",
    )


def run(options) -> dict:
    """{"baseline" | "ours": {part: median seconds per iteration}}"""
    rows = {"baseline": [], "ours": []}
    for _ in range(options.repeats):
        for name, changes in (("baseline", WITHOUT), ("ours", {})):
            rows[name] += _train(options, SHORT | {"num_iterations": options.iterations} | changes)
    return {
        name: {
            part: statistics.median(row[f"time/{part}"] for row in some)
            for part in PARTS
            if f"time/{part}" in some[0]
        }
        for name, some in rows.items()
    }


def _train(options, fields: dict) -> list[dict]:
    """Metrics of the iterations of one run, the first left out."""
    with tempfile.TemporaryDirectory() as folder:
        directory = pathlib.Path(folder) / "run"
        overrides = [
            f"--config.{name}={value}"
            for name, value in (fields | {"run.directory": directory}).items()
        ]
        overrides += [f"--config.{change}" for change in options.set]
        command = [sys.executable, "-m", "pirl_jax.train", "--config", options.recipe, *overrides]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(
                f"a run of {options.recipe} ended with: {done.stderr.strip().splitlines()[-1]}"
            )
        rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "time/iteration" in row][1:]


def as_text(result: dict) -> str:
    lines = ["", f"{'s per iteration':<12}" + "".join(f"{part:>12}" for part in result["ours"])]
    for name, row in result.items():
        lines.append(f"{name:<12}" + "".join(f"{row[part]:>12.2f}" for part in result["ours"]))
    ratio = result["baseline"]["iteration"] / result["ours"]["iteration"]
    return "\n".join(
        [
            *lines,
            f"ours is {ratio:.2f} times faster; medians over the iterations of interleaved runs",
        ]
    )
