"""What the tests of official clients share: a gateway to ask, with a key, and engines that say what is wanted."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import unittest
from typing import Any

from gateway.mock.server import MockEngine
from tests.scripted import ScriptedEngine
from tests.support import RunningGateway, eventually, gateway, mock_engine

KEY = "open-sesame"
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CLOCK = {"type": "object", "properties": {"zone": {"type": "string"}}, "required": ["zone"]}
ASKS_BOTH = "call get_weather and get_time"  # a mock engine calls the tools that it reads the names of


def missing(*packages: str) -> bool:
    """Whether one of these is not installed."""
    return any(importlib.util.find_spec(package) is None for package in packages)


class ClientCase(unittest.TestCase):
    """A gateway with a model `m`, authentication on. `package` is what is tested, imported when a test begins."""

    package: str

    def setUp(self) -> None:
        self.stack = contextlib.ExitStack()
        self.addCleanup(self.stack.close)
        self.engine: MockEngine = self.stack.enter_context(mock_engine("m"))
        self.scripted: ScriptedEngine = self.stack.enter_context(ScriptedEngine())
        self.gateway: RunningGateway = self.stack.enter_context(
            gateway(
                ENGINES=f"m={self.engine.url};s={self.scripted.url}",
                API_KEYS=f"alice:{KEY}",
                FALLBACK="off",
                RETRY_ATTEMPTS="1",
                REQUEST_TIMEOUT="5",
                BREAKER_THRESHOLD="1000",
            )
        )
        self.sdk: Any = importlib.import_module(self.package)

    def break_streams(self) -> None:
        """From now on, the engine's streams break off after some events."""
        self.engine.control("drop_mid_stream", after=2)

    def assert_left(self) -> None:
        """The engine has seen its one caller leave, and nothing is under way any more."""
        self.assertTrue(self.engine.wait_for_cancelled(1, timeout_s=5))
        eventually(lambda: self.gateway.app.pipeline.in_flight == 0)
