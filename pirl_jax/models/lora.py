"""Linear maps with optional low-rank adapters: y = x W + scale * (x A) B.

The numbers follow the published adapter checkpoints, quirks included (each is marked).
"""

import jax
import jax.numpy as jnp

from pirl_jax.core import spec
from pirl_jax.models import linear, variants

_RANDOM = (
    "normal",
    0.01,
)  # factor A; with init="openpi" factor B too, so that a fresh adapter changes the base model slightly


def einsum_specs(shape: tuple, axes: tuple, fan_in: int, cfg: variants.LoraConfig | None) -> dict:
    """`w` of the given shape; with adapters `lora_a` (last axis -> rank) and `lora_b` (second-to-last axis -> rank)."""
    specs = {"w": spec.Spec(shape, axes, ("lecun", fan_in))}
    if cfg is not None:
        specs["lora_a"] = spec.Spec((*shape[:-1], cfg.attn_rank), (*axes[:-1], "rank"), _RANDOM)
        specs["lora_b"] = spec.Spec(
            (*shape[:-2], cfg.attn_rank, shape[-1]), (*axes[:-2], "rank", axes[-1]), _init_b(cfg)
        )
    return specs


def _init_b(cfg):
    return _RANDOM if cfg.init == "openpi" else "zeros"


def einsum(params: dict, equation: str, x: jax.Array, cfg: variants.LoraConfig | None) -> jax.Array:
    """einsum(equation, x, w) in the dtype of x, plus the adapter if there is one.

    Factor A replaces the weight's last letter by the rank letter, factor B its second-to-last.  Quirk: for the
    attention output (BTNh,NhD->BTD) the head letter N is not in the rank activations BTr, so B is summed over heads.
    """
    y = linear.einsum(equation, x, params["w"].astype(x.dtype))
    if cfg is None:
        return y
    x_letters, weight, out = equation.replace("->", ",").split(",")
    inner, outer = weight[-2:]
    rank_out = out.replace(outer, "r")
    low = linear.einsum(
        f"{x_letters},{weight.replace(outer, 'r')}->{rank_out}", x, params["lora_a"].astype(x.dtype)
    )
    # Not linear.einsum: the rank activations of kv_einsum start with the k/v axis, which B has too.
    delta = jnp.einsum(
        f"{rank_out},{weight.replace(inner, 'r')}->{out}", low, params["lora_b"].astype(x.dtype)
    )
    return y + delta * cfg.attn_scale


def feed_forward_specs(
    depth: int, width: int, mlp_dim: int, cfg: variants.LoraConfig | None
) -> dict:
    """Stacked over layers.  gating_einsum [L,2,D,F] (0 = gate, 1 = up), linear [L,F,D]."""
    shapes = {
        "gating_einsum": ((depth, 2, width, mlp_dim), ("layers", None, "embed", "mlp"), width),
        "linear": ((depth, mlp_dim, width), ("layers", "mlp", "embed"), mlp_dim),
    }
    specs = {}
    for name, (shape, axes, fan_in) in shapes.items():
        specs[name] = spec.Spec(shape, axes, ("lecun", fan_in))
        if cfg is not None:
            specs[f"{name}_lora_a"] = spec.Spec(
                (*shape[:-1], cfg.ffn_rank), (*axes[:-1], "rank"), _RANDOM
            )
            specs[f"{name}_lora_b"] = spec.Spec(
                (*shape[:-2], cfg.ffn_rank, shape[-1]), (*axes[:-2], "rank", axes[-1]), _init_b(cfg)
            )
    return specs


def feed_forward(params: dict, x: jax.Array, cfg: variants.LoraConfig | None) -> jax.Array:
    """Gated feed-forward, x [B,T,D] -> [B,T,D].  Quirk: its adapters ignore alpha and rank."""

    def project(x, name, index=()):
        y = linear.einsum("BTD,DF->BTF", x, params[name][index].astype(x.dtype))
        if cfg is None:
            return y
        a, b = params[f"{name}_lora_a"][index], params[f"{name}_lora_b"][index]
        low = linear.einsum("BTD,Dr->BTr", x, a.astype(x.dtype))
        return y + linear.einsum("BTr,rF->BTF", low, b.astype(x.dtype))

    gate = jax.nn.gelu(project(x, "gating_einsum", 0), approximate=True)
    return project(gate * project(x, "gating_einsum", 1), "linear")
