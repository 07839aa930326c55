"""Help and messages name the command as it was called."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from gateway import cli
from gateway.program import program
from tests.support import ROOT, TIMEOUT_S, process_environment

# What pip makes of [project.scripts].
SCRIPT = "import sys\nfrom gateway.cli import run\nif __name__ == '__main__':\n    sys.exit(run())\n"
PYTHON = Path(sys.executable).name.removesuffix(".exe")
COMMANDS = ("", "mock", "keys", "keys create", "usage", "replay", "loadtest", "check", "serve")


class NameTest(unittest.TestCase):
    def named(self, called: str, python: str = "bin/python3") -> str:
        with mock.patch.object(sys, "argv", [called, "check"]), mock.patch.object(sys, "executable", python):
            return program()

    def test_a_file_is_named_with_the_python_that_runs_it(self) -> None:
        self.assertEqual(self.named("main.py"), "python3 main.py")
        self.assertEqual(self.named("../main.py", "bin/pypy3"), "pypy3 ../main.py")
        self.assertEqual(self.named("my files/main.py"), 'python3 "my files/main.py"')
        self.assertEqual(self.named("main.py", "bin/python.exe"), "python main.py")
        self.assertEqual(self.named("main.py", ""), "python main.py")

    def test_a_package_is_named_with_m(self) -> None:
        self.assertEqual(self.named("somewhere/gateway/__main__.py"), "python3 -m gateway")

    def test_an_installed_command_is_named_alone(self) -> None:
        self.assertEqual(self.named("bin/inference-gateway"), "inference-gateway")
        self.assertEqual(self.named("bin/inference-gateway.exe"), "inference-gateway")


class HelpTest(unittest.TestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)

    def run_command(self, called: list[str], *arguments: str, cwd: Path = ROOT, **variables: str) -> tuple[int, str]:
        """Exit status, and what it printed to stdout and stderr."""
        ran = subprocess.run(
            [sys.executable, *called, *arguments],
            cwd=cwd,
            env=process_environment({"COLUMNS": "200", "STATE_DB": self.directory / "gateway.db", **variables}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            timeout=2 * TIMEOUT_S,
        )
        return ran.returncode, ran.stdout

    def test_every_command_has_it_in_its_help(self) -> None:
        for command in COMMANDS:
            arguments = [*command.split(), "--help"]
            with self.subTest(command=command), contextlib.ExitStack() as stack:
                stack.enter_context(mock.patch.object(sys, "argv", ["bin/inference-gateway", *arguments]))
                stack.enter_context(mock.patch.dict(os.environ, {"COLUMNS": "200"}, clear=True))
                stack.enter_context(mock.patch("gateway.cli.DOTENV", self.directory / ".env"))
                stdout = stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
                try:
                    status = cli.main()
                except SystemExit as error:
                    status = int(error.code or 0)
                self.assertEqual(status, 0)
                own = "" if command in ("serve", "check") else f" {command}".rstrip()
                self.assertTrue(stdout.getvalue().startswith(f"usage: inference-gateway{own} ["), stdout.getvalue())

    def assert_named(self, called: list[str], name: str, **options: str) -> None:
        status, printed = self.run_command(called, "keys", "create", "--help", **options)
        self.assertEqual(status, 0, printed)
        self.assertTrue(printed.startswith(f"usage: {name} keys create ["), printed)
        status, printed = self.run_command(called, "frobnicate", **options)
        self.assertEqual((status, printed.splitlines()[-1].partition(": ")[0]), (2, name))

    def test_a_checkout(self) -> None:
        self.assert_named(["main.py"], f"{PYTHON} main.py")

    def test_the_package(self) -> None:
        self.assert_named(["-m", "gateway"], f"{PYTHON} -m gateway")

    def test_the_installed_command(self) -> None:
        (self.directory / "inference-gateway").write_text(SCRIPT)
        self.assert_named([str(self.directory / "inference-gateway")], "inference-gateway", PYTHONPATH=str(ROOT))

    def test_the_mock_engine_alone(self) -> None:
        status, printed = self.run_command(["-m", "gateway.mock"], "--help")
        self.assertEqual((status, printed.partition(" [")[0]), (0, "usage: python -m gateway.mock"))

    def test_a_message_says_what_to_run(self) -> None:
        (self.directory / "empty.db").touch()
        variables = {"HOST": "0.0.0.0", "PORT": "0", "STATE_DB": str(self.directory / "empty.db")}
        status, printed = self.run_command(["main.py"], **variables)
        self.assertEqual(status, 2)
        self.assertIn(f"`{PYTHON} main.py keys create", printed)


if __name__ == "__main__":
    unittest.main()
