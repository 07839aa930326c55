"""Thinking keeps its place among texts and calls, on every way between Anthropic's messages and chat."""

from __future__ import annotations

import json
import random
import unittest
from typing import Any

from gateway.dialects.anthropic.answers import completion_of, message_of
from gateway.dialects.anthropic.asking import messages_request
from gateway.dialects.anthropic.places import PLACES_MAX
from gateway.dialects.anthropic.plain import plain
from gateway.dialects.anthropic.reading import MessagesReader
from gateway.dialects.anthropic.requests import read
from gateway.dialects.anthropic.writing import MessagesWriter
from gateway.dialects.cutting import Cutter
from gateway.reuse.keeping import as_events
from gateway.upstream.answers import as_stream
from gateway.upstream.assembly import assembled
from gateway.upstream.fields import BY_PATH

CHAT = "/chat/completions"
HI = {"role": "user", "content": "hi"}
ROUNDS = 300
KINDS = ("thinking", "redacted_thinking", "text", "tool_use")


def block(kind: str, at: int) -> dict[str, Any]:
    """One that no other is like."""
    made: dict[str, dict[str, Any]] = {
        "thinking": {"thinking": f"hm {at} é😀", "signature": f"sig{at}"},
        "redacted_thinking": {"data": f"data{at}"},
        "text": {"text": f"words {at} é😀\n" * (at % 3 + 1)},
        "tool_use": {"id": f"toolu_{at}", "name": f"tool{at % 2}", "input": {"n": at} if at % 3 else {}},
    }
    return {"type": kind, **made[kind]}


def orders() -> list[list[dict[str, Any]]]:
    """Blocks in many orders, the same ones each time."""
    chance = random.Random(7)
    drawn = [[chance.choice(KINDS) for _ in range(chance.randint(1, 9))] for _ in range(ROUNDS)]
    drawn += [["thinking", "tool_use"] * 2, ["thinking", "text"] * 2 + ["tool_use"], ["text", "thinking", "text"]]
    return [[block(kind, at) for at, kind in enumerate(kinds)] for kinds in drawn]


def standing(blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As they stand in an answer that has been chat: what no thinking follows is one text, and then calls."""
    last = max((at for at, one in enumerate(blocks) if "thinking" in one["type"]), default=-1) + 1
    words = "".join(one["text"] for one in blocks[last:] if one["type"] == "text")
    calls = [one for one in blocks[last:] if one["type"] == "tool_use"]
    return blocks[:last] + ([{"type": "text", "text": words}] if words else []) + calls


def streamed(blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As they stand in a stream: texts one behind another are one."""
    told: list[dict[str, Any]] = []
    for one in blocks:
        if told and told[-1]["type"] == one["type"] == "text":
            told[-1] = {"type": "text", "text": told[-1]["text"] + one["text"]}
        else:
            told.append(one)
    return told


def message(blocks: list[dict[str, Any]]) -> dict[str, Any]:
    said = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude", "content": blocks}
    return {**said, "stop_reason": "end_turn", "usage": {"input_tokens": 5, "output_tokens": 3}}


def events_of(blocks: list[dict[str, Any]]) -> bytes:
    """The events of a message."""
    told: list[dict[str, Any]] = [{"type": "message_start", "message": {**message([]), "stop_reason": None}}]
    for at, one in enumerate(blocks):
        empty = {**one, **{key: {} if key == "input" else "" for key in ("thinking", "signature", "text", "input")}}
        begun = {key: empty[key] if key != "data" else one[key] for key in one}
        told.append({"type": "content_block_start", "index": at, "content_block": begun})
        deltas = []
        if one["type"] == "thinking":
            words = one["thinking"]
            deltas += [{"type": "thinking_delta", "thinking": piece} for piece in (words[:2], words[2:])]
            deltas.append({"type": "signature_delta", "signature": one["signature"]})
        elif one["type"] == "text":
            deltas += [{"type": "text_delta", "text": piece} for piece in (one["text"][:3], one["text"][3:])]
        elif one["type"] == "tool_use" and one["input"]:
            deltas.append({"type": "input_json_delta", "partial_json": json.dumps(one["input"])})
        told += [{"type": "content_block_delta", "index": at, "delta": delta} for delta in deltas]
        told.append({"type": "content_block_stop", "index": at})
    ends = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 3}}
    told += [ends, {"type": "message_stop"}]
    return b"".join(b"event: %b\ndata: %b\n\n" % (one["type"].encode(), json.dumps(one).encode()) for one in told)


