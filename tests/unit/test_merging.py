"""Several processes' metrics as one."""

from __future__ import annotations

import json
import math
import unittest
from random import Random
from typing import Any

from gateway.telemetry.exposition import Distribution, Exemplar, Family, openmetrics, text
from gateway.telemetry.merging import (
    EARLIEST,
    LEADER,
    MAX,
    MIN,
    RULES,
    SUM,
    data_of,
    families_of,
    fold,
    lasting,
    merged,
)
from gateway.telemetry.registry import Registry

TRACE, OTHER = "a" * 32, "b" * 32


def counted(requests: int, *latencies_s: float, model: str = "m", trace: str = "", at: float = 1.0) -> Registry:
    """A process that has answered so many requests, and measured these times."""
    registry = Registry()
    registry.counter("a_total", "A.", ("model",)).labels(model).inc(requests)
    spread = registry.histogram("b_seconds", "B.", ("model",), buckets=(0.1, 1.0)).labels(model)
    with registry.lock:
        for latency_s in latencies_s:
            spread.observe_locked(latency_s, (trace, "c" * 16, at) if trace else None)
    return registry


def sent(registry: Registry) -> list[Family]:
    """Its snapshot, as another process reads it."""
    return families_of(json.loads(json.dumps(data_of(registry.collect()))))


def series_of(families: list[Family], name: str) -> dict[tuple[str, ...], Any]:
    return next(dict(family.series) for family in families if family.name == name)


class MergingTest(unittest.TestCase):
    def test_a_snapshot_is_read_as_it_was(self) -> None:
        registry = counted(3, 0.05, 5.0, trace=TRACE)
        registry.gauge("c", "C.", merge=MAX).labels().set(0.1 + 0.2)
        registry.gauge("d", "D.", merge=MAX).labels().set(math.inf)
        self.assertEqual(sent(registry), [f._replace(series=list(f.series)) for f in registry.collect()])
        self.assertEqual(text(sent(registry)), text(registry.collect()))
        self.assertEqual(openmetrics(sent(registry)), openmetrics(registry.collect()))

    def test_counters_and_histograms_add_up(self) -> None:
        families = merged([sent(counted(3, 0.05, 0.5)), sent(counted(4, 0.05, 7.0)), sent(counted(5, model="n"))])
        self.assertEqual(series_of(families, "a_total"), {("m",): 7, ("n",): 5})
        found = series_of(families, "b_seconds")["m",]
        self.assertEqual((found.counts, round(found.sum, 9)), ((2, 1, 1), 7.6))
        self.assertIn(b'a_total{model="m"} 7\n', text(families))

    def test_sums_of_whole_numbers_are_exact_in_any_order(self) -> None:
        chance = Random(4)
        parts = [chance.randrange(2**50) for _ in range(9)]
        families = merged([sent(counted(part)) for part in parts])
        self.assertEqual(series_of(families, "a_total")["m",], sum(parts))

    def test_of_a_buckets_exemplars_the_newest_is_kept(self) -> None:
        old, new = counted(0, 0.5, trace=TRACE, at=1.0), counted(0, 0.6, 0.05, trace=OTHER, at=2.0)
        for pair in ([old, new], [new, old]):
            found = series_of(merged([sent(one) for one in pair]), "b_seconds")["m",]
            self.assertEqual(found.exemplars[0], Exemplar(0.05, OTHER, "c" * 16, 2.0))
            self.assertEqual(found.exemplars[1], Exemplar(0.6, OTHER, "c" * 16, 2.0))
            self.assertIsNone(found.exemplars[2])

    def gauges(self, value: float) -> list[Family]:
        registry = Registry()
        for rule in RULES:
            registry.gauge(f"g_{rule}", "G.", merge=rule).labels().set(value)
        return registry.collect()

    def test_a_gauge_merges_as_it_was_declared(self) -> None:
        families = merged([self.gauges(2), self.gauges(5), self.gauges(1)], leader=1)
        found = {family.name: family.series[0][1] for family in families}
        self.assertEqual(found, {"g_sum": 8, "g_max": 5, "g_min": 1, "g_earliest": 1, "g_leader": 5})

    def test_what_the_leader_does_not_say_another_may(self) -> None:
        mine = [Family("g", "gauge", "G.", ("x",), [(("a",), 1), (("b",), 2)], LEADER)]
        leaders = [Family("g", "gauge", "G.", ("x",), [(("a",), 9)], LEADER)]
        self.assertEqual(dict(merged([mine, leaders], leader=1)[0].series), {("a",): 9, ("b",): 2})

    def test_a_gauge_without_a_rule_is_refused_and_so_is_a_counter_with_one(self) -> None:
        registry = Registry()
        for call in (
            lambda: registry.callback("g", "gauge", "G.", (), tuple),
            lambda: registry.gauge("g", "G.", merge="mean"),
            lambda: registry.callback("c_total", "counter", "C.", (), tuple, SUM),
        ):
            with self.assertRaisesRegex(ValueError, "merges by one of sum, max"):
                call()

    def test_what_outlives_a_process_is_what_it_has_counted_and_when_it_began(self) -> None:
        kinds = [*self.gauges(3), *counted(1, 0.1).collect()]
        self.assertEqual([family.name for family in lasting(kinds)], ["g_earliest", "a_total", "b_seconds"])

    def test_folding_adds_two_snapshots_as_data(self) -> None:
        first, second = counted(1, 0.5), counted(2, 0.5, model="n")
        both = json.loads(json.dumps(fold(data_of(first.collect()), data_of(second.collect()))))
        self.assertEqual(families_of(both), merged([first.collect(), second.collect()]))
        self.assertEqual(fold([], data_of(first.collect())), data_of(first.collect()))

    def test_the_first_says_in_which_order_metrics_stand_and_others_come_behind(self) -> None:
        first, second = counted(1).collect(), [Family("z", "gauge", "Z.", (), [((), 1)], MIN), *counted(1).collect()]
        self.assertEqual([family.name for family in merged([first, second])], ["a_total", "b_seconds", "z"])

    def test_another_versions_metric_of_the_same_name_is_left_out_and_its_buckets_are_not(self) -> None:
        mine = [
            Family("a_total", "counter", "A.", ("model",), [(("m",), 1)]),
            Family("b", "histogram", "B.", (), [((), Distribution((1.0, 5.0), (1, 1, 1), 9.0))]),
        ]
        exemplars = (None, None, Exemplar(3.0, TRACE, "c" * 16, 1.0), None)  # of a bucket that nobody knows here
        older = [
            Family("a_total", "counter", "A.", ("path",), [(("/",), 5)]),
            Family("b", "histogram", "B.", (), [((), Distribution((0.5, 2.0, 9.0), (2, 3, 4, 5), 60.0, exemplars))]),
        ]
        families = merged([mine, older])
        self.assertEqual(dict(families[0].series), {("m",): 1})
        self.assertEqual(dict(families[1].series)[()], Distribution((1.0, 5.0), (3, 4, 10), 69.0, (None,) * 3))

    def test_nothing_is_the_sum_of_none(self) -> None:
        self.assertEqual(merged([]), [])
        self.assertEqual(fold([], []), [])
        self.assertEqual(EARLIEST in RULES, True)


if __name__ == "__main__":
    unittest.main()
