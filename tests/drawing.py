"""Values that nobody has thought of, for tests of what holds for all of them: drawn from a seed, so that what fails
fails again. The first of what can be drawn is the simplest.

Far faster than hypothesis' strategies, so that a test may try ten thousand. Where hypothesis is installed,
it looks for the smallest case that fails once some case does.
"""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Sequence
from typing import Any, Callable, Optional, TypeVar

T = TypeVar("T")

SHRINKING = 2000  # cases in which hypothesis looks for one that fails
_ALPHABETS = (
    "abc XYZ019_-.",
    " \t\n\r\x0b\x0c\x1c\x1e\x85\xa0\u2028\u2029\u3000",
    "\"\\/'{}[]:,<>&#%?*`$",
    "\x00\x01\x08\x1b\x1f\x7f\x9f\xad\u200b\u202e\ufeff\ufffd\uffff",
    "\xe9\xdf\u0130\u0301\u05d0\u6f22\u3042\U0001f600\U0001f468\u200d\U00010000\U0010ffff",
)
_ALL = "".join(_ALPHABETS)
_INTEGERS = (0, 1, -1, 7, 255, -256, 65_537, 2**31, -(2**53) - 1, 2**63, 2**64, -(10**25))
_FLOATS = (0.0, 1.0, -0.0, 0.1, -1.5, 1e-7, 1e16, 5e-324, 2.2250738585072014e-308, 1.7976931348623157e308)


class Draw:
    """Draws from `source`: a generator with a seed, or one of hypothesis'."""

    def __init__(self, source: random.Random) -> None:
        self._source = source

    def integer(self, low: int, high: int) -> int:
        """From `low` to `high`."""
        return self._source.randint(low, high)

    def flag(self) -> bool:
        """Either."""
        return self._source.randint(0, 1) == 1

    def pick(self, values: Sequence[T]) -> T:
        """One of these."""
        return values[self._source.randint(0, len(values) - 1)]

    def some(self, make: Callable[[], T], at_most: int, at_least: int = 0) -> list[T]:
        """So many."""
        return [make() for _ in range(self._source.randint(at_least, at_most))]

    def maybe(self, **makers: Callable[[], Any]) -> dict[str, Any]:
        """Each of these keys, or not."""
        return {key: make() for key, make in makers.items() if self.flag()}

    def text(self, at_most: int = 12, at_least: int = 0) -> str:
        """Of one kind of characters, or of all, or of any."""
        kind = self.integer(0, len(_ALPHABETS) + 2)
        if kind <= len(_ALPHABETS):
            letters = [*_ALPHABETS, _ALL][kind]
            return "".join(self.some(lambda: self.pick(letters), at_most, at_least))
        highest = 0xFF if kind == len(_ALPHABETS) + 1 else 0x10F7FF
        codes = self.some(lambda: self.integer(0, highest), at_most, at_least)
        return "".join(chr(code if code < 0xD800 else code + 0x800) for code in codes)

    def name(self, letters: str = "abcXYZ019_-", at_most: int = 8) -> str:
        """As of a function."""
        return "".join(self.some(lambda: self.pick(letters), at_most, 1))

    def float(self, low: float, high: float) -> float:
        """From `low` to `high`."""
        return self.pick((low, high, (low + high) / 2, low + (high - low) * self.integer(0, 10**9) / 10**9))

    def value(self, depth: int = 2) -> Any:
        """Any in JSON."""
        kind = self.integer(0, 6 if depth else 4)
        if kind == 0:
            return self.pick((None, False, True))
        if kind == 1:
            return self.pick(_INTEGERS) if self.flag() else self.integer(-1000, 1000)
        if kind == 2:
            return self.pick(_FLOATS) if self.flag() else self.integer(-(10**9), 10**9) / 1024
        if kind <= 4:
            return self.text()
        return self.some(lambda: self.value(depth - 1), 3) if kind == 5 else self.object(depth - 1)

    def object(self, depth: int = 2) -> dict[str, Any]:
        """An object in JSON."""
        return {self.text(): self.value(depth) for _ in range(self.integer(0, 3))}

    def cut(self, text: str, at_most: int = 4) -> list[str]:
        """The text in pieces, of which some may be empty."""
        places = sorted(self.some(lambda: self.integer(0, len(text)), at_most))
        return [text[start:end] for start, end in zip([0, *places], [*places, len(text)])]


def for_many(count: int, check: Callable[[Draw], None]) -> None:
    """Call `check`, which draws a case and raises when something does not hold for it, for `count` cases, always the
    same ones. Raises AssertionError that names the case, and tells of a smaller one where one is found."""
    for number in range(count):
        try:
            check(Draw(random.Random(number)))
        except Exception as error:
            raise AssertionError(f"case {number} of {count}: {_smaller(check) or error}") from error


def _smaller(check: Callable[[Draw], None]) -> Optional[Exception]:
    """What the smallest case raises that hypothesis finds."""
    if importlib.util.find_spec("hypothesis") is None:
        return None
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    profile = settings(
        max_examples=SHRINKING, deadline=None, database=None, derandomize=True, suppress_health_check=[*HealthCheck]
    )
    try:
        profile(given(st.randoms(use_true_random=False))(lambda source: check(Draw(source))))()
    except Exception as error:
        return error
    return None
