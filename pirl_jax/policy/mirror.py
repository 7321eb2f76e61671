"""The policy and its mirror image at the one that played: how well each predicts a stored step.

With d = v - v_old the two are v_old + beta d and v_old - beta d.  Their energies E+ and E- are the
weighted squared errors of what they predict, over executed entries.  Formulas, and where the two
published programs differ: docs/algorithms.md.  Refuses to know labels and losses (rl/nft.py).
"""

from collections.abc import Callable
import functools

from flax import struct
import jax
from jax import Array
import jax.numpy as jnp

from pirl_jax.core import page, types
from pirl_jax.models import pi0
from pirl_jax.policy import flow, noise

# Axes of [B,I,a] over which an energy is one number.
LEVELS = {"action": (-1,), "chunk": (-2, -1)}
SMALLEST_VARIANCE = 1e-4  # added to that of a step, as in both programs
SMALLEST_ERROR = 1e-5  # of the adaptive weight
SMALLEST_NORM = 1e-8


@struct.dataclass
class Mirrored:
    """Of B rows with U steps, [B,U,I], or [B,U] with level=chunk."""

    e_pos: Array  # E+, of the policy moved towards the present one
    e_neg: Array  # E-, of its mirror image
    # The same with the change held within clip_ratio, without gradient; those above without one.
    held_pos: Array
    held_neg: Array
    is_held: Array  # bool: a limit has shortened the change
    drift: Array  # |d|, before any limit
    squared_drift: Array  # mean of d^2 over the entries
    z_squared: Array  # mean of ((target - prediction) / std)^2 of the policy
    kl: Array  # between the steps of both policies, at the std that was played; 0 without noise


def mirrored(
    velocity_BUHA: Array | list[Array], chain: types.Chain, cfg: flow.Policy, options: page.Nft
) -> Mirrored:
    """The energies of stored steps, from the velocities [B,H,A] of the policy at each of them.

    chain: with `velocity`, and `std` where it is learned.
    """
    steps = []
    for u, velocity_BHA in enumerate(velocity_BUHA):
        steps.append(_of_step(velocity_BHA, chain, u, cfg, options))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves, 1), *steps)


def _of_step(
    velocity_BHA: Array, chain: types.Chain, u: int, cfg: flow.Policy, options: page.Nft
) -> Mirrored:
    axes = LEVELS[options.level]
    old_BIa = flow.executed(chain.velocity[:, u], cfg)
    t_B = flow.flow_time(chain.j[:, u], cfg)
    target_BIa = _target(chain, u, cfg, options)
    predict, std = _prediction(chain, u, t_B, cfg, options)
    delta_BIa = flow.executed(velocity_BHA, cfg) - old_BIa
    drift = _norm(delta_BIa, axes)
    limit = jnp.ones_like(drift)
    if options.max_drift:
        limit = jnp.minimum(options.max_drift / (drift + SMALLEST_NORM), 1.0)

    def errors(limit: Array) -> tuple[Array, Array]:
        change_BIa = options.beta * limit * delta_BIa
        ahead_BIa = predict(old_BIa + change_BIa) - target_BIa
        behind_BIa = predict(old_BIa - change_BIa) - target_BIa
        return ahead_BIa, behind_BIa

    both = errors(limit)
    weigh = functools.partial(
        _weight, kind=weight_kind(cfg, options), t=t_B[:, None, None], std=std, axes=axes
    )
    weights = []
    for error_BIa, scale in zip(both, options.weight_scale, strict=True):
        weights.append(scale * weigh(error_BIa))
    reduce = jnp.sum if options.reduction == "sum" else jnp.mean

    def energies(both: tuple[Array, Array]) -> list[Array]:
        pairs = zip(both, weights, strict=True)
        return [reduce(weight * error_BIa**2, axes) for error_BIa, weight in pairs]

    e_pos, e_neg = energies(both)
    held_pos, held_neg = e_pos, e_neg
    is_held = limit < 1
    if options.clip_ratio:
        farthest = options.clip_ratio * jnp.maximum(_norm(old_BIa, axes), SMALLEST_NORM)
        within = jnp.minimum(farthest / jnp.maximum(drift, SMALLEST_NORM), 1.0)
        held_pos, held_neg = jax.lax.stop_gradient(energies(errors(limit * within)))
        is_held |= within < 1
    z_BIa = both[0] / (std + SMALLEST_VARIANCE)
    moved_BIa = predict(old_BIa + delta_BIa) - predict(old_BIa)
    kl_BIa = jnp.where(std > 0, 0.5 * (moved_BIa / jnp.where(std > 0, std, 1.0)) ** 2, 0.0)
    shape = e_pos.shape
    return Mirrored(
        e_pos=e_pos,
        e_neg=e_neg,
        held_pos=held_pos,
        held_neg=held_neg,
        is_held=is_held.reshape(shape),
        drift=drift.reshape(shape),
        squared_drift=(delta_BIa**2).mean(axes),
        z_squared=(z_BIa**2).mean(axes),
        kl=kl_BIa.sum(axes),
    )


