"""What two processes of a cluster tell each other: lines of JSON over a socket, each perhaps with arrays behind it.
None of it is ever code."""

import json
import select
import socket
import time
from collections.abc import Mapping, Sequence

import numpy as np

_LONGEST = 1 << 22  # bytes of a line
_KINDS = {np.dtype(kind).str for kind in ("bool", "u1", "i1", "i4", "u4", "i8", "u8", "f2", "f4", "f8")}
# a machine that is switched off says nothing: after 20 seconds it is gone
_ALIVE = {
    socket.TCP_NODELAY: 1,
    socket.TCP_KEEPIDLE: 5,
    socket.TCP_KEEPINTVL: 5,
    socket.TCP_KEEPCNT: 3,
    socket.TCP_USER_TIMEOUT: 20_000,
}


class Connection:
    """One end of it."""

    def __init__(self, connected: socket.socket):
        self._socket = connected
        self._read = bytearray()  # and not yet asked for
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _ALIVE.items():
            connected.setsockopt(socket.IPPROTO_TCP, option, value)

    def say(self, message: Mapping, payload: Sequence[np.ndarray] = ()) -> None:
        """Send a message."""
        kinds = [[array.dtype.str, list(array.shape)] for array in payload]
        self._socket.sendall(json.dumps({**message, "arrays": kinds}).encode() + b"\n")
        for array in payload:
            self._socket.sendall(array.tobytes())

    def heard(self, with_arrays: bool = False, seconds: float | None = None) -> dict:
        """The next message, waited for, perhaps only so long; with arrays of one that is known. Raises EOFError where
        none comes any more, or what comes is none."""
        until = None if seconds is None else time.monotonic() + seconds
        while (end := self._read.find(b"\n")) < 0:
            if len(self._read) > _LONGEST:
                raise EOFError("a line without an end")
            left = None if until is None else max(0.0, until - time.monotonic())
            if not select.select([self._socket], [], [], left)[0]:
                raise EOFError("nothing is said")
            self._receive(1 << 16)
        try:
            message = dict(json.loads(self._taken(end + 1)))
            kinds = message["arrays"] if with_arrays else ()
            if unknown := [kind for kind, _ in kinds if kind not in _KINDS]:
                raise ValueError(unknown[0])
            arrays = [np.empty(shape, np.dtype(kind)) for kind, shape in kinds]
        except (ValueError, TypeError, LookupError, RecursionError, MemoryError) as error:
            raise EOFError("no message") from error
        for array in arrays:
            while len(self._read) < array.nbytes:
                self._receive(array.nbytes - len(self._read))
            array[...] = np.frombuffer(self._taken(array.nbytes), array.dtype).reshape(array.shape)
        return message | {"arrays": arrays}

    def has_more(self, wait: float = 0.0) -> bool:
        """Whether `heard` has something to say, if only that the other end is gone; waits for it so many seconds."""
        return bool(self._read) or bool(select.select([self._socket], [], [], wait)[0])

    def is_gone(self) -> bool:
        """Whether the other end is; what it has said before may still be there."""
        hung_up = select.POLLRDHUP | select.POLLHUP | select.POLLERR | select.POLLNVAL
        asked = select.poll()
        try:
            asked.register(self._socket, select.POLLRDHUP)
        except ValueError:  # closed here
            return True
        return any(found & hung_up for _, found in asked.poll(0))

    def _receive(self, most: int) -> None:
        try:
            found = self._socket.recv(min(most, 1 << 20))
        except OSError as error:
            raise EOFError(str(error)) from error
        if not found:
            raise EOFError("it is closed")
        self._read += found

    def _taken(self, count: int) -> bytes:
        found = bytes(self._read[:count])
        del self._read[:count]
        return found
