"""More of what a program may read, like what examples have it read: the same lines, with other numbers and words.

Runs inside the sandbox. A number that says how many things follow stays as it is, and so does their count. All
randomness comes from the `Random` given.
"""

from __future__ import annotations

import re
from random import Random
from typing import NamedTuple, Optional, Union

from gateway.verify.harness.domain import Hints, Shape  # in the sandbox this file stands before
from gateway.verify.harness.fuzz import Fuzz
from gateway.verify.harness.mining import Pool

FEED_CHARS_MAX, FEED_LINES_MAX, FEED_FIELDS_MAX = 2000, 40, 150  # longer ones are not varied: that would take long
COLUMNS_MAX = 3  # of lines whose fields mean different things; those of longer ones are alike
_TRIES_PER_FEED = 12
_INT = re.compile(r"-?(?:0|[1-9]\d{0,14})$")
_FLOAT = re.compile(r"-?\d{1,15}\.\d{1,15}$")
_FORM = re.compile(r"(?=.*\d[^\w\s]{1,3}\d)[^A-Za-z]+$")
_ORDERED = re.compile(r"\b\w{1,3}\b\s?(?:<=|≤|<|\\le)\s?\b[a-z]\w{0,2}\b")
_DISTINCT = re.compile(r"\b(?:distinct|unique|permutation|different)\b", re.I)
_LIKELY_INTS = (1, 2, 3, 4, 7, 10, 12, 25, 100)

Field = Union[int, float, str]


class Place(NamedTuple):
    """Where a field stands; those at equal places are alike."""

    role: int
    column: int
    kind: str


