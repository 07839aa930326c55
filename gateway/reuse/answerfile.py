"""The file of answers: an SQLite database of its own, so that what was cached outlives the process.

`AnswerFile` owns the thread `cache-db`, which alone writes, what waits for it, and a connection for reading; what the
file holds is in `answerschema.py`. One lock guards what waits to be written and the counters, and is held for
dictionary operations only; another guards the connection for reading, and is held while an answer is read. Several
processes may share a file: SQLite's own locks keep them apart. A request is never kept waiting by a write and never
fails by one: what cannot be written is counted, said once, and tried again; what is too much is left out. The file
never shrinks; what has gone leaves room for what comes.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Optional

from gateway.reuse.answerschema import (
    ANSWER,
    GONE,
    PAGE,
    USED,
    AnswerFileError,
    Change,
    Indexed,
    connect_to_read,
    fault_in_words,
    indexed_in,
    is_damage,
    open_to_write,
    remove_all,
    stored_in,
    write,
)
from gateway.reuse.stored import Stored
from gateway.state.file import is_outside_cause

if TYPE_CHECKING:
    import sqlite3
else:
    try:
        import sqlite3
    except ImportError:  # a Python built without SQLite
        sqlite3 = None

__all__ = ["AnswerFile", "AnswerFileError"]

WRITE_INTERVAL_S = 0.3
RETRY_INTERVAL_S = 2.0
BUSY_TIMEOUT_S = 2.0
BATCH_CHANGES = 256
PAGE_ROWS = 256
WAITING_USES = 8_192
WAITING_ANSWERS = 16_384
WAITING_REMOVALS = 65_536
WAITING_BYTES = 64 * 1024 * 1024


class AnswerFile:
    """Opens the file of answers at `path`, made when it is missing (readable by its owner only). Thread-safe.

    `log(level, event, **fields)` is called from any thread when reading or writing begins to fail, once until it works
    again. Raises AnswerFileError when the file cannot be opened or written, is damaged or no database, belongs to
    another program, or was written by a newer version.
    """

    def __init__(self, path: Path, log: Callable[..., None]) -> None:
        self.dropped = 0
        """Answers and removals given up: too many were waiting, one was faulty, or the file was closed."""
        self.errors = 0
        """Transactions and reads that failed; one that is tried again counts each time."""
        self._path = path
        self._log = log
        self._failing: set[str] = set()
        self._lock = threading.Lock()
        self._waiting = _Waiting()
        self._writing = _Waiting()  # what the thread cache-db is at; read by `load`
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._reading = threading.Lock()
        self._writer = open_to_write(path, BUSY_TIMEOUT_S, WAITING_BYTES)
        self._reader: Optional[sqlite3.Connection] = None
        self._thread = threading.Thread(target=self._run, name="cache-db", daemon=True)
        self._thread.start()

    def index(self) -> Iterator[Indexed]:
        """What the file holds, least recently used first, each key once; broken rows are left out.

        Reads in pages on a connection of its own, so writers are never kept waiting: what is stored or removed
        meanwhile may be there or not. Ends early, counted and logged, where the file cannot be read. For the start, on
        a thread that may wait for the disk.
        """
        seen: set[bytes] = set()
        after = -1
        try:
            with contextlib.closing(connect_to_read(self._path, BUSY_TIMEOUT_S)) as connection:
                while True:
                    # fetchall: an unfinished statement would keep the log of writes from being put away.
                    rows = connection.execute(PAGE, (after, PAGE_ROWS)).fetchall()
                    for row in rows:
                        indexed = indexed_in(row)
                        if indexed is not None and indexed.key not in seen:
                            seen.add(indexed.key)
                            yield indexed
                    if len(rows) < PAGE_ROWS:
                        return
                    after = rows[-1][0]
        except sqlite3.Error as error:
            self._report("reading", error)

    def load(self, key: bytes) -> Optional[Stored]:
        """The answer stored as `key`; None when it has gone, is broken or cannot be read (counted and logged).

        What was put and is not yet written is found too. Blocks for some 0.1 ms, longer while the disk is busy: for a
        thread of its own. For any thread.
        """
        with self._lock:
            for waiting in (self._waiting, self._writing):
                change = waiting.changes.get(key)
                if isinstance(change, Stored):
                    return change
                if change is GONE or waiting.cleared:
                    return None
        try:
            with self._reading:
                if self._closing.is_set():
                    return None
                if self._reader is None:
                    self._reader = connect_to_read(self._path, BUSY_TIMEOUT_S)
                rows = self._reader.execute(ANSWER, (key,)).fetchall()
        except sqlite3.Error as error:
            self._report("reading", error)
            return None
        self._failing.discard("reading")
        return stored_in(key, *rows[0]) if rows else None

    def put(self, stored: Stored) -> None:
        """Have `stored` written within half a second, in the place of what has its key. Never blocks.

        Left out and counted in `dropped` when too many or too much are waiting, or after `close`: then what the file
        had as this key is removed, if that is still possible.
        """
        with self._lock:
            full = self._full(WAITING_ANSWERS, len(stored.body))
            self.dropped += full
            if self._full(WAITING_REMOVALS):
                return
            self._waiting.add(stored.key, GONE if full else stored)
        self._wake.set()

    def remove(self, keys: Sequence[bytes]) -> None:
        """Have the answers of `keys` removed within half a second, those put before included. Never blocks.

        Unknown keys are ignored. Counted in `dropped` when far too many changes are waiting, or after `close`.
        """
        with self._lock:
            for key in keys:
                if key not in self._waiting.changes and self._full(WAITING_REMOVALS):
                    self.dropped += 1
                else:
                    self._waiting.add(key, GONE)
        self._wake.set()

    def touch(self, keys: Sequence[bytes]) -> None:
        """Note that the answers of `keys` were used now, in this order, for the order of `index`. Never blocks.

        Does nothing for unknown keys, and when many changes are waiting.
        """
        with self._lock:
            for key in keys:
                known = self._waiting.changes.get(key)
                if known is not None:
                    self._waiting.add(key, known)
                elif not self._full(WAITING_USES):
                    self._waiting.add(key, USED)
        self._wake.set()

    def clear(self) -> None:
        """Have everything removed within half a second, but for what is put from now on. Never blocks."""
        with self._lock:
            self._waiting = _Waiting(cleared=True)
        self._wake.set()

    def close(self, timeout_s: float) -> None:
        """Write what is waiting and close; what is not written within `timeout_s` is counted as dropped. Idempotent."""
        with self._lock:
            self._closing.set()
        self._wake.set()
        self._thread.join(timeout_s)
        with self._lock:
            left = self._waiting.worth_counting() + (self._writing.worth_counting() if self._thread.is_alive() else 0)
            self.dropped += left
            self._waiting = _Waiting()
        with self._reading:
            if self._reader is not None:
                self._reader.close()
                self._reader = None

    def _full(self, changes: int, size_bytes: int = 0) -> bool:
        waiting, writing = self._waiting, self._writing
        too_many = len(waiting.changes) + len(writing.changes) >= changes
        too_much = size_bytes > 0 and waiting.size_bytes + writing.size_bytes + size_bytes > WAITING_BYTES
        return too_many or too_much or self._closing.is_set()

    def _report(self, doing: str, error: Exception) -> None:
        """Count a failure of "reading" or "writing", and log it unless that has been done."""
        with self._lock:
            self.errors += 1
            known = doing in self._failing
            self._failing.add(doing)
        if not known:
            with contextlib.suppress(Exception):  # a log that fails must not end the thread
                reason = fault_in_words(error) if doing == "writing" or is_damage(error) else f"cannot be read: {error}"
                self._log("error", "cache_db_failed", path=str(self._path), doing=doing, reason=reason)

    # --- the thread cache-db -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        pause_s = WRITE_INTERVAL_S
        try:
            while not self._closing.is_set():
                self._wake.wait()
                self._closing.wait(pause_s)
                self._wake.clear()  # first: what is added from here on is either taken below or sets it again
                if self._write_waiting():
                    pause_s = WRITE_INTERVAL_S
                else:
                    pause_s = RETRY_INTERVAL_S
                    self._wake.set()
            self._write_waiting()
        finally:
            self._writer.close()

    def _write_waiting(self) -> bool:
        """Write what is waiting. False when the disk or the file forbids it: then what is not written waits again."""
        with self._lock:
            self._writing, self._waiting = self._waiting, _Waiting()
        try:
            if self._writing.cleared:
                self._clear()
            while self._writing.changes:
                self._write_batch(self._writing.first(BATCH_CHANGES))
        except Exception as error:
            self._report("writing", error)
            with self._lock:
                self._waiting = self._waiting.after(self._writing)
                self._writing = _Waiting()
            return False
        return True

    def _clear(self) -> None:
        remove_all(self._writer)
        with self._lock:
            self._writing.cleared = False

    def _write_batch(self, batch: dict[bytes, Change]) -> None:
        dropped = 0
        try:
            dropped = write(self._writer, batch)
            self._failing.discard("writing")
        except Exception as error:
            if is_outside_cause(error):
                raise
            self._report("writing", error)
            dropped = len(batch)
        with self._lock:
            self.dropped += dropped
            self._writing.forget(batch)


class _Waiting:
    """Changes in the order they are to be made, the last one for each key. Not thread-safe."""

    def __init__(self, cleared: bool = False) -> None:
        self.cleared = cleared
        """Whether everything is to be removed first."""
        self.changes: dict[bytes, Change] = {}
        self.size_bytes = 0

    def add(self, key: bytes, change: Change) -> None:
        self.forget((key,))
        self.changes[key] = change
        self.size_bytes += _size_bytes(change)

    def forget(self, keys: Iterable[bytes]) -> None:
        for key in keys:
            self.size_bytes -= _size_bytes(self.changes.pop(key, GONE))

    def first(self, count: int) -> dict[bytes, Change]:
        return dict(itertools.islice(self.changes.items(), count))

    def after(self, earlier: _Waiting) -> _Waiting:
        """Both, as one: these after `earlier`."""
        if self.cleared:
            return self
        both = _Waiting(earlier.cleared)
        for key, change in itertools.chain(earlier.changes.items(), self.changes.items()):
            # A use does not take the place of what is to be written.
            both.add(key, both.changes.get(key, change) if change is USED else change)
        return both

    def worth_counting(self) -> int:
        return self.cleared + sum(change is not USED for change in self.changes.values())


def _size_bytes(change: Change) -> int:
    return len(change.body) + len(change.vector) if isinstance(change, Stored) else 0
