"""Measurements that take turns: what slows the machine down slows all of them.

A ratio of interleaved repeats does not drift with the machine.  Knows nothing of what is measured.
"""

from collections.abc import Callable, Iterable
import statistics

Measure = Callable[[str, int], float]  # (name of what is measured, number of the repeat) -> value


def values(names: Iterable[str], measure: Measure, repeats: int) -> dict[str, list[float]]:
    """All values of every name, in the order of the repeats."""
    names = list(names)
    measured = {name: [] for name in names}
    for repeat in range(repeats):
        for name in names:
            measured[name].append(measure(name, repeat))
    return measured


def medians(names: Iterable[str], measure: Measure, repeats: int) -> dict[str, float]:
    """The median of every name."""
    measured = values(names, measure, repeats)
    return {name: statistics.median(of_name) for name, of_name in measured.items()}
