"""A Python program in its own process: loads it and answers what the judge asks. All that foreign code can reach.

Whatever a program does to this process, its builtins and the wire included, changes only what it says that its calls
give. A call's time is limited twice: by an alarm here, which a program can ignore, and from outside, which it cannot.
The program's global state lives as long as the process; the arguments of each call are made anew.
"""

from __future__ import annotations

import math
import signal
import sys
import types
from typing import Any, Callable, Optional

from gateway.verify.harness.objects import (  # in the sandbox this file stands before
    BINARY,
    OTHERS,
    UNARY,
    HandlePacker,
    Handles,
    OutputPacker,
    flattened,
)
from gateway.verify.harness.wire import KINDS, Lines, OverLarge, Unpacker, name_of  # in the sandbox likewise

ALARM_AGAIN_S = 0.02  # for who catches everything
PRINTED_CHARS = 10_000  # of what one call prints, where it gives nothing
METHODS_OF = "Solution"  # the class that programming sites have programs written as


class TimedOut(BaseException):
    """Raised inside a call that takes too long."""


class Printed:
    """Stands before a stream and keeps the start of what is written to it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._kept: list[str] = []
        self._left = PRINTED_CHARS

    def write(self, text: str) -> Any:
        if text and self._left > 0:
            self._kept.append(text[: self._left])
            self._left -= len(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def take(self) -> str:
        """What was written since it was taken last."""
        kept, self._kept, self._left = self._kept, [], PRINTED_CHARS
        return "".join(kept)


class ArgumentUnpacker(Unpacker):
    """Makes the values of a test's call: with handles as the objects that they stand for."""

    def __init__(self, program: Program) -> None:
        self._program = program

    def other(self, tag: str, parts: list[Any]) -> Any:
        if tag == "h":
            return self._program.handles[parts[0]]
        if tag == "m":
            return getattr(__import__(parts[0]), parts[1])
        if tag == "call":
            return lambda *args, **kwargs: self._program.call_back(parts[0], args, kwargs)
        if tag == "iter":
            return iter(self.unpack(parts[0]))
        if tag == "like":  # an instance of a class of the test's: of the program's own class of that name, if any
            kind = self._program.names.get(parts[0])
            made: Any = object.__new__(kind if isinstance(kind, type) else type(parts[0], (), {}))
            made.__dict__.update(self.unpack(parts[1]))
            return made
        return super().other(tag, parts)


