"""Answers that are not streamed, from engines that misbehave: what the client gets, and what is remembered."""

from __future__ import annotations

import contextlib
import json
import threading
import unittest
from typing import Any

from gateway.errors import GatewayError
from gateway.mock.server import MockEngine
from inference import InferenceFactory
from tests.parallel import alone
from tests.ports import free_port
from tests.scripted import STREAM_HEAD, ScriptedEngine, chunked, delta
from tests.support import CHAT, HI, Response, RunningGateway, dead_url, eventually, gateway, mock_engine

ASK: dict[str, Any] = {**HI, "model": "m"}


class FailoverTestCase(unittest.TestCase):
    def setUp(self) -> None:
        self._stack = contextlib.ExitStack()
        self.addCleanup(self._stack.close)

    def engine(self, behaviour: str = "ok", model: str = "m", **options: Any) -> MockEngine:
        return self._stack.enter_context(mock_engine(model, behaviour, **options))

    def gateway(self, engines: str, **variables: object) -> RunningGateway:
        return self._stack.enter_context(gateway(ENGINES=engines, **variables))

    def states(self, running: RunningGateway) -> list[str]:
        return [engine.state for engine in running.app.factory.engines()]

    def assert_error(self, answer: Response, status: int, code: str) -> None:
        self.assertEqual((answer.status, answer.error), (status, code), answer.body)

    def assert_answered_by(self, answer: Response, engine: MockEngine, attempts: int) -> None:
        self.assertEqual(answer.status, 200, answer.body)
        content = answer.json()["choices"][0]["message"]["content"]
        self.assertIn(f" at {engine.port}: hi there", content)
        self.assertEqual(answer.header("x-gateway-engine"), f"127.0.0.1:{engine.port}")
        self.assertEqual(answer.header("x-gateway-attempts"), str(attempts))


