"""The official openai package as a client, against a gateway with mock engines.

Skipped where the package is missing; with REQUIRE_OPENAI=1 that is a failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import unittest
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.scripted import ScriptedEngine
from tests.support import RunningGateway, engines, eventually, gateway, mock_engine

MISSING = importlib.util.find_spec("openai") is None
MESSAGES: Any = [{"role": "user", "content": "hi there"}]
KEY = "open-sesame"


class RequirementTest(unittest.TestCase):
    @unittest.skipUnless(os.environ.get("REQUIRE_OPENAI") == "1", "REQUIRE_OPENAI=1 is not set")
    def test_the_openai_package_is_installed(self) -> None:
        self.assertFalse(MISSING, "REQUIRE_OPENAI=1, but the openai package is missing")


@unittest.skipIf(MISSING, "the openai package is not installed")
class OpenAICase(unittest.TestCase):
    """A gateway with one engine for each of two models, authentication on."""

    def setUp(self) -> None:
        import openai

        self.openai = openai
        stack = contextlib.ExitStack()
        self.addCleanup(stack.close)
        self.engine = stack.enter_context(mock_engine("13b"))
        other = stack.enter_context(mock_engine("7b"))
        self.gateway: RunningGateway = stack.enter_context(
            gateway(
                ENGINES=engines(_13b=self.engine.url, _7b=other.url),
                API_KEYS=f"alice:{KEY}",
                FALLBACK="off",
                REQUEST_TIMEOUT="5",
            )
        )
        self.client = stack.enter_context(self.new_client())

    def new_client(self, api_key: str = KEY) -> Any:
        # Without retries: what is tested is the gateway's first answer.
        return self.openai.OpenAI(base_url=f"{self.gateway.url}/v1", api_key=api_key, max_retries=0, timeout=10)


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
        self.assertEqual((sent["body"]["temperature"], sent["body"]["messages"]), (0.5, MESSAGES))
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
            url = f"{self.gateway.url}/v1"
            async with self.openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
                stream = await client.chat.completions.create(model="7b", messages=MESSAGES, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        self.assertIn("hi there", asyncio.run(ask()))

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
        self.assertEqual([model.id for model in self.client.models.list()], ["13b", "7b"])
        self.assertEqual(self.client.models.retrieve("7b").id, "7b")

    def test_leaving_a_stream_ends_it_at_the_engine(self) -> None:
        gate = self.engine.hold_after(2)
        self.addCleanup(gate.release)
        stream = self.client.chat.completions.create(model="13b", messages=MESSAGES, stream=True)
        next(iter(stream))
        stream.close()
        self.assertTrue(self.engine.wait_for_cancelled(1, timeout_s=5))
        eventually(lambda: self.gateway.app.pipeline.in_flight == 0)


class ErrorsTest(OpenAICase):
    def ask(self, **changes: Any) -> Any:
        return self.client.chat.completions.create(**{"model": "13b", "messages": MESSAGES, **changes})

    def test_wrong_key_is_an_authentication_error(self) -> None:
        with self.new_client(api_key="wrong") as client, self.assertRaises(self.openai.AuthenticationError) as caught:
            client.chat.completions.create(model="13b", messages=MESSAGES)
        self.assertEqual(caught.exception.code, "unauthorized")
        self.assertEqual(caught.exception.type, "authentication_error")
        self.assertEqual(self.engine.requests, [])

    def test_unknown_model_is_not_found(self) -> None:
        with self.assertRaises(self.openai.NotFoundError) as caught:
            self.ask(model="nope")
        self.assertEqual((caught.exception.code, caught.exception.param), ("model_not_found", "model"))
        with self.assertRaises(self.openai.NotFoundError):
            self.client.models.retrieve("nope")

    def test_invalid_request_is_a_bad_request(self) -> None:
        with self.assertRaises(self.openai.BadRequestError) as caught:
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
                client = self.openai.OpenAI(base_url=url, api_key="unused", max_retries=0, timeout=10)
                for stream in (False, True):
                    asking = pool.submit(client.chat.completions.create, model="m", messages=MESSAGES, stream=stream)
                    side = engine.take()
                    side.answer(json.dumps({"error": words}).encode(), status="400 Bad Request")
                    with self.assertRaises(self.openai.BadRequestError) as caught:
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
        with self.assertRaises(self.openai.RateLimitError) as caught:
            self.ask()
        self.assertEqual(caught.exception.code, "backend_rate_limited")
        self.assertEqual(caught.exception.response.headers["retry-after"], "7")

    def test_failing_engine_is_an_internal_server_error(self) -> None:
        self.engine.control("error", status=500)
        for stream in (False, True):
            with self.subTest(stream=stream), self.assertRaises(self.openai.InternalServerError) as caught:
                self.ask(stream=stream)
            self.assertEqual((caught.exception.status_code, caught.exception.code), (502, "backend_error"))

    def test_stream_that_breaks_off_is_an_error_and_no_end(self) -> None:
        self.engine.control("drop_mid_stream", after=2)
        chunks = []
        with self.assertRaises(self.openai.APIError) as caught:
            for chunk in self.ask(stream=True):
                chunks.append(chunk)
        self.assertGreater(len(chunks), 0)
        self.assertEqual(caught.exception.code, "backend_error")


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
