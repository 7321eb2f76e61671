"""What every chunk, reset, decision and update of a run takes, and the model of the loop fed with
it.

A recorder is the run's stopwatches and listens to its simulators; it writes a line per iteration.
Work is counted in seconds of a core, which others on the machine hardly change.  Refuses to know
how a run is made.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import itertools
import json
import pathlib
import time
from typing import Any

import jax
import numpy as np
import psutil

from pirl_jax.core import lines, outside, page
from pirl_jax.envs.pool import queue, worker
from pirl_jax.monitor import timeline
from pirl_jax.run import loop_model

THREADS = pathlib.Path("/proc/self/task")
FILE = "loop.jsonl"  # in the run directory
# An iteration with one of these is not one of rollout and update alone.
BESIDES = ("eval", "save", "compile", "video")
MOST_OTHERS = 32.0  # threads that want the cores of a recording
# Intervals so long that all threads may be asked.
LONG = ("update",)
SAMPLES = 400  # of a distribution that are kept


class Recorder(timeline.Timers):
    """Stopwatches that keep every interval, and every answer of a simulator, until `take`."""

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__()
        self._path = path
        self._schedule: dict[str, Any] = {}
        # (name, seconds, seconds of this process's cores, of its busiest thread; 0: not asked)
        self._intervals: list[tuple] = []
        # (slot, is a reset, seconds, seconds of a core, when it came)
        self._answers: list[tuple] = []
        self._busy = _busy()

    def describe(self, raw: page.Page, devices: int = 1) -> None:
        """raw: with the choices made; every line repeats what of it a model needs."""
        self._schedule = schedule(raw, devices)

    def answered(self, answer: worker.Answer) -> None:
        """By any thread; a reset alone says how much memory there is."""
        is_reset = bool(answer.memory_bytes)
        now = time.perf_counter()
        self._answers.append((answer.slot, is_reset, answer.env_s, answer.cpu_s, now))

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """See Timers."""
        start_s = time.perf_counter()
        start_cpu_s = time.process_time()
        of_threads = _of_threads() if name in LONG else {}
        try:
            yield
        finally:
            seconds = time.perf_counter() - start_s
            cpu_s = time.process_time() - start_cpu_s
            self.add(name, seconds)
            self._intervals.append((name, seconds, cpu_s, _busiest(of_threads)))

    def take(self) -> dict[str, float]:
        """See Timers; writes a line."""
        seconds = super().take()
        intervals, self._intervals = self._intervals, []
        answers, self._answers = self._answers, []
        before, self._busy = self._busy, _busy()
        line = {
            "schedule": self._schedule,
            "seconds": seconds,
            "intervals": intervals,
            "answers": answers,
            "until": time.perf_counter(),
            "cpu_s": {name: self._busy[name] - before[name] for name in before},
        }
        with lines.Lines(self._path) as file:
            file.append(json.dumps(_rounded(line)))
        return seconds


def stopwatches(raw: page.Page, directory: pathlib.Path) -> timeline.Timers:
    """Of a run; a recorder on the first host, where the page asks for one."""
    if not raw.run.record or jax.process_index():
        return timeline.Timers()
    return Recorder(directory / FILE)


def listening(
    timers: timeline.Timers, raw: page.Page, devices: int, envs: queue.ReadyQueue
) -> timeline.Timers:
    """The same; a recorder hears the simulators from now on.

    Args:
      raw: with the choices made.
      devices: that learn.
    """
    if isinstance(timers, Recorder):
        timers.describe(raw, devices)
        envs.listen(timers.answered)
    return timers


def schedule(raw: page.Page, devices: int = 1) -> dict[str, Any]:
    """What of the page decides who waits for whom."""
    return {
        "slots": raw.rollout.num_envs,
        "workers": raw.env.num_workers,
        "num_groups": raw.rollout.num_groups,
        "lockstep": raw.rollout.lockstep,
        "episodes": raw.rollout.episodes_per_iteration,
        "epochs": raw.algorithm.update_epochs,
        "minibatch_rows": raw.algorithm.minibatch_size,
        "microbatch_rows": raw.algorithm.microbatch_rows(devices),
        "cores": psutil.cpu_count(),
    }


def _busy() -> dict[str, float]:
    """Seconds of cores since they started: of this process, of its children, of all on the
    machine."""
    this = psutil.Process()
    own = this.cpu_times()
    children = 0.0
    for child in this.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            times = child.cpu_times()
            children += times.user + times.system
    whole = psutil.cpu_times()
    idle = whole.idle + getattr(whole, "iowait", 0.0)
    return {"own": own.user + own.system, "children": children, "all": sum(whole) - idle}


def _of_threads() -> dict[str, int]:
    """Nanoseconds of a core that each thread here has had; {}: the system does not say."""
    found = {}
    for thread in THREADS.glob("*/schedstat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            found[thread.parent.name] = int(thread.read_text().split()[0])
    return found


def _busiest(before: Mapping[str, int]) -> float:
    """Seconds of a core that the busiest of these threads has had since."""
    if not before:
        return 0.0
    now = _of_threads()
    return max(now.get(name, start) - start for name, start in before.items()) / 1e9


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, Mapping):
        return {name: _rounded(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return value


# ---- what a model is fed with ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Recording:
    """Of the iterations of a run that count.  Work is seconds of a core."""

    schedule: dict[str, Any]  # of `schedule`
    # From the shortest to the longest; each with its share of what answers cost on both sides.
    chunk_s: list[float]
    reset_s: list[float]
    decisions: list[int]  # of an episode
    decision_s: float  # of a turn
    decision_threads: float  # cores that it keeps busy where nobody else wants them
    update_s: float  # of an iteration
    update_threads: float
    rest_s: float  # of an iteration: what the run's own process does besides
    iterations: list[dict[str, float]]  # seconds by part as measured, and "others": cores they had

    def simulators(self, others: float = 0.0) -> loop_model.Simulators:
        """others: threads of somebody else, on the machine of the recording."""
        schedule = self.schedule
        return loop_model.Simulators(
            slots=schedule["slots"],
            workers=schedule["workers"],
            cores=schedule["cores"],
            others=others,
            chunk_s=self.chunk_s,
            reset_s=self.reset_s,
            decisions=self.decisions,
        )

    def loop(self) -> loop_model.Schedule:
        names = ("episodes", "epochs", "minibatch_rows", "microbatch_rows", "num_groups")
        given = {name: self.schedule[name] for name in names}
        return loop_model.Schedule(**given, lockstep=self.schedule["lockstep"])

    def programs(self) -> loop_model.Programs:
        """An update is cut into microbatches of the same size."""
        schedule = self.schedule
        rows = schedule["episodes"] * float(np.mean(self.decisions))
        microbatches = schedule["epochs"] * rows / schedule["microbatch_rows"]
        return loop_model.Programs(
            decision_s=self.decision_s / self.decision_threads,
            microbatch_s=self.update_s / self.update_threads / microbatches,
            finish_s=self.rest_s,
            decision_threads=self.decision_threads,
            update_threads=self.update_threads,
        )


def of_run(directory: pathlib.Path) -> Recording:
    """What a run with run.record=True has left, its first iteration left out.

    Raises:
      ValueError: too few iterations.
    """
    path = directory / FILE
    rows = _rows(directory)
    # The first line ends where the first iteration begins; that one compiles.
    counted = [row for row in rows[2:] if not _besides(row)]
    if not counted:
        raise ValueError(
            f"{path} has no iteration after the first one without an evaluation; record a run with "
            f"run.record=True, num_iterations=3 or more and eval.every=0"
        )
    counting = _all(counted, "answers")
    each = _of_answers(counted) / len(counting)
    chunks = [cpu_s + each for _, is_reset, _, cpu_s, _ in counting if not is_reset]
    resets = [cpu_s + each for _, is_reset, _, cpu_s, _ in counting if is_reset]
    decisions = _intervals(counted, ("inference", "transfer"))
    turns = len(_intervals(counted, ("inference",))) / 2  # dispatched, then waited for
    updates = _intervals(counted, ("update",))
    own_s = sum(row["cpu_s"]["own"] for row in counted)
    measured_s = sum(cpu_s for _, _, cpu_s, _ in _all(counted, "intervals"))
    return Recording(
        schedule=counted[-1]["schedule"],
        chunk_s=_thinned(chunks),
        reset_s=_thinned(resets),
        decisions=[round(length) for length in _thinned(_lengths(_all(rows, "answers")))],
        decision_s=sum(cpu_s for _, _, cpu_s, _ in decisions) / turns,
        decision_threads=_threads(decisions),
        update_s=sum(cpu_s for _, _, cpu_s, _ in updates) / len(counted),
        update_threads=_threads(updates),
        rest_s=max(0.0, own_s - measured_s) / len(counted),
        iterations=[_measured(row) for row in counted],
    )


def workers_idle(directory: pathlib.Path, skip: int, tail: int) -> float:
    """Share of the simulator processes' time without a request.

    skip, tail: iterations at the beginning and at the end that do not count.
    """
    rows = _rows(directory)
    begin, end = rows[skip]["until"], rows[-1 - tail]["until"]
    at_work = 0.0
    for row in rows:
        for _, _, seconds, _, came in row["answers"]:
            at_work += max(0.0, min(came, end) - max(came - seconds, begin))
    return 1 - at_work / (end - begin) / rows[-1]["schedule"]["workers"]


def _rows(directory: pathlib.Path) -> list[dict[str, Any]]:
    path = directory / FILE
    return [outside.parse_json(line, path) for line in lines.read(path)]


def _besides(row: Mapping[str, Any]) -> bool:
    return any(row["seconds"].get(f"time/{name}", 0.0) > 0 for name in BESIDES)


def _intervals(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[list]:
    return [interval for interval in _all(rows, "intervals") if interval[0] in names]


def _all(rows: Sequence[Mapping[str, Any]], name: str) -> list[list]:
    return list(itertools.chain.from_iterable(row[name] for row in rows))


def _of_answers(rows: Sequence[Mapping[str, Any]]) -> float:
    """Seconds of cores that go into requests and answers besides the simulators' own work."""
    workers = sum(row["cpu_s"]["children"] for row in rows)
    simulated = sum(cpu_s for _, _, _, cpu_s, _ in _all(rows, "answers"))
    waiting = sum(cpu_s for _, _, cpu_s, _ in _intervals(rows, ("env",)))
    return max(0.0, workers - simulated) + waiting


