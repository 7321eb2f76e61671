"""Keeps a worker behind every slot: replaces those that fail, within a budget, and those worn out.

Knows which process hosts which slot and which slots are in the middle of an episode; knows nothing
of batches.  Not made for threads, but for this: `wait` may run while another thread calls `post`.
"""

import collections
from collections.abc import Callable, Sequence
import logging
import os
import pickle
import selectors
import time

from pirl_jax.envs import base
from pirl_jax.envs.pool import memory, worker
from pirl_jax.envs.pool import process as processes

log = logging.getLogger(__name__)

CLOSE_S = 5.0  # how long workers may take to close their envs before they are killed
LOOK_S = 1.0  # how long `wait` sleeps at most
# A pool that has not looked for so long was stopped, or busy elsewhere: no worker is to blame.
AWAY_S = 5.0
SURE = 2  # failures of a worker that has never played
HOUR_S = 3600.0
# A slot whose episodes so often in a row ended in faulty numbers has a simulator that is broken.
FAULTY_IN_A_ROW = 3


class EnvError(RuntimeError):
    """A simulator failed, died or hung.

    `slot`, `task` and `init_state` (None before the first reset) name where, `what` says what.
    """

    def __init__(self, slot: int, task: int | None, init_state: int | None, what: str) -> None:
        super().__init__(f"env {slot} (task {task}, init state {init_state}) {what}")
        self.slot = slot
        self.task = task
        self.init_state = init_state
        self.what = what


