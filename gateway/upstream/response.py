"""An engine's answer on its connection: the head, then payload, as it comes.

Owns a connection from the first byte of an answer until `release` or `close`. Used by one thread at a time; there is no
lock. Never judges what a body says.
"""

from __future__ import annotations

import math
from typing import Optional, Union

from gateway.routing.retry import Outcome
from gateway.steps import ASIDE, Steps
from gateway.upstream.attempt import Attempt, EngineFault
from gateway.upstream.codings import decoder_of
from gateway.upstream.connection import Connection
from gateway.upstream.connections import ConnectionPool
from gateway.upstream.framing import (
    HEAD_MAX_BYTES,
    BodyDecoder,
    FramingError,
    LengthBody,
    ResponseHead,
    parse_response_head,
)
from gateway.upstream.shortage import is_shortage, overloaded
from gateway.upstream.sniff import kind_of

ANSWER_MAX_BYTES = 67_108_864
EARLY_HEADS_MAX_BYTES = 65_536  # of answers 1xx, before the answer itself
AHEAD_MAX_BYTES = 262144  # of an answer; what is done over more is for a thread
INTERIM_MAX = 32  # answers of 1xx before the answer proper

Text = Union[bytes, bytearray]


class EngineResponse:
    """An engine's answer: head read, body to come. Used by one thread at a time; ended by `release` or `close`."""

    __slots__ = (
        "_fault",
        "_over",
        "_payload",
        "_raw",
        "attempt",
        "connection",
        "decoder",
        "head",
        "pool",
        "reusable",
        "status",
    )

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
        plain = head.length is not None and b"content-encoding" not in head.headers
        self.decoder: BodyDecoder = LengthBody(head.length or 0) if plain else decoder_of(head)
        self._raw = raw
        self._payload: Text = b""  # decoded ahead
        self._fault: Optional[EngineFault] = None  # behind that
        self.connection = connection
        self.pool = pool
        self.reusable = True  # the engine has got the whole request; the decoder knows whether it has sent its answer
        self.attempt = attempt
        attempt.begun = True
        self._over = False

    def read_some(self, until_s: float = math.inf) -> Steps[bytes]:
        """More payload; b"" at the end of a complete body. Waits until `until_s` (of time.monotonic) at most.

        Raises EngineFault, ClientGone.
        """
        payload = self._payload
        if payload:
            self._payload = b""
            return bytes(payload)
        decoder = self.decoder
        while not decoder.complete:
            if self._fault is not None:
                raise self._fault
            raw = self._raw
            if raw:
                self._raw = b""
            elif decoder.pending:
                yield ASIDE  # what a little of a compressed answer stands for may be much
                if self.attempt.aborted is not None:  # it may be pending for long, and no socket would tell
                    raise self.attempt.failure()
            else:
                raw = yield from receive(self.connection, self.attempt, until_s)
                if not raw:
                    if decoder.end():
                        break
                    raise EngineFault(Outcome("truncated", "the engine's answer was cut short"))
            payload = _feed(decoder, raw)
            if payload:
                return payload
        return b""

    def take_object(self, max_bytes: int = ANSWER_MAX_BYTES) -> Union[bytes, bytearray, None]:
        """The whole body, if it has come with the head and begins as a JSON object: the usual answer. Else None: see
        `kind` and `read_all`."""
        raw = self._raw
        if (
            self.head.length != len(raw)
            or type(self.decoder) is not LengthBody
            or raw[:1] != b"{"
            or len(raw) > max_bytes
        ):
            return None
        self._raw = b""
        return self.decoder.feed(raw)

    def read_all(self, max_bytes: int = ANSWER_MAX_BYTES) -> Steps[Text]:
        """The whole body; one that came in parts is a bytearray, which the caller owns: a large one is held once.

        Raises EngineFault, also for a body of more than `max_bytes`, and ClientGone.
        """
        decoder = self.decoder
        first = yield from self.read_some()
        size = len(first) + (decoder.left_bytes if isinstance(decoder, LengthBody) else 0)
        body: Text = first
        if not decoder.complete and size <= max_bytes:
            body = yield from self._read_on(bytearray(first), max_bytes)
        if size > max_bytes or len(body) > max_bytes:
            raise EngineFault(Outcome("invalid", f"the engine's answer has more than {max_bytes} bytes"))
        return body

    def read_up_to(self, max_bytes: int) -> Steps[bytes]:
        """The body, or as much of its begin as can be had; the connection can only be closed then. Raises
        ClientGone."""
        body = bytearray()
        try:
            yield from self._read_on(body, max_bytes)
        except EngineFault:
            pass  # what has come before may tell enough
        return bytes(body[:max_bytes])

    def read_begin(self, size_bytes: int) -> Steps[bytes]:
        """What has come of the body, and what comes until it is over or has so many bytes. Raises EngineFault,
        ClientGone."""
        body = bytearray(self.take_buffered())
        while not self.decoder.complete and len(body) < size_bytes:
            part = yield from self.read_some()
            if not part:
                self.decoder.complete = True
            body += part
        return bytes(body)

    def _read_on(self, body: bytearray, max_bytes: int) -> Steps[bytearray]:
        aside = False
        while len(body) <= max_bytes:
            if len(body) > AHEAD_MAX_BYTES and not aside:
                aside = True
                yield ASIDE
            part = yield from self.read_some()
            if not part:
                break
            body += part
        return body

    def take_buffered(self) -> bytes:
        """Payload that has arrived already, without reading; for who goes on reading without blocking.

        Raises EngineFault, whose `lines` are the payload before what is wrong.
        """
        raw, self._raw = self._raw, b""
        payload, self._payload = self._payload, b""
        if self._fault is not None:
            self._fault.lines = bytes(payload)
            raise self._fault
        return bytes(payload + _feed(self.decoder, raw) if raw else payload)

    def _is_whole(self) -> bool:
        """Return whether the whole body has arrived, or what breaks it: reading it will not block."""
        raw, self._raw = self._raw, b""
        part: bytes = b""
        if raw:
            try:
                part = _feed(self.decoder, raw)
            except EngineFault as fault:
                part, fault.lines = fault.lines, b""
                self._fault = fault
        if not self._payload:
            self._payload = part
        elif part:
            if not isinstance(self._payload, bytearray):
                self._payload = bytearray(self._payload)  # added to, part by part, without copies
            self._payload += part
        return self.decoder.complete or self._fault is not None

    def kind(self) -> Optional[str]:
        """Tell what the body is, by how it begins (`sniff`); None: too little has come. Raises EngineFault for what
        breaks before."""
        whole = self._is_whole()
        if self._fault is not None and not self._payload:
            raise self._fault
        return kind_of(self._payload, whole)

    def await_kind(self) -> Steps[Optional[str]]:
        """Wait until `kind` can tell, and return that.

        None: the connection has ended before, or much is to be decoded first. Raises EngineFault, ClientGone.
        """
        while not self.decoder.pending:
            raw = yield from receive(self.connection, self.attempt)
            if raw:
                self._raw += raw
            elif not self.decoder.end():
                return None  # cut short: who reads on is told
            kind = self.kind()
            if kind is not None:
                return kind
        return None

    def release(self) -> None:
        """Give the connection back if the body ended cleanly, else close it. Idempotent, as `close` is.

        What has come behind the body was not asked for, counts, and is dropped with the connection.
        """
        decoder = self.decoder
        if self._over:
            return
        if decoder.surplus or (decoder.complete and self._raw):
            self.pool.note_surplus(self.connection)
        elif decoder.complete and decoder.reusable and self.reusable and self.head.keep_alive:
            self._over = True
            self.attempt.connection = None
            self.pool.give(self.connection)
            return
        self.close()

    def close(self) -> None:
        """Close the connection, unless it has been given back; the engine notices."""
        if not self._over:
            self._over = True
            self.attempt.connection = None
            self.connection.close()


