"""The official ollama package as a client, against a gateway whose engines only know chat, or messages.

Skipped where the package is missing; with REQUIRE_OLLAMA=1 that is a failure (`tests/unit/test_dialect_clients.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import unittest
from collections.abc import AsyncIterator, Callable
from typing import Any

from tests.clients import ANTHROPIC, ASKS_BOTH, CLOCK, KEY, ROUNDS, WEATHER, ClientCase, missing

MISSING = missing("ollama")
MESSAGES: Any = [{"role": "user", "content": "hi there"}]
TOOLS: Any = [
    {"type": "function", "function": {"name": name, "description": name, "parameters": schema}}
    for name, schema in (("get_weather", WEATHER), ("get_time", CLOCK))
]


@unittest.skipIf(MISSING, "the ollama package is not installed")
class OllamaClientTest(ClientCase):
    package = "ollama"

    def setUp(self) -> None:
        super().setUp()
        self.client: Any = self.new_client()

    def new_client(self, api_key: str = KEY) -> Any:
        client = self.sdk.Client(host=self.gateway.url, headers={"Authorization": f"Bearer {api_key}"}, timeout=10)
        self.addCleanup(client._client.close)
        return client

    @contextlib.asynccontextmanager
    async def asynchronous(self) -> AsyncIterator[Any]:
        client = self.sdk.AsyncClient(host=self.gateway.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=10)
        try:
            yield client
        finally:
            await client._client.aclose()

    def test_chat(self) -> None:
        answer = self.client.chat("m", MESSAGES, options={"temperature": 0.5, "num_predict": 50})
        self.assertIn("hi there", answer.message.content)
        self.assertEqual((answer.model, answer.done, answer.done_reason), ("m", True, "stop"))
        self.assertGreater(answer.eval_count, 0)
        sent = self.engine.requests[-1]["body"]
        self.assertEqual((sent["temperature"], sent["max_tokens"]), (0.5, 50))
        self.assertNotIn(KEY, str(self.engine.requests))

    def test_streams(self) -> None:
        whole = self.client.chat("m", MESSAGES)
        parts = list(self.client.chat("m", MESSAGES, stream=True))
        self.assertEqual("".join(part.message.content for part in parts), whole.message.content)
        self.assertEqual([part.done for part in parts], [False] * (len(parts) - 1) + [True])
        self.assertEqual(parts[-1].eval_count, whole.eval_count)

    def test_generate(self) -> None:
        whole = self.client.generate("m", "hi there", system="be brief")
        self.assertIn("hi there", whole.response)
        parts = list(self.client.generate("m", "hi there", stream=True))
        self.assertEqual("".join(part.response for part in parts), whole.response)
        self.assertEqual(self.client.generate("m").done_reason, "load")

    def test_generating_from_a_raw_prompt(self) -> None:
        self.assertIn("once", self.client.generate("m", "once", raw=True).response)

    def test_embeddings(self) -> None:
        several = self.client.embed("m", ["one", "two"])
        self.assertEqual(len(several.embeddings), 2)
        self.assertEqual(self.client.embed("m", "one").embeddings[0], several.embeddings[0])
        self.assertEqual(self.client.embeddings("m", "one").embedding, several.embeddings[0])

    def test_tools(self) -> None:
        for stream in (False, True):
            with self.subTest(stream=stream):
                messages: list[Any] = [{"role": "user", "content": ASKS_BOTH}]
                answer = self.client.chat("m", messages, tools=TOOLS, stream=stream)
                if stream:
                    (message,) = [part.message for part in answer if part.message.tool_calls]
                else:
                    message = answer.message
                calls = [(call.function.name, list(call.function.arguments)) for call in message.tool_calls]
                self.assertEqual(calls, [("get_weather", ["city"]), ("get_time", ["zone"])])
                messages.append(message)
                messages += [{"role": "tool", "tool_name": name, "content": f"of {name}"} for name, _ in calls]
                answer = self.client.chat("m", messages, tools=TOOLS)
                self.assertIn("of get_weather; of get_time", answer.message.content)

    def test_tools_in_several_rounds(self) -> None:
        for stream in (False, True):
            with self.subTest(stream=stream):
                messages: list[Any] = [{"role": "user", "content": ASKS_BOTH}]
                for offered in (TOOLS[:1], TOOLS):  # one at a time, for which Ollama has no option
                    answer = self.client.chat("m", messages, tools=offered, stream=stream)
                    parts = [part.message for part in (answer if stream else [answer])]
                    (message,) = [part for part in parts if part.tool_calls]
                    name = message.tool_calls[0].function.name
                    messages += [message, {"role": "tool", "tool_name": name, "content": f"of {name}"}]
                answer = self.client.chat("m", messages, tools=TOOLS, stream=stream)
                said = "".join(part.message.content for part in (answer if stream else [answer]))
                self.assertIn("of get_weather; of get_time", said)
                self.assertEqual(self.turns_sent(), ROUNDS)

    def test_an_answer_that_fits_a_schema(self) -> None:
        answer = self.client.chat("m", MESSAGES, format=WEATHER)
        self.assertEqual(list(json.loads(answer.message.content)), ["city"])
        parts = self.client.chat("m", MESSAGES, format=WEATHER, stream=True)
        self.assertEqual("".join(part.message.content for part in parts), answer.message.content)
        self.assertIsInstance(json.loads(self.client.generate("m", "hi", format="json").response), dict)

    def test_an_answer_that_fits_a_class(self) -> None:
        import pydantic

        class City(pydantic.BaseModel):
            name: str
            inhabitants: int

        schema = City.model_json_schema()
        whole = self.client.chat("m", MESSAGES, format=schema).message.content
        self.assertEqual(list(self.schema_sent()["properties"]), ["name", "inhabitants"])
        streamed = "".join(part.message.content for part in self.client.chat("m", MESSAGES, format=schema, stream=True))
        generated = self.client.generate("m", "hi there", format=schema).response
        city = City.model_validate_json(whole)
        self.assertEqual([City.model_validate_json(text) for text in (streamed, generated)], [city, city])

    def test_the_asynchronous_client(self) -> None:
        async def ask() -> Any:
            async with self.asynchronous() as client:
                whole = await client.chat("m", MESSAGES)
                return whole, [part async for part in await client.chat("m", MESSAGES, stream=True)]

        whole, parts = asyncio.run(ask())
        self.assertEqual("".join(part.message.content for part in parts), whole.message.content)

    def test_leaving_a_stream_ends_it_at_the_engine(self) -> None:
        self.check_leaving(lambda: contextlib.closing(self.client.chat("m", MESSAGES, stream=True)))

    def test_a_cancelled_task_ends_its_request_at_the_engine(self) -> None:
        async def streamed(client: Any) -> AsyncIterator[Any]:
            async for part in await client.chat("m", MESSAGES, stream=True):
                yield part

        self.check_cancelling(self.asynchronous(), lambda client: client.chat("m", MESSAGES), streamed)

    def test_what_is_wrong_is_a_response_error(self) -> None:
        for status, says, key, model, options in (
            (404, "nope", KEY, "nope", {}),
            (401, "key", "wrong", "m", {}),
            (400, "temperature", KEY, "m", {"temperature": 7.0}),
        ):
            for stream in (False, True):
                with self.subTest(status, stream=stream):
                    with self.assertRaises(self.sdk.ResponseError) as caught:
                        answer = self.new_client(key).chat(model, MESSAGES, options=options, stream=stream)
                        list(answer)
                    self.assertEqual(caught.exception.status_code, status)
                    self.assertIn(says, caught.exception.error)
        self.engine.control("error", status=500)
        with self.assertRaises(self.sdk.ResponseError) as caught:
            self.client.chat("m", MESSAGES)
        self.assertEqual(caught.exception.status_code, 502)

    def test_a_stream_that_breaks_is_a_response_error_and_not_done(self) -> None:
        self.break_streams()
        for ask, said in ((self.client.chat, MESSAGES), (self.client.generate, "hi there")):
            with self.subTest(ask.__name__):
                parts = []
                with self.assertRaises(self.sdk.ResponseError):
                    for part in ask("m", said, stream=True):
                        parts.append(part)
                self.assertGreater(len(parts), 0)
                self.assertFalse(any(part.done for part in parts))


class OllamaClientOverAnthropicTest(OllamaClientTest):
    dialect = ANTHROPIC

    def assert_not_served(self, ask: Callable[[], object]) -> None:
        with self.assertRaises(self.sdk.ResponseError) as caught:
            ask()
        self.assertEqual(caught.exception.status_code, 400)
        self.assertIn("no engine of the model m has anything like", caught.exception.error)

    def test_embeddings(self) -> None:
        self.assert_not_served(lambda: self.client.embed("m", "one"))
        self.assert_not_served(lambda: self.client.embeddings("m", "one"))

    def test_generating_from_a_raw_prompt(self) -> None:
        self.assert_not_served(lambda: self.client.generate("m", "once", raw=True))


if __name__ == "__main__":
    unittest.main()
