"""Several runs on one sheet: what each learned from where it started, as JSON and as one picture.

    python -m pirl_jax.compare runs/a runs/b ... --output docs/results/NAME

writes NAME.json, NAME.png and NAME.html, which is the page of `pirl report`.  One panel per suite
and model, one colour per algorithm and sampler, one line per seed; the table below the runs is over
the seeds.  A run without an evaluation "before" of its own started from another run's checkpoint,
whose last evaluation then stands for its start.
"""

import collections
from collections.abc import Sequence
import pathlib
import statistics
import sys
from typing import Any

from pirl_jax.core import atomic, outside, paths
from pirl_jax.monitor import columns, report
from pirl_jax.run import command, preemption, records, story

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
    page = folder / f"{options.output.name}.html"
    with command.user_errors():
        paths.require_writable(folder, "--output")
        summaries = _told_apart([summary(run) for run in options.runs], options.runs)
        found = [records.read(run) for run in options.runs]
        folder.mkdir(parents=True, exist_ok=True)
        atomic.write_json(numbers, {"interval": "Wilson 95 %", "runs": summaries})
        report.comparison(picture, summaries)
        story.write(page, found)
    print(as_text(summaries))
    print(f"results in {numbers}, {picture} and {page}")


def summary(run: pathlib.Path) -> dict[str, Any]:
    """What one finished run tells, from its own files.

    Raises:
      ValueError: it is not finished, or where it started from was not evaluated.
    """
    after = run / "evaluation" / "after"
    if not after.is_dir():
        raise ValueError(f"{run} holds no evaluation/after; give directories of finished runs")
    record = records.read(run)
    config = record.config
    first_start = _first_start(record)
    before = run / "evaluation" / "before"
    if not before.is_dir():
        # As it was typed, empty where the run taught its model itself.
        start = _field(run, config, "model.checkpoint", str)
        before = (paths.absolute(start) if start else run) / "evaluation" / "after"
    rows = [row for row in record.rows if "env/success_once" in row]
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


def _told_apart(
    summaries: Sequence[dict[str, Any]], runs: Sequence[pathlib.Path]
) -> list[dict[str, Any]]:
    """Runs of one variant and one seed differ in what a variant does not name: they are no seeds of
    each other, and their folders name them."""
    counted = collections.Counter((run["panel"], run["variant"], run["seed"]) for run in summaries)
    twice = {key[:2] for key, count in counted.items() if count > 1}
    apart = []
    for told, folder in zip(summaries, runs, strict=True):
        if (told["panel"], told["variant"]) in twice:
            told = told | {"variant": f"{told['variant']} ({outside.shown(folder.name)})"}
        apart.append(told)
    return apart


def _first_start(record: records.Record) -> dict[str, Any]:
    """Of environment.json, with all that is kept."""
    path = record.folder / "environment.json"
    first = record.starts[0] if record.starts else {}
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
    named = tasks or "all tasks"
    return f"{outside.shown(suite)} {named}, {model}"


def _variant(run: pathlib.Path, config: dict[str, Any]) -> str:
    """Algorithm and exploration: what they differ in."""
    loss = _newer(run, config, "algorithm.loss", "ppo")
    algorithm = report.algorithm_name(loss, _field(run, config, "algorithm.adv_type", str))
    if coefficient := _newer(run, config, "algorithm.clone_coef", 0.0):
        algorithm += f" + {coefficient:g} cloning"
    if staleness := _newer(run, config, "rollout.max_staleness", 0):
        algorithm += f" stale by {staleness}"
    return outside.shown(f"{algorithm}, {_sampler(run, config)}")


def _sampler(run: pathlib.Path, config: dict[str, Any]) -> str:
    """How a run explored: "flow_sde 0.8 in one of 2 steps"."""
    method = _field(run, config, "model.noise_method", str)
    if method == "flow_ode":
        return method
    size = f"{_field(run, config, 'model.noise_level', float):g}"
    if _field(run, config, "model.noise_anneal", bool):
        size = "annealed"
    if method in ("flow_noise", "reinflow"):
        bounds = _field(run, config, "model.noise_logvar_range", list)
        if not all(outside.fits(bound, float) for bound in bounds):
            raise ValueError(
                f"model.noise_logvar_range of {run / 'config.json'} are no numbers; {REMEDY}"
            )
        size = " to ".join(f"{bound:g}" for bound in sorted(set(bounds)))
    steps = _newer(run, config, "model.noise_steps", "one")
    if _newer(run, config, "model.joint_logprob", False):
        steps = "all"
    count = _field(run, config, "model.num_steps", int)
    where = f"all {count} steps" if steps == "all" else f"the last of {count} steps"
    if steps == "one":
        where = f"one of {count} steps"
    return f"{method} {size} in {where}"


def _newer(run: pathlib.Path, config: dict[str, Any], name: str, default: Any) -> Any:
    """A field that runs of before there was a choice have not."""
    section, _, field = name.partition(".")
    if field not in _field(run, config, section, dict):
        return default
    return _field(run, config, name, type(default))


def _total(folder: pathlib.Path) -> dict[str, Any]:
    """Successes, episodes, rate and interval of an evaluation."""
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is missing; a run with eval.baseline=False needs the run its checkpoint "
            f"came from"
        )
    played = records.evaluation(folder).played.values()
    if not played:
        raise ValueError(f"{folder / 'evaluation.json'} has no episode; {REMEDY}")
    return report.rate(sum(result.success for result in played), len(played))


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
    return f"{columns.aligned(lines, header, left=2)}\n\n{_over_seeds(summaries)}"


def _over_seeds(summaries: Sequence[dict[str, Any]]) -> str:
    """One line per panel and variant: mean and spread, and what the episodes brought."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in summaries:
        groups.setdefault((run["panel"], run["variant"]), []).append(run)
    header = ("", "", "seeds", "before", "after", "lowest", "highest", "points per 1,000 episodes")
    lines = []
    for (panel, variant), runs in groups.items():
        rates = [run["after"]["rate"] for run in runs]
        before = [run["before"]["rate"] for run in runs]
        gain = statistics.mean(rates) - statistics.mean(before)
        episodes = statistics.mean(run["episodes"] for run in runs)
        shown = (statistics.mean(before), statistics.mean(rates), min(rates), max(rates))
        line = (
            panel,
            variant,
            str(len(runs)),
            *(f"{rate:.1%}" for rate in shown),
            f"{100_000 * gain / episodes:+.1f}" if episodes else "-",
        )
        lines.append(line)
    return columns.aligned(lines, header, left=2)


if __name__ == "__main__":
    main(sys.argv)
