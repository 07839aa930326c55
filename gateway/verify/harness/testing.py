"""A client's test, run in the judge: trusted code, which sees of the program only what `remote.py` lets it see.

A test is Python: statements with asserts, functions `check(candidate)` or `test…()`, classes `Test…` with methods
`test…(self)`, or a `unittest.TestCase`.
"""

from __future__ import annotations

import ast
import builtins
import importlib.util
import os
import signal
import time
import types
from typing import Any, Optional

from gateway.verify.harness.candidate import described  # in the sandbox this file stands before
from gateway.verify.harness.collecting import Faulty, run_collected, unreached  # in the sandbox likewise
from gateway.verify.harness.remote import Link, Remote, Unusable  # in the sandbox likewise

CUT_AGAIN_S = 0.05
_FAILING = ("assert", "fail", "exit", "quit", "_exit", "abort")  # how the names begin of what makes a test fail


class Cut(BaseException):
    """Raised in a test whose time is over."""


class ClientTest:
    """One test of the client's, run here, with the program's names in its reach."""

    def __init__(self, source: str, name: str, link: Link, entry: Optional[str]) -> None:
        self.cut = False  # whether it had to be interrupted
        self.faulty = False  # whether no program could pass it
        self._source, self._name, self._link, self._entry = source, name, link, entry

    def failure(self, until_s: float) -> Optional[str]:
        """Run it: None when it has passed, else what is wrong. A test that calls nothing of the program, or asserts
        nothing, or of which a part cannot be called, fails. What it does in the judge's own process is interrupted at
        `until_s` of the clock, again and again. Main thread only."""
        before = signal.signal(signal.SIGALRM, self._ring)
        signal.setitimer(signal.ITIMER_REAL, max(0.001, until_s + 0.1 - time.monotonic()), CUT_AGAIN_S)
        try:
            return self._failure()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def _ring(self, _: int, frame: Optional[types.FrameType]) -> None:
        """Cut, but only what runs for the test: what tells of one cut is met by no second one. What those call who have
        an exception tell of itself is the test's, too, and they take a cut."""
        innermost = frame
        while frame is not None:
            code = frame.f_code
            if code is ClientTest._run.__code__ or code.co_filename == self._name:
                raise Cut
            if code in (_text_of.__code__, described.__code__) and frame is not innermost:
                raise Cut
            frame = frame.f_back

    def _failure(self) -> Optional[str]:
        exit_before = os._exit
        try:
            tree = ast.parse(self._source, self._name)
            code = compile(tree, self._name, "exec", dont_inherit=True)
            not_run = unreached(tree)
            if not_run is not None:
                raise Faulty(not_run)
            names = self._link.names()
            if without_own_imports(tree, names):
                code = compile(tree, self._name, "exec", dont_inherit=True)
            constants = {name for name, value in names.items() if is_data(value)}
            os._exit = _no_exit  # type: ignore[assignment]
            self._run(code, names)
        except (SyntaxError, ValueError, RecursionError) as error:
            if isinstance(error, SyntaxError) and error.filename == self._name:
                self.faulty = True
                return f"the test is not Python: {described(error)}"
            return self._told(error)
        except Faulty as error:
            self.faulty = True
            return str(error)
        except (Cut, Unusable) as error:
            self.cut = True
            return self._told(error)
        except ImportError as error:
            self.faulty = self._is_own(error)
            return self._told(error)
        except BaseException as error:
            return self._told(error)
        finally:
            os._exit = exit_before
        if self._link.failed_within is not None:
            return self._told(self._link.failed_within)
        if not self._link.calls and not constants & used_names(code):
            self.faulty = True
            return "the test calls nothing of the program"
        if not self._link.broken and not asserts(tree):  # any program that can be called would pass it
            self.faulty = True
            return "the test asserts nothing"
        return None

    def _run(self, code: types.CodeType, names: dict[str, Any]) -> None:
        entry = names.get(self._entry) if self._entry else None
        if entry is not None:
            names.setdefault("candidate", entry)
        names.update(__name__=self._name, __builtins__=builtins)
        exec(code, names)
        run_collected(names, self._name, entry)

    def _is_own(self, error: BaseException) -> bool:
        """Whether it was raised by a line of the test, and not by the program."""
        step = error.__traceback__
        while step is not None and step.tb_next is not None:
            step = step.tb_next
        return step is not None and step.tb_frame.f_code.co_filename == self._name

    def _told(self, error: BaseException) -> str:
        if isinstance(error, SystemExit):
            what = "the test ended its process"
        elif isinstance(error, Cut):
            what = "the test took too long"
        elif isinstance(error, Unusable):
            what = str(error)
        elif isinstance(error, AssertionError):
            what = _text_of(error) or "it does not hold"
        else:
            what = described(error)
        line, step = 0, error.__traceback__
        while step is not None:
            line = step.tb_lineno if step.tb_frame.f_code.co_filename == self._name else line
            step = step.tb_next
        lines = self._source.splitlines()
        where = f"line {line}: {lines[line - 1].strip()}: " if 0 < line <= len(lines) else ""
        return f"{where[:300]}{what}" + (f"; {self._link.last}" if self._link.last else "")


