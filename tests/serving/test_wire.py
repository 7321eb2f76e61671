"""The protocol against the frames that openpi's server and client exchanged, and bad clients."""

import asyncio
import http.client
import json
import socket
import time

import numpy as np
from openpi_client import action_chunk_broker, msgpack_numpy, websocket_client_policy
import pytest
from websockets import exceptions
from websockets.sync import client

from pirl_jax.serving import guard, messages, wire

# openpi-client 0.1.2 calls websockets as version 16 wanted it; version 17 still allows that.
pytestmark = pytest.mark.filterwarnings(
    "ignore:connect.. must be used as a context manager:DeprecationWarning"
)


@pytest.fixture(scope="module")
def transcript(vectors):
    folder = vectors / "openpi" / "wire"
    read = json.loads((folder / "transcript.json").read_text())
    return read | {path.name: path.read_bytes() for path in folder.glob("*.bin")}


def connect(port, **options):
    return client.connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None, **options)


class Fake:
    """The policy of the transcript: action i of dimension d of call n is 100 n + 7 i + d."""

    def __init__(self):
        self.calls = 0

    async def __call__(self, message):
        if message.get("prompt") == "boom":
            raise ValueError("boom happened")
        self.calls += 1
        actions = (100 * self.calls + np.arange(70)).reshape(10, 7).astype(np.float32)
        return {
            "actions": actions,
            "state": message["observation/state"],
            "policy_timing": {"infer_ms": 1.5},
        }


def test_every_frame_is_openpis_byte_for_byte(wired, transcript):
    """The client's recorded frame goes in; our frames differ in the measured times alone."""
    with connect(wired(Fake(), transcript["client_metadata"])) as connection:
        assert connection.recv() == transcript["0_server_metadata.bin"]
        for name in ("2_server_action_first.bin", "3_server_action_second.bin"):
            connection.send(transcript["1_client_obs.bin"])
            frame = connection.recv()
            ours, theirs = (msgpack_numpy.unpackb(x) for x in (frame, transcript[name]))
            assert 0 < ours["server_timing"]["infer_ms"] < 1e4
            assert list(ours["server_timing"]) == list(theirs["server_timing"])
            ours["server_timing"] = theirs["server_timing"]
            assert msgpack_numpy.packb(ours) == transcript[name]


def test_the_total_of_the_request_before_includes_waiting_for_it(wired):
    with connect(wired(Fake())) as connection:
        connection.recv()
        message = msgpack_numpy.packb({"observation/state": np.zeros(8)})
        time.sleep(0.2)
        for _ in range(2):
            connection.send(message)
            timing = msgpack_numpy.unpackb(connection.recv())["server_timing"]
        assert 200 <= timing["prev_total_ms"] < 5000


def test_arrays_are_packed_as_openpi_packs_them(transcript):
    """openpi's own library does it; this pins that no version of it, numpy, msgpack changes it."""
    for name, case in transcript["pack_cases"].items():
        frame = transcript[f"pack_{name}.bin"]
        assert frame == bytes.fromhex(case["hex"])
        assert msgpack_numpy.packb(messages.unpack(frame)) == frame, name


def test_the_unmodified_client_and_broker(wired, transcript):
    fake = Fake()
    port = wired(fake, {"name": "fake"})
    policy = websocket_client_policy.WebsocketClientPolicy("127.0.0.1", port)
    assert policy.get_server_metadata() == {"name": "fake"}
    fake.calls = 2  # as many as the transcript had made
    broker = action_chunk_broker.ActionChunkBroker(policy, action_horizon=4)
    message = {"observation/state": np.float64(0.5)}
    steps = [broker.infer(message) for _ in transcript["broker_action0_sequence"]]
    assert [float(step["actions"][0]) for step in steps] == transcript["broker_action0_sequence"]
    assert steps[0]["actions"].shape == (7,)
    assert steps[0]["policy_timing"] == {"infer_ms": 1.5}
    policy._ws.close()


def test_an_error_is_a_traceback_and_closes(wired, transcript):
    port = wired(Fake())
    with connect(port) as connection:
        connection.recv()
        connection.send(msgpack_numpy.packb({"prompt": "boom"}))
        text = connection.recv()
        assert text.startswith(transcript["error_frame_head"])
        assert text.rstrip().split("\n")[-1] == transcript["error_frame_last_line"]
        with pytest.raises(exceptions.ConnectionClosedError) as closed:
            connection.recv()
        last = closed.value.rcvd
        assert (last.code, last.reason) == (transcript["close_code"], transcript["close_reason"])
    policy = websocket_client_policy.WebsocketClientPolicy("127.0.0.1", port)
    with pytest.raises(RuntimeError, match=transcript["client_error"]):
        policy.infer({"prompt": "boom"})
    policy._ws.close()


