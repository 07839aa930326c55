"""What nobody had foreseen in an engine's answer costs that attempt, and what goes wrong behind it costs nobody."""

from __future__ import annotations

import contextlib
import json
import threading
import unittest
from collections.abc import Iterator
from typing import Any, Callable, Optional
from unittest import mock

from gateway.errors import EngineFailed
from gateway.guard import Guard
from gateway.limits.limiter import Admission
from gateway.mock.server import MockEngine
from gateway.server import exchange, report, streaming
from gateway.server.exchange import Exchange
from gateway.telemetry.observe import Telemetry
from gateway.upstream import answers
from gateway.upstream import client as client_module
from gateway.upstream.client import EngineClient
from gateway.upstream.sse import EventStream
from gateway.upstream.status import retry_after_s
from inference import InferenceFactory
from tests.resilience import ResilienceTest, ask
from tests.scripted import DONE, STREAM_HEAD, EngineSide, ScriptedEngine, chunked, delta
from tests.support import CHAT, Response, RunningGateway, content_of, eventually

MARK = "unforeseen"
LONG = "x" * 70_000  # the request is read, and asked, on a thread
KEY = [("Authorization", "Bearer sk-one")]
KEYS = "one:sk-one"


def answer(text: str) -> bytes:
    """A whole chat answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return json.dumps({"id": "a", "model": "m", "choices": [choice], "usage": usage}).encode()


@contextlib.contextmanager
def crashing(owner: Any, name: str, when: Callable[..., bool] = lambda *args: True) -> Iterator[None]:
    """`owner.name` raises where `when` says so of its arguments."""
    real = getattr(owner, name)

    def crash(*args: Any, **named: Any) -> Any:
        if when(*args):
            raise RuntimeError("a bug that nobody is to hear of")
        return real(*args, **named)

    with mock.patch.object(owner, name, crash):
        yield


def marked(*args: Any) -> bool:
    return any(isinstance(arg, (bytes, bytearray)) and MARK.encode() in arg for arg in args)


def first_of(seen: list[object], args: object) -> bool:
    seen.append(args)
    return len(seen) == 1


class UnforeseenTest(ResilienceTest):
    """Engines whose answers nobody had foreseen."""

    def two(self, **variables: object) -> tuple[RunningGateway, ScriptedEngine, MockEngine]:
        """A gateway that asks the first engine first."""
        bad, good = self.scripted(), self.engine()
        models = {"m": {"engines": [{"url": bad.url}, {"url": good.url}], "strategy": "round_robin"}}
        return self.serve(models, WORKERS=8, **variables), bad, good

    def assert_crash_told(self, running: RunningGateway, response: Optional[Response] = None) -> None:
        lines = eventually(lambda: [line for line in running.log_lines() if line["event"] == "attempt_crashed"])
        self.assertEqual(len(lines), 1)
        self.assertEqual(lines[0]["model"], "m")
        self.assertIn("a bug that nobody is to hear of", lines[0]["traceback"])
        if response is not None:
            self.assertNotIn(b"a bug", response.body)
        self.assert_nothing_held(running)
        eventually(lambda: running.app.pipeline.in_flight == 0 and running.app.workers.busy == 0)

    def test_a_retry_after_beyond_all_numbers_is_none(self) -> None:
        for text in (
            "1 Jan 2026 0:0:99999999999999999999",
            "9" * 5000,
            "Fri, 01 Jan 99999999999999 00:00:00 GMT",
            "1 Jan 2026 0:0:0 +99999999999999999999",
            "Jan",
            ":" * 60,
            "-1",
            "nan",
            "inf",
            "\xff\x00",
        ):
            with self.subTest(text=text[:60]):
                self.assertIsNone(retry_after_s(text.encode("latin-1")))
        self.assertEqual(retry_after_s(b"7"), 7.0)

    def test_an_engine_with_an_impossible_retry_after_rests_and_another_is_asked(self) -> None:
        running, bad, _ = self.two()
        client = self.begin(running)
        side = bad.take()
        side.send(
            b"HTTP/1.1 429 Slow\r\nRetry-After: 1 Jan 2026 0:0:99999999999999999999\r\nContent-Length: 2\r\n\r\n{}"
        )
        response = client.read_response()
        self.assertEqual((response.status, response.header("x-gateway-attempts")), (200, "2"))
        self.assert_nothing_held(running)

    def test_a_crash_over_a_whole_answer_is_that_attempt_s_failure(self) -> None:
        for way, text in (("on the loop", "hi"), ("on a thread", LONG)):
            with self.subTest(way=way), crashing(answers, "parse_answer", marked):
                running, bad, _ = self.two()
                client = self.begin(running, ask(text))
                side = bad.take()
                side.answer(answer(MARK))
                response = client.read_response()
                self.assertEqual((response.status, response.header("x-gateway-attempts")), (200, "2"), response.body)
                self.assert_crash_told(running, response)
                metrics = running.metrics()
                name = f'gateway_engine_requests_total{{model="m",engine="127.0.0.1:{bad.port}",outcome="error"}}'
                self.assertEqual(metrics[name], 1)

    def test_a_crash_over_a_refusal_closes_the_connection(self) -> None:
        with crashing(client_module, "status_outcome"):
            running, bad, _ = self.two()
            client = self.begin(running)
            side = bad.take()
            side.answer(b"{}", status="503 No")
            self.assertEqual(client.read_response().status, 200)
            self.assertTrue(side.wait_until_left())
            self.assert_crash_told(running)

    def test_a_crash_over_a_queued_request_is_that_attempt_s_failure(self) -> None:
        with crashing(answers, "parse_answer", marked):
            bad, good = self.scripted(), self.engine()
            running = self.serve({"m": {"engines": [bad.url, good.url]}}, WORKERS=1)
            first = self.begin(running)
            side = bad.take()
            second = self.begin(running)
            eventually(lambda: running.app.workers.depth == 1)
            side.answer(answer(MARK))
            self.assertEqual([first.read_response().status, second.read_response().status], [200, 200])
            self.assert_crash_told(running)

    def test_a_crash_before_anything_is_sent_is_that_attempt_s_failure(self) -> None:
        seen: list[object] = []
        with crashing(EngineClient, "conversation", lambda *args: first_of(seen, args)):
            running, _, _ = self.two()
            client = self.begin(running)
            response = client.read_response()
            self.assertEqual((response.status, response.header("x-gateway-attempts")), (200, "2"), response.body)
            self.assert_crash_told(running, response)

    def test_a_crash_over_the_begin_of_a_stream_is_that_attempt_s_failure(self) -> None:
        for way, text in (("on the loop", "hi"), ("on a thread", LONG)):
            with self.subTest(way=way), crashing(EventStream, "feed", marked):
                running, bad, _ = self.two()
                client = self.begin(running, ask(text, stream=True))
                side = bad.take()
                side.send(STREAM_HEAD + chunked(delta(MARK)))
                self.assertEqual(client.read_head().status, 200)
                self.assertEqual(client.read_events()[-1], "data: [DONE]")
                self.assertTrue(side.wait_until_left())
                self.assert_crash_told(running)

    def test_a_crash_in_a_stream_is_told_the_client_and_blamed_on_the_engine(self) -> None:
        with crashing(EventStream, "feed", marked):
            running, bad, _ = self.two()
            client = self.begin(running, ask(stream=True))
            side = bad.take()
            side.send(STREAM_HEAD + chunked(delta("good")))
            client.read_head()
            self.assertEqual(content_of([client.read_event() or ""]), "good")
            side.send(chunked(delta(MARK)))
            events = client.read_events()
            self.assertEqual(len(events), 1)
            self.assertIn("backend_error", events[0])
            self.assertNotIn("a bug", events[0])
            self.assertTrue(side.wait_until_left())
            name = f'gateway_engine_requests_total{{model="m",engine="127.0.0.1:{bad.port}",outcome="error"}}'
            running.wait_for_metric(name, 1)
            self.assert_nothing_held(running)
            self.assertEqual(running.app.pipeline.in_flight, 0)
            self.assertEqual(client.post().status, 200)  # on the same connection

    def test_a_crash_behind_the_last_reason_of_the_library_s_stream_is_told_and_costs_nothing(self) -> None:
        engine = self.scripted()
        told: list[str] = []
        sides: list[EngineSide] = []

        def answer_it() -> None:
            side = engine.take()
            sides.append(side)
            side.send(STREAM_HEAD + chunked(delta("good", "stop")))
            begun.wait(20)
            side.send(chunked(delta(MARK, "stop")))

        begun = threading.Event()
        thread = threading.Thread(target=answer_it, name="engine")
        with crashing(EventStream, "feed", marked):
            factory = self.enter(
                InferenceFactory(
                    {"m": [engine.url]},
                    health_interval_s=0,
                    stream_end_grace_s=600,
                    on_crash=lambda error, model, at: told.append(f"{error} {model} {at}"),
                )
            )
            thread.start()
            chunks = []
            for chunk in factory.stream([{"role": "user", "content": "hi"}]):
                chunks.append(chunk)
                begun.set()
        thread.join(20)
        self.assertEqual(len(chunks), 1)
        self.assertEqual(told, [f"a bug that nobody is to hear of m 127.0.0.1:{engine.port}"])
        self.assertEqual([(e.state, e.in_flight, e.last_error) for e in factory.engines()], [("up", 0, None)])
        self.assertTrue(sides[0].wait_until_left())

    def test_a_crash_in_the_library_s_stream_is_the_engine_s(self) -> None:
        engine = self.scripted()
        told: list[tuple[str, str, str]] = []

        def crashed(error: Exception, model: str, at: str) -> None:
            told.append((str(error), model, at))

        with crashing(EventStream, "feed", marked):
            factory = self.enter(InferenceFactory({"m": [engine.url]}, health_interval_s=0, on_crash=crashed))
            chunks: list[object] = []

            def consume() -> None:
                for chunk in factory.stream([{"role": "user", "content": "hi"}]):
                    if not chunks:
                        side.send(chunked(delta(MARK)))
                    chunks.append(chunk)

            failed: list[BaseException] = []

            def run() -> None:
                try:
                    consume()
                except BaseException as error:
                    failed.append(error)

            thread = threading.Thread(target=run, name="consumer")
            thread.start()
            side = engine.take()
            side.send(STREAM_HEAD + chunked(delta("good")))
            thread.join(20)
            self.assertIsInstance(failed[0], EngineFailed)
            self.assertNotIn("a bug", str(failed[0]))
            self.assertEqual(len(chunks), 1)
            self.assertEqual(told, [("a bug that nobody is to hear of", "m", f"127.0.0.1:{engine.port}")])
            self.assertEqual([e.in_flight for e in factory.engines()], [0])
            self.assertTrue(side.wait_until_left())

    def test_who_cannot_be_told_of_a_change_fails_no_attempt(self) -> None:
        engine = self.engine()

        def told(change: object) -> None:
            raise RuntimeError("not now")

        dead = self.scripted()
        dead.close()
        factory = self.enter(
            InferenceFactory(
                {"m": [dead.url, engine.url]}, health_interval_s=0, on_change=told, on_crash=lambda *a: None
            )
        )
        for _ in range(4):
            self.assertTrue(factory.generate("hi"))


class EndsTest(ResilienceTest):
    """Whatever happens after an engine's answer, the exchange ends."""

    def gateway(self, **variables: object) -> tuple[RunningGateway, ScriptedEngine]:
        engine = self.scripted()
        model = {"engines": [engine.url], "price": {"input": 1.0, "output": 2.0}}
        limits = {"RATE_LIMIT_CONCURRENCY": 1, "RATE_LIMIT_TPM": 1_000_000}
        return self.serve({"m": model}, API_KEYS=KEYS, **{**limits, **variables}), engine

    def assert_ended(self, running: RunningGateway) -> None:
        eventually(lambda: running.app.pipeline.in_flight == 0 and running.app.workers.busy == 0)
        self.assert_nothing_held(running)

    def ask_all_ways(self, running: RunningGateway, engine: ScriptedEngine) -> None:
        """On the loop, on a thread, streamed, one after the other: the caller's one place is free each time."""
        client = self.enter(running.connect())
        for text in ("hi", LONG):
            client.request("POST", CHAT, ask(text), KEY)
            side = engine.take()
            side.answer(answer("fine"))
            self.assertEqual(client.read_response().status, 200)
            side.close()
            self.assert_ended(running)
        for text in ("hi", LONG):
            client.request("POST", CHAT, ask(text, stream=True), KEY)
            side = engine.take()
            side.send(STREAM_HEAD + chunked(delta("fine")))
            self.assertEqual(client.read_head().status, 200)
            side.send(chunked(delta("", "stop") + DONE) + b"0\r\n\r\n")
            self.assertEqual(client.read_events()[-1], "data: [DONE]")
            side.close()
            self.assert_ended(running)

    def test_when_the_cost_cannot_be_told(self) -> None:
        with crashing(Guard, "cost"):
            self.ask_all_ways(*self.gateway())

    def test_when_the_cost_cannot_be_spent(self) -> None:
        with crashing(Guard, "spend"):
            self.ask_all_ways(*self.gateway())

    def test_when_the_tokens_cannot_be_settled(self) -> None:
        with crashing(Admission, "settle"):
            self.ask_all_ways(*self.gateway())

    def test_when_the_tokens_cannot_be_counted(self) -> None:
        with crashing(streaming, "_count"):
            self.ask_all_ways(*self.gateway())

    def test_when_the_event_cannot_be_made(self) -> None:
        running, engine = self.gateway()
        with crashing(report, "_extra"):
            self.ask_all_ways(running, engine)
        self.assertEqual(
            len(eventually(lambda: running.request_lines() if len(running.request_lines()) >= 4 else [])), 4
        )

    def test_when_the_event_cannot_be_passed_on(self) -> None:
        with crashing(Telemetry, "emit"):
            self.ask_all_ways(*self.gateway())

    def test_when_it_is_queued(self) -> None:
        running, engine = self.gateway(WORKERS=1, RATE_LIMIT_CONCURRENCY=0)
        with crashing(Guard, "cost"), crashing(Admission, "settle"):
            first = self.begin(running, headers=KEY)
            side = engine.take()
            second = self.begin(running, headers=KEY)
            eventually(lambda: running.app.workers.depth == 1)
            side.answer(answer("one"))
            self.assertEqual(first.read_response().status, 200)
            side.read_request().answer(answer("two"))
            self.assertEqual(second.read_response().status, 200)
            self.assert_ended(running)

    def test_when_the_answer_cannot_be_written_the_client_hears_of_a_failure(self) -> None:
        for where, name in ((exchange, "answer_headers"), (Exchange, "_open")):
            for text in ("hi", LONG):
                with self.subTest(name=name, text=text[:2]):
                    running, engine = self.gateway()
                    with crashing(where, name):
                        client = self.begin(running, ask(text, stream=name == "_open"), KEY)
                        side = engine.take()
                        if name == "_open":
                            side.send(STREAM_HEAD + chunked(delta("fine")))
                        else:
                            side.answer(answer("fine"))
                        response = client.read_response()
                        self.assertEqual((response.status, response.error), (500, "internal_error"))
                        self.assertNotIn(b"a bug", response.body)
                        self.assert_ended(running)
                        side.close()
                    with running.connect() as again:  # the caller's one place is free
                        again.request("POST", CHAT, ask(), KEY)
                        engine.take().answer(answer("fine"))
                        self.assertEqual(again.read_response().status, 200)

    def test_when_nothing_can_be_written_the_connection_is_closed(self) -> None:
        running, engine = self.gateway()
        with crashing(Exchange, "finish_with"):
            client = self.begin(running, ask(), KEY)
            side = engine.take()
            side.answer(answer("fine"))
            self.assertEqual(client.sock.recv(1), b"")
            self.assert_ended(running)

    def test_when_a_stream_s_end_goes_wrong(self) -> None:
        for name in ("stream_ended", "frame", "end_of_stream", "stream_failed"):
            with self.subTest(name=name):
                running, engine = self.gateway()
                client = self.begin(running, ask(stream=True), KEY)
                side = engine.take()
                side.send(STREAM_HEAD + chunked(delta("one")))
                client.read_head()
                client.read_event()
                calls: list[object] = []
                with crashing(Exchange, name, lambda *args, calls=calls: first_of(calls, args)):
                    if name == "stream_failed":
                        side.send(chunked(b"data: nonsense\n\n"))
                    else:
                        side.send(chunked(delta("", "stop")) + chunked(DONE) + b"0\r\n\r\n")
                    client.wait_until_ended()
                    self.assertTrue(calls)
                    self.assert_ended(running)
                side.close()
                other = self.begin(running, ask(stream=True), KEY)  # the relay lives
                side = engine.take()
                side.send(STREAM_HEAD + chunked(delta("one", "stop") + DONE) + b"0\r\n\r\n")
                other.read_head()
                self.assertEqual(other.read_events()[-1], "data: [DONE]")


if __name__ == "__main__":
    unittest.main()
