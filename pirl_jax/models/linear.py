"""Weight contractions over rows, and the affine layer made of one.

One place, because how rows are laid out decides how fast the gradient is.  Knows no network.
"""

import functools

import jax
from jax import Array
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from pirl_jax.core import mesh as meshes
from pirl_jax.core import spec

SIDE_BY_SIDE = "side_by_side"  # name of its products, for remat.py
ROWS_PER_WIDTH = 2  # from so many rows on side_by_side makes products one by one


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


def computed_once(x: Array) -> Array:
    """x, which a product reads.

    XLA:TPU would compute it again for each of its tiles.
    """
    return jax.lax.optimization_barrier(x) if meshes.platform() == "tpu" else x


def rows(x_BTD: Array, w_DW: Array) -> Array:
    """Every row times a matrix."""
    return einsum("BTD,DW->BTW", x_BTD, w_DW)


def merged(x_RD: Array, w_DW: Array) -> Array:
    """The same of rows and tokens as one axis."""
    return meshes.by_rows(jnp.einsum("RD,DW->RW", meshes.by_rows(x_RD), w_DW))


def side_by_side(x_RD: Array, w_ZDW: Array) -> tuple[Array, ...]:
    """Z products of the same rows, with matrices that are stored as one array, in the dtype of the
    rows.

    Of many rows (ROWS_PER_WIDTH), one by one, and so their gradients: as one array these would be
    laid out with Z last, and copied twice.  Of few rows, at once: a slice of matrices is a copy.
    """
    ys = _pairs(meshes.by_rows(x_RD), w_ZDW)
    # The name says to recomputation (remat.py) that this is the product of a weight all the same.
    return tuple(checkpoint_name(meshes.by_rows(y_RW), SIDE_BY_SIDE) for y_RW in ys)


def _are_many(x_RD: Array) -> bool:
    """Whether a copy of each matrix is less than what its own product saves: to write its result,
    and to read it again, before what follows it.

    Where matrices are split over devices, they come together, and their gradients apart, at once.
    """
    rows = meshes.rows_per_device(len(x_RD))
    return rows >= ROWS_PER_WIDTH * x_RD.shape[1] and not meshes.is_split()


@jax.custom_vjp
def _pairs(x_RD: Array, w_ZDW: Array) -> tuple[Array, ...]:
    w_ZDW = w_ZDW.astype(x_RD.dtype)
    if _are_many(x_RD):
        return tuple(jnp.einsum("RD,DW->RW", x_RD, w_DW) for w_DW in w_ZDW)
    # Z is a batch axis of both, since as an axis of the weight alone it makes XLA transpose it.
    return tuple(jnp.einsum("ZRD,ZDW->ZRW", _repeated(x_RD, w_ZDW), w_ZDW))


def _pairs_forward(x_RD: Array, w_ZDW: Array) -> tuple:
    return _pairs(x_RD, w_ZDW), (x_RD, w_ZDW)


def _pairs_backward(kept: tuple[Array, Array], slopes: tuple[Array, ...]) -> tuple[Array, Array]:
    """Those by the matrices are summed over rows, and not rounded to the dtype of these."""
    x_RD, w_ZDW = kept
    low_ZDW = w_ZDW.astype(x_RD.dtype)
    into = functools.partial(jnp.einsum, preferred_element_type=w_ZDW.dtype)
    if _are_many(x_RD):
        of_x = [
            jnp.einsum("RW,DW->RD", y_RW, w_DW) for y_RW, w_DW in zip(slopes, low_ZDW, strict=True)
        ]
        of_w = jnp.stack([into("RD,RW->DW", x_RD, y_RW) for y_RW in slopes])
        return functools.reduce(jnp.add, of_x), of_w
    y_ZRW = meshes.by_rows(jnp.stack(slopes), 1)
    of_x_ZRD = meshes.by_rows(jnp.einsum("ZRW,ZDW->ZRD", y_ZRW, low_ZDW), 1)
    of_w = into("ZRD,ZRW->ZDW", meshes.by_rows(_repeated(x_RD, w_ZDW), 1), y_ZRW)
    return of_x_ZRD.sum(0), of_w


def _repeated(x_RD: Array, w_ZDW: Array) -> Array:
    return jnp.broadcast_to(x_RD, (len(w_ZDW), *x_RD.shape))


_pairs.defvjp(_pairs_forward, _pairs_backward)
