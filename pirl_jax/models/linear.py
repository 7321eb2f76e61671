"""Weight contractions over rows, and the affine layer made of one.

One place, because how rows are laid out decides how fast the gradient is.  Knows no network.
"""

from jax import Array, ad_checkpoint
import jax.numpy as jnp

from pirl_jax.core import mesh as meshes
from pirl_jax.core import spec

SIDE_BY_SIDE = "side_by_side"  # name of its products, for remat.py


def specs(
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    init: str | tuple = "zeros",
    *,
    inputs: int = 1,
    bias_init: str | tuple = "zeros",
    depth: int | None = None,
) -> dict:
    """Kernel and bias of an affine layer; `depth` of them stacked, if given.

    The first `inputs` axes of `shape` are contracted with the input; the bias has the others.
    """
    lead = () if depth is None else (depth,)
    lead_axes = () if depth is None else ("layers",)
    return {
        "kernel": spec.Spec((*lead, *shape), (*lead_axes, *axes), init),
        "bias": spec.Spec((*lead, *shape[inputs:]), (*lead_axes, *axes[inputs:]), bias_init),
    }


def affine(params: dict, x: Array, equation: str | None = None, *, is_batch: bool = True) -> Array:
    """Kernel and bias on x, in the wider of their dtypes.

    `equation` as in einsum; None is x @ kernel.  is_batch: the rows of x are those of a batch,
    which lie on different devices.
    """
    kernel = params["kernel"]
    if not is_batch:
        y = x @ kernel
    elif equation is None:
        y = meshes.by_rows(meshes.by_rows(x) @ kernel)
    else:
        y = einsum(equation, x, kernel)
    return add_bias(y, params["bias"])


def add_bias(y: Array, bias: Array) -> Array:
    """y + bias over the last axes of y; explicit, because rank promotion is an error here."""
    lead = (1,) * (y.ndim - bias.ndim)
    return y + bias.reshape(*lead, *bias.shape)


def einsum(equation: str, x: Array, w: Array) -> Array:
    """jnp.einsum(equation, x, w) for x with two leading row axes (batch, token) that w has not.

    The two are merged into one axis.  XLA on CPU has no fast kernel for the weight gradient of a
    contraction over two axes (5 to 7 times slower at the sizes of the embedded suite); elsewhere
    the merge costs nothing.

    Both x and the product lie by rows, and so do their gradients: said here, once, the partitioner
    never splits a product along the axes of a weight.
    """
    inputs, out = equation.split("->")
    x_letters, w_letters = inputs.split(",")
    rows = x_letters[:2]
    assert not set(rows) & set(w_letters), f"{equation}: w has a row axis"

    at = out.index(rows)
    merged_x = meshes.by_rows(x).reshape(-1, *x.shape[2:])
    y = meshes.by_rows(jnp.einsum(equation.replace(rows, "B"), merged_x, w), at)
    return y.reshape(*y.shape[:at], *x.shape[:2], *y.shape[at + 1 :])


def rows(x_BTD: Array, w_DW: Array) -> Array:
    """Every row times a matrix."""
    return einsum("BTD,DW->BTW", x_BTD, w_DW)


def merged(x_RD: Array, w_DW: Array) -> Array:
    """The same of rows and tokens as one axis."""
    return meshes.by_rows(jnp.einsum("RD,DW->RW", meshes.by_rows(x_RD), w_DW))


def side_by_side(x_ZRD: Array, w_ZDW: Array) -> Array:
    """Z products at once, with matrices that are stored as one array.

    Z is a batch axis of both, since as an axis of the weight alone it makes XLA transpose the
    weight for its gradient.
    """
    y_ZRW = jnp.einsum("ZRD,ZDW->ZRW", meshes.by_rows(x_ZRD, 1), w_ZDW)
    y_ZRW = meshes.by_rows(y_ZRW, 1)
    # The name says to recomputation (remat.py) that this is the product of a weight all the same.
    return ad_checkpoint.checkpoint_name(y_ZRW, SIDE_BY_SIDE)
