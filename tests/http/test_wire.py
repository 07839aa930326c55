"""HTTP itself, and what hostile or careless clients send: every refusal, framing, pipelining, time limits, memory."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import sys
import time
import unittest
from typing import Any, Optional
from unittest import mock

from gateway.mock.server import MockEngine
from tests.support import (
    CHAT,
    HI,
    ROOT,
    TIMEOUT_S,
    RawClient,
    Response,
    RunningGateway,
    SocketTest,
    content_of,
    engines,
    eventually,
    gateway,
    gateway_process,
    mock_engine,
    request_bytes,
)

BODY = json.dumps(HI).encode()
HOST = b"Host: g\r\n"
POST_LINE = b"POST " + CHAT.encode() + b" HTTP/1.1\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)


def post(*lines: bytes, host: bytes = HOST, body: bytes = BODY) -> bytes:
    """A chat request with exactly these header lines (without their ends) and a Host."""
    return POST_LINE + host + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


def get(*lines: bytes, host: bytes = HOST) -> bytes:
    return b"GET /healthz HTTP/1.1\r\n" + host + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def chunked(*parts: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + end


def chat(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **fields}


LENGTH_OF = b"Content-Length: "
CHUNKED = b"Transfer-Encoding: chunked"
# Name, what is sent, status, code. Each is followed by a closed connection.
REFUSED: list[tuple[str, bytes, int, str]] = [
    ("both lengths", post(LENGTH.strip(), CHUNKED, body=chunked(BODY)), 400, "bad_request"),
    ("both lengths, the other way round", post(CHUNKED, LENGTH.strip(), body=chunked(BODY)), 400, "bad_request"),
    ("differing lengths", post(LENGTH.strip(), LENGTH_OF + b"5"), 400, "bad_request"),
    ("differing lengths in one line", post(LENGTH_OF + b"%d, 5" % len(BODY)), 400, "bad_request"),
    ("a plus sign", post(LENGTH_OF + b"+%d" % len(BODY)), 400, "bad_request"),
    ("a minus sign", post(LENGTH_OF + b"-%d" % len(BODY)), 400, "bad_request"),
    ("spaces in a length", post(LENGTH_OF + b"1 0"), 400, "bad_request"),
    ("an empty length", post(LENGTH_OF), 400, "bad_request"),
    ("a hexadecimal length", post(LENGTH_OF + b"0x10"), 400, "bad_request"),
    ("an underscore in a length", post(LENGTH_OF + b"1_0"), 400, "bad_request"),
    ("a fraction as length", post(LENGTH_OF + b"10.0"), 400, "bad_request"),
    ("a length in other digits", post(LENGTH_OF + "٣".encode()), 400, "bad_request"),
    ("an endless length", post(LENGTH_OF + b"9" * 50), 400, "bad_request"),
    ("a folded header", get(b"X-A: 1", b" folded"), 400, "bad_request"),
    ("a header folded with a tab", get(b"X-A: 1", b"\tfolded"), 400, "bad_request"),
    ("a folded first header", b"GET / HTTP/1.1\r\n X: 1\r\nHost: g\r\n\r\n", 400, "bad_request"),
    ("a space before the colon", get(b"X-A : 1"), 400, "bad_request"),
    ("a tab before the colon", get(b"X-A\t: 1"), 400, "bad_request"),
    ("a space before the colon of a length", post(b"Content-Length : 5"), 400, "bad_request"),
    ("no colon", get(b"X-A"), 400, "bad_request"),
    ("no name", get(b": 1"), 400, "bad_request"),
    ("a name of other characters", get("é: 1".encode()), 400, "bad_request"),
    ("a quoted name", get(b'"X": 1'), 400, "bad_request"),
    ("a bare CR in a value", get(b"X-A: 1\r2"), 400, "bad_request"),
    ("a bare LF in a value", get(b"X-A: 1\nX-B: 2"), 400, "bad_request"),
    ("a bare LF in a name", get(b"X\nA: 1"), 400, "bad_request"),
    ("a bare CR in a name", get(b"X\rA: 1"), 400, "bad_request"),
    ("a bare CR before the length", post(b"X: 1\rContent-Length: 3", LENGTH.strip()), 400, "bad_request"),
    ("NUL in a value", get(b"X-A: 1\x002"), 400, "bad_request"),
    ("NUL in a name", get(b"X\x00A: 1"), 400, "bad_request"),
    ("NUL in the target", b"GET /\x00 HTTP/1.1\r\nHost: g\r\n\r\n", 400, "bad_request"),
    ("another control character", get(b"X-A: \x01"), 400, "bad_request"),
    ("DEL in a value", get(b"X-A: \x7f"), 400, "bad_request"),
    ("no Host", get(host=b""), 400, "bad_request"),
    ("two Hosts", get(b"Host: g"), 400, "bad_request"),
    ("two different Hosts", get(b"host: other"), 400, "bad_request"),
    ("a Host that is none", get(host=b"Host: a b\r\n"), 400, "bad_request"),
    ("a Host with a path", get(host=b"Host: g/x\r\n"), 400, "bad_request"),
    ("a transfer coding nobody knows", post(b"Transfer-Encoding: gzip"), 501, "not_implemented"),
    ("a coding before chunked", post(b"Transfer-Encoding: gzip, chunked"), 501, "not_implemented"),
    ("a coding after chunked", post(b"Transfer-Encoding: chunked, identity"), 501, "not_implemented"),
    ("chunked twice", post(CHUNKED, CHUNKED), 501, "not_implemented"),
    ("a misspelt chunked", post(b"Transfer-Encoding: xchunked"), 501, "not_implemented"),
    ("a coding in quotes", post(b'Transfer-Encoding: "chunked"'), 501, "not_implemented"),
    ("no version", b"GET /\r\nHost: g\r\n\r\n", 400, "bad_request"),
    ("two spaces in the request line", b"GET  / HTTP/1.1\r\nHost: g\r\n\r\n", 400, "bad_request"),
    ("a space in the target", b"GET /a b HTTP/1.1\r\nHost: g\r\n\r\n", 400, "bad_request"),
    ("a space before the method", b" GET / HTTP/1.1\r\nHost: g\r\n\r\n", 400, "bad_request"),
    ("a method of other characters", b"G(T / HTTP/1.1\r\nHost: g\r\n\r\n", 400, "bad_request"),
    ("a target that is no path", b"GET healthz HTTP/1.1\r\nHost: g\r\n\r\n", 400, "bad_request"),
    ("a lower-case version", b"GET / http/1.1\r\nHost: g\r\n\r\n", 400, "bad_request"),
    ("TLS on a plain port", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "bad_request"),
    ("nonsense", b"hello\r\n\r\n", 400, "bad_request"),
    ("another major version", b"GET / HTTP/3.0\r\nHost: g\r\n\r\n", 505, "http_version_not_supported"),
    ("a version of the past", b"GET / HTTP/0.9\r\nHost: g\r\n\r\n", 505, "http_version_not_supported"),
    ("HTTP/2 unasked", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "http_version_not_supported"),
    ("too large a head", get(b"X-A: " + b"x" * 40_000), 431, "headers_too_large"),
    ("too many headers", get(*[b"X-%d: 1" % i for i in range(5_000)]), 431, "headers_too_large"),
    ("too long a target", b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\nHost: g\r\n\r\n", 431, "headers_too_large"),
    ("a megabyte of headers", get(b"X-A: " + b"x" * 1_000_000), 431, "headers_too_large"),
    ("a megabyte without an end", b"GET / HTTP/1.1\r\nX: " + b"x" * 1_000_000, 431, "headers_too_large"),
    ("a chunk size that is none", post(CHUNKED, body=b"xyz\r\n" + BODY), 400, "bad_request"),
    ("an empty chunk size", post(CHUNKED, body=b"\r\n" + BODY), 400, "bad_request"),
    ("a signed chunk size", post(CHUNKED, body=b"+5\r\nhello\r\n0\r\n\r\n"), 400, "bad_request"),
    ("a negative chunk size", post(CHUNKED, body=b"-5\r\nhello\r\n0\r\n\r\n"), 400, "bad_request"),
    ("a chunk size with 0x", post(CHUNKED, body=b"0x5\r\nhello\r\n0\r\n\r\n"), 400, "bad_request"),
    ("a chunk size with an underscore", post(CHUNKED, body=b"0_5\r\nhello\r\n0\r\n\r\n"), 400, "bad_request"),
    ("a space before the chunk size", post(CHUNKED, body=b" 5\r\nhello\r\n0\r\n\r\n"), 400, "bad_request"),
    ("a chunk longer than it said", post(CHUNKED, body=b"3\r\nhello\r\n0\r\n\r\n"), 400, "bad_request"),
    ("a bare LF behind a chunk size", post(CHUNKED, body=b"5\nhello\r\n0\r\n\r\n"), 400, "bad_request"),
    ("a chunk size line without an end", post(CHUNKED, body=b"5;" + b"x" * 100_000), 400, "bad_request"),
    ("chunked in HTTP/1.0", b"POST /v1/chat/completions HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"
     + chunked(BODY), 400, "bad_request"),
]  # fmt: skip


class WireTest(SocketTest):
    """A gateway in front of one good engine."""

    engine: MockEngine
    gateway: RunningGateway

    @classmethod
    def setUpClass(cls) -> None:
        cls.engine = mock_engine()
        cls.addClassCleanup(cls.engine.close)
        manager = gateway(ENGINES=engines(_13b=cls.engine.url), MAX_BODY_BYTES=200_000)
        cls.gateway = manager.__enter__()
        cls.addClassCleanup(manager.__exit__, None, None, None)

    def setUp(self) -> None:
        self.client = self.enter(self.gateway.connect())

    def assert_works(self) -> None:
        """The next request works."""
        self.assertEqual(self.gateway.get("/healthz").status, 200)

    def assert_answered(self, text: str, response: Optional[Response] = None) -> None:
        """The next response on the connection is the engine's answer to `text`."""
        response = response or self.client.read_response()
        self.assertEqual(response.status, 200, response.body)
        self.assertTrue(response.json()["choices"][0]["message"]["content"].endswith(f": {text}"), response.body)


