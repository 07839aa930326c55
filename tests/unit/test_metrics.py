"""The metrics registry, the gateway's metrics and the process's own."""

from __future__ import annotations

import os
import random
import re
import sys
import threading
import time
import unittest
from typing import Any
from unittest import mock

from gateway.telemetry import exposition, gauges, process
from gateway.telemetry.events import OUTCOMES, AttemptRecord, RequestEvent, Trace
from gateway.telemetry.exposition import Distribution, Exemplar, Family
from gateway.telemetry.merging import SUM
from gateway.telemetry.metrics import GatewayMetrics
from gateway.telemetry.registry import Registry

CHAT = "/v1/chat/completions"
SAMPLE = re.compile(
    r"(?P<series>[a-zA-Z_:][a-zA-Z0-9_:]*"
    r'(\{[a-zA-Z_]\w*="([^"\\\n]|\\["\\n])*"(,[a-zA-Z_]\w*="([^"\\\n]|\\["\\n])*")*\})?)'
    r" (?P<number>-?[0-9][0-9.e+-]*|\+Inf|-Inf|NaN)"
)


def event(**changes: Any) -> RequestEvent:
    base = RequestEvent(
        finished_unix_s=1.0,
        request_id="r1",
        method="POST",
        path=CHAT,
        status=200,
        error=None,
        latency_s=0.25,
        queue_s=0.0625,
        engine_s=0.125,
        model="13b",
        engine="a:1",
        attempts=1,
        prompt_tokens=3,
        completion_tokens=4,
        attempt_records=(AttemptRecord("13b", "a:1", "ok", 0.125),),
    )
    return base._replace(**changes)


def scrape(registry: Registry) -> dict[str, float]:
    """Every series of the rendered text; fails on a line that is not of format 0.0.4."""
    series: dict[str, float] = {}
    headed: list[str] = []
    for line in exposition.text(registry.collect()).decode().split("\n")[:-1]:
        if line.startswith("# TYPE "):
            headed.append(line.split()[2])
        elif not line.startswith("# HELP "):
            match = SAMPLE.fullmatch(line)
            assert match, line
            assert match["series"] not in series, line
            assert re.match(headed[-1] + r"(_bucket|_sum|_count)?(\{| |$)", line), line
            series[match["series"]] = float(match["number"])
    assert len(headed) == len(set(headed)), headed
    return series


