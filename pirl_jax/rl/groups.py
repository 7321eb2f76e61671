"""Which groups of episodes carry a signal, and how many fresh ones to play.  A group: the episodes of one (task, init state).

Knows scores and group ids; refuses to know how episodes are played.
"""

import chex
import numpy as np


def of_episodes(num_episodes: int, group_size: int) -> np.ndarray:
    """Group id of each episode [E]: group g is episodes g G to g G + G - 1."""
    return np.arange(num_episodes) // group_size


def within(score_E, group_E, lower: float, upper: float, valid_E=None) -> np.ndarray:
    """Reward filter [E]: True for the episodes of groups whose mean score lies in [lower, upper], bounds included.

    Lost episodes (valid_E False) are False and do not enter the mean.
    """
    mean_E, valid = _of_group(score_E, group_E, valid_E, np.mean)
    return valid & (lower <= mean_E) & (mean_E <= upper)


def informative(score_E, group_E, valid_E=None) -> np.ndarray:
    """[E]: True for the episodes of groups whose scores differ; the others have no group-relative advantage."""
    spread_E, valid = _of_group(score_E, group_E, valid_E, np.ptp)
    return valid & (spread_E > 0)


def _of_group(score_E, group_E, valid_E, statistic):
    """The statistic of each episode's group over its valid episodes, NaN where there is none; and valid_E."""
    score, group = np.asarray(score_E, np.float64), np.asarray(group_E)
    valid = np.ones(score.shape, bool) if valid_E is None else np.asarray(valid_E, bool)
    chex.assert_equal_shape([score, group, valid])
    out = np.full(score.shape, np.nan)
    for name in np.unique(group[valid]):
        out[group == name] = statistic(score[(group == name) & valid])
    return out, valid


def fresh(wanted: int, usable: int, played: int, budget: int) -> int:
    """Dynamic sampling (DAPO): how many fresh groups to play next, until `wanted` usable ones are there or the budget is spent.

    Args: wanted: groups an update should learn from.  usable: informative ones so far.  played: groups played so far.
      budget: groups one iteration may play.
    """
    return max(0, min(wanted - usable, budget - played))