class OneEngineTest(FailoverTestCase):
    def test_each_failure_of_the_only_engine_has_its_status_and_code(self) -> None:
        table: list[tuple[str, dict[str, Any], int, str]] = [
            ("refuse", {"seconds": 60}, 502, "backend_unavailable"),
            ("reset", {}, 502, "backend_unavailable"),
            ("error", {}, 502, "backend_error"),
            ("error", {"status": 503}, 502, "backend_error"),
            ("error", {"status": 408}, 502, "backend_error"),
            ("error", {"status": 307}, 502, "backend_error"),
            ("flaky", {"ratio": 1}, 502, "backend_error"),
            ("malformed", {}, 502, "backend_error"),
            ("truncate", {}, 502, "backend_error"),
            ("drop_mid_stream", {}, 502, "backend_error"),
            ("reset_mid_stream", {}, 502, "backend_error"),
            ("error_first_event", {}, 502, "backend_error"),
            ("loading", {}, 502, "backend_error"),
            ("unauthorized", {}, 502, "backend_error"),
            ("hang", {}, 504, "gateway_timeout"),
            ("slow", {"delay": 60}, 504, "gateway_timeout"),
            ("drip", {"gap": 60}, 504, "gateway_timeout"),
            ("rate_limit", {}, 429, "backend_rate_limited"),
        ]
        for behaviour, options, status, code in table:
            with self.subTest(behaviour=behaviour, **options):
                engine = self.engine(behaviour, **options)
                running = self.gateway(f"m={engine.url}", RETRY_ATTEMPTS=1, REQUEST_TIMEOUT="0.3")
                answer = running.post(ASK)
                self.assert_error(answer, status, code)
                self.assertEqual(answer.header("x-gateway-attempts"), "1")
                self.assertTrue(answer.json()["message"])
                line = running.request_line(answer.request_id)
                self.assertEqual((line["status"], line["error"], line["attempts"]), (status, code, 1))
                self.assertEqual(running.app.factory.engines()[0].in_flight, 0)

    def test_nobody_listens(self) -> None:
        answer = self.gateway(f"m={dead_url()}", RETRY_ATTEMPTS=1).post(ASK)
        self.assert_error(answer, 502, "backend_unavailable")

    def test_slow_and_dripping_engines_are_waited_for(self) -> None:
        for behaviour, options in (("slow", {"delay": 0.1}), ("drip", {"gap": 0})):
            with self.subTest(behaviour=behaviour):
                engine = self.engine(behaviour, **options)
                self.assert_answered_by(self.gateway(f"m={engine.url}").post(ASK), engine, attempts=1)

    def test_what_the_engine_rejects_is_the_caller_s_fault_and_nobody_else_is_asked(self) -> None:
        table: list[tuple[str, dict[str, Any], int, str]] = [
            ("bad_request", {}, 400, "m rejects this request"),
            ("error", {"status": 404}, 404, "mock error 404 from m"),
            ("error", {"status": 413}, 413, "mock error 413 from m"),
            ("error", {"status": 422}, 422, "mock error 422 from m"),
        ]
        for behaviour, options, status, message in table:
            with self.subTest(behaviour=behaviour, **options):
                first, second = self.engine(behaviour, **options), self.engine()
                running = self.gateway(f"m={first.url},{second.url};other={second.url}")
                answer = running.post(ASK)
                self.assert_error(answer, status, "backend_rejected")
                self.assertEqual(answer.json()["message"], message)
                self.assertEqual((first.stats()["requests"], second.stats()["requests"]), (1, 0))
                self.assertEqual(self.states(running), ["up"] * 3)

    def test_what_the_engine_cannot_do_is_held_against_nobody(self) -> None:
        # llama.cpp that was started without --embeddings says so with 501: one caller must not take it from all others.
        engine = self.engine("error", status=501)
        running = self.gateway(f"m={engine.url}", RETRY_ATTEMPTS=1, BREAKER_MIN_REQUESTS=1)
        for _ in range(3):
            answer = running.post(ASK)
            self.assert_error(answer, 502, "backend_error")
            self.assertEqual(answer.json()["message"], "the engine answered 501: mock error 501 from m")
            self.assertEqual(self.states(running), ["up"])
        engine.control(behaviour="ok")
        self.assert_answered_by(running.post(ASK), engine, attempts=1)

    def test_what_one_engine_cannot_do_another_is_asked_for(self) -> None:
        first, second = self.engine("error", status=501), self.engine()
        running = self.gateway(f"m={first.url},{second.url}", BREAKER_MIN_REQUESTS=1, STRATEGY="round_robin")
        self.assert_answered_by(running.post(ASK), second, attempts=2)
        self.assertEqual(self.states(running), ["up", "up"])

    def test_attempts_go_to_the_same_engine_when_there_is_no_other(self) -> None:
        engine = self.engine("error")
        answer = self.gateway(f"m={engine.url}", RETRY_ATTEMPTS=3).post(ASK)
        self.assert_error(answer, 502, "backend_error")
        self.assertEqual(answer.header("x-gateway-attempts"), "3")
        self.assertEqual(engine.stats()["requests"], 3)

    @alone
    def test_one_deadline_covers_all_attempts(self) -> None:
        first, second = self.engine("hang"), self.engine("hang")
        answer = self.gateway(f"m={first.url},{second.url}", REQUEST_TIMEOUT="0.3").post(ASK)
        self.assert_error(answer, 504, "gateway_timeout")
        self.assertEqual(first.stats()["requests"] + second.stats()["requests"], 1)
        self.assertTrue(first.wait_for_cancelled(1, 1.0))

    @alone
    def test_a_client_that_leaves_closes_the_engine_s_connection(self) -> None:
        engine = self.engine("hang")
        running = self.gateway(f"m={engine.url}")
        with running.connect() as client:
            client.request("POST", CHAT, ASK, [("X-Request-ID", "left")])
            self.assertTrue(engine.wait_for_requests(1, 10))
        self.assertTrue(engine.wait_for_cancelled(1, 1.0))
        line = running.request_line("left")
        self.assertEqual((line["status"], line["error"]), (499, "client_closed_request"))
        self.assertEqual(engine.stats()["requests"], 1)  # nobody else is asked for a client that has left
        self.assertIsNone(running.app.factory.engines()[0].last_error)


