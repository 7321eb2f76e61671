"""Folders as people name them in arguments and environment variables, where no shell expands a `~`.

Floor 0 has the same for fields and flags (core/paths.py), which the environments do not know; a
test holds the two together.  Refuses to know what lies there.
"""

import os
import pathlib


def whole(path: str | os.PathLike) -> pathlib.Path:
    """With the home folder for `~`, and from the root on; links stay as they are.

    Raises:
        ValueError: it names a user that is not known.
    """
    expanded = os.path.expanduser(path)
    if os.fspath(expanded).startswith("~"):
        raise ValueError(f"{path} names a user that is not known here; write the whole path")
    return pathlib.Path(expanded).absolute()


def of_variable(name: str) -> pathlib.Path | None:
    """What an environment variable names; None where it is unset, empty or blank.

    Raises:
        ValueError: it names a user that is not known.
    """
    value = os.environ.get(name, "")
    if not value.strip():
        return None
    try:
        return whole(value)
    except ValueError as error:
        raise ValueError(f"${name}: {error}") from error
