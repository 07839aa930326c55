"""An engine's own Response, as far as it is checked: what it says, as a chat answer would, and what it is told again.

Pure functions on what nobody has checked: what has another type than it should counts as absent.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gateway.dialects.dialect import Json


def asked_of(request: Json) -> Json:
    """The part of a chat request that says what the answer has to be like: `response_format` and `tools`."""
    form = _format_of(request)
    chat: Json = {"tools": list(_functions(request.get("tools")))}
    if form.get("type") == "json_schema":
        chat["response_format"] = {"type": "json_schema", "json_schema": form}
    elif form:
        chat["response_format"] = form
    return chat


def with_schema(request: Json, schema: Any) -> Json:
    """The request with the schema that it has named."""
    return {**request, "text": {**request["text"], "format": {**request["text"]["format"], "schema": schema}}}


def said_in(response: Json) -> Json:
    """The chat answer that says the same: one choice, with the texts together and the calls of functions.

    One that ends in the call of another tool, which its client is to run or to allow, is cut short as an answer.
    """
    texts, refusals = [], []
    for part in _parts(response):
        if isinstance(part.get("text"), str) and part.get("type") == "output_text":
            texts.append(part["text"])
        elif isinstance(part.get("refusal"), str):
            refusals.append(part["refusal"])
    calls = [
        {"id": call.get("call_id"), "function": {"name": call.get("name"), "arguments": call.get("arguments")}}
        for call in _calls(response)
    ]
    message = {"content": "".join(texts), "refusal": "".join(refusals), "tool_calls": calls}
    kinds = [item.get("type") for item in _items(response) if item.get("type") != "reasoning"]
    is_answer = bool(calls) or not kinds or kinds[-1] == "message"
    is_whole = is_answer and response.get("status") in (None, "completed")
    return {"choices": [{"message": message, "finish_reason": "stop" if is_whole else "length"}]}


def put_back(response: Json, said: Json) -> None:
    """Have the Response say what `said_in` gave, and has been repaired since: the text in its first part."""
    message = said["choices"][0]["message"]
    text = message["content"]
    for part in _parts(response):
        if part.get("type") == "output_text" and isinstance(part.get("text"), str):
            part["text"], text = text, ""
    for call, told in zip(_calls(response), message["tool_calls"]):
        call["arguments"] = told["function"]["arguments"]


def corrected(request: Json, response: Json, text: str, result: str) -> Json:
    """The request that asks for another answer, whole: behind the one that has been given stands `text`, or as the
    result of each call `result`."""
    asked = request.get("input")
    before = asked if isinstance(asked, list) else [] if asked is None else [{"role": "user", "content": asked}]
    calls = _calls(response)
    results = [{"type": "function_call_output", "call_id": call.get("call_id"), "output": result} for call in calls]
    more: list[Json] = results or [{"role": "user", "content": text}]
    whole = {key: value for key, value in request.items() if key not in ("stream", "stream_options")}
    items = _items(response)
    if request.get("store") is False:  # then nobody has the thoughts any more that are not in the item itself
        items = [item for item in items if item.get("type") != "reasoning" or item.get("encrypted_content")]
    return {**whole, "input": [*before, *items, *more]}


def _format_of(request: Json) -> Json:
    text = request.get("text")
    form = text.get("format") if isinstance(text, dict) else None
    return form if isinstance(form, dict) else {}


def _functions(tools: Any) -> Iterator[Json]:
    """The tools, of which only functions are looked at, each at its place; those in namespaces behind them."""
    inner: list[Json] = []
    for tool in _objects(tools):
        yield _chats(tool)
        if tool.get("type") == "namespace":
            inner += _objects(tool.get("tools"))
    yield from map(_chats, inner)


def _chats(tool: Json) -> Json:
    return {"type": "function", "function": tool} if tool.get("type") == "function" else {"type": "other"}


def _items(response: Json) -> list[Json]:
    return _objects(response.get("output"))


def _parts(response: Json) -> list[Json]:
    messages = [item for item in _items(response) if item.get("type") == "message"]
    return [part for message in messages for part in _objects(message.get("content"))]


def _calls(response: Json) -> list[Json]:
    return [item for item in _items(response) if item.get("type") == "function_call"]


def _objects(value: Any) -> list[Json]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
