"""Several runs on one sheet: what each learned from where it started, as JSON and as one picture.

    python -m pirl_jax.compare runs/a runs/b ... --output docs/results/NAME

writes NAME.json and NAME.png.  One panel per suite and model, one colour per algorithm, one line
per seed.  A run without an evaluation "before" of its own started from another run's checkpoint,
whose last evaluation then stands for its start.
"""

from collections.abc import Sequence
import json
import pathlib
import sys
from typing import Any

from pirl_jax.core import atomic, paths
from pirl_jax.monitor import columns, log, report
from pirl_jax.run import command

MACHINE = ("git", "python", "platform", "cpu_cores", "devices")  # what of environment.json is kept


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
    config = json.loads((run / "config.json").read_text())
    first_start = json.loads((run / "environment.json").read_text())[0]
    before = run / "evaluation" / "before"
    if not before.is_dir():
        # As it was typed, empty where the run taught its model itself.
        start = config["model"]["checkpoint"]
        before = (paths.absolute(start) if start else run) / "evaluation" / "after"
    rows = [row for row in log.read(run) if "env/success_once" in row]
    return {
        "panel": _panel(config),
        "variant": _variant(config),
        "seed": config["seed"],
        "before": _total(before),
        "after": _total(after),
        "iterations": len(rows),
        "episodes": int(sum(row["env/num_trajectories"] for row in rows)),
        "training_s": round(sum(row["time/iteration"] for row in rows), 1),
        # Of exploring episodes, per iteration.
        "success": [round(row["env/success_once"], 4) for row in rows],
        # The first word that was typed is a path of the machine.
        "command": ["python", "-m", "pirl_jax.train", *first_start["command"][1:]],
        "environment": {name: first_start[name] for name in MACHINE},
    }


def _panel(config: dict[str, Any]) -> str:
    """Suite, tasks and model: what the runs of a panel have in common."""
    env = config["env"]
    model = "pi0.5" if config["model"]["pi05"] else "pi0"
    return f"{env['suite']} {env['tasks']}, {model}"


def _variant(config: dict[str, Any]) -> str:
    """Algorithm and exploration: what they differ in."""
    algorithm = report.algorithm_name(config["algorithm"]["adv_type"])
    return f"{algorithm} {config['model']['noise_method']}"


def _total(folder: pathlib.Path) -> dict[str, Any]:
    """Successes, episodes, rate and interval of an evaluation."""
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is missing; a run with eval.baseline=False needs the run its checkpoint "
            f"came from"
        )
    evaluation = json.loads((folder / "evaluation.json").read_text())
    (policy,) = evaluation["table"]["rows"].values()
    return policy["total"]


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
