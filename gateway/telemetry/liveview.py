"""The console's feed as text: the history for who begins to watch, and what each second changes.

`LiveView` owns what has been said of engines, alerts and objectives, and texts of points, so that a tick tells only
what is new and a history is put together rather than made. It is for the thread that ends the series' seconds alone:
there is no lock. Nothing is made or kept while nobody watches. What the events hold is described by the schemas
`LiveHistory` and `LiveTick`.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Callable, NamedTuple, Optional

from gateway.telemetry.events import AttemptRecord, RequestEvent
from gateway.telemetry.live import COLUMNS, POINTS, Key, LiveSeries, Request

TOLD_MAX = 20
"""Requests that a tick tells of, the newest of its second."""
PARTS_MAX = 32
"""Attempts, and marks, that are told of one request."""
SLOS_EVERY = 10
"""Ticks from one telling of objectives to the next."""
AT_ONCE = 32
"""Parts of a history that are made before others have their turn."""
METHOD_CHARS = 16
_WHOLE = frozenset(
    (
        *("requests", "errors", "prompt_tokens", "completion_tokens"),
        *("in_flight", "queue", "workers_busy", "cache_hits", "cache_misses"),
    )
)
_FORMATS = tuple("%.0f" if name in _WHOLE else "%.9g" if name == "cost_usd" else "%.6g" for name in COLUMNS)

Json = dict[str, Any]


class EngineView(NamedTuple):
    """One engine, as the feed tells of it."""

    model: str
    engine: str
    url: str
    state: str
    available: bool
    breaker: str
    in_flight: int
    max_concurrency: Optional[int]
    weight: float
    last_error: Optional[str]
    region: Optional[str] = None


class Sources(NamedTuple):
    """What is told beside the series; each is called on the view's thread, and must not wait."""

    about: Callable[[], Json]
    """What does not change: version, started, slow_ms, slo."""
    engines: Callable[[], Iterable[EngineView]]
    alerts: Callable[[], Sequence[Mapping[str, Any]]]
    slos: Callable[[], Sequence[Mapping[str, Any]]]


class LiveView:
    """Makes the feed's events. `pause` is called now and then in what takes long: others have their turn."""

    def __init__(self, series: LiveSeries, sources: Sources, pause: Callable[[], None]) -> None:
        self._series = series
        self._sources = sources
        self._pause = pause
        self._watched = False
        self._now_unix_s = 0.0  # of the last tick
        self._points: dict[int, str] = {}  # by the number of their second; as far as they have been asked for
        self._said: dict[Key, tuple[EngineView, Optional[float], str]] = {}  # with the last error's time, and as text
        self._alerts = self._slos = "[]"
        self._slos_at = 0
        self._history: tuple[int, bytes] = (-1, b"")  # of a second's number

    def rest(self) -> None:
        """Nobody watches."""
        if self._watched:
            self._watched = False
            self._points.clear()
            self._said.clear()
            self._history = (-1, b"")

    def tick(self, now_unix_s: float) -> bytes:
        """The event of the second that has ended. `now_unix_s`: the wall clock's time."""
        if not self._watched:
            self._begin(now_unix_s)
        self._now_unix_s = now_unix_s
        series = self._series
        changed, gone = self._look_at_engines(now_unix_s)
        parts = [
            f'"now":{now_unix_s:.3f},"point":{self._point(0)}',
            f'"engines":[{",".join(changed)}],"gone":{_text([_name(key) for key in gone])}',
        ]
        parts.append(f'"sparks":{_text({_name(key): _ms(value) for key, value in series.last_sparks().items()})}')
        alerts = _text(list(self._sources.alerts()))
        if alerts != self._alerts:
            self._alerts = alerts
            parts.append(f'"alerts":{alerts}')
        if series.number >= self._slos_at:
            self._slos_at = series.number + SLOS_EVERY
            slos = _text(list(self._sources.slos()))
            if slos != self._slos:
                self._slos = slos
                parts.append(f'"slos":{slos}')
        told = min(series.fresh, TOLD_MAX, len(series.requests))
        newest = islice(series.requests, len(series.requests) - told, None)
        parts.append(
            f'"requests":[{",".join(map(request_text, newest))}],"skipped":{series.skipped + series.fresh - told}'
        )
        return _event("tick", "{" + ",".join(parts) + "}")

    def history(self, now_unix_s: float) -> bytes:
        """The event for who begins to watch: all there is, as of the last tick; the ticks behind it tell the rest."""
        if not self._watched:
            self._begin(now_unix_s)
        number = self._series.number
        if self._history[0] != number:
            self._history = (number, self._made())
        return self._history[1]

    def start_anew(self, now_unix_s: float) -> None:
        """The wall clock has jumped, or seconds are missing: what follows is a history of as it is now."""
        self._begin(now_unix_s)
        self._points.clear()
        self._history = (-1, b"")

    def _begin(self, now_unix_s: float) -> None:
        """Somebody watches from now on."""
        self._watched = True
        self._now_unix_s = now_unix_s
        self._look_at_engines(now_unix_s)
        self._alerts = _text(list(self._sources.alerts()))
        self._slos = _text(list(self._sources.slos()))
        self._slos_at = self._series.number + SLOS_EVERY

    def _look_at_engines(self, now_unix_s: float) -> tuple[list[str], list[Key]]:
        """Note how the engines are; returns those that have changed, as text, and those that are gone."""
        said, changed, gone = self._said, [], set(self._said)
        for number, engine in enumerate(self._sources.engines()):
            if number % AT_ONCE == AT_ONCE - 1:
                self._pause()
            key = engine[:2]
            gone.discard(key)
            before = said.get(key)
            failed_at = self._series.failed_at(key) if engine.last_error is not None else None
            if before is not None:
                if engine.last_error not in (None, before[0].last_error) and failed_at == before[1]:
                    failed_at = now_unix_s  # a probe has found it
                    self._series.failed(*key, failed_at)
                if before[0] == engine and before[1] == failed_at:
                    continue
            told = {**engine._asdict(), "last_error_at": failed_at}
            text = _text(told)
            said[key] = engine, failed_at, text
            changed.append(text)
        for key in gone:
            del said[key]
        return changed, sorted(gone)

    def _point(self, age: int) -> str:
        """The point of so many seconds ago."""
        number = self._series.number - age
        text = self._points.get(number)
        if text is None:
            points = self._series.points
            text = self._points[number] = point_text(points[len(points) - 1 - age])
            self._points.pop(number - POINTS, None)
        return f"[{self._now_unix_s - age:.3f},{text}]"

    def _made(self) -> bytes:
        series, sources = self._series, self._sources
        points = self._paused(map(self._point, range(len(series.points) - 1, -1, -1)))
        requests = self._paused(map(request_text, series.requests))
        sparks = self._paused(
            f"{_text(_name(key))}:[{','.join(map(_number, values))}]"
            for key, values in series.sparks().items()
            if key in self._said
        )
        head = {**sources.about(), "now": round(self._now_unix_s, 3), "interval_s": 1, "kept_s": POINTS}
        head["columns"] = ["time", *COLUMNS]
        parts = (
            _text(head)[:-1],
            f'"points":[{points}]',
            f'"engines":[{",".join(text for _, _, text in self._said.values())}]',
            f'"sparks":{{{sparks}}}',
            f'"alerts":{self._alerts}',
            f'"slos":{self._slos}',
            f'"requests":[{requests}]}}',
        )
        return _event("history", ",".join(parts))

    def _paused(self, parts: Iterable[str]) -> str:
        """Join what is made meanwhile, with pauses."""
        made: list[str] = []
        for part in parts:
            made.append(part)
            if len(made) % AT_ONCE == 0:
                self._pause()
        return ",".join(made)


