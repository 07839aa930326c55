"""What the tests of official clients share: a gateway to ask, with a key, and engines that say what is wanted."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import tempfile
import unittest
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gateway.mock.server import MockEngine
from tests.scripted import ScriptedEngine
from tests.support import RunningGateway, eventually, gateway, mock_engine

KEY = "open-sesame"
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CLOCK = {"type": "object", "properties": {"zone": {"type": "string"}}, "required": ["zone"]}
ASKS_BOTH = "call get_weather and get_time"  # a mock engine calls the tools that it reads the names of
OPENAI, ANTHROPIC = "openai", "anthropic"
LACKED = {OPENAI: "messages,responses", ANTHROPIC: "chat/completions,completions,embeddings,responses"}
"""What an engine that speaks a dialect alone does not serve."""


def missing(*packages: str) -> bool:
    """Whether one of these is not installed."""
    return any(importlib.util.find_spec(package) is None for package in packages)


def serving(
    stack: contextlib.ExitStack, urls: Mapping[str, str], dialect: str = OPENAI, **variables: object
) -> RunningGateway:
    """A gateway with a key and models of one engine each, by their names, until the stack ends."""
    models = {name: {"engines": [{"url": url, "dialect": dialect}]} for name, url in urls.items()}
    path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "engines.json"
    path.write_text(json.dumps({"models": models}), "utf-8")
    return stack.enter_context(
        gateway(ENGINES_FILE=path, API_KEYS=f"alice:{KEY}", FALLBACK="off", REQUEST_TIMEOUT="5", **variables)
    )


class ClientCase(unittest.TestCase):
    """A gateway with a model `m`, authentication on. `package` is what is tested, imported when a test begins;
    `dialect` what the engines speak."""

    package: str
    dialect = OPENAI
    models = ("m",)
    """The first is that of `engine`."""

    def setUp(self) -> None:
        self.stack = contextlib.ExitStack()
        self.addCleanup(self.stack.close)
        engines = [self.stack.enter_context(mock_engine(name, lacks=LACKED[self.dialect])) for name in self.models]
        self.engine: MockEngine = engines[0]
        self.scripted: ScriptedEngine = self.stack.enter_context(ScriptedEngine())
        self.gateway = serving(
            self.stack,
            {**{name: engine.url for name, engine in zip(self.models, engines)}, "s": self.scripted.url},
            self.dialect,
            RETRY_ATTEMPTS="1",
            BREAKER_THRESHOLD="1000",
        )
        self.sdk: Any = importlib.import_module(self.package)

    def break_streams(self) -> None:
        """From now on, the engine's streams break off after some events."""
        self.engine.control("drop_mid_stream", after=2)

    def system_sent(self) -> Any:
        """The texts of the system prompt that the engine was asked with last."""
        body = self.engine.requests[-1]["body"]
        if self.dialect == ANTHROPIC:
            return [block["text"] for block in body.get("system", ())]
        return [message["content"] for message in body["messages"] if message["role"] == "system"]

    def schema_sent(self) -> Any:
        """The schema that the engine was asked to keep to last."""
        body = self.engine.requests[-1]["body"]
        if self.dialect == ANTHROPIC:
            return body["output_config"]["format"]["schema"]
        return body["response_format"]["json_schema"]["schema"]

    def assert_left(self) -> None:
        """The engine has seen its one caller leave, and nothing is under way any more."""
        self.assertTrue(self.engine.wait_for_cancelled(1, timeout_s=5))
        eventually(lambda: self.gateway.app.pipeline.in_flight == 0)
