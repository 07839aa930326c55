"""Judges a program from outside: runs it in processes of its own, and tells what it gave or which tests it passed.

Trusted code, for inside the sandbox: `harness_main`, in one text with the files that it needs, which stand before it
there. What a program can influence is what its own calls give, and no more: it never runs in the process that knows
what is expected and says "passed". Each wait has an end, and everything that was started is dead when the judge
returns. Whatever goes wrong on the way is an error or a failure, never a success.

Time: a call of mode "outputs" has `per_call_s` of the processor, all together have `total_s`; of the clock the double
and a quarter of a second. A process that had to be ended is started anew RESTARTS_MAX times. What the sandbox allows
the job must be more: at least a second more of the processor, and twice `total_s` and a second of the clock.
"""

from __future__ import annotations

import ast
import json
import time
from typing import Any, Callable, Optional

from gateway.verify.harness.candidate import described  # in the sandbox this file stands before
from gateway.verify.harness.keys import JUDGE, error_key, is_error, key_of  # in the sandbox this file stands before
from gateway.verify.harness.processes import Ended, Late, Nursery, Process  # in the sandbox this file stands before
from gateway.verify.harness.remote import Link  # in the sandbox this file stands before
from gateway.verify.harness.running import (  # in the sandbox this file stands before
    TEXT_CHARS,
    NoProgram,
    Report,
    empty_report,
)
from gateway.verify.harness.scripts import Scripts  # in the sandbox this file stands before
from gateway.verify.harness.stdio import normalised  # in the sandbox this file stands before
from gateway.verify.harness.testing import ClientTest  # in the sandbox this file stands before
from gateway.verify.harness.wire import Garbled, KeyUnpacker, Packer  # in the sandbox this file stands before

RESTARTS_MAX = 2
LATE_MAX = 4  # calls in a row that took too long: so do the rest, without trying
CALL_WALL_FACTOR, CALL_WALL_SLACK_S = 4.0, 0.5  # of the clock, for one call: it may have to wait its turn
FAILURES_TOLD = 20
WRAPS: dict[str, Callable[..., Any]] = {  # what an example may do with a result; on plain values, as all of them are
    kind.__name__: kind for kind in (round, sorted, list, tuple, set, len, str, int, float, bool, abs, sum)
}
TAKING_ITEMS = ("list", "set", "sorted", "sum", "tuple")  # of what an iterator gives, too


def harness_main(code: str, payload: bytes, report: Callable[[bytes], None]) -> None:
    """Judge `code` as `payload` (JSON, see `judge`) says, and report, once, as JSON."""
    try:
        nursery = Nursery(code, payload)
    except OSError as error:
        found = empty_report(JUDGE, f"no process could be started: {error}")
    else:
        try:
            found = judge_with(nursery, code, payload)
        finally:
            nursery.close()
    report(json.dumps(found).encode("ascii"))


def judge(code: str, payload: dict[str, Any]) -> Report:
    """Judge the program `code`; for outside the sandbox. Main thread only.

    `payload`: "mode": "outputs" (call `entry_point` with each of `inputs`), "tests" (Python sources, and what
    it prints for each of `pairs`' "input"), "program" (run it with each of `inputs` to read, else once with nothing);
    "language": "python", "javascript", "bash"; "entry_point": None is the only function of the program; "inputs":
    literals of lists of arguments, of mode "program" texts; "wraps": for each input None or ["round", [digits]];
    "per_call_s", "total_s"; "waits_s": of the clock, beside that which `total_s` gives.

    Returns "error" (None, or "kind" and "text": nothing could be judged; of kind JUDGE, for no fault of the program's
    that is known), "keys" (one per input, or per run; of mode "program" of what it printed), "passed", "total",
    "failures" ("index", "text", "faulty": whether no program could pass that test; the first FAILURES_TOLD),
    "functions".
    """
    nursery = Nursery(code)
    try:
        return judge_with(nursery, code, json.dumps(payload).encode())
    finally:
        nursery.close()


def judge_with(nursery: Nursery, code: str, payload: bytes) -> Report:
    try:
        task = json.loads(payload)
        judging = Judging(nursery, code, task)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        return empty_report(JUDGE, f"not a task: {described(error)}")
    try:
        if task["mode"] == "outputs":
            judging.outputs()
        elif task["mode"] == "tests":
            judging.tests()
        elif task["mode"] == "program":
            judging.program()
        else:
            judging.fail(JUDGE, f"no mode {task['mode']!r}")
    except NoProgram as failure:
        judging.fail(*failure.args)
    except BaseException as error:  # this is never a success
        judging.fail(JUDGE, f"the judge itself failed: {described(error)}")
    return judging.report


