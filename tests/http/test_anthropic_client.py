"""The official anthropic package as a client, against a gateway with mock engines, of either dialect.

Skipped where the package is missing; with REQUIRE_ANTHROPIC=1 that is a failure (`tests/unit/test_anthropic_sdk.py`).
"""

from __future__ import annotations

import asyncio
import json
import unittest
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from gateway.mock.messages import SIGNATURE
from tests.clients import ANTHROPIC, ASKS_BOTH, CLOCK, KEY, ROUNDS, WEATHER, ClientCase, missing
from tests.scripted import DONE, STREAM_HEAD, chunked
from tests.support import dead_url, gateway

MISSING = missing("anthropic")
ASKED: dict[str, Any] = {"model": "m", "max_tokens": 200, "messages": [{"role": "user", "content": "hi there"}]}
TOOLS: Any = [{"name": "get_weather", "input_schema": WEATHER}, {"name": "get_time", "input_schema": CLOCK}]


@unittest.skipIf(MISSING, "the anthropic package is not installed")
class AnthropicCase(ClientCase):
    package = "anthropic"

    def setUp(self) -> None:
        super().setUp()
        self.client: Any = self.stack.enter_context(self.new_client())

    def new_client(self, api_key: str = KEY, url: str = "") -> Any:
        return self.sdk.Anthropic(base_url=url or self.gateway.url, api_key=api_key, max_retries=0, timeout=10)

    def asynchronous(self) -> Any:
        return self.sdk.AsyncAnthropic(base_url=self.gateway.url, api_key=KEY, max_retries=0, timeout=10)


