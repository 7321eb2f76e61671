"""The child process of a pool: hosts the envs of some slots, executes whole chunks, writes shared memory.

Requests wait in the worker's pipe and are served in order, so one worker runs the chunks of several slots one after
another without waiting for other workers.  One small message in (`Reset` or `Step`), one small message out (`Answer`
or `Failure`); images and states travel through shared memory only.  Knows no policy and never imports jax.
"""

import contextlib
import dataclasses
import multiprocessing
from multiprocessing import connection as mp_connection
from multiprocessing import shared_memory
import os
import signal
import sys
import threading
import time
import traceback
import types
from typing import Callable, Sequence

import numpy as np

from pirl_jax.envs import base


@dataclasses.dataclass(frozen=True)
class Reset:
    slot: int
    task: int
    init_state: int


@dataclasses.dataclass(frozen=True)
class Step:
    slot: int
    actions_IA: np.ndarray
    record: bool


@dataclasses.dataclass(frozen=True)
class Answer:
    """A TimeStep less its images and state, which lie in shared memory."""

    slot: int
    reward: float
    terminated: bool
    truncated: bool
    num_steps: int
    frames: list | None
    env_s: float  # time spent inside the env


@dataclasses.dataclass(frozen=True)
class Failure:
    """An exception of this slot's env; the worker exits after sending it."""

    slot: int
    traceback: str
    remedy: str | None = None  # the sentence of a ValueError while the env was built: what the user can mend


class Memory:
    """Observations of all slots in one shared block: images_EVYX3 uint8 and state_ES float32.

    The owner (the pool) passes no name and creates the block; a worker passes the owner's.
    """

    def __init__(self, spec: base.EnvSpec, num_envs: int, name: str | None = None):
        images_shape = (num_envs, len(spec.cameras), spec.image_size_px, spec.image_size_px, 3)
        state_shape = (num_envs, spec.state_dim)
        # The states come first: they stay aligned to 4 bytes whatever the image size.
        images_offset = 4 * int(np.prod(state_shape))
        size = images_offset + int(np.prod(images_shape))
        self._owner = name is None
        self._block = shared_memory.SharedMemory(name, create=self._owner, size=size)
        self.state_ES = np.ndarray(state_shape, np.float32, self._block.buf)
        self.images_EVYX3 = np.ndarray(images_shape, np.uint8, self._block.buf, offset=images_offset)

    @property
    def name(self) -> str:
        return self._block.name

    def close(self) -> None:
        del self.state_ES, self.images_EVYX3  # a block with living views cannot be closed
        self._block.close()
        if self._owner:
            self._block.unlink()


def environment() -> dict[str, str]:
    """Environment variables of a worker, on top of the parent's: they must be there before its first import."""
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    variables = {name: "1" for name in threads} | {"JAX_PLATFORMS": "cpu"}
    variables["MUJOCO_GL"] = os.environ.get("MUJOCO_GL", "egl")
    variables["PYOPENGL_PLATFORM"] = os.environ.get("PYOPENGL_PLATFORM", variables["MUJOCO_GL"])
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        variables["MUJOCO_EGL_DEVICE_ID"] = "0"  # robosuite would parse the empty list of devices and fail
    return variables


@contextlib.contextmanager
def spawning():
    """While a worker is started: its environment variables are set and the parent's main module is out of sight.

    multiprocessing re-imports the main module in a spawned child; a training command would bring jax and the model
    with it.  A factory defined in the main module therefore cannot be pickled: define it in an importable module.
    """
    saved, main = dict(os.environ), sys.modules["__main__"]
    os.environ.update(environment())
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        os.environ.clear()
        os.environ.update(saved)


def run(
    connection: mp_connection.Connection, make_env: Callable[[], base.Env], slots: Sequence[int], num_envs: int
) -> None:
    """Main function of the process: build the envs, send the spec, receive the block's name, serve until the end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what stops
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    envs, memory = {}, None
    try:
        for slot in slots:
            with _reporting(connection, slot, building=True):
                envs[slot] = make_env()
        spec = envs[slots[0]].spec
        connection.send(spec)
        memory = Memory(spec, num_envs, connection.recv())
        while True:
            request = connection.recv()
            with _reporting(connection, request.slot):
                answer = _serve(envs[request.slot], request, memory)
            connection.send(answer)
    except (EOFError, ConnectionError):
        pass  # the pool closed its end: the normal way to stop
    finally:
        for env in envs.values():
            env.close()
        if memory is not None:
            memory.close()


def _serve(env: base.Env, request: Reset | Step, memory: Memory) -> Answer:
    start_s = time.perf_counter()
    if isinstance(request, Reset):
        step = env.reset(request.task, request.init_state)
    else:
        step = env.step_chunk(request.actions_IA, request.record)
    env_s = time.perf_counter() - start_s
    memory.images_EVYX3[request.slot] = step.images
    memory.state_ES[request.slot] = step.state
    flags = bool(step.terminated), bool(step.truncated)
    return Answer(request.slot, float(step.reward), *flags, step.num_steps, step.frames, env_s)


@contextlib.contextmanager
def _reporting(connection: mp_connection.Connection, slot: int, building: bool = False):
    """Turn an exception of the slot's env into a Failure message, then end the worker."""
    try:
        yield
    except Exception as error:
        remedy = str(error) if building and isinstance(error, ValueError) else None
        connection.send(Failure(slot, traceback.format_exc(), remedy))
        sys.exit(1)


def _exit_with_parent() -> None:
    """An env deep in a long chunk does not look at its pipe; this thread notices that the parent is gone."""
    multiprocessing.parent_process().join()
    os._exit(1)
