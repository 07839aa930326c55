"""Answers are taken for what they are, however they are labelled: events and JSON, asked for or not."""

from __future__ import annotations

import contextlib
import json
import threading
import unittest
from collections.abc import Iterator
from typing import Any, Optional

from inference import InferenceFactory
from tests.onloop import OnLoopTest, completion
from tests.resilience import ask
from tests.scripted import DONE, EngineSide, ScriptedEngine, chunked, delta
from tests.support import COMPLETIONS, EMBEDDINGS, TIMEOUT_S, Response, RunningGateway, chunk_of, content_of, eventually

BOM = b"\xef\xbb\xbf"
DONE_EVENT = "data: [DONE]"
STREAM = ask(stream=True)
EVENTS = delta("a") + delta("b", "stop") + DONE
LABELS = ("application/json", "text/event-stream; charset=utf-8", "text/plain", "application/octet-stream", None)


def head(label: Optional[str], framing: str = "Transfer-Encoding: chunked\r\n", status: str = "200 OK") -> bytes:
    """The head of an answer with that Content-Type."""
    kind = f"Content-Type: {label}\r\n" if label else ""
    return f"HTTP/1.1 {status}\r\n{kind}{framing}\r\n".encode()


def whole(label: Optional[str], body: bytes) -> bytes:
    """An answer with its length."""
    return head(label, f"Content-Length: {len(body)}\r\n") + body


class KindsTest(OnLoopTest):
    def answered(self, running: RunningGateway, engine: ScriptedEngine, body: Any, *pieces: bytes) -> Response:
        """The client's answer, when the engine sends these pieces; its connection is closed afterwards."""
        client = self.begin(running, body)
        side = engine.take()
        for piece in pieces:
            side.send(piece)
            self.settle(running)
        side.close()
        return client.read_response()

    def assert_text(self, response: Response, text: str) -> None:
        """A good stream with that text."""
        self.assertEqual(response.status, 200, response.body)
        self.assertEqual((response.header("content-type") or "").partition(";")[0], "text/event-stream")
        *events, done, nothing = response.body.decode().split("\n\n")
        self.assertEqual((done, nothing), (DONE_EVENT, ""))
        self.assertEqual(content_of(events), text)

    def outcomes(self, running: RunningGateway) -> dict[str, float]:
        """Attempts by outcome; a request is reported just after its last byte."""
        eventually(lambda: running.app.pipeline.in_flight == 0)
        found: dict[str, float] = {}
        for sample, value in running.metrics().items():
            if sample.startswith("gateway_engine_requests_total"):
                kind = sample.partition('outcome="')[2].partition('"')[0]
                found[kind] = found.get(kind, 0) + value
        return found


