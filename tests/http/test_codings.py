"""Engines that compress what they answer, although they are asked not to: clients get it as if they had not."""

from __future__ import annotations

import gzip
import json
import unittest
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable
from unittest import mock

from gateway.upstream.codings import PIECE_BYTES
from gateway.upstream.stream import EngineStream
from inference import InferenceFactory
from tests.http.test_without_epoll import WithoutEpoll
from tests.onloop import OnLoopTest, completion
from tests.resilience import ask
from tests.scripted import DONE, STREAM_HEAD, chunked, delta
from tests.support import CHAT, COMPLETIONS, EMBEDDINGS, eventually
from tests.unit.test_codings import raw_deflate

CODERS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("gzip", gzip.compress),
    ("x-gzip", gzip.compress),
    ("deflate", zlib.compress),
    ("deflate", raw_deflate),
    ("deflate, gzip", lambda data: gzip.compress(zlib.compress(data))),
]
BODIES: dict[str, tuple[dict[str, Any], bytes]] = {
    CHAT: (ask(), completion("fine")),
    COMPLETIONS: ({"prompt": "hi"}, b'{"choices": [{"index": 0, "text": "fine", "finish_reason": "stop"}]}'),
    EMBEDDINGS: ({"input": "hi"}, b'{"object": "list", "data": [{"index": 0, "embedding": [1.0, 2.0]}]}'),
}


def answer(body: bytes, coding: str, status: str = "200 OK", extra: str = "") -> bytes:
    """A whole answer with this coding in its head."""
    lines = f"Content-Type: application/json\r\nContent-Encoding: {coding}\r\nContent-Length: {len(body)}\r\n{extra}"
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + body


def stream_head(coding: str = "gzip") -> bytes:
    """The head of an event stream with this coding."""
    return STREAM_HEAD.replace(b"\r\n", b"\r\nContent-Encoding: %b\r\n" % coding.encode(), 1)


class Flushing:
    """A compressor that ends each part so that it can be read at once."""

    def __init__(self, wbits: int = 31) -> None:
        self._compressor = zlib.compressobj(wbits=wbits)

    def part(self, data: bytes) -> bytes:
        """One chunk of a body."""
        return chunked(self._compressor.compress(data) + self._compressor.flush(zlib.Z_SYNC_FLUSH))

    def end(self) -> bytes:
        """The end of the body."""
        return chunked(self._compressor.flush()) + b"0\r\n\r\n"


