"""One request on a scripted wire: however its bytes go out and the answer's come in, the same comes of it."""

from __future__ import annotations

import itertools
import math
import unittest
from collections.abc import Iterable
from typing import Any, Optional, Union, cast

from gateway.errors import ClientGone
from gateway.steps import Readable, Steps, Writable
from gateway.upstream.attempt import Attempt, EngineFault
from gateway.upstream.connection import Connection
from gateway.upstream.connections import ConnectionPool
from gateway.upstream.conversation import converse
from gateway.upstream.response import EngineResponse
from gateway.upstream.sse import EventStream
from gateway.upstream.stream import EngineStream
from tests.scripted import DONE, chunked, delta

WIRE = b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"
END = b""
BODY = b'{"choices": []}'


def answer(*headers: bytes, status: bytes = b"200 OK", body: bytes = BODY) -> bytes:
    """An answer of one piece."""
    return b"HTTP/1.1 %b\r\n%b\r\n%b" % (status, b"".join(h + b"\r\n" for h in headers), body)


class ScriptedSocket:
    """Takes as many bytes a time as it is told to, and gives these pieces, one after another; then it has nothing."""

    def __init__(self, pieces: Iterable[Union[bytes, OSError]], takes: Iterable[Optional[int]] = ()) -> None:
        self._pieces = list(pieces)
        self._takes = iter(takes)
        self.came = False  # the next piece has
        self.sent = b""
        self.closed = False

    def fileno(self) -> int:
        return -1

    def send(self, data: Any) -> int:
        size = next(self._takes, len(data))
        if size is None:
            raise BlockingIOError
        if size < 0:
            raise ConnectionResetError
        self.sent += bytes(data[:size])
        return min(size, len(data))

    def recv(self, size: int) -> bytes:
        if not self.came:
            raise BlockingIOError
        self.came = False
        piece = self._pieces.pop(0) if self._pieces else END
        if isinstance(piece, OSError):
            raise piece
        return piece

    def close(self) -> None:
        self.closed = True


class ScriptedPool:
    """Gives these sockets' connections: the first as kept where `kept`, the others as fresh ones."""

    connect_timeout_s = 1.0

    def __init__(self, socks: Iterable[ScriptedSocket], kept: bool = False) -> None:
        self._socks = list(socks)
        self._kept = kept
        self.given: list[Connection] = []
        self.surplus = 0

    def _next(self, used: bool) -> Connection:
        connection = Connection(cast(Any, self._socks.pop(0)))
        connection.used = used
        return connection

    def take(self) -> Optional[Connection]:
        kept, self._kept = self._kept, False
        return self._next(True) if kept else None

    def connect(self, timeout_s: float, ended: object) -> Steps[Connection]:
        if not self._socks:
            raise ConnectionRefusedError
        return self._next(False)
        yield

    def give(self, connection: Connection) -> None:
        self.given.append(connection)

    def note_surplus(self, connection: Connection) -> None:
        self.surplus += 1


def run(steps: Steps[Any]) -> Any:
    """Run steps to their end; what they wait for comes."""
    try:
        wait = next(steps)
        while True:
            if isinstance(wait, Readable):
                cast(Any, wait.connection.sock).came = True
            wait = steps.send(True)
    except StopIteration as end:
        return end.value


def whole(pool: ScriptedPool, attempt: Attempt, wire: bytes = WIRE) -> Steps[tuple[int, bytes]]:
    """The status and the body of the answer."""
    response: EngineResponse = yield from converse(cast(ConnectionPool, pool), attempt, wire)
    body = yield from response.read_all()
    response.release()
    return response.status, bytes(body)


def outcome(pool: ScriptedPool, steps: Steps[Any]) -> object:
    """What comes of it, in a form that can be compared."""
    try:
        return run(steps), len(pool.given), pool.surplus
    except EngineFault as fault:
        return fault.outcome.kind, len(pool.given)


