"""The child process of a pool: hosts the envs of some slots, executes whole chunks, writes shared memory.

Requests wait in the worker's channel and are served in order, so one worker runs the chunks of several slots one after
another without waiting for other workers.  One small message in (`Reset` or `Step`), one small message out (`Answer` or
`Failure`); images and states travel through shared memory only.  Knows no policy and never imports jax.
"""

import contextlib
import dataclasses
import faulthandler
import fcntl
import os
import pickle
import signal
import socket
import sys
import time
import traceback
import types

import numpy as np
import psutil

from pirl_jax.envs import base
from pirl_jax.envs.gl import backends
from pirl_jax.envs.pool import channel, memory

THIS_PROCESS = psutil.Process()


@dataclasses.dataclass(frozen=True)
class Hello:
    """The first message: what the worker builds."""

    make_env: bytes  # pickled apart: what goes wrong on reading it is an error of building the env
    slots: tuple[int, ...]
    num_envs: int  # of the whole pool
    spec: base.EnvSpec | None  # what they must be; None: the first of the pool


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
    """A TimeStep less its images and state, which lie in shared memory; and how worn the worker is."""

    slot: int
    reward: float
    terminated: bool
    truncated: bool
    num_steps: int
    frames: list | None
    env_s: float  # time spent inside the env
    num_episodes: int  # resets this process has served
    memory_bytes: int  # resident, of this process, after a reset; 0 after a step


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a worker is of no use any more; `slot` is the one it was serving."""

    slot: int
    summary: str  # one line
    details: str = ""  # a traceback or a stack
    remedy: str | None = (
        None  # the sentence of a ValueError while the env was built: what the user can mend
    )


def environment(render_device: int | None = None) -> dict[str, str]:
    """Environment variables of a worker, on top of the parent's: they must be there before its first import.

    render_device: the EGL device it draws on; None leaves the choice to the user's variables and the driver.
    """
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    variables = {name: "1" for name in threads} | {"JAX_PLATFORMS": "cpu"}
    variables |= backends.variables(os.environ.get("MUJOCO_GL", "egl"), render_device)
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "" and render_device is None:
        variables["MUJOCO_EGL_DEVICE_ID"] = (
            "0"  # robosuite would parse the empty list of devices and fail
        )
    return variables


@contextlib.contextmanager
def spawning():
    """While multiprocessing starts simulator processes: a worker's variables are set, the main module is out of sight.

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


def main(channel_fd: int, lifeline_fd: int, memory_fd: int, stacks_fd: int) -> None:
    """Main function of the process: build the envs, send the spec, serve until the pool closes its end.

    The descriptors are inherited: socket to the pool, read end of a pipe that only the pool holds open, block of the
    observations, file for Python's stacks.
    """
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole group; the parent decides what stops
    faulthandler.enable(stacks_fd)  # a crash in C leaves the Python stack there
    faulthandler.register(
        signal.SIGUSR1, stacks_fd
    )  # and so does the question of the pool where the worker hangs
    _die_with_the_pool(lifeline_fd)
    pool = channel.WorkerEnd(socket.socket(fileno=channel_fd))
    envs, served = {}, 0
    try:
        hello = pool.receive()
        spec = hello.spec
        for slot in hello.slots:
            with _reporting(pool, slot, building=True):
                envs[slot] = pickle.loads(hello.make_env)()
                spec = spec or envs[slot].spec
                if envs[slot].spec != spec:
                    raise ValueError(
                        f"make_env built different suites: {spec} and {envs[slot].spec}"
                    )
        pool.send(spec)
        request = pool.receive()  # not before the pool knows the spec and has sized the block
        block = memory.Memory(memory_fd, spec, hello.num_envs, owner=False)
        while True:
            served += isinstance(request, Reset)
            with _reporting(pool, request.slot):
                answer = _serve(envs[request.slot], request, block, served)
            pool.send(answer)
            request = pool.receive()
    except (EOFError, ConnectionError):
        pass  # the pool closed its end: the normal way to stop
    finally:
        for env in envs.values():
            env.close()


def _serve(env: base.Env, request: Reset | Step, block: memory.Memory, num_episodes: int) -> Answer:
    start_s = time.perf_counter()
    if isinstance(request, Reset):
        step = env.reset(request.task, request.init_state)
    else:
        step = env.step_chunk(request.actions_IA, request.record)
    env_s = time.perf_counter() - start_s
    block.images_EVYX3[request.slot] = step.images
    block.state_ES[request.slot] = step.state
    return Answer(
        slot=request.slot,
        reward=float(step.reward),
        terminated=bool(step.terminated),
        truncated=bool(step.truncated),
        num_steps=step.num_steps,
        frames=step.frames,
        env_s=env_s,
        num_episodes=num_episodes,
        memory_bytes=THIS_PROCESS.memory_info().rss if isinstance(request, Reset) else 0,
    )


@contextlib.contextmanager
def _reporting(pool: channel.WorkerEnd, slot: int, building: bool = False):
    """Turn an exception of the slot's env into a Failure message, then end the worker."""
    try:
        yield
    except Exception as error:
        remedy = str(error) if building and isinstance(error, ValueError) else None
        summary = f"failed: {type(error).__name__}: {error}".split("\n")[0]
        pool.send(Failure(slot, summary, traceback.format_exc(), remedy))
        sys.exit(1)


def _die_with_the_pool(lifeline_fd: int) -> None:
    """The kernel kills this process when the pipe's other end closes, which happens when the pool's process ends.

    A thread that waits for it would not do: code in C may hold the interpreter's lock for ever, and a stopped process
    runs none.
    """
    fcntl.fcntl(lifeline_fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline_fd, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline_fd, fcntl.F_SETFL, fcntl.fcntl(lifeline_fd, fcntl.F_GETFL) | os.O_ASYNC)
