"""The wall clock jumps, forward and back: nothing is blocked by it, forgotten, deleted, or believed for longer."""

from __future__ import annotations

import ast
import email.utils
import tempfile
import unittest
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Optional
from unittest import mock

from gateway import clock
from gateway.clock import JUMP_S, JumpWatch
from gateway.errors import RequestRefused
from gateway.guard import Guard
from gateway.keys.auth import TOKEN_CACHE_S, Authenticator
from gateway.keys.jwt import TokenRefused, TokenVerifier
from gateway.keys.store import KeyStore
from gateway.limits.budgets import BUDGET_PERIODS, KEEP_S, LEFT_MAX, Budgets, Reservation, period_at
from gateway.limits.budgets import STEADY_S as BUDGETS_STEADY_S
from gateway.pipeline import PATHS
from gateway.state.database import StateDb
from gateway.telemetry.events import RequestEvent
from gateway.telemetry.ledger import PRUNE_INTERVAL_S, STEADY_S, Ledger
from gateway.upstream.status import retry_after_s
from tests.access import SECRET, token
from tests.support import CHAT, eventually, load_settings

DAY_S = 86_400.0
NOON = datetime(2026, 11, 5, 12, tzinfo=timezone.utc).timestamp()
JUMPS = {"a day": DAY_S, "40 days": 40 * DAY_S, "10 years": 3_653 * DAY_S}
BOTH_WAYS = {f"{name} {way}": sign * by_s for name, by_s in JUMPS.items() for way, sign in (("on", 1), ("back", -1))}
SOURCES = sorted((Path(__file__).resolve().parents[2] / "gateway").rglob("*.py"))


class ClockTest(unittest.TestCase):
    """With a wall clock that the test sets, and a monotonic one that it lets run."""

    def setUp(self) -> None:
        self.now_s = NOON
        self.ran_s = 500.0
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name) / "gateway.db"

    def wall(self) -> float:
        return self.now_s

    def monotonic(self) -> float:
        return self.ran_s

    def run_for(self, seconds: float) -> None:
        self.now_s += seconds
        self.ran_s += seconds

    def open(self) -> StateDb:
        db = StateDb(self.path, flush_interval_s=0.01)
        self.addCleanup(db.close)
        return db

    @contextmanager
    def jumped(self, by_s: float) -> Iterator[None]:
        """For a while the clock is wrong by that much."""
        self.now_s += by_s
        try:
            yield
        finally:
            self.now_s -= by_s


class SourceTest(unittest.TestCase):
    def reads(self, path: Path) -> list[str]:
        """Where a module reads the wall clock."""
        found = []
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Attribute):
                name = ast.unparse(node)
                if name.startswith(("time.time", "datetime.now", "datetime.datetime.now")) or node.attr in (
                    "utcnow",
                    "today",
                ):
                    found.append(f"{path.name}:{node.lineno} {name}")
            if isinstance(node, ast.ImportFrom) and node.module == "time":
                found += [
                    f"{path.name}:{node.lineno} {alias.name}" for alias in node.names if alias.name != "monotonic"
                ]
            if isinstance(node, ast.Call) and ast.unparse(node) in ("time.gmtime()", "time.localtime()"):
                found.append(f"{path.name}:{node.lineno} {ast.unparse(node)}")
        return found

    def test_the_wall_clock_is_read_in_one_module(self) -> None:
        # The mock engine is a program of its own, which imports nothing of the gateway.
        ours = [path for path in SOURCES if "mock" not in path.parts and path.name != "clock.py"]
        self.assertGreater(len(ours), 80)
        self.assertEqual([read for path in ours for read in self.reads(path)], [])
        self.assertEqual(len(self.reads(Path(clock.__file__))), 1)


