"""Requests to somebody outside: one POST of JSON to a collector, an Alertmanager, a webhook, or whatever is asked.

A `Remote` makes each on a connection of its own, bounded in time and in what it reads, however its other side behaves:
no redirect is followed, no proxy of the environment asked, a certificate is checked. A `Poster` sends by one. Both
belong to the one thread that sends, but for `cut`, which any thread may call.
"""

from __future__ import annotations

import email.utils
import functools
import gzip
import http.client
import io
import socket
import ssl
import time
from collections.abc import Mapping
from typing import Any, Callable, NamedTuple, Optional
from urllib.parse import urlsplit

import gateway
from gateway.clock import unix_s

ANSWER_MAX_BYTES = 65_536


class Answer(NamedTuple):
    """What was said to a body."""

    status: int
    retry_after_s: Optional[float]
    body: bytes


class Bounded(io.RawIOBase):
    """A socket, read until a deadline (monotonic) and no further than so many bytes, as http.client wants it.

    `cuts`: what is longer ends there; else it raises HTTPException.
    """

    def __init__(
        self, sock: socket.socket, deadline_s: float, most_bytes: int = ANSWER_MAX_BYTES, cuts: bool = True
    ) -> None:
        self._sock = sock
        self._deadline_s = deadline_s
        self._left_bytes = most_bytes
        self._cuts = cuts

    def makefile(self, mode: str) -> io.BufferedReader:
        """What HTTPResponse asks a socket for."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("it has not answered in time")
        if self._left_bytes <= 0:
            if self._cuts:
                return 0
            raise http.client.HTTPException("there is no end of it")
        self._sock.settimeout(left_s)  # a socket's own timeout is per read
        count = self._sock.recv_into(memoryview(buffer)[: self._left_bytes])
        self._left_bytes -= count
        return count


class Remote:
    """A server outside. `tls` gives what its certificate is checked with; None: it is talked to in clear. For one
    thread, but for `cut`."""

    def __init__(self, host: str, port: int, tls: Optional[Callable[[], ssl.SSLContext]] = None) -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self._sock: Optional[socket.socket] = None
        self.is_cut = False

    def exchange(
        self,
        method: str,
        request: bytes,
        timeout_s: float,
        most_bytes: int = ANSWER_MAX_BYTES,
        heard_max_bytes: Optional[int] = None,
    ) -> tuple[http.client.HTTPResponse, bytes]:
        """Send a request as it stands, and read what is said to it, and `most_bytes` of its body. `heard_max_bytes`:
        so much may come with heads and what frames chunks; None: what is longer than `most_bytes` ends there. Raises
        OSError, http.client.HTTPException."""
        deadline_s = time.monotonic() + timeout_s
        sock = self._sock = self._connected(deadline_s)
        try:
            self._go_on()
            if self._tls is not None:
                sock.settimeout(max(0.001, deadline_s - time.monotonic()))
                sock = self._sock = self._tls().wrap_socket(sock, server_hostname=self._host)
                self._go_on()
            sock.settimeout(max(0.001, deadline_s - time.monotonic()))
            sock.sendall(request)
            heard = Bounded(sock, deadline_s, heard_max_bytes or most_bytes, cuts=heard_max_bytes is None)
            response = http.client.HTTPResponse(heard, method=method)  # type: ignore[arg-type]
            try:
                response.begin()
                return response, response.read(most_bytes)
            except ValueError as error:  # of a chunk that has less than nothing, say
                raise http.client.HTTPException(str(error)) from error
        except (OSError, http.client.HTTPException):
            if self.is_cut:  # by this side: it looks like a connection that the other one has closed
                raise TimeoutError("the gateway ends") from None
            raise
        finally:
            self._sock = None
            sock.close()

    def _go_on(self) -> None:
        """For each socket when it is known to `cut`, which looks for it after it has set `is_cut`."""
        if self.is_cut:
            raise TimeoutError("the gateway ends")

    def _connected(self, deadline_s: float) -> socket.socket:
        """A connection to the first of its addresses that takes one; all of them have the time together."""
        fault = OSError("its name has no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM):
            sock = None
            try:
                sock = socket.socket(family, kind, protocol)
                sock.settimeout(max(0.001, deadline_s - time.monotonic()))
                sock.connect(address)
                return sock
            except OSError as error:  # also of a family that this machine has not
                fault = error
                if sock is not None:
                    sock.close()
        raise fault

    def cut(self) -> None:
        """End what is under way, and whatever comes. From any thread; never blocks."""
        self.is_cut = True
        sock = self._sock
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it has ended, or is not connected yet: then the time for that is its bound


class Poster:
    """One address, `path` behind `url`, that bodies of JSON are sent to, compressed where `packs` says so.

    `headers` may hold secrets; nothing here shows them. For one thread, but for `cut`.
    """

    def __init__(self, url: str, path: str, headers: Mapping[str, str], packs: bool) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None  # the setting has been checked
        secure = parts.scheme.lower() == "https"
        tls = functools.cache(ssl.create_default_context) if secure else None
        self._remote = Remote(parts.hostname, parts.port or (443 if secure else 80), tls)
        base = parts.path.rstrip("/")
        # Without what may be a secret: a query, and the path before `path`.
        self.shown = f"{parts.scheme}://{parts.netloc}{'/...' if base else ''}{path}"
        place = f"{base}{path}" if path else parts.path or "/"
        target = f"{place}{f'?{parts.query}' if parts.query else ''}"
        own = {"content-type": "application/json", "user-agent": f"inference-gateway/{gateway.__version__}"}
        own.update(headers)
        lines = [f"POST {target} HTTP/1.1", f"Host: {parts.netloc}", *(f"{name}: {own[name]}" for name in own)]
        self._packs = packs
        lines += ["Content-Encoding: gzip"] if packs else []
        self._head = "\r\n".join([*lines, "Connection: close", ""]).encode("latin-1")

    def post(self, body: bytes, timeout_s: float) -> Answer:
        """Send a body and read what is said to it. Raises OSError, http.client.HTTPException."""
        packed = gzip.compress(body, 1) if self._packs else body
        request = b"%bContent-Length: %d\r\n\r\n%b" % (self._head, len(packed), packed)
        response, said = self._remote.exchange("POST", request, timeout_s)
        return Answer(response.status, _seconds(response.getheader("Retry-After")), said)

    def cut(self) -> None:
        """End what is under way, and whatever comes. From any thread; never blocks."""
        self._remote.cut()


def _seconds(retry_after: Optional[str]) -> Optional[float]:
    """What a Retry-After means; None: nothing."""
    if retry_after is None:
        return None
    if retry_after.isascii() and retry_after.isdigit() and len(retry_after) < 10:
        return float(retry_after)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - unix_s())
    except (ValueError, TypeError, OverflowError, IndexError):  # the last one up to Python 3.9
        return None


def in_words(error: Exception) -> str:
    """What has kept a body from its other side, without the address."""
    if isinstance(error, ssl.SSLError):
        return f"TLS fails ({error.reason or error})"
    if isinstance(error, (TimeoutError, socket.timeout)):  # the same since Python 3.10
        return "it has not answered in time"
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    if isinstance(error, http.client.HTTPException):
        return "its answer is none of HTTP"
    return f"{type(error).__name__}: {error}"
