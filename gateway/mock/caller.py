"""One connection as the answering side sees it: write, wait, notice the end, close.

Owns the socket of one caller. Its lock guards only the socket's life, so that closing it and
shutting it down from another thread cannot meet; it is never held while bytes move. Sending and
waiting belong to the connection's own thread; `abort` and `nudge` may come from any.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable

from gateway.mock.loop import SelectorLoop

_LONGEST_WAIT_S = 60.0


class CallerLeft(Exception):
    """The caller closed its connection before the answer was complete."""


class EngineClosed(Exception):
    """The mock engine itself closed this connection: it ends, or refuses."""


class Caller:
    """The caller at the other end of one accepted connection."""

    def __init__(self, sock: socket.socket, loop: SelectorLoop) -> None:
        self.sock = sock
        self._loop = loop
        self._life = threading.Lock()
        self._nudged = threading.Event()
        self._left = False
        self._aborted = False
        self._watched = False

    def send(self, data: bytes) -> None:
        """Write `data` in one piece. Raises CallerLeft or EngineClosed when the other side, or
        this one, has closed."""
        try:
            self.sock.sendall(data)
        except OSError:
            raise self._end() from None

    def pause(self, seconds: float) -> None:
        """Wait `seconds` (0: not at all). Raises as `wait_until` does."""
        if seconds > 0:
            self.wait_until(lambda: False, seconds)

    def wait_until(self, reached: Callable[[], bool], seconds: float | None) -> None:
        """Wait until `reached()` holds, looked at whenever nudged, or `seconds` have passed.

        None waits without an end of its own. Raises CallerLeft as soon as the caller closes, and
        EngineClosed when the connection is aborted.
        """
        if not self._watched:
            self._watched = True
            self._loop.watch(self.sock, self._caller_left)
        ends_at = None if seconds is None else time.monotonic() + seconds
        while True:
            self._nudged.clear()
            if self._left or self._aborted:
                raise self._end()
            if reached():
                return
            left_s = _LONGEST_WAIT_S if ends_at is None else ends_at - time.monotonic()
            if left_s <= 0:
                return
            self._nudged.wait(min(left_s, _LONGEST_WAIT_S))

    def nudge(self) -> None:
        """Make a waiting connection look again at what it waits for."""
        self._nudged.set()

    def abort(self) -> None:
        """Close the connection from outside; whatever its thread does ends at once."""
        self._aborted = True
        with self._life:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)
        self.nudge()

    def unwatch(self) -> None:
        """Stop watching for the caller's leaving; the answer is complete."""
        if self._watched:
            self._watched = False
            self._loop.unwatch(self.sock)

    def close(self) -> None:
        """Close the connection in good order. May be called again."""
        self.unwatch()
        with self._life:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)
            self.sock.close()

    def reset(self) -> None:
        """Close the connection with a TCP reset: what is unsent is thrown away."""
        self.unwatch()
        linger = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
        with self._life:
            with contextlib.suppress(OSError):
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.sock.close()

    def _caller_left(self) -> None:
        self._left = True
        self.nudge()

    def _end(self) -> Exception:
        return EngineClosed() if self._aborted else CallerLeft()
