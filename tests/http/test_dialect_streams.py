"""Streams of clients of other dialects over real sockets: as they come, as they break, as others follow them."""

from __future__ import annotations

import json
import unittest
from typing import Any, Optional
from unittest import mock

from gateway.dialects.anthropic.writing import MessagesWriter
from gateway.dialects.ollama.conversation import Writer as OllamaWriter
from gateway.dialects.responses.conversation import Writer as ResponsesWriter
from gateway.server import following
from tests.dialects import (
    MESSAGES,
    OLLAMA_CHAT,
    RESPONSES,
    SPEAKING,
    DialectTest,
    Json,
    asking,
    ends_well,
    error_of,
    mark_of,
    read,
    text_of,
    tools_of,
    usage_of,
)
from tests.scripted import DONE, STREAM_HEAD, EngineSide, ScriptedEngine, chunked, delta
from tests.support import CHAT, RawClient, RunningGateway, dead_url, eventually, request_bytes

LAST_CHUNK = b"0\r\n\r\n"
WRITERS: tuple[tuple[str, Any], ...] = (
    (MESSAGES, MessagesWriter),
    (RESPONSES, ResponsesWriter),
    (OLLAMA_CHAT, OllamaWriter),
)


class StreamTest(DialectTest):
    def one(self, **variables: object) -> tuple[RunningGateway, ScriptedEngine]:
        engine = self.scripted()
        return self.serve({"m": {"engines": [engine.url]}}, **variables), engine

    def opened(self, engine: ScriptedEngine, *texts: str, side: Optional[EngineSide] = None) -> EngineSide:
        """An engine that has begun to stream."""
        side = engine.take() if side is None else side.read_request()
        side.send(STREAM_HEAD + b"".join(chunked(delta(text)) for text in texts))
        return side

    def until(self, client: RawClient, path: str, text: str) -> list[Json]:
        """The events of a stream up to one with this text."""
        told: list[Json] = []
        while text not in text_of(path, told):
            told += read(path, [client.read_event(mark_of(path))])
        return told

    def assert_idle(self, running: RunningGateway) -> None:
        eventually(lambda: running.app.pipeline.in_flight == 0)
        self.assert_nothing_held(running)
        eventually(lambda: running.app.workers.busy == 0)


