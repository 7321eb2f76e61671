"""Linear maps with optional low-rank adapters: y = x W + scale * (x A) B.

The numbers follow the published adapter checkpoints, quirks included (each is marked).
"""

from collections.abc import Callable, Iterable

import jax
from jax import Array
import jax.numpy as jnp

from pirl_jax.core import mesh as meshes
from pirl_jax.core import spec
from pirl_jax.models import linear, variants

# Factor A; with init="openpi" factor B too, so that a fresh adapter changes the base model
# slightly.
_RANDOM = ("normal", 0.01)


def einsum_specs(
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    fan_in: int,
    cfg: variants.LoraConfig | None,
) -> dict:
    """`w` of the given shape, and with adapters `lora_a` and `lora_b`.

    lora_a has the rank in place of the last axis of w, lora_b in place of the one before.
    """
    specs = {"w": spec.Spec(shape, axes, ("lecun", fan_in))}
    if cfg is not None:
        specs["lora_a"], specs["lora_b"] = _factors(shape, axes, cfg.attn_rank, cfg)
    return specs


def _factors(
    shape: tuple, axes: tuple, rank: int, cfg: variants.LoraConfig
) -> tuple[spec.Spec, spec.Spec]:
    init_b = _RANDOM if cfg.init == "openpi" else "zeros"
    a = spec.Spec((*shape[:-1], rank), (*axes[:-1], "rank"), _RANDOM)
    b = spec.Spec((*shape[:-2], rank, shape[-1]), (*axes[:-2], "rank", axes[-1]), init_b)
    return a, b


def einsum(params: dict, equation: str, x: Array, cfg: variants.LoraConfig | None) -> Array:
    """einsum(equation, x, w) in the dtype of x, plus the adapter if there is one.

    Factor A replaces the weight's last letter by the rank letter, factor B its second-to-last.
    Quirk: for the attention output (BTNh,NhD->BTD) the head letter N is not in the rank activations
    BTr, so B is summed over heads.
    """
    y = linear.einsum(equation, x, params["w"].astype(x.dtype))
    if cfg is None:
        return y
    factor_a = params["lora_a"].astype(x.dtype)
    factor_b = params["lora_b"].astype(x.dtype)
    x_letters, w_letters, out = equation.replace("->", ",").split(",")
    inner, outer = w_letters[-2:]
    a_letters = w_letters.replace(outer, "r")
    b_letters = w_letters.replace(inner, "r")
    low_letters = out.replace(outer, "r")

    low = linear.einsum(f"{x_letters},{a_letters}->{low_letters}", x, factor_a)
    # Not linear.einsum: the rank activations of kv_einsum start with the k/v axis, which B has too.
    delta = jnp.einsum(f"{low_letters},{b_letters}->{out}", low, factor_b)
    return y + delta * cfg.attn_scale


def feed_forward_specs(
    depth: int, width: int, mlp_dim: int, cfg: variants.LoraConfig | None
) -> dict:
    """Stacked over layers.  gating_einsum [L,2,D,F] (0 = gate, 1 = up), linear [L,F,D]."""
    gating_axes = ("layers", None, "embed", "mlp")
    gating = spec.Spec((depth, 2, width, mlp_dim), gating_axes, ("lecun", width))
    down = spec.Spec((depth, mlp_dim, width), ("layers", "mlp", "embed"), ("lecun", mlp_dim))
    specs = {}
    for name, weight in (("gating_einsum", gating), ("linear", down)):
        specs[name] = weight
        if cfg is not None:
            a, b = _factors(weight.shape, weight.axes, cfg.ffn_rank, cfg)
            specs[f"{name}_lora_a"] = a
            specs[f"{name}_lora_b"] = b
    return specs


def feed_forward(params: dict, x_BTD: Array, cfg: variants.LoraConfig | None) -> Array:
    """Gated feed-forward, [B,T,D] -> [B,T,D].  Quirk: its adapters ignore alpha and rank."""

    def project(
        x: Array, name: str, index: int | tuple = (), product: Callable = linear.rows
    ) -> Array:
        y = product(x, params[name][index].astype(x.dtype))
        if cfg is None:
            return y
        factor_a = params[f"{name}_lora_a"][index].astype(x.dtype)
        factor_b = params[f"{name}_lora_b"][index].astype(x.dtype)
        return y + product(product(x, factor_a), factor_b)

    # On CPU slicing is free, and the gradient of a batched product slow.
    if meshes.platform() == "cpu":
        gate_BTF = project(x_BTD, "gating_einsum", 0)
        up_BTF = project(x_BTD, "gating_einsum", 1)
        return project(_gated(gate_BTF, up_BTF), "linear")
    # Elsewhere a slice of the two is a copy of its weights, in every layer, and to tell tokens of
    # one row from those of the next one, where they are no multiple of eight, a copy of what is
    # told apart: it stays merged while it is widest.
    rows_RD = x_BTD.reshape(-1, x_BTD.shape[-1])
    gate_RF, up_RF = _gate_and_up(params, rows_RD, cfg)
    out_RD = project(_gated(gate_RF, up_RF), "linear", product=linear.merged)
    return out_RD.reshape(x_BTD.shape)


def _gate_and_up(params: dict, x_RD: Array, cfg: variants.LoraConfig | None) -> Iterable[Array]:
    """The two projections [R,F] that one weight holds."""
    ys = linear.side_by_side(x_RD, params["gating_einsum"])
    if cfg is None:
        return ys
    lows = linear.side_by_side(x_RD, params["gating_einsum_lora_a"])
    deltas = map(linear.merged, lows, params["gating_einsum_lora_b"].astype(x_RD.dtype))
    return map(jnp.add, ys, deltas)


def _gated(gate: Array, up: Array) -> Array:
    return jax.nn.gelu(gate, approximate=True) * up
