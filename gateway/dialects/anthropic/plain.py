"""A chat request without what only Anthropic's engines know: for all others. Pure.

Beside OpenAI's fields a translated request may have `thinking_blocks` (an assistant's), `is_error` and images (a
tool's), `cache_control` (a part's, a message's, a call's, a tool's, its own) and `thinking` (its own). An engine of
OpenAI's dialect may refuse what it does not know.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Optional

from gateway.dialects.dialect import Json
from gateway.dialects.reading import count_in, objects_in, text_in

THINKING = b'"thinking_blocks"'
"""What stands in the body of a request that has an answer of such an engine in its history."""

_OF_MESSAGES = ("thinking_blocks", "is_error", "cache_control")
_OF_REQUESTS = ("thinking", "cache_control")
_ERROR = "Error: "
_SHOWN = "(shown in the next message)"

# From how many tokens to think with on, what effort that is.
_EFFORT_BY_BUDGET = ((10_000, "high"), (4_000, "medium"), (0, "low"))


def plain(chat: Json) -> Json:
    """The same request in OpenAI's words alone; `chat` itself is left as it is.

    What tools have shown follows their results as the user's; texts in several parts become one, where there is
    nothing else; so do the messages of one turn of the assistant's; a budget for thinking becomes an effort.
    """
    request = {key: value for key, value in chat.items() if key not in _OF_REQUESTS}
    thinking = chat.get("thinking")
    if type(thinking) is dict and thinking.get("type") == "enabled":
        budget = count_in(thinking, "budget_tokens")
        request.setdefault("reasoning_effort", next(name for least, name in _EFFORT_BY_BUDGET if budget >= least))
    if request.get("reasoning_effort") == "max":
        request["reasoning_effort"] = "xhigh"
    if "tools" in chat:
        request["tools"] = [_without_mark(tool) for tool in objects_in(chat, "tools")]
    told: list[Json] = []
    shown: list[Json] = []  # by the tools whose results come
    for message in _turns(objects_in(chat, "messages")):
        if message.get("role") == "tool":
            told.append(_result(message, shown))
            continue
        parts = _parts(message)
        if shown and message.get("role") != "user":
            told.append({"role": "user", "content": shown})
            shown = []
        told.append(_message(message, shown + parts if shown or type(message.get("content")) is list else None))
        shown = []
    if shown:
        told.append({"role": "user", "content": shown})
    request["messages"] = told
    return request


def _turns(messages: list[Json]) -> Iterator[Json]:
    """The same, with one message for each turn of the assistant's: the results of all its calls follow it."""
    for role, turn in itertools.groupby(messages, lambda message: message.get("role")):
        said = list(turn)
        if role == "assistant" and len(said) > 1:
            yield _joined(said)
        else:
            yield from said


def _joined(messages: list[Json]) -> Json:
    parts = [part for message in messages for part in _parts(message)]
    calls = [call for message in messages for call in objects_in(message, "tool_calls")]
    thought = "".join(text_in(message, "reasoning_content") for message in messages)
    said = {key: value for message in reversed(messages) for key, value in message.items() if value is not None}
    said["content"] = parts if parts or not calls else None
    if calls:
        said["tool_calls"] = calls
    if thought:
        said["reasoning_content"] = thought
    return said


def _message(message: Json, parts: Optional[list[Json]]) -> Json:
    """`parts`: what it says; None: as it does already."""
    said = {key: value for key, value in message.items() if key not in _OF_MESSAGES}
    if parts is not None:
        between = "" if message.get("role") == "assistant" else "\n\n"
        only_texts = all(part.get("type") == "text" for part in parts)
        said["content"] = between.join(text_in(part, "text") for part in parts) if only_texts else parts
    if "tool_calls" in said:
        said["tool_calls"] = [_without_mark(call) for call in objects_in(said, "tool_calls")]
    return said


def _result(message: Json, shown: list[Json]) -> Json:
    """A tool's message, of text alone; `shown` gets the rest."""
    parts = _parts(message)
    texts = [part for part in parts if part.get("type") == "text"]
    shown += [part for part in parts if part.get("type") != "text"]
    said = _message(message, texts if texts or not parts else [{"type": "text", "text": _SHOWN}])
    if message.get("is_error") is True:
        said["content"] = _ERROR + said["content"]
    return said


def _parts(message: Json) -> list[Json]:
    if type(message.get("content")) is str:
        return [{"type": "text", "text": message["content"]}]
    return [_without_mark(part) for part in objects_in(message, "content")]


def _without_mark(holder: Json) -> Json:
    return {key: value for key, value in holder.items() if key != "cache_control"}
