"""An output item that calls one of the client's tools. Sans-I/O; no lock."""

from __future__ import annotations

import json

from gateway.dialects.dialect import Json
from gateway.dialects.responses.items import CUSTOM_INPUT
from gateway.dialects.responses.tools import Named
from gateway.dialects.said import Call


class Called:
    """One item: a function's call, whose arguments are told as they come, or a custom tool's, whose input is told at
    the end: it is one of the arguments of the function that engines were offered, and cannot be told from them before.
    """

    def __init__(self, call: Call, tool: Named, name: str, index: int) -> None:
        """`index`: of the item, in the output. `name`: of the answer."""
        self._call = call
        self._tool = tool
        self._index = index
        self._id = f"{'ctc' if tool.is_custom else 'fc'}_{name}_{index}"
        self._call_id = call.id or f"call_{name}_{index}"
        self._status = "in_progress"
        self._text = ""  # the arguments or the input, once all has come

    def json(self) -> Json:
        """The item as it is."""
        item: Json = {"id": self._id, "call_id": self._call_id, "name": self._tool.name, "status": self._status}
        if self._tool.namespace is not None:
            item["namespace"] = self._tool.namespace
        if self._tool.is_custom:
            return {"type": "custom_tool_call", **item, "input": self._text}
        return {"type": "function_call", **item, "arguments": self._text}

    def open(self) -> list[Json]:
        return [{"type": "response.output_item.added", "output_index": self._index, "item": self.json()}]

    def say(self, piece: str) -> list[Json]:
        """More of the arguments, which the call has already."""
        if self._tool.is_custom or not piece:
            return []
        return [self._event("response.function_call_arguments.delta", "delta", piece)]

    def close(self, status: str) -> list[Json]:
        """Nothing more comes."""
        self._status = status
        self._text = text = self._call.arguments
        if self._tool.is_custom:
            self._text = text = _input_of(text)
            events = [
                self._event("response.custom_tool_call_input.delta", "delta", text),
                self._event("response.custom_tool_call_input.done", "input", text),
            ]
        else:
            events = [self._event("response.function_call_arguments.done", "arguments", text)]
        return [*events, {"type": "response.output_item.done", "output_index": self._index, "item": self.json()}]

    def _event(self, kind: str, key: str, value: str) -> Json:
        return {"type": kind, "item_id": self._id, "output_index": self._index, key: value}


def _input_of(arguments: str) -> str:
    """A custom tool's input; where a model has not kept to the one argument, all that it wrote."""
    try:
        value = json.loads(arguments)[CUSTOM_INPUT]
    except (ValueError, KeyError, TypeError, RecursionError):
        return arguments
    return value if type(value) is str else arguments
