"""From a rollout to new parameters: epochs over minibatches of the objective.

Rows stay where the rollout left them and are taken one microbatch at a time, because a row may
carry megabytes (the prefix of a frozen VLM); gradients of a minibatch are summed over its
microbatches before the one optimiser step.  Refuses to know what a row means (objective.py).
"""

import collections
from collections.abc import Callable, Iterable, Iterator
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from pirl_jax.core import mesh as meshes
from pirl_jax.core import page, rng
from pirl_jax.core import rows as context_rows
from pirl_jax.learner import in_parts, objective, optimizer, preference, proximal, summary, sums
from pirl_jax.learner import state as states
from pirl_jax.rl import minibatch
from pirl_jax.rl import nft as nft_losses

# Microbatches on their way: the device computes one and holds the next; more would fill its memory
# with rows.
IN_FLIGHT = 2


class Updater:
    """Optimiser steps on minibatches.  What is compiled takes its form from the first batch.

    `add` and `step` are the two computations on the devices, `minibatch` is both over host rows.
    """

    def __init__(
        self,
        log_prob_fn: Callable,
        cfg: page.Algorithm,
        optim: page.Optim,
        trainable: Callable[[str], bool],
        mesh: jax.sharding.Mesh,
        sft_loss: Callable | None = None,
        normalizer: float | None = None,
        imitation_fn: Callable | None = None,
        nft: page.Nft | None = None,
        used_dtype: Callable[[str], str] = lambda path: "float32",
    ):
        """
        Args:
          log_prob_fn: what the objective sees of the policy (objective.py).
          trainable: predicate on '/'-joined paths.
          sft_loss: (params, demonstrations, step) -> scalar, added with cfg.sft_loss_weight
            (sft.make_loss).
          normalizer: what the summed loss of a minibatch is divided by; None: the sum of the
            weights of its rows.
          imitation_fn: (params, actions_BHA, context, step, number of the microbatch) -> error_B,
            where cfg.clones (objective.py).
          nft: where that is the loss.
          used_dtype: path -> type to which a parameter that trains is cast before every use.

        Raises:
          ValueError: sizes do not divide.
        """
        rows = cfg.microbatch_rows(mesh.size)
        if rows % mesh.size or cfg.minibatch_size % rows:
            raise ValueError(
                f"minibatch_size={cfg.minibatch_size} must be a multiple of the {mesh.size} devices"
                f" of the mesh times microbatch_size={cfg.microbatch_size}"
            )
        self.cfg = cfg
        self.microbatch_rows = rows  # of all devices
        self.mesh = mesh
        self._log_prob_fn = log_prob_fn
        self._optim = optim
        self._trainable = trainable
        self._sft_loss = sft_loss
        self._normalizer = normalizer
        self._imitation_fn = imitation_fn
        self._nft = nft
        self.plays_average = nft is not None and nft.averages
        self.draws_steps = nft is not None and nft.steps == "one"
        self._average: Callable | None = None  # known once there is a state
        self.rounded = states.Rounded(trainable, used_dtype)
        self._adder = sums.Adder(self._sums, trainable, mesh)
        self._step = states.Step(self._apply, trainable, mesh)

    def minibatch(
        self,
        state: states.TrainState,
        microbatches: Iterable[objective.Minibatch],
        demonstrations: object = None,
    ) -> tuple[states.TrainState, dict]:
        """One optimiser step -> state, metrics on the devices.  What it changes is donated.

        microbatches: host rows, each of this host's share of microbatch_rows.
        """
        return in_parts.drained(self.minibatch_in_parts(state, microbatches, demonstrations))

    def minibatch_in_parts(
        self,
        state: states.TrainState,
        microbatches: Iterable[objective.Minibatch],
        demonstrations: object = None,
        in_flight: int = IN_FLIGHT,
    ) -> in_parts.Parts:
        """`minibatch`, a microbatch at a time.  in_flight: how many are not waited for."""
        total = None
        under_way = collections.deque()
        rounded = self.rounded(state)
        for batch in microbatches:
            total, done = self.add(rounded, total, objective.put(batch, self.mesh))
            under_way.append(done)
            if len(under_way) > in_flight:
                yield under_way.popleft()
        del rounded  # an optimiser step needs its memory
        if demonstrations is not None:
            demonstrations = meshes.put_batch(demonstrations, self.mesh)
        state, metrics = self.step(state, total, demonstrations)
        if not in_flight:
            yield metrics["grad_norm"]
        return state, metrics

    def add(
        self, state: states.TrainState, total: objective.Sums | None, batch: objective.Minibatch
    ) -> tuple[objective.Sums, jax.Array]:
        """Add a microbatch on the devices to the sums, which are donated -> sums, what to wait
        for.  None starts them.

        state: as `rounded` gives it.
        """
        return self._adder(state, total, batch)

    def step(
        self, state: states.TrainState, total: objective.Sums, demonstrations: object = None
    ) -> tuple[states.TrainState, dict]:
        """The optimiser step of a minibatch -> state, metrics on the devices."""
        return self._step(state, total, demonstrations)

    def lower(self, state: states.TrainState, batch: objective.Minibatch) -> dict:
        """What `minibatch` runs, from shapes and without an SFT term: {"microbatch", "step"}."""
        rounded = state.replace(params=states.merge(state.params, self.rounded.own(state)))
        total, microbatch = self._adder.lower(rounded, batch)
        return {"microbatch": microbatch, "step": self._step.lower(state, total, None)}

    def _sums(
        self, state: states.TrainState, batch: objective.Minibatch, number: jax.Array
    ) -> objective.Sums:
        """Of one microbatch, the number-th of its minibatch."""
        cfg = self.cfg
        learned, frozen = states.partition(state.params, self._trainable)
        imitation = None
        if cfg.clones:
            imitation = functools.partial(self._imitation_fn, step=state.step, number=number)

        def loss(learned: dict) -> tuple[jax.Array, objective.Sums]:
            # Traced: the program of the warm-up is that of all iterations.
            freeze_policy = state.iteration < cfg.critic_warmup_iterations
            anchor = None if state.anchor is None else states.merge(state.anchor, frozen)
            params = states.merge(learned, frozen)
            return objective.loss(
                self._log_prob_fn,
                cfg,
                params,
                batch,
                freeze_policy,
                anchor,
                imitation,
                self._nft,
            )

        grads, others = jax.grad(loss, has_aux=True)(learned)
        return others.replace(grads=grads)

    def _apply(
        self,
        state: states.TrainState,
        frozen: dict,
        total: objective.Sums,
        demonstrations: object,
    ) -> tuple[states.TrainState, dict]:
        """state.params are what trains (state.Step)."""
        cfg = self.cfg
        learned = state.params
        total = self._adder.of_all(total)
        # A minibatch may hold nothing but successes of earlier rollouts, which the loss beside does
        # not weigh.  Without any weight the step is skipped; it must only not divide by 0.
        weight = jnp.where(total.weight > 0, total.weight, total.clone_weight)
        is_empty = weight == 0
        weight = jnp.where(is_empty, 1.0, weight)
        normalizer = weight if self._normalizer is None else self._normalizer
        grads = jax.tree.map(lambda g: g / normalizer, total.grads)
        metrics = {name: x / weight for name, x in total.weighted.items()}
        if demonstrations is not None:

            def loss(learned: dict) -> jax.Array:
                params = states.merge(learned, frozen)
                return self._sft_loss(params, demonstrations, state.step)

            metrics["sft_loss"], extra = jax.value_and_grad(loss)(learned)
            grads = jax.tree.map(lambda g, e: g + cfg.sft_loss_weight * e, grads, extra)
        learned, opt_state, applied = optimizer.apply(
            self._optim,
            grads,
            state.opt_state,
            learned,
            state.iteration,
            freeze_policy=state.iteration < cfg.critic_warmup_iterations,
            skip=is_empty | self._teaches_nothing(total),
            # Without a critic and with equal scores in every group; what another term of the loss
            # teaches has a gradient.
            skip_idle=total.weighted["loss"] == 0,
        )
        count = jnp.maximum(total.count, 1.0)
        metrics |= applied | {name: x / count for name, x in total.counted.items()}
        ema = state.ema
        if not self.plays_average:  # else once per iteration
            ema = states.averaged(ema, learned, cfg.ema_decay, applied["skipped"])
        if self._nft is not None:
            metrics["nft_tau"] = self._tau(state.iteration)
        state = state.replace(step=state.step + 1, params=learned, opt_state=opt_state, ema=ema)
        return state, metrics | total.largest | {"variance_sums": total.variance}

    def _teaches_nothing(self, total: objective.Sums) -> bool | jax.Array:
        """All that was played is masked, or NFT without a label that says anything, and nothing
        else to learn from.

        NFT's loss is not 0 then, and its gradient is rounding, which Adam makes a full step.
        """
        cfg = self.cfg
        if "kept" in total.counted:
            return (total.counted["kept"] == 0) & (total.clone_weight == 0)
        besides = cfg.anchor_coef or cfg.entropy_bonus or cfg.clone_coef or cfg.sft_loss_weight
        if self._nft is None or besides:
            return False
        return total.counted["preference"] == 0

    def finish(self, state: states.TrainState) -> states.TrainState:
        """The end of an iteration: it is counted, and the average that plays follows."""
        if self.plays_average:
            learned, _ = states.partition(state.params, self._trainable)
            if self._average is None:
                layout = states.shardings(state.ema)
                self._average = jax.jit(self._follow, donate_argnums=0, out_shardings=layout)
            state = state.replace(ema=self._average(state.ema, learned, state.iteration))
        return state.replace(iteration=_increment(state.iteration))

    def _follow(self, average: dict, learned: dict, iteration: jax.Array) -> dict:
        return states.averaged(average, learned, 1.0 - self._tau(iteration))

    def _tau(self, iteration: jax.Array) -> jax.Array:
        return nft_losses.share(self._nft.tau, self._nft.tau_curve, iteration)


