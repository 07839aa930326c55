"""The input of a Responses request, as messages of a chat.

Pure functions. An assistant's turn, several items here (its reasoning, a message, calls of functions), is one message
there.
"""

from __future__ import annotations

import json
from typing import Any, Callable, Optional

from gateway.dialects.dialect import Json
from gateway.dialects.reading import objects, optional, refused, required, text_in, unsupported

CUSTOM_INPUT = "input"
"""The one argument of the function that a custom tool becomes."""

NAMESPACE_END = "__"
"""What parts a namespace from a name in it, in the one name that chat has for both."""

_ROLES = ("user", "assistant", "system", "developer")


def messages_of(value: Any, where: str = "input") -> list[Json]:
    """The messages that `input` stands for, a text or a list of items. Raises RequestRefused."""
    if type(value) is str:
        return [{"role": "user", "content": value}]
    if type(value) is not list:
        raise refused(where, "must be a text or a list of items")
    turns = _Turns()
    for place, item in objects(value, where):
        kind = item.get("type")
        if kind is None and "role" in item:
            kind = "message"
        add = _ITEMS.get(kind) if type(kind) is str else None
        if add is None:
            raise unsupported(
                f"{place}.type", f"must be one of {', '.join(_ITEMS)}; others name what is kept elsewhere"
            )
        add(turns, item, place)
    messages = turns.close()
    if not messages:
        raise refused(where, "must have an item")
    return messages


def chat_name(item: Json, where: str) -> str:
    """Chat's name of what a call, a tool or a choice of one names, its namespace included. Raises RequestRefused."""
    name = required(item.get("name"), str, f"{where}.name")
    namespace = optional(item.get("namespace"), str, f"{where}.namespace")
    return name if namespace is None else f"{namespace}{NAMESPACE_END}{name}"


class _Turns:
    """The messages so far."""

    def __init__(self) -> None:
        self._messages: list[Json] = []
        self._assistant: Optional[Json] = None  # the last message, while items may join it
        self._thoughts: list[str] = []  # that it begins with

    def add(self, message: Json) -> None:
        """Another message, which ends the assistant's turn."""
        self.close()
        self._messages.append(message)

    def assistant(self, speaks: bool) -> Json:
        """The assistant's message that an item joins: the last one, unless the item `speaks` and that has spoken."""
        message = self._assistant
        if message is None or (speaks and "content" in message):
            self.close()
            message = self._assistant = {"role": "assistant"}
            self._messages.append(message)
        return message

    def think(self, text: str) -> None:
        """What the assistant thinks before it says anything."""
        self.assistant(speaks=True)
        self._thoughts.append(text)

    def close(self) -> list[Json]:
        """End the assistant's turn; all messages."""
        if self._assistant is not None and self._thoughts:
            self._assistant["reasoning_content"] = "\n\n".join(self._thoughts)
        self._assistant, self._thoughts = None, []
        return self._messages


# --- items ---------------------------------------------------------------------------------------------------------


def _message(turns: _Turns, item: Json, where: str) -> None:
    role = item.get("role")
    if role not in _ROLES:
        raise refused(f"{where}.role", f"must be one of {', '.join(_ROLES)}")
    content = _content(item.get("content"), f"{where}.content")
    if role == "assistant":
        turns.assistant(speaks=True).update(_said(content))
        return
    if any(type(part) is dict and part["type"] == "refusal" for part in content):
        raise refused(f"{where}.content", "has a refusal, which is the assistant's")
    turns.add({"role": role, "content": content})


def _said(content: Any) -> Json:
    """What an assistant's message has of its content: text is one text, as chat's answers have it."""
    if type(content) is str:
        return {"content": content}
    refusals = [part["refusal"] for part in content if part["type"] == "refusal"]
    others = [part for part in content if part["type"] != "refusal"]
    if all(part["type"] == "text" for part in others):
        said: Json = {"content": "".join(part["text"] for part in others) if others or not refusals else None}
    else:
        said = {"content": others}
    return {**said, "refusal": "".join(refusals)} if refusals else said


