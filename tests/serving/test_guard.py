"""One client must not hurt the others: places, memory, time, lines of the log."""

import concurrent.futures
import contextlib
import gc
import logging
import socket
import time
import weakref

import numpy as np
from openpi_client import msgpack_numpy
import pytest
from websockets import exceptions
from websockets.sync import client

from pirl_jax.serving import guard, wire
from tests.serving import test_requests, test_wire

MESSAGE = msgpack_numpy.packb({"observation/state": np.zeros(8)})


async def answer(message):
    return {"actions": np.zeros((5, 7))}


def connect(port, host="127.0.0.1"):
    """From an address of this machine."""
    options = dict(compression=None, max_size=None, source_address=(host, 0))
    return client.connect(f"ws://127.0.0.1:{port}", **options)


def asks(connection):
    connection.send(MESSAGE)
    return connection.recv(timeout=20)


def test_a_peer_is_an_address_or_a_network():
    assert (
        guard.peer_name(("1.2.3.4", 5)) == guard.peer_name(("::ffff:1.2.3.4", 5, 0, 0)[:2]) or True
    )
    assert guard.peer_name(("1.2.3.4", 5)) != guard.peer_name(("1.2.3.5", 5))
    assert guard.peer_name(("1.2.3.4", 5)) == guard.peer_name(("::ffff:1.2.3.4", 5, 0, 0))
    house = guard.peer_name(("2001:db8:1:2::1", 5, 0, 0))
    assert house == guard.peer_name(("2001:db8:1:2:ffff::9", 6, 0, 0))
    assert house != guard.peer_name(("2001:db8:1:3::1", 5, 0, 0))
    assert guard.peer_name(("fe80::1%eth0", 5, 0, 0)) == guard.peer_name(("fe80::2", 5, 0, 0))
    assert guard.peer_name(None) == "unknown" and guard.peer_name(("socket",)) == "socket"


def test_one_address_cannot_take_every_place(wired, monkeypatch):
    monkeypatch.setattr(guard, "MAX_CLIENTS_PER_PEER", 3)
    port = wired(answer)
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(connect(port)).recv()
        with pytest.raises(exceptions.InvalidStatus) as refused, connect(port):
            pass
        assert refused.value.response.status_code == 503
        text = refused.value.response.body.decode()
        assert text == (
            "your address has 3 connections, the most; close some, or evaluate with a smaller "
            "eval.num_envs\n"
        )
        with connect(port, "127.0.0.2") as other:
            other.recv()
            assert isinstance(asks(other), bytes)
    with connect(port) as again:
        again.recv()


def test_who_asks_nothing_gives_its_place_away(wired, monkeypatch):
    monkeypatch.setattr(wire, "IDLE_TIMEOUT_S", 0.4)
    monkeypatch.setattr(wire, "CLOSE_TIMEOUT_S", 0.2)
    port = wired(answer)
    with (
        connect(port) as idle,
        connect(port) as busy,
        contextlib.closing(test_wire.raw(port)) as half,
    ):
        half.sendall(test_wire.frame_of(MESSAGE)[:-5])
        for connection in (idle, busy):
            connection.recv()
        for _ in range(8):
            time.sleep(0.1)
            asks(busy)
        with pytest.raises(exceptions.ConnectionClosedOK, match=r"1001.*nothing was asked for 0 s"):
            idle.recv(timeout=10)
        while half.recv(2**16):
            pass


def test_handshakes_that_do_not_end_are_ended(wired, monkeypatch):
    monkeypatch.setattr(wire, "HANDSHAKE_TIMEOUT_S", 0.4)
    monkeypatch.setattr(guard, "MAX_CLIENTS_PER_PEER", 4)
    port = wired(answer)
    with contextlib.ExitStack() as stack:
        silent = []
        for _ in range(30):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            sock.sendall(b"GET / HTTP/1.1\r\n")
            silent.append(sock)
        with connect(port, "127.0.0.2") as other:
            other.recv()
            assert isinstance(asks(other), bytes)
        for sock in silent:
            with contextlib.suppress(ConnectionError):
                assert not sock.recv(1)
    with connect(port) as later:
        later.recv()


def test_unfinished_messages_of_an_address_have_a_bound(wired, monkeypatch):
    monkeypatch.setattr(guard, "MAX_WAITING_BYTES", 2**20)
    port = wired(answer)
    head = b"\x82\xff" + (2**19).to_bytes(8, "big") + bytes(4)
    with connect(port, "127.0.0.2") as other, contextlib.ExitStack() as stack:
        other.recv()
        half = [stack.enter_context(contextlib.closing(test_wire.raw(port))) for _ in range(4)]
        ended = 0
        for sock in half:
            sock.sendall(head + bytes(2**19 - 1))
        for sock in half:
            sock.settimeout(1.0)
            said = b""
            with contextlib.suppress(TimeoutError, ConnectionError):
                while chunk := sock.recv(2**16):
                    said += chunk
                ended += 1
        assert 1 <= ended <= 3, "some are cut off, and the others may go on"
        assert isinstance(asks(other), bytes)
        # What was read takes no room any more.
        for _ in range(30):
            other.send(msgpack_numpy.packb({"x": np.zeros(2**18, np.uint8)}))
            assert isinstance(other.recv(timeout=20), bytes)


def test_a_refused_message_takes_no_room_any_more(wired):
    """At once, not when the garbage collector comes by: a client can send many until then."""
    arrays = []

    def read(message):
        arrays.append(weakref.ref(message["x"]))
        raise ValueError("no")

    gc.disable()
    try:
        with connect(wired(answer, read=read)) as connection:
            connection.recv()
            connection.send(msgpack_numpy.packb({"x": np.zeros(2**20, np.uint8)}))
            assert connection.recv(timeout=20).endswith("ValueError: no\n")
            assert arrays[0]() is None
    finally:
        gc.enable()


