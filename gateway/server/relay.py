"""Open streams: one selector-driven thread moves whole lines from engines' sockets to clients' sockets.

The thread owns everything about a stream from `take` to its end: the selector, every `_Relayed`, the clients' writing
sides. Other threads reach it through `_inbox` (a deque) and a socket pair that wakes it; there is no lock. It never
blocks on a client or an engine: what a client does not take at once waits in a bounded buffer, and while that is full
the engine is not read (back-pressure).

Measured: 60 us CPU per event with a blocked thread per stream, 20 with this (docs/PERFORMANCE.md).
"""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections import deque
from typing import Callable

from gateway.routing.retry import Outcome
from gateway.server.exchange import Exchange
from gateway.upstream.client import EngineFault
from gateway.upstream.stream import EngineStream

BUFFER_MAX_BYTES = 262144
SWEEP_S = 0.5
DRAIN_S = 1.0  # how long a finished stream's connection gets to end its body, to be kept


class _Relayed:
    """One stream under way. Used by the relay's thread only, but for `cancelled`."""

    __slots__ = (
        "active_s",
        "cancelled",
        "ending",
        "exchange",
        "outcome",
        "paused",
        "stream",
        "unsent",
    )

    def __init__(self, exchange: Exchange, stream: EngineStream, now_s: float) -> None:
        self.exchange = exchange
        self.stream = stream
        self.active_s = now_s
        self.unsent = b""
        self.paused = False  # the engine is not read until the client has taken what is buffered
        self.ending = False  # everything has been read; `unsent` is the rest
        self.outcome = Outcome("ok")
        self.cancelled = False


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
        self._selector = selectors.DefaultSelector()
        self._inbox: deque[tuple[str, _Relayed]] = deque()
        self._awake = False
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)
        self._selector.register(self._wake_receiver, selectors.EVENT_READ, None)
        self._streams: dict[_Relayed, None] = {}
        self._lingering: dict[EngineStream, float] = {}
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self._thread.start()

    def take(self, exchange: Exchange, stream: EngineStream) -> None:
        """Relay `stream` to the exchange's client from now on; both are concluded when it ends."""
        relayed = _Relayed(exchange, stream, self._clock())

        def cancel() -> None:
            relayed.cancelled = True
            self._send("cancel", relayed)

        exchange.on_cancel = cancel
        call = exchange.call
        if call is not None and call.cancelled:
            relayed.cancelled = True  # the client left between the first event and now
        self._send("take", relayed)

    def __len__(self) -> int:
        return len(self._streams)

    def close(self, timeout_s: float) -> None:
        """End every stream and the thread."""
        self._closing = True
        self._wake()
        self._thread.join(timeout_s)

    def _send(self, what: str, relayed: _Relayed) -> None:
        self._inbox.append((what, relayed))
        self._wake()

    def _wake(self) -> None:
        # The thread clears `_awake` before it looks into the inbox, so an item is seen or wakes it.
        if not self._awake:
            self._awake = True
            try:
                self._wake_sender.send(b"\0")
            except OSError:
                pass  # the pair's buffer is full: the thread has been woken often enough

    # --- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        sweep_s = self._clock() + SWEEP_S
        while not self._closing:
            for key, mask in self._selector.select(SWEEP_S):
                relayed = key.data
                if relayed is None:
                    self._receive_inbox()
                elif isinstance(relayed, _Relayed):
                    self._step(relayed, mask)
                else:
                    self._linger_step(relayed)
            now_s = self._clock()
            if now_s >= sweep_s:
                sweep_s = now_s + SWEEP_S
                self._sweep(now_s)
        for relayed in list(self._streams):
            self._end(relayed, Outcome("cancelled"))
        for stream in list(self._lingering):
            self._stop_lingering(stream)
        self._selector.close()
        self._wake_receiver.close()
        self._wake_sender.close()

    def _receive_inbox(self) -> None:
        try:
            self._wake_receiver.recv(4096)
        except BlockingIOError:
            pass
        self._awake = False
        while self._inbox:
            what, relayed = self._inbox.popleft()
            if what == "take":
                self._guarded(relayed, self._begin)
            elif relayed in self._streams:
                self._end(relayed, Outcome("cancelled"))

    def _guarded(self, relayed: _Relayed, step: Callable[[_Relayed], None]) -> None:
        """Run one step of one stream; whatever goes wrong ends that stream and no other."""
        try:
            step(relayed)
        except EngineFault as fault:
            self._broken(relayed, fault)
        except OSError:
            self._end(relayed, Outcome("cancelled"))  # the client's socket: it has left
        except Exception as error:
            self._on_error(error)
            self._end(relayed, Outcome("cancelled"))

    def _begin(self, relayed: _Relayed) -> None:
        self._streams[relayed] = None
        if relayed.cancelled:
            self._end(relayed, Outcome("cancelled"))
            return
        lines = relayed.stream.detach()
        self._selector.register(relayed.stream.sock, selectors.EVENT_READ, relayed)
        self._forward(relayed, lines)

    def _step(self, relayed: _Relayed, mask: int) -> None:
        if relayed not in self._streams:
            return  # ended by an earlier event of the same round
        if relayed.unsent:
            if mask & selectors.EVENT_WRITE:
                self._guarded(relayed, self._flush)
            return
        self._guarded(relayed, self._pull)

    def _pull(self, relayed: _Relayed) -> None:
        self._forward(relayed, relayed.stream.pull())

    def _forward(self, relayed: _Relayed, lines: bytes) -> None:
        """Send lines to the client, and the end behind them when the stream is done."""
        exchange = relayed.exchange
        data = exchange.frame(lines) if lines else b""
        if relayed.stream.done and not relayed.ending:
            relayed.ending = True
            data += exchange.end_of_stream()
            exchange.client.before_last(exchange, exchange.keep_alive)
        if data:
            relayed.active_s = self._clock()
            try:
                sent = exchange.client.send_now(data)
            except BlockingIOError:
                sent = 0
            if sent < len(data):
                self._buffer(relayed, data[sent:])
                return
        if relayed.ending:
            self._end(relayed, relayed.outcome)

    def _buffer(self, relayed: _Relayed, rest: bytes) -> None:
        """The client is slower than its engine: keep the rest, and read on only when it is gone."""
        relayed.unsent = rest
        if not relayed.paused:
            relayed.paused = True
            self._unregister(relayed.stream.sock)
        self._selector.register(relayed.exchange.client.fileno(), selectors.EVENT_WRITE, relayed)

    def _flush(self, relayed: _Relayed) -> None:
        try:
            sent = relayed.exchange.client.send_now(relayed.unsent)
        except BlockingIOError:
            return
        relayed.active_s = self._clock()
        relayed.unsent = relayed.unsent[sent:]
        if relayed.unsent:
            return
        self._unregister(relayed.exchange.client.fileno())
        if relayed.ending:
            self._end(relayed, relayed.outcome)
            return
        relayed.paused = False
        self._selector.register(relayed.stream.sock, selectors.EVENT_READ, relayed)

    def _broken(self, relayed: _Relayed, fault: EngineFault) -> None:
        """The engine failed mid-stream: one error event, and no `[DONE]`."""
        exchange = relayed.exchange
        data = exchange.frame(exchange.stream_failed(fault)) + exchange.end_of_stream()
        exchange.client.before_last(exchange, exchange.keep_alive)
        relayed.ending = True
        relayed.outcome = fault.outcome
        try:
            sent = exchange.client.send_now(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._end(relayed, Outcome("cancelled"))
            return
        if sent < len(data):
            self._buffer(relayed, data[sent:])
        else:
            self._end(relayed, fault.outcome)

    def _end(self, relayed: _Relayed, outcome: Outcome) -> None:
        """The stream is over for its client: everything has been sent, or nobody is left to send to."""
        if relayed not in self._streams:
            return
        del self._streams[relayed]
        exchange = relayed.exchange
        exchange.on_cancel = None
        self._unregister(relayed.stream.sock)
        if relayed.unsent:
            self._unregister(exchange.client.fileno())
        if outcome.kind == "cancelled" or not exchange.keep_alive:
            exchange.client.shut_writing()
        stream = relayed.stream
        if outcome.kind == "ok" and not stream.drained:
            # The end of the body is due any moment; waiting for it here keeps the connection for the next request.
            self._lingering[stream] = self._clock() + DRAIN_S
            self._selector.register(stream.sock, selectors.EVENT_READ, stream)
            exchange.stream_ended(stream, outcome, keep_open=True)
        else:
            exchange.stream_ended(stream, outcome)

    def _linger_step(self, stream: EngineStream) -> None:
        try:
            stream.pull()
        except (EngineFault, OSError):
            self._stop_lingering(stream)
            return
        if stream.drained:
            self._stop_lingering(stream)

    def _stop_lingering(self, stream: EngineStream) -> None:
        if self._lingering.pop(stream, None) is not None:
            self._unregister(stream.sock)
            stream.give_back()

    def _unregister(self, what: object) -> None:
        try:
            self._selector.unregister(what)  # type: ignore[arg-type]
        except (KeyError, ValueError):
            pass

    def _sweep(self, now_s: float) -> None:
        """End what has been silent for too long: an engine between events, or a client that takes nothing."""
        for relayed in [r for r in self._streams if now_s - r.active_s > self._idle_timeout_s]:
            if relayed.unsent:
                self._end(relayed, Outcome("cancelled"))
            else:
                text = f"the engine sent nothing for {self._idle_timeout_s:g} s"
                self._broken(relayed, EngineFault(Outcome("timeout", text)))
        for stream in [s for s, until_s in self._lingering.items() if now_s > until_s]:
            self._stop_lingering(stream)
