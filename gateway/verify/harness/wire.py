"""How values travel between the judge and the process of a program: as JSON that carries the types of Python.

Behind `keys.py` and in front of the other parts of the judge in one text, in the sandbox; standard library only. A
scalar is itself; anything else is a list whose first element is its tag. What comes from a program is hostile: it is
data here whatever it says, unpacking builds built-in objects only, and size, depth and time are bounded.
"""

from __future__ import annotations

import json
import os
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any, Callable, NamedTuple, Optional

from gateway.verify.harness.keys import Opaque  # in the sandbox this file stands before

PARTS_MAX = 50_000  # of one message's values
CHARS_MAX = 1 << 21
LEVELS_MAX = 80
LINE_BYTES_MAX = 16 << 20
PLAIN_INT_MAX = 1 << 62  # beyond, ints travel as hexadecimal: reading decimals takes quadratic time
READ_BYTES = 1 << 16

SEQUENCES: dict[type, str] = {list: "[", tuple: "(", set: "s", frozenset: "f"}
MAKERS: dict[str, Callable[[Any], Any]] = {"[": list, "(": tuple, "s": set, "f": frozenset}


class OverLarge(Exception):
    """A value has too many parts to travel."""


class Garbled(Exception):
    """What came is not what the other side of the wire writes."""


class Kind(NamedTuple):
    """A type of the standard library whose values travel as what they are made from."""

    name: str
    parts: Callable[[Any], tuple[Any, ...]]
    make: Callable[..., Any]
    plain: Callable[..., Any]  # the same as built-in values only, for a key


def _tagged(name: str) -> Callable[..., Any]:
    return lambda *parts: (name, *parts)


KINDS: dict[type, Kind] = {
    complex: Kind("complex", lambda v: (v.real, v.imag), complex, complex),
    bytes: Kind(
        "bytes", lambda v: (v.decode("latin-1"),), lambda t: t.encode("latin-1"), lambda t: t.encode("latin-1")
    ),
    bytearray: Kind("bytearray", lambda v: (bytes(v),), bytearray, bytes),
    range: Kind("range", lambda v: (v.start, v.stop, v.step), range, _tagged("range")),
    Fraction: Kind("Fraction", lambda v: (v.numerator, v.denominator), Fraction, lambda n, d: n if d == 1 else n / d),
    Decimal: Kind("Decimal", lambda v: (str(v),), Decimal, float),
    date: Kind("date", lambda v: (v.year, v.month, v.day), date, _tagged("date")),
    timedelta: Kind("timedelta", lambda v: (v.days, v.seconds, v.microseconds), timedelta, _tagged("timedelta")),
    time: Kind("time", lambda v: (v.hour, v.minute, v.second, v.microsecond), time, _tagged("time")),
    datetime: Kind("datetime", lambda v: (*v.timetuple()[:6], v.microsecond), datetime, _tagged("datetime")),
    Counter: Kind("Counter", lambda v: (dict(v),), Counter, dict),
    OrderedDict: Kind("OrderedDict", lambda v: ([*v.items()],), OrderedDict, dict),
    defaultdict: Kind("defaultdict", lambda v: (dict(v),), dict, dict),
    deque: Kind("deque", lambda v: ([*v], v.maxlen), deque, lambda items, _: ("deque", items)),
}
KIND_BY_NAME = {kind.name: kind for kind in KINDS.values()}


