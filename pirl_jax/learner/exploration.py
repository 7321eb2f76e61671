"""How far exploration moves what is executed: measured on a sample of a rollout's decisions.

Refuses to know the sampler (policy/flow.py displacement), and what to do about it.
"""

from collections.abc import Callable

import jax
import numpy as np

from pirl_jax.core import rng
from pirl_jax.core import rows as context_rows
from pirl_jax.learner import objective


def metrics(
    displacement: Callable,
    params: dict,
    data: objective.Minibatch,
    size: int,
    key: jax.Array,
    mesh: jax.sharding.Mesh,
) -> dict[str, float]:
    """rollout/moved, and rollout/moved_step_J of the decisions whose stochastic step is J.

    Root mean squares over executed entries, in normalised units.  Where every step is stochastic
    there is no division by steps.

    Args:
      displacement: jitted (params, chain, context rows) -> [B], the same on all hosts.
      params: those that the rollout was played with.
      data: each process passes its own rows.
      size: rows of the sample, of all hosts together.
    """
    shuffled_R = rng.generator(key).permutation(len(data.weight))
    parts = context_rows.by_device(data.context, shuffled_R)
    # Always as many rows: every size would be a program of its own.
    each = size // jax.process_count() // len(parts)
    chosen = [np.resize(part if len(part) else shuffled_R, each) for part in parts]
    index_B = np.concatenate(chosen)
    sample = objective.take(data, index_B, np.ones(len(index_B), np.float32))
    sample = objective.put(sample, mesh)
    moved_B, j_BU = jax.device_get(displacement(params, sample.chain, sample.context))
    found = {"rollout/moved": _root_mean_square(moved_B)}
    if j_BU.shape[1] == 1:
        for j in np.unique(j_BU):
            found[f"rollout/moved_step_{j}"] = _root_mean_square(moved_B[j_BU[:, 0] == j])
    return found


def _root_mean_square(x: np.ndarray) -> float:
    return float(np.sqrt((x.astype(np.float64) ** 2).mean()))
