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

from gateway.upstream.connecting import Ended, open_socket, shake_hands
from gateway.upstream.resolver import Address, Resolver

DONTWAIT = getattr(socket, "MSG_DONTWAIT", 0)
IDLE_MAX_S = 60.0
IDLE_MAX_COUNT = 512  # per address; more are closed rather than kept


class Connection:
    """One TCP or TLS connection to an engine. Sockets block: deadlines come from a Watchdog through `abort`."""

    __slots__ = ("_lock", "_unwatch", "address", "descriptor", "idle_since_s", "owner", "sock", "stale", "used")

    def __init__(self, sock: socket.socket, address: Optional[Address] = None) -> None:
        self.sock = sock
        self.address = address  # of the engine's name, it goes to; None: the engine has no name
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
    """Idle connections to one host and port, the last used first. Thread-safe.

    `resolver` knows the addresses of a host that is a name; None: it is looked up for each connection.
    """

    def __init__(
        self,
        host: str,
        port: int,
        tls: Optional[ssl.SSLContext],
        connect_timeout_s: float,
        resolver: Optional[Resolver] = None,
    ) -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self.plain = tls is None
        self.connect_timeout_s = connect_timeout_s
        self._resolver = resolver or Resolver(0.0)
        family = _address_family(host)
        self._numeric: Optional[Address] = None if family is None else (family, (host, 0))
        self._idle: deque[Connection] = deque()
        self._closed = False

    def take(self) -> Optional[Connection]:
        """An idle connection, or None. It may have died: the caller asks again on a fresh one then."""
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def connect(self, timeout_s: float, ended: Ended = lambda: False) -> Connection:
        """Open a connection within min(`timeout_s`, the connect timeout) seconds: the look-up, all addresses, TLS.

        Raises OSError; socket.timeout also soon after `ended()` has become true.
        """
        deadline_s = time.monotonic() + max(0.001, min(timeout_s, self.connect_timeout_s))
        numeric = self._numeric
        if numeric is None:
            addresses = self._resolver.addresses(self._host, deadline_s, ended)
            try:
                sock, address = open_socket(addresses, self._port, deadline_s, ended)
            except OSError:
                self._resolver.doubt(self._host)
                raise
        else:
            sock, address = open_socket((numeric,), self._port, deadline_s, ended)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                sock = shake_hands(sock, self._tls, self._host, deadline_s, ended)
            sock.settimeout(None)
        except BaseException:
            sock.close()
            raise
        return Connection(sock, None if numeric is not None else address)

    def begin_connect(self) -> Optional[Connection]:
        """A connection that may still be under way: it can be written to once its socket says so, or says why not.

        None where that cannot be had without waiting: TLS has to shake hands, or the host is a name that is to be
        looked up, or has several addresses: a second one is tried when the first is slow, which takes a thread.
        Raises OSError.
        """
        if not self.plain or not DONTWAIT:
            return None
        address = self._numeric
        if address is None:
            known = self._resolver.known(self._host)
            if known is None or len(known) != 1:
                return None
            address = known[0]
        sock = socket.socket(address[0], socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.connect_ex((address[1][0], self._port, *address[1][2:]))  # what it says, writing says again
            sock.setblocking(True)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            sock.close()
            raise
        return Connection(sock, None if self._numeric is not None else address)

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
        elif connection.address is not None and not self._resolver.holds(self._host, connection.address):
            self.let_go()

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

    def let_go(self) -> None:
        """Close what is idle and goes to an address that the host's name no longer has.

        The name has its new addresses before this looks through what is idle, and `give` adds to it before it looks at
        the addresses: one of the two sees the other.
        """
        for _ in range(len(self._idle)):
            try:
                connection = self._idle.popleft()
            except IndexError:
                break
            if connection.address is None or self._resolver.holds(self._host, connection.address):
                self._idle.append(connection)
            else:
                connection.close()
        if self._closed:  # meanwhile, perhaps without what was in hand here
            self.close()

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


def is_numeric(host: str) -> bool:
    """Whether a host is an address, and no name that has to be looked up."""
    return _address_family(host) is not None
