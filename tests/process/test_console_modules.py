"""The console's modules, as far as they need no browser: the tests in tests/console, run by node.

Skipped where node 20 or later is missing; with REQUIRE_CONSOLE=1 that is a failure.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import unittest
from pathlib import Path
from typing import Optional

NODE = shutil.which("node")
FOLDER = Path(__file__).resolve().parent.parent / "console"
NODE_MIN = 20
LIMIT_S = 120


def node_version() -> Optional[int]:
    """Which node there is; None: none."""
    if NODE is None:
        return None
    said = subprocess.run((NODE, "--version"), capture_output=True, text=True, timeout=LIMIT_S).stdout
    match = re.match(r"v(\d+)\.", said)
    return int(match.group(1)) if match else None


VERSION = node_version()
MISSING = VERSION is None or VERSION < NODE_MIN


class RequirementTest(unittest.TestCase):
    @unittest.skipUnless(os.environ.get("REQUIRE_CONSOLE") == "1", "REQUIRE_CONSOLE=1 is not set")
    def test_node_is_installed(self) -> None:
        self.assertFalse(MISSING, f"REQUIRE_CONSOLE=1, but node {NODE_MIN} is missing; there is {VERSION}")


@unittest.skipIf(MISSING, f"node {NODE_MIN} or later is not installed")
class ModulesTest(unittest.TestCase):
    def test_the_tests_of_the_modules_pass(self) -> None:
        assert NODE is not None
        files = sorted(str(path) for path in FOLDER.glob("*.test.mjs"))
        self.assertGreaterEqual(len(files), 7)
        done = subprocess.run(
            (NODE, "--test", "--test-reporter=tap", *files),
            capture_output=True,
            text=True,
            env={"PATH": os.environ.get("PATH", ""), "TZ": "UTC"},
            timeout=LIMIT_S,
        )
        told = re.search(r"^# pass (\d+)$", done.stdout, re.MULTILINE)
        self.assertEqual(done.returncode, 0, done.stdout[-4000:] + done.stderr[-1000:])
        self.assertGreater(int(told.group(1)) if told else 0, 30, "hardly any test has run")


if __name__ == "__main__":
    unittest.main()
