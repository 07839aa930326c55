"""Engines that fail over real sockets: the circuit breaker, retries and their budget, attempt timeouts, contexts."""

from __future__ import annotations

import json
import time
import unittest
from typing import Any

from tests.parallel import alone
from tests.resilience import ResilienceTest, ask
from tests.support import CHAT, RunningGateway, dead_url, eventually


class BreakerTest(ResilienceTest):
    def three(self, **variables: object) -> RunningGateway:
        """Three engines, the first of which answers 503 at once."""
        self.bad, self.second, self.third = self.engine("error", status=503), self.engine(), self.engine()
        urls = [self.bad.url, self.second.url, self.third.url]
        return self.serve({"m": {"engines": urls}}, **variables)

    def ask_until_open(self, running: RunningGateway) -> None:
        with running.connect() as client:
            while self.pool(running).snapshot()[0].breaker != "open":
                self.assertEqual(client.post(ask()).status, 200)
                self.assertLess(self.bad.stats()["requests"], 10)

    def test_an_engine_that_fails_at_once_gets_nothing_once_it_is_open(self) -> None:
        for strategy in ("least_connections", "round_robin"):
            with self.subTest(strategy=strategy):
                running = self.three(STRATEGY=strategy, BREAKER_OPEN_SECONDS=60, BREAKER_MIN_REQUESTS=1)
                self.ask_until_open(running)
                before = self.bad.stats()["requests"]
                with running.connect() as client:
                    for _ in range(100):
                        answer = client.post(ask())
                        self.assertEqual((answer.status, answer.header("x-gateway-attempts")), (200, "1"))
                self.assertEqual(self.bad.stats()["requests"], before)

    def test_health_and_metrics_show_it_and_each_change_is_one_log_line(self) -> None:
        running = self.three(BREAKER_OPEN_SECONDS=0.3)
        bad_id = f"127.0.0.1:{self.bad.port}"
        gauge = f'gateway_breaker_state{{model="m",engine="{bad_id}"}}'
        self.assertEqual(running.metrics()[gauge], 0)
        self.ask_until_open(running)
        shown = running.get("/health").json()["models"]["m"]["engines"][0]
        self.assertEqual((shown["id"], shown["state"], shown["breaker"]), (bad_id, "open", "open"))
        self.assertEqual(shown["last_error"], "the engine answered 503: mock error 503 from m")
        self.assertEqual(running.metrics()[gauge], 2)
        self.bad.control("ok")
        before = self.bad.stats()["requests"]
        eventually(lambda: running.post(ask()).status == 200 and self.states(running) == ["up"] * 3)
        self.assertEqual(running.metrics()[gauge], 0)
        eventually(lambda: running.post(ask()).status == 200 and self.bad.stats()["requests"] > before + 2)
        expected = [("up", "open"), ("open", "half_open"), ("half_open", "up")]
        eventually(lambda: len(self.changes(running)) >= 3)
        self.assertEqual(self.changes(running), expected)

    def test_an_engine_whose_time_outside_has_passed_counts_as_available_without_a_request(self) -> None:
        engine = self.engine("error")
        running = self.serve({"m": {"engines": [engine.url]}}, BREAKER_OPEN_SECONDS=0.1, BREAKER_MIN_REQUESTS=1)
        up = f'gateway_engine_up{{model="m",engine="127.0.0.1:{engine.port}"}}'
        self.assertEqual(running.post(ask()).status, 502)
        asked = engine.stats()["requests"]
        eventually(lambda: running.metrics()[up] == 1)
        health = running.get("/health")
        self.assertEqual((health.status, health.json()["status"]), (200, "degraded"))
        self.assertTrue(health.json()["models"]["m"]["available"])
        self.assertEqual((self.states(running), engine.stats()["requests"]), (["open"], asked))

    def test_a_failed_trial_doubles_the_time_outside(self) -> None:
        running = self.three(BREAKER_OPEN_SECONDS=0.1, BREAKER_MAX_OPEN_SECONDS=60)
        self.ask_until_open(running)
        before = self.bad.stats()["requests"]
        eventually(lambda: running.post(ask()).status == 200 and self.bad.stats()["requests"] == before + 1)
        opened_again = time.monotonic()
        eventually(lambda: running.post(ask()).status == 200 and self.bad.stats()["requests"] == before + 2)
        self.assertGreaterEqual(time.monotonic() - opened_again, 0.15)

    def test_half_open_lets_exactly_one_request_through(self) -> None:
        running = self.three(BREAKER_OPEN_SECONDS=0.05)
        self.ask_until_open(running)
        self.bad.control("hang")
        before = self.bad.stats()["requests"]
        clients = {}
        while self.bad.stats()["requests"] == before:  # until one of them is the trial
            name = f"number-{len(clients)}"
            clients[name] = self.begin(running, headers=[("X-Request-ID", name)])
            eventually(lambda n=name: self.bad.stats()["requests"] > before or running.request_lines(n))
        self.assertEqual(self.states(running)[0], "half_open")
        gauge = f'gateway_breaker_state{{model="m",engine="127.0.0.1:{self.bad.port}"}}'
        self.assertEqual(running.metrics()[gauge], 1)
        for _ in range(10):
            self.assertEqual(running.post(ask()).header("x-gateway-attempts"), "1")
        self.assertEqual(self.bad.stats()["requests"], before + 1)
        self.bad.control("ok")
        trial = clients[self.bad.requests[-1]["headers"]["x-request-id"]]
        self.assert_answered_by(trial.read_response(), self.bad.port, attempts=1)
        self.assertEqual(self.states(running), ["up"] * 3)

    def test_streams_that_break_open_it_too(self) -> None:
        bad = self.engine("drop_mid_stream")
        running = self.serve({"m": {"engines": [bad.url]}}, BREAKER_OPEN_SECONDS=60)
        for _ in range(5):
            with running.connect() as client:
                client.request("POST", CHAT, ask(stream=True))
                client.read_head()
                self.assertNotIn("data: [DONE]", client.read_events())
        eventually(lambda: self.states(running) == ["open"])

    def test_answers_that_are_the_caller_s_fault_move_no_breaker(self) -> None:
        picky, other = self.engine("bad_request"), self.engine("error", status=422)
        running = self.serve({"m": {"engines": [picky.url, other.url]}})
        with running.connect() as client:
            for _ in range(200):
                self.assertEqual(client.post(ask()).error, "backend_rejected")
        self.assertEqual((picky.stats()["requests"], other.stats()["requests"]), (100, 100))
        self.assertEqual(self.states(running), ["up", "up"])
        self.assertEqual(self.changes(running), [])
        self.assertEqual({v for k, v in running.metrics().items() if k.startswith("gateway_breaker_state")}, {0})

    def test_clients_that_leave_move_no_breaker(self) -> None:
        engine = self.engine("hang")
        running = self.serve({"m": {"engines": [engine.url]}}, BREAKER_MIN_REQUESTS=1)
        clients = [self.begin(running) for _ in range(5)]
        self.assertTrue(engine.wait_for_requests(5, 5))
        for client in clients:
            client.close()
        self.assertTrue(engine.wait_for_cancelled(5, 5))
        self.assert_nothing_held(running)
        self.assertEqual(self.states(running), ["up"])

    def test_the_last_engine_is_never_ejected(self) -> None:
        engine = self.engine("error")
        running = self.serve({"m": {"engines": [engine.url]}}, BREAKER_OPEN_SECONDS=60, RETRY_ATTEMPTS=1)
        for number in range(1, 9):
            self.assert_error(running.post(ask()), 502, "backend_error")
            self.assertEqual(engine.stats()["requests"], number)
        self.assertEqual(self.states(running), ["open"])
        engine.control("ok")
        self.assert_answered_by(running.post(ask()), engine.port, attempts=1)
        self.assertEqual(self.states(running), ["up"])


