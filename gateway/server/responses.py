"""Response bytes: one buffer per answer, so that one write sends it; a large body stays apart and is not copied.

Pure but for the cached date line, which is replaced whole when the second changes (a racing thread at worst makes it
twice).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, Union

from gateway.clock import unix_s
from gateway.dialects.bypath import ERROR_BODIES
from gateway.errors import GatewayError, openai_type

_STATUS_LINES: dict[int, bytes] = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode()) for status in HTTPStatus
}
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

JSON = b"Content-Type: application/json\r\n"
_UNBUFFERED = b"Cache-Control: no-cache\r\nX-Accel-Buffering: no\r\n"
EVENT_STREAM = b"Content-Type: text/event-stream\r\n" + _UNBUFFERED


def content_type(media_type: bytes) -> bytes:
    """The line that says of a body what it is."""
    return b"Content-Type: %b\r\n" % media_type


def stream_of(media_type: bytes) -> bytes:
    """The lines that say of a body that it is a stream of this kind."""
    return b"Content-Type: %b\r\n%b" % (media_type, _UNBUFFERED)


LARGE_BYTES = 65536  # a body of more is written apart
SDK_WAIT_MAX_S = 60  # what OpenAI's SDKs wait at most because they were asked to (Python's latest: 120)

Text = Union[bytes, bytearray]
"""A body: what is large may come as it was received."""

_date_second = -1
_date_line = b""


def date_line() -> bytes:
    """The Date header of this second (RFC 9110, 5.6.7), independent of the locale."""
    global _date_line, _date_second
    second = int(unix_s())
    if second != _date_second:
        t = time.gmtime(second)
        text = (
            f"Date: {_DAYS[t.tm_wday]}, {t.tm_mday:02} {_MONTHS[t.tm_mon - 1]} {t.tm_year}"
            f" {t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02} GMT\r\n"
        )
        _date_line = text.encode()
        _date_second = second
    return _date_line


def head(status: int, headers: bytes) -> bytes:
    """Status line, date and `headers` (lines ending in CRLF), without the closing blank line."""
    line = _STATUS_LINES.get(status) or b"HTTP/1.1 %d Status\r\n" % status
    return b"%b%b%b" % (line, date_line(), headers)


def before_body(status: int, headers: bytes, length: int, keep_alive: bool) -> bytes:
    """A response up to a body of `length` bytes. `headers` are lines ending in CRLF."""
    close = b"" if keep_alive else b"Connection: close\r\n"
    return b"%b%bContent-Length: %d\r\n\r\n" % (head(status, headers), close, length)


def whole(status: int, headers: bytes, body: bytes, keep_alive: bool, head_only: bool = False) -> bytes:
    """A complete response with a Content-Length (204 has none, and 304 not its own: RFC 9110, 8.6). `headers` are lines
    ending in CRLF.

    `head_only`: without the body, whose length it says (the answer to HEAD).
    """
    if status in (204, 304):
        return b"%b%b\r\n" % (head(status, headers), b"" if keep_alive else b"Connection: close\r\n")
    return b"%b%bContent-Length: %d\r\n\r\n%b" % (
        head(status, headers),
        b"" if keep_alive else b"Connection: close\r\n",
        len(body),
        b"" if head_only else body,
    )


def header_lines(headers: Iterable[tuple[str, str]]) -> bytes:
    """Header lines from pairs; what could end a line early is dropped."""
    text = "".join(f"{name}: {value}\r\n" for name, value in headers if _safe(value))
    return text.encode("latin-1", "replace")


def _safe(value: str) -> bool:
    return "\r" not in value and "\n" not in value


def error_body(error: GatewayError, error_format: str, request_id: str) -> bytes:
    """The JSON of an error in one of the two shapes (contract 7), or a dialect's; which one, `errorformat.py` says."""
    body: dict[str, Any]
    make = ERROR_BODIES.get(error_format)
    if make is not None:
        return json.dumps(make(error, request_id), separators=(",", ":")).encode()
    if error_format == "openai":
        detail: dict[str, Any] = {
            "message": error.message,
            "type": openai_type(error.status),
            "param": error.param,
            "code": error.code,
        }
        detail.update(error.details or {})
        if error.code == "backend_rejected":  # the engine's verdict on the request: what clients of OpenAI's look for
            detail.update(error.engine or {}, gateway_code=error.code)
        elif error.engine:
            detail["details"] = dict(error.engine)
        body = {"error": detail, "request_id": request_id}
    else:
        body = {"error": error.code, "message": error.message, "param": error.param}
        body.update(error.details or {})
        if error.engine:
            body["details"] = dict(error.engine)
        body["request_id"] = request_id
    return json.dumps(body, separators=(",", ":")).encode()


def error_headers(error: GatewayError) -> bytes:
    """The headers that belong to an error: Retry-After (whole seconds, rounded up) and its own.

    OpenAI's SDKs that are asked to wait for longer than they would try again within a second, in vain: they are told
    not to.
    """
    headers = list(error.headers)
    if error.retry_after_s is not None:
        wait_s = max(1, math.ceil(round(error.retry_after_s, 6)))  # 12.000000000004 is 12
        headers.append(("Retry-After", str(wait_s)))
        if wait_s > SDK_WAIT_MAX_S:
            headers.append(("X-Should-Retry", "false"))
    return header_lines(headers)