class GoodStreamsTest(StreamTest):
    def test_a_stream_says_what_the_whole_answer_says(self) -> None:
        running = self.serve({"m": {"engines": [self.engine().url]}})
        for path in SPEAKING:
            with self.subTest(path):
                whole = running.post(asking(path), path).json()
                told = self.streamed(running, path)
                self.assertEqual(text_of(path, told), text_of(path, [whole]))
                self.assertEqual(usage_of(path, told), usage_of(path, [whole]))
                self.assertTrue(ends_well(path, told[-1:]))
                self.assertFalse(ends_well(path, told[:-1]))
                line = eventually(lambda path=path: [x for x in running.request_lines() if x["path"] == path][1:])[0]
                self.assertEqual((line["status"], line["stream"], line["error"]), (200, True, None))
                self.assertEqual((line["prompt_tokens"], line["completion_tokens"]), usage_of(path, told))

    def test_ollama_streams_unless_it_is_told_not_to(self) -> None:
        running = self.serve({"m": {"engines": [self.engine().url]}})
        body = asking(OLLAMA_CHAT)
        del body["stream"]
        self.assertGreater(len(self.streamed(running, OLLAMA_CHAT, body)), 2)

    def test_each_event_comes_as_soon_as_the_engine_has_sent_its_own(self) -> None:
        for path in SPEAKING:
            with self.subTest(path):
                running, engine = self.one()
                client = self.client(running, path)
                side = self.opened(engine, "one ")
                self.assertEqual(client.read_head().status, 200)
                self.until(client, path, "one ")
                side.send(chunked(delta("two")))
                self.until(client, path, "two")
                side.send(chunked(delta("", "stop") + DONE) + LAST_CHUNK)
                self.assertTrue(ends_well(path, self.rest(client, path)))
                client.request("GET", "/healthz")  # the connection is kept
                self.assertEqual(client.read_response().status, 200)
                self.assert_idle(running)

    def test_what_an_engine_says_to_keep_a_connection_alive_is_told(self) -> None:
        for path, alive in ((MESSAGES, b'{"type":"ping"}'), (RESPONSES, b": alive\n\n"), (OLLAMA_CHAT, b" ")):
            with self.subTest(path):
                running, engine = self.one()
                client = self.client(running, path)
                side = self.opened(engine, "one ")
                client.read_head()
                self.until(client, path, "one ")
                side.send(chunked(b": keep-alive\n\n"))
                raw = client._event_part(1e9)
                self.assertIn(alive, raw)
                client._text = raw
                side.send(chunked(delta("two", "stop") + DONE) + LAST_CHUNK)
                told = self.rest(client, path)
                self.assertEqual((text_of(path, told), ends_well(path, told)), ("two", True))

    def test_old_clients_get_bare_events(self) -> None:
        running = self.serve({"m": {"engines": [self.engine().url]}})
        for path in SPEAKING:
            with self.subTest(path), running.connect() as client:
                client.send(request_bytes("POST", path, asking(path, stream=True), version="HTTP/1.0"))
                self.assertIsNone(client.read_head().header("transfer-encoding"))
                told = self.rest(client, path)
                self.assertTrue(ends_well(path, told))
                self.assertIn("hi there", text_of(path, told))

    def test_where_the_engine_tells_no_usage_it_is_estimated_as_the_log_has_it(self) -> None:
        running = self.serve({"m": {"engines": [self.engine("no_usage").url]}})
        for path in SPEAKING:
            for stream in (False, True):
                with self.subTest(path, stream=stream):
                    client = self.client(running, path, asking(path, "some words " * 9, stream=stream))
                    if stream:
                        head = client.read_head()
                        told = self.rest(client, path)
                    else:
                        head = client.read_response()
                        told = [head.json()]
                    line = running.request_line(head.request_id)
                    self.assertTrue(line["usage_estimated"])
                    self.assertEqual(usage_of(path, told), (line["prompt_tokens"], line["completion_tokens"]))
                    self.assertGreater(line["completion_tokens"], 0)

    def test_calls_are_streamed(self) -> None:
        running = self.serve({"m": {"engines": [self.engine().url]}})
        for path in (MESSAGES, RESPONSES, OLLAMA_CHAT):
            with self.subTest(path):
                body = asking(path, "get_weather in Rome", stream=True, tools=tools_of(path))
                told = self.streamed(running, path, body)
                arguments: Any
                if path == OLLAMA_CHAT:
                    ((call,),) = [one["message"]["tool_calls"] for one in told if "tool_calls" in one["message"]]
                    arguments = call["function"]["arguments"]
                elif path == MESSAGES:
                    pieces = [one["delta"] for one in told if one["type"] == "content_block_delta"]
                    arguments = json.loads("".join(piece["partial_json"] for piece in pieces))
                    self.assertEqual(told[-2]["delta"]["stop_reason"], "tool_use")
                else:
                    (done,) = [one for one in told if one["type"] == "response.function_call_arguments.done"]
                    arguments = json.loads(done["arguments"])
                    self.assertEqual([one["sequence_number"] for one in told], list(range(len(told))))
                self.assertEqual(list(arguments), ["city"])

    def test_another_engine_or_model_is_invisible_before_the_first_event(self) -> None:
        models = {
            "m": {"engines": [self.engine("error_first_event").url, dead_url()], "fallbacks": ["n"]},
            "n": {"engines": [self.engine(model="n").url]},
        }
        running = self.serve(models)
        for path in SPEAKING:
            told = self.streamed(running, path)
            self.assertTrue(ends_well(path, told), path)
            self.assertIn("from n at", text_of(path, told))

    def test_a_client_that_leaves_ends_it_at_the_engine(self) -> None:
        for path in SPEAKING:
            with self.subTest(path):
                running, engine = self.one()
                client = self.client(running, path)
                side = self.opened(engine, "one ")
                client.read_head()
                client.close()
                self.assertTrue(side.wait_until_left())
                self.assert_idle(running)