class RetryTest(ResilienceTest):
    def note_pauses(self, running: RunningGateway, share: float = 0.0) -> list[int]:
        """From now on every pause is that share of its ceiling; the list grows with each."""
        noted: list[int] = []

        def jitter() -> float:
            noted.append(1)
            return share

        running.app.factory.router.jitter = jitter
        return noted

    def test_another_engine_is_asked_at_once(self) -> None:
        bad, good = self.engine("error"), self.engine()
        running = self.serve({"m": {"engines": [bad.url, good.url]}})
        pauses = self.note_pauses(running)
        self.assert_answered_by(running.post(ask()), good.port, attempts=2)
        self.assertEqual(pauses, [])

    def test_the_same_engine_only_after_a_growing_pause(self) -> None:
        bad = self.engine("error")
        running = self.serve({"m": {"engines": [bad.url]}})
        pauses = self.note_pauses(running, share=0.5)
        answer = running.post(ask())
        self.assert_error(answer, 502, "backend_error")
        self.assertEqual((len(pauses), bad.stats()["requests"]), (2, 3))
        line = running.request_line(answer.request_id)
        self.assertGreaterEqual(line["latency_ms"], 150)
        self.assertLess(line["engine_ms"], line["latency_ms"] - 145)  # the engine is not blamed for the pauses
        overhead = 'gateway_overhead_seconds_bucket{le="0.1"}'
        self.assertEqual(running.metrics()[overhead], 1)  # neither is the gateway

    def test_an_engine_that_says_when_is_not_asked_before(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [engine.url]}})
        self.note_pauses(running)
        client = self.begin(running)
        side = engine.take()
        side.send(b"HTTP/1.1 503 Busy\r\nRetry-After: 0.15\r\nContent-Length: 0\r\n\r\n")
        refused_s = time.monotonic()
        side.read_request()
        self.assertGreaterEqual(time.monotonic() - refused_s, 0.14)
        side.answer(json.dumps({"choices": [{"message": {"role": "assistant", "content": "well"}}]}).encode())
        self.assert_answered_by(client.read_response(), engine.port, attempts=2)

    def test_when_that_is_too_late_another_model_answers_or_the_client_is_told_at_once(self) -> None:
        busy, other = self.engine("error", status=503, retry_after=300), self.engine(model="other")
        models = {"m": {"engines": [busy.url]}, "other": {"engines": [other.url]}}
        running = self.serve(models)
        self.assert_answered_by(running.post(ask()), other.port, attempts=2)
        answer = running.post(ask(), headers=[("X-Gateway-Fallback", "off")])
        self.assert_error(answer, 502, "backend_error")
        self.assertEqual(answer.header("x-gateway-attempts"), "1")
        self.assertEqual(busy.stats()["requests"], 2)
        self.assert_nothing_held(running)

    def test_a_client_that_leaves_during_a_pause_ends_it(self) -> None:
        engine = self.engine("error", status=503, retry_after=30)
        running = self.serve({"m": {"engines": [engine.url]}})
        with running.connect() as client:
            client.request("POST", CHAT, ask(), [("X-Request-ID", "left")])
            self.assertTrue(engine.wait_for_requests(1, 5))
        line = running.request_line("left")
        self.assertEqual((line["status"], line["attempts"]), (499, 1))
        self.assert_nothing_held(running)

    def test_retries_have_a_budget(self) -> None:
        first, second = self.engine("error"), self.engine("error")
        running = self.serve({"m": {"engines": [first.url, second.url]}}, RETRY_ATTEMPTS=2, BREAKER_MIN_REQUESTS=1000)
        attempts = []
        for _ in range(13):
            answer = running.post(ask())
            self.assert_error(answer, 502, "backend_error")
            attempts.append(answer.header("x-gateway-attempts"))
        self.assertEqual(attempts, ["2"] * 10 + ["1"] * 3)
        self.assertEqual(first.stats()["requests"] + second.stats()["requests"], 23)

    def test_everything_that_an_engine_held_when_it_died_is_answered_by_another(self) -> None:
        held = 14  # more than the budget of so few requests
        dying, other = self.scripted(), self.engine()
        running = self.serve({"m": {"engines": [dying.url, other.url]}}, WORKER_COUNT=40)
        first = self.begin(running)
        side = dying.take()
        message = {"role": "assistant", "content": "well"}
        side.answer(json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode())
        self.assertEqual(first.read_response().status, 200)
        self.assertEqual(running.post(ask()).status, 200)
        clients = [self.begin(running) for _ in range(2 * held)]
        side.read_request()
        for _ in range(held - 1):
            dying.take()
        dying.close()
        self.assertEqual([client.read_response().status for client in clients], [200] * 2 * held)
        self.assert_nothing_held(running)

    def test_the_idempotency_key_goes_along_with_every_attempt(self) -> None:
        bad, good = self.engine("error"), self.engine()
        running = self.serve({"m": {"engines": [bad.url, good.url]}})
        running.post(ask(), headers=[("Idempotency-Key", "order-7")])
        self.assertEqual([e.requests[0]["headers"].get("idempotency-key") for e in (bad, good)], ["order-7"] * 2)
        running.post(ask())
        self.assertNotIn("idempotency-key", good.requests[-1]["headers"])


