"""Engines' keys with gateways that run, and in the library."""

from __future__ import annotations

import io
import json
import unittest
from typing import Any
from unittest import mock

from gateway.app import Gateway, read_again
from gateway.settings import Settings
from inference import EngineSpec, InferenceFactory
from tests.access import AccessTest
from tests.support import eventually, load_settings, mock_engine, os_text
from tests.unit.test_engine_keys import UNSENDABLE


class RunningTest(AccessTest):
    """The same at the commands and in a gateway that runs."""

    def settings(self, **variables: object) -> Settings:
        return load_settings({"ENGINES_FILE": self.engines, **variables})

    def setUp(self) -> None:
        super().setUp()
        self.mock = self.engine()
        self.engines = self.file("engines.json", self.fleet("ENGINE_KEY"))

    def fleet(self, name: str) -> dict[str, Any]:
        return {"models": {"m": {"engines": [{"url": self.mock.url, "api_key_env": name}]}}}

    def test_check_and_serve_name_the_variable_and_exit_2(self) -> None:
        for command in ((), ("check",)):
            with mock.patch("gateway.serving.serve", return_value=0):  # or it would serve, and this never end
                status, out, err = self.cli(*command, ENGINES_FILE=self.engines, ENGINE_KEY="sk-\x01")
            self.assertEqual((status, out), (2, ""))
            self.assertIn("error: ENGINE_KEY: the key of engine 127.0.0.1:", err)
            self.assertNotIn("sk-", err)

    def test_a_reload_with_an_unsendable_key_changes_nothing_and_is_logged(self) -> None:
        log = io.StringIO()
        gateway = Gateway(self.settings(ENGINE_KEY="sk-good"), log).start()
        self.addCleanup(gateway.stop, 0)
        self.file("engines.json", self.fleet("NEW_KEY"))
        environ = {"ENGINES_FILE": str(self.engines), "NEW_KEY": os_text("sk-\u20ac")}
        read_again(gateway, environ, self.directory / ".env")
        line = eventually(lambda: [line for line in log.getvalue().splitlines() if "reload_failed" in line])[0]
        self.assertIn("NEW_KEY: the key of engine", json.loads(line)["faults"][0])
        self.assertNotIn("sk-", log.getvalue())
        self.assertEqual(gateway.factory.client.secrets, {"ENGINE_KEY": "sk-good"})


class LibraryTest(unittest.TestCase):
    def test_the_library_refuses_them_too(self) -> None:
        models = {"m": [EngineSpec("http://127.0.0.1:9", api_key_env="ENGINE_KEY")]}
        for kind, text in UNSENDABLE.items():
            with self.subTest(kind), self.assertRaisesRegex(ValueError, "^ENGINE_KEY: ") as caught:
                InferenceFactory(models, secrets={"ENGINE_KEY": text}, health_interval_s=0)
            self.assertNotIn("sk-", str(caught.exception))

    def test_a_reload_of_the_library_with_one_changes_nothing(self) -> None:
        models = {"m": [EngineSpec("http://127.0.0.1:9", api_key_env="ENGINE_KEY")]}
        with InferenceFactory(models, secrets={"ENGINE_KEY": "good"}, health_interval_s=0) as factory:
            with self.assertRaises(ValueError):
                factory.reload(factory.router.fleet, {"ENGINE_KEY": "bad\n\x00"})
            self.assertEqual(factory.client.secrets, {"ENGINE_KEY": "good"})

    def test_a_key_with_a_line_break_behind_it_is_sent_without(self) -> None:
        with mock_engine("m") as engine:
            models = {"m": [EngineSpec(engine.url, api_key_env="ENGINE_KEY")]}
            with InferenceFactory(models, secrets={"ENGINE_KEY": "s3cret\n"}, health_interval_s=0) as factory:
                factory.generate("hi", "m")
            self.assertEqual(engine.requests[-1]["headers"]["authorization"], "Bearer s3cret")


if __name__ == "__main__":
    unittest.main()