class Program:
    """The program, loaded, and the judge's requests answered: in the program's process."""

    def __init__(self, code: str, lines: Lines) -> None:
        self.names: dict[str, Any] = {}
        self.methods: dict[str, Callable[..., Any]] = {}  # of `METHODS_OF`, which can be called as functions can
        self.handles = Handles()
        self._code, self._lines = code, lines
        self._armed = False

    def serve(self) -> None:
        """Load the program and answer until the judge has gone or kills this process."""
        signal.signal(signal.SIGPROF, self._ring)
        failure = self._load()
        self._lines.send(failure or ["loaded", *self._functions()])
        while failure is None:
            request = self._lines.receive()
            if request[0] == "outputs":
                self._outputs(*request[1:])
            else:
                self._lines.send(self._answer(request))

    def _load(self) -> Optional[list[Any]]:
        module = types.ModuleType("program")
        sys.modules["program"] = module
        self.names = module.__dict__
        module.__dict__["__file__"] = "main.py"
        try:
            compiled = compile(self._code, "main.py", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
            return ["failed", "syntax", described(error)]
        try:
            exec(compiled, module.__dict__)
        except BaseException as error:
            if not (self._functions()[0] and is_good_end(error)):
                return ["failed", "load", described(error)]
        finally:
            flush()
        self.methods = methods_of(self.names.get(METHODS_OF), self.names)
        return None

    def _functions(self) -> tuple[list[str], list[str]]:
        """The names of functions that the program defines, and of all that can be called."""
        own = [name for name, value in self.names.items() if type(value) is types.FunctionType]
        own = [name for name in own if self.names[name].__code__.co_filename == "main.py" and name != "<lambda>"]
        return own or [*self.methods], [*(name for name, value in self.names.items() if callable(value)), *self.methods]

    # --- outputs

    def _outputs(self, entry: str, per_call_s: float, texts: list[str], first: int) -> None:
        function = self.names[entry] if entry in self.names else self.methods[entry]
        sys.stdout = printed = Printed(sys.stdout)
        for index, make in enumerate(argument_makers(texts)):
            said = self._timed(lambda make=make: self._output(function, make), per_call_s)  # type: ignore[misc]
            flush()
            text = printed.take()
            if text and said == ["value", None]:
                said = ["printed", text]
            self._lines.send(["output", first + index, *said])

    def _output(self, function: Callable[..., Any], make: Callable[[], Any]) -> list[Any]:
        arguments = make()
        if type(arguments) is not list and type(arguments) is not tuple:
            return ["raised", "input"]
        value = function(*arguments)
        if type(value) is types.CoroutineType:
            value = run_coroutine(value)
        try:
            if value is None:  # what it may have been called for
                after = OutputPacker().pack(list(arguments))
                if after != OutputPacker().pack(list(make())):
                    return ["changed", after]
            return ["value", OutputPacker().pack(value)]
        except OverLarge:
            return ["value", ["o", f"large {name_of(type(value))}"]]

    def _timed(self, work: Callable[[], list[Any]], seconds: float) -> list[Any]:
        try:
            try:
                self._armed = True
                signal.setitimer(signal.ITIMER_PROF, seconds, ALARM_AGAIN_S)
                return work()
            finally:
                self._armed = False
        except TimedOut:
            return ["late"]
        except BaseException as error:
            return ["raised", name_of(type(error))]
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    def _ring(self, *_: object) -> None:
        if self._armed:
            raise TimedOut

    # --- tests

    def _answer(self, request: list[Any]) -> list[Any]:
        try:
            if request[0] == "names":
                return ["names", self._packed_names()]
            unpacker = ArgumentUnpacker(self)
            what, arguments, named = request[1], unpacker.unpack(request[2]), unpacker.unpack(request[3])
            held = [*arguments, *named.values()]
            before = [self._changeable(value) for value in held]
            value = self._operate(what, arguments, named)
            after = [self._changeable(value) for value in held]
            changed = [[i, new] for i, (old, new) in enumerate(zip(before, after)) if old != new]
            return ["value", self._pack(value), changed]
        except OverLarge:
            return ["raised", [["builtins", "OverflowError"]], ["(", "a result with too many parts"], ""]
        except BaseException as error:
            return self._raised(error)
        finally:
            flush()

    def _operate(self, what: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if what == "call":
            return arguments[0](*arguments[1:], **named)
        if what == "base":
            plain = flattened(arguments[0])
            return None if plain is None else plain[1]
        if what == "await":
            return run_coroutine(arguments[0])
        if what in ("__enter__", "__exit__"):
            return getattr(type(arguments[0]), what)(*arguments)
        function = BINARY.get(what) or UNARY.get(what) or OTHERS[what]
        return function(*arguments)

    def _changeable(self, value: Any) -> Any:
        return self._pack(value) if type(value) in (list, dict, set, bytearray) else None

    def _pack(self, value: Any) -> Any:
        return HandlePacker(self.handles).pack(value)

    def _packed_names(self) -> Any:
        packed = []
        for name, value in [*self.names.items(), *self.methods.items()]:
            if not name.startswith("__"):
                try:
                    packed.append([name, self._pack(value)])
                except OverLarge:
                    packed.append([name, ["h", self.handles.number(value), name_of(type(value)), "base"]])
        return packed

    def _raised(self, error: BaseException) -> list[Any]:
        packer = HandlePacker(self.handles)
        try:
            arguments = packer.pack(tuple(error.args))
            said = packer.pack({name: value for name, value in vars(error).items() if not name.startswith("__")})
        except Exception:
            arguments, said = ["("], ["{"]
        return ["raised", packer.lineage(type(error)), arguments, described(error), said]

    def call_back(self, number: int, arguments: Any, named: dict[str, Any]) -> Any:
        """Call a function of the test's, in the judge; it may ask for more meanwhile."""
        self._lines.send(["call_back", number, self._pack(arguments), self._pack(named)])
        while True:
            message = self._lines.receive()
            if message[0] == "given":
                return ArgumentUnpacker(self).unpack(message[1])
            if message[0] == "failed":
                kind = getattr(__import__("builtins"), message[1], RuntimeError)
                raise kind(message[2])
            self._lines.send(self._answer(message))


def argument_makers(texts: list[str]) -> list[Callable[[], Any]]:
    """For each text a function that makes the value anew. All are compiled at once, as long as all can be."""
    known: dict[str, Any] = {"inf": math.inf, "nan": math.nan, "set": set, "frozenset": frozenset, "range": range}
    known.update({kind.__name__: kind for kind in KINDS}, __builtins__={})

    def made(some: list[str]) -> list[Callable[[], Any]]:
        joined = "[" + ",".join(f"lambda: (\n{text}\n)" for text in some) + "]"
        found: list[Callable[[], Any]] = eval(compile(joined, "inputs", "eval", dont_inherit=True), known)
        if len(found) != len(some):
            raise ValueError
        return found

    try:
        return made(texts)
    except Exception:
        pass
    makers: list[Callable[[], Any]] = []
    for text in texts:
        try:
            makers += made([text])
        except Exception:
            makers.append(lambda: None)
    return makers


def methods_of(kind: Any, names: dict[str, Any]) -> dict[str, Callable[..., Any]]:
    """The methods of a class that have no namesake among `names`, each called on an object of its own."""

    def bound(name: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: getattr(kind(), name)(*args, **kwargs)

    own = vars(type)["__dict__"].__get__(kind) if isinstance(kind, type) else {}
    kinds = (types.FunctionType, staticmethod, classmethod)
    return {n: bound(n) for n, v in own.items() if type(v) in kinds and not n.startswith("_") and n not in names}


def is_good_end(error: BaseException) -> bool:
    """Whether a program has ended itself well, or since nobody sits at its stdin: what it has defined is whole."""
    if isinstance(error, SystemExit):
        return error.code is None or (type(error.code) in (bool, int) and not error.code)
    return isinstance(error, EOFError)


def run_coroutine(coroutine: Any) -> Any:
    import asyncio  # only programs that have loaded it already come here

    return asyncio.run(coroutine)


def described(error: BaseException) -> str:
    """One line on an exception, with the program's line where it is known. Never raises."""
    try:
        line = error.lineno if isinstance(error, SyntaxError) else None
        step = error.__traceback__
        while step is not None and not isinstance(error, SyntaxError):
            line = step.tb_lineno if step.tb_frame.f_code.co_filename == "main.py" else line
            step = step.tb_next
        text = error.msg if isinstance(error, SyntaxError) else str(error)
        where = "" if line is None else f" (line {line})"
        return f"{name_of(type(error))}: {text}"[:500] + where
    except BaseException:
        return "an exception that cannot be told"


def flush() -> None:
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        pass
