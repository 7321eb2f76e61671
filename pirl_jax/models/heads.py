"""Small networks on top of the policy: value head and noise head.  Both run in float32 whatever the policy's compute dtype."""

import math

import jax
import jax.numpy as jnp

from pirl_jax.core import spec, types

NOISE_HIDDEN = (128, 64)  # RLinf's noise network


def value_specs(width: int, hidden: tuple[int, ...] = (512, 256, 128)) -> dict:
    """{'value_head': {'layer_0': {kernel [in,out], bias [out]}, ..., 'out': {kernel [hidden,1], bias [1]}}}."""
    tree = {}
    sizes = (width, *hidden)
    for i, (fan_in, fan_out) in enumerate(zip(sizes, hidden)):
        init = ("normal", math.sqrt(2 / fan_out))
        tree[f"layer_{i}"] = {
            "kernel": spec.Spec((fan_in, fan_out), ("embed", "mlp"), init),
            "bias": spec.Spec((fan_out,), ("mlp",)),
        }
    tree["out"] = {
        "kernel": spec.Spec((sizes[-1], 1), ("mlp", None), ("normal", 0.02)),
        "bias": spec.Spec((1,), (None,)),
    }
    return {"value_head": tree}


def noise_specs(width: int, action_dim: int, hidden: tuple[int, ...] = NOISE_HIDDEN) -> dict:
    """{'noise_head': {'layer_0': {kernel [in,out], bias [out]}, ..., 'out': {kernel [hidden,A], bias [A]}}}."""
    sizes = (width, *hidden, action_dim)
    names = [*(f"layer_{i}" for i in range(len(hidden))), "out"]
    tree = {}
    for name, fan_in, fan_out in zip(names, sizes, sizes[1:]):
        init = ("uniform", 1 / math.sqrt(fan_in))
        axes = ("embed", "action" if name == "out" else "mlp")
        tree[name] = {
            "kernel": spec.Spec((fan_in, fan_out), axes, init),
            "bias": spec.Spec((fan_out,), axes[1:], init),
        }
    return {"noise_head": tree}


def value(params: dict, x_BD: jax.Array) -> jax.Array:
    """ReLU network of value_specs: features [B,D] -> value [B] float32."""
    return _stack(params["value_head"], x_BD, jax.nn.relu)[:, 0]


def suffix_value(
    params: dict, feature_BHD: jax.Array, *, chunk: int | None = None, detach: bool = False
) -> jax.Array:
    """Value [B] of the mean action feature: over all H positions, or over the first `chunk`.

    `detach` keeps the gradient of the value loss out of the policy.
    """
    x_BD = feature_BHD[:, :chunk].astype(jnp.float32).mean(1)
    return value(params, jax.lax.stop_gradient(x_BD) if detach else x_BD)


def pool(hidden_BSD: jax.Array, mask_BS: jax.Array, mode: str) -> jax.Array:
    """One state per row out of the tokens that exist: mean_token | first_token | last_token -> [B,D] float32."""
    if mode not in POOLS:
        raise types.unknown("value_vlm_mode", mode, POOLS)
    S = mask_BS.shape[1]
    weight_BS = {
        "mean_token": lambda: mask_BS / mask_BS.sum(1, keepdims=True),
        "first_token": lambda: jax.nn.one_hot(jnp.argmax(mask_BS, axis=1), S),
        "last_token": lambda: jax.nn.one_hot(S - 1 - jnp.argmax(mask_BS[:, ::-1], axis=1), S),
    }[mode]()
    # Selection, not multiplication by 0: what stands in padding is nobody's business.
    hidden_BSD = jnp.where(mask_BS[:, :, None], hidden_BSD.astype(jnp.float32), 0.0)
    return jnp.einsum("BSD,BS->BD", hidden_BSD, weight_BS.astype(jnp.float32))


POOLS = ("mean_token", "first_token", "last_token")


def noise_std(params: dict, feature_BHD: jax.Array, bounds: tuple[float, float]) -> jax.Array:
    """Learned std of every action entry [B,H,A] float32, between `bounds` (of the std, not of its logarithm):
    log std = log low + (log high - log low) (tanh(y) + 1) / 2 with y a tanh network of noise_specs."""
    y_BHA = jnp.tanh(_stack(params["noise_head"], feature_BHD, jnp.tanh))
    low, high = (math.log(bound) for bound in bounds)
    return jnp.exp(low + (high - low) * (y_BHA + 1) / 2)


def _stack(layers: dict, x: jax.Array, activation) -> jax.Array:
    """layer_0, layer_1, ... with the activation between, then `out`."""
    x = x.astype(jnp.float32)
    for i in range(len(layers) - 1):
        x = activation(_linear(layers[f"layer_{i}"], x))
    return _linear(layers["out"], x)


def _linear(params: dict, x: jax.Array) -> jax.Array:
    bias = params["bias"].astype(jnp.float32)
    return x @ params["kernel"].astype(jnp.float32) + bias.reshape((1,) * (x.ndim - 1) + (-1,))
