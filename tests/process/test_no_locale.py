"""Where Python is told of no locale, in a folder whose name is not ASCII, the gateway does what it does elsewhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from tests.support import HOSTS, ROOT, TIMEOUT_S, RawClient, SocketTest, os_text

DOTENV = "# żółć: a comment\nENGINES_FILE=silniki-ż.json\nDECISION_LOG='☃.jsonl'\nCORS_ORIGINS=*  # ☃\n"
ENGINES = json.dumps({"models": {"13b": {"engines": ["echo:"]}}})


@unittest.skipUnless(os.name == "posix", "locales as POSIX has them")
class NoLocaleTest(SocketTest):
    def setUp(self) -> None:
        self.folder = Path(self.enter(tempfile.TemporaryDirectory())) / os_text("żółć ☃")
        self.folder.mkdir()
        shutil.copytree(ROOT / "gateway", self.folder / "gateway")
        shutil.copy(ROOT / "main.py", self.folder)
        (self.folder / ".env").write_text(DOTENV, "utf-8")
        (self.folder / os_text("silniki-ż.json")).write_text(ENGINES, "utf-8")
        bare = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": tempfile.gettempdir(),
            "ALLOWED_HOSTS": HOSTS,
        }
        self.environments = [bare, {**bare, "LC_ALL": "C"}, {**bare, "LANG": "POSIX"}]

    def popen(self, environment: dict[str, str], *arguments: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.enter(process)
        self.addCleanup(process.kill)
        return process

    def ended(self, process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
        output, errors = process.communicate(timeout=2 * TIMEOUT_S)
        return process.returncode, output.decode("utf-8", "replace"), errors.decode("utf-8", "replace")

    def test_check(self) -> None:
        programs = [(environment, ("main.py",)) for environment in self.environments]
        for environment, program in (*programs, (self.environments[0], ("-m", "gateway"))):
            status, output, errors = self.ended(self.popen(environment, *program, "check", "--port", "9"))
            self.assertEqual((status, errors), (0, ""))
            self.assertIn("model 13b", output)
            self.assertIn("http://127.0.0.1:9\n", output)

    def test_a_fault_is_told(self) -> None:
        (self.folder / os_text("silniki-ż.json")).write_text('{"models": {"ż": 1}}', "utf-8")
        for environment in self.environments:
            status, output, errors = self.ended(self.popen(environment, "main.py"))
            self.assertEqual((status, output), (2, ""))
            self.assertIn("error: ENGINES_FILE: ", errors)
            self.assertNotIn("codec", errors)
            self.assertNotIn("Traceback", errors)

    def test_it_serves(self) -> None:
        for environment in self.environments:
            process = self.popen(environment, "main.py", "--port", "0")
            assert process.stdout is not None
            address = re.search(rb":([0-9]+)\b", process.stdout.readline())
            assert address is not None, self.ended(process)
            with RawClient(int(address[1]), timeout_s=TIMEOUT_S) as client:
                body = {"model": "13b", "messages": [{"role": "user", "content": "zażółć ☃"}]}
                answer = client.post(body)
            self.assertEqual(answer.json()["choices"][0]["message"]["content"], "Echo: zażółć ☃")
            process.send_signal(signal.SIGTERM)
            status, _, errors = self.ended(process)
            self.assertEqual(status, 0, errors)
            self.assertNotIn("Traceback", errors)


if __name__ == "__main__":
    unittest.main()
