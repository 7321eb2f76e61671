"""Checkpoints as folders: which stand, and how one takes the place of others.

    12/              a checkpoint; a folder bears a bare number only when it is complete
    12.partial*/     grows until it is complete; what a killed save left goes with the next start
    12.replaced/     bore the number until another one of the same iteration was complete
    12.damaged/      bore the number and was no checkpoint; nobody removes it
    12.abandoned/    of a branch that was left; goes once a checkpoint of the new branch is complete

Other names are nobody's business here.  Knows neither arrays nor orbax; one writer per folder.
"""

import pathlib
import re
import shutil

from pirl_jax.core import atomic

NUMBER = re.compile(r"0|[1-9]\d*")


def standing(directory: pathlib.Path) -> list[int]:
    """Iterations of the complete checkpoints, the oldest first."""
    if not directory.is_dir():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if _is_checkpoint(path))


def _is_checkpoint(path: pathlib.Path) -> bool:
    return bool(NUMBER.fullmatch(path.name)) and path.is_dir() and any(path.iterdir())


def partial(directory: pathlib.Path, iteration: int) -> pathlib.Path:
    """Where a checkpoint grows."""
    return directory / f"{iteration}.partial"


def publish(directory: pathlib.Path, iteration: int) -> None:
    """Give a complete checkpoint its number; whatever it replaces goes afterwards."""
    new = directory / str(iteration)
    if new.exists():
        kind = "replaced" if _is_checkpoint(new) else "damaged"
        new.rename(_free(directory / f"{iteration}.{kind}"))
    partial(directory, iteration).rename(new)
    atomic.sync_folder(directory)
    for later in standing(directory):
        if later > iteration:
            abandon(directory, later)
    for pattern in ("*.replaced*", "*.abandoned*"):
        _remove_all(directory, pattern)


def abandon(directory: pathlib.Path, iteration: int) -> None:
    """No resume finds it any more."""
    old = directory / str(iteration)
    old.rename(_free(directory / f"{iteration}.abandoned"))
    atomic.sync_folder(directory)


def remove(directory: pathlib.Path, iteration: int) -> None:
    """Never half of it under its number."""
    abandon(directory, iteration)
    _remove_all(directory, f"{iteration}.abandoned*")


def tidy(directory: pathlib.Path) -> None:
    """Clear away what a killed run left, before a new one writes."""
    for old in directory.glob("*.replaced*"):
        number = directory / old.name.partition(".")[0]
        if not number.exists():  # killed between the two renames
            old.rename(number)
    for pattern in ("*.replaced*", "*.partial*", "*.orbax-checkpoint-tmp*"):
        _remove_all(directory, pattern)


def drop_partial(directory: pathlib.Path, iteration: int) -> None:
    """After a save that failed: what there is of it fills a disk that may be full."""
    _remove_all(directory, f"{iteration}.partial*")


def _remove_all(directory: pathlib.Path, pattern: str) -> None:
    for path in directory.glob(pattern):
        # What cannot be removed now is in nobody's way: the next start tries again.
        shutil.rmtree(path, ignore_errors=True)


def _free(path: pathlib.Path) -> pathlib.Path:
    """The name, or the name with the first number behind it that nothing bears."""
    count = 1
    free = path
    while free.exists():
        count += 1
        free = path.with_name(f"{path.name}_{count}")
    return free
