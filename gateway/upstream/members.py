"""Members taken out of a JSON object's text, whose other bytes stay as they came. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Collection

_SPACE = re.compile(r"[ \t\n\r]*")
_read = json.JSONDecoder().raw_decode


def without_members(body: bytes, keys: Collection[str]) -> bytes:
    """The object `body` without its own members `keys`, each with the comma and the space that go with it.

    `body` is known to be a valid JSON object in UTF-8, not empty and with no key twice. Its values are read again, one
    after another, which takes about as long as writing them anew would.
    """
    text = body.decode()
    start = _next(text, text.index("{") + 1)
    kept = [text[:start]]
    between = ""  # what stands in front of a member and behind the one before; nothing goes in front of the first
    while True:
        key, end = _read(text, start)
        _, end = _read(text, _next(text, _next(text, end) + 1))  # behind the colon
        if key not in keys:
            kept += (between, text[start:end])
        comma = _next(text, end)
        if text[comma] != ",":
            return ("".join(kept) + text[end:]).encode()
        start = _next(text, comma + 1)
        between = text[end:start] if len(kept) > 1 else ""


def _next(text: str, position: int) -> int:
    """Where the next character stands that is no space."""
    found = _SPACE.match(text, position)
    assert found is not None  # it may be empty
    return found.end()
