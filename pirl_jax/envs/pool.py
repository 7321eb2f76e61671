"""EnvPool: many envs in worker processes, asked and answered slot by slot.

A slot is one env.  `reset` and `send` only post requests; `recv` and `recv_any` wait.  A slot has at most one request
under way.  Workers do not wait for each other: a slow env delays its own worker's slots only.

When a worker fails, dies or hangs, the next recv (or send) raises EnvError, which names the slot and its episode;
after that the pool can only be closed.  A ValueError of make_env (what the user can mend: a wrong name, missing files)
comes out of the constructor as it is.  Knows no policy; what is done with the observations is the caller's business.
"""

import collections
import math
import multiprocessing
from multiprocessing import connection as mp_connection
import time
from typing import Callable, Sequence
import weakref

import numpy as np

from pirl_jax.envs import base, worker

CLOSE_S = 5.0  # how long workers may take to close their envs before they are killed


class EnvError(RuntimeError):
    """A simulator failed, died or hung; `slot`, `task` and `init_state` (None before the first reset) name where."""

    def __init__(self, slot: int, task: int | None, init_state: int | None, what: str):
        super().__init__(f"env {slot} (task {task}, init state {init_state}) {what}")
        self.slot, self.task, self.init_state = slot, task, init_state


class _Worker:
    """The parent's side of one worker: process, pipe, and the slots whose requests it has not answered, in order."""

    def __init__(self, make_env: Callable[[], base.Env], slots: Sequence[int], num_envs: int):
        context = multiprocessing.get_context("spawn")
        self.connection, child = context.Pipe()
        self.slots = slots
        self.process = context.Process(target=worker.run, args=(child, make_env, slots, num_envs), daemon=True)
        with worker.spawning():
            self.process.start()
        child.close()  # the child's end must live in the child only, or its death would not be seen
        self.waiting: collections.deque[int] = collections.deque(slots)  # for the spec, which answers all of them
        self.since_s = time.monotonic()  # since when the first waiting slot has been the one under way

    def post(self, request: worker.Reset | worker.Step) -> None:
        if not self.waiting:
            self.since_s = time.monotonic()
        self.waiting.append(request.slot)
        self.connection.send(request)


