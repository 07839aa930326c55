"""What an engine's answer other than 2xx means. Pure functions."""

from __future__ import annotations

import email.utils
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Optional

from gateway.clock import unix_s
from gateway.routing.retry import RATE_LIMITED, Outcome
from gateway.upstream.words import Words, words_in

RETRY_AFTER_MAX_BYTES = 64  # a date has 29
RETRY_AFTER_MAX_S = 1e9  # beyond 30 years it is no time

_PHRASE_BY_STATUS = {status.value: status.phrase for status in HTTPStatus}

# What providers call it that a prompt was not let through. In the fields meant for programs (`code`, `type`, `reason`):
# OpenAI, Azure and their kin say content_policy_violation, content_filter, ResponsibleAIPolicyViolation.
_MODERATION_CODE = re.compile(
    r"content[ _-]?(policy|filter|moderat|violation|safety)|moderation|safety|responsible_?ai|policy[ _-]?violation"
    r"|flagged|guardrail|prompt",
    re.I,
)
# In the message, for people.
_MODERATION_TEXT = re.compile(
    r"\bprompts?\b|content[ _-]?(policy|filter)|moderation|\bsafety\b"
    r"|\b(input|content|messages?|request|text)\b[^.]*\b(flagged|unsafe|harmful|inappropriate|violat\w+)\b",
    re.I,
)
# A message that names one of these is about who asks, not about what was asked: "your account was flagged".
_CREDENTIALS_TEXT = re.compile(
    r"\b(api[ _-]?keys?|keys?|credentials?|authenticat\w+|authori[sz]\w+|accounts?|organi[sz]ations?|projects?"
    r"|permissions?|billing|subscriptions?|regions?|country)\b",
    re.I,
)


def status_outcome(status: int, headers: Mapping[bytes, bytes], body: bytes) -> Outcome:
    """What an answer other than 2xx means. `body` is only read for the engine's words."""
    words = words_in(body)
    message, details = words.message, words.details
    wait_s = retry_after_s(headers.get(b"retry-after"), headers.get(b"date"))
    if status == 429:
        return Outcome("rate_limited", message or RATE_LIMITED, status, wait_s, details)
    if status == 401 or (status == 403 and not _is_moderation(words)):
        what = "the gateway's credentials" if status == 401 else "the gateway's credentials, or the request (403)"
        return Outcome("unauthorized", f"the engine refuses {what}", status)
    text = f"the engine answered {status}: {message}" if message else f"the engine answered {status}"
    if 400 <= status < 500 and status != 408:
        # Just the name of the status ("Not Found") would read as if it were about the gateway's own path or model.
        said = message if message not in ("", _PHRASE_BY_STATUS.get(status)) else text
        return Outcome("rejected", said, status, None, details)
    return Outcome("not_implemented" if status == 501 else "error", text, status, wait_s, details)


def retry_after_s(value: Optional[bytes], date: Optional[bytes] = None) -> Optional[float]:
    """Seconds in a Retry-After header: a number or an HTTP date; None when absent or unreadable.

    A date counts from the answer's own `date`, by the same clock; where there is none, from now by ours.
    """
    if not value:
        return None
    text = value[:RETRY_AFTER_MAX_BYTES].decode("latin-1").strip()
    try:
        seconds = float(text)
        return seconds if 0 <= seconds <= RETRY_AFTER_MAX_S else None
    except ValueError:
        pass
    try:
        seconds = _http_date_unix_s(text) - _sent_unix_s(date)
        return max(0.0, seconds) if seconds <= RETRY_AFTER_MAX_S else None
    except Exception:  # the parser lets through whatever its numbers are too large, or too few, for
        return None


def _http_date_unix_s(text: str) -> float:
    return email.utils.parsedate_to_datetime(text).timestamp()


def _sent_unix_s(date: Optional[bytes]) -> float:
    """When an answer was sent, by its sender's clock; by ours where it does not say so."""
    try:
        return unix_s() if date is None else _http_date_unix_s(date.decode("latin-1"))
    except Exception:  # as above
        return unix_s()


def _is_moderation(words: Words) -> bool:
    """Whether a 403 is explained as one prompt's: by a code, by reasons for it (OpenRouter), or in its message."""
    error = words.error
    if error is None:
        return False
    if isinstance(error, dict):
        metadata = error.get("metadata")
        if isinstance(metadata, dict) and ("flagged_input" in metadata or metadata.get("reasons")):
            return True
    if any(_MODERATION_CODE.search(text) for text in _codes(words)):
        return True
    return bool(_MODERATION_TEXT.search(words.message)) and not _CREDENTIALS_TEXT.search(words.message)


def _codes(words: Words) -> list[str]:
    """What is said for programs."""
    error = words.error if isinstance(words.error, dict) else {}
    inner = error.get("innererror")
    objects = [words.details, error, inner] if isinstance(inner, dict) else [words.details, error]
    values = [each.get(key) for each in objects for key in ("code", "type", "reason", "status", "param")]
    return [value[:200] for value in values if isinstance(value, str)]
