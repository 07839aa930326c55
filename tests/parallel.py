"""Runs test classes side by side, in processes of their own: most tests wait more than they work.

Measured on two processors: a third of the time of one process.

`ParallelSuite` hands a class at a time to whichever worker process is free (`tests.parallel_worker`), those that take
longest first, and tells the outcomes to unittest's own result, test by test: every option and the report stay
unittest's. What is not found again by its name (a module that could not be imported) runs in this process. A worker
that dies is an error naming the test it ran, and another takes its place; but where the interpreter itself may crash
(`MAY_CRASH`), the tests it still had are run once more after the first such end, and the run says so. What tests print
goes to stderr.

A test marked with `alone` runs when all others have ended, by itself: for those that assert how soon something happens
and whose bound, as strict as the promise they test, may not hold while others want the processors. Each adds its whole
time to the run, so no other test is marked. A class with tests of both kinds is run as two.

`TESTS_AGAIN=N`, for where others want the machine at the same time: up to N tests that fail run once more, one by one,
when all others have ended; the second outcome counts, and the run says at its end which these were and how they failed
first. One more than N, and it is no chance: those that come then fail at once, as do all where there are no workers.

Ctrl-C ends the test under way by way of its cleanups, and the run with what has been told so far and status 130; a
worker that does not end within `HURRY_S` is killed with all it has started, as is what one leaves behind in any case.

`TESTS_PROCESSES` says how many workers; 0 or 1: none, everything runs in this process (for a debugger), and so it does
when there is one class only.

The main thread alone touches the result and the workers; each worker's reading thread fills `_Crew.messages`.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import json
import os
import platform
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import unittest
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Optional, TypeVar
from unittest import mock
from unittest.case import _SubTest  # type: ignore[attr-defined]
from unittest.suite import _ErrorHolder  # type: ignore[attr-defined]

import tests
from tests.parallel_worker import GRACE_S, LIMIT_S, Message, end_group, leave, member

ROOT = Path(__file__).resolve().parent.parent
POLL_S = 0.2  # how soon a wish to stop is seen
HURRY_S = 5.0
# PyPy 7.3.11 was seen to end by SIGSEGV in two of many runs of all tests, during another one each time, with nothing
# compiled of ours in the process; never where that test was run over and over to find out why.
MAY_CRASH = platform.python_implementation() == "PyPy"
EXIT_INTERRUPTED = 130
Unit = list[unittest.TestCase]
T = TypeVar("T")
FAILING = {"addError", "addFailure", "addSubTest"}
WITH_ERROR = {*FAILING, "addExpectedFailure"}

# Seconds each: begun last, they would run when all others have finished.
LONG = {"process.test_nine_engines", "process.test_parallel", "process.test_process", "http.test_budgets"}
LONG |= {
    "http.test_reuse_accounts",
    "process.test_console",
    "process.test_sandbox_container",
    "process.test_secrets",
    "http.test_keys",
    "unit.test_database",
    "http.test_readme",
    "http.test_clients_page",
    "process.test_ending",
    "process.test_terminal",
}


def alone(marked: T) -> T:
    """Mark a test, or all those of a class, that must not share the machine with others. Returns what it was given."""
    marked.alone = True  # type: ignore[attr-defined]
    return marked


class RemoteError(Exception):
    """What was raised in a worker, as text."""


class RemoteFailure(AssertionError):
    """The same for a failed assertion."""


class ParallelSuite(unittest.TestSuite):
    """A suite whose classes are run by several processes; the outcomes are those of a plain suite.

    `skipped`: a file for the names of what is skipped, one a line, which `loadTestsFromNames` finds. `again`: so many
    tests that fail run once more; 0: none.
    """

    def __init__(self, tests: Iterable[Any] = (), skipped: Optional[str] = None, again: int = 0) -> None:
        super().__init__(tests)
        self._skipped = skipped
        self._again = again

    def run(self, result: unittest.TestResult, debug: bool = False) -> unittest.TestResult:
        here, units, by_themselves = _units(self)
        processes = min(wanted_processes(), len(units))
        aside = not debug and processes > 1
        with _Interruption(result, aside) as interruption:
            if not aside:
                super().run(result, debug)
            else:
                unittest.TestSuite(here).run(result)
                failed: list[tuple[unittest.TestCase, str]] = []
                for some, at_once in ((units, processes), (by_themselves, 1)):
                    if some and not result.shouldStop:
                        _Crew(result, some, interruption, failed, self._again).run(at_once)
                if failed and not result.shouldStop:
                    _Crew(result, [[test] for test, _ in failed], interruption).run(1)
                for test, how in failed:
                    print(f"\nRun again, by itself, since it failed: {test.id()}\n{how}", file=sys.stderr, flush=True)
        if self._skipped is not None:
            names = sorted({_name_of(test) for test, _ in result.skipped})
            Path(self._skipped).write_text("".join(f"{name}\n" for name in names), "utf-8")
        return result


class _Interruption:
    """Handles SIGINT while tests run, unless somebody else does (-c); ends the process when one has come."""

    def __init__(self, result: unittest.TestResult, aside: bool) -> None:
        self.came = False
        self.workers: list[_Worker] = []  # those of the crew at work
        self._result = result
        self._aside = aside  # the tests are run by workers
        self._told = 0, 0  # errors and failures, when it came
        self._before: Any = None

    def __enter__(self) -> _Interruption:
        before = signal.getsignal(signal.SIGINT)
        if before in (tests.interrupted, signal.default_int_handler):
            self._before = before
            signal.signal(signal.SIGINT, self._handle)
        return self

    def _handle(self, number: int, frame: Optional[FrameType]) -> None:
        if self.came:  # twice: at once
            for worker in self.workers:
                worker.kill()
            tests.interrupted(number, frame)
        self.came = True
        self._told = len(self._result.errors), len(self._result.failures)
        if self._aside:
            self._result.stop()
        else:
            leave(self._result, frame)

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if self.came:
            # What the test under way made of it is nothing to report.
            del self._result.errors[self._told[0] :], self._result.failures[self._told[1] :]
            print_errors = getattr(self._result, "printErrors", None)
            if print_errors is not None:
                print_errors()
            sys.stdout.flush()
            print(f"\nInterrupted after {self._result.testsRun} tests.", file=sys.stderr, flush=True)
            os._exit(EXIT_INTERRUPTED)
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)


def wanted_processes() -> int:
    """TESTS_PROCESSES; without it 6 to 8, by the number of processors. ValueError when it is no number."""
    wanted = number_in("TESTS_PROCESSES", os.environ.get("TESTS_PROCESSES", ""))
    return max(6, min(os.cpu_count() or 1, 8)) if wanted is None else wanted


def number_in(name: str, text: str) -> Optional[int]:
    """The number that a variable's text is; None: it is empty. ValueError when it is none."""
    if text and not text.isdecimal():
        raise ValueError(f"{name}: {text!r} is no number")
    return int(text) if text else None


