"""When the next request is to be sent: in a closed loop when an answer has come, in an open one at its time.

A schedule is asked `due` (is there a request to send now, and since when), then `take`; `done` tells it that an answer
has come. Times are nanoseconds from the start of what counts; those of the warm-up are below 0. Without a clock, a
socket or a lock: for one thread. What an open loop has to send and cannot is not kept anywhere: its next time just
stays in the past, so a server that stalls costs no memory, and every request behind it knows when it was due.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from random import Random
from typing import Optional

from gateway.tools.loadtest.durations import NS

BACKOFF_NS, BACKOFF_MAX_NS = NS // 10, 2 * NS  # of a caller who cannot connect


class Schedule:
    """What both have. `limit`: of requests in all, None without."""

    def __init__(self, limit: Optional[int]) -> None:
        self.left = limit

    def due(self, now_ns: int) -> Optional[int]:
        """When the next request was due, if that is not in the future."""
        next_ns = self.next_ns()
        return None if next_ns is None or next_ns > now_ns else next_ns

    def next_ns(self) -> Optional[int]:
        """When the next request is due; None: that is not known, or there is none."""
        raise NotImplementedError

    def take(self) -> None:
        """Send the one that is due."""
        if self.left is not None:
            self.left -= 1

    def done(self, now_ns: int, connected: bool) -> None:
        """A request has ended; with `connected` False, since there was no connecting."""

    def over(self, now_ns: int) -> bool:
        """Whether no request will be due any more."""
        raise NotImplementedError

    def late(self, before_ns: int) -> int:
        """Give up what was due before that time; returns how many requests."""
        return 0


class ClosedLoop(Schedule):
    """So many callers, each of whom asks, waits for the answer, thinks, and asks again, until the end."""

    def __init__(
        self,
        callers: int,
        begin_ns: int,
        end_ns: Optional[int],
        limit: Optional[int] = None,
        think_ns: tuple[int, int] = (0, 0),
        chance: Optional[Random] = None,
    ) -> None:
        super().__init__(limit)
        self._callers = callers
        self._ready_ns = [begin_ns] * callers
        self._end_ns = end_ns
        self._think_ns = think_ns
        self._chance = chance or Random(0)
        self._failures = 0

    def next_ns(self) -> Optional[int]:
        if not self._ready_ns or self.left == 0:
            return None
        return self._ready_ns[0]

    def due(self, now_ns: int) -> Optional[int]:
        return None if self._end_ns is not None and now_ns >= self._end_ns else super().due(now_ns)

    def take(self) -> None:
        super().take()
        heapq.heappop(self._ready_ns)

    def done(self, now_ns: int, connected: bool) -> None:
        pause_ns = 0
        if not connected:
            pause_ns = min(BACKOFF_MAX_NS, BACKOFF_NS << min(self._failures // self._callers, 5))
            self._failures += 1
        else:
            self._failures = 0
            if self._think_ns[1]:
                pause_ns = self._chance.randint(*self._think_ns)
        heapq.heappush(self._ready_ns, now_ns + pause_ns)

    def over(self, now_ns: int) -> bool:
        return self.left == 0 or (self._end_ns is not None and now_ns >= self._end_ns)


class OpenLoop(Schedule):
    """Requests at their times, whatever comes of them."""

    def __init__(self, times: Iterator[int], limit: Optional[int] = None) -> None:
        super().__init__(limit)
        self._times = times
        self._next_ns = next(times, None)

    def next_ns(self) -> Optional[int]:
        return None if self.left == 0 else self._next_ns

    def take(self) -> None:
        super().take()
        self._next_ns = next(self._times, None)

    def over(self, now_ns: int) -> bool:
        return self.next_ns() is None

    def late(self, before_ns: int) -> int:
        count = 0
        while (next_ns := self.next_ns()) is not None and next_ns < before_ns:
            self.take()
            count += 1
        return count
