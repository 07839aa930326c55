"""Records of one size in shared memory, found by digest in a bounded number of steps.

A `Section` owns nothing: the memory is the table's, whose lock guards it.
"""

from __future__ import annotations

import mmap
from typing import Callable

PROBES = 16
"""Places in which a record may stand."""
DIGEST_BYTES = 16

_EMPTY = bytes(DIGEST_BYTES)


class Section:
    """Every record has PROBES places where it may stand. Used under the table's lock.

    The digests stand together, so that one search finds one; what is kept of the name is its digest of 128 bits.
    Records never move, so that where one was is where it is, until another one has taken its place.
    """

    @staticmethod
    def size(capacity: int, record_bytes: int) -> int:
        """How many bytes it takes."""
        return (capacity + PROBES) * (DIGEST_BYTES + record_bytes)

    def __init__(self, memory: mmap.mmap, start: int, capacity: int, record_bytes: int) -> None:
        self._memory = memory
        self._start = start
        self._capacity = capacity
        self._records = start + (capacity + PROBES) * DIGEST_BYTES
        self._record_bytes = record_bytes

    def holds(self, digest: bytes, at: int) -> bool:
        """Whether the record of `digest` is where it was."""
        where = self._start + at * DIGEST_BYTES
        return at >= 0 and self._memory[where : where + DIGEST_BYTES] == digest

    def find(self, digest: bytes) -> int:
        """Where the record of `digest` is; -1: there is none."""
        home = self._home(digest)
        where = self._start + home * DIGEST_BYTES
        at = _aligned(self._memory[where : where + PROBES * DIGEST_BYTES], digest)
        return at if at < 0 else home + at

    def claim(self, digest: bytes, busy_until_s: Callable[[int], float], now_s: float) -> tuple[int, bool]:
        """A place for a record that is not there yet, and whether something had to be forgotten for it that counts.

        `busy_until_s` says of a record's offset until when (infinity: do not touch it) it counts. The place is -1 when
        there is none. The caller makes the record at `offset` a fresh one and then gives it its name (`name`).
        """
        home = self._home(digest)
        where = self._start + home * DIGEST_BYTES
        at = _aligned(self._memory[where : where + PROBES * DIGEST_BYTES], _EMPTY)
        if at >= 0:
            return home + at, False
        until_s, at = min((busy_until_s(self.offset(at)), at) for at in range(home, home + PROBES))
        return (-1, False) if until_s == float("inf") else (at, until_s > now_s)

    def name(self, digest: bytes, at: int) -> None:
        """From now on the record there is that of `digest`."""
        where = self._start + at * DIGEST_BYTES
        self._memory[where : where + DIGEST_BYTES] = digest

    def offset(self, at: int) -> int:
        """Where the record's bytes begin."""
        return self._records + at * self._record_bytes

    def _home(self, digest: bytes) -> int:
        return int.from_bytes(digest[:8], "little") % self._capacity


def _aligned(window: bytes, digest: bytes) -> int:
    at = window.find(digest)
    while at > 0 and at % DIGEST_BYTES:
        at = window.find(digest, at + 1)
    return at // DIGEST_BYTES if at >= 0 else -1
