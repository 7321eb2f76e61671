"""A discrete-event model of the training loop: seconds of an iteration before anybody runs it.

Slots play episodes in worker processes, turns are decided on devices, complete batches are learned
from, versions are published, and an episode of batch b starts once version b - max_staleness is.
What takes time is given as numbers or as samples to draw from; the same seed draws the same
episodes whatever the schedule, so that two schedules differ by nothing else.  Refuses to know where
the numbers come from (run/recording.py, run/forecast.py), JAX, and memory.
"""

import collections
from collections.abc import Sequence
import dataclasses
import math

import numpy as np

from pirl_jax.run import shared_cores

# Iterations that are played before those that count: until batches overlap as they always will.
WARM_UP = 2


@dataclasses.dataclass(frozen=True)
class Simulators:
    """Slot s lives in worker s % workers, which serves one request at a time."""

    slots: int
    workers: int
    cores: float  # that workers share, and programs that have no devices of their own
    chunk_s: Sequence[float]  # seconds of a core, drawn from
    reset_s: Sequence[float]  # likewise
    decisions: Sequence[int]  # of an episode, drawn from
    others: float = 0.0  # threads of somebody else that always want a core


@dataclasses.dataclass(frozen=True)
class Programs:
    """Seconds that each takes where nothing else runs."""

    decision_s: float  # of a turn, at the size that it is padded to
    microbatch_s: float
    step_s: float = 0.0  # an optimiser step
    finish_s: float = 0.0  # once per iteration: advantages, metrics
    publish_s: float = 0.0  # new weights to the rollout
    offload_s: float = 0.0  # the optimiser's state to the host, and as long back
    # Cores that a decision and an update keep busy; 0: they have devices of their own.
    decision_threads: float = 0.0
    update_threads: float = 0.0


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Who waits for whom."""

    episodes: int  # of an iteration
    epochs: int
    minibatch_rows: int
    microbatch_rows: int
    num_groups: int = 1
    lockstep: bool = False
    max_staleness: int = 0
    separate: bool = False  # decisions and updates have devices of their own
    barrier_every: int = 0  # iterations; 0: never.  There everything before must be learned


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Of an iteration, on average.  The four parts add up to the whole."""

    iteration_s: float
    simulators_s: float  # somebody steps or resets, and no program runs
    inference_s: float
    update_s: float  # and no decision is made
    idle_s: float
    slot_use: float  # share of the slots' time with an episode
    workers_idle: float  # share of the workers' time without a request
    mean_lag: float  # versions between a decision and the update that learns from it
    max_lag: int
    decisions: float
    others: float  # cores that somebody else's threads had


def run(
    simulators: Simulators,
    programs: Programs,
    schedule: Schedule,
    *,
    iterations: int = 4,
    seed: int = 0,
) -> Outcome:
    """Play so many iterations after WARM_UP.

    Raises:
      ValueError: a size is none.
    """
    sizes = {
        "slots": simulators.slots,
        "workers": simulators.workers,
        "cores": simulators.cores,
        "episodes": schedule.episodes,
        "num_groups": schedule.num_groups,
        "microbatch_rows": schedule.microbatch_rows,
    }
    for name, size in sizes.items():
        if size <= 0:
            raise ValueError(f"the model of the loop needs {name} above 0, not {size}")
    loop = _Loop(simulators, programs, schedule, seed)
    loop.until(WARM_UP)
    loop.watch = _Watch(simulators)
    others = loop.clock.of_others
    loop.until(WARM_UP + iterations)
    return loop.watch.outcome(iterations, loop.clock.of_others - others)


@dataclasses.dataclass
class _Batch:
    number: int
    waiting: collections.deque  # (reset_s, chunk seconds)
    left: int  # episodes that are not over
    decisions: int = 0

    @property
    def complete(self) -> bool:
        return not self.left


@dataclasses.dataclass
class _Slot:
    batch: _Batch
    chunks: list[float]  # seconds of those still to come, the next one last


