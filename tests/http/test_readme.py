"""README and docs are true: their examples get what they show, their names exist, their links lead somewhere.

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

from gateway.fleet import CONSENSUS_KEYS, ENGINE_KEYS, FLEET_KEYS, MODEL_KEYS, load_engines_file
from gateway.fleetdiscover import SOURCE_KEYS
from gateway.mock.behaviours import MEANINGS
from gateway.routing.providers import PROVIDERS
from gateway.routing.specs import STRATEGIES
from gateway.settings import SETTINGS, readme_table
from tests.readme_examples import (
    CURLRC,
    README,
    TEXTS,
    Example,
    examples,
    moved,
    shown_matches,
    unmarked,
    without_statuses,
)
from tests.support import ROOT, gateway, locale_wanted, mock_engine

TEXT = README.read_text("utf-8")
CONFIGURATION = (ROOT / "docs" / "CONFIGURATION.md").read_text("utf-8")
VERIFICATION = (ROOT / "docs" / "VERIFICATION.md").read_text("utf-8")
TRY = (ROOT / "docs" / "TRY.md").read_text("utf-8")
EXAMPLES = {path: found for path in TEXTS if (found := examples(path.read_text("utf-8")))}
PORTS_BY_MODEL = {"70b": 8000, "13b": 8010, "7b": 8020}
# Set by whoever runs a gateway, its tests or its bench, but no setting of it.
OTHER_VARIABLES = {
    "GATEWAY_API_KEY",
    *(preset.key_env for preset in PROVIDERS.values() if preset.key_env),
    "BENCH_SGLANG_PYTHON",
    "TIKTOKEN_CACHE_DIR",
    "TESTS_PROCESSES",
    "TESTS_AGAIN",
    "AGREEING_REQUESTS",
    "OPENAI_JS",
    "ANTHROPIC_JS",
    "DEPLOY_JS",
}
OTHER_VARIABLES |= {"NO_COLOR", "OPENAI_BASE_URL", "OPENAI_API_BASE_URL", "OLLAMA_HOST", "CODEX_HOME"}  # of others
OTHER_VARIABLES |= {"LOADTEST_KEY"}  # of the load test
OTHER_VARIABLES |= {"CONSUL_HTTP_TOKEN"}  # of Consul, and of whoever asks it
OTHER_VARIABLES |= {"ANTHROPIC_BASE_URL", "ENABLE_PERSISTENT_CONFIG", "LITELLM_LOCAL_MODEL_COST_MAP"}


class TextTest(unittest.TestCase):
    def test_links_lead_somewhere(self) -> None:
        for path in (*TEXTS, ROOT / "CHANGELOG.md"):
            for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", path.read_text("utf-8")):
                if "://" not in target:
                    to = path.parent / target if target else path
                    self.assertTrue(to.exists(), f"{path.name}: {target}")
                    if anchor:
                        self.assertIn(anchor, self._anchors(to), f"{path.name}: {target}")

    def _anchors(self, path: Path) -> list[str]:
        titles = re.findall(r"(?m)^#+ (.*)", path.read_text("utf-8"))
        return [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]

    def test_every_variable_it_names_is_a_setting(self) -> None:
        known = {setting.name for setting in SETTINGS} | OTHER_VARIABLES
        for path in TEXTS:
            text = path.read_text("utf-8")
            with self.subTest(path.name):
                named = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)(?:=[^`]*)?`", text))
                named |= set(re.findall(r"^(?:export )?([A-Z][A-Z_]*)=", text, re.MULTILINE))
                # ARCHITECTURE names what is in the code as well.
                self.assertEqual(named - known if path.name != "ARCHITECTURE.md" else set(), set())
        self.assertIn("`REQUEST_TIMEOUT`", TEXT)

    def test_every_block_of_commands_is_run_or_says_why_not(self) -> None:
        for path in TEXTS:
            with self.subTest(path.name):
                self.assertEqual(unmarked(path.read_text("utf-8")), [])

    def test_what_users_meet_first_has_an_example(self) -> None:
        statuses = {status for example in EXAMPLES[README] for status in example.statuses}
        self.assertLessEqual({200, 400, 401, 404, 429, 504}, statuses)
        code = "".join(example.code for example in EXAMPLES[README])
        for part in ('"stream": true', "/metrics"):
            self.assertIn(part, code)
        code = "".join(example.code for example in examples(TRY))
        for part in ("./mock.sh", "from openai", "from inference"):
            self.assertIn(part, code)

    def test_examples_can_follow_each_other_in_one_terminal(self) -> None:
        for path, found in EXAMPLES.items():
            with self.subTest(path.name):
                code = [line for example in found if example.kind != "file" for line in example.code.splitlines()]
                self.assertEqual([line for line in code if re.match(r"\s*(export|cd|exit|exec)\b", line)], [])
                self.assertEqual(found[-1].kind, "end")

    def test_what_was_started_can_be_ended_in_a_script_too(self) -> None:
        for path, found in EXAMPLES.items():
            with self.subTest(path.name):
                started = sum(len(re.findall("(?m) &$", example.code)) for example in found if example.kind == "start")
                named = [re.findall(r"(?m)^(\w+)=\$!$", example.code) for example in found if example.kind == "start"]
                ended = [
                    re.match(r"kill((?: \$\w+)+); wait", example.code) for example in found if example.kind == "end"
                ]
                names = [name for one in ended for name in (one[1].split() if one is not None else ())]
                self.assertEqual(sorted(names), sorted(f"${name}" for names in named for name in names))
                self.assertEqual(len(names), started)  # a number of a job is none without job control

    def test_the_two_commands_stand_in_blocks_of_their_own(self) -> None:
        for command in ("python main.py", "python -m unittest"):
            self.assertIn(f"```sh\n{command}\n```\n", TEXT)

    def test_figures_are_on_the_first_screen(self) -> None:
        performance = (ROOT / "docs" / "PERFORMANCE.md").read_text("utf-8").splitlines()
        screen = TEXT.splitlines()[:40]
        # In the same order there: ours, SGLang's, HAProxy's, Portkey's, LiteLLM's.
        for ours, theirs in (
            ("requests/s, 32 connections", "requests/s, 32 connections"),
            ("CPU per request, µs", "32 kept connections"),
        ):
            (shown,) = (line for line in screen if line.startswith(f"| {ours} |"))
            (measured, *_) = (line for line in performance if line.startswith(f"| {theirs} |"))
            figures = shown.split("|")[2:7]
            self.assertTrue(all(figure.strip().replace(" ", "").isdigit() for figure in figures), shown)
            self.assertEqual(figures, measured.split("|")[2:7])

    def test_settings_shown_first_are_what_the_table_says(self) -> None:
        shown = TEXT.partition("<!-- some settings -->\n")[2].partition("<!-- /some settings -->")[0].splitlines()
        self.assertGreater(len(shown), 5)
        self.assertEqual([row for row in shown if row not in readme_table().splitlines()], [])

    def test_the_engines_file_is_one(self) -> None:
        shown = re.search(r"<!-- engines file -->\n```json\n(.*?)```", CONFIGURATION, re.DOTALL)
        assert shown is not None
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "engines.json")
            path.write_text(shown[1], "utf-8")
            fleet = load_engines_file(path)
        self.assertEqual([model.name for model in fleet.models], ["70b", "13b", "local"])

    def test_the_discovered_engines_shown_and_the_keys_told_are_those_there_are(self) -> None:
        section = CONFIGURATION.partition("### Engines that are discovered")[2].partition("\n### ")[0]
        shown = re.search(r"```json\n(.*?)```", section, re.DOTALL)
        assert shown is not None
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "engines.json")
            path.write_text(shown[1], "utf-8")
            fleet = load_engines_file(path)
        self.assertEqual([model.discover.source.kind for model in fleet.models if model.discover], list(SOURCE_KEYS))
        listed = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
        self.assertEqual(listed, [*SOURCE_KEYS, "interval", "template"])

    def test_tables_list_every_key_strategy_and_behaviour(self) -> None:
        keys = {(row.key, "file") for row in FLEET_KEYS} | {(row.key, "model") for row in MODEL_KEYS}
        keys |= {(row.key, "engine") for row in ENGINE_KEYS}
        listed = set(re.findall(r"^\| `(\w+)` \| (file|model|engine) \|", CONFIGURATION, re.MULTILINE))
        others = {(key, "model") for key in ("consensus", "discover", "models", "split", "chain")}
        self.assertEqual(listed, keys - {("models", "file"), ("url", "engine")} | others)
        consensus = re.findall(
            r"^\| `(\w+)` \| (?!yours)", VERIFICATION.partition("key of `consensus`")[2], re.MULTILINE
        )
        self.assertEqual(consensus[: len(CONSENSUS_KEYS)], [row.key for row in CONSENSUS_KEYS])
        for name in STRATEGIES:
            self.assertRegex(CONFIGURATION, rf"(?m)^\| `{name}` \| ")
        sentence = TRY.partition("The mock engine's behaviours:")[2].partition(";")[0]
        self.assertEqual(re.findall(r"`(\w+)`", sentence), list(MEANINGS))


class Stage:
    """What the `start` examples start, in this process; `ports` maps the README's ports to the real ones."""

    def __init__(self, stack: contextlib.ExitStack, home: Path) -> None:
        self._stack = stack
        self._home = home  # where the examples' files are
        self.ports: dict[int, int] = {}

    def start(self, code: str) -> None:
        """Start what an example starts. Raises ValueError for a command that is not known here."""
        for line in code.replace("\\\n", " ").splitlines():
            variables: dict[str, str] = {}
            if line.endswith("=$!"):
                continue
            words = shlex.split(line.strip().removesuffix(" &"))
            while words and re.match(r"[A-Z_]+=", words[0]):
                name, _, value = words.pop(0).partition("=")
                variables[name] = value
            self._start(words, variables)

    def _start(self, words: list[str], variables: dict[str, str]) -> None:
        if words == ["./mock.sh"]:
            for model, first in PORTS_BY_MODEL.items():
                for port in range(first, first + 3):
                    self._engine(model, "ok", port)
        elif words[:3] == ["python", "main.py", "mock"]:
            options = {name[2:]: value for name, value in zip(words[3::2], words[4::2])}
            self._engine(options.pop("model"), options.pop("behaviour", "ok"), int(options.pop("port")), **options)
        elif words == ["python", "main.py"]:
            port = int(variables.pop("PORT", "8080"))
            if "REQUEST_TIMEOUT" in variables:
                variables["REQUEST_TIMEOUT"] = "0.3"  # the same answer, sooner
            if "ENGINES" in variables:
                variables["ENGINES"] = moved(variables["ENGINES"], lambda port: self.ports.get(port, port))
            if "ENGINES_FILE" in variables:
                variables["ENGINES_FILE"] = str(self._home / variables["ENGINES_FILE"])
            self.ports[port] = self._stack.enter_context(gateway(variables)).port
        else:
            raise ValueError(f"an example starts {words}")

    def _engine(self, model: str, behaviour: str, port: int, **options: str) -> None:
        self.ports[port] = self._stack.enter_context(mock_engine(model, behaviour, **options)).port


