"""The openai package for JavaScript as a client: what its users read when something is wrong, by default.

Skipped where node or the package is missing, which is looked for in the folder OPENAI_JS (`npm install openai`, run
there); with REQUIRE_OPENAI_JS=1 that is a failure.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import unittest
from pathlib import Path
from typing import Any

from tests.sdkerrors import MESSAGES, Case, Scene
from tests.support import gateway, mock_engine

SCRIPT = Path(__file__).with_name("openai_client.mjs")
NODE = shutil.which("node")
FOLDER = os.environ.get("OPENAI_JS", "")
MISSING = NODE is None or not (Path(FOLDER) / "node_modules" / "openai").is_dir()
LIMIT_S = 60


class RequirementTest(unittest.TestCase):
    @unittest.skipUnless(os.environ.get("REQUIRE_OPENAI_JS") == "1", "REQUIRE_OPENAI_JS=1 is not set")
    def test_the_openai_package_for_javascript_is_installed(self) -> None:
        self.assertFalse(MISSING, f"REQUIRE_OPENAI_JS=1, but node ({NODE}) or its package in {FOLDER!r} is missing")


def ask(*cases: Case, retries: int = 0) -> list[dict[str, Any]]:
    """How these have ended, asked one after another: how many `requests` that took, and the `error` or `answer`."""
    assert NODE is not None
    wanted = [
        {**case._asdict(), "retries": retries, "options": {**case.options, "messages": MESSAGES}} for case in cases
    ]
    environment = {"OPENAI_JS": FOLDER, "PATH": os.environ.get("PATH", "")}
    text = json.dumps(wanted)
    done = subprocess.run(
        (NODE, str(SCRIPT)), input=text, capture_output=True, text=True, env=environment, timeout=LIMIT_S
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert isinstance(told, list)
    return told


@unittest.skipIf(MISSING, "node, or the openai package for JavaScript in the folder OPENAI_JS, is not installed")
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
