"""Requests that wait for an engine when it goes out, on real sockets: who is moved, who is not, what is told of it."""

from __future__ import annotations

import contextlib
import socket
import threading
import unittest
from collections.abc import Iterator
from typing import Any, Callable

from gateway.routing.engine import Engine
from inference import InferenceFactory
from tests.naming import deaf
from tests.onloop import OnLoopTest, completion
from tests.ports import free_port
from tests.resilience import ask
from tests.scripted import DONE, STREAM_HEAD, EngineSide, ScriptedEngine, chunked, delta
from tests.support import TIMEOUT_S, Response, RunningGateway, content_of, eventually

STREAM = ask(stream=True)
WHOLE_STREAM = STREAM_HEAD + chunked(delta("well", "stop") + DONE) + b"0\r\n\r\n"
RESCUED = 'gateway_rescued_total{model="m",engine="127.0.0.1:%d"}'
RETRIES = 'gateway_retries_total{model="m",reason="hung"}'
ATTEMPTS = 'gateway_engine_requests_total{model="m",engine="127.0.0.1:%d",outcome="%s"}'


def goes_out(factory: InferenceFactory, *engines: ScriptedEngine) -> None:
    """Their probes fail."""
    for pool in factory.router.pools.values():
        for engine in pool.engines:
            if engine.spec.url in {scripted.url for scripted in engines}:
                pool.record_probe(engine, "health check failed", 1, 1)


