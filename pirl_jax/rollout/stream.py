"""Plays whole episodes on a pool of simulators, turn by turn.  Refuses to know networks.

An episode is (task, init_state).  Episodes stream over the slots: a slot that finishes one starts
another at once, if possible of a task whose simulator its process keeps.  The slots that are ready
are served together, a fixed share of those under way at a time, and nobody waits for the others.
With `lockstep` fixed groups of slots take turns instead, and what is decided on together depends on
nothing but the list of episodes: runs repeat bit for bit.

Episodes belong to batches.  A batch may be admitted while older ones are played; a free slot takes
the oldest batch that has an episode waiting, and a batch keeps its members whatever happens.

An episode whose simulator was lost is forgotten and played once more; lost again, it stays lost.
"""

import bisect
import collections
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
from typing import Protocol

import numpy as np

from pirl_jax.core import page
from pirl_jax.envs import base
from pirl_jax.envs.pool import queue

# Episodes per slot that may overtake the first one waiting, for the sake of their task.
LOOKAHEAD = 16


@dataclasses.dataclass(frozen=True)
class Episode:
    """The name of an episode: one task of the suite from one start state."""

    task: int
    init_state: int


@dataclasses.dataclass
class Result:
    """Outcome of one episode."""

    episode: Episode
    success: bool = False
    reward: float = 0.0  # sum over the episode
    num_steps: int = 0  # control steps
    num_decisions: int = 0
    frames: list | None = None  # [Y,X,3] uint8, when recorded
    thrown: bool = False  # its start state threw an object before it came to rest
    lost: bool = False  # its simulator failed twice: nothing else here means anything


@dataclasses.dataclass
class Turn:
    """The slots that have something new, decided on together.  n is 0 where all were lost."""

    row: np.ndarray  # [n] position of each slot in the batch of num_envs / num_groups rows
    slot: np.ndarray  # [n]
    episode: np.ndarray  # [n] index of the episode that the slot plays
    # [n] index of the coming decision in its episode; of a finished episode, how many it took
    decision: np.ndarray
    # [n] bool: the episode just ended; the row only offers its last observation
    finished: np.ndarray
    task: np.ndarray  # [n]
    step: base.TimeStep  # batched [n,...]
    # Episodes whose simulators were lost: what was known of them means nothing.
    lost: list[int] = dataclasses.field(default_factory=list)
    # Episodes that are over, for good: finished just now, or lost for the second time.
    ended: list[int] = dataclasses.field(default_factory=list)


Rows = tuple[np.ndarray, np.ndarray, base.TimeStep]  # rows that are decided on, slots, answers

# -> actions [n,I,a] in simulator units; those of finished slots are ignored
Decide = Callable[[Turn], np.ndarray]


class Timers(Protocol):
    """Stopwatches by name (monitor/timeline.py)."""

    def measure(self, name: str) -> contextlib.AbstractContextManager: ...


@dataclasses.dataclass
class _Batch:
    """Episodes by their index in the stream."""

    members: list[int] = dataclasses.field(default_factory=list)  # in their order
    waiting: list[int] = dataclasses.field(default_factory=list)  # ascending


