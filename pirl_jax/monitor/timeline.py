"""Where the time of an iteration goes: named stopwatches, and one sentence that says what to do about it."""

import contextlib
import threading
import time

REQUIRED = (
    "env",
    "inference",
    "update",
    "transfer",
    "idle",
)  # always reported, 0 when never measured

# name -> (what the run is bound by, what happens in that time, what helps)
VERDICTS = {
    "env": (
        "simulation-bound",
        "waits for environments",
        "add CPU cores or environments, or use smaller images",
    ),
    "inference": (
        "inference-bound",
        "samples actions",
        "use larger inference batches or fewer denoise steps",
    ),
    "update": (
        "learning-bound",
        "updates the parameters",
        "use fewer update epochs or more devices",
    ),
    "transfer": (
        "transfer-bound",
        "moves rows from the device to the host",
        "set rollout.prefix_cache=device, or recompute",
    ),
    "idle": (
        "idle",
        "waits with nothing to do",
        "let rollout and learner overlap, or balance their devices",
    ),
    "eval": ("evaluation-bound", "evaluates", "evaluate less often or on fewer episodes"),
    "save": ("checkpoint-bound", "waits for checkpoints", "save less often"),
    "compile": ("compiling", "compiles", "nothing to do: later iterations do not compile"),
}


class Timers:
    """Seconds by name since the last read(); threads may share one.

        with timers.measure("env"):
            step = pool.recv()

    Names of one thread must not be nested, or the inner time counts twice.
    """

    def __init__(self, clock=time.perf_counter):
        self._clock = clock
        self._lock = threading.Lock()
        self._seconds: dict[str, float] = {}
        self._started = self._created = clock()

    @contextlib.contextmanager
    def measure(self, name: str):
        start = self._clock()
        try:
            yield
        finally:
            self.add(name, self._clock() - start)

    def add(self, name: str, seconds: float) -> None:
        """For time that somebody else measured."""
        with self._lock:
            self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def age_s(self) -> float:
        """Since this object was made."""
        return self._clock() - self._created

    def read(self) -> dict[str, float]:
        """-> {"time/env": s, "time/inference": s, ..., "time/iteration": s since the last read}; resets.  What nobody measured is
        "time/idle"."""
        with self._lock:
            now = self._clock()
            seconds, total = dict.fromkeys(REQUIRED, 0.0) | self._seconds, now - self._started
            seconds |= {"idle": max(0.0, total - sum(self._seconds.values())), "iteration": total}
            self._seconds, self._started = {}, now
        return {f"time/{name}": value for name, value in seconds.items()}


def line(row: dict[str, float]) -> str:
    """What a user wants to see of an iteration."""
    critic = (
        f"ev {row['critic/explained_variance']:.2f}  " if "critic/explained_variance" in row else ""
    )
    return (
        f"success {row['env/success_once']:.2f}  return {row['env/return']:.2f}  kl {row['actor/approx_kl']:.4f}  "
        f"clip {row['actor/pg_clipfrac']:.2f}  {critic}{row['time/iteration']:.1f} s  {verdict(row)}"
    )


def verdict(metrics: dict[str, float]) -> str:
    """One line about the metrics of one iteration: "simulation-bound: 78 % of the time waits for environments; ..." """
    total_s = metrics["time/iteration"]
    parts = {name: metrics.get(f"time/{name}", 0.0) for name in VERDICTS}
    name = max(parts, key=parts.get)
    share = parts[name] / total_s if total_s > 0 else 0.0
    if share < 0.4:
        return f"balanced: the largest part ({name}) takes {100 * share:.0f} % of the time"
    bound, what, remedy = VERDICTS[name]
    return f"{bound}: {100 * share:.0f} % of the time {what}; {remedy}"
