"""What listens to finished requests beside the metrics and the log: built from the settings, started and ended at once.

Owns its parts and nothing else; each has a thread of its own for whatever takes long, and none is waited for by a
request: `observe` is called on telemetry's thread with each batch, and hands over.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Callable, Optional, Protocol
from urllib.parse import urlsplit

from gateway.agreeing.agreement import Agreement
from gateway.alerts.alerting import Alerts, Sources
from gateway.alerts.rulesfile import rules_at
from gateway.alerts.sending import Log, Sender, target_of
from gateway.guard import Guard
from gateway.inference import InferenceFactory
from gateway.pipeline import PATHS
from gateway.settings import Settings
from gateway.telemetry import gauges
from gateway.telemetry.events import RequestEvent
from gateway.telemetry.exposition import Family
from gateway.telemetry.metrics import DURATION_BUCKETS_S
from gateway.telemetry.readings import NAMES, QUEUE_NAMES, Numbers, read_numbers, read_queue
from gateway.telemetry.registry import Registry
from gateway.telemetry.slo import SloFigures, Slos
from gateway.traces.building import exporters_of
from gateway.traces.spans import Find
from gateway.workers import WorkerPool


class Part(Protocol):
    """Something that listens. `observe` must not block."""

    def observe(self, events: Sequence[RequestEvent], /) -> None: ...

    def start(self) -> None: ...

    def close(self, timeout_s: float, /) -> None:
        """Send or write what is left, within so many seconds, and end. After the last `observe`."""


class Observing:
    """All parts that the settings ask for. `start` and `close` belong to one thread.

    `log` writes a line of the gateway's own log, `find_engine` tells where an engine is, `known_models` gives every
    name that a request may use now, with the configured model it stands for. Raises ConfigurationError for a file that
    cannot be used. `live`: the console's part; None: it is off.
    """

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        log: Log,
        find_engine: Find,
        known_models: Callable[[], Mapping[str, str]],
        live: Optional[Part],
    ) -> None:
        self._registry = registry
        self._collect: Callable[[Collection[str]], list[Family]] = registry.collect
        self._read: Sequence[Family] = ()  # by the thread `alerts`, at its last look
        self._log = log
        self._alerts_url = settings.alerts_url
        availability, latency_ms = settings.slo_availability, settings.slo_latency_ms
        self._has_slos = availability is not None or latency_ms is not None
        self._slos = Slos(availability, latency_ms, frozenset(PATHS), known_models) if self._has_slos else None
        self._alerts = Alerts(rules_at(settings.alerts_file, self._has_slos))
        console = () if live is None else (live,)
        slos = () if self._slos is None else (self._slos,)
        exporters = exporters_of(settings, registry, log, find_engine)
        # Alerts end first: they take two seconds at most, a collector that hangs would leave them none.
        self._parts: tuple[Part, ...] = (self._alerts, *exporters, *console, *slos)

    def bind(self, factory: InferenceFactory, workers: WorkerPool, guard: Guard, url: str) -> None:
        """Before `start`: what the parts look at, and where the gateway is found."""
        registry = self._registry
        sources = Sources(
            numbers=self._read_numbers,
            engines=factory.engines,
            queue=lambda: read_queue(self._read),
            budgets=lambda: guard.budgets.used(),
            slos=self._figures,
            bounds_s=DURATION_BUCKETS_S,
        )
        sender = None if self._alerts_url is None else Sender(target_of(self._alerts_url), f"{url}/", self._log)
        instance = f"{socket.gethostname()}:{urlsplit(url).port}"
        self._alerts.bind(sources, self._log, instance, sender)
        gauges.bind_alerts(
            registry,
            self._alerts.counts,
            lambda: [] if sender is None else [((result,), count) for result, count in sender.counts.items()],
        )
        gauges.bind_slos(registry, self._figures)

    def agree(self, agreement: Agreement) -> None:
        """Before `start`: of several processes the leader judges, over what all of them have counted."""
        bus, alerts = agreement.bus, self._alerts
        if not agreement.waits:
            return
        self._collect = agreement.sums.collect
        alerts.leads = lambda: bus.leader
        alerts.share = lambda told: bus.tell("alerts", told)
        bus.on("alerts", lambda told, slot: alerts.hear(told))
        agreement.keep("alerts", alerts)
        bus.on_leader(alerts.look_now)
        agreement.count("slowdowns", alerts.slowdowns)
        if self._slos is not None:
            agreement.count("slos", self._slos)
            agreement.keep("slos", self._slos)

    @property
    def observers(self) -> tuple[Part, ...]:
        """Those that are called with finished requests."""
        return self._parts

    def alerts(self) -> list[dict[str, Any]]:
        """Every alert that is pending, firing, or has resolved within an hour. Any thread; a microsecond each."""
        return self._alerts.told()

    def slos(self) -> list[dict[str, Any]]:
        """What is left of each model's error budgets; [] without objectives. Any thread."""
        return [] if self._slos is None else self._slos.told()

    def reload(self, settings: Settings) -> int:
        """Read the rules of alerts again; returns how many there are. Raises ConfigurationError, nothing changed."""
        rules = rules_at(settings.alerts_file, self._has_slos)
        self._alerts.replace(rules)
        return len(rules.rules)

    def start(self) -> None:
        """Start the threads of all parts."""
        for part in self._parts:
            part.start()

    def close(self, timeout_s: float) -> None:
        """End all parts, within so many seconds together."""
        deadline_s = time.monotonic() + timeout_s
        for part in self._parts:
            part.close(max(0.0, deadline_s - time.monotonic()))

    def _read_numbers(self) -> Numbers:
        self._read = self._collect((*NAMES, *QUEUE_NAMES))  # together: where there are several processes, all are asked
        return read_numbers(self._read)

    def _figures(self) -> Sequence[SloFigures]:
        return [] if self._slos is None else self._slos.read()
