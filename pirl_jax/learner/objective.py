"""What the learner minimises: rows of a rollout with their advantages, a loss on some of them, and
the sums that its microbatches add up to.

Generic over the policy: it sees two functions and nothing of the network,

    log_prob_fn(params, chain, context, anchor) -> log_prob_BIa, entropy_B, value_B, distance_B
    imitation_fn(params, actions_BHA, context, key) -> error_B

`anchor` is None or the parameters of a fixed policy, distance_B how far the decisions lie from it
(0 for None).  Refuses to know optimisers and how often a row is used.
"""

from collections.abc import Callable
import dataclasses

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from pirl_jax.core import mesh as meshes
from pirl_jax.core import page, types
from pirl_jax.core import rows as context_rows
from pirl_jax.learner import preference
from pirl_jax.rl import advantages, groups, losses


@struct.dataclass
class Minibatch:
    """Rows the loss is computed on; a whole rollout has the same form.

    Host arrays until a microbatch is put.
    """

    # B rows (core/rows.py) of what the policy conditions on: Observation, or rows of a prefix
    context: object
    chain: types.Chain  # [B,...]
    advantage: jax.Array  # [B]
    return_: jax.Array  # [B]
    weight: jax.Array  # [B] 0 = does not exist
    # [B] of the clone term beside the loss, 0 but for successful episodes; None without that term
    clone_weight: jax.Array | None = None


@struct.dataclass
class Sums:
    """What the microbatches of a minibatch add up to."""

    grads: dict  # of sum(w * L)
    weight: jax.Array  # sum(w)
    clone_weight: jax.Array  # the same of the clone term beside the loss
    count: jax.Array  # rows with weight > 0
    microbatches: jax.Array  # int32, how many
    weighted: dict  # loss terms: sum(w * L)
    counted: dict  # metrics: sum over the rows
    largest: dict  # metrics: maximum over the rows
    variance: jax.Array  # [5], losses.explained_variance_sums


# ---- rows ------------------------------------------------------------------------------------


def with_advantages(rollout: types.Rollout, cfg: page.Algorithm) -> Minibatch:
    """Advantages, returns and weights of all R decisions of a rollout.

    Without a critic the return is the score of the episode.
    """
    estimate = _critic if cfg.uses_critic else _by_episode
    advantage_CE, return_CE, keep_E = estimate(rollout, cfg)
    # float32 like everything that reaches the devices
    weight_E = keep_E.astype(np.float32)
    if cfg.trajectory_weighting:
        # Decisions of the longest possible trajectory, over those of this one.
        longest = np.float32(len(rollout.valid_CE))
        weight_E *= longest / np.maximum(rollout.valid_CE.sum(0), 1).astype(np.float32)
    success_E = (rollout.terminated_CE & rollout.valid_CE).any(0)
    if cfg.loss == "clone":
        weight_E *= success_E
    c = np.asarray(rollout.decision_R)
    e = np.asarray(rollout.episode_R)
    return Minibatch(
        context=rollout.context,
        chain=rollout.chain,
        advantage=advantage_CE[c, e],
        return_=return_CE[c, e],
        weight=weight_E[e],
        clone_weight=(weight_E * success_E)[e] if cfg.clone_coef else None,
    )


