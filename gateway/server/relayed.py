"""One open stream on its way from its engine to its client, and how it ends.

A `Relayed` owns the stream and its client's writing side from `begin` to the end. For the relay's thread only, but for
`cancelled` and `onward`. How its bytes move is said by `flow.py`.
"""

from __future__ import annotations

import functools
import math
import threading
from typing import Callable, Optional, Protocol

from gateway.errors import GatewayError
from gateway.routing.retry import CRASHED, Outcome
from gateway.server.flow import Flow, StreamExchange
from gateway.server.loop import Loop
from gateway.upstream.attempt import EngineFault
from gateway.upstream.stream import EngineStream


class Owner(Protocol):
    """The relay, as its streams see it."""

    idle_timeout_s: float

    def on_error(self, error: BaseException, /) -> None:
        """Hear of what nobody had foreseen."""

    def post(self, relayed: Relayed, step: Callable[[], None]) -> None:
        """Have the relay's thread run a step."""

    def drop(self, relayed: Relayed) -> None:
        """A stream is over."""

    def linger(self, stream: EngineStream) -> None:
        """Wait for the end of a stream's body, for a while."""

    def judge(self, job: Callable[[], None]) -> None:
        """Have a thread run a job, which raises nothing; where the system gives none, this one does."""


class Relayed(Flow):
    """One stream under way."""

    __slots__ = ("_fault", "_relay", "onward")

    def __init__(self, exchange: StreamExchange, stream: EngineStream, relay: Owner, loop: Loop) -> None:
        super().__init__(exchange, stream, loop, relay.idle_timeout_s)
        self._relay = relay
        self.onward: Optional[EngineStream] = None  # what a thread has found
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
            self._relay.post(self, self._resumed)

        try:
            threading.Thread(target=look, name="resume", daemon=True).start()
        except RuntimeError:  # the system gives no more threads
            self.away = False
            self._fail(fault, rest)
            return
        if rest:
            self._transmit(exchange.carry(rest))

    def _resumed(self) -> None:
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
        lines = self._come()
        if not self.unsent:  # else reading goes on when the client has taken that
            self._loop.watch(onward.sock.fileno(), self.ready)
        self._forward(lines)

    # --- whether the whole fits ------------------------------------------------------------------------------------

    def _judged(self) -> Optional[GatewayError]:
        """See `Flow._judged`."""
        assert self._judging is not None
        try:
            return self._judging.error()
        except Exception as error:
            self._relay.on_error(error)
            return GatewayError("internal_error", "the gateway failed; see its log")

    def _have_judged(self, data: bytes, end: bytes) -> None:
        """See `Flow._have_judged`."""
        self.away = True
        self.end_s = math.inf
        self._loop.unwatch(self.stream.sock.fileno())
        if self.unsent:
            self._add_unsent(data)
        elif data:
            self._send(data)

        def judge() -> None:
            error = self._judged()
            self._relay.post(self, functools.partial(self._tell_judged, end, error))

        self._relay.judge(judge)

    def _tell_judged(self, end: bytes, error: Optional[GatewayError]) -> None:
        """A thread has looked at the whole: the client gets the end, or why there is none."""
        self.away = False
        exchange, call = self.exchange, self.exchange.call
        if self.over:
            return
        if call is not None and call.cancelled:
            if not exchange.cut:
                self._end(Outcome("cancelled"))
                return
            exchange.keep_alive = False
        data = self._last(end, error) + exchange.end_of_stream()
        self._client.before_last(exchange, exchange.keep_alive)
        self._ending = True
        self.active_s = self._loop.began_s
        if self._transmit(data):
            self._end(self._outcome)

    # --- ending ----------------------------------------------------------------------------------------------------

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
        data = exchange.carry(rest) + exchange.frame(exchange.stream_failed(fault)) + exchange.end_of_stream()
        self._client.before_last(exchange, exchange.keep_alive)
        self._ending = True
        self._outcome = fault.outcome
        if self._transmit(data):
            self._end(fault.outcome)

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
