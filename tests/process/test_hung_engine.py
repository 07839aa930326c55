"""The gateway in front of three engine processes, one of which is stopped in the middle: its clients do not wait."""

from __future__ import annotations

import signal
import unittest

from tests.chaos import engines as engine_processes
from tests.chaos.traffic import Traffic, tally
from tests.parallel import alone
from tests.support import GatewayProcess, eventually, gateway_process, parse_metrics

CLIENTS = 32


@unittest.skipUnless(hasattr(signal, "SIGSTOP"), "an engine cannot be stopped here")
class HungEngineTest(unittest.TestCase):
    @alone
    def test_a_stopped_engine_costs_nobody_an_answer(self) -> None:
        with engine_processes.running(("13b",), 3, delay_s=0.01, gap_s=0.0) as engines:
            hung = engines[0]
            urls = ",".join(engine.url for engine in engines)
            # A request's time is the usual: without help it would be over for the clients before.
            with gateway_process(
                ENGINES=f"13b={urls}",
                HEALTH_INTERVAL=0.2,
                HEALTH_TIMEOUT=0.3,
                STREAM_IDLE_TIMEOUT=1,
                BREAKER_OPEN_SECONDS=0.2,
            ) as gateway:
                traffic = Traffic(gateway.port, ("13b",), CLIENTS).start()
                try:
                    traffic.wait_for_more(4 * CLIENTS)
                    hung.stop()
                    eventually(lambda: self.rescued(gateway, hung.id))
                    traffic.wait_for_more(4 * CLIENTS)
                    hung.go_on()
                    eventually(lambda: self.state(gateway, hung.id) == "up")
                finally:
                    hung.go_on()
                    results = traffic.stop()
        self.assertEqual(set(tally(results, False)), {"200"})
        # A stream that had begun there has an honest end.
        self.assertLessEqual(set(tally(results, True)), {"complete", "error event"})

    def rescued(self, gateway: GatewayProcess, engine: str) -> float:
        samples = parse_metrics(gateway.ask("GET", "/metrics").body)
        return samples.get(f'gateway_rescued_total{{model="13b",engine="{engine}"}}', 0.0)

    def state(self, gateway: GatewayProcess, engine: str) -> str:
        engines = gateway.ask("GET", "/health").json()["models"]["13b"]["engines"]
        found: str = next(item["state"] for item in engines if item["id"] == engine)
        return found


if __name__ == "__main__":
    unittest.main()
