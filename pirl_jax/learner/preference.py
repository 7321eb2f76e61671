"""NFT's part of the objective: from mirrored policies and advantages to the terms of the loss.

Refuses to know the network and what else the loss adds up (objective.py).
"""

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from pirl_jax.core import page, types
from pirl_jax.policy import mirror
from pirl_jax.rl import losses, nft


def terms(
    cfg: page.Algorithm,
    options: page.Nft,
    pair: mirror.Mirrored,
    advantage_B: jax.Array,
    weight_B: jax.Array,
) -> tuple[jax.Array, dict, dict]:
    """-> the loss, summed over the rows, its metrics (means over the rows that exist), and the
    metrics of which the largest counts."""
    one = jnp.ones(())
    loss, metrics = nft.nft(
        pair.e_pos,
        pair.e_neg,
        labels(cfg, options, advantage_B),
        weight_B,
        form=options.form,
        dpo_beta=options.dpo_beta,
        scale=options.label_clip / options.beta,
        held=(pair.held_pos, pair.held_neg) if options.clip_ratio else None,
        normalizer=one,
    )
    exists_B = weight_B > 0
    if options.drift_coef:
        square_B = jnp.where(exists_B, pair.squared_drift.mean(_inner(pair)), 0.0)
        loss += options.drift_coef * losses.weighted_mean(square_B, weight_B, one)
    metrics |= {
        "delta_v_norm": nft.mean(pair.drift, weight_B),
        "clip_frac": nft.mean(pair.is_held, weight_B),
    }
    if options.target == "xnext":
        metrics["z_squared"] = nft.mean(pair.z_squared, weight_B)
        # Of the chunk, exact at the steps that are learned from, where PPO has two estimates.
        kl = nft.mean(pair.kl.sum(_inner(pair)), weight_B)
        metrics |= {"approx_kl": kl, "approx_kl3": kl}
    farthest_B = jax.lax.stop_gradient(pair.drift.max(_inner(pair)))
    return loss, metrics, {"delta_v": jnp.where(exists_B, farthest_B, 0.0).max()}


def one_step(chain: types.Chain, u_B: np.ndarray) -> types.Chain:
    """Of each row the stochastic step of this number alone; its log_prob stays that of all."""
    row_B = np.arange(len(u_B))

    def of_step(x_BU: Array | None) -> Array | None:
        return None if x_BU is None else x_BU[row_B, u_B][:, None]

    return chain.replace(
        x=of_step(chain.x),
        x_next=of_step(chain.x_next),
        j=of_step(chain.j),
        velocity=of_step(chain.velocity),
        std=of_step(chain.std),
    )


def drawn(chain: types.Chain, generator: np.random.Generator) -> types.Chain:
    """The same, each step as probable, on the host."""
    host = jax.tree.map(np.asarray, chain)
    rows, steps = host.j.shape
    return one_step(host, generator.integers(0, steps, rows))


def _inner(pair: mirror.Mirrored) -> tuple[int, ...]:
    """All axes but the rows."""
    return tuple(range(1, pair.drift.ndim))


def labels(cfg: page.Algorithm, options: page.Nft, advantage_B: jax.Array) -> jax.Array:
    """r in [0, 1]: the score itself, or the advantage over a group, clipped and mapped."""
    if cfg.adv_type == "raw":
        return advantage_B.clip(0, 1)
    return nft.labels(advantage_B, options.label_clip)
