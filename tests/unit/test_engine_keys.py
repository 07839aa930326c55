"""Engines' keys, and what else settings put into headers: judged at start, `check` and reload, and never shown."""

from __future__ import annotations

import json
import tempfile
import unittest
from pathlib import Path
from typing import Any, Optional

from gateway.configuration import ConfigurationError
from gateway.settings import load, reload
from gateway.settingvalues import jwt_secret

UNSENDABLE = {
    "a line break": "sk-top\r\nX-Evil: 1",
    "a lone line feed": "sk-top\nsecret",
    "NUL": "sk-top\x00secret",
    "a tab": "sk-top\tsecret",
    "DEL": "sk-top\x7fsecret",
    "ISO 8859-1": "sk-top-\xe9",
    "beyond it": "sk-top-\u20ac",
    "bytes that are no text": "sk-top-\udce9",
}
BLANK = {"empty": "", "blank": "  ", "line breaks alone": "\r\n"}


class SettingsTest(unittest.TestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.folder = Path(directory.name)
        self.write(a=["ENGINE_KEY"], b=["ENGINE_KEY", None, "OTHER_KEY"])

    def write(self, **keys: list[Optional[str]]) -> Path:
        models: dict[str, Any] = {}
        for model, names in keys.items():
            urls = [{"url": f"http://{model}{number}:1"} for number in range(len(names))]
            models[model] = {"engines": [{**u, **({"api_key_env": n} if n else {})} for u, n in zip(urls, names)]}
        path = self.folder / "engines.json"
        path.write_text(json.dumps({"models": models}), "utf-8")
        return path

    def environ(self, **variables: str) -> dict[str, str]:
        return {"ENGINES_FILE": str(self.folder / "engines.json"), **variables}

    def faults(self, environ: dict[str, str], dotenv: Optional[Path] = None) -> list[str]:
        with self.assertRaises(ConfigurationError) as caught:
            load(environ, dotenv)
        text = "\n".join(caught.exception.faults)
        for part in ("sk-", "top", "secret", "Evil"):
            self.assertNotIn(part, text)
        return list(caught.exception.faults)

    def test_a_key_that_cannot_be_sent_stops_the_start_naming_variable_and_engines(self) -> None:
        for kind, text in UNSENDABLE.items():
            with self.subTest(kind):
                faults = self.faults(self.environ(ENGINE_KEY=text))
                self.assertEqual(len(faults), 1, faults)
                self.assertTrue(
                    faults[0].startswith("ENGINE_KEY: the key of engine a0:1 of a, b0:1 of b must "), faults
                )

    def test_every_faulty_key_is_named_at_once_with_the_other_faults(self) -> None:
        faults = self.faults(self.environ(ENGINE_KEY="sk\n\n1", OTHER_KEY="\xe9", PORT="x"))
        self.assertEqual([fault.partition(":")[0] for fault in faults], ["PORT", "ENGINE_KEY", "OTHER_KEY"])

    def test_a_key_that_is_set_to_nothing_is_a_fault_one_that_is_not_set_is_none(self) -> None:
        for kind, text in BLANK.items():
            with self.subTest(kind):
                faults = self.faults(self.environ(OTHER_KEY=text))
                self.assertEqual(len(faults), 1)
                self.assertTrue(faults[0].startswith("OTHER_KEY: the key of engine b2:1 of b is empty"), faults)
        self.assertEqual(load(self.environ(), None).engine_keys, {})

    def test_a_key_that_dotenv_gives_makes_up_for_an_empty_one_of_the_environment(self) -> None:
        dotenv = self.folder / ".env"
        dotenv.write_text("OTHER_KEY=sk-o\n", "utf-8")
        self.assertEqual(load(self.environ(OTHER_KEY=""), dotenv).engine_keys, {"OTHER_KEY": "sk-o"})
        dotenv.write_text("OTHER_KEY=\n", "utf-8")
        self.assertEqual(len(self.faults(self.environ(), dotenv)), 1)

    def test_keys_are_taken_without_the_blanks_around_them_and_with_those_within(self) -> None:
        settings = load(self.environ(ENGINE_KEY=" sk-1 2 \r\n", OTHER_KEY="!~"), None)
        self.assertEqual(settings.engine_keys, {"ENGINE_KEY": "sk-1 2", "OTHER_KEY": "!~"})

    def test_many_engines_of_one_key_are_named_shortly(self) -> None:
        self.write(a=["ENGINE_KEY"] * 50)
        fault = self.faults(self.environ(ENGINE_KEY="\x01"))[0]
        self.assertIn("a2:1 of a and 47 more must", fault)
        self.assertLess(len(fault), 200)

    def test_a_reload_judges_keys_as_the_start_does(self) -> None:
        before = load(self.environ(ENGINE_KEY="sk-good"), None)
        for kind, text in {**UNSENDABLE, **BLANK}.items():
            with self.subTest(kind), self.assertRaises(ConfigurationError) as caught:
                reload(before, self.environ(ENGINE_KEY=text), None)
            self.assertTrue(caught.exception.faults[0].startswith("ENGINE_KEY: the key of engine a0:1 of a, b0:1 of b"))
            self.assertNotIn("sk-", str(caught.exception.faults))

    def test_origins_that_cannot_be_sent_are_refused(self) -> None:
        for text in ("https://a.example\r\nX-Evil: 1", "https://a\x00", "https://\xe9.example", "https://a\tb", "\xe9"):
            with self.subTest(text=text):
                faults = load_faults({"CORS_ORIGINS": text})
                self.assertEqual([fault.partition(":")[0] for fault in faults], ["CORS_ORIGINS"])

    def test_names_that_go_into_headers_are_refused(self) -> None:
        for models in (
            {"a\nb": {"engines": ["http://h"]}},
            {"\xe9": {"engines": ["http://h"]}},
            {"a": {"engines": [{"url": "http://h", "id": "x\r\ny"}]}},
            {"a": {"engines": ["http://h"], "aliases": ["b\x00"]}},
            {"a": {"engines": ["http://h/\xe9"]}},
            {"a": {"engines": [{"url": "http://h", "health_path": "/x\r\ny"}]}},
        ):
            with self.subTest(models=models):
                path = self.folder / "named.json"
                path.write_text(json.dumps({"models": models}), "utf-8")
                self.assertTrue(load_faults({"ENGINES_FILE": str(path)}))

    def test_a_secret_of_tokens_that_is_no_text_is_taken_by_its_bytes_and_never_shown(self) -> None:
        self.assertEqual(jwt_secret("\udce9" * 32), b"\xe9" * 32)
        with self.assertRaises(ValueError) as caught:
            jwt_secret("\ud800" * 40)
        self.assertNotIn("d800", str(caught.exception))


def load_faults(environ: dict[str, str]) -> tuple[str, ...]:
    try:
        load(environ, None)
    except ConfigurationError as error:
        return error.faults
    return ()


if __name__ == "__main__":
    unittest.main()
