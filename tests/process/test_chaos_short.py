"""A short version of `python -m tests.chaos`: real processes, one fault after the other, each ended by a condition."""

from __future__ import annotations

import json
import sys
import tempfile
import unittest
from collections.abc import Mapping
from pathlib import Path
from typing import Callable

from tests.chaos.observe import samples, summed
from tests.chaos.replays import replayed
from tests.chaos.scene import DECISIONS, Fault, Scene, Setup, play
from tests.chaos.traffic import judge
from tests.parallel import alone
from tests.support import Response, eventually

CLIENTS = 16
ANSWERS = 16  # at least, from all clients together while a fault is in force
# Each with what the gateway makes of it: a fault lasts until that has been counted.
BEHAVIOURS: tuple[tuple[str, Mapping[str, float], str], ...] = (
    ("reset", {}, "reset"),
    ("error", {"status": 503}, "error"),
    ("malformed", {}, "invalid"),
    ("truncate", {}, "truncated"),
    ("rate_limit", {"retry_after": 0.1}, "rate_limited"),
    ("loading", {}, "error"),
    ("hang", {}, "timeout"),
)


def storm(scene: Scene) -> Mapping[str, str]:
    """Every behaviour on one engine, then a kill and a restart; between them all is well again."""
    for behaviour, options, outcome in BEHAVIOURS:
        _until_counted(scene, outcome, lambda b=behaviour, o=options: scene.victim.behave(b, **o))
        scene.victim.behave("ok")
        _wait_until_up(scene)
    _until_counted(scene, "refused", scene.victim.kill)
    scene.victim.start()
    scene.victim.wait()
    _wait_until_up(scene)
    return {}


def _until_counted(scene: Scene, outcome: str, begin: Callable[[], None]) -> None:
    """Begin a fault and wait until clients have had answers in spite of it, and the gateway has noticed it: attempts
    have had its outcome, or probes have been faster."""

    def counted() -> int:
        return summed(samples(scene.gateway), "gateway_engine_requests_total", "outcome")[outcome]

    before = counted()
    begin()
    scene.traffic.wait_for_more(ANSWERS)
    eventually(lambda: counted() > before or scene.states()[scene.victim.id] == "down", 30.0)


def _wait_until_up(scene: Scene) -> None:
    eventually(lambda: set(scene.states().values()) == {"up"}, 30.0)


STORM = Fault(
    "storm",
    storm,
    Setup(
        delay_s=0.01,
        gap_s=0.001,
        model={"attempt_timeout": 0.7},
        environment={"HEALTH_INTERVAL": 0.1, "BREAKER_OPEN_SECONDS": 0.1, "BREAKER_MAX_OPEN_SECONDS": 0.1},
    ),
    streams=("error event",),
)


@unittest.skipUnless(sys.platform == "linux", "threads and descriptors are read from /proc")
class ChaosTest(unittest.TestCase):
    @alone
    def test_faults_of_one_engine_cost_no_answer_and_leave_nothing_behind(self) -> None:
        with tempfile.TemporaryDirectory() as name:
            row = play(STORM, CLIENTS, 0.0, seed=1, keep=Path(name))
            notes: dict[str, str] = {}
            self.assertEqual((row.violations, row.lost, row.duplicated), ((), 0, 0), row.details)
            self.assertEqual(list(replayed(Path(name) / DECISIONS, notes, another_weight=False)), [], notes)
        self.assertGreaterEqual(row.plain["200"], 100)
        self.assertGreaterEqual(row.streams["complete"], 50)
        for trace in ("retries", "engine states", "down "):  # it had to ask again, and took engines out
            self.assertIn(trace, row.metrics)


class JudgeTest(unittest.TestCase):
    """The clients of the chaos suite notice what they are there to notice."""

    PROMPT = "hello"
    TEXT = "Mock answer from 13b at 8000: hello"

    def plain(self, request_id: str = "a", text: str = TEXT, status: int = 200) -> str:
        body = {"id": request_id, "choices": [{"message": {"content": text}}]}
        return judge(self.response(json.dumps(body).encode(), status), None, "a", self.PROMPT)[0]

    def response(self, body: bytes = b"", status: int = 200) -> Response:
        return Response(status, (("x-request-id", "a"),), body)

    def stream(self, *events: str) -> str:
        return judge(self.response(), [f"data: {event}" for event in events], "a", self.PROMPT)[0]

    def chunk(self, text: str, finish: str = "") -> str:
        return json.dumps({"choices": [{"delta": {"content": text}, "finish_reason": finish or None}]})

    def test_another_requests_answer_is_wrong(self) -> None:
        self.assertEqual(self.plain(), "200")
        self.assertEqual(self.plain(request_id="b"), "wrong")
        self.assertEqual(self.plain(text=self.TEXT + "!"), "wrong")
        self.assertEqual(judge(self.response(), None, "b", self.PROMPT)[0], "wrong")

    def test_an_error_is_told_by_status_and_code(self) -> None:
        response = self.response(b'{"error": "backend_error", "message": "x"}', 502)
        self.assertEqual(judge(response, None, "a", self.PROMPT)[0], "502 backend_error")

    def test_a_stream_is_complete_with_its_text_a_finish_reason_and_done(self) -> None:
        whole = (self.chunk("Mock answer from 13b "), self.chunk("at 8000: hello"), self.chunk("", "stop"), "[DONE]")
        self.assertEqual(self.stream(*whole), "complete")
        self.assertEqual(self.stream(*whole[:-1]), "neither")
        self.assertEqual(self.stream(*whole[:2], "[DONE]"), "neither")
        self.assertEqual(self.stream(whole[0], *whole), "wrong")

    def test_an_error_event_is_the_only_one_and_the_last_and_without_done(self) -> None:
        error = '{"error": "backend_error"}'
        self.assertEqual(self.stream(self.chunk("Mock"), error), "error event")
        self.assertEqual(self.stream(self.chunk("Mock"), error, error), "neither")
        self.assertEqual(self.stream(self.chunk("Mock"), error, "[DONE]"), "neither")
        self.assertEqual(self.stream(error, self.chunk("Mock")), "neither")


if __name__ == "__main__":
    unittest.main()