def _event(name: str, data: str) -> bytes:
    """One event of the stream; JSON has no line ends of its own."""
    return f"event: {name}\ndata: {data}\n\n".encode("ascii")


def _name(key: Key) -> str:
    return f"{key[0]} {key[1]}"


def _ms(value: float) -> Optional[float]:
    return round(value, 3) if math.isfinite(value) else None


def _number(value: float) -> str:
    return f"{value:.6g}" if math.isfinite(value) else "null"


def point_text(point: array[float]) -> str:
    """A point's values as JSON has them, without brackets; null for those that were not measured."""
    return ",".join([form % value if math.isfinite(value) else "null" for form, value in zip(_FORMATS, point)])


def request_text(event: Request) -> str:
    """One request as JSON. All that a client has made up is bounded. Of another process's, it is already."""
    if isinstance(event, str):
        return event
    told: Json = {
        "id": event.request_id,
        "trace": None if event.trace is None else event.trace.trace_id,
        "time": round(event.finished_unix_s, 3),
        "method": event.method[:METHOD_CHARS],
        "path": event.path,
        "model": event.model,
        "engine": event.engine,
        "status": event.status,
        "error": event.error,
        "latency_ms": _ms(event.latency_s * 1e3),
        "queue_ms": _ms(event.queue_s * 1e3),
        "ttft_ms": None if event.ttft_s is None else _ms(event.ttft_s * 1e3),
        "stream": event.stream,
        "prompt_tokens": event.prompt_tokens,
        "completion_tokens": event.completion_tokens,
        **(event.extra or {}),
        "attempts": [_attempt(event, record) for record in event.attempt_records[-PARTS_MAX:]],
    }
    if event.fallback:
        told["fallback"] = event.fallback
    if event.marks:
        told["marks"] = [
            {
                "name": mark.name,
                "start_ms": _ms(max(0.0, mark.began_s - event.accepted_s) * 1e3),
                "duration_ms": _ms(mark.duration_s * 1e3),
            }
            for mark in event.marks[-PARTS_MAX:]
        ]
    return _text(told)


def _attempt(event: RequestEvent, record: AttemptRecord) -> Json:
    return {
        "model": record.model,
        "engine": record.engine,
        "outcome": record.outcome,
        "start_ms": _ms(max(0.0, record.began_s - event.accepted_s) * 1e3) if record.began_s else 0.0,
        "duration_ms": _ms(record.duration_s * 1e3),
        "ttft_ms": None if record.first_s is None else _ms(record.first_s * 1e3),
    }


_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def _text(value: Any) -> str:
    """JSON in ASCII; what is no number in it is null."""
    try:
        return _encode(value)
    except ValueError:
        return _encode(_finite(value))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
