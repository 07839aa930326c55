"""Tests run side by side are reported as others are: small projects of their own, run by `python -m unittest`."""

from __future__ import annotations

import collections
import contextlib
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import unittest
from pathlib import Path
from typing import Optional
from unittest import mock

from tests import parallel
from tests.parallel import wanted_processes
from tests.support import ROOT, TIMEOUT_S, SocketTest, process_environment

WAIT_S = 60.0  # for a whole run, on a machine with other things to do

OUTCOMES = """
    import unittest

    class Passing(unittest.TestCase):
        def test_passes(self):
            "With a docstring."

    class Failing(unittest.TestCase):
        def test_fails(self):
            print("printed by the failing test")
            self.assertEqual({"a": 1}, {"a": 2}, "\\u00e4\\udc80".encode("utf-8", "replace"))

        def test_raises(self):
            try:
                raise KeyError("inner")
            except KeyError as error:
                raise RuntimeError("outer") from error

        def test_fails_twice(self):
            self.addCleanup(self.fail, "in the cleanup")
            self.fail("in the test")

    class Skipped(unittest.TestCase):
        @unittest.skip("a reason")
        def test_skipped(self):
            pass

    @unittest.skip("a reason for the class")
    class SkippedClass(unittest.TestCase):
        def test_skipped(self):
            pass

    class Expected(unittest.TestCase):
        @unittest.expectedFailure
        def test_fails_as_expected(self):
            self.fail()

        @unittest.expectedFailure
        def test_passes_unexpectedly(self):
            pass

    class Parts(unittest.TestCase):
        def test_some_parts_fail(self):
            for number in range(5):
                with self.subTest("a part", number=number, of=[object]):
                    if number == 1:
                        self.fail("one")
                    if number == 2:
                        raise OSError("two")
                    if number == 3:
                        self.skipTest("three")

    class Fixtures(unittest.TestCase):
        @classmethod
        def setUpClass(cls):
            raise ValueError("in setUpClass")

        def test_never_run(self):
            pass

    class LeavingFixtures(unittest.TestCase):
        @classmethod
        def tearDownClass(cls):
            raise ValueError("in tearDownClass")

        def test_passes(self):
            pass

    class SkippingFixtures(unittest.TestCase):
        @classmethod
        def setUpClass(cls):
            raise unittest.SkipTest("in setUpClass")

        def test_never_run(self):
            pass
"""

MODULE_FIXTURES = """
    import unittest

    def setUpModule():
        global seen
        seen = []

    def tearDownModule():
        raise ValueError(f"tearDownModule after {seen}")

    class First(unittest.TestCase):
        def test_first(self):
            seen.append("first")

    class Second(unittest.TestCase):
        def test_second(self):
            seen.append("second")
"""

SKIPPING = """
    import os
    import unittest

    WANTED = "WANTED" in os.environ

    class Some(unittest.TestCase):
        def test_runs(self):
            pass

        @unittest.skipUnless(WANTED, "a test")
        def test_whole(self):
            pass

        def test_part(self):
            for number in range(3):
                with self.subTest(number=number):
                    if not WANTED and number:
                        self.skipTest("a part (of it)")

    @unittest.skipUnless(WANTED, "a class")
    class Marked(unittest.TestCase):
        def test_marked(self):
            pass

    class Class(unittest.TestCase):
        @classmethod
        def setUpClass(cls):
            if not WANTED:
                raise unittest.SkipTest("in setUpClass")

        def test_class(self):
            pass
"""

SKIPPING_MODULE = """
    import os
    import unittest

    def setUpModule():
        if "WANTED" not in os.environ:
            raise unittest.SkipTest("in setUpModule")

    class Any(unittest.TestCase):
        def test_module(self):
            pass
"""

PRINTING = """
    import sys
    import unittest

    class Printing(unittest.TestCase):
        def test_ends_a_line(self):
            print("out")
            print("err", file=sys.stderr)
            raise OSError

        def test_passes(self):
            print("of a passing one")

    class Fixture(unittest.TestCase):
        @classmethod
        def setUpClass(cls):
            print("of the class")
            raise OSError

        def test_passes(self):
            pass
"""

