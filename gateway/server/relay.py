"""Open streams: one selector-driven thread moves whole lines from engines' sockets to clients' sockets.

The thread owns everything about a stream from `take` to its end: the selector, every `_Relayed`, the clients' writing
sides. Other threads reach it through `_inbox` (a deque) and a `Wakeup`; there is no lock. It never blocks on a client
or an engine: what a client does not take at once waits, and until it is gone the engine is not read (back-pressure).
Nothing more of a complete stream is waited for longer than its grace, and a sweep: then the client gets its `[DONE]`.

Measured: 60 us CPU per event with a blocked thread per stream, 17 with this (docs/PERFORMANCE.md).
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from typing import Any, Callable, Optional, Union

from gateway.routing.retry import CRASHED, Outcome
from gateway.server.exchange import Exchange
from gateway.server.poller import new_poller
from gateway.server.wakeup import Wakeup
from gateway.upstream.attempt import EngineFault
from gateway.upstream.stream import EngineStream

SWEEP_S = 0.5
# From one turn to the next at least, unless so many are ready: below 2 000 events a second none waits; above, one waits
# 0.5 ms at most and costs less (22 -> 17 us at 5 000 a second: waking up costs more than an event).
TURN_S = 0.0005
TOGETHER = 8
_COMPLETE = -1
DRAIN_S = 1.0  # how long a finished stream's connection gets to end its body, to be kept


class _Relayed:
    """One stream under way. Used by the relay's thread only, but for `cancelled`."""

    __slots__ = (
        "active_s",
        "away",
        "cancelled",
        "chunks",
        "client",
        "ending",
        "exchange",
        "fault",
        "onward",
        "outcome",
        "paused",
        "stream",
        "unsent",
    )

    def __init__(self, exchange: Exchange, stream: EngineStream, now_s: float) -> None:
        self.exchange = exchange
        self.client = exchange.client
        self.chunks = exchange.head.version_1_1  # the client takes an engine's chunks as they are
        self.stream = stream
        self.active_s = now_s
        self.unsent: Union[bytes, memoryview] = b""
        self.paused = False  # the engine is not read until the client has taken what is buffered
        self.ending = False  # everything has been read; `unsent` is the rest
        self.outcome = Outcome("ok")
        self.cancelled = False
        self.away = False  # a worker looks for an engine that goes on; nothing is read or written meanwhile
        self.fault: Optional[EngineFault] = None
        self.onward: Optional[EngineStream] = None


