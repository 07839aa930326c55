"""The program's objects as tests see them, in the judge: data by value, everything else by what stands for it.

A call is made in the program's process. A `Remote` forwards attributes, methods and operators to there, with one
exception: a program must not judge itself. An object of the program's own class that is compared or reckoned with a
plain value is asked only if the test itself made it, by calling a class whose name begins with a capital letter and is
not the entry point's. Else what its built-in base class holds is compared here, or, without one, it equals nothing.
"""

from __future__ import annotations

import builtins
import importlib
import itertools
import reprlib
import types
from collections.abc import Iterator
from typing import Any, Callable, NoReturn, Optional

from gateway.verify.harness.objects import (  # in the sandbox this file stands before
    BINARY,
    COMPARISONS,
    KNOWN_MODULES,
    OTHERS,
    UNARY,
    flattened,
    home_of,
)
from gateway.verify.harness.processes import Ended, Late  # in the sandbox likewise
from gateway.verify.harness.wire import Garbled, OverLarge, Packer, Unpacker, name_of  # in the sandbox likewise

ITERATED_MAX = 10_000  # of an iterator that a test gives to the program
# Built-in functions that are not run here because a program says so.
RISKY = frozenset({"breakpoint", "compile", "delattr", "eval", "exec", "exit", "getattr", "globals", "help", "input"})
RISKY |= {"locals", "open", "print", "quit", "setattr", "vars"}

# What reading a message raises that no honest program sends.
NONSENSE = (Garbled, TypeError, ValueError, LookupError, AttributeError, RecursionError, ImportError)


class Unusable(BaseException):
    """The program's process cannot go on. No test is to catch it, and one that does fails all the same."""


