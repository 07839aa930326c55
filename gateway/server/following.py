"""One of several clients of an open stream: what it has not taken yet, and how its answer ends.

A `Follower` owns the writing side of its client from the moment it has joined to the end. For the relay's thread only.
What all of them have in common is kept by `sharing.py`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import Optional, Protocol, Union

from gateway.errors import GatewayError
from gateway.routing.retry import Outcome
from gateway.server.exchange import Exchange
from gateway.server.flow import Failure
from gateway.server.loop import Loop
from gateway.upstream.attempt import EngineFault

BACKLOG_MAX_BYTES = 1_048_576  # that a follower may be behind those who keep up
SENT_AT_ONCE = 65_536


class Others(Protocol):
    """All clients of a stream, as one of them sees them."""

    loop: Loop

    def on_error(self, error: BaseException, /) -> None:
        """Hear of what nobody had foreseen."""

    def caught_up(self) -> None:
        """Somebody waits for more."""

    def ended(self, follower: Follower, complete: bool) -> None:
        """A follower is over."""


class Follower:
    """One client of a shared stream. `leads`: it has begun it."""

    __slots__ = (
        "_begun",
        "_crowd",
        "_ending",
        "_limit_bytes",
        "_unsent",
        "_watching",
        "active_s",
        "behind_bytes",
        "exchange",
        "leads",
        "over",
    )

    def __init__(self, crowd: Others, exchange: Exchange, leads: bool) -> None:
        self._crowd = crowd
        self.exchange = exchange
        self.leads = leads
        self.over = False
        self.behind_bytes = 0
        self.active_s = crowd.loop.began_s
        self._unsent: deque[Union[bytes, memoryview]] = deque()
        self._begun = False
        self._watching = False
        self._ending = False
        self._limit_bytes = BACKLOG_MAX_BYTES

    def begin(self, head: bytes, chunks: Iterable[bytes]) -> None:
        """Send the head, and what has come so far, which is not copied."""
        self._begun = True
        self._unsent.extend((head, *chunks))
        self.behind_bytes = sum(map(len, self._unsent))
        self._limit_bytes += self.behind_bytes
        self._flush()
        if self._unsent and not self.over:
            self._wait_to_send()

    def tell(self, chunk: bytes, lines: bytes) -> None:
        """More has come: `lines`, or as the chunk that most clients get. Raises nothing."""
        if self.over or self._ending:
            return
        exchange = self.exchange
        try:
            data = chunk if exchange.takes_chunks else exchange.carry(lines)
        except Exception as error:
            self._crowd.on_error(error)
            self.gone()
            return
        self.push(data)

    def push(self, data: Union[bytes, memoryview]) -> None:
        """Send what the client takes now; the rest when it does. Raises nothing."""
        if self.over or self._ending or not data:
            return
        if self._unsent:
            self._unsent.append(data)
            self.behind_bytes += len(data)
            return
        client = self.exchange.client
        try:
            sent = client.send_now(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.gone()
            return
        if sent < len(data):
            rest = memoryview(data)[sent:]
            self._unsent.append(rest)
            self.behind_bytes = len(rest)
            self._wait_to_send()

    def _wait_to_send(self) -> None:
        client = self.exchange.client
        self.active_s = self._crowd.loop.began_s
        client.set_deadline(math.inf)
        self._watching = True
        self._crowd.loop.watch(client.fileno(), self._ready, writing=True)

    def _stop_watching(self) -> None:
        if self._watching:
            self._watching = False
            self._crowd.loop.unwatch(self.exchange.client.fileno())

    @property
    def is_far_behind(self) -> bool:
        """Whether it holds more than it may, while others keep up."""
        return self.behind_bytes > self._limit_bytes and not self._ending

    def _ready(self, events: int) -> None:
        if self.over:
            return
        self._flush()
        if self.over or self._unsent:
            return
        self._stop_watching()
        if self._ending:
            self._end(True)
        else:
            self._crowd.caught_up()

    def _flush(self) -> None:
        """Send what the client takes of what it has not taken. Raises nothing."""
        unsent, client = self._unsent, self.exchange.client
        try:
            while unsent:
                data = unsent.popleft() if len(unsent) == 1 else self._some()
                try:
                    sent = client.send_now(data)
                except BlockingIOError:
                    sent = 0
                if sent:
                    self.active_s = self._crowd.loop.began_s
                    self.behind_bytes -= sent
                if sent < len(data):
                    unsent.appendleft(memoryview(data)[sent:])
                    return
        except OSError:
            self.gone()
        except Exception as error:
            self._crowd.on_error(error)
            self.gone()

    def _some(self) -> bytes:
        """Some of what has not been taken, as one."""
        parts: list[Union[bytes, memoryview]] = []
        size = 0
        while self._unsent and size < SENT_AT_ONCE:
            parts.append(self._unsent.popleft())
            size += len(parts[-1])
        return b"".join(parts)

    # --- ending ----------------------------------------------------------------------------------------------------

    def finish(self, fault: Optional[Failure]) -> None:
        """The stream is over: its good end, or the event that says why not."""
        if self.over or self._ending:
            return
        exchange = self.exchange
        try:
            lines = b"" if fault is None else exchange.stream_failed(fault)
            data = exchange.frame(lines) + exchange.end_of_stream()
            exchange.client.before_last(exchange, exchange.keep_alive)
        except Exception as error:
            self._crowd.on_error(error)
            exchange.keep_alive = False
            self.gone()
            return
        self._send_last(data)

    def cut_off(self) -> None:
        """It has not kept up: what has not been begun to be sent is dropped, and it is told so."""
        exchange = self.exchange
        begun = self._unsent[0]
        self._unsent.clear()
        self._unsent.append(begun)
        self.behind_bytes = len(begun)
        exchange.keep_alive = False
        lines = exchange.stream_refused(GatewayError("overloaded", "the client has not kept up with the stream"))
        data = exchange.frame(lines) + exchange.end_of_stream()
        if not self.leads:
            exchange.client.before_last(exchange, False)
        self._send_last(data)

    def _send_last(self, data: bytes) -> None:
        self.push(data)
        self._ending = True  # nothing more behind that
        if not self._unsent:
            self._end(True)

    def cancel(self) -> None:
        """The client has left; or the gateway ends, and tells it."""
        if not self._begun:
            return  # it is seen then
        if self.exchange.cut and not self._ending:
            self.finish(EngineFault(Outcome("cancelled")))
        elif not self.exchange.cut:
            self.gone()

    def gone(self) -> None:
        """Nobody is left to send to."""
        self.exchange.keep_alive = False
        self._end(False)

    def _end(self, complete: bool) -> None:
        if self.over:
            return
        self.over = True
        exchange = self.exchange
        exchange.on_cancel = None
        self._stop_watching()
        self._unsent.clear()
        self.behind_bytes = 0
        if not complete or not exchange.keep_alive:
            exchange.client.shut_writing()
        self._crowd.ended(self, complete)