class SecondEngineTest(FailoverTestCase):
    def test_another_engine_answers_whatever_is_wrong_with_the_first(self) -> None:
        table: list[tuple[str, dict[str, Any], str]] = [
            ("refuse", {"seconds": 60}, "refused"),
            ("reset", {}, "reset"),
            ("error", {}, "error"),
            ("error", {"status": 408}, "error"),
            ("flaky", {"ratio": 1}, "error"),
            ("malformed", {}, "invalid"),
            ("error_first_event", {}, "error"),
            ("truncate", {}, "truncated"),
            ("drop_mid_stream", {}, "truncated"),
            ("loading", {}, "error"),
            ("rate_limit", {}, "rate_limited"),
            ("unauthorized", {}, "unauthorized"),
        ]
        for behaviour, options, outcome in table:
            with self.subTest(behaviour=behaviour, **options):
                bad, good = self.engine(behaviour, **options), self.engine()
                running = self.gateway(f"m={bad.url},{good.url}")
                answer = running.post(ASK)  # round robin: the first engine first
                self.assert_answered_by(answer, good, attempts=2)
                self.assertIsNone(answer.header("x-gateway-fallback"))
                line = running.request_line(answer.request_id)  # reported just after the answer
                metrics = running.metrics()
                for engine, label in ((bad, outcome), (good, "ok")):
                    labels = f'model="m",engine="127.0.0.1:{engine.port}",outcome="{label}"'
                    self.assertEqual(metrics[f"gateway_engine_requests_total{{{labels}}}"], 1)
                self.assertEqual(metrics[f'gateway_retries_total{{model="m",reason="{outcome}"}}'], 1)
                self.assertEqual((line["attempts"], line["fallback"], line["error"]), (2, None, None))

    def test_an_engine_that_refuses_is_out_at_once(self) -> None:
        bad, good = self.engine("refuse", seconds=60), self.engine()
        running = self.gateway(f"m={bad.url},{good.url}")
        self.assert_answered_by(running.post(ASK), good, attempts=2)
        self.assertEqual(self.states(running), ["down", "up"])
        for _ in range(4):
            self.assert_answered_by(running.post(ASK), good, attempts=1)

    def test_probes_bring_it_back(self) -> None:
        bad, good = self.engine("refuse", seconds=60), self.engine()
        running = self.gateway(f"m={bad.url},{good.url}", HEALTH_INTERVAL="0.05", HEALTH_FAILS=1)
        eventually(lambda: self.states(running) == ["down", "up"])
        self.assertEqual(running.metrics()[f'gateway_engine_up{{model="m",engine="127.0.0.1:{bad.port}"}}'], 0)
        bad.control("ok")
        eventually(lambda: self.states(running) == ["up", "up"])
        answers = {running.post(ASK).header("x-gateway-engine") for _ in range(4)}
        self.assertEqual(answers, {f"127.0.0.1:{bad.port}", f"127.0.0.1:{good.port}"})

    def test_an_engine_that_asks_for_a_pause_gets_it(self) -> None:
        resting, good = self.engine("rate_limit", retry_after=60), self.engine()
        running = self.gateway(f"m={resting.url},{good.url}")
        self.assert_answered_by(running.post(ASK), good, attempts=2)
        self.assertEqual(self.states(running), ["resting", "up"])
        for _ in range(4):
            self.assert_answered_by(running.post(ASK), good, attempts=1)
        self.assertEqual(resting.stats()["requests"], 1)

    def test_when_all_ask_for_a_pause_the_client_is_told_the_shortest(self) -> None:
        first, second = self.engine("rate_limit", retry_after=600), self.engine("rate_limit", retry_after=30)
        running = self.gateway(f"m={first.url},{second.url}")
        for attempts in ("2", "0"):  # the second time nobody is asked
            answer = running.post(ASK)
            self.assert_error(answer, 429, "backend_rate_limited")
            self.assertIsNotNone(answer.header("server-timing"))
            self.assertEqual(answer.header("retry-after"), "30")
            self.assertEqual(answer.header("x-gateway-attempts"), attempts)
        self.assertEqual((first.stats()["requests"], second.stats()["requests"]), (1, 1))

    def test_a_pause_without_a_length_is_a_second(self) -> None:
        engine = self.engine("rate_limit")
        answer = self.gateway(f"m={engine.url}").post(ASK)
        self.assert_error(answer, 429, "backend_rate_limited")
        self.assertEqual(answer.header("retry-after"), "1")

    def test_a_pause_ends_by_its_own_time(self) -> None:
        engine = self.engine("rate_limit", retry_after=0.2)
        running = self.gateway(f"m={engine.url}")
        self.assert_error(running.post(ASK), 429, "backend_rate_limited")
        engine.control("ok")
        eventually(lambda: running.post(ASK).status == 200)
        self.assertEqual(self.states(running), ["up"])

    def test_a_misconfigured_engine_is_left_alone_though_its_probes_are_good(self) -> None:
        bad, good = self.engine("unauthorized"), self.engine()
        running = self.gateway(f"m={bad.url},{good.url}", HEALTH_INTERVAL="0.05")
        self.assert_answered_by(running.post(ASK), good, attempts=2)
        probes = bad.stats()["probes"]
        eventually(lambda: bad.stats()["probes"] >= probes + 2)
        self.assertEqual(self.states(running), ["misconfigured", "up"])
        for _ in range(4):
            self.assert_answered_by(running.post(ASK), good, attempts=1)

    def test_the_last_engine_is_tried_even_when_it_is_out(self) -> None:
        engine = self.engine("refuse", seconds=60)
        running = self.gateway(f"m={engine.url}")
        self.assert_error(running.post(ASK), 502, "backend_unavailable")
        self.assertEqual(self.states(running), ["down"])
        engine.control("ok")
        self.assert_answered_by(running.post(ASK), engine, attempts=1)
        self.assertEqual(self.states(running), ["up"])

    def test_half_of_all_answers_failing_reaches_no_client(self) -> None:
        engines = [self.engine("flaky", ratio=0.5, seed=1), self.engine()]
        running = self.gateway(f"m={engines[0].url},{engines[1].url}")
        with running.connect() as client:
            for _ in range(40):
                self.assertEqual(client.post(ASK).status, 200)
        # Five outcomes, half of them failures, open its breaker: then the others have all the requests.
        self.assertGreaterEqual(engines[0].stats()["requests"], 3)


