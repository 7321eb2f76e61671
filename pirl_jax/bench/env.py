"""LIBERO against stock LIBERO: control steps, chunks, resets, episodes, memory, starts, workers.

Everything is an env in a worker process of the same pool, asked with the same actions in turn.
Times are taken inside the worker, except of starts and where workers compete: the wall clock.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping
import contextlib
import os
import tempfile
import time
from typing import Any

import numpy as np
import psutil

from pirl_jax.bench import baselines, interleaved
from pirl_jax.envs import base, child
from pirl_jax.envs.libero import files
from pirl_jax.envs.pool import pool, worker
from pirl_jax.monitor import columns
from pirl_jax.run import command

BARE = ("stock, no rendering", "ours, no rendering", "mj_step alone")
RENDERING = ("stock", "ours", "ours light")
FRESH = "ours light, nothing kept"  # on a machine that has no light meshes and textures yet
CHUNKS = (5, 10)  # executed actions per decision
CHUNKS_PER_REPEAT = 3
CONTROL_STEPS = 50  # per repeat, without rendering
DEMONSTRATED = range(5)  # init states that the expert may try
MOST_WORKERS = 1024
POOL = {  # of every pool that is measured
    "timeout_s": 600.0,
    "restarts_per_hour": 20,
    "recycle_episodes": 0,
    "recycle_growth_gb": 0.0,
    "render_devices": (),
}

Factories = Mapping[str, Callable[[], base.Env]]
Pools = Mapping[str, pool.EnvPool]  # by name of what is compared; one env in each


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tasks",
        default="libero_object:0,libero_spatial:0",
        help="suite:task, separated by commas",
    )
    parser.add_argument(
        "--image-size",
        type=command.number(int, 1, 4096),
        default=128,
        help="pixels of both cameras (default 128)",
    )
    parser.add_argument(
        "--assets", type=command.path, help="LIBERO's assets; default: where training finds them"
    )
    parser.add_argument(
        "--workers",
        default="1,2,4",
        help="numbers of workers in the scaling measurement; '' leaves it out",
    )


def run(options: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    """{suite:task: {measurement: {name: value}}}"""
    names = options.tasks.split(",")
    for name in names:
        _suite_and_task(name)
    _worker_counts(options.workers)
    files.find_assets(options.assets)
    return {name: _task(name, options) for name in names}


def _task(name: str, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    suite, task = _suite_and_task(name)
    make = baselines.factories(suite, options.assets, options.image_size)
    repeats = options.repeats
    result = {}
    with contextlib.ExitStack() as stack:
        pools = _open(stack, make, list(make), num_envs=1)
        for one_env in pools.values():
            _reset(one_env, task, 0)  # builds the simulator; not part of any measurement
        result["control step, ms"] = control_step(pools, task, repeats)
        rendering = {name: pools[name] for name in RENDERING}
        for chunk in CHUNKS:
            result[f"chunk of {chunk}, ms"] = chunk_step(rendering, task, chunk, repeats)
        result["reset, ms"] = reset(rendering, task, repeats)
        # Without an expert for this suite there is no episode that ends in success.
        demonstration = _in_process(
            baselines.demonstration, suite, options.assets, task, list(DEMONSTRATED)
        )
        if demonstration:
            for chunk in CHUNKS:
                seconds = episode(rendering, task, demonstration, chunk, repeats)
                result[f"episode, chunks of {chunk}, s"] = seconds
        # Last, when every env has grown to what a run would see.
        memory = {name: memory_mb(one_env) for name, one_env in rendering.items()}
        result["memory per worker, MB"] = memory
    result["first picture of a process, s"] = first_picture(make, task, repeats)
    for count in _worker_counts(options.workers):
        measurement = f"{count} workers, control steps per s, chunks of 10"
        result[measurement] = throughput(make, task, count, repeats)
    return result


def _worker_counts(text: str) -> list[int]:
    """The numbers of "1,2,4"; none of "".

    Raises:
      ValueError: it is no such list.
    """
    counts = [count for count in text.split(",") if count]
    for count in counts:
        if not count.isdecimal() or not 1 <= int(count) <= MOST_WORKERS:
            raise ValueError(
                f"--workers={text} has {count!r}; write numbers from 1 to {MOST_WORKERS} like 1,2,4"
            )
    return list(map(int, counts))


def _suite_and_task(name: str) -> tuple[str, int]:
    """The parts of "libero_object:0"."""
    suite, _, task = name.partition(":")
    known = suite in (*files.OWN_FILES, *files.LISTS) and task.isdigit()
    if not known or int(task) >= len(files.tasks(suite)):
        raise ValueError(f"--tasks has {name!r}; write suite:task, for example libero_object:0")
    return suite, int(task)


def _open(
    stack: contextlib.ExitStack, make: Factories, names: Iterable[str], num_envs: int
) -> dict[str, pool.EnvPool]:
    """A pool of each, every env in a worker of its own, closed with the stack."""
    pools = {}
    for name in names:
        opened = pool.EnvPool(make[name], num_envs, num_envs, **POOL)
        pools[name] = stack.enter_context(opened)
    return pools


# ---- measurements ------------------------------------------------------------------------------


def control_step(pools: Pools, task: int, repeats: int) -> dict[str, float]:
    """Milliseconds of one control step (50 ms of simulated time) without rendering.

    And of its 25 bare physics steps.
    """
    for name in BARE:
        _reset(pools[name], task, 0)

    def step_ms(name: str, repeat: int) -> float:
        actions = _random_actions(repeat, CONTROL_STEPS)
        answer = _send(pools[name], actions)
        # These envs report the seconds of all steps as their reward (baselines.py).
        return 1e3 * float(answer.reward[0]) / CONTROL_STEPS

    return interleaved.medians(BARE, step_ms, repeats)


def chunk_step(pools: Pools, task: int, chunk: int, repeats: int) -> dict[str, float]:
    """Milliseconds of one action chunk with its pictures.

    Each repeat starts anew, so that all see the same states.
    """

    def play(one_env: pool.EnvPool) -> None:
        for seed in range(CHUNKS_PER_REPEAT):
            _send(one_env, _random_actions(seed, chunk))

    def chunk_ms(name: str, repeat: int) -> float:
        _reset(pools[name], task, 0)
        return 1e3 * _inside_s(pools[name], play) / CHUNKS_PER_REPEAT

    return interleaved.medians(pools, chunk_ms, repeats)


def reset(pools: Pools, task: int, repeats: int) -> dict[str, float]:
    """Milliseconds from one episode to the first observation of the next.

    Stock: hard reset, init state, settle steps.
    """
    # Ours keeps settled states: a training run pays for each once per worker.
    for one_env in pools.values():
        _reset(one_env, task, 0)
        _reset(one_env, task, 1)

    def reset_ms(name: str, repeat: int) -> float:
        def once(one_env: pool.EnvPool) -> None:
            _reset(one_env, task, repeat % 2)

        return 1e3 * _inside_s(pools[name], once)

    return interleaved.medians(pools, reset_ms, repeats)


def episode(
    pools: Pools, task: int, demonstration: baselines.Demonstration, chunk: int, repeats: int
) -> dict[str, float]:
    """Seconds of one whole episode.

    Reset, settle, the recorded actions of an expert in chunks, the end at success.
    """
    actions = demonstration.actions

    def play(one_env: pool.EnvPool) -> None:
        _reset(one_env, task, demonstration.init_state)
        for start in range(0, len(actions), chunk):
            answer = _send(one_env, actions[start : start + chunk])
            if answer.terminated[0] or answer.truncated[0]:
                break

    def episode_s(name: str, repeat: int) -> float:
        return _inside_s(pools[name], play)

    return interleaved.medians(pools, episode_s, repeats)


def first_picture(make: Factories, task: int, repeats: int) -> dict[str, float]:
    """Seconds of wall clock from the start of a worker to its first observation."""

    def start_s(name: str, repeat: int) -> float:
        with contextlib.ExitStack() as stack:
            kind = name
            if name == FRESH:
                stack.enter_context(_empty_cache())
                kind = "ours light"
            began_s = time.perf_counter()
            pools = _open(stack, make, [kind], num_envs=1)
            _reset(pools[kind], task, 0)
            return time.perf_counter() - began_s

    return interleaved.medians((*RENDERING, FRESH), start_s, repeats)


@contextlib.contextmanager
def _empty_cache() -> Iterator[None]:
    """Workers that start meanwhile find nothing that was made once per machine."""
    variable = "XDG_CACHE_HOME"
    before = os.environ.get(variable)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[variable] = folder
        try:
            yield
        finally:
            del os.environ[variable]
            if before is not None:
                os.environ[variable] = before


def memory_mb(one_env: pool.EnvPool) -> float:
    """Resident memory of the pool's only worker, after all that was measured."""
    (process_id,) = one_env.process_ids
    return psutil.Process(process_id).memory_info().rss / 1e6


