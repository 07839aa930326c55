"""Opening a TCP connection to one of several addresses, and shaking hands for TLS, within one deadline.

The steps wait in slices, so that whoever has ended its attempt meanwhile is heard of soon. Owns nothing and has no
lock; a connection that is not returned is closed.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
import sys
import time
from collections import deque
from collections.abc import Collection, Sequence
from typing import Callable, Optional

from gateway.steps import Readable, Steps, Writable
from gateway.upstream.connection import Connection
from gateway.upstream.resolver import Address
from gateway.upstream.shortage import is_shortage, need_descriptor, reaches

ATTEMPT_DELAY_S = 0.25
"""How long an address is waited for before the next one is tried beside it (RFC 8305, section 5)."""
LOOK_S = 0.25
"""How often who waits looks whether it is still wanted to: hundreds may wait at once, for a host that is silent."""

_UNDER_WAY = {errno.EINPROGRESS, errno.EWOULDBLOCK} if sys.platform == "win32" else {errno.EINPROGRESS}
Ended = Callable[[], bool]
"""Whether nobody wants the connection any more."""


def opened(addresses: Sequence[Address], port: int, deadline_s: float, ended: Ended) -> Steps[Connection]:
    """The first connection that comes about.

    The addresses are tried in order: the next one as soon as one has failed, or beside it after ATTEMPT_DELAY_S.
    Raises socket.timeout at `deadline_s` (of time.monotonic) and soon after `ended()` has become true; OSError when
    every address has failed, by what says most: what this machine lacks, else a refusal, else the rest.
    """
    race = _Race(addresses, port)
    try:
        while True:
            won = race.start_due()
            if won is None:
                yield Writable(race.under_way(), race.until_s(_slice_until_s(deadline_s, ended)))
                won = race.finished()
            if won is not None:
                return won
    finally:
        race.close()


class _Race:
    """Connections under way. For one thread."""

    def __init__(self, addresses: Sequence[Address], port: int) -> None:
        self._left = deque(addresses)
        self._port = port
        self._due_s = 0.0  # when the next address is tried
        self._under_way: dict[Connection, None] = {}
        self._failure: Optional[OSError] = None

    def under_way(self) -> tuple[Connection, ...]:
        """Return the connections that may come about any moment."""
        return tuple(self._under_way)

    def until_s(self, until_s: float) -> float:
        """Return how long to wait for them, at most until then: the next address may be due before."""
        return min(until_s, self._due_s) if self._left else until_s

    def start_due(self) -> Optional[Connection]:
        """Begin with the addresses that are due; a connection that is there at once. Raises when all have failed."""
        while self._left and (not self._under_way or time.monotonic() >= self._due_s):
            address = self._left.popleft()
            try:
                sock = socket.socket(address[0], socket.SOCK_STREAM)
            except OSError as error:
                self._note(error)
                continue
            connection = Connection(sock, address)
            self._under_way[connection] = None
            try:
                sock.setblocking(False)
                code = sock.connect_ex((address[1][0], self._port, *address[1][2:]))
            except OSError as error:  # an address that cannot be told to the system
                code = error.errno or errno.EINVAL
            if code in _UNDER_WAY:
                self._due_s = time.monotonic() + ATTEMPT_DELAY_S
            elif self._won(connection, address, code):
                return connection
        if not self._under_way:
            raise self._failure or OSError(errno.EADDRNOTAVAIL, "no address")
        return None

    def finished(self) -> Optional[Connection]:
        """A connection that has come about; what has failed is dropped."""
        for connection in _ready(self._under_way):
            assert connection.address is not None
            code = connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if self._won(connection, connection.address, code):
                return connection
        return None

    def _won(self, connection: Connection, address: Address, code: int) -> bool:
        """Return whether the connection is there; one that has failed is dropped, and the next address is due."""
        del self._under_way[connection]
        if not code:
            return True
        connection.close()
        self._due_s = 0.0
        if code == errno.EADDRNOTAVAIL and reaches(address, self._port):
            code = errno.ENOBUFS  # there is a way to the address: it is a port that this machine has none left of
        self._note(OSError(code, os.strerror(code)))
        return False

    def _note(self, failure: OSError) -> None:
        if self._failure is None or _weight(failure) > _weight(self._failure):
            self._failure = failure

    def close(self) -> None:
        """Drop what is still under way."""
        for connection in self._under_way:
            connection.close()


def _weight(failure: OSError) -> int:
    """How much a failure says: localhost, say, is refused at 127.0.0.1 and cannot be reached at ::1 without IPv6."""
    return 2 if is_shortage(failure) else 1 if isinstance(failure, ConnectionError) else 0


def client_tls() -> ssl.SSLContext:
    """What engines' certificates are checked with. Raises GatewayError when there is no descriptor to read the
    authorities with: without, it would silently know none."""
    need_descriptor()
    return ssl.create_default_context()


def hands_shaken(
    connection: Connection, tls: ssl.SSLContext, host: str, deadline_s: float, ended: Ended
) -> Steps[None]:
    """The connection talks TLS. Raises as `opened` does."""
    secure = tls.wrap_socket(connection.sock, server_hostname=host, do_handshake_on_connect=False)
    connection.secure(secure)
    while True:
        try:
            secure.do_handshake()
            return
        except ssl.SSLWantReadError:
            yield Readable(connection, _slice_until_s(deadline_s, ended))
        except ssl.SSLWantWriteError:
            yield Writable((connection,), _slice_until_s(deadline_s, ended))


def _ready(connections: Collection[Connection]) -> list[Connection]:
    """Which of them can be written to now, or have failed."""
    if hasattr(select, "poll"):  # select() ends at descriptor 1024
        poll = select.poll()
        for connection in connections:
            poll.register(connection.sock, select.POLLOUT)
        found = {descriptor for descriptor, _ in poll.poll(0)}
        return [connection for connection in connections if connection.sock.fileno() in found]
    socks = [connection.sock for connection in connections]
    ready = select.select((), socks, socks, 0)
    return [connection for connection in connections if any(connection.sock in some for some in ready)]


def _slice_until_s(deadline_s: float, ended: Ended) -> float:
    """Return when to look again. Raises socket.timeout when there is nothing left to wait for."""
    now_s = time.monotonic()
    if now_s >= deadline_s or ended():
        raise socket.timeout("timed out")
    return min(deadline_s, now_s + LOOK_S)