def _norm(x_BIa: Array, axes: tuple[int, ...]) -> Array:
    """Its gradient at 0 is 0: there the policy is the one that played."""
    square = (x_BIa**2).sum(axes, keepdims=True)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def _target(chain: types.Chain, u: int, cfg: flow.Policy, options: page.Nft) -> Array:
    target_BHA = chain.x_next[:, u] if options.target == "xnext" else chain.actions
    return flow.executed(target_BHA, cfg)


def _prediction(
    chain: types.Chain, u: int, t_B: Array, cfg: flow.Policy, options: page.Nft
) -> tuple[Callable, Array]:
    """Velocity [B,I,a] -> what it predicts; and the std of the stored step."""
    x_BIa = flow.executed(chain.x[:, u], cfg)
    dt = 1 / cfg.model.num_steps
    method = cfg.model.noise_method
    scale = chain.level[:, None, None]
    if method == "flow_noise":
        scale = flow.executed(chain.std[:, u], cfg)
    _, std = noise.step(method, x_BIa, x_BIa, t_B, dt, scale)

    def next_one(velocity_BIa: Array) -> Array:
        return noise.step(method, x_BIa, velocity_BIa, t_B, dt, scale)[0]

    def chunk(velocity_BIa: Array) -> Array:
        return noise.step("flow_ode", x_BIa, velocity_BIa, t_B, t_B[:, None, None], scale)[0]

    def jump(velocity_BIa: Array) -> Array:
        # The pole at t = 1 stays where a step of dt has it.
        pole = jnp.where(t_B >= 1, jnp.sqrt(1 / dt), 1.0)[:, None, None]
        length = t_B[:, None, None]
        return noise.step(method, x_BIa, velocity_BIa, t_B, length, pole * scale)[0]

    return {"xnext": next_one, "x0": chunk, "x0_sde": jump}[options.target], std


def resampled(
    params: dict, key_B: Array, prefix: pi0.Prefix, chain: types.Chain, cfg: flow.Policy
) -> types.Chain:
    """The chain at fresh points on the lines between noise and the chunk it ended in.

    Called right after the chain was sampled, by the policy that did: its velocity there is the old
    one.  The denoise steps are uniform over all J, or all of them where all are stochastic.  What
    the chain was is gone: x_next is the chunk.
    """
    U = chain.j.shape[1]
    J = cfg.model.num_steps

    def row(key: Array, actions_HA: Array) -> tuple[Array, Array]:
        index_key, noise_key = jax.random.split(jax.random.fold_in(key, 1))
        j_U = jnp.arange(J) if U == J else jax.random.randint(index_key, (U,), 0, J)
        t_U11 = flow.flow_time(j_U, cfg)[:, None, None]
        noise_UHA = jax.random.normal(noise_key, (U, *actions_HA.shape))
        return j_U, (1 - t_U11) * actions_HA[None] + t_U11 * noise_UHA

    j_BU, x_BUHA = jax.vmap(row)(key_B, chain.actions)
    chain = chain.replace(
        x=x_BUHA, j=j_BU, x_next=jnp.broadcast_to(chain.actions[:, None], x_BUHA.shape)
    )
    steps = flow.chain_steps(params, chain, prefix, cfg)
    velocity_BUHA = jnp.stack([step.velocity for step in steps], 1)
    std = chain.std if chain.std is None else jnp.stack([step.std for step in steps], 1)
    return chain.replace(velocity=velocity_BUHA, std=std)


# ---- weights -----------------------------------------------------------------------------------


def weight_kind(cfg: flow.Policy, options: page.Nft) -> str:
    """A line of WEIGHTS.

    auto: steps with noise by their std; without, which have none, by the size of the error.
    """
    if options.weight != "auto":
        return options.weight
    return "adaptive" if cfg.model.noise_method == "flow_ode" else "sigma"


def _weight(error: Array, kind: str, t: Array, std: Array, axes: tuple[int, ...]) -> Array:
    if kind == "adaptive":
        size = jnp.abs(jax.lax.stop_gradient(error)).mean(axes, keepdims=True)
        return 1 / jnp.maximum(size, SMALLEST_ERROR)
    return WEIGHTS[kind](t, jax.lax.stop_gradient(std))


def _by_sigma(t: Array, std: Array) -> Array:
    return 1 / (std**2 + SMALLEST_VARIANCE)


def _constant(t: Array, std: Array) -> Array:
    return jnp.ones_like(t)


def _by_time(t: Array, std: Array) -> Array:
    return t**2


def _by_time_passed(t: Array, std: Array) -> Array:
    return (1 - t) ** 2


def _by_inverse_square(t: Array, std: Array) -> Array:
    return 1 / (t**2 + SMALLEST_VARIANCE)


def _by_inverse_cube(t: Array, std: Array) -> Array:
    return 1 / (t**3 + SMALLEST_VARIANCE)


# The published ones besides adaptive, which looks at the error.
WEIGHTS = {
    "sigma": _by_sigma,
    "constant": _constant,
    "t": _by_time,
    "1-t": _by_time_passed,
    "inv_t2": _by_inverse_square,
    "inv_t3": _by_inverse_cube,
}
