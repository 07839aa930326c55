"""What requests cost, who pays, and what is written down of it: prices, budgets, ledger, usage, and what survives."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import signal
import sqlite3
import threading
import time
import unittest
from collections import Counter
from typing import Any
from unittest import mock

from gateway.keys.store import KeyStore
from gateway.settings import reload
from gateway.state.database import StateDb
from tests.access import ADMIN_KEYS, AS_ROOT, AccessTest, ask, bearer
from tests.support import (
    CHAT,
    HI,
    TIMEOUT_S,
    GatewayProcess,
    Header,
    RawClient,
    Response,
    RunningGateway,
    dead_url,
    eventually,
    gateway_process,
)

PRICE = {"input": 1_000.0, "output": 2_000.0}  # so that each answer costs some cents
COST = "x-gateway-cost-usd"


def cost_of(usage: dict[str, int], price: dict[str, float] = PRICE) -> float:
    return (usage["prompt_tokens"] * price["input"] + usage["completion_tokens"] * price["output"]) / 1e6


class BudgetsTest(AccessTest):
    def setUp(self) -> None:
        super().setUp()
        self.mock = self.engine()
        self.fleet: dict[str, dict[str, Any]] = {
            "m": {"engines": [self.mock.url], "price": PRICE},
            "free": {"engines": [self.mock.url]},
        }

    def ledger(self, running: RunningGateway, count: int) -> list[dict[str, Any]]:
        """The ledger's rows, as soon as there are so many."""
        db = running.app.guard.open_db()
        columns = ("key", "model", "engine", "prompt_tokens", "completion_tokens", "cost_usd", "status", "request_id")
        sql = f"SELECT {', '.join(columns)} FROM ledger ORDER BY rowid"
        eventually(lambda: len(db.read(sql)) >= count)
        rows = db.read(sql)
        self.assertEqual(len(rows), count)
        return [dict(zip(columns, row)) for row in rows]

    def spent(self, running: RunningGateway, key: str = "alice") -> float:
        return running.app.guard.budgets.spent_usd(key)


class CostTest(BudgetsTest):
    def test_an_answer_says_what_it_cost(self) -> None:
        running = self.serve(self.fleet)
        answer = running.post(ask(model="m"))
        text = answer.header(COST)
        assert text is not None
        self.assertRegex(text, r"^\d+\.\d{9}$")
        cost = cost_of(answer.json()["usage"])
        self.assertAlmostEqual(float(text), cost, places=9)
        self.assertAlmostEqual(running.request_line(answer.request_id)["cost_usd"], cost, places=12)
        self.assertIsNone(running.post(ask(model="free")).header(COST))
        found = running.wait_for_metric('gateway_cost_usd_total{model="m"}', cost * 0.99)
        self.assertAlmostEqual(found, cost, places=9)

    def test_streams_are_counted_when_they_end(self) -> None:
        running = self.serve(self.fleet)
        key = self.make(running, budget_usd=100.0)
        answer = running.post(ask(model="m", stream=True, stream_options={"include_usage": True}), headers=key)
        events = [json.loads(line[6:]) for line in answer.body.decode().splitlines() if line.startswith("data: {")]
        cost = cost_of(next(event["usage"] for event in events if event.get("usage")))
        eventually(lambda: abs(self.spent(running) - cost) < 1e-9)
        self.assertAlmostEqual(running.request_line(answer.request_id)["cost_usd"], cost, places=12)

    def test_a_stream_that_is_left_is_charged_for_what_came(self) -> None:
        running = self.serve(self.fleet)
        key = self.make(running, budget_usd=100.0)
        with self.mock.hold_after(3) as gate:
            client = self.begin(running, key, model="m", stream=True)
            self.assertTrue(gate.wait_for_held(1, TIMEOUT_S))
            client.read_head()
            for _ in range(3):
                client.read_event()
            client.close()
            line = eventually(lambda: running.request_lines())[0]
        self.assertEqual((line["status"], line["error"]), (499, "client_closed_request"))
        self.assertGreater(line["completion_tokens"], 0)
        self.assertAlmostEqual(self.spent(running), line["cost_usd"], places=12)

    def test_the_model_that_answered_is_paid_for(self) -> None:
        self.fleet = {
            "70b": {"engines": [dead_url()], "price": {"input": 90_000, "output": 90_000}, "fallbacks": ["m"]},
            **self.fleet,
        }
        running = self.serve(self.fleet)
        answer = running.post(ask(model="70b"))
        self.assertAlmostEqual(float(answer.header(COST) or 0), cost_of(answer.json()["usage"]), places=9)

    def test_failures_cost_nothing(self) -> None:
        self.mock.control("error", status=500)
        self.fleet["m"]["fallbacks"] = []
        running = self.serve(self.fleet)
        key = self.make(running, budget_usd=100.0)
        answer = running.post(ask(model="m"), headers=key)
        self.assertEqual((answer.status, answer.header(COST)), (502, None))
        self.assertEqual(self.spent(running), 0.0)

    def test_an_answer_is_charged_before_its_client_has_it(self) -> None:
        running = self.serve(self.fleet)
        key = self.make(running, budget_usd=100.0)
        total = 0.0
        for _ in range(20):
            total += cost_of(running.post(ask(model="m"), headers=key).json()["usage"])
            self.assertAlmostEqual(self.spent(running), total, places=9)


