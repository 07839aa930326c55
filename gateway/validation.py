"""From a body's bytes to the JSON object of a request.

Pure functions. JSON is read strictly: UTF-8 only, no NaN, no infinities, no duplicate keys, bounded depth, digits and
number of values, so that an engine's parser cannot read something else than was checked here. Which fields it may
have is said, and checked, by the table in upstream/fields.py.
"""

from __future__ import annotations

from typing import Any

from gateway import jsonbounds
from gateway.errors import RequestRefused
from gateway.jsontext import read_strictly

DEPTH_MAX = 128
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
        value = read_strictly(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RequestRefused("invalid_json", f"the body is not UTF-8 (byte {error.start})") from None
    except (ValueError, RecursionError) as error:
        raise RequestRefused("invalid_json", f"the body is not valid JSON: {error}") from None
    if type(value) is not dict:
        raise RequestRefused("invalid_body", "the body must be a JSON object")
    return value
