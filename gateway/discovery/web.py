"""One GET after another of JSON from a server that knows engines: bounded in time and size, no redirect, no proxy.

A `Getter` belongs to the thread that asks, but for `cancel`, after which who reads there has its end at once.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Mapping
from typing import Any, Callable, NamedTuple, Optional

from gateway.discovery.answers import Cancelled, DiscoveryError
from gateway.jsontext import bounded_integer
from gateway.posting import Remote
from gateway.routing.checks import bracketed

ANSWER_MAX_BYTES = 32 << 20
HEARD_MAX_BYTES = ANSWER_MAX_BYTES + (1 << 20)  # with heads and what frames chunks
ERROR_CHARS = 200  # of what a server says to an error


class Got(NamedTuple):
    """An answer of JSON."""

    headers: Mapping[str, str]
    body: Any


class Getter:
    """Asks one server. `tls` gives what its certificate is checked with; None: it is asked in clear."""

    def __init__(self, host: str, port: int, tls: Optional[Callable[[], ssl.SSLContext]] = None) -> None:
        self._remote = Remote(host, port, tls)
        self.shown = f"{bracketed(host)}:{port}"

    def get(self, target: str, headers: Mapping[str, str], timeout_s: float) -> Got:
        """What the server says. Raises DiscoveryError for everything but a 200 of JSON, Cancelled."""
        lines = [f"GET {target} HTTP/1.1", f"Host: {self.shown}", "Accept: application/json"]
        lines += ["User-Agent: inference-gateway", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        request = "\r\n".join([*lines, "", ""]).encode("latin-1")
        try:
            response, body = self._remote.exchange("GET", request, timeout_s, ANSWER_MAX_BYTES + 1, HEARD_MAX_BYTES)
            return self._got(response, body)
        except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
            if self._remote.is_cut:
                raise Cancelled("the gateway ends") from None
            raise DiscoveryError(f"{self.shown}: {_why(error, timeout_s)}") from error

    def cancel(self) -> None:
        """End the answer that is waited for, and give none any more. Does not block."""
        self._remote.cut()

    def _got(self, response: http.client.HTTPResponse, body: bytes) -> Got:
        if len(body) > ANSWER_MAX_BYTES:
            raise DiscoveryError(f"{self.shown}: an answer of more than {ANSWER_MAX_BYTES} bytes")
        if response.length:
            raise http.client.IncompleteRead(b"")
        if response.status != 200:
            text = "".join(c if c.isprintable() else "?" for c in body[:ERROR_CHARS].decode("utf-8", "replace").strip())
            raise DiscoveryError(f"{self.shown} answered {response.status}{f': {text}' if text else ''}")
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Got(headers, json.loads(body.decode("utf-8-sig"), parse_int=bounded_integer))


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
