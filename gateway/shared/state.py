"""What gateways share in Redis, put together: the line to it, and each part that asks or tells.

`SharedState` owns the line and the parts, and says in the log when Redis is left alone and when it is back. No lock.
"""

from __future__ import annotations

import time
from typing import Callable, Optional

from gateway.keys.auth import Authenticator
from gateway.limits.budgets import Budgets
from gateway.limits.limiter import Limiter
from gateway.limits.quotas import Bursts, RateLimits
from gateway.settings import Settings
from gateway.shared.budgets import SharedBudgets
from gateway.shared.hints import Hints
from gateway.shared.leases import Leases
from gateway.shared.limits import MODES, SharedLimits
from gateway.shared.line import Job, Line
from gateway.shared.revocations import Revocations, Table, name_digest
from gateway.shared.scopes import Scopes

Log = Callable[..., None]


class SharedState:
    """The shared state in the Redis at `url`. Thread-safe. `start` it, `close` it.

    `fail`: what becomes of a request that a limit applies to when Redis cannot be asked, `local` or `closed`. `local`
    is the limiter that decides then, whose limits for `everybody` and for each address are these. `bursts`: of all
    gateways together, which are larger than the local ones. `timeout_s` bounds
    every wait. `processes`: of this gateway, each of which is one to the others, and knows of these before Redis has
    said anything. Raises ConfigurationError without redis-py or for a malformed URL.
    """

    def __init__(
        self,
        url: str,
        timeout_s: float,
        fail: str,
        log: Log,
        local: Limiter,
        everybody: RateLimits,
        address_rpm: Optional[int],
        bursts: Bursts,
        clock: Callable[[], float] = time.monotonic,
        processes: int = 1,
    ) -> None:
        self._log = log
        self._fail = fail
        self.line = Line(url, timeout_s, self._beat, self._changed)
        scopes = Scopes(everybody, address_rpm, bursts)
        self.limits = SharedLimits(self.line, local, scopes, fail, timeout_s, clock)
        self.limits.see_peers(processes)
        self._authenticator: Optional[Authenticator] = None
        self._own_budgets: Callable[[], Budgets] = Budgets
        own = (self.limits.name, lambda: self.limits.peers, lambda: self._own_budgets())
        self.budgets = SharedBudgets(self.line, *own, fail, timeout_s)
        self.revocations = Revocations(self._keys)
        self.hints = Hints(self.line, self.limits.name)
        self.leases = Leases(self.line, timeout_s)

    def join(self, authenticator: Authenticator, budgets: Callable[[], Budgets]) -> None:
        """Have keys refused that are revoked at any gateway, and those told that are revoked here; have this gateway's
        own budgets learn."""
        self._own_budgets = budgets
        authenticator.refused = self.revocations.refused
        authenticator.name_digest = name_digest
        self._authenticator = authenticator

    def _keys(self) -> Optional[Table]:
        store = None if self._authenticator is None else self._authenticator.store
        return None if store is None else store.lookup_table()

    def start(self) -> None:
        """Connect, in the background, and be one of the gateways from then on."""
        self.line.start()

    def close(self, timeout_s: float) -> None:
        """Tell what is left to be told, within `timeout_s`, and leave."""
        self.line.close(timeout_s, self.limits.farewell())

    def figures(self) -> tuple[list[tuple[str, int]], int, int, int]:
        """What each mode has decided, the place of the mode that it is now, the gateways, the failures of Redis."""
        decided = list(self.limits.decided.items())
        return decided, MODES.index(self.limits.mode), self.limits.peers, self.line.errors

    def _beat(self) -> list[Job]:
        parts = (self.limits, self.revocations, self.budgets, self.hints, self.leases)
        return [job for part in parts for job in part.beat()]

    def _changed(self, reason: Optional[str]) -> None:
        if reason is None:
            for job in [*self.limits.come_back(), *self.budgets.come_back()]:
                self.line.tell(job)
            self._log("warning", "shared_state", mode="shared", reason="Redis answers again")
            return
        self._log("warning", "shared_state", mode=self._fail, reason=reason, gateways=self.limits.peers)


def shared_state_of(
    settings: Settings,
    log: Log,
    local: Limiter,
    everybody: RateLimits,
    bursts: Bursts,
    clock: Callable[[], float],
    processes: int = 1,
) -> Optional[SharedState]:
    """What the settings have gateways share; None: without REDIS_URL this one is alone."""
    if settings.redis_url is None:
        return None
    timeout_s = settings.redis_timeout_ms / 1000
    limits = (local, everybody, settings.rate_limit_ip_rpm, bursts)
    return SharedState(settings.redis_url, timeout_s, settings.shared_fail, log, *limits, clock, processes)
