"""What a client gets of an engine's stream does not depend on how its bytes came, nor on how they were looked at."""

from __future__ import annotations

import gzip
import json
import math
import random
import select
import socket
import unittest
from typing import Optional
from unittest import mock

from gateway.errors import ClientGone
from gateway.routing.retry import CRASHED
from gateway.steps import drive
from gateway.upstream.attempt import Attempt, EngineFault
from gateway.upstream.codings import PIECE_BYTES
from gateway.upstream.connection import Connection
from gateway.upstream.connections import ConnectionPool
from gateway.upstream.framing import ResponseHead
from gateway.upstream.response import EngineResponse
from gateway.upstream.sse import EventStream
from gateway.upstream.stream import EngineStream
from tests.scripted import DONE, EngineSide, chunked, delta
from tests.support import TIMEOUT_S

PLAIN = [
    chunked(delta(text)) for text in ("Hello", " world", "\n", " she said: ", "caf\u00e9", " \\n", "1234567890" * 30)
]
LAST = chunked(delta("", "stop"))


def opened(sock: socket.socket, choices: int = 1, hide_usage: bool = False) -> EngineStream:
    """A stream on a socket, before its first byte."""
    sock.setblocking(False)
    head = ResponseHead(200, {b"transfer-encoding": b"chunked"}, True)
    pool = ConnectionPool("127.0.0.1", 1, None, 1.0)
    response = EngineResponse(head, b"", Connection(sock), pool, Attempt(math.inf))
    return EngineStream(response, EventStream(hide_usage, choices))


class Seen:
    """What came of a stream whose bytes came in `pieces`: `payload` for the client, chunks passed on as they were."""

    def __init__(self, pieces: list[bytes], choices: int = 1, hide_usage: bool = False) -> None:
        ours, engine = socket.socketpair()
        with ours, engine:
            self.stream = opened(ours, choices, hide_usage)
            self.events = self.stream.events
            self.payload = b""
            self.verbatim: list[bytes] = []
            self.fault: Optional[str] = None
            try:
                for piece in pieces:
                    engine.sendall(piece)
                    self._take(len(piece))
            except EngineFault as fault:
                self.payload += fault.lines
                self.fault = fault.outcome.message

    def _take(self, size: int) -> None:
        chunk = self.stream.pull_chunk()
        if chunk:
            line, _, rest = chunk.partition(b"\r\n")
            assert int(line, 16) == len(rest) - 2 and rest.endswith(b"\r\n") and len(chunk) == size
            self.verbatim.append(chunk)
            self.payload += rest[:-2]
        else:
            self.payload += self.stream.pull()

    def facts(self) -> tuple[object, ...]:
        events = self.events
        return (
            self.payload,
            self.fault,
            events.events,
            events.weight,
            events.usage,
            events.done,
            self.stream.drained,
        )


def by_bytes(data: bytes, choices: int = 1, hide_usage: bool = False) -> Seen:
    """The same stream, a byte at a time: nothing of it ever comes whole."""
    return Seen([data[i : i + 1] for i in range(len(data))], choices, hide_usage)


