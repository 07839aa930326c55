"""One request to one engine, over a urllib opener with a keep-alive pool.

Owns the opener and, per engine address, an `Endpoint` with its connection pool and everything of a request that never
changes. Foreign exceptions become `EngineFault` or `ClientGone` here and nowhere else. The lock guards the map of
endpoints only. Never chooses an engine, never retries one (except once on a fresh connection when a kept one had died).
"""

from __future__ import annotations

import email.utils
import json
import math
import os
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Mapping
from typing import TYPE_CHECKING, Callable, NoReturn, Optional

from gateway.errors import ClientGone
from gateway.routing.retry import Outcome
from gateway.routing.specs import EngineSpec
from gateway.upstream.connections import DONTWAIT, Connection, ConnectionPool
from gateway.upstream.framing import (
    HEAD_MAX_BYTES,
    BodyDecoder,
    FramingError,
    ResponseHead,
    body_decoder,
    parse_response_head,
)

if TYPE_CHECKING:
    from gateway.upstream.stream import EngineStream

BODY_MAX_BYTES = 268435456
RECV_BYTES = 65536
AHEAD_MAX_BYTES = 262144  # of an answer, before a thread has to wait for the rest
_NO_ANSWER = "the engine closed the connection without an answer"
_NOT_ACCEPTED = "the engine did not accept a connection in time"


class EngineFault(Exception):
    """An attempt failed; `outcome` says how. `lines` are whole lines of a stream that had come before."""

    def __init__(self, outcome: Outcome, lines: bytes = b"") -> None:
        super().__init__(outcome.message)
        self.outcome = outcome
        self.lines = lines


class _Stale(Exception):
    """A kept connection had died before the first byte of an answer."""


class Attempt:
    """One try of one engine, and the owner of the connection it runs on.

    The thread that makes the attempt and any thread that ends it early (`abort`: the client left, the deadline passed)
    meet here without a lock: `abort` sets `aborted` and then looks for a connection, `attach` stores the connection and
    then looks at `aborted`, so at least one of them sees the other.
    """

    __slots__ = ("_answer_s", "aborted", "connection", "deadline_s")

    def __init__(self, deadline_s: float) -> None:
        self.deadline_s = deadline_s
        self._answer_s: Optional[float] = None  # the deadline proper, while `deadline_s` is the connection's
        self.aborted: Optional[str] = None
        self.connection: Optional[Connection] = None

    def attach(self, connection: Connection) -> None:
        """Run on `connection`; raises what `failure()` gives if the attempt has been ended meanwhile."""
        connection.own(self)
        self.connection = connection
        if self.aborted is not None:
            connection.close()
            raise self.failure()

    def abort(self, reason: str) -> None:
        """End the attempt: `cancelled` or `timeout`. From any thread; never blocks; the first reason stays."""
        if self.aborted is None:
            self.aborted = reason
        connection = self.connection
        if connection is not None:
            connection.abort(self)

    def connecting(self, timeout_s: float) -> None:
        """Until `connected`, the deadline is at most `timeout_s` seconds from now."""
        self._answer_s = self.deadline_s
        self.deadline_s = min(self.deadline_s, time.monotonic() + timeout_s)

    def connected(self) -> None:
        """What may take time from now on is the answer."""
        if self._answer_s is not None:
            self.deadline_s, self._answer_s = self._answer_s, None

    def expire(self) -> None:
        """The deadline has passed (called by the watchdog)."""
        self.abort("timeout")

    def failure(self) -> Exception:
        """The exception for an attempt that was ended early."""
        if self.aborted != "timeout":
            return ClientGone()
        if self._answer_s is not None:
            return EngineFault(Outcome("connect_timeout", _NOT_ACCEPTED))
        return EngineFault(Outcome("timeout", "the engine did not answer in time"))


