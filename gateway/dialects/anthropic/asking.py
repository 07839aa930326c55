"""A chat request as a request to an engine's `/v1/messages`. Pure.

What would change the shape of an answer (several choices, log probabilities, …) is refused; what only shapes its words
(`seed`, penalties, `logit_bias`, …) is left out, as Anthropic's own layer for OpenAI's clients does.
"""

from __future__ import annotations

import json
from typing import Any

from gateway.dialects.anthropic.tools import cache_mark, messages_tool_choice, messages_tools
from gateway.dialects.anthropic.turns import turns
from gateway.dialects.dialect import Json
from gateway.dialects.reading import optional, refused, required, text_in, unsupported

MAX_TOKENS = 32_000
"""For requests that set no limit, as Anthropic's must have one: each of its present models can write so much."""

_EFFORTS = {effort: effort for effort in ("low", "medium", "high", "xhigh", "max")} | {"minimal": "low"}
_AS_THEY_ARE = ("model", "top_p", "top_k", "stream", "thinking")
_NOT_THINKING = ("temperature", "top_p", "top_k")  # are refused of who thinks
_JSON_ONLY = "Answer with one JSON object and nothing else."
_BY_SCHEMA = "Answer with one JSON value that fits this JSON Schema, and nothing else:\n"


def messages_request(chat: Json, max_tokens: int = MAX_TOKENS) -> Json:
    """What the engine is asked. `max_tokens`: for a request that says none. Raises RequestRefused."""
    _refuse_other_shapes(chat)
    system, messages = turns(chat.get("messages"))
    request: Json = {key: chat[key] for key in _AS_THEY_ARE if chat.get(key) is not None}
    request["max_tokens"] = _most_tokens(chat) or max_tokens
    request["messages"] = messages
    if type(chat.get("temperature")) in (int, float):
        request["temperature"] = min(chat["temperature"], 1)  # OpenAI's goes up to 2
    if chat.get("stop"):
        request["stop_sequences"] = [chat["stop"]] if type(chat["stop"]) is str else chat["stop"]
    user = text_in(chat, "safety_identifier", "user")
    if user:
        request["metadata"] = {"user_id": user}
    if chat.get("tools"):
        request["tools"] = messages_tools(chat["tools"])
        choice = messages_tool_choice(chat.get("tool_choice"), chat.get("parallel_tool_calls"))
        if choice is not None:
            request["tool_choice"] = choice
    _set_effort(chat.get("reasoning_effort"), request)
    if chat.get("continue_final_message") is True:
        _go_on(request)
    system += _set_format(chat.get("response_format"), request)
    if system:
        request["system"] = system
    return {**request, **cache_mark(chat)}


def _refuse_other_shapes(chat: Json) -> None:
    if chat.get("n") not in (None, 1):
        raise unsupported("n", "must be 1: this engine gives one choice")
    if chat.get("system"):
        raise unsupported("system", "is a message with the role system here")
    for key in ("logprobs", "top_logprobs", "audio", "functions", "function_call", "web_search_options"):
        if chat.get(key):
            raise unsupported(key, "is not supported by this engine")
    modalities = chat.get("modalities")
    if modalities is not None and modalities != ["text"]:
        raise unsupported("modalities", 'must be ["text"]: this engine gives nothing else')


def _go_on(request: Json) -> None:
    """Have the engine go on with its last words: it refuses those that end in space, and to think before."""
    request.pop("thinking", None)
    last = request["messages"][-1]["content"][-1]
    if last["type"] == "text":
        last["text"] = last["text"].rstrip()


def _most_tokens(chat: Json) -> int:
    """As asked for; 0: the request does not say."""
    asked = [chat.get("max_tokens"), chat.get("max_completion_tokens")]
    return max((value for value in asked if type(value) is int and value > 0), default=0)


def _set_effort(effort: Any, request: Json) -> None:
    if effort is None:
        return
    if effort == "none":
        request.setdefault("thinking", {"type": "disabled"})
        return
    if type(effort) is not str or effort not in _EFFORTS:
        raise refused("reasoning_effort", f"must be one of none, {', '.join(sorted(_EFFORTS))}")
    request["output_config"] = {"effort": _EFFORTS[effort]}
    forced = request.get("tool_choice", {}).get("type") in ("any", "tool")
    if not forced and "thinking" not in request:  # who must call a tool cannot think first
        request["thinking"] = {"type": "adaptive"}
        for key in _NOT_THINKING:
            request.pop(key, None)


def _set_format(form: Any, request: Json) -> list[Json]:
    """Put it into the request; returns what the model has to be told of it instead."""
    form = optional(form, dict, "response_format") or {}
    kind = form.get("type")
    if kind in (None, "text"):
        return []
    if kind == "json_object":
        return [{"type": "text", "text": _JSON_ONLY}]
    if kind != "json_schema":
        raise unsupported("response_format.type", "must be text, json_object or json_schema")
    described = required(form.get("json_schema"), dict, "response_format.json_schema")
    schema = required(described.get("schema"), dict, "response_format.json_schema.schema")
    if described.get("strict") is True:
        request.setdefault("output_config", {})["format"] = {"type": "json_schema", "schema": schema}
        return []
    # The engine enforces a schema of a strict kind only, and refuses any other.
    return [{"type": "text", "text": _BY_SCHEMA + json.dumps(schema, ensure_ascii=False)}]
