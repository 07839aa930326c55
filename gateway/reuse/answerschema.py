"""What the file of answers holds, and how: its schema, opening it, rows to and from it, and what its errors mean.

Owns the schema (`PRAGMA user_version` says which), how a connection is opened, what is believed of a row, and the words
for what SQLite says. It keeps no connection and no state, and has no lock: SQLite's own file locks keep several
processes apart. It never decides when something is written or read, never looks at an answer that is not in the file,
and never changes a database of another program.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Optional, Union

from gateway.reuse.stored import Stored, decode, encode
from gateway.state.file import connect, create_file, in_words, schema_version, transaction, use_wal

if TYPE_CHECKING:
    import sqlite3
else:
    try:
        import sqlite3
    except ImportError:  # a Python built without SQLite
        sqlite3 = None

APPLICATION_ID = 0x49474341
SCHEMA_VERSION = 1
SCHEMA = (
    # The vector is not also in the value; the value stands last, for its pages to be read only when it is asked for.
    """CREATE TABLE answers (
        key BLOB PRIMARY KEY NOT NULL, scope TEXT NOT NULL, model TEXT NOT NULL, path TEXT NOT NULL,
        size_bytes INTEGER NOT NULL, tokens INTEGER NOT NULL, cost_usd REAL NOT NULL, stored_unix_s REAL NOT NULL,
        near BLOB NOT NULL, words BLOB NOT NULL, vector BLOB NOT NULL, value BLOB NOT NULL)""",
    # Apart from the answers, whose whole row SQLite would write anew. `used` counts the uses: clocks are set back.
    "CREATE TABLE uses (key BLOB PRIMARY KEY NOT NULL, used INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE INDEX uses_used ON uses (used)",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)

CHECKED_BYTES = 16 * 1024 * 1024
"""A file up to this size is checked as a whole when it is opened; damage within a larger one shows when it is read."""


class AnswerFileError(Exception):
    """The file of answers cannot be used; the text names the file and the reason."""


class Indexed(NamedTuple):
    """An answer without its body: what is known of it without reading it."""

    key: bytes
    scope: str
    model: str
    path: str
    size_bytes: int
    """Of `encode(stored)`."""
    tokens: int
    cost_usd: float
    stored_unix_s: float
    near: bytes
    group: bytes
    vector: bytes


class Mark(NamedTuple):
    """A change for which no answer is written: one has gone, or was used."""

    name: str


GONE = Mark("gone")
USED = Mark("used")
Change = Union[Stored, Mark]

PAGE = """SELECT used, uses.key, scope, model, path, size_bytes, tokens, cost_usd, stored_unix_s, near, words, vector
    FROM uses JOIN answers ON answers.key = uses.key WHERE used > ? ORDER BY used LIMIT ?"""
ANSWER = "SELECT value, vector FROM answers WHERE key = ?"


def indexed_in(row: Sequence[Any]) -> Optional[Indexed]:
    """What a row of `PAGE` says; None for a broken one."""
    _, key, scope, model, path, size_bytes, tokens, cost_usd, stored_unix_s, near, words, vector = row
    is_sound = (
        all(type(value) is bytes for value in (key, scope, model, path, near, words, vector))
        and all(type(value) is int and value >= 0 for value in (size_bytes, tokens))
        and all(type(value) is float and math.isfinite(value) for value in (cost_usd, stored_unix_s))
        and len(vector) % 4 == 0
    )
    if not is_sound:
        return None
    try:
        names = scope.decode(), model.decode(), path.decode()
    except UnicodeDecodeError:
        return None
    return Indexed(key, *names, size_bytes, tokens, cost_usd, stored_unix_s, near, words, vector)


def stored_in(key: bytes, value: object, vector: object) -> Optional[Stored]:
    """What a row of `ANSWER` says; None for a broken one."""
    if type(value) is not bytes or type(vector) is not bytes or len(vector) % 4:
        return None
    stored = decode(value)
    return stored._replace(vector=vector) if stored is not None and stored.key == key else None


def write(connection: sqlite3.Connection, batch: dict[bytes, Change]) -> int:
    """Make changes in one transaction; returns how many were faulty and left out. Raises sqlite3.Error."""
    answers = [_row(change) for change in batch.values() if isinstance(change, Stored)]
    rows = [row for row in answers if row is not None]
    gone = [(key,) for key, change in batch.items() if change is not USED]
    with transaction(connection):
        # No two processes can come to the same number: others wait for the end of the transaction.
        last = connection.execute("SELECT max(used) FROM uses").fetchall()[0][0] or 0
        used = {key: number for number, key in enumerate(batch, last + 1)}
        # One statement for many: each gives the interpreter's lock away and waits to have it back.
        connection.executemany("DELETE FROM answers WHERE key = ?", gone)
        connection.executemany("DELETE FROM uses WHERE key = ?", gone)
        connection.executemany(f"INSERT INTO answers VALUES ({', '.join('?' * 12)})", rows)
        connection.executemany("INSERT INTO uses VALUES (?, ?)", [(row[0], used[row[0]]) for row in rows])
        uses = [(used[key], key) for key, change in batch.items() if change is USED]
        connection.executemany("UPDATE uses SET used = ? WHERE key = ?", uses)
    return len(answers) - len(rows)


def remove_all(connection: sqlite3.Connection) -> None:
    """Remove every answer in one transaction. Raises sqlite3.Error."""
    with transaction(connection):
        connection.execute("DELETE FROM answers")
        connection.execute("DELETE FROM uses")


def _row(stored: Stored) -> Optional[tuple[Any, ...]]:
    """None for what SQLite cannot hold: half a character, a number too big, not a number."""
    try:
        value = encode(stored._replace(vector=b""))
        for text in (stored.scope, stored.model, stored.path):
            text.encode()
    except (ValueError, TypeError, AttributeError):
        return None
    cost_usd, stored_unix_s = float(stored.cost_usd), float(stored.stored_unix_s)
    if not (math.isfinite(cost_usd) and math.isfinite(stored_unix_s) and 0 <= stored.tokens < 1 << 63):
        return None
    size_bytes = len(value) + len(stored.vector)
    return (
        *(stored.key, stored.scope, stored.model, stored.path, size_bytes, stored.tokens, cost_usd, stored_unix_s),
        *(stored.near, stored.group, stored.vector, value),
    )


def open_to_write(path: Path, busy_timeout_s: float, journal_bytes: int) -> sqlite3.Connection:
    """Open the file, with the schema of this version; made when it is missing, readable by its owner only.

    `busy_timeout_s`: how long a statement waits for another process. `journal_bytes`: to how much the log of writes is
    cut back. Raises AnswerFileError when the file cannot be opened or written, is damaged or no database, belongs to
    another program, or was written by a newer version.
    """
    if sqlite3 is None:
        raise AnswerFileError(f"{path}: cannot be opened: this Python was built without SQLite")
    try:
        create_file(path, AnswerFileError)
        connection = connect(path, busy_timeout_s)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "that is no path"
        raise AnswerFileError(f"{path}: cannot be made: {reason}") from error
    except sqlite3.Error as error:
        reason = fault_in_words(error) if os.access(path, os.R_OK) else "cannot be opened: permission denied"
        raise AnswerFileError(f"{path}: {reason}") from error
    try:
        _prepare(connection, path, busy_timeout_s, journal_bytes)
    except BaseException as error:
        connection.close()
        if isinstance(error, sqlite3.Error):
            raise AnswerFileError(f"{path}: {fault_in_words(error)}") from error
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path, busy_timeout_s: float, journal_bytes: int) -> None:
    with transaction(connection, "DEFERRED"):
        _has_schema(connection, path)
    use_wal(connection, busy_timeout_s)
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA journal_size_limit = {journal_bytes}")
    with transaction(connection):
        if not _has_schema(connection, path):
            for statement in SCHEMA:
                connection.execute(statement)
        # Changes nothing, but fails on a file that is read-only: opening it does not, nor does beginning.
        connection.execute("DELETE FROM uses WHERE 0")
    if path.stat().st_size <= CHECKED_BYTES:
        found = connection.execute("PRAGMA quick_check(1)").fetchall()[0][0]
        if found != "ok":
            raise AnswerFileError(f"{path}: {_DAMAGED}")


def _has_schema(connection: sqlite3.Connection, path: Path) -> bool:
    """False for an empty file; raises AnswerFileError when it is not ours to change."""
    return schema_version(connection, path, APPLICATION_ID, SCHEMA_VERSION, AnswerFileError) > 0


def connect_to_read(path: Path, busy_timeout_s: float) -> sqlite3.Connection:
    """A connection for `PAGE` and `ANSWER`, usable from one thread at a time. Raises sqlite3.Error."""
    connection = connect(path, busy_timeout_s, for_reading=True)
    connection.text_factory = bytes  # else one broken text would make a whole page unreadable
    return connection


_DAMAGED = "is damaged or not a database: once it is moved away, a new one is made"


def refuse_foreign(path: Path) -> None:
    """Raise AnswerFileError for a file that is there and is none of answers; changes nothing."""
    if path.exists() and not path.is_file():
        raise AnswerFileError(f"{path}: cannot be opened: it is not a file")
    if sqlite3 is None or not path.exists() or not path.stat().st_size:
        return
    try:
        with contextlib.closing(connect_to_read(path, 1.0)) as connection:
            _has_schema(connection, path)
    except sqlite3.Error as error:
        raise AnswerFileError(f"{path}: {fault_in_words(error)}") from error


def is_damage(error: Exception) -> bool:
    """Whether the file is no database, or no longer one."""
    return "not a database" in str(error) or "malformed" in str(error)


def fault_in_words(error: Exception) -> str:
    """What an error means for the operator, to stand behind the file's name."""
    return _DAMAGED if is_damage(error) else in_words(error)
