"""What came of the requests, kept in bounded memory: totals, by model, by engine, and by second.

Each answer is counted once, in the `Tally` of its model and engine for the second in which it ended; when that is
over, it is added to the totals and put away. There are at most POINTS seconds: one more, and every two become one of
twice the length. Labels come from the server, so of each kind only the first LABELS_MAX have a place of their own.
Written by the loop's thread alone; no I/O, no clock.
"""

from __future__ import annotations

from typing import NamedTuple, Optional

from gateway.tools.loadtest.durations import NS
from gateway.tools.loadtest.exchange import Exchange
from gateway.tools.loadtest.histogram import Histogram, Packed

POINTS = 600
LABELS_MAX = 50
OTHER = "(other)"
LATE_NS = 5_000_000  # later than this after it was due, with a connection at hand, is the generator's own doing
TIMES = ("response", "service", "corrected", "ttft", "tpot", "gap")


class Tally:
    """Counts and times of some answers. `response` is from when a request was due, `service` from when it was sent."""

    __slots__ = ("bytes", "errors", "failed", "ok", "prompt_tokens", "refused", "streams", "told", "tokens", *TIMES)

    def __init__(self) -> None:
        self.ok = self.failed = self.refused = 0
        self.streams = 0  # of `ok`
        self.told = 0  # of `ok`: those whose tokens the server has told
        self.tokens = self.prompt_tokens = self.bytes = 0
        self.errors: dict[str, int] = {}  # refusals too, by name
        self.response, self.service, self.corrected = Histogram(), Histogram(), Histogram()
        self.ttft, self.tpot, self.gap = Histogram(), Histogram(), Histogram()

    def add(self, other: Tally) -> None:
        """Count all that another has counted."""
        for name in ("ok", "failed", "refused", "streams", "told", "tokens", "prompt_tokens", "bytes"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for error, count in other.errors.items():
            count_label(self.errors, error, count)
        for name in TIMES:
            getattr(self, name).add(getattr(other, name))


def count_label(counts: dict[str, int], label: str, count: int = 1) -> None:
    """Count under a label; under OTHER when there are too many."""
    if label not in counts and len(counts) >= LABELS_MAX:
        label = OTHER
    counts[label] = counts.get(label, 0) + count


class Point(NamedTuple):
    """What happened in `width_s` seconds from `at_s` on (which is below 0 in the warm-up)."""

    at_s: int
    width_s: int
    sent: int
    ok: int
    failed: int
    refused: int
    tokens: int
    bytes: int
    in_flight: int  # at most
    latency: Packed
    ttft: Packed

    def and_next(self, other: Point) -> Point:
        """The two as one."""
        latency, ttft = self.latency.unpacked(), self.ttft.unpacked()
        latency.add(other.latency.unpacked())
        ttft.add(other.ttft.unpacked())
        return Point(
            at_s=self.at_s,
            width_s=other.at_s + other.width_s - self.at_s,
            sent=self.sent + other.sent,
            ok=self.ok + other.ok,
            failed=self.failed + other.failed,
            refused=self.refused + other.refused,
            tokens=self.tokens + other.tokens,
            bytes=self.bytes + other.bytes,
            in_flight=max(self.in_flight, other.in_flight),
            latency=latency.packed(),
            ttft=ttft.packed(),
        )


class Measures:
    """Everything that a run has measured. `open_loop`: what is late counts; `expected_ns`: the interval at which a
    closed loop's requests were meant to be sent, 0 for none."""

    def __init__(self, open_loop: bool, expected_ns: int = 0) -> None:
        self.open_loop = open_loop
        self._expected_ns = expected_ns
        self.total = Tally()
        self.models: dict[str, Tally] = {}
        self.engines: dict[str, Tally] = {}
        self.points: list[Point] = []
        self.lag, self.connect = Histogram(), Histogram()
        self.tick_lag = Histogram()  # how much later than they should the loop's own looks at the time came
        self.connections = 0  # opened
        self.resent = self.late = self.waited = self.unsent = self.abandoned = 0
        self.sent = self.warmup_sent = self.warmup_failed = 0
        self.window = Tally()  # what has ended within the time that counts, whenever it began: only its counts
        self.end_ns: Optional[int] = None  # of that time; None: it goes on
        self.in_flight = 0
        self._warming = 0  # of these, those that do not count
        self._width_s = 1
        self._second: Optional[int] = None
        self._current: dict[tuple[str, str], Tally] = {}
        self._sent_now = self._peak = 0
        self.last: Optional[Point] = None

    def began(self, due_ns: int, sent_ns: int, waited: bool) -> None:
        """A request is being sent, at `sent_ns` from the start of what counts. `waited`: no connection was free for
        it."""
        self.tick(sent_ns)
        self._sent_now += 1
        self.in_flight += 1
        self._peak = max(self._peak, self.in_flight)
        if due_ns < 0:
            self.warmup_sent += 1
            self._warming += 1
            return
        self.sent += 1
        self.waited += waited
        if self.open_loop and not waited:
            lag_ns = sent_ns - due_ns
            self.lag.record(lag_ns)
            if lag_ns > LATE_NS:
                self.late += 1

    def ended(self, exchange: Exchange, model: str, due_ns: int, sent_ns: int, now_ns: int) -> None:
        """An answer, or what there is instead of it, is complete."""
        self.tick(now_ns)
        self.in_flight -= 1
        within = now_ns >= 0 and (self.end_ns is None or now_ns <= self.end_ns)
        failure = exchange.failure
        if within:
            self._count(self.window, exchange)
        if due_ns < 0:
            self._warming -= 1
            self.warmup_failed += failure is not None
            return
        tally = self._tally(model, exchange.engine)
        self._count(tally, exchange)
        if failure is not None:
            count_label(tally.errors, failure)
            return
        service_ns = now_ns - sent_ns
        tally.service.record(service_ns)
        if self.open_loop:
            tally.response.record(now_ns - due_ns)
        elif self._expected_ns:
            tally.corrected.record_expected(service_ns, self._expected_ns)
        if exchange.first_ns:
            self._stream(tally, exchange, due_ns if self.open_loop else sent_ns)

    @staticmethod
    def _count(tally: Tally, exchange: Exchange) -> None:
        tally.bytes += exchange.body_bytes
        if exchange.failure is None:
            tally.ok += 1
            tally.tokens += exchange.tokens
            tally.prompt_tokens += exchange.prompt_tokens or 0
            tally.told += exchange.completion_tokens is not None
            tally.streams += exchange.events is not None
        elif exchange.refused:
            tally.refused += 1
        else:
            tally.failed += 1

    @staticmethod
    def _stream(tally: Tally, exchange: Exchange, from_ns: int) -> None:
        tally.ttft.record(exchange.first_ns - from_ns)
        if exchange.tokens > 1:
            tally.tpot.record((exchange.last_ns - exchange.first_ns) // (exchange.tokens - 1))
        if exchange.longest_gap_ns:
            tally.gap.record(exchange.longest_gap_ns)

    def not_sent(self, count: int) -> None:
        """So many requests were due and given up, as they had waited for a connection for too long."""
        self.unsent += count
        tally = self._tally("", b"")
        tally.failed += count
        count_label(tally.errors, "not sent: no connection was free in time", count)

    def ticked(self, late_ns: int) -> None:
        """The loop looks at the time, so much later than it should."""
        self.tick_lag.record(max(0, late_ns))

    def close(self, now_ns: int) -> None:
        """The run is over: what is in flight is abandoned, and all is added up."""
        self.tick(now_ns)
        self.abandoned, self.in_flight = self.in_flight - self._warming, 0
        self._put_away()

    def _tally(self, model: str, engine: bytes) -> Tally:
        name = engine.decode("latin-1")[:100]
        key = (model, name)
        tally = self._current.get(key)
        if tally is None:
            if len(self._current) >= LABELS_MAX:
                key = (model, OTHER)
            tally = self._current.setdefault(key, Tally())
        return tally

    def tick(self, now_ns: int) -> None:
        """Time passes, whether or not anything happens."""
        second = now_ns // NS
        if second != self._second:
            if self._second is not None:
                self._put_away()
            self._second = second

    def _put_away(self) -> None:
        """The second is over."""
        all_of_it = Tally()
        for (model, engine), tally in self._current.items():
            all_of_it.add(tally)
            for label, tallies in ((model, self.models), (engine, self.engines)):
                if label:
                    known = label in tallies or len(tallies) < LABELS_MAX
                    tallies.setdefault(label if known else OTHER, Tally()).add(tally)
        self._current = {}
        self.total.add(all_of_it)
        if self._second is None:
            return
        counts = (all_of_it.ok, all_of_it.failed, all_of_it.refused, all_of_it.tokens, all_of_it.bytes)
        latency = all_of_it.response if self.open_loop else all_of_it.service
        point = Point(self._second, 1, self._sent_now, *counts, self._peak, latency.packed(), all_of_it.ttft.packed())
        self._sent_now, self._peak = 0, self.in_flight
        self.last = point
        self._append(point)

    def _append(self, point: Point) -> None:
        self._join(point)
        if len(self.points) > POINTS:
            self._width_s *= 2
            points, self.points = self.points, []
            for one in points:
                self._join(one)

    def _join(self, point: Point) -> None:
        points = self.points
        if points and points[-1].at_s // self._width_s == point.at_s // self._width_s:
            points[-1] = points[-1].and_next(point)
        else:
            points.append(point)
