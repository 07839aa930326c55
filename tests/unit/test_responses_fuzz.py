"""Conversations that nobody has thought of, through OpenAI's Responses and back: nothing of their meaning is lost.

TRANSLATED says how many of each kind.
"""

from __future__ import annotations

import json
import os
import unittest
from collections.abc import Iterable
from typing import Any, Optional

from gateway.dialects.cutting import COMMENT, Cutter
from gateway.dialects.responses.conversation import Writer, read
from tests.drawing import Draw, for_many

TRANSLATED = int(os.environ.get("TRANSLATED", "100"))

Json = dict[str, Any]


# --- a chat request, as a client of Responses would ask the same ----------------------------------------------------


def as_responses(chat: Json) -> Json:
    """The request to /v1/responses that means what a chat request does."""
    request = {key: value for key, value in chat.items() if key not in _OTHERS}
    messages = chat["messages"]
    first = messages[0]["content"] if messages[0]["role"] == "system" and len(messages) > 1 else None
    if type(first) is str and first:
        request["instructions"] = first
        messages = messages[1:]
    request["input"] = [item for message in messages for item in _items(message)]
    for key, name in (("max_tokens", "max_output_tokens"), ("top_logprobs", "top_logprobs")):
        if key in chat:
            request[name] = chat[key]
    if "tools" in chat:
        request["tools"] = [{"type": "function", **tool["function"]} for tool in chat["tools"]]
    choice = chat.get("tool_choice")
    if choice is not None:
        request["tool_choice"] = choice if type(choice) is str else {"type": "function", **choice["function"]}
    form = chat.get("response_format")
    if form is not None:
        request.setdefault("text", {})["format"] = {**form.get("json_schema", {}), "type": form["type"]}
    if "verbosity" in chat:
        request.setdefault("text", {})["verbosity"] = chat["verbosity"]
    if "reasoning_effort" in chat:
        request["reasoning"] = {"effort": chat["reasoning_effort"]}
    return request


_OTHERS = (
    *("messages", "max_tokens", "tools", "tool_choice", "response_format", "verbosity", "reasoning_effort"),
    *("logprobs", "top_logprobs", "stream_options"),
)


def _items(message: Json) -> Iterable[Json]:
    role, content = message["role"], message.get("content")
    if role == "tool":
        output = content if type(content) is str else [_part(part) for part in content]
        yield {"type": "function_call_output", "call_id": message["tool_call_id"], "output": output}
        return
    if message.get("reasoning_content"):
        thought = {"type": "reasoning_text", "text": message["reasoning_content"]}
        yield {"type": "reasoning", "id": "rs", "summary": [], "content": [thought]}
    if role == "assistant":
        parts = [{"type": "output_text", "text": content, "annotations": []}] if content is not None else []
        parts += [{"type": "refusal", "refusal": message["refusal"]}] if message.get("refusal") else []
        if parts:
            yield {"type": "message", "id": "msg", "role": role, "status": "completed", "content": parts}
    else:
        yield {"role": role, "content": content if type(content) is str else [_part(part) for part in content]}
    for call in message.get("tool_calls") or ():
        yield {"type": "function_call", "call_id": call["id"], **call["function"]}


def _part(part: Json) -> Json:
    if part["type"] == "text":
        return {"type": "input_text", "text": part["text"]}
    if part["type"] == "image_url":
        image = part["image_url"]
        detail = {"detail": image["detail"]} if "detail" in image else {}
        return {"type": "input_image", "image_url": image["url"], **detail}
    return {"type": "input_file", **part["file"]}


def meaning(chat: Json) -> Json:
    """A chat request in the one of several ways to say it in which they all mean the same."""
    return {**chat, "messages": [_meaning(message) for message in chat["messages"]]}


def _meaning(message: Json) -> Json:
    content = message.get("content")
    if type(content) is list and len(content) == 1 and content[0]["type"] == "text":
        content = content[0]["text"]
    rest = {key: value for key, value in message.items() if value is not None}
    return {**rest, "content": content}


# --- what is generated ---------------------------------------------------------------------------------------------

IMAGES = ("data:image/png;base64,iVBORw0KGgo=", "https://example.org/a.png")
LETTERS = "abcdefgh_"


def word(draw: Draw) -> str:
    return draw.name(LETTERS)


def part(draw: Draw) -> Json:
    """A text, an image or a file."""
    kind = draw.integer(0, 2)
    if kind == 0:
        return {"type": "text", "text": draw.text(20)}
    if kind == 1:
        detail = draw.maybe(detail=lambda: draw.pick(("auto", "low", "high")))
        return {"type": "image_url", "image_url": {"url": draw.pick(IMAGES), **detail}}
    file_name = draw.maybe(filename=lambda: word(draw))
    return {"type": "file", "file": {"file_data": "data:text/plain;base64,aGk=", **file_name}}