class JumpWatchTest(ClockTest):
    def test_jumps_are_seen_once_in_either_direction(self) -> None:
        watch = JumpWatch(self.wall, self.monotonic)
        for name, by_s in BOTH_WAYS.items():
            with self.subTest(name):
                self.run_for(3.0)
                self.assertEqual(watch.look(), 0.0)
                self.now_s += by_s
                self.assertAlmostEqual(watch.look(), by_s, places=3)
                self.assertEqual(watch.look(), 0.0)

    def test_a_clock_that_is_corrected_a_little_or_looked_at_late_has_not_jumped(self) -> None:
        watch = JumpWatch(self.wall, self.monotonic)
        for by_s in (0.3, -0.5, JUMP_S / 2):
            self.run_for(7_200.0)
            self.now_s += by_s
            self.assertEqual(watch.look(), 0.0)
        self.assertEqual(watch.steady_s(), 3 * 7_200.0)

    def test_many_small_steps_are_a_jump_in_the_end(self) -> None:
        watch = JumpWatch(self.wall, self.monotonic)
        seen = []
        for _ in range(20):
            self.now_s += JUMP_S / 8
            seen.append(watch.look())
        self.assertEqual(sum(map(bool, seen)), 2)

    def test_after_a_jump_it_has_to_be_steady_anew(self) -> None:
        watch = JumpWatch(self.wall, self.monotonic)
        self.run_for(100.0)
        self.assertEqual(watch.steady_s(), 100.0)
        self.now_s -= DAY_S
        self.assertEqual(watch.steady_s(), 0.0)
        self.run_for(5.0)
        self.assertEqual(watch.steady_s(), 5.0)


