"""How much may pass, and when: the generic cell rate algorithm (GCRA).

Virtual scheduling, as in ITU-T I.371 and the ATM Forum's Traffic Management Specification 4.0 (af-tm-0056.000): all of
the past is one number, the theoretical arrival time (TAT) at which everything that passed would have been due at the
sustained rate. What would push it further ahead of the clock than the burst allows has to wait.

Owns one limit's state. It has no lock and reads no clock: whoever owns a Gcra guards it and brings the time, which must
not run backwards (monotonic seconds).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Optional

TOLERANCE_S = 1e-6
"""Forgives the rounding of clocks and floats, so that who comes back exactly when told to is not sent away again."""
NEVER_S = math.inf


class Decision(NamedTuple):
    """What became of an amount. `remaining`: how much more may pass at once now; `reset_s`: until all of the burst may;
    `retry_after_s`: until the same amount may pass, 0 when it did, infinity when it never can."""

    allowed: bool
    remaining: int
    reset_s: float
    retry_after_s: float


class Gcra:
    """Lets `rate_per_minute` units a minute pass, and at most `burst` of them at once. Not thread-safe.

    `largest` is the largest single amount that can ever pass (None: `burst`). One above `burst` passes when nothing
    before it is outstanding, and is then paid off at the rate. So in any window of w seconds no more than
    `rate_per_minute * w / 60 + max(burst, the window's last amount)` passes.
    Raises ValueError for a rate or burst that is not positive and finite.

        >>> limit = Gcra(60, burst=2)
        >>> [limit.try_take(1, now_s).allowed for now_s in (0.0, 0.0, 0.0, 1.0)]
        [True, True, False, True]
    """

    __slots__ = ("_interval_s", "_tolerance_s", "burst", "largest", "rate_per_minute", "tat_s")

    def __init__(self, rate_per_minute: float, burst: float, largest: Optional[float] = None) -> None:
        self.tat_s = -math.inf
        self._set(rate_per_minute, burst, largest)

    def _set(self, rate_per_minute: float, burst: float, largest: Optional[float]) -> None:
        if not (0 < rate_per_minute < math.inf and 0 < burst < math.inf):
            raise ValueError(f"a rate and a burst must be positive: {rate_per_minute} a minute, {burst} at once")
        self.rate_per_minute = rate_per_minute
        self.burst = burst
        self.largest = burst if largest is None else largest
        self._interval_s = 60.0 / rate_per_minute
        self._tolerance_s = burst * self._interval_s

    @property
    def burst_s(self) -> float:
        """For how many seconds the burst lasts at the rate: so far the TAT may be ahead."""
        return self._tolerance_s

    def resize(self, rate_per_minute: float, burst: float, largest: Optional[float], now_s: float) -> None:
        """Change the limit; what has passed and is not paid off yet stays so many units."""
        interval_s = self._interval_s
        self._set(rate_per_minute, burst, largest)
        self._stretch(self._interval_s / interval_s, now_s)

    def _stretch(self, ratio: float, now_s: float) -> None:
        self.tat_s = now_s + max(self.tat_s - now_s, 0.0) * ratio

    @property
    def interval_s(self) -> float:
        """Seconds for one unit at the sustained rate."""
        return self._interval_s

    def restore(self, tat_s: float, interval_s: float, now_s: float) -> None:
        """Take over what has passed elsewhere, where a unit took `interval_s` (0: nothing has passed)."""
        self.tat_s = tat_s
        if interval_s and interval_s != self._interval_s:
            self._stretch(self._interval_s / interval_s, now_s)

    def wait_s(self, amount: float, now_s: float) -> float:
        """Seconds until `amount` may pass if nothing else does meanwhile; 0: now; infinity: never. Takes nothing."""
        wait_s = self.tat_s - now_s
        if wait_s < 0.0:
            wait_s = 0.0
        if amount <= self.burst:
            wait_s += amount * self._interval_s - self._tolerance_s
        elif amount > self.largest:
            return NEVER_S
        return wait_s if wait_s > TOLERANCE_S else 0.0

    def take(self, amount: float, now_s: float) -> None:
        """Let `amount` pass, whatever `wait_s` says."""
        tat_s = self.tat_s
        self.tat_s = (tat_s if tat_s > now_s else now_s) + amount * self._interval_s

    def use_up(self, now_s: float) -> None:
        """Let nothing more pass at once: what has passed is not known."""
        left = self.remaining(now_s)
        if left:
            self.take(left, now_s)

    def try_take(self, amount: float, now_s: float) -> Decision:
        """Let `amount` pass if it may."""
        wait_s = self.wait_s(amount, now_s)
        if wait_s == 0.0:
            self.take(amount, now_s)
        return Decision(wait_s == 0.0, self.remaining(now_s), self.reset_s(now_s), wait_s)

    def remaining(self, now_s: float, tat_s: Optional[float] = None) -> int:
        """How many units may pass at once now, of those within the burst. `tat_s`: instead of the TAT as it is."""
        ahead_s = (self.tat_s if tat_s is None else tat_s) - now_s
        room_s = self._tolerance_s + TOLERANCE_S - (ahead_s if ahead_s > 0.0 else 0.0)
        return int(room_s / self._interval_s) if room_s > 0.0 else 0

    def reset_s(self, now_s: float) -> float:
        """Seconds until the whole burst may pass again."""
        return max(self.tat_s - now_s, 0.0)


class _Mark:
    """A TAT, that of all reservations from number `first` on. `gap_s`: how much later it is than that of the next mark.
    `open_count`: those open from there up to the next mark."""

    __slots__ = ("first", "gap_s", "open_count")

    def __init__(self, first: int, open_count: int) -> None:
        self.first = first
        self.gap_s = 0.0
        self.open_count = open_count


class TokenGcra(Gcra):
    """A GCRA for amounts that are estimated first and known later. Not thread-safe.

    `reserve` takes an estimate, `settle` corrects it as if the real amount had been taken then. Merely lowering the TAT
    would not do: had a reservation been smaller, the limit might have been idle since, and what cannot be saved up
    would be handed out again. A refund goes down to the TAT that those after the reservation would have made alone,
    and no further. That is what marks are for. They differ only where arrivals outran the rate, so there is mostly one;
    there are never more than open reservations and one. What is taken moves them all, and a refund those up to one, so
    only their gaps are kept: with a thousand open reservations, too, either touches but one or two.
    """

    __slots__ = ("_last_s", "_marks", "_next", "open_count")

    def __init__(self, rate_per_minute: float, burst: float, largest: Optional[float] = None) -> None:
        super().__init__(rate_per_minute, burst, largest)
        self.open_count = 0  # reservations that are not settled yet; the owner may not forget them
        self._next = 0
        self._marks: list[_Mark] = []  # the first one's TAT is that of the whole; they fall strictly ...
        self._last_s = 0.0  # ... to this one of the last

    def _stretch(self, ratio: float, now_s: float) -> None:
        for mark in self._marks:
            mark.gap_s *= ratio
        self._last_s = now_s + (self._last_s - now_s) * ratio
        super()._stretch(ratio, now_s)

    def state(self) -> tuple[float, ...]:
        """The last mark's TAT, the next number, and three numbers for each mark: what `restore_marks` needs."""
        state: tuple[float, ...] = (self._last_s, self._next)
        for mark in self._marks:
            state += (mark.first, mark.gap_s, mark.open_count)
        return state

    def restore_marks(self, state: Sequence[Any], tat_s: float, interval_s: float, now_s: float) -> None:
        """Take over a `state`, of another one or of this one before. `open_count` stays that of the reservations made
        here."""
        self._last_s, self._next = state[0], state[1]
        self._marks = restored = []
        for at in range(2, len(state), 3):
            mark = _Mark(state[at], state[at + 2])
            mark.gap_s = state[at + 1]
            restored.append(mark)
        self.restore(tat_s, interval_s, now_s)

    def squeeze(self, count: int) -> None:
        """Have at most `count` marks, one or more. What was exact before now lets as much pass or less, never more.

        What goes is the mark that differs least from the one after it: that one's TAT is raised to it. So refunds of
        its own reservations, which belong to the mark before from now on, stop a little sooner; those of the first
        mark have none before, and are refunded nothing.
        """
        marks = self._marks
        while len(marks) > count:
            at = min(range(len(marks) - 1), key=lambda i: marks[i].gap_s)
            dropped = marks.pop(at)
            if at:
                marks[at - 1].open_count += dropped.open_count
            if at < len(marks) - 1:
                marks[at].gap_s += dropped.gap_s
            else:
                self._last_s += dropped.gap_s

    def take(self, amount: float, now_s: float) -> None:
        """Let `amount` pass for good, whatever `wait_s` says."""
        self._add(amount, now_s, 0)

    def reserve(self, amount: float, now_s: float) -> int:
        """Let `amount` pass for the time being, whatever `wait_s` says; the number returned is for `settle`."""
        self.open_count += 1
        return self._add(amount, now_s, 1)

    def _add(self, amount: float, now_s: float, open_count: int) -> int:
        number = self._next
        self._next = number + 1
        marks = self._marks
        amount_s = amount * self._interval_s
        if self.tat_s <= now_s:  # nothing is left of the past
            self.tat_s = self._last_s = now_s + amount_s
            if len(marks) == 1:
                mark = marks[0]
                mark.first, mark.open_count = number, open_count
            else:
                marks[:] = (_Mark(number, open_count),)
            return number
        while len(marks) > 1 and self._last_s <= now_s:
            marks[-2].open_count += marks.pop().open_count
            self._last_s += marks[-1].gap_s
        last = marks[-1]
        if last.open_count:
            last.gap_s = self._last_s - now_s
            self._last_s = now_s + amount_s
            marks.append(_Mark(number, open_count))
        else:  # there is no refund that would have to stop here
            last.open_count = open_count
            self._last_s += amount_s
        self.tat_s += amount_s
        return number

    def become(self, tat_s: float) -> None:
        """Take over a TAT that is decided elsewhere; what is reserved here has no refund any more."""
        self.tat_s = self._last_s = tat_s
        self._marks[:] = (_Mark(self._next, 0),)

    def settle(self, number: int, reserved: float, real: float, now_s: float) -> None:
        """Correct the reservation `number` of `reserved` units to `real` ones; once each.

        Units beyond the estimate count as taken at `now_s`, and may make others wait longer than the burst.
        """
        self.open_count -= 1
        marks = self._marks
        low, high = 0, len(marks)
        while low < high:
            middle = (low + high) // 2
            if marks[middle].first <= number:
                low = middle + 1
            else:
                high = middle
        at = low - 1
        if at >= 0:  # else nothing is left of it
            marks[at].open_count -= 1
            if real < reserved:
                at = self._lower(at, (reserved - real) * self._interval_s)
            if at >= 0 and not marks[at].open_count:
                self._merge(at)
        if real > reserved:
            self.take(real - reserved, now_s)

    def _lower(self, at: int, by_s: float) -> int:
        """Lower the marks up to `at`, but the TAT not below that of the next mark; returns where `at` is then."""
        marks = self._marks
        if at == len(marks) - 1:
            self._last_s -= by_s
            self.tat_s -= by_s
            return at
        while at >= 0 and marks[at].gap_s <= by_s:
            lowered = marks.pop(at)
            by_s -= lowered.gap_s
            self.tat_s -= lowered.gap_s
            at -= 1
            if at >= 0:
                marks[at].open_count += lowered.open_count
        if at >= 0:
            marks[at].gap_s -= by_s
            self.tat_s -= by_s
        return at

    def _merge(self, at: int) -> None:
        """Drop the mark after `at`, where no refund has to stop any more."""
        marks = self._marks
        if at + 1 < len(marks):
            dropped = marks.pop(at + 1)
            marks[at].open_count = dropped.open_count
            if at + 1 < len(marks):
                marks[at].gap_s += dropped.gap_s
            else:
                self._last_s += marks[at].gap_s