def content_of(draw: Draw) -> Any:
    return draw.some(lambda: part(draw), 4, 1) if draw.flag() else draw.text(20)


def schema_of(draw: Draw) -> Json:
    optional = draw.maybe(title=lambda: draw.text(20), required=lambda: draw.some(lambda: word(draw), 5))
    return {"type": "object", **optional}


def arguments_of(draw: Draw) -> str:
    def value() -> Any:
        return draw.pick((None, draw.text(20), draw.integer(-(2**63), 2**63)))

    return json.dumps({word(draw): value() for _ in range(draw.integer(0, 3))})


def format_of(draw: Draw) -> Json:
    if draw.flag():
        return {"type": "json_object"}
    optional = draw.maybe(strict=draw.flag, description=lambda: draw.text(20))
    return {"type": "json_schema", "json_schema": {"name": word(draw), "schema": schema_of(draw), **optional}}


def answer_of(draw: Draw) -> Json:
    """A message of an assistant."""
    names = draw.some(lambda: word(draw), 3)
    message: Json = {"role": "assistant", "content": None if names and draw.flag() else draw.text(20)}
    if draw.flag():
        message["reasoning_content"] = draw.text(20, 1)
    if draw.integer(0, 9) == 9:
        message["refusal"] = draw.text(20, 1)
    if names:
        message["tool_calls"] = [
            {
                "id": f"call_{draw.integer(0, 10**9)}_{index}",
                "type": "function",
                "function": {"name": name, "arguments": arguments_of(draw)},
            }
            for index, name in enumerate(names)
        ]
    return message


def settings_of(draw: Draw) -> Json:
    return draw.maybe(
        model=lambda: word(draw),
        stream=lambda: False,
        temperature=lambda: draw.float(0, 2),
        top_p=lambda: draw.float(0, 1),
        max_tokens=lambda: draw.integer(1, 1_000_000),
        user=lambda: draw.text(20),
        stop=lambda: draw.some(lambda: draw.text(20), 3, 1),
        seed=lambda: draw.integer(-(2**70), 2**70),
        verbosity=lambda: draw.pick(("low", "medium", "high")),
        reasoning_effort=lambda: draw.pick(("none", "low", "high")),
        response_format=lambda: format_of(draw),
    )


def chat_of(draw: Draw) -> Json:
    """A chat request, with tools and images, and several rounds of both."""
    messages: list[Json] = []
    for _ in range(draw.integer(1, 4)):
        messages.append({"role": draw.pick(("user", "user", "system", "developer")), "content": content_of(draw)})
        for _ in range(draw.integer(0, 2)):
            answer = answer_of(draw)
            messages.append(answer)
            for call in answer.get("tool_calls", ()):
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": content_of(draw)})
            if "tool_calls" not in answer:
                break  # what it says next without being asked is the same turn in Responses
    chat: Json = {**settings_of(draw), "messages": messages}
    if draw.flag():
        chat["logprobs"] = True
        chat["top_logprobs"] = draw.integer(1, 20)
    names = list(dict.fromkeys(draw.some(lambda: word(draw), 3)))
    if names:
        chat["tools"] = [{"type": "function", "function": {"name": name, **described(draw)}} for name in names]
        named = {"type": "function", "function": {"name": draw.pick(names)}}
        choice = draw.pick((None, "none", "auto", "required", named))
        if choice is not None:
            chat["tool_choice"] = choice
        chat.update(draw.maybe(parallel_tool_calls=draw.flag))
    return chat


def described(draw: Draw) -> Json:
    return draw.maybe(description=lambda: draw.text(20), parameters=lambda: schema_of(draw), strict=draw.flag)


def stream_of(draw: Draw) -> tuple[Json, list[Json]]:
    """A whole answer, and the chunks in which it comes, its texts cut anywhere."""
    message = answer_of(draw)
    deltas: list[Json] = [{"role": "assistant"}]
    for key in ("reasoning_content", "content", "refusal"):
        deltas += [{key: piece} for piece in draw.cut(message.get(key) or "")]
    calls = message.get("tool_calls", ())
    for index, call in enumerate(calls):
        function = {"name": call["function"]["name"], "arguments": ""}
        deltas.append({"tool_calls": [{**call, "index": index, "function": function}]})
    rests = [draw.cut(call["function"]["arguments"]) for call in calls]
    while any(rests):
        index = draw.pick([index for index, rest in enumerate(rests) if rest])
        piece = {"index": index, "function": {"arguments": rests[index].pop(0)}}
        deltas.append({"tool_calls": [piece]})
    reason = draw.pick(("stop", "tool_calls", "length", "content_filter"))
    chunks = [_chunk(delta) for delta in deltas] + [_chunk({}, reason)]
    chunks.append({**IDENTITY, "choices": [], "usage": USAGE})
    choice = {"index": 0, "message": message, "finish_reason": reason}
    return {**IDENTITY, "choices": [choice], "usage": USAGE}, chunks


