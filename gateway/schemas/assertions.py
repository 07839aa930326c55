"""The keywords that look at a value itself: how each is compiled.

Pure. A function here takes one schema and returns its check, which is called with values of the keyword's types alone.
"""

from __future__ import annotations

from typing import Any, Callable, Optional

from gateway.schemas.equality import canonical, decimal_parts, is_multiple
from gateway.schemas.faults import Path, listed, quoted, shown, written
from gateway.schemas.formats import FORMATS, HINTS
from gateway.schemas.node import Check, Run, Seen
from gateway.schemas.part import Part

_TYPES_BY_NAME: dict[str, tuple[type, ...]] = {
    "array": (list,),
    "boolean": (bool,),
    "integer": (int, float),
    "null": (type(None),),
    "number": (int, float),
    "object": (dict,),
    "string": (str,),
}
_WORDS = {
    "array": "an array",
    "boolean": "a boolean",
    "integer": "an integer",
    "null": "null",
    "number": "a number",
    "object": "an object",
    "string": "a string",
}


def types_of(part: Part) -> tuple[str, ...]:
    """What `type` names; nothing where there is no `type`. Raises SchemaRefused."""
    if "type" not in part.schema:
        return ()
    names = [part.schema["type"]] if type(part.schema["type"]) is str else part.names("type")
    if not names or any(name not in _TYPES_BY_NAME for name in names):
        raise part.refused(f"must be one or more of {', '.join(_TYPES_BY_NAME)}", "type")
    return tuple(names)


def kinds_of(names: tuple[str, ...]) -> frozenset[type]:
    """The types of Python's of which values may pass a `type`, some of them at least."""
    return frozenset(kind for name in names for kind in _TYPES_BY_NAME[name])


def type_words(names: tuple[str, ...]) -> str:
    """What a `type` asks for."""
    words = [_WORDS[name] for name in names]
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def wrong_type(names: tuple[str, ...]) -> Check:
    """The check of values whose type is not allowed."""
    words = type_words(names)

    def check(value: Any, path: Path, run: Run, seen: Optional[Seen]) -> None:
        run.fault(path, f"must be {words}, is {shown(value)}")

    return check


def whole(names: tuple[str, ...]) -> Optional[Check]:
    """The check of numbers with a fraction where `integer` is allowed and `number` is not; None: no need."""
    if "integer" not in names or "number" in names:
        return None
    wrong = wrong_type(names)

    def check(value: Any, path: Path, run: Run, seen: Optional[Seen]) -> None:
        if not value.is_integer():
            wrong(value, path, run, seen)

    return check


def enum(part: Part) -> Check:
    """`enum`."""
    values = part.schema["enum"]
    if type(values) is not list:
        raise part.refused("must be an array", "enum")
    words = listed([written(value) for value in values])
    return _one_of(values, f"one of {words}" if len(values) > 1 else words or "no value at all")


def const(part: Part) -> Check:
    """`const`."""
    value = part.schema["const"]
    return _one_of([value], written(value))


def _one_of(values: list[Any], words: str) -> Check:
    texts = frozenset(value for value in values if type(value) is str)
    others = frozenset(canonical(value, _free) for value in values if type(value) is not str)

    def check(value: Any, path: Path, run: Run, seen: Optional[Seen]) -> None:
        if type(value) is str:
            fits = value in texts
        else:
            fits = bool(others) and canonical(value, run.spend) in others
        if not fits:
            run.fault(path, f"must be {words}, is {shown(value)}")

    return check


def _free(steps: int) -> None:
    pass


def _compared(keyword: str, words: str, passes: Callable[[Any, Any], bool]) -> Callable[[Part], Check]:
    def compile_bound(part: Part) -> Check:
        bound = part.number(keyword)
        message = f"must be {words} {shown(bound)}"

        def check(value: Any, path: Path, run: Run, seen: Optional[Seen]) -> None:
            if not passes(value, bound):
                run.fault(path, f"{message}, is {shown(value)}")

        return check

    return compile_bound


minimum = _compared("minimum", "at least", lambda value, bound: value >= bound)
maximum = _compared("maximum", "at most", lambda value, bound: value <= bound)
exclusive_minimum = _compared("exclusiveMinimum", "more than", lambda value, bound: value > bound)
exclusive_maximum = _compared("exclusiveMaximum", "less than", lambda value, bound: value < bound)


