"""Requests of many clients -> batches -> each client's own result.  Knows neither networks nor connections."""

from collections.abc import Callable
from concurrent import futures
import queue
import threading
import time


class Batcher:
    """One thread that calls `infer` with at most max_rows requests at a time.

    A batch is what has come within window_s of its first request, or while the batch before was computed; nobody waits
    where all who could ask have asked.  The queue holds the requests under way; whoever submits bounds it.
    """

    def __init__(self, infer: Callable[[list], list], max_rows: int, window_s: float):
        self._infer, self._max_rows, self._window_s = infer, max_rows, window_s
        self._waiting: queue.SimpleQueue = (
            queue.SimpleQueue()
        )  # (request, future, expected); None: close
        self._open = True
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    def submit(self, request, expected: int) -> futures.Future:
        """The result to come; cancelled before its batch is made, it costs nothing.  expected: how many could ask."""
        future: futures.Future = futures.Future()
        self._waiting.put((request, future, expected))
        return future

    def close(self) -> None:
        """Computes what was submitted before and ends the thread."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self):
        while self._open:
            # A future that runs cannot be cancelled any more.
            batch = [
                (request, future)
                for request, future in self._collect()
                if future.set_running_or_notify_cancel()
            ]
            if not batch:
                continue
            requests, waiting = zip(*batch)
            try:
                results = self._infer(list(requests))
            except Exception as error:
                for future in waiting:
                    future.set_exception(error)
            else:
                for future, result in zip(waiting, results, strict=True):
                    future.set_result(result)

    def _collect(self) -> list:
        batch, deadline_s, size = [], None, self._max_rows
        while len(batch) < size:
            left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
            try:
                item = self._waiting.get(timeout=left_s)
            except queue.Empty:
                break
            if item is None:
                self._open = False
                break
            request, future, expected = item
            batch.append((request, future))
            size = min(expected, self._max_rows)
            deadline_s = deadline_s or time.monotonic() + self._window_s
        return batch