class Endpoint:
    """What is prepared once per engine: connections, request heads, the engine's own name of the model."""

    def __init__(self, spec: EngineSpec, secrets: Mapping[str, str], connect_timeout_s: float) -> None:
        self.spec = spec
        tls = ssl.create_default_context() if spec.scheme == "https" else None
        self.pool = ConnectionPool(spec.host, spec.port, tls, connect_timeout_s)
        self._secret = secrets.get(spec.api_key_env) if spec.api_key_env else None
        self._prepared: dict[str, tuple[bytes, dict[str, object]]] = {}

    def prepare(self, path: str) -> tuple[bytes, dict[str, object]]:
        """The constant part of the head, and the attributes of a urllib Request, for POST `path`."""
        prepared = self._prepared.get(path)
        if prepared is None:
            spec = self.spec
            host = f"[{spec.host}]" if ":" in spec.host else spec.host
            if spec.port != (443 if spec.scheme == "https" else 80):
                host = f"{host}:{spec.port}"
            target = f"{spec.base_path}{path}"
            lines = [
                f"POST {target} HTTP/1.1",
                f"Host: {host}",
                "Content-Type: application/json",
                "Accept: application/json, text/event-stream",
                "User-Agent: inference-gateway",
            ]
            if self._secret:
                lines.append(f"Authorization: Bearer {self._secret}")
            head = "\r\n".join(lines).encode("latin-1") + b"\r\n"
            template = urllib.request.Request(f"{spec.scheme}://{host}{target}", method="POST")
            prepared = self._prepared[path] = (head, dict(template.__dict__))
        return prepared

    def wire(self, path: str, body: bytes, headers: bytes) -> bytes:
        """The bytes of a request."""
        return b"%b%bContent-Length: %d\r\n\r\n%b" % (self.prepare(path)[0], headers, len(body), body)


class EngineRequest(urllib.request.Request):
    """A urllib request made from a prepared one: Request.__init__ would parse the URL again (30 of 96 µs a call)."""

    def __init__(self, endpoint: Endpoint, path: str, attempt: Attempt, wire: bytes) -> None:
        self.__dict__.update(endpoint.prepare(path)[1])
        self.endpoint = endpoint
        self.attempt = attempt
        self.wire = wire


class EngineResponse:
    """An engine's answer: head read, body to come. Used by one thread at a time; ended by `release` or `close`."""

    __slots__ = ("_payload", "_raw", "attempt", "connection", "decoder", "head", "pool", "status")

    def __init__(
        self,
        head: ResponseHead,
        raw: bytes,
        connection: Connection,
        pool: ConnectionPool,
        attempt: Attempt,
    ) -> None:
        self.head = head
        self.status = head.status
        self.decoder: BodyDecoder = body_decoder(head)
        self._raw = raw
        self._payload = b""  # decoded ahead
        self.connection = connection
        self.pool = pool
        self.attempt = attempt

    def read_some(self) -> bytes:
        """Block for more payload; b"" at the end of a complete body. Raises EngineFault, ClientGone."""
        payload = self._payload
        if payload:
            self._payload = b""
            return payload
        decoder = self.decoder
        while not decoder.complete:
            raw = self._raw
            if raw:
                self._raw = b""
            else:
                raw = _receive(self.connection, self.attempt)
                if not raw:
                    if decoder.end():
                        break
                    raise EngineFault(Outcome("truncated", "the engine's answer was cut short"))
            payload = _feed(decoder, raw)
            if payload:
                return payload
        return b""

    def read_all(self) -> bytes:
        """The whole body, at most BODY_MAX_BYTES. Raises EngineFault, ClientGone."""
        first = self.read_some()
        if self.decoder.complete:
            return first
        parts = [first]
        size = len(first)
        while True:
            part = self.read_some()
            if not part:
                return b"".join(parts)
            parts.append(part)
            size += len(part)
            if size > BODY_MAX_BYTES:
                raise EngineFault(Outcome("invalid", "the engine's answer is too large"))

    def take_buffered(self) -> bytes:
        """Payload that has arrived already, without reading; for who goes on reading without blocking."""
        raw, self._raw = self._raw, b""
        payload, self._payload = self._payload, b""
        return payload + _feed(self.decoder, raw) if raw else payload

    def add(self, raw: bytes) -> None:
        """Somebody else has read this from the connection."""
        self._raw += raw

    def is_whole(self) -> bool:
        """Whether the whole body has arrived: reading it will not block. Raises EngineFault."""
        self._payload = self.take_buffered()
        return self.decoder.complete

    def release(self) -> None:
        """Give the connection back if the body ended cleanly, else close it. Idempotent."""
        if self.decoder.complete and self.decoder.reusable and self.head.keep_alive:
            if self._raw == b"":
                self.attempt.connection = None
                self.pool.give(self.connection)
                return
        self.close()

    def close(self) -> None:
        """Close the connection; the engine notices."""
        self.attempt.connection = None
        self.connection.close()