def told_of(events: bytes) -> list[dict[str, Any]]:
    """The blocks that a client makes of a message's events."""
    blocks: list[dict[str, Any]] = []
    pieces: dict[int, str] = {}
    for one in (json.loads(event.data) for event in Cutter().feed(events) if event.data):
        if one["type"] == "content_block_start":
            assert one["index"] == len(blocks)
            blocks.append(dict(one["content_block"]))
        elif one["type"] == "content_block_delta":
            delta, said = one["delta"], blocks[one["index"]]
            for key in ("text", "thinking", "signature"):
                said.update({key: said[key] + delta[key]} if key in delta else {})
            pieces[one["index"]] = pieces.get(one["index"], "") + delta.get("partial_json", "")
    for at, one in enumerate(blocks):
        if one["type"] == "tool_use" and pieces.get(at):
            one["input"] = json.loads(pieces[at])
    return blocks


def written(chunks: bytes) -> list[dict[str, Any]]:
    """What an Anthropic client is told of a chat stream."""
    writer = MessagesWriter("m", frozenset(), 9)
    lines = [event.data for event in Cutter().feed(chunks) if event.data not in (b"", b"[DONE]")]
    return told_of(b"".join(writer.chunk(json.loads(line)) for line in lines) + writer.done())


class HistoryTest(unittest.TestCase):
    def rich(self, blocks: list[dict[str, Any]]) -> dict[str, Any]:
        results = [
            {"type": "tool_result", "tool_use_id": one["id"], "content": "ok"}
            for one in blocks
            if one["type"] == "tool_use"
        ]
        then = {"role": "user", "content": [*results, {"type": "text", "text": "and?"}]}
        messages = [HI, {"role": "assistant", "content": blocks}, then]
        return read(json.loads(json.dumps({"model": "m", "max_tokens": 9, "messages": messages}))).rich

    def test_an_engine_of_the_same_dialect_gets_an_answer_back_as_it_was(self) -> None:
        for blocks in orders():
            with self.subTest([one["type"] for one in blocks]):
                self.assertEqual(messages_request(self.rich(blocks))["messages"][1]["content"], blocks)

    def test_any_other_engine_gets_one_message_whose_results_follow_it(self) -> None:
        for blocks in orders():
            with self.subTest([one["type"] for one in blocks]):
                chat = plain(self.rich(blocks))
                BY_PATH[CHAT].validate(chat)
                calls = [one["id"] for one in blocks if one["type"] == "tool_use"]
                roles = [said["role"] for said in chat["messages"]]
                self.assertEqual(roles, ["user", "assistant", *["tool"] * len(calls), "user"])
                said = chat["messages"][1]
                self.assertEqual([call["id"] for call in said.get("tool_calls", ())], calls)
                words = "".join(one.get("text", "") for one in blocks)
                self.assertEqual(said["content"] or "", words)
                self.assertEqual(said.get("reasoning_content", ""), "".join(one.get("thinking", "") for one in blocks))
                self.assertLessEqual(set(said), {"role", "content", "reasoning_content", "tool_calls"})
                self.assertNotIn("sig", json.dumps(chat))

    def test_turns_of_many_messages_become_one_in_no_time(self) -> None:
        chat = {"model": "m", "messages": [HI, *[{"role": "assistant", "content": "a"}] * 50_000]}
        self.assertEqual(len(plain(chat)["messages"][1]["content"]), 50_000)