class OtherModelTest(FailoverTestCase):
    def test_another_model_answers_and_the_answer_says_so(self) -> None:
        table: list[tuple[str, dict[str, Any]]] = [
            ("error", {}),
            ("refuse", {"seconds": 60}),
            ("rate_limit", {}),
            ("unauthorized", {}),
        ]
        for behaviour, options in table:
            with self.subTest(behaviour=behaviour):
                bad, good = self.engine(behaviour, **options), self.engine(model="other")
                running = self.gateway(f"m={bad.url};other={good.url}", RETRY_ATTEMPTS=1)
                answer = running.post(ASK)
                self.assert_answered_by(answer, good, attempts=2)
                self.assertEqual(answer.header("x-gateway-fallback"), "m->other")
                self.assertEqual(answer.header("x-gateway-model"), "other")
                self.assertEqual(answer.json()["model"], "other")
                self.assertEqual(good.requests[-1]["body"]["model"], "other")
                line = running.request_line(answer.request_id)
                self.assertEqual((line["model"], line["fallback"]), ("other", "m->other"))
                metrics = running.metrics()
                self.assertEqual(metrics['gateway_fallbacks_total{from_model="m",to_model="other"}'], 1)

    def test_the_client_can_forbid_it(self) -> None:
        bad, good = self.engine("error"), self.engine()
        running = self.gateway(f"m={bad.url};other={good.url}")
        for value in ("off", "OFF"):
            answer = running.post(ASK, headers=[("X-Gateway-Fallback", value)])
            self.assert_error(answer, 502, "backend_error")
            self.assertIsNone(answer.header("x-gateway-fallback"))
        self.assertEqual(good.stats()["requests"], 0)

    def test_so_can_the_operator(self) -> None:
        bad, good = self.engine("error"), self.engine()
        for value in ("off", "configured"):  # no model here has a list of its own
            running = self.gateway(f"m={bad.url};other={good.url}", FALLBACK=value)
            self.assert_error(running.post(ASK), 502, "backend_error")
        self.assertEqual(good.stats()["requests"], 0)

    def test_models_are_asked_in_the_order_of_the_file_after_every_engine_of_the_first(self) -> None:
        bad = [self.engine("error") for _ in range(3)]
        good = self.engine()
        running = self.gateway(f"last={good.url};m={bad[0].url},{bad[1].url};second={bad[2].url}", RETRY_ATTEMPTS=2)
        answer = running.post(ASK)
        self.assertEqual(answer.header("x-gateway-fallback"), "m->last")
        self.assertEqual([engine.stats()["requests"] for engine in bad], [1, 1, 0])

    def test_when_every_model_fails_the_client_gets_one_error(self) -> None:
        bad = [self.engine("error"), self.engine("refuse", seconds=60)]
        answer = self.gateway(f"m={bad[0].url};other={bad[1].url}", RETRY_ATTEMPTS=1).post(ASK)
        self.assertEqual(answer.status, 502)
        self.assertEqual(answer.header("x-gateway-attempts"), "2")

    def test_a_pause_of_one_model_hides_no_failure_of_another(self) -> None:
        bad = [self.engine("rate_limit", retry_after=60), self.engine("error")]
        answer = self.gateway(f"m={bad[0].url};other={bad[1].url}", RETRY_ATTEMPTS=1).post(ASK)
        self.assert_error(answer, 502, "backend_error")


