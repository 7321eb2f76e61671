"""Mean and standard deviation of one denoise step, per noise method.

Nothing else in the project defines them.

Every method maps (x_BHA, v_BHA, t_B11, dt, scale) to (mean_BHA, std) in float32.
t = 1 is noise, t = 0 is action; one step goes from t to t - dt with dt = 1 / num_steps.
`scale` is what sets the size of the noise: the noise level [B,1,1], or for flow_noise the std that
a network has learned [B,H,A]; std has its shape.  All methods share the endpoint estimates

    x0 = x - t v          the action the velocity points at
    x1 = x + (1 - t) v    the noise it comes from

and mix them: mean = (1 - (t - dt)) x0 + w1 x1.  Formulas: pi_RL / Flow-GRPO, restated
in docs/algorithms.md.
"""

from jax import Array
import jax.numpy as jnp

from pirl_jax.core import bounds


def _mix(x_BHA: Array, v_BHA: Array, t_B11: Array, dt: float, w1_B11: Array) -> Array:
    x0_BHA = x_BHA - t_B11 * v_BHA
    x1_BHA = x_BHA + (1 - t_B11) * v_BHA
    return (1 - t_B11 + dt) * x0_BHA + w1_B11 * x1_BHA


def flow_ode(
    x_BHA: Array, v_BHA: Array, t_B11: Array, dt: float, scale: Array
) -> tuple[Array, Array]:
    """Euler step x - dt v; no noise, whatever the level."""
    mean_BHA = _mix(x_BHA, v_BHA, t_B11, dt, t_B11 - dt)
    return mean_BHA, jnp.zeros_like(scale)


def sde_sigma(t: Array, dt: float, level: Array) -> Array:
    """Diffusion sigma(t) = level sqrt(t / (1 - t)).

    At t = 1 the pole is replaced by the next grid point (1 - t := dt).
    """
    return level * jnp.sqrt(t / jnp.where(t >= 1, dt, 1 - t))


def flow_sde(
    x_BHA: Array, v_BHA: Array, t_B11: Array, dt: float, scale: Array
) -> tuple[Array, Array]:
    """Euler-Maruyama step of the SDE that has the ODE's marginals (Flow-GRPO).

    std = sigma sqrt(dt), and the drift correction lowers the noise weight by sigma^2 dt / (2 t).
    """
    sigma_B11 = sde_sigma(t_B11, dt, scale)
    w1_B11 = t_B11 - dt - sigma_B11**2 * dt / (2 * t_B11)
    mean_BHA = _mix(x_BHA, v_BHA, t_B11, dt, w1_B11)
    return mean_BHA, sigma_B11 * jnp.sqrt(jnp.float32(dt))


def flow_cps(
    x_BHA: Array, v_BHA: Array, t_B11: Array, dt: float, scale: Array
) -> tuple[Array, Array]:
    """Coefficient-preserving sampling (Flow-CPS).

    Turns part of the old noise x1 into fresh noise by an angle, so that their squared weights still
    add up to (t - dt)^2.  The last step, t = dt, is deterministic.
    """
    angle_B11 = scale * (jnp.pi / 2)
    # An exact 0 after the last step, where t - dt would leave its rounding.
    next_B11 = jnp.where(t_B11 > 1.5 * dt, t_B11 - dt, 0.0)
    mean_BHA = _mix(x_BHA, v_BHA, t_B11, dt, next_B11 * jnp.cos(angle_B11))
    return mean_BHA, next_B11 * jnp.sin(angle_B11)


def flow_noise(
    x_BHA: Array, v_BHA: Array, t_B11: Array, dt: float, scale: Array
) -> tuple[Array, Array]:
    """Euler step plus noise of a learned std (ReinFlow; models/heads.py noise_std)."""
    mean_BHA = _mix(x_BHA, v_BHA, t_B11, dt, t_B11 - dt)
    return mean_BHA, scale


METHODS = {
    "flow_ode": flow_ode,
    "flow_sde": flow_sde,
    "flow_noise": flow_noise,
    "flow_cps": flow_cps,
}
ALIASES = {"reinflow": "flow_noise"}  # its older name
LAST_STEP_DETERMINISTIC = {"flow_cps"}


def step(
    method: str, x_BHA: Array, v_BHA: Array, t_B: Array, dt: float, scale: Array
) -> tuple[Array, Array]:
    """(mean_BHA, std) of one step of `method`; an unknown method lists the choices."""
    if method not in METHODS:
        raise bounds.unknown("noise_method", method, METHODS)
    return METHODS[method](x_BHA, v_BHA, t_B[:, None, None], dt, scale)


def annealed(start: float, end: float, iterations: int, iteration: int) -> float:
    """Noise level of an iteration: a straight line from start to end, then constant."""
    return start + (end - start) * min(iteration, iterations) / iterations
