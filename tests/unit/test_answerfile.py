"""The file of answers: what outlives a restart, in which order, and what is refused, left out or only counted."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import tempfile
import threading
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from gateway.reuse import answerfile
from gateway.reuse.answerfile import AnswerFile, AnswerFileError
from gateway.reuse.answerschema import APPLICATION_ID, SCHEMA_VERSION, Indexed
from gateway.reuse.stored import KEY_BYTES, Stored, encode
from gateway.state.database import StateDb
from tests.support import eventually

LONG_S = 30.0


def key(number: int) -> bytes:
    return number.to_bytes(KEY_BYTES, "big")


def answer(number: int, body: bytes = b'{"id":"x"}') -> Stored:
    return Stored(
        *(key(number), "team", "llama", "/chat/completions", body, f"chatcmpl-{number}", 7, 5, 0.25, 1_700_000_000.5),
        *(b"n" * 8, b"g" * 8, b"\0\0\x80?" * 3),
    )


class AnswerFileTest(unittest.TestCase):
    """A test with a folder of its own and files that are closed at its end."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "answers.db"
        self.logged: list[dict[str, Any]] = []

    def open(self) -> AnswerFile:
        file = AnswerFile(self.path, lambda level, event, **fields: self.logged.append({"event": event, **fields}))
        self.addCleanup(file.close, LONG_S)
        return file

    def refused(self) -> str:
        with self.assertRaises(AnswerFileError) as caught:
            self.open()
        self.assertTrue(str(caught.exception).startswith(f"{self.path}: "), caught.exception)
        return str(caught.exception)

    @contextlib.contextmanager
    def plain(self) -> Iterator[sqlite3.Connection]:
        """The file as any other program sees it."""
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            yield connection

    def written(self, *answers: Stored) -> None:
        """A file that has these, and nobody has it open."""
        file = self.open()
        for stored in answers:
            file.put(stored)
        file.close(LONG_S)

    def keys(self) -> list[bytes]:
        return [indexed.key for indexed in self.open().index()]


class KeepingTest(AnswerFileTest):
    def test_an_answer_outlives_a_restart(self) -> None:
        one = answer(1, bytes(range(256)) * 400)
        other = answer(2, b"")._replace(near=b"", group=b"", vector=b"", scope="", model="modèle")
        self.written(one, other)
        file = self.open()
        self.assertEqual(file.load(one.key), one)
        self.assertEqual(file.load(other.key), other)
        self.assertIsNone(file.load(key(3)))
        expected = [
            Indexed(
                *(s.key, s.scope, s.model, s.path, size_bytes, s.tokens, s.cost_usd, s.stored_unix_s),
                *(s.near, s.group, s.vector),
            )
            for s, size_bytes in ((one, len(encode(one))), (other, len(encode(other))))
        ]
        self.assertEqual(list(file.index()), expected)
        self.assertEqual((file.dropped, file.errors, self.logged), (0, 0, []))

    def test_what_waits_to_be_written_is_found_and_what_waits_to_be_removed_is_not(self) -> None:
        self.written(answer(1), answer(2))
        with mock.patch.object(answerfile, "WRITE_INTERVAL_S", 3600.0):
            file = self.open()
            file.put(answer(3))
            file.remove([key(1)])
            self.assertEqual([file.load(key(n)) for n in (1, 2, 3)], [None, answer(2), answer(3)])
            file.clear()
            self.assertEqual([file.load(key(n)) for n in (1, 2, 3)], [None, None, None])
            file.put(answer(2, b"new"))
            self.assertEqual(file.load(key(2)), answer(2, b"new"))

    def test_it_is_written_without_being_closed(self) -> None:
        file = self.open()
        file.put(answer(1))
        with self.plain() as connection:
            eventually(lambda: connection.execute("SELECT count(*) FROM answers").fetchall() == [(1,)])
        file.remove([key(1)])
        with self.plain() as connection:
            eventually(lambda: connection.execute("SELECT count(*) FROM answers").fetchall() == [(0,)])

    def test_the_last_of_what_is_put_as_one_key_counts(self) -> None:
        self.written(answer(1, b"a"), answer(2), answer(1, b"b"))
        self.written(answer(2, b"c"))
        self.assertEqual(self.open().load(key(1)), answer(1, b"b"))
        self.assertEqual(self.open().load(key(2)), answer(2, b"c"))

    def test_changes_are_made_in_order(self) -> None:
        file = self.open()
        file.put(answer(1))
        file.remove([key(1), key(2), key(9)])
        file.put(answer(2))
        file.put(answer(3))
        file.clear()
        file.put(answer(4))
        file.put(answer(5))
        file.remove([key(4)])
        file.put(answer(6))
        file.close(LONG_S)
        self.assertEqual(self.keys(), [key(5), key(6)])

    def test_clearing_reaches_what_an_earlier_run_has_written(self) -> None:
        self.written(answer(1), answer(2))
        file = self.open()
        file.clear()
        file.close(LONG_S)
        self.assertEqual(self.keys(), [])

    def test_only_its_owner_may_read_it(self) -> None:
        before = os.umask(0)
        self.addCleanup(os.umask, before)
        self.open().put(answer(1))
        for path in self.path.parent.iterdir():
            self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600, path)


