"""Where the time of an iteration goes: named stopwatches, and one sentence that says what to do.

Knows the names of the parts and what helps against each; measures nothing itself.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import math
import threading
import time
from typing import NamedTuple

from pirl_jax.monitor import report

# Always reported, 0 when never measured.
REQUIRED = ("env", "inference", "update", "transfer", "idle")
# Metrics of learning on the line of an iteration, where there are such: word, digits.
SHOWN = {
    "actor/approx_kl3": ("kl", 4),
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


# Where episodes are played while earlier ones are learned: share of an iteration from which on one
# side waits for the other.
WAITING = 0.3
WAITS = {
    "gate_wait": Verdict(
        "learner-bound",
        "simulators wait for newer parameters",
        "use more devices to learn, or fewer update epochs",
    ),
    "learner_wait": Verdict(
        "environment-bound",
        "the learner waits for episodes",
        "use more simulators, or fewer devices to learn",
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
    words = [f"success {success(row)}", learning(row), f"{row['time/iteration']:.1f} s"]
    return "  ".join(words)


def success(row: Mapping[str, float]) -> str:
    """Of the rollout, with its interval (Wilson, 95 %): "0.61 [0.49, 0.72]"."""
    rate = row["env/success_once"]
    count = row.get("env/num_trajectories", 0.0)
    shown = f"{rate:.2f}"
    if count >= 1 and math.isfinite(rate):
        low, high = report.wilson(round(rate * count), round(count))
        shown += f" [{low:.2f}, {high:.2f}]"
    return shown


def learning(row: Mapping[str, float]) -> str:
    """What is learned, and how: "return 0.61  kl 0.0031  clip 0.10"."""
    words = [f"return {row['env/return']:z.2f}"]
    for metric, (word, digits) in SHOWN.items():
        if metric in row:
            words.append(f"{word} {row[metric]:z.{digits}f}")
    return "  ".join(words)


def shares(metrics: Mapping[str, float]) -> dict[str, float]:
    """What part of an iteration each activity takes, by its name."""
    total_s = metrics["time/iteration"]
    parts = {name: metrics.get(f"time/{name}", 0.0) for name in VERDICTS}
    return {name: seconds / total_s if total_s > 0 else 0.0 for name, seconds in parts.items()}


def bound(metrics: Mapping[str, float]) -> str:
    """The name of the part that an iteration waits for; "" where none stands out."""
    waits = _waits(metrics)
    if waits:
        return waits
    parts = shares(metrics)
    largest = max(parts, key=parts.get)
    return largest if parts[largest] >= DOMINANT else ""


def _waits(metrics: Mapping[str, float]) -> str:
    """Which side waits for the other, where rollout and learner overlap."""
    total_s = metrics["time/iteration"]
    for name in WAITS:
        if metrics.get(f"time/{name}", 0.0) > WAITING * total_s:
            return name
    return ""


def verdict(metrics: Mapping[str, float]) -> str:
    """A sentence about the metrics of one iteration.

    "simulation-bound: 78 % of the time waits for environments; add CPU cores ..."
    """
    waits = _waits(metrics)
    if waits:
        return _sentence(WAITS[waits], metrics[f"time/{waits}"] / metrics["time/iteration"])
    parts = shares(metrics)
    largest = max(parts, key=parts.get)
    if not bound(metrics):
        percent = f"{100 * parts[largest]:.0f} % of the time"
        return f"balanced: the largest part ({largest}) takes {percent}"
    return _sentence(VERDICTS[largest], parts[largest])


def _sentence(found: Verdict, share: float) -> str:
    return f"{found.bound}: {100 * share:.0f} % of the time {found.activity}; {found.remedy}"
