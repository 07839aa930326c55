"""The openai package for JavaScript as a client: its users' flows, over engines of either dialect, and what they read
when something is wrong, by default.

Skipped where node or the package is missing, which is looked for in the folder OPENAI_JS (`npm install openai zod`, run
there); with REQUIRE_OPENAI_JS=1 that is a failure.
"""

from __future__ import annotations

import os
import unittest
from pathlib import Path
from typing import Any

from tests import jsclients
from tests.clients import ANTHROPIC, ASKS_BOTH, CLOCK, ROUNDS, WEATHER, schema_of, turns_of
from tests.jsclients import CITY, NODE, folder_of
from tests.sdkerrors import MESSAGES, Case, Scene
from tests.support import RunningGateway, gateway, mock_engine

SCRIPT = Path(__file__).with_name("openai_client.mjs")
FOLDER = "OPENAI_JS"
MISSING = NODE is None or not all((folder_of(FOLDER) / name).is_dir() for name in ("openai", "zod"))
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": schema}}
    for name, schema in (("get_weather", WEATHER), ("get_time", CLOCK))
]
RESPONSES_TOOLS = [{"type": "function", **tool["function"], "strict": False} for tool in TOOLS]


class RequirementTest(unittest.TestCase):
    @unittest.skipUnless(os.environ.get("REQUIRE_OPENAI_JS") == "1", "REQUIRE_OPENAI_JS=1 is not set")
    def test_the_openai_package_for_javascript_is_installed(self) -> None:
        self.assertFalse(MISSING, f"REQUIRE_OPENAI_JS=1, but node ({NODE}), or openai or zod in {FOLDER}, is missing")


def ask(*cases: Case, retries: int = 0) -> list[dict[str, Any]]:
    """How these have ended, asked one after another: how many `requests` that took, and the `error` or `answer`."""
    wanted = [
        {**case._asdict(), "how": "chat", "retries": retries, "options": {**case.options, "messages": MESSAGES}}
        for case in cases
    ]
    return jsclients.ask(SCRIPT, FOLDER, wanted)


