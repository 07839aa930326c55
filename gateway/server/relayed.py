"""One open stream on its way from its engine to its client.

A `Relayed` owns the stream and its client's writing side from `begin` to the end. For the relay's thread only, but for
`cancelled` and `onward`. It never blocks on a client or an engine: what a client does not take at once waits, and until
it is gone the engine is not read (back-pressure). Nothing more of a complete stream is waited for longer than its
grace, and a sweep: then the client gets its `[DONE]`.
"""

from __future__ import annotations

import math
import threading
from typing import Callable, Optional, Protocol, Union

from gateway.routing.retry import CRASHED, Outcome
from gateway.server.exchange import Exchange
from gateway.server.loop import Loop
from gateway.upstream.attempt import EngineFault
from gateway.upstream.stream import EngineStream

_COMPLETE = -1


class Owner(Protocol):
    """Whose streams these are."""

    idle_timeout_s: float

    def on_error(self, error: BaseException, /) -> None:
        """Hear of what nobody had foreseen."""

    def post(self, relayed: Relayed, step: Callable[[], None]) -> None:
        """Have the relay's thread run a step."""

    def drop(self, relayed: Relayed) -> None:
        """A stream is over."""

    def linger(self, stream: EngineStream) -> None:
        """Wait for the end of a stream's body, for a while."""


