"""Predicted seconds of an iteration of pi0 PPO in LIBERO on two machines, for every placement.

Nothing is run: the model of the loop (run/loop_model.py) is fed with the numbers of CASES, each of
which says what it rests on.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from pirl_jax.monitor import columns
from pirl_jax.run import accelerators, command, forecast, loop_model

LAYOUTS = (
    forecast.Layout(8, 8),
    forecast.Layout(8, 8, offload=True),
    forecast.Layout(4, 8),
    forecast.Layout(4, 2, separate=True),
    forecast.Layout(4, 4, separate=True),
    forecast.Layout(4, 2, separate=True, max_staleness=1),
    forecast.Layout(4, 4, separate=True, max_staleness=1),
    forecast.Layout(8, 8, max_staleness=1),
)
# libero_spatial_ppo_pi0: 512 episodes of at most 48 decisions, 4 epochs, minibatches of 2048.
RECIPE = loop_model.Schedule(512, 4, 2048, 128, num_groups=2)
LIMIT = 48
DECISION_FLOP = 2.665e12  # of a row (docs/bench/plan.json)
# Of a row and pass, and what the prefix does: docs/bench/plan.json.
UPDATE_FLOP = {"prefix kept": 0.110e12, "prefix each time": 4.109e12}
# Seconds of a chunk of five steps and of a reset on a core (docs/bench/env_cpu.json, spatial).
PICTURES = {"exact": (0.246, 0.195), "light": (0.0391, 0.0172)}
ROOFLINE_SHARE = 0.4
PUBLISHED_GB = 1.26
HOST_GB_PER_S = 25.0
V5E_MICROBATCH_S = 0.0606  # kept prefix, 128 rows on 8 chips
V5E_STEP_S = 0.0172


@dataclasses.dataclass(frozen=True)
class Machine:
    """cores: that simulators have, and as many of these."""

    target: str
    cores: int


MACHINES = (Machine("cuda:h100:8", 192), Machine("tpu:v5e:2x4", 112))
RESTS_ON = {
    "measured": "seconds of a chunk and of a reset, on a core of the machine of "
    "docs/bench/env_cpu.json, drawn by llvmpipe",
    "counted": "FLOP of a decision and of an update's row (docs/bench/plan.json)",
    "modelled": "v5e, kept prefix: microbatch and optimiser step by XLA:TPU's estimate "
    "(docs/targets.md); everything that follows from these durations",
    "assumed": "all other programs reach 40 % of the chip's peak; 112 cores beside a v5e-8; a "
    "simulator for each core; a third of the episodes fails and has 48 decisions, the others have "
    "12 to 48; durations of chunks spread by 0.3 of a logarithm; weights cross at 25 GB/s",
    "left out": "rows between host and devices, work of the run's own process, rendering on the "
    "same GPU, evaluations, checkpoints",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--iterations",
        type=command.number(int, 1),
        default=3,
        help="that are simulated of every placement, after two that do not count",
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    """{"rests on": {...}, "rows": [{machine, pictures, prefix, layouts: {name: outcome}}]}"""
    rows = []
    for machine in MACHINES:
        for pictures in PICTURES:
            for prefix in UPDATE_FLOP:
                rows.append(_row(machine, pictures, prefix, options.iterations))
    return {"rests on": RESTS_ON, "rows": rows}


def _row(machine: Machine, pictures: str, prefix: str, iterations: int) -> dict[str, Any]:
    simulators = simulated(machine, pictures)
    of_programs = work(machine, prefix, simulators.slots)
    layouts = {}
    for layout in LAYOUTS:
        outcome = forecast.predict(layout, of_programs, simulators, RECIPE, iterations=iterations)
        layouts[layout.name] = _rounded(outcome)
    return {
        "machine": f"{machine.target}, {machine.cores} cores",
        "pictures": pictures,
        "prefix": prefix,
        "layouts": layouts,
    }


def simulated(machine: Machine, pictures: str) -> loop_model.Simulators:
    """One for each core; the same episodes on every machine."""
    rng = np.random.default_rng(0)
    fails = rng.random(600) < 1 / 3
    lengths = np.where(fails, LIMIT, rng.integers(LIMIT // 4, LIMIT + 1, 600))
    spread = np.exp(0.3 * rng.standard_normal(600))
    chunk_s, reset_s = PICTURES[pictures]
    return loop_model.Simulators(
        slots=machine.cores,
        workers=machine.cores,
        cores=machine.cores,
        chunk_s=chunk_s * spread / spread.mean(),
        reset_s=(reset_s,),
        decisions=lengths,
    )


def work(machine: Machine, prefix: str, slots: int) -> forecast.Work:
    """Seconds of the machine's chips."""
    target = accelerators.parse(machine.target)
    rate = ROOFLINE_SHARE * target.chip.peak
    microbatch = UPDATE_FLOP[prefix] * RECIPE.microbatch_rows / rate
    # An optimiser step reads and writes 5.05 + 3.78 GB (docs/targets.md).
    step_s = 8.83e9 / target.chip.bandwidth / ROOFLINE_SHARE
    if target.name == "v5e":
        step_s = V5E_STEP_S
        if prefix == "prefix kept":
            microbatch = V5E_MICROBATCH_S * target.count
    return forecast.Work(
        decision=DECISION_FLOP * (slots // RECIPE.num_groups) / rate,
        microbatch=microbatch,
        step_s=step_s,
        publish_s=PUBLISHED_GB / HOST_GB_PER_S,
        offload_s=2 * PUBLISHED_GB / HOST_GB_PER_S,
    )


def _rounded(outcome: loop_model.Outcome) -> dict[str, float]:
    return {name: round(value, 3) for name, value in dataclasses.asdict(outcome).items()}


def as_text(result: Mapping[str, Any]) -> str:
    """A table per machine, and what it rests on."""
    tables = []
    for machine, rows in _by_machine(result).items():
        header = [f"{machine}: modelled s per iteration", *map(_case, rows)]
        tables.append(columns.aligned(list(_lines(rows, "")), header))
    notes = [f"{kind}: {text}" for kind, text in result["rests on"].items()]
    return "\n" + "\n\n".join([*tables, "\n".join(notes)])


def as_markdown(result: Mapping[str, Any]) -> str:
    """The tables of docs/placement.md; the fastest of a column is bold."""
    parts = []
    for machine, rows in _by_machine(result).items():
        header = [machine, *map(_case, rows)]
        lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
        lines += [f"| {' | '.join(cells)} |" for cells in _lines(rows, "**")]
        parts.append("\n".join(lines))
    parts.append("\n".join(f"* {kind}: {text}." for kind, text in result["rests on"].items()))
    return "\n\n".join(parts)


def _by_machine(result: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list] = {}
    for row in result["rows"]:
        found.setdefault(row["machine"], []).append(row)
    return found


def _case(row: Mapping[str, Any]) -> str:
    return f"{row['pictures']}, {row['prefix']}"


def _lines(rows: Sequence[Mapping[str, Any]], bold: str) -> Iterator[list[str]]:
    """A placement and its seconds in each case."""
    fastest = [min(map(_seconds, row["layouts"].values())) for row in rows]
    for layout in rows[0]["layouts"]:
        cells = [layout]
        for row, least in zip(rows, fastest, strict=True):
            seconds = _seconds(row["layouts"][layout])
            cells.append(f"{bold}{seconds:.0f}{bold}" if seconds == least else f"{seconds:.0f}")
        yield cells


def _seconds(outcome: Mapping[str, float]) -> float:
    return outcome["iteration_s"]
