"""Small networks on top of the policy: the value head.  Runs in float32 whatever the compute dtype of the policy."""

import math

import jax
import jax.numpy as jnp

from pirl_jax.core import spec


def value_specs(width: int, hidden: tuple[int, ...] = (512, 256, 128)) -> dict:
    """{'value_head': {'layer_0': {kernel [in,out], bias [out]}, ..., 'out': {kernel [hidden,1], bias [1]}}}."""
    tree = {}
    sizes = (width, *hidden)
    for i, (fan_in, fan_out) in enumerate(zip(sizes, hidden)):
        init = ("normal", math.sqrt(2 / fan_out))
        tree[f"layer_{i}"] = {"kernel": spec.Spec((fan_in, fan_out), ("embed", "mlp"), init),
                              "bias": spec.Spec((fan_out,), ("mlp",))}
    tree["out"] = {"kernel": spec.Spec((sizes[-1], 1), ("mlp", None), ("normal", 0.02)),
                   "bias": spec.Spec((1,), (None,))}
    return {"value_head": tree}


def value(params: dict, x_BD: jax.Array) -> jax.Array:
    """ReLU network of value_specs: features [B,D] -> value [B] float32."""
    head = params["value_head"]
    x = x_BD.astype(jnp.float32)
    for i in range(len(head) - 1):
        x = jax.nn.relu(_linear(head[f"layer_{i}"], x))
    return _linear(head["out"], x)[:, 0]


def suffix_value(params: dict, feature_BHD: jax.Array, *, chunk: int | None = None, detach: bool = False) -> jax.Array:
    """Value [B] of the mean action feature: over all H positions, or over the first `chunk`.

    `detach` keeps the gradient of the value loss out of the policy.
    """
    x_BD = feature_BHD[:, :chunk].astype(jnp.float32).mean(1)
    return value(params, jax.lax.stop_gradient(x_BD) if detach else x_BD)


def _linear(params: dict, x_BD: jax.Array) -> jax.Array:
    return x_BD @ params["kernel"].astype(jnp.float32) + params["bias"].astype(jnp.float32)[None]
