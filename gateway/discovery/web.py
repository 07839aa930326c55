"""One GET after another of JSON from a server that knows engines: bounded in time and size, no redirect, no proxy.

A `Getter` makes each on a connection of its own. It belongs to the thread that asks, but for `cancel`, which shuts the
socket down: who reads there has its end at once. `_lock` guards which socket that is; it is never held across I/O.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from typing import Any, Callable, NamedTuple, Optional

from gateway.discovery.answers import Cancelled, DiscoveryError
from gateway.posting import Bounded
from gateway.routing.checks import bracketed

ANSWER_MAX_BYTES = 32 << 20
ERROR_CHARS = 200  # of what a server says to an error
DIGITS_MAX = 20  # of a whole number: longer ones take some Pythons seconds


class Got(NamedTuple):
    """An answer of JSON."""

    headers: Mapping[str, str]
    body: Any


class Getter:
    """Asks one server. `tls` gives what its certificate is checked with; None: it is asked in clear."""

    def __init__(self, host: str, port: int, tls: Optional[Callable[[], ssl.SSLContext]] = None) -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self._lock = threading.Lock()
        self._sock: Optional[socket.socket] = None
        self._cancelled = False
        self.shown = f"{bracketed(host)}:{port}"

    def get(self, target: str, headers: Mapping[str, str], timeout_s: float) -> Got:
        """What the server says. Raises DiscoveryError for everything but a 200 of JSON, Cancelled."""
        deadline_s = time.monotonic() + timeout_s
        try:
            sock = self._connected(deadline_s)
            try:
                lines = [f"GET {target} HTTP/1.1", f"Host: {self.shown}", "Accept: application/json"]
                lines += ["User-Agent: inference-gateway", "Connection: close"]
                lines += [f"{name}: {value}" for name, value in headers.items()]
                sock.settimeout(max(0.001, deadline_s - time.monotonic()))
                sock.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
                return self._read(sock, deadline_s)
            finally:
                self._hold(None)
                sock.close()
        except DiscoveryError:
            raise
        except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
            if self._cancelled:
                raise Cancelled("the gateway ends") from None
            raise DiscoveryError(f"{self.shown}: {_why(error, timeout_s)}") from error

    def cancel(self) -> None:
        """End the answer that is waited for, and give none any more."""
        with self._lock:
            self._cancelled = True
            sock = self._sock
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _connected(self, deadline_s: float) -> socket.socket:
        sock = socket.create_connection((self._host, self._port), max(0.001, deadline_s - time.monotonic()))
        try:
            self._hold(sock)
            sock.settimeout(max(0.001, deadline_s - time.monotonic()))
            if self._tls is not None:
                sock = self._tls().wrap_socket(sock, server_hostname=self._host)
                self._hold(sock)
            return sock
        except BaseException:
            self._hold(None)
            sock.close()
            raise

    def _hold(self, sock: Optional[socket.socket]) -> None:
        """This socket is the one to be shut down. Under the lock: either `cancel` finds it, or it is known here."""
        with self._lock:
            self._sock = sock
            if self._cancelled and sock is not None:
                raise Cancelled("the gateway ends")

    def _read(self, sock: socket.socket, deadline_s: float) -> Got:
        heard = Bounded(sock, deadline_s, ANSWER_MAX_BYTES + (1 << 20), cuts=False)
        response = http.client.HTTPResponse(heard, method="GET")  # type: ignore[arg-type]
        response.begin()
        body = response.read(ANSWER_MAX_BYTES + 1)
        if len(body) > ANSWER_MAX_BYTES:
            raise DiscoveryError(f"{self.shown}: an answer of more than {ANSWER_MAX_BYTES} bytes")
        if response.length:
            raise http.client.IncompleteRead(b"")
        if response.status != 200:
            text = "".join(c if c.isprintable() else "?" for c in body[:ERROR_CHARS].decode("utf-8", "replace").strip())
            raise DiscoveryError(f"{self.shown} answered {response.status}{f': {text}' if text else ''}")
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Got(headers, json.loads(body.decode("utf-8-sig"), parse_int=_whole))


def _whole(digits: str) -> int:
    return int(digits) if len(digits) <= DIGITS_MAX else -1


def _why(error: Exception, timeout_s: float) -> str:
    if isinstance(error, socket.timeout):
        return f"no answer within {timeout_s:g} s"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS failed: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason}"
    if isinstance(error, http.client.HTTPException):
        return f"no usable answer ({type(error).__name__})"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return "an answer that is no JSON"