class Complete(OnLoopTest):
    def test_no_engine_is_asked_for_a_coding(self) -> None:
        running, engine = self.one_engine()
        client = self.begin(running)
        side = engine.take()
        self.assertEqual(side.head.lower().count(b"\r\naccept-encoding: identity\r\n"), 1)
        side.answer(completion())
        self.assert_says(client, "fine")

    def test_every_kind_of_answer_in_every_coding(self) -> None:
        running, engine = self.one_engine()
        client = self.enter(running.connect())
        side = self.kept(running, engine, self.begin(running))
        for path, (request, body) in BODIES.items():
            for coding, coder in CODERS:
                coded = coder(body)
                chunks = answer(b"", coding).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
                chunks += chunked(coded[:9]) + chunked(coded[9:]) + b"0\r\n\r\n"
                for pieces in ([answer(coded, coding)], [answer(coded, coding)[:-7], coded[-7:]], [chunks]):
                    with self.subTest(path=path, coding=coding, pieces=len(pieces)):
                        client.request("POST", path, request)
                        side.read_request()  # on the connection of the last one: each has ended cleanly
                        for piece in pieces:
                            side.send(piece)
                            self.settle(running)
                        response = client.read_response()
                        self.assertEqual(response.status, 200, response.body)
                        self.assertIsNone(response.header("content-encoding"))
                        name = "data" if path == EMBEDDINGS else "choices"
                        self.assertEqual(response.json()[name], json.loads(body)[name])

    def test_a_body_until_the_end_of_the_connection(self) -> None:
        running, engine = self.one_engine()
        for size in (10, 700_000):
            client = self.begin(running)
            side = engine.take()
            side.send(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(completion("x" * size)))
            side.close()
            self.assert_says(client, "x" * size)

    def test_a_large_answer_that_compresses_well(self) -> None:
        running, engine = self.one_engine()
        for size in (100_000, 3_000_000):  # more than a piece; more than is parsed as a whole
            client = self.begin(running)
            side = engine.take()
            side.send(answer(gzip.compress(completion("y" * size)), "gzip", extra="Connection: close\r\n"))
            self.assert_says(client, "y" * size)

    def test_an_answer_that_is_no_stream_becomes_one(self) -> None:
        running, engine = self.one_engine()
        client = self.begin(running, ask(stream=True))
        engine.take().send(answer(gzip.compress(completion("fine")), "gzip"))
        client.read_head()
        events = client.read_events()
        self.assertIn("fine", events[0])
        self.assertEqual(events[-1], "data: [DONE]")

    def test_what_engines_say_of_an_error(self) -> None:
        running, engine = self.one_engine()
        error = b'{"error": {"message": "too many tokens"}}'
        for coding, coder in CODERS:
            for status in (b"400", b"500"):
                client = self.begin(running)
                engine.take().send(answer(coder(error), coding, f"{status.decode()} X", "Connection: close\r\n"))
                response = client.read_response()
                self.assertEqual(response.status, 400 if status == b"400" else 502)
                self.assertIn("too many tokens", response.json()["message"])

    def test_an_error_in_an_unknown_coding_keeps_its_status(self) -> None:
        running, engine = self.one_engine()
        client = self.begin(running)
        engine.take().send(answer(b"\x0b\x02\x80", "br", "422 X"))
        response = client.read_response()
        self.assert_error(response, 422, "backend_rejected")
        self.assertEqual(response.json()["message"], "the engine answered 422")

    def refused(self, sent: bytes, stream: bool = False) -> dict[str, Any]:
        """What the client is told when one engine sends this, after another one has answered it."""
        first, second = self.scripted(), self.scripted()
        running = self.serve({"m": {"engines": [first.url, second.url]}}, RETRY_ATTEMPTS=2)
        client = self.begin(running, ask(stream=stream))
        side = first.take()
        side.send(sent)
        second.take().answer(completion("elsewhere"))
        if stream:
            client.read_head()
            self.assertIn("elsewhere", client.read_events()[0])
        else:
            self.assert_says(client, "elsewhere", attempts=2)
        side.close()
        alone = self.serve({"m": {"engines": [first.url]}}, RETRY_ATTEMPTS=1)
        client = self.begin(alone, ask(stream=stream))
        side = first.take()
        side.send(sent)
        response = client.read_response()
        self.assert_error(response, 502, "backend_error")
        body: dict[str, Any] = response.json()
        return body

    def test_an_unknown_coding_is_named_and_goes_on_elsewhere(self) -> None:
        for coding in ("br", "zstd", "gzip, br"):
            self.assertIn(f"({coding[-4:].strip(', ')})", self.refused(answer(b"abc", coding))["message"])
        sent = stream_head("br") + chunked(b"\x0b\x02\x80")
        self.assertIn("(br)", self.refused(sent, stream=True)["message"])

    def test_what_is_damaged_or_cut_short_goes_on_elsewhere(self) -> None:
        coded = gzip.compress(completion())
        damaged = coded[:-5] + bytes((coded[-5] ^ 1,)) + coded[-4:]
        self.assertIn("damaged", self.refused(answer(damaged, "gzip"))["message"])
        self.assertIn("cut short", self.refused(answer(coded[:-1], "gzip"))["message"])
        self.assertIn("damaged", self.refused(answer(completion(), "gzip"))["message"])
        self.assertIn("damaged", self.refused(stream_head() + chunked(b"data: {}\n\n"), stream=True)["message"])

    def test_an_answer_too_large_once_it_is_read(self) -> None:
        running, engine = self.one_engine(MAX_ANSWER_BYTES=1_000_000)
        client = self.begin(running)
        engine.take().send(answer(gzip.compress(completion("x" * 1_000_000)), "gzip"))
        response = client.read_response()
        self.assert_error(response, 502, "backend_error")
        self.assertIn("more than 1000000 bytes", response.json()["message"])