class RescueTest(OnLoopTest):
    def fleet(self, count: int, model: Any = None, **variables: object) -> tuple[RunningGateway, list[ScriptedEngine]]:
        """A gateway in front of scripted engines, asked in this order; no other model."""
        engines = [self.scripted() for _ in range(count)]
        return self.serve({"m": {"engines": [e.url for e in engines], **(model or {})}}, **variables), engines

    def out(self, running: RunningGateway, *engines: ScriptedEngine) -> None:
        goes_out(running.app.factory, *engines)

    def look(self, running: RunningGateway) -> None:
        """What the watchdog does at a tick, now."""
        running.app.factory.asker._attempts._rescue.expire()

    def in_flight(self, running: RunningGateway) -> list[int]:
        return [engine.in_flight for engine in running.app.factory.engines()]

    def engine_of(self, running: RunningGateway, engine: ScriptedEngine) -> Engine:
        return next(e for e in self.pool(running).engines if e.spec.url == engine.url)

    def assert_told(self, running: RunningGateway, answer: Response, left: ScriptedEngine, attempts: int = 2) -> None:
        """The metrics and the log agree that one request was moved away from this engine."""
        self.assertEqual(running.request_line(answer.request_id)["attempts"], attempts)
        metrics = running.metrics()
        self.assertEqual((metrics[RESCUED % left.port], metrics[RETRIES]), (1, 1))
        self.assertEqual(metrics[ATTEMPTS % (left.port, "hung")], 1)
        self.assert_nothing_held(running)

    def assert_nobody_moved(self, running: RunningGateway) -> None:
        self.assertFalse([name for name in running.metrics() if name.startswith("gateway_rescued_total{")])

    def test_a_complete_answer_comes_from_another_engine(self) -> None:
        running, (hung, good) = self.fleet(2)
        client = self.begin(running, None, [("Idempotency-Key", "once")])
        side = hung.take()
        self.out(running, hung)
        other = good.take()
        self.assertTrue(side.wait_until_left())
        self.assertIn(b"Idempotency-Key: once", other.head)
        other.answer(completion("well"))
        answer = client.read_response()
        self.assert_answered_by(answer, good.port, attempts=2)
        self.assert_told(running, answer, hung)
        self.assertEqual(self.states(running), ["down", "up"])
        self.pool(running).record_probe(self.engine_of(running, hung), None, 2, 1)
        self.assertEqual(self.states(running), ["up", "up"])  # one request is no reason to stay away

    def test_a_stream_without_its_first_event_comes_from_another_engine(self) -> None:
        for said in (b"", STREAM_HEAD[:30], STREAM_HEAD, STREAM_HEAD + chunked(b": please wait\n\n")):
            with self.subTest(said=said):
                running, (hung, good) = self.fleet(2)
                client = self.begin(running, STREAM)
                side = hung.take()
                side.send(said)
                self.settle(running)
                self.out(running, hung)
                good.take().send(WHOLE_STREAM)
                self.assertTrue(side.wait_until_left())
                answer = client.read_response()
                self.assert_answered_by(answer, good.port, attempts=2)
                self.assertEqual(answer.body, delta("well", "stop") + DONE)
                self.assert_told(running, answer, hung)

    def test_one_that_is_asked_again_without_usage_comes_from_another_engine(self) -> None:
        running, (hung, good) = self.fleet(2)
        client = self.begin(running, STREAM)
        side = hung.take()
        side.answer(b'{"error": "no stream_options here"}', status="400 Bad Request")
        self.assertNotIn("stream_options", side.read_request().json)
        self.out(running, hung)
        good.take().send(WHOLE_STREAM)
        self.assertTrue(side.wait_until_left())
        answer = client.read_response()
        self.assert_answered_by(answer, good.port, attempts=3)
        self.assert_told(running, answer, hung, attempts=3)

    def test_a_stream_that_has_begun_goes_on(self) -> None:
        running, (engine, _) = self.fleet(2)
        client = self.begin(running, STREAM)
        side = engine.take()
        side.send(STREAM_HEAD + chunked(delta("one ")))
        client.read_head()
        self.assertEqual(content_of([client.read_event() or ""]), "one ")
        self.out(running, engine)
        self.look(running)
        side.send(chunked(delta("two", "stop") + DONE) + b"0\r\n\r\n")
        self.assertEqual(content_of(client.read_events()), "two")
        self.assert_nobody_moved(running)

    def test_a_complete_answer_that_has_begun_is_waited_for(self) -> None:
        body = completion("slow")
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        for said in (head, head + body[:20]):
            with self.subTest(said=said):
                running, (engine, _) = self.fleet(2)
                client = self.begin(running)
                side = engine.take()
                side.send(said)
                waiting = running.app.factory.asker._attempts._rescue._waiting
                eventually(lambda waiting=waiting: all(attempt.begun for attempt in waiting))
                self.out(running, engine)
                self.look(running)
                side.send((head + body)[len(said) :])
                self.assert_says(client, "slow")
                self.assert_nobody_moved(running)

    def test_a_connection_refused_elsewhere_moves_what_waits(self) -> None:
        hung, good = self.scripted(free_port()), self.engine()
        running = self.serve({"m": {"engines": [hung.url, good.url]}})
        client = self.begin(running)
        hung.take()
        hung._listener.close()
        self.assert_answered_by(running.post(ask()), good.port, attempts=1)
        self.assert_answered_by(running.post(ask()), good.port, attempts=2)  # refused first
        answer = client.read_response()
        self.assert_answered_by(answer, good.port, attempts=2)
        self.assert_told(running, answer, hung)

    @unittest.skipUnless(hasattr(socket, "MSG_DONTWAIT"), "a full queue refuses here")
    def test_an_engine_that_does_not_even_accept_is_left_too(self) -> None:
        with deaf() as port:
            good = self.engine()
            urls = [f"http://127.0.0.1:{port}/v1", good.url]
            running = self.serve({"m": {"engines": urls}}, CONNECT_TIMEOUT=60)
            for body in (ask(), STREAM):
                client = self.begin(running, body)
                eventually(lambda: self.in_flight(running)[0] == 1)
                pool = self.pool(running)
                pool.record_probe(pool.engines[0], "health check failed", 1, 1)
                self.assert_answered_by(client.read_response(), good.port, attempts=2)
                pool.record_probe(pool.engines[0], None, 1, 1)
                pool.acquire((), b"")  # the other's turn is over
            self.assertEqual(running.wait_for_metric(RESCUED % port, 2), 2)

    def test_a_lone_engine_is_waited_for(self) -> None:
        running, (lone,) = self.fleet(1)
        client = self.begin(running)
        side = lone.take()
        self.out(running, lone)
        self.look(running)
        side.answer(completion("back"))
        self.assert_says(client, "back")
        self.assert_nobody_moved(running)
        self.assertEqual(self.states(running), ["up"])

    def test_another_model_stands_in(self) -> None:
        for attempts in (3, 1):
            hung, good = self.scripted(), self.scripted()
            running = self.serve({"m": {"engines": [hung.url]}, "n": {"engines": [good.url]}}, RETRY_ATTEMPTS=attempts)
            client = self.begin(running)
            hung.take()
            self.out(running, hung)
            good.take().answer(completion("well"))
            answer = client.read_response()
            self.assert_answered_by(answer, good.port, attempts=2)
            self.assertEqual(answer.header("x-gateway-fallback"), "m->n")
            self.assertEqual(running.wait_for_metric(RESCUED % hung.port, 1), 1)

    def test_a_request_without_a_try_left_waits_on(self) -> None:
        running, (hung, good) = self.fleet(2, RETRY_ATTEMPTS=1)
        client = self.begin(running)
        side = hung.take()
        self.out(running, hung)
        self.look(running)
        self.assertTrue(good.nobody_waits())
        side.answer(completion("back"))
        self.assert_says(client, "back")
        self.assert_nobody_moved(running)

    def test_without_a_retry_in_the_budget_it_waits_until_there_is_one(self) -> None:
        running, (hung, good) = self.fleet(2)
        budget = self.pool(running)._budget
        budget._least, budget._ratio = 0, 0.0
        client = self.begin(running)
        side = hung.take()
        self.out(running, hung)
        self.look(running)
        self.assertEqual((self.in_flight(running), good.nobody_waits()), ([1, 0], True))
        budget._least = 1
        good.take().answer(completion("well"))
        self.assertTrue(side.wait_until_left())
        self.assert_answered_by(client.read_response(), good.port, attempts=2)

    def test_all_that_a_proven_engine_held_moves_at_once(self) -> None:
        hung, good = self.scripted(), self.engine()
        running = self.serve({"m": {"engines": [hung.url, good.url]}})
        self.kept(running, hung).close()
        budget = self.pool(running)._budget
        budget._least, budget._ratio = 0, 0.0
        clients = []
        for number in range(24):
            client = self.begin(running, STREAM if number % 3 else ask())
            clients.append(client)
        eventually(lambda: self.in_flight(running) == [12, 0])
        self.out(running, hung)
        for client in clients:
            self.assertEqual(client.read_response().header("x-gateway-engine"), f"127.0.0.1:{good.port}")
        self.assertEqual(running.wait_for_metric(RESCUED % hung.port, 12), 12)

    def test_the_second_of_two_engines_asked_at_once_is_waited_for(self) -> None:
        running, (hung, rival, third) = self.fleet(3, {"hedge_after_ms": 1, "hedge_ratio": 1.0})
        client = self.begin(running)
        hung.take()
        eventually(lambda: not (rival.nobody_waits() and third.nobody_waits()))
        if rival.nobody_waits():
            rival, third = third, rival
        side = rival.take()
        self.out(running, hung)
        self.look(running)
        side.answer(completion("second"))
        self.assert_says(client, "second", attempts=2)
        self.assertTrue(third.nobody_waits())
        self.assert_nobody_moved(running)
        self.assert_nothing_held(running)

    def test_when_both_of_two_engines_asked_at_once_go_out_a_third_is(self) -> None:
        for body in (ask(), STREAM):
            running, (hung, rival, third) = self.fleet(3, {"hedge_after_ms": 1, "hedge_ratio": 1.0})
            client = self.begin(running, body)
            hung.take()
            eventually(lambda pair=(rival, third): not all(engine.nobody_waits() for engine in pair))
            if rival.nobody_waits():
                rival, third = third, rival
            rival.take()
            self.out(running, hung, rival)
            side = third.take()
            if body is STREAM:
                side.send(WHOLE_STREAM)
            else:
                side.answer(completion("well"))
            self.assert_answered_by(client.read_response(), third.port, attempts=3)
            self.assert_nothing_held(running)

    def test_a_stream_that_goes_on_elsewhere_is_moved_too(self) -> None:
        engines = [self.scripted() for _ in range(3)]
        running = self.serve({"m": {"engines": [{"url": e.url, "resume": True} for e in engines]}})
        client = self.begin(running, STREAM)
        side = engines[0].take()
        side.send(STREAM_HEAD + chunked(delta("one ")))
        client.read_head()
        self.assertEqual(content_of([client.read_event() or ""]), "one ")
        side.close()
        eventually(lambda: not all(engine.nobody_waits() for engine in engines[1:]))
        hung, good = engines[1:] if not engines[1].nobody_waits() else engines[:0:-1]
        hung.take()
        self.out(running, hung)
        good.take().send(STREAM_HEAD + chunked(delta("two", "stop") + DONE) + b"0\r\n\r\n")
        self.assertEqual(content_of(client.read_events()), "two")
        self.assertEqual(running.wait_for_metric(RESCUED % hung.port, 1), 1)
        self.assert_nothing_held(running)

    def test_a_client_that_leaves_has_nobody_else_asked(self) -> None:
        running, (hung, good) = self.fleet(2)
        client = self.begin(running, None, [("X-Request-ID", "left")])
        side = hung.take()
        client.close()
        self.assertTrue(side.wait_until_left())
        self.out(running, hung)
        self.assertEqual(running.request_line("left")["status"], 499)
        self.assertTrue(good.nobody_waits())
        self.assert_nobody_moved(running)
        self.assert_nothing_held(running)

    def while_held(self, running: RunningGateway, hung: ScriptedEngine, side: EngineSide, said: bytes) -> None:
        """The engine says something, and is given up before that is looked at."""
        rescue = running.app.factory.asker._attempts._rescue
        with self.hold_loop(running):
            side.send(said)
            self.out(running, hung)
            eventually(lambda: not rescue._waiting)

    def test_a_first_event_in_the_moment_of_the_move(self) -> None:
        running, (hung, good) = self.fleet(2)
        client = self.begin(running, STREAM)
        self.while_held(running, hung, hung.take(), STREAM_HEAD + chunked(delta("cut ")))
        good.take().send(WHOLE_STREAM)
        answer = client.read_response()
        self.assert_answered_by(answer, good.port, attempts=2)
        self.assertEqual(answer.body, delta("well", "stop") + DONE)
        self.assert_told(running, answer, hung)

    def test_a_complete_answer_in_the_moment_of_the_move(self) -> None:
        hung, good = self.scripted(), self.engine()
        running = self.serve({"m": {"engines": [hung.url, good.url]}})
        client = self.begin(running)
        body = completion("just")
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        self.while_held(running, hung, hung.take(), head + body)
        answer = client.read_response()
        self.assertEqual(answer.status, 200)  # the one or the other
        client.assert_quiet()
        self.assert_nothing_held(running)
        self.out(running, hung)  # its answer, if that stands, has brought it back
        for _ in range(3):
            self.assertEqual(running.post(ask()).status, 200)

    def test_the_library_has_it_too(self) -> None:
        hung, good = self.scripted(), self.engine()
        with InferenceFactory({"m": [hung.url, good.url]}, health_interval_s=0) as factory:
            factory.asker._attempts._rescue.expire()
            for streams in (False, True):
                self.assertEqual(self.asked_while(factory, hung, streams), f"Mock answer from m at {good.port}: hi")
                pool = factory.router.pools["m"]
                pool.record_probe(pool.engines[0], None, 1, 1)
                factory.generate("hi")  # the other's turn

    def asked_while(self, factory: InferenceFactory, hung: ScriptedEngine, streams: bool) -> str:
        """The answer to a request that the hung engine gets first."""
        messages = [{"role": "user", "content": "hi"}]

        def give_up() -> None:
            hung.take()
            goes_out(factory, hung)

        with self.beside(give_up):
            if not streams:
                return factory.generate("hi")
            chunks = list(factory.stream(messages))
        return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])

    @contextlib.contextmanager
    def beside(self, job: Callable[[], None]) -> Iterator[None]:
        """Run a job on a thread of its own, which has ended at the end of the block."""
        thread = threading.Thread(target=job, name="beside")
        thread.start()
        try:
            yield
        finally:
            thread.join(TIMEOUT_S)


if __name__ == "__main__":
    unittest.main()