def multiple_of(part: Part) -> Check:
    """`multipleOf`: exactly, decimals being what they are written as."""
    divisor = part.number("multipleOf")
    if divisor <= 0:
        raise part.refused("must be more than 0", "multipleOf")
    parts = decimal_parts(divisor)

    def check(value: Any, path: Path, run: Run, seen: Optional[Seen]) -> None:
        run.spend(4)
        if not is_multiple(value, parts):
            run.fault(path, f"must be a multiple of {shown(divisor)}, is {shown(value)}")

    return check


def _sized(keyword: str, most: bool, unit: str, units: str) -> Callable[[Part], Check]:
    def compile_bound(part: Part) -> Check:
        bound = part.count(keyword)
        message = f"must have at {'most' if most else 'least'} {shown(bound)} {unit if bound == 1 else units}"

        def check(value: Any, path: Path, run: Run, seen: Optional[Seen]) -> None:
            if len(value) > bound if most else len(value) < bound:
                run.fault(path, f"{message}, has {len(value)}")

        return check

    return compile_bound


min_length = _sized("minLength", False, "character", "characters")
max_length = _sized("maxLength", True, "character", "characters")
min_items = _sized("minItems", False, "item", "items")
max_items = _sized("maxItems", True, "item", "items")
min_properties = _sized("minProperties", False, "property", "properties")
max_properties = _sized("maxProperties", True, "property", "properties")


def pattern(part: Part) -> Check:
    """`pattern`: a match anywhere in the text."""
    found = part.pattern(part.schema["pattern"], "pattern")

    def check(value: Any, path: Path, run: Run, seen: Optional[Seen]) -> None:
        if not found.search(value, run.spend):
            run.fault(path, f"must match the pattern {quoted(found.text)}, is {quoted(value)}")

    return check


def text_format(part: Part) -> Optional[Check]:
    """`format`, which is asserted; one that is not known is refused."""
    name = part.schema["format"]
    if type(name) is str and name in HINTS:
        return None
    if type(name) is not str or name not in FORMATS:
        raise part.refused(f"the format {shown(name)} is not supported", "format")
    has_format = FORMATS[name]

    def check(value: Any, path: Path, run: Run, seen: Optional[Seen]) -> None:
        run.spend(len(value) >> 3)
        if not has_format(value):
            run.fault(path, f"must have the format {name}, is {quoted(value)}")

    return check


def unique_items(part: Part) -> Optional[Check]:
    """`uniqueItems`: linear in the array, whatever it holds."""
    if type(part.schema["uniqueItems"]) is not bool:
        raise part.refused("must be true or false", "uniqueItems")
    if not part.schema["uniqueItems"]:
        return None

    def check(value: Any, path: Path, run: Run, seen: Optional[Seen]) -> None:
        first_by_text: dict[str, int] = {}
        for number, item in enumerate(value):
            first = first_by_text.setdefault(canonical(item, run.spend), number)
            if first != number:
                run.fault((path, number), f"must differ from item {first}: the items must be unique")

    return check


def required(part: Part) -> Check:
    """`required`."""
    names = part.names("required")
    part.own.weight += len(names) >> 3

    def check(value: Any, path: Path, run: Run, seen: Optional[Seen]) -> None:
        for name in names:
            if name not in value:
                run.fault(path, f"must have the property {quoted(name)}")

    return check


def dependent_required(part: Part) -> Check:
    """`dependentRequired`."""
    if type(part.schema["dependentRequired"]) is not dict:
        raise part.refused("must be an object of arrays", "dependentRequired")
    names_by_name = {name: part.names("dependentRequired", name) for name in part.schema["dependentRequired"]}
    part.own.weight += sum(1 + len(names) for names in names_by_name.values()) >> 3

    def check(value: Any, path: Path, run: Run, seen: Optional[Seen]) -> None:
        for name, names in names_by_name.items():
            if name in value:
                for one in names:
                    if one not in value:
                        run.fault(path, f"must have the property {quoted(one)}, since it has {quoted(name)}")

    return check