class Packer:
    """One message's values on their way out. Subclasses say by `other` what becomes of objects that are no data."""

    def __init__(self) -> None:
        self._parts_left, self._chars_left = PARTS_MAX, CHARS_MAX

    def pack(self, value: Any, level: int = 0) -> Any:
        """What JSON can hold of `value`. Raises OverLarge; recursion into itself is too large too."""
        self._parts_left -= 1
        if self._parts_left < 0 or level > LEVELS_MAX:
            raise OverLarge
        kind = type(value)
        if value is None or kind is bool or kind is float:
            return value
        if kind is int:
            if -PLAIN_INT_MAX < value < PLAIN_INT_MAX:
                return value
            self._chars_left -= value.bit_length() // 4
            return ["i", hex(value)] if self._chars_left > 0 else self._over()
        if kind is str:
            self._chars_left -= len(value)
            return value if self._chars_left >= 0 else self._over()
        tag = SEQUENCES.get(kind)
        if tag is not None:
            return [tag, *[self.pack(part, level + 1) for part in value]]
        if kind is dict:
            return ["{", *[self.pack(part, level + 1) for pair in value.items() for part in pair]]
        known = KINDS.get(kind)
        if known is not None and getattr(value, "tzinfo", None) is None:
            return ["v", known.name, *[self.pack(part, level + 1) for part in known.parts(value)]]
        return self.other(value, level)

    def other(self, value: Any, level: int) -> Any:
        return ["o", name_of(type(value))]

    def _over(self) -> Any:
        raise OverLarge


class Unpacker:
    """One message's values on their way in, as Python's own types."""

    def unpack(self, packed: Any) -> Any:
        """The value. Raises whatever for what is not one: see `read`."""
        if type(packed) is not list:
            if type(packed) is dict:
                raise Garbled
            return packed
        tag, parts = packed[0], packed[1:]
        if tag in MAKERS:
            return MAKERS[tag]([self.unpack(part) for part in parts])
        if tag == "{":
            flat = iter([self.unpack(part) for part in parts])
            return dict(zip(flat, flat))
        if tag == "i":
            return int(parts[0], 16)
        if tag == "n":  # JavaScript's, whose JSON has none
            return float(parts[0])
        if tag == "v":
            return self.made(KIND_BY_NAME[parts[0]], [self.unpack(part) for part in parts[1:]])
        return self.other(tag, parts)

    def made(self, kind: Kind, parts: list[Any]) -> Any:
        return kind.make(*parts)

    def other(self, tag: str, parts: list[Any]) -> Any:
        if tag == "o" and type(parts[0]) is str:
            return Opaque(parts[0][:100])
        raise Garbled

    def read(self, packed: Any) -> Any:
        """The value. Raises Garbled when a hostile other side sent what is none."""
        try:
            return self.unpack(packed)
        except (TypeError, ValueError, LookupError, ArithmeticError, RecursionError, AttributeError) as error:
            raise Garbled from error


class KeyUnpacker(Unpacker):
    """Makes what keys are made of: where `==` holds between two types, the one value of both."""

    def made(self, kind: Kind, parts: list[Any]) -> Any:
        return kind.plain(*parts)


def name_of(kind: type) -> str:
    """The type's name, whatever its metaclass says."""
    return str(vars(type)["__name__"].__get__(kind))


def _parse_int(text: str) -> int:
    if len(text) > 24:
        raise ValueError("too many digits")
    return int(text)


_decoder = json.JSONDecoder(parse_int=_parse_int)
_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


class Lines:
    """Messages as lines in a byte stream, of which this holds what has come of the next."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._held = bytearray()

    def fill(self) -> bool:
        """Read once what is there, waiting if nothing is; False at the end. Raises Garbled for an endless line."""
        data = os.read(self.fd, READ_BYTES)
        self._held += data
        if len(self._held) > LINE_BYTES_MAX:
            raise Garbled
        return bool(data)

    def next(self) -> Optional[list[Any]]:
        """The next message that has come whole, or None. Raises Garbled."""
        end = self._held.find(b"\n")
        if end < 0:
            return None
        line = bytes(self._held[:end])
        del self._held[: end + 1]
        try:
            message = _decoder.decode(line.decode("ascii"))
        except (ValueError, RecursionError) as error:
            raise Garbled from error
        if type(message) is not list or not message:
            raise Garbled
        return message

    def receive(self) -> list[Any]:
        """Wait for a message, for ever. Raises EOFError at the end."""
        while True:
            message = self.next()
            if message is not None:
                return message
            if not self.fill():
                raise EOFError

    def send(self, message: list[Any]) -> None:
        """Write all of a message, waiting as long as the other side takes. Raises OSError."""
        view = memoryview(line_of(message))
        while view:
            view = view[os.write(self.fd, view) :]


def line_of(message: list[Any]) -> bytes:
    return _encode(message).encode("ascii") + b"\n"