class Refusals(WireTest):
    def test_what_two_parsers_might_read_differently_is_refused_and_the_connection_closed(self) -> None:
        for name, data, status, code in REFUSED:
            with self.subTest(name):
                before = self.engine.stats()["requests"]
                with self.gateway.connect() as client:
                    client.send(data)
                    response = client.read_response()
                    self.assertEqual((response.status, response.error), (status, code), response.body)
                    self.assertEqual(response.header("connection"), "close")
                    self.assertEqual(response.json()["request_id"], response.request_id)
                    client.assert_closed()
                self.assertEqual(self.engine.stats()["requests"], before)
                self.assert_works()

    def test_a_refused_request_never_lets_what_follows_it_through(self) -> None:
        before = self.engine.stats()["requests"]
        for name, data, status, _ in REFUSED:
            with self.subTest(name):
                with self.gateway.connect() as client:
                    client.send(data + b"\r\n\r\n" + post(LENGTH.strip()))
                    self.assertEqual(client.read_response().status, status)
                    client.assert_closed()
        self.assertEqual(self.engine.stats()["requests"], before)

    def test_every_refusal_has_a_log_line(self) -> None:
        self.client.send(get(b"X-A : 1"))
        request_id = self.client.read_response().request_id
        line = self.gateway.request_line(request_id)
        self.assertEqual((line["status"], line["error"]), (400, "bad_request"))

    def test_no_refusal_repeats_a_headers_value(self) -> None:
        for line in (b"Authorization : Bearer sk-secret", b"X-API-Key: sk-secret\x01", b"Cookie sk-secret"):
            with self.gateway.connect() as client:
                client.send(get(line))
                self.assertNotIn(b"sk-secret", client.read_response().body)

    def test_repeated_equal_lengths_are_one(self) -> None:
        self.client.send(post(LENGTH.strip(), LENGTH.strip()))
        self.assert_answered("hi there")

    def test_harmless_oddities_are_taken(self) -> None:
        for data in (
            b"\r\n" + get(),
            b"\r\n\r\n" + get(),
            get(b"X-A:"),
            get(b"X-A:1"),
            get(b"X-A: \t 1 \t "),
            get("X-A: é".encode()),
            get(b"x-a: 1", b"X-A: 2"),
            get(host=b"Host:\r\n"),
            get(host=b"hOsT: [::1]:8080\r\n"),
            get(b"Connection: keep-alive, x"),
            get(b"Content-Length: 0"),
        ):
            with self.subTest(data=data):
                self.client.send(data)
                self.assertEqual(self.client.read_response().status, 200)

    def test_a_client_that_leaves_inside_its_request_hurts_nobody(self) -> None:
        for data in (b"GE", get()[:-2], post(LENGTH.strip())[:-5], post(CHUNKED, body=b"5\r\nhel")):
            with self.subTest(data=data):
                with self.gateway.connect() as client:
                    client.send(data)
                self.assert_works()
        eventually(lambda: self.gateway.app.server.connections <= 1)

    def test_a_body_that_ends_early_reaches_no_engine(self) -> None:
        before = self.engine.stats()["requests"]
        self.client.send(post(LENGTH.strip())[:-5])
        self.client.sock.shutdown(socket.SHUT_WR)
        self.client.wait_until_ended()
        self.assertEqual(self.engine.stats()["requests"], before)


