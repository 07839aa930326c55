"""A chunk that a client announces and that may not be: refused when its size is there, whoever reads it."""

from __future__ import annotations

import json
import unittest

from tests.access import ADMIN_KEYS, ROOT, AccessTest
from tests.http.test_without_epoll import WithoutEpoll
from tests.onloop import OnLoopTest
from tests.support import CHAT, HI, RawClient, gateway

BODY = json.dumps(HI).encode()
LIMIT = 1_000


def head(*lines: str, path: str = CHAT) -> bytes:
    fields = "".join(f"{line}\r\n" for line in ("Host: g", "Transfer-Encoding: chunked", *lines))
    return f"POST {path} HTTP/1.1\r\n{fields}\r\n".encode()


class AnnouncedChunks(OnLoopTest):
    """CLIENT_TIMEOUT is longer than a client of these tests waits: what is answered, is answered before."""

    def setUp(self) -> None:
        super().setUp()
        self.running = self.enter(gateway(MAX_BODY_BYTES=LIMIT, CLIENT_TIMEOUT=600, KEEPALIVE_TIMEOUT=600))

    def assert_too_large(self, client: RawClient) -> None:
        response = client.read_response()
        self.assertEqual((response.status, response.error), (413, "body_too_large"), response.body)
        self.assertEqual(response.header("connection"), "close")
        client.assert_closed()

    def test_a_chunk_larger_than_a_body_may_be_is_413_at_once(self) -> None:
        for size in (b"3e9", b"3E9;name=value", b"fffffffff", b"f" * 16, b"0" * 12 + b"1000"):
            with self.subTest(size=size), self.running.connect() as client:
                client.send(head() + size + b"\r\n")
                self.assert_too_large(client)

    def test_a_size_that_comes_by_itself_is_judged_when_its_line_has_ended(self) -> None:
        with self.running.connect() as client:
            client.send(head())
            self.settle(self.running)
            for part in (b"3", b"e", b"9", b"\r"):
                client.send(part)
            client.assert_quiet()
            client.send(b"\n")
            self.assert_too_large(client)

    def test_a_chunk_that_makes_the_body_too_large_is_413_at_once(self) -> None:
        for part, size in ((b" " * 600, b"191"), (b" " * LIMIT, b"1"), (b" ", b"3e8")):
            with self.subTest(part=len(part), size=size), self.running.connect() as client:
                client.send(head() + b"%x\r\n%b\r\n%b\r\n" % (len(part), part, size))
                self.assert_too_large(client)

    def test_what_has_come_of_a_chunk_is_not_counted_twice(self) -> None:
        filler = b" " * (LIMIT - len(BODY))
        with self.running.connect() as client:
            client.send(head() + b"3e8\r\n" + BODY)
            self.settle(self.running)
            client.send(filler + b"\r\n0\r\n\r\n")
            self.assertEqual(client.read_response().status, 200)

    def test_who_asks_before_it_sends_is_told_when_it_has_announced_too_much(self) -> None:
        with self.running.connect() as client:
            client.send(head("Expect: 100-continue"))
            self.assertEqual(client.read_head().status, 100)
            client.send(b"f" * 16 + b"\r\n")
            self.assert_too_large(client)

    def test_a_refusal_arrives_though_the_client_sends_on(self) -> None:
        with self.running.connect() as client:
            client.send(head() + b"fffff\r\n" + b"x" * 500)
            response = client.read_response()
            self.assertEqual((response.status, response.error), (413, "body_too_large"))
            client.assert_closed()  # for writing
            for _ in range(3):
                client.send(b"x")
        self.wait_for_connections(self.running, 0)

    def test_the_connection_before_and_behind_is_as_usual(self) -> None:
        with self.running.connect() as client:
            client.send(head() + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY))
            self.assertEqual(client.read_response().status, 200)
            client.send(head() + b"3e9\r\n")
            self.assert_too_large(client)


class AnnouncedChunksWithoutEpoll(WithoutEpoll, AnnouncedChunks):
    pass


class AnnouncedToOthers(AccessTest):
    def test_what_needs_no_engine_refuses_too_large_a_chunk_as_well(self) -> None:
        running = self.serve(
            {"m": {"engines": ["echo:"]}}, ADMIN_KEYS=ADMIN_KEYS, MAX_BODY_BYTES=LIMIT, CLIENT_TIMEOUT=600
        )
        with running.connect() as client:
            client.send(head(f"Authorization: Bearer {ROOT}", path="/admin/keys") + b"3e9\r\n")
            response = client.read_response()
            self.assertEqual((response.status, response.error), (413, "body_too_large"), response.body)


del WithoutEpoll

if __name__ == "__main__":
    unittest.main()
