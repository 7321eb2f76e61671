"""Who writes in a folder, and who reads a file: locks that end with the process that holds them.

flock(2) of an open file: any death releases it, SIGKILL too, and no program that the process starts
inherits it (Python's descriptors are closed for them).  Linux carries it to an NFS server, where
other hosts meet it.  fcntl's own locks would end whenever the process closes any descriptor of the
file.  On storage without locks (some mounts of Lustre) nothing is held, and a
warning says so.

Knows no format but the holder's name.
"""

from collections.abc import Iterator
import contextlib
import datetime
import errno
import fcntl
import json
import logging
import os
import pathlib
import socket

log = logging.getLogger(__name__)

NAME = "in_use.json"
# Storage that knows no locks, or whose lock service is away.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)


class InUseError(ValueError):
    """Another process holds it; the text says which and what to do."""


@contextlib.contextmanager
def writing(folder: str | os.PathLike, remedy: str) -> Iterator[None]:
    """Be the only writer of a folder, which is made where it is missing.

    A folder that was made here and stays empty goes again.

    Args:
      remedy: what somebody may do who finds another one at work, "give another --output".

    Raises:
      InUseError: another process writes there.
      ValueError: the folder cannot be written.
    """
    folder = pathlib.Path(folder).absolute()
    made = _make(folder)
    try:
        descriptor = _claimed(folder, remedy)
        try:
            yield
        finally:
            # While it is held: whoever opened the file meanwhile finds that it went.
            with contextlib.suppress(OSError):
                (folder / NAME).unlink()
            os.close(descriptor)
    finally:
        with contextlib.suppress(OSError):
            for path in made:
                path.rmdir()


def _make(folder: pathlib.Path) -> list[pathlib.Path]:
    """-> the folders that were missing, the innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be made ({error.strerror}); choose another place"
        ) from error
    return missing


def _claimed(folder: pathlib.Path, remedy: str) -> int:
    """-> the descriptor that holds the lock."""
    path = folder / NAME
    try:
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            if not _lock(descriptor, fcntl.LOCK_EX):
                holder = _holder(descriptor)
                os.close(descriptor)
                raise InUseError(f"{folder} is in use by {holder}; {remedy}")
            if _still_there(descriptor, path):
                break
            os.close(descriptor)  # its holder removed it between the two calls
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(_myself()).encode(), 0)
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be written ({error.strerror}); choose another place"
        ) from error
    return descriptor


def reading(path: str | os.PathLike) -> contextlib.ExitStack | None:
    """Hold a file that stands, so that nobody who asks `removing` removes it.

    Returns what lets go of it, as a context or by `close`; None: the file went, or goes just now.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if _lock(descriptor, fcntl.LOCK_SH) and _still_there(descriptor, path):
        held = contextlib.ExitStack()
        held.callback(os.close, descriptor)
        return held
    os.close(descriptor)
    return None


@contextlib.contextmanager
def removing(path: str | os.PathLike) -> Iterator[bool]:
    """-> whether nobody reads the file; nobody begins to before the block ends.

    A file that is not there is read by nobody.
    """
    try:
        descriptor = os.open(path, os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError):
        yield True
        return
    try:
        yield _lock(descriptor, fcntl.LOCK_EX)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int) -> bool:
    """Whether it is held now; True as well where the storage knows no locks."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        log.warning("%s; nobody keeps other processes from writing there", error.strerror)
    return True


def _still_there(descriptor: int, path: str | os.PathLike) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _myself() -> dict[str, str | int]:
    now = datetime.datetime.now(datetime.UTC)
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": now.isoformat(timespec="seconds"),
    }


def _holder(descriptor: int) -> str:
    """In words, from what it wrote; it may not have written yet."""
    try:
        noted = json.loads(os.pread(descriptor, 1 << 12, 0))
        return f"process {int(noted['pid'])} on host {noted['host']} since {noted['since']}"
    except (ValueError, KeyError, TypeError):
        return "a process that has just started"