class AttemptTimeoutTest(ResilienceTest):
    @alone
    def test_a_request_moves_away_from_an_engine_that_hangs(self) -> None:
        for stream in (False, True):
            with self.subTest(stream=stream):
                hung, good = self.engine("hang"), self.engine()
                running = self.serve({"m": {"engines": [hung.url, good.url], "attempt_timeout": 0.1}})
                answer = running.post(ask(stream=stream))
                self.assert_answered_by(answer, good.port, attempts=2)
                self.assertTrue(hung.wait_for_cancelled(1, 1.0))
                outcome = f'model="m",engine="127.0.0.1:{hung.port}",outcome="timeout"'
                running.wait_for_metric(f"gateway_engine_requests_total{{{outcome}}}", 1)

    def test_a_stream_that_has_begun_may_take_longer(self) -> None:
        engine = self.engine(gap=0.025)
        running = self.serve({"m": {"engines": [engine.url], "attempt_timeout": 0.1}})
        with running.connect() as client:
            client.request("POST", CHAT, ask(stream=True))
            client.read_head()
            self.assertEqual(client.read_events()[-1], "data: [DONE]")

    def test_when_all_hang_the_client_is_told_so(self) -> None:
        engine = self.engine("hang")
        running = self.serve({"m": {"engines": [engine.url], "attempt_timeout": 0.05}}, RETRY_ATTEMPTS=2)
        answer = running.post(ask())
        self.assert_error(answer, 504, "gateway_timeout")
        self.assertEqual(answer.header("x-gateway-attempts"), "2")

    def test_it_belongs_to_one_model(self) -> None:
        quick, slow = self.engine("slow", delay=0.25), self.engine("slow", "other", delay=0.25)
        models = {
            "m": {"engines": [quick.url], "attempt_timeout": 0.05, "fallbacks": []},
            "other": {"engines": [slow.url]},
        }
        running = self.serve(models, RETRY_ATTEMPTS=1)
        self.assert_error(running.post(ask()), 504, "gateway_timeout")
        self.assert_answered_by(running.post(ask(model="other")), slow.port, attempts=1)


