"""The official openai package as a client, against a gateway with mock engines, of either dialect.

Skipped where the package is missing; with REQUIRE_OPENAI=1 that is a failure.
"""

from __future__ import annotations

import asyncio
import json
import os
import unittest
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.clients import ANTHROPIC, ASKS_BOTH, CLOCK, KEY, ROUNDS, WEATHER, ClientCase, missing
from tests.scripted import ScriptedEngine
from tests.support import gateway, mock_engine

MISSING = missing("openai")
MESSAGES: Any = [{"role": "user", "content": "hi there"}]
TOOLS: Any = [
    {"type": "function", "function": {"name": name, "parameters": schema}}
    for name, schema in (("get_weather", WEATHER), ("get_time", CLOCK))
]


class RequirementTest(unittest.TestCase):
    @unittest.skipUnless(os.environ.get("REQUIRE_OPENAI") == "1", "REQUIRE_OPENAI=1 is not set")
    def test_the_openai_package_is_installed(self) -> None:
        self.assertFalse(MISSING, "REQUIRE_OPENAI=1, but the openai package is missing")


@unittest.skipIf(MISSING, "the openai package is not installed")
class OpenAICase(ClientCase):
    package = "openai"
    models = ("13b", "7b")

    def setUp(self) -> None:
        super().setUp()
        self.client: Any = self.stack.enter_context(self.new_client())

    def new_client(self, api_key: str = KEY) -> Any:
        # Without retries: what is tested is the gateway's first answer.
        return self.sdk.OpenAI(base_url=f"{self.gateway.url}/v1", api_key=api_key, max_retries=0, timeout=10)

    def asynchronous(self) -> Any:
        return self.sdk.AsyncOpenAI(base_url=f"{self.gateway.url}/v1", api_key=KEY, max_retries=0, timeout=10)


