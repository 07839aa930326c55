"""Keys: what they may be, their life from creation to revocation, other processes' changes, and the command line."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import sqlite3
import subprocess
import sys
import tempfile
import threading
import unittest
from pathlib import Path
from typing import Any, Optional

from gateway.keys.command import keys_command, state_db_at
from gateway.keys.record import PREVIOUS_MAX
from gateway.keys.store import (
    KeyExists,
    KeyRecord,
    KeyRefused,
    KeyStore,
    KeyUnknown,
    arguments_of,
    parse_duration,
    secret_digest,
    to_public,
)
from gateway.state.database import StateDb, StateDbError
from gateway.state.file import APPLICATION_ID, MIGRATIONS
from tests.support import ROOT, eventually

NOON = 1_800_000_000.0
DAY_S = 86_400.0


class Clock:
    """Unix seconds that move when told to."""

    def __init__(self) -> None:
        self.now_s = NOON

    def __call__(self) -> float:
        return self.now_s


class KeysTest(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "gateway.db"
        self.clock = Clock()

    def open(self) -> StateDb:
        db = StateDb(self.path, flush_interval_s=0.01)
        self.addCleanup(db.close)
        return db

    def store(self, **options: Any) -> KeyStore:
        return KeyStore(self.open(), self.clock, **options)


class DurationTest(unittest.TestCase):
    def test_durations(self) -> None:
        for text, duration_s in (("10s", 10), ("30m", 1800), ("24h", 86_400), ("90d", 7_776_000), ("0s", 0)):
            with self.subTest(text):
                self.assertEqual(parse_duration(text), duration_s)
        for bad in (
            "",
            "90",
            "d",
            "1w",
            "-1d",
            "1.5h",
            "1 d",
            " 1d",
            "1d ",
            "1D",
            "1h30m",
            "999999999999d",
            "٣d",
            5,
            None,
        ):
            with self.subTest(bad), self.assertRaisesRegex(ValueError, "s, m, h or d.* as in 90d"):
                parse_duration(bad)


class CreateTest(KeysTest):
    def test_a_new_key_is_known_by_its_digest_and_stored_as_nothing_else(self) -> None:
        store = self.store()
        record, secret = store.create(
            "alice",
            "admin",
            models=("13b", "7b*"),
            rpm=60,
            tpm=20_000,
            concurrency=4,
            budget_usd=5,
            budget_period="day",
            expires_s=90 * DAY_S,
            priority="high",
        )
        self.assertRegex(secret, r"\Aigw_[A-Za-z0-9_-]{43}\Z")
        self.assertEqual(record.digest, hashlib.sha256(secret.encode()).digest())
        self.assertEqual(store.find(secret_digest(secret)), record)
        self.assertIs(store.lookup_table()[record.digest], store.current("alice"))
        self.assertEqual(
            (record.name, record.role, record.models, record.rpm, record.tpm, record.concurrency, record.budget_usd),
            ("alice", "admin", ("13b", "7b*"), 60, 20_000, 4, 5),
        )
        self.assertEqual(
            (record.budget_period, record.priority, record.created_unix_s, record.expires_unix_s),
            ("day", "high", NOON, NOON + 90 * DAY_S),
        )
        self.assertTrue(record.allows_model("7b-chat") and not record.allows_model("70b"))
        for file in self.path.parent.iterdir():
            self.assertNotIn(secret[4:].encode(), file.read_bytes(), file.name)
        for text in (repr(record), json.dumps(to_public(record))):
            self.assertNotIn(secret, text)
            self.assertNotIn(record.digest.hex(), text)
            self.assertNotIn(repr(record.digest), text)

    def test_a_key_reads_back_as_it_was_made(self) -> None:
        plain, _ = self.store().create("plain")
        full, _ = self.store().create("full", models=("a", "b"), rpm=1, budget_usd=0.5, expires_s=1.5, priority="low")
        self.assertEqual(full.budget_period, "month")
        self.assertEqual(self.store().list(), (full, plain))

    def test_secrets_differ(self) -> None:
        store = self.store()
        self.assertEqual(len({store.create(f"key-{number}")[1] for number in range(20)}), 20)

    def test_what_a_key_cannot_be(self) -> None:
        store = self.store()
        cases: tuple[tuple[dict[str, Any], str], ...] = (
            ({"name": ""}, "name: must be 1 to 64"),
            ({"name": "a b"}, "name:"),
            ({"name": "a" * 65}, "name:"),
            ({"name": "a\n"}, "name:"),
            ({"name": "ü"}, "name:"),
            ({"name": 7}, "name:"),
            ({"role": "king"}, 'role: must be one of admin, user, viewer, not "king"'),
            ({"role": None}, "role:"),
            ({"role": []}, "role:"),
            ({"models": "13b"}, "models: must be a list"),
            ({"models": ["13b", ""]}, "models: must be names"),
            ({"models": ["a,b"]}, "models:"),
            ({"models": [3]}, "models:"),
            ({"models": ["m"] * 101}, "models:"),
            ({"rpm": 0}, "rpm: must be an integer from 1"),
            ({"rpm": True}, "rpm:"),
            ({"rpm": 1.5}, "rpm:"),
            ({"rpm": "60"}, "rpm:"),
            ({"tpm": -1}, "tpm:"),
            ({"tpm": 10**10}, "tpm:"),
            ({"concurrency": 0}, "concurrency:"),
            ({"budget_usd": 0}, "budget_usd: must be a number of US dollars above 0"),
            ({"budget_usd": -5}, "budget_usd:"),
            ({"budget_usd": float("nan")}, "budget_usd:"),
            ({"budget_usd": float("inf")}, "budget_usd:"),
            ({"budget_usd": "5"}, "budget_usd:"),
            ({"budget_usd": 5, "budget_period": "year"}, "budget_period: must be one of day, week, month"),
            ({"budget_period": "day"}, "budget_period: says nothing without budget_usd"),
            ({"expires_s": 0}, "expires:"),
            ({"expires_s": -1}, "expires:"),
            ({"expires_s": "90d"}, "expires:"),
            ({"expires_s": 1e300}, "expires:"),
            ({"priority": "vip"}, "priority: must be one of high, normal, low"),
        )
        for members, words in cases:
            with self.subTest(members):
                with self.assertRaises(KeyRefused) as caught:
                    store.create(**{"name": "x", **members})
                self.assertEqual(len(caught.exception.faults), 1, caught.exception.faults)
                self.assertIn(words, caught.exception.faults[0])
        with self.assertRaises(KeyRefused) as caught:
            store.create("a b", "king", rpm=0, priority="vip")
        self.assertEqual(len(caught.exception.faults), 4)
        self.assertEqual(store.list(), ())

    def test_a_name_is_given_once_even_after_it_was_revoked(self) -> None:
        store = self.store(reserved={"from-settings"})
        store.create("alice")
        with self.assertRaisesRegex(KeyExists, "there is a key named alice already"):
            store.create("alice")
        store.revoke("alice")
        with self.assertRaises(KeyExists):
            self.store().create("alice")
        with self.assertRaisesRegex(KeyExists, "the settings have a key named from-settings"):
            store.create("from-settings")
        self.assertEqual([record.name for record in store.list()], ["alice"])

    def test_roles_of_a_file_may_be_given(self) -> None:
        record, _ = self.store(roles=("admin", "batcher")).create("b", "batcher")
        self.assertEqual(record.role, "batcher")

    def test_the_bodies_of_the_admin_api(self) -> None:
        self.assertEqual(
            arguments_of({"name": "a", "models": ["13b"], "rpm": None, "expires": "90d"}),
            {"name": "a", "models": ["13b"], "expires_s": 90 * DAY_S},
        )
        for document, words in (
            ([], "must be an object"),
            (None, "must be an object"),
            ({}, "name: is missing"),
            ({"name": "a", "digest": "00"}, '"digest": is not a known field'),
            ({"name": "a", "expires": 90}, "expires: must be a whole number with s, m, h or d"),
            ({"name": "a", "expires_s": 90}, '"expires_s": is not a known field'),
        ):
            with self.subTest(document), self.assertRaisesRegex(KeyRefused, re.escape(words)):
                arguments_of(document)


class LifeTest(KeysTest):
    def good(self, store: KeyStore, secret: str) -> bool:
        return store.find(secret_digest(secret)) is not None

    def reason(self, store: KeyStore, secret: str) -> Optional[str]:
        digest = secret_digest(secret)
        return store.lookup_table()[digest].refusal(digest, self.clock())

    def test_unknown_digests_find_nothing(self) -> None:
        store = self.store()
        store.create("alice")
        for digest in (b"", bytes(32), secret_digest("igw_wrong")):
            self.assertIsNone(store.find(digest))

    def test_a_key_expires_at_its_second(self) -> None:
        store = self.store()
        _, secret = store.create("alice", expires_s=60)
        self.clock.now_s = NOON + 59.999
        self.assertTrue(self.good(store, secret))
        self.clock.now_s = NOON + 60
        self.assertFalse(self.good(store, secret))
        self.assertEqual(self.reason(store, secret), "expired")
        self.assertEqual(to_public(store.show("alice"), self.clock())["state"], "expired")

    def test_a_revoked_key_is_good_for_nothing_at_once_and_stays_revoked(self) -> None:
        store = self.store()
        _, old = store.create("alice")
        _, new = store.rotate("alice", grace_s=3600)
        self.assertEqual(store.revoke("alice").revoked_unix_s, NOON)
        self.assertFalse(self.good(store, old) or self.good(store, new))
        self.assertEqual((self.reason(store, old), self.reason(store, new)), ("revoked", "revoked"))
        self.clock.now_s += 100
        self.assertEqual(store.revoke("alice").revoked_unix_s, NOON)
        with self.assertRaisesRegex(KeyRefused, "is revoked"):
            store.rotate("alice", grace_s=0, expires_s=60)

    def test_a_rotated_key_works_for_its_grace_and_the_new_one_at_once(self) -> None:
        store = self.store()
        _, old = store.create("alice", rpm=7)
        record, new = store.rotate("alice", grace_s=3600)
        self.assertEqual((record.name, record.rpm, record.created_unix_s), ("alice", 7, NOON))
        self.assertNotEqual(old, new)
        for passed_s, old_is_good in ((0, True), (3599.9, True), (3600, False), (10_000, False)):
            with self.subTest(passed_s=passed_s):
                self.clock.now_s = NOON + passed_s
                self.assertEqual(self.good(store, old), old_is_good)
                self.assertTrue(self.good(store, new))
        self.assertEqual(self.reason(store, old), "rotated")

    def test_without_grace_the_old_key_ends_at_once(self) -> None:
        store = self.store()
        _, old = store.create("alice")
        store.rotate("alice", grace_s=0)
        self.assertFalse(self.good(store, old))

    def test_each_rotation_keeps_its_promise(self) -> None:
        store = self.store()
        secrets = [store.create("alice")[1], store.rotate("alice", grace_s=3600)[1]]
        self.clock.now_s = NOON + 600
        record, secret = store.rotate("alice", grace_s=600)
        secrets.append(secret)
        self.assertEqual(to_public(record, self.clock.now_s)["previous_key_until"], int(NOON) + 3600)
        for passed_s, good in (
            (600, [True, True, True]),
            (1199, [True, True, True]),
            (1200, [True, False, True]),
            (3599, [True, False, True]),
            (3600, [False, False, True]),
        ):
            with self.subTest(passed_s=passed_s):
                self.clock.now_s = NOON + passed_s
                self.assertEqual([self.good(store, secret) for secret in secrets], good)
        record, _ = store.rotate("alice", grace_s=60)
        self.assertEqual(len(record.previous_keys), 1, "what has ended is forgotten")

    def test_a_rotation_without_grace_ends_every_earlier_secret(self) -> None:
        store = self.store()
        secrets = [store.create("alice")[1]]
        secrets += [store.rotate("alice", grace_s=grace_s)[1] for grace_s in (3600, 3600, 0)]
        self.assertEqual([self.good(store, secret) for secret in secrets], [False, False, False, True])

    def test_a_database_of_before_keeps_the_grace_of_its_keys(self) -> None:
        secrets = ["igw_old", "igw_new", "igw_other"]
        old, new, other = (secret_digest(secret) for secret in secrets)
        path = self.path.with_name("before.db")
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            for statement in MIGRATIONS[0]:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute("PRAGMA user_version = 1")
            columns = "name, role, models, created_unix_s, digest, previous_digest, previous_valid_until_unix_s"
            for row in (("alice", new, old, NOON + 60.5), ("bob", other, None, None)):
                values = (row[0], "user", "[]", NOON, *row[1:])
                connection.execute(f"INSERT INTO keys ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        db = StateDb(path)
        self.addCleanup(db.close)
        store = KeyStore(db, self.clock)
        self.assertEqual([self.good(store, secret) for secret in secrets], [True] * 3)
        self.assertEqual(store.show("alice").previous_keys, ((old, NOON + 60.5),))
        _, newest = store.rotate("alice", grace_s=3600)
        self.assertTrue(self.good(store, newest))
        self.clock.now_s = NOON + 60.5
        self.assertEqual([self.good(store, secret) for secret in secrets], [False, True, True])

    def test_revoking_ends_every_secret(self) -> None:
        store = self.store()
        secrets = [store.create("alice")[1]] + [store.rotate("alice", grace_s=3600)[1] for _ in range(2)]
        store.revoke("alice")
        self.assertEqual([self.reason(store, secret) for secret in secrets], ["revoked"] * 3)

    def test_so_many_earlier_secrets_and_no_more(self) -> None:
        store = self.store()
        first = store.create("alice")[1]
        for _ in range(PREVIOUS_MAX):
            store.rotate("alice", grace_s=3600)
        with self.assertRaisesRegex(KeyRefused, "0s ends them"):
            store.rotate("alice", grace_s=60)
        self.assertTrue(self.good(store, first))
        store.rotate("alice", grace_s=0)
        self.assertFalse(self.good(store, first))

    def test_rotating_never_prolongs_the_old_key(self) -> None:
        store = self.store()
        _, old = store.create("alice", expires_s=60)
        record, new = store.rotate("alice", grace_s=3600, expires_s=1000)
        self.assertEqual((record.previous_keys[-1][1], record.expires_unix_s), (NOON + 60, NOON + 1000))
        self.clock.now_s = NOON + 60
        self.assertEqual((self.good(store, old), self.good(store, new)), (False, True))

    def test_the_expiry_stays_unless_another_is_said(self) -> None:
        store = self.store()
        store.create("alice", expires_s=60)
        self.assertEqual(store.rotate("alice", grace_s=10)[0].expires_unix_s, NOON + 60)
        self.clock.now_s = NOON + 61
        with self.assertRaisesRegex(KeyRefused, "has expired; say when the new one does"):
            store.rotate("alice", grace_s=10)
        record, secret = store.rotate("alice", grace_s=10, expires_s=60)
        self.assertTrue(self.good(store, secret))
        self.assertLessEqual(record.previous_keys[-1][1], NOON + 60)

    def test_bad_spans_and_unknown_names_are_refused(self) -> None:
        store = self.store()
        store.create("alice")
        for grace_s, expires_s in ((-1.0, None), (float("nan"), None), (1e300, None), (1.0, 0.0)):
            with self.subTest(grace_s=grace_s, expires_s=expires_s), self.assertRaises(KeyRefused):
                store.rotate("alice", grace_s, expires_s)
        calls: tuple[Any, ...] = (store.show, store.revoke, lambda name: store.rotate(name, 0))
        for call in calls:
            with self.assertRaisesRegex(KeyUnknown, 'there is no key named "bob"'):
                call("bob")

    def test_what_the_admin_api_tells(self) -> None:
        store = self.store()
        store.create("alice", models=("13b",), expires_s=60)
        record, _ = store.rotate("alice", grace_s=30)
        self.assertEqual(
            to_public(record, NOON),
            {
                "name": "alice",
                "role": "user",
                "state": "active",
                "models": ["13b"],
                "rpm": None,
                "tpm": None,
                "concurrency": None,
                "budget_usd": None,
                "budget_period": None,
                "priority": None,
                "residency": None,
                "created": int(NOON),
                "expires": int(NOON) + 60,
                "revoked": None,
                "previous_key_until": int(NOON) + 30,
            },
        )
        self.assertIsNone(to_public(record, NOON + 30)["previous_key_until"])
        self.assertEqual(to_public(store.revoke("alice"), NOON)["state"], "revoked")

    def test_a_snapshot_cannot_be_changed_and_does_not_change(self) -> None:
        store = self.store()
        record, _ = store.create("alice")
        table: Any = store.lookup_table()
        with self.assertRaises(TypeError):
            table[bytes(32)] = record
        store.create("bob")
        self.assertEqual(len(table), 1)
        self.assertEqual(len(store.lookup_table()), 2)


class RefreshTest(KeysTest):
    def test_changes_of_another_store_are_seen_by_a_refresh_and_the_ledgers_are_not_taken_for_them(self) -> None:
        here, there = self.store(), self.store()
        _, secret = there.create("alice")
        digest = secret_digest(secret)
        self.assertIsNone(here.find(digest))
        self.assertTrue(here.refresh())
        self.assertIsNotNone(here.find(digest))
        self.assertFalse(here.refresh())
        table = here.lookup_table()
        there._db.write_now(lambda connection: connection.execute("INSERT INTO ledger (ts_unix_s) VALUES (1)"))
        self.assertFalse(here.refresh())
        self.assertIs(here.lookup_table(), table)
        there.revoke("alice")
        self.assertIsNotNone(here.find(digest))
        self.assertTrue(here.refresh())
        self.assertIsNone(here.find(digest))

    def test_a_change_by_hand_is_seen_as_well(self) -> None:
        store = self.store()
        _, secret = store.create("alice")
        self.open().write_now(lambda connection: connection.execute("DELETE FROM keys"))
        self.assertTrue(store.refresh())
        self.assertIsNone(store.find(secret_digest(secret)))

    def test_a_database_that_cannot_be_read_keeps_the_snapshot(self) -> None:
        db = self.open()
        store = KeyStore(db, self.clock)
        _, secret = store.create("alice")
        self.open().write_now(lambda connection: connection.execute("UPDATE keys SET models = 'no json'"))
        self.assertFalse(store.refresh())
        self.assertIn("a row of the table keys cannot be read", store.last_error or "")
        self.assertIsNotNone(store.find(secret_digest(secret)))
        self.open().write_now(lambda connection: connection.execute("UPDATE keys SET models = '[]'"))
        store.refresh()
        self.assertIsNone(store.last_error)
        db.close()
        store.refresh()
        self.assertIn("is closed", store.last_error or "")
        self.assertIsNotNone(store.find(secret_digest(secret)))
        with self.assertRaises(StateDbError):
            store.list()

    def test_many_threads_create_and_refresh_and_end_with_every_key(self) -> None:
        store = self.store()

        def create(first: int) -> None:
            for number in range(first, first + 10):
                store.create(f"key-{number}")
                store.refresh()

        threads = [threading.Thread(target=create, args=(10 * index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        store.refresh()
        self.assertEqual(len(store.lookup_table()), 40)


class CommandTest(KeysTest):
    def run_command(self, *argv: str, **options: Any) -> tuple[int, str, str]:
        output, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            status = keys_command(argv, state_db_at(self.path), **options)
        return status, output.getvalue(), errors.getvalue()

    def records(self) -> tuple[KeyRecord, ...]:
        return self.store().list()

    def test_create_shows_the_secret_once_and_list_and_show_never(self) -> None:
        status, output, errors = self.run_command(
            *("create", "--name", "alice", "--role", "user", "--models", "13b,7b", "--rpm", "60", "--tpm", "20000"),
            *("--concurrency", "4", "--budget-usd", "5", "--budget-period", "month"),
            *("--expires", "90d", "--priority", "high"),
        )
        self.assertEqual((status, errors), (0, ""))
        secret = re.findall(r"igw_[A-Za-z0-9_-]{43}", output)
        self.assertEqual(len(secret), 1)
        (record,) = self.records()
        self.assertEqual(record.digest, secret_digest(secret[0]))
        self.assertEqual(
            (record.models, record.rpm, record.tpm, record.concurrency, record.budget_usd, record.budget_period),
            (("13b", "7b"), 60, 20_000, 4, 5.0, "month"),
        )
        self.assertEqual(record.priority, "high")
        self.assertAlmostEqual((record.expires_unix_s or 0) - record.created_unix_s, 90 * DAY_S)
        for argv in (["list"], ["list", "--json"], ["show", "alice"], ["show", "alice", "--json"]):
            with self.subTest(argv):
                status, output, errors = self.run_command(*argv)
                self.assertEqual((status, errors), (0, ""))
                self.assertIn("alice", output)
                self.assertNotIn("igw_", output)
                self.assertNotIn(record.digest.hex(), output)

    def test_the_list_is_aligned(self) -> None:
        self.run_command("create", "--name", "a-long-name", "--rpm", "60")
        self.run_command("create", "--name", "b")
        lines = self.run_command("list")[1].splitlines()
        self.assertEqual([line.split()[0] for line in lines], ["name", "a-long-name", "b"])
        self.assertEqual({line.index(word) for line, word in zip(lines, ("role", "user", "user"))}, {13})

    def test_json_of_every_command(self) -> None:
        created = json.loads(self.run_command("create", "--name", "alice", "--json")[1])
        self.assertRegex(created["key"], "^igw_")
        rotated = json.loads(self.run_command("rotate", "alice", "--grace", "1h", "--expires", "2h", "--json")[1])
        self.assertNotEqual(rotated["key"], created["key"])
        self.assertIsNotNone(rotated["expires"])
        self.assertEqual({*rotated}, {*created})
        revoked = json.loads(self.run_command("revoke", "alice", "--json")[1])
        self.assertEqual((revoked["state"], "key" in revoked), ("revoked", False))
        self.assertEqual(json.loads(self.run_command("list", "--json")[1]), {"keys": [revoked]})

    def test_rotate_keeps_the_old_key_for_an_hour_unless_told_otherwise(self) -> None:
        self.run_command("create", "--name", "alice")
        for argv, grace_s in (((), 3600), (("--grace", "10m"), 600), (("--grace", "0s"), 0)):
            with self.subTest(argv):
                started_unix_s = self.records()[0].created_unix_s
                self.assertEqual(self.run_command("rotate", "alice", *argv)[0], 0)
                until = self.records()[0].previous_keys[-1][1]
                self.assertTrue(grace_s <= until - started_unix_s < grace_s + 60)

    def test_what_cannot_be_done_is_said_on_standard_error(self) -> None:
        self.run_command("create", "--name", "alice")
        for argv, status, words in (
            ((), 2, "required: command"),
            (("fly",), 2, "invalid choice"),
            (("create",), 2, "--name"),
            (("create", "--name", "a b", "--rpm", "0"), 2, "error: rpm: must be an integer"),
            (("create", "--name", "b", "--role", "king"), 2, "role: must be one of"),
            (("create", "--name", "b", "--rpm", "1_0"), 2, "must be a whole number"),
            (("create", "--name", "b", "--budget-usd", "five"), 2, "must be a number"),
            (("create", "--name", "b", "--expires", "5y"), 2, "as in 90d"),
            (("create", "--name", "b", "--models", ""), 2, "models:"),
            (("create", "--name", "alice"), 1, "there is a key named alice"),
            (("show", "bob"), 1, 'there is no key named "bob"'),
            (("revoke", "bob"), 1, 'there is no key named "bob"'),
            (("rotate", "bob"), 1, 'there is no key named "bob"'),
            (("rotate", "alice", "--grace", "soon"), 2, "as in 90d"),
        ):
            with self.subTest(argv):
                result, output, errors = self.run_command(*argv)
                self.assertEqual((result, output), (status, ""))
                self.assertIn(words, errors)
        self.assertEqual(len(self.records()), 1)

    def test_only_create_makes_the_file(self) -> None:
        self.assertEqual(self.run_command("list"), (0, "there are no keys\n", ""))
        self.assertEqual(json.loads(self.run_command("list", "--json")[1]), {"keys": []})
        for command in ("show", "revoke", "rotate"):
            self.assertEqual(self.run_command(command, "bob")[0], 1)
        self.assertFalse(self.path.exists())
        self.assertEqual(self.run_command("create", "--name", "bob")[0], 0)
        self.assertTrue(self.path.exists())

    def test_an_unusable_database_is_status_2(self) -> None:
        self.path.write_bytes(b"junk" * 1000)
        status, output, errors = self.run_command("list")
        self.assertEqual((status, output), (2, ""))
        self.assertIn("is not a state database", errors)

    def test_a_running_gateway_sees_what_another_process_creates_and_revokes(self) -> None:
        store = self.store()
        code = (
            "import sys\nfrom pathlib import Path\nfrom gateway.keys.command import keys_command, state_db_at\n"
            "sys.exit(keys_command(sys.argv[2:], state_db_at(Path(sys.argv[1]))))"
        )

        def other_process(*argv: str) -> Any:
            command = [sys.executable, "-c", code, str(self.path), *argv, "--json"]
            return json.loads(subprocess.run(command, cwd=ROOT, check=True, timeout=60, stdout=subprocess.PIPE).stdout)

        digest = secret_digest(other_process("create", "--name", "alice")["key"])
        self.clock.now_s = store.show("alice").created_unix_s
        eventually(lambda: store.refresh() or store.find(digest))
        other_process("revoke", "alice")
        eventually(lambda: store.refresh() and store.find(digest) is None)


if __name__ == "__main__":
    unittest.main()
