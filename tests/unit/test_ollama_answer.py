"""What Ollama's clients are told: one object, or a line for each thing that is said."""

from __future__ import annotations

import itertools
import json
import unittest
from typing import Any, Optional

from gateway.dialects.ollama import request
from gateway.dialects.ollama.conversation import Conversation, Writer, error_of
from gateway.dialects.ollama.times import Times
from gateway.errors import EngineFailed

Json = dict[str, Any]

USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
AT = "2023-11-14T22:13:20.500000Z"
DURATIONS = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")
ERROR = EngineFailed("backend_error", "the engine's stream broke off")


def times() -> Times:
    """A clock by which each look at it comes a second after the one before."""
    return Times(lambda: 1700000000.5, map(float, itertools.count(101)).__next__, 100.0)


def asked(**fields: Any) -> Conversation:
    read = request.read_generate if "prompt" in fields else request.read_chat
    told = read({"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}, times())
    assert isinstance(told, Conversation)
    return told


def answer(message: Json, finish: str = "stop", conversation: Optional[Conversation] = None, **extra: Any) -> Json:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish, **extra}
    return (conversation or asked()).answer({"id": "x", "model": "engine's", "choices": [choice], "usage": USAGE})


def chunk(delta: Optional[Json] = None, finish: Optional[str] = None, **extra: Any) -> Json:
    return {"id": "x", "choices": [{"index": 0, "delta": delta or {}, "finish_reason": finish, **extra}]}


def lines(wire: bytes) -> list[Json]:
    assert wire.endswith(b"\n")
    return [json.loads(line) for line in wire.splitlines()]


def told(*chunks: Json, writer: Optional[Writer] = None) -> list[Json]:
    writer = writer or asked().events(0)
    return lines(b"".join(map(writer.chunk, chunks)) + writer.done())


def called(name: str, arguments: str, **extra: Any) -> Json:
    return {"id": f"id of {name}", "function": {"name": name, "arguments": arguments}, **extra}


class AnswerTest(unittest.TestCase):
    def test_a_text_is_a_message_with_the_end_beside_it(self) -> None:
        expected = {
            "model": "m",
            "created_at": AT,
            "message": {"role": "assistant", "content": "Hello"},
            "done": True,
            "done_reason": "stop",
            "total_duration": 1_000_000_000,
            "load_duration": 0,
            "prompt_eval_count": 7,
            "prompt_eval_duration": 0,
            "eval_count": 5,
            "eval_duration": 1_000_000_000,
        }
        self.assertEqual(answer({"content": "Hello"}), expected)

    def test_a_prompts_answer_is_a_response(self) -> None:
        said = answer({"content": "Hello", "reasoning": "hm"}, conversation=asked(prompt="hi"))
        self.assertEqual((said["response"], said["thinking"]), ("Hello", "hm"))
        raw = asked(prompt="hi", raw=True).answer({"choices": [{"text": "Hello", "finish_reason": "length"}]})
        self.assertEqual((raw["response"], raw["done_reason"], raw["eval_count"]), ("Hello", "length", 0))

    def test_arguments_are_objects(self) -> None:
        calls = [called("look", '{"at": [1]}'), called("go", ""), called("", "{}")]
        said = answer({"content": None, "tool_calls": calls}, "tool_calls")
        look = {"id": "id of look", "function": {"index": 0, "name": "look", "arguments": {"at": [1]}}}
        go = {"id": "id of go", "function": {"index": 1, "name": "go", "arguments": {}}}
        self.assertEqual(said["message"], {"role": "assistant", "content": "", "tool_calls": [look, go]})
        self.assertEqual(said["done_reason"], "stop")

    def test_arguments_that_are_no_object_are_the_engines_failure(self) -> None:
        for arguments in ("{", "[]", "3", '"x"', "null", "[" * 100_000):
            with self.subTest(arguments=arguments[:9]), self.assertRaises(EngineFailed) as caught:
                answer({"tool_calls": [called("look", arguments)]})
            self.assertEqual(caught.exception.code, "backend_error")

    def test_thoughts_are_shown_unless_the_client_wants_none(self) -> None:
        message = {"content": "so", "reasoning_content": "hm"}
        self.assertEqual(answer(message)["message"]["thinking"], "hm")
        self.assertNotIn("thinking", answer(message, conversation=asked(think=False))["message"])

    def test_a_refusal_is_text(self) -> None:
        self.assertEqual(answer({"content": None, "refusal": "No."})["message"]["content"], "No.")

    def test_tokens_are_told(self) -> None:
        tokens = [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}]
        self.assertEqual(answer({"content": "a"}, logprobs={"content": tokens})["logprobs"], tokens)

    def test_embeddings_come_in_the_order_of_the_texts(self) -> None:
        data = [{"index": 1, "embedding": [2.0]}, {"index": 0, "embedding": [1.0]}]
        embed: Any = request.read_embed({"model": "m", "input": ["a", "b"]}, times())
        said = embed.answer({"data": data, "usage": {"prompt_tokens": 2}})
        end = {"total_duration": 1_000_000_000, "load_duration": 0, "prompt_eval_count": 2}
        self.assertEqual(said, {"model": "m", "embeddings": [[1.0], [2.0]], **end})
        old: Any = request.read_embeddings({"model": "m", "prompt": "a"})
        self.assertEqual(old.answer({"data": data[1:]}), {"embedding": [1.0]})
        self.assertEqual(old.answer({}), {"embedding": []})


