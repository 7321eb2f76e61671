"""Rows that an older policy sampled: how much each counts in an update of today's policy.

The importance w = pi_v / pi_b is the probability of what was played under pi_v, the policy that an
update begins with, over that under pi_b, the policy that played it.  Both are known before the
first step, so that everything here is host arrays.  Refuses to know the loss (losses.py) and where
the two probabilities come from.
"""

from collections.abc import Callable

import numpy as np

from pirl_jax.rl import losses

# exp of more is infinite in float32, of less 0.
LARGEST_LOG = 88.0
SMALLEST_LOG = -87.0


def log_weights(
    log_prob_RIa: np.ndarray, behavior_log_prob_RIa: np.ndarray, level: str
) -> np.ndarray:
    """log w, one for each probability ratio of a row: [R], [R,I] or [R,I,a]."""
    difference_RIa = log_prob_RIa.astype(np.float64) - behavior_log_prob_RIa.astype(np.float64)
    log_weight = losses.reduce_log_prob(difference_RIa, level)
    return np.clip(log_weight, SMALLEST_LOG, LARGEST_LOG)


def masked(log_weight: np.ndarray, cap: float) -> np.ndarray:
    """w in float32, and 0 where it is above the cap: such a row teaches the policy nothing.

    What is not a number stays so, for the update to find it.
    """
    weight = np.exp(log_weight)
    return np.where(weight > cap, 0.0, weight).astype(np.float32)


def metrics(
    log_weight: np.ndarray, cap: float, gather: Callable[[np.ndarray], list[np.ndarray]]
) -> dict[str, float]:
    """How far the policies that played lie from the one that an update begins with.

    Args:
      log_weight: of all ratios of this host; each counts the same.
      gather: an array of this host -> those of all hosts.

    Returns: async/importance_mean of those within the cap, async/importance_max of all,
    async/importance_masked_share, async/ess = (sum w)^2 / (n sum w^2) with 0 for those that are
    masked, which is the share of equally weighted ratios that would tell as much, and
    async/behavior_kl, the mean of w - 1 - log w, an estimate of KL(pi_b, pi_v) that is never
    negative.
    """
    weight = np.exp(log_weight)
    used = np.where(weight > cap, 0.0, weight)
    counts = [weight.size, np.count_nonzero(weight > cap)]
    sums = [used.sum(), (used**2).sum(), (weight - 1.0 - log_weight).sum()]
    hosts = np.stack(gather(np.array([*counts, *sums, weight.max(initial=0.0)])))
    total, beyond, weight_sum, square_sum, kl_sum = hosts[:, :5].sum(0)
    total = max(total, 1.0)
    return {
        "async/importance_mean": float(weight_sum / max(total - beyond, 1.0)),
        "async/importance_max": float(hosts[:, 5].max()),
        "async/importance_masked_share": float(beyond / total),
        "async/ess": float(weight_sum**2 / (total * square_sum)) if square_sum else 0.0,
        "async/behavior_kl": float(kl_sum / total),
    }
