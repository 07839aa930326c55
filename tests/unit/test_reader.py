"""Requests and refusals are the same however a client's bytes are cut."""

from __future__ import annotations

import itertools
import unittest
from collections.abc import Iterable
from typing import Union

from gateway.server.reader import BLANK_LINES_MAX, Refusal, Request, RequestReader

HEADER_BYTES, BODY_BYTES = 300, 40
GET = b"GET / HTTP/1.1\r\nHost: g\r\n\r\n"
POST = b"POST /a HTTP/1.1\r\nHost: g\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"POST /b HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\n\r\n"

STREAMS = {
    "a request": POST,
    "two requests": GET + POST,
    "requests behind each other": GET + POST + CHUNKED + b"3;x\r\nabc\r\n2\r\nde\r\n0\r\nT: 1\r\n\r\n" + GET,
    "empty lines": b"\r\n\r\n" + GET + b"\r\n" + POST,
    "as many empty lines as may be": b"\r\n" * BLANK_LINES_MAX + GET,
    "too many empty lines": b"\r\n" * (BLANK_LINES_MAX + 1) + GET,
    "a client that says https": b"\x16\x03\x01\x02\x00\x01\x00",
    "no request line": b"nonsense\r\n\r\n",
    "a folded header": b"GET / HTTP/1.1\r\nHost: g\r\n x\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: g\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "the largest head": b"GET / HTTP/1.1\r\nHost: g\r\nX: " + b"x" * (HEADER_BYTES - 28) + b"\r\n\r\n",
    "a head that is too large": b"GET / HTTP/1.1\r\nHost: g\r\nX: " + b"x" * (HEADER_BYTES - 27) + b"\r\n\r\n",
    "a head without an end": b"GET / HTTP/1.1\r\nHost: g\r\nX: " + b"x" * HEADER_BYTES,
    "the largest body": b"POST / HTTP/1.1\r\nHost: g\r\nContent-Length: 40\r\n\r\n" + b"b" * 40 + GET,
    "the largest chunked body": CHUNKED + b"28\r\n" + b"c" * 40 + b"\r\n0\r\n\r\n" + GET,
    "a chunk that says it is too large": CHUNKED + b"29\r\n",
    "a chunk that is too large": CHUNKED + b"29\r\n" + b"c" * 41 + b"\r\n0\r\n\r\n",
    "chunks that are too large": CHUNKED + b"14\r\n" + b"c" * 20 + b"\r\n15\r\n" + b"c" * 21 + b"\r\n0\r\n\r\n",
    "a chunk size that is none": CHUNKED + b"3\r\nabc\r\nzz\r\n",
    "a chunk without an end": CHUNKED + b"3\r\nabcd\r\n",
    "trailers that are too large": CHUNKED + b"0\r\nT: " + b"t" * HEADER_BYTES + b"\r\n\r\n",
    "a body that is too large, then trailers that are": CHUNKED
    + b"29\r\n"
    + b"c" * 41
    + b"\r\n0\r\nT: "
    + b"t" * HEADER_BYTES
    + b"\r\n\r\n",
    "a body that is too large, then broken": CHUNKED + b"29\r\n" + b"c" * 41 + b"\r\nzz\r\n",
    "trailers that are too large together": CHUNKED + b"0\r\n" + b"A: b\r\n" * 60 + b"\r\n",
    "a length that is too large": b"POST /a HTTP/1.1\r\nHost: g\r\nContent-Length: 41\r\n\r\n" + b"x" * 41 + GET,
    "empty lines before each of two": b"\r\n" * BLANK_LINES_MAX + GET + b"\r\n" * BLANK_LINES_MAX + POST,
    "carriage returns alone": b"\r\r" + GET,
    "line feeds alone": b"\n" + GET,
    "a trailer that is none": CHUNKED + b"0\r\nno colon\r\n\r\n",
}


def told(event: Union[Request, Refusal]) -> tuple[object, ...]:
    """An event, in a form that can be compared."""
    if isinstance(event, Request):
        return event.head.method, event.head.path, event.body, event.whole
    return event.error.code, event.error.message, None if event.head is None else event.head.path


def events(pieces: Iterable[bytes]) -> list[tuple[object, ...]]:
    """All that comes of a connection's bytes."""
    reader = RequestReader(HEADER_BYTES, BODY_BYTES)
    found = []
    for piece in pieces:
        event = reader.feed(piece)
        while event is not None:
            found.append(told(event))
            event = reader.feed(b"")
    ended = None if reader.over else reader.ended()
    return found if ended is None else [*found, told(ended)]


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    bounds = [0, *places, len(data)]
    return [data[a:b] for a, b in zip(bounds, bounds[1:])]


