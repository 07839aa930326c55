"""Nobody gets another's answer: what an engine sends without having been asked is never taken for the next answer."""

from __future__ import annotations

import math
import socket
import threading
import unittest
from typing import NamedTuple
from unittest import mock

from gateway.upstream import connection
from gateway.upstream.attempt import Attempt
from gateway.upstream.connection import Connection
from gateway.upstream.connections import ConnectionPool
from gateway.upstream.framing import ResponseHead
from gateway.upstream.response import EngineResponse
from inference import InferenceFactory
from tests.onloop import OnLoopTest, completion
from tests.resilience import ask
from tests.scripted import DONE, STREAM_HEAD, EngineSide, ScriptedEngine, chunked, delta
from tests.support import CHAT, TIMEOUT_S, RawClient, RunningGateway, eventually

BORDER = 65536  # bytes that are read at once


def answer(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def padded(size: int) -> bytes:
    """A whole good answer of so many bytes."""
    excess = len(answer(completion("mine" + "x" * size))) - size
    whole = answer(completion("mine" + "x" * (size - excess)))
    assert len(whole) == size, "the length has another number of digits"
    return whole


EVIL = answer(completion("somebody else's"))
MINE = answer(completion("mine"))
LAST = b"0\r\n\r\n"
STREAM = STREAM_HEAD + chunked(delta("mine", "stop")) + chunked(DONE)
BAD = answer(b'{"error": "no"}', "400 Bad Request")
BUSY = answer(b'{"error": "no"}', "500 Oops")
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(completion("mine")) + LAST


class Case(NamedTuple):
    """What an engine sends: all at once, and when the client has its answer. `stream`: the client asked for one."""

    name: str
    at_once: bytes
    later: bytes = b""
    stream: bool = False


CASES = [
    Case("in the same segment", MINE + EVIL),
    Case("one byte", MINE + b"\n"),
    Case("behind a border", padded(BORDER) + EVIL),
    Case("behind two borders", padded(2 * BORDER) + EVIL),
    Case("on both sides of a border", padded(BORDER - 10) + EVIL),
    Case("later", MINE, EVIL),
    Case("behind chunks", CHUNKED + EVIL),
    Case("behind chunks, later", CHUNKED, EVIL),
    Case("behind a 4xx", BAD + EVIL),
    Case("behind a 4xx, later", BAD, EVIL),
    Case("behind a 5xx, later", BUSY, EVIL),
    Case("behind a 204", b"HTTP/1.1 204 No Content\r\n\r\n" + EVIL),
    Case("behind a 204, later", b"HTTP/1.1 204 No Content\r\n\r\n", EVIL),
    Case("the body of a 204", b"HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\nbody"),
    Case("behind a 304, later", b"HTTP/1.1 304 Not Modified\r\n\r\n", EVIL),
    Case("behind an empty answer", answer(b"") + EVIL),
    Case("a second answer behind 1xx", b"HTTP/1.1 103 Hints\r\n\r\n" + MINE, b"HTTP/1.1 103 Hints\r\n\r\n" + EVIL),
    Case("behind a stream", STREAM + LAST + EVIL, stream=True),
    Case("behind a stream, later", STREAM + LAST, EVIL, stream=True),
    Case("behind a stream's last chunk, which is late", STREAM, LAST + EVIL, stream=True),
    Case("instead of a stream's last chunk", STREAM, EVIL, stream=True),
    Case("behind [DONE], in its chunk", STREAM_HEAD + chunked(delta("mine", "stop") + DONE + EVIL) + LAST, stream=True),
    Case("behind [DONE], half a line", STREAM_HEAD + chunked(delta("mine", "stop") + DONE + b"H") + LAST, stream=True),
    Case("behind [DONE], in a chunk of its own", STREAM, chunked(delta("more")) + LAST, stream=True),
]
# What may stand there without being anybody's answer.
HARMLESS = [
    Case("nothing", MINE),
    Case("nothing behind chunks", CHUNKED),
    Case("nothing behind a 4xx", BAD),
    Case("nothing behind a stream", STREAM + LAST, stream=True),
    Case("a late last chunk", STREAM, LAST, stream=True),
    Case("blank lines behind [DONE]", STREAM + chunked(b"\n\r\n") + LAST, stream=True),
    Case("trailers", STREAM + b"0\r\nX-Sum: 1\r\n\r\n", stream=True),
]


def sample(engine: ScriptedEngine, model: str = "m") -> str:
    return f'gateway_engine_surplus_total{{model="{model}",engine="127.0.0.1:{engine.port}"}}'


class Surplus(OnLoopTest):
    """Each case has a model and an engine of its own."""

    def start(self, cases: list[Case], **variables: object) -> tuple[RunningGateway, list[ScriptedEngine]]:
        engines = [self.scripted() for _ in cases]
        models = {f"m{index}": {"engines": [engine.url]} for index, engine in enumerate(engines)}
        return self.serve(models, RETRY_ATTEMPTS=1, FALLBACK="off", **variables), engines

    def play(self, case: Case, running: RunningGateway, client: RawClient, side: EngineSide) -> None:
        """The request that the case is about, until the client has its answer and the engine has said everything."""
        side.send(case.at_once)
        if case.stream:
            self.assertEqual(client.read_head().status, 200)
            events = client.read_events()
            self.assertEqual(events[-1], "data: [DONE]")
            self.assertIn("mine", events[0])
        else:
            response = client.read_response()
            if response.status == 200:
                self.assertIn("mine", response.json()["choices"][0]["message"]["content"])
        if case.later:
            side.send(case.later)
        self.settle(running)
        self.assert_nothing_held(running)

    def next_is_answered(self, client: RawClient, model: str, side: EngineSide) -> None:
        client.request("POST", CHAT, ask("next", model=model))
        self.assertEqual(side.read_request().json["messages"][0]["content"], "next")
        side.answer(completion("yours"))
        self.assert_says(client, "yours")

    def run_case(self, running: RunningGateway, case: Case, model: str, engine: ScriptedEngine, kept: bool) -> None:
        with running.connect() as client, running.connect() as other:
            if kept:
                client.request("POST", CHAT, ask(model=model))
                side = engine.take()
                side.answer(completion("before"))
                self.assert_says(client, "before")
            client.request("POST", CHAT, ask(model=model, **({"stream": True} if case.stream else {})))
            side = side.read_request() if kept else engine.take()
            self.play(case, running, client, side)
            other.request("POST", CHAT, ask("next", model=model))
            new = engine.take()
            self.assertEqual(new.json["messages"][0]["content"], "next")
            new.answer(completion("yours"))
            self.assert_says(other, "yours")
            self.assertTrue(side.wait_until_left())
            client.assert_quiet()
            # The text of many metrics may be one of a moment ago.
            self.assertEqual(running.wait_for_metric(sample(engine, model), 1), 1)

    def test_the_next_client_gets_its_own_answer_and_the_surplus_counts(self) -> None:
        for kept in (False, True):
            running, engines = self.start(CASES)
            for index, (case, engine) in enumerate(zip(CASES, engines)):
                with self.subTest(case.name, kept=kept):
                    self.run_case(running, case, f"m{index}", engine, kept)

    def test_connections_on_which_nothing_stays_are_used_again(self) -> None:
        running, engines = self.start(HARMLESS)
        for index, (case, engine) in enumerate(zip(HARMLESS, engines)):
            model = f"m{index}"
            with self.subTest(case.name), running.connect() as client, running.connect() as other:
                client.request("POST", CHAT, ask(model=model, **({"stream": True} if case.stream else {})))
                side = engine.take()
                self.play(case, running, client, side)
                endpoint = running.app.factory.client.endpoint(running.app.factory.router.pools[model].engines[0].spec)
                eventually(lambda: len(endpoint.pool) == 1)  # noqa: B023
                self.next_is_answered(other, model, side)
                self.assertEqual(running.metrics()[sample(engine, model)], 0)
                self.assertTrue(engine.nobody_waits())


class Idle(OnLoopTest):
    """What comes on a connection that nobody uses."""

    def assert_surplus(self, running: RunningGateway, engine: ScriptedEngine, count: int) -> None:
        if count:
            running.wait_for_metric(sample(engine), count)
        self.assertEqual(running.metrics()[sample(engine)], count)

    def test_what_comes_together_with_a_request_is_not_its_answer(self) -> None:
        for end in (False, True):
            with self.subTest(end=end):
                running, engine = self.one_engine()
                client = self.begin(running)
                side = self.kept(running, engine, client)
                with self.hold_loop(running):  # both are reported in one go, the client's request first
                    client.request("POST", CHAT, ask())
                    if end:
                        side.close()
                    else:
                        side.send(EVIL)
                engine.take().answer(completion("yours"))
                self.assert_says(client, "yours")
                self.assert_surplus(running, engine, 0 if end else 1)

    def test_a_408_for_an_idle_connection_is_its_end_and_nobody_s_answer(self) -> None:
        running, engine = self.one_engine()
        client = self.begin(running)
        side = self.kept(running, engine, client)
        side.send(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        side.close()
        client.request("POST", CHAT, ask())
        side = engine.take()
        side.answer(completion("yours"))
        self.assert_says(client, "yours")
        self.assert_surplus(running, engine, 0)
        client.request("POST", CHAT, ask())
        side.read_request().answer(completion("again"))  # kept: it is trusted
        self.assert_says(client, "again")

    def test_an_end_says_nothing_of_the_other_connections(self) -> None:
        running, engine = self.one_engine()
        pairs = [(self.begin(running), engine.take()) for _ in range(3)]
        clients, sides = [client for client, _ in pairs], [side for _, side in pairs]
        for client, side in pairs:
            side.answer(completion("kept"))
            self.assert_says(client, "kept")
        sides[2].close()
        sides[1].close()
        clients[0].request("POST", CHAT, ask())
        sides[0].read_request().answer(completion("yours"))
        self.assert_says(clients[0], "yours")
        self.assertTrue(engine.nobody_waits())
        self.assert_surplus(running, engine, 0)

    def test_an_address_that_has_sent_more_than_it_should_gets_one_connection_a_request_for_a_while(self) -> None:
        running, engine = self.one_engine()
        pool = running.app.factory.client.endpoint(self.pool(running).engines[0].spec).pool
        pairs = [(self.begin(running), engine.take()) for _ in range(2)]
        first, sides = pairs[0][0], [side for _, side in pairs]
        for client, side in pairs:
            side.answer(completion("kept"))
            self.assert_says(client, "kept")
        sides[1].send(EVIL)
        for _ in range(3):  # nor is the other one used that was kept before
            first.request("POST", CHAT, ask())
            side = engine.take()
            side.answer(completion("yours"))
            self.assert_says(first, "yours")
            self.assertTrue(side.wait_until_left())
        self.assertTrue(sides[0].wait_until_left())
        self.assert_surplus(running, engine, 1)
        with mock.patch.object(pool, "_clock", lambda: pool._trusted_from_s):
            first.request("POST", CHAT, ask())
            side = engine.take()
            side.answer(completion("kept again"))
            self.assert_says(first, "kept again")
            first.request("POST", CHAT, ask())
            side.read_request().answer(completion("yours"))
            self.assert_says(first, "yours")

    def test_what_is_found_when_an_idle_connection_is_closed_counts_too(self) -> None:
        running, engine = self.one_engine()
        self.kept(running, engine).send(EVIL)
        running.app.factory.client.endpoint(self.pool(running).engines[0].spec).pool.prune(-1.0)
        self.assert_surplus(running, engine, 1)

    def test_models_that_share_an_address_count_for_themselves(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [engine.url]}, "n": {"engines": [engine.url]}}, RETRY_ATTEMPTS=1)
        client = self.begin(running, ask(model="n"))
        engine.take().send(MINE + EVIL)
        self.assert_says(client, "mine")
        counts = {k: v for k, v in running.metrics().items() if k.startswith("gateway_engine_surplus_total")}
        self.assertEqual({k.split('"')[1]: v for k, v in counts.items()}, {"m": 0, "n": 1})


