"""What an engine says was wrong, in whatever shape it says it: a message for people, and what is meant for programs.

Engines, and the servers in front of them, have a dozen shapes for an error. Pure functions; raise nothing, whatever the
bytes are. What they give is bounded, without control characters, and without the gateway's own key for the engine.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from gateway.upstream.sniff import BLANK, BOM

MESSAGE_MAX_CHARS = 500
DETAIL_MAX_CHARS = 200
NESTED_MAX = 6  # an error in an error ...
LISTED_MAX = 5  # faults of one request that are told
SECRET_MIN_CHARS = 8  # a shorter one is none: local engines are given "none", or "x"
CUT = " ... (cut)"

# What an error calls its message. (`title`: RFC 9457.)
_MESSAGE_KEYS = ("message", "msg", "detail", "errors", "title")
# Its words for programs, and who says otherwise: `error_type` is TGI's.
_DETAIL_KEYS = (("code", "code"), ("type", "type"), ("type", "error_type"), ("param", "param"))

# What is a code, where a message stands beside it.
_CODE = re.compile("[a-z0-9]+(?:_[a-z0-9]+)+")
_UNFIT = re.compile("[\x00-\x20\x7f-\xa0\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]+")
_TITLE = re.compile(rb"<title[^>]{0,200}>([^<]{1,1000})</title", re.I)
# Of a body that is not all there.
_BEGUN = re.compile(rb'"(?:message|msg|detail|error)"\s{0,9}:\s{0,9}"((?:[^"\\]|\\.){1,2000})', re.S)


class Words(NamedTuple):
    """`message`: "" where there is none. `details`: `code`, `type` and `param`, where the engine gave them. `error`:
    what its JSON holds of the error: an object or a text; None: it is no JSON."""

    message: str
    details: dict[str, object]
    error: Any


NOTHING = Words("", {}, None)


def words_in(body: bytes) -> Words:
    """What is said in the body of an answer other than 2xx."""
    if not body:
        return NOTHING
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return Words(tidy(_text_in(body)), {}, None)
    return words_of(value)


def words_of(value: Any) -> Words:
    """The same of a JSON value."""
    details: dict[str, object] = {}
    error = _error_of(value, details, NESTED_MAX)
    if not isinstance(error, (dict, str)):
        error = None
    return Words(tidy(_message_of(value, NESTED_MAX)), details, error)


def tidy(text: str, max_chars: int = MESSAGE_MAX_CHARS) -> str:
    """The text on one line, of bounded length."""
    text = _UNFIT.sub(" ", text[: 4 * max_chars]).strip()
    return text if len(text) <= max_chars else text[:max_chars].rstrip() + CUT


def without(secret: str, text: str) -> str:
    """The text, with `***` in place of a key, and of the begin of one where the text has been cut in it."""
    if len(secret) < SECRET_MIN_CHARS:
        return text
    text = text.replace(secret, "***")
    cut = CUT if text.endswith(CUT) else ""
    text = text.removesuffix(cut)
    begun = next((n for n in range(len(secret) - 1, SECRET_MIN_CHARS - 1, -1) if text.endswith(secret[:n])), 0)
    return (text[:-begun] + "***" if begun else text) + cut


def details_without(secret: str, details: Mapping[str, object]) -> dict[str, object]:
    """The same for details."""
    return {key: without(secret, value) if isinstance(value, str) else value for key, value in details.items()}


def _error_of(value: Any, details: dict[str, object], depth: int) -> Any:
    """The innermost error; `details` gets what it says for programs, and what it leaves to those around it."""
    if isinstance(value, list):
        value = value[0] if value else None  # Gemini's
    if not isinstance(value, dict):
        return value
    found: Any = value
    error, message, detail = value.get("error"), value.get("message"), value.get("detail")
    if isinstance(error, str) and isinstance(message, str):
        if _CODE.fullmatch(error):
            details["code"] = error[:DETAIL_MAX_CHARS]
    elif depth:
        for inner in (error, message or detail):
            if inner and isinstance(inner, (dict, list, str) if inner is error else dict):
                found = _error_of(inner, details, depth - 1)
                break
    for name, key in _DETAIL_KEYS:
        word = value.get(key)
        if name in details:
            continue
        if isinstance(word, str) and word and word != "error":  # so others call what an error is
            details[name] = tidy(word, DETAIL_MAX_CHARS)
        elif type(word) is int and abs(word) < 1 << 53:
            details[name] = word
    return found


def _message_of(value: Any, depth: int) -> str:
    """The message in a JSON value that is an error, or around one; "": none is found."""
    if isinstance(value, str):
        return value[: 4 * MESSAGE_MAX_CHARS]
    if not depth:
        return ""
    if isinstance(value, list):
        texts = [text for text in (_message_of(each, depth - 1) for each in value[:LISTED_MAX]) if text]
        more = f"; and {len(value) - LISTED_MAX} more" if texts and len(value) > LISTED_MAX else ""
        return "; ".join(texts) + more
    if not isinstance(value, dict):
        return ""
    texts = [_message_of(value.get(key), depth - 1) for key in ("error", *_MESSAGE_KEYS)]
    error, message, msg, detail, errors, title = texts
    text = error or message or msg or detail or errors or title
    if text is error and isinstance(value.get("error"), str) and message:
        text = message if _CODE.fullmatch(error) else f"{error}: {message}"  # the status in words, mostly
    elif text is detail and title:
        text = f"{title}: {detail}"
    where = value.get("loc")
    if text and isinstance(where, list) and where:  # FastAPI's
        parts = (str(part)[:100] for part in where[:20] if isinstance(part, (str, int)))
        text = f"{'.'.join(parts)}: {text}"
    behind = value.get("metadata")
    raw = behind.get("raw") if isinstance(behind, dict) else None
    if isinstance(raw, str):  # OpenRouter's: what the engine behind it has said
        inner = _message_in(raw[:8192], depth - 1)
        text = f"{text}: {inner}" if text and inner else text or inner
    return text


def _message_in(raw: str, depth: int) -> str:
    try:
        return _message_of(json.loads(raw), depth)
    except (ValueError, RecursionError):
        return _text_in(raw.encode("utf-8", "replace"))


def _text_in(body: bytes) -> str:
    """The message in what is no JSON, or not all of it."""
    begin = body.lstrip(BOM + BLANK)[:8192]
    if begin[:1] == b"<":
        title = _TITLE.search(begin)
        return title[1].decode("utf-8", "replace") if title else ""
    if begin[:1] in (b"{", b"["):
        found = _BEGUN.search(begin)
        return _unescaped(found[1]) if found else ""
    try:
        # Not its end: a character may be cut there.
        return codecs.getincrementaldecoder("utf-8")().decode(begin[: 4 * MESSAGE_MAX_CHARS])
    except UnicodeDecodeError:
        return ""


def _unescaped(text: bytes) -> str:
    try:
        return str(json.loads(b'"%b"' % text, strict=False))
    except ValueError:
        return text.decode("utf-8", "replace")
