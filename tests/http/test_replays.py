"""A request is sent once more, on a fresh connection, when a kept one ends without a byte: once, however many engines
there are. Everything beyond is an attempt."""

from __future__ import annotations

import threading
import unittest
from typing import Any

from gateway.errors import GatewayError
from gateway.mock.server import MockEngine
from gateway.steps import drive
from inference import InferenceFactory
from tests.onloop import OnLoopTest, completion
from tests.ports import free_port
from tests.resilience import ask
from tests.scripted import DONE, STREAM_HEAD, EngineSide, ScriptedEngine, chunked, delta
from tests.support import CHAT, TIMEOUT_S, RawClient, RunningGateway, eventually

KEPT = 3  # connections to each engine


class Replays(OnLoopTest):
    def keep(self, factory: InferenceFactory) -> None:
        """Idle connections to every engine, which have been used before."""
        for pool in factory.router.pools.values():
            for engine in pool.engines:
                endpoint = factory.client.endpoint(engine.spec)
                for _ in range(KEPT):
                    endpoint.pool.give(drive(endpoint.pool.connect(1.0)))

    def keep_one_each(
        self, running: RunningGateway, first: ScriptedEngine, second: ScriptedEngine
    ) -> tuple[RawClient, EngineSide]:
        """An idle connection to either engine; a client, and the engine's end of what it uses next."""
        clients = [self.begin(running) for _ in range(2)]
        sides = [engine.take() for engine in (first, second)]
        for side in sides:
            side.answer(completion("kept"))
        for client in clients:
            self.assert_says(client, "kept")
        return clients[0], sides[0]

    def three(self) -> list[MockEngine]:
        return [self.engine(model=f"m{index}") for index in range(3)]

    def posts(self, engines: list[MockEngine]) -> int:
        return sum(engine.stats()["requests"] for engine in engines)

    def assert_bounded(self, running: RunningGateway, engines: list[MockEngine], expected: int, body: Any) -> None:
        """One request that every engine reads and leaves: what it has cost, and what is said of it."""
        for engine in engines:
            engine.control("reset")
        self.keep(running.app.factory)
        before = self.posts(engines)
        answer = running.post(body, headers=[("X-Request-ID", "bounded")])
        self.assertGreaterEqual(answer.status, 500)
        line = running.request_line("bounded")
        self.assertEqual(answer.header("x-gateway-attempts"), str(expected))
        self.assertEqual(line["attempts"], expected)
        self.assertEqual(self.posts(engines) - before, expected + 1)
        outcomes = {k: v for k, v in running.metrics().items() if k.startswith("gateway_engine_requests_total")}
        self.assertEqual(sum(outcomes.values()), expected)

    def test_engines_that_read_a_request_and_leave_get_it_as_often_as_is_said_and_once_more(self) -> None:
        for attempts in (1, 3):
            for stream in (False, True):
                with self.subTest(attempts=attempts, stream=stream):
                    engines = self.three()
                    running = self.serve(
                        {f"m{i}": {"engines": [e.url]} for i, e in enumerate(engines)}, RETRY_ATTEMPTS=attempts
                    )
                    body = ask(model="m0", **({"stream": True} if stream else {}))
                    # An engine of its own is asked again as long as there are attempts.
                    self.assert_bounded(running, engines, 3 * attempts, body)

    def test_engines_of_one_model(self) -> None:
        for attempts in (1, 2, 3):
            with self.subTest(attempts=attempts):
                engines = self.three()
                running = self.serve({"m": {"engines": [e.url for e in engines]}}, RETRY_ATTEMPTS=attempts)
                self.assert_bounded(running, engines, attempts, ask())

    def test_the_replay_is_on_a_fresh_connection_though_others_are_kept(self) -> None:
        running, engine = self.one_engine()
        pairs = [(self.begin(running), engine.take()) for _ in range(2)]
        clients, sides = [client for client, _ in pairs], [side for _, side in pairs]
        for client, side in pairs:
            side.answer(completion("kept"))
            self.assert_says(client, "kept")
        clients[0].request("POST", CHAT, ask())
        sides[1].read_request().close()  # the one used last
        engine.take().answer(completion("fresh"))
        self.assert_says(clients[0], "fresh")
        self.assertTrue(engine.nobody_waits())

    def test_what_has_begun_to_answer_is_not_asked_again(self) -> None:
        for said in (b"H", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-"):
            with self.subTest(said=said):
                running, engine = self.one_engine()
                client = self.begin(running)
                side = self.kept(running, engine, client)
                client.request("POST", CHAT, ask())
                side.read_request().send(said)
                side.close()
                self.assert_error(client.read_response(), 502, "backend_error")
                self.assertTrue(engine.nobody_waits())

    def test_a_408_on_a_kept_connection_is_an_answer(self) -> None:
        running, engine = self.one_engine()
        client = self.begin(running)
        side = self.kept(running, engine, client)
        client.request("POST", CHAT, ask())
        side.read_request().answer(b"", status="408 Request Timeout")
        self.assert_error(client.read_response(), 502, "backend_error")
        self.assertTrue(engine.nobody_waits())

    def test_a_request_that_goes_to_another_engine_is_not_replayed_there(self) -> None:
        first, second = self.scripted(), self.scripted()
        running = self.serve({"m": {"engines": [first.url, second.url]}}, RETRY_ATTEMPTS=2)
        client, side = self.keep_one_each(running, first, second)
        client.request("POST", CHAT, ask())
        side.read_request().close()
        first.take().close()
        # Not on the kept connection, whose end would mean nothing.
        second.take().answer(completion("other"))
        self.assert_says(client, "other", attempts=2)

    def test_of_two_attempts_at_once_one_is_replayed(self) -> None:
        first, second = self.scripted(), self.scripted()
        hedged = {"m": {"engines": [first.url, second.url], "hedge_after_ms": 20, "hedge_ratio": 1}}
        running = self.serve(hedged, RETRY_ATTEMPTS=2)
        self.keep(running.app.factory)
        kept = {engine: [engine.accept() for _ in range(KEPT)][-1] for engine in (first, second)}  # the last is used
        client = self.enter(running.connect())
        client.request("POST", CHAT, ask())
        for engine in (first, second):
            kept[engine].read_request()
        kept[first].close()
        replay = first.take()
        kept[second].close()
        eventually(lambda: running.app.factory.engines()[1].in_flight == 0 or not second.nobody_waits())
        self.assertTrue(second.nobody_waits())
        replay.answer(completion("first"))
        self.assert_says(client, "first", attempts=2)

    def test_a_stream_that_goes_on_elsewhere_is_not_replayed_there_if_it_was_before(self) -> None:
        first, second = self.scripted(), self.scripted()
        table = {"m": {"engines": [{"url": e.url, "resume": True} for e in (first, second)]}}
        running = self.serve(table, RETRY_ATTEMPTS=2)
        client, side = self.keep_one_each(running, first, second)
        client.request("POST", CHAT, ask(stream=True))
        side.read_request().close()
        fresh = first.take()
        fresh.send(STREAM_HEAD + chunked(delta("one ")))
        client.read_head()
        self.assertIn("one ", client.read_event() or "")
        fresh.close()
        second.take().send(STREAM_HEAD + chunked(delta("two", "stop") + DONE) + b"0\r\n\r\n")
        self.assertEqual(client.read_events()[-1], "data: [DONE]")


class LargeRequests(OnLoopTest):
    """A request that takes a while to send, on a kept connection."""

    def test_what_comes_before_the_engine_has_it_is_not_its_answer(self) -> None:
        engine = self.scripted()
        with InferenceFactory({"m": [engine.url]}, health_interval_s=0) as factory:
            got: list[str] = []

            def call(text: str) -> threading.Thread:
                thread = threading.Thread(target=lambda: got.append(factory.generate(text, model="m")), name="caller")
                thread.start()
                self.addCleanup(thread.join, TIMEOUT_S)
                return thread

            caller = call("hi")
            side = engine.take()
            side.answer(completion("kept"))
            caller.join(TIMEOUT_S)
            caller = call("x" * 24_000_000)
            side.sock.recv(10)  # it is under way, and more of it than the system takes at once
            side.answer(completion("somebody else's"))
            threading.Thread(target=side.wait_until_left, name="engine", daemon=True).start()
            fresh = engine.accept()
            self.assertEqual(len(fresh.read_request().json["messages"][0]["content"]), 24_000_000)
            fresh.answer(completion("mine"))
            caller.join(TIMEOUT_S)
            self.assertEqual(got, ["kept", "mine"])

    def test_a_large_request_is_sent_whole_on_a_kept_connection(self) -> None:
        engine = self.engine()
        with InferenceFactory({"m": [engine.url]}, health_interval_s=0) as factory:
            for text in ("hi", "x" * 3_000_000, "y" * 70_000):
                self.assertIn(text[:50], factory.generate(text, model="m"))
            self.assertEqual(engine.stats()["requests"], 3)


class Failing(OnLoopTest):
    def test_a_fresh_connection_that_cannot_be_had_is_the_attempt_s_failure(self) -> None:
        engine = self.scripted(free_port())
        with InferenceFactory({"m": [engine.url]}, health_interval_s=0, retry_attempts=1) as factory:
            endpoint = factory.client.endpoint(factory.router.pools["m"].engines[0].spec)
            connection = drive(endpoint.pool.connect(1.0))
            side = engine.accept()
            endpoint.pool.give(connection)
            raised: list[GatewayError] = []

            def call() -> None:
                try:
                    factory.generate("hi", model="m")
                except GatewayError as error:
                    raised.append(error)

            caller = threading.Thread(target=call, name="caller")
            caller.start()
            side.read_request()
            engine._listener.close()
            side.close()
            caller.join(TIMEOUT_S)
            self.assertEqual([error.code for error in raised], ["backend_unavailable"])


if __name__ == "__main__":
    unittest.main()
