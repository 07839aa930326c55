"""A circuit breaker: an engine that keeps failing is left alone for a while, then tried with one request.

It asks and tells, it never calls: `admit` gives a ticket, `record` takes it back with the outcome. A ticket from
before the last change of state is ignored, so that a late outcome cannot overwrite newer knowledge. Guarded by the
pool's lock; time comes in as monotonic seconds.

Every request is one outcome. A complete answer or a failure counts when it has ended. A stream counts as good from its
first event on (`answer`), also when it is the trial: it may go on for minutes, and what it has shown is known now. If
it breaks later (`broke`), that counts as one failure at that moment, and what it was counted as good is taken back: an
engine that breaks all its streams has failed every time, not every other time.
"""

from __future__ import annotations

from typing import NamedTuple, Optional

CLOSED, HALF_OPEN, OPEN = 0, 1, 2
STATE_NAMES = ("closed", "half_open", "open")
BUCKETS = 10


class BreakerPolicy(NamedTuple):
    """When a breaker opens and for how long.

    It opens when at least `min_requests` outcomes of the last `window_s` seconds are known and `failure_ratio` of
    them are failures, or when twice `min_requests` in a row were failures; the first time for `open_s` seconds, then
    twice as long each time its trial fails, up to `max_open_s`. Example: BreakerPolicy(window_s=30, min_requests=5,
    failure_ratio=0.5) opens at the third failure of five outcomes, and after 1 000 good ones at the tenth failure in a
    row: at the ratio alone, a busy engine that breaks down would fail requests for half a window first, and use up the
    budget of retries.
    """

    window_s: float = 30.0
    min_requests: int = 5
    failure_ratio: float = 0.5
    open_s: float = 5.0
    max_open_s: float = 60.0


