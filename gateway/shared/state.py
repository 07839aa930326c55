"""What gateways share in Redis, put together: the line to it, and each part that asks or tells.

`SharedState` owns the line and the parts, and says in the log when Redis is left alone and when it is back. No lock.
"""

from __future__ import annotations

import contextlib
import hashlib
import platform
from pathlib import Path
from typing import Callable, Optional

from gateway.keys.auth import Authenticator
from gateway.limits.budgets import Budgets
from gateway.limits.limiter import Limiter
from gateway.limits.quotas import Bursts, RateLimits
from gateway.limits.sharedtable import SharedTable
from gateway.settings import Settings
from gateway.shared.budgets import SharedBudgets
from gateway.shared.hints import Hints
from gateway.shared.leases import Leases
from gateway.shared.limits import MODES, SharedLimits
from gateway.shared.line import Job, Line
from gateway.shared.revocations import Revocations, Table
from gateway.shared.scopes import Scopes
from gateway.shared.scripts import PLACE_BYTES

Log = Callable[..., None]


class SharedState:
    """The shared state in the Redis at `url`, as the settings say. Thread-safe. `start` it, `close` it.

    `limiter` decides when Redis cannot be asked, by the same limits for `everybody` and for each address. `bursts`: of
    all gateways together, which are larger than its own. `table`: where this is one of several processes of a gateway,
    each of which is one to the others, and knows of these before Redis has said anything. `authenticator` refuses what
    is revoked at any gateway, and what is revoked here is told; `budgets` gives this gateway's own, which learn.
    `clock` is the limiter's. Raises ConfigurationError without redis-py or for a malformed URL.
    """

    def __init__(
        self,
        url: str,
        settings: Settings,
        log: Log,
        limiter: Limiter,
        everybody: RateLimits,
        bursts: Bursts,
        table: Optional[SharedTable],
        authenticator: Authenticator,
        budgets: Callable[[], Budgets],
        clock: Callable[[], float],
    ) -> None:
        self._log = log
        self._fail = fail = settings.shared_fail
        timeout_s = settings.redis_timeout_ms / 1000
        self.line = Line(url, timeout_s, self._beat, self._changed)
        scopes = Scopes(everybody, settings.rate_limit_ip_rpm, bursts)
        place = b""  # of a port that is chosen at each start there is no next one
        if settings.port:
            place = _place_of(settings.host, settings.port, 0 if table is None else table.column)
        self.limits = SharedLimits(self.line, limiter, scopes, fail, timeout_s, clock, place=place)
        self.limits.see_peers(1 if table is None else table.slots)
        own = (self.limits.peer, lambda: self.limits.peers, budgets)
        self.budgets = SharedBudgets(self.line, *own, fail, timeout_s)
        self._authenticator = authenticator
        self.revocations = Revocations(self._keys)
        authenticator.refused = self.revocations.refused
        self.hints = Hints(self.line, self.limits.name)
        self.leases = Leases(self.line, timeout_s)

    def _keys(self) -> Optional[Table]:
        store = self._authenticator.store
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


def _place_of(host: str, port: int, column: int) -> bytes:
    """Where a gateway is, alike for the next one there and for no other: the machine since it was started, the network
    of its pod or container, the address, which of several processes."""
    network, boot = 0, ""
    with contextlib.suppress(OSError):  # only Linux has both
        network = Path("/proc/self/ns/net").stat().st_ino
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii")
    text = f"{platform.node()} {boot} {network} {host} {port} {column}"
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=PLACE_BYTES // 2).hexdigest().encode()
