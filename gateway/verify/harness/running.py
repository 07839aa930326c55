"""The processes of one program, one after the other, with the time that all have, and what is reported of them.

Trusted code, in the judge. Every wait ends; what goes wrong is `NoProgram`, with what is to be told of it.
"""

from __future__ import annotations

import time
from typing import Any, Optional

from gateway.verify.harness.keys import JUDGE  # in the sandbox this file stands before
from gateway.verify.harness.processes import (  # in the sandbox this file stands before
    WALL_FACTOR,
    WALL_SLACK_S,
    Ended,
    Late,
    Nursery,
    Process,
)
from gateway.verify.harness.stdio import syntax_text  # in the sandbox this file stands before
from gateway.verify.harness.wire import Garbled  # in the sandbox this file stands before

LOAD_S = 1.0
TEXT_CHARS = 1000

Report = dict[str, Any]


def empty_report(kind: str, text: str) -> Report:
    error = {"kind": kind, "text": text[:TEXT_CHARS]}
    return {"error": error, "keys": [], "passed": 0, "total": 0, "failures": [], "functions": []}


class NoProgram(Exception):
    """The program cannot be judged: kind and text of the report's error."""


class Running:
    """One program: its processes, its time, its report."""

    def __init__(self, nursery: Nursery, code: str, task: dict[str, Any]) -> None:
        self.report: Report = {**empty_report("", ""), "error": None}
        self._nursery, self._code = nursery, code
        self._language: str = task.get("language", "python")
        self._entry_point: Optional[str] = task.get("entry_point")
        self._total_s = float(task.get("total_s", 2.0))
        wall_s = self._total_s * WALL_FACTOR + WALL_SLACK_S + float(task.get("waits_s", 0.0))
        self._until_s = time.monotonic() + wall_s
        self._process: Optional[Process] = None
        self._started = 0
        self._has_run = False  # whether anything of the program has
        self._used_s = 0.0  # by processes that have ended
        self._own_started_s = time.process_time()  # what the judge itself needs counts too

    def _left_s(self) -> float:
        own_s = time.process_time() - self._own_started_s
        return self._total_s - own_s - self._used_s - (self._process.cpu_s() if self._process else 0.0)

    def _over(self) -> bool:
        return self._left_s() <= 0 or time.monotonic() >= self._until_s

    def _start(self, kind: str, stdin: bytes = b"") -> Process:
        """Start a process. A program of which nothing has run yet is not to blame when that fails; one that has run may
        have seen to it."""
        try:
            process = self._process = self._nursery.start(kind, stdin)
        except Ended as error:
            raise NoProgram("crash" if self._has_run else JUDGE, str(error)) from None
        self._has_run = self._has_run or not kind.endswith(" check")
        return process

    def _end(self) -> None:
        if self._process is not None:
            self._used_s += self._process.cpu_s()
            process, self._process = self._process, None
            try:
                process.end()
            except Ended as error:
                raise NoProgram("crash", str(error)) from None

    def _loaded(self) -> Process:
        """The process that answers calls, started if there is none. Raises NoProgram."""
        if self._process is not None:
            return self._process
        if self._language not in ("python", "javascript"):
            raise NoProgram("entry_point", f"a program of {self._language} is only run: it has nothing to call")
        self._started += 1
        try:
            kind = "calls" if self._language == "python" else "javascript calls"
            process = self._start(kind)
            if self._language == "javascript":
                process.send(["load", self._code, self._entry_point])
            self._told(process)
        except Late:
            self._end()
            raise NoProgram("timeout", "it takes too long to load") from None
        except Ended as error:
            raise NoProgram("crash", f"before it was loaded {error}") from None
        return process

    def _told(self, process: Process) -> list[str]:
        """Wait for what a process says of its loading; the names that can be called."""
        try:
            said = process.receive(min(LOAD_S, self._left_s()), self._until_s)
            if said[0] == "failed":
                kind, text = said[1:]
                raise NoProgram("syntax" if kind == "syntax" else "load", str(text))
            functions, callables = ([str(name) for name in names] for names in said[1:3])
        except (Garbled, ValueError, TypeError):
            raise NoProgram("crash", "it interferes with its loading") from None
        self.report["functions"] = functions
        self._callables = callables
        return callables

    def _entry(self) -> str:
        """The name of the function to call, once the program is loaded. Raises NoProgram."""
        functions = self.report["functions"]
        if self._entry_point is None:
            if len(functions) != 1:
                raise NoProgram("entry_point", f"which of its {len(functions)} functions is meant?")
            return str(functions[0])
        if self._entry_point not in self._callables:
            raise NoProgram("entry_point", f"it defines no function {self._entry_point!r}")
        return self._entry_point

    def _finished(self, kind: str, stdin: bytes, most_s: float) -> tuple[Optional[int], str, str]:
        """Run it once: its exit status (None: it took more than `most_s` of the processor), what it printed to stdout
        and stderr."""
        status: Optional[int] = None
        try:
            process = self._start(kind, stdin)
            if kind == "script":
                self._told(process)
            status = process.finish(min(most_s, self._left_s()), self._until_s)
        except Late:
            pass
        except Ended as error:
            raise NoProgram("crash", str(error)) from None
        finally:
            self._end()
        out, err = (bytes(process.printed[stream]).decode("utf-8", "replace") for stream in (1, 2))
        return status, out, err

    def _check(self) -> None:
        """Have the language say whether this is a program at all, before it is run. Raises NoProgram."""
        if self._language not in ("javascript", "bash"):
            raise NoProgram("load", f"no way to run a program of {self._language}")
        status, _, said = self._finished(f"{self._language} check", b"", self._total_s)
        if status is None:
            raise NoProgram("timeout", "it takes too long to check")
        if status == 126:  # there is nothing here that could check it
            raise NoProgram(JUDGE, said)
        if status != 0:
            raise NoProgram("syntax", syntax_text(said))
