"""Checkpoints as folders: which stand, whether they are intact, how one takes the place of others.

    12/                   a checkpoint; a folder bears a bare number only when it is complete
    12/checksums.json     size and CRC-32C of every other file in it
    12.partial*/          grows until it is complete; a killed save's goes with the next start
    12.replaced/          bore the number until another one of the same iteration was complete
    12.damaged/           a resume passed it over; nobody removes it
    12.abandoned/         of a branch that was left; goes once the new branch has a checkpoint

Other names are nobody's business here.  One process writes (core/locks.py says which); whoever
reads holds the checkpoint, and it is not removed before.  Knows neither arrays nor orbax.
"""

from collections.abc import Iterable, Iterator
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shutil

from pirl_jax.core import atomic, locks, outside
from pirl_jax.weights import checksums

NUMBER = re.compile(r"0|[1-9]\d*")
SUMS = "checksums.json"
METHOD = "crc32c"
METADATA = "_CHECKPOINT_METADATA"  # orbax's, the file by which a reader holds a checkpoint
PROMISE = {"checksums": METHOD}  # in that file: without checksums the folder is not whole


def standing(directory: pathlib.Path) -> list[int]:
    """Iterations of the complete checkpoints, the oldest first."""
    if not directory.is_dir():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if _is_checkpoint(path))


def _is_checkpoint(path: pathlib.Path) -> bool:
    try:
        return bool(NUMBER.fullmatch(path.name)) and any(path.iterdir())
    except (FileNotFoundError, NotADirectoryError):  # it goes just now, or is a file
        return False


def partial(directory: pathlib.Path, iteration: int) -> pathlib.Path:
    """Where a checkpoint grows."""
    return directory / f"{iteration}.partial"


def publish(directory: pathlib.Path, iteration: int) -> None:
    """Give a complete checkpoint its number; whatever it replaces goes afterwards."""
    new = directory / str(iteration)
    if new.exists():
        atomic.set_aside(new, ".replaced" if _is_checkpoint(new) else ".damaged")
    partial(directory, iteration).rename(new)
    atomic.sync_folder(directory)
    for later in standing(directory):
        if later > iteration:
            abandon(directory, later)
    for pattern in ("*.replaced*", "*.abandoned*"):
        _remove_all(directory, pattern)


def abandon(directory: pathlib.Path, iteration: int) -> None:
    """No resume finds it any more."""
    atomic.set_aside(directory / str(iteration), ".abandoned")


def remove(directory: pathlib.Path, iteration: int) -> bool:
    """Never half of it under its number; False: somebody reads it."""
    with locks.removing(directory / str(iteration) / METADATA) as free:
        if not free:
            return False
        abandon(directory, iteration)
        _remove_all(directory, f"{iteration}.abandoned*")
    return True


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


# ---- checksums -----------------------------------------------------------------------------------


def seal(folder: pathlib.Path) -> None:
    """Note the checksum of every file; then all of it is on the disk."""
    sums = {}
    for name, path in _files(folder).items():
        with path.open("rb") as file:
            os.fsync(file.fileno())
        sums[name] = {"bytes": path.stat().st_size, METHOD: checksums.DIGESTS[METHOD](path)}
    # Names of ours, as they are: none of them is hidden, whatever the environment calls a secret.
    atomic.write_text(folder / SUMS, json.dumps(sums, indent=2) + "\n")
    for path in folder.rglob("*"):
        if path.is_dir():
            atomic.sync_folder(path)


