"""A program's objects, seen from its own process: which of them travel as data, and what the judge may ask of the rest.

No method of a class that the program defined says what a built-in value is: that is read by the built-in class's own.
"""

from __future__ import annotations

import itertools
import math
import operator
import sys
import types
from typing import Any, Callable, Optional

from gateway.verify.harness.wire import OverLarge, Packer, name_of  # in the sandbox this file stands before

ITEMS_MAX = 1000  # of an iterator
HANDLES_MAX = 20_000
VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))

# Of the standard library: what a program imported and a test uses is the judge's own, not what the program made of it.
KNOWN_MODULES = frozenset(
    [
        "bisect",
        "cmath",
        "collections",
        "copy",
        "datetime",
        "decimal",
        "fractions",
        "functools",
        "heapq",
        "itertools",
        "json",
        "math",
        "operator",
        "random",
        "re",
        "statistics",
        "string",
        "typing",
    ]
)

# What Python does with an object for an operator or a built-in function, by the name of the method.
_OPERATORS = [
    "lt",
    "le",
    "eq",
    "ne",
    "gt",
    "ge",
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "matmul",
    "and_",
    "or_",
    "xor",
    "lshift",
    "rshift",
]
BINARY: dict[str, Callable[..., Any]] = {f"__{name.rstrip('_')}__": getattr(operator, name) for name in _OPERATORS}
BINARY["__divmod__"] = divmod
COMPARISONS = ("__lt__", "__le__", "__eq__", "__ne__", "__gt__", "__ge__")
UNARY: dict[str, Callable[..., Any]] = {
    "__neg__": operator.neg,
    "__pos__": operator.pos,
    "__invert__": operator.invert,
    "__abs__": abs,
    "__len__": len,
    "__str__": str,
    "__repr__": repr,
    "__bool__": bool,
    "__hash__": hash,
    "__iter__": iter,
    "__next__": next,
    "__int__": int,
    "__float__": float,
    "__complex__": complex,
    "__index__": operator.index,
    "__reversed__": reversed,
    "__trunc__": math.trunc,
    "__floor__": math.floor,
    "__ceil__": math.ceil,
}
OTHERS: dict[str, Callable[..., Any]] = {
    "__round__": round,
    "__format__": format,
    "__contains__": operator.contains,
    "__getitem__": operator.getitem,
    "__setitem__": operator.setitem,
    "__delitem__": operator.delitem,
    "__getattr__": getattr,
    "__dir__": dir,
    "__setattr__": setattr,
    "__delattr__": delattr,
    "isinstance": isinstance,
    "issubclass": issubclass,
}

# A subclass's own methods are not asked what it holds.
BASES: dict[type, Callable[[Any], Any]] = {
    int: lambda v: int.__add__(v, 0),
    float: lambda v: float.__add__(v, 0.0),
    str: lambda v: str.__getitem__(v, slice(None)),
    bytes: lambda v: bytes.__getitem__(v, slice(None)),
    list: lambda v: list.__getitem__(v, slice(None)),
    tuple: lambda v: tuple.__getitem__(v, slice(None)),
    dict: lambda v: dict(dict.items(v)),
    set: lambda v: set(set.__iter__(v)),
    frozenset: lambda v: frozenset(frozenset.__iter__(v)),
}
SCALARS = (int, float, str, bytes)


def home_of(value: Any) -> Optional[tuple[str, str]]:
    """The known module, or builtins, in which a function or class is found, and its name there; else None."""
    home, name = getattr(value, "__module__", None), getattr(value, "__name__", None)
    if type(home) is not str or type(name) is not str:
        return None
    home = home.partition(".")[0]
    found = getattr(sys.modules.get(home), name, None) if home == "builtins" or home in KNOWN_MODULES else None
    return (home, name) if found is value and callable(value) else None


