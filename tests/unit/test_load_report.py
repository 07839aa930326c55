"""The mixed load finds answers that are wrong, and its figures are those of Locust's files.

Locust is no part of the tests: with a stand-in for it, `locustfile.py` loads, of which only what is pure is tried.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import types
import unittest
from pathlib import Path
from typing import Any, Optional
from unittest import mock
from xml.etree import ElementTree

from gateway.mock import answers
from tests.bench import mixedreport
from tests.bench.mixedreport import Lines, Point

LOCUSTFILE = Path(mixedreport.__file__).with_name("locustfile.py")
SVG = "{http://www.w3.org/2000/svg}"
STATS = (
    "Type,Name,Request Count,Failure Count,Median Response Time,Average Response Time,Min Response Time,"
    "Max Response Time,Average Content Size,Requests/s,Failures/s,50%,66%,75%,80%,90%,95%,98%,99%,99.9%,99.99%,100%\n"
    "POST,inference,3,0,300,310.5,290.0,390.5,900,0.15,0.0,300,300,300,390,390,390,390,390,390,390,390\n"
    "POST,chat,1200,2,24,25.1,21.0,80.25,400,60.04,0.1,24,26,27,28,31,35,41,50,80,80,80\n"
    "TTFT,stream: first token,400,0,33,34.0,21.0,57.5,0,20.0,0.0,33,35,36,37,40,44,50,55,57,57,57\n"
    "POST,stream,400,0,180,182.0,150.0,213.0,2000,20.0,0.0,180,180,190,190,190,200,200,210,210,210,210\n"
    ",Aggregated,2003,2,40,60,21,390.5,800,100.19,0.1,40,50,60,70,180,190,200,210,390,390,390\n"
)
HISTORY_HEAD = (
    "Timestamp,User Count,Type,Name,Requests/s,Failures/s,50%,66%,75%,80%,90%,95%,98%,99%,99.9%,99.99%,100%,"
    "Total Request Count,Total Failure Count,Total Median Response Time,Total Average Response Time,"
    "Total Min Response Time,Total Max Response Time,Total Average Content Size\n"
)


def history(*rows: tuple[int, int, str, str, str, str, int]) -> str:
    """A history of rows: time, users, type, name, p50, p95, requests so far."""
    lines = []
    for time_s, users, kind, name, p50, p95, total in rows:
        lines.append(f"{time_s},{users},{kind},{name},0,0,{p50},0,0,0,0,{p95},0,0,0,0,0,{total},0,0,0,0,0,0\n")
    return HISTORY_HEAD + "".join(lines)


class TableTest(unittest.TestCase):
    rows = mixedreport.rows_of(STATS)

    def test_rows_come_in_the_order_of_the_document_and_without_locusts_sum(self) -> None:
        self.assertEqual([row.name for row in self.rows], ["chat", "stream: first token", "stream", "inference"])

    def test_figures_are_those_of_the_file(self) -> None:
        lines = mixedreport.table(self.rows).splitlines()
        self.assertEqual(lines[2], "| chat | 1 200 | 2 | 60.0 | 24 | 35 | 50 | 80 |")

    def test_first_tokens_are_no_requests_of_the_sum(self) -> None:
        lines = mixedreport.table(self.rows).splitlines()
        self.assertEqual(lines[3], "| stream: first token |  |  |  | 33 | 44 | 55 | 58 |")
        self.assertEqual(lines[-1], "| all | 1 603 | 2 | 80.2 |  |  |  |  |")

    def test_a_failed_request_fails_the_run(self) -> None:
        self.assertEqual(mixedreport.fault_of(self.rows, ("chat",)), "failed: 2 of 1200 chat")
        good = [row for row in self.rows if not row.failures]
        self.assertIsNone(mixedreport.fault_of(good, ("stream", "inference")))

    def test_a_kind_of_request_that_was_never_made_fails_the_run(self) -> None:
        good = [row for row in self.rows if not row.failures]
        self.assertEqual(mixedreport.fault_of(good, ("stream", "query")), "never made: query")
        none = [row._replace(requests=0) for row in good]
        self.assertEqual(mixedreport.fault_of(none, ("stream",)), "never made: stream")
        self.assertEqual(mixedreport.fault_of([], ("stream",)), "never made: stream")

    def test_another_file_is_refused(self) -> None:
        with self.assertRaises(KeyError):
            mixedreport.rows_of("a,b\n1,2\n")


class CourseTest(unittest.TestCase):
    def test_the_rate_is_what_came_since_the_row_before(self) -> None:
        rates, _ = mixedreport.course_of(
            history(
                (100, 1, "", "Aggregated", "N/A", "N/A", 0),
                (101, 2, "POST", "chat", "20", "30", 50),
                (101, 2, "TTFT", "stream: first token", "20", "30", 99),
                (101, 2, "", "Aggregated", "20", "30", 149),
                (103, 2, "POST", "chat", "20", "30", 150),
                (103, 2, "POST", "query", "20", "30", 20),
                (103, 2, "", "Aggregated", "20", "30", 170),
            )
        )
        self.assertEqual(rates, [Point(1, 50.0), Point(3, 60.0)])

    def test_seconds_without_a_figure_have_no_point(self) -> None:
        _, lines = mixedreport.course_of(
            history(
                (100, 1, "POST", "chat", "N/A", "N/A", 0),
                (101, 1, "POST", "chat", "20", "30", 5),
                (102, 1, "POST", "chat", "0", "0", 5),
            )
        )
        self.assertEqual(lines, {"chat": Lines([Point(1, 20.0)], [Point(1, 30.0)])})

    def test_what_comes_when_users_leave_is_left_out(self) -> None:
        rates, lines = mixedreport.course_of(
            history(
                (100, 4, "POST", "chat", "20", "30", 0),
                (101, 4, "POST", "chat", "20", "30", 40),
                (102, 1, "POST", "chat", "90", "95", 41),
            )
        )
        self.assertEqual((rates, len(lines["chat"].p50)), ([Point(1, 40.0)], 2))


class ChartTest(unittest.TestCase):
    def drawn(self, rates: list[Point], lines: dict[str, Lines]) -> ElementTree.Element:
        return ElementTree.fromstring(mixedreport.chart(rates, lines, "Load <&>", "of “users”"))

    def test_it_is_a_drawing_with_a_panel_for_each_name(self) -> None:
        lines = {name: Lines([Point(1, 20.0), Point(2, 25.0)], [Point(1, 40.0), Point(2, 41.0)]) for name in "abcd"}
        root = self.drawn([Point(1, 50.0), Point(2, 60.0)], lines)
        self.assertEqual(root.tag, f"{SVG}svg")
        self.assertEqual(len(root.findall(f"{SVG}g")), 5)
        self.assertEqual(len(root.findall(f".//{SVG}polyline")), 9)
        self.assertEqual(root.findtext(f"{SVG}title"), "Load <&>")

    def test_lines_stay_within_their_panel(self) -> None:
        root = self.drawn([Point(0, 0.0), Point(7, 149.0), Point(20, 12.0)], {"a": Lines([Point(20, 1e6)], [])})
        for line in root.iter(f"{SVG}polyline"):
            for x, y in (pair.split(",") for pair in line.attrib["points"].split()):
                self.assertTrue(46 <= float(x) <= 268 and 30 <= float(y) <= 152, (x, y))
        (first, *_) = root.iter(f"{SVG}polyline")
        self.assertEqual(first.attrib["points"].split()[0], "46.0,152.0")

    def test_it_has_colours_for_dark_and_light_and_fetches_nothing(self) -> None:
        text = mixedreport.chart([Point(1, 5.0)], {}, "a", "b")
        self.assertIn("prefers-color-scheme: dark", text)
        self.assertEqual(text.count("http"), 1)  # the name of SVG itself

    def test_a_run_without_figures_is_drawn_empty(self) -> None:
        self.assertEqual(list(self.drawn([], {"a": Lines([], [])}).iter(f"{SVG}polyline")), [])

    def test_steps_are_round_and_few(self) -> None:
        for highest, step in ((0, 1), (1, 0.2), (20, 5), (41, 10), (149, 50), (1664, 500), (5000, 1000)):
            self.assertAlmostEqual(mixedreport.scale_step(highest), step)


def load_locustfile(**environment: str) -> Any:
    """`locustfile.py` as it is with these variables, with a stand-in for Locust."""
    locust: Any = types.ModuleType("locust")
    locust.stats = types.ModuleType("locust.stats")
    locust.HttpUser, locust.between, locust.task = object, lambda low, high: (low, high), lambda method: method
    stand_ins = {"locust": locust, "locust.stats": locust.stats, "requests": types.ModuleType("requests")}
    spec = importlib.util.spec_from_file_location("locustfile_on_trial", LOCUSTFILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LOAD_")}
    with mock.patch.dict(sys.modules, {**stand_ins, spec.name: module}):
        with mock.patch.dict(os.environ, {**kept, **environment}, clear=True):
            spec.loader.exec_module(module)
    return module


def body(value: object) -> bytes:
    return json.dumps(value).encode()


class ChecksTest(unittest.TestCase):
    locustfile = load_locustfile()

    def chat(self, text: Optional[str], finish: Optional[str] = "stop") -> bytes:
        return body({"choices": [{"message": {"content": text}, "finish_reason": finish}]})

    def inference(self, text: str, verified: bool = False, error: Optional[str] = None, chosen: str = "") -> bytes:
        responses = [{"text": text, "error": error}]
        verdict = {"verified": verified}
        return body({"model_responses": responses, "verification": verdict, "selected_response": chosen or text})

    def test_requests_are_never_the_same(self) -> None:
        self.assertEqual(len({self.locustfile.repeating() for _ in range(50)}), 50)
        self.assertGreater(len({self.locustfile.programming() for _ in range(50)}), 25)

    def test_prompts_hold_what_the_answer_has_to_hold(self) -> None:
        for prompt, expected in (self.locustfile.repeating(), self.locustfile.programming()):
            self.assertIn(expected, prompt)

    def test_the_answer_of_another_is_found(self) -> None:
        fault = self.locustfile.chat_fault
        self.assertIsNone(fault(self.chat("it is word1"), "word1"))
        self.assertIsNotNone(fault(self.chat("it is word2"), "word1"))
        self.assertIsNone(self.locustfile.query_fault(body({"result": "word1"}), "word1"))
        self.assertIsNotNone(self.locustfile.query_fault(body({"result": "word2"}), "word1"))

    def test_answers_without_text_or_end_or_shape_are_found(self) -> None:
        for wrong in (self.chat(""), self.chat(None), self.chat("word1", None), b"", b"[]", b'{"choices":[]}'):
            self.assertIsNotNone(self.locustfile.chat_fault(wrong, "word1"), wrong)
        for wrong in (b"null", b"{}", body({"result": None})):
            self.assertIsNotNone(self.locustfile.query_fault(wrong, "word1"), wrong)
        for wrong in (b"null", b"{}", body({"model_responses": [], "verification": {"verified": True}})):
            self.assertIsNotNone(self.locustfile.inference_fault(wrong, "word1"), wrong)

    def test_an_inference_is_checked_in_each_model_and_in_what_was_chosen(self) -> None:
        fault = self.locustfile.inference_fault
        self.assertIsNone(fault(self.inference("return 7 * number"), "7 * number"))
        self.assertIsNotNone(fault(self.inference("return 8 * number"), "7 * number"))
        self.assertIsNotNone(fault(self.inference("return 7 * number", chosen="nothing"), "7 * number"))
        self.assertIsNotNone(fault(self.inference("return 7 * number", error="timeout"), "7 * number"))

    def test_what_is_not_verified_fails_only_where_that_is_wanted(self) -> None:
        for wanted, verified, fails in (("0", False, False), ("1", False, True), ("1", True, False)):
            fault = load_locustfile(LOAD_VERIFIED=wanted).inference_fault(self.inference("word1", verified), "word1")
            self.assertEqual(fault is not None, fails, (wanted, verified))

    def test_models_that_do_not_repeat_may_be_loaded_as_well(self) -> None:
        fault = load_locustfile(LOAD_REPEATS="0").chat_fault
        self.assertIsNone(fault(self.chat("word2"), "word1"))
        self.assertIsNotNone(fault(self.chat(" "), "word1"))

    def test_the_model_is_named_only_where_one_is_wanted(self) -> None:
        self.assertNotIn("model", self.locustfile.chat_request("hello"))
        module = load_locustfile(LOAD_MODEL="70b", LOAD_MODELS="70b, 7b,")
        self.assertEqual(module.chat_request("hello", stream=True)["model"], "70b")
        self.assertEqual(module.MODELS, ["70b", "7b"])

    def test_failures_of_one_kind_have_one_text(self) -> None:
        fault = self.locustfile.status_fault
        self.assertIsNone(fault(200, b"{}"))
        self.assertEqual(fault(429, body({"error": "rate_limited", "message": "1"})), "status 429: rate_limited")
        self.assertEqual(fault(401, body({"error": {"code": "unauthorized"}})), "status 401: unauthorized")
        self.assertEqual(fault(502, b"<html>"), "status 502: no error object")


class StreamTest(unittest.TestCase):
    locustfile = load_locustfile()

    def events(self, text: str) -> list[bytes]:
        """A stream as the mock engine sends it, with the usage, and without [DONE]."""
        request = {"messages": [{"role": "user", "content": text}], "stream_options": {"include_usage": True}}
        first, content, last = answers.stream(answers.Asked(answers.CHAT, request, "70b", 8000, 1, None, True))
        return [*first, *content, *last]

    def fault(self, events: list[bytes]) -> Any:
        return self.locustfile.read_stream(b"".join(events).splitlines(), "two three", 0.0).fault

    def test_a_whole_stream_is_read_to_its_end(self) -> None:
        events = [b": waiting\n\n", *self.events("one two three"), answers.DONE]
        read = self.locustfile.read_stream(b"".join(events).splitlines(), "two three", 0.0)
        self.assertIsNone(read.fault)
        self.assertGreater(read.first_token_s, 0.0)
        self.assertEqual(read.length_bytes, len(b"".join(events)))

    def test_streams_that_are_not_whole_are_found(self) -> None:
        good = self.events("one two three")
        self.assertIsNotNone(self.fault(good))
        self.assertIsNotNone(self.fault([*good, answers.DONE, good[1]]))
        self.assertIsNotNone(self.fault([*good[:-2], answers.DONE]))
        self.assertIsNotNone(self.fault([*good[:-3], *good[-2:], answers.DONE]))
        self.assertIsNotNone(self.fault([*good, b"data: [\n\n", answers.DONE]))
        self.assertIsNotNone(self.fault([*self.events("four"), answers.DONE]))

    def test_an_error_within_a_stream_is_told_as_one(self) -> None:
        events = [*self.events("one two three"), b'data: {"error":{"code":"timeout"}}\n\n', answers.DONE]
        self.assertEqual(self.fault(events), "an error within the stream")

    def test_the_first_token_is_the_first_text_and_not_the_role(self) -> None:
        read = self.locustfile.read_stream(self.events("one")[0].splitlines(), "one", 0.0)
        self.assertIsNone(read.first_token_s)


if __name__ == "__main__":
    unittest.main()