def learn_in_parts(
    updater: Updater,
    state: states.TrainState,
    data: objective.Minibatch,
    key: jax.Array,
    demonstrations: Iterator | None = None,
    in_flight: int = IN_FLIGHT,
) -> in_parts.Parts:
    """All epochs over the rows of one rollout -> state, metrics.

    An update without a signal is skipped: no row has weight (every group filtered), or all
    advantages are 0 and nothing else in the loss has a gradient.

    Args:
      data: each process passes its own rows.
      key: decides the shuffling, and which steps NFT learns from where it draws them.
      demonstrations: the batches of host rows of each minibatch's SFT term (learner/sft.py).
      in_flight: how many microbatches are not waited for; 0 yields after each of them.

    Raises:
      ValueError: a host has no valid decision.
    """
    cfg = updater.cfg
    generator = rng.generator(key)
    hosts = jax.process_count()
    demonstrations = demonstrations or itertools.repeat(None)
    if not len(data.weight):
        raise ValueError("the rollout has no valid decision; collect at least one episode per host")
    row_R = np.flatnonzero(objective.exists(data))
    # Every device computes on the rows that it holds, where it holds any.
    parts = context_rows.by_device(data.context, row_R)
    # All of them take equally many steps of the same size, as many as the one with the most rows.
    rows_of_parts = np.array(meshes.gather([len(part) for part in parts]))
    size = updater.microbatch_rows // hosts
    history = []  # metrics of the minibatches, by epoch
    for rows in _by_epoch(updater, data, key):
        index_MB, keep_MB = _dealt(generator, updater, parts, int(rows_of_parts.max()))
        minibatches = _minibatches(rows, index_MB, keep_MB, size)
        state, of_epoch = yield from _epoch(updater, state, minibatches, demonstrations, in_flight)
        history.append(of_epoch)
        if cfg.target_kl:
            yield of_epoch[-1]["approx_kl3"]
            if summary.mean_kl(of_epoch) > cfg.target_kl:
                break
    state = updater.finish(state)
    yield history[-1][-1]["grad_norm"]
    counts = {
        "actor/epochs": float(len(history)),
        "actor/padded_rows": 1.0 - rows_of_parts.sum() / (keep_MB.size * hosts),
    }
    metrics = summary.of_update(jax.device_get(list(itertools.chain.from_iterable(history))), cfg)
    if updater.plays_average:  # it starts elsewhere, which is no fault
        metrics.pop("actor/first_delta_v")
    return state, metrics | counts


