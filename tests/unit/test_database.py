"""The state database: opening it, writing behind, failing quietly, several processes and a killed one."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Optional

from gateway.state.database import StateDb, StateDbError
from gateway.state.file import APPLICATION_ID, MIGRATIONS, holds_keys
from tests.support import ROOT, eventually, os_text

SPEND = """INSERT INTO budget VALUES (?, ?, ?)
    ON CONFLICT (key, period_start_unix_s) DO UPDATE SET spent_usd = spent_usd + excluded.spent_usd"""


def spend(key: str, usd: float) -> Any:
    return lambda connection: connection.execute(SPEND, (key, 0, usd))


def note(request_id: str) -> Any:
    return lambda connection: connection.execute(
        "INSERT INTO ledger (ts_unix_s, request_id) VALUES (?, ?)", (time.time(), request_id)
    )


class StateDbTest(unittest.TestCase):
    """A test with a folder of its own and databases that are closed at its end."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.path = self.folder / "gateway.db"
        self.messages: list[str] = []

    def open(self, path: Optional[Path] = None, **options: Any) -> StateDb:
        options.setdefault("flush_interval_s", 0.01)
        db = StateDb(path or self.path, self.messages.append, **options)
        self.addCleanup(db.close)
        return db

    def refused(self, path: Optional[Path] = None, **options: Any) -> str:
        with self.assertRaises(StateDbError) as caught:
            self.open(path, **options)
        return str(caught.exception)

    @contextlib.contextmanager
    def plain(self) -> Iterator[sqlite3.Connection]:
        """The file as any other program sees it."""
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            yield connection

    def run_python(self, code: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            **options,
        )
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return process


class LookingTest(StateDbTest):
    """Whether a file holds keys, for who only wants to know."""

    def test_a_key_is_seen_whether_or_not_the_file_is_in_use(self) -> None:
        self.assertFalse(holds_keys(self.path))
        self.assertFalse(self.path.exists())
        db = self.open()
        self.assertFalse(holds_keys(self.path))
        row = "INSERT INTO keys (name, digest, role, models, created_unix_s) VALUES ('a', x'00', 'user', '[]', 0)"
        db.write_now(lambda connection: connection.execute(row))
        self.assertTrue(holds_keys(self.path))
        db.close()
        self.assertTrue(holds_keys(self.path))

    def test_nothing_is_changed(self) -> None:
        self.path.write_bytes(b"")
        self.assertFalse(holds_keys(self.path))
        self.assertEqual([path.name for path in self.folder.iterdir()], ["gateway.db"])
        self.assertEqual(self.path.read_bytes(), b"")

    def test_a_file_that_is_no_state_database_is_refused(self) -> None:
        garbage, foreign, long = self.folder / "garbage", self.folder / "foreign", self.folder / ("x" * 300)
        garbage.write_bytes(b"x" * 5_000)
        with contextlib.closing(sqlite3.connect(foreign)) as connection:
            connection.execute("CREATE TABLE keys (name TEXT)")
        for path in (garbage, foreign, self.folder, long):
            with self.subTest(path.name[:10]), self.assertRaises(StateDbError) as caught:
                holds_keys(path)
            self.assertIn(str(path), str(caught.exception))


