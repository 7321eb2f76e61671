"""Several runs on one sheet: what each learned from where it started, as JSON and as one picture.

    python -m pirl_jax.compare runs/a runs/b ... --output docs/results/NAME

writes NAME.json and NAME.png.  One panel per suite and model, one colour per algorithm, one line
per seed.  A run without an evaluation "before" of its own started from another run's checkpoint,
whose last evaluation then stands for its start.
"""

from collections.abc import Sequence
import pathlib
import sys
from typing import Any

from pirl_jax.core import atomic, outside, paths
from pirl_jax.monitor import columns, log, report
from pirl_jax.run import command, preemption

REMEDY = "copy the run again, or leave it out"
MACHINE = ("git", "python", "platform", "cpu_cores", "devices")  # what of environment.json is kept


@preemption.watching("nothing was compared")
def main(argv: list[str]) -> None:
    parser = command.Parser("pirl compare", __doc__)
    parser.add_argument("runs", nargs="+", type=command.path, help="run directories")
    parser.add_argument(
        "--output", type=command.path, required=True, help="path of the result, without its ending"
    )
    options = parser.parse_args(argv[1:])
    folder = options.output.parent
    # Not with_suffix: "pi0.5" has none.
    numbers = folder / f"{options.output.name}.json"
    picture = folder / f"{options.output.name}.png"
    with command.user_errors():
        paths.require_writable(folder, "--output")
        summaries = [summary(run) for run in options.runs]
        folder.mkdir(parents=True, exist_ok=True)
        atomic.write_json(numbers, {"interval": "Wilson 95 %", "runs": summaries})
        report.comparison(picture, summaries)
    print(as_text(summaries))
    print(f"results in {numbers} and {picture}")


def summary(run: pathlib.Path) -> dict[str, Any]:
    """What one finished run tells, from its own files.

    Raises:
      ValueError: it is not finished, or where it started from was not evaluated.
    """
    after = run / "evaluation" / "after"
    if not after.is_dir():
        raise ValueError(f"{run} holds no evaluation/after; give directories of finished runs")
    config = outside.read_json(run / "config.json", remedy=REMEDY)
    first_start = _first_start(run)
    before = run / "evaluation" / "before"
    if not before.is_dir():
        # As it was typed, empty where the run taught its model itself.
        start = _field(run, config, "model.checkpoint", str)
        before = (paths.absolute(start) if start else run) / "evaluation" / "after"
    with outside.named(run / "metrics.jsonl"):
        outside.require_file(run / "metrics.jsonl", REMEDY)
        rows = [row for row in log.read(run) if "env/success_once" in row]
    return {
        "panel": _panel(run, config),
        "variant": _variant(run, config),
        "seed": _field(run, config, "seed", int),
        "before": _total(before),
        "after": _total(after),
        "iterations": len(rows),
        "episodes": int(sum(_column(run, rows, "env/num_trajectories"))),
        "training_s": round(sum(_column(run, rows, "time/iteration")), 1),
        # Of exploring episodes, per iteration.
        "success": [round(rate, 4) for rate in _column(run, rows, "env/success_once")],
        # The first word that was typed is a path of the machine.
        "command": ["python", "-m", "pirl_jax.train", *first_start["command"][1:]],
        "environment": {name: first_start[name] for name in MACHINE},
    }


def _first_start(run: pathlib.Path) -> dict[str, Any]:
    """Of environment.json, with all that is kept."""
    path = run / "environment.json"
    starts = outside.read_json(path, list, REMEDY)
    first = outside.part(starts[0] if starts else {}, "", dict, path, REMEDY)
    outside.part(first, "command", list, path, REMEDY)
    absent = [name for name in MACHINE if name not in first]
    if absent:
        raise ValueError(f"{path} has no {' and '.join(absent)}; {REMEDY}")
    return first


def _field(run: pathlib.Path, config: dict[str, Any], name: str, kind: type) -> Any:
    """A field of a run's configuration."""
    return outside.part(config, name, kind, run / "config.json", REMEDY)


def _column(run: pathlib.Path, rows: Sequence[dict[str, Any]], name: str) -> list[float]:
    """One metric of all rows."""
    return [outside.part(row, name, float, run / "metrics.jsonl", REMEDY) for row in rows]


def _panel(run: pathlib.Path, config: dict[str, Any]) -> str:
    """Suite, tasks and model: what the runs of a panel have in common."""
    suite = _field(run, config, "env.suite", str)
    tasks = _field(run, config, "env.tasks", list)
    if not all(outside.fits(task, int) for task in tasks):
        raise ValueError(f"env.tasks of {run / 'config.json'} are no numbers; {REMEDY}")
    model = "pi0.5" if _field(run, config, "model.pi05", bool) else "pi0"
    return f"{outside.shown(suite)} {tasks}, {model}"


def _variant(run: pathlib.Path, config: dict[str, Any]) -> str:
    """Algorithm and exploration: what they differ in."""
    # Runs of before there was a choice have no such field.
    is_old = "loss" not in _field(run, config, "algorithm", dict)
    loss = "ppo" if is_old else _field(run, config, "algorithm.loss", str)
    algorithm = report.algorithm_name(loss, _field(run, config, "algorithm.adv_type", str))
    noise = _field(run, config, "model.noise_method", str)
    return outside.shown(f"{algorithm} {noise}")


def _total(folder: pathlib.Path) -> dict[str, Any]:
    """Successes, episodes, rate and interval of an evaluation."""
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is missing; a run with eval.baseline=False needs the run its checkpoint "
            f"came from"
        )
    path = folder / "evaluation.json"
    policies = outside.part(outside.read_json(path), "table.rows", dict, path)
    if len(policies) != 1:
        raise ValueError(f"{path} has {len(policies)} policies and should have one; {REMEDY}")
    (policy,) = policies.values()
    total = outside.part(policy, "total", dict, path)
    for name in ("rate", "low", "high"):
        rate = outside.part(total, name, float, path)
        if not 0 <= rate <= 1:
            raise ValueError(f"total.{name} of {path} is {rate} and should be a rate; {REMEDY}")
    if not total["low"] <= total["rate"] <= total["high"]:
        raise ValueError(f"{path} has a rate outside of its interval; {REMEDY}")
    return total


def as_text(summaries: Sequence[dict[str, Any]]) -> str:
    """One line per run."""
    header = ("", "", "seed", "before", "after", "iterations", "minutes")
    lines = []
    for run in summaries:
        line = (
            run["panel"],
            run["variant"],
            str(run["seed"]),
            report.interval_text(run["before"]),
            report.interval_text(run["after"]),
            str(run["iterations"]),
            f"{run['training_s'] / 60:.1f}",
        )
        lines.append(line)
    return columns.aligned(lines, header, left=2)


if __name__ == "__main__":
    main(sys.argv)
