"""A policy behind openpi's protocol, ours or another's, as the decision function of an evaluation.

A server that is lost is looked for again; whatever else it does wrong is one sentence.  Refuses to
know what computes there, and does not trust it.
"""

import asyncio
from collections.abc import Coroutine, Iterator, Sequence
import contextlib
import dataclasses
import itertools
import logging
import socket
import ssl
import threading
import time
from typing import Any
import urllib.parse

import numpy as np
from openpi_client import msgpack_numpy
from websockets import exceptions, frames
from websockets.asyncio import client

from pirl_jax.core import endings
from pirl_jax.envs import base
from pirl_jax.rollout import actor as actors
from pirl_jax.rollout import stream
from pirl_jax.serving import messages, metadata, requests

IMAGE_SIZE_PX = 224  # what openpi's client sends to a server that names no size
MAX_IMAGE_SIZE_PX = 2048
# A server that computes in its event loop, as openpi's does, greets when it is done.
GREETING_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 600.0  # openpi's server compiles at its first request
CLOSE_TIMEOUT_S = 2.0
RECONNECT_S = 60.0  # a server that is started again with a checkpoint at hand is back by then
FIRST_PAUSE_S = 0.25  # between two attempts; doubled each time
MAX_PAUSE_S = 8.0
MAX_ANSWER_BYTES = 2**24  # an answer of 50 actions has some 3 kB; openpi's metadata may hold arrays
# The simulators' actions lie in [-1, 1] and a flow overshoots by a little: what is a hundred times
# larger is in other units, or no action at all.
MAX_ACTION = 100.0
MAX_REASON_LENGTH = 300  # characters of what a server says
# A kernel that is gone is noticed so, in about a minute: openpi's server answers no WebSocket ping
# while it computes.
KEEPALIVE = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))
# How a connection ends where the other side broke the protocol, and where it was asked too much.
BROKEN = (
    frames.CloseCode.PROTOCOL_ERROR,
    frames.CloseCode.INVALID_DATA,
    frames.CloseCode.MESSAGE_TOO_BIG,
)
CONTINUE = "the same command continues the evaluation"


log = logging.getLogger(__name__)


class _Lost(Exception):
    """A connection is gone: worth another attempt."""


class _Loop:
    """An event loop in a thread of its own: it answers pings while nobody asks anything.

    All of a connection happens in this one thread.  Two that read and write one TLS connection at
    the same time corrupt it, and not every CPython keeps them apart.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._work, name="connections", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        self._loop.run_forever()
        self._loop.run_until_complete(self._wind_up())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    async def _wind_up(self) -> None:
        """What still runs serves connections that are gone."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The result of `work`, which ends with whoever waits for it."""
        running = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return running.result()
        except BaseException:
            running.cancel()
            raise

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


