"""Advantages and returns on [C,E] grids (decision-major), in numpy: they are small, live on the host and want float64.

Knows neither models nor simulators.  A grid row c of column e is one decision; a column may hold several trajectories
one after the other, because a slot starts its next episode as soon as one ends.
"""

import chex
import numpy as np

from pirl_jax.core import types


def gae(
    reward_CE,
    value_CE,
    next_value_CE,
    terminated_CE,
    truncated_CE,
    gamma,
    gae_lambda,
    valid_CE=None,
):
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16), with termination and truncation kept apart.

        delta_c = r_c + gamma * V(s'_c) * (1 - terminated_c) - V(s_c)
        A_c     = delta_c + gamma * lambda * (1 - terminated_c or truncated_c) * A_{c+1}
        return  = A + V

    Args:
      reward_CE: sum of the rewards of the decision's executed actions.
      value_CE: value of the observation that the decision was made on.
      next_value_CE: value of the successor: of the final observation where truncated, ignored where terminated.
      terminated_CE, truncated_CE: the trajectory ended in this decision, by success / by the time limit.
      gamma, gae_lambda: discount and trace decay per decision (not per control step).
      valid_CE: False where no decision was made.  Such rows give 0 and whatever they hold reaches no other row.

    Returns: advantage_CE, return_CE, float32, not normalised.
    """
    grids = [
        np.asarray(x) for x in (reward_CE, value_CE, next_value_CE, terminated_CE, truncated_CE)
    ]
    chex.assert_equal_shape(grids)
    reward, value, next_value, terminated, truncated = grids
    valid = np.ones(reward.shape, bool) if valid_CE is None else np.asarray(valid_CE, bool)
    chex.assert_shape(valid, reward.shape)
    terminated, truncated = terminated.astype(bool), truncated.astype(bool)
    # Selection, not multiplication by 0: a missing successor value may be NaN.
    bootstrap = np.where(terminated, 0.0, next_value.astype(np.float64))
    delta = np.where(valid, reward + gamma * bootstrap - value, 0.0)
    follow = ~(terminated | truncated) & valid

    advantage = np.zeros(reward.shape, np.float64)
    trace_E = np.zeros(reward.shape[1:], np.float64)
    for c in reversed(range(reward.shape[0])):
        trace_E = delta[c] + gamma * gae_lambda * np.where(follow[c], trace_E, 0.0)
        advantage[c] = trace_E
    returns = np.where(valid, advantage + value, 0.0)
    return advantage.astype(np.float32), returns.astype(np.float32)


def normalize(x, valid=None, eps=1e-5, total=lambda x: x):
    """(x - mean) / (std + eps) with mean and unbiased std over the valid entries; 0 elsewhere.

    A single valid entry has no spread and becomes 0; no valid entry gives all 0.  total: adds up a number over the hosts whose
    entries are normalised together; called three times by each, whatever it holds.
    """
    x = np.asarray(x)
    valid = np.ones(x.shape, bool) if valid is None else np.asarray(valid, bool)
    chex.assert_equal_shape([x, valid])
    values = x[valid].astype(np.float64)
    out = np.zeros(x.shape, np.float32)
    count = total(values.size)
    mean = total(values.sum()) / max(count, 1)
    std = np.sqrt(total(np.square(values - mean).sum()) / max(count - 1, 1))
    out[valid] = (values - mean) / (std + eps)
    return out


def group_relative(score_E, group_E, method="grpo", valid_E=None, eps=1e-6):
    """Advantage of every episode: its score against those of its group, by a line of GROUP_BASELINES.

    Args:
      score_E: sum of the rewards of each episode up to and including its end.
      group_E: integer id of each episode's group: the episodes that share (task, init state).
      valid_E: False for an episode that was lost; it gets 0 and no other episode sees it.

    Returns: advantage_E, float32; 0 for a group of one and for a group of equal scores.
    """
    if method not in GROUP_BASELINES:
        raise types.unknown("adv_type", method, GROUP_BASELINES)
    score, group = np.asarray(score_E, np.float64), np.asarray(group_E)
    valid = np.ones(score.shape, bool) if valid_E is None else np.asarray(valid_E, bool)
    chex.assert_equal_shape([score, group, valid])
    out = np.zeros(score.shape, np.float32)
    for name in np.unique(group):
        member = (group == name) & valid
        if member.sum() > 1:
            out[member] = GROUP_BASELINES[method](score[member], eps)
    return out


GROUP_BASELINES = {
    # GRPO (Shao et al. 2024, eq. 3), unbiased std
    "grpo": lambda score, eps: normalize(score, eps=eps),
    # RLOO (Ahmadian et al. 2024): against the mean of the others, s - (sum - s) / (G - 1)
    "rloo": lambda score, eps: (score - score.mean()) * len(score) / (len(score) - 1),
    # Dr. GRPO (Liu et al. 2025): without the division, which favours groups that are nearly always or nearly never solved
    "dr_grpo": lambda score, eps: score - score.mean(),
}
