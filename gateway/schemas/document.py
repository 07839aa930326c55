"""A schema as a document: where the schemas within it stand, and where its references lead.

Pure. Every keyword is known here by what it holds; one that is not is refused, as is a reference to another document:
nothing is ever fetched. Bounded in the document's size and depth; nothing here recurses.
"""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple, Optional

from gateway.schemas.faults import SchemaRefused, quoted, steps_text

Steps = tuple[Any, ...]
"""Names and numbers that lead from a document's whole to a value within it."""

VALUES_MAX = 50_000
"""Values in a document, names counted."""
PLACES_MAX = 6_000
"""Schemas in a document: each takes some 30 us to compile."""
DEPTH_MAX = 128
"""Lists and objects within each other."""
INTEGER_MAX = 10**1000
CHAIN_MAX = 64
"""Schemas that apply to one and the same value within each other."""

HOLD_ONE = frozenset(
    (
        *("additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then"),
        *("unevaluatedItems", "unevaluatedProperties"),
    )
)
HOLD_LISTS = frozenset(("allOf", "anyOf", "oneOf", "prefixItems"))
HOLD_NAMED = frozenset(("$defs", "definitions", "dependentSchemas", "patternProperties", "properties"))
IN_PLACE = frozenset(("allOf", "anyOf", "dependentSchemas", "else", "if", "not", "oneOf", "then"))
"""Their schemas apply to the same value as the schema that they stand in; so does what a `$ref` leads to."""

REFERENCES = frozenset(("$anchor", "$id", "$ref", "$schema"))
ASSERTIONS = frozenset(
    (
        *("const", "dependentRequired", "enum", "exclusiveMaximum", "exclusiveMinimum", "format", "maxContains"),
        *("maxItems", "maxLength", "maxProperties", "maximum", "minContains", "minItems", "minLength"),
        *("minProperties", "minimum", "multipleOf", "pattern", "required", "type", "uniqueItems"),
    )
)
ANNOTATIONS = frozenset(
    (
        *("$comment", "contentEncoding", "contentMediaType", "contentSchema", "default", "deprecated", "description"),
        *("examples", "readOnly", "title", "writeOnly"),
        # OpenAPI's, which says that they change nothing about what fits.
        *("discriminator", "example", "externalDocs", "xml"),
    )
)
KEYWORDS = HOLD_ONE | HOLD_LISTS | HOLD_NAMED | REFERENCES | ASSERTIONS | ANNOTATIONS

# What an older draft says otherwise, it says with keywords or values that are refused here; but `$ref` beside others,
# which some ignored.
_DRAFTS = re.compile(r"https?://json-schema\.org/(?:draft/2020-12|draft/2019-09|draft-0[67])/schema#?")
_URI = re.compile(r"(?:([^:/?#]+):)?(?://([^/?#]*))?([^?#]*)(?:\?([^#]*))?", re.DOTALL)
_ANCHOR = re.compile(r"[A-Za-z_][A-Za-z0-9._-]*")
_ESCAPED = re.compile(r"(?:%[0-9A-Fa-f]{2})+")


class Place(NamedTuple):
    """A schema within the document."""

    steps: Steps
    schema: Any
    base: str
    """The URI that references within it are relative to."""


