"""What a request has used is freed with it: nothing is left for the collector, for whose pauses others would wait."""

from __future__ import annotations

import gc
import sys
import unittest

from tests.onloop import OnLoopTest, completion
from tests.resilience import ask
from tests.scripted import DONE, STREAM_HEAD, chunked, delta
from tests.support import FREE_THREADED, eventually

REQUESTS = 20


@unittest.skipIf(
    sys.implementation.name != "cpython" or FREE_THREADED, "what is not used any more is not freed at once"
)
class Garbage(OnLoopTest):
    def setUp(self) -> None:
        super().setUp()
        self.running, self.engine = self.one_engine()
        self.client = self.begin(self.running)
        self.side = self.engine.take()
        self.side.answer(completion())
        self.assert_says(self.client, "fine")

    def circles(self) -> list[str]:
        """The types of what only the collector could free, since it was asked last; of the gateway's own."""
        gc.collect()
        found = [type(item) for item in gc.garbage]
        gc.garbage.clear()
        return sorted({kind.__name__ for kind in found if kind.__module__.startswith("gateway.")})

    def collected(self) -> None:
        """From now on, keep what the collector finds."""
        gc.collect()
        gc.set_debug(gc.DEBUG_SAVEALL)
        self.addCleanup(gc.garbage.clear)
        self.addCleanup(gc.set_debug, 0)

    def test_answers(self) -> None:
        self.collected()
        for _ in range(REQUESTS):
            self.client.request("POST", "/v1/chat/completions", ask())
            self.side.read_request().answer(completion())
            self.assert_says(self.client, "fine")
        self.assertEqual(self.circles(), [])

    def test_streams(self) -> None:
        self.collected()
        for _ in range(REQUESTS):
            self.client.request("POST", "/v1/chat/completions", ask(stream=True))
            self.side.read_request().send(STREAM_HEAD + chunked(delta("a", "stop") + DONE) + b"0\r\n\r\n")
            self.assertEqual(self.client.read_head().status, 200)
            self.client.read_events()
        self.assertEqual(self.circles(), [])

    def test_refusals(self) -> None:
        self.collected()
        for body in ({"messages": []}, ask(model="no such"), {}):
            for _ in range(REQUESTS):
                self.client.request("POST", "/v1/chat/completions", body)
                self.assertIn(self.client.read_response().status, (400, 404))
        for _ in range(REQUESTS):
            self.client.request("GET", "/v1/models")
            self.assertEqual(self.client.read_response().status, 200)
        self.assertEqual(self.circles(), [])

    def test_refusals_of_who_finds_the_queue_full(self) -> None:
        running, engine = self.one_engine(WORKERS=1, QUEUE_SIZE=1)
        asked = self.begin(running)
        side = engine.take()
        queued = self.begin(running)
        eventually(lambda: running.app.workers.depth == 1)
        client = self.enter(running.connect())
        self.collected()
        for _ in range(REQUESTS):
            client.request("POST", "/v1/chat/completions", ask())
            self.assertEqual(client.read_response().status, 503)
        self.assertEqual(self.circles(), [])
        side.answer(completion())
        self.assert_says(asked, "fine")
        side.read_request().answer(completion())
        self.assert_says(queued, "fine")

    def test_failures_of_the_engine_and_large_bodies(self) -> None:
        self.collected()
        for _ in range(REQUESTS):
            self.client.request("POST", "/v1/chat/completions", ask("x" * 100_000))
            self.side.read_request().answer(b"no JSON")
            self.assertEqual(self.client.read_response().status, 502)
        self.assertEqual(self.circles(), [])


if __name__ == "__main__":
    unittest.main()