class ContextTest(ResilienceTest):
    def serve_small(self, **more: Any) -> RunningGateway:
        self.small, self.large = self.engine(model="small"), self.engine(model="large")
        models = {
            "small": {"engines": [self.small.url], "max_model_len": 100, **more},
            "large": {"engines": [self.large.url], "max_model_len": 1000},
        }
        return self.serve(models)

    def test_what_cannot_fit_is_refused_before_an_engine_is_asked(self) -> None:
        running = self.serve_small()
        for body in (ask("x" * 2000, "small"), ask("x", "small", max_tokens=500)):
            answer = running.post(body)
            self.assert_error(answer, 400, "context_too_long")
            told = answer.json()
            self.assertEqual((told["max_model_len"], told["param"]), (100, "messages"))
            self.assertAlmostEqual(told["estimated_tokens"], 500, delta=5)
        self.assertEqual((self.small.stats()["requests"], self.large.stats()["requests"]), (0, 0))

    def test_the_openai_format_carries_the_figures_too(self) -> None:
        engine = self.engine()
        running = self.serve({"m": {"engines": [engine.url], "max_model_len": 10}}, ERROR_FORMAT="openai")
        error = running.post(ask("x" * 400)).json()["error"]
        self.assertEqual((error["code"], error["max_model_len"]), ("context_too_long", 10))
        self.assertGreater(error["estimated_tokens"], 90)

    def test_a_larger_model_takes_it_when_the_model_says_so(self) -> None:
        running = self.serve_small(context_fallbacks=["large"])
        answer = running.post(ask("x" * 2000, "small"))
        self.assert_answered_by(answer, self.large.port, attempts=1)
        self.assertEqual(answer.header("x-gateway-fallback"), "small->large")
        self.assert_answered_by(running.post(ask("x", "small")), self.small.port, attempts=1)
        self.assert_error(running.post(ask("x" * 9000, "small")), 400, "context_too_long")

    def test_a_client_that_wants_no_other_model_gets_none(self) -> None:
        running = self.serve_small(context_fallbacks=["large"])
        answer = running.post(ask("x" * 2000, "small"), headers=[("X-Gateway-Fallback", "off")])
        self.assert_error(answer, 400, "context_too_long")

    def test_a_failing_model_does_not_fall_back_to_one_that_is_too_small(self) -> None:
        running = self.serve_small()
        self.large.control("error")
        self.assert_error(running.post(ask("x" * 2000, "large")), 502, "backend_error")
        self.assertEqual(self.small.stats()["requests"], 0)


