"""Iterations of a run whose episodes are played while earlier ones are learned, by two threads on
devices of their own.

One thread plays (run/overlap.py Work), this one learns; run/exchange.py is between them.  Neither
waits for the other's devices: decisions compute without a collective, and of an update one
microbatch is on its way.  Who decides when is not repeated bit for bit, so that lockstep is not
for this.
"""

import contextlib
import threading
import time

import jax

from pirl_jax.core import endings
from pirl_jax.envs.pool import queue
from pirl_jax.learner import state as states
from pirl_jax.monitor import panel
from pirl_jax.run import agreement, ahead, learning, overlap, preemption, schedule, training
from pirl_jax.run import exchange as exchanges

POLL_S = 0.05  # how long simulators are waited for before one looks for new parameters
ENDINGS = (queue.Interrupted, endings.Diverged)  # after which hosts go on together


def applies(run: training.Run) -> bool:
    """Whether who plays and who learns have no device in common."""
    plays = set(run.plays.devices.flat)
    is_separate = plays.isdisjoint(run.mesh.devices.flat)
    rollout = run.settings.raw.rollout
    return bool(rollout.max_staleness) and is_separate and not rollout.lockstep


def play(
    run: training.Run,
    learner: learning.Learner,
    state: states.TrainState,
    span: range,
    board: panel.Board,
    watch: preemption.Watch,
    ended: overlap.Ended,
) -> states.TrainState:
    """As overlap.play.

    Raises:
      endings.Preempted: it was asked to end.
      Whatever either thread raises, the first of it.
    """
    ahead.compile_all(run)
    sides = Sides(run, overlap.Work(run, learner, state, span, board), span, ended)
    try:
        # Two threads would order computations of all hosts differently on each.
        with jax.thread_guard(True):
            exchanges.both(sides.exchange, sides.play, sides.learn, run.envs.interrupt)
    except ENDINGS as ending:
        sides.settle(ending)
        if isinstance(ending, endings.Diverged):
            if watch.wanted is None:  # a thread that was slow to end has been woken by it
                run.envs.go_on()
            raise
        if sides.version == span.stop:
            return sides.work.state  # see overlap.play
        raise overlap.saved(run, sides.work.state, sides.version, span, watch) from None
    return sides.work.state


class Sides:
    """What either thread does."""

    def __init__(
        self, run: training.Run, work: overlap.Work, span: range, ended: overlap.Ended
    ) -> None:
        """Publishes the first version."""
        self.work = work
        self.version = span.start  # iterations learned so far
        self._run = run
        self._span = span
        self._ended = ended
        self._taken: overlap.Played | None = None  # the newest batch that the learner has
        self._meter = schedule.Meter(time.monotonic)
        self._measuring = threading.Lock()  # guards the meter
        with jax.transfer_guard("disallow"):
            work.publish(span.start)
        timeout_s = run.settings.raw.rollout.learner_timeout_s
        self.exchange = exchanges.Exchange(span.start, timeout_s)

    # ---- the thread that plays ---------------------------------------------------------------

    def play(self) -> None:
        """All batches of the span."""
        work = self.work
        exchange = self.exchange
        stop = self._span.stop
        oldest = self._span.start  # that the learner does not have
        following = oldest  # the first that is not admitted
        with jax.transfer_guard("disallow"):
            while oldest < stop:
                exchange.playing()
                version = exchange.version
                while following < stop and work.gate.version_of(following) <= version:
                    work.admit(following)
                    following += 1
                if oldest == following:
                    exchange.await_version(work.gate.version_of(following))
                elif self._is_due(oldest):
                    exchange.hand_over(work.take(oldest))
                    oldest += 1
                elif work.under_way and work.can_decide(POLL_S):
                    work.decide()
                self._tick(following < stop, oldest)

    def _is_due(self, batch: int) -> bool:
        """Whether a batch is over, and is awaited or nothing else is to be done."""
        free = self.exchange.has_room() or not self.work.under_way
        return free and self.work.is_over(batch)

    def _tick(self, is_gated: bool, oldest: int) -> None:
        used = self.work.under_way / self.work.num_slots
        with self._measuring:
            self._meter.tick(used=used, is_learning=oldest > self.version, is_gated=is_gated)

    # ---- the thread that learns --------------------------------------------------------------

    def learn(self) -> None:
        """The same, one after another."""
        for iteration in self._span:
            self._taken = self.exchange.take()
            while not self.work.begins(iteration):
                self.exchange.learning()
                time.sleep(agreement.LOOK_S)
            metrics = self._learned(iteration)
            try:
                self.exchange.publish(self.version)
            finally:  # it is learned, whatever has become of the other side
                self._row(iteration, metrics)

    def settle(self, ending: agreement.Ending) -> None:
        """What other hosts may have begun, where nothing plays on."""
        iteration = self.version
        if iteration < self._span.stop and self.work.ends(iteration, ending):
            self._row(iteration, self._learned(iteration))

    def _learned(self, iteration: int) -> dict[str, float]:
        """From the batch that was taken -> metrics."""
        with jax.transfer_guard("disallow"):
            metrics = self._drained(self.work.learned(iteration, self._taken))
            self.version = iteration + 1
            start_s = time.monotonic()
            self.work.publish(self.version)
        self._meter.publish_s = time.monotonic() - start_s
        return metrics

    def _row(self, iteration: int, metrics: dict[str, float]) -> None:
        with self._measuring:
            self._meter.lasts()
            metrics |= self._meter.take()
        self._ended(iteration, metrics | self._run.timers.take())

    def _drained(self, parts: schedule.Update) -> dict[str, float]:
        """An update to its end, also where one is asked to end meanwhile."""
        while True:
            try:
                pending = next(parts)
            except StopIteration as end:
                return end.value
            jax.block_until_ready(pending)
            # Raised again where parameters are published: other hosts make this update too.
            with contextlib.suppress(*ENDINGS):
                self.exchange.learning()
