"""The PPO objective on arrays: clipped surrogate, clipped value loss, entropy, and their metrics.

Every function takes a `weight` of the shape of its rows: 0 marks a row that must not exist
(padding, after the end of a trajectory), anything else says how much the row counts: loss = sum(w *
L) / normalizer, with normalizer = sum(w) by default.

Metrics are plain means over the rows with weight > 0.  A row of weight 0 may hold anything, NaN
and inf included: it is replaced before the arithmetic, so that neither the loss nor its gradient
sees it.
Knows no network and no rollout.
"""

from collections.abc import Iterable

import chex
import jax
from jax import Array
import jax.numpy as jnp

from pirl_jax.core import bounds

# Axes of [B,I,a] that are summed.
LOG_PROB_LEVELS = {"chunk": (-2, -1), "action": (-1,), "token": ()}


def reduce_log_prob(log_prob_BIa: Array, level: str) -> Array:
    """Sum the log-probs of action entries.

    One ratio per chunk [B], per action [B,I] or per token [B,I,a].

    Raises: ValueError for an unknown level.
    """
    if level not in LOG_PROB_LEVELS:
        raise bounds.unknown("logprob_type", level, LOG_PROB_LEVELS)
    chex.assert_rank(log_prob_BIa, 3)
    return log_prob_BIa.sum(axis=LOG_PROB_LEVELS[level])


def spread(x_B: Array, shape: tuple[int, ...]) -> Array:
    """One number per row -> one for each of a row's entries: ratios, or energies."""
    return jnp.broadcast_to(x_B.reshape((-1,) + (1,) * (len(shape) - 1)), shape)


def weighted_mean(x: Array, weight: Array, normalizer: Array | None = None) -> Array:
    """sum(w * x) / normalizer over all entries; 0 when nothing has weight.

    x must be finite where the weight is 0.
    """
    normalizer = weight.sum() if normalizer is None else normalizer
    return (x * weight).sum() / jnp.where(normalizer > 0, normalizer, 1.0)


def clipped_surrogate(
    log_prob: Array,
    old_log_prob: Array,
    advantage: Array,
    weight: Array,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
    log_ratio_range: tuple[float | None, float | None] = (None, None),
    normalizer: Array | None = None,
    importance: Array | None = None,
) -> tuple[Array, dict[str, Array]]:
    """PPO's clipped policy loss (Schulman et al. 2017, eq. 7), to be minimised.

        r = exp(log_prob - old_log_prob)
        L = max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high))
        dual clip c > 1 (Ye et al. 2020, eq. 5):  L = min(L, c |A|), which bounds L where A < 0
        importance w (decoupled PPO, Hilton et al. 2021):  L = w L, of the ratios with w > 0

    Args:
      log_prob, old_log_prob, advantage, weight: one shape, [B] or finer (see reduce_log_prob).
      log_ratio_range: bounds (low, high) of the log-ratio before exp; None is no bound.
      normalizer: what sum(w * L) is divided by; a microbatch passes the sum of weights of its whole
        minibatch.
      importance: probability under the policy of old_log_prob over that under the policy that
        sampled; where it is 0 the ratio is masked: it counts in no denominator, and to the metrics
        it has not moved.  None: the two policies are one.

    Returns: loss, metrics.  approx_kl is the estimator k1 = mean(-log r), approx_kl3 =
    mean(r - 1 - log r), which is never negative (Schulman 2020, "Approximating KL divergence").
    """
    chex.assert_equal_shape([log_prob, old_log_prob, advantage, weight])
    valid = weight > 0
    if importance is not None:
        chex.assert_equal_shape([importance, weight])
        importance = jnp.where(valid, importance, 0.0)
        # Not `> 0`: what is not a number must reach the loss, or nobody would find it.
        weight = jnp.where(importance == 0, 0.0, weight)
    counts = weight > 0
    log_ratio = jnp.where(counts, log_prob - old_log_prob, 0.0)
    log_ratio = jnp.clip(log_ratio, *log_ratio_range)
    advantage = jnp.where(counts, advantage, 0.0)
    ratio = jnp.exp(log_ratio)

    plain = -advantage * ratio
    clipped = -advantage * jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    loss = jnp.maximum(plain, clipped)
    dual = jnp.zeros_like(valid)
    if dual_clip is not None:
        bound = dual_clip * jnp.abs(advantage)
        dual = bound < loss
        loss = jnp.minimum(loss, bound)
    metrics = _of_ratios(log_ratio, ratio, plain < clipped, dual, valid)
    if importance is not None:
        loss = loss * importance
    return weighted_mean(loss, weight, normalizer), metrics