class Distrust(unittest.TestCase):
    def test_an_address_that_is_trusted_again_in_vain_is_distrusted_for_longer(self) -> None:
        now_s = 1000.0
        pool = ConnectionPool("127.0.0.1", 1, None, 1.0, clock=lambda: now_s)

        def kept() -> bool:
            ours, engine = socket.socketpair()
            with ours, engine:
                pool.give(Connection(ours))
                return pool.take() is not None

        self.assertTrue(kept())
        for seconds in (60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 3600.0, 3600.0):
            for _ in range(2):  # what comes meanwhile only makes it begin anew
                with socket.socket() as sock:
                    pool.note_surplus(Connection(sock))
            now_s += seconds - 1.0
            self.assertFalse(kept(), seconds)
            now_s += 1.0
            self.assertTrue(kept(), seconds)


class GivingBack(unittest.TestCase):
    def test_an_answer_gives_its_connection_back_once(self) -> None:
        ours, engine = socket.socketpair()
        with ours, engine:
            pool = ConnectionPool("127.0.0.1", 1, None, 1.0)
            head = ResponseHead(204, {}, True)
            response = EngineResponse(head, b"", Connection(ours), pool, Attempt(math.inf))
            for end in (response.release, response.release, response.close):
                end()
            self.assertEqual(len(pool), 1)
            self.assertIsNotNone(pool.take())
            self.assertIsNone(pool.take())


