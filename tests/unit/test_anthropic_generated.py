"""Translations of generated conversations: to Anthropic's words and back they mean what they did.

Skipped where hypothesis is missing; with REQUIRE_HYPOTHESIS=1 that is a failure. TRANSLATED says how many
conversations, and as many streams.
"""

from __future__ import annotations

import importlib.util
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

MISSING = importlib.util.find_spec("hypothesis") is None
TRANSLATED = int(os.environ.get("TRANSLATED", "60"))

if not MISSING:
    from hypothesis import given, settings
    from hypothesis import strategies as st

    profile = settings(max_examples=TRANSLATED, deadline=None, database=None)

    texts = st.text(max_size=12)
    names = st.text("abcXYZ019_-", min_size=1, max_size=8)
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
        max_leaves=6,
    )
    objects = st.dictionaries(texts, values, max_size=3)
    marks = st.fixed_dictionaries({}, optional={"cache_control": st.just({"type": "ephemeral"})})
    text_parts = st.builds(lambda words, mark: {"type": "text", "text": words, **mark}, texts, marks)
    urls = st.sampled_from(
        [
            "https://example.org/a.png",
            "http://example.org/b?c,d",
            "data:image/png;base64,AAAA",
            "data:image/webp;base64,",
        ]
    )
    images = st.builds(lambda url, mark: {"type": "image_url", "image_url": {"url": url}, **mark}, urls, marks)
    files = st.builds(
        lambda name, url: {"type": "file", "file": {"filename": name, "file_data": url}},
        names,
        st.sampled_from(["https://example.org/a.pdf", "data:application/pdf;base64,JVBERi0="]),
    )
    user_messages = st.builds(
        lambda content: {"role": "user", "content": content},
        texts | st.lists(text_parts | images | files, min_size=1, max_size=4),
    )
    thoughts = st.lists(
        st.builds(lambda words, sign: {"type": "thinking", "thinking": words, "signature": sign}, texts, names)
        | st.builds(lambda data: {"type": "redacted_thinking", "data": data}, texts),
        max_size=3,
    )

    @st.composite
    def rounds(draw: Any) -> list[dict[str, Any]]:
        """What the user says, the answer, and the results of the tools that it calls, with texts and images."""
        said: dict[str, Any] = {"role": "assistant", "content": draw(texts)}
        thinking = draw(thoughts)
        if thinking:
            said["thinking_blocks"] = thinking
        called = draw(st.lists(st.tuples(names, objects), max_size=3, unique_by=lambda call: call[0]))
        if called:
            said["tool_calls"] = [
                {"id": f"call_{at}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
                for at, (name, arguments) in enumerate(called)
            ]
        results = []
        for at in range(len(called)):
            content = draw(texts | st.lists(text_parts | images, min_size=1, max_size=3))
            failed = draw(st.fixed_dictionaries({}, optional={"is_error": st.just(True)}))
            results.append({"role": "tool", "tool_call_id": f"call_{at}", "content": content, **failed})
        return [draw(user_messages), said, *results]

    tools = st.builds(
        lambda name, described, schema, strict: {
            "type": "function",
            "function": {"name": name, **described, "parameters": schema, **strict},
        },
        names,
        st.fixed_dictionaries({}, optional={"description": texts}),
        st.just({"type": "object"}) | objects,
        st.fixed_dictionaries({}, optional={"strict": st.just(True)}),
    )

    @st.composite
    def chats(draw: Any) -> dict[str, Any]:
        system = draw(st.lists(st.builds(lambda words: {"role": "system", "content": words}, texts), max_size=2))
        history = [message for part in draw(st.lists(rounds(), max_size=3)) for message in part]
        chat = {"model": "m", "messages": [*system, *history, {"role": "user", "content": "now"}]}
        chat.update(
            draw(
                st.fixed_dictionaries(
                    {"max_tokens": st.integers(1, 9999)},
                    optional={
                        "temperature": st.floats(0, 1),
                        "top_p": st.floats(0, 1),
                        "stop": st.lists(names, min_size=1, max_size=3),
                        "user": names,
                        "stream": st.booleans(),
                        "reasoning_effort": st.sampled_from(["low", "medium", "high", "xhigh", "max"]),
                        "response_format": st.builds(
                            lambda schema: {
                                "type": "json_schema",
                                "json_schema": {"name": "output", "schema": schema, "strict": True},
                            },
                            objects,
                        ),
                    },
                )
            )
        )
        if draw(st.booleans()):
            chat["tools"] = draw(st.lists(tools, min_size=1, max_size=3))
            named = {"type": "function", "function": {"name": chat["tools"][0]["function"]["name"]}}
            chat.update(
                draw(
                    st.fixed_dictionaries(
                        {"tool_choice": st.sampled_from(["auto", "required", named])},
                        optional={"parallel_tool_calls": st.just(False)},
                    )
                )
            )
        return chat

    calls = st.lists(st.tuples(names, objects), max_size=3)

    @st.composite
    def chunked(draw: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """An assistant's message, and deltas that say it piece by piece."""
        said: dict[str, Any] = {}
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        for number, block in enumerate(draw(thoughts)):
            said.setdefault("thinking_blocks", []).append(block)
            if block["type"] == "thinking":
                deltas += [
                    {"thinking_blocks": [{"index": number, "type": "thinking", "thinking": piece}]}
                    for piece in pieces(draw, block["thinking"])
                ]
                block = {"type": "thinking", "signature": block["signature"]}
            deltas.append({"thinking_blocks": [{"index": number, **block}]})
        content = draw(texts)
        if content:
            said["content"] = content
            deltas += [{"content": piece} for piece in pieces(draw, content)]
        told: list[list[dict[str, Any]]] = []
        for number, (name, arguments) in enumerate(draw(calls)):
            call = {"id": f"call_{number}", "type": "function"}
            words = json.dumps(arguments)
            said.setdefault("tool_calls", []).append({**call, "function": {"name": name, "arguments": words}})
            told.append([{"index": number, **call, "function": {"name": name, "arguments": ""}}])
            told[-1] += [{"index": number, "function": {"arguments": piece}} for piece in pieces(draw, words)]
        if draw(st.booleans()):  # several calls at once, begun in their order
            begun = [pieces_.pop(0) for pieces_ in told]
            deltas += [{"tool_calls": [piece]} for piece in begun]
            while any(told):
                deltas.append({"tool_calls": [pieces_.pop(0) for pieces_ in told if pieces_]})
            told = []
        deltas += [{"tool_calls": [piece]} for pieces_ in told for piece in pieces_]
        return said, deltas

    @st.composite
    def broken(draw: Any, whole: Any) -> Any:
        """A JSON value in which some are others than they should be, or missing."""
        value = json.loads(json.dumps(draw(whole)))
        for _ in range(draw(st.integers(1, 3))):
            holder, key = None, None
            inner = value
            while isinstance(inner, (dict, list)) and inner and (holder is None or draw(st.integers(0, 3))):
                holder = inner
                key = draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner))))
                inner = inner[key]
            if isinstance(holder, dict) and draw(st.booleans()):
                del holder[key]
            elif holder is not None:
                holder[key] = draw(values | st.sampled_from([holder, inner]).map(json.dumps).map(json.loads))
        return value

    def pieces(draw: Any, words: str) -> list[str]:
        cuts = sorted(draw(st.lists(st.integers(0, len(words)), max_size=4)))
        return [words[start:end] for start, end in zip([0, *cuts], [*cuts, len(words)])]


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