class ChunkTest(unittest.TestCase):
    def assert_as_by_bytes(self, pieces: list[bytes], choices: int = 1, hide_usage: bool = False) -> Seen:
        seen = Seen(pieces, choices, hide_usage)
        self.assertEqual(seen.facts(), by_bytes(b"".join(pieces), choices, hide_usage).facts())
        return seen

    def test_one_delta_after_another_is_passed_on_as_it_is(self) -> None:
        seen = self.assert_as_by_bytes([*PLAIN, LAST, chunked(DONE), b"0\r\n\r\n"])
        # The first two show how the engine writes them: before the first event nothing is usual yet.
        self.assertEqual(seen.verbatim, PLAIN[2:])
        self.assertTrue(seen.stream.drained)

    def test_an_engine_that_changes_how_it_writes_is_followed(self) -> None:
        def stamped(text: str, created: int) -> bytes:
            event = {"created": created, "choices": [{"delta": {"content": text}, "finish_reason": None}]}
            return chunked(b"data: " + json.dumps(event).encode() + b"\n\n")

        pieces = [stamped("a", 1), stamped("b", 1), stamped("c", 1), stamped("d", 2), stamped("e", 2)]
        self.assertEqual(self.assert_as_by_bytes(pieces).verbatim, [pieces[2], pieces[4]])

    def test_what_is_no_plain_delta_is_looked_at(self) -> None:
        begin = PLAIN[:3]
        event = delta("x")
        for name, piece in {
            "a quote in the text": chunked(delta('say "no"')),
            "a backslash at its end": chunked(delta("C:\\")),
            "no text": chunked(delta("")),
            "two events in a chunk": chunked(delta("one") + delta("two")),
            "two chunks": chunked(delta("one")) + chunked(delta("two")),
            "another chunk's beginning": chunked(delta("one")) + b"5",
            "a chunk's extension": b"%x;a=b\r\n%b\r\n" % (len(event), event),
            "a chunk size that counts too many": b"%x\r\n%b\r\n" % (len(event) + 2, event),
            "capital digits": b"%X\r\n%b\r\n" % (0xAB, delta("x" * (0xAB - len(delta(""))))),
            "leading zeros": b"00%x\r\n%b\r\n" % (len(event), event),
            "a second line": chunked(event[:-1] + b"data: 1\n\n"),
            "a line break in the text": chunked(delta("a-b").replace(b"a-b", b"a\nb")),
            "another one": chunked(delta("a-b").replace(b"a-b", b"a\rb")),
            "an end": LAST,
            "an end that is as long as none": chunked(delta("word", "ok")),
            "an error": chunked(b'data: {"error":{"message":"broken"}}\n\n'),
        }.items():
            with self.subTest(name):
                self.assertEqual(self.assert_as_by_bytes([*begin, piece]).verbatim, begin[2:])

    def test_a_chunk_under_way_may_hold_what_looks_like_one(self) -> None:
        event, lookalike = delta("x"), PLAIN[0]
        inside = event + lookalike
        pieces = [*PLAIN[:3], b"%x\r\n%b" % (len(inside), event), lookalike, b"\r\n", *PLAIN[3:]]
        self.assertNotIn(lookalike, self.assert_as_by_bytes(pieces).verbatim)
        head_first = [*PLAIN[:3], b"%x\r\n" % len(lookalike), lookalike, b"\r\n", *PLAIN[3:]]
        self.assertNotIn(lookalike, self.assert_as_by_bytes(head_first).verbatim)

    def test_a_reset_is_told_from_an_end(self) -> None:
        for linger, expected in ((True, "mid-stream"), (False, "cut short")):
            with self.subTest(expected), socket.create_server(("127.0.0.1", 0)) as listener:
                ours = socket.create_connection(listener.getsockname())
                engine, _ = listener.accept()
                with ours, EngineSide(engine).sock:
                    stream = opened(ours)
                    for piece in PLAIN[:3]:
                        engine.sendall(piece)
                        select.select([ours], [], [], TIMEOUT_S)
                        self.assertTrue(stream.pull_chunk() or stream.pull())
                    (EngineSide(engine).reset if linger else EngineSide(engine).close)()
                    select.select([ours], [], [], TIMEOUT_S)
                    with self.assertRaisesRegex(EngineFault, expected):
                        self.assertFalse(stream.pull_chunk() or stream.pull())

    def test_however_a_stream_is_cut_and_whatever_it_says(self) -> None:
        chance = random.Random(20)
        for _ in range(300):
            pieces, rest = [], b""
            for _ in range(chance.randint(1, 12)):
                rest += _anything(chance)
                if chance.random() < 0.8:
                    pieces.append(rest)
                    rest = b""
                elif chance.random() < 0.3:
                    cut = chance.randrange(len(rest) + 1)
                    pieces += [rest[:cut]] if cut else []
                    rest = rest[cut:]
            pieces += [rest] if rest else []
            self.assert_as_by_bytes(pieces, chance.randint(1, 2), chance.random() < 0.5)


class CrashTest(unittest.TestCase):
    def test_what_nobody_had_foreseen_counts_as_what_the_engine_was_about_to_say(self) -> None:
        for choices, good in ((1, True), (2, False)):
            ours, engine = socket.socketpair()
            with self.subTest(choices=choices), ours, engine:
                stream = opened(ours, choices)
                engine.sendall(chunked(delta("a", "stop")))
                stream.pull()
                self.assertTrue(stream.events.finished)
                engine.sendall(chunked(delta("b")))
                with mock.patch.object(EventStream, "feed", side_effect=RuntimeError("unforeseen")):
                    with self.assertRaises(EngineFault) as crash:
                        stream.pull()
                self.assertIs(crash.exception.outcome, CRASHED)
                self.assertEqual(stream.events.finished, good)  # else the relay would end it well


class PendingTest(unittest.TestCase):
    def test_an_answer_of_which_much_is_left_to_decode_is_not_read_on_when_nobody_waits_for_it(self) -> None:
        ours, engine = socket.socketpair()
        body = gzip.compress(b" " * 10 * PIECE_BYTES)
        head = ResponseHead(200, {b"content-length": b"%d" % len(body), b"content-encoding": b"gzip"}, True)
        with ours, engine:
            attempt = Attempt(math.inf)
            pool = ConnectionPool("127.0.0.1", 1, None, 1.0)
            response = EngineResponse(head, body, Connection(ours), pool, attempt)
            self.assertEqual(len(drive(response.read_some())), PIECE_BYTES)
            self.assertEqual(len(drive(response.read_some())), PIECE_BYTES)
            attempt.abort("cancelled")
            self.assertRaises(ClientGone, drive, response.read_some())


def _anything(chance: random.Random) -> bytes:
    text = "".join(chance.choice('ab "\\\n\u00e4{}:,') for _ in range(chance.randrange(6)))
    kind = chance.random()
    if kind < 0.7:
        event = delta(chance.choice(("word", " and", text)), index=chance.choice((0, 0, 0, 1)))
    elif kind < 0.8:
        event = delta(text, "stop", chance.choice((0, 1)))
    elif kind < 0.85:
        event = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n'
    elif kind < 0.9:
        event = b": a comment\n\n"
    elif kind < 0.95:
        event = delta(text).replace(b"\n\n", b"\r\n\r\n")
    else:
        event = DONE
    return chunked(event)


if __name__ == "__main__":
    unittest.main()