FAILING_AT_FIRST = """
    import os
    import unittest
    from pathlib import Path

    def at_first(test):
        with open(os.environ["DIARY"], "a") as diary:
            diary.write(f"{test._testMethodName}\\n")
        return Path(os.environ["DIARY"]).read_text().split().count(test._testMethodName) == 1

    class Some(unittest.TestCase):
        def test_1(self):
            if at_first(self):
                raise OSError("one at first")

        def test_2(self):
            for number in range(2):
                with self.subTest(number=number):
                    if at_first(self):
                        raise OSError("two at first")

        def test_3_always(self):
            at_first(self)
            self.fail("always")

        def test_4_passes(self):
            at_first(self)
"""

PASSING = """
    import unittest

    class One(unittest.TestCase):
        def test_one(self):
            pass

    class Two(unittest.TestCase):
        def test_two(self):
            pass

    class Three(unittest.TestCase):
        def test_three(self):
            pass
"""

DYING = """
    import os
    import threading
    import time
    import unittest

    class Dies(unittest.TestCase):
        def test_1_before(self):
            pass

        def test_2_dies(self):
            with self.subTest("told before it died"):
                self.fail()
            os._exit(7)

        def test_3_behind(self):
            pass

    class DiesBetween(unittest.TestCase):
        @classmethod
        def setUpClass(cls):
            os._exit(8)

        def test_never_run(self):
            pass

    class Hangs(unittest.TestCase):
        def test_hangs(self):
            threading.Event().wait()
"""

CRASHING = """
    import os
    import signal
    import unittest

    class Crashes(unittest.TestCase):
        def test_1_before(self):
            pass

        def test_2_crashes(self):
            with self.subTest("told before it died"):
                with open("crashes", "a") as file:
                    file.write("x")
            if os.path.getsize("crashes") <= int(os.environ["CRASHES"]):
                os.kill(os.getpid(), signal.SIGSEGV)

        def test_3_behind(self):
            pass
"""

# Tells whoever listens that it runs, by a connection that lasts as long as the process.
WAITING = """
    import os
    import socket
    import unittest

    class Waits(unittest.TestCase):
        def test_waits(self):
            self.sock = socket.create_connection(("127.0.0.1", int(os.environ["LISTENER"])))
            self.sock.recv(1)

    class WaitsToo(Waits):
        pass
"""

# Each test has a process of its own; both tell whoever listens that they run, and both wait.
STARTING = """
    import os
    import socket
    import subprocess
    import sys
    import unittest
    from pathlib import Path

    CONNECT = (
        "import os, socket, time\\n"
        "sock = socket.create_connection(('127.0.0.1', int(os.environ['LISTENER'])))\\n"
        "time.sleep(3600)"
    )

    class Starts(unittest.TestCase):
        def test_waits(self):
            process = subprocess.Popen([sys.executable, "-c", CONNECT], stderr=subprocess.DEVNULL)
            self.addCleanup(self.end, process)
            with socket.create_connection(("127.0.0.1", int(os.environ["LISTENER"]))) as sock:
                while True:
                    try:
                        sock.recv(1)
                    except ValueError:
                        pass

        def end(self, process):
            process.kill()
            process.wait()
            with Path("cleaned").open("a") as file:
                file.write("cleaned up\\n")

    class StartsToo(Starts):
        pass
"""

PARTS = """
    import os
    import socket
    import unittest

    class Parts(unittest.TestCase):
        def test_parts(self):
            for number in range(3):
                with self.subTest(number=number):
                    with socket.create_connection(("127.0.0.1", int(os.environ["LISTENER"]))) as sock:
                        sock.recv(1)
"""

FAILING_FIRST = """
    import os
    import socket
    import unittest

    class Fails(unittest.TestCase):
        def test_1_fails(self):
            self.fail()

        def test_2_waits(self):
            with socket.create_connection(("127.0.0.1", int(os.environ["LISTENER"]))) as sock:
                sock.recv(1)
"""

WRAPPING = """
    import os
    import socket
    import unittest

    class Wraps(unittest.TestCase):
        def test_wraps(self):
            try:
                with socket.create_connection(("127.0.0.1", int(os.environ["LISTENER"]))) as sock:
                    sock.recv(1)
            except Exception as error:
                raise RuntimeError("something of its own") from error
"""

