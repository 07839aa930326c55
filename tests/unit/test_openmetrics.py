"""What is written as OpenMetrics is read by the parser of Prometheus' own Python client, which is strict.

Skipped without the package prometheus_client; with REQUIRE_PROMETHEUS=1 that is a failure.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import time
import unittest
from typing import Any

from gateway.telemetry import exposition, gauges, process
from gateway.telemetry.events import Trace
from gateway.telemetry.metrics import GatewayMetrics
from gateway.telemetry.registry import Registry
from tests.unit.test_metrics import CHAT, event

IS_THERE = importlib.util.find_spec("prometheus_client") is not None
REQUIRED = os.environ.get("REQUIRE_PROMETHEUS") == "1"


@unittest.skipUnless(IS_THERE or REQUIRED, "the package prometheus_client is not installed")
class ParserTest(unittest.TestCase):
    def parsed(self, registry: Registry) -> dict[str, Any]:
        parser = importlib.import_module("prometheus_client.openmetrics.parser")
        text = exposition.openmetrics(registry.collect()).decode()
        return {family.name: family for family in parser.text_string_to_metric_families(text)}

    def test_every_family_is_read_with_its_type_unit_and_exemplars(self) -> None:
        registry = Registry()
        metrics = GatewayMetrics(registry, lambda: {"13b": "13b"}, {CHAT})
        process.register_process_metrics(registry)
        gauges.bind_engines(registry, lambda: [('a "quoted" \\ model', "é:1\n", True, 3)])
        gauges.bind_build(registry, "1.0")
        trace = Trace("a" * 32, "b" * 16, "", True)
        metrics.observe([event(trace=trace, finished_unix_s=time.time()), event(status=502, error="backend_error")])
        found = self.parsed(registry)
        self.assertEqual(len(found), len(registry.collect()))
        for family in registry.collect():
            name = family.name[: -len("_total")] if family.kind == "counter" else family.name
            self.assertEqual((found[name].type, found[name].documentation), (family.kind, family.help))
        self.assertEqual(found["gateway_request_duration_seconds"].unit, "seconds")
        self.assertEqual(found["process_resident_memory_bytes"].unit, "bytes")
        up = found["gateway_engine_up"].samples[0]
        self.assertEqual(up.labels, {"model": 'a "quoted" \\ model', "engine": "é:1\n"})
        exemplars = [sample for sample in found["gateway_request_duration_seconds"].samples if sample.exemplar]
        self.assertEqual(
            [sample.exemplar.labels for sample in exemplars], [{"trace_id": "a" * 32, "span_id": "b" * 16}]
        )
        self.assertEqual([sample.labels["le"] for sample in exemplars], ["0.25"])
        self.assertEqual(exemplars[0].exemplar.value, 0.25)

    def test_nothing_counted_yet_is_read_too(self) -> None:
        registry = Registry()
        GatewayMetrics(registry, dict, set())
        self.assertEqual(len(self.parsed(registry)), len(registry.collect()))
        self.assertEqual(self.parsed(Registry()), {})


if __name__ == "__main__":
    unittest.main()
