"""A Responses request, as a chat request and as the answer tells it again.

Pure functions. Fields that neither this nor that reads are passed on as they are, as those of a chat request would be.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Optional

from gateway.dialects.dialect import Json
from gateway.dialects.reading import optional, refused, required, unsupported
from gateway.dialects.responses.items import messages_of
from gateway.dialects.responses.tools import Named, Tools, tools_of

LOGPROBS_MAX = 20
WITH_LOGPROBS = "message.output_text.logprobs"

# What the server would have to keep, or to do behind the client's back.
_KEPT = ("previous_response_id", "conversation", "prompt", "background", "store", "context_management", "moderation")
_NOT_KEPT = (
    "is not supported: nothing is kept between requests, or done beside them, unless an engine of the model is said to "
    'serve /v1/responses itself (its "endpoints" in the engines file)'
)
# Chat's own names for what has another one here, or none.
_OTHER_NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "verbosity": "text.verbosity",
    "reasoning_effort": "reasoning.effort",
    "logprobs": "top_logprobs",
    "functions": "tools",
    "function_call": "tool_choice",
    "n": None,
}
# Read below, or the client's and this server's own affair: engines do not see them. `max_tool_calls` and most that
# `include` may ask for are about tools that only OpenAI runs; what `truncation` allows is not done.
_READ = frozenset(
    (
        *_KEPT,
        *("input", "instructions", "max_output_tokens", "tools", "tool_choice", "parallel_tool_calls", "text"),
        *("reasoning", "top_logprobs", "include", "metadata", "truncation", "max_tool_calls", "stream_options"),
    )
)
_ECHOED = ("prompt_cache_key", "safety_identifier", "service_tier", "user", "temperature", "top_p", "max_tool_calls")


class Asked(NamedTuple):
    """A request, read."""

    chat: Json
    echo: Json
    """What the Response object tells of it."""
    tools: dict[str, Named]
    """What the client calls its tools, by chat's names."""


def read_request(request: Json) -> Asked:
    """Translate a request's body. Raises RequestRefused, which names what is wrong or what cannot be done."""
    for key in _KEPT:
        if request.get(key):
            raise unsupported(key, _NOT_KEPT)
    for key in _OTHER_NAMES:
        if request.get(key) is not None:
            name = _OTHER_NAMES[key]
            raise refused(key, f"is called {name} here" if name else "has no meaning here", "invalid_body")
    tools = tools_of(request)
    chat = {key: value for key, value in request.items() if key not in _READ and value is not None}
    chat["messages"] = _messages(request)
    settings = _settings(request, tools)
    chat.update((key, value) for key, value in settings.items() if value is not None)
    if request.get("stream"):
        chat["stream_options"] = {"include_usage": True}  # its last event tells it
    return Asked(chat, _echo(request, chat), tools.names)


def _messages(request: Json) -> list[Json]:
    instructions = optional(request.get("instructions"), str, "instructions")
    messages = messages_of(request.get("input"))
    return [{"role": "system", "content": instructions}, *messages] if instructions else messages


def _settings(request: Json, tools: Tools) -> Json:
    text = optional(request.get("text"), dict, "text") or {}
    reasoning = optional(request.get("reasoning"), dict, "reasoning") or {}
    parallel = optional(request.get("parallel_tool_calls"), bool, "parallel_tool_calls")
    most_logprobs = _integer(request, "top_logprobs", 0, LOGPROBS_MAX)
    include = optional(request.get("include"), list, "include") or ()
    return {
        # Engines that know only `max_completion_tokens` have /v1/responses themselves.
        "max_tokens": _integer(request, "max_output_tokens", 1, None),
        "tools": tools.chat or None,
        "tool_choice": tools.choice,
        "parallel_tool_calls": parallel if tools.chat else None,
        "response_format": _format(text.get("format"), "text.format"),
        "verbosity": optional(text.get("verbosity"), str, "text.verbosity"),
        "reasoning_effort": optional(reasoning.get("effort"), str, "reasoning.effort"),
        "logprobs": True if most_logprobs or WITH_LOGPROBS in include else None,
        "top_logprobs": most_logprobs or None,
    }


def _integer(request: Json, key: str, least: int, most: Optional[int]) -> Optional[int]:
    value = request.get(key)
    if value is None:
        return None
    if type(value) is not int or value < least or (most is not None and value > most):
        raise refused(key, f"must be an integer from {least}" + (f" to {most}" if most is not None else ""))
    return value


def _format(value: Any, where: str) -> Optional[Json]:
    wanted = optional(value, dict, where)
    kind = None if wanted is None else wanted.get("type")
    if wanted is None or kind == "text":
        return None
    if kind == "json_object":
        return {"type": kind}
    if kind != "json_schema":
        raise refused(f"{where}.type", "must be text, json_object or json_schema")
    required(wanted.get("name"), str, f"{where}.name")
    optional(wanted.get("schema"), dict, f"{where}.schema")  # absent: one that the gateway knows by its name
    schema = {key: wanted[key] for key in ("name", "schema", "description", "strict") if wanted.get(key) is not None}
    return {"type": kind, "json_schema": schema}


def _echo(request: Json, chat: Json) -> Json:
    text = request.get("text") or {}
    reasoning = request.get("reasoning") or {}
    parallel = request.get("parallel_tool_calls")
    return {
        "instructions": request.get("instructions"),
        "max_output_tokens": request.get("max_output_tokens"),
        "metadata": optional(request.get("metadata"), dict, "metadata") or {},
        "parallel_tool_calls": True if parallel is None else parallel,
        "reasoning": {"effort": reasoning.get("effort"), "summary": None},
        "text": {"format": {"type": "text"}, **{key: value for key, value in text.items() if value is not None}},
        "tool_choice": request.get("tool_choice") or "auto",
        "tools": [_echoed_tool(tool) for tool in request.get("tools") or ()],
        "top_logprobs": chat.get("top_logprobs", 0),
        "background": False,
        "previous_response_id": None,
        "store": False,
        "truncation": "disabled",
        **{key: request.get(key) for key in _ECHOED},
    }


def _echoed_tool(tool: Json) -> Json:
    return {"parameters": None, "strict": None, **tool} if tool["type"] == "function" else tool
