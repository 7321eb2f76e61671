"""Attention of many query heads to few key heads, computed by whatever the device does best."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np

log = logging.getLogger(__name__)

# Finite, so that a query without any valid key gets uniform attention instead of NaN; such rows are never read.
_MASKED = -2.3819763e38


def attend(
    q_BTNh: jax.Array,
    k_BSKh: jax.Array,
    v_BSKh: jax.Array,
    mask_BTS: jax.Array,
    implementation: str,
) -> jax.Array:
    """Query head n reads key head n // G; q is scaled already.  Logits and softmax in float32.  Returns [B,T,N,h].

    implementation: a line of IMPLEMENTATIONS, or auto: the fastest that computes the right numbers here.
    """
    if implementation == "auto":
        implementation = fastest(q_BTNh.shape[-1], str(q_BTNh.dtype))
    return IMPLEMENTATIONS[implementation](q_BTNh, k_BSKh, v_BSKh, mask_BTS)


@functools.cache
def fastest(head_dim: int, dtype: str) -> str:
    """Tries cuDNN's fused attention, forward and backward, on a case of a few tokens, a query without keys among them.

    It exists on some NVIDIA GPUs, for some head dimensions, in 16 bits; what it refuses is said in the log.
    """
    if jax.default_backend() != "gpu":
        return "xla"
    with jax.ensure_compile_time_eval():  # the caller may be in the middle of a trace
        try:
            error = difference("cudnn", head_dim, dtype)
        except (NotImplementedError, RuntimeError) as reason:  # the libraries' ways to say no
            log.info(
                "attention by XLA: cuDNN refuses head_dim %d in %s (%s)", head_dim, dtype, reason
            )
            return "xla"
    if not error < 0.05:  # bfloat16 rounds to 1/256, values and gradients here are of size 1
        log.warning(
            "attention by XLA: cuDNN is off by %.3g for head_dim %d in %s", error, head_dim, dtype
        )
        return "xla"
    return "cudnn"


def difference(implementation: str, head_dim: int, dtype: str) -> float:
    """Largest difference to xla over the outputs that are read and all gradients; inf where one is not finite."""
    draw = np.random.default_rng(0)
    shapes = (2, 16, 8, head_dim), (2, 16, 1, head_dim), (2, 16, 1, head_dim)
    inputs = [jnp.asarray(draw.standard_normal(shape), dtype) for shape in shapes]
    inputs[0] *= head_dim**-0.5
    valid_BT = np.arange(16)[None] < np.array([[16], [11]])
    mask_BTS = jnp.asarray(valid_BT[:, None] & valid_BT[:, :, None])

    def run(name):
        def total(*inputs):
            out = jnp.where(
                valid_BT[:, :, None, None], attend(*inputs, mask_BTS, name).astype(jnp.float32), 0.0
            )
            return (out**2).sum() / 2, out

        grads, out = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(*inputs)
        return [np.asarray(x, np.float32) for x in (out, *grads)]

    pairs = zip(run(implementation), run("xla"), strict=True)
    error = max(
        np.abs(ours - theirs).max() / max(1.0, np.abs(theirs).max()) for ours, theirs in pairs
    )
    return float(np.nan_to_num(error, nan=np.inf))


def _products(q_BTNh, k_BSKh, v_BSKh, mask_BTS):
    """Two batched matrix products with a softmax between them."""
    B, T, N, h = q_BTNh.shape
    K, G = k_BSKh.shape[2], N // k_BSKh.shape[2]
    # One batch axis (B K) and one row axis (T G): plain batched matrix products, which XLA on CPU runs twice as fast.
    q = q_BTNh.reshape(B, T, K, G, h).swapaxes(1, 2).reshape(B * K, T * G, h)
    k, v = (x.swapaxes(1, 2).reshape(B * K, -1, h) for x in (k_BSKh, v_BSKh))
    mask = jnp.repeat(jnp.repeat(mask_BTS, G, axis=1), K, axis=0)
    logits = jnp.einsum("bqh,bsh->bqs", q, k, preferred_element_type=jnp.float32)
    probs = jax.nn.softmax(jnp.where(mask, logits, _MASKED), axis=-1)
    encoded = jnp.einsum("bqs,bsh->bqh", probs.astype(q.dtype), v)
    return encoded.reshape(B, K, T, G, h).swapaxes(1, 2).reshape(B, T, N, h)


def _library(q_BTNh, k_BSKh, v_BSKh, mask_BTS, implementation):
    return jax.nn.dot_product_attention(
        q_BTNh, k_BSKh, v_BSKh, mask=mask_BTS[:, None], scale=1.0, implementation=implementation
    )


IMPLEMENTATIONS = {"xla": _products, "cudnn": functools.partial(_library, implementation="cudnn")}