class BudgetTest(BudgetsTest):
    def test_at_the_limit_it_is_429_until_the_period_ends(self) -> None:
        running = self.serve(self.fleet)
        key = self.make(running, budget_usd=0.05, budget_period="day")
        answers: list[Response] = []
        while not answers or answers[-1].status == 200:
            answers.append(running.post(ask(model="m"), headers=key))
            self.assertLess(len(answers), 50)
        refused = answers[-1]
        self.assert_error(refused, 429, "budget_exceeded")
        body = refused.json()
        self.assertRegex(body["reset"], r"^\d{4}-\d\d-\d\dT00:00:00Z$")
        self.assertIn(body["reset"], body["message"])
        self.assertTrue(0 < int(refused.header("retry-after") or 0) <= 86_400)
        asked = self.mock.stats()["requests"]
        self.assertEqual(asked, len(answers) - 1)
        for model in ("m", "free"):
            self.assert_error(running.post(ask(model=model), headers=key), 429, "budget_exceeded")
        self.assertEqual(self.mock.stats()["requests"], asked)
        self.assertEqual(running.post(ask(model="m"), headers=self.make(running, "bob")).status, 200)

    def burst(self, name: str, budget_usd: float, **options: Any) -> tuple[list[int], float]:
        """The statuses of 30 requests at a time with such a budget, and what was spent."""
        slow = self.engine("slow", delay=0.3)
        running = self.serve({"m": {"engines": [slow.url], "price": PRICE}})
        key = self.make(running, name, budget_usd=budget_usd)
        statuses: list[int] = []
        clients = [self.begin(running, key, model="m", **options) for _ in range(30)]
        for client in clients:
            answer = client.read_response()
            statuses.append(answer.status)
            if answer.status != 200:
                self.assert_error(answer, 429, "budget_exceeded")
                self.assertGreaterEqual(int(answer.header("retry-after") or 0), 1)
                self.assertIn("reset", answer.json())
        return statuses, self.spent(running, name)

    def test_it_holds_when_many_requests_come_at_once(self) -> None:
        for number, options in enumerate(({}, {"max_tokens": 8}, {"max_tokens": 2}, {"stream": True})):
            with self.subTest(**options):
                statuses, spent = self.burst(f"key-{number}", 0.05, **options)
                self.assertEqual(set(statuses), {200, 429})
                self.assertLess(spent, 0.05 + spent / statuses.count(200))

    def test_what_is_left_always_lets_the_next_request_pass(self) -> None:
        running = self.serve(self.fleet)
        key = self.make(running, budget_usd=2.0)
        for number in range(40):  # each of which reserves all of it, on a connection of its own
            answer = running.post(ask(model="m", stream=number % 2 == 1), headers=key)
            self.assertEqual(answer.status, 200, number)

    def test_failed_and_left_requests_give_back_what_they_reserved(self) -> None:
        bad, hanging = self.engine("error", status=500), self.engine("hang")
        self.fleet["bad"] = {"engines": [bad.url], "fallbacks": [], "price": PRICE}
        self.fleet["hang"] = {"engines": [hanging.url], "fallbacks": [], "price": PRICE}
        running = self.serve(self.fleet, BREAKER_MIN_REQUESTS=1_000_000)
        key = self.make(running, budget_usd=0.03)
        self.assertEqual(running.post(ask(model="bad"), headers=key).status, 502)
        self.assertEqual(running.post(ask(model="bad"), headers=key).status, 502)
        client = self.begin(running, key, model="hang")
        self.assertTrue(hanging.wait_for_requests(1, TIMEOUT_S))
        self.assert_error(running.post(ask(model="m"), headers=key), 429, "budget_exceeded")
        self.assertEqual(running.post(ask(model="free"), headers=key).status, 200)
        client.close()
        self.assert_idle(running)
        self.assertEqual(running.post(ask(model="m"), headers=key).status, 200)

    def test_at_80_percent_it_is_one_log_line(self) -> None:
        running = self.serve(self.fleet)
        key = self.make(running, budget_usd=0.5)
        while self.spent(running) < 0.39:
            self.assertEqual(running.post(ask(model="m"), headers=key).status, 200)
        while self.spent(running) < 0.5:
            running.post(ask(model="m"), headers=key)
        lines = eventually(lambda: self.audit(running, "budget_warning"))
        self.assertEqual(len(lines), 1)
        self.assertEqual((lines[0]["level"], lines[0]["key"], lines[0]["budget_usd"]), ("warning", "alice", 0.5))
        self.assertGreaterEqual(lines[0]["spent_usd"], 0.4)

    def test_a_restart_resets_nothing(self) -> None:
        running = self.serve(self.fleet)
        key = self.make(running, budget_usd=0.03)
        while running.post(ask(model="m"), headers=key).status == 200:
            pass
        running.stop()
        again = self.serve(self.fleet)
        self.assert_error(again.post(ask(model="m"), headers=key), 429, "budget_exceeded")

    def test_a_token_spends_its_keys_budget(self) -> None:
        running = self.serve(self.fleet, JWT_SECRET="x" * 32)
        key = self.make(running, budget_usd=0.03)
        issued = bearer(running.ask("POST", "/auth/token", None, key).json()["token"])
        while running.post(ask(model="m"), headers=issued).status == 200:
            pass
        self.assert_error(running.post(ask(model="m"), headers=key), 429, "budget_exceeded")

    def test_two_gateways_on_one_database_add_up(self) -> None:
        first = self.serve(self.fleet)
        key = self.make(first, budget_usd=0.1)
        second = self.serve(self.fleet)
        self.assertEqual(second.post(ask(model="m"), headers=key).status, 200)
        while first.post(ask(model="m"), headers=key).status == 200:
            pass
        eventually(lambda: second.post(ask(model="free"), headers=key).status == 429)


