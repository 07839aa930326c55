"""Answers in OpenAI's shape: what an engine's body must be, what the client gets of it, and the echo engine's own."""

from __future__ import annotations

import json
import random
import unittest
from typing import Any, Optional

from gateway.upstream import echo
from gateway.upstream.answers import (
    InvalidAnswer,
    Usage,
    as_stream,
    complete,
    dump,
    parse_answer,
    readable,
    usage_of,
)
from gateway.upstream.estimates import weight_of_choices
from gateway.upstream.sse import EventStream

CHAT = "/chat/completions"
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def chat(**changes: Any) -> dict[str, Any]:
    """A usual engine's chat answer; a change of ... takes a key away."""
    answer: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "llama-13b.gguf",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
        "usage": USAGE,
    }
    answer.update(changes)
    return {key: value for key, value in answer.items() if value is not ...}


def served(body: bytes, model: str = "13b", request_id: str = "req-1", path: str = CHAT) -> Any:
    """What a client reads when an engine sent `body`."""
    body = bytes(readable(body))
    answer = parse_answer(body, path)
    usage = usage_of(answer.get("usage"), 40, weight_of_choices(body, answer.get("choices")))
    return json.loads(complete(answer, body, request_id, model, usage))


class ParseTest(unittest.TestCase):
    def test_each_path_needs_its_list(self) -> None:
        for path, key in ((CHAT, "choices"), ("/completions", "choices"), ("/embeddings", "data")):
            self.assertEqual(parse_answer(json.dumps({key: []}).encode(), path), {key: []})
            for wrong in ({}, {key: None}, {key: {}}, {key: "x"}):
                with self.subTest(path=path, wrong=wrong), self.assertRaises(InvalidAnswer):
                    parse_answer(json.dumps(wrong).encode(), path)

    def test_what_is_no_json_object_is_invalid(self) -> None:
        for body in (b"", b"{", b"[]", b"null", b"<html>", b"\xff\xfe\x00", b"[" * 100_000, b'{"choices":[]}x'):
            with self.subTest(body=body[:10]), self.assertRaises(InvalidAnswer):
                parse_answer(body, CHAT)

    def test_numbers_that_json_cannot_say_are_null(self) -> None:
        for number in ("NaN", "Infinity", "-Infinity"):
            body = f'{{"data":[{{"embedding":[0.5,{number}]}}],"usage":{{"prompt_tokens":{number}}}}}'.encode()
            answer = served(body, path="/embeddings")
            self.assertEqual(answer["data"], [{"embedding": [0.5, None]}])
            self.assertEqual(answer["usage"]["prompt_tokens"], 10)

    def test_only_such_numbers_are_changed(self) -> None:
        usual = json.dumps(chat(logprobs={"content": [{"logprob": -1.5}]}), indent=1).encode()
        odd = usual.replace(b"-1.5", b"-Infinity")
        usage = Usage(3, 2, False)
        for body, expected in ((usual, usual), (odd, usual.replace(b"-1.5", b"null"))):
            body = bytes(readable(body))
            patched = complete(parse_answer(body, CHAT), body, "chatcmpl-1", "llama-13b.gguf", usage)
            self.assertEqual(patched, expected)

    def test_a_number_too_large_stays_or_is_null_where_it_is_written_anew(self) -> None:
        for changes in ({"id": ...}, {"usage": ...}, {"usage": {"prompt_tokens": 3, "x": "1e999"}}):
            body = json.dumps(chat(logprobs="1e999", **changes)).replace('"1e999"', "1e999").encode()
            answer = served(body)
            self.assertIsNone(answer["logprobs"])
            self.assertIsNone(answer["usage"].get("x"))
            self.assertIn(b'"logprobs":null', as_stream(json.loads(body), CHAT))
        whole = json.dumps(chat(logprobs="1e999")).replace('"1e999"', "1e999").encode()
        self.assertEqual(served(whole)["logprobs"], float("inf"))

    def test_a_byte_order_mark_is_dropped(self) -> None:
        body = json.dumps(chat()).encode()
        for kind in (bytes, bytearray):
            self.assertEqual(readable(kind(b"\xef\xbb\xbf" + body)), body)

    def test_the_words_for_such_numbers_may_stand_in_a_text(self) -> None:
        body = json.dumps(chat(choices=[{"message": {"content": "NaN is not Infinity"}}])).encode()
        self.assertEqual(served(body)["choices"][0]["message"]["content"], "NaN is not Infinity")

    def test_an_error_in_a_good_answers_clothes_is_told(self) -> None:
        for error in ({"message": "out of memory"}, "out of memory"):
            with self.assertRaises(InvalidAnswer) as caught:
                parse_answer(json.dumps({"error": error, "choices": []}).encode(), CHAT)
            self.assertIn("out of memory", str(caught.exception))

    def test_a_null_error_is_none(self) -> None:
        parse_answer(b'{"error":null,"choices":[]}', CHAT)