def _of_ratios(
    log_ratio: Array, ratio: Array, clipped: Array, dual: Array, valid: Array
) -> dict[str, Array]:
    """Means over the ratios that exist, and the largest."""

    def mean(x: Array) -> Array:
        x = jax.lax.stop_gradient(x).astype(jnp.float32)
        return weighted_mean(x, valid.astype(jnp.float32))

    # Without gradient: a metric must not cost a backward pass.
    return {
        "approx_kl": mean(-log_ratio),
        "approx_kl3": mean(jnp.where(valid, ratio - 1.0 - log_ratio, 0.0)),
        "pg_clipfrac": mean(clipped & valid),
        "dual_clipfrac": mean(dual & valid),
        "ratio": mean(jnp.where(valid, ratio, 0.0)),
        "ratio_max_dev": jax.lax.stop_gradient(jnp.abs(ratio - 1.0).max()),
    }


def huber(error: Array, delta: float) -> Array:
    """0.5 e^2 where |e| < delta, else delta (|e| - delta / 2).

    Not optax's: its gradient is (e - delta) + delta inside, which rounds small errors to multiples
    of delta's last bit (5e-7 for delta = 10).
    """
    size = jnp.abs(error)
    return jnp.where(size < delta, 0.5 * error**2, delta * (size - 0.5 * delta))


def clipped_value(
    value: Array,
    old_value: Array,
    return_: Array,
    weight: Array,
    value_clip: float,
    huber_delta: float,
    normalizer: Array | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Value loss with a clipped step (PPO2).

        L = max(huber(R - V), huber(R - V_old - clip(V - V_old, +-value_clip)))

    Returns: loss, metrics.  value_clip_ratio is the fraction of rows whose value moved further than
    value_clip.
    """
    chex.assert_equal_shape([value, old_value, return_, weight])
    valid = weight > 0
    value = jnp.where(valid, value, 0.0)
    old_value = jnp.where(valid, old_value, 0.0)
    return_ = jnp.where(valid, return_, 0.0)
    move = value - old_value
    near_value = old_value + jnp.clip(move, -value_clip, value_clip)
    plain = huber(return_ - value, huber_delta)
    clipped = huber(return_ - near_value, huber_delta)
    loss = jnp.maximum(plain, clipped)
    beyond = ((jnp.abs(move) > value_clip) & valid).astype(jnp.float32)
    clip_ratio = weighted_mean(beyond, valid.astype(jnp.float32))
    return weighted_mean(loss, weight, normalizer), {"value_clip_ratio": clip_ratio}


def mean_entropy(entropy: Array, weight: Array, normalizer: Array | None = None) -> Array:
    """Weighted mean of the rows' entropies: the loss subtracts entropy_bonus times this."""
    chex.assert_equal_shape([entropy, weight])
    return weighted_mean(jnp.where(weight > 0, entropy, 0.0), weight, normalizer)


def explained_variance_sums(value: Array, return_: Array, weight: Array) -> Array:
    """[5] float32: count, sum R, sum R^2, sum e, sum e^2 with e = R - V, over rows with weight > 0.

    Sums of disjoint sets of rows add up; a mean of explained variances of minibatches would mean
    nothing.
    """
    chex.assert_equal_shape([value, return_, weight])
    valid = (weight > 0).astype(jnp.float32)
    return_ = jnp.where(weight > 0, return_, 0.0)
    error = jnp.where(weight > 0, return_ - value, 0.0)
    sums = [valid.sum(), return_.sum(), (return_**2).sum(), error.sum(), (error**2).sum()]
    return jnp.stack(sums)


def explained_variance(sums: Iterable[float]) -> float:
    """1 - Var(R - V) / Var(R) from added explained_variance_sums.

    1 is a perfect critic, 0 one that predicts the mean, negative one that is worse than that.  NaN
    for fewer than two rows or a constant return.
    """
    count, return_sum, return_square, error_sum, error_square = (float(x) for x in sums)
    if count < 2:
        return float("nan")
    return_spread = return_square - return_sum**2 / count
    error_spread = error_square - error_sum**2 / count
    if return_spread <= 1e-6 * return_square:  # what float32 sums leave of an exact 0
        return float("nan")
    return 1.0 - error_spread / return_spread