@unittest.skipIf(MISSING, "node, or openai or zod for JavaScript in the folder OPENAI_JS, is not installed")
class FlowsTest(jsclients.JsCase):
    script = SCRIPT
    folder = FOLDER

    @classmethod
    def wanted(cls, gateway: RunningGateway) -> dict[str, dict[str, Any]]:
        def chat(how: str = "chat", text: str = "hi there", model: str = "m", **options: Any) -> dict[str, Any]:
            asked = {"model": model, "messages": [{"role": "user", "content": text}], **options}
            return {"how": how, "base_url": f"{gateway.url}/v1", "options": asked}

        def response(
            how: str = "response", given: Any = "hi there", model: str = "m", **options: Any
        ) -> dict[str, Any]:
            asked = {"model": model, "input": given, **options}
            return {"how": how, "base_url": f"{gateway.url}/v1", "options": asked}

        both = [{"role": "user", "content": ASKS_BOTH}]
        silent = cls.engines["h"].url
        calling = {"tools": TOOLS, "parallel_tool_calls": False}
        answering = {"tools": RESPONSES_TOOLS, "parallel_tool_calls": False}
        embedded = {"how": "embeddings", "base_url": f"{gateway.url}/v1"}
        return {
            "chat": chat(temperature=0.5),
            "chat-stream": chat(stream=True, stream_options={"include_usage": True}),
            "chat-rounds": chat("rounds", ASKS_BOTH, **calling),
            "chat-stream-rounds": chat("rounds", ASKS_BOTH, stream=True, **calling),
            "chat-fits": chat("fits"),
            "chat-calls": chat("calls", "call City"),
            "chat-broken": chat(model="b", stream=True),
            "chat-aborted": {**chat(model="h"), "aborts_at": silent},
            "chat-left": {**chat(model="s", stream=True), "leaves": True},
            "embeddings": {**embedded, "options": {"model": "m", "input": ["one", "two"]}},
            "response": response(instructions="be brief"),
            "response-stream": response(stream=True),
            "response-rounds": response("response_rounds", both, **answering),
            "response-stream-rounds": response("response_rounds", both, stream=True, **answering),
            "response-fits": response("response_fits"),
            "response-broken": response(model="b", stream=True),
            "response-aborted": {**response(model="h"), "aborts_at": silent},
            "response-left": {**response(model="s", stream=True), "leaves": True},
        }

    def test_chat_whole_and_streamed(self) -> None:
        whole, chunks = self.got("chat")["answer"], self.got("chat-stream")["chunks"]
        said = whole["choices"][0]["message"]["content"]
        self.assertIn("hi there", said)
        deltas = [choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]]
        self.assertEqual("".join(deltas), said)
        self.assertEqual(chunks[-2]["choices"][0]["finish_reason"], "stop")
        self.assertEqual(chunks[-1]["usage"], whole["usage"])
        (sent,) = self.sent("chat")
        self.assertEqual((sent["body"]["temperature"], turns_of(sent)), (0.5, ["hi there"]))

    def test_responses_whole_and_streamed(self) -> None:
        whole, events = self.got("response")["answer"], self.got("response-stream")["chunks"]
        self.assertIn("hi there", whole["output_text"])
        self.assertEqual([event["sequence_number"] for event in events], list(range(len(events))))
        said = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
        self.assertEqual((said, events[-1]["type"]), (whole["output_text"], "response.completed"))
        self.assertIn("be brief", str(self.sent("response")))

    def test_tools_in_several_rounds(self) -> None:
        for kind in ("chat", "response"):
            for name in (f"{kind}-rounds", f"{kind}-stream-rounds"):
                with self.subTest(name):
                    self.assertIn("of get_weather; of get_time", self.got(name)["said"])
                    self.assertEqual([turns_of(sent) for sent in self.sent(name)], [ROUNDS[:1], ROUNDS[:3], ROUNDS])

    def test_answers_that_fit_a_zod_schema(self) -> None:
        for name in ("chat-fits", "response-fits"):
            with self.subTest(name):
                told = self.got(name)
                self.assertEqual(list(told["whole"]), CITY)
                self.assertEqual(told["streamed"], told["whole"])
                for sent in self.sent(name):
                    self.assertEqual(list(schema_of(sent)["properties"]), CITY)
        self.assertEqual(list(self.got("chat-calls")["called"]), CITY)

    def test_embeddings(self) -> None:
        one, two = self.got("embeddings")["answer"]["data"]
        self.assertEqual(len(one["embedding"]), len(two["embedding"]))
        self.assertNotEqual(one["embedding"], two["embedding"])
        self.assertEqual(self.sent("embeddings")[0]["body"]["input"], ["one", "two"])

    def test_a_stream_that_breaks_is_an_exception_and_no_end(self) -> None:
        for name in ("chat-broken", "response-broken"):
            with self.subTest(name):
                told = self.told[name]
                self.assertIn("APIError", told["error"]["kinds"])
                self.assertEqual(told["error"]["code"], "backend_error")
                self.assertGreater(len(told["chunks"]), 1)
                self.assertNotIn("stop", [choice["finish_reason"] for choice in told["chunks"][-1].get("choices", ())])
                self.assertNotIn("response.completed", [chunk.get("type") for chunk in told["chunks"]])

    def test_aborting_ends_a_request_at_the_engine(self) -> None:
        for name in ("chat-aborted", "response-aborted"):
            self.assertIn("APIUserAbortError", self.told[name]["error"]["kinds"])
        self.assert_left("h", 2)
        for name in ("chat-left", "response-left"):
            self.assertTrue(self.got(name)["chunks"])  # no exception: a stream that is aborted just ends there
        self.assert_left("s", 2)


class FlowsOverAnthropicTest(FlowsTest):
    dialect = ANTHROPIC

    def test_embeddings(self) -> None:
        error = self.told["embeddings"]["error"]
        self.assertEqual((error["status"], error["code"]), (400, "endpoint_not_served"))
        self.assertIn("BadRequestError", error["kinds"])
        self.assertEqual(self.sent("embeddings"), [])


@unittest.skipIf(MISSING, "node, or openai or zod for JavaScript in the folder OPENAI_JS, is not installed")
class Errors(Scene):
    def test_its_exceptions_say_what_is_wrong(self) -> None:
        cases = self.cases()
        for case, told in zip(cases, ask(*cases)):
            with self.subTest(case=case.name):
                error = told["error"]
                # What Python calls APIStatusError is an APIError there.
                self.assertIn(case.exception.replace("APIStatus", "API"), error["kinds"])
                self.assertEqual(
                    (error.get("status"), error["code"], error["param"]), (case.status, case.code, case.param)
                )
                self.assertIn(case.says, error["message"])
                self.assertTrue(error["request_id"])

    def test_it_asks_again_by_itself_only_where_that_can_help(self) -> None:
        once = [case for case in self.cases() if case.status is not None and case.status < 429]
        for case, told in zip(once, ask(*once, retries=2)):
            self.assertEqual((told["requests"], told["error"]["code"]), (1, case.code))

    def test_it_does_not_where_the_pause_is_longer_than_it_would_wait(self) -> None:
        with mock_engine("m") as engine, gateway(ENGINES=f"m={engine.url}", RETRY_ATTEMPTS=1) as running:
            engine.control("rate_limit", retry_after=100)
            case = Case("", "", 429, "", None, "", "unused", f"{running.url}/v1", {"model": "m"})
            (told,) = ask(case, retries=2)
        self.assertEqual((told["requests"], told["error"]["code"]), (1, "backend_rate_limited"))


if __name__ == "__main__":
    unittest.main()
