"""A file that finished work is noted in, so that an interrupted command continues where it stopped.

    header line       what the work is; another header is another work and is refused
    one line per row  JSON, complete as soon as `append` returns

Whoever has it open is the only one who writes in its folder.  Damaged rows are work that is done
again.  Knows neither episodes nor checkpoints: header and rows are JSON dicts.
"""

import contextlib
import json
import os
import pathlib
import sys
from typing import Self

from pirl_jax.core import lines, locks, outside
from pirl_jax.monitor import log


class Journal:
    """The open file; `rows` are those of earlier starts."""

    def __init__(self, path: str | os.PathLike, header: dict) -> None:
        """Start the file, or continue it.

        Raises:
          ValueError: another process has it open, it belongs to another header (the error names
            what differs), or its header is damaged.
        """
        self.path = pathlib.Path(path)
        header = json.loads(json.dumps(header))  # tuples as lists, as the file gives them back
        with contextlib.ExitStack() as stack:
            remedy = "wait for its end, or give another folder with --output"
            stack.enter_context(locks.writing(self.path.parent, remedy))
            noted = lines.read(self.path)
            if noted:
                self._refuse_other_work(noted[0], header)
            self.rows = self._intact(noted[1:])
            self._lines = stack.enter_context(lines.Lines(self.path))
            if not noted:
                self.append(header)
            self._open = stack.pop_all()

    def append(self, row: dict) -> None:
        """Note a row; it survives a power cut from here on."""
        self._lines.append(json.dumps(row))

    def close(self) -> None:
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _refuse_other_work(self, line: bytes, header: dict) -> None:
        remedy = "give another folder with --output, or delete this file"
        noted = outside.parse_json(line, f"the first line of {self.path}", remedy)
        noted = outside.part(noted, "", dict, f"the first line of {self.path}", remedy)
        changes = log.config_changes(noted, header)
        if changes:
            raise ValueError(
                f"{self.path.parent} holds results of another evaluation "
                f"({'; '.join(map(outside.shown, changes))}); "
                f"give another folder with --output, or delete this one"
            )

    def _intact(self, noted: list[bytes]) -> list[dict]:
        rows = []
        for i, line in enumerate(noted):
            where = f"line {i + 2} of {self.path}"
            try:
                rows.append(outside.part(outside.parse_json(line, where), "", dict, where))
            except ValueError as error:
                print(f"warning: {outside.shown(error)}; it is played again", file=sys.stderr)
        return rows
