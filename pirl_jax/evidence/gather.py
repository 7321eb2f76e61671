"""What a cell has shown, out of the folders of its runs: one JSON that needs none of them.

No path of a machine is in it: where runs lie is called RUNS.  Trains and plays nothing.
"""

from collections.abc import Mapping
import dataclasses
import json
import pathlib
from typing import Any

from pirl_jax.core import outside
from pirl_jax.evidence import cells, programs, teaching
from pirl_jax.monitor import diagnosis, pairs, report
from pirl_jax.rollout import stream
from pirl_jax.run import records

RUNS = "RUNS"  # the folder of all of them
REMEDY = "remove the folder, and it is played again"
MACHINE = ("git", "python", "platform", "cpu_cores", "devices", "mujoco_gl", "packages")
ROUNDED = 4  # digits of a rate that thousands of episodes stand behind


@dataclasses.dataclass(frozen=True)
class Told:
    """A cell that has been played."""

    cell: cells.Cell
    seed: int
    settings: Mapping[str, Any]  # all that differ from the recipe
    run: pathlib.Path
    start: pathlib.Path | None  # run whose end it began with; None: it taught its own
    taught: teaching.Taught | None
    stopped: str  # why before its last iteration; "": it was not


def result(told: Told, cost: programs.Cost, runs: pathlib.Path) -> dict[str, Any]:
    """Everything that is to be known of a cell and a seed.

    cost: of its training.  runs: the folder that is called RUNS.
    """
    record = records.read(told.run)
    before, after = _ends(told)
    held = _trained_on(told.run)
    rows = _by_iteration(record.rows, "env/success_once")
    first = record.starts[0]
    settings = {name: _shown(value, runs) for name, value in told.settings.items()}
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    found = {
        "cell": told.cell.name,
        "row": told.cell.row,
        "seed": told.seed,
        "recipe": told.cell.recipe,
        "settings": settings,
        "state": f"ended {told.stopped}" if told.stopped else "complete",
        "command": ["pirl", "train", f"--config={told.cell.recipe}", *flags],
        "start": _start(told, runs),
        "before": _evaluation(before, held),
        "after": _evaluation(after, held),
        "change": _change(before, after),
        "trained_on_init_states": held,
        "success": [round(float(row["env/success_once"]), ROUNDED) for row in rows],
        "evaluations": _evaluations(record.rows),
        "iterations": len(rows),
        "episodes": int(sum(float(row["env/num_trajectories"]) for row in rows)),
        "wall_s": cost.wall_s,
        "cpu_s": cost.cpu_s,
        "starts": cost.starts,
        "diagnosis": [dataclasses.asdict(one) for one in diagnosis.findings(record.rows)],
        "environment": {name: first.get(name) for name in MACHINE},
        "revisions": sorted({str(start.get("git")) for start in record.starts}),
    }
    return json.loads(json.dumps(found))  # as the file has it


def _shown(value: Any, runs: pathlib.Path) -> Any:
    """Of a setting; no path of the machine."""
    if isinstance(value, pathlib.Path):
        return f"{RUNS}/{value.relative_to(runs)}"
    return value


def _start(told: Told, runs: pathlib.Path) -> dict[str, Any] | None:
    if told.taught is None:
        return None
    start = {"checkpoint": _shown(told.start, runs), "rung": told.taught.rung}
    return start | {"trials": told.taught.trials}


def _ends(told: Told) -> tuple[records.Evaluation, records.Evaluation]:
    """The evaluations before and after; the latter of the same kind as the former."""
    start = told.start or told.run
    kind = "final" if told.cell.final else "after"
    first = kind if told.start is not None or told.cell.final else "before"
    return (
        records.evaluation(start / "evaluation" / first),
        records.evaluation(told.run / "evaluation" / kind),
    )


def _trained_on(run: pathlib.Path) -> list[int]:
    """[first, last) start state that training has seen."""
    path = run / "evaluation" / "after" / "evaluation.json"
    protocol = records.evaluation(path.parent).protocol
    return outside.part(protocol, "trained_on_init_states", list, path, REMEDY)


def _evaluation(one: records.Evaluation, trained_on: list[int]) -> dict[str, Any]:
    """Rates with Wilson intervals, and under which rules."""
    played = one.played
    first, last = trained_on
    held = {name: won for name, won in played.items() if not first <= name.init_state < last}
    tasks = []
    for task in one.tasks:
        own = {name: won for name, won in played.items() if name.task == task.number}
        tasks.append({"task": task.number, "instruction": task.instruction, "rate": _rate(own)})
    tree = outside.read_json(one.folder / "evaluation.json", remedy=REMEDY)
    return {
        "all": _rate(played),
        "held_out": _rate(held),
        "tasks": tasks,
        "lost": len(one.episodes) - len(played),
        "protocol": one.protocol,
        "renderer": tree.get("renderer"),
    }


def _rate(played: Mapping[stream.Episode, stream.Result]) -> dict[str, float] | None:
    if not played:
        return None
    return report.rate(sum(one.success for one in played.values()), len(played))


def _change(before: records.Evaluation, after: records.Evaluation) -> dict[str, float] | None:
    """Paired by task and start state."""
    return pairs.compared(outcomes(before), outcomes(after))


def outcomes(one: records.Evaluation) -> dict[stream.Episode, pairs.Outcome]:
    """By task and start state."""
    return {name: pairs.Outcome(won.success, won.num_steps) for name, won in one.played.items()}


def _by_iteration(rows: list[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    """The rows that have a metric, the last of each iteration."""
    found = {row["iteration"]: row for row in rows if metric in row}
    return [found[iteration] for iteration in sorted(found)]


def _evaluations(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those during training."""
    found = []
    for row in _by_iteration(rows, "eval/success_once"):
        count = int(row["eval/num_trajectories"])
        rate = report.rate(round(float(row["eval/success_once"]) * count), count)
        found.append({"iteration": row["iteration"], "rate": rate})
    return found


def newest(run: pathlib.Path) -> int:
    """The iteration of a run's newest checkpoint.

    Raises:
      programs.Unfinished: it has none after its first iteration.
    """
    found = [
        int(path.name) for path in (run / "checkpoints").glob("[0-9]*") if path.name.isdecimal()
    ]
    if max(found, default=0) < 1:
        raise programs.Unfinished(f"{run.name} has no iteration within its time")
    return max(found)
