"""Bodies to a collector, over HTTP: one POST, and another try as OTLP wants it.

A `Collector` makes one POST on a connection of its own, bounded in time and in what it reads, however its other side
behaves: no redirect is followed, no proxy of the environment asked, a certificate is checked. A `Delivery` tries again
with what is told to be tried again, and logs once that a collector fails, and once that it is back. Each belongs to the
one thread that sends, but for `cut`, which any thread may call. https://opentelemetry.io/docs/specs/otlp/#otlphttp
"""

from __future__ import annotations

import email.utils
import gzip
import http.client
import io
import json
import random
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from typing import Any, Callable, NamedTuple, Optional
from urllib.parse import urlsplit

import gateway
from gateway.clock import unix_s

TIMEOUT_S = 10.0  # of a POST, with everything, but the look-up of a name
ANSWER_MAX_BYTES = 65_536
TRIES = 5  # of a body
FIRST_PAUSE_S = 1.0  # doubled with each try
PAUSE_MAX_S = 30.0  # whatever Retry-After says
AGAIN = frozenset({429, 502, 503, 504})
"""What is to be tried again, by OTLP; everything else is not."""
TELL_S = 60.0  # between two lines that say that it fails

Log = Callable[..., None]


class Answer(NamedTuple):
    """What a collector has said."""

    status: int
    retry_after_s: Optional[float]
    body: bytes


class _Bounded(io.RawIOBase):
    """A socket, read until a deadline and no further than so many bytes, as http.client wants it."""

    def __init__(self, sock: socket.socket, deadline_s: float) -> None:
        self._sock = sock
        self._deadline_s = deadline_s
        self._left_bytes = ANSWER_MAX_BYTES

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("it has not answered in time")
        if self._left_bytes <= 0:
            return 0
        self._sock.settimeout(left_s)
        count = self._sock.recv_into(memoryview(buffer)[: self._left_bytes])
        self._left_bytes -= count
        return count


class Collector:
    """One address that bodies of JSON are sent to. `headers` may hold secrets; nothing here shows them."""

    def __init__(self, url: str, path: str, headers: Mapping[str, str]) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None  # the setting has been checked
        self._secure = parts.scheme.lower() == "https"
        self._host = parts.hostname
        self._port = parts.port or (443 if self._secure else 80)
        self.shown = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}{path}"  # without a query
        target = f"{parts.path.rstrip('/')}{path}{f'?{parts.query}' if parts.query else ''}"
        own = {"content-type": "application/json", "user-agent": f"inference-gateway/{gateway.__version__}"}
        own.update(headers)
        lines = [f"POST {target} HTTP/1.1", f"Host: {parts.netloc}", *(f"{name}: {own[name]}" for name in own)]
        self._head = "\r\n".join([*lines, "Content-Encoding: gzip", "Connection: close", ""]).encode("latin-1")
        self._tls: Optional[ssl.SSLContext] = None
        self._sock: Optional[socket.socket] = None
        self._cut = False

    def post(self, body: bytes, timeout_s: float) -> Answer:
        """Send a body and read what is said to it. Raises OSError, http.client.HTTPException."""
        packed = gzip.compress(body, 1)
        deadline_s = time.monotonic() + timeout_s
        sock = self._sock = socket.create_connection((self._host, self._port), timeout=timeout_s)
        try:
            if self._secure:
                self._tls = self._tls or ssl.create_default_context()
                sock = self._sock = self._tls.wrap_socket(sock, server_hostname=self._host)
            if self._cut:  # it is set before the socket is looked for
                raise TimeoutError("the gateway ends")
            sock.settimeout(max(0.001, deadline_s - time.monotonic()))
            sock.sendall(b"%bContent-Length: %d\r\n\r\n%b" % (self._head, len(packed), packed))
            response = http.client.HTTPResponse(_Bounded(sock, deadline_s), method="POST")  # type: ignore[arg-type]
            response.begin()
            said = response.read(ANSWER_MAX_BYTES)
            return Answer(response.status, _seconds(response.getheader("Retry-After")), said)
        finally:
            self._sock = None
            sock.close()

    def cut(self) -> None:
        """End what is under way, and whatever comes. From any thread; never blocks."""
        self._cut = True
        sock = self._sock
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it has ended, or is not connected yet: then the time for that is its bound


