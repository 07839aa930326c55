"""What users of the official openai package, and of langchain with it, read when something is wrong, by default.

Skipped where a package is missing; with REQUIRE_OPENAI=1 that is a failure.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import unittest
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.onloop import completion
from tests.scripted import ScriptedEngine
from tests.sdkerrors import MESSAGES, TIMEOUT_S, Case, Scene
from tests.support import SocketTest, gateway

OPENAI_MISSING = importlib.util.find_spec("openai") is None
LANGCHAIN_MISSING = importlib.util.find_spec("langchain_openai") is None


class RequirementTest(unittest.TestCase):
    @unittest.skipUnless(os.environ.get("REQUIRE_OPENAI") == "1", "REQUIRE_OPENAI=1 is not set")
    def test_the_packages_are_installed(self) -> None:
        self.assertFalse(OPENAI_MISSING, "REQUIRE_OPENAI=1, but the openai package is missing")
        self.assertFalse(LANGCHAIN_MISSING, "REQUIRE_OPENAI=1, but the langchain-openai package is missing")


@unittest.skipIf(OPENAI_MISSING, "the openai package is not installed")
class Errors(Scene):
    def test_its_exceptions_say_what_is_wrong(self) -> None:
        import openai

        for case in self.cases():
            with self.subTest(case=case.name):
                client = openai.OpenAI(base_url=case.base_url, api_key=case.key, max_retries=0, timeout=TIMEOUT_S)
                with client, self.assertRaises(openai.APIError) as caught:
                    answer = client.chat.completions.create(messages=MESSAGES, **case.options)
                    for _ in answer if case.status is None else ():
                        pass
                self.assert_tells(case, caught.exception, str(caught.exception))

    def test_those_of_the_asynchronous_client_too(self) -> None:
        import openai

        async def ask(case: Case) -> None:
            client = openai.AsyncOpenAI(base_url=case.base_url, api_key=case.key, max_retries=0, timeout=TIMEOUT_S)
            async with client:
                answer = await client.chat.completions.create(messages=MESSAGES, **case.options)
                if case.status is None:
                    async for _ in answer:
                        pass

        for case in self.cases():
            with self.subTest(case=case.name):
                with self.assertRaises(openai.APIError) as caught:
                    asyncio.run(ask(case))
                self.assert_tells(case, caught.exception, str(caught.exception))

    def test_a_lost_model_and_other_paths_tell_it_as_well(self) -> None:
        import openai

        client = openai.OpenAI(base_url=f"{self.gateway.url}/v1", api_key=self.key, max_retries=0, timeout=TIMEOUT_S)
        with client:
            with self.assertRaises(openai.NotFoundError) as lost:
                client.models.retrieve("nope")
            self.assertEqual((lost.exception.code, lost.exception.param), ("model_not_found", "model"))
            with self.assertRaises(openai.BadRequestError) as empty:
                client.embeddings.create(model="m", input="")
            self.assertEqual((empty.exception.code, empty.exception.param), ("invalid_input", "input"))
            with self.assertRaises(openai.NotFoundError) as unknown:
                client.files.list()
            self.assertIn("there is no /v1/files. There are: /v1/chat/completions", str(unknown.exception))


@unittest.skipIf(LANGCHAIN_MISSING, "the langchain-openai package is not installed")
class LangChain(Scene):
    def test_its_exceptions_say_what_is_wrong(self) -> None:
        import openai
        from langchain_openai import ChatOpenAI

        for case in self.cases():
            with self.subTest(case=case.name):
                own = dict(case.options)
                stream, user = own.pop("stream", False), own.pop("user", None)
                model = ChatOpenAI(
                    base_url=case.base_url, api_key=case.key, max_retries=0, timeout=TIMEOUT_S, streaming=stream,
                    model_kwargs={} if user is None else {"user": user}, **own,
                )  # fmt: skip
                with self.assertRaises(openai.APIError) as caught:
                    model.invoke("hi there")
                self.assert_tells(case, caught.exception, str(caught.exception))


@unittest.skipIf(OPENAI_MISSING, "the openai package is not installed")
class Retries(SocketTest):
    """The package asks again by itself, twice unless told otherwise: only where that can help."""

    def ask(self, pause_s: int, again: bool) -> Any:
        """The raw answer to a request to an engine that asks for a pause first and, if it is asked again, answers."""
        import openai

        engine = self.enter(ScriptedEngine())
        running = self.enter(gateway(ENGINES=f"m={engine.url}", RETRY_ATTEMPTS=1))
        client = self.enter(openai.OpenAI(base_url=f"{running.url}/v1", api_key="unused", timeout=TIMEOUT_S))
        with ThreadPoolExecutor(1) as pool:
            raw = client.chat.completions.with_raw_response
            asking = pool.submit(raw.create, model="m", messages=MESSAGES)
            side = engine.take()
            side.answer(b'{"error": {"message": "slow down"}}', status=f"429 Slow\r\nRetry-After: {pause_s}")
            if again:
                side.read_request().answer(completion())
            return asking.result()

    def test_after_a_short_pause_that_the_answer_asks_for(self) -> None:
        self.assertEqual(self.ask(1, again=True).retries_taken, 1)

    def test_not_where_the_pause_is_longer_than_it_would_wait(self) -> None:
        import openai

        with self.assertRaises(openai.RateLimitError) as caught:
            self.ask(100, again=False)
        self.assertEqual(caught.exception.response.headers["x-should-retry"], "false")
        self.assertEqual(caught.exception.response.request.headers["x-stainless-retry-count"], "0")
        self.assertIn("slow down", str(caught.exception))


if __name__ == "__main__":
    unittest.main()