class LedgerTest(BudgetsTest):
    def test_one_row_per_request_and_never_a_text(self) -> None:
        running = self.serve(self.fleet, ADMIN_KEYS=ADMIN_KEYS)
        key = self.make(running)
        secret_text = "my grandmother's recipe"
        good = running.post(ask(secret_text, "m"), headers=key)
        stream = running.post(ask(secret_text, "m", stream=True), headers=key)
        unknown = running.post(ask(secret_text, "nope"), headers=key)
        running.post(ask(secret_text, "m"))
        running.get("/v1/models", key)
        rows = {row["request_id"]: row for row in self.ledger(running, 3)}
        usage = good.json()["usage"]
        self.assertEqual(
            rows[good.request_id],
            {
                "key": "alice",
                "model": "m",
                "engine": f"127.0.0.1:{self.mock.port}",
                "prompt_tokens": usage["prompt_tokens"],
                "completion_tokens": usage["completion_tokens"],
                "cost_usd": cost_of(usage),
                "status": 200,
                "request_id": good.request_id,
            },
        )
        self.assertGreater(rows[stream.request_id]["cost_usd"], 0)
        self.assertEqual((rows[unknown.request_id]["model"], rows[unknown.request_id]["status"]), ("other", 404))
        for path in self.directory.glob("gateway.db*"):
            self.assertNotIn(secret_text.encode(), path.read_bytes())
            self.assertNotIn(b"Mock answer", path.read_bytes())

    def test_what_failed_by_an_alias_is_noted_under_its_model(self) -> None:
        cut = self.engine("drop_mid_stream", after=1)
        self.fleet["m"] = {"engines": [cut.url], "price": PRICE, "aliases": ["chat"], "fallbacks": []}
        self.fleet["gone"] = {"engines": [dead_url()], "aliases": ["lost"], "fallbacks": []}
        running = self.serve(self.fleet, LEDGER="on")
        running.post(ask(model="chat", stream=True))
        running.post(ask(model="lost"))
        gone, broken = sorted(self.ledger(running, 2), key=lambda row: str(row["model"]))
        self.assertEqual((broken["model"], broken["engine"]), ("m", f"127.0.0.1:{cut.port}"))
        self.assertGreater(broken["cost_usd"], 0)
        self.assertEqual((gone["model"], gone["status"]), ("gone", 502))
        rows = running.get("/admin/usage?by=model,status,error").json()["rows"]
        told = [(row["model"], row["status"], row["error"], row["errors"]) for row in rows]
        self.assertEqual(told, [("gone", 502, "backend_unavailable", 1), ("m", 200, "backend_error", 1)])

        self.fleet["gone"]["aliases"] = ["missing"]
        self.file("engines.json", {"models": self.fleet})
        running.app.reload(reload(running.app.settings, {}, None))
        running.post(ask(model="missing"))
        self.assertEqual(self.ledger(running, 3)[2]["model"], "gone")

    def test_it_is_on_off_or_as_the_file_is_there(self) -> None:
        auto = self.serve(self.fleet)
        auto.post(ask(model="m"))
        auto.stop()
        self.assertFalse(self.db.exists())
        on = self.serve(self.fleet, LEDGER="on")
        on.post(ask(model="m"))
        on.stop()
        self.assertEqual(len(self.rows("SELECT * FROM ledger")), 1)
        off = self.serve(self.fleet, LEDGER="off")
        off.post(ask(model="m"))
        off.stop()
        self.assertEqual(len(self.rows("SELECT * FROM ledger")), 1)
        auto = self.serve(self.fleet)
        auto.post(ask(model="m"))
        auto.stop()
        self.assertEqual(len(self.rows("SELECT * FROM ledger")), 2)

    def test_usage_over_http_and_on_the_command_line(self) -> None:
        running = self.serve(self.fleet, ADMIN_KEYS=ADMIN_KEYS)
        alice, bob = self.make(running, "alice"), self.make(running, "bob")
        costs: Counter[str] = Counter()
        for headers, name in ((alice, "alice"), (alice, "alice"), (bob, "bob")):
            costs[name] += cost_of(running.post(ask(model="m"), headers=headers).json()["usage"])  # type: ignore[assignment]
        running.post(ask(model="m", temperature=9), headers=bob)
        self.ledger(running, 4)
        rows = running.get("/admin/usage?by=key", [AS_ROOT]).json()["rows"]
        self.assertEqual(
            [(row["key"], row["requests"], row["errors"]) for row in rows], [("alice", 2, 0), ("bob", 2, 1)]
        )
        for row in rows:
            self.assertAlmostEqual(row["cost_usd"], costs[row["key"]], places=9)
        full = running.get("/admin/usage", [AS_ROOT]).json()["rows"]
        self.assertEqual(list(full[0])[:3], ["key", "model", "day"])
        sheet = running.get("/admin/usage?by=key,model&format=csv", [AS_ROOT])
        self.assertEqual(sheet.header("content-type"), "text/csv; charset=utf-8")
        parsed = list(csv.DictReader(io.StringIO(sheet.body.decode())))
        self.assertEqual((parsed[0]["key"], parsed[0]["requests"]), ("alice", "2"))
        status, out, err = self.cli("usage", "--by", "key", "--json")
        self.assertEqual((status, json.loads(out)["rows"]), (0, rows), err)
        self.assertIn("alice", self.cli("usage")[1])
        self.assertEqual(running.get("/admin/usage?by=key&to=2001-01-01", [AS_ROOT]).json(), {"rows": []})

    def test_a_question_that_makes_no_sense_is_400(self) -> None:
        running = self.serve(self.fleet, ADMIN_KEYS=ADMIN_KEYS)
        for query, word in (
            ("by=text", "by"),
            ("by=key;DROP", "by"),
            ("from=yesterday", "from"),
            ("to=2001-01-01&from=2002-01-01", "to"),
            ("format=xml", "format"),
            ("limit=3", "limit"),
        ):
            with self.subTest(query):
                answer = running.get(f"/admin/usage?{query}", [AS_ROOT])
                self.assertEqual(answer.status, 400)
                self.assertIn(word, answer.json()["message"])

    def test_without_a_database_there_is_no_usage(self) -> None:
        running = self.serve(self.fleet, ADMIN_KEYS=ADMIN_KEYS)
        self.assertEqual(running.get("/admin/usage", [AS_ROOT]).json(), {"rows": []})
        status, out, _ = self.cli("usage", "--json")
        self.assertEqual((status, json.loads(out)), (0, {"rows": []}))
        self.assertFalse(self.db.exists())