class Relayed:
    """One stream under way."""

    __slots__ = (
        "_chunks",
        "_client",
        "_ending",
        "_fault",
        "_loop",
        "_outcome",
        "_paused",
        "_relay",
        "active_s",
        "away",
        "cancelled",
        "end_s",
        "exchange",
        "onward",
        "over",
        "so_far",
        "stream",
        "unsent",
    )

    def __init__(self, exchange: Exchange, stream: EngineStream, relay: Owner, loop: Loop) -> None:
        self.exchange = exchange
        self.stream = stream
        self.active_s = loop.began_s  # when something of it came or went last
        self.unsent: Union[bytes, memoryview] = b""
        self.cancelled = False
        self.away = False  # a thread looks for an engine that goes on; nothing is read or written meanwhile
        self.onward: Optional[EngineStream] = None  # what it has found
        self.over = False
        # A finished stream: when it is ended, and what had come of it: `_COMPLETE`, or how many events of one that may
        # yet bring more choices.
        self.end_s = math.inf
        self.so_far = 0
        self._relay = relay
        self._loop = loop
        self._client = exchange.client
        self._chunks = exchange.head.version_1_1  # the client takes an engine's chunks as they are
        self._paused = False  # the engine is not read until the client has taken what is buffered
        self._ending = False  # everything has been read; `unsent` is the rest
        self._outcome = Outcome("ok")
        self._fault: Optional[EngineFault] = None

    def guarded(self, step: Callable[[], None]) -> None:
        """Run one step; whatever goes wrong ends this stream and no other."""
        try:
            try:
                step()
            except EngineFault as fault:
                if fault.outcome is CRASHED:
                    self._relay.on_error(fault.__cause__ or fault)
                self._broken(fault)
            except OSError:
                self._end(Outcome("cancelled"))  # the client's socket: it has left
        except Exception as error:
            self._relay.on_error(error)
            self._abandon()

    def _abandon(self) -> None:
        """End a stream that could not be ended in good order: nothing more is written, and all that it holds is given
        back."""
        exchange = self.exchange
        self.away = False
        self.unsent = b""
        self.over = True
        exchange.keep_alive = False
        steps: tuple[Callable[[], object], ...] = (
            lambda: self._relay.drop(self),
            lambda: self._loop.unwatch(self.stream.sock.fileno()),
            lambda: self._loop.unwatch(self._client.fileno()),
            self._client.shut_writing,
            lambda: exchange.stream_ended(self.stream, Outcome("cancelled")),
            self._client.stream_over,
        )
        for step in steps:
            try:
                step()
            except Exception as error:
                self._relay.on_error(error)

    # --- moving events ---------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Write what waits, and read from now on."""
        if self.unsent:
            self._buffer(self.unsent)
        if self.cancelled:
            self.cancel()
            return
        lines = self.stream.detach()
        if not self._paused:
            self._loop.watch(self.stream.sock.fileno(), self.ready)
        self._forward(lines)

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
        # The usual event, without the calls that its end would need.
        try:
            sent = self._client.send_now(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self._buffer(data[sent:])

    def _forward(self, lines: bytes) -> None:
        """Send lines to the client, and the end behind them when the stream is done."""
        exchange, stream = self.exchange, self.stream
        data = exchange.frame(lines) if lines else b""
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
        if data:
            try:
                sent = self._client.send_now(data)
            except BlockingIOError:
                sent = 0
            if sent < len(data):
                self._buffer(data[sent:])
                return
        if self._ending:
            self._end(self._outcome)
        elif stream.ripe:
            self._loop.again(self._pull_again, 0)

    def _add_unsent(self, data: bytes) -> None:
        """Behind what waits for the client already."""
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

    # --- going on elsewhere ----------------------------------------------------------------------------------------

    def _broken(self, fault: EngineFault) -> None:
        """The engine failed mid-stream: one error event, and no `[DONE]`."""
        call = self.exchange.call
        if call is not None and call.cancelled:
            # What broke is the connection that `cancel` shut: no fault of the engine.
            self.cancel(fault.lines)
            return
        if self.stream.done or self.stream.events.finished:
            self._finish(fault.lines)
            return
        rest = fault.lines + self.stream.events.closing
        if self.stream.events.keeps_text:
            self._send_away(fault, rest)
        else:
            self._fail(fault, rest)

    def _send_away(self, fault: EngineFault, rest: bytes) -> None:
        """Have a thread look for an engine that goes on with the text so far; it comes back with `onward`."""
        exchange, broken = self.exchange, self.stream
        self._loop.unwatch(broken.sock.fileno())
        broken.close(fault.outcome)
        self.away = True
        self._fault = fault

        def look() -> None:
            try:
                self.onward = exchange.resume(broken)
            except Exception as error:  # without another stream then
                self._relay.on_error(error)
            self._relay.post(self, self._go_on)

        try:
            threading.Thread(target=look, name="resume", daemon=True).start()
        except RuntimeError:  # the system gives no more threads
            self.away = False
            self._fail(fault, rest)
            return
        if rest:
            self._transmit(exchange.frame(rest))

    def _go_on(self) -> None:
        """The search is over: relay the new stream, or tell the client of the old one's end."""
        self.away = False
        onward, self.onward = self.onward, None
        call = self.exchange.call
        if self.over or (call is not None and call.cancelled):
            if onward is not None:
                onward.close(Outcome("cancelled"))
            if not self.over:
                self.cancel()
            return
        if onward is None:
            assert self._fault is not None
            self._fail(self._fault, b"")
            return
        self.stream = onward
        self.active_s = self._loop.began_s
        first, onward.first = onward.first, b""
        try:
            lines = first + onward.detach()
        except EngineFault as fault:
            fault.lines = first + fault.lines
            raise
        if not self.unsent:  # else reading goes on when the client has taken that
            self._loop.watch(onward.sock.fileno(), self.ready)
        self._forward(lines)

    # --- ending ----------------------------------------------------------------------------------------------------

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

    def _limit(self) -> None:
        """The stream is finished: give its engine time to end it; for more choices, if not all have come that were
        asked for, as long as for the next event."""
        so_far = _so_far(self.stream)
        if self.end_s == math.inf or self.so_far != so_far:
            limit_s = self.stream.grace_s if so_far == _COMPLETE else self._relay.idle_timeout_s
            self.end_s, self.so_far = self._loop.began_s + limit_s, so_far

    def cancel(self, lines: bytes = b"") -> None:
        """The client has left; or the gateway ends, and tells the client after `lines`."""
        if not self.exchange.cut:
            self._end(Outcome("cancelled"))
        elif self._ending:
            pass  # the client has yet to take the end, of whatever kind
        elif self.stream.events.complete and not self.away:
            self.exchange.keep_alive = False
            self._finish(lines)
        else:
            self._fail(EngineFault(Outcome("cancelled")), lines + self.stream.events.closing)

    def _fail(self, fault: EngineFault, rest: bytes) -> None:
        """`rest`, one error event, the end of the body."""
        exchange = self.exchange
        lines = rest + exchange.stream_failed(fault)
        data = exchange.frame(lines) + exchange.end_of_stream()
        self._client.before_last(exchange, exchange.keep_alive)
        self._ending = True
        self._outcome = fault.outcome
        if self._transmit(data):
            self._end(fault.outcome)

    def _transmit(self, data: bytes) -> bool:
        """Send what the client takes and keep the rest; True when nothing is left."""
        if self.unsent:
            self._add_unsent(data)
            return False
        try:
            sent = self._client.send_now(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._end(Outcome("cancelled"))
            return False
        if sent < len(data):
            self._buffer(data[sent:])
            return False
        return True

    def cut_short(self) -> None:
        """Nobody relays any more."""
        self._end(Outcome("cancelled"))

    def _end(self, outcome: Outcome) -> None:
        """The stream is over for its client: everything has been sent, or nobody is left to send to."""
        if self.over:
            return
        self.over = True
        self._relay.drop(self)
        exchange, stream = self.exchange, self.stream
        exchange.on_cancel = None
        self._loop.unwatch(stream.sock.fileno())
        if self.unsent:
            self._loop.unwatch(self._client.fileno())
            self.unsent = b""  # nothing of it is sent by an event of the same turn
        if outcome.kind == "cancelled":
            exchange.keep_alive = False
        if outcome.kind == "cancelled" or not exchange.keep_alive:
            self._client.shut_writing()
        lingers = outcome.kind == "ok" and not (stream.drained or stream.finished)
        if lingers:
            # The end of the body is due any moment; waiting for it keeps the connection for the next request.
            self._relay.linger(stream)
        exchange.stream_ended(stream, outcome, keep_open=lingers)
        self._client.stream_over()

    def time_out(self) -> None:
        """The engine has been silent for too long, or the client has taken nothing."""
        if self.unsent:
            self._end(Outcome("cancelled"))
        else:
            text = f"the engine sent nothing for {self._relay.idle_timeout_s:g} s"
            self._broken(EngineFault(Outcome("timeout", text)))


def _so_far(stream: EngineStream) -> int:
    """What has come of a finished stream."""
    return _COMPLETE if stream.events.complete else stream.events.events