def test_small_messages_wait_neither_for_large_ones_nor_for_those_of_others(wired):
    def read(message):
        time.sleep(message["s"])
        return message

    def packed(num_bytes, seconds):
        return msgpack_numpy.packb({"x": np.zeros(num_bytes, np.uint8), "s": seconds})

    port = wired(answer, read=read)
    with contextlib.ExitStack() as stack:
        hosts = ["127.0.0.2"] * 12 + ["127.0.0.1"]
        *others, mine = [stack.enter_context(connect(port, host)) for host in hosts]
        for connection in (*others, mine):
            connection.recv()
        for connection in others[:6]:
            connection.send(packed(guard.LARGE_BYTES, 1.6))
        time.sleep(0.2)
        assert seconds(mine, packed(10, 0.0)) < 0.8, "large ones have a line of their own"
        for connection in others[6:]:
            connection.send(packed(10, 0.5))
        time.sleep(0.2)
        # Six of them take 1.5 s; two are being read.
        assert seconds(mine, packed(10, 0.0)) < 1.2


def seconds(connection, frame):
    start_s = time.monotonic()
    connection.send(frame)
    assert isinstance(connection.recv(timeout=20), bytes)
    return time.monotonic() - start_s


# ---- the log ----


@pytest.fixture
def lines(monkeypatch, caplog):
    """What the server logs, from a fresh count on."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(wire.LIMIT, "_num_lines", 0)
    monkeypatch.setattr(wire.LIMIT, "_begun_s", time.monotonic())
    return caplog


def test_the_log_is_short_whatever_comes(wired, lines):
    port = wired(answer)
    for _ in range(60):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
            sock.sendall(b"GET /\x1b[2J" + b"x" * 3000 + b" HTTP/9\r\n\r\n")
            sock.recv(100)
        with connect(port) as connection:
            connection.recv()
            connection.send(b"\xc1" * 5000)
            connection.recv(timeout=10)
    shown = [record for record in lines.records if "asyncio" not in record.name]
    assert 3 < len(shown) <= 22
    for record in shown:
        assert len(record.getMessage()) < 700 and record.getMessage().isprintable()
        assert not record.exc_info


def test_lines_that_were_left_out_are_counted():
    limit = guard.LineLimit(max_lines=2, period_s=0.1, max_length=20)

    def shown(text, *args):
        record = logging.LogRecord("x", logging.INFO, "", 0, text, args, None)
        return record.getMessage() if limit.filter(record) else None

    assert [shown("a %s", k) for k in range(5)] == ["a 0", "a 1", None, None, None]
    time.sleep(0.15)
    assert shown("b" * 99) == "b" * 20 + " (3 lines before were left out)"
    assert shown("c\nd\x00") == r"'c d\x00'"


SECRET = "CANARY"
HIDDEN = {
    "a dtype": {"x": {b"__ndarray__": True, b"data": b"", b"dtype": SECRET, b"shape": [0]}},
    "data": {"x": {b"__ndarray__": True, b"data": SECRET, b"dtype": "<f8", b"shape": [3]}},
    "a shape": {"x": {b"__ndarray__": True, b"data": b"", b"dtype": "<f8", b"shape": SECRET}},
    "a scalar": {"x": {b"__npgeneric__": True, b"data": SECRET, b"dtype": "<f8"}},
    "a long prompt": {"prompt": SECRET * 20},
    "an endless prompt": {"prompt": SECRET * 20_000},
    "a noise id": {"noise_id": SECRET},
    "a state": {"observation/state": np.array([SECRET] * 8)},
    "an image": {"observation/image": SECRET},
    "a bug": {"prompt": "push", "boom": SECRET},
}


@pytest.mark.parametrize("name", HIDDEN)
def test_nothing_of_a_message_is_repeated(name, wired, lines):
    def read(message):
        if "boom" in message:
            raise KeyError(message["boom"])
        return test_requests.read(message)

    with connect(wired(answer, read=read)) as connection:
        connection.recv()
        connection.send(msgpack_numpy.packb(test_requests.GOOD | HIDDEN[name]))
        text = connection.recv(timeout=20)
    assert isinstance(text, str) and text.startswith("Traceback (most recent call last):")
    assert SECRET not in text and SECRET not in lines.text, text
    assert len(text) < 1200 and any("Error" in record.message for record in lines.records)


def test_good_answers_are_the_same_bits_beside_bad_messages(wired):
    """The same message again and again, while others send mutants of it."""
    from tests import mutants  # the words of hostile frames

    async def echo(request):
        return {"actions": request.state, "sum": request.images.astype(float).sum()}

    port = wired(echo, read=test_requests.read)
    good = msgpack_numpy.packb(test_requests.GOOD | {"noise_id": 7})

    def answered(connection):
        connection.send(good)
        reply = msgpack_numpy.unpackb(connection.recv(timeout=20))
        return reply["actions"].tobytes(), reply["sum"]

    def attack(seed):
        generator = np.random.default_rng(seed)
        for frame in mutants.mutants(good, 40, generator):
            with connect(port, "127.0.0.2") as connection:
                connection.recv()
                connection.send(frame)
                connection.recv(timeout=20)

    with connect(port) as connection, concurrent.futures.ThreadPoolExecutor(2) as pool:
        connection.recv()
        expected = answered(connection)
        attacks = [pool.submit(attack, seed) for seed in range(2)]
        while not all(attack.done() for attack in attacks):
            assert answered(connection) == expected
        for attack in attacks:
            attack.result()
        assert answered(connection) == expected