def _feed(decoder: BodyDecoder, raw: bytes) -> bytes:
    try:
        return decoder.feed(raw)
    except FramingError as error:
        raise EngineFault(Outcome("invalid", f"the engine's answer is broken: {error}")) from error


def _receive(connection: Connection, attempt: Attempt) -> bytes:
    try:
        data = connection.sock.recv(RECV_BYTES)
    except OSError as error:
        if attempt.aborted is not None:
            raise attempt.failure() from error
        # Part of an answer has come, else `_exchange` would be reading.
        raise EngineFault(Outcome("truncated", "the engine's answer was cut short")) from error
    if not data and attempt.aborted is not None:
        raise attempt.failure()
    return data


class PooledHandler(urllib.request.BaseHandler):
    """Serves http and https for the opener on kept connections (urllib's own handlers close after each request)."""

    def http_open(self, request: EngineRequest) -> EngineResponse:
        pool = request.endpoint.pool
        attempt = request.attempt
        while True:
            connection = pool.take()
            if connection is None:
                connection = self._connect(pool, attempt)
            else:
                connection.unwatch()
            attempt.attach(connection)
            try:
                return _exchange(connection, pool, request)
            except _Stale:
                connection.close()  # the engine had closed an idle connection: not an attempt
            except BaseException:
                attempt.connection = None
                connection.close()
                raise

    https_open = http_open

    @staticmethod
    def _connect(pool: ConnectionPool, attempt: Attempt) -> Connection:
        try:
            return pool.connect(attempt.deadline_s - time.monotonic())
        except OSError as error:
            raise _not_connected(error) from error


def _not_connected(error: OSError) -> EngineFault:
    if isinstance(error, socket.timeout):
        return EngineFault(Outcome("connect_timeout", _NOT_ACCEPTED))
    if isinstance(error, ConnectionResetError):
        return EngineFault(Outcome("reset", "the engine closed the connection"))
    if isinstance(error, ssl.SSLError):
        return EngineFault(Outcome("error", f"TLS failed: {error.reason}"))
    # Refused, no route, unknown host.
    return EngineFault(Outcome("refused", f"cannot connect to the engine: {error.strerror or 'unknown error'}"))


def _exchange(connection: Connection, pool: ConnectionPool, request: EngineRequest) -> EngineResponse:
    """Send the request and read the head of its answer."""
    attempt = request.attempt
    try:
        connection.sock.sendall(request.wire)
        data = connection.sock.recv(RECV_BYTES)
    except OSError as error:
        if attempt.aborted is not None:
            raise attempt.failure() from error
        if connection.used:
            raise _Stale from error
        data = _early_answer(connection)
        if not data:
            raise EngineFault(Outcome("reset", "the engine closed the connection")) from error
    if not data:
        if attempt.aborted is not None:
            raise attempt.failure()
        if connection.used:
            raise _Stale
        raise EngineFault(Outcome("reset", _NO_ANSWER))
    return _read_head(data, connection, pool, attempt)


def _read_head(data: bytes, connection: Connection, pool: ConnectionPool, attempt: Attempt) -> EngineResponse:
    """The response that begins with `data`; blocks only while its head is not complete."""
    while True:
        end = data.find(b"\r\n\r\n")
        if end >= 0:
            try:
                head = parse_response_head(data[:end])
                if head.status >= 200:
                    return EngineResponse(head, data[end + 4 :], connection, pool, attempt)
            except FramingError as error:
                raise EngineFault(Outcome("invalid", f"the engine's answer is broken: {error}")) from error
            data = data[end + 4 :]  # 1xx: the answer itself follows
            if data:
                continue
        elif len(data) > HEAD_MAX_BYTES:
            raise EngineFault(Outcome("invalid", "the engine's answer has no end of its head"))
        more = _receive(connection, attempt)
        if not more:
            raise EngineFault(Outcome("truncated", "the engine's answer was cut short"))
        data += more


def _early_answer(connection: Connection) -> bytes:
    """What an engine said before it closed while the request was still being sent (a 413, say)."""
    try:
        return connection.sock.recv(RECV_BYTES)
    except OSError:
        return b""


