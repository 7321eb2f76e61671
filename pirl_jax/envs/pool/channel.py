"""Messages between the pool and one worker: pickles with their length in front, over two sockets.

The pool's end never blocks: what the socket does not take now is sent later, and half a message is
kept until the rest has come.  So a worker that stops in the middle of a message, or reads nothing
more, cannot hold the pool.  Refuses to know what the messages say; pickles will do, for both ends
are this program.
"""

from collections.abc import Iterator
import pickle
import socket
import struct
import time
from typing import Any

HEADER = struct.Struct("!Q")  # bytes of the pickle that follows
READ_BYTES = 1 << 16  # at most so many in one read


class PoolEnd:
    """The end that must never wait."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end
        self._inbox = bytearray()
        self._outbox = bytearray()
        self.heard_s = time.monotonic()  # when the last byte came

    def fileno(self) -> int:
        """What a selector needs to watch this end."""
        return self._socket.fileno()

    @property
    def has_unsent(self) -> bool:
        """Whether something waits here until the socket can be written again."""
        return bool(self._outbox)

    def put(self, message: Any) -> None:
        """Send, now or in later calls of `flush`.  A dead peer is no error here: `take` tells."""
        self._outbox += _packed(message)
        self.flush()

    def flush(self) -> None:
        """Send as much of what waits as the socket takes without blocking."""
        try:
            while self._outbox:
                num_sent = self._socket.send(self._outbox)
                del self._outbox[:num_sent]
        except BlockingIOError:
            pass  # the socket is full; the rest stays in the outbox
        except ConnectionError:
            self._outbox.clear()  # nobody will read it

    def take(self) -> tuple[list, bool]:
        """-> every message that is complete; whether the other end is gone for good."""
        is_gone = self._read()
        return list(self._complete()), is_gone

    def close(self) -> None:
        """The worker sees it as the end of its requests."""
        self._socket.close()

    def _read(self) -> bool:
        """Move what has come into the inbox -> whether nothing more will come."""
        try:
            while data := self._socket.recv(READ_BYTES):
                self._inbox += data
                self.heard_s = time.monotonic()
                if len(data) < READ_BYTES:
                    return False  # that was all for now
        except BlockingIOError:
            return False
        except ConnectionError:
            # The peer died with unread messages; what it had sent has been read before this.
            return True
        return True  # an empty read: the peer has closed its end

    def _complete(self) -> Iterator[Any]:
        """Take the messages whose last byte is there out of the inbox."""
        while len(self._inbox) >= HEADER.size:
            (num_bytes,) = HEADER.unpack_from(self._inbox)
            end = HEADER.size + num_bytes
            if len(self._inbox) < end:
                return
            yield pickle.loads(self._inbox[HEADER.size : end])
            del self._inbox[:end]


class WorkerEnd:
    """The end that waits: one message after the other."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._stream = end.makefile("rb")

    def send(self, message: Any) -> None:
        """Waits until the socket has taken all of it."""
        self._socket.sendall(_packed(message))

    def receive(self) -> Any:
        """The next message.

        Raises:
            EOFError, ConnectionError: the pool has closed its end.
        """
        header = self._stream.read(HEADER.size)
        if len(header) < HEADER.size:
            raise EOFError("the pool has closed its end")
        (num_bytes,) = HEADER.unpack(header)
        return pickle.loads(self._stream.read(num_bytes))


def _packed(message: Any) -> bytes:
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return HEADER.pack(len(data)) + data