ANSWERS = {
    "by its length": answer(b"Content-Length: 15"),
    "in chunks": answer(b"Transfer-Encoding: chunked", body=b'3;x=y\r\n{"c\r\nc\r\nhoices": []}\r\n0\r\nA: b\r\n\r\n'),
    "until the end": answer(),
    "behind 1xx": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\n" + answer(b"Content-Length: 15"),
    "an error": answer(b"Content-Length: 15", status=b"503 Busy"),
    "nothing": answer(b"Content-Length: 0", body=b""),
    "cut short": answer(b"Content-Length: 99"),
    "a chunk that is none": answer(b"Transfer-Encoding: chunked", body=b"zz\r\n"),
    "no HTTP": b"SSH-2.0-x\r\n\r\n",
    "a head that is none": b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
    "101": b"HTTP/1.1 101 Switching\r\n\r\n",
    "no end of its head": b"HTTP/1.1 200 OK\r\nA: b\r\n",
}


class AnswerTest(unittest.TestCase):
    def test_however_an_answer_is_cut_the_same_comes_of_it(self) -> None:
        for name, data in ANSWERS.items():
            pool = ScriptedPool([ScriptedSocket([data])])
            expected = outcome(pool, whole(pool, Attempt(math.inf)))
            cuts: list[tuple[int, ...]] = [(i,) for i in range(1, len(data))]
            cuts += [tuple(range(1, len(data)))]
            cuts += list(itertools.combinations(range(1, len(data)), 2))[:: max(1, len(data) // 12)]
            for cut in cuts:
                pieces = [data[a:b] for a, b in zip((0, *cut), (*cut, len(data)))]
                pool = ScriptedPool([ScriptedSocket(pieces)])
                with self.subTest(name, cut=cut[:3]):
                    self.assertEqual(outcome(pool, whole(pool, Attempt(math.inf))), expected)

    def test_what_they_are(self) -> None:
        good = ((200, BODY), 1, 0)
        expected = {
            "by its length": good,
            "in chunks": good,
            "until the end": ((200, BODY), 0, 0),
            "behind 1xx": good,
            "an error": ((503, BODY), 1, 0),
            "nothing": ((200, b""), 1, 0),
            "cut short": ("truncated", 0),
            "a chunk that is none": ("invalid", 0),
            "no HTTP": ("invalid", 0),
            "a head that is none": ("invalid", 0),
            "101": ("invalid", 0),
            "no end of its head": ("truncated", 0),
        }
        for name, data in ANSWERS.items():
            pool = ScriptedPool([ScriptedSocket([data])])
            with self.subTest(name):
                self.assertEqual(outcome(pool, whole(pool, Attempt(math.inf))), expected[name])

    def test_a_stream_s_first_event_is_the_same_however_it_is_cut(self) -> None:
        body = b": loading\n\n" + delta("a") + delta("b", "stop") + DONE
        data = answer(b"Transfer-Encoding: chunked", body=chunked(body) + b"0\r\n\r\n")

        def first(pool: ScriptedPool) -> Steps[bytes]:
            response = yield from converse(cast(ConnectionPool, pool), Attempt(math.inf), WIRE)
            stream = EngineStream(response, EventStream(False))
            yield from stream.wait_first()
            lines = stream.first
            while not stream.done:
                lines += yield from stream.read()
            stream.give_back()
            return lines

        for cut in range(1, len(data)):
            pool = ScriptedPool([ScriptedSocket([data[:cut], data[cut:]])])
            with self.subTest(cut=cut):
                self.assertEqual(run(first(pool)), body)


class RequestTest(unittest.TestCase):
    def test_however_much_the_connection_takes_the_engine_gets_all_of_it_once(self) -> None:
        for kept in (False, True):
            for first in range(1, len(WIRE)):
                sock = ScriptedSocket([ANSWERS["by its length"]], [first, None, 3, None, None])
                pool = ScriptedPool([sock], kept)
                with self.subTest(kept=kept, first=first):
                    self.assertEqual(run(whole(pool, Attempt(math.inf))), (200, BODY))
                    self.assertEqual(sock.sent, WIRE)

    def test_an_early_refusal_is_heard_although_the_engine_has_closed(self) -> None:
        sock = ScriptedSocket([answer(b"Content-Length: 15", status=b"413 Large")], [10, -1])
        self.assertEqual(run(whole(ScriptedPool([sock]), Attempt(math.inf))), (413, BODY))

    def test_what_has_come_before_the_request_has_gone_is_not_waited_for(self) -> None:
        # An engine that speaks first, or while it is still being written to: a loop has been told of that already.
        early = answer(b"Content-Length: 15", status=b"503 Busy")
        for kept, takes in ((False, []), (False, [5, None]), (True, [5, None])):
            with self.subTest(kept=kept, takes=takes):
                sock = ScriptedSocket([early], takes)
                sock.came = not takes
                steps = converse(cast(ConnectionPool, ScriptedPool([sock], kept)), Attempt(math.inf), WIRE)
                with self.assertRaises(StopIteration) as end:
                    while True:
                        self.assertIsInstance(next(steps), Writable)
                        sock.came = True
                self.assertEqual(end.exception.value.status, 503)

    def test_an_engine_that_closes_before_it_has_all_has_reset(self) -> None:
        for pieces in ([END], [ConnectionResetError()]):
            pool = ScriptedPool([ScriptedSocket(pieces, [10, -1])])
            self.assertEqual(outcome(pool, whole(pool, Attempt(math.inf))), ("reset", 0))


class ReplayTest(unittest.TestCase):
    def stale(self) -> list[ScriptedSocket]:
        """Ways in which a kept connection ends without an answer."""
        return [ScriptedSocket([END]), ScriptedSocket([ConnectionResetError()]), ScriptedSocket([], [-1])]

    def test_a_kept_connection_that_has_ended_costs_one_replay_on_a_fresh_one(self) -> None:
        for old in self.stale():
            fresh = ScriptedSocket([ANSWERS["by its length"]])
            attempt = Attempt(math.inf)
            self.assertEqual(run(whole(ScriptedPool([old, fresh], kept=True), attempt)), (200, BODY))
            self.assertEqual((fresh.sent, old.closed, attempt.replays), (WIRE, True, []))

    def test_without_a_replay_no_kept_connection_is_used(self) -> None:
        attempt = Attempt(math.inf)
        attempt.replays = []
        pool = ScriptedPool([ScriptedSocket([END]), ScriptedSocket([])], kept=True)
        self.assertEqual(outcome(pool, whole(pool, attempt)), ("reset", 0))

    def test_a_fresh_connection_that_cannot_be_had_is_the_attempt_s_failure(self) -> None:
        pool = ScriptedPool([ScriptedSocket([END])], kept=True)
        self.assertEqual(outcome(pool, whole(pool, Attempt(math.inf))), ("refused", 0))

    def test_a_part_of_an_answer_is_no_stale_connection(self) -> None:
        pool = ScriptedPool([ScriptedSocket([b"HTTP/1.1 2", END]), ScriptedSocket([])], kept=True)
        self.assertEqual(outcome(pool, whole(pool, Attempt(math.inf))), ("truncated", 0))


class EndingTest(unittest.TestCase):
    def test_closed_at_any_wait_the_connection_is_closed_and_nobody_s(self) -> None:
        data = ANSWERS["in chunks"]
        for stop in range(1, 12):
            sock = ScriptedSocket([data[i : i + 9] for i in range(0, len(data), 9)], [5, None, None])
            attempt = Attempt(math.inf)
            steps = converse(cast(ConnectionPool, ScriptedPool([sock])), attempt, WIRE)
            wait: Any = next(steps)
            try:
                for _ in range(stop):
                    if isinstance(wait, Readable):
                        sock.came = True
                    else:
                        self.assertIsInstance(wait, Writable)
                    wait = steps.send(True)
            except StopIteration:
                break  # the head has come
            steps.close()
            self.assertTrue(sock.closed)
            self.assertIsNone(attempt.connection)

    def test_an_attempt_that_is_ended_says_why(self) -> None:
        for reason, kind in (("timeout", "timeout"), ("hung", "hung")):
            attempt = Attempt(math.inf)
            steps = converse(cast(ConnectionPool, ScriptedPool([ScriptedSocket([END])])), attempt, WIRE)
            wait = next(steps)
            attempt.aborted = reason
            cast(Any, wait).connection.sock.came = True
            with self.assertRaises(EngineFault) as caught:
                steps.send(True)
            self.assertEqual(caught.exception.outcome.kind, kind)
        attempt = Attempt(math.inf)
        steps = converse(cast(ConnectionPool, ScriptedPool([ScriptedSocket([END])])), attempt, WIRE)
        wait = next(steps)
        attempt.aborted = "cancelled"
        cast(Any, wait).connection.sock.came = True
        with self.assertRaises(ClientGone):
            steps.send(True)


if __name__ == "__main__":
    unittest.main()
