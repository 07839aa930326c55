"""One request to one engine, over a urllib opener with a keep-alive pool.

Owns the opener and the map of endpoints, which the lock guards. Foreign exceptions become `EngineFault` or `ClientGone`
here and in `response.py`, nowhere else. Never chooses an engine, never retries one (except once on a fresh connection
when a kept one had died).
"""

from __future__ import annotations

import os
import threading
import time
import urllib.request
from collections.abc import Mapping
from typing import NoReturn, Optional

from gateway.routing.retry import Outcome
from gateway.routing.specs import EngineSpec
from gateway.upstream.attempt import NO_ANSWER, Attempt, EngineFault, not_connected
from gateway.upstream.connections import DONTWAIT, Connection, ConnectionPool
from gateway.upstream.endpoint import Endpoint
from gateway.upstream.response import RECV_BYTES, EngineResponse, read_head
from gateway.upstream.sent import OpenStream, Sent
from gateway.upstream.status import status_outcome

ERROR_MAX_BYTES = 65_536  # of what an engine says to an error; one that says more is not heard out


class _Stale(Exception):
    """A kept connection had died before the first byte of an answer."""


class EngineRequest(urllib.request.Request):
    """A urllib request made from a prepared one: Request.__init__ would parse the URL again (30 of 96 µs a call)."""

    def __init__(self, endpoint: Endpoint, path: str, attempt: Attempt, wire: bytes) -> None:
        self.__dict__.update(endpoint.prepare(path)[1])
        self.endpoint = endpoint
        self.attempt = attempt
        self.wire = wire


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
            raise not_connected(error) from error


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
        raise EngineFault(Outcome("reset", NO_ANSWER))
    return read_head(data, connection, pool, attempt)


def _early_answer(connection: Connection) -> bytes:
    """What an engine said before it closed while the request was still being sent (a 413, say)."""
    try:
        return connection.sock.recv(RECV_BYTES)
    except OSError:
        return b""


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
        open_stream: Optional[OpenStream] = None,
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
                        raise EngineFault(Outcome("reset", NO_ANSWER))
                    raise _Stale
                response = read_head(bytes(sent.received), connection, sent.endpoint.pool, attempt)
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
            text = response.read_up_to(ERROR_MAX_BYTES)
        except EngineFault:
            text = b""
        except BaseException:
            response.close()
            raise
        try:
            outcome = status_outcome(response.status, response.head.headers, text)
        except BaseException:
            response.close()
            raise
        response.release()
        raise EngineFault(outcome)

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
