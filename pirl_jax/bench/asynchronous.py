"""Whole iterations with simulators that wait for the learner, and with simulators that do not.

rollout.max_staleness 0 against 1, in turns, each repeat a short run of its own; or, with --record,
the single durations of a run, which the model of the loop is fed with.
"""

import argparse
from collections.abc import Mapping, Sequence
import itertools
import pathlib
import statistics
from typing import Any

from pirl_jax.bench import interleaved, short_runs
from pirl_jax.monitor import columns
from pirl_jax.run import command, recipes, recording

VARIANTS = {"in turns": 0, "stale by 1": 1}
PARTS = ("iteration", "env", "inference", "transfer", "update", "idle")
WAITS = ("learner_wait", "gate_wait")  # where there are such
# At the end of a run nothing more is admitted.
TAIL = 2
MODELLED = ("iteration", "env", "inference", "update", "idle")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--recipes",
        default="quickstart,libero_small",
        help="recipes that teach their model themselves, separated by commas",
    )
    parser.add_argument(
        "--iterations",
        type=command.number(int, 2 + TAIL),
        default=6,
        help=f"of every run; the first and the last {TAIL} do not count",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.FIELD=VALUE",
        help="other values, for all",
    )
    parser.add_argument(
        "--record",
        action="store_true",
        help="no comparison: keep every duration of a run in turns, for the model of the loop",
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    """{recipe: {variant: {part: median}}}; recorded: {"recipe", "recording", "modelled"}."""
    names = options.recipes.split(",")
    for name in names:
        page = recipes.load_recipe(name, "--recipes")
        command.override(page, [f"--config.{change}" for change in options.set])
    if options.record:
        return _recorded(names, options)
    return {pathlib.Path(name).stem: _compared(name, options) for name in names}


def _recorded(names: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    if len(names) != 1:
        raise ValueError(f"--record has one recipe, not --recipes={options.recipes}")
    fields = {"num_iterations": options.iterations, "run.record": True}
    with short_runs.trained(names[0], fields, options.set) as directory:
        kept = recording.of_run(directory)
    others = statistics.mean(row["others"] for row in kept.iterations)
    return {
        "recipe": pathlib.Path(names[0]).stem,
        "recording": recording.as_dict(kept),
        "modelled": recording.modelled(kept, others),
        "modelled alone": recording.modelled(kept),
    }


def _compared(recipe: str, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    def measure(variant: str, _: int) -> dict[str, float]:
        fields = {
            "num_iterations": options.iterations,
            "run.record": True,
            "rollout.max_staleness": VARIANTS[variant],
        }
        with short_runs.trained(recipe, fields, options.set) as directory:
            rows = short_runs.iterations(directory)[:-TAIL]
            idle = recording.workers_idle(directory, skip=1, tail=TAIL)
        return _medians(rows) | {"workers idle": idle}

    found = interleaved.values(VARIANTS, measure, options.repeats)
    return {variant: _medians(rows, prefix="") for variant, rows in found.items()}


def _medians(rows: Sequence[Mapping[str, float]], prefix: str = "time/") -> dict[str, float]:
    """Of every part that these rows have."""
    names = [f"{prefix}{part}" for part in (*PARTS, *WAITS)]
    names += ["rollout/slot_use", "async/staleness_mean", "workers idle"]
    medians = {}
    for name in names:
        if name in rows[0]:
            medians[name.removeprefix(prefix)] = statistics.median(row[name] for row in rows)
    return medians


def as_text(result: Mapping[str, Any]) -> str:
    """A table per recipe; of a recording, measured beside modelled."""
    if "recording" in result:
        return _as_text_of_recording(result)
    tables = []
    for recipe, rows in result.items():
        parts = list(dict.fromkeys(itertools.chain.from_iterable(rows.values())))
        header = [f"{recipe}, s per iteration", *parts]
        lines = []
        for variant, row in rows.items():
            lines.append([variant, *(f"{row[part]:.3g}" if part in row else "-" for part in parts)])
        ratio = rows["in turns"]["iteration"] / rows["stale by 1"]["iteration"]
        tables.append(f"\n{columns.aligned(lines, header)}\nstale by 1 is {ratio:.2f} times faster")
    note = (
        "medians of interleaved runs; workers idle: share of the simulator processes' time without "
        "a request, from the second iteration to the one at whose end nothing more is admitted"
    )
    return "\n".join([*tables, note])


def _as_text_of_recording(result: Mapping[str, Any]) -> str:
    measured = result["recording"]["iterations"]
    lines = []
    for part in MODELLED:
        value = statistics.mean(row[part] for row in measured)
        lines.append([part, *(f"{x:.2f}" for x in (value, result["modelled"][part]))])
    others = statistics.mean(row["others"] for row in measured)
    header = [f"{result['recipe']}, s per iteration", "measured", "modelled"]
    note = f"others had {others:.2f} of {result['recording']['schedule']['cores']} cores meanwhile"
    return f"\n{columns.aligned(lines, header)}\n{note}"