class Versions(WireTest):
    def test_http_1_0_closes_unless_asked_to_stay(self) -> None:
        self.client.send(b"GET /healthz HTTP/1.0\r\n\r\n")
        self.assertEqual(self.client.read_response().status, 200)
        self.client.assert_closed()

    def test_http_1_0_with_keep_alive_stays_and_says_so(self) -> None:
        for _ in range(2):
            self.client.send(b"GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            response = self.client.read_response()
            self.assertEqual(response.status, 200)
            self.assertEqual((response.header("connection") or "").lower(), "keep-alive")

    def test_http_1_0_posts(self) -> None:
        self.client.send(b"POST /v1/chat/completions HTTP/1.0\r\n" + LENGTH + b"\r\n" + BODY)
        self.assert_answered("hi there")
        self.client.assert_closed()

    def test_a_stream_over_http_1_0_ends_with_the_connection(self) -> None:
        body = json.dumps({**HI, "stream": True}).encode()
        for connection in (b"", b"Connection: keep-alive\r\n"):
            with self.gateway.connect() as client:
                head = b"POST /v1/chat/completions HTTP/1.0\r\n%bContent-Length: %d\r\n\r\n" % (connection, len(body))
                client.send(head + body)
                response = client.read_head()
                self.assertIsNone(response.header("transfer-encoding"))
                self.assertEqual(response.header("connection"), "close")
                events = client.read_events()
                self.assertEqual(events[-1], "data: [DONE]")
                self.assertTrue(content_of(events).endswith("hi there"))

    def test_http_1_1_stays_unless_asked_to_close(self) -> None:
        for _ in range(3):
            response = self.client.ask("GET", "/healthz")
            self.assertNotEqual(response.header("connection"), "close")
        for connection in ("close", "Close", "keep-alive, close"):
            with self.subTest(connection=connection), self.gateway.connect() as client:
                response = client.ask("POST", CHAT, HI, [("Connection", connection)])
                self.assertEqual(response.status, 200)
                self.assertEqual(response.header("connection"), "close")
                client.assert_closed()

    def test_a_stream_can_close_its_connection(self) -> None:
        self.client.request("POST", CHAT, {**HI, "stream": True}, [("Connection", "close")])
        self.assertEqual(self.client.read_head().header("connection"), "close")
        self.assertEqual(self.client.read_events()[-1], "data: [DONE]")
        self.client.assert_closed()

    def test_every_response_is_dated(self) -> None:
        for response in (self.client.ask("GET", "/healthz"), self.client.post(), self.client.post({})):
            self.assertRegex(response.header("date") or "", r"\A[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} [\d:]{8} GMT\Z")


class Bodies(WireTest):
    def test_one_byte_at_a_time_is_read(self) -> None:
        for data in (post(LENGTH.strip()), post(CHUNKED, body=chunked(BODY[:9], BODY[9:]))):
            for index in range(len(data)):
                self.client.send(data[index : index + 1])
            self.assert_answered("hi there")

    def test_one_byte_chunks_are_read(self) -> None:
        self.client.send(post(CHUNKED, body=chunked(*[BODY[i : i + 1] for i in range(len(BODY))])))
        self.assert_answered("hi there")
        self.assertEqual(self.engine.requests[-1]["body_bytes"], self.expected_bytes())

    def expected_bytes(self) -> int:
        """What the engine gets for BODY: asked for by length, which is known to work."""
        self.client.send(post(LENGTH.strip()))
        self.assert_answered("hi there")
        size = self.engine.requests[-1]["body_bytes"]
        assert isinstance(size, int)
        return size

    def test_chunks_may_have_extensions_and_trailers(self) -> None:
        body = b"5;name=value\r\n" + BODY[:5] + b"\r\n%X;x\r\n" % len(BODY[5:]) + BODY[5:]
        self.client.send(post(CHUNKED, body=body + b"\r\n000\r\nX-Trailer: 1\r\nX-Other: 2\r\n\r\n"))
        self.assert_answered("hi there")
        self.assertEqual(self.client.ask("GET", "/healthz").status, 200)

    def test_the_name_of_the_coding_is_not_case_sensitive(self) -> None:
        self.client.send(post(b"transfer-encoding: Chunked", body=chunked(BODY)))
        self.assert_answered("hi there")

    def test_without_a_length_a_post_is_411_and_the_connection_goes_on(self) -> None:
        self.client.send(post(body=b""))
        response = self.client.read_response()
        self.assertEqual((response.status, response.error), (411, "length_required"))
        if response.header("connection") != "close":
            self.assertEqual(self.client.post().status, 200)

    def test_an_empty_body_is_no_json(self) -> None:
        for data in (post(b"Content-Length: 0", body=b""), post(CHUNKED, body=chunked())):
            self.client.send(data)
            self.assertEqual(self.client.read_response().error, "invalid_json")

    def test_the_largest_body_is_taken_and_one_byte_more_is_413(self) -> None:
        filler = 200_000 - len(json.dumps(chat("")).encode())
        for extra, status in ((0, 200), (1, 413)):
            body = json.dumps(chat("x" * (filler + extra))).encode()
            self.assertEqual(len(body), 200_000 + extra)
            for data in (
                post(b"Content-Length: %d" % len(body), body=body),
                post(CHUNKED, body=chunked(body)),
                post(CHUNKED, body=chunked(*[body[i : i + 1000] for i in range(0, len(body), 1000)])),
            ):
                with self.subTest(extra=extra), self.gateway.connect() as client:
                    client.send(data)
                    response = client.read_response()
                    self.assertEqual(response.status, status)
                    if status == 413:
                        self.assertEqual(response.error, "body_too_large")
                        client.assert_closed()
        self.assert_works()

    def test_a_body_announced_too_large_is_refused_before_it_is_sent(self) -> None:
        self.client.send(post(b"Content-Length: 100000000", body=b""))
        self.assertEqual(self.client.read_response().status, 413)
        self.client.assert_closed()

    def test_a_refusal_arrives_although_the_client_is_still_sending(self) -> None:
        running = self.enter(gateway(MAX_BODY_BYTES=1_000))
        for size in (1_001, 60_000, 200_000):
            with self.subTest(size=size), running.connect() as client:
                client.send(post(b"Content-Length: %d" % size, body=b"x" * size))
                self.assertEqual(client.read_response().status, 413)
                client.assert_closed()

    def test_expect_continue_is_answered_before_the_body(self) -> None:
        for header, body in ((LENGTH.strip(), BODY), (CHUNKED, chunked(BODY))):
            self.client.send(post(header, b"Expect: 100-continue", body=b""))
            self.assertEqual(self.client.read_head().status, 100)
            self.client.assert_quiet()
            self.client.send(body)
            self.assert_answered("hi there")

    def test_expect_continue_is_not_answered_when_the_body_is_there_or_not_wanted(self) -> None:
        self.client.send(post(LENGTH.strip(), b"Expect: 100-continue"))
        self.assert_answered("hi there")
        self.client.send(post(b"Content-Length: 300000", b"Expect: 100-continue", body=b""))
        self.assertEqual(self.client.read_response().status, 413)

    def test_http_1_0_gets_no_continue(self) -> None:
        head = b"POST /v1/chat/completions HTTP/1.0\r\nExpect: 100-continue\r\n" + LENGTH + b"\r\n"
        self.client.send(head + BODY[:1])
        self.client.assert_quiet()
        self.client.send(BODY[1:])
        self.assert_answered("hi there")

    def test_a_client_that_is_gone_when_it_is_told_to_continue_is_forgotten(self) -> None:
        plain = socket.socket.send

        def send(sock: socket.socket, data: bytes, *flags: int) -> int:
            if b" 100 " in bytes(data[:20]):
                raise BrokenPipeError("the client has gone")  # as it is when a reset has come before
            return plain(sock, data, *flags)

        with mock.patch.object(socket.socket, "send", send):
            ids = ("X-Request-ID", "gone")
            self.client.send(
                request_bytes("POST", CHAT, None, [("Content-Length", "9"), ("Expect", "100-continue"), ids])
            )
            line = self.gateway.request_line("gone")
            self.client.wait_until_ended()
        self.assertEqual((line["status"], line["error"]), (499, "client_closed_request"))
        eventually(lambda: self.gateway.app.server.connections == 0)


class Refused400(WireTest):
    """A request that HTTP has no quarrel with is refused without disturbing the connection."""

    def test_the_connection_goes_on_after_every_refusal_of_a_request(self) -> None:
        for data, status in (
            (request_bytes("GET", "/nope"), 404),
            (request_bytes("POST", "/nope", HI), 404),
            (request_bytes("PUT", CHAT, HI), 405),
            (request_bytes("POST", CHAT, b"{"), 400),
            (request_bytes("POST", CHAT, {**HI, "n": 0}), 400),
            (request_bytes("POST", CHAT, {**HI, "model": "nope"}), 404),
            (request_bytes("POST", CHAT, HI, [("Content-Encoding", "gzip")]), 415),
            (post(CHUNKED, body=chunked(b"{")), 400),
        ):
            with self.subTest(status=status, data=data[:60]):
                self.client.send(data)
                self.assertEqual(self.client.read_response().status, status)
                self.client.send(request_bytes("POST", CHAT, HI))
                self.assert_answered("hi there")

    def test_a_pipelined_request_behind_a_refused_one_is_read_from_its_first_byte(self) -> None:
        # The good one is as long as the refused body: dropping that twice would swallow it.
        good = request_bytes("POST", CHAT, chat("behind"))
        for body in (b"{" * len(good), b"{", b"[]", json.dumps({**HI, "n": 0}).encode()):
            with self.subTest(body=body[:10]):
                self.client.send(request_bytes("POST", CHAT, body) + good)
                self.assertEqual(self.client.read_response().status, 400)
                self.assert_answered("behind")


class Pipelining(WireTest):
    def test_two_requests_at_once_are_answered_in_order(self) -> None:
        self.client.send(request_bytes("POST", CHAT, chat("one")) + request_bytes("POST", CHAT, chat("two")))
        self.assert_answered("one")
        self.assert_answered("two")
        self.client.assert_quiet()

    def test_ten_requests_of_all_kinds_are_answered_in_order(self) -> None:
        streamed = chat("streamed", stream=True)
        sent = [
            ("POST", CHAT, chat("0")),
            ("GET", "/healthz", None),
            ("POST", CHAT, streamed),
            ("POST", CHAT, b"{"),
            ("POST", CHAT, chat("4")),
            ("HEAD", "/healthz", None),
            ("POST", CHAT, streamed),
            ("POST", CHAT, streamed),
            ("GET", "/nope", None),
            ("POST", CHAT, chat("9")),
        ]
        data = b"".join(request_bytes(m, t, b, [("X-Request-ID", f"r{i}")]) for i, (m, t, b) in enumerate(sent))
        self.client.send(data)
        statuses = []
        for index, (method, _, body) in enumerate(sent):
            if body is streamed:
                head = self.client.read_head()
                events = self.client.read_events()
                self.assertEqual(events[-1], "data: [DONE]")
                self.assertTrue(content_of(events).endswith("streamed"))
            else:
                head = self.client.read_response(method)
            self.assertEqual(head.request_id, f"r{index}")
            statuses.append(head.status)
        self.assertEqual(statuses, [200, 200, 200, 400, 200, 200, 200, 200, 404, 200])
        self.client.assert_quiet()

    def test_a_quick_answer_waits_for_the_slow_one_before_it(self) -> None:
        held = self.enter(mock_engine(behaviour="hang"))
        running = self.enter(gateway(ENGINES=engines(_13b=held.url)))
        client = self.enter(running.connect())
        client.request("POST", CHAT, chat("slow"), [("X-Request-ID", "slow")])
        self.assertTrue(held.wait_for_requests(1, 5))
        client.request("GET", "/healthz", None, [("X-Request-ID", "quick")])
        client.request("POST", CHAT, chat("last"), [("X-Request-ID", "last")])
        client.assert_quiet()
        held.control("ok")
        self.assertEqual([client.read_response().request_id for _ in range(3)], ["slow", "quick", "last"])

    def test_a_request_behind_a_stream_waits_for_its_end(self) -> None:
        gate = self.engine.hold_after(1)
        self.addCleanup(gate.release)
        self.client.send(request_bytes("POST", CHAT, chat("x", stream=True)) + request_bytes("POST", CHAT, chat("y")))
        self.client.read_head()
        first = self.client.read_event()
        self.assertIsNotNone(first)
        self.assertTrue(gate.wait_for_held(1, 5))
        gate.release()
        self.assertEqual(self.client.read_events()[-1], "data: [DONE]")
        self.assert_answered("y")

    def test_a_client_that_leaves_with_requests_pending_cancels_the_one_under_way(self) -> None:
        held = self.enter(mock_engine(behaviour="hang"))
        running = self.enter(gateway(ENGINES=engines(_13b=held.url)))
        with running.connect() as client:
            client.send(request_bytes("POST", CHAT, chat("a")) * 3)
            self.assertTrue(held.wait_for_requests(1, 5))
        self.assertTrue(held.wait_for_cancelled(1, 5))
        eventually(lambda: running.app.server.connections == 0)
        eventually(lambda: running.app.pipeline.in_flight == 0)

    def test_a_client_that_closes_its_sending_side_has_left(self) -> None:
        held = self.enter(mock_engine(behaviour="hang"))
        running = self.enter(gateway(ENGINES=engines(_13b=held.url)))
        client = self.enter(running.connect())
        client.request("POST", CHAT, HI)
        self.assertTrue(held.wait_for_requests(1, 5))
        client.sock.shutdown(socket.SHUT_WR)
        self.assertTrue(held.wait_for_cancelled(1, 5))


class Writes(WireTest):
    def test_a_response_that_is_no_stream_is_one_write(self) -> None:
        cases: list[tuple[str, str, Any]] = [
            ("GET", "/healthz", None),
            ("GET", "/metrics", None),
            ("HEAD", "/healthz", None),
            ("OPTIONS", CHAT, None),
            ("GET", "/nope", None),
            ("POST", CHAT, HI),
            ("POST", CHAT, chat("word " * 2_000)),
            ("POST", CHAT, {}),
            ("POST", "/v1/embeddings", {"input": "x"}),
        ]
        port = self.gateway.port
        writes: list[int] = []
        plain = {name: getattr(socket.socket, name) for name in ("send", "sendall", "sendmsg")}

        def recording(name: str) -> Any:
            def write(sock: socket.socket, *arguments: Any) -> Any:
                if sock.family == socket.AF_INET and sock.getsockname()[1] == port:
                    writes.append(1)
                return plain[name](sock, *arguments)

            return write

        for name in plain:
            patch = mock.patch.object(socket.socket, name, recording(name))
            patch.start()
            self.addCleanup(patch.stop)
        for method, path, body in cases:
            with self.subTest(method=method, path=path):
                writes.clear()
                self.assertLess(self.client.ask(method, path, body).status, 500)
                self.assertEqual(len(writes), 1)

    def test_nagle_is_off_for_clients(self) -> None:
        self.client.post()
        (sock,) = [s for s in self.gateway.app.server._open if s.getpeername() == self.client.sock.getsockname()]
        self.assertTrue(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))