def whole_head(data: bytes, connection: Connection, pool: ConnectionPool, attempt: Attempt) -> Optional[EngineResponse]:
    """The response that begins with `data`, if its head is whole, as it mostly is; else None: see `read_head`."""
    end = data.find(b"\r\n\r\n")
    if not 0 <= end <= HEAD_MAX_BYTES or data.startswith(b"HTTP/1.1 1"):
        return None
    try:
        head = parse_response_head(data[:end])
    except FramingError:
        return None
    return EngineResponse(head, data[end + 4 :], connection, pool, attempt) if head.status >= 200 else None


def read_head(data: bytes, connection: Connection, pool: ConnectionPool, attempt: Attempt) -> Steps[EngineResponse]:
    """The response that begins with `data`."""
    interim = early_bytes = looked_at = 0
    buffer: Text = data
    while True:
        end = buffer.find(b"\r\n\r\n", looked_at)
        if (end if end >= 0 else len(buffer) - 3) > HEAD_MAX_BYTES:  # however it was cut
            raise EngineFault(Outcome("invalid", "the engine's answer has no end of its head"))
        if end >= 0:
            data = bytes(buffer)
            try:
                head = parse_response_head(data[:end])
                if head.status >= 200:
                    return EngineResponse(head, data[end + 4 :], connection, pool, attempt)
            except FramingError as error:
                raise EngineFault(Outcome("invalid", f"the engine's answer is broken: {error}")) from error
            interim += 1
            early_bytes += end + 4
            if head.status == 101 or interim > INTERIM_MAX or early_bytes > EARLY_HEADS_MAX_BYTES:
                raise EngineFault(Outcome("invalid", "the engine's answer is broken: 1xx that nobody asked for"))
            buffer, looked_at = data[end + 4 :], 0  # 1xx: the answer itself follows
            if buffer:
                continue
        looked_at = max(0, len(buffer) - 3)
        more = yield from receive(connection, attempt)
        if not more:
            raise EngineFault(Outcome("truncated", "the engine's answer was cut short"))
        if not isinstance(buffer, bytearray):
            buffer = bytearray(buffer)  # added to, part by part, without copies
        buffer += more


def _feed(decoder: BodyDecoder, raw: bytes) -> bytes:
    """Raises EngineFault, whose `lines` are the payload before what is wrong."""
    try:
        return decoder.feed(raw)
    except FramingError as error:
        outcome = Outcome(error.kind, f"the engine's answer is broken: {error}")
        raise EngineFault(outcome, error.payload) from error


def receive(connection: Connection, attempt: Attempt, until_s: float = math.inf) -> Steps[bytes]:
    """Bytes of an answer that has begun; b"" at the connection's end. Raises EngineFault, ClientGone."""
    try:
        data = yield from connection.received(until_s)
    except OSError as error:
        if attempt.aborted is not None:
            raise attempt.failure() from error
        if is_shortage(error):
            raise overloaded(error) from error
        # Part of an answer has come, else `_exchange` would be reading.
        raise EngineFault(Outcome("truncated", "the engine's answer was cut short")) from error
    if not data and attempt.aborted is not None:
        raise attempt.failure()
    return data
