"""One request to one engine, over a urllib opener with a keep-alive pool.

Owns the opener, the resolver, the map of endpoints and the counts of surpluses; the lock guards the latter two. Foreign
exceptions become `EngineFault`, `ClientGone` or `overloaded` here and in `response.py`, nowhere else. Never chooses an
engine, never retries one, except for the replay: when a kept connection ends before one byte of an answer, the engine
has mostly closed it while it was idle, and the request is sent once more, on a fresh connection. Once for a request,
however many engines it is passed to, and it is no attempt.
"""

from __future__ import annotations

import os
import re
import ssl
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NoReturn, Optional

from gateway.routing.nearness import is_near_address, is_near_host
from gateway.routing.retry import Outcome
from gateway.routing.specs import EngineSpec
from gateway.upstream.attempt import NO_ANSWER, Attempt, EngineFault, UsageRefused, not_connected
from gateway.upstream.connections import DONTWAIT, Asked, Connection, ConnectionPool, is_numeric
from gateway.upstream.endpoint import Endpoint
from gateway.upstream.resolver import Resolver
from gateway.upstream.response import RECV_BYTES, EngineResponse, read_head
from gateway.upstream.sent import OpenStream, Sent
from gateway.upstream.shortage import is_shortage, overloaded
from gateway.upstream.status import status_outcome

AT_ONCE_BYTES = 65536  # of a request; between two such parts, a kept connection is looked at again
ERROR_MAX_BYTES = 65_536  # of what an engine says to an error; one that says more is not heard out
# What refuses `"stream_options": {"include_usage": true}` names one of the two somewhere: in a message, in `param`, in
# FastAPI's `loc`. (An error that repeats the request does, too: the request is sent once more then, to no avail.)
_NAMES_USAGE = re.compile(rb"stream[ _]?options|include[ _]?usage", re.I)


class _Stale(Exception):
    """A kept connection has ended before the first byte of an answer."""


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
        connection = pool.take() if request.attempt.replays else None
        if connection is not None:
            connection.unwatch()
            try:
                return self._exchange_on(connection, request)
            except _Stale:
                _replays(request.attempt)
        return self._exchange_on(self._connect(request.endpoint, request.attempt), request)

    https_open = http_open

    @staticmethod
    def _exchange_on(connection: Connection, request: EngineRequest) -> EngineResponse:
        request.attempt.attach(connection)
        try:
            return _exchange(connection, request.endpoint.pool, request)
        except BaseException:
            request.attempt.connection = None
            connection.close()
            raise

    @staticmethod
    def _connect(endpoint: Endpoint, attempt: Attempt) -> Connection:
        pool = endpoint.pool
        attempt.connecting(pool.connect_timeout_s)
        try:
            connection = pool.connect(attempt.deadline_s - time.monotonic(), lambda: attempt.aborted is not None)
        except OSError as error:
            if attempt.aborted is not None:
                raise attempt.failure() from error
            raise not_connected(error) from error
        attempt.connected()
        return connection


def _replays(attempt: Attempt) -> None:
    """The request goes once more, on a fresh connection. Raises EngineFault the second time, whatever attempt it is."""
    try:
        attempt.replays.pop()  # atomic: of two attempts at once, one has it
    except IndexError:
        raise EngineFault(Outcome("reset", NO_ANSWER)) from None


def _exchange(connection: Connection, pool: ConnectionPool, request: EngineRequest) -> EngineResponse:
    """Send the request and read the head of its answer."""
    attempt = request.attempt
    try:
        if not connection.used or len(request.wire) <= AT_ONCE_BYTES:
            connection.sock.sendall(request.wire)
        else:
            _send_quietly(connection, request.wire)
        data = connection.sock.recv(RECV_BYTES)
    except OSError as error:
        if attempt.aborted is not None:
            raise attempt.failure() from error
        if is_shortage(error):
            raise overloaded(error) from error
        if connection.used and not _said_nonsense(error):
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


def _send_quietly(connection: Connection, wire: bytes) -> None:
    """Send a large request on a kept connection, as long as nothing comes. Raises _Stale, OSError.

    What comes before the engine has the request is an early refusal, or what belongs to somebody else: on a fresh
    connection there is no doubt.
    """
    unsent = memoryview(wire)
    while unsent:
        unsent = unsent[connection.sock.send(unsent[:AT_ONCE_BYTES]) :]
        if unsent and not connection.quiet():
            raise _Stale


