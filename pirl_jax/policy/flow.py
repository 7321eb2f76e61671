"""The policy: a flow-matching network with one stochastic denoise step.

A decision denoises an action chunk in J steps.  J - 1 of them are deterministic (ODE); one, drawn per row, adds Gaussian noise
(SDE) and carries the log-probability: log pi(chunk | obs) := log N(x_{j+1}; mean(x_j), std(j)).  Sampling and learning go
through the same `denoise_step`, so right after a rollout the probability ratio is 1 up to rounding.

Knows networks and probabilities; refuses to know advantages, simulators and optimisers.
"""

import dataclasses

import chex
from flax import struct
import jax
import jax.numpy as jnp

from pirl_jax.core import types
from pirl_jax.models import heads
from pirl_jax.models import pi0
from pirl_jax.models import variants
from pirl_jax.policy import noise


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """How the network acts.  Names as users of RLinf know them."""

    model: variants.Pi0Config
    num_steps: int = 4  # denoise steps J
    noise_method: str = "flow_sde"
    noise_level: float = 0.5
    action_chunk: int = 5  # executed actions I per decision
    action_env_dim: int = 7  # action dims the simulator reads; only these enter the log-prob
    add_value_head: bool = True
    value_hidden: tuple[int, ...] = (512, 256, 128)
    detach_critic_input: bool = False
    chunk_critic_input: bool = False  # pool the first I suffix features instead of all H


@struct.dataclass
class Step:
    """One denoise step of a batch whose rows may stand at different denoise indices."""

    velocity: jax.Array  # [B,H,A]
    mean: jax.Array  # [B,H,A] of x_{j+1} given x_j
    std: jax.Array  # [B]
    value: jax.Array  # [B]


def specs(cfg: PolicyConfig) -> dict:
    """Parameter specs of network and value head in one tree."""
    tree = dict(pi0.specs(cfg.model))
    if cfg.add_value_head:
        tree |= heads.value_specs(cfg.model.expert.width, cfg.value_hidden)
    return tree


def denoise_step(params, prefix: pi0.Prefix, x_BHA, j_B, cfg: PolicyConfig) -> Step:
    """The one definition of a denoise step; j_B int32 in [0, J)."""
    dt = 1 / cfg.num_steps
    t_B = (cfg.num_steps - j_B).astype(jnp.float32) * dt
    velocity_BHA, feature_BHD = pi0.velocity(params, prefix, x_BHA, t_B, cfg.model)
    mean_BHA, std_B = noise.step(cfg.noise_method, x_BHA, velocity_BHA, t_B, dt, cfg.noise_level)
    return Step(velocity=velocity_BHA, mean=mean_BHA, std=std_B, value=_value(params, feature_BHD, cfg))


def _value(params, feature_BHD, cfg):
    if not cfg.add_value_head:
        return jnp.zeros(feature_BHD.shape[0], jnp.float32)
    chunk = cfg.action_chunk if cfg.chunk_critic_input else None
    return heads.suffix_value(params, feature_BHD, chunk=chunk, detach=cfg.detach_critic_input)


def gaussian_log_prob(x_BHA, mean_BHA, std_B, cfg: PolicyConfig):
    """log N(x; mean, std) summed over the executed I x action_env_dim entries [B]; 0 where std is 0."""
    error_BIA = (x_BHA - mean_BHA)[:, : cfg.action_chunk, : cfg.action_env_dim]
    safe_B = jnp.where(std_B > 0, std_B, 1.0)  # double where: no NaN gradient from a deterministic row
    z_BIA = error_BIA / safe_B[:, None, None]
    count = cfg.action_chunk * cfg.action_env_dim
    log_prob_B = -0.5 * jnp.sum(z_BIA**2, axis=(1, 2)) - count * (jnp.log(safe_B) + 0.5 * jnp.log(2 * jnp.pi))
    return jnp.where(std_B > 0, log_prob_B, 0.0)


def _draw(key_B, cfg):
    """Per-row randomness: the start x_0, the stochastic index and its noise.  One key per row makes a decision independent
    of the batch it is served in."""
    shape = (cfg.model.action_horizon, cfg.model.action_dim)

    def row(key):
        start, index, eps = jax.random.split(key, 3)
        j = jax.random.randint(index, (), 0, cfg.num_steps)
        return jax.random.normal(start, shape), j, jax.random.normal(eps, shape)

    return jax.vmap(row)(key_B)