class CutsTest(unittest.TestCase):
    def test_every_cut_gives_the_same(self) -> None:
        for name, data in STREAMS.items():
            expected = events([data])
            self.assertTrue(expected, name)
            places = range(1, len(data))
            cuts: list[tuple[int, ...]] = [(place,) for place in places]
            cuts.append(tuple(places))
            pairs = list(itertools.combinations(places, 2))
            cuts += pairs[:: max(1, len(pairs) // 400)]
            for one in cuts:
                if events(cut(data, one)) != expected:
                    self.fail(f"{name}, cut at {one[:5]}: {events(cut(data, one))} instead of {expected}")

    def test_every_early_end_is_a_refusal_or_nothing(self) -> None:
        for size in range(1, len(POST)):
            found = events([POST[:size]])
            inside = size >= POST.index(b"hello")
            expected = [("bad_request", "the body ended early", "/a")] if inside else []
            self.assertEqual(found, expected, size)


class EventsTest(unittest.TestCase):
    def test_what_comes(self) -> None:
        post = ("POST", "/a", b"hello", True)
        get = ("GET", "/", b"", True)
        chunked = ("POST", "/b", b"abcde", True)
        self.assertEqual(events([STREAMS["requests behind each other"]]), [get, post, chunked, get])
        self.assertEqual(events([STREAMS["empty lines"]]), [get, post])
        self.assertEqual(events([STREAMS["as many empty lines as may be"]]), [get])
        self.assertEqual(events([STREAMS["empty lines before each of two"]]), [get, post])
        self.assertEqual(len(events([STREAMS["the largest body"]])), 2)
        self.assertEqual(len(events([STREAMS["the largest chunked body"]])), 2)
        for name, code in (
            ("too many empty lines", "bad_request"),
            ("a client that says https", "bad_request"),
            ("a head that is too large", "headers_too_large"),
            ("a head without an end", "headers_too_large"),
            ("a chunk that says it is too large", "body_too_large"),
            ("a chunk that is too large", "body_too_large"),
            ("chunks that are too large", "body_too_large"),
            ("a body that is too large, then trailers that are", "body_too_large"),
            ("a body that is too large, then broken", "body_too_large"),
            ("trailers that are too large together", "headers_too_large"),
            ("a length that is too large", "bad_request"),
            ("carriage returns alone", "bad_request"),
            ("line feeds alone", "bad_request"),
            ("a chunk size that is none", "bad_request"),
            ("a chunk without an end", "bad_request"),
            ("trailers that are too large", "headers_too_large"),
            ("a trailer that is none", "bad_request"),
        ):
            self.assertEqual([event[0] for event in events([STREAMS[name]])], [code], name)
        self.assertEqual(events([STREAMS["the largest head"]])[0][0], "GET")

    def test_a_body_that_is_announced_too_large_is_left_to_who_serves(self) -> None:
        reader = RequestReader(HEADER_BYTES, BODY_BYTES)
        head = b"POST /a HTTP/1.1\r\nHost: g\r\nContent-Length: 41\r\n\r\n"
        self.assertIsNone(reader.feed(head + b"x" * 41 + GET))
        assert reader.head is not None
        self.assertEqual((reader.head.path, reader.buffered_bytes), ("/a", 0))
        request = reader.leave_body()
        self.assertEqual(told(request), ("POST", "/a", b"", False))
        self.assertTrue(reader.over)
        self.assertIsNone(reader.feed(GET))

    def test_a_body_that_is_all_there_has_its_path_s_limit_whichever_is_smaller(self) -> None:
        for most, size, path, comes in (
            (10, 10, "/up", True),
            (10, 11, "/up", False),
            (10, BODY_BYTES, "/a", True),
            (100, 100, "/up", True),
            (100, 101, "/up", False),
            (100, BODY_BYTES + 1, "/a", False),
        ):
            with self.subTest(most=most, size=size, path=path):
                reader = RequestReader(HEADER_BYTES, BODY_BYTES, ("/up",), most)
                head = f"POST {path} HTTP/1.1\r\nHost: g\r\nContent-Length: {size}\r\n\r\n"
                event = reader.feed(head.encode() + b"x" * size)
                if comes:
                    self.assertEqual(told(event), ("POST", path, b"x" * size, True))
                else:
                    self.assertEqual((event, reader.buffered_bytes), (None, 0))

    def test_what_has_begun_and_is_late(self) -> None:
        reader = RequestReader(HEADER_BYTES, BODY_BYTES)
        self.assertEqual((reader.begun, reader.late()), (False, None))
        reader.feed(b"\r")
        self.assertEqual((reader.begun, reader.late()), (False, None))
        reader.feed(b"\n")
        self.assertFalse(reader.begun)
        reader.feed(POST[:-1])
        self.assertTrue(reader.begun)
        late = reader.late()
        assert late is not None
        self.assertEqual(told(late), ("request_timeout", "the request was not sent in time", "/a"))
        self.assertTrue(reader.over)

    def test_a_large_body_in_many_pieces_is_put_together_without_copies_of_what_was_there(self) -> None:
        size = 32 << 20
        reader = RequestReader(HEADER_BYTES, size)
        self.assertIsNone(reader.feed(b"POST /a HTTP/1.1\r\nHost: g\r\nContent-Length: %d\r\n\r\n" % size))
        piece = bytes(1 << 16)
        event = None
        for number in range(size // len(piece)):
            event = reader.feed(piece)
            if number == 1:
                buffer = reader._buffer
            elif number > 1 and event is None:
                self.assertIs(reader._buffer, buffer)
        assert isinstance(event, Request)
        self.assertEqual(len(event.body), size)


if __name__ == "__main__":
    unittest.main()