class AnswerTest(unittest.TestCase):
    def told(self, completion: dict[str, Any]) -> list[dict[str, Any]]:
        content = message_of(json.loads(json.dumps(completion)), "m", frozenset())["content"]
        assert isinstance(content, list)
        return content

    def test_a_whole_answer_comes_as_it_was(self) -> None:
        for blocks in orders():
            with self.subTest([one["type"] for one in blocks]):
                self.assertEqual(self.told(completion_of(message(blocks), 7)), standing(blocks))

    def test_thinking_that_comes_first_says_nothing_of_its_place(self) -> None:
        first = [block(kind, at) for at, kind in enumerate(("thinking", "redacted_thinking", "text", "tool_use"))]
        self.assertEqual(completion_of(message(first), 7)["choices"][0]["message"]["thinking_blocks"], first[:2])

    def test_an_openai_client_gives_an_answer_back_in_its_order(self) -> None:
        for blocks in orders():
            with self.subTest([one["type"] for one in blocks]):
                for completion in (completion_of(message(blocks), 7), self.of_stream(blocks)):
                    said = json.loads(json.dumps(completion))["choices"][0]["message"]
                    asked = messages_request({"model": "m", "messages": [HI, said, HI]})
                    before = streamed(standing(blocks))
                    self.assertEqual(streamed(asked["messages"][1]["content"]), before)
                    text = json.dumps(plain({"model": "m", "messages": [HI, said, HI]}))
                    self.assertNotIn("behind", text)

    def of_stream(self, blocks: list[dict[str, Any]]) -> dict[str, Any]:
        whole: dict[str, Any] = json.loads(assembled(MessagesReader(7).feed(events_of(blocks)), CHAT))
        return whole

    def test_places_that_are_none_lose_nothing(self) -> None:
        thinking, use = block("thinking", 0), block("tool_use", 1)
        call = {"id": "toolu_1", "type": "function", "function": {"name": "tool1", "arguments": '{"n": 1}'}}
        odd: Any
        for odd in (None, 7, "x", {}, [None, "x", True, -1, 1.5, {}], [0] * 9, [10**4000] * 9, [3, 0, 0, 9]):
            with self.subTest(str(odd)[:50]):
                said = {"content": "words", "thinking_blocks": [{**thinking, "behind": odd}], "tool_calls": [call]}
                for told in (
                    message_of({"id": "x", "choices": [{"message": said}]}, "m", frozenset())["content"],
                    messages_request({"model": "m", "messages": [HI, {"role": "assistant", **said}]})["messages"][1][
                        "content"
                    ],
                ):
                    self.assertEqual(told.count(thinking), 1)
                    self.assertEqual(told.count(use), 1)
                    self.assertEqual("".join(one.get("text", "") for one in told), "words")


class StreamTest(unittest.TestCase):
    def test_a_stream_comes_as_it_was(self) -> None:
        for blocks in orders():
            with self.subTest([one["type"] for one in blocks]):
                self.assertEqual(written(MessagesReader(7).feed(events_of(blocks))), streamed(blocks))

    def test_a_stream_that_is_put_together_is_the_whole_answer(self) -> None:
        for blocks in orders():
            with self.subTest([one["type"] for one in blocks]):
                whole = json.loads(assembled(MessagesReader(7).feed(events_of(blocks)), CHAT))
                self.assertEqual(message_of(whole, "m", frozenset())["content"], standing(blocks))

    def test_a_whole_answer_is_told_as_a_stream(self) -> None:
        for blocks in orders():
            with self.subTest([one["type"] for one in blocks]):
                whole = completion_of(message(blocks), 7)
                for chunks in (as_stream(whole, CHAT), as_events(json.dumps(whole).encode(), CHAT, True)):
                    self.assertEqual(written(chunks), streamed(standing(blocks)))

    def test_what_is_kept_of_what_thinking_stands_behind_is_bounded(self) -> None:
        reader = MessagesReader(7)
        reader.feed(events_of([]).split(b"event: message_delta")[0])
        text = b'data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":"x"}}\n\n'
        for _ in range(PLACES_MAX + 9):
            reader.feed(text)
        thought = {"type": "redacted_thinking", "data": "x"}
        begun = {"type": "content_block_start", "index": 0, "content_block": thought}
        told = json.loads(reader.feed(b"data: %b\n\n" % json.dumps(begun).encode())[6:])
        behind = told["choices"][0]["delta"]["thinking_blocks"][0]["behind"]
        self.assertEqual((len(behind), sum(behind)), (PLACES_MAX, PLACES_MAX + 9))


if __name__ == "__main__":
    unittest.main()