class Supervisor:
    """The workers of one pool; see EnvPool for the arguments.

    The constructor starts them and waits for their specs; what goes wrong meanwhile is its own
    error, with nothing left behind.
    """

    def __init__(
        self,
        make_env: Callable[[], base.Env],
        num_envs: int,
        num_workers: int,
        *,
        timeout_s: float,
        restarts_per_hour: int,
        recycle_episodes: int,
        recycle_growth_gb: float,
        render_devices: Sequence[int],
    ) -> None:
        self.timeout_s = timeout_s
        self.restarts_per_hour = restarts_per_hour
        self.recycle_episodes = recycle_episodes
        self.recycle_growth_gb = recycle_growth_gb
        self.counters = {"restarts": 0, "recycled": 0, "lost_episodes": 0}
        # Slots whose episode has begun and, as far as is known, not ended.
        self.playing: set[int] = set()
        self.spec: base.EnvSpec | None = None  # known when all workers have started
        self.memory: memory.Memory | None = None  # mapped when the spec is known
        self._make_env = pickle.dumps(make_env)
        self._num_envs = num_envs
        self._render_devices = tuple(render_devices)
        # (task, init state) that each slot was last reset to.
        self._episodes: list[tuple[int | None, int | None]] = [(None, None)] * num_envs
        self._faulty_in_a_row = [0] * num_envs  # episodes of each slot
        self._num_faulty = 0  # answers since the start
        # Of the last hour: (time, cause), oldest first.
        self._failures: collections.deque[tuple[float, EnvError]] = collections.deque()
        # Before anything was played: by worker, how sure it is that its successor will fail too.
        self._has_played = False
        self._hopeless = [0] * num_workers
        self._looked_s = time.monotonic()
        self._memory_fd = memory.create()
        self._processes: list[processes.Process] = []
        self._home: list[processes.Process] = []  # [E] which of them has each slot
        self._leaving: list[processes.Process] = []  # asked to end, or killed
        try:
            self._start_all(num_workers)
            self.memory = memory.Memory(self._memory_fd, self.spec, num_envs, owner=True)
        except BaseException:
            self.close()
            raise

    @property
    def slot_processes(self) -> list[processes.Process]:
        """[E] the worker of each slot."""
        return list(self._home)

    def post(self, request: worker.Reset | worker.Chunk) -> None:
        """Pass a request to the worker of its slot, alive or not.

        A reset moves the slot to the successor of its worker, once that has started.
        """
        slot = request.slot
        home = self._home[slot]
        if isinstance(request, worker.Reset):
            self._episodes[slot] = (request.task, request.init_state)
            self.playing.add(slot)
            if home.successor and home.successor.spec:
                home = home.successor
                self._home[slot] = home
        home.post(request)

    def wait(self, limit_s: float) -> None:
        """Sleep until a worker has something to say, a deadline is over, or at most `limit_s`.

        Never longer than LOOK_S, for a request posted meanwhile changes what is to be watched.
        """
        watched = tuple(self._processes)  # another thread may post, but only `take` changes these
        deadlines_s = [process.deadline_s(self.timeout_s) for process in watched]
        deadline_s = min(deadlines_s, default=0.0)
        with selectors.PollSelector() as selector:
            for process in watched:
                events = selectors.EVENT_READ
                if process.channel.has_unsent:
                    events |= selectors.EVENT_WRITE
                selector.register(process.channel, events)
            until_deadline_s = deadline_s - time.monotonic()
            selector.select(max(0.0, min(limit_s, LOOK_S, until_deadline_s)))

    def take(self) -> tuple[list[worker.Answer], list[int]]:
        """-> all answers that have arrived and are sound; the slots whose episodes were lost.

        Waits only for what a worker that hangs or has ended can still tell.

        Raises:
            EnvError: the budget of restarts is spent.
        """
        self._forgive_absence()
        answers: list[worker.Answer] = []
        lost_slots: list[int] = []
        for process in tuple(self._processes):
            arrived, failure = process.take(self.timeout_s)
            for answer in arrived:
                self._recycle_if_worn(process, answer)
                if answer.fault:
                    lost_slots.append(answer.slot)
                    failure = failure or self._lose(answer)
                    continue
                self._has_played = True
                answers.append(answer)
                if answer.terminated or answer.truncated:
                    self.playing.discard(answer.slot)
                    self._faulty_in_a_row[answer.slot] = 0
            if failure is not None:
                lost_slots += self._replace(process, failure)
        self._retire()
        return answers, lost_slots

    def close(self) -> None:
        """End every worker and unmap the block.

        A process that even SIGKILL does not end (it hangs in a driver) is left to the kernel.
        """
        for process in self._processes:
            process.ask_to_end(CLOSE_S)
        self._leaving += self._processes
        self._processes.clear()
        until_s = time.monotonic() + CLOSE_S
        for process in tuple(self._leaving):
            self._reap(process, until_s - time.monotonic())
        for process in self._leaving:
            process.kill()
        for process in tuple(self._leaving):
            self._reap(process, processes.EXIT_S)
        if self.memory is not None:
            self.memory.close()
        os.close(self._memory_fd)

    def _start_all(self, num_workers: int) -> None:
        """Start every worker and wait until all have told their spec, which must be the same."""
        for number in range(num_workers):
            self._start(number, tuple(range(number, self._num_envs, num_workers)))
        self._home = [self._processes[slot % num_workers] for slot in range(self._num_envs)]
        while not all(process.spec for process in self._processes):
            self.wait(LOOK_S)
            self.take()
        spec = self._processes[0].spec
        for process in self._processes:
            if process.spec != spec:
                raise ValueError(f"make_env built different suites: {spec} and {process.spec}")
        self.spec = spec

    def _start(self, number: int, slots: tuple[int, ...]) -> processes.Process:
        hello = worker.Hello(self._make_env, slots, self._num_envs, self.spec)
        device = None
        if self._render_devices:
            device = self._render_devices[number % len(self._render_devices)]
        process = processes.Process(number, hello, self._memory_fd, device)
        self._processes.append(process)
        return process

    def _forgive_absence(self) -> None:
        """Time in which nobody looked does not count as a worker's silence."""
        now_s = time.monotonic()
        away_s = now_s - self._looked_s
        self._looked_s = now_s
        if away_s <= AWAY_S:
            return
        for process in self._processes:
            silent_since_s = max(process.busy_since_s, process.channel.heard_s)
            process.busy_since_s = min(now_s, silent_since_s + away_s)

    def _replace(self, failed: processes.Process, failure: worker.Failure) -> list[int]:
        """Another worker for the slots of a failed one -> the slots whose episodes are lost by it.

        Raises:
            ValueError: in the first start, what the user can mend.
            EnvError: in the first start, all else; later, when the budget of restarts is spent.
        """
        task, init_state = self._episodes[failure.slot]
        what = f"{failure.summary}\n{failure.details}".strip()
        error = EnvError(failure.slot, task, init_state, what)
        failed.kill()
        self._processes.remove(failed)
        self._leaving.append(failed)
        if self.spec is None and failure.remedy:
            raise ValueError(failure.remedy)
        if self.spec is None:
            raise error
        self._spend(error)
        self._give_up_on_all(failed.number, failure)
        successor = failed.successor or self._start(failed.number, failed.slots)
        # The failed one may have been the successor of a worn one itself.
        for process in self._processes:
            if process.successor is failed:
                process.successor = successor
        slots = self._slots_of(failed)
        for slot in slots:
            self._home[slot] = successor
        lost_slots = sorted(self.playing.intersection(slots))
        self.playing.difference_update(lost_slots)
        self.counters["restarts"] += 1
        self.counters["lost_episodes"] += len(lost_slots)
        log.warning(
            "worker of slots %s replaced, %d of at most %d within an hour; episodes lost: %d; %s",
            list(failed.slots),
            len(self._failures),
            self.restarts_per_hour,
            len(lost_slots),
            str(error).partition("\n")[0],
        )
        return lost_slots

    def _lose(self, faulty: worker.Answer) -> worker.Failure | None:
        """An episode whose numbers are none is lost -> why its worker goes too, None: it stays.

        A reset mends most simulators; one that it does not mend is replaced.
        """
        slot = faulty.slot
        self.playing.discard(slot)
        self.counters["lost_episodes"] += 1
        self._num_faulty += 1
        if self._num_faulty.bit_count() == 1:  # at 1, 2, 4, ...: a log has an end, too
            task, init_state = self._episodes[slot]
            log.warning(
                "env %d (task %s, init state %s) sent faulty numbers, %d times so far in all envs; "
                "its episode is lost; %s",
                slot,
                task,
                init_state,
                self._num_faulty,
                faulty.fault,
            )
        self._faulty_in_a_row[slot] += 1
        if self._faulty_in_a_row[slot] < FAULTY_IN_A_ROW:
            return None
        self._faulty_in_a_row[slot] = 0
        summary = f"sent faulty numbers in {FAULTY_IN_A_ROW} episodes in a row: {faulty.fault}"
        return worker.Failure(slot, summary)

    def _spend(self, error: EnvError) -> None:
        """Take one restart from the hour's budget; where none is left, raise the first cause."""
        now_s = time.monotonic()
        while self._failures and self._failures[0][0] < now_s - HOUR_S:
            self._failures.popleft()
        self._failures.append((now_s, error))
        if len(self._failures) <= self.restarts_per_hour:
            return
        # The first, not this one: what comes later is often its consequence.
        _, first = self._failures[0]
        what = (
            f"{first.what}\n"
            f"This is the first of {len(self._failures)} failures within an hour; "
            f"restarts_per_hour allows to replace {self.restarts_per_hour}."
        )
        raise EnvError(first.slot, first.task, first.init_state, what)

    def _give_up_on_all(self, number: int, failure: worker.Failure) -> None:
        """What every worker fails of before anything was played, its successors would fail of too.

        An exception says so at once; a crash or a silence when it comes again.

        Raises:
            EnvError: the first cause.
        """
        if self._has_played:
            return
        self._hopeless[number] += SURE if failure.details.startswith("Traceback") else 1
        if min(self._hopeless) < SURE:
            return
        _, first = self._failures[0]
        what = f"{first.what}\nNo worker could play anything, and this was the first to say why."
        raise EnvError(first.slot, first.task, first.init_state, what)

    def _recycle_if_worn(self, process: processes.Process, answer: worker.Answer) -> None:
        """Start the successor of a worn worker."""
        if not answer.memory_bytes:
            return  # the answer to a chunk, which tells nothing of wear
        if answer.num_episodes <= len(process.slots):
            process.fresh_bytes = answer.memory_bytes
        grown_gb = (answer.memory_bytes - process.fresh_bytes) / 1e9
        is_old = 0 < self.recycle_episodes <= answer.num_episodes
        is_big = 0 < self.recycle_growth_gb < grown_gb
        # One at a time in the whole pool: starting takes time and memory.
        is_starting = any(other.successor for other in self._processes)
        if (is_old or is_big) and not is_starting:
            process.successor = self._start(process.number, process.slots)

    def _retire(self) -> None:
        """A worn worker goes when none of its slots is in an episode; who has ended is reaped."""
        for process in tuple(self._processes):
            successor = process.successor
            if successor is None or successor.spec is None:
                continue
            slots = self._slots_of(process)
            if self.playing.intersection(slots):
                continue
            for slot in slots:
                self._home[slot] = successor
            process.ask_to_end(CLOSE_S)
            self._processes.remove(process)
            self._leaving.append(process)
            self.counters["recycled"] += 1
        for process in tuple(self._leaving):
            self._reap(process)

    def _reap(self, process: processes.Process, limit_s: float = 0.0) -> None:
        """Wait at most `limit_s` for the end of a process that is leaving; forget it then."""
        if process.has_ended(max(0.0, limit_s)):
            self._leaving.remove(process)

    def _slots_of(self, process: processes.Process) -> list[int]:
        """The slots it hosts now; they may be fewer than those it was started for."""
        return [slot for slot, home in enumerate(self._home) if home is process]
