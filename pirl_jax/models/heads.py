"""Small networks on top of the policy: value head and noise head.

Both run in float32 whatever the policy's compute dtype.  Knows no rollout and no loss.
"""

from collections.abc import Callable
import math

import jax
from jax import Array
import jax.numpy as jnp

from pirl_jax.core import bounds
from pirl_jax.models import linear

NOISE_HIDDEN = (128, 64)  # RLinf's noise network


def value_specs(width: int, hidden: tuple[int, ...] = (512, 256, 128)) -> dict:
    """Parameters of the value head.

    {'value_head': {'layer_0': {kernel [in,out], bias [out]}, ..., 'out': to one number}}
    """
    layers = {}
    fan_in = width
    for number, fan_out in enumerate(hidden):
        shape = (fan_in, fan_out)
        # Kaiming normal by the fan-out, as RLinf starts it.
        init = ("normal", math.sqrt(2 / fan_out))
        layers[f"layer_{number}"] = linear.specs(shape, ("embed", "mlp"), init)
        fan_in = fan_out
    layers["out"] = linear.specs((fan_in, 1), ("mlp", None), ("normal", 0.02))
    return {"value_head": layers}


def noise_specs(width: int, action_dim: int, hidden: tuple[int, ...] = NOISE_HIDDEN) -> dict:
    """Parameters of the noise head.

    {'noise_head': {'layer_0': {kernel [in,out], bias [out]}, ..., 'out': to A numbers}}
    """
    layers = {}
    fan_in = width
    for number, fan_out in enumerate(hidden):
        layers[f"layer_{number}"] = _noise_layer(fan_in, fan_out, "mlp")
        fan_in = fan_out
    layers["out"] = _noise_layer(fan_in, action_dim, "action")
    return {"noise_head": layers}


def _noise_layer(fan_in: int, fan_out: int, out_axis: str) -> dict:
    # torch's default initialisation of a linear layer, which RLinf leaves as it is.
    init = ("uniform", 1 / math.sqrt(fan_in))
    return linear.specs((fan_in, fan_out), ("embed", out_axis), init, bias_init=init)


def value(params: dict, x_BD: Array) -> Array:
    """ReLU network of value_specs: features [B,D] -> value [B] float32."""
    return _stack(params["value_head"], x_BD, jax.nn.relu)[:, 0]


def suffix_value(
    params: dict, feature_BHD: Array, *, chunk: int | None = None, detach: bool = False
) -> Array:
    """Value [B] of the mean action feature: over all H positions, or over the first `chunk`.

    `detach` keeps the gradient of the value loss out of the policy.
    """
    pooled_BD = feature_BHD[:, :chunk].astype(jnp.float32).mean(1)
    if detach:
        pooled_BD = jax.lax.stop_gradient(pooled_BD)
    return value(params, pooled_BD)


def pool(hidden_BSD: Array, mask_BS: Array, mode: str) -> Array:
    """One state per row out of the tokens that exist, by a line of POOLS -> [B,D] float32."""
    if mode not in POOLS:
        raise bounds.unknown("value_vlm_mode", mode, POOLS)
    weight_BS = POOLS[mode](mask_BS).astype(jnp.float32)
    # Selection, not multiplication by 0: what stands in padding is nobody's business.
    hidden_BSD = jnp.where(mask_BS[:, :, None], hidden_BSD.astype(jnp.float32), 0.0)
    return jnp.einsum("BSD,BS->BD", hidden_BSD, weight_BS)


def _mean_token(mask_BS: Array) -> Array:
    return mask_BS / mask_BS.sum(1, keepdims=True)


def _first_token(mask_BS: Array) -> Array:
    first_B = jnp.argmax(mask_BS, axis=1)
    return jax.nn.one_hot(first_B, mask_BS.shape[1])


def _last_token(mask_BS: Array) -> Array:
    S = mask_BS.shape[1]
    from_the_end_B = jnp.argmax(mask_BS[:, ::-1], axis=1)
    last_B = S - 1 - from_the_end_B
    return jax.nn.one_hot(last_B, S)


# How much each token counts.
POOLS = {"mean_token": _mean_token, "first_token": _first_token, "last_token": _last_token}


def noise_std(params: dict, feature_BHD: Array, bounds: tuple[float, float]) -> Array:
    """Learned std of every action entry [B,H,A] float32, between `bounds`.

    They bound the std, not its logarithm: log std = log low + (log high - log low) (tanh(y) + 1) /
    2 with y a tanh network of noise_specs.
    """
    low, high = bounds
    log_low = math.log(low)
    log_range = math.log(high) - log_low
    y_BHA = jnp.tanh(_stack(params["noise_head"], feature_BHD, jnp.tanh))
    return jnp.exp(log_low + log_range * (y_BHA + 1) / 2)


def _stack(layers: dict, x: Array, activation: Callable[[Array], Array]) -> Array:
    """layer_0, layer_1, ... with the activation between, then `out`."""
    layers = jax.tree.map(lambda weight: weight.astype(jnp.float32), layers)
    x = x.astype(jnp.float32)
    for number in range(len(layers) - 1):
        x = activation(linear.affine(layers[f"layer_{number}"], x))
    return linear.affine(layers["out"], x)
