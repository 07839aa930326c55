"""The anthropic package for JavaScript as a client, against a gateway whose engines only know one dialect.

Skipped where node or the package is missing, which is looked for in the folder ANTHROPIC_JS (`npm install
@anthropic-ai/sdk`, run there); with REQUIRE_ANTHROPIC_JS=1 that is a failure.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import unittest
from pathlib import Path
from typing import Any

from tests.clients import ANTHROPIC, ASKS_BOTH, CLOCK, KEY, LACKED, OPENAI, WEATHER, serving
from tests.support import SocketTest, eventually, mock_engine

SCRIPT = Path(__file__).with_name("anthropic_client.mjs")
NODE = shutil.which("node")
FOLDER = os.environ.get("ANTHROPIC_JS", "")
MISSING = NODE is None or not (Path(FOLDER) / "node_modules" / "@anthropic-ai" / "sdk").is_dir()
LIMIT_S = 60
ASKED: dict[str, Any] = {"model": "m", "max_tokens": 200, "messages": [{"role": "user", "content": "hi there"}]}
TOOLS = [{"name": "get_weather", "input_schema": WEATHER}, {"name": "get_time", "input_schema": CLOCK}]


class RequirementTest(unittest.TestCase):
    @unittest.skipUnless(os.environ.get("REQUIRE_ANTHROPIC_JS") == "1", "REQUIRE_ANTHROPIC_JS=1 is not set")
    def test_the_anthropic_package_for_javascript_is_installed(self) -> None:
        self.assertFalse(MISSING, f"REQUIRE_ANTHROPIC_JS=1, but node ({NODE}) or its package in {FOLDER!r} is missing")


@unittest.skipIf(MISSING, "node, or the anthropic package for JavaScript in the folder ANTHROPIC_JS, is not installed")
class ClientTest(SocketTest):
    dialect = OPENAI

    def setUp(self) -> None:
        lacks = LACKED[self.dialect]
        self.engine = self.enter(mock_engine("m", lacks=lacks))
        self.breaking = self.enter(mock_engine("b", "drop_mid_stream", lacks=lacks))
        urls = {"m": self.engine.url, "b": self.breaking.url}
        self.gateway = serving(self.enter(contextlib.ExitStack()), urls, self.dialect)

    def ask(self, *requests: tuple[str, dict[str, Any]], key: str = KEY) -> list[dict[str, Any]]:
        """How these have ended, asked one after another: `(how, options)` each."""
        assert NODE is not None
        wanted = [
            {"base_url": self.gateway.url, "key": key, "how": how, "options": options} for how, options in requests
        ]
        done = subprocess.run(
            (NODE, str(SCRIPT)),
            input=json.dumps(wanted),
            capture_output=True,
            text=True,
            env={"ANTHROPIC_JS": FOLDER, "PATH": os.environ.get("PATH", "")},
            timeout=LIMIT_S,
        )
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert isinstance(told, list)
        return told

    def test_whole_streamed_and_counted(self) -> None:
        counted = {"model": "m", "messages": ASKED["messages"]}
        whole, streamed, count = self.ask(("create", ASKED), ("stream", ASKED), ("count", counted))
        self.assertIn("hi there", whole["message"]["content"][0]["text"])
        self.assertEqual(streamed["message"]["content"], whole["message"]["content"])
        self.assertEqual(streamed["message"]["usage"], whole["message"]["usage"])
        self.assertEqual(streamed["events"][-1], "message_stop")
        self.assertGreater(count["tokens"], 0)

    def test_several_tools_at_once_and_their_results(self) -> None:
        asked = {**ASKED, "messages": [{"role": "user", "content": ASKS_BOTH}], "tools": TOOLS}
        whole, streamed = self.ask(("create", asked), ("stream", asked))
        for told in (whole, streamed):
            calls = [(block["name"], list(block["input"])) for block in told["message"]["content"]]
            self.assertEqual(calls, [("get_weather", ["city"]), ("get_time", ["zone"])])
        content = streamed["message"]["content"]
        results = [{"type": "tool_result", "tool_use_id": block["id"], "content": "fine"} for block in content]
        asked["messages"] += [{"role": "assistant", "content": content}, {"role": "user", "content": results}]
        (last,) = self.ask(("stream", asked))
        self.assertIn("fine; fine", last["message"]["content"][0]["text"])

    def test_what_is_wrong(self) -> None:
        unknown, broken = self.ask(("create", {**ASKED, "model": "nope"}), ("stream", {**ASKED, "model": "b"}))
        (refused,) = self.ask(("create", ASKED), key="wrong")
        for told, status, kind, code in (
            (unknown, 404, "NotFoundError", "model_not_found"),
            (refused, 401, "AuthenticationError", "unauthorized"),
            (broken, None, "APIError", "backend_error"),
        ):
            with self.subTest(code):
                error = told["error"]
                self.assertIn(kind, error["kinds"])
                self.assertEqual(error.get("status"), status)
                self.assertEqual(error["body"]["error"]["details"]["error_code"], code)
                self.assertNotIn("message", told)

    def test_leaving_a_stream_ends_it_at_the_engine(self) -> None:
        self.engine.control("ok", events=1000, gap=0.05)
        self.ask(("leave", ASKED))
        self.assertTrue(self.engine.wait_for_cancelled(1, timeout_s=5))
        eventually(lambda: self.gateway.app.pipeline.in_flight == 0)


class ClientOverAnthropicTest(ClientTest):
    dialect = ANTHROPIC


if __name__ == "__main__":
    unittest.main()
