"""Engines that come in while a request is on its way, and the order of those that are out: no request ends too soon."""

from __future__ import annotations

import unittest
from random import Random

from gateway.routing.engine import Engine
from gateway.routing.pool import ModelPool
from gateway.routing.retry import Outcome
from gateway.routing.router import Router
from gateway.routing.specs import FleetSpec, model_from
from gateway.routing.tries import Tries

ERROR = Outcome("error", "the engine answered 500", 500)
REFUSED = Outcome("refused", "connection refused")
RESET = Outcome("reset", "the engine closed the connection")


class LastResortTest(unittest.TestCase):
    def setUp(self) -> None:
        self.now_s = 100.0
        spec = model_from("x", [f"http://x{i}:8000/v1" for i in range(3)])
        self.router = Router(FleetSpec((spec,)), rng=Random(5), clock=lambda: self.now_s)
        self.pool: ModelPool = self.router.pools["x"]

    def take_out(self, engine: Engine, outcome: Outcome, times: int) -> None:
        """Have an engine fail so often."""
        others = [other for other in self.pool.engines if other is not engine]
        for _ in range(times):
            lease = self.pool.acquire(others, b"")
            assert lease is not None and lease.engine is engine
            self.pool.settle(lease, outcome, 0.01)

    def asked(self, tries: Tries, outcome: Outcome = REFUSED) -> Engine:
        step = tries.next()
        assert step is not None and step.lease is not None
        self.pool.settle(step.lease, outcome, 0.01)
        tries.failed(outcome)
        return step.lease.engine

    def test_an_engine_that_comes_in_between_two_tries_is_tried(self) -> None:
        for engine in self.pool.engines:
            self.take_out(engine, REFUSED, 1)
        tries = Tries(self.router.route("x"), 3, b"")
        first = self.asked(tries)
        back = next(engine for engine in self.pool.engines if engine is not first)
        self.pool.record_probe(back, None, 2, 1)
        self.assertTrue(self.pool.any_available())
        self.assertIs(self.asked(tries), back)

    def test_an_open_breaker_is_a_better_last_resort_than_an_engine_that_is_down(self) -> None:
        a, b, c = self.pool.engines
        self.take_out(a, ERROR, 5)
        self.take_out(b, REFUSED, 1)
        self.take_out(c, REFUSED, 1)
        self.assertEqual([e.state(self.now_s) for e in (a, b, c)], ["open", "down", "down"])
        self.assertGreater(a.returns_at_s(self.now_s), b.returns_at_s(self.now_s))
        self.assertIs(self.asked(Tries(self.router.route("x"), 3, b"")), a)

    def test_of_engines_that_are_down_the_one_that_refused_longest_ago_comes_first(self) -> None:
        a, b, c = self.pool.engines
        for engine in (b, c, a):
            self.take_out(engine, REFUSED, 1)
            self.now_s += 1.0
        tries = Tries(self.router.route("x"), 3, b"")
        self.assertEqual([self.asked(tries) for _ in range(3)], [b, c, a])

    def test_the_last_try_goes_to_an_untried_engine_rather_than_where_the_connection_broke(self) -> None:
        a, b, c = self.pool.engines
        self.take_out(a, REFUSED, 1)
        asked = self.asked_of_two(RESET)
        self.assertEqual((set(asked[:2]), asked[2]), ({b, c}, a))

    def test_the_last_try_stays_with_engines_that_are_in_when_they_answer_at_all(self) -> None:
        a, b, c = self.pool.engines
        self.take_out(a, REFUSED, 1)
        asked = self.asked_of_two(ERROR)
        self.assertEqual(set(asked), {b, c})

    def asked_of_two(self, outcome: Outcome) -> list[Engine]:
        """The engines that one request asks when each of them fails like this."""
        tries = Tries(self.router.route("x"), 3, b"")
        return [self.asked(tries, outcome) for _ in range(3)]


if __name__ == "__main__":
    unittest.main()