class TimeLimits(SocketTest):
    """A slow client is cut off at its time limit, told so with 408, and holds up nobody."""

    def start(self, **variables: object) -> RunningGateway:
        return self.enter(gateway({"CLIENT_TIMEOUT": "0.3", "KEEPALIVE_TIMEOUT": "60", **variables}))

    def drip(self, client: RawClient, data: bytes) -> float:
        """Send a byte every 20 ms until the gateway says something; returns the seconds that took."""
        started_s = time.monotonic()
        for index in range(len(data)):
            client.send(data[index : index + 1])
            readable, _, _ = select.select([client.sock], [], [], 0.02)
            if readable:
                return time.monotonic() - started_s
            self.assertLess(time.monotonic() - started_s, TIMEOUT_S)
        raise AssertionError("all was sent before the gateway said anything")

    def assert_408(self, client: RawClient) -> None:
        response = client.read_response()
        self.assertEqual((response.status, response.error), (408, "request_timeout"))
        self.assertEqual(response.header("connection"), "close")
        client.wait_until_ended()

    def test_a_drip_of_headers(self) -> None:
        running = self.start()
        with running.connect() as client:
            self.drip(client, b"GET / HTTP/1.1\r\nX: " + b"x" * 2_000)
            self.assert_408(client)
        self.assertEqual(running.get("/healthz").status, 200)

    def test_a_drip_of_body(self) -> None:
        running = self.start()
        with running.connect() as client:
            client.send(post(b"Content-Length: 5000", body=b""))
            self.drip(client, b"x" * 2_000)
            self.assert_408(client)

    def test_a_drip_of_one_byte_chunks(self) -> None:
        running = self.start()
        with running.connect() as client:
            client.send(post(CHUNKED, body=b""))
            self.drip(client, b"1\r\nx\r\n" * 500)
            self.assert_408(client)

    def test_silence_inside_a_request(self) -> None:
        running = self.start()
        clients = {}
        for data in (b"G", get()[:-2], post(LENGTH.strip(), body=b""), post(CHUNKED, body=b"5")):
            clients[data] = self.enter(running.connect())
            clients[data].send(data)
        for data, client in clients.items():
            with self.subTest(data=data):
                self.assert_408(client)

    def test_silence_inside_a_request_that_came_with_the_end_of_another(self) -> None:
        running = self.start()
        clients = {}
        for data in (get(), post(LENGTH.strip())):
            clients[data] = self.enter(running.connect())
            clients[data].send(data + b"GET /healthz HT")
        for data, client in clients.items():
            with self.subTest(data=data):
                self.assertEqual(client.read_response().status, 200)
                self.assert_408(client)

    def test_an_idle_connection_is_closed_without_a_word(self) -> None:
        running = self.start(KEEPALIVE_TIMEOUT="0.3")
        fresh, used = self.enter(running.connect()), self.enter(running.connect())
        self.assertEqual(used.post().status, 200)
        fresh.assert_closed()
        used.assert_closed()
        eventually(lambda: running.app.server.connections == 0)

    def test_empty_lines_keep_no_connection_open(self) -> None:
        for client_timeout in ("60", "0.1"):
            running = self.start(KEEPALIVE_TIMEOUT="0.5", CLIENT_TIMEOUT=client_timeout)
            for used in (False, True):
                with self.subTest(client_timeout=client_timeout, used=used), running.connect() as client:
                    if used:
                        self.assertEqual(client.post().status, 200)
                    self.drip_empty_lines(client)
            eventually(lambda running=running: running.app.server.connections == 0)

    def drip_empty_lines(self, client: RawClient) -> None:
        """Send an empty line every 20 ms until the gateway closes the connection, without a word."""
        started_s = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while not select.select([client.sock], [], [], 0.02)[0]:
                client.send(b"\r\n")
                self.assertLess(time.monotonic() - started_s, TIMEOUT_S, "it is still open")
            self.assertEqual(client.sock.recv(1), b"")

    def test_a_request_may_follow_empty_lines(self) -> None:
        running = self.start()
        with running.connect() as client:
            client.send(b"\r\n")
            self.assertFalse(select.select([client.sock], [], [], 0.7)[0], "an empty line begins no request")
            for _ in range(2):
                client.send(b"\r\n")
                self.assertEqual(client.post().status, 200)

    def test_the_time_limit_does_not_count_against_a_slow_engine(self) -> None:
        engine = self.enter(mock_engine(behaviour="slow", delay=0.8))
        running = self.start(ENGINES=engines(_13b=engine.url), KEEPALIVE_TIMEOUT="0.3")
        self.assertEqual(running.post().status, 200)

    def test_slow_clients_hold_up_nobody(self) -> None:
        running = self.start(CLIENT_TIMEOUT="30", WORKERS=2)
        slow = [self.enter(running.connect()) for _ in range(20)]
        for client in slow:
            client.send(post(LENGTH.strip())[:-1])
        for _ in range(5):
            self.assertEqual(running.post().status, 200)
        for client in slow:
            client.send(BODY[-1:])
            self.assertEqual(client.read_response().status, 200)


