"""Prices, periods and budgets: in memory, on a real state database, by several processes and after a kill."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import unittest
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable, Optional

from gateway.limits.budgets import BUDGET_PERIODS, KEEP_S, STEADY_S, Budgets, BudgetWarning, Reservation, period_at
from gateway.limits.prices import Price, TokensAtMost, cost_usd
from gateway.state.database import StateDb, StateDbError
from tests.support import ROOT, eventually

DAY_S = 86_400.0


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=timezone.utc).timestamp()


class PriceTest(unittest.TestCase):
    def test_prices_are_per_million_tokens(self) -> None:
        self.assertEqual(cost_usd(Price(0.59, 0.79), 1_000_000, 0), 0.59)
        self.assertEqual(cost_usd(Price(0.59, 0.79), 0, 1_000_000), 0.79)
        self.assertAlmostEqual(cost_usd(Price(0.59, 0.79), 10, 5), 9.85e-6, places=15)
        self.assertEqual(cost_usd(Price(0.0, 0.0), 10**9, 10**9), 0.0)
        self.assertEqual(cost_usd(Price(0.59, 0.79), 0, 0), 0.0)

    def test_a_million_small_costs_add_up(self) -> None:
        price = Price(0.59, 0.79)
        total = sum(cost_usd(price, 3, 1) for _ in range(1_000_000))
        self.assertAlmostEqual(total, cost_usd(price, 3_000_000, 1_000_000), places=8)


class PeriodTest(unittest.TestCase):
    def test_periods_are_of_the_calendar_in_utc(self) -> None:
        for name, now, start, end in (
            ("day", "2026-11-05T23:59:59", "2026-11-05", "2026-11-06"),
            ("day", "2026-11-05T00:00:00", "2026-11-05", "2026-11-06"),
            ("week", "2026-11-05T12:00:00", "2026-11-02", "2026-11-09"),  # a Thursday
            ("week", "2026-11-08T23:59:59", "2026-11-02", "2026-11-09"),  # a Sunday
            ("week", "2026-11-09T00:00:00", "2026-11-09", "2026-11-16"),  # a Monday
            ("week", "2027-01-01T12:00:00", "2026-12-28", "2027-01-04"),
            ("month", "2026-11-30T23:59:59", "2026-11-01", "2026-12-01"),
            ("month", "2026-12-31T23:59:59", "2026-12-01", "2027-01-01"),
            ("month", "2028-02-29T12:00:00", "2028-02-01", "2028-03-01"),
        ):
            with self.subTest(name=name, now=now):
                self.assertEqual(period_at(name, at(now)), (at(start), at(end)))

    def test_other_periods_are_refused(self) -> None:
        for name in ("year", "", "Day"):
            with self.assertRaisesRegex(ValueError, "day, week, month"):
                period_at(name, 0.0)
        for name in BUDGET_PERIODS:
            period_at(name, 0.0)


class BudgetsTest(unittest.TestCase):
    def setUp(self) -> None:
        self.now_s = at("2026-11-05T12:00:00")
        self.ran_s = 0.0
        self.warnings: list[BudgetWarning] = []

    def budgets(self, db: Optional[StateDb] = None) -> Budgets:
        return Budgets(db, lambda: self.now_s, self.warnings.append, lambda: self.now_s)

    def check(self, budgets: Budgets, key: str = "alice", usd: Optional[float] = 5.0, period: str = "day") -> Any:
        return budgets.check(key, usd, period, self.now_s)


class InMemoryTest(BudgetsTest):
    def test_a_budget_is_spent_until_its_period_ends(self) -> None:
        budgets = self.budgets()
        self.assertIsNone(self.check(budgets))
        budgets.spend("alice", 4.99)
        self.assertIsNone(self.check(budgets))
        budgets.spend("alice", 0.01)
        self.assertEqual(self.check(budgets), at("2026-11-06"))
        self.now_s = at("2026-11-06")
        self.assertIsNone(self.check(budgets))
        self.assertEqual(budgets.spent_usd("alice"), 0.0)

    def test_spending_across_midnight_counts_for_the_new_day(self) -> None:
        budgets = self.budgets()
        self.check(budgets)
        budgets.spend("alice", 4.0)
        self.now_s = at("2026-11-06T00:00:01")
        budgets.spend("alice", 3.0)
        self.assertEqual(budgets.spent_usd("alice"), 3.0)
        self.assertIsNone(self.check(budgets))

    def test_keys_do_not_share_a_budget_and_those_without_one_are_not_counted(self) -> None:
        budgets = self.budgets()
        self.check(budgets)
        self.check(budgets, "bob")
        budgets.spend("alice", 9.0)
        budgets.spend("carol", 9.0)
        self.assertIsNotNone(self.check(budgets))
        self.assertIsNone(self.check(budgets, "bob"))
        self.assertIsNone(self.check(budgets, "carol", None))
        self.assertEqual(budgets.spent_usd("carol"), 0.0)

    def test_a_changed_budget_counts_at_once(self) -> None:
        budgets = self.budgets()
        self.check(budgets)
        budgets.spend("alice", 5.0)
        self.assertIsNotNone(self.check(budgets, usd=5.0))
        self.assertIsNone(self.check(budgets, usd=10.0))
        self.assertIsNotNone(self.check(budgets, usd=4.0))

    def test_a_budget_of_nothing_lets_nothing_pass(self) -> None:
        self.assertEqual(self.check(self.budgets(), usd=0.0, period="month"), at("2026-12-01"))

    def test_an_unknown_period_is_refused(self) -> None:
        with self.assertRaises(ValueError):
            self.check(self.budgets(), period="year")

    def test_what_costs_nothing_or_is_no_number_is_not_counted(self) -> None:
        budgets = self.budgets()
        self.check(budgets)
        for cost in (0.0, -1.0, float("nan")):
            budgets.spend("alice", cost)
        self.assertEqual(budgets.spent_usd("alice"), 0.0)

    def test_warns_once_a_period_at_80_percent(self) -> None:
        budgets = self.budgets()
        self.check(budgets)
        for _ in range(5):
            budgets.spend("alice", 1.0)
        self.assertEqual(self.warnings, [("alice", 4.0, 5.0, at("2026-11-06"))])
        self.now_s += DAY_S
        self.check(budgets)
        budgets.spend("alice", 4.5)
        self.assertEqual([warning.spent_usd for warning in self.warnings], [4.0, 4.5])

    def test_warns_again_when_the_budget_was_raised(self) -> None:
        budgets = self.budgets()
        self.check(budgets)
        budgets.spend("alice", 4.5)
        self.check(budgets, usd=10.0)
        budgets.spend("alice", 4.5)
        self.assertEqual([warning.budget_usd for warning in self.warnings], [5.0, 10.0])

    def test_many_threads_lose_nothing(self) -> None:
        budgets = self.budgets()

        def spend() -> None:
            for _ in range(500):
                self.check(budgets, usd=1e9)
                budgets.spend("alice", 0.5)

        threads = [threading.Thread(target=spend, name=f"spender-{n}") for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30.0)
        self.assertEqual(budgets.spent_usd("alice"), 2000.0)


class ReservationTest(BudgetsTest):
    def reserve(self, budgets: Budgets, cost: float, key: str = "alice") -> Reservation:
        self.assertIsNone(self.check(budgets, key))
        reservation = budgets.reserve(key, cost)
        assert isinstance(reservation, Reservation), reservation
        return reservation

    def refused(self, budgets: Budgets, cost: float = 0.1) -> float:
        self.assertIsNone(self.check(budgets))
        wait_s = budgets.reserve("alice", cost)
        assert isinstance(wait_s, float)
        return wait_s

    def test_what_is_in_flight_counts_until_it_is_given_back(self) -> None:
        budgets = self.budgets()
        first, second = self.reserve(budgets, 3.0), self.reserve(budgets, 3.0)
        self.refused(budgets)
        second.release()
        second.release()
        third = self.reserve(budgets, 2.0)
        self.refused(budgets)
        budgets.spend("alice", 1.0)
        first.release()
        self.reserve(budgets, 2.0)
        third.release()

    def test_with_something_left_one_request_always_passes_and_only_one_when_it_takes_the_rest(self) -> None:
        budgets = self.budgets()
        self.check(budgets)
        budgets.spend("alice", 4.999)
        reservation = self.reserve(budgets, 1e6)
        self.refused(budgets)
        reservation.release()
        self.reserve(budgets, 1e6).release()
        budgets.spend("alice", 0.001)
        self.assertIsNotNone(self.check(budgets))

    def test_rounding_leaves_nothing_reserved(self) -> None:
        budgets = self.budgets()
        for _ in range(1_000):
            pair = self.reserve(budgets, 0.1), self.reserve(budgets, 0.7)
            for reservation in pair:
                reservation.release()
        self.check(budgets)
        budgets.spend("alice", 5.0 - 1e-12)
        self.reserve(budgets, 1.0)

    def test_what_is_in_flight_at_midnight_counts_in_the_new_day(self) -> None:
        budgets = self.budgets()
        over_night = self.reserve(budgets, 5.0)
        self.now_s += DAY_S
        self.refused(budgets)
        over_night.release()
        self.reserve(budgets, 5.0)

    def test_keys_reserve_of_their_own_budgets(self) -> None:
        budgets = self.budgets()
        self.reserve(budgets, 5.0)
        self.reserve(budgets, 5.0, "bob")
        self.refused(budgets)

    def test_a_refusal_says_when_one_in_flight_usually_ends(self) -> None:
        budgets = self.budgets()
        reservation = self.reserve(budgets, 5.0)
        self.assertEqual(self.refused(budgets), 1.0)
        self.now_s += 10.0
        reservation.release()
        self.reserve(budgets, 5.0)
        self.now_s += 4.0
        self.assertEqual(self.refused(budgets), 6.0)

    def test_many_threads_never_overshoot_by_more_than_one(self) -> None:
        budgets = self.budgets()
        passed: list[int] = []

        def ask() -> None:
            for _ in range(200):
                if self.check(budgets) is None:
                    reservation = budgets.reserve("alice", 0.3)
                    if isinstance(reservation, Reservation):
                        passed.append(1)
                        budgets.spend("alice", 0.3)
                        reservation.release()

        threads = [threading.Thread(target=ask, name=f"asker-{n}") for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30.0)
        self.assertEqual(len(passed), 17)  # 5.1 USD


class MostTest(unittest.TestCase):
    PRICE = Price(1.0, 10.0)

    def test_what_a_request_may_cost_at_most(self) -> None:
        for tokens, context, million_usd in (
            (TokensAtMost(100, 50), None, 600),
            (TokensAtMost(100, 50, 4), None, 2_100),
            (TokensAtMost(100, 0), None, 100),
            (TokensAtMost(100), None, 41_060),
            (TokensAtMost(100), 200_000, 41_060),
            (TokensAtMost(100), 1_100, 10_100),
            (TokensAtMost(100), 50, 100),
            (TokensAtMost(100, None, 2), None, 82_020),
        ):
            with self.subTest(tokens=tokens, context=context):
                self.assertAlmostEqual(tokens.cost_usd(self.PRICE, context) * 1e6, million_usd)

    def test_limits_of_tokens_reserve_what_is_asked_for(self) -> None:
        asked = [t.asked for t in (TokensAtMost(100), TokensAtMost(100, 50), TokensAtMost(100, 50, 4))]
        self.assertEqual(asked, [100, 150, 300])


class OnDiskTest(BudgetsTest):
    def setUp(self) -> None:
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "gateway.db"

    def open(self) -> StateDb:
        db = StateDb(self.path, flush_interval_s=0.01)
        self.addCleanup(db.close)
        return db

    def stored(self) -> dict[tuple[str, float], float]:
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            rows = connection.execute("SELECT key, period_start_unix_s, spent_usd FROM budget").fetchall()
        return {(key, start): spent for key, start, spent in rows}

    def wait_for(self, spent: float, key: str = "alice", start: str = "2026-11-05") -> None:
        eventually(lambda: abs(self.stored().get((key, at(start)), 0.0) - spent) < 1e-9)

    def test_what_is_spent_is_added_to_the_database(self) -> None:
        budgets = self.budgets(self.open())
        self.check(budgets)
        for _ in range(100):
            budgets.spend("alice", 0.01)
        self.wait_for(1.0)
        self.now_s += DAY_S
        budgets.spend("alice", 0.25)
        self.wait_for(0.25, start="2026-11-06")
        self.wait_for(1.0)

    def test_a_restart_does_not_reset_it(self) -> None:
        db = self.open()
        budgets = self.budgets(db)
        self.check(budgets, period="month")
        budgets.spend("alice", 5.0)
        db.close()
        again = self.budgets(self.open())
        self.assertEqual(self.check(again, period="month"), at("2026-12-01"))
        again.spend("alice", 1.0)
        self.assertEqual(len(self.warnings), 1, "warned again after the restart")

    def test_two_gateways_on_one_database_add_up(self) -> None:
        first, second = self.budgets(self.open()), self.budgets(self.open())
        self.check(first)
        self.check(second)
        first.spend("alice", 2.5)
        second.spend("alice", 2.0)
        self.wait_for(4.5)
        self.assertTrue(first.refresh() and second.refresh())
        self.assertEqual((first.spent_usd("alice"), second.spent_usd("alice")), (4.5, 4.5))
        self.assertEqual(len(self.warnings), 2)  # neither had spent 80 % itself; each warns once
        second.spend("alice", 0.5)
        self.wait_for(5.0)
        first.refresh()
        self.assertIsNotNone(self.check(first))
        self.assertEqual(len(self.warnings), 2)

    def test_refreshing_never_counts_twice_nor_forgets_what_is_on_its_way(self) -> None:
        db = self.open()
        budgets = self.budgets(db)
        self.check(budgets, usd=1e9)
        spent = 0.0
        for _ in range(300):
            budgets.spend("alice", 1.0)
            spent += 1.0
            budgets.refresh()
            self.assertEqual(budgets.spent_usd("alice"), spent)
        self.wait_for(300.0)

    def test_a_write_that_is_made_again_after_a_rollback_writes_the_same(self) -> None:
        writes: list[Callable[[sqlite3.Connection], object]] = []

        class Recorded(StateDb):
            def submit(self, write: Callable[[sqlite3.Connection], object]) -> bool:
                writes.append(write)
                return True

        db = Recorded(self.path)
        self.addCleanup(db.close)
        budgets = self.budgets(db)
        self.check(budgets)
        budgets.spend("alice", 1.0)
        budgets.spend("alice", 2.0)
        self.assertEqual(len(writes), 1, "one write for all that waits")
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            writes[0](connection)
            budgets.spend("alice", 4.0)
            connection.rollback()
            writes[0](connection)
            connection.commit()
        self.assertEqual(self.stored(), {("alice", at("2026-11-05")): 3.0})
        self.assertEqual(len(writes), 2)

    def test_what_the_database_did_not_take_is_written_later(self) -> None:
        db = StateDb(self.path, flush_interval_s=0.01, max_pending=0)
        self.addCleanup(db.close)
        budgets = self.budgets(db)
        self.check(budgets)
        budgets.spend("alice", 5.0)
        self.assertIsNotNone(self.check(budgets), "without the database it counts in memory")
        self.assertGreater(db.dropped, 0)
        db._max_pending = 100
        budgets.refresh()
        self.wait_for(5.0)

    def test_a_database_that_fails_later_is_survived(self) -> None:
        db = self.open()
        budgets = self.budgets(db)
        self.check(budgets)
        db.close()
        budgets.spend("alice", 5.0)
        self.assertFalse(budgets.refresh())
        self.assertIsNotNone(self.check(budgets))

    def test_a_database_that_cannot_be_read_at_start_is_an_error(self) -> None:
        db = self.open()
        db.close()
        with self.assertRaises(StateDbError):
            self.budgets(db)

    def test_long_past_periods_are_deleted(self) -> None:
        db = self.open()
        budgets = self.budgets(db)
        self.check(budgets)
        budgets.spend("alice", 1.0)
        self.wait_for(1.0)
        self.now_s += KEEP_S + 2 * DAY_S
        self.ran_s += STEADY_S
        budgets = Budgets(db, lambda: self.now_s, monotonic=lambda: self.ran_s)
        budgets.refresh()
        self.assertTrue(self.stored(), "the clock may be wrong")
        self.now_s += STEADY_S
        self.ran_s += STEADY_S
        budgets.refresh()
        eventually(lambda: not self.stored())

    @unittest.skipUnless(hasattr(signal, "SIGKILL"), "no SIGKILL here")
    def test_a_killed_process_leaves_what_it_spent(self) -> None:
        script = f"""
import sys, time
from gateway.limits.budgets import Budgets
from gateway.state.database import StateDb
budgets = Budgets(StateDb(sys.argv[1]), lambda: {self.now_s})
budgets.check("alice", 5.0, "day", {self.now_s})
while True:
    budgets.spend("alice", 0.001)
    time.sleep(0.001)
"""
        process = subprocess.Popen([sys.executable, "-c", script, str(self.path)], cwd=ROOT, env={**os.environ})
        try:
            slot = ("alice", at("2026-11-05"))
            eventually(lambda: self.path.exists() and self.path.stat().st_size > 0)
            for _ in range(2):  # so that at least one commit was followed by more spending
                before = self.stored_or_nothing().get(slot, 0.0)
                eventually(lambda before=before: self.stored_or_nothing().get(slot, 0.0) > before)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(10.0)
        budgets = self.budgets(self.open())
        self.check(budgets)
        self.assertGreater(budgets.spent_usd("alice"), 0.0)
        self.assertEqual(budgets.spent_usd("alice"), self.stored()[slot])

    def stored_or_nothing(self) -> dict[tuple[str, float], float]:
        try:
            return self.stored()
        except sqlite3.Error:  # not made yet
            return {}


if __name__ == "__main__":
    unittest.main()
