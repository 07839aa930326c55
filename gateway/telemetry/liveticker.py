"""The thread that ends the console's seconds, and hands what they were to who watches.

`LiveTicker` owns the thread `live`, and with it all of the series but what `observe` adds to, and the view. Its seconds
are the monotonic clock's. Who watches is kept by `Watchers`, which takes bytes and never makes it wait. While nobody
watches, a second costs its point (30 us) and no text.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Callable, Optional, Protocol

from gateway.clock import JumpWatch, unix_s
from gateway.telemetry.events import RequestEvent
from gateway.telemetry.live import Gauges, LiveSeries
from gateway.telemetry.liveothers import Others, Told
from gateway.telemetry.liveview import TOLD_MAX, EngineView, LiveView, Sources, request_text

INTERVAL_S = 1.0
PAUSE_S = 0.0002
"""In a history that is made: the interpreter's lock is for requests meanwhile."""


class Watchers(Protocol):
    """Who watches. All of it is thread-safe and returns at once."""

    @property
    def any(self) -> bool:
        """Whether somebody does."""

    def take_wish(self) -> bool:
        """Whether somebody has asked for a history since this was asked last."""

    def publish(self, tick: bytes, history: bytes, anew: bool) -> None:
        """Give the history to those who have asked for one, the tick to all others. b"": there is none.

        `anew`: everybody needs a history, whatever they have asked for.
        """


class LiveTicker:
    """Ends seconds from `start` to `close`. `observe`, `failed` and `wake` are thread-safe.

    `gauges` says how busy the gateway is. `on_error` hears of what nobody had foreseen. `clock` gives monotonic
    seconds, `wall` Unix ones.
    """

    watchers: Optional[Watchers] = None
    """Set before `start`, as is `on_error`."""
    others: Optional[Others] = None
    """What other processes tell of their seconds; None: there are none. Set before `start`."""

    def __init__(
        self,
        series: LiveSeries,
        sources: Sources,
        gauges: Callable[[], Gauges],
        on_error: Callable[[BaseException], object],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = unix_s,
        pause: Callable[[], None] = lambda: time.sleep(PAUSE_S),
    ) -> None:
        self.series = series
        self._sources = sources
        self._view = LiveView(series, sources._replace(engines=self._engines), pause)
        self._name = uuid.uuid4().hex  # to other processes
        self._idle = False
        self.share: Callable[[Told], None] = lambda told: None
        """Tells other processes of this one's seconds. Set before `start`."""
        self._gauges = gauges
        self._on_error = on_error
        self._clock = clock
        self._wall = wall
        self._jumps = JumpWatch(wall, clock)
        self._next_s = clock() + INTERVAL_S
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="live", daemon=True)

    def observe(self, events: Sequence[RequestEvent]) -> None:
        """Add a batch of finished requests."""
        self.series.observe(events)

    def failed(self, model: str, engine: str) -> None:
        """An engine has gone out."""
        self.series.failed(model, engine, self._wall())

    def start(self) -> None:
        """Start the thread."""
        self._next_s = self._clock() + INTERVAL_S
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """End the thread, which waits for nothing."""
        self._closing = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def wake(self) -> None:
        """Somebody has asked for a history."""
        self._wake.set()

    def tick(self) -> None:
        """End the second, and those that should have ended before; tell who watches. For the thread, or a test."""
        now_s = self._clock()
        missed = max(0, int((now_s - self._next_s) // INTERVAL_S))
        self._next_s += INTERVAL_S * (missed + 1)
        if self.others is None:
            self.series.roll(self._gauges(), missed)
        else:
            self._roll_with(self.others, missed)
        jumped = self._jumps.look() != 0.0
        watchers, now_unix_s = self.watchers, self._wall()
        if watchers is None or not watchers.any:
            self._view.rest()
        elif missed or jumped:
            watchers.take_wish()
            self._view.start_anew(now_unix_s)
            watchers.publish(b"", self._view.history(now_unix_s), True)
        else:
            tick = self._view.tick(now_unix_s)
            history = self._view.history(now_unix_s) if watchers.take_wish() else b""
            watchers.publish(tick, history, False)

    def _roll_with(self, others: Others, missed: int) -> None:
        """End the second together with those that others have told of, and tell them of this one."""
        own, watchers = self._gauges(), self.watchers
        in_flight, queue, busy = (mine + theirs for mine, theirs in zip(own, others.gauges()))
        self.series.roll((in_flight, queue, busy), missed, others.take())
        engines = self._sources.engines() if others.watched() else ()
        told = self.series.told(
            self._name,
            own,
            TOLD_MAX,
            request_text,
            watched=watchers is not None and watchers.any,
            in_flight=[(one.model, one.engine, one.in_flight) for one in engines if one.in_flight],
        )
        if not (told.idle and self._idle):  # once that there is nothing, and no more
            self.share(told)
        self._idle = told.idle

    def _engines(self) -> Iterable[EngineView]:
        if self.others is None:
            return self._sources.engines()
        elsewhere = self.others.in_flight()
        return (
            one._replace(in_flight=one.in_flight + elsewhere.get((one.model, one.engine), 0))
            for one in self._sources.engines()
        )

    def serve(self) -> None:
        """Give a history to who has asked for one. For the thread, or a test."""
        watchers = self.watchers
        if watchers is not None and watchers.take_wish():
            watchers.publish(b"", self._view.history(self._wall()), False)

    def _run(self) -> None:
        while not self._closing:
            woken = self._wake.wait(max(0.0, self._next_s - self._clock()))
            self._wake.clear()  # before the look at `_closing`, and at who has asked
            try:
                if self._clock() >= self._next_s:
                    self.tick()
                elif woken:
                    self.serve()
            except Exception as error:
                self._on_error(error)