class TroubleTest(BudgetsTest):
    """A state database that fails while the gateway runs never fails a request."""

    def test_while_it_is_locked_requests_go_on_and_are_noted_later(self) -> None:
        impatient = {**(StateDb.__init__.__kwdefaults__ or {}), "busy_timeout_s": 0.1}
        with mock.patch.object(StateDb.__init__, "__kwdefaults__", impatient):
            running = self.serve(self.fleet)
            key = self.make(running, budget_usd=100.0)
        self.assertEqual(running.post(ask(model="m"), headers=key).status, 200)
        self.ledger(running, 1)
        blocker = sqlite3.connect(str(self.db), isolation_level=None)
        with contextlib.closing(blocker):
            blocker.execute("BEGIN IMMEDIATE")
            for _ in range(50):
                self.assertEqual(running.post(ask(model="m"), headers=key).status, 200)
            eventually(lambda: self.audit(running, "state_db"))
            for _ in range(50):
                self.assertEqual(running.post(ask(model="m"), headers=key).status, 200)
            self.assertEqual(len(self.audit(running, "state_db")), 1)
            self.assertGreaterEqual(running.metrics()["gateway_state_db_errors_total"], 1)
            blocker.execute("ROLLBACK")
        self.ledger(running, 101)
        self.assertEqual(running.metrics()["gateway_ledger_dropped_total"], 0)

    def test_rows_that_cannot_be_written_are_counted(self) -> None:
        running = self.serve(self.fleet)
        key = self.make(running, budget_usd=100.0)
        db = running.app.guard.open_db()
        db._max_pending = 0  # as after 30 000 requests that no disk took
        for _ in range(5):
            self.assertEqual(running.post(ask(model="m"), headers=key).status, 200)
        running.wait_for_metric("gateway_ledger_dropped_total", 5)


