"""The one file of state: keys, budgets and the usage ledger in an SQLite database.

Owns the thread `state-db`, which alone writes, and the bounded queue that feeds it: writes are gathered for at most
`flush_interval_s` and committed in one transaction, so a killed process loses less than its last second. The queue is a
deque and two events, whose single operations are atomic; the lock guards the two counters. Several processes may share
a file: SQLite's own locks keep them apart, and a write that could not be made is kept and made later.

A request never waits for this module and never fails by it: what cannot be written is counted and reported once.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional, TypeVar, Union

from gateway.state.file import StateDbError, connect, in_words, is_outside_cause, open_state_file, transaction

if TYPE_CHECKING:
    import sqlite3

__all__ = ["StateDb", "StateDbError", "Write"]

T = TypeVar("T")
Write = Callable[["sqlite3.Connection"], object]
"""Makes one change. Runs on the thread `state-db` inside a transaction: it must neither begin nor commit, and may run
again after a rollback.

Neighbours that have the same attribute `together`, a function of the connection and a list of them, are made by that:
each statement gives the interpreter's lock away, and waits to have it back.
"""

BATCH_WRITES = 5_000
IDLE_WAIT_S = 60.0


class StateDb:
    """Opens the state database at `path`, made when it is missing (readable by its owner only). Thread-safe.

    `on_error(message)` is called from the thread `state-db` when writing begins to fail, once until it works again.
    `max_pending` bounds the waiting writes; `busy_timeout_s` is how long one write waits for another process's lock.
    Raises StateDbError when the file cannot be opened or written, is no database, belongs to another program, or was
    written by a newer version.
    """

    def __init__(
        self,
        path: Union[str, Path],
        on_error: Optional[Callable[[str], None]] = None,
        *,
        max_pending: int = 32_768,
        flush_interval_s: float = 0.4,
        busy_timeout_s: float = 2.0,
    ) -> None:
        self.path = Path(path)
        self.dropped = 0
        """Writes given up: the queue was full, the write itself was faulty, or the database was closed."""
        self.errors = 0
        """Transactions and single writes that failed; one that is kept for later counts each time."""
        self._on_error = on_error
        self._max_pending = max_pending
        self._flush_interval_s = flush_interval_s
        self._busy_timeout_s = busy_timeout_s
        self._pending: deque[Write] = deque()
        self._urgent: deque[tuple[Write, Future[Any]]] = deque()
        self._wake = threading.Event()  # something waits to be written
        self._hurry = threading.Event()  # do not gather any longer
        self._closing = False
        self._failing: set[str] = set()  # what has been reported and not worked since; of the thread state-db
        self._lock = threading.Lock()
        self._writer = open_state_file(self.path, busy_timeout_s)
        self._changes = _Changes(self.path, busy_timeout_s)
        self._thread = threading.Thread(target=self._run, name="state-db", daemon=True)
        self._thread.start()

    def __enter__(self) -> StateDb:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def submit(self, write: Write) -> bool:
        """Have `write` made within a second; never blocks. False: it was dropped, because too many are waiting."""
        if len(self._pending) >= self._max_pending or self._closing:
            self._count(dropped=1)
            return False
        self._pending.append(write)
        if not self._wake.is_set():
            self._wake.set()
        return True

    def write_now(self, write: Callable[[sqlite3.Connection], T], timeout_s: float = 10.0) -> T:
        """Make `write` in a transaction of its own, after those submitted before, and return what it returned.

        On the disk when this returns. Raises what `write` raised (then nothing was changed), or StateDbError: it
        could not be written within `timeout_s`, or the database is closed.
        """
        if self._closing:
            raise StateDbError(f"{self.path}: is closed")
        future: Future[T] = Future()
        self._urgent.append((write, future))
        self._wake.set()
        self._hurry.set()
        try:
            return future.result(timeout_s)
        except FutureTimeout:
            if future.done() and not future.cancelled():
                raise  # from 3.11 on this is TimeoutError itself, which `write` may have raised
            if future.cancel():
                raise StateDbError(f"{self.path}: nothing could be written for {timeout_s:g} s") from None
        # It had begun: only its end tells whether it was made.
        try:
            return future.result(2 * self._busy_timeout_s + 1)
        except FutureTimeout:
            raise StateDbError(f"{self.path}: does not answer; the change may or may not be made") from None

    def read(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Every row of a query, as committed by now (what was submitted comes up to a second later).

        On a connection of its own, which costs about 0.1 ms: for administration, not for requests. Raises StateDbError.
        """
        if self._closing:
            raise StateDbError(f"{self.path}: is closed")
        try:
            with contextlib.closing(connect(self.path, self._busy_timeout_s, for_reading=True)) as connection:
                return connection.execute(sql, tuple(params)).fetchall()
        except Exception as error:  # also what no SQLite error stands for: a number too big, a surrogate
            raise StateDbError(f"{self.path}: cannot be read: {error}") from error

    def data_version(self) -> int:
        """A number that changes when anybody, in this process or another, has committed. Costs microseconds.

        Meant for one ticker; several callers wait for one another. That it cannot be told counts as a change.
        """
        return self._changes.version()

    def close(self, timeout_s: float = 5.0) -> bool:
        """Write what is waiting and close. True when everything was written within `timeout_s`. Idempotent."""
        self._closing = True
        self._hurry.set()
        self._wake.set()
        self._thread.join(timeout_s)
        self._changes.close()
        left = len(self._pending)
        self._pending.clear()
        self._count(dropped=left)
        return not left and not self._thread.is_alive()

    def _count(self, *, dropped: int = 0, errors: int = 0) -> None:
        with self._lock:
            self.dropped += dropped
            self.errors += errors

    # --- the thread state-db -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closing:
                if self._wake.wait(IDLE_WAIT_S):
                    self._hurry.wait(self._flush_interval_s)
                    self._flush()
            self._flush()
        finally:
            self._writer.close()

    def _flush(self) -> None:
        # Cleared first: what is appended from here on is either taken below or sets them again.
        self._wake.clear()
        self._hurry.clear()
        while self._pending:
            batch = [self._pending.popleft() for _ in range(min(len(self._pending), BATCH_WRITES))]
            if not self._commit(batch):
                self._pending.extendleft(reversed(batch))
                self._wake.set()
                break
        while self._urgent:
            write, future = self._urgent.popleft()
            if future.set_running_or_notify_cancel():
                self._commit_urgent(write, future)

    def _commit(self, batch: list[Write]) -> bool:
        """Make a batch. False when the disk or the file forbids it: then nothing was changed."""
        faults: list[Exception] = []
        try:
            try:
                with transaction(self._writer):
                    self._make(batch)
            except Exception as error:
                if is_outside_cause(error):
                    raise
                self._commit_one_by_one(batch, faults)
        except Exception as error:
            self._report("file", error)
            return False
        self._failing.discard("file")
        for fault in faults:
            self._count(dropped=1)
            self._report("write", fault)
        if not faults:
            self._failing.discard("write")
        return True

    def _make(self, batch: list[Write]) -> None:
        for together, writes in itertools.groupby(batch, _together_of):
            if together is not None:
                together(self._writer, list(writes))
                continue
            for write in writes:
                write(self._writer)

    def _commit_one_by_one(self, batch: list[Write], faults: list[Exception]) -> None:
        """Make a batch that holds a faulty write, each behind its own savepoint; notes the faults of those left out."""
        with transaction(self._writer):
            for write in batch:
                self._writer.execute("SAVEPOINT write")
                try:
                    write(self._writer)
                except Exception as error:
                    if is_outside_cause(error):
                        raise
                    self._writer.execute("ROLLBACK TO write")
                    faults.append(error)
                self._writer.execute("RELEASE write")

    def _commit_urgent(self, write: Write, future: Future[Any]) -> None:
        try:
            # Unlike a ledger row, a revoked key must outlive a power cut: FULL syncs this one commit.
            self._writer.execute("PRAGMA synchronous = FULL")
            try:
                with transaction(self._writer):
                    result = write(self._writer)
            finally:
                self._writer.execute("PRAGMA synchronous = NORMAL")
        except Exception as error:
            if is_outside_cause(error):
                self._report("file", error)
                error = StateDbError(f"{self.path}: {in_words(error)}")
            future.set_exception(error)
        else:
            self._failing.discard("file")
            future.set_result(result)

    def _report(self, cause: str, error: Exception) -> None:
        """Count a failure of the `file` or of one `write`, and report it unless that has been done."""
        self._count(errors=1)
        if self._on_error is None or cause in self._failing:
            return
        self._failing.add(cause)
        text = in_words(error) if cause == "file" else f"a write was left out: {type(error).__name__}: {error}"
        with contextlib.suppress(Exception):  # a reporter that fails must not end this thread
            self._on_error(f"{self.path}: {text}")


def _together_of(write: Write) -> Optional[Callable[[sqlite3.Connection, list[Write]], None]]:
    return getattr(write, "together", None)


class _Changes:
    """Notices commits of any process through a connection of its own, which the lock guards. Thread-safe.

    The lock is held while SQLite looks into its shared memory, which waits for nobody but for a recovery after a crash.
    """

    def __init__(self, path: Path, busy_timeout_s: float) -> None:
        self._path = path
        self._busy_timeout_s = busy_timeout_s
        self._lock = threading.Lock()
        self._connection: Optional[sqlite3.Connection] = None
        self._last: Optional[int] = None
        self._version = 0

    def version(self) -> int:
        with self._lock:
            now: Optional[int] = None
            try:
                if self._connection is None:
                    self._connection, self._last = connect(self._path, self._busy_timeout_s, for_reading=True), None
                # fetchall: an unfinished statement would hold on to an old snapshot.
                now = self._connection.execute("PRAGMA data_version").fetchall()[0][0]
            except Exception:
                self._close_locked()
            if now is None or now != self._last:
                self._last = now
                self._version += 1
            return self._version

    def close(self) -> None:
        with self._lock:
            self._close_locked()

    def _close_locked(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
