"""The composition root: builds everything from Settings, and starts, reloads, drains and stops it.

Owns every part of a running gateway. `stop` may be called from any thread but the accepting one; a second call of
`stop` while the first one drains ends it at once (`draining.py`).
"""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, Callable, Optional, TextIO

from gateway.agreeing.agreement import Agreement
from gateway.agreeing.joining import agree
from gateway.announcing import dotenv_warnings, shown_path, url_of
from gateway.api.document import OPERATIONS
from gateway.configuration import ConfigurationError
from gateway.discovery.watch import Change
from gateway.draining import Draining
from gateway.gauging import bind_metrics, engine_at, provider_of
from gateway.guard import Guard
from gateway.inference import InferenceFactory
from gateway.limits.sharedtable import SharedTable, SharedTableError
from gateway.observing import Observing
from gateway.pipeline import PATHS, Pipeline
from gateway.processes.bus import Alone, Bus
from gateway.program import shows_colours
from gateway.reuse.building import caches_of
from gateway.reuse.caches import Caches
from gateway.routing.breaker import BreakerPolicy
from gateway.routing.specs import FleetSpec
from gateway.routing.standing import StateChange
from gateway.schemas.registry import RegistryError, SchemaRegistry
from gateway.server.admin import Admin
from gateway.server.cachepages import CachePages
from gateway.server.livefeed import LiveFeed
from gateway.server.parts import Parts
from gateway.server.relay import Relay
from gateway.server.routes import Routes
from gateway.server.server import GatewayServer
from gateway.server.underway import ServerContext
from gateway.settings import Settings, as_given, reload
from gateway.showing import live_ticker
from gateway.telemetry.gauges import bind_in_flight
from gateway.telemetry.metrics import GatewayMetrics
from gateway.telemetry.observe import Telemetry
from gateway.telemetry.process import register_process_metrics
from gateway.telemetry.registry import Registry
from gateway.telemetry.textlines import look_of
from gateway.tools.decisionlog import DecisionLog, header, seed_of
from gateway.traces.spans import EngineAt
from gateway.workers import WorkerPool

KNOWN_PATHS = frozenset(operation.path for operation in OPERATIONS)
END_TIMEOUT_S = 5.0


