"""SigLIP vision tower: images -> one token per patch, in the width of the language model.

No class token, no pooling.  Attention softmax runs in the compute dtype, unlike in the language
model.
"""

import jax
from jax import Array
import jax.numpy as jnp

from pirl_jax.core import mesh as meshes
from pirl_jax.core import spec
from pirl_jax.models import linear, remat, variants


def specs(cfg: variants.SiglipConfig, image_tokens: int, out_width: int) -> dict:
    """Parameters; those of the blocks are stacked over layers."""
    D = cfg.width
    patch_entries = cfg.patch * cfg.patch * 3
    return {
        "embedding": linear.specs(
            (cfg.patch, cfg.patch, 3, D),
            (None, None, None, "embed"),
            ("lecun", patch_entries),
            inputs=3,
        ),
        "pos_embedding": spec.Spec(
            (1, image_tokens, D), (None, None, "embed"), ("normal", D**-0.5)
        ),
        "Transformer": {"encoderblock": _block_specs(cfg), "encoder_norm": _norm_specs(D)},
        # openpi starts this kernel at zero, where the slope of the RMS norm behind it is 1000: no
        # start for training from scratch.
        "head": linear.specs((D, out_width), (None, "embed"), ("lecun", D)),
    }


def _block_specs(cfg: variants.SiglipConfig) -> dict:
    L, D, F, N = cfg.depth, cfg.width, cfg.mlp_dim, cfg.num_heads
    h = D // N
    up = ("xavier", D, F)
    down = ("xavier", F, D)
    square = ("xavier", D, D)
    small = ("normal", 1e-6)  # ViT's start of the biases of the feed-forward

    def project() -> dict:
        return linear.specs((D, N, h), ("embed", "heads", "head_dim"), square, depth=L)

    out_axes = ("heads", "head_dim", "embed")
    return {
        "LayerNorm_0": _norm_specs(D, L),
        "LayerNorm_1": _norm_specs(D, L),
        "MlpBlock_0": {
            "Dense_0": linear.specs((D, F), ("embed", "mlp"), up, bias_init=small, depth=L),
            "Dense_1": linear.specs((F, D), ("mlp", "embed"), down, bias_init=small, depth=L),
        },
        "MultiHeadDotProductAttention_0": {
            "query": project(),
            "key": project(),
            "value": project(),
            "out": linear.specs((N, h, D), out_axes, square, inputs=2, depth=L),
        },
    }


def _norm_specs(width: int, *lead: int) -> dict:
    shape = (*lead, width)
    axes = ("layers",) * len(lead) + ("embed",)
    return {"scale": spec.Spec(shape, axes, "ones"), "bias": spec.Spec(shape, axes)}


def encode(
    params: dict, image_BYX3: Array, cfg: variants.SiglipConfig, dtype: str, remat_policy: str
) -> Array:
    """float32 images in [-1, 1] -> tokens [B,T,W].

    T = patches row by row, W = width of the language model.
    """
    transformer = params["Transformer"]

    def layer(x_BTD: Array, layer_params: dict) -> tuple[Array, None]:
        return block(layer_params, x_BTD), None

    x_BTD = add_position(params, patches(params, image_BYX3)).astype(dtype)
    x_BTD, _ = jax.lax.scan(
        remat.wrap(layer, remat_policy),
        x_BTD,
        transformer["encoderblock"],
        unroll=remat.unroll(cfg.depth),
    )
    return head(params, layer_norm(transformer["encoder_norm"], x_BTD))


