"""Whether a cell has reached what it was played for: judged from results, never by hand.

Cells are compared on the seeds that both have.  Where results are missing a goal is open.
"""

from collections.abc import Callable, Mapping, Sequence
import statistics
from typing import Any, NamedTuple

from pirl_jax.evidence import cells

Result = Mapping[str, Any]
BySeed = dict[int, Result]
VERDICTS = {True: "reached", False: "not reached", None: ""}


class Verdict(NamedTuple):
    """What was wanted; whether it is so, None where nobody knows yet."""

    words: str
    reached: bool | None


def judged(cell: cells.Cell, found: Sequence[Result]) -> str:
    """ "90 %: reached; disjoint intervals: not reached", of the results of all cells."""
    own = of_cell(cell.name, found)
    told = []
    for kind, value in cell.goals.items():
        verdict = GOALS[kind](value, own, found)
        reached = VERDICTS[verdict.reached]
        told.append(f"{verdict.words}: {reached}" if reached else verdict.words)
    return "; ".join(told)


def of_cell(name: str, found: Sequence[Result]) -> BySeed:
    """By seed."""
    return {one["seed"]: one for one in found if one["cell"] == name}


def mean(own: BySeed) -> float:
    """Success after training, over the seeds."""
    return statistics.mean(map(_after, own.values()))


def _after(one: Result) -> float:
    return one["after"]["all"]["rate"]


def _shared(own: BySeed, other: BySeed) -> tuple[BySeed, BySeed]:
    """Both, of the seeds that both have."""
    seeds = sorted(own.keys() & other.keys())
    mine = {seed: own[seed] for seed in seeds}
    theirs = {seed: other[seed] for seed in seeds}
    return mine, theirs


def _least(value: float, own: BySeed, found: Sequence[Result]) -> Verdict:
    reached = mean(own) >= value if own else None
    return Verdict(f"{100 * value:.0f} %", reached)


def _disjoint(value: bool, own: BySeed, found: Sequence[Result]) -> Verdict:
    apart = []
    for one in own.values():
        before = one["before"]["all"]
        after = one["after"]["all"]
        apart.append(before["high"] < after["low"])
    reached = all(apart) if apart else None
    return Verdict("disjoint intervals", reached)


def _above(value: str, own: BySeed, found: Sequence[Result]) -> Verdict:
    mine, theirs = _shared(own, of_cell(value, found))
    reached = mean(mine) > mean(theirs) if mine else None
    return Verdict(f"above `{value}`", reached)


def _near(value: tuple[str, float], own: BySeed, found: Sequence[Result]) -> Verdict:
    name, points = value
    mine, theirs = _shared(own, of_cell(name, found))
    reached = mean(mine) >= mean(theirs) - points if mine else None
    return Verdict(f"within {100 * points:.0f} points of `{name}` or better", reached)


def _in_interval(value: str, own: BySeed, found: Sequence[Result]) -> Verdict:
    mine, theirs = _shared(own, of_cell(value, found))
    inside = []
    for seed, one in mine.items():
        low = theirs[seed]["after"]["all"]["low"]
        inside.append(_after(one) >= low)
    reached = all(inside) if inside else None
    return Verdict(f"in the interval of `{value}` or above", reached)


def _no_task_falls(value: bool, own: BySeed, found: Sequence[Result]) -> Verdict:
    risen = []
    for one in own.values():
        before = _by_task(one["before"])
        after = _by_task(one["after"])
        risen += [after[task] >= before[task] for task in before]
    reached = all(risen) if risen else None
    return Verdict("no task below its start", reached)


def _by_task(evaluation: Mapping[str, Any]) -> dict[int, float]:
    rates = {}
    for task in evaluation["tasks"]:
        rates[task["task"]] = task["rate"]["rate"]
    return rates


GOALS: dict[str, Callable[..., Verdict]] = {
    "least": _least,
    "disjoint": _disjoint,
    "above": _above,
    "near": _near,
    "in_interval": _in_interval,
    "no_task_falls": _no_task_falls,
}
