"""The sandbox: which level it uses, that nothing runs below the least demanded, that every job ends exactly once."""

from __future__ import annotations

import contextlib
import io
import queue
import threading
import unittest
import unittest.mock
from typing import Callable, Optional, cast

from gateway.verify.sandbox.jails import CommandJail, Jails
from gateway.verify.sandbox.job import ORDER, Job, Run
from gateway.verify.sandbox.levels import Stop
from gateway.verify.sandbox.sandbox import RETRY_S, Sandbox
from tests.support import TIMEOUT_S, eventually

JAILS = "gateway.verify.sandbox.jails"
JOB = Job("python", "print(1)")


def ran(isolation: str, stdout: bytes = b"1\n") -> Run:
    return Run("exit", 0, stdout, b"", False, b"", 0.01, isolation, None)


class FakeJail:
    """A jail whose job ends when its level lets it go, or when it is closed."""

    def __init__(self, level: FakeLevel) -> None:
        self.level = level
        self.job: Optional[Job] = None  # that runs
        self.killed = threading.Event()

    def run(self, job: Job) -> Run:
        level = self.level
        with level.lock:
            level.running += 1
            level.most = max(level.most, level.running)
        self.job = job
        level.begun.put(job)
        eventually(lambda: level.go.is_set() or self.killed.is_set())
        self.job = None
        with level.lock:
            level.running -= 1
        return level.results.pop(0) if level.results else ran(level.name, job.code.encode())

    def close(self) -> None:
        if self.job is not None:
            self.level.kills.put(self.job)
        self.killed.set()
        self.level.closed_jails += 1


class FakeLevel:
    """A level whose jobs end when they are let go or killed; notes what is asked of it."""

    def __init__(self, name: str, why_not: Optional[str] = None, held: bool = False) -> None:
        self.name = name
        self.why_not = why_not
        self.probes = 0
        self.closed = 0
        self.results: list[Run] = []  # of the next jobs
        self.begun: queue.Queue[Job] = queue.Queue()
        self.kills: queue.Queue[Job] = queue.Queue()
        self.go = threading.Event()
        self.refused: Optional[OSError] = None
        self.refills = 0
        self.closed_jails = 0
        self.running = 0
        self.most = 0
        self.lock = threading.Lock()
        self.in_probe: Callable[[], object] = lambda: None
        if not held:
            self.go.set()

    def probe(self) -> Optional[str]:
        self.probes += 1
        self.in_probe()
        return self.why_not

    def open(self) -> FakeJail:
        if self.refused is not None:
            raise self.refused
        return FakeJail(self)

    def refill(self) -> None:
        self.refills += 1

    def close(self) -> None:
        self.closed += 1


class SandboxTest(unittest.TestCase):
    def setUp(self) -> None:
        self.now_s = 1000.0
        self.results: queue.Queue[Run] = queue.Queue()

    def sandbox(
        self,
        *levels: FakeLevel,
        wanted: str = "auto",
        minimum: str = "namespaces",
        concurrency: int = 2,
        size: int = 100,
    ) -> Sandbox:
        sandbox = Sandbox(
            wanted,
            minimum,
            concurrency=concurrency,
            queue_size=size,
            levels=levels,
            clock=lambda: self.now_s,
        )
        self.addCleanup(sandbox.close, TIMEOUT_S)
        for level in levels:
            self.addCleanup(level.go.set)
        return sandbox

    def all_levels(self, **why_not: str) -> list[FakeLevel]:
        return [FakeLevel(name, why_not.get(name)) for name in reversed(ORDER)]

    def result(self) -> Run:
        return self.results.get(timeout=TIMEOUT_S)


