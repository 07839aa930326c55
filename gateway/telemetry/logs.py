"""Log lines as text: one request or one record in, one line without its line end out.

Owns formats and levels only: nothing here writes, filters or locks. A line is one line whatever
the strings in it hold, so nobody can forge a second one: JSON escapes every control and non-ASCII
character, the text format quotes whatever is not plain ASCII.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping

from gateway.telemetry.events import LogRecord, RequestEvent

LEVELS: Mapping[str, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40}
PROBE_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})
"""Asked every few seconds by machines: their lines are debug, whatever the status."""

try:
    # 0.06 µs a string; json.dumps takes 0.25 µs to come to the same function.
    _quote = json.encoder.encode_basestring_ascii
except AttributeError:  # an interpreter with its own json
    _quote = json.dumps

_REQUEST_KEYS = (
    *("ts", "level", "event", "request_id", "method", "path", "status", "error"),
    *("latency_ms", "queue_ms", "engine_ms", "ttft_ms", "stream", "model", "engine"),
    *("attempts", "fallback", "prompt_tokens", "completion_tokens", "usage_estimated"),
    *("key", "client"),
)
# One % operation fills the whole line: 3.1 µs, where a dict and json.dumps take 7.3 µs.
_REQUEST_JSON = (
    '{"ts": "%s", "level": "%s", "event": "request", "request_id": %s, "method": %s, "path": %s, '
    '"status": %d, "error": %s, "latency_ms": %.3f, "queue_ms": %.3f, "engine_ms": %.3f, '
    '"ttft_ms": %s, "stream": %s, "model": %s, "engine": %s, "attempts": %d, "fallback": %s, '
    '"prompt_tokens": %s, "completion_tokens": %s, "usage_estimated": %s, "key": %s, "client": %s'
)
_SHORT = 1 << 64  # more digits than 4 300 are an error
_PLAIN = re.compile(r"[!#-<>-\[\]-~]+")
"""What the text format shows unquoted: visible ASCII without space, quote, = and backslash."""

# The last whole second and its text, replaced as one object: most lines share their second.
_second: tuple[int, str] = (-1, "")


def request_level(event: RequestEvent) -> str:
    """The level of a request's line: debug for probes, warning from 500 up, else info."""
    if event.path in PROBE_PATHS and event.method in ("GET", "HEAD"):
        return "debug"
    return "warning" if event.status >= 500 else "info"


def timestamp(unix_s: float) -> str:
    """RFC 3339 in UTC with milliseconds, e.g. 2026-01-31T12:00:00.250Z."""
    global _second
    milliseconds = int(unix_s * 1000)
    second = milliseconds // 1000
    cached, text = _second
    if cached != second:
        text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        _second = (second, text)
    return "%s.%03dZ" % (text, milliseconds % 1000)  # noqa: UP031


def format_json(item: RequestEvent | LogRecord) -> str:
    """One JSON object on one line; the keys of a request's line are those of the contract."""
    if isinstance(item, LogRecord):
        head = f'{{"ts": "{timestamp(item.unix_s)}", "level": {_quote(item.level)}, "event": {_quote(item.event)}'
        return head + _members(item.fields, ("ts", "level", "event")) + "}"
    line = _request_json(item)
    if item.extra:
        line += _members(item.extra, _REQUEST_KEYS)
    return line + "}"


def _request_json(event: RequestEvent) -> str:
    (unix_s, request_id, method, path, status, error, latency_s, queue_s, engine_s) = event[:9]
    (ttft_s, stream, model, engine, attempts, fallback, prompt, completion) = event[9:17]
    (estimated, key, client) = event[17:20]
    return _REQUEST_JSON % (
        timestamp(unix_s),
        request_level(event),
        _quote(request_id),
        _quote(method),
        _quote(path),
        status,
        "null" if error is None else _quote(error),
        latency_s * 1000.0,
        queue_s * 1000.0,
        engine_s * 1000.0,
        "null" if ttft_s is None else f"{ttft_s * 1000.0:.3f}",
        "true" if stream else "false",
        "null" if model is None else _quote(model),
        "null" if engine is None else _quote(engine),
        attempts,
        "null" if fallback is None else _quote(fallback),
        "null" if prompt is None else f"{prompt:d}",
        "null" if completion is None else f"{completion:d}",
        "true" if estimated else "false",
        "null" if key is None else _quote(key),
        _quote(client),
    )


def _members(fields: Mapping[str, object], taken: tuple[str, ...]) -> str:
    # A key that the line already has gets an underscore: doubled keys are read differently
    # by every JSON parser.
    return "".join(
        f", {_quote(f'{key}_' if key in taken else key)}: {_json_value(value)}" for key, value in fields.items()
    )


def _json_value(value: object) -> str:
    if type(value) is str:  # most are, or the next; json.dumps takes five times as long
        return _quote(value)
    if type(value) is int and -_SHORT < value < _SHORT:
        return str(value)
    try:
        return json.dumps(value, default=str, allow_nan=False)
    except (ValueError, TypeError, RecursionError):  # NaN, a circle, odd keys, endless depth
        return _quote(_described(value))


def _described(value: object) -> str:
    try:
        return repr(value)
    except (ValueError, RecursionError):  # an integer beyond 4 300 digits, endless depth
        return f"({type(value).__name__} that cannot be shown)"


def format_text(item: RequestEvent | LogRecord) -> str:
    """One line for people at a terminal: time, level, what happened, then key=value pairs."""
    if isinstance(item, LogRecord):
        head = f"{timestamp(item.unix_s)} {item.level.upper():7} {_shown(item.event)}"
        return head + _pairs(item.fields)
    pairs = {
        "model": item.model,
        "engine": item.engine,
        "error": item.error,
        "fallback": item.fallback,
        "attempts": item.attempts if item.attempts > 1 else None,
        "queue_ms": _rounded_ms(item.queue_s) if item.queue_s >= 0.001 else None,
        "ttft_ms": None if item.ttft_s is None else _rounded_ms(item.ttft_s),
        "prompt_tokens": item.prompt_tokens,
        "completion_tokens": item.completion_tokens,
        "key": item.key,
        "client": item.client or None,
        "request_id": item.request_id,
        **(item.extra or {}),
    }
    return (
        f"{timestamp(item.finished_unix_s)} {request_level(item).upper():7} "
        f"{_shown(item.method)} {_shown(item.path)} {item.status} "
        f"{_rounded_ms(item.latency_s)}ms" + _pairs(pairs)
    )


def _rounded_ms(duration_s: float) -> float:
    return round(duration_s * 1000.0, 3)


def _pairs(fields: Mapping[str, object]) -> str:
    return "".join(f" {_shown(key)}={_shown(value)}" for key, value in fields.items() if value is not None)


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else _json_value(value)
    return text if _PLAIN.fullmatch(text) else _quote(text)
