"""Engines' answers, however they come: on a connection that was kept and on a fresh one the client gets the same."""

from __future__ import annotations

import unittest
from typing import NamedTuple, Optional

from tests.onloop import OnLoopTest, completion
from tests.resilience import ask
from tests.scripted import EngineSide, ScriptedEngine, chunked
from tests.support import CHAT, RawClient, Response, RunningGateway

GOOD = completion("fine")
LARGE = "0123456789" * 100_000


def answer(body: bytes = GOOD, status: str = "HTTP/1.1 200 OK", length: Optional[int] = None, extra: str = "") -> bytes:
    """A whole answer; `length` is what it says that its body has."""
    head = f"{status}\r\nContent-Length: {len(body) if length is None else length}\r\n{extra}\r\n"
    return head.encode() + body


def cut(data: bytes, *places: int) -> list[bytes]:
    """`data` in pieces."""
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)])]


HEAD_BYTES = answer().index(b"\r\n\r\n") + 4
CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNKED = CHUNKED_HEAD + chunked(GOOD[:7]) + chunked(GOOD[7:]) + b"0\r\n\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
FINE = (200, "fine")
BROKEN = (502, "backend_error")


def with_head(size: int) -> bytes:
    """A whole answer whose head, without the blank line behind it, has so many bytes."""
    return answer(extra=f"X-Padding: {'x' * (size - len(with_padding('')))}\r\n")


def with_padding(text: str) -> bytes:
    return answer(extra=f"X-Padding: {text}\r\n").partition(b"\r\n\r\n")[0]


class Case(NamedTuple):
    """What an engine sends, piece by piece, and what the client gets: status, and the text or the error's code.

    `reused`: whether the next request comes on the same connection to the engine; None: either way.
    """

    name: str
    pieces: list[bytes]
    expected: tuple[int, str] = FINE
    reused: Optional[bool] = True
    closes: bool = False


