"""Engines with names: a resolver that hangs or fails costs nobody an answer, and what a name stands for may change."""

from __future__ import annotations

import socket
import threading
import unittest
from typing import Any, Union
from unittest import mock

from gateway.mock.server import MockEngine
from gateway.routing.specs import EngineSpec
from gateway.upstream.prober import probe
from gateway.upstream.resolver import Resolver
from tests.http.test_connecting import several
from tests.naming import Names, deaf, resolver_threads
from tests.onloop import OnLoopTest, completion
from tests.ports import free_port
from tests.resilience import ask
from tests.scripted import DONE, STREAM_HEAD, ScriptedEngine, chunked, delta
from tests.support import CHAT, TIMEOUT_S, RunningGateway, chunk_of, eventually, load_settings

NAME = "engine.test"
OTHER = "other.test"
STREAM = ask(stream=True)


class NamesTest(OnLoopTest):
    """A gateway whose look-ups the test answers."""

    def setUp(self) -> None:
        super().setUp()
        self.names = Names()
        self.names.answers[NAME] = ["127.0.0.1"]
        self.enter(mock.patch.object(socket, "getaddrinfo", self.names))

    def tearDown(self) -> None:
        self.names.release()
        super().tearDown()

    def url(self, engine: Union[ScriptedEngine, MockEngine], name: str = NAME) -> str:
        return f"http://{name}:{engine.port}/v1"

    def serve_named(self, *urls: str, **variables: object) -> RunningGateway:
        return self.serve({"m": {"engines": list(urls)}}, **variables)

    def resolver(self, running: RunningGateway) -> Resolver:
        return running.app.factory.client.resolver

    def wait_until_known(self, running: RunningGateway, name: str = NAME) -> None:
        eventually(lambda: self.resolver(running).known(name))

    def look_again(self, running: RunningGateway, name: str = NAME) -> None:
        """Look a name up anew, as its time to live has it."""
        before = self.names.asked.count(name)
        resolver = self.resolver(running)
        with resolver._lock:
            resolver._begin_locked(name, resolver._names[name], 0.0)
        resolver._staff()
        self.names.wait_for(name, before + 1)
        eventually(lambda: not resolver._under_way)
        eventually(lambda: not resolver_threads())  # it has told of a change, too


class HangTest(NamesTest):
    def test_a_resolver_that_hangs_costs_nobody_the_answer_of_another_engine(self) -> None:
        # Without CONNECT_TIMEOUT, half of the request's time is what remains for the other one.
        for body, variables in (
            (ask(), {"REQUEST_TIMEOUT": 4}),
            (ask(), {"CONNECT_TIMEOUT": 0.5}),
            (STREAM, {"CONNECT_TIMEOUT": 0.5}),
        ):
            with self.subTest(**variables, stream="stream" in body):
                engine = self.scripted()
                self.names.hold(OTHER)
                running = self.serve_named(f"http://{OTHER}:{engine.port}/v1", engine.url, **variables)
                client = self.begin(running, body)
                side = engine.take()
                if body is STREAM:
                    side.send(STREAM_HEAD + chunked(delta("here", "stop")) + chunked(DONE) + b"0\r\n\r\n")
                    self.assertEqual(client.read_head().header("x-gateway-attempts"), "2")
                    text = chunk_of(client.read_events()[0])["choices"][0]["delta"]["content"]
                    self.assertEqual(text, "here")
                else:
                    side.answer(completion("here"))
                    self.assert_says(client, "here", attempts=2)
                sample = 'gateway_engine_requests_total{model="m",engine="%s:%d",outcome="connect_timeout"}'
                running.wait_for_metric(sample % (OTHER, engine.port), 1)
                self.assert_nothing_held(running)

    def test_a_client_that_leaves_is_not_waited_for(self) -> None:
        engine = self.scripted()
        self.names.hold(OTHER)
        running = self.serve_named(self.url(engine, OTHER), CONNECT_TIMEOUT=3600)
        for body in (ask(), STREAM):
            client = self.begin(running, body, [("X-Request-ID", f"left-{body is STREAM}")])
            eventually(lambda: running.app.pipeline.in_flight == 1)
            client.close()
            line = running.request_line(f"left-{body is STREAM}")
            self.assertEqual(line["status"], 499)
            self.assert_nothing_held(running)

    def test_it_is_used_as_soon_as_it_is_found(self) -> None:
        engine = self.scripted()
        gate = self.names.hold(NAME)
        running = self.serve_named(self.url(engine))
        client = self.begin(running)
        self.names.wait_for(NAME)
        gate.set()
        engine.take().answer(completion("found"))
        self.assert_says(client, "found")
        self.assertEqual(self.names.asked, [NAME])

    def test_the_end_comes_although_a_look_up_hangs(self) -> None:
        engine = self.scripted()
        self.names.hold(OTHER)
        running = self.serve_named(self.url(engine, OTHER))
        client = self.begin(running)
        eventually(lambda: running.app.pipeline.in_flight == 1)
        with mock.patch("gateway.upstream.resolver.CLOSE_S", 0.0):
            running.stop()
        client.wait_until_ended()
        self.names.release()
        eventually(lambda: not resolver_threads())

    def test_a_probe_ends_in_its_time(self) -> None:
        engine = self.scripted()
        self.names.hold(OTHER)
        resolver = Resolver()
        self.addCleanup(resolver.close)
        wrong = probe(EngineSpec(self.url(engine, OTHER)), 0.05, resolver)
        self.assertIn("no answer within 0.05 s", wrong or "")
        self.names.release()
        eventually(lambda: not resolver._under_way)

    def test_a_probe_that_fails_by_a_name_takes_the_engine_out(self) -> None:
        engine = self.engine()
        self.names.answers[OTHER] = socket.gaierror(socket.EAI_NONAME, "no such name")
        running = self.serve_named(self.url(engine, OTHER), engine.url, HEALTH_INTERVAL=0.05, HEALTH_FAILS=1)
        eventually(lambda: self.states(running)[0] == "down")
        self.assertIn("no such name", running.app.factory.engines()[0].last_error or "")


