"""Host-side queue between a pool and the device: a thread takes ready slots out, `get` makes fixed-size batches.

The thread copies observations out of shared memory while the device computes.  Requests go straight to the pool;
answers come through the queue alone: while it lives nobody else may receive from its pool.
"""

from collections.abc import Sequence
import threading

import numpy as np

from pirl_jax.envs import base
from pirl_jax.envs.pool import pool as pools

POLL_S = 0.1  # how often the thread looks whether the queue was closed; answers wake it at once


class ReadyQueue:
    """Ready slots of one pool, at most `capacity` of them (default: all); the rest waits inside the pool."""

    def __init__(self, envs: pools.EnvPool, capacity: int | None = None):
        self._envs, self._capacity = envs, capacity or envs.num_envs
        self._changed = threading.Condition()  # guards all that follows
        self._ready: dict[
            int, base.TimeStep
        ] = {}  # by slot, in order of arrival; each a batch of one
        self._error: BaseException | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="ready-queue", daemon=True)
        self._thread.start()

    def get(
        self, batch: int, slots: Sequence[int] | None = None
    ) -> tuple[np.ndarray, base.TimeStep]:
        """Wait for a batch: the first `batch` slots that are ready, or exactly `slots`, in their order (lockstep).

        Raises what the pool raised, as soon as it did.
        """
        slots = None if slots is None else [int(slot) for slot in slots]
        self._check(batch, slots)
        with self._changed:
            self._changed.wait_for(lambda: self._stopped() or self._available(batch, slots))
            if self._error is not None:
                raise self._error
            if self._closed:
                raise ValueError("the queue is closed")
            taken = list(self._ready)[:batch] if slots is None else slots
            steps = [self._ready.pop(slot) for slot in taken]
            self._changed.notify_all()  # there is room again
        return np.array(taken), concatenate(steps)

    def recv(self, slots: Sequence[int]) -> base.TimeStep:
        """The lockstep `get` in the words of EnvPool: exactly these slots, in their order."""
        return self.get(len(slots), slots)[1]

    @property
    def spec(self) -> base.EnvSpec:
        return self._envs.spec

    @property
    def num_envs(self) -> int:
        return self._envs.num_envs

    @property
    def slot_workers(self) -> np.ndarray:
        """See EnvPool."""
        return self._envs.slot_workers

    @property
    def num_pending(self) -> int:
        """Slots that are ready or under way: as many rows can be got without a new request."""
        with self._changed:
            return len(self._ready) + self._envs.num_busy

    def counters(self) -> dict[str, int]:
        """See EnvPool.counters."""
        return self._envs.counters()

    def reset(self, slots: Sequence[int], tasks: Sequence[int], init_states: Sequence[int]) -> None:
        """See EnvPool.reset."""
        self._envs.reset(slots, tasks, init_states)

    def send(
        self, slots: Sequence[int], actions_NIA: np.ndarray, record: Sequence[bool] | None = None
    ) -> None:
        """See EnvPool.send."""
        self._envs.send(slots, actions_NIA, record)

    def close(self) -> None:
        """Stop the thread; the pool stays open.  Safe to call again, and while `get` waits elsewhere."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()  # at most POLL_S and one copy

    def __enter__(self) -> "ReadyQueue":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _check(self, batch: int, slots: Sequence[int] | None) -> None:
        """Refuse what could only wait for ever."""
        if slots is not None and len(slots) != batch:
            raise ValueError(f"batch is {batch}, but {len(slots)} slots are asked for")
        if slots is not None and self._capacity < self._envs.num_envs:
            raise ValueError(
                f"lockstep needs capacity {self._envs.num_envs} (one per env), not {self._capacity}"
            )
        if batch > self._capacity:
            raise ValueError(f"a batch of {batch} does not fit a capacity of {self._capacity}")
        with self._changed:
            if self._stopped():
                return
            if batch > self.num_pending:
                raise ValueError(
                    f"a batch of {batch} is asked for, but only {self.num_pending} slots are ready or under way"
                )
            idle = [
                slot
                for slot in slots or ()
                if slot not in self._ready and not self._envs.is_busy(slot)
            ]
            if idle:
                raise ValueError(f"slots {idle} are asked for, but nothing is under way there")

    def _available(self, batch: int, slots: Sequence[int] | None) -> bool:
        return (
            len(self._ready) >= batch
            if slots is None
            else all(slot in self._ready for slot in slots)
        )

    def _stopped(self) -> bool:
        return self._closed or self._error is not None

    def _run(self) -> None:
        try:
            while self._wait_for_room():
                if self._envs.wait(POLL_S):
                    with self._changed:
                        slots, step = self._envs.recv_any(1)
                        self._ready[int(slots[0])] = step
                        self._changed.notify_all()
        except BaseException as error:  # whatever it is, it belongs to the caller of get
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _wait_for_room(self) -> bool:
        """Whether there is room for one more; False once the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._ready) < self._capacity)
            return not self._closed


def concatenate(steps: Sequence[base.TimeStep]) -> base.TimeStep:
    """One batch from several."""
    names = ("images", "state", "reward", "terminated", "truncated", "num_steps", "lost")
    frames = [frames for step in steps for frames in (step.frames or [None] * len(step.reward))]
    return base.TimeStep(
        **{name: np.concatenate([getattr(step, name) for step in steps]) for name in names},
        frames=frames if any(one is not None for one in frames) else None,
    )
