"""Places, the queue in front of them, and jobs that end exactly once, whoever ends them."""

from __future__ import annotations

import math
import sys
import threading
import time
import unittest
from typing import Callable, Optional
from unittest import mock

from gateway import threads
from gateway.routing.line import AGEING_S
from gateway.workers import Job, Overloaded, WorkerPool
from tests.support import eventually

TIMEOUT_S = 10.0


class Task(Job):
    """A job that records its runs and, with a gate, waits for it."""

    def __init__(self, action: Optional[Callable[[], None]] = None) -> None:
        super().__init__()
        self.action = action
        self.begun = threading.Event()
        self.gate = threading.Event()
        self.gate.set()
        self.ended = threading.Event()
        self.runs = 0

    def run(self) -> None:
        self.runs += 1
        self.begun.set()
        try:
            if not self.gate.wait(TIMEOUT_S):
                raise AssertionError("the gate was never opened")
            if self.action is not None:
                self.action()
        finally:
            self.ended.set()

    def wait(self, timeout_s: float) -> bool:
        return self.ended.wait(timeout_s)


def held() -> Task:
    """A task that keeps its place until its gate is set."""
    task = Task()
    task.gate.clear()
    return task


class PoolTest(unittest.TestCase):
    def pool(
        self,
        places: int,
        queue_size: int,
        clock: Callable[[], float] = time.monotonic,
        queue_timeout_s: float = math.inf,
    ) -> WorkerPool:
        self.errors: list[BaseException] = []
        pool = WorkerPool(places, queue_size, self.errors.append, clock, queue_timeout_s)
        self.addCleanup(pool.close, TIMEOUT_S)
        return pool

    def bring(self, pool: WorkerPool, job: Task) -> Optional[threading.Thread]:
        """Submit a job as a handler does: run here, on a thread of the caller's, where a place is free."""
        if not pool.submit(job):
            return None

        def run_here() -> None:
            try:
                job.run()
            finally:
                pool.leave(job)

        thread = threading.Thread(target=run_here, name="caller", daemon=True)
        thread.start()
        self.addCleanup(thread.join, TIMEOUT_S)
        self.addCleanup(job.gate.set)
        return thread

    def assert_at_rest(self, pool: WorkerPool) -> None:
        eventually(lambda: pool.busy == 0 and pool.depth == 0)

    def test_a_job_runs_at_once_while_a_place_is_free(self) -> None:
        pool = self.pool(2, 0)
        first, second = held(), held()
        self.assertIsNotNone(self.bring(pool, first))
        self.assertIsNotNone(self.bring(pool, second))
        self.assertTrue(first.begun.wait(TIMEOUT_S) and second.begun.wait(TIMEOUT_S))
        self.assertEqual((pool.busy, pool.depth), (2, 0))
        first.gate.set()
        second.gate.set()
        self.assert_at_rest(pool)

    def test_jobs_beyond_the_places_wait_and_run_in_order(self) -> None:
        pool = self.pool(1, 10)
        first = held()
        self.bring(pool, first)
        order: list[int] = []
        waiting = [Task(lambda number=number: order.append(number)) for number in range(10)]  # type: ignore[misc]
        for task in waiting:
            self.assertIsNone(self.bring(pool, task))
        self.assertEqual((pool.busy, pool.depth), (1, 10))
        self.assertEqual(order, [])
        first.gate.set()
        for task in waiting:
            self.assertTrue(task.wait(TIMEOUT_S))
        self.assertEqual(order, list(range(10)))
        self.assert_at_rest(pool)

    def test_a_full_queue_refuses_and_accepts_again_later(self) -> None:
        pool = self.pool(1, 2)
        first, second = held(), Task()
        for task in (first, second, Task()):
            self.bring(pool, task)
        refused = Task()
        with self.assertRaises(Overloaded):
            pool.submit(refused)
        first.gate.set()
        self.assert_at_rest(pool)
        self.assertEqual(refused.runs, 0)
        last = Task()
        self.bring(pool, last)
        self.assertTrue(last.wait(TIMEOUT_S))

    def test_without_a_queue_only_free_places_accept(self) -> None:
        pool = self.pool(1, 0)
        first = held()
        self.bring(pool, first)
        with self.assertRaises(Overloaded):
            pool.submit(Task())
        first.gate.set()

    def test_no_more_than_the_places_ever_run_and_each_job_runs_once(self) -> None:
        pool = self.pool(3, 1000)
        lock = threading.Lock()
        running, most = 0, 0

        def work() -> None:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            threading.Event().wait(0.0002)
            with lock:
                running -= 1

        tasks = [Task(work) for _ in range(400)]

        def caller(own: list[Task]) -> None:
            for task in own:
                if pool.submit(task):
                    task.run()
                    pool.leave(task)

        callers = [threading.Thread(target=caller, args=(tasks[i::8],), name=f"caller-{i}") for i in range(8)]
        for thread in callers:
            thread.start()
        for thread in callers:
            thread.join(TIMEOUT_S)
        for task in tasks:
            self.assertTrue(task.wait(TIMEOUT_S))
        self.assertEqual([task.runs for task in tasks], [1] * 400)
        self.assertLessEqual(most, 3)
        self.assertEqual(self.errors, [])
        self.assert_at_rest(pool)

    def test_a_job_given_up_while_waiting_never_runs_and_frees_its_place_in_the_queue(self) -> None:
        pool = self.pool(1, 1)
        first, given_up, next_one = held(), Task(), Task()
        self.bring(pool, first)
        self.bring(pool, given_up)
        self.assertTrue(given_up.claim())
        pool.gave_up(given_up)
        self.assertEqual(pool.depth, 0)
        self.bring(pool, next_one)  # would be refused if the place were still taken
        first.gate.set()
        self.assertTrue(next_one.wait(TIMEOUT_S))
        self.assert_at_rest(pool)
        self.assertEqual(given_up.runs, 0)

    def test_who_has_given_up_is_not_kept(self) -> None:
        pool, first = self.pool(1, 3), Task()
        self.assertTrue(pool.submit(first))
        for _ in range(100):
            given_up = Task()
            self.assertFalse(pool.submit(given_up))
            self.assertTrue(given_up.claim())
            pool.gave_up(given_up)
        self.assertEqual(pool.depth, 0)
        self.assertEqual(pool._queue.qsize(), 0)
        waiting = Task()
        self.assertFalse(pool.submit(waiting))
        pool.leave(first)
        self.assertTrue(waiting.wait(TIMEOUT_S))
        self.assert_at_rest(pool)

    def test_a_waiting_job_can_no_longer_be_given_up_once_it_runs(self) -> None:
        pool = self.pool(1, 1)
        first, second = held(), held()
        self.bring(pool, first)
        self.bring(pool, second)
        self.addCleanup(second.gate.set)
        first.gate.set()
        self.assertTrue(second.begun.wait(TIMEOUT_S))
        self.assertFalse(second.claim())

    def test_giving_up_and_running_meet_and_exactly_one_wins(self) -> None:
        pool = self.pool(1, 100)
        for _ in range(60):
            first, contested = held(), Task()
            self.bring(pool, first)
            self.bring(pool, contested)
            first.gate.set()
            won = contested.claim()
            if won:
                pool.gave_up(contested)
            self.assert_at_rest(pool)
            self.assertEqual(contested.runs, 0 if won else 1)

    def test_an_exception_is_reported_and_costs_no_place(self) -> None:
        def fail() -> None:
            raise ZeroDivisionError

        pool = self.pool(1, 5)
        first = held()
        self.bring(pool, first)
        broken, good = Task(fail), Task()
        self.bring(pool, broken)
        self.bring(pool, good)
        first.gate.set()
        self.assertTrue(good.wait(TIMEOUT_S))
        self.assert_at_rest(pool)
        self.assertEqual([type(error) for error in self.errors], [ZeroDivisionError])

    def test_a_worker_without_work_ends_and_a_new_one_takes_over(self) -> None:
        with mock.patch.object(threads, "IDLE_S", 0.01):
            pool = self.pool(1, 5)
            before = set(threading.enumerate())
            for _ in range(3):
                first, second = held(), Task()
                self.bring(pool, first)
                self.bring(pool, second)
                first.gate.set()
                self.assertTrue(second.wait(TIMEOUT_S))
                eventually(lambda: set(threading.enumerate()) <= before)

    def test_jobs_keep_running_while_workers_come_and_go(self) -> None:
        self.addCleanup(sys.setswitchinterval, sys.getswitchinterval())
        sys.setswitchinterval(1e-6)  # so that threads meet everywhere
        with mock.patch.object(threads, "IDLE_S", 0.0):
            pool = self.pool(1, 10)
            for _ in range(400):
                first, second = held(), Task()
                self.assertTrue(pool.submit(first))
                self.assertFalse(pool.submit(second))
                pool.leave(first)
                self.assertTrue(second.wait(TIMEOUT_S))
                eventually(lambda: pool.busy == 0)