def get(port, path, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    result = response.status, response.headers, response.read().decode()
    connection.close()
    return result


def test_the_health_check(wired, transcript):
    status, headers, body = get(wired(Fake(), api_key="secret"), "/healthz")
    expected = transcript["healthz"]
    assert (status, body) == (expected["status"], expected["body"])
    for name in ("Connection", "Content-Length", "Content-Type"):
        assert headers[name] == expected["headers"][name]


def test_the_api_key_opens(wired):
    port = wired(Fake(), api_key="secret")
    policy = websocket_client_policy.WebsocketClientPolicy("127.0.0.1", port, api_key="secret")
    assert policy.infer({"observation/state": np.zeros(8)})["actions"].shape == (10, 7)
    policy._ws.close()
    for key in (None, "wrong", "secret2"):
        with pytest.raises(exceptions.InvalidStatus, match="401"):
            websocket_client_policy.WebsocketClientPolicy("127.0.0.1", port, api_key=key)


MALFORMED = {
    "no msgpack": b"\xc1\xc1\xc1",
    "cut short": msgpack_numpy.packb({"observation/state": np.zeros(8)})[:-3],
    "left over": msgpack_numpy.packb({}) + b"\x01",
    "shape beyond the data": msgpack_numpy.packb(
        {"x": {b"__ndarray__": True, b"data": b"12", b"dtype": "<f8", b"shape": [9]}}
    ),
    "object array": msgpack_numpy.packb(
        {"x": {b"__ndarray__": True, b"data": b"8" * 8, b"dtype": "O", b"shape": [1]}}
    ),
    "object scalar": msgpack_numpy.packb(
        {"x": {b"__npgeneric__": True, b"data": 1, b"dtype": "O"}}
    ),
    "objects in a record": msgpack_numpy.packb(
        {"x": {b"__ndarray__": True, b"data": b"8" * 16, b"dtype": "O,i8", b"shape": []}}
    ),
    "void of 2 GB": msgpack_numpy.packb(
        {"x": {b"__npgeneric__": True, b"data": 2**31 - 1, b"dtype": "V"}}
    ),
    "no dtype": msgpack_numpy.packb({"x": {b"__ndarray__": True, b"data": b"12", b"shape": [2]}}),
    "nested deep": b"\x91" * 100_000,
    "claims 4e9 elements": b"\xdd\xff\xff\xff\xff",
    "unhashable key": b"\x81\x90\x01",
    "not a dict": msgpack_numpy.packb([1, 2]),
    "an array": msgpack_numpy.packb(np.zeros(3)),
    "text": "hello",
}


@pytest.fixture
def short_limits(monkeypatch):
    monkeypatch.setattr(wire, "MAX_FRAME_BYTES", 2**20)
    monkeypatch.setattr(guard, "MAX_CLIENTS", 8)
    monkeypatch.setattr(wire, "WRITE_TIMEOUT_S", 0.3)


def test_malformed_messages_are_answered_and_hurt_nobody(wired, short_limits):
    port = wired(Fake())
    bystander = websocket_client_policy.WebsocketClientPolicy("127.0.0.1", port)
    cases = MALFORMED | {
        "oversized": b"\x00" * (2**20 + 1),
        "much too large": b"\x00" * (30 * 2**20),
    }
    for name, frame in cases.items():
        with connect(port) as connection:
            connection.recv()
            connection.send(frame)
            text = connection.recv(timeout=10)
            assert isinstance(text, str) and "send " in text.rstrip().split("\n")[-1], (name, text)
            with pytest.raises(exceptions.ConnectionClosedError) as closed:
                connection.recv(timeout=10)
            last = closed.value.rcvd
            assert (last.code, last.reason) == (1011, guard.CLOSE_REASON), name
        assert bystander.infer({"observation/state": np.zeros(8)})["actions"].shape == (10, 7)
    bystander._ws.close()


def raw(port):
    """A TCP connection through the opening handshake, with little room for answers."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(10)
    sock.connect(("127.0.0.1", port))
    lines = [
        "GET / HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
        "",
        "",
    ]
    sock.sendall("\r\n".join(lines).encode())
    assert sock.recv(12) == b"HTTP/1.1 101"
    return sock


def frame_of(payload: bytes) -> bytes:
    """A masked binary frame; the mask is zero."""
    return b"\x82" + bytes([0x80 | 126]) + len(payload).to_bytes(2, "big") + bytes(4) + payload


def test_clients_that_read_nothing_or_stop_half_way_cost_nothing(wired, short_limits):
    answered = []

    async def answer(message):
        answered.append(message)
        return {"actions": np.zeros(2**21, np.uint8)}

    port = wired(answer)
    message = msgpack_numpy.packb({"observation/state": np.zeros(8)})
    half = [raw(port) for _ in range(2)]
    for sock in half:
        sock.sendall(frame_of(message)[:-20])
    deaf = [raw(port) for _ in range(3)]
    for sock in deaf:
        sock.sendall(frame_of(message) * 50)
    start_s = time.monotonic()
    policy = websocket_client_policy.WebsocketClientPolicy("127.0.0.1", port)
    for _ in range(10):
        assert policy.infer({})["actions"].size == 2**21
    assert time.monotonic() - start_s < 5
    time.sleep(0.5)  # past the write timeout
    assert len(answered) < 10 + 3 * 10, "a client that reads nothing must not go on asking"
    for sock in deaf:
        with pytest.raises(ConnectionError):
            while sock.recv(2**20):
                pass
            sock.sendall(frame_of(message) * 50)
            sock.recv(1)
            raise ConnectionError
    for sock in (*half, *deaf):
        sock.close()
    policy._ws.close()


def test_work_for_a_client_that_left_is_cancelled(wired):
    states = []

    async def answer(message):
        states.append("started")
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            states.append("cancelled")
            raise

    with connect(wired(answer)) as connection:
        connection.recv()
        connection.send(msgpack_numpy.packb({}))
        while not states:
            time.sleep(0.01)
    deadline_s = time.monotonic() + 5
    while states != ["started", "cancelled"]:
        assert time.monotonic() < deadline_s, states
        time.sleep(0.01)


def test_no_more_clients_than_there_is_room_for(wired, short_limits):
    port = wired(Fake())
    inside = [connect(port) for _ in range(8)]
    with pytest.raises(exceptions.InvalidStatus, match="503"):
        connect(port)
    assert get(port, "/healthz")[0] == 200
    inside.pop().close()
    time.sleep(0.1)
    connect(port).close()
    for connection in inside:
        connection.close()
