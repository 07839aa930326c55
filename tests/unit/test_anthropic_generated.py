"""Translations of generated conversations: to Anthropic's words and back they mean what they did.

TRANSLATED says how many of each kind.
"""

from __future__ import annotations

import json
import os
import unittest
from typing import Any

from gateway.dialects.anthropic.answers import completion_of, message_of
from gateway.dialects.anthropic.asking import messages_request
from gateway.dialects.anthropic.plain import plain
from gateway.dialects.anthropic.reading import MessagesReader
from gateway.dialects.anthropic.requests import read
from gateway.dialects.anthropic.writing import MessagesWriter
from gateway.dialects.cutting import Cutter
from gateway.errors import RequestRefused
from gateway.upstream.fields import BY_PATH
from tests.drawing import Draw, for_many

TRANSLATED = int(os.environ.get("TRANSLATED", "100"))

URLS = (
    "https://example.org/a.png",
    "http://example.org/b?c,d",
    "data:image/png;base64,AAAA",
    "data:image/webp;base64,",
)
DOCUMENTS = ("https://example.org/a.pdf", "data:application/pdf;base64,JVBERi0=")
MARK = {"type": "ephemeral"}
EFFORTS = ("low", "medium", "high", "xhigh", "max")


# --- what is generated ---------------------------------------------------------------------------------------------


def part(draw: Draw, kinds: int = 2) -> dict[str, Any]:
    """A text, an image or, of three kinds, a file."""
    kind = draw.integer(0, kinds)
    if kind == 2:
        return {"type": "file", "file": {"filename": draw.name(), "file_data": draw.pick(DOCUMENTS)}}
    mark = draw.maybe(cache_control=lambda: MARK)
    if kind == 1:
        return {"type": "image_url", "image_url": {"url": draw.pick(URLS)}, **mark}
    return {"type": "text", "text": draw.text(), **mark}


def content_of(draw: Draw, parts: int, kinds: int) -> Any:
    return draw.some(lambda: part(draw, kinds), parts, 1) if draw.flag() else draw.text()


def thought(draw: Draw) -> dict[str, Any]:
    if draw.flag():
        return {"type": "redacted_thinking", "data": draw.text()}
    return {"type": "thinking", "thinking": draw.text(), "signature": draw.name()}


