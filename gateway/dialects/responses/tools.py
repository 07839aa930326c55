"""The tools of a Responses request, and which of them is to be called, as chat has them.

Pure functions. A custom tool, whose input is any text, becomes a function with that text as its one argument; a
namespace becomes the tools in it, by its name and theirs; a choice of allowed tools leaves out the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Optional

from gateway.dialects.dialect import Json
from gateway.dialects.reading import objects, optional, refused, required, unsupported
from gateway.dialects.responses.items import CUSTOM_INPUT, chat_name

_WORDS = ("none", "auto", "required")
_OWN = ("function", "custom")  # tools that the client runs


class Named(NamedTuple):
    """What the client calls a tool."""

    name: str
    namespace: Optional[str]
    is_custom: bool


class Tools(NamedTuple):
    """What a request says of tools."""

    chat: list[Json]
    """As functions of chat; []: it has none."""
    choice: Any
    """Chat's `tool_choice`; None: the request does not say, or there are no tools to choose from."""
    names: dict[str, Named]
    """What the client calls them, by chat's names."""


def tools_of(request: Json) -> Tools:
    """The request's `tools` and `tool_choice`. Raises RequestRefused."""
    given = optional(request.get("tools"), list, "tools") or []
    tools: list[Json] = []
    names: dict[str, Named] = {}
    for where, tool in _flat(given):
        tools.append(_tool(tool, where))
        named = Named(tool["name"], tool.get("namespace"), tool["type"] == "custom")
        names[tools[-1]["function"]["name"]] = named
    choice = request.get("tool_choice")
    if choice is None or choice in ("none", "auto"):
        return Tools(tools, choice if tools else None, names)
    if choice == "required":
        if not tools:
            raise refused("tool_choice", "requires a tool, and there are none")
        return Tools(tools, choice, names)
    if type(choice) is not dict:
        raise refused("tool_choice", f"must be {', '.join(_WORDS)} or an object")
    if choice.get("type") == "allowed_tools":
        return _allowed(tools, choice, names)
    name = _chosen(choice, "tool_choice", names)
    return Tools(tools, {"type": "function", "function": {"name": name}}, names)


def _flat(given: list[Any]) -> Iterator[tuple[str, Json]]:
    """The tools, those in namespaces with its name as their `namespace`, and where each stands."""
    for where, tool in objects(given, "tools"):
        if tool.get("type") != "namespace":
            yield where, {key: value for key, value in tool.items() if key != "namespace"}
            continue
        namespace = required(tool.get("name"), str, f"{where}.name")
        inner = required(tool.get("tools"), list, f"{where}.tools")
        for place, part in objects(inner, f"{where}.tools"):
            yield place, {**part, "namespace": namespace}


def _tool(tool: Json, where: str) -> Json:
    kind = tool.get("type")
    if kind not in _OWN:
        raise unsupported(f"{where}.type", "must be function or custom: no tool is run here")
    name = chat_name(tool, where)
    described = optional(tool.get("description"), str, f"{where}.description")
    function: Json = {"name": name}
    if described is not None:
        function["description"] = described
    if kind == "custom":
        if (optional(tool.get("format"), dict, f"{where}.format") or {}).get("type", "text") != "text":
            raise unsupported(f"{where}.format", "must be text: no engine is held to a grammar")
        function["parameters"] = {
            "type": "object",
            "properties": {CUSTOM_INPUT: {"type": "string"}},
            "required": [CUSTOM_INPUT],
            "additionalProperties": False,
        }
    else:
        parameters = optional(tool.get("parameters"), dict, f"{where}.parameters")
        strict = optional(tool.get("strict"), bool, f"{where}.strict")
        function.update({k: v for k, v in (("parameters", parameters), ("strict", strict)) if v is not None})
    return {"type": "function", "function": function}


def _chosen(choice: Json, where: str, names: dict[str, Named]) -> str:
    if choice.get("type") not in _OWN:
        raise unsupported(f"{where}.type", "must be function or custom: no tool is run here")
    name = chat_name(choice, where)
    if name not in names:
        raise refused(f"{where}.name", "is none of the tools")
    return name


def _allowed(tools: list[Json], choice: Json, names: dict[str, Named]) -> Tools:
    mode: Optional[str] = choice.get("mode")
    if mode not in ("auto", "required"):
        raise refused("tool_choice.mode", "must be auto or required")
    listed = objects(choice.get("tools"), "tool_choice.tools")
    allowed = {_chosen(tool, where, names) for where, tool in listed}
    if not allowed:
        raise refused("tool_choice.tools", "must name a tool")
    return Tools([tool for tool in tools if tool["function"]["name"] in allowed], mode, names)
