"""Which JSON values are equal, and which numbers are multiples of others: exactly, and in bounded time.

Pure. Values are those that `json` reads. Python's own equality takes `True` for 1, and its hashes of numbers can be
made to collide; so values are compared by a text that equal ones, and only they, have in common.
"""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any, Callable, Union

from gateway.schemas.faults import TooComplex

Number = Union[int, float]

DEPTH_MAX = 250
"""Lists and objects within each other."""


def canonical(value: Any, spend: Callable[[int], None]) -> str:
    """A text that is the same for equal values only. `spend` is told of each value. Raises TooComplex."""
    pieces: list[str] = []
    _write(value, pieces.append, spend, DEPTH_MAX)
    return "".join(pieces)


def _write(value: Any, write: Callable[[str], None], spend: Callable[[int], None], depth_left: int) -> None:
    if not depth_left:
        raise TooComplex(f"a value to be compared is nested deeper than {DEPTH_MAX} levels")
    kind = type(value)
    if kind is str:
        spend(3 + (len(value) >> 6))
        write(f"s{len(value)}:{value}")
    elif kind is dict:
        spend(3 + 2 * len(value))
        write("{")
        for name in sorted(value):
            write(f"{len(name)}:{name}")
            _write(value[name], write, spend, depth_left - 1)
        write("}")
    elif kind is list:
        spend(3)
        write("[")
        for item in value:
            _write(item, write, spend, depth_left - 1)
        write("]")
    elif kind is bool or value is None:
        spend(3)
        write(f"{value};")
    else:
        spend(3)
        write(f"{_number(value)};")


def _number(value: Number) -> str:
    # Hexadecimal: as decimals, long integers take quadratic time, and Python refuses very long ones.
    if type(value) is float:
        return hex(int(value)) if value.is_integer() else repr(value)
    return hex(int(value))


def decimal_parts(value: Number) -> tuple[int, int]:
    """The digits and the exponent of ten of a finite number, floats being what they are written as: 0.1 is (1, -1)."""
    if type(value) is int:
        return value, 0
    sign, digits, exponent = Decimal(repr(value)).as_tuple()
    number = int("".join(map(str, digits)))
    return (-number if sign else number), int(exponent)


def is_multiple(value: Number, divisor: tuple[int, int]) -> bool:
    """Whether a number is a whole number of times another, given by its parts; exact. False for infinities."""
    if type(value) is float and not math.isfinite(value):
        return False
    digits, exponent = decimal_parts(value)
    divisor_digits, divisor_exponent = divisor
    shift = exponent - divisor_exponent
    scale: int = 10 ** abs(shift)
    return (digits * scale % divisor_digits if shift >= 0 else digits % (divisor_digits * scale)) == 0
