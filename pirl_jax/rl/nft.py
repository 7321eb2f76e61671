"""The loss of NFT on arrays: labels, preference between two energies, and the average that plays.

E+ is how badly the policy, moved further from the one that played, predicts a stored step; E- how
badly its mirror image does.  A good row (label 1) wants E+ smaller, a bad one (label 0) E-.  Knows
no network and no denoise step (policy/mirror.py); as in losses.py a row of weight 0 does not exist.
"""

import chex
import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from pirl_jax.rl import losses

# Means over part of the rows, which add up as sums: metric, and the share of those rows.
OF_PART = {"E_pos_positive": "positive", "E_neg_negative": "negative"}


def labels(advantage: Array | np.ndarray, clip: float) -> Array | np.ndarray:
    """r in [0, 1] of a group advantage: (A + c) / (2c), with A clipped to +-c."""
    return (advantage.clip(-clip, clip) + clip) / (2 * clip)


def nft(
    e_pos: Array,
    e_neg: Array,
    label_B: Array,
    weight_B: Array,
    *,
    form: str,
    dpo_beta: float = 1.0,
    scale: float = 1.0,
    held: tuple[Array, Array] | None = None,
    normalizer: Array | None = None,
) -> tuple[Array, dict[str, Array]]:
    """NFT's loss, to be minimised; r = label, y = 2r - 1, b = dpo_beta.

        dpo   softplus(b y (E+ - E-) / 2)
        mse   scale (r E+ + (1 - r) E-);  where r = 1/2 a KL to the policy that played is left

    Args:
      e_pos, e_neg: [B,...], several energies of each row.
      weight_B: how much a row counts, however many energies it has.
      scale: label clip over beta, for labels that are mapped from advantages.
      held: mse: E+ and E- with a shorter change; where their loss is larger, it counts.
      normalizer: what sum(w * L) is divided by; None: sum(w).

    Returns: loss, metrics.
    """
    chex.assert_equal_shape([e_pos, e_neg])
    valid = losses.spread(weight_B > 0, e_pos.shape)
    weight = losses.spread(weight_B, e_pos.shape) / e_pos[0].size
    label = jnp.where(valid, losses.spread(label_B, e_pos.shape), 0.5)
    e_pos = jnp.where(valid, e_pos, 0.0)
    e_neg = jnp.where(valid, e_neg, 0.0)
    logit = 0.5 * dpo_beta * (2 * label - 1) * (e_pos - e_neg)
    is_held = jnp.zeros_like(valid)
    if form == "dpo":
        loss = jax.nn.softplus(logit)
    else:
        loss = scale * (label * e_pos + (1 - label) * e_neg)
        if held is not None:
            held_pos, held_neg = held
            near = scale * (label * held_pos + (1 - label) * held_neg)
            is_held = valid & (near > loss)
            loss = jnp.where(is_held, jax.lax.stop_gradient(near), loss)
    normalizer = weight_B.sum() if normalizer is None else normalizer
    metrics = _metrics(e_pos, e_neg, label, valid, logit)
    metrics["clip_loss_frac"] = mean(is_held, weight_B)
    return losses.weighted_mean(loss, weight, normalizer), metrics


def mean(x: Array, weight_B: Array) -> Array:
    """Over the rows that exist, as a metric: without gradient."""
    valid = losses.spread(weight_B > 0, x.shape)
    x = jnp.where(valid, jax.lax.stop_gradient(x).astype(jnp.float32), 0.0)
    return losses.weighted_mean(x, valid.astype(jnp.float32))


def _metrics(
    e_pos: Array, e_neg: Array, label: Array, valid: Array, logit: Array
) -> dict[str, Array]:
    count = valid.astype(jnp.float32)
    positive = valid & (label > 0.5)
    negative = valid & (label < 0.5)
    metrics = {
        "E_pos_mean": e_pos,
        "E_neg_mean": e_neg,
        "delta_E_mean": e_pos - e_neg,
        "pref_acc": (logit < 0) & valid,
        "preference": jnp.abs(2 * label - 1),
        "positive": positive,
        "negative": negative,
        "E_pos_positive": jnp.where(positive, e_pos, 0.0),
        "E_neg_negative": jnp.where(negative, e_neg, 0.0),
    }
    metrics = jax.tree.map(lambda x: x.astype(jnp.float32), jax.lax.stop_gradient(metrics))
    return {name: losses.weighted_mean(x, count) for name, x in metrics.items()}


def over_parts(metrics: dict) -> dict:
    """Turn what nft sums over the good and over the bad rows into means over these rows."""
    found = dict(metrics)
    for name, share in OF_PART.items():
        found[name] = metrics[name] / np.maximum(metrics[share], 1e-12)
    return found


# ---- the average that plays ----------------------------------------------------------------------


def share(schedule: tuple[float, float, float, float], curve: str, iteration: int | Array) -> Array:
    """tau: the average that plays becomes (1 - tau) average + tau policy after an iteration.

    schedule: (first share, last share, first iteration, last iteration).  curve: a line of CURVES
    between the two; before and after it is constant.
    """
    first, last, start, end = schedule
    passed = jnp.asarray(iteration, jnp.float32) - start
    # Without length it is a jump.
    progress = jnp.clip(passed / (end - start), 0.0, 1.0) if end > start else 1.0 * (passed >= 0)
    return first + (last - first) * CURVES[curve](progress)


def _line(progress: Array) -> Array:
    return progress


def _half_cosine(progress: Array) -> Array:
    return 0.5 * (1 - jnp.cos(jnp.pi * progress))


CURVES = {"linear": _line, "cosine": _half_cosine}