class AskedTest(KindsTest):
    def test_events_are_a_stream_whatever_they_are_called(self) -> None:
        running, engine = self.one_engine()
        for label in LABELS:
            for begin in (b"", b"\n\r\n", b": ping\n\n"):
                with self.subTest(label, begin=begin):
                    data = begin + EVENTS
                    for pieces in (
                        [head(label) + chunked(data) + b"0\r\n\r\n"],
                        [head(label), chunked(data), b"0\r\n\r\n"],
                        [head(label), *(chunked(data[i : i + 1]) for i in range(12)), chunked(data[12:]), b"0\r\n\r\n"],
                        [head(label, ""), data],
                        [whole(label, data)],
                    ):
                        response = self.answered(running, engine, STREAM, *pieces)
                        self.assertEqual((response.status, response.body), (200, data))
        self.assertEqual(set(self.outcomes(running)), {"ok"})

    def test_events_pass_as_they_come_whatever_they_are_called(self) -> None:
        running, engine = self.one_engine()
        with self.no_thread(running):
            client = self.begin(running, STREAM)
            side = engine.take()
            side.send(head("application/json") + chunked(delta("a")))
            client.read_head()
            self.assertIn('"a"', client.read_event() or "")
            side.send(chunked(delta("b", "stop") + DONE) + b"0\r\n\r\n")
            self.assertEqual(client.read_events()[-1], DONE_EVENT)

    def test_json_is_one_chunk_whatever_it_is_called(self) -> None:
        running, engine = self.one_engine()
        for label in LABELS:
            for begin in (b"", BOM, b" \r\n", BOM + b"\n", b"\n" * 10_000):
                with self.subTest(label, begin=begin[:5]):
                    body = begin + completion("whole")
                    for pieces in (
                        [whole(label, body)],
                        [head(label), *(chunked(body[i : i + 1]) for i in range(5)), chunked(body[5:]), b"0\r\n\r\n"],
                        [head(label, ""), body],
                    ):
                        self.assert_text(self.answered(running, engine, STREAM, *pieces), "whole")
        self.assertEqual(set(self.outcomes(running)), {"ok"})

    def test_its_usage_is_seen_by_who_asked_for_it(self) -> None:
        running, engine = self.one_engine()
        for text in ("whole", "0123456789" * 150_000):
            for asked in (None, {"include_usage": False}, {"include_usage": True}):
                with self.subTest(size=len(text), asked=asked):
                    body = {**STREAM, "stream_options": asked}
                    response = self.answered(running, engine, body, whole("application/json", completion(text)))
                    chunk = chunk_of(response.body.decode().split("\n\n")[0])
                    self.assertEqual("usage" in chunk, asked == {"include_usage": True})
                    line = running.request_line(response.request_id)
                    self.assertEqual((line["completion_tokens"], line["usage_estimated"]), (1, False))

    def test_a_large_json_answer(self) -> None:
        running, engine = self.one_engine()
        text = "0123456789" * 150_000
        for label in ("text/event-stream", None):
            with self.subTest(label):
                self.assert_text(self.answered(running, engine, STREAM, whole(label, completion(text))), text)

    def test_what_is_no_answer_is_a_failed_try(self) -> None:
        html = b"<html><body>Please log in</body></html>\n"
        table: list[tuple[str, bytes, bool, str]] = [
            ("a page", whole("text/html", html), False, "text/html"),
            ("a page without an end", head("text/html; charset=x") + chunked(html), True, "text/html"),
            ("a text without an end", head("text/plain") + chunked(b"Internal Server Error\n"), True, "text/plain"),
            ("no JSON without an end", head("application/json") + chunked(b"<oops>"), True, "application/json"),
            ("an error in JSON", whole("text/event-stream", b'{"error": {"message": "no room"}}'), False, "no room"),
            ("a list", whole(None, b'[{"error": {"message": "no room"}}]'), False, ""),
            ("nothing", whole("text/event-stream", b""), False, "empty"),
            ("blanks", whole(None, b" \n"), False, "empty"),
            ("nothing in chunks", head("application/json") + b"0\r\n\r\n", False, "empty"),
            ("204", head(None, "", "204 No Content"), False, "empty"),
        ]
        for name, data, stays_open, text in table:
            with self.subTest(name):
                bad, good = self.scripted(), self.scripted()
                running = self.serve(
                    {"m": {"engines": [bad.url], "fallbacks": ["n"]}, "n": {"engines": [good.url]}}, RETRY_ATTEMPTS=1
                )
                client = self.begin(running, STREAM)
                side = bad.take()
                side.send(data)
                if not stays_open:
                    side.close()
                good.take().send(head("text/event-stream") + chunked(EVENTS) + b"0\r\n\r\n")
                self.assert_text(client.read_response(), "ab")
                self.assertIn(text, running.app.factory.engines()[0].last_error or "")

    def test_a_field_that_nobody_knows_may_come_first_where_it_is_called_a_stream(self) -> None:
        running, engine = self.one_engine()
        for label in ("text/event-stream", None):
            data = b"comment: hi\n\n" + EVENTS
            response = self.answered(running, engine, STREAM, head(label) + chunked(data) + b"0\r\n\r\n")
            self.assertEqual((response.status, response.body), (200, data))


