"""The keys in the state database: made, listed, rotated, revoked, and known by their SHA-256 digests.

Owns `KeyStore`, whose snapshot of all keys is replaced whole: reading it needs no lock. The lock guards only that
replacement; it is not held while the database is read. A secret exists in the answer of `create` and `rotate` and
nowhere else.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Callable, Optional

from gateway.clock import unix_s
from gateway.keys.record import (
    KeyRecord,
    KeyRefused,
    arguments_of,
    faults_of,
    new_secret,
    parse_duration,
    rotated,
    secret_digest,
    span_faults,
    to_public,
)
from gateway.keys.roles import DEFAULT_ROLES
from gateway.routing.checks import quoted
from gateway.state.database import StateDb, StateDbError

if TYPE_CHECKING:
    import sqlite3

__all__ = [
    "REFRESH_INTERVAL_S",
    "KeyExists",
    "KeyRecord",
    "KeyRefused",
    "KeyStore",
    "KeyUnknown",
    "arguments_of",
    "parse_duration",
    "secret_digest",
    "to_public",
]

REFRESH_INTERVAL_S = 0.5
"""How often `KeyStore.refresh` is meant to be called: changes of other processes are then seen within a second."""

_COLUMNS = tuple(column.name for column in fields(KeyRecord))


class KeyUnknown(KeyRefused):
    """There is no key of that name."""


class KeyExists(KeyRefused):
    """There is a key of that name, perhaps a revoked one."""


class KeyStore:
    """The keys of a state database. Thread-safe.

    `clock` gives Unix seconds. `roles` are the roles a key may have; `reserved` names belong to keys of the settings.
    The first snapshot is read at once: raises StateDbError when it cannot be.
    """

    def __init__(
        self,
        db: StateDb,
        clock: Callable[[], float] = unix_s,
        *,
        roles: Collection[str] = tuple(DEFAULT_ROLES),
        reserved: Collection[str] = (),
    ) -> None:
        self.last_error: Optional[str] = None
        """Why the last `refresh` could not look; None when it could."""
        self._db = db
        self._clock = clock
        self._roles = tuple(roles)
        self._reserved = frozenset(reserved)
        self._lock = threading.Lock()
        self._tickets = itertools.count(1)
        self._published = 0
        self._generation: Optional[int] = None
        self._seen_version = -1
        self._records: Mapping[str, KeyRecord] = MappingProxyType({})
        self._table: Mapping[bytes, KeyRecord] = MappingProxyType({})
        self._load(db.data_version())

    # --- for requests ------------------------------------------------------------------------------------------------

    def lookup_table(self) -> Mapping[bytes, KeyRecord]:
        """Every digest with its record, the previous ones of rotated keys as well: an immutable snapshot.

        Being in it is not being good: revoked and expired keys are there, for the log to name them. Ask
        `record.refusal(digest, now_unix_s)`, or `find`, which does.
        """
        return self._table

    def find(self, digest: bytes) -> Optional[KeyRecord]:
        """The record of a key that is good now, by its secret's SHA-256; None for every other. Takes no lock."""
        record = self._table.get(digest)
        return None if record is None or record.refusal(digest, self._clock()) is not None else record

    def current(self, name: str) -> Optional[KeyRecord]:
        """The record of that name in the snapshot, good or not; None when there is none. Takes no lock."""
        return self._records.get(name)

    def refresh(self) -> bool:
        """Read the keys again if they were changed by anybody; True when they were. For a ticker; never raises.

        A database that cannot be read leaves the snapshot as it is and `last_error` set, until one can be read.
        """
        try:
            version = self._db.data_version()
            if version == self._seen_version:
                return False
            if self._same_generation():  # it was the ledger that changed, as it does all the time
                self._seen_version, changed = version, False
            else:
                changed = self._load(version)
        except StateDbError as error:
            self.last_error = str(error)
            return False
        self.last_error = None
        return changed

    # --- for administrators ------------------------------------------------------------------------------------------

    def create(
        self,
        name: str,
        role: str = "user",
        *,
        models: tuple[str, ...] = (),
        rpm: Optional[int] = None,
        tpm: Optional[int] = None,
        concurrency: Optional[int] = None,
        budget_usd: Optional[float] = None,
        budget_period: Optional[str] = None,
        expires_s: Optional[float] = None,
        priority: Optional[str] = None,
        residency: Optional[str] = None,
    ) -> tuple[KeyRecord, str]:
        """Make a key; returns its record and its secret, which nobody can be told again.

        `expires_s` seconds from now, None: never. A budget without a period is one per month. Raises KeyRefused naming
        every faulty field, KeyExists, StateDbError.
        """
        now_unix_s = self._clock()
        if budget_usd is not None and budget_period is None:
            budget_period = "month"
        secret, digest = new_secret()
        record = KeyRecord(
            name=name,
            digest=digest,
            role=role,
            models=tuple(models) if isinstance(models, (list, tuple)) else models,
            rpm=rpm,
            tpm=tpm,
            concurrency=concurrency,
            budget_usd=budget_usd,
            budget_period=budget_period,
            created_unix_s=now_unix_s,
            expires_unix_s=None,
            revoked_unix_s=None,
            previous_keys=(),
            priority=priority,
            residency=residency.lower() if isinstance(residency, str) else residency,
        )
        faults = [*faults_of(record, self._roles), *span_faults("expires", expires_s, 1)]
        if faults:
            raise KeyRefused(*faults)
        if expires_s is not None:
            record = replace(record, expires_unix_s=now_unix_s + expires_s)
        if name in self._reserved:
            raise KeyExists(f"the settings have a key named {name}")
        self._db.write_now(lambda connection: _insert(connection, record))
        self._load_own_change()
        return record, secret

    def list(self) -> tuple[KeyRecord, ...]:
        """Every key by name, as in the database now. Raises StateDbError."""
        self._load(self._db.data_version())
        return tuple(self._records[name] for name in sorted(self._records))

    def show(self, name: str) -> KeyRecord:
        """A key as in the database now. Raises KeyUnknown, StateDbError."""
        for record in self.list():
            if record.name == name:
                return record
        raise _unknown(name)

    def revoke(self, name: str) -> KeyRecord:
        """Make a key, and those before it, good for nothing from now on. Once revoked, it stays as it is.

        Raises KeyUnknown, StateDbError.
        """
        now_unix_s = self._clock()

        def write(connection: sqlite3.Connection) -> KeyRecord:
            record = _select(connection, name)
            if record.revoked_unix_s is None:
                record = replace(record, revoked_unix_s=now_unix_s)
                _update(connection, record)
            return record

        record = self._db.write_now(write)
        self._load_own_change()
        return record

    def rotate(self, name: str, grace_s: float, expires_s: Optional[float] = None) -> tuple[KeyRecord, str]:
        """Give a key a new secret; returns the record and the secret. The old one is good for `grace_s` more seconds.

        Never longer than it was before. Those replaced earlier keep the grace they were given; 0 ends them all at once.
        `expires_s` seconds from now for the new one, None: when the old one would have. Raises KeyUnknown, KeyRefused,
        StateDbError.
        """
        faults = [*span_faults("grace", grace_s, 0), *span_faults("expires", expires_s, 1)]
        if faults:
            raise KeyRefused(*faults)
        now_unix_s = self._clock()
        secret, digest = new_secret()

        def write(connection: sqlite3.Connection) -> KeyRecord:
            record = rotated(_select(connection, name), digest, now_unix_s, grace_s, expires_s)
            _update(connection, record)
            return record

        record = self._db.write_now(write)
        self._load_own_change()
        return record, secret

    # --- the snapshot ------------------------------------------------------------------------------------------------

    def _load_own_change(self) -> None:
        # The change is made, whether or not it can be read back now: the ticker will.
        try:
            self._load(self._db.data_version())
        except StateDbError as error:
            self.last_error = str(error)

    def _load(self, version: int) -> bool:
        """Publish the keys as of now; True when they differ. `version` was seen before, so nothing is missed."""
        ticket = next(self._tickets)
        columns = ", ".join(f"keys.{column}" for column in _COLUMNS)
        # One statement, so that the keys and their generation are of the same moment.
        rows = self._db.read(f"SELECT value, {columns} FROM generation LEFT JOIN keys WHERE subject = 'keys'")
        try:
            records = {row[1]: _from_row(row[1:]) for row in rows if row[1] is not None}
        except (TypeError, ValueError) as error:
            raise StateDbError(f"{self._db.path}: a row of the table keys cannot be read: {error}") from error
        table = {digest: record for record in records.values() for digest, _ in record.previous_keys}
        table.update({record.digest: record for record in records.values()})
        with self._lock:
            if ticket < self._published:
                return False  # another thread began to read later, and published what it saw
            changed = records != self._records
            self._published = ticket
            self._generation = rows[0][0] if rows else None
            self._seen_version = version
            self._records = MappingProxyType(records)
            self._table = MappingProxyType(table)
        return changed

    def _same_generation(self) -> bool:
        rows = self._db.read("SELECT value FROM generation WHERE subject = 'keys'")
        return bool(rows) and rows[0][0] == self._generation


