"""Gemma transformer with two weight sets ("experts") that share one attention.

Expert 0 (PaliGemma) reads the prefix and never sees the suffix, so the joint attention splits
into two passes without changing a number: expert 0 fills keys and values, expert 1 attends to
them and to itself.  Hence every function here runs one expert.  Knows no image and no flow time.
"""

import jax
from jax import Array
import jax.numpy as jnp

from pirl_jax.core import mesh as meshes
from pirl_jax.core import spec
from pirl_jax.models import attention, linear, lora, remat, variants

Cache = tuple[Array, Array]  # keys (rotated) and values, each [B,S,K,h] or with L in front


def specs(
    cfgs: tuple[variants.GemmaConfig, ...], adaptive: tuple[bool, ...], vocab_size: int
) -> dict:
    """All experts in one tree; expert i > 0 has the suffix `_i`.

    `adaptive`: whose norms a condition modulates.
    """
    table = spec.Spec((vocab_size, cfgs[0].width), ("vocab", "embed"), ("normal", 0.01))
    layers: dict = {"attn": {}}
    tree = {"embedder": {"input_embedding": table}, "layers": layers}
    for expert, cfg in enumerate(cfgs):
        is_adaptive = adaptive[expert]
        end = _suffix(expert)
        depth = cfg.depth
        width = cfg.width
        tree[f"final_norm{end}"] = _norm_specs(width, is_adaptive)
        layers[f"pre_attention_norm{end}"] = _norm_specs(width, is_adaptive, depth)
        layers[f"pre_ffw_norm{end}"] = _norm_specs(width, is_adaptive, depth)
        layers[f"mlp{end}"] = lora.feed_forward_specs(depth, width, cfg.mlp_dim, cfg.lora)
        for name, leaf in _attention_specs(cfg).items():
            layers["attn"][f"{name}{end}"] = leaf
    return tree


def _norm_specs(width: int, adaptive: bool, depth: int | None = None) -> dict:
    if adaptive:
        # Zeros: a fresh modulation changes nothing (adaLN-Zero, Peebles & Xie 2023).
        return {"Dense_0": linear.specs((width, 3 * width), ("embed", "mlp"), depth=depth)}
    if depth is None:
        return {"scale": spec.Spec((width,), ("embed",))}
    return {"scale": spec.Spec((depth, width), ("layers", "embed"))}


def _attention_specs(cfg: variants.GemmaConfig) -> dict:
    L, D = cfg.depth, cfg.width
    N, K, h = cfg.num_heads, cfg.num_kv_heads, cfg.head_dim

    def project(lead: tuple, lead_axes: tuple) -> dict:
        axes = ("layers", *lead_axes, "embed", "head_dim")
        return lora.einsum_specs((L, *lead, D, h), axes, D, cfg.lora)

    out_axes = ("layers", "heads", "head_dim", "embed")
    out = lora.einsum_specs((L, N, h, D), out_axes, N * h, cfg.lora)
    tree = {"attn_vec_einsum": out}
    if K == N:
        tree["qkv_einsum"] = project((3, N), (None, "heads"))
    else:
        tree["q_einsum"] = project((N,), ("heads",))
        tree["kv_einsum"] = project((2, K), (None, "kv_heads"))
    return tree


def _suffix(expert: int) -> str:
    return f"_{expert}" if expert else ""


def _select(params: dict, expert: int) -> dict:
    """Layer parameters of one expert, without the suffix in their names."""
    end = _suffix(expert)
    chosen: dict = {"attn": {}}
    for name in ("pre_attention_norm", "pre_ffw_norm", "mlp"):
        chosen[name] = params[f"{name}{end}"]
    attn = params["attn"]
    for name in ("q_einsum", "kv_einsum", "qkv_einsum", "attn_vec_einsum"):
        if f"{name}{end}" in attn:
            chosen["attn"][name] = attn[f"{name}{end}"]
    return chosen


