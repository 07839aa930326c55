"""The ledger on a real state database, and what is read from it: sums, CSV, the query's language, the command."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import sqlite3
import tempfile
import unittest
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Optional

from gateway.state.database import StateDb
from gateway.telemetry.events import RequestEvent
from gateway.telemetry.ledger import PRUNE_INTERVAL_S, PRUNE_ROWS, STEADY_S, Ledger
from gateway.telemetry.usage import UsageQuery, parse_usage_query, usage_command, usage_csv, usage_rows

CHAT = "/v1/chat/completions"
DAY_S = 86_400.0


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=timezone.utc).timestamp()


NOON = at("2026-11-05T12:00:00")


def event(**changes: Any) -> RequestEvent:
    """A good answer of model 13b to alice."""
    return RequestEvent(
        **{
            "finished_unix_s": NOON,
            "request_id": "r-1",
            "method": "POST",
            "path": CHAT,
            "status": 200,
            "error": None,
            "latency_s": 0.25,
            "model": "13b",
            "engine": "127.0.0.1:8010",
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "key": "alice",
            "extra": {"cost_usd": 0.001},
            **changes,
        }
    )


class DatabaseTest(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "gateway.db"
        self.now_s = NOON
        self.ran_s = 0.0
        self.db = StateDb(self.path, flush_interval_s=0.01)
        self.addCleanup(self.db.close)

    def ledger(self, db: Any = None, **options: Any) -> Ledger:
        return Ledger(db or self.db, {CHAT}, clock=lambda: self.now_s, monotonic=lambda: self.ran_s, **options)

    def note(self, *events: RequestEvent, **options: Any) -> None:
        """Have them written down, and wait until they are."""
        self.ledger(**options)(events)
        self.flush()

    def flush(self) -> None:
        self.db.write_now(lambda connection: None)  # made after everything submitted before

    def rows(self) -> list[tuple[Any, ...]]:
        return self.db.read("SELECT * FROM ledger ORDER BY ts_unix_s, request_id")


class LedgerTest(DatabaseTest):
    def test_notes_one_row_per_inference_request(self) -> None:
        self.note(event(), event(request_id="r-2", status=503, error="overloaded", engine=None, prompt_tokens=None))
        self.assertEqual(
            self.rows(),
            [
                (NOON, "alice", "13b", "127.0.0.1:8010", 10, 5, 0.001, 0.25, 200, "r-1", None),
                (NOON, "alice", "13b", None, None, 5, 0.001, 0.25, 503, "r-2", "overloaded"),
            ],
        )

    def test_notes_neither_other_requests_nor_those_without_a_valid_key(self) -> None:
        self.note(event(path="/metrics"), event(path="/v1/models"), event(status=401, key=None))
        self.assertEqual(self.rows(), [])

    def test_never_notes_a_text(self) -> None:
        self.note(event(extra={"cost_usd": 1.0, "request_body": "SECRET", "response_body": "SECRET"}, error="SECRET"))
        self.db.close()
        self.assertNotIn(b"SECRET", b"".join(path.read_bytes() for path in self.path.parent.iterdir()))

    def test_the_cost_comes_with_the_event_or_from_the_price(self) -> None:
        def cost_of(model: str, prompt_tokens: int, completion_tokens: int) -> Optional[float]:
            return prompt_tokens + completion_tokens / 100 if model == "13b" else None

        self.note(
            event(request_id="1"),
            event(request_id="2", extra=None),
            event(request_id="3", extra={}, completion_tokens=None),
            event(request_id="4", extra=None, model="7b"),
            event(request_id="5", extra=None, prompt_tokens=None, completion_tokens=None),
            event(request_id="6", extra=None, model=None),
            cost_of=cost_of,
        )
        self.assertEqual([row[6] for row in self.rows()], [0.001, 10.05, 10.0, None, None, None])

    def note_models(self, *names: Optional[str], **options: Any) -> None:
        """One row for each, where the model 13b, by its alias chat, is all that is configured."""
        known = {"13b": "13b", "chat": "13b"}
        events = [event(request_id=str(n), model=name, extra=None) for n, name in enumerate(names)]
        self.note(*events, known_models=lambda: known, **options)

    def test_models_that_are_not_configured_go_under_other(self) -> None:
        self.note_models("13b", "=cmd|' /C calc'!A0", None)
        self.assertEqual([row[2] for row in self.rows()], ["13b", "other", None])

    def test_an_alias_is_its_model_in_name_and_price(self) -> None:
        self.note_models("13b", "chat", cost_of=lambda model, *tokens: 0.5 if model == "13b" else None)
        self.assertEqual([(row[2], row[6]) for row in self.rows()], [("13b", 0.5), ("13b", 0.5)])

    def test_a_row_that_cannot_be_written_costs_no_other(self) -> None:
        self.note(event(request_id="1"), event(request_id="2", prompt_tokens=10**30), event(request_id="3"))
        self.assertEqual([row[9] for row in self.rows()], ["1", "3"])

    def test_many_rows_at_once_each_come_once_and_whole(self) -> None:
        for faulty in ((), (0,), (60, 136)):
            with self.subTest(faulty=faulty):
                self.db.write_now(lambda connection: connection.execute("DELETE FROM ledger"))
                events = [
                    event(request_id=f"{n:03}", prompt_tokens=10**30 if n in faulty else n, key=f"key {n}")
                    for n in range(137)
                ]
                self.note(*events)
                expected = [(f"{n:03}", n, f"key {n}") for n in range(137) if n not in faulty]
                self.assertEqual([(row[9], row[4], row[1]) for row in self.rows()], expected)

    def test_what_does_not_fit_is_dropped_and_counted(self) -> None:
        taken: list[object] = []

        class Full:
            def submit(self, write: object) -> bool:
                if len(taken) < 3:
                    taken.append(write)
                    return True
                return False

        ledger = self.ledger(Full())
        ledger([event()] * 5)
        ledger([event()] * 2)
        self.assertEqual((len(taken), ledger.dropped_total), (3, 4))

    def test_a_closed_database_drops_and_raises_nothing(self) -> None:
        ledger = self.ledger()
        self.db.close()
        ledger([event()] * 3)
        self.assertEqual(ledger.dropped_total, 3)


class RetentionTest(DatabaseTest):
    def fill(self, count: int, age_days: float) -> None:
        row = (NOON - age_days * DAY_S, "old")
        self.db.write_now(
            lambda connection: connection.executemany(
                "INSERT INTO ledger (ts_unix_s, request_id) VALUES (?, ?)", [row] * count
            )
        )

    def steady(self, **options: Any) -> Ledger:
        """One that has run long enough to believe the clock, which is that of the last noon still."""
        self.now_s, self.ran_s = NOON - STEADY_S, -STEADY_S
        ledger = self.ledger(**options)
        self.now_s, self.ran_s = NOON, 0.0
        return ledger

    def ticked(self, ledger: Ledger) -> int:
        """How many rows are left after a tick."""
        ledger.tick()
        self.flush()
        return len(self.rows())

    def test_old_rows_go_a_few_at_a_time_until_none_is_left(self) -> None:
        self.fill(2 * PRUNE_ROWS + 500, age_days=91)
        self.fill(7, age_days=89)
        ledger = self.steady()
        self.assertEqual([self.ticked(ledger) for _ in range(4)], [PRUNE_ROWS + 507, 507, 7, 7])

    def test_looks_for_them_once_an_hour(self) -> None:
        ledger = self.steady()
        self.ticked(ledger)
        self.fill(5, age_days=91)
        self.now_s += PRUNE_INTERVAL_S - 1
        self.ran_s += PRUNE_INTERVAL_S - 1
        self.assertEqual(self.ticked(ledger), 5)
        self.now_s += 1
        self.ran_s += 1
        self.assertEqual(self.ticked(ledger), 0)

    def test_the_days_are_a_setting_and_none_is_for_ever(self) -> None:
        self.fill(5, age_days=10)
        self.assertEqual(self.ticked(self.steady(days=0)), 5)
        self.assertEqual(self.ticked(self.steady(days=11)), 5)
        self.assertEqual(self.ticked(self.steady(days=9)), 0)


class UsageTest(DatabaseTest):
    def setUp(self) -> None:
        super().setUp()
        tomorrow = at("2026-11-06T00:00:00")
        self.note(
            event(extra={"cost_usd": 0.1}),
            event(extra={"cost_usd": 0.2}),
            event(status=502, completion_tokens=None, extra=None),
            event(finished_unix_s=tomorrow - 0.001, model="7b", engine="e2"),
            event(finished_unix_s=tomorrow, key=None, extra=None),
        )

    def test_sums_by_key_model_and_day(self) -> None:
        sums = ("key", "model", "day", "requests", "prompt_tokens", "completion_tokens", "cost_usd", "errors")
        self.assertEqual(
            usage_rows(self.db),
            [
                dict(zip(sums, row))
                for row in (
                    (None, "13b", "2026-11-06", 1, 10, 5, 0.0, 0),
                    ("alice", "13b", "2026-11-05", 3, 30, 10, 0.3, 1),
                    ("alice", "7b", "2026-11-05", 1, 10, 5, 0.001, 0),
                )
            ],
        )

    def test_a_stream_that_broke_after_its_status_is_an_error(self) -> None:
        self.note(event(key="carol", error="backend_error"), event(key="carol"), event(key="carol", status=404))
        self.db.write_now(lambda c: c.execute("UPDATE ledger SET error = NULL WHERE status = 404"))  # as noted before
        by_key = {row["key"]: (row["requests"], row["errors"]) for row in usage_rows(self.db, ("key",))}
        self.assertEqual(by_key["carol"], (3, 2))
        by_error = {row["error"]: row["requests"] for row in usage_rows(self.db, ("error",))}
        self.assertEqual(by_error["backend_error"], 1)

    def test_sums_by_any_column(self) -> None:
        def requests_by(*by: str) -> dict[Any, int]:
            return {tuple(row[column] for column in by): row["requests"] for row in usage_rows(self.db, by)}

        self.assertEqual(requests_by("model"), {("13b",): 4, ("7b",): 1})
        self.assertEqual(requests_by("engine"), {("127.0.0.1:8010",): 4, ("e2",): 1})
        self.assertEqual(requests_by("status", "key"), {(200, None): 1, (200, "alice"): 3, (502, "alice"): 1})
        self.assertEqual(
            requests_by("hour"), {("2026-11-05T12:00Z",): 3, ("2026-11-05T23:00Z",): 1, ("2026-11-06T00:00Z",): 1}
        )

    def test_the_begin_belongs_to_it_and_the_end_does_not(self) -> None:
        def count(start: Optional[float], end: Optional[float]) -> int:
            return sum(row["requests"] for row in usage_rows(self.db, ("day",), start, end))

        midnight = at("2026-11-06T00:00:00")
        self.assertEqual(
            [count(None, None), count(NOON, midnight), count(midnight, None), count(None, NOON)], [5, 4, 1, 0]
        )

    def test_unknown_columns_are_refused_by_name(self) -> None:
        for by in (("key", "colour"), ("1; DROP TABLE ledger",)):
            with self.assertRaisesRegex(ValueError, "by: must be of key, model, .*not '"):
                usage_rows(self.db, by)
        for by in ((), ("key", "key")):
            with self.assertRaises(ValueError):
                usage_rows(self.db, by)

    def test_csv_has_a_header_and_plain_numbers(self) -> None:
        text = usage_csv(usage_rows(self.db, ("key", "day")))
        self.assertEqual(
            text,
            "key,day,requests,prompt_tokens,completion_tokens,cost_usd,errors\r\n"
            ",2026-11-06,1,10,5,0,0\r\n"
            "alice,2026-11-05,4,40,15,0.301,1\r\n",
        )

    def test_csv_of_nothing_is_the_header(self) -> None:
        self.assertEqual(usage_csv([], ("key",)), "key,requests,prompt_tokens,completion_tokens,cost_usd,errors\r\n")

    def test_csv_quotes_and_defuses_names(self) -> None:
        self.note(event(key='a"b,c'), event(key="=HYPERLINK(1)"), event(extra={"cost_usd": 1e-9}, key="tiny"))
        rows = {row[0]: row for row in csv.reader(io.StringIO(usage_csv(usage_rows(self.db, ("key",)))))}
        self.assertIn('a"b,c', rows)
        self.assertIn("'=HYPERLINK(1)", rows)
        self.assertEqual(rows["tiny"][4], "0.000000001")


class QueryTest(unittest.TestCase):
    def test_reads_columns_times_and_format(self) -> None:
        for query, expected in (
            ("", UsageQuery(("key", "model", "day"), None, None, "json")),
            ("by=&from=&to=&format=", UsageQuery(("key", "model", "day"), None, None, "json")),
            ("by=key&format=csv", UsageQuery(("key",), None, None, "csv")),
            ("by=key,+engine", UsageQuery(("key", "engine"), None, None, "json")),
            ("from=2026-11-01", UsageQuery(from_unix_s=at("2026-11-01"))),
            ("to=2026-11-30", UsageQuery(to_unix_s=at("2026-12-01"))),  # the whole day
            ("from=2026-11-01&to=2026-11-01", UsageQuery(UsageQuery().by, at("2026-11-01"), at("2026-11-02"))),
            ("from=2026-11-01T12:30:00Z", UsageQuery(from_unix_s=at("2026-11-01T12:30:00"))),
            ("from=2026-11-01T12:30", UsageQuery(from_unix_s=at("2026-11-01T12:30:00"))),
            ("from=2026-11-01T12:30:00%2B02:00", UsageQuery(from_unix_s=at("2026-11-01T10:30:00"))),
            ("from=2026-11-01T12:30:00+02:00", UsageQuery(from_unix_s=at("2026-11-01T10:30:00"))),
            ("to=1793000000.5", UsageQuery(to_unix_s=1793000000.5)),
        ):
            with self.subTest(query=query):
                self.assertEqual(parse_usage_query(query), expected)

    def test_says_what_is_wrong(self) -> None:
        for query, message in (
            ("by=colour", "by: must be of key, .* not 'colour'"),
            ("by=key,key", "by: .*once"),
            ("by=key,", "by: .* not ''"),
            ("from=yesterday", "from: must be a day such as .* not 'yesterday'"),
            ("to=2026-13-01", "to: .* not '2026-13-01'"),
            ("from=9999-99", "from: "),
            ("to=9999-12-31", "to: "),
            ("from=2026-11-02&to=2026-11-01", "to: '2026-11-01' is not after from"),
            ("format=xml", "format: must be one of json, csv, not 'xml'"),
            ("since=2026-11-01", "'since' is not a parameter"),
            ("by=key&by=model", "by: is given twice"),
            ("from=" + "9" * 500, "from: "),
        ):
            with self.subTest(query=query), self.assertRaisesRegex(ValueError, message) as caught:
                parse_usage_query(query)
            self.assertLess(len(str(caught.exception)), 200)


class CommandTest(DatabaseTest):
    def run_command(self, *argv: str, made: bool = True) -> tuple[int, str, str]:
        opened: list[StateDb] = []

        def open_db(make: bool) -> Optional[StateDb]:
            self.assertFalse(make)
            if made:
                opened.append(StateDb(self.path))
            return opened[0] if opened else None

        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = usage_command(argv, open_db)
        for db in opened:
            self.assertFalse(db.submit(lambda connection: None), "the command left it open")
        return status, out.getvalue(), err.getvalue()

    def setUp(self) -> None:
        super().setUp()
        self.note(event(), event(status=500), event(key=None, finished_unix_s=at("2026-12-01")))

    def test_prints_a_table(self) -> None:
        self.assertEqual(
            self.run_command("--by", "key,day"),
            (
                0,
                "key    day         requests  prompt_tokens  completion_tokens  cost_usd  errors\n"
                "-      2026-12-01         1             10                  5  0.001000       0\n"
                "alice  2026-11-05         2             20                 10  0.002000       1\n",
                "",
            ),
        )

    def test_prints_json_and_csv(self) -> None:
        status, out, _ = self.run_command("--json", "--by", "key", "--from", "2026-11-01", "--to", "2026-11-30")
        expected = {"key": "alice", "requests": 2, "prompt_tokens": 20, "completion_tokens": 10}
        self.assertEqual((status, json.loads(out)), (0, {"rows": [{**expected, "cost_usd": 0.002, "errors": 1}]}))
        status, out, _ = self.run_command("--csv", "--by=key", "--from=2026-12-01")
        head = "key,requests,prompt_tokens,completion_tokens,cost_usd,errors"
        self.assertEqual((status, out), (0, f"{head}\n,1,10,5,0.001,0\n"))

    def test_without_a_database_there_is_nothing_to_sum(self) -> None:
        self.assertEqual(self.run_command("--json", made=False), (0, '{\n  "rows": []\n}\n', ""))

    def test_wrong_arguments_are_told_and_exit_2(self) -> None:
        for argv, message in (
            (("--by", "colour"), "error: by: must be of key"),
            (("--from", ""), "error: from: must be a day"),
            (("--csv", "--json"), "not allowed with"),
            (("--frob",), "unrecognized"),
        ):
            with self.subTest(argv=argv):
                status, out, err = self.run_command(*argv)
                self.assertEqual((status, out), (2, ""))
                self.assertIn(message, err)


class SeveralWritersTest(DatabaseTest):
    def test_two_ledgers_on_one_file_lose_nothing(self) -> None:
        other = StateDb(self.path, flush_interval_s=0.01)
        self.addCleanup(other.close)
        for db in (self.db, other):
            ledger = self.ledger(db)
            for batch in range(20):
                ledger([event(request_id=f"{id(db)}-{batch}-{n}") for n in range(50)])
        for db in (self.db, other):
            self.assertTrue(db.close())
        self.assertEqual((self.count(), self.db.dropped, other.dropped), (2000, 0, 0))

    def count(self) -> int:
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            found: Sequence[Any] = connection.execute("SELECT COUNT(*) FROM ledger").fetchone()
        return int(found[0])


if __name__ == "__main__":
    unittest.main()
