"""Weight contractions over rows.  One place, because how rows are laid out decides how fast the gradient is."""

import jax
import jax.numpy as jnp


def einsum(equation: str, x: jax.Array, w: jax.Array) -> jax.Array:
    """jnp.einsum(equation, x, w) for x with two leading row axes (batch, token) that w does not have.

    The two are merged into one axis: XLA on CPU has no fast kernel for the weight gradient of a contraction over two axes
    (5 to 7 times slower at the sizes of the embedded suite); elsewhere the merge costs nothing.
    """
    rows, weight = equation[:2], equation.split(",")[1].split("->")[0]
    assert not set(rows) & set(weight), f"{equation}: w has a row axis"
    out = equation.split("->")[1]
    y = jnp.einsum(equation.replace(rows, "R"), x.reshape(-1, *x.shape[2:]), w)
    at = out.index(rows)
    return y.reshape(*y.shape[:at], *x.shape[:2], *y.shape[at + 1 :])