class RegistryTest(unittest.TestCase):
    def setUp(self) -> None:
        self.registry = Registry()

    def test_renders_exactly_the_text_format(self) -> None:
        requests = self.registry.counter("a_total", "Back\\slash\nand line.", ("x", "y"))
        requests.labels('say "hi"', "b\\c\nd").inc()
        requests.labels("a", "z").inc(2)
        wait = self.registry.histogram("b_seconds", "Waits.", buckets=(0.5, 1.0, 2.5))
        for value in (0.1, 1.0, 1.5, 99.5):
            wait.labels().observe(value)
        self.registry.gauge("c", "Level.", merge=SUM).labels().set(-0.25)
        self.assertEqual(
            exposition.text(self.registry.collect()).decode(),
            "# HELP a_total Back\\\\slash\\nand line.\n"
            "# TYPE a_total counter\n"
            'a_total{x="a",y="z"} 2\n'
            'a_total{x="say \\"hi\\"",y="b\\\\c\\nd"} 1\n'
            "# HELP b_seconds Waits.\n"
            "# TYPE b_seconds histogram\n"
            'b_seconds_bucket{le="0.5"} 1\n'
            'b_seconds_bucket{le="1"} 2\n'
            'b_seconds_bucket{le="2.5"} 3\n'
            'b_seconds_bucket{le="+Inf"} 4\n'
            "b_seconds_sum 102.1\n"
            "b_seconds_count 4\n"
            "# HELP c Level.\n"
            "# TYPE c gauge\n"
            "c -0.25\n",
        )

    def test_renders_exactly_openmetrics(self) -> None:
        requests = self.registry.counter("a_total", 'Of "many".\nAnd one.', ("x",))
        requests.labels('say "hi"\n').inc(2)
        wait = self.registry.histogram("b_seconds", "Waits.", ("y",), buckets=(0.5, 1.0, 2.5)).labels("z")
        with self.registry.lock:
            for number, value in enumerate((0.25, 0.125, 2.0, 99.5)):
                wait.observe_locked(value, (f"{number:032x}", f"{number:016x}", 1769860800.25 + number))
            wait.observe_locked(2.25)
        self.registry.gauge("c_bytes", "Level.", merge=SUM).labels().set(-0.25)
        zeros = "0" * 15
        self.assertEqual(
            exposition.openmetrics(self.registry.collect()).decode(),
            "# TYPE a counter\n"
            '# HELP a Of \\"many\\".\\nAnd one.\n'
            'a_total{x="say \\"hi\\"\\n"} 2\n'
            "# TYPE b_seconds histogram\n"
            "# UNIT b_seconds seconds\n"
            "# HELP b_seconds Waits.\n"
            'b_seconds_bucket{y="z",le="0.5"} 2'
            f' # {{trace_id="{zeros * 2}01",span_id="{zeros}1"}} 0.125 1769860801.250\n'
            'b_seconds_bucket{y="z",le="1.0"} 2\n'
            'b_seconds_bucket{y="z",le="2.5"} 4'
            f' # {{trace_id="{zeros * 2}02",span_id="{zeros}2"}} 2 1769860802.250\n'
            'b_seconds_bucket{y="z",le="+Inf"} 5'
            f' # {{trace_id="{zeros * 2}03",span_id="{zeros}3"}} 99.5 1769860803.250\n'
            'b_seconds_sum{y="z"} 104.125\n'
            'b_seconds_count{y="z"} 5\n'
            "# TYPE c_bytes gauge\n"
            "# UNIT c_bytes bytes\n"
            "# HELP c_bytes Level.\n"
            "c_bytes -0.25\n"
            "# EOF\n",
        )
        self.assertNotIn(b"trace_id", exposition.text(self.registry.collect()))

    def test_collects_every_metric_with_its_series(self) -> None:
        self.registry.counter("a_total", "A.", ("x",)).labels("1").inc(3)
        waits = self.registry.histogram("b_seconds", "B.", buckets=(1,)).labels()
        waits.observe(0.5)
        with self.registry.lock:
            waits.observe_locked(2.5, ("t", "s", 7.0))
        self.registry.callback("g", "gauge", "G.", ("x",), lambda: [(("b",), 2), (("a",), 1)], SUM)
        self.assertEqual(
            self.registry.collect(),
            [
                Family("a_total", "counter", "A.", ("x",), [(("1",), 3)]),
                Family(
                    "b_seconds",
                    "histogram",
                    "B.",
                    (),
                    [((), Distribution((1,), (1, 1), 3.0, (None, Exemplar(2.5, "t", "s", 7.0))))],
                ),
                Family("g", "gauge", "G.", ("x",), [(("a",), 1), (("b",), 2)], SUM),
            ],
        )

    def test_without_labels_is_zero_from_the_start(self) -> None:
        self.registry.counter("a_total", "A.")
        self.registry.counter("b_total", "B.", ("x",))
        self.registry.histogram("c_seconds", "C.", buckets=(1,))
        self.assertEqual(
            scrape(self.registry),
            {
                "a_total": 0,
                'c_seconds_bucket{le="1"}': 0,
                'c_seconds_bucket{le="+Inf"}': 0,
                "c_seconds_sum": 0,
                "c_seconds_count": 0,
            },
        )

    def test_labels_give_the_same_series_every_time_in_any_thread(self) -> None:
        metric = self.registry.counter("a_total", "A.", ("x",))
        start = threading.Barrier(8)

        def add() -> None:
            start.wait(5)
            for i in range(1000):
                metric.labels(str(i % 10)).inc()

        threads = [threading.Thread(target=add) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        self.assertEqual(set(scrape(self.registry).values()), {800})
        self.assertIs(metric.labels("1"), metric.labels("1"))

    def test_refuses_what_cannot_be_declared(self) -> None:
        self.registry.counter("a_total", "A.")
        for declare in (
            lambda: self.registry.gauge("a_total", "Again.", merge=SUM),
            lambda: self.registry.gauge("a-b", "Name.", merge=SUM),
            lambda: self.registry.counter("g", "No total."),
            lambda: self.registry.gauge("b", "Label.", ("x y",), merge=SUM),
            lambda: self.registry.histogram("c", "Reserved.", ("le",), buckets=(1,)),
            lambda: self.registry.histogram("d", "None.", buckets=()),
            lambda: self.registry.histogram("e", "Falling.", buckets=(2, 1)),
            lambda: self.registry.histogram("f", "Endless.", buckets=(1, float("inf"))),
        ):
            with self.assertRaises(ValueError):
                declare()

    def test_refuses_wrong_label_counts_and_falling_counters(self) -> None:
        metric = self.registry.counter("a_total", "A.", ("x",))
        with self.assertRaises(ValueError):
            metric.labels("1", "2")
        with self.assertRaises(ValueError):
            metric.labels("1").inc(-1)

    def test_callback_supplies_numbers_at_every_scrape(self) -> None:
        numbers = [(("b",), 2.5), (("a",), 1)]
        self.registry.callback("g", "gauge", "G.", ("x",), lambda: numbers, SUM)
        self.assertEqual(list(scrape(self.registry).items()), [('g{x="a"}', 1), ('g{x="b"}', 2.5)])
        numbers.clear()
        self.assertEqual(scrape(self.registry), {})

    def test_callback_may_use_the_registry(self) -> None:
        inner = self.registry.counter("a_total", "A.").labels()

        def read() -> list[tuple[tuple[str, ...], float]]:
            inner.inc()  # would deadlock if render held the lock across callbacks
            return [((), 7)]

        self.registry.callback("g", "gauge", "G.", (), read, SUM)
        done: list[bytes] = []
        thread = threading.Thread(target=lambda: done.append(exposition.text(self.registry.collect())), daemon=True)
        thread.start()
        thread.join(5)
        self.assertIn(b"\ng 7\n", done[0])

    def test_special_numbers(self) -> None:
        gauge = self.registry.gauge("g", "G.", ("x",), merge=SUM)
        for value in (float("inf"), float("-inf"), 1e300, 3.0, True):
            gauge.labels(str(value)).set(value)
        text = exposition.text(self.registry.collect()).decode()
        for line in ('"inf"} +Inf', '"-inf"} -Inf', '"1e+300"} 1e+300', '"3.0"} 3', '"True"} 1'):
            self.assertIn(line + "\n", text)

    def test_lone_surrogate_in_a_label_does_not_cost_the_scrape(self) -> None:
        self.registry.counter("a_total", "A.", ("x",)).labels("\udc80").inc()
        self.assertIn(b'a_total{x="?"} 1\n', exposition.text(self.registry.collect()))


class GatewayMetricsTest(unittest.TestCase):
    def setUp(self) -> None:
        self.models = {"13b": "13b", "70b": "70b", "chat": "13b"}
        self.registry = Registry()
        self.metrics = GatewayMetrics(self.registry, lambda: self.models, {CHAT, "/healthz", "/v1/models/{id}"})

    def observed(self, *events: RequestEvent) -> dict[str, float]:
        self.metrics.observe(events)
        return scrape(self.registry)

    def test_counts_a_plain_answer(self) -> None:
        series = self.observed(event(), event())
        engine = 'model="13b",engine="a:1"'
        for name, expected in {
            f'gateway_requests_total{{path="{CHAT}",model="13b",status="200"}}': 2,
            f'gateway_request_duration_seconds_sum{{path="{CHAT}",model="13b"}}': 0.5,
            'gateway_tokens_total{model="13b",kind="prompt"}': 6,
            'gateway_tokens_total{model="13b",kind="completion"}': 8,
            f'gateway_engine_requests_total{{{engine},outcome="ok"}}': 2,
            f"gateway_engine_duration_seconds_sum{{{engine}}}": 0.25,
            "gateway_queue_wait_seconds_sum": 0.125,
            "gateway_queue_wait_seconds_count": 2,
            "gateway_overhead_seconds_sum": 0.125,
            "gateway_overhead_seconds_count": 2,
            "gateway_log_lines_dropped_total": 0,
        }.items():
            self.assertEqual(series.get(name), expected, name)
        self.assertFalse([name for name in series if name.startswith("gateway_time_to_first")])

    def test_an_event_that_cannot_be_counted_takes_no_other_along(self) -> None:
        with self.assertRaises(OverflowError):
            self.metrics.observe([event(), event(prompt_tokens=0.5), event(prompt_tokens=10**400), event()])
        requests = f'gateway_requests_total{{path="{CHAT}",model="13b",status="200"}}'
        self.assertEqual(scrape(self.registry)[requests], 4)
        attempts = 'gateway_engine_requests_total{model="13b",engine="a:1",outcome="ok"}'
        self.assertEqual(scrape(self.registry)[attempts], 3)

    def test_stream_counts_first_token_and_no_overhead(self) -> None:
        series = self.observed(event(stream=True, ttft_s=0.5), event(stream=True, status=502))
        self.assertEqual(series['gateway_time_to_first_token_seconds_sum{model="13b"}'], 0.5)
        self.assertEqual(series['gateway_time_to_first_token_seconds_count{model="13b"}'], 1)
        self.assertEqual(series["gateway_overhead_seconds_count"], 0)

    def test_overhead_is_never_negative(self) -> None:
        series = self.observed(event(latency_s=0.1))
        self.assertEqual(series["gateway_overhead_seconds_sum"], 0)
        self.assertEqual(series["gateway_overhead_seconds_count"], 1)

    def test_get_path_counts_but_neither_queues_nor_reaches_an_engine(self) -> None:
        probe = RequestEvent(1.0, "r", "GET", "/healthz", 200, None, 0.001)
        series = self.observed(probe)
        name = 'gateway_requests_total{path="/healthz",model="",status="200"}'
        self.assertEqual(series[name], 1)
        self.assertEqual(series['gateway_request_duration_seconds_count{path="/healthz",model=""}'], 1)
        self.assertEqual(series["gateway_queue_wait_seconds_count"], 0)
        self.assertEqual(series["gateway_overhead_seconds_count"], 0)

    def test_a_queue_timeout_counts_its_wait(self) -> None:
        series = self.observed(event(status=503, attempts=0, queue_s=30.0, attempt_records=()))
        self.assertEqual(series["gateway_queue_wait_seconds_sum"], 30)
        self.assertEqual(series["gateway_overhead_seconds_count"], 0)

    def test_callers_cannot_invent_series(self) -> None:
        before = len(self.observed(event(model="x", path="/x", status=404)))
        for i in range(50):
            series = self.observed(event(model=f"m{i}", path=f"/{i}", status=404))
        self.assertEqual(len(series), before)
        name = 'gateway_requests_total{path="other",model="other",status="404"}'
        self.assertEqual(series[name], 51)

    def test_a_model_configured_later_gets_its_label(self) -> None:
        self.observed(event(model="7b"))
        self.models = {"7b": "7b"}
        series = self.observed(event(model="7b"))
        for model in ("other", "7b"):
            name = f'gateway_requests_total{{path="{CHAT}",model="{model}",status="200"}}'
            self.assertEqual(series[name], 1)

    def test_an_alias_counts_as_its_model(self) -> None:
        series = self.observed(event(model="chat", status=502, extra={"hedged": True}, retries=(("chat", "reset"),)))
        for name in (
            f'gateway_requests_total{{path="{CHAT}",model="13b",status="502"}}',
            'gateway_hedges_total{model="13b"}',
            'gateway_retries_total{model="13b",reason="reset"}',
        ):
            self.assertEqual(series[name], 1)
        self.assertFalse([name for name in series if 'model="chat"' in name])

    def test_single_models_share_one_path(self) -> None:
        series = self.observed(event(path="/v1/models/a"), event(path="/v1/models/b"))
        name = 'gateway_requests_total{path="/v1/models/{id}",model="13b",status="200"}'
        self.assertEqual(series[name], 2)

    def test_counts_attempts_retries_and_fallbacks(self) -> None:
        records = (
            AttemptRecord("70b", "a:1", "refused", 0.001),
            AttemptRecord("70b", "b:1", "nonsense", 0.002),
            AttemptRecord("13b", "c:1", "ok", 0.1),
        )
        retries = (("70b", "refused"), ("70b", "nonsense"))
        series = self.observed(event(attempts=3, attempt_records=records, retries=retries, fallback="70b->13b"))
        for name in (
            'gateway_engine_requests_total{model="70b",engine="a:1",outcome="refused"}',
            'gateway_engine_requests_total{model="70b",engine="b:1",outcome="other"}',
            'gateway_engine_requests_total{model="13b",engine="c:1",outcome="ok"}',
            'gateway_retries_total{model="70b",reason="refused"}',
            'gateway_retries_total{model="70b",reason="other"}',
            'gateway_fallbacks_total{from_model="70b",to_model="13b"}',
        ):
            self.assertEqual(series.get(name), 1, name)

    def test_counts_what_was_spared(self) -> None:
        self.metrics.observe(
            [
                event(extra={"cache": "hit", "saved_tokens": 12, "saved_usd": 0.25}),
                event(extra={"cache": "near", "saved_tokens": 30}),
                event(extra={"cache": "miss"}),
                event(extra={"cache": "bypass", "coalesced": True}),
                event(extra={"batch": 4, "batch_wait_ms": 2.0}),
                event(extra={"batch": 4}),
            ]
        )
        series = scrape(self.registry)
        for result in ("hit", "near", "miss", "bypass"):
            self.assertEqual(series[f'gateway_cache_requests_total{{model="13b",result="{result}"}}'], 1)
        self.assertEqual(series['gateway_saved_tokens_total{model="13b"}'], 42)
        self.assertEqual(series['gateway_coalesced_total{model="13b"}'], 1)
        self.assertEqual((series["gateway_batch_size_count"], series["gateway_batch_size_sum"]), (1, 4))
        self.assertEqual(series["gateway_batch_wait_seconds_sum"], 0.002)
        totals = {"hit": 1, "near": 1, "miss": 1, "bypass": 1, "saved_tokens": 42, "saved_usd": 0.25}
        self.assertEqual(self.metrics.cache_totals, totals)

    def exemplars(self) -> dict[str, set[tuple[str, str]]]:
        """Trace and span ids by the metric whose buckets have them."""
        found: dict[str, set[tuple[str, str]]] = {}
        for family in self.registry.collect():
            for _, value in family.series:
                for exemplar in value.exemplars if isinstance(value, Distribution) else ():
                    if exemplar is not None:
                        found.setdefault(family.name, set()).add((exemplar.trace_id, exemplar.span_id))
        return found

    def test_an_exemplar_is_of_a_sampled_trace_and_of_an_attempt_it_has_the_attempts_span(self) -> None:
        trace = Trace("a" * 32, "b" * 16)
        attempt = AttemptRecord("13b", "a:1", "ok", 0.125, span_id="c" * 16)
        traced = event(trace=trace._replace(sampled=True), attempt_records=(attempt,), queue_s=0.01)
        self.metrics.observe([event(), event(trace=trace, attempt_records=(attempt,))])
        self.assertEqual(self.exemplars(), {})
        self.metrics.observe([traced, event(), event(trace=trace._replace(trace_id="d" * 32))])
        whole = ("gateway_request_duration_seconds", "gateway_queue_wait_seconds", "gateway_overhead_seconds")
        request = {("a" * 32, "b" * 16)}
        expected = dict.fromkeys((*whole, "gen_ai_server_request_duration_seconds"), request)
        self.assertEqual(self.exemplars(), {**expected, "gateway_engine_duration_seconds": {("a" * 32, "c" * 16)}})
        duration = next(family.series[0][1] for family in self.registry.collect() if family.name == whole[0])
        assert isinstance(duration, Distribution)
        self.assertEqual([one.unix_s for one in duration.exemplars if one is not None], [1.0])

    def test_there_is_one_exemplar_of_a_bucket_however_many_requests_are_traced(self) -> None:
        for number in range(1000):
            trace = Trace(f"{number:032x}", "b" * 16, "", True)
            self.metrics.observe([event(trace=trace, latency_s=0.02 + 0.02 * (number % 2))])
        self.assertEqual(
            self.exemplars()["gateway_request_duration_seconds"], {(f"{n:032x}", "b" * 16) for n in (998, 999)}
        )

    def test_many_usual_requests_come_to_what_each_by_itself_does(self) -> None:
        chance = random.Random(3)
        known, paths = self.models, {CHAT, "/healthz"}
        whole, single = Registry(), Registry()
        at_once, each = GatewayMetrics(whole, lambda: known, paths), GatewayMetrics(single, lambda: known, paths)
        events = []
        for number in range(1500):
            latency_s = chance.choice((0.001, 0.01, 0.25, 200.0)) * (1 + chance.randrange(4))  # also at the bounds
            engine = chance.choice(("a:1", "a:2"))
            events.append(
                event(
                    latency_s=latency_s,
                    queue_s=0.0,
                    engine_s=latency_s * 0.5,
                    model=chance.choice(("13b", "70b", "nobody's")),
                    engine=engine,
                    status=chance.choice((200, 201)),
                    prompt_tokens=chance.randrange(3),
                    completion_tokens=chance.choice((None, 7, 4**9)),
                    stream=number % 11 == 0,
                    trace=chance.choice((None, Trace(f"{number:032x}", "b" * 16, "", number % 2 == 0))),
                    attempt_records=(AttemptRecord("13b", engine, "ok", latency_s * 0.5, span_id=f"{number:016x}"),),
                )
            )
        for start in range(0, len(events), 7):
            at_once.observe(events[start : start + 7])
        with mock.patch.object(each._usual, "take_locked", lambda event, known: False):
            each.observe(events)
        for one, other in zip(whole.collect(), single.collect()):
            self.assertEqual(one.name, other.name)
            for (labels, found), (same, expected) in zip(one.series, other.series):
                self.assertEqual(labels, same)
                if isinstance(found, Distribution) and isinstance(expected, Distribution):
                    self.assertEqual(found.counts, expected.counts)
                    self.assertAlmostEqual(found.sum / expected.sum if expected.sum else 1.0, 1.0)
                    self.assertEqual([a is None for a in found.exemplars], [a is None for a in expected.exemplars])
                else:
                    self.assertEqual(found, expected)
            self.assertEqual(len(one.series), len(other.series))

    def test_the_exemplar_of_many_usual_requests_is_the_last_ones(self) -> None:
        for number in range(600):
            trace = Trace(f"{number:032x}", "b" * 16, "", True)
            attempt = AttemptRecord("13b", "a:1", "ok", 0.125, span_id=f"{number:016x}")
            self.metrics.observe([event(trace=trace, latency_s=0.5 + 2 * (number % 2), attempt_records=(attempt,))])
        found = self.exemplars()
        last = {(f"{number:032x}", "b" * 16) for number in (598, 599)}
        self.assertEqual(found["gateway_request_duration_seconds"], last)
        self.assertEqual(found["gen_ai_server_request_duration_seconds"], last)
        self.assertEqual(found["gateway_engine_duration_seconds"], {(f"{599:032x}", f"{599:016x}")})

    def test_usual_requests_count_by_the_names_of_their_time(self) -> None:
        self.metrics.observe([event(model="chat")])
        self.models = {"70b": "70b", "chat": "70b"}
        self.metrics.observe([event(model="chat")])
        series = scrape(self.registry)
        for model in ("13b", "70b"):
            self.assertEqual(series[f'gateway_requests_total{{path="{CHAT}",model="{model}",status="200"}}'], 1, model)

    def test_every_outcome_has_its_own_label(self) -> None:
        records = tuple(AttemptRecord("13b", "a:1", outcome, 0.1) for outcome in sorted(OUTCOMES))
        series = self.observed(event(attempt_records=records))
        found = [name for name in series if name.startswith("gateway_engine_requests_total")]
        self.assertEqual(len(found), len(OUTCOMES))
        self.assertEqual(
            series['gateway_engine_duration_seconds_count{model="13b",engine="a:1"}'],
            len(OUTCOMES),
        )

    def test_gauges_show_the_present(self) -> None:
        engines = [("13b", "a:1", True, 5), ("13b", "b:1", False, 0)]
        depth = [3]
        gauges.bind_engines(self.registry, lambda: engines)
        gauges.bind_queue(self.registry, lambda: depth[0], lambda: 2, 8)
        series = scrape(self.registry)
        self.assertEqual(series['gateway_engine_up{model="13b",engine="a:1"}'], 1)
        self.assertEqual(series['gateway_engine_up{model="13b",engine="b:1"}'], 0)
        self.assertEqual(series['gateway_engine_inflight{model="13b",engine="a:1"}'], 5)
        self.assertEqual((series["gateway_queue_depth"], series["gateway_workers_busy"]), (3, 2))
        depth[0] = 4
        del engines[1]
        series = scrape(self.registry)
        self.assertEqual(series["gateway_queue_depth"], 4)
        self.assertNotIn('gateway_engine_up{model="13b",engine="b:1"}', series)


class ProcessMetricsTest(unittest.TestCase):
    def setUp(self) -> None:
        self.registry = Registry()
        process.register_process_metrics(self.registry)

    def test_cpu_time_and_start_time_everywhere(self) -> None:
        series = scrape(self.registry)
        self.assertGreater(series["process_cpu_seconds_total"], 0)
        self.assertLessEqual(series["process_start_time_seconds"], time.time() + 1)
        self.assertGreater(series["process_start_time_seconds"], time.time() - 86400)

    @unittest.skipUnless(sys.platform == "linux", "needs /proc")
    def test_memory_and_files_on_linux(self) -> None:
        before = scrape(self.registry)
        self.assertGreater(before["process_resident_memory_bytes"], 5e6)
        opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(7)]
        try:
            after = scrape(self.registry)
        finally:
            for fd in opened:
                os.close(fd)
        self.assertEqual(after["process_open_fds"], before["process_open_fds"] + 7)


if __name__ == "__main__":
    unittest.main()
