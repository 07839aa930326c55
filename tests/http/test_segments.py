"""A request is judged the same however its bytes are cut into segments, with epoll and without."""

from __future__ import annotations

import contextlib
import json
import sys
import time
import unittest
from collections.abc import Iterable

from tests.http.test_without_epoll import WithoutEpoll
from tests.support import (
    CHAT,
    HI,
    TIMEOUT_S,
    Closed,
    RunningGateway,
    SocketTest,
    engines,
    gateway,
    mock_engine,
    request_bytes,
)

if sys.platform != "win32":
    import fcntl
    import termios

KEY = "sk-alice-0123456789abcdef"
AUTH = b"Authorization: Bearer " + KEY.encode() + b"\r\n"
HOST = b"Host: g\r\n"
BODY = json.dumps(HI).encode()
GET = b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n"
SENTINEL = request_bytes("GET", "/healthz", None, [("X-Request-ID", "sentinel")])
HEAD_MAX = 2000

Verdict = list[tuple[int, object, object]]  # of each answer: status, error, Connection; then of what is sent behind it


def post(
    *lines: bytes, body: bytes = BODY, auth: bytes = AUTH, length: bool = True, path: str = CHAT, version: str = "1.1"
) -> bytes:
    """A request with these further header lines."""
    head = f"POST {path} HTTP/{version}\r\n".encode() + HOST + auth
    if length:
        head += b"Content-Length: %d\r\n" % len(body)
    return head + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


