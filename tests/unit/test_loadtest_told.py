"""What a load test's command line says, which requests it makes, and how the result is told: JSON, table, page,
verdicts."""

from __future__ import annotations

import contextlib
import io
import json
import re
import tempfile
import unittest
from html.parser import HTMLParser
from itertools import islice
from pathlib import Path
from typing import Any, Optional

from gateway.tools.asking import UsageError
from gateway.tools.loadtest.charts import even_axis, log_axis, time_axis
from gateway.tools.loadtest.durations import NS, duration_s, rate, shown_bytes, shown_ns, tick_ms
from gateway.tools.loadtest.exchange import Exchange
from gateway.tools.loadtest.measures import Measures
from gateway.tools.loadtest.options import plan_of
from gateway.tools.loadtest.page import _moments, page
from gateway.tools.loadtest.plan import Plan
from gateway.tools.loadtest.preflight import head_of
from gateway.tools.loadtest.progress import line
from gateway.tools.loadtest.prompts import bodies_in, body_of, made_unique, words
from gateway.tools.loadtest.requests import Mix, Request, Target, requests
from gateway.tools.loadtest.result import Run, result_of
from gateway.tools.loadtest.table import label_row, table
from gateway.tools.loadtest.thresholds import threshold

URL = "http://127.0.0.1:8080"
MS = NS // 1000
SECRET = "sk-very-secret"


def plan(*argv: str, url: str = URL, **environment: str) -> Plan:
    return plan_of([url, *argv], "loadtest", environment)


def refused(*argv: str, url: str = URL, **environment: str) -> str:
    """What is told of a command line that cannot be run."""
    told = io.StringIO()
    with contextlib.redirect_stderr(told):
        try:
            plan(*argv, url=url, **environment)
        except SystemExit as error:
            assert error.code == 2, error.code
            return told.getvalue()
    raise AssertionError(f"{argv} are taken")


