"""Streams whose first event decides, through a whole gateway and the library."""

from __future__ import annotations

import unittest
from typing import Any

from inference import InferenceFactory
from tests.resilience import ResilienceTest, ask
from tests.support import RunningGateway, eventually


class GatewayTest(ResilienceTest):
    def held_trial(self, **variables: object) -> RunningGateway:
        """A gateway whose first engine is tried out by a stream that stands still after its first event."""
        self.tried, self.other = self.engine("error"), self.engine()
        urls = [self.tried.url, self.other.url]
        running = self.serve(
            {"m": {"engines": urls}}, BREAKER_MIN_REQUESTS=1, BREAKER_OPEN_SECONDS=0.05, HEALTH_INTERVAL=0, **variables
        )
        eventually(lambda: running.post(ask()).status == 200 and "open" in self.states(running))
        self.tried.control("ok")
        self.gate = self.tried.hold_after(1)
        self.addCleanup(self.gate.release)
        self.stream = self.begin_on(running, self.tried.port)
        return running

    def begin_on(self, running: RunningGateway, port: int) -> Any:
        def begun() -> Any:
            client = self.begin(running, ask(stream=True))
            if client.read_head().header("x-gateway-engine") == f"127.0.0.1:{port}":
                client.read_event()
                return client
            client.close()
            return None

        return eventually(begun)

    def test_the_engine_serves_others_while_the_trials_stream_is_open(self) -> None:
        running = self.held_trial()
        self.assertEqual(self.states(running)[0], "up")
        before = self.tried.stats()["requests"]
        eventually(lambda: running.post(ask()).status == 200 and self.tried.stats()["requests"] > before)
        self.gate.release()
        self.assertEqual(self.stream.read_events()[-1], "data: [DONE]")
        eventually(lambda: self.changes(running)[-1:] == [("half_open", "up")])
        self.assert_nothing_held(running)

    def test_a_hedged_stream_counts_at_its_first_event(self) -> None:
        silent, other = self.engine("hang"), self.engine()
        gate = other.hold_after(1)
        self.addCleanup(gate.release)
        running = self.serve({"m": {"engines": [silent.url, other.url], "hedge_after_ms": 10, "hedge_ratio": 1}})
        with self.begin(running, ask(stream=True)) as client:
            self.assertEqual(client.read_head().header("x-gateway-engine"), f"127.0.0.1:{other.port}")
            client.read_event()
            won = self.pool(running).engines[1]
            self.assertGreater(won.ok_at_s, 0)
            self.assertEqual(won.in_flight, 1)
            gate.release()
            self.assertEqual(client.read_events()[-1], "data: [DONE]")
        self.assert_nothing_held(running)

    def test_a_stream_that_goes_on_elsewhere_counts_at_its_first_event(self) -> None:
        broken, onward = self.engine("drop_mid_stream"), self.engine()
        urls = [{"url": broken.url, "resume": True}, {"url": onward.url, "resume": True}]
        running = self.serve({"m": {"engines": urls}})
        gate = onward.hold_after(1)
        self.addCleanup(gate.release)
        with self.begin(running, ask(stream=True)) as client:
            client.read_head()
            client.read_event()
            self.assertTrue(gate.wait_for_held(1, 5))
            second = self.pool(running).engines[1]
            eventually(lambda: second.ok_at_s > 0 and second.in_flight == 1)
            gate.release()
            self.assertEqual(client.read_events()[-1], "data: [DONE]")
        self.assert_nothing_held(running)


class LibraryTest(ResilienceTest):
    def test_a_librarys_stream_counts_at_its_first_event(self) -> None:
        engine = self.engine()
        gate = engine.hold_after(1)
        self.addCleanup(gate.release)
        with InferenceFactory({"m": [engine.url]}) as factory:
            chunks = factory.stream([{"role": "user", "content": "hi"}], model="m")
            next(chunks)
            self.assertGreater(factory.router.pools["m"].engines[0].ok_at_s, 0)
            self.assertEqual(factory.engines()[0].in_flight, 1)
            gate.release()
            for _ in chunks:
                pass
            self.assertEqual(factory.engines()[0].in_flight, 0)


if __name__ == "__main__":
    unittest.main()