class HungEngineTest(FailoverTestCase):
    @alone
    def test_a_hung_engine_costs_its_caller_504_and_delays_nobody_else(self) -> None:
        hung, good = self.engine("hang"), self.engine()
        running = self.gateway(f"h={hung.url};m={good.url}", WORKERS=4, REQUEST_TIMEOUT=1, RETRY_ATTEMPTS=1)
        waiting = [self._stack.enter_context(running.connect()) for _ in range(3)]
        for client in waiting:
            client.request("POST", CHAT, {**HI, "model": "h"}, [("X-Gateway-Fallback", "off")])
        self.assertTrue(hung.wait_for_requests(3, 10))
        with running.connect() as client:
            for _ in range(50):
                self.assert_answered_by(client.post(ASK), good, attempts=1)
        for client in waiting:
            client.assert_quiet()  # fifty answers, and the three still wait
        for client in waiting:
            answer = client.read_response()
            self.assert_error(answer, 504, "gateway_timeout")
            line = running.request_line(answer.request_id)
            self.assertGreaterEqual(line["latency_ms"], 1000)
        self.assertTrue(hung.wait_for_cancelled(3, 1.0))

    @alone
    def test_a_hung_engine_s_connection_is_not_used_again(self) -> None:
        engine = self.engine("hang")
        running = self.gateway(f"m={engine.url}", REQUEST_TIMEOUT="0.3", RETRY_ATTEMPTS=1)
        self.assert_error(running.post(ASK), 504, "gateway_timeout")
        self.assertTrue(engine.wait_for_cancelled(1, 1.0))
        engine.control("ok")
        self.assert_answered_by(running.post(ASK), engine, attempts=1)
        self.assertEqual(engine.stats()["connections_total"], 2)


class KeptConnectionTest(FailoverTestCase):
    def test_an_engine_restarted_meanwhile_costs_no_attempt(self) -> None:
        engine = self.engine("slow", delay=0.05, port=free_port())
        running = self.gateway(f"m={engine.url}", RETRY_ATTEMPTS=1)
        clients = [self._stack.enter_context(running.connect()) for _ in range(5)]
        for client in clients:
            client.request("POST", CHAT, ASK)
        for client in clients:
            self.assertEqual(client.read_response().status, 200)
        engine.close()
        again = self._stack.enter_context(MockEngine(port=engine.port, model="m"))
        for client in clients:  # more kept connections than one, and all have died
            self.assert_answered_by(client.post(ASK), again, attempts=1)
        metrics = running.metrics()
        self.assertFalse([sample for sample in metrics if sample.startswith("gateway_retries_total{")])
        self.assertFalse([sample for sample in metrics if 'outcome="reset"' in sample])
        self.assertEqual(self.states(running), ["up"])

    def test_a_kept_connection_that_closes_on_the_request_is_replaced(self) -> None:
        with ScriptedEngine() as engine:
            running = self.gateway(f"m={engine.url}", RETRY_ATTEMPTS=1)
            with running.connect() as client:
                body = json.dumps({"choices": [{"message": {"content": "x"}}]}).encode()
                client.request("POST", CHAT, ASK)
                side = engine.take()
                side.answer(body)
                client.read_response()
                for end in ("close", "reset"):
                    client.request("POST", CHAT, ASK)
                    side.read_request()
                    getattr(side, end)()
                    side = engine.take()
                    side.answer(body)
                    answer = client.read_response()
                    self.assertEqual((answer.status, answer.header("x-gateway-attempts")), (200, "1"))

    def test_an_answer_that_began_on_a_kept_connection_is_not_asked_for_twice(self) -> None:
        with ScriptedEngine() as engine:
            running = self.gateway(f"m={engine.url}", RETRY_ATTEMPTS=1)
            with running.connect() as client:
                client.request("POST", CHAT, ASK)
                side = engine.take()
                side.answer(json.dumps({"choices": []}).encode())
                client.read_response()
                client.request("POST", CHAT, ASK)
                side.read_request()
                side.send(b"HTTP/1.1 200 OK\r\nContent-Le")
                side.close()
                self.assert_error(client.read_response(), 502, "backend_error")
                self.assertTrue(engine.nobody_waits())


