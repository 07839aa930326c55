"""Numbers that JSON has no words for, in what engines send: `NaN`, `Infinity`, `-Infinity` become null. Pure functions.

Python's json writes them unless told not to, so engines written in it do (log probabilities, mostly). A text is looked
at in slices, by what bytes can do as a whole: no step of Python for each string or number, and others get the
interpreter's lock between.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from gateway.upstream.skim import SLICE_BYTES, Text

_WORDS = (b"NaN", b"Infinity")
_WORD_BEGUN = re.compile(rb"[-A-Za-z]{1,9}\Z")  # what the next slice may go on with
# In place of escapes, while strings are told from the rest; none of them may stand in JSON.
_ESCAPES = ((b"\\\\", b"\1\1"), (b'\\"', b"\2\2"))
_MARKS = re.compile(rb"[\1\2]")


def has_nonfinite(text: Text) -> bool:
    """Whether there may be such a number in a JSON text; cheap."""
    if len(text) <= SLICE_BYTES:
        return text.find(b"NaN") >= 0 or text.find(b"Infinity") >= 0
    overlap = len(b"Infinity") - 1
    return any(
        text.find(word, start, start + SLICE_BYTES + overlap) >= 0
        for start in range(0, len(text), SLICE_BYTES)
        for word in _WORDS
    )


def with_nulls(text: Text) -> bytes:
    """The JSON text with null for each such number; all else stays as it is, byte for byte."""
    return b"".join(pieces_with_nulls(text))


def dump_with_nulls(value: object) -> bytes:
    """Compact JSON of what an engine has said: 1e999 is JSON, but no number that could be written again; null, then."""
    text = json.dumps(value, separators=(",", ":")).encode()
    return with_nulls(text) if has_nonfinite(text) else text


def pieces_with_nulls(text: Text) -> Iterator[bytes]:
    """The same in pieces, for a text that is not to be held three times."""
    start, in_string = 0, False
    while start < len(text):
        piece = bytes(text[start : start + SLICE_BYTES])
        if start + len(piece) < len(text):
            piece = piece[: _whole(piece)]
        start += len(piece)
        piece, in_string = _replaced(piece, in_string)
        yield piece


def _whole(piece: bytes) -> int:
    """How much of a piece can be looked at without what follows: it ends in no word and in no escape."""
    begun = _WORD_BEGUN.search(piece, len(piece) - 9)
    end = len(piece) if begun is None else begun.start()
    backslashes = end - len(piece[:end].rstrip(b"\\"))
    return (end - backslashes % 2) or len(piece)


def _replaced(piece: bytes, in_string: bool) -> tuple[bytes, bool]:
    """The piece with nulls, and whether it ends in a string."""
    masked = original = piece
    if piece.find(b"\\") >= 0 and not _MARKS.search(piece):  # with a mark it is no JSON, and stays what it is
        for escape, mark in _ESCAPES:
            masked = masked.replace(escape, mark)
    parts = masked.split(b'"')
    ends_in_string = in_string == (len(parts) % 2 == 1)
    if piece.find(b"NaN") < 0 and piece.find(b"Infinity") < 0:
        return piece, ends_in_string
    first = 1 if in_string else 0
    outside = b'"'.join(parts[first::2])
    # Also a part of a longer word, which is no JSON before and after.
    changed = outside
    for word in _WORDS:
        changed = changed.replace(b"-" + word, b"null").replace(word, b"null")
    if changed == outside:
        return piece, ends_in_string
    parts[first::2] = changed.split(b'"')
    piece = b'"'.join(parts)
    if masked is not original:
        for escape, mark in _ESCAPES:
            piece = piece.replace(mark, escape)
    return piece, ends_in_string