class Gateway:
    """A running gateway: listening as soon as it is made (port 0 takes a free one), serving after `start`.

    One of several processes gets its end of their `bus`, and the listening `sockets` of all, its own at its slot.
    Raises ConfigurationError and StateDbError for files that cannot be used, OSError when the address cannot be bound.
    """

    def __init__(
        self,
        settings: Settings,
        log_stream: Optional[TextIO] = None,
        bus: Optional[Bus] = None,
        sockets: Sequence[socket.socket] = (),
    ) -> None:
        self.settings = settings
        self.bus = Alone() if bus is None else bus
        self.seed = seed_of(settings, self.bus.slot)
        self.bus.crashed = self._crashed
        self._sockets = tuple(sockets)
        self._started = False
        self.schemas = _open_schemas(settings)
        self.registry = Registry()
        self.metrics = GatewayMetrics(self.registry, self._counted_names, KNOWN_PATHS, self._provider_of)
        register_process_metrics(self.registry)
        self.agreement = Agreement(self.bus, self.registry, self._log, self._crashed)
        told = (lambda: self.observing.alerts(), lambda: self.observing.slos())
        self.live = live_ticker(settings, self, self._crashed, *told)
        names = (self._engine_at, self._counted_names)
        self.observing: Observing = Observing(settings, self.registry, self._log, *names, self.live)
        self.telemetry = self._start_telemetry(sys.stderr if log_stream is None else log_stream)
        self.guard = _open_guard(settings, self.telemetry, self._counted_names)
        self.decisions = self._decision_log()
        self.caches: Optional[Caches] = None  # engines may list models before there are any
        self.factory = self._new_factory()
        if self.guard.shared is not None:
            self.guard.shared.hints.bind(lambda: self.factory.router.pools, self._engine_changed)
        self.workers = WorkerPool(
            settings.workers, settings.queue_size, self._crashed, queue_timeout_s=settings.queue_timeout_s
        )
        self._open_caches()
        parts = (self.factory, self.guard, self.workers, self.telemetry, self.caches, self.schemas)
        self.pipeline = Pipeline(settings, *parts)
        self.relay = Relay(settings.stream_idle_timeout_s, self._crashed)
        bind_metrics(self.registry, self.factory, self.workers, self.guard, self.caches)
        bind_in_flight(self.registry, lambda: self.pipeline.in_flight)
        self.server = self._listen()
        self.observing.bind(self.factory, self.workers, self.guard, self.url)
        agree(self)
        self._open_decision_log()

    def _start_telemetry(self, stream: TextIO) -> Telemetry:
        log_format = self.settings.log_format
        if log_format == "auto":
            log_format = "text" if stream.isatty() else "json"
        parts = [part.observe for part in self.observing.observers]
        observers = (lambda events: self.guard.observe(events), *parts)  # there is no guard yet, nor a request
        return Telemetry(
            *(stream, log_format, self.settings.log_level, self.metrics, observers),
            slow_s=self.settings.slow_ms / 1000,
            process=self.bus.slot if self.bus.count > 1 else None,
            look=look_of(stream, shows_colours(stream, os.environ)),
        )

    def _log(self, level: str, event: str, **fields: object) -> None:
        self.telemetry.log(level, event, **fields)  # there is none yet when this is handed out, nor anything to tell

    def _engine_at(self, model: str, engine: str) -> Optional[EngineAt]:
        return engine_at(self.factory, model, engine)

    def _counted_names(self) -> Mapping[str, str]:
        return self.factory.router.counted_names()  # there is none yet when this is handed out, nor a request

    def _provider_of(self, model: str, engine: str) -> str:
        return provider_of(self.factory, model, engine)

    def _decision_log(self) -> Optional[DecisionLog]:
        path = self.settings.decision_log
        first, log, bus = header(self.settings, self.seed), self.telemetry.log, self.bus
        return None if path is None else DecisionLog(path, first, log, bus.slot if bus.count > 1 else None)

    def _new_factory(self) -> InferenceFactory:
        return new_factory(
            self.settings,
            rng=Random(self.seed),
            recorder=None if self.decisions is None else self.decisions.record,
            on_change=self._engine_changed,
            on_crash=self._attempt_crashed,
            on_fleet=self._take_fleet,
            on_discovery=lambda change: _log_change(self.telemetry, change),
            peers=self.agreement.engines,
        )

    def _take_fleet(self, fleet: FleetSpec) -> None:
        """Other models are served from now on."""
        self.guard.set_fleet(fleet)
        self.metrics.departed.look({(model, engine.id or "") for model, engine in fleet.engines()})
        if self.caches is not None and not fleet.by_engines:  # else the answers of any are kept
            self.caches.keep_models([model.name for model in fleet.models])
        if fleet.groups and self._started:
            self.telemetry.log("info", "models", models=[model.name for model in fleet.models])

    def _open_caches(self) -> None:
        try:
            caches = caches_of(self.settings, self.factory, self.telemetry.log)
        except BaseException:
            self.factory.close()
            self.guard.close(END_TIMEOUT_S)
            self.telemetry.close(END_TIMEOUT_S)
            raise
        self.caches = caches
        self._take_fleet(self.factory.router.fleet)
        if caches is not None:
            caches.start()

    def _listen(self) -> GatewayServer:
        """Everything that a request needs is there. Raises OSError, with all of it closed."""
        everybody = self.agreement
        self.cache_pages = CachePages(self.caches, self.metrics, self.telemetry, everybody)
        self.feed = None if self.live is None else LiveFeed(self.pipeline, self.relay, self.live)
        alerts = self.observing.alerts
        admin = Admin(self.pipeline, self.cache_pages, everybody)
        routes = Routes(self.pipeline, everybody, admin, alerts, self.feed)
        self.pipeline.check_origin = routes.check_browser
        telemetry = self.telemetry
        context = ServerContext(self.settings, self.pipeline, self.relay, routes, telemetry.log, telemetry.help)
        try:
            server = GatewayServer((self.settings.host, self.settings.port), context, self._sockets, self.bus.slot)
        except OSError:
            self._close_parts()
            raise
        self.pipeline.verify.begin = Parts(self.pipeline, server.loop, server.threads).begin
        self.draining = Draining(self.settings, self.pipeline, server, self.feed, telemetry.log)
        self.bus.on_accept = server.accept_on
        self.bus.on_round = lambda: server.loop.soon(lambda _: self.bus.goes_round())
        return server

    def _open_decision_log(self) -> None:
        """Last of all: it empties the file, which a start that fails must not do. Raises as `start`, all closed."""
        if self.decisions is None:
            return
        try:
            self.decisions.start()
        except BaseException:
            self.server.server_close()
            self.server.end_connections(0.0)
            self._close_parts()
            raise

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that are listened on."""
        host, port = self.server.server_address[:2]
        return str(host), int(port)

    @property
    def url(self) -> str:
        """Where clients find the gateway."""
        return url_of(*self.address)

    def start(self) -> Gateway:
        """Serve, on threads of its own."""
        self._started = True
        self.bus.start()
        self.guard.start()
        self.workers.start()
        self.agreement.start()  # before any request comes: what others know is known here, too
        self.observing.start()
        self.server.start()
        self.telemetry.log(
            "info",
            "started",
            url=self.url,
            models=self.factory.router.labels(),
            authentication=self.guard.authenticator.required,
            **({} if self.settings.dotenv_path is None else {"dotenv": shown_path(self.settings)}),
        )
        for warning in dotenv_warnings(self.settings.dotenv_warnings):
            self.telemetry.log("warning", "dotenv", message=warning)
        self._look_at_sandbox()
        return self

    def _look_at_sandbox(self) -> None:
        self.pipeline.verify.look(lambda message: self.telemetry.log("warning", "sandbox", message=message))

    def reload(self, settings: Settings) -> None:
        """Take over the fleet of new settings; requests under way go on as they are. One thread at a time."""
        self.factory.reload(settings.fleet, settings.engine_keys)
        self.agreement.engines.learn(lists_only=True)
        self.telemetry.log("info", "reloaded", models=self.factory.router.labels())
        self._look_at_sandbox()

    def stop(self, drain_timeout_s: Optional[float] = None) -> bool:
        """Drain (None: DRAIN_TIMEOUT, after DRAIN_DELAY; 0: not at all) and stop; True when nothing was cut off."""
        if not self.draining.begin():
            return False
        settings = self.settings
        delay_s = settings.drain_delay_s if drain_timeout_s is None else 0.0
        complete = self.draining.drain(
            delay_s, settings.drain_timeout_s if drain_timeout_s is None else drain_timeout_s
        )
        self._close_parts()
        return complete

    def hurry(self) -> None:
        """End a drain that is under way at once. Safe in a signal's wake."""
        self.draining.hurry()

    def hand_over(self) -> bool:
        """Stop as `stop` does, but leave clients to the process that has taken this one's place without their noticing
        (`Draining.hand_over`)."""
        if not self.draining.begin():
            return False
        complete = self.draining.hand_over()
        self._close_parts()
        return complete

    def _close_parts(self) -> None:
        self.relay.close(END_TIMEOUT_S)
        self.workers.close(END_TIMEOUT_S)
        if self._started:  # else the start has failed, and is told otherwise
            self.telemetry.log("info", "stopped")
        self.telemetry.flush(END_TIMEOUT_S)  # the ledger's last rows
        self.observing.close(END_TIMEOUT_S)
        self.guard.close(END_TIMEOUT_S)
        self.pipeline.verify.close(END_TIMEOUT_S)
        self.pipeline.reuse.close(END_TIMEOUT_S)
        self.factory.close()  # after what is to last: it waits for probes under way
        if self.decisions is not None:
            self.decisions.close(END_TIMEOUT_S)
        self.telemetry.close(END_TIMEOUT_S)
        self.agreement.close(END_TIMEOUT_S)  # last of all: what is counted until here outlives this process
        self.bus.close(END_TIMEOUT_S)

    def _engine_changed(self, change: StateChange) -> None:
        level = "info" if change.after == "up" else "warning"
        self.telemetry.log(level, "engine_state", **change._asdict())
        if self.guard.shared is not None:
            self.guard.shared.hints.changed(change)
        if self.live is not None and change.after != "up":
            self.live.failed(change.model, change.engine)

    def _attempt_crashed(self, error: Exception, model: str, engine: str) -> None:
        trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        self.telemetry.log("error", "attempt_crashed", model=model, engine=engine, traceback=trace)

    def _crashed(self, error: BaseException) -> None:
        self.pipeline.internal_error(error, "-")


