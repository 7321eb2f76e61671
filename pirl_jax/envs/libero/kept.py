"""Files made once per machine and kept in a cache: who makes which, how many stay.

Any number of processes may want the same files at once: each file is made by one of them, and they
share the work.  Refuses to know what is in the files.
"""

from collections.abc import Callable, Mapping
import fcntl
import os
import pathlib
import time
from typing import BinaryIO

from pirl_jax.envs import caches
from pirl_jax.envs.libero import files

# Of each folder: the least recently used files go first.  Those of all of LIBERO's 130 tasks take
# less than a fifth of it.
MAX_BYTES = 100e6
TOUCH_S = 3600.0  # a file that was used this long ago counts as old, until it is used again


def folder(name: str) -> pathlib.Path:
    """Where files of that name are made."""
    return caches.folder(name)


def make(name: str, makers: Mapping[str, Callable[[], bytes]]) -> dict[str, pathlib.Path]:
    """{file: its path}, each made by its maker where it is not there yet, by us or by another.

    The names of the files say what is in them: one that is there is never made again.
    """
    paths = {file: caches.find(name, file) for file in makers}
    missing = [file for file, path in paths.items() if not path.exists()]
    if missing:
        _make_missing(folder(name), {file: makers[file] for file in missing})
    for path in paths.values():
        _touch(path)
    return paths


def _make_missing(place: pathlib.Path, makers: Mapping[str, Callable[[], bytes]]) -> None:
    """First what nobody is making; then what others were making, should they have died."""
    place.parent.mkdir(parents=True, exist_ok=True)
    others = []
    with place.with_suffix(".lock").open("ab") as lock:
        for file, maker in makers.items():
            if _claim(lock, file, wait=False):
                _make_one(place / file, maker)
                _release(lock, file)
            else:
                others.append(file)
        for file in others:
            _claim(lock, file, wait=True)
            _make_one(place / file, makers[file])
            _release(lock, file)


def _make_one(path: pathlib.Path, maker: Callable[[], bytes]) -> None:
    if not path.exists():
        files.write_whole(path, maker())


def _claim(lock: BinaryIO, file: str, wait: bool) -> bool:
    """Whether the file is ours to make now; the claim of a process ends with the process."""
    command = fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB
    try:
        fcntl.lockf(lock, command, 1, _place(file))
    except BlockingIOError:
        return False
    return True


def _release(lock: BinaryIO, file: str) -> None:
    fcntl.lockf(lock, fcntl.LOCK_UN, 1, _place(file))


def _place(file: str) -> int:
    """A byte of the lock file for each file; its name begins with a digest."""
    return int(file[:12], 16)


def _touch(path: pathlib.Path) -> None:
    """Used now; where the file is somebody else's, they have to keep it."""
    is_old = time.time() - path.stat().st_mtime > TOUCH_S
    if is_old and os.access(path, os.W_OK):
        os.utime(path)


def trim(name: str, limit_bytes: float = MAX_BYTES) -> None:
    """Remove the least recently used files, until the others take no more than the limit."""
    if not folder(name).is_dir():
        return
    newest_first = []
    for path in folder(name).iterdir():
        found = path.stat()
        newest_first.append((-found.st_mtime, found.st_size, path))
    total = 0
    for _, size, path in sorted(newest_first):
        total += size
        if total > limit_bytes:
            path.unlink(missing_ok=True)