class OrderTest(AnswerFileTest):
    def test_what_was_used_last_comes_last(self) -> None:
        self.written(*(answer(n) for n in range(6)))
        file = self.open()
        file.touch([key(4), key(0)])
        file.touch([key(2), key(77)])
        file.close(LONG_S)
        self.assertEqual(self.keys(), [key(n) for n in (1, 3, 5, 4, 0, 2)])

    def test_a_use_of_what_is_not_yet_written_counts(self) -> None:
        file = self.open()
        for n in range(3):
            file.put(answer(n))
        file.touch([key(0)])
        file.remove([key(1)])
        file.touch([key(1)])
        file.close(LONG_S)
        self.assertEqual(self.keys(), [key(2), key(0)])

    def test_many_come_in_pages_each_once(self) -> None:
        self.written(*(answer(n) for n in range(answerfile.PAGE_ROWS * 2 + 3)))
        file = self.open()
        seen = []
        for indexed in file.index():
            seen.append(indexed.key)
            if len(seen) == 10:
                # Used while it is read: these come again in a later page, but for the reader.
                with self.plain() as connection:
                    connection.execute("UPDATE uses SET used = used + 100000 WHERE used <= 5")
        self.assertEqual(seen, [key(n) for n in range(answerfile.PAGE_ROWS * 2 + 3)])

    def test_reading_it_keeps_no_writer_waiting(self) -> None:
        self.written(*(answer(n) for n in range(answerfile.PAGE_ROWS + 3)))
        file = self.open()
        reading = file.index()
        next(reading)
        file.remove([key(answerfile.PAGE_ROWS + 1)])
        file.close(LONG_S)
        self.assertEqual((file.dropped, file.errors), (0, 0))
        self.assertEqual(len(list(reading)), answerfile.PAGE_ROWS + 1)