def _said_nonsense(error: OSError) -> bool:
    """Whether something was heard, though not TLS: no mere end."""
    ended = (ssl.SSLEOFError, ssl.SSLZeroReturnError)
    return isinstance(error, ssl.SSLError) and not isinstance(error, ended)


def _early_answer(connection: Connection) -> bytes:
    """What an engine said before it closed while the request was still being sent (a 413, say)."""
    try:
        return connection.sock.recv(RECV_BYTES)
    except OSError:
        return b""


class EngineClient:
    """Asks engines. Thread-safe. `resolver` is closed with it; None: a new one."""

    def __init__(
        self,
        connect_timeout_s: float = 5.0,
        secrets: Optional[Mapping[str, str]] = None,
        resolver: Optional[Resolver] = None,
    ) -> None:
        self._connect_timeout_s = connect_timeout_s
        self.resolver = Resolver() if resolver is None else resolver
        self.resolver.on_change = self._moved
        self.secrets = os.environ if secrets is None else secrets
        self._lock = threading.Lock()
        self._endpoints: dict[EngineSpec, Endpoint] = {}
        self._surplus: Counter[Asked] = Counter()
        self._opener = urllib.request.OpenerDirector()
        self._opener.add_handler(PooledHandler())

    def endpoint(self, spec: EngineSpec) -> Endpoint:
        """The prepared endpoint of an engine, made at its first use."""
        endpoint = self._endpoints.get(spec)
        if endpoint is None:
            with self._lock:
                endpoint = self._endpoints.get(spec)
                if endpoint is None:
                    endpoint = Endpoint(spec, self.secrets, self._connect_timeout_s, self.resolver, self._note_surplus)
                    self._endpoints[spec] = endpoint
        return endpoint

    def _note_surplus(self, asked: Asked) -> None:
        with self._lock:
            self._surplus[asked] += 1

    def surplus(self, asked: Asked) -> int:
        """How often more has come on a connection than this model had asked this engine for."""
        return self._surplus.get(asked, 0)

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
        connection = pool.take() if pool.plain and DONTWAIT and attempt.replays else None
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
                if isinstance(error, _Stale):
                    _replays(attempt)
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
            outcome = status_outcome(response.status, response.head.headers, text)
        except BaseException:
            response.close()
            raise
        response.release()
        # Some answer 500 or 501.
        kinds = ("rejected", "error", "not_implemented")
        if response.attempt.asks_usage and outcome.kind in kinds and _NAMES_USAGE.search(text):
            raise UsageRefused(outcome)
        raise EngineFault(outcome)

    def forget(self, specs: list[EngineSpec]) -> None:
        """Close the idle connections of engines that are gone; those in use are closed when they are given back."""
        with self._lock:
            gone = [self._endpoints.pop(spec) for spec in specs if spec in self._endpoints]
        for endpoint in gone:
            endpoint.pool.close()

    def keep_names(self, specs: Iterable[EngineSpec]) -> None:
        """Look up the names of these engines, now and whenever they get old; forget all others."""
        self.resolver.keep(spec.host for spec in specs if not spec.is_echo and not is_numeric(spec.host))

    def is_near(self, host: str) -> Optional[bool]:
        """Whether a host is this machine or in a private network; None: its name was never found. Never blocks."""
        near = is_near_host(host)
        if near is None:
            addresses = self.resolver.last_known(host)
            near = None if addresses is None else all(is_near_address(address[0]) for _, address in addresses)
        return near

    def _moved(self, host: str) -> None:
        """The addresses of a name have changed (on a thread of the resolver)."""
        for endpoint in list(self._endpoints.values()):
            if endpoint.spec.host == host:
                endpoint.pool.let_go()

    def prune(self) -> None:
        """Close connections that nobody has used for a minute; begin to look up names that are due."""
        self.resolver.tick()
        for endpoint in list(self._endpoints.values()):
            endpoint.pool.prune()

    def close(self) -> None:
        """Close every idle connection, and the resolver."""
        self.forget(list(self._endpoints))
        self.resolver.close()
