"""Whether a text has a match of an ECMA-262 pattern, found in time linear in the text whatever the pattern.

Thompson's construction, followed for all ways at once; what was found out is kept as states of a deterministic
automaton (see Russ Cox, "Regular Expression Matching Can Be Simple And Fast"). A `Pattern` may be used by several
threads at once: what they add to its states is the same whoever adds it, and each addition is one step.

Owns the count of what all patterns of the process keep, `ALL_KEPT_MAX` and one more state at most; its lock guards
that, and is held for no search.
"""

from __future__ import annotations

import threading
import weakref
from typing import Callable, Optional, Union

from gateway.schemas.charsets import WORD, CharSet
from gateway.schemas.patternsyntax import Assertion, Chain, Choice, Repeated, Tree, parse

KEPT_MAX = 20_000
"""Kept of a pattern before all is forgotten: transitions, and places of states. 70 to 170 bytes each: 1.4 to 3.4 MB."""
ALL_KEPT_MAX = 200_000
"""The same for all patterns of the process: 14 to 34 MB."""
_STATE = 10  # what a state without places counts

_BEGINNING, _IN_WORD, _OUTSIDE = range(3)  # what stands before a place
_END = ""  # the character behind the last
_WORD_SET = 0


class _Fork(tuple[int, ...]):
    """Where several ways go on from here."""


class _State(dict[str, "_State"]):
    """Where all ways stand after some text, and where each character leads that was met there.

    `by_kind` says the same for kinds of characters: those that are in the same of the pattern's sets.
    """

    __slots__ = ("before", "by_kind", "places")

    def __init__(self, places: frozenset[int], before: int) -> None:
        super().__init__()
        self.places = places
        self.before = before
        self.by_kind: dict[frozenset[int], _State] = {}


_MATCHED = _State(frozenset(), _BEGINNING)
_FAILED = _State(frozenset(), _BEGINNING)


