"""What fits a JSON Schema, and what does not: the values that a mock engine fills in where a schema is given.

Pure. Knows the keywords that structured outputs use: a `pattern`, `not` or `if` is not looked at. Bounded for any
schema: a value has at most some ten thousand parts, and recursion ends as early as the schema lets it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote

_MOST_PARTS = 10_000
_DEEP = 6  # from here on only what must be
_DEEPEST = 40
_MOST_LETTERS = 1 << 16
_LARGEST = 2**53
_TEXT_BY_FORMAT = {
    "date": "2026-01-31",
    "date-time": "2026-01-31T12:00:00Z",
    "time": "12:00:00Z",
    "duration": "PT1H",
    "email": "mock@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.com/mock",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def instance(schema: object) -> Any:
    """Return a value that fits `schema`: all properties, the first of an enum or of alternatives, texts that are their
    property's name."""
    return _Maker(schema).value(schema, "text", 0)


def misfit(value: Any) -> Any:
    """Return `value` with a fault of type: in its first property, if it has any, else as a whole."""
    if isinstance(value, dict) and value:
        first = next(iter(value))
        return {**value, first: _other(value[first])}
    return _other(value)


def _other(value: Any) -> Any:
    return "misfit" if isinstance(value, (dict, list)) else ["misfit"]


# What is done to the text of an answer that is to be JSON, by the behaviour's name.
HABITS: dict[str, Callable[[str], str]] = {
    "code_fence": lambda text: f"```json\n{text}\n```",
    "trailing_comma": lambda text: f"{text[:-1]},{text[-1:]}" if text[-1:] in ("}", "]") and len(text) > 2 else text,
    "prose_before": lambda text: f"Here is the JSON you asked for: {text}",
}


def written(value: Any, habit: str) -> str:
    """Return the JSON text of `value`, as the behaviour `habit` has it written."""
    return HABITS.get(habit, str)(json.dumps(value, ensure_ascii=False))


class _Maker:
    """Makes one value; what is left of its parts is counted down."""

    def __init__(self, root: object) -> None:
        self._root = root
        self._left = _MOST_PARTS

    def value(self, schema: object, name: str, depth: int) -> Any:
        self._left -= 1
        schema = self._plain(schema)
        if "const" in schema:
            return schema["const"]
        if isinstance(schema.get("enum"), list) and schema["enum"]:
            return schema["enum"][0]
        for word in ("anyOf", "oneOf"):
            if depth <= _DEEPEST and isinstance(schema.get(word), list) and schema[word]:
                rest = {key: value for key, value in schema.items() if key != word}
                return self.value({"allOf": [rest, self._choice(schema[word], depth)]}, name, depth + 1)
        kind = schema.get("type")
        kind = kind[0] if isinstance(kind, list) and kind else kind
        if kind == "object" or (kind is None and "properties" in schema):
            return self._object(schema, depth)
        if kind == "array" or (kind is None and ("items" in schema or "prefixItems" in schema)):
            return self._array(schema, name, depth)
        if kind in ("integer", "number"):
            return _number(schema, whole=kind == "integer")
        if kind in ("boolean", "null"):
            return True if kind == "boolean" else None
        return _text(schema, name)

    def _spent(self, depth: int) -> bool:
        return depth >= _DEEP or self._left <= 0

    def _plain(self, schema: object) -> dict[str, Any]:
        """Return `schema` without references, and with what `allOf` adds."""
        found: dict[str, Any] = {}
        waiting, looked_at = [schema], 0
        while waiting and looked_at < _DEEPEST:
            looked_at += 1
            part = waiting.pop()
            if not isinstance(part, dict):
                continue
            if isinstance(part.get("$ref"), str):
                waiting.append(self._at(part["$ref"]))
            if isinstance(part.get("allOf"), list):
                waiting += reversed(part["allOf"])
            for key, value in part.items():
                if key == "properties" and isinstance(value, dict):
                    found[key] = {**found.get(key, {}), **value}
                elif key == "required" and isinstance(value, list):
                    found[key] = [*found.get(key, []), *value]
                elif key not in ("$ref", "allOf"):
                    found.setdefault(key, value)
        return found

    def _at(self, pointer: str) -> object:
        """Return what a reference within the schema points at; {} for any other."""
        found = self._root
        for step in unquote(pointer).split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and step.isascii() and step.isdigit() and int(step[:9]) < len(found):
                found = found[int(step[:9])]
            else:
                found = found.get(step, {}) if isinstance(found, dict) else {}
        return found

    def _choice(self, choices: list[Any], depth: int) -> object:
        """Return the first alternative; deep down, where nothing will do, that."""
        nothing = [one for one in choices if isinstance(one, dict) and one.get("type") == "null"]
        return nothing[0] if nothing and self._spent(depth) else choices[0]

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if depth > _DEEPEST or not isinstance(properties, dict):
            return {}
        known = {name: 0 for name in required if isinstance(name, str)}
        names = [name for name in properties if name in known or not self._spent(depth)]
        names += [name for name in known if name not in properties]
        return {name: self.value(properties.get(name, {}), name, depth + 1) for name in names}

    def _array(self, schema: dict[str, Any], name: str, depth: int) -> list[Any]:
        if depth > _DEEPEST:
            return []
        first = schema.get("prefixItems")
        parts = list(first) if isinstance(first, list) else []
        least, most = _count(schema, "minItems", 0), _count(schema, "maxItems", _MOST_PARTS)
        typical = len(parts) if parts or schema.get("items") is False else 1
        wanted = max(least, 0 if self._spent(depth) else typical)
        items = schema.get("items", {})
        parts += [items] * (min(wanted, _MOST_PARTS) - len(parts))
        return list(self._items(parts[: min(wanted, most)], name, depth))

    def _items(self, parts: list[Any], name: str, depth: int) -> Iterator[Any]:
        for part in parts:
            if self._left > 0:
                yield self.value(part, name, depth + 1)


def _count(schema: dict[str, Any], name: str, otherwise: int) -> int:
    value = schema.get(name)
    return value if type(value) is int and value >= 0 else otherwise


def _number(schema: dict[str, Any], whole: bool) -> Any:
    """Return the least number within the bounds, or 1 where that is within them."""

    def bound(name: str, otherwise: float) -> Any:
        value: Any = schema.get(name)
        return value if type(value) in (int, float) and abs(value) <= _LARGEST else otherwise

    step = max(bound("multipleOf", 1), 0) or 1
    low = max(bound("minimum", -math.inf), bound("exclusiveMinimum", -math.inf))
    high = min(bound("maximum", math.inf), bound("exclusiveMaximum", math.inf))
    start = low if low > 1 else 1 if high > 1 else high if low == -math.inf else low
    if not math.isfinite(start / step):
        return 1
    value = math.ceil(start / step) * step
    if value > high or value == schema.get("exclusiveMaximum"):
        value = math.floor(high / step) * step
        value -= step if value == schema.get("exclusiveMaximum") else 0
    if value < low or value == schema.get("exclusiveMinimum"):
        value = value + step if value + step < high or whole else (low + high) / 2
    return int(value) if whole or value == int(value) else value


def _text(schema: dict[str, Any], name: str) -> str:
    text = _TEXT_BY_FORMAT.get(str(schema.get("format")), name)
    least = min(_count(schema, "minLength", 0), _MOST_LETTERS)
    return text.ljust(least, "x")[: _count(schema, "maxLength", _MOST_LETTERS)]
