"""The official openai package as a client of Responses, against a gateway whose engines only know chat, or messages.

Skipped where the package is missing; with REQUIRE_OPENAI=1 that is a failure (`test_openai_client.py`).
"""

from __future__ import annotations

import asyncio
import json
import unittest
from collections.abc import AsyncIterator
from typing import Any

from tests.clients import ANTHROPIC, ASKS_BOTH, CLOCK, KEY, ROUNDS, WEATHER, ClientCase, missing

MISSING = missing("openai")
ASKED: dict[str, Any] = {"model": "m", "input": "hi there"}
NATIVE = ("/v1/responses", "/v1/chat/completions")
TOOLS: Any = [
    {"type": "function", "name": name, "parameters": schema, "strict": False}
    for name, schema in (("get_weather", WEATHER), ("get_time", CLOCK))
]


@unittest.skipIf(MISSING, "the openai package is not installed")
class ResponsesCase(ClientCase):
    package = "openai"

    def setUp(self) -> None:
        super().setUp()
        self.client: Any = self.stack.enter_context(self.new_client())

    def new_client(self, api_key: str = KEY) -> Any:
        return self.sdk.OpenAI(base_url=f"{self.gateway.url}/v1", api_key=api_key, max_retries=0, timeout=10)

    def asynchronous(self) -> Any:
        return self.sdk.AsyncOpenAI(base_url=f"{self.gateway.url}/v1", api_key=KEY, max_retries=0, timeout=10)


class AnswersTest(ResponsesCase):
    def test_a_response(self) -> None:
        response = self.client.responses.create(**ASKED, instructions="be brief", temperature=0.5)
        self.assertIn("hi there", response.output_text)
        self.assertEqual((response.status, response.model, response.error), ("completed", "m", None))
        self.assertEqual(response.usage.total_tokens, response.usage.input_tokens + response.usage.output_tokens)
        self.assertEqual(self.system_sent(), ["be brief"])
        self.assertNotIn(KEY, str(self.engine.requests))

    def test_a_stream(self) -> None:
        whole = self.client.responses.create(**ASKED)
        with self.client.responses.create(**ASKED, stream=True) as stream:
            events = list(stream)
        self.assertEqual([event.sequence_number for event in events], list(range(len(events))))
        self.assertEqual((events[0].type, events[-1].type), ("response.created", "response.completed"))
        self.assertEqual(events[-1].response.output_text, whole.output_text)
        with self.client.responses.stream(**ASKED) as stream:
            said = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
            final = stream.get_final_response()
        self.assertEqual((said, final.output_text), (whole.output_text, whole.output_text))
        self.assertEqual(final.usage.output_tokens, whole.usage.output_tokens)

    def test_the_asynchronous_client(self) -> None:
        async def ask() -> Any:
            async with self.asynchronous() as client:
                whole = await client.responses.create(**ASKED)
                async with client.responses.stream(**ASKED) as stream:
                    return whole, await stream.get_final_response()

        whole, streamed = asyncio.run(ask())
        self.assertEqual(whole.output_text, streamed.output_text)

    def test_tools_in_several_rounds(self) -> None:
        for streams in (False, True):
            with self.subTest(streams=streams):
                items: list[Any] = [{"role": "user", "content": ASKS_BOTH}]
                names = []
                for _ in range(3):
                    asked = {"model": "m", "input": items, "tools": TOOLS, "parallel_tool_calls": False}
                    if streams:
                        with self.client.responses.stream(**asked) as stream:
                            response = stream.get_final_response()
                    else:
                        response = self.client.responses.create(**asked)
                    calls = [item for item in response.output if item.type == "function_call"]
                    if not calls:
                        break
                    self.assertEqual(len(calls), 1)
                    names.append(calls[0].name)
                    output = f"of {names[-1]}"
                    items += response.output
                    items.append({"type": "function_call_output", "call_id": calls[0].call_id, "output": output})
                self.assertEqual(names, ["get_weather", "get_time"])
                self.assertIn("of get_weather; of get_time", response.output_text)
                self.assertEqual(self.turns_sent(), ROUNDS)

    def test_several_tools_at_once(self) -> None:
        asked = {"model": "m", "input": ASKS_BOTH, "tools": TOOLS}
        whole = self.client.responses.create(**asked)
        with self.client.responses.stream(**asked) as stream:
            streamed = stream.get_final_response()
        for response in (whole, streamed):
            calls = [(item.name, list(json.loads(item.arguments))) for item in response.output]
            self.assertEqual(calls, [("get_weather", ["city"]), ("get_time", ["zone"])])

    def test_structured_output(self) -> None:
        import pydantic

        class City(pydantic.BaseModel):
            name: str
            inhabitants: int

        parsed = self.client.responses.parse(**ASKED, text_format=City).output_parsed
        self.assertIsInstance(parsed, City)
        self.assertEqual(self.schema_sent()["title"], "City")
        with self.client.responses.stream(**ASKED, text_format=City) as stream:
            self.assertEqual(stream.get_final_response().output_parsed, parsed)
        tools = [self.sdk.pydantic_function_tool(City)]
        response = self.client.responses.parse(model="m", input="call City", tools=tools)
        self.assertIsInstance(response.output[0].parsed_arguments, City)

    def test_leaving_a_stream_ends_it_at_the_engine(self) -> None:
        self.check_leaving(lambda: self.client.responses.create(**ASKED, stream=True))

    def test_a_cancelled_task_ends_its_request_at_the_engine(self) -> None:
        async def streamed(client: Any) -> AsyncIterator[Any]:
            async with client.responses.stream(**ASKED) as stream:
                async for event in stream:
                    yield event

        self.check_cancelling(self.asynchronous(), lambda client: client.responses.create(**ASKED), streamed)

    def test_an_answer_that_was_cut_off_is_incomplete(self) -> None:
        response = self.client.responses.create(**ASKED, max_output_tokens=16)
        self.assertEqual(response.status, "completed")
        response = self.client.responses.create(model="m", input="word " * 50, max_output_tokens=16)
        self.assertEqual((response.status, response.incomplete_details.reason), ("incomplete", "max_output_tokens"))


