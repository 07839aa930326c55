"""How many values a JSON text holds and how deep they are nested, found out before it is parsed.

Pure functions. A parser takes 50 to 250 bytes and up to a microsecond for each value and each key, however small it is
in the text, and recurses for each level. The text is looked at in slices, by what bytes can do as a whole: that takes
little memory beside it and no step of Python for each bracket, and gives the interpreter's lock away between slices.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Optional

SLICE_BYTES = 1 << 16

_SPACE = b" \t\r\n"
_BRACKETS = b"[]{}"
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in _BRACKETS)
_STEPS = bytes(1 if byte in b"[{" else 255 for byte in range(256))  # as signed bytes: 1 and -1


def passed(data: bytes, values_max: int, depth_max: int) -> Optional[str]:
    """Which bound a JSON text passes first: "values" or "depth"; None: neither.

    Lists and objects are values too, and a key counts as one. Exact for what is JSON; of anything else, for what stands
    before the fault that a parser stops at. Linear in time, whatever the text holds.
    """
    if len(data) <= values_max and len(data) <= SLICE_BYTES:
        brackets = data.count(b"[") + data.count(b"{")
        few = True
    else:
        brackets = _count(data, b"[") + _count(data, b"{")
        few = 1 + brackets + _count(data, b",") + _count(data, b":") <= values_max
    if few and brackets <= depth_max:
        return None  # the usual: were all of them outside strings, they would still be within bounds
    return _look(data, values_max, depth_max)


def takes_long(data: bytes, marks_max: int) -> bool:
    """Whether a text may hold so many values that parsing it takes a while: its commas and brackets exceed a number."""
    marks = data.count(b",")
    return marks > marks_max or marks + data.count(b"[") + data.count(b"{") > marks_max


def _count(data: bytes, mark: bytes) -> int:
    return sum(data.count(mark, start, start + SLICE_BYTES) for start in range(0, len(data), SLICE_BYTES))


def _look(data: bytes, values_max: int, depth_max: int) -> Optional[str]:
    # The text is a value; then one for each comma and for what a list or an object begins with, and one for each key.
    values, depth = 1, 0
    in_string = False
    last = b""  # the bracket that the slice before ended with
    start = 0
    while start < len(data):
        end = start + SLICE_BYTES
        part = data[start:end]
        if (len(part) - len(part.rstrip(b"\\"))) % 2:
            end += 1  # an escape is not cut in two, so that each slice begins with none
            part = data[start:end]
        start = end
        if b"\\" in part:  # behind this each quote begins or ends a string
            part = part.replace(b"\\\\", b"").replace(b'\\"', b"")
        pieces = part.split(b'"')
        # What stands outside strings, with a quote for each of them.
        marks = b'"'.join(pieces[1::2] if in_string else pieces[::2])
        if in_string:
            marks = b'"' + marks
        in_string ^= len(pieces) % 2 == 0
        if in_string:
            marks += b'"'
        del pieces
        marks = marks.translate(None, _SPACE)
        opened = marks.count(b"[") + marks.count(b"{")
        whole = last + marks
        values += marks.count(b",") + marks.count(b":") + opened - whole.count(b"[]") - whole.count(b"{}")
        if depth + opened > depth_max:
            steps = memoryview(marks.translate(_STEPS, _NO_BRACKETS)).cast("b")
            if depth + max(accumulate(steps)) > depth_max:
                return "depth"
        depth += opened - marks.count(b"]") - marks.count(b"}")
        last = whole[-1:] if whole[-1:] in (b"[", b"{") else b""
        if values - len(last) > values_max:  # what has just been opened may still prove empty
            return "values"
    return "values" if values > values_max else None
