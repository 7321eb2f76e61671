"""EnvPool: many envs in worker processes, asked and answered slot by slot.

A slot is one env.  `reset` and `send` only post requests; `recv` and `recv_any` wait.  A slot has
at most one request under way.  Workers do not wait for each other: a slow env delays its own
worker's slots only.  One thread may receive while another posts.

A worker that fails, dies or hangs is replaced.  Episodes that ran there are lost: the answer to the
request under way, or to the next `send`, is a row with `lost` set and zeros elsewhere; the slot
goes on with a reset.  Answers that had arrived before stay valid.  An env that answers with numbers
that are none (base.fault) loses its episode alone; several of these in a row, and its worker is
replaced.  When more workers fail within an
hour than `restarts_per_hour`, recv raises EnvError with the first cause, and raises it again
whenever it is called.  Knows no policy; what is done with the observations is the caller's
business.
"""

from collections.abc import Callable, Sequence
import threading
import time
import weakref

import numpy as np

from pirl_jax.envs import base
from pirl_jax.envs.pool import supervisor, worker

EnvError = supervisor.EnvError
# The answer for an episode that died with its worker; recognised by identity, for it has no slot.
LOST = worker.Answer(
    slot=-1,
    reward=0.0,
    terminated=False,
    truncated=False,
    num_steps=0,
    frames=None,
    thrown=False,
    env_s=0.0,
    cpu_s=0.0,
    num_episodes=0,
    memory_bytes=0,
)


