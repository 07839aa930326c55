"""One request to one engine: a connection, the request, the head of the answer.

Foreign exceptions become `EngineFault`, `ClientGone` or `overloaded` here and in `response.py`, nowhere else. When a
kept connection ends before one byte of an answer, the engine has mostly closed it while it was idle, and the request is
sent once more, on a fresh connection: the replay. There is one for a request, however many engines it is passed to, and
it is no attempt. Owns the connection until it is the response's; has no lock.
"""

from __future__ import annotations

import math
import ssl
import time

from gateway.routing.retry import Outcome
from gateway.steps import Readable, Steps
from gateway.uploads import Upload
from gateway.upstream.attempt import NO_ANSWER, Attempt, EngineFault, not_connected
from gateway.upstream.connection import Connection
from gateway.upstream.connections import ConnectionPool
from gateway.upstream.framing import LAST_CHUNK, chunk
from gateway.upstream.passed import Form
from gateway.upstream.response import EngineResponse, read_head, whole_head
from gateway.upstream.shortage import is_shortage, overloaded

AT_ONCE_BYTES = 65536  # of a request; between two such parts, a kept connection is looked at again


class _Stale(Exception):
    """A kept connection has ended before the first byte of an answer."""


def converse(pool: ConnectionPool, attempt: Attempt, wire: bytes) -> Steps[EngineResponse]:
    """The answer to a request, whose head has come. `wire` are the request's bytes.

    Raises EngineFault, ClientGone when the attempt was cancelled, and `overloaded` where the gateway itself has run
    short of something.
    """
    connection = pool.take() if attempt.replays else None
    while True:
        if connection is None:
            connection = yield from _connected(pool, attempt)
        attempt.attach(connection)
        try:
            try:
                if connection.used and len(wire) > AT_ONCE_BYTES:
                    yield from _sent_quietly(connection, wire)
                elif (yield from connection.sent(wire)) and connection.used:
                    # It was quiet just now: what comes is an edge. One that came while anything else was waited for (to
                    # connect, to write) has been told already, and would not be told again.
                    yield Readable(connection)
                data = yield from connection.received()
            except OSError as error:
                data = yield from _after_failure(connection, attempt, error)
            if not data:
                raise _ended(connection, attempt)
            response = whole_head(data, connection, pool, attempt)
            return response if response is not None else (yield from read_head(data, connection, pool, attempt))
        except BaseException as error:
            attempt.connection = None
            connection.close()
            if not isinstance(error, _Stale):
                raise
        _take_replay(attempt)
        connection = None


def pass_on(pool: ConnectionPool, attempt: Attempt, wire: bytes, form: Form, upload: Upload) -> Steps[EngineResponse]:
    """The same for a request whose body is still to come: `wire` is what it begins with.

    On a fresh connection, as it could not be sent once more. The engine's time begins anew with each piece, and stands
    still in between: how long the client takes is not its doing. Raises what the upload has failed with, too.

    Only an engine that has been sent the body to its end is asked again on the connection: one that has answered before
    takes what comes next for the rest of it.
    """
    is_sent = False
    limit_s = attempt.deadline_s - time.monotonic()
    connection = yield from _connected(pool, attempt)
    attempt.attach(connection)
    try:
        try:
            yield from connection.sent(wire)
            while True:
                connection.unwatch()  # what is waited for now is the client
                attempt.deadline_s = math.inf
                data = yield from form.take(upload)
                upload.spent = upload.spent or data != b""
                attempt.deadline_s = time.monotonic() + limit_s
                if attempt.aborted is not None:
                    raise attempt.failure()
                said = connection.said()
                if said is not None:
                    break  # the engine has said something, or has closed, before it has all
                if not data:
                    if form.in_chunks:
                        yield from connection.sent(LAST_CHUNK)
                    is_sent = True
                    break
                yield from connection.sent(chunk(data) if form.in_chunks else data)
            data = said if said is not None else (yield from connection.received())
        except OSError as error:
            data = yield from _after_failure(connection, attempt, error)
        if not data:
            raise _ended(connection, attempt)
        response = whole_head(data, connection, pool, attempt)
        response = response if response is not None else (yield from read_head(data, connection, pool, attempt))
    except BaseException:
        attempt.connection = None
        connection.close()
        raise
    response.reusable = is_sent
    return response


def _connected(pool: ConnectionPool, attempt: Attempt) -> Steps[Connection]:
    """A fresh connection. Raises what it means that there is none."""
    attempt.connecting(pool.connect_timeout_s)
    try:
        connection = yield from pool.connect(attempt.deadline_s - time.monotonic(), lambda: attempt.aborted is not None)
    except OSError as error:
        if attempt.aborted is not None:
            raise attempt.failure() from error
        raise not_connected(error) from error
    attempt.connected()
    return connection


def _ended(connection: Connection, attempt: Attempt) -> Exception:
    """Return what it means that a connection has ended without an answer."""
    if attempt.aborted is not None:
        return attempt.failure()
    return _Stale() if connection.used else EngineFault(Outcome("reset", NO_ANSWER))


def _take_replay(attempt: Attempt) -> None:
    """The request goes once more, on a fresh connection. Raises EngineFault the second time, whatever attempt it is."""
    try:
        attempt.replays.pop()  # atomic: of two attempts at once, one has it
    except IndexError:
        raise EngineFault(Outcome("reset", NO_ANSWER)) from None


def _after_failure(connection: Connection, attempt: Attempt, error: OSError) -> Steps[bytes]:
    """Return what the engine had said although the connection has failed; raise what the failure means."""
    if attempt.aborted is not None:
        raise attempt.failure() from error
    if is_shortage(error):
        raise overloaded(error) from error
    if connection.used and not _said_nonsense(error):
        raise _Stale from error
    data = yield from _early_answer(connection)
    if not data:
        raise EngineFault(Outcome("reset", "the engine closed the connection")) from error
    return data


def _sent_quietly(connection: Connection, wire: bytes) -> Steps[None]:
    """Send a large request on a kept connection, as long as nothing comes. Raises _Stale, OSError.

    What comes before the engine has the request is an early refusal, or what belongs to somebody else: on a fresh
    connection there is no doubt.
    """
    unsent = memoryview(wire)
    while unsent:
        yield from connection.sent(unsent[:AT_ONCE_BYTES])
        unsent = unsent[AT_ONCE_BYTES:]
        if unsent and not connection.quiet():
            raise _Stale


def _said_nonsense(error: OSError) -> bool:
    """Return whether something was heard, though not TLS: no mere end."""
    ended = (ssl.SSLEOFError, ssl.SSLZeroReturnError)
    return isinstance(error, ssl.SSLError) and not isinstance(error, ended)


def _early_answer(connection: Connection) -> Steps[bytes]:
    """Receive what an engine said before it closed while the request was still being sent (a 413, say)."""
    try:
        return (yield from connection.received())
    except OSError:
        return b""
