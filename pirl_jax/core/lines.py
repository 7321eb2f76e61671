"""Files of lines that grow: a line is there whole or not at all, and stays once `append` returns.

Knows no format of a line.  One writer per file.
"""

import contextlib
import os
import pathlib
from typing import Self

from pirl_jax.core import atomic


class Lines:
    """The open file."""

    def __init__(self, path: str | os.PathLike) -> None:
        """Make the file, or go on after its last whole line."""
        self.path = pathlib.Path(path)
        with atomic.naming(self.path):
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
            self._descriptor: int | None = os.open(self.path, flags, 0o666)
            # Else the next line would go on in the middle of a killed write.
            os.ftruncate(self._descriptor, len(_whole(self.path)))
            atomic.sync_folder(self.path.parent)

    def append(self, line: str) -> None:
        """Add a line; it survives a power cut from here on.

        Raises:
          OSError: there was no room; the file is as it was.
        """
        rest = f"{line}\n".encode()
        end = os.fstat(self._descriptor).st_size
        with atomic.naming(self.path):
            try:
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
                os.fsync(self._descriptor)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._descriptor, end)
                raise

    def close(self) -> None:
        """Once is enough: by the second time the number may be another file's."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read(path: str | os.PathLike) -> list[bytes]:
    """The whole lines of a file, without their ends; none where there is no file."""
    try:
        return _whole(pathlib.Path(path)).split(b"\n")[:-1]
    except FileNotFoundError:
        return []


def _whole(path: pathlib.Path) -> bytes:
    """What follows the last newline is an unfinished write, or nothing."""
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1]