class Sent:
    """A request that nobody blocks for yet: sent, or to be sent once its connection is open. For one thread at a time.

    `ready`: the answer's status is 200, and all of it has been received, or of an event stream the first event: going
    on with it will not block. `stream` is that event stream.
    """

    __slots__ = (
        "_open_stream",
        "attempt",
        "connection",
        "endpoint",
        "fault",
        "path",
        "ready",
        "received",
        "response",
        "size",
        "stream",
        "unsent",
        "wire",
    )

    def __init__(
        self,
        connection: Connection,
        endpoint: Endpoint,
        path: str,
        attempt: Attempt,
        wire: bytes,
        open_stream: Optional[Callable[[EngineResponse], Optional[EngineStream]]] = None,
    ) -> None:
        self.connection = connection
        self.endpoint = endpoint
        self.path = path
        self.attempt = attempt
        self.wire = wire
        self.unsent = wire
        self._open_stream = open_stream
        self.received = b""  # until the answer's head is complete
        self.size = 0
        self.response: Optional[EngineResponse] = None
        self.stream: Optional[EngineStream] = None
        self.ready = False
        self.fault: Optional[EngineFault] = None

    def send(self) -> None:
        """Send what the connection takes without waiting. Raises OSError."""
        try:
            self.unsent = self.unsent[self.connection.sock.send(self.unsent, DONTWAIT) :]
            self.attempt.connected()
        except BlockingIOError:
            pass

    def receive(self) -> bool:
        """Take what has arrived, without waiting. False: there is more to wait for; True: `EngineClient.answer`."""
        try:
            if self.unsent and not self._sent():
                return self.fault is not None
            while True:  # until nothing is left: an end behind the data may not be told again
                data = self.connection.sock.recv(RECV_BYTES, DONTWAIT)
                if not data or self._add(data):
                    return True
        except BlockingIOError:
            return False
        except EngineFault as fault:
            self.fault = fault
        except OSError:
            pass
        return True

    def _sent(self) -> bool:
        """Whether everything has been sent now."""
        try:
            self.send()
        except OSError as error:
            if self.attempt.aborted is None and self.unsent is self.wire:
                raise _not_connected(error) from error
            raise
        return not self.unsent

    def _add(self, data: bytes) -> bool:
        """Whether no more is to be waited for without blocking."""
        self.size += len(data)
        response = self.response
        if response is not None:
            response.add(data)
        else:
            data = self.received = self.received + data if self.received else data
            if not data.count(b"\r\n\r\n"):
                return len(data) > HEAD_MAX_BYTES
            if not data.startswith(b"HTTP/1.1 200"):
                return True
            response = self.response = _read_head(data, self.connection, self.endpoint.pool, self.attempt)
            if self._open_stream is not None:
                self.stream = self._open_stream(response)
        self.ready = response.is_whole() if self.stream is None else self.stream.begin()
        return self.ready or self.size > AHEAD_MAX_BYTES