class Breaker:
    """State of one engine's breaker: closed (requests pass), open (none does), half-open (exactly one does)."""

    __slots__ = (
        "_bucket",
        "_buckets",
        "_failures",
        "_open_s",
        "_policy",
        "_run",
        "_total",
        "state",
        "ticket",
        "trials",
        "until_s",
    )

    def __init__(self, policy: BreakerPolicy) -> None:
        self._policy = policy
        self._open_s = policy.open_s
        self.state = CLOSED
        self.ticket = 0  # changes with every change of state
        self.trials = 0  # half-open: requests under way, one but for last resorts
        self.until_s = 0.0  # open: until when
        self._forget()

    def _forget(self) -> None:
        self._bucket = -1
        self._buckets: list[tuple[int, int, int]] = []  # (number, outcomes, failures), oldest first
        self._total = 0
        self._failures = 0
        self._run = 0  # failures since the last good outcome

    @property
    def state_name(self) -> str:
        """`closed`, `half_open` or `open`."""
        return STATE_NAMES[self.state]

    def passes(self, now_s: float) -> bool:
        """Whether a request would be admitted now."""
        if self.state == CLOSED:
            return True
        return now_s >= self.until_s and not self.trials

    def admit(self, now_s: float) -> int:
        """Let a request through; the ticket is for `record`. The caller has asked `passes`, or goes through regardless
        (the last engine is never ejected)."""
        if self.state == OPEN and now_s >= self.until_s:
            self._change(HALF_OPEN)
        if self.state == HALF_OPEN:
            self.trials += 1
        return self.ticket

    def record(self, ticket: int, failed: Optional[bool], now_s: float) -> None:
        """Tell how the request with this ticket ended; None = nothing was learned (it was cancelled)."""
        if ticket != self.ticket:
            return
        if self.state == HALF_OPEN:
            self.trials -= 1
            if failed is None:
                return
            if failed:
                self._open_s = min(self._open_s * 2, self._policy.max_open_s)
                self._open(now_s)
            else:
                self._open_s = self._policy.open_s
                self._forget()
                self._change(CLOSED)
        elif failed is not None:
            if self.state == CLOSED:
                self._count(failed, now_s)
            elif not failed:  # asked although it was open, as the last engine there is: it is well again
                self._open_s = self._policy.open_s
                self._forget()
                self._change(CLOSED)

    def answer(self, ticket: int, now_s: float) -> tuple[int, int]:
        """The first event of a stream has come: record a good outcome, and return what `broke` takes if it breaks.

        That is a ticket of the state that this outcome led to, and the number of the bucket that counts it (-1: none).
        """
        counted = ticket == self.ticket and self.state == CLOSED
        current = ticket == self.ticket
        self.record(ticket, False, now_s)
        return (self.ticket if current else ticket), (self._bucket if counted else -1)

    def hear(self, left_s: Optional[float], now_s: float) -> None:
        """Somebody else has found it open, for so many seconds more, but no longer than a breaker ever is; None:
        closed. What runs there counts no more."""
        if left_s is not None:
            left_s = min(left_s, self._policy.max_open_s)
            self.until_s = max(now_s + left_s, self.until_s if self.state == OPEN else now_s)
            self._open_s = max(self._open_s, left_s)
        elif self.state == CLOSED:
            return
        else:
            self._open_s = self._policy.open_s
        self._forget()
        self._change(CLOSED if left_s is None else OPEN)

    def broke(self, ticket: int, bucket: int, now_s: float) -> None:
        """A stream whose first event had come has broken: it failed now, and was not good then.

        Ignored when the state has changed since that event. Until then it is closed: a good outcome closes it.
        """
        if ticket != self.ticket:
            return
        if bucket == self._bucket:
            self._total -= 1
        else:
            self._buckets = [(n, total - (n == bucket), failures) for n, total, failures in self._buckets]
        self._count(True, now_s)

    def _count(self, failed: bool, now_s: float) -> None:
        policy = self._policy
        number = int(now_s * BUCKETS / policy.window_s)
        if number != self._bucket:
            self._turn(number)
        self._total += 1
        if not failed:
            self._run = 0
            return
        self._failures += 1
        self._run += 1
        outcomes = self._total + sum(bucket[1] for bucket in self._buckets)
        failures = self._failures + sum(bucket[2] for bucket in self._buckets)
        by_ratio = outcomes >= policy.min_requests and failures >= policy.failure_ratio * outcomes
        if by_ratio or self._run >= 2 * policy.min_requests:
            self._open(now_s)

    def _turn(self, number: int) -> None:
        if self._total:
            self._buckets.append((self._bucket, self._total, self._failures))
        self._buckets = [bucket for bucket in self._buckets if bucket[0] > number - BUCKETS]
        self._bucket = number
        self._total = 0
        self._failures = 0

    def _open(self, now_s: float) -> None:
        self.until_s = now_s + self._open_s
        self._forget()
        self._change(OPEN)

    def _change(self, state: int) -> None:
        self.state = state
        self.ticket += 1
        self.trials = 0


class RetryBudget:
    """At most `ratio` of the requests of the last `window_s` seconds may be retries, but always `least` of them.

    So a dying fleet is not hammered, and a small one still fails over. Guarded by the pool's lock.
    """

    __slots__ = ("_least", "_ratio", "_requests", "_retries", "_second", "_window_s")

    def __init__(self, ratio: float = 0.2, least: int = 10, window_s: int = 10) -> None:
        self._ratio = ratio
        self._least = least
        self._window_s = window_s
        self._second = 0
        self._requests = [0] * window_s  # per second, a ring
        self._retries = [0] * window_s

    def request(self, now_s: float) -> None:
        """Count a request's first try."""
        second = int(now_s)
        if second != self._second:
            self._turn(second)
        self._requests[second % self._window_s] += 1

    def take(self, now_s: float) -> bool:
        """Take one retry; False when there is none left."""
        second = int(now_s)
        if second != self._second:
            self._turn(second)
        if sum(self._retries) + 1 > max(self._least, self._ratio * sum(self._requests)):
            return False
        self._retries[second % self._window_s] += 1
        return True

    def _turn(self, second: int) -> None:
        """A second begins (or an older one is asked about, which counts in its own place)."""
        for passed in range(max(self._second + 1, second - self._window_s + 1), second + 1):
            self._requests[passed % self._window_s] = 0
            self._retries[passed % self._window_s] = 0
        self._second = max(second, self._second)