def embed(params: dict, tokens_BT: Array, dtype: str) -> Array:
    """Token embeddings times sqrt(width); the product is taken in the dtype of the table."""
    x_BTD = params["embedder"]["input_embedding"][tokens_BT]
    scale = jnp.sqrt(x_BTD.shape[-1]).astype(x_BTD.dtype)
    return meshes.by_rows((x_BTD * scale).astype(dtype))


def modulations(params: dict, cond_BD: Array, *, expert: int, dtype: str) -> dict:
    """What the adaptive norms of an expert make of conditions.

    {norm: scale, shift and gate}: [B,L,W], of the final norm [B,W], with W = 3 D.  They depend on
    nothing but the condition, so one row serves all tokens, and all rows of a batch that have it in
    common.
    """

    def dense(norm: dict) -> dict:
        return jax.tree.map(lambda weight: weight.astype(dtype), norm["Dense_0"])

    end = _suffix(expert)
    modulation = {}
    for name in ("pre_attention_norm", "pre_ffw_norm"):
        layers = dense(params["layers"][f"{name}{end}"])
        out_BLW = jnp.einsum("BD,LDW->BLW", cond_BD.astype(dtype), layers["kernel"])
        modulation[name] = linear.add_bias(out_BLW, layers["bias"])
    final = dense(params[f"final_norm{end}"])
    modulation["final_norm"] = linear.affine(final, cond_BD.astype(dtype), is_batch=False)
    return modulation


def forward(
    params: dict,
    x_BTD: Array,
    position_BT: Array,
    sight: attention.Sight,
    cfg: variants.GemmaConfig,
    *,
    expert: int,
    remat_policy: str,
    past: Cache | None = None,
    modulation: dict | None = None,
    hidden: bool = True,
    attend_by: str = "xla",
) -> tuple[Array | None, Array, Array]:
    """All layers of one expert.

    Args:
      past: keys (rotated) and values [L,B,S-T,K,h] that are placed before this pass's own.
      modulation: of adaptive norms, B rows of modulations(); None for plain norms.
      hidden: False when only keys and values are wanted.  Then the last layer's query, attention
        and feed-forward, which nothing reads, are skipped.
      attend_by: implementation of attention, models/attention.py.

    Returns: hidden states after the final norm [B,T,D] (None if not wanted), this pass's keys and
    values [L,B,T,K,h].
    """
    modulation = dict(modulation or {})
    final_modulation = modulation.pop("final_norm", None)
    by_layer = {name: x_BLW.swapaxes(0, 1) for name, x_BLW in modulation.items()}
    is_last_L = jnp.arange(cfg.depth) == cfg.depth - 1

    def layer(x_BTD: Array, inputs: tuple) -> tuple[Array, Cache]:
        layer_params, layer_past, modulated, is_last = inputs
        attn = layer_params["attn"]
        x_BTD = meshes.by_rows(x_BTD)
        normed_BTD, gate = _norm(layer_params, "pre_attention_norm", x_BTD, modulated)
        own = _keys_values(attn, normed_BTD, position_BT, cfg)

        def rest(x_BTD: Array) -> Array:
            seen = [own] if layer_past is None else [layer_past, own]
            q_BTNh = _queries(attn, normed_BTD, position_BT, cfg)
            mixed_BTNh = attention.attend(q_BTNh, seen, sight, attend_by)
            out_BTD = lora.einsum(attn["attn_vec_einsum"], "BTNh,NhD->BTD", mixed_BTNh, cfg.lora)
            x_BTD = meshes.by_rows(x_BTD + _gated(out_BTD, gate))
            return _feed_forward(layer_params, x_BTD, modulated, cfg)

        # A branch inside the scan, not a scan over L - 1 layers: slicing stacked weights would copy
        # all of them.
        if hidden:
            return rest(x_BTD), own
        return jax.lax.cond(is_last, lambda x: x, rest, x_BTD), own

    inputs = (_select(params["layers"], expert), past, by_layer, is_last_L)
    body = remat.wrap(layer, remat_policy)
    x_BTD, (k, v) = jax.lax.scan(body, x_BTD, inputs, unroll=remat.unroll(cfg.depth))
    if not hidden:
        return None, k, v
    final_norm = params[f"final_norm{_suffix(expert)}"]
    x_BTD, _ = rms_norm(final_norm, x_BTD, final_modulation)
    return x_BTD, k, v


