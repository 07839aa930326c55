"""Runs what the members wrote, in the sandbox: what is to be run, and what a run has shown.

`Runs` belongs to one request and to who runs its steps; results come to its mailbox from the sandbox's threads, where
they are read (a report may be large, and the loop has others to serve). A program is judged once for the same inputs,
however often it is asked for. Nothing here decides who is right, and no code that a model or a client wrote is parsed
here: that is done in the sandbox.
"""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Sequence
from typing import Any, Callable, NamedTuple, Optional

from gateway.jsontext import utf8
from gateway.steps import Steps
from gateway.verify.harness.keys import JUDGE
from gateway.verify.panel import Mailbox
from gateway.verify.programs import Program
from gateway.verify.question import Question
from gateway.verify.sandbox.job import Job, Limits, Run
from gateway.verify.sandbox.levels import CANCELLED
from gateway.verify.sandbox.sandbox import UNAVAILABLE, Sandbox, Ticket

JUDGED_S = 2.0  # of CPU and of wall time, for all calls, or all runs, of one candidate
CALL_S = 0.1
JUDGE_TRIES = 2  # and no more: it may be the program that sees to it
START_S = 0.15  # of CPU, that starting a program may take, which is no fault of a program
WAIT_S = 1.0  # by the clock, that such a start may wait where others want the processors
SPARE_S = 10.0  # of the clock, for starting and reporting where others want the processors, too
INPUTS_S = 5.0  # of CPU time, for making inputs
SHOWN_CHARS = 2000
SEED = 7  # the same question gets the same inputs


class Inputs(NamedTuple):
    """What all candidates are run on."""

    entry_point: Optional[str]
    arguments: tuple[str, ...] = ()
    """Of each call; without an entry point, what a program reads in each run."""
    tiers: tuple[int, ...] = ()
    expected: tuple[Optional[str], ...] = ()
    """Of each, the key that an example demands; None: it demands nothing."""
    wraps: tuple[Any, ...] = ()


class Judged(NamedTuple):
    """What one candidate has done. `keys` None: it could not be run."""

    keys: Optional[tuple[str, ...]]
    passed: Optional[int]
    total: int
    error: Optional[str]
    """What went wrong, for whoever is to repair it; None: nothing that is known here."""
    unavailable: bool = False
    """Nothing was run: there is no sandbox."""
    is_tests_fault: bool = False
    """What went wrong, no program could do better: the tests cannot be passed."""
    is_judges_fault: bool = False
    """What went wrong is not known to be the program's fault: it could not be judged."""


class RunNote(NamedTuple):
    """One run, as it is counted."""

    isolation: str
    result: str
    seconds: float
    began_s: float
    """Monotonic."""
    language: str
    harness: str
    """What looked at it; "": it was run by itself."""