def _files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """By their names in the folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in paths if path.name != SUMS}


def damage(folder: pathlib.Path) -> str:
    """What is wrong with a checkpoint, in words; "" where it is intact.

    Raises:
      ValueError: it may not be read, which says nothing about it.
    """
    try:
        return _damage(folder)
    except PermissionError as error:
        raise ValueError(
            f"checkpoint {folder} cannot be read ({error.strerror}: {error.filename}); "
            f"let this user read it"
        ) from error
    except OSError as error:
        return f"{error.filename} cannot be read ({error.strerror})"
    except ValueError as error:
        return str(error)


def _damage(folder: pathlib.Path) -> str:
    metadata = outside.parse_json((folder / METADATA).read_bytes(), METADATA)
    if not (folder / SUMS).is_file():
        # Earlier versions wrote none.
        promised = outside.part(metadata, "custom_metadata", dict, METADATA)
        return f"{SUMS} is missing" if promised else ""
    noted = outside.parse_json((folder / SUMS).read_bytes(), SUMS)
    files = _files(folder)
    for name in outside.part(noted, "", dict, SUMS):
        if name not in files:
            return f"{name} is missing"
        size = files[name].stat().st_size
        expected = outside.part(noted[name], "bytes", int, SUMS)
        if size != expected:
            return f"{name} has {size} bytes and should have {expected}"
    for name, entry in noted.items():
        if checksums.DIGESTS[METHOD](files[name]) != outside.part(entry, METHOD, str, SUMS):
            return f"{name} has another checksum"
    return ""


@dataclasses.dataclass(frozen=True)
class Survey:
    """Of the checkpoints of a run, from the newest down to the first intact one."""

    newest: int | None  # that is intact; None: there is none
    damaged: dict[int, str]  # iteration -> what is wrong


def survey(directory: pathlib.Path, last: int | None = None) -> Survey:
    """Look for the newest intact checkpoint, of those before `last`."""
    damaged = {}
    for iteration in reversed(standing(directory)):
        if last is not None and iteration >= last:
            continue
        wrong = damage(directory / str(iteration))
        if not wrong:
            return Survey(iteration, damaged)
        damaged[iteration] = wrong
    return Survey(None, damaged)


def newest(directory: pathlib.Path) -> Survey:
    """The newest intact checkpoint, for a resume.

    Raises:
      ValueError: there are checkpoints, and none of them is intact.
    """
    found = survey(directory)
    lost = [path.name for path in sorted(directory.glob("[0-9]*.damaged*"))]
    if found.newest is None and (found.damaged or lost):
        reasons = [f"{number}: {wrong}" for number, wrong in found.damaged.items()]
        raise ValueError(
            f"no checkpoint in {directory} is intact ({'; '.join([*reasons, *lost])}); "
            f"copy one there again, or start in another run.directory"
        )
    return found


def set_aside(directory: pathlib.Path, damaged: Iterable[int]) -> None:
    """No resume finds them any more; they stay, for whoever wants to look."""
    for iteration in damaged:
        atomic.set_aside(directory / str(iteration), ".damaged")


# ---- readers -------------------------------------------------------------------------------------


@contextlib.contextmanager
def holding(path: pathlib.Path, iteration: int = -1) -> Iterator[pathlib.Path]:
    """Nobody removes a checkpoint of a run of ours before the block ends -> its folder.

    Any other path comes back as it is.

    Args:
      path: a run directory, the checkpoints in it, one of them, or something else.
      iteration: -1 is the newest.

    Raises:
      ValueError: it is not there.
    """
    directory = path if path.name == "checkpoints" else path / "checkpoints"
    if path.parent.name == "checkpoints" and NUMBER.fullmatch(path.name):
        directory = path.parent
        iteration = int(path.name)
    if not any(_is_ours(directory / str(number)) for number in standing(directory)):
        yield path
        return
    held, folder = _hold(directory, iteration)
    with held:
        yield folder


def require_intact(folder: pathlib.Path) -> None:
    """For readers, who change nothing.

    Raises:
      ValueError: it is damaged; the sentence names the newest older one that is not.
    """
    if not _is_ours(folder):
        return
    wrong = damage(folder)
    if wrong:
        older = survey(folder.parent, int(folder.name)).newest
        remedy = "copy it again"
        if older is not None:
            remedy = f"the newest intact one is {folder.parent / str(older)} (--iteration {older})"
        raise ValueError(f"checkpoint {folder} is damaged ({wrong}); {remedy}")


def _is_ours(folder: pathlib.Path) -> bool:
    """Other trainers number their folders too."""
    named = bool(NUMBER.fullmatch(folder.name))
    return named and ((folder / "state").exists() or (folder / SUMS).exists())


def _hold(
    directory: pathlib.Path, iteration: int
) -> tuple[contextlib.AbstractContextManager, pathlib.Path]:
    """-> (what lets go of it, its folder)."""
    while True:
        there = standing(directory)
        wanted = there[-1] if iteration < 0 and there else iteration
        if wanted not in there:
            raise ValueError(
                f"{directory} holds no checkpoint of iteration {iteration}; it holds {there}"
            )
        folder = directory / str(wanted)
        held = locks.reading(folder / METADATA)
        if held is not None:
            return held, folder
        if folder.exists() and not (folder / METADATA).is_file():
            return contextlib.nullcontext(), folder  # damaged, which is said later on


def _remove_all(directory: pathlib.Path, pattern: str) -> None:
    for path in directory.glob(pattern):
        # What cannot be removed now is in nobody's way: the next start tries again.
        with contextlib.suppress(OSError):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