def _critic(
    rollout: types.Rollout, cfg: page.Algorithm
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    terminated_CE = rollout.terminated_CE
    if not cfg.bootstrap_truncated:  # a time limit is an end of value 0
        terminated_CE = terminated_CE | rollout.truncated_CE
    advantage_CE, return_CE = advantages.gae(
        rollout.reward_CE,
        rollout.value_CE,
        rollout.next_value_CE,
        terminated_CE,
        rollout.truncated_CE,
        cfg.gamma,
        cfg.gae_lambda,
        rollout.valid_CE,
    )
    if cfg.normalize_advantages:
        advantage_CE = advantages.normalize(advantage_CE, rollout.valid_CE, total=_over_hosts)
    return advantage_CE, return_CE, np.ones(advantage_CE.shape[1], bool)


def _over_hosts(x: float) -> float:
    return sum(map(float, meshes.gather(x)))


def _by_episode(
    rollout: types.Rollout, cfg: page.Algorithm
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every decision of an episode has the advantage of the episode.

    Lost episodes, which have no valid decision, count for nothing; filtered groups get no weight,
    so that they reach neither the network nor a denominator.
    """
    # Added up in float64, as stream.Result does.
    reward_CE = np.where(rollout.valid_CE, rollout.reward_CE, 0.0)
    score_E = reward_CE.sum(0, dtype=np.float64)
    valid_E = rollout.valid_CE.any(0)
    group_E = groups.of_episodes(len(score_E), cfg.group_size)
    if cfg.adv_type == "raw":
        advantage_E = np.where(valid_E, score_E, 0.0)
    else:
        advantage_E = advantages.group_relative(score_E, group_E, cfg.adv_type, valid_E)
    shape = rollout.valid_CE.shape
    advantage_CE = np.broadcast_to(advantage_E.astype(np.float32), shape)
    return_CE = np.broadcast_to(score_E.astype(np.float32), shape)
    return advantage_CE, return_CE, useful(score_E, valid_E, cfg)


def useful(score_E: np.ndarray, valid_E: np.ndarray, cfg: page.Algorithm) -> np.ndarray:
    """[E] bool: episodes that an update learns from.

    score_E: their rewards.  valid_E: False where lost.
    """
    group_E = groups.of_episodes(len(score_E), cfg.group_size)
    keep_E = np.asarray(valid_E)
    if cfg.filter_rewards:
        keep_E = groups.within(
            score_E, group_E, cfg.rewards_lower_bound, cfg.rewards_upper_bound, valid_E
        )
    if cfg.max_episodes_per_iteration:
        keep_E = keep_E & groups.informative(score_E, group_E, valid_E)
    return keep_E


def exists(data: Minibatch) -> np.ndarray:
    """[B] bool: rows that something is learned from."""
    exists_B = data.weight > 0
    return exists_B if data.clone_weight is None else exists_B | (data.clone_weight > 0)


def take(data: Minibatch, index_B: np.ndarray, keep_B: np.ndarray) -> Minibatch:
    """Some rows, on the host; keep_B: 0 for those that only fill the batch up."""
    batch = jax.tree.map(lambda x: np.asarray(x)[index_B], data.replace(context=None))
    context = context_rows.take(data.context, index_B)
    weights = {"weight": batch.weight * keep_B}
    if batch.clone_weight is not None:
        weights["clone_weight"] = batch.clone_weight * keep_B
    return batch.replace(context=context, **weights)


def put(batch: Minibatch, mesh: jax.sharding.Mesh) -> Minibatch:
    """Rows of this host -> the batch of all hosts, on the devices."""
    context = context_rows.put(batch.context, mesh)
    return meshes.put_batch(batch.replace(context=None), mesh).replace(context=context)


# ---- loss ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Terms:
    """What a loss makes of a microbatch."""

    total: jax.Array  # sum(w * L)
    weighted: dict  # as in Sums
    counted: dict
    largest: dict
    value_B: jax.Array  # of the critic; 0 without one


def loss(
    log_prob_fn: Callable,
    cfg: page.Algorithm,
    params: dict,
    batch: Minibatch,
    freeze_policy: bool | jax.Array,
    anchor: dict | None = None,
    imitation: Callable | None = None,
    nft: page.Nft | None = None,
) -> tuple[jax.Array, Sums]:
    """sum(w * L) of a microbatch, and its Sums without gradients.

    imitation: imitation_fn with its key; only where cfg.clones.  nft: where that is the loss.
    """
    if cfg.loss == "clone":
        terms = _clone(params, batch, imitation)
    else:
        terms = _reinforce(log_prob_fn, cfg, params, batch, freeze_policy, anchor, imitation, nft)
    count = (batch.weight > 0).sum().astype(jnp.float32)
    value_B = jax.lax.stop_gradient(terms.value_B)
    sums = Sums(
        grads={},
        weight=batch.weight.sum(),
        clone_weight=jnp.zeros(()) if batch.clone_weight is None else batch.clone_weight.sum(),
        count=count,
        microbatches=jnp.ones((), jnp.int32),
        weighted=terms.weighted,
        counted={name: x * count for name, x in terms.counted.items()},
        largest=terms.largest,
        variance=losses.explained_variance_sums(value_B, batch.return_, batch.weight),
    )
    return terms.total, sums


def _clone(params: dict, batch: Minibatch, imitation: Callable) -> _Terms:
    """Flow matching on what was played; failed episodes have no weight."""
    error = _imitation_error(params, batch, batch.weight, imitation)
    return _Terms(error, {"loss": error}, {}, {}, jnp.zeros_like(batch.weight))


def _imitation_error(
    params: dict, batch: Minibatch, weight_B: jax.Array, imitation: Callable
) -> jax.Array:
    # Before the arithmetic: a row that does not exist may hold anything.
    actions_BHA = jnp.where(weight_B[:, None, None] > 0, batch.chain.actions, 0.0)
    error_B = imitation(params, actions_BHA, batch.context)
    return losses.weighted_mean(error_B, weight_B, jnp.ones(()))


def _reinforce(
    log_prob_fn: Callable,
    cfg: page.Algorithm,
    params: dict,
    batch: Minibatch,
    freeze_policy: bool | jax.Array,
    anchor: dict | None,
    imitation: Callable | None,
    nft: page.Nft | None,
) -> _Terms:
    """The clipped surrogate or NFT's preference, and what stands beside it."""
    seen, entropy_B, value_B, distance_B = log_prob_fn(params, batch.chain, batch.context, anchor)
    weight_B = batch.weight
    one = jnp.ones(())  # sums, not means: a minibatch divides by the weight of all its microbatches
    if nft is None:
        policy_loss, metrics, largest = _surrogate(cfg, seen, batch)
    else:
        policy_loss, metrics, largest = preference.terms(cfg, nft, seen, batch.advantage, weight_B)
    entropy = losses.mean_entropy(entropy_B, weight_B, normalizer=one)
    weighted = {"loss": policy_loss, "entropy": entropy}
    actor = policy_loss - cfg.entropy_bonus * entropy
    if anchor is not None:
        # A row that does not exist may lie infinitely far away.
        distance_B = jnp.where(weight_B > 0, distance_B, 0.0)
        weighted["anchor"] = losses.weighted_mean(distance_B, weight_B, one)
        actor += cfg.anchor_coef * weighted["anchor"]
    if batch.clone_weight is not None:
        weighted["clone"] = _imitation_error(params, batch, batch.clone_weight, imitation)
        actor += cfg.clone_coef * weighted["clone"]
    total = jnp.where(freeze_policy, 0.0, actor)
    if cfg.uses_critic:
        value_loss, value_metrics = losses.clipped_value(
            value_B,
            batch.chain.value,
            batch.return_,
            weight_B,
            cfg.value_clip,
            cfg.huber_delta,
            normalizer=one,
        )
        weighted["value_loss"] = value_loss
        total = total + cfg.value_coef * value_loss
        metrics = metrics | value_metrics
    return _Terms(total, weighted, metrics, largest, value_B)


def _surrogate(
    cfg: page.Algorithm, log_prob_BIa: jax.Array, batch: Minibatch
) -> tuple[jax.Array, dict, dict]:
    """The clipped policy loss, summed over the rows, its metrics, and those of which the largest
    counts."""
    log_prob = losses.reduce_log_prob(log_prob_BIa, cfg.logprob_type)
    old = losses.reduce_log_prob(batch.chain.log_prob, cfg.logprob_type)
    entries = log_prob[0].size  # a row weighs the same, however many ratios it has
    weight = losses.spread(batch.weight / entries, log_prob.shape)
    importance = batch.chain.importance
    loss, metrics = losses.clipped_surrogate(
        log_prob,
        old,
        losses.spread(batch.advantage, log_prob.shape),
        weight,
        cfg.clip_ratio_low,
        cfg.clip_ratio_high,
        cfg.clip_ratio_c or None,
        normalizer=jnp.ones(()),
        importance=importance,
    )
    if importance is not None:
        exists = (weight > 0).astype(jnp.float32)
        metrics["kept"] = losses.weighted_mean((importance != 0).astype(jnp.float32), exists)
    return loss, metrics, {"ratio_max_dev": metrics.pop("ratio_max_dev")}
