"""What the shared table says of keys, addresses, models and of everybody, as records.

`ScopeRecords` owns nothing: the memory is the table's, and all but `write_places` needs its lock. A scope's record is a
word, how long its places are usually held, a column for each process, and twice what has passed: what is written goes
where nobody reads, and then the word says that it counts. The word also stands before and behind what it speaks of, so
that two processes which wrote at once, one of which the others had taken for dead, are found out.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Optional

from gateway.limits.sharedtable import BODY_BYTES, MARKS_MAX, PLACES, SCOPE_HEAD_BYTES, SharedTable

Passed = tuple[Any, ...]
"""What has passed: the TAT and the interval of the limit of requests, the same of tokens, and `TokenGcra.state` of the
latter. An interval of 0: nothing has."""

NUMBERS = 6
"""Of what has passed, before the marks."""
_BODIES = tuple(struct.Struct("=Qdddddq" + "qdq" * marks + "Q") for marks in range(MARKS_MAX + 1))
_UNPACK = tuple(body.unpack_from for body in _BODIES)
_PACK = tuple(body.pack_into for body in _BODIES)
_WORD = struct.Struct("=Q")
_LONG_AGO = -float("inf")
_HELD = float("inf")


class ScopeRecords:
    """Reads and writes the records of scopes and addresses of a table."""

    def __init__(self, table: SharedTable) -> None:
        self.table = table
        self._memory = table.memory
        self._words = table.words
        self._section = table.scopes
        self._addresses = table.addresses
        self._columns_at = SCOPE_HEAD_BYTES
        self._bodies_at = SCOPE_HEAD_BYTES + table.columns * PLACES.size
        self._no_places = bytes(table.columns * PLACES.size)

    # --- scopes ------------------------------------------------------------------------------------------------------

    def find(self, digest: bytes, at: int) -> int:
        """Where the record is, which was `at` when it was last found (-1: it was not); -1: there is none. Of a record
        in which this process holds places no lock is needed: it stays where it is."""
        return at if self._section.holds(digest, at) else self._section.find(digest)

    def claim(self, digest: bytes, now_s: float) -> int:
        """Make a fresh record; returns where it is, or -1: all that might make room have places held."""
        at, forgot = self._section.claim(digest, self._busy_until_s, now_s)
        if at >= 0:
            offset = self._section.offset(at)
            self.table.words[offset // 8] = 0
            self.table.doubles[offset // 8 + 1] = 0.0
            self._memory[offset + self._columns_at : offset + self._bodies_at] = self._no_places
            self._section.name(digest, at)
        self.table.count(forgotten=forgot)
        return at

    def nothing(self) -> Passed:
        """What a fresh record says. Its numbers are above all that were ever given before."""
        return (_LONG_AGO, 0.0, _LONG_AGO, 0.0, 0.0, self.table.new_numbers())

    def _busy_until_s(self, offset: int) -> float:
        if self._held(offset, self.table.others())[0] or self._own_held(offset):
            return _HELD
        passed = self._passed(offset)
        return _LONG_AGO if passed is None else float(max(passed[0], passed[2]))

    def read(self, at: int) -> Optional[Passed]:
        """What has passed; None: it cannot be told any more."""
        return self._passed(self._section.offset(at))

    def _passed(self, offset: int) -> Optional[Passed]:
        word: int = self._words[offset // 8]
        if not word:
            return self.nothing()
        which = word & 1
        body = self._body(offset, word, which)
        if body is None:  # what stood there before is the next best
            (word,) = _WORD.unpack_from(self._memory, offset + self._bodies_at + (1 - which) * BODY_BYTES)
            body = self._body(offset, word, 1 - which)
        return body if body is None else body[1:-1]

    def _body(self, offset: int, word: int, which: int) -> Optional[tuple[Any, ...]]:
        marks = word >> 1 & 0x7F
        if not word or marks > MARKS_MAX or word & 1 != which:
            return None
        body = _UNPACK[marks](self._memory, offset + self._bodies_at + which * BODY_BYTES)
        return body if body[0] == word == body[-1] else None

    def write(self, at: int, passed: Passed) -> None:
        """Say what has passed. What is interrupted has not been said."""
        offset = self._section.offset(at)
        before = self._words[offset // 8]
        which = 1 - (before & 1)
        marks = (len(passed) - NUMBERS) // 3
        word = ((before >> 8) + 1) << 8 | marks << 1 | which
        _PACK[marks](self._memory, offset + self._bodies_at + which * BODY_BYTES, word, *passed, word)
        self._words[offset // 8] = word

    # --- places ------------------------------------------------------------------------------------------------------

    def read_places(self, at: int) -> tuple[int, float, float]:
        """How many places other processes hold, since when the oldest of them (infinity: none), and how long places are
        usually held."""
        offset = self._section.offset(at)
        held, oldest_s = self._held(offset, self.table.others())
        return held, oldest_s, self.table.doubles[offset // 8 + 1]

    def read_usual_s(self, at: int) -> float:
        """How long places are usually held. One word, for which no lock is needed."""
        return self.table.doubles[self._section.offset(at) // 8 + 1]

    def write_places(self, at: int, held: int, oldest_s: float, usual_s: float) -> None:
        """Say how many this process holds. Needs no lock where it holds places already: the column is its own."""
        offset = self._section.offset(at)
        table = self.table
        own = offset + self._columns_at + table.column * PLACES.size
        PLACES.pack_into(self._memory, own, table.generation, held, oldest_s)
        table.doubles[offset // 8 + 1] = usual_s

    def _held(self, offset: int, others: Sequence[tuple[int, int]]) -> tuple[int, float]:
        held, oldest_s = 0, _HELD
        start = offset + self._columns_at
        for column, generation in others:
            written, count, since_s = PLACES.unpack_from(self._memory, start + column * PLACES.size)
            if count and written == generation:
                held += count
                oldest_s = min(oldest_s, since_s)
        return held, oldest_s

    def _own_held(self, offset: int) -> bool:
        table = self.table
        own = offset + self._columns_at + table.column * PLACES.size
        generation, count, _ = PLACES.unpack_from(self._memory, own)
        return bool(generation == table.generation and count)

    # --- addresses ---------------------------------------------------------------------------------------------------

    def read_address(self, digest: bytes) -> Optional[float]:
        """The TAT of an address; None: nothing is known of it. One word, which cannot be torn."""
        at = self._addresses.find(digest)
        return None if at < 0 else self.table.doubles[self._addresses.offset(at) // 8]

    def write_address(self, digest: bytes, tat_s: float, now_s: float) -> None:
        """Say it. An address for which there is no room takes the place of the one that waits the shortest."""
        addresses, doubles = self._addresses, self.table.doubles
        at = addresses.find(digest)
        if at >= 0:
            doubles[addresses.offset(at) // 8] = tat_s
            return
        at, forgot = addresses.claim(digest, lambda offset: doubles[offset // 8], now_s)
        doubles[addresses.offset(at) // 8] = tat_s
        addresses.name(digest, at)
        self.table.count(forgotten=forgot)