class OptionsTest(unittest.TestCase):
    def test_what_is_not_said_is_as_the_help_has_it(self) -> None:
        of = plan()
        self.assertEqual((of.duration_s, of.connections, of.timeout_s, of.connect_s), (10.0, 10, 60.0, 5.0))
        self.assertEqual((of.warmup_s, of.expected_s, of.stream_share, of.shared_prefix, of.title), (0, 0, 0, 0, ""))
        self.assertEqual((of.models, of.headers, of.thresholds, dict(of.params), of.key), ((), (), (), {}, None))

    def test_what_is_wrong_is_named_with_its_option(self) -> None:
        for argv, option, text in (
            (("--rate", "fast"), "--rate", "requests a second"),
            (("--rate", "0"), "--rate", "more than 0"),
            (("--rate", "-5"), "--rate", "requests a second"),
            (("--duration", "0"), "--duration", "more than 0"),
            (("--duration", "10 parsecs"), "--duration", "90s"),
            (("--duration", "999h"), "--duration", "a week"),
            (("--connections", "0"), "--connections", "from 1 to 100000"),
            (("--requests", "1e3"), "--requests", "whole number"),
            (("--stream", "2"), "--stream", "from 0 to 1"),
            (("--stage", "100:30s"), "--stage", "requests a second"),
            (("--stage", "30s"), "--stage", "TIME:RATE"),
            (("--ramp", "10:500"), "--ramp", "FROM:TO:TIME"),
            (("--ramp", "0:0:5s"), "--rate", "more than 0"),
            (("--stage", "30s:9", "--duration", "20s"), "--duration", "less than the stages"),
            (("--model", "a=0"), "--model", "weight"),
            (("--header", "no colon"), "--header", "a colon"),
            (("--header", "X: a\r\nY: b"), "--header", "a colon"),
            (("--header", "Content-Length: 5"), "--header", "own"),
            (("--param", "x"), "--param", "temperature=0"),
            (("--prompt-tokens", "9-3"), "--prompt-tokens", "range"),
            (("--think", "3s-1s"), "--think", "range of times"),
            (("--think", "1s", "--rate", "5"), "--think", "closed loop"),
            (("--expected-interval", "1s", "--rate", "5"), "--expected-interval", "open loop"),
            (("--arrivals", "poisson"), "--arrivals", "--rate"),
            (("--kind", "embeddings", "--stream"), "--stream", "embeddings"),
            (("--cacert", "x"), "--cacert", "https"),
            (("--path", "v1"), "--path", "begin with /"),
            (("--fail-if", "p98>5ms"), "--fail-if", "no 'p98'"),
            (("--fail-if", "p99>5"), "--fail-if", "unit"),
            (("--fail-if", "errors>x"), "--fail-if", "a share"),
            (("--fail-if", "rate=5"), "--fail-if", "p99>500ms"),
            (("--prompt", "a", "--prompt-tokens", "5"), "--prompt-tokens", "not allowed with"),
            (("--key", "two words"), "--key", "one word"),
            (("--ratee", "5"), "--ratee", "unrecognized"),
        ):
            told = refused(*argv)
            self.assertIn(option, told, argv)
            self.assertIn(text, told, argv)
            self.assertLess(len(told.splitlines()), 4)

    def test_a_url_that_is_none_is_named(self) -> None:
        for url, text in (
            ("127.0.0.1:8080", "http://"),
            ("0.5", "--stream=0.5"),
            ("ftp://x", "http://"),
            ("http://", "host"),
            ("http://h:99999", "Port out of range"),
            ("http://h/x?y", "before ?"),
            ("http://h/a b", "character"),
            (f"http://me:{SECRET}@h", "no user"),
        ):
            told = refused(url=url)
            self.assertIn("URL", told)
            self.assertIn(text, told)
            self.assertNotIn(SECRET, told.partition("error:")[2])

    def test_a_base_may_have_a_path_end_with_v1_and_be_ipv6(self) -> None:
        self.assertEqual(plan(url="http://h/v1").base.prefix, "")
        self.assertEqual(plan(url="https://h/sub/v1/").base.prefix, "/sub")
        base = plan(url="http://[::1]:9000").base
        self.assertEqual((base.host, base.port, base.authority), ("::1", 9000, "[::1]:9000"))
        self.assertEqual(plan(url="https://h").base.port, 443)

    def test_without_a_rate_it_is_closed_and_with_one_open(self) -> None:
        closed, opened = plan(), plan("--rate", "120/m")
        self.assertEqual((closed.open_loop, closed.connections, closed.duration_s), (False, 10, 10.0))
        self.assertEqual((opened.open_loop, opened.connections), (True, 1000))
        self.assertEqual(opened.stages[0], (2.0, 2.0, 10.0))
        self.assertIsNone(plan("--requests", "5").duration_s)

    def test_stages_follow_in_the_order_in_which_they_were_said(self) -> None:
        found = plan(
            "--ramp", "10:500:60s", "--stage", "30s:100", "--stage", "1m:100", "--duration", "3m", "--warmup", "5s"
        )
        rates = [(stage.from_rate, stage.to_rate, stage.duration_s) for stage in found.stages]
        self.assertEqual(rates, [(10, 10, 5), (10, 500, 60), (500, 100, 30), (100, 100, 60), (100, 100, 30)])
        self.assertEqual(found.duration_s, 180)
        self.assertEqual(plan("--stage", "30s:100", "--stage", "10s:0").duration_s, 40)
        self.assertEqual(plan("--rate", "5", "--stage", "30s:100").stages[0], (5, 100, 30))

    def test_the_path_tells_the_kind_and_the_kind_the_path(self) -> None:
        self.assertEqual(plan("--kind", "embeddings").path, "/v1/embeddings")
        self.assertEqual(plan("--path", "/x/v1/completions").kind, "completions")
        self.assertEqual(plan("--path", "/odd").kind, "chat")

    def test_a_key_comes_from_the_environment_and_is_shown_nowhere(self) -> None:
        found = plan(OPENAI_API_KEY=SECRET)
        self.assertEqual((found.key, found.key_from), (SECRET, "OPENAI_API_KEY"))
        self.assertEqual(plan(OPENAI_API_KEY="other", LOADTEST_KEY=SECRET).key, SECRET)
        self.assertIn(f"Authorization: Bearer {SECRET}\r\n".encode(), head_of(found))
        self.assertNotIn(SECRET, repr(found))
        self.assertNotIn(SECRET, refused(LOADTEST_KEY=f"{SECRET} x"))
        self.assertNotIn(SECRET, refused("--header", f"{SECRET}"))

    def test_a_header_goes_before_the_one_that_would_be_sent(self) -> None:
        head = head_of(plan("-H", "authorization: Basic x", "-H", "Host: other", "-H", "X-A: 1", LOADTEST_KEY=SECRET))
        self.assertNotIn(SECRET.encode(), head)
        for name in (b"authorization:", b"host:"):
            self.assertEqual(head.lower().count(b"\r\n" + name), 1)
        self.assertIn(b"Host: other\r\n", head)
        self.assertIn(b"X-A: 1\r\n", head)

    def test_times_and_rates_are_read_and_shown(self) -> None:
        for text, seconds in (("90", 90), ("1m30s", 90), ("250ms", 0.25), ("1.5h", 5400), ("100us", 1e-4)):
            self.assertAlmostEqual(duration_s(text), seconds)
        self.assertEqual([rate(text) for text in ("100", "2.5", "90/m", "36/h")], [100, 2.5, 1.5, 0.01])
        values = (0, 999, 12_345, 999_600, 1_500_000_000, 125 * NS, None)
        shown = ["0 µs", "1.00 µs", "12.3 µs", "1.00 ms", "1.50 s", "2 m 05 s", "–"]
        self.assertEqual([shown_ns(value) for value in values], shown)
        self.assertEqual(
            [shown_bytes(size) for size in (7, 1500, 2e6, 3e12)], ["7 B", "1.50 kB", "2.00 MB", "3 000 GB"]
        )