class RequirementTest(unittest.TestCase):
    @unittest.skipUnless(os.environ.get("REQUIRE_HYPOTHESIS") == "1", "REQUIRE_HYPOTHESIS=1 is not set")
    def test_hypothesis_is_installed(self) -> None:
        self.assertFalse(MISSING, "REQUIRE_HYPOTHESIS=1, but hypothesis is missing")


@unittest.skipIf(MISSING, "hypothesis is not installed")
class GeneratedTest(unittest.TestCase):
    def test_a_conversation_comes_back_as_it_was(self) -> None:
        @profile
        @given(chats())
        def check(chat: dict[str, Any]) -> None:
            asked = json.loads(json.dumps(messages_request(chat)))
            again = json.loads(json.dumps(read(asked).rich))
            BY_PATH["/chat/completions"].validate(again)
            BY_PATH["/chat/completions"].validate(plain(again))
            self.assertEqual(meaning(again), meaning(json.loads(json.dumps(chat))))
            roles = [message["role"] for message in asked["messages"]]
            self.assertTrue(all(one != other for one, other in zip(roles, roles[1:])), roles)
            self.assertEqual(messages_request(again), asked)

        check()

    def test_an_answer_comes_back_as_it_was(self) -> None:
        @profile
        @given(chunked(), st.sampled_from(["stop", "length", "content_filter"]), *[st.integers(0, 9)] * 3)
        def check(whole: Any, finish: str, prompt: int, cached: int, written: int) -> None:
            said = without_emptiness({**whole[0]})
            choice = {"index": 0, "message": whole[0], "finish_reason": finish}
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

        check()

    def test_a_stream_comes_back_as_it_was_wherever_it_is_cut(self) -> None:
        @profile
        @given(chunked(), st.data())
        def check(whole: Any, data: Any) -> None:
            said, deltas = whole
            writer = MessagesWriter("m", frozenset(), 9)
            events = b"".join(
                writer.chunk({"id": "x", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
                for delta in deltas
            )
            events += writer.chunk({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}) + writer.done()
            chunks = MessagesReader(7).feed(events)
            self.assertEqual(without_emptiness(assembled(payloads(chunks))), without_emptiness(said))
            self.assertTrue(chunks.endswith(b"data: [DONE]\n\n"))
            cuts = sorted(data.draw(st.lists(st.integers(0, len(events)), max_size=5)))
            reader = MessagesReader(7)
            parts = [events[start:end] for start, end in zip([0, *cuts], [*cuts, len(events)])]
            self.assertEqual(b"".join(map(reader.feed, parts)), chunks)

        check()

    def test_a_request_that_is_none_is_refused_by_a_path(self) -> None:
        @profile
        @given(broken(chats()), broken(chats().map(messages_request)))
        def check(chat: Any, asked: Any) -> None:
            for translate, request in ((messages_request, chat), (read, asked)):
                try:
                    told = translate(request)
                except RequestRefused as refused:
                    self.assertTrue(refused.param and refused.message.startswith(refused.param))
                else:
                    json.dumps(told if isinstance(told, dict) else [told.rich, told.chat])

        check()

    def test_whatever_an_engine_answers_is_told(self) -> None:
        def completed(whole: Any) -> Any:
            choice = {"index": 0, "message": whole[0], "finish_reason": "stop", "stop_reason": "x"}
            return {"id": "x", "choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 7}}

        def streamed(whole: Any) -> Any:
            return [{"id": "x", "choices": [{"index": 0, "delta": delta}], "usage": {}} for delta in whole[1]]

        def told(chunks: Any) -> Any:
            writer = MessagesWriter("m", frozenset(), 9)
            events = b"".join(writer.chunk(chunk) for chunk in chunks if isinstance(chunk, dict)) + writer.done()
            return payloads(events)

        @profile
        @given(
            broken(chunked().map(completed)), broken(chunked().map(streamed)), broken(chunked().map(streamed).map(told))
        )
        def check(chat: Any, chunks: Any, events: Any) -> None:
            if isinstance(chat, dict):
                message = message_of(chat, "m", frozenset("x"))
                json.dumps(completion_of(message, 7), allow_nan=False)
            self.assertEqual(told(chunks)[-1], {"type": "message_stop"})
            reader = MessagesReader(7)
            payloads(b"".join(reader.feed(b"data: %b\n\n" % json.dumps(event).encode()) for event in events))

        check()


if __name__ == "__main__":
    unittest.main()