class Hedged(OnLoopTest):
    def test_the_second_engine_s_surplus_is_nobody_s_answer(self) -> None:
        slow, quick = self.scripted(), self.scripted()
        spec = {"engines": [slow.url, quick.url], "hedge_after_ms": 1, "hedge_ratio": 1.0}
        running = self.serve({"m": spec}, RETRY_ATTEMPTS=1)
        client = self.begin(running)
        first, second = slow.take(), quick.take()
        second.send(MINE + EVIL)
        self.assert_says(client, "mine", attempts=2)
        self.assertTrue(first.wait_until_left() and second.wait_until_left())
        self.assert_nothing_held(running)


class Library(OnLoopTest):
    """Without a gateway, and so through urllib's opener."""

    def test_the_next_caller_gets_its_own_answer(self) -> None:
        for case in (Case("at once", MINE + EVIL), Case("border", padded(BORDER) + EVIL), Case("later", MINE, EVIL)):
            engine = self.scripted()
            with self.subTest(case.name), InferenceFactory({"m": [engine.url]}, health_interval_s=0) as factory:
                self.asking(factory, engine, case.at_once, "mine").send(case.later)
                self.asking(factory, engine, MINE.replace(b"mine", b"next"), "next")
                self.assertEqual(factory.client.surplus(("m", factory.engines()[0].id)), 1)

    def asking(self, factory: InferenceFactory, engine: ScriptedEngine, says: bytes, expected: str) -> EngineSide:
        """One call, whose request comes on a new connection."""
        got: list[str] = []
        caller = threading.Thread(target=lambda: got.append(factory.generate("hi", model="m")), name="caller")
        caller.start()
        try:
            side = engine.take()
            side.send(says)
        finally:
            caller.join(TIMEOUT_S)
        self.assertTrue(got and got[0].startswith(expected), got)
        return side


class NoPoll(Surplus):
    """Where the system has no poll(), as on Windows."""

    @classmethod
    def setUpClass(cls) -> None:
        patcher = mock.patch.object(connection, "_HAS_POLL", False)
        patcher.start()
        cls.addClassCleanup(patcher.stop)
        super().setUpClass()


if __name__ == "__main__":
    unittest.main()
