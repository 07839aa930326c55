"""One table in memory for all processes of a gateway: what limits and budgets have let pass.

The parent makes it (`SharedTable.create`), hands the descriptor on to its children (ENVIRONMENT says how) and never
looks at it. `SharedTable` owns a process's mapping of it, its one lock, and its column: what is counted per process
(places held) has a column for each, which no other process writes.

**The lock** is one of this process's threads and, inside it, one of the file: one for all records, held for some
microseconds, so that a request that needs several of them cannot deadlock. The kernel frees it when its holder dies.
One that stands still (SIGSTOP) keeps it, so nobody waits for longer than PAUSES while nobody takes a turn: who has
waited in vain moves all processes on to the next lock (`_EPOCH` says which one counts), and who was left behind sees by
`overtaken` that what it was about to write is out of date. Who gets no turn for WAIT_MAX_S goes on without a lock, and
counts that.

**A process may die anywhere.** What a record says is written beside what it said before, and then one word makes it
count; or it is one word itself. A word is written whole, by one instruction.

**A column's holder is dead** when its lock in the file can be taken. Then the column's generation moves on, and what
was written in it anywhere no longer counts.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, MutableMapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple, Optional

from gateway.limits.filelocks import FileLocks
from gateway.limits.records import DIGEST_BYTES, Section

ENVIRONMENT = "INFERENCE_GATEWAY_LIMITS"
"""The environment variable that tells a child the number of the descriptor which it has inherited."""

SCOPES_MAX = 32_768
"""Keys and models of which something may be known."""
ADDRESSES_MAX = 65_536
BUDGETS_MAX = 16_384
MARKS_MAX = 16
"""Marks of a limit of tokens that a record has room for; see `TokenGcra.squeeze`."""

PAUSES = (0.0,) * 20 + (1e-4,) * 30 + (1e-3,) * 95
"""Between tries to take the lock, seconds (0: let others run): some 100 ms, and never less than 145 turns, so that
where the machine is busy, or all are slowed down, hardly anybody is taken for one that stands still who does not."""
WAIT_MAX_S = 1.0
"""For so long a process waits while others take their turns, or stand still one after the other; then it goes on
without a lock."""
TRIES_MIN = 100
"""But it tries so often at least: it may have been stopped itself meanwhile."""

_MAGIC = int.from_bytes(b"IGlimit1", "little")  # to be changed with the layout: a child may be of another version
_COLUMNS, _EPOCH, _CREATED, _USUAL, _MOVED, _ALONE, _FORGOTTEN, _TORN, _TURN, _SALT = range(1, 11)  # words; salt has 2
_GENERATIONS = 16
_LOCK = 1 << 24  # numbers in the file: the lock of epoch 0, and of column 0
_COLUMN = 1 << 20

COLUMNS_A_SLOT, COLUMNS_MORE = 3, 4
"""A slot that is replaced while what it had before still drains has three processes."""

FACTORS = 3
"""Numbers that each column publishes in the header."""
PLACES = struct.Struct("=IId")
"""A column of a scope: its generation, places held, since when the oldest (monotonic seconds)."""
RESERVED = struct.Struct("=IIdd")
"""A column of a budget: the same, and what is reserved (USD)."""
SCOPE_HEAD_BYTES, BUDGET_HEAD_BYTES = 16, 24
"""Before the columns of a record."""
BODY_BYTES = 8 * 9 + 24 * MARKS_MAX


class SharedTableError(RuntimeError):
    """The table cannot be made, or is not one that this version understands."""


class _Layout(NamedTuple):
    """Where everything is, in bytes."""

    factors: int
    addresses: int
    scopes: int
    budgets: int
    size: int
    scope_bytes: int
    budget_bytes: int

    @classmethod
    def of(cls, columns: int) -> _Layout:
        scope_bytes = SCOPE_HEAD_BYTES + columns * PLACES.size + 2 * BODY_BYTES
        budget_bytes = BUDGET_HEAD_BYTES + columns * RESERVED.size
        factors = 8 * (_GENERATIONS + columns)
        addresses = _page(factors + 8 * FACTORS * columns)
        scopes = _page(addresses + Section.size(ADDRESSES_MAX, 8))
        budgets = _page(scopes + Section.size(SCOPES_MAX, scope_bytes))
        size = _page(budgets + Section.size(BUDGETS_MAX, budget_bytes))
        return cls(factors, addresses, scopes, budgets, size, scope_bytes, budget_bytes)


class SharedTable:
    """A process's view of the table. Thread-safe; `with table:` holds its lock, which must not be taken twice.

    `fd`: what `create` has made; it is this object's from now on, and must not be closed by anybody else (see
    `filelocks`). `locks`: the file's locks. Raises SharedTableError for a file that is none of its kind, and when there
    are more processes than columns.
    """

    def __init__(self, fd: int, locks: Optional[FileLocks] = None) -> None:
        self._fd = fd
        self._locks = locks or FileLocks(fd)
        self._thread_lock = threading.Lock()
        size = os.fstat(fd).st_size
        if size < mmap.PAGESIZE:
            raise SharedTableError("the shared table of limits is no such table")
        self.memory = mmap.mmap(fd, size)
        self._view = memoryview(self.memory)
        self.words = self._view.cast("Q")
        self.doubles = self._view.cast("d")
        self.columns = self.words[_COLUMNS]
        layout = _Layout.of(self.columns if self.words[0] == _MAGIC else 0)
        if self.words[0] != _MAGIC or size != layout.size:
            self.close()
            raise SharedTableError("the shared table of limits was made by another version: restart the gateway")
        self._factors = layout.factors // 8
        salt = self.memory[8 * _SALT : 8 * _SALT + 16]
        self.digest_of = lru_cache(16_384)(lambda kind, name: _digest(salt, kind, name))
        """The digest of a name (bytes) of some kind, keyed so that nobody outside can choose where records stand."""
        self.addresses = Section(self.memory, layout.addresses, ADDRESSES_MAX, 8)
        self.scopes = Section(self.memory, layout.scopes, SCOPES_MAX, layout.scope_bytes)
        self.budgets = Section(self.memory, layout.budgets, BUDGETS_MAX, layout.budget_bytes)
        self._held = -1
        self._others: tuple[bytes, list[tuple[int, int]]] = (b"", [])
        self.generation = 0
        """Of this process's column, as it is written in records."""
        self.column = self._claim_column()

    # --- made, handed on ---------------------------------------------------------------------------------------------

    @staticmethod
    def create(slots: int) -> int:
        """Make a table for `slots` processes and twice as many that drain meanwhile; returns its descriptor.

        For the parent, which keeps it open, hands it to each child (`pass_fds=[fd]`, or inheritable before exec) with
        its number in the child's environment as ENVIRONMENT, and does nothing else with it. Memory is taken as it is
        used, at most 42 MB for two processes and 81 MB for 16. Raises OSError; Windows has no use for it.
        """
        columns = COLUMNS_A_SLOT * slots + COLUMNS_MORE
        size = _Layout.of(columns).size
        fd = _anonymous_file()
        try:
            os.ftruncate(fd, size)
            with mmap.mmap(fd, size) as memory, memoryview(memory) as view, view.cast("Q") as words:
                words[_COLUMNS] = columns
                memory[8 * _SALT : 8 * _SALT + 16] = os.urandom(16)
                words[0] = _MAGIC
        except BaseException:
            os.close(fd)
            raise
        return fd

    @property
    def slots(self) -> int:
        """For how many processes it was made."""
        return int((self.columns - COLUMNS_MORE) // COLUMNS_A_SLOT)

    @classmethod
    def inherited(cls, environ: MutableMapping[str, str]) -> Optional[SharedTable]:
        """The table that the parent has handed to this process; None: there is no parent, it is for itself.

        Takes ENVIRONMENT out, and keeps the descriptor from programs that this process starts. Raises SharedTableError.
        """
        text = environ.pop(ENVIRONMENT, None)
        if text is None:
            return None
        try:
            fd = int(text)
            os.set_inheritable(fd, False)
        except (ValueError, OSError) as error:
            raise SharedTableError(f"{ENVIRONMENT}: no descriptor has the number {text!r}") from error
        return cls(fd)

    def close(self) -> None:
        """Give back the column, and unmap it: nothing of this process counts any more. Not while it is used."""
        self.doubles.release()
        self.words.release()
        self._view.release()
        self.memory.close()
        os.close(self._fd)  # and with it all locks

    # --- the lock ----------------------------------------------------------------------------------------------------

    def __enter__(self) -> SharedTable:
        self._thread_lock.acquire()
        try:
            words = self.words
            epoch: int = words[_EPOCH]
            if self._locks.take(_LOCK + epoch):
                if words[_EPOCH] == epoch:
                    words[_TURN] += 1
                    self._held = epoch
                    return self
                self._locks.free(_LOCK + epoch)
            self._held = self._wait()
        except BaseException:  # the table has been closed: that must not become a wait without an end
            self._thread_lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        held, self._held = self._held, -1
        if held >= 0:
            self._locks.free(_LOCK + held)
        self._thread_lock.release()

    def overtaken(self) -> bool:
        """Whether the others went on without this process, which stood still with the lock: what it knows is old."""
        held = self._held
        return held >= 0 and bool(self.words[_EPOCH] != held)

    def _wait(self) -> int:
        """Wait for the lock; returns its epoch, or -1: without it."""
        words, locks = self.words, self._locks
        until_s, tries = time.monotonic() + WAIT_MAX_S, 0
        while tries < TRIES_MIN or time.monotonic() < until_s:
            epoch, turn = words[_EPOCH], words[_TURN]
            for pause_s in PAUSES:
                time.sleep(pause_s)
                tries += 1
                if locks.take(_LOCK + epoch):
                    if words[_EPOCH] == epoch:
                        words[_TURN] += 1
                        return int(epoch)
                    locks.free(_LOCK + epoch)
                if words[_EPOCH] != epoch or words[_TURN] != turn:
                    break  # the others go on: it is only this one that had no luck
            else:
                # Whoever holds it stands still. Only the holder of the next lock may make it the one that counts.
                if locks.take(_LOCK + epoch + 1):
                    if words[_EPOCH] == epoch:
                        words[_MOVED] += 1
                        words[_TURN] += 1
                        words[_EPOCH] = epoch + 1
                        return int(epoch + 1)
                    locks.free(_LOCK + epoch + 1)
        words[_ALONE] += 1
        return -1

    # --- columns -----------------------------------------------------------------------------------------------------

    def _claim_column(self) -> int:
        for _ in range(100):
            for column in range(self.columns):
                if self._locks.take(_COLUMN + column):
                    with self:
                        self._advance(column, 1)
                        self.generation = int(self.words[_GENERATIONS + column]) & 0xFFFFFFFF
                        self.publish((1.0,) * FACTORS, column)
                    return column
            time.sleep(0.001)  # somebody may just be looking whether one is free
        columns = self.columns
        self.close()
        raise SharedTableError(f"all {columns} columns of the shared table of limits are taken by other processes")

    def _advance(self, column: int, odd: int) -> None:
        generation = self.words[_GENERATIONS + column]
        self.words[_GENERATIONS + column] = generation + 1 + ((generation + 1) % 2 != odd)

    def sweep(self) -> int:
        """Let what processes have held that are gone count no longer; returns how many. Call it now and then."""
        gone = 0
        for column in range(self.columns):
            generation = self.words[_GENERATIONS + column]
            if column == self.column or generation % 2 == 0 or not self._locks.take(_COLUMN + column):
                continue
            with self:
                if self.words[_GENERATIONS + column] == generation:
                    self._advance(column, 0)
                    gone += 1
            self._locks.free(_COLUMN + column)
        return gone

    def generations(self) -> Sequence[int]:
        """Of each column; odd: somebody has it. What was written in one under another generation does not count."""
        return self.words[_GENERATIONS : _GENERATIONS + self.columns].tolist()

    def others(self) -> list[tuple[int, int]]:
        """The columns that other processes have, and their generations as they are written in records."""
        written = self.memory[8 * _GENERATIONS : 8 * (_GENERATIONS + self.columns)]
        known, others = self._others
        if written != known:
            generations, own = enumerate(self.generations()), self.column
            others = [(column, one & 0xFFFFFFFF) for column, one in generations if one % 2 and column != own]
            self._others = written, others
        return others

    def is_first(self) -> bool:
        """Whether this process has the first column that anybody has: of all processes one."""
        return not any(generation % 2 for generation in self.generations()[: self.column])

    def publish(self, factors: Sequence[float], column: Optional[int] = None) -> None:
        """Say what this process would multiply limits by."""
        at = self._factors + FACTORS * (self.column if column is None else column)
        for index, factor in enumerate(factors):
            self.doubles[at + index] = factor

    def lowest_factors(self) -> list[float]:
        """The lowest of what the living processes have published."""
        living = [self._factors + FACTORS * i for i, generation in enumerate(self.generations()) if generation % 2]
        return [min(self.doubles[at + index] for at in living) for index in range(FACTORS)]

    # --- what all records have in common -----------------------------------------------------------------------------

    def new_numbers(self) -> int:
        """Where a fresh record begins to count its reservations: above the last 2**31 times that one was, refused
        requests included, so that these numbers stay within 63 bits."""
        self.words[_CREATED] = (self.words[_CREATED] + 1) & 0x7FFFFFFF
        return int(self.words[_CREATED]) << 32

    def count(self, forgotten: int = 0, torn: int = 0) -> None:
        """Count records that were forgotten although they counted, for want of a place, or that nobody could read."""
        self.words[_FORGOTTEN] += forgotten
        self.words[_TORN] += torn

    @property
    def usual_s(self) -> float:
        """How long a place is usually held; 0: nobody knows yet."""
        return float(self.doubles[_USUAL])

    @usual_s.setter
    def usual_s(self, value: float) -> None:
        self.doubles[_USUAL] = value

    def counts(self) -> Mapping[str, int]:
        """`moved`: how often all went on without one that stood still with the lock; `alone`: how often a process went
        on without a lock; `forgotten`: records that counted and had to make room; `torn`: that nobody could read."""
        words = self.words
        counted = {"moved": _MOVED, "alone": _ALONE, "forgotten": _FORGOTTEN, "torn": _TORN}
        return {name: words[word] for name, word in counted.items()}


def _digest(salt: bytes, kind: str, name: bytes) -> bytes:
    return blake2b(name, digest_size=DIGEST_BYTES, key=salt, person=kind.encode("ascii")).digest()


def _page(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def _anonymous_file() -> int:
    if sys.platform.startswith("linux") and hasattr(os, "memfd_create"):
        return os.memfd_create("gateway-limits", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
