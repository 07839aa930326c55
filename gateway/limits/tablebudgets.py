"""Budgets of a gateway of several processes: what all of them have spent and reserved, at once.

`TableBudgets` counts in the shared table beside the database. There, what a key has spent in a period is one number,
to which each process adds what its requests cost; what is reserved is a column for each process, so that what a dead
one had reserved is free again. The database stays the sum that lasts: from it is learned, as ever, what others have
spent that share it and not the table, and what the table has lost. The lock of `Budgets` is taken first, then that of
the table.
"""

from __future__ import annotations

import time
from typing import Callable, Optional, Union

from gateway.clock import unix_s
from gateway.limits.budgets import Account, Budgets, BudgetWarning, InFlight, Period, Reservation
from gateway.limits.sharedtable import BUDGET_HEAD_BYTES, RESERVED, SharedTable
from gateway.state.database import StateDb

_HELD = float("inf")


class BudgetRecords:
    """Reads and writes the table's records of budgets, under its lock.

    Of a key and period: what is spent, when the period ends, for which budget somebody has warned. Of a key: columns.
    """

    def __init__(self, table: SharedTable) -> None:
        self._table = table
        self._section = table.budgets
        self._memory = table.memory
        self._doubles = table.doubles
        self._bytes = BUDGET_HEAD_BYTES + table.columns * RESERVED.size

    def period(self, key: str, start_unix_s: float) -> bytes:
        """The digest of a key's period."""
        return self._table.digest_of("spent", f"{start_unix_s!r} {key}".encode("utf-8", "surrogatepass"))

    def columns(self, key: str) -> bytes:
        """The digest of what a key has in flight."""
        return self._table.digest_of("reserved", key.encode("utf-8", "surrogatepass"))

    def find(self, digest: bytes) -> int:
        """The index of a record's first number; -1: there is none."""
        at = self._section.find(digest)
        return at if at < 0 else self._section.offset(at) // 8

    def open(self, digest: bytes, end_unix_s: float, now_unix_s: float) -> int:
        """The same, of a new record if there is none; -1: there is no room."""
        found = self.find(digest)
        if found >= 0:
            return found
        at, forgot = self._section.claim(digest, self._busy_until_unix_s, now_unix_s)
        if at < 0:
            return at
        offset = self._section.offset(at)
        self._memory[offset : offset + self._bytes] = bytes(self._bytes)
        self._doubles[offset // 8 + 1] = end_unix_s
        self._section.name(digest, at)
        self._table.count(forgotten=forgot)
        return offset // 8

    def _busy_until_unix_s(self, offset: int) -> float:
        own = offset + BUDGET_HEAD_BYTES + self._table.column * RESERVED.size
        generation, count, _, _ = RESERVED.unpack_from(self._memory, own)
        if (generation == self._table.generation and count) or self.reserved(offset // 8)[0]:
            return _HELD
        return self._doubles[offset // 8 + 1]

    def reserved(self, found: int) -> tuple[int, float, float]:
        """How many requests of the others are in flight, since when the oldest (infinity: none), the USD reserved."""
        total, oldest_s, reserved_usd = 0, _HELD, 0.0
        start = 8 * found + BUDGET_HEAD_BYTES
        for column, generation in self._table.others():
            written, count, since_s, usd = RESERVED.unpack_from(self._memory, start + column * RESERVED.size)
            if count and written == generation:
                total += count
                oldest_s = min(oldest_s, since_s)
                reserved_usd += usd
        return total, oldest_s, reserved_usd

    def reserve(self, found: int, count: int, oldest_s: float, usd: float) -> None:
        """Say what this process has in flight. Needs no lock where it has some already: the column is its own."""
        own = 8 * found + BUDGET_HEAD_BYTES + self._table.column * RESERVED.size
        RESERVED.pack_into(self._memory, own, self._table.generation, count, oldest_s, usd)


class TableBudgets(Budgets):
    """`Budgets` over the shared table: exact within what one request costs, across processes. Thread-safe.

    Where the table has no room for a key, this process goes by what it knows itself and reads in the database.
    """

    def __init__(
        self,
        table: SharedTable,
        db: Optional[StateDb] = None,
        clock: Callable[[], float] = unix_s,
        on_warning: Optional[Callable[[BudgetWarning], None]] = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._table = table
        self._records = BudgetRecords(table)
        super().__init__(db, clock, on_warning, monotonic)

    def check(self, key: str, budget_usd: Optional[float], period: str, now_unix_s: float) -> Optional[float]:
        self._look(key)
        return super().check(key, budget_usd, period, now_unix_s)

    def spent_usd(self, key: str) -> float:
        self._look(key)
        return super().spent_usd(key)

    def used(self) -> list[tuple[str, float]]:
        for key in list(self._accounts):
            self._look(key)
        return super().used()

    def _look(self, key: str) -> None:
        """Learn what all processes have spent of the period that this one last knew."""
        account = self._accounts.get(key)
        if account is not None:
            with self._lock:
                self._raise_locked(key, account, 0.0)

    def reserve(self, key: str, cost: float) -> Union[Reservation, float]:
        now_s = self._monotonic()
        records = self._records
        with self._lock:
            account = self._accounts[key]
            in_flight = account.in_flight
            with self._table:
                account.spent_usd = self._spent(key, account, 0.0)
                found = records.open(records.columns(key), 0.0, self._clock())
                _, oldest_s, others_usd = (0, _HELD, 0.0) if found < 0 else records.reserved(found)
                if account.spent_usd + in_flight.reserved_usd + others_usd >= account.budget_usd:
                    oldest_s = min(oldest_s, in_flight.places.oldest_s(now_s))
                    return in_flight.places.wait_since_s(oldest_s, now_s, 0.0)
                in_flight.reserved_usd += cost
                reservation = Reservation(self, in_flight, in_flight.places.take(now_s), cost)
                if found >= 0:
                    self._tell(found, in_flight, now_s)
                return reservation

    def _release(self, reservation: Reservation) -> None:
        in_flight = reservation._in_flight
        super()._release(reservation)
        if in_flight is not None:
            with self._lock:  # no lock of the table: a record in which this process has something stays where it is
                found = self._records.find(self._records.columns(in_flight.key))
                if found >= 0:
                    self._tell(found, in_flight, 0.0)

    def _tell(self, found: int, in_flight: InFlight, now_s: float) -> None:
        places = in_flight.places
        self._records.reserve(found, len(places), places.oldest_s(now_s), in_flight.reserved_usd)

    def _open_locked(self, key: str, budget_usd: float, period: str, bounds: Period) -> Account:
        account = super()._open_locked(key, budget_usd, period, bounds)
        self._raise_locked(key, account, account.spent_usd)
        return account

    def _add_locked(self, key: str, account: Account, cost: float) -> None:
        with self._table:
            account.spent_usd = self._spent(key, account, account.spent_usd, cost)

    def _raise_locked(self, key: str, account: Account, spent_usd: float) -> None:
        with self._table:
            account.spent_usd = self._spent(key, account, max(spent_usd, account.spent_usd))

    def _spent(self, key: str, account: Account, least_usd: float, more_usd: float = 0.0) -> float:
        """What all have spent, at least `least_usd`, and `more_usd` from now on."""
        records = self._records
        found = records.open(records.period(key, account.start_unix_s), account.end_unix_s, self._clock())
        if found < 0:
            return max(account.spent_usd, least_usd) + more_usd
        doubles = self._table.doubles
        spent_usd = max(doubles[found], least_usd) + more_usd
        if spent_usd != doubles[found]:
            doubles[found] = spent_usd
        return spent_usd

    def _warning_locked(self, key: str, account: Account) -> Optional[BudgetWarning]:
        warning = super()._warning_locked(key, account)
        if warning is None:
            return None
        with self._table:
            found = self._records.find(self._records.period(key, account.start_unix_s))
            if found >= 0:
                if self._table.doubles[found + 2] == account.budget_usd:
                    return None  # another process has said so
                self._table.doubles[found + 2] = account.budget_usd
        return warning


def budgets_of(
    table: Optional[SharedTable], db: Optional[StateDb], on_warning: Callable[[BudgetWarning], None]
) -> Budgets:
    """Ordinary budgets, or those over the table where there is one. Raises as `Budgets`."""
    return Budgets(db, on_warning=on_warning) if table is None else TableBudgets(table, db, on_warning=on_warning)