class ProcessesTest(BudgetsTest):
    """Gateways as processes, which can be killed."""

    def start(self, **variables: object) -> GatewayProcess:
        engines = self.file("engines.json", {"models": {"m": {"engines": ["echo:"], "price": PRICE}}})
        settings = {"STATE_DB": self.db, "ENGINES_FILE": engines, "LOG_LEVEL": "error", **variables}
        return self.enter(gateway_process(settings))

    def key(self, **fields: Any) -> list[Header]:
        with StateDb(self.db) as db:
            return bearer(KeyStore(db).create("alice", **fields)[1])

    def load(
        self, processes: list[GatewayProcess], headers: list[Header], enough: int, then: Any = None
    ) -> list[tuple[float, Response]]:
        """Ask over several connections for more than a second, until `enough` answers have come; then do `then` in the
        middle of more.

        Returns each answer with the Unix time at which it had been read.
        """
        answers: list[tuple[float, Response]] = []
        stop = threading.Event()

        def run(client: RawClient) -> None:
            # A gateway that is killed ends the connection: with a reset, or in the middle of an answer.
            with contextlib.suppress(OSError, AssertionError):
                while not stop.is_set():
                    answer = client.post(HI, headers=headers)
                    answers.append((time.time(), answer))

        clients = [self.enter(process.connect()) for process in processes for _ in range(3)]
        threads = [threading.Thread(target=run, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        try:
            eventually(lambda: len(answers) >= enough and answers[-1][0] - answers[0][0] > 1.2, 60.0)
            if then is not None:
                then()
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        return answers

    @unittest.skipUnless(hasattr(signal, "SIGKILL"), "no SIGKILL here")
    def test_killed_in_the_middle_it_loses_a_second_at_most_and_no_budget(self) -> None:
        headers = self.key(budget_usd=1_000_000.0)
        process = self.start()
        killed_s: list[float] = []

        def kill() -> None:
            eventually(lambda: self.rows("SELECT spent_usd FROM budget"))  # else there would be nothing to lose
            killed_s.append(time.time())
            process.signal(signal.SIGKILL)
            process.wait()

        answers = self.load([process], headers, 2_500, kill)
        self.assertEqual({answer.status for _, answer in answers}, {200})
        noted = {row[0] for row in self.rows("SELECT request_id FROM ledger")}
        lost_s = [killed_s[0] - at_s for at_s, answer in answers if answer.request_id not in noted]
        # One second is promised; another is for this machine, on which processes wait for one another.
        self.assertLess(max(lost_s, default=0.0), 2.0)
        self.assertEqual(self.rows("PRAGMA integrity_check"), [("ok",)])
        spent = self.rows("SELECT spent_usd FROM budget")[0][0]
        kept = [cost_of(answer.json()["usage"]) for at_s, answer in answers if killed_s[0] - at_s > 2.0]
        everything = sum(cost_of(answer.json()["usage"]) for _, answer in answers)
        self.assertGreaterEqual(spent, sum(kept) - 1e-6)
        self.assertLessEqual(spent, everything * 1.1)
        again = self.start()
        answer = again.ask("POST", CHAT, HI, headers)
        self.assertEqual(answer.status, 200)
        again.signal(signal.SIGTERM)
        self.assertEqual(again.wait(), 0)
        self.assertAlmostEqual(
            self.rows("SELECT spent_usd FROM budget")[0][0], spent + cost_of(answer.json()["usage"]), places=6
        )

    def test_two_processes_on_one_database_lose_nothing(self) -> None:
        headers = self.key(budget_usd=1_000_000.0)
        processes = [self.start(), self.start()]
        answers = self.load(processes, headers, 1_000)
        self.assertEqual({answer.status for _, answer in answers}, {200})
        for process in processes:
            process.process.terminate()
        self.assertEqual({process.wait() for process in processes}, {0})
        self.assertEqual(self.rows("PRAGMA integrity_check"), [("ok",)])
        noted = Counter(row[0] for row in self.rows("SELECT request_id FROM ledger"))
        self.assertEqual(noted, Counter(answer.request_id for _, answer in answers))
        everything = sum(cost_of(answer.json()["usage"]) for _, answer in answers)
        self.assertAlmostEqual(self.rows("SELECT spent_usd FROM budget")[0][0], everything, places=6)


if __name__ == "__main__":
    unittest.main()
