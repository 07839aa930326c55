"""Opening a TCP connection to one of several addresses, and shaking hands for TLS, within one deadline.

The caller's thread waits here, in slices, so that whoever has ended its attempt meanwhile is heard of soon. What is
returned does not block yet. Owns nothing and has no lock; a socket that is not returned is closed.
"""

from __future__ import annotations

import errno
import math
import os
import select
import socket
import ssl
import sys
import time
from collections import deque
from collections.abc import Collection, Sequence
from typing import Callable, Optional

from gateway.upstream.resolver import SLICE_S, Address
from gateway.upstream.shortage import is_shortage, need_descriptor, reaches

ATTEMPT_DELAY_S = 0.25
"""How long an address is waited for before the next one is tried beside it (RFC 8305, section 5)."""

_UNDER_WAY = {errno.EINPROGRESS, errno.EWOULDBLOCK} if sys.platform == "win32" else {errno.EINPROGRESS}
Ended = Callable[[], bool]
"""Whether nobody wants the connection any more."""


def open_socket(
    addresses: Sequence[Address], port: int, deadline_s: float, ended: Ended
) -> tuple[socket.socket, Address]:
    """The first connection that comes about, and the address it goes to.

    The addresses are tried in order: the next one as soon as one has failed, or beside it after ATTEMPT_DELAY_S.
    Raises socket.timeout at `deadline_s` (of time.monotonic) and soon after `ended()` has become true; OSError when
    every address has failed, by what says most: what this machine lacks, else a refusal, else the rest.
    """
    race = _Race(addresses, port)
    try:
        while True:
            won = race.start_due()
            if won is None:
                won = race.wait(_slice_s(deadline_s, ended))
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
        self._under_way: dict[socket.socket, Address] = {}
        self._failure: Optional[OSError] = None

    def start_due(self) -> Optional[tuple[socket.socket, Address]]:
        """Begin with the addresses that are due; a connection that is there at once. Raises when all have failed."""
        while self._left and (not self._under_way or time.monotonic() >= self._due_s):
            address = self._left.popleft()
            try:
                sock = socket.socket(address[0], socket.SOCK_STREAM)
            except OSError as error:
                self._note(error)
                continue
            self._under_way[sock] = address
            try:
                sock.setblocking(False)
                code = sock.connect_ex((address[1][0], self._port, *address[1][2:]))
            except OSError as error:  # an address that cannot be told to the system
                code = error.errno or errno.EINVAL
            if code in _UNDER_WAY:
                self._due_s = time.monotonic() + ATTEMPT_DELAY_S
            elif self._won(sock, code):
                return sock, address
        if not self._under_way:
            raise self._failure or OSError(errno.EADDRNOTAVAIL, "no address")
        return None

    def wait(self, timeout_s: float) -> Optional[tuple[socket.socket, Address]]:
        """Wait until a connection is there, which is returned, or has failed, or the next address is due."""
        if self._left:
            timeout_s = min(timeout_s, max(0.0, self._due_s - time.monotonic()))
        for sock in _ready(self._under_way, timeout_s, writing=True):
            address = self._under_way[sock]
            if self._won(sock, sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
                return sock, address
        return None

    def _won(self, sock: socket.socket, code: int) -> bool:
        """Whether the connection is there; one that has failed is dropped, and the next address is due."""
        address = self._under_way.pop(sock)
        if not code:
            return True
        sock.close()
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
        for sock in self._under_way:
            sock.close()


def _weight(failure: OSError) -> int:
    """How much a failure says: localhost, say, is refused at 127.0.0.1 and cannot be reached at ::1 without IPv6."""
    return 2 if is_shortage(failure) else 1 if isinstance(failure, ConnectionError) else 0


def client_tls() -> ssl.SSLContext:
    """What engines' certificates are checked with. Raises GatewayError when there is no descriptor to read the
    authorities with: without, it would silently know none."""
    need_descriptor()
    return ssl.create_default_context()


def shake_hands(sock: socket.socket, tls: ssl.SSLContext, host: str, deadline_s: float, ended: Ended) -> ssl.SSLSocket:
    """The TLS connection on `sock`, which does not block and is taken over. Raises as `open_socket` does."""
    secure = tls.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
    try:
        while True:
            try:
                secure.do_handshake()
                return secure
            except ssl.SSLWantReadError:
                writing = False
            except ssl.SSLWantWriteError:
                writing = True
            while not _ready((secure,), _slice_s(deadline_s, ended), writing):
                pass
    except BaseException:
        secure.close()
        raise


def _ready(socks: Collection[socket.socket], timeout_s: float, writing: bool) -> list[socket.socket]:
    """Wait until some of them can be written to (or read from) or have failed; which those are."""
    if hasattr(select, "poll"):  # 1 us; selectors' own takes 5, and select() ends at descriptor 1024
        poll = select.poll()
        for sock in socks:
            poll.register(sock, select.POLLOUT if writing else select.POLLIN)
        found = {descriptor for descriptor, _ in poll.poll(math.ceil(timeout_s * 1000))}
        return [sock for sock in socks if sock.fileno() in found]
    reading = () if writing else socks
    ready = select.select(reading, socks if writing else (), socks, timeout_s)
    return [sock for sock in socks if any(sock in some for some in ready)]


def _slice_s(deadline_s: float, ended: Ended) -> float:
    """How long to wait before looking again. Raises socket.timeout when there is nothing left to wait for."""
    left_s = deadline_s - time.monotonic()
    if left_s <= 0 or ended():
        raise socket.timeout("timed out")
    return min(SLICE_S, left_s)
