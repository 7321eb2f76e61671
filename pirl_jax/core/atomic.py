"""Files that appear whole or not at all: written beside their place, flushed, renamed into it.

A reader sees the old file or the new one, never half of either, also after a crash or a power cut.
Knows no format but text and JSON.  Makes no folders and takes no locks: one writer per file.
"""

from collections.abc import Iterator
import contextlib
import errno
import json
import os
import pathlib
from typing import Any

from pirl_jax.core import secrets


def unfinished(path: str | os.PathLike) -> pathlib.Path:
    """Where a file grows until it is whole: beside its place, since a rename crosses no disk.

    The suffix is another one, so that no pattern such as "model*.safetensors" finds it.
    (A program that goes by suffixes needs to be told the format, ffmpeg by `-f mp4`.)
    """
    path = pathlib.Path(path)
    return path.with_name(f"{path.name}.unfinished")


def publish(path: str | os.PathLike) -> None:
    """Give unfinished(path) its name, in place of what bore it."""
    with unfinished(path).open("rb") as file:
        # Else the name may reach the disk before the content does.
        os.fsync(file.fileno())
    os.replace(unfinished(path), path)
    sync_folder(pathlib.Path(path).parent)


def sync_folder(folder: str | os.PathLike) -> None:
    """The names in a folder reach the disk, as new and renamed files need.

    Some network storage knows no such call and refuses it; it writes names when they are given.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """An OSError of a write does not know the file: it is told here."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(path)
        raise


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """`with writing(path) as temporary:` what is written there becomes `path` at the block's end.

    Where the block raises, `path` stays as it was and nothing is left beside.
    """
    temporary = unfinished(path)
    try:
        with naming(path):
            yield temporary
            publish(path)
    finally:
        # On a disk that has just become read-only this fails too, and would hide why.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def set_aside(path: str | os.PathLike, suffix: str = ".damaged") -> pathlib.Path:
    """Rename a file or folder so that another can take its place -> its new name."""
    path = pathlib.Path(path)
    aside = _first_free(path, path.name + suffix, "")
    path.rename(aside)
    sync_folder(path.parent)
    return aside


def vacant(path: str | os.PathLike) -> pathlib.Path:
    """This path, or NAME_2.suffix and so on where something lies there already."""
    path = pathlib.Path(path)
    return _first_free(path, path.stem, path.suffix)


def _first_free(path: pathlib.Path, name: str, ending: str) -> pathlib.Path:
    """Beside `path`: the first of NAMEending, NAME_2ending and so on that nothing bears."""
    free = path.with_name(name + ending)
    count = 1
    while free.exists():
        count += 1
        free = path.with_name(f"{name}_{count}{ending}")
    return free


def write_text(path: str | os.PathLike, text: str) -> None:
    """Text as UTF-8."""
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, value: Any) -> None:
    """What json.dumps takes, indented, with a newline at its end; without the secrets in it."""
    write_text(path, json.dumps(secrets.cleaned(value), indent=2) + "\n")
