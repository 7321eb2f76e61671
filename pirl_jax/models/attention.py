"""Attention of many query heads to few key heads, computed by whatever the device does best."""

import functools
import logging
from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from pirl_jax.core import mesh as meshes

log = logging.getLogger(__name__)

# Finite, so that a query without any valid key gets uniform attention instead of NaN; such rows are
# never read.
_MASKED = -2.3819763e38


class Sight(NamedTuple):
    """Which keys a query sees: those whose rank is at most its own.

    Two vectors where a mask would be a matrix for every head and layer: they are compared where
    the logits are, and the result is written nowhere.
    """

    query_BT: Array  # int32
    key_BS: Array

    @property
    def mask_BTS(self) -> Array:
        return self.key_BS[:, None, :] <= self.query_BT[:, :, None]


def attend(
    q_BTNh: Array,
    k_BSKh: Array,
    v_BSKh: Array,
    sight: Sight,
    implementation: str,
) -> Array:
    """Query head n reads key head n // G; q is scaled already.

    Logits and softmax in float32.  Returns [B,T,N,h].

    implementation: a line of IMPLEMENTATIONS, or auto: the fastest that computes the right numbers
      here.
    """
    if implementation == "auto":
        implementation = fastest(q_BTNh.shape[-1], str(q_BTNh.dtype))
    return IMPLEMENTATIONS[implementation](q_BTNh, k_BSKh, v_BSKh, sight)


def fastest(head_dim: int, dtype: str) -> str:
    """The fastest implementation on the devices that the program is traced for.

    A GPU that is not at hand (a program compiled for another machine) cannot be asked: XLA's.
    """
    if meshes.platform() != "gpu":
        return "xla"
    if jax.default_backend() != "gpu":
        log.info(
            "attention by XLA: no GPU is here to try cuDNN on; attention=cudnn takes it untried"
        )
        return "xla"
    return tried(head_dim, dtype)


@functools.cache
def tried(head_dim: int, dtype: str) -> str:
    """Tries cuDNN's fused attention, forward and backward, on a case of a few tokens.

    A query without keys is among them.  It exists on some NVIDIA GPUs, for some head dimensions, in
    16 bits; what it refuses is said in the log.
    """
    with jax.ensure_compile_time_eval():  # the caller may be in the middle of a trace
        try:
            error = difference("cudnn", head_dim, dtype)
        except (NotImplementedError, RuntimeError) as reason:  # the libraries' ways to say no
            log.info(
                "attention by XLA: cuDNN refuses head_dim %d in %s (%s)", head_dim, dtype, reason
            )
            return "xla"
    # bfloat16 rounds to 1/256; values and gradients here are of size 1.
    if not error < 0.05:
        log.warning(
            "attention by XLA: cuDNN is off by %.3g for head_dim %d in %s", error, head_dim, dtype
        )
        return "xla"
    return "cudnn"


def difference(implementation: str, head_dim: int, dtype: str) -> float:
    """Largest difference to xla over the outputs that are read and all gradients.

    inf where one is not finite.
    """
    draw = np.random.default_rng(0)
    inputs = []
    for heads in (8, 1, 1):  # of queries, keys, values
        values = draw.standard_normal((2, 16, heads, head_dim))
        inputs.append(jnp.asarray(values, dtype))
    inputs[0] *= head_dim**-0.5
    valid_BT = np.arange(16)[None] < np.array([[16], [11]])
    query_BT = jnp.where(valid_BT, 0, -1)
    sight = Sight(query_BT, -query_BT)  # a query without keys sees none

    def outcome(name: str) -> list[np.ndarray]:
        """Output and gradients."""

        def total(*inputs: Array) -> tuple[Array, Array]:
            out_BTNh = attend(*inputs, sight, name).astype(jnp.float32)
            read_BTNh = jnp.where(valid_BT[:, :, None, None], out_BTNh, 0.0)
            return (read_BTNh**2).sum() / 2, read_BTNh

        grad = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))
        grads, out = grad(*inputs)
        return [np.asarray(x, np.float32) for x in (out, *grads)]

    errors = []
    for ours, theirs in zip(outcome(implementation), outcome("xla"), strict=True):
        size = max(1.0, np.abs(theirs).max())
        errors.append(np.abs(ours - theirs).max() / size)
    return float(np.nan_to_num(max(errors), nan=np.inf))


@jax.custom_jvp
def _masked(logits_BTS: Array, sight: Sight) -> Array:
    return jnp.where(sight.mask_BTS, logits_BTS, _MASKED)


@_masked.defjvp
def _masked_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    """The gradient passes: a softmax follows, whose own is 0 where the probability is 0.

    (And that of a query without keys is 0 because it is never read.)
    """
    return _masked(*primals), tangents[0]


def _products(q_BTNh: Array, k_BSKh: Array, v_BSKh: Array, sight: Sight) -> Array:
    """Two batched matrix products with a softmax between them."""
    B, T, N, h = q_BTNh.shape
    K = k_BSKh.shape[2]
    G = N // K
    # One batch axis (B K) and one row axis (T G): plain batched matrix products, which XLA on CPU
    # runs twice as fast.
    q = q_BTNh.reshape(B, T, K, G, h).swapaxes(1, 2).reshape(B * K, T * G, h)
    k = k_BSKh.swapaxes(1, 2).reshape(B * K, -1, h)
    v = v_BSKh.swapaxes(1, 2).reshape(B * K, -1, h)
    of_rows = Sight(
        jnp.repeat(jnp.repeat(sight.query_BT, G, axis=1), K, axis=0),
        jnp.repeat(sight.key_BS, K, axis=0),
    )

    logits = jnp.einsum("BTh,BSh->BTS", q, k, preferred_element_type=jnp.float32)
    probs = jax.nn.softmax(_masked(logits, of_rows), axis=-1)
    mixed = jnp.einsum("BTS,BSh->BTh", probs.astype(q.dtype), v)
    return mixed.reshape(B, K, T, G, h).swapaxes(1, 2).reshape(B, T, N, h)


def _library(
    q_BTNh: Array, k_BSKh: Array, v_BSKh: Array, sight: Sight, implementation: str
) -> Array:
    return jax.nn.dot_product_attention(
        q_BTNh,
        k_BSKh,
        v_BSKh,
        mask=sight.mask_BTS[:, None],
        scale=1.0,
        implementation=implementation,
    )


IMPLEMENTATIONS = {"xla": _products, "cudnn": functools.partial(_library, implementation="cudnn")}