class KeptTest(NamesTest):
    def test_a_name_is_looked_up_at_the_start_and_kept(self) -> None:
        engine = self.scripted()
        running = self.serve_named(self.url(engine))
        self.wait_until_known(running)
        for number in range(3):
            client = self.begin(running)
            side = engine.take()  # each on a connection of its own
            side.answer(completion(str(number)))
            self.assert_says(client, str(number))
            self.drop_kept(running)
        self.assertEqual(self.names.asked, [NAME])

    def drop_kept(self, running: RunningGateway) -> None:
        """Close the one connection that is kept."""
        pool = running.app.factory.client.endpoint(self.pool(running).engines[0].spec).pool
        eventually(lambda: len(pool) == 1)
        pool.discard_idle()

    def test_with_one_address_known_no_thread_is_needed(self) -> None:
        engine = self.scripted()
        running = self.serve_named(self.url(engine))
        self.wait_until_known(running)
        with running.connect() as client, self.no_thread(running):
            self.settle(running)
            client.request("POST", CHAT, ask())
            engine.take().answer(completion("on the loop"))
            self.assert_says(client, "on the loop")

    def test_the_last_good_answer_survives_failures(self) -> None:
        self.enter(mock.patch("gateway.upstream.resolver.RETRY_S", 0.0))
        engine = self.scripted()
        running = self.serve_named(self.url(engine), DNS_TTL=0.001)
        eventually(lambda: self.resolver(running)._names[NAME].answer)
        for failure in (socket.gaierror(socket.EAI_AGAIN, "try again"), OSError(5, "broken")):
            self.names.answers[NAME] = failure
            eventually(lambda failure=failure: self.has_failed(running, failure))
            for _ in range(3):
                client = self.begin(running)
                engine.take().answer(completion("still"))
                self.assert_says(client, "still")
                self.drop_kept(running)
        self.assertEqual(self.states(running), ["up"])

    def has_failed(self, running: RunningGateway, failure: OSError) -> bool:
        running.app.factory.client.prune()  # housekeeping: it looks up what is due
        return self.resolver(running)._names[NAME].failure is failure

    def test_with_no_time_to_live_a_name_is_looked_up_for_each_connection(self) -> None:
        engine = self.scripted()
        running = self.serve_named(self.url(engine), DNS_TTL=0)
        for number in range(1, 4):
            client = self.begin(running)
            side = engine.take()
            side.answer(completion("anew"))
            self.assert_says(client, "anew")
            self.assertEqual(self.names.asked, [NAME] * number)
            self.drop_kept(running)

    def test_a_name_that_nobody_knows_is_as_an_engine_that_refuses(self) -> None:
        engine = self.scripted()
        self.names.answers[OTHER] = socket.gaierror(socket.EAI_NONAME, "no such name")
        running = self.serve_named(self.url(engine, OTHER), RETRY_ATTEMPTS=1)
        for body in (ask(), STREAM):
            answer = running.post(body)
            self.assert_error(answer, 502, "backend_unavailable")
            self.assertIn("no such name", answer.json()["message"])
        self.assertEqual(self.states(running), ["down"])

    def test_names_follow_a_reload(self) -> None:
        engine = self.scripted()
        self.names.answers[OTHER] = ["127.0.0.1"]
        running = self.serve_named(self.url(engine))
        self.wait_until_known(running)
        running.app.reload(load_settings({"ENGINES": f"m={self.url(engine, OTHER)}"}))
        self.wait_until_known(running, OTHER)
        self.assertIsNone(self.resolver(running).known(NAME))
        client = self.begin(running)
        engine.take().answer(completion("moved"))
        self.assert_says(client, "moved")


