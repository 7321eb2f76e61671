"""The policy: a flow-matching network with stochastic denoise steps.

A decision denoises an action chunk in J steps.  By default J - 1 of them are deterministic (ODE);
one, drawn per row or always the last, adds Gaussian noise and carries the log-probability: log
pi(chunk | obs) := log N(x_{j+1}; mean(x_j), std(j)).  With noise_steps=all every step is stochastic
and their log-probabilities add up.  Sampling and learning go through the same `denoise_step`, so
right after a rollout the probability ratio is 1 up to rounding.

Knows networks and probabilities; refuses to know advantages, simulators and optimisers.
"""

import dataclasses

import chex
from flax import struct
import jax
from jax import Array
import jax.numpy as jnp

from pirl_jax.core import bounds, page, types
from pirl_jax.core import mesh as meshes
from pirl_jax.models import heads, pi0, variants
from pirl_jax.policy import gaussian, noise


@dataclasses.dataclass(frozen=True)
class Policy:
    """A network and how it acts.

    On its page aliases and the protocol are resolved (run/config.py).
    """

    network: variants.Pi0Config
    model: page.Model
    nft: page.Nft | None = None  # where its loss is learned, which asks for more of a chain


@struct.dataclass
class Step:
    """One denoise step of a batch whose rows may stand at different denoise indices."""

    velocity: Array  # [B,H,A]
    mean: Array  # [B,H,A] of x_{j+1} given x_j
    std: Array  # [B,H,A]
    value: Array  # [B]


def specs(cfg: Policy) -> dict:
    """Parameter specs of network and heads in one tree."""
    tree = dict(pi0.specs(cfg.network))
    if cfg.model.add_value_head:
        reader = cfg.network.paligemma if cfg.model.value_after_vlm else cfg.network.expert
        tree |= heads.value_specs(reader.width, cfg.model.value_hidden)
    if cfg.model.noise_method == "flow_noise":
        tree |= heads.noise_specs(cfg.network.expert.width, cfg.network.action_dim)
    return tree


def prefill(params: dict, obs: types.Observation, cfg: Policy) -> pi0.Prefix:
    """The prefix as this policy needs it.

    With a critic on the VLM's output it carries one pooled state per row.
    """
    if not (cfg.model.add_value_head and cfg.model.value_after_vlm):
        return pi0.prefill(params, obs, cfg.network)
    prefix = pi0.prefill(params, obs, cfg.network, hidden=True)
    pooled_BD = heads.pool(prefix.hidden, prefix.mask, cfg.model.value_vlm_mode)
    # The states of all tokens are as large as the cache; nobody else reads them.
    return prefix.replace(hidden=None, pooled=pooled_BD)


def flow_time(j: Array, cfg: Policy) -> Array:
    """Where denoise step j starts."""
    return (cfg.model.num_steps - j).astype(jnp.float32) * (1 / cfg.model.num_steps)


def modulations(params: dict, cfg: Policy) -> dict | None:
    """What pi0.5's norms make of the J flow times.

    They are the only times there are, so they are computed once, not once per row and step.
    """
    t_J = flow_time(jnp.arange(cfg.model.num_steps), cfg)
    return pi0.modulations(params, t_J, cfg.network)


def _velocity(
    params: dict,
    prefix: pi0.Prefix,
    modulation_J: dict | None,
    x_BHA: Array,
    j_B: Array,
    cfg: Policy,
) -> tuple[Array, Array]:
    """Velocity and action features where denoise step j of each row starts."""
    modulation = jax.tree.map(lambda leaf_J: leaf_J[j_B], modulation_J)
    return pi0.velocity(params, prefix, x_BHA, flow_time(j_B, cfg), cfg.network, modulation)