def _thinned(values: Sequence[float]) -> list[float]:
    """At most SAMPLES with the same mean, in order: means of neighbours."""
    parts = np.array_split(np.sort(values), min(SAMPLES, len(values)))
    return [round(float(part.mean()), 6) for part in parts]


def _threads(intervals: Sequence[Sequence]) -> float:
    """Cores that it keeps busy where others leave it any.

    All threads over the busiest one, which no load changes; where that is not known, what the
    luckiest intervals had.
    """
    _, seconds, cpu_s, busiest = zip(*intervals, strict=True)
    if all(busiest):
        return max(1.0, sum(cpu_s) / sum(busiest))
    shares = np.array(cpu_s) / np.maximum(seconds, 1e-6)
    # Of long intervals: the clock of short ones is too coarse.
    long = np.array(seconds) >= np.median(seconds)
    return max(1.0, float(np.quantile(shares[long], 0.95)))


def _lengths(answers: Sequence[Sequence]) -> list[int]:
    """Chunks between two resets of a slot; what began before or ends after is unknown."""
    found = []
    current: dict[int, int] = {}
    for slot, is_reset, *_ in answers:
        if is_reset and current.get(slot):
            found.append(current[slot])
        if is_reset:
            current[slot] = 0
        elif slot in current:
            current[slot] += 1
    return found


