"""What the socket tests of verifications share: models whose engines say what the test says, a sandbox likewise.

Owns no state of its own; every gateway, engine and connection is closed when its test ends.
"""

from __future__ import annotations

import json
import select
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Callable, Optional

from gateway.verify.sandbox.job import Job, Run
from tests.panels import Jail, run_of
from tests.resilience import ResilienceTest
from tests.scripted import EngineSide, ScriptedEngine
from tests.support import CHAT, TIMEOUT_S, Header, RawClient, Response, RunningGateway, eventually

INFERENCE = "/api/v1/inference"
PROMPT = "Write f(x) that adds one.\n\n>>> f(1)\n2\n"
PRICE = {"input": 1000.0, "output": 1000.0}
USAGE = {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}
MADE = {
    "entry_point": "f",
    "inputs": [{"tier": 0, "args": "(1,)", "expected": "i2"}, {"tier": 2, "args": "(5,)"}],
}


def completion(text: Optional[str], **more: Any) -> bytes:
    """An engine's answer with that text."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return json.dumps({"id": "e-1", "object": "chat.completion", "choices": [choice], "usage": USAGE, **more}).encode()


def adds_one(job: Job) -> Run:
    """What a sandbox finds in programs of which those with `x + 1` are right."""
    if job.harness == "generate":
        return run_of(MADE)
    if job.harness == "judge":
        return run_of({"error": None, "keys": ["i2", "i6"] if "x + 1" in job.code else ["i1", "i5"]})
    return run_of(stdout=b"printed\n")


class VerifiedTest(ResilienceTest):
    """A test of a gateway with several models, each with an engine of its own."""

    by_name: dict[str, ScriptedEngine]

    def several(
        self,
        names: str = "abc",
        virtual: Optional[Mapping[str, Any]] = None,
        own: Optional[Mapping[str, Mapping[str, Any]]] = None,
        **variables: object,
    ) -> RunningGateway:
        """A gateway with these models; `virtual` are models made of them, `own` what is said of one beside its engine.
        Nothing is run unless `jail` is called."""
        self.by_name = {name: self.scripted() for name in names}
        running = self.serve(self.models(virtual, own), **{"SANDBOX": "off", "RETRY_ATTEMPTS": 1, **variables})
        self.addCleanup(self.assert_idle, running)
        return running

    def models(
        self, virtual: Optional[Mapping[str, Any]] = None, own: Optional[Mapping[str, Mapping[str, Any]]] = None
    ) -> dict[str, Any]:
        """The models of the engines file."""
        real: dict[str, Any] = {
            name: {
                "engines": [{"url": engine.url, "id": f"engine-{name}"}],
                "price": PRICE,
                **(own or {}).get(name, {}),
            }
            for name, engine in self.by_name.items()
        }
        return {**real, **{name: {"consensus": consensus} for name, consensus in (virtual or {}).items()}}

    def jail(self, running: RunningGateway, answer: Callable[[Job], Optional[Run]] = adds_one) -> Jail:
        """Have programs run in a sandbox that does what the test says."""
        jail = Jail(answer)
        running.app.pipeline.verify.get().sandbox = jail.sandbox
        return jail

    def state_db(self) -> Path:
        """Where a database may be."""
        return Path(self.enter(tempfile.TemporaryDirectory())) / "gateway.db"

    def infer(self, running: RunningGateway, headers: Iterable[Header] = (), **fields: Any) -> RawClient:
        """A client whose request for several answers has been sent."""
        client = self.enter(running.connect())
        client.request("POST", INFERENCE, {"prompt": PROMPT, **fields}, headers)
        return client

    def refused(self, running: RunningGateway, headers: Iterable[Header] = (), **fields: Any) -> Response:
        """The answer to one that no member is asked for."""
        return self.infer(running, headers, **fields).read_response()

    def chat(self, running: RunningGateway, headers: Iterable[Header] = (), **fields: Any) -> RawClient:
        """A client whose request to the model "v" has been sent."""
        client = self.enter(running.connect())
        body = {"model": "v", "messages": [{"role": "user", "content": PROMPT}], **fields}
        client.request("POST", CHAT, body, headers)
        return client

    def take(self, names: str = "abc") -> dict[str, EngineSide]:
        """The engines' sides of the members' requests, which have come."""
        return {name: self.next_of(self.by_name[name]) for name in names}

    def next_of(self, engine: ScriptedEngine) -> EngineSide:
        """The next request to an engine, on a new connection or on one that was kept."""
        kept = {side.sock: side for side in engine._sides if side.sock.fileno() >= 0}
        ready = select.select([engine._listener, *kept], [], [], TIMEOUT_S)[0]
        assert ready, "no request has come"
        return engine.take() if engine._listener in ready else kept[ready[0]].read_request()

    def say(self, texts: Mapping[str, Optional[str]]) -> dict[str, EngineSide]:
        """Have each of these engines take a request and answer it; None: with an error."""
        sides = self.take("".join(texts))
        for name, text in texts.items():
            answer(sides[name], text)
        return sides

    def assert_untouched(self, *names: str) -> None:
        """These engines have been asked for nothing (more)."""
        for name in names:
            self.assertTrue(self.by_name[name].nobody_waits(), name)

    def assert_idle(self, running: RunningGateway) -> None:
        """Nothing is under way any more, and nothing is held."""
        eventually(lambda: running.app.pipeline.in_flight == 0)
        eventually(lambda: running.app.workers.busy == 0)
        self.assert_nothing_held(running)

    def parts(self, running: RunningGateway, request_id: str, count: int) -> list[dict[str, Any]]:
        """The log lines of a request's parts, as soon as there are so many."""

        def found() -> Optional[list[dict[str, Any]]]:
            lines = [line for line in running.request_lines() if line.get("part_of") == request_id]
            return lines if len(lines) >= count else None

        lines = eventually(found)
        assert lines is not None
        self.assertEqual(len(lines), count)
        return sorted(lines, key=lambda line: str(line["request_id"]))


def answer(side: EngineSide, text: Optional[str]) -> None:
    """Have an engine answer; None: with an error."""
    if text is None:
        side.answer(b'{"error":{"message":"no","type":"x"}}', status="500 No")
    else:
        side.answer(completion(text))
