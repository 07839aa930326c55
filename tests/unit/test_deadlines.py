"""The watchdog: what is past its time is ended, nothing else, and nothing can stop it but closing."""

from __future__ import annotations

import contextlib
import io
import math
import threading
import unittest
from typing import Callable, Optional

from gateway.deadlines import Watchdog

TIMEOUT_S = 10.0


class Item:
    def __init__(self, deadline_s: float, action: Optional[Callable[[], None]] = None) -> None:
        self.deadline_s = deadline_s
        self.action = action
        self.expired = 0
        self.event = threading.Event()

    def expire(self) -> None:
        self.expired += 1
        if self.action is not None:
            self.action()
        self.event.set()


class TickTest(unittest.TestCase):
    def setUp(self) -> None:
        self.now_s = 50.0
        self.watchdog = Watchdog("test", clock=lambda: self.now_s)

    def watched(self, deadline_s: float, action: Optional[Callable[[], None]] = None) -> Item:
        item = Item(deadline_s, action)
        self.watchdog.watch(item)
        return item

    def test_only_what_is_due_expires(self) -> None:
        past, due, later, never = (self.watched(t) for t in (49.0, 50.0, 50.1, math.inf))
        self.watchdog.tick()
        self.assertEqual([i.expired for i in (past, due, later, never)], [1, 1, 0, 0])
        self.now_s = 1e12
        self.watchdog.tick()
        self.assertEqual((later.expired, never.expired), (1, 0))

    def test_a_deadline_may_move_while_it_is_watched(self) -> None:
        item = self.watched(49.0)
        item.deadline_s = 60.0
        self.watchdog.tick()
        self.assertEqual(item.expired, 0)
        item.deadline_s = 50.0
        self.watchdog.tick()
        self.assertEqual(item.expired, 1)

    def test_what_is_forgotten_does_not_expire(self) -> None:
        item = self.watched(49.0)
        self.assertEqual(len(self.watchdog), 1)
        self.watchdog.forget(item)
        self.watchdog.forget(item)
        self.watchdog.tick()
        self.assertEqual((item.expired, len(self.watchdog)), (0, 0))

    def test_watching_twice_is_watching_once(self) -> None:
        item = self.watched(49.0)
        self.watchdog.watch(item)
        self.watchdog.tick()
        self.assertEqual(item.expired, 1)

    def test_an_item_may_forget_itself_or_watch_another_while_it_expires(self) -> None:
        other = Item(49.0)

        def swap() -> None:
            self.watchdog.forget(item)
            self.watchdog.watch(other)

        item = self.watched(49.0, swap)
        self.watchdog.tick()
        self.watchdog.tick()
        self.assertEqual(item.expired, 1)
        self.assertGreaterEqual(other.expired, 1)

    def test_an_item_that_fails_leaves_the_others_their_deadlines(self) -> None:
        def fail() -> None:
            raise RuntimeError("broken item")

        self.watched(49.0, fail)
        other = self.watched(49.0)
        told = io.StringIO()
        with contextlib.redirect_stderr(told):
            self.watchdog.tick()
        self.assertEqual(other.expired, 1)
        self.assertIn("broken item", told.getvalue())


class ThreadTest(unittest.TestCase):
    def watchdog(self) -> Watchdog:
        watchdog = Watchdog("test-watchdog", tick_s=0.001)
        watchdog.start()
        self.addCleanup(watchdog.close)
        return watchdog

    def test_the_thread_expires_what_is_due(self) -> None:
        item = Item(-math.inf)
        self.watchdog().watch(item)
        self.assertTrue(item.event.wait(TIMEOUT_S))

    def test_closing_ends_the_thread_and_may_be_repeated(self) -> None:
        watchdog = self.watchdog()
        self.assertIn("test-watchdog", [thread.name for thread in threading.enumerate()])
        watchdog.close()
        watchdog.close()
        self.assertNotIn("test-watchdog", [thread.name for thread in threading.enumerate()])

    def test_a_watchdog_that_never_started_closes(self) -> None:
        Watchdog("idle").close()

    def test_items_may_come_and_go_from_many_threads(self) -> None:
        watchdog = self.watchdog()
        ends = threading.Barrier(5, timeout=TIMEOUT_S)

        def churn() -> None:
            for _ in range(2000):
                item = Item(math.inf)
                watchdog.watch(item)
                watchdog.forget(item)
            ends.wait()

        for number in range(4):
            threading.Thread(target=churn, name=f"churn-{number}", daemon=True).start()
        ends.wait()
        last = Item(-math.inf)
        watchdog.watch(last)
        self.assertTrue(last.event.wait(TIMEOUT_S))
        self.assertEqual(len(watchdog), 1)


if __name__ == "__main__":
    unittest.main()