def denoise_step(
    params: dict,
    prefix: pi0.Prefix,
    modulation_J: dict | None,
    x_BHA: Array,
    j_B: Array,
    level_B: Array,
    cfg: Policy,
) -> Step:
    """The one definition of a denoise step.

    Args:
      modulation_J: from modulations().
      j_B: int32 in [0, J).
      level_B: the noise level.
    """
    dt = 1 / cfg.model.num_steps
    t_B = flow_time(j_B, cfg)
    velocity_BHA, feature_BHD = _velocity(params, prefix, modulation_J, x_BHA, j_B, cfg)
    if cfg.model.noise_method == "flow_noise":
        scale = heads.noise_std(params, feature_BHD, cfg.model.noise_logvar_range)
    else:
        scale = level_B[:, None, None]
    mean_BHA, std = noise.step(cfg.model.noise_method, x_BHA, velocity_BHA, t_B, dt, scale)
    return Step(
        velocity=velocity_BHA,
        mean=mean_BHA,
        std=jnp.broadcast_to(std, mean_BHA.shape),
        value=_value(params, prefix, feature_BHD, cfg),
    )


def _value(params: dict, prefix: pi0.Prefix, feature_BHD: Array, cfg: Policy) -> Array:
    if not cfg.model.add_value_head:
        return jnp.zeros(feature_BHD.shape[0], jnp.float32)
    if cfg.model.value_after_vlm:
        pooled_BD = prefix.pooled
        if cfg.model.detach_critic_input:
            pooled_BD = jax.lax.stop_gradient(pooled_BD)
        return heads.value(params, pooled_BD)
    chunk = cfg.model.action_chunk if cfg.model.chunk_critic_input else None
    return heads.suffix_value(
        params, feature_BHD, chunk=chunk, detach=cfg.model.detach_critic_input
    )


# ---- probability of a step: entries [B,I,a] that are executed -----------------------------------


def executed(x_BHA: Array, cfg: Policy) -> Array:
    """The entries that reach the simulator [B,I,a]; only these are scored."""
    return x_BHA[:, : cfg.model.action_chunk, : cfg.model.action_env_dim]


def _executed_log_prob(x_BHA: Array, mean_BHA: Array, std_BHA: Array, cfg: Policy) -> Array:
    x_BIa = executed(x_BHA, cfg)
    mean_BIa = executed(mean_BHA, cfg)
    std_BIa = executed(std_BHA, cfg)
    return gaussian.log_prob(x_BIa, mean_BIa, std_BIa)


def _start_log_prob(start_BHA: Array, cfg: Policy) -> Array:
    """Of the noise a chain starts from, which is standard normal."""
    return gaussian.log_prob(executed(start_BHA, cfg), 0.0, jnp.ones(()))


def _over_steps(terms: list[Array], start: Array | float, cfg: Policy) -> Array:
    """What the U steps of a chain come to: the sum, which is the likelihood.

    joint_mean adds the start noise as a term and takes the mean (RLinf's choice: the ratio of two
    policies is then the (J+1)-th root of the true one).
    """
    if cfg.model.noise_steps == "all" and cfg.model.joint_mean:
        return sum(terms, start) / (len(terms) + 1)
    return sum(terms)


# ---- sampling -----------------------------------------------------------------------------------


def choices(cfg: Policy) -> range:
    """Denoise steps that may be the stochastic one.

    A step that is deterministic anyway would carry no gradient.
    """
    last_is_fixed = cfg.model.ignore_last or cfg.model.noise_method in noise.LAST_STEP_DETERMINISTIC
    first = cfg.model.num_steps - 1 if cfg.model.noise_steps == "last" else 0
    return range(first, cfg.model.num_steps - last_is_fixed)


