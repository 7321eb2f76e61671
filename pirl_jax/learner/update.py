"""From a rollout to new parameters: advantages, then epochs over minibatches of the clipped objective.

Generic over the policy: it sees log_prob_fn(params, chain, context, anchor) -> log_prob_BIA, entropy_B, value_B, distance_B and
nothing of the network; `anchor` is None or the parameters of a fixed policy, distance_B how far the decisions lie from it (0 for
None).  Rows stay where the rollout left them and are taken one microbatch at a time, because a row may carry megabytes
(the prefix of a frozen VLM); gradients of a minibatch are summed over its microbatches before the one optimiser step.
"""

import collections
from collections.abc import Callable
import functools

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from pirl_jax.core import mesh as meshes
from pirl_jax.core import page, rng, types
from pirl_jax.core import rows as context_rows
from pirl_jax.learner import optimizer
from pirl_jax.learner import state as states
from pirl_jax.rl import advantages, groups, losses, minibatch

ADV_TYPES = ("gae", *advantages.GROUP_BASELINES)


@struct.dataclass
class Minibatch:
    """Rows the objective is computed on; a whole rollout has the same form.  Host arrays until a microbatch is put."""

    context: object  # B rows (core/rows.py) of what the policy conditions on: Observation, or rows of a prefix
    chain: types.Chain  # [B,...]
    advantage: jax.Array  # [B]
    return_: jax.Array  # [B]
    weight: jax.Array  # [B] 0 = does not exist


@struct.dataclass
class Sums:
    """What the microbatches of a minibatch add up to."""

    grads: dict  # of sum(w * L)
    weight: jax.Array  # sum(w)
    count: jax.Array  # rows with weight > 0
    weighted: dict  # loss terms: sum(w * L)
    counted: dict  # metrics: sum over the rows
    largest: dict  # metrics: maximum over the rows
    variance: jax.Array  # [5], losses.explained_variance_sums


def rows(rollout: types.Rollout, cfg: page.Algorithm) -> Minibatch:
    """Advantages, returns and weights of all R decisions of a rollout; without a critic the return is the episode's score."""
    advantage_CE, return_CE, keep_E = (_critic if cfg.uses_critic else _group_relative)(
        rollout, cfg
    )
    where = np.asarray(rollout.decision_R), np.asarray(rollout.episode_R)
    weight_E = keep_E.astype(np.float32)
    if (
        cfg.trajectory_weighting
    ):  # number of decisions of the longest possible trajectory, over that of this one
        weight_E *= np.float32(len(rollout.valid_CE)) / np.maximum(
            rollout.valid_CE.sum(0), 1
        ).astype(np.float32)
    return Minibatch(
        rollout.context, rollout.chain, advantage_CE[where], return_CE[where], weight_E[where[1]]
    )


def _critic(rollout, cfg):
    terminated = (
        rollout.terminated_CE
        if cfg.bootstrap_truncated
        else rollout.terminated_CE | rollout.truncated_CE
    )
    advantage_CE, return_CE = advantages.gae(
        rollout.reward_CE,
        rollout.value_CE,
        rollout.next_value_CE,
        terminated,
        rollout.truncated_CE,
        cfg.gamma,
        cfg.gae_lambda,
        rollout.valid_CE,
    )
    if cfg.normalize_advantages:
        advantage_CE = advantages.normalize(
            advantage_CE, rollout.valid_CE, total=lambda x: sum(map(float, meshes.gather(x)))
        )
    return advantage_CE, return_CE, np.ones(advantage_CE.shape[1], bool)


def _group_relative(rollout, cfg):
    """Every decision of an episode has the advantage of the episode.  Lost episodes, which have no valid decision, count for
    nothing; filtered groups get no weight, so that they reach neither the network nor a denominator."""
    score_E = np.where(rollout.valid_CE, rollout.reward_CE, 0.0).sum(
        0, dtype=np.float64
    )  # as episodes.Result adds it up
    valid_E = rollout.valid_CE.any(0)
    group_E = groups.of_episodes(len(score_E), cfg.group_size)
    advantage_E = advantages.group_relative(score_E, group_E, cfg.adv_type, valid_E)
    keep_E = useful(score_E, valid_E, cfg)
    spread = lambda x_E: np.broadcast_to(x_E.astype(np.float32), rollout.valid_CE.shape)  # noqa: E731
    return spread(advantage_E), spread(score_E), keep_E