class EngineClient:
    """Asks engines. Thread-safe."""

    def __init__(self, connect_timeout_s: float = 5.0, secrets: Optional[Mapping[str, str]] = None) -> None:
        self._connect_timeout_s = connect_timeout_s
        self.secrets = os.environ if secrets is None else secrets
        self._lock = threading.Lock()
        self._endpoints: dict[EngineSpec, Endpoint] = {}
        self._opener = urllib.request.OpenerDirector()
        self._opener.add_handler(PooledHandler())

    def endpoint(self, spec: EngineSpec) -> Endpoint:
        """The prepared endpoint of an engine, made at its first use."""
        endpoint = self._endpoints.get(spec)
        if endpoint is None:
            with self._lock:
                endpoint = self._endpoints.get(spec)
                if endpoint is None:
                    endpoint = Endpoint(spec, self.secrets, self._connect_timeout_s)
                    self._endpoints[spec] = endpoint
        return endpoint

    def ask(self, endpoint: Endpoint, path: str, attempt: Attempt, body: bytes, headers: bytes) -> EngineResponse:
        """POST `body` and wait for the head of the answer.

        `headers` are extra header lines, each ending in CRLF. Returns only a 2xx answer; raises EngineFault for any
        other and for every failure, ClientGone when the attempt was cancelled.
        """
        return self._open(EngineRequest(endpoint, path, attempt, endpoint.wire(path, body, headers)))

    def send(
        self,
        endpoint: Endpoint,
        path: str,
        attempt: Attempt,
        body: bytes,
        headers: bytes,
        open_stream: Optional[Callable[[EngineResponse], Optional[EngineStream]]] = None,
    ) -> Optional[Sent]:
        """Send as `ask` does, but only if that takes no waiting; else None.

        `open_stream` makes a stream of an answer that is one. What is sent is to be passed to `answer`. Raises
        ClientGone when the attempt was cancelled.
        """
        pool = endpoint.pool
        connection = pool.take() if pool.plain and DONTWAIT else None
        while connection is not None and connection.stale:
            connection.close()
            connection = pool.take()
        if connection is None:
            try:
                connection = pool.begin_connect()
            except OSError:  # no descriptors are left, say: who may wait finds out
                connection = None
            if connection is None:
                return None
            attempt.connecting(self._connect_timeout_s)
        attempt.attach(connection)
        sent = Sent(connection, endpoint, path, attempt, endpoint.wire(path, body, headers), open_stream)
        try:
            sent.send()
            if not (sent.unsent and connection.used):
                return sent
        except OSError:
            pass  # closed meanwhile, or full: an engine gets the whole request on another connection, or none of it
        attempt.connection = None
        attempt.connected()
        connection.close()
        return None

    def answer(self, sent: Sent) -> EngineResponse:
        """What `ask` returns and raises, for a request that has been sent; blocks unless `sent.ready`."""
        attempt, connection, response = sent.attempt, sent.connection, sent.response
        if response is None:
            try:
                if sent.fault is not None:
                    raise sent.fault
                if not sent.received:
                    if attempt.aborted is not None:
                        raise attempt.failure()
                    if not connection.used:
                        raise EngineFault(Outcome("reset", _NO_ANSWER))
                    raise _Stale
                response = _read_head(sent.received, connection, sent.endpoint.pool, attempt)
            except BaseException as error:
                attempt.connection = None
                connection.close()
                if isinstance(error, _Stale):  # the engine had closed an idle connection: not an attempt
                    return self._open(EngineRequest(sent.endpoint, sent.path, attempt, sent.wire))
                raise
        elif sent.fault is not None:
            response.close()
            raise sent.fault
        return response if 200 <= response.status < 300 else self._refused(response)

    def _open(self, request: EngineRequest) -> EngineResponse:
        response: EngineResponse = self._opener.open(request)
        return response if 200 <= response.status < 300 else self._refused(response)

    @staticmethod
    def _refused(response: EngineResponse) -> NoReturn:
        """Raise what an answer other than 2xx means."""
        try:
            text = response.read_all()
        except EngineFault:
            text = b""
        except BaseException:
            response.close()
            raise
        response.release()
        raise EngineFault(status_outcome(response.status, response.head.headers, text))

    def forget(self, specs: list[EngineSpec]) -> None:
        """Close the idle connections of engines that are gone; those in use are closed when they are given back."""
        with self._lock:
            gone = [self._endpoints.pop(spec) for spec in specs if spec in self._endpoints]
        for endpoint in gone:
            endpoint.pool.close()

    def prune(self) -> None:
        """Close connections that nobody has used for a minute."""
        for endpoint in list(self._endpoints.values()):
            endpoint.pool.prune()

    def close(self) -> None:
        """Close every idle connection."""
        self.forget(list(self._endpoints))


def status_outcome(status: int, headers: Mapping[bytes, bytes], body: bytes) -> Outcome:
    """What an answer other than 2xx means. `body` is only read for the engine's message."""
    message = _engine_message(body)
    wait_s = retry_after_s(headers.get(b"retry-after"))
    if status == 429:
        return Outcome("rate_limited", message or "the engine is rate limited", status, wait_s)
    if status in (401, 403):
        return Outcome("unauthorized", "the engine refuses the gateway's credentials", status)
    if 400 <= status < 500 and status != 408:
        return Outcome("rejected", message or f"the engine answered {status}", status)
    text = f"the engine answered {status}"
    return Outcome("error", f"{text}: {message}" if message else text, status, wait_s)


def retry_after_s(value: Optional[bytes]) -> Optional[float]:
    """Seconds in a Retry-After header: a number or an HTTP date; None when absent or unreadable."""
    if not value:
        return None
    text = value.decode("latin-1").strip()
    try:
        seconds = float(text)
        return seconds if math.isfinite(seconds) and seconds >= 0 else None
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _engine_message(body: bytes) -> str:
    try:
        error = json.loads(body[:65536])
        if isinstance(error, dict):
            error = error.get("error", error)
        if isinstance(error, dict):
            error = error.get("message") or error.get("detail")
        return str(error)[:500] if isinstance(error, str) else ""
    except (ValueError, RecursionError):
        return ""
