"""Light meshes and textures of the tasks of a run, made before its simulators start.

Once per machine, by as many processes as it has cores; each file is made by one of them.  Where
this has not run, a simulator makes what it lacks when it is built.
`python -m pirl_jax.envs.libero.light ASSETS SUITE TASK,TASK,...` is one of the processes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import concurrent.futures
import hashlib
import os
import pathlib
import sys
from typing import NamedTuple

from pirl_jax.envs import child
from pirl_jax.envs.libero import assets as asset_files
from pirl_jax.envs.libero import files, kept, meshes, textures
from pirl_jax.envs.libero import simulator as simulators

FOLDER = "prepared"  # an empty file per task that is done
TASKS_PER_PROCESS = 4  # one after another: a process takes seconds to start
PROCESSES_PER_TASK = 4  # at most: a task has about twenty files
TIMEOUT_S = 600.0  # of a process


class Task(NamedTuple):
    """One task, and the name of the note that it is done."""

    suite: str
    task: int
    note: str


def missing(suite: str, tasks: Iterable[int], assets: pathlib.Path) -> list[Task]:
    """The tasks for which nobody has prepared this machine yet; forgets what was long unused."""
    for name in (meshes.FOLDER, textures.FOLDER):
        kept.trim(name)
    version = (asset_files.identity(assets), meshes.RECIPE, textures.RECIPE)
    found = []
    for task in tasks:
        text = files.bddl_file(suite, task).read_text()
        note = hashlib.sha256(repr((version, text)).encode()).hexdigest()[:24]
        if not (kept.folder(FOLDER) / note).exists():
            found.append(Task(suite, task, note))
    return found


def prepare(
    tasks: Sequence[Task],
    assets: pathlib.Path,
    variables: Mapping[str, str],
    advance: Callable[[int], None],
) -> None:
    """Make the files of these tasks of one suite; `advance(count)` after some of them.

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
            same = [threads.submit(_ask, group, assets, variables) for _ in range(times)]
            at_work.append((group, same))
        for group, same in at_work:
            for process in same:
                process.result()
            for task in group:
                files.write_whole(kept.folder(FOLDER) / task.note, b"")
            advance(len(group))


def _ask(group: Sequence[Task], assets: pathlib.Path, variables: Mapping[str, str]) -> None:
    """Have a process of its own build these tasks."""
    suite = group[0].suite
    numbers = ",".join(str(task.task) for task in group)
    arguments = ["-m", "pirl_jax.envs.libero.light", str(assets), suite, numbers]
    try:
        child.ask(arguments, variables, TIMEOUT_S)
    except child.ChildError as error:
        raise ValueError(
            f"the light meshes and textures of {suite}, tasks {numbers}, could not be made"
            f" ({error}); run python -m pirl_jax.doctor, or set env.render_quality=exact"
        ) from error


def build(assets: str, suite: str, tasks: str) -> dict:
    """In the process: a simulator makes what it lacks, and its first step compiles the controller.

    -> nothing to tell
    """
    for task in tasks.split(","):
        setup = simulators.Setup(
            suite, int(task), pathlib.Path(assets), settle_steps=1, seed=0, light=True
        )
        simulator = simulators.Simulator(setup)
        simulator.start(init_state=0)
        simulator.close()
    return {}


if __name__ == "__main__":
    child.answer(lambda: build(*sys.argv[1:]))