class Judging(Scripts):
    """One program and one task: its report."""

    def __init__(self, nursery: Nursery, code: str, task: dict[str, Any]) -> None:
        super().__init__(nursery, code, task)
        self._inputs: list[str] = list(task.get("inputs") or [])
        self._wraps: list[Any] = list(task.get("wraps") or [])
        self._tests: list[str] = list(task.get("tests") or [])
        self._pairs: list[dict[str, str]] = list(task.get("pairs") or [])
        self._per_call_s = float(task.get("per_call_s", 0.1))
        self._printed: dict[int, str] = {}  # by input, of calls that give nothing

    def fail(self, kind: str, text: str) -> None:
        """Put the error that ends all; inputs without a key get one that says the same."""
        self.report["error"] = {"kind": kind, "text": text[:TEXT_CHARS]}
        self.report["keys"] += [error_key(kind)] * (len(self._inputs) - len(self.report["keys"]))

    # --- mode "outputs"

    def outputs(self) -> None:
        try:
            self._call_all()
        finally:
            keys, nothing = self.report["keys"], key_of(None)
            if all(key == nothing or is_error(key) for key in keys):  # then it is there for what it prints
                for index, text in self._printed.items():
                    keys[index] = key_of(("<printed>", normalised(text)))

    def _call_all(self) -> None:
        keys, total = self.report["keys"], len(self._inputs)
        inputs = self._inputs if self._language == "python" else [packed_literal(text) for text in self._inputs]
        while True:
            process = self._loaded()
            entry = self._entry()
            if len(keys) >= total:
                break
            process.send(["outputs", entry, self._per_call_s, inputs[len(keys) :], len(keys)])
            why = self._collect(process, keys, total)
            self._end()
            if not why:
                break
            keys.append(error_key(why))
            if self._started > RESTARTS_MAX or self._over():
                keys += [error_key(why)] * (total - len(keys))
                break

    def _collect(self, process: Process, keys: list[str], total: int) -> str:
        """Take keys as they come; why it ended before all had come, or ""."""
        late = 0
        hard_s = self._per_call_s * 1.5 + 0.05  # after the alarm in the program's process
        wall_s = self._per_call_s * CALL_WALL_FACTOR + CALL_WALL_SLACK_S
        while len(keys) < total:
            try:
                until_s = min(time.monotonic() + wall_s, self._until_s)
                said = process.receive(min(hard_s, self._left_s()), until_s)
                index, what, *data = said[1:]
                if said[0] != "output" or index != len(keys):
                    raise Garbled
                key = self._key(index, what, data)
            except Late:
                return "timeout"
            except (Ended, Garbled, ValueError, TypeError, IndexError):
                return "crash"
            keys.append(key)
            if self._over():
                return "timeout" if len(keys) < total else ""
            late = late + 1 if what == "late" else 0
            if late >= LATE_MAX:
                keys += [error_key("timeout")] * (total - len(keys))
        return ""

    def _key(self, index: int, what: str, data: list[Any]) -> str:
        if what == "late":
            return error_key("timeout")
        if what == "raised":
            return error_key(str(data[0]))
        if what == "printed":
            self._printed[index] = str(data[0])
            data = [None]
        value = KeyUnpacker().read(data[0])
        if what == "changed":  # it gave nothing, and changed what it was given
            return key_of(("<changed>", value))
        wrap = self._wraps[index] if index < len(self._wraps) else None
        if wrap:
            if wrap[0] in TAKING_ITEMS and type(value) is tuple and value[:1] == ("<iterator>",):
                value = value[1]
            try:
                value = WRAPS[wrap[0]](value, *wrap[1])
            except Exception as error:
                return error_key(type(error).__name__)
        return key_of(value)

    # --- mode "tests"

    def tests(self) -> None:
        self.report["total"] = len(self._tests) + len(self._pairs)
        if self._tests:
            self._call_tests()
            self._end()
        if self._pairs and self._language != "python":
            self._check()
        for index, pair in enumerate(self._pairs, len(self._tests)):
            self._count(index, "no time was left for it" if self._over() else self.compare(pair))

    def _call_tests(self) -> None:
        self._loaded()
        if self._entry_point is not None:
            self._entry()
        for index, source in enumerate(self._tests):
            text: Optional[str]
            faulty = False
            if self._over():
                text = "no time was left for it"
            elif self._process is None and self._started > RESTARTS_MAX:
                text = "the program had been ended too often"
            else:
                text, faulty = self._test(index, source)
            self._count(index, text, faulty)

    def _count(self, index: int, text: Optional[str], faulty: bool = False) -> None:
        if text is None:
            self.report["passed"] += 1
        elif len(self.report["failures"]) < FAILURES_TOLD:
            self.report["failures"].append({"index": index, "text": text[:TEXT_CHARS], "faulty": faulty})

    def _test(self, index: int, source: str) -> tuple[Optional[str], bool]:
        """Run one test; None when it has passed, else why not, and whether that is its own fault."""
        process = self._loaded()

        def talk(message: list[Any]) -> list[Any]:
            process.send(message)
            return process.receive(self._left_s(), self._until_s)

        link = Link(talk, self._entry_point)
        entry = self._entry_point
        if entry is None and len(self.report["functions"]) == 1:
            entry = self.report["functions"][0]
        test = ClientTest(source, f"test {index}", link, entry)
        text = test.failure(self._until_s)
        if link.broken or test.cut:
            self._end()
        return text or link.broken or None, test.faulty

    # --- mode "program"

    def program(self) -> None:
        self.run_all(self._inputs, self.report["keys"])


def packed_literal(text: str) -> Any:
    """An input for the wire; None, which is no list of arguments, when it is not a literal."""
    try:
        return Packer().pack(ast.literal_eval(text))
    except Exception:
        return None
