"""Paths as people write them: in a recipe, behind a flag, in an environment variable.

No shell expands a `~` there, and every command may be started from another folder.  Knows neither
fields nor formats.
"""

import os
import pathlib
import re
import tempfile

MOST_BYTES_OF_A_NAME = 255  # of every file system in use
MOST_BYTES = 4096
SHOWN = 60  # characters of a path that is too long
# Line breaks, NUL, and bytes that are no UTF-8, which no file of results could name.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
PROBE_BYTES = 1 << 16  # what a full disk refuses, also where it still makes empty files


def absolute(raw: str | os.PathLike) -> pathlib.Path:
    """With `~` expanded and made absolute; links stay as they are.

    Raises:
      ValueError: it is empty, or nothing can have such a path.
    """
    text = os.fspath(raw)
    if not text.strip():
        raise ValueError("an empty path names nothing; write one, or leave it out")
    if UNPRINTABLE.search(text):
        raise ValueError(f"{text!r} has characters that cannot be printed; rename it")
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise ValueError(f"{text} names a user that is not known here; write the whole path")
    path = pathlib.Path(expanded).absolute()
    longest = max(len(os.fsencode(part)) for part in path.parts)
    if longest > MOST_BYTES_OF_A_NAME or len(os.fsencode(path)) > MOST_BYTES:
        raise ValueError(f"{text[:SHOWN]}... is longer than a path may be; write a shorter one")
    return path


def of_variable(name: str) -> pathlib.Path | None:
    """What an environment variable names; None where it is unset or empty.

    Raises:
      ValueError: it is no path.
    """
    value = os.environ.get(name)
    if not value:
        return None
    try:
        return absolute(value)
    except ValueError as error:
        raise ValueError(f"${name}: {error}") from error


def require_writable(folder: pathlib.Path, name: str) -> None:
    """Before anything starts: whether a folder can be made there, and files in it.

    Leaves nothing behind.  Tried and not asked for: permissions say nothing of a read-only disk,
    a full one, or what the kernel shows as files.

    name: of the field or flag, for the error.

    Raises:
      ValueError: nobody can write there.
    """
    there = folder
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(PROBE_BYTES))
    except OSError as error:
        raise ValueError(
            f"{name}={folder} cannot be written ({error.strerror}: {there}); choose another place"
        ) from error


def require_writable_file(path: pathlib.Path, name: str) -> None:
    """Before anything starts: whether a file can be written there.

    Raises:
      ValueError: it is a folder, or nobody can write there.
    """
    if path.is_dir():
        raise ValueError(f"{name}={path} is a folder; give the path of a file")
    require_writable(path.parent, name)
