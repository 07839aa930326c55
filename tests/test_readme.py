"""The README is true: its examples get what it shows, its names exist, its links lead somewhere.

The examples run here against gateways and mock engines in this process; tests/smoke.sh runs the same ones against
real processes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Optional

from gateway.fleet import ENGINE_KEYS, FLEET_KEYS, MODEL_KEYS, load_engines_file
from gateway.mock.behaviours import MEANINGS
from gateway.routing.specs import STRATEGIES
from gateway.settings import SETTINGS
from tests.readme_examples import README, Example, examples, moved, shown_matches
from tests.support import ROOT, TIMEOUT_S, gateway, locale_wanted, mock_engine

TEXT = README.read_text("utf-8")
PORTS_BY_MODEL = {"70b": 8000, "13b": 8010, "7b": 8020}
# Set by whoever runs a gateway, but no setting of it.
OTHER_VARIABLES = {"GROQ_API_KEY"}


class TextTest(unittest.TestCase):
    def test_links_lead_somewhere(self) -> None:
        for path in (README, *sorted((ROOT / "docs").glob("*.md"))):
            for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text("utf-8")):
                if "://" not in target:
                    self.assertTrue((path.parent / target).exists(), f"{path.name}: {target}")

    def test_every_variable_it_names_is_a_setting(self) -> None:
        named = set(re.findall(r"\b([A-Z]+(?:_[A-Z]+)+)\b", TEXT.partition("<!-- settings -->")[0]))
        named |= set(re.findall(r"^(?:export )?([A-Z]+)=", TEXT, re.MULTILINE))
        self.assertIn("REQUEST_TIMEOUT", named)
        self.assertEqual(named - {setting.name for setting in SETTINGS} - OTHER_VARIABLES, set())

    def test_every_curl_command_is_an_example_that_is_run(self) -> None:
        blocks = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
        run = [example.code for example in examples(TEXT)]
        self.assertEqual([block for block in blocks if "curl" in block and block not in run], [])

    def test_what_users_meet_first_has_an_example(self) -> None:
        statuses = {example.status for example in examples(TEXT)}
        self.assertLessEqual({200, 400, 401, 404, 504}, statuses)
        code = "".join(example.code for example in examples(TEXT))
        for part in ('"stream": true', "/metrics", "./mock.sh", "from openai", "from inference"):
            self.assertIn(part, code)

    def test_the_two_commands_stand_in_blocks_of_their_own(self) -> None:
        for command in ("python main.py", "python -m unittest"):
            self.assertIn(f"```sh\n{command}\n```\n", TEXT)

    def test_the_engines_file_is_one(self) -> None:
        shown = re.search(r"<!-- engines file -->\n```json\n(.*?)```", TEXT, re.DOTALL)
        assert shown is not None
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "engines.json")
            path.write_text(shown[1], "utf-8")
            fleet = load_engines_file(path)
        self.assertEqual([model.name for model in fleet.models], ["70b", "13b", "local"])

    def test_tables_list_every_key_strategy_and_behaviour(self) -> None:
        keys = {(row.key, "file") for row in FLEET_KEYS} | {(row.key, "model") for row in MODEL_KEYS}
        keys |= {(row.key, "engine") for row in ENGINE_KEYS}
        listed = set(re.findall(r"^\| `(\w+)` \| (file|model|engine) \|", TEXT, re.MULTILINE))
        self.assertEqual(listed, keys - {("models", "file"), ("url", "engine")})
        for name in STRATEGIES:
            self.assertRegex(TEXT, rf"(?m)^\| `{name}` \| ")
        sentence = TEXT.partition("The mock engine's behaviours:")[2].partition(";")[0]
        self.assertEqual(re.findall(r"`(\w+)`", sentence), list(MEANINGS))


class Stage:
    """What the `start` examples start, in this process; `ports` maps the README's ports to the real ones."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self.ports: dict[int, int] = {}

    def start(self, code: str) -> None:
        """Start what an example starts. Raises ValueError for a command that is not known here."""
        variables: dict[str, str] = {}
        for line in code.splitlines():
            words = shlex.split(line)
            if words[0] == "export":
                words = words[1:]
            while words and re.match(r"[A-Z_]+=", words[0]):
                name, _, value = words.pop(0).partition("=")
                variables[name] = value
            if words:
                self._start(words, variables)

    def _start(self, words: list[str], variables: dict[str, str]) -> None:
        if words == ["./mock.sh"]:
            for model, first in PORTS_BY_MODEL.items():
                for port in range(first, first + 3):
                    self._engine(model, "ok", port)
        elif words[:3] == ["python", "main.py", "mock"]:
            options = dict(zip(words[3::2], words[4::2]))
            self._engine(options["--model"], options["--behaviour"], int(options["--port"]))
        elif words == ["python", "main.py"]:
            port = int(variables.pop("PORT", "8080"))
            if "REQUEST_TIMEOUT" in variables:
                variables["REQUEST_TIMEOUT"] = "0.3"  # the same answer, sooner
            if "ENGINES" in variables:
                variables["ENGINES"] = moved(variables["ENGINES"], self.ports.__getitem__)
            self.ports[port] = self._stack.enter_context(gateway(variables)).port
        else:
            raise ValueError(f"an example starts {words}")

    def _engine(self, model: str, behaviour: str, port: int) -> None:
        self.ports[port] = self._stack.enter_context(mock_engine(model, behaviour)).port