IMPORTING = """
    import os
    import socket

    with socket.create_connection(("127.0.0.1", int(os.environ["LISTENER"]))) as sock:
        sock.recv(1)
"""

STUCK = """
    import os
    import socket
    import unittest

    class Stuck(unittest.TestCase):
        def wait(self):
            with socket.create_connection(("127.0.0.1", int(os.environ["LISTENER"]))) as sock:
                sock.recv(1)

        def test_waits(self):
            self.addCleanup(self.wait)
            self.wait()
"""

# Ends, and leaves a process behind that has told that it runs.
LEAVING = """
    import os
    import subprocess
    import sys
    import unittest

    CONNECT = (
        "import os, socket, sys, time\\n"
        "sock = socket.create_connection(('127.0.0.1', int(os.environ['LISTENER'])))\\n"
        "os.write(1, b'x')\\n"
        "time.sleep(3600)"
    )

    class Leaves(unittest.TestCase):
        def test_leaves(self):
            process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", CONNECT], stdout=subprocess.PIPE)
            process.stdout.read(1)

    class LeavesToo(Leaves):
        pass
"""

# Writes down what begins and ends, and where.
ALONE = """
    import os
    import time
    import unittest
    from pathlib import Path

    from tests.parallel import alone

    DIARY = Path(os.environ["DIARY"])

    class Noted(unittest.TestCase):
        def note(self, what):
            with DIARY.open("a") as diary:
                diary.write(f"{what} {self._testMethodName} {os.getpid()}\\n")

        def setUp(self):
            self.note("begin")
            self.addCleanup(self.note, "end")

        def wait_for_the_other(self):
            deadline_s = time.monotonic() + 30.0
            while DIARY.read_text().count("begin test_beside") < 2:
                self.assertLess(time.monotonic(), deadline_s)
                time.sleep(0.005)

    @alone
    class Strict(Noted):
        def test_1(self):
            pass

        def test_2(self):
            pass

    class Mixed(Noted):
        @alone
        def test_3(self):
            pass

        def test_beside(self):
            self.wait_for_the_other()

    class Usual(Noted):
        def test_beside(self):
            self.wait_for_the_other()
"""


