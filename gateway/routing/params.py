"""What a model's requests lack, have by default, and have in any case, whatever clients ask for.

Owns the frozen `Params` and the checks of its parts. How a request is changed by them is said in upstream/shaping.py.
No state, no lock, no I/O.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Optional

from gateway.routing import checks
from gateway.routing.checks import Check, member, quoted

FIELDS_MAX = 64
KEPT = frozenset(
    ("model", "messages", "prompt", "input", "stream", "stream_options", "n", "best_of")  # what an answer goes by
)
SHAPE = "response_format"
"""May be taken out, where engines do not know it: the answers are held to it all the same. It is not put in: a fallback
would not get it, and its answer would be another."""
TOOLS = "tools"
"""Functions may be put in, but none that is strict, for the same reason."""


@dataclass(frozen=True, eq=False)
class Params:
    """What changes a model's requests; told apart by identity.

    `strip`: fields that are taken out, in lower case; `defaults`: what a field is where the client has not said;
    `force`: what it is in any case.
    """

    strip: frozenset[str]
    defaults: Mapping[str, Any]
    force: Mapping[str, Any]


def params_of(strip: tuple[str, ...], defaults: Mapping[str, Any], force: Mapping[str, Any]) -> Optional[Params]:
    """None: they change nothing."""
    return Params(frozenset(map(str.casefold, strip)), defaults, force) if strip or defaults or force else None


def _field(name: object) -> Iterator[str]:
    if isinstance(name, str) and name.casefold() in KEPT:
        yield f": {quoted(name)} is the client's own"
    else:
        yield from checks.name(name)


def _strip(value: object) -> Iterator[str]:
    if not isinstance(value, tuple) or len(value) > FIELDS_MAX:
        yield f": must be a list of at most {FIELDS_MAX} names of fields, not {quoted(value)}"
        return
    for index, name in enumerate(value):
        yield from (f"[{index}]{fault}" for fault in _field(name))


def _any_is_strict(tools: object) -> bool:
    functions = [tool.get("function") for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else ()
    return any(isinstance(function, dict) and function.get("strict") is True for function in functions)


def _values(value: object) -> Iterator[str]:
    if not isinstance(value, dict) or len(value) > FIELDS_MAX:
        yield f": must be an object of at most {FIELDS_MAX} fields, not {quoted(value)}"
        return
    for name, item in value.items():
        if isinstance(name, str) and name.casefold() == SHAPE:
            yield f"{member(name)}: {quoted(name)} is the client's own: only a request says what answers have to fit"
        if isinstance(name, str) and name.casefold() == TOOLS and _any_is_strict(item):
            yield f"{member(name)}: a function must not be strict: only a request says what answers have to fit"
        yield from (f"{member(name)}{fault}" for fault in _field(name))
        if item is None:
            yield f"{member(name)}: must not be null; leave the key out, or strip the field"


PARAM_CHECKS: Mapping[str, Check] = {"strip": _strip, "defaults": _values, "force": _values}