@unittest.skipUnless(shutil.which("curl"), "curl is not installed")
@unittest.skipUnless(os.name == "posix" and shutil.which("sh"), "the examples are for a POSIX shell")
class ExamplesTest(unittest.TestCase):
    def test_every_example_gets_what_the_readme_shows(self) -> None:
        with contextlib.ExitStack() as stack:
            self.stage = Stage(stack)
            self.home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            # The status goes behind the answer; the commands stay as they are.
            (self.home / ".curlrc").write_text('silent\nmax-time = 20\nwrite-out = "\\n%{http_code}"\n', "utf-8")
            for example in examples(TEXT):
                with self.subTest(line=example.line):
                    self.check(example)

    def check(self, example: Example) -> None:
        if example.kind == "start":
            self.stage.start(example.code)
            return
        code = moved(example.code, self._port)
        if example.kind == "python":
            if "openai" in code and importlib.util.find_spec("openai") is None:
                self.skipTest("the openai package is not installed")
            output, status = self._run([sys.executable, "-c", code]), None
        else:
            printed = self._run(["sh", "-c", code])
            output, _, last = printed.rpartition("\n")
            status = int(last)
        self.assertEqual(status, example.status, output)
        if example.answer is not None:
            self.assertTrue(shown_matches(example.answer, output), f"shown:\n{example.answer}\nreal:\n{output}")

    def _port(self, port: int) -> int:
        return self.stage.ports[port]

    def _run(self, command: list[str], status: Optional[int] = 0) -> str:
        environment = {
            **os.environ,
            **locale_wanted(),
            "CURL_HOME": str(self.home),
            "NO_PROXY": "*",
            "PYTHONPATH": str(ROOT),
        }
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        run = subprocess.run(command, env=environment, cwd=self.home, capture_output=True, timeout=3 * TIMEOUT_S)
        self.assertEqual(run.returncode, status, run.stderr.decode())
        return run.stdout.decode()


class ComparingTest(unittest.TestCase):
    """That the comparison above can fail."""

    def test_ids_and_numbers_may_differ(self) -> None:
        shown = '{"id":"c51f5a4f-560c-4ce9-bc47-c155fcf852a5","n":12}\n'
        self.assertTrue(shown_matches(shown, '{"id":"bab70884-0baa-4714-a928-518fa16dca3c","n":7.5}'))

    def test_words_may_not(self) -> None:
        self.assertFalse(shown_matches('{"error":"unauthorized"}\n', '{"error":"forbidden"}\n'))
        self.assertFalse(shown_matches("one\n", "one\ntwo\n"))

    def test_dots_stand_for_any_lines(self) -> None:
        self.assertTrue(shown_matches("a\n...\nd\n", "a\nb\nc\nd\n"))
        self.assertTrue(shown_matches("a\n...\nd\n", "a\nd\n"))
        self.assertFalse(shown_matches("a\n...\nd\n", "a\nb\n"))

    def test_a_marker_without_a_block_is_refused(self) -> None:
        with self.assertRaises(ValueError):
            examples("<!-- smoke: expect 200 -->\n\n```sh\ncurl x\n```\n")
        with self.assertRaises(ValueError):
            examples("<!-- smoke: expect -->\n```sh\ncurl x\n```\n")


if __name__ == "__main__":
    unittest.main()
