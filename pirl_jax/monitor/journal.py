"""A file that finished work is noted in, so that an interrupted command continues where it stopped.

    header line       what the work is; another header is another work and is refused
    one line per row  JSON, complete as soon as `append` returns

Knows neither episodes nor checkpoints: header and rows are JSON dicts.
"""

import json
import os
import pathlib
from typing import Self

from pirl_jax.monitor import log


class Journal:
    """The open file; `rows` are those of earlier starts."""

    def __init__(self, path: str | os.PathLike, header: dict) -> None:
        """Start the file, or continue it.

        Raises:
          ValueError: it belongs to another header; the error names what differs.
        """
        self.path = pathlib.Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        header = json.loads(json.dumps(header))  # tuples as lists, as the file gives them back
        lines = self._complete_lines()
        if lines:
            self._refuse_other_work(json.loads(lines[0]), header)
        self.rows = [json.loads(line) for line in lines[1:]]
        self._file = self.path.open("a", encoding="utf-8")
        if not lines:
            self.append(header)

    def append(self, row: dict) -> None:
        """Note a row; it survives a power cut from here on."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _refuse_other_work(self, noted: dict, header: dict) -> None:
        changes = log.config_changes(noted, header)
        if changes:
            raise ValueError(
                f"{self.path.parent} holds results of another evaluation ({'; '.join(changes)}); "
                f"give another folder with --output, or delete this one"
            )

    def _complete_lines(self) -> list[str]:
        """Also drops the half line of a killed write."""
        if not self.path.exists():
            return []
        text = self.path.read_bytes()
        end = text.rfind(b"\n") + 1
        if end < len(text):
            # Else the next row would go on in the middle of this line.
            os.truncate(self.path, end)
        return text[:end].decode().splitlines()
