"""What engines say was wrong, in the shapes that they say it in."""

from __future__ import annotations

import json
import random
import sys
import unittest
from typing import Any

from gateway.upstream.words import CUT, MESSAGE_MAX_CHARS, details_without, tidy, without, words_in, words_of

LENGTH = "This model's maximum context length is 4096 tokens"
OPENAI = {"message": LENGTH, "type": "invalid_request_error", "param": "messages", "code": "context_length_exceeded"}
FOUND = {"type": "invalid_request_error", "param": "messages", "code": "context_length_exceeded"}
FASTAPI = [
    {"type": "missing", "loc": ["body", "messages", 0, "role"], "msg": "Field required", "input": {}},
    {"type": "int_type", "loc": ["body", "n"], "msg": "Input should be a valid integer"},
]
ROLE = "body.messages.0.role: Field required; body.n: Input should be a valid integer"
SHAPES: list[tuple[Any, str, dict[str, object]]] = [
    ({"error": OPENAI}, LENGTH, FOUND),  # OpenAI, llama-cpp-python, Groq, DeepSeek, vLLM
    ({"object": "error", **OPENAI, "param": None, "code": 400}, LENGTH, {"type": FOUND["type"], "code": 400}),
    ({"error": {"code": 400, "message": "m", "type": "t", "n_ctx": 9}}, "m", {"code": 400, "type": "t"}),  # llama.cpp
    ({"error": "text"}, "text", {}),  # Ollama, LM Studio
    ({"error": "text", "error_type": "validation"}, "text", {"type": "validation"}),  # TGI
    ({"error": {"error": OPENAI}}, LENGTH, FOUND),
    ({"error": {"error": "text"}, "code": "c"}, "text", {"code": "c"}),
    ([{"error": {"code": 400, "message": "m", "status": "INVALID_ARGUMENT"}}], "m", {"code": 400}),  # Gemini
    ({"type": "error", "error": {"type": "overloaded_error", "message": "m"}}, "m", {"type": "overloaded_error"}),
    ({"detail": "text"}, "text", {}),
    ({"detail": FASTAPI}, ROLE, {}),
    ({"detail": {"error": "text"}}, "text", {}),
    ({"detail": OPENAI}, LENGTH, FOUND),  # FastAPI's HTTPException
    ({"detail": {"error": OPENAI}}, LENGTH, FOUND),
    ({"error": {**OPENAI, "detail": {"code": "of_another"}}}, LENGTH, FOUND),
    ({"object": "error", "message": {"detail": FASTAPI}, "type": "t", "code": None}, ROLE, {"type": "t"}),  # Mistral
    ({"error": {"message": {"message": "m", "code": "c"}, "type": "t"}}, "m", {"code": "c", "type": "t"}),
    ({"message": "m"}, "m", {}),
    (
        {"errors": [{"message": "one", "code": 7003}, "two", {"detail": "three"}], "success": False},
        "one; two; three",
        {},
    ),
    ({"type": "about:blank", "title": "Bad", "status": 400, "detail": "d"}, "Bad: d", {"type": "about:blank"}),
    ({"title": "Bad Request"}, "Bad Request", {}),
    ({"statusCode": 400, "error": "Bad Request", "message": "no role"}, "Bad Request: no role", {}),
    ({"error": "invalid_model", "message": "m", "param": "model"}, "m", {"code": "invalid_model", "param": "model"}),
    ({"error": True, "message": "m"}, "m", {}),
    ({"error": None, "message": "m", "code": True, "type": ["t"], "param": {}}, "m", {}),
    (
        {
            "error": {
                "message": "Provider returned error",
                "code": 400,
                "metadata": {"raw": json.dumps({"error": OPENAI})},
            }
        },
        f"Provider returned error: {LENGTH}",
        {"code": 400},
    ),
    ({"error": {"message": "m", "metadata": {"raw": "plain"}}}, "m: plain", {}),
    ("text", "text", {}),
    ([], "", {}),
    ({}, "", {}),
    (7, "", {}),
    (None, "", {}),
    ({"error": {"code": "x" * 999, "type": 1 << 99, "message": 7}}, "", {"code": "x" * 200 + CUT}),
    ({"detail": [{"msg": str(number)} for number in range(9)]}, "0; 1; 2; 3; 4; and 4 more", {}),
]


