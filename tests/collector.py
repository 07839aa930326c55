"""A collector of OTLP over HTTP that a test looks into: what it was sent, parsed with the official package.

`Collector` serves on a thread of its own, one connection after the other on threads of theirs; its lock guards what has
come. Without the package `opentelemetry-proto` the tests that read spans are skipped; with REQUIRE_OTEL=1 they fail.
"""

from __future__ import annotations

import base64
import gzip
import http.server
import json
import os
import ssl
import threading
import unittest
from collections.abc import Mapping
from typing import Any, Callable, NamedTuple, Optional

try:
    from google.protobuf import json_format
    from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
except ImportError:
    MISSING = "the package opentelemetry-proto is missing"
else:
    MISSING = ""

needs_otel = unittest.skipIf(bool(MISSING) and os.environ.get("REQUIRE_OTEL") != "1", MISSING)
KINDS = {1: "internal", 2: "server", 3: "client"}


class Span(NamedTuple):
    """A span as a collector reads it. Ids in hex, times in seconds."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    began_s: float
    ended_s: float
    attributes: dict[str, Any]
    status: int
    events: list[tuple[str, float]]
    links: list[tuple[str, str]]
    state: str
    flags: int
    resource: dict[str, Any]


class Sent(NamedTuple):
    """One POST."""

    path: str
    headers: Mapping[str, str]
    body: Any


Answer = tuple[int, dict[str, str], bytes]


class Collector:
    """A collector, listening; a context manager that closes it. `answer` says what is answered to the n-th POST."""

    def __init__(self, answer: Optional[Callable[[int], Answer]] = None, tls: Optional[ssl.SSLContext] = None) -> None:
        collector = self
        self.changed = threading.Condition()
        self.gate = threading.Event()
        """What it has been sent is answered when this is set."""
        self.gate.set()
        self._sent: list[Sent] = []
        self._arrived = 0

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers["Content-Encoding"] == "gzip":
                    raw = gzip.decompress(raw)
                headers = {name.lower(): value for name, value in self.headers.items()}
                with collector.changed:
                    collector._arrived += 1
                    number = collector._arrived
                    collector.changed.notify_all()
                collector.gate.wait(30)
                status, more, body = (200, {}, b"{}") if answer is None else answer(number)
                if 200 <= status < 300:
                    with collector.changed:
                        collector._sent.append(Sent(self.path, headers, json.loads(raw)))
                        collector.changed.notify_all()
                try:
                    self.send_response(status)
                    for name, value in more.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:
                    pass  # the gateway has left

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, request: object, client_address: object) -> None:
                pass  # who does not trust the certificate has left

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), name="collector", daemon=True)
        self._thread.start()

    def __enter__(self) -> Collector:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def wait_for_posts(self, count: int, timeout_s: float = 10.0) -> bool:
        """Wait until so many POSTs have come, answered or not."""
        with self.changed:
            return self.changed.wait_for(lambda: self._arrived >= count, timeout_s)

    @property
    def posts(self) -> int:
        """How many have come."""
        return self._arrived

    def sent(self, path: str = "/v1/traces") -> list[Sent]:
        """What was taken."""
        with self.changed:
            return [sent for sent in self._sent if sent.path == path]

    def spans(self) -> list[Span]:
        """All spans that were taken, read strictly: a field that the protocol has not is an error."""
        return [span for sent in self.sent() for span in spans_in(sent.body)]

    def metrics(self) -> list[Any]:
        """The last metrics that were taken, as messages of the protocol."""
        if MISSING:
            raise AssertionError(f"REQUIRE_OTEL=1, but {MISSING}")
        message = metrics_service_pb2.ExportMetricsServiceRequest()
        json_format.ParseDict(_with_base64(self.sent("/v1/metrics")[-1].body), message)
        return [
            metric
            for resource in message.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        ]


def spans_in(body: Any) -> list[Span]:
    """The spans of an export request."""
    if MISSING:
        raise AssertionError(f"REQUIRE_OTEL=1, but {MISSING}")
    message = trace_service_pb2.ExportTraceServiceRequest()
    json_format.ParseDict(_with_base64(body), message)
    spans = []
    for resource_spans in message.resource_spans:
        resource = _attributes(resource_spans.resource.attributes)
        for scope_spans in resource_spans.scope_spans:
            for one in scope_spans.spans:
                spans.append(
                    Span(
                        one.name,
                        KINDS[one.kind],
                        one.trace_id.hex(),
                        one.span_id.hex(),
                        one.parent_span_id.hex(),
                        one.start_time_unix_nano / 1e9,
                        one.end_time_unix_nano / 1e9,
                        _attributes(one.attributes),
                        one.status.code,
                        [(event.name, event.time_unix_nano / 1e9) for event in one.events],
                        [(link.trace_id.hex(), link.span_id.hex()) for link in one.links],
                        one.trace_state,
                        one.flags,
                        resource,
                    )
                )
    return spans


def _with_base64(value: Any) -> Any:
    """The same with ids as the protobuf mapping has bytes: OTLP's JSON has them in hex instead."""
    if isinstance(value, list):
        return [_with_base64(one) for one in value]
    if not isinstance(value, dict):
        return value
    ids = ("traceId", "spanId", "parentSpanId")
    return {
        key: base64.b64encode(bytes.fromhex(one)).decode() if key in ids else _with_base64(one)
        for key, one in value.items()
    }


def _attributes(pairs: Any) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for pair in pairs:
        if pair.key in told:
            raise AssertionError(f"{pair.key} is told twice")
        told[pair.key] = getattr(pair.value, pair.value.WhichOneof("value"))
    return told
