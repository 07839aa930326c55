"""Which lines of `.env` are warned about, and what of them is shown: with python-dotenv, and without it."""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from gateway.announcing import WARNINGS_MAX, dotenv_warnings
from gateway.configuration import ConfigurationError
from gateway.settings import SETTINGS, Settings, load

UNKNOWN = "is neither a setting nor the key of an engine"
HIDDEN = "holds nothing that is known here"


class NamesTest(unittest.TestCase):
    """By the strict reader."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.choose_reader()

    def choose_reader(self) -> None:
        hidden = mock.patch.dict(sys.modules, {"dotenv": None, "dotenv.parser": None})
        hidden.start()
        self.addCleanup(hidden.stop)

    def load(self, text: str, **environ: str) -> Settings:
        path = self.folder / ".env"
        path.write_text(text, "utf-8")
        return load(environ, path)

    def warnings(self, text: str, **environ: str) -> list[str]:
        return list(self.load(text, **environ).dotenv_warnings)

    def test_settings_and_the_keys_of_engines_are_known(self) -> None:
        text = "".join(f"{setting.name}=\n" for setting in SETTINGS)
        self.assertEqual(self.warnings(text), [])
        engines = self.folder / "engines.json"
        engine = {"url": "http://127.0.0.1:1", "api_key_env": "MY_KEY"}
        engines.write_text(json.dumps({"models": {"m": {"engines": [engine]}}}), "utf-8")
        self.assertEqual(self.warnings("MY_KEY=x\n", ENGINES_FILE=str(engines)), [])
        expected = [f".env line 1: MY_KEYS {UNKNOWN}; did you mean MY_KEY?"]
        self.assertEqual(self.warnings("MY_KEYS=x\n", ENGINES_FILE=str(engines)), expected)
        self.assertEqual(self.warnings("MY_KEY=x\n"), [f".env line 1: MY_KEY {UNKNOWN}"])

    def test_the_nearest_known_name_is_offered(self) -> None:
        for name, near in (
            ("PROT", "PORT"),
            ("port", "PORT"),
            ("BACKEND_URLS", "BACKEND_URL"),
            ("APIKEYS", "API_KEYS"),
            ("ENGINE_FILE", "ENGINES_FILE"),
            ("LOGLEVEL", "LOG_LEVEL"),
        ):
            self.assertEqual(self.warnings(f"\n{name}=1\n"), [f".env line 2: {name} {UNKNOWN}; did you mean {near}?"])
        for name in ("OPENWEATHER", "NVIDIA_API_KEY", "XAI_API_KEY"):  # a provider's key is none for clients
            self.assertEqual(self.warnings(f"{name}=1"), [f".env line 1: {name} {UNKNOWN}"])

    def test_a_fault_does_not_hide_the_name_that_was_mistyped(self) -> None:
        with self.assertRaises(ConfigurationError) as caught:
            self.load("HOST=0.0.0.0\nAPI_KEY=hunter2\n")
        self.assertEqual([fault.partition(":")[0] for fault in caught.exception.faults], ["HOST"])
        expected = (f".env line 2: API_KEY {UNKNOWN}; did you mean API_KEYS?",)
        self.assertEqual(caught.exception.warnings, expected)

    def test_without_engines_nobody_knows_which_names_are_keys(self) -> None:
        with self.assertRaises(ConfigurationError) as caught:
            self.load("MY_KEY=hunter2\n", ENGINES_FILE=str(self.folder / "gone.json"))
        self.assertEqual(caught.exception.warnings, ())

    def test_each_line_with_its_number(self) -> None:
        text = "# mine\nPORT=1\n\nFIRST_ONE=a\nWORKERS=2\nexport SECOND_ONE='b'\nFIRST_ONE=c\n"
        lines = [warning.split(" is ")[0] for warning in self.warnings(text)]
        self.assertEqual(lines, [".env line 4: FIRST_ONE", ".env line 6: SECOND_ONE", ".env line 7: FIRST_ONE"])

    def test_what_may_be_a_secret_is_not_shown(self) -> None:
        for line in (
            "c2VjcmV0LXBhc3RlZA==",  # base64
            "QUtJQUlPU0ZPRE5ON0VYQU1QTEU=",
            "QUtJQUlPU0ZPRE5ON0VYQU1QTEU = ",
            "c2VjcmV0LXBhc3RlZA==;",
            "c2VjcmV0LXBhc3RlZA==,",
            "sk-proj-hunter2=x",
            "gsk.hunter2=x",
            "hunter2" * 10 + "=x",
            "hunter2=",
            "hunter2=''",
        ):
            self.assertEqual(self.warnings(line), [f".env line 1: {HIDDEN}"], line)

    def test_a_value_is_never_shown(self) -> None:
        settings = self.load("SOME_TOKEN=hunter2\nAPI_KEYS=me:hunter3\n")
        self.assertNotIn("hunter", "".join(settings.dotenv_warnings) + repr(settings))

    def test_no_more_warnings_than_can_be_read(self) -> None:
        settings = self.load("".join(f"X{number}Q=1\n" for number in range(WARNINGS_MAX + 5)))
        warnings = dotenv_warnings(settings.dotenv_warnings)
        self.assertEqual(len(warnings), WARNINGS_MAX + 1)
        self.assertEqual(warnings[-1], ".env: and 5 more such lines")

    def test_the_path_that_was_read_is_kept(self) -> None:
        self.assertEqual(self.load("").dotenv_path, self.folder / ".env")
        self.assertIsNone(load({}, self.folder / "none").dotenv_path)
        self.assertIsNone(load({}, None).dotenv_path)


@unittest.skipUnless(importlib.util.find_spec("dotenv"), "python-dotenv is not installed")
class PythonDotenvNamesTest(NamesTest):
    """By python-dotenv, which takes more for a name."""

    def choose_reader(self) -> None:
        pass

    def test_a_line_that_is_a_name_alone_is_not_shown(self) -> None:
        text = "hunter2\nPORT\nsk-hunter2\n'quoted hunter2'=x\nMANY='a\nb'\nLAST_ONE=1\n"
        expected = [
            f".env line 1: {HIDDEN}",
            f".env line 3: {HIDDEN}",
            f".env line 4: {HIDDEN}",
            f".env line 5: MANY {UNKNOWN}",
            f".env line 7: LAST_ONE {UNKNOWN}",
        ]
        self.assertEqual(self.warnings(text), expected)


if __name__ == "__main__":
    unittest.main()
