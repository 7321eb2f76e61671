"""Gemma transformer with two weight sets ("experts") that share one attention.

Expert 0 (PaliGemma) reads the prefix and never sees the suffix, so the joint attention splits into two passes without
changing a number: expert 0 fills keys and values, expert 1 attends to them and to itself.  Hence every function here
runs one expert.
"""

import jax
import jax.numpy as jnp

from pirl_jax.core import spec
from pirl_jax.models import attention, lora, remat, variants


def specs(
    cfgs: tuple[variants.GemmaConfig, ...], adaptive: tuple[bool, ...], vocab_size: int
) -> dict:
    """All experts in one tree; expert i > 0 has the suffix `_i`.  `adaptive`: whose norms a condition modulates."""
    tree = {
        "embedder": {
            "input_embedding": spec.Spec(
                (vocab_size, cfgs[0].width), ("vocab", "embed"), ("normal", 0.01)
            )
        },
        "layers": {"attn": {}},
    }
    for expert, (cfg, ada) in enumerate(zip(cfgs, adaptive)):
        end = _suffix(expert)
        tree[f"final_norm{end}"] = _norm_specs(cfg.width, ada)
        tree["layers"] |= {
            f"pre_attention_norm{end}": _norm_specs(cfg.width, ada, cfg.depth),
            f"pre_ffw_norm{end}": _norm_specs(cfg.width, ada, cfg.depth),
            f"mlp{end}": lora.feed_forward_specs(cfg.depth, cfg.width, cfg.mlp_dim, cfg.lora),
        }
        tree["layers"]["attn"] |= {
            f"{name}{end}": leaf for name, leaf in _attention_specs(cfg).items()
        }
    return tree


def _norm_specs(width: int, adaptive: bool, *lead: int) -> dict:
    axes = ("layers",) * len(lead)
    if adaptive:
        return {
            "Dense_0": {
                "kernel": spec.Spec((*lead, width, 3 * width), (*axes, "embed", "mlp")),
                "bias": spec.Spec((*lead, 3 * width), (*axes, "mlp")),
            }
        }
    return {"scale": spec.Spec((*lead, width), (*axes, "embed"))}


def _attention_specs(cfg: variants.GemmaConfig) -> dict:
    L, D, N, K, h = cfg.depth, cfg.width, cfg.num_heads, cfg.num_kv_heads, cfg.head_dim

    def project(lead, lead_axes):
        return lora.einsum_specs(
            (L, *lead, D, h), ("layers", *lead_axes, "embed", "head_dim"), D, cfg.lora
        )

    out = {
        "attn_vec_einsum": lora.einsum_specs(
            (L, N, h, D), ("layers", "heads", "head_dim", "embed"), N * h, cfg.lora
        )
    }
    if K == N:
        return out | {"qkv_einsum": project((3, N), (None, "heads"))}
    return out | {
        "q_einsum": project((N,), ("heads",)),
        "kv_einsum": project((2, K), (None, "kv_heads")),
    }


def _suffix(expert: int) -> str:
    return f"_{expert}" if expert else ""


def _select(params: dict, expert: int) -> dict:
    """Layer parameters of one expert, without the suffix in their names."""
    names = ("q_einsum", "kv_einsum", "qkv_einsum", "attn_vec_einsum")
    end = _suffix(expert)
    chosen = {
        name: params[f"{name}{end}"] for name in ("pre_attention_norm", "pre_ffw_norm", "mlp")
    }
    chosen["attn"] = {
        name: params["attn"][f"{name}{end}"] for name in names if f"{name}{end}" in params["attn"]
    }
    return chosen


def embed(params: dict, tokens_BT: jax.Array, dtype: str) -> jax.Array:
    """Token embeddings times sqrt(width); the product is taken in the dtype of the table."""
    x = params["embedder"]["input_embedding"][tokens_BT]
    return (x * jnp.sqrt(x.shape[-1]).astype(x.dtype)).astype(dtype)


def modulations(params: dict, cond_ND: jax.Array, *, expert: int, dtype: str) -> dict:
    """What the adaptive norms of an expert make of N conditions: {norm: scale, shift and gate, [N,L,3D] or (final) [N,3D]}.

    They depend on nothing but the condition, so one row serves all tokens, and all rows of a batch that have it in common.
    """

    def dense(norm):
        return (norm["Dense_0"][name].astype(dtype) for name in ("kernel", "bias"))

    out, end = {}, _suffix(expert)
    for name in ("pre_attention_norm", "pre_ffw_norm"):
        kernel_LDF, bias_LF = dense(params["layers"][f"{name}{end}"])
        out[name] = jnp.einsum("ND,LDF->NLF", cond_ND.astype(dtype), kernel_LDF) + bias_LF[None]
    kernel_DF, bias_F = dense(params[f"final_norm{end}"])
    return out | {"final_norm": cond_ND.astype(dtype) @ kernel_DF + bias_F[None]}


