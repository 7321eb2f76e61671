"""Plays whole episodes on a pool of simulators.  Knows the pool and a decision function; refuses to know networks.

An episode is (task, init_state).  Episodes stream over the slots: a slot that finishes one starts another at once, if
possible of a task whose simulator its process keeps.  The slots that are ready are served together, a fixed share of those
under way at a time, and nobody waits for the others; with `lockstep` fixed groups of slots take turns instead, and the batch
in which a decision is made depends on nothing but the list of episodes: runs repeat bit for bit.

An episode whose simulator was lost is forgotten and played once more; lost again, it stays lost.
"""

import bisect
import collections
from collections.abc import Callable, Iterator, Mapping
import dataclasses

import numpy as np

from pirl_jax.envs import base

LOOKAHEAD = (
    16  # episodes per slot that may overtake the first one waiting, for the sake of their task
)


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
    lost: bool = False  # its simulator failed twice: nothing else here means anything


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How slots are served."""

    num_groups: int = (
        1  # a decision is made for 1 / num_groups of the slots at a time, while the others simulate
    )
    lockstep: bool = False  # fixed groups take turns
    cached_tasks: int = 1  # tasks whose simulators a process keeps


@dataclasses.dataclass
class Turn:
    """The slots that have something new, decided on together."""

    row: np.ndarray  # [n] position of each slot in the batch of num_envs / num_groups rows
    episode: np.ndarray  # [n] index of the episode each slot plays
    decision: (
        np.ndarray
    )  # [n] index of the coming decision in its episode (of a finished one: how many it took)
    finished: (
        np.ndarray
    )  # [n] bool: the episode just ended; the row only offers its last observation
    task: np.ndarray  # [n]
    step: base.TimeStep  # batched [n,...]


Decide = Callable[
    [Turn], np.ndarray | None
]  # -> actions [n,I,a] in simulator units; those of finished slots are ignored


class Stream:
    """Which slot plays which episode, and what has come of it."""

    def __init__(self, pool, episodes, schedule, record, done):
        self.pool, self.episodes, self.record = pool, episodes, frozenset(record)
        self.results = [done.get(e) or self._blank(e) for e in range(len(episodes))]
        self.waiting = [e for e in range(len(episodes)) if e not in done]  # ascending
        self.playing = np.full(pool.num_envs, -1)  # slot -> episode index; -1: nothing left to play
        # Tasks whose simulators the process of each slot keeps, the latest last.
        kept = {
            worker: collections.deque(maxlen=schedule.cached_tasks) for worker in pool.slot_workers
        }
        self.kept = [kept[worker] for worker in pool.slot_workers]
        self.lost_once = set()

    def start(self, slots) -> None:
        """Give each slot an episode, or retire it."""
        for slot in slots:
            self.playing[slot] = self._choose(self.kept[slot])
        slots = [slot for slot in slots if self.playing[slot] >= 0]
        if slots:
            names = [self.episodes[e] for e in self.playing[slots]]
            self.pool.reset(
                slots, [name.task for name in names], [name.init_state for name in names]
            )

    def lose(self, slots) -> list[int]:
        """Their episodes wait again, or stay lost; -> episode indices."""
        lost = self.playing[slots].tolist()
        for e in lost:
            self.results[e] = self._blank(e)
            if e in self.lost_once:
                self.results[e].lost = True
            else:
                self.lost_once.add(e)
                bisect.insort(self.waiting, e)
        return lost

    def turn(self, row, slots, step) -> Turn:
        """Book what the last chunk of these slots brought."""
        playing = self.playing[slots]
        for i, e in enumerate(playing):
            result = self.results[e]
            result.reward += float(step.reward[i])
            result.num_steps += int(step.num_steps[i])
            result.success |= bool(step.terminated[i])
            if step.frames is not None and step.frames[i]:
                result.frames += step.frames[i]
        return Turn(
            row=row,
            episode=playing,
            task=np.array([self.episodes[e].task for e in playing]),
            decision=np.array([self.results[e].num_decisions for e in playing]),
            finished=step.terminated | step.truncated,
            step=step,
        )

    def send(self, slots, actions) -> None:
        """Start the next chunk of each slot."""
        results = [self.results[e] for e in self.playing[slots]]
        self.pool.send(slots, actions, record=[r.frames is not None for r in results])
        for result in results:
            result.num_decisions += 1

    def _blank(self, e):
        return Result(self.episodes[e], frames=[] if e in self.record else None)

    def _choose(self, kept) -> int:
        """The first waiting episode of a kept task; the first of all where none is near, so that none starves."""
        if not self.waiting:
            return -1
        end = bisect.bisect_left(self.waiting, self.waiting[0] + LOOKAHEAD * self.pool.num_envs)
        near = (k for k in range(end) if self.episodes[self.waiting[k]].task in kept)
        e = self.waiting.pop(next(near, 0))
        task = self.episodes[e].task
        if task in kept:
            kept.remove(task)
        kept.append(task)
        return e


def begin(
    pool,
    episodes: list[Episode],
    schedule: Schedule,
    *,
    record=(),
    done: Mapping[int, Result] | None = None,
) -> Stream:
    """Give every slot its first episode; returns at once.  `play` goes on from here, whenever it is called."""
    stream = Stream(pool, episodes, schedule, record, done or {})
    stream.start(np.arange(pool.num_envs))
    return stream


def play(
    pool,
    episodes: list[Episode],
    schedule: Schedule,
    decide: Decide,
    timers,
    *,
    record=(),
    done: Mapping[int, Result] | None = None,
    finished=None,
    forget=None,
    begun: Stream | None = None,
) -> list[Result]:
    """Play every episode once; results come in the order of `episodes`.

    pool: a ReadyQueue.  timers: measures "env", the time spent waiting for simulators.  record: indices of the episodes whose
    video frames are kept.  done: results known already, by index; these are not played.  finished: called with (index, Result)
    of each episode as it ends or stays lost.  forget: called with the index of an episode whose simulator was lost.
    begun: what `begin` gave for the same episodes, if it was called before.
    """
    stream = begun or begin(pool, episodes, schedule, record=record, done=done)
    serve = _in_lockstep if schedule.lockstep else _as_ready
    for row, slots, step in serve(stream, schedule.num_groups, timers):
        kept, lost = np.flatnonzero(~step.lost), stream.lose(slots[step.lost])
        turn = stream.turn(
            row[kept], slots[kept], step if len(kept) == len(slots) else _rows(step, kept)
        )
        free = step.lost.copy()
        free[kept] = turn.finished
        stream.start(slots[free])  # resets run while the network decides
        for e in lost if forget else ():
            forget(e)
        if len(kept):
            actions, goes_on = decide(turn), ~turn.finished
            if goes_on.any():
                stream.send(slots[kept][goes_on], actions[goes_on])
        over = [*turn.episode[turn.finished].tolist(), *(e for e in lost if stream.results[e].lost)]
        for e in over if finished else ():
            finished(e, stream.results[e])
    return stream.results


Batch = tuple[np.ndarray, np.ndarray, base.TimeStep]  # rows of the batch, slots, their answers


def _in_lockstep(stream, num_groups, timers) -> Iterator[Batch]:
    groups = np.split(np.arange(stream.pool.num_envs), num_groups)
    while (stream.playing >= 0).any():
        for group in groups:
            slots = group[stream.playing[group] >= 0]
            if len(slots):
                with timers.measure("env"):
                    _, step = stream.pool.get(len(slots), slots)
                yield slots - group[0], slots, step


def _as_ready(stream, num_groups, timers) -> Iterator[Batch]:
    while under_way := int((stream.playing >= 0).sum()):  # each has one request in the pool
        with timers.measure("env"):
            slots, step = stream.pool.get(-(-under_way // num_groups))
        yield np.arange(len(slots)), slots, step


def _rows(step, index):
    """Some rows of a batch."""
    arrays = {
        name: value[index] for name, value in vars(step).items() if isinstance(value, np.ndarray)
    }
    return dataclasses.replace(
        step, **arrays, frames=step.frames and [step.frames[i] for i in index]
    )
