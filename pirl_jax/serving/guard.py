"""What one client may cost the others: connections, memory, time of the readers, lines of the log.

A peer is an address, or a network of IPv6 (one house has 2**64 of those addresses).  Refuses to
know what messages mean.
"""

import asyncio
from collections.abc import Callable
from concurrent import futures
import dataclasses
import ipaddress
import logging
import threading
import time
from typing import Any, Self

from websockets import frames, protocol
from websockets import server as sans_io
from websockets.asyncio import server

MAX_CLIENTS = 512
# An evaluation opens a connection for each simulator that is decided on at once: 8 to 64.
MAX_CLIENTS_PER_PEER = 128
# Of the messages of a peer that are not read yet.  64 clients with two cameras of 640 x 480 px
# have 118 MB under way at most.
MAX_WAITING_BYTES = 2**28
MAX_UNSENT_BYTES = 2**26  # answers to pings of a client that reads nothing
NUM_READERS = 2  # threads that decode messages and resize pictures
LARGE_BYTES = 2**21  # messages from this size on have a thread of their own, and wait in its line
CLOSE_REASON = "Internal server error. Traceback included in previous frame."


@dataclasses.dataclass
class Peer:
    """What an address has open."""

    num_connections: int = 0
    waiting_bytes: int = 0
    # Of its messages, so many are read at a time: those of another peer are next.
    turn: asyncio.Semaphore = dataclasses.field(
        default_factory=lambda: asyncio.Semaphore(NUM_READERS)
    )


class Peers:
    """Everybody who has a connection, opening handshakes included."""

    def __init__(self) -> None:
        self._peers: dict[str, Peer] = {}

    def enter(self, name: str) -> Peer:
        """One more connection."""
        peer = self._peers.setdefault(name, Peer())
        peer.num_connections += 1
        return peer

    def leave(self, name: str) -> None:
        """One less."""
        self._peers[name].num_connections -= 1
        if not self._peers[name].num_connections:
            del self._peers[name]


def peer_name(remote_address: Any) -> str:
    """The peer that an address belongs to."""
    host = str(remote_address[0]) if remote_address else "unknown"
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if address.version == 4:
        return str(address)
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))


class Connection(server.ServerConnection):
    """One client.

    The library closes without a word when a frame is too large; this one says so as it says every
    other error.
    """

    peer: Peer

    def __init__(
        self, state: sans_io.ServerProtocol, *args: Any, peers: Peers, **options: Any
    ) -> None:
        super().__init__(state, *args, **options)
        self._peers = peers
        self._waiting_bytes = 0
        self._library_fail = state.fail
        state.fail = self._explain_and_fail

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._name = peer_name(self.remote_address)
        self.peer = self._peers.enter(self._name)
        # Beside those that are refused in words, which takes as long as a client wants to read.
        if self.peer.num_connections > 2 * MAX_CLIENTS_PER_PEER:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.message_is_read()
        self._peers.leave(self._name)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        # What comes when a connection has failed is thrown away.
        if self.protocol.state in (protocol.State.CONNECTING, protocol.State.OPEN):
            self._count(len(data))
        super().data_received(data)
        if self.transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            self.transport.abort()

    def _count(self, num_bytes: int) -> None:
        """Data of a message that is not read yet."""
        self._waiting_bytes += num_bytes
        self.peer.waiting_bytes += num_bytes
        if self.peer.waiting_bytes > MAX_WAITING_BYTES:
            reason = f"this address has sent {MAX_WAITING_BYTES} bytes of unfinished messages"
            self.protocol.fail(frames.CloseCode.MESSAGE_TOO_BIG, reason)
            self.message_is_read()

    def message_is_read(self) -> None:
        """What came until now takes no more room."""
        self.peer.waiting_bytes -= self._waiting_bytes
        self._waiting_bytes = 0

    def _explain_and_fail(self, code: int, reason: str = "") -> None:
        state = self.protocol
        if code == frames.CloseCode.MESSAGE_TOO_BIG and state.state is protocol.State.OPEN:
            self.logger.warning("%s: %s", self.remote_address, reason)
            text = f"ValueError: the message is too large: {reason}; send smaller images"
            state.send_text(text.encode())
            code = frames.CloseCode.INTERNAL_ERROR
            reason = CLOSE_REASON
        self._library_fail(code, reason)


class Readers:
    """Threads beside the event loop, a context; small messages do not wait for large ones."""

    def __init__(self) -> None:
        self._small = futures.ThreadPoolExecutor(NUM_READERS, "small messages")
        self._large = futures.ThreadPoolExecutor(1, "large messages")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._small.shutdown()
        self._large.shutdown()

    async def run(self, peer: Peer, num_bytes: int, read: Callable[[Any], Any], frame: Any) -> Any:
        """read(frame), of so many bytes."""
        threads = self._large if num_bytes >= LARGE_BYTES else self._small
        async with peer.turn:
            return await asyncio.get_running_loop().run_in_executor(threads, read, frame)


class LineLimit(logging.Filter):
    """Keeps a log short, whatever clients do: short lines, and few of them at a time."""

    def __init__(self, max_lines: int = 20, period_s: float = 10.0, max_length: int = 600) -> None:
        super().__init__()
        self._max_lines = max_lines
        self._period_s = period_s
        self._max_length = max_length
        self._lock = threading.Lock()
        self._begun_s = time.monotonic()
        self._num_lines = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is shown; makes one line of it."""
        with self._lock:
            left_out = self._count()
        if self._num_lines > self._max_lines:
            return False
        text = " ".join(record.getMessage().split())[: self._max_length]
        if record.exc_info and record.name.startswith("websockets"):
            # Its tracebacks are long, and show what a client has sent.
            kind = record.exc_info[0]
            text = f"{text} ({kind.__name__ if kind else 'unknown'})"
            record.exc_info = None
        if left_out:
            text = f"{text} ({left_out} lines before were left out)"
        record.msg = text if text.isprintable() else ascii(text)
        record.args = ()
        return True

    def _count(self) -> int:
        """One more line -> how many were left out of the period that has just ended."""
        now_s = time.monotonic()
        left_out = 0
        if now_s - self._begun_s > self._period_s:
            left_out = max(0, self._num_lines - self._max_lines)
            self._begun_s = now_s
            self._num_lines = 0
        self._num_lines += 1
        return left_out