class BudgetTest(ClockTest):
    def budgets(self, db: Optional[StateDb] = None) -> Budgets:
        return Budgets(db, self.wall, monotonic=self.monotonic)

    def check(self, budgets: Budgets, period: str, usd: float = 5.0) -> Optional[float]:
        return budgets.check("alice", usd, period, self.now_s)

    def test_a_period_that_began_in_the_future_blocks_nobody_when_the_clock_is_back(self) -> None:
        for on_disk in (False, True):
            for period in BUDGET_PERIODS:
                for name, by_s in BOTH_WAYS.items():
                    with self.subTest(name, period=period, on_disk=on_disk):
                        self.path = self.path.with_name(f"{period}{by_s}.db")
                        budgets = self.budgets(self.open() if on_disk else None)
                        with self.jumped(by_s):
                            self.assertIsNone(self.check(budgets, period))
                            budgets.spend("alice", 9.0)
                            self.assertIsNotNone(self.check(budgets, period))
                            budgets.refresh()
                        same = period_at(period, self.now_s + by_s) == period_at(period, self.now_s)
                        self.assertEqual(self.check(budgets, period) is None, not same)
                        self.assertEqual(budgets.spent_usd("alice"), 9.0 if same else 0.0)

    def test_what_was_spent_in_the_right_period_stays_however_the_clock_jumps(self) -> None:
        for on_disk in (False, True):
            for period in BUDGET_PERIODS:
                for name, by_s in BOTH_WAYS.items():
                    if period_at(period, self.now_s + by_s) == period_at(period, self.now_s):
                        continue
                    with self.subTest(name, period=period, on_disk=on_disk):
                        self.path = self.path.with_name(f"kept{period}{by_s}.db")
                        budgets = self.budgets(self.open() if on_disk else None)
                        self.check(budgets, period)
                        budgets.spend("alice", 4.5)
                        with self.jumped(by_s):
                            self.assertIsNone(self.check(budgets, period))
                            self.assertEqual(budgets.spent_usd("alice"), 0.0)
                            budgets.spend("alice", 1.0)
                            budgets.refresh()
                        budgets.spend("alice", 0.25)  # before anybody has asked again
                        self.assertEqual(budgets.spent_usd("alice"), 4.75)
                        self.assertIsNone(self.check(budgets, period))
                        budgets.spend("alice", 0.25)
                        self.assertEqual(self.check(budgets, period), period_at(period, self.now_s).end_unix_s)
                        with self.jumped(by_s):
                            self.assertIsNone(self.check(budgets, period))
                            self.assertEqual(budgets.spent_usd("alice"), 1.0)

    def test_the_database_has_each_sum_in_its_own_period(self) -> None:
        for name, by_s in BOTH_WAYS.items():
            with self.subTest(name):
                self.path = self.path.with_name(f"sums{by_s}.db")
                db = self.open()
                budgets = self.budgets(db)
                self.check(budgets, "day")
                budgets.spend("alice", 1.0)
                with self.jumped(by_s):
                    budgets.spend("alice", 2.0)
                    there = period_at("day", self.now_s).start_unix_s
                budgets.spend("alice", 4.0)
                db.write_now(lambda connection: None)
                rows = dict(db.read("SELECT period_start_unix_s, spent_usd FROM budget"))
                self.assertEqual(rows, {period_at("day", self.now_s).start_unix_s: 5.0, there: 2.0})
                again = self.budgets(self.open())
                self.check(again, "day")
                self.assertEqual(again.spent_usd("alice"), 5.0)

    def test_what_another_gateway_has_spent_meanwhile_is_known_at_the_next_refresh(self) -> None:
        mine, other = self.budgets(self.open()), self.budgets(self.open())
        self.check(mine, "month")
        self.check(other, "month")
        with self.jumped(40 * DAY_S):
            self.check(mine, "month")
            mine.refresh()
        other.spend("alice", 5.0)
        eventually(lambda: mine.refresh() and self.check(mine, "month") is not None)

    def test_what_is_remembered_is_bounded(self) -> None:
        budgets = self.budgets()
        for _ in range(100):
            self.now_s += DAY_S
            self.check(budgets, "day")
            budgets.spend("alice", 1.0)
        self.assertLessEqual(len(budgets._left["alice"]), LEFT_MAX)

    def test_requests_in_flight_are_measured_by_the_monotonic_clock(self) -> None:
        for name, by_s in BOTH_WAYS.items():
            with self.subTest(name):
                budgets = self.budgets()
                self.check(budgets, "month")
                first = budgets.reserve("alice", 5.0)
                assert isinstance(first, Reservation)
                self.run_for(10.0)
                with self.jumped(by_s):
                    first.release()
                    self.check(budgets, "month")
                    budgets.reserve("alice", 5.0)
                self.check(budgets, "month")
                self.run_for(4.0)
                self.assertEqual(budgets.reserve("alice", 5.0), 6.0)

    def test_a_jump_deletes_no_period_unless_it_lasts_for_an_hour(self) -> None:
        db = self.open()
        budgets = self.budgets(db)
        self.check(budgets, "day")
        budgets.spend("alice", 1.0)
        self.run_for(BUDGETS_STEADY_S)
        with self.jumped(KEEP_S * 90):
            for _ in range(10):
                self.run_for(BUDGETS_STEADY_S / 11)
                budgets.refresh()
        self.now_s = NOON
        db.write_now(lambda connection: None)
        self.assertEqual(len(db.read("SELECT * FROM budget")), 1)
        self.now_s += KEEP_S * 90
        budgets.refresh()
        self.run_for(BUDGETS_STEADY_S)
        budgets.refresh()
        db.write_now(lambda connection: None)
        self.assertEqual(db.read("SELECT * FROM budget"), [])


