"""A folder of tasks that somebody made: which files are a task, and what is wrong with them.

    FOLDER/NAME.bddl          scene, goal and instruction, as LIBERO reads them
    FOLDER/NAME.pruned_init   its start states as LIBERO's tools write them, or .init, or .npy

Builds no simulator and imports nothing of LIBERO: what LIBERO itself says of a task is the business
of `preflight.py`.
"""

import functools
import os
import pathlib
import zlib

import numpy as np

from pirl_jax.envs.libero import stored_states

STATES = (".pruned_init", ".init", ".npy")
MAX_TASKS = 1000
REMEDY = "write them again, e.g. with numpy.save(NAME.npy, states) as float64 [states, 1 + nq + nv]"


def is_folder(suite: str) -> bool:
    """Whether the name of a suite is the path of such a folder."""
    return os.sep in suite


@functools.cache
def names(folder: str) -> tuple[str, ...]:
    """Its tasks, sorted.

    Raises:
        ValueError: there is no such folder, or no task in it.
    """
    place = pathlib.Path(folder)
    if not place.is_dir():
        listed = "; a folder of tasks stands alone, in no list of suites" if "," in folder else ""
        raise ValueError(
            f"env.suite={folder} is no folder; name one that holds NAME.bddl and NAME.pruned_init"
            f" of each task{listed}"
        )
    try:
        found = sorted(path.stem for path in place.iterdir() if path.suffix == ".bddl")
    except OSError as error:
        raise ValueError(
            f"env.suite={folder} cannot be read ({error.strerror}); change its permissions"
        ) from error
    if not 0 < len(found) <= MAX_TASKS:
        raise ValueError(
            f"env.suite={folder} holds {len(found)} files NAME.bddl; put 1 to {MAX_TASKS} tasks"
            " into it, not into folders below it"
        )
    return tuple(found)


def bddl_file(folder: str, name: str) -> pathlib.Path:
    """The file that describes the task's scene and goal."""
    return pathlib.Path(folder, f"{name}.bddl")


def init_file(folder: str, name: str) -> pathlib.Path:
    """The file of the task's start states.

    Raises:
        ValueError: there is none, or more than one.
    """
    candidates = [pathlib.Path(folder, name + ending) for ending in STATES]
    found = [path for path in candidates if path.is_file()]
    if not found:
        endings = ", ".join(STATES)
        raise ValueError(
            f"{folder} has no start states for {name}.bddl; put {name} with one of {endings}"
            " beside it"
        )
    if len(found) > 1:
        both = " and ".join(path.name for path in found)
        raise ValueError(f"{folder} has both {both}; keep the one whose start states you mean")
    return found[0]


def init_states(folder: str, name: str) -> np.ndarray:
    """[init states, 1 + nq + nv] float64, as many as the file has.

    Raises:
        ValueError: the file is missing, damaged, or holds anything else.
    """
    return stored_states.read(init_file(folder, name), count=None, remedy=REMEDY)


@functools.cache
def counts(folder: str) -> tuple[int, ...]:
    """How many start states each task has.

    Raises:
        ValueError: a file of theirs is wrong.
    """
    return tuple(len(init_states(folder, name)) for name in names(folder))


def number(name: str) -> int:
    """What fixtures are drawn from: of the task alone, whatever else is in its folder."""
    return zlib.crc32(name.encode())


def shortened(folder: str) -> str:
    """What is left out, in a sentence; "" where every start state is played."""
    found = counts(folder)
    if min(found) == max(found):
        return ""
    fewest = names(folder)[found.index(min(found))]
    return (
        f"the tasks in {folder} have {min(found)} to {max(found)} start states; the first"
        f" {min(found)} of each are played, as many as {fewest} has"
    )
