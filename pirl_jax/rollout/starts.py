"""Which episodes are played: start states for training and for evaluation, as pure functions of
seed and iteration.

A start is a pair (task, init state).  Knows the split that keeps training and evaluation apart, and
what each of several hosts plays; refuses to know simulators.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from pirl_jax.rollout import stream

TRAIN_SHARE = 0.8  # of each task's init states, in the split `held_out`


@dataclasses.dataclass(frozen=True)
class Starts:
    """What may be played: the init states of each of these tasks."""

    tasks: tuple[int, ...]
    train: range
    evaluate: range
    suites: tuple[tuple[int, ...], ...] = ()  # the same tasks, by suite; (): of one


@dataclasses.dataclass(frozen=True)
class Share:
    """What one of several hosts plays of a list of episodes: every hosts-th group."""

    host: int = 0
    hosts: int = 1

    def number(self, e: int | np.ndarray, group_size: int = 1) -> int | np.ndarray:
        """Place in the whole list of the e-th episode (a number or an array) of this share."""
        group = e // group_size * self.hosts + self.host
        return group * group_size + e % group_size

    def of(self, episodes: list, group_size: int = 1) -> list:
        """This share of a list of whole groups."""
        mine = []
        for first in range(self.host * group_size, len(episodes), self.hosts * group_size):
            mine += episodes[first : first + group_size]
        return mine


ALONE = Share()


def joined(shares: list[list]) -> list:
    """The whole list out of the shares of all hosts, groups of one."""
    whole = [None] * sum(map(len, shares))
    for host, share in enumerate(shares):
        whole[host :: len(shares)] = share
    return whole


def split(name: str, num_init_states: int) -> tuple[range, range]:
    """-> init states of each task for training, and for evaluation.

    held_out: evaluation sees none that training saw.  published: both use all, as the published
    results of LIBERO do.

    Raises:
      ValueError: too few to hold any out.
    """
    everything = range(num_init_states)
    if name == "published":
        return everything, everything
    cut = int(TRAIN_SHARE * num_init_states)
    if cut == 0:
        raise ValueError(
            f"env.split={name!r} needs at least 2 start states per task, "
            f"but the suite has {num_init_states}; set env.split=published"
        )
    return everything[:cut], everything[cut:]


def training(
    starts: Starts,
    count: int,
    group_size: int,
    order: str,
    seed: int,
    iteration: int,
    played: int = 0,
    balance: str = "tasks",
) -> list[stream.Episode]:
    """The `count` episodes of one iteration; each start `group_size` times in a row (1: no groups).

    Args:
      order: a key of ORDERS.
      balance: of BALANCES.
      played: episodes that the iteration has played already; what replaces some of them is drawn
        uniformly, because nobody knows beforehand how many it will be.
    """
    num_groups = count // group_size
    episodes = []
    if balance == "suites" and len(starts.suites) > 1:
        for start in _in_turn(starts, num_groups, order, (seed, iteration, played)):
            episodes += [start] * group_size
        return episodes
    num_starts = len(starts.tasks) * len(starts.train)
    if played:
        draws = _uniform(num_starts, num_groups, seed, iteration, played)
    else:
        draws = ORDERS[order](num_starts, num_groups, seed, iteration)
    for draw in draws:
        task, state = divmod(int(draw), len(starts.train))
        episodes += [stream.Episode(starts.tasks[task], starts.train[state])] * group_size
    return episodes


def evaluation(starts: Starts, per_task: int) -> list[stream.Episode]:
    """The first `per_task` starts of each task (0: all), each once.

    Tasks alternate, so that a part of the list has seen all of them.
    """
    episodes = []
    for state in starts.evaluate[: per_task or None]:
        episodes += [stream.Episode(task, state) for task in starts.tasks]
    return episodes


def _in_turn(
    starts: Starts, count: int, order: str, seeds: tuple[int, int, int]
) -> list[stream.Episode]:
    """As many starts of each suite, whatever its size: the suites take turns over the iterations.

    seeds: seed, iteration, episodes that the iteration has played already.
    """
    seed, iteration, played = seeds
    turns = np.arange(iteration * count, (iteration + 1) * count)
    chosen: list[stream.Episode | None] = [None] * count
    for s, tasks in enumerate(starts.suites):
        own = np.flatnonzero(turns % len(starts.suites) == s)
        num_starts = len(tasks) * len(starts.train)
        if played or order == "uniform":
            draws = _uniform(num_starts, len(own), *seeds, s)
        else:
            draws = _from_passes(num_starts, turns[own] // len(starts.suites), seed, s)
        for i, draw in zip(own, draws, strict=True):
            task, state = divmod(int(draw), len(starts.train))
            chosen[i] = stream.Episode(tasks[task], starts.train[state])
    return chosen


def _uniform(num_starts: int, count: int, *seeds: int) -> Sequence[int]:
    """With replacement."""
    return np.random.default_rng(seeds).integers(0, num_starts, count)


def _ordered(num_starts: int, count: int, seed: int, iteration: int) -> Sequence[int]:
    """Every start once before any comes twice.

    Passes, each in an order of its own, run on over the iterations.
    """
    positions = np.arange(iteration * count, (iteration + 1) * count)
    return _from_passes(num_starts, positions, seed)


def _from_passes(num_starts: int, positions: np.ndarray, seed: int, *more: int) -> list[int]:
    """What stands at these positions of all passes, one after another."""
    passes = {
        number: _permutation(num_starts, seed, number, *more)
        for number in np.unique(positions // num_starts)
    }
    return [passes[position // num_starts][position % num_starts] for position in positions]


def _permutation(num_starts: int, *seeds: int) -> np.ndarray:
    order = np.arange(num_starts)
    np.random.default_rng(seeds).shuffle(order)
    return order


SPLITS = ("held_out", "published")
BALANCES = ("tasks", "suites")
ORDERS = {"uniform": _uniform, "ordered": _ordered}
