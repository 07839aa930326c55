"""Series of engines that are gone."""

from __future__ import annotations

import unittest
from array import array
from unittest import mock

from gateway.alerts.measuring import History
from gateway.telemetry.departed import KEPT_S
from gateway.telemetry.events import AttemptRecord
from gateway.telemetry.metrics import GatewayMetrics
from gateway.telemetry.registry import Registry
from tests.unit.test_metrics import event


class DepartedTest(unittest.TestCase):
    def setUp(self) -> None:
        self.registry = Registry()
        self.metrics = GatewayMetrics(self.registry, lambda: {"m": "m"}, {"/v1/chat/completions"})
        self.now_s = 0.0
        self.departed = self.metrics.departed
        patched = mock.patch.object(self.departed, "_clock", lambda: self.now_s)
        patched.start()
        self.addCleanup(patched.stop)

    def ask(self, engine: str, outcome: str = "ok") -> None:
        record = AttemptRecord("m", engine, outcome, 0.1)
        usual = {"prompt_tokens": 3, "completion_tokens": 4} if outcome == "ok" else {}
        self.metrics.observe([event(model="m", engine=engine, attempts=1, attempt_records=(record,), **usual)])

    def counted(self) -> dict[str, float]:
        (requests,) = [family for family in self.registry.collect() if family.name == "gateway_engine_requests_total"]
        return {f"{engine} {outcome}": float(count) for (_, engine, outcome), count in requests.series}  # type: ignore[arg-type]

    def test_series_of_an_engine_that_is_gone_end_after_a_while_and_no_others(self) -> None:
        for engine in ("a", "b", "b"):
            self.ask(engine)
        self.ask("a", "refused")
        everything = {"a ok": 1.0, "a refused": 1.0, "b ok": 2.0}
        self.departed.look({("m", "b")})
        self.now_s = KEPT_S - 1
        self.departed.look({("m", "b")})
        self.assertEqual(self.counted(), everything)
        self.departed.look({("m", "a"), ("m", "b")})  # it is back: the time begins anew
        self.now_s = KEPT_S
        self.departed.look({("m", "b")})
        self.assertEqual(self.counted(), everything)
        self.now_s = 2 * KEPT_S
        self.ask("b")
        self.departed.look({("m", "b")})
        self.assertEqual(self.counted(), {"b ok": 3.0})
        self.ask("a")
        self.ask("b")
        self.assertEqual(self.counted(), {"a ok": 1.0, "b ok": 4.0})

    def test_alerts_take_what_begins_anew_for_new(self) -> None:
        history = History(60.0, {"attempts"})
        history.add(0.0, {"attempts": {("m", "a"): array("d", (100.0, 7.0))}})
        history.add(10.0, {"attempts": {("m", "a"): array("d", (3.0, 1.0))}})
        self.assertEqual(history.grown("attempts"), {("m", "a"): [3.0, 1.0]})