def useful(score_E, valid_E, cfg: page.Algorithm):
    """Episodes [E] that an update learns from; score_E: their rewards, valid_E: False where lost."""
    group_E, keep_E = groups.of_episodes(len(score_E), cfg.group_size), np.asarray(valid_E)
    if cfg.filter_rewards:
        keep_E = groups.within(
            score_E, group_E, cfg.rewards_lower_bound, cfg.rewards_upper_bound, valid_E
        )
    if cfg.max_episodes_per_iteration:
        keep_E = keep_E & groups.informative(score_E, group_E, valid_E)
    return keep_E


def objective(
    log_prob_fn: Callable, cfg: page.Algorithm, params, batch: Minibatch, freeze_policy, anchor=None
):
    """sum(w * L) of a microbatch, and its Sums without gradients."""
    log_prob_BIA, entropy, value, distance = log_prob_fn(params, batch.chain, batch.context, anchor)
    weight, one = batch.weight, jnp.ones(())
    log_prob, old = (
        losses.reduce_log_prob(x, cfg.logprob_type) for x in (log_prob_BIA, batch.chain.log_prob)
    )
    spread = lambda x_B: jnp.broadcast_to(
        x_B.reshape((-1,) + (1,) * (log_prob.ndim - 1)), log_prob.shape
    )
    entries = log_prob[0].size  # a row weighs the same, however many ratios it has
    policy_loss, metrics = losses.clipped_surrogate(
        log_prob,
        old,
        spread(batch.advantage),
        spread(weight / entries),
        cfg.clip_ratio_low,
        cfg.clip_ratio_high,
        cfg.clip_ratio_c or None,
        normalizer=one,
    )
    weighted = {
        "loss": policy_loss,
        "entropy": losses.mean_entropy(entropy, weight, normalizer=one),
    }
    actor = policy_loss - cfg.entropy_bonus * weighted["entropy"]
    if anchor is not None:
        weighted["anchor"] = losses.weighted_mean(jnp.where(weight > 0, distance, 0.0), weight, one)
        actor += cfg.anchor_coef * weighted["anchor"]
    total = jnp.where(freeze_policy, 0.0, actor)
    if cfg.uses_critic:
        weighted["value_loss"], value_metrics = losses.clipped_value(
            value,
            batch.chain.value,
            batch.return_,
            weight,
            cfg.value_clip,
            cfg.huber_delta,
            normalizer=one,
        )
        total, metrics = total + cfg.value_coef * weighted["value_loss"], metrics | value_metrics
    count = (weight > 0).sum().astype(jnp.float32)
    largest = {"ratio_max_dev": metrics.pop("ratio_max_dev")}
    sums = Sums(
        grads={},
        weight=weight.sum(),
        count=count,
        weighted=weighted,
        counted={name: x * count for name, x in metrics.items()},
        largest=largest,
        variance=losses.explained_variance_sums(
            jax.lax.stop_gradient(value), batch.return_, weight
        ),
    )
    return total, sums