class PriorityTest(PoolTest):
    """One place, held; jobs queue up at times the test chooses; then they run in the order of their turns."""

    def setUp(self) -> None:
        self.now_s = 1000.0
        self.order: list[str] = []
        self.one = self.pool(1, 1000, lambda: self.now_s)
        self.first = held()
        self.bring(self.one, self.first)
        self.tasks: list[Task] = []

    def queue_up(self, name: str, priority: str, at_s: float = 0.0) -> Task:
        self.now_s = 1000.0 + at_s
        task = Task(lambda: self.order.append(name))
        task.priority = priority
        self.assertIsNone(self.bring(self.one, task))
        self.tasks.append(task)
        return task

    def ran(self) -> list[str]:
        self.first.gate.set()
        for task in self.tasks:
            self.assertTrue(task.wait(TIMEOUT_S))
        self.assert_at_rest(self.one)
        self.assertEqual(self.errors, [])
        return self.order

    def test_higher_priorities_go_first_and_equals_in_order(self) -> None:
        for number in range(3):
            for priority in ("low", "normal", "high"):
                self.queue_up(f"{priority}-{number}", priority)
        expected = [f"{priority}-{number}" for priority in ("high", "normal", "low") for number in range(3)]
        self.assertEqual(self.ran(), expected)

    def test_a_low_job_is_overtaken_only_by_those_that_come_soon_after(self) -> None:
        self.queue_up("low", "low")
        self.queue_up("high soon", "high", 2 * AGEING_S - 0.1)
        self.queue_up("normal late", "normal", AGEING_S + 0.1)
        self.queue_up("high late", "high", 2 * AGEING_S + 0.1)
        self.queue_up("high as late", "high", 2 * AGEING_S)
        self.assertEqual(self.ran(), ["high soon", "low", "high as late", "normal late", "high late"])

    def test_a_low_job_gets_its_turn_under_an_endless_stream_of_high_ones(self) -> None:
        self.queue_up("low", "low")
        for number in range(100):
            self.queue_up(f"high-{number}", "high", number * 0.5)
        self.assertEqual(self.ran().index("low"), 2 * AGEING_S / 0.5)

    def test_a_job_given_up_before_its_turn_is_passed_over(self) -> None:
        given_up = self.queue_up("given up", "high")
        self.queue_up("low", "low")
        self.assertTrue(given_up.claim())
        self.one.gave_up(given_up)
        self.tasks.remove(given_up)
        self.assertEqual(self.ran(), ["low"])
        self.assertEqual(given_up.runs, 0)


