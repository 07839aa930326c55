"""Threads for whatever must block: started on demand, bounded, and never more idle than are spare."""

from __future__ import annotations

import queue
import threading
import unittest
from typing import Callable
from unittest import mock

from gateway import threads as threads_module
from gateway.threads import SPARE_THREADS, Threads
from tests.support import TIMEOUT_S, eventually

REAL_START = threading.Thread.start


class Held:
    """Jobs that wait until they are let go; notes the thread of each."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.threads: queue.Queue[threading.Thread] = queue.Queue()

    def __call__(self) -> None:
        self.threads.put(threading.current_thread())
        if not self.go.wait(TIMEOUT_S):
            raise AssertionError("never let go")

    def started(self, count: int) -> list[threading.Thread]:
        """Wait until so many jobs have begun; returns their threads."""
        return [self.threads.get(timeout=TIMEOUT_S) for _ in range(count)]


class ThreadsTest(unittest.TestCase):
    def setUp(self) -> None:
        patcher = mock.patch.object(threads_module, "IDLE_S", 0.05)  # so that none is left behind but one
        patcher.start()
        self.addCleanup(patcher.stop)
        self.threads = Threads(self.id())

    def live(self) -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == self.id()]

    def hold(self, count: int) -> Held:
        """So many jobs, running."""
        held = Held()
        self.addCleanup(held.go.set)
        for _ in range(count):
            self.threads.run(held)
        return held

    def keep_idle_threads(self) -> None:
        """Idle threads stay for as long as this test runs."""
        patcher = mock.patch.object(threads_module, "IDLE_S", 2 * TIMEOUT_S)
        patcher.start()
        self.addCleanup(patcher.stop)

    def test_a_job_runs_at_once_however_many_are_running(self) -> None:
        self.threads.start()
        held = self.hold(30)
        self.assertEqual(len(set(held.started(30))), 30)

    def test_a_thread_that_is_idle_takes_the_next_job(self) -> None:
        self.keep_idle_threads()
        self.threads.start()
        eventually(lambda: self.threads._idle == 1)
        (thread,) = self.live()
        for _ in range(5):
            held = self.hold(1)
            self.assertEqual(held.started(1), [thread])
            held.go.set()
            eventually(lambda: self.threads._idle == 1)
        held = self.hold(2)  # one more than are idle
        self.assertIn(thread, held.started(2))
        self.assertEqual(len(self.live()), 2)

    def test_no_more_than_the_spare_threads_stay(self) -> None:
        self.keep_idle_threads()
        self.threads.start()
        held = self.hold(SPARE_THREADS + 14)
        held.started(SPARE_THREADS + 14)
        held.go.set()
        eventually(lambda: len(self.live()) == SPARE_THREADS)
        eventually(lambda: self.threads._idle == SPARE_THREADS)
        again = self.hold(SPARE_THREADS + 1)
        self.assertEqual(len(set(again.started(SPARE_THREADS + 1))), SPARE_THREADS + 1)

    def test_idle_threads_end_by_and_by_but_for_one(self) -> None:
        self.threads.start()
        held = self.hold(10)
        held.started(10)
        held.go.set()
        eventually(lambda: len(self.live()) == 1)
        self.assertEqual(self.hold(1).started(1), self.live())

    def test_without_another_thread_the_next_that_is_free_runs_every_job(self) -> None:
        self.keep_idle_threads()
        self.threads.start()
        eventually(lambda: self.threads._idle == 1)
        held = self.hold(1)
        (only,) = held.started(1)
        ran: queue.Queue[tuple[int, threading.Thread]] = queue.Queue()

        def job(number: int) -> Callable[[], None]:
            return lambda: ran.put((number, threading.current_thread()))

        with mock.patch.object(threading.Thread, "start", side_effect=RuntimeError("can't start new thread")):
            for number in range(20):
                self.threads.run(job(number))
            self.assertTrue(ran.empty())
            held.go.set()
            for number in range(20):
                self.assertEqual(ran.get(timeout=TIMEOUT_S), (number, only))
        eventually(lambda: self.threads._idle == 1)
        again = self.hold(3)  # nothing has been lost count of
        self.assertEqual(len(set(again.started(3))), 3)
        self.assertEqual(len(self.live()), 3)

    def test_jobs_of_many_callers_all_run_whether_threads_can_be_started_or_not(self) -> None:
        self.threads.start()
        turn = iter(range(10_000))

        def now_and_then(thread: threading.Thread) -> None:
            if thread.name == self.id() and next(turn) % 2:
                raise RuntimeError("can't start new thread")
            REAL_START(thread)

        ran: queue.Queue[int] = queue.Queue()

        def call() -> None:
            for number in range(100):
                self.threads.run(lambda: ran.put(number))  # noqa: B023

        callers = [threading.Thread(target=call, name="caller", daemon=True) for _ in range(4)]
        with mock.patch.object(threading.Thread, "start", now_and_then):
            for caller in callers:
                caller.start()
            for _ in range(400):
                ran.get(timeout=TIMEOUT_S)
        for caller in callers:
            caller.join(TIMEOUT_S)
        self.assertTrue(ran.empty())

    def test_beyond_the_most_a_job_waits_for_the_next_that_is_free(self) -> None:
        threads = Threads(self.id(), 3)
        held = Held()
        self.addCleanup(held.go.set)
        for _ in range(3):
            threads.run(held)
        busy = held.started(3)
        ran: queue.Queue[tuple[int, threading.Thread]] = queue.Queue()
        for number in range(50):
            threads.run(lambda number=number: ran.put((number, threading.current_thread())))  # type: ignore[misc]
        self.assertEqual(len(self.live()), 3)
        self.assertTrue(ran.empty())
        held.go.set()
        done = [ran.get(timeout=TIMEOUT_S) for _ in range(50)]
        self.assertEqual(sorted(number for number, _ in done), list(range(50)))
        self.assertLessEqual({thread for _, thread in done}, set(busy))

    def test_without_a_start_none_stays(self) -> None:
        held = self.hold(3)
        held.started(3)
        held.go.set()
        eventually(lambda: not self.live())

    def test_closed_every_thread_ends_behind_its_job_and_what_waits_still_runs(self) -> None:
        self.keep_idle_threads()
        threads = Threads(self.id(), 2)
        threads.start()
        held = Held()
        for _ in range(2):
            threads.run(held)
        held.started(2)
        ran: queue.Queue[int] = queue.Queue()
        threads.run(lambda: ran.put(1))
        threads.close()
        held.go.set()
        self.assertEqual(ran.get(timeout=TIMEOUT_S), 1)
        eventually(lambda: not self.live())
        threads.close(TIMEOUT_S)  # may be called again

    def test_who_gets_not_even_a_first_thread_is_told(self) -> None:
        with mock.patch.object(threading.Thread, "start", side_effect=RuntimeError("can't start new thread")):
            self.assertRaises(RuntimeError, self.threads.start)


if __name__ == "__main__":
    unittest.main()