class AnswersTest(OpenAICase):
    def test_chat(self) -> None:
        raw = self.client.chat.completions.with_raw_response.create(model="13b", messages=MESSAGES, temperature=0.5)
        answer = raw.parse()
        self.assertEqual(answer.id, raw.headers["x-request-id"])
        self.assertEqual(answer.model, "13b")
        self.assertIn("hi there", answer.choices[0].message.content)
        self.assertEqual(answer.choices[0].finish_reason, "stop")
        usage = answer.usage
        self.assertEqual(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens)
        sent = self.engine.requests[-1]
        self.assertEqual(sent["body"]["temperature"], 0.5)
        self.assertNotIn(KEY, str(sent["headers"]))

    def test_chat_stream(self) -> None:
        whole = self.client.chat.completions.create(model="13b", messages=MESSAGES).choices[0].message.content
        with self.client.chat.completions.create(model="13b", messages=MESSAGES, stream=True) as stream:
            chunks = list(stream)
        self.assertEqual("".join(chunk.choices[0].delta.content or "" for chunk in chunks), whole)
        self.assertEqual(chunks[-1].choices[0].finish_reason, "stop")
        self.assertEqual([chunk for chunk in chunks if chunk.usage is not None], [])

    def test_chat_stream_with_usage(self) -> None:
        with self.client.chat.completions.create(
            model="13b", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        ) as stream:
            *_, last = stream
        self.assertEqual(last.choices, [])
        self.assertGreater(last.usage.completion_tokens, 0)

    def test_asynchronous_client(self) -> None:
        async def ask() -> str:
            async with self.asynchronous() as client:
                stream = await client.chat.completions.create(model="7b", messages=MESSAGES, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        self.assertIn("hi there", asyncio.run(ask()))

    def test_tools_in_several_rounds(self) -> None:
        for streams in (False, True):
            with self.subTest(streams=streams):
                messages: list[Any] = [{"role": "user", "content": ASKS_BOTH}]
                names = []
                for _ in range(3):
                    asked = {"model": "13b", "messages": messages, "tools": TOOLS, "parallel_tool_calls": False}
                    if streams:
                        with self.client.chat.completions.stream(**asked) as stream:
                            choice = stream.get_final_completion().choices[0]
                    else:
                        choice = self.client.chat.completions.create(**asked).choices[0]
                    message = choice.message
                    if not message.tool_calls:
                        break
                    self.assertEqual((len(message.tool_calls), choice.finish_reason), (1, "tool_calls"))
                    (call,) = message.tool_calls
                    names.append(call.function.name)
                    result = {"role": "tool", "tool_call_id": call.id, "content": f"of {names[-1]}"}
                    messages += [message, result]
                self.assertEqual(names, ["get_weather", "get_time"])
                self.assertIn("of get_weather; of get_time", message.content)
                self.assertEqual(self.turns_sent(), ROUNDS)

    def test_several_tools_at_once(self) -> None:
        asked = {"model": "13b", "messages": [{"role": "user", "content": ASKS_BOTH}], "tools": TOOLS}
        whole = self.client.chat.completions.create(**asked)
        with self.client.chat.completions.stream(**asked) as stream:
            streamed = stream.get_final_completion()
        for completion in (whole, streamed):
            calls = completion.choices[0].message.tool_calls
            arguments = [(call.function.name, list(json.loads(call.function.arguments))) for call in calls]
            self.assertEqual(arguments, [("get_weather", ["city"]), ("get_time", ["zone"])])

    def test_an_answer_that_fits_a_class(self) -> None:
        import pydantic

        class City(pydantic.BaseModel):
            name: str
            inhabitants: int

        asked = {"model": "13b", "messages": MESSAGES, "response_format": City}
        parsed = self.client.chat.completions.parse(**asked).choices[0].message.parsed
        self.assertIsInstance(parsed, City)
        self.assertEqual(self.schema_sent()["title"], "City")
        with self.client.chat.completions.stream(**asked) as stream:
            self.assertEqual(stream.get_final_completion().choices[0].message.parsed, parsed)
        asked = {
            "messages": [{"role": "user", "content": "call City"}],
            "tools": [self.sdk.pydantic_function_tool(City)],
        }
        (call,) = self.client.chat.completions.parse(model="13b", **asked).choices[0].message.tool_calls
        self.assertIsInstance(call.function.parsed_arguments, City)

    def test_completions(self) -> None:
        answer = self.client.completions.create(model="7b", prompt="once upon")
        self.assertEqual((answer.object, answer.model), ("text_completion", "7b"))
        self.assertIn("once upon", answer.choices[0].text)
        with self.client.completions.create(model="7b", prompt="once upon", stream=True) as stream:
            text = "".join(chunk.choices[0].text for chunk in stream)
        self.assertIn("once upon", text)

    def test_embeddings(self) -> None:
        answer = self.client.embeddings.create(model="13b", input=["one", "two"])
        self.assertEqual([item.index for item in answer.data], [0, 1])
        floats = self.client.embeddings.create(model="13b", input="one", encoding_format="float")
        for packed, plain in zip(answer.data[0].embedding, floats.data[0].embedding):
            self.assertAlmostEqual(packed, plain, places=6)
        self.assertGreater(answer.usage.total_tokens, 0)

    def test_models(self) -> None:
        self.assertEqual([model.id for model in self.client.models.list()], ["13b", "7b", "s"])
        self.assertEqual(self.client.models.retrieve("7b").id, "7b")

    def test_leaving_a_stream_ends_it_at_the_engine(self) -> None:
        self.check_leaving(lambda: self.client.chat.completions.create(model="13b", messages=MESSAGES, stream=True))

    def test_a_cancelled_task_ends_its_request_at_the_engine(self) -> None:
        async def streamed(client: Any) -> AsyncIterator[Any]:
            asked = {"model": "13b", "messages": MESSAGES, "stream": True}
            async with await client.chat.completions.create(**asked) as stream:
                async for chunk in stream:
                    yield chunk

        self.check_cancelling(
            self.asynchronous(),
            lambda client: client.chat.completions.create(model="13b", messages=MESSAGES),
            streamed,
        )


class ErrorsTest(OpenAICase):
    def ask(self, **changes: Any) -> Any:
        return self.client.chat.completions.create(**{"model": "13b", "messages": MESSAGES, **changes})

    def test_wrong_key_is_an_authentication_error(self) -> None:
        with self.new_client(api_key="wrong") as client, self.assertRaises(self.sdk.AuthenticationError) as caught:
            client.chat.completions.create(model="13b", messages=MESSAGES)
        self.assertEqual(caught.exception.code, "unauthorized")
        self.assertEqual(caught.exception.type, "authentication_error")
        self.assertEqual(self.engine.requests, [])

    def test_unknown_model_is_not_found(self) -> None:
        with self.assertRaises(self.sdk.NotFoundError) as caught:
            self.ask(model="nope")
        self.assertEqual((caught.exception.code, caught.exception.param), ("model_not_found", "model"))
        with self.assertRaises(self.sdk.NotFoundError):
            self.client.models.retrieve("nope")

    def test_invalid_request_is_a_bad_request(self) -> None:
        with self.assertRaises(self.sdk.BadRequestError) as caught:
            self.ask(temperature=3)
        error = caught.exception
        self.assertEqual((error.code, error.param), ("invalid_temperature", "temperature"))
        self.assertEqual(error.type, "invalid_request_error")
        self.assertIn("from 0 to 2", error.message)
        self.assertTrue(error.request_id)
        self.assertEqual(self.engine.requests, [])

    def test_what_an_engine_says_of_a_request_has_its_own_code(self) -> None:
        words = {
            "message": "This model's maximum context length is 4096 tokens",
            "type": "invalid_request_error",
            "param": "messages",
            "code": "context_length_exceeded",
        }
        with ScriptedEngine() as engine:
            with gateway(ENGINES=f"m={engine.url}") as running, ThreadPoolExecutor(1) as pool:
                url = f"{running.url}/v1"
                client = self.sdk.OpenAI(base_url=url, api_key="unused", max_retries=0, timeout=10)
                for stream in (False, True):
                    asking = pool.submit(client.chat.completions.create, model="m", messages=MESSAGES, stream=stream)
                    side = engine.take()
                    side.answer(json.dumps({"error": words}).encode(), status="400 Bad Request")
                    with self.assertRaises(self.sdk.BadRequestError) as caught:
                        asking.result()
                    side.close()
                    error = caught.exception
                    self.assertEqual((error.code, error.param), ("context_length_exceeded", "messages"))
                    self.assertEqual(error.type, "invalid_request_error")
                    self.assertIn("maximum context length", error.message)
                    self.assertEqual(error.body["gateway_code"], "backend_rejected")
                client.close()

    def test_resting_engine_is_a_rate_limit_error(self) -> None:
        self.engine.control("rate_limit", retry_after=7)
        with self.assertRaises(self.sdk.RateLimitError) as caught:
            self.ask()
        self.assertEqual(caught.exception.code, "backend_rate_limited")
        self.assertEqual(caught.exception.response.headers["retry-after"], "7")

    def test_failing_engine_is_an_internal_server_error(self) -> None:
        self.engine.control("error", status=500)
        for stream in (False, True):
            with self.subTest(stream=stream), self.assertRaises(self.sdk.InternalServerError) as caught:
                self.ask(stream=stream)
            self.assertEqual((caught.exception.status_code, caught.exception.code), (502, "backend_error"))

    def test_stream_that_breaks_off_is_an_error_and_no_end(self) -> None:
        self.engine.control("drop_mid_stream", after=2)
        chunks = []
        with self.assertRaises(self.sdk.APIError) as caught:
            for chunk in self.ask(stream=True):
                chunks.append(chunk)
        self.assertGreater(len(chunks), 0)
        self.assertEqual(caught.exception.code, "backend_error")


class AnswersOverAnthropicTest(AnswersTest):
    dialect = ANTHROPIC

    def test_completions(self) -> None:
        with self.assertRaises(self.sdk.BadRequestError) as caught:
            super().test_completions()
        self.assertEqual(caught.exception.code, "endpoint_not_served")

    def test_embeddings(self) -> None:
        with self.assertRaises(self.sdk.BadRequestError) as caught:
            super().test_embeddings()
        self.assertEqual(caught.exception.code, "endpoint_not_served")


class ErrorsOverAnthropicTest(ErrorsTest):
    dialect = ANTHROPIC


@unittest.skipIf(MISSING, "the openai package is not installed")
class SimpleFormatTest(unittest.TestCase):
    def test_the_other_error_format_maps_to_the_same_exceptions(self) -> None:
        import openai

        with mock_engine("13b") as engine, gateway(ENGINES=f"13b={engine.url}", ERROR_FORMAT="simple") as running:
            with openai.OpenAI(base_url=f"{running.url}/v1", api_key="unused", max_retries=0) as client:
                with self.assertRaises(openai.NotFoundError):
                    client.chat.completions.create(model="nope", messages=MESSAGES)
                with self.assertRaises(openai.BadRequestError) as caught:
                    client.chat.completions.create(model="13b", messages=[])
        self.assertEqual(caught.exception.body, "invalid_messages")


if __name__ == "__main__":
    unittest.main()
