"""What the settings switch on of all this, put together."""

from __future__ import annotations

import uuid
from typing import Union

from gateway.posting import Poster
from gateway.settings import Settings
from gateway.telemetry.registry import Registry
from gateway.traces.delivery import Log
from gateway.traces.encoding import resource_of
from gateway.traces.exporter import SpanExporter
from gateway.traces.figures import MetricsExporter
from gateway.traces.spans import Find

Exporter = Union[SpanExporter, MetricsExporter]


def exporters_of(settings: Settings, registry: Registry, log: Log, find: Find) -> tuple[Exporter, ...]:
    """What sends to the collector; nothing where there is none."""
    url, headers = settings.otlp_endpoint, settings.otlp_headers
    if url is None:
        return ()
    resource = resource_of(settings.otel_service_name, str(uuid.uuid4()))
    exporters: list[Exporter] = []
    if settings.traces_exporter == "otlp":
        taken = registry.counter("gateway_spans_exported_total", "Spans that the collector has taken.")
        lost = registry.counter(
            "gateway_spans_dropped_total",
            "Spans that no collector has got: the queue was full, or it did not take them.",
        )
        collector = Poster(url, "/v1/traces", headers, packs=True)
        exporters.append(SpanExporter(collector, resource, find, taken.labels(), lost.labels(), log))
    if settings.metrics_exporter == "otlp":
        collector = Poster(url, "/v1/metrics", headers, packs=True)
        interval_s = settings.metric_interval_ms / 1000
        exporters.append(MetricsExporter(collector, resource, registry, interval_s, log))
    return tuple(exporters)
