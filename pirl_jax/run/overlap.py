"""Iterations of a run whose episodes are played while earlier ones are learned.

What run/schedule.py puts in order, for a run: its stream of batches, their books, its update in
parts, and the copies of the parameters that play.
"""

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from pirl_jax.core import endings, rng, types
from pirl_jax.core import mesh as meshes
from pirl_jax.envs.pool import queue
from pirl_jax.learner import in_parts
from pirl_jax.learner import state as states
from pirl_jax.monitor import panel
from pirl_jax.rollout import actor as actors
from pirl_jax.rollout import collector as collectors
from pirl_jax.rollout import film as filming
from pirl_jax.rollout import stats
from pirl_jax.rollout import stream as streams
from pirl_jax.run import (
    agreement,
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

    Asked to end, it finishes the update that is under way, drops what plays, and saves.  Several
    hosts end after the same update.

    Raises:
      endings.Preempted: it was.
      endings.Diverged: there is nothing to go on with.
    """
    raw = run.settings.raw
    work = Work(run, learner, state, span, board)
    try:
        with jax.transfer_guard("disallow"):
            order = schedule.Schedule(
                work,
                work.gate,
                in_turns=raw.rollout.lockstep,
                timeout_s=raw.rollout.learner_timeout_s,
            )
        for iteration in span:
            with jax.transfer_guard("disallow"):
                metrics = order.learned()
            ended(iteration, metrics | run.timers.take())
    except (queue.Interrupted, endings.Diverged) as ending:
        metrics = order.settled(ending)
        if metrics is not None:
            ended(order.version - 1, metrics | run.timers.take())
        if isinstance(ending, endings.Diverged):
            raise
        if order.version < span.stop:
            raise saved(run, work.state, order.version, span, watch) from None
    # Where it was asked to end too late to be stopped, as another host perhaps was not yet, the
    # next span does not begin.
    return work.state


def saved(
    run: training.Run,
    state: states.TrainState,
    version: int,
    span: range,
    watch: preemption.Watch,
) -> endings.Preempted:
    """Asked to end within a span: saves what is learned -> what to say of it."""
    run.store.finish(version, divergence.checked(state, version))
    said = f"iteration {version} is saved"
    if version != span.start:
        said += (
            " and what was played ahead of it is dropped, so that the run goes on, but not bit for"
            " bit as it would have"
        )
    return watch.ending(said)


@dataclasses.dataclass(frozen=True)
class Showing:
    """Parameters that may play."""

    newest: int
    by_version: dict[int, collectors.Acting]


@dataclasses.dataclass(frozen=True)
class Played:
    """A batch that is over."""

    book: collectors.Book
    results: list[streams.Result]
    rollout: types.Rollout
    film: filming.Film | None


class Work:
    """See schedule.Work.

    What plays (`admit` to `take`) and what learns (`learned`, `publish`) may be two threads.
    """

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
        self.gate = schedule.Gate(span, raw.rollout.max_staleness)
        self._most_open = raw.rollout.max_staleness + 1
        self._agreement = hosts.agree(
            f"pirl/updates/{run.rollbacks}", raw.rollout.learner_timeout_s
        )
        self._over = span.start - 1  # the youngest batch that is known to be over here
        self._switches_between_batches = schedule.weight_switch(raw) == "batch"
        # One reference, so that nobody who decides sees half of a version.
        self._showing = Showing(span.start, {})
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
            meshes.replicate(key, run.plays),
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
            batch = self._showing.newest  # that the learner waits for, or learns from
            played = self._stream.of(batch)
            over = len(played) - self._stream.left(batch)
            self._board(0, f"rollout of iteration {batch}: {over}/{len(played)} episodes")

    def _acting_of(self, batch: int) -> collectors.Acting:
        showing = self._showing
        version = showing.newest
        if self._switches_between_batches:
            version = self.gate.version_of(batch)
        return showing.by_version[version]

    def is_over(self, batch: int) -> bool:
        """Whether this host's part of it is."""
        if self._over < batch and not self._stream.left(batch):
            run = self._run
            book = self._collector.book(batch)
            more = rollouts.replace(run.settings, run.playable, self._stream, batch, book)
            book.make_room(len(self._stream.of(batch)))
            if not more:
                self._over = batch
        return self._over >= batch

    def begins(self, batch: int) -> bool:
        """Whether all hosts learn from it now, of which this one has its part."""
        return self._agreement.begins(batch, True)

    def is_complete(self, batch: int) -> bool:
        is_over = self.is_over(batch)
        begins = self._agreement.begins(batch, is_over)
        # In lockstep what this host plays must not depend on how long the others take.
        while is_over and not begins and self._run.settings.raw.rollout.lockstep:
            self._run.envs.ready(self.num_slots + 1, agreement.LOOK_S)
            begins = self.begins(batch)
        return begins

    def awaits_others(self, batch: int) -> bool:
        return self._over >= batch

    def ends(self, batch: int, ending: agreement.Ending) -> bool:
        return self._agreement.ends(batch, ending)

    def take(self, batch: int) -> Played:
        """A batch that is complete, the oldest one."""
        run = self._run
        film = self._collector.film(batch)
        book = self._collector.close(batch)
        results = self._stream.of(batch)
        if batch + 1 == self._span.stop and config.begins_with_rollout(run.settings.raw, batch + 1):
            # No other batch is played by now.
            run.stream = run.next_stream(batch + 1)
        return Played(book, results, book.rollout(results), film)

    # ---- learning ----------------------------------------------------------------------------

    def update(self, batch: int) -> schedule.Update:
        return self.learned(batch, self.take(batch))

    def learned(self, batch: int, played: Played) -> schedule.Update:
        """Learn from it."""
        self._run.keep_film(played.film, batch, played.results)
        return self._measured(self._learned(batch, played))

    def _measured(self, parts: in_parts.Parts) -> in_parts.Parts:
        """The same, and the time that it takes here."""
        while True:
            try:
                with self._run.timers.measure("update"):
                    pending = next(parts)
            except StopIteration as end:
                return end.value
            yield pending

    def _learned(self, batch: int, played: Played) -> in_parts.Parts:
        """One iteration's update -> its metrics."""
        run = self._run
        learner = self._learner
        ahead = run.settings.raw.rollout.max_staleness
        metrics = staleness(played.rollout, batch, ahead)
        rollout, found = yield from learner.catching_up(self.state, played.rollout, batch)
        metrics |= found
        self.state, found = yield from learning.lesson(
            run, learner, self.state, rollout, played.results, batch, in_flight=0
        )
        # A buffer has room again.
        played.book.discard(range(len(played.results)))
        faults = self._faults
        self._faults = run.envs.counters()
        metrics |= found
        return metrics | stats.fault_metrics(faults, self._faults, meshes.gather)

    # ---- publishing --------------------------------------------------------------------------

    def publish(self, version: int) -> None:
        """A copy of what trains, whose originals an update takes away; the rest is shared."""
        run = self._run
        learned, frozen = states.partition(self.state.params, steps.trainable(run.settings))
        acting = self.state.ema if run.settings.plays_average else learned
        if not run.publish.copies:
            acting = jax.block_until_ready(_copied(acting))
        params = run.publish(states.merge(frozen, learned, acting))
        oldest = version
        if self._switches_between_batches:
            oldest = self.gate.version_of(version)
        before = self._showing.by_version.items()
        kept = {old: each for old, each in before if old >= oldest}
        self._showing = Showing(version, kept | {version: collectors.Acting(params, version)})


@jax.jit
def _copied(tree: dict) -> dict:
    return jax.tree.map(jnp.copy, tree)


def staleness(rollout: types.Rollout, version: int, most: int) -> dict[str, float]:
    """async/*: how many iterations older the parameters were that decided, at most so many.

    version: the iteration that learns from it.
    """
    lag_R = np.concatenate(meshes.gather(version - rollout.version_R))
    found = {
        "async/staleness_mean": float(lag_R.mean()),
        "async/staleness_max": float(lag_R.max()),
    }
    for lag in range(most + 1):
        found[f"async/lag_{lag}"] = float((lag_R == lag).mean())
    return found