class ProjectTest(SocketTest):
    """A test with a project of test modules in a directory of its own."""

    def setUp(self) -> None:
        self.directory = Path(self.enter(tempfile.TemporaryDirectory()))
        (self.directory / "tests").mkdir()
        for name in ("__init__.py", "parallel.py", "parallel_worker.py", "thorough.py"):
            shutil.copy(ROOT / "tests" / name, self.directory / "tests")

    def module(self, name: str, source: str) -> None:
        """Add a test module."""
        (self.directory / "tests" / f"test_{name}.py").write_text(textwrap.dedent(source), "utf-8")

    def constant(self, name: str, value_s: float) -> None:
        """Change a time of the worker."""
        path = self.directory / "tests" / "parallel_worker.py"
        source, count = re.subn(rf"(?m)^{name} = [0-9.]+", f"{name} = {value_s}", path.read_text("utf-8"))
        self.assertEqual(count, 1)
        path.write_text(source, "utf-8")

    def start(self, processes: int, *arguments: str, **variables: object) -> subprocess.Popen[str]:
        """Start `python -m unittest` there; killed at the end."""
        process = subprocess.Popen(
            [sys.executable, "-m", "unittest", *arguments],
            cwd=self.directory,
            env=process_environment({"TESTS_PROCESSES": processes, **variables}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            start_new_session=True,
        )
        self.enter(process)
        self.addCleanup(process.kill)
        return process

    def unittest(self, processes: int, *arguments: str, **variables: object) -> tuple[int, str]:
        """Run `python -m unittest` there to its end; returns exit status and output."""
        process = self.start(processes, *arguments, **variables)
        output, _ = process.communicate(timeout=WAIT_S)
        return process.returncode, output


class ReportTest(ProjectTest):
    def lines(self, processes: int, *arguments: str) -> list[str]:
        """What a run printed, without its time; in no order, since a fast class may overtake a slow one."""
        status, output = self.unittest(processes, *arguments)
        self.assertEqual(status, 1, output)
        output = re.sub(r"(?m)^Ran (\d+) tests in .*", r"Ran \1 tests", output)
        # unittest leaves out whose error it is when a test that failed as expected was the last before it.
        output = re.sub(r"(?m)^(?:setUp|tearDown)(?:Class|Module) .* \.\.\. (ERROR|skipped .*)$", r"\1", output)
        return sorted(output.splitlines())

    def test_every_outcome_reads_as_if_there_were_no_other_process(self) -> None:
        self.module("outcomes", OUTCOMES)
        self.module("module_fixtures", MODULE_FIXTURES)
        self.module("broken", "import no_such_module")
        here, aside = (self.lines(processes, "-v", "-b", "--locals") for processes in (0, 3))
        self.assertTrue([line for line in here if line.startswith("FAILED (failures=4, errors=")], here)
        self.assertIn("printed by the failing test", here)
        self.assertIn("ModuleNotFoundError: No module named 'no_such_module'", here)
        self.maxDiff = None
        self.assertEqual(aside, here)

    def test_what_is_skipped_is_written_down_and_can_be_run_by_that(self) -> None:
        self.module("some", SKIPPING)
        self.module("all", SKIPPING_MODULE)
        path = self.directory / "skipped"
        for processes in (0, 3):
            self.unittest(processes, TESTS_SKIPPED=path)
            names = path.read_text("utf-8").splitlines()
            expected = ["all", "some.Class", "some.Marked.test_marked", "some.Some.test_part", "some.Some.test_whole"]
            self.assertEqual(names, [f"tests.test_{name}" for name in expected])
            status, output = self.unittest(processes, "-v", TESTS_ONLY=" ".join(names), WANTED=1)
            ran = re.findall(r"(?m)^(test_\w+) .* ok$", output)
            self.assertEqual(sorted(ran), ["test_class", "test_marked", "test_module", "test_part", "test_whole"])
            self.assertEqual(status, 0, output)

    def test_with_b_what_failed_has_printed_follows_its_own_line(self) -> None:
        self.module("outcomes", OUTCOMES)
        self.module("printing", PRINTING)
        _, output = self.unittest(3, "-v", "-b", PYTHONUNBUFFERED="1")
        self.assertRegex(output, r"test_fails \(.*\) \.\.\. FAIL\n\nStdout:\nprinted by the failing test\n")
        self.assertRegex(output, r"test_ends_a_line \(.*\) \.\.\. ERROR\n\nStdout:\nout\n\nStderr:\nerr\n")
        self.assertEqual(output.count("\nStdout:\nof the class\n"), 2, output)  # beside its error, and in the report
        self.assertNotIn("of a passing one", output)

    @unittest.skipUnless(sys.version_info >= (3, 12), "unittest has no --durations before 3.12")
    def test_durations_are_those_of_the_tests(self) -> None:
        self.module("passing", PASSING)
        _, output = self.unittest(2, "-v", "--durations", "0")
        self.assertEqual(len(re.findall(r"(?m)^[0-9.]+s +test_", output)), 3, output)

    def test_a_pattern_chooses_tests(self) -> None:
        self.module("passing", PASSING)
        status, output = self.unittest(2, "-k", "One", "-k", "*.test_two")
        self.assertEqual(status, 0, output)
        self.assertRegex(output, r"(?s)^\.\.\n.*\nRan 2 tests in .*\n\nOK\n$")

    def test_with_f_nothing_is_told_behind_the_first_failure(self) -> None:
        failing = (
            f"class Failing{n}(unittest.TestCase):\n    def test_it(self):\n        self.fail()" for n in range(5)
        )
        self.module("failing", "\n\n".join(("import unittest", *failing)))
        status, output = self.unittest(2, "-f")
        self.assertEqual(status, 1, output)
        self.assertRegex(output, r"\nRan 1 test in .*\n\nFAILED \(failures=1\)\n$")


class AloneTest(ProjectTest):
    def test_what_is_marked_runs_one_by_one_when_all_others_have_ended(self) -> None:
        self.module("alone", ALONE)
        diary = self.directory / "diary"
        status, output = self.unittest(2, "-v", DIARY=diary)
        self.assertEqual(status, 0, output)
        self.assertIn("Ran 5 tests", output)
        lines = [line.split() for line in diary.read_text().splitlines()]
        self.assertEqual({name for _, name, _ in lines[:4]}, {"test_beside"})
        self.assertEqual([what for what, _, _ in lines[4:]], ["begin", "end"] * 3)
        self.assertEqual({name for _, name, _ in lines[4:]}, {"test_1", "test_2", "test_3"})
        self.assertEqual(len({pid for _, _, pid in lines[4:]}), 1, "in one process")


class AgainTest(ProjectTest):
    def run_again(self, again: int) -> tuple[str, list[str]]:
        """What a run printed, and which tests began."""
        self.module("first", FAILING_AT_FIRST)
        self.module("passing", PASSING)
        diary = self.directory / f"diary{again}"
        status, output = self.unittest(2, "-v", TESTS_AGAIN=again, DIARY=diary)
        self.assertEqual(status, 1, output)
        self.assertIn("Ran 7 tests", output)
        return output, diary.read_text("utf-8").split()

    def test_so_many_that_fail_run_once_more_and_it_is_said_how_they_failed_first(self) -> None:
        output, began = self.run_again(3)
        self.assertRegex(output, r"(?m)^FAILED \(failures=1\)$")
        for name in ("test_1", "test_2", "test_4_passes"):
            self.assertRegex(output, rf"(?m)^{name} .* ok$")
        self.assertRegex(output, r"FAIL: test_3_always ")
        for name, how in (("1", "OSError: one"), ("2", "OSError: two"), ("3_always", "AssertionError: always")):
            said = output.partition(f"Run again, by itself, since it failed: tests.test_first.Some.test_{name}\n")[2]
            self.assertIn(how, said.partition("\n\n")[0])
        self.assertEqual(collections.Counter(began), {"test_1": 2, "test_2": 4, "test_3_always": 2, "test_4_passes": 1})

    def test_one_more_than_so_many_fails_at_once(self) -> None:
        output, began = self.run_again(1)
        self.assertEqual(output.count("Run again, by itself"), 1)
        self.assertRegex(output, r"(?m)^FAILED \(failures=1, errors=1\)$")
        self.assertEqual(began, ["test_1", "test_2", "test_2", "test_3_always", "test_4_passes", "test_1"])

    def test_none_does_unless_it_is_asked_for(self) -> None:
        output, began = self.run_again(0)
        self.assertNotIn("Run again", output)
        self.assertEqual(began, ["test_1", "test_2", "test_2", "test_3_always", "test_4_passes"])

    def test_one_that_ends_its_process_does_not(self) -> None:
        """What is behind it has no outcome."""
        self.module("first", FAILING_AT_FIRST.replace('raise OSError("one at first")', "os._exit(7)"))
        self.module("passing", PASSING)
        diary = self.directory / "diary"
        status, output = self.unittest(2, TESTS_AGAIN=9, DIARY=diary)
        self.assertEqual((status, diary.read_text("utf-8").split()), (1, ["test_1"]), output)
        self.assertIn("ended with status 7", output)

    def test_what_is_no_number_is_said_to_be_none(self) -> None:
        self.module("passing", PASSING)
        status, output = self.unittest(2, TESTS_AGAIN="twice")
        self.assertEqual(status, 1, output)
        self.assertIn("TESTS_AGAIN: 'twice' is no number", output)


class EndTest(ProjectTest):
    def test_a_worker_that_dies_or_hangs_is_an_error_of_the_test_it_ran_and_the_rest_runs(self) -> None:
        self.constant("LIMIT_S", 3.0)
        self.module("dying", DYING)
        self.module("passing", PASSING)
        status, output = self.unittest(2, "-v")
        self.assertEqual(status, 1, output)
        for name in ("test_one", "test_two", "test_three", "test_1_before"):
            self.assertRegex(output, rf"(?m)^{name} .* ok$")
        self.assertRegex(output, r"FAILED \((failures=1, )?errors=3\)")  # before 3.11 subtests are told at the end
        self.assertIn("Ran 6 tests", output)  # the others never began
        self.assertRegex(output, r"ERROR: test_2_dies ")
        ended = "The worker process ended with status"
        self.assertIn(f"{ended} 7 while it ran tests.test_dying.Dies; 1 of its tests have no outcome.", output)
        self.assertIn("ERROR: worker process (tests.test_dying.DiesBetween)", output)
        self.assertIn(f"{ended} 8 while it ran tests.test_dying.DiesBetween; 1 of its tests have no outcome.", output)
        self.assertRegex(output, r"ERROR: test_hangs ")
        self.assertRegex(output, r"(?s)Timeout .*in test_hangs\n")  # where it hung

    def test_an_interpreter_s_own_crash_is_told_and_what_is_left_runs_once_more_where_it_may_crash(self) -> None:
        self.module("crashing", CRASHING)
        self.module("passing", PASSING)
        again = "The interpreter crashed during tests.test_crashing.Crashes; 2 tests run again."
        path = self.directory / "tests" / "parallel.py"
        source = path.read_text("utf-8")
        self.assertIn('\nMAY_CRASH = platform.python_implementation() == "PyPy"\n', source)
        for may, crashes, failed in ((True, 1, False), (True, 2, True), (False, 1, True)):
            with self.subTest(may=may, crashes=crashes):
                (self.directory / "crashes").unlink(missing_ok=True)
                path.write_text(re.sub(r"(?m)^MAY_CRASH = .*", f"MAY_CRASH = {may}", source), "utf-8")
                status, output = self.unittest(2, "-v", CRASHES=crashes)
                self.assertEqual(output.count(again), may)
                self.assertEqual(status != 0, failed, output)
                self.assertEqual("ended with status -11 while it ran tests.test_crashing.Crashes" in output, failed)
                self.assertIn(f"Ran {6 - failed} tests", output)

    def run_until_both_wait(self) -> tuple[subprocess.Popen[str], list[socket.socket]]:
        self.constant("GRACE_S", 0.1)
        self.module("waiting", WAITING)
        listener = self.enter(socket.create_server(("127.0.0.1", 0)))
        listener.settimeout(WAIT_S)
        process = self.start(2, LISTENER=listener.getsockname()[1])
        return process, [self.enter(listener.accept()[0]) for _ in range(2)]

    def assert_gone(self, workers: list[socket.socket]) -> None:
        for worker in workers:
            worker.settimeout(TIMEOUT_S)
            with contextlib.suppress(ConnectionResetError):
                self.assertEqual(worker.recv(1), b"")

    def test_no_worker_outlives_a_run_that_is_killed(self) -> None:
        process, workers = self.run_until_both_wait()
        process.kill()
        process.communicate(timeout=WAIT_S)
        self.assert_gone(workers)


class KillTest(unittest.TestCase):
    def test_what_has_the_number_of_a_worker_that_has_ended_is_left_alone(self) -> None:
        worker = parallel._Worker(queue.Queue())
        worker.end(time.monotonic() + WAIT_S)
        with mock.patch.object(parallel, "end_group") as end_group:
            worker.kill()
        end_group.assert_not_called()


@unittest.skipUnless(hasattr(os, "killpg"), "no process groups")
class InterruptTest(ProjectTest):
    """SIGINT, to the group as a terminal sends it or to the run alone."""

    def setUp(self) -> None:
        super().setUp()
        self.listener = self.enter(socket.create_server(("127.0.0.1", 0)))
        self.listener.settimeout(WAIT_S)

    def begin(self, processes: int, *arguments: str, connections: int) -> subprocess.Popen[str]:
        """A run whose processes have made so many connections, which last as long as they do."""
        process = self.start(processes, *arguments, LISTENER=self.listener.getsockname()[1])
        self.connections = [self.enter(self.listener.accept()[0]) for _ in range(connections)]
        return process

    def assert_interrupted(self, process: subprocess.Popen[str], ran: Optional[int]) -> str:
        """It ended as it should, and nothing that it has started is left."""
        output, _ = process.communicate(timeout=WAIT_S)
        self.assertEqual(process.returncode, 130, output)
        self.assertNotIn("Traceback", output)
        self.assertIn("\nInterrupted.\n" if ran is None else f"\nInterrupted after {ran} tests.\n", output)
        for connection in self.connections:
            connection.settimeout(TIMEOUT_S)
            with contextlib.suppress(ConnectionResetError):
                self.assertEqual(connection.recv(1), b"")
        return output

    def test_tests_end_with_what_they_have_started(self) -> None:
        self.module("starting", STARTING)
        for processes, connections in ((0, 2), (2, 4)):
            for to_all in (False, True):
                with self.subTest(processes=processes, to_all=to_all):
                    process = self.begin(processes, connections=connections)
                    (os.killpg if to_all else os.kill)(process.pid, signal.SIGINT)
                    self.assert_interrupted(process, 1 if processes == 0 else 0)
                    ended = (self.directory / "cleaned").read_text()
                    (self.directory / "cleaned").unlink()
                    self.assertEqual(ended, "cleaned up\n" * (connections // 2))

    def test_a_part_of_a_test_ends_all_of_it(self) -> None:
        self.module("parts", PARTS)
        process = self.begin(0, connections=1)
        process.send_signal(signal.SIGINT)
        self.assert_interrupted(process, 1)

    def test_what_a_test_makes_of_it_is_not_reported(self) -> None:
        self.module("wrapping", WRAPPING)
        process = self.begin(0, connections=1)
        process.send_signal(signal.SIGINT)
        self.assert_interrupted(process, 1)

    def test_what_does_not_end_is_killed_with_what_it_has_started(self) -> None:
        path = self.directory / "tests" / "parallel.py"
        source, count = re.subn("(?m)^HURRY_S = .*", "HURRY_S = 0.1", path.read_text("utf-8"))
        self.assertEqual(count, 1)
        path.write_text(source, "utf-8")
        self.module("stubborn", STARTING.replace("except ValueError:", "except Exception:"))
        process = self.begin(2, connections=4)
        process.send_signal(signal.SIGINT)
        self.assert_interrupted(process, 0)

    def test_what_has_failed_before_is_reported(self) -> None:
        self.module("failing", FAILING_FIRST)
        process = self.begin(0, connections=1)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=WAIT_S)
        self.assertEqual(process.returncode, 130)
        self.assertRegex(output, r"FAIL: test_1_fails ")
        self.assertIn("\nInterrupted after 2 tests.\n", output)

    def test_while_the_tests_are_looked_for(self) -> None:
        self.module("importing", IMPORTING)
        process = self.begin(2, connections=1)
        process.send_signal(signal.SIGINT)
        self.assert_interrupted(process, None)

    def test_a_second_one_ends_a_cleanup_that_does_not(self) -> None:
        self.module("stuck", STUCK)
        process = self.begin(0, connections=1)
        process.send_signal(signal.SIGINT)
        self.connections.append(self.enter(self.listener.accept()[0]))  # from the cleanup
        process.send_signal(signal.SIGINT)
        self.assert_interrupted(process, None)

    def test_with_c_it_is_unittest_that_handles_it(self) -> None:
        self.module("waiting", WAITING)
        process = self.begin(0, "-c", "-k", "Waits.", connections=1)
        process.send_signal(signal.SIGINT)
        self.connections[0].close()  # the test ends as usual
        output, _ = process.communicate(timeout=WAIT_S)
        self.assertEqual((process.returncode, output.splitlines()[-1]), (0, "OK"), output)

    def test_a_worker_leaves_nothing_running_behind(self) -> None:
        self.module("leaving", LEAVING)
        process = self.begin(2, connections=2)
        output, _ = process.communicate(timeout=WAIT_S)
        self.assertEqual(process.returncode, 0, output)
        for connection in self.connections:
            connection.settimeout(TIMEOUT_S)
            with contextlib.suppress(ConnectionResetError):
                self.assertEqual(connection.recv(1), b"")


class ProcessesTest(unittest.TestCase):
    def wanted(self, text: str) -> int:
        with mock.patch.dict(os.environ, {"TESTS_PROCESSES": text}):
            return wanted_processes()

    def test_as_many_as_wanted_else_six_to_eight(self) -> None:
        self.assertEqual([self.wanted("0"), self.wanted("1"), self.wanted("12")], [0, 1, 12])
        for processors, expected in ((None, 6), (1, 6), (7, 7), (64, 8)):
            with mock.patch("os.cpu_count", return_value=processors):
                self.assertEqual(self.wanted(""), expected)

    def test_what_is_no_number_is_refused(self) -> None:
        for text in ("many", "-1", "2.5"):
            with self.assertRaisesRegex(ValueError, f"TESTS_PROCESSES: '{text}'"):
                self.wanted(text)


if __name__ == "__main__":
    unittest.main()
