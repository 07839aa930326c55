"""The mock engine over real sockets: every behaviour, the control endpoint, counts and gates."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional
from unittest import mock

from gateway.mock.behaviours import BehaviourError
from gateway.mock.server import MockEngine, _Server
from tests.parallel import alone
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
CHAT = "/v1/chat/completions"
HI: dict[str, Any] = {"model": "x", "messages": [{"role": "user", "content": "hi there"}]}
TIMEOUT_S = 20.0
LINGER = "hh" if os.name == "nt" else "ii"


def connect(engine: MockEngine) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", engine.port, timeout=TIMEOUT_S)


def ask(
    engine: MockEngine, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    with contextlib.closing(connect(engine)) as connection:
        sent = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        connection.request(method, path, sent, headers)
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        return response.status, found, response.read()


def post(engine: MockEngine, body: Any = None, path: str = CHAT, **headers: str) -> Any:
    """Ask and return (status, headers, parsed body)."""
    status, found, raw = ask(engine, "POST", path, HI if body is None else body, **headers)
    return status, found, json.loads(raw)


def raw_request(body: Any, version: str = "HTTP/1.1", path: str = CHAT) -> bytes:
    encoded = json.dumps(body).encode()
    head = f"POST {path} {version}\r\nHost: mock\r\nContent-Length: {len(encoded)}\r\n\r\n"
    return head.encode() + encoded


def raw_socket(engine: MockEngine, sent: bytes = b"") -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", engine.port), timeout=TIMEOUT_S)
    if sent:
        sock.sendall(sent)
    return sock


def read_until(sock: socket.socket, mark: bytes) -> bytes:
    seen = b""
    while mark not in seen:
        data = sock.recv(65536)
        if not data:
            raise AssertionError(f"closed before {mark!r}: {seen!r}")
        seen += data
    return seen


def read_to_end(sock: socket.socket) -> bytes:
    seen = b""
    while True:
        data = sock.recv(65536)
        if not data:
            return seen
        seen += data


def dechunked(raw: bytes) -> tuple[bytes, bool]:
    """Return the data of a chunked body as far as it goes, and whether it was terminated."""
    data = b""
    while True:
        line, mark, raw = raw.partition(b"\r\n")
        if not mark:
            return data, False
        size = int(line, 16)
        if size == 0:
            return data, True
        data, raw = data + raw[:size], raw[size + 2 :]


def events_of(body: bytes) -> list[Any]:
    """Return the events of a well-formed stream, parsed; [DONE] stays text."""
    blocks = body.decode().split("\n\n")
    assert blocks.pop() == "", body
    texts = [block[len("data: ") :] for block in blocks if block.startswith("data: ")]
    assert len(texts) == len(blocks), body
    return [text if text == "[DONE]" else json.loads(text) for text in texts]


def content_of(events: list[Any]) -> str:
    return "".join(
        choice["delta"].get("content") or "" for event in events if event != "[DONE]" for choice in event["choices"]
    )


def stream(engine: MockEngine, **extra: Any) -> bytes:
    """Return the body of a streamed chat answer. Raises IncompleteRead when it is cut."""
    status, headers, raw = ask(engine, "POST", CHAT, {**HI, "stream": True, **extra})
    assert (status, headers["content-type"]) == (200, "text/event-stream"), (status, raw)
    return raw


class MockEngineTestCase(unittest.TestCase):
    def engine(self, *args: Any, **options: Any) -> MockEngine:
        engine = MockEngine(*args, **options).start()
        self.addCleanup(engine.close)
        return engine


class AnswersTest(MockEngineTestCase):
    def test_health_and_models_answer_and_are_not_counted_as_requests(self) -> None:
        engine = self.engine(model="13b")
        self.assertEqual(json.loads(ask(engine, "GET", "/health")[2]), {"status": "ok"})
        listed = json.loads(ask(engine, "GET", "/v1/models")[2])
        self.assertEqual([model["id"] for model in listed["data"]], ["13b"])
        stats = engine.stats()
        self.assertEqual((stats["requests"], stats["probes"]), (0, 2))

    def test_chat_answers_in_openai_shape_with_the_last_user_text(self) -> None:
        engine = self.engine(model="13b")
        parts = [{"type": "text", "text": "what "}, {"type": "text", "text": "now"}]
        messages = [
            {"role": "user", "content": "first"},
            {"role": "user", "content": parts},
            {"role": "assistant", "content": "later"},
        ]
        status, headers, answer = post(engine, {"messages": messages})
        self.assertEqual(status, 200)
        self.assertEqual(headers["content-type"], "application/json")
        self.assertEqual((answer["object"], answer["model"]), ("chat.completion", "13b"))
        choice = answer["choices"][0]
        expected = f"Mock answer from 13b at {engine.port}: what now"
        self.assertEqual(choice["message"], {"role": "assistant", "content": expected})
        self.assertEqual(choice["finish_reason"], "stop")
        usage = {"prompt_tokens": 4, "completion_tokens": 8, "total_tokens": 12}
        self.assertEqual(answer["usage"], usage)

    def test_max_tokens_stop_and_n_are_honoured(self) -> None:
        engine = self.engine()
        answer = post(engine, {**HI, "max_tokens": 2, "n": 3})[2]
        self.assertEqual(
            [(c["index"], c["message"]["content"], c["finish_reason"]) for c in answer["choices"]],
            [(index, "Mock answer ", "length") for index in range(3)],
        )
        self.assertEqual(answer["usage"]["completion_tokens"], 6)
        answer = post(engine, {**HI, "stop": ["mock", " answer"], "max_completion_tokens": 9})[2]
        self.assertEqual(answer["choices"][0]["message"]["content"], "Mock")
        self.assertEqual(answer["choices"][0]["finish_reason"], "stop")

    def test_completions_answer_every_prompt(self) -> None:
        engine = self.engine()
        answer = post(engine, {"prompt": ["a", "b"]}, "/v1/completions")[2]
        self.assertEqual(answer["object"], "text_completion")
        self.assertEqual([choice["text"][-3:] for choice in answer["choices"]], [": a", ": b"])

    def test_embeddings_are_stable_unit_vectors_in_both_encodings(self) -> None:
        engine = self.engine()
        answer = post(engine, {"input": ["a", "b"], "dimensions": 4}, "/v1/embeddings")[2]
        first, second = (item["embedding"] for item in answer["data"])
        self.assertEqual(len(first), 4)
        self.assertNotEqual(first, second)
        self.assertAlmostEqual(sum(value * value for value in first), 1.0)
        self.assertEqual(answer["usage"], {"prompt_tokens": 2, "total_tokens": 2})
        asked = {"input": "a", "dimensions": 4, "encoding_format": "base64"}
        packed = post(engine, asked, "/v1/embeddings")[2]["data"][0]["embedding"]
        for value, expected in zip(struct.unpack("<4f", base64.b64decode(packed)), first):
            self.assertAlmostEqual(value, expected, places=6)

    def test_a_stream_has_role_content_finish_usage_and_done_in_order(self) -> None:
        engine = self.engine()
        events = events_of(stream(engine, stream_options={"include_usage": True}))
        self.assertEqual(events[0]["choices"][0]["delta"], {"role": "assistant", "content": ""})
        self.assertEqual(content_of(events), f"Mock answer from mock at {engine.port}: hi there")
        self.assertEqual(len(events), 1 + 8 + 3)
        self.assertEqual(events[-3]["choices"][0]["finish_reason"], "stop")
        self.assertEqual((events[-2]["choices"], events[-2]["usage"]["total_tokens"]), ([], 10))
        self.assertEqual(events[-1], "[DONE]")
        unasked = events_of(stream(engine))
        self.assertFalse(any("usage" in event for event in unasked if event != "[DONE]"))

    def test_events_sets_the_number_of_content_events(self) -> None:
        engine = self.engine()
        for wanted in (0, 3, 8, 20):
            engine.control("ok", events=wanted)
            events = events_of(stream(engine))
            self.assertEqual(len(events), 1 + wanted + 2)
            whole = post(engine)[2]["choices"][0]["message"]["content"]
            self.assertEqual(content_of(events), whole)

    def test_completions_stream_and_http_1_0_streams_end_with_the_connection(self) -> None:
        engine = self.engine()
        body = {"prompt": "p", "stream": True}
        with raw_socket(engine, raw_request(body, "HTTP/1.0", "/v1/completions")) as sock:
            head, _, events = read_to_end(sock).partition(b"\r\n\r\n")
        self.assertNotIn(b"chunked", head.lower())
        parsed = events_of(events)
        self.assertEqual(parsed[0]["choices"][0]["text"], "Mock ")
        self.assertEqual(parsed[-2]["choices"][0]["finish_reason"], "stop")

    def test_a_body_that_cannot_be_answered_is_400(self) -> None:
        engine = self.engine()
        bodies = (b"{", b"[]", {}, {"messages": []}, {"messages": ["x"]}, b"[" * 100_000)
        for body in bodies:
            status, _, answer = post(engine, body)
            self.assertEqual((status, answer["error"]["type"]), (400, "invalid_request_error"))
        self.assertEqual(post(engine, {"input": 3}, "/v1/embeddings")[0], 400)
        self.assertEqual(post(engine)[0], 200)

    def test_text_is_sent_as_utf_8_and_a_lone_surrogate_survives(self) -> None:
        engine = self.engine()
        for text, sent in (("grüße 🙂", "grüße 🙂".encode()), ("\ud800", b"\\ud800")):
            asked = {"messages": [{"role": "user", "content": text}]}
            raw = ask(engine, "POST", CHAT, asked)[2]
            self.assertIn(sent, raw)

    def test_a_connection_is_kept_and_unknown_paths_and_methods_are_refused(self) -> None:
        engine = self.engine()
        with contextlib.closing(connect(engine)) as connection:
            for method, path, expected in (
                ("GET", "/nowhere", 404),
                ("GET", CHAT, 405),
                ("POST", "/health", 405),
                ("GET", "/health", 200),
            ):
                connection.request(method, path)
                response = connection.getresponse()
                response.read()
                self.assertEqual(response.status, expected)
        self.assertEqual(engine.stats()["connections_total"], 1)

    def test_chunked_bodies_and_expect_are_understood(self) -> None:
        engine = self.engine()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: m\r\nTransfer-Encoding: chunked\r\n"
        with raw_socket(engine, head.encode() + b"Expect: 100-continue\r\n\r\n") as sock:
            self.assertEqual(read_until(sock, b"\r\n\r\n"), b"HTTP/1.1 100 Continue\r\n\r\n")
            body = json.dumps(HI).encode()
            half = len(body) // 2
            for piece in (body[:half], body[half:]):
                sock.sendall(b"%x;x=y\r\n%b\r\n" % (len(piece), piece))
            sock.sendall(b"0\r\nTrailer: t\r\n\r\n")
            self.assertIn(b"200 OK", read_until(sock, b"hi there"))
        self.assertEqual(engine.requests[0]["body"], HI)

    def test_garbage_is_refused_and_closed(self) -> None:
        engine = self.engine()
        for garbage in (b"rubbish\r\n\r\n", b"GET / HTTP/1.1\r\nno colon\r\n\r\n"):
            with raw_socket(engine, garbage) as sock:
                self.assertTrue(read_to_end(sock).startswith(b"HTTP/1.1 400 "))


class FailuresTest(MockEngineTestCase):
    def test_answers_with_an_error_status(self) -> None:
        engine = self.engine()
        cases: list[tuple[str, dict[str, Any], int, str]] = [
            ("error", {}, 500, "server_error"),
            ("error", {"status": 418}, 418, "server_error"),
            ("rate_limit", {}, 429, "rate_limit_error"),
            ("unauthorized", {}, 401, "authentication_error"),
            ("bad_request", {}, 400, "invalid_request_error"),
            ("loading", {}, 503, "unavailable_error"),
        ]
        for name, options, expected, kind in cases:
            engine.control(name, **options)
            for streaming in (False, True):
                with self.subTest(name, streaming=streaming):
                    status, headers, answer = post(engine, {**HI, "stream": streaming})
                    self.assertEqual((status, answer["error"]["type"]), (expected, kind))
                    self.assertNotIn("retry-after", headers)

    def test_retry_after_is_sent_when_given(self) -> None:
        engine = self.engine(behaviour="rate_limit", retry_after=7)
        self.assertEqual(post(engine)[1]["retry-after"], "7")
        engine.control("error", status=503, retry_after=0.5)
        self.assertEqual(post(engine)[1]["retry-after"], "0.5")

    def test_only_loading_shows_on_health(self) -> None:
        engine = self.engine()
        for name in ("hang", "error", "reset", "rate_limit", "malformed", "drip"):
            engine.control(name)
            self.assertEqual(ask(engine, "GET", "/health")[0], 200, name)
        engine.control("loading")
        self.assertEqual(ask(engine, "GET", "/health")[0], 503)

    def test_flaky_fails_by_ratio_in_the_order_of_its_seed(self) -> None:
        engine = self.engine()
        runs = []
        for _ in range(2):
            engine.control("flaky", ratio=0.3, seed=7)
            runs.append([post(engine)[0] for _ in range(30)])
        dice = random.Random(7)
        self.assertEqual(runs[0], [500 if dice.random() < 0.3 else 200 for _ in range(30)])
        self.assertEqual(runs[0], runs[1])
        for ratio, expected in ((0, 200), (1, 500)):
            engine.control("flaky", ratio=ratio)
            self.assertEqual({post(engine)[0] for _ in range(5)}, {expected})

    def test_reset_resets_before_any_byte(self) -> None:
        engine = self.engine(behaviour="reset")
        for streaming in (False, True):
            with raw_socket(engine, raw_request({**HI, "stream": streaming})) as sock:
                with self.assertRaises(ConnectionResetError):
                    sock.recv(1)
        self.assertEqual(engine.stats()["in_flight"], 0)
        self.assertEqual(engine.stats()["cancelled"], 0)

    def test_refuse_closes_everything_then_listens_again_on_the_same_port(self) -> None:
        engine = self.engine()
        with raw_socket(engine) as idle:
            status, headers, _ = ask(engine, "POST", "/control", {"behaviour": "refuse", "seconds": 0.2})
            self.assertEqual((status, headers["connection"]), (200, "close"))
            with self.assertRaises(ConnectionRefusedError):
                raw_socket(engine)
            self.assertEqual(idle.recv(1), b"")
        ends_at = time.monotonic() + TIMEOUT_S
        while time.monotonic() < ends_at:  # bounded polling: refused until it listens
            try:
                self.assertEqual(post(engine)[0], 200)
                break
            except ConnectionRefusedError:
                threading.Event().wait(0.01)
        self.assertEqual(engine.stats()["behaviour"], "ok")

    def test_refuse_from_the_start_and_ended_early(self) -> None:
        engine = self.engine(behaviour="refuse", seconds=3600)
        with self.assertRaises(ConnectionRefusedError):
            raw_socket(engine)
        engine.control("ok")
        self.assertEqual(post(engine)[0], 200)
        engine.control("refuse", seconds=3600)
        with self.assertRaises(ConnectionRefusedError):
            raw_socket(engine)

    def test_refuse_cuts_requests_in_flight_without_counting_them_cancelled(self) -> None:
        engine = self.engine(behaviour="hang")
        with raw_socket(engine, raw_request(HI)) as sock:
            self.assertTrue(engine.wait_for_requests(1, TIMEOUT_S))
            engine.control("refuse", seconds=3600)
            self.assertEqual(read_to_end(sock), b"")
        self.assertTrue(engine.wait_for_idle(TIMEOUT_S))
        self.assertEqual(engine.stats()["cancelled"], 0)

    def test_malformed_is_not_json(self) -> None:
        engine = self.engine(behaviour="malformed")
        status, _, raw = ask(engine, "POST", CHAT, HI)
        self.assertEqual(status, 200)
        self.assertRaises(ValueError, json.loads, raw)
        for after, good in ((0, 0), (2, 3)):
            engine.control("malformed", after=after)
            blocks = stream(engine).split(b"\n\n")
            self.assertEqual(len(blocks), good + 2)
            self.assertRaises(ValueError, json.loads, blocks[good][len(b"data: ") :])

    def test_truncate_sends_less_than_it_announces(self) -> None:
        engine = self.engine(behaviour="truncate")
        with self.assertRaises(http.client.IncompleteRead) as caught:
            ask(engine, "POST", CHAT, HI)
        self.assertGreater(len(caught.exception.partial), 0)
        with raw_socket(engine, raw_request({**HI, "stream": True})) as sock:
            raw = read_to_end(sock).partition(b"\r\n\r\n")[2]
        data, terminated = dechunked(raw)
        self.assertFalse(terminated)
        self.assertEqual(data.count(b"\n\n"), 2)
        self.assertTrue(data.rpartition(b"\n\n")[2].startswith(b"data: {"))

    def test_streams_end_early_in_three_ways(self) -> None:
        engine = self.engine()
        for name, after in (
            ("drop_mid_stream", 3),
            ("drop_mid_stream", 0),
            ("drop_mid_stream", 500),
            ("end_mid_stream", 3),
        ):
            with self.subTest(name, after=after):
                engine.control(name, after=after)
                with raw_socket(engine, raw_request({**HI, "stream": True})) as sock:
                    if name == "end_mid_stream":
                        raw = read_until(sock, b"\r\n0\r\n\r\n")
                    else:
                        raw = read_to_end(sock)
                data, terminated = dechunked(raw.partition(b"\r\n\r\n")[2])
                self.assertEqual(terminated, name == "end_mid_stream")
                events = events_of(data)
                self.assertEqual(len(events), 1 + min(after, 8))
                self.assertFalse(any(e["choices"][0]["finish_reason"] for e in events))

    def test_drop_counts_events_when_after_is_not_given(self) -> None:
        engine = self.engine(behaviour="drop_mid_stream", events=4)
        with self.assertRaises(http.client.IncompleteRead):
            stream(engine)
        with self.assertRaises(http.client.IncompleteRead):  # and a plain answer is cut
            post(engine)

    def test_reset_mid_stream_resets(self) -> None:
        engine = self.engine(behaviour="reset_mid_stream", after=1, gap=0.05)
        with raw_socket(engine, raw_request({**HI, "stream": True})) as sock:
            read_until(sock, b"Mock ")
            with self.assertRaises(ConnectionResetError):
                read_to_end(sock)

    def test_no_done_no_usage_plain_json_and_error_first_event(self) -> None:
        engine = self.engine(behaviour="no_done")
        asked = {"stream_options": {"include_usage": True}}
        self.assertIn("usage", events_of(stream(engine, **asked))[-1])
        engine.control("no_usage")
        self.assertNotIn("usage", post(engine)[2])
        events = events_of(stream(engine, **asked))
        self.assertEqual(events[-1], "[DONE]")
        self.assertEqual(events[-2]["choices"][0]["finish_reason"], "stop")
        engine.control("plain_json")
        status, headers, answer = post(engine, {**HI, "stream": True})
        self.assertEqual((status, headers["content-type"]), (200, "application/json"))
        self.assertEqual(answer["object"], "chat.completion")
        engine.control("error_first_event")
        self.assertEqual([list(event) for event in events_of(stream(engine))], [["error"]])
        self.assertEqual(post(engine)[0], 500)


class WaitingTest(MockEngineTestCase):
    def test_slow_answers_after_its_delay(self) -> None:
        engine = self.engine(behaviour="slow", delay=0.15)
        for streaming in (False, True):
            with raw_socket(engine, raw_request({**HI, "stream": streaming})) as sock:
                sock.settimeout(0.05)
                self.assertRaises(socket.timeout, sock.recv, 1)
                sock.settimeout(TIMEOUT_S)
                read_until(sock, b"there")

    def test_hang_answers_once_the_behaviour_changes(self) -> None:
        engine = self.engine(behaviour="hang")
        with raw_socket(engine, raw_request(HI)) as sock:
            self.assertTrue(engine.wait_for_requests(1, TIMEOUT_S))
            self.assertEqual(engine.stats()["in_flight"], 1)
            engine.control("error", status=502)
            self.assertTrue(read_until(sock, b"}}").startswith(b"HTTP/1.1 502 "))
        self.assertEqual(engine.stats()["in_flight"], 0)

    def test_drip_sends_one_byte_at_a_time(self) -> None:
        engine = self.engine(behaviour="drip", gap=0.002)
        sizes = []
        with raw_socket(engine, raw_request({**HI, "max_tokens": 1})) as sock:
            seen = b""
            while not seen.endswith(b"}}"):
                sizes.append(sock.recv(65536))
                seen += sizes[-1]
        self.assertTrue(seen.startswith(b"HTTP/1.1 200 OK\r\n"))
        self.assertGreater(len(sizes), len(seen) // 4)
        engine.control("drip", gap=0)
        self.assertEqual(events_of(stream(engine))[-1], "[DONE]")

    @alone
    def test_a_caller_that_leaves_is_counted_however_silent_the_engine_is(self) -> None:
        engine = self.engine()
        silences: list[tuple[str, dict[str, Any], bool]] = [
            ("hang", {}, False),
            ("slow", {"delay": 3600}, False),
            ("slow", {"delay": 3600}, True),
            ("ok", {"gap": 3600}, True),
            ("drip", {"gap": 3600}, True),
        ]
        for number, (name, options, streaming) in enumerate(silences, 1):
            with self.subTest(name, streaming=streaming):
                engine.control(name, **options)
                sock = raw_socket(engine, raw_request({**HI, "stream": streaming}))
                self.assertTrue(engine.wait_for_requests(number, TIMEOUT_S))
                if "gap" in options:
                    sock.recv(1)
                sock.close()
                self.assertTrue(engine.wait_for_cancelled(number, 1.0))
                self.assertEqual(engine.stats()["in_flight"], 0)

    @alone
    def test_a_caller_that_resets_is_counted_too(self) -> None:
        engine = self.engine(behaviour="hang")
        sock = raw_socket(engine, raw_request(HI))
        self.assertTrue(engine.wait_for_requests(1, TIMEOUT_S))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack(LINGER, 1, 0))
        sock.close()
        self.assertTrue(engine.wait_for_cancelled(1, 1.0))

    def test_a_caller_that_leaves_while_bytes_flow_is_counted(self) -> None:
        engine = self.engine(events=1_000_000)
        sock = raw_socket(engine, raw_request({**HI, "stream": True}))
        read_until(sock, b"Mock ")
        sock.close()
        self.assertTrue(engine.wait_for_cancelled(1, TIMEOUT_S))

    def test_a_complete_answer_is_no_cancellation(self) -> None:
        engine = self.engine(gap=0.001)
        stream(engine)
        post(engine)
        self.assertEqual(engine.stats()["in_flight"], 0)
        self.assertEqual(engine.stats()["cancelled"], 0)

    def test_a_watched_connection_serves_its_next_request(self) -> None:
        engine = self.engine(delay=0.001)
        with contextlib.closing(connect(engine)) as connection:
            for _ in range(20):
                connection.request("POST", CHAT, json.dumps({**HI, "stream": True}).encode())
                self.assertIn(b"[DONE]", connection.getresponse().read())
        self.assertEqual(engine.stats()["connections_total"], 1)

    def test_a_gate_stops_a_stream_until_released(self) -> None:
        engine = self.engine()
        with engine.hold_after(2) as gate:
            with raw_socket(engine, raw_request({**HI, "stream": True})) as sock:
                self.assertTrue(gate.wait_for_held(1, TIMEOUT_S))
                seen = read_until(sock, b'"answer "')
                sock.settimeout(0.02)
                self.assertRaises(socket.timeout, sock.recv, 1)
                sock.settimeout(TIMEOUT_S)
                self.assertNotIn(b"from", seen)
                gate.release()
                read_until(sock, b"[DONE]")
            stream(engine)  # a released gate stops nobody

    @alone
    def test_a_caller_that_leaves_at_a_gate_is_counted(self) -> None:
        engine = self.engine()
        with engine.hold_after(0) as gate:
            sock = raw_socket(engine, raw_request({**HI, "stream": True}))
            self.assertTrue(gate.wait_for_held(1, TIMEOUT_S))
            sock.close()
            self.assertTrue(engine.wait_for_cancelled(1, 1.0))

    def test_a_new_gate_releases_the_one_before(self) -> None:
        engine = self.engine()
        first = engine.hold_after(1)
        with raw_socket(engine, raw_request({**HI, "stream": True})) as sock:
            self.assertTrue(first.wait_for_held(1, TIMEOUT_S))
            engine.hold_after(1)
            read_until(sock, b"[DONE]")

    def test_waits_that_are_not_met_say_so(self) -> None:
        engine = self.engine()
        self.assertFalse(engine.wait_for_requests(1, 0.01))
        self.assertFalse(engine.wait_for_cancelled(1, 0.01))
        self.assertFalse(engine.hold_after(1).wait_for_held(1, 0.01))


class ControlTest(MockEngineTestCase):
    def test_what_the_engine_received_can_be_read_here_and_over_http(self) -> None:
        engine = self.engine()
        post(engine, {**HI, "temperature": 0}, **{"X-Request-ID": "r1", "Authorization": "Bearer k"})
        (seen,) = engine.requests
        self.assertEqual((seen["path"], seen["body"]), (CHAT, {**HI, "temperature": 0}))
        self.assertEqual(seen["headers"]["authorization"], "Bearer k")
        listed = json.loads(ask(engine, "GET", "/control/requests")[2])
        self.assertEqual(listed, {"requests": engine.requests})

    def test_only_the_last_requests_are_kept_and_no_huge_body(self) -> None:
        engine = self.engine()
        for number in range(66):
            post(engine, {**HI, "seed": number})
        self.assertEqual([r["body"]["seed"] for r in engine.requests], list(range(2, 66)))
        post(engine, {"messages": [{"role": "system", "content": "x" * (1 << 20)}]})
        self.assertIsNone(engine.requests[-1]["body"])
        self.assertGreater(engine.requests[-1]["body_bytes"], 1 << 20)

    def test_request_ids_are_counted_with_their_duplicates(self) -> None:
        engine = self.engine()
        for request_id in ("a", "b", "a", "a"):
            post(engine, **{"X-Request-ID": request_id})
        post(engine)
        stats = json.loads(ask(engine, "GET", "/control")[2])
        counts = (stats["requests"], stats["request_ids"], stats["duplicates"])
        self.assertEqual(counts, (5, 2, 2))

    def test_control_switches_and_answers_with_what_is_in_force(self) -> None:
        engine = self.engine()
        asked = {"behaviour": "error", "status": 503, "delay": None}
        status, _, stats = post(engine, asked, "/control")
        self.assertEqual((status, stats["behaviour"]), (200, "error"))
        self.assertEqual((stats["options"]["status"], stats["options"]["delay"]), (503, 0.0))
        self.assertEqual(post(engine)[0], 503)
        self.assertLessEqual(
            {"behaviour", "requests", "in_flight", "cancelled", "connections"},
            set(json.loads(ask(engine, "GET", "/control")[2])),
        )

    def test_bad_control_is_400_naming_every_fault_and_changes_nothing(self) -> None:
        engine = self.engine(behaviour="error", status=418)
        cases: list[tuple[Any, list[str]]] = [
            (b"no json", ["not JSON"]),
            ([], ["object"]),
            ({}, ["behaviour"]),
            ({"behaviour": "nice"}, ["nice", "drop_mid_stream"]),
            ({"behaviour": ["ok"]}, ["behaviour"]),
            ({"behaviour": "ok", "colour": 1, "ratio": 2}, ["colour", "ratio"]),
            ({"behaviour": "error", "status": 200}, ["status"]),
            ({"behaviour": "error", "status": "500"}, ["status"]),
            ({"behaviour": "ok", "events": 1.5}, ["events"]),
            ({"behaviour": "ok", "events": True}, ["events"]),
            ({"behaviour": "slow", "delay": -1}, ["delay"]),
            (b'{"behaviour": "slow", "delay": NaN}', ["delay"]),
        ]
        for asked, named in cases:
            with self.subTest(asked):
                status, _, answer = post(engine, asked, "/control")
                self.assertEqual(status, 400)
                for word in named:
                    self.assertIn(word, answer["error"]["message"])
        self.assertEqual(post(engine)[0], 418)

    def test_bad_options_raise_in_process(self) -> None:
        self.assertRaises(BehaviourError, MockEngine, behaviour="nice")
        self.assertRaises(BehaviourError, MockEngine, gap="slow")
        self.assertRaises(BehaviourError, self.engine().control, "ok", after=-1)


class LifeTest(MockEngineTestCase):
    def test_close_ends_every_connection_and_thread(self) -> None:
        before = set(threading.enumerate())
        engine = MockEngine(behaviour="hang").start()
        socks = [raw_socket(engine, raw_request(HI)) for _ in range(5)] + [raw_socket(engine)]
        self.assertTrue(engine.wait_for_requests(5, TIMEOUT_S))
        engine.close()
        for sock in socks:
            with sock:
                self.assertEqual(read_to_end(sock), b"")
        self.assertEqual(set(threading.enumerate()) - before, set())
        self.assertEqual(engine.stats()["in_flight"], 0)
        self.assertRaises(ConnectionRefusedError, raw_socket, engine)
        engine.close()

    def test_close_joins_who_has_closed_its_connection_and_not_ended_yet(self) -> None:
        before = set(threading.enumerate())
        closed, joined = threading.Event(), threading.Event()
        staying: list[threading.Thread] = []
        shutdown_request, join = _Server.shutdown_request, threading.Thread.join

        def close_and_stay(server: _Server, request: Any) -> None:
            shutdown_request(server, request)
            staying.append(threading.current_thread())
            closed.set()
            joined.wait(TIMEOUT_S)

        def note_and_join(thread: threading.Thread, timeout: Optional[float] = None) -> None:
            if thread in staying:
                joined.set()
            join(thread, timeout)

        engine = MockEngine().start()
        self.addCleanup(joined.set)
        with mock.patch.object(_Server, "shutdown_request", close_and_stay):
            with raw_socket(engine, raw_request(HI, "HTTP/1.0")) as sock:
                read_to_end(sock)
            self.assertTrue(closed.wait(TIMEOUT_S))
            with mock.patch.object(threading.Thread, "join", note_and_join):
                engine.close()
        self.assertEqual(set(threading.enumerate()) - before, set())

    def test_a_port_can_be_used_again_after_close_and_not_twice_at_once(self) -> None:
        with MockEngine(port=free_port()) as first:
            post(first)
            self.assertRaises(OSError, MockEngine(port=first.port).start)
        with MockEngine(port=first.port) as second:
            self.assertEqual(second.url, f"http://127.0.0.1:{first.port}/v1")
            self.assertEqual(post(second)[0], 200)

    def test_many_clients_at_once_are_all_answered(self) -> None:
        engine = self.engine()
        statuses: list[int] = []

        def client() -> None:
            with contextlib.closing(connect(engine)) as connection:
                for _ in range(5):
                    connection.request("POST", CHAT, json.dumps(HI).encode())
                    response = connection.getresponse()
                    response.read()
                    statuses.append(response.status)

        threads = [threading.Thread(target=client, name=f"client-{n}") for n in range(64)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT_S)
        self.assertEqual(statuses, [200] * 320)
        self.assertEqual((engine.stats()["requests"], engine.stats()["in_flight"]), (320, 0))

    def test_many_silent_streams_are_watched_at_once(self) -> None:
        engine = self.engine()
        with engine.hold_after(1) as gate:
            socks = [raw_socket(engine, raw_request({**HI, "stream": True})) for _ in range(100)]
            self.assertTrue(gate.wait_for_held(100, TIMEOUT_S))
            for sock in socks[:50]:
                sock.close()
            self.assertTrue(engine.wait_for_cancelled(50, TIMEOUT_S))
            self.assertEqual(engine.stats()["in_flight"], 50)
            gate.release()
            for sock in socks[50:]:
                with sock:
                    read_until(sock, b"[DONE]")
        self.assertEqual(engine.stats()["cancelled"], 50)


class CommandLineTest(MockEngineTestCase):
    def run_mock(self, *args: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway.mock", *args],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return process

    @unittest.skipIf(os.name == "nt", "Windows has no SIGTERM to handle")
    def test_it_prints_where_it_listens_and_a_signal_ends_it_with_exit_0(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            arguments = ["--port", "0", "--model", "7b", "--behaviour", "slow", "--delay", "3600"]
            process = self.run_mock(*arguments)
            assert process.stdout is not None
            line = process.stdout.readline()
            self.assertRegex(line, r"^mock engine 7b at http://127\.0\.0\.1:\d+/v1$")
            port = int(line.rpartition(":")[2].partition("/")[0])
            with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as sock:
                sock.sendall(raw_request(HI))
                process.send_signal(number)
                self.assertEqual(process.wait(TIMEOUT_S), 0)
                self.assertEqual(process.communicate()[1], "")

    def test_faults_at_start_are_one_clear_line(self) -> None:
        process = self.run_mock("--port", "0", "--behaviour", "nice", "--ratio", "3")
        _, errors = process.communicate(timeout=TIMEOUT_S)
        self.assertEqual(process.returncode, 2)
        self.assertIn("unknown 'nice'", errors)
        engine = self.engine()
        process = self.run_mock("--port", str(engine.port), "--model", "7b")
        _, errors = process.communicate(timeout=TIMEOUT_S)
        self.assertEqual(process.returncode, 1)
        self.assertIn(f"mock engine 7b: cannot listen on 127.0.0.1:{engine.port}", errors)
        self.assertIn("--port names another", errors)
        self.assertEqual(errors.count("\n"), 1)


@unittest.skipUnless(shutil.which("bash"), "mock.sh needs bash")
class ShellScriptTest(MockEngineTestCase):
    def start(self, *args: str, **variables: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [str(ROOT / "mock.sh"), *args],
            cwd=tempfile.gettempdir(),
            env={**os.environ, "PYTHON": sys.executable, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.addCleanup(self.stop, process)
        return process

    def stop(self, process: subprocess.Popen[str]) -> None:
        process.terminate()  # not kill: it must end its engines
        process.communicate(timeout=TIMEOUT_S)

    def free_base(self) -> int:
        """Return a port that is free together with the ones 10 and 20 above it."""
        for _ in range(100):
            base = random.randrange(20_000, 32_000)
            with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
                for port in (base, base + 10, base + 20):
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
                return base
        raise AssertionError("no three free ports")

    def lines(self, process: subprocess.Popen[str]) -> Iterator[str]:
        assert process.stdout is not None
        yield from process.stdout

    def test_bad_arguments_are_refused(self) -> None:
        for argument in ("0", "-1", "x", "08", "101", ""):
            process = self.start(argument)
            _, errors = process.communicate(timeout=TIMEOUT_S)
            self.assertEqual(process.returncode, 2, errors)
            self.assertIn("from 1 to 100", errors)
        process = self.start("3", BASE_PORT="65530")
        self.assertIn("BASE_PORT", process.communicate(timeout=TIMEOUT_S)[1])
        self.assertEqual(process.returncode, 2)

    def test_it_starts_three_models_prints_engines_and_ends_them_all(self) -> None:
        base = self.free_base()
        process = self.start("1", BASE_PORT=str(base))
        engines = next(line for line in self.lines(process) if line.startswith("ENGINES="))
        addresses = [
            f"{model}=http://127.0.0.1:{base + offset}/v1" for model, offset in (("70b", 0), ("13b", 10), ("7b", 20))
        ]
        self.assertEqual(engines.strip(), f"ENGINES='{';'.join(addresses)}'")
        for offset in (0, 10, 20):
            with socket.create_connection(("127.0.0.1", base + offset), TIMEOUT_S) as sock:
                sock.sendall(raw_request(HI))
                read_until(sock, b"hi there")
        process.terminate()
        self.assertEqual(process.wait(TIMEOUT_S), 0)
        for offset in (0, 10, 20):
            with self.assertRaises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", base + offset), TIMEOUT_S)

    def test_a_busy_port_ends_it_with_a_clear_line_and_no_engine_left(self) -> None:
        base = self.free_base()
        with socket.create_server(("127.0.0.1", base + 10)):
            process = self.start("1", BASE_PORT=str(base))
            _, errors = process.communicate(timeout=2 * TIMEOUT_S)
        self.assertEqual(process.returncode, 1)
        self.assertIn(f"the 13b engine on port {base + 10} did not start", errors)
        with self.assertRaises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", base), TIMEOUT_S)


if __name__ == "__main__":
    unittest.main()