class CompleteTest(unittest.TestCase):
    def test_id_and_model_become_the_gateways_and_all_else_stays(self) -> None:
        answer = chat(system_fingerprint="b1", timings={"a": 1.5})
        for indent in (None, 1):
            for separators in ((",", ":"), (", ", ": "), (" , ", " : ")):
                body = json.dumps(answer, indent=indent, separators=separators).encode()
                self.assertEqual(served(body), {**answer, "id": "req-1", "model": "13b"})

    def test_id_and_model_are_set_where_the_engine_left_them_out_or_sent_something_else(self) -> None:
        changed = ({"id": ...}, {"model": ...}, {"id": None}, {"model": 7}, {"id": ["x"]}, {"id": "", "model": ""})
        for changes in changed:
            with self.subTest(changes=changes):
                body = json.dumps(chat(**changes)).encode()
                self.assertEqual(served(body), {**chat(), "id": "req-1", "model": "13b"})

    def test_only_the_top_level_id_and_model_change(self) -> None:
        call = {"id": "chatcmpl-1", "type": "function", "function": {"name": "f", "arguments": '{"id": 1}'}}
        message = {"role": "assistant", "content": '"id":"chatcmpl-1"', "tool_calls": [call], "model": "llama-13b.gguf"}
        choices = [{"index": 0, "message": message, "finish_reason": "tool_calls"}]
        for answer in (chat(choices=choices), chat(choices=choices, id=...), chat(choices=choices, model=...)):
            self.assertEqual(served(json.dumps(answer).encode())["choices"], choices)

    def test_names_with_quotes_backslashes_and_other_letters_survive(self) -> None:
        for name in ('a"b', "a\\b", "modèle", "模型", "\u2028", "\ud800"):
            for ascii_only in (True, False):
                with self.subTest(name=name, ascii_only=ascii_only):
                    body = json.dumps(chat(id=name, model=name), ensure_ascii=ascii_only or name == "\ud800").encode()
                    self.assertEqual(served(body)["id"], "req-1")
                    self.assertEqual(served(body, model=name)["model"], name)

    def test_any_answer_reads_as_if_written_anew(self) -> None:
        rng = random.Random(51)
        texts = ["id", "model", '"id":"a"', '"model": "m"', "a", "m", "\\", '"', "é", ""]
        for _ in range(500):
            answer: dict[str, Any] = {}
            for key in rng.sample(["id", "model", "x", "y", "choices", "usage"], rng.randrange(3, 7)):
                answer[key] = rng.choice([*texts, {"id": rng.choice(texts)}, ["id"], None])
            answer["choices"] = [{"text": rng.choice(texts), "id": rng.choice(texts)}][: rng.randrange(2)]
            answer["usage"] = rng.choice([USAGE, None, {}, {**USAGE, "id": "a"}])
            body = json.dumps(answer, ensure_ascii=rng.random() < 0.5).encode()
            found = served(body, path="/completions")
            self.assertEqual((found["id"], found["model"]), ("req-1", "13b"))
            untouched = ("x", "y", "choices")
            self.assertEqual([found.get(key) for key in untouched], [answer.get(key) for key in untouched])