class Runs:
    """The runs of one request. Jobs are handed to the sandbox, which reads what they report where they end."""

    def __init__(self, sandbox: Sandbox, mailbox: Mailbox, question: Question) -> None:
        self._sandbox = sandbox
        self._mailbox = mailbox
        self._question = question
        self._judged: dict[tuple[Program, Inputs], Judged] = {}
        self._made: dict[tuple[object, ...], Inputs] = {}
        self.notes: list[RunNote] = []

    # --- what is run -----------------------------------------------------------------------------------------------

    def inputs(self, programs: Sequence[Program], answers: Sequence[str], until_s: float) -> Steps[Inputs]:
        """What the candidates are to be run on, made from the prompt and from what they wrote."""
        question = self._question
        if question.tests or question.pairs:
            return Inputs(question.entry_point)
        key = (*programs, *answers)
        if key in self._made:
            return self._made[key]
        payload = {
            "prompt": question.prompt,
            "entry_point": question.entry_point,
            "candidates": [program.code for program in programs],
            "answers": list(answers),
            "inputs": list(question.inputs),
            "seed": SEED,
            "language": programs[0].language,
        }
        limits = Limits(wall_s=INPUTS_S + SPARE_S, cpu_s=INPUTS_S, memory_bytes=self._question.limits.memory_bytes)
        job = Job("python", "", "generate", json.dumps(payload).encode(), limits)
        _, report = (yield from self._run([(key, job, _report_of)], until_s)).get(key) or (None, None)
        made = Inputs(question.entry_point) if report is None else _inputs_of(report)
        self._made[key] = made
        return made

    def judge(self, programs: Sequence[Program], inputs: Inputs, until_s: float) -> Steps[list[Judged]]:
        """What each program does with the inputs, or by the tests; all side by side. Those that could not be judged are
        tried once more, when the others have ended."""
        missing = [program for program in dict.fromkeys(programs) if (program, inputs) not in self._judged]
        for _ in range(JUDGE_TRIES):
            jobs = [((program, inputs), self._judge_job(program, inputs), _report_of) for program in missing]
            done = yield from self._run(jobs, until_s)
            for program in missing:
                run, report = done.get((program, inputs)) or (None, None)
                self._judged[program, inputs] = judged_of(run, report)
            missing = [program for program in missing if self._judged[program, inputs].is_judges_fault]
        return [self._judged[program, inputs] for program in programs]

    def show(self, programs: Sequence[Program], inputs: Optional[Inputs], until_s: float) -> Steps[dict[Program, Run]]:
        """Each program run by itself, for what it prints."""
        limits = self._limits(self._question.limits.timeout_s)
        read = [pair["input"] for pair in self._question.pairs]
        if not read and inputs is not None and inputs.entry_point is None:
            read = list(inputs.arguments)
        stdin = utf8("".join(read[:1]))  # or it would find the end of it
        jobs = [(p, Job(p.language, p.code, "", stdin, limits), _nothing_of) for p in dict.fromkeys(programs)]
        done = yield from self._run(jobs, until_s)
        return {program: run for program, (run, _) in done.items()}

    def _judge_job(self, program: Program, inputs: Inputs) -> Job:
        question = self._question
        if question.tests or question.pairs:
            mode = "tests"
        else:
            mode = "outputs" if inputs.entry_point is not None and inputs.arguments else "program"
        compares = mode != "tests" and bool(inputs.arguments)
        total_s = question.limits.timeout_s
        waits_s = 0.0
        if compares:
            starts = len(inputs.arguments) if mode == "program" else 0
            total_s = min(JUDGED_S + START_S * starts, total_s)
            waits_s = WAIT_S * starts
        payload = {
            "mode": mode,
            "language": program.language,
            "entry_point": inputs.entry_point,
            "inputs": list(inputs.arguments),
            "wraps": list(inputs.wraps),
            "per_call_s": CALL_S,
            "total_s": total_s,
            "waits_s": waits_s,
            "tests": list(question.tests),
            "pairs": list(question.pairs),
        }
        # The judge ends a program after twice the time by the clock, and its waits, and needs some to tell of it.
        limits = self._limits(total_s)
        limits = limits._replace(wall_s=2 * total_s + waits_s + SPARE_S, cpu_s=limits.cpu_s + 1)
        return Job(program.language, program.code, "judge", json.dumps(payload).encode(), limits)

    def _limits(self, wall_s: float) -> Limits:
        asked = self._question.limits
        return Limits(
            wall_s=wall_s, cpu_s=max(1.0, math.ceil(wall_s * asked.cpu_share)), memory_bytes=asked.memory_bytes
        )

    # --- waiting ---------------------------------------------------------------------------------------------------

    def _run(
        self, jobs: Sequence[tuple[Any, Job, Callable[[Run], Any]]], until_s: float
    ) -> Steps[dict[Any, tuple[Run, Any]]]:
        """The run of each job, and what is read of it; those that have not ended by then are killed, and missing."""
        tickets: list[Ticket] = []
        done: dict[Any, tuple[Run, Any]] = {}

        def note(key: Any, job: Job, run: Run, began_s: float, report: Any) -> None:
            done[key] = run, report
            language = job.language
            self.notes.append(RunNote(run.isolation, _result(run), run.seconds, began_s, language, job.harness))

        def ended(key: Any, job: Job, read: Callable[[Run], Any], run: Run) -> None:  # on a thread of the sandbox
            began_s = time.monotonic() - run.seconds
            self._mailbox.put(functools.partial(note, key, job, run, began_s, read(run)))

        try:
            for key, job, read in jobs:
                tickets.append(self._sandbox.submit(job, functools.partial(ended, key, job, read)))
            while len(done) < len(tickets) and time.monotonic() < until_s:
                yield from self._mailbox.wait(until_s)
        finally:
            for ticket in tickets:
                ticket.cancel()
        return done


