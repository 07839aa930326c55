"""The file under the state database: its schema, opening it, and what its errors mean.

Owns the schema (versioned by `PRAGMA user_version`), how a connection is opened, and the words for what SQLite says. It
keeps no connection and no state, and has no lock: SQLite's own file locks keep several processes apart. It never makes
an empty file in the place of one that was deleted, and never changes a database of another program. What holds for any
SQLite file of this gateway takes the error to raise as an argument.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

try:
    import sqlite3
except ImportError:  # a Python built without SQLite: everything works but this file
    sqlite3 = None  # type: ignore[assignment]

APPLICATION_ID = 0x49475721

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE keys (
            name TEXT PRIMARY KEY NOT NULL, digest BLOB NOT NULL UNIQUE, role TEXT NOT NULL, models TEXT NOT NULL,
            rpm INTEGER, tpm INTEGER, concurrency INTEGER, budget_usd REAL, budget_period TEXT, priority TEXT,
            created_unix_s REAL NOT NULL, expires_unix_s REAL, revoked_unix_s REAL,
            previous_digest BLOB, previous_valid_until_unix_s REAL)""",
        """CREATE TABLE ledger (
            ts_unix_s REAL NOT NULL, key TEXT, model TEXT, engine TEXT, prompt_tokens INTEGER,
            completion_tokens INTEGER, cost_usd REAL, latency_s REAL, status INTEGER, request_id TEXT)""",
        "CREATE INDEX ledger_ts ON ledger (ts_unix_s)",
        """CREATE TABLE budget (
            key TEXT NOT NULL, period_start_unix_s REAL NOT NULL, spent_usd REAL NOT NULL,
            PRIMARY KEY (key, period_start_unix_s))""",
        # The ledger changes the file all the time; this says cheaply whether the keys changed, whoever changed them.
        "CREATE TABLE generation (subject TEXT PRIMARY KEY NOT NULL, value INTEGER NOT NULL)",
        "INSERT INTO generation VALUES ('keys', 0)",
        *(
            f"CREATE TRIGGER keys_{event.lower()} AFTER {event} ON keys"
            " BEGIN UPDATE generation SET value = value + 1 WHERE subject = 'keys'; END"
            for event in ("INSERT", "UPDATE", "DELETE")
        ),
    ),
    (
        # A list of [digest in hexadecimal, good until], for each rotation has a grace of its own. The two columns that
        # held the last one stay, unused: older SQLites cannot drop a column.
        "ALTER TABLE keys ADD COLUMN previous_keys TEXT NOT NULL DEFAULT '[]'",
        """UPDATE keys SET previous_keys = '[["' || hex(previous_digest) || '", ' || previous_valid_until_unix_s || ']]'
            WHERE previous_digest IS NOT NULL AND previous_valid_until_unix_s IS NOT NULL""",
        "UPDATE keys SET previous_digest = NULL, previous_valid_until_unix_s = NULL",
    ),
    # The error's code: a stream that broke has status 200.
    ("ALTER TABLE ledger ADD COLUMN error TEXT",),
    # The region that what a key asks must not leave.
    ("ALTER TABLE keys ADD COLUMN residency TEXT",),
)
"""What makes schema N + 1 out of schema N, statement by statement. Only ever appended to."""

# SQLite's words for what is wrong with the file or the disk rather than with a write (Python 3.9 shows no error code).
_OUTSIDE_CAUSES = (
    "locked",
    "readonly",
    "disk is full",
    "disk i/o",
    "unable to open",
    "malformed",
    "not a database",
    "out of memory",
    "locking protocol",
)


class StateDbError(Exception):
    """The state database cannot be used; the text names the file and the reason."""


