"""A schema, compiled once, and whether values fit it.

Pure: `compile_schema` refuses what cannot be checked, `Schema.check` says what is wrong with a value. Both are bounded
in time and depth whatever schema and value are. Schemas are immutable and thread-safe.

Read as JSON Schema 2020-12, with these differences: `format` is asserted; nothing outside the document is ever fetched;
keywords that cannot be checked are refused, `$dynamicRef` and `$vocabulary` among them.
"""

from __future__ import annotations

from typing import Any, Callable, Optional

from gateway.schemas import applicators, assertions
from gateway.schemas.document import Document
from gateway.schemas.faults import Fault, Path, TooComplex
from gateway.schemas.node import TYPES, Check, Enough, Node, Run, Seen
from gateway.schemas.part import Compiling, Part

FAULTS_MAX = 20
"""How many faults of a value are told."""

_NUMBERS = (int, float)
# What is compiled for a schema that has a keyword, for values of these types. In this order: what needs to know what
# others have looked at comes last. Keywords that are compiled together are one rule, which counts once.
_Compile = Callable[[Part], Optional[Check]]
_RULES: tuple[tuple[str, tuple[type, ...], _Compile], ...] = (
    ("enum", TYPES, assertions.enum),
    ("const", TYPES, assertions.const),
    ("multipleOf", _NUMBERS, assertions.multiple_of),
    ("minimum", _NUMBERS, assertions.minimum),
    ("maximum", _NUMBERS, assertions.maximum),
    ("exclusiveMinimum", _NUMBERS, assertions.exclusive_minimum),
    ("exclusiveMaximum", _NUMBERS, assertions.exclusive_maximum),
    ("minLength", (str,), assertions.min_length),
    ("maxLength", (str,), assertions.max_length),
    ("pattern", (str,), assertions.pattern),
    ("format", (str,), assertions.text_format),
    ("minItems", (list,), assertions.min_items),
    ("maxItems", (list,), assertions.max_items),
    ("uniqueItems", (list,), assertions.unique_items),
    ("minProperties", (dict,), assertions.min_properties),
    ("maxProperties", (dict,), assertions.max_properties),
    ("required", (dict,), assertions.required),
    ("dependentRequired", (dict,), assertions.dependent_required),
    ("propertyNames", (dict,), applicators.property_names),
    ("properties", (dict,), applicators.members),
    ("patternProperties", (dict,), applicators.members),
    ("additionalProperties", (dict,), applicators.members),
    ("prefixItems", (list,), applicators.elements),
    ("items", (list,), applicators.elements),
    ("contains", (list,), applicators.contains),
    ("$ref", TYPES, applicators.reference),
    ("allOf", TYPES, applicators.all_of),
    ("anyOf", TYPES, applicators.any_of),
    ("oneOf", TYPES, applicators.one_of),
    ("not", TYPES, applicators.negation),
    ("if", TYPES, applicators.conditional),
    ("dependentSchemas", (dict,), applicators.dependent_schemas),
    ("unevaluatedProperties", (dict,), applicators.unevaluated_properties),
    ("unevaluatedItems", (list,), applicators.unevaluated_items),
)


class Schema:
    """A compiled schema; made by `compile_schema`. Thread-safe."""

    __slots__ = ("_root", "document", "pattern_steps", "size")

    def __init__(self, root: Node, document: Any, size: int, pattern_steps: int) -> None:
        self._root = root
        self.document = document
        """What it was compiled from; not to be changed."""
        self.size = size
        """How many schemas stand within it, itself included."""
        self.pattern_steps = pattern_steps
        """What its patterns come to."""

    def check(self, value: Any, faults_max: int = FAULTS_MAX) -> list[Fault]:
        """What is wrong with a value that `json` has read, at most that many faults; empty: it fits.

        Raises TooComplex when that cannot be found out within bounds.
        """
        run = Run(value, faults_max)
        try:
            self._root.check(value, None, run)
        except Enough:
            pass
        except RecursionError:
            raise TooComplex("the value or the schema is nested too deep") from None
        return run.faults or []


def compile_schema(document: Any) -> Schema:
    """The schema that a JSON document is: an object, true or false.

    Raises SchemaRefused, which names the place, for what is no schema, cannot be checked, or is too large.
    """
    compiling = Compiling(Document(document))
    for steps, place in compiling.document.places.items():
        if type(place.schema) is bool:
            checks = () if place.schema else (_refuse,)
            compiling.nodes[steps].by_type = dict.fromkeys(TYPES, checks)
        else:
            _fill(Part(compiling, steps))
    return Schema(compiling.nodes[()], document, len(compiling.nodes), compiling.pattern_steps)


def _fill(part: Part) -> None:
    """Give a schema's node the checks of its keywords."""
    found: list[tuple[tuple[type, ...], Check]] = []
    compiled: set[_Compile] = set()
    for keyword, types, compile_rule in _RULES:
        if keyword in part.schema and compile_rule not in compiled:
            compiled.add(compile_rule)
            check = compile_rule(part)
            if check is not None:
                found.append((types, check))
    node = part.own
    node.types = assertions.types_of(part)
    if node.types:
        node.other_types = (assertions.wrong_type(node.types),)
        check = assertions.whole(node.types)
        if check is not None:
            found.insert(0, ((float,), check))
    node.needs_seen = "unevaluatedProperties" in part.schema or "unevaluatedItems" in part.schema
    kinds = assertions.kinds_of(node.types) if node.types else TYPES
    for kind in TYPES:
        if kind not in kinds:
            node.by_type[kind] = node.other_types
        else:
            node.by_type[kind] = tuple(check for types, check in found if kind in types)


def _refuse(value: Any, path: Path, run: Run, seen: Optional[Seen]) -> None:
    run.fault(path, "must not be there: nothing is allowed here")
