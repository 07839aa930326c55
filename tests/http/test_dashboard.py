"""The Grafana dashboard: up to date, whole, and about metrics and labels that there are; and the documents' table.

What Grafana is told is checked against the types of its own SDK (the package grafana-foundation-sdk); without it that
is skipped, and with REQUIRE_GRAFANA=1 a failure. Grafana itself is in no registry that may be used here.
"""

from __future__ import annotations

import enum
import importlib
import importlib.util
import json
import os
import re
import types
import typing
import unittest
from typing import Any

from tests import dashboards
from tests.support import ROOT, SocketTest, dead_url, gateway

SDK = "grafana_foundation_sdk"
IS_THERE = importlib.util.find_spec(SDK) is not None
REQUIRED = os.environ.get("REQUIRE_GRAFANA") == "1"
BY_PROMETHEUS = {"instance", "job", "le"}
"""Labels that no registry has."""
NOT_SHOWN = {"gen_ai_server_time_to_first_token_seconds"}
"""Metrics without a panel: what they say is there by another name."""
WORDS = {"sum", "rate", "increase", "by", "histogram_quantile", "avg", "min", "max", "count", "or", "vector", "time"}


def names_of(expression: str) -> tuple[dict[str, set[str]], set[str]]:
    """The metrics of an expression with the labels that each is selected by, and those that are grouped by."""
    grouped = {name for found in re.findall(r"\bby \(([^)]*)\)", expression) for name in re.split(r", *", found)}
    metrics: dict[str, set[str]] = {}
    for name, selected in re.findall(r"\b([a-z_]+)\{([^}]*)\}", expression):
        metrics.setdefault(name, set()).update(re.findall(r"([a-z_]+)(?:=~|!~|!=|=)", selected))
    return metrics, grouped


class DashboardTest(SocketTest):
    def labels_by_sample(self) -> dict[str, set[str]]:
        """Every name that a sample may have, with its labels."""
        found: dict[str, set[str]] = {}
        for family in self.enter(gateway()).app.registry.collect():
            suffixes = ("_bucket", "_sum", "_count") if family.kind == "histogram" else ("",)
            for suffix in suffixes:
                found[family.name + suffix] = set(family.label_names)
        return found

    def test_the_file_is_what_its_script_makes(self) -> None:
        self.assertEqual(
            dashboards.kept(),
            dashboards.made(),
            "python3 docs/deploy/grafana/make.py > docs/deploy/grafana/inference-gateway.json",
        )

    def test_every_metric_and_label_exists(self) -> None:
        samples = self.labels_by_sample()
        used: set[str] = set()
        for title, expression, legend in dashboards.expressions(dashboards.kept()):
            with self.subTest(title=title, expression=expression):
                metrics, grouped = names_of(expression)
                bare = set(re.findall(r"[a-z_]+", re.sub(r"\{[^}]*\}|\([a-z_, ]*\)|\[[^]]*\]", " ", expression)))
                self.assertEqual(bare - WORDS - set(metrics), set(), "no metric without a choice of gateways")
                self.assertTrue(metrics)
                for name, labels in metrics.items():
                    self.assertIn(name, samples)
                    self.assertLessEqual(labels, samples[name] | BY_PROMETHEUS)
                    self.assertLessEqual(grouped, samples[name] | BY_PROMETHEUS)
                    self.assertIn("instance", labels)
                shown = set(re.findall(r"\{\{([a-z_]+)\}\}", legend))
                self.assertLessEqual(shown, grouped if grouped else {"instance"})
                used.update(re.sub(r"_(bucket|sum|count)\Z", "", name) for name in metrics)
        known = {re.sub(r"_(bucket|sum|count)\Z", "", name) for name in samples}
        self.assertEqual(known - used, NOT_SHOWN)

    def test_panels_are_whole_and_do_not_overlap(self) -> None:
        dashboard = dashboards.kept()
        panels = dashboard["panels"]
        self.assertEqual(len({panel["id"] for panel in panels}), len(panels))
        taken: set[tuple[int, int]] = set()
        for panel in panels:
            place = panel["gridPos"]
            self.assertLessEqual(place["x"] + place["w"], 24, panel["title"])
            for x in range(place["x"], place["x"] + place["w"]):
                for y in range(place["y"], place["y"] + place["h"]):
                    self.assertNotIn((x, y), taken, panel["title"])
                    taken.add((x, y))
            if panel["type"] != "row":
                self.assertTrue(panel["fieldConfig"]["defaults"]["unit"], panel["title"])
                references = [target["refId"] for target in panel["targets"]]
                self.assertEqual(len(references), len(set(references)))
        variables = {variable["name"] for variable in dashboard["templating"]["list"]}
        self.assertEqual(variables, {"datasource", "instance", "model", "engine"})
        self.assertLessEqual(
            set(re.findall(r"\$\{?([a-z]+)", json.dumps(dashboard))), variables, "a variable that there is not"
        )

    @unittest.skipUnless(IS_THERE or REQUIRED, f"the package {SDK} is not installed")
    def test_grafanas_own_types_take_it(self) -> None:
        models = importlib.import_module(f"{SDK}.models.dashboard")
        encoder = importlib.import_module(f"{SDK}.cog.encoder").JSONEncoder
        importlib.import_module(f"{SDK}.cog.plugins").register_default_plugins()
        kept = dashboards.kept()
        read = models.Dashboard.from_json(kept)
        self.assertEqual(list(wrong_types(read, "dashboard")), [])
        told = json.loads(json.dumps(read, cls=encoder))
        self.assertEqual(list(left_out(kept, told, "dashboard")), [], "what Grafana does not know")


