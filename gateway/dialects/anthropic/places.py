"""Where thinking stands among an answer's texts and calls, which chat has no words for. Pure.

Anthropic verifies thinking that it is given back, and refuses a turn where it has been moved. So in chat a block of
thinking that does not come first says what it stands behind: `behind` lists what has come since the thinking before
it, a text by its characters and a call by a 0. What no thinking follows stands as chat has it: a text, then calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gateway.dialects.dialect import Json

PLACES_MAX = 1_024  # between two blocks of thinking: a stream may have any number
TEXT, THINKING, CALL = "text", "thinking", "call"


class Places:
    """What comes between one block of thinking and the next. One object per answer, one thread at a time."""

    __slots__ = ("_behind", "_in_text")

    def __init__(self) -> None:
        self._behind: list[int] = []
        self._in_text = False

    def block(self) -> None:
        """Another block begins."""
        self._in_text = False

    def text(self, words: str) -> None:
        """The block says this, or more of it."""
        if self._in_text or len(self._behind) >= PLACES_MAX:
            self._behind[-1] += len(words)
        elif words:
            self._behind.append(len(words))
            self._in_text = True

    def call(self) -> None:
        """The block is a call."""
        if len(self._behind) < PLACES_MAX:
            self._behind.append(0)

    def thinking(self) -> Json:
        """The block is thinking: what it says of its place."""
        behind, self._behind = self._behind, []
        return {"behind": behind} if behind else {}


def laid_out(
    thoughts: Sequence[Json], words: str, calls: Sequence[Json]
) -> tuple[list[tuple[str, Any]], str, Sequence[Json]]:
    """What an answer says up to its last thinking, in its order: texts, these thoughts and these calls, each with what
    it is; then the words and the calls that are left. Never raises; of what is not there, nothing is said."""
    laid: list[tuple[str, Any]] = []
    at = called = 0
    for thought in thoughts:
        behind = thought.get("behind")
        for length in behind if type(behind) is list else ():
            if type(length) is not int:
                continue
            if length == 0 and called < len(calls):
                laid.append((CALL, calls[called]))
                called += 1
            elif length > 0 and at < len(words):
                laid.append((TEXT, words[at : at + length]))
                at += length
        laid.append((THINKING, thought))
    return laid, words[at:], calls[called:]