class EveryEngineDownTest(ResilienceTest):
    def test_the_client_has_its_error_within_a_second_and_service_resumes_with_the_engine(self) -> None:
        first, second = self.engine("refuse", seconds=60), self.engine("refuse", seconds=60)
        models = {"m": {"engines": [first.url, second.url]}, "other": {"engines": [dead_url()]}}
        running = self.serve(models, HEALTH_INTERVAL=0.2)
        for _ in range(5):
            answer = running.post(ask())
            self.assert_error(answer, 502, "backend_unavailable")
            self.assertLess(running.request_line(answer.request_id)["latency_ms"], 1000)
        eventually(lambda: self.states(running) == ["down"] * 3)
        self.assertEqual(running.get("/health").status, 503)
        second.control("ok")
        eventually(lambda: running.get("/health").json()["models"]["m"]["available"], 2.0)  # no request, only probes
        for _ in range(5):
            self.assert_answered_by(running.post(ask()), second.port, attempts=1)
        eventually(lambda: ("down", "up") in self.changes(running))

    def test_those_who_wait_for_a_place_are_told_as_well(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [{"url": engine.url, "max_concurrency": 1}]}}, RETRY_ATTEMPTS=1)
        clients = [self.begin(running)]
        side = engine.take()
        for number in range(1, 4):
            clients.append(self.begin(running))
            self.wait_for_waiting(running, number)
        engine.close()  # refuses from now on, and the one that it had is cut off
        side.close()
        for client in clients:
            self.assert_error(client.read_response(), 502, "backend_unavailable")
        self.assert_nothing_held(running)

    def test_those_who_wait_for_a_place_go_to_another_model_then(self) -> None:
        engine, other = self.engine("hang"), self.engine(model="other")
        models = {
            "m": {"engines": [{"url": engine.url, "max_concurrency": 1}]},
            "other": {"engines": [other.url]},
        }
        running = self.serve(models)
        clients = [self.begin(running)]
        self.assertTrue(engine.wait_for_requests(1, 5))
        clients.append(self.begin(running))
        self.wait_for_waiting(running, 1)
        engine.control("refuse", seconds=60)
        for client in clients:
            self.assert_answered_by(client.read_response(), other.port)
        self.assert_nothing_held(running)


if __name__ == "__main__":
    unittest.main()
