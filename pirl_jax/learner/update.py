"""From a rollout to new parameters: advantages, then epochs over minibatches of the clipped objective.

Generic over the policy: it sees log_prob_fn(params, chain, context) -> log_prob_B, entropy_B, value_B and nothing of
the network.  Rows stay on the host and reach the device one microbatch at a time, because a row may carry megabytes
(the prefix of a frozen VLM); gradients of a minibatch are summed over its microbatches before the one optimiser step.
"""

import collections
from collections.abc import Callable
import dataclasses

from flax import struct
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

from pirl_jax.core import mesh as meshes
from pirl_jax.core import rng
from pirl_jax.core import types
from pirl_jax.learner import optimizer
from pirl_jax.learner import state as states
from pirl_jax.rl import advantages
from pirl_jax.rl import losses
from pirl_jax.rl import minibatch


@dataclasses.dataclass(frozen=True)
class UpdateConfig:
    """Names as in the `algorithm` section of the configuration.  Sizes count rows of all hosts together."""

    gamma: float = 0.99  # per decision
    gae_lambda: float = 0.95
    bootstrap_truncated: bool = False  # False: a time limit counts as an end of value 0
    normalize_advantages: bool = True
    update_epochs: int = 4
    minibatch_size: int = 2048
    microbatch_size: int = 128
    clip_ratio_low: float = 0.2
    clip_ratio_high: float = 0.2
    dual_clip: float | None = None  # bound of the loss of bad actions in units of |advantage|; None = unbounded
    value_clip: float = 0.2
    huber_delta: float = 10.0
    value_coef: float = 1.0
    entropy_bonus: float = 0.0
    trajectory_weighting: bool = True  # every trajectory weighs the same; False: every decision does
    target_kl: float = 0.0  # no further epoch after one whose mean approx_kl3 is above this; 0 = off
    critic_warmup_iterations: int = 0  # first iterations that fit the value head alone


@struct.dataclass
class Minibatch:
    """Rows the objective is computed on; a whole rollout has the same form.  Host arrays until a microbatch is put."""

    context: object  # [B,...] what the policy conditions on: Observation, or rows of a prefix
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


def rows(rollout: types.Rollout, cfg: UpdateConfig) -> Minibatch:
    """Advantages, returns and weights of all R decisions of a rollout."""
    terminated = rollout.terminated_CE if cfg.bootstrap_truncated else rollout.terminated_CE | rollout.truncated_CE
    advantage_CE, return_CE = advantages.gae(
        rollout.reward_CE, rollout.value_CE, rollout.next_value_CE, terminated, rollout.truncated_CE,
        cfg.gamma, cfg.gae_lambda, rollout.valid_CE,
    )  # fmt: skip
    if cfg.normalize_advantages:
        advantage_CE = advantages.normalize(advantage_CE, rollout.valid_CE)
    where = np.asarray(rollout.decision_R), np.asarray(rollout.episode_R)
    weight_E = np.ones(rollout.valid_CE.shape[1], np.float32)
    if cfg.trajectory_weighting:
        length_E = np.maximum(rollout.valid_CE.sum(0), 1)
        weight_E = (length_E.mean() / length_E).astype(np.float32)  # mean weight of a row is about 1
    return Minibatch(rollout.context, rollout.chain, advantage_CE[where], return_CE[where], weight_E[where[1]])


def objective(log_prob_fn: Callable, cfg: UpdateConfig, params, batch: Minibatch, freeze_policy):
    """sum(w * L) of a microbatch, and its Sums without gradients."""
    log_prob, entropy, value = log_prob_fn(params, batch.chain, batch.context)
    weight, one = batch.weight, jnp.ones(())
    policy_loss, policy_metrics = losses.clipped_surrogate(
        log_prob, batch.chain.log_prob, batch.advantage, weight, cfg.clip_ratio_low, cfg.clip_ratio_high, cfg.dual_clip,
        normalizer=one,
    )  # fmt: skip
    value_loss, value_metrics = losses.clipped_value(
        value, batch.chain.value, batch.return_, weight, cfg.value_clip, cfg.huber_delta, normalizer=one
    )
    mean_entropy = losses.mean_entropy(entropy, weight, normalizer=one)
    actor = jnp.where(freeze_policy, 0.0, policy_loss - cfg.entropy_bonus * mean_entropy)
    count = (weight > 0).sum().astype(jnp.float32)
    largest = {"ratio_max_dev": policy_metrics.pop("ratio_max_dev")}
    sums = Sums(
        grads={},
        weight=weight.sum(),
        count=count,
        weighted={"loss": policy_loss, "value_loss": value_loss, "entropy": mean_entropy},
        counted={name: x * count for name, x in (policy_metrics | value_metrics).items()},
        largest=largest,
        variance=losses.explained_variance_sums(jax.lax.stop_gradient(value), batch.return_, weight),
    )
    return actor + cfg.value_coef * value_loss, sums


