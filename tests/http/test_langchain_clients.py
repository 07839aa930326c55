"""langchain's packages for Anthropic and OpenAI as clients, against a gateway whose engines only know one dialect.

Skipped where a package is missing; with REQUIRE_LANGCHAIN=1 that is a failure. `test_openai_errors.py` has what
langchain's users read when something is wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import operator
import os
import unittest
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

from tests.clients import ANTHROPIC, ASKS_BOTH, CLOCK, KEY, ROUNDS, WEATHER, ClientCase, missing

NO_ANTHROPIC = missing("langchain_anthropic")
NO_OPENAI = missing("langchain_openai")
TOOLS: Any = [
    {"type": "function", "function": {"name": name, "description": name, "parameters": schema}}
    for name, schema in (("get_weather", WEATHER), ("get_time", CLOCK))
]


def added(chunks: Iterable[Any]) -> Any:
    """The message that the chunks of a stream make."""
    return functools.reduce(operator.add, chunks)


class RequirementTest(unittest.TestCase):
    @unittest.skipUnless(os.environ.get("REQUIRE_LANGCHAIN") == "1", "REQUIRE_LANGCHAIN=1 is not set")
    def test_langchain_s_packages_are_installed(self) -> None:
        self.assertFalse(NO_ANTHROPIC, "REQUIRE_LANGCHAIN=1, but langchain-anthropic is missing")
        self.assertFalse(NO_OPENAI, "REQUIRE_LANGCHAIN=1, but langchain-openai is missing")


class LangchainCase(ClientCase):
    """One model of langchain, whichever dialect it speaks."""

    error: Any
    """What a broken stream is to its users."""

    def new_model(self) -> Any:
        raise NotImplementedError

    def asynchronous(self) -> Any:
        """The client that the model asks with where it is asked asynchronously."""
        return self.model.root_async_client

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Any]:
        try:
            yield self.model
        finally:
            await self.asynchronous().close()

    def setUp(self) -> None:
        super().setUp()
        self.model = self.new_model()

    def check_leaving(self) -> None:
        self.check_cancelling(
            self.opened(), lambda model: model.ainvoke("hi there"), lambda model: model.astream("hi there")
        )

    def check(self) -> None:
        """Whole, streamed, asynchronous, with tools in several rounds, with an answer that fits a class, broken."""
        self.check_answers()
        self.check_tools()
        self.check_rounds()
        self.check_structured()
        self.break_streams()
        self.check_broken(self.model.stream)

    def check_broken(self, stream: Callable[[str], Iterable[Any]]) -> None:
        chunks = []
        with self.assertRaises(self.error):
            for chunk in stream("hi there"):
                chunks.append(chunk)
        self.assertTrue(any(chunk.text for chunk in chunks))

    def asynchronously_streamed(self, said: str) -> Iterator[Any]:
        """What `astream` gives; then its exception, if there is one. The model may not be asked so again."""
        chunks = []

        async def ask() -> None:
            async with self.opened() as model:
                async for chunk in model.astream(said):
                    chunks.append(chunk)

        try:
            asyncio.run(ask())
        finally:
            yield from chunks

    def check_answers(self) -> None:
        whole = self.model.invoke("hi there")
        self.assertIn("hi there", whole.text)
        self.assertGreater(whole.usage_metadata["output_tokens"], 0)
        parts = list(self.model.stream("hi there"))
        self.assertEqual("".join(part.text for part in parts), whole.text)
        self.assertGreater(len(parts), 2)
        self.assertEqual("".join(part.text for part in self.asynchronously_streamed("hi there")), whole.text)

    def check_tools(self) -> None:
        from langchain_core.messages import HumanMessage, ToolMessage

        model = self.model.bind_tools(TOOLS)
        messages: list[Any] = [HumanMessage(ASKS_BOTH)]
        message = model.invoke(messages)
        calls = [(call["name"], list(call["args"])) for call in message.tool_calls]
        self.assertEqual(calls, [("get_weather", ["city"]), ("get_time", ["zone"])])
        messages.append(message)
        messages += [ToolMessage(f"of {call['name']}", tool_call_id=call["id"]) for call in message.tool_calls]
        self.assertIn("of get_weather; of get_time", model.invoke(messages).text)

    def check_rounds(self) -> None:
        from langchain_core.messages import HumanMessage, ToolMessage

        model = self.model.bind_tools(TOOLS, parallel_tool_calls=False)
        for streams in (False, True):
            messages: list[Any] = [HumanMessage(ASKS_BOTH)]
            for _ in range(2):
                message = added(model.stream(messages)) if streams else model.invoke(messages)
                (call,) = message.tool_calls
                messages += [message, ToolMessage(f"of {call['name']}", tool_call_id=call["id"])]
            message = added(model.stream(messages)) if streams else model.invoke(messages)
            self.assertIn("of get_weather; of get_time", message.text)
            self.assertEqual(self.turns_sent(), ROUNDS)

    def check_structured(self) -> None:
        import pydantic

        class City(pydantic.BaseModel):
            """A city."""

            name: str
            inhabitants: int

        self.assertIsInstance(self.model.with_structured_output(City).invoke("hi there"), City)


@unittest.skipIf(NO_ANTHROPIC, "langchain-anthropic is not installed")
class AnthropicTest(LangchainCase):
    package = "langchain_anthropic"

    def new_model(self) -> Any:
        import anthropic

        self.error = anthropic.APIStatusError
        return self.sdk.ChatAnthropic(model="m", base_url=self.gateway.url, api_key=KEY, max_retries=0, max_tokens=200)

    def asynchronous(self) -> Any:
        return self.model._async_client

    def test_its_users_flows(self) -> None:
        self.check()

    def test_an_asynchronous_stream_that_breaks(self) -> None:
        self.break_streams()
        self.check_broken(self.asynchronously_streamed)

    def test_a_cancelled_task_ends_its_request_at_the_engine(self) -> None:
        self.check_leaving()


@unittest.skipIf(NO_OPENAI, "langchain-openai is not installed")
class OpenAITest(LangchainCase):
    package = "langchain_openai"

    def new_model(self, **options: Any) -> Any:
        import openai

        self.error = openai.APIError
        url = f"{self.gateway.url}/v1"
        return self.sdk.ChatOpenAI(model="m", base_url=url, api_key=KEY, max_retries=0, stream_usage=True, **options)

    def test_its_users_flows(self) -> None:
        self.check()

    def test_an_asynchronous_stream_that_breaks(self) -> None:
        self.break_streams()
        self.check_broken(self.asynchronously_streamed)

    def test_a_cancelled_task_ends_its_request_at_the_engine(self) -> None:
        self.check_leaving()

    def test_its_users_flows_over_responses(self) -> None:
        self.model = self.new_model(use_responses_api=True)
        self.error = ValueError  # langchain's own, of the event response.failed
        self.check()

    def test_a_cancelled_task_ends_its_request_over_responses(self) -> None:
        self.model = self.new_model(use_responses_api=True)
        self.check_leaving()

    def test_embeddings(self) -> None:
        options = {"base_url": f"{self.gateway.url}/v1", "api_key": KEY, "check_embedding_ctx_length": False}
        embeddings = self.sdk.OpenAIEmbeddings(model="m", **options)
        several = embeddings.embed_documents(["one", "two"])
        self.assertEqual((len(several), several[0]), (2, embeddings.embed_query("one")))


class AnthropicOverAnthropicTest(AnthropicTest):
    dialect = ANTHROPIC


class OpenAIOverAnthropicTest(OpenAITest):
    dialect = ANTHROPIC

    def test_embeddings(self) -> None:
        import openai

        with self.assertRaises(openai.BadRequestError) as caught:
            super().test_embeddings()
        self.assertEqual(caught.exception.code, "endpoint_not_served")


if __name__ == "__main__":
    unittest.main()