class Document:
    """The schemas of a document (`places`, by their steps) and what its references lead to (`target`).

    Raises SchemaRefused for a keyword that cannot be checked, a reference that leads nowhere or back to itself without
    going into the value, and whatever is no schema.
    """

    def __init__(self, document: Any) -> None:
        _refuse_beyond_bounds(document)
        self._document = document
        self.places: dict[Steps, Place] = {}
        self._resources: dict[str, Steps] = {"": ()}
        self._anchors: dict[tuple[str, str], Steps] = {}
        waiting = [Place((), document, "")]
        while waiting:
            place = self._enter(waiting.pop())
            self.places[place.steps] = place
            if len(self.places) > PLACES_MAX:
                raise SchemaRefused("$", f"more than {PLACES_MAX} schemas stand within this one")
            waiting.extend(_within(place))
        self._targets = {steps: self._resolve(place) for steps, place in self.places.items() if _has_ref(place)}
        self._refuse_loops()

    def target(self, steps: Steps) -> Steps:
        """Where the `$ref` of a schema leads."""
        return self._targets[steps]

    def _enter(self, place: Place) -> Place:
        """The place with its own base; keeps its `$id` and `$anchor`."""
        steps, schema, base = place
        if type(schema) is bool:
            return place
        if type(schema) is not dict:
            raise SchemaRefused(steps_text(steps), "a schema must be an object, true or false")
        for keyword in schema:
            if keyword not in KEYWORDS and not keyword.startswith("x-"):
                raise SchemaRefused(steps_text((*steps, keyword)), f"the keyword {quoted(keyword)} is not supported")
        for keyword in REFERENCES & schema.keys():
            if type(schema[keyword]) is not str:
                raise SchemaRefused(steps_text((*steps, keyword)), "must be a string")
        if "$schema" in schema and _DRAFTS.fullmatch(schema["$schema"]) is None:
            raise SchemaRefused(steps_text((*steps, "$schema")), "is not supported; 2020-12 is")
        if "$id" in schema:
            uri, _, fragment = join(base, schema["$id"]).partition("#")
            if fragment or (steps and uri in self._resources):
                raise SchemaRefused(steps_text((*steps, "$id")), "stands twice, or has a fragment")
            base = uri
            self._resources[uri] = steps
        if "$anchor" in schema:
            anchor = schema["$anchor"]
            if _ANCHOR.fullmatch(anchor) is None or (base, anchor) in self._anchors:
                raise SchemaRefused(steps_text((*steps, "$anchor")), "stands twice, or is no plain name")
            self._anchors[base, anchor] = steps
        return Place(steps, schema, base)

    def _resolve(self, place: Place) -> Steps:
        reference = place.schema["$ref"]
        where = steps_text((*place.steps, "$ref"))
        uri, _, fragment = join(place.base, reference).partition("#")
        resource = self._resources.get(uri)
        if resource is None:
            raise SchemaRefused(where, f"{quoted(reference)} leads out of this document; nothing is fetched")
        fragment = _ESCAPED.sub(_unescaped, fragment)
        steps: Optional[Steps]
        if not fragment:
            steps = resource
        elif fragment.startswith("/"):
            steps = self._follow(resource, fragment)
        else:
            steps = self._anchors.get((uri, fragment))
        if steps is None or steps not in self.places:
            raise SchemaRefused(where, f"{quoted(reference)} leads to no schema")
        return steps

    def _follow(self, start: Steps, pointer: str) -> Optional[Steps]:
        value = self.places[start].schema
        steps = list(start)
        for token in pointer.split("/")[1:]:
            step: Any = token.replace("~1", "/").replace("~0", "~")
            if type(value) is list and re.fullmatch(r"0|[1-9][0-9]{0,8}", step) and int(step) < len(value):
                step = int(step)
            elif type(value) is not dict or step not in value:
                return None
            value = value[step]
            steps.append(step)
        return tuple(steps)

    def _refuse_loops(self) -> None:
        """Refuse schemas that apply to a value again without going into it, and very long chains of such."""
        lengths: dict[Steps, int] = {}
        under_way: set[Steps] = set()
        for start in self.places:
            waiting = [start]
            while waiting:
                steps = waiting[-1]
                following = [] if steps in lengths else list(self._in_place(steps))
                if steps not in under_way and steps not in lengths:
                    under_way.add(steps)
                    waiting.extend(one for one in following if one not in lengths)
                    for one in following:
                        if one in under_way:
                            message = "leads back to itself without going into the value"
                            raise SchemaRefused(steps_text(one), message)
                    continue
                waiting.pop()
                if steps not in lengths:
                    under_way.discard(steps)
                    lengths[steps] = 1 + max((lengths[one] for one in following), default=0)
                    if lengths[steps] > CHAIN_MAX:
                        message = f"more than {CHAIN_MAX} schemas apply within each other"
                        raise SchemaRefused(steps_text(steps), message)

    def _in_place(self, steps: Steps) -> list[Steps]:
        found = [one.steps for one in _within(self.places[steps]) if one.steps[len(steps)] in IN_PLACE]
        return [*found, self._targets[steps]] if steps in self._targets else found


def _has_ref(place: Place) -> bool:
    return type(place.schema) is dict and "$ref" in place.schema


def _within(place: Place) -> list[Place]:
    """The schemas that stand in one, by its keywords."""
    steps, schema, base = place
    if type(schema) is bool:
        return []
    found = []
    for keyword, held in schema.items():
        if keyword in HOLD_ONE:
            found.append(Place((*steps, keyword), held, base))
        elif keyword in HOLD_LISTS:
            if type(held) is not list or not held:
                raise SchemaRefused(steps_text((*steps, keyword)), "must be an array of schemas, and not empty")
            found.extend(Place((*steps, keyword, number), one, base) for number, one in enumerate(held))
        elif keyword in HOLD_NAMED:
            if type(held) is not dict:
                raise SchemaRefused(steps_text((*steps, keyword)), "must be an object of schemas")
            found.extend(Place((*steps, keyword, name), one, base) for name, one in held.items())
    return found


def _refuse_beyond_bounds(document: Any) -> None:
    count = 0
    waiting: list[tuple[Any, int]] = [(document, 1)]
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if type(value) is dict:
            count += len(value)
            waiting.extend((one, depth + 1) for one in value.values())
        elif type(value) is list:
            waiting.extend((one, depth + 1) for one in value)
        elif (type(value) is float and not math.isfinite(value)) or (type(value) is int and abs(value) >= INTEGER_MAX):
            raise SchemaRefused("$", "a number is too large")
        if depth > DEPTH_MAX:
            raise SchemaRefused("$", f"the schema is nested deeper than {DEPTH_MAX} levels")
        if count + len(waiting) > VALUES_MAX:
            raise SchemaRefused("$", f"the schema has more than {VALUES_MAX} values, names counted")


def _unescaped(found: re.Match[str]) -> str:
    return bytes.fromhex(found[0].replace("%", "")).decode("utf-8", "replace")


def join(base: str, reference: str) -> str:
    """A reference as it is read beside a base URI, which has no fragment (RFC 3986, 5.2)."""
    relative, hash_sign, fragment = reference.partition("#")
    scheme, authority, path, query = _split(relative)
    base_scheme, base_authority, base_path, base_query = _split(base)
    if scheme is None:
        scheme = base_scheme
        if authority is None:
            authority = base_authority
            if not path:
                path = base_path
                query = base_query if query is None else query
            elif not path.startswith("/"):
                root = "/" if base_authority is not None and not base_path else ""
                path = root + base_path[: base_path.rfind("/") + 1] + path
    text = "" if scheme is None else f"{scheme}:"
    text += "" if authority is None else f"//{authority}"
    text += _without_dots(path) + ("" if query is None else f"?{query}")
    return text + hash_sign + fragment


def _split(uri: str) -> tuple[Optional[str], Optional[str], str, Optional[str]]:
    found = _URI.match(uri)
    assert found is not None  # every text has a path, if an empty one
    return found[1], found[2], found[3], found[4]


def _without_dots(path: str) -> str:
    if "." not in path or not path.startswith("/"):
        return path
    kept: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    return "/" + "/".join(kept) + ("/" if segments[-1] in (".", "..") and kept else "")
