"""What an engine's answer other than 2xx means. Pure functions."""

from __future__ import annotations

import email.utils
import json
import math
from collections.abc import Mapping
from typing import Optional

from gateway.clock import unix_s
from gateway.routing.retry import Outcome


def status_outcome(status: int, headers: Mapping[bytes, bytes], body: bytes) -> Outcome:
    """What an answer other than 2xx means. `body` is only read for the engine's message."""
    message = _engine_message(body)
    wait_s = retry_after_s(headers.get(b"retry-after"), headers.get(b"date"))
    if status == 429:
        return Outcome("rate_limited", message or "the engine is rate limited", status, wait_s)
    if status in (401, 403):
        return Outcome("unauthorized", "the engine refuses the gateway's credentials", status)
    if 400 <= status < 500 and status != 408:
        return Outcome("rejected", message or f"the engine answered {status}", status)
    text = f"the engine answered {status}"
    return Outcome("error", f"{text}: {message}" if message else text, status, wait_s)


def retry_after_s(value: Optional[bytes], date: Optional[bytes] = None) -> Optional[float]:
    """Seconds in a Retry-After header: a number or an HTTP date; None when absent or unreadable.

    A date counts from the answer's own `date`, by the same clock; where there is none, from now by ours.
    """
    if not value:
        return None
    text = value.decode("latin-1").strip()
    try:
        seconds = float(text)
        return seconds if math.isfinite(seconds) and seconds >= 0 else None
    except ValueError:
        pass
    try:
        return max(0.0, _http_date_unix_s(text) - _sent_unix_s(date))
    except (TypeError, ValueError):
        return None


def _http_date_unix_s(text: str) -> float:
    return email.utils.parsedate_to_datetime(text).timestamp()


def _sent_unix_s(date: Optional[bytes]) -> float:
    """When an answer was sent, by its sender's clock; by ours where it does not say so."""
    try:
        return unix_s() if date is None else _http_date_unix_s(date.decode("latin-1"))
    except (TypeError, ValueError, OverflowError):
        return unix_s()


def _engine_message(body: bytes) -> str:
    try:
        error = json.loads(body[:65536])
        if isinstance(error, dict):
            error = error.get("error", error)
        if isinstance(error, dict):
            error = error.get("message") or error.get("detail")
        return str(error)[:500] if isinstance(error, str) else ""
    except (ValueError, RecursionError):
        return ""
