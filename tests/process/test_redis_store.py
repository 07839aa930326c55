"""Answers shared in Redis, with a real server that is stopped, killed, started late, filled with garbage and emptied.

Skipped where redis-server or the package redis is missing; with REQUIRE_REDIS=1 that is a failure.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path
from typing import Any, Callable, Optional
from unittest import mock

from gateway.configuration import ConfigurationError
from gateway.reuse import redisnews, redisstore
from gateway.reuse.redisstore import Lookup, RedisStore, RedisUnavailable
from gateway.reuse.stored import Chosen, Stored
from gateway.shared.redislink import refuse_unusable_url
from gateway.steps import Flagged
from tests.ports import free_port
from tests.support import TIMEOUT_S, eventually

SERVER = shutil.which("redis-server")
MISSING = [
    name
    for name, there in (("redis-server", SERVER), ("the package redis", importlib.util.find_spec("redis")))
    if not there
]
LONG_S = 3 * TIMEOUT_S
NOW_S = 1_700_000_000.0
SECRET = "hush%40hush-41"  # as it stands in a URL
needs_redis = unittest.skipIf(bool(MISSING), f"{' and '.join(MISSING)} missing")


def stored(number: int, **values: Any) -> Stored:
    """An answer whose key is made of a number."""
    body = b'{"answer":%d}' % number
    usual = Stored(key_of(number), "alice", "13b", "/chat/completions", body, f"id-{number}", 3, 4, 0.5, NOW_S)
    return usual._replace(**values)


def key_of(number: int) -> bytes:
    return b"%016d" % number


class Clock:
    """Stands still unless it is told otherwise."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Heard:
    """What a store has logged, and the vectors it told of. Waits are bounded."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.vectors: list[Stored] = []
        self.changed = threading.Condition()

    def log(self, level: str, event: str, **fields: Any) -> None:
        with self.changed:
            self.lines.append({"level": level, "event": event, **fields})
            self.changed.notify_all()

    def on_vector(self, record: Stored) -> None:
        with self.changed:
            self.vectors.append(record)
            self.changed.notify_all()

    def wait(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            if not self.changed.wait_for(condition, LONG_S):
                raise AssertionError(f"not so: {self.lines}, {len(self.vectors)} vectors")

    def wait_for_states(self, *states: str) -> None:
        self.wait(lambda: self.states() == list(states))

    def states(self) -> list[str]:
        return [line["state"] for line in self.lines]


class Server:
    """A redis-server on a port of its own, which it keeps when it is started again. It saves nothing."""

    def __init__(self, folder: str, *options: str) -> None:
        self.port = free_port()
        self.socket_path = str(Path(folder) / "redis.sock")
        self._command = [
            *(str(SERVER), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", folder, "--save", ""),
            *("--appendonly", "no", "--unixsocket", self.socket_path, "--daemonize", "no", *options),
        ]
        self._process: Optional[subprocess.Popen[bytes]] = None

    @classmethod
    def for_test(cls, test: unittest.TestCase, *options: str) -> Server:
        """One that is gone when the test has ended."""
        folder = tempfile.TemporaryDirectory()
        test.addCleanup(folder.cleanup)
        server = cls(folder.name, *options)
        test.addCleanup(server.kill)
        return server

    def start(self) -> Server:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        eventually(self.answers)
        return self

    def answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), TIMEOUT_S) as probe:
            probe.sendall(b"PING\r\n")
            return probe.recv(100)[:1] in (b"+", b"-")
        return False

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(LONG_S)
            self._process = None


class RequirementTest(unittest.TestCase):
    @unittest.skipUnless(os.environ.get("REQUIRE_REDIS") == "1", "REQUIRE_REDIS=1 is not set")
    def test_redis_is_there(self) -> None:
        self.assertEqual(MISSING, [], "REQUIRE_REDIS=1, but these are missing")

    def test_without_the_package_the_fault_says_what_to_install(self) -> None:
        with mock.patch.dict(sys.modules, {"redis": None}):
            with self.assertRaises(ConfigurationError) as caught:
                refuse_unusable_url("redis://127.0.0.1")
        self.assertEqual(caught.exception.faults, ("REDIS_URL needs the package redis: pip install '.[redis]'",))


@needs_redis
class UrlTest(unittest.TestCase):
    def test_what_redis_py_takes_is_taken(self) -> None:
        for url in (
            "redis://localhost",
            "redis://user:p%40ss@localhost:6380/3",
            "rediss://:secret@redis.example:6380/0?ssl_cert_reqs=none",
            "unix:///run/redis.sock?db=2",
            "unix://user:secret@/run/redis.sock",
            "redis://localhost?socket_timeout=60&decode_responses=1&max_connections=5&health_check_interval=9",
        ):
            with self.subTest(url=url):
                refuse_unusable_url(url)

    def test_a_malformed_url_is_a_fault_without_the_password(self) -> None:
        for url in (
            "localhost:6379",
            "http://:hush@localhost",
            "redis://:hush@localhost:port/0",
            "redis://:hush@localhost:99999",
            "redis://:hush@localhost/first",
            "redis://:hush@localhost?db=first",
            "redis://:hush@localhost?hush=1",
            "redis://user:12/hush@localhost",
            "redis://user:12#hush@localhost",
            "redis://user:12?hush@localhost",
            "redis://[:hush@localhost",
            "redis://:hush@local host",
        ):
            with self.subTest(url=url):
                with self.assertRaises(ConfigurationError) as caught:
                    refuse_unusable_url(url)
                self.assertIn("REDIS_URL", str(caught.exception))
                self.assertNotIn("hush", str(caught.exception))
                self.assertIsNone(caught.exception.__cause__)


class StoreTest(unittest.TestCase):
    """A server, not yet started, and stores on it."""

    options: tuple[str, ...] = ()

    def setUp(self) -> None:
        self.server = Server.for_test(self, *self.options)
        self.heard = Heard()
        self.clock = Clock()

    def store(self, heard: Optional[Heard] = None, **values: Any) -> RedisStore:
        heard = heard or self.heard
        values.setdefault("url", f"redis://127.0.0.1:{self.server.port}/0")
        values.setdefault("timeout_s", LONG_S)
        values.setdefault("ttl_s", 600.0)
        values.setdefault("clock", self.clock)
        store = RedisStore(log=heard.log, on_vector=heard.on_vector, **values)
        self.addCleanup(store.close, TIMEOUT_S)
        return store

    def raw(self, **options: Any) -> Any:
        client = importlib.import_module("redis").Redis(port=self.server.port, **options)
        self.addCleanup(client.close)
        return client

    def ended(self, lookup: Optional[Lookup]) -> Lookup:
        assert lookup is not None
        self.assertTrue(Flagged(lookup.flag, LONG_S).block())
        return lookup

    def found(self, store: RedisStore, *keys: bytes, **values: Any) -> Optional[Stored]:
        return self.ended(store.get(*keys, **values)).found

    def keep(self, store: RedisStore, *answers: Stored) -> None:
        """Put answers, and wait until Redis has all of them."""
        for answer in answers:
            store.put(answer)
        eventually(lambda: not store._puts and store._begun_s is None)
        self.assertIsNotNone(self.found(store, answers[-1].key))

    def advance(self, store: RedisStore, seconds: float) -> None:
        """Let the clock go on, and have the store look at it."""
        self.clock.now_s += seconds
        store.get(b"poke")


@needs_redis
class RunningTest(StoreTest):
    def setUp(self) -> None:
        super().setUp()
        self.server.start()

    def test_what_one_puts_another_gets(self) -> None:
        one, other = self.store(), self.store()
        answer = stored(1, near=b"near-1", group=b"group-1", vector=b"\0\0\x80?", body=bytes(range(256)) * 9000)
        self.assertIsNone(self.found(other, answer.key))
        self.keep(one, answer)
        self.assertEqual(self.found(other, answer.key), answer)
        self.assertEqual(self.heard.lines, [])
        self.assertEqual((one.errors, one.skipped), (0, 0))

    def test_the_first_key_that_is_there_is_found(self) -> None:
        store = self.store()
        self.keep(store, stored(1), stored(2))
        self.assertEqual(self.found(store, key_of(9), key_of(2), key_of(1)), stored(2))
        self.assertEqual(self.found(store, key_of(9), key_of(2), key_of(1), near=b"n"), stored(2))
        self.assertIsNone(store.get())

    def test_many_at_once_are_each_given_their_own(self) -> None:
        store = self.store()
        self.keep(store, *(stored(number) for number in range(300)))
        lookups = [store.get(key_of(number), near=b"x" * (number % 2)) for number in range(400)]
        bodies = [self.ended(lookup).found for lookup in lookups]
        self.assertEqual(bodies, [stored(number) if number < 300 else None for number in range(400)])

    def test_a_near_duplicate_is_found_by_the_pointer(self) -> None:
        store = self.store()
        self.keep(store, stored(1, near=b"near"), stored(2, near=b"near"))
        self.assertEqual(self.found(store, key_of(9), near=b"near"), stored(2, near=b"near"))
        self.assertEqual(self.found(store, near=b"near"), stored(2, near=b"near"))
        self.assertEqual(self.found(store, key_of(1), near=b"near"), stored(1, near=b"near"))
        self.assertIsNone(self.found(store, key_of(9), near=b"far"))

    def test_a_dangling_or_wrong_pointer_is_a_miss(self) -> None:
        store = self.store()
        self.keep(store, stored(1, near=b"near"), stored(2))
        raw = self.raw()
        for pointer in (key_of(7).hex(), key_of(2).hex(), b"\xff\0"):
            raw.set("igw:n:" + b"near".hex(), pointer)
            self.assertIsNone(self.found(store, near=b"near"))
        raw.delete("igw:n:" + b"near".hex())
        raw.lpush("igw:n:" + b"near".hex(), 1)
        self.assertIsNone(self.found(store, near=b"near"))
        self.assertEqual((self.heard.lines, store.errors), ([], 0))

    def test_a_script_that_redis_has_forgotten_is_sent_again(self) -> None:
        store = self.store()
        self.keep(store, stored(1, near=b"near"))
        for _ in range(2):
            self.raw().script_flush()
            lookups = [store.get(near=b"near"), store.get(key_of(1)), store.get(near=b"far")]
            self.assertEqual([self.ended(lookup).found is not None for lookup in lookups], [True, True, False])
        self.assertEqual((self.heard.lines, store.errors), ([], 0))

    def test_everything_has_a_time_to_live(self) -> None:
        store = self.store(ttl_s=0.5)
        raw = self.raw()
        store.put(stored(1, near=b"near", vector=b"\0\0\x80?"))
        eventually(lambda: raw.exists("igw:v") or raw.info("stats")["expired_keys"] == 3)
        self.assertFalse([name for name in raw.keys("*") if raw.pttl(name) == -1])
        eventually(lambda: not raw.keys())
        self.assertIsNone(self.found(store, key_of(1), near=b"near"))

    def test_names_and_passwords_are_not_in_the_keys(self) -> None:
        store = self.store()
        self.keep(store, stored(1, scope="alice", model="13b", near=b"near"))
        self.assertFalse([name for name in self.raw().keys("*") if b"alice" in name or b"13b" in name])

    def test_garbage_and_what_was_not_asked_for_are_misses(self) -> None:
        store = self.store()
        self.keep(store, stored(1))
        raw = self.raw()
        good = raw.get("igw:a:" + key_of(1).hex())
        for number, value in enumerate(
            (b"", b"garbage", good[:28], good[:40], b"igw2" + good[4:], good.replace(b"[1,", b"[9,"), good), start=10
        ):
            raw.set("igw:a:" + key_of(number).hex(), value)
            self.assertIsNone(self.found(store, key_of(number)))
        huge = good[:28] + good[28:].replace(b",3,4,", b",1e999,4,")
        self.assertNotEqual(huge, good)
        raw.set("igw:a:" + key_of(20).hex(), huge)
        self.assertIsNone(self.found(store, key_of(20)))
        raw.xadd("igw:v", {b"origin": huge[28:]})
        self.assertIsNone(self.found(store, key_of(20)))
        raw.lpush("igw:a:" + key_of(30).hex(), 1)
        self.assertIsNone(self.found(store, key_of(30)))
        self.assertEqual(self.found(store, key_of(30), key_of(1)), stored(1))
        self.assertEqual((self.heard.lines, store.errors), ([], 0))

    def test_clear_by_model_scope_and_age(self) -> None:
        store = self.store()
        answers = [
            stored(1, model="13b", scope="alice", stored_unix_s=NOW_S - 100),
            stored(2, model="13b", scope="bob", stored_unix_s=NOW_S - 50),
            stored(3, model="70b", scope="alice", stored_unix_s=NOW_S - 50),
            stored(4, model="70b", scope="", stored_unix_s=NOW_S - 100, near=b"near", vector=b"\0\0\x80?"),
        ]
        raw = self.raw()
        raw.set("other", "kept")
        for choice, gone in (
            ((None, None, None), {1, 2, 3, 4}),
            (("13b", None, None), {1, 2}),
            ((None, "alice", None), {1, 3}),
            (("70b", "alice", None), {3}),
            ((None, "", None), {4}),
            ((None, None, 100.0), {1, 4}),
            (("13b", None, 100.0), {1}),
            (("none", None, None), set()),
            ((None, None, 101.0), set()),
        ):
            with self.subTest(choice=choice):
                self.keep(store, *answers)
                raw.set("igw:a:garbage", "x")
                removed = store.clear(Chosen(NOW_S, *choice), LONG_S)
                left = {number for number in range(1, 5) if self.found(store, key_of(number)) is not None}
                self.assertEqual(left, {1, 2, 3, 4} - gone)
                self.assertEqual(removed, len(gone) + (choice == (None, None, None)))
                self.assertEqual(raw.exists("igw:a:garbage"), choice != (None, None, None))
        self.assertEqual(store.clear(Chosen(NOW_S), LONG_S), 5)
        self.assertEqual((raw.keys("igw:[an]*"), raw.xlen("igw:v"), raw.get("other")), ([], 0, b"kept"))

    def test_clear_of_many_is_bounded_in_time(self) -> None:
        store = self.store()
        raw = self.raw()
        self.keep(store, stored(1))
        value = raw.get("igw:a:" + key_of(1).hex())
        raw.mset({f"igw:a:{number:032x}": value for number in range(3000)})
        late = itertools.chain([0.0], itertools.repeat(2 * LONG_S))  # at the begin, and from then on
        with self.assertRaises(RedisUnavailable) as caught:
            with mock.patch("time.monotonic", side_effect=late):
                store.clear(Chosen(NOW_S), LONG_S)
        self.assertIn("time was over", str(caught.exception))
        self.assertEqual(caught.exception.removed + store.clear(Chosen(NOW_S), LONG_S), 3001)

    def test_flushall_costs_only_what_was_there(self) -> None:
        store = self.store()
        self.keep(store, stored(1, near=b"near", vector=b"\0\0\x80?"))
        self.raw().flushall()
        self.assertIsNone(self.found(store, key_of(1), near=b"near"))
        self.keep(store, stored(2, near=b"near", vector=b"\0\0\x80?"))
        self.assertEqual((self.heard.lines, store.errors), ([], 0))

    def test_a_connection_that_the_server_has_closed_is_made_again(self) -> None:
        store = self.store()
        self.keep(store, stored(1))
        raw = self.raw()
        for client in raw.client_list():
            if client["name"] == "inference-gateway":
                raw.client_kill_filter(_id=client["id"])
        eventually(lambda: all(client["name"] != "inference-gateway" for client in raw.client_list()))
        self.assertEqual(self.found(store, key_of(1)), stored(1))
        self.assertEqual((self.heard.lines, store.errors), ([], 0))

    def test_a_unix_socket(self) -> None:
        store = self.store(url=f"unix://{self.server.socket_path}?db=3")
        self.keep(store, stored(1))
        self.assertEqual(len(self.raw(db=3).keys()), 1)

    def test_a_full_redis_opens_the_breaker(self) -> None:
        store = self.store()
        self.keep(store, stored(1))
        raw = self.raw()
        raw.config_set("maxmemory", 1)
        store.put(stored(2))
        self.heard.wait_for_states("open")
        raw.config_set("maxmemory", 0)
        self.advance(store, 1.0)
        self.heard.wait_for_states("open", "closed")
        self.keep(store, stored(2))

    def test_a_read_only_redis_opens_the_breaker(self) -> None:
        store = self.store()
        self.keep(store, stored(1))
        self.raw().execute_command("REPLICAOF", "127.0.0.1", "1")
        store.put(stored(2))
        self.heard.wait_for_states("open")

    def test_an_answer_that_redis_refuses_fails_alone(self) -> None:
        store = self.store()
        self.raw().set("igw:v", "not a stream")
        heard = Heard()
        other = self.store(heard)
        store.put(stored(1, vector=b"\0\0\x80?"))
        store.put(stored(3, scope=None))
        self.keep(store, stored(2))
        self.assertEqual(self.found(other, key_of(1)), stored(1, vector=b"\0\0\x80?"))
        heard.wait_for_states("vectors are not read")
        self.assertGreater(store.errors, 0)
        self.assertIsNotNone(other.get(key_of(1)))


@needs_redis
class VectorsTest(StoreTest):
    def setUp(self) -> None:
        super().setUp()
        self.server.start()

    def with_vector(self, number: int) -> Stored:
        return stored(number, group=b"group", vector=b"\0\0\x80?" * 4)

    def test_each_hears_of_the_others(self) -> None:
        heard = [Heard(), Heard()]
        one, other = (self.store(ear) for ear in heard)
        for turn in (1, 2):
            self.keep(one, self.with_vector(1), stored(2), self.with_vector(3))
            self.keep(other, self.with_vector(4))
            self.found(one, b"x")
            self.found(other, b"x")
            heard[0].wait(lambda most=turn: len(heard[0].vectors) == most)
            heard[1].wait(lambda most=turn: len(heard[1].vectors) == 2 * most)
        self.assertEqual(heard[0].vectors, [self.with_vector(4)._replace(body=b"")] * 2)
        self.assertEqual([record.key for record in heard[1].vectors], [key_of(1), key_of(3)] * 2)

    def test_who_comes_later_hears_of_all_there_are(self) -> None:
        one = self.store()
        self.keep(one, *(self.with_vector(number) for number in range(250)))
        self.raw().xadd("igw:v", {b"origin": b"garbage"})
        late = Heard()
        self.store(late)  # nobody asks it for anything
        late.wait(lambda: len(late.vectors) == 250)
        self.assertEqual([record.key for record in late.vectors], [key_of(number) for number in range(250)])

    def test_what_is_older_than_the_time_to_live_is_not_read(self) -> None:
        one = self.store()
        self.raw().xadd("igw:v", {b"origin": b"old"}, id="5-0")
        self.keep(one, self.with_vector(1))
        late = Heard()
        with mock.patch("gateway.reuse.redisnews.news_in", wraps=redisnews.news_in) as reading:
            self.found(self.store(late), b"x")
            late.wait(lambda: len(late.vectors) == 1)
        ids = [record[0] for call in reading.call_args_list for record in (call.args[0] or [[0, []]])[0][1]]
        self.assertNotIn(b"5-0", ids)

    def test_a_listener_that_fails_ends_nothing(self) -> None:
        one, heard = self.store(), Heard()
        other = self.store(heard)
        with mock.patch.object(other._news, "_on_vector", side_effect=ZeroDivisionError):
            self.keep(one, self.with_vector(1))
            self.found(other, b"x")
            self.found(other, b"x")
        self.keep(one, self.with_vector(2))
        self.found(other, b"x")
        heard.wait(lambda: [record.key for record in heard.vectors] == [key_of(2)])

    def test_it_goes_on_after_a_restart(self) -> None:
        heard = [Heard(), Heard()]
        one, other = (self.store(ear) for ear in heard)
        self.keep(one, self.with_vector(1))
        self.found(other, b"x")
        heard[1].wait(lambda: len(heard[1].vectors) == 1)
        self.server.kill()
        self.server.start()
        self.keep(one, self.with_vector(2))
        self.found(other, b"x")
        heard[1].wait(lambda: len(heard[1].vectors) == 2)


@needs_redis
class FailingTest(StoreTest):
    def test_one_that_is_stopped_costs_a_wait_and_is_skipped_then(self) -> None:
        self.server.start()
        store = self.store(timeout_s=1.0)
        self.keep(store, stored(1))
        self.server.signal(signal.SIGSTOP)
        self.addCleanup(self.server.signal, signal.SIGCONT)
        lookups = [store.get(key_of(1)), store.get(near=b"near")]
        self.assertEqual([self.ended(lookup).found for lookup in lookups if lookup], [None, None])
        self.heard.wait_for_states("open")
        self.assertIsNone(store.get(key_of(1)))
        store.put(stored(2))
        self.assertEqual(store.skipped, 2)
        with self.assertRaises(RedisUnavailable) as caught:
            store.clear(Chosen(NOW_S), 0.2)
        self.assertEqual((caught.exception.removed, str(caught.exception)), (0, "no answer within 200 ms"))
        self.server.signal(signal.SIGCONT)
        self.advance(store, 1.0)
        self.heard.wait_for_states("open", "closed")
        self.assertEqual(self.found(store, key_of(1)), stored(1))
        self.assertEqual(self.heard.lines[0]["reason"], "no answer within 1000 ms")

    def test_one_that_is_killed_and_started_again(self) -> None:
        self.server.start()
        store = self.store()
        self.keep(store, stored(1))
        self.server.kill()
        self.assertIsNone(self.found(store, key_of(1)))
        self.heard.wait_for_states("open")
        self.server.start()
        self.advance(store, 1.0)
        self.heard.wait_for_states("open", "closed")
        self.keep(store, stored(1))

    def test_one_that_is_started_late_is_found_without_being_asked_for(self) -> None:
        store = self.store(clock=time.monotonic)
        self.heard.wait_for_states("open")
        self.assertIn("refused", self.heard.lines[0]["reason"])
        self.server.start()
        self.heard.wait_for_states("open", "closed")
        self.keep(store, stored(1))

    def test_trials_are_ever_rarer(self) -> None:
        store = self.store()
        self.heard.wait_for_states("open")
        errors = 1
        for wait_s in (1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0):
            self.assertEqual(store.errors, errors)
            self.advance(store, wait_s - 0.1)
            self.assertEqual(store.errors, errors)
            self.advance(store, 0.2)
            errors += 1
            eventually(lambda least=errors: store.errors >= least)
        self.assertEqual(self.heard.states(), ["open"])

    def test_a_late_answer_is_given_and_opens_the_breaker(self) -> None:
        self.server.start()
        store = self.store()
        self.keep(store, stored(1))
        settle = store._settle

        def late(*arguments: Any) -> Any:
            result = settle(*arguments)
            self.clock.now_s += LONG_S + 1
            return result

        with mock.patch.object(store, "_settle", late):
            self.assertEqual(self.found(store, key_of(1)), stored(1))
            self.heard.wait_for_states("open")
        self.assertIn("took", self.heard.lines[0]["reason"])
        self.advance(store, 1.0)
        self.heard.wait_for_states("open", "closed")

    def test_one_that_hangs_is_skipped_before_it_has_failed(self) -> None:
        self.server.start()
        store = self.store()
        self.keep(store, stored(1))
        self.server.signal(signal.SIGSTOP)
        lookup = store.get(key_of(1))
        eventually(lambda: store._begun_s is not None)
        self.clock.now_s += LONG_S + 1
        self.assertIsNone(store.get(key_of(1)))
        self.server.signal(signal.SIGCONT)
        self.ended(lookup)
        self.heard.wait_for_states("open")

    def test_a_reporter_that_fails_ends_nothing(self) -> None:
        with mock.patch.object(self.heard, "log", side_effect=ZeroDivisionError):
            store = self.store()
            eventually(lambda: store.errors)
            self.server.start()
            self.advance(store, 1.0)
            eventually(lambda: store.get(key_of(1)))

    def test_queues_are_bounded(self) -> None:
        self.server.start()
        store = self.store()
        self.keep(store, stored(1))
        self.server.signal(signal.SIGSTOP)
        lookups = [store.get(key_of(1))]
        eventually(lambda: store._begun_s is not None and not store._gets)
        with mock.patch.multiple(redisstore, GETS_MAX=3, PUTS_MAX=2):
            lookups += [store.get(key_of(1)) for _ in range(5)]
            self.assertEqual([lookup is not None for lookup in lookups], [True] * 4 + [False] * 2)
            for number in range(5):
                store.put(stored(number))
        self.assertEqual(store.skipped, 5)
        with mock.patch.object(redisstore, "PUTS_MAX_BYTES", 10_000):
            store.put(stored(8, body=b"x" * 20_000))
            store.put(stored(9))
        self.assertEqual((store.skipped, len(store._puts)), (6, 3))
        self.server.signal(signal.SIGCONT)
        for lookup in lookups[:4]:
            self.assertEqual(self.ended(lookup).found, stored(1))
        self.assertIsNotNone(self.found(store, key_of(9)) or self.found(store, key_of(9)))
        self.assertEqual(store._put_bytes, 0)

    def test_close_gives_up_who_waits(self) -> None:
        self.server.start()
        store = self.store()
        self.keep(store, stored(1))
        self.server.signal(signal.SIGSTOP)
        lookups = [store.get(key_of(1))]
        eventually(lambda: store._begun_s is not None and not store._gets)
        lookups += [store.get(key_of(1)) for _ in range(3)]
        store.put(stored(2))
        store.close(0.1)
        self.assertEqual([(self.ended(lookup).found) for lookup in lookups], [None] * 4)
        eventually(lambda: not store._thread.is_alive())
        self.assertIsNone(store.get(key_of(1)))
        store.close(0.1)
        self.assertEqual(self.heard.lines, [])

    def test_close_sends_the_answers_that_wait(self) -> None:
        self.server.start()
        store = self.store()
        for number in range(500):
            store.put(stored(number, body=b"x" * 5000))
        store.close(LONG_S)
        self.assertFalse(store._thread.is_alive())
        self.assertEqual(self.raw().dbsize(), 500)

    def test_close_while_nobody_answers(self) -> None:
        store = self.store()
        self.heard.wait_for_states("open")
        store.close(LONG_S)
        self.assertFalse(store._thread.is_alive())


@needs_redis
class PasswordTest(StoreTest):
    options = ("--requirepass", "hush@hush-41")

    def test_a_password_opens_and_a_wrong_one_is_told_nowhere(self) -> None:
        self.server.start()
        here = f"127.0.0.1:{self.server.port}"
        self.keep(self.store(url=f"redis://:{SECRET}@{here}"), stored(1))
        self.assertEqual(self.heard.lines, [])
        for user_info in ("", "nobody:hush-wrong@", ":hush-wrong@", "hush-name@"):
            with self.subTest(user_info=user_info):
                heard = Heard()
                store = self.store(heard, url=f"redis://{user_info}{here}")
                heard.wait_for_states("open")
                self.assertNotIn("hush", str(heard.lines))
                with self.assertRaises(RedisUnavailable) as caught:
                    store.clear(Chosen(NOW_S), LONG_S)
                self.assertNotIn("hush", str(caught.exception))
                self.assertIsNone(caught.exception.__cause__)

    def test_a_password_in_a_text_is_masked(self) -> None:
        heard = Heard()
        store = self.store(heard, url=f"redis://user-7:{SECRET}@127.0.0.1:{self.server.port}?password=other-7")
        heard.wait_for_states("open")
        text = store._link.in_words(ValueError(f"a hush@hush-41 b {SECRET} c user-7:{SECRET}@ d user-7"))
        self.assertEqual(text, "ValueError: a *** b *** c ***@ d ***")


@needs_redis
@unittest.skipUnless(shutil.which("openssl"), "openssl, which makes the certificate, is missing")
class TlsTest(StoreTest):
    def test_over_tls(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        key, certificate = Path(folder.name) / "key.pem", Path(folder.name) / "certificate.pem"
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=here", "-days", "2"]
        command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port = free_port()
        server = Server(
            folder.name,
            *("--tls-port", str(port), "--tls-cert-file", str(certificate), "--tls-key-file", str(key)),
            *("--tls-auth-clients", "no"),
        )
        self.addCleanup(server.kill)
        try:
            server.start()
        except AssertionError:
            self.skipTest("this redis-server has no TLS")
        store = self.store(url=f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate}")
        for number in range(3):
            self.keep(store, stored(number))
        self.assertEqual((self.heard.lines, store.errors), ([], 0))
        heard = Heard()
        self.store(heard, url=f"rediss://127.0.0.1:{port}/0")
        heard.wait_for_states("open")
        self.assertIn("CERTIFICATE_VERIFY_FAILED", heard.lines[0]["reason"])


if __name__ == "__main__":
    unittest.main()