def _units(suite: unittest.TestSuite) -> tuple[list[unittest.TestCase], list[Unit], list[Unit]]:
    """The tests for this process, and what is handed out as a whole: classes, or modules with fixtures of their own;
    apart from these, what of them has to run alone."""
    here: list[unittest.TestCase] = []
    units: dict[tuple[bool, str, str], Unit] = collections.defaultdict(list)
    for test in _flat(suite):
        kind = type(test)
        module: Any = sys.modules.get(kind.__module__)
        found = functools.reduce(member, kind.__qualname__.split("."), module) is kind
        if not found or not hasattr(kind, test._testMethodName):
            here.append(test)
        else:
            whole = hasattr(module, "setUpModule") or hasattr(module, "tearDownModule")
            marked = any(getattr(one, "alone", False) for one in (kind, getattr(kind, test._testMethodName)))
            units[marked, kind.__module__, "" if whole else kind.__qualname__].append(test)

    def order(key: tuple[bool, str, str]) -> tuple[bool, bool, int]:
        module = key[1].partition(".")[2]
        return module not in LONG, "http" not in module, -len(units[key])

    keys = sorted(units, key=order)
    return here, [units[key] for key in keys if not key[0]], [units[key] for key in keys if key[0]]


def _flat(suite: Iterable[Any]) -> Iterator[unittest.TestCase]:
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from _flat(test)
        else:
            yield test


def _name_of(skipped: Any) -> str:
    """The name of a test; of a subtest, that of its test; of what fixtures skip, that of the class or module."""
    in_fixtures = re.fullmatch(r"\w+ \((.*)\)", skipped.id())
    return in_fixtures[1] if in_fixtures else str(getattr(skipped, "test_case", skipped).id())