class JailsTest(unittest.TestCase):
    def test_nobody_waits_for_ever_for_a_jail_and_one_that_comes_later_is_ended(self) -> None:
        go_on = threading.Event()
        jail = unittest.mock.Mock(discard=unittest.mock.Mock())  # made by one thread, and not by two at the same time

        def start() -> CommandJail:
            self.assertTrue(go_on.wait(TIMEOUT_S))
            return cast(CommandJail, jail)

        jails = Jails("test", start, spare=0)
        jails.open()
        self.addCleanup(jails.close)
        self.addCleanup(go_on.set)
        with unittest.mock.patch(f"{JAILS}.TAKE_TIMEOUT_S", 0.01), self.assertRaisesRegex(OSError, "in time"):
            jails.take()
        go_on.set()
        eventually(lambda: jail.discard.called)
        self.assertIs(jails.take(), jail)  # another one, for which somebody waits
        jail.discard.assert_called_once_with()

    def test_the_end_does_not_wait_for_ever_for_jails_that_hang(self) -> None:
        go_on, ended = threading.Event(), threading.Semaphore(0)

        def discard() -> None:
            go_on.wait(TIMEOUT_S)
            ended.release()

        jail = unittest.mock.Mock(discard=discard)
        jails = Jails("test", lambda: cast(CommandJail, jail), spare=2, threads=2)
        self.addCleanup(go_on.set)
        jails.open()
        jails.refill()
        eventually(lambda: len(jails._waiting) == 2)
        with unittest.mock.patch(f"{JAILS}.END_TIMEOUT_S", 0.01):
            jails.close()
        self.assertFalse(ended.acquire(blocking=False))
        self.assertEqual(jail.kill.call_count, 2)
        go_on.set()
        for _ in range(2):
            self.assertTrue(ended.acquire(timeout=TIMEOUT_S))


class ChoiceTest(SandboxTest):
    def test_auto_uses_the_strongest_level_that_works_and_tries_no_weaker_one(self) -> None:
        levels = self.all_levels(container="no image")
        sandbox = self.sandbox(*levels)
        self.assertEqual(sandbox.run(JOB).isolation, "bubblewrap")
        self.assertEqual([level.probes for level in levels], [0, 0, 1, 1])

    def test_the_levels_are_in_this_order(self) -> None:
        levels = self.all_levels()
        used = []
        for level in reversed(levels):
            used.append(self.sandbox(*levels, minimum="process").run(JOB).isolation)
            level.why_not = "broken"
        self.assertEqual(used, ["container", "bubblewrap", "namespaces", "process"])

    def test_nothing_is_tried_before_the_first_job_and_only_once_for_many(self) -> None:
        (level,) = levels = [FakeLevel("namespaces")]
        sandbox = self.sandbox(*levels)
        self.assertEqual(level.probes, 0)
        for _ in range(5):
            sandbox.run(JOB)
        self.assertEqual(level.probes, 1)

    def test_jobs_that_come_while_the_levels_are_tried_wait_for_that_one_trial(self) -> None:
        level = FakeLevel("namespaces")
        go = threading.Event()
        level.in_probe = lambda: go.wait(TIMEOUT_S)
        sandbox = self.sandbox(level, concurrency=4)
        for _ in range(4):
            sandbox.submit(JOB, self.results.put)
        eventually(lambda: level.probes == 1)
        go.set()
        self.assertEqual([self.result().reason for _ in range(4)], ["exit"] * 4)
        self.assertEqual(level.probes, 1)

    def test_a_job_does_not_wait_for_ever_for_a_trial_that_does_not_end(self) -> None:
        level = FakeLevel("container")
        in_probe, go_on = threading.Event(), threading.Event()
        level.in_probe = lambda: (in_probe.set(), go_on.wait(TIMEOUT_S))
        sandbox = self.sandbox(level)
        self.addCleanup(go_on.set)
        sandbox.submit(JOB, self.results.put)
        self.assertTrue(in_probe.wait(TIMEOUT_S))
        with unittest.mock.patch("gateway.verify.sandbox.sandbox.CHOICE_S", 0.01):
            self.assertEqual(sandbox.run(JOB).error, "isolation_unavailable")
        go_on.set()
        self.assertEqual(self.result().isolation, "container")

    def test_a_level_below_the_least_demanded_is_never_tried_and_nothing_runs(self) -> None:
        levels = self.all_levels(container="no", bubblewrap="no", namespaces="no")
        run = self.sandbox(*levels).run(JOB)
        self.assertEqual(
            (run.reason, run.error, run.exit_code, run.stdout), ("setup", "isolation_unavailable", None, b"")
        )
        self.assertEqual((levels[0].probes, levels[0].begun.qsize()), (0, 0))

    def test_a_named_level_is_the_only_one_that_is_used(self) -> None:
        levels = self.all_levels()
        self.assertEqual(self.sandbox(*levels, wanted="namespaces").run(JOB).isolation, "namespaces")
        self.assertEqual([level.probes for level in levels], [0, 1, 0, 0])
        levels = self.all_levels(container="no")
        self.assertEqual(self.sandbox(*levels, wanted="container").run(JOB).error, "isolation_unavailable")
        self.assertEqual([level.probes for level in levels], [0, 0, 0, 1])

    def test_a_named_level_below_the_least_demanded_runs_nothing(self) -> None:
        levels = self.all_levels()
        sandbox = self.sandbox(*levels, wanted="process")
        self.assertEqual(sandbox.run(JOB).error, "isolation_unavailable")
        self.assertIn("process is weaker than namespaces", sandbox.describe()[1])
        self.assertEqual([level.probes for level in levels], [0, 0, 0, 0])

    def test_off_runs_nothing(self) -> None:
        levels = self.all_levels()
        sandbox = self.sandbox(*levels, wanted="off", minimum="process")
        self.assertEqual(sandbox.run(JOB).error, "isolation_unavailable")
        self.assertEqual(sandbox.describe(), ["sandbox: off, nothing is run"])
        self.assertEqual([level.probes for level in levels], [0, 0, 0, 0])

    def test_a_name_that_is_no_levels_is_refused(self) -> None:
        with self.assertRaisesRegex(ValueError, "jail"):
            Sandbox("jail")
        with self.assertRaisesRegex(ValueError, "none"):
            Sandbox("auto", "none")

    def test_a_level_whose_trial_ends_in_an_exception_is_not_used(self) -> None:
        levels = self.all_levels()

        def fail() -> None:
            raise PermissionError("not allowed")

        levels[3].in_probe = fail
        sandbox = self.sandbox(*levels)
        self.assertEqual(sandbox.run(JOB).isolation, "bubblewrap")
        self.assertIn("not allowed", sandbox.describe()[1])

    def test_what_is_used_is_told_in_a_line_and_why_no_better_one_is_in_one_each(self) -> None:
        levels = self.all_levels(container="no image", bubblewrap="not installed")
        self.assertEqual(
            self.sandbox(*levels).describe(),
            ["sandbox: namespaces", "sandbox: not container: no image", "sandbox: not bubblewrap: not installed"],
        )
        self.assertEqual([level.begun.qsize() for level in levels], [0, 0, 0, 0])