def left_out(given: Any, told: Any, where: str) -> typing.Iterator[str]:
    """What was given and is not told again."""
    if isinstance(given, dict) and isinstance(told, dict):
        for key, value in given.items():
            if key not in told:
                yield f"{where}.{key}"
            else:
                yield from left_out(value, told[key], f"{where}.{key}")
    elif isinstance(given, list) and isinstance(told, list) and len(given) == len(told):
        for place, (one, other) in enumerate(zip(given, told)):
            yield from left_out(one, other, f"{where}[{place}]")
    elif given != told:
        yield f"{where}: {given!r} is told as {told!r}"


def wrong_types(value: Any, where: str) -> typing.Iterator[str]:
    """Attributes of the SDK's objects that are not what their annotations say."""
    annotations: dict[str, Any] = {}
    for base in type(value).__mro__:
        annotations.update(getattr(base, "__annotations__", {}))
    names = vars(importlib.import_module(type(value).__module__))
    for name, annotation in annotations.items():
        hint = eval(annotation, names) if isinstance(annotation, str) else annotation  # the SDK's own text
        inner = getattr(value, name, None)
        if not fits(inner, hint, names):
            yield f"{where}.{name}: {inner!r} is no {hint}"
        for place, one in enumerate(inner if isinstance(inner, list) else [inner]):
            if type(one).__module__.startswith(SDK) and not isinstance(one, enum.Enum):
                yield from wrong_types(one, f"{where}.{name}[{place}]")


def fits(value: Any, hint: Any, names: dict[str, Any]) -> bool:
    """Whether a value is what a hint of the SDK says."""
    if isinstance(hint, (str, typing.ForwardRef)):
        hint = eval(hint if isinstance(hint, str) else hint.__forward_arg__, names)  # the SDK's own text
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint in (typing.Any, object):
        return True
    if origin is typing.Union or origin is getattr(types, "UnionType", None):
        return any(fits(value, one, names) for one in inner)
    if origin is typing.Literal:
        return value in inner
    if origin is list:
        return isinstance(value, list) and all(fits(one, inner[0], names) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(one, inner[1], names) for one in value.values())
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return value in [one.value for one in hint]
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, hint) if isinstance(hint, type) else True


class DocumentTest(SocketTest):
    def test_the_table_of_metrics_has_every_one_with_its_labels(self) -> None:
        text = (ROOT / "docs" / "OPERATIONS.md").read_text("utf-8")
        table = text.partition("<!-- metrics -->")[2].partition("<!-- /metrics -->")[0]
        told: dict[str, str] = {}
        for line in table.splitlines():
            first = line.split("|")[1] if line.startswith("| `") else ""
            for name, labels in re.findall(r"`([a-z_]+)(?:\{([a-z_,]*)\})?`", first):
                self.assertNotIn(name, told)
                told[name] = labels
        families = self.enter(gateway(OTEL_EXPORTER_OTLP_ENDPOINT=dead_url())).app.registry.collect()
        self.assertEqual(told, {family.name: ",".join(family.label_names) for family in families})


if __name__ == "__main__":
    unittest.main()
