"""Tools, and calls of them: Anthropic's `input` is an object, chat's `arguments` a text. Pure functions, both ways."""

from __future__ import annotations

import json
import re
from typing import Any, Optional

from gateway.dialects.dialect import Json
from gateway.dialects.reading import (
    DEPTH_MAX,
    decode,
    object_in,
    objects,
    optional,
    refused,
    required,
    text_in,
    unsupported,
)

NO_PARAMETERS: Json = {"type": "object", "properties": {}}

_UNFIT = re.compile("[^a-zA-Z0-9_-]")


def input_of(arguments: Any) -> Optional[Json]:
    """What a call's `arguments` say; {} for none; None: they are no JSON object."""
    if arguments is None or type(arguments) is dict:
        return arguments or {}
    if type(arguments) is not str:
        return None
    if not arguments.strip():
        return {}
    try:
        value = decode(arguments)
    except ValueError:
        return None
    return value if type(value) is dict else None


def arguments_of(value: Any) -> str:
    """An `input` as a text; what is no object counts as an empty one."""
    if type(value) is not dict:
        return "{}"
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (RecursionError, ValueError):
        return "{}"


# --- a client's --------------------------------------------------------------------------------------------------


def chat_tools(tools: Any) -> list[Json]:
    """A client's tools as chat's. Raises RequestRefused, for those that Anthropic runs itself, or has trained, too."""
    return [_chat_tool(tool, f"tools.{at}") for at, tool in enumerate(required(tools, list, "tools"))]


def _chat_tool(tool: Any, path: str) -> Json:
    kind = required(tool, dict, path).get("type")
    if kind == "function":
        raise refused(f"{path}.type", "is OpenAI's: a tool has its name, description and input_schema in itself here")
    if kind not in (None, "custom"):
        raise unsupported(f"{path}.type", "must be custom: tools of Anthropic's own are not served")
    function: Json = {"name": required(tool.get("name"), str, f"{path}.name")}
    function["parameters"] = required(tool.get("input_schema"), dict, f"{path}.input_schema")
    if tool.get("description") is not None:
        function["description"] = required(tool.get("description"), str, f"{path}.description")
    if tool.get("strict") is True:
        function["strict"] = True
    return {"type": "function", "function": function, **cache_mark(tool)}


def chat_tool_choice(choice: Any) -> Json:
    """The chat request's fields that say what `tool_choice` does. Raises RequestRefused."""
    kind = choice.get("type") if type(choice) is dict else None
    fields: Json = {}
    if kind == "tool":
        name = required(choice.get("name"), str, "tool_choice.name")
        fields["tool_choice"] = {"type": "function", "function": {"name": name}}
    elif kind in ("auto", "any", "none"):
        fields["tool_choice"] = "required" if kind == "any" else kind
    else:
        raise refused("tool_choice.type", "must be one of auto, any, tool, none")
    if choice.get("disable_parallel_tool_use") is True:
        fields["parallel_tool_calls"] = False
    return fields


def chat_call(block: Json, path: str) -> Json:
    """The call that a `tool_use` of an earlier answer was. Raises RequestRefused."""
    name = required(block.get("name"), str, f"{path}.name")
    arguments = arguments_of(required(block.get("input"), dict, f"{path}.input"))
    call_id = required(block.get("id"), str, f"{path}.id")
    function = {"name": name, "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function, **cache_mark(block)}


def cache_mark(holder: Json) -> Json:
    """`cache_control` where there is one, to be put into what becomes of its holder."""
    mark = holder.get("cache_control")
    return {"cache_control": mark} if type(mark) is dict else {}


# --- a chat request's ----------------------------------------------------------------------------------------------


def messages_tools(tools: Any) -> list[Json]:
    """A chat request's tools for an engine. Raises RequestRefused."""
    return [_messages_tool(tool, where) for where, tool in objects(tools, "tools")]


def _messages_tool(tool: Json, path: str) -> Json:
    if tool.get("type") != "function":
        raise unsupported(f"{path}.type", "must be function: this engine has no other tools")
    function, path = required(tool.get("function"), dict, f"{path}.function"), f"{path}.function"
    parameters = optional(function.get("parameters"), dict, f"{path}.parameters")
    translated: Json = {"name": required(function.get("name"), str, f"{path}.name")}
    if function.get("description") is not None:
        translated["description"] = required(function.get("description"), str, f"{path}.description")
    translated["input_schema"] = NO_PARAMETERS if parameters is None else parameters
    if function.get("strict") is True:
        translated["strict"] = True
    return {**translated, **cache_mark(tool)}


def messages_tool_choice(choice: Any, parallel: Any) -> Optional[Json]:
    """What `tool_choice` and `parallel_tool_calls` say together; None: nothing. Raises RequestRefused."""
    translated: Json
    if choice is None:
        if parallel is not False:
            return None
        translated = {"type": "auto"}
    elif choice in ("auto", "none", "required"):
        translated = {"type": "any" if choice == "required" else choice}
    elif type(choice) is dict and choice.get("type") == "function":
        function = required(choice.get("function"), dict, "tool_choice.function")
        name = required(function.get("name"), str, "tool_choice.function.name")
        translated = {"type": "tool", "name": name}
    else:
        raise unsupported("tool_choice", "must be auto, none, required or name a function")
    if parallel is False and translated["type"] != "none":
        translated["disable_parallel_tool_use"] = True
    return translated


def tool_use(call: Any, path: str) -> Json:
    """The block for a call in the history. Raises RequestRefused."""
    where = f"{path}.function"
    function = required(required(call, dict, path).get("function"), dict, where)
    said = input_of(function.get("arguments"))
    if said is None:
        limit = f"nested at most {DEPTH_MAX} levels deep"
        raise refused(f"{where}.arguments", f"must be the text of a JSON object, {limit}")
    name = required(function.get("name"), str, f"{where}.name")
    return {"type": "tool_use", "id": call_id(call, "id", path), "name": name, "input": said, **cache_mark(call)}


def call_id(holder: Json, key: str, path: str) -> str:
    """The id of a call, of the characters that Anthropic takes: some engines make ids of others. Raises
    RequestRefused."""
    return _UNFIT.sub("_", required(holder.get(key), str, f"{path}.{key}"))


# --- an engine's answer ----------------------------------------------------------------------------------------------


def answered_calls(calls: list[Json], answer_id: str) -> list[Json]:
    """The blocks for the calls in a chat answer; those without a name count as absent."""
    blocks: list[Json] = []
    for at, call in enumerate(calls):
        function = object_in(call, "function")
        if not text_in(function, "name"):
            continue
        name, arguments = function["name"], function.get("arguments")
        said = input_of(arguments)
        if said is None:
            # An empty object would be a call that the model has not made.
            said = {"malformed_arguments": arguments}
        blocks.append({"type": "tool_use", "id": id_or_made(call, answer_id, at), "name": name, "input": said})
    return blocks


def id_or_made(call: Json, answer_id: str, at: int) -> str:
    """A call's id; where the engine gave none, one that no other call of the conversation has."""
    return text_in(call, "id") or f"call_{_UNFIT.sub('_', answer_id)}_{at}"