class NotAskedTest(KindsTest):
    def message(self, response: Response) -> Any:
        self.assertEqual(response.status, 200, response.body)
        self.assertEqual(response.header("content-type"), "application/json")
        answer = response.json()
        self.assertEqual(answer["object"], "chat.completion")
        self.assertEqual(answer["id"], response.request_id)
        self.assertEqual(answer["model"], "m")
        self.assertEqual(answer["choices"][0]["finish_reason"], "stop")
        return answer["choices"][0]["message"]["content"]

    def test_events_are_put_together(self) -> None:
        running, engine = self.one_engine()
        for label in LABELS:
            for pieces in (
                [head(label) + chunked(EVENTS) + b"0\r\n\r\n"],
                [head(label), chunked(EVENTS), b"0\r\n\r\n"],
                [head(label), *(chunked(EVENTS[i : i + 1]) for i in range(12)), chunked(EVENTS[12:]), b"0\r\n\r\n"],
                [head(label, ""), BOM + EVENTS] if label is None else [head(label, ""), EVENTS],
                [head(label), chunked(b": wait\n\n"), chunked(EVENTS)],  # [DONE] is its end
                [head(label), chunked(delta("a")), chunked(delta("b", "stop")), b"zz\r\n"],
                [whole(label, EVENTS)],
            ):
                with self.subTest(label, pieces=pieces):
                    self.assertEqual(self.message(self.answered(running, engine, ask(), *pieces)), "ab")
        self.assertEqual(set(self.outcomes(running)), {"ok"})

    def test_the_engine_s_usage_counts(self) -> None:
        running, engine = self.one_engine()
        usage = {"prompt_tokens": 4, "completion_tokens": 6, "total_tokens": 10}
        data = delta("a", "stop") + b"data: %b\n\n" % json.dumps({"choices": [], "usage": usage}).encode() + DONE
        response = self.answered(running, engine, ask(), head("text/event-stream") + chunked(data) + b"0\r\n\r\n")
        self.assertEqual(response.json()["usage"], usage)
        line = running.request_line(response.request_id)
        self.assertEqual((line["stream"], line["completion_tokens"], line["usage_estimated"]), (False, 6, False))

    def test_without_it_tokens_are_estimated(self) -> None:
        running, engine = self.one_engine()
        data = delta("12345678", "stop") + DONE
        response = self.answered(running, engine, ask(), head("text/event-stream") + chunked(data) + b"0\r\n\r\n")
        self.assertEqual(response.json()["usage"]["completion_tokens"], 2)

    def test_completions(self) -> None:
        running, engine = self.one_engine()
        client = self.enter(running.connect())
        client.request("POST", COMPLETIONS, {"model": "m", "prompt": ["x", "y"]})
        events = [{"index": i, "text": text, "finish_reason": "stop"} for i, text in ((1, "b"), (0, "a"))]
        data = b"".join(b"data: %b\n\n" % json.dumps({"choices": [one]}).encode() for one in events)
        engine.take().send(head("text/event-stream") + chunked(data + DONE) + b"0\r\n\r\n")
        response = client.read_response()
        self.assertEqual([choice["text"] for choice in response.json()["choices"]], ["a", "b"])

    def test_an_engine_that_never_ends_is_left_after_the_grace(self) -> None:
        running, engine = self.one_engine(STREAM_END_GRACE=0.05)
        client = self.begin(running)
        side = engine.take()
        side.send(head("text/event-stream") + chunked(delta("a") + delta("b", "stop")))
        self.assertEqual(self.message(client.read_response()), "ab")
        self.assertTrue(side.wait_until_left())

    def test_its_connection_is_kept(self) -> None:
        running, engine = self.one_engine()
        client = self.begin(running)
        side = engine.take()
        for _ in range(2):
            side.send(head("text/event-stream") + chunked(EVENTS) + b"0\r\n\r\n")
            self.assertEqual(self.message(client.read_response()), "ab")
            client.request("POST", "/v1/chat/completions", ask())
            side.read_request()
        side.answer(completion("fine"))
        self.assert_says(client, "fine")

    def test_a_stream_that_breaks_is_a_failed_try(self) -> None:
        begun = head("text/event-stream") + chunked(delta("a"))
        table = {
            "an end": ("truncated", begun),
            "an end without a reason": ("truncated", begun + b"0\r\n\r\n"),
            "an error event": ("invalid", begun + chunked(b'data: {"error": "no room"}\n\n')),
            "a bad chunk": ("invalid", begun + b"zz\r\n"),
        }
        for name, (outcome, data) in table.items():
            with self.subTest(name):
                bad, good = self.scripted(), self.scripted()
                running = self.serve({"m": {"engines": [bad.url, good.url], "strategy": "round_robin"}})
                client = self.begin(running)
                side = bad.take()
                side.send(data)
                side.close()
                good.take().answer(completion("fine"))
                self.assert_says(client, "fine", attempts=2)
                self.assertEqual(self.outcomes(running), {outcome: 1, "ok": 1})

    def test_silence_before_the_reason_is_the_deadline_s(self) -> None:
        running, engine = self.one_engine(REQUEST_TIMEOUT=0.3, STREAM_END_GRACE=0.001)
        client = self.begin(running)
        side = engine.take()
        side.send(head("text/event-stream") + chunked(delta("a")))
        self.assert_error(client.read_response(), 504, "gateway_timeout")
        self.assertTrue(side.wait_until_left())

    def test_a_client_that_leaves_meanwhile(self) -> None:
        running, engine = self.one_engine()
        client = self.begin(running, headers=[("X-Request-ID", "left")])
        side = engine.take()
        side.send(head("text/event-stream") + chunked(delta("a")))
        client.close()
        self.assertTrue(side.wait_until_left())
        self.assertEqual(running.request_line("left")["status"], 499)
        self.assert_nothing_held(running)

    def embed(self, running: RunningGateway) -> Any:
        client = self.enter(running.connect())
        client.request("POST", EMBEDDINGS, {"model": "m", "input": "x"})
        return client

    def test_events_that_make_no_answer_are_named_and_held_against_nobody(self) -> None:
        running, engine = self.one_engine(BREAKER_MIN_REQUESTS=1)
        data = head("text/event-stream", "") + b'data: {"data": []}\n\n' + DONE
        for _ in range(3):
            client = self.embed(running)
            side = engine.take()
            side.send(data)
            answer = client.read_response()
            self.assert_error(answer, 502, "backend_error")
            self.assertIn("event stream though none was asked for", answer.json()["message"])
            self.assertTrue(side.wait_until_left())
        self.assertEqual(self.states(running), ["up"])
        self.assertEqual(self.outcomes(running), {"unasked_stream": 3})
        self.assert_nothing_held(running)

    def test_another_engine_may_do_better(self) -> None:
        first, second = self.scripted(), self.scripted()
        running = self.serve({"m": {"engines": [first.url, second.url], "strategy": "round_robin"}})
        client = self.embed(running)
        first.take().send(head("text/event-stream", "") + b'data: {"data": []}\n\n' + DONE)
        second.take().answer(b'{"object": "list", "data": []}')
        self.assertEqual(client.read_response().status, 200)
        self.assertEqual(self.outcomes(running), {"unasked_stream": 1, "ok": 1})

    def test_plain_text_is_no_answer(self) -> None:
        running, engine = self.one_engine()
        for data in (whole("text/plain", b"Internal Server Error"), whole("text/html", b"<html>"), whole(None, b"")):
            self.assert_error(self.answered(running, engine, ask(), data), 502, "backend_error")

    def test_json_with_a_byte_order_mark_or_blanks_before_it(self) -> None:
        running, engine = self.one_engine()
        for begin in (BOM, b" \n" * 1000, b" \n" * 40_000, BOM + b"\r\n"):
            for text in ("fine", "0123456789" * 150_000):
                with self.subTest(begin[:5], size=len(text)):
                    response = self.answered(
                        running, engine, ask(), whole("application/json", begin + completion(text))
                    )
                    self.assertEqual(response.json()["choices"][0]["message"]["content"], text)


