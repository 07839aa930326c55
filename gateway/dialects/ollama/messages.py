"""Messages as Ollama's clients send them, as those of a chat.

Pure functions. Tool calls have no ids there, or need not have: a result belongs to a call by the tool's name and its
place. Images are base64 without a word on what they are, which their first bytes tell.
"""

from __future__ import annotations

import base64
import json
from collections import OrderedDict, deque
from typing import Any, Optional

from gateway.dialects.dialect import Json
from gateway.dialects.reading import objects, optional, refused, required

_ROLES = ("system", "user", "assistant", "tool")
_HEAD_CHARS = 16  # of base64: the 12 bytes that tell what an image is
_HEADS = ((b"\x89PNG\r\n\x1a\n", "png"), (b"\xff\xd8\xff", "jpeg"), (b"GIF8", "gif"), (b"RIFF", "webp"))


def messages_of(value: Any) -> list[Json]:
    """Chat's messages. Raises RequestRefused."""
    calls = _Calls()
    return [_message(message, where, calls) for where, message in objects(value, "messages")]


def content_of(text: str, images: Any, where: str) -> Any:
    """A text and its images, as a message's content. Raises RequestRefused."""
    pictures = optional(images, list, where)
    if not pictures:
        return text
    parts: list[Json] = [{"type": "text", "text": text}] if text else []
    for index, image in enumerate(pictures):
        url = _data_url(required(image, str, f"{where}[{index}]"), f"{where}[{index}]")
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return parts


class _Calls:
    """The tool calls of the assistant's last turn that have had no result."""

    def __init__(self) -> None:
        self._made = 0  # in the whole conversation: what makes ids, the same ones when it is sent again
        self._waiting: OrderedDict[str, None] = OrderedDict()
        self._by_name: dict[str, deque[str]] = {}

    def begin(self) -> None:
        """Another turn of the assistant."""
        self._waiting = OrderedDict()
        self._by_name = {}

    def call(self, call_id: Optional[str], name: str) -> str:
        """A call; returns its id."""
        call_id = call_id or f"call_{self._made}"
        self._made += 1
        self._waiting[call_id] = None
        self._by_name.setdefault(name, deque()).append(call_id)
        return call_id

    def result(self, name: Optional[str]) -> Optional[str]:
        """The id of the call that has its result now: the tool's first, else the first of all; None: none is left."""
        named = self._by_name.get(name or "", ())
        while named:
            call_id = named.popleft()
            if call_id in self._waiting:
                del self._waiting[call_id]
                return call_id
        return self._waiting.popitem(last=False)[0] if self._waiting else None

    def answered(self, call_id: str) -> None:
        """The call that a result names has it now."""
        self._waiting.pop(call_id, None)


def _message(message: Json, where: str, calls: _Calls) -> Json:
    role = required(message.get("role"), str, f"{where}.role").lower()
    if role not in _ROLES:
        raise refused(f"{where}.role", f"must be one of {', '.join(_ROLES)}")
    text = optional(message.get("content"), str, f"{where}.content") or ""
    said: Json = {"role": role, "content": content_of(text, message.get("images"), f"{where}.images")}
    if role == "tool":
        return {**said, "tool_call_id": _call_of(message, where, calls)}
    if role == "assistant":
        thinking = optional(message.get("thinking"), str, f"{where}.thinking")
        if thinking:
            said["reasoning_content"] = thinking
        made = _calls_in(message, where, calls)
        if made:
            said.update(content=said["content"] or None, tool_calls=made)
    return said


def _calls_in(message: Json, where: str, calls: _Calls) -> list[Json]:
    calls.begin()
    made = []
    for place, call in objects(message.get("tool_calls") or [], f"{where}.tool_calls"):
        function = required(call.get("function"), dict, f"{place}.function")
        name = required(function.get("name"), str, f"{place}.function.name")
        arguments = optional(function.get("arguments"), dict, f"{place}.function.arguments") or {}
        call_id = calls.call(optional(call.get("id"), str, f"{place}.id"), name)
        told = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
        made.append({"id": call_id, "type": "function", "function": told})
    return made


def _call_of(message: Json, where: str, calls: _Calls) -> str:
    given = optional(message.get("tool_call_id"), str, f"{where}.tool_call_id")
    if given:
        calls.answered(given)
        return given
    found = calls.result(optional(message.get("tool_name"), str, f"{where}.tool_name"))
    if found is None:
        raise refused(where, "is a tool's result, and no call before it is without one")
    return found


def _data_url(image: str, where: str) -> str:
    try:
        head = base64.b64decode(image[:_HEAD_CHARS], validate=True)
    except ValueError:
        head = b""
    for begin, kind in _HEADS:
        if head.startswith(begin) and (kind != "webp" or head.endswith(b"WEBP")):
            return f"data:image/{kind};base64,{image}"
    raise refused(where, "must be a PNG, JPEG, GIF or WebP in base64")
