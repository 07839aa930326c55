"""The virtual clock, and what is to happen when. One thread, no I/O."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Any, Callable

BEGIN_S = 1000.0  # by the virtual clock: some of what is simulated takes 0 for never


class Events:
    """What is to happen, the earliest first; of two at one time, the one that was said first.

    `heap` and `number` are for those who cannot afford a call: (time, number, what, of whom).
    """

    def __init__(self) -> None:
        self.now_s = BEGIN_S
        self.heap: list[tuple[float, int, Callable[[Any], object], Any]] = []
        self.number = 0

    def clock(self) -> float:
        """Virtual seconds."""
        return self.now_s

    def at(self, when_s: float, what: Callable[[Any], object], whom: Any) -> None:
        """Have `what(whom)` called then."""
        self.number = number = self.number + 1
        heappush(self.heap, (when_s, number, what, whom))

    def until(self, when_s: float) -> None:
        """Let everything happen that is due by then; it is then, after that."""
        heap = self.heap
        while heap and heap[0][0] <= when_s:
            self.now_s, _, what, whom = heappop(heap)
            what(whom)
        self.now_s = when_s