class LossTest(SandboxTest):
    BROKEN = Run("setup", None, b"", b"", False, b"", 0.0, "container", "no answer")

    def test_a_job_of_which_nothing_came_is_run_once_more_after_a_new_trial(self) -> None:
        level = FakeLevel("container")
        level.results = [self.BROKEN]
        self.assertEqual(self.sandbox(level).run(JOB).reason, "exit")
        self.assertEqual((level.probes, level.begun.qsize()), (2, 2))

    def test_a_job_of_which_nothing_comes_twice_is_given_up(self) -> None:
        level = FakeLevel("container")
        level.results = [self.BROKEN, self.BROKEN]
        run = self.sandbox(level).run(JOB)
        self.assertEqual((run.reason, run.error, level.begun.qsize()), ("setup", "no answer", 2))

    def test_a_level_that_cannot_make_a_jail_is_tried_anew(self) -> None:
        container = FakeLevel("container")
        sandbox = self.sandbox(FakeLevel("namespaces"), container)
        sandbox.run(JOB)
        container.refused = OSError("no more processes")
        self.assertEqual(sandbox.run(JOB).error, "no more processes")
        container.why_not = "no more processes"
        self.assertEqual(sandbox.run(JOB).isolation, "namespaces")

    def test_a_level_that_dies_gives_way_to_the_next_until_it_works_again(self) -> None:
        container = FakeLevel("container")
        sandbox = self.sandbox(FakeLevel("namespaces"), container)
        self.assertEqual(sandbox.run(JOB).isolation, "container")
        container.results, container.why_not = [self.BROKEN], "the service is gone"
        self.assertEqual(sandbox.run(JOB).isolation, "namespaces")
        container.why_not = None
        self.now_s += RETRY_S / 2
        self.assertEqual(sandbox.run(JOB).isolation, "namespaces")
        self.now_s += RETRY_S / 2
        self.assertEqual(sandbox.run(JOB).isolation, "container")

    def test_a_level_that_dies_with_none_left_lets_nothing_run_and_is_not_tried_for_every_job(self) -> None:
        level = FakeLevel("namespaces")
        sandbox = self.sandbox(FakeLevel("process"), level)
        sandbox.run(JOB)
        level.results, level.why_not = [self.BROKEN], "gone"
        self.assertEqual([sandbox.run(JOB).error for _ in range(3)], ["isolation_unavailable"] * 3)
        self.assertEqual(level.probes, 2)
        level.why_not = None
        self.now_s += RETRY_S
        self.assertEqual(sandbox.run(JOB).isolation, "namespaces")

    def test_an_error_of_ours_ends_one_job_and_not_the_thread(self) -> None:
        level = FakeLevel("namespaces")
        sandbox = self.sandbox(level, concurrency=1)
        level.open = None  # type: ignore[assignment,method-assign]
        with contextlib.redirect_stderr(io.StringIO()) as printed:
            self.assertEqual(sandbox.run(JOB).error, "internal_error")
        self.assertIn("TypeError", printed.getvalue())
        del level.open
        self.assertEqual(sandbox.run(JOB).reason, "exit")

    def test_a_callback_that_fails_ends_no_thread(self) -> None:
        sandbox = self.sandbox(FakeLevel("namespaces"), concurrency=1)

        def fail(run: Run) -> None:
            raise KeyError("callback")

        with contextlib.redirect_stderr(io.StringIO()) as printed:
            sandbox.submit(JOB, fail)
            self.assertEqual(sandbox.run(JOB).reason, "exit")
        self.assertIn("callback", printed.getvalue())


