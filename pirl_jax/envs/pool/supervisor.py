"""Keeps a worker behind every slot: replaces those that fail, within a budget, and those that are worn.

Knows which process hosts which slot and which slots are in the middle of an episode; knows nothing of batches.  Not
made for threads, but for this: `wait` may run while another thread calls `post`.
"""

import collections
from collections.abc import Callable, Sequence
import logging
import os
import pickle
import selectors
import time

from pirl_jax.envs import base
from pirl_jax.envs.pool import memory, process, worker

log = logging.getLogger(__name__)

CLOSE_S = 5.0  # how long workers may take to close their envs before they are killed
LOOK_S = 1.0  # how long `wait` sleeps at most
AWAY_S = 5.0  # a pool that has not looked for so long was stopped or busy elsewhere: its workers are not to blame
HOUR_S = 3600.0


class EnvError(RuntimeError):
    """A simulator failed, died or hung; `slot`, `task` and `init_state` (None before the first reset) name where."""

    def __init__(self, slot: int, task: int | None, init_state: int | None, what: str):
        super().__init__(f"env {slot} (task {task}, init state {init_state}) {what}")
        self.slot, self.task, self.init_state, self.what = slot, task, init_state, what


class Supervisor:
    """The workers of one pool; see EnvPool for the arguments.

    The constructor starts them and waits for their specs; what goes wrong meanwhile is its own error.
    """

    def __init__(
        self,
        make_env: Callable[[], base.Env],
        num_envs: int,
        num_workers: int,
        timeout_s: float,
        restarts_per_hour: int,
        recycle_episodes: int,
        recycle_growth_gb: float,
        render_devices: Sequence[int],
    ):
        self.timeout_s, self.restarts_per_hour = timeout_s, restarts_per_hour
        self.recycle_episodes, self.recycle_growth_gb = recycle_episodes, recycle_growth_gb
        self.counters = {"restarts": 0, "recycled": 0, "lost_episodes": 0}
        self.playing: set[int] = (
            set()
        )  # slots whose episode has begun and, as far as is known, not ended
        self.spec: base.EnvSpec | None = None
        self._make_env, self._num_envs = pickle.dumps(make_env), num_envs
        self._render_devices = tuple(render_devices)
        self._episode = [(None, None)] * num_envs  # (task, init state) of each slot
        self._failures: collections.deque[tuple[float, EnvError]] = (
            collections.deque()
        )  # of the last hour, with time
        self._looked_s = time.monotonic()
        self._memory_fd = memory.create()
        self.memory: memory.Memory | None = None  # mapped when the spec is known
        self._processes: list[process.Process] = []
        self._leaving: list[process.Process] = []  # asked to end, or killed
        groups = [tuple(range(first, num_envs, num_workers)) for first in range(num_workers)]
        try:
            for number, slots in enumerate(groups):
                self._start(number, slots)
            self._home = [self._processes[slot % num_workers] for slot in range(num_envs)]
            while not all(one.spec for one in self._processes):
                self.wait(LOOK_S)
                self.take()
            self.spec = self._processes[0].spec
            for one in self._processes:
                if one.spec != self.spec:
                    raise ValueError(f"make_env built different suites: {self.spec} and {one.spec}")
            self.memory = memory.Memory(self._memory_fd, self.spec, num_envs, owner=True)
        except BaseException:
            self.close()
            raise

    @property
    def processes(self) -> list[process.Process]:
        """The worker of each slot."""
        return list(self._home)

    def post(self, request: worker.Reset | worker.Step) -> None:
        """Pass a request to the worker of its slot, alive or not.  A reset moves the slot to a worker's successor."""
        slot = request.slot
        if isinstance(request, worker.Reset):
            self._episode[slot] = (request.task, request.init_state)
            self.playing.add(slot)
            if self._home[slot].successor and self._home[slot].successor.spec:
                self._home[slot] = self._home[slot].successor
        self._home[slot].post(request)

    def wait(self, limit_s: float) -> None:
        """Sleep until a worker has something to say, a deadline is over, or at most `limit_s` or LOOK_S."""
        processes = tuple(self._processes)
        overdue_s = min((one.overdue_s(self.timeout_s) for one in processes), default=0.0)
        with selectors.PollSelector() as selector:
            for one in processes:
                write = selectors.EVENT_WRITE if one.channel.full else 0
                selector.register(one.channel, selectors.EVENT_READ | write)
            selector.select(max(0.0, min(limit_s, LOOK_S, overdue_s - time.monotonic())))

    def take(self) -> tuple[list[worker.Answer], list[int]]:
        """All answers that have arrived, and the slots whose episodes were lost.

        Waits only for what a worker that hangs or has ended can still tell.  EnvError when the budget of restarts is spent.
        """
        self._forgive_absence()
        answers, lost = [], []
        for one in tuple(self._processes):
            news, failure = one.take(self.timeout_s)
            for answer in news:
                if answer.terminated or answer.truncated:
                    self.playing.discard(answer.slot)
                self._recycle_if_worn(one, answer)
            answers += news
            if failure is not None:
                lost += self._replace(one, failure)
        self._retire()
        return answers, lost

    def close(self) -> None:
        """End every worker.  A process that even SIGKILL does not end (it hangs in a driver) is left to the kernel."""
        for one in self._processes:
            one.ask_to_end(CLOSE_S)
        self._leaving += self._processes
        self._processes.clear()
        until_s = time.monotonic() + CLOSE_S
        self._leaving = [
            one for one in self._leaving if not one.has_ended(max(0.0, until_s - time.monotonic()))
        ]
        for one in self._leaving:
            one.kill()
        self._leaving = [one for one in self._leaving if not one.has_ended(process.EXIT_S)]
        if self.memory is not None:
            self.memory.close()
        os.close(self._memory_fd)

    def _start(self, number: int, slots: tuple[int, ...]) -> process.Process:
        hello = worker.Hello(self._make_env, slots, self._num_envs, self.spec)
        device = (
            self._render_devices[number % len(self._render_devices)]
            if self._render_devices
            else None
        )
        self._processes.append(process.Process(number, hello, self._memory_fd, device))
        return self._processes[-1]

    def _forgive_absence(self) -> None:
        now_s = time.monotonic()
        away_s, self._looked_s = now_s - self._looked_s, now_s
        if away_s > AWAY_S:
            for one in self._processes:
                one.since_s = min(now_s, max(one.since_s, one.channel.heard_s) + away_s)

    def _replace(self, one: process.Process, failure: worker.Failure) -> list[int]:
        """Another worker for the slots of a failed one -> the slots whose episodes are lost by that."""
        error = EnvError(
            failure.slot,
            *self._episode[failure.slot],
            f"{failure.summary}\n{failure.details}".strip(),
        )
        one.kill()
        self._processes.remove(one)
        self._leaving.append(one)
        if self.spec is None:
            raise ValueError(failure.remedy) if failure.remedy else error
        self._spend(error)
        successor = one.successor or self._start(one.number, one.slots)
        for other in self._processes:
            if other.successor is one:
                other.successor = successor
        slots = [slot for slot, home in enumerate(self._home) if home is one]
        lost = sorted(self.playing.intersection(slots))
        self.playing.difference_update(lost)
        for slot in slots:
            self._home[slot] = successor
        self.counters["restarts"] += 1
        self.counters["lost_episodes"] += len(lost)
        log.warning(
            "worker of slots %s replaced, %d of at most %d within an hour; episodes lost: %d; %s",
            list(one.slots),
            len(self._failures),
            self.restarts_per_hour,
            len(lost),
            str(error).partition("\n")[0],
        )
        return lost

    def _spend(self, error: EnvError) -> None:
        now_s = time.monotonic()
        while self._failures and self._failures[0][0] < now_s - HOUR_S:
            self._failures.popleft()
        self._failures.append((now_s, error))
        if len(self._failures) > self.restarts_per_hour:
            first = self._failures[0][1]
            raise EnvError(
                first.slot,
                first.task,
                first.init_state,
                f"{first.what}\n"
                f"This is the first of {len(self._failures)} failures within an hour; "
                f"restarts_per_hour allows to replace {self.restarts_per_hour}.",
            )

    def _recycle_if_worn(self, one: process.Process, answer: worker.Answer) -> None:
        """Start the successor of a worn worker; one at a time, for starting takes time and memory."""
        if not answer.memory_bytes:
            return  # not a reset
        if answer.num_episodes <= len(one.slots):
            one.fresh_bytes = answer.memory_bytes
        grown_gb = (answer.memory_bytes - one.fresh_bytes) / 1e9
        worn = (
            0 < self.recycle_episodes <= answer.num_episodes
            or 0 < self.recycle_growth_gb < grown_gb
        )
        if worn and not any(other.successor for other in self._processes):
            one.successor = self._start(one.number, one.slots)

    def _retire(self) -> None:
        """A worn worker goes when none of its slots is in an episode; processes that have ended are reaped."""
        for one in [one for one in self._processes if one.successor and one.successor.spec]:
            left = {slot for slot, home in enumerate(self._home) if home is one}
            if not left & self.playing:
                for slot in left:
                    self._home[slot] = one.successor
                one.ask_to_end(CLOSE_S)
                self._processes.remove(one)
                self._leaving.append(one)
                self.counters["recycled"] += 1
        self._leaving = [one for one in self._leaving if not one.has_ended()]
