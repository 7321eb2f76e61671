"""Plays whole episodes on a pool of simulators.  Knows the pool and a decision function; refuses to know networks.

An episode is (task, init_state).  Episodes stream over the slots: a slot that finishes one starts the next at once.  Slots are
served in fixed groups that take turns: while one group simulates, another is decided on.  A group is served when all its slots
have answered, so the batch in which a decision is made depends on nothing but the list of episodes: runs repeat bit for bit.
"""

import dataclasses
from typing import Callable

import numpy as np

from pirl_jax.envs import base


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


@dataclasses.dataclass
class Turn:
    """The slots of one group that have something new, decided on together."""

    row: np.ndarray  # [n] position of each slot in the group's batch
    episode: np.ndarray  # [n] index of the episode each slot plays
    decision: np.ndarray  # [n] index of the coming decision in its episode (of a finished one: how many it took)
    finished: np.ndarray  # [n] bool: the episode just ended; the row only offers its last observation
    task: np.ndarray  # [n]
    step: base.TimeStep  # batched [n,...]


Decide = Callable[[Turn], np.ndarray]  # -> actions [n,I,a] in simulator units; rows of finished slots are ignored


class _Stream:
    """Which slot plays which episode, and what has come of it."""

    def __init__(self, pool, episodes, record):
        self.pool, self.episodes = pool, episodes
        self.results = [Result(episode, frames=[] if e in record else None) for e, episode in enumerate(episodes)]
        self.playing = np.full(pool.num_envs, -1)  # slot -> episode index; -1: nothing left to play
        self.next = 0

    def start(self, slots):
        """Give each slot the next episode of the list, or retire it."""
        first, self.next = self.next, min(self.next + len(slots), len(self.episodes))
        chosen = np.arange(first, self.next)
        self.playing[slots] = -1
        self.playing[slots[: len(chosen)]] = chosen
        if len(chosen):
            names = [self.episodes[e] for e in chosen]
            self.pool.reset(slots[: len(chosen)], [n.task for n in names], [n.init_state for n in names])

    def receive(self, slots, first_slot) -> Turn:
        """Wait for the slots and book what their last chunk brought."""
        step = self.pool.recv(slots)
        playing = self.playing[slots]
        for i, e in enumerate(playing):
            result = self.results[e]
            result.reward += float(step.reward[i])
            result.num_steps += int(step.num_steps[i])
            result.success |= bool(step.terminated[i])
            if step.frames is not None and step.frames[i]:
                result.frames += step.frames[i]
        return Turn(
            row=slots - first_slot, episode=playing, task=np.array([self.episodes[e].task for e in playing]),
            decision=np.array([self.results[e].num_decisions for e in playing]),
            finished=step.terminated | step.truncated, step=step,
        )

    def send(self, slots, actions):
        """Start the next chunk of each slot."""
        results = [self.results[e] for e in self.playing[slots]]
        self.pool.send(slots, actions, record=[r.frames is not None for r in results])
        for result in results:
            result.num_decisions += 1


def play(pool, episodes: list[Episode], num_groups: int, decide: Decide, timers, record=(), progress=None) -> list[Result]:
    """Play every episode once; results come in the order of `episodes`.

    timers: measures "env", the time spent waiting for simulators.  record: indices of the episodes whose video frames are
    kept.  progress: called with the number of newly finished episodes.
    """
    stream = _Stream(pool, episodes, record)
    groups = np.split(np.arange(pool.num_envs), num_groups)
    stream.start(np.arange(pool.num_envs))
    while (stream.playing >= 0).any():
        for group in groups:
            slots = group[stream.playing[group] >= 0]
            if not len(slots):
                continue
            with timers.measure("env"):
                turn = stream.receive(slots, group[0])
            stream.start(slots[turn.finished])  # resets run while the network decides
            actions = decide(turn)
            if not turn.finished.all():
                stream.send(slots[~turn.finished], actions[~turn.finished])
            if progress and turn.finished.any():
                progress(int(turn.finished.sum()))
    return stream.results