def _open_guard(settings: Settings, telemetry: Telemetry, counted_names: Callable[[], Mapping[str, str]]) -> Guard:
    try:
        table = SharedTable.inherited(os.environ)
        return Guard(settings, telemetry.log, frozenset(PATHS), counted_names=counted_names, table=table)
    except BaseException as error:
        telemetry.close(END_TIMEOUT_S)
        if isinstance(error, SharedTableError):
            raise ConfigurationError([str(error)]) from error
        raise


def read_again(gateway: Gateway, environ: Mapping[str, str], dotenv_path: Path) -> None:
    """Read the files of engines and of alerts; what is wrong is logged, and changes nothing. One thread at a time."""
    settings, log = gateway.settings, gateway.telemetry.log

    def read_engines() -> None:
        gateway.reload(reload(settings, environ, dotenv_path))

    def read_alerts() -> None:
        if settings.alerts_file is not None:
            log("info", "alerts_reloaded", rules=gateway.observing.reload(settings))

    # What is wrong with one file keeps nobody from the other.
    for read in (read_engines, read_alerts):
        try:
            read()
        except ConfigurationError as error:
            log("error", "reload_failed", faults=as_given(error.faults, settings.flags))
        except Exception as error:  # whatever it is, it is no reason to stop serving
            gateway.pipeline.internal_error(error, "-")