class OpeningTest(StateDbTest):
    def test_a_missing_file_is_made_for_its_owner_only_with_this_versions_schema(self) -> None:
        db = self.open()
        if os.name == "posix":
            for path in self.folder.iterdir():
                self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600, path.name)
        self.assertEqual(db.read("PRAGMA user_version"), [(len(MIGRATIONS),)])
        self.assertEqual(db.read("PRAGMA journal_mode"), [("wal",)])
        self.assertEqual(
            [name for (name,) in db.read("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")],
            ["budget", "generation", "keys", "ledger"],
        )

    def test_what_was_written_is_there_after_closing_and_opening_again(self) -> None:
        with self.open() as db:
            self.assertTrue(db.submit(spend("alice", 0.25)))
        self.assertEqual([path.name for path in self.folder.iterdir()], ["gateway.db"])
        self.assertEqual(self.open().read("SELECT key, spent_usd FROM budget"), [("alice", 0.25)])

    def test_an_empty_file_and_a_name_with_special_characters_are_fine(self) -> None:
        for name in ("empty.db", "a ?#%41&mode=ro ü.db"):
            with self.subTest(name):
                path = self.folder / os_text(name)
                path.touch()
                self.assertEqual(self.open(path).write_now(lambda c: c.execute("SELECT 7").fetchall()), [(7,)])

    def test_what_cannot_be_opened_is_named_with_its_reason(self) -> None:
        self.assertIn("it is not a file", self.refused(self.folder))
        if os.name == "posix":
            self.assertIn("it is not a file", self.refused(Path(os.devnull)))
            dangling = self.folder / "link.db"
            dangling.symlink_to(self.folder / "nothing" / "there")
            self.assertIn("No such file or directory", self.refused(dangling))
        missing = self.folder / "missing" / "gateway.db"
        self.assertIn("No such file or directory", self.refused(missing))
        self.assertIn(str(missing), self.refused(missing))

    def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(self) -> None:
        for content in (b"keys = alice\n" * 500, b"SQLite format 3\x00" + b"\xff" * 4000):
            with self.subTest(content[:16]):
                self.path.write_bytes(content)
                self.assertIn("is not a state database", self.refused())
                self.assertEqual(self.path.read_bytes(), content)

    def test_another_programs_database_is_refused_and_left_as_it_is(self) -> None:
        for made_by in ("CREATE TABLE songs (title TEXT)", "PRAGMA application_id = 77", "PRAGMA user_version = 9"):
            with self.subTest(made_by):
                with self.plain() as connection:
                    connection.execute(made_by)
                content = self.path.read_bytes()
                self.assertIn("is the database of another program", self.refused())
                self.assertEqual(self.path.read_bytes(), content)
                self.path.unlink()

    def test_a_newer_schema_is_refused_naming_both_versions(self) -> None:
        self.open().close()
        with self.plain() as connection:
            connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
        self.assertIn(f"schema {len(MIGRATIONS) + 1}; this one knows {len(MIGRATIONS)}", self.refused())

    def test_a_locked_database_is_refused_after_the_busy_timeout(self) -> None:
        self.open().close()
        with self.plain() as connection:
            connection.execute("BEGIN IMMEDIATE")
            self.assertIn("is locked by another process", self.refused(busy_timeout_s=0.02))

    @unittest.skipUnless(hasattr(os, "geteuid"), "needs the file modes of POSIX")
    def test_a_read_only_file_is_refused(self) -> None:
        self.open().close()
        # For root no file is read-only: the child gives that up, after a first use, which imports all it needs.
        code = """
import os, sys
from gateway.state.database import StateDb, StateDbError
StateDb(sys.argv[2]).close()
if os.geteuid() == 0:
    os.seteuid(65534)
try:
    StateDb(sys.argv[1])
except StateDbError as error:
    print(error)
"""
        other = tempfile.TemporaryDirectory()
        self.addCleanup(other.cleanup)
        self.addCleanup(self.folder.chmod, 0o700)
        for folder_mode in (0o755, 0o777, 0o555):  # the files beside it can be made, or not
            with self.subTest(folder_mode=oct(folder_mode)):
                self.folder.chmod(folder_mode)
                self.path.chmod(0o444)
                output, errors = self.run_python(code, self.path, other.name + "/db").communicate(timeout=30)
                self.assertIn("read-only", output, errors)

    def test_many_processes_may_make_the_same_file_at_once(self) -> None:
        code = (
            "import sys\nfrom gateway.state.database import StateDb\nsys.stdin.read(1)\n"
            "db = StateDb(sys.argv[1], busy_timeout_s=20)\n"
            'db.write_now(lambda c: c.execute("INSERT INTO ledger (ts_unix_s) VALUES (1)"), 30)\nprint(db.close())'
        )
        processes = [self.run_python(code, self.path, stdin=subprocess.PIPE) for _ in range(4)]
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("x")
            process.stdin.flush()
        for process in processes:
            self.assertEqual(process.communicate(timeout=60), ("True\n", ""))
        self.assertEqual(self.open().read("SELECT count(*) FROM ledger"), [(4,)])