def _seconds(retry_after: Optional[str]) -> Optional[float]:
    """What a Retry-After means; None: nothing."""
    if retry_after is None:
        return None
    if retry_after.isdigit() and len(retry_after) < 10:
        return float(retry_after)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - unix_s())
    except (ValueError, TypeError, OverflowError):
        return None


class Delivery:
    """Sends bodies until they are taken, or given up. `what` is sent, `stopping` is set when the gateway ends."""

    def __init__(
        self,
        collector: Collector,
        what: str,
        log: Log,
        stopping: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._collector = collector
        self._what = what
        self._log = log
        self._stopping = stopping
        self._clock = clock
        self._failing = False  # and told so
        self._told_at_s = -TELL_S
        self.end_s: Optional[float] = None
        """When everything must have been sent (monotonic); None: the gateway does not end yet. Set before
        `stopping`."""

    def send(self, body: bytes) -> Optional[dict[str, Any]]:
        """Have a body taken, at last; what was said to it, None: it was given up."""
        pause_s = FIRST_PAUSE_S
        for number in range(1, TRIES + 1):
            fault, again, asked_s = "", True, None
            try:
                answer = self._collector.post(body, self._time_s())
            except (OSError, http.client.HTTPException) as error:
                fault = _in_words(error)
            else:
                if 200 <= answer.status < 300:
                    self._is_back()
                    return _said(answer.body)
                fault, again, asked_s = f"it answers {answer.status}", answer.status in AGAIN, answer.retry_after_s
            if number > 1 or not again:
                self._tell(fault)
            if not again or number == TRIES:
                return None
            wait_s = pause_s * random.uniform(0.8, 1.2) if asked_s is None else asked_s
            pause_s *= 2
            if self._stopping.wait(min(wait_s, PAUSE_MAX_S)):
                self._tell(fault)
                return None
        return None

    def _time_s(self) -> float:
        end_s = self.end_s
        return TIMEOUT_S if end_s is None else max(0.01, min(TIMEOUT_S, end_s - self._clock()))

    def _tell(self, fault: str) -> None:
        now_s = self._clock()
        if not self._failing and now_s - self._told_at_s >= TELL_S:
            self._failing, self._told_at_s = True, now_s
            message = f"{self._collector.shown} takes no {self._what}: {fault}; they are dropped until it does"
            self._log("warning", "otlp", message=message)

    def tell_rejected(self, count: int, why: str) -> None:
        """Log, once in a while, that a part of a body was not taken."""
        now_s = self._clock()
        if now_s - self._told_at_s >= TELL_S:
            self._told_at_s = now_s
            message = f"{self._collector.shown} has rejected {count} {self._what}: {why[:500]}"
            self._log("warning", "otlp", message=message)

    def _is_back(self) -> None:
        if self._failing:
            self._failing = False
            self._log("info", "otlp", message=f"{self._collector.shown} takes {self._what} again")


def _said(body: bytes) -> dict[str, Any]:
    """The answer to a body that was taken; whatever else it is, it was."""
    try:
        said = json.loads(body) if body else {}
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def rejected_in(said: Mapping[str, Any], field: str) -> tuple[int, str]:
    """How many were not taken (by their name in a partial success), and why."""
    partial = said.get("partialSuccess")
    if not isinstance(partial, dict):
        return 0, ""
    count, why = partial.get(field), partial.get("errorMessage")
    try:
        number = int(count) if isinstance(count, (str, int)) and len(str(count)) < 10 else 0
    except ValueError:
        number = 0
    return max(0, number), why if isinstance(why, str) else ""


def _in_words(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return f"TLS fails ({error.reason or error})"
    if isinstance(error, (TimeoutError, socket.timeout)):  # the same since Python 3.10
        return "it has not answered in time"
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    return "its answer is none of HTTP"
