"""The limiter of a gateway of several processes: the same decisions, over what all of them have let pass.

`TableLimiter` loads the scopes of a request from the shared table, has the `Limiter` decide, and stores them, all
under the table's lock. Its own lock, taken before, guards what this process knows besides: its scopes, and its own
places. Nothing waits for another process but for the table's lock, and that wait has a bound.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Callable, Optional, Union

from gateway.limits.addresses import address_group
from gateway.limits.gcra import TokenGcra
from gateway.limits.limiter import (
    NO_KEY_LIMITS,
    NO_RATE_LIMITS,
    Admission,
    KeyLimits,
    Limiter,
    Refusal,
    Subject,
    refusal_of,
)
from gateway.limits.places import Places, averaged
from gateway.limits.quotas import AddressScopes, Bursts, Header, RateLimits, Scope, headers_of, read_scopes
from gateway.limits.scoperecords import Passed, ScopeRecords
from gateway.limits.sharedtable import MARKS_MAX, SharedTable

PRIORITIES = ("low", "normal", "high")
_NOBODY_S = float("inf")


class TablePlaces(Places):
    """The places of a scope, of which other processes hold some. Its own are counted here as ever."""

    __slots__ = ("_others", "_others_since_s")

    def __init__(self) -> None:
        super().__init__()
        self._others = 0
        self._others_since_s = _NOBODY_S

    def __len__(self) -> int:
        return len(self._started_s) + self._others

    @property
    def own(self) -> tuple[int, float]:
        """How many this process holds, and since when the oldest."""
        return len(self._started_s), self.oldest_s(0.0)

    def load(self, others: int, others_since_s: float, usual_s: float) -> None:
        """Take over what the others hold."""
        self._others = others
        self._others_since_s = others_since_s
        self.usual_s = usual_s

    def wait_s(self, now_s: float, usual_s: float = 0.0) -> float:
        return self.wait_since_s(min(self.oldest_s(now_s), self._others_since_s), now_s, usual_s)


class TableScope(Scope):
    """A scope whose state is a record of the table. What is here is what was loaded last."""

    __slots__ = ("_at", "_digest", "_passed", "_records", "held", "resized")

    def __init__(self, name: str, digest: bytes, records: ScopeRecords) -> None:
        super().__init__(name)
        self._digest = digest
        self._records = records
        self._at = -1
        self._passed: Passed = ()
        self.places = self.held = TablePlaces()
        self.resized = False
        """Whether the limits here are others than those under which the record was written."""

    def is_active(self, now_s: float) -> bool:
        """Whether this process holds places; all else is remembered in the table."""
        return self.held.own[0] > 0

    def load(self, now_s: float, claim: bool = True) -> None:
        """Take over what has passed in all processes. `claim` False: make no record if there is none.

        Where there is no room for a record either, this process goes by what it has let pass itself.
        """
        records = self._records
        self._at = at = records.find(self._digest, self._at)
        if at < 0 and claim:
            self._at = at = records.claim(self._digest, now_s)
        if at < 0:
            self.held.load(0, _NOBODY_S, self.held.usual_s)
            return
        passed = records.read(at)
        self._passed = passed or records.nothing()
        requests, tokens = self.requests, self.tokens
        if passed is None:
            records.table.count(torn=1)
            self.use_up(now_s)
            self.store()
        else:
            self.resized = False
            if requests is not None:
                requests.restore(passed[0], passed[1], now_s)
                self.resized = passed[1] != requests.interval_s
            if tokens is not None:
                tokens.restore_marks(passed[4:], passed[2], passed[3], now_s)
                self.resized = self.resized or passed[3] != tokens.interval_s
        if isinstance(self.limits, KeyLimits) and self.limits.concurrency:
            self.held.load(*records.read_places(at))

    def store(self) -> None:
        """Tell all processes what has passed since it was loaded. A limit that this process has not stays as it is."""
        if self._at < 0:
            return
        passed = self._passed
        requests, tokens = self.requests, self.tokens
        if requests is not None:
            passed = (requests.tat_s, requests.interval_s, *passed[2:])
        if tokens is not None:
            tokens.squeeze(MARKS_MAX)
            passed = (passed[0], passed[1], tokens.tat_s, tokens.interval_s, *tokens.state())
        self._records.write(self._at, passed)

    def settle(self, number: int, reserved: int, real: int, now_s: float) -> None:
        """Correct a reservation in the record, under the limits under which that was written."""
        records = self._records
        self._at = at = records.find(self._digest, self._at)
        passed = None if at < 0 else records.read(at)
        if passed is None or not passed[3]:  # nothing is known of it any more, or it is known here alone
            if self.tokens is not None:
                self.tokens.settle(number, reserved, real, now_s)
            return
        tokens = TokenGcra(60.0 / passed[3], 1)
        tokens.restore_marks(passed[4:], passed[2], 0.0, now_s)
        tokens.settle(number, reserved, real, now_s)
        tokens.squeeze(MARKS_MAX)
        records.write(at, (passed[0], passed[1], tokens.tat_s, passed[3], *tokens.state()))

    def store_places(self) -> None:
        """Tell how many places this process holds."""
        at = self._at = self._records.find(self._digest, self._at)
        if at >= 0:
            self._records.write_places(at, *self.held.own, self.held.usual_s)

    def give_back(self, number: int, now_s: float) -> float:
        """Give a place back; returns for how many seconds it was held. Needs no lock: as long as this process holds
        places there the record stays where it is."""
        at = self._at = self._records.find(self._digest, self._at)
        if at >= 0:
            self.held.usual_s = self._records.read_usual_s(at)
        held_s = self.held.give_back(number, now_s)
        self.store_places()
        return held_s

    def use_up(self, now_s: float) -> None:
        """Let nothing pass at once: what has passed is not known."""
        if self.requests is not None:
            self.requests.use_up(now_s)
        if self.tokens is not None:
            self.tokens.use_up(now_s)


class TableAddresses(AddressScopes):
    """The requests a minute of each address, of all processes."""

    def __init__(self, rpm: int, bursts: Bursts, records: ScopeRecords) -> None:
        super().__init__(rpm, bursts)
        self._records = records
        self._digest = b""

    def load(self, address: str, now_s: float) -> Scope:
        group = address_group(address)
        name = group if isinstance(group, bytes) else group.encode("utf-8", "surrogatepass")
        self._digest = self._records.table.digest_of("address" if group is name else "text", name)
        tat_s = self._records.read_address(self._digest)
        self._gcra.tat_s = now_s if tat_s is None else tat_s
        return self._scope

    def save(self, now_s: float) -> None:
        self._records.write_address(self._digest, self._gcra.tat_s, now_s)


class TableLimiter(Limiter):
    """A `Limiter` over the shared table. Thread-safe. `look_after` it; the clock must be the machine's
    (`time.monotonic`), which is the same for all processes."""

    def __init__(
        self,
        table: SharedTable,
        everybody: RateLimits = NO_RATE_LIMITS,
        address_rpm: Optional[int] = None,
        burst_share: float = 0.1,
        token_burst_share: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._table = table
        self._records = ScopeRecords(table)
        self._own_factors: Mapping[str, float] = {}
        self._counts = table.counts()
        super().__init__(everybody, address_rpm, burst_share, token_burst_share, clock)
        if address_rpm:
            self._addresses = TableAddresses(address_rpm, self._bursts, self._records)

    def set_factors(self, factor_by_priority: Mapping[str, float]) -> None:
        """What this process would multiply limits by. All apply the lowest that any says: an overload is not held
        back by who does not see it, and limits are the same wherever a request comes in."""
        self._own_factors = dict(factor_by_priority)
        self._agree()

    def look_after(self, log: Callable[..., None]) -> None:
        """Forget processes that are gone, hear what the others multiply limits by, and `log` what went wrong with the
        table; of all processes one does."""
        table = self._table
        table.sweep()
        self._agree()
        before, self._counts = self._counts, table.counts()
        if self._counts != before and table.is_first():
            log("warning", "shared_limits", **self._counts)

    def _agree(self) -> None:
        self._table.publish([self._own_factors.get(priority, 1.0) for priority in PRIORITIES])
        super().set_factors(dict(zip(PRIORITIES, self._table.lowest_factors())))

    def admit(self, subject: Subject, now_s: float) -> Union[Admission, Refusal]:
        has_key_limits = subject.key_limits is not NO_KEY_LIMITS and any(subject.key_limits)
        has_model_limits = subject.model_limits is not NO_RATE_LIMITS and any(subject.model_limits)
        if self._for_keys_and_models_only and not has_key_limits and not has_model_limits:
            return self.unlimited
        table = self._table
        with self._lock:
            with table:
                scopes = self._scopes_locked(subject, now_s, has_key_limits, has_model_limits)
                shared = _load(scopes, now_s)
                refusal = refusal_of(scopes, subject, now_s, table.usual_s)
                if refusal is not None:
                    self._store_locked([scope for scope in shared if scope.resized])
                    return refusal
                admission = self._admit_locked(scopes, subject, now_s)
                overtaken = self._store_locked(shared)
                if subject.key_limits.concurrency:
                    shared[0].store_places()
            if overtaken:
                self._use_up_locked(shared, now_s)
            return admission

    def headers(self, subject: Subject, now_s: float) -> tuple[Header, ...]:
        with self._lock, self._table:
            scopes = self._scopes_locked(subject, now_s, any(subject.key_limits), any(subject.model_limits))
            _load(scopes, now_s, claim=False)
            return headers_of(read_scopes(scopes, now_s))

    def _settle(self, admission: Admission, real_tokens: int) -> None:
        reserved = admission._tokens
        now_s = self.clock()
        with self._lock:
            reservations, admission._reservations = admission._reservations, ()
            shared = _shared([scope for scope, _, _ in reservations])
            with self._table:
                for scope, (_, _, number) in zip(shared, reservations):
                    scope.settle(number, reserved, real_tokens, now_s)
                overtaken = self._table.overtaken()
            if overtaken:
                self._use_up_locked(shared, now_s)

    def _release(self, admission: Admission) -> None:
        now_s = self.clock()
        with self._lock:
            slot, admission._slot = admission._slot, None
            if slot is not None:
                for scope in _shared([slot[0]]):
                    self._table.usual_s = averaged(self._table.usual_s, scope.give_back(slot[2], now_s))

    def _store_locked(self, scopes: Sequence[TableScope]) -> bool:
        """Store them; whether that was of no use, because the others had gone on meanwhile."""
        for scope in scopes:
            scope.store()
        return self._table.overtaken()

    def _use_up_locked(self, scopes: Sequence[TableScope], now_s: float) -> None:
        """This process stood still with the lock, went on and has overwritten what the others had let pass meanwhile.
        How much that was nobody knows any more: as much as may have been."""
        with self._table:
            for scope in scopes:
                scope.load(now_s)
                scope.use_up(now_s)
                scope.store()

    def _new_scope(self, kind: str, name: Optional[str]) -> Scope:
        if name is None:
            digest = self._table.digest_of("nobody", b"")
        else:
            digest = self._table.digest_of(kind, name.encode("utf-8", "surrogatepass"))
        return TableScope(kind, digest, self._records)


def limiter_of(
    table: Optional[SharedTable],
    everybody: RateLimits,
    address_rpm: Optional[int],
    burst_share: float,
    token_burst_share: float,
    clock: Callable[[], float],
) -> Limiter:
    """An ordinary limiter, or one over the table where there is one."""
    limits = everybody, address_rpm, burst_share, token_burst_share, clock
    return Limiter(*limits) if table is None else TableLimiter(table, *limits)


def _load(scopes: Sequence[Scope], now_s: float, claim: bool = True) -> list[TableScope]:
    """Load those that have a record; an address has been loaded already."""
    shared = _shared(scopes)
    for scope in shared:
        scope.load(now_s, claim)
    return shared


def _shared(scopes: Sequence[Scope]) -> list[TableScope]:
    return [scope for scope in scopes if isinstance(scope, TableScope)]