class WritingTest(StateDbTest):
    def test_submitted_writes_are_made_in_order(self) -> None:
        db = self.open()
        for number in range(1000):
            self.assertTrue(db.submit(note(str(number))))
        rows = eventually(lambda: [r for r in [db.read("SELECT request_id FROM ledger")] if len(r) == 1000])[0]
        self.assertEqual(rows, [(str(number),) for number in range(1000)])
        self.assertEqual((db.dropped, db.errors), (0, 0))

    def test_neighbours_that_can_be_made_together_are_and_the_order_is_kept(self) -> None:
        made: list[object] = []

        class Numbered:
            def __init__(self, number: int) -> None:
                self.number = number

            def __call__(self, connection: sqlite3.Connection) -> None:
                made.append(self.number)

            @staticmethod
            def together(connection: sqlite3.Connection, writes: Sequence[Numbered]) -> None:
                made.append([write.number for write in writes])

        db = self.open(flush_interval_s=60.0)
        for write in (Numbered(1), Numbered(2), lambda connection: made.append("alone"), Numbered(3)):
            db.submit(write)
        db.write_now(lambda connection: None)
        self.assertEqual(made, [[1, 2], "alone", [3]])

    def test_one_transaction_takes_all_that_came_in_an_interval(self) -> None:
        db = self.open(flush_interval_s=0.2)
        before = db.data_version()
        for number in range(100):
            db.submit(note(str(number)))
        eventually(lambda: db.data_version() != before)
        self.assertEqual(db.read("SELECT count(*) FROM ledger"), [(100,)])
        self.assertEqual(db.data_version(), before + 1)

    def test_write_now_returns_what_the_write_returned_after_everything_submitted_before(self) -> None:
        db = self.open(flush_interval_s=60)
        db.submit(spend("alice", 1))
        db.submit(spend("alice", 2))
        self.assertEqual(db.write_now(lambda c: c.execute("SELECT spent_usd FROM budget").fetchall()), [(3.0,)])

    def test_write_now_undoes_a_write_that_raises_and_passes_its_error_on(self) -> None:
        db = self.open()
        for error in (ValueError("taken"), TimeoutError("own"), sqlite3.IntegrityError("twice")):

            def write(connection: sqlite3.Connection, error: Exception = error) -> None:
                spend("alice", 1)(connection)
                raise error

            with self.subTest(type(error).__name__):
                with self.assertRaises(type(error)) as caught:
                    db.write_now(write)
                self.assertIs(caught.exception, error)
        self.assertEqual(db.read("SELECT * FROM budget"), [])
        self.assertEqual(self.messages, [])

    def test_write_now_that_comes_too_late_is_not_made_afterwards(self) -> None:
        db = self.open()
        gate, entered = threading.Event(), threading.Event()
        self.addCleanup(gate.set)

        def hold(connection: sqlite3.Connection) -> None:
            entered.set()
            gate.wait(10)

        db.submit(hold)
        self.assertTrue(entered.wait(10))
        with self.assertRaisesRegex(StateDbError, "nothing could be written for 0.01 s"):
            db.write_now(spend("late", 1), timeout_s=0.01)
        gate.set()
        db.write_now(spend("later", 1))
        self.assertEqual(db.read("SELECT key FROM budget"), [("later",)])

    def test_a_full_queue_drops_and_counts_and_never_blocks(self) -> None:
        db = self.open(max_pending=3, flush_interval_s=60)
        self.assertEqual([db.submit(note(str(n))) for n in range(5)], [True, True, True, False, False])
        self.assertEqual(db.dropped, 2)
        self.assertTrue(db.close())
        self.assertEqual(self.open().read("SELECT request_id FROM ledger"), [("0",), ("1",), ("2",)])

    def test_a_closed_database_drops_and_refuses(self) -> None:
        db = self.open()
        self.assertTrue(db.close())
        self.assertTrue(db.close())
        self.assertFalse(db.submit(note("late")))
        self.assertEqual(db.dropped, 1)
        for call in (lambda: db.read("SELECT 1"), lambda: db.write_now(note("late"))):
            with self.assertRaisesRegex(StateDbError, "is closed"):
                call()
        self.assertNotIn("state-db", [thread.name for thread in threading.enumerate()])

    def test_a_read_sees_only_and_changes_nothing(self) -> None:
        db = self.open()
        db.write_now(spend("alice", 1))
        self.assertEqual(db.read("SELECT spent_usd FROM budget WHERE key = ?", ["alice"]), [(1.0,)])
        for sql in ("DELETE FROM budget", "SELECT * FROM nothing", "SELECT"):
            with self.assertRaisesRegex(StateDbError, "cannot be read"):
                db.read(sql)
        with self.assertRaises(StateDbError):
            db.read("SELECT ?", ["\ud800"])
        self.assertEqual(db.read("SELECT count(*) FROM budget"), [(1,)])

    def test_many_threads_lose_nothing(self) -> None:
        db = self.open()
        threads = [threading.Thread(target=lambda: [db.submit(spend("all", 1)) for _ in range(500)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertTrue(db.close())
        self.assertEqual(self.open().read("SELECT spent_usd FROM budget"), [(4000.0,)])


class FailingTest(StateDbTest):
    def test_a_faulty_write_is_left_out_and_the_others_are_made(self) -> None:
        db = self.open()

        def half(connection: sqlite3.Connection) -> None:
            spend("half", 1)(connection)
            raise RuntimeError("defect")

        def close_together(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT INTO songs VALUES (1)")

        for write in (spend("a", 1), half, close_together, spend("b", 1)):
            db.submit(write)
        db.write_now(lambda connection: None)
        self.assertEqual(db.read("SELECT key FROM budget ORDER BY key"), [("a",), ("b",)])
        self.assertEqual((db.dropped, db.errors), (2, 2))
        self.assertEqual(len(self.messages), 1)
        self.assertIn("RuntimeError: defect", self.messages[0])

    def test_writes_wait_while_another_process_holds_the_lock_and_are_made_afterwards(self) -> None:
        db = self.open(busy_timeout_s=0.01)
        with self.plain() as connection:
            connection.execute("BEGIN IMMEDIATE")
            db.submit(spend("alice", 1))
            eventually(lambda: db.errors >= 3)
            with self.assertRaisesRegex(StateDbError, "is locked by another process"):
                db.write_now(spend("alice", 10))
            self.assertEqual(db.read("SELECT * FROM budget"), [])
            connection.execute("ROLLBACK")
        eventually(lambda: db.read("SELECT spent_usd FROM budget") == [(1.0,)])
        self.assertEqual(self.messages, [f"{self.path}: is locked by another process"])
        self.assertEqual(db.dropped, 0)

    def test_a_full_disk_is_reported_once_until_it_works_again(self) -> None:
        db = self.open()
        for occasion in (1, 2):
            db.write_now(lambda c: c.execute("PRAGMA max_page_count = 1").fetchall())
            for number in range(50):
                db.submit(note(f"{occasion}.{number}" + "x" * 4000))
            seen = db.errors
            eventually(lambda: db.errors >= seen + 3)  # noqa: B023
            self.assertEqual(len(self.messages), occasion, self.messages)
            self.assertIn("full", self.messages[-1])
            with contextlib.suppress(StateDbError):  # raising the limit needs no page, but may meet what still waits
                db.write_now(lambda c: c.execute("PRAGMA max_page_count = 1000000").fetchall())
            eventually(lambda: db.read("SELECT count(*) FROM ledger") == [(50 * occasion,)])  # noqa: B023
        self.assertEqual(db.dropped, 0)

    def test_closing_while_nothing_can_be_written_ends_and_counts_what_is_lost(self) -> None:
        db = self.open(busy_timeout_s=0.01)
        with self.plain() as connection:
            connection.execute("BEGIN IMMEDIATE")
            for number in range(3):
                db.submit(note(str(number)))
            self.assertFalse(db.close())
        self.assertEqual(db.dropped, 3)

    def test_a_database_deleted_under_the_gateway_fails_nothing_and_is_not_made_anew(self) -> None:
        if os.name == "nt":
            self.skipTest("Windows does not delete an open file")
        db = self.open()
        db.write_now(spend("alice", 1))
        for path in self.folder.iterdir():
            path.unlink()
        with self.assertRaises(StateDbError):
            db.read("SELECT * FROM budget")
        self.assertTrue(db.submit(spend("alice", 1)))
        db.data_version()
        db.close()
        self.assertFalse(self.path.exists())

    def test_a_reporter_that_raises_does_not_end_the_writing(self) -> None:
        def fail(message: str) -> None:
            raise OSError("no space left for logs")

        db = StateDb(self.path, fail, flush_interval_s=0.01)
        self.addCleanup(db.close)
        db.submit(lambda c: c.execute("no SQL"))
        db.submit(spend("alice", 1))
        db.write_now(lambda c: None)
        self.assertEqual(db.read("SELECT spent_usd FROM budget"), [(1.0,)])


class OtherProcessesTest(StateDbTest):
    def test_data_version_changes_with_every_commit_and_only_then(self) -> None:
        db, other = self.open(), self.open()
        seen = db.data_version()
        self.assertEqual(db.data_version(), seen)
        db.write_now(spend("alice", 1))
        own = db.data_version()
        self.assertNotEqual(own, seen)
        other.write_now(spend("alice", 1))
        foreign = db.data_version()
        self.assertNotEqual(foreign, own)
        db.read("SELECT * FROM budget")
        self.assertEqual(db.data_version(), foreign)

    def test_two_processes_add_to_one_budget_and_lose_nothing(self) -> None:
        code = """
import sys
from gateway.state.database import StateDb
from tests.unit.test_database import note, spend
db = StateDb(sys.argv[1], flush_interval_s=0.002, busy_timeout_s=20)
for number in range(2000):
    db.submit(spend("shared", 1))
    db.submit(note(sys.argv[2]))
    if number % 100 == 0:
        db.write_now(lambda connection: None, 30)
print(db.close(30), db.dropped, db.errors)
"""
        processes = [self.run_python(code, self.path, name) for name in ("one", "two")]
        for process in processes:
            self.assertEqual(process.communicate(timeout=120), ("True 0 0\n", ""))
        db = self.open()
        self.assertEqual(db.read("PRAGMA integrity_check"), [("ok",)])
        self.assertEqual(db.read("SELECT spent_usd FROM budget"), [(4000.0,)])
        self.assertEqual(
            db.read("SELECT request_id, count(*) FROM ledger GROUP BY 1 ORDER BY 1"), [("one", 2000), ("two", 2000)]
        )

    def test_a_killed_process_loses_at_most_its_last_second(self) -> None:
        code = """
import sys, time
from gateway.state.database import StateDb
from tests.unit.test_database import note, spend
db = StateDb(sys.argv[1])
number = 0
while True:
    submitted_unix_s = time.time()
    for _ in range(10):
        db.submit(spend("alice", 1))
        db.submit(note(str(number)))
        number += 1
    print(number, submitted_unix_s, flush=True)
    time.sleep(0.002)
"""
        process = self.run_python(code, self.path)
        assert process.stdout is not None
        submitted: list[tuple[int, float]] = []
        while not submitted or submitted[-1][0] < 4000 or submitted[-1][1] < submitted[0][1] + 2:
            number, unix_s = process.stdout.readline().split()
            submitted.append((int(number), float(unix_s)))
        process.kill()
        killed_unix_s = time.time()
        process.wait()
        db = self.open()
        self.assertEqual(db.read("PRAGMA integrity_check"), [("ok",)])
        ((rows, last),) = db.read("SELECT count(*), max(CAST(request_id AS INTEGER)) + 1 FROM ledger")
        self.assertEqual(rows, last, "a row in the middle is missing")
        ((spent_usd,),) = db.read("SELECT spent_usd FROM budget")
        # A batch may end between the two that belong together: they are submitted one after the other.
        self.assertIn(spent_usd - rows, (0, 1), "a batch was torn")
        due = max(number for number, unix_s in submitted if unix_s <= killed_unix_s - 1)
        self.assertGreaterEqual(rows, due)

    def test_the_application_id_is_what_other_tools_can_tell_it_by(self) -> None:
        self.open().close()
        with self.plain() as connection:
            self.assertEqual(connection.execute("PRAGMA application_id").fetchall(), [(APPLICATION_ID,)])


if __name__ == "__main__":
    unittest.main()
