"""Advantages and returns on [C,E] grids (decision-major).

In numpy: they are small, live on the host and want float64.  Knows neither models nor simulators.
A grid row c of column e is one decision; a column may hold several trajectories one after the
other, because a slot starts its next episode as soon as one ends.
"""

from collections.abc import Callable

import chex
import numpy as np

from pirl_jax.core import bounds


def gae(
    reward_CE: np.ndarray,
    value_CE: np.ndarray,
    next_value_CE: np.ndarray,
    terminated_CE: np.ndarray,
    truncated_CE: np.ndarray,
    gamma: float,
    gae_lambda: float,
    valid_CE: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16).

    Termination and truncation are kept apart:

        delta_c = r_c + gamma * V(s'_c) * (1 - terminated_c) - V(s_c)
        A_c     = delta_c + gamma * lambda * (1 - terminated_c or truncated_c) * A_{c+1}
        return  = A + V

    Args:
      reward_CE: sum of the rewards of the decision's executed actions.
      value_CE: value of the observation that the decision was made on.
      next_value_CE: value of the successor: of the final observation where truncated, ignored where
        terminated.
      terminated_CE, truncated_CE: the trajectory ended in this decision, by success / by the time
        limit.
      gamma, gae_lambda: discount and trace decay per decision (not per control step).
      valid_CE: False where no decision was made.  Such rows give 0, and whatever they hold reaches
        no other row.

    Returns: advantage_CE, return_CE, float32, not normalised.
    """
    reward_CE = np.asarray(reward_CE)
    value_CE = np.asarray(value_CE)
    next_value_CE = np.asarray(next_value_CE)
    terminated_CE = np.asarray(terminated_CE).astype(bool)
    truncated_CE = np.asarray(truncated_CE).astype(bool)
    valid_CE = _validity(reward_CE, valid_CE)
    chex.assert_equal_shape(
        [reward_CE, value_CE, next_value_CE, terminated_CE, truncated_CE, valid_CE]
    )
    # Selection, not multiplication by 0: a missing successor value may be NaN.
    bootstrap_CE = np.where(terminated_CE, 0.0, next_value_CE.astype(np.float64))
    delta_CE = np.where(valid_CE, reward_CE + gamma * bootstrap_CE - value_CE, 0.0)
    goes_on_CE = ~(terminated_CE | truncated_CE) & valid_CE

    C, E = reward_CE.shape[0], reward_CE.shape[1:]
    advantage_CE = np.zeros((C, *E), np.float64)
    trace_E = np.zeros(E, np.float64)
    for c in reversed(range(C)):
        trace_E = delta_CE[c] + gamma * gae_lambda * np.where(goes_on_CE[c], trace_E, 0.0)
        advantage_CE[c] = trace_E
    return_CE = np.where(valid_CE, advantage_CE + value_CE, 0.0)
    return advantage_CE.astype(np.float32), return_CE.astype(np.float32)


def _validity(x: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
    """bool of the shape of x; all of it, if nothing is said."""
    return np.ones(x.shape, bool) if valid is None else np.asarray(valid, bool)


def _itself(x: float) -> float:
    return x


def normalize(
    x: np.ndarray,
    valid: np.ndarray | None = None,
    eps: float = 1e-5,
    total: Callable[[float], float] = _itself,
) -> np.ndarray:
    """(x - mean) / (std + eps) with mean and unbiased std over the valid entries; 0 elsewhere.

    A single valid entry has no spread and becomes 0; no valid entry gives all 0.

    total: adds up a number over the hosts whose entries are normalised together; each calls it
      three times, whatever it holds.
    """
    x = np.asarray(x)
    valid = _validity(x, valid)
    chex.assert_equal_shape([x, valid])
    values = x[valid].astype(np.float64)
    count = total(values.size)
    mean = total(values.sum()) / max(count, 1)
    spread = total(np.square(values - mean).sum())
    std = np.sqrt(spread / max(count - 1, 1))
    out = np.zeros(x.shape, np.float32)
    out[valid] = (values - mean) / (std + eps)
    return out


def group_relative(
    score_E: np.ndarray,
    group_E: np.ndarray,
    method: str = "grpo",
    valid_E: np.ndarray | None = None,
    eps: float = 1e-6,
) -> np.ndarray:
    """Advantage of every episode: its score against those of its group.

    Args:
      score_E: sum of the rewards of each episode up to and including its end.
      group_E: integer id of each episode's group: the episodes that share (task, init state).
      method: a line of GROUP_BASELINES.
      valid_E: False for an episode that was lost; it gets 0 and no other episode sees it.

    Returns: advantage_E, float32; 0 for a group of one and for a group of equal scores.

    Raises: ValueError for an unknown method.
    """
    if method not in GROUP_BASELINES:
        raise bounds.unknown("adv_type", method, GROUP_BASELINES)
    score_E = np.asarray(score_E, np.float64)
    group_E = np.asarray(group_E)
    valid_E = _validity(score_E, valid_E)
    chex.assert_equal_shape([score_E, group_E, valid_E])
    advantage_E = np.zeros(score_E.shape, np.float32)
    for group in np.unique(group_E):
        member_E = (group_E == group) & valid_E
        if member_E.sum() > 1:
            advantage_E[member_E] = GROUP_BASELINES[method](score_E[member_E], eps)
    return advantage_E


def _grpo(score_n: np.ndarray, eps: float) -> np.ndarray:
    """GRPO (Shao et al. 2024, eq. 3), unbiased std."""
    return normalize(score_n, eps=eps)


def _rloo(score_n: np.ndarray, eps: float) -> np.ndarray:
    """RLOO (Ahmadian et al. 2024).

    Against the mean of the others, s - (sum - s) / (n - 1).
    """
    n = len(score_n)
    return (score_n - score_n.mean()) * n / (n - 1)


def _dr_grpo(score_n: np.ndarray, eps: float) -> np.ndarray:
    """Dr. GRPO (Liu et al. 2025): without the division.

    That favours groups which are nearly always or nearly never solved.
    """
    return score_n - score_n.mean()


GROUP_BASELINES = {"grpo": _grpo, "rloo": _rloo, "dr_grpo": _dr_grpo}
