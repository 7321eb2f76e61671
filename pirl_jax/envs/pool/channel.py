"""Messages between the pool and one worker: pickles with their length in front, over a pair of connected sockets.

The pool's end never blocks: what the socket does not take now is sent later, and half a message is kept until the rest
has come.  So a worker that stops in the middle of a message, or reads nothing more, cannot hold the pool.
"""

import pickle
import socket
import struct
import time

HEADER = struct.Struct("!Q")  # bytes of the pickle that follows
READ_BYTES = 1 << 16


class PoolEnd:
    """The end that must never wait."""

    def __init__(self, end: socket.socket):
        end.setblocking(False)
        self._socket, self._inbox, self._outbox = end, bytearray(), bytearray()
        self.heard_s = time.monotonic()  # when the last byte came

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def full(self) -> bool:
        """Whether something waits here until the socket can be written again."""
        return bool(self._outbox)

    def put(self, message) -> None:
        """Send, now or in later calls of `flush`.  A dead peer is no error here: `take` tells."""
        self._outbox += _packed(message)
        self.flush()

    def flush(self) -> None:
        try:
            while self._outbox:
                del self._outbox[: self._socket.send(self._outbox)]
        except BlockingIOError:
            pass  # full; the rest stays in the outbox
        except ConnectionError:
            self._outbox.clear()  # nobody will read it

    def take(self) -> tuple[list, bool]:
        """Every message that is complete; whether the other end is gone (nothing more will come)."""
        data, over = b"", False
        try:
            while not over:
                data = self._socket.recv(READ_BYTES)
                self._inbox += data
                over = not data
                if 0 < len(data) < READ_BYTES:
                    break  # that was all for now
        except BlockingIOError:
            pass
        except ConnectionError:
            over = True  # the peer died with unread messages; what it had sent has been read before this
        if data:
            self.heard_s = time.monotonic()
        return list(self._complete()), over

    def close(self) -> None:
        self._socket.close()

    def _complete(self):
        while len(self._inbox) >= HEADER.size:
            end = HEADER.size + HEADER.unpack_from(self._inbox)[0]
            if len(self._inbox) < end:
                return
            yield pickle.loads(self._inbox[HEADER.size : end])
            del self._inbox[:end]


class WorkerEnd:
    """The end that waits: one message after the other."""

    def __init__(self, end: socket.socket):
        self._socket, self._stream = end, end.makefile("rb")

    def send(self, message) -> None:
        self._socket.sendall(_packed(message))

    def receive(self):
        """The next message; EOFError or ConnectionError once the pool has closed its end."""
        header = self._stream.read(HEADER.size)
        if len(header) < HEADER.size:
            raise EOFError("the pool has closed its end")
        return pickle.loads(self._stream.read(HEADER.unpack(header)[0]))


def _packed(message) -> bytes:
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return HEADER.pack(len(data)) + data