@dataclasses.dataclass
class Remote:
    """Open connections to one server; a question goes over a connection of its own."""

    url: str
    api_key: str
    count: int
    tls: ssl.SSLContext | None  # None: a server at ws://
    greeting: Any = None  # the server's metadata, whatever it sent
    opened: list[client.ClientConnection] = dataclasses.field(default_factory=list)
    loop: _Loop = dataclasses.field(default_factory=_Loop)

    @property
    def name(self) -> str:
        """The server, for sentences and results."""
        return public(self.url)

    def open(self) -> None:
        """All connections.

        Raises:
            OSError, ValueError, exceptions.WebSocketException: there is no such server.
        """
        try:
            greetings = self.loop.run(self._connect())
            self.greeting = messages.unpack(greetings[0], any_key=True)  # the others say the same
        except BaseException:
            self.drop()
            raise

    async def _connect(self) -> list[str | bytes]:
        """What the server says first over each of the new connections."""
        headers = {"Authorization": f"Api-Key {self.api_key}"} if self.api_key else None
        for _ in range(self.count):
            connection = await client.connect(
                self.url,
                compression=None,
                max_size=MAX_ANSWER_BYTES,
                open_timeout=GREETING_TIMEOUT_S,
                ping_interval=None,
                close_timeout=CLOSE_TIMEOUT_S,
                additional_headers=headers,
                ssl=self.tls,
            )
            self.opened.append(connection)
            _watch(connection.transport.get_extra_info("socket"))
        async with asyncio.timeout(GREETING_TIMEOUT_S):
            return [await connection.recv() for connection in self.opened]

    def drop(self) -> None:
        """Every connection; a server that does not answer is not waited for."""
        self.loop.run(self._abort())

    async def _abort(self) -> None:
        for connection in self.opened:
            # A closing handshake would wait for each of them in turn.
            connection.transport.abort()
        self.opened = []

    def close(self) -> None:
        """The connections, and what serves them."""
        self.drop()
        self.loop.close()

    def ask(self, questions: Sequence[bytes]) -> list[Any]:
        """Answers to at most `count` questions, in their order.

        Raises:
            endings.Failure: the server fails, or does not come back.
        """
        first_loss_s = None
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                if not self.opened:
                    self._reopen()
                return self.loop.run(self._exchange(questions))
            except _Lost as loss:
                self.drop()
                now_s = time.monotonic()
                if first_loss_s is None:
                    first_loss_s = now_s
                    log.warning("%s is lost (%s); looking for it again", self.name, loss)
                if now_s + pause_s - first_loss_s > RECONNECT_S:
                    raise self.failure(
                        f"the connection was lost ({loss}), and none came back within "
                        f"{RECONNECT_S:.0f} s; start the server again, {CONTINUE}"
                    ) from loss
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, MAX_PAUSE_S)

    def failure(self, text: str) -> endings.Failure:
        """An ending that names the server."""
        return endings.Failure(f"--policy={self.name}: {text}")

    def _reopen(self) -> None:
        """The same server again, and not another one under its address."""
        known = metadata.as_json(self.greeting)
        try:
            self.open()
        except exceptions.InvalidStatus as refused:
            if refused.response.status_code in (401, 403):
                text = f"the server refuses the key now; give another --api-key, {CONTINUE}"
                raise self.failure(text) from refused
            raise _Lost(reason(refused)) from refused
        except (OSError, ValueError, EOFError, exceptions.WebSocketException) as error:
            raise _Lost(reason(error)) from error
        if metadata.as_json(self.greeting) != known:
            raise self.failure(
                "the server that came back serves something else (its metadata differ); serve what "
                f"was served before, {CONTINUE}"
            )

    async def _exchange(self, questions: Sequence[bytes]) -> list[Any]:
        """All questions at once: the server may make a batch of them."""
        asked = self.opened[: len(questions)]
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                for connection, question in zip(asked, questions, strict=True):
                    await connection.send(question)
                return [self._answer(await connection.recv()) for connection in asked]
        except TimeoutError as error:
            text = f"no answer came in {ANSWER_TIMEOUT_S:.0f} s; start it again, {CONTINUE}"
            raise self.failure(text) from error
        except exceptions.ConnectionClosed as closed:
            if closed.sent and closed.sent.code in BROKEN and not closed.rcvd:
                text = f"the server broke the protocol ({reason(closed)}); mend it, {CONTINUE}"
                raise self.failure(text) from closed
            if closed.rcvd and closed.rcvd.code in BROKEN:
                text = f"the server refused a question ({reason(closed)}); mend it, {CONTINUE}"
                raise self.failure(text) from closed
            raise _Lost(reason(closed)) from closed
        except OSError as error:
            raise _Lost(reason(error)) from error

    def _answer(self, reply: str | bytes) -> Any:
        if isinstance(reply, str):
            # openpi's server sends a traceback, whose last line says it.
            last = next(filter(str.strip, reversed(reply.splitlines())), "nothing")
            text = f"the server answered with an error ({_printable(last)}); mend it, {CONTINUE}"
            raise self.failure(text)
        try:
            return messages.unpack(reply, any_key=True)
        except ValueError as error:
            text = f"the server sent a malformed answer ({error}); mend it, {CONTINUE}"
            raise self.failure(text) from error


@contextlib.contextmanager
def connect(
    url: str, api_key: str, count: int, tls: ssl.SSLContext | None = None
) -> Iterator[Remote]:
    """`count` connections to a server; closed with the context.

    tls: for wss://.

    Raises:
        ValueError: the server cannot be reached, refuses the key, or does not speak the protocol.
    """
    if not (api_key.isascii() and api_key.isprintable()):
        raise ValueError("--api-key has characters that no HTTP header takes; give it as it is")
    remote = Remote(url, api_key, count, tls)
    try:
        _reach(remote)
        yield remote
    finally:
        remote.close()


def _reach(remote: Remote) -> None:
    try:
        remote.open()
    except (OSError, ValueError, OverflowError, EOFError, exceptions.WebSocketException) as error:
        remedy = (
            "start it with python -m pirl_jax.serve or openpi's serve_policy.py; "
            "give its key with --api-key"
        )
        if isinstance(error, ssl.SSLCertVerificationError):
            remedy = "give the certificate of who signed the server's with --tls-ca FILE"
        raise ValueError(
            f"--policy={remote.name} cannot be reached ({reason(error)}); {remedy}"
        ) from error