def make_update(
    log_prob_fn: Callable,
    cfg: page.Algorithm,
    optim: page.Optim,
    trainable: Callable[[str], bool],
    mesh: jax.sharding.Mesh,
    sft_loss: Callable | None = None,
    normalizer: float | None = None,
) -> Callable:
    """update_minibatch(state, microbatches, demonstrations=None) -> state, metrics on the device.  The state is donated.

    Args:
      sft_loss: (params, demonstrations, step) -> scalar, added with cfg.sft_loss_weight; learner/sft.py make_loss.
      normalizer: what the summed loss of a minibatch is divided by; None: the sum of the weights of its rows.

    microbatches: iterable of Minibatch of host rows, each of this host's share of cfg.microbatch_size.
    `update_minibatch.lower(state, microbatch)` lowers what it runs from shapes, without an SFT term: {"microbatch", "step"}.
    """
    if cfg.microbatch_size % mesh.size or cfg.minibatch_size % cfg.microbatch_size:
        raise ValueError(
            f"microbatch_size={cfg.microbatch_size} must be a multiple of the {mesh.size} devices of the mesh"
            f" and divide minibatch_size={cfg.minibatch_size}"
        )
    accumulate = _accumulation(log_prob_fn, cfg, trainable, mesh)

    def apply(state, total, demonstrations):
        learned, frozen = states.partition(state.params, trainable)
        weight = jnp.where(total.weight > 0, total.weight, 1.0)
        grads = jax.tree.map(
            lambda g: g / (weight if normalizer is None else normalizer), total.grads
        )
        metrics = {name: x / weight for name, x in total.weighted.items()}
        if demonstrations is not None:
            loss = lambda learned: sft_loss(
                states.merge(learned, frozen), demonstrations, state.step
            )
            metrics["sft_loss"], extra = jax.value_and_grad(loss)(learned)
            grads = jax.tree.map(lambda g, e: g + cfg.sft_loss_weight * e, grads, extra)
        learned, opt_state, applied = optimizer.apply(
            optim,
            grads,
            state.opt_state,
            learned,
            state.iteration,
            freeze_policy=state.iteration < cfg.critic_warmup_iterations,
            skip=total.weight == 0,
        )
        metrics |= applied | {
            name: x / jnp.maximum(total.count, 1.0) for name, x in total.counted.items()
        }
        state = state.replace(
            step=state.step + 1,
            params=states.merge(learned, frozen),
            opt_state=opt_state,
            ema=states.averaged(state.ema, learned, cfg.ema_decay),
        )
        return state, metrics | total.largest | {"variance_sums": total.variance}

    apply = states.jit_step(apply, mesh)

    def update_minibatch(state, microbatches, demonstrations=None):
        total, in_flight = None, collections.deque()
        for batch in microbatches:
            context = context_rows.put(batch.context, mesh)
            batch = meshes.put_batch(batch.replace(context=None), mesh).replace(context=context)
            total, done = accumulate(state, total, batch)
            in_flight.append(done)
            if (
                len(in_flight) > 2
            ):  # the device computes one and holds the next; more would fill its memory with rows
                jax.block_until_ready(in_flight.popleft())
        return apply(
            state, total, None if demonstrations is None else meshes.put_batch(demonstrations, mesh)
        )

    update_minibatch.lower = functools.partial(_lower, accumulate, apply)
    return update_minibatch


def _lower(accumulate, apply, state, batch):
    total = accumulate.prepare(state, batch)
    return {
        "microbatch": accumulate.lower(state, total, batch),
        "step": apply.lower(state, total, None),
    }


def _accumulation(log_prob_fn, cfg, trainable, mesh):
    """accumulate(state, Sums or None, Minibatch) -> Sums, a scalar to wait for.  The old sums are donated."""

    def microbatch_sums(state, batch):
        learned, frozen = states.partition(state.params, trainable)

        def loss(learned):
            freeze_policy = state.iteration < cfg.critic_warmup_iterations
            anchor = None if state.anchor is None else states.merge(state.anchor, frozen)
            return objective(
                log_prob_fn, cfg, states.merge(learned, frozen), batch, freeze_policy, anchor
            )

        grads, sums = jax.grad(loss, has_aux=True)(learned)
        return sums.replace(grads=grads)

    def add(state, total, batch):
        sums = microbatch_sums(state, batch)
        largest = jax.tree.map(jnp.maximum, total.largest, sums.largest)
        return jax.tree.map(jnp.add, total, sums).replace(largest=largest), sums.count

    compiled = {}

    def prepare(state, batch):
        """The form of the sums is known once there is a batch; gradients lie where their parameters lie.  -> shapes"""
        shape = jax.eval_shape(microbatch_sums, state, batch)
        layout = jax.tree.map(lambda _: meshes.replicated(mesh), shape)
        layout = layout.replace(
            grads=states.shardings(states.partition(state.params, trainable)[0])
        )
        zeros = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shape)  # noqa: E731
        compiled["zeros"] = jax.jit(zeros, out_shardings=layout)
        compiled["add"] = jax.jit(
            add, donate_argnums=1, out_shardings=(layout, meshes.replicated(mesh))
        )
        return jax.tree.map(lambda x, where: x.update(sharding=where), shape, layout)

    def accumulate(state, total, batch):
        if not compiled:
            prepare(state, batch)
        return compiled["add"](state, compiled["zeros"]() if total is None else total, batch)

    accumulate.prepare, accumulate.lower = prepare, lambda *shapes: compiled["add"].lower(*shapes)
    return accumulate


