"""The registry's metrics as OTLP has them, and their way to the collector once a minute.

`metrics_of` is pure. `MetricsExporter` owns the thread `otlp-metrics`; each export reads the registry anew, so nothing
waits and nothing grows while the collector is away. Names are those of `/metrics`, so that a dashboard knows them from
either way; what OpenTelemetry names itself has its name there.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Union

from gateway.clock import unix_s
from gateway.posting import Poster
from gateway.telemetry.events import RequestEvent
from gateway.telemetry.exposition import Distribution, Exemplar, Family
from gateway.telemetry.genai import INSTRUMENTS
from gateway.telemetry.registry import Registry
from gateway.traces.delivery import Delivery, Log
from gateway.traces.encoding import Json, attributes_of, double_of, nanos, request_of

CUMULATIVE = 2
UNITS = {"seconds": "s", "bytes": "By", "usd": "{USD}"}
"""UCUM's, by what a name ends with, but for `_total`."""
THEIRS = {instrument.name: instrument for instrument in INSTRUMENTS}


def metrics_of(families: Iterable[Family], start_unix_s: float, now_unix_s: float) -> list[Json]:
    """Metrics whose counts began at a moment, as they are at another; those without a series are left out."""
    times = {"startTimeUnixNano": nanos(start_unix_s), "timeUnixNano": nanos(now_unix_s)}
    return [_metric(family, times) for family in families if family.series]


def _metric(family: Family, times: Mapping[str, str]) -> Json:
    theirs = THEIRS.get(family.name)
    labels: tuple[str, ...] = family.label_names
    if theirs is not None:
        dotted = {attribute.replace(".", "_"): attribute for attribute in theirs.attributes}
        labels = tuple(dotted.get(label, label) for label in labels)
    points = [_point(labels, values, found, times) for values, found in family.series]
    name, unit = family.name, UNITS.get(family.name.removesuffix("_total").rpartition("_")[2], "")
    if theirs is not None:
        name, unit = theirs.otel, theirs.unit
    data: Json = {"dataPoints": points}
    if family.kind != "gauge":
        data["aggregationTemporality"] = CUMULATIVE
    if family.kind == "counter":
        data["isMonotonic"] = True
    kind = {"counter": "sum", "gauge": "gauge", "histogram": "histogram"}[family.kind]
    return {"name": name, "description": family.help, "unit": unit, kind: data}


def _point(
    labels: tuple[str, ...], values: tuple[str, ...], found: Union[float, Distribution], times: Mapping[str, str]
) -> Json:
    # A label of nothing is none, as Prometheus has it.
    point: Json = {"attributes": attributes_of({name: value for name, value in zip(labels, values) if value}), **times}
    if not isinstance(found, Distribution):
        return {**point, "asDouble": double_of(found)}  # never an integer: one metric has one type
    point["count"] = str(sum(found.counts))
    point["sum"] = double_of(found.sum)
    point["bucketCounts"] = [str(count) for count in found.counts]
    point["explicitBounds"] = list(found.bounds)
    exemplars = [_exemplar(one) for one in found.exemplars if one is not None]
    return {**point, "exemplars": exemplars} if exemplars else point


def _exemplar(one: Exemplar) -> Json:
    return {
        "timeUnixNano": nanos(one.unix_s),
        "asDouble": double_of(one.value),
        "traceId": one.trace_id,
        "spanId": one.span_id,
    }


class MetricsExporter:
    """Sends a registry's metrics every `interval_s` seconds, from `start` to `close`, and once more at the end."""

    def __init__(self, collector: Poster, resource: Json, registry: Registry, interval_s: float, log: Log) -> None:
        self._resource = resource
        self._registry = registry
        self._interval_s = interval_s
        self._start_unix_s = unix_s()
        self._stopping = threading.Event()
        self._delivery = Delivery(collector, "metrics", log, self._stopping)
        self._thread = threading.Thread(target=self._run, name="otlp-metrics", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def observe(self, events: Sequence[RequestEvent]) -> None:
        """Nothing: what has been counted is read when it is sent."""

    def close(self, timeout_s: float) -> None:
        """Send them for the last time, within so many seconds, and end."""
        self._delivery.end(self._thread, timeout_s)

    def _run(self) -> None:
        while not self._stopping.wait(self._interval_s):
            self._delivery.export(self._body, "rejectedDataPoints")
        self._delivery.export(self._body, "rejectedDataPoints")

    def _body(self) -> bytes:
        metrics = metrics_of(self._registry.collect(), self._start_unix_s, unix_s())
        texts = [json.dumps(metric, separators=(",", ":"), allow_nan=False) for metric in metrics]
        return request_of("Metrics", texts, self._resource)
