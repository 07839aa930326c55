"""The rules for Prometheus say what the gateway's own rules say, of metrics that there are."""

from __future__ import annotations

import re
import unittest
from pathlib import Path
from typing import Any, NamedTuple

from gateway.alerts.defaults import default_rules
from gateway.alerts.rules import BURN_WINDOWS_S
from gateway.gauging import bind_metrics
from gateway.telemetry import gauges
from gateway.telemetry.metrics import GatewayMetrics
from gateway.telemetry.process import register_process_metrics
from gateway.telemetry.registry import Registry

RULES = Path(__file__).resolve().parents[2] / "docs" / "deploy" / "prometheus" / "rules.yml"
UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
NAME = re.compile(r"\b(gateway_[a-z0-9_]+|process_[a-z_]+)\b")
HISTOGRAM_ENDS = ("_bucket", "_count", "_sum")


class Twin(NamedTuple):
    """One alerting rule of the file."""

    name: str
    expression: str
    for_s: float
    keep_firing_s: float
    severity: str


def seconds(text: str) -> float:
    return sum(int(number) * UNIT_S[unit] for number, unit in re.findall(r"(\d+)([smhd])", text))


def twins(group: str) -> dict[str, Twin]:
    """The rules of a group, by name, as this file writes them; promtool reads all that YAML may be."""
    text = RULES.read_text(encoding="utf-8").partition(f"- name: {group}\n")[2].partition("\n  - name: ")[0]
    found = {}
    for block in text.split("- alert: ")[1:]:
        values = dict(re.findall(r"^ +(for|keep_firing_for): (\S+)$", block, re.M))
        expression = re.findall(r"expr: \|\n((?: {10}.*\n)+)", block)[0]
        severity = re.findall(r"labels: \{severity: (\w+)\}", block)[0]
        name = block.partition("\n")[0]
        times = seconds(values.get("for", "")), seconds(values.get("keep_firing_for", ""))
        found[name] = Twin(name, " ".join(expression.split()), *times, severity)
    return found


def declared() -> set[str]:
    """The names of all metrics of a gateway."""
    registry = Registry()
    GatewayMetrics(registry, dict, frozenset())
    register_process_metrics(registry)
    gauges.bind_alerts(registry, list, list)
    gauges.bind_slos(registry, list)
    anything: Any = _Anything()
    bind_metrics(registry, anything, anything, anything, None)
    return set(registry.names())


class _Anything:
    """Has every attribute: what is read of it is read later, or never."""

    def __getattr__(self, name: str) -> _Anything:
        return self


class TwinsTest(unittest.TestCase):
    def test_every_usual_rule_has_its_twin_and_no_other_is_in_its_group(self) -> None:
        self.assertEqual(list(twins("inference-gateway")), [rule.name for rule in default_rules(slos=True)])

    def test_twins_have_the_same_threshold_times_and_severity(self) -> None:
        found = twins("inference-gateway")
        for rule in default_rules(slos=True):
            with self.subTest(rule.name):
                twin = found[rule.name]
                self.assertEqual((twin.for_s, twin.keep_firing_s), (rule.for_s, rule.keep_firing_s))
                self.assertEqual(twin.severity, rule.severity)
                thresholds = re.findall(r" > (\d[\d.]*)(?: |$)", twin.expression.replace("> 0) )", ""))
                self.assertEqual(thresholds, [f"{rule.above:g}"])
                least = re.findall(r" >= (\d+)", twin.expression)
                self.assertEqual(least, [] if rule.at_least == 1 else [str(rule.at_least)])

    def test_twins_look_over_the_same_windows(self) -> None:
        found = twins("inference-gateway")
        for rule in default_rules(slos=True):
            if not rule.window_s:
                continue
            with self.subTest(rule.name):
                expression = found[rule.name].expression
                windows = {seconds(text) for text in re.findall(r"\[(\w+)\]", expression)}
                self.assertEqual(windows, {rule.window_s})
                if rule.what == "slo_burn_rate":
                    long, short = re.findall(r'window=~"(\w+)\|(\w+)"', expression)[0]
                    self.assertEqual(seconds(short), BURN_WINDOWS_S[int(seconds(long))])
                    self.assertEqual(seconds(long), rule.window_s)

    def test_every_metric_is_one_of_the_gateways(self) -> None:
        text = "".join(re.findall(r"expr: \|\n((?: {10}.*\n)+)", RULES.read_text(encoding="utf-8")))
        names = set(NAME.findall(text))
        self.assertGreater(len(names), 12)
        known = declared()
        for name in names:
            base = next((name[: -len(end)] for end in HISTOGRAM_ENDS if name.endswith(end)), name)
            self.assertTrue(name in known or base in known, name)