class Remote:
    """An object in the program's process."""

    __slots__ = ("_judge_link", "_judge_made", "_judge_maker", "_judge_name", "_judge_number", "_judge_what")

    def __init__(self, link: Link, number: int, name: str, what: str) -> None:
        for slot, value in (("link", link), ("number", number), ("name", name), ("what", what)):
            object.__setattr__(self, f"_judge_{slot}", value)
        object.__setattr__(self, "_judge_made", False)
        object.__setattr__(self, "_judge_maker", False)

    def _judge_as_made(self) -> Remote:
        """The same object as who made it has it: whoever gives it back otherwise gives one that nobody asks."""
        made = Remote(self._judge_link, self._judge_number, self._judge_name, self._judge_what)
        object.__setattr__(made, "_judge_made", True)
        return made

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._judge_link.call(self, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        found = self._judge_link.ask("__getattr__", (self, name))
        if type(found) is Remote:
            object.__setattr__(found, "_judge_name", name)
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        self._judge_link.ask("__setattr__", (self, name, value))

    def __delattr__(self, name: str) -> None:
        self._judge_link.ask("__delattr__", (self, name))

    def __contains__(self, value: Any) -> bool:
        if self._judge_made:
            return bool(self._judge_link.ask("__contains__", (self, value)))
        return any(one is value or one == value for one in iter(self))

    def __instancecheck__(self, instance: Any) -> bool:
        return bool(self._judge_link.ask("isinstance", (instance, self)))

    def __subclasscheck__(self, kind: Any) -> bool:
        return bool(self._judge_link.ask("issubclass", (kind, self)))


def _add_operators() -> None:
    def forwarded(name: str) -> Callable[..., Any]:
        return lambda self, *args: self._judge_link.ask(name, (self, *args))

    def binary(name: str, swapped: bool) -> Callable[..., Any]:
        return lambda self, other: self._judge_link.binary(name, self, other, swapped)

    for name in (*UNARY, *OTHERS, "__enter__", "__exit__"):
        if name.startswith("__") and name not in vars(Remote):
            setattr(Remote, name, forwarded(name))
    Remote.__hash__ = forwarded("__hash__")  # type: ignore[method-assign]
    for name in BINARY:
        setattr(Remote, name, binary(name, False))
        if name not in COMPARISONS:
            setattr(Remote, f"__r{name[2:]}", binary(name, True))


_add_operators()
for _name in ("__str__", "__repr__", "__format__", "__dir__"):  # object has them already
    setattr(Remote, _name, (lambda name: lambda self, *args: self._judge_link.ask(name, (self, *args)))(_name))


class Link:
    """What asks the program's process for a test. `talk` sends a message and waits for the next, or raises Late, Ended,
    Garbled: then, and when what comes makes no sense, the process is of no more use."""

    def __init__(self, talk: Callable[[list[Any]], list[Any]], entry_point: Optional[str]) -> None:
        self.broken = ""  # why the process is of no more use
        self.calls = 0
        self._remotes: dict[int, Remote] = {}
        self.last = ""  # the last call and what it gave, for people
        self.failed_within: Optional[AssertionError] = None  # in a function of the test's that the program called
        self._talk, self._entry_point = talk, entry_point
        self._functions: list[Callable[..., Any]] = []
        self._exceptions: dict[int, type[BaseException]] = {}

    def names(self) -> dict[str, Any]:
        """The program's top-level names. Built-in functions and the standard library are never the program's."""
        said = self._exchange(["names"])
        try:
            return self._names(said)
        except NONSENSE:
            self._spoil()

    def _names(self, said: list[Any]) -> dict[str, Any]:
        if said[0] != "names":
            raise Garbled
        found: dict[str, Any] = {}
        for name, packed in said[1]:
            if name != self._entry_point and (hasattr(builtins, name) or name in KNOWN_MODULES):
                if name in KNOWN_MODULES:
                    found[name] = importlib.import_module(name)
                continue
            value = found[name] = _RemoteUnpacker(self).read(packed)
            if type(value) is Remote:
                object.__setattr__(value, "_judge_name", name)
                object.__setattr__(value, "_judge_maker", name[:1].isupper() and name != self._entry_point)
        return found

    def _exchange(self, message: list[Any]) -> list[Any]:
        if not self.broken:
            try:
                return self._talk(message)
            except Late:
                self.broken = "the program took too long"
            except Ended as error:
                self.broken = f"the program: {error}"
            except Garbled:
                self._spoil()
        raise Unusable(self.broken)

    def _spoil(self) -> NoReturn:
        self.broken = "the program's process does not answer as one"
        raise Unusable(self.broken)

    def call(self, target: Remote, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.calls += 1
        shown = ", ".join([*map(reprlib.repr, args), *(f"{name}={reprlib.repr(v)}" for name, v in kwargs.items())])
        self.last = f"{target._judge_name}({shown})"
        try:
            value = self.ask("call", (target, *args), kwargs)
        except Exception as error:
            self.last = f"{target._judge_name}({shown}) raised {name_of(type(error))}"
            raise
        if type(value) is Remote:
            if target._judge_maker:
                value = value._judge_as_made()
            self.last = f"{target._judge_name}({shown}) gave an object of its own, a {value._judge_name}"
        else:
            self.last = f"{target._judge_name}({shown}) gave {reprlib.repr(value)}"
        return value

    def binary(self, name: str, one: Remote, other: Any, swapped: bool) -> Any:
        ordered = (other, one) if swapped else (one, other)
        based = one._judge_what == "base"
        if type(other) is Remote or (one._judge_made and not (based and name in COMPARISONS)):
            value = self.ask(name, ordered)
            return value._judge_as_made() if type(value) is Remote and one._judge_made else value
        if based:
            plain = self.ask("base", (one,))
            if type(plain) is not Remote:
                return BINARY[name](other, plain) if swapped else BINARY[name](plain, other)
        if name in ("__eq__", "__ne__"):
            return name == "__ne__"
        raise TypeError(f"a {one._judge_name} of the program's own beside a plain value")

    def ask(self, what: str, args: tuple[Any, ...], kwargs: Optional[dict[str, Any]] = None) -> Any:
        """Have the program's process do `what`, and give the value or raise what it raised."""
        named = kwargs or {}
        packer = _ArgumentPacker(self._functions)
        try:
            request = ["do", what, packer.pack(args), packer.pack(named)]
        except OverLarge:
            raise ValueError("arguments with too many parts") from None
        said = self._exchange(request)
        while said[0] == "call_back":
            said = self._exchange(self._called_back(said))
        try:
            value = self._understood(said, [*args, *named.values()])
        except NONSENSE:
            self._spoil()
        if said[0] == "raised":
            if type(value) is StopIteration and what != "__next__":  # it would end the test's own loop (PEP 479)
                raise RuntimeError("the program raised StopIteration")
            raise value
        return value

    def _understood(self, said: list[Any], held: list[Any]) -> Any:
        unpacker = _RemoteUnpacker(self)
        if said[0] == "raised":
            return self._exception(said, unpacker)
        if said[0] != "value":
            raise Garbled
        for index, packed in said[2]:
            _take_over(held[index], unpacker.read(packed))
        return unpacker.read(said[1])

    def _called_back(self, said: list[Any]) -> list[Any]:
        unpacker = _RemoteUnpacker(self)
        try:
            function, given, named = self._functions[said[1]], unpacker.read(said[2]), unpacker.read(said[3])
        except NONSENSE:
            self._spoil()
        try:
            return ["given", _ArgumentPacker(self._functions).pack(function(*given, **named))]
        except AssertionError as error:
            self.failed_within = error
            return ["failed", "AssertionError", str(error)]
        except (Exception, OverLarge) as error:
            return ["failed", name_of(type(error)), str(error)]

    def _exception(self, said: list[Any], unpacker: Unpacker) -> BaseException:
        lineage, arguments, text, attributes = said[1:5]
        kind, given = self.exception_class(lineage), tuple(unpacker.read(arguments))
        try:
            error = kind(*given)
        except Exception:
            error = kind.__new__(kind, *given)  # it takes other arguments than it keeps
        try:
            error.__dict__.update({str(name): value for name, value in unpacker.read(attributes).items()})
        except Exception:
            return RuntimeError(str(text))
        return error

    def exception_class(self, lineage: list[Any]) -> type[BaseException]:
        """A class that stands for the program's; for a built-in one, that one."""
        home, name = lineage[-1]
        kind: Any = Exception
        if home == "builtins" or home in KNOWN_MODULES:
            kind = getattr(importlib.import_module(home), name, Exception)
        if not (isinstance(kind, type) and issubclass(kind, BaseException)) or issubclass(kind, Unusable):
            kind = Exception
        for number, own in reversed(lineage[:-1]):
            if number not in self._exceptions:
                self._exceptions[number] = type(str(own), (kind,), {"__module__": "program", "_judge_number": number})
            kind = self._exceptions[number]
        found: type[BaseException] = kind
        return found

    def remote(self, number: int, name: str, what: str) -> Any:
        if number not in self._remotes:
            self._remotes[number] = Remote(self, int(number), str(name)[:100], str(what))
        remote = self._remotes[number]
        return self._awaited(remote) if what == "coroutine" else remote

    async def _awaited(self, remote: Remote) -> Any:
        return self.ask("await", (remote,))


class _ArgumentPacker(Packer):
    """Packs what a test gives to the program; its functions stay here, to be called from there."""

    def __init__(self, functions: list[Callable[..., Any]]) -> None:
        super().__init__()
        self._functions = functions

    def other(self, value: Any, level: int) -> Any:
        kind = type(value)
        if kind is Remote:
            return ["h", value._judge_number]
        if isinstance(value, type) and "_judge_number" in vars(value):
            return ["h", vars(value)["_judge_number"]]
        home = home_of(value)
        if home is not None:
            return ["m", *home]
        if isinstance(value, Iterator):
            return ["iter", self.pack(list(itertools.islice(value, ITERATED_MAX)), level + 1)]
        plain = flattened(value)
        if plain is not None:
            return self.pack(plain[1], level)
        if callable(value):
            self._functions.append(value)
            return ["call", len(self._functions) - 1]
        if isinstance(getattr(value, "__dict__", None), dict) and not isinstance(value, types.ModuleType):
            return ["like", name_of(kind), self.pack(dict(vars(value)), level + 1)]
        raise TypeError(f"a {name_of(kind)} cannot be given to the program")


class _RemoteUnpacker(Unpacker):
    def __init__(self, link: Link) -> None:
        self._link = link

    def other(self, tag: str, parts: list[Any]) -> Any:
        if tag == "h":
            return self._link.remote(*parts)
        if tag == "m":
            return self._known(*parts)
        if tag == "x":
            return self._link.exception_class(parts[0])
        return super().other(tag, parts)

    def _known(self, home: str, name: Optional[str] = None) -> Any:
        """A module, or a function or class of one, that the judge may have in its own process."""
        if home not in KNOWN_MODULES and (home != "builtins" or name in RISKY or name is None):
            raise Garbled
        module = importlib.import_module(home)
        found = module if name is None else getattr(module, name)
        if name is not None and (name.startswith("_") or not callable(found)):
            raise Garbled
        return found


def _take_over(held: Any, new: Any) -> None:
    """Make a container of the test's what the program has made of its copy."""
    kind = type(held)
    if kind is not type(new):
        return
    if kind is list or kind is bytearray:
        for index, (old, one) in enumerate(zip(held, new)):
            if type(old) is type(one) and type(old) in (list, dict, set):
                _take_over(old, one)
                new[index] = old
        held[:] = new
    elif kind is dict:
        for key, one in new.items():
            if type(one) in (list, dict, set) and type(held.get(key)) is type(one):
                _take_over(held[key], one)
                new[key] = held[key]
        held.clear()
        held.update(new)
    elif kind is set:
        held.clear()
        held.update(new)
