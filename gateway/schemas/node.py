"""A compiled schema's parts, and one run of a value through them.

A `Node` is immutable once compiled and shared by threads; a `Run` belongs to one check. Pure. A run is bounded: by the
steps it may take, which grow with the value, and by how deep schemas apply within schemas.
"""

from __future__ import annotations

from typing import Any, Callable, Optional

from gateway.schemas.faults import Fault, Path, TooComplex, path_text

DEPTH_MAX = 250
"""Schemas that apply within each other, counted along one path into the value: two calls on Python's stack for each."""
STEPS_BASE = 40_000
"""Steps that any check may take: a step is one schema met by one value, or as much work; about half a microsecond."""
STEPS_PER_VALUE = 16
"""Further ones for each value within the one that is checked, a name or eight characters of text being one too."""

FITS_STEPS = 4
FAULT_STEPS = 20

TYPES: tuple[type, ...] = (dict, list, str, int, float, bool, type(None))


class Seen:
    """What of one object or array has been looked at by the schemas that apply to it, for `unevaluated…`."""

    __slots__ = ("all_items", "all_names", "first_items", "items", "names")

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.all_names = False
        self.items: set[int] = set()
        self.first_items = 0
        self.all_items = False

    def add(self, other: Seen) -> None:
        """What another schema looked at has been looked at."""
        self.names |= other.names
        self.all_names |= other.all_names
        self.items |= other.items
        self.first_items = max(self.first_items, other.first_items)
        self.all_items |= other.all_items


Check = Callable[[Any, Path, "Run", Optional[Seen]], None]
"""One keyword: (value, where it stands, run, what to note down what was looked at; None: nobody asks)."""


class Enough(Exception):
    """As many faults as were asked for have been found."""


class Node:
    """One schema: for each type of value, what is checked. Filled by the compiler, then never changed."""

    __slots__ = ("by_type", "needs_seen", "other_types", "types", "weight")

    def __init__(self) -> None:
        self.by_type: dict[type, tuple[Check, ...]] = {}
        self.weight = 1
        """Steps that the checks themselves take, whatever the value."""
        self.needs_seen = False
        self.types: tuple[str, ...] = ()
        """What `type` allows; empty: everything."""
        self.other_types: tuple[Check, ...] = ()
        """What stands in `by_type` for all others."""

    def takes(self, value: Any) -> bool:
        """Whether `type`, if there is one, lets a value of this one's type pass."""
        return self.by_type[type(value)] is not self.other_types or not self.types

    def check(self, value: Any, path: Path, run: Run, seen: Optional[Seen] = None) -> None:
        """Tell `run` every fault of a value. Raises Enough, TooComplex."""
        run.steps_left -= self.weight
        if run.steps_left < 0:
            run.spend(0)
        run.depth += 1
        if run.depth > DEPTH_MAX:
            raise TooComplex(f"the schema applies to itself more than {DEPTH_MAX} levels deep")
        if seen is None and self.needs_seen:
            seen = Seen()
        for check in self.by_type[type(value)]:
            check(value, path, run, seen)
        run.depth -= 1


class Run:
    """One check of one value: the faults found so far, and what it may still do. For one thread."""

    __slots__ = ("_faults_max", "_is_extended", "_value", "depth", "faults", "steps_left")

    def __init__(self, value: Any, faults_max: int) -> None:
        self._value = value
        self._is_extended = False
        self._faults_max = faults_max
        self.faults: Optional[list[Fault]] = []
        """None: all that is asked is whether a value fits."""
        self.steps_left = STEPS_BASE
        self.depth = 0

    def fault(self, path: Path, message: str) -> None:
        """Note a fault. Raises Enough behind the last that was asked for, TooComplex."""
        if self.faults is None:
            raise Enough
        self.spend(FAULT_STEPS + self.depth)
        self.take(Fault(path_text(path), message))

    def take(self, fault: Fault) -> None:
        """Note a fault that was found apart, where reasons are asked for. Raises Enough."""
        assert self.faults is not None
        self.faults.append(fault)
        if len(self.faults) >= self._faults_max:
            raise Enough

    def spend(self, steps: int) -> None:
        """Take steps. Raises TooComplex when there are none left."""
        self.steps_left -= steps
        if self.steps_left < 0 and not self._is_extended:
            self._is_extended = True
            self.steps_left += STEPS_PER_VALUE * _count(self._value)
        if self.steps_left < 0:
            raise TooComplex("checking the value against the schema takes too many steps")

    def fits(self, node: Node, value: Any, path: Path, seen: Optional[Seen] = None) -> bool:
        """Whether a value fits; its faults are not told. What was looked at is noted down only if it does."""
        own = None if seen is None else Seen()
        faults, depth = self.faults, self.depth
        self.faults = None
        self.steps_left -= FITS_STEPS
        try:
            node.check(value, path, self, own)
        except Enough:
            return False
        finally:
            self.faults, self.depth = faults, depth
        if seen is not None and own is not None:
            seen.add(own)
        return True

    def reasons(self, node: Node, value: Any, path: Path, faults_max: int) -> list[Fault]:
        """A value's faults, kept apart."""
        before = (self.faults, self._faults_max, self.depth)
        found: list[Fault] = []
        self.faults, self._faults_max = found, faults_max
        try:
            node.check(value, path, self, None)
        except Enough:
            pass
        finally:
            self.faults, self._faults_max, self.depth = before
        return found


def _count(value: Any) -> int:
    count = 0
    waiting = [value]
    while waiting:
        one = waiting.pop()
        count += 1
        if type(one) is str:
            count += len(one) >> 3
        elif type(one) is list:
            waiting.extend(one)
        elif type(one) is dict:
            count += sum(1 + (len(name) >> 3) for name in one)
            waiting.extend(one.values())
    return count
