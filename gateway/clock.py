"""Wall-clock time, read here and nowhere else, and whether it has jumped.

An operator or a time service may set the wall clock by hours or years, in either direction. So it says only what must
be told or compared in calendar time: dates, the ends of keys and tokens, budgets' periods. How long something lasts is
measured in monotonic seconds. Owns no lock; a `JumpWatch` is for one thread.
"""

from __future__ import annotations

import time
from typing import Callable, Optional

Clock = Callable[[], float]

JUMP_S = 10.0
"""Less is no jump: time services correct the clock by milliseconds, and a busy machine delays between two readings."""

_read: Clock = time.time  # a test turns this, and with it the clock of everything


def unix_s() -> float:
    """Seconds since 1970 by the wall clock, which may jump in either direction. 0.1 us."""
    return _read()


class JumpWatch:
    """Tells jumps of the wall clock by the monotonic one.

    `clock` gives Unix seconds, `monotonic` monotonic ones. On Linux these stand still while a machine sleeps: waking up
    looks like a jump, as it should to whoever asks for how long the clock has been seen to be right.
    """

    def __init__(self, clock: Optional[Clock] = None, monotonic: Clock = time.monotonic) -> None:
        self._clock = clock or unix_s
        self._monotonic = monotonic
        self._since_s = monotonic()
        self._offset_s = self._clock() - self._since_s

    def look(self) -> float:
        """By how many seconds the clock has jumped since the last look (negative: back); 0.0: not at all."""
        now_s = self._monotonic()
        jump_s = self._clock() - now_s - self._offset_s
        if abs(jump_s) < JUMP_S:
            return 0.0
        self._offset_s += jump_s
        self._since_s = now_s
        return jump_s

    def steady_s(self) -> float:
        """For how many monotonic seconds it has run without a jump, at most since this was made. Looks, too."""
        self.look()
        return self._monotonic() - self._since_s
