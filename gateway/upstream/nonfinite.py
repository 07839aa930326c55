"""Numbers that JSON has no words for, in what engines send: `NaN`, `Infinity`, `-Infinity` become null. Pure functions.

Python's json writes them unless told not to, so engines written in it do (log probabilities, mostly).
"""

from __future__ import annotations

import re
from typing import Union

Text = Union[bytes, bytearray]

# A string is taken whole, so that nothing in it is looked at; what has no end is left as it is.
_STRING_OR_NUMBER = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|-?\b(?:NaN|Infinity)\b', re.S)


def has_nonfinite(text: Text) -> bool:
    """Whether there may be such a number in a JSON text; cheap."""
    return text.find(b"NaN") >= 0 or text.find(b"Infinity") >= 0


def with_nulls(text: Text) -> bytes:
    """The JSON text with null for each such number; all else stays as it is, byte for byte."""
    return _STRING_OR_NUMBER.sub(lambda found: found[0] if found[0][:1] == b'"' else b"null", text)
