"""What is passed on as it is, over real sockets: forms while they come, answers of any type, endpoints that engines
have or lack."""

from __future__ import annotations

import contextlib
import gzip
import json
import select
import socket
import time
import unittest
from typing import Any

from gateway.server.uploading import AT_LEAST_BYTES, READS_MAX
from gateway.uploads import FULL_BYTES
from tests.dialects import RESPONSES
from tests.resilience import ResilienceTest, ask
from tests.scripted import ScriptedEngine, chunked
from tests.support import EMBEDDINGS, RawClient, RunningGateway, dead_url, eventually

TRANSCRIPTIONS = "/v1/audio/transcriptions"
SPEECH = "/v1/audio/speech"
RERANK = "/v1/rerank"
KIND = "multipart/form-data; boundary=xyz"
OK = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b"


def field(name: str, value: bytes) -> bytes:
    return b'--xyz\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (name.encode(), value)


def file(data: bytes) -> bytes:
    return b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n%b\r\n' % data


END = b"--xyz--\r\n"
FILE = b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
BEGIN = field("model", b"m") + FILE


def json_answer(value: Any) -> bytes:
    body = json.dumps(value).encode()
    return OK % (b"application/json", len(body), body)


class PassingTest(ResilienceTest):
    def head(self, *lines: str, path: str = TRANSCRIPTIONS, kind: str = KIND) -> bytes:
        """The head of a request with a form."""
        head = [f"POST {path} HTTP/1.1", "Host: gateway", f"Content-Type: {kind}", *lines]
        return "\r\n".join(head).encode() + b"\r\n\r\n"

    def sent(self, running: RunningGateway, body: bytes, *lines: str) -> RawClient:
        """A client that has sent a whole form."""
        client = self.enter(running.connect())
        client.send(self.head(f"Content-Length: {len(body)}", *lines) + body)
        return client