class EnvPool:
    """`num_envs` envs in `num_workers` processes (default: one each); slot s lives in worker s % num_workers.

    `make_env` is a picklable factory without arguments.  `timeout_s` bounds the start of a worker and every request.
    """

    def __init__(
        self,
        make_env: Callable[[], base.Env],
        num_envs: int,
        num_workers: int | None = None,
        timeout_s: float = 300.0,
        restarts_per_hour: int = 20,
        recycle_episodes: int = 0,
        recycle_growth_gb: float = 0.0,
        render_devices: Sequence[int] = (),
    ):
        num_workers = num_envs if num_workers is None else num_workers
        if not 1 <= num_workers <= num_envs:
            raise ValueError(f"num_workers is {num_workers}; it must lie between 1 and num_envs ({num_envs})")
        self.num_envs, self.timeout_s = num_envs, timeout_s
        self.slot_workers = np.arange(num_envs) % num_workers  # [E] slots with the same number share a process
        self.env_seconds = np.zeros(num_envs)  # [E] time spent inside each env since the start
        self._episode = [(None, None)] * num_envs  # (task, init state) of each slot
        self._busy: set[int] = set()  # slots with a request that recv has not handed out
        self._answers: dict[int, worker.Answer] = {}  # answered and not handed out, in order of arrival
        self._workers: list[_Worker] = []
        self._memory: list[worker.Memory] = []  # a list, so that the finalizer can see the block that comes later
        self._finalizer = weakref.finalize(self, _shut_down, self._workers, self._memory)  # also runs at exit
        try:
            for first in range(num_workers):
                self._workers.append(_Worker(make_env, range(first, num_envs, num_workers), num_envs))
            self.spec = self._receive_specs()
        except BaseException:
            self.close()
            raise
        self._memory.append(worker.Memory(self.spec, num_envs))
        for one in self._workers:
            one.connection.send(self._memory[0].name)

    def reset(self, slots: Sequence[int], tasks: Sequence[int], init_states: Sequence[int]) -> None:
        """Start the episode (task, init state) in each slot; returns at once."""
        for slot, task, init_state in zip(slots, tasks, init_states, strict=True):
            self._episode[slot] = (int(task), int(init_state))
            self._post(worker.Reset(int(slot), int(task), int(init_state)))

    def send(self, slots: Sequence[int], actions_NIA: np.ndarray, record: Sequence[bool] | None = None) -> None:
        """Execute one chunk in each slot; returns at once.  `record` asks for video frames, slot by slot."""
        record = [False] * len(slots) if record is None else record
        for slot, actions_IA, with_frames in zip(slots, actions_NIA, record, strict=True):
            self._post(worker.Step(int(slot), np.asarray(actions_IA), bool(with_frames)))

    def recv(self, slots: Sequence[int]) -> base.TimeStep:
        """Wait for these slots; the batch has their order."""
        slots = [int(slot) for slot in slots]
        self._check_busy(slots, len(slots))
        while not all(slot in self._answers for slot in slots):
            self._collect()
        return self._hand_out(slots)

    def recv_any(self, count: int) -> tuple[np.ndarray, base.TimeStep]:
        """Wait for the first `count` slots that are ready; the batch has the order of their arrival."""
        self._check_busy((), count)
        while len(self._answers) < count:
            self._collect()
        slots = list(self._answers)[:count]
        return np.array(slots), self._hand_out(slots)

    def wait(self, timeout_s: float) -> int:
        """Take in what arrives within `timeout_s`; how many slots recv_any would now hand out without waiting."""
        self._check_open()
        if not self._answers:
            self._collect(timeout_s)
        return len(self._answers)

    def counters(self) -> dict[str, int]:
        """What has become of workers and episodes since the start."""
        return {"restarts": 0, "recycled": 0, "lost_episodes": 0}

    @property
    def num_busy(self) -> int:
        """Slots with a request that recv has not handed out yet."""
        return len(self._busy)

    def close(self) -> None:
        """End the workers and free the shared memory; safe to call again."""
        self._finalizer()

    def __enter__(self) -> "EnvPool":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _check_open(self) -> None:
        if not self._finalizer.alive:
            raise ValueError("the pool is closed")

    def _check_busy(self, slots: Sequence[int], count: int) -> None:
        self._check_open()
        idle = set(slots) - self._busy
        if idle or count > len(self._busy):
            raise ValueError(f"recv of {count} slots, but {len(self._busy)} are under way (idle: {sorted(idle)})")

    def _post(self, request: worker.Reset | worker.Step) -> None:
        self._check_open()
        if request.slot in self._busy:
            raise ValueError(f"slot {request.slot} has a request under way; recv it first")
        one = self._workers[request.slot % len(self._workers)]
        self._busy.add(request.slot)  # before the request leaves: a ReadyQueue's thread may receive its answer at once
        try:
            one.post(request)
        except ConnectionError:
            raise self._death(one) from None

    def _receive_specs(self) -> base.EnvSpec:
        specs = {}
        while len(specs) < len(self._workers):
            for one in self._ready():
                specs[one.slots[0]] = self._read(one)
                one.waiting.clear()
        first = specs[0]
        for slot, spec in specs.items():
            if spec != first:
                raise ValueError(f"make_env built different suites: slot 0 has {first}, slot {slot} has {spec}")
        return first

    def _collect(self, limit_s: float = math.inf) -> None:
        """Wait, at most `limit_s`, until an answer is there; store every answer that is."""
        for one in self._ready(limit_s):
            answer = self._read(one)
            one.waiting.popleft()
            one.since_s = time.monotonic()
            self.env_seconds[answer.slot] += answer.env_s
            self._answers[answer.slot] = answer

    def _ready(self, limit_s: float = math.inf) -> list[_Worker]:
        """Workers with something to read (an answer, or the end of a dead worker's pipe); EnvError after timeout_s."""
        by_connection = {one.connection: one for one in self._workers}
        busy = [one for one in self._workers if one.waiting]
        deadline_s = min((one.since_s for one in busy), default=math.inf) + self.timeout_s
        ready = mp_connection.wait(by_connection, max(0.0, min(limit_s, deadline_s - time.monotonic())))
        if not ready and time.monotonic() >= deadline_s:
            hung = min(busy, key=lambda one: one.since_s)
            raise self._error(hung, f"did not answer within {self.timeout_s:g} s: it hangs, or timeout_s is too short")
        return [by_connection[connection] for connection in ready]

    def _read(self, one: _Worker):
        try:
            message = one.connection.recv()
        except (EOFError, ConnectionError):
            raise self._death(one) from None
        if isinstance(message, worker.Failure):
            if message.remedy:
                raise ValueError(message.remedy)
            raise self._error(one, f"failed:\n{message.traceback}", message.slot)
        return message

    def _death(self, one: _Worker) -> EnvError:
        """Why the pipe broke: the traceback if the worker could still send one, else its exit code."""
        try:
            while one.connection.poll():
                message = one.connection.recv()
                if isinstance(message, worker.Failure):
                    return self._error(one, f"failed:\n{message.traceback}", message.slot)
        except (EOFError, ConnectionError):
            pass  # read to the end; nothing was said
        one.process.join(CLOSE_S)
        code = one.process.exitcode
        reason = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return self._error(one, f"died without a word ({reason}); its worker hosts the slots {list(one.slots)}")

    def _error(self, one: _Worker, what: str, slot: int | None = None) -> EnvError:
        slot = slot if slot is not None else one.waiting[0] if one.waiting else one.slots[0]
        return EnvError(slot, *self._episode[slot], what)

    def _hand_out(self, slots: Sequence[int]) -> base.TimeStep:
        answers = [self._answers.pop(slot) for slot in slots]
        self._busy.difference_update(slots)
        frames = [answer.frames for answer in answers]
        return base.TimeStep(
            images=self._memory[0].images_EVYX3[slots],  # a list as index copies: the worker may overwrite its slot
            state=self._memory[0].state_ES[slots],
            reward=np.array([answer.reward for answer in answers], np.float32),
            terminated=np.array([answer.terminated for answer in answers]),
            truncated=np.array([answer.truncated for answer in answers]),
            num_steps=np.array([answer.num_steps for answer in answers], np.int32),
            frames=frames if any(frame is not None for frame in frames) else None,
            lost=np.zeros(len(slots), bool),
        )


def _shut_down(workers: list[_Worker], memory: list[worker.Memory]) -> None:
    for one in workers:
        one.connection.close()  # an idle worker sees the end of its pipe and closes its envs
    deadline_s = time.monotonic() + CLOSE_S
    for one in workers:
        one.process.join(max(0.0, deadline_s - time.monotonic()))
        if one.process.exitcode is None:
            one.process.kill()
            one.process.join()
        one.process.close()
    for block in memory:
        block.close()
