"""Keep-alive connections to one engine address.

`ConnectionPool` owns the idle connections of one address; a deque whose single operations are atomic holds them, so it
needs no lock.

Nothing in HTTP/1.1 says which request an answer belongs to but its place on the connection. So each kept connection is
looked at before something is sent on it, and one on which anything waits is closed: what waits would be taken for the
next answer. Bytes that come between the look and the answer cannot be told from it by any means; an address that has
sent more than it was asked for is therefore not trusted with kept connections for a while, after which such bytes can
only come on a connection that looked good. (0.4 us a look; a MSG_PEEK, which mostly raises, takes 1.25.)
"""

from __future__ import annotations

import math
import socket
import ssl
import time
from collections import deque
from typing import Callable, Optional

from gateway.steps import Steps
from gateway.upstream.connecting import Ended, hands_shaken, opened
from gateway.upstream.connection import Asked, Connection
from gateway.upstream.resolver import Address, Resolver

IDLE_MAX_S = 60.0
IDLE_MAX_COUNT = 512  # per address; more are closed rather than kept
DISTRUST_S = 60.0  # how long no connection is kept to an address that has sent what nobody had asked for
DISTRUST_MAX_S = 3600.0  # doubled up to that each time when it has been trusted again in vain


def nobody(asked: Asked) -> None:
    """To tell of a surplus to nobody."""


class ConnectionPool:
    """Idle connections to one host and port, the last used first. Thread-safe.

    `resolver` knows the addresses of a host that is a name; None: it is looked up for each connection. `on_surplus` is
    told who had asked last when bytes come that nobody asked for.
    """

    def __init__(
        self,
        host: str,
        port: int,
        tls: Optional[ssl.SSLContext],
        connect_timeout_s: float,
        resolver: Optional[Resolver] = None,
        on_surplus: Callable[[Asked], None] = nobody,
        clock: Callable[[], float] = time.monotonic,
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
        self._on_surplus = on_surplus
        self._clock = clock
        self._distrusted = False  # ever
        self._distrust_s = DISTRUST_S
        self._trusted_from_s = -math.inf

    def take(self) -> Optional[Connection]:
        """An idle connection on which nothing waits, or None. Those on which something does are closed.

        It may die right after: the caller asks again on a fresh one then.
        """
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if connection.quiet() and (not self._distrusted or self._trusted()):
                return connection
            self._drop(connection)

    def _trusted(self) -> bool:
        """Return whether the distrust of this address has ended; for one that has been distrusted."""
        return self._clock() >= self._trusted_from_s

    def _drop(self, connection: Connection) -> None:
        """Close a connection that nobody uses; a surplus on it counts."""
        if not connection.quiet() and connection.surplus():
            self.note_surplus(connection)
        connection.close()

    def note_surplus(self, connection: Connection) -> None:
        """More has come on the connection than was asked for: no connection is kept to this address for a while.

        The caller closes it. Of two threads that note one each, either writes a time that is right.
        """
        now_s = self._clock()
        if now_s >= self._trusted_from_s:
            self._distrust_s = min(2 * self._distrust_s, DISTRUST_MAX_S) if self._distrusted else DISTRUST_S
        self._trusted_from_s = now_s + self._distrust_s
        self._distrusted = True
        self._on_surplus(connection.asked)

    def connect(self, timeout_s: float, ended: Ended = lambda: False) -> Steps[Connection]:
        """Open a connection within min(`timeout_s`, the connect timeout) seconds: the look-up, all addresses, TLS.

        Raises OSError; socket.timeout also soon after `ended()` has become true.
        """
        deadline_s = time.monotonic() + max(0.001, min(timeout_s, self.connect_timeout_s))
        if self._numeric is not None:
            connection = yield from opened((self._numeric,), self._port, deadline_s, ended)
            connection.address = None
        else:
            addresses = yield from self._resolver.addresses(self._host, deadline_s, ended)
            try:
                connection = yield from opened(addresses, self._port, deadline_s, ended)
            except OSError:
                self._resolver.doubt(self._host)
                raise
        try:
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                yield from hands_shaken(connection, self._tls, self._host, deadline_s, ended)
        except BaseException:
            connection.close()
            raise
        return connection

    def give(self, connection: Connection) -> None:
        """Keep a connection whose exchange is complete. Its owner is gone before anyone else can take it."""
        connection.own(None)
        connection.used = True
        connection.idle_since_s = time.monotonic()
        if self._closed or len(self._idle) >= IDLE_MAX_COUNT or (self._distrusted and not self._trusted()):
            self._drop(connection)
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
            self._drop(connection)

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
    """Return whether a host is an address, and no name that has to be looked up."""
    return _address_family(host) is not None