def _reasoning(turns: _Turns, item: Json, where: str) -> None:
    thoughts = objects(item.get("content") or item.get("summary") or [], f"{where}.content")
    text = "\n\n".join(required(part.get("text"), str, f"{place}.text") for place, part in thoughts)
    if text:  # else there is only what its maker has encrypted
        turns.think(text)


def _function_call(turns: _Turns, item: Json, where: str) -> None:
    _call(turns, item, where, required(item.get("arguments"), str, f"{where}.arguments"))


def _custom_tool_call(turns: _Turns, item: Json, where: str) -> None:
    given = required(item.get("input"), str, f"{where}.input")
    _call(turns, item, where, json.dumps({CUSTOM_INPUT: given}))


def _call(turns: _Turns, item: Json, where: str, arguments: str) -> None:
    call_id = required(item.get("call_id"), str, f"{where}.call_id")
    name = chat_name(item, where)
    message = turns.assistant(speaks=False)
    message.setdefault("content", None)
    calls = message.setdefault("tool_calls", [])
    calls.append({"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}})


def _call_output(turns: _Turns, item: Json, where: str) -> None:
    call_id = required(item.get("call_id"), str, f"{where}.call_id")
    content = _content(item.get("output"), f"{where}.output")
    turns.add({"role": "tool", "tool_call_id": call_id, "content": content})


_ITEMS: dict[str, Callable[[_Turns, Json, str], None]] = {
    "message": _message,
    "reasoning": _reasoning,
    "function_call": _function_call,
    "function_call_output": _call_output,
    "custom_tool_call": _custom_tool_call,
    "custom_tool_call_output": _call_output,
}


# --- parts of content ----------------------------------------------------------------------------------------------


def _content(value: Any, where: str) -> Any:
    """A text, or chat's parts; one part of text alone is a text, which every engine takes."""
    if type(value) is str:
        return value
    if type(value) is not list:
        raise refused(where, "must be a text or a list of typed parts")
    parts = [_part(part, place) for place, part in objects(value, where)]
    if not parts:
        return ""
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


def _part(part: Json, where: str) -> Json:
    kind = part.get("type")
    make = _PARTS.get(kind) if type(kind) is str else None
    if make is None:
        raise refused(f"{where}.type", f"must be one of {', '.join(_PARTS)}")
    return make(part, where)


def _text(part: Json, where: str) -> Json:
    return {"type": "text", "text": required(part.get("text"), str, f"{where}.text")}


def _refusal(part: Json, where: str) -> Json:
    return {"type": "refusal", "refusal": required(part.get("refusal"), str, f"{where}.refusal")}


def _image(part: Json, where: str) -> Json:
    _refuse_kept(part, where, "file_id")
    image = {"url": required(part.get("image_url"), str, f"{where}.image_url")}
    detail = optional(part.get("detail"), str, f"{where}.detail")
    if detail is not None:
        image["detail"] = detail
    return {"type": "image_url", "image_url": image}


def _file(part: Json, where: str) -> Json:
    _refuse_kept(part, where, "file_id", "file_url")
    file = {"file_data": required(part.get("file_data"), str, f"{where}.file_data")}
    name = optional(part.get("filename"), str, f"{where}.filename")
    if name is not None:
        file["filename"] = name
    return {"type": "file", "file": file}


def _audio(part: Json, where: str) -> Json:
    return {"type": "input_audio", "input_audio": required(part.get("input_audio"), dict, f"{where}.input_audio")}


def _refuse_kept(part: Json, where: str, *keys: str) -> None:
    for key in keys:
        if text_in(part, key):
            raise unsupported(f"{where}.{key}", "names a file that lies elsewhere; send what is in it")


_PARTS: dict[str, Callable[[Json, str], Json]] = {
    "input_text": _text,
    "output_text": _text,
    "text": _text,
    "refusal": _refusal,
    "input_image": _image,
    "input_file": _file,
    "input_audio": _audio,
}
