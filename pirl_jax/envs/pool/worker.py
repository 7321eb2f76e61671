"""The child process of a pool: hosts the envs of some slots and executes whole chunks.

Requests wait in the worker's channel and are served in order, so one worker runs the chunks of
several slots one after another without waiting for other workers.  One small message in (`Reset` or
`Chunk`), one small message out (`Answer` or `Failure`); images and states travel through shared
memory only.  Knows no policy and never imports jax.
"""

from collections.abc import Iterator
import concurrent.futures
import contextlib
import dataclasses
import faulthandler
import fcntl
import multiprocessing
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

from pirl_jax.envs import base, caches, child
from pirl_jax.envs.gl import backends
from pirl_jax.envs.pool import channel, memory

THIS_PROCESS = psutil.Process()
# The pool's question where a worker is; one that no scheduler sends.
STACK_SIGNAL = signal.SIGRTMIN + 3
# Many workers share the cores: threads of a numeric library would only fight for them.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)


@dataclasses.dataclass(frozen=True)
class Hello:
    """The first message: what the worker builds."""

    make_env: bytes  # pickled apart: what goes wrong on reading it is an error of building the env
    slots: tuple[int, ...]
    num_envs: int  # of the whole pool
    spec: base.EnvSpec | None  # what they must be; None: the first of the pool


@dataclasses.dataclass(frozen=True)
class Reset:
    """Request: start the episode (task, init state) in the slot."""

    slot: int
    task: int
    init_state: int


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Request: execute these actions in the slot, open loop."""

    slot: int
    actions_Ia: np.ndarray
    record: bool  # whether video frames are wanted


@dataclasses.dataclass(frozen=True)
class Answer:
    """A TimeStep less images and state, which lie in shared memory; and how worn the worker is."""

    slot: int
    reward: float
    terminated: bool
    truncated: bool
    num_steps: int
    frames: list[np.ndarray] | None
    thrown: bool
    env_s: float  # time spent inside the env
    cpu_s: float  # of this process, meanwhile
    num_episodes: int  # resets this process has served
    memory_bytes: int  # resident, of this process, after a reset; 0 after a chunk
    fault: str = ""  # numbers that are none: the episode is lost, nothing else here means anything


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a worker is of no use any more; `slot` is the one it was serving."""

    slot: int
    summary: str  # one line
    details: str = ""  # a traceback or a stack
    # The sentence of a ValueError while the env was built: what the user can mend.
    remedy: str | None = None


def environment(render_device: int | None = None) -> dict[str, str]:
    """Environment variables of a worker, on top of the parent's.

    They must be there before its first import.

    render_device: the EGL device it draws on; None leaves the choice to the user's variables and
        the driver.
    """
    variables = dict.fromkeys(THREAD_VARIABLES, "1")
    variables["JAX_PLATFORMS"] = "cpu"
    backend = backends.wanted()
    variables.update(backends.variables(backend, render_device))
    variables.update(caches.variables())
    if render_device is not None:
        return variables
    if os.environ.get("MUJOCO_EGL_DEVICE_ID"):
        # robosuite would look for this number, which is EGL's, among CUDA's.
        variables["CUDA_VISIBLE_DEVICES"] = ""
    elif os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        # robosuite would parse the empty list of devices and fail.
        variables["MUJOCO_EGL_DEVICE_ID"] = "0"
    return variables


@contextlib.contextmanager
def spawning() -> Iterator[None]:
    """While multiprocessing starts simulator processes: a worker's variables, no main module.

    multiprocessing re-imports the main module in a spawned child; a training command would bring
    jax and the model with it.  A factory defined in the main module therefore cannot be pickled:
    define it in an importable module.
    """
    saved_variables = dict(os.environ)
    main_module = sys.modules["__main__"]
    os.environ.update(environment())
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main_module
        os.environ.clear()
        os.environ.update(saved_variables)


@contextlib.contextmanager
def processes(count: int) -> Iterator[concurrent.futures.Executor]:
    """Processes in a worker's world for jobs that need no pool; submit `child.shielded`.

    They live through what their group is sent, and end with this process; where the block fails
    nobody waits for what they are doing.
    """
    # A fork would copy a process that runs threads.
    context = multiprocessing.get_context("spawn")
    with (
        spawning(),
        concurrent.futures.ProcessPoolExecutor(
            count, mp_context=context, initializer=live_with_parent
        ) as executor,
    ):
        try:
            yield executor
        except BaseException:
            for process in multiprocessing.active_children():
                process.kill()
            raise


def main(channel_fd: int, lifeline_fd: int, memory_fd: int, stacks_fd: int) -> None:
    """Main function of the process: build the envs, send the spec, serve until the pool hangs up.

    The descriptors are inherited: socket to the pool, read end of a pipe that only the pool holds
    open, block of the observations, file for Python's stacks.
    """
    # A crash in C leaves the Python stack in the file; so does the pool's question where a worker
    # hangs.
    faulthandler.enable(stacks_fd)
    faulthandler.register(STACK_SIGNAL, stacks_fd)
    ignore_endings()
    _die_with_the_pool(lifeline_fd)
    to_pool = channel.WorkerEnd(socket.socket(fileno=channel_fd))
    envs: dict[int, base.Env] = {}
    try:
        hello = to_pool.receive()
        spec = _build(hello, envs, to_pool)
        to_pool.send(spec)
        # The first request comes only once the pool knows the spec and has sized the block.
        request = to_pool.receive()
        block = memory.Memory(memory_fd, spec, hello.num_envs, owner=False)
        _serve(request, envs, block, to_pool)
    except (EOFError, ConnectionError):
        pass  # the pool closed its end: the normal way to stop
    finally:
        for env in envs.values():
            env.close()