class Feeds:
    """Makes texts like the `known` ones. Not thread-safe."""

    def __init__(self, known: list[str], prompt: str, pool: Pool, sources: list[str], rng: Random) -> None:
        self._rng = rng
        self._fuzz = Fuzz(pool, rng, True)
        split = [[_fields(line) for line in text.splitlines()] for text in known if len(text) <= FEED_CHARS_MAX]
        self._known = [
            lines for lines in split if len(lines) <= FEED_LINES_MAX and sum(map(len, lines)) <= FEED_FIELDS_MAX
        ]
        self._by_line = len({len(lines) for lines in self._known}) == 1 and all(len(k) <= 3 for k in self._known)
        self._sources = sources
        self._hints = Hints(prompt)
        self._shapes: dict[Place, Shape] = {}
        for lines in self._known:
            for at, line in enumerate(lines):
                for column, value in enumerate(line):
                    self._shapes.setdefault(self._place(lines, at, column), Shape()).observe(value)
        for shape in self._shapes.values():
            shape.zero |= self._hints.zero
            shape.negative |= self._hints.negative
        self._is_bounded = bool(self._known) and all(map(_bounds, self._known))
        self._is_distinct = bool(_DISTINCT.search(prompt))
        pairs = [line for lines in self._known for line in lines if _is_pair(line)]
        ascending = all(line[0] <= line[1] for line in pairs)  # type: ignore[operator]
        self._is_ordered = ascending and (len(pairs) > 1 or bool(_ORDERED.search(prompt)))

        self._places = [self._free_and_fixed(lines) for lines in self._known]

    def more(self, most: int) -> list[str]:
        """Returns at most `most` texts that are not among the known ones, each once."""
        known = {_text(lines) for lines in self._known}
        found: dict[str, None] = {}
        made = self._small()
        for _ in range(most * _TRIES_PER_FEED):
            if len(found) >= most or not self._known:
                break
            lines = made.pop(0) if made else self._varied(self._rng.choice(self._known))
            text = None if lines is None else _text(lines)
            if text is not None and text not in known and len(text) <= 2 * FEED_CHARS_MAX:
                found[text] = None
        return list(found)

    def _small(self) -> list[Optional[list[list[Field]]]]:
        """Where one whole number is all there is, what is tried before anything random."""
        if not self._known or any(len(lines) != 1 or len(lines[0]) != 1 for lines in self._known):
            return []
        value = self._known[0][0][0]
        shape = self._shapes[self._place(self._known[0], 0, 0)]
        if shape.kinds != ["int"] or not isinstance(value, int):
            return []
        values = [*([0] if shape.zero else []), *([-1, -5] if shape.negative else []), *_LIKELY_INTS]
        values = [*values, value + 1, *([value - 1] if value > 1 else [])]
        return [[[number]] for number in values if number <= max(150, 2 * shape.largest)]

    def _place(self, lines: list[list[Field]], at: int, column: int) -> Place:
        role = at if self._by_line else min(at, 1)
        return Place(role, column if len(lines[at]) <= COLUMNS_MAX else 0, type(lines[at][column]).__name__)

    def _free_and_fixed(self, lines: list[list[Field]]) -> tuple[list[tuple[int, int]], set[tuple[int, int]]]:
        every = [(at, column) for at, line in enumerate(lines) for column in range(len(line))]
        free = [place for place in every if not self._is_fixed(lines, *place)]
        return free, set(every).difference(free)

    def _varied(self, lines: list[list[Field]]) -> Optional[list[list[Field]]]:
        rng = self._rng
        free, fixed = self._places[self._known.index(lines)]
        if not free:
            return None
        made = [list(line) for line in lines]
        for at, column in rng.sample(free, min(len(free), rng.choice((1, 1, 2, 3, len(free))))):
            value = self._other(lines, at, column)
            if value is None:
                return None
            made[at][column] = value
        for at, line in enumerate(made):
            self._arrange(line, at, fixed)
        if any(isinstance(lines[at][column], str) for at, column in free):  # of which there may be more words now
            if any(not _counts(made, at, column) for at, column in fixed if _counts(lines, at, column)):
                return None
        if self._is_bounded and _loops(made) and not _loops(lines):
            return None
        return None if self._is_distinct and _repeats(made, lines) else made

    def _arrange(self, line: list[Field], at: int, fixed: set[tuple[int, int]]) -> None:
        """Other orders, where there are several alike, and the order that has to be."""
        if _is_pair(line) and self._is_ordered:
            line.sort(key=float)
        if len(line) <= COLUMNS_MAX or any((at, column) in fixed for column in range(len(line))):
            return
        if self._hints.sorted and all(isinstance(value, int) for value in line):
            line.sort(key=int)
        elif self._rng.random() < 0.3:
            self._rng.shuffle(line)

    def _is_fixed(self, lines: list[list[Field]], at: int, column: int) -> bool:
        """Whether the field has to stay: it counts others, or is a word that programs know."""
        value = lines[at][column]
        if isinstance(value, str):
            several = len(lines) + len(lines[at]) > 2 and len(value) > 1
            return several and any(f"{mark}{value}{mark}" in source for source in self._sources for mark in "\"'")
        if isinstance(value, float):
            return False
        if at == 0:  # what only sometimes is the count is none
            same = [known for known in self._known if known and column < len(known[0])]
            if all(_counts(known, 0, column) for known in same):
                return True
            return self._is_bounded and value == _bounds(lines)
        return _counts(lines, at, column)

    def _other(self, lines: list[list[Field]], at: int, column: int) -> Optional[Field]:
        value, shape = lines[at][column], self._shapes[self._place(lines, at, column)]
        if isinstance(value, str):
            if _FORM.match(value):
                return self._renumbered(value)
            made = self._respelled(value, shape) if _has_length(lines, value) else self._fuzz.varied(value, shape)
            return made if isinstance(made, str) and _is_kept(made, value) else None
        if isinstance(value, float):
            digits = len(str(value).rpartition(".")[2])
            varied = self._fuzz.varied(value, shape)
            return round(varied, digits) if isinstance(varied, float) else None
        varied = self._fuzz.varied(value, shape)
        if not isinstance(varied, int):
            return None
        return self._in_bounds(varied, lines, at, value)

    def _in_bounds(self, made: int, lines: list[list[Field]], at: int, value: int) -> int:
        if at > 0:
            limit = _bounds(lines) if self._is_bounded else None
        else:  # the k of "n k", where n numbers follow
            counts = [v for c, v in enumerate(lines[0]) if isinstance(v, int) and v > 0 and _counts(lines, 0, c)]
            limit = max(counts) if counts and value <= max(counts) else None
        return made if limit is None or made <= limit else 1 + (made - 1) % limit

    def _renumbered(self, text: str) -> str:
        """A list, a date or the like with other numbers of as many digits, which in a date are not too large."""
        rng = self._rng

        def other(run: re.Match[str]) -> str:
            digits = run.group()
            if rng.random() < 0.4:
                return digits
            size = len(digits)
            least = 1 if digits[0] == "0" or size == 1 else 10 ** (size - 1)
            return str(rng.randint(least, max(least, 9 if size == 1 else int(digits)))).zfill(size)

        return re.sub(r"\d{1,15}", other, text)

    def _respelled(self, text: str, shape: Shape) -> str:
        rng, chars = self._rng, sorted(shape.chars)
        if rng.random() < 0.3:
            return "".join(rng.sample(text, len(text)))
        return "".join(rng.choice(chars) if rng.random() < 0.3 else char for char in text)


