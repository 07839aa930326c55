"""Log lines as JSON: one request or one record in, one line without its line end out (those for people: textlines.py).

Owns the format and the levels only: nothing here writes, filters or locks. A line is one line whatever
the strings in it hold, so nobody can forge a second one: JSON escapes every control and non-ASCII
character.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Callable

from gateway.telemetry.events import LogRecord, RequestEvent

LEVELS: Mapping[str, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40}
PROBE_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})
"""Asked every few seconds by machines: their lines are debug, whatever the status."""
CONSOLE_FILES = "/console/"
"""A page is some forty of them."""

try:
    # 0.06 µs a string; json.dumps takes 0.25 µs to come to the same function.
    quoted = json.encoder.encode_basestring_ascii
except AttributeError:  # an interpreter with its own json
    quoted = json.dumps

_REQUEST_KEYS = (
    *("ts", "level", "event", "request_id", "method", "path", "status", "error"),
    *("latency_ms", "queue_ms", "engine_ms", "ttft_ms", "stream", "model", "engine"),
    *("attempts", "fallback", "prompt_tokens", "completion_tokens", "usage_estimated"),
    *("key", "client", "trace_id", "slow", "attempt_log", "waits"),
)
_SHORT = 1 << 64  # more digits than 4 300 are an error


def is_slow(event: RequestEvent, slow_s: float) -> bool:
    """Whether a request took longer than `slow_s` (0: none ever does)."""
    return 0 < slow_s < event.latency_s and not _is_aside(event)


def _is_aside(event: RequestEvent) -> bool:
    """Whether it is a probe, or a page's file that was there: of no interest to who reads the log."""
    if event.method not in ("GET", "HEAD"):
        return False
    return event.path in PROBE_PATHS or (event.status < 400 and event.path.startswith(CONSOLE_FILES))


def request_level(event: RequestEvent, slow_s: float = 0.0) -> str:
    """The level of a request's line: debug for probes and the console's files, warning from 500 up and for slow ones,
    else info."""
    if _is_aside(event):
        return "debug"
    return "warning" if event.status >= 500 or (slow_s and event.latency_s > slow_s) else "info"


def clock_text(form: str, parts: Callable[[int], time.struct_time], end: str = "") -> Callable[[float], str]:
    """What writes Unix seconds as `form` (strftime's) has the `parts` of the whole second, with milliseconds and `end`
    behind. Thread-safe."""
    last = (-1, "")  # a whole second and its text, replaced as one object: most lines share their second

    def text(unix_s: float) -> str:
        nonlocal last
        milliseconds = int(unix_s * 1000)
        second = milliseconds // 1000
        cached, whole = last
        if cached != second:
            whole = time.strftime(form, parts(second))
            last = (second, whole)
        return "%s.%03d%s" % (whole, milliseconds % 1000, end)  # noqa: UP031

    return text


timestamp = clock_text("%Y-%m-%dT%H:%M:%S", time.gmtime, "Z")
"""RFC 3339 in UTC with milliseconds, e.g. 2026-01-31T12:00:00.250Z."""


def format_json(item: RequestEvent | LogRecord, slow_s: float = 0.0) -> str:
    """One JSON object on one line; the keys of a request's line are those of the contract, then those that few have.

    A slow one's (`is_slow`) tells of its attempts and of whatever else it has waited for.
    """
    if isinstance(item, LogRecord):
        head = f'{{"ts": "{timestamp(item.unix_s)}", "level": {quoted(item.level)}, "event": {quoted(item.event)}'
        return head + _members(item.fields, ("ts", "level", "event")) + "}"
    line = _request_json(item, slow_s)
    if slow_s and is_slow(item, slow_s):
        line += _members(_times(item), ())
    if item.extra:
        line += _members(item.extra, _REQUEST_KEYS)
    return line + "}"


def of_process(
    line_of: Callable[[RequestEvent | LogRecord], str], process: int, log_format: str
) -> Callable[[RequestEvent | LogRecord], str]:
    """`line_of`, with which of several processes it is at the end of each line (`log_format`: "json" or "text")."""
    if log_format == "text":
        return lambda item: f"{line_of(item)} process={process}"
    end = f', "process": {process}}}'
    return lambda item: line_of(item)[:-1] + end


def _times(event: RequestEvent) -> dict[str, object]:
    """What a slow request's time went into: milliseconds, those of a begin from the request's first byte on."""
    return {
        "slow": True,
        "attempt_log": [
            {
                "model": record.model,
                "engine": record.engine,
                "outcome": record.outcome,
                "status": record.status,
                "began_ms": _ms(record.began_s - event.accepted_s),
                "first_ms": None if record.first_s is None else _ms(record.first_s),
                "duration_ms": _ms(record.duration_s),
            }
            for record in event.attempt_records
        ],
        "waits": [
            {"name": mark.name, "began_ms": _ms(mark.began_s - event.accepted_s), "duration_ms": _ms(mark.duration_s)}
            for mark in event.marks
        ],
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1000.0, 3)


def _request_json(event: RequestEvent, slow_s: float) -> str:
    (unix_s, request_id, method, path, status, error, latency_s, queue_s, engine_s) = event[:9]
    (ttft_s, stream, model, engine, attempts, fallback, prompt, completion) = event[9:17]
    (estimated, key, client) = event[17:20]
    trace = event.trace
    # One format, of which nothing has to be read anew: a tenth less than by %, a third of a dict and json.dumps.
    return (
        f'{{"ts": "{timestamp(unix_s)}", "level": "{request_level(event, slow_s)}", "event": "request", '
        f'"request_id": {quoted(request_id)}, "method": {quoted(method)}, "path": {quoted(path)}, '
        f'"status": {status}, "error": {"null" if error is None else quoted(error)}, '
        f'"latency_ms": {latency_s * 1000.0:.3f}, "queue_ms": {queue_s * 1000.0:.3f}, '
        f'"engine_ms": {engine_s * 1000.0:.3f}, '
        f'"ttft_ms": {"null" if ttft_s is None else f"{ttft_s * 1000.0:.3f}"}, '
        f'"stream": {"true" if stream else "false"}, "model": {"null" if model is None else quoted(model)}, '
        f'"engine": {"null" if engine is None else quoted(engine)}, "attempts": {attempts}, '
        f'"fallback": {"null" if fallback is None else quoted(fallback)}, '
        f'"prompt_tokens": {"null" if prompt is None else prompt}, '
        f'"completion_tokens": {"null" if completion is None else completion}, '
        f'"usage_estimated": {"true" if estimated else "false"}, "key": {"null" if key is None else quoted(key)}, '
        f'"client": {quoted(client)}' + ("" if trace is None else f', "trace_id": "{trace.trace_id}"')
    )


def _members(fields: Mapping[str, object], taken: tuple[str, ...]) -> str:
    # A key that the line already has gets an underscore: doubled keys are read differently
    # by every JSON parser.
    return "".join(
        f", {quoted(f'{key}_' if key in taken else key)}: {json_value(value)}" for key, value in fields.items()
    )


def json_value(value: object) -> str:
    if type(value) is str:  # most are, or the next; json.dumps takes five times as long
        return quoted(value)
    if type(value) is int and -_SHORT < value < _SHORT:
        return str(value)
    try:
        return json.dumps(value, default=str, allow_nan=False)
    except (ValueError, TypeError, RecursionError):  # NaN, a circle, odd keys, endless depth
        return quoted(_described(value))


def _described(value: object) -> str:
    try:
        return repr(value)
    except (ValueError, RecursionError):  # an integer beyond 4 300 digits, endless depth
        return f"({type(value).__name__} that cannot be shown)"
