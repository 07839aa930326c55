"""The anthropic package for JavaScript as a client: its users' flows, over engines of either dialect.

Skipped where node or the package is missing, which is looked for in the folder ANTHROPIC_JS (`npm install
@anthropic-ai/sdk zod`, run there); with REQUIRE_ANTHROPIC_JS=1 that is a failure.
"""

from __future__ import annotations

import os
import unittest
from pathlib import Path
from typing import Any

from tests.clients import ANTHROPIC, ASKS_BOTH, CLOCK, ROUNDS, WEATHER, schema_of, turns_of
from tests.jsclients import CITY, NODE, JsCase, folder_of
from tests.support import RunningGateway

FOLDER = "ANTHROPIC_JS"
MISSING = NODE is None or not all((folder_of(FOLDER) / name).is_dir() for name in ("@anthropic-ai/sdk", "zod"))
TOOLS = [{"name": "get_weather", "input_schema": WEATHER}, {"name": "get_time", "input_schema": CLOCK}]


class RequirementTest(unittest.TestCase):
    @unittest.skipUnless(os.environ.get("REQUIRE_ANTHROPIC_JS") == "1", "REQUIRE_ANTHROPIC_JS=1 is not set")
    def test_the_anthropic_package_for_javascript_is_installed(self) -> None:
        self.assertFalse(
            MISSING, f"REQUIRE_ANTHROPIC_JS=1, but node ({NODE}), or the sdk or zod in {FOLDER}, is missing"
        )


@unittest.skipIf(MISSING, "node, or @anthropic-ai/sdk or zod in the folder ANTHROPIC_JS, is not installed")
class FlowsTest(JsCase):
    script = Path(__file__).with_name("anthropic_client.mjs")
    folder = FOLDER

    @classmethod
    def wanted(cls, gateway: RunningGateway) -> dict[str, dict[str, Any]]:
        def asking(how: str, text: str = "hi there", model: str = "m", **options: Any) -> dict[str, Any]:
            asked = {"model": model, "messages": [{"role": "user", "content": text}], **options}
            if how != "count":
                asked["max_tokens"] = 200
            return {"how": how, "base_url": gateway.url, "options": asked}

        one_by_one = {"tools": TOOLS, "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}
        return {
            "whole": asking("create", system="be brief"),
            "streamed": asking("stream", system="be brief"),
            "count": asking("count"),
            "called": asking("create", ASKS_BOTH, tools=TOOLS),
            "called-streamed": asking("stream", ASKS_BOTH, tools=TOOLS),
            "both": asking("rounds", ASKS_BOTH, tools=TOOLS),
            "rounds": asking("rounds", ASKS_BOTH, **one_by_one),
            "rounds-streamed": asking("rounds", ASKS_BOTH, stream=True, **one_by_one),
            "run": asking("runs", ASKS_BOTH, **one_by_one),
            "fits": asking("fits"),
            "unknown": asking("create", model="nope"),
            "refused": {**asking("create"), "key": "wrong"},
            "broken": asking("stream", model="b"),
            "aborted": {**asking("create", model="h"), "aborts_at": cls.engines["h"].url},
            "left": {**asking("stream", model="s"), "leaves": True},
        }

    def test_whole_streamed_and_counted(self) -> None:
        whole, streamed = self.got("whole")["message"], self.got("streamed")["message"]
        self.assertIn("hi there", whole["content"][0]["text"])
        self.assertEqual((streamed["content"], streamed["usage"]), (whole["content"], whole["usage"]))
        self.assertEqual(self.got("streamed")["chunks"][-1]["type"], "message_stop")
        self.assertGreater(self.got("count")["tokens"], 0)
        self.assertEqual(self.sent("count"), [])
        for name in ("whole", "streamed"):
            (sent,) = self.sent(name)
            self.assertEqual(turns_of(sent)[-1], "hi there")
            self.assertIn("be brief", str(sent["body"]))

    def test_several_tools_at_once_and_their_results(self) -> None:
        for name in ("called", "called-streamed"):
            calls = [(block["name"], list(block["input"])) for block in self.got(name)["message"]["content"]]
            self.assertEqual(calls, [("get_weather", ["city"]), ("get_time", ["zone"])])
        self.assertIn("of get_weather; of get_time", self.got("both")["said"])
        *_, last = self.sent("both")
        self.assertEqual(turns_of(last), [ROUNDS[0], *ROUNDS[1::2], *ROUNDS[2::2]])

    def test_tools_in_several_rounds(self) -> None:
        for name in ("rounds", "rounds-streamed", "run"):
            with self.subTest(name):
                self.assertIn("of get_weather; of get_time", self.got(name)["said"])
                self.assertEqual([turns_of(sent) for sent in self.sent(name)], [ROUNDS[:1], ROUNDS[:3], ROUNDS])

    def test_an_answer_that_fits_a_zod_schema(self) -> None:
        told = self.got("fits")
        self.assertEqual(list(told["whole"]), CITY)
        self.assertEqual(told["streamed"], told["whole"])
        for sent in self.sent("fits"):
            self.assertEqual(list(schema_of(sent)["properties"]), CITY)

    def test_what_is_wrong(self) -> None:
        for name, status, kind, code in (
            ("unknown", 404, "NotFoundError", "model_not_found"),
            ("refused", 401, "AuthenticationError", "unauthorized"),
            ("broken", None, "APIError", "backend_error"),
        ):
            with self.subTest(name):
                told = self.told[name]
                error = told["error"]
                self.assertIn(kind, error["kinds"])
                self.assertEqual(error.get("status"), status)
                self.assertEqual(error["body"]["error"]["details"]["error_code"], code)
                self.assertNotIn("message", told)
        self.assertIn("content_block_delta", [event["type"] for event in self.told["broken"]["chunks"]])

    def test_aborting_ends_a_request_at_the_engine(self) -> None:
        for name, model in (("aborted", "h"), ("left", "s")):
            with self.subTest(name):
                self.assertIn("APIUserAbortError", self.told[name]["error"]["kinds"])
                self.assertNotIn("message", self.told[name])
                self.assert_left(model, 1)


class FlowsOverAnthropicTest(FlowsTest):
    dialect = ANTHROPIC


if __name__ == "__main__":
    unittest.main()