class ErrorsTest(ResponsesCase):
    refusals: Any = (
        ("NotFoundError", "model_not_found", "model", {"model": "nope"}),
        ("BadRequestError", "invalid_temperature", "temperature", {"temperature": 7}),
        ("BadRequestError", "not_supported", "previous_response_id", {"previous_response_id": "resp_1"}),
        ("AuthenticationError", "unauthorized", None, {"key": "wrong"}),
    )

    def test_refusals_are_the_exceptions_of_their_kinds(self) -> None:
        for exception, code, param, changes in self.refusals:
            for stream in (False, True):
                with self.subTest(exception, stream=stream):
                    asked = {**ASKED, **changes, "stream": stream}
                    with self.new_client(asked.pop("key", KEY)) as client:
                        with self.assertRaises(getattr(self.sdk, exception)) as caught:
                            client.responses.create(**asked)
                    self.assertEqual((caught.exception.code, caught.exception.param), (code, param))

    def test_failing_engine_is_an_internal_server_error(self) -> None:
        self.engine.control("error", status=500)
        for stream in (False, True):
            with self.subTest(stream=stream), self.assertRaises(self.sdk.InternalServerError) as caught:
                self.client.responses.create(**ASKED, stream=stream)
            self.assertEqual((caught.exception.status_code, caught.exception.code), (502, "backend_error"))

    def test_a_stream_that_breaks_is_an_exception_and_no_end(self) -> None:
        self.break_streams()
        for way in ("create", "stream"):
            with self.subTest(way):
                kinds = []
                options = {"stream": True} if way == "create" else {}
                with self.assertRaises(self.sdk.APIError) as caught:
                    with getattr(self.client.responses, way)(**ASKED, **options) as stream:
                        for event in stream:
                            kinds.append(event.type)
                self.assertIn("response.output_text.delta", kinds)
                self.assertNotIn("response.completed", kinds)
                self.assertEqual(caught.exception.code, "backend_error")


class AnswersOverAnthropicTest(AnswersTest):
    dialect = ANTHROPIC


class ErrorsOverAnthropicTest(ErrorsTest):
    dialect = ANTHROPIC


class AnswersOfAnEngineThatHasThemTest(AnswersTest):
    endpoints = NATIVE

    def test_a_conversation_that_the_engine_keeps_goes_on(self) -> None:
        first = self.client.responses.create(**ASKED, store=True)
        asked = {"model": "m", "input": "and now?", "previous_response_id": first.id}
        second = self.client.responses.create(**asked)
        self.assertEqual((second.previous_response_id, second.status), (first.id, "completed"))
        sent = self.engine.requests[-1]
        self.assertEqual((sent["path"], sent["body"]), ("/v1/responses", asked))
        self.assertGreater(second.usage.input_tokens, first.usage.total_tokens)  # what was said before counts
        with self.client.responses.create(**{**asked, "previous_response_id": second.id}, stream=True) as stream:
            *_, last = stream
        self.assertEqual(last.response.previous_response_id, second.id)
        self.assertGreater(last.response.usage.input_tokens, second.usage.input_tokens)


class ErrorsOfAnEngineThatHasThemTest(ErrorsTest):
    endpoints = NATIVE
    refusals = (
        ("NotFoundError", "model_not_found", "model", {"model": "nope"}),
        ("BadRequestError", "400", None, {"previous_response_id": "resp_1"}),  # the engine's own words
        ("AuthenticationError", "unauthorized", None, {"key": "wrong"}),
    )


if __name__ == "__main__":
    unittest.main()
