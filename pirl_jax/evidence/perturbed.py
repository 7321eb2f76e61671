"""A trained task as LIBERO-PRO and LIBERO-Plus perturb it: what is played, and what that showed.

Compares the policy that training began with and the one that it ended with, on the same episodes.
"""

import pathlib
from typing import Any

from pirl_jax.core import outside
from pirl_jax.envs.libero import files, plus
from pirl_jax.evidence import cells, gather
from pirl_jax.monitor import pairs, report
from pirl_jax.rollout import stream
from pirl_jax.run import perturbations, recipes, records

PLUS = "plus"
PRO = "pro"
# No scripted expert plays the perturbed tasks, and none is needed.
UNTAUGHT = {"sft.demonstrations": 0}


def evaluations(cell: cells.Cell) -> dict[str, tuple[cells.Settings, list[str]]]:
    """{name of an evaluation: its settings, arguments of pirl evaluate}.

    Raises:
      ValueError: the files of LIBERO-Plus are not there.
    """
    suite, tasks = _of_plus(cell)
    final = {**cell.final, **UNTAUGHT}
    perturbing = {**final, "env.suite": suite, "env.tasks": tasks}
    return {PRO: (final, ["--pro=all"]), PLUS: (perturbing, [])}


def _of_plus(cell: cells.Cell) -> tuple[str, tuple[int, ...]]:
    """The suites of LIBERO-Plus, and which of their tasks perturb those of a cell."""
    own = cell.settings["env.suite"]
    suite = ",".join(f"{own}_plus_{dimension}" for dimension in plus.DIMENSIONS)
    page = recipes.load_recipe(cell.recipe)
    folders = perturbations.folders(page.env)
    names = {files.tasks(own)[task].name for task in cell.settings["env.tasks"]}
    found = []
    for number, task in enumerate(files.tasks(suite, folders)):
        if files.perturbed(task).name in names:
            found.append(number)
    return suite, tuple(found)


def result(cell: cells.Cell, seed: int, start: pathlib.Path, run: pathlib.Path) -> dict[str, Any]:
    """{"dimensions": {suite: {"before", "after", "change"}}, ...}"""
    found = {}
    evaluated = {}
    for kind in (PRO, PLUS):
        before = records.evaluation(start / "evaluation" / kind)
        after = records.evaluation(run / "evaluation" / kind)
        path = after.folder / "evaluation.json"
        suite = outside.part(after.protocol, "suite", str, path, gather.REMEDY)
        evaluated[kind] = {"protocol": after.protocol, "git": after.environment.get("git")}
        one = _by_suite(suite, before)
        other = _by_suite(suite, after)
        for name in one:
            found[name] = _dimension(one[name], other.get(name, {}))
    return {"cell": cell.name, "seed": seed, "dimensions": found, "evaluations": evaluated}


def _by_suite(
    suite: str, one: records.Evaluation
) -> dict[str, dict[stream.Episode, pairs.Outcome]]:
    page = recipes.load_recipe("libero_small")
    tasks = files.tasks(suite, perturbations.folders(page.env))
    found: dict[str, dict[stream.Episode, pairs.Outcome]] = {}
    for episode, outcome in gather.outcomes(one).items():
        found.setdefault(tasks[episode.task].suite, {})[episode] = outcome
    return found


def _dimension(
    before: dict[stream.Episode, pairs.Outcome], after: dict[stream.Episode, pairs.Outcome]
) -> dict[str, Any]:
    def rate(played: dict[stream.Episode, pairs.Outcome]) -> dict[str, float] | None:
        if not played:
            return None
        return report.rate(sum(one.success for one in played.values()), len(played))

    return {
        "before": rate(before),
        "after": rate(after),
        "change": pairs.compared(before, after),
    }