def forward(
    params: dict,
    x_BTD: jax.Array,
    position_BT: jax.Array,
    mask_BTS: jax.Array,
    cfg: variants.GemmaConfig,
    *,
    expert: int,
    remat_policy: str,
    past: tuple[jax.Array, jax.Array] | None = None,
    modulation: dict | None = None,
    hidden: bool = True,
    attend_by: str = "xla",
) -> tuple[jax.Array | None, jax.Array, jax.Array]:
    """All layers of one expert.

    Args:
      past: keys (rotated) and values [L,B,P,K,h] that are placed before this pass's own; S = P + T.
      modulation: of adaptive norms, B rows of modulations(); None for plain norms.
      hidden: False when only keys and values are wanted.  Then the last layer's query, attention and feed-forward,
        which nothing reads, are skipped.
      attend_by: implementation of attention, models/attention.py.

    Returns:
      hidden states after the final norm [B,T,D] (None if not wanted), this pass's keys and values [L,B,T,K,h].
    """

    def layer(x, inputs):
        layer_params, layer_past, modulated, is_last = inputs
        y, gate = rms_norm(
            layer_params["pre_attention_norm"], x, modulated.get("pre_attention_norm")
        )
        k, v = _keys_values(layer_params["attn"], y, position_BT, cfg)

        def rest(x):
            keys, values = (
                (k, v)
                if layer_past is None
                else (jnp.concatenate([old, new], axis=1) for old, new in zip(layer_past, (k, v)))
            )
            q = _queries(layer_params["attn"], y, position_BT, cfg)
            encoded = attention.attend(q, keys, values, mask_BTS, attend_by)
            out = lora.einsum(
                layer_params["attn"]["attn_vec_einsum"], "BTNh,NhD->BTD", encoded, cfg.lora
            )
            x = x + _gated(out, gate)
            z, ffw_gate = rms_norm(layer_params["pre_ffw_norm"], x, modulated.get("pre_ffw_norm"))
            return x + _gated(lora.feed_forward(layer_params["mlp"], z, cfg.lora), ffw_gate)

        # A branch inside the scan, not a scan over L - 1 layers: slicing stacked weights would copy all of them.
        x = rest(x) if hidden else jax.lax.cond(is_last, lambda x: x, rest, x)
        return x, (k, v)

    is_last_L = jnp.arange(cfg.depth) == cfg.depth - 1
    modulation = modulation or {}
    by_layer = {name: x.swapaxes(0, 1) for name, x in modulation.items() if name != "final_norm"}
    inputs = _select(params["layers"], expert), past, by_layer, is_last_L
    x, (k, v) = jax.lax.scan(
        remat.wrap(layer, remat_policy), x_BTD, inputs, unroll=remat.unroll(cfg.depth)
    )
    if not hidden:
        return None, k, v
    x, _ = rms_norm(params[f"final_norm{_suffix(expert)}"], x, modulation.get("final_norm"))
    return x, k, v


def rms_norm(
    params: dict, x_BTD: jax.Array, modulation_BF: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """Normalised x in the dtype of x, and the gate of the residual branch (None without modulation)."""
    x = x_BTD.astype(jnp.float32)
    x = x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)
    if modulation_BF is None:
        scale = params["scale"].astype(
            jnp.float32
        )  # 1 + a bfloat16 scale would be rounded to 8 bits
        return (x * (1 + scale)[None, None]).astype(x_BTD.dtype), None
    scale, shift, gate = jnp.split(modulation_BF[:, None], 3, axis=-1)
    return (x * (1 + scale) + shift).astype(x_BTD.dtype), gate


def rope(x_BTNh: jax.Array, position_BT: jax.Array) -> jax.Array:
    """Rotary positions; pairs are (i, i + h/2).  Angles and rotation in float32, output in the dtype of x."""
    half = x_BTNh.shape[-1] // 2
    timescale = 10_000.0 ** (jnp.arange(half, dtype=jnp.float32) / half)
    angle = position_BT[:, :, None, None] / timescale[None, None, None]
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    x1, x2 = jnp.split(x_BTNh.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1).astype(x_BTNh.dtype)


def _gated(y: jax.Array, gate: jax.Array | None) -> jax.Array:
    return y if gate is None else y * gate


def _queries(
    attn: dict, x_BTD: jax.Array, position_BT: jax.Array, cfg: variants.GemmaConfig
) -> jax.Array:
    params = (
        attn["q_einsum"] if "q_einsum" in attn else jax.tree.map(lambda w: w[0], attn["qkv_einsum"])
    )
    q = rope(lora.einsum(params, "BTD,NDh->BTNh", x_BTD, cfg.lora), position_BT)
    return q * cfg.head_dim**-0.5


def _keys_values(attn: dict, x_BTD: jax.Array, position_BT: jax.Array, cfg: variants.GemmaConfig):
    params = (
        attn["kv_einsum"]
        if "kv_einsum" in attn
        else jax.tree.map(lambda w: w[1:], attn["qkv_einsum"])
    )
    k, v = lora.einsum(params, "BSD,ZKDh->ZBSKh", x_BTD, cfg.lora)
    return rope(k, position_BT), v
