"""The line to Redis, on a link that the test answers for: order, what is kept, what is given up, how it ends."""

from __future__ import annotations

import queue
import threading
import unittest
from collections.abc import Iterator, Sequence
from typing import Any, Callable, Optional
from unittest import mock

from gateway.shared import line as line_module
from gateway.shared.line import WAITING_MAX, Job, Line
from tests.support import TIMEOUT_S, assert_no_more_threads, eventually, thread_names

Command = tuple[Any, ...]


class Unknown(Exception):
    """Redis does not know the script."""


class FakeLink:
    """Stands for the connection. What is sent waits for `reply`, but for what beats."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self.sent: list[Command] = []
        self.failing: Optional[Exception] = None
        self.reply: Callable[[Command], Any] = lambda command: b"ok"
        self.gate: Optional[threading.Event] = None
        self.talking = threading.Event()
        self.drops = 0

    def talk(self, commands: Sequence[Command]) -> Iterator[Any]:
        self.talking.set()
        if self.gate is not None and not self.gate.wait(TIMEOUT_S):
            raise AssertionError("the gate stays closed")
        if self.failing is not None:
            raise self.failing
        for command in commands:
            self.sent.append(command)
            yield self.reply(command)

    def drop(self) -> None:
        self.drops += 1

    def lacks_script(self, reply: object) -> bool:
        return isinstance(reply, Unknown)

    def in_words(self, error: BaseException) -> str:
        return str(error)


class LineTest(unittest.TestCase):
    def setUp(self) -> None:
        self.threads = thread_names()
        self.now_s = 100.0
        self.changes: queue.Queue[Optional[str]] = queue.Queue()
        self.when_back: list[Job] = []
        with mock.patch.object(line_module, "Link", FakeLink):
            self.line = Line("redis://", 0.05, list, self.changed, lambda: self.now_s)
        self.link: FakeLink = self.line._link  # type: ignore[assignment]
        self.heard: list[tuple[Any, Any]] = []
        self.line.start()
        self.addCleanup(assert_no_more_threads, self.threads)
        self.addCleanup(self.line.close, TIMEOUT_S)

    def changed(self, reason: Optional[str]) -> None:
        if reason is None:
            for job in self.when_back:
                self.line.tell(job)
        self.changes.put(reason)

    def job(self, name: Any, asks: bool = False) -> Job:
        return Job(lambda whole: (name, whole), lambda reply: self.heard.append((name, reply)), asks)

    def open_it(self) -> None:
        """Have Redis fail."""
        self.link.failing = OSError("it is gone")
        self.line.tell(self.job("lost"))
        self.assertEqual(self.changes.get(timeout=TIMEOUT_S), "it is gone")

    def come_back(self) -> None:
        self.link.failing = None
        with self.line._changed:
            self.now_s += 2.0
            self.line._changed.notify_all()
        self.assertIsNone(self.changes.get(timeout=TIMEOUT_S))

    def sent(self) -> list[Any]:
        return [command[0] for command in self.link.sent if command[0] != b"PING"]

    def test_jobs_are_done_in_the_order_in_which_they_come(self) -> None:
        for number in range(300):
            if number % 2:
                self.line.tell(self.job(number))
            else:
                self.assertTrue(self.line.ask(self.job(number, asks=True)))
        eventually(lambda: len(self.heard) == 300)
        self.assertEqual(self.sent(), list(range(300)))
        self.assertEqual(self.heard, [(number, b"ok") for number in range(300)])

    def test_a_script_that_is_not_known_is_sent_whole_with_the_same_batch(self) -> None:
        self.link.reply = lambda command: Unknown() if command[0] == "script" and not command[1] else b"ok"
        self.link.gate = threading.Event()
        self.line.tell(self.job("first"))
        for name in ("script", "other", "script"):
            self.line.tell(self.job(name))
        self.link.gate.set()
        eventually(lambda: len(self.heard) == 4)
        self.assertEqual([one for one in self.heard if one[0] == "script"], [("script", b"ok")] * 2)
        self.assertFalse(self.line.is_open)

    def test_a_failure_gives_up_who_asks_and_keeps_what_is_told(self) -> None:
        self.link.gate = threading.Event()
        self.link.talking.clear()
        self.line.tell(self.job("lost"))
        self.assertTrue(self.link.talking.wait(TIMEOUT_S))
        self.link.failing = OSError("it is gone")
        self.assertTrue(self.line.ask(self.job("asked", asks=True)))
        self.line.tell(self.job("told"))
        self.link.gate.set()
        self.assertEqual(self.changes.get(timeout=TIMEOUT_S), "it is gone")
        self.assertFalse(self.line.ask(self.job("later", asks=True)))
        self.assertEqual(sorted(self.heard), [("asked", None), ("lost", None)])
        self.when_back = [self.job("first of all that is new")]
        self.come_back()
        self.assertTrue(self.line.ask(self.job("again", asks=True)))
        eventually(lambda: len(self.heard) == 5)
        self.assertEqual(self.sent(), ["told", "first of all that is new", "again"])
        self.assertEqual(self.line.errors, 1)

    def test_of_what_is_told_without_redis_the_oldest_goes_beyond_the_bound(self) -> None:
        self.open_it()
        self.heard.clear()
        for number in range(WAITING_MAX + 2):
            self.line.tell(self.job(number))
        # What has opened it may wait, too, where the beat at the start was the first to fail.
        self.assertEqual([one for one in self.heard if one[0] != "lost"], [(0, None), (1, None)])

    def test_a_fault_of_redis_opens_it_and_other_replies_are_given(self) -> None:
        self.link.reply = lambda command: Exception("OOM") if command[0] == "bad" else b"ok"
        self.link.gate = threading.Event()
        for name in ("good", "bad", "good"):
            self.line.tell(self.job(name))
        self.link.gate.set()
        self.assertEqual(self.changes.get(timeout=TIMEOUT_S), "OOM")
        eventually(lambda: len(self.heard) == 3)
        self.assertEqual(sorted(self.heard, key=str), [("bad", None), ("good", b"ok"), ("good", b"ok")])

    def test_an_answer_that_takes_too_long_counts_and_opens_it(self) -> None:
        def slow(command: Command) -> bytes:
            if command[0] == "slow":
                self.now_s += 0.06
            return b"ok"

        self.link.reply = slow
        self.line.tell(self.job("slow"))
        self.assertEqual(self.changes.get(timeout=TIMEOUT_S), "an answer took 60 ms")
        self.assertEqual(self.heard, [("slow", b"ok")])

    def test_nobody_is_taken_behind_a_batch_that_hangs(self) -> None:
        self.link.gate = threading.Event()
        self.link.talking.clear()
        self.line.tell(self.job("hangs"))
        self.assertTrue(self.link.talking.wait(TIMEOUT_S))
        self.assertTrue(self.line.ask(self.job("behind", asks=True)))
        self.now_s += 0.06
        self.assertFalse(self.line.ask(self.job("too late", asks=True)))
        self.link.gate.set()
        eventually(lambda: ("behind", b"ok") in self.heard or ("behind", None) in self.heard)

    def test_it_ends_with_what_waits_and_what_is_last(self) -> None:
        self.link.gate = threading.Event()
        self.link.talking.clear()
        self.line.tell(self.job("first"))
        self.assertTrue(self.link.talking.wait(TIMEOUT_S))
        self.line.tell(self.job("second"))
        closer = threading.Thread(target=self.line.close, args=(TIMEOUT_S, [self.job("last")]))
        closer.start()
        eventually(lambda: self.line._ends_at_s is not None)
        self.assertFalse(self.line.ask(self.job("too late", asks=True)))
        self.line.tell(self.job("too late to be told"))
        self.link.gate.set()
        closer.join(TIMEOUT_S)
        self.assertEqual(self.sent(), ["first", "second", "last"])
        self.assertIn(("too late to be told", None), self.heard)
        self.assertGreaterEqual(self.link.drops, 1)

    def test_without_redis_it_ends_at_once(self) -> None:
        self.open_it()
        self.line.tell(self.job("kept"))
        self.line.close(TIMEOUT_S, [self.job("last")])
        self.assertEqual(sorted(self.heard), [("kept", None), ("last", None), ("lost", None)])

    def test_who_hears_and_fails_ends_nothing(self) -> None:
        def broken(reply: Any) -> None:
            raise ValueError

        self.line.tell(Job(lambda whole: ("x", whole), broken))
        self.line.tell(self.job("after"))
        eventually(lambda: self.heard == [("after", b"ok")])


if __name__ == "__main__":
    unittest.main()