def _text_of(error: BaseException) -> str:
    """What it says of itself, if the test's own class of exceptions can say it."""
    try:
        return str(error)
    except BaseException:
        return "what it says cannot be told"


def _no_exit(_: int) -> None:
    raise SystemExit


def without_own_imports(tree: ast.Module, names: dict[str, Any]) -> bool:
    """Take out of a test the imports that stand for "from the program's file": the program's `names` are there already.
    Whether there were any.

    They are those from a single module that nobody has, if the test has all that it uses of the program from there.
    Else it may mean helpers of somebody else, for which the program must put in none of its own: it would judge itself.
    """
    nodes = list(ast.walk(tree))
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom) and is_nowhere(node)]
    taken = {alias.name for node in imports for alias in node.names}
    seen = [node for node in nodes if isinstance(node, ast.Name)]
    used = {node.id for node in seen} - {node.id for node in seen if not isinstance(node.ctx, ast.Load)}
    used.update(node.arg for node in nodes if isinstance(node, ast.arg) and node.arg == "candidate")
    given = {name for name, value in names.items() if type(value) is not types.ModuleType}
    if len({(node.level, node.module) for node in imports}) != 1:
        return False
    if taken != {"*"} and not (taken <= given and used & (given | {"candidate"}) <= taken):
        return False
    _Renaming(imports).visit(tree)
    return True


def is_nowhere(node: ast.ImportFrom) -> bool:
    """Whether the module that is imported from cannot be found; the import of one that can is the test's own affair."""
    try:
        return bool(node.level) or importlib.util.find_spec(str(node.module).partition(".")[0]) is None
    except (ImportError, ValueError):
        return False


class _Renaming(ast.NodeTransformer):
    """Puts in place of imports what gives what is there the names that it is imported as."""

    def __init__(self, imports: list[ast.ImportFrom]) -> None:
        self._imports = imports

    def visit_ImportFrom(self, node: ast.ImportFrom) -> Any:
        if node not in self._imports:
            return node
        renamed = [(alias.asname, alias.name) for alias in node.names if alias.asname not in (None, alias.name)]
        lines = "\n".join(f"{new} = {old}" for new, old in renamed) or "pass"
        made = ast.parse(lines).body
        for inner in [one for statement in made for one in ast.walk(statement)]:
            ast.copy_location(inner, node)
        return made


def asserts(tree: ast.AST) -> bool:
    """Whether anything in a test can fail but by an exception of the program's. `assert (a == b, "text")` cannot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise):
            return True
        if isinstance(node, ast.Assert) and not (isinstance(node.test, ast.Tuple) and node.test.elts):
            return True
        name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
        if name.startswith(_FAILING):
            return True
    return False


def is_data(value: Any) -> bool:
    return type(value) is not Remote and type(value) is not types.ModuleType and not callable(value)


def used_names(code: types.CodeType) -> set[str]:
    inner = [used_names(one) for one in code.co_consts if isinstance(one, types.CodeType)]
    return set(code.co_names).union(*inner)