class ShapeTest(unittest.TestCase):
    def test_every_shape(self) -> None:
        for value, message, details in SHAPES:
            for body in (
                json.dumps(value).encode(),
                b"\xef\xbb\xbf" + json.dumps(value, indent=1).encode(),
                json.dumps(value).encode("utf-16"),
            ):
                with self.subTest(value=value):
                    words = words_in(body)
                    self.assertEqual((words.message, words.details), (message, details))

    def test_plain_text_and_pages(self) -> None:
        for body, message in (
            (b"", ""),
            (b"\r\n", ""),
            (b"context too long\n", "context too long"),
            ("caf\u00e9 ".encode() * 400, tidy("caf\u00e9 " * 300)),
            (b"\xff\xfe\xff binary", ""),
            (b"<html><head><title>413 Request\n Entity Too Large</title></head>nginx", "413 Request Entity Too Large"),
            (b"<!DOCTYPE html><p>nothing", ""),
            (b"\xef\xbb\xbftext", "text"),
            (b"[" * 60_000, ""),
            (b'{"a":' * 9_000, ""),
        ):
            with self.subTest(body=body[:20]):
                self.assertEqual(words_in(body).message, message)

    def test_the_begin_of_a_body_that_is_cut(self) -> None:
        item = {"type": "string_type", "loc": ["body"], "msg": 'no "text" here', "input": "x" * 70_000}
        for value in ({"detail": [item]}, {"error": {"message": 'no "text" here', "x": "x" * 70_000}}):
            self.assertEqual(words_in(json.dumps(value).encode()[:65_536]).message, 'no "text" here')
        self.assertEqual(words_in(b'{"error": "no').message, "no")

    def test_messages_are_one_line_of_bounded_length(self) -> None:
        message = words_of({"error": "a\r\nb\x00\x1b[31m\u2028c\u202ed\ud800e  f" + "x" * 9_999}).message
        self.assertTrue(message.startswith("a b [31m c d e fxxx"), message[:30])
        self.assertEqual(len(message), MESSAGE_MAX_CHARS + len(CUT))
        self.assertTrue(message.endswith(CUT))
        self.assertEqual(tidy("x" * MESSAGE_MAX_CHARS), "x" * MESSAGE_MAX_CHARS)
        self.assertTrue(message.encode())

    def test_nothing_that_is_sent_raises(self) -> None:
        rng = random.Random(4)
        deep: Any = "x"
        for _ in range(300):
            deep = {"error": deep} if rng.random() < 0.5 else [deep]
        raw: Any = "x"
        for _ in range(8):
            raw = json.dumps({"error": {"message": "m", "metadata": {"raw": raw}}})
        for body in (json.dumps(deep).encode(), raw.encode()):
            self.assertIsInstance(words_in(body).message, str)
        for depth in range(sys.getrecursionlimit() - 150, sys.getrecursionlimit()):  # up to what can be parsed at all
            for key in ("loc", "msg", "message"):
                words_in(b'{"detail":[{"msg":"m","%b":%b%b}]}' % (key.encode(), b"[" * depth, b"]" * depth))
        for _ in range(3_000):
            data = bytearray(json.dumps(rng.choice(SHAPES)[0]).encode())
            for _ in range(rng.randrange(4)):
                at = rng.randrange(len(data) + 1)
                data[at : at + rng.randrange(3)] = bytes(rng.choices(b'{}[]":,\\\x00\xffa1', k=rng.randrange(3)))
            words = words_in(bytes(data))
            self.assertLessEqual(len(words.message), MESSAGE_MAX_CHARS + len(CUT))

    def test_the_gateways_key_is_left_out(self) -> None:
        self.assertEqual(without("sk-secret-1", "key sk-secret-1, sk-secret-1"), "key ***, ***")
        self.assertEqual(details_without("sk-secret-1", {"code": "sk-secret-1", "type": 7}), {"code": "***", "type": 7})
        for said in range(MESSAGE_MAX_CHARS + 20):  # wherever a message or a detail is cut
            text = "x" * said + " sk-secret-1 tail" * 99
            words = words_of({"error": {"message": text, "code": text}})
            shown = [without("sk-secret-1", words.message), *details_without("sk-secret-1", words.details).values()]
            for each in shown:
                self.assertNotIn("sk-secre", str(each))
                self.assertTrue(str(each).endswith(CUT))
        body = b'{"error": "' + b"x" * 300 + b"sk-secret"
        self.assertTrue(without("sk-secret-1", words_in(body).message).endswith("xxx***"))
        for secret in ("", "none"):
            self.assertEqual(without(secret, "none of it"), "none of it")


if __name__ == "__main__":
    unittest.main()
