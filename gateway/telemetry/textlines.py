"""Log lines for people: columns that stay under each other, in colours where a terminal has them.

Owns how a line looks: nothing here writes, filters or locks. A line is one line of plain ASCII, arrows excepted,
whatever the strings in it hold: what is not is quoted, so nobody can forge a line or send a terminal an escape code.
Nothing is ever cut: what is longer than its column moves the rest to the right.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from typing import Callable, NamedTuple, Optional, TextIO, Union

from gateway.telemetry.events import AttemptRecord, LogRecord, RequestEvent
from gateway.telemetry.logs import clock_text, is_slow, json_value, quoted, request_level, timestamp

_PLAIN = re.compile(r"[!#-<>-\[\]-~]+")
"""What is shown unquoted: visible ASCII without space, quote, = and backslash."""
_LISTED = re.compile(r"[A-Za-z0-9._:/@+-]+")
"""What may stand in a list of texts, which is shown with commas alone."""
_LEVELS = {"debug": "DEBUG", "info": "INFO ", "warning": "WARN ", "error": "ERROR"}
_CODES = {"dim": "2", "bold": "1", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
_OF_LEVEL = {"debug": "dim", "warning": "yellow", "error": "red"}
_OF_CLASS = {2: "green", 3: "cyan", 4: "yellow", 5: "red"}
_OWN_ADDRESSES = ("", "127.0.0.1", "::1")

# Columns, for usual values: a method with a path, a latency, a model with an engine, tokens, the time to the first one.
_WHAT, _LATENCY, _WHO, _TOKENS, _FIRST = 27, 7, 25, 13, 11
_EVENT = 3 + 1 + _WHAT  # of an own line, where a request has status and path


class Look(NamedTuple):
    """Where lines are shown."""

    terminal: bool = False
    """Somebody looks on: the time of day is that of the place. Else it is UTC, with the date."""
    colours: bool = False
    arrows: bool = False
    """Whether it shows more than ASCII."""


def look_of(stream: TextIO, colours: bool) -> Look:
    """How lines are shown on a stream, with `colours` if it is a terminal: in files and pipes there are never any, and
    nothing but ASCII."""
    terminal = stream.isatty()
    wide = terminal and (stream.encoding or "").lower().replace("-", "") == "utf8"
    return Look(terminal, terminal and colours, wide)


class TextLines:
    """Writes items as lines, without line ends; call it with each. `slow_s` as in `request_level`. Any thread."""

    def __init__(self, look: Look, slow_s: float = 0.0) -> None:
        self._slow_s = slow_s
        self._arrow = "→" if look.arrows else "->"
        self._time: Callable[[float], str] = _time_of_day if look.terminal else timestamp
        self._look = look

    def __call__(self, item: Union[RequestEvent, LogRecord]) -> str:
        return self._record(item) if isinstance(item, LogRecord) else self._request(item)

    def _record(self, record: LogRecord) -> str:
        pairs = self._pairs(record.fields)
        event = shown(record.event)
        event = self._painted(event.ljust(_EVENT) if pairs else event, "bold")
        return f"{self._head(record.unix_s, record.level)} {event}{pairs}"

    def _request(self, event: RequestEvent) -> str:
        slow = is_slow(event, self._slow_s)
        colour = _OF_CLASS.get(event.status // 100, "") if event.error is None or event.status >= 400 else "red"
        latency = duration(event.latency_s).rjust(_LATENCY)
        line = (
            f"{self._head(event.finished_unix_s, request_level(event, self._slow_s))} "
            f"{self._painted(str(event.status), colour)} "
            f"{f'{shown(event.method)} {shown(event.path)}'.ljust(_WHAT)} "
            f"{self._painted(latency, 'yellow' if slow else '')}  "
            f"{self._to(event.model, event.engine).ljust(_WHO)} "
            f"{_tokens(event).rjust(_TOKENS)}  "
            f"{'' if event.ttft_s is None else 'ttft' + duration(event.ttft_s).rjust(_FIRST - 4):{_FIRST}}"
        )
        if event.error is not None:
            line += " " + self._painted(shown(event.error), "red")
        line += self._pairs(
            {
                "attempts": event.attempts if event.attempts > 1 else None,
                "fallback": event.fallback,
                "queue": duration(event.queue_s) if event.queue_s >= 0.001 else None,
                "key": event.key,
                "client": None if event.client in _OWN_ADDRESSES else event.client,
                **(event.extra or {}),
                "trace_id": None if self._look.terminal or event.trace is None else event.trace.trace_id,
            }
        )
        if slow:
            line += f" {self._painted('slow:', 'yellow')} {', '.join(self._parts(event))}"
        return f"{line} {self._painted(shown(event.request_id), 'dim')}"

    def _parts(self, event: RequestEvent) -> Iterable[str]:
        """What a slow request's time went into."""
        for record in event.attempt_records:
            yield f"{self._to(record.model, record.engine)} {_ended(record)} {duration(record.duration_s)}"
        for mark in event.marks:
            yield f"{shown(mark.name)} {duration(mark.duration_s)}"
        if not event.attempt_records:
            yield "no engine was asked"

    def _to(self, model: Optional[str], engine: Optional[str]) -> str:
        return self._arrow.join(shown(name) for name in (model, engine) if name)

    def _head(self, unix_s: float, level: str) -> str:
        return f"{self._painted(self._time(unix_s), 'dim')} {self._painted(_LEVELS[level], _OF_LEVEL.get(level, ''))}"

    def _pairs(self, fields: Mapping[str, object]) -> str:
        return "".join(
            f" {self._painted(f'{shown(key)}=', 'dim')}{shown(value)}"
            for key, value in fields.items()
            if value is not None
        )

    def _painted(self, text: str, colour: str) -> str:
        return f"\x1b[{_CODES[colour]}m{text}\x1b[0m" if self._look.colours and colour else text


_time_of_day = clock_text("%H:%M:%S", time.localtime)
"""Of this place, with milliseconds: 12:00:00.250."""


def duration(seconds: float) -> str:
    """With three digits or so: 0.4ms, 12.3ms, 250ms, 1.25s, 120s."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.1f}ms" if seconds < 0.09995 else f"{seconds * 1000:.0f}ms"
    return f"{seconds:.2f}s" if seconds < 99.995 else f"{seconds:.0f}s"


def _tokens(event: RequestEvent) -> str:
    if event.prompt_tokens is None and event.completion_tokens is None:
        return ""
    about = "~" if event.usage_estimated else ""
    return f"{about}{event.prompt_tokens or 0}+{event.completion_tokens or 0} tok"


def _ended(record: AttemptRecord) -> str:
    outcome = shown(record.outcome)
    return outcome if record.status is None else f"{outcome} {record.status}"


def shown(value: object) -> str:
    """A value as it stands in a line: quoted, with escapes, where it is not plain."""
    if (
        isinstance(value, (list, tuple))
        and value
        and all(isinstance(one, str) and _LISTED.fullmatch(one) for one in value)
    ):
        return ",".join(value)
    text = value if isinstance(value, str) else json_value(value)
    return text if _PLAIN.fullmatch(text) else quoted(text)
