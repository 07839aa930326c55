"""A whole gateway whose wall clock is set while it serves."""

from __future__ import annotations

import email.utils
import json
import unittest
from datetime import datetime, timezone
from unittest import mock

from gateway import clock
from tests.access import AccessTest, ask
from tests.unit.test_clocks import BOTH_WAYS, DAY_S, NOON


class WholeGatewayTest(AccessTest):
    """A gateway whose clock jumps between requests."""

    def setUp(self) -> None:
        super().setUp()
        self.now_s = NOON
        patcher = mock.patch.object(clock, "_read", lambda: self.now_s)
        patcher.start()
        self.addCleanup(patcher.stop)
        self.mock = self.engine()
        model = {"engines": [self.mock.url], "price": {"input": 1_000_000, "output": 1_000_000}}
        self.running = self.serve({"m": model}, ADMIN_KEYS="root:sk-root-fedcba9876543210")

    def test_budgets_hold_and_block_nobody_over_jumps_both_ways(self) -> None:
        key = self.make(self.running, budget_usd=1.0, budget_period="month")
        self.now_s += 40 * DAY_S
        self.assertEqual(self.running.post(ask(), headers=key).status, 200)
        spent = self.running.post(ask(), headers=key)
        self.assert_error(spent, 429, "budget_exceeded")
        self.assertIn("2027-01-01", spent.json()["message"])
        self.now_s = NOON
        self.assertEqual(self.running.post(ask(), headers=key).status, 200)
        spent = self.running.post(ask(), headers=key)
        self.assert_error(spent, 429, "budget_exceeded")
        self.assertIn("2026-12-01", spent.json()["message"])
        self.now_s += 40 * DAY_S
        self.assert_error(self.running.post(ask(), headers=key), 429, "budget_exceeded")

    def test_connections_answers_and_their_dates_go_on(self) -> None:
        key = self.make(self.running)
        with self.running.connect() as client:
            for by_s in BOTH_WAYS.values():
                self.now_s = NOON + by_s
                answer = client.post(headers=key)
                self.assertEqual(answer.status, 200)
                self.assertEqual(answer.header("date"), email.utils.formatdate(self.now_s, usegmt=True))
                stamp = self.running.request_line(answer.request_id)["ts"]
                self.assertEqual(stamp[:10], datetime.fromtimestamp(self.now_s, timezone.utc).strftime("%Y-%m-%d"))
        self.assertEqual(json.loads(self.running.get("/healthz").body), {"status": "ok"})


if __name__ == "__main__":
    unittest.main()