class OddAnswersTest(FailoverTestCase):
    """Answers that no mock behaviour gives."""

    def ask(self, engine: ScriptedEngine, data: bytes, close: bool = False) -> Response:
        running = self.gateway(f"m={engine.url}", RETRY_ATTEMPTS=1)
        with running.connect() as client:
            client.request("POST", CHAT, ASK)
            side = engine.take()
            side.send(data)
            if close:
                side.close()
            return client.read_response()

    def test_what_is_no_answer_is_a_backend_error(self) -> None:
        good = b'{"choices": []}'
        table = [
            b"nonsense\r\n\r\n",
            b"HTTP/2 200\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\n" + good,
            b"HTTP/1.1 200 OK\r\nContent-Length: 3, 4\r\n\r\n" + good,
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n" + good,
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" + good,
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
            b'HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{"error":"x"}',
            b"HTTP/1.1 204 No Content\r\n\r\n",
            b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000,
        ]
        for data in table:
            with self.subTest(data=data[:60]), ScriptedEngine() as engine:
                self.assert_error(self.ask(engine, data), 502, "backend_error")

    def test_interim_answers_chunks_and_a_body_until_the_end_of_the_connection_are_read(self) -> None:
        body = json.dumps({"choices": [{"message": {"content": "fine"}}]}).encode()
        table = [
            b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
            b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body),
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%b%b0\r\nTrailer: x\r\n\r\n"
            % (chunked(body[:7]), chunked(body[7:])),
            b"HTTP/1.0 200 OK\r\n\r\n" + body,
        ]
        for data in table:
            with self.subTest(data=data[:60]), ScriptedEngine() as engine:
                answer = self.ask(engine, data, close=data.startswith(b"HTTP/1.0"))
                self.assertEqual(answer.json()["choices"][0]["message"]["content"], "fine")


class LibraryTest(FailoverTestCase):
    def test_the_factory_fails_over_without_a_server(self) -> None:
        bad, good = self.engine("error"), self.engine()
        with InferenceFactory({"m": [bad.url, good.url]}, health_interval_s=0) as factory:
            expected = f"Mock answer from m at {good.port}: hi there"
            for _ in range(4):
                self.assertEqual(factory.generate("hi there", model="m"), expected)
            chunks = list(factory.stream(HI["messages"]))
            texts = [choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]]
            self.assertEqual("".join(texts), expected)

    def test_a_stream_that_breaks_gives_what_came_and_then_raises(self) -> None:
        with ScriptedEngine() as engine, InferenceFactory({"m": [engine.url]}, health_interval_s=0) as factory:
            got: list[str] = []

            def serve() -> None:
                engine.take().send(STREAM_HEAD + chunked(delta("a") + delta("b")) + b"0\r\n\r\n")

            thread = threading.Thread(target=serve, name="engine")
            thread.start()
            with self.assertRaises(GatewayError) as caught:
                for chunk in factory.stream(HI["messages"]):
                    got.append(chunk["choices"][0]["delta"]["content"])
            thread.join(10)
            self.assertEqual((got, caught.exception.code), (["a", "b"], "backend_error"))
            self.assertEqual(factory.engines()[0].in_flight, 0)

    @alone
    def test_leaving_the_loop_closes_the_engine_s_connection(self) -> None:
        engine = self.engine()
        with InferenceFactory({"m": [engine.url]}, health_interval_s=0) as factory, engine.hold_after(1):
            stream = factory.stream(HI["messages"])
            next(stream)
            stream.close()  # type: ignore[attr-defined]
            self.assertTrue(engine.wait_for_cancelled(1, 1.0))
            self.assertEqual(factory.engines()[0].in_flight, 0)


if __name__ == "__main__":
    unittest.main()
