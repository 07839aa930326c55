"""Whether a value fits a schema of the OpenAPI document: the few keywords that it uses, and no others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]
NOTES = {"description", "then", "if"}  # the last two are looked at together
_KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
    "number": (int, float),
    "integer": (int, float),
}


def fits(schema: Json, value: Any, components: Mapping[str, Json]) -> bool:
    """As JSON Schema 2020-12 has it. Raises AssertionError for a keyword that is not known here."""
    if "$ref" in schema:
        return fits(components[schema["$ref"].rpartition("/")[2]], value, components)
    if "if" in schema and fits(schema["if"], value, components) and not fits(schema["then"], value, components):
        return False
    return all(_holds(key, said, schema, value, components) for key, said in schema.items() if key not in NOTES)


def _holds(key: str, said: Any, schema: Json, value: Any, components: Mapping[str, Json]) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if key == "type":
        return any(_is(kind, value) for kind in ([said] if isinstance(said, str) else said))
    if key in ("enum", "const"):
        return any(_same(one, value) for one in (said if key == "enum" else [said]))
    if key == "anyOf":
        return any(fits(one, value, components) for one in said)
    if key == "not":
        return not fits(said, value, components)
    if key == "minimum":
        return not is_number or bool(value >= said)
    if key == "maximum":
        return not is_number or bool(value <= said)
    if key == "exclusiveMaximum":
        return not is_number or bool(value < said)
    if key in ("minLength", "maxLength", "pattern"):
        return not isinstance(value, str) or _text_holds(key, said, value)
    if key in ("minItems", "maxItems", "items"):
        return not isinstance(value, list) or _list_holds(key, said, value, components)
    assert key in ("required", "properties", "additionalProperties"), key
    return not isinstance(value, dict) or _object_holds(key, said, schema, value, components)


def _is(kind: str, value: Any) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _KINDS[kind])


def _same(one: Any, value: Any) -> bool:
    return bool(one == value) and isinstance(one, bool) == isinstance(value, bool)


def _text_holds(key: str, said: Any, value: str) -> bool:
    if key == "pattern":
        return re.search(said, value) is not None
    return len(value) >= said if key == "minLength" else len(value) <= said


def _list_holds(key: str, said: Any, value: list[Any], components: Mapping[str, Json]) -> bool:
    if key == "items":
        return all(fits(said, one, components) for one in value)
    return len(value) >= said if key == "minItems" else len(value) <= said


def _object_holds(key: str, said: Any, schema: Json, value: Json, components: Mapping[str, Json]) -> bool:
    if key == "required":
        return value.keys() >= set(said)
    if key == "properties":
        return all(fits(one, value[name], components) for name, one in said.items() if name in value)
    others = [one for name, one in value.items() if name not in schema.get("properties", {})]
    return not others if said is False else said is True or all(fits(said, one, components) for one in others)
