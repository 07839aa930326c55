"""A worker process of `tests.parallel`: runs the classes it is given, and tells each outcome as it comes.

A fresh interpreter: no fork, nothing shared. JSON lines both ways, classes down stdin, outcomes up stdout; the tests
get neither of the two.

It always ends: behind the test under way when its stdin closes, however the parent ended, and at once, with whatever it
has started, when that takes longer than `GRACE_S`; with the stack of every thread when a test takes longer than
`LIMIT_S`. SIGINT, which only the parent sends, ends the test under way (`leave`).
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import importlib
import json
import os
import queue
import signal
import threading
import time
import unittest
from types import FrameType
from typing import Any, Optional, TextIO
from unittest.case import _SubTest  # type: ignore[attr-defined]

LIMIT_S = 180.0  # for one test; the longest takes 6 s on an idle machine
GRACE_S = 10.0
STDERR = 2

# unittest's functions in which what is raised is an outcome of the test and its cleanups follow; and functions that
# clean up, which must not be left halfway.
GUARDED = {"_callSetUp", "_callTestMethod"}
CLEANING = {"doCleanups", "tearDown", "__exit__"}

Message = list[Any]  # a method of TestResult, the test's id, its subtest's description, more arguments


class Interrupted(unittest.SkipTest):
    """Ctrl-C: the test under way ends as if it had skipped itself, with its cleanups."""


def leave(result: unittest.TestResult, frame: Optional[FrameType]) -> None:
    """For a signal handler: have no further test begin, and end the one that `frame` is in by way of its cleanups."""
    result.stop()
    result.failfast = True  # a part that skips ends the whole test
    names = set()
    while frame is not None:
        names.add(frame.f_code.co_name)
        frame = frame.f_back
    if names & GUARDED and not names & CLEANING:
        raise Interrupted("interrupted")


def end_group(leader: int) -> None:
    """Kill a process that leads a group of its own (0: this one), and what it has started, where there are groups."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):  # the second is macOS's for one that has ended
            os.killpg(leader, signal.SIGKILL)


class _Reporter(unittest.TestResult):
    """Writes each outcome to the parent as it comes; stops when the parent is gone."""

    def __init__(self, outcomes: TextIO, parent_gone: threading.Event, options: dict[str, bool]) -> None:
        super().__init__()
        self._outcomes = outcomes
        self._parent_gone = parent_gone
        self.buffer = options["buffer"]
        self.tb_locals = options["tb_locals"]

    def tell(self, method: str, test: Any = None, *details: Any) -> None:
        """Write one message."""
        part = test._subDescription() if isinstance(test, _SubTest) else None
        name = test.test_case.id() if isinstance(test, _SubTest) else test and test.id()
        try:
            self._outcomes.write(json.dumps([method, name, part, *details]) + "\n")
            self._outcomes.flush()
        except OSError:  # nobody listens
            self.stop()

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        faulthandler.dump_traceback_later(LIMIT_S, exit=True, file=STDERR)
        self.tell("startTest", test)

    def stopTest(self, test: unittest.TestCase) -> None:
        super().stopTest(test)
        self.tell("stopTest", test)
        if self._parent_gone.is_set():
            self.stop()

    def _restoreStdout(self) -> None:  # unittest's, called when a test, a class or a module ends
        # With -b unittest shows what a failed one printed. Shown from here it would fall into the parent's lines.
        if self.buffer and self._mirrorOutput:
            self.tell("printed", None, self._stdout_buffer.getvalue(), self._stderr_buffer.getvalue())
            self._mirrorOutput = False
        super()._restoreStdout()  # type: ignore[misc]

    def addSuccess(self, test: unittest.TestCase) -> None:
        super().addSuccess(test)
        self.tell("addSuccess", test)

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        super().addError(test, err)
        self.tell("addError", test, [False, self.errors[-1][1]])

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        super().addFailure(test, err)
        self.tell("addFailure", test, [True, self.failures[-1][1]])

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        super().addSkip(test, reason)
        self.tell("addSkip", test, str(reason))

    def addExpectedFailure(self, test: unittest.TestCase, err: Any) -> None:
        super().addExpectedFailure(test, err)
        self.tell("addExpectedFailure", test, [True, self.expectedFailures[-1][1]])

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
        super().addUnexpectedSuccess(test)
        self.tell("addUnexpectedSuccess", test)

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        super().addSubTest(test, subtest, err)
        failed = err is not None and issubclass(err[0], test.failureException)
        text = (self.failures if failed else self.errors)[-1][1] if err is not None else ""
        self.tell("addSubTest", subtest, None if err is None else [failed, text])

    def addDuration(self, test: unittest.TestCase, elapsed: float) -> None:
        self.tell("addDuration", test, elapsed)  # 3.12 and later


def work() -> None:
    """What a worker process does: run what comes in on stdin, until it closes."""
    commands = os.fdopen(os.dup(0), encoding="utf-8")
    outcomes = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # The tests, and the processes they start, get neither.
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(STDERR, 1)
    os.close(nothing)
    faulthandler.enable(STDERR)
    parent_gone = threading.Event()
    reporter: Optional[_Reporter] = None

    def interrupted(number: int, frame: Optional[FrameType]) -> None:
        signal.signal(signal.SIGINT, lambda *_: None)  # once; not SIG_IGN, which children would inherit
        parent_gone.set()
        if reporter is not None:
            leave(reporter, frame)

    signal.signal(signal.SIGINT, interrupted)
    units: queue.Queue[Any] = queue.Queue()
    threading.Thread(target=_listen, args=(commands, units, parent_gone), name="test-commands", daemon=True).start()
    with outcomes:
        while True:
            unit = units.get()
            if unit is None:
                return
            # A result of its own each: one that has seen a class would tear it down again.
            reporter = _Reporter(outcomes, parent_gone, unit["options"])
            unittest.TestSuite(_test(*names) for names in unit["tests"]).run(reporter)
            faulthandler.cancel_dump_traceback_later()
            reporter.tell("done")


def _test(module: str, kind: str, method: str) -> unittest.TestCase:
    owner: Any = importlib.import_module(module)
    test: unittest.TestCase = functools.reduce(member, kind.split("."), owner)(method)
    return test


def _listen(commands: TextIO, units: queue.Queue[Any], parent_gone: threading.Event) -> None:
    for line in commands:
        units.put(json.loads(line))
    parent_gone.set()
    units.put(None)
    # A test under way may end; one that does not, and threads left behind, are no reason to stay.
    time.sleep(GRACE_S)
    end_group(0)
    os._exit(1)


def member(owner: Any, name: str) -> Any:
    """What `owner` has by that name, or None."""
    return getattr(owner, name, None)