def draw(key_B: Array, cfg: Policy) -> tuple[Array, Array, Array]:
    """Per-row randomness: start x_0 [B,H,A], stochastic steps j [B,U], their noise [B,U,H,A].

    One key per row makes a decision independent of the batch it is served in.
    """
    shape = (cfg.network.action_horizon, cfg.network.action_dim)

    def row(key: Array) -> tuple[Array, Array, Array]:
        start_key, index_key, noise_key = jax.random.split(key, 3)
        if cfg.model.noise_steps == "all":
            j_U = jnp.arange(cfg.model.num_steps)
        else:
            j_U = jax.random.randint(index_key, (1,), choices(cfg).start, choices(cfg).stop)
        start_HA = jax.random.normal(start_key, shape)
        noise_UHA = jax.random.normal(noise_key, (len(j_U), *shape))
        return start_HA, j_U, noise_UHA

    return jax.vmap(row)(key_B)


def sample_chain(
    params: dict,
    key_B: Array,
    prefix: pi0.Prefix,
    cfg: Policy,
    level: Array | float | None = None,
) -> tuple[types.Chain, Array]:
    """Denoise one action chunk per row with noise -> (Chain, actions_BHA in normalised space).

    level: scalar noise level of the moment; None is the configured one.
    """
    chex.assert_rank(key_B, 1)
    level = cfg.model.noise_level if level is None else level
    level_B = jnp.full(key_B.shape, level, jnp.float32)
    start_BHA, j_BU, noise_BUHA = draw(key_B, cfg)
    return integrate(params, start_BHA, j_BU, noise_BUHA, prefix, level_B, cfg)


def integrate(
    params: dict,
    start_BHA: Array,
    j_BU: Array,
    noise_BUHA: Array,
    prefix: pi0.Prefix,
    level_B: Array,
    cfg: Policy,
) -> tuple[types.Chain, Array]:
    """sample_chain with its randomness given."""
    B, U = j_BU.shape
    params = pi0.for_many_steps(params, cfg.network)
    modulation_J = modulations(params, cfg)
    # Step j of the joint case has its own noise; otherwise the one noise is used wherever the row's
    # stochastic step is.
    noise_UBHA = jnp.moveaxis(noise_BUHA, 1, 0)
    noise_JBHA = jnp.broadcast_to(noise_UBHA, (cfg.model.num_steps, *start_BHA.shape))

    def body(x_BHA: Array, now: tuple[Array, Array]) -> tuple[Array, tuple]:
        j, noise_BHA = now
        j_B = jnp.full(B, j)
        step = denoise_step(params, prefix, modulation_J, x_BHA, j_B, level_B, cfg)
        noisy_BHA = step.mean + step.std * noise_BHA
        is_stochastic_B11 = (j_BU == j).any(1)[:, None, None]
        plain_BHA = x_BHA - step.velocity / cfg.model.num_steps
        next_BHA = jnp.where(is_stochastic_B11, noisy_BHA, plain_BHA)
        log_prob_BIa = _executed_log_prob(noisy_BHA, step.mean, step.std, cfg)
        extra = {"velocity": step.velocity} if cfg.nft else {}
        if cfg.nft and cfg.model.noise_method == "flow_noise":
            extra["std"] = step.std
        return next_BHA, (x_BHA, next_BHA, log_prob_BIa, step.value, extra)

    steps = (jnp.arange(cfg.model.num_steps), noise_JBHA)
    actions_BHA, path = jax.lax.scan(body, start_BHA, steps)
    kept = jax.tree.map(lambda leaf_JB: _select(leaf_JB, j_BU), path)
    x_BUHA, x_next_BUHA, log_prob_BUIa, value_BU, extra = kept
    log_probs = [log_prob_BUIa[:, u] for u in range(U)]
    chain = types.Chain(
        x=x_BUHA,
        x_next=x_next_BUHA,
        j=j_BU,
        level=level_B,
        value=value_BU.mean(1),
        log_prob=_over_steps(log_probs, _start_log_prob(start_BHA, cfg), cfg),
        actions=actions_BHA,
        **extra,
    )
    return chain, actions_BHA


