"""What the console is told of: a point a second for a quarter of an hour, each engine's last minute, the last requests.

`LiveSeries` is an observer of finished requests; `roll` ends the second that runs. Its lock guards that second and the
engines' sums; it is held to add a batch up, and by `roll` for the exchange of them, never for anything that is made of
them. What `roll` makes (points, lines, requests) belongs to the one thread that calls it, which is also the only one to
read them.

A second is one of the monotonic clock: points have no time of their own, so a wall clock that is set moves none of
them. Nothing here knows a text of a prompt or an answer, a key, a key's name or a client's address.
"""

from __future__ import annotations

import math
import random
import threading
from array import array
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Callable, Optional, Union

from gateway.telemetry.events import RequestEvent
from gateway.telemetry.liveothers import Spread, Told, percentiles_s, spread_of

POINTS = 900
"""Seconds that are kept."""
COLUMNS = (
    *("requests", "errors", "p50_ms", "p95_ms", "p99_ms", "ttft_p50_ms", "ttft_p95_ms"),
    *("prompt_tokens", "completion_tokens", "in_flight", "queue", "workers_busy"),
    *("cache_hits", "cache_misses", "cost_usd"),
)
"""Of a point, behind its time. NaN: nothing was measured in that second."""
SPARK_POINTS = 60
REQUESTS = 200
"""The last of them that are kept."""
SAMPLES_MAX = 4096
"""Latencies of one second that percentiles are exact for; of more, so many at random stand for all (Vitter's R)."""
PATH_CHARS = 200
"""Of a path that somebody has made up."""
FAILED_MAX = 4096
"""Engines whose last failure's time is known: more than there are, but for those that come and go."""
KEPT_EXTRA = ("cache", "cost_usd", "part_of")
NOTHING = math.nan

Key = tuple[str, str]
"""A model and an engine's id."""
Gauges = tuple[int, int, int]
"""Requests in flight, requests that wait for a worker, workers that work."""


Request = Union[RequestEvent, str]
"""One that is kept; of another process, as the feed has it."""


class _Samples:
    """Durations of one second, in seconds."""

    __slots__ = ("seen", "values")

    def __init__(self) -> None:
        self.values: list[float] = []
        self.seen = 0

    def add(self, value: float, chance: Callable[[], float]) -> None:
        self.seen += 1
        if self.seen <= SAMPLES_MAX:
            self.values.append(value)
            return
        place = int(chance() * self.seen)
        if place < SAMPLES_MAX:
            self.values[place] = value


class _Second:
    """What has ended in one second."""

    __slots__ = (
        "cost_usd",
        "errors",
        "hits",
        "latencies",
        "misses",
        "recent",
        "requests",
        "shown",
        "tokens_in",
        "tokens_out",
        "ttfts",
    )

    def __init__(self) -> None:
        self.requests = self.errors = self.shown = 0
        self.tokens_in = self.tokens_out = self.hits = self.misses = 0
        self.cost_usd = 0.0
        self.latencies = _Samples()
        self.ttfts = _Samples()
        self.recent: deque[RequestEvent] = deque(maxlen=REQUESTS)

    def counts(self) -> tuple[float, ...]:
        """As `Told.counts` has them."""
        tokens = (self.tokens_in, self.tokens_out)
        return (self.requests, self.errors, *tokens, self.hits, self.misses, self.cost_usd)


class _Spark:
    """One engine's last minute: a ring of means, and the sum of the second that runs."""

    __slots__ = ("count", "idle_s", "ring", "sum_s")

    def __init__(self) -> None:
        self.ring = array("f", [NOTHING]) * SPARK_POINTS
        self.sum_s = 0.0
        self.count = 0
        self.idle_s = 0


