"""SigLIP vision tower: images -> one token per patch, in the width of the language model.

No class token, no pooling.  Attention softmax runs in the compute dtype, unlike in the language model.
"""

import jax
import jax.numpy as jnp

from pirl_jax.core import spec
from pirl_jax.models import linear, remat, variants


def specs(cfg: variants.SiglipConfig, image_tokens: int, out_width: int) -> dict:
    """Parameters; those of the blocks are stacked over layers."""
    L, D, F, N, P = cfg.depth, cfg.width, cfg.mlp_dim, cfg.num_heads, cfg.patch
    h = D // N

    def norm(*lead):
        axes = ("layers",) * len(lead) + ("embed",)
        return {"scale": spec.Spec((*lead, D), axes, "ones"), "bias": spec.Spec((*lead, D), axes)}

    def dense(shape, axes, bias_axes, fan_in, fan_out, bias="zeros"):
        bias_shape = tuple(size for size, axis in zip(shape, axes) if axis in bias_axes)
        return {
            "kernel": spec.Spec((L, *shape), ("layers", *axes), ("xavier", fan_in, fan_out)),
            "bias": spec.Spec((L, *bias_shape), ("layers", *bias_axes), bias),
        }

    def project():
        return dense((D, N, h), ("embed", "heads", "head_dim"), ("heads", "head_dim"), D, D)

    block = {
        "LayerNorm_0": norm(L),
        "LayerNorm_1": norm(L),
        "MlpBlock_0": {
            "Dense_0": dense((D, F), ("embed", "mlp"), ("mlp",), D, F, ("normal", 1e-6)),
            "Dense_1": dense((F, D), ("mlp", "embed"), ("embed",), F, D, ("normal", 1e-6)),
        },
        "MultiHeadDotProductAttention_0": {
            "query": project(),
            "key": project(),
            "value": project(),
            "out": dense((N, h, D), ("heads", "head_dim", "embed"), ("embed",), D, D),
        },
    }
    return {
        "embedding": {
            "kernel": spec.Spec((P, P, 3, D), (None, None, None, "embed"), ("lecun", P * P * 3)),
            "bias": spec.Spec((D,), ("embed",)),
        },
        "pos_embedding": spec.Spec(
            (1, image_tokens, D), (None, None, "embed"), ("normal", D**-0.5)
        ),
        "Transformer": {"encoderblock": block, "encoder_norm": norm()},
        # openpi starts this kernel at zero, where the slope of the RMS norm behind it is 1000: no start for training from scratch.
        "head": {
            "kernel": spec.Spec((D, out_width), (None, "embed"), ("lecun", D)),
            "bias": spec.Spec((out_width,), ("embed",)),
        },
    }


def encode(
    params: dict, image_BYXC: jax.Array, cfg: variants.SiglipConfig, dtype: str, remat_policy: str
) -> jax.Array:
    """float32 images in [-1, 1] -> tokens [B,T,W], T = patches row by row, W = width of the language model."""
    x = add_position(params, patches(params, image_BYXC)).astype(dtype)
    layer = remat.wrap(lambda x, layer_params: (block(layer_params, x), None), remat_policy)
    x, _ = jax.lax.scan(
        layer, x, params["Transformer"]["encoderblock"], unroll=remat.unroll(cfg.depth)
    )
    return head(params, layer_norm(params["Transformer"]["encoder_norm"], x))


def patches(params: dict, image_BYXC: jax.Array) -> jax.Array:
    """Patch embedding [B,y,x,D], in float32 whatever the compute dtype."""
    kernel = params["embedding"]["kernel"].astype(jnp.float32)
    P, _, C, D = kernel.shape
    B, Y, X, _ = image_BYXC.shape
    # Stride equals kernel, so the convolution is one matrix product over cut-out patches (whose gradient is fast everywhere).
    cut = (
        image_BYXC.astype(jnp.float32)
        .reshape(B, Y // P, P, X // P, P, C)
        .swapaxes(2, 3)
        .reshape(B, -1, P * P * C)
    )
    y = linear.einsum("BTP,PD->BTD", cut, kernel.reshape(-1, D)).reshape(B, Y // P, X // P, D)
    return y + params["embedding"]["bias"].astype(jnp.float32)[None, None, None]


def add_position(params: dict, x_ByxD: jax.Array) -> jax.Array:
    """[B,y,x,D] -> [B,T,D] float32."""
    x_BTD = x_ByxD.reshape(x_ByxD.shape[0], -1, x_ByxD.shape[-1])
    return x_BTD + params["pos_embedding"].astype(jnp.float32)


def block(params: dict, x_BTD: jax.Array) -> jax.Array:
    """One pre-norm encoder block, parameters of one layer."""
    x = x_BTD + _attention(
        params["MultiHeadDotProductAttention_0"], layer_norm(params["LayerNorm_0"], x_BTD)
    )
    mlp = params["MlpBlock_0"]
    hidden = jax.nn.gelu(
        _dense(mlp["Dense_0"], layer_norm(params["LayerNorm_1"], x), "BTD,DF->BTF"),
        approximate=True,
    )
    return x + _dense(mlp["Dense_1"], hidden, "BTF,FD->BTD")


def layer_norm(params: dict, x_BTD: jax.Array) -> jax.Array:
    """Statistics in float32 with the one-pass variance E[x^2] - E[x]^2, output in the dtype of x."""
    x = x_BTD.astype(jnp.float32)
    mean = x.mean(-1, keepdims=True)
    variance = jnp.maximum(jnp.square(x).mean(-1, keepdims=True) - jnp.square(mean), 0.0)
    scale = jax.lax.rsqrt(variance + 1e-6) * params["scale"].astype(jnp.float32)[None, None]
    return ((x - mean) * scale + params["bias"].astype(jnp.float32)[None, None]).astype(x_BTD.dtype)


def head(params: dict, x_BTD: jax.Array) -> jax.Array:
    """To the width of the language model; image tokens are not rescaled."""
    return _dense(params["head"], x_BTD, "BTD,DW->BTW")


def _attention(params: dict, x_BTD: jax.Array) -> jax.Array:
    q, k, v = (_dense(params[name], x_BTD, "BTD,DNh->BTNh") for name in ("query", "key", "value"))
    q = q / jnp.sqrt(q.shape[-1]).astype(q.dtype)
    probs = jax.nn.softmax(jnp.einsum("BTNh,BSNh->BNTS", q, k), axis=-1)
    return _dense(params["out"], jnp.einsum("BNTS,BSNh->BTNh", probs, v), "BTNh,NhD->BTD")


def _dense(params: dict, x: jax.Array, equation: str) -> jax.Array:
    y = linear.einsum(equation, x, params["kernel"].astype(x.dtype))
    bias = params["bias"].astype(x.dtype)
    return y + bias.reshape((1,) * (y.ndim - bias.ndim) + bias.shape)