class AnswersTest(AnthropicCase):
    def test_a_message(self) -> None:
        raw = self.client.messages.with_raw_response.create(**ASKED, system="be brief", extra_body={"temperature": 0.5})
        message = raw.parse()
        self.assertIn("hi there", message.content[0].text)
        self.assertEqual((message.role, message.model, message.stop_reason), ("assistant", "m", "end_turn"))
        self.assertGreater(message.usage.output_tokens, 0)
        self.assertEqual(message._request_id, raw.headers["x-request-id"])
        self.assertEqual((self.system_sent(), self.engine.requests[-1]["body"]["temperature"]), (["be brief"], 0.5))
        self.assertNotIn(KEY, str(self.engine.requests))

    def test_a_stream(self) -> None:
        whole = self.client.messages.create(**ASKED)
        with self.client.messages.stream(**ASKED) as stream:
            said = "".join(stream.text_stream)
            final = stream.get_final_message()
        self.assertEqual(said, whole.content[0].text)
        self.assertEqual(final.content[0].text, said)
        self.assertEqual(final.usage.output_tokens, whole.usage.output_tokens)
        with self.client.messages.create(**ASKED, stream=True) as stream:
            self.assertEqual([event.type for event in stream][-2:], ["message_delta", "message_stop"])

    def test_the_asynchronous_client(self) -> None:
        async def ask() -> Any:
            async with self.asynchronous() as client:
                whole = await client.messages.create(**ASKED)
                async with client.messages.stream(**ASKED) as stream:
                    return whole, await stream.get_final_message()

        whole, streamed = asyncio.run(ask())
        self.assertEqual(whole.content[0].text, streamed.content[0].text)

    def test_what_ends_an_answer(self) -> None:
        self.assertEqual(self.client.messages.create(**{**ASKED, "max_tokens": 1}).stop_reason, "max_tokens")
        self.assertEqual(self.client.messages.create(**ASKED, stop_sequences=["hi"]).content[0].text[-2:], ": ")

    def test_tools_in_several_rounds(self) -> None:
        for streams in (False, True):
            with self.subTest(streams=streams):
                messages: list[Any] = [{"role": "user", "content": ASKS_BOTH}]
                choice = {"type": "auto", "disable_parallel_tool_use": True}
                names = []
                for _ in range(3):
                    asked = {**ASKED, "messages": messages, "tools": TOOLS, "tool_choice": choice}
                    if streams:
                        with self.client.messages.stream(**asked) as stream:
                            message = stream.get_final_message()
                    else:
                        message = self.client.messages.create(**asked)
                    calls = [block for block in message.content if block.type == "tool_use"]
                    if not calls:
                        break
                    self.assertEqual((len(calls), message.stop_reason), (1, "tool_use"))
                    names.append(calls[0].name)
                    result = {"type": "tool_result", "tool_use_id": calls[0].id, "content": f"of {names[-1]}"}
                    messages += [
                        {"role": "assistant", "content": message.content},
                        {"role": "user", "content": [result]},
                    ]
                self.assertEqual(names, ["get_weather", "get_time"])
                self.assertIn("of get_weather; of get_time", message.content[0].text)
                self.assertEqual(self.turns_sent(), ROUNDS)

    def test_a_tool_runner_s_rounds(self) -> None:
        def runnable(name: str, input_schema: Any) -> Any:
            made = self.sdk.beta_tool(name=name, description=name, input_schema=input_schema)
            return made(lambda **_: f"of {name}")

        choice = {"type": "auto", "disable_parallel_tool_use": True}
        asked = {**ASKED, "messages": [{"role": "user", "content": ASKS_BOTH}], "tool_choice": choice}
        for streams in (False, True):
            with self.subTest(streams=streams):
                tools = [runnable(**tool) for tool in TOOLS]
                message = self.client.beta.messages.tool_runner(**asked, tools=tools, stream=streams).until_done()
                self.assertIn("of get_weather; of get_time", message.content[0].text)
                self.assertEqual(self.turns_sent(), ROUNDS)

    def test_several_tools_at_once(self) -> None:
        asked = {**ASKED, "messages": [{"role": "user", "content": ASKS_BOTH}], "tools": TOOLS}
        whole = self.client.messages.create(**asked)
        with self.client.messages.stream(**asked) as stream:
            streamed = stream.get_final_message()
        for message in (whole, streamed):
            inputs = [(block.name, list(block.input)) for block in message.content]
            self.assertEqual(inputs, [("get_weather", ["city"]), ("get_time", ["zone"])])
        results = [{"type": "tool_result", "tool_use_id": block.id, "content": "fine"} for block in whole.content]
        asked["messages"] += [{"role": "assistant", "content": whole.content}, {"role": "user", "content": results}]
        self.assertIn("fine; fine", self.client.messages.create(**asked).content[0].text)

    def test_thinking(self) -> None:
        def stream() -> Any:
            with self.client.messages.stream(**{**ASKED, "model": "s"}) as stream:
                return stream.get_final_message()

        deltas = ({"reasoning_content": "h"}, {"reasoning_content": "m"}, {"content": "so"})
        chunks = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(stream)
            side = self.scripted.take()
            lines = b"".join(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks)
            side.send(STREAM_HEAD + chunked(lines + DONE) + b"0\r\n\r\n")
            thought, text = asking.result().content
        self.assertEqual((thought.type, thought.thinking, text.text), ("thinking", "hm", "so"))

    def test_an_answer_that_fits_a_class(self) -> None:
        import pydantic

        class City(pydantic.BaseModel):
            name: str
            inhabitants: int

        whole = self.client.messages.parse(**ASKED, output_format=City)
        self.assertIsInstance(whole.parsed_output, City)
        self.assertEqual(list(self.schema_sent()["properties"]), ["name", "inhabitants"])
        with self.client.messages.stream(**ASKED, output_format=City) as stream:
            self.assertEqual(stream.get_final_message().parsed_output, whole.parsed_output)

    def test_tokens_are_counted(self) -> None:
        few, many = (
            self.client.messages.count_tokens(model="m", messages=[{"role": "user", "content": text}]).input_tokens
            for text in ("hi", "hi there " * 50)
        )
        self.assertLess(0, few)
        self.assertLess(few, many)
        self.assertEqual(self.engine.requests, [])

    def test_leaving_a_stream_ends_it_at_the_engine(self) -> None:
        self.check_leaving(lambda: self.client.messages.create(**ASKED, stream=True))

    def test_a_cancelled_task_ends_its_request_at_the_engine(self) -> None:
        async def streamed(client: Any) -> AsyncIterator[Any]:
            async with client.messages.stream(**ASKED) as stream:
                async for event in stream:
                    yield event

        self.check_cancelling(self.asynchronous(), lambda client: client.messages.create(**ASKED), streamed)