CASES = [
    Case("whole", [answer()]),
    Case("byte by byte", cut(answer(), *range(1, len(answer())))),
    Case("head and body", cut(answer(), HEAD_BYTES)),
    Case("cut in the head", cut(answer(), 20)),
    Case("cut in the end of the head", cut(answer(), HEAD_BYTES - 2)),
    Case("cut in the body", cut(answer(), HEAD_BYTES + 5)),
    Case("the largest head", [with_head(65536)]),
    Case("the largest head, cut before its end", cut(with_head(65536), 65536 + 3)),
    Case("too large a head", [with_head(65537)], BROKEN, reused=False),
    Case("too large a head, cut", cut(with_head(65537), 30_000), BROKEN, reused=False),
    Case("too large a head, cut before its end", cut(with_head(65537), 65537 + 3), BROKEN, reused=False),
    Case("another reason", [answer(status="HTTP/1.1 200 Fine")]),
    Case("201", [answer(status="HTTP/1.1 201 Created")]),
    Case("chunked", [CHUNKED]),
    Case("chunked, in pieces", cut(CHUNKED, len(CHUNKED_HEAD), len(CHUNKED_HEAD) + 5, len(CHUNKED) - 3)),
    Case("padded chunk sizes", [CHUNKED_HEAD + b"%x   \r\n%b\r\n0  \r\n\r\n" % (len(GOOD), GOOD)]),
    Case("padded chunk sizes, cut", cut(CHUNKED_HEAD + b"%x \t;a\r\n%b\r\n0 \r\n\r\n" % (len(GOOD), GOOD), 49, 52, 55)),
    Case("connection: close", [answer(extra="Connection: close\r\n")], reused=False),
    Case("HTTP/1.0", [answer(status="HTTP/1.0 200 OK")], reused=False),
    Case("HTTP/1.0 until the end", [b"HTTP/1.0 200 OK\r\n\r\n" + GOOD], reused=False, closes=True),
    Case("HTTP/1.1 until the end", cut(b"HTTP/1.1 200 OK\r\n\r\n" + GOOD, 40), reused=False, closes=True),
    Case("1xx before", [HINTS + answer()]),
    Case("1xx before, apart", [HINTS, HINTS, answer()]),
    Case("1 MB", [answer(completion(LARGE))], (200, LARGE)),
    Case("longer than it said", [answer(length=len(GOOD)) + b"more"], reused=False),
    Case("shorter than it said", [answer(length=len(GOOD) + 1)], BROKEN, False, closes=True),
    Case("nothing but a head", cut(answer(), HEAD_BYTES)[:1], BROKEN, False, closes=True),
    Case("half of a head", cut(answer(), 20)[:1], BROKEN, False, closes=True),
    Case("two lengths", [answer(extra="Content-Length: 3\r\n")], BROKEN, False),
    Case("a chunk that is none", [CHUNKED_HEAD + b"zz\r\n" + GOOD], BROKEN, False),
    Case("two codings", [CHUNKED.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n", 1)], BROKEN, False),
    Case("a length and a coding", [CHUNKED.replace(b"\r\n", b"\r\nContent-Length: 3\r\n", 1)], reused=False),
    Case("a coding in HTTP/1.0", [CHUNKED.replace(b"1.1", b"1.0", 1)], reused=False),
    Case("a chunk size with 0x", [CHUNKED_HEAD, b"0x" + chunked(GOOD), b"0\r\n\r\n"], BROKEN, False),
    Case("an answer as a trailer", [CHUNKED[:-2] + answer()], BROKEN, False),
    Case("status 000", [answer(status="HTTP/1.1 000 OK")], BROKEN, False),
    Case("status 099", [answer(status="HTTP/1.1 099 OK")], BROKEN, False),
    Case("status 600", [answer(status="HTTP/1.1 600 OK")], BROKEN, False),
    Case("status 999", [answer(status="HTTP/1.1 999 OK")], BROKEN, False),
    Case("101", [b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + answer()], BROKEN, False),
    Case("1xx without an end", [HINTS * 100 + answer()], BROKEN, False),
    Case("NUL in the head", [answer(extra="X: a\0b\r\n")], BROKEN, False),
    Case("a bare CR in the head", [answer(extra="X: a\rb\r\n")], BROKEN, False),
    Case("a bare LF in the head", [answer(extra="X: a\nContent-Length: 3\r\n")], BROKEN, False),
    Case("a fold in the head", [answer(extra="X: a\r\n b\r\n")], BROKEN, False),
    Case("a space before a colon", [answer(extra="X : a\r\n")], BROKEN, False),
    Case("no HTTP", [b"hello\r\n\r\n"], BROKEN, False),
    Case("no JSON", [answer(b'{"choices": [')], BROKEN, None),
    Case("JSON, but no answer", [answer(b"[]")], BROKEN, None),
    Case("an error in a 200", [answer(b'{"error": "x"}')], BROKEN, None),
    Case("500", [answer(b'{"error": "x"}', "HTTP/1.1 500 Oops")], BROKEN, None),
    Case("500, in pieces", cut(answer(b"oops", "HTTP/1.1 500 Oops"), 9, 30), BROKEN, None),
    Case("400", [answer(b"{}", "HTTP/1.1 400 Bad")], (400, "backend_rejected"), None),
    Case("401", [answer(b"{}", "HTTP/1.1 401 Who")], BROKEN, None),
    Case("429", [answer(b"{}", "HTTP/1.1 429 Stop", None, "Retry-After: 7\r\n")], (429, "backend_rate_limited"), None),
]


class Answers(OnLoopTest):
    """Each case has a model of its own, since some of them put their engine out."""

    def start(self, cases: list[Case], **variables: object) -> tuple[RunningGateway, list[ScriptedEngine]]:
        engines = [self.scripted() for _ in cases]
        models = {f"m{index}": {"engines": [engine.url]} for index, engine in enumerate(engines)}
        return self.serve(models, RETRY_ATTEMPTS=1, FALLBACK="off", **variables), engines

    def play(self, running: RunningGateway, case: Case, side: EngineSide) -> None:
        for piece in case.pieces:
            side.send(piece)
            self.settle(running)
        if case.closes:
            side.close()

    def assert_expected(self, case: Case, response: Response) -> None:
        status, text = case.expected
        self.assertEqual(response.status, status, response.body[:500])
        self.assertEqual(response.header("x-gateway-attempts"), "1")
        if status == 200:
            self.assertEqual(response.json()["choices"][0]["message"]["content"], text)
        else:
            self.assertEqual(response.error, text)

    def assert_reused(
        self, case: Case, client: RawClient, model: str, engine: ScriptedEngine, side: EngineSide
    ) -> None:
        if case.reused is False and not case.closes:
            self.assertTrue(side.wait_until_left())
        client.request("POST", CHAT, ask(model=model))
        (side.read_request() if case.reused else engine.take()).answer(completion("next"))
        self.assert_says(client, "next")
        self.assertTrue(engine.nobody_waits())

    def run_cases(self, kept: bool) -> None:
        running, engines = self.start(CASES)
        for index, (case, engine) in enumerate(zip(CASES, engines)):
            model = f"m{index}"
            with self.subTest(case.name, kept=kept), running.connect() as client:
                client.request("POST", CHAT, ask(model=model))
                side = engine.take()
                if kept:
                    side.answer(completion("before"))
                    self.assert_says(client, "before")
                    client.request("POST", CHAT, ask(model=model))
                    side.read_request()
                self.play(running, case, side)
                self.assert_expected(case, client.read_response())
                if case.reused is not None:
                    self.assert_reused(case, client, model, engine, side)
                client.assert_quiet()
        self.assert_nothing_held(running)

    def test_on_a_fresh_connection(self) -> None:
        self.run_cases(kept=False)

    def test_on_a_kept_connection(self) -> None:
        self.run_cases(kept=True)


class KeptConnections(OnLoopTest):
    """What becomes of a connection between two requests, and under one."""

    def test_one_that_was_closed_between_two_requests_costs_no_attempt(self) -> None:
        for end in ("close", "reset"):
            with self.subTest(end):
                running, engine = self.one_engine()
                client = self.begin(running)
                side = self.kept(running, engine, client)
                getattr(side, end)()
                self.settle(running)
                client.request("POST", CHAT, ask())
                engine.take().answer(completion())
                self.assert_says(client, "fine")

    def test_one_that_ends_under_a_request_is_replaced_by_a_fresh_one_and_costs_no_attempt(self) -> None:
        for end in ("close", "reset"):
            with self.subTest(end):
                running, engine = self.one_engine()
                client = self.begin(running)
                side = self.kept(running, engine, client)
                client.request("POST", CHAT, ask())
                side.read_request()
                self.settle(running)
                getattr(side, end)()
                engine.take().answer(completion())
                self.assert_says(client, "fine")

    def test_when_the_fresh_one_is_reset_too_another_engine_answers(self) -> None:
        first, second = self.scripted(), self.engine(model="n")
        running = self.serve({"m": {"engines": [first.url]}, "n": {"engines": [second.url]}}, RETRY_ATTEMPTS=1)
        client = self.begin(running)
        side = self.kept(running, first, client)
        client.request("POST", CHAT, ask())
        side.read_request().reset()
        first.take().reset()
        self.assert_answered_by(client.read_response(), second.port, attempts=2)
        self.assert_nothing_held(running)

    def test_an_answer_that_is_cut_short_is_asked_for_elsewhere(self) -> None:
        first, second = self.scripted(), self.engine(model="n")
        running = self.serve({"m": {"engines": [first.url]}, "n": {"engines": [second.url]}}, RETRY_ATTEMPTS=1)
        for end in ("close", "reset"):
            with self.subTest(end):
                client = self.begin(running)
                side = self.kept(running, first, client)
                client.request("POST", CHAT, ask())
                side.read_request().send(answer()[:-1])
                self.settle(running)
                getattr(side, end)()
                self.assert_answered_by(client.read_response(), second.port, attempts=2)
                self.assertTrue(first.nobody_waits())

    def test_a_kept_connection_carries_many_requests(self) -> None:
        running, engine = self.one_engine()
        client = self.begin(running)
        side = self.kept(running, engine, client)
        for index in range(50):
            client.request("POST", CHAT, ask(str(index)))
            self.assertEqual(side.read_request().json["messages"][0]["content"], str(index))
            side.answer(completion(str(index)))
            self.assert_says(client, str(index))
        self.assertTrue(engine.nobody_waits())


if __name__ == "__main__":
    unittest.main()