def make_update(
    log_prob_fn: Callable,
    cfg: UpdateConfig,
    optim: optimizer.OptimizerConfig,
    trainable: Callable[[str], bool],
    mesh: jax.sharding.Mesh,
) -> Callable:
    """update_minibatch(state, microbatches) -> state, metrics on the device.  The state is donated.

    microbatches: iterable of Minibatch of host rows, each of this host's share of cfg.microbatch_size.
    """
    if cfg.microbatch_size % mesh.size or cfg.minibatch_size % cfg.microbatch_size:
        raise ValueError(
            f"microbatch_size={cfg.microbatch_size} must be a multiple of the {mesh.size} devices of the mesh"
            f" and divide minibatch_size={cfg.minibatch_size}"
        )

    accumulate = _accumulation(log_prob_fn, cfg, trainable, mesh)

    def apply(state, total):
        learned, frozen = states.partition(state.params, trainable)
        weight = jnp.where(total.weight > 0, total.weight, 1.0)
        learned, opt_state, metrics = optimizer.apply(
            optim, jax.tree.map(lambda g: g / weight, total.grads), state.opt_state, learned, state.iteration,
            state.iteration < cfg.critic_warmup_iterations,
        )  # fmt: skip
        metrics |= {name: x / weight for name, x in total.weighted.items()}
        metrics |= {name: x / jnp.maximum(total.count, 1.0) for name, x in total.counted.items()}
        state = state.replace(step=state.step + 1, params=states.merge(learned, frozen), opt_state=opt_state)
        return state, metrics | total.largest | {"variance_sums": total.variance}

    apply = states.jit_step(apply, mesh)

    def update_minibatch(state, microbatches):
        total, in_flight = None, collections.deque()
        for batch in microbatches:
            total, done = accumulate(state, total, meshes.put_batch(batch, mesh))
            in_flight.append(done)
            if len(in_flight) > 2:  # the device computes one and holds the next; more would fill its memory with rows
                jax.block_until_ready(in_flight.popleft())
        return apply(state, total)

    return update_minibatch


def _accumulation(log_prob_fn, cfg, trainable, mesh):
    """accumulate(state, Sums or None, Minibatch) -> Sums, a scalar to wait for.  The old sums are donated."""

    def microbatch_sums(state, batch):
        learned, frozen = states.partition(state.params, trainable)

        def loss(learned):
            freeze_policy = state.iteration < cfg.critic_warmup_iterations
            return objective(log_prob_fn, cfg, states.merge(learned, frozen), batch, freeze_policy)

        grads, sums = jax.grad(loss, has_aux=True)(learned)
        return sums.replace(grads=grads)

    def add(state, total, batch):
        sums = microbatch_sums(state, batch)
        largest = jax.tree.map(jnp.maximum, total.largest, sums.largest)
        return jax.tree.map(jnp.add, total, sums).replace(largest=largest), sums.count

    compiled = {}

    def prepare(state, batch):
        """The form of the sums is known once there is a batch; gradients lie where their parameters lie."""
        shape = jax.eval_shape(microbatch_sums, state, batch)
        layout = jax.tree.map(lambda _: meshes.replicated(mesh), shape)
        layout = layout.replace(grads=states.shardings(states.partition(state.params, trainable)[0]))
        zeros = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shape)  # noqa: E731
        compiled["zeros"] = jax.jit(zeros, out_shardings=layout)
        compiled["add"] = jax.jit(add, donate_argnums=1, out_shardings=(layout, meshes.replicated(mesh)))

    def accumulate(state, total, batch):
        if not compiled:
            prepare(state, batch)
        return compiled["add"](state, compiled["zeros"]() if total is None else total, batch)

    return accumulate


def update(update_minibatch: Callable, state: states.TrainState, data: Minibatch, key, cfg: UpdateConfig):
    """All epochs over the rows of one rollout -> state, metrics (floats).  Waits for the device once, at the end.

    Each process passes its own rows; the key decides the shuffling and nothing else.
    """
    generator, hosts = rng.generator(key), jax.process_count()
    row_R = np.flatnonzero(data.weight > 0)
    if not len(row_R):
        raise ValueError("the rollout has no valid decision; collect at least one episode per host")
    most_rows = int(np.max(multihost_utils.process_allgather(len(row_R)))) if hosts > 1 else len(row_R)
    size, history = cfg.microbatch_size // hosts, []
    for epoch in range(cfg.update_epochs):
        index, keep = minibatch.split(
            generator, row_R, cfg.minibatch_size // hosts, multiple_of=size, most_rows=most_rows
        )
        for index_MB, keep_MB in zip(*(x[0].reshape(x.shape[1], -1, size) for x in (index, keep)), strict=True):
            microbatches = (_take(data, *chosen) for chosen in zip(index_MB, keep_MB, strict=True))
            state, metrics = update_minibatch(state, microbatches)
            history.append(metrics)
        if cfg.target_kl and _mean_kl(history[-len(index[0]) :]) > cfg.target_kl:
            break
    state = state.replace(iteration=_increment(state.iteration))
    return state, _summary(jax.device_get(history)) | {"actor/epochs": float(epoch + 1)}


def _take(data: Minibatch, index_B, keep_B):
    batch = jax.tree.map(lambda x: np.asarray(x)[index_B], data)
    return batch.replace(weight=batch.weight * keep_B)


def _mean_kl(history):
    """Of approx_kl3: on a finite batch k1 can be negative at any distance."""
    return np.mean(jax.device_get([metrics["approx_kl3"] for metrics in history]))


@jax.jit
def _increment(x):
    return x + 1


def _summary(history: list[dict]) -> dict[str, float]:
    """Means over the minibatches; but the largest ratio_max_dev, the first one (rounding noise if sampling and learning
    agree), the number of skipped updates, and one explained variance of all rows."""
    metrics = {name: np.stack([m[name] for m in history]) for name in history[0]}
    explained = losses.explained_variance(metrics.pop("variance_sums").astype(np.float64).sum(0))
    deviation, skipped = metrics["ratio_max_dev"], metrics.pop("skipped")
    summary = {f"actor/{name}": float(x.mean()) for name, x in metrics.items()}
    return summary | {
        "actor/ratio_max_dev": float(deviation.max()),
        "actor/first_ratio_max_dev": float(deviation[0]),
        "actor/skipped_updates": float(skipped.sum()),
        "actor/updates": float(len(history)),
        "critic/explained_variance": explained,
    }