class RequestsTest(unittest.TestCase):
    TARGET = Target(b"POST /x HTTP/1.1\r\n", (("a", 1.0), ("b", 3.0)))

    def made(self, mix: Mix, seed: int = 1, count: int = 400) -> list[Request]:
        return list(islice(requests(self.TARGET, mix, seed), count))

    def body(self, request: Request) -> Any:
        head, _, body = request.wire.partition(b"\r\n\r\n")
        self.assertIn(b"\r\nContent-Length: %d" % len(body), head)
        return json.loads(body)

    def test_a_seed_makes_the_same_requests_again(self) -> None:
        mix = Mix([body_of("chat", "x"), body_of("chat", "é")], stream_share=0.5, unique=True)
        self.assertEqual(self.made(mix), self.made(mix))
        self.assertNotEqual(self.made(mix), self.made(mix, seed=2))

    def test_models_and_streams_come_as_often_as_said(self) -> None:
        made = self.made(Mix([body_of("chat", "x")], stream_share=0.25), count=4000)
        self.assertAlmostEqual(sum(one.model == "b" for one in made) / 4000, 0.75, delta=0.04)
        self.assertAlmostEqual(sum(one.stream for one in made) / 4000, 0.25, delta=0.04)
        for one in made[:50]:
            body = self.body(one)
            self.assertEqual(body["model"], one.model)
            self.assertEqual(body.get("stream", False), one.stream)
            self.assertEqual("stream_options" in body, one.stream)

    def test_what_does_not_differ_is_made_once(self) -> None:
        made = self.made(Mix([body_of("chat", "x")]))
        self.assertEqual(len({id(one) for one in made}), 2)

    def test_unique_prompts_differ_from_their_first_word_on(self) -> None:
        made = self.made(Mix([body_of("chat", "x", "you are")], unique=True))
        starts = {self.body(one)["messages"][0]["content"].split()[0] for one in made}
        self.assertEqual(len(starts), len(made))
        for body in ({"prompt": "p"}, {"input": ["a", "b"]}, {"messages": [{"role": "user", "content": [{}]}]}):
            self.assertIn("MARK", json.dumps(made_unique(body, "MARK")))
        self.assertNotIn("MARK", json.dumps(body_of("chat", "x")))

    def test_params_go_before_all_and_a_line_of_a_file_may_name_its_model(self) -> None:
        mix = Mix([{**body_of("chat", "x"), "model": "own", "stream": True}], params={"temperature": 0})
        body = self.body(self.made(mix)[0])
        self.assertEqual((body["model"], body["temperature"], "stream" in body), ("own", 0, False))
        self.assertEqual(self.made(mix)[0].model, "own")

    def test_a_file_holds_json_lines_or_texts(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "prompts.txt")
            path.write_text("one\n\ntwo\n", "utf-8")
            self.assertEqual([one["messages"][-1]["content"] for one in bodies_in(path, "chat")], ["one", "two"])
            path.write_text('{"prompt": "a", "temperature": 0}\n"b"\n{"messages": []}\n', "utf-8")
            bodies = bodies_in(path, "chat", "prefix")
            self.assertEqual([len(one["messages"]) for one in bodies], [2, 2, 0])
            self.assertEqual(bodies[0]["temperature"], 0)
            path.write_text('"b"', "utf-8")
            self.assertEqual(bodies_in(path, "completions"), [{"prompt": "b"}])
            for text, fault in (
                ("", "nothing"),
                ('{"a": 1}\n"b"\n{', ":3: is not JSON"),
                ('{"x": 1}', "needs 'messages'"),
                ('{"prompt": "a", "temperature": NaN}', ":1: is not JSON: NaN"),
            ):
                path.write_text(text, "utf-8")
                with self.assertRaises(UsageError) as caught:
                    bodies_in(path, "chat")
                self.assertIn(fault, "\n".join(caught.exception.args))
            path.write_bytes(b"\xff")
            with self.assertRaisesRegex(UsageError, "UTF-8"):
                bodies_in(path, "chat")
            with self.assertRaisesRegex(UsageError, "No such file"):
                bodies_in(Path(folder, "none"), "chat")

    def test_made_up_prompts_are_as_long_as_said(self) -> None:
        from random import Random

        self.assertEqual(len(words(120, Random(1)).split()), 120)