class QueueTest(SandboxTest):
    def setUp(self) -> None:
        super().setUp()
        self.level = FakeLevel("namespaces", held=True)

    def test_no_more_jobs_run_at_once_than_allowed_and_all_of_them_run_in_turn(self) -> None:
        sandbox = self.sandbox(self.level, concurrency=3)
        for number in range(20):
            sandbox.submit(Job("python", str(number)), self.results.put)
        begun = [self.level.begun.get(timeout=TIMEOUT_S).code for _ in range(3)]
        self.assertEqual(sorted(begun), ["0", "1", "2"])
        self.level.go.set()
        self.assertEqual(sorted(int(self.result().stdout) for _ in range(20)), list(range(20)))
        self.assertEqual(self.level.most, 3)
        begun = [self.level.begun.get(timeout=TIMEOUT_S).code for _ in range(17)]
        self.assertLessEqual(
            max(abs(int(code) - turn) for turn, code in enumerate(begun, 3)), 16
        )  # threads tell of it in any order

    def test_a_job_beyond_the_queue_is_refused_at_once(self) -> None:
        sandbox = self.sandbox(self.level, concurrency=1, size=2)
        for _ in range(3):
            sandbox.submit(JOB, self.results.put)
        refused: list[Run] = []
        sandbox.submit(JOB, refused.append)
        self.assertEqual([(run.reason, run.error) for run in refused], [("setup", "sandbox_busy")])
        self.level.go.set()
        self.assertEqual([self.result().reason for _ in range(3)], ["exit"] * 3)

    def test_a_job_that_waits_is_dropped_when_cancelled_and_frees_its_place(self) -> None:
        sandbox = self.sandbox(self.level, concurrency=1, size=1)
        sandbox.submit(JOB, self.results.put)
        self.level.begun.get(timeout=TIMEOUT_S)
        dropped: list[Run] = []
        ticket = sandbox.submit(Job("python", "dropped"), dropped.append)
        for _ in range(3):
            ticket.cancel()
        self.assertEqual([(run.reason, run.error) for run in dropped], [("setup", "cancelled")])
        sandbox.submit(Job("python", "next"), self.results.put)
        self.level.go.set()
        self.assertEqual([self.result().stdout for _ in range(2)], [b"print(1)", b"next"])
        self.assertEqual(self.level.begun.get(timeout=TIMEOUT_S).code, "next")
        self.assertTrue(self.level.kills.empty())

    def test_a_job_that_runs_is_killed_when_cancelled_and_ends_once(self) -> None:
        sandbox = self.sandbox(self.level, concurrency=1)
        ticket = sandbox.submit(JOB, self.results.put)
        self.level.begun.get(timeout=TIMEOUT_S)
        for _ in range(3):
            ticket.cancel()
        run = self.result()
        self.assertEqual((run.isolation, run.error), ("namespaces", "cancelled"))
        self.assertEqual(self.level.kills.qsize(), 1)
        self.level.go.set()
        self.assertEqual(sandbox.run(JOB).reason, "exit")  # the place is free
        self.assertTrue(self.results.empty())

    def test_a_job_cancelled_while_the_levels_are_tried_is_not_run(self) -> None:
        tried, go = threading.Event(), threading.Event()

        def wait() -> None:
            tried.set()
            go.wait(TIMEOUT_S)

        self.level.in_probe = wait
        ticket = self.sandbox(self.level).submit(JOB, self.results.put)
        tried.wait(TIMEOUT_S)
        ticket.cancel()
        go.set()
        self.assertEqual(self.result().error, "cancelled")
        self.assertTrue(self.level.begun.empty())

    def test_a_job_that_has_ended_is_not_touched_by_a_late_cancel(self) -> None:
        self.level.go.set()
        sandbox = self.sandbox(self.level)
        ticket = sandbox.submit(JOB, self.results.put)
        self.assertEqual(self.result().reason, "exit")
        ticket.cancel()
        sandbox.close(TIMEOUT_S)  # what the cancelling has begun has ended
        self.assertEqual(self.level.closed_jails, 1)
        self.assertTrue(self.results.empty())

    def test_every_run_is_told_with_its_level_result_and_time(self) -> None:
        self.level.go.set()
        sandbox = self.sandbox(self.level)
        runs = [sandbox.run(JOB)]
        self.level.results = [ran("namespaces")._replace(reason="wall", seconds=5.0)]
        runs.append(sandbox.run(JOB))
        told = [(run.isolation, run.reason, run.seconds) for run in runs]
        self.assertEqual(told, [("namespaces", "exit", 0.01), ("namespaces", "wall", 5.0)])

    def test_every_jail_is_closed_and_new_ones_are_made_when_no_job_waits(self) -> None:
        sandbox = self.sandbox(self.level, concurrency=1)
        for _ in range(3):
            sandbox.submit(JOB, self.results.put)
        self.level.go.set()
        for _ in range(3):
            self.result()
        eventually(lambda: self.level.refills == 1)
        self.assertEqual(self.level.closed_jails, 3)

    def test_a_callback_may_hand_in_the_next_job(self) -> None:
        self.level.go.set()
        sandbox = self.sandbox(self.level, concurrency=1)
        sandbox.submit(JOB, lambda run: sandbox.submit(JOB, self.results.put) and None)
        self.assertEqual(self.result().reason, "exit")

    def test_the_end_kills_what_runs_and_drops_what_waits_each_once(self) -> None:
        sandbox = self.sandbox(self.level, concurrency=1)
        for _ in range(4):
            sandbox.submit(JOB, self.results.put)
        self.level.begun.get(timeout=TIMEOUT_S)
        sandbox.close(TIMEOUT_S)
        self.assertEqual(sorted(str(self.result().error) for _ in range(4)), ["cancelled", *["sandbox_closed"] * 3])
        self.assertTrue(self.results.empty())
        self.assertGreaterEqual(self.level.closed, 1)
        self.assertEqual(self.level.kills.qsize(), 1)
        sandbox.close(TIMEOUT_S)
        self.assertEqual(sandbox.run(JOB).error, "sandbox_closed")

    def test_a_level_that_was_being_tried_at_the_end_is_closed_after_it(self) -> None:
        tried, go = threading.Event(), threading.Event()

        def wait() -> None:
            tried.set()
            go.wait(TIMEOUT_S)

        self.level.in_probe = wait
        sandbox = self.sandbox(self.level)
        sandbox.submit(JOB, self.results.put)
        tried.wait(TIMEOUT_S)
        sandbox.close()
        before = self.level.closed
        go.set()
        self.assertEqual(self.result().reason, "setup")
        self.assertGreater(self.level.closed, before)
        self.assertTrue(self.level.begun.empty())

    def test_without_a_thread_a_job_ends_with_an_error_and_the_next_one_may_run(self) -> None:
        self.level.go.set()
        sandbox = self.sandbox(self.level)
        with unittest.mock.patch.object(threading.Thread, "start", side_effect=RuntimeError("no thread")):
            self.assertEqual(sandbox.run(JOB).error, "sandbox_no_thread")
        self.assertEqual(sandbox.run(JOB).reason, "exit")


class StopTest(unittest.TestCase):
    def test_a_run_that_begins_after_it_was_to_end_is_ended_at_once(self) -> None:
        stop, killed = Stop(), []
        stop.set()
        stop.attach(lambda: killed.append(1))
        self.assertEqual(killed, [1])

    def test_a_run_is_ended_once_and_not_after_its_end(self) -> None:
        stop, killed = Stop(), []
        stop.attach(lambda: killed.append(1))
        stop.set()
        stop.set()
        self.assertEqual(killed, [1])
        stop, killed = Stop(), []
        stop.attach(lambda: killed.append(1))
        stop.detach()
        stop.set()
        self.assertEqual(killed, [])
