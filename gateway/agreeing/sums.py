"""The metrics of all processes of one gateway, as one.

`Sums` owns nothing but what it has left with the parent; its lock guards that, and is held while it is left. Whoever is
scraped asks the others, on a thread that may wait: each has counted what it has answered before it tells its numbers,
so that who has had an answer from any of them finds it counted once at any of them. What a process has told, or shown,
it has left with the parent before, so that no count goes down when it ends, whatever ends it.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, Optional

from gateway.processes.bus import ASK_S, Bus
from gateway.telemetry.exposition import Family
from gateway.telemetry.merging import LEADER, Data, data_of, families_of, lasting, merged
from gateway.telemetry.registry import Registry

TOPIC = "metrics"
SETTLE_PAUSE_S = 0.001
SETTLE_LOOKS = 40
PROCESSES = "gateway_processes"
PROCESSES_HELP = "Processes of this gateway: those whose numbers these are, and those that have not answered in time."
_RESTLESS = frozenset({"process_cpu_seconds_total"})
"""What grows while nothing happens: no reason to tell anybody."""

Log = Callable[..., None]


class Sums:
    """Adds up, from `bind` on. Thread-safe.

    `settling` notes what has been answered and not been counted yet; what it returns says whether that has been. `log`
    writes a line of the gateway's own log.
    """

    def __init__(self, bus: Bus, registry: Registry, log: Log, sleep: Callable[[float], None] = time.sleep) -> None:
        self._bus = bus
        self._registry = registry
        self._log = log
        self._sleep = sleep
        self._settling: Callable[[], Callable[[], bool]] = lambda: lambda: True
        self._lock = threading.Lock()
        self._tickets = itertools.count(1)
        self._left: Data = []
        self._left_ticket = 0
        self._silent = 0
        bus.on(TOPIC, self._asked)
        registry.callback(PROCESSES, "gauge", PROCESSES_HELP, ("state",), lambda: _states(1, 0), LEADER)

    def bind(self, settling: Callable[[], Callable[[], bool]]) -> None:
        """Before the bus starts."""
        self._settling = settling

    @property
    def waits(self) -> bool:
        """Whether `collect` waits for others."""
        return self._bus.count > 1

    def collect(self, names: Optional[Collection[str]] = None) -> list[Family]:
        """All processes' metrics, or those of these names, and of those that have ended what they have counted. Waits
        ASK_S at most; who has not answered by then is there with what it has left, and is told of."""
        if not self.waits:
            return self._registry.collect(names)
        answers, silent = self._bus.survey(TOPIC, None if names is None else sorted(names))
        own = self._counted()
        snapshots, leader, counted = [_of(own, names)], 0, 1
        for answer in answers:
            is_alive = isinstance(answer, dict)
            try:
                families = families_of(answer["families"] if is_alive else answer)  # else what one has left
            except (ArithmeticError, LookupError, TypeError, ValueError):  # another version's, in a rolling restart
                silent += is_alive
                continue
            if is_alive and answer["leader"]:
                leader = len(snapshots)
            snapshots.append(_of(families, names))
            counted += is_alive
        self._tell_of(silent)
        return [
            family._replace(series=_states(counted, silent)) if family.name == PROCESSES else family
            for family in merged(snapshots, leader)
        ]

    def push(self) -> None:
        """Leave with the parent what has been counted, if that has changed."""
        ticket = next(self._tickets)
        self._leave(ticket, lasting(self._registry.collect()), only_if_changed=True)

    def _asked(self, names: Optional[Sequence[str]], slot: int) -> Any:
        return {"leader": self._bus.leader, "families": data_of(_of(self._counted(), names))}

    def _counted(self) -> list[Family]:
        """This process's metrics, with all in them that it has answered, as far as that comes to be counted soon."""
        settled = self._settling()
        for _ in range(SETTLE_LOOKS):
            if settled():
                break
            self._sleep(SETTLE_PAUSE_S)
        ticket = next(self._tickets)
        families = self._registry.collect()
        self._leave(ticket, lasting(families))
        return families

    def _leave(self, ticket: int, families: Sequence[Family], only_if_changed: bool = False) -> None:
        """Leave with the parent what was read behind `ticket`, unless something newer is there."""
        data = data_of(families)
        quiet = [one for one in data if one[0] not in _RESTLESS]
        with self._lock:
            if ticket < self._left_ticket or (only_if_changed and quiet == self._left):
                return
            self._left, self._left_ticket = quiet, ticket
            self._bus.keep(TOPIC, data)  # under the lock, so that an older one is never behind it; it does not block

    def _tell_of(self, silent: int) -> None:
        with self._lock:
            before, self._silent = self._silent, silent
        if silent != before:
            level = "warning" if silent else "info"
            self._log(level, "processes_silent", silent=silent, waited_s=ASK_S)


def _states(counted: int, silent: int) -> list[tuple[tuple[str, ...], float]]:
    return [(("counted",), counted), (("silent",), silent)]


def _of(families: Sequence[Family], names: Optional[Collection[str]]) -> Sequence[Family]:
    return families if names is None else [family for family in families if family.name in names]
