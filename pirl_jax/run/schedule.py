"""Who works next where episodes are played while earlier ones are learned, all from one thread.

Between two barriers (evaluations, checkpoints) lies a span of batches, one for each iteration.  An
episode of batch b may start once parameters of version b - max_staleness are published, so that no
decision is staler when it is learned from.  The learner takes whole batches in their order; nothing
that was played is dropped.

Simulators come first: whoever is ready is decided on; else one more microbatch of the update is
started, of which at most one is on its way.  With lockstep the two take turns instead, whatever
either takes, and runs repeat bit for bit.

Refuses to know simulators, parameters and devices; whoever does implements Work.
"""

from collections.abc import Callable, Generator, Iterator
import time
from typing import Protocol

from pirl_jax.core import endings, page, placement
from pirl_jax.run import config

POLL_S = 0.002  # how often one looks whether a microbatch is done while simulators are busy
SHORT = 2  # iterations from barrier to barrier that leave nothing to overlap
LOOK_S = 1.0  # how often whether anything still answers while the learner has nothing to do


class Pending(Protocol):
    """What must be there before an update goes on: an array on its way."""

    def is_ready(self) -> bool: ...


# Ends with the metrics of the iteration.
Update = Generator[Pending, None, dict]


class Work(Protocol):
    """What a schedule puts in order."""

    num_slots: int

    @property
    def under_way(self) -> int:
        """Slots that play."""

    def admit(self, batch: int) -> None:
        """Its episodes may start."""

    def can_decide(self, timeout_s: float) -> bool:
        """Whether enough simulators wait for a decision, after so long a wait."""

    def decide(self) -> None:
        """Answer those that are ready; in lockstep those whose turn it is."""

    def is_complete(self, batch: int) -> bool:
        """Whether an admitted batch is over, with all that replaces some of it, and everywhere."""

    def awaits_others(self, batch: int) -> bool:
        """Whether it is over here, and other hosts still play their part."""

    def ends(self, batch: int, ending: BaseException) -> bool:
        """Nothing goes on here -> whether this batch is one that all hosts learn from before."""

    def update(self, batch: int) -> Update:
        """Learn from it."""

    def publish(self, version: int) -> None:
        """From now on the learned parameters play."""


def is_barrier(raw: page.Page, iteration: int) -> bool:
    """Whether nothing of an iteration is played before all earlier ones are learned.

    So it is before an evaluation and where a checkpoint is due: what is saved there is all there
    is.
    """
    saved = iteration % raw.run.save_every == 0
    return not raw.rollout.max_staleness or saved or config.evaluation_due(raw, iteration)


def weight_switch(raw: page.Page) -> str:
    """When new parameters play: decision | batch."""
    return "batch" if raw.rollout.lockstep else raw.rollout.weight_switch


def spans(raw: page.Page, first: int) -> Iterator[range]:
    """The iterations from this one on, from barrier to barrier."""
    start = first
    for iteration in range(first + 1, raw.num_iterations + 1):
        if iteration == raw.num_iterations or is_barrier(raw, iteration):
            yield range(start, iteration)
            start = iteration


def require(raw: page.Page) -> None:
    """
    Raises:
      ValueError: rows lie where others play.
    """
    if not raw.rollout.max_staleness or raw.rollout.prefix_cache != "device":
        return
    section = raw.placement
    if placement.check(section.env, section.rollout, section.actor) == "separate":
        raise ValueError(
            f"rollout.prefix_cache='device' keeps rows on placement.rollout={raw.placement.rollout}"
            f", which goes on playing while placement.actor={raw.placement.actor} learns; set it to"
            f" 'host' or 'recompute'"
        )


def remarks(raw: page.Page, first: int) -> list[str]:
    """What a user may not expect of a run that starts with this iteration."""
    ahead = raw.rollout.max_staleness
    said = []
    if not ahead:
        return said
    for name in ("run.save_every", "eval.every"):
        section, _, field = name.partition(".")
        every = getattr(getattr(raw, section), field)
        if 0 < every <= SHORT:
            said.append(
                f"nothing is played ahead of a checkpoint or an evaluation, and with {name}={every}"
                f" there is one so often that rollout.max_staleness={ahead} brings next to nothing"
            )
    if raw.rollout.lockstep and raw.rollout.weight_switch == "decision":
        said.append(
            "rollout.lockstep=True repeats bit for bit, so whole rollouts are played by one version"
            " (rollout.weight_switch=batch)"
        )
    if first < raw.num_iterations and not is_barrier(raw, first):
        said.append(
            f"iteration {first} was saved while later ones were played, which is lost: the run goes"
            f" on, but not bit for bit as it would have"
        )
    return said


class Gate:
    """Which version of the parameters a batch of a span waits for."""

    def __init__(self, span: range, max_staleness: int) -> None:
        self.span = span
        self.max_staleness = max_staleness

    def version_of(self, batch: int) -> int:
        """It may start once this is published."""
        return max(batch - self.max_staleness, self.span.start)