class LinesTest(unittest.TestCase):
    def test_a_text_is_told_as_it_comes_and_then_the_end(self) -> None:
        usage = {"choices": [], "usage": USAGE}
        said = told(
            chunk({"role": "assistant", "content": ""}),
            chunk({"content": "Hel"}),
            chunk({"content": "lo"}, "stop"),
            usage,
        )
        self.assertEqual([line["message"]["content"] for line in said], ["Hel", "lo", ""])
        self.assertEqual([line["done"] for line in said], [False, False, True])
        self.assertEqual({(line["model"], line["created_at"]) for line in said}, {("m", AT)})
        end = said[-1]
        self.assertEqual((end["done_reason"], end["prompt_eval_count"], end["eval_count"]), ("stop", 7, 5))
        self.assertEqual([end[key] for key in DURATIONS], [2_000_000_000, 0, 1_000_000_000, 1_000_000_000])

    def test_a_prompts_text_is_told_as_responses(self) -> None:
        said = told(chunk({"content": "Hel"}), chunk({"content": "lo"}, "stop"), writer=asked(prompt="hi").events(0))
        self.assertEqual([line["response"] for line in said], ["Hel", "lo", ""])
        raw = asked(prompt="hi", raw=True).events(0)
        said = told({"choices": [{"text": "Hel"}]}, {"choices": [{"text": "", "finish_reason": "length"}]}, writer=raw)
        self.assertEqual([line["response"] for line in said], ["Hel", ""])
        self.assertEqual(said[-1]["done_reason"], "length")

    def test_calls_are_told_whole_before_the_end(self) -> None:
        said = told(
            chunk({"content": "I look"}),
            chunk({"tool_calls": [called("look", '{"at"', index=0)]}),
            chunk({"tool_calls": [called("go", "{}", index=1)]}),
            chunk({"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]}, "tool_calls"),
        )
        self.assertEqual(len(said), 3)
        functions = [call["function"] for call in said[1]["message"]["tool_calls"]]
        expected = [{"index": 0, "name": "look", "arguments": {"at": 1}}, {"index": 1, "name": "go", "arguments": {}}]
        self.assertEqual(functions, expected)
        self.assertEqual(said[2]["done_reason"], "stop")

    def test_calls_that_cannot_be_told_are_no_good_end(self) -> None:
        writer = asked().events(0)
        writer.chunk(chunk({"tool_calls": [called("look", "{", index=0)]}, "tool_calls"))
        self.assertRaises(EngineFailed, writer.done)

    def test_thoughts_are_told_unless_the_client_wants_none(self) -> None:
        chunks = (chunk({"reasoning": "hm"}), chunk({"content": "so"}, "stop"))
        self.assertEqual(told(*chunks)[0]["message"], {"role": "assistant", "content": "", "thinking": "hm"})
        self.assertEqual(len(told(*chunks, writer=asked(think=False).events(0))), 2)

    def test_without_usage_the_end_tells_estimates(self) -> None:
        end = told(chunk({"content": "a"}), chunk({"content": "b"}, "stop"), writer=asked().events(9))[-1]
        self.assertEqual((end["prompt_eval_count"], end["eval_count"]), (9, 2))

    def test_waiting_keeps_the_next_line_json(self) -> None:
        writer = asked().events(0)
        wire = writer.alive() + writer.chunk(chunk({"content": "a"})) + writer.alive() * 2 + writer.done()
        self.assertEqual([line["done"] for line in lines(wire)], [False, True])
        self.assertTrue(writer.alive())

    def test_a_broken_stream_ends_in_an_error_and_is_not_done(self) -> None:
        writer = asked().events(0)
        said = lines(writer.chunk(chunk({"content": "a"})) + writer.alive() + writer.failed(ERROR, "req-1"))
        self.assertEqual(said[-1], {"error": ERROR.message})
        self.assertFalse(said[0]["done"])
        self.assertEqual(error_of(ERROR), {"error": ERROR.message})

    def test_what_is_malformed_counts_as_absent(self) -> None:
        writer = asked().events(0)
        odd: Any = (None, 3, "x", [], {}, [None], float("inf"))
        for value in odd:
            writer.chunk({"choices": value, "usage": value})
            for key in ("delta", "logprobs", "finish_reason", "index", "text"):
                writer.chunk({"choices": [{key: value}]})
            for key in ("content", "reasoning", "tool_calls"):
                writer.chunk(chunk({key: value}))
        self.assertTrue(lines(writer.done())[-1]["done"])
