"""Objects of the engines file, key by key: what turns a JSON value into what a dataclass wants, or notes its faults.

Owns how an object is read against the rows of keys that it may have, and how what is wrong is named: all faults at
once, each with its JSON path. Which keys there are stands in fleet.py. No state, no lock, no I/O.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any, Callable, NamedTuple

from gateway.configuration import JsonObject, duplicate_faults
from gateway.routing.checks import Check, quoted, step
from gateway.upstream.shaping import value_faults


class Bad:
    """Stands for a value whose faults are already noted."""


BAD = Bad()
# Turns a JSON value into what the dataclass wants, or notes faults (path first) and returns BAD.
Parser = Callable[[object, str, "list[str]"], object]


class Key(NamedTuple):
    """One key of an object in the engines file; `field` is the dataclass field it fills."""

    key: str
    parse: Parser
    field: str
    required: bool = False


def as_is(value: object, path: str, faults: list[str]) -> object:
    """Take a value as JSON gives it; null is a fault, because leaving the key out says the same."""
    if value is not None:
        return value
    faults.append(f"{path}: must not be null; leave the key out instead")
    return BAD


def as_tuple(value: object, path: str, faults: list[str]) -> object:
    """Take a list as a tuple; anything else goes on to the field's check, which refuses it."""
    return tuple(value) if isinstance(value, list) else as_is(value, path, faults)


def as_fields(value: object, path: str, faults: list[str]) -> object:
    """Take an object of fields of requests with their values, of the types that they have there."""
    if not isinstance(value, JsonObject):
        return as_is(value, path, faults)
    wrong = [*duplicate_faults(value, path), *(f"{step(path, name)}: {what}" for name, what in value_faults(value))]
    faults.extend(wrong)
    return BAD if wrong else dict(value)


def fields_of(
    value: object,
    path: str,
    keys: Sequence[Key],
    checks: Mapping[str, Check],
    faults: list[str],
    unfit: Container[str] = (),
    instead: Sequence[str] = (),
) -> dict[str, Any] | None:
    """Read one object into dataclass fields; None when a fault was noted. `unfit`: keys that are known elsewhere;
    `instead`: keys that would have made it another kind of object.
    """
    if not isinstance(value, JsonObject):
        faults.append(f"{path or 'the file'}: must be an object, not {quoted(value)}")
        return None
    noted_before = len(faults)
    faults.extend(duplicate_faults(value, path))
    rows = {row.key: row for row in keys}
    fields: dict[str, Any] = {}
    for key, item in value.items():
        here = step(path, key)
        row = rows.get(key)
        if row is None:
            why = "is for models with engines, not for those made of others" if key in unfit else "is not a known key"
            faults.append(f"{here}: {why}; known here: {', '.join((*rows, *instead))}")
            continue
        parsed = row.parse(item, here, faults)
        if parsed is not BAD and row.field in checks:
            faults.extend(here + fault for fault in checks[row.field](parsed))
        fields[row.field] = parsed
    for row in keys:
        if row.required and row.key not in value:
            faults.append(f"{step(path, row.key)}: is missing")
    return fields if len(faults) == noted_before else None
