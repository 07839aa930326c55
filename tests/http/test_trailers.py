"""Clients' bodies in chunks: what stands behind the last chunk is header lines, and a size is hexadecimal digits."""

from __future__ import annotations

import unittest

from tests.http import test_wire as wire
from tests.support import CHAT, HI, RawClient, request_bytes

HEAD = wire.post(wire.CHUNKED, body=b"")
CHUNK = wire.chunked(wire.BODY, end=b"")

# Name, what stands behind the last chunk's line, status, code.
REFUSED = [
    ("a request", request_bytes("POST", CHAT, HI).partition(b"\r\n\r\n")[0] + b"\r\n", 400, "bad_request"),
    ("no colon", b"X-Sum 1\r\n", 400, "bad_request"),
    ("a space before the colon", b"X-Sum : 1\r\n", 400, "bad_request"),
    ("a fold", b"X-Sum: 1\r\n 2\r\n", 400, "bad_request"),
    ("NUL", b"X-Sum: 1\0\r\n", 400, "bad_request"),
    ("a bare CR", b"X-Sum: 1\r2\r\n", 400, "bad_request"),
    ("a bare LF", b"X-Sum: 1\nX: 2\r\n", 400, "bad_request"),
    ("too many", b"X: y\r\n" * 8000, 431, "headers_too_large"),
    ("one too long", b"X: " + b"y" * 40_000, 431, "headers_too_large"),
]


class TrailersTest(wire.WireTest):
    def send_in_pieces(self, client: RawClient, *pieces: bytes) -> None:
        """Each as a segment of its own: what is sent after the gateway has answered another request is not yet there
        when it reads."""
        for piece in pieces:
            client.send(piece)
            self.assert_works()

    def assert_refused(self, status: int, code: str, *pieces: bytes) -> None:
        before = self.engine.stats()["requests"]
        with self.gateway.connect() as client:
            self.send_in_pieces(client, *pieces)
            answer = client.read_response()
            self.assertEqual((answer.status, answer.error), (status, code), answer.body)
            client.assert_closed()
        self.assertEqual(self.engine.stats()["requests"], before)

    def test_what_is_no_header_line_is_refused_behind_a_body_as_in_a_head(self) -> None:
        for name, trailers, status, code in REFUSED:
            with self.subTest(name):
                self.assert_refused(status, code, HEAD + CHUNK + b"0\r\n" + trailers + b"\r\n")
                self.assert_refused(status, code, HEAD + CHUNK + b"0\r\n", trailers[:9], trailers[9:] + b"\r\n")

    def test_header_lines_are_dropped(self) -> None:
        for _ in range(2):
            self.client.send(HEAD + CHUNK + b"0\r\nX-Sum: 1\r\nAuthorization: none\r\n\r\n")
            self.assertEqual(self.client.read_response().status, 200)

    def test_a_size_with_0x_is_refused_however_it_comes(self) -> None:
        chunk = b"0x%b" % CHUNK
        self.assert_refused(400, "bad_request", HEAD + chunk + b"0\r\n\r\n")
        self.assert_refused(400, "bad_request", HEAD, chunk, b"0\r\n\r\n")
        self.assert_refused(400, "bad_request", HEAD, chunk[:2], chunk[2:] + b"0\r\n\r\n")


if __name__ == "__main__":
    unittest.main()