class _Kept:
    """Counts what patterns keep, and has them forget it beyond the bounds. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders: weakref.WeakSet[Pattern] = weakref.WeakSet()
        self._count = 0  # with what patterns had that are gone, until all forget

    def add(self, pattern: Pattern, count: int) -> None:
        """Note that a pattern keeps so much more."""
        with self._lock:
            self._holders.add(pattern)
            pattern.kept += count
            self._count += count
            if self._count > ALL_KEPT_MAX:
                for holder in self._holders:
                    holder.forget()
                self._holders.clear()
                self._count = 0
            elif pattern.kept > KEPT_MAX:
                self._count -= pattern.kept
                pattern.forget()


_KEPT = _Kept()


class Pattern:
    """A pattern, compiled. Raises PatternFaulty or PatternUnsupported. Thread-safe."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._sets: dict[CharSet, int] = {WORD: _WORD_SET}
        # A set's number, an assertion, or a fork: the first two lead to the next place. Behind the last is the match.
        self._program: list[Union[int, Assertion, _Fork]] = []
        self._states: dict[tuple[frozenset[int], int], _State] = {}
        self._add(parse(text))
        kinds = {step.kind for step in self._program if isinstance(step, Assertion)}
        self._minds_words = bool(kinds & {"b", "B"})
        self._minds_beginning = "^" in kinds
        self.forget()

    @property
    def size(self) -> int:
        """How many steps the program has: what one character costs at most."""
        return len(self._program)

    def search(self, text: str, spend: Callable[[int], None]) -> bool:
        """Whether the pattern matches anywhere in `text`.

        `spend` is told what it costs, in about half a microsecond each, before and while it is done, and may raise.
        """
        spend(1 + (len(text) >> 3))
        state = self._first
        for character in text:
            following = state.get(character)
            if following is None:
                following = self._follow(state, character, spend)
            state = following
            if state is _MATCHED:
                return True
        return self._at_end(state, spend)

    def forget(self) -> None:
        """Drop what was found out; searches that are under way go on."""
        states, self._states = self._states, {}
        while states:  # they lead to each other, so that nothing else frees them at once
            state = states.popitem()[1]
            state.clear()
            state.by_kind.clear()
        self._kinds: dict[str, frozenset[int]] = {}
        self._first = _State(frozenset(), _BEGINNING)
        self.kept = 0

    def _follow(self, state: _State, character: str, spend: Callable[[int], None]) -> _State:
        """The state that a character leads to. Keeps nothing when `spend` raises, so that all that is kept counts."""
        spend(1)
        kind, added = self._kinds.get(character), 1
        if kind is None:
            spend(2 * len(self._sets))
            kind = frozenset(number for one, number in self._sets.items() if one.has(character))
            added += len(kind)
        following = state.by_kind.get(kind)
        if following is None:
            following = made = self._step(state, kind, spend)
            if made is not _MATCHED:
                following = self._states.setdefault((made.places, made.before), made)
                if following is made:
                    added += _STATE + len(made.places)
        self._kinds[character] = kind
        state.by_kind[kind] = state[character] = following
        _KEPT.add(self, added)
        return following

    def _at_end(self, state: _State, spend: Callable[[int], None]) -> bool:
        following = state.get(_END)
        if following is None:
            matched = len(self._program) in self._reach(state, None, spend)
            following = state[_END] = _MATCHED if matched else _FAILED
        return following is _MATCHED

    def _step(self, state: _State, kind: frozenset[int], spend: Callable[[int], None]) -> _State:
        reached = self._reach(state, kind, spend)
        if len(self._program) in reached:
            return _MATCHED
        places = frozenset(place + 1 for place in reached if self._program[place] in kind)
        before = _BEGINNING  # where nobody asks, fewer states
        if self._minds_words or self._minds_beginning:
            before = _IN_WORD if self._minds_words and _WORD_SET in kind else _OUTSIDE
        return _State(places, before)

    def _reach(self, state: _State, kind: Optional[frozenset[int]], spend: Callable[[int], None]) -> set[int]:
        """Every place that a way comes to before it takes a character (None: the end); a match may begin anywhere."""
        reached: set[int] = set()
        waiting = [0, *state.places]
        while waiting:
            place = waiting.pop()
            if place in reached:
                continue
            reached.add(place)
            if place == len(self._program):
                break
            step = self._program[place]
            if isinstance(step, _Fork):
                waiting.extend(step)
            elif isinstance(step, Assertion) and _holds(step.kind, state.before, kind):
                waiting.append(place + 1)
        spend(1 + len(reached))
        return reached

    def _add(self, tree: Tree) -> None:
        program = self._program
        if isinstance(tree, Chain):
            for part in tree.parts:
                self._add(part)
        elif isinstance(tree, Choice):
            self._add_choice(tree)
        elif isinstance(tree, Repeated):
            for _ in range(tree.least):
                self._add(tree.part)
            if tree.most is None:
                start = self._add_fork()
                self._add(tree.part)
                program.append(_Fork([start]))
                self._lead(start, [start + 1, len(program)])
            else:
                starts = []
                for _ in range(tree.most - tree.least):
                    starts.append(self._add_fork())
                    self._add(tree.part)
                for start in starts:
                    self._lead(start, [start + 1, len(program)])
        elif isinstance(tree, CharSet):
            program.append(self._sets.setdefault(tree, len(self._sets)))
        else:
            program.append(tree)

    def _add_choice(self, tree: Choice) -> None:
        fork = self._add_fork()
        ends, starts = [], []
        for part in tree.parts:
            starts.append(len(self._program))
            self._add(part)
            ends.append(self._add_fork())
        self._lead(fork, starts)
        for end in ends:
            self._lead(end, [len(self._program)])

    def _add_fork(self) -> int:
        self._program.append(_Fork())
        return len(self._program) - 1

    def _lead(self, place: int, targets: list[int]) -> None:
        self._program[place] = _Fork(targets)


def _holds(kind: str, before: int, following: Optional[frozenset[int]]) -> bool:
    if kind == "^":
        return before == _BEGINNING
    if kind == "$":
        return following is None
    at_boundary = (before == _IN_WORD) != (following is not None and _WORD_SET in following)
    return at_boundary == (kind == "b")