class AnswerTest(PassingTest):
    def test_answers_of_any_type_come_as_they_are(self) -> None:
        engine = self.engine()
        running = self.serve({"m": {"engines": [engine.url]}})
        speech = running.post({"model": "m", "input": "hi", "voice": "x"}, SPEECH)
        self.assertEqual((speech.status, speech.header("content-type")), (200, "audio/mpeg"))
        self.assertEqual(len(speech.body), 16_384)
        tokens = running.post({"content": "hi"}, "/tokenize")
        self.assertEqual((tokens.json(), tokens.header("content-type")), ({"tokens": [104, 105]}, "application/json"))
        slots = running.get("/slots?model=m")
        self.assertEqual((slots.status, slots.json()[0]["id"]), (200, 0))
        self.assertEqual(running.ask("HEAD", "/props").body, b"")
        wrong = running.get("/tokenize")
        self.assert_error(wrong, 405, "method_not_allowed")
        self.assertEqual(wrong.header("allow"), "POST, OPTIONS")
        self.assertEqual(running.post({}, "/props").header("allow"), "GET, HEAD, OPTIONS")

    def test_who_asks_for_a_head_gets_no_body_whatever_the_engine_sends(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [engine.url]}})
        client = self.enter(running.connect())
        client.send(
            b"HEAD /slots?model=m HTTP/1.1\r\nHost: gateway\r\n\r\nGET /healthz HTTP/1.1\r\nHost: gateway\r\n\r\n"
        )
        side = engine.accept()
        side.take_until(b"\r\n\r\n")
        side.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nslots\r\n")
        side.send(b"0\r\n\r\n")
        head = client.read_head("HEAD")
        self.assertEqual((head.status, head.header("content-type")), (200, "text/plain"))
        self.assertEqual(head.header("content-length"), "5")
        self.assertEqual(client.read_response().json(), {"status": "ok"})

    def test_a_query_of_countless_fields_is_refused(self) -> None:
        running = self.serve({"m": {"engines": [self.engine().url]}})
        self.assert_error(running.get("/slots?" + "&".join(["model=m"] * 101)), 400, "bad_request")

    def test_a_sound_begins_before_it_has_ended_and_one_that_breaks_is_cut_short(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [engine.url]}})
        client = self.enter(running.connect())
        client.request("POST", SPEECH, {"input": "hi"})
        side = engine.take()
        side.send(b"HTTP/1.1 200 OK\r\nContent-Type: audio/ogg\r\nContent-Length: 8\r\n\r\nOggS")
        head = client.read_head()
        self.assertEqual((head.status, head.header("content-type")), (200, "audio/ogg"))
        side.close()
        said = client.wait_until_ended()
        self.assertEqual(said, b"4\r\nOggS\r\n")  # and no last chunk
        line = running.request_line(head.request_id)
        self.assertEqual((line["error"], line["status"]), ("backend_error", 200))
        self.assert_nothing_held(running)

    def test_what_breaks_before_it_has_begun_is_asked_elsewhere(self) -> None:
        broken, good = self.scripted(), self.engine()
        running = self.serve({"m": {"engines": [broken.url, good.url]}})
        client = self.enter(running.connect())
        client.request("POST", SPEECH, {"input": "hi"})
        side = broken.take()
        side.send(b"HTTP/1.1 200 OK\r\nContent-Type: audio/ogg\r\nContent-Length: 8\r\n\r\n")
        side.close()
        self.assert_answered_by(client.read_response(), good.port, attempts=2)

    def test_large_json_is_passed_on_while_it_comes(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [engine.url]}})
        client = self.enter(running.connect())
        client.request("POST", "/v1/images/generations", {"prompt": "a cat"})
        side = engine.take()
        begin = b'{"data":[{"b64_json":"' + b"A" * 200_000
        side.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 300024\r\n\r\n" + begin)
        self.assertEqual(client.read_head().status, 200)
        side.send(b'"}]}' + b" " * (300_024 - len(begin) - 5))
        side.send(b"\n")
        (body,) = client.read_events(b"\n")
        self.assertEqual(len(json.loads(body)["data"][0]["b64_json"]), 200_000)

    def test_what_large_json_says_of_its_usage_is_counted(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [engine.url]}})
        usage = b'"usage": {"input_tokens": 7, "output_tokens": 500, "total_tokens": 507}'
        data = b'"data": [{"b64_json": "' + b"A" * 200_000 + b'"}]'
        for body in (b"{%b, %b}" % (usage, data), b"{%b, %b}" % (data, usage)):
            for kind in (b"application/json", b"Application/JSON"):
                self.assert_counted(running, engine, "/v1/images/generations", OK % (kind, len(body), body))

    def assert_counted(self, running: RunningGateway, engine: ScriptedEngine, path: str, said: bytes) -> None:
        """An answer is passed on as it is, and 7 and 500 tokens are counted."""
        client = self.enter(running.connect())
        client.request("POST", path, {"prompt": "a cat", "input": "a cat", "stream": b"event-stream" in said.lower()})
        side = engine.take()
        side.send(said)
        answer = client.read_response()
        self.assertEqual(answer.body, said.partition(b"\r\n\r\n")[2])
        line = running.request_line(answer.request_id)
        self.assertEqual((line["prompt_tokens"], line["completion_tokens"]), (7, 500))
        side.close()

    def test_what_events_say_of_their_usage_is_counted(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [engine.url]}})
        usage = b'"usage": {"input_tokens": 7, "output_tokens": 500, "total_tokens": 507}'
        begin = b'event: x\ndata: {"type": "x", "b64_json": "AAAA"}\n\n'
        last = b'data: {"type": "image_generation.completed", "b64_json": "%b", %b}\n\n'
        for path in ("/v1/images/generations", SPEECH):
            for size, kind in ((4, b"text/event-stream"), (200_000, b"Text/Event-Stream; charset=utf-8")):
                body = begin + last % (b"A" * size, usage)
                self.assert_counted(running, engine, path, OK % (kind, len(body), body))

    def test_requests_name_the_engine_s_own_model_and_usage_is_counted(self) -> None:
        engine = self.engine(model="real")
        running = self.serve({"m": {"engines": [{"url": engine.url, "model": "real"}]}})
        answer = running.post({"query": "x", "documents": ["x", "y"]}, RERANK)
        self.assertEqual(answer.status, 200)
        self.assertEqual(engine.requests[-1]["body"]["model"], "real")
        line = running.request_line(answer.request_id)
        self.assertEqual((line["prompt_tokens"], line["model"]), (answer.json()["usage"]["prompt_tokens"], "m"))

    def test_identical_ones_share_nothing(self) -> None:
        engine = self.engine()
        running = self.serve({"m": {"engines": [engine.url]}}, CACHE="on")
        body = {"prompt": "a cat", "seed": 1, "temperature": 0}
        for headers in ([], [("X-Gateway-Cache", "on")]):
            answers = [running.post(body, "/v1/images/generations", headers) for _ in "12"]
            self.assertEqual([answer.header("x-gateway-cache") for answer in answers], ["bypass"] * 2)
        self.assertEqual(engine.stats()["requests"], 4)

    def test_nor_do_forms_at_a_time_whatever_their_clients_wish(self) -> None:
        engine = self.enter(ScriptedEngine())
        running = self.serve({"m": {"engines": [engine.url]}}, CACHE="on")
        form = BEGIN + b"%d\r\n" + END
        clients = [
            self.sent(running, form % number, "X-Gateway-Cache: on", "X-Gateway-Coalesce: on") for number in (1, 2)
        ]
        sides = [engine.take() for _ in clients]  # both are asked
        for side in sides:
            side.answer(b'{"text": "%b"}' % side.body.rpartition(b"\r\n\r\n")[2][:1])
        self.assertEqual([client.read_response().json()["text"] for client in clients], ["1", "2"])

    def test_only_those_who_may_see_the_slots(self) -> None:
        engine = self.engine()
        running = self.serve({"m": {"engines": [engine.url]}}, API_KEYS="alice:open-sesame")
        key = [("Authorization", "Bearer open-sesame")]
        self.assert_error(running.get("/slots", key), 403, "forbidden")
        self.assert_error(running.get("/props", key), 403, "forbidden")
        self.assertEqual(running.post({"content": "x"}, "/tokenize", key).status, 200)
        self.assert_error(running.get("/slots"), 401, "unauthorized")


