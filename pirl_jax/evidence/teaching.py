"""How much to teach a policy that reinforcement learning begins with: a search, on the record.

Of several teachings the one is taken whose success is nearest to the middle of the band that is
wanted.  A teaching is tried on start states that training uses; what is held out decides nothing.
Refuses to know how a policy is taught and evaluated.
"""

from collections.abc import Callable, Mapping
import dataclasses
import pathlib
from typing import Any

from pirl_jax.core import atomic, outside
from pirl_jax.evidence import cells

REMEDY = "remove it, and the teachings are tried again"


@dataclasses.dataclass(frozen=True)
class Taught:
    """What the search has found."""

    rung: int  # of the ladder
    trials: list[dict[str, Any]]  # {"rung", "settings", "rate"}, in the order of trying


def search(
    start: cells.Start, trial: Callable[[int], Mapping[str, float]], record: pathlib.Path
) -> Taught:
    """The teaching of a start.

    Args:
      trial: teaches and evaluates a rung of the ladder -> an entry of report.success_table.
      record: JSON of what was tried; a search that is interrupted goes on from it.
    """
    tried = _read(record)
    low = 0
    high = len(start.ladder) - 1
    while low <= high:
        rung = (low + high) // 2
        if rung not in tried:
            settings = dict(start.ladder[rung])
            tried[rung] = {"rung": rung, "settings": settings, "rate": dict(trial(rung))}
            record.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_json(record, list(tried.values()))
        rate = tried[rung]["rate"]["rate"]
        least, most = start.band
        if least <= rate <= most:
            break
        if rate < least:
            low = rung + 1
        else:
            high = rung - 1
    middle = sum(start.band) / 2
    nearest = min(tried.values(), key=lambda one: abs(one["rate"]["rate"] - middle))
    return Taught(nearest["rung"], list(tried.values()))


def _read(record: pathlib.Path) -> dict[int, dict[str, Any]]:
    if not record.exists():
        return {}
    found = {}
    for row in outside.read_json(record, list, REMEDY):
        outside.part(row, "rate.rate", float, record, REMEDY)
        found[outside.part(row, "rung", int, record, REMEDY)] = row
    return found
