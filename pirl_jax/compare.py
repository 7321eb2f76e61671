"""Several runs on one sheet: what each learned from where it started, as JSON and as one picture.

    python -m pirl_jax.compare runs/a runs/b ... --output docs/results/NAME      writes NAME.json and NAME.png

One panel per suite and model, one colour per algorithm, one line per seed.  A run without an evaluation "before" of its own started
from another run's checkpoint, whose last evaluation then stands for its start.
"""

import json
import pathlib
import sys

from pirl_jax.monitor import log, report
from pirl_jax.run import command


def main(argv: list[str]) -> None:
    parser = command.Parser("pirl compare", __doc__)
    parser.add_argument("runs", nargs="+", type=pathlib.Path, help="run directories")
    parser.add_argument(
        "--output", type=pathlib.Path, required=True, help="path of the result, without its ending"
    )
    options = parser.parse_args(argv[1:])
    with command.user_errors():
        summaries = [summary(run) for run in options.runs]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    log.write_json(
        options.output.with_suffix(".json"), {"interval": "Wilson 95 %", "runs": summaries}
    )
    report.comparison(options.output.with_suffix(".png"), summaries)
    print(as_text(summaries))
    print(
        f"results in {options.output.with_suffix('.json')} and {options.output.with_suffix('.png')}"
    )


def summary(run: pathlib.Path) -> dict:
    """What one finished run tells."""
    if not (run / "evaluation" / "after").is_dir():
        raise ValueError(f"{run} holds no evaluation/after; give directories of finished runs")
    page, rows = json.loads((run / "config.json").read_text()), log.read(run)
    started = json.loads((run / "environment.json").read_text())
    before = run / "evaluation" / "before"
    if not before.is_dir():
        before = pathlib.Path(page["model"]["checkpoint"]) / "evaluation" / "after"
    trained = [row for row in rows if "env/success_once" in row]
    return {
        "panel": f"{page['env']['suite']} {page['env']['tasks']}, {'pi0.5' if page['model']['pi05'] else 'pi0'}",
        "variant": f"{report.algorithm_name(page['algorithm']['adv_type'])} {page['model']['noise_method']}",
        "seed": page["seed"],
        "before": _total(before),
        "after": _total(run / "evaluation" / "after"),
        "iterations": len(trained),
        "episodes": int(sum(row["env/num_trajectories"] for row in trained)),
        "training_s": round(sum(row["time/iteration"] for row in trained), 1),
        "success": [
            round(row["env/success_once"], 4) for row in trained
        ],  # of exploring episodes, per iteration
        "command": [
            "python",
            "-m",
            "pirl_jax.train",
            *started[0]["command"][1:],
        ],  # the first word is a path of the machine
        "environment": {
            name: started[0][name] for name in ("git", "python", "platform", "cpu_cores", "devices")
        },
    }


def _total(folder: pathlib.Path) -> dict:
    """Successes, episodes, rate and interval of an evaluation."""
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is missing; a run with eval.baseline=False needs the run its checkpoint came from"
        )
    rows = json.loads((folder / "evaluation.json").read_text())["table"]["rows"]
    return next(iter(rows.values()))["total"]


def as_text(summaries: list[dict]) -> str:
    """One line per run."""
    cell = lambda x: f"{100 * x['rate']:5.1f} % [{100 * x['low']:5.1f}, {100 * x['high']:5.1f}]"  # noqa: E731
    lines = [f"{'':<34}{'':<18}{'seed':>5}  {'before':>23}  {'after':>23}  iterations  minutes"]
    for run in summaries:
        lines.append(
            f"{run['panel']:<34}{run['variant']:<18}{run['seed']:>5}  {cell(run['before']):>23}  {cell(run['after']):>23}"
            f"  {run['iterations']:>10}  {run['training_s'] / 60:>7.1f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv)