class BrokenStreamsTest(StreamTest):
    def test_a_stream_that_another_engine_goes_on_with_is_one(self) -> None:
        for path in SPEAKING:
            with self.subTest(path):
                broken, other = self.scripted(), self.scripted()
                specs = [{"url": engine.url, "resume": True} for engine in (broken, other)]
                running = self.serve({"m": {"engines": specs, "strategy": "round_robin"}})
                client = self.client(running, path)
                side = self.opened(broken, "one ")
                client.read_head()
                told = self.until(client, path, "one ")
                side.close()
                self.opened(other, "two").send(chunked(delta("", "stop") + DONE) + LAST_CHUNK)
                told += self.rest(client, path)
                self.assertEqual((text_of(path, told), ends_well(path, told)), ("one two", True))
                self.assertLessEqual(sum(one.get("type") in ("message_start", "response.created") for one in told), 1)

    def test_a_stream_that_breaks_ends_with_the_dialects_error_and_no_good_end(self) -> None:
        for behaviour in ("drop_mid_stream", "reset_mid_stream", "end_mid_stream", "error_mid_stream", "malformed"):
            running = self.serve(
                {"m": {"engines": [self.engine(behaviour, after=2, gap=0.01).url]}}, BREAKER_THRESHOLD=1000
            )
            for path in SPEAKING:
                with self.subTest(behaviour, path=path):
                    client = self.client(running, path)
                    head = client.read_head()
                    told = self.rest(client, path)
                    self.assert_broken(path, told, "backend_error")
                    self.assertTrue(text_of(path, told))
                    line = running.request_line(head.request_id)
                    self.assertEqual((line["status"], line["error"]), (200, "backend_error"))
                    self.assertGreater(line["completion_tokens"], 0)

    def test_the_end_of_the_gateway_is_told(self) -> None:
        running, engine = self.one()
        clients = {path: self.client(running, path) for path in SPEAKING}
        for _ in clients:
            self.opened(engine, "one ")
        for path, client in clients.items():
            client.read_head()
            self.until(client, path, "one ")
        running.stop(0)
        for path, client in clients.items():
            with self.subTest(path):
                told = self.rest(client, path)
                self.assert_broken(path, told, "draining")
                if path == MESSAGES:
                    self.assertEqual(told[-1]["error"]["type"], "overloaded_error")
                client.assert_closed()

    def test_a_call_that_ollama_has_no_words_for_ends_its_stream_as_broken(self) -> None:
        running, engine = self.one()
        client = self.client(running, OLLAMA_CHAT)
        side = engine.take()
        function = {"name": "get_weather", "arguments": "{"}
        call = {"index": 0, "id": "1", "type": "function", "function": function}
        chunk = {"choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": "tool_calls"}]}
        side.send(STREAM_HEAD + chunked(b"data: %b\n\n" % json.dumps(chunk).encode() + DONE) + LAST_CHUNK)
        head = client.read_head()
        self.assert_broken(OLLAMA_CHAT, self.rest(client, OLLAMA_CHAT), "backend_error")
        self.assertEqual(running.request_line(head.request_id)["error"], "backend_error")

    def crash_told(self, running: RunningGateway) -> None:
        eventually(lambda: any("a bug" in str(line.get("traceback")) for line in running.log_lines()))

    def test_a_translation_that_crashes_at_once_is_an_internal_error(self) -> None:
        for path, writer in WRITERS:
            with self.subTest(path):
                running, engine = self.one()
                with mock.patch.object(writer, "chunk", side_effect=RuntimeError("a bug")):
                    client = self.client(running, path)
                    side = self.opened(engine, "one ")
                    answer = client.read_response()
                self.assertEqual(answer.status, 500)
                self.assertIn(error_of(path, answer.json())[0], ("", "internal_error"))
                self.assertNotIn(b"a bug", answer.body)
                self.assertTrue(side.wait_until_left())
                self.crash_told(running)
                self.assert_idle(running)

    def test_a_translation_that_crashes_later_ends_its_own_stream_alone(self) -> None:
        for path, writer in WRITERS:
            for method in ("chunk", "done"):
                with self.subTest(path, method=method):
                    running, engine = self.one()
                    clients = [self.client(running, at, asking(at, stream=True)) for at in (path, CHAT)]
                    sides = [self.opened(engine, "one ") for _ in clients]
                    for at, client in zip((path, CHAT), clients):
                        head = client.read_head()
                        self.until(client, at, "one ")
                        if at == path:
                            request_id = head.request_id
                    with mock.patch.object(writer, method, side_effect=RuntimeError("a bug")):
                        for side in sides:
                            side.send(chunked(delta("two", "stop") + DONE) + LAST_CHUNK)
                        rest = clients[0].wait_until_ended()
                    self.assertFalse(any(end in rest for end in (b"message_stop", b"completed", b'"done":true')), rest)
                    self.assertFalse(rest.endswith(LAST_CHUNK), rest)
                    self.assertEqual(clients[1].read_events()[-1], "data: [DONE]")
                    self.crash_told(running)
                    line = running.request_line(request_id)
                    self.assertEqual((line["status"], line["error"]), (200, "internal_error"))
                    self.assert_idle(running)