def patches(params: dict, image_BYX3: Array) -> Array:
    """Patch embedding [B,y,x,D], in float32 whatever the compute dtype."""
    kernel = params["embedding"]["kernel"].astype(jnp.float32)
    bias = params["embedding"]["bias"].astype(jnp.float32)
    patch, _, _, width = kernel.shape
    B, Y, X, _ = image_BYX3.shape
    y = Y // patch
    x = X // patch
    # Stride equals kernel, so the convolution is one matrix product over cut-out patches (whose
    # gradient is fast everywhere).
    cut = image_BYX3.astype(jnp.float32).reshape(B, y, patch, x, patch, 3)
    cut_BTD = cut.swapaxes(2, 3).reshape(B, y * x, patch * patch * 3)
    stem_BTW = linear.einsum("BTD,DW->BTW", cut_BTD, kernel.reshape(-1, width))
    return linear.add_bias(stem_BTW.reshape(B, y, x, width), bias)


def add_position(params: dict, x_ByxD: Array) -> Array:
    """[B,y,x,D] -> [B,T,D] float32."""
    B, y, x, D = x_ByxD.shape
    return x_ByxD.reshape(B, y * x, D) + params["pos_embedding"].astype(jnp.float32)


def block(params: dict, x_BTD: Array) -> Array:
    """One pre-norm encoder block, parameters of one layer."""
    x_BTD = meshes.by_rows(x_BTD)
    normed_BTD = layer_norm(params["LayerNorm_0"], x_BTD)
    out_BTD = _attention(params["MultiHeadDotProductAttention_0"], normed_BTD)
    x_BTD = meshes.by_rows(x_BTD + out_BTD)
    normed_BTD = layer_norm(params["LayerNorm_1"], x_BTD)
    return meshes.by_rows(x_BTD + _feed_forward(params["MlpBlock_0"], normed_BTD))


def layer_norm(params: dict, x_BTD: Array) -> Array:
    """Statistics in float32, variance in one pass: E[x^2] - E[x]^2; output in the dtype of x."""
    x = x_BTD.astype(jnp.float32)
    mean = x.mean(-1, keepdims=True)
    mean_square = jnp.square(x).mean(-1, keepdims=True)
    # Rounding may leave a difference of two near-equal numbers below zero.
    variance = jnp.maximum(mean_square - jnp.square(mean), 0.0)
    gain = params["scale"].astype(jnp.float32)[None, None]
    bias = params["bias"].astype(jnp.float32)[None, None]
    scale = jax.lax.rsqrt(variance + 1e-6) * gain
    return ((x - mean) * scale + bias).astype(x_BTD.dtype)


def head(params: dict, x_BTD: Array) -> Array:
    """To the width of the language model; image tokens are not rescaled."""
    return _dense(params["head"], x_BTD, "BTD,DW->BTW")


def _feed_forward(params: dict, x_BTD: Array) -> Array:
    hidden_BTF = _dense(params["Dense_0"], x_BTD, "BTD,DF->BTF")
    hidden_BTF = linear.computed_once(jax.nn.gelu(hidden_BTF, approximate=True))
    return _dense(params["Dense_1"], hidden_BTF, "BTF,FD->BTD")


def _attention(params: dict, x_BTD: Array) -> Array:
    q_BTNh = _dense(params["query"], x_BTD, "BTD,DNh->BTNh")
    k_BSNh = _dense(params["key"], x_BTD, "BTD,DNh->BTNh")
    v_BSNh = _dense(params["value"], x_BTD, "BTD,DNh->BTNh")
    head_dim = q_BTNh.shape[-1]
    q_BTNh = q_BTNh / jnp.sqrt(head_dim).astype(q_BTNh.dtype)
    logits_BNTS = jnp.einsum("BTNh,BSNh->BNTS", q_BTNh, k_BSNh)
    probs_BNTS = jax.nn.softmax(logits_BNTS, axis=-1)
    mixed_BTNh = jnp.einsum("BNTS,BSNh->BTNh", probs_BNTS, v_BSNh)
    return _dense(params["out"], mixed_BTNh, "BTNh,NhD->BTD")


def _dense(params: dict, x: Array, equation: str) -> Array:
    """An affine layer in the dtype of x."""
    params = jax.tree.map(lambda weight: weight.astype(x.dtype), params)
    return linear.affine(params, x, equation)