def _fields(line: str) -> list[Field]:
    """The line's numbers and words; a line of words only, or with other blanks between them, is one text."""
    parts = line.split(" ")
    values: list[Field] = [_value(part) for part in parts]
    texts = sum(isinstance(value, str) for value in values)
    if "" in parts or " ".join(map(str, values)) != line or (len(parts) > 1 and texts == len(parts)):
        return [line]
    return values


def _value(part: str) -> Field:
    return int(part) if _INT.match(part) and part != "-0" else float(part) if _FLOAT.match(part) else part


def _text(lines: list[list[Field]]) -> str:
    return "".join(" ".join(map(str, line)) + "\n" for line in lines)


def _words(line: list[Field]) -> list[str]:
    return " ".join(map(str, line)).split()


def _counts(lines: list[list[Field]], at: int, column: int) -> bool:
    """Whether the number there may say how many lines, numbers, words or characters follow."""
    value = lines[at][column]
    if not isinstance(value, int) or value < 1:
        return False
    rest = len(lines) - at - 1
    behind = len(lines[at]) - column - 1
    if value > 1 and value == behind:
        return True
    if not rest:
        return value > 1 and column + 1 < len(lines[at]) and value == len(str(lines[at][column + 1]))
    following = lines[at + 1]
    sizes = [len(line) for line in lines[at + 1 :]]
    run = next((index for index, size in enumerate(sizes) if size != sizes[0]), len(sizes))
    words = _words(following)
    counted = {rest, rest - 1, run, len(words), len(" ".join(words)), *(map(len, words[:1]))}
    counted.add(sum(len(_words(line)) for line in lines[at + 1 :]))
    return value in counted or (at == 0 and rest % value == 0 and len(lines[at]) == 1)


def _bounds(lines: list[list[Field]]) -> Optional[int]:
    """What the numbers of the further lines may be at most, where the first line seems to say so: ends of edges, places
    in a list."""
    head = [value for value in (lines[0] if lines else []) if isinstance(value, int)]
    body = [value for line in lines[1:] for value in line if isinstance(value, int)]
    rows = [line for line in lines[1:] if 1 < len(line) <= COLUMNS_MAX]
    if not head or not body or max(body) > max(head) or max(head) < 1 or not (len(head) > 1 or len(rows) > 1):
        return None
    return max(head)


def _is_pair(line: list[Field]) -> bool:
    return len(line) == 2 and all(isinstance(value, int) for value in line)


def _repeats(made: list[list[Field]], lines: list[list[Field]]) -> bool:
    """Whether a line has something twice that had nothing twice before."""
    return any(len(set(new)) < len(new) and len(set(old)) == len(old) for new, old in zip(made, lines) if len(new) > 2)


def _loops(lines: list[list[Field]]) -> bool:
    """Whether a row leads from something to itself, or says what another one says."""
    rows = [tuple(line[:2]) for line in lines[1:] if 1 < len(line) <= COLUMNS_MAX]
    return len({frozenset(row) for row in rows}) < len(rows) or any(row[0] == row[1] for row in rows)


def _has_length(lines: list[list[Field]], text: str) -> bool:
    """Whether it matters how long the text is: it is said, or others are as long."""
    numbers = {value for line in lines for value in line if isinstance(value, int)}
    alone = [len(line[0]) for line in lines if len(line) == 1 and isinstance(line[0], str)]
    return len(text) in numbers or (len(alone) > 1 and len(set(alone)) == 1)


def _is_kept(made: str, text: str) -> bool:
    """Whether a text can stand where another one stood: it is one word where that was, and one line."""
    if not made or made != made.strip() or len(made.splitlines()) != 1:
        return False
    return " " in text or not re.search(r"\s", made)
