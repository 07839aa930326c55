"""A real Prometheus scrapes a gateway: it finds no fault, and its queries give what was asked.

Skipped where prometheus or promtool is missing (Debian's package prometheus has both); with REQUIRE_PROMETHEUS=1 that
is a failure.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
import time
import unittest
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from tests import dashboards
from tests.prometheus import MISSING, PROMTOOL, REQUIRED, Prometheus, needs_prometheus
from tests.support import CHAT, HI, RunningGateway, SocketTest, dead_url, engines, eventually, gateway, mock_engine

GOOD, FAILED = 30, 5
RANGE_S = 60
EDGE = 1.1
"""As many times their distance samples may be from an end of the range, to be taken for going on up to it."""


class InstalledTest(unittest.TestCase):
    @unittest.skipUnless(REQUIRED, "REQUIRE_PROMETHEUS=1 is not set")
    def test_all_that_is_needed_is_here(self) -> None:
        self.assertEqual(MISSING, [], "REQUIRE_PROMETHEUS=1, but these are missing")


@needs_prometheus
class PrometheusTest(SocketTest):
    """One Prometheus for all of them: it takes five seconds until it begins."""

    running: RunningGateway
    prometheus: Prometheus

    @classmethod
    def setUpClass(cls) -> None:
        stack = contextlib.ExitStack()
        cls.addClassCleanup(stack.close)
        urls = [stack.enter_context(mock_engine()).url for _ in range(2)]
        fleet = engines(_13b=urls, _70b=dead_url(), traced=urls[0])
        cls.running = stack.enter_context(gateway(ENGINES=fleet, FALLBACK="off"))
        cls.running.post()
        cls.running.post({**HI, "model": "70b"})
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cls.prometheus = Prometheus(directory, f"{cls.running.host}:{cls.running.port}")
        stack.callback(cls.prometheus.close)
        eventually(lambda: cls.prometheus.number("up") == 1)

    def wait_for_scrape(self) -> None:
        number = "count_over_time(up[1h])"
        before = self.prometheus.number(number) or 0
        eventually(lambda: (self.prometheus.number(number) or 0) > before)

    def test_a_query_gives_as_many_requests_as_there_were_and_their_rate(self) -> None:
        running, found = self.running, self.prometheus
        total = f'sum(gateway_requests_total{{path="{CHAT}"}})'
        failed = f'sum(gateway_requests_total{{path="{CHAT}",status=~"5.."}})'
        self.assertEqual(found.number(total), 2)
        for number in range(GOOD):
            self.assertEqual(running.post({**HI, "stream": bool(number % 2)}).status, 200)
        for _ in range(FAILED):
            self.assertEqual(running.post({**HI, "model": "70b"}).status, 502)
        eventually(lambda: found.number(total) == 2 + GOOD + FAILED)
        self.wait_for_scrape()  # then less is extrapolated

        now_s = time.time()
        for model, status, count in (("13b", 200, GOOD), ("70b", 502, FAILED)):
            series = f'gateway_requests_total{{path="{CHAT}",model="{model}",status="{status}"}}'
            samples = found.query(f"{series}[{RANGE_S}s]", now_s)[0]["values"]
            self.assertEqual((float(samples[0][1]), float(samples[-1][1])), (1, 1 + count))
            increase = found.number(f"increase({series}[{RANGE_S}s])", now_s)
            rate = found.number(f"rate({series}[{RANGE_S}s])", now_s)
            assert increase is not None and rate is not None
            sampled_s = samples[-1][0] - samples[0][0]
            each_s = sampled_s / (len(samples) - 1)
            self.assertGreaterEqual(increase, count * (1 - 1e-9))
            self.assertLessEqual(increase, count * (1 + 2 * EDGE * each_s / sampled_s))
            self.assertAlmostEqual(rate * RANGE_S, increase)

        for expression, expected in (
            (f"{failed} / {total}", (1 + FAILED) / (2 + GOOD + FAILED)),
            ('sum(gen_ai_client_token_usage_count{gen_ai_request_model="13b",gen_ai_token_type="output"})', 1 + GOOD),
            ('sum(gen_ai_server_request_duration_seconds_count{error_type="backend_unavailable"})', 1 + FAILED),
            ('sum(gen_ai_server_request_duration_seconds_count{gen_ai_request_model="13b",error_type=""})', 1 + GOOD),
            ('sum(gateway_engine_requests_total{model="13b",outcome="ok"})', 1 + GOOD),
            ('gen_ai_server_time_to_first_token_seconds_count{gen_ai_request_model="13b"}', GOOD // 2),
            ("gateway_build_info", 1),
            ('sum(gateway_engine_up{model="70b"})', 0),
        ):
            self.assertEqual(found.number(expression), expected, expression)
        for quantile in (0.5, 0.99):
            name = "gateway_request_duration_seconds_bucket"
            slowest = found.number(f'histogram_quantile({quantile}, sum by (le) (rate({name}{{model="13b"}}[1m])))')
            assert slowest is not None
            self.assertTrue(0 < slowest < 120, slowest)
        self.assert_no_fault(found)

    def test_exemplars_lead_from_a_bucket_to_a_trace(self) -> None:
        sampled, unsampled = "a" * 32, "b" * 32
        for trace_id, flags in ((sampled, "01"), (unsampled, "00")):
            traceparent = f"00-{trace_id}-{'c' * 16}-{flags}"
            body = {"model": "traced", "prompt": "hi", "stream": True}
            answer = self.running.post(body, "/v1/completions", [("traceparent", traceparent)])
            self.assertEqual(answer.status, 200)
        for name, labels in (
            ("gateway_request_duration_seconds", '{path="/v1/completions"}'),
            ("gen_ai_server_time_to_first_token_seconds", '{gen_ai_operation_name="text_completion"}'),
        ):
            series = eventually(partial(self.exemplars, f"{name}_bucket{labels}"))
            exemplars = [exemplar for one in series for exemplar in one["exemplars"]]
            self.assertEqual({exemplar["labels"]["trace_id"] for exemplar in exemplars}, {sampled})
            for one in series:
                self.assertLessEqual(float(one["exemplars"][0]["value"]), float(one["seriesLabels"]["le"]))
        engine = 'gateway_engine_duration_seconds_bucket{model="traced"}'
        spans = {one["labels"]["span_id"] for series in self.exemplars(engine) for one in series["exemplars"]}
        self.assertNotIn(exemplars[0]["labels"]["span_id"], spans)  # those are the attempts'
        self.assert_no_fault(self.prometheus)

    def test_every_expression_of_the_dashboard_is_answered(self) -> None:
        for title, expression, _ in dashboards.expressions(dashboards.kept()):
            with self.subTest(title=title):
                self.prometheus.ask("format_query", query=dashboards.as_asked(expression))
                self.prometheus.query(dashboards.as_asked(expression))
        for variable in dashboards.kept()["templating"]["list"]:
            found = re.fullmatch(r"label_values\((.*), ([a-z]+)\)", variable["query"])
            if found is not None:
                series = self.prometheus.query(dashboards.as_asked(found[1]))
                self.assertTrue([one for one in series if found[2] in one["metric"]], variable["name"])

    def exemplars(self, name: str) -> list[dict[str, Any]]:
        now_s = time.time()
        series = self.prometheus.ask("query_exemplars", query=name, start=now_s - RANGE_S, end=now_s + RANGE_S)
        assert isinstance(series, list)
        return series

    def assert_no_fault(self, found: Prometheus) -> None:
        """Every target is up, every scrape was taken as it is, and it was OpenMetrics."""

        def states() -> list[tuple[str, str]]:
            return [(one["health"], one["lastError"]) for one in found.ask("targets")["activeTargets"]]

        eventually(lambda: states() == [("up", "")])  # a busy machine may have missed a second
        self.assertEqual(found.log, "")
        metadata = found.ask("metadata", metric="gateway_request_duration_seconds")
        self.assertEqual(metadata["gateway_request_duration_seconds"][0]["unit"], "seconds")  # the text has no units


@needs_prometheus
class PromtoolTest(SocketTest):
    def test_it_finds_nothing_to_mend(self) -> None:
        engine = self.enter(mock_engine())
        running = self.enter(gateway(ENGINES=engines(_13b=engine.url, _70b=dead_url()), CACHE="on"))
        self.ask_all_sorts(running)
        text = running.get("/metrics").body
        checked = subprocess.run([str(PROMTOOL), "check", "metrics"], input=text, capture_output=True, timeout=60)
        self.assertEqual((checked.returncode, checked.stdout, checked.stderr), (0, b"", b""))

    def ask_all_sorts(self, running: RunningGateway) -> None:
        bodies: Iterable[object] = (HI, {**HI, "stream": True}, {**HI, "temperature": 0}, {**HI, "model": "70b"}, b"{")
        for body in bodies:
            running.post(body)


if __name__ == "__main__":
    unittest.main()
