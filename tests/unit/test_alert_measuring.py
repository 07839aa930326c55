"""From counts and states to the values that rules judge, by a clock that the test turns."""

from __future__ import annotations

import unittest
from array import array
from collections.abc import Mapping
from typing import Any, NamedTuple

from gateway.alerts.measuring import STEPS, History, Measuring, Reading, quantile
from gateway.alerts.rules import Labels, Rule
from gateway.alerts.slowdowns import Slowdown
from gateway.telemetry.events import AttemptRecord, RequestEvent
from gateway.telemetry.metrics import GatewayMetrics
from gateway.telemetry.readings import NAMES, read_numbers
from gateway.telemetry.registry import Registry

CHAT = "/v1/chat/completions"
BOUNDS_S = (0.1, 1.0, 10.0)


class Engine(NamedTuple):
    model: str
    id: str
    state: str
    available: bool


class Slo(NamedTuple):
    model: str
    objective: str
    remaining: float
    burn_by_s: Mapping[int, float]
    count_by_s: Mapping[int, int]


def reading(**members: Any) -> Reading:
    nothing = Reading({}, (), (0, 0), (), (), {}, BOUNDS_S)
    return nothing._replace(**members)


def counts(*numbers: float) -> array[float]:
    return array("d", numbers)


def rule(what: str, **members: Any) -> Rule:
    return Rule(**{"name": "R", "what": what, "above": 0, **members})


def values(one: Rule, **members: Any) -> dict[Labels, float]:
    return Measuring([one]).samples(0.0, reading(**members))["R"]


class NowTest(unittest.TestCase):
    def test_an_engine_is_down_when_it_cannot_be_chosen_unless_an_operator_drains_it(self) -> None:
        states = {"up": True, "down": False, "open": False, "draining": False, "half_open": True}
        engines = [Engine("m", state, state, available) for state, available in states.items()]
        found = values(rule("engine_down", by=("engine",)), engines=engines)
        self.assertEqual([labels[0][1] for labels, value in found.items() if value], ["down", "open"])

    def test_a_model_is_without_engine_when_none_can_be_chosen(self) -> None:
        engines = [Engine("a", "1", "down", False), Engine("a", "2", "up", True), Engine("b", "1", "draining", False)]
        found = values(rule("model_without_engine", by=("model",)), engines=engines)
        self.assertEqual(found, {(("model", "a"),): 0.0, (("model", "b"),): 1.0})

    def test_what_a_rule_does_not_tell_apart_counts_by_the_worst(self) -> None:
        budgets = [("alice", 0.5), ("bob", 0.95)]
        self.assertEqual(values(rule("budget_used"), budgets=budgets), {(): 0.95})
        by_key = values(rule("budget_used", by=("key",)), budgets=budgets)
        self.assertEqual(by_key, {(("key", "alice"),): 0.5, (("key", "bob"),): 0.95})
        only = values(rule("budget_used", match=(("key", "a*"),)), budgets=budgets)
        self.assertEqual(only, {(): 0.5})
        self.assertEqual(values(rule("budget_used", above=None, below=0.6), budgets=budgets), {(): 0.5})

    def test_the_queue_fills_by_its_places(self) -> None:
        self.assertEqual(values(rule("queue_fill"), queue=(3, 4)), {(): 0.75})
        self.assertEqual(values(rule("queue_fill"), queue=(0, 0)), {})

    def test_an_engine_is_judged_with_enough_answers_only(self) -> None:
        slowdowns = {("m", "a"): Slowdown(3.0, 19.0), ("m", "b"): Slowdown(2.5, 20.0)}
        found = values(rule("engine_anomaly", by=("engine",), at_least=20), slowdowns=slowdowns)
        self.assertEqual(found, {(("engine", "b"),): 2.5})

    def test_a_burn_rate_holds_over_both_windows(self) -> None:
        slos = [
            Slo("a", "latency", 0.5, {3600: 20.0, 300: 15.0}, {3600: 100, 300: 9}),
            Slo("b", "latency", 0.5, {3600: 20.0, 300: 0.0}, {3600: 100, 300: 9}),  # it was, and is over
            Slo("c", "latency", 0.5, {3600: 20.0, 300: 20.0}, {3600: 4, 300: 4}),
        ]
        found = values(rule("slo_burn_rate", by=("model",), window_s=3600.0, at_least=20), slos=slos)
        self.assertEqual(found, {(("model", "a"),): 15.0, (("model", "b"),): 0.0})
        left = values(rule("slo_budget_remaining", by=(), above=None, below=1), slos=slos)
        self.assertEqual(left, {(): 0.5})