class Streams(OnLoopTest):
    def test_each_event_is_passed_on_as_soon_as_it_can_be_read(self) -> None:
        running, engine = self.one_engine()
        side: Any = None
        for wbits, coding in ((31, "gzip"), (15, "deflate"), (-15, "deflate")):
            client = self.begin(running, ask(stream=True))
            side = engine.take() if side is None else side.read_request()  # kept: each has ended cleanly
            body = Flushing(wbits)
            side.send(stream_head(coding))
            for text in ("one", "two", "three"):
                side.send(body.part(delta(text)))
                if text == "one":
                    self.assertIsNone(client.read_head().header("content-encoding"))
                self.assertIn(text, client.read_event() or "")
            side.send(body.part(delta("", "stop") + DONE) + body.end())
            self.assertEqual(client.read_events()[-1], "data: [DONE]")
            self.assert_nothing_held(running)

    def many(self) -> bytes:
        """Events for many pieces, which take a few bytes."""
        return b"".join(delta(f"{number} " + "z" * 500) for number in range(3_000)) + delta("", "stop") + DONE

    def assert_whole(self, events: list[str]) -> None:
        self.assertEqual(events[-1], "data: [DONE]")
        texts = [json.loads(event[6:])["choices"][0]["delta"]["content"] for event in events[:-1]]
        self.assertEqual([text.partition(" ")[0] for text in texts[:-1]], [str(number) for number in range(3_000)])

    def test_what_comes_in_one_piece_and_stands_for_many(self) -> None:
        running, engine = self.one_engine()
        coded = gzip.compress(self.many())
        self.assertLess(len(coded), 65_536)
        for head in (
            stream_head(),
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: gzip\r\n\r\n",
        ):
            client = self.begin(running, ask(stream=True))
            side = engine.take()
            if head.count(b"chunked"):
                side.send(head + chunked(coded) + b"0\r\n\r\n")
            else:
                side.send(head + coded)
                side.close()
            client.read_head()
            self.assert_whole(client.read_events())
            side.close()
        self.assert_nothing_held(running)

    def test_a_client_that_takes_its_time_gets_all_of_it(self) -> None:
        running, engine = self.one_engine()
        client = self.begin(running, ask(stream=True))
        coded = gzip.compress(self.many().replace(b"zz", b"z" * 10))
        engine.take().send(stream_head() + chunked(coded) + b"0\r\n\r\n")
        relay = running.app.relay
        eventually(lambda: any(relayed._paused for relayed in list(relay._streams)))
        client.read_head()
        self.assert_whole(client.read_events())

    def test_what_stands_for_much_takes_many_turns(self) -> None:
        running, engine = self.one_engine()
        pull, turns = EngineStream.pull, []

        def noted(stream: EngineStream) -> bytes:
            lines = pull(stream)
            turns.append(len(lines))
            return lines

        events = self.many()
        with mock.patch.object(EngineStream, "pull", noted):
            client = self.begin(running, ask(stream=True))
            side = engine.take()
            side.send(stream_head() + chunked(gzip.compress(delta("first"))))
            client.read_head()
            self.assertIn("first", client.read_event() or "")
            side.send(chunked(gzip.compress(events)) + b"0\r\n\r\n")
            self.assert_whole(client.read_events())
        # Between two of them, all others have theirs.
        self.assertGreater(len(turns), len(events) // PIECE_BYTES)
        self.assertLess(max(turns), PIECE_BYTES + 1_000)

    def test_a_stream_cut_in_its_coding_is_told(self) -> None:
        running, engine = self.one_engine()
        for end in (b"0\r\n\r\n", b""):
            client = self.begin(running, ask(stream=True))
            side = engine.take()
            body = Flushing()
            side.send(stream_head() + body.part(delta("one")))
            client.read_head()
            self.assertIn("one", client.read_event() or "")
            side.send(end)
            side.close()
            events = client.read_events()
            self.assertEqual(len(events), 1)
            self.assertEqual(json.loads(events[0][6:])["error"], "backend_error")
            self.assertIn("cut short", json.loads(events[0][6:])["message"])

    def test_a_bomb_in_one_event_is_too_large(self) -> None:
        running, engine = self.one_engine(MAX_EVENT_BYTES=1_000_000)
        client = self.begin(running, ask(stream=True))
        side = engine.take()
        side.send(stream_head() + chunked(gzip.compress(delta("a") + b"data: " + b" " * 50_000_000)))
        client.read_head()
        events = client.read_events()
        self.assertIn("more than 1000000 bytes", events[-1])
        self.assert_nothing_held(running)


class CompleteWithoutEpoll(WithoutEpoll, Complete):
    pass


class StreamsWithoutEpoll(WithoutEpoll, Streams):
    pass


class LibraryTest(OnLoopTest):
    def test_the_library_reads_them(self) -> None:
        engine = self.scripted()
        messages = [{"role": "user", "content": "hi"}]
        with InferenceFactory({"m": [engine.url]}, health_interval_s=0) as factory, ThreadPoolExecutor(1) as pool:
            asking: Any = pool.submit(factory.generate, "hi")
            side = engine.take()
            side.send(answer(gzip.compress(completion("fine" * 50_000)), "gzip"))
            self.assertEqual(asking.result(), "fine" * 50_000)
            asking = pool.submit(lambda: list(factory.stream(messages)))
            body = Flushing()
            events = b"".join(delta("z" * 500) for _ in range(500))
            side.read_request().send(
                stream_head() + body.part(events) + body.part(delta("", "stop") + DONE) + body.end()
            )
            self.assertEqual(len(asking.result()), 501)


if __name__ == "__main__":
    unittest.main()