class SheddingTest(PoolTest):
    """Places that are held for as long as the test's clock says."""

    def setUp(self) -> None:
        self.now_s = 1000.0

    def shedding(self, places: int, queue_timeout_s: float = 25.0) -> WorkerPool:
        return self.pool(places, 1000, lambda: self.now_s, queue_timeout_s)

    def work(self, pool: WorkerPool, held_s: float, jobs: int = 1) -> None:
        """Take as many places at once, each for `held_s`."""
        tasks = [held() for _ in range(jobs)]
        threads = [self.bring(pool, task) for task in tasks]
        self.now_s += held_s
        for task, thread in zip(tasks, threads):
            task.gate.set()
            assert thread is not None
            thread.join(TIMEOUT_S)
        self.assert_at_rest(pool)

    def fill(self, pool: WorkerPool, places: int) -> list[Task]:
        """Take all places and keep them."""
        tasks = [held() for _ in range(places)]
        for task in tasks:
            self.assertIsNotNone(self.bring(pool, task))
        return tasks

    def queue_up(self, pool: WorkerPool, priority: str = "normal") -> Task:
        task = Task()
        task.priority = priority
        self.assertIsNone(self.bring(pool, task))
        return task

    def refusal(self, pool: WorkerPool, priority: str = "normal") -> Optional[float]:
        task = Task()
        task.priority = priority
        with self.assertRaises(Overloaded) as caught:
            pool.submit(task)
        return caught.exception.wait_s

    def test_what_cannot_start_in_time_is_refused_at_once(self) -> None:
        pool = self.shedding(1)
        self.work(pool, 10.0)
        self.fill(pool, 1)
        waiting = [self.queue_up(pool), self.queue_up(pool)]  # they have 10 and 20 s to wait
        self.assertEqual(self.refusal(pool), 30.0)
        self.assertTrue(waiting[0].claim())
        pool.gave_up(waiting[0])
        self.queue_up(pool)
        self.assertEqual(pool.depth, 2)

    def test_nothing_is_refused_before_a_place_has_been_given_back(self) -> None:
        pool = self.shedding(1)
        self.fill(pool, 1)
        for _ in range(100):
            self.queue_up(pool)
        self.assertEqual(pool.depth, 100)

    def test_a_free_place_is_never_refused(self) -> None:
        pool = self.shedding(1)
        self.work(pool, 1000.0)
        self.fill(pool, 1)
        self.assertEqual(self.refusal(pool), 1000.0)

    def test_more_places_are_free_sooner(self) -> None:
        pool = self.shedding(2)
        self.work(pool, 10.0, jobs=2)
        self.fill(pool, 2)
        for _ in range(5):
            self.queue_up(pool)
        self.assertEqual(self.refusal(pool), 30.0)

    def test_only_those_ahead_count(self) -> None:
        pool = self.shedding(1)
        self.work(pool, 10.0)
        self.fill(pool, 1)
        for _ in range(2):
            self.queue_up(pool, "low")
        self.assertEqual(self.refusal(pool, "low"), 30.0)
        given_up = self.queue_up(pool, "high")
        self.assertTrue(given_up.claim())
        pool.gave_up(given_up)
        for _ in range(2):
            self.queue_up(pool, "high")
        self.assertEqual(self.refusal(pool, "high"), 30.0)
        self.assertEqual(self.refusal(pool), 30.0)

    def test_a_lower_priority_that_has_waited_for_long_is_ahead_too(self) -> None:
        pool = self.shedding(1)
        self.work(pool, 10.0)
        self.fill(pool, 1)
        for _ in range(2):
            self.queue_up(pool, "low")
        self.now_s += 2 * AGEING_S + 0.1
        self.assertEqual(self.refusal(pool, "high"), 30.0)

    def test_the_time_is_that_of_late(self) -> None:
        pool = self.shedding(1)
        self.work(pool, 1000.0)
        for _ in range(60):
            self.work(pool, 1.0)
        (first,) = self.fill(pool, 1)
        waiting = [self.queue_up(pool) for _ in range(5)]
        first.gate.set()
        for task in waiting:
            self.assertTrue(task.wait(TIMEOUT_S))

    def test_jobs_that_had_to_wait_tell_how_long_a_place_is_held_too(self) -> None:
        pool = self.shedding(1)
        (first,) = self.fill(pool, 1)
        second = held()
        self.addCleanup(second.gate.set)
        self.assertIsNone(self.bring(pool, second))
        self.now_s += 1.0
        first.gate.set()
        self.assertTrue(second.begun.wait(TIMEOUT_S))
        self.now_s += 101.0
        second.gate.set()
        self.assert_at_rest(pool)
        self.fill(pool, 1)
        self.queue_up(pool)  # 1 + (101 - 1) / 10 = 11 s
        self.queue_up(pool)
        self.assertAlmostEqual(self.refusal(pool) or 0.0, 33.0)