class _Worker:
    """One process, what it was given, and what it has told of the test under way."""

    def __init__(self, messages: queue.Queue[tuple[_Worker, Optional[Message]]]) -> None:
        # As this interpreter was started; unittest shows each warning once unless told otherwise.
        options = [f"-W{option}" for option in sys.warnoptions or ["default"]]
        options += [f"-X{name}" if value is True else f"-X{name}={value}" for name, value in sys._xoptions.items()]
        # PyPy without a locale reads a command line in another way than paths.
        code = f"import sys; sys.path.insert(0, {str(ROOT)!a}); from tests.parallel_worker import work; work()"
        self.process = subprocess.Popen(
            [sys.executable, *options, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            start_new_session=True,  # so that a terminal's Ctrl-C is the parent's alone; leads its group
        )
        self.unit: Optional[str] = None  # the class it runs; None: it is free
        self.tests: dict[str, unittest.TestCase] = {}  # of that class, those whose end has not been told
        self.told: list[Message] = []  # since the test under way began
        self.heard_s = time.monotonic()
        self.began = False
        self._messages = messages
        self._reader = threading.Thread(target=self._read, name="test-worker-reader", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.began = True
            if line.endswith("\n"):  # else it died writing it
                self._messages.put((self, json.loads(line)))
        self._messages.put((self, None))

    def give(self, unit: Unit, options: dict[str, bool]) -> None:
        """Have it run these tests."""
        self.unit = f"{type(unit[0]).__module__}.{type(unit[0]).__qualname__}"
        self.tests = {test.id(): test for test in unit}
        names = [(type(test).__module__, type(test).__qualname__, test._testMethodName) for test in unit]
        with contextlib.suppress(OSError):  # it died: its reader says so
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps({"tests": names, "options": options}) + "\n")
            self.process.stdin.flush()

    def dismiss(self) -> None:
        """There is nothing more for it. May be called again."""
        with contextlib.suppress(OSError):
            assert self.process.stdin is not None
            self.process.stdin.close()

    def interrupt(self) -> None:
        """Have it leave the test under way; before it runs any, it does not know how."""
        if not self.began:
            self.kill()
        elif os.name == "posix":
            self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """End it, and what it has started; once its end has been seen, its number may be another one's."""
        if self.process.returncode is not None:
            return
        end_group(self.process.pid)
        self.process.kill()

    def end(self, deadline_s: float) -> int:
        """Wait for its end, kill it at the deadline; returns the exit status."""
        self.dismiss()
        try:
            status = self.process.wait(max(0.0, deadline_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.kill()
            status = self.process.wait(GRACE_S)
        end_group(self.process.pid)  # a gateway that a test has left, say
        self._reader.join(GRACE_S)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status


class _Crew:
    """The workers of one run, and the units nobody has taken yet."""

    def __init__(
        self,
        result: unittest.TestResult,
        units: list[Unit],
        interruption: _Interruption,
        failed: Optional[list[tuple[unittest.TestCase, str]]] = None,
        again: int = 0,
    ) -> None:
        """`failed`: takes the first `again` tests that fail, with how; the result does not hear of them."""
        self.result = result
        self.failed = [] if failed is None else failed
        self.again = again
        self.units = collections.deque(units)
        self.crashed: set[str] = set()  # units during which an interpreter has crashed
        self.interruption = interruption
        self.workers = interruption.workers = []
        self.messages: queue.Queue[tuple[_Worker, Optional[Message]]] = queue.Queue()

    def run(self, processes: int) -> None:
        """Run all units; returns when every worker has ended. Ends early when the result wants to stop."""
        as_usual = getattr(self.result, "_exc_info_to_string", None)

        def as_text(error: Any, test: unittest.TestCase) -> Any:
            remote = isinstance(error[1], (RemoteError, RemoteFailure))
            return str(error[1]) if remote or as_usual is None else as_usual(error, test)

        # The worker has made the report's text already, with the lines of its own traceback.
        with mock.patch.object(self.result, "_exc_info_to_string", as_text, create=True):
            try:
                for _ in range(processes):
                    self._hire()
                while self.workers and not self.result.shouldStop:
                    self._turn()
            finally:
                deadline_s = _deadline_s()
                if self.interruption.came:
                    deadline_s = time.monotonic() + HURRY_S
                    for worker in self.workers:
                        worker.interrupt()
                for worker in self.workers:
                    worker.dismiss()
                for worker in self.workers:
                    worker.end(deadline_s)

    def _hire(self) -> None:
        worker = _Worker(self.messages)
        self.workers.append(worker)
        self._employ(worker)

    def _employ(self, worker: _Worker) -> None:
        if not self.units:
            worker.dismiss()
            return
        options = {name: bool(getattr(self.result, name, False)) for name in ("buffer", "tb_locals")}
        worker.give(self.units.popleft(), options)

    def _turn(self) -> None:
        try:
            worker, message = self.messages.get(timeout=POLL_S)
        except queue.Empty:
            for worker in self.workers:
                # Its own watch ends it before; this is for one that cannot even do that.
                if worker.unit is not None and time.monotonic() > worker.heard_s + LIMIT_S + GRACE_S:
                    worker.kill()
            return
        worker.heard_s = time.monotonic()
        if message is None:
            self._bury(worker)
        elif message[0] == "done":
            worker.unit = None
            self._employ(worker)
        else:
            worker.told.append(message)
            # A test as a whole, so that the lines of others do not come between; what is told of a class, at once.
            if message[0] == "stopTest" or worker.told[0][0] != "startTest":
                if not self._keep(worker):
                    self._replay(worker)

    def _bury(self, worker: _Worker) -> None:
        """Its outcomes have ended: as wanted, or with an error for what it was running."""
        status = worker.end(_deadline_s())
        self.workers.remove(worker)
        unit = worker.unit
        if MAY_CRASH and unit is not None and status == -signal.SIGSEGV and unit not in self.crashed:
            self.crashed.add(unit)
            self.units.appendleft(list(worker.tests.values()))
            print(f"\nThe interpreter crashed during {unit}; {len(worker.tests)} tests run again.", file=sys.stderr)
        elif status or unit is not None:
            running = worker.told[0][1] if worker.told else None
            lost = len(worker.tests) - (running is not None)
            text = f"The worker process ended with status {status} while it ran {worker.unit or 'nothing'}"
            text += f"; {lost} of its tests have no outcome.\n" if worker.unit is not None and lost else ".\n"
            name = running or f"worker process ({worker.unit})"
            worker.told.append(["addError", name, None, [False, text]])
            if running is not None:
                worker.told.append(["stopTest", running, None])
            self._replay(worker)  # never again by itself: tests behind it have no outcome
        if self.units:
            self._hire()

    def _keep(self, worker: _Worker) -> bool:
        """Keep a test that has failed for another run, if there may be one more: the result does not hear of it yet."""
        name = worker.told[0][1]
        texts = [details[0][1] for method, _, _, *details in worker.told if method in FAILING and details[0]]
        if not texts or name not in worker.tests or len(self.failed) >= self.again:
            return False
        self.failed.append((worker.tests.pop(name), "\n".join(texts)))
        worker.told.clear()
        return True

    def _replay(self, worker: _Worker) -> None:
        """Tell the result what the worker told."""
        for method, name, part, *details in worker.told:
            if method == "printed":
                self._print(*details, in_test=worker.told[0][0] == "startTest")
                continue
            test = worker.tests.get(name) or _ErrorHolder(name)
            target = test if part is None else _subtest(test, part)
            if method in WITH_ERROR:
                details = [detail and _exc_info(*detail) for detail in details]
            if method == "addSubTest":
                self.result.addSubTest(test, target, *details)
            elif method != "addDuration" or hasattr(self.result, method):  # 3.12
                getattr(self.result, method)(target, *details)
            if method == "stopTest":
                worker.tests.pop(name, None)
        worker.told.clear()

    def _print(self, out: str, err: str, in_test: bool) -> None:
        """With -b: print what a failed test, class or module has printed, for the result to show."""
        setup, restore = (getattr(self.result, name, None) for name in ("_setupStdout", "_restoreStdout"))
        if setup is not None and restore is not None:
            setup()
            self.result._mirrorOutput = True  # type: ignore[attr-defined]  # another test may have begun since the error
            sys.stdout.write(out)
            sys.stderr.write(err)
            if not in_test:  # else stopTest does
                restore()


def _deadline_s() -> float:
    # A worker gives itself GRACE_S.
    return time.monotonic() + GRACE_S + 2.0


def _exc_info(failed: bool, text: str) -> tuple[type[BaseException], BaseException, None]:
    kind = RemoteFailure if failed else RemoteError
    return kind, kind(text), None


def _subtest(test: unittest.TestCase, description: str) -> Any:
    """A subtest by its description: its parameters stayed with the worker."""
    subtest = _SubTest(test, "", {})
    subtest._subDescription = lambda: description
    return subtest
