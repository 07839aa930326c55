"""What one event of an engine's stream says: why a choice ended, how much was generated, its usage, its error.

Pure functions over an event's JSON, and over what has been read of it (of a large one an outline; see `skim.py`).
"""

from __future__ import annotations

import json
import re
from typing import Any, Optional

from gateway.upstream.estimates import weigh_escaped, weight_of_choices
from gateway.upstream.nonfinite import dump_with_nulls
from gateway.upstream.skim import Span
from gateway.upstream.sniff import BLANK
from gateway.upstream.words import Words, tidy, words_of

# What of a delta comes in pieces that make one text.
TEXT_KEYS = ("content", "text", "refusal", "reasoning_content", "reasoning", "arguments", "name")
# One of them, still escaped. (Unrolled: an alternative for each character would keep its place in memory.)
TEXT = re.compile(rb'"(?:%b)":\s?"([^"\\]*(?:\\.[^"\\]*)*)"' % "|".join(TEXT_KEYS).encode())
NUMBER = re.compile(rb'"index"\s*:\s*(-?[0-9]+)')
"""Of a choice, or of a call in one."""
OTHER_NUMBER = re.compile(rb'"index"(?!: ?0[,}])')
"""Stands where one may be another than 0."""

_PLAIN = re.compile(rb'[^"\\\n\r\x80-\xff]*')
_NO_TEXT = re.compile(rb'["\n\r]')
_USAGE = re.compile(rb'"usage"\s*:\s*')
_BACKSLASH = 0x5C

# What servers write where OpenAI has null: a key's empty value, a word for nothing, the zero of an enumeration.
_NO_REASONS = frozenset(("", "null", "none", "nil", "undefined", "not_finished"))
_NO_REASON_END = "unspecified"  # FINISH_REASON_UNSPECIFIED

_decode = json.JSONDecoder().raw_decode


def is_finish(value: object) -> bool:
    """Whether a choice with this `finish_reason` has ended."""
    if not isinstance(value, str):
        return False
    word = value.strip().lower()
    return word not in _NO_REASONS and not word.endswith(_NO_REASON_END)


def text_weight(data: bytes, first: int, last: int) -> int:
    """The weight of what stands between these places, if that can be the rest of a JSON string, whose end comes next;
    -1: it cannot."""
    if _PLAIN.fullmatch(data, first, last) is not None:  # the usual, told at once
        return last - first
    if _NO_TEXT.search(data, first, last) is not None or data[last - 1] == _BACKSLASH:
        return -1
    return weigh_escaped(data[first:last])


def number_of(choice: dict[str, Any]) -> int:
    """A choice's `index`; 0 for one that has none."""
    index = choice.get("index")
    return index if type(index) is int else 0


def weight_of(payload: bytes, choices: object) -> int:
    """The weight of what an event's `choices` generate, by its JSON where that tells sooner."""
    texts = [text for text in TEXT.findall(payload) if text]
    if len(texts) > 1:  # not all of them need count: some engines say the same in two places
        return weight_of_choices(payload, choices)
    return weigh_escaped(texts[0]) if texts else 0


def without_usage(payload: bytes, members: dict[str, Any], place: Optional[tuple[int, int]]) -> bytes:
    """An event that has `usage`, without it: all else as it came.

    `place`: where its value stands, if that is known. Where it is not and cannot be told, the event is written anew.
    """
    if place is None and payload.count(b'"usage"') == 1:
        # Quotes are escaped in strings: the only such key is the event's own, if its value is the same.
        key = _USAGE.search(payload)
        if key is not None:
            rest = payload[key.end() :].decode("utf-8", "surrogateescape")
            value, size = _decode(rest)
            if value == members["usage"]:
                place = key.end(), key.end() + len(rest[:size].encode("utf-8", "surrogateescape"))
    if place is None:
        return dump_with_nulls({key: value for key, value in members.items() if key != "usage"})
    begin = payload.rfind(b'"', 0, payload.rfind(b'"', 0, place[0]))
    before, behind = payload[:begin], payload[place[1] :].lstrip(BLANK)
    if behind.startswith(b","):
        return before + behind[1:].lstrip(BLANK)
    return before.rstrip(BLANK).removesuffix(b",") + behind


def error_in(event: Any) -> Words:
    """An engine's own words for the error that an event reports, or is."""
    error = event.get("error") or event if isinstance(event, dict) else event
    if isinstance(error, Span):
        return Words("a long one", {}, None)
    words = words_of(event if isinstance(event, dict) else {"error": error})
    return words if words.message else words._replace(message=tidy(json.dumps(error)))