def _result(run: Run) -> str:
    if run.reason == "setup":
        return run.error if run.error in (UNAVAILABLE, CANCELLED) else "setup"
    return "ok" if run.reason == "exit" and run.exit_code == 0 else run.reason


def _nothing_of(run: Run) -> None:
    return None


def _report_of(run: Run) -> Optional[dict[str, Any]]:
    """The report of a harness; None: it has given none."""
    try:
        report = json.loads(run.report) if run.report else None
    except (ValueError, RecursionError):
        return None
    return report if isinstance(report, dict) else None


def _inputs_of(report: dict[str, Any]) -> Inputs:
    """What a harness has made. (It is ours, but what it has read is not: nothing of it is taken on trust.)"""
    name = report.get("entry_point")
    rows = report.get("inputs") or ()
    return Inputs(
        name if isinstance(name, str) else None,  # there is nothing to call
        tuple(str(row["args"]) for row in rows),
        tuple(int(row["tier"]) for row in rows),
        tuple(None if row.get("expected") is None else str(row["expected"]) for row in rows),
        tuple(_frozen(row.get("wrap")) for row in rows),
    )


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def judged_of(run: Optional[Run], report: Optional[dict[str, Any]]) -> Judged:
    """What a run of the judge has shown. None: it has not ended in time, or has told nothing."""
    if run is None:
        return Judged(None, None, 0, "it did not end in time")
    if run.reason == "setup":
        return Judged(None, None, 0, run.error or UNAVAILABLE, unavailable=True)
    if report is None:
        return Judged(None, None, 0, _ended(run))
    error = report.get("error")
    text = None
    is_judges_fault = isinstance(error, dict) and error.get("kind") == JUDGE
    if isinstance(error, dict):
        text = f"{error.get('kind')} error: {error.get('text')}"[:SHOWN_CHARS]
    keys = report.get("keys")
    total = report.get("total")
    passed = report.get("passed")
    failures = report.get("failures")
    is_tests_fault = False
    if text is None and isinstance(failures, list) and failures:
        told = [failure for failure in failures if isinstance(failure, dict)]
        real = [failure for failure in told if not failure.get("faulty")]
        is_tests_fault = not real
        said = (real or told or [{}])[0].get("text")
        failed = total - passed if type(total) is int and type(passed) is int else len(failures)
        text = f"{failed} of {total} tests failed; the first: {said}"[:SHOWN_CHARS]
    return Judged(
        tuple(map(str, keys)) if isinstance(keys, list) and keys else None,
        passed if type(passed) is int else None,
        total if type(total) is int else 0,
        text,
        is_tests_fault=is_tests_fault,
        is_judges_fault=is_judges_fault,
    )


def _ended(run: Run) -> str:
    why = {
        "wall": "it did not end in time",
        "cpu": "it used too much CPU time",
        "memory": "it used too much memory",
        "output": "it printed too much",
    }
    said = run.stderr[-SHOWN_CHARS:].decode("utf-8", "replace")
    return why.get(run.reason, f"it ended with status {run.exit_code} {said}".rstrip())
