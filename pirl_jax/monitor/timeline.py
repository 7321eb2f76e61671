"""Where the time of an iteration goes: named stopwatches, and one sentence that says what to do.

Knows the names of the parts and what helps against each; measures nothing itself.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import threading
import time
from typing import NamedTuple

# Always reported, 0 when never measured.
REQUIRED = ("env", "inference", "update", "transfer", "idle")
# Metrics of learning on the line of an iteration, where there are such: word, digits.
SHOWN = {
    "actor/approx_kl": ("kl", 4),
    "actor/pg_clipfrac": ("clip", 2),
    "critic/explained_variance": ("ev", 2),
    "actor/pref_acc": ("preferred", 2),
    "actor/clone": ("clone", 4),
}
# Share of an iteration from which on one part is what the run waits for.
DOMINANT = 0.4


class Verdict(NamedTuple):
    """What it means that a part takes most of the time."""

    bound: str
    activity: str  # what happens in that time
    remedy: str


VERDICTS = {
    "env": Verdict(
        "simulation-bound",
        "waits for environments",
        "add CPU cores or environments, or use smaller images",
    ),
    "inference": Verdict(
        "inference-bound",
        "samples actions",
        "use larger inference batches or fewer denoise steps",
    ),
    "update": Verdict(
        "learning-bound",
        "updates the parameters",
        "use fewer update epochs or more devices",
    ),
    "transfer": Verdict(
        "transfer-bound",
        "moves rows from the device to the host",
        "set rollout.prefix_cache=device, or recompute",
    ),
    "idle": Verdict(
        "idle",
        "waits with nothing to do",
        "let rollout and learner overlap, or balance their devices",
    ),
    "eval": Verdict(
        "evaluation-bound",
        "evaluates",
        "evaluate less often or on fewer episodes",
    ),
    "save": Verdict(
        "checkpoint-bound",
        "waits for checkpoints",
        "save less often",
    ),
    "compile": Verdict(
        "compiling",
        "compiles",
        "nothing to do: later iterations do not compile",
    ),
}


class Timers:
    """Seconds by name since the last take(); threads may share one.

        with timers.measure("env"):
            step = pool.recv()

    Names of one thread must not be nested, or the inner time counts twice.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._seconds: dict[str, float] = {}
        self._created = clock()
        self._started = self._created

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add what the block takes, also where it raises."""
        start_s = self._clock()
        try:
            yield
        finally:
            self.add(name, self._clock() - start_s)

    def add(self, name: str, seconds: float) -> None:
        """For time that somebody else measured."""
        with self._lock:
            self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def age_s(self) -> float:
        """Since this object was made."""
        return self._clock() - self._created

    def take(self) -> dict[str, float]:
        """Seconds since the last take, and starts anew.

        Returns {"time/env": s, "time/inference": s, ..., "time/iteration": s}; the last one is the
        whole time, of which what nobody measured is "time/idle".
        """
        with self._lock:
            now = self._clock()
            total = now - self._started
            measured = self._seconds
            self._started = now
            self._seconds = {}
        # Where two threads measure at once, the parts come to more than the whole.
        idle = max(0.0, total - sum(measured.values()))
        seconds = dict.fromkeys(REQUIRED, 0.0) | measured
        seconds |= {"idle": idle, "iteration": total}
        return {f"time/{name}": value for name, value in seconds.items()}


def line(row: Mapping[str, float]) -> str:
    """What a user wants to see of an iteration."""
    words = [
        f"success {row['env/success_once']:.2f}",
        f"return {row['env/return']:.2f}",
    ]
    for metric, (word, digits) in SHOWN.items():
        if metric in row:
            words.append(f"{word} {row[metric]:.{digits}f}")
    words.append(f"{row['time/iteration']:.1f} s")
    words.append(verdict(row))
    return "  ".join(words)


def verdict(metrics: Mapping[str, float]) -> str:
    """A sentence about the metrics of one iteration.

    "simulation-bound: 78 % of the time waits for environments; add CPU cores ..."
    """
    total_s = metrics["time/iteration"]
    parts = {name: metrics.get(f"time/{name}", 0.0) for name in VERDICTS}
    largest = max(parts, key=parts.get)
    share = 0.0
    if total_s > 0:
        share = parts[largest] / total_s
    percent = f"{100 * share:.0f} % of the time"
    if share < DOMINANT:
        return f"balanced: the largest part ({largest}) takes {percent}"
    found = VERDICTS[largest]
    return f"{found.bound}: {percent} {found.activity}; {found.remedy}"
