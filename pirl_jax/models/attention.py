"""Attention of many query heads to few key heads, computed by whatever the device does best."""

from collections.abc import Sequence
import functools
import logging
from typing import NamedTuple

import jax
from jax import Array
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
import numpy as np

from pirl_jax.core import mesh as meshes

log = logging.getLogger(__name__)

ATTENDED = "attended"  # name of what it keeps for its gradient, for remat.py

# Keys and values [B,S,K,h], or several after each other: a cache's, then a pass's own.
KeysValues = tuple[Array, Array]

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


def attend(q_BTNh: Array, seen: Sequence[KeysValues], sight: Sight, implementation: str) -> Array:
    """Query head n reads key head n // G; q is scaled already.

    Logits and softmax in float32.  Returns [B,T,N,h].

    seen: parts of the keys and values, in the order in which sight counts them.  No gradient is
      computed for those that nobody differentiates by.
    implementation: a line of IMPLEMENTATIONS, or auto: the fastest that computes the right numbers
      here.
    """
    if implementation == "auto":
        implementation = fastest(q_BTNh.shape[-1], str(q_BTNh.dtype))
    k_parts = [k_BSKh for k_BSKh, _ in seen]
    v_parts = [v_BSKh for _, v_BSKh in seen]
    return IMPLEMENTATIONS[implementation](q_BTNh, k_parts, v_parts, sight)


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

        def total(q_BTNh: Array, *seen: Array) -> tuple[Array, Array]:
            out_BTNh = attend(q_BTNh, [seen], sight, name).astype(jnp.float32)
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


def _products(
    q_BTNh: Array, k_parts: Sequence[Array], v_parts: Sequence[Array], sight: Sight
) -> Array:
    """Two batched matrix products with a softmax between them."""
    B, T, N, h = q_BTNh.shape
    K = k_parts[0].shape[2]
    G = N // K
    # One batch axis (B K) and one row axis (T G): plain batched matrix products, which XLA on CPU
    # runs twice as fast.
    q = q_BTNh.reshape(B, T, K, G, h).swapaxes(1, 2).reshape(B * K, T * G, h)
    k = tuple(x_BSKh.swapaxes(1, 2).reshape(B * K, -1, h) for x_BSKh in k_parts)
    v = tuple(x_BSKh.swapaxes(1, 2).reshape(B * K, -1, h) for x_BSKh in v_parts)
    of_rows = Sight(
        jnp.repeat(jnp.repeat(sight.query_BT, G, axis=1), K, axis=0),
        jnp.repeat(sight.key_BS, K, axis=0),
    )

    mixed = _attended(q, k, v, of_rows)
    return mixed.reshape(B, K, T, G, h).swapaxes(1, 2).reshape(B, T, N, h)


@jax.custom_vjp
def _attended(
    q_BTh: Array, k_parts: tuple[Array, ...], v_parts: tuple[Array, ...], sight: Sight
) -> Array:
    """softmax(q k) v of one head, [B,T,h].  Keys and values come in parts [B,S,h].

    Nothing of the size of the logits is kept for the gradient, whatever recomputation does: the
    probabilities are computed again from the largest logit and the sum of each row (Dao et al.,
    arXiv:2205.14135).  The gradient by each part is a product of its own, so that whoever needs
    those of the own keys alone does not compute those of a prefix, ten times as many.
    """
    return _attended_forward(q_BTh, k_parts, v_parts, sight)[0]


def _attended_forward(
    q_BTh: Array, k_parts: tuple[Array, ...], v_parts: tuple[Array, ...], sight: Sight
) -> tuple[Array, tuple]:
    logits_BTS = _logits(q_BTh, k_parts, sight)
    largest_BT1 = logits_BTS.max(-1, keepdims=True)
    total_BT1 = jnp.exp(logits_BTS - largest_BT1).sum(-1, keepdims=True)
    probs_BTS = _probabilities(logits_BTS, largest_BT1, total_BT1)
    mixed_BTh = jnp.einsum("BTS,BSh->BTh", probs_BTS.astype(q_BTh.dtype), _together(v_parts))
    # By name, for recomputation (remat.py).
    kept = [checkpoint_name(x, ATTENDED) for x in (mixed_BTh, largest_BT1, total_BT1)]
    return kept[0], (q_BTh, k_parts, v_parts, sight, *kept)


def _attended_backward(kept: tuple, slope_BTh: Array) -> tuple:
    q_BTh, k_parts, v_parts, sight, mixed_BTh, largest_BT1, total_BT1 = kept
    dtype = q_BTh.dtype
    probs_BTS = _probabilities(_logits(q_BTh, k_parts, sight), largest_BT1, total_BT1)
    of_probs_BTS = _widened("BTh,BSh->BTS", slope_BTh, _together(v_parts))
    # The sum over keys of probability times its slope.
    mean_BT1 = (slope_BTh.astype(jnp.float32) * mixed_BTh).sum(-1, keepdims=True)
    of_logits_BTS = (probs_BTS * (of_probs_BTS - mean_BT1)).astype(dtype)
    of_q_BTh = jnp.einsum("BTS,BSh->BTh", of_logits_BTS, _together(k_parts))
    of_k = _per_part(of_logits_BTS, q_BTh, k_parts)
    of_v = _per_part(probs_BTS.astype(dtype), slope_BTh, v_parts)
    return of_q_BTh, of_k, of_v, None


_attended.defvjp(_attended_forward, _attended_backward)


def _logits(q_BTh: Array, k_parts: tuple[Array, ...], sight: Sight) -> Array:
    """float32; a masked one has no probability, and so no gradient."""
    logits_BTS = _widened("BTh,BSh->BTS", q_BTh, _together(k_parts))
    return jnp.where(sight.mask_BTS, logits_BTS, _MASKED)


def _widened(equation: str, *inputs: Array) -> Array:
    return jnp.einsum(equation, *inputs, preferred_element_type=jnp.float32)


def _probabilities(logits_BTS: Array, largest_BT1: Array, total_BT1: Array) -> Array:
    return jnp.exp(logits_BTS - largest_BT1) / total_BT1


def _per_part(x_BTS: Array, y_BTh: Array, parts: tuple[Array, ...]) -> tuple[Array, ...]:
    """Sums over T of x y, for the keys of each part [B,S,h]."""
    found = []
    start = 0
    for part in parts:
        end = start + part.shape[1]
        found.append(jnp.einsum("BTS,BTh->BSh", x_BTS[..., start:end], y_BTh))
        start = end
    return tuple(found)


def _together(parts: Sequence[Array]) -> Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def _library(
    q_BTNh: Array,
    k_parts: Sequence[Array],
    v_parts: Sequence[Array],
    sight: Sight,
    implementation: str,
) -> Array:
    return jax.nn.dot_product_attention(
        q_BTNh,
        _together(k_parts),
        _together(v_parts),
        mask=sight.mask_BTS[:, None],
        scale=1.0,
        implementation=implementation,
    )


IMPLEMENTATIONS = {"xla": _products, "cudnn": functools.partial(_library, implementation="cudnn")}