class EnvPool:
    """`num_envs` envs in `num_workers` processes; slot s lives in worker s % num_workers.

    make_env: a picklable factory without arguments, from an importable module.
    timeout_s: bounds the start of a worker and every request.
    restarts_per_hour: how many failed workers are replaced within an hour; 0: the first failure is
        raised.
    recycle_episodes, recycle_growth_gb: a worker that has started so many episodes, or whose memory
        has grown by so much (1e9 bytes) since each of its envs had its first, is followed by a
        fresh one: its slots move there at their next resets.  One worker of the pool at a time.
        0: never.
    render_devices: EGL device of each worker, in turn; (): what the environment variables and the
        driver choose.

    Raises:
        ValueError: num_workers is out of range, or the first start of a worker met what the user
            can mend (a wrong name, missing files).
        EnvError: whatever else goes wrong in the first start of a worker.
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
        if not 1 <= num_workers <= num_envs:
            raise ValueError(
                f"num_workers is {num_workers}; it must lie between 1 and num_envs ({num_envs})"
            )
        self.num_envs = num_envs
        # [E] slots with the same number share a process.
        self.slot_workers = np.arange(num_envs) % num_workers
        self.env_seconds = np.zeros(num_envs)  # [E] time spent inside each env since the start
        self._listener: Callable[[worker.Answer], None] | None = None
        self._lock = threading.RLock()  # guards all that follows
        self._busy: set[int] = set()  # slots with a request that recv has not handed out
        # By slot, in order of arrival: answered and not handed out.
        self._answers: dict[int, worker.Answer] = {}
        # Slots whose episode was lost while no request was under way: their next `send` says so.
        self._lost_unasked: set[int] = set()
        self._error: Exception | None = None  # why nothing will be answered any more
        self._supervisor = supervisor.Supervisor(
            make_env,
            num_envs,
            num_workers,
            timeout_s=timeout_s,
            restarts_per_hour=restarts_per_hour,
            recycle_episodes=recycle_episodes,
            recycle_growth_gb=recycle_growth_gb,
            render_devices=render_devices,
        )
        self._finalizer = weakref.finalize(self, self._supervisor.close)  # also runs at exit
        self.spec = self._supervisor.spec

    def reset(self, slots: Sequence[int], tasks: Sequence[int], init_states: Sequence[int]) -> None:
        """Start the episode (task, init state) in each slot; returns at once.

        Raises:
            ValueError: there is no such episode, or a slot has a request under way.
        """
        spec = self.spec
        for slot, task, init_state in zip(slots, tasks, init_states, strict=True):
            has_task = 0 <= task < spec.num_tasks
            has_init_state = 0 <= init_state < spec.num_init_states
            if not (has_task and has_init_state):
                raise ValueError(
                    f"task {task}, init state {init_state} does not exist: {spec.suite} has "
                    f"{spec.num_tasks} tasks with {spec.num_init_states} init states each"
                )
            with self._lock:
                self._claim(slot)
                self._lost_unasked.discard(slot)
                self._post(worker.Reset(int(slot), int(task), int(init_state)))

    def send(
        self, slots: Sequence[int], actions_EIa: np.ndarray, record: Sequence[bool] | None = None
    ) -> None:
        """Execute one chunk in each slot; returns at once.

        actions_EIa: a row for each of `slots`; I may be any number of steps.
        record: slot by slot, whether video frames are wanted; None: nowhere.

        Raises:
            ValueError: a slot has a request under way, or no episode.
        """
        if record is None:
            record = [False] * len(slots)
        for slot, actions_Ia, with_frames in zip(slots, actions_EIa, record, strict=True):
            with self._lock:
                self._claim(slot)
                if slot in self._lost_unasked:
                    self._lost_unasked.discard(slot)
                    self._answers[int(slot)] = LOST
                elif slot in self._supervisor.playing:
                    self._post(worker.Chunk(int(slot), np.asarray(actions_Ia), bool(with_frames)))
                else:
                    self._busy.discard(slot)
                    raise ValueError(
                        f"slot {slot} has no episode (it has ended, or was lost); reset it first"
                    )

    def recv(self, slots: Sequence[int]) -> base.TimeStep:
        """Wait for these slots; the batch has their order.

        Raises:
            ValueError: nothing is under way in one of them.
            EnvError: too many workers have failed.
        """
        slots = [int(slot) for slot in slots]
        self._check_busy(slots, len(slots))
        while not all(slot in self._answers for slot in slots):
            self._collect(supervisor.LOOK_S)
        return self._hand_out(slots)

    def recv_any(self, count: int) -> tuple[np.ndarray, base.TimeStep]:
        """Wait for the first `count` slots that are ready -> slots [count], batch in their order.

        Raises:
            ValueError: fewer are under way.
            EnvError: too many workers have failed.
        """
        self._check_busy((), count)
        while len(self._answers) < count:
            self._collect(supervisor.LOOK_S)
        slots = list(self._answers)[:count]
        return np.array(slots), self._hand_out(slots)

    def wait(self, timeout_s: float) -> int:
        """Wait at most `timeout_s` for an answer -> how many slots recv_any would hand out at once.

        Raises:
            EnvError: too many workers have failed.
        """
        until_s = time.monotonic() + timeout_s
        self._collect(0.0)
        while not self._answers and (left_s := until_s - time.monotonic()) > 0:
            self._collect(left_s)
        return len(self._answers)

    def listen(self, listener: Callable[[worker.Answer], None] | None) -> None:
        """Tell it every answer from now on, in the thread that receives.  None: nobody."""
        self._listener = listener

    @property
    def num_busy(self) -> int:
        """Slots with a request that recv has not handed out yet."""
        return len(self._busy)

    def is_busy(self, slot: int) -> bool:
        """Whether the slot has a request that recv has not handed out yet."""
        return slot in self._busy

    @property
    def process_ids(self) -> list[int]:
        """[E] of the worker of each slot."""
        return [process.pid for process in self._supervisor.slot_processes]

    def counters(self) -> dict[str, int]:
        """Since the start: workers replaced after a failure, workers recycled, episodes lost."""
        return dict(self._supervisor.counters)

    def close(self) -> None:
        """End the workers and free the shared memory; safe to call again."""
        with self._lock:
            self._finalizer()

    def __enter__(self) -> "EnvPool":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if not self._finalizer.alive:
            raise ValueError("the pool is closed")

    def _check_busy(self, slots: Sequence[int], count: int) -> None:
        """Refuse what could only wait for ever."""
        self._check_open()
        idle = set(slots) - self._busy
        if idle or count > len(self._busy):
            raise ValueError(
                f"recv of {count} slots, but {len(self._busy)} are under way (idle: {sorted(idle)})"
            )

    def _claim(self, slot: int) -> None:
        """Mark the slot as busy."""
        self._check_open()
        if slot in self._busy:
            raise ValueError(f"slot {slot} has a request under way; recv it first")
        self._busy.add(int(slot))

    def _post(self, request: worker.Reset | worker.Chunk) -> None:
        # Once there is an error recv raises it: another one here, in another thread, would hide
        # the cause.
        if self._error is None:
            self._supervisor.post(request)

    def _collect(self, limit_s: float) -> None:
        """Wait, at most `limit_s`, until something has arrived; take in everything that has."""
        self._check_open()
        if self._error is None:
            self._supervisor.wait(limit_s)  # without the lock: meanwhile others may post
        with self._lock:
            self._check_open()
            if self._error is not None:
                raise self._error
            try:
                answers, lost_slots = self._supervisor.take()
            except Exception as error:
                # Nothing can be relied on any more: every recv raises it again.
                self._error = error
                raise
            for answer in answers:
                if self._listener is not None:
                    self._listener(answer)
                self.env_seconds[answer.slot] += answer.env_s
                self._answers[answer.slot] = answer
            for slot in lost_slots:
                # An answer that had arrived stays valid; the loss is told by the next one.
                if slot in self._busy and slot not in self._answers:
                    self._answers[slot] = LOST
                else:
                    self._lost_unasked.add(slot)

    def _hand_out(self, slots: Sequence[int]) -> base.TimeStep:
        """The answers of these slots as one batch; they are free for the next request."""
        with self._lock:
            self._check_open()
            answers = [self._answers.pop(slot) for slot in slots]
            self._busy.difference_update(slots)
            block = self._supervisor.memory
            images = block.images_EVYX3[slots]  # a list as index copies
            state = block.state_EQ[slots]
        lost = np.array([answer is LOST for answer in answers])
        # What a lost episode left in the block is no observation.
        images[lost] = 0
        state[lost] = 0.0
        frames = [answer.frames for answer in answers]
        has_frames = any(slot_frames is not None for slot_frames in frames)
        return base.TimeStep(
            images=images,
            state=state,
            reward=np.array([answer.reward for answer in answers], np.float32),
            terminated=np.array([answer.terminated for answer in answers]),
            truncated=np.array([answer.truncated for answer in answers]),
            num_steps=np.array([answer.num_steps for answer in answers], np.int32),
            frames=frames if has_frames else None,
            thrown=np.array([answer.thrown for answer in answers]),
            lost=lost,
        )
