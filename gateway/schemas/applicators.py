"""The keywords that apply further schemas, to the value itself or to what it holds: how each is compiled.

Pure. A function here takes one schema and returns its check, which is called with values of the keyword's types alone.
"""

from __future__ import annotations

from typing import Any, Callable, Optional

from gateway.schemas.assertions import type_words
from gateway.schemas.faults import Fault, Path, listed, quoted, shown
from gateway.schemas.node import Check, Node, Run, Seen
from gateway.schemas.part import Part

ALTERNATIVES_TOLD_MAX = 8
"""How many alternatives of an `anyOf` are looked at again to say what is wrong with them."""
REASONS_MAX = 6
"""How many faults of one of them are told."""


def _apply(node: Node, value: Any, path: Path, run: Run, seen: Optional[Seen]) -> None:
    if seen is None:
        node.check(value, path, run)
        return
    own = Seen()  # a schema does not see what those beside it have looked at
    node.check(value, path, run, own)
    seen.add(own)


# --- to the value itself ---------------------------------------------------------------------------------------------


def reference(part: Part) -> Check:
    """`$ref`."""
    return _all_of([part.target()])


def all_of(part: Part) -> Check:
    """`allOf`."""
    return _all_of([part.node("allOf", number) for number in range(len(part.schema["allOf"]))])


def _all_of(nodes: list[Node]) -> Check:
    def check(value: Any, path: Path, run: Run, seen: Optional[Seen]) -> None:
        for node in nodes:
            _apply(node, value, path, run, seen)

    return check


def any_of(part: Part) -> Check:
    """`anyOf`."""
    nodes = [part.node("anyOf", number) for number in range(len(part.schema["anyOf"]))]

    def check(value: Any, path: Path, run: Run, seen: Optional[Seen]) -> None:
        found = False
        for node in nodes:
            if run.fits(node, value, path, seen):
                if seen is None:
                    return
                found = True
        if not found:
            _tell_misfit(nodes, value, path, run)

    return check


def one_of(part: Part) -> Check:
    """`oneOf`."""
    nodes = [part.node("oneOf", number) for number in range(len(part.schema["oneOf"]))]

    def check(value: Any, path: Path, run: Run, seen: Optional[Seen]) -> None:
        found = [number for number, node in enumerate(nodes, 1) if run.fits(node, value, path, seen)]
        if not found:
            _tell_misfit(nodes, value, path, run)
        elif len(found) > 1:
            numbers = listed([str(number) for number in found])
            run.fault(path, f"must fit exactly one of the {len(nodes)} alternatives, fits several: {numbers}")

    return check


def _tell_misfit(nodes: list[Node], value: Any, path: Path, run: Run) -> None:
    """Tell what is wrong where no alternative fits: the faults of the one that was meant, if that can be seen."""
    if run.faults is None:
        run.fault(path, "fits no alternative")
    meant = [node for node in nodes if node.takes(value)]
    if not meant:
        names = tuple(dict.fromkeys(name for node in nodes for name in node.types))
        run.fault(path, f"must be {type_words(names)}, is {shown(value)}")
        return
    told = [run.reasons(node, value, path, REASONS_MAX) for node in meant[:ALTERNATIVES_TOLD_MAX]]
    told.sort(key=len)
    if len(told) == 1 or len(told[0]) < len(told[1]):
        for fault in told[0]:
            run.take(fault)
        return
    reasons = listed(list(dict.fromkeys(_in_words(faults[0]) for faults in told)), 3)
    run.fault(path, f"fits none of the {len(nodes)} alternatives: {reasons}")


def _in_words(fault: Fault) -> str:
    return f"{fault.path} {fault.message}"


def negation(part: Part) -> Check:
    """`not`."""
    node = part.node("not")

    def check(value: Any, path: Path, run: Run, seen: Optional[Seen]) -> None:
        if run.fits(node, value, path):
            run.fault(path, f"must not be like this: {shown(value)} fits what `not` rules out")

    return check


def conditional(part: Part) -> Optional[Check]:
    """`if`, with `then` and `else`."""
    condition = part.node("if")
    then = part.node("then") if "then" in part.schema else None
    otherwise = part.node("else") if "else" in part.schema else None

    def check(value: Any, path: Path, run: Run, seen: Optional[Seen]) -> None:
        node = then if run.fits(condition, value, path, seen) else otherwise
        if node is not None:
            _apply(node, value, path, run, seen)

    return check


def dependent_schemas(part: Part) -> Check:
    """`dependentSchemas`."""
    nodes = {name: part.node("dependentSchemas", name) for name in part.schema["dependentSchemas"]}
    part.own.weight += len(nodes) >> 3

    def check(value: Any, path: Path, run: Run, seen: Optional[Seen]) -> None:
        for name, node in nodes.items():
            if name in value:
                _apply(node, value, path, run, seen)

    return check


