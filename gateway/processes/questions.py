"""Questions that a process has put to the others, and what has been answered.

`Questions` owns those that somebody waits for. Its lock guards them and is never held while anybody waits.
"""

from __future__ import annotations

import threading
from typing import Any, Optional


class Question:
    """One that somebody waits for. Its fields are guarded by the lock of its Questions, but for the events."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.answers: list[Any] = []
        self.left: Optional[int] = None  # still to come; None: the parent has not said how many
        self.done = threading.Event()
        self.silent: Optional[int] = None  # who has left something instead; None: the parent has not said
        self.late = threading.Event()  # it has, or there is no parent


class Questions:
    """All of them. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[int, Question] = {}
        self._last = 0

    def begin(self) -> Question:
        """Another one, whose answers are taken until `end`."""
        with self._lock:
            self._last += 1
            question = self._open[self._last] = Question(self._last)
        return question

    def end(self, question: Question, others: int) -> tuple[list[Any], int]:
        """Nobody waits any more: its answers, and how many have given none; of `others` all, if nothing was said."""
        with self._lock:
            self._open.pop(question.number, None)
            if question.silent is not None:
                return question.answers, question.silent
            return question.answers, others if question.left is None else max(0, question.left)

    def answered(self, number: int, answers: list[Any]) -> None:
        """One of those who were asked has given these, which may be none."""
        with self._lock:
            question = self._open.get(number)
            if question is None:  # too late
                return
            question.answers += answers
            if question.left is not None:
                question.left -= 1
                if question.left <= 0:
                    question.done.set()

    def due(self, number: int, count: int) -> None:
        """So many will answer, or have."""
        with self._lock:
            question = self._open.get(number)
            if question is not None:
                question.left = count
                if count <= 0:
                    question.done.set()

    def late(self, number: int, count: int) -> None:
        """So many have not, and what they have left has been given instead."""
        with self._lock:
            question = self._open.get(number)
            if question is not None:
                question.silent = count
                question.late.set()

    def over(self) -> None:
        """Nobody answers any more."""
        with self._lock:
            questions = list(self._open.values())
        for question in questions:
            question.done.set()
            question.late.set()
