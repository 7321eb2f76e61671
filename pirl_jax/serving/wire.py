"""openpi's policy protocol, the server's side: what goes over a WebSocket, in which order.

    server  binary   metadata, once
    client  binary   observation: msgpack, arrays as openpi_client.msgpack_numpy packs them
    server  binary   the answer and its server_timing; or, where the request failed:
            text     a traceback, then close code 1011

A connection has one request under way.  What a client sends, or fails to read, ends its own
connection only.  Refuses to know models.
"""

import asyncio
from collections.abc import Awaitable, Callable
import functools
import hmac
import http
import logging
import time
import traceback
from typing import Any

import msgpack
import numpy as np
from openpi_client import msgpack_numpy
from websockets import exceptions, frames, http11, protocol
from websockets import server as sans_io
from websockets.asyncio import server

log = logging.getLogger(__name__)

CLOSE_REASON = "Internal server error. Traceback included in previous frame."
MAX_FRAME_BYTES = 2**24  # two uint8 cameras of 224 px are 0.3 MB, of 1080 x 1920 px 12.4 MB
MAX_CLIENTS = 256
WRITE_TIMEOUT_S = 10.0  # a client that reads nothing for so long is cut off
REFUSED_KINDS = "VOc"  # numpy's: records, Python objects, complex numbers

Answer = Callable[[dict], Awaitable[dict]]  # observation -> what the client gets


def listen(answer: Answer, metadata: dict, api_key: str = "", **address: Any) -> server.Server:
    """The server, an asynchronous context.

    api_key: what clients must send; "": nothing.
    address: arguments of asyncio's create_server (host and port, or sock).
    """
    hello = msgpack_numpy.packb(metadata)
    return server.serve(
        functools.partial(_serve, answer=answer, hello=hello),
        compression=None,  # as openpi's server: pictures gain little for the time it takes
        max_size=MAX_FRAME_BYTES,
        max_queue=1,  # frames of one client that wait here: it has one request under way
        process_request=functools.partial(_check_handshake, api_key=api_key),
        create_connection=_Connection,
        **address,
    )


def _check_handshake(
    connection: server.ServerConnection, request: http11.Request, api_key: str
) -> http11.Response | None:
    """HTTP response to who does not get a WebSocket, else None."""
    if request.path == "/healthz":
        return connection.respond(http.HTTPStatus.OK, "OK\n")
    given = ", ".join(request.headers.get_all("Authorization"))
    wanted = f"Api-Key {api_key}"
    # In constant time: how long a comparison takes would tell how much of a guess is right.
    if api_key and not hmac.compare_digest(given.encode(), wanted.encode()):
        text = "send the header 'Authorization: Api-Key KEY'\n"
        return connection.respond(http.HTTPStatus.UNAUTHORIZED, text)
    if len(connection.server.connections) >= MAX_CLIENTS:
        text = f"{MAX_CLIENTS} clients are connected; come back later\n"
        return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, text)
    return None


class _Connection(server.ServerConnection):
    """The library closes without a word when a frame is too large.

    This one says so as it says every other error.
    """

    def __init__(self, state: sans_io.ServerProtocol, *args: Any, **options: Any) -> None:
        super().__init__(state, *args, **options)
        self._library_fail = state.fail
        state.fail = self._explain_and_fail

    def _explain_and_fail(self, code: int, reason: str = "") -> None:
        state = self.protocol
        if code == frames.CloseCode.MESSAGE_TOO_BIG and state.state is protocol.State.OPEN:
            log.warning("%s: %s", self.remote_address, reason)
            text = f"ValueError: the message is too large: {reason}; send smaller images"
            state.send_text(text.encode())
            code = frames.CloseCode.INTERNAL_ERROR
            reason = CLOSE_REASON
        self._library_fail(code, reason)


async def _serve(connection: server.ServerConnection, answer: Answer, hello: bytes) -> None:
    """One client, from its arrival until it leaves."""
    try:
        await _send(connection, hello)
        await _answer_requests(connection, answer)
    except exceptions.ConnectionClosed as closed:
        log.info("%s: %s", connection.remote_address, closed)


async def _answer_requests(connection: server.ServerConnection, answer: Answer) -> None:
    """One request after the other; returns after the first that fails."""
    previous_s = None  # how long the request before took, with waiting for it and sending
    while True:
        start_s = time.monotonic()
        frame = await connection.recv()
        try:
            message = await _reply(connection, frame, answer, previous_s)
        except exceptions.ConnectionClosed:
            raise
        except Exception as error:  # any of them is told to the client
            log.warning("%s: %s", connection.remote_address, error)
            await _send(connection, traceback.format_exc())
            await connection.close(frames.CloseCode.INTERNAL_ERROR, CLOSE_REASON)
            return
        await _send(connection, message)
        previous_s = time.monotonic() - start_s


async def _reply(
    connection: server.ServerConnection,
    frame: str | bytes,
    answer: Answer,
    previous_s: float | None,
) -> bytes:
    """The answer to a frame that has just arrived, packed."""
    arrived_s = time.monotonic()
    reply = await _while_connected(connection, answer(_unpack(frame)))
    timing = {"infer_ms": 1e3 * (time.monotonic() - arrived_s)}
    if previous_s is not None:
        # Of the request before: this one's sending is still to come.
        timing["prev_total_ms"] = 1e3 * previous_s
    return msgpack_numpy.packb(reply | {"server_timing": timing})


def _unpack(frame: str | bytes) -> dict:
    """The observation as the client had it; its keys and values are not checked here."""
    remedy = (
        "send what openpi_client.msgpack_numpy.packb makes of the observation, as a binary frame"
    )
    if isinstance(frame, str):
        raise ValueError(f"a text frame of {len(frame)} characters is no observation; {remedy}")
    try:
        message = msgpack.unpackb(frame, object_hook=_unpack_array)
    except Exception as error:  # msgpack and numpy raise half a dozen kinds
        raise ValueError(
            f"the message of {len(frame)} bytes cannot be unpacked ({error}); {remedy}"
        ) from error
    if not isinstance(message, dict):
        raise ValueError(f"the message is a {type(message).__name__} and no dict; {remedy}")
    return message


def _unpack_array(fields: dict) -> Any:
    """openpi's refuses these kinds when packing only.

    Bytes taken for Python objects would crash the process.
    """
    if b"dtype" in fields:
        dtype = np.dtype(fields[b"dtype"])
        if dtype.kind in REFUSED_KINDS:
            raise ValueError(f"Unsupported dtype: {dtype}")
    return msgpack_numpy.unpack_array(fields)


async def _while_connected(connection: server.ServerConnection, work: Awaitable[dict]) -> dict:
    """The result of `work`, which is cancelled when the client leaves before."""
    task = asyncio.ensure_future(work)
    closed = asyncio.ensure_future(connection.wait_closed())
    try:
        await asyncio.wait({task, closed}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise connection.protocol.close_exc
        return task.result()
    finally:
        task.cancel()
        closed.cancel()


async def _send(connection: server.ServerConnection, message: str | bytes) -> None:
    try:
        async with asyncio.timeout(WRITE_TIMEOUT_S):
            await connection.send(message)
    except TimeoutError:
        log.warning("%s reads nothing; cut off", connection.remote_address)
        connection.transport.abort()
        await connection.wait_closed()  # whatever comes next raises ConnectionClosed
