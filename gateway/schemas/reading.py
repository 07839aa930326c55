"""What a model's answer says, read against a schema; and how to ask it again.

Pure. JSON is read strictly. Where it is not JSON, but by a known habit, it is repaired if what comes out fits the
schema and nothing else in the answer does; else the answer is taken as it stands, with its faults.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from gateway import jsonbounds
from gateway.jsontext import read_strictly, utf8
from gateway.schemas.faults import Fault
from gateway.schemas.relaxed import DEPTH_MAX, pieces
from gateway.schemas.schema import Schema, compile_schema

VALUES_MAX = 1_000_000
PROMPT_CHARACTERS_MAX = 4000
"""How long a prompt that names faults may be, whatever they say."""

ANY_OBJECT = compile_schema({"type": "object"})
"""What `{"type": "json_object"}` asks for."""


class Reading(NamedTuple):
    """An answer against a schema."""

    value: Any
    """What was read; None, too, where nothing could be."""
    text: str
    """The JSON that says it: the answer as it came, unless it was repaired."""
    faults: Sequence[Fault]
    """What is wrong with it; none: it fits."""
    repairs: Sequence[str] = ()
    """What was repaired, by short names (`relaxed.py` has them), when it fits for that."""


def read_answer(text: str, schema: Schema, root: str = "$") -> Reading:
    """What an answer says and whether it fits. `root`: how the faults' paths begin. Raises TooComplex."""
    try:
        value = _read(text)
    except ValueError as error:
        return _repaired(text, schema, root, str(error))
    return Reading(value, text, _rooted(schema.check(value), root))


def _repaired(text: str, schema: Schema, root: str, reason: str) -> Reading:
    """The one thing in the answer that fits, or what is wrong with the answer."""
    fitting: dict[str, Reading] = {}
    others: list[list[Fault]] = []
    for piece in pieces(text):
        try:
            value = _read(piece.text)
        except ValueError:
            continue
        faults = schema.check(value)
        if faults:
            others.append(_rooted(faults, root))
        else:  # said twice in the same words, it is said once
            fitting[piece.text] = Reading(value, piece.text, [], piece.repairs)
    if len(fitting) == 1:
        return next(iter(fitting.values()))
    if fitting:
        return Reading(None, text, [Fault(root, "must be one JSON value, not several with text between them")])
    if len(others) == 1:
        return Reading(None, text, others[0])
    return Reading(
        None, text, [Fault(root, f"must be JSON and nothing else: {reason}" if text.strip() else "is empty")]
    )


def _read(text: str) -> Any:
    """Raises ValueError."""
    passed = jsonbounds.passed(utf8(text), VALUES_MAX, DEPTH_MAX)
    if passed is not None:
        raise ValueError(f"it holds too many values or nests them too deep ({passed})")
    try:
        return read_strictly(text)
    except RecursionError:
        raise ValueError("it nests values too deep") from None


def _rooted(faults: Iterable[Fault], root: str) -> list[Fault]:
    return [fault._replace(path=root + fault.path[1:]) for fault in faults]


def faults_prompt(faults: Sequence[Fault]) -> str:
    """What a model is told whose answer has these faults, for it to answer again; of bounded length."""
    return _prompt(
        "Your answer does not fit the JSON Schema that it has to follow:",
        faults,
        "Answer again with the corrected JSON alone: no explanation, no code fence.",
    )


def calls_prompt(faults: Sequence[Fault]) -> str:
    """What a model is told as the result of each call where its calls have these faults, for it to call again; of
    bounded length."""
    return _prompt(
        "Nothing has been called, for the calls do not fit the functions and the JSON Schemas of their arguments:",
        faults,
        "Make the calls again, corrected.",
    )


def _prompt(opening: str, faults: Sequence[Fault], closing: str) -> str:
    lines = [opening]
    left = PROMPT_CHARACTERS_MAX
    for number, fault in enumerate(faults):
        line = f"- {fault.path}: {fault.message}"
        left -= len(line) + 1
        if left < 0:
            lines.append(f"- and {len(faults) - number} more")
            break
        lines.append(line)
    lines.append(closing)
    return "\n".join(lines)
