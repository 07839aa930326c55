"""What the dialects say, as the official clients' own types read it; over no socket: their transport is a function.

Each client is skipped where its package is missing; with REQUIRE_OPENAI=1 and REQUIRE_OLLAMA=1 that is a failure.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import time
import unittest
from typing import Any, Callable

from gateway.dialects.dialect import Immediate
from gateway.dialects.ollama import pages, request
from gateway.dialects.ollama.times import Times
from gateway.dialects.responses.conversation import read
from gateway.errors import EngineFailed

NO_OPENAI = importlib.util.find_spec("openai") is None
NO_OLLAMA = importlib.util.find_spec("ollama") is None

Json = dict[str, Any]

CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at":1}'}}
TOKENS = [{"token": "I look", "logprob": -0.5, "bytes": None, "top_logprobs": [{"token": "I", "logprob": -2}]}]
MESSAGE = {"role": "assistant", "reasoning_content": "hm", "content": "I look", "tool_calls": [CALL]}
USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
CHOICE = {"index": 0, "message": MESSAGE, "logprobs": {"content": TOKENS}, "finish_reason": "tool_calls"}
ANSWER = {"id": "chat-1", "created": 1700000000, "model": "m", "choices": [CHOICE], "usage": USAGE}
ERROR = EngineFailed("backend_error", "the engine's stream broke off")
PNG = b"\x89PNG\r\n\x1a\n and more of it"


def chunk(delta: Json, **extra: Any) -> Json:
    return {"id": "chat-1", "created": 1700000000, "model": "m", "choices": [{"index": 0, "delta": delta, **extra}]}


CHUNKS = (
    chunk({"role": "assistant"}),
    chunk({"reasoning_content": "h"}),
    chunk({"reasoning_content": "m"}),
    chunk({"content": "I look"}, logprobs={"content": TOKENS}),
    chunk({"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "look", "arguments": '{"at"'}}]}),
    chunk({"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]}, finish_reason="tool_calls"),
    {"choices": [], "usage": USAGE},
)


def streamed(conversation: Any, breaks: bool) -> bytes:
    writer = conversation.events(7)
    told = writer.alive()
    for part in CHUNKS[:4] if breaks else CHUNKS:
        told += writer.chunk(part) + writer.alive()
    end: bytes = writer.failed(ERROR, "req-1") if breaks else writer.done()
    return told + end


class RequirementTest(unittest.TestCase):
    @unittest.skipUnless(os.environ.get("REQUIRE_OPENAI") == "1", "REQUIRE_OPENAI=1 is not set")
    def test_the_openai_package_is_installed(self) -> None:
        self.assertFalse(NO_OPENAI, "REQUIRE_OPENAI=1, but the openai package is missing")

    @unittest.skipUnless(os.environ.get("REQUIRE_OLLAMA") == "1", "REQUIRE_OLLAMA=1 is not set")
    def test_the_ollama_package_is_installed(self) -> None:
        self.assertFalse(NO_OLLAMA, "REQUIRE_OLLAMA=1, but the ollama package is missing")


@unittest.skipIf(NO_OPENAI, "the openai package is not installed")
class ResponsesTest(unittest.TestCase):
    """The openai package's `responses`."""

    TOOLS: Any = ({"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": False},)

    def setUp(self) -> None:
        import openai

        self.openai = openai
        self.breaks = False
        # Which of two packages its client is made of depends on its version.
        made_of = next(
            cls.__module__ for cls in openai.DefaultHttpxClient.__mro__ if cls.__module__.startswith("httpx")
        )
        http = importlib.import_module(made_of.partition(".")[0])
        transport = http.MockTransport(lambda asked: self.serve(http, asked))
        client = openai.DefaultHttpxClient(transport=transport)
        self.client = openai.OpenAI(api_key="k", base_url="http://gateway/v1", max_retries=0, http_client=client)
        self.addCleanup(self.client.close)

    def serve(self, http: Any, asked: Any) -> Any:
        body = json.loads(asked.content)
        conversation = read(body)
        if not body.get("stream"):
            return http.Response(200, json=conversation.answer(ANSWER))
        wire = streamed(conversation, self.breaks)
        return http.Response(200, headers={"content-type": conversation.stream_type.decode()}, content=wire)

    def asked(self) -> Json:
        return {"model": "m", "input": "hi", "tools": list(self.TOOLS), "instructions": "Be brief.", "user": "u"}

    def test_an_answer_has_all_that_its_type_requires(self) -> None:
        response = self.client.responses.create(**self.asked())
        type(response).model_validate(response.to_dict(), strict=True)
        self.assertEqual([item.type for item in response.output], ["reasoning", "message", "function_call"])
        self.assertEqual((response.output_text, response.usage.total_tokens), ("I look", 12))

    def test_an_answer_may_be_sent_back(self) -> None:
        response = self.client.responses.create(**self.asked())
        output = [item.to_dict() for item in response.output]
        result = {"type": "function_call_output", "call_id": "c1", "output": "4"}
        chat = read({"input": [{"role": "user", "content": "hi"}, *output, result]}).chat
        self.assertEqual(chat["messages"][1], MESSAGE)

    def test_each_event_has_all_that_its_type_requires(self) -> None:
        from openai.types.responses import ResponseStreamEvent
        from pydantic import TypeAdapter

        events = TypeAdapter(ResponseStreamEvent)
        count = 0
        for text in streamed(read({**self.asked(), "stream": True}), False).decode().split("\n"):
            if text.startswith("data: "):
                events.validate_python(json.loads(text[len("data: ") :]))
                count += 1
        self.assertGreater(count, 15)

    def test_a_stream_is_put_together_as_the_answer(self) -> None:
        whole = self.client.responses.create(**self.asked())
        with self.client.responses.stream(**self.asked()) as stream:
            deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
            final = stream.get_final_response()
        self.assertEqual(deltas, ["I look"])
        self.assertEqual([item.to_dict() for item in final.output], [self.parsed(item) for item in whole.output])
        self.assertEqual(final.usage, whole.usage)

    def parsed(self, item: Any) -> Json:
        """An item with what the client's stream adds to it."""
        told: Json = item.to_dict()
        if item.type == "function_call":
            return {**told, "parsed_arguments": None}
        if item.type == "message":
            return {**told, "content": [{**part, "parsed": None} for part in told["content"]]}
        return told

    def test_a_broken_stream_raises(self) -> None:
        self.breaks = True
        with self.assertRaises(self.openai.APIError) as caught:
            with self.client.responses.stream(**self.asked()) as stream:
                stream.until_done()
        self.assertEqual((caught.exception.message, caught.exception.code), (ERROR.message, ERROR.code))
        events = []
        with self.assertRaises(self.openai.APIError):
            for event in self.client.responses.create(**self.asked(), stream=True):
                events.append(event.type)
        self.assertEqual(events[-1], "response.failed")
        self.assertNotIn("response.completed", events)


