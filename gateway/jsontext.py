"""Reading JSON texts with as few steps as the standard library's decoder allows. No state."""

from __future__ import annotations

import json
from json.scanner import c_make_scanner  # type: ignore[attr-defined]
from typing import Any, Callable

DIGITS_MAX = 1000
_SLICE_CHARS = 32  # PyPy copies all that is encoded so far for each half of a surrogate pair


def decode_with(decoder: json.JSONDecoder) -> Callable[[str], Any]:
    """What `decoder.decode` does, in one call of its scanner where the text is a value and nothing around it.

    (JSONDecoder.decode looks for white space before and behind the value in Python: 1.2 of 3.5 us for a usual answer.)
    """
    if c_make_scanner is None:  # an interpreter with its own json, which is quick without this
        return decoder.decode
    scan = decoder.scan_once  # type: ignore[attr-defined]

    def decode(text: str) -> Any:
        try:
            value, end = scan(text, 0)
        except StopIteration:
            return decoder.decode(text)  # white space comes first; or it is no JSON, and this one says where
        return value if end == len(text) else decoder.decode(text)

    return decode


def utf8(text: str) -> bytes:
    """A text in UTF-8, with halves of surrogate pairs as they are; in steady time however many there are."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        starts = range(0, len(text), _SLICE_CHARS)
        return b"".join([text[at : at + _SLICE_CHARS].encode("utf-8", "surrogatepass") for at in starts])


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:100]!r} stands twice in one object")
            seen.add(key)
    return result


def bounded_integer(digits: str) -> int:
    """The number that so many digits are. Raises ValueError for too many."""
    if len(digits) > DIGITS_MAX:
        raise ValueError(f"a number has more than {DIGITS_MAX} digits")
    return int(digits)


_INFINITIES = (float("inf"), float("-inf"))


def _float(digits: str) -> float:
    value = float(digits)
    if value in _INFINITIES:
        raise ValueError("a number is too large")
    return value


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


read_strictly = decode_with(
    json.JSONDecoder(object_pairs_hook=_object, parse_int=bounded_integer, parse_float=_float, parse_constant=_constant)
)
"""The value of a JSON text that every parser reads alike: no NaN, no infinities, no duplicate keys, bounded digits.

How deep it is nested is for the caller to bound. Raises ValueError, which says what is wrong, and RecursionError.
"""