def throughput(make: Factories, task: int, count: int, repeats: int) -> dict[str, float]:
    """Control steps per second of wall clock, chunks of 10, with pictures.

    count: workers, of one env each.
    """
    slots = list(range(count))
    with contextlib.ExitStack() as stack:
        pools = _open(stack, make, RENDERING, num_envs=count)
        # Slot s plays init state s, as the slots of a rollout differ.
        for envs in pools.values():
            envs.reset(slots, [task] * count, slots)
            envs.recv(slots)

        def steps_per_s(name: str, repeat: int) -> float:
            # All workers at once: what counts is how they share the cores.
            start_s = time.perf_counter()
            pools[name].send(slots, np.stack([_random_actions(repeat, 10)] * count))
            num_steps = pools[name].recv(slots).num_steps.sum()
            return float(num_steps) / (time.perf_counter() - start_s)

        return interleaved.medians(RENDERING, steps_per_s, repeats)


def as_text(result: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """A table per task: every value beside its ratio to stock (above 1: ours is better)."""
    tables = []
    for task, measurements in result.items():
        lines = [_line(name, values) for name, values in measurements.items()]
        tables.append(f"\n{task}\n{columns.aligned(lines, left=len(lines[0]))}")
    note = "medians of interleaved repeats; (x): how many times better than the first"
    return "\n".join([*tables, "", note])


def _line(measurement: str, values: Mapping[str, float]) -> list[str]:
    (first, base_value), *others = values.items()
    line = [f"  {measurement}", f"{first} {base_value:.4g}"]
    for name, value in others:
        # Of times and memory less is better, of rates more.
        ratio = base_value / value
        if "per s" in measurement:
            ratio = value / base_value
        line.append(f"{name} {value:.4g} ({ratio:.1f}x)")
    return line


# ---- one env in a pool of its own --------------------------------------------------------------


def _reset(one_env: pool.EnvPool, task: int, init_state: int) -> base.TimeStep:
    one_env.reset([0], [task], [init_state])
    return one_env.recv([0])


def _send(one_env: pool.EnvPool, actions_Ia: np.ndarray) -> base.TimeStep:
    one_env.send([0], actions_Ia[None])
    return one_env.recv([0])


def _inside_s(one_env: pool.EnvPool, play: Callable[[pool.EnvPool], None]) -> float:
    """Seconds that the env itself took while it was played with."""
    before_s = one_env.env_seconds[0]
    play(one_env)
    return float(one_env.env_seconds[0] - before_s)


def _random_actions(seed: int, count: int) -> np.ndarray:
    """[count, 7] in [-1, 1]."""
    return np.random.default_rng(seed).uniform(-1, 1, (count, 7))


def _in_process(function: Callable, *arguments: Any) -> Any:
    """Run in a process with a worker's environment: this one stays free of simulators."""
    with worker.processes(1) as executor:
        with child.shielded():
            future = executor.submit(function, *arguments)
        return future.result()