@unittest.skipIf(NO_OLLAMA, "the ollama package is not installed")
class OllamaTest(unittest.TestCase):
    """The ollama package."""

    def setUp(self) -> None:
        import httpx
        import ollama

        self.ollama = ollama
        self.breaks = False
        self.chat: Json = {}
        self.client = ollama.Client(host="http://gateway", transport=httpx.MockTransport(self.serve))

    def serve(self, asked: Any) -> Any:
        import httpx

        body = json.loads(asked.content) if asked.content else {}
        times = Times(time.time, time.monotonic, time.monotonic())
        read: dict[str, Callable[[], Any]] = {
            "/api/chat": lambda: request.read_chat(body, times),
            "/api/generate": lambda: request.read_generate(body, times),
            "/api/embed": lambda: request.read_embed(body, times),
            "/api/embeddings": lambda: request.read_embeddings(body),
            "/api/tags": lambda: Immediate("", pages.tags([pages.Model("m")])),
            "/api/ps": lambda: Immediate("", pages.running([pages.Model("m", context_tokens=9)])),
            "/api/show": lambda: Immediate("", pages.show(pages.Model(request.model_in(body), 0.0, 9, ("tools",)))),
        }
        told = read[asked.url.path]()
        if isinstance(told, Immediate):
            return httpx.Response(200, json=told.answer)
        self.chat = told.chat
        if told.path == "/embeddings":
            return httpx.Response(200, json=told.answer({"data": [{"index": 0, "embedding": [0.5]}], "usage": USAGE}))
        if not told.chat["stream"]:
            return httpx.Response(200, json=told.answer(ANSWER))
        return httpx.Response(
            200, headers={"content-type": "application/x-ndjson"}, content=streamed(told, self.breaks)
        )

    def test_a_chat_is_answered(self) -> None:
        said = self.client.chat("m", [{"role": "user", "content": "hi", "images": [PNG]}], logprobs=True)
        self.assertEqual((said.message.content, said.message.thinking, said.done), ("I look", "hm", True))
        self.assertEqual(said.message.tool_calls[0].function.arguments, {"at": 1})
        self.assertEqual((said.prompt_eval_count, said.eval_count, said.logprobs[0].token), (7, 5, "I look"))
        url = self.chat["messages"][0]["content"][1]["image_url"]["url"]
        self.assertTrue(url.startswith("data:image/png;base64,"))

    def test_a_tools_result_goes_back_to_its_call(self) -> None:
        messages: Any = [{"role": "user", "content": "hi"}]
        for part in self.client.chat("m", messages, stream=True):
            if part.message.tool_calls:
                messages.append(part.message)
        self.assertTrue(part.done)
        messages.append({"role": "tool", "tool_name": "look", "content": "4"})
        self.client.chat("m", messages)
        call, result = self.chat["messages"][1:]
        self.assertEqual(result["tool_call_id"], call["tool_calls"][0]["id"])

    def test_a_prompt_is_answered(self) -> None:
        self.assertEqual(self.client.generate("m", "hi").response, "I look")
        self.assertEqual("".join(part.response for part in self.client.generate("m", "hi", stream=True)), "I look")
        self.assertEqual(self.client.generate("m").done_reason, "load")

    def test_a_broken_stream_raises(self) -> None:
        self.breaks = True
        done = []
        with self.assertRaises(self.ollama.ResponseError) as caught:
            for part in self.client.chat("m", [{"role": "user", "content": "hi"}], stream=True):
                done.append(part.done)
        self.assertEqual(caught.exception.error, ERROR.message)
        self.assertEqual(set(done), {False})

    def test_texts_are_embedded_and_models_are_shown(self) -> None:
        self.assertEqual(self.client.embed("m", "a").embeddings, [[0.5]])
        self.assertEqual(self.client.embeddings("m", "a").embedding, [0.5])
        self.assertEqual(self.client.list().models[0].model, "m")
        self.assertEqual(self.client.ps().models[0].context_length, 9)
        self.assertEqual(self.client.show("m").capabilities, ["tools"])
