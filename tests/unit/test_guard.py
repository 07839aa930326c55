"""The door as a whole, without sockets: what opens the state database, what is refused, audited, learnt and charged."""

from __future__ import annotations

import importlib.util
import json
import sqlite3
import tempfile
import threading
import time
import unittest
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional
from unittest import mock

from gateway.admitting import admission_of
from gateway.configuration import ConfigurationError
from gateway.errors import GatewayError
from gateway.guard import ADDRESSES_LOGGED_MAX, REFUSALS_LOGGED_PER_S, Guard
from gateway.keys.auth import Identity
from gateway.keys.roles import DEFAULT_ROLES
from gateway.keys.store import KeyStore
from gateway.limits.limiter import Admission, KeyLimits
from gateway.limits.prices import TokensAtMost
from gateway.pipeline import PATHS
from gateway.state.database import StateDb, StateDbError
from gateway.telemetry.events import RequestEvent
from tests.access import Clock
from tests.support import CHAT, eventually, load_settings

NOTHING: frozenset[bytes] = frozenset()


CODE_BY_STATUS = {200: None, 500: "internal_error", 502: "backend_error", 503: "overloaded", 504: "gateway_timeout"}


def finished(status: int = 200, *, path: str = CHAT, attempts: int = 1, queue_s: float = 0.0) -> RequestEvent:
    code = CODE_BY_STATUS.get(status, "backend_rejected")
    return RequestEvent(time.time(), "r", "POST", path, status, code, 0.1, queue_s, attempts=attempts, key="alice")


class GuardTest(unittest.TestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)
        self.db = self.directory / "gateway.db"
        self.lines: list[tuple[str, str, dict[str, Any]]] = []
        self.clock = Clock(1_000.0)

    def guard(self, **variables: object) -> Guard:
        settings = load_settings({"STATE_DB": self.db, **variables})
        guard = Guard(
            settings,
            lambda level, event, **fields: self.lines.append((level, event, fields)),
            frozenset(PATHS),
            self.clock,
        )
        self.addCleanup(guard.close, 5.0)
        return guard

    def create(self, name: str = "alice", **fields: Any) -> str:
        """A key, made by another process."""
        with StateDb(self.db) as db:
            return KeyStore(db).create(name, **fields)[1]

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [fields for _, name, fields in self.lines if name == event]

    def identify(self, guard: Guard, key: str) -> Identity:
        return guard.identify({b"x-api-key": key.encode()}, NOTHING, "10.0.0.1")

    def refusal(self, guard: Guard, key: str, address: str = "10.0.0.1") -> GatewayError:
        with self.assertRaises(GatewayError) as caught:
            guard.identify({b"x-api-key": key.encode()}, NOTHING, address)
        return caught.exception

    def state_db_threads(self) -> int:
        return sum(thread.name == "state-db" for thread in threading.enumerate())