def public(url: str) -> str:
    """An address without the name, password or query that may stand in it."""
    try:
        parts = urllib.parse.urlsplit(url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
    except ValueError:
        return url.partition("://")[0] + "://"


def reason(error: BaseException) -> str:
    """What went wrong, in a few printable words; an HTTP answer says more in its body."""
    text = str(error) or type(error).__name__
    if isinstance(error, exceptions.InvalidStatus):
        body = bytes(error.response.body or b"").decode(errors="replace")
        text = f"{text}: {body}" if body.strip() else text
    return _printable(text)


def _printable(text: str) -> str:
    text = " ".join(text.split())[:MAX_REASON_LENGTH]
    return text if text.isprintable() else ascii(text)


def _watch(connected: socket.socket) -> None:
    """A machine that is gone is noticed by the kernel."""
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE:
        connected.setsockopt(socket.IPPROTO_TCP, option, value)


def decide(remote: Remote, spec: base.EnvSpec, action_chunk: int) -> stream.Decide:
    """The decisions of a server that has at least as many connections as a turn has rows.

    Raises:
        ValueError: its metadata ask for pictures of a size that makes no sense.
    """
    told = remote.greeting if isinstance(remote.greeting, dict) else {}
    size_px = told.get("image_size_px", IMAGE_SIZE_PX)
    if type(size_px) is not int or not 1 <= size_px <= MAX_IMAGE_SIZE_PX:
        raise ValueError(
            f"--policy={remote.name}: the server's metadata have an image_size_px that is no "
            f"number from 1 to {MAX_IMAGE_SIZE_PX}; serve with python -m pirl_jax.serve"
        )
    accepts = told.get("accepts")
    takes_noise_id = isinstance(accepts, list) and requests.NOISE_ID in accepts
    limit = actors.max_decisions(spec, action_chunk)

    def ask(turn: stream.Turn) -> np.ndarray:
        noise_ids = actors.decision_ids(turn, limit)
        questions = []
        for i in range(len(turn.row)):
            prompt = spec.instructions[turn.task[i]]
            message = requests.write(turn.step.images[i], turn.step.state[i], prompt, size_px)
            if takes_noise_id:
                message[requests.NOISE_ID] = int(noise_ids[i])
            questions.append(msgpack_numpy.packb(message))
        answers = remote.ask(questions)
        try:
            return np.stack([actions(answer, action_chunk, spec.action_dim) for answer in answers])
        except ValueError as error:
            raise remote.failure(str(error)) from error

    return ask


def actions(answer: Any, action_chunk: int, action_dim: int) -> np.ndarray:
    """[I,a] float32 of one answer; the server may have sent a longer horizon.

    Raises:
        ValueError: there are none that a simulator can execute; says which it was.
    """
    if not isinstance(answer, dict) or "actions" not in answer:
        there = f"has {messages.names(answer)}" if isinstance(answer, dict) else "is no dict"
        raise ValueError(f"the server's answer has no actions (it {there}); mend it, {CONTINUE}")
    actions_HA = _numbers(answer["actions"])
    shape = list(actions_HA.shape)
    if actions_HA.ndim != 2:
        raise ValueError(
            f"the server sent actions of shape {shape}, which is no matrix [horizon, "
            f"{action_dim}]; serve one observation at a time, as openpi's serve_policy.py does"
        )
    if shape[1] != action_dim:
        raise ValueError(
            f"the server sent actions of shape {shape}, but the robot has {action_dim} dimensions; "
            f"serve a checkpoint of this robot, with its output transform"
        )
    if shape[0] < action_chunk:
        raise ValueError(
            f"the server sent actions of shape {shape}, but {action_chunk} are executed; evaluate "
            f"with --config.model.action_chunk={shape[0] or 1} and another --output"
        )
    if not np.isfinite(actions_HA).all():
        raise ValueError(
            f"the server sent actions that are not finite; serve another checkpoint, {CONTINUE}"
        )
    actions_HA = actions_HA.astype(np.float64)  # integers have no absolute value of their smallest
    if np.abs(actions_HA).max() > MAX_ACTION:
        raise ValueError(
            f"the server sent actions beyond {MAX_ACTION:.0f}, but a simulator's lie in [-1, 1]; "
            f"serve with the statistics of the checkpoint, {CONTINUE}"
        )
    return actions_HA[:action_chunk].astype(np.float32)


def _numbers(value: Any) -> np.ndarray:
    """The actions as an array of numbers; other servers than openpi's send lists of lists."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "iuf":
        return value
    if isinstance(value, list):
        rows = [row if isinstance(row, list) else [row] for row in value]
        if all(type(x) in (int, float) for x in itertools.chain(*rows)):
            # Rows of different lengths, integers of any size.
            with contextlib.suppress(ValueError, OverflowError):
                return np.array(value, np.float64)
    raise ValueError(
        f"the server sent actions that are no array of numbers; send what "
        f"openpi_client.msgpack_numpy.packb makes of one, {CONTINUE}"
    )