def round_of(draw: Draw) -> list[dict[str, Any]]:
    """What the user says, the answer, and the results of the tools that it calls, with texts and images."""
    asked = {"role": "user", "content": content_of(draw, 4, 2)}
    said: dict[str, Any] = {"role": "assistant", "content": draw.text()}
    thinking = draw.some(lambda: thought(draw), 3)
    if thinking:
        said["thinking_blocks"] = thinking
    called = {draw.name(): draw.object() for _ in range(draw.integer(0, 3))}
    if called:
        said["tool_calls"] = [
            {"id": f"call_{at}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
            for at, (name, arguments) in enumerate(called.items())
        ]
    results = [
        {
            "role": "tool",
            "tool_call_id": f"call_{at}",
            "content": content_of(draw, 3, 1),
            **draw.maybe(is_error=lambda: True),
        }
        for at in range(len(called))
    ]
    return [asked, said, *results]


def tool(draw: Draw) -> dict[str, Any]:
    function = {
        "name": draw.name(),
        **draw.maybe(description=draw.text),
        "parameters": draw.object() if draw.flag() else {"type": "object"},
        **draw.maybe(strict=lambda: True),
    }
    return {"type": "function", "function": function}


def format_of(draw: Draw) -> dict[str, Any]:
    schema = {"name": "output", "schema": draw.object(), "strict": True}
    return {"type": "json_schema", "json_schema": schema}


def chat_of(draw: Draw) -> dict[str, Any]:
    """A chat request, with tools and images, and several rounds of both."""
    system = draw.some(lambda: {"role": "system", "content": draw.text()}, 2)
    history = [message for one in draw.some(lambda: round_of(draw), 3) for message in one]
    chat = {"model": "m", "messages": [*system, *history, {"role": "user", "content": "now"}]}
    chat["max_tokens"] = draw.integer(1, 9999)
    chat.update(
        draw.maybe(
            temperature=lambda: draw.float(0, 1),
            top_p=lambda: draw.float(0, 1),
            stop=lambda: draw.some(draw.name, 3, 1),
            user=draw.name,
            stream=draw.flag,
            reasoning_effort=lambda: draw.pick(EFFORTS),
            response_format=lambda: format_of(draw),
        )
    )
    if draw.flag():
        chat["tools"] = draw.some(lambda: tool(draw), 3, 1)
        named = {"type": "function", "function": {"name": chat["tools"][0]["function"]["name"]}}
        chat["tool_choice"] = draw.pick(("auto", "required", named))
        chat.update(draw.maybe(parallel_tool_calls=lambda: False))
    return chat


def chunked(draw: Draw) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """An assistant's message, and deltas that say it piece by piece."""
    said: dict[str, Any] = {}
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    for number, block in enumerate(draw.some(lambda: thought(draw), 3)):
        said.setdefault("thinking_blocks", []).append(block)
        if block["type"] == "thinking":
            deltas += [
                {"thinking_blocks": [{"index": number, "type": "thinking", "thinking": piece}]}
                for piece in draw.cut(block["thinking"])
            ]
            block = {"type": "thinking", "signature": block["signature"]}
        deltas.append({"thinking_blocks": [{"index": number, **block}]})
    content = draw.text()
    if content:
        said["content"] = content
        deltas += [{"content": piece} for piece in draw.cut(content)]
    told: list[list[dict[str, Any]]] = []
    for number in range(draw.integer(0, 3)):
        call = {"id": f"call_{number}", "type": "function"}
        name, words = draw.name(), json.dumps(draw.object())
        said.setdefault("tool_calls", []).append({**call, "function": {"name": name, "arguments": words}})
        told.append([{"index": number, **call, "function": {"name": name, "arguments": ""}}])
        told[-1] += [{"index": number, "function": {"arguments": piece}} for piece in draw.cut(words)]
    if draw.flag():  # several calls at once, begun in their order
        begun = [pieces.pop(0) for pieces in told]
        deltas += [{"tool_calls": [piece]} for piece in begun]
        while any(told):
            deltas.append({"tool_calls": [pieces.pop(0) for pieces in told if pieces]})
        told = []
    deltas += [{"tool_calls": [piece]} for pieces in told for piece in pieces]
    return said, deltas


def broken(draw: Draw, whole: Any) -> Any:
    """A JSON value in which some are others than they should be, or missing."""
    value = json.loads(json.dumps(whole))
    for _ in range(draw.integer(1, 3)):
        holder, key = None, None
        inner = value
        while isinstance(inner, (dict, list)) and inner and (holder is None or draw.integer(0, 3)):
            holder = inner
            key = draw.pick(sorted(inner) if isinstance(inner, dict) else range(len(inner)))
            inner = inner[key]
        if isinstance(holder, dict) and draw.flag():
            del holder[key]
        elif holder is not None:
            holder[key] = draw.value() if draw.flag() else json.loads(json.dumps(draw.pick((holder, inner))))
    return value


# --- what it means -------------------------------------------------------------------------------------------------


def meaning(chat: dict[str, Any]) -> Any:
    """What a chat request says, however its messages and texts are cut: who says what, one after another."""
    turns: list[tuple[str, list[Any]]] = []
    first = [message for message in chat["messages"] if message["role"] == "system"]
    for message in first + [message for message in chat["messages"] if message["role"] != "system"]:
        role = message["role"]
        said = [*message.get("thinking_blocks", ()), *_parts(message["content"])]
        for call in message.get("tool_calls", ()):
            function = call["function"]
            said.append(("call", call["id"], function["name"], json.loads(function["arguments"])))
        if role == "tool":
            said = [("result", message["tool_call_id"], message.get("is_error", False), said)]
        if said and turns and turns[-1][0] == role:
            turns[-1][1].extend(said)
        elif said:
            turns.append((role, said))
    left_out = {"messages", "thinking", "stream_options"}
    if "reasoning_effort" in chat:  # who thinks is not asked with a temperature
        left_out |= {"temperature", "top_p"}
    return turns, {key: value for key, value in chat.items() if key not in left_out}


def _parts(content: Any) -> list[Any]:
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    return [part for part in content or () if part.get("text", "x").strip()]


def assembled(chunks: list[Any]) -> dict[str, Any]:
    """The message that a client makes of a stream's chunks, as OpenAI's package does."""
    said: dict[str, Any] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            delta = choice["delta"]
            if delta.get("content"):
                said["content"] = said.get("content", "") + delta["content"]
            for key in ("tool_calls", "thinking_blocks"):
                for piece in delta.get(key, ()):
                    items = said.setdefault(key, [])
                    if piece["index"] == len(items):
                        items.append({})
                    _add(items[piece["index"]], piece)
    return said


def _add(item: dict[str, Any], piece: dict[str, Any]) -> None:
    for key, value in piece.items():
        if isinstance(value, dict):
            _add(item.setdefault(key, {}), value)
        elif key in ("arguments", "thinking"):
            item[key] = item.get(key, "") + value
        elif key != "index":
            item[key] = value


def without_emptiness(said: dict[str, Any]) -> dict[str, Any]:
    """A message whose thinking has all its fields, and whose calls' arguments are what they say."""
    said = json.loads(json.dumps(said))
    for block in said.get("thinking_blocks", ()):
        if block["type"] == "thinking":
            block.setdefault("thinking", "")
    for call in said.get("tool_calls", ()):
        call["function"]["arguments"] = json.loads(call["function"]["arguments"] or "{}")
    return {key: value for key, value in said.items() if value and key in ("content", "thinking_blocks", "tool_calls")}


def payloads(data: bytes) -> list[Any]:
    return [json.loads(event.data) for event in Cutter().feed(data) if event.data not in (b"", b"[DONE]")]


class GeneratedTest(unittest.TestCase):
    def test_a_conversation_comes_back_as_it_was(self) -> None:
        def check(draw: Draw) -> None:
            chat = chat_of(draw)
            asked = json.loads(json.dumps(messages_request(chat)))
            again = json.loads(json.dumps(read(asked).rich))
            BY_PATH["/chat/completions"].validate(again)
            BY_PATH["/chat/completions"].validate(plain(again))
            self.assertEqual(meaning(again), meaning(json.loads(json.dumps(chat))))
            roles = [message["role"] for message in asked["messages"]]
            self.assertTrue(all(one != other for one, other in zip(roles, roles[1:])), roles)
            self.assertEqual(messages_request(again), asked)

        for_many(TRANSLATED, check)

    def test_an_answer_comes_back_as_it_was(self) -> None:
        def check(draw: Draw) -> None:
            message, _ = chunked(draw)
            finish = draw.pick(("stop", "length", "content_filter"))
            prompt, cached, written = (draw.integer(0, 9) for _ in range(3))
            said = without_emptiness(message)
            choice = {"index": 0, "message": message, "finish_reason": finish}
            details = {"cached_tokens": cached, "cache_write_tokens": written}
            tokens = prompt + cached + written
            usage = {"prompt_tokens": tokens, "completion_tokens": 7, "prompt_tokens_details": details}
            told = message_of({"id": "x", "model": "m", "choices": [choice], "usage": usage}, "m", frozenset())
            again = completion_of(json.loads(json.dumps(told)), 7)
            found = again["choices"][0]
            self.assertEqual(without_emptiness(found["message"]), said)
            self.assertEqual({key: again["usage"][key] for key in usage}, usage)
            if finish != "stop" or not said.get("tool_calls"):
                self.assertEqual(found["finish_reason"], finish)

        for_many(TRANSLATED, check)

    def test_a_stream_comes_back_as_it_was_wherever_it_is_cut(self) -> None:
        def check(draw: Draw) -> None:
            said, deltas = chunked(draw)
            writer = MessagesWriter("m", frozenset(), 9)
            events = b"".join(
                writer.chunk({"id": "x", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
                for delta in deltas
            )
            events += writer.chunk({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}) + writer.done()
            chunks = MessagesReader(7).feed(events)
            self.assertEqual(without_emptiness(assembled(payloads(chunks))), without_emptiness(said))
            self.assertTrue(chunks.endswith(b"data: [DONE]\n\n"))
            cuts = sorted(draw.some(lambda: draw.integer(0, len(events)), 5))
            reader = MessagesReader(7)
            parts = [events[start:end] for start, end in zip([0, *cuts], [*cuts, len(events)])]
            self.assertEqual(b"".join(map(reader.feed, parts)), chunks)

        for_many(TRANSLATED, check)

    def test_a_request_that_is_none_is_refused_by_a_path(self) -> None:
        def check(draw: Draw) -> None:
            for translate, request in (
                (messages_request, broken(draw, chat_of(draw))),
                (read, broken(draw, messages_request(chat_of(draw)))),
            ):
                try:
                    told = translate(request)
                except RequestRefused as refused:
                    self.assertTrue(refused.param and refused.message.startswith(refused.param))
                else:
                    json.dumps(told if isinstance(told, dict) else [told.rich, told.chat])

        for_many(TRANSLATED, check)

    def test_whatever_an_engine_answers_is_told(self) -> None:
        def completed(message: Any) -> Any:
            choice = {"index": 0, "message": message, "finish_reason": "stop", "stop_reason": "x"}
            return {"id": "x", "choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 7}}

        def streamed(deltas: Any) -> Any:
            return [{"id": "x", "choices": [{"index": 0, "delta": delta}], "usage": {}} for delta in deltas]

        def told(chunks: Any) -> Any:
            writer = MessagesWriter("m", frozenset(), 9)
            events = b"".join(writer.chunk(chunk) for chunk in chunks if isinstance(chunk, dict)) + writer.done()
            return payloads(events)

        def check(draw: Draw) -> None:
            chat = broken(draw, completed(chunked(draw)[0]))
            if isinstance(chat, dict):
                message = message_of(chat, "m", frozenset("x"))
                json.dumps(completion_of(message, 7), allow_nan=False)
            chunks = broken(draw, streamed(chunked(draw)[1]))
            self.assertEqual(told(chunks)[-1], {"type": "message_stop"})
            reader = MessagesReader(7)
            events = broken(draw, told(streamed(chunked(draw)[1])))
            payloads(b"".join(reader.feed(b"data: %b\n\n" % json.dumps(event).encode()) for event in events))

        for_many(TRANSLATED, check)


if __name__ == "__main__":
    unittest.main()