class UsageTest(unittest.TestCase):
    def usage(self, reported: object) -> Optional[dict[str, Any]]:
        usage: Optional[dict[str, Any]] = served(json.dumps(chat(usage=reported)).encode())["usage"]
        return usage

    def test_the_engines_figures_are_kept_with_their_details(self) -> None:
        reported = {**USAGE, "prompt_tokens_details": {"cached_tokens": 1}}
        self.assertEqual(self.usage(reported), reported)

    def test_a_missing_sum_or_part_is_completed(self) -> None:
        self.assertEqual(self.usage({"prompt_tokens": 3, "completion_tokens": 2}), USAGE)
        self.assertEqual(self.usage({"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": None}), USAGE)
        usage = self.usage({"prompt_tokens": 3, "total_tokens": 3})
        self.assertEqual(usage, {"prompt_tokens": 3, "completion_tokens": 0, "total_tokens": 3})

    def test_figures_that_make_no_sense_are_estimated(self) -> None:
        for reported in (
            ...,
            None,
            {},
            [],
            "x",
            {"prompt_tokens": -1},
            {"prompt_tokens": "3"},
            {"prompt_tokens": True},
        ):
            with self.subTest(reported=reported):
                self.assertEqual(
                    self.usage(reported), {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
                )

    def test_estimates_are_marked(self) -> None:
        self.assertEqual(usage_of(None, 8, 9), Usage(2, 3, True))
        self.assertEqual(usage_of(USAGE, 8, 9), Usage(3, 2, False))


class AsStreamTest(unittest.TestCase):
    def read(self, lines: bytes) -> list[Any]:
        """The events, after the stream's own rules have found nothing wrong."""
        stream = EventStream(False)
        self.assertEqual(stream.feed(lines), lines)
        self.assertTrue(stream.done)
        events = [line[6:] for line in lines.decode().split("\n\n") if line]
        self.assertEqual(events.pop(), "[DONE]")
        return [json.loads(text) for text in events]

    def test_a_plain_answer_becomes_one_chunk_and_done(self) -> None:
        (chunk,) = self.read(as_stream(chat(), CHAT))
        self.assertEqual(chunk["object"], "chat.completion.chunk")
        self.assertEqual((chunk["id"], chunk["usage"]), ("chatcmpl-1", USAGE))
        (choice,) = chunk["choices"]
        self.assertEqual(choice["delta"], {"role": "assistant", "content": "hello"})
        self.assertEqual(choice["finish_reason"], "stop")
        self.assertNotIn("message", choice)

    def test_a_reason_that_is_none_is_given_one(self) -> None:
        for reason in ("", "null", None, False, 0, "FINISH_REASON_UNSPECIFIED"):
            choice = {"index": 0, "message": {"content": "a"}, "finish_reason": reason}
            (chunk,) = self.read(as_stream(chat(choices=[choice]), CHAT))
            self.assertEqual(chunk["choices"][0]["finish_reason"], "stop")

    def test_tool_calls_are_numbered_as_chunks_need_it(self) -> None:
        calls = [{"id": "a", "function": {}}, {"id": "b", "function": {}}]
        choice = {"index": 0, "message": {"content": None, "tool_calls": calls}, "finish_reason": "tool_calls"}
        (chunk,) = self.read(as_stream(chat(choices=[choice]), CHAT))
        found = chunk["choices"][0]["delta"]["tool_calls"]
        self.assertEqual([(call["index"], call["id"]) for call in found], [(0, "a"), (1, "b")])

    def test_a_text_completion_keeps_its_shape(self) -> None:
        answer = {"object": "text_completion", "choices": [{"index": 0, "text": "hi", "finish_reason": "stop"}]}
        self.assertEqual(self.read(as_stream(answer, "/completions")), [answer])

    def test_the_answer_given_is_not_changed(self) -> None:
        answer = chat()
        as_stream(answer, CHAT)
        self.assertEqual(answer, chat())


class DumpTest(unittest.TestCase):
    def test_json_is_compact_and_ascii(self) -> None:
        self.assertEqual(dump({"a": [1, "é\u2028\n"]}), b'{"a":[1,"\\u00e9\\u2028\\n"]}')

    def test_what_json_cannot_say_is_an_error(self) -> None:
        with self.assertRaises(ValueError):
            dump({"a": float("nan")})


class EchoTest(unittest.TestCase):
    def test_the_last_user_message_is_echoed(self) -> None:
        messages = [
            {"role": "user", "content": "first"},
            {"role": "user", "content": [{"type": "text", "text": "se"}, {"type": "image_url"}, {"text": "cond"}]},
            {"role": "assistant", "content": "third"},
        ]
        answer = echo.answer(CHAT, {"messages": messages}, 20)
        parse_answer(dump(answer), CHAT)
        self.assertEqual(answer["choices"][0]["message"], {"role": "assistant", "content": "Echo: second"})
        self.assertEqual(answer["usage"]["prompt_tokens"], 5)
        self.assertEqual(answer["usage"]["total_tokens"], 5 + answer["usage"]["completion_tokens"])

    def test_no_user_message_is_an_empty_echo(self) -> None:
        answer = echo.answer(CHAT, {"messages": [{"role": "system", "content": "x"}]}, 1)
        self.assertEqual(answer["choices"][0]["message"]["content"], "Echo: ")

    def test_as_many_choices_as_asked_for(self) -> None:
        answer = echo.answer(CHAT, {"messages": [{"role": "user", "content": "x"}], "n": 3}, 1)
        self.assertEqual([choice["index"] for choice in answer["choices"]], [0, 1, 2])

    def test_prompts_of_every_shape_are_answered(self) -> None:
        for prompt, text in (
            ("hi", "Echo: hi"),
            (["a", "b"], "Echo: a"),
            ([1, 2], "Echo: 1 2"),
            ([[1], [2]], "Echo: 1"),
        ):
            with self.subTest(prompt=prompt):
                answer = echo.answer("/completions", {"prompt": prompt}, 1)
                self.assertEqual(answer["choices"][0]["text"], text)

    def test_embeddings_are_repeatable_and_one_for_each_input(self) -> None:
        inputs = ["a", "b", "a", "\ud800"]
        answer = echo.answer("/embeddings", {"input": inputs}, 4)
        vectors = [item["embedding"] for item in answer["data"]]
        self.assertEqual([item["index"] for item in answer["data"]], [0, 1, 2, 3])
        self.assertEqual(vectors[0], vectors[2])
        self.assertNotEqual(vectors[0], vectors[1])
        self.assertTrue(all(-1.0 <= x <= 1.0 for vector in vectors for x in vector))
        parse_answer(dump(answer), "/embeddings")

    def test_chunks_make_up_the_whole_answer_and_finish(self) -> None:
        for path, request in (
            (CHAT, {"messages": [{"role": "user", "content": "a  b c"}], "n": 2}),
            ("/completions", {"prompt": "a  b c"}),
        ):
            for wants_usage in (True, False):
                with self.subTest(path=path, wants_usage=wants_usage):
                    answer = echo.answer(path, request, 4)
                    chunks = echo.chunks(path, answer, wants_usage)
                    wire = b"".join(b"data: %b\n\n" % dump(chunk) for chunk in chunks)
                    stream = EventStream(False, len(answer["choices"]))
                    self.assertEqual(stream.feed(wire) + stream.end(), wire + b"data: [DONE]\n\n")
                    self.assertEqual(stream.usage, answer["usage"] if wants_usage else None)
                    text = "".join(self.text(choice) for chunk in chunks for choice in chunk["choices"])
                    self.assertEqual(text, "Echo: a  b c" * len(answer["choices"]))

    def text(self, choice: dict[str, Any]) -> str:
        return choice["delta"].get("content") or "" if "delta" in choice else choice["text"]


if __name__ == "__main__":
    unittest.main()
