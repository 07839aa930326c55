"""The tools of a Responses request, and which of them is to be called, as chat has them.

Pure functions. A custom tool, whose input is any text, becomes a function with that text as its one argument; a choice
of allowed tools leaves out the others.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Optional

from gateway.dialects.dialect import Json
from gateway.dialects.reading import objects, optional, refused, required, unsupported
from gateway.dialects.responses.items import CUSTOM_INPUT

_WORDS = ("none", "auto", "required")
_OWN = ("function", "custom")  # tools that the client runs


class Tools(NamedTuple):
    """What a request says of tools."""

    chat: list[Json]
    """As functions of chat; []: it has none."""
    choice: Any
    """Chat's `tool_choice`; None: the request does not say, or there are no tools to choose from."""
    custom: frozenset[str]
    """The names of those that are custom tools to the client."""


def tools_of(request: Json) -> Tools:
    """The request's `tools` and `tool_choice`. Raises RequestRefused."""
    given = optional(request.get("tools"), list, "tools") or []
    tools = [_tool(tool, where) for where, tool in objects(given, "tools")]
    names = {tool["function"]["name"] for tool in tools}
    custom = frozenset(tool["name"] for tool in given if tool["type"] == "custom")
    choice = request.get("tool_choice")
    if choice is None or choice in ("none", "auto"):
        return Tools(tools, choice if tools else None, custom)
    if choice == "required":
        if not tools:
            raise refused("tool_choice", "requires a tool, and there are none")
        return Tools(tools, choice, custom)
    if type(choice) is not dict:
        raise refused("tool_choice", f"must be {', '.join(_WORDS)} or an object")
    if choice.get("type") == "allowed_tools":
        return _allowed(tools, choice, custom)
    name = _chosen(choice, "tool_choice", names)
    return Tools(tools, {"type": "function", "function": {"name": name}}, custom)


def _tool(tool: Json, where: str) -> Json:
    kind = tool.get("type")
    if kind not in _OWN:
        raise unsupported(f"{where}.type", "must be function or custom: no tool is run here")
    name = required(tool.get("name"), str, f"{where}.name")
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


def _chosen(choice: Json, where: str, names: set[str]) -> str:
    if choice.get("type") not in _OWN:
        raise unsupported(f"{where}.type", "must be function or custom: no tool is run here")
    name = required(choice.get("name"), str, f"{where}.name")
    if name not in names:
        raise refused(f"{where}.name", "is none of the tools")
    return name


def _allowed(tools: list[Json], choice: Json, custom: frozenset[str]) -> Tools:
    mode: Optional[str] = choice.get("mode")
    if mode not in ("auto", "required"):
        raise refused("tool_choice.mode", "must be auto or required")
    names = {tool["function"]["name"] for tool in tools}
    listed = objects(choice.get("tools"), "tool_choice.tools")
    allowed = {_chosen(tool, where, names) for where, tool in listed}
    if not allowed:
        raise refused("tool_choice.tools", "must name a tool")
    return Tools([tool for tool in tools if tool["function"]["name"] in allowed], mode, custom)
