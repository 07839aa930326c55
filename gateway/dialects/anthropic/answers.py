"""Complete answers: chat's choice is Anthropic's message, and the other way round. Pure functions; none of them raises
for anything that JSON can say."""

from __future__ import annotations

from gateway.dialects.anthropic.blocks import THINKING_FIELDS
from gateway.dialects.anthropic.endings import beside_finish, chat_usage, finish_of, messages_usage, stop_of
from gateway.dialects.anthropic.errors import chat_error
from gateway.dialects.anthropic.places import TEXT, THINKING, Places, laid_out
from gateway.dialects.anthropic.tools import answered_calls, arguments_of
from gateway.dialects.dialect import Json
from gateway.dialects.reading import object_in, objects_in, text_in
from gateway.dialects.said import content_text


def message_of(chat: Json, model: str, stops: frozenset[str]) -> Json:
    """A client's answer: the first choice of a complete chat answer. `model`: what the client has asked for."""
    choice = next((each for each in objects_in(chat, "choices") if not each.get("index")), {})
    said = object_in(choice, "message")
    answer_id = text_in(chat, "id")
    words = content_text(said.get("content")) + text_in(said, "refusal")
    calls = answered_calls(objects_in(said, "tool_calls"), answer_id)
    laid, words, rest = laid_out(thoughts_of(said), words, calls)
    content: list[Json] = []
    for what, one in [*laid, (TEXT, words)]:
        if what == THINKING:
            content += clean_thinking([one])
        elif what != TEXT:
            content.append(one)
        elif one:
            content.append({"type": "text", "text": one})
    return {
        "id": answer_id,
        "type": "message",
        "role": "assistant",
        "model": text_in(chat, "model") or model,
        "content": [*content, *rest],
        **stop_of(choice, stops, bool(calls)),
        "usage": messages_usage(chat.get("usage")),
    }


def thoughts_of(said: Json) -> list[Json]:
    """The blocks of what a model has thought, or pieces of them, with their places: its own, or one of what the engine
    tells of it."""
    blocks = [block for block in objects_in(said, "thinking_blocks") if text_in(block, "type") in THINKING_FIELDS]
    thought = text_in(said, "reasoning_content", "reasoning")
    return blocks if blocks or not thought else [{"type": "thinking", "thinking": thought}]


def clean_thinking(blocks: list[Json]) -> list[Json]:
    """Blocks of thinking as Anthropic has them, without what others have added; what is none counts as absent."""
    clean: list[Json] = []
    for block in blocks:
        kind = text_in(block, "type")
        if kind in THINKING_FIELDS:
            clean.append({"type": kind, **{key: text_in(block, key) for key in THINKING_FIELDS[kind]}})
    return clean


def completion_of(message: Json, created_s: int) -> Json:
    """The chat answer that an engine's message is; an object with `error` where it is none."""
    if message.get("type") == "error":
        return chat_error(message)
    if type(message.get("content")) is not list:
        return chat_error({"error": {"message": "the engine's answer is no message"}})
    texts: list[str] = []
    calls: list[Json] = []
    thoughts: list[Json] = []
    places = Places()
    for block in objects_in(message, "content"):
        places.block()
        if block.get("type") == "text":
            texts.append(text_in(block, "text"))
            places.text(texts[-1])
        elif block.get("type") == "tool_use" and text_in(block, "name"):
            calls.append(_call(block))
            places.call()
        else:
            thoughts += [{**thought, **places.thinking()} for thought in clean_thinking([block])]
    words = "".join(texts)
    said: Json = {"role": "assistant", "content": words if words or not calls else None}
    if thoughts:
        said["reasoning_content"] = "".join(block.get("thinking", "") for block in thoughts)
        said["thinking_blocks"] = thoughts
    if calls:
        said["tool_calls"] = calls
    choice: Json = {"index": 0, "message": said, "finish_reason": finish_of(message)}
    choice.update(beside_finish(message))
    completion: Json = {
        "id": text_in(message, "id"),
        "object": "chat.completion",
        "created": created_s,
        "model": text_in(message, "model"),
        "choices": [choice],
    }
    usage = chat_usage(message.get("usage"))
    if usage is not None:
        completion["usage"] = usage
    return completion


def _call(block: Json) -> Json:
    function = {"name": block["name"], "arguments": arguments_of(block.get("input"))}
    return {"id": text_in(block, "id"), "type": "function", "function": function}
