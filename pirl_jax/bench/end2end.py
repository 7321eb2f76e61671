"""Whole iterations of a recipe, by part: ours against the straightforward way to run them.

Each repeat is a short training run of its own, in a process of its own.
The first iteration of a run, which compiles, does not count.
"""

import argparse
from collections.abc import Mapping, Sequence
import statistics

from pirl_jax.bench import short_runs
from pirl_jax.monitor import columns
from pirl_jax.run import command, recipes

PARTS = ("iteration", "env", "inference", "transfer", "update", "idle")
# The straightforward run: simulation and inference take turns, and every microbatch computes its
# prefixes again.
WITHOUT = {"rollout.num_groups": 1, "rollout.prefix_cache": "recompute"}
VARIANTS = {"baseline": WITHOUT, "ours": {}}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--recipe", default="quickstart", help="a recipe that teaches its model itself"
    )
    parser.add_argument(
        "--iterations",
        type=command.number(int, 2),
        default=3,
        help="of every run; the first does not count",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.FIELD=VALUE",
        help="other values, for both",
    )


def run(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """{"baseline" | "ours": {part: median seconds per iteration}}"""
    page = recipes.load_recipe(options.recipe, "--recipe")
    command.override(page, [f"--config.{change}" for change in options.set])
    rows = {name: [] for name in VARIANTS}
    for _ in range(options.repeats):
        for name, changes in VARIANTS.items():
            fields = {"num_iterations": options.iterations} | changes
            with short_runs.trained(options.recipe, fields, options.set) as directory:
                rows[name] += short_runs.iterations(directory)
    return {name: _medians(of_variant) for name, of_variant in rows.items()}


def _medians(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of every part that these rows have."""
    medians = {}
    for part in PARTS:
        name = f"time/{part}"
        if name in rows[0]:
            medians[part] = statistics.median(row[name] for row in rows)
    return medians


def as_text(result: Mapping[str, Mapping[str, float]]) -> str:
    """A line per variant, a column per part."""
    parts = list(result["ours"])
    lines = []
    for name, row in result.items():
        lines.append([name, *(f"{row[part]:.2f}" for part in parts)])
    table = columns.aligned(lines, header=["s per iteration", *parts])
    ratio = result["baseline"]["iteration"] / result["ours"]["iteration"]
    note = f"ours is {ratio:.2f} times faster; medians over the iterations of interleaved runs"
    return f"\n{table}\n{note}"