def coded(body: bytes, **options: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked", body=body, length=False, **options)  # type: ignore[arg-type]


def exactly(size: int) -> bytes:
    """A request whose head, without its end, has so many bytes."""
    begin = b"GET /healthz HTTP/1.1\r\n" + HOST + b"X: "
    return begin + b"x" * (size - len(begin)) + b"\r\n\r\n"


CHUNKS = b"5\r\n" + BODY[:5] + b"\r\n%x\r\n" % len(BODY[5:]) + BODY[5:] + b"\r\n0\r\n\r\n"
WRONG = b"Authorization: Bearer sk-wrong\r\n"

# Name, bytes, the statuses of the answers, whether the connection goes on behind them.
CORPUS: list[tuple[str, bytes, list[int], bool]] = [
    ("a plain GET", GET, [200], True),
    ("a POST", post(), [200], True),
    ("an empty line before", b"\r\n" + GET, [200], True),
    ("two empty lines before", b"\r\n\r\n" + post(), [200], True),
    ("as many empty lines as may be", b"\r\n" * 64 + GET, [200], True),
    ("one empty line more", b"\r\n" * 65 + GET, [400], False),
    ("empty lines around", b"\r\n" + GET + b"\r\n\r\n" + post() + b"\r\n", [200, 200], True),
    ("a bare LF before", b"\n" + GET, [400], False),
    ("a bare CR before", b"\r" + GET, [400], False),
    ("a bare LF behind an empty line", b"\r\n\n" + GET, [400], False),
    ("a bare CR behind an empty line", b"\r\n\r" + GET, [400], False),
    ("an empty line turned round", b"\n\r" + GET, [400], False),
    ("empty lines of LF only", b"\r\n\n\n\n" + GET, [400], False),
    ("a bare LF before a POST", b"\n" + post(), [400], False),
    ("a space before", b" " + GET, [400], False),
    ("NUL before", b"\0" + GET, [400], False),
    ("nonsense", b"hello\r\n\r\n", [400], False),
    ("another version", b"GET / HTTP/3.0\r\nHost: g\r\n\r\n", [505], False),
    ("no Host", b"GET /healthz HTTP/1.1\r\n\r\n", [400], False),
    ("a folded header", b"GET / HTTP/1.1\r\nHost: g\r\nX: 1\r\n 2\r\n\r\n", [400], False),
    ("a bare LF as end of the head", b"GET / HTTP/1.1\nHost: g\n\n" + GET, [400], False),
    ("two lengths", post(b"Content-Length: 3"), [400], False),
    ("an unknown coding", post(b"Transfer-Encoding: gzip", length=False), [501], False),
    ("the largest head", exactly(HEAD_MAX), [200], True),
    ("a head of one byte more", exactly(HEAD_MAX + 1), [431], False),
    ("a head of four bytes more", exactly(HEAD_MAX + 4), [431], False),
    ("the largest head behind an empty line", b"\r\n" + exactly(HEAD_MAX), [200], True),
    ("not found", b"GET /nope HTTP/1.1\r\n" + HOST + b"\r\n", [404], True),
    ("not found, with a body", post(path="/nope"), [404], True),
    ("not found, with a large body", post(path="/nope", body=b"x" * 5000), [404], False),
    ("a GET with a body", post().replace(b"POST " + CHAT.encode(), b"GET /healthz"), [200], True),
    ("not allowed, with a body", post().replace(b"POST ", b"PUT "), [405], True),
    ("another media type", post(b"Content-Type: text/plain"), [415], True),
    ("another media type of a large body", post(b"Content-Type: text/plain", body=b"x" * 5000), [415], False),
    ("a wrong key", post(auth=WRONG), [401], True),
    ("a wrong key and a large body", post(auth=WRONG, body=b"x" * 5000), [401], False),
    ("a wrong key and chunks", coded(CHUNKS, auth=WRONG), [401], False),
    ("a wrong key that waits to be told to go on", post(b"Expect: 100-continue", auth=WRONG), [401], False),
    ("no key for what only administrators do", post(auth=b"", path="/admin/keys"), [401], True),
    ("no length", post(body=b"", length=False), [411], True),
    ("too large a body", post(body=b"x" * 200_001), [413], False),
    ("no JSON", post(body=b"{"), [400], True),
    ("HTTP/1.0", post(version="1.0"), [200], False),
    ("the last request", post(b"Connection: close"), [200], False),
    ("a refused last request", post(b"Connection: close", auth=WRONG), [401], False),
    ("chunks", coded(CHUNKS), [200], True),
    ("chunks with an extension", coded(b"%x;a=b\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n"), [200], True),
    ("a chunk longer than it says", coded(b"3\r\nhello\r\n0\r\n\r\n"), [400], False),
    ("a bare LF behind a chunk size", coded(b"5\nhello\r\n0\r\n\r\n"), [400], False),
    ("chunks that are no JSON", coded(b"1\r\n{\r\n0\r\n\r\n"), [400], True),
    ("two POSTs", post() + post(), [200, 200], True),
    ("a POST behind a GET", GET + post(), [200, 200], True),
    ("a GET behind a POST", post() + GET, [200, 200], True),
    ("a POST behind chunks", coded(CHUNKS) + post(), [200, 200], True),
    ("chunks behind a POST", post() + coded(CHUNKS), [200, 200], True),
    ("a POST behind a refused one", post(auth=WRONG) + post(), [401, 200], True),
    ("a POST behind one that is refused and closes", post(auth=WRONG, body=b"x" * 5000) + post(), [401], False),
    ("nonsense behind a POST", post() + b"hello\r\n\r\n", [200, 400], False),
    ("a bare LF behind a POST", post() + b"\n" + GET, [200, 400], False),
    ("a bare LF behind a GET", GET + b"\n" + GET, [200, 400], False),
    ("a request behind the last one", post(b"Connection: close") + post(), [200], False),
    ("a request behind the last one, which needs no engine", GET[:-2] + b"Connection: close\r\n\r\n" + GET, [200],
     False),
]  # fmt: skip


@unittest.skipIf(sys.platform == "win32", "asks the system what has not been read")
class Segments(SocketTest):
    running: RunningGateway

    def setUp(self) -> None:
        engine = self.enter(mock_engine())
        self.running = self.enter(
            gateway(
                ENGINES=engines(_13b=engine.url),
                API_KEYS=f"alice:{KEY}",
                MAX_HEADER_BYTES=HEAD_MAX,
                MAX_BODY_BYTES=200_000,
            )
        )
        self.assertEqual(self.running.post(headers=[("X-API-Key", KEY)]).status, 200)

    def wait_until_read(self) -> None:
        """Until the gateway has taken everything that has been sent, or has closed the connection."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while any(self.unread(sock) for sock in list(self.running.app.server._open)):
            self.assertLess(time.monotonic(), deadline_s, "it is never read")
            time.sleep(0)

    @staticmethod
    def unread(sock: object) -> bool:
        with contextlib.suppress(OSError, ValueError):
            return fcntl.ioctl(sock, termios.FIONREAD, b"\0\0\0\0") != b"\0\0\0\0"  # type: ignore[call-overload,no-any-return]
        return False

    def verdict(self, data: bytes, cuts: Iterable[int]) -> Verdict:
        """What is answered to `data`, cut at these places, and to a request behind it."""
        whole = data + SENTINEL
        found: Verdict = []
        with self.running.connect() as client:
            start = 0
            with contextlib.suppress(ConnectionError):
                for end in (*cuts, len(whole)):
                    client.send(whole[start:end])
                    start = end
                    self.wait_until_read()
            with contextlib.suppress(Closed, ConnectionError):
                while True:
                    response = client.read_response()
                    if response.header("x-request-id") == "sentinel":
                        found.append((response.status, None, "goes on"))
                        break
                    error = None if response.status == 200 else response.error
                    found.append((response.status, error, response.header("connection")))
        return found

    def check(self, name: str, data: bytes, cuts: Iterable[int], expected: Verdict) -> None:
        cuts = list(cuts)
        with self.subTest(name, cuts=cuts[:5]):
            self.assertEqual(self.verdict(data, cuts), expected)

    def test_whole(self) -> None:
        for name, data, statuses, goes_on in CORPUS:
            with self.subTest(name):
                found = self.verdict(data, [])
                self.assertEqual([status for status, *_ in found], [*statuses, 200] if goes_on else statuses)
                self.assertEqual(found[-1][2], "goes on" if goes_on else "close")

    def test_byte_by_byte(self) -> None:
        for name, data, _, _ in CORPUS:
            step = 1 if len(data) < 3000 else 997
            self.check(name, data, range(step, len(data) + len(SENTINEL), step), self.verdict(data, []))

    def test_in_two_at_every_place_that_may_matter(self) -> None:
        for name, data, _, _ in CORPUS:
            expected = self.verdict(data, [])
            for cut in places(data):
                self.check(name, data, [cut], expected)


def places(data: bytes) -> list[int]:
    """Around every end of a line, and some between."""
    near = {i + d for i in range(min(len(data), 1000)) if data[i] in b"\r\n" for d in (0, 1)}
    every = range(1, len(data) + 1, max(23, len(data) // 10))
    found = sorted(cut for cut in {*near, *every, len(data) - 1, len(data)} if 0 < cut <= len(data))
    return found if len(found) <= 60 else found[:20] + found[-20:]


class SegmentsWithoutEpoll(WithoutEpoll, Segments):
    pass


del WithoutEpoll

if __name__ == "__main__":
    unittest.main()