class SharedStreamsTest(StreamTest):
    def question(self, path: str, stream: bool) -> Json:
        """The same deterministic question in each dialect."""
        body = asking(path, "the same", stream=stream)
        if path == OLLAMA_CHAT:
            return {**body, "options": {"temperature": 0, "num_predict": 64}}
        most = "max_output_tokens" if path == RESPONSES else "max_tokens"
        usage = {"stream_options": {"include_usage": True}} if path == CHAT and stream else {}
        return {**body, **usage, most: 64, "temperature": 0}

    def test_a_kept_answer_is_everybodys(self) -> None:
        paths = (CHAT, MESSAGES, RESPONSES, OLLAMA_CHAT)
        for stream_first in (False, True):
            for first in paths:
                with self.subTest(first, stream=stream_first):
                    engine = self.engine()
                    running = self.serve({"m": {"engines": [engine.url]}}, CACHE="on")
                    answer = running.post(self.question(first, stream_first), first)
                    self.assertEqual(answer.header("x-gateway-cache"), "miss")
                    eventually(lambda running=running: running.metrics()["gateway_cache_entries"])
                    for path in paths:
                        whole = running.post(self.question(path, False), path)
                        self.assertEqual(whole.header("x-gateway-cache"), "hit", path)
                        client = self.client(running, path, self.question(path, True))
                        self.assertEqual(client.read_head().header("x-gateway-cache"), "hit", path)
                        told = self.rest(client, path)
                        self.assertIn("the same", text_of(path, told))
                        if path != CHAT:
                            self.assertTrue(ends_well(path, told))
                            self.assertEqual(text_of(path, told), text_of(path, [whole.json()]))
                            self.assertEqual(usage_of(path, told), usage_of(path, [whole.json()]))
                    self.assertEqual(len(engine.requests), 1)

    def followed(self, *paths: str, **variables: object) -> tuple[RunningGateway, EngineSide, dict[str, RawClient]]:
        """A stream that has begun, and clients of these dialects that follow it."""
        running, engine = self.one(**variables)
        clients = {paths[0]: self.client(running, paths[0], self.question(paths[0], True))}
        side = self.opened(engine, "one ")
        for path in paths[1:]:
            clients[path] = self.client(running, path, self.question(path, True))
        for path, client in clients.items():
            coalesced = None if path == paths[0] else "true"
            self.assertEqual(client.read_head().header("x-gateway-coalesced"), coalesced)
            self.until(client, path, "one ")
        return running, side, clients

    def test_clients_of_all_dialects_follow_one_stream(self) -> None:
        for paths in ((CHAT, MESSAGES, RESPONSES, OLLAMA_CHAT), (OLLAMA_CHAT, RESPONSES, MESSAGES, CHAT)):
            with self.subTest(paths[0]):
                running, side, clients = self.followed(*paths)
                side.send(chunked(delta("two")))
                for path, client in clients.items():
                    self.until(client, path, "two")
                side.send(chunked(delta("", "stop") + DONE) + LAST_CHUNK)
                for path, client in clients.items():
                    told = self.rest(client, path)
                    if path != CHAT:
                        self.assertTrue(ends_well(path, told))
                    client.request("GET", "/healthz")
                    self.assertEqual(client.read_response().status, 200)
                self.assert_idle(running)

    def test_when_it_breaks_each_is_told_in_its_own_words(self) -> None:
        running, side, clients = self.followed(CHAT, MESSAGES, RESPONSES, OLLAMA_CHAT)
        side.close()
        for path, client in clients.items():
            told = self.rest(client, path)
            if path != CHAT:
                self.assert_broken(path, told, "backend_error")
        self.assert_idle(running)

    def test_one_that_does_not_read_is_cut_off_and_told_so(self) -> None:
        with mock.patch.object(following, "BACKLOG_MAX_BYTES", 200_000):
            for slow in (MESSAGES, RESPONSES, OLLAMA_CHAT):
                with self.subTest(slow):
                    running, side, clients = self.followed(CHAT, slow)
                    piece = chunked(delta("x" * 50_000))
                    for _ in range(150):
                        side.send(piece)
                        self.until(clients[CHAT], CHAT, "x")
                    side.send(chunked(delta("", "stop") + DONE) + LAST_CHUNK)
                    self.rest(clients[CHAT], CHAT)
                    self.assert_broken(slow, self.rest(clients[slow], slow), "overloaded")
                    self.assert_idle(running)

    def test_a_translation_that_crashes_ends_its_own_client_alone(self) -> None:
        for path, writer in WRITERS:
            with self.subTest(path):
                running, side, clients = self.followed(CHAT, path)
                with mock.patch.object(writer, "chunk", side_effect=RuntimeError("a bug")):
                    side.send(chunked(delta("two", "stop") + DONE) + LAST_CHUNK)
                    self.assertNotIn(LAST_CHUNK, clients[path].wait_until_ended())
                self.assertEqual(clients[CHAT].read_events()[-1], "data: [DONE]")
                errors = eventually(lambda running=running: running.request_lines()[1:] and running.request_lines())
                self.assertEqual({line["path"]: line["error"] for line in errors}, {CHAT: None, path: "internal_error"})
                self.assert_idle(running)


if __name__ == "__main__":
    unittest.main()