def _unknown(name: str) -> KeyUnknown:
    return KeyUnknown(f"there is no key named {quoted(name)}")


# --- rows ------------------------------------------------------------------------------------------------------------


def _to_row(record: KeyRecord) -> tuple[Any, ...]:
    values = [getattr(record, column) for column in _COLUMNS]
    values[_COLUMNS.index("models")] = json.dumps(record.models)
    values[_COLUMNS.index("previous_keys")] = json.dumps([(d.hex(), until) for d, until in record.previous_keys])
    return tuple(values)


def _from_row(row: tuple[Any, ...]) -> KeyRecord:
    members = dict(zip(_COLUMNS, row))
    members["models"] = tuple(json.loads(members["models"]))
    previous = json.loads(members["previous_keys"])
    members["previous_keys"] = tuple((bytes.fromhex(digest), float(until)) for digest, until in previous)
    return KeyRecord(**members)


def _select(connection: sqlite3.Connection, name: str) -> KeyRecord:
    rows = connection.execute(f"SELECT {', '.join(_COLUMNS)} FROM keys WHERE name = ?", (name,)).fetchall()
    if not rows:
        raise _unknown(name)
    return _from_row(rows[0])


def _insert(connection: sqlite3.Connection, record: KeyRecord) -> None:
    if connection.execute("SELECT 1 FROM keys WHERE name = ?", (record.name,)).fetchall():
        raise KeyExists(f"there is a key named {record.name} already, or was: a revoked name is not given again")
    marks = ", ".join("?" for _ in _COLUMNS)
    connection.execute(f"INSERT INTO keys ({', '.join(_COLUMNS)}) VALUES ({marks})", _to_row(record))


def _update(connection: sqlite3.Connection, record: KeyRecord) -> None:
    columns = ", ".join(f"{column} = ?" for column in _COLUMNS)
    connection.execute(f"UPDATE keys SET {columns} WHERE name = ?", (*_to_row(record), record.name))