class LedgerTest(ClockTest):
    def setUp(self) -> None:
        super().setUp()
        self.db = self.open()
        self.ledger = Ledger(self.db, {CHAT}, clock=self.wall, monotonic=self.monotonic)

    def note(self) -> None:
        self.ledger([RequestEvent(self.now_s, "r", "POST", CHAT, 200, None, 0.1)])

    def left(self, ticks: int = 3) -> int:
        for _ in range(ticks):
            self.ledger.tick()
            self.db.write_now(lambda connection: None)
        return len(self.db.read("SELECT 1 FROM ledger"))

    def test_a_clock_that_is_ahead_for_less_than_an_hour_has_nothing_deleted(self) -> None:
        for name, by_s in {**JUMPS, "100 years": 36_525 * DAY_S}.items():
            with self.subTest(name):
                self.note()
                rows = self.left()
                self.run_for(2 * STEADY_S)
                with self.jumped(by_s):
                    for _ in range(9):
                        self.assertEqual(self.left(), rows)
                        self.run_for(STEADY_S / 10)
                self.run_for(STEADY_S / 2)
                self.assertEqual(self.left(), rows)

    def test_a_process_that_starts_with_a_clock_ahead_deletes_nothing_at_first(self) -> None:
        self.note()
        self.now_s += 36_525 * DAY_S
        self.ledger = Ledger(self.db, {CHAT}, clock=self.wall, monotonic=self.monotonic)
        self.note()  # rows of the wrong time do not make it right
        self.assertEqual(self.left(), 2)
        self.run_for(STEADY_S - 1)
        self.assertEqual(self.left(), 2)
        self.run_for(1)
        self.assertEqual(self.left(), 1)

    def test_a_clock_that_was_ahead_does_not_end_the_retention(self) -> None:
        self.note()
        for by_s in (*BOTH_WAYS.values(), *BOTH_WAYS.values()):
            with self.jumped(by_s):
                self.left(1)
                self.run_for(10.0)
        self.assertEqual(self.left(), 1)
        for _ in range(24 * 91):
            self.run_for(PRUNE_INTERVAL_S)
            self.ledger.tick()
        self.assertEqual(self.left(), 0)

    def test_a_clock_that_is_behind_deletes_nothing(self) -> None:
        self.note()
        self.left()
        with self.jumped(-3_653 * DAY_S):
            for _ in range(5):
                self.run_for(STEADY_S)
                self.assertEqual(self.left(), 1)


class KeyTest(ClockTest):
    def setUp(self) -> None:
        super().setUp()
        self.store = KeyStore(self.open(), self.wall)
        self.door = Authenticator(clock=self.wall, monotonic=self.monotonic)
        self.door.store = self.store

    def opens(self, secret: str) -> bool:
        try:
            return self.door.identify(None, secret.encode(), frozenset()).name == "alice"
        except RequestRefused:
            return False

    def test_a_key_is_good_until_its_end_by_the_clock_of_now(self) -> None:
        _, secret = self.store.create("alice", expires_s=30 * DAY_S)
        self.assertTrue(self.opens(secret))
        for name, by_s in BOTH_WAYS.items():
            with self.subTest(name):
                with self.jumped(by_s):
                    self.assertIs(self.opens(secret), by_s < 30 * DAY_S)
                self.assertTrue(self.opens(secret))

    def test_the_grace_of_a_rotated_key_comes_back_with_the_clock(self) -> None:
        _, old = self.store.create("alice")
        _, new = self.store.rotate("alice", grace_s=2 * DAY_S)
        for name, by_s in BOTH_WAYS.items():
            with self.subTest(name):
                with self.jumped(by_s):
                    self.assertIs(self.opens(old), by_s < 2 * DAY_S)
                    self.assertTrue(self.opens(new))
                self.assertTrue(self.opens(old))

    def test_a_revoked_key_stays_revoked(self) -> None:
        _, secret = self.store.create("alice")
        with self.jumped(3_653 * DAY_S):
            self.store.revoke("alice")
        for by_s in (0.0, *BOTH_WAYS.values()):
            with self.jumped(by_s):
                self.assertFalse(self.opens(secret))


