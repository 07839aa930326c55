"""A chat request's messages as an engine's `system` and turns. Pure functions.

Anthropic's turns alternate: what follows one another by the same role is one. Results of tools are the user's. What a
system or developer says, wherever it stands, goes before everything, as not every model takes it elsewhere. Texts of
nothing but space are left out: they are refused there, and models write them beside calls.
"""

from __future__ import annotations

from typing import Any

from gateway.dialects.anthropic.answers import clean_thinking
from gateway.dialects.anthropic.media import document_block, image_block
from gateway.dialects.anthropic.places import TEXT, THINKING, laid_out
from gateway.dialects.anthropic.tools import cache_mark, call_id, tool_use
from gateway.dialects.dialect import Json
from gateway.dialects.reading import objects_in, refused, required, text_in, unsupported


def turns(messages: Any) -> tuple[list[Json], list[Json]]:
    """The blocks of `system`, and `messages`. Raises RequestRefused."""
    if type(messages) is not list or not messages:
        raise refused("messages", "must be a non-empty list of messages")
    system: list[Json] = []
    told: list[Json] = []
    for at, message in enumerate(messages):
        path = f"messages[{at}]"
        role = required(message, dict, path).get("role")
        if role in ("system", "developer"):
            system += _texts(message, path)
        elif role == "user":
            _add(told, "user", _blocks(message.get("content"), f"{path}.content"))
        elif role == "assistant":
            _add(told, "assistant", _of_assistant(message, path))
        elif role == "tool":
            _add(told, "user", [_result(message, path)])
        else:
            raise unsupported(f"{path}.role", "must be system, developer, user, assistant or tool")
    if not told:
        raise unsupported("messages", "must have something to answer: this engine takes no empty texts")
    return system, told


def _add(told: list[Json], role: str, blocks: list[Json]) -> None:
    if not blocks:
        return
    if told and told[-1]["role"] == role:
        told[-1]["content"] += blocks
    else:
        told.append({"role": role, "content": blocks})


def _texts(message: Json, path: str) -> list[Json]:
    blocks = _blocks(message.get("content"), f"{path}.content")
    if any(block["type"] != "text" for block in blocks):
        raise unsupported(f"{path}.content", "must be a text")
    return blocks


def _blocks(content: Any, path: str) -> list[Json]:
    """What a content, a text or parts, says."""
    if type(content) is str:
        content = [{"type": "text", "text": content}]
    elif content is None:
        content = []
    if type(content) is not list:
        raise refused(path, "must be a text or a list of typed parts")
    blocks: list[Json] = []
    for at, part in enumerate(content):
        where = f"{path}[{at}]"
        if type(part) is not dict:
            raise refused(where, "must be an object with a type")
        kind = part.get("type")
        if kind in ("text", "refusal"):
            words = required(part.get(kind), str, f"{where}.{kind}")
            if not words.strip():
                continue
            block: Json = {"type": "text", "text": words}
        elif kind == "image_url":
            block = image_block(part, where)
        elif kind == "file":
            block = document_block(part, where)
        else:
            raise unsupported(f"{where}.type", "must be text, image_url or file")
        blocks.append({**block, **cache_mark(part)})
    return blocks


def _of_assistant(message: Json, path: str) -> list[Json]:
    if message.get("function_call") or message.get("audio"):
        raise unsupported(path, "must say what it does by content and tool_calls")
    calls = message.get("tool_calls") or []
    if type(calls) is not list:
        raise refused(f"{path}.tool_calls", "must be a list of calls")
    used = [tool_use(call, f"{path}.tool_calls[{at}]") for at, call in enumerate(calls)]
    content, where = message.get("content"), f"{path}.content"
    words = content if type(content) is str else ""
    laid, words, rest = laid_out(objects_in(message, "thinking_blocks"), words, used)
    blocks: list[Json] = []
    for what, one in laid:
        if what == TEXT:
            blocks += _blocks(one, where)
        elif what != THINKING:
            blocks.append(one)
        else:  # it is verified by its signature: what has none is another engine's
            clean = clean_thinking([one])
            blocks += [block for block in clean if block["type"] != "thinking" or block["signature"]]
    blocks += _blocks(words if type(content) is str else content, where)
    if text_in(message, "refusal").strip():
        blocks.append({"type": "text", "text": message["refusal"]})
    return [*blocks, *rest]


def _result(message: Json, path: str) -> Json:
    block: Json = {"type": "tool_result", "tool_use_id": call_id(message, "tool_call_id", path)}
    content = _blocks(message.get("content"), f"{path}.content")
    if content:
        block["content"] = content
    if message.get("is_error") is True:
        block["is_error"] = True
    return {**block, **cache_mark(message)}
