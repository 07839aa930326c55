"""Whether a model's tool calls are calls of the functions that it was given, with arguments that fit their schemas.

Pure. Only functions with `"strict": true` have their arguments checked; where none has, nothing is. Immutable and
thread-safe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Callable, NamedTuple, Optional

from gateway.schemas.faults import Fault, SchemaRefused, listed, quoted
from gateway.schemas.reading import read_answer
from gateway.schemas.schema import Schema, compile_schema


class CallsRead(NamedTuple):
    """An answer's tool calls against the functions."""

    faults: Sequence[Fault]
    """What is wrong with them; none: all fit."""
    arguments: Mapping[int, str]
    """By a call's number in the answer, its arguments where they were repaired: these fit."""
    repairs: Sequence[str]
    """What was repaired, by short names."""


class StrictTools:
    """The functions of a chat request, with the schemas of the strict ones."""

    def __init__(self, names: frozenset[str], schemas: Mapping[str, Schema]) -> None:
        self._names = names
        self._schemas = dict(schemas)

    def read(self, calls: Any) -> CallsRead:
        """Look at an answer's `tool_calls`; None or an empty list: there are none.

        Paths begin with `$.tool_calls[0].function`. Raises TooComplex.
        """
        faults: list[Fault] = []
        arguments: dict[int, str] = {}
        repairs: dict[str, None] = {}
        for number, call in enumerate(calls if type(calls) is list else ()):
            function = call.get("function") if type(call) is dict else None
            if type(function) is not dict:
                continue  # a call of another kind than a function's
            root = f"$.tool_calls[{number}].function"
            name, text = function.get("name"), function.get("arguments")
            if type(name) is not str or name not in self._names:
                names = listed([quoted(one) for one in sorted(self._names)])
                faults.append(Fault(f"{root}.name", f"must be one of {names}"))
            elif name in self._schemas and text is not None and type(text) is not str:
                faults.append(Fault(f"{root}.arguments", "must be a string that holds JSON"))
            elif name in self._schemas:
                text = text or ""  # without arguments many write nothing
                reading = read_answer(text if text.strip() else "{}", self._schemas[name], f"{root}.arguments")
                faults.extend(reading.faults)
                if reading.text != text and not reading.faults:
                    arguments[number] = reading.text
                    repairs.update(dict.fromkeys(reading.repairs or ("empty_arguments",)))
        return CallsRead(faults, arguments, tuple(repairs))


def strict_tools(tools: Any, compiled: Callable[[Any], Schema] = compile_schema) -> Optional[StrictTools]:
    """The functions of a chat request's `tools`; None where none is strict. What is no function is not looked at.

    `compiled` makes a schema of a document. Raises SchemaRefused for parameters that cannot be checked; its path begins
    with `tools[0].function.parameters`.
    """
    names: set[str] = set()
    schemas: dict[str, Schema] = {}
    for number, function in _functions(tools):
        name = function["name"]
        names.add(name)
        if function.get("strict") is True:
            try:
                schemas[name] = compiled(_parameters(function))
            except SchemaRefused as error:
                path = f"tools[{number}].function.parameters{error.path[1:]}"
                raise SchemaRefused(path, error.message) from None
    return StrictTools(frozenset(names), schemas) if schemas else None


def strict_parameters(tools: Any) -> list[Any]:
    """The documents that `strict_tools` compiles, one for each strict function."""
    return [_parameters(function) for _, function in _functions(tools) if function.get("strict") is True]


def _functions(tools: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, tool in enumerate(tools if type(tools) is list else ()):
        function = tool.get("function") if type(tool) is dict else None
        if type(function) is dict and type(function.get("name")) is str:
            yield number, function


def _parameters(function: dict[str, Any]) -> Any:
    return function.get("parameters", {"type": "object"})
