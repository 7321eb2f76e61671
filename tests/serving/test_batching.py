"""Who is computed with whom, and who learns of a failure."""

from concurrent import futures
import contextlib
import threading
import time

import pytest

from pirl_jax.serving import batching


class Slow:
    """Squares; holds the first batch until released; notes the batches."""

    def __init__(self):
        self.batches = []
        self.started = threading.Event()
        self.release = threading.Event()

    def __call__(self, requests):
        self.batches.append(requests)
        self.started.set()
        assert self.release.wait(10)
        if "bad" in requests:
            raise RuntimeError("out of memory")
        return [request**2 for request in requests]


@pytest.fixture
def slow():
    return Slow()


@pytest.fixture
def batcher(slow):
    with contextlib.closing(batching.Batcher(slow, max_rows=4, window_s=0.0)) as batcher:
        yield batcher
        slow.release.set()


def held(slow, batcher):
    """The first request is being computed; what comes now waits."""
    first = batcher.submit(1, 99)
    assert slow.started.wait(10)
    return first


def test_what_came_meanwhile_is_computed_together(slow, batcher):
    waiting = [held(slow, batcher), *(batcher.submit(k, 99) for k in range(2, 8))]
    slow.release.set()
    assert [future.result(10) for future in waiting] == [1, 4, 9, 16, 25, 36, 49]
    assert slow.batches == [[1], [2, 3, 4, 5], [6, 7]]


def test_a_failure_reaches_its_batch_only(slow, batcher):
    first = held(slow, batcher)
    bad = batcher.submit("bad", 99)
    companion = batcher.submit(3, 99)
    # The first two fill the batch of the bad one.
    later = [batcher.submit(k, 99) for k in (4, 5, 6)]
    slow.release.set()
    for future in (bad, companion, *later[:2]):
        with pytest.raises(RuntimeError, match="out of memory"):
            future.result(10)
    assert first.result(10) == 1
    assert later[2].result(10) == 36


def test_a_cancelled_request_is_not_computed(slow, batcher):
    first = held(slow, batcher)
    gone = batcher.submit(2, 99)
    last = batcher.submit(3, 99)
    assert gone.cancel() and not first.cancel(), "what is being computed cannot be cancelled"
    slow.release.set()
    assert last.result(10) == 9
    assert slow.batches == [[1], [3]]


def test_the_window_waits_for_others_and_no_longer(slow):
    slow.release.set()
    with contextlib.closing(batching.Batcher(slow, max_rows=3, window_s=0.5)) as batcher:
        start_s = time.monotonic()
        futures.wait([batcher.submit(1, 99), batcher.submit(2, 99)])
        assert time.monotonic() - start_s >= 0.5
        start_s = time.monotonic()
        futures.wait([batcher.submit(k, 99) for k in (1, 2, 3)])
        assert time.monotonic() - start_s < 0.4, "a full batch does not wait"
        start_s = time.monotonic()
        futures.wait([batcher.submit(5, 2), batcher.submit(6, 2)])
        futures.wait([batcher.submit(7, 1)])
        assert time.monotonic() - start_s < 0.4, "where all have asked, nobody waits"
    assert slow.batches == [[1, 2], [1, 2, 3], [5, 6], [7]]


def test_closing_computes_what_was_submitted(slow):
    slow.release.set()
    batcher = batching.Batcher(slow, max_rows=3, window_s=10.0)
    waiting = [batcher.submit(1, 99), batcher.submit(2, 99)]
    batcher.close()
    assert [future.result(0) for future in waiting] == [1, 4]