class EndpointTest(PassingTest):
    def test_an_engine_without_the_endpoint_is_found_to_be_so_once(self) -> None:
        lacking, able = self.engine(lacks="rerank"), self.engine()
        running = self.serve({"m": {"engines": [lacking.url, able.url]}})
        for _ in range(4):
            self.assert_answered_by(running.post({"query": "x", "documents": ["x"]}, RERANK), able.port)
        self.assertEqual(lacking.stats()["requests"], 1)
        self.assertEqual(
            {running.post(ask()).header("x-gateway-engine") for _ in range(4)},
            {
                f"127.0.0.1:{lacking.port}",
                f"127.0.0.1:{able.port}",
            },
        )
        self.assertEqual(set(self.states(running)), {"up"})

    def test_to_find_it_lacking_is_no_try(self) -> None:
        lacking, able = self.engine(lacks="rerank"), self.engine()
        engines = [{"url": lacking.url}, {"url": able.url}]
        running = self.serve({"m": {"engines": engines, "strategy": "round_robin"}}, RETRY_ATTEMPTS="1")
        for _ in range(2):
            self.assert_answered_by(running.post({"query": "x", "documents": ["x"]}, RERANK), able.port)
        self.assertEqual(lacking.stats()["requests"], 1)

    def test_a_model_whose_engines_all_lack_it_says_so(self) -> None:
        for status in (404, 405, 501):
            engine = self.engine(lacks="rerank", lacks_status=status)
            running = self.serve({"m": {"engines": [engine.url]}})
            for _ in range(3):
                self.assert_error(running.post({"query": "x", "documents": ["x"]}, RERANK), 400, "endpoint_not_served")
            self.assertEqual(engine.stats()["requests"], 1)

    def test_a_model_that_is_not_found_is_no_endpoint_that_is_lacking(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [engine.url]}})
        for _ in range(2):
            client = self.enter(running.connect())
            client.request("POST", RERANK, {"query": "x"})
            side = engine.take()
            body = b'{"error": {"message": "The model `m` does not exist."}}'
            side.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            side.close()
            self.assert_error(client.read_response(), 404, "backend_rejected")

    def refused_by(self, engine: ScriptedEngine, client: RawClient, text: str) -> None:
        side = engine.take()
        body = json.dumps({"error": {"message": text}}).encode()
        side.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        side.close()
        self.assert_error(client.read_response(), 404, "backend_rejected")

    def test_something_of_a_request_that_is_not_found_takes_the_endpoint_from_nobody(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [{"url": engine.url, "endpoints": ["/v1/responses"]}]}})
        for _ in range(2):
            client = self.enter(running.connect())
            client.request("POST", RESPONSES, {"input": "x", "previous_response_id": "resp_0"})
            self.refused_by(engine, client, "Response with id 'resp_0' not found.")

    def test_where_it_has_answered_well_an_engine_has_the_endpoint(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [engine.url]}})
        client = self.enter(running.connect())
        client.request("POST", SPEECH, {"input": "x"})
        side = engine.take()
        side.send(OK % (b"audio/mpeg", 1, b"x"))
        self.assertEqual(client.read_response().status, 200)
        side.close()
        for _ in range(2):
            client = self.enter(running.connect())
            client.request("POST", SPEECH, {"input": "x", "voice": "nobody"})
            self.refused_by(engine, client, "Voice not found")

    def test_engines_that_say_what_they_serve_are_asked_for_that_alone(self) -> None:
        chat, other = self.engine(), self.engine()
        running = self.serve(
            {
                "m": {
                    "engines": [
                        {"url": chat.url, "endpoints": ["/v1/chat/completions"]},
                        {"url": other.url, "endpoints": ["/v1/rerank", "/v1/embeddings"]},
                    ]
                }
            }
        )
        for _ in range(3):
            self.assert_answered_by(running.post(ask()), chat.port, attempts=1)
            self.assert_answered_by(running.post({"query": "x", "documents": ["x"]}, RERANK), other.port, attempts=1)
        self.assert_error(running.post({"input": "x"}, SPEECH), 400, "endpoint_not_served")

    def test_other_models_stand_in_for_what_a_model_lacks_only_where_it_names_them(self) -> None:
        chat, found, other = self.engine(), self.engine(lacks="rerank,embeddings"), self.engine()
        models: dict[str, Any] = {
            "said": {"engines": [{"url": chat.url, "endpoints": ["/v1/chat/completions"]}]},
            "found": {"engines": [found.url]},
            "other": {"engines": [other.url]},
            "naming": {"engines": [{"url": chat.url, "endpoints": ["/v1/chat/completions"]}], "fallbacks": ["other"]},
        }
        running = self.serve(models)
        request = {"query": "x", "documents": ["x"]}
        for model in ("said", "found", "found"):  # at first it is found, then known
            with self.subTest(model):
                answer = running.post({"model": model, **request}, RERANK)
                self.assert_error(answer, 400, "endpoint_not_served")
        self.assert_error(running.post({"model": "said", "input": "x"}, EMBEDDINGS), 400, "endpoint_not_served")
        self.assertEqual(other.stats()["requests"], 0)
        self.assert_answered_by(running.post({"model": "naming", **request}, RERANK), other.port)

    def test_a_full_engine_that_alone_has_it_is_waited_for(self) -> None:
        chat, hearing = self.engine(), self.scripted()
        specs = [
            {"url": chat.url, "endpoints": ["/v1/chat/completions"]},
            {"url": hearing.url, "endpoints": ["/v1/audio/speech"], "max_concurrency": 1},
        ]
        running = self.serve({"m": {"engines": specs}})
        clients = [self.enter(running.connect()) for _ in range(2)]
        clients[0].request("POST", SPEECH, {"input": "first"})
        side = hearing.take()
        clients[1].request("POST", SPEECH, {"input": "second"})
        self.assertEqual(running.post(ask()).status, 200)  # others go on meanwhile
        side.send(OK % (b"audio/mpeg", 5, b"first"))
        self.assertEqual(clients[0].read_response().body, b"first")
        self.assertEqual(side.read_request().json["input"], "second")
        side.send(OK % (b"audio/mpeg", 6, b"second"))
        answer = clients[1].read_response()
        self.assertEqual((answer.status, answer.body), (200, b"second"))
        self.assert_nothing_held(running)

    def test_a_full_engine_is_not_waited_for_without_end(self) -> None:
        chat, hearing = self.engine(), self.scripted()
        specs = [
            {"url": chat.url, "endpoints": ["/v1/chat/completions"]},
            {"url": hearing.url, "endpoints": ["/v1/audio/speech"], "max_concurrency": 1},
        ]
        running = self.serve({"m": {"engines": specs}}, QUEUE_TIMEOUT="0.2")
        client = self.enter(running.connect())
        client.request("POST", SPEECH, {"input": "first"})
        hearing.take()
        self.assert_error(running.post({"input": "second"}, SPEECH), 503, "queue_timeout")