def measured(open_loop: bool = True, failures: bool = True, evil: str = "") -> Measures:
    """Two seconds of answers, streams among them, a second of warm-up before, and some failures."""
    measures = Measures(open_loop)
    for number in range(-10, 200):
        at_ns = number * NS // 100
        stream = number % 2 == 0
        exchange = Exchange(stream)
        head = f"HTTP/1.1 200 OK\r\nX-Gateway-Engine: e{number % 2}{evil}\r\n"
        head += f"Content-Type: {'text/event-stream' if stream else 'application/json'}\r\n"
        measures.began(at_ns, at_ns + MS, waited=False)
        if failures and number % 10 == 5:
            head = "HTTP/1.1 429 No\r\nRetry-After: 1\r\n" if number % 20 == 5 else "HTTP/1.1 500 No\r\n"
            body = json.dumps({"error": {"code": f"broken{evil}"}})
        elif stream:
            body = ""
            exchange.feed(head.encode("latin-1") + b"\r\n", at_ns)
            for step in range(3):
                exchange.feed(b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n', at_ns + (step + 2) * MS)
            exchange.feed(b"data: [DONE]\n\n", at_ns + 5 * MS)
            exchange.closed()
        else:
            body = '{"usage":{"completion_tokens":4,"prompt_tokens":2}}'
        if not exchange.complete:
            exchange.feed(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode("latin-1"), at_ns)
        measures.ended(exchange, f"m{evil}", at_ns, at_ns + MS, at_ns + 5 * MS)
    measures.end_ns = 2 * NS
    measures.close(2 * NS + 10 * MS)
    return measures


def result(*argv: str, measures: Optional[Measures] = None, evil: str = "") -> dict[str, Any]:
    argv = argv or ("--rate", "100", "--duration", "2s", "--warmup", "1s")
    made = plan(*argv, "--title", f"A title{evil}", LOADTEST_KEY=SECRET)
    run = Run("2026-01-02T03:04:05+00:00", 2 * NS + 10 * MS, 0.1, 3.0, False, ((f"m{evil}", 1.0),), "CPython 3")
    return result_of(made, run, measures or measured(made.open_loop, evil=evil))


class ResultTest(unittest.TestCase):
    def test_counts_add_up(self) -> None:
        found = result()
        asked = found["requests"]
        self.assertEqual((asked["sent"], asked["warmup_sent"]), (200, 10))
        self.assertEqual(asked["ok"] + asked["errors"] + asked["refused"], asked["finished"])
        self.assertEqual((asked["finished"], asked["errors"], asked["refused"], asked["failed"]), (200, 10, 10, 20))
        self.assertEqual(sum(one["count"] for one in found["errors"]), 20)
        for key in ("models", "engines"):
            self.assertEqual(sum(one["ok"] for one in found[key]), asked["ok"])
        self.assertEqual(sum(one["ok"] for one in found["timeline"]), asked["ok"])
        self.assertEqual(sum(one["sent"] for one in found["timeline"]), 210)
        self.assertEqual(found["tokens"]["output"], 100 * 3 + 80 * 4)

    def test_rates_are_of_the_time_planned_unless_it_was_cut_short(self) -> None:
        measures = measured()
        for interrupted, end_s, expected in ((False, 30, 30.0), (True, 30, 2.01), (True, 1, 1.0), (False, None, 2.01)):
            measures.end_ns = None if end_s is None else end_s * NS
            run = Run("x", 2 * NS + 10 * MS, 0.1, 3.0, interrupted, (), "p")
            found = result_of(plan("--rate", "0.1"), run, measures)
            self.assertEqual(found["duration_s"], expected)
            self.assertAlmostEqual(found["rates"]["requests_per_s"], measures.window.ok / expected, places=2)

    def test_times_are_what_they_were(self) -> None:
        times = result()["times"]
        self.assertEqual((times["response"]["max_ms"], times["service"]["max_ms"]), (5.0, 4.0))
        self.assertEqual(times["ttft"]["p50_ms"], 2.0)  # from when it was due
        self.assertEqual(times["tpot"]["p50_ms"], 1.0)
        self.assertEqual(times["response"]["spread"][-1], [100.0, 5.0])
        self.assertIsNone(times["corrected"])

    def test_it_is_json_without_a_secret_and_with_a_schema(self) -> None:
        found = result("-H", f"X-Secret: {SECRET}", "--rate", "100")
        text = json.dumps(found, allow_nan=False)
        self.assertNotIn(SECRET, text)
        self.assertEqual(found["schema"], "loadtest/1")
        self.assertEqual(found["config"]["headers"], ["X-Secret"])

    def test_what_makes_the_figures_wrong_is_said(self) -> None:
        measures = Measures(open_loop=True)
        for number in range(100):
            measures.began(number * MS, number * MS + 50 * MS, waited=False)
        measures.not_sent(3)
        measures.close(NS)
        found = result("--rate", "9", measures=measures)
        told = "\n".join(found["warnings"])
        self.assertIn("THE GENERATOR COULD NOT KEEP UP: 100.0 %", told)
        self.assertIn("3 requests were due and never sent", told)
        self.assertIn("No request was answered well", told)
        self.assertIn("THE GENERATOR COULD NOT", table(found))
        self.assertIn("THE GENERATOR COULD NOT", page(found))
        measures = measured()
        for _ in range(50):
            measures.ticked(30 * MS)
        self.assertIn("THE GENERATOR WAS HELD UP", "\n".join(result(measures=measures)["warnings"]))
        measures = measured()
        measures.waited = 50
        self.assertIn("25.0 % of the requests had to wait", "\n".join(result(measures=measures)["warnings"]))
        self.assertEqual([one for one in result()["warnings"] if "GENERATOR" in one or "wait" in one], [])
        busy = result_of(plan(), Run("x", NS, 0.99, 1.0, False, (), "p"), measured(open_loop=False))
        self.assertIn("THE GENERATOR WAS BUSY: it used 99 %", "\n".join(busy["warnings"]))

    def test_a_closed_loop_says_what_it_hides(self) -> None:
        found = result("--connections", "7")
        self.assertIn("A closed loop", found["notes"][0])
        self.assertIn("7 requests at most", table(found))
        self.assertEqual([note for note in result()["notes"] if "closed loop" in note], [])

    def test_thresholds_hold_or_do_not(self) -> None:
        found = result()
        for rule, failed in (
            ("p99>4ms", True),
            ("p99>6ms", False),
            ("p99>=5ms", True),
            ("service_p99>4.5ms", False),
            ("response_max<1s", True),
            ("ttft_p50>1ms", True),
            ("tpot_mean>2ms", False),
            ("errors>5%", False),
            ("errors>=5%", True),
            ("errors>9", True),
            ("refused>10", False),
            ("failed>=10%", True),
            ("rate<80", False),
            ("rate<100/s", True),
            ("tokens<100", False),
            ("late>0", False),
        ):
            self.assertEqual(threshold(rule).judged(found)["failed"], failed, rule)

    def test_a_threshold_fails_where_nothing_was_measured(self) -> None:
        measures = Measures(open_loop=True)
        measures.close(NS)
        found = result("--rate", "9", measures=measures)
        for rule in ("p99>500ms", "ttft_p99>500ms", "errors>1%"):
            self.assertTrue(threshold(rule).judged(found)["failed"], rule)
        json.dumps(found, allow_nan=False)
        self.assertIn("Nothing has ended", table(found))
        page(found)


class PageTest(unittest.TestCase):
    def test_it_is_well_formed_and_needs_nothing_else(self) -> None:
        for found in (result(), result("--connections", "3"), result(measures=measured(failures=False))):
            text = page(found)
            self.assertEqual(Tags.faults(text), [])
            for word in ("<script", 'http-equiv="refresh', "src=", "@import", "url(", "nan", "inf "):
                self.assertNotIn(word, text.lower())
            self.assertEqual(re.findall(r'href="[^"]*"', text), [])
            self.assertIn("default-src 'none'", text)

    def test_nothing_from_the_server_is_ever_markup(self) -> None:
        evil = "<script>alert(1)</script>\"'&<b onload=x>"
        found = result(evil=evil)
        text = page(found)
        self.assertEqual(Tags.faults(text), [])
        self.assertNotIn("<script", text)
        self.assertNotIn("<b onload", text)
        self.assertIn("&lt;script&gt;", text)

    def test_a_terminal_gets_no_control_characters_of_a_server(self) -> None:
        found = result(evil="\x1b[2J\x07")
        self.assertEqual([one for one in table(found) if one != "\n" and not one.isprintable()], [])
        self.assertNotIn("\x1b", page(found))

    def test_stages_are_shaded_and_the_warm_up_too(self) -> None:
        text = page(result("--ramp", "10:100:1s", "--stage", "1s:100", "--warmup", "1s"))
        for part in ("10 → 100/s", "100/s", 'class="warm"', 'class="band"'):
            self.assertIn(part, text)

    def test_axes_hold_their_values(self) -> None:
        for most in (0.001, 0.9, 1, 3, 7, 10, 99, 100.1, 12_345):
            axis = even_axis(most, str)
            self.assertGreaterEqual(axis.most * (1 + 1e-9), most)
            self.assertTrue(2 <= len(axis.ticks) <= 7, (most, axis))
        for least, most in ((0.1, 0.2), (1, 1), (0.3, 4000), (5, 95)):
            axis = log_axis(least, most, tick_ms)
            self.assertTrue(axis.least <= least * 1.0001 and axis.most >= most * 0.9999, (least, most, axis))
            self.assertTrue(1 <= len(axis.ticks) <= 9, axis)
        for begin, end in ((-2.0, 1.0), (0.0, 0.3), (0.0, 60.0), (0.0, 86_400.0)):
            self.assertLessEqual(len(time_axis(begin, end).ticks), 8)


class MomentsTest(unittest.TestCase):
    def test_the_last_second_is_drawn_to_its_end_though_its_last_answer_comes_before(self) -> None:
        timeline = [{"at_s": second, "width_s": 1} for second in range(5)]
        result = {"timeline": timeline, "config": {"warmup_s": 0}, "duration_s": 5.0, "ended_s": 4.67}
        self.assertEqual([(begin, end) for begin, end, _ in _moments(result)], [(s, s + 1) for s in range(5)])


class Tags(HTMLParser):
    """Whether what is opened is closed, in order."""

    VOID = ("meta", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []

    @classmethod
    def faults(cls, text: str) -> list[str]:
        tags = cls()
        tags.feed(text)
        tags.close()
        return tags.wrong + tags.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, Optional[str]]]) -> None:
        if any(name.startswith("on") for name, _ in attrs):
            self.wrong.append(f"{tag} {attrs}")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, Optional[str]]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"/{tag}")


