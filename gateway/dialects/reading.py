"""Reading JSON that others have written: a client's request, whose faults are named; an answer, whose are passed by.

Pure functions.
"""

from __future__ import annotations

import json
import math
from typing import Any, Optional, TypeVar

from gateway import jsonbounds
from gateway.errors import RequestRefused
from gateway.jsontext import bounded_integer, utf8

DEPTH_MAX = 128
VALUES_MAX = 1_000_000

T = TypeVar("T", str, bool, list[Any], dict[str, Any])

_CODES = {
    **{
        name: f"invalid_{name}"
        for name in ("input", "max_tokens", "messages", "model", "stream", "temperature", "top_p")
    },
    "max_output_tokens": "invalid_max_tokens",
    "stop_sequences": "invalid_stop",
}
_WHAT: dict[type, str] = {str: "a text", bool: "true or false", list: "a list", dict: "an object"}


def refused(where: str, what: str, code: str = "") -> RequestRefused:
    """The fault of a request at the JSON path `where`; `what` goes on behind it: "must be …". Without a `code`, that of
    the field in which it stands."""
    if not code:
        code = _CODES.get(where.partition(".")[0].partition("[")[0], "invalid_body")
    return RequestRefused(code, f"{where} {what}", param=where)


def unsupported(where: str, what: str) -> RequestRefused:
    """Of a request that may be right elsewhere, and asks for what no translation can give."""
    return refused(where, what, "not_supported")


def required(value: Any, kind: type[T], where: str) -> T:
    """`value`, which must be of this type. Raises RequestRefused."""
    if type(value) is not kind:
        raise refused(where, f"must be {_WHAT[kind]}")
    return value


def optional(value: Any, kind: type[T], where: str) -> Optional[T]:
    """`value`, which must be null or of this type. Raises RequestRefused."""
    return None if value is None else required(value, kind, where)


def objects(value: Any, where: str) -> list[tuple[str, dict[str, Any]]]:
    """The objects of a list, each with its path. Raises RequestRefused."""
    items = required(value, list, where)
    return [(f"{where}[{i}]", required(item, dict, f"{where}[{i}]")) for i, item in enumerate(items)]


# --- what counts as absent where it is malformed -------------------------------------------------------------------


def text_in(value: Any, *keys: str) -> str:
    """The first of these keys that is a text and not empty; "" if none is, or `value` is no object."""
    if type(value) is dict:
        for key in keys:
            text = value.get(key)
            if type(text) is str and text:
                return text
    return ""


def object_in(value: Any, key: str) -> dict[str, Any]:
    """An object's member that is one itself; else an empty one."""
    member = value.get(key) if type(value) is dict else None
    return member if type(member) is dict else {}


def objects_in(value: Any, key: str) -> list[dict[str, Any]]:
    """The objects in an object's list."""
    member = value.get(key) if type(value) is dict else None
    return [item for item in member if type(item) is dict] if type(member) is list else []


def count_in(value: Any, key: str) -> int:
    """An object's member that is a number of things; else 0."""
    member = value.get(key) if type(value) is dict else None
    return member if type(member) is int and member > 0 else 0


def index_in(value: Any, key: str) -> Optional[int]:
    """An object's member that is a place in a list; else None."""
    member = value.get(key) if type(value) is dict else None
    return member if type(member) is int and member >= 0 else None


# --- what an engine, or a model, has written as a text --------------------------------------------------------------


def decode(words: str, values_max: int = VALUES_MAX) -> Any:
    """A JSON value; numbers that JSON has no words for are null.

    Raises ValueError, also for what is nested too deep, or has too many values, to be written again.
    """
    if jsonbounds.passed(utf8(words), values_max, DEPTH_MAX) is not None:
        raise ValueError("too many values, or nested too deep")
    return json.loads(words, parse_int=bounded_integer, parse_float=_float, parse_constant=_no_number)


def _float(digits: str) -> Optional[float]:
    value = float(digits)
    return value if math.isfinite(value) else None


def _no_number(_: str) -> None:
    return None
