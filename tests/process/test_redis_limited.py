"""Gateways that share their limits in a real Redis, asked by clients; Redis is stopped and killed meanwhile.

Skipped where redis-server or the package redis is missing; with REQUIRE_REDIS=1 that is a failure (test_redis_store).
"""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import threading
import time
import unittest
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

from gateway.keys.store import KeyStore
from gateway.routing.standing import HINTED
from gateway.shared import limits as shared_limits
from gateway.shared.budgets import Reserved
from gateway.state.database import StateDb
from gateway.steps import drive
from tests.access import AccessTest, ask, bearer
from tests.process.test_redis_store import Server, needs_redis
from tests.support import CHAT, TIMEOUT_S, Header, RunningGateway, eventually

ECHO = {"echo": {"engines": ["echo:"]}}
SHORT_MS = 300


@needs_redis
class SharedLimitsTest(AccessTest):
    def setUp(self) -> None:
        super().setUp()
        self.server = Server.for_test(self).start()

    def gateways(self, count: int = 2, models: Any = None, **variables: object) -> list[RunningGateway]:
        url = f"redis://127.0.0.1:{self.server.port}/0"
        values: dict[str, object] = {"REDIS_URL": url, "REDIS_TIMEOUT_MS": 20_000, **variables}
        found = [self.serve(models or ECHO, **values) for _ in range(count)]
        for running in found:
            eventually(lambda running=running: self.limits(running).peers == count)
        return found

    def limits(self, running: RunningGateway) -> Any:
        shared = running.app.guard.shared
        assert shared is not None
        return shared.limits

    def statuses(self, runnings: list[RunningGateway], count: int) -> Counter[int]:
        return Counter(running.post(ask()).status for _ in range(count) for running in runnings)

    def test_a_limit_holds_for_all_of_them_and_the_headers_tell_it(self) -> None:
        first, second = self.gateways(RATE_LIMIT_GLOBAL_RPM=60)
        answer = first.post(ask())
        self.assertEqual(answer.status, 200)
        self.assertEqual(answer.header("x-ratelimit-limit-requests"), "60")
        self.assertEqual(answer.header("x-ratelimit-remaining-requests"), "5")
        self.assertEqual(second.post(ask()).header("x-ratelimit-remaining-requests"), "4")
        began_s = time.monotonic()
        statuses = self.statuses([first, second], 10)
        more = int(time.monotonic() - began_s)  # that may have passed meanwhile, one a second
        self.assertIn(statuses[200], range(4, 5 + more + 1))
        refused = second.post(ask())
        if refused.status != 200:
            self.assert_error(refused, 429, "rate_limit_exceeded")
            self.assertEqual(refused.header("x-ratelimit-limit-requests"), "60")
            self.assertEqual(refused.header("retry-after"), "1")

    def test_tokens_are_settled_and_places_released_for_all(self) -> None:
        first, second = self.gateways(RATE_LIMIT_TPM=100_000, RATE_LIMIT_CONCURRENCY=1, API_KEYS="alice:sk-alice-1234")
        headers = [("X-API-Key", "sk-alice-1234")]
        for running in (first, second, first, second):  # the other one hears of an end a moment later
            eventually(lambda running=running: running.post(ask(max_tokens=60_000), headers=headers).status == 200)

        def left() -> int:
            return int(first.post(ask(), headers=headers).header("x-ratelimit-remaining-tokens") or 0)

        eventually(lambda: left() > 99_000)

    def test_streams_and_other_dialects_are_counted(self) -> None:
        first, second = self.gateways(RATE_LIMIT_GLOBAL_RPM=60)
        self.assertIn(b"[DONE]", first.post(ask(stream=True)).body)
        body = {"model": "echo", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
        answer = second.post(body, "/v1/messages")
        self.assertEqual(answer.status, 200, answer.body)
        self.assertEqual(first.post(ask()).header("x-ratelimit-remaining-requests"), "3")

    def test_what_no_limit_applies_to_is_not_asked_of_redis(self) -> None:
        [running] = self.gateways(1)
        self.server.signal(signal.SIGSTOP)
        self.addCleanup(self.server.signal, signal.SIGCONT)
        self.assertEqual(self.statuses([running], 3), {200: 3})
        self.assertEqual(set(self.limits(running).decided.values()), {0})

    def test_redis_stopped_each_takes_its_share_within_the_bound_and_redis_is_used_again(self) -> None:
        first, second = self.gateways(RATE_LIMIT_GLOBAL_RPM=600, REDIS_TIMEOUT_MS=SHORT_MS)
        self.server.signal(signal.SIGSTOP)
        self.addCleanup(self.server.signal, signal.SIGCONT)
        began_s = time.monotonic()
        statuses = self.statuses([first, second], 100)
        took_s = time.monotonic() - began_s
        self.assertLess(took_s, TIMEOUT_S)
        self.assertGreaterEqual(
            statuses[200], 12
        )  # a fiftieth of a minute's at once, half of it at each, then the rate
        self.assertLessEqual(statuses[200], 14 + 10 * took_s)
        self.assertEqual(sum(statuses.values()), statuses[200] + statuses[429])
        self.assertEqual(first.metrics()['gateway_shared_state{mode="local"}'], 1.0)
        lines = [line for line in first.log_lines() if line["event"] == "shared_state"]
        self.assertEqual([line["mode"] for line in lines], ["local"])
        self.assertEqual(lines[0]["gateways"], 2)
        self.server.signal(signal.SIGCONT)
        for running in (first, second):
            running.wait_for_metric('gateway_shared_state{mode="shared"}', 1.0)
        shared = first.metrics()['gateway_shared_decisions_total{mode="shared"}']
        first.post(ask())
        self.assertEqual(first.metrics()['gateway_shared_decisions_total{mode="shared"}'], shared + 1)

    def test_closed_says_so_with_503(self) -> None:
        [running] = self.gateways(1, RATE_LIMIT_GLOBAL_RPM=600, REDIS_TIMEOUT_MS=SHORT_MS, SHARED_FAIL="closed")
        self.server.kill()
        answer = running.post(ask())
        self.assert_error(answer, 503, "limits_unavailable")
        self.assertEqual(answer.header("retry-after"), "1")
        self.assertEqual(running.get("/v1/models").status, 200)
        self.server.start()
        running.wait_for_metric('gateway_shared_state{mode="shared"}', 1.0)
        self.assertEqual(running.post(ask()).status, 200)
        running.stop()
        self.assertEqual(running.app.pipeline.in_flight, 0)

    def test_a_stop_in_the_middle_of_many_hangs_nobody_and_loses_no_place(self) -> None:
        keys = {"API_KEYS": "alice:sk-alice-1234", "RATE_LIMIT_CONCURRENCY": 1000}
        self.enter(mock.patch.object(shared_limits, "LEASE_S", 3.0))
        first, second = self.gateways(REDIS_TIMEOUT_MS=SHORT_MS, **keys)
        headers = [("X-API-Key", "sk-alice-1234")]
        statuses: Counter[int] = Counter()
        over = threading.Event()

        def go_on(running: RunningGateway) -> None:
            with running.connect() as client:
                while not over.is_set():
                    statuses[client.ask("POST", CHAT, ask(), headers).status] += 1

        threads = [threading.Thread(target=go_on, args=(one,)) for one in (first, second) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for number in (signal.SIGSTOP, signal.SIGCONT) * 2:
                before = statuses[200]
                self.server.signal(number)
                mode = "local" if number == signal.SIGSTOP else "shared"
                eventually(lambda mode=mode: {self.limits(one).mode for one in (first, second)} == {mode})
                eventually(lambda before=before: statuses[200] > before + 50)
        finally:
            over.set()
            self.server.signal(signal.SIGCONT)
            for thread in threads:
                thread.join(TIMEOUT_S)
        self.assertEqual(set(statuses), {200})
        for running in (first, second):
            eventually(lambda running=running: not running.app.pipeline.in_flight)
            eventually(lambda running=running: not self.limits(running)._held)
        import redis  # type: ignore[import-not-found,unused-ignore]

        with redis.Redis(port=self.server.port) as client:
            for name in client.keys("{igw}:p:*"):  # what was to be released and was lost comes free by itself
                eventually(lambda name=name: not client.zcount(name, time.time() - 1_750_000_000, "+inf"))


class CopiesTest(AccessTest):
    """Gateways with copies of one database, on disks of their own."""

    models: Any = ECHO

    def setUp(self) -> None:
        super().setUp()
        self.server = Server.for_test(self).start()

    def gateway_with(self, db: Path) -> RunningGateway:
        url = f"redis://127.0.0.1:{self.server.port}/0"
        return self.serve(self.models, STATE_DB=db, REDIS_URL=url, REDIS_TIMEOUT_MS=SHORT_MS)

    def two_with_keys(
        self, *names: str, **fields: Any
    ) -> tuple[RunningGateway, RunningGateway, dict[str, list[Header]]]:
        """Two gateways that know these keys, and the headers of each key."""
        with StateDb(self.db) as db:
            store = KeyStore(db)
            headers = {name: bearer(store.create(name, **fields)[1]) for name in names}
        return self.gateway_with(self.db), self.gateway_with(self.copy_of(self.db, "copy.db")), headers

    def copied(self) -> Path:
        """The copy, copied: it does not know what is revoked."""
        return self.copy_of(self.directory / "copy.db", "another.db")

    def copy_of(self, db: Path, name: str) -> Path:
        copy = self.directory / name
        with contextlib.closing(sqlite3.connect(db)) as source, contextlib.closing(sqlite3.connect(copy)) as target:
            source.backup(target)
        return copy


@needs_redis
class RevocationsTest(CopiesTest):
    def test_a_key_revoked_at_one_is_refused_at_the_others_within_a_second(self) -> None:
        first, second, headers = self.two_with_keys("alice", "bob")
        first.app.guard.store.revoke("alice")
        revoked_s = time.monotonic()
        eventually(lambda: second.post(ask(), headers=headers["alice"]).status == 401)
        self.assertLess(time.monotonic() - revoked_s, TIMEOUT_S / 4)  # of a machine with other things to do
        self.assertEqual(second.post(ask(), headers=headers["bob"]).status, 200)
        with StateDb(self.db) as db:  # as `keys revoke` does
            KeyStore(db).revoke("bob")
        eventually(lambda: second.post(ask(), headers=headers["bob"]).status == 401)

    def test_an_outage_and_an_emptied_redis_lose_no_revocation(self) -> None:
        first, second, headers = self.two_with_keys("alice", "bob")
        eventually(lambda: second.app.guard.shared.limits.peers == 2)  # type: ignore[union-attr]
        self.server.kill()
        first.app.guard.store.revoke("alice")
        self.assertEqual(second.post(ask(), headers=headers["alice"]).status, 200)
        self.server.start()  # and it knows nothing
        eventually(lambda: second.post(ask(), headers=headers["alice"]).status == 401)
        first.stop()
        self.server.kill()
        self.server.start()
        third = self.gateway_with(self.copied())
        eventually(lambda: third.post(ask(), headers=headers["alice"]).status == 401)  # by the second one's word
        self.assertEqual(third.post(ask(), headers=headers["bob"]).status, 200)


@needs_redis
class BudgetsTest(CopiesTest):
    """A request costs 10 cents at most, and a little less than 1 in the end."""

    models: Any = {"echo": {"engines": ["echo:"], "price": {"input": 0.0, "output": 1000.0}}}
    BODY: Any = ask(max_tokens=100)

    def statuses(self, running: RunningGateway, headers: list[Header], most: int = 400) -> Counter[int]:
        statuses: Counter[int] = Counter()
        while sum(statuses.values()) < most and not statuses[429]:
            statuses[running.post(self.BODY, headers=headers).status] += 1
        return statuses

    def cost_usd(self, running: RunningGateway, headers: list[Header]) -> float:
        return float(running.post(self.BODY, headers=headers).header("x-gateway-cost-usd") or 0.0)

    def test_a_budget_holds_for_gateways_with_databases_of_their_own(self) -> None:
        first, second, headers = self.two_with_keys("alice", budget_usd=0.5, budget_period="day")
        cost = self.cost_usd(first, headers["alice"])
        self.assertGreater(cost, 0.0)
        most = int(0.5 / cost) + 3
        passed = 1
        for running in (first, second) * most:  # one at a time: at most one goes beyond
            passed += running.post(self.BODY, headers=headers["alice"]).status == 200
        self.assertGreaterEqual(passed * cost, 0.5)
        self.assertLessEqual((passed - 2) * cost, 0.5)
        refused = second.post(self.BODY, headers=headers["alice"])
        self.assert_error(refused, 429, "budget_exceeded")
        self.assertIn("is spent until", refused.json()["message"])
        third = self.gateway_with(self.copied())
        self.assert_error(third.post(self.BODY, headers=headers["alice"]), 429, "budget_exceeded")

    def test_what_another_has_reserved_is_taken_until_it_ends(self) -> None:
        first, second, headers = self.two_with_keys("alice", budget_usd=0.05, budget_period="day")
        for running in (first, second):
            eventually(lambda running=running: running.app.guard.shared.limits.peers == 2)
            self.cost_usd(running, headers["alice"])
        shared = first.app.guard.shared
        assert shared is not None
        reserved = drive(shared.budgets.reserve("alice", 0.05, 0.1, time.time()))
        assert isinstance(reserved, Reserved)
        refused = second.post(self.BODY, headers=headers["alice"])
        self.assert_error(refused, 429, "budget_exceeded")
        self.assertIn("requests in flight", refused.json()["message"])
        reserved.release()
        eventually(lambda: second.post(self.BODY, headers=headers["alice"]).status == 200)

    def test_an_emptied_redis_is_told_what_was_spent(self) -> None:
        first, second, headers = self.two_with_keys("alice", budget_usd=0.05, budget_period="month")
        self.statuses(first, headers["alice"])
        self.server.kill()
        self.server.start()
        eventually(lambda: first.app.guard.shared.limits.mode == "shared")  # type: ignore[union-attr]
        eventually(lambda: first.post(self.BODY, headers=headers["alice"]).status == 429)
        eventually(lambda: second.post(self.BODY, headers=headers["alice"]).status == 429)

    def test_without_redis_together_they_stay_within_what_was_left(self) -> None:
        first, second, headers = self.two_with_keys("alice", budget_usd=0.5, budget_period="day")
        for running in (first, second):
            eventually(lambda running=running: running.app.guard.shared.limits.peers == 2)
        cost = self.cost_usd(first, headers["alice"])
        self.server.kill()
        passed = 1 + sum(self.statuses(running, headers["alice"])[200] for running in (first, second))
        self.assertGreaterEqual(passed * cost, 0.4)
        self.assertLessEqual((passed - 3) * cost, 0.5)
        self.server.start()
        for running in (first, second):
            eventually(lambda running=running: running.app.guard.shared.limits.mode == "shared")
        eventually(lambda: first.post(self.BODY, headers=headers["alice"]).status == 429)
        spent = first.app.guard.budgets.spent_usd("alice")
        self.assertGreater(spent, 0.4)


@needs_redis
class HintsTest(AccessTest):
    def test_an_engine_that_fails_at_one_is_left_alone_at_the_others_but_for_the_last(self) -> None:
        server = Server.for_test(self).start()
        bad, good = self.engine("error"), self.engine()
        for models in ([bad.url, good.url], [bad.url]):
            with self.subTest(engines=len(models)):
                urls = {"m": {"engines": models}}
                values: dict[str, object] = {
                    "REDIS_URL": f"redis://127.0.0.1:{server.port}/0",
                    "REDIS_TIMEOUT_MS": 5000,
                }
                values.update(BREAKER_OPEN_SECONDS=3600, BREAKER_MAX_OPEN_SECONDS=3600, HEALTH_INTERVAL=0)
                first = self.serve({"m": {"engines": [bad.url, good.url]}}, **values)
                second = self.serve(urls, **values)
                for _ in range(40):
                    first.post(ask(model="m"))
                states = [engine.state for engine in first.app.factory.engines()]
                self.assertEqual(states, ["open", "up"])
                hints = second.app.guard.shared.hints  # type: ignore[union-attr]
                eventually(lambda hints=hints: hints._read_to != b"0")
                if len(models) == 2:
                    eventually(lambda second=second: second.app.factory.engines()[0].state == "open")
                    self.assertEqual({second.post(ask(model="m")).status for _ in range(10)}, {200})
                    [line] = eventually(lambda second=second: self.audit(second, "engine_state"))
                    self.assertEqual(line["reason"], HINTED)
                else:
                    self.assertEqual(second.app.factory.engines()[0].state, "up")


if __name__ == "__main__":
    unittest.main()
