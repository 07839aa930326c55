"""The loop that asks: one thread, non-blocking sockets, `selectors`.

Why no threads: with 32 connections each of them costs as much CPU (16 us a request, this loop 15), with 1000 three
times as much (56, this loop 19), since every answer then waits for its turn with the interpreter, which is time that
is measured as the server's. What waits, waits in one place: for sockets, and for the time at which the next request is
due. `epoll` counts in milliseconds, which would send every request of an open loop up to one too late; so where the
next one is near, `select` waits for epoll's own descriptor, to the microsecond. Between two answers it looks whether a
request has become due. Everything here is the loop's thread's; `interrupt` may be called from a signal handler.
"""

from __future__ import annotations

import select
import selectors
import socket
import time
from collections.abc import Iterator
from typing import Callable, NamedTuple, Optional

from gateway.tools.loadtest.connections import Connection, Endpoint
from gateway.tools.loadtest.durations import NS
from gateway.tools.loadtest.exchange import Exchange
from gateway.tools.loadtest.measures import Measures
from gateway.tools.loadtest.requests import Request
from gateway.tools.loadtest.schedule import Schedule

_TICK_NS = NS // 10  # between two looks for what is too late, and at whether somebody has interrupted
_PRECISE_NS = 50_000_000  # before a request is due, where a millisecond counts
_FD_SETSIZE = 1024


class Limits(NamedTuple):
    """How long and how much. `timeout_ns`: for an answer, and in an open loop for a connection to be free;
    `connect_ns`: for a connection to be there; `connections`: at most so many at once; `keepalive`: they are used
    again."""

    connections: int
    timeout_ns: int
    connect_ns: int
    keepalive: bool = True


class Loop:
    """One run. Implements `connections.Watcher`."""

    def __init__(
        self,
        endpoint: Endpoint,
        schedule: Schedule,
        requests: Iterator[Request],
        measures: Measures,
        limits: Limits,
        tick: Callable[[int], None] = lambda now_ns: None,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        """`tick` is called some ten times a second, with the time."""
        self._endpoint = endpoint
        self._schedule = schedule
        self._requests = requests
        self._measures = measures
        self._limits = limits
        self._tick = tick
        self._clock_ns = clock_ns
        self._start_ns = 0
        self._selector = selectors.DefaultSelector()
        self._idle: list[Connection] = []
        self._active: set[Connection] = set()
        self._waiting_for_connection = False
        self._next_tick_ns = 0
        self.interrupted = False
        epoll = getattr(selectors, "EpollSelector", None)
        self._coarse: Optional[int] = None  # epoll's descriptor
        if epoll is not None and isinstance(self._selector, epoll) and self._selector.fileno() < _FD_SETSIZE:
            self._coarse = self._selector.fileno()

    # --- what connections need ---------------------------------------------------------------------------------------

    def now_ns(self) -> int:
        return self._clock_ns() - self._start_ns

    def watch(self, sock: socket.socket, events: int, connection: Connection) -> None:
        try:
            self._selector.modify(sock, events, connection)
        except KeyError:
            self._selector.register(sock, events, connection)

    def unwatch(self, sock: socket.socket) -> None:
        try:
            self._selector.unregister(sock)
        except KeyError:
            pass

    def opened(self, took_ns: int) -> None:
        self._measures.connections += 1
        self._measures.connect.record(took_ns)

    def resent(self) -> None:
        self._measures.resent += 1

    def answered(self, connection: Connection, exchange: Exchange, now_ns: int, connected: bool) -> None:
        self._active.discard(connection)
        request = connection.request
        assert request is not None
        self._measures.ended(exchange, request.model, connection.due_ns, connection.sent_ns, now_ns)
        self._schedule.done(now_ns, connected)
        if connection.is_open:
            self._idle.append(connection)

    # --- the run -----------------------------------------------------------------------------------------------------

    def run(self, begin_ns: int) -> int:
        """Ask until all has been asked and answered, or `interrupt` is called; the time is `begin_ns` (0, or below it
        for a warm-up) when it begins. Returns the time at the end; what is then in flight has been abandoned."""
        self._start_ns = self._clock_ns() - begin_ns
        self._next_tick_ns = begin_ns
        schedule, measures, selector = self._schedule, self._measures, self._selector
        try:
            while True:
                now_ns = self.now_ns()
                next_ns = self._send_due(now_ns)
                if now_ns >= self._next_tick_ns:
                    self._look(now_ns)
                if self.interrupted or (not self._active and schedule.over(now_ns)):
                    break
                for key, events in self._wait(next_ns, now_ns):
                    key.data.ready(key.fileobj, events)
                    if next_ns is not None and self.now_ns() >= next_ns:
                        next_ns = self._send_due(self.now_ns())
            return self.now_ns()
        finally:
            measures.close(self.now_ns())
            for connection in (*self._active, *self._idle):
                connection.close()
            selector.close()

    def interrupt(self) -> None:
        """End soon."""
        self.interrupted = True

    def _wait(self, next_ns: Optional[int], now_ns: int) -> list[tuple[selectors.SelectorKey, int]]:
        until_ns = self._next_tick_ns if next_ns is None else min(next_ns, self._next_tick_ns)
        left_ns = until_ns - now_ns
        if left_ns <= 0:
            return self._selector.select(0)
        if self._coarse is not None and left_ns < _PRECISE_NS and next_ns is not None:
            select.select([self._coarse], [], [], left_ns / NS)
            return self._selector.select(0)
        return self._selector.select(left_ns / NS)

    def _send_due(self, now_ns: int) -> Optional[int]:
        """Send what is due; returns when the next is due, None: when something else has happened."""
        schedule = self._schedule
        while True:
            due_ns = schedule.due(now_ns)
            if due_ns is None:
                self._waiting_for_connection = False
                return schedule.next_ns() if not schedule.over(now_ns) else None
            connection = self._connection()
            if connection is None:
                self._waiting_for_connection = True
                return None
            schedule.take()
            self._active.add(connection)
            self._measures.began(due_ns, now_ns, self._waiting_for_connection)
            connection.begin(next(self._requests), due_ns, now_ns)
            now_ns = self.now_ns()

    def _connection(self) -> Optional[Connection]:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        if len(self._active) < self._limits.connections:
            return Connection(self._endpoint, self, self._limits.keepalive)
        return None

    def _look(self, now_ns: int) -> None:
        """End what is too late; tell the time to whoever shows it."""
        self._measures.ticked(now_ns - self._next_tick_ns)
        self._next_tick_ns = now_ns + _TICK_NS
        limits = self._limits
        for connection in list(self._active):
            late = now_ns - connection.sent_ns > limits.timeout_ns
            if late or connection.connecting_ns(now_ns) > limits.connect_ns:
                connection.give_up("timeout", now_ns)
        unsent = self._schedule.late(now_ns - limits.timeout_ns)
        if unsent:
            self._measures.not_sent(unsent)
        self._measures.tick(now_ns)
        self._tick(now_ns)
