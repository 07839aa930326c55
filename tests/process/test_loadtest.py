"""`python main.py loadtest` as a process: Ctrl-C, exit statuses, what it prints where, and files."""

from __future__ import annotations

import json
import os
import re
import signal
import unittest

from gateway.mock.server import MockEngine
from tests.support import ROOT, SocketTest, dead_url, eventually, gateway_process, mock_engine, run_main

POSIX = os.name == "posix"
KEY = "sk-secret-of-this-test"


class LoadTestProcessTest(SocketTest):
    def setUp(self) -> None:
        self.engine: MockEngine = self.enter(mock_engine("m"))

    def test_a_run_prints_a_table_and_writes_its_files(self) -> None:
        argv = ("loadtest", self.engine.url, "-n", "40", "--stream=0.5", "--html", "r.html", "--json", "r.json")
        with gateway_process({"LOADTEST_KEY": KEY}, *argv, wait=False) as process:
            self.assertEqual(process.wait(), 0, process.stderr)
            self.assertRegex(process.stdout, r"answered +40 +100 %")
            self.assertIn("key: from LOADTEST_KEY", process.stderr)
            texts = [(process.directory / name).read_text("utf-8") for name in ("r.html", "r.json")]
            for text in (*texts, process.stdout, process.stderr):
                self.assertNotIn(KEY, text)
            self.assertEqual(json.loads(texts[1])["requests"]["ok"], self.engine.stats()["requests"])

    def test_json_on_stdout_is_alone_there(self) -> None:
        status, stdout, stderr = run_main({}, "loadtest", self.engine.url, "-n", "9", "--json", "-")
        self.assertEqual((status, json.loads(stdout)["requests"]["ok"]), (0, 9))
        self.assertIn("service time", stderr)

    def test_exit_statuses_tell_what_happened(self) -> None:
        for argv, expected, text in (
            ((self.engine.url, "-n", "5", "--fail-if", "errors>0"), 0, "passed  errors>0"),
            ((self.engine.url, "-n", "5", "--fail-if", "p99>0us"), 1, "FAILED  p99>0us"),
            ((dead_url(), "-m", "m"), 1, "cannot reach"),
            ((self.engine.url, "--rate", "x"), 2, "--rate"),
            (("--rate", "5"), 2, "URL"),
        ):
            with self.subTest(argv):
                status, stdout, stderr = run_main({}, "loadtest", *argv)
                self.assertEqual(status, expected, stderr)
                self.assertIn(text, stdout + stderr)
                self.assertNotIn("Traceback", stderr)

    @unittest.skipUnless(POSIX, "signals as POSIX has them")
    def test_ctrl_c_ends_it_early_and_tells_what_was_measured(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            argv = ("loadtest", self.engine.url, "-c", "3", "-d", "10m", "--json", "r.json", "--fail-if", "errors>0")
            before = self.engine.stats()["requests"]
            with gateway_process({}, *argv, wait=False) as process:
                eventually(lambda before=before: self.engine.stats()["requests"] > before + 30)
                process.signal(number)
                self.assertEqual(process.wait(), 0, process.stderr)
                self.assertIn("ended early", process.stdout)
                found = json.loads((process.directory / "r.json").read_text("utf-8"))
                asked = found["requests"]
                self.assertTrue(found["interrupted"])
                self.assertGreater(asked["ok"], 0)
                self.assertEqual(asked["sent"], asked["ok"] + asked["abandoned"])
                self.assertEqual((asked["errors"], len(found["thresholds"])), (0, 1))
                self.assertNotIn("Traceback", process.stderr)

    @unittest.skipUnless(POSIX, "signals as POSIX has them")
    def test_ctrl_c_ends_it_while_nothing_is_answered(self) -> None:
        engine = self.enter(mock_engine("m", "hang"))
        with gateway_process({}, "loadtest", engine.url, "-c", "4", "-d", "10m", wait=False) as process:
            eventually(lambda: engine.stats()["in_flight"] == 4)
            process.signal(signal.SIGINT)
            self.assertEqual(process.wait(), 0, process.stderr)
            self.assertIn("4 requests were in flight when it ended", re.sub(r"\s+", " ", process.stdout))

    @unittest.skipUnless(POSIX, "signals as POSIX has them")
    def test_the_second_ctrl_c_ends_it_at_once(self) -> None:
        # What is replaced never ends, whatever the first one says: the loop, or the report.
        for part in ("Loop.run", "result_of"):
            engine = self.enter(mock_engine("m"))
            code = (
                "import os, signal\n"
                "from gateway import cli\n"
                "from gateway.tools.loadtest import command\n"
                "def stuck(*anything):\n"
                "    come, comes = os.pipe()\n"  # also of one that comes before it is waited for
                "    os.set_blocking(comes, False)\n"
                "    signal.set_wakeup_fd(comes)\n"
                "    print('stuck', flush=True)\n"
                "    while os.read(come, 1):\n"
                "        print('signalled', flush=True)\n"
                f"command.{part} = stuck\n"
                "cli.run()\n"
            )
            argv = ("loadtest", engine.url, "-n", "3")
            options = {"wait": False, "program": ("-c", code)}
            with self.subTest(part), gateway_process({"PYTHONPATH": ROOT}, *argv, **options) as process:
                eventually(lambda process=process: "stuck" in process.stdout)
                process.signal(signal.SIGINT)
                if part == "Loop.run":
                    eventually(lambda process=process: "signalled" in process.stdout)
                    process.signal(signal.SIGINT)
                self.assertEqual(process.wait(), 130)


if __name__ == "__main__":
    unittest.main()