def _select(path_JB: Array, j_BU: Array) -> Array:
    """[J,B,...] -> [B,U,...]: the steps j of each row."""
    return jax.vmap(lambda row_J, j_U: row_J[j_U], in_axes=(1, 0))(path_JB, j_BU)


def sample_actions(params: dict, key_B: Array, prefix: pi0.Prefix, cfg: Policy) -> Array:
    """Deterministic denoising for evaluation -> actions_BHA in normalised space.

    Only the start noise is drawn.
    """
    shape = (cfg.network.action_horizon, cfg.network.action_dim)
    start_BHA = jax.vmap(lambda key: jax.random.normal(key, shape))(key_B)
    params = pi0.for_many_steps(params, cfg.network)
    modulation_J = modulations(params, cfg)

    def body(x_BHA: Array, j: Array) -> tuple[Array, None]:
        return _without_noise(params, prefix, modulation_J, x_BHA, j, cfg), None

    actions_BHA, _ = jax.lax.scan(body, start_BHA, jnp.arange(cfg.model.num_steps))
    return actions_BHA


def _without_noise(
    params: dict, prefix: pi0.Prefix, modulation_J: dict | None, x_BHA: Array, j: Array, cfg: Policy
) -> Array:
    """Denoise step j of all rows as a plain Euler step."""
    j_B = jnp.full(x_BHA.shape[0], j)
    velocity_BHA, _ = _velocity(params, prefix, modulation_J, x_BHA, j_B, cfg)
    return x_BHA - velocity_BHA / cfg.model.num_steps


def displacement(
    params: dict, chain: types.Chain, context: types.Observation | pi0.Prefix, cfg: Policy
) -> Array:
    """How far its noise has moved each decision [B]: against the chunk that the same start gives
    without noise, the root mean square over the executed entries, normalised units.

    chain: of a rollout with the same parameters; context as in chain_steps.
    """
    prefix = _prefix_of(params, context, cfg)
    params = pi0.for_many_steps(params, cfg.network)
    modulation_J = modulations(params, cfg)

    def body(paths: tuple[Array, Array], j: Array) -> tuple[tuple[Array, Array], None]:
        # Both paths stand still until they part: before the first stochastic step, after the last.
        plain_BHA, noisy_BHA = paths
        goes = (j >= chain.j[:, 0], j > chain.j[:, -1])
        moved = []
        for x_BHA, goes_B in zip((plain_BHA, noisy_BHA), goes, strict=True):
            next_BHA = _without_noise(params, prefix, modulation_J, x_BHA, j, cfg)
            moved.append(jnp.where(goes_B[:, None, None], next_BHA, x_BHA))
        return tuple(moved), None

    start = (chain.x[:, 0], chain.x_next[:, -1])
    (plain_BHA, noisy_BHA), _ = jax.lax.scan(body, start, jnp.arange(cfg.model.num_steps))
    return jnp.sqrt((executed(noisy_BHA - plain_BHA, cfg) ** 2).mean((1, 2)))


# ---- learning -----------------------------------------------------------------------------------


def chain_steps(
    params: dict,
    chain: types.Chain,
    context: types.Observation | pi0.Prefix,
    cfg: Policy,
) -> list[Step]:
    """The U stochastic steps of stored decisions under `params`.

    context: the Observation, or its Prefix when the VLM is frozen and the prefix was kept from the
    rollout.
    """
    prefix = _prefix_of(params, context, cfg)
    modulation_J = modulations(params, cfg)
    steps = []
    for u in range(chain.j.shape[1]):
        x_BHA = chain.x[:, u]
        j_B = chain.j[:, u]
        step = denoise_step(params, prefix, modulation_J, x_BHA, j_B, chain.level, cfg)
        steps.append(step)
    return steps


def _prefix_of(params: dict, context: types.Observation | pi0.Prefix, cfg: Policy) -> pi0.Prefix:
    return prefill(params, context, cfg) if isinstance(context, types.Observation) else context


