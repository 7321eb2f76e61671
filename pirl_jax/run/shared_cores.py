"""A clock of simulated events, some of which need cores that they share with others.

Refuses to know what happens.
"""

import collections
from collections.abc import Callable
import heapq
import math


class Clock:
    """What happens when: after seconds of the wall, or after seconds of work on shared cores.

    All threads get the same share of the cores, so all tasks gain the same work in the same time:
    one number tells how much, and the next end is that of the smallest.
    """

    def __init__(self, cores: float, others: float) -> None:
        self.now = 0.0
        self._others = others
        self.of_others = 0.0  # seconds of cores
        self._cores = cores
        self._count = 0  # orders what ends at once
        self._timed: list[tuple] = []  # (end, count, action)
        self._worked = 0.0  # seconds of work that a task would have had since the start
        self._tasks: list[tuple] = []  # (worked at its end, count, threads, action)
        self._threads = 0.0

    def after(self, seconds: float, action: Callable[[], None], threads: float = 0.0) -> None:
        """threads: of the shared cores that it takes; 0: none."""
        self._count += 1
        if threads:
            self._threads += threads
            heapq.heappush(self._tasks, (self._worked + seconds, self._count, threads, action))
        else:
            heapq.heappush(self._timed, (self.now + seconds, self._count, action))

    def next(self) -> float:
        """When the next thing happens; infinity: nothing will."""
        timed = self._timed[0][0] if self._timed else math.inf
        return min(timed, self._next_task())

    def step(self) -> None:
        """Go there and let it happen."""
        at = self.next()
        is_task = self._next_task() <= at
        self._worked += (at - self.now) * self._rate()
        self.of_others += (at - self.now) * self._others * self._rate()
        self.now = at
        if is_task:
            self._worked, _, threads, action = heapq.heappop(self._tasks)
            self._threads -= threads
        else:
            _, _, action = heapq.heappop(self._timed)
        action()

    def _next_task(self) -> float:
        if not self._tasks:
            return math.inf
        return self.now + (self._tasks[0][0] - self._worked) / self._rate()

    def _rate(self) -> float:
        wanted = self._threads + self._others
        return self._cores / wanted if wanted > self._cores else 1.0


class Device:
    """Runs one program after the other."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiting: collections.deque = collections.deque()
        self.kind = ""  # of what runs

    def run(self, kind: str, seconds: float, threads: float, action: Callable[[], None]) -> None:
        """action: at its end."""
        self._waiting.append((kind, seconds, threads, action))
        if not self.kind:
            self._start()

    def _start(self) -> None:
        self.kind, seconds, threads, action = self._waiting.popleft()

        def end() -> None:
            self.kind = ""
            if self._waiting:
                self._start()
            action()

        self._clock.after(seconds, end, threads)
