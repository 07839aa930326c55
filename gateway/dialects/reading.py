"""Reading JSON that others have written: a client's request, whose faults are named; an answer, whose are passed by.

Pure functions.
"""

from __future__ import annotations

from typing import Any, Optional, TypeVar

from gateway.errors import RequestRefused

T = TypeVar("T", str, bool, list[Any], dict[str, Any])

_WHAT: dict[type, str] = {str: "a text", bool: "true or false", list: "a list", dict: "an object"}


def refused(where: str, what: str, code: str = "invalid_body") -> RequestRefused:
    """The fault of a request at the JSON path `where`; `what` goes on behind it: "must be …"."""
    return RequestRefused(code, f"{where} {what}", param=where)


def unsupported(where: str, what: str) -> RequestRefused:
    """Of a request that may be right elsewhere, and asks for what no translation can give."""
    return refused(where, what, "not_supported")


def required(value: Any, kind: type[T], where: str, code: str = "invalid_body") -> T:
    """`value`, which must be of this type. Raises RequestRefused."""
    if type(value) is not kind:
        raise refused(where, f"must be {_WHAT[kind]}", code)
    return value


def optional(value: Any, kind: type[T], where: str, code: str = "invalid_body") -> Optional[T]:
    """`value`, which must be null or of this type. Raises RequestRefused."""
    return None if value is None else required(value, kind, where, code)


def objects(value: Any, where: str, code: str = "invalid_body") -> list[tuple[str, dict[str, Any]]]:
    """The objects of a list, each with its path. Raises RequestRefused."""
    items = required(value, list, where, code)
    return [(f"{where}[{i}]", required(item, dict, f"{where}[{i}]", code)) for i, item in enumerate(items)]


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