class WindowTest(unittest.TestCase):
    def setUp(self) -> None:
        self.total = self.errors = 0
        self.now_s = 0.0

    def look(self, measuring: Measuring, total: int = 0, errors: int = 0, after_s: float = 5.0) -> dict[Labels, float]:
        self.total += total
        self.errors += errors
        self.now_s += after_s
        numbers = {"requests": {("m", CHAT): counts(self.total, self.errors)}}
        return measuring.samples(self.now_s, reading(numbers=numbers))["R"]

    def test_a_ratio_is_that_of_the_window_alone(self) -> None:
        measuring = Measuring([rule("error_ratio", by=("model",), window_s=60.0, at_least=10)])
        self.look(measuring, 1000, 1000)  # before the first look
        self.assertEqual(self.look(measuring, 9, 9), {})  # too few
        self.assertEqual(self.look(measuring, 11, 1), {(("model", "m"),): 0.5})
        for _ in range(11):
            self.look(measuring, 10)
        self.assertEqual(self.look(measuring, 10), {(("model", "m"),): 0.0})

    def test_a_series_that_appears_counts_from_nothing(self) -> None:
        measuring = Measuring([rule("error_ratio", by=("model",), window_s=60.0)])
        measuring.samples(0.0, reading(numbers={"requests": {}}))
        self.assertEqual(self.look(measuring, 4, 1), {(("model", "m"),): 0.25})

    def test_a_rule_that_comes_later_sees_only_what_comes_later(self) -> None:
        other = Rule("Other", "ttft_p95_ms", ("model",), window_s=60.0, above=1)
        measuring = Measuring([other])
        self.look_at(measuring, 1000, 1000)
        measuring.replace([other, rule("error_ratio", by=("model",), window_s=60.0)])
        self.assertEqual(self.look(measuring), {})
        self.assertEqual(self.look(measuring, 4, 1), {(("model", "m"),): 0.25})

    def look_at(self, measuring: Measuring, total: int, errors: int) -> None:
        self.total, self.errors = total, errors
        measuring.samples(self.now_s, reading(numbers={"requests": {("m", CHAT): counts(total, errors)}, "ttft": {}}))

    def test_rules_that_stay_keep_what_they_know(self) -> None:
        one = rule("error_ratio", by=("model",), window_s=60.0)
        measuring = Measuring([one])
        self.look(measuring)
        self.look(measuring, 4, 1)
        measuring.replace([one])
        self.assertEqual(self.look(measuring), {(("model", "m"),): 0.25})

    def test_series_are_added_up_by_what_a_rule_tells_apart(self) -> None:
        numbers = {"requests": {("a", "/x"): counts(10, 5), ("a", "/y"): counts(30, 5), ("b", "/x"): counts(10, 0)}}
        for members, expected in (
            ({"by": ("model",)}, {(("model", "a"),): 0.25, (("model", "b"),): 0.0}),
            ({"by": ()}, {(): 0.2}),
            ({"by": (), "match": (("path", "/x"),)}, {(): 0.25}),
        ):
            with self.subTest(members):
                measuring = Measuring([rule("error_ratio", window_s=60.0, **members)])
                measuring.samples(0.0, reading(numbers={"requests": {}}))
                self.assertEqual(measuring.samples(5.0, reading(numbers=numbers))["R"], expected)

    def test_percentiles_come_from_buckets(self) -> None:
        measuring = Measuring([rule("latency_p95_ms", by=("model",), window_s=60.0, at_least=20)])
        measuring.samples(0.0, reading(numbers={"latency": {}}))
        numbers = {"latency": {("m", "/x"): counts(0, 10, 10, 0), ("few", "/x"): counts(0, 0, 19, 0)}}
        found = measuring.samples(5.0, reading(numbers=numbers))["R"]
        self.assertEqual(found, {(("model", "m"),): 9100.0})

    def test_no_more_readings_are_kept_than_a_window_needs(self) -> None:
        history = History(300.0, {"requests"})
        for second in range(5000):
            history.add(float(second), {"requests": {}, "other": {("x",): counts(1)}})
            self.assertLessEqual(len(history._kept), STEPS + 2)
        self.assertGreaterEqual(len(history._kept), STEPS)
        self.assertEqual(set(history._kept[-1][1]), {"requests"})


