"""Hedged requests over real sockets: a second engine is asked when the first takes too long, and the loser is ended."""

from __future__ import annotations

import json
import math
import threading
import unittest
from typing import Any

from tests.parallel import alone
from tests.resilience import ResilienceTest, ask
from tests.scripted import DONE, STREAM_HEAD, EngineSide, chunked, delta
from tests.support import CHAT, Response, RunningGateway, content_of, eventually

ANSWER = json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": "well"}}]}).encode()
HEDGES = 'gateway_hedges_total{model="m"}'


class HedgingTest(ResilienceTest):
    def hedging(self, *urls: str, after_ms: Any = 30, ratio: float = 1.0, **variables: object) -> RunningGateway:
        """A gateway whose model asks a second engine after so many milliseconds."""
        model = {"engines": list(urls), "hedge_after_ms": after_ms, "hedge_ratio": ratio, "fallbacks": []}
        return self.serve({"m": model}, **variables)

    def assert_told(self, running: RunningGateway, answer: Response, hedged: int = 1) -> None:
        """The log line of the request, the metric and the leases agree that a second engine was asked, or was not."""
        line = running.request_line(answer.request_id)
        self.assertEqual(line.get("hedged"), True if hedged else None)
        self.assertEqual(running.metrics().get(HEDGES, 0), hedged)
        self.assert_nothing_held(running)

    @alone
    def test_the_second_engine_wins_and_the_first_is_cancelled_at_once(self) -> None:
        for stream in (False, True):
            with self.subTest(stream=stream):
                hung, good = self.engine("hang"), self.engine()
                running = self.hedging(hung.url, good.url)
                answer = running.post(ask(stream=stream))
                self.assert_answered_by(answer, good.port, attempts=2)
                if stream:
                    self.assertTrue(answer.body.endswith(b"data: [DONE]\n\n"))
                self.assertTrue(hung.wait_for_cancelled(1, 1.0))
                self.assert_told(running, answer)
                self.assertEqual(self.states(running), ["up", "up"])  # to have been slower is no failure

    @alone
    def test_the_first_engine_wins_and_the_second_is_cancelled_at_once(self) -> None:
        first, hung = self.scripted(), self.engine("hang")
        running = self.hedging(first.url, hung.url)
        client = self.begin(running)
        side = first.take()
        self.assertTrue(hung.wait_for_requests(1, 5))
        side.answer(ANSWER)
        answer = client.read_response()
        self.assert_answered_by(answer, first.port, attempts=2)
        self.assertTrue(hung.wait_for_cancelled(1, 1.0))
        self.assert_told(running, answer)
        metrics = running.metrics()
        for port, outcome in ((first.port, "ok"), (hung.port, "cancelled")):
            labels = f'model="m",engine="127.0.0.1:{port}",outcome="{outcome}"'
            self.assertEqual(metrics[f"gateway_engine_requests_total{{{labels}}}"], 1)

    @alone
    def test_a_stream_that_begins_second_is_cancelled_too(self) -> None:
        first, second = self.scripted(), self.scripted()
        running = self.hedging(first.url, second.url)
        for winner, loser in ((first, second), (second, first)):
            with self.subTest(winner="first" if winner is first else "second"):
                client = self.begin(running, ask(stream=True))
                sides: dict[object, EngineSide] = {winner: winner.take(), loser: loser.take()}
                sides[winner].send(STREAM_HEAD + chunked(delta("one ")))
                client.read_head()
                self.assertEqual(content_of([client.read_event() or ""]), "one ")
                self.assertTrue(sides[loser].wait_until_left(1.0))
                sides[winner].send(chunked(delta("two", "stop") + DONE) + b"0\r\n\r\n")
                self.assertEqual(content_of(client.read_events()), "two")
                sides[winner].close()
        self.assert_nothing_held(running)

    def test_an_engine_that_answers_in_time_is_the_only_one_asked(self) -> None:
        first, second = self.engine(), self.engine()
        running = self.hedging(first.url, second.url, after_ms=60_000)
        answer = running.post(ask())
        self.assert_answered_by(answer, first.port, attempts=1)
        self.assertEqual(second.stats()["requests"], 0)
        self.assert_told(running, answer, hedged=0)
        self.assertEqual(len(running.app.factory.asker._attempts._hedges), 0)

    def test_without_the_setting_nobody_is_asked_twice(self) -> None:
        slow, good = self.engine("slow", delay=0.2), self.engine()
        running = self.serve({"m": {"engines": [slow.url, good.url]}})
        self.assert_answered_by(running.post(ask()), slow.port, attempts=1)
        self.assertEqual(good.stats()["requests"], 0)

    def test_there_is_nobody_else_to_ask(self) -> None:
        slow = self.engine("slow", delay=0.2)
        running = self.hedging(slow.url)
        answer = running.post(ask())
        self.assert_answered_by(answer, slow.port, attempts=1)
        self.assert_told(running, answer, hedged=0)

    def test_when_the_second_fails_the_first_is_waited_for(self) -> None:
        first, bad = self.scripted(), self.engine("error")
        running = self.hedging(first.url, bad.url)
        client = self.begin(running)
        side = first.take()
        self.assertTrue(bad.wait_for_requests(1, 5))
        self.assertTrue(bad.wait_for_idle(5))
        side.answer(ANSWER)
        answer = client.read_response()
        self.assert_answered_by(answer, first.port, attempts=2)
        self.assert_told(running, answer)

    def test_when_the_first_fails_the_second_is_waited_for(self) -> None:
        first, second = self.scripted(), self.scripted()
        running = self.hedging(first.url, second.url)
        client = self.begin(running)
        sides = first.take(), second.take()
        sides[0].reset()
        eventually(lambda: [e.in_flight for e in running.app.factory.engines()] == [0, 1])
        sides[1].answer(ANSWER)
        answer = client.read_response()
        self.assert_answered_by(answer, second.port, attempts=2)
        self.assert_told(running, answer)

    def test_when_both_fail_a_third_is_tried(self) -> None:
        first, second, third = self.scripted(), self.scripted(), self.scripted()
        running = self.hedging(first.url, second.url, third.url)
        client = self.begin(running)
        side = first.take()
        eventually(lambda: not (second.nobody_waits() and third.nobody_waits()))
        if second.nobody_waits():
            second, third = third, second
        side.reset()
        second.take().answer(b"{}", status="500 Oops")
        third.take().answer(ANSWER)
        answer = client.read_response()
        self.assert_answered_by(answer, third.port, attempts=3)
        self.assert_told(running, answer)

    def test_when_all_fail_the_client_is_told(self) -> None:
        first, second = self.scripted(), self.scripted()
        running = self.hedging(first.url, second.url, RETRY_ATTEMPTS=1)
        client = self.begin(running)
        sides = first.take(), second.take()
        sides[1].reset()
        sides[0].answer(b"{}", status="500 Oops")
        answer = client.read_response()
        self.assert_error(answer, 502, "backend_error")
        self.assert_told(running, answer)

    @alone
    def test_a_rejection_is_an_answer(self) -> None:
        for rejecting in (0, 1):
            with self.subTest(rejecting=rejecting):
                engines = self.scripted(), self.scripted()
                running = self.hedging(engines[0].url, engines[1].url)
                client = self.begin(running)
                sides = engines[0].take(), engines[1].take()
                sides[rejecting].answer(b'{"error": {"message": "no such tool"}}', status="400 Bad Request")
                answer = client.read_response()
                self.assert_error(answer, 400, "backend_rejected")
                self.assertTrue(sides[1 - rejecting].wait_until_left(1.0))
                self.assert_told(running, answer)

    @alone
    def test_when_both_hang_the_deadline_holds(self) -> None:
        first, second = self.engine("hang"), self.engine("hang")
        running = self.hedging(first.url, second.url, REQUEST_TIMEOUT=0.15)
        answer = running.post(ask())
        self.assert_error(answer, 504, "gateway_timeout")
        self.assertTrue(first.wait_for_cancelled(1, 1.0) and second.wait_for_cancelled(1, 1.0))
        self.assert_told(running, answer)

    @alone
    def test_a_client_that_leaves_cancels_both(self) -> None:
        for stream in (False, True):
            with self.subTest(stream=stream):
                first, second = self.engine("hang"), self.engine("hang")
                running = self.hedging(first.url, second.url)
                with running.connect() as client:
                    client.request("POST", CHAT, ask(stream=stream), [("X-Request-ID", "left")])
                    self.assertTrue(first.wait_for_requests(1, 5) and second.wait_for_requests(1, 5))
                self.assertTrue(first.wait_for_cancelled(1, 1.0) and second.wait_for_cancelled(1, 1.0))
                line = running.request_line("left")
                self.assertEqual((line["status"], line["attempts"], line["hedged"]), (499, 2, True))
                self.assert_nothing_held(running)
                self.assertEqual(self.states(running), ["up", "up"])

    def test_the_ratio_bounds_how_many_are_hedged(self) -> None:
        engines = [self.engine("slow", delay=0.05), self.engine("slow", delay=0.05)]
        running = self.hedging(*(e.url for e in engines), after_ms=1, ratio=0.2)
        attempts: list[int] = []

        def ask_some() -> None:
            with running.connect() as client:
                for _ in range(10):
                    answer = client.post(ask())
                    assert answer.status == 200, answer.body
                    attempts.append(int(answer.header("x-gateway-attempts") or 0))

        threads = [threading.Thread(target=ask_some, name=f"asker-{n}") for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        hedges = sum(attempts) - 30
        self.assertEqual(len(attempts), 30)
        self.assertGreaterEqual(hedges, 2)
        self.assertLessEqual(hedges, math.ceil(0.2 * 30))
        eventually(lambda: running.metrics().get(HEDGES) == hedges)
        self.assert_nothing_held(running)

    def test_a_ratio_of_nothing_hedges_nothing(self) -> None:
        slow, good = self.engine("slow", delay=0.2), self.engine()
        running = self.hedging(slow.url, good.url, after_ms=1, ratio=0)
        self.assert_answered_by(running.post(ask()), slow.port, attempts=1)

    @alone
    def test_p95_hedges_what_is_slower_than_usual_once_the_usual_is_known(self) -> None:
        first, second = self.engine("slow", delay=0.15), self.engine()
        running = self.hedging(first.url, second.url, after_ms="p95")
        self.assert_answered_by(running.post(ask()), first.port, attempts=1)  # nothing is known yet
        first.control("ok")
        with running.connect() as client:
            for _ in range(40):
                self.assertEqual(client.post(ask()).status, 200)
        first.control("hang")
        answers = [running.post(ask()) for _ in range(2)]  # round robin: one of them goes to each
        self.assertEqual(max(a.header("x-gateway-attempts") or "" for a in answers), "2")
        for answer in answers:
            self.assert_answered_by(answer, second.port)
        self.assertTrue(first.wait_for_cancelled(1, 1.0))
        running.wait_for_metric(HEDGES, 1)


if __name__ == "__main__":
    unittest.main()
