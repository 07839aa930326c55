"""How arguments hang together: relations that all known calls keep, and such that a mistake would show in.

Runs inside the sandbox. Two lists of one length, an index that a list is long enough for: fuzz would break them, and
programs may do as they please then. A text that contains the other, a limit that is exactly the sum: fuzz would
hardly ever meet them, and there the boundaries lie.
"""

from __future__ import annotations

import re
from random import Random

from gateway.verify.harness.domain import Shape  # in the sandbox this file stands before

_WITHIN = re.compile(r"(\w+)\s*(?:<=|<|≤)\s*(?:len\(\s*(\w+)\s*\)|(\w+)\.length|length of (?:the )?(\w+))")


class Relations:
    """Relations between the arguments of the known calls."""

    def __init__(self, known: list[list[object]], params: tuple[str, ...], prompt: str) -> None:
        size = len(known[0])
        self._lengths: list[tuple[int, int, int]] = []  # len(second) - len(first)
        self._within: list[tuple[int, int]] = []  # an int that is at most the length of the list
        for first in range(size):
            for second in range(size):
                if first < second:
                    self._find_lengths(known, first, second)
                if first != second:
                    self._find_within(known, first, second, params, prompt)

    def _find_lengths(self, known: list[list[object]], first: int, second: int) -> None:
        pairs = [(args[first], args[second]) for args in known]
        kind = type(pairs[0][0])
        if kind not in (list, str) or not all(type(a) is kind and type(b) is kind for a, b in pairs):
            return
        differences = {len(b) - len(a) for a, b in pairs}  # type: ignore[arg-type]
        lengths = {len(a) for a, _ in pairs}  # type: ignore[arg-type]
        if kind is str and len(pairs) < 2 and max(lengths) < 4:
            return
        if (
            len(differences) == 1
            and abs(min(differences)) <= 1
            and max(lengths) > 1
            and (len(pairs) > 1 or max(lengths) > 2)
        ):
            self._lengths.append((first, second, differences.pop()))

    def _find_within(
        self, known: list[list[object]], first: int, second: int, params: tuple[str, ...], prompt: str
    ) -> None:
        pairs = [(args[first], args[second]) for args in known]
        if not all(type(a) is int and isinstance(b, (list, str)) for a, b in pairs):
            return
        said = any(
            first < len(params) > second and match.group(1) == params[first] and params[second] in match.groups()[1:]
            for match in _WITHIN.finditer(prompt)
        )
        if said or (len(pairs) > 1 and all(0 <= a <= len(b) for a, b in pairs)):  # type: ignore[operator, arg-type]
            self._within.append((first, second))

    def restored(self, args: list[object]) -> list[object]:
        """Returns `args` with the relations kept: the longer list cut, the index brought inside."""
        for first, second, difference in self._lengths:
            one, other = args[first], args[second]
            if isinstance(one, (list, str)) and isinstance(other, (list, str)):
                size = min(len(one), len(other) - difference)
                if size + min(0, difference) >= 0:
                    args[first], args[second] = one[:size], other[: size + difference]
        for number, within in self._within:
            value, holder = args[number], args[within]
            if isinstance(value, int) and isinstance(holder, (list, str)) and value > len(holder):
                args[number] = max(1, len(holder)) if value % 3 else max(1, len(holder) // 2)
        return args


def related(args: list[object], shapes: list[Shape], rng: Random) -> list[object]:
    """Returns `args` with one argument made from another."""
    target, source = rng.sample(range(len(args)), 2)
    value, basis = args[target], args[source]
    made: object = None
    if isinstance(value, str) and isinstance(basis, str) and basis:
        made = _text_from(basis, rng)
    elif isinstance(value, list) and isinstance(basis, list) and _alike(shapes[target], shapes[source]):
        made = _list_from(value, basis, rng)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        made = _number_from(value, basis, rng, shapes[target], args)
    if made is not None and (made != "" or shapes[target].empty):
        args = [*args[:target], made, *args[target + 1 :]]
    return args


def _alike(one: Shape, other: Shape) -> bool:
    return (
        one.elements is not None and other.elements is not None and set(one.elements.kinds) == set(other.elements.kinds)
    )


def _text_from(basis: str, rng: Random) -> str:
    start = rng.randrange(len(basis))
    stop = rng.randint(start + 1, len(basis))
    return rng.choice(
        (
            basis[start:stop],
            basis[start:stop],
            basis[start:] + basis[:start],
            basis[::-1],
            basis,
            "".join(rng.sample(basis, len(basis))),
        )
    )


def _list_from(value: list[object], basis: list[object], rng: Random) -> list[object]:
    made = [rng.choice(basis) if basis and rng.random() < 0.6 else part for part in value]
    return rng.choice((made, made, list(basis), basis[::-1], basis[: len(basis) // 2] or made))


def _number_from(value: float, basis: object, rng: Random, shape: Shape, args: list[object]) -> object:
    """A sum, a length, an element, a power of another argument, or next to it."""
    numbers: list[float] = []
    if isinstance(basis, (int, float)) and not isinstance(basis, bool):
        others = [part for part in args if isinstance(part, (int, float)) and not isinstance(part, bool)]
        numbers = [basis, basis + 1, basis - 1, 2 * basis, basis * basis, -basis, sum(others) - value]
        numbers += [basis**3] if abs(basis) < 50 else []
    elif isinstance(basis, (list, str)):
        numbers = [len(basis), len(basis) - 1]
        inside = [part for part in basis if isinstance(part, (int, float)) and not isinstance(part, bool)]
        if inside:
            exact = [sum(inside), max(inside), min(inside), rng.choice(inside)]
            numbers += [*exact, *exact, *(part + rng.choice((1, -1)) for part in exact)]
    numbers = [
        part for part in numbers if abs(part) < 10_000 and (part > 0 or shape.negative or (part == 0 and shape.zero))
    ]
    if not numbers:
        return None
    made = rng.choice(numbers)
    if isinstance(value, float) or ("float" in shape.kinds and rng.random() < 0.5):
        return float(made)
    return int(made) if float(made).is_integer() else None
