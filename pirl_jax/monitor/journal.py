"""A file that work is noted in as it gets done, so that an interrupted command continues where it stopped.

    header line       what the work is; another header is another work and is refused
    one line per row  JSON, complete as soon as `append` returns

Knows neither episodes nor checkpoints: header and rows are JSON dicts.
"""

import json
import os
import pathlib

from pirl_jax.monitor import log


class Journal:
    """The open file; `rows` are those of earlier starts."""

    def __init__(self, path, header: dict):
        """Start the file, or continue it; ValueError where it belongs to another header."""
        self.path = pathlib.Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        header = json.loads(json.dumps(header))  # tuples as lists, as the file gives them back
        lines = self._complete_lines()
        if lines and (changed := log.config_changes(json.loads(lines[0]), header)):
            raise ValueError(
                f"{self.path.parent} holds results of another evaluation ({'; '.join(changed)}); give another folder with "
                f"--output, or delete this one"
            )
        self.rows = [json.loads(line) for line in lines[1:]]
        self._file = self.path.open("a", encoding="utf-8")
        if not lines:
            self.append(header)

    def append(self, row: dict) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _complete_lines(self) -> list[str]:
        """Also drops the half line of a killed write."""
        if not self.path.exists():
            return []
        text = self.path.read_bytes()
        end = text.rfind(b"\n") + 1
        if end < len(text):
            os.truncate(self.path, end)
        return text[:end].decode().splitlines()