def chain_log_prob(
    params: dict,
    chain: types.Chain,
    context: types.Observation | pi0.Prefix,
    cfg: Policy,
) -> tuple[Array, Array, Array]:
    """Re-evaluate stored decisions under `params`; context as in chain_steps.

    Returns: log_prob_BIa, entropy_B, value_B.  The entropy is the mean over the scored entries,
    nats per action entry (constant in the parameters but for flow_noise).
    """
    return score(chain, chain_steps(params, chain, context, cfg), cfg)


def score(chain: types.Chain, steps: list[Step], cfg: Policy) -> tuple[Array, Array, Array]:
    """(log_prob_BIa, entropy_B, value_B) of stored decisions from their steps."""
    log_probs = []
    for u, step in enumerate(steps):
        log_probs.append(_executed_log_prob(chain.x_next[:, u], step.mean, step.std, cfg))
    log_prob_BIa = _over_steps(log_probs, _start_log_prob(chain.x[:, 0], cfg), cfg)
    entropies = [gaussian.entropy(executed(step.std, cfg)) for step in steps]
    entropy_BIa = _over_steps(entropies, gaussian.entropy(jnp.ones(())), cfg)
    value_B = sum(step.value for step in steps) / len(steps)
    return log_prob_BIa, entropy_BIa.mean((1, 2)), value_B


def imitation_error(
    params: dict,
    actions_BHA: Array,
    context: types.Observation | pi0.Prefix,
    key: Array,
    cfg: Policy,
) -> Array:
    """The flow-matching loss of SFT on chunks that were played [B]: the mean over their executed
    entries, since nobody saw what the others lead to.

    key: of flow noise and flow times, which are SFT's.  Context as in chain_steps.
    """
    noise_key, time_key = jax.random.split(key)
    B, *chunk = actions_BHA.shape
    noise_BHA = meshes.drawn(lambda rows: jax.random.normal(noise_key, (rows, *chunk)), B)
    time_B = meshes.drawn(lambda rows: pi0.sample_time(time_key, rows), B)
    prefix = _prefix_of(params, context, cfg)
    error_BHA = pi0.flow_matching_error(params, prefix, actions_BHA, noise_BHA, time_B, cfg.network)
    return (executed(error_BHA, cfg) ** 2).mean((1, 2))


def distance(steps: list[Step], others: list[Step], kind: str, cfg: Policy) -> Array:
    """How far a policy's decisions lie from those of a fixed one [B], by a line of ANCHORS.

    kl: of the chunk, summed over steps and scored entries.  velocity_mse: mean squared
      difference of the velocities over all entries.
    """
    if kind not in ANCHORS:
        raise bounds.unknown("anchor", kind, ANCHORS)
    pairs = list(zip(steps, others, strict=True))
    if kind == "velocity_mse":
        errors = [(step.velocity - other.velocity) ** 2 for step, other in pairs]
        return sum(error_BHA.mean((1, 2)) for error_BHA in errors) / len(steps)
    return sum(_executed_kl(step, other, cfg).sum((1, 2)) for step, other in pairs)


def _executed_kl(step: Step, other: Step, cfg: Policy) -> Array:
    return gaussian.kl(
        executed(step.mean, cfg),
        executed(step.std, cfg),
        executed(other.mean, cfg),
        executed(other.std, cfg),
    )


ANCHORS = ("kl", "velocity_mse")


def prefix_to_rows(prefix: pi0.Prefix) -> pi0.Prefix:
    """Layer-major cache [L,B,...] -> row-major [B,L,...].

    Rows of a rollout can then be gathered like those of any other array.
    """
    return prefix.replace(k=jnp.swapaxes(prefix.k, 0, 1), v=jnp.swapaxes(prefix.v, 0, 1))


def prefix_from_rows(rows: pi0.Prefix) -> pi0.Prefix:
    """Inverse of prefix_to_rows."""
    return prefix_to_rows(rows)