IDENTITY = {"id": "chat-1", "created": 1700000000, "model": "m"}
USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}


def _chunk(delta: Json, finish: Optional[str] = None) -> Json:
    return {**IDENTITY, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def events_of(wire: bytes) -> list[Json]:
    return [json.loads(event.data) for event in Cutter().feed(wire) if event != COMMENT]


def tell(writer: Writer, parts: Iterable[bytes]) -> bytes:
    """What a client reads while an engine's stream comes in these parts."""
    cutter = Cutter()
    told = b""
    for part in parts:
        for event in cutter.feed(part):
            if event != COMMENT:
                told += writer.done() if event.data == b"[DONE]" else writer.chunk(json.loads(event.data))
    return told


def put_together(events: list[Json]) -> list[Json]:
    """The output items, from what each event adds to them."""
    items: list[Json] = []
    for event in events:
        kind = event["type"]
        if kind == "response.output_item.added":
            assert event["output_index"] == len(items), kind
            items.append(event["item"])
        elif kind == "response.content_part.added":
            content = items[event["output_index"]]["content"]
            assert event["content_index"] == len(content), kind
            content.append(event["part"])
        elif kind == "response.function_call_arguments.delta":
            items[event["output_index"]]["arguments"] += event["delta"]
        elif kind.endswith(".delta"):
            key = "refusal" if "refusal" in kind else "text"
            items[event["output_index"]]["content"][event["content_index"]][key] += event["delta"]
        elif kind == "response.output_item.done":
            items[event["output_index"]]["status"] = event["item"]["status"]
            assert items[event["output_index"]] == event["item"], kind
    return items


class FuzzTest(unittest.TestCase):
    def test_a_chat_comes_back_from_responses_unchanged_in_meaning(self) -> None:
        def check(draw: Draw) -> None:
            chat = chat_of(draw)
            self.assertEqual(meaning(read(as_responses(chat)).chat), meaning(chat))

        for_many(TRANSLATED, check)

    def test_an_answer_that_a_client_sends_back_is_what_the_model_said(self) -> None:
        def check(draw: Draw) -> None:
            message = answer_of(draw)
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            output = read({"input": "hi"}).answer({**IDENTITY, "choices": [choice]})["output"]
            back = read({"input": [{"role": "user", "content": "hi"}, *output]}).chat["messages"]
            said = _meaning(message)
            if not said["content"] and len(said) > 2:
                said["content"] = None  # to say nothing beside other things is not to say anything
            self.assertEqual([_meaning(part) for part in back[1:]], [said])

        for_many(TRANSLATED, check)

    def test_a_stream_tells_the_same_however_it_is_cut(self) -> None:
        def check(draw: Draw) -> None:
            whole, chunks = stream_of(draw)
            conversation = read({"input": "hi"})
            wire = b"".join(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks) + b"data: [DONE]\n\n"
            told = tell(conversation.events(0), [wire])
            events = events_of(told)
            self.assertEqual(events[-1]["response"], conversation.answer(whole))
            self.assertEqual(put_together(events), events[-1]["response"]["output"])
            self.assertEqual([event["sequence_number"] for event in events], list(range(len(events))))
            place = draw.integer(0, len(wire))
            self.assertEqual(tell(conversation.events(0), [wire[:place], wire[place:]]), told)

        for_many(TRANSLATED, check)


class SplitTest(unittest.TestCase):
    def test_every_place_to_cut_a_stream_gives_the_same_events(self) -> None:
        call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "go", "arguments": '{"ä":'}}
        deltas: list[Json] = [{"reasoning_content": "hm"}, {"content": "é\n"}, {"content": "x"}, {"tool_calls": [call]}]
        deltas.append({"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]})
        chunks = [*map(_chunk, deltas), _chunk({}, "tool_calls")]
        wire = b"".join(b"data: %b\r\n\r\n" % json.dumps(chunk, ensure_ascii=False).encode() for chunk in chunks)
        wire = b": waiting\n\n" + wire + b"data: [DONE]\n\n"
        told = tell(read({"input": "hi"}).events(0), [wire])
        self.assertEqual(events_of(told)[-1]["type"], "response.completed")
        for place in range(len(wire) + 1):
            parts = [wire[:place], wire[place:]]
            self.assertEqual(tell(read({"input": "hi"}).events(0), parts), told)
        self.assertEqual(tell(read({"input": "hi"}).events(0), [wire[i : i + 1] for i in range(len(wire))]), told)
