"""The policy: a flow-matching network with stochastic denoise steps.

A decision denoises an action chunk in J steps.  By default J - 1 of them are deterministic (ODE); one, drawn per row, adds
Gaussian noise and carries the log-probability: log pi(chunk | obs) := log N(x_{j+1}; mean(x_j), std(j)).  With joint_logprob all
J steps are stochastic and their log-probabilities add up.  Sampling and learning go through the same `denoise_step`, so right
after a rollout the probability ratio is 1 up to rounding.

Knows networks and probabilities; refuses to know advantages, simulators and optimisers.
"""

import dataclasses

import chex
from flax import struct
import jax
import jax.numpy as jnp

from pirl_jax.core import page, types
from pirl_jax.models import heads, pi0, variants
from pirl_jax.policy import noise


@dataclasses.dataclass(frozen=True)
class Policy:
    """A network and how it acts.  On its page aliases and protocol are resolved (run/config.py)."""

    network: variants.Pi0Config
    model: page.Model = page.Model()


@struct.dataclass
class Step:
    """One denoise step of a batch whose rows may stand at different denoise indices."""

    velocity: jax.Array  # [B,H,A]
    mean: jax.Array  # [B,H,A] of x_{j+1} given x_j
    std: jax.Array  # [B,H,A]
    value: jax.Array  # [B]


def specs(cfg: Policy) -> dict:
    """Parameter specs of network and heads in one tree."""
    tree = dict(pi0.specs(cfg.network))
    if cfg.model.add_value_head:
        width = (
            cfg.network.paligemma.width if cfg.model.value_after_vlm else cfg.network.expert.width
        )
        tree |= heads.value_specs(width, cfg.model.value_hidden)
    if cfg.model.noise_method == "flow_noise":
        tree |= heads.noise_specs(cfg.network.expert.width, cfg.network.action_dim)
    return tree


def prefill(params, obs: types.Observation, cfg: Policy) -> pi0.Prefix:
    """The prefix as this policy needs it: with a critic on the VLM's output it carries one pooled state per row."""
    if not (cfg.model.add_value_head and cfg.model.value_after_vlm):
        return pi0.prefill(params, obs, cfg.network)
    prefix = pi0.prefill(params, obs, cfg.network, hidden=True)
    return prefix.replace(
        hidden=None, pooled=heads.pool(prefix.hidden, prefix.mask, cfg.model.value_vlm_mode)
    )


def flow_time(j, cfg: Policy):
    """Where denoise step j starts."""
    return (cfg.model.num_steps - j).astype(jnp.float32) * (1 / cfg.model.num_steps)


def modulations(params, cfg: Policy):
    """What pi0.5's norms make of the J flow times: the only ones there are, so they are computed once, not once per row and step."""
    return pi0.modulations(params, flow_time(jnp.arange(cfg.model.num_steps), cfg), cfg.network)


def _velocity(params, prefix, modulation_J, x_BHA, j_B, cfg):
    """Velocity and action features where denoise step j of each row starts."""
    modulation = jax.tree.map(lambda x: x[j_B], modulation_J)
    return pi0.velocity(params, prefix, x_BHA, flow_time(j_B, cfg), cfg.network, modulation)


def denoise_step(
    params, prefix: pi0.Prefix, modulation_J, x_BHA, j_B, level_B, cfg: Policy
) -> Step:
    """The one definition of a denoise step; modulation_J from modulations(), j_B int32 in [0, J), level_B the noise level."""
    dt, t_B = 1 / cfg.model.num_steps, flow_time(j_B, cfg)
    velocity_BHA, feature_BHD = _velocity(params, prefix, modulation_J, x_BHA, j_B, cfg)
    if cfg.model.noise_method == "flow_noise":
        scale = heads.noise_std(params, feature_BHD, cfg.model.noise_logvar_range)
    else:
        scale = level_B[:, None, None]
    mean_BHA, std = noise.step(cfg.model.noise_method, x_BHA, velocity_BHA, t_B, dt, scale)
    value_B = _value(params, prefix, feature_BHD, cfg)
    return Step(
        velocity=velocity_BHA,
        mean=mean_BHA,
        std=jnp.broadcast_to(std, mean_BHA.shape),
        value=value_B,
    )


def _value(params, prefix, feature_BHD, cfg):
    if not cfg.model.add_value_head:
        return jnp.zeros(feature_BHD.shape[0], jnp.float32)
    if cfg.model.value_after_vlm:
        return heads.value(
            params,
            jax.lax.stop_gradient(prefix.pooled)
            if cfg.model.detach_critic_input
            else prefix.pooled,
        )
    chunk = cfg.model.action_chunk if cfg.model.chunk_critic_input else None
    return heads.suffix_value(
        params, feature_BHD, chunk=chunk, detach=cfg.model.detach_critic_input
    )