class TableTest(unittest.TestCase):
    def test_the_row_of_an_engine_has_its_figures_each_in_its_column(self) -> None:
        row = {"name": "a\x1b", "ok": 1200, "errors": 3, "refused": 4, "output_tokens": 50, "tpot": None}
        row.update(latency={"p50_ms": 1.0, "p90_ms": 2.0, "p99_ms": 3.0}, ttft={"p50_ms": 0.5, "p99_ms": 9.0})
        shown = ("a\ufffd", "1 200", "3", "4", "1.00 ms", "3.00 ms", "500 µs", "–", "50")
        self.assertEqual(label_row(row), shown)

    def test_it_names_what_was_measured(self) -> None:
        text = table(result("--rate", "100", "--warmup", "1s", "--fail-if", "p99>4ms", "--fail-if", "errors>50%"))
        for part in (
            "open loop, constant arrivals",
            "response time",
            "service time",
            "time to first token",
            "429 broken",
            "500 broken",
            "FAILED  p99>4ms  (5.00 ms)",
            "passed  errors>50%  (5 %)",
            "e0",
            "e1",
        ):
            self.assertIn(part, text)
        self.assertTrue(all(len(one) < 130 for one in text.splitlines()))

    def test_progress_tells_what_is_known_now(self) -> None:
        measures = measured()
        self.assertIn("warm-up, 2 s left", line(measures, -2 * NS, 10.0, None))
        told = line(measures, 2 * NS, 10.0, 500)
        for part in ("2 s of 10 s, 200 of 500", "10 errors, 10 refused", "in flight", "p50"):
            self.assertIn(part, told)


if __name__ == "__main__":
    unittest.main()
