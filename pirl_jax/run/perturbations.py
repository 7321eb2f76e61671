"""Suites that perturb others: which are played beside which, and what each perturbation costs.

A perturbed episode is compared with the one that it perturbs: the same task and number of start
state.  Plays nothing.
"""

import collections
from collections.abc import Iterator, Mapping, Sequence

from pirl_jax.core import page
from pirl_jax.envs import base
from pirl_jax.envs.libero import files, plus, plus_assets
from pirl_jax.envs.libero import perturbed as perturbed_data
from pirl_jax.monitor import columns, report
from pirl_jax.rollout import stream

Pair = tuple[int, int]  # task in its suite, start state

HEADER = ("", "success rate", "difference to the suite perturbed", "thrown")


def with_pro(env: page.Env, dimensions: str) -> dict[str, object]:
    """Fields that play a suite of LIBERO's and, after it, its perturbations in LIBERO-PRO.

    dimensions: all, or some with commas between.

    Raises:
      ValueError: there is no such perturbation, or none of this suite.
    """
    chosen = _chosen("--pro", dimensions, files.PRO_DIMENSIONS)
    _check_perturbed("--pro", env.suite)
    suites = [env.suite, *(f"{env.suite}_{dimension}" for dimension in chosen)]
    count = len(files.tasks(env.suite))
    tasks = []
    for place in range(len(suites)):
        tasks += [place * count + task for task in env.tasks]
    return {"env.suite": ",".join(suites), "env.tasks": tuple(tasks)}


def with_plus(env: page.Env, dimensions: str) -> dict[str, object]:
    """Fields that play all tasks of LIBERO-Plus that perturb a suite of LIBERO's, each once.

    dimensions: all that can be played, or some with commas between.

    Raises:
      ValueError: there is no such perturbation, or it needs LIBERO-Plus's own assets.
    """
    known = plus.DIMENSIONS
    if folders(env).plus_assets is not None:
        known += plus.NEED_ASSETS
    for dimension in dimensions.split(","):
        if dimension in plus.NEED_ASSETS and dimension not in known:
            raise ValueError(
                f"--plus {dimension} needs LIBERO-Plus's own assets, which no package has; "
                f"{plus_assets.REMEDY}, or choose some of: {', '.join(known)}"
            )
    chosen = _chosen("--plus", dimensions, known)
    _check_perturbed("--plus", env.suite)
    if env.tasks:
        raise ValueError(
            f"env.tasks={env.tasks} are not LIBERO-Plus's, which numbers its own; leave env.tasks"
            f" empty, or name one of its suites in env.suite"
        )
    suites = [f"{env.suite}_plus_{dimension}" for dimension in chosen]
    # One start state for each task: there is nothing to hold out.
    return {"env.suite": ",".join(suites), "env.split": "published"}


def _chosen(flag: str, dimensions: str, known: tuple[str, ...]) -> tuple[str, ...]:
    if dimensions == "all":
        return known
    chosen = tuple(dimensions.split(","))
    if not set(chosen) <= set(known) or len(set(chosen)) < len(chosen):
        raise base.unknown(flag, dimensions, ("all", *known))
    return chosen


def _check_perturbed(flag: str, suite: str) -> None:
    suites = sorted(set(files.PERTURBED.values()))
    if suite not in suites:
        raise base.unknown(f"{flag} of env.suite", suite, suites)


def folders(env: page.Env) -> files.Folders:
    """Where the perturbed suites of a configuration lie."""
    return perturbed_data.folders(env.pro_files, env.plus_files, env.plus_assets)


def data(env: page.Env) -> dict[str, dict[str, str]]:
    """Which files the suites among these that are not LIBERO's own are played from, by suite."""
    others = [suite for suite in files.members(env.suite) if suite not in files.OWN_FILES]
    return {suite: perturbed_data.identity(suite, folders(env)) for suite in others}


# ---- the table --------------------------------------------------------------------------------


def table(suite: str, results: Sequence[stream.Result]) -> dict[str, dict]:
    """Rates by suite, of LIBERO-PRO's that perturb another one of the list and of these others.

    Returns:
      {suite: {"perturbs": suite or None, "successes", "episodes", "rate", "low", "high",
      "thrown": episodes, "difference": see report.paired_difference, or None}}; {} where the
      list has no such suites.
    """
    members = files.members(suite)
    if not set(members) & files.PRO_SUITES.keys():
        return {}
    played = _by_suite(suite, results)
    rows = {}
    for original in members:
        perturbed = [own for own in members if files.PRO_SUITES.get(own) == original]
        if not perturbed or not played[original]:
            continue
        rows[original] = _row(played[original]) | {"perturbs": None, "difference": None}
        for own in perturbed:
            if played[own]:
                difference = _difference(played[own], played[original])
                row = _row(played[own]) | {"perturbs": original, "difference": difference}
                rows[own] = row
    return rows


def as_text(rows: Mapping[str, Mapping]) -> Iterator[str]:
    """The table for a terminal; nothing where there are no rows."""
    if not rows:
        return
    lines = []
    for name, row in rows.items():
        difference = row["difference"]
        compared = ""
        if difference:
            compared = f"{report.interval_text(difference)} {difference['pairs']:>4} pairs"
        lines.append((name, report.counts_text(row), compared, str(row["thrown"])))
    yield columns.aligned([*lines, columns.RULE], HEADER)
    yield "intervals of 95 %: Wilson; differences paired by task and start state (Newcombe)"


def _by_suite(suite: str, results: Sequence[stream.Result]) -> dict[str, dict]:
    """{suite: {(task in it, start state): Result}} of the episodes that were not lost."""
    tasks = files.tasks(suite)
    found = collections.defaultdict(dict)
    for result in results:
        if not result.lost:
            task = tasks[result.episode.task]
            found[task.suite][task.number, result.episode.init_state] = result
    return found


def _row(played: Mapping[Pair, stream.Result]) -> dict[str, float]:
    successes = sum(result.success for result in played.values())
    thrown = sum(result.thrown for result in played.values())
    return report.rate(successes, len(played)) | {"thrown": thrown}


def _difference(
    perturbed: Mapping[Pair, stream.Result], original: Mapping[Pair, stream.Result]
) -> dict[str, float] | None:
    """Of the episodes that both have; None where they share none."""
    shared = perturbed.keys() & original.keys()
    outcomes = [(perturbed[pair].success, original[pair].success) for pair in shared]
    return report.paired_difference(collections.Counter(outcomes)) if outcomes else None
