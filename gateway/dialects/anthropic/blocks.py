"""A client's messages, made of typed blocks, as messages of chat. Pure functions.

Results of tools become messages of their own, before what else their message says; thinking stands beside the text, as
`reasoning_content` for any engine and as `thinking_blocks` for those that want it back as it was. So that all keeps its
place, what a message of chat would say earlier begins another one; `plain.py` makes one of them again.
"""

from __future__ import annotations

from typing import Any, Union

from gateway.dialects.anthropic.media import document_parts, image_part
from gateway.dialects.anthropic.tools import cache_mark, chat_call
from gateway.dialects.dialect import Json
from gateway.dialects.reading import refused, required, unsupported

THINKING_FIELDS = {"thinking": ("thinking", "signature"), "redacted_thinking": ("data",)}
"""What makes a block of thinking, by its type; all of it texts."""


def chat_messages(messages: Any) -> list[Json]:
    """The chat messages that say the same. Raises RequestRefused."""
    if type(messages) is not list or not messages:
        raise refused("messages", "must be a non-empty list of messages")
    translated: list[Json] = []
    for at, message in enumerate(messages):
        path = f"messages.{at}"
        role, content = required(message, dict, path).get("role"), message.get("content")
        if role not in ("user", "assistant", "system"):
            raise refused(f"{path}.role", "must be user, assistant or system")
        path = f"{path}.content"
        if type(content) is str:
            translated.append({"role": role, "content": content})
        elif type(content) is not list:
            raise refused(path, "must be a text or a list of blocks")
        elif role == "system":
            translated.append({"role": role, "content": system_content(content, path)})
        elif role == "user":
            translated += _of_user(content, path)
        else:
            translated += _of_assistant(content, path)
    return translated


def system_content(system: Any, path: str) -> Union[str, list[Json]]:
    """The content of a system message: a text, or blocks of texts. Raises RequestRefused."""
    if type(system) is str:
        return system
    if type(system) is not list:
        raise refused(path, "must be a text or a list of text blocks")
    parts: list[Json] = []
    for at, block in enumerate(system):
        if _kind(block, f"{path}.{at}") != "text":
            raise refused(f"{path}.{at}.type", "must be text")
        parts += _parts(block, f"{path}.{at}")
    return _content(parts)


def _kind(block: Any, path: str) -> str:
    return required(required(block, dict, path).get("type"), str, f"{path}.type")


def _content(parts: list[Json]) -> Union[str, list[Json]]:
    """As most engines read it: a text where it is nothing more."""
    if not parts:
        return ""
    if len(parts) == 1 and parts[0].keys() == {"type", "text"}:
        return str(parts[0]["text"])
    return parts


def _parts(block: Json, path: str) -> list[Json]:
    """What a block, of the user's or of a result, says."""
    kind = block["type"]
    if kind == "text":
        return [{"type": "text", "text": required(block.get("text"), str, f"{path}.text"), **cache_mark(block)}]
    if kind == "image":
        return [{**image_part(block, path), **cache_mark(block)}]
    if kind == "document":
        parts = document_parts(block, path)
    elif kind == "search_result":
        head = [required(block.get(key), str, f"{path}.{key}") for key in ("title", "source")]
        parts = [{"type": "text", "text": "\n".join(head)}]
        content = block.get("content")
        if type(content) is not list:
            raise refused(f"{path}.content", "must be a list of text blocks")
        for at, inner in enumerate(content):
            if _kind(inner, f"{path}.content.{at}") != "text":
                raise refused(f"{path}.content.{at}.type", "must be text")
            parts.append({"type": "text", "text": required(inner.get("text"), str, f"{path}.content.{at}.text")})
    else:
        raise unsupported(f"{path}.type", f"cannot be {kind[:100]} here, or not over this gateway")
    if parts:
        parts[-1].update(cache_mark(block))
    return parts


def _of_user(blocks: list[Any], path: str) -> list[Json]:
    results: list[Json] = []
    parts: list[Json] = []
    for at, block in enumerate(blocks):
        where = f"{path}.{at}"
        if _kind(block, where) == "tool_result":
            results.append(_result(block, where))
        else:
            parts += _parts(block, where)
    if parts or not results:
        if not parts:
            raise refused(path, "must not be empty")
        results.append({"role": "user", "content": _content(parts)})
    return results


def _result(block: Json, path: str) -> Json:
    content = block.get("content", "")
    if type(content) is list:
        parts: list[Json] = []
        for at, inner in enumerate(content):
            _kind(inner, f"{path}.content.{at}")
            parts += _parts(inner, f"{path}.content.{at}")
        content = _content(parts)
    elif type(content) is not str:
        raise refused(f"{path}.content", "must be a text or a list of blocks")
    call_id = required(block.get("tool_use_id"), str, f"{path}.tool_use_id")
    message: Json = {"role": "tool", "tool_call_id": call_id, "content": content}
    if block.get("is_error") is True:
        message["is_error"] = True
    return {**message, **cache_mark(block)}


def _of_assistant(blocks: list[Any], path: str) -> list[Json]:
    """One message, where thinking comes before texts and these before calls; else as many as are in that order."""
    messages: list[Json] = []
    thoughts: list[Json] = []
    parts: list[Json] = []
    calls: list[Json] = []
    for at, block in enumerate(blocks):
        where = f"{path}.{at}"
        kind = _kind(block, where)
        if (calls and kind != "tool_use") or (parts and kind in THINKING_FIELDS):
            messages.append(_assistant(thoughts, parts, calls))
            thoughts, parts, calls = [], [], []
        if kind in THINKING_FIELDS:
            fields = {key: required(block.get(key), str, f"{where}.{key}") for key in THINKING_FIELDS[kind]}
            thoughts.append({"type": kind, **fields})
        elif kind == "text":
            parts += _parts(block, where)
        elif kind == "tool_use":
            calls.append(chat_call(block, where))
        else:
            raise unsupported(f"{where}.type", f"cannot be {kind[:100]} here, or not over this gateway")
    if blocks:
        messages.append(_assistant(thoughts, parts, calls))
    return messages


def _assistant(thoughts: list[Json], parts: list[Json], calls: list[Json]) -> Json:
    message: Json = {"role": "assistant", "content": _content(parts) if parts or not calls else None}
    if thoughts:
        message["reasoning_content"] = "".join(thought.get("thinking", "") for thought in thoughts)
        message["thinking_blocks"] = thoughts
    if calls:
        message["tool_calls"] = calls
    return message
