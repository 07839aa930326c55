"""JSON values that somebody else has written, as what they have to be. Pure functions."""

from __future__ import annotations

import json
import math
from typing import Any, Optional

from gateway import jsonbounds
from gateway.dialects.dialect import Json
from gateway.errors import RequestRefused
from gateway.jsontext import utf8

DEPTH_MAX = 128
VALUES_MAX = 1_000_000
DIGITS_MAX = 1000


def refused(path: str, what: str, code: str = "") -> RequestRefused:
    """What is wrong with the field at `path`; without a `code`, that of what it stands in."""
    if not code:
        code = "invalid_messages" if path.startswith("messages") else "invalid_body"
    return RequestRefused(code, f"{path} {what}", param=path)


def not_supported(path: str, what: str) -> RequestRefused:
    """The field at `path` is as it should be, but cannot be said in the other dialect."""
    return refused(path, what, "not_supported")


def text_at(holder: Json, key: str, path: str) -> str:
    """The text that must be there. Raises RequestRefused."""
    value = holder.get(key)
    if type(value) is not str:
        raise refused(f"{path}.{key}", "must be a text")
    return value


def object_at(holder: Json, key: str, path: str) -> Json:
    """The object that must be there. Raises RequestRefused."""
    value = holder.get(key)
    if type(value) is not dict:
        raise refused(f"{path}.{key}", "must be an object")
    return value


def objects(value: Any) -> list[Json]:
    """The objects in a list; what is none, and any other value, counts as absent."""
    return [item for item in value if type(item) is dict] if type(value) is list else []


def text(value: Any) -> str:
    """A text; anything else counts as absent."""
    return value if type(value) is str else ""


def count(value: Any) -> int:
    """A number of something; anything else counts as none."""
    return value if type(value) is int and value >= 0 else 0


def index(value: Any) -> Optional[int]:
    """A place in a list; None: it is none."""
    return value if type(value) is int and value >= 0 else None


def decode(words: str, values_max: int = VALUES_MAX) -> Any:
    """The JSON value in what an engine, or a model, has written; numbers that JSON has no words for are null.

    Raises ValueError, also for what is nested too deep, or has too many values, to be written again.
    """
    if jsonbounds.passed(utf8(words), values_max, DEPTH_MAX) is not None:
        raise ValueError("too many values, or nested too deep")
    return json.loads(words, parse_int=_integer, parse_float=_float, parse_constant=_no_number)


def _integer(digits: str) -> int:
    if len(digits) > DIGITS_MAX:
        raise ValueError(f"a number has more than {DIGITS_MAX} digits")
    return int(digits)


def _float(digits: str) -> Optional[float]:
    value = float(digits)
    return value if math.isfinite(value) else None


def _no_number(_: str) -> None:
    return None


def dump(value: object) -> bytes:
    """Compact JSON, ASCII only."""
    return json.dumps(value, separators=(",", ":")).encode()
