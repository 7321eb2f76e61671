"""openpi's policy protocol, the server's side: what goes over a WebSocket, in which order.  Refuses to know models.

    server  binary   metadata, once
    client  binary   observation: msgpack, arrays as openpi_client.msgpack_numpy packs them
    server  binary   the answer and its server_timing; or, where the request failed:
            text     a traceback, then close code 1011

A connection has one request under way.  What a client sends, or fails to read, ends its own connection only.
"""

import asyncio
from collections.abc import Awaitable, Callable
import functools
import hmac
import http
import logging
import time
import traceback

import msgpack
import numpy as np
from openpi_client import msgpack_numpy
from websockets import exceptions, frames, protocol
from websockets.asyncio import server

log = logging.getLogger(__name__)

CLOSE_REASON = "Internal server error. Traceback included in previous frame."
MAX_FRAME_BYTES = 2**24  # two uint8 cameras of 224 px are 0.3 MB, of 1080 x 1920 px 12.4 MB
MAX_CLIENTS = 256
WRITE_TIMEOUT_S = 10.0  # a client that reads nothing for so long is cut off

Answer = Callable[[dict], Awaitable[dict]]


def listen(answer: Answer, metadata: dict, api_key: str = "", **where) -> server.Server:
    """The server, an asynchronous context.  where: arguments of asyncio's create_server (host and port, or sock)."""
    hello = msgpack_numpy.packb(metadata)
    return server.serve(
        functools.partial(_serve, answer=answer, hello=hello),
        compression=None,
        max_size=MAX_FRAME_BYTES,
        max_queue=1,
        process_request=functools.partial(_door, api_key=api_key),
        create_connection=_Connection,
        **where,
    )


def _door(connection, request, api_key):
    """HTTP response to who does not get a WebSocket, else None."""
    if request.path == "/healthz":
        return connection.respond(http.HTTPStatus.OK, "OK\n")
    given = ", ".join(request.headers.get_all("Authorization"))
    if api_key and not hmac.compare_digest(given.encode(), f"Api-Key {api_key}".encode()):
        return connection.respond(
            http.HTTPStatus.UNAUTHORIZED, "send the header 'Authorization: Api-Key KEY'\n"
        )
    if len(connection.server.connections) >= MAX_CLIENTS:
        text = f"{MAX_CLIENTS} clients are connected; come back later\n"
        return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, text)
    return None


class _Connection(server.ServerConnection):
    """The library closes without a word when a frame is too large; this one says so as it says every other error."""

    def __init__(self, state, *args, **options):
        super().__init__(state, *args, **options)
        fail = state.fail

        def explain(code, reason=""):
            if code == frames.CloseCode.MESSAGE_TOO_BIG and state.state is protocol.State.OPEN:
                log.warning("%s: %s", self.remote_address, reason)
                state.send_text(
                    f"ValueError: the message is too large: {reason}; send smaller images".encode()
                )
                code, reason = frames.CloseCode.INTERNAL_ERROR, CLOSE_REASON
            fail(code, reason)

        state.fail = explain


async def _serve(connection, answer: Answer, hello: bytes):
    try:
        await _converse(connection, answer, hello)
    except exceptions.ConnectionClosed as closed:
        log.info("%s: %s", connection.remote_address, closed)


async def _converse(connection, answer, hello):
    await _send(connection, hello)
    previous_s = None
    while True:
        start_s = time.monotonic()
        frame = await connection.recv()
        arrived_s = time.monotonic()
        try:
            reply = await _unless_gone(connection, answer(_unpack(frame)))
            timing = {"infer_ms": 1e3 * (time.monotonic() - arrived_s)}
            if previous_s is not None:
                timing["prev_total_ms"] = (
                    1e3 * previous_s
                )  # of the request before: this one's sending is still to come
            message = msgpack_numpy.packb(reply | {"server_timing": timing})
        except exceptions.ConnectionClosed:
            raise
        except Exception as error:
            log.warning("%s: %s", connection.remote_address, error)
            await _send(connection, traceback.format_exc())
            await connection.close(frames.CloseCode.INTERNAL_ERROR, CLOSE_REASON)
            return
        await _send(connection, message)
        previous_s = time.monotonic() - start_s


def _unpack(frame: str | bytes) -> dict:
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


def _unpack_array(fields: dict):
    """openpi's refuses these kinds when packing only; bytes taken for Python objects would crash the process."""
    if b"dtype" in fields and (dtype := np.dtype(fields[b"dtype"])).kind in "VOc":
        raise ValueError(f"Unsupported dtype: {dtype}")
    return msgpack_numpy.unpack_array(fields)


async def _unless_gone(connection, work: Awaitable[dict]) -> dict:
    """The result of `work`, which is cancelled when the client leaves before."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(connection.wait_closed())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise connection.protocol.close_exc
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _send(connection, message: str | bytes):
    try:
        async with asyncio.timeout(WRITE_TIMEOUT_S):
            await connection.send(message)
    except TimeoutError:
        log.warning("%s reads nothing; cut off", connection.remote_address)
        connection.transport.abort()
        await connection.wait_closed()  # whatever comes next raises ConnectionClosed
