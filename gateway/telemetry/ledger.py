"""The ledger: one row per inference request in the state database, for accounts and bills. Never a text.

`Ledger` is an observer of finished requests. It owns what it has dropped and when old rows were last looked for; its
lock guards the counter alone. The rows themselves wait in the database's own bounded queue, one write each, and its own
thread commits them in batches: what does not fit is dropped and counted, and nobody waits for a disk.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Container, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, Optional, Protocol, Union

from gateway.clock import JumpWatch, unix_s
from gateway.errors import STATUS_BY_CODE
from gateway.telemetry.events import RequestEvent

if TYPE_CHECKING:
    import sqlite3

OTHER = "other"
"""A model that is not configured: callers cannot invent names that end up on a bill."""
DAY_S = 86_400.0
INTEGER_MAX = 2**63 - 1
PRUNE_INTERVAL_S = 3600.0
STEADY_S = 3600.0
"""For so long the wall clock must have run without a jump, and the process, before rows are too old by it: a clock that
is set a hundred years ahead by mistake, and back within the hour, has nothing deleted."""
PRUNE_ROWS = 1000
"""Deleted per transaction, so that no request's row waits for a month's deletion."""

_INSERT = """INSERT INTO ledger (ts_unix_s, key, model, engine, prompt_tokens, completion_tokens, cost_usd, latency_s,
    status, request_id, error) VALUES """
_VALUES = "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_ROWS_AT_ONCE = (50, 1)
"""Rows that one statement adds: 50 have 550 values, and SQLite before 3.32 takes 999."""
_PRUNE = "DELETE FROM ledger WHERE rowid IN (SELECT rowid FROM ledger WHERE ts_unix_s < ? LIMIT ?)"

Row = tuple[Union[str, float, int, None], ...]
CostLookup = Callable[[str, int, int], Optional[float]]
"""From a model, its prompt tokens and its completion tokens to USD; None: it has no price."""


class Database(Protocol):
    """What the ledger needs of a state database."""

    def submit(self, write: Callable[[sqlite3.Connection], Any]) -> bool:
        """Have it written soon; False when it was dropped."""


class Ledger:
    """Writes down finished requests; call it with batches of events. Thread-safe.

    `paths` are those of inference; other requests, and those without a valid key (401), are not noted: nobody could be
    billed, and anybody could fill the disk. `known_models` gives every name that a request may use now, with the
    configured model it stands for, under which the row goes (None: any name is taken as it is).
    The cost is the event's `extra["cost_usd"]`, else what `cost_of` says. `days`: how long rows are kept; 0: for ever.
    `clock` gives Unix seconds, `monotonic` monotonic ones.
    """

    def __init__(
        self,
        db: Database,
        paths: Container[str],
        *,
        known_models: Optional[Callable[[], Mapping[str, str]]] = None,
        cost_of: Optional[CostLookup] = None,
        days: float = 90.0,
        clock: Callable[[], float] = unix_s,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._db = db
        self._paths = paths
        self._known_models = known_models
        self._cost_of = cost_of
        self._days = days
        self._clock = clock
        self._lock = threading.Lock()
        self._dropped_total = 0
        self._monotonic = monotonic
        self._jumps = JumpWatch(clock, monotonic)
        self._prune_at_s = monotonic()

    @property
    def dropped_total(self) -> int:
        """Rows lost because the database did not keep up or could not be written."""
        return self._dropped_total

    def __call__(self, events: Sequence[RequestEvent]) -> None:
        """Note every inference request of the batch; never blocks."""
        known = self._known_models() if self._known_models is not None else None
        submit = self._db.submit
        noted = [event for event in events if event.path in self._paths and event.status != 401]
        for index, event in enumerate(noted):
            try:
                row = self._row(event, known)
            except Exception:  # a cost that is no number, say: this row, and no other
                self._lost(1)
                continue
            if not submit(_Insert(row, self._lost)):
                self._lost(len(noted) - index)
                return

    def _lost(self, rows: int) -> None:
        with self._lock:
            self._dropped_total += rows

    def _row(self, event: RequestEvent, known: Optional[Mapping[str, str]]) -> Row:
        model = event.model
        if model is not None and known is not None:
            model = known.get(model, OTHER)
        return (
            event.finished_unix_s,
            event.key,
            model,
            event.engine,
            _storable(event.prompt_tokens),
            _storable(event.completion_tokens),
            self._cost(event, model),
            event.latency_s,
            event.status,
            event.request_id,
            event.error if event.error is None or event.error in STATUS_BY_CODE else OTHER,  # a code, never a text
        )

    def _cost(self, event: RequestEvent, model: Optional[str]) -> Optional[float]:
        cost = event.extra.get("cost_usd") if event.extra else None
        if isinstance(cost, (int, float)):
            if not math.isfinite(cost):
                raise ValueError("a cost that is no number")
            return float(cost)
        prompt, completion = event.prompt_tokens, event.completion_tokens
        if self._cost_of is None or model is None or (prompt is None and completion is None):
            return None
        return self._cost_of(model, prompt or 0, completion or 0)

    def tick(self) -> None:
        """Have rows deleted that are too old, hourly and a few at a time, while the clock is steady; call it once a
        second or so, on one thread."""
        steady = self._jumps.steady_s() >= STEADY_S
        now_s = self._monotonic()
        if self._days > 0 and steady and now_s >= self._prune_at_s:
            self._prune_at_s = now_s + PRUNE_INTERVAL_S
            self._db.submit(partial(self._prune, self._clock() - self._days * DAY_S))

    def _prune(self, before_unix_s: float, connection: sqlite3.Connection) -> None:
        if connection.execute(_PRUNE, (before_unix_s, PRUNE_ROWS)).rowcount >= PRUNE_ROWS:
            self._prune_at_s = -math.inf  # there is more: go on at the next tick


def _storable(tokens: Optional[int]) -> Optional[int]:
    """What SQLite can keep. Raises ValueError for what it cannot."""
    if tokens is not None and not -INTEGER_MAX <= tokens <= INTEGER_MAX:
        raise ValueError("more tokens than can be stored")
    return tokens


class _Insert:
    """Adds one row, or with others many (47 -> 18 us a request at 8 000 a second)."""

    __slots__ = ("_lost", "row")

    def __init__(self, row: Row, lost: Callable[[int], None]) -> None:
        self.row = row
        self._lost: Optional[Callable[[int], None]] = lost

    def __call__(self, connection: sqlite3.Connection) -> None:
        try:
            connection.execute(_INSERT + _VALUES, self.row)
        except (OverflowError, TypeError, ValueError):  # the row's own fault: a surrogate, say
            lost, self._lost = self._lost, None  # it may be made again after a rollback
            if lost is not None:
                lost(1)
            raise

    @staticmethod
    def together(connection: sqlite3.Connection, inserts: Sequence[_Insert]) -> None:
        """Add the rows of all of them, in order."""
        begin = 0
        for count in _ROWS_AT_ONCE:
            statement = _INSERT + ", ".join([_VALUES] * count)
            while len(inserts) - begin >= count:
                rows = [insert.row for insert in inserts[begin : begin + count]]
                connection.execute(statement, tuple(itertools.chain.from_iterable(rows)))
                begin += count