def _norm(
    layer_params: dict, name: str, x_BTD: Array, modulated: dict
) -> tuple[Array, Array | None]:
    return rms_norm(layer_params[name], x_BTD, modulated.get(name))


def rms_norm(params: dict, x_BTD: Array, modulation_BW: Array | None) -> tuple[Array, Array | None]:
    """Normalised x in the dtype of x, and the gate of the residual branch.

    Without modulation there is no gate: None.
    """
    x = x_BTD.astype(jnp.float32)
    mean_square = jnp.square(x).mean(-1, keepdims=True)
    x = x / jnp.sqrt(mean_square + 1e-6)
    if modulation_BW is None:
        # In float32: 1 + a bfloat16 scale would be rounded to 8 bits.
        scale = params["scale"].astype(jnp.float32)
        x = x * (1 + scale)[None, None]
        return x.astype(x_BTD.dtype), None
    scale, shift, gate = jnp.split(modulation_BW[:, None], 3, axis=-1)
    x = x * (1 + scale) + shift
    return x.astype(x_BTD.dtype), gate


def rope(x_BTNh: Array, position_BT: Array) -> Array:
    """Rotary positions; pairs are (i, i + h/2).

    Angles and rotation in float32, output in the dtype of x.
    """
    half = x_BTNh.shape[-1] // 2
    # 10000 is Gemma's base, as in RoFormer (arXiv:2104.09864).
    fraction = jnp.arange(half, dtype=jnp.float32) / half
    timescale = 10_000.0**fraction
    angle = position_BT[:, :, None, None] / timescale[None, None, None]
    sin = jnp.sin(angle)
    cos = jnp.cos(angle)
    x = x_BTNh.astype(jnp.float32)
    x1, x2 = jnp.split(x, 2, axis=-1)
    y1 = x1 * cos - x2 * sin
    y2 = x2 * cos + x1 * sin
    return jnp.concatenate([y1, y2], axis=-1).astype(x_BTNh.dtype)


def _feed_forward(
    layer_params: dict, x_BTD: Array, modulated: dict, cfg: variants.GemmaConfig
) -> Array:
    normed_BTD, gate = _norm(layer_params, "pre_ffw_norm", x_BTD, modulated)
    out_BTD = lora.feed_forward(layer_params["mlp"], normed_BTD, cfg.lora)
    x_BTD = x_BTD + _gated(out_BTD, gate)
    return meshes.by_rows(x_BTD)


def _gated(y: Array, gate: Array | None) -> Array:
    return y if gate is None else y * gate


def _queries(attn: dict, x_BTD: Array, position_BT: Array, cfg: variants.GemmaConfig) -> Array:
    params = attn.get("q_einsum") or jax.tree.map(lambda w: w[0], attn["qkv_einsum"])
    q_BTNh = lora.einsum(params, "BTD,NDh->BTNh", x_BTD, cfg.lora)
    return rope(q_BTNh, position_BT) * cfg.head_dim**-0.5


def _keys_values(attn: dict, x_BTD: Array, position_BT: Array, cfg: variants.GemmaConfig) -> Cache:
    params = attn.get("kv_einsum") or jax.tree.map(lambda w: w[1:], attn["qkv_einsum"])
    k_BSKh, v_BSKh = lora.einsum(params, "BSD,ZKDh->ZBSKh", x_BTD, cfg.lora)
    return rope(k_BSKh, position_BT), v_BSKh
