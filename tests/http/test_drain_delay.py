"""DRAIN_DELAY: after SIGTERM the port stays open and requests are served, while balancers learn that it is to end."""

from __future__ import annotations

import os
import signal
import threading
import unittest
from typing import Any

from tests.resilience import ResilienceTest, ask
from tests.support import CHAT, HI, GatewayProcess, SocketTest, engines, eventually, gateway_process, mock_engine


@unittest.skipUnless(os.name == "posix", "signals as POSIX has them")
class ProcessTest(SocketTest):
    def start(self, **variables: Any) -> GatewayProcess:
        self.engine = self.enter(mock_engine())
        return self.enter(gateway_process(ENGINES=engines(_13b=self.engine.url), **variables))

    def announce(self, process: GatewayProcess) -> None:
        process.signal(signal.SIGTERM)
        eventually(lambda: process.ask("GET", "/readyz").status == 503)

    def test_an_idle_gateway_stays_and_serves_and_a_second_signal_ends_it(self) -> None:
        process = self.start(DRAIN_DELAY=3600, DRAIN_TIMEOUT=3600)
        kept = self.enter(process.connect())
        self.assertEqual(kept.ask("GET", "/healthz").status, 200)
        self.announce(process)
        answer = kept.post()
        self.assertEqual((answer.status, answer.header("connection")), (200, "close"))
        kept.assert_closed()
        answer = process.ask("POST", CHAT, HI)  # on a new connection
        self.assertEqual((answer.status, answer.header("connection")), (200, "close"))
        with process.connect() as client:
            client.request("POST", CHAT, {**HI, "stream": True})
            self.assertEqual(client.read_head().header("connection"), "close")
            self.assertEqual(client.read_events()[-1], "data: [DONE]")
            client.assert_closed()
        self.assertEqual(process.ask("GET", "/healthz").status, 200)
        self.assertEqual(process.ask("GET", "/readyz").json()["status"], "draining")
        self.assertIsNone(process.process.poll())
        process.signal(signal.SIGTERM)
        self.assertEqual(process.wait(), 0)
        (line,) = [line for line in process.log_lines() if line["event"] == "draining"]
        self.assertEqual(line["delay_s"], 3600)

    def test_when_the_delay_is_over_it_drains_and_ends(self) -> None:
        process = self.start(DRAIN_DELAY="0.3", DRAIN_TIMEOUT=300)
        gate = self.engine.hold_after(1)
        self.addCleanup(gate.release)
        with process.connect() as client:
            client.request("POST", CHAT, {**HI, "stream": True})
            client.read_head()
            client.read_event()
            self.announce(process)
            eventually(lambda: process.ask("GET", "/readyz").status == 503 and self.refused(process))
            gate.release()
            self.assertEqual(client.read_events()[-1], "data: [DONE]")
        self.assertEqual(process.wait(), 0)

    def refused(self, process: GatewayProcess) -> bool:
        with process.connect() as client:
            client.request("POST", "/v1/embeddings", {"input": "hi"})
            return client.read_response().status == 503

    def test_an_idle_one_ends_by_itself(self) -> None:
        process = self.start(DRAIN_DELAY="0.2")
        process.signal(signal.SIGTERM)
        self.assertEqual(process.wait(), 0)


class StopTest(ResilienceTest):
    def test_a_second_stop_ends_the_delay_and_one_without_a_drain_has_none(self) -> None:
        engine = self.engine()
        running = self.serve({"m": {"engines": [engine.url]}}, DRAIN_DELAY=3600)
        stopper = threading.Thread(target=running.app.stop, name="stopper")
        stopper.start()
        eventually(lambda: running.app.pipeline.draining)
        self.assertEqual(running.post(ask()).status, 200)
        running.app.stop()
        stopper.join(20)
        self.assertFalse(stopper.is_alive())
        other = self.serve({"m": {"engines": [engine.url]}}, DRAIN_DELAY=3600)
        other.stop(0)


if __name__ == "__main__":
    unittest.main()