@unittest.skipUnless(shutil.which("curl"), "curl is not installed")
@unittest.skipUnless(os.name == "posix" and shutil.which("sh"), "the examples are for a POSIX shell")
class ExamplesTest(unittest.TestCase):
    def test_every_example_gets_what_the_text_shows(self) -> None:
        for path, found in EXAMPLES.items():
            with contextlib.ExitStack() as stack:
                self.home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                self.stage = Stage(stack, self.home)
                (self.home / ".curlrc").write_text(f"silent\nmax-time = 90\n{CURLRC}", "utf-8")
                for name in ("main.py", "inference.py", "gateway"):
                    (self.home / name).symlink_to(ROOT / name)
                python = self.home / "bin" / "python"
                python.parent.mkdir()
                python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n', "utf-8")
                python.chmod(0o755)
                for example in found:
                    with self.subTest(path.name, line=example.line):
                        self.check(example)

    def check(self, example: Example) -> None:
        if example.kind in ("start", "until"):
            self.stage.start(example.code)
        elif example.kind == "file":
            (self.home / str(example.name)).write_text(moved(example.code, self._port), "utf-8")
        elif example.kind in ("run", "expect"):
            if "openai" in example.code and importlib.util.find_spec("openai") is None:
                self.skipTest("the openai package is not installed")
            output, statuses = without_statuses(self._run(moved(example.code, self._port)))
            self.assertEqual(statuses, example.statuses, output)
            if example.answer is not None:
                self.assertTrue(shown_matches(example.answer, output), f"shown:\n{example.answer}\nreal:\n{output}")

    def _port(self, port: int) -> int:
        return self.stage.ports[port]

    def _run(self, code: str) -> str:
        environment = {**os.environ, **locale_wanted(), "CURL_HOME": str(self.home), "NO_PROXY": "*"}
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        environment["PATH"] = f"{self.home / 'bin'}{os.pathsep}{environment['PATH']}"
        run = subprocess.run(["sh", "-c", code], env=environment, cwd=self.home, capture_output=True, timeout=120)
        self.assertEqual(run.returncode, 0, run.stderr.decode())
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

    def test_a_block_without_a_marker_is_found(self) -> None:
        self.assertEqual(unmarked("text\n\n```sh\na\n```\n"), ["a\n"])
        self.assertEqual(unmarked("<!-- not run: why -->\n```sh\na\n```\n"), [])

    def test_each_answer_has_its_status(self) -> None:
        printed = "one\n\x1f200\x1f\ntwo\n\n\x1f404\x1f\n"
        self.assertEqual(without_statuses(printed), ("one\ntwo\n\n", (200, 404)))


if __name__ == "__main__":
    unittest.main()