class HedgedTest(KindsTest):
    def test_the_second_engine_s_events_may_win(self) -> None:
        first, second = self.scripted(), self.scripted()
        pool = {"engines": [first.url, second.url], "hedge_after_ms": 1, "hedge_ratio": 1.0}
        for body in (ask(), STREAM):
            with self.subTest(body):
                running = self.serve({"m": pool})
                client = self.begin(running, body)
                first.take()
                second.take().send(head("application/json") + chunked(EVENTS) + b"0\r\n\r\n")
                response = client.read_response()
                self.assertEqual(response.status, 200, response.body)
                self.assertIn(b"b", response.body)


class LibraryTest(KindsTest):
    @contextlib.contextmanager
    def answering(self, engine: ScriptedEngine, data: bytes) -> Iterator[None]:
        """The engine answers one request with this and closes."""

        def run() -> None:
            side: EngineSide = engine.take()
            side.send(data)
            side.close()

        thread = threading.Thread(target=run, name="engine")
        thread.start()
        yield
        thread.join(TIMEOUT_S)

    def test_the_same_for_who_uses_the_library(self) -> None:
        engine = self.scripted()
        factory = self.enter(InferenceFactory({"m": [engine.url]}, health_interval_s=0))
        messages = [{"role": "user", "content": "hi"}]
        for label in LABELS:
            with self.subTest(label):
                with self.answering(engine, head(label, "") + EVENTS):
                    chunks = list(factory.stream(messages))
                self.assertEqual("".join(c["choices"][0]["delta"]["content"] for c in chunks), "ab")
                with self.answering(engine, whole(label, BOM + completion("whole"))):
                    chunks = list(factory.stream(messages))
                self.assertEqual([c["choices"][0]["delta"]["content"] for c in chunks], ["whole"])
                with self.answering(engine, head(label, "") + EVENTS):
                    self.assertEqual(factory.generate("hi"), "ab")


if __name__ == "__main__":
    unittest.main()
