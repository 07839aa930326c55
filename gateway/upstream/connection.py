"""One connection to an engine.

A `Connection` is used by one attempt at a time (`owner`); its `_lock` guards `owner`, so that aborting an attempt can
never hit a connection that another attempt has taken over meanwhile. Its socket never blocks.
"""

from __future__ import annotations

import math
import select
import socket
import ssl
import threading
from typing import Any, Callable, Optional, Union

from gateway.steps import Readable, Steps, Writable
from gateway.upstream.resolver import Address

RECV_BYTES = 65536
# What some servers say on an idle connection before they close it (RFC 9110, 15.5.9): an end, not a surplus.
_IDLE_TOO_LONG = (b"HTTP/1.1 408", b"HTTP/1.0 408")

Asked = tuple[str, str]  # who has been asked: model and engine


_HAS_POLL = hasattr(select, "poll")


class Connection:
    """One TCP or TLS connection to an engine. Its socket does not block: who waits for it says so (`steps.py`).
    Deadlines come from a Watchdog through `abort`."""

    __slots__ = (
        "_lock",
        "_poll",
        "_tls",
        "_unwatch",
        "address",
        "asked",
        "descriptor",
        "idle_since_s",
        "owner",
        "sock",
        "used",
    )

    def __init__(self, sock: socket.socket, address: Optional[Address] = None) -> None:
        self.sock = sock
        self.address = address  # of the engine's name, it goes to; None: the engine has no name
        self.used = False  # an exchange has succeeded on it: the engine may have closed it since
        self.descriptor = -1  # the socket's, while a loop watches it
        self.asked: Asked = ("", "")  # by whom it was used last
        self._tls = isinstance(sock, ssl.SSLSocket)
        self._poll: Any = None  # made at the first look
        self._unwatch: Optional[Callable[[int], None]] = None
        self.idle_since_s = 0.0
        self.owner: Optional[object] = None
        self._lock = threading.Lock()

    def secure(self, sock: ssl.SSLSocket) -> None:
        """Talk TLS from now on, on the same descriptor."""
        self.sock = sock
        self._tls = True

    def received(self, until_s: float = math.inf) -> Steps[bytes]:
        """Receive what has come, or comes until then (of time.monotonic); b"" at the end. Raises OSError."""
        while True:
            try:
                return self.sock.recv(RECV_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError):
                ready = yield Readable(self, until_s)
            except ssl.SSLWantWriteError:
                ready = yield Writable((self,), until_s)
            if not ready:
                raise socket.timeout("timed out")

    def said(self) -> Optional[bytes]:
        """What has come; b"" at the end, None: nothing yet, whatever TLS has said to itself. Never blocks. Raises
        OSError."""
        try:
            return self.sock.recv(RECV_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None

    def sent(self, data: Union[bytes, memoryview]) -> Steps[bool]:
        """All of `data` has been taken; returns whether it was at once. Raises OSError."""
        at_once = True
        while True:
            try:
                size = self.sock.send(data)
            except (BlockingIOError, ssl.SSLWantWriteError):
                at_once = False
                yield Writable((self,))
                continue
            except ssl.SSLWantReadError:
                at_once = False
                yield Readable(self)
                continue
            if size == len(data):
                return at_once
            data = memoryview(data)[size:]

    def own(self, owner: Optional[object]) -> None:
        """Pass the connection to `owner`; None = nobody may abort it any more."""
        with self._lock:
            self.owner = owner

    def watched_by(self, unwatch: Callable[[int], None]) -> None:
        """A loop watches the socket from now on, until it is closed or `unwatch` is called."""
        self.descriptor = self.sock.fileno()
        self._unwatch = unwatch

    def unwatch(self) -> None:
        """Take the socket out of its loop: whoever waits for it from now on does so itself."""
        if self._unwatch is not None:
            self._unwatch(self.descriptor)
            self._unwatch = None
            self.descriptor = -1

    def quiet(self) -> bool:
        """Whether nothing has arrived, not even an end. Never blocks; for the only user of an idle connection."""
        if self._tls and self.sock.pending():  # type: ignore[attr-defined]
            return False  # read already, with the last answer's record
        if not _HAS_POLL:
            return not select.select([self.sock], [], [], 0)[0]
        poll = self._poll
        if poll is None:
            poll = self._poll = select.poll()
            poll.register(self.sock.fileno(), select.POLLIN)
        return not poll.poll(0)

    def surplus(self) -> bool:
        """Whether what has arrived is bytes that nobody had asked for. Only when not `quiet`; close it afterwards."""
        try:
            said = self.sock.recv(len(_IDLE_TOO_LONG[0]))
        except OSError:
            return False
        return bool(said) and said not in _IDLE_TOO_LONG

    def abort(self, owner: object) -> None:
        """Wake whoever waits for the socket and make it unusable, if `owner` still owns it. Never blocks."""
        with self._lock:
            if self.owner is owner:
                # The plain socket's shutdown: SSLSocket.shutdown would drop the TLS object under a reading thread.
                try:
                    socket.socket.shutdown(self.sock, socket.SHUT_RDWR)
                except OSError:
                    pass

    def close(self) -> None:
        """Close the socket."""
        self.unwatch()
        with self._lock:
            self.owner = None
            self.sock.close()