def _build(hello: Hello, envs: dict[int, base.Env], to_pool: channel.WorkerEnd) -> base.EnvSpec:
    """Fill `envs`, which the caller closes even where a later one cannot be built -> their spec."""
    spec = hello.spec
    for slot in hello.slots:
        with _reporting(to_pool, slot, building=True):
            envs[slot] = pickle.loads(hello.make_env)()
            spec = spec or envs[slot].spec
            if envs[slot].spec != spec:
                raise ValueError(f"make_env built different suites: {spec} and {envs[slot].spec}")
    return spec


def _serve(
    request: Reset | Chunk,
    envs: dict[int, base.Env],
    block: memory.Memory,
    to_pool: channel.WorkerEnd,
) -> None:
    """Answer this request and all that follow; ends with the exception of a channel that closes."""
    num_episodes = 0
    while True:
        if isinstance(request, Reset):
            num_episodes += 1
        with _reporting(to_pool, request.slot):
            answer = _execute(envs[request.slot], request, block, num_episodes)
        to_pool.send(answer)
        request = to_pool.receive()


def _execute(
    env: base.Env, request: Reset | Chunk, block: memory.Memory, num_episodes: int
) -> Answer:
    """Do what is asked; the observation goes into the slot's rows of the block.

    Faulty numbers go nowhere.
    """
    is_reset = isinstance(request, Reset)
    start_s = time.perf_counter()
    start_cpu_s = time.process_time()
    if is_reset:
        step = env.reset(request.task, request.init_state)
    else:
        step = env.step_chunk(request.actions_Ia, request.record)
    env_s = time.perf_counter() - start_s
    cpu_s = time.process_time() - start_cpu_s
    memory_bytes = THIS_PROCESS.memory_info().rss if is_reset else 0
    fault = base.fault(step, env.spec, 0 if is_reset else len(request.actions_Ia))
    if fault:
        return _faulty(request.slot, fault, env_s, cpu_s, num_episodes, memory_bytes)
    block.images_EVYX3[request.slot] = step.images
    block.state_EQ[request.slot] = step.state
    return Answer(
        slot=request.slot,
        reward=float(step.reward),
        terminated=bool(step.terminated),
        truncated=bool(step.truncated),
        num_steps=int(step.num_steps),
        frames=step.frames,
        thrown=bool(step.thrown),
        env_s=env_s,
        cpu_s=cpu_s,
        num_episodes=num_episodes,
        memory_bytes=memory_bytes,
    )


def _faulty(
    slot: int, fault: str, env_s: float, cpu_s: float, num_episodes: int, memory_bytes: int
) -> Answer:
    return Answer(
        slot=slot,
        reward=0.0,
        terminated=False,
        truncated=False,
        num_steps=0,
        frames=None,
        thrown=False,
        env_s=env_s,
        cpu_s=cpu_s,
        num_episodes=num_episodes,
        memory_bytes=memory_bytes,
        fault=fault,
    )


@contextlib.contextmanager
def _reporting(to_pool: channel.WorkerEnd, slot: int, building: bool = False) -> Iterator[None]:
    """Turn an exception of the slot's env into a Failure message, then end the worker."""
    try:
        yield
    except Exception as error:  # an env may raise anything; all of it ends this process
        remedy = None
        if building and isinstance(error, ValueError):
            remedy = str(error)
        summary = f"failed: {type(error).__name__}: {error}".split("\n")[0]
        to_pool.send(Failure(slot, summary, traceback.format_exc(), remedy))
        sys.exit(1)


def ignore_endings() -> None:
    """What reaches the whole process group; the parent decides what stops."""
    for number in child.ENDING:
        signal.signal(number, signal.SIG_IGN)
    # The process was started shielded.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {*child.ENDING, STACK_SIGNAL})


def live_with_parent() -> None:
    """First line of a process that multiprocessing has started: it ends when its parent does."""
    ignore_endings()
    _die_with_the_pool(multiprocessing.parent_process().sentinel)


def _die_with_the_pool(lifeline_fd: int) -> None:
    """The kernel kills this process when the pipe's other end closes: when the pool's process ends.

    A thread that waits for it would not do: code in C may hold the interpreter's lock for ever, and
    a stopped process runs none.
    """
    fcntl.fcntl(lifeline_fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline_fd, fcntl.F_SETSIG, signal.SIGKILL)
    flags = fcntl.fcntl(lifeline_fd, fcntl.F_GETFL)
    fcntl.fcntl(lifeline_fd, fcntl.F_SETFL, flags | os.O_ASYNC)
