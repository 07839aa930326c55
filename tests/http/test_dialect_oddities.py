"""Odd and large requests of every dialect, over engines of either: an answer, or an error that says what is wrong."""

from __future__ import annotations

import json
import unittest
from typing import Any

from tests.clients import ANTHROPIC, LACKED, OPENAI
from tests.dialects import GENERATE, MESSAGES, OLLAMA_CHAT, RESPONSES, SPEAKING, DialectTest, Json, asking
from tests.support import CHAT, RunningGateway
from tests.thorough import thorough

PATHS = (CHAT, *SPEAKING)
DEEP = 500
IMAGE = "iVBORw0KGgoA" + "A" * 5_000_000  # it begins as a PNG does
URL = f"data:image/png;base64,{IMAGE}"
CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
LIMITS = {CHAT: "max_tokens", MESSAGES: "max_tokens", RESPONSES: "max_output_tokens"}


def nested(depth: int) -> Json:
    value: Json = {}
    for _ in range(depth):
        value = {"a": value}
    return value


def tools(path: str, count: int, schema: Json) -> list[Json]:
    names = [f"tool_{number}" for number in range(count)]
    if path == MESSAGES:
        return [{"name": name, "input_schema": schema} for name in names]
    if path == RESPONSES:
        return [{"type": "function", "name": name, "parameters": schema} for name in names]
    return [{"type": "function", "function": {"name": name, "parameters": schema}} for name in names]


def limited(path: str, text: str) -> Json:
    """A request that wants a short answer."""
    options = {LIMITS[path]: 16} if path in LIMITS else {"options": {"num_predict": 16}}
    return asking(path, text, **options)


def called(path: str, arguments: Json) -> Json:
    """A request whose history has a call with these arguments."""
    words, user = json.dumps(arguments), {"role": "user", "content": "hi"}
    if path == MESSAGES:
        use = {"type": "tool_use", "id": "t1", "name": "f", "input": arguments}
        result = {"type": "tool_result", "tool_use_id": "t1", "content": "ok"}
        return {"messages": [user, {"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]}
    if path == RESPONSES:
        call = {"type": "function_call", "call_id": "t1", "name": "f", "arguments": words}
        return {"input": [user, call, {"type": "function_call_output", "call_id": "t1", "output": "ok"}]}
    if path == OLLAMA_CHAT:
        said = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
        return {"messages": [user, said, {"role": "tool", "tool_name": "f", "content": "ok"}]}
    calls = [{"id": "t1", "type": "function", "function": {"name": "f", "arguments": words}}]
    said = {"role": "assistant", "content": None, "tool_calls": calls}
    return {"messages": [user, said, {"role": "tool", "tool_call_id": "t1", "content": "ok"}]}


def shown(path: str) -> Json:
    """A request with a large image."""
    if path == GENERATE:
        return {"prompt": "what is it", "images": [IMAGE]}
    if path == OLLAMA_CHAT:
        return {"messages": [{"role": "user", "content": "what is it", "images": [IMAGE]}]}
    if path == RESPONSES:
        text = {"type": "input_text", "text": "what is it"}
        return {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": URL}, text]}]}
    image: Json = {"type": "image_url", "image_url": {"url": URL}}
    if path == MESSAGES:
        image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": IMAGE}}
    return {"messages": [{"role": "user", "content": [image, {"type": "text", "text": "what is it"}]}]}


class OdditiesTest(DialectTest):
    dialect = OPENAI

    def setUp(self) -> None:
        super().setUp()
        self.mock = self.engine(lacks=LACKED[self.dialect])
        self.running: RunningGateway = self.serve({"m": {"engines": [{"url": self.mock.url, "dialect": self.dialect}]}})

    def assert_told(self, path: str, body: Json, status: int = 200) -> str:
        """Whole and streamed it is that, and nobody's fault within; returns the last answer."""
        for stream in (False, True):
            with self.subTest(path, stream=stream):
                answer = self.running.post({**asking(path), **body, "stream": stream}, path)
                self.assertEqual(answer.status, status, answer.body[:500])
        events = {line["event"] for line in self.running.log_lines()}
        self.assertNotIn("internal_error", events)
        return answer.body.decode()

    def assert_refused(self, path: str, body: Json, named: str) -> None:
        self.assertIn(named, self.assert_told(path, body, 400))

    def test_halves_of_pairs_and_signs_without_a_shape(self) -> None:
        for text in ("a \ud800 b", "\udc00\ud800", "\ud83d\ude00", "a\0b", "\0", "\u202e\ufeff\u2028\x7f\x1b[0m"):
            for path in PATHS:
                told = self.assert_told(path, asking(path, text))
                self.assertIn("Mock", told)
                sent = json.dumps(self.mock.requests[-1]["body"])
                self.assertIn(json.dumps(text)[1:-1], sent)

    def test_a_megabyte_of_text(self) -> None:
        for text in ("word " * 200_000, "\u03a9\u6f22\U0001f600 " * 100_000, "\ud800" * 200_000):
            for path in PATHS:
                self.assert_told(path, limited(path, text))

    def test_five_hundred_tools(self) -> None:
        for path in (CHAT, MESSAGES, RESPONSES, OLLAMA_CHAT):
            asked = asking(path, "call tool_7 and tool_499", tools=tools(path, 500, CITY))
            self.assertIn('"tool_499"', self.assert_told(path, asked))

    def test_what_is_nested_too_deep_is_refused(self) -> None:
        for path in (CHAT, MESSAGES, RESPONSES, OLLAMA_CHAT):
            self.assert_told(path, called(path, nested(100)))
            schema = {"type": "object", "properties": nested(DEEP)}
            self.assert_refused(path, {"tools": tools(path, 1, schema)}, "128 levels")
            if path in (MESSAGES, OLLAMA_CHAT) or self.dialect == ANTHROPIC:
                self.assert_refused(path, called(path, nested(DEEP)), "128 levels")
            else:  # a text to the engine, too
                self.assert_told(path, called(path, nested(DEEP)))

    def test_an_image_of_five_megabytes(self) -> None:
        for path in PATHS:
            self.assert_told(path, shown(path))
            self.assertGreater(self.mock.requests[-1]["body_bytes"], len(IMAGE))

    def test_texts_of_nothing(self) -> None:
        for text in ("", " \n"):
            for path in PATHS:
                if (path, text) != (GENERATE, ""):  # which asks for nothing but the model
                    self.assert_told(path, asking(path, text))


@thorough
class OdditiesOverAnthropicTest(OdditiesTest):
    dialect = ANTHROPIC

    def test_texts_of_nothing(self) -> None:
        """Which this dialect has no words for; another engine of the model may."""
        other = self.engine()
        for text in ("", " \n"):
            for path in PATHS:
                if (path, text) != (GENERATE, ""):
                    self.assert_refused(path, asking(path, text), "takes no empty texts")
        self.assertEqual(self.mock.requests, [])
        engines: list[Any] = [{"url": self.mock.url, "dialect": ANTHROPIC}, other.url]
        self.running = self.serve({"m": {"engines": engines}})
        for _ in engines:
            self.assert_told(CHAT, asking(CHAT, ""))


if __name__ == "__main__":
    unittest.main()
