"""Commands of this package as processes, one at a time: what they cost, asked to end, within time.

Refuses to know what they are run for.
"""

from collections.abc import Sequence
import dataclasses
import json
import pathlib
import resource
import signal
import subprocess
import sys
import time
from typing import Any

from pirl_jax.core import endings, lines, outside

POLL_S = 0.2
END_OF_TIME = signal.SIGTERM


class Unfinished(Exception):
    """A command ended in another way than well; the text says how."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of all processes that were started under a name."""

    wall_s: float
    cpu_s: float
    starts: int


class Programs:
    """Starts them; `interrupt` may be called from another thread."""

    def __init__(self, notes: pathlib.Path) -> None:
        """notes: folder of what processes have cost, which outlives this one."""
        self._notes = notes
        self._process: subprocess.Popen | None = None
        self._interrupted = False

    def interrupt(self) -> None:
        """The command under way saves what it can and ends; none is started any more."""
        self._interrupted = True
        process = self._process
        if process is not None:
            process.send_signal(END_OF_TIME)

    def run(self, name: str, command: Sequence[str], limit_s: float | None = None) -> bool:
        """Start `python -m COMMAND...` and wait for its end.

        Args:
          name: under which its cost is noted.
          limit_s: of wall time, all that was noted under this name included; None: no limit.

        Returns: False where it was ended at that limit, and saved.

        Raises:
          endings.Preempted: asked to end.
          Unfinished: it failed.
        """
        left_s = None if limit_s is None else limit_s - self.cost(name).wall_s
        if left_s is not None and left_s <= 0:
            return False
        self._require_wanted()
        began_s = time.monotonic()
        before_s = _cpu_s()
        is_late = False
        self._process = subprocess.Popen([sys.executable, "-m", *command])
        if self._interrupted:  # between the question and the start
            self._process.send_signal(END_OF_TIME)
        while True:
            try:
                code = self._process.wait(POLL_S)
                break
            except subprocess.TimeoutExpired:
                passed_s = time.monotonic() - began_s
            if left_s is not None and passed_s > left_s and not is_late:
                is_late = True
                self._process.send_signal(END_OF_TIME)
        self._process = None
        self._note(name, time.monotonic() - began_s, _cpu_s() - before_s, code)
        if code == 0:
            return True
        self._require_wanted()
        if is_late and code == endings.Preempted.code:
            return False
        raise Unfinished(f"{' '.join(command[:1])} of {name} ended with exit code {code}")

    def _require_wanted(self) -> None:
        if self._interrupted:
            raise endings.Preempted("asked to end")

    def cost(self, name: str) -> Cost:
        """Of everything so far, in earlier processes of the caller too."""
        rows = self._rows(name)
        return Cost(
            wall_s=sum(outside.part(row, "wall_s", float, name) for row in rows),
            cpu_s=sum(outside.part(row, "cpu_s", float, name) for row in rows),
            starts=len(rows),
        )

    def _rows(self, name: str) -> list[dict[str, Any]]:
        path = self._of(name)
        if not path.exists():
            return []
        return [outside.parse_json(line, path, "remove it") for line in lines.read(path)]

    def _note(self, name: str, wall_s: float, cpu_s: float, code: int) -> None:
        self._notes.mkdir(parents=True, exist_ok=True)
        file = lines.Lines(self._of(name))
        row = {"wall_s": round(wall_s, 1), "cpu_s": round(cpu_s, 1), "code": code}
        file.append(json.dumps(row))
        file.close()

    def _of(self, name: str) -> pathlib.Path:
        return self._notes / f"{name}.jsonl"


def _cpu_s() -> float:
    """Of all descendants that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