def flattened(value: Any) -> Optional[tuple[type, Any]]:
    """The built-in type that `value`'s type is derived from, and its value as that; None without one."""
    for kind in type.mro(type(value)):
        if kind in BASES:
            return kind, BASES[kind](value)
    return None


def fields_of(value: Any) -> Optional[dict[str, Any]]:
    """What an object holds whose class is the program's own; None where its class, or one that it is derived from, is
    somebody else's: what that holds is not known."""
    found: dict[str, Any] = {}
    for kind in reversed(type.mro(type(value))):
        own = vars(type)["__dict__"].__get__(kind)
        home = own.get("__module__")
        if kind is object or (type(home) is str and home in ("abc", "enum", "typing")):
            continue
        if home != "program" or issubclass(kind, type):
            return None
        slots = own.get("__slots__", ())
        for name in (slots,) if type(slots) is str else tuple(slots):
            try:
                found[name] = object.__getattribute__(value, name)
            except AttributeError:  # nothing was put there
                pass
    try:
        found.update(object.__getattribute__(value, "__dict__"))
    except AttributeError:
        pass
    return {name: part for name, part in found.items() if type(name) is str and not name.startswith("__")}


class OutputPacker(Packer):
    """Packs results whose keys are wanted: subclasses as what they are derived from, the items of iterators, and what
    objects of the program's own classes hold."""

    def __init__(self) -> None:
        super().__init__()
        self._path: list[Any] = []  # the objects that those at hand are parts of

    def other(self, value: Any, level: int) -> Any:
        kind = type(value)
        if kind in VIEWS or (not isinstance(value, type) and hasattr(kind, "__next__")):
            items = list(itertools.islice(value, ITEMS_MAX))
            return self.pack(("<iterator>", items), level + 1)
        plain = flattened(value)
        if plain is not None:
            return self.pack(plain[1], level)
        for above, other in enumerate(reversed(self._path)):
            if other is value:
                return ["(", "<above>", above]
        held = None if isinstance(value, type) else fields_of(value)
        if held is None:
            return super().other(value, level)
        self._path.append(value)
        try:
            parts = [part for name in sorted(held) for part in (name, self.pack(held[name], level + 1))]
        finally:
            self._path.pop()
        return ["(", "<object>", name_of(kind), *parts]


class Handles:
    """The program's objects that the judge holds by number."""

    def __init__(self) -> None:
        self._objects: list[Any] = []
        self._number_by_id: dict[int, int] = {}

    def number(self, value: Any) -> int:
        number = self._number_by_id.get(id(value))
        if number is None:
            if len(self._objects) >= HANDLES_MAX:
                raise OverLarge
            number = self._number_by_id[id(value)] = len(self._objects)
            self._objects.append(value)
        return number

    def __getitem__(self, number: int) -> Any:
        return self._objects[number]


class HandlePacker(Packer):
    """Packs what tests get: data by value, everything else as a handle."""

    def __init__(self, handles: Handles) -> None:
        super().__init__()
        self._handles = handles

    def other(self, value: Any, level: int) -> Any:
        kind = type(value)
        if kind is types.ModuleType and value.__name__ in KNOWN_MODULES:
            return ["m", value.__name__]
        home = home_of(value)
        if home is not None:
            return ["m", *home]
        plain = flattened(value)
        if plain is not None and plain[0] in SCALARS:
            return self.pack(plain[1], level)
        what = "coroutine" if kind is types.CoroutineType else "base" if plain is not None else ""
        if isinstance(value, type) and issubclass(value, BaseException):
            return ["x", self.lineage(value)]
        return ["h", self._handles.number(value), name_of(kind), what]

    def lineage(self, kind: type) -> list[Any]:
        """An exception's class: the handles and names of those that are the program's, then what they derive from."""
        line: list[Any] = []
        for one in type.mro(kind):
            home = home_of(one)
            if home is not None:
                return [*line, [*home]]
            line.append([self._handles.number(one), name_of(one)])
        return line
