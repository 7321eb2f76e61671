"""Requests of many clients -> batches -> each client's own result.

Knows neither networks nor connections: a request is whatever the function takes.
"""

from collections.abc import Callable
from concurrent import futures
import dataclasses
import queue
import threading
import time
from typing import Any


@dataclasses.dataclass(frozen=True)
class _Submitted:
    """One request under way."""

    request: Any
    future: futures.Future  # of its result
    expected: int  # how many could ask at the time, this one included


class Batcher:
    """One thread that calls `infer` with at most max_rows requests at a time.

    A batch is what has come within window_s of its first request, or while the batch before was
    computed; nobody waits where all who could ask have asked.  The queue holds the requests under
    way; whoever submits bounds it.

    infer: requests -> as many results, in their order.
    """

    def __init__(self, infer: Callable[[list], list], max_rows: int, window_s: float) -> None:
        self._infer = infer
        self._max_rows = max_rows
        self._window_s = window_s
        self._queue: queue.SimpleQueue[_Submitted | None] = queue.SimpleQueue()  # None: close
        self._open = True
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    def submit(self, request: Any, expected: int) -> futures.Future:
        """The result to come; cancelled before its batch is made, it costs nothing.

        expected: how many could ask.
        """
        future: futures.Future = futures.Future()
        self._queue.put(_Submitted(request, future, expected))
        return future

    def close(self) -> None:
        """Computes what was submitted before and ends the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while self._open:
            batch = []
            for submitted in self._collect():
                # From here on the request cannot be cancelled any more; one that was is left out.
                if submitted.future.set_running_or_notify_cancel():
                    batch.append(submitted)
            if batch:
                self._compute(batch)

    def _compute(self, batch: list[_Submitted]) -> None:
        """Hand each request its result, or all of them the error."""
        try:
            results = self._infer([submitted.request for submitted in batch])
        except Exception as error:  # whatever it is, it belongs to those who wait
            for submitted in batch:
                submitted.future.set_exception(error)
            return
        for submitted, result in zip(batch, results, strict=True):
            submitted.future.set_result(result)

    def _collect(self) -> list[_Submitted]:
        """Wait for the requests of the next batch; what is there when the queue closes."""
        batch: list[_Submitted] = []
        size = self._max_rows
        deadline_s = None  # there is no hurry before the first request
        while len(batch) < size:
            left_s = None
            if deadline_s is not None:
                left_s = max(0.0, deadline_s - time.monotonic())
            try:
                submitted = self._queue.get(timeout=left_s)
            except queue.Empty:
                break
            if submitted is None:
                self._open = False
                break
            batch.append(submitted)
            # Nobody else can come once all who could ask have asked.
            size = min(submitted.expected, self._max_rows)
            if deadline_s is None:
                deadline_s = time.monotonic() + self._window_s
        return batch
