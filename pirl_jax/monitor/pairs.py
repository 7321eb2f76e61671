"""Two policies on the same start states: which is better, and how sure that is.

Episodes of equal names are compared with each other, so that hard and easy starts cancel out.
Takes plain dicts; knows no file.
"""

import collections
from collections.abc import Hashable, Mapping
from typing import NamedTuple

import numpy as np
from scipy import stats

from pirl_jax.monitor import report

RESAMPLES = 1000
SEED = 0  # the same episodes have the same interval every time


class Outcome(NamedTuple):
    """What is compared of an episode."""

    success: bool
    steps: int  # control steps


def compared(
    first: Mapping[Hashable, Outcome], second: Mapping[Hashable, Outcome]
) -> dict[str, float] | None:
    """How much better the second is; None where they share no episode.

    Returns:
      "pairs", "rate", "low", "high" of the difference of success (Newcombe, 95 %), "p" (exact
      McNemar, two-sided), "gained" and "lost" episodes, and "steps", "steps_low", "steps_high" of
      the difference of control steps where both succeed, if there are such (bootstrap, 95 %).
    """
    shared = [name for name in first if name in second]
    if not shared:
        return None
    outcomes = collections.Counter((second[name].success, first[name].success) for name in shared)
    gained = outcomes[True, False]
    lost = outcomes[False, True]
    found = report.paired_difference(outcomes) | {"p": mcnemar(gained, lost)}
    solved = [name for name in shared if first[name].success and second[name].success]
    changes = [second[name].steps - first[name].steps for name in solved]
    return found | {"gained": gained, "lost": lost} | _mean(changes)


def mcnemar(gained: int, lost: int) -> float:
    """Probability of so uneven a change, or a more uneven one, if neither were better.

    Q. McNemar 1947, "Note on the sampling error of the difference between correlated proportions
    or percentages"; exact, since few episodes change.
    """
    if not gained + lost:
        return 1.0
    return float(stats.binomtest(gained, gained + lost).pvalue)


def _mean(changes: list[int]) -> dict[str, float]:
    """Of control steps, with its interval."""
    if not changes:
        return {}
    mean = float(np.mean(changes))
    low = mean
    high = mean
    if len(set(changes)) > 1:  # else there is nothing to resample
        drawn = stats.bootstrap(
            (np.asarray(changes, float),),
            np.mean,
            n_resamples=RESAMPLES,
            method="percentile",
            rng=np.random.default_rng(SEED),
        )
        low = float(drawn.confidence_interval.low)
        high = float(drawn.confidence_interval.high)
    return {"steps": mean, "steps_low": low, "steps_high": high}
