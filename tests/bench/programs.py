"""Runs many small programs that are trusted (edits of known ones): one process for a batch, one fork a program.

Not a sandbox: limits on CPU time and memory only, so that an endless loop ends. `run` is the caller's side; as
`python -m tests.bench.programs` this file is the batch's process.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Optional

from gateway.verify.harness.keys import error_key, key_of
from gateway.verify.harness.literals import value_of_node

PER_CALL_S = 0.1
TESTS_S = 0.8
_TIMEOUTS_MAX = 3
_HERE = Path(__file__).resolve().parents[2]


class _TooLong(BaseException):
    pass


def outputs(
    programs: list[str], entry_point: str, inputs: list[str], wraps: list[Optional[list[Any]]]
) -> list[list[str]]:
    """Returns, for each program, the key of its result on each input."""
    return _run({"programs": programs, "entry_point": entry_point, "inputs": inputs, "wraps": wraps})


def verdicts(programs: list[str], entry_point: str, test: str) -> list[bool]:
    """Returns which programs pass a task's own tests."""
    return _run({"programs": programs, "entry_point": entry_point, "test": test})


def _run(batch: dict[str, Any]) -> Any:
    environment = {"PYTHONHASHSEED": "0", "PATH": os.environ.get("PATH", "")}
    ran = subprocess.run(
        [sys.executable, "-m", "tests.bench.programs"],
        input=json.dumps(batch),
        capture_output=True,
        text=True,
        env=environment,
        cwd=_HERE,
        check=False,
    )
    if ran.returncode:
        raise RuntimeError(ran.stderr[-500:])
    return json.loads(ran.stdout)


def _batch() -> None:
    batch = json.load(sys.stdin)
    values = [value_of_node(ast.parse(text, mode="eval").body) for text in batch.get("inputs", [])]
    batch["values"] = values
    results: list[object] = []
    for source in batch["programs"]:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            with contextlib.suppress(BaseException):
                _program(source, batch, writing)
            os._exit(0)
        os.close(writing)
        with open(reading, "rb") as pipe:
            lines = pipe.read().decode("utf-8", "replace").splitlines()
        os.waitpid(child, 0)
        results.append(lines == ["passed"] if "test" in batch else _filled(lines, len(values)))
    json.dump(results, sys.stdout)


def _filled(lines: list[str], count: int) -> list[str]:
    keys = [str(json.loads(line)) for line in lines]
    return keys + [error_key("unfinished")] * (count - len(keys))


def _program(source: str, batch: dict[str, Any], writing: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (4, 5))
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    sys.setrecursionlimit(600)
    signal.signal(signal.SIGVTALRM, _stop)
    namespace: dict[str, Any] = {"__name__": "program"}
    signal.setitimer(signal.ITIMER_VIRTUAL, TESTS_S, 0.05)
    exec(compile(source, "program", "exec", dont_inherit=True), namespace)
    if "test" in batch:
        exec(compile(batch["test"], "test", "exec"), namespace)
        namespace["check"](namespace[batch["entry_point"]])
        os.write(writing, b"passed\n")
        return
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    late = 0
    for args, wrap in zip(batch["values"], batch["wraps"]):
        key = _key(namespace[batch["entry_point"]], args, wrap)
        os.write(writing, (json.dumps(key) + "\n").encode())
        late += key == error_key("_TooLong")
        if late == _TIMEOUTS_MAX:
            return


def _key(function: Any, args: list[object], wrap: Optional[list[Any]]) -> str:
    try:
        mine = copy.deepcopy(args)
        signal.setitimer(signal.ITIMER_VIRTUAL, PER_CALL_S, 0.05)
        try:
            value = function(*mine)
            if wrap:
                value = getattr(__import__("builtins"), wrap[0])(value, *wrap[1])
            return key_of(value)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    except BaseException as exc:
        return error_key(type(exc).__name__)


def _stop(_signal: int, _frame: object) -> None:
    raise _TooLong


if __name__ == "__main__":
    _batch()