# --- to what an object holds -----------------------------------------------------------------------------------------


def members(part: Part) -> Check:
    """`properties`, `patternProperties` and `additionalProperties`."""
    nodes = {name: part.node("properties", name) for name in part.schema.get("properties", ())}
    patterns = [
        (part.pattern(text, "patternProperties", text), part.node("patternProperties", text))
        for text in part.schema.get("patternProperties", ())
    ]
    rest: Optional[Callable[[Any, Path, Run], None]] = None
    if part.is_false("additionalProperties"):
        allowed = f" (allowed: {listed([quoted(name) for name in nodes])})" if nodes and not patterns else ""
        rest = _refusing(f"is not an allowed property{allowed}")
    elif "additionalProperties" in part.schema:
        rest = part.node("additionalProperties").check

    def check(value: Any, path: Path, run: Run, seen: Optional[Seen]) -> None:
        run.steps_left -= len(value) >> 3
        for name, item in value.items():
            node = nodes.get(name)
            known = node is not None
            if node is not None:
                node.check(item, (path, name), run)
            for pattern, patterned in patterns:
                if pattern.search(name, run.spend):
                    patterned.check(item, (path, name), run)
                    known = True
            if known:
                if seen is not None:
                    seen.names.add(name)
            elif rest is not None:
                rest(item, (path, name), run)
        if seen is not None and rest is not None:
            seen.all_names = True

    return check


def _refusing(message: str) -> Callable[[Any, Path, Run], None]:
    def check(value: Any, path: Path, run: Run) -> None:
        run.fault(path, message)

    return check


def property_names(part: Part) -> Check:
    """`propertyNames`."""
    node = part.node("propertyNames")

    def check(value: Any, path: Path, run: Run, seen: Optional[Seen]) -> None:
        for name in value:
            if not run.fits(node, name, path):
                reason = run.reasons(node, name, path, 1)[0].message
                run.fault((path, name), f"the property's name is not allowed: it {reason}")

    return check


def unevaluated_properties(part: Part) -> Check:
    """`unevaluatedProperties`, which comes last."""
    node = part.node("unevaluatedProperties")
    rest = _refusing("is not an allowed property") if part.is_false("unevaluatedProperties") else node.check

    def check(value: Any, path: Path, run: Run, seen: Optional[Seen]) -> None:
        assert seen is not None  # the node needs it, so there is one
        if not seen.all_names:
            for name, item in value.items():
                if name not in seen.names:
                    rest(item, (path, name), run)
        seen.all_names = True

    return check


# --- to what an array holds ------------------------------------------------------------------------------------------


def elements(part: Part) -> Check:
    """`prefixItems` and `items`."""
    nodes = [part.node("prefixItems", number) for number in range(len(part.schema.get("prefixItems", ())))]
    count = len(nodes)
    rest: Optional[Callable[[Any, Path, Run], None]] = None
    if part.is_false("items"):
        rest = _refusing(f"must not be there: the array may have at most {count} items")
    elif "items" in part.schema:
        rest = part.node("items").check

    def check(value: Any, path: Path, run: Run, seen: Optional[Seen]) -> None:
        for number, item in enumerate(value):
            if number < count:
                nodes[number].check(item, (path, number), run)
            elif rest is not None:
                rest(item, (path, number), run)
            else:
                break
        if seen is not None:
            seen.first_items = max(seen.first_items, count)
            seen.all_items |= rest is not None

    return check


def contains(part: Part) -> Check:
    """`contains`, with `minContains` and `maxContains`."""
    node = part.node("contains")
    least = part.count("minContains", absent=1)
    most = part.count("maxContains") if "maxContains" in part.schema else None
    bounds = f"at least {least}" + ("" if most is None else f" and at most {most}")

    def check(value: Any, path: Path, run: Run, seen: Optional[Seen]) -> None:
        found = 0
        for number, item in enumerate(value):
            if run.fits(node, item, (path, number)):
                found += 1
                if seen is not None:
                    seen.items.add(number)
        if found < least or (most is not None and found > most):
            run.fault(path, f"must contain {bounds} items of the kind that `contains` describes, has {found}")

    return check


def unevaluated_items(part: Part) -> Check:
    """`unevaluatedItems`, which comes last."""
    node = part.node("unevaluatedItems")
    rest = (
        _refusing("must not be there: no further items are allowed")
        if part.is_false("unevaluatedItems")
        else node.check
    )

    def check(value: Any, path: Path, run: Run, seen: Optional[Seen]) -> None:
        assert seen is not None  # the node needs it, so there is one
        if not seen.all_items:
            for number in range(seen.first_items, len(value)):
                if number not in seen.items:
                    rest(value[number], (path, number), run)
        seen.all_items = True

    return check
