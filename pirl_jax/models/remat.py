"""What the backward pass keeps of a transformer block, and what it computes again.

One policy for both towers.  Knows no network.
"""

from collections.abc import Callable

import jax

from pirl_jax.core import bounds
from pirl_jax.models import attention, linear


def wrap(block: Callable, policy: str) -> Callable:
    """`block` is the body of a scan over layers, `policy` a line of POLICIES.

    Values and gradients stay the same, memory and time do not.

    Raises: ValueError for an unknown policy.
    """
    if policy not in POLICIES:
        raise bounds.unknown("remat", policy, POLICIES)
    if policy == "none":
        return block
    # prevent_cse keeps the compiler from undoing the recomputation; nothing undoes a scan's body.
    return jax.checkpoint(block, policy=POLICIES[policy], prevent_cse=False)


def unroll(depth: int) -> int:
    """Layers per turn of a scan over `depth` layers.

    A few layers are unrolled: a loop keeps XLA on CPU from using its threads inside the body (1.4
    times slower); for many layers compile time counts more.
    """
    return depth if depth <= 4 else 1


POLICIES = {
    "none": None,  # keep every activation
    # keep the outputs of weight matrices and of attention
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(linear.SIDE_BY_SIDE, attention.ATTENDED),
    ),
    "full": jax.checkpoint_policies.nothing_saveable,  # keep block inputs only
}
LEAST = "full"  # of memory
# Of an update, in units of the fastest.  What `none` writes and reads again costs more than what
# `dots` computes again, which is next to nothing (docs/benchmarks.md, docs/targets.md); that of
# `full` is its arithmetic.
COST = {"none": 1.1, "dots": 1.0, "full": 1.24}
FASTEST = "dots"