def _dealt(
    generator: np.random.Generator, updater: Updater, parts: list[np.ndarray], most_rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """This host's share of the minibatches of an epoch: index [M,B], keep [M,B]."""
    hosts = jax.process_count()
    index_1MB, keep_1MB = minibatch.side_by_side(
        generator,
        parts,
        updater.cfg.minibatch_size // hosts,
        multiple_of=updater.microbatch_rows // hosts,
        most_rows=most_rows,
    )
    return index_1MB[0], keep_1MB[0]


def _epoch(
    updater: Updater,
    state: states.TrainState,
    minibatches: Iterable[Iterator[objective.Minibatch]],
    demonstrations: Iterator,
    in_flight: int,
) -> in_parts.Parts:
    """-> state, metrics of the minibatches on the devices."""
    of_epoch = []
    for microbatches in minibatches:
        state, metrics = yield from updater.minibatch_in_parts(
            state, microbatches, next(demonstrations), in_flight
        )
        of_epoch.append(metrics)
    return state, of_epoch


def _minibatches(
    data: objective.Minibatch, index_MB: np.ndarray, keep_MB: np.ndarray, size: int
) -> Iterator[Iterator[objective.Minibatch]]:
    """Each as its microbatches of `size` rows."""
    scale_M = proximal.scales(data, index_MB, keep_MB)
    for index_B, keep_B, scale in zip(index_MB, keep_MB, scale_M, strict=True):
        yield _microbatches(data, index_B, keep_B, size, scale)


def _by_epoch(
    updater: Updater, data: objective.Minibatch, key: jax.Array
) -> Iterator[objective.Minibatch]:
    """The rows of a rollout as each epoch sees them."""
    generator = rng.generator(rng.named(key, "steps"))
    for _ in range(updater.cfg.update_epochs):
        if updater.draws_steps:
            yield data.replace(chain=preference.drawn(data.chain, generator))
        else:
            yield data


def _microbatches(
    data: objective.Minibatch,
    index_B: np.ndarray,
    keep_B: np.ndarray,
    size: int,
    scale: float = 1.0,
) -> Iterator[objective.Minibatch]:
    """The rows of a minibatch, `size` at a time; taken when they are asked for.

    scale: of what an older policy played (proximal.scales).
    """
    for first in range(0, len(index_B), size):
        part = slice(first, first + size)
        yield proximal.scaled(objective.take(data, index_B[part], keep_B[part]), scale)


@jax.jit
def _increment(x: jax.Array) -> jax.Array:
    return x + 1
