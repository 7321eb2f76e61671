"""Decoupled PPO: what an update needs of rows that older parameters played.

The loss clips the ratio to the policy that the update begins with, not to the one that played
(docs/algorithms.md).  So their log-probs and values are computed under the former, exactly, in one
forward pass over the stored steps before the first optimiser step; what the two policies differ by
becomes a weight.  Rows of the newest parameters keep the bits that the rollout stored, and weight
1.  Refuses to know who played when.
"""

from collections.abc import Callable, Generator

import jax
import numpy as np

from pirl_jax.core import mesh as meshes
from pirl_jax.core import page, types
from pirl_jax.core import rows as context_rows
from pirl_jax.learner import objective
from pirl_jax.rl import importance, minibatch

# (params, chain, context rows) -> log_prob_BIa, value_B; jitted, whole on every host.
Evaluate = Callable[[dict, types.Chain, object], tuple[jax.Array, jax.Array]]
# Yields what is on its way, returns a rollout and its metrics.
Passes = Generator[jax.Array, None, tuple[types.Rollout, dict[str, float]]]


def applies(cfg: page.Algorithm) -> bool:
    """Whether rows of older parameters are looked at again.

    A clone imitates what was played whoever played it, and NFT's rows hold the velocity that they
    are compared with.
    """
    return cfg.loss == "ppo" and cfg.importance == "recompute"


def catching_up(
    evaluate: Evaluate,
    params: dict,
    rollout: types.Rollout,
    version: int,
    cfg: page.Algorithm,
    mesh: jax.sharding.Mesh,
) -> Passes:
    """A rollout as objective.with_advantages takes it, and metrics (rl/importance.py).

    Yields after each microbatch of the pass what the devices are computing; where nothing is older,
    and where the loss has no use for it, nothing is.  All hosts must take part, each with its own
    rows.

    Args:
      params: those that the update begins with.
      version: the iteration they are of; rows of another (rollout.version_R) are looked at again.
    """
    if not applies(cfg):
        return rollout, {}
    stale_R = np.asarray(rollout.version_R) != version
    size = cfg.microbatch_rows(mesh.size) // jax.process_count()
    index_MB, keep_MB = _blocks(rollout, np.flatnonzero(stale_R), size)
    found = []
    for index_B in index_MB:
        batch = _put(rollout, index_B, mesh)
        found.append(evaluate(params, batch.chain, batch.context))
        yield found[-1][1]
    log_prob_RIa = np.array(rollout.chain.log_prob)
    value_R = np.array(rollout.chain.value)
    for index_B, keep_B, outputs in zip(index_MB, keep_MB > 0, found, strict=True):
        log_prob_BIa, value_B = (meshes.own_rows(x, mesh) for x in jax.device_get(outputs))
        log_prob_RIa[index_B[keep_B]] = log_prob_BIa[keep_B]
        value_R[index_B[keep_B]] = value_B[keep_B]
    log_weight = importance.log_weights(
        log_prob_RIa, np.asarray(rollout.chain.log_prob), cfg.logprob_type
    )
    weight = importance.masked(log_weight, cfg.importance_cap)
    metrics = importance.metrics(log_weight, cfg.importance_cap, meshes.gather)
    chain = rollout.chain.replace(log_prob=log_prob_RIa, value=value_R, importance=weight)
    return _with_values(rollout, stale_R, value_R).replace(chain=chain), metrics


# ---- parts of a rollout --------------------------------------------------------------------------


def _blocks(rollout: types.Rollout, row_R: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of this host, `size` at a time -> index [M,B], keep [M,B], with M that of all hosts.

    Every device computes on the rows that it holds, where it holds any.
    """
    parts = context_rows.by_device(rollout.context, row_R)
    rows_of_parts = np.array(meshes.gather([len(part) for part in parts]))
    most_rows = int(rows_of_parts.max())
    if not most_rows:
        return np.zeros((0, size), np.int32), np.zeros((0, size), np.float32)
    # In which order they come is all the same.
    order = np.random.default_rng(0)
    index_1MB, keep_1MB = minibatch.side_by_side(
        order, parts, size, multiple_of=size, most_rows=most_rows
    )
    return index_1MB[0], keep_1MB[0]


def _put(
    rollout: types.Rollout, index_B: np.ndarray, mesh: jax.sharding.Mesh
) -> objective.Minibatch:
    """Rows on the devices, before there are advantages."""
    nothing_R = np.zeros(len(rollout.decision_R), np.float32)
    data = objective.Minibatch(
        context=rollout.context,
        chain=rollout.chain,
        advantage=nothing_R,
        return_=nothing_R,
        weight=nothing_R,
    )
    rows = objective.take(data, index_B, np.ones(len(index_B), np.float32))
    return objective.put(rows, mesh)


def _with_values(rollout: types.Rollout, stale_R: np.ndarray, value_R: np.ndarray) -> types.Rollout:
    """Values of these rows, also where the decision before bootstraps from them.

    The observation after the last decision has no row: its value stays the one that was played
    with.
    """
    c = np.asarray(rollout.decision_R)[stale_R]
    e = np.asarray(rollout.episode_R)[stale_R]
    value_CE = np.array(rollout.value_CE)
    next_value_CE = np.array(rollout.next_value_CE)
    value_CE[c, e] = value_R[stale_R]
    follows = c > 0
    next_value_CE[c[follows] - 1, e[follows]] = value_R[stale_R][follows]
    return rollout.replace(value_CE=value_CE, next_value_CE=next_value_CE)


# ---- what the learner does with the weights ------------------------------------------------------


def scales(data: objective.Minibatch, index_MB: np.ndarray, keep_MB: np.ndarray) -> np.ndarray:
    """[M] the weight of a minibatch's rows over that of its rows that are not masked, of all hosts.

    The loss of a minibatch is divided by the former; times this, the policy's part of it is over
    the latter.  1 where nothing is masked, or everything is.
    """
    if data.chain.importance is None:
        return np.ones(len(index_MB))
    is_kept = np.asarray(data.chain.importance) != 0
    kept_R = is_kept.reshape(len(is_kept), -1).mean(1)
    weight_MB = np.asarray(data.weight, np.float64)[index_MB] * keep_MB
    sums_2M = np.stack([weight_MB.sum(1), (weight_MB * kept_R[index_MB]).sum(1)])
    total_M, kept_M = sum(meshes.gather(sums_2M))
    return np.where(kept_M > 0, total_M / np.where(kept_M > 0, kept_M, 1.0), 1.0)


def scaled(batch: objective.Minibatch, scale: float) -> objective.Minibatch:
    """Rows of a minibatch on the host, their weights times its entry of `scales`."""
    if batch.chain.importance is None:
        return batch
    weights = batch.chain.importance * np.float32(scale)
    return batch.replace(chain=batch.chain.replace(importance=weights))
