"""What moves in an open stream: whole lines of its engine go to its client.

It never blocks on a client or an engine: what a client does not take at once waits, and until it is gone the engine is
not read (back-pressure). Nothing more of a complete stream is waited for longer than its grace, and a sweep: then the
client gets its `[DONE]`. The end of one that has to fit is held back until that is known. For the relay's thread only.
`relayed.py` says what is done when something goes wrong.
"""

from __future__ import annotations

import math
from typing import Any, Callable, Optional, Protocol, Union

from gateway.errors import GatewayError
from gateway.fitting import Judging
from gateway.routing.retry import Outcome
from gateway.server.loop import Loop
from gateway.upstream.attempt import EngineFault
from gateway.upstream.call import Call
from gateway.upstream.stream import EngineStream

_COMPLETE = -1
Failure = Union[EngineFault, GatewayError]
"""What a client is told in the place of a stream's good end: how its engine has failed, or why it does not fit."""


class StreamClient(Protocol):
    """What a stream's lines are written to: see `answering.Client`."""

    def send_now(self, data: Union[bytes, memoryview]) -> int: ...

    def before_last(self, exchange: Any, keep_alive: bool) -> None: ...

    def set_deadline(self, deadline_s: float) -> None: ...

    def fileno(self) -> int: ...

    def shut_writing(self) -> None: ...

    def stream_over(self) -> None: ...


class StreamExchange(Protocol):
    """Whose stream it is: one client's (`exchange.py`), or several clients' (`sharing.py`)."""

    keep_alive: bool
    cut: bool
    on_cancel: Optional[Callable[[], None]]

    @property
    def client(self) -> StreamClient: ...

    @property
    def call(self) -> Optional[Call]: ...

    @property
    def takes_chunks(self) -> bool: ...

    def frame(self, lines: bytes) -> bytes: ...

    def carry(self, lines: bytes) -> bytes: ...

    def end_of_stream(self) -> bytes: ...

    def resume(self, broken: EngineStream) -> Optional[EngineStream]: ...

    def stream_failed(self, fault: Failure) -> bytes: ...

    def stream_ended(self, stream: EngineStream, outcome: Outcome, keep_open: bool = False) -> None: ...