class QuantileTest(unittest.TestCase):
    def test_it_is_spread_evenly_in_its_bucket(self) -> None:
        for numbers, expected in (
            ((0, 0, 0, 0), None),
            ((100, 0, 0, 0), 0.095),
            ((0, 100, 0, 0), 0.1 + 0.95 * 0.9),
            ((95, 5, 0, 0), 0.1),
            ((0, 0, 0, 7), 10.0),
        ):
            with self.subTest(numbers):
                found = quantile(0.95, numbers, BOUNDS_S)
                self.assertEqual(None if found is None else round(found, 9), expected)


class ReadingsTest(unittest.TestCase):
    """What the metrics have counted, as rules see it."""

    def setUp(self) -> None:
        self.registry = Registry()
        self.metrics = GatewayMetrics(self.registry, lambda: {"m": "m"}, {CHAT, "/readyz"})

    def count(self, status: int = 200, model: Any = "m", path: str = CHAT, **members: Any) -> None:
        self.metrics.observe([RequestEvent(0.0, "id", "POST", path, status, None, 0.02, model=model, **members)])

    def test_requests_count_by_model_and_path_and_errors_are_the_services(self) -> None:
        for status in (200, 200, 404, 429, 500, 503):
            self.count(status)
        self.count(503, model=None, path="/readyz")
        self.count(404, model="nobody's")
        found = read_numbers(self.registry.collect(NAMES))["requests"]
        self.assertEqual(
            {key: list(value) for key, value in found.items()}, {("m", CHAT): [6, 2], ("other", CHAT): [1, 0]}
        )

    def test_latencies_are_counts_by_bucket(self) -> None:
        self.count(stream=True, ttft_s=200.0)
        numbers = read_numbers(self.registry.collect(NAMES))
        self.assertEqual([i for i, n in enumerate(numbers["latency"]["m", CHAT]) if n], [4])  # up to 25 ms
        self.assertEqual([i for i, n in enumerate(numbers["ttft"]["m",]) if n], [16])  # above all

    def test_attempts_that_failed_are_told_from_those_that_say_nothing(self) -> None:
        for outcome in ("ok", "ok", "rejected", "cancelled", "timeout", "rate_limited"):
            self.count(attempt_records=(AttemptRecord("m", "e", outcome, 0.1),))
        self.assertEqual(list(read_numbers(self.registry.collect(NAMES))["attempts"]["m", "e"]), [5, 2])

    def test_verifications_in_which_nobody_agreed_count_among_those_with_code(self) -> None:
        for result in ("consensus", "tests_passed", "best_available", "abstained", "no_code", "unfinished"):
            self.count(extra={"verification": {"result": result, "agreement": None, "runs": []}})
        self.assertEqual(list(read_numbers(self.registry.collect(NAMES))["verifications"][()]), [4, 2])
