"""The pool's end of a channel never waits, whatever the worker's end does."""

import socket
import threading
import time

import numpy as np
import pytest

from pirl_jax.envs.pool import channel


@pytest.fixture
def sockets():
    pair = socket.socketpair()
    # PoolEnd makes it non-blocking; if it does not, the test ends all the same.
    pair[0].settimeout(5)
    pair[1].settimeout(5)
    yield pair
    for end in pair:
        end.close()


def test_messages_go_both_ways(sockets):
    pool = channel.PoolEnd(sockets[0])
    worker = channel.WorkerEnd(sockets[1])
    pool.put({"slot": 1})
    pool.put([2])
    assert worker.receive() == {"slot": 1}
    assert worker.receive() == [2]
    worker.send("a")
    worker.send("b")
    assert pool.take() == (["a", "b"], False)
    assert pool.take() == ([], False)


def test_half_a_message_is_kept_until_the_rest_comes(sockets):
    pool = channel.PoolEnd(sockets[0])
    data = channel._packed("x" * 100)
    for part in (data[:3], data[3:50]):
        sockets[1].sendall(part)
        assert pool.take() == ([], False)
    sockets[1].sendall(data[50:] + data[:10])
    assert pool.take() == (["x" * 100], False)
    sockets[1].sendall(data[10:])
    assert pool.take() == (["x" * 100], False)


def test_a_worker_that_reads_nothing_does_not_hold_the_pool(sockets):
    pool = channel.PoolEnd(sockets[0])
    worker = channel.WorkerEnd(sockets[1])
    actions = np.arange(100_000.0)
    for _ in range(10):
        pool.put(actions)  # 8 MB, far more than the socket takes
    assert pool.has_unsent
    received = []

    def read():
        for _ in range(10):
            received.append(worker.receive())

    reader = threading.Thread(target=read)
    reader.start()
    until_s = time.monotonic() + 5
    while pool.has_unsent and time.monotonic() < until_s:
        pool.flush()
    reader.join()
    np.testing.assert_array_equal(np.stack(received), np.stack([actions] * 10))


def test_what_came_before_the_end_is_kept(sockets):
    pool = channel.PoolEnd(sockets[0])
    # The kernel reports a reset to those who had something unread at the other end.
    pool.put("never read")
    sockets[1].sendall(channel._packed("last words") + b"half")
    sockets[1].close()
    messages, is_gone = pool.take()
    assert messages == ["last words"]
    assert is_gone or pool.take() == ([], True)
    pool.put("to nobody")
    assert not pool.has_unsent


def test_the_worker_sees_the_end(sockets):
    worker = channel.WorkerEnd(sockets[1])
    channel.PoolEnd(sockets[0]).close()
    with pytest.raises(EOFError):
        worker.receive()
