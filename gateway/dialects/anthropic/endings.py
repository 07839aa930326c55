"""Why an answer has ended, and what it has taken, in both dialects' words. Pure functions, both ways.

`input_tokens` are those of a prompt that no cache had anything to do with; `prompt_tokens` are all of them.
"""

from __future__ import annotations

from typing import Any, Optional

from gateway.dialects.dialect import Json
from gateway.dialects.reading import count_in, text_in

_FINISH_BY_STOP = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_STOP_BY_FINISH = {
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
# Reasons that chat has none for: the turn is to be gone on with, the context is full.
_NATIVE = ("pause_turn", "model_context_window_exceeded")
# Of Anthropic's usage, what is told beside chat's own fields.
_KEPT = ("cache_creation_input_tokens", "cache_read_input_tokens", "cache_creation", "server_tool_use", "service_tier")
USAGE_FIELDS = ("input_tokens", "output_tokens", "output_tokens_details", *_KEPT)
"""Of Anthropic's usage, all that is told on."""


def finish_of(ended: Json) -> str:
    """The `finish_reason` for an engine's `stop_reason`, in a message or what ends one."""
    return _FINISH_BY_STOP.get(text_in(ended, "stop_reason"), "stop")


def beside_finish(ended: Json) -> Json:
    """What a choice tells of an answer's end beside `finish_reason`: the stop sequence that has come, as vLLM does, and
    a reason that chat has none for, as OpenRouter does."""
    told: Json = {}
    if type(ended.get("stop_sequence")) is str:
        told["stop_reason"] = ended["stop_sequence"]
    if text_in(ended, "stop_reason") in _NATIVE:
        told["native_finish_reason"] = ended["stop_reason"]
    return told


def stop_of(choice: Json, stops: frozenset[str], has_calls: bool) -> Json:
    """`stop_reason` and `stop_sequence` for a choice.

    The choice's own `stop_reason` is what vLLM, and `reading.py`, tell of it: the one of `stops` that has come. Some
    engines say "stop" behind calls of tools, which Anthropic's clients would take for the end of their work.
    """
    native = text_in(choice, "native_finish_reason")
    if native in _NATIVE:
        return {"stop_reason": native, "stop_sequence": None}
    reason = _STOP_BY_FINISH.get(text_in(choice, "finish_reason"), "end_turn")
    if reason == "end_turn":
        if has_calls:
            reason = "tool_use"
        elif type(choice.get("stop_reason")) is str and choice["stop_reason"] in stops:
            return {"stop_reason": "stop_sequence", "stop_sequence": choice["stop_reason"]}
    return {"stop_reason": reason, "stop_sequence": None}


def messages_usage(usage: Any, prompt_tokens: int = 0) -> Json:
    """The usage of a message; where the engine has said nothing, the prompt's estimated tokens."""
    if type(usage) is not dict:
        usage = {"prompt_tokens": prompt_tokens}
    details = usage.get("prompt_tokens_details")
    cached = count_in(details, "cached_tokens")
    written = count_in(details, "cache_write_tokens") or count_in(usage, "cache_creation_input_tokens")
    told: Json = {
        "input_tokens": max(0, count_in(usage, "prompt_tokens") - cached - written),
        "output_tokens": count_in(usage, "completion_tokens"),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": cached,
    }
    thought = count_in(usage.get("completion_tokens_details"), "reasoning_tokens")
    if thought:
        told["output_tokens_details"] = {"thinking_tokens": thought}
    for key in _KEPT:
        if key not in told and usage.get(key) is not None:
            told[key] = usage[key]
    return told


def chat_usage(usage: Any) -> Optional[Json]:
    """The usage of a chat answer; None: the engine has told none, or of one side only."""
    if type(usage) is not dict or not all(type(usage.get(key)) is int for key in ("input_tokens", "output_tokens")):
        return None
    cached = count_in(usage, "cache_read_input_tokens")
    written = count_in(usage, "cache_creation_input_tokens")
    prompt = count_in(usage, "input_tokens") + written + cached
    completion = count_in(usage, "output_tokens")
    told: Json = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written},
    }
    thought = count_in(usage.get("output_tokens_details"), "thinking_tokens")
    if thought:
        told["completion_tokens_details"] = {"reasoning_tokens": thought}
    told.update({key: usage[key] for key in _KEPT if usage.get(key) is not None})
    return told
