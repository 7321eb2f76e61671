"""Light meshes and textures of the tasks of a run, made before its simulators start.

Once per machine, by as many processes as it has cores; each file is made by one of them.  Where
this has not run, a simulator makes what it lacks when it is built.
`python -m pirl_jax.envs.libero.light TASKS` is one of the processes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import concurrent.futures
import dataclasses
import hashlib
import math
import os
import pickle
import sys
from typing import NamedTuple

from pirl_jax.envs import caches, child
from pirl_jax.envs.libero import assets as asset_files
from pirl_jax.envs.libero import files, kept, meshes, textures
from pirl_jax.envs.libero import simulator as simulators

FOLDER = "prepared"  # an empty file per task that is done
# Of more tasks, so many at equal distances: they share nearly all files.
MAX_TASKS = 150
TASKS_PER_PROCESS = 4  # one after another: a process takes seconds to start
PROCESSES_PER_TASK = 4  # at most: few of a task's files take long
TIMEOUT_S = 600.0  # of a process


class Task(NamedTuple):
    """What a simulator of one task is built from, and the name of the note that it is done."""

    setup: simulators.Setup
    note: str


def missing(setups: Sequence[simulators.Setup]) -> list[Task]:
    """The tasks that nobody has prepared on this machine yet; forgets what was long unused."""
    for name in (meshes.FOLDER, textures.FOLDER):
        kept.trim(name)
    recipe = (meshes.RECIPE, textures.RECIPE, files.version("hf-libero"))
    assets = {}  # which they are, by folder
    found = []
    step = max(1, math.ceil(len(setups) / MAX_TASKS))
    for setup in setups[::step]:
        if setup.assets not in assets:
            assets[setup.assets] = asset_files.identity(setup.assets)
        # The pictures of a task depend on neither.
        setup = dataclasses.replace(setup, settle_steps=1, seed=0)
        about = repr((recipe, assets[setup.assets], setup))
        note = hashlib.sha256(about.encode()).hexdigest()[:24]
        if not caches.find(FOLDER, note).exists():
            found.append(Task(setup, note))
    return found


def prepare(
    tasks: Sequence[Task], variables: Mapping[str, str], advance: Callable[[int], None]
) -> None:
    """Make the files of these tasks; `advance(count)` after some of them.

    `variables` are the environment variables that simulators start with.

    Raises:
        ValueError: a process failed; the sentence says how.
    """
    cores = os.cpu_count() or 1
    # Of few tasks, several processes work at each.
    times = min(PROCESSES_PER_TASK, max(1, cores // len(tasks)))
    groups = [tasks[i : i + TASKS_PER_PROCESS] for i in range(0, len(tasks), TASKS_PER_PROCESS)]
    if len(groups) < cores:
        groups = [[task] for task in tasks]
    with concurrent.futures.ThreadPoolExecutor(cores) as threads:
        at_work = []
        for group in groups:
            same = [threads.submit(_ask, group, variables) for _ in range(times)]
            at_work.append((group, same))
        for group, same in at_work:
            for process in same:
                process.result()
            for task in group:
                files.write_whole(kept.folder(FOLDER) / task.note, b"")
            advance(len(group))


def _ask(group: Sequence[Task], variables: Mapping[str, str]) -> None:
    """Have a process of its own build these tasks."""
    setups = [task.setup for task in group]
    arguments = ["-m", "pirl_jax.envs.libero.light", pickle.dumps(setups).hex()]
    try:
        child.ask(arguments, variables, TIMEOUT_S)
    except child.ChildError as error:
        names = ", ".join(f"{setup.suite} {setup.task}" for setup in setups)
        raise ValueError(
            f"the light meshes and textures of {names} could not be made ({error}); run"
            " python -m pirl_jax.doctor, or set env.render_quality=exact"
        ) from error


def build(setups: Iterable[simulators.Setup]) -> dict:
    """In the process: a simulator makes what it lacks, and its first step compiles the controller.

    -> nothing to tell
    """
    for setup in setups:
        simulator = simulators.Simulator(setup)
        simulator.start(init_state=0)
        simulator.close()
    return {}


if __name__ == "__main__":
    child.answer(lambda: build(pickle.loads(bytes.fromhex(sys.argv[1]))))