# ---- probability of a step: entries [B,I,A'] that are executed ------------------------------------------------------------


def executed(x_BHA, cfg: Policy):
    """The entries that reach the simulator [B,I,A']; only these are scored."""
    return x_BHA[:, : cfg.model.action_chunk, : cfg.model.action_env_dim]


def gaussian_log_prob(x, mean, std):
    """log N(x; mean, std) of every entry; 0 where std is 0."""
    safe = jnp.where(std > 0, std, 1.0)  # double where: no NaN gradient from a deterministic entry
    log_prob = -0.5 * ((x - mean) / safe) ** 2 - jnp.log(safe) - 0.5 * jnp.log(2 * jnp.pi)
    return jnp.where(std > 0, log_prob, 0.0)


def gaussian_entropy(std):
    """Nats per entry; 0 where std is 0."""
    safe = jnp.where(std > 0, std, 1.0)
    return jnp.where(std > 0, jnp.log(safe) + 0.5 * jnp.log(2 * jnp.pi * jnp.e), 0.0)


def gaussian_kl(mean, std, other_mean, other_std):
    """KL(N(mean, std) || N(other_mean, other_std)) of every entry; 0 where std is 0."""
    std, other_std = (jnp.where(std > 0, x, 1.0) for x in (std, other_std))
    spread = (std**2 + (mean - other_mean) ** 2) / (2 * other_std**2)
    return jnp.where(std > 0, jnp.log(other_std / std) + spread - 0.5, 0.0)


def _over_steps(terms: list, start, cfg: Policy):
    """What the K steps of a chain come to.  joint_mean adds the start noise as a term and takes the mean (RLinf's choice: the
    ratio of two policies is then the (J+1)-th root of the true one); otherwise the sum, which is the likelihood."""
    return (
        sum(terms, start) / (len(terms) + 1)
        if cfg.model.joint_logprob and cfg.model.joint_mean
        else sum(terms)
    )


# ---- sampling ------------------------------------------------------------------------------------------------------------


def num_choices(cfg: Policy) -> int:
    """Denoise steps that may be the stochastic one.  A step that is deterministic anyway would carry no gradient."""
    return cfg.model.num_steps - (
        cfg.model.ignore_last or cfg.model.noise_method in noise.LAST_STEP_DETERMINISTIC
    )


def draw(key_B, cfg: Policy):
    """Per-row randomness: start x_0 [B,H,A], stochastic steps j [B,K], their noise [B,K,H,A].  One key per row makes a
    decision independent of the batch it is served in."""
    shape = (cfg.network.action_horizon, cfg.network.action_dim)

    def row(key):
        start, index, eps = jax.random.split(key, 3)
        if cfg.model.joint_logprob:
            j_K = jnp.arange(cfg.model.num_steps)
        else:
            j_K = jax.random.randint(index, (1,), 0, num_choices(cfg))
        return jax.random.normal(start, shape), j_K, jax.random.normal(eps, (len(j_K), *shape))

    return jax.vmap(row)(key_B)


def sample_chain(
    params, key_B, prefix: pi0.Prefix, cfg: Policy, level=None
) -> tuple[types.Chain, jax.Array]:
    """Denoise one action chunk per row with noise -> (Chain, actions_BHA in normalised space).  level: scalar noise level of
    the moment; None is the configured one."""
    chex.assert_rank(key_B, 1)
    level_B = jnp.full(key_B.shape, cfg.model.noise_level if level is None else level, jnp.float32)
    return integrate(params, *draw(key_B, cfg), prefix, level_B, cfg)


def integrate(params, start_BHA, j_BK, eps_BKHA, prefix: pi0.Prefix, level_B, cfg: Policy):
    """sample_chain with its randomness given."""
    K, modulation_J = j_BK.shape[1], modulations(params, cfg)
    # Step j of the joint case has its own noise; otherwise the one noise is used wherever the row's stochastic step is.
    eps_JBHA = jnp.broadcast_to(
        jnp.moveaxis(eps_BKHA, 1, 0), (cfg.model.num_steps, *start_BHA.shape)
    )

    def body(x_BHA, now):
        j, eps_BHA = now
        step = denoise_step(
            params, prefix, modulation_J, x_BHA, jnp.full(x_BHA.shape[0], j), level_B, cfg
        )
        noisy_BHA = step.mean + step.std * eps_BHA
        stochastic_B = (j_BK == j).any(1)
        next_BHA = jnp.where(
            stochastic_B[:, None, None], noisy_BHA, x_BHA - step.velocity / cfg.model.num_steps
        )
        log_prob = gaussian_log_prob(*(executed(x, cfg) for x in (noisy_BHA, step.mean, step.std)))
        return next_BHA, (x_BHA, next_BHA, log_prob, step.value)

    actions_BHA, path = jax.lax.scan(body, start_BHA, (jnp.arange(cfg.model.num_steps), eps_JBHA))
    x, x_next, log_prob, value = jax.tree.map(lambda leaf: _select(leaf, j_BK), path)
    start = gaussian_log_prob(executed(start_BHA, cfg), 0.0, jnp.ones(()))
    chain = types.Chain(
        x=x,
        x_next=x_next,
        j=j_BK,
        level=level_B,
        value=value.mean(1),
        log_prob=_over_steps([log_prob[:, k] for k in range(K)], start, cfg),
    )
    return chain, actions_BHA


