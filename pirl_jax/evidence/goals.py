"""Whether a cell has reached what it was played for: judged from results, never by hand.

Cells are compared on the seeds that both have.  Where results are missing a goal is open.
"""

from collections.abc import Callable, Mapping, Sequence
import statistics
from typing import Any

from pirl_jax.evidence import cells

Result = Mapping[str, Any]
VERDICTS = {True: "reached", False: "not reached", None: ""}


def judged(cell: cells.Cell, found: Sequence[Result]) -> str:
    """ "90 %: reached; disjoint intervals: not reached", of the results of all cells."""
    own = of_cell(cell.name, found)
    told = []
    for kind, value in cell.goals.items():
        words, reached = GOALS[kind](value, own, found)
        told.append(": ".join(filter(None, (words, VERDICTS[reached]))))
    return "; ".join(told)


def of_cell(name: str, found: Sequence[Result]) -> dict[int, Result]:
    """By seed."""
    return {one["seed"]: one for one in found if one["cell"] == name}


def mean(own: Mapping[int, Result]) -> float:
    """Success after training, over the seeds."""
    return statistics.mean(one["after"]["all"]["rate"] for one in own.values())


def _shared(
    own: Mapping[int, Result], other: Mapping[int, Result]
) -> tuple[dict[int, Result], dict[int, Result]] | None:
    """Both, of the seeds that both have."""
    seeds = own.keys() & other.keys()
    if not seeds:
        return None
    return {seed: own[seed] for seed in seeds}, {seed: other[seed] for seed in seeds}


def _least(value: float, own: dict[int, Result], found: Sequence[Result]) -> tuple[str, Any]:
    return f"{100 * value:.0f} %", mean(own) >= value if own else None


def _disjoint(value: bool, own: dict[int, Result], found: Sequence[Result]) -> tuple[str, Any]:
    apart = [one["before"]["all"]["high"] < one["after"]["all"]["low"] for one in own.values()]
    return "disjoint intervals", all(apart) if apart else None


def _above(value: str, own: dict[int, Result], found: Sequence[Result]) -> tuple[str, Any]:
    both = _shared(own, of_cell(value, found))
    return f"above `{value}`", mean(both[0]) > mean(both[1]) if both else None


def _near(
    value: tuple[str, float], own: dict[int, Result], found: Sequence[Result]
) -> tuple[str, Any]:
    name, points = value
    both = _shared(own, of_cell(name, found))
    words = f"within {100 * points:.0f} points of `{name}` or better"
    return words, mean(both[0]) >= mean(both[1]) - points if both else None


def _in_interval(value: str, own: dict[int, Result], found: Sequence[Result]) -> tuple[str, Any]:
    both = _shared(own, of_cell(value, found))
    words = f"in the interval of `{value}` or above"
    if both is None:
        return words, None
    pairs = zip(both[0].values(), both[1].values(), strict=True)
    return words, all(
        one["after"]["all"]["rate"] >= other["after"]["all"]["low"] for one, other in pairs
    )


def _no_task_falls(value: bool, own: dict[int, Result], found: Sequence[Result]) -> tuple[str, Any]:
    risen = []
    for one in own.values():
        before = {task["task"]: task["rate"]["rate"] for task in one["before"]["tasks"]}
        after = {task["task"]: task["rate"]["rate"] for task in one["after"]["tasks"]}
        risen += [after[task] >= before[task] for task in before]
    return "no task below its start", all(risen) if risen else None


GOALS: dict[str, Callable] = {
    "least": _least,
    "disjoint": _disjoint,
    "above": _above,
    "near": _near,
    "in_interval": _in_interval,
    "no_task_falls": _no_task_falls,
}
