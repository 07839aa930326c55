"""From a body's bytes to the JSON object of a request.

Pure functions. JSON is read strictly: UTF-8 only, no NaN, no infinities, no duplicate keys, bounded depth, digits and
number of values, so that an engine's parser cannot read something else than was checked here. Which fields it may
have is said, and checked, by the table in upstream/fields.py.
"""

from __future__ import annotations

import json
from typing import Any

from gateway import jsonbounds
from gateway.errors import RequestRefused
from gateway.jsontext import decode_with

DEPTH_MAX = 128
DIGITS_MAX = 1000
VALUES_MAX = 1_000_000


def parse_json(body: bytes, values_max: int = VALUES_MAX) -> dict[str, Any]:
    """The JSON object in `body`, of at most that many values and keys.

    Raises `invalid_json`, or `invalid_body` when it is not an object.
    """
    # Before it is parsed: parsers recurse, a thread's stack is small, and each value takes many times its own bytes.
    passed = jsonbounds.passed(body, values_max, DEPTH_MAX)
    if passed == "depth":
        raise RequestRefused("invalid_json", f"the JSON is nested deeper than {DEPTH_MAX} levels")
    if passed is not None:
        message = f"the JSON has more than {values_max} values, keys counted (MAX_JSON_VALUES)"
        raise RequestRefused("invalid_json", message)
    try:
        value = _decode(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RequestRefused("invalid_json", f"the body is not UTF-8 (byte {error.start})") from None
    except (ValueError, RecursionError) as error:
        raise RequestRefused("invalid_json", f"the body is not valid JSON: {error}") from None
    if type(value) is not dict:
        raise RequestRefused("invalid_body", "the body must be a JSON object")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:100]!r} stands twice in one object")
            seen.add(key)
    return result


def _integer(digits: str) -> int:
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


_decode = decode_with(
    json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant)
)
