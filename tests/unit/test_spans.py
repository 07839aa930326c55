"""Spans and metrics as they are made, without a socket: times, names, what is too long, what JSON has no word for."""

from __future__ import annotations

import json
import math
import threading
import unittest
from typing import Any, Optional
from unittest import mock

from gateway import posting, waiting
from gateway.posting import Answer, Poster
from gateway.telemetry.events import MARKS, AttemptRecord, Mark, RequestEvent, Trace
from gateway.telemetry.registry import Registry
from gateway.traces import delivery, encoding, exporter, figures, spans
from gateway.traces.spans import EngineAt, is_failure, spans_of
from gateway.upstream.call import Call

TRACE = Trace("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "", True)
UNIX_S = 1_767_225_600.0


def event(**changes: Any) -> RequestEvent:
    """A request that came at 1000 s of the monotonic clock, and took two seconds."""
    fields: dict[str, Any] = {
        "finished_unix_s": UNIX_S + 2.0,
        "request_id": "r-1",
        "method": "POST",
        "path": "/v1/chat/completions",
        "status": 200,
        "error": None,
        "latency_s": 2.0,
        "accepted_s": 1000.0,
        "trace": TRACE,
    }
    return RequestEvent(**{**fields, **changes})


def made(one: RequestEvent, at: Optional[EngineAt] = None) -> list[dict[str, Any]]:
    """Its spans, as a collector reads the JSON."""
    assert one.trace is not None
    return [json.loads(span) for span in spans_of(one, one.trace, lambda model, engine: at)]


def seconds(span: dict[str, Any]) -> tuple[float, float]:
    """Begin and end, in seconds since the request came."""
    began, ended = (int(span[key]) for key in ("startTimeUnixNano", "endTimeUnixNano"))
    return round((began - UNIX_S * 1e9) / 1e9, 3), round((ended - UNIX_S * 1e9) / 1e9, 3)


def told(span: dict[str, Any]) -> dict[str, Any]:
    """Its attributes."""
    return {pair["key"]: next(iter(pair["value"].values())) for pair in span.get("attributes", ())}


class Times(unittest.TestCase):
    def test_monotonic_times_become_unix_times(self) -> None:
        record = AttemptRecord("m", "e", "ok", 1.25, 1000.5, 0.25, None, "00f067aa0ba902b7")
        request, queue, attempt = made(event(attempt_records=(record,), marks=(Mark("queue", 1000.1, 0.4),)))
        self.assertEqual([seconds(span) for span in (request, queue, attempt)], [(0.0, 2.0), (0.1, 0.5), (0.5, 1.75)])
        self.assertEqual((attempt["spanId"], attempt["parentSpanId"]), ("00f067aa0ba902b7", TRACE.span_id))
        (first,) = attempt["events"]
        self.assertEqual((first["name"], int(first["timeUnixNano"])), ("first_event", int((UNIX_S + 0.75) * 1e9)))

    def test_no_part_is_told_as_longer_than_the_whole(self) -> None:
        late = AttemptRecord("m", "e", "cancelled", 9.0, 1001.0)
        early = Mark("batch", 990.0, 0.5)
        _, batch, attempt = made(event(attempt_records=(late,), marks=(early,)))
        self.assertEqual((seconds(batch), seconds(attempt)), ((0.0, 0.0), (1.0, 2.0)))

    def test_a_try_within_a_look_into_the_cache_is_below_it_and_one_beside_it_is_not(self) -> None:
        within = AttemptRecord("e", "x", "ok", 0.5, 1000.2)
        after = AttemptRecord("m", "y", "ok", 0.5, 1001.0)
        astride = AttemptRecord("m", "y", "ok", 0.5, 1000.9)
        _, cache, *attempts = made(
            event(attempt_records=(within, after, astride), marks=(Mark("cache", 1000.1, 0.85),))
        )
        parents = [span["parentSpanId"] for span in attempts]
        self.assertEqual(parents, [cache["spanId"], TRACE.span_id, TRACE.span_id])
        self.assertEqual(len({span["spanId"] for span in attempts}), 3, "who was told of none has one all the same")


class Names(unittest.TestCase):
    def test_an_engine_is_named_as_the_conventions_have_it(self) -> None:
        record = AttemptRecord("m", "e", "error", 0.5, 1000.5, None, 503, "00f067aa0ba902b7")
        (_, attempt) = made(event(attempt_records=(record,)), EngineAt("api.example", 443, "azure"))
        self.assertEqual(attempt["name"], "chat m")
        attributes = told(attempt)
        self.assertEqual(attributes["gen_ai.provider.name"], "azure.ai.openai")
        self.assertEqual((attributes["server.address"], attributes["server.port"]), ("api.example", "443"))
        self.assertEqual((attributes["error.type"], attributes["http.response.status_code"]), ("error", "503"))
        self.assertEqual(attempt["status"], {"code": 2, "message": "error"})

    def test_of_one_that_is_gone_and_of_echo_no_address_is_told(self) -> None:
        record = AttemptRecord("m", "e", "ok", 0.5, 1000.5)
        for at in (None, EngineAt("", 0, "gateway")):
            self.assertNotIn("server.address", told(made(event(attempt_records=(record,)), at)[1]))

    def test_every_mark_has_its_name_and_links(self) -> None:
        links = (("1" * 32, "2" * 16), ("3" * 32, "4" * 16))
        for name in MARKS:
            span = made(event(marks=(Mark(name, 1000.5, 0.5, {"requests": 3, "leads": True}, links),)))[1]
            self.assertEqual((span["name"], span["kind"]), (name, 1))
            self.assertEqual(told(span), {f"gateway.{name}.requests": "3", f"gateway.{name}.leads": True})
            self.assertEqual([(link["traceId"], link["spanId"]) for link in span["links"]], list(links))

    def test_further_keys_of_the_line_are_attributes_if_they_are_short(self) -> None:
        extra = {"cost_usd": 0.5, "part_of": "r-0", "verification": {"result": "majority", "runs": [["a", "ok", 1]]}}
        attributes = told(made(event(extra=extra))[0])
        self.assertEqual((attributes["gateway.cost_usd"], attributes["gateway.verification.result"]), (0.5, "majority"))
        self.assertFalse([key for key in attributes if "runs" in key])

    def test_only_a_caller_s_span_is_elsewhere(self) -> None:
        called = TRACE._replace(parent_id="1" * 16, sampled=False)
        for trace, extra, flags in (
            (TRACE, None, 0x103),
            (called, None, 0x302),
            (called._replace(random=False), None, 0x300),
            (called, {"part_of": "r-0"}, 0x102),
        ):
            self.assertEqual(made(event(trace=trace, extra=extra))[0]["flags"], flags)

    def test_what_is_a_failure(self) -> None:
        for status, error, failed in (
            (200, None, False),
            (200, "backend_error", True),
            (400, "invalid_body", False),
            (429, "rate_limit_exceeded", False),
            (499, "client_closed_request", False),
            (500, "internal_error", True),
            (502, "backend_error", True),
            (504, "gateway_timeout", True),
        ):
            one = event(status=status, error=error)
            self.assertEqual(is_failure(one), failed, one)
            self.assertEqual("status" in made(one)[0], failed)


class Values(unittest.TestCase):
    def test_values_as_the_protocol_has_them(self) -> None:
        for value, expected in (
            (True, {"boolValue": True}),
            (7, {"intValue": "7"}),
            (-(1 << 63), {"intValue": str(-(1 << 63))}),
            (1 << 63, {"stringValue": str(1 << 63)}),
            (0.5, {"doubleValue": 0.5}),
            (math.inf, {"doubleValue": "Infinity"}),
            (-math.inf, {"doubleValue": "-Infinity"}),
            (math.nan, {"doubleValue": "NaN"}),
            (["a", 1], {"arrayValue": {"values": [{"stringValue": "a"}, {"intValue": "1"}]}}),
            ("ü\ud800", {"stringValue": "ü?"}),
        ):
            self.assertEqual(encoding.value_of(value), expected)
            (text,) = encoding.attribute_texts({"k": value})
            self.assertEqual(json.loads(text), {"key": "k", "value": expected})
        self.assertEqual(encoding.attributes_of({"a": None, "b": ""}), [{"key": "b", "value": {"stringValue": ""}}])

    def test_a_long_text_is_cut(self) -> None:
        attributes = told(made(event(model="x" * 100_000, error="unknown"))[0])
        self.assertEqual(len(attributes["gen_ai.request.model"]), encoding.TEXT_CHARS + 1)


class Content(unittest.TestCase):
    def content(self, request: Any, answer: Any = None) -> dict[str, Any]:
        texts = {"request_body": request, "answer_body": answer}
        bodies = {
            key: one if isinstance(one, str) else json.dumps(one) for key, one in texts.items() if one is not None
        }
        attributes = told(made(event(extra=bodies))[0])
        return {key: attributes[key] for key in attributes if "messages" in key or "body" in key}

    def test_messages_are_told_as_the_conventions_have_them(self) -> None:
        image = {"type": "image_url", "image_url": {"url": "data:"}}
        messages = [
            {"role": "system", "content": "be good"},
            {"role": "user", "content": [{"type": "text", "text": "what is it?"}, image]},
            {"role": "assistant", "content": None},
        ]
        choice = {"message": {"role": "assistant", "content": "a cat"}, "finish_reason": "stop"}
        content = self.content({"messages": messages}, {"choices": [choice]})
        self.assertEqual(
            json.loads(content["gen_ai.input.messages"]),
            [
                {"role": "system", "parts": [{"type": "text", "content": "be good"}]},
                {"role": "user", "parts": [{"type": "text", "content": "what is it?"}, image]},
                {"role": "assistant", "parts": []},
            ],
        )
        self.assertEqual(sorted(content), ["gen_ai.input.messages", "gen_ai.output.messages"], "and nothing twice")
        said = {"role": "assistant", "parts": [{"type": "text", "content": "a cat"}], "finish_reason": "stop"}
        self.assertEqual(json.loads(content["gen_ai.output.messages"]), [said])

    def test_prompts_and_inputs_are_a_user_s(self) -> None:
        for request in ({"prompt": "hi"}, {"input": "hi"}):
            asked = json.loads(self.content(request)["gen_ai.input.messages"])
            self.assertEqual(asked, [{"role": "user", "parts": [{"type": "text", "content": "hi"}]}])

    def test_what_cannot_be_read_is_told_as_it_is(self) -> None:
        for body in ('{"messages": [{"ro', "[]", '{"messages": [7]}', "{}", "[" * 100_000, '{"messages": {"role": 1}}'):
            content = self.content(body)
            self.assertEqual(list(content), ["gateway.request_body"])
            self.assertEqual(content["gateway.request_body"][:100], body[:100])
            self.assertLessEqual(len(content["gateway.request_body"]), spans.CONTENT_CHARS + 1)


class Parts(unittest.TestCase):
    """Calls that are made for another one."""

    def test_what_a_part_has_waited_for_is_told_with_the_whole(self) -> None:
        whole, part = (Call("/chat/completions", {"messages": []}) for _ in range(2))
        whole.trace = TRACE
        whole.marks, part.marks = (Mark("pause", 1.0, 1.0),), (Mark("place", 2.0, 1.0),)
        part.be_part_of(whole)
        self.assertIs(part.trace, TRACE)
        whole.tell_of(part)
        self.assertEqual([mark.name for mark in whole.marks], ["pause", "place"])

    def test_one_wait_in_several_parts_is_one_mark(self) -> None:
        call = Call("/chat/completions", {"messages": []})
        for now_s, name, began_s in (
            (2.0, "place", 1.0),
            (3.0, "place", 2.001),
            (4.0, "pause", 3.0),
            (9.0, "place", 8.0),
        ):
            waiting._note(call, name, began_s, now_s)
        told = [(mark.name, mark.began_s, round(mark.duration_s, 3)) for mark in call.marks]
        self.assertEqual(told, [("place", 1.0, 2.0), ("pause", 3.0, 1.0), ("place", 8.0, 1.0)])


class Queue(unittest.TestCase):
    """What waits, mostly without the thread that sends it."""

    def setUp(self) -> None:
        registry = Registry()
        self.dropped = registry.counter("dropped_total", "").labels()
        self.taken = registry.counter("taken_total", "").labels()
        collector = Poster("http://127.0.0.1:1", "/v1/traces", {}, packs=True)
        self.exporter = exporter.SpanExporter(collector, {}, lambda *named: None, self.taken, self.dropped, print)

    def test_the_end_wakes_the_thread_which_sends_what_waits(self) -> None:
        self.exporter.observe([event()])
        with mock.patch.object(exporter, "INTERVAL_S", 3600.0), mock.patch.object(Poster, "post") as post:
            post.return_value = Answer(200, None, b"")
            self.exporter.start()
            self.exporter.close(5.0)
        self.assertEqual((post.call_count, self.taken.value, self.dropped.value), (1, 1, 0))
        self.assertFalse(self.exporter._thread.is_alive())

    def take(self, whole: bool) -> int:
        return len(self.exporter._take(whole))

    def test_whole_batches_leave_at_once_and_the_rest_waits(self) -> None:
        record = AttemptRecord("m", "e", "ok", 0.5, 1000.5)
        self.exporter.observe([event(attempt_records=(record,))] * 255)
        self.assertFalse(self.exporter._wake.is_set())
        self.assertEqual(self.take(whole=True), 0)
        self.exporter.observe([event(attempt_records=(record,))] * 45)
        self.assertTrue(self.exporter._wake.is_set())
        self.assertEqual([self.take(whole=True), self.take(whole=True), self.take(whole=False)], [256, 0, 44])
        self.exporter._wake.clear()
        self.exporter.observe([event()])
        self.assertFalse(self.exporter._wake.is_set())

    def test_large_ones_leave_in_smaller_batches(self) -> None:
        self.exporter.observe([event(extra={"request_body": "x" * 60_000})] * 20)
        self.assertTrue(self.exporter._wake.is_set())
        self.assertLess(self.take(whole=True), 12)

    def test_only_what_is_traced_waits(self) -> None:
        unsampled = TRACE._replace(sampled=False)
        self.exporter.observe([event(trace=None, status=500, error="internal_error"), event(trace=unsampled)])
        self.exporter.observe([event(trace=unsampled, status=400, error="invalid_body")])
        self.assertEqual(self.take(whole=False), 0)
        self.exporter.observe([event(trace=unsampled, status=500, error="internal_error"), event()])
        self.assertEqual(self.take(whole=False), 2)

    def test_what_takes_no_end_is_dropped_with_all_its_spans(self) -> None:
        record = AttemptRecord("m", "e", "ok", 0.5, 1000.5)
        self.exporter.observe([event(attempt_records=(record,) * 2)] * 10_000)
        waiting = self.exporter._queue_bytes
        self.assertLessEqual(waiting, exporter.QUEUE_MAX_BYTES)
        self.assertEqual(self.dropped.value, 3 * (10_000 - len(self.exporter._queue)))
        self.assertGreater(self.dropped.value, 0)


class Sizes(unittest.TestCase):
    def test_what_is_reckoned_for_a_request_grows_with_what_it_holds(self) -> None:
        least = exporter._size_of(event())
        record = AttemptRecord("m", "e", "ok", 0.5, 1000.5)
        self.assertEqual(exporter._size_of(event(attempt_records=(record,) * 3)), least + 3 * exporter.PART_BYTES)
        self.assertGreaterEqual(exporter._size_of(event(extra={"request_body": "ü" * 1000})), least + 4000)
        self.assertEqual(spans.span_count(event(attempt_records=(record,) * 3)), 4)


class Deliveries(unittest.TestCase):
    """How often a body is sent, and what is waited for in between."""

    def sent(self, *answers: Answer, stopping: bool = False) -> tuple[Optional[dict[str, Any]], list[float]]:
        """What became of a body that is answered so, and the pauses."""
        given = iter(answers)
        pauses: list[float] = []
        collector = Poster("http://127.0.0.1:1", "/v1/traces", {}, packs=True)

        class Stopping(threading.Event):
            def wait(self, timeout: Optional[float] = None) -> bool:
                pauses.append(timeout or 0.0)
                return stopping

        sending = delivery.Delivery(collector, "spans", lambda *line, **fields: None, Stopping())
        with mock.patch.object(collector, "post", lambda body, timeout_s: next(given)):
            said = sending.send(b"{}")
        self.assertIsNone(next(given, None), "all were asked for")
        return said, pauses

    def test_pauses_double_with_some_chance_and_there_are_four(self) -> None:
        said, pauses = self.sent(*[Answer(503, None, b"")] * 5)
        self.assertIsNone(said)
        self.assertEqual(len(pauses), 4)
        for pause_s, usual_s in zip(pauses, (1.0, 2.0, 4.0, 8.0)):
            self.assertTrue(0.8 * usual_s <= pause_s <= 1.2 * usual_s)

    def test_retry_after_says_how_long_up_to_a_bound(self) -> None:
        asked = [Answer(429, seconds, b"") for seconds in (0.0, 90.0, 1e9)]
        said, pauses = self.sent(*asked, Answer(200, None, b'{"a": 1}'))
        self.assertEqual((said, pauses), ({"a": 1}, [0.0, 90.0, 300.0]))

    def test_what_cannot_be_made_is_told_of_once_and_the_next_is_sent(self) -> None:
        lines: list[dict[str, Any]] = []
        collector = Poster("http://127.0.0.1:1", "/v1/traces", {}, packs=True)
        sending = delivery.Delivery(collector, "spans", lambda *_, **fields: lines.append(fields), threading.Event())
        with mock.patch.object(collector, "post", lambda body, timeout_s: Answer(200, None, body)):
            unmade = mock.Mock(side_effect=LookupError("gone"))
            self.assertEqual([sending.export(unmade, "rejectedSpans") for _ in range(2)], [None, None])
            self.assertEqual(lines, [{"message": "spans cannot be sent: LookupError: gone"}])
            said = b'{"partialSuccess": {"rejectedSpans": 3}}'
            self.assertEqual([sending.export(lambda body=body: body, "rejectedSpans") for body in (said, b"")], [3, 0])

    def test_at_the_end_nothing_is_tried_again(self) -> None:
        said, pauses = self.sent(Answer(503, None, b""), stopping=True)
        self.assertEqual((said, len(pauses)), (None, 1))


class Answers(unittest.TestCase):
    def test_what_retry_after_means(self) -> None:
        self.assertEqual(posting._seconds("120"), 120.0)
        self.assertEqual(posting._seconds("Fri, 31 Dec 1999 23:59:59 GMT"), 0.0)
        self.assertGreater(posting._seconds("Fri, 31 Dec 2999 23:59:59 GMT") or 0.0, 1e9)
        for nothing in (None, "", "soon", "-1", "9" * 20, "1e9"):
            self.assertIsNone(posting._seconds(nothing), nothing)

    def test_how_many_were_rejected(self) -> None:
        for partial, expected in (
            ({"rejectedSpans": "3", "errorMessage": "old"}, (3, "old")),
            ({"rejectedSpans": 3}, (3, "")),
            ({"errorMessage": "a warning"}, (0, "a warning")),
            ({"rejectedSpans": "-1"}, (0, "")),
            ({"rejectedSpans": []}, (0, "")),
            ({"rejectedSpans": "9" * 30}, (0, "")),
            (None, (0, "")),
        ):
            self.assertEqual(delivery.rejected_in({"partialSuccess": partial}, "rejectedSpans"), expected)


class Metrics(unittest.TestCase):
    def test_counts_and_distributions_are_cumulative_since_the_start(self) -> None:
        registry = Registry()
        registry.counter("a_total", "counts", ("model", "why")).labels("m", "").inc(3)
        histogram = registry.histogram("b_seconds", "spreads", buckets=(1, 2)).labels()
        for value in (0.5, 1.5, 9.0):
            histogram.observe(value)
        registry.callback("c_bytes", "gauge", "is", (), lambda: [((), math.nan)], "sum")
        registry.counter("never_total", "has no series", ("model",))
        counter, spread, gauge = json.loads(json.dumps(figures.metrics_of(registry.collect(), 1.0, 2.0)))
        times = {"startTimeUnixNano": "1000000000", "timeUnixNano": "2000000000"}
        model = [{"key": "model", "value": {"stringValue": "m"}}]
        self.assertEqual(
            counter["sum"],
            {
                "dataPoints": [{"attributes": model, **times, "asDouble": 3.0}],
                "aggregationTemporality": 2,
                "isMonotonic": True,
            },
        )
        (point,) = spread["histogram"]["dataPoints"]
        self.assertEqual(
            (point["count"], point["bucketCounts"], point["explicitBounds"]), ("3", ["1", "1", "1"], [1, 2])
        )
        self.assertEqual((point["sum"], spread["unit"], spread["histogram"]["aggregationTemporality"]), (11.0, "s", 2))
        self.assertEqual((gauge["gauge"]["dataPoints"][0]["asDouble"], gauge["unit"]), ("NaN", "By"))


if __name__ == "__main__":
    unittest.main()
