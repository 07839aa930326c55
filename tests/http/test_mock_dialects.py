"""The mock engine over real sockets, in every dialect: failures, broken streams, keys, switches, bodies."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any

from gateway.mock.behaviours import BehaviourError
from gateway.mock.server import MockEngine
from tests.http.test_mock_engine import (
    CHAT,
    HI,
    TIMEOUT_S,
    MockEngineTestCase,
    ask,
    post,
    raw_request,
    raw_socket,
    read_to_end,
    read_until,
)

MESSAGES = "/v1/messages"
RESPONSES = "/v1/responses"
SPEECH = "/v1/audio/speech"
BODY_BY_PATH: dict[str, Any] = {CHAT: HI, MESSAGES: {**HI, "max_tokens": 99}, RESPONSES: {"input": "hi there"}}
STREAMS = [(path, {**body, "stream": True}) for path, body in BODY_BY_PATH.items()]
LAST_BY_PATH = {CHAT: b"data: [DONE]", MESSAGES: b"event: message_stop", RESPONSES: b"event: response.completed"}
DELTA_BY_PATH = {CHAT: b'"content":"', MESSAGES: b"_delta", RESPONSES: b"output_text.delta\n"}
FORM = (
    b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nw\r\n--b\r\n'
    b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n\r\n--x\r\n--b--\r\n'
)


class DialectTestCase(MockEngineTestCase):
    def setUp(self) -> None:
        self.mock: MockEngine = self.engine(lacks="")

    def streamed(self, path: str, body: Any) -> bytes:
        status, headers, raw = ask(self.mock, "POST", path, body)
        self.assertEqual((status, headers["content-type"]), (200, "text/event-stream"))
        return raw


class FailuresTest(DialectTestCase):
    def test_errors_have_their_dialects_shape(self) -> None:
        for name, status, kind in (
            ("error", 500, "api_error"),
            ("overloaded", 529, "overloaded_error"),
            ("rate_limit", 429, "rate_limit_error"),
            ("unauthorized", 401, "authentication_error"),
            ("bad_request", 400, "invalid_request_error"),
            ("loading", 503, "api_error"),
        ):
            self.mock.control(name, retry_after=3)
            for path, body in STREAMS:
                with self.subTest(path):
                    found, headers, answer = post(self.mock, body, path)
                    self.assertEqual((found, headers["retry-after"]), (status, "3"))
                    if path == MESSAGES:
                        self.assertEqual((answer["type"], answer["error"]["type"]), ("error", kind))
                        self.assertTrue(headers["request-id"].startswith("req_"))
                    else:
                        self.assertEqual(answer["error"]["code"], status)
        self.assertEqual(post(self.mock, {}, MESSAGES)[2]["type"], "error")

    def test_a_behaviour_may_end_after_some_requests(self) -> None:
        self.mock.control("rate_limit", times=2, delay=0)
        self.assertEqual([post(self.mock)[0] for _ in range(4)], [429, 429, 200, 200])
        self.assertEqual(self.mock.stats()["behaviour"], "rate_limit")

    def test_structured_output_is_spoilt_as_often_as_wanted(self) -> None:
        schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
        body = {**HI, "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}}
        self.mock.control("misfit", times=1, events=50)
        texts = [post(self.mock, body)[2]["choices"][0]["message"]["content"] for _ in range(2)]
        self.assertEqual([json.loads(text) for text in texts], [{"a": ["misfit"]}, {"a": 1}])


class StreamsTest(DialectTestCase):
    def test_the_last_event_is_their_own_and_may_be_left_out(self) -> None:
        for name in ("ok", "no_done"):
            self.mock.control(name)
            for path, body in STREAMS:
                with self.subTest(path):
                    raw = self.streamed(path, body)
                    self.assertEqual(LAST_BY_PATH[path] in raw, name == "ok")
                    self.assertGreaterEqual(raw.count(DELTA_BY_PATH[path]), 8)

    def test_connections_are_cut_after_so_many_pieces_of_text(self) -> None:
        for name in ("drop_mid_stream", "truncate"):
            self.mock.control(name, after=3)
            for path, body in STREAMS:
                with self.subTest(path):
                    with self.assertRaises(http.client.IncompleteRead) as caught:
                        self.streamed(path, body)
                    self.assertNotIn(LAST_BY_PATH[path], caught.exception.partial)
                    self.assertIn(b"from ", caught.exception.partial)
                    self.assertNotIn(b"there", caught.exception.partial.rpartition(b"response.in_progress")[2])

    def test_an_error_event_may_be_the_last_or_the_only_one(self) -> None:
        for name in ("error_mid_stream", "error_first_event"):
            self.mock.control(name, status=529)
            for path, body in STREAMS:
                with self.subTest(path):
                    *before, last, end = self.streamed(path, body).split(b"\n\n")
                    event = json.loads(last.rpartition(b"data: ")[2])
                    self.assertEqual((bool(before), end), (name == "error_mid_stream", b""))
                    if path == CHAT:
                        self.assertEqual(event["error"]["code"], 529)
                    else:
                        self.assertTrue(last.startswith(b"event: error\n"))
                        self.assertEqual(event["type"], "error")
                    if path == MESSAGES:
                        self.assertEqual(event["error"]["type"], "overloaded_error")
                    elif path == RESPONSES:
                        self.assertEqual(event["sequence_number"], len(before))

    def test_an_event_that_is_not_json_has_a_name_where_events_have_names(self) -> None:
        self.mock.control("malformed", after=1)
        for path, body in STREAMS:
            with self.subTest(path):
                last = self.streamed(path, body).split(b"\n\n")[-2]
                self.assertEqual(last.startswith(b"event: "), path != CHAT)
                self.assertRaises(ValueError, json.loads, last.rpartition(b"data: ")[2])

    def test_silence_lasts_until_the_caller_leaves_or_the_behaviour_changes(self) -> None:
        for number, (path, body) in enumerate(STREAMS, 1):
            with self.subTest(path):
                self.mock.control("hang_mid_stream", after=1)
                with raw_socket(self.mock, raw_request(body, path=path)) as sock:
                    read_until(sock, b"Mock ")
                    sock.settimeout(0.02)
                    with self.assertRaises(socket.timeout):
                        while sock.recv(65536):
                            pass
                self.assertTrue(self.mock.wait_for_cancelled(number, TIMEOUT_S))
                with raw_socket(self.mock, raw_request(body, path=path)) as sock:
                    read_until(sock, b"Mock ")
                    self.mock.control("ok")
                    self.assertNotIn(LAST_BY_PATH[path], read_to_end(sock))

    def test_a_gate_holds_every_dialects_streams(self) -> None:
        for path, body in STREAMS:
            with self.subTest(path):
                with self.mock.hold_after(0) as gate, raw_socket(self.mock, raw_request(body, path=path)) as sock:
                    self.assertTrue(gate.wait_for_held(1, TIMEOUT_S))
                    gate.release()
                    read_until(sock, LAST_BY_PATH[path])


class SwitchesTest(DialectTestCase):
    def test_a_key_is_asked_for_in_its_dialects_header(self) -> None:
        engine = self.engine(api_key="k", lacks="")
        version = {"anthropic-version": "2023-06-01"}
        cases: list[tuple[str, dict[str, str], int]] = [
            (CHAT, {}, 401),
            (CHAT, {"x-api-key": "k"}, 401),
            (CHAT, {"Authorization": "Bearer k"}, 200),
            (RESPONSES, {"Authorization": "Bearer k"}, 200),
            (MESSAGES, {"x-api-key": "k"}, 400),
            (MESSAGES, {"x-api-key": "z", **version}, 401),
            (MESSAGES, {"x-api-key": "k", **version}, 200),
            (MESSAGES, {"Authorization": "Bearer k", **version}, 200),
        ]
        for path, headers, expected in cases:
            with self.subTest(path, **headers):
                self.assertEqual(post(engine, BODY_BY_PATH[path], path, **headers)[0], expected)
        self.assertEqual(ask(engine, "GET", "/v1/models")[0], 401)
        self.assertEqual(ask(engine, "GET", "/health")[0], 200)

    def test_models_are_listed_in_the_shape_of_who_asks(self) -> None:
        for headers, key in (({}, "object"), ({"anthropic-version": "2023-06-01"}, "has_more")):
            listed = json.loads(ask(self.mock, "GET", "/v1/models", **headers)[2])
            self.assertIn(key, listed)
            self.assertEqual(listed["data"][0]["id"], "mock")

    def test_endpoints_can_be_switched_off_and_are_counted_all_the_same(self) -> None:
        engine = self.engine()
        self.assertEqual(post(engine, BODY_BY_PATH[RESPONSES], RESPONSES)[0], 404)
        engine.lack("messages, rerank,props", 501)
        for method, path in (("POST", MESSAGES), ("POST", "/v1/rerank"), ("GET", "/props")):
            self.assertEqual(ask(engine, method, path, {} if method == "POST" else None)[0], 501)
        self.assertEqual(post(engine, BODY_BY_PATH[RESPONSES], RESPONSES)[0], 200)
        self.assertEqual(engine.stats()["requests"], 5)
        self.assertRaisesRegex(BehaviourError, "nothing", engine.lack, "chat/completions,nothing")

    def test_tokens_are_counted(self) -> None:
        self.assertEqual(post(self.mock, HI, f"{MESSAGES}/count_tokens")[2], {"input_tokens": 2})


class PassingTest(DialectTestCase):
    def test_json_endpoints_answer(self) -> None:
        bodies: dict[str, Any] = {
            "/v1/rerank": {"query": "a", "documents": ["a", "b"]},
            "/v1/moderations": {"input": "violence"},
            "/v1/images/generations": {"prompt": "a cat"},
            "/tokenize": {"content": "ab"},
            "/detokenize": {"tokens": [97]},
        }
        answers = {path: post(self.mock, body, path)[2] for path, body in bodies.items()}
        self.assertTrue(answers["/v1/moderations"]["results"][0]["categories"]["violence"])
        self.assertEqual(answers["/detokenize"], {"content": "a"})
        self.assertEqual(json.loads(ask(self.mock, "GET", "/props")[2])["total_slots"], 1)
        self.assertEqual(len(json.loads(ask(self.mock, "GET", "/slots")[2])), 1)
        self.assertEqual(ask(self.mock, "POST", "/props", {})[0], 405)

    def test_a_form_is_read_however_it_is_sent(self) -> None:
        kind = {"Content-Type": "multipart/form-data; boundary=b"}
        path = "/v1/audio/transcriptions"
        pieces = (FORM[at : at + 7] for at in range(0, len(FORM), 7))
        for chunked in (False, True):
            connection = http.client.HTTPConnection("127.0.0.1", self.mock.port, timeout=TIMEOUT_S)
            self.addCleanup(connection.close)
            connection.request("POST", path, pieces if chunked else FORM, kind, encode_chunked=chunked)
            answer = json.loads(connection.getresponse().read())
            self.assertIn("a.wav, 5 bytes, for w", answer["text"])
        self.assertEqual(self.mock.requests[-1]["body"]["file"]["bytes"], 5)
        text = FORM.replace(
            b"--b--", b'--b\r\nContent-Disposition: form-data; name="response_format"\r\n\r\ntext\r\n--b--'
        )
        status, headers, raw = ask(self.mock, "POST", path, text, **kind)
        self.assertEqual((status, headers["content-type"][:10], raw[-1:]), (200, "text/plain", b"\n"))
        self.assertEqual(ask(self.mock, "POST", path, FORM[:-9], **kind)[0], 400)

    def test_speech_is_streamed_bytes_that_can_be_cut_off(self) -> None:
        body = {"input": "hello", "response_format": "wav"}
        status, headers, raw = ask(self.mock, "POST", SPEECH, body)
        self.assertEqual((status, headers["content-type"], len(raw)), (200, "audio/wav", 16 * 1024))
        self.assertEqual(headers["transfer-encoding"], "chunked")
        for name in ("drop_mid_stream", "truncate"):
            self.mock.control(name, after=2)
            with self.assertRaises(http.client.IncompleteRead) as caught:
                ask(self.mock, "POST", SPEECH, body)
            self.assertTrue(raw.startswith(caught.exception.partial))
            self.assertGreaterEqual(len(caught.exception.partial), 2 * 1024)
        self.mock.control("truncate", after=500)
        with self.assertRaises(http.client.IncompleteRead):
            ask(self.mock, "POST", SPEECH, body)
        self.mock.control("plain_json")
        self.assertEqual(ask(self.mock, "POST", SPEECH, body)[1]["content-length"], str(16 * 1024))