class Connections(SocketTest):
    def test_beyond_max_connections_clients_are_told_and_let_in_again(self) -> None:
        for error_format in ("simple", "openai"):
            running = self.enter(gateway(MAX_CONNECTIONS=2, ERROR_FORMAT=error_format))
            first, second = self.enter(running.connect()), self.enter(running.connect())
            for client in (first, second):
                self.assertEqual(client.post().status, 200)
            with running.connect() as refused:
                response = refused.read_response()
                self.assertEqual((response.status, response.error), (503, "overloaded"))
                self.assertEqual(response.header("connection"), "close")
                self.assertRegex(response.header("retry-after") or "", r"\A[0-9]+\Z")
                self.assertEqual(response.json()["request_id"], response.request_id)
                refused.assert_closed()
            self.assertEqual(first.post().status, 200)
            second.close()
            eventually(lambda r=running: r.app.server.connections == 1)
            self.assertEqual(running.post().status, 200)

    def test_connections_are_forgotten_when_their_clients_leave(self) -> None:
        running = self.enter(gateway())
        for _ in range(50):
            self.assertEqual(running.get("/healthz").status, 200)
        eventually(lambda: running.app.server.connections == 0)


class Memory(SocketTest):
    @unittest.skipUnless(sys.platform.startswith("linux"), "reads the resident memory from /proc")
    def test_hostile_input_leaves_memory_flat_and_the_process_alive(self) -> None:
        self.assertTrue((ROOT / "main.py").exists())
        process = self.enter(gateway_process(MAX_BODY_BYTES=1_000_000, LOG_LEVEL="error"))
        deep = b'{"messages":' + b"[" * 10_000 + b"]" * 10_000 + b"}"
        attacks = [
            get(b"X: " + b"x" * 1_000_000),
            post(b"Content-Length: 1200000", body=b"x" * 1_200_000),
            post(CHUNKED, body=chunked(*[b"x" * 65_536] * 20)),
            post(CHUNKED, body=chunked(*[b"x"] * 20_000)),
            post(b"Content-Length: %d" % len(deep), body=deep),
            post(b"Content-Length: 900000", body=b"[" * 900_000),
            post(b"Content-Length: 900000", body=b'"' * 900_000),
            post(b"Content-Length: 900000", body=b"\xff" * 900_000),
            post(b"Content-Length: 900000", body=b'{"a":' + b"9" * 899_994 + b"}"),
        ]

        def attack() -> None:
            for data in attacks:
                with process.connect() as client:
                    client.send(data)
                    self.assertIn(client.read_response().status, (400, 413, 431))

        def resident_bytes() -> float:
            for line in process.ask("GET", "/metrics").body.decode().splitlines():
                if line.startswith("process_resident_memory_bytes "):
                    return float(line.split()[1])
            raise AssertionError("no process_resident_memory_bytes")

        for _ in range(3):
            attack()
        before = resident_bytes()
        for _ in range(7):
            attack()
        # Some 60 MB more have been sent; what is kept of them would show.
        # PyPy's heap also holds the machine code of what has become hot meanwhile.
        allowed = 12_000_000 if sys.implementation.name == "cpython" else 50_000_000
        self.assertLess(resident_bytes() - before, allowed)
        self.assertIsNone(process.process.poll())
        self.assertEqual(process.ask("POST", CHAT, HI).status, 200)


if __name__ == "__main__":
    unittest.main()