class OpeningTest(GuardTest):
    def test_without_anything_to_keep_there_is_no_database(self) -> None:
        guard = self.guard()
        guard.tick()
        self.assertIsNone(guard.db)
        self.assertFalse(guard.authenticator.required)
        self.assertFalse(self.db.exists())

    def test_the_ledger_is_on_off_or_as_the_file_is_there(self) -> None:
        self.assertIsNotNone(self.guard(LEDGER="on").ledger)
        self.assertTrue(self.db.exists())
        self.assertIsNotNone(self.guard(LEDGER="auto").ledger)
        without = self.guard(LEDGER="off")
        self.assertIsNone(without.ledger)
        self.assertIsNotNone(without.db)  # keys may live in it

    def test_the_first_key_made_elsewhere_is_seen_by_the_next_tick(self) -> None:
        guard = self.guard()
        self.assertEqual(self.identify(guard, "whatever").role, "admin")
        secret = self.create(rpm=7)
        guard.tick()
        self.assertEqual(self.identify(guard, secret).limits.rpm, 7)
        self.refusal(guard, "whatever")
        self.assertIsNotNone(guard.ledger)

    def test_revoking_and_rotating_elsewhere_is_seen_by_the_next_tick(self) -> None:
        secret = self.create()
        guard = self.guard()
        self.assertEqual(self.identify(guard, secret).name, "alice")
        with StateDb(self.db) as db:
            KeyStore(db).revoke("alice")
        guard.tick()
        self.refusal(guard, secret)

    def test_it_is_opened_once_however_many_ask_for_it_at_once(self) -> None:
        guard = self.guard()
        before = self.state_db_threads()
        barrier = threading.Barrier(8)
        found: list[StateDb] = []

        def open_it() -> None:
            barrier.wait()
            found.append(guard.open_db())

        threads = [threading.Thread(target=open_it) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(len(set(map(id, found))), 1)
        self.assertEqual(self.state_db_threads(), before + 1)

    def test_a_file_that_is_no_database_leaves_nothing_half_open(self) -> None:
        guard = self.guard()
        self.db.write_bytes(b"not a database, but long enough to be looked at " * 40)
        before = self.state_db_threads()
        with self.assertRaises(StateDbError):
            guard.tick()
        self.assertIsNone(guard.db)
        self.assertIsNone(guard.authenticator.store)
        self.assertEqual(self.state_db_threads(), before)
        self.db.unlink()
        secret = self.create()
        guard.tick()
        self.assertEqual(self.identify(guard, secret).name, "alice")

    def test_a_table_that_cannot_be_read_leaves_nothing_half_open(self) -> None:
        self.create()
        connection = sqlite3.connect(str(self.db))
        connection.execute("UPDATE keys SET models = 'not json'")
        connection.commit()
        connection.close()
        before = self.state_db_threads()
        with self.assertRaises(StateDbError):
            self.guard()
        eventually(lambda: self.state_db_threads() == before)

    def test_databases_that_cannot_be_used_are_an_error_at_start(self) -> None:
        garbage = self.directory / "garbage.db"
        garbage.write_bytes(b"x" * 5_000)
        settings = load_settings({"LEDGER": "on"})
        for path in (self.directory, garbage, self.directory / ("x" * 300), garbage / "below-a-file.db"):
            for ledger in ("on", "auto"):
                if ledger == "auto" and path.parent == garbage:
                    continue  # there is no such file, and nobody asks for one
                with self.subTest(path=str(path)[-30:], ledger=ledger):
                    with self.assertRaises(StateDbError) as caught:
                        Guard(replace(settings, state_db=path, ledger=ledger), lambda *_, **__: None, frozenset(PATHS))
                    self.assertIn(str(path), str(caught.exception))

    def test_the_thread_says_what_goes_wrong_once_and_goes_on(self) -> None:
        guard = self.guard()
        self.db.write_bytes(b"x" * 5_000)
        ticks: list[int] = []
        tick = guard.tick

        def counted() -> None:
            ticks.append(1)
            tick()

        guard.tick = counted  # type: ignore[method-assign]
        guard._stop.wait = lambda timeout=None: guard._stop.is_set()  # type: ignore[method-assign]
        guard.start()
        eventually(lambda: len(ticks) >= 3)
        guard.close(5.0)
        self.assertEqual(len(self.logged("policy")), 1)
        self.assertIn(str(self.db), self.logged("policy")[0]["message"])


class ConfigurationTest(GuardTest):
    def faults(self, **variables: object) -> str:
        with self.assertRaises(ConfigurationError) as caught:
            self.guard(**variables)
        return "\n".join(caught.exception.faults)

    def test_a_database_without_a_key_does_not_open_the_gateway_to_others(self) -> None:
        StateDb(self.db).close()  # as a ledger leaves it
        before = self.state_db_threads()
        self.assertIn("HOST: ", self.faults(HOST="0.0.0.0"))
        eventually(lambda: self.state_db_threads() == before)
        self.create()
        self.assertTrue(self.guard(HOST="0.0.0.0").authenticator.required)
        self.assertFalse(self.guard(HOST="0.0.0.0", AUTH="off").authenticator.required)

    def test_a_faulty_file_of_roles_is_named(self) -> None:
        path = self.directory / "roles.json"
        path.write_text('{"ops": {"permissions": ["fly"]}, "odd": 3}', "utf-8")
        text = self.faults(ROLES_FILE=path)
        self.assertEqual(text.count(f"ROLES_FILE: {path}: "), 2)
        self.assertIn("fly", text)
        self.assertIn("ROLES_FILE: ", self.faults(ROLES_FILE=self.directory / "missing.json"))

    def test_a_key_set_that_cannot_be_used_is_named(self) -> None:
        text = self.faults(JWT_JWKS=self.directory / "missing.json", JWT_ALGORITHM="RS256")
        self.assertTrue(text.startswith("JWT_JWKS: "), text)
        if importlib.util.find_spec("jwt") is None:
            self.assertIn("pip install '.[jwt]'", text)

    def test_switched_off_nobody_is_asked_and_no_token_is_looked_at(self) -> None:
        self.create()
        guard = self.guard(AUTH="off", JWT_SECRET="x" * 32, API_KEYS="bob:key")
        self.assertEqual(self.identify(guard, "wrong").role, "admin")


class WaitingTest(GuardTest):
    def test_only_what_may_be_a_token_for_a_key_set_may_wait(self) -> None:
        guard = self.guard(API_KEYS="alice:k-alice")
        token = b"a.b.c"
        self.assertFalse(guard.may_wait({b"authorization": b"Bearer " + token}))
        guard.reads_keys = True
        guard.authenticator._verifier = mock.Mock(must_wait=lambda token: True)  # its keys are not there yet
        for headers, waits in (
            ({b"authorization": b"Bearer " + token}, True),
            ({b"x-api-key": token}, True),
            ({b"authorization": b"Basic dTpw", b"x-api-key": token}, True),
            ({b"authorization": b"Bearer " + token, b"x-api-key": token}, True),
            ({b"authorization": b"Bearer " + token, b"x-api-key": b"k-alice"}, False),  # refused at once
            ({b"authorization": b"Basic " + token}, False),
            ({b"authorization": b"Bearer k-alice"}, False),
            ({}, False),
        ):
            with self.subTest(headers=headers):
                self.assertIs(guard.may_wait(headers), waits)


class AuditTest(GuardTest):
    def test_refusals_are_logged_a_few_times_a_second_and_address(self) -> None:
        guard = self.guard(API_KEYS="alice:k-alice")
        for _ in range(20):
            self.refusal(guard, "guess")
            self.refusal(guard, "guess", "10.0.0.2")
        logged = self.logged("authentication_refused")
        self.assertEqual([line["client"] for line in logged].count("10.0.0.1"), REFUSALS_LOGGED_PER_S)
        self.assertEqual([line["client"] for line in logged].count("10.0.0.2"), REFUSALS_LOGGED_PER_S)
        self.assertNotIn("guess", str(logged))
        self.clock.now_s += 1
        self.refusal(guard, "guess")
        self.assertEqual(len(self.logged("authentication_refused")), 2 * REFUSALS_LOGGED_PER_S + 1)

    def test_a_flood_from_everywhere_is_bounded(self) -> None:
        guard = self.guard(API_KEYS="alice:k-alice")
        for number in range(ADDRESSES_LOGGED_MAX + 500):
            self.refusal(guard, "guess", f"10.1.{number // 250}.{number % 250}")
        self.assertLessEqual(len(self.logged("authentication_refused")), ADDRESSES_LOGGED_MAX)
        self.assertLessEqual(len(guard._refused), ADDRESSES_LOGGED_MAX)


class AdmissionTest(GuardTest):
    ALICE = Identity("alice", "user", DEFAULT_ROLES["user"], limits=KeyLimits(60, 1_000, 2), is_key=True)

    def admit(self, guard: Guard, identity: Identity = ALICE, tokens: int = 1, model: str = "echo") -> Admission:
        return admission_of(guard, identity, model, "10.0.0.1", lambda: TokensAtMost(tokens))

    def refused(self, guard: Guard, identity: Identity = ALICE, tokens: int = 1, model: str = "echo") -> GatewayError:
        with self.assertRaises(GatewayError) as caught:
            self.admit(guard, identity, tokens, model)
        return caught.exception

    def test_a_refusal_names_the_limit_and_when_to_come_back(self) -> None:
        guard = self.guard()
        for _ in range(6):
            self.admit(guard).release_concurrency()
        error = self.refused(guard)
        self.assertEqual((error.code, error.status), ("rate_limit_exceeded", 429))
        self.assertEqual(error.details, {"limit": "key requests per minute"})
        self.assertIn("60 key requests per minute", error.message)
        self.assertIn(("x-ratelimit-remaining-requests", "0"), error.headers)
        assert error.retry_after_s is not None
        self.clock.now_s += error.retry_after_s
        self.admit(guard)

    def test_what_could_never_pass_is_the_callers_fault(self) -> None:
        error = self.refused(self.guard(), tokens=1_001)
        self.assertEqual((error.code, error.status, error.retry_after_s), ("request_exceeds_limit", 400, None))
        self.assertIn("1001 tokens", error.message)

    def test_tokens_are_not_counted_where_no_limit_asks_for_them(self) -> None:
        guard = self.guard()

        def count() -> TokensAtMost:
            raise AssertionError("counted")

        admission_of(guard, Identity("bob", "user"), "echo", "10.0.0.1", count)

    def test_looking_takes_nothing(self) -> None:
        guard = self.guard()
        for _ in range(20):
            headers = dict(guard.limit_headers(self.ALICE, "echo", "10.0.0.1"))
        self.assertEqual(headers["x-ratelimit-remaining-requests"], "6")
        self.assertEqual(headers["x-ratelimit-remaining-tokens"], "1000")
        self.assertEqual(dict(self.admit(guard).headers())["x-ratelimit-remaining-requests"], "5")

    def test_a_request_that_a_limit_refuses_reserves_nothing_of_a_budget(self) -> None:
        self.create(budget_usd=1.0, budget_period="day")
        priced = {"m": {"engines": ["http://127.0.0.1:9/v1"], "price": {"input": 1_000_000, "output": 1_000_000}}}
        path = self.db.with_name("engines.json")
        path.write_text(json.dumps({"models": priced}), "utf-8")
        guard = self.guard(ENGINES_FILE=path)
        poor = self.ALICE._replace(budget_usd=1.0, budget_period="day")
        for _ in range(3):
            error = self.refused(guard, poor, tokens=1_001, model="m")
            self.assertEqual(error.code, "request_exceeds_limit")
        admission = self.admit(guard, poor, model="m")
        error = self.refused(guard, poor, model="m")
        self.assertEqual((error.code, error.retry_after_s), ("budget_exceeded", 1.0))
        self.assertIn("in flight", error.message)
        self.admit(guard, poor, model="other").release_concurrency()  # which costs nothing
        admission.settle(0)
        self.admit(guard, poor, model="m")

    def test_a_spent_budget_says_until_when(self) -> None:
        self.create(budget_usd=1.0, budget_period="day")
        guard = self.guard()
        poor = self.ALICE._replace(budget_usd=1.0, budget_period="day")
        self.admit(guard, poor).release_concurrency()
        guard.spend(poor, 0.79)
        self.assertEqual(self.logged("budget_warning"), [])
        guard.spend(poor, 0.02)
        warning = self.logged("budget_warning")[0]
        self.assertEqual((warning["key"], warning["budget_usd"]), ("alice", 1.0))
        self.admit(guard, poor).release_concurrency()
        guard.spend(poor, 0.5)
        error = self.refused(guard, poor)
        self.assertEqual((error.code, error.status), ("budget_exceeded", 429))
        assert error.retry_after_s is not None and error.details is not None
        self.assertTrue(0 < error.retry_after_s <= 86_400)
        self.assertRegex(str(error.details["reset"]), r"^\d{4}-\d\d-\d\dT00:00:00Z$")
        self.assertEqual(len(self.logged("budget_warning")), 1)

    def test_a_key_without_a_budget_is_not_charged(self) -> None:
        self.create()
        guard = self.guard()
        guard.spend(self.ALICE, 5.0)
        guard.spend(None, 5.0)
        self.assertEqual(guard.budgets.spent_usd("alice"), 0.0)

    def test_prices_and_limits_follow_the_fleet(self) -> None:
        path = self.directory / "engines.json"
        path.write_text(
            '{"models": {"m": {"engines": ["echo:"], "rpm": 60, "price": {"input": 2, "output": 4}},'
            ' "n": {"engines": ["echo:"]}}}',
            "utf-8",
        )
        guard = self.guard()
        self.assertIsNone(guard.cost("m", 1, 1))
        guard.set_fleet(load_settings({"ENGINES_FILE": path}).fleet)
        self.assertEqual(guard.cost("m", 500_000, 250_000), 2.0)
        self.assertIsNone(guard.cost("n", 1, 1))
        self.assertIsNone(guard.cost(None, 1, 1))
        bob = Identity("bob", "user")
        for _ in range(6):
            self.admit(guard, bob, model="m")
            self.admit(guard, bob, model="n")
        self.assertEqual(self.refused(guard, bob, model="m").details, {"limit": "model requests per minute"})


class LearningTest(GuardTest):
    def factors_after(self, events: list[RequestEvent], **variables: object) -> Optional[float]:
        guard = self.guard(**variables)
        guard.tick()
        guard.observe(events)
        self.clock.now_s += 1
        guard.tick()
        return guard.adaptive.factors()["low"]

    def test_calm_requests_change_nothing(self) -> None:
        self.assertEqual(self.factors_after([finished()] * 10), 1.0)

    def test_failures_and_waits_shrink_the_limits(self) -> None:
        self.assertEqual(self.factors_after([finished(502)] * 10), 0.5)
        broken = finished()._replace(error="backend_error", stream=True)
        self.assertEqual(self.factors_after([broken] * 10), 0.5)
        self.assertEqual(self.factors_after([finished(queue_s=3.0)] * 10), 0.5)

    def test_what_never_came_to_an_engine_counts_as_well(self) -> None:
        self.assertEqual(self.factors_after([finished(503, attempts=0, queue_s=30.0)] * 10), 0.5)
        self.assertEqual(self.factors_after([finished(503, attempts=0)] * 10), 0.5)

    def test_what_the_caller_did_wrong_does_not_count(self) -> None:
        events = [finished(status, attempts=0) for status in (400, 401, 403, 404, 429)] * 10
        self.assertEqual(self.factors_after([*events, finished(500, path="/health")]), 1.0)

    def test_targets_of_0_are_off(self) -> None:
        off: dict[str, object] = {"RATE_LIMIT_TARGET_WAIT": 0, "RATE_LIMIT_TARGET_ERRORS": 0}
        self.assertEqual(self.factors_after([finished(502, queue_s=9.0)] * 10, **off), 1.0)

    def test_shrunk_limits_reach_the_limiter(self) -> None:
        guard = self.guard()
        slow = AdmissionTest.ALICE._replace(priority="low")
        guard.tick()
        guard.observe([finished(502)] * 10)
        self.clock.now_s += 1
        guard.tick()
        headers = dict(guard.limit_headers(slow, "echo", "10.0.0.1"))
        self.assertEqual(headers["x-ratelimit-limit-requests"], "30")


class EndTest(GuardTest):
    def test_what_was_spent_and_noted_last_is_written_when_it_ends(self) -> None:
        self.create(budget_usd=10.0)
        guard = self.guard()
        identity = AdmissionTest.ALICE._replace(budget_usd=10.0)
        admission_of(guard, identity, "echo", "10.0.0.1", lambda: TokensAtMost(1))
        guard.spend(identity, 2.5)
        guard.observe([finished() for _ in range(100)])
        guard.close(5.0)
        again = self.guard()
        assert again.db is not None
        self.assertEqual(self.one(again.db, "SELECT count(*) FROM ledger"), 100)
        self.assertEqual(self.one(again.db, "SELECT spent_usd FROM budget"), 2.5)

    def one(self, db: StateDb, sql: str) -> Any:
        def values() -> Iterator[Any]:
            for row in db.read(sql):
                yield row[0]

        return next(values())


if __name__ == "__main__":
    unittest.main()