class TokenTest(ClockTest):
    def setUp(self) -> None:
        super().setUp()
        self.checks = 0
        self.good = True
        self.verifier = TokenVerifier(self, clock=self.wall)  # type: ignore[arg-type]
        self.door = Authenticator(verifier=self.verifier, clock=self.wall, monotonic=self.monotonic)

    algorithm = "HS256"

    def check(self, key_id: Optional[str], signed: bytes, signature: bytes) -> bool:
        self.checks += 1
        return self.good

    def opens(self, text: str) -> bool:
        try:
            return self.door.identify(b"Bearer " + text.encode(), None, frozenset()).name == "tina"
        except RequestRefused:
            return False

    def test_times_are_forgiven_by_the_leeway_in_both_directions_and_no_further(self) -> None:
        verifier = TokenVerifier(SECRET.encode(), clock=self.wall)
        for claims, first_s, last_s in (
            ({"exp": NOON + 60}, None, 89.0),
            ({"exp": NOON + 1e6, "nbf": NOON}, -30.0, None),
            ({"exp": NOON + 1e6, "iat": NOON}, -30.0, None),
        ):
            text = token(**claims)
            for now_s in (first_s, last_s, 0.0):
                if now_s is not None:
                    self.now_s = NOON + now_s
                    self.assertTrue(verifier.verify(text))
            for edge_s, by_s in ((first_s, -1.0), (last_s, 1.0)):
                if edge_s is not None:
                    self.now_s = NOON + edge_s + by_s
                    with self.subTest(claims=claims), self.assertRaises(TokenRefused):
                        verifier.verify(text)

    def test_a_token_is_judged_by_the_clock_of_now_also_when_it_is_remembered(self) -> None:
        for claims, good_before, good_after in (
            ({"exp": NOON + DAY_S / 2}, True, False),
            ({"exp": NOON + 3_700 * DAY_S, "iat": NOON}, False, True),
        ):
            text = token(**claims)
            self.assertTrue(self.opens(text))
            for name, by_s in BOTH_WAYS.items():
                with self.subTest(name, claims=claims):
                    with self.jumped(by_s):
                        self.ran_s += TOKEN_CACHE_S
                        self.assertIs(self.opens(text), good_after if by_s > 0 else good_before)
                    self.ran_s += TOKEN_CACHE_S
                    self.assertTrue(self.opens(text))

    def test_an_expired_token_is_not_remembered_over_a_jump(self) -> None:
        text = token(exp=NOON + 3_600)
        self.assertTrue(self.opens(text))
        with self.jumped(DAY_S):
            self.assertFalse(self.opens(text), "within the minute")
        self.assertTrue(self.opens(text))

    def test_a_clock_that_is_set_back_does_not_keep_a_token_from_being_looked_at(self) -> None:
        text = token(exp=NOON + 1e9)
        for name, by_s in BOTH_WAYS.items():
            with self.subTest(name):
                self.good = True
                self.run_for(TOKEN_CACHE_S)
                self.assertTrue(self.opens(text))
                self.good = False  # its signing key has been withdrawn
                with self.jumped(by_s):
                    self.run_for(TOKEN_CACHE_S - 1)
                    seen = self.checks
                    self.assertTrue(self.opens(text))
                    self.assertEqual(self.checks, seen)
                    self.run_for(1)
                    self.assertFalse(self.opens(text))
                self.run_for(TOKEN_CACHE_S)


class RetryAfterTest(ClockTest):
    def test_a_date_counts_from_the_answers_own_date(self) -> None:
        until = email.utils.formatdate(NOON + 7, usegmt=True).encode()
        sent = email.utils.formatdate(NOON, usegmt=True).encode()
        for name, by_s in BOTH_WAYS.items():
            with self.subTest(name), mock.patch.object(clock, "_read", lambda by_s=by_s: NOON + by_s):
                self.assertEqual(retry_after_s(until, sent), 7.0)
                self.assertEqual(retry_after_s(sent, until), 0.0)
                for unread in (None, b"", b"yesterday", b"1 Jan 2026 0:0:99999999999999999999"):
                    self.assertEqual(retry_after_s(until, unread), max(0.0, 7.0 - by_s))

    def test_seconds_are_seconds(self) -> None:
        self.assertEqual(retry_after_s(b"3", b"whatever"), 3.0)


class GuardTest(ClockTest):
    def test_a_jump_is_logged_once(self) -> None:
        lines: list[tuple[str, str, dict[str, Any]]] = []
        settings = load_settings({"STATE_DB": self.path})
        with mock.patch.object(clock, "_read", self.wall):
            guard = Guard(settings, lambda level, event, **f: lines.append((level, event, f)), frozenset(PATHS))
            self.addCleanup(guard.close, 5.0)
            guard.tick()
            self.now_s -= 40 * DAY_S
            guard.tick()
            guard.tick()
        self.assertEqual([(level, event) for level, event, _ in lines], [("warning", "clock_jumped")])
        self.assertAlmostEqual(lines[0][2]["by_s"], -40 * DAY_S, delta=5.0)


if __name__ == "__main__":
    unittest.main()