class ErrorsTest(AnthropicCase):
    def assert_told(self, error: Any, kind: str, code: str) -> None:
        told = error.body["error"]
        self.assertEqual((told["type"], told["details"]["error_code"]), (kind, code))
        self.assertTrue(error.body["request_id"])

    def test_refusals_are_the_exceptions_of_their_kinds(self) -> None:
        for exception, kind, code, changes in (
            ("NotFoundError", "not_found_error", "model_not_found", {"model": "nope"}),
            ("BadRequestError", "invalid_request_error", "invalid_stop", {"stop_sequences": [7]}),
            ("AuthenticationError", "authentication_error", "unauthorized", {"key": "wrong"}),
        ):
            for stream in (False, True):
                with self.subTest(exception, stream=stream):
                    asked = {**ASKED, **changes, "stream": stream}
                    with self.new_client(asked.pop("key", KEY)) as client:
                        with self.assertRaises(getattr(self.sdk, exception)) as caught:
                            client.messages.create(**asked)
                    self.assert_told(caught.exception, kind, code)
                    self.assertEqual(caught.exception.request_id, caught.exception.body["request_id"])

    def test_engines_that_fail(self) -> None:
        self.engine.control("rate_limit", retry_after=7)
        with self.assertRaises(self.sdk.RateLimitError) as limited:
            self.client.messages.create(**ASKED)
        self.assertEqual(limited.exception.response.headers["retry-after"], "7")
        with (
            gateway(ENGINES=f"m={dead_url()}", RETRY_ATTEMPTS="1") as running,
            self.new_client(url=running.url) as client,
        ):
            with self.assertRaises(self.sdk.InternalServerError) as failed:
                client.messages.create(**ASKED)
            self.assert_told(failed.exception, "api_error", "backend_unavailable")
            running.app.pipeline.draining = True
            with self.assertRaises(self.sdk.APIStatusError) as draining:
                client.messages.create(**ASKED)
            self.assertEqual(draining.exception.status_code, 529)
            self.assert_told(draining.exception, "overloaded_error", "draining")

    def test_a_stream_that_breaks_is_an_exception_and_no_message(self) -> None:
        self.break_streams()
        events = []
        with self.assertRaises(self.sdk.APIStatusError) as caught:
            with self.client.messages.stream(**ASKED) as stream:
                for event in stream:
                    events.append(event.type)
        self.assertIn("content_block_delta", events)
        self.assertNotIn("message_stop", events)
        self.assert_told(caught.exception, "api_error", "backend_error")


class AnswersOverAnthropicTest(AnswersTest):
    dialect = ANTHROPIC

    def test_thinking(self) -> None:
        thinking = {"type": "enabled", "budget_tokens": 1024}
        asked = {**ASKED, "max_tokens": 2000, "thinking": thinking, "tools": TOOLS}
        asked["messages"] = [{"role": "user", "content": "call get_weather"}]
        with self.client.messages.stream(**asked) as stream:
            message = stream.get_final_message()
        thought, call = message.content
        self.assertEqual((thought.type, call.type, thought.signature), ("thinking", "tool_use", SIGNATURE))
        self.assertTrue(thought.thinking)
        results = [{"type": "tool_result", "tool_use_id": call.id, "content": "fine"}]
        asked["messages"] += [{"role": "assistant", "content": message.content}, {"role": "user", "content": results}]
        self.assertIn("fine", self.client.messages.create(**asked).content[-1].text)
        sent = self.engine.requests[-1]["body"]["messages"][1]["content"][0]
        self.assertEqual((sent["thinking"], sent["signature"]), (thought.thinking, SIGNATURE))


class ErrorsOverAnthropicTest(ErrorsTest):
    dialect = ANTHROPIC


if __name__ == "__main__":
    unittest.main()