class LiveSeries:
    """Counts finished requests by the second.

    `asked` are the paths of inference, `is_own` says of another path whether it is one of the gateway's own (the
    console's, a probe's, an administrator's): those are neither counted nor kept; a path that does not exist is.
    `observe` and `failed` are thread-safe; all else is for the thread that calls `roll`.
    """

    def __init__(
        self,
        asked: Collection[str],
        is_own: Callable[[str], bool],
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._asked = frozenset(asked)
        self._is_own = is_own
        self._chance = chance
        self._lock = threading.Lock()
        self._second = _Second()
        self._sparks: dict[Key, _Spark] = {}
        self._failed: dict[Key, float] = {}
        self.number = 0
        """Seconds that are over."""
        self.points: deque[array[float]] = deque(maxlen=POINTS)
        self.requests: deque[Request] = deque(maxlen=REQUESTS)
        self.shares = False
        """Whether there are other processes, which are told of seconds; set before the first."""
        self._ended: tuple[_Second, list[tuple[str, str, int, float]]] = (self._second, [])
        self.fresh = 0
        """Of these, so many (the last) have ended in the last second."""
        self.skipped = 0
        """Requests of the last second that are not among them."""

    def observe(self, events: Sequence[RequestEvent]) -> None:
        """Add a batch to the second that runs. Raises what the first one raised that cannot be added, when all others
        have been."""
        failed: Optional[Exception] = None
        with self._lock:
            for event in events:
                try:
                    self._add_locked(event)
                except Exception as error:
                    failed = failed or error
        if failed is not None:
            raise failed

    def _add_locked(self, event: RequestEvent) -> None:
        """Add one, if it counts. What raises, for it is not what an event is, may have been added in part."""
        path, extra, second = event.path, event.extra, self._second
        # OPTIONS: a browser asks whether it may ask.
        if event.method == "OPTIONS" or (path not in self._asked and self._is_own(path)):
            return
        second.tokens_in += event.prompt_tokens or 0
        second.tokens_out += event.completion_tokens or 0
        if extra is None or "part_of" not in extra:  # a part is no request
            second.requests += 1
            second.errors += event.error is not None
            second.latencies.add(event.latency_s, self._chance)
            if event.ttft_s is not None:
                second.ttfts.add(event.ttft_s, self._chance)
        if extra is not None:
            self._add_extra_locked(second, extra)
        for record in event.attempt_records:
            key = record[:2]
            spark = self._sparks.get(key)
            if spark is None:
                spark = self._sparks[key] = _Spark()
            spark.sum_s += record.duration_s
            spark.count += 1
            if record.outcome != "ok":
                self._fail_locked(key, event.finished_unix_s)
        second.shown += 1
        second.recent.append(event)

    def _add_extra_locked(self, second: _Second, extra: Mapping[str, object]) -> None:
        cache = extra.get("cache")
        if cache == "miss":
            second.misses += 1
        elif cache in ("hit", "near"):
            second.hits += 1
        cost_usd = extra.get("cost_usd")
        if isinstance(cost_usd, float) and math.isfinite(cost_usd):
            second.cost_usd += cost_usd

    def failed(self, model: str, engine: str, unix_s: float) -> None:
        """An engine has gone out, by whatever has shown that."""
        with self._lock:
            self._fail_locked((model, engine), unix_s)

    def _fail_locked(self, key: Key, unix_s: float) -> None:
        if key not in self._failed and len(self._failed) >= FAILED_MAX:
            del self._failed[next(iter(self._failed))]
        self._failed[key] = unix_s

    def failed_at(self, key: Key) -> Optional[float]:
        """When an attempt at an engine failed last, or it went out (Unix seconds)."""
        return self._failed.get(key)  # one atomic operation

    # --- the end of a second ---------------------------------------------------------------------------------------

    def roll(self, gauges: Gauges, missed: int = 0, others: Sequence[Told] = ()) -> None:
        """End the second that runs. `missed`: so many before it have passed without anybody's ending them; what has
        ended in them counts in this one, and they have points without anything. `others`: what other processes have
        told, which counts in it, too."""
        fresh = _Second()
        with self._lock:
            second, self._second = self._second, fresh
            if self.shares:
                self._ended = second, [(*key, spark.count, spark.sum_s) for key, spark in self._sparks.items()]
            for told in others:
                self._add_sparks_locked(told)
            for _ in range(min(missed, SPARK_POINTS)):
                self._turn_sparks_locked(False)
            self._turn_sparks_locked(True)
        for _ in range(min(missed, POINTS)):
            self.points.append(array("d", [0, 0, *[NOTHING] * 5, 0, 0, *[NOTHING] * 3, 0, 0, 0]))
        self.number += missed + 1
        self.points.append(_point(second, gauges, others))
        self.fresh = len(second.recent)
        self.skipped = second.shown - self.fresh
        if not others:
            self.requests.extend(_kept(event) for event in second.recent)
            return
        shown: list[tuple[float, Request]] = [(event.finished_unix_s, _kept(event)) for event in second.recent]
        shown += [request for told in others for request in told.requests]
        self.fresh = len(shown)
        self.skipped += sum(told.skipped for told in others)
        self.requests.extend(request for _, request in sorted(shown, key=_when))

    def _add_sparks_locked(self, told: Told) -> None:
        for model, engine, count, sum_s in told.sparks:
            spark = self._sparks.get((model, engine))
            if spark is None:
                spark = self._sparks[model, engine] = _Spark()
            spark.sum_s += sum_s
            spark.count += count

    def told(self, sender: str, gauges: Gauges, most: int, text: Callable[[Request], str], **more: Any) -> Told:
        """What others are to know of the second that was ended last, without theirs; of its requests so many at most,
        as `text` has them. `more`: the other fields. Where it `shares`."""
        second, sparks = self._ended
        requests = [(e.finished_unix_s, text(_kept(e))) for e in list(second.recent)[-most:]]
        latencies, ttfts = (spread_of(sorted(one.values), one.seen) for one in (second.latencies, second.ttfts))
        marks = [spark for spark in sparks if spark[2]]
        return Told(
            sender, second.counts(), gauges, latencies, ttfts, marks, requests, second.shown - len(requests), **more
        )

    def _turn_sparks_locked(self, ends: bool) -> None:
        """One second more: of each engine, what has ended in it, or (not `ends`) nothing."""
        gone = []
        for key, spark in self._sparks.items():
            del spark.ring[0]
            if ends and spark.count:
                spark.ring.append(spark.sum_s / spark.count * 1e3)
                spark.sum_s, spark.count, spark.idle_s = 0.0, 0, 0
                continue
            spark.ring.append(NOTHING)
            spark.idle_s += 1
            if spark.idle_s >= SPARK_POINTS and not spark.count:
                gone.append(key)
        for key in gone:
            del self._sparks[key]

    def sparks(self) -> dict[Key, array[float]]:
        """Each engine's last minute, of those that have one: a mean in milliseconds for each second, NaN for none."""
        with self._lock:
            return {key: spark.ring[:] for key, spark in self._sparks.items()}

    def last_sparks(self) -> dict[Key, float]:
        """The means of the last second, of those that have one."""
        with self._lock:
            return {key: spark.ring[-1] for key, spark in self._sparks.items() if not math.isnan(spark.ring[-1])}


def _when(request: tuple[float, Request]) -> float:
    return request[0]


def _point(second: _Second, gauges: Gauges, others: Sequence[Told]) -> array[float]:
    latencies, ttfts = sorted(second.latencies.values), sorted(second.ttfts.values)
    counts: Sequence[float] = second.counts()
    if others:
        counts = [sum(values) for values in zip(counts, *(told.counts for told in others))]
        spread = Spread(second.latencies.seen, latencies)
        shown = _shown_ms([spread, *(told.latencies for told in others)], (0.5, 0.95, 0.99))
        spread = Spread(second.ttfts.seen, ttfts)
        shown += _shown_ms([spread, *(told.ttfts for told in others)], (0.5, 0.95))
    else:
        shown = [percentile_ms(latencies, share) for share in (0.5, 0.95, 0.99)]
        shown += [percentile_ms(ttfts, share) for share in (0.5, 0.95)]
    requests, errors, tokens_in, tokens_out, hits, misses, cost_usd = counts
    return array("d", (requests, errors, *shown, tokens_in, tokens_out, *gauges, hits, misses, cost_usd))


def _shown_ms(spreads: Sequence[Spread], shares: Sequence[float]) -> list[float]:
    return [NOTHING if value is None else value * 1e3 for value in percentiles_s(spreads, shares)]


def percentile_ms(ordered_s: Sequence[float], share: float) -> float:
    """The least of these durations that `share` of them do not exceed (nearest rank), in milliseconds; NaN: none."""
    if not ordered_s:
        return NOTHING
    return ordered_s[max(0, math.ceil(share * len(ordered_s) - 1e-9) - 1)] * 1e3


def _kept(event: RequestEvent) -> RequestEvent:
    """A request as it is kept: without bodies (LOG_BODIES), with a path of bounded length, without who has asked."""
    extra = event.extra
    if extra is not None:
        extra = {name: extra[name] for name in KEPT_EXTRA if name in extra} or None
    # Not by `_replace`, which takes twice as long: there are as many as requests, up to REQUESTS a second.
    head, path, middle, records, last = event[:3], event.path[:PATH_CHARS], event[4:18], event[20], event[23:]
    return RequestEvent._make((*head, path, *middle, None, "", records, (), extra, *last))