class FormTest(PassingTest):
    def test_a_form_reaches_the_engine_as_it_is(self) -> None:
        engine = self.engine()
        running = self.serve({"m": {"engines": [engine.url]}})
        data = bytes(range(256)) * 4000
        for parts in ((field("model", b"m"), file(data)), (file(data), field("model", b"m")), (file(data),)):
            body = b"".join(parts) + END
            for lines, sent in (
                ((f"Content-Length: {len(body)}",), body),
                (
                    ("Transfer-Encoding: chunked",),
                    b"".join(
                        b"%x\r\n%b\r\n" % (len(piece), piece)
                        for piece in (body[at : at + 30_000] for at in range(0, len(body), 30_000))
                    )
                    + b"0\r\n\r\n",
                ),
            ):
                with self.enter(running.connect()) as client:
                    client.send(self.head(*lines) + sent)
                    answer = client.read_response()
                    self.assertIn(f"a.wav, {len(data)} bytes, for m", answer.json()["text"])
                    again = client.post(ask())  # on the same connection
                    self.assertEqual(again.status, 200)
        self.assert_nothing_held(running)

    def test_the_name_of_the_model_is_the_engine_s_own(self) -> None:
        engine = self.engine(model="real-whisper")
        running = self.serve({"m": {"engines": [{"url": engine.url, "model": "real-whisper"}]}})
        for body in (
            field("model", b"m") + file(b"x") + END,
            file(b"x" * 100_000) + field("model", b"m") + END,
            file(b"x") + END,
        ):
            answer = self.sent(running, body).read_response()
            self.assertIn("for real-whisper", answer.json()["text"])

    def test_the_engine_gets_it_while_it_comes(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [engine.url]}})
        pieces = [b"%d" % number * 50_000 for number in range(3)]
        length = len(BEGIN) + sum(map(len, pieces)) + len(b"\r\n" + END)
        client = self.enter(running.connect())
        client.send(self.head(f"Content-Length: {length}") + BEGIN)
        side = engine.accept()
        self.assertIn(f"Content-Length: {length}".encode(), side.take_until(b"\r\n\r\n"))
        self.assertEqual(side.take(len(BEGIN)), BEGIN)
        for piece in pieces:
            client.send(piece)
            self.assertEqual(side.take(len(piece)), piece)
        client.send(b"\r\n" + END)
        self.assertEqual(side.take(len(b"\r\n" + END)), b"\r\n" + END)
        side.send(json_answer({"text": "said"}))
        self.assertEqual(client.read_response().json(), {"text": "said"})

    def test_a_client_sends_no_faster_than_the_engine_takes(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [engine.url]}})
        client = self.enter(running.connect())
        size = 200 << 20
        client.send(self.head(f"Content-Length: {size}") + BEGIN)
        side = engine.accept()
        side.take_until(b"\r\n\r\n")
        client.sock.setblocking(False)
        sent, block = 0, b"x" * 65536

        def stands_still() -> bool:
            nonlocal sent
            before = sent
            try:
                while sent < size // 2:
                    sent += client.sock.send(block)
            except BlockingIOError:
                pass
            return before == sent

        eventually(lambda: all(stands_still() for _ in range(50)))
        self.assertLess(sent, FULL_BYTES + 65536 * READS_MAX + (16 << 20))  # what sockets hold between
        client.close()
        self.assertTrue(side.wait_until_left())
        self.assert_nothing_held(running)

    def test_who_leaves_in_the_middle_ends_the_request_at_the_engine(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [engine.url]}})
        client = self.enter(running.connect())
        client.send(self.head("Content-Length: 1000000", "X-Request-ID: gone") + field("model", b"m") + b"--xyz")
        side = engine.accept()
        side.take_until(b'name="model"')
        client.close()
        self.assertTrue(side.wait_until_left())
        eventually(lambda: running.request_lines("gone"))
        self.assert_nothing_held(running)
        self.assertEqual(self.states(running), ["up"])

    def test_who_sends_nothing_more_is_told_so(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [engine.url]}}, CLIENT_TIMEOUT="0.2")
        client = self.enter(running.connect())
        client.send(self.head("Content-Length: 1000000") + field("model", b"m") + b"--xyz")
        side = engine.accept()
        answer = client.read_response()
        self.assert_error(answer, 408, "request_timeout")
        self.assertEqual(answer.header("connection"), "close")
        self.assertTrue(side.wait_until_left())
        self.assert_nothing_held(running)

    def test_who_sends_next_to_nothing_is_told_so_too(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [engine.url]}}, CLIENT_TIMEOUT="0.5")
        client = self.enter(running.connect())
        client.send(self.head("Content-Length: 1000000") + BEGIN)
        side = engine.accept()
        client.sock.setblocking(False)

        def told() -> bool:
            with contextlib.suppress(OSError):
                client.sock.send(b"x")
            return bool(select.select([client.sock], [], [], 0)[0])

        eventually(told)
        client.sock.settimeout(client.timeout_s)
        self.assert_error(client.read_response(), 408, "request_timeout")
        self.assertTrue(side.wait_until_left())
        self.assert_nothing_held(running)

    def test_who_sends_enough_may_take_long(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [engine.url]}}, CLIENT_TIMEOUT="1.5")
        body = BEGIN + b"x" * 4 * AT_LEAST_BYTES + b"\r\n" + END
        client = self.enter(running.connect())
        client.send(self.head(f"Content-Length: {len(body)}"))
        for number in range(5):
            client.send(body[number * AT_LEAST_BYTES : (number + 1) * AT_LEAST_BYTES])
            time.sleep(0.5)
        side = engine.accept()
        side.take_until(END)
        side.send(json_answer({"text": "said"}))
        self.assertEqual(client.read_response().status, 200)

    def test_how_long_a_client_takes_is_not_the_engine_s_time(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [engine.url]}}, REQUEST_TIMEOUT="0.5")
        body = field("model", b"m") + file(b"x" * 100) + END
        client = self.enter(running.connect())
        client.send(self.head(f"Content-Length: {len(body)}") + body[:-20])
        side = engine.accept()
        side.take_until(b"x" * 20)
        time.sleep(1.0)  # so that the time would be over
        client.send(body[-20:])
        side.take_until(END)
        side.send(json_answer({"text": "said"}))
        self.assertEqual(client.read_response().status, 200)

    def test_an_engine_that_refuses_early_is_heard(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [engine.url]}})
        client = self.enter(running.connect())
        client.send(self.head("Content-Length: 100000000") + field("model", b"m") + b"--xyz\r\n")
        side = engine.accept()
        side.take_until(b"\r\n\r\n")
        body = b'{"error": {"message": "too long a sound"}}'
        side.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        client.send(b"x" * 1000)
        answer = client.read_response()
        self.assert_error(answer, 413, "backend_rejected")
        self.assertEqual(answer.header("connection"), "close")
        self.assert_nothing_held(running)

    def test_behind_an_early_answer_no_connection_is_used_again(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [engine.url]}})
        client = self.enter(running.connect())
        client.send(self.head("Content-Length: 100000000") + BEGIN)
        side = engine.accept()
        side.take_until(FILE)
        side.send(json_answer({"text": "enough"}))
        client.send(b"x" * 3_000_000)
        self.assertEqual(client.read_response().json(), {"text": "enough"})
        client.wait_until_ended()
        other = self.enter(running.connect())
        other.request("POST", SPEECH, {"input": "hi"})
        engine.take().send(OK % (b"audio/mpeg", 1, b"x"))
        self.assertEqual(other.read_response().status, 200)

    def test_nor_where_the_client_has_sent_its_all_by_then(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [engine.url]}})
        rest = b"x" * 1000 + b"\r\n" + END
        for line, last in (
            (f"Content-Length: {len(BEGIN) + len(rest)}", rest),
            ("Transfer-Encoding: chunked", chunked(rest) + b"0\r\n\r\n"),
            ("Transfer-Encoding: chunked", b"0\r\n\r\n"),
        ):
            client = self.enter(running.connect())
            begin = BEGIN if rest in last else BEGIN + rest
            client.send(self.head(line) + (begin if "Length" in line else chunked(begin)))
            side = engine.accept()
            side.take_until(FILE)
            side.send(json_answer({"text": "enough"}))
            client.send(last)
            self.assertEqual(client.read_response().json(), {"text": "enough"})
            self.assertTrue(side.wait_until_left())
        self.assert_nothing_held(running)

    def test_nor_behind_an_early_answer_that_is_coded(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [engine.url]}})
        client = self.enter(running.connect())
        client.send(self.head(f"Content-Length: {len(BEGIN) + len(END)}") + BEGIN)
        side = engine.accept()
        side.take_until(FILE)
        body = gzip.compress(b'{"text": "enough"}')
        coded = b"Content-Type: application/json\r\nContent-Encoding: gzip\r\n"
        side.send(b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n%b" % (coded, len(body), body))
        client.send(END)
        self.assertEqual(client.read_response().json(), {"text": "enough"})
        self.assertTrue(side.wait_until_left())

    def test_behind_a_form_that_was_sent_to_its_end_the_connection_is_used_again(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [engine.url]}})
        client = self.enter(running.connect())
        client.send(self.head("Transfer-Encoding: chunked") + chunked(BEGIN))
        side = engine.accept()
        side.take_until(FILE)
        client.send(chunked(b"\r\n" + END) + b"0\r\n\r\n")
        side.take_until(b"0\r\n\r\n")
        side.send(json_answer({"text": "said"}))
        self.assertEqual(client.read_response().json(), {"text": "said"})
        client.request("POST", SPEECH, {"input": "hi"})
        self.assertEqual(side.read_request().json["input"], "hi")

    def test_a_form_goes_to_one_engine_at_a_time(self) -> None:
        engines = [self.scripted(), self.scripted()]
        running = self.serve(
            {"m": {"engines": [engine.url for engine in engines], "hedge_after_ms": 10, "hedge_ratio": 1}}
        )
        client = self.sent(running, field("model", b"m") + file(b"x") + END)
        eventually(lambda: not all(engine.nobody_waits() for engine in engines))
        first = next(engine for engine in engines if not engine.nobody_waits())
        side = first.accept()
        side.take_until(END)
        time.sleep(0.3)  # so that another would be asked
        self.assertTrue(all(engine.nobody_waits() for engine in engines))
        side.send(json_answer({"text": "said"}))
        self.assertEqual(client.read_response().status, 200)

    def test_chunks_that_are_passed_on_are_counted(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [engine.url]}}, MAX_UPLOAD_BYTES=10_000)
        client = self.enter(running.connect())
        client.send(self.head("Transfer-Encoding: chunked") + b"%x\r\n%b\r\n" % (len(BEGIN), BEGIN))
        side = engine.accept()
        side.take_until(FILE)
        for _ in range(3):
            client.send(b"fa0\r\n" + b"x" * 4000 + b"\r\n")
            time.sleep(0.05)
        self.assert_error(client.read_response(), 413, "body_too_large")
        self.assertTrue(side.wait_until_left())
        self.assert_nothing_held(running)

    def test_the_gateway_s_end_cuts_a_form_off_whose_client_is_silent(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [engine.url]}})
        client = self.enter(running.connect())
        client.send(self.head("Content-Length: 100000000") + BEGIN)
        side = engine.accept()
        side.take_until(FILE)
        running.stop()
        self.assert_error(client.read_response(), 503, "draining")
        self.assertTrue(side.wait_until_left())

    def test_who_waits_to_send_no_form_is_not_told_to_go_on(self) -> None:
        running = self.serve({"m": {"engines": [self.engine().url]}})
        client = self.enter(running.connect())
        client.send(self.head("Content-Length: 100000", "Expect: 100-continue", kind="application/json"))
        self.assert_error(client.read_response(), 415, "unsupported_media_type")

    def test_what_has_been_sent_is_sent_to_no_other_engine(self) -> None:
        first, second = self.scripted(), self.engine()
        running = self.serve({"m": {"engines": [first.url, second.url]}})
        client = self.enter(running.connect())
        client.send(self.head("Content-Length: 300000") + BEGIN)
        side = first.accept()
        side.take_until(b"\r\n\r\n")
        client.send(b"x" * 100_000)
        side.take(100_000)
        side.close()
        client.send(b"x" * 1000)
        answer = client.read_response()
        self.assertEqual(answer.status, 502, answer.body)
        self.assertEqual(second.stats()["requests"], 0)
        self.assert_nothing_held(running)

    def test_one_that_has_come_whole_is(self) -> None:
        first, second = self.scripted(), self.engine()
        running = self.serve({"m": {"engines": [first.url, second.url]}})
        client = self.sent(running, field("model", b"m") + file(b"x" * 10_000) + END)
        first.accept().close()
        self.assert_answered_by(client.read_response(), second.port, attempts=2)

    def test_an_engine_that_is_not_there_costs_a_form_nothing(self) -> None:
        good = self.engine()
        running = self.serve({"m": {"engines": [dead_url(), good.url]}})
        for _ in range(3):
            client = self.enter(running.connect())
            body = field("model", b"m") + file(b"x" * 3_000_000) + END
            client.send(self.head(f"Content-Length: {len(body)}") + body)
            self.assert_answered_by(client.read_response(), good.port)

    def test_a_model_that_is_named_later_reaches_no_engine(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [engine.url]}, "other": {"engines": [engine.url]}})
        whole = field("model", b"m") + file(b"x") + field("model", b"other") + END
        self.assert_error(self.sent(running, whole).read_response(), 400, "invalid_body")
        self.assertTrue(engine.nobody_waits())
        client = self.enter(running.connect())
        client.send(self.head("Content-Length: 300000") + BEGIN)
        side = engine.accept()
        side.take_until(FILE)
        client.send(b"x" * 100_000 + b"\r\n--xy")
        side.take(100_000)
        client.send(b"z\r\n" + field("model", b"other")[7:] + END)
        self.assert_error(client.read_response(), 400, "invalid_body")
        self.assertTrue(side.wait_until_left())
        self.assert_nothing_held(running)
        self.assertEqual(set(self.states(running)), {"up"})

    def test_a_form_without_an_end_is_refused(self) -> None:
        running = self.serve({"m": {"engines": [self.engine().url]}})
        for body in (b"", FILE, FILE + b"\r\n" + field("model", b"m")[:-2]):
            self.assert_error(self.sent(running, body).read_response(), 400, "invalid_body")

    def test_what_is_no_form_or_too_large_is_refused(self) -> None:
        engine = self.engine()
        running = self.serve({"m": {"engines": [engine.url]}}, MAX_UPLOAD_BYTES=1000, MAX_BODY_BYTES=500)
        for kind, body, status, code in (
            ("application/json", b"{}", 415, "unsupported_media_type"),
            ("multipart/form-data", b"{}", 400, "invalid_body"),
            (KIND, b"no boundary at all", 400, "invalid_body"),
            (KIND, field("model", b"m") + file(b"x" * 1000) + END, 413, "body_too_large"),
            (KIND, field("model", b"other") + END, 404, "model_not_found"),
        ):
            with self.subTest(kind=kind, body=body[:60]), self.enter(running.connect()) as client:
                client.send(self.head(f"Content-Length: {len(body)}", kind=kind) + body)
                self.assert_error(client.read_response(), status, code)
        with self.enter(running.connect()) as client:  # the model is behind so much
            client.send(self.head("Content-Length: 900") + file(b"x" * 600))
            self.assert_error(client.read_response(), 413, "body_too_large")
        with self.enter(running.connect()) as client:  # in chunks, of which one is too large
            client.send(self.head("Transfer-Encoding: chunked") + b"900\r\n" + field("model", b"m"))
            self.assert_error(client.read_response(), 413, "body_too_large")
        self.assertEqual(engine.stats()["requests"], 0)

    def test_a_body_that_ends_early_is_no_request(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [engine.url]}})
        client = self.enter(running.connect())
        client.send(self.head("Content-Length: 1000", "X-Request-ID: early") + BEGIN)
        side = engine.accept()
        client.sock.shutdown(socket.SHUT_WR)
        self.assert_error(client.read_response(), 400, "bad_request")
        self.assertTrue(side.wait_until_left())
        self.assert_nothing_held(running)


if __name__ == "__main__":
    unittest.main()
