"""What is answered without an engine: models, health, metrics, the index, the API's description, CORS preflights.

One table of paths. Owns nothing; reads the factory's snapshot.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Callable, Optional, Union

from gateway import __version__
from gateway.api import inference, own
from gateway.api.operation import Operation
from gateway.asked import Asked
from gateway.bodies import take_json
from gateway.errors import GatewayError, RequestRefused
from gateway.keys.auth import Identity
from gateway.pipeline import ASKED, KEYS_PAUSE_S, PATHS, Pipeline
from gateway.routing.members import EngineSnapshot
from gateway.server.admin import Admin, ReadBody, Reply, json_reply
from gateway.server.browsers import BrowserRules, is_forwarded
from gateway.server.consolepages import VARY, ConsolePages
from gateway.server.documentpages import MADE, DocumentPages
from gateway.server.everybody import Everybody
from gateway.server.exchange import Exchange
from gateway.server.livefeed import LiveFeed, Watching
from gateway.server.lostpaths import LostPaths
from gateway.server.metricspage import MetricsPage
from gateway.server.modelpages import MODEL_START, ModelPages
from gateway.server.parsing import RequestHead
from gateway.steps import ASIDE, Pause, Steps
from gateway.telemetry.logs import CONSOLE_FILES

MANAGED = ("/admin/", "/auth/", "/api/v1/cache/")  # by admin.py
ALWAYS_OPEN = frozenset(operation.path for operation in own.OPERATIONS if operation.permission is None)
ASKING = frozenset((own.METRICS.path, own.HEALTH.path, own.API_HEALTH.path))
"""What asks the other processes, where there are any."""
COUNT_PAUSE_S = 0.002  # until it is seen again whether what has finished can be counted
COUNT_LOOKS = 20  # then it is shown as it is


Handler = Callable[[RequestHead, Optional[Identity]], Union[Reply, Watching]]
"""Of a path that is not open the caller is known."""


class Routes:
    """Answers by path. Thread-safe. `feed` None: there is no console."""

    def __init__(
        self,
        pipeline: Pipeline,
        everybody: Everybody,
        admin: Admin,
        alerts: Callable[[], list[dict[str, Any]]],
        feed: Optional[LiveFeed] = None,
    ) -> None:
        self._everybody = everybody
        self._slow = ASKING if everybody.waits else frozenset[str]()
        self._admin = admin
        self._alerts = alerts
        self._pipeline = pipeline
        self._settings = pipeline.settings
        self._browsers = BrowserRules(self._settings)
        self._metrics_local = self._settings.metrics_auth != "off"
        self._metrics_open = self._settings.on_loopback or self._settings.metrics_auth == "off"
        models = ModelPages(pipeline)
        pages = DocumentPages(pipeline.guard.authenticator, self._metrics_open)
        handlers: tuple[tuple[Operation, Handler], ...] = (
            (own.INDEX, self._index),
            (own.HEALTHZ, self._healthz),
            (own.READYZ, self._readyz),
            (own.HEALTH, self._health),
            (own.API_HEALTH, self._health),
            (own.METRICS, MetricsPage(everybody.collect).answer),
            (own.ALERTS, self._told_alerts),
            (own.MODELS, models.all),
            (own.API_MODELS, models.all),
            (own.MODEL, models.one),
            (own.TAGS, models.tags),
            (own.RUNNING, models.running),
            (own.VERSION, models.version),
            (own.DOCUMENT, pages.document),
            (own.DOCS, pages.page),
        )
        self._console = ConsolePages(feed is not None)
        if feed is not None:
            handlers += ((own.CONSOLE, self._console.file), (own.LIVE, feed.open))
        self._gets = {operation.path: (operation, handler) for operation, handler in handlers}
        self._lost_paths = LostPaths(self._endpoints())

    def check_browser(self, asked: Asked) -> None:
        """Raise `misdirected_request` or `forbidden` for what a page elsewhere may have had a browser send."""
        try:
            self._browsers.check(asked.head)
        except RequestRefused as error:
            self._admin.audit_refusal(asked, error, None)
            raise

    def is_foreign(self, head: RequestHead) -> bool:
        """Return whether `check_browser` raises; not audited."""
        try:
            self._browsers.check(head)
        except RequestRefused:
            return True
        return False

    def is_for_known(self, head: RequestHead) -> bool:
        """Return whether this is for known callers only, may wait for the database, and comes from one of them."""
        if not head.path.startswith(MANAGED) or head.method == "OPTIONS":
            return False
        try:
            self._pipeline.known(head)
        except GatewayError:
            return False
        return not self.is_foreign(head)

    def serve(self, exchange: Exchange) -> Steps[Union[Reply, Watching]]:
        """The answer to anything but an inference request. Raises GatewayError."""
        head, pipeline = exchange.head, self._pipeline
        self.check_browser(exchange)
        if head.path == "/metrics":
            # Who has just been answered finds that in the numbers, too.
            for _ in range(COUNT_LOOKS):
                if pipeline.concluding() == [] and pipeline.telemetry.flush(0.0):
                    break
                yield Pause(COUNT_PAUSE_S)
        if head.path not in ALWAYS_OPEN:
            while pipeline.guard.may_wait(head.headers):
                yield Pause(KEYS_PAUSE_S)
        if self.is_for_known(head) or head.path in self._slow or head.path in MADE or self._console.must_read(head):
            yield ASIDE
        return self.answer(exchange, head, lambda: take_json(exchange, pipeline.settings))

    def answer(self, exchange: Exchange, head: RequestHead, read_body: ReadBody) -> Union[Reply, Watching]:
        """The answer to anything but an inference request. Raises GatewayError."""
        path = head.path
        if path.startswith(MANAGED):
            methods = self._admin.methods(path)
            if methods is not None and head.method == "OPTIONS":
                return self._preflight(head, methods)
            reply = self._admin.answer(exchange, head, read_body)
            if reply is not None:
                return reply
        found = self._gets.get(path)
        if found is None and path.startswith(MODEL_START) and path != MODEL_START:
            found = self._gets[own.MODEL.path]
        if found is None and path.startswith(CONSOLE_FILES):
            found = self._gets.get(own.CONSOLE.path)
        if found is None and path not in PATHS and path != "*":
            raise self._lost_paths.not_found(path)
        allowed = "GET, HEAD, OPTIONS" if found is not None or ("GET", path) in ASKED else "POST, OPTIONS"
        if head.method == "OPTIONS":
            return self._preflight(head, allowed)
        if found is None or head.method not in ("GET", "HEAD"):
            raise RequestRefused("method_not_allowed", f"{path} takes {allowed}", headers=(("Allow", allowed),))
        operation, handler = found
        if operation is own.INDEX:
            page = self._console.page(head)  # for anybody: it is the console that shows a key
            if page is not None:
                return page
        return handler(head, self._admitted(exchange, head, operation))

    def _admitted(self, exchange: Exchange, head: RequestHead, operation: Operation) -> Optional[Identity]:
        """Who is asking, and may; None: anybody may. Raises `unauthorized` and `forbidden`."""
        if operation.permission is None:
            return None
        if operation is own.METRICS and self._metrics_open and not (self._metrics_local and is_forwarded(head)):
            return None
        identity = self._pipeline.identify(head.headers, head.repeated, exchange.client_address)
        exchange.identity = identity
        if operation.permission:
            identity.require(operation.permission)
        return identity

    def _preflight(self, head: RequestHead, allowed: str) -> Reply:
        headers: tuple[tuple[str, str], ...] = (("Allow", allowed),)
        if self._settings.cors_origins and b"origin" in head.headers:
            asked = head.text(b"access-control-request-headers")
            headers += (
                ("Access-Control-Allow-Methods", allowed),
                ("Access-Control-Allow-Headers", asked or "Authorization, Content-Type, X-API-Key"),
                ("Access-Control-Max-Age", "600"),
            )
        return Reply(204, headers, b"")

    def operations(self) -> Iterator[Operation]:
        """All that is answered, here, by the administrators' part and by engines."""
        yield from inference.OPERATIONS
        yield from (operation for operation, _ in self._gets.values())
        yield from self._admin.operations()

    def _index(self, head: RequestHead, identity: Optional[Identity]) -> Reply:
        index = {"name": "inference-gateway", "version": __version__, "endpoints": self._endpoints()}
        return json_reply(index, 200, *(VARY if self._console.on else ()))

    def _endpoints(self) -> dict[str, str]:
        """Every path with the methods it is for."""
        methods: dict[str, str] = {}
        for operation in self.operations():
            before = methods.get(operation.path)
            methods[operation.path] = operation.method if before is None else f"{before}, {operation.method}"
        return methods

    def _healthz(self, head: RequestHead, identity: Optional[Identity]) -> Reply:
        return json_reply({"status": "ok"})

    def _readyz(self, head: RequestHead, identity: Optional[Identity]) -> Reply:
        if self._pipeline.draining and not self._pipeline.handing_over:
            return json_reply({"status": "draining"}, 503)
        if not self._pipeline.factory.probed:
            return json_reply({"status": "probing"}, 503)
        pools = self._pipeline.factory.router.pools.values()
        if not any(pool.any_available() for pool in pools):
            return json_reply({"status": "no engine is available"}, 503)
        return json_reply({"status": "ready"})

    def _health(self, head: RequestHead, identity: Optional[Identity]) -> Reply:
        models: dict[str, Any] = {}
        complete = True
        any_available = False
        elsewhere = self._everybody.in_flight()
        for name, pool in self._pipeline.factory.router.pools.items():
            engines = pool.snapshot()
            available = any(engine.available for engine in engines)
            any_available = any_available or available
            complete = complete and bool(engines) and all(engine.state == "up" for engine in engines)
            models[name] = {
                "available": available,
                "strategy": pool.strategy_name,
                "engines": [_engine_told(engine, elsewhere.get((name, engine.id), 0)) for engine in engines],
            }
        status = "ok" if complete else "degraded" if any_available else "down"
        return json_reply({"status": status, "models": models}, 503 if status == "down" else 200)

    def _told_alerts(self, head: RequestHead, identity: Optional[Identity]) -> Reply:
        return json_reply({"alerts": self._alerts()})


def _engine_told(engine: EngineSnapshot, elsewhere: int) -> dict[str, Any]:
    """One engine, with the requests that are in flight there from all processes."""
    told = engine._replace(in_flight=engine.in_flight + elsewhere)._asdict()
    del told["model"]
    return told