class Flow:
    """The bytes of one stream under way."""

    __slots__ = (
        "_chunks",
        "_client",
        "_ending",
        "_idle_timeout_s",
        "_judging",
        "_loop",
        "_outcome",
        "_paused",
        "active_s",
        "away",
        "cancelled",
        "end_s",
        "exchange",
        "over",
        "so_far",
        "stream",
        "unsent",
    )

    def __init__(self, exchange: StreamExchange, stream: EngineStream, loop: Loop, idle_timeout_s: float) -> None:
        self.exchange = exchange
        self.stream = stream
        self.active_s = loop.began_s  # when something of it came or went last
        self.unsent: Union[bytes, memoryview] = b""
        self.cancelled = False
        self.away = False  # a thread looks for an engine that goes on, or at the whole; nothing is read meanwhile
        self.over = False
        # A finished stream: when it is ended, and what had come of it: `_COMPLETE`, or how many events of one that may
        # yet bring more choices.
        self.end_s = math.inf
        self.so_far = 0
        self._idle_timeout_s = idle_timeout_s
        self._loop = loop
        self._client = exchange.client
        call = exchange.call
        self._judging: Optional[Judging] = None if call is None or call.shape is None else call.shape.judging()
        # The client takes an engine's chunks as they are.
        self._chunks = exchange.takes_chunks and self._judging is None
        self._paused = False  # the engine is not read until the client has taken what is buffered
        self._ending = False  # everything has been read; `unsent` is the rest
        self._outcome = Outcome("ok")

    def guarded(self, step: Callable[[], None]) -> None:
        """Run one step; whatever goes wrong ends this stream and no other."""
        raise NotImplementedError

    def cancel(self, lines: bytes = b"") -> None:
        """The client has left; or the gateway ends, and tells the client after `lines`."""
        raise NotImplementedError

    def _end(self, outcome: Outcome) -> None:
        """The stream is over for its client."""
        raise NotImplementedError

    def _have_judged(self, data: bytes, end: bytes) -> None:
        """Send `data`, and behind it the stream's `end` or why there is none, as soon as a thread knows."""
        raise NotImplementedError

    def _judged(self) -> Optional[GatewayError]:
        """Why the client does not get the stream's end; None: it does. Raises nothing."""
        raise NotImplementedError

    def begin(self) -> None:
        """Write what waits, and read from now on."""
        if self.unsent:
            self._buffer(self.unsent)
        if self.cancelled:
            self.cancel(self.stream.first)
            return
        lines = self._come()
        if not self._paused:
            self._loop.watch(self.stream.sock.fileno(), self.ready)
        self._forward(lines)

    def _come(self) -> bytes:
        """What has come already of a stream that is relayed from now on. Raises EngineFault."""
        first, self.stream.first = self.stream.first, b""
        try:
            return first + self.stream.detach()
        except EngineFault as fault:
            fault.lines = first + fault.lines
            raise

    def ready(self, events: int) -> None:
        """A socket of this stream is ready: the engine's, or the client's when something waits for it."""
        if self.unsent:
            self.guarded(self._flush)
        elif not self.over:  # not ended by an earlier event of the same turn
            self.guarded(self._pull)

    def _pull_again(self, events: int) -> None:
        """It has more to give than one turn takes; what others have got was between."""
        if not (self.over or self.unsent or self.away or self._ending):
            self.guarded(self._pull)

    def _pull(self) -> None:
        stream = self.stream
        self.active_s = self._loop.began_s  # also by a part of an event
        data = stream.pull_chunk() if self._chunks else b""
        if not data:
            self._forward(stream.pull())
            return
        self._send(data)  # the usual event, without the calls that its end would need

    def _send(self, data: bytes) -> bool:
        """Send what the client takes and keep the rest; True when nothing is left. Raises OSError."""
        try:
            sent = self._client.send_now(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self._buffer(data[sent:])
            return False
        return True

    def _forward(self, lines: bytes) -> None:
        """Send lines to the client, and the end behind them when the stream is done."""
        exchange, stream, end = self.exchange, self.stream, b""
        if self._judging is not None and lines:
            lines, end = self._judging.lines(lines, stream.done)
        data = exchange.carry(lines) if lines else b""
        if end and self._judging is not None:
            if self._judging.takes_long:
                self._have_judged(data, end)
                return
            data += self._last(end, self._judged())
        if stream.done:
            if not self._ending:
                self._ending = True
                self.end_s = math.inf
                data += exchange.end_of_stream()
                self._client.before_last(exchange, exchange.keep_alive)
        elif stream.events.finished:
            self._limit()
        if self.unsent:  # a stream that has gone on, or ended, while its client was slow
            self._add_unsent(data)
            return
        if data and not self._send(data):
            return
        if self._ending:
            self._end(self._outcome)
        elif stream.ripe:
            self._loop.again(self._pull_again, 0)

    def _last(self, end: bytes, error: Optional[GatewayError]) -> bytes:
        """The stream's end as the client gets it, or the event that says why there is none."""
        exchange = self.exchange
        return exchange.carry(end) if error is None else exchange.frame(exchange.stream_failed(error))

    def _add_unsent(self, data: bytes) -> None:
        """Append `data` to what the client has not taken yet."""
        if data:
            self.unsent = bytes(self.unsent) + data
        if self._ending:
            self._client.set_deadline(math.inf)  # as in `_buffer`

    def _buffer(self, rest: Union[bytes, memoryview]) -> None:
        """The client is slower than its engine: keep the rest, and read on only when it is gone."""
        self.unsent = rest
        if self._ending:
            # The connection's time to close or be idle begins with the last byte; until then the sweep keeps the time.
            self._client.set_deadline(math.inf)
        if not self._paused:
            self._paused = True
            self._loop.unwatch(self.stream.sock.fileno())
        self._loop.watch(self._client.fileno(), self.ready, writing=True)

    def _flush(self) -> None:
        try:
            sent = self._client.send_now(self.unsent)
        except BlockingIOError:
            return
        self.active_s = self._loop.began_s
        self.unsent = memoryview(self.unsent)[sent:]  # a copy each time would take as long as the rest is large
        if self.unsent:
            return
        self._loop.unwatch(self._client.fileno())
        if self._ending:
            self._client.before_last(self.exchange, self.exchange.keep_alive)
            self._end(self._outcome)
            return
        self._paused = False
        if not self.away:
            self._loop.watch(self.stream.sock.fileno(), self.ready)
            if self.stream.ripe:
                self._loop.again(self._pull_again, 0)

    def _transmit(self, data: bytes) -> bool:
        """Send the end of a stream, behind what waits; True when nothing is left. A client that has left ends it."""
        if self.unsent:
            self._add_unsent(data)
            return False
        try:
            return self._send(data)
        except OSError:
            self._end(Outcome("cancelled"))
            return False

    def _limit(self) -> None:
        """The stream is finished: give its engine time to end it; for more choices, if not all have come that were
        asked for, as long as for the next event."""
        so_far = _so_far(self.stream)
        if self.end_s == math.inf or self.so_far != so_far:
            limit_s = self.stream.grace_s if so_far == _COMPLETE else self._idle_timeout_s
            self.end_s, self.so_far = self._loop.began_s + limit_s, so_far

    def _finish(self, lines: bytes = b"") -> None:
        """The stream is finished and nothing more of its engine is waited for: `lines`, then its good end."""
        try:
            self._forward(self.stream.finish(lines))
        except OSError:
            self._end(Outcome("cancelled"))  # the client's socket: it has left

    def finish_late(self) -> None:
        """A finished stream's engine has had its time; what has come of it meanwhile is still passed on."""
        stream = self.stream
        lines = stream.pull() if self._paused else b""
        self.end_s = math.inf
        if stream.events.finished and self.so_far == _so_far(stream):
            lines = stream.finish(lines)
        self._forward(lines)  # else more has come, and it is limited anew when it is finished again


def _so_far(stream: EngineStream) -> int:
    """Return how much has come of a finished stream."""
    return _COMPLETE if stream.events.complete else stream.events.events
