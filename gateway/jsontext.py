"""Reading JSON texts with as few steps as the standard library's decoder allows. No state."""

from __future__ import annotations

import json
from json.scanner import c_make_scanner  # type: ignore[attr-defined]
from typing import Any, Callable


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
