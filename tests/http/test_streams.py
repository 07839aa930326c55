"""Streams over real sockets: the rules of a stream's end, of failing over before its first event, and of leaving it."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import threading
import unittest
from typing import Any

from gateway.mock.server import MockEngine
from tests.parallel import alone
from tests.scripted import DONE, STREAM_HEAD, ScriptedEngine, chunked, delta
from tests.support import (
    COMPLETIONS,
    HI,
    RawClient,
    Response,
    RunningGateway,
    chunk_of,
    content_of,
    eventually,
    gateway,
    mock_engine,
    request_bytes,
)

STREAM: dict[str, Any] = {**HI, "model": "m", "stream": True}
WITH_USAGE: dict[str, Any] = {**STREAM, "stream_options": {"include_usage": True}}
LEFT_S = 1.0  # how soon an engine must learn that its caller has left
DONE_EVENT = "data: [DONE]"


class StreamTestCase(unittest.TestCase):
    def setUp(self) -> None:
        self._stack = contextlib.ExitStack()
        self.addCleanup(self._stack.close)

    def engine(self, behaviour: str = "ok", **options: Any) -> MockEngine:
        return self._stack.enter_context(mock_engine("m", behaviour, **options))

    def scripted(self) -> ScriptedEngine:
        return self._stack.enter_context(ScriptedEngine())

    def gateway(self, *urls: str, **variables: object) -> RunningGateway:
        return self._stack.enter_context(gateway(ENGINES=f"m={','.join(urls)}", **variables))

    def client(self, running: RunningGateway) -> RawClient:
        return self._stack.enter_context(running.connect())

    def open(self, client: RawClient, body: Any = None) -> Response:
        """Ask for a stream and return its head."""
        client.request("POST", "/v1/chat/completions", STREAM if body is None else body)
        return client.read_head()

    def stream(self, running: RunningGateway, body: Any = None) -> tuple[Response, list[str]]:
        """A whole stream on a connection of its own."""
        with running.connect() as client:
            head = self.open(client, body)
            return head, client.read_events()

    def assert_outcomes(self, running: RunningGateway, expected: dict[str, int]) -> None:
        """Attempts at all engines, by outcome; a request is reported just after its last byte."""
        eventually(lambda: running.app.pipeline.in_flight == 0)
        self.assertEqual(outcomes(running), expected)

    def assert_nothing_in_flight(self, running: RunningGateway) -> None:
        eventually(lambda: all(engine.in_flight == 0 for engine in running.app.factory.engines()))
        eventually(lambda: running.app.pipeline.in_flight == 0)


class LiveTest(StreamTestCase):
    def test_the_first_event_reaches_the_client_before_the_engine_has_sent_the_second(self) -> None:
        engine = self.engine()
        client = self.client(self.gateway(engine.url))
        with engine.hold_after(0) as gate:  # the role event is out, no content
            head = self.open(client)
            first = client.read_event()
            self.assertTrue(gate.wait_for_held(1, 10))
            self.assertEqual(head.status, 200)
            self.assertIn('"role":"assistant"', first or "")
            client.assert_quiet()
        rest = client.read_events()
        self.assertEqual(content_of([first or "", *rest]), f"Mock answer from m at {engine.port}: hi there")
        self.assertEqual(rest[-1], DONE_EVENT)

    def test_each_later_event_arrives_while_the_engine_still_streams(self) -> None:
        with self.scripted() as engine:
            client = self.client(self.gateway(engine.url))
            client.request("POST", "/v1/chat/completions", STREAM)
            side = engine.take()
            side.send(STREAM_HEAD + chunked(delta("0")))
            client.read_head()
            self.assertEqual(client.read_event(), delta("0").decode().strip())
            for number in range(1, 5):
                side.send(chunked(delta(str(number))))
                self.assertEqual(client.read_event(), delta(str(number)).decode().strip())

    def test_the_head_says_that_a_stream_follows_which_nobody_may_hold_back(self) -> None:
        engine = self.engine()
        running = self.gateway(engine.url)
        head, _ = self.stream(running)
        self.assertEqual(head.status, 200)
        self.assertEqual((head.header("content-type") or "").partition(";")[0], "text/event-stream")
        self.assertEqual(head.header("cache-control"), "no-cache")
        self.assertEqual(head.header("x-accel-buffering"), "no")
        self.assertEqual(head.header("x-gateway-engine"), f"127.0.0.1:{engine.port}")
        self.assertEqual(head.header("x-gateway-model"), "m")
        self.assertEqual(head.header("x-gateway-attempts"), "1")

    def test_lines_arrive_unchanged_whatever_they_hold_and_however_they_were_cut(self) -> None:
        last = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "extra": [1, null]}\r\n\r\n'
        pieces = [
            b": a comment first\r\n\r\n",
            b"event: message\r\nid: 7\r\n",
            delta("gr\u00fc\u00dfe").replace(b"\n\n", b"\r\n\r\n"),
            b": ping\n\nretry: 100\n",
            delta("a \\n b"),
            b"event: x\ndata:" + delta("no space")[6:] + b"\n",
            last + b"data: [DONE]\r\n\r\n",
        ]
        sent = b"".join(pieces)
        dice = random.Random(7)
        for round_number in range(6):
            with self.subTest(round=round_number), ScriptedEngine() as engine:
                running = self.gateway(engine.url)
                client = self.client(running)
                client.request("POST", "/v1/chat/completions", WITH_USAGE)
                side = engine.take()
                cuts = sorted(dice.sample(range(1, len(sent)), 12)) if round_number else []
                wire = STREAM_HEAD
                for low, high in zip([0, *cuts], [*cuts, len(sent)]):
                    wire += chunked(sent[low:high])
                wire += b"0\r\n\r\n"
                middle = dice.randrange(1, len(wire))
                side.send(wire[:middle])
                side.send(wire[middle:])
                self.assertEqual(client.read_response().body, sent)

    def test_an_engine_that_drips_single_bytes_gives_the_same_stream(self) -> None:
        engine = self.engine("drip", gap=0, events=2)
        _, events = self.stream(self.gateway(engine.url))
        self.assertEqual(events[-1], DONE_EVENT)
        self.assertEqual(content_of(events), f"Mock answer from m at {engine.port}: hi there")

    def test_completions_stream_as_well(self) -> None:
        engine = self.engine()
        client = self.client(self.gateway(engine.url))
        client.request("POST", COMPLETIONS, {"model": "m", "prompt": "hi there", "stream": True})
        client.read_head()
        *chunks, done = client.read_events()
        text = "".join(choice["text"] for event in chunks for choice in chunk_of(event)["choices"])
        self.assertEqual(text, f"Mock answer from m at {engine.port}: hi there")
        self.assertEqual(done, DONE_EVENT)

    def test_a_connection_carries_streams_and_answers_one_after_the_other(self) -> None:
        engine = self.engine()
        client = self.client(self.gateway(engine.url))
        for _ in range(3):
            self.assertEqual(self.open(client).status, 200)
            self.assertEqual(client.read_events()[-1], DONE_EVENT)
            self.assertEqual(client.post({**HI, "model": "m"}).status, 200)
        client.assert_quiet()

    def test_a_request_sent_during_a_stream_is_answered_after_it(self) -> None:
        engine = self.engine()
        client = self.client(self.gateway(engine.url))
        with engine.hold_after(1) as gate:
            self.open(client)
            self.assertTrue(gate.wait_for_held(1, 10))
            client.request("POST", "/v1/chat/completions", {**HI, "model": "m"})
        self.assertEqual(client.read_events()[-1], DONE_EVENT)
        self.assertEqual(client.read_response().json()["object"], "chat.completion")

    def test_a_client_of_http_1_0_gets_the_bare_stream_and_then_the_end_of_the_connection(self) -> None:
        engine = self.engine()
        client = self.client(self.gateway(engine.url))
        client.send(request_bytes("POST", "/v1/chat/completions", STREAM, version="HTTP/1.0"))
        head = client.read_head()
        self.assertIsNone(head.header("transfer-encoding"))
        self.assertEqual(client.read_events()[-1], DONE_EVENT)
        client.assert_closed()

    def test_a_stream_of_an_engine_that_ends_its_body_with_the_connection(self) -> None:
        with self.scripted() as engine:
            client = self.client(self.gateway(engine.url))
            client.request("POST", "/v1/chat/completions", STREAM)
            side = engine.take()
            side.send(b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + delta("a") + delta("", "stop"))
            side.close()
            client.read_head()
            self.assertEqual(content_of(events := client.read_events()), "a")
            self.assertEqual(events[-1], DONE_EVENT)

    def test_two_hundred_streams_on_sixteen_workers_run_side_by_side(self) -> None:
        count = 200
        engine = self.engine()
        running = self.gateway(engine.url, WORKERS=16)
        clients = [self.client(running) for _ in range(count)]
        with engine.hold_after(1) as gate:
            for client in clients:
                client.request("POST", "/v1/chat/completions", STREAM)
            for client in clients:
                client.read_head()
                client.read_event()
            self.assertTrue(gate.wait_for_held(count, 10))
            self.assertEqual(engine.stats()["in_flight"], count)
        for client in clients:
            self.assertEqual(client.read_events()[-1], DONE_EVENT)
        self.assert_nothing_in_flight(running)
        self.assert_outcomes(running, {"ok": count})

    def test_open_streams_occupy_no_worker(self) -> None:
        engine = self.engine()
        running = self.gateway(engine.url, WORKERS=1)
        clients = [self.client(running) for _ in range(3)]
        with engine.hold_after(0) as gate:
            for client in clients:
                self.open(client)
            self.assertTrue(gate.wait_for_held(3, 10))
            self.assertEqual(running.post({**HI, "model": "m"}).status, 200)

    def test_the_engine_s_connection_is_kept_after_a_stream(self) -> None:
        engine = self.engine()
        running = self.gateway(engine.url)
        pool = running.app.factory.client.endpoint(running.app.factory.router.pools["m"].engines[0].spec).pool
        for _ in range(4):
            self.stream(running)
            eventually(lambda: len(pool) == 1)  # given back just after the client has its end
        self.assertEqual(engine.stats()["connections_total"], 1)

    def test_the_connection_is_kept_also_when_the_body_ends_after_done(self) -> None:
        with self.scripted() as engine:
            running = self.gateway(engine.url)
            pool = running.app.factory.client.endpoint(running.app.factory.router.pools["m"].engines[0].spec).pool
            client = self.client(running)
            client.request("POST", "/v1/chat/completions", STREAM)
            side = engine.take()
            side.send(STREAM_HEAD + chunked(delta("a", "stop") + DONE))
            client.read_head()
            self.assertEqual(client.read_events()[-1], DONE_EVENT)  # the client does not wait for the body's end
            side.send(b"0\r\n\r\n")
            eventually(lambda: len(pool) == 1)
            client.request("POST", "/v1/chat/completions", STREAM)
            side.read_request()
            side.send(STREAM_HEAD + chunked(delta("b", "stop") + DONE) + b"0\r\n\r\n")
            client.read_head()
            self.assertEqual(content_of(client.read_events()), "b")


class EndTest(StreamTestCase):
    def assert_broken(self, running: RunningGateway, head: Response, events: list[str]) -> None:
        """One error event, and it is the last; nothing claims that the answer was complete."""
        self.assertEqual(head.status, 200)
        self.assertNotIn(DONE_EVENT, events)
        errors = [event for event in events if "error" in chunk_of(event)]
        self.assertEqual(errors, events[-1:])
        error = chunk_of(errors[0])
        self.assertEqual(error["error"], "backend_error")
        self.assertEqual(error["request_id"], head.request_id)
        self.assertTrue(error["message"])
        line = running.request_line(head.request_id)
        self.assertEqual((line["status"], line["error"]), (200, "backend_error"))
        self.assert_nothing_in_flight(running)

    def test_an_engine_that_breaks_off_gives_one_error_event_and_never_done(self) -> None:
        # Behaviour, options, what the attempt counts as.
        table: list[tuple[str, dict[str, Any], str]] = [
            ("drop_mid_stream", {"after": 2}, "truncated"),
            ("drop_mid_stream", {"after": 0}, "truncated"),
            ("end_mid_stream", {"after": 2}, "truncated"),
            ("reset_mid_stream", {"after": 2}, "reset"),
            ("truncate", {"after": 1}, "truncated"),
            ("malformed", {"after": 2}, "invalid"),
        ]
        for behaviour, options, outcome in table:
            with self.subTest(behaviour=behaviour, **options):
                engine = self.engine(behaviour, **options)
                running = self.gateway(engine.url)
                with engine.hold_after(int(options["after"])), running.connect() as client:
                    # Held, so that what was sent before the break is read before it (a reset throws it away).
                    head = self.open(client)
                    events = [client.read_event() or "" for _ in range(1 + int(options["after"]))]
                    assert engine.gate is not None
                    engine.gate.release()
                    events += client.read_events()
                    self.assert_broken(running, head, events)
                self.assert_outcomes(running, {outcome: 1})

    def test_an_error_event_in_the_middle_ends_the_stream_as_broken(self) -> None:
        with self.scripted() as engine:
            running = self.gateway(engine.url)
            client = self.client(running)
            client.request("POST", "/v1/chat/completions", STREAM)
            side = engine.take()
            side.send(STREAM_HEAD + chunked(delta("a")))
            head = client.read_head()
            first = client.read_event() or ""
            side.send(chunked(b'data: {"error": {"message": "out of memory"}}\n\n' + DONE) + b"0\r\n\r\n")
            events = [first, *client.read_events()]
            self.assert_broken(running, head, events)
            self.assertIn("out of memory", events[-1])

    def test_done_without_a_finish_reason_is_not_believed(self) -> None:
        with self.scripted() as engine:
            running = self.gateway(engine.url)
            client = self.client(running)
            client.request("POST", "/v1/chat/completions", STREAM)
            side = engine.take()
            side.send(STREAM_HEAD + chunked(delta("a")))
            head = client.read_head()
            first = client.read_event() or ""
            side.send(chunked(DONE) + b"0\r\n\r\n")
            self.assert_broken(running, head, [first, *client.read_events()])

    def test_every_choice_must_have_finished(self) -> None:
        table: list[tuple[str, dict[str, Any]]] = [
            ("/v1/chat/completions", {**STREAM, "n": 2}),
            (COMPLETIONS, {"model": "m", "stream": True, "prompt": ["one", "two"]}),
            (COMPLETIONS, {"model": "m", "stream": True, "prompt": [[1, 2], [3]]}),
        ]
        for path, body in table:
            for finished in (1, 2):
                with self.subTest(body=body, finished=finished), ScriptedEngine() as engine:
                    client = self.client(self.gateway(engine.url))
                    client.request("POST", path, body)
                    side = engine.take()
                    data = delta("a") + delta("b", index=1) + delta("", "stop", 0)
                    side.send(STREAM_HEAD + chunked(data + (delta("", "stop", 1) if finished == 2 else b"")))
                    side.send(b"0\r\n\r\n")
                    client.read_head()
                    last = client.read_events()[-1]
                    if finished == 2:
                        self.assertEqual(last, DONE_EVENT)
                    else:
                        self.assertEqual(chunk_of(last)["error"], "backend_error")

    def test_the_error_event_stands_alone_when_the_engine_broke_off_inside_an_event(self) -> None:
        for torn in (delta("b")[:-1], b"event: message\n", b"id: 9\r\n", delta("b")[:-1] + b"dat", b": ping\n"):
            with self.subTest(torn=torn), ScriptedEngine() as engine:
                client = self.client(self.gateway(engine.url))
                client.request("POST", "/v1/chat/completions", STREAM)
                side = engine.take()
                side.send(STREAM_HEAD + chunked(delta("a")))
                client.read_head()
                client.read_event()
                side.send(chunked(torn))
                side.close()
                *_, last = client.read_events()
                self.assertEqual(chunk_of(last)["error"], "backend_error")

    def test_what_came_in_one_piece_with_the_break_still_reaches_the_client(self) -> None:
        b_line = delta("b")
        table: list[tuple[str, bytes]] = [
            ("an early end of the body", chunked(b_line) + b"0\r\n\r\n"),
            ("an error event", chunked(b_line + b'data: {"error": "x"}\n\n')),
            ("an event that is not JSON", chunked(b_line + b"data: {]\n\n")),
            ("an early [DONE]", chunked(b_line + DONE) + b"0\r\n\r\n"),
        ]
        for what, data in table:
            with self.subTest(what), ScriptedEngine() as engine:
                client = self.client(self.gateway(engine.url))
                client.request("POST", "/v1/chat/completions", STREAM)
                side = engine.take()
                side.send(STREAM_HEAD + chunked(delta("a")))
                client.read_head()
                client.read_event()
                side.send(data)
                *rest, last = client.read_events()
                self.assertEqual(content_of(rest), "b")
                self.assertEqual(chunk_of(last)["error"], "backend_error")

    def test_an_engine_that_finished_but_sent_no_done_gets_one_added(self) -> None:
        engine = self.engine("no_done")
        running = self.gateway(engine.url)
        _, events = self.stream(running)
        self.assertEqual(events.count(DONE_EVENT), 1)
        self.assertEqual(events[-1], DONE_EVENT)
        self.assertEqual(content_of(events), f"Mock answer from m at {engine.port}: hi there")
        self.assert_outcomes(running, {"ok": 1})

    def test_the_added_done_is_an_event_of_its_own_however_the_last_line_ended(self) -> None:
        for ending in (b"", b"\n", b"\n\n", b"\r\n", b"\r\n\r\n"):
            with self.subTest(ending=ending), ScriptedEngine() as engine:
                client = self.client(self.gateway(engine.url))
                client.request("POST", "/v1/chat/completions", STREAM)
                side = engine.take()
                side.send(STREAM_HEAD + chunked(delta("a") + delta("b", "stop").rstrip() + ending) + b"0\r\n\r\n")
                client.read_head()
                body = b"".join(event.encode() + b"\n\n" for event in client.read_events())
                blocks = [block for block in body.replace(b"\r", b"").split(b"\n\n") if block.strip()]
                self.assertEqual(blocks[-1].strip(), b"data: [DONE]")
                self.assertEqual(json.loads(blocks[-2][6:])["choices"][0]["finish_reason"], "stop")

    def test_silence_in_the_middle_ends_the_stream_as_broken(self) -> None:
        engine = self.engine()
        running = self.gateway(engine.url, STREAM_IDLE_TIMEOUT="0.2")
        with engine.hold_after(1), running.connect() as client:
            head = self.open(client)
            self.assert_broken(running, head, client.read_events())
            self.assertTrue(engine.wait_for_cancelled(1, LEFT_S))
        self.assert_outcomes(running, {"timeout": 1})

    def test_plain_json_becomes_one_chunk_and_done(self) -> None:
        engine = self.engine("plain_json")
        running = self.gateway(engine.url)
        head, events = self.stream(running)
        self.assertEqual((head.header("content-type") or "").partition(";")[0], "text/event-stream")
        self.assertEqual(len(events), 2)
        self.assertEqual(events[1], DONE_EVENT)
        chunk = chunk_of(events[0])
        self.assertEqual(chunk["object"], "chat.completion.chunk")
        self.assertEqual(chunk["choices"][0]["finish_reason"], "stop")
        self.assertNotIn("message", chunk["choices"][0])
        self.assertEqual(content_of(events), f"Mock answer from m at {engine.port}: hi there")
        line = running.request_line(head.request_id)
        self.assertEqual((line["stream"], line["completion_tokens"], line["usage_estimated"]), (True, 8, False))


class UsageTest(StreamTestCase):
    def test_usage_is_recorded_though_nobody_asked_and_its_event_is_kept_back(self) -> None:
        engine = self.engine()
        running = self.gateway(engine.url)
        head, events = self.stream(running)
        self.assertTrue(engine.requests[-1]["body"]["stream_options"]["include_usage"])
        self.assertFalse(
            [event for event in events[:-1] if chunk_of(event).get("usage") or not chunk_of(event)["choices"]]
        )
        self.assertEqual(events[-1], DONE_EVENT)
        line = running.request_line(head.request_id)
        self.assertEqual((line["prompt_tokens"], line["completion_tokens"]), (2, 8))
        self.assertFalse(line["usage_estimated"])
        metrics = running.metrics()
        self.assertEqual(metrics['gateway_tokens_total{model="m",kind="prompt"}'], 2)
        self.assertEqual(metrics['gateway_tokens_total{model="m",kind="completion"}'], 8)

    def test_who_asks_for_usage_gets_the_event(self) -> None:
        engine = self.engine()
        running = self.gateway(engine.url)
        head, events = self.stream(running, WITH_USAGE)
        usage = {"prompt_tokens": 2, "completion_tokens": 8, "total_tokens": 10}
        self.assertEqual([chunk_of(e)["usage"] for e in events[:-1] if chunk_of(e).get("usage")], [usage])
        self.assertEqual(running.request_line(head.request_id)["completion_tokens"], 8)

    def test_other_stream_options_are_passed_on_untouched(self) -> None:
        engine = self.engine()
        running = self.gateway(engine.url)
        options = {"include_usage": False, "chunk_size": 3}
        _, events = self.stream(running, {**STREAM, "stream_options": options})
        self.assertEqual(engine.requests[-1]["body"]["stream_options"], {"include_usage": True, "chunk_size": 3})
        self.assertFalse([event for event in events[:-1] if chunk_of(event).get("usage")])

    def test_without_usage_of_the_engine_tokens_are_estimated(self) -> None:
        engine = self.engine("no_usage")
        running = self.gateway(engine.url)
        head, events = self.stream(running)
        line = running.request_line(head.request_id)
        self.assertTrue(line["usage_estimated"])
        text = content_of(events)
        self.assertEqual((line["prompt_tokens"], line["completion_tokens"]), (2, -(-len(text) // 4)))

    def test_a_broken_stream_has_used_tokens_too(self) -> None:
        engine = self.engine("drop_mid_stream", after=4)
        running = self.gateway(engine.url)
        head, _ = self.stream(running)
        self.assertGreater(running.request_line(head.request_id)["completion_tokens"], 0)


class FailoverTest(StreamTestCase):
    def test_whatever_fails_before_the_first_event_is_invisible_to_the_client(self) -> None:
        table: list[tuple[str, dict[str, Any], str]] = [
            ("error", {"status": 500}, "error"),
            ("error", {"status": 503}, "error"),
            ("flaky", {"ratio": 1}, "error"),
            ("loading", {}, "error"),
            ("reset", {}, "reset"),
            ("refuse", {"seconds": 60}, "refused"),
            ("malformed", {}, "invalid"),
            ("error_first_event", {}, "invalid"),
            ("rate_limit", {}, "rate_limited"),
            ("unauthorized", {}, "unauthorized"),
        ]
        for behaviour, options, outcome in table:
            with self.subTest(behaviour=behaviour):
                bad, good = self.engine(behaviour, **options), self.engine()
                running = self.gateway(bad.url, good.url)
                head, events = self.stream(running)  # round robin: the first engine first
                self.assertEqual(head.status, 200)
                self.assertEqual(head.header("x-gateway-engine"), f"127.0.0.1:{good.port}")
                self.assertEqual(head.header("x-gateway-attempts"), "2")
                self.assertEqual(content_of(events), f"Mock answer from m at {good.port}: hi there")
                self.assertEqual(events[-1], DONE_EVENT)
                self.assert_outcomes(running, {outcome: 1, "ok": 1})
                self.assertEqual(
                    running.metrics()[f'gateway_retries_total{{model="m",reason="{outcome}"}}'],
                    1,
                )

    def test_a_head_without_an_event_can_still_move_to_another_engine(self) -> None:
        with self.scripted() as bad:
            good = self.engine()
            running = self.gateway(bad.url, good.url)
            client = self.client(running)
            client.request("POST", "/v1/chat/completions", STREAM)
            side = bad.take()
            side.send(STREAM_HEAD + chunked(b": still loading\n\n"))
            side.close()
            self.assertEqual(client.read_head().header("x-gateway-engine"), f"127.0.0.1:{good.port}")
            self.assertEqual(client.read_events()[-1], DONE_EVENT)

    def test_a_web_page_instead_of_events_is_no_answer(self) -> None:
        with self.scripted() as bad:
            good = self.engine()
            running = self.gateway(bad.url, good.url)
            client = self.client(running)
            client.request("POST", "/v1/chat/completions", STREAM)
            bad.take().answer(b"<html>\nlogin\n</html>\n", "text/html")
            self.assertEqual(client.read_head().header("x-gateway-engine"), f"127.0.0.1:{good.port}")

    def test_when_no_engine_begins_the_client_gets_a_plain_error(self) -> None:
        table: list[tuple[str, dict[str, Any], int, str]] = [
            ("error", {}, 502, "backend_error"),
            ("malformed", {}, 502, "backend_error"),
            ("error_first_event", {}, 502, "backend_error"),
            ("reset", {}, 502, "backend_unavailable"),
            ("refuse", {"seconds": 60}, 502, "backend_unavailable"),
            ("rate_limit", {"retry_after": 7}, 429, "backend_rate_limited"),
            ("bad_request", {}, 400, "backend_rejected"),
        ]
        for behaviour, options, status, code in table:
            with self.subTest(behaviour=behaviour):
                engine = self.engine(behaviour, **options)
                running = self.gateway(engine.url)
                answer = running.post(STREAM)
                self.assertEqual((answer.status, answer.error), (status, code))
                self.assertEqual(answer.header("content-type"), "application/json")
                self.assert_nothing_in_flight(running)

    def test_an_engine_silent_until_the_first_token_timeout_is_504(self) -> None:
        engine = self.engine("hang")
        running = self.gateway(engine.url, FIRST_TOKEN_TIMEOUT="0.2", REQUEST_TIMEOUT=60)
        answer = running.post(STREAM)
        self.assertEqual((answer.status, answer.error), (504, "gateway_timeout"))
        self.assertTrue(engine.wait_for_cancelled(1, LEFT_S))

    def test_a_head_alone_does_not_stop_the_first_token_s_clock(self) -> None:
        with self.scripted() as engine:
            running = self.gateway(engine.url, FIRST_TOKEN_TIMEOUT="0.2")
            client = self.client(running)
            client.request("POST", "/v1/chat/completions", STREAM)
            side = engine.take()
            side.send(STREAM_HEAD)
            self.assertEqual(client.read_response().status, 504)
            self.assertTrue(side.wait_until_left(LEFT_S))

    def test_a_slow_engine_is_waited_for(self) -> None:
        engine = self.engine("slow", delay=0.2)
        head, events = self.stream(self.gateway(engine.url))
        self.assertEqual((head.status, events[-1]), (200, DONE_EVENT))

    def test_another_model_takes_over_before_the_first_event(self) -> None:
        bad, good = self.engine("error"), self.engine()
        running = self._stack.enter_context(gateway(ENGINES=f"m={bad.url};other={good.url}", RETRY_ATTEMPTS=1))
        head, events = self.stream(running)
        self.assertEqual(head.header("x-gateway-fallback"), "m->other")
        self.assertEqual(head.header("x-gateway-model"), "other")
        self.assertEqual(events[-1], DONE_EVENT)


class LeavingTest(StreamTestCase):
    def assert_logged_as_left(self, running: RunningGateway, request_id: str) -> dict[str, Any]:
        line = running.request_line(request_id)
        self.assertEqual((line["status"], line["error"]), (499, "client_closed_request"))
        self.assert_nothing_in_flight(running)
        return line

    @alone
    def test_a_client_that_leaves_in_the_middle_closes_the_engine_s_connection(self) -> None:
        engine = self.engine()
        running = self.gateway(engine.url)
        client = self.client(running)
        with engine.hold_after(1) as gate:
            head = self.open(client)
            self.assertTrue(gate.wait_for_held(1, 10))
            client.close()
            self.assertTrue(engine.wait_for_cancelled(1, LEFT_S))
        self.assert_logged_as_left(running, head.request_id)
        self.assert_outcomes(running, {"cancelled": 1})

    @alone
    def test_a_client_that_leaves_before_the_first_event_closes_the_engine_s_connection(self) -> None:
        for behaviour, options in (("hang", {}), ("slow", {"delay": 60})):
            with self.subTest(behaviour=behaviour):
                engine = self.engine(behaviour, **options)
                running = self.gateway(engine.url)
                client = self.client(running)
                client.request("POST", "/v1/chat/completions", STREAM, [("X-Request-ID", "left")])
                self.assertTrue(engine.wait_for_requests(1, 10))
                client.close()
                self.assertTrue(engine.wait_for_cancelled(1, LEFT_S))
                self.assert_logged_as_left(running, "left")
                self.assert_outcomes(running, {"cancelled": 1})

    @alone
    def test_a_client_that_leaves_while_the_first_event_is_incomplete(self) -> None:
        with self.scripted() as engine:
            running = self.gateway(engine.url)
            client = self.client(running)
            client.request("POST", "/v1/chat/completions", STREAM, [("X-Request-ID", "left")])
            side = engine.take()
            side.send(STREAM_HEAD + chunked(b'data: {"cho'))
            client.close()
            self.assertTrue(side.wait_until_left(LEFT_S))
            self.assert_logged_as_left(running, "left")

    @alone
    def test_a_client_that_leaves_while_queued_never_reaches_an_engine(self) -> None:
        engine = self.engine("hang")
        running = self.gateway(engine.url, WORKERS=1)
        first, second = self.client(running), self.client(running)
        first.request("POST", "/v1/chat/completions", STREAM)
        self.assertTrue(engine.wait_for_requests(1, 10))
        second.request("POST", "/v1/chat/completions", STREAM, [("X-Request-ID", "left")])
        eventually(lambda: running.app.workers.depth == 1)
        second.close()
        eventually(lambda: running.app.workers.depth == 0)  # its place in the queue is free at once
        first.close()
        self.assertTrue(engine.wait_for_cancelled(1, LEFT_S))
        self.assert_logged_as_left(running, "left")
        self.assertEqual(engine.stats()["requests"], 1)

    @alone
    def test_a_client_that_only_closes_its_sending_side_has_left_too(self) -> None:
        engine = self.engine()
        running = self.gateway(engine.url)
        client = self.client(running)
        with engine.hold_after(1) as gate:
            self.open(client)
            self.assertTrue(gate.wait_for_held(1, 10))
            client.sock.shutdown(socket.SHUT_WR)
            self.assertTrue(engine.wait_for_cancelled(1, LEFT_S))

    def test_leaving_is_never_blamed_on_the_engine(self) -> None:
        count = 60
        engine = self.engine()
        running = self.gateway(engine.url)
        with engine.hold_after(0) as gate:
            clients = [self.client(running) for _ in range(count)]
            ids = [self.open(client).request_id for client in clients]
            self.assertTrue(gate.wait_for_held(count, 10))
            for client in clients:
                client.close()
            self.assertTrue(engine.wait_for_cancelled(count, 10))
        for request_id in ids:
            self.assert_logged_as_left(running, request_id)
        self.assert_outcomes(running, {"cancelled": count})
        self.assertIsNone(running.app.factory.engines()[0].last_error)

    def test_the_log_line_of_a_stream_comes_after_its_end(self) -> None:
        engine = self.engine()
        running = self.gateway(engine.url)
        client = self.client(running)
        with engine.hold_after(1) as gate:
            head = self.open(client)
            self.assertTrue(gate.wait_for_held(1, 10))
            self.assertEqual(outcomes(running), {})  # a scrape has everything counted that was reported
            self.assertEqual(running.app.factory.engines()[0].in_flight, 1)
        client.read_events()
        line = running.request_line(head.request_id)
        self.assertEqual((line["status"], line["error"], line["stream"]), (200, None, True))
        self.assertGreaterEqual(line["latency_ms"], line["ttft_ms"])
        self.assert_outcomes(running, {"ok": 1})

    def test_a_drain_lets_open_streams_finish(self) -> None:
        engine = self.engine()
        running = self.gateway(engine.url)
        client = self.client(running)
        with engine.hold_after(1) as gate:
            self.open(client)
            self.assertTrue(gate.wait_for_held(1, 10))
            self._stack.callback(running.stop)
            stopping = begin_drain(running)
            eventually(lambda: running.app.pipeline.draining)
        self.assertEqual(client.read_events()[-1], DONE_EVENT)
        stopping.join(10)
        self.assertFalse(stopping.is_alive())


def outcomes(running: RunningGateway) -> dict[str, int]:
    """Attempts at all engines that have been reported, by outcome."""
    counts: dict[str, int] = {}
    for sample, value in running.metrics().items():
        if sample.startswith("gateway_engine_requests_total{"):
            outcome = sample.partition('outcome="')[2].partition('"')[0]
            counts[outcome] = counts.get(outcome, 0) + int(value)
    return counts


def begin_drain(running: RunningGateway) -> threading.Thread:
    """Begin a drain on a thread of its own."""
    thread = threading.Thread(target=running.stop, args=(None,), name="drain")
    thread.start()
    return thread


if __name__ == "__main__":
    unittest.main()
