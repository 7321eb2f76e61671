"""What the backward pass keeps of a transformer block, and what it computes again.  One policy for both towers."""

from collections.abc import Callable

import jax


def wrap(block: Callable, policy: str) -> Callable:
    """`block` is the body of a scan over layers; values and gradients stay the same, memory and time do not."""
    if policy not in POLICIES:
        raise ValueError(f"unknown remat policy {policy!r}; choose one of {sorted(POLICIES)}")
    if policy == "none":
        return block
    # prevent_cse guards against the compiler undoing the recomputation; a scan body cannot be undone anyway.
    return jax.checkpoint(block, policy=POLICIES[policy], prevent_cse=False)


def unroll(depth: int) -> int:
    """Layers per turn of a scan over `depth` layers.  A few layers are unrolled: a loop keeps XLA on CPU from using its threads
    inside the body (1.4 times slower); for many layers compile time counts more."""
    return depth if depth <= 4 else 1


POLICIES = {
    "none": None,  # keep every activation
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # keep the outputs of weight matrices
    "full": jax.checkpoint_policies.nothing_saveable,  # keep block inputs only
}
