"""Mean and standard deviation of one denoise step, per noise method.  Nothing else in the project defines them.

Every method maps (x_BHA, v_BHA, t_B, dt, level) to (mean_BHA, std_B) in float32.  t = 1 is noise, t = 0 is action; one step
goes from t to t - dt with dt = 1 / num_steps.  All methods share the endpoint estimates

    x0 = x - t v          the action the velocity points at
    x1 = x + (1 - t) v    the noise it comes from

and mix them: mean = (1 - (t - dt)) x0 + w1 x1.  Formulas: pi_RL / Flow-GRPO, restated in docs/algorithms.md.
"""

import jax
import jax.numpy as jnp

from pirl_jax.core import types


def _mix(x_BHA, v_BHA, t_B, dt, w1_B):
    t_B11, w1_B11 = t_B[:, None, None], w1_B[:, None, None]
    x0_BHA = x_BHA - t_B11 * v_BHA
    x1_BHA = x_BHA + (1 - t_B11) * v_BHA
    return (1 - t_B11 + dt) * x0_BHA + w1_B11 * x1_BHA


def flow_ode(x_BHA, v_BHA, t_B, dt, level):
    """Euler step x - dt v; no noise, whatever the level."""
    del level
    return _mix(x_BHA, v_BHA, t_B, dt, t_B - dt), jnp.zeros_like(t_B)


def sde_sigma(t_B, dt, level):
    """Diffusion sigma(t) = level sqrt(t / (1 - t)); at t = 1 the pole is replaced by the next grid point (1 - t := dt)."""
    return level * jnp.sqrt(t_B / jnp.where(t_B >= 1, dt, 1 - t_B))


def flow_sde(x_BHA, v_BHA, t_B, dt, level):
    """Euler-Maruyama step of the SDE that has the ODE's marginals (Flow-GRPO): std = sigma sqrt(dt), and the drift
    correction lowers the noise weight by sigma^2 dt / (2 t)."""
    sigma_B = sde_sigma(t_B, dt, level)
    w1_B = t_B - dt - sigma_B**2 * dt / (2 * t_B)
    return _mix(x_BHA, v_BHA, t_B, dt, w1_B), sigma_B * jnp.sqrt(jnp.float32(dt))


METHODS = {"flow_ode": flow_ode, "flow_sde": flow_sde}


def step(method: str, x_BHA: jax.Array, v_BHA: jax.Array, t_B: jax.Array, dt: float, level: float):
    """(mean_BHA, std_B) of one step of `method`; an unknown method lists the choices."""
    if method not in METHODS:
        raise types.unknown("noise_method", method, METHODS)
    return METHODS[method](x_BHA, v_BHA, t_B, dt, level)
