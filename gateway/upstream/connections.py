"""Keep-alive connections to one engine address.

`ConnectionPool` owns the idle connections of one address; a deque whose single operations are atomic holds them, so it
needs no lock. A `Connection` is used by one attempt at a time (`owner`); its `_lock` guards `owner`, so that aborting
an attempt can never hit a connection that another attempt has taken over meanwhile.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections import deque
from typing import Callable, Optional

DONTWAIT = getattr(socket, "MSG_DONTWAIT", 0)
IDLE_MAX_S = 60.0
IDLE_MAX_COUNT = 512  # per address; more are closed rather than kept


class Connection:
    """One TCP or TLS connection to an engine. Sockets block: deadlines come from a Watchdog through `abort`."""

    __slots__ = ("_lock", "_unwatch", "descriptor", "idle_since_s", "owner", "sock", "stale", "used")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.used = False  # an exchange has succeeded on it: the engine may have closed it since
        self.descriptor = -1  # the socket's, while a loop watches it
        self.stale = False  # the engine has closed it, or said what nobody had asked
        self._unwatch: Optional[Callable[[int], None]] = None
        self.idle_since_s = 0.0
        self.owner: Optional[object] = None
        self._lock = threading.Lock()

    def own(self, owner: Optional[object]) -> None:
        """Pass the connection to `owner`; None = nobody may abort it any more."""
        with self._lock:
            self.owner = owner

    def watched_by(self, unwatch: Callable[[int], None]) -> None:
        """A loop watches the socket from now on, until it is closed or `unwatch` is called."""
        self.descriptor = self.sock.fileno()
        self._unwatch = unwatch

    def unwatch(self) -> None:
        """Whoever waits for the socket from now on does so itself: no loop is to be woken by what arrives."""
        if self._unwatch is not None:
            self._unwatch(self.descriptor)
            self._unwatch = None
            self.descriptor = -1

    def arrived(self, events: int) -> None:
        """Something has arrived at an idle connection: mostly its end. To be called by the loop that watches it."""
        try:
            self.stale = self.stale or len(self.sock.recv(1, socket.MSG_PEEK | DONTWAIT)) >= 0
        except BlockingIOError:
            pass  # it has been taken already
        except OSError:
            self.stale = True

    def abort(self, owner: object) -> None:
        """Wake whoever blocks on the socket and make it unusable, if `owner` still owns it. Never blocks."""
        with self._lock:
            if self.owner is owner:
                # The plain socket's shutdown: SSLSocket.shutdown would drop the TLS object under a reading thread.
                try:
                    socket.socket.shutdown(self.sock, socket.SHUT_RDWR)
                except OSError:
                    pass

    def close(self) -> None:
        """Close the socket."""
        with self._lock:
            self.owner = None
            self.sock.close()


class ConnectionPool:
    """Idle connections to one address, the last used first. Thread-safe."""

    def __init__(self, host: str, port: int, tls: Optional[ssl.SSLContext], connect_timeout_s: float) -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self.plain = tls is None
        self._connect_timeout_s = connect_timeout_s
        self._family = _address_family(host)
        self._idle: deque[Connection] = deque()
        self._closed = False

    def take(self) -> Optional[Connection]:
        """An idle connection, or None. It may have died: the caller asks again on a fresh one then."""
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def connect(self, timeout_s: float) -> Connection:
        """Open a connection within min(`timeout_s`, the connect timeout) seconds. Raises OSError."""
        timeout_s = max(0.001, min(timeout_s, self._connect_timeout_s))
        if self._family is None:
            sock = socket.create_connection((self._host, self._port), timeout_s)
        else:
            sock = socket.socket(self._family, socket.SOCK_STREAM)
        try:
            if self._family is not None:
                sock.settimeout(timeout_s)
                sock.connect((self._host, self._port))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_hostname=self._host)
            sock.settimeout(None)
        except BaseException:
            sock.close()
            raise
        return Connection(sock)

    def begin_connect(self) -> Optional[Connection]:
        """A connection that may still be under way: it can be written to once its socket says so, or says why not.

        None where that cannot be had without waiting: the host is a name, or TLS has to shake hands. Raises OSError.
        """
        if self._family is None or not self.plain or not DONTWAIT:
            return None
        sock = socket.socket(self._family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.connect_ex((self._host, self._port))  # what it says, writing says again
            sock.setblocking(True)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            sock.close()
            raise
        return Connection(sock)

    def give(self, connection: Connection) -> None:
        """Keep a connection whose exchange is complete. Its owner is gone before anyone else can take it."""
        connection.own(None)
        connection.used = True
        connection.idle_since_s = time.monotonic()
        if self._closed or len(self._idle) >= IDLE_MAX_COUNT:
            connection.close()
            return
        self._idle.append(connection)
        if self._closed:
            self.close()

    def prune(self, idle_max_s: float = IDLE_MAX_S) -> None:
        """Close what has been idle for longer than `idle_max_s` (the oldest are at the left)."""
        oldest_s = time.monotonic() - idle_max_s
        for _ in range(len(self._idle)):
            try:
                connection = self._idle.popleft()
            except IndexError:
                return
            if connection.idle_since_s > oldest_s:
                self._idle.appendleft(connection)
                return
            connection.close()

    def discard_idle(self) -> None:
        """Close every idle connection: the engine behind them has gone."""
        self.prune(0.0)

    def __len__(self) -> int:
        return len(self._idle)

    def close(self) -> None:
        """Close idle connections now and those in use when they are given back."""
        self._closed = True
        self.prune(-1.0)


def _address_family(host: str) -> Optional[int]:
    """The family of a numeric address, which needs no look-up; None for a name."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
            return family
        except (OSError, ValueError):
            continue
    return None