def update(
    update_minibatch: Callable,
    state: states.TrainState,
    data: Minibatch,
    key,
    cfg: page.Algorithm,
    demonstrations=lambda: None,
):
    """All epochs over the rows of one rollout -> state, metrics (floats).  Waits for the device once, at the end.

    Each process passes its own rows; the key decides the shuffling and nothing else.  demonstrations: gives the batch of host
    rows of each minibatch's SFT term (learner/sft.py).  Where no row has weight (every group filtered) all updates are skipped.
    """
    generator, hosts = rng.generator(key), jax.process_count()
    row_R = np.flatnonzero(data.weight > 0)
    if not len(data.weight):
        raise ValueError("the rollout has no valid decision; collect at least one episode per host")
    rows_P = np.array(meshes.gather(len(row_R)))  # of every host
    size, history = cfg.microbatch_size // hosts, []
    for epoch in range(cfg.update_epochs):
        index, keep = minibatch.split(
            generator,
            row_R,
            cfg.minibatch_size // hosts,
            multiple_of=size,
            most_rows=int(rows_P.max()),
        )
        for index_MB, keep_MB in zip(
            *(x[0].reshape(x.shape[1], -1, size) for x in (index, keep)), strict=True
        ):
            microbatches = (_take(data, *chosen) for chosen in zip(index_MB, keep_MB, strict=True))
            state, metrics = update_minibatch(state, microbatches, demonstrations())
            history.append(metrics)
        if cfg.target_kl and _mean_kl(history[-len(index[0]) :]) > cfg.target_kl:
            break
    state = state.replace(iteration=_increment(state.iteration))
    counts = {
        "actor/epochs": float(epoch + 1),
        "actor/padded_rows": 1.0 - rows_P.sum() / (keep.size * hosts),
    }
    return state, _summary(jax.device_get(history), cfg) | counts


def _take(data: Minibatch, index_B, keep_B):
    batch = jax.tree.map(lambda x: np.asarray(x)[index_B], data.replace(context=None))
    return batch.replace(
        context=context_rows.take(data.context, index_B), weight=batch.weight * keep_B
    )


def _mean_kl(history):
    """Of approx_kl3: on a finite batch k1 can be negative at any distance."""
    return np.mean(jax.device_get([metrics["approx_kl3"] for metrics in history]))


@jax.jit
def _increment(x):
    return x + 1


def _summary(history: list[dict], cfg: page.Algorithm) -> dict[str, float]:
    """Means over the minibatches; but the largest ratio_max_dev, the first one (rounding noise if sampling and learning
    agree), the number of skipped updates, and one explained variance of all rows."""
    metrics = {name: np.stack([m[name] for m in history]) for name in history[0]}
    explained = losses.explained_variance(metrics.pop("variance_sums").astype(np.float64).sum(0))
    deviation, skipped = metrics["ratio_max_dev"], metrics.pop("skipped")
    summary = {f"actor/{name}": float(x.mean()) for name, x in metrics.items()}
    if cfg.uses_critic:
        summary["critic/explained_variance"] = explained
    return summary | {
        "actor/ratio_max_dev": float(deviation.max()),
        "actor/first_ratio_max_dev": float(deviation[0]),
        "actor/skipped_updates": float(skipped.sum()),
        "actor/updates": float(len(history)),
    }