def _log_change(telemetry: Telemetry, change: Change) -> None:
    """Engines have come or gone, or nobody can say (on a watch's thread)."""
    what = {"model": change.model, "source": change.source, "engines": change.engines}
    if change.error is not None:
        telemetry.log("warning" if change.error else "info", "discovery", **what, error=change.error or None)
    else:
        telemetry.log("info", "discovery", **what, added=change.added, removed=change.removed)


def new_factory(settings: Settings, **own: Any) -> InferenceFactory:
    """The factory that the settings describe; `own` are further arguments."""
    return InferenceFactory(
        settings.fleet,
        strategy=settings.strategy,
        fallback=settings.fallback,
        retry_attempts=settings.retry_attempts,
        connect_timeout_s=settings.connect_timeout_s,
        request_timeout_s=settings.request_timeout_s,
        first_token_timeout_s=settings.first_token_timeout_s,
        stream_idle_timeout_s=settings.stream_idle_timeout_s,
        stream_end_grace_s=settings.stream_end_grace_s,
        queue_timeout_s=settings.queue_timeout_s,
        dns_ttl_s=settings.dns_ttl_s,
        max_answer_bytes=settings.max_answer_bytes,
        max_event_bytes=settings.max_event_bytes,
        breaker=_breaker_policy(settings),
        health_interval_s=settings.health_interval_s,
        health_timeout_s=settings.health_timeout_s,
        health_fails=settings.health_fails,
        health_passes=settings.health_passes,
        secrets=settings.engine_keys,
        region=settings.region,
        scattered=settings.has_peers,
        **own,
    )


def _breaker_policy(settings: Settings) -> BreakerPolicy:
    return BreakerPolicy(
        settings.breaker_window_s,
        settings.breaker_min_requests,
        settings.breaker_failure_ratio,
        settings.breaker_open_s,
        settings.breaker_max_open_s,
    )


def _open_schemas(settings: Settings) -> Optional[SchemaRegistry]:
    try:
        return None if settings.schemas_dir is None else SchemaRegistry(settings.schemas_dir)
    except RegistryError as error:
        raise ConfigurationError([f"SCHEMAS_DIR: {fault}" for fault in error.faults]) from error
