"""One connection to the server: a socket that never blocks, over which one request after the other is sent and
answered.

It tells its `Watcher` (the loop) what it waits for and what has come of a request; it decides nothing about when or
what. A kept connection that the server closes before a byte of the answer has come was idle for too long, which says
nothing of the server: the request goes out once more on a new one, and counts from when it was sent first. One thread.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any, NamedTuple, Optional, Protocol

from gateway.tools.loadtest.exchange import Exchange
from gateway.tools.loadtest.requests import Request

RECEIVED_BYTES = 65536
READS_MAX = 16  # of one connection before others have their turn
_WOULD_BLOCK = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Endpoint(NamedTuple):
    """Where the server listens: an address that has been looked up, and for TLS the context and the name to ask for."""

    family: int
    address: Any
    tls: Optional[ssl.SSLContext] = None
    server_name: str = ""


class Watcher(Protocol):
    """Who waits for the sockets."""

    def now_ns(self) -> int:
        """The time."""

    def watch(self, sock: socket.socket, events: int, connection: Connection) -> None:
        """Call `ready` when one of the events happens; instead of what it was before."""

    def unwatch(self, sock: socket.socket) -> None:
        """Do not, any more: it is about to be closed."""

    def opened(self, took_ns: int) -> None:
        """A connection is there."""

    def resent(self) -> None:
        """A request goes out once more."""

    def answered(self, connection: Connection, exchange: Exchange, now_ns: int, connected: bool) -> None:
        """The request has ended; `connected` False: there was no connecting. The connection may be given another."""


def told(error: OSError) -> str:
    """What has happened, in few words and always the same."""
    if isinstance(error, ConnectionResetError):
        return "connection reset"
    if isinstance(error, BrokenPipeError):
        return "connection closed while sending"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or type(error).__name__}"
    if isinstance(error, (socket.timeout, TimeoutError)) and not error.strerror:
        return "timeout"
    return (error.strerror or type(error).__name__).lower()


class Connection:
    """One connection, opened when it is first needed. `due_ns` and `sent_ns` are the request's under way."""

    __slots__ = (
        "_connected",
        "_endpoint",
        "_events",
        "_left",
        "_opening_ns",
        "_sock",
        "_used",
        "_watcher",
        "due_ns",
        "exchange",
        "kept",
        "request",
        "sent_ns",
    )

    def __init__(self, endpoint: Endpoint, watcher: Watcher, kept: bool) -> None:
        self._endpoint = endpoint
        self._watcher = watcher
        self.kept = kept  # between requests
        self._sock: Optional[socket.socket] = None
        self._connected = False
        self._used = False  # an answer has come over this socket
        self._events = 0
        self._left: Optional[memoryview] = None  # of the request, to be sent
        self._opening_ns = 0
        self.request: Optional[Request] = None
        self.exchange: Optional[Exchange] = None
        self.due_ns = self.sent_ns = 0

    @property
    def is_open(self) -> bool:
        """Whether there is a socket."""
        return self._sock is not None

    def connecting_ns(self, now_ns: int) -> int:
        """How long it has tried to connect; 0: it does not."""
        return 0 if self._sock is None or self._connected else now_ns - self._opening_ns

    def begin(self, request: Request, due_ns: int, now_ns: int) -> None:
        """Send a request; the one before has ended."""
        self.request, self.due_ns, self.sent_ns = request, due_ns, now_ns
        self.exchange = Exchange(request.stream)
        self._left = None
        if self._sock is None:
            self._open(now_ns)
        else:
            self._write(request.wire)

    def close(self) -> None:
        """Close the socket, if there is one."""
        sock, self._sock = self._sock, None
        self._connected = self._used = False
        self._events = 0
        if sock is not None:
            self._watcher.unwatch(sock)
            sock.close()

    def give_up(self, why: str, now_ns: int) -> None:
        """End the request under way as a failure."""
        exchange = self.exchange
        if exchange is not None:
            exchange.fail(why if self._connected else f"connect: {why}")
            self._end(exchange, now_ns)

    def ready(self, sock: object, events: int) -> None:
        """The socket is ready for some of what was waited for; it may be one that is closed by now."""
        if sock is not self._sock:
            return
        try:
            if not self._connected:
                self._connect()
            elif events & EVENT_WRITE and self._left is not None:
                self._flush()
            if events & EVENT_READ and self._connected and self._sock is not None:
                self._read(self._sock)
        except _WOULD_BLOCK as want:
            self._watch(EVENT_WRITE if isinstance(want, ssl.SSLWantWriteError) else EVENT_READ)
        except OSError as error:
            self._broken(error)

    # --- opening -----------------------------------------------------------------------------------------------------

    def _open(self, now_ns: int) -> None:
        endpoint = self._endpoint
        self._opening_ns = now_ns
        try:
            sock = socket.socket(endpoint.family, socket.SOCK_STREAM)
        except OSError as error:
            self._broken(error)
            return
        self._sock = sock
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            status = sock.connect_ex(endpoint.address)
            if status not in (0, errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EINTR):
                raise OSError(status, os.strerror(status))
        except OSError as error:
            self._broken(error)
            return
        self._watch(EVENT_WRITE)

    def _connect(self) -> None:
        sock = self._sock
        assert sock is not None
        if self._endpoint.tls is None or not isinstance(sock, ssl.SSLSocket):
            status = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if status:
                raise OSError(status, os.strerror(status))
            if self._endpoint.tls is not None:
                self._watcher.unwatch(sock)
                self._events = 0
                sock = self._sock = self._endpoint.tls.wrap_socket(
                    sock, server_hostname=self._endpoint.server_name, do_handshake_on_connect=False
                )
        if isinstance(sock, ssl.SSLSocket):
            sock.do_handshake()
        self._connected = True
        self._watcher.opened(self._watcher.now_ns() - self._opening_ns)
        if self.request is not None:
            self._write(self.request.wire)

    # --- the request -------------------------------------------------------------------------------------------------

    def _write(self, wire: bytes) -> None:
        sock = self._sock
        assert sock is not None
        try:
            sent = sock.send(wire)
        except _WOULD_BLOCK:
            sent = 0
        except OSError as error:
            self._broken(error)
            return
        if sent < len(wire):
            self._left = memoryview(wire)[sent:]
            self._watch(EVENT_READ | EVENT_WRITE)
        elif self._events != EVENT_READ:
            self._watch(EVENT_READ)

    def _flush(self) -> None:
        sock, left = self._sock, self._left
        assert sock is not None and left is not None
        left = left[sock.send(left) :]
        self._left = left if len(left) else None
        if self._left is None:
            self._watch(EVENT_READ)

    def _watch(self, events: int) -> None:
        if self._left is not None:
            events |= EVENT_WRITE
        if self._sock is not None and events != self._events:
            self._events = events
            self._watcher.watch(self._sock, events, self)

    # --- the answer --------------------------------------------------------------------------------------------------

    def _read(self, sock: socket.socket) -> None:
        for _ in range(READS_MAX):
            try:
                data = sock.recv(RECEIVED_BYTES)
            except ssl.SSLError as error:
                if not isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
                    raise
                data = b""
            now_ns = self._watcher.now_ns()
            exchange = self.exchange
            if exchange is None:  # idle: closed, or something that nobody asked for
                self.close()
                return
            if not data:
                if self._is_stale(exchange):
                    self._resend(now_ns)
                else:
                    exchange.closed()
                    self._end(exchange, now_ns)
                return
            if exchange.feed(data, now_ns):
                self._end(exchange, now_ns)
                return
            # All that was there; a record of TLS is smaller than what was asked for, so none is left half read.
            if len(data) < RECEIVED_BYTES:
                return

    def _is_stale(self, exchange: Exchange) -> bool:
        return self._used and not exchange.begun

    def _resend(self, now_ns: int) -> None:
        request = self.request
        assert request is not None
        self.close()
        self._watcher.resent()
        self.exchange = Exchange(request.stream)
        self._left = None
        self._open(now_ns)

    def _broken(self, error: OSError) -> None:
        now_ns = self._watcher.now_ns()
        exchange = self.exchange
        if exchange is None:
            self.close()
        elif isinstance(error, ConnectionError) and self._connected and self._is_stale(exchange):
            self._resend(now_ns)
        else:
            connected = self._connected
            if connected and exchange.begun and isinstance(error, ConnectionResetError):
                exchange.fail("connection reset in the answer")
            else:
                exchange.fail(told(error) if connected else f"connect: {told(error)}")
            self._end(exchange, now_ns)

    def _end(self, exchange: Exchange, now_ns: int) -> None:
        connected = self._connected
        if not (self.kept and exchange.reusable and self._left is None):
            self.close()
        else:
            self._used = True
        self.exchange = self._left = None
        self._watcher.answered(self, exchange, now_ns, connected)
