"""How much each key may spend in a day, a week or a month, and what it has spent.

`Budgets` owns what each key with a budget has spent in its current period, and what its requests in flight have
reserved. Its lock guards these numbers and is never held while the database or a callback is called; a request only
ever looks at memory. The database adds up what all processes have spent: every process submits its own increments and
reads the sums once a second, so that together they may overshoot by what they spend in a second or two, and by what is
in flight in the others when a budget runs out.
"""

from __future__ import annotations

import threading
import time
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Callable, NamedTuple, Optional, Union

from gateway.clock import JumpWatch, unix_s
from gateway.limits.places import Places
from gateway.state.database import StateDb, StateDbError

if TYPE_CHECKING:
    import sqlite3

BUDGET_PERIODS = ("day", "week", "month")
WARN_AT = 0.8
KEEP_S = 400 * 86_400.0
"""Past periods are kept for a year and a month, to be looked at."""
PRUNE_INTERVAL_S = 3600.0
STEADY_S = 3600.0
"""For so long the wall clock must have run without a jump before periods are long past by it."""
LEFT_MAX = 4
"""Periods of a key that are remembered when they are over: the clock may be set back into them."""

_ADD = """INSERT INTO budget (key, period_start_unix_s, spent_usd) VALUES (?, ?, ?)
    ON CONFLICT (key, period_start_unix_s) DO UPDATE SET spent_usd = spent_usd + excluded.spent_usd"""
_CURRENT = "SELECT key, period_start_unix_s, spent_usd FROM budget WHERE period_start_unix_s IN (?, ?, ?)"
_PRUNE = "DELETE FROM budget WHERE period_start_unix_s < ?"

Slot = tuple[str, float]
"""A key's name and the start of a period."""


class Period(NamedTuple):
    """From `start_unix_s` up to, not including, `end_unix_s`."""

    start_unix_s: float
    end_unix_s: float


def period_at(name: str, unix_s: float) -> Period:
    """The calendar day, week (from Monday) or month in UTC that holds `unix_s`. Raises ValueError for another name."""
    day = datetime.fromtimestamp(unix_s, timezone.utc).replace(hour=0, minute=0, second=0, microsecond=0)
    if name == "day":
        start, end = day, day + timedelta(days=1)
    elif name == "week":
        start = day - timedelta(days=day.weekday())
        end = start + timedelta(days=7)
    elif name == "month":
        start = day.replace(day=1)
        end = (start + timedelta(days=31)).replace(day=1)
    else:
        raise ValueError(f"a budget's period must be one of {', '.join(BUDGET_PERIODS)}, not {name!r}")
    return Period(start.timestamp(), end.timestamp())


class BudgetWarning(NamedTuple):
    """A key has spent most of its budget."""

    key: str
    spent_usd: float
    budget_usd: float
    reset_unix_s: float


class InFlight:
    """What the requests in flight of one key may cost. Outlives its periods; guarded by the lock of its Budgets."""

    __slots__ = ("key", "places", "reserved_usd")

    def __init__(self, key: str) -> None:
        self.key = key
        self.places = Places()
        self.reserved_usd = 0.0


class Reservation:
    """The most that one request may cost, kept back from its key's budget. Thread-safe."""

    __slots__ = ("_budgets", "_in_flight", "_number", "cost_usd")

    def __init__(self, budgets: Budgets, in_flight: InFlight, number: int, cost_usd: float) -> None:
        self._budgets = budgets
        self._in_flight: Optional[InFlight] = in_flight
        self._number = number
        self.cost_usd = cost_usd

    def release(self) -> None:
        """Give it back, once the real cost is spent or there is none. Only the first call counts."""
        self._budgets._release(self)


class Account:
    """One key in its current period. Guarded by the lock of its Budgets."""

    __slots__ = ("budget_usd", "end_unix_s", "in_flight", "period", "spent_usd", "start_unix_s", "warned")

    def __init__(self, period: str, bounds: Period, budget_usd: float, spent_usd: float, in_flight: InFlight) -> None:
        self.period = period
        self.start_unix_s, self.end_unix_s = bounds
        self.budget_usd = budget_usd
        self.spent_usd = spent_usd
        self.in_flight = in_flight
        # What was beyond it when this process first looked has been reported by whoever spent it.
        self.warned = self.is_late()

    def holds(self, unix_s: float) -> bool:
        """Whether that is in its period: neither over nor, which a clock that was set back does, not begun."""
        return self.start_unix_s <= unix_s < self.end_unix_s

    def is_late(self) -> bool:
        return self.spent_usd >= WARN_AT * self.budget_usd


