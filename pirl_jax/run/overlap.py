"""Iterations of a run whose episodes are played while earlier ones are learned.

What run/schedule.py puts in order, for a run: its stream of batches, their books, its update in
parts, and the copies of the parameters that play.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from pirl_jax.core import mesh as meshes
from pirl_jax.core import rng, types
from pirl_jax.envs.pool import queue
from pirl_jax.learner import objective
from pirl_jax.learner import state as states
from pirl_jax.learner import update as updates
from pirl_jax.monitor import panel
from pirl_jax.rollout import actor as actors
from pirl_jax.rollout import collector as collectors
from pirl_jax.rollout import stats
from pirl_jax.rollout import stream as streams
from pirl_jax.run import (
    config,
    divergence,
    films,
    hosts,
    learning,
    policies,
    preemption,
    rollouts,
    schedule,
    steps,
    training,
)

# (iteration, metrics): the row of an iteration that is over.
Ended = Callable[[int, dict[str, float]], None]


def play(
    run: training.Run,
    learner: learning.Learner,
    state: states.TrainState,
    span: range,
    board: panel.Board,
    watch: preemption.Watch,
    ended: Ended,
) -> states.TrainState:
    """The iterations between two barriers.

    Asked to end, it finishes the update that is under way, drops what plays, and saves.

    Raises:
      endings.Preempted: it was.
      endings.Diverged: there is nothing to go on with.
    """
    raw = run.settings.raw
    work = Work(run, learner, state, span, board)
    gate = schedule.Gate(span, raw.rollout.max_staleness)
    try:
        with jax.transfer_guard("disallow"):
            order = schedule.Schedule(
                work, gate, in_turns=raw.rollout.lockstep, timeout_s=raw.rollout.learner_timeout_s
            )
        for iteration in span:
            with jax.transfer_guard("disallow"):
                metrics = order.learned()
            ended(iteration, metrics | run.timers.take())
    except queue.Interrupted:
        metrics = order.settled()
        if metrics is not None:
            ended(order.version - 1, metrics | run.timers.take())
        state = divergence.checked(work.state, order.version)
        run.store.finish(order.version, state)
        saved = f"iteration {order.version} is saved"
        if order.version not in (span.start, span.stop):
            saved += (
                " and what was played ahead of it is dropped, so that the run goes on, but not bit"
                " for bit as it would have"
            )
        raise watch.ending(saved) from None
    return work.state


class Work:
    """See schedule.Work."""

    def __init__(
        self,
        run: training.Run,
        learner: learning.Learner,
        state: states.TrainState,
        span: range,
        board: panel.Board,
    ) -> None:
        self.state = state
        self.num_slots = run.envs.num_envs
        self._run = run
        self._learner = learner
        self._span = span
        self._board = board
        raw = run.settings.raw
        self._gate = schedule.Gate(span, raw.rollout.max_staleness)
        self._most_open = raw.rollout.max_staleness + 1
        self._switches_between_batches = config.weight_switch(raw) == "batch"
        self._acting: dict[int, collectors.Acting] = {}  # by version
        self._newest = span.start
        self._faults = run.envs.counters()
        self._stream: streams.Stream | None = None
        self._collector: collectors.Collector | None = None
        if run.actor.buffer is not None:
            limit = actors.max_decisions(run.envs.spec, run.actor.action_chunk)
            run.actor.buffer.clear(hosts.most_episodes(raw) * limit * self._most_open)

    # ---- playing -----------------------------------------------------------------------------

    @property
    def under_way(self) -> int:
        return self._stream.under_way

    def admit(self, batch: int) -> None:
        run = self._run
        raw = run.settings.raw
        cfg = raw.algorithm
        if self._stream is None:
            self._stream = run.take_stream() or run.next_stream(batch)
            self._collector = collectors.Collector(
                run.actor,
                self._stream,
                run.timers,
                most_open=self._most_open,
                group_size=cfg.group_size,
                bootstrap_truncated=cfg.uses_critic and cfg.bootstrap_truncated,
            )
        else:
            self._stream.admit(batch, rollouts.episodes(raw, run.playable, batch))
        book = collectors.new_book(run.actor, self._stream)
        book.make_room(len(self._stream.of(batch)))
        key = rng.named(run.iteration_key(batch), "actions")
        draws = collectors.Draws(
            meshes.replicate(key, meshes.local(run.mesh)),
            policies.noise_level(run.settings, batch),
        )
        self._collector.open(batch, book, draws, films.begin(raw))

    def can_decide(self, timeout_s: float) -> bool:
        if not timeout_s:
            return self._stream.is_ready(0.0)
        with self._run.timers.measure("env"):
            return self._stream.is_ready(timeout_s)

    def decide(self) -> None:
        turn = self._stream.turn(self._run.timers)
        self._collector.decide(turn, self._acting_of)
        if turn.ended:
            batch = self._newest  # that the learner waits for, or learns from
            played = self._stream.of(batch)
            over = len(played) - self._stream.left(batch)
            self._board(0, f"rollout of iteration {batch}: {over}/{len(played)} episodes")

    def _acting_of(self, batch: int) -> collectors.Acting:
        version = self._newest
        if self._switches_between_batches:
            version = self._gate.version_of(batch)
        return self._acting[version]

    def is_complete(self, batch: int) -> bool:
        if self._stream.left(batch):
            return False
        run = self._run
        book = self._collector.book(batch)
        more = rollouts.replace(run.settings, run.playable, self._stream, batch, book)
        book.make_room(len(self._stream.of(batch)))
        return not more

    # ---- learning ----------------------------------------------------------------------------

    def update(self, batch: int) -> schedule.Update:
        run = self._run
        taken = self._collector.film(batch)
        book = self._collector.close(batch)
        played = self._stream.of(batch)
        if batch + 1 == self._span.stop and config.begins_with_rollout(run.settings.raw, batch + 1):
            # No other batch is played by now.
            run.stream = run.next_stream(batch + 1)
        if taken is not None:
            with run.timers.measure("video"):
                films.write(taken, run.settings.raw, batch, played, run.envs.spec)
        return self._measured(self._learned(batch, book, played))

    def _measured(self, parts: updates.Parts) -> updates.Parts:
        """The same, and the time that it takes here."""
        while True:
            try:
                with self._run.timers.measure("update"):
                    pending = next(parts)
            except StopIteration as end:
                return end.value
            yield pending

    def _learned(
        self, batch: int, book: collectors.Book, played: list[streams.Result]
    ) -> updates.Parts:
        """One iteration's update -> its metrics."""
        run = self._run
        learner = self._learner
        cfg = run.settings.raw.algorithm
        key = run.iteration_key(batch)
        rollout = book.rollout(played)
        metrics = staleness(rollout, batch)
        rollout, found = yield from learner.catching_up(self.state, rollout, batch)
        metrics |= found
        data = objective.with_advantages(rollout, cfg)
        average = run.settings.plays_average
        acting = states.acting_params(self.state) if average else self.state.params
        moved = learning.moved(run, acting, data, rng.named(key, "moved"))
        demonstrations = learner.batches(run.settings.raw.sft.batch_size, key)
        learned = learner.with_earlier(data, batch, key)
        self.state, found = yield from updates.learn_in_parts(
            learner.updater,
            self.state,
            learned,
            rng.named(key, "shuffle"),
            demonstrations,
            in_flight=0,
        )
        # A buffer has room again.
        book.discard(range(len(played)))
        faults = self._faults
        self._faults = run.envs.counters()
        metrics |= found | moved | rollouts.metrics(cfg, played)
        metrics |= stats.fault_metrics(faults, self._faults, meshes.gather)
        return metrics | stats.rollout_metrics(rollout, data, meshes.gather)

    # ---- publishing --------------------------------------------------------------------------

    def publish(self, version: int) -> None:
        """A copy of what trains, whose originals an update takes away; the rest is shared."""
        run = self._run
        learned, _ = states.partition(self.state.params, steps.trainable(run.settings))
        acting = self.state.ema if run.settings.plays_average else learned
        copied = jax.block_until_ready(_copied(acting))
        params = meshes.local_view(states.merge(self.state.params, copied), run.mesh)
        oldest = version
        if self._switches_between_batches:
            oldest = self._gate.version_of(version)
        acting = {old: each for old, each in self._acting.items() if old >= oldest}
        self._acting = acting | {version: collectors.Acting(params, version)}
        self._newest = version


@jax.jit
def _copied(tree: dict) -> dict:
    return jax.tree.map(jnp.copy, tree)


def staleness(rollout: types.Rollout, version: int) -> dict[str, float]:
    """async/staleness_*: how many iterations older the parameters were that decided.

    version: the iteration that learns from it.
    """
    lag_R = np.concatenate(meshes.gather(version - rollout.version_R))
    return {
        "async/staleness_mean": float(lag_R.mean()),
        "async/staleness_max": float(lag_R.max()),
    }