class BrokenTest(AnswerFileTest):
    def test_broken_rows_are_left_out(self) -> None:
        self.written(*(answer(n) for n in range(9)))
        with self.plain() as connection:
            for n, change in enumerate(
                (
                    "scope = CAST(x'ff' AS TEXT)",
                    "vector = x'00'",
                    "near = 5",
                    "tokens = -1",
                    "cost_usd = 9e999",
                    "stored_unix_s = 'when'",
                )
            ):
                connection.execute(f"UPDATE answers SET {change} WHERE key = ?", (key(n),))
            connection.execute("UPDATE answers SET value = x'00' WHERE key = ?", (key(6),))
            connection.execute("UPDATE answers SET value = (SELECT value FROM answers WHERE key = ?)", (key(8),))
        self.assertEqual(self.keys(), [key(n) for n in (6, 7, 8)])
        file = self.open()
        self.assertIsNone(file.load(key(1)))
        self.assertIsNone(file.load(key(7)))
        self.assertEqual(file.load(key(8)), answer(8))
        self.assertEqual(self.logged, [])

    def test_what_sqlite_cannot_hold_is_dropped_alone(self) -> None:
        file = self.open()
        file.put(answer(1))
        file.put(answer(2)._replace(scope="\ud800"))
        file.put(answer(3)._replace(cost_usd=float("nan")))
        file.put(answer(4)._replace(prompt_tokens=1 << 70))
        file.put(answer(5))
        file.close(LONG_S)
        self.assertEqual(file.dropped, 3)
        self.assertEqual(self.keys(), [key(1), key(5)])

    def test_what_is_no_database_is_refused(self) -> None:
        self.path.write_bytes(b"This is a letter to my aunt. " * 100)
        self.assertIn("is damaged or not a database", self.refused())
        self.assertTrue(self.path.read_bytes().startswith(b"This is a letter"))

    def test_a_damaged_file_is_refused(self) -> None:
        self.written(*(answer(n, b"x" * 3000) for n in range(100)))
        raw = bytearray(self.path.read_bytes())
        for page in range(1, len(raw) // 4096):
            raw[page * 4096 : page * 4096 + 200] = b"\xa5" * 200
        self.path.write_bytes(raw)
        self.assertIn("is damaged", self.refused())

    def test_the_database_of_another_program_is_refused_and_not_changed(self) -> None:
        with self.plain() as connection:
            connection.execute("CREATE TABLE music (title TEXT)")
        before = self.path.read_bytes()
        self.assertIn("is the database of another program", self.refused())
        self.assertEqual(self.path.read_bytes(), before)

    def test_the_state_database_is_refused_and_refuses_it(self) -> None:
        StateDb(self.path).close()
        self.assertIn("is the database of another program", self.refused())
        self.path = self.path.with_name("other.db")
        self.written()
        with self.assertRaisesRegex(Exception, "another program"):
            StateDb(self.path)

    def test_a_newer_version_is_refused(self) -> None:
        self.written()
        with self.plain() as connection:
            self.assertEqual(connection.execute("PRAGMA application_id").fetchall(), [(APPLICATION_ID,)])
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
        self.assertIn("newer version", self.refused())

    def test_what_cannot_be_a_file_is_refused(self) -> None:
        here = self.path.parent
        for path in (here, here / "missing" / "answers.db", Path("a\0b")):
            self.path = path
            self.refused()


class FailingTest(AnswerFileTest):
    def test_a_locked_file_is_counted_said_once_and_written_later(self) -> None:
        patches: dict[str, Any] = {"WRITE_INTERVAL_S": 0.001, "RETRY_INTERVAL_S": 0.001, "BUSY_TIMEOUT_S": 0.001}
        with mock.patch.multiple(answerfile, **patches):
            file = self.open()
            with self.plain() as connection:
                connection.execute("BEGIN IMMEDIATE")
                file.put(answer(1))
                file.put(answer(2))
                eventually(lambda: file.errors >= 3)
                file.remove([key(2)])
                file.put(answer(3))
                self.assertEqual(file.load(key(1)), answer(1))
                self.assertEqual(len(self.logged), 1)
                self.assertEqual(self.logged[0]["event"], "cache_db_failed")
                self.assertIn("locked", self.logged[0]["reason"])
                connection.execute("ROLLBACK")
            file.close(LONG_S)
        self.assertEqual(file.dropped, 0)
        self.assertEqual(self.keys(), [key(1), key(3)])

    def test_on_a_full_disk_answers_wait_and_are_written_when_there_is_room(self) -> None:
        with mock.patch.multiple(answerfile, WRITE_INTERVAL_S=0.001, RETRY_INTERVAL_S=0.001):
            file = self.open()
            file._writer.execute("PRAGMA max_page_count = 8").fetchall()
            file.put(answer(1, b"x" * 100_000))
            eventually(lambda: file.errors >= 2)
            self.assertEqual(file.load(key(1)), answer(1, b"x" * 100_000))
            self.assertEqual([entry["doing"] for entry in self.logged], ["writing"])
            self.assertIn("full", self.logged[0]["reason"])
            file._writer.execute("PRAGMA max_page_count = 1000000").fetchall()
            file.close(LONG_S)
        self.assertEqual(file.dropped, 0)
        self.assertEqual(self.keys(), [key(1)])

    def test_what_could_not_be_written_by_the_end_is_counted(self) -> None:
        with mock.patch.multiple(answerfile, BUSY_TIMEOUT_S=0.001):
            file = self.open()
            with self.plain() as connection:
                connection.execute("BEGIN IMMEDIATE")
                file.put(answer(1))
                file.touch([key(2)])
                file.close(LONG_S)
                connection.execute("ROLLBACK")
        self.assertEqual(file.dropped, 1)

    def test_a_file_that_has_gone_is_no_reason_to_raise(self) -> None:
        file = self.open()
        for path in list(self.path.parent.iterdir()):
            path.unlink()
        self.assertIsNone(file.load(key(1)))
        self.assertIsNone(file.load(key(1)))
        self.assertEqual(list(file.index()), [])
        self.assertEqual(file.errors, 3)
        self.assertEqual([entry["doing"] for entry in self.logged], ["reading"])

    def test_what_waits_is_bounded(self) -> None:
        limits: dict[str, Any] = {"WAITING_ANSWERS": 4, "WAITING_USES": 2, "WAITING_REMOVALS": 6, "WAITING_BYTES": 1000}
        self.written(answer(3), answer(50))
        with mock.patch.multiple(answerfile, WRITE_INTERVAL_S=3600.0, **limits):
            file = self.open()
            file.put(answer(1, b"x" * 900))
            file.put(answer(2, b"x" * 900))  # too much; as no old answer is to stay, it is removed instead
            self.assertEqual(file.dropped, 1)
            file.touch([key(50)])
            file.put(answer(3))
            file.put(answer(4))
            file.put(answer(5))
            self.assertEqual(file.dropped, 2)
            file.remove([key(6), key(7), key(8), key(1)])
            self.assertEqual(file.dropped, 4)
            file.close(LONG_S)
        self.assertEqual(self.keys(), [key(50), key(3), key(4)])

    def test_after_the_end_all_is_counted_and_nothing_raised(self) -> None:
        file = self.open()
        file.put(answer(1))
        file.close(LONG_S)
        file.close(LONG_S)
        file.put(answer(2))
        file.remove([key(1)])
        file.touch([key(1)])
        file.clear()
        self.assertIsNone(file.load(key(1)))
        self.assertEqual(file.dropped, 2)
        self.assertEqual(self.keys(), [key(1)])


class TogetherTest(AnswerFileTest):
    def test_two_have_the_file_open(self) -> None:
        one, other = self.open(), self.open()
        one.put(answer(1))
        eventually(lambda: other.load(key(1)) == answer(1))
        other.put(answer(2))
        other.remove([key(1)])
        eventually(lambda: one.load(key(2)) == answer(2) and one.load(key(1)) is None)

    def test_many_threads(self) -> None:
        file = self.open()
        faults: list[object] = []

        def work(first: int) -> None:
            try:
                for n in range(first, first + 300):
                    stored = answer(n, b"%d" % n)
                    file.put(stored)
                    if file.load(stored.key) != stored:
                        faults.append(n)
                    file.touch([key(first)])
                    if n % 3:
                        file.remove([stored.key])
                        if file.load(stored.key) is not None:
                            faults.append(-n)
            except Exception as error:
                faults.append(error)

        with mock.patch.object(answerfile, "WRITE_INTERVAL_S", 0.001):
            threads = [threading.Thread(target=work, args=(n * 1000,)) for n in range(1, 5)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            file.close(LONG_S)
        self.assertEqual((faults, file.dropped, file.errors), ([], 0, 0))
        left = {key(n) for first in range(1, 5) for n in range(first * 1000, first * 1000 + 300) if n % 3 == 0}
        self.assertEqual(set(self.keys()), left)


if __name__ == "__main__":
    unittest.main()
