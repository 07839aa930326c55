"""The official anthropic package reads what its clients are answered, and types what its engines are asked. Nothing is
sent: its requests end in a function here.

Skipped where the package is missing; with REQUIRE_ANTHROPIC=1 that is a failure.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import unittest
from collections.abc import Iterator
from typing import Any, Optional

from gateway.dialects.anthropic.asking import messages_request
from gateway.dialects.anthropic.errors import error_message, status_for
from gateway.dialects.anthropic.reading import MessagesReader
from gateway.dialects.anthropic.requests import counted, read
from gateway.dialects.cutting import Cutter
from gateway.errors import EngineFailed, GatewayError, RequestRefused

MISSING = importlib.util.find_spec("anthropic") is None
TOOL: Any = {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
ASKED: Any = {"model": "m", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]}
THINKING = {"index": 0, "type": "thinking"}
DELTAS: list[Any] = [
    {"role": "assistant", "content": ""},
    {"thinking_blocks": [{**THINKING, "thinking": "h"}], "reasoning_content": "h"},
    {"thinking_blocks": [{**THINKING, "thinking": "m"}], "reasoning_content": "m"},
    {"thinking_blocks": [{**THINKING, "signature": "sig"}]},
    {"thinking_blocks": [{"index": 1, "type": "redacted_thinking", "data": "xyz"}]},
    {"content": "I "},
    {"content": "look"},
    {"tool_calls": [{"index": 0, "id": "call_1", "function": {"name": "weather", "arguments": ""}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": '{"city": "K'}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": 'öln"}'}}]},
    {"tool_calls": [{"index": 1, "id": "call_2", "function": {"name": "weather", "arguments": "{}"}}]},
]
USAGE = {"prompt_tokens": 30, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 20}}
CONTENT = [
    {"type": "thinking", "thinking": "hm", "signature": "sig"},
    {"type": "redacted_thinking", "data": "xyz"},
    {"type": "text", "text": "I look"},
    {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Köln"}},
    {"type": "tool_use", "id": "call_2", "name": "weather", "input": {}},
]


def complete() -> dict[str, Any]:
    """The chat answer whose pieces are DELTAS."""
    calls = [
        {"id": block["id"], "function": {"name": "weather", "arguments": json.dumps(block["input"])}}
        for block in CONTENT[3:]
    ]
    said = {"role": "assistant", "content": "I look", "thinking_blocks": CONTENT[:2], "tool_calls": calls}
    choice = {"index": 0, "message": said, "finish_reason": "tool_calls"}
    return {"id": "chat-1", "model": "m", "choices": [choice], "usage": USAGE}


def streamed(asked: Any, failure: Optional[GatewayError]) -> Iterator[bytes]:
    writer = read(asked).events(25)
    yield writer.alive()
    for delta in DELTAS:
        yield writer.chunk({"id": "chat-1", "model": "m", "choices": [{"index": 0, "delta": delta}]})
    yield writer.alive()
    if failure is not None:
        yield writer.failed(failure, "req-1")
        return
    yield writer.chunk({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
    yield writer.chunk({"choices": [], "usage": USAGE}) + writer.done()


def drained(value: Any) -> None:
    """What pydantic validates of lists comes when they are read."""
    if isinstance(value, dict):
        value = value.values()
    if hasattr(value, "__iter__") and not isinstance(value, str):
        for item in value:
            drained(item)


class RequirementTest(unittest.TestCase):
    @unittest.skipUnless(os.environ.get("REQUIRE_ANTHROPIC") == "1", "REQUIRE_ANTHROPIC=1 is not set")
    def test_the_anthropic_package_is_installed(self) -> None:
        self.assertFalse(MISSING, "REQUIRE_ANTHROPIC=1, but the anthropic package is missing")


@unittest.skipIf(MISSING, "the anthropic package is not installed")
class ClientTest(unittest.TestCase):
    def setUp(self) -> None:
        import anthropic

        self.anthropic = anthropic
        self.failure: Optional[GatewayError] = None
        self.asked: Any = None
        transport = importlib.import_module(anthropic.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0])

        def answer(request: Any) -> Any:
            asked = self.asked = json.loads(request.content)
            try:
                conversation = read({"max_tokens": 1, **asked})
                if request.url.path.endswith("count_tokens"):
                    return transport.Response(200, json=counted(5))
                if asked.get("stream"):
                    body = b"".join(streamed(asked, self.failure))
                    return transport.Response(200, headers={"Content-Type": "text/event-stream"}, content=body)
                if self.failure is not None:
                    raise self.failure
                return transport.Response(200, json=conversation.answer(complete()))
            except GatewayError as error:
                return transport.Response(status_for(error), json=error_message(error, "req-1"))

        client = anthropic.DefaultHttpxClient(transport=transport.MockTransport(answer))
        stack = contextlib.ExitStack()
        self.addCleanup(stack.close)
        self.client: Any = stack.enter_context(
            anthropic.Anthropic(api_key="k", base_url="http://gateway", http_client=client, max_retries=0)
        )

    def check(self, message: Any) -> None:
        type(message).model_validate(message.to_dict())  # the package itself does not look closely
        self.assertEqual([block.to_dict() for block in message.content], CONTENT)
        self.assertEqual((message.stop_reason, message.stop_sequence), ("tool_use", None))
        usage = message.usage
        self.assertEqual((usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens), (10, 20, 7))

    def test_an_answer(self) -> None:
        self.check(self.client.messages.create(**ASKED, tools=[TOOL]))

    def test_a_stream_is_put_together(self) -> None:
        with self.client.messages.stream(**ASKED, tools=[TOOL]) as stream:
            kinds = [event.type for event in stream]
            self.check(stream.get_final_message())
        self.assertEqual(kinds.count("content_block_stop"), 5)
        self.assertEqual(kinds[-1], "message_stop")

    def test_every_event_has_its_type(self) -> None:
        from anthropic.types import RawMessageStreamEvent
        from pydantic import TypeAdapter

        adapter: Any = TypeAdapter(RawMessageStreamEvent)
        for event in Cutter().feed(b"".join(streamed(ASKED, None))):
            if event.name != b"ping":
                adapter.validate_json(event.data, strict=True)

    def test_a_broken_stream_is_an_exception(self) -> None:
        self.failure = EngineFailed("overloaded", "no engine is left")
        with self.assertRaises(self.anthropic.APIStatusError) as caught:
            with self.client.messages.stream(**ASKED) as stream:
                stream.get_final_message()
        self.assertEqual(caught.exception.type, "overloaded_error")
        self.assertIn("no engine is left", str(caught.exception))

    def test_errors_are_the_packages_own(self) -> None:
        for failure, kind in (
            (RequestRefused("invalid_body", "m"), self.anthropic.BadRequestError),
            (RequestRefused("unauthorized", "m"), self.anthropic.AuthenticationError),
            (RequestRefused("forbidden", "m"), self.anthropic.PermissionDeniedError),
            (RequestRefused("model_not_found", "m"), self.anthropic.NotFoundError),
            (EngineFailed("backend_rate_limited", "m"), self.anthropic.RateLimitError),
            (EngineFailed("backend_error", "m"), self.anthropic.InternalServerError),
            (EngineFailed("queue_timeout", "m"), self.anthropic.InternalServerError),
        ):
            self.failure = failure
            with self.subTest(code=failure.code), self.assertRaises(kind) as caught:
                self.client.messages.create(**ASKED)
            self.assertEqual(caught.exception.error_code, failure.code)

    def test_tokens_are_counted(self) -> None:
        asked = {key: value for key, value in ASKED.items() if key != "max_tokens"}
        self.assertEqual(self.client.messages.count_tokens(**asked).input_tokens, 5)

    def test_a_tools_round_is_sent_back(self) -> None:
        message = self.client.messages.create(**ASKED, tools=[TOOL])
        result = {"type": "tool_result", "tool_use_id": "call_1", "content": "sunny"}
        history = [*ASKED["messages"], message.to_param(), {"role": "user", "content": [result]}]
        self.client.messages.create(**{**ASKED, "messages": history})
        chat = read(self.asked).rich
        self.assertEqual([said["role"] for said in chat["messages"]], ["user", "assistant", "tool"])
        self.assertEqual(chat["messages"][1]["thinking_blocks"], CONTENT[:2])


@unittest.skipIf(MISSING, "the anthropic package is not installed")
class EngineTest(unittest.TestCase):
    def test_what_an_engine_is_asked_has_its_types(self) -> None:
        from anthropic.types import MessageCreateParams
        from pydantic import TypeAdapter

        parts = [
            {"type": "text", "text": "look"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
            {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
            {"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA"}},
            {"type": "file", "file": {"file_data": "data:text/plain;base64,AAAA", "filename": "a"}},
        ]
        schema = {"type": "object", "additionalProperties": False}
        chat = {
            "model": "m",
            "messages": [
                {"role": "system", "content": "be kind"},
                {"role": "user", "content": parts},
                complete()["choices"][0]["message"],
                {"role": "tool", "tool_call_id": "call_1", "content": parts[:2], "is_error": True},
            ],
            "tools": [{"type": "function", "function": {"name": "weather", "parameters": schema, "strict": True}}],
            "tool_choice": "auto",
            "parallel_tool_calls": False,
            "stop": ["x"],
            "user": "u",
            "reasoning_effort": "high",
            "response_format": {"type": "json_schema", "json_schema": {"schema": schema, "strict": True}},
            "stream": True,
        }
        adapter: Any = TypeAdapter(MessageCreateParams, config={"arbitrary_types_allowed": True})
        drained(adapter.validate_python(messages_request(chat)))
        odd = {"type": "image", "source": {"type": "base64"}}
        with self.assertRaises(ValueError):
            drained(adapter.validate_python({**ASKED, "messages": [{"role": "user", "content": [odd]}]}))

    @unittest.skipIf(importlib.util.find_spec("openai") is None, "the openai package is not installed")
    def test_openais_package_puts_a_stream_together(self) -> None:
        from openai.lib.streaming._deltas import accumulate_delta
        from openai.types.chat import ChatCompletionChunk

        said: Any = {}
        for event in Cutter().feed(MessagesReader(7).feed(b"".join(streamed(ASKED, None)))):
            if not event.is_comment and event.data != b"[DONE]":
                chunk = ChatCompletionChunk.model_validate_json(event.data)
                for choice in chunk.choices:
                    said = accumulate_delta(said, choice.delta.to_dict())
        again = messages_request({"messages": [{"role": "user", "content": "hi"}, said]})
        self.assertEqual(again["messages"][1]["content"], CONTENT)


if __name__ == "__main__":
    unittest.main()
