"""Which groups of episodes carry a signal, and how many fresh ones to play.

A group: the episodes of one (task, init state).  Knows scores and group ids; refuses to know how
episodes are played.
"""

from collections.abc import Callable

import chex
import numpy as np


def of_episodes(num_episodes: int, group_size: int) -> np.ndarray:
    """Group id of each episode [E]: the first `group_size` episodes are group 0, and so on."""
    return np.arange(num_episodes) // group_size


def within(
    score_E: np.ndarray,
    group_E: np.ndarray,
    lower: float,
    upper: float,
    valid_E: np.ndarray | None = None,
) -> np.ndarray:
    """Reward filter [E]: True for the episodes of groups whose mean score lies in [lower, upper].

    Bounds included.  Lost episodes (valid_E False) are False and do not enter the mean.
    """
    mean_E = _of_group(score_E, group_E, valid_E, np.mean)
    return (lower <= mean_E) & (mean_E <= upper)


def informative(
    score_E: np.ndarray, group_E: np.ndarray, valid_E: np.ndarray | None = None
) -> np.ndarray:
    """[E]: True for the episodes of groups whose scores differ.

    The others have no group-relative advantage.
    """
    spread_E = _of_group(score_E, group_E, valid_E, np.ptp)
    return spread_E > 0


def _of_group(
    score_E: np.ndarray,
    group_E: np.ndarray,
    valid_E: np.ndarray | None,
    statistic: Callable[[np.ndarray], float],
) -> np.ndarray:
    """The statistic of each valid episode's group over its valid episodes, NaN for the others.

    Every comparison with NaN is False, so a lost episode is neither within bounds nor informative.
    """
    score_E = np.asarray(score_E, np.float64)
    group_E = np.asarray(group_E)
    if valid_E is None:
        valid_E = np.ones(score_E.shape, bool)
    valid_E = np.asarray(valid_E, bool)
    chex.assert_equal_shape([score_E, group_E, valid_E])
    out_E = np.full(score_E.shape, np.nan)
    for group in np.unique(group_E[valid_E]):
        member_E = (group_E == group) & valid_E
        out_E[member_E] = statistic(score_E[member_E])
    return out_E


def fresh(wanted: int, usable: int, played: int, budget: int) -> int:
    """Dynamic sampling (DAPO): how many fresh groups to play next.

    Until `wanted` usable ones are there or the budget is spent.

    Args:
      wanted: groups an update should learn from.
      usable: informative ones so far.
      played: groups played so far.
      budget: groups one iteration may play.
    """
    return max(0, min(wanted - usable, budget - played))