class _Watch:
    """Where the time goes, since it was made."""

    def __init__(self, simulators: Simulators) -> None:
        self._simulators = simulators
        self.parts = dict.fromkeys(("simulators", "inference", "update", "idle"), 0.0)
        self.playing = 0.0  # slot seconds
        self.working = 0.0  # worker seconds
        self.lags: collections.Counter = collections.Counter()

    def outcome(self, iterations: int, others: float) -> Outcome:
        total = sum(self.parts.values())
        decisions = sum(self.lags.values())
        lag = sum(lag * count for lag, count in self.lags.items())
        return Outcome(
            iteration_s=total / iterations,
            simulators_s=self.parts["simulators"] / iterations,
            inference_s=self.parts["inference"] / iterations,
            update_s=self.parts["update"] / iterations,
            idle_s=self.parts["idle"] / iterations,
            slot_use=self.playing / total / self._simulators.slots,
            workers_idle=1 - self.working / total / self._simulators.workers,
            mean_lag=lag / decisions,
            max_lag=max(self.lags),
            decisions=decisions / iterations,
            others=others / total,
        )


class _Loop:
    """The state of the loop; `_act` is what its thread, or threads, do next."""

    def __init__(
        self,
        simulators: Simulators,
        programs: Programs,
        schedule: Schedule,
        seed: int,
    ) -> None:
        self.simulators = simulators
        self.programs = programs
        self.schedule = schedule
        self.watch = _Watch(simulators)
        self._seed = seed
        self.clock = shared_cores.Clock(simulators.cores, simulators.others)
        self._decides = shared_cores.Device(self.clock)
        self._learns = self._decides
        if schedule.separate:
            self._learns = shared_cores.Device(self.clock)
        self._version = 0
        self._batches: list[_Batch] = []
        self._slots: dict[int, _Slot] = {}  # those that play
        self._free = list(range(simulators.slots))
        self._ready: dict[int, None] = {}  # slots, in order of arrival
        self._requests = [collections.deque() for _ in range(simulators.workers)]
        self._at_work = 0  # workers
        self._turn_of = 0  # the group whose turn it is, in lockstep
        self._deciding = False  # the thread waits for actions
        self._units: collections.deque = collections.deque()  # seconds of what is left to learn
        self._learning = False
        self._unit_runs = False
        self._admit()

    def until(self, version: int) -> None:
        """Go on until that version is published."""
        while self._version < version:
            self._act()
            at = self.clock.next()
            if at == math.inf:
                raise RuntimeError(f"nothing happens any more at version {self._version}")
            self._spent(at - self.clock.now)
            self.clock.step()

    def _spent(self, seconds: float) -> None:
        watch = self.watch
        if self._decides.kind == "inference":
            part = "inference"
        elif self._learning:
            part = "update"
        else:
            part = "simulators" if self._at_work else "idle"
        watch.parts[part] += seconds
        watch.playing += seconds * len(self._slots)
        watch.working += seconds * self._at_work

    # ---- simulators ----------------------------------------------------------------------------

    def _admit(self) -> None:
        """Free slots start episodes of the oldest batch that has any."""
        while self._free:
            batch = self._oldest_waiting()
            if batch is None:
                return
            reset_s, chunks = batch.waiting.popleft()
            slot = self._free.pop(0)
            self._slots[slot] = _Slot(batch, chunks)
            self._post(slot, reset_s)

    def _oldest_waiting(self) -> _Batch | None:
        for batch in self._batches[self._version :]:
            if batch.waiting:
                return batch
        if self._opens(len(self._batches)):  # there is always a next one
            self._batches.append(self._drawn(len(self._batches)))
            return self._batches[-1]
        return None

    def _opens(self, number: int) -> bool:
        """Whether episodes of this batch may start."""
        schedule = self.schedule
        every = schedule.barrier_every
        barrier = number // every * every if every else 0
        if not schedule.max_staleness and number > barrier:
            # Simulators start on the next batch while the learner works; nobody decides for them.
            return self._batches[number - 1].complete
        return self._version >= max(number - schedule.max_staleness, barrier)

    def _drawn(self, number: int) -> _Batch:
        waiting = collections.deque()
        given = self.simulators
        for e in range(self.schedule.episodes):
            draw = np.random.default_rng((self._seed, number, e))
            length = int(given.decisions[draw.integers(len(given.decisions))])
            chunks = np.asarray(given.chunk_s)[draw.integers(len(given.chunk_s), size=length)]
            reset_s = given.reset_s[draw.integers(len(given.reset_s))]
            waiting.append((float(reset_s), chunks.tolist()))
        return _Batch(number, waiting, left=len(waiting))

    def _post(self, slot: int, seconds: float) -> None:
        worker = slot % self.simulators.workers
        self._requests[worker].append((slot, seconds))
        if len(self._requests[worker]) == 1:
            self._at_work += 1
            self._serve(worker)

    def _serve(self, worker: int) -> None:
        slot, seconds = self._requests[worker][0]

        def answer() -> None:
            self._ready[slot] = None
            self._requests[worker].popleft()
            if self._requests[worker]:
                self._serve(worker)
            else:
                self._at_work -= 1

        self.clock.after(seconds, answer, threads=1.0)

    # ---- the loop ------------------------------------------------------------------------------

    def _act(self) -> None:
        while not self._deciding and (slots := self._turn()):
            self._take(slots)
        if self.schedule.separate or not self._deciding:
            self._learn()

    def _turn(self) -> list[int]:
        """The slots that are decided on now; none: nobody, yet."""
        if not self._slots or (not self.schedule.max_staleness and self._learning):
            return []
        if self.schedule.lockstep:
            return self._turn_of_group()
        count = -(-len(self._slots) // self.schedule.num_groups)
        return list(self._ready)[:count] if len(self._ready) >= count else []

    def _turn_of_group(self) -> list[int]:
        groups = self.schedule.num_groups
        each = self.simulators.slots // groups
        for _ in range(groups):
            first = self._turn_of * each
            slots = [slot for slot in range(first, first + each) if slot in self._slots]
            if slots:
                break
            self._turn_of = (self._turn_of + 1) % groups
        if not all(slot in self._ready for slot in slots):
            return []
        self._turn_of = (self._turn_of + 1) % groups
        return slots

    def _take(self, slots: list[int]) -> None:
        going = []
        for slot in slots:
            del self._ready[slot]
            playing = self._slots[slot]
            if playing.chunks:
                going.append(slot)
                self.watch.lags[playing.batch.number - self._version] += 1
                playing.batch.decisions += 1
            else:
                playing.batch.left -= 1
                del self._slots[slot]
                self._free.append(slot)
        self._admit()
        if going:
            self._deciding = True
            given = self.programs
            self._decides.run(
                "inference",
                given.decision_s,
                given.decision_threads,
                lambda: self._send(going),
            )

    def _send(self, slots: list[int]) -> None:
        self._deciding = False
        for slot in slots:
            self._post(slot, self._slots[slot].chunks.pop())

    # ---- the learner ---------------------------------------------------------------------------

    def _learn(self) -> None:
        """One more program of the update, where one is due and none is under way."""
        if self._unit_runs:
            return
        if not self._learning:
            version = self._version
            if version >= len(self._batches) or not self._batches[version].complete:
                return
            self._learning = True
            self._units = self._update(self._batches[version].decisions)
        self._unit_runs = True
        threads = self.programs.update_threads
        self._learns.run("update", self._units.popleft(), threads, self._learned)

    def _update(self, rows: int) -> collections.deque:
        """Seconds of its programs, one after the other."""
        programs = self.programs
        schedule = self.schedule
        minibatches = math.ceil(rows / schedule.minibatch_rows)
        each = math.ceil(math.ceil(rows / minibatches) / schedule.microbatch_rows)
        units = [programs.finish_s + programs.offload_s]
        for _ in range(schedule.epochs * minibatches):
            units += [programs.microbatch_s] * each
            units[-1] += programs.step_s
        units[-1] += programs.publish_s + programs.offload_s
        return collections.deque(units)

    def _learned(self) -> None:
        self._unit_runs = False
        if not self._units:
            self._learning = False
            self._version += 1
            self._admit()
