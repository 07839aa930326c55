"""Who holds places of one scope now, and for how long such places are held: when will one be free again?

Owns the start of every holding and an average of how long the ended ones lasted. It has no lock and reads no clock:
whoever owns a `Places` guards it and brings the time.
"""

from __future__ import annotations

WAIT_MIN_S = 1.0
"""Nobody is told to come back sooner: a second is short beside most answers and long beside a refusal."""
WEIGHT = 0.2
"""Of the latest holding in the average: some ten of them say what is usual."""


class Places:
    """The places that are held. Not thread-safe; times are seconds of one clock."""

    __slots__ = ("_next", "_started_s", "usual_s")

    def __init__(self) -> None:
        self.usual_s = 0.0
        """How long a place is held, an exponentially weighted average; 0 until one has been given back."""
        self._next = 0
        self._started_s: dict[int, float] = {}  # by number, so the oldest is first

    def __len__(self) -> int:
        """How many places are held."""
        return len(self._started_s)

    def take(self, now_s: float) -> int:
        """Hold a place; the number returned is for `give_back`."""
        number = self._next
        self._next = number + 1
        self._started_s[number] = now_s
        return number

    def give_back(self, number: int, now_s: float) -> float:
        """Hold it no longer; returns for how many seconds it was held."""
        held_s = max(now_s - self._started_s.pop(number), 0.0)
        self.usual_s = averaged(self.usual_s, held_s)
        return held_s

    def wait_s(self, now_s: float, usual_s: float = 0.0) -> float:
        """An estimate of the seconds until a place is given back, at least WAIT_MIN_S.

        What is left of the usual time to the one that is held longest. One that has outlived that is expected to last
        as long beyond it as it has so far, so that who comes back each time comes back ever less often. `usual_s` is
        for as long as nothing is known of these places themselves.
        """
        return self.wait_since_s(self.oldest_s(now_s), now_s, usual_s)

    def oldest_s(self, otherwise_s: float) -> float:
        """Since when the one is held that is held longest; `otherwise_s` when none is."""
        return next(iter(self._started_s.values()), otherwise_s)

    def wait_since_s(self, started_s: float, now_s: float, usual_s: float) -> float:
        """The same when the one that is held longest is held since `started_s`."""
        return max(abs((self.usual_s or usual_s) - (now_s - started_s)), WAIT_MIN_S)


def averaged(average_s: float, latest_s: float) -> float:
    """The exponentially weighted average with one more value; the first one is the average."""
    return latest_s if average_s == 0.0 else average_s + WEIGHT * (latest_s - average_s)
