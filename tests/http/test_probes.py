"""Probes of real engines, and what a gateway makes of them."""

from __future__ import annotations

import contextlib
import threading
import unittest
from typing import Optional

from gateway.mock.server import MockEngine
from gateway.routing.specs import EngineSpec, FleetSpec, model_from
from gateway.upstream.prober import probe
from tests.scripted import ScriptedEngine
from tests.support import TIMEOUT_S, dead_url, eventually, gateway, mock_engine


class ProbeTest(unittest.TestCase):
    """One real probe."""

    def test_a_live_engine_is_well(self) -> None:
        with mock_engine() as engine:
            self.assertIsNone(probe(EngineSpec(engine.url), 5.0))
            self.assertEqual((engine.stats()["probes"], engine.stats()["requests"]), (1, 0))

    def test_a_loading_engine_is_not(self) -> None:
        with mock_engine(behaviour="loading") as engine:
            self.assertIn("503", probe(EngineSpec(engine.url), 5.0) or "")

    def test_nobody_listens(self) -> None:
        self.assertIn("refused", (probe(EngineSpec(dead_url()), 5.0) or "").lower())

    def test_a_server_without_a_health_path_lives(self) -> None:
        with mock_engine() as engine:
            self.assertIsNone(probe(EngineSpec(engine.url, health_path="/nothing/here"), 5.0))

    def test_the_health_path_can_be_chosen(self) -> None:
        with mock_engine(behaviour="loading") as engine:
            self.assertIsNone(probe(EngineSpec(engine.url, health_path="/v1/models"), 5.0))

    def run_scripted(self, data: bytes, close: bool = True) -> Optional[str]:
        with ScriptedEngine() as engine:
            found: list[Optional[str]] = []
            thread = threading.Thread(target=lambda: found.append(probe(EngineSpec(engine.url), 0.3)), name="probe")
            thread.start()
            side = engine.accept()
            side.send(data)
            if close:
                side.close()
            thread.join(TIMEOUT_S)
            self.assertFalse(thread.is_alive())
            return found[0]

    def test_silence_nonsense_and_a_closed_connection_are_failures(self) -> None:
        for data, close in ((b"", False), (b"", True), (b"SSH-2.0-x\r\n\r\n", True), (b"HTTP/1.1 200", True)):
            with self.subTest(data=data, close=close):
                self.assertIn("failed", self.run_scripted(data, close) or "")

    def test_the_time_limit_covers_the_whole_probe_not_each_byte(self) -> None:
        with ScriptedEngine() as engine:
            found: list[Optional[str]] = []
            thread = threading.Thread(target=lambda: found.append(probe(EngineSpec(engine.url), 0.3)), name="probe")
            thread.start()
            side = engine.accept()
            with contextlib.suppress(OSError):  # the probe has gone
                for _ in range(200):  # 4 s of a status line that never ends
                    side.send(b"H")
                    thread.join(0.02)
                    if found:
                        break
            thread.join(0.2)
            self.assertEqual(len(found), 1, "the probe goes on for as long as bytes come")
            self.assertIn("within 0.3 s", found[0] or "")


class GatewayHealthTest(unittest.TestCase):
    """Probes of real engines by a real gateway."""

    def test_engines_go_and_come_back_while_a_hung_one_holds_up_nobody(self) -> None:
        with ScriptedEngine() as hung, mock_engine("m") as first, mock_engine("m", "loading") as second:
            urls = f"{hung.url},{first.url},{second.url}"
            with gateway(ENGINES=f"m={urls}", HEALTH_INTERVAL="0.05", HEALTH_TIMEOUT=60, HEALTH_FAILS=2) as running:

                def states() -> list[str]:
                    return [engine.state for engine in running.app.factory.engines()][1:]

                eventually(lambda: states() == ["up", "down"])
                second.control("ok")
                first.control("refuse", seconds=60)
                eventually(lambda: states() == ["down", "up"])
                first.control("ok")
                eventually(lambda: states() == ["up", "up"])

                def told() -> list[str]:
                    lines = [line for line in running.log_lines() if line["event"] == "engine_state"]
                    return [line["after"] for line in lines if line["engine"] == f"127.0.0.1:{second.port}"]

                eventually(lambda: len(told()) == 2)  # a change is told after it is made
                self.assertEqual(told(), ["down", "up"])
                hung.close()

    def test_a_busy_engine_is_not_probed(self) -> None:
        with mock_engine("m") as busy, mock_engine("m") as idle:
            with gateway(ENGINES=f"m={busy.url};i={idle.url}", HEALTH_INTERVAL="0.3") as running:
                eventually(lambda: idle.stats()["probes"] >= 1 and busy.stats()["probes"] >= 1)
                before = busy.stats()["probes"], idle.stats()["probes"]

                def idle_was_probed_twice() -> bool:
                    self.assertEqual(
                        running.post({"model": "m", "messages": [{"role": "user", "content": "x"}]}).status, 200
                    )
                    return idle.stats()["probes"] >= before[1] + 2

                eventually(idle_was_probed_twice)
                self.assertLessEqual(busy.stats()["probes"], before[0] + 1)

    def test_it_is_not_ready_until_the_first_round_of_probes_has_ended(self) -> None:
        with ScriptedEngine() as slow, mock_engine("m") as good:
            with gateway(ENGINES=f"m={good.url};s={slow.url}", HEALTH_INTERVAL=60, HEALTH_TIMEOUT=60) as running:
                side = slow.accept()
                answer = running.get("/readyz")
                self.assertEqual((answer.status, answer.json()), (503, {"status": "probing"}))
                self.assertFalse(running.app.factory.wait_probed(0))
                self.assertEqual(running.post().status, 200)  # it serves all the same
                side.close()
                self.assertTrue(running.app.factory.wait_probed(TIMEOUT_S))
                self.assertEqual(running.get("/readyz").status, 200)
                self.assertEqual([engine.state for engine in running.app.factory.engines()], ["up", "down"])

    def test_a_reload_does_not_make_it_unready(self) -> None:
        with ScriptedEngine() as slow, mock_engine("m") as good:
            with gateway(ENGINES=f"m={good.url}", HEALTH_INTERVAL=60, HEALTH_TIMEOUT=60) as running:
                factory = running.app.factory
                self.assertTrue(factory.wait_probed(TIMEOUT_S))
                factory.reload(FleetSpec((model_from("m", [good.url, slow.url]),)))
                side = slow.accept()  # the new one is probed at once
                self.assertTrue(factory.wait_probed(0))
                self.assertEqual(running.get("/readyz").status, 200)
                side.close()
                eventually(lambda: [engine.state for engine in factory.engines()] == ["up", "down"])

    def test_echo_is_ready_at_once(self) -> None:
        with gateway(HEALTH_INTERVAL=5) as running:
            self.assertEqual(running.get("/readyz").status, 200)

    def test_health_and_readyz_tell_what_the_probes_found(self) -> None:
        engine: MockEngine
        with mock_engine("m", "loading") as engine:
            with gateway(ENGINES=f"m={engine.url}", HEALTH_INTERVAL="0.05", HEALTH_FAILS=1) as running:
                eventually(lambda: running.get("/readyz").json()["status"] == "no engine is available")
                answer = running.get("/health")
                self.assertEqual((answer.status, answer.json()["status"]), (503, "down"))
                self.assertIn("503", answer.json()["models"]["m"]["engines"][0]["last_error"])
                engine.control("ok")
                eventually(lambda: running.get("/readyz").status == 200)
                self.assertEqual(running.get("/health").json()["status"], "ok")


if __name__ == "__main__":
    unittest.main()