def _select(path_J, j_BK):
    """[J,B,...] -> [B,K,...]: the steps j of each row."""
    return jax.vmap(lambda row_J, j_K: row_J[j_K], in_axes=(1, 0))(path_J, j_BK)


def sample_actions(params, key_B, prefix: pi0.Prefix, cfg: Policy) -> jax.Array:
    """Deterministic denoising (given the start noise) for evaluation -> actions_BHA in normalised space."""
    shape = (cfg.network.action_horizon, cfg.network.action_dim)
    x_BHA, modulation_J = (
        jax.vmap(lambda key: jax.random.normal(key, shape))(key_B),
        modulations(params, cfg),
    )

    def body(x_BHA, j):
        velocity_BHA, _ = _velocity(
            params, prefix, modulation_J, x_BHA, jnp.full(x_BHA.shape[0], j), cfg
        )
        return x_BHA - velocity_BHA / cfg.model.num_steps, None

    return jax.lax.scan(body, x_BHA, jnp.arange(cfg.model.num_steps))[0]


# ---- learning ------------------------------------------------------------------------------------------------------------


def chain_steps(params, chain: types.Chain, context, cfg: Policy) -> list[Step]:
    """The K stochastic steps of stored decisions under `params`.

    context: the Observation, or its Prefix when the VLM is frozen and the prefix was kept from the rollout.
    """
    prefix = prefill(params, context, cfg) if isinstance(context, types.Observation) else context
    modulation_J = modulations(params, cfg)
    return [
        denoise_step(params, prefix, modulation_J, chain.x[:, k], chain.j[:, k], chain.level, cfg)
        for k in range(chain.j.shape[1])
    ]


def chain_log_prob(params, chain: types.Chain, context, cfg: Policy):
    """Re-evaluate stored decisions under `params` -> (log_prob_BIA, entropy_B, value_B); context as in chain_steps.

    The entropy is the mean over the scored entries, nats per action entry (constant in the parameters but for flow_noise).
    """
    return score(chain, chain_steps(params, chain, context, cfg), cfg)


def score(chain: types.Chain, steps: list[Step], cfg: Policy):
    """(log_prob_BIA, entropy_B, value_B) of stored decisions from their steps."""
    log_probs = [
        gaussian_log_prob(*(executed(x, cfg) for x in (chain.x_next[:, k], step.mean, step.std)))
        for k, step in enumerate(steps)
    ]
    start = gaussian_log_prob(executed(chain.x[:, 0], cfg), 0.0, jnp.ones(()))
    entropies = [gaussian_entropy(executed(step.std, cfg)) for step in steps]
    entropy_BIA = _over_steps(entropies, gaussian_entropy(jnp.ones(())), cfg)
    value_B = sum(step.value for step in steps) / len(steps)
    return _over_steps(log_probs, start, cfg), entropy_BIA.mean((1, 2)), value_B


def distance(steps: list[Step], others: list[Step], kind: str, cfg: Policy):
    """How far a policy's decisions lie from those of a fixed one [B].  kl: of the chunk, summed over steps and scored entries;
    velocity_mse: mean squared difference of the velocities over all entries."""
    if kind not in ANCHORS:
        raise types.unknown("anchor", kind, ANCHORS)
    if kind == "velocity_mse":
        return sum(
            ((a.velocity - b.velocity) ** 2).mean((1, 2))
            for a, b in zip(steps, others, strict=True)
        ) / len(steps)
    pairs = [
        [executed(x, cfg) for x in (a.mean, a.std, b.mean, b.std)]
        for a, b in zip(steps, others, strict=True)
    ]
    return sum(gaussian_kl(*pair).sum((1, 2)) for pair in pairs)


ANCHORS = ("kl", "velocity_mse")


def prefix_to_rows(prefix: pi0.Prefix) -> pi0.Prefix:
    """Layer-major cache [L,B,...] -> row-major [B,L,...], so that rows of a rollout can be gathered like any other array."""
    return prefix.replace(k=jnp.swapaxes(prefix.k, 0, 1), v=jnp.swapaxes(prefix.v, 0, 1))


def prefix_from_rows(rows: pi0.Prefix) -> pi0.Prefix:
    """Inverse of prefix_to_rows."""
    return prefix_to_rows(rows)