def sample_chain(params, key_B, prefix: pi0.Prefix, cfg: PolicyConfig) -> tuple[types.Chain, jax.Array]:
    """Denoise one action chunk per row with one stochastic step each -> (Chain, actions_BHA in normalised space)."""
    chex.assert_rank(key_B, 1)
    x_BHA, chosen_B, eps_BHA = _draw(key_B, cfg)
    chain = types.Chain(x=x_BHA, x_next=x_BHA, j=chosen_B, log_prob=jnp.zeros(key_B.shape), value=jnp.zeros(key_B.shape))

    def body(carry, j):
        x_BHA, chain = carry
        step = denoise_step(params, prefix, x_BHA, jnp.full(chosen_B.shape, j), cfg)
        noisy_BHA = step.mean + step.std[:, None, None] * eps_BHA
        now = types.Chain(
            x=x_BHA, x_next=noisy_BHA, j=chosen_B, value=step.value,
            log_prob=gaussian_log_prob(noisy_BHA, step.mean, step.std, cfg),
        )
        here_B = chosen_B == j
        chain = jax.tree.map(lambda new, old: jnp.where(_expand(here_B, new), new, old), now, chain)
        ode_BHA = x_BHA - step.velocity / cfg.num_steps
        return (jnp.where(here_B[:, None, None], noisy_BHA, ode_BHA), chain), None

    (actions_BHA, chain), _ = jax.lax.scan(body, (x_BHA, chain), jnp.arange(cfg.num_steps))
    return chain, actions_BHA


def _expand(mask_B, like):
    return mask_B.reshape(mask_B.shape + (1,) * (like.ndim - 1))


def sample_actions(params, key_B, prefix: pi0.Prefix, cfg: PolicyConfig) -> jax.Array:
    """Deterministic denoising (given the start noise) for evaluation -> actions_BHA in normalised space."""
    shape = (cfg.model.action_horizon, cfg.model.action_dim)
    x_BHA = jax.vmap(lambda key: jax.random.normal(key, shape))(key_B)

    def body(x_BHA, j):
        t_B = jnp.full(x_BHA.shape[:1], (cfg.num_steps - j) / cfg.num_steps, jnp.float32)
        velocity_BHA, _ = pi0.velocity(params, prefix, x_BHA, t_B, cfg.model)
        return x_BHA - velocity_BHA / cfg.num_steps, None

    return jax.lax.scan(body, x_BHA, jnp.arange(cfg.num_steps))[0]


def chain_log_prob(params, chain: types.Chain, context, cfg: PolicyConfig):
    """Re-evaluate stored decisions under `params` -> (log_prob_B, entropy_B, value_B).

    context: the Observation, or its Prefix when the VLM is frozen and the prefix was kept from the rollout.  The entropy is
    the mean over the scored entries, nats per action entry (constant in the parameters for flow_sde).
    """
    prefix = pi0.prefill(params, context, cfg.model) if isinstance(context, types.Observation) else context
    step = denoise_step(params, prefix, chain.x, chain.j, cfg)
    log_prob_B = gaussian_log_prob(chain.x_next, step.mean, step.std, cfg)
    safe_B = jnp.where(step.std > 0, step.std, 1.0)
    entropy_B = jnp.where(step.std > 0, jnp.log(safe_B) + 0.5 * jnp.log(2 * jnp.pi * jnp.e), 0.0)
    return log_prob_B, entropy_B, step.value


def prefix_to_rows(prefix: pi0.Prefix) -> pi0.Prefix:
    """Layer-major cache [L,B,...] -> row-major [B,L,...], so that rows of a rollout can be gathered like any other array."""
    return prefix.replace(k=jnp.swapaxes(prefix.k, 0, 1), v=jnp.swapaxes(prefix.v, 0, 1))


def prefix_from_rows(rows: pi0.Prefix) -> pi0.Prefix:
    """Inverse of prefix_to_rows."""
    return prefix_to_rows(rows)
