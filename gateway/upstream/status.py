"""What an engine's answer other than 2xx means. Pure functions."""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Mapping
from typing import Optional

from gateway.routing.retry import Outcome

RETRY_AFTER_MAX_BYTES = 64  # a date has 29
RETRY_AFTER_MAX_S = 1e9  # beyond 30 years it is no time


def status_outcome(status: int, headers: Mapping[bytes, bytes], body: bytes) -> Outcome:
    """What an answer other than 2xx means. `body` is only read for the engine's message."""
    message = _engine_message(body)
    wait_s = retry_after_s(headers.get(b"retry-after"))
    if status == 429:
        return Outcome("rate_limited", message or "the engine is rate limited", status, wait_s)
    if status in (401, 403):
        return Outcome("unauthorized", "the engine refuses the gateway's credentials", status)
    if 400 <= status < 500 and status != 408:
        return Outcome("rejected", message or f"the engine answered {status}", status)
    text = f"the engine answered {status}"
    return Outcome("error", f"{text}: {message}" if message else text, status, wait_s)


def retry_after_s(value: Optional[bytes]) -> Optional[float]:
    """Seconds in a Retry-After header: a number or an HTTP date; None when absent or unreadable."""
    if not value:
        return None
    text = value[:RETRY_AFTER_MAX_BYTES].decode("latin-1").strip()
    try:
        seconds = float(text)
        return seconds if 0 <= seconds <= RETRY_AFTER_MAX_S else None
    except ValueError:
        pass
    try:
        seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        return max(0.0, seconds) if seconds <= RETRY_AFTER_MAX_S else None
    except Exception:  # the parser lets through whatever its numbers are too large, or too few, for
        return None


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