def _measured(row: Mapping[str, Any]) -> dict[str, float]:
    seconds = {name.removeprefix("time/"): value for name, value in row["seconds"].items()}
    cpu_s = row["cpu_s"]
    others = cpu_s["all"] - cpu_s["own"] - cpu_s["children"]
    return seconds | {"others": others / seconds["iteration"]}


# ---- the file ------------------------------------------------------------------------------------


def as_dict(recording: Recording) -> dict[str, Any]:
    """As JSON."""
    return _rounded(dataclasses.asdict(recording))


def read(path: pathlib.Path) -> Recording:
    """Of a file of `pirl bench async --record`.

    Raises:
      ValueError: the file is another one.
    """
    found = outside.read_json(path).get("result", {}).get("recording")
    names = {field.name for field in dataclasses.fields(Recording)}
    if not isinstance(found, dict) or set(found) != names:
        raise ValueError(f"{path} holds no recording; give a file of pirl bench async --record")
    return Recording(**found)


# ---- recorded against modelled -------------------------------------------------------------------


def modelled(recording: Recording, others: float = 0.0, iterations: int = 2) -> dict[str, float]:
    """Seconds of an iteration by part, as the run's stopwatches name them.

    others: cores that everybody else had while it was recorded; 0: none wanted any.
    """
    threads = _others(recording, others) if others else 0.0
    outcome = _run(recording, threads, iterations)
    return {
        "iteration": outcome.iteration_s,
        "env": outcome.simulators_s,
        "inference": outcome.inference_s,
        "update": outcome.update_s,
        "idle": outcome.idle_s,
    }


def _run(recording: Recording, threads: float, iterations: int) -> loop_model.Outcome:
    simulators = recording.simulators(threads)
    return loop_model.run(simulators, recording.programs(), recording.loop(), iterations=iterations)


def _others(recording: Recording, cores: float) -> float:
    """How many threads of theirs have so many cores of those that this run leaves them."""
    low, high = 0.0, MOST_OTHERS
    for _ in range(10):
        threads = (low + high) / 2
        if _run(recording, threads, 1).others < cores:
            low = threads
        else:
            high = threads
    return (low + high) / 2
