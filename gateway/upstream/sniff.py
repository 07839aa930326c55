"""What a body is, judged by how it begins: several engines label it as something else, or not at all.

Pure functions; no state.
"""

from __future__ import annotations

from typing import Optional, Union

JSON = "json"
EVENTS = "events"
EMPTY = "empty"
OTHER = "other"

BOM = b"\xef\xbb\xbf"
BLANK_MAX_BYTES = 65_536  # before that by which it is judged
BLANK = b" \t\r\n"

# How a line of an event stream begins: with one of the fields that there are, or as a comment.
_BEGINNINGS = (b"data:", b"event:", b"id:", b"retry:", b":")


def kind_of(begin: Union[bytes, bytearray], whole: bool) -> Optional[str]:
    """JSON, EVENTS, EMPTY or OTHER, for a body of which `begin` has come, `whole` or not; None: too little to tell."""
    if begin[:1] == b"{":  # the usual
        return JSON
    text = bytes(begin[:BLANK_MAX_BYTES])
    if text[:3] == BOM:
        text = text[3:]
    elif BOM.startswith(text) and not whole:
        return None
    text = text.lstrip(BLANK)
    if not text and whole and len(begin) <= BLANK_MAX_BYTES:
        return EMPTY
    if text[:1] in (b"{", b"["):
        return JSON
    if text.startswith(_BEGINNINGS):
        return EVENTS
    unclear = any(beginning.startswith(text) for beginning in _BEGINNINGS)
    return None if unclear and not whole and len(begin) < BLANK_MAX_BYTES else OTHER
