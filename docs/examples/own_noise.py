"""Your own noise method: mean and std of one denoise step, then PPO with it.

python docs/examples/own_noise.py [--config.num_iterations=40 ...]

The flow's Euler step, with noise that fades as a cosine from the first step to the last.  It stands
here in the place of flow_sde, whose name the configuration knows; CONTRIBUTING.md says how a method
gets a name of its own.
"""

import sys

import jax
from jax import Array
import jax.numpy as jnp

from pirl_jax import train
from pirl_jax.core import mesh as meshes
from pirl_jax.core import types
from pirl_jax.policy import flow, noise
from pirl_jax.recipes import probe
from pirl_jax.run import config, policies


def cosine(
    x_BHA: Array, v_BHA: Array, t_B11: Array, dt: float, scale: Array
) -> tuple[Array, Array]:
    """Mean and std of the step from t to t - dt; t = 1 is noise, t = 0 is action."""
    return x_BHA - dt * v_BHA, scale * jnp.sin(t_B11 * jnp.pi / 2) * jnp.sqrt(dt)


def ratio() -> Array:
    """Of probabilities when learning looks at what was just played: 1, or the method is wrong."""
    settings = config.settings(probe.get_config())
    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    params = policies.fresh_params(settings, mesh, jax.random.key(0))
    obs = types.Observation(
        images=jnp.zeros((4, 2, 16, 16, 3)),
        image_mask=jnp.ones((4, 2), bool),
        state=jnp.zeros((4, settings.policy.network.action_dim)),
        tokens=jnp.ones((4, 8), int),
        token_mask=jnp.ones((4, 8), bool),
    )
    keys = jax.random.split(jax.random.key(1), 4)
    prefix = flow.prefill(params, obs, settings.policy)
    chain, _ = flow.sample_chain(params, keys, prefix, settings.policy)
    log_prob, _, _ = flow.chain_log_prob(params, chain, prefix, settings.policy)
    return jnp.exp((log_prob - chain.log_prob).sum((1, 2)))


if __name__ == "__main__":
    noise.METHODS["flow_sde"] = cosine
    print("ratio before any update:", ratio())
    given = ["--config=probe", "--config.run.directory=runs/own_noise"]
    train.main(["train", *given, *sys.argv[1:]])