class Stream:
    """Which slot plays which episode, and what has come of it.

    Every slot starts its first episode at once; `turns` goes on from there, whenever it is called.
    Episodes are counted over all batches; `by_batch` counts them in their own.
    """

    def __init__(
        self,
        envs: queue.ReadyQueue,
        episodes: Sequence[Episode],
        rollout: page.Rollout,
        cached_tasks: int,
        *,
        record: Iterable[int] = (),
        done: Mapping[int, Result] | None = None,
        batch: int = 0,
    ):
        """Give every slot its first episode; returns at once.

        Args:
          envs: the simulators; nobody else may ask or answer them meanwhile.
          rollout: how slots are served: num_groups, lockstep.
          cached_tasks: tasks whose simulators a process keeps.
          record: indices of the episodes whose video frames are kept.
          done: results known already, by index; these are not played.
          batch: the number of the batch that these are.
        """
        self.envs = envs
        self.first = batch  # the number of the oldest batch
        self.num_groups = rollout.num_groups
        self.lockstep = rollout.lockstep
        self._cached_tasks = cached_tasks
        self.episodes: list[Episode] = []
        self.results: list[Result] = []  # in the order of the episodes
        self._record = frozenset(record)
        self._batches: dict[int, _Batch] = {}  # the oldest first
        self._batch_of: list[int] = []  # of each episode
        self._place: list[int] = []  # of each episode in its batch
        self._next_group = 0  # whose turn it is in lockstep
        # slot -> episode; -1: nothing left to play
        self._playing = np.full(envs.num_envs, -1)
        self._lost_once: set[int] = set()
        self._add(batch, episodes, done or {})

    @property
    def batch_size(self) -> int:
        """Most rows that a turn can have."""
        return self.envs.num_envs // self.num_groups

    @property
    def num_left(self) -> int:
        """Episodes that are not over yet."""
        return self.under_way + sum(len(batch.waiting) for batch in self._batches.values())

    @property
    def under_way(self) -> int:
        """Slots that play; each has one request in the pool."""
        return int((self._playing >= 0).sum())

    def left(self, batch: int) -> int:
        """Episodes of an admitted batch that are not over yet."""
        playing = self._playing[self._playing >= 0].tolist()
        mine = sum(self._batch_of[e] == batch for e in playing)
        return mine + len(self._batches[batch].waiting)

    def of(self, batch: int) -> list[Result]:
        """Results of its episodes, in their order."""
        return [self.results[e] for e in self._batches[batch].members]

    def turns(self, timers: Timers) -> Iterator[Turn]:
        """What is ready, until every episode is over; answer a turn with `send` before the next.

        timers: measures "env", the time spent waiting for simulators.
        """
        while (turn := self.turn(timers)) is not None:
            yield turn

    def turn(self, timers: Timers) -> Turn | None:
        """The next one; waits for it.  None: every episode that was admitted is over."""
        if not self.under_way:
            return None
        batch = self._in_lockstep if self.lockstep else self._as_ready
        return self._turn(*batch(timers))

    def is_ready(self, timeout_s: float) -> bool:
        """Whether `turn` would wait no longer, after so long a wait; not for lockstep's order.

        Raises: as `get` of the simulators.
        """
        wanted = self._wanted
        return bool(wanted) and self.envs.ready(wanted, timeout_s) >= wanted

    @property
    def _wanted(self) -> int:
        """How many slots a turn waits for."""
        return -(-self.under_way // self.num_groups)

    def by_batch(self, turn: Turn) -> dict[int, Turn]:
        """The parts of a turn, with episodes counted in their batch; the oldest batch first."""
        batch_n = np.array([self._batch_of[e] for e in turn.episode], int)
        present = {*batch_n.tolist(), *(self._batch_of[e] for e in [*turn.lost, *turn.ended])}
        return {batch: self._part(turn, batch, batch_n == batch) for batch in sorted(present)}

    def _part(self, turn: Turn, batch: int, mine: np.ndarray) -> Turn:
        def places(episodes: Iterable[int]) -> list[int]:
            return [self._place[e] for e in episodes if self._batch_of[e] == batch]

        # Images are copied only where batches mix.
        chosen = slice(None) if mine.all() else np.flatnonzero(mine)
        return Turn(
            row=turn.row[chosen],
            slot=turn.slot[chosen],
            episode=np.array(places(turn.episode.tolist()), int),
            decision=turn.decision[chosen],
            finished=turn.finished[chosen],
            task=turn.task[chosen],
            step=turn.step if mine.all() else _rows(turn.step, chosen),
            lost=places(turn.lost),
            ended=places(turn.ended),
        )

    def send(self, turn: Turn, actions_nIa: np.ndarray) -> None:
        """Start the next chunk of the slots whose episodes go on."""
        going = ~turn.finished
        if not going.any():
            return
        results = [self.results[e] for e in turn.episode[going]]
        record = [result.frames is not None for result in results]
        self.envs.send(turn.slot[going], actions_nIa[going], record=record)
        for result in results:
            result.num_decisions += 1

    def admit(self, batch: int, episodes: Sequence[Episode]) -> None:
        """A new batch, younger than all others; slots that are free start on it at once."""
        self._add(batch, episodes, {})

    def extend(self, episodes: Sequence[Episode], batch: int = 0) -> None:
        """More episodes of a batch.  Where all others were over, `turns` has to be called anew."""
        self._add(batch, episodes, {})

    def _add(self, batch: int, episodes: Sequence[Episode], done: Mapping[int, Result]) -> None:
        if not self.under_way:
            self._forget_kept()
        mine = self._batches.setdefault(batch, _Batch())
        first = len(self.episodes)
        self.episodes += episodes
        for e in range(first, len(self.episodes)):
            self.results.append(done.get(e) or self._blank(e))
            self._batch_of.append(batch)
            self._place.append(len(mine.members))
            mine.members.append(e)
            if e not in done:
                mine.waiting.append(e)
        self._start(np.flatnonzero(self._playing < 0))

    def _forget_kept(self) -> None:
        """Who plays what must not depend on which slot was the last one before."""
        # Tasks whose simulators the process of each slot keeps, the latest last.
        kept = {
            worker: collections.deque(maxlen=self._cached_tasks)
            for worker in self.envs.slot_workers
        }
        self._kept = [kept[worker] for worker in self.envs.slot_workers]
        self._next_group = 0

    def _start(self, slots: np.ndarray) -> None:
        """Give each slot an episode, or retire it."""
        for slot in slots:
            self._playing[slot] = self._choose(self._kept[slot])
        slots = [slot for slot in slots if self._playing[slot] >= 0]
        if slots:
            episodes = [self.episodes[e] for e in self._playing[slots]]
            tasks = [episode.task for episode in episodes]
            self.envs.reset(slots, tasks, [episode.init_state for episode in episodes])

    def _choose(self, kept: collections.deque) -> int:
        """The first waiting episode of a kept task, in the oldest batch that has any.

        The first of all where none is near, so that none starves.
        """
        waiting = next((batch.waiting for batch in self._batches.values() if batch.waiting), None)
        if not waiting:
            return -1
        horizon = waiting[0] + LOOKAHEAD * self.envs.num_envs
        end = bisect.bisect_left(waiting, horizon)
        near = (k for k in range(end) if self.episodes[waiting[k]].task in kept)
        e = waiting.pop(next(near, 0))
        task = self.episodes[e].task
        if task in kept:
            kept.remove(task)
        kept.append(task)
        return e

    def _turn(self, row: np.ndarray, slot: np.ndarray, step: base.TimeStep) -> Turn:
        """Book what the last chunk of these slots brought, and give the freed ones new episodes."""
        free = step.lost.copy()
        lost = self._lose(slot[free])
        kept = np.flatnonzero(~free)
        if lost:
            step = _rows(step, kept)
        playing = self._playing[slot[kept]]
        self._book(playing, step)
        finished = step.terminated | step.truncated
        stay_lost = [e for e in lost if self.results[e].lost]
        turn = Turn(
            row=row[kept],
            slot=slot[kept],
            episode=playing,
            # A turn may be empty, and these are indices even then.
            decision=np.array([self.results[e].num_decisions for e in playing], int),
            finished=finished,
            task=np.array([self.episodes[e].task for e in playing], int),
            step=step,
            lost=lost,
            ended=[*playing[finished].tolist(), *stay_lost],
        )
        free[kept] = finished
        self._start(slot[free])  # resets run while the network decides
        return turn

    def _book(self, playing: np.ndarray, step: base.TimeStep) -> None:
        """Add up what these episodes have earned."""
        for i, e in enumerate(playing):
            result = self.results[e]
            result.reward += float(step.reward[i])
            result.num_steps += int(step.num_steps[i])
            result.success |= bool(step.terminated[i])
            result.thrown |= bool(step.thrown[i])
            if step.frames is not None and step.frames[i]:
                result.frames += step.frames[i]

    def _lose(self, slots: np.ndarray) -> list[int]:
        """Their episodes wait again, or stay lost; -> episode indices."""
        lost = self._playing[slots].tolist()
        for e in lost:
            self.results[e] = self._blank(e)
            if e in self._lost_once:
                self.results[e].lost = True
            else:
                self._lost_once.add(e)
                bisect.insort(self._batches[self._batch_of[e]].waiting, e)
        return lost

    def _blank(self, e: int) -> Result:
        return Result(self.episodes[e], frames=[] if e in self._record else None)

    def _in_lockstep(self, timers: Timers) -> Rows:
        groups = np.split(np.arange(self.envs.num_envs), self.num_groups)
        slots = np.array([], int)
        while not len(slots):
            group = groups[self._next_group]
            self._next_group = (self._next_group + 1) % self.num_groups
            slots = group[self._playing[group] >= 0]
        with timers.measure("env"):
            _, step = self.envs.get(len(slots), slots)
        return slots - group[0], slots, step

    def _as_ready(self, timers: Timers) -> Rows:
        with timers.measure("env"):
            slots, step = self.envs.get(self._wanted)
        return np.arange(len(slots)), slots, step


def _rows(step: base.TimeStep, index: np.ndarray) -> base.TimeStep:
    """Some rows of a batch."""
    arrays = {
        name: value[index] for name, value in vars(step).items() if isinstance(value, np.ndarray)
    }
    frames = step.frames and [step.frames[i] for i in index]
    return dataclasses.replace(step, **arrays, frames=frames)
