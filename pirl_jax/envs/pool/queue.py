"""Host-side queue between a pool and the device: a thread takes ready slots out, `get` batches.

The thread copies observations out of shared memory while the device computes.  Requests go straight
to the pool; answers come through the queue alone: while it lives nobody else may receive from its
pool.  Refuses to know episodes: which slot plays what is the caller's business.
"""

from collections.abc import Callable, Sequence
import threading

import numpy as np

from pirl_jax.envs import base
from pirl_jax.envs.pool import pool as pools
from pirl_jax.envs.pool import worker

POLL_S = 0.1  # how often the thread looks whether the queue was closed; answers wake it at once
BATCHED_FIELDS = (
    *("images", "state", "reward", "terminated", "truncated", "num_steps", "thrown", "lost"),
)


class Interrupted(Exception):
    """Nobody wants the answer any more."""


class ReadyQueue:
    """Ready slots of one pool, at most `capacity` of them; the rest waits inside the pool.

    capacity: None: one for each env.
    """

    def __init__(self, pool: pools.EnvPool, capacity: int | None = None) -> None:
        self._pool = pool
        self._capacity = capacity or pool.num_envs
        self._changed = threading.Condition()  # guards all that follows
        # By slot, in order of arrival; each a batch of one.
        self._ready: dict[int, base.TimeStep] = {}
        self._error: BaseException | None = None  # what the pool raised; it ends the thread
        self._closed = False
        self._interrupted = False
        # A daemon: a program that fails before `close` still ends.
        self._thread = threading.Thread(target=self._run, name="ready-queue", daemon=True)
        self._thread.start()

    def get(
        self, batch: int, slots: Sequence[int] | None = None
    ) -> tuple[np.ndarray, base.TimeStep]:
        """Wait for a batch -> its slots [batch] and their answers.

        The first `batch` slots that are ready, or exactly `slots`, in their order (lockstep).

        Raises:
            ValueError: the batch could never be made, or the queue is closed.
            EnvError: what the pool raised, as soon as it did.
            Interrupted: somebody called `interrupt`.
        """
        if slots is not None:
            slots = [int(slot) for slot in slots]
        self._check(batch, slots)
        with self._changed:
            self._changed.wait_for(lambda: self._stopped() or self._available(batch, slots))
            self._raise_stopped()
            taken = list(self._ready)[:batch] if slots is None else slots
            steps = [self._ready.pop(slot) for slot in taken]
            self._changed.notify_all()  # there is room again
        return np.array(taken), concatenate(steps)

    def ready(self, wanted: int, timeout_s: float) -> int:
        """How many slots are ready, once `wanted` are or the time is over.

        Raises: as `get`.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._stopped() or len(self._ready) >= wanted, timeout=timeout_s
            )
            self._raise_stopped()
            return len(self._ready)

    def recv(self, slots: Sequence[int]) -> base.TimeStep:
        """The lockstep `get` in the words of EnvPool: exactly these slots, in their order."""
        _, step = self.get(len(slots), slots)
        return step

    @property
    def spec(self) -> base.EnvSpec:
        """See EnvPool."""
        return self._pool.spec

    @property
    def num_envs(self) -> int:
        """See EnvPool."""
        return self._pool.num_envs

    @property
    def slot_workers(self) -> np.ndarray:
        """See EnvPool."""
        return self._pool.slot_workers

    @property
    def num_pending(self) -> int:
        """Slots that are ready or under way: as many rows can be got without a new request."""
        with self._changed:
            return len(self._ready) + self._pool.num_busy

    def counters(self) -> dict[str, int]:
        """See EnvPool.counters."""
        return self._pool.counters()

    def listen(self, listener: Callable[[worker.Answer], None] | None) -> None:
        """See EnvPool."""
        self._pool.listen(listener)

    def reset(self, slots: Sequence[int], tasks: Sequence[int], init_states: Sequence[int]) -> None:
        """See EnvPool.reset."""
        self._pool.reset(slots, tasks, init_states)

    def send(
        self, slots: Sequence[int], actions_EIa: np.ndarray, record: Sequence[bool] | None = None
    ) -> None:
        """See EnvPool.send."""
        self._pool.send(slots, actions_EIa, record)

    def interrupt(self) -> None:
        """From now on `get` waits for nothing and raises Interrupted, whoever waits now included.

        To be called from any thread, and again.
        """
        with self._changed:
            self._interrupted = True
            self._changed.notify_all()

    def go_on(self) -> None:
        """After `interrupt`, where nobody wants that any more."""
        with self._changed:
            self._interrupted = False

    def close(self) -> None:
        """Stop the thread; the pool stays open.

        Safe to call again, and while `get` waits elsewhere.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()  # at most POLL_S and one copy

    def __enter__(self) -> "ReadyQueue":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _check(self, batch: int, slots: Sequence[int] | None) -> None:
        """Refuse what could only wait for ever."""
        if slots is not None and len(slots) != batch:
            raise ValueError(f"batch is {batch}, but {len(slots)} slots are asked for")
        if slots is not None and self._capacity < self._pool.num_envs:
            # The queue could fill with slots that nobody asks for, and the wanted one never comes.
            raise ValueError(
                f"lockstep needs capacity {self._pool.num_envs} (one per env), not {self._capacity}"
            )
        if batch > self._capacity:
            raise ValueError(f"a batch of {batch} does not fit a capacity of {self._capacity}")
        with self._changed:
            if self._stopped():
                return  # `get` raises why
            if batch > self.num_pending:
                raise ValueError(
                    f"a batch of {batch} is asked for, but only {self.num_pending} slots are ready "
                    "or under way"
                )
            idle = [slot for slot in slots or () if not self._is_pending(slot)]
            if idle:
                raise ValueError(f"slots {idle} are asked for, but nothing is under way there")

    def _is_pending(self, slot: int) -> bool:
        return slot in self._ready or self._pool.is_busy(slot)

    def _available(self, batch: int, slots: Sequence[int] | None) -> bool:
        if slots is None:
            return len(self._ready) >= batch
        return all(slot in self._ready for slot in slots)

    def _raise_stopped(self) -> None:
        if self._error is not None:
            raise self._error
        if self._interrupted:
            raise Interrupted
        if self._closed:
            raise ValueError("the queue is closed")

    def _stopped(self) -> bool:
        return self._closed or self._interrupted or self._error is not None

    def _run(self) -> None:
        """The thread: one slot after the other, out of the pool."""
        try:
            while self._wait_for_room():
                self._take_one()
        except BaseException as error:  # whatever it is, it belongs to the caller of get
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _take_one(self) -> None:
        """Copy the observation of a slot that is ready; without one, return after POLL_S."""
        if not self._pool.wait(POLL_S):
            return
        with self._changed:  # for whoever counts: a slot is busy in the pool, or ready here
            slots, step = self._pool.recv_any(1)
            self._ready[int(slots[0])] = step
            self._changed.notify_all()

    def _wait_for_room(self) -> bool:
        """Whether there is room for one more; False once the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._ready) < self._capacity)
            return not self._closed


def concatenate(steps: Sequence[base.TimeStep]) -> base.TimeStep:
    """One batch from several, in their order."""
    batch = {}
    for name in BATCHED_FIELDS:
        batch[name] = np.concatenate([getattr(step, name) for step in steps])
    frames: list[list[np.ndarray] | None] = []
    for step in steps:
        frames += step.frames or [None] * len(step.reward)
    has_frames = any(row_frames is not None for row_frames in frames)
    return base.TimeStep(**batch, frames=frames if has_frames else None)
