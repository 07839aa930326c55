"""What the tests of failing engines share: gateways with an engines file, requests in flight, the state of engines.

Owns no state of its own; every gateway, engine and connection is closed when its test ends.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Optional, Union

from gateway.mock.server import MockEngine
from gateway.routing.pool import ModelPool
from tests.scripted import ScriptedEngine
from tests.support import (
    CHAT,
    Header,
    RawClient,
    Response,
    RunningGateway,
    SocketTest,
    eventually,
    gateway,
    mock_engine,
)


def ask(text: str = "hi there", model: str = "m", **options: Any) -> dict[str, Any]:
    """The body of a chat request."""
    return {"model": model, "messages": [{"role": "user", "content": text}], **options}


def fleet(models: Mapping[str, Mapping[str, Any]]) -> str:
    """An engines file."""
    return json.dumps({"models": models})


class ResilienceTest(SocketTest):
    """A test with engines that misbehave behind a gateway with an engines file."""

    def setUp(self) -> None:
        self._engines: list[Union[MockEngine, ScriptedEngine]] = []

    def tearDown(self) -> None:
        # Before the clients and the gateways: what still waits for an engine has its end then, and nobody waits for it.
        for engine in self._engines:
            engine.close()

    def engine(self, behaviour: str = "ok", model: str = "m", **options: Any) -> MockEngine:
        """A mock engine until the test has ended."""
        engine = self.enter(mock_engine(model, behaviour, **options))
        self._engines.append(engine)
        return engine

    def scripted(self, port: int = 0) -> ScriptedEngine:
        """An engine that does what the test says, until the test has ended."""
        engine = self.enter(ScriptedEngine(port=port))
        self._engines.append(engine)
        return engine

    def serve(self, models: Mapping[str, Mapping[str, Any]], **variables: object) -> RunningGateway:
        """A gateway in this process with these models of the engines file."""
        directory = self.enter(tempfile.TemporaryDirectory())
        path = Path(directory) / "engines.json"
        path.write_text(fleet(models), "utf-8")
        return self.enter(gateway(ENGINES_FILE=path, **variables))

    def begin(
        self, running: RunningGateway, body: Optional[dict[str, Any]] = None, headers: Iterable[Header] = ()
    ) -> RawClient:
        """A client whose request has been sent; its answer is still to be read."""
        client = self.enter(running.connect())
        client.request("POST", CHAT, ask() if body is None else body, headers)
        return client

    def pool(self, running: RunningGateway, model: str = "m") -> ModelPool:
        """The live engines of a model."""
        return running.app.factory.router.pools[model]

    def states(self, running: RunningGateway) -> list[str]:
        """The state of every engine, in file order."""
        return [engine.state for engine in running.app.factory.engines()]

    def wait_for_waiting(self, running: RunningGateway, count: int, model: str = "m") -> None:
        """Wait until so many requests stand in the line for a place on an engine."""
        eventually(lambda: self.pool(running, model).waiting == count)

    def assert_nothing_held(self, running: RunningGateway) -> None:
        """Every place on every engine has been given back, and nobody waits."""
        eventually(lambda: not any(engine.in_flight for engine in running.app.factory.engines()))
        self.assertEqual(
            [pool.waiting for pool in running.app.factory.router.pools.values()].count(0),
            len(running.app.factory.router.pools),
        )

    def assert_error(self, answer: Response, status: int, code: str) -> None:
        """The answer is this error."""
        self.assertEqual((answer.status, answer.error), (status, code), answer.body)

    def assert_answered_by(self, answer: Response, port: int, attempts: Optional[int] = None) -> None:
        """The answer is good and came from the engine at that port."""
        self.assertEqual(answer.status, 200, answer.body)
        self.assertEqual(answer.header("x-gateway-engine"), f"127.0.0.1:{port}")
        if attempts is not None:
            self.assertEqual(answer.header("x-gateway-attempts"), str(attempts))

    def changes(self, running: RunningGateway) -> list[tuple[str, str]]:
        """The logged changes of engines' states, (before, after) each."""
        return [(line["before"], line["after"]) for line in running.log_lines() if line["event"] == "engine_state"]