def state_file_exists(path: Path) -> bool:
    """Whether there is anything at `path`; raises StateDbError when that cannot be told."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError as error:  # a directory that may not be searched, a name that is too long
        raise StateDbError(f"{path}: cannot be opened: {error.strerror or error}") from error
    return True


def holds_keys(path: Path, busy_timeout_s: float = 2.0) -> bool:
    """Whether the file has a key in it, be it a revoked one; False when there is no file. Changes nothing.

    Raises StateDbError when it cannot be read, is no database, belongs to another program, or to a newer version.
    """
    if not state_file_exists(path):
        return False
    if sqlite3 is None:
        raise _without_sqlite(path)
    if not path.is_file():
        raise StateDbError(f"{path}: cannot be opened: it is not a file")
    try:
        with contextlib.closing(connect(path, busy_timeout_s, for_reading=True)) as connection:
            has_schema = _schema_version(connection, path) > 0
            return has_schema and bool(connection.execute("SELECT 1 FROM keys LIMIT 1").fetchall())
    except sqlite3.Error as error:
        raise StateDbError(f"{path}: {_why_not(path) or in_words(error)}") from error


def refuse_unusable(path: Path, *, to_be_made: bool) -> None:
    """Raise StateDbError where `open_state_file` could not write the file, as far as a look can tell; changes nothing.

    `to_be_made`: whether it is to be made when it is missing; else that is well.
    """
    if sqlite3 is None and to_be_made:
        raise _without_sqlite(path)
    if state_file_exists(path):
        if not os.access(path, os.W_OK) or not os.access(path.parent, os.W_OK | os.X_OK):
            raise StateDbError(f"{path}: cannot be written: the file or its directory is read-only")
    elif to_be_made:
        try:
            if path.is_symlink():  # one that leads nowhere: nothing is made behind it
                path.stat()
            if not stat.S_ISDIR(path.parent.stat().st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            if not os.access(path.parent, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            raise StateDbError(f"{path}: cannot be made: {error.strerror or error}") from error


def _without_sqlite(path: Path) -> StateDbError:
    return StateDbError(f"{path}: cannot be opened: this Python was built without SQLite")


def open_state_file(path: Path, busy_timeout_s: float) -> sqlite3.Connection:
    """Open the file for writing, with the schema of this version; made when missing, readable by its owner only.

    `busy_timeout_s`: how long a statement waits for another process. Raises StateDbError when the file cannot be opened
    or written, is no database, belongs to another program, or was written by a newer version.
    """
    if sqlite3 is None:
        raise _without_sqlite(path)
    try:
        create_file(path, StateDbError)
        connection = connect(path, busy_timeout_s)
    except OSError as error:
        raise StateDbError(f"{path}: cannot be made: {error.strerror or error}") from error
    except sqlite3.Error as error:
        raise StateDbError(f"{path}: cannot be opened: {_why_not(path) or error}") from error
    try:
        _prepare(connection, path, busy_timeout_s)
    except BaseException as error:
        connection.close()
        if isinstance(error, sqlite3.Error):
            raise StateDbError(f"{path}: {in_words(error)}") from error
        raise
    return connection


def connect(path: Path, busy_timeout_s: float, *, for_reading: bool = False) -> sqlite3.Connection:
    """A connection without transactions of its own, usable from one thread at a time. Raises sqlite3.Error."""
    # mode=rw: never makes a file. A file deleted under the gateway is not replaced by an empty one.
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        timeout=busy_timeout_s,
        isolation_level=None,
        check_same_thread=False,
    )
    if for_reading:
        connection.execute("PRAGMA query_only = ON")
    return connection


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection, kind: str = "IMMEDIATE") -> Iterator[None]:
    """Commit what is done inside, or undo it all when it raises. Raises sqlite3.Error."""
    # IMMEDIATE: one that first reads and then writes could not wait for another writer.
    connection.execute(f"BEGIN {kind}")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # some errors have rolled back already
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
        raise


def is_outside_cause(error: Exception) -> bool:
    """Whether the file, the disk or another process is to blame, rather than the write itself."""
    return isinstance(error, sqlite3.Error) and any(cause in str(error).lower() for cause in _OUTSIDE_CAUSES)


def in_words(error: Exception) -> str:
    """What an error means for the operator, to stand behind the file's name."""
    text = str(error)
    if "locked" in text:
        return "is locked by another process"
    if "not a database" in text:
        return "is not a state database"
    if "readonly" in text:
        return "cannot be written: the file or its directory is read-only"
    if "unable to open" in text:
        return "cannot be opened: its directory must be writable"
    return f"cannot be written: {text or type(error).__name__}"


def create_file(path: Path, refused: Callable[[str], Exception]) -> None:
    """Make an empty file that its owner alone can read, unless there is one. Raises `refused` where that is no file,
    and OSError."""
    # Made here for its mode. Only ever a new file: closing a second descriptor of a file that is in use would drop the
    # locks which SQLite holds in this process (sqlite.org/howtocorrupt.html, 2.2).
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        # A device would be taken for an empty database, and files be made beside it.
        if path.exists() and not path.is_file():
            raise refused(f"{path}: cannot be opened: it is not a file") from None


def _why_not(path: Path) -> str:
    try:
        path.stat()
        return "" if os.access(path, os.R_OK) else "permission denied"
    except OSError as error:
        return error.strerror or str(error)


def _prepare(connection: sqlite3.Connection, path: Path, busy_timeout_s: float) -> None:
    with transaction(connection, "DEFERRED"):  # one snapshot: another process may be making the schema just now
        _schema_version(connection, path)
    use_wal(connection, busy_timeout_s)
    connection.execute("PRAGMA synchronous = NORMAL")
    with transaction(connection):
        known = _schema_version(connection, path)
        for statements in MIGRATIONS[known:]:
            for statement in statements:
                connection.execute(statement)
        if known < len(MIGRATIONS):
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        # Changes nothing, but fails on a file that is read-only: opening it does not, nor does BEGIN IMMEDIATE.
        connection.execute("DELETE FROM generation WHERE 0")


def use_wal(connection: sqlite3.Connection, busy_timeout_s: float) -> None:
    """Have readers and a writer not wait for each other. Raises sqlite3.Error."""
    # Two processes that change a new file's mode at once: one is refused without the usual waiting. A file system that
    # cannot have WAL keeps the old mode, which is as safe.
    deadline_s = time.monotonic() + busy_timeout_s
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchall()
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() >= deadline_s:
                raise
            time.sleep(0.005)


def _schema_version(connection: sqlite3.Connection, path: Path) -> int:
    return schema_version(connection, path, APPLICATION_ID, len(MIGRATIONS), StateDbError)


def schema_version(
    connection: sqlite3.Connection, path: Path, application_id: int, newest: int, refused: Callable[[str], Exception]
) -> int:
    """The schema's version, 0 for an empty file. Raises `refused` where it is not ours to change, and sqlite3.Error."""
    application = connection.execute("PRAGMA application_id").fetchall()[0][0]
    version: int = connection.execute("PRAGMA user_version").fetchall()[0][0]
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchall()[0][0]
    if application != application_id and (application or version or tables):
        raise refused(f"{path}: is the database of another program")
    if version > newest:
        raise refused(f"{path}: was written by a newer version (schema {version}; this one knows {newest})")
    return version
