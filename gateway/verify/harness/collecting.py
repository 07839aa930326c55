"""What a client's test has in it to be called: its functions, its classes. Each of them is called, or it is a fault.

Trusted code, in the judge. What would be left out in silence could hide that a program is wrong behind a part of the
test that it passes; so nothing is.
"""

from __future__ import annotations

import ast
import sys
import types
from typing import Any, Callable, Optional

from gateway.verify.harness.remote import Remote  # in the sandbox this file stands before

CO_VARARGS = 0x04  # inspect's, which takes long to load


class Faulty(Exception):
    """No program can pass this test: a part of it cannot be run here."""


def run_collected(names: dict[str, Any], module: str, entry: Any) -> None:
    """Call what a test, run as `module`, has put among `names`. `entry`: the function in question, None: unknown.
    Raises Faulty before anything is called, and what the test raises."""
    calls: list[Callable[[], Any]] = []
    unittest: Any = sys.modules.get("unittest")
    for name, value in names.items():
        if isinstance(value, type):
            if value.__module__ != module:
                continue
            if unittest and issubclass(value, unittest.TestCase):
                if unittest.defaultTestLoader.getTestCaseNames(value):  # else others are derived from it
                    calls.append(lambda case=value: run_case(unittest, case))  # type: ignore[misc]
            elif name.startswith("Test"):
                calls += calls_of_class(value)
        elif name.startswith("test") and is_callable(value):
            calls.append(call_of(value, name))
        elif name == "check" and type(value) is types.FunctionType and value.__code__.co_filename == module:
            if entry is None and lacking(value) == ["candidate"]:
                raise Faulty("check asks for the function in question, and no entry_point says which that is")
            if entry is not None and takes_one(value):
                calls.append(lambda check=value: check(entry))  # type: ignore[misc]
    for call in calls:
        finish(call())


def is_callable(value: Any) -> bool:
    return callable(value) and type(value) is not Remote


def lacking(function: types.FunctionType, given: int = 0) -> list[str]:
    """The parameters that a call with so many arguments leaves without a value."""
    code = function.__code__
    needed = code.co_varnames[: code.co_argcount - len(function.__defaults__ or ())]
    only_named = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    return [*needed[given:], *(name for name in only_named if name not in (function.__kwdefaults__ or {}))]


def takes_one(function: types.FunctionType) -> bool:
    """Whether it can be called with one argument, that is given by its place."""
    code = function.__code__
    return not lacking(function, 1) and bool(code.co_argcount or code.co_flags & CO_VARARGS)


def call_of(value: Any, name: str) -> Callable[[], Any]:
    """The call of one test. What is no plain function (a decorator has made it) says by itself what it lacks."""
    bound = type(value) is types.MethodType
    function = value.__func__ if bound else value
    lacks = lacking(function, int(bound)) if type(function) is types.FunctionType else []
    if lacks:
        raise Faulty(f"{name} asks for {', '.join(lacks)}, which nobody gives")
    called: Callable[[], Any] = value
    return called


def calls_of_class(kind: type) -> list[Callable[[], Any]]:
    """The tests of a class as pytest runs them: each with an object of its own. Classes within it likewise."""
    calls: list[Callable[[], Any]] = []
    own = [name for name in dir(kind) if name.startswith("test") and is_callable(getattr(kind, name))]
    for name in own:
        value = getattr(kind, name)
        function = value if type(value) is types.FunctionType else None
        static = isinstance(find(kind, name), staticmethod)
        if function is not None:
            call_of(function if static else types.MethodType(function, kind), f"{kind.__name__}.{name}")
        calls.append(lambda name=name: run_method(kind, name))  # type: ignore[misc]
    if own:
        calls = [lambda: call_if_there(kind, "setup_class"), *calls, lambda: call_if_there(kind, "teardown_class")]
    for name in dir(kind):
        inner = getattr(kind, name)
        if isinstance(inner, type) and name.startswith("Test") and inner.__module__ == kind.__module__:
            calls += calls_of_class(inner)
    return calls


def find(kind: type, name: str) -> Any:
    """An attribute as the class, or one that it is derived from, holds it."""
    return next(vars(one)[name] for one in kind.__mro__ if name in vars(one))


def run_method(kind: type, name: str) -> None:
    made = kind()
    method = getattr(made, name)
    call_if_there(made, "setup_method", method)
    try:
        finish(method())
    finally:
        call_if_there(made, "teardown_method", method)


def call_if_there(holder: Any, name: str, *given: Any) -> None:
    """Call a method of the test's, with as much of what is given as it takes."""
    method = getattr(holder, name, None)
    if type(method) is types.MethodType:
        method(*given[: max(0, method.__func__.__code__.co_argcount - 1)])


def run_case(unittest: Any, case: type) -> None:
    """Run a TestCase; raises AssertionError with the text of what failed first, Faulty if not all of it is to pass."""
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    for _, text in [*result.failures, *result.errors]:
        raise AssertionError(text.strip().splitlines()[-1])
    if result.skipped or result.expectedFailures or result.unexpectedSuccesses:
        tests = [*(test for test, _ in [*result.skipped, *result.expectedFailures]), *result.unexpectedSuccesses]
        raise Faulty(f"{tests[0]} is skipped, or is not to pass")


def finish(value: Any) -> None:
    """See what a call has given to its end."""
    if type(value) is types.CoroutineType:
        import asyncio  # a test with an async function has loaded it

        asyncio.run(value)
    elif type(value) in (types.GeneratorType, types.AsyncGeneratorType):
        raise Faulty(f"{value.__name__} yields, and would not be run")


def unreached(tree: ast.Module) -> Optional[str]:
    """What of a test is never run: for another way of running it, if that asserts anything, or since another one has
    taken its name."""
    for holder in ast.walk(tree):
        if isinstance(holder, (ast.Module, ast.ClassDef)):
            seen = set()
            for one in holder.body:
                if isinstance(one, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                    if one.name in seen and one.name.lower().startswith("test"):
                        return f"{one.name} is there twice, and one of them is not run"
                    seen.add(one.name)
    for node in tree.body:
        if not isinstance(node, ast.If):
            continue
        asks = any(isinstance(one, ast.Name) and one.id == "__name__" for one in ast.walk(node.test))
        if asks and any(isinstance(one, ast.Assert) for part in node.body for one in ast.walk(part)):
            return f"what stands below `{ast.unparse(node)[:60].splitlines()[0]}` is not run"
    return None