class Schedule:
    """Plays and learns a span."""

    def __init__(
        self,
        work: Work,
        gate: Gate,
        *,
        in_turns: bool,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
        rest: Callable[[float], None] = time.sleep,
    ) -> None:
        """Publishes the first version; the simulators start.

        Args:
          in_turns: a decision and a microbatch take turns (lockstep).
          timeout_s: longest silence of update and simulators together.
          clock, rest: seconds, and a wait of so many.
        """
        self.version = gate.span.start  # that is published: iterations learned so far
        self._work = work
        self._gate = gate
        self._in_turns = in_turns
        self._timeout_s = timeout_s
        self._clock = clock
        self._rest = rest
        self._next = gate.span.start  # the batch that is admitted next
        self._update: Update | None = None
        self._pending: Pending | None = None
        self._heard_s = clock()  # when something was last done
        self._meter = Meter(clock)
        self._publish(self.version)

    def learned(self) -> dict[str, float]:
        """Until one more batch is learned and published -> metrics.

        Raises:
          endings.Failure: nothing happened for too long.
        """
        metrics = None
        while metrics is None:
            metrics = self._step()
            self._meter.tick(
                used=self._work.under_way / self._work.num_slots,
                is_learning=self._update is not None,
                is_gated=self._next < self._gate.span.stop,
            )
        self._publish(self.version + 1)
        return metrics | self._meter.take()

    def settled(self, ending: BaseException) -> dict[str, float] | None:
        """The update under way, to its end -> metrics; None: there is none.

        Nothing plays on.  Under way is also what other hosts may have begun.
        """
        if self._update is None and self._is_last(ending):
            self._update = self._work.update(self.version)
        if self._update is None:
            return None
        metrics = None
        while metrics is None:
            self._await_part()
            metrics = self._advance()
        self.version += 1
        # Hosts make the same calls, whether asked to end or not yet.
        self._work.publish(self.version)
        self._is_last(ending)  # no: all others hear of it
        return metrics

    def _is_last(self, ending: BaseException) -> bool:
        """Whether the next update is one that all make before the end."""
        return self.version < self._gate.span.stop and self._work.ends(self.version, ending)

    def _publish(self, version: int) -> None:
        """It counts once it is there."""
        start_s = self._clock()
        self._work.publish(version)
        self._meter.publish_s = self._clock() - start_s
        self.version = version
        span = self._gate.span
        while self._next < span.stop and self._gate.version_of(self._next) <= self.version:
            self._work.admit(self._next)
            self._next += 1

    def _step(self) -> dict[str, float] | None:
        """One decision, one part of the update, or a wait -> metrics at the end of an update."""
        if self._update is None and self._work.is_complete(self.version):
            self._update = self._work.update(self.version)
            self._heard()
        if self._in_turns:
            return self._turn_and_part()
        if self._work.can_decide(0.0):
            self._work.decide()
            self._heard()
        elif self._update is not None and self._is_there():
            return self._advance()
        else:
            self._wait()
        return None

    def _turn_and_part(self) -> dict[str, float] | None:
        if self._work.under_way:
            self._work.decide()
            self._heard()
        if self._update is None:
            return None
        self._await_part()
        return self._advance()

    def _is_there(self) -> bool:
        return self._pending is None or self._pending.is_ready()

    def _await_part(self) -> None:
        while not self._is_there():
            self._rest(POLL_S)
            self._check_silence()

    def _advance(self) -> dict[str, float] | None:
        """The next part of the update."""
        self._heard()
        try:
            self._pending = next(self._update)
        except StopIteration as end:
            self._update = None
            self._pending = None
            return end.value
        return None

    def _wait(self) -> None:
        """For whichever comes first: simulators, or the part of the update that is on its way."""
        is_learning = self._update is not None
        if self._work.under_way:
            self._work.can_decide(POLL_S if is_learning else LOOK_S)
        elif is_learning:
            self._rest(POLL_S)
        elif self._work.awaits_others(self.version):
            self._rest(POLL_S)
            return  # they have their own time
        else:
            raise RuntimeError(f"batch {self.version} is not over, and nothing plays")
        self._check_silence()

    def _heard(self) -> None:
        self._heard_s = self._clock()

    def _check_silence(self) -> None:
        if self._clock() - self._heard_s > self._timeout_s:
            silent = "update" if self._update is not None else "simulators"
            raise endings.Failure(
                f"nothing happened for {self._timeout_s:g} s (rollout.learner_timeout_s) in "
                f"iteration {self.version}: the {silent} did not answer; where that is no fault, "
                f"set rollout.learner_timeout_s higher"
            )


class Meter:
    """What the slots and the learner did since the last row."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.publish_s = 0.0
        self._clock = clock
        self._last_s = clock()
        self._state = {"used": 0.0, "is_learning": False, "is_gated": False}
        self._forget()

    def _forget(self) -> None:
        self._elapsed_s = 0.0
        self._used_s = 0.0
        self._gate_wait_s = 0.0
        self._learner_wait_s = 0.0

    def tick(self, *, used: float, is_learning: bool, is_gated: bool) -> None:
        """What was so since the last tick: share of the slots that play, whether an update is under
        way, whether a batch waits for a version."""
        now_s = self._clock()
        seconds = now_s - self._last_s
        self._last_s = now_s
        self._elapsed_s += seconds
        self._used_s += used * seconds
        if is_gated:
            self._gate_wait_s += (1 - used) * seconds
        if not is_learning:
            self._learner_wait_s += seconds
        self._state = {"used": used, "is_learning": is_learning, "is_gated": is_gated}

    def lasts(self) -> None:
        """What the last tick said is so until now: before a take amidst a wait of another thread,
        which else would count as a whole in the next row."""
        self.tick(**self._state)

    def take(self) -> dict[str, float]:
        """Metrics since the last take."""
        found = {
            "rollout/slot_use": self._used_s / self._elapsed_s if self._elapsed_s else 0.0,
            "time/gate_wait": self._gate_wait_s,
            "time/learner_wait": self._learner_wait_s,
            "time/publish": self.publish_s,
        }
        self._forget()
        return found