class ChangeTest(NamesTest):
    def test_idle_connections_to_old_addresses_are_let_go(self) -> None:
        engine = self.scripted()
        running = self.serve_named(self.url(engine))
        self.wait_until_known(running)
        side = self.kept(running, engine)
        self.look_again(running)
        with running.connect() as client:
            client.request("POST", CHAT, ask())
            side.read_request().answer(completion("kept"))  # the same addresses: the same connection
            self.assert_says(client, "kept")
        self.names.answers[NAME] = ["127.0.0.2"]
        self.look_again(running)
        self.assertTrue(side.wait_until_left())

    def test_a_connection_in_use_goes_on_and_is_not_kept(self) -> None:
        engine = self.scripted()
        running = self.serve_named(self.url(engine))
        self.wait_until_known(running)
        client = self.begin(running)
        side = engine.take()
        self.names.answers[NAME] = ["127.0.0.2"]
        self.look_again(running)
        side.answer(completion("to its end"))
        self.assert_says(client, "to its end")
        self.assertTrue(side.wait_until_left())

    @several
    def test_requests_go_to_the_new_address(self) -> None:
        engine = self.scripted(free_port("127.0.0.1", "127.0.0.2"))
        running = self.serve_named(self.url(engine))
        self.wait_until_known(running)
        side = self.kept(running, engine)
        new = self.enter(socket.create_server(("127.0.0.2", engine.port)))
        new.settimeout(TIMEOUT_S)
        self.names.answers[NAME] = ["127.0.0.2"]
        self.look_again(running)
        self.assertTrue(side.wait_until_left())
        self.begin(running)
        self.enter(new.accept()[0])

    @several
    def test_an_address_that_does_not_answer_is_passed_by(self) -> None:
        port = free_port("127.0.0.1", "127.0.0.2")
        listener = self.enter(socket.create_server(("127.0.0.1", port)))
        listener.settimeout(TIMEOUT_S)
        with deaf("127.0.0.2", port):
            self.names.answers[NAME] = ["127.0.0.2", "127.0.0.1"]
            self.assertIn("no HTTP answer", self.probe_of(listener, port) or "")
            running = self.serve_named(f"http://{NAME}:{port}/v1")
            self.begin(running)
            self.enter(listener.accept()[0])

    def probe_of(self, listener: socket.socket, port: int) -> Any:
        """What a probe says of an engine that answers nonsense."""

        def answer() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(65536)
                sock.sendall(b"nonsense\r\n")

        thread = threading.Thread(target=answer, name="answer")
        thread.start()
        try:
            return probe(EngineSpec(f"http://{NAME}:{port}/v1"), TIMEOUT_S)
        finally:
            thread.join(TIMEOUT_S)


class LocalhostTest(OnLoopTest):
    """The system's own resolver."""

    def test_an_engine_at_localhost(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [f"http://localhost:{engine.port}/v1"]}})
        side = self.kept(running, engine)
        self.assertIn(b"Host: localhost:%d\r\n" % engine.port, side.head)
        client = self.begin(running)
        side.read_request().answer(completion("again"))
        self.assert_says(client, "again")

    def test_a_probe_of_an_engine_at_localhost(self) -> None:
        engine = self.engine()
        self.assertIsNone(probe(EngineSpec(f"http://localhost:{engine.port}/v1"), TIMEOUT_S))


if __name__ == "__main__":
    unittest.main()
