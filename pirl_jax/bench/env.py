"""LIBERO against stock LIBERO: control steps, chunks, resets, whole episodes, memory, workers.

Everything is an env in a worker process of the same pool, asked with the same actions in turn; times are taken inside the worker,
except where workers compete (then it is the wall clock).
"""

import concurrent.futures
import contextlib
import multiprocessing
import statistics
import time

import numpy as np
import psutil

from pirl_jax.bench import baselines
from pirl_jax.envs.libero import files
from pirl_jax.envs.pool import pool as pools
from pirl_jax.envs.pool import worker

CHUNKS = (5, 10)  # executed actions per decision
CONTROL_STEPS = 50  # per repeat, without rendering
POOL = {  # of every pool that is measured
    "timeout_s": 600.0,
    "restarts_per_hour": 20,
    "recycle_episodes": 0,
    "recycle_growth_gb": 0.0,
    "render_devices": (),
}


def add_arguments(parser) -> None:
    parser.add_argument(
        "--tasks",
        default="libero_object:0,libero_spatial:0",
        help="suite:task, separated by commas",
    )
    parser.add_argument(
        "--image-size", type=int, default=128, help="pixels of both cameras (default 128)"
    )
    parser.add_argument(
        "--assets", default=None, help="LIBERO's assets; default $PIRL_LIBERO_ASSETS"
    )
    parser.add_argument(
        "--workers",
        default="1,2,4",
        help="numbers of workers in the scaling measurement; '' leaves it out",
    )


def run(options) -> dict:
    """{suite:task: {measurement: {name: value}}}"""
    files.find_assets(options.assets)
    return {name: _task(name, options) for name in options.tasks.split(",")}


def _task(name: str, options) -> dict:
    suite, _, task = name.partition(":")
    if suite not in files.SUITES or not task.isdigit() or int(task) >= len(files.tasks(suite)):
        raise ValueError(f"--tasks has {name!r}; write suite:task, for example libero_object:0")
    task = int(task)
    make = baselines.factories(suite, options.assets, options.image_size)
    with contextlib.ExitStack() as stack:
        pool = {key: stack.enter_context(pools.EnvPool(make[key], 1, 1, **POOL)) for key in make}
        for one in pool.values():
            _reset(one, task, 0)  # builds the simulator; not part of any measurement
        result = {"control step, ms": control_step(pool, task, options.repeats)}
        rendering = {key: pool[key] for key in ("stock", "ours", "ours light")}
        for chunk in CHUNKS:
            result[f"chunk of {chunk}, ms"] = chunk_step(rendering, task, chunk, options.repeats)
        result["reset, ms"] = reset(rendering, task, options.repeats)
        demonstration = _in_process(
            baselines.demonstration, suite, options.assets, task, list(range(5))
        )
        if demonstration:
            for chunk in CHUNKS:
                result[f"episode, chunks of {chunk}, s"] = episode(
                    rendering, task, *demonstration, chunk, options.repeats
                )
        result["memory per worker, MB"] = {key: memory_mb(one) for key, one in rendering.items()}
    for count in [int(count) for count in options.workers.split(",") if count]:
        result[f"{count} workers, control steps per s, chunks of 10"] = throughput(
            make, task, count, options.repeats
        )
    return result


def control_step(pool: dict, task: int, repeats: int) -> dict[str, float]:
    """Milliseconds of one control step (50 ms of simulated time) without rendering, and of its 25 bare physics steps."""
    names = ("stock, no rendering", "ours, no rendering", "mj_step alone")
    for name in names:
        _reset(pool[name], task, 0)

    def once(name, repeat):
        return (
            1e3
            * float(_send(pool[name], _random_actions(repeat, CONTROL_STEPS)).reward[0])
            / CONTROL_STEPS
        )

    return interleaved(names, once, repeats)


def chunk_step(pool: dict, task: int, chunk: int, repeats: int) -> dict[str, float]:
    """Milliseconds of one action chunk with its pictures; each repeat starts anew, so that all see the same states."""

    def once(name, repeat):
        _reset(pool[name], task, 0)
        return (
            1e3
            * _inside_s(
                pool[name], lambda: [_send(pool[name], _random_actions(i, chunk)) for i in range(3)]
            )
            / 3
        )

    return interleaved(pool, once, repeats)