class CloseTest(PoolTest):
    def test_a_closed_pool_accepts_nothing_and_its_threads_end(self) -> None:
        pool = self.pool(1, 5)
        before = set(threading.enumerate())
        first, second = held(), Task()
        self.bring(pool, first)
        self.bring(pool, second)
        first.gate.set()
        self.assertTrue(second.wait(TIMEOUT_S))
        self.assert_at_rest(pool)
        pool.close(TIMEOUT_S)
        with self.assertRaises(Overloaded):
            pool.submit(Task())
        eventually(lambda: set(threading.enumerate()) <= before)

    def test_what_waits_when_the_pool_closes_still_runs(self) -> None:
        pool = self.pool(1, 5)
        first, second = held(), Task()
        self.bring(pool, first)
        self.bring(pool, second)
        pool.close(0.0)
        first.gate.set()
        self.assertTrue(second.wait(TIMEOUT_S))
        self.assertEqual(second.runs, 1)

    def test_closing_does_not_wait_for_another_pools_threads(self) -> None:
        busy, idle = self.pool(1, 5), self.pool(1, 5)
        first, second = held(), held()
        self.bring(busy, first)
        self.bring(busy, second)
        self.addCleanup(second.gate.set)
        first.gate.set()
        self.assertTrue(second.begun.wait(TIMEOUT_S))  # on a worker thread of `busy`
        closer = threading.Thread(target=idle.close, args=(TIMEOUT_S * 6,), name="closer", daemon=True)
        closer.start()
        closer.join(TIMEOUT_S)
        self.assertFalse(closer.is_alive())

    def test_close_gives_up_waiting_in_time_and_may_be_called_again(self) -> None:
        pool = self.pool(1, 5)
        first, stuck = held(), held()
        self.bring(pool, first)
        self.bring(pool, stuck)
        first.gate.set()
        self.assertTrue(stuck.begun.wait(TIMEOUT_S))
        pool.close(0.01)
        stuck.gate.set()
        self.assertTrue(stuck.wait(TIMEOUT_S))
        pool.close(TIMEOUT_S)

    def test_a_pool_that_never_worked_closes(self) -> None:
        self.pool(1, 1).close(TIMEOUT_S)


class JobTest(unittest.TestCase):
    def test_of_many_claims_on_a_queued_job_one_succeeds(self) -> None:
        job = Job()
        job.queue_up()
        won: list[bool] = []
        threads = [threading.Thread(target=lambda: won.append(job.claim()), name=f"claimer-{i}") for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT_S)
        self.assertEqual(sorted(won), [False] * 7 + [True])


if __name__ == "__main__":
    unittest.main()