class Relay:
    """Relays streams until each has ended. `take` and `close` are thread-safe."""

    def __init__(
        self,
        idle_timeout_s: float,
        on_error: Callable[[BaseException], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._idle_timeout_s = idle_timeout_s
        self._on_error = on_error
        self._clock = clock
        self._poller = new_poller()
        self._inbox: deque[tuple[str, _Relayed]] = deque()
        self._wakeup = Wakeup()
        self._poller.register(self._wakeup.receiver, None)
        self._streams: dict[_Relayed, None] = {}
        self._ripe: dict[_Relayed, None] = {}  # to be pulled in the next round, whatever their sockets say
        self._lingering: dict[EngineStream, float] = {}
        # What is finished: when it is ended, and what had come of it: `_COMPLETE`, or how many events of one that may
        # yet bring more choices.
        self._finished: dict[_Relayed, tuple[float, int]] = {}
        self._now_s = clock()  # of the round under way
        self._closing = False
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self._thread.start()

    def take(self, exchange: Exchange, stream: EngineStream, unsent: bytes = b"") -> None:
        """Relay `stream` to the exchange's client from now on, behind `unsent`; both are concluded when it ends."""
        relayed = _Relayed(exchange, stream, self._clock())
        relayed.unsent = unsent

        def cancel() -> None:
            relayed.cancelled = True
            self._send("cancel", relayed)

        exchange.on_cancel = cancel
        call = exchange.call
        if call is not None and call.cancelled:
            relayed.cancelled = True  # the client left between the first event and now
        self._send("take", relayed)
        if self._ended:
            # The thread sets the flag and then empties the inbox, this looks at the flag after putting: one of the two
            # takes it out.
            self._end_unbegun()

    def __len__(self) -> int:
        return len(self._streams)

    def close(self, timeout_s: float) -> None:
        """End every stream and the thread."""
        self._closing = True
        self._wakeup.wake()
        self._thread.join(timeout_s)

    def _send(self, what: str, relayed: _Relayed) -> None:
        self._inbox.append((what, relayed))
        self._wakeup.wake()

    # --- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        sweep_s = self._clock() + SWEEP_S
        while not self._closing:
            ready, ripe = self._wait(), self._ripe
            if ripe:
                self._ripe = {}
            for relayed in ready:
                if relayed is None:
                    self._receive_inbox()
                elif isinstance(relayed, _Relayed):
                    self._step(relayed)
                else:
                    self._linger_step(relayed)
            if ripe:
                self._pull_ripe(ripe)
            if self._now_s >= sweep_s:
                sweep_s = self._now_s + SWEEP_S
                self._sweep(self._now_s)
        for relayed in list(self._streams):
            self._guarded(relayed, self._cut_short)
        for stream in list(self._lingering):
            self._stop_lingering(stream)
        self._ended = True
        self._end_unbegun()
        self._poller.close()
        self._wakeup.close()

    def _wait(self) -> list[Any]:
        """What is ready; while events come fast, after the pause that lets more of them be taken together."""
        ready = self._poller.wait(0.0 if self._ripe else SWEEP_S)
        last_s, self._now_s = self._now_s, self._clock()
        early_s = last_s + TURN_S - self._now_s
        if early_s > 0 and len(ready) < TOGETHER:
            time.sleep(early_s)
            self._now_s = self._clock()
            ready = self._poller.wait(0.0)
        return ready

    def _end_unbegun(self) -> None:
        """End what was handed over too late to be relayed."""
        while True:
            try:
                what, relayed = self._inbox.popleft()
            except IndexError:
                return
            if what == "take":
                self._streams[relayed] = None
                self._guarded(relayed, self._cut_short)
            elif what == "onward" and relayed.onward is not None:
                relayed.onward.close(Outcome("cancelled"))

    def _cut_short(self, relayed: _Relayed) -> None:
        self._end(relayed, Outcome("cancelled"))

    def _receive_inbox(self) -> None:
        self._wakeup.clear()
        while self._inbox:
            what, relayed = self._inbox.popleft()
            if what == "take":
                self._guarded(relayed, self._begin)
            elif what == "onward":
                self._guarded(relayed, self._go_on)
            elif relayed in self._streams and not relayed.away:
                self._guarded(relayed, self._cancelled)

    def _guarded(self, relayed: _Relayed, step: Callable[[_Relayed], None]) -> None:
        """Run one step of one stream; whatever goes wrong ends that stream and no other."""
        try:
            try:
                step(relayed)
            except EngineFault as fault:
                if fault.outcome is CRASHED:
                    self._on_error(fault.__cause__ or fault)
                self._broken(relayed, fault)
            except OSError:
                self._end(relayed, Outcome("cancelled"))  # the client's socket: it has left
        except Exception as error:
            self._on_error(error)
            self._abandon(relayed)

    def _abandon(self, relayed: _Relayed) -> None:
        """End a stream that could not be ended in good order: nothing more is written, and all that it holds is given
        back."""
        exchange = relayed.exchange
        relayed.away = False
        relayed.unsent = b""
        exchange.keep_alive = False
        steps: tuple[Callable[[], object], ...] = (
            lambda: self._streams.pop(relayed, None),
            lambda: self._finished.pop(relayed, None),
            lambda: self._poller.unregister(relayed.stream.sock),
            lambda: self._poller.unregister(exchange.client.fileno()),
            exchange.client.shut_writing,
            lambda: exchange.stream_ended(relayed.stream, Outcome("cancelled")),
            exchange.client.stream_over,
        )
        for step in steps:
            try:
                step()
            except Exception as error:
                self._on_error(error)

    def _begin(self, relayed: _Relayed) -> None:
        self._streams[relayed] = None
        if relayed.unsent:
            self._buffer(relayed, relayed.unsent)
        if relayed.cancelled:
            self._cancelled(relayed)
            return
        lines = relayed.stream.detach()
        if not relayed.paused:
            self._poller.register(relayed.stream.sock, relayed)
        self._forward(relayed, lines)

    def _step(self, relayed: _Relayed) -> None:
        """A socket of this stream is ready: the engine's, or the client's when something waits for it."""
        if relayed.unsent:
            self._guarded(relayed, self._flush)
        elif relayed in self._streams:  # not ended by an earlier event of the same round
            self._guarded(relayed, self._pull)

    def _pull_ripe(self, ripe: dict[_Relayed, None]) -> None:
        """One turn for each that has more to give than one turn takes; what others have got was between."""
        for relayed in ripe:
            if relayed in self._streams and not (relayed.unsent or relayed.away or relayed.ending):
                self._guarded(relayed, self._pull)

    def _pull(self, relayed: _Relayed) -> None:
        stream = relayed.stream
        relayed.active_s = self._now_s  # also by a part of an event
        data = stream.pull_chunk() if relayed.chunks else b""
        if not data:
            self._forward(relayed, stream.pull())
            return
        # The usual event, without the calls that its end would need.
        try:
            sent = relayed.client.send_now(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self._buffer(relayed, data[sent:])

    def _forward(self, relayed: _Relayed, lines: bytes) -> None:
        """Send lines to the client, and the end behind them when the stream is done."""
        exchange, stream = relayed.exchange, relayed.stream
        data = exchange.frame(lines) if lines else b""
        if stream.done:
            if not relayed.ending:
                relayed.ending = True
                self._finished.pop(relayed, None)
                data += exchange.end_of_stream()
                exchange.client.before_last(exchange, exchange.keep_alive)
        elif stream.events.finished:
            self._limit(relayed)
        if relayed.unsent:  # a stream that has gone on, or ended, while its client was slow
            self._add_unsent(relayed, data)
            return
        if data:
            try:
                sent = exchange.client.send_now(data)
            except BlockingIOError:
                sent = 0
            if sent < len(data):
                self._buffer(relayed, data[sent:])
                return
        if relayed.ending:
            self._end(relayed, relayed.outcome)
        elif relayed.stream.ripe:
            self._ripe[relayed] = None

    def _add_unsent(self, relayed: _Relayed, data: bytes) -> None:
        """Behind what waits for the client already."""
        if data:
            relayed.unsent = bytes(relayed.unsent) + data
        if relayed.ending:
            relayed.exchange.client.set_deadline(math.inf)  # as in `_buffer`

    def _buffer(self, relayed: _Relayed, rest: Union[bytes, memoryview]) -> None:
        """The client is slower than its engine: keep the rest, and read on only when it is gone."""
        relayed.unsent = rest
        if relayed.ending:
            # The connection's time to close or be idle begins with the last byte; until then `_sweep` keeps the time.
            relayed.exchange.client.set_deadline(math.inf)
        if not relayed.paused:
            relayed.paused = True
            self._poller.unregister(relayed.stream.sock)
        self._poller.register(relayed.exchange.client.fileno(), relayed, writing=True)

    def _flush(self, relayed: _Relayed) -> None:
        try:
            sent = relayed.exchange.client.send_now(relayed.unsent)
        except BlockingIOError:
            return
        relayed.active_s = self._now_s
        relayed.unsent = memoryview(relayed.unsent)[sent:]  # a copy each time would take as long as the rest is large
        if relayed.unsent:
            return
        exchange = relayed.exchange
        self._poller.unregister(exchange.client.fileno())
        if relayed.ending:
            exchange.client.before_last(exchange, exchange.keep_alive)
            self._end(relayed, relayed.outcome)
            return
        relayed.paused = False
        if not relayed.away:
            self._poller.register(relayed.stream.sock, relayed)
            if relayed.stream.ripe:
                self._ripe[relayed] = None

    def _broken(self, relayed: _Relayed, fault: EngineFault) -> None:
        """The engine failed mid-stream: one error event, and no `[DONE]`."""
        exchange = relayed.exchange
        call = exchange.call
        if call is not None and call.cancelled:
            # What broke is the connection that `cancel` shut: no fault of the engine.
            self._cancelled(relayed, fault.lines)
            return
        if relayed.stream.done or relayed.stream.events.finished:
            self._finish(relayed, fault.lines)
            return
        rest = fault.lines + relayed.stream.events.closing
        if relayed.stream.events.keeps_text:
            self._send_away(relayed, fault, rest)
        else:
            self._fail(relayed, fault, rest)

    def _send_away(self, relayed: _Relayed, fault: EngineFault, rest: bytes) -> None:
        """Have a thread look for an engine that goes on with the text so far; it comes back as `onward`."""
        exchange, broken = relayed.exchange, relayed.stream
        self._poller.unregister(broken.sock)
        broken.close(fault.outcome)
        relayed.away = True
        relayed.fault = fault

        def look() -> None:
            try:
                relayed.onward = exchange.resume(broken)
            except Exception as error:  # without another stream then
                self._on_error(error)
            self._send("onward", relayed)
            if self._ended:
                self._end_unbegun()  # as in `take`

        try:
            threading.Thread(target=look, name="resume", daemon=True).start()
        except RuntimeError:  # the system gives no more threads
            relayed.away = False
            self._fail(relayed, fault, rest)
            return
        if rest:
            self._transmit(relayed, exchange.frame(rest))

    def _go_on(self, relayed: _Relayed) -> None:
        """The search is over: relay the new stream, or tell the client of the old one's end."""
        relayed.away = False
        onward, relayed.onward = relayed.onward, None
        call = relayed.exchange.call
        if relayed not in self._streams or (call is not None and call.cancelled):
            if onward is not None:
                onward.close(Outcome("cancelled"))
            self._cancelled(relayed)
            return
        if onward is None:
            assert relayed.fault is not None
            self._fail(relayed, relayed.fault, b"")
            return
        relayed.stream = onward
        relayed.active_s = self._now_s
        first, onward.first = onward.first, b""
        try:
            lines = first + onward.detach()
        except EngineFault as fault:
            fault.lines = first + fault.lines
            raise
        if not relayed.unsent:  # else reading goes on when the client has taken that
            self._poller.register(onward.sock, relayed)
        self._forward(relayed, lines)

    def _finish(self, relayed: _Relayed, lines: bytes = b"") -> None:
        """The stream is finished and nothing more of its engine is waited for: `lines`, then its good end."""
        try:
            self._forward(relayed, relayed.stream.finish(lines))
        except OSError:
            self._end(relayed, Outcome("cancelled"))  # the client's socket: it has left

    def _finish_late(self, relayed: _Relayed) -> None:
        """A finished stream's engine has had its time; what has come of it meanwhile is still passed on."""
        stream = relayed.stream
        lines = stream.pull() if relayed.paused else b""
        _, before = self._finished.pop(relayed)
        if stream.events.finished and before == _so_far(stream):
            lines = stream.finish(lines)
        self._forward(relayed, lines)  # else more has come, and it is limited anew when it is finished again

    def _limit(self, relayed: _Relayed) -> None:
        """The stream is finished: give its engine time to end it; for more choices, if not all have come that were
        asked for, as long as for the next event."""
        stream = relayed.stream
        so_far = _so_far(stream)
        limited = self._finished.get(relayed)
        if limited is None or limited[1] != so_far:
            limit_s = stream.grace_s if so_far == _COMPLETE else self._idle_timeout_s
            self._finished[relayed] = self._now_s + limit_s, so_far

    def _cancelled(self, relayed: _Relayed, lines: bytes = b"") -> None:
        """The client has left; or the gateway ends, and tells the client after `lines`."""
        if not relayed.exchange.cut:
            self._end(relayed, Outcome("cancelled"))
        elif relayed.ending:
            pass  # the client has yet to take the end, of whatever kind
        elif relayed.stream.events.complete and not relayed.away:
            relayed.exchange.keep_alive = False
            self._finish(relayed, lines)
        else:
            self._fail(relayed, EngineFault(Outcome("cancelled")), lines + relayed.stream.events.closing)

    def _fail(self, relayed: _Relayed, fault: EngineFault, rest: bytes) -> None:
        """`rest`, one error event, the end of the body."""
        exchange = relayed.exchange
        lines = rest + exchange.stream_failed(fault)
        data = exchange.frame(lines) + exchange.end_of_stream()
        exchange.client.before_last(exchange, exchange.keep_alive)
        relayed.ending = True
        relayed.outcome = fault.outcome
        if self._transmit(relayed, data):
            self._end(relayed, fault.outcome)

    def _transmit(self, relayed: _Relayed, data: bytes) -> bool:
        """Send what the client takes and keep the rest; True when nothing is left."""
        if relayed.unsent:
            self._add_unsent(relayed, data)
            return False
        try:
            sent = relayed.client.send_now(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._end(relayed, Outcome("cancelled"))
            return False
        if sent < len(data):
            self._buffer(relayed, data[sent:])
            return False
        return True

    def _end(self, relayed: _Relayed, outcome: Outcome) -> None:
        """The stream is over for its client: everything has been sent, or nobody is left to send to."""
        if relayed not in self._streams:
            return
        del self._streams[relayed]
        self._finished.pop(relayed, None)
        exchange = relayed.exchange
        exchange.on_cancel = None
        self._poller.unregister(relayed.stream.sock)
        if relayed.unsent:
            self._poller.unregister(exchange.client.fileno())
            relayed.unsent = b""  # nothing of it is sent by an event of the same round
        if outcome.kind == "cancelled" or not exchange.keep_alive:
            exchange.client.shut_writing()
        stream = relayed.stream
        if outcome.kind == "ok" and not (stream.drained or stream.finished):
            # The end of the body is due any moment; waiting for it here keeps the connection for the next request.
            self._lingering[stream] = self._clock() + DRAIN_S
            self._poller.register(stream.sock, stream)
            exchange.stream_ended(stream, outcome, keep_open=True)
        else:
            exchange.stream_ended(stream, outcome)
        exchange.client.stream_over()

    def _linger_step(self, stream: EngineStream) -> None:
        try:
            stream.pull()
        except Exception:  # also what nobody had foreseen: its answer is over, it has only to end well
            self._stop_lingering(stream)
            return
        if stream.drained:
            self._stop_lingering(stream)

    def _stop_lingering(self, stream: EngineStream) -> None:
        if self._lingering.pop(stream, None) is not None:
            self._poller.unregister(stream.sock)
            stream.give_back()

    def _sweep(self, now_s: float) -> None:
        """End what has been silent for too long, an engine or a client that takes nothing, and what is complete."""
        for relayed in [r for r in self._streams if now_s - r.active_s > self._idle_timeout_s and not r.away]:
            self._guarded(relayed, self._time_out)
        for relayed in [r for r, (until_s, _) in self._finished.items() if now_s >= until_s]:
            self._guarded(relayed, self._finish_late)
        for stream in [s for s, until_s in self._lingering.items() if now_s > until_s]:
            self._stop_lingering(stream)

    def _time_out(self, relayed: _Relayed) -> None:
        if relayed.unsent:
            self._end(relayed, Outcome("cancelled"))
        else:
            text = f"the engine sent nothing for {self._idle_timeout_s:g} s"
            self._broken(relayed, EngineFault(Outcome("timeout", text)))


def _so_far(stream: EngineStream) -> int:
    """What has come of a finished stream."""
    return _COMPLETE if stream.events.complete else stream.events.events
