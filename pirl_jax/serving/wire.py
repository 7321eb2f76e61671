"""openpi's policy protocol, the server's side: what goes over a WebSocket, in which order.

    server  binary   metadata, once
    client  binary   observation: msgpack, arrays as openpi_client.msgpack_numpy packs them
    server  binary   the answer and its server_timing; or, where the request failed:
            text     a traceback of which the last line counts, then close code 1011

A connection has one request under way.  What a client sends, or fails to read, ends its own
connection only; nothing of it is repeated but key names and shapes.  Refuses to know models.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
import contextlib
import dataclasses
import functools
import hmac
import http
import logging
import ssl
import time
import traceback
from typing import Any

from openpi_client import msgpack_numpy
from websockets import exceptions, frames, http11
from websockets.asyncio import server

from pirl_jax.serving import guard, messages

log = logging.getLogger(__name__)
library_log = logging.getLogger("websockets.server")
LIMIT = guard.LineLimit()
log.addFilter(LIMIT)
library_log.addFilter(LIMIT)

MAX_FRAME_BYTES = 2**24  # two uint8 cameras of 224 px are 0.3 MB, of 1080 x 1920 px 12.4 MB
WRITE_TIMEOUT_S = 10.0  # a client that reads nothing for so long is cut off
HANDSHAKE_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 5.0
# A client that asks nothing for so long gives its place to another; ours reconnects.
IDLE_TIMEOUT_S = 600.0
MAX_ERROR_LENGTH = 1000  # characters
MAX_CALLS = 5  # of a mistake of ours, in the log
# The sentences of these two are ours.  Others may repeat what was sent: they stay in the log.
TOLD = (ValueError, RuntimeError)

Answer = Callable[[Any], Awaitable[dict]]  # request -> what the client gets


@dataclasses.dataclass(frozen=True)
class _Service:
    """What every connection is served with."""

    readers: guard.Readers
    read: Callable[[str | bytes], Any]  # frame -> request
    answer: Answer
    hello: bytes


@contextlib.asynccontextmanager
async def listen(
    answer: Answer,
    metadata: dict,
    api_key: str = "",
    read: Callable[[Any], Any] | None = None,
    tls: ssl.SSLContext | None = None,
    **address: Any,
) -> AsyncIterator[server.Server]:
    """The open server.

    api_key: what clients must send; "": nothing.
    read: message -> request, in a thread beside the event loop; None: the message itself.
    tls: None: in the clear.
    address: arguments of asyncio's create_server (host and port, or sock).
    """
    peers = guard.Peers()

    def read_frame(frame: str | bytes) -> Any:
        message = messages.unpack(frame)
        if not isinstance(message, dict):
            name = type(message).__name__
            raise ValueError(f"the message is a {name} and no dict; {messages.REMEDY}")
        return message if read is None else read(message)

    with guard.Readers() as readers:
        service = _Service(readers, read_frame, answer, msgpack_numpy.packb(metadata))
        async with server.serve(
            functools.partial(_serve, service=service),
            compression=None,  # as openpi's server: pictures gain little for the time it takes
            max_size=MAX_FRAME_BYTES,
            max_queue=1,  # frames of one client that wait here: it has one request under way
            open_timeout=HANDSHAKE_TIMEOUT_S,
            close_timeout=CLOSE_TIMEOUT_S,
            process_request=functools.partial(_check_handshake, api_key=api_key),
            create_connection=functools.partial(guard.Connection, peers=peers),
            logger=library_log,
            ssl=tls,
            **address,
        ) as running:
            yield running


def _check_handshake(
    connection: guard.Connection, request: http11.Request, api_key: str
) -> http11.Response | None:
    """HTTP response to who does not get a WebSocket, else None."""
    if request.path == "/healthz":
        return connection.respond(http.HTTPStatus.OK, "OK\n")
    given = ", ".join(request.headers.get_all("Authorization"))
    wanted = f"Api-Key {api_key}"
    # In constant time: how long a comparison takes would tell how much of a guess is right.
    if api_key and not hmac.compare_digest(
        given.encode(errors="surrogateescape"), wanted.encode(errors="surrogateescape")
    ):
        text = "send the header 'Authorization: Api-Key KEY'\n"
        return connection.respond(http.HTTPStatus.UNAUTHORIZED, text)
    if connection.peer.num_connections > guard.MAX_CLIENTS_PER_PEER:
        text = (
            f"your address has {guard.MAX_CLIENTS_PER_PEER} connections, the most; close some, "
            "or evaluate with a smaller eval.num_envs\n"
        )
        return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, text)
    if len(connection.server.connections) >= guard.MAX_CLIENTS:
        text = f"{guard.MAX_CLIENTS} clients are connected; come back later\n"
        return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, text)
    return None


async def _serve(connection: guard.Connection, service: _Service) -> None:
    """One client, from its arrival until it leaves."""
    try:
        await _send(connection, service.hello)
        await _answer_requests(connection, service)
    except exceptions.ConnectionClosed as closed:
        code = closed.rcvd.code if closed.rcvd else "no"
        log.info("%s: closed with %s code", connection.remote_address, code)


async def _answer_requests(connection: guard.Connection, service: _Service) -> None:
    """One request after the other; returns after the first that fails."""
    previous_s = None  # how long the request before took, with waiting for it and sending
    while True:
        start_s = time.monotonic()
        try:
            async with asyncio.timeout(IDLE_TIMEOUT_S):
                frame = await connection.recv()
        except TimeoutError:
            log.info("%s: idle for %.0f s", connection.remote_address, IDLE_TIMEOUT_S)
            reason = f"nothing was asked for {IDLE_TIMEOUT_S:.0f} s"
            await connection.close(frames.CloseCode.GOING_AWAY, reason)
            return
        told = ""
        try:
            message = await _reply(connection, frame, service, previous_s)
        except exceptions.ConnectionClosed:
            raise
        except Exception as error:  # any of them is told to the client
            told = _told(connection, error)
            _let_go(error)
        # It may be large, and a client may take its time to read and to close.
        del frame
        connection.message_is_read()
        if told:
            await _send(connection, told)
            await connection.close(frames.CloseCode.INTERNAL_ERROR, guard.CLOSE_REASON)
            return
        await _send(connection, message)
        previous_s = time.monotonic() - start_s


def _told(connection: guard.Connection, error: Exception) -> str:
    """The text of a failed request; what cannot be told is logged."""
    name = type(error).__name__
    if type(error) in TOLD:
        text = str(error)[:MAX_ERROR_LENGTH]
        log.warning("%s: %s: %s", connection.remote_address, name, text)
    else:
        text = "see the log of the server"
        # Where it happened, without what it says.
        calls = traceback.extract_tb(error.__traceback__)[-MAX_CALLS:]
        places = [f"{call.filename}:{call.lineno} {call.name}" for call in reversed(calls)]
        log.error("%s: %s at %s", connection.remote_address, name, " < ".join(places))
    return f"Traceback (most recent call last):\n  in the policy server\n{name}: {text}\n"


def _let_go(error: BaseException | None) -> None:
    """A traceback keeps the message alive until the garbage collector comes by."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


async def _reply(
    connection: guard.Connection,
    frame: str | bytes,
    service: _Service,
    previous_s: float | None,
) -> bytes:
    """The answer to a frame that has just arrived, packed."""
    arrived_s = time.monotonic()
    reply = await _while_connected(connection, _compute(connection, frame, service))
    timing = {"infer_ms": 1e3 * (time.monotonic() - arrived_s)}
    if previous_s is not None:
        # Of the request before: this one's sending is still to come.
        timing["prev_total_ms"] = 1e3 * previous_s
    return msgpack_numpy.packb(reply | {"server_timing": timing})


async def _compute(connection: guard.Connection, frame: str | bytes, service: _Service) -> dict:
    request = await service.readers.run(connection.peer, len(frame), service.read, frame)
    return await service.answer(request)


async def _while_connected(connection: guard.Connection, work: Awaitable[dict]) -> dict:
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


async def _send(connection: guard.Connection, message: str | bytes) -> None:
    try:
        async with asyncio.timeout(WRITE_TIMEOUT_S):
            await connection.send(message)
    except TimeoutError:
        log.warning("%s reads nothing; cut off", connection.remote_address)
        connection.transport.abort()
        await connection.wait_closed()  # whatever comes next raises ConnectionClosed
