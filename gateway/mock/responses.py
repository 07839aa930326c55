"""What a mock engine says in OpenAI's Responses dialect: response objects, plain and as numbered events.

Keeps conversations for `previous_response_id` where the request's `kept` does; otherwise pure.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Optional

from gateway.mock.messages import event
from gateway.mock.saying import (
    Asked,
    BadRequest,
    Block,
    Json,
    Said,
    Stream,
    Tool,
    Wish,
    encode,
    say,
    streamed,
    text_of,
)

RESPONSES = "/v1/responses"

_LARGEST_KEPT_BYTES = 1 << 20
# What a response repeats of its request, and what it says where the request is silent.
_REPEATED: Json = {
    "background": False,
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "truncation": "disabled",
}
_TYPES: dict[str, tuple[type, ...]] = {
    "instructions": (str,),
    "max_output_tokens": (int,),
    "reasoning": (dict,),
    "stream": (bool,),
    "temperature": (int, float),
    "text": (dict,),
    "top_p": (int, float),
}
# The events of an item's text, and of the part that it is in, by the field of the item that they fill.
_EVENTS_BY_FIELD = {
    "arguments": ("function_call_arguments", ""),
    "content": ("output_text", "content_part"),
    "summary": ("reasoning_summary_text", "reasoning_summary_part"),
}


def plain(asked: Asked) -> Json:
    """Return the whole answer. Raises BadRequest."""
    said, size = _answer(asked)
    return _response(asked, said, size)


def stream(asked: Asked) -> Stream:
    """Return the events of a streamed answer, from response.created to response.completed. Raises BadRequest."""
    said, size = _answer(asked)
    begun = {**_response(asked, said, size), "status": "in_progress", "output": [], "usage": None}
    begun.update(incomplete_details=None)
    head: list[Json] = [{"type": f"response.{state}", "response": begun} for state in ("created", "in_progress")]
    whole = _response(asked, said, size)
    tail: list[Json] = [{"type": f"response.{whole['status']}", "response": whole}]
    return streamed(head, list(_blocks(asked, said)), tail, _rendered)


def failure(status: int, message: str, number: int) -> bytes:
    """Return the error event with this sequence number."""
    code = "rate_limit_exceeded" if status == 429 else "server_error"
    return _rendered(number, {"type": "error", "code": code, "message": message, "param": None})


def _rendered(number: int, value: Json) -> bytes:
    return event(value["type"], encode({**value, "sequence_number": number}))


def _answer(asked: Asked) -> tuple[Said, int]:
    """Return the answer and the size of all input in words, and keep the conversation."""
    body = asked.body
    for name, types in _TYPES.items():
        if body.get(name) is not None and type(body[name]) not in types:
            raise BadRequest(f"'{name}' must be of another type")
    items = [*_earlier(asked), *_items(body.get("input"))]
    _check_outputs(items)
    said = say(asked, _wish(body, items))
    if asked.kept is not None and body.get("store") is not False:
        whole = [*items, *_output(asked, said)]
        if len(encode(whole)) <= _LARGEST_KEPT_BYTES:
            asked.kept.keep(asked.identifier("resp_"), whole)
    texts = [str(body.get("instructions") or ""), *(_text(item) for item in items)]
    return said, max(1, sum(len(text.split()) for text in texts))


def _earlier(asked: Asked) -> list[Json]:
    previous = asked.body.get("previous_response_id")
    if previous is None:
        return []
    found = None if asked.kept is None else asked.kept.find(previous)
    if found is None:
        raise BadRequest(f"Previous response with id {previous!r:.80} not found.")
    return found


def _items(value: object) -> list[Json]:
    if isinstance(value, str) and value:
        return [{"role": "user", "content": value}]
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return value
    raise BadRequest("'input' must be text or a list of items")


def _check_outputs(items: list[Json]) -> None:
    called: set[str] = set()
    for item in items:
        call_id = str(item.get("call_id"))
        if item.get("type") == "function_call":
            called.add(call_id)
        elif item.get("type") == "function_call_output" and call_id not in called:
            raise BadRequest(f"No tool call found for function call output with call_id {call_id:.80}.")


def _text(item: Json) -> str:
    return text_of(item.get("output" if item.get("type") == "function_call_output" else "content"))


def _wish(body: Json, items: list[Json]) -> Wish:
    last = max((at for at, item in enumerate(items) if item.get("role") == "user"), default=-1)
    since = items[last + 1 :]
    choice, style, reasoning = body.get("tool_choice"), body.get("text"), body.get("reasoning")
    style = style.get("format") if isinstance(style, dict) else None
    return Wish(
        text=_text(items[last]) if last >= 0 else "",
        called=[str(item.get("name")) for item in since if item.get("type") == "function_call"],
        results=[_text(item) for item in since if item.get("type") == "function_call_output"],
        tools=[] if choice == "none" else list(_tools(body.get("tools"))),
        demanded=str(choice.get("name")) if isinstance(choice, dict) else choice == "required",
        one_at_a_time=body.get("parallel_tool_calls") is False,
        schema=_schema(style) if isinstance(style, dict) else None,
        limit=body.get("max_output_tokens"),
        thinks=isinstance(reasoning, dict) and reasoning.get("effort") != "none",
    )


def _tools(tools: object) -> Iterator[Tool]:
    for tool in tools if isinstance(tools, list) else []:
        if isinstance(tool, dict) and tool.get("type") == "function":
            yield Tool(str(tool.get("name")), tool.get("parameters"))


def _schema(style: Json) -> Optional[Json]:
    if style.get("type") == "json_object":
        return {"type": "object"}
    if style.get("type") != "json_schema":
        return None
    if not isinstance(style.get("schema"), dict):
        raise BadRequest("'text.format' must have a name and a schema")
    schema: Json = style["schema"]
    return schema


def _output(asked: Asked, said: Said) -> list[Json]:
    """Return the items of an answer."""
    state = "incomplete" if said.finish_reason == "length" else "completed"
    items: list[Json] = []
    if said.thoughts:
        reasoning = asked.body["reasoning"]
        thought = {"type": "summary_text", "text": "".join(said.thoughts)}
        summary = [thought] if reasoning.get("summary") else []
        items.append({"type": "reasoning", "id": asked.identifier("rs_"), "summary": summary})
    for index, call in enumerate(said.calls):
        ids = {"id": f"{asked.identifier('fc_')}-{index}", "call_id": f"{asked.identifier('call_')}-{index}"}
        items.append({"type": "function_call", **ids, "name": call.name, "arguments": call.arguments, "status": state})
    if not said.calls:
        part = {"type": "output_text", "text": said.text, "annotations": [], "logprobs": []}
        message = {"type": "message", "id": asked.identifier("msg_"), "role": "assistant", "status": state}
        items.append({**message, "content": [part]})
    return items


def _response(asked: Asked, said: Said, size: int) -> Json:
    cut = said.finish_reason == "length"
    response: Json = {"id": asked.identifier("resp_"), "object": "response", "created_at": int(time.time())}
    response.update({name: asked.body.get(name, otherwise) for name, otherwise in _REPEATED.items()})
    response.update(model=asked.model, status="incomplete" if cut else "completed", error=None)
    response.update(incomplete_details={"reason": "max_output_tokens"} if cut else None, output=_output(asked, said))
    if asked.usage:
        response["usage"] = {
            "input_tokens": size,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": said.tokens,
            "output_tokens_details": {"reasoning_tokens": len(said.thoughts)},
            "total_tokens": size + said.tokens,
        }
    return response


def _blocks(asked: Asked, said: Said) -> Iterator[Block]:
    calls = iter(said.calls)
    for index, item in enumerate(_output(asked, said)):
        if item["type"] == "function_call":
            yield _block(index, item, next(calls).pieces(), "arguments")
        elif item["type"] == "message":
            yield _block(index, item, said.pieces, "content", logprobs=[])
        else:
            yield _block(index, item, list(said.thoughts) if item["summary"] else [], "summary")


def _block(index: int, item: Json, pieces: list[str], field: str, **extra: Any) -> Block:
    """Return the events of one item of the output, whose `field` is made of the pieces; `extra` goes with each."""
    text, part_name = _EVENTS_BY_FIELD[field]
    added = {**item, field: item[field][:0], **({"status": "in_progress"} if "status" in item else {})}
    before: list[Json] = [{"type": "response.output_item.added", "output_index": index, "item": added}]
    after: list[Json] = [{"type": "response.output_item.done", "output_index": index, "item": item}]
    where: Json = {"item_id": item["id"], "output_index": index}
    if field == "arguments":
        after.insert(0, {"type": f"response.{text}.done", **where, "name": item["name"], field: item[field]})
    for part in item[field] if part_name else []:
        where[f"{field}_index"] = 0
        before.append({"type": f"response.{part_name}.added", **where, "part": {**part, "text": ""}})
        after.insert(0, {"type": f"response.{part_name}.done", **where, "part": part})
        after.insert(0, {"type": f"response.{text}.done", **where, "text": part["text"], **extra})
    return Block(
        before, pieces, lambda piece: {"type": f"response.{text}.delta", **where, "delta": piece, **extra}, after
    )