def reset(pool: dict, task: int, repeats: int) -> dict[str, float]:
    """Milliseconds from one episode to the first observation of the next (stock: hard reset, init state, settle steps)."""
    for one in pool.values():
        for init_state in range(
            2
        ):  # ours keeps settled states: a training run pays for each once per worker
            _reset(one, task, init_state)

    def once(name, repeat):
        return 1e3 * _inside_s(pool[name], lambda: _reset(pool[name], task, repeat % 2))

    return interleaved(pool, once, repeats)


def episode(
    pool: dict, task: int, init_state: int, actions_TA, chunk: int, repeats: int
) -> dict[str, float]:
    """Seconds of one whole episode: reset, settle, the recorded actions of an expert in chunks, the end at success."""

    def play(one):
        _reset(one, task, init_state)
        for start in range(0, len(actions_TA), chunk):
            step = _send(one, actions_TA[start : start + chunk])
            if step.terminated[0] or step.truncated[0]:
                break

    return interleaved(
        pool, lambda name, _: _inside_s(pool[name], lambda: play(pool[name])), repeats
    )


def memory_mb(pool: pools.EnvPool) -> float:
    """Resident memory of the pool's only worker, after all that was measured."""
    return psutil.Process(pool.process_ids[0]).memory_info().rss / 1e6


def throughput(make: dict, task: int, count: int, repeats: int) -> dict[str, float]:
    """Control steps per second of wall clock with `count` workers of one env each, chunks of 10, with pictures."""
    names = ("stock", "ours", "ours light")
    with contextlib.ExitStack() as stack:
        pool = {
            name: stack.enter_context(pools.EnvPool(make[name], count, count, **POOL))
            for name in names
        }
        slots = list(range(count))
        for one in pool.values():
            one.reset(slots, [task] * count, slots)
            one.recv(slots)

        def once(name, repeat):
            start_s = time.perf_counter()
            pool[name].send(slots, np.stack([_random_actions(repeat, 10)] * count))
            steps = pool[name].recv(slots).num_steps.sum()
            return float(steps) / (time.perf_counter() - start_s)

        return interleaved(names, once, repeats)


def as_text(result: dict) -> str:
    """A table per task: every value beside its ratio to stock (above 1: ours is better)."""
    lines = []
    for task, measurements in result.items():
        lines += ["", task]
        for name, values in measurements.items():
            (base_name, base), *others = values.items()
            cells = [f"{base_name} {base:.4g}"]
            for other, value in others:
                ratio = value / base if "per s" in name else base / value
                cells.append(f"{other} {value:.4g} ({ratio:.1f}x)")
            lines.append(f"  {name:<46} " + "   ".join(cells))
    return "\n".join(
        [*lines, "", "medians of interleaved repeats; (x): how many times better than the first"]
    )


def interleaved(names, once, repeats: int) -> dict[str, float]:
    """Median of `once(name, repeat)` for every name; the names take turns."""
    return {name: statistics.median(values) for name, values in turns(names, once, repeats).items()}


def turns(names, once, repeats: int) -> dict[str, list[float]]:
    """`once(name, repeat)` of every name and repeat; the names take turns."""
    values = {name: [] for name in names}
    for repeat in range(repeats):
        for name in names:
            values[name].append(once(name, repeat))
    return values


def _reset(pool: pools.EnvPool, task: int, init_state: int):
    pool.reset([0], [task], [init_state])
    return pool.recv([0])


def _send(pool: pools.EnvPool, actions_IA: np.ndarray):
    pool.send([0], actions_IA[None])
    return pool.recv([0])


def _inside_s(pool: pools.EnvPool, function) -> float:
    """Seconds that the pool's env itself took."""
    before_s = pool.env_seconds[0]
    function()
    return float(pool.env_seconds[0] - before_s)


def _random_actions(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, 7))


def _in_process(function, *arguments):
    """Run in a process with a worker's environment: this one stays free of simulators."""
    context = multiprocessing.get_context("spawn")
    with (
        worker.spawning(),
        concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as executor,
    ):
        return executor.submit(function, *arguments).result()