class Budgets:
    """Counts what keys with a budget spend. Thread-safe.

    `db` is where the sums live (None: in memory, until the process ends). They are read now: raises StateDbError when
    that is impossible. `clock` gives Unix seconds, `monotonic` the seconds by which requests in flight are measured.
    When the clock is set, forward or back, a key spends of the period that it is now, and what it has spent in either
    stays; what other processes have is known within a second. `on_warning` is called once per key, period and process
    when 80 % of a budget are spent, from the thread that spent it or that calls `refresh`; what it raises, they raise.
    Only what a key spends after its first `check` counts: a budget given in the middle of a period begins then.
    """

    def __init__(
        self,
        db: Optional[StateDb] = None,
        clock: Callable[[], float] = unix_s,
        on_warning: Optional[Callable[[BudgetWarning], None]] = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._db = db
        self._clock = clock
        self._monotonic = monotonic
        self._on_warning = on_warning
        self._lock = threading.Lock()
        self._accounts: dict[str, Account] = {}
        self._left: dict[str, dict[float, float]] = {}  # what was spent in a key's periods before, by their start
        self._unsaved: dict[Slot, float] = {}
        self._saving = False  # a write is submitted and has not yet taken what is unsaved
        self._jumps = JumpWatch(clock, monotonic)
        self._pruned_s = monotonic()
        self._stored = self._read()

    def check(self, key: str, budget_usd: Optional[float], period: str, now_unix_s: float) -> Optional[float]:
        """When `key` may spend again (Unix seconds), or None when it may now. `budget_usd` None: it always may.

        Raises ValueError for an unknown period.
        """
        if budget_usd is None:
            return None
        account = self._accounts.get(key)
        if account is None or account.period != period or not account.holds(now_unix_s):
            account = self._open(key, budget_usd, period, now_unix_s)
        elif account.budget_usd != budget_usd:
            with self._lock:
                account.budget_usd = budget_usd
                account.warned = account.warned and account.is_late()
        return account.end_unix_s if account.spent_usd >= budget_usd else None

    def _open(self, key: str, budget_usd: float, period: str, now_unix_s: float) -> Account:
        bounds = period_at(period, now_unix_s)
        with self._lock:
            account = self._accounts.get(key)
            if account is None or account.period != period or not account.holds(now_unix_s):
                account = self._open_locked(key, budget_usd, period, bounds)
            return account

    def _open_locked(self, key: str, budget_usd: float, period: str, bounds: Period) -> Account:
        slot = (key, bounds.start_unix_s)
        spent_usd = self._stored.get(slot, 0.0) + self._unsaved.get(slot, 0.0)
        before = self._accounts.get(key)
        if before is not None:
            left = self._left.setdefault(key, {})
            left.pop(before.start_unix_s, None)  # so that the latest comes last
            left[before.start_unix_s] = before.spent_usd
            spent_usd = max(spent_usd, left.get(bounds.start_unix_s, 0.0))
            if len(left) > LEFT_MAX:
                del left[next(iter(left))]
        in_flight = InFlight(key) if before is None else before.in_flight  # spent when it ends, in the new period
        account = self._accounts[key] = Account(period, bounds, budget_usd, spent_usd, in_flight)
        return account

    def reserve(self, key: str, cost: float) -> Union[Reservation, float]:
        """Keep `cost` (USD) back for a request that `check` has let pass; else the seconds to wait, an estimate.

        It passes unless what is spent and what is in flight reach the budget already. So a key with something left may
        always send one request when none of it is in flight, whatever that costs, and overshoots by one at most.
        """
        now_s = self._monotonic()
        with self._lock:
            account = self._accounts[key]
            in_flight = account.in_flight
            if account.spent_usd + in_flight.reserved_usd >= account.budget_usd:
                return in_flight.places.wait_s(now_s)
            in_flight.reserved_usd += cost
            return Reservation(self, in_flight, in_flight.places.take(now_s), cost)

    def _release(self, reservation: Reservation) -> None:
        now_s = self._monotonic()
        with self._lock:
            in_flight, reservation._in_flight = reservation._in_flight, None
            if in_flight is not None:
                in_flight.places.give_back(reservation._number, now_s)
                # Adding and taking away leaves a residue; nothing in flight is nothing reserved.
                in_flight.reserved_usd = in_flight.reserved_usd - reservation.cost_usd if in_flight.places else 0.0

    def spend(self, key: str, cost: float) -> None:
        """Add `cost` (USD) to what `key` has spent; nothing for a key without a budget. Never blocks."""
        if not cost > 0.0 or key not in self._accounts:
            return
        now_unix_s = self._clock()
        with self._lock:
            account = self._accounts[key]
            if not account.holds(now_unix_s):
                bounds = period_at(account.period, now_unix_s)
                account = self._open_locked(key, account.budget_usd, account.period, bounds)
            self._add_locked(key, account, cost)
            if self._db is not None:
                slot = (key, account.start_unix_s)
                self._unsaved[slot] = self._unsaved.get(slot, 0.0) + cost
            warning = self._warning_locked(key, account)
        self._save()
        if warning is not None and self._on_warning is not None:
            self._on_warning(warning)

    def spent_usd(self, key: str) -> float:
        """What `key` has spent in its current period, as far as this process knows; 0 without a budget."""
        account = self._accounts.get(key)
        return account.spent_usd if account is not None and account.holds(self._clock()) else 0.0

    def used(self) -> list[tuple[str, float]]:
        """Each key that has asked since this process began and has a budget, with the share of it that is spent."""
        now_unix_s = self._clock()
        with self._lock:
            accounts = [(key, account) for key, account in self._accounts.items() if account.holds(now_unix_s)]
            return [
                (key, account.spent_usd / account.budget_usd) for key, account in accounts if account.budget_usd > 0
            ]

    def learn(self, key: str, start_unix_s: float, spent_usd: float) -> None:
        """All gateways together have spent so much of a key's budget in the period that began then."""
        with self._lock:
            account = self._accounts.get(key)
            if account is None or account.start_unix_s != start_unix_s:
                return
            self._raise_locked(key, account, spent_usd)
            warning = self._warning_locked(key, account)
        if warning is not None and self._on_warning is not None:
            self._on_warning(warning)

    def period(self, key: str, now_unix_s: float) -> Optional[Period]:
        """The period of a key's budget that it is now; None for a key without one."""
        account = self._accounts.get(key)
        if account is None:
            return None
        if account.holds(now_unix_s):
            return Period(account.start_unix_s, account.end_unix_s)
        return period_at(account.period, now_unix_s)

    def reset_unix_s(self, key: str) -> float:
        """When the current period of a key with a budget ends."""
        return self._accounts[key].end_unix_s

    def refresh(self) -> bool:
        """Learn what all processes have spent; call it once a second. False: the database could not be read.

        Then what is known stays, and the next call tries again.
        """
        if self._db is None:
            return True
        self._save()
        try:
            stored = self._read()
        except StateDbError:
            return False
        with self._lock:
            self._stored = stored
            warnings = [self._learn_locked(key, account) for key, account in self._accounts.items()]
        self._prune(self._db)
        for warning in warnings:
            if warning is not None and self._on_warning is not None:
                self._on_warning(warning)
        return True

    def _learn_locked(self, key: str, account: Account) -> Optional[BudgetWarning]:
        # Read first and added up now: what is unsaved cannot be among what was read. What is on its way to the disk is
        # in neither, therefore the sum never falls.
        slot = (key, account.start_unix_s)
        self._raise_locked(key, account, self._stored.get(slot, 0.0) + self._unsaved.get(slot, 0.0))
        return self._warning_locked(key, account)

    def _add_locked(self, key: str, account: Account, cost: float) -> None:
        account.spent_usd += cost

    def _raise_locked(self, key: str, account: Account, spent_usd: float) -> None:
        """At least so much has been spent."""
        account.spent_usd = max(account.spent_usd, spent_usd)

    def _warning_locked(self, key: str, account: Account) -> Optional[BudgetWarning]:
        if account.warned or not account.is_late():
            return None
        account.warned = True
        return BudgetWarning(key, account.spent_usd, account.budget_usd, account.end_unix_s)

    def _read(self) -> dict[Slot, float]:
        if self._db is None:
            return {}
        now_unix_s = self._clock()
        starts = [period_at(period, now_unix_s).start_unix_s for period in BUDGET_PERIODS]
        return {(key, start): spent for key, start, spent in self._db.read(_CURRENT, starts)}

    def _save(self) -> None:
        """Have what is unsaved written, unless that is on its way."""
        if self._db is None:
            return
        with self._lock:
            if self._saving or not self._unsaved:
                return
            self._saving = True
        if not self._db.submit(_Increments(self._take)):
            with self._lock:
                self._saving = False  # the next spending or refresh tries again

    def _take(self) -> list[tuple[str, float, float]]:
        with self._lock:
            self._saving = False
            unsaved, self._unsaved = self._unsaved, {}
        return [(key, start, spent) for (key, start), spent in unsaved.items()]

    def _prune(self, db: StateDb) -> None:
        now_s = self._monotonic()
        if self._jumps.steady_s() >= STEADY_S and now_s - self._pruned_s >= PRUNE_INTERVAL_S:
            self._pruned_s = now_s
            now_unix_s = self._clock()
            db.submit(lambda connection: connection.execute(_PRUNE, (now_unix_s - KEEP_S,)))


class _Increments:
    """One write for all that was spent until it is made. Made again after a rollback, it writes the same."""

    def __init__(self, take: Callable[[], list[tuple[str, float, float]]]) -> None:
        self._take = take
        self._rows: Optional[list[tuple[str, float, float]]] = None

    def __call__(self, connection: sqlite3.Connection) -> None:
        if self._rows is None:
            self._rows = self._take()
        connection.executemany(_ADD, self._rows)
