"""From a model's name to the engines asked, in order: failover, fallback, last resorts, and what the client is told."""

from __future__ import annotations

import unittest
from collections import Counter
from random import Random
from typing import Optional

from gateway.errors import GatewayError, RequestRefused
from gateway.routing.breaker import BreakerPolicy
from gateway.routing.engine import ListedModel
from gateway.routing.line import Lease
from gateway.routing.retry import Outcome
from gateway.routing.router import Router
from gateway.routing.specs import EngineSpec, FleetSpec, ModelSpec, model_from
from gateway.routing.tries import Tries

OK = Outcome("ok")
REFUSED = Outcome("refused", "connection refused")
ERROR = Outcome("error", "the engine answered 500", 500)
RESET = Outcome("reset", "the engine closed the connection")
TRUNCATED = Outcome("truncated", "the answer is not complete")
TIMEOUT = Outcome("timeout", "the engine did not answer in time")
UNAUTHORIZED = Outcome("unauthorized", "the engine refuses the gateway's credentials", 401)


def rate_limited(retry_after_s: Optional[float] = None) -> Outcome:
    return Outcome("rate_limited", "slow down", 429, retry_after_s)


def model(name: str, engines: int, **fields: object) -> ModelSpec:
    """A model whose engines are called <name>0, <name>1, ..."""
    specs = tuple(EngineSpec(f"http://{name}{i}:8000/v1", id=f"{name}{i}") for i in range(engines))
    return ModelSpec(name, specs, **fields)  # type: ignore[arg-type]


def full_model(name: str) -> ModelSpec:
    """A model with one engine, <name>0, that takes one request at a time."""
    return ModelSpec(name, (EngineSpec(f"http://{name}0:1/v1", id=f"{name}0", max_concurrency=1),))


class RouterTest(unittest.TestCase):
    def setUp(self) -> None:
        self.now_s = 100.0

    def router(self, *models: ModelSpec, **options: str) -> Router:
        fleet = FleetSpec(tuple(models))
        return Router(fleet, rng=Random(5), clock=lambda: self.now_s, **options)  # type: ignore[arg-type]

    def path(self, router: Router, name: Optional[str], **options: bool) -> list[str]:
        return [pool.name for pool in router.route(name, **options)]

    def request(
        self, router: Router, name: str, behaviour: dict[str, Outcome], attempts: int = 3, allow_fallback: bool = True
    ) -> tuple[list[str], Optional[GatewayError]]:
        """One request where each engine behaves as given (others answer): the engines asked, the error or None."""
        tries = Tries(router.route(name, allow_fallback), attempts, b"")
        asked: list[str] = []
        while True:
            step = tries.next()
            if step is None:
                self.assertEqual(tries.sent, len(asked))
                return asked, tries.error()
            self.assertIsNone(step.waiter, "every engine is full")
            assert step.lease is not None
            name_asked = step.lease.engine.id
            asked.append(name_asked)
            outcome = behaviour.get(name_asked, OK)
            step.pool.settle(step.lease, outcome, 0.01)
            if outcome is OK:
                return asked, None
            tries.failed(outcome)
            self.assertLess(len(asked), 100)


class RouteTest(RouterTest):
    def test_fallback_any_is_every_other_model_in_file_order(self) -> None:
        router = self.router(model("x", 1), model("y", 1), model("z", 1), fallback="any")
        self.assertEqual(self.path(router, "y"), ["y", "x", "z"])

    def test_a_models_own_fallbacks_come_first_and_an_empty_list_means_none(self) -> None:
        models = (model("x", 1, fallbacks=("z",)), model("y", 1, fallbacks=()), model("z", 1))
        router = self.router(*models, fallback="any")
        self.assertEqual(self.path(router, "x"), ["x", "z", "y"])
        self.assertEqual(self.path(router, "y"), ["y"])

    def test_fallback_configured_uses_nothing_else(self) -> None:
        router = self.router(model("x", 1, fallbacks=("y",)), model("y", 1), fallback="configured")
        self.assertEqual(self.path(router, "x"), ["x", "y"])
        self.assertEqual(self.path(router, "y"), ["y"])

    def test_fallback_off_ignores_even_configured_ones(self) -> None:
        router = self.router(model("x", 1, fallbacks=("y",)), model("y", 1), fallback="off")
        self.assertEqual(self.path(router, "x"), ["x"])

    def test_a_request_may_forbid_fallback(self) -> None:
        router = self.router(model("x", 1), model("y", 1))
        self.assertEqual(self.path(router, "x", allow_fallback=False), ["x"])

    def test_no_name_is_the_default_model_and_an_alias_is_its_model(self) -> None:
        fleet = FleetSpec((model("x", 1), model("y", 1, aliases=("why",))), default_model="y")
        router = Router(fleet, fallback="off")
        self.assertEqual(self.path(router, None), ["y"])
        self.assertEqual(self.path(router, "why"), ["y"])
        self.assertEqual(router.names(), ("x", "y", "why"))

    def test_a_fallback_may_be_named_by_alias(self) -> None:
        router = self.router(model("x", 1, fallbacks=("why",)), model("y", 1, aliases=("why",)))
        self.assertEqual(self.path(router, "x"), ["x", "y"])

    def test_a_name_with_ollamas_latest_is_the_one_without_where_only_one_is_known(self) -> None:
        def local(name: str, **fields: object) -> ModelSpec:
            return ModelSpec(name, (EngineSpec("http://127.0.0.1:1/v1"),), **fields)  # type: ignore[arg-type]

        router = self.router(local("m", aliases=("a",)), local("o:latest"), local("t:8b"), local("t"))
        for asked, found in (("m:latest", "m"), ("a:latest", "m"), ("o", "o:latest"), ("t:latest", "t")):
            self.assertEqual(self.path(router, asked)[0], found)
            self.assertTrue(router.serves(asked, "/chat/completions"))
        for asked in ("m:8b", "m:latest:latest", "t:8b:latest", ":latest", "latest"):
            with self.assertRaises(RequestRefused, msg=asked):
                router.route(asked)
        self.assertEqual(router.names(), ("m", "o:latest", "t:8b", "t", "a"))
        both = self.router(local("m"), local("m:latest"))
        self.assertEqual([self.path(both, name)[0] for name in ("m", "m:latest")], ["m", "m:latest"])
        both.reload(FleetSpec((local("m:latest"),)))
        self.assertEqual(self.path(both, "m")[0], "m:latest")

    def test_an_unknown_model_is_refused_and_names_those_known(self) -> None:
        router = self.router(model("x", 1), model("y", 1))
        for name in ("z", "X", "", "x "):
            with self.subTest(name=name), self.assertRaises(RequestRefused) as caught:
                router.route(name)
            error = caught.exception
            self.assertEqual((error.code, error.status, error.param), ("model_not_found", 404, "model"))
            self.assertIn("x, y", error.message)

    def test_an_unknown_name_of_any_length_gives_a_short_message(self) -> None:
        with self.assertRaises(RequestRefused) as caught:
            self.router(model("x", 1)).route("\ud800" + "n" * 1_000_000)
        self.assertLess(len(caught.exception.message), 1000)
        caught.exception.message.encode("utf-8")

    def test_a_wildcard_serves_every_name(self) -> None:
        fleet = FleetSpec((model_from("any", ["http://h:1/v1"]),), wildcard=True)
        router = Router(fleet)
        self.assertEqual([self.path(router, name) for name in (None, "gpt-4", "any")], [["any"]] * 3)


class BalancingTest(RouterTest):
    def test_balancing_never_crosses_models(self) -> None:
        for strategy in ("round_robin", "random", "least_connections", "power_of_two", "latency", "prefix_affinity"):
            with self.subTest(strategy=strategy):
                router = self.router(model("x", 3), model("y", 3), strategy=strategy)
                for name in ("x", "y"):
                    counts: Counter[str] = Counter()
                    for _ in range(60):
                        asked, error = self.request(router, name, {})
                        self.assertIsNone(error)
                        counts.update(asked)
                    self.assertLessEqual(set(counts), {f"{name}0", f"{name}1", f"{name}2"})

    def test_one_models_requests_do_not_disturb_anothers_rotation(self) -> None:
        router = self.router(model("x", 2), model("y", 3))
        asked = []
        for number in range(30):
            asked += self.request(router, "x", {})[0]
            if number % 3 == 0:
                self.request(router, "y", {})
        self.assertEqual(asked, asked[:2] * 15)


class FailoverTest(RouterTest):
    def test_another_engine_of_the_same_model_comes_first(self) -> None:
        router = self.router(model("x", 3), model("y", 1))
        for bad in ("x0", "x1", "x2"):
            asked, error = self.request(router, "x", {bad: ERROR})
            self.assertIsNone(error)
            self.assertTrue(all(name.startswith("x") for name in asked))

    def test_every_engine_of_the_model_is_tried_before_another_model(self) -> None:
        router = self.router(model("x", 3), model("y", 1))
        asked, error = self.request(router, "x", {"x0": ERROR, "x1": REFUSED, "x2": TIMEOUT})
        self.assertIsNone(error)
        self.assertEqual((sorted(asked[:3]), asked[3:]), (["x0", "x1", "x2"], ["y0"]))

    def test_attempts_are_counted_per_model(self) -> None:
        router = self.router(model("x", 5), model("y", 5), model("z", 5))
        broken = {f"{name}{i}": ERROR for name in "xyz" for i in range(5)}
        asked, error = self.request(router, "x", broken, attempts=2)
        assert error is not None
        self.assertEqual([name[0] for name in asked], list("xxyyzz"))
        self.assertEqual(len(set(asked)), 6)

    def test_a_lone_engine_is_asked_again_up_to_the_limit(self) -> None:
        router = self.router(model("x", 1), fallback="off")
        asked, error = self.request(router, "x", {"x0": ERROR})
        assert error is not None
        self.assertEqual(asked, ["x0"] * 3)
        self.assertEqual((error.code, error.status), ("backend_error", 502))

    def test_a_dead_model_falls_back_until_it_returns(self) -> None:
        router = self.router(model("x", 2), model("y", 1))
        dead = {"x0": REFUSED, "x1": REFUSED}
        self.assertEqual(self.request(router, "x", dead)[0][-1], "y0")
        self.assertEqual(self.request(router, "x", dead)[0], ["y0"])  # known to be out: not asked again
        pool = router.pools["x"]
        pool.record_probe(pool.engines[0], None, 2, 1)
        self.assertEqual(self.request(router, "x", {})[0], ["x0"])

    def test_a_request_that_forbids_fallback_gets_the_models_own_error(self) -> None:
        router = self.router(model("x", 2), model("y", 1))
        asked, error = self.request(router, "x", {"x0": REFUSED, "x1": REFUSED}, allow_fallback=False)
        assert error is not None
        self.assertEqual(sorted(asked), ["x0", "x1"])
        self.assertEqual((error.code, error.status), ("backend_unavailable", 502))

    def test_errors_tell_what_happened_last(self) -> None:
        cases = {
            "refused": ("backend_unavailable", 502),
            "connect_timeout": ("backend_unavailable", 502),
            "reset": ("backend_unavailable", 502),
            "timeout": ("gateway_timeout", 504),
            "error": ("backend_error", 502),
            "invalid": ("backend_error", 502),
            "truncated": ("backend_error", 502),
            "unauthorized": ("backend_error", 502),
            "rate_limited": ("backend_rate_limited", 429),
        }
        for kind, expected in cases.items():
            with self.subTest(kind=kind):
                _, error = self.request(self.router(model("x", 2)), "x", dict.fromkeys(("x0", "x1"), Outcome(kind)))
                assert error is not None
                self.assertEqual((error.code, error.status), expected)
                self.assertTrue(error.message)

    def test_a_full_model_makes_a_request_wait_rather_than_fall_back(self) -> None:
        router = self.router(full_model("x"), model("y", 1))
        pool = router.pools["x"]
        held = pool.acquire((), b"")
        assert held is not None
        tries = Tries(router.route("x"), 3, b"")
        step = tries.next()
        assert step is not None and step.waiter is not None
        self.assertEqual((step.pool, step.lease, tries.sent), (pool, None, 0))
        self.assertFalse(step.waiter.ready.is_set())
        pool.settle(held, OK, 0.01)
        self.assertTrue(step.waiter.ready.is_set())
        lease = pool.leave_line(step.waiter)
        assert lease is not None
        granted = tries.granted(pool, lease)
        self.assertEqual((granted.lease, granted.waiter, granted.delay_s, tries.sent), (lease, None, 0.0, 1))
        pool.settle(lease, OK, 0.01)

    def test_a_request_that_has_waited_counts_its_tries_as_any_other(self) -> None:
        router = self.router(full_model("x"), model("y", 1))
        pool = router.pools["x"]
        held = pool.acquire((), b"")
        assert held is not None
        tries = Tries(router.route("x"), 1, b"")
        step = tries.next()
        assert step is not None and step.waiter is not None
        pool.settle(held, OK, 0.01)
        lease = pool.leave_line(step.waiter)
        assert lease is not None
        pool.settle(tries.granted(pool, lease).lease or lease, ERROR, 0.01)
        tries.failed(ERROR)
        step = tries.next()  # the one try that x was allowed is spent
        assert step is not None and step.lease is not None
        self.assertEqual((step.lease.engine.id, tries.sent), ("y0", 2))


class PauseTest(RouterTest):
    """The same engine is asked again only after a pause; another one at once."""

    def delays(
        self, router: Router, name: str, behaviour: dict[str, Outcome], attempts: int
    ) -> list[tuple[str, float]]:
        """The engines asked and the pauses before each, with the longest jitter there is."""
        tries = Tries(router.route(name), attempts, b"", jitter=lambda: 1.0)
        steps: list[tuple[str, float]] = []
        while True:
            step = tries.next()
            if step is None:
                return steps
            assert step.lease is not None
            name = step.lease.engine.id
            steps.append((name, round(step.delay_s, 6)))
            outcome = behaviour.get(name, OK)
            step.pool.settle(step.lease, outcome, 0.01)
            if outcome is OK:
                return steps
            tries.failed(outcome)

    def test_a_lone_engine_is_asked_again_after_pauses_that_double_up_to_two_seconds(self) -> None:
        policy = BreakerPolicy(min_requests=1000)
        router = Router(FleetSpec((model("x", 1),)), rng=Random(5), clock=lambda: self.now_s, breaker=policy)
        delays = [delay_s for _, delay_s in self.delays(router, "x", {"x0": ERROR}, 8)]
        self.assertEqual(delays, [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0])

    def test_other_engines_and_models_are_asked_at_once(self) -> None:
        router = self.router(model("x", 3), model("y", 1))
        steps = self.delays(router, "x", dict.fromkeys(("x0", "x1", "x2"), ERROR), 3)
        self.assertEqual([delay_s for _, delay_s in steps], [0.0] * 4)

    def test_each_engines_own_tries_decide_about_its_pause(self) -> None:
        router = self.router(model("x", 2), fallback="off")
        steps = self.delays(router, "x", {"x0": ERROR, "x1": ERROR}, 4)
        self.assertEqual([delay_s for _, delay_s in steps], [0.0, 0.0, 0.1, 0.1 if steps[2][0] != steps[3][0] else 0.2])

    def test_the_pause_is_a_random_share_of_the_longest(self) -> None:
        router = self.router(model("x", 1), fallback="off")
        drawn = [router.jitter() for _ in range(3)]
        self.assertEqual(len({*drawn}), 3)
        shares = iter((0.25, 0.5))
        tries = Tries(router.route("x"), 3, b"", jitter=lambda: next(shares))
        delays = []
        for _ in range(3):
            step = tries.next()
            assert step is not None and step.lease is not None
            delays.append(step.delay_s)
            step.pool.settle(step.lease, ERROR, 0.01)
            tries.failed(ERROR)
        self.assertEqual(delays, [0.0, 0.25 * 0.1, 0.5 * 0.2])

    def test_retry_after_is_honoured(self) -> None:
        busy = Outcome("error", "overloaded", 503, 1.5)
        router = self.router(model("x", 1), fallback="off")
        self.assertEqual(self.delays(router, "x", {"x0": busy}, 2), [("x0", 0.0), ("x0", 1.5)])

    def test_one_engines_retry_after_delays_no_other(self) -> None:
        router = self.router(model("x", 2), fallback="off")
        behaviour = {"x0": Outcome("error", "overloaded", 503, 60.0), "x1": ERROR}
        steps = self.delays(router, "x", behaviour, 3)
        self.assertEqual([delay_s for _, delay_s in steps[:2]], [0.0, 0.0])
        self.assertEqual(steps[2][1], 60.0 if steps[2][0] == "x0" else 0.1)

    def test_an_engine_that_asks_for_a_long_pause_gives_way_to_another_model(self) -> None:
        router = self.router(model("x", 1), model("y", 1))
        steps = self.delays(router, "x", {"x0": Outcome("error", "overloaded", 503, 60.0)}, 3)
        self.assertEqual(steps, [("x0", 0.0), ("y0", 0.0)])
        self.assertEqual([item.in_flight for item in router.pools["x"].snapshot()], [0])


class BudgetTest(RouterTest):
    def dead(self) -> dict[str, Outcome]:
        return dict.fromkeys(("x0", "x1", "x2"), ERROR)

    def lenient(self, *models: ModelSpec) -> Router:
        """A router whose breakers stay closed, so that only the budget holds requests back."""
        policy = BreakerPolicy(min_requests=1000)
        return Router(FleetSpec(models), fallback="off", rng=Random(5), clock=lambda: self.now_s, breaker=policy)

    def test_a_dying_model_is_not_hammered(self) -> None:
        router = self.lenient(model("x", 3))
        sent = sum(len(self.request(router, "x", self.dead())[0]) for _ in range(100))
        self.assertEqual(sent, 100 + 20)
        self.now_s += 10.0
        self.assertEqual(len(self.request(router, "x", self.dead())[0]), 3)

    def test_a_small_one_still_fails_over(self) -> None:
        router = self.lenient(model("x", 3))
        sent = [len(self.request(router, "x", self.dead())[0]) for _ in range(6)]
        self.assertEqual(sent, [3, 3, 3, 3, 3, 1])

    def in_flight(self, router: Router, count: int) -> list[tuple[Tries, Lease]]:
        """So many requests that have a place on an engine."""
        begun = []
        for _ in range(count):
            tries = Tries(router.route("x"), 3, b"")
            step = tries.next()
            assert step is not None and step.lease is not None
            begun.append((tries, step.lease))
        return begun

    def moved(self, router: Router, begun: list[tuple[Tries, Lease]], outcome: Outcome) -> int:
        """How many of the requests on x0 get another engine after this outcome there; all the others go well."""
        pool = router.pools["x"]
        count = 0
        lost = [(tries, lease) for tries, lease in begun if lease.engine.id == "x0"]
        for tries, lease in lost:
            pool.settle(lease, outcome, 0.01)
            tries.failed(outcome)
            step = tries.next()
            if step is not None:
                assert step.lease is not None
                count += 1
                pool.settle(step.lease, OK, 0.01)
        for _, lease in begun:
            if lease.engine.id != "x0":
                pool.settle(lease, OK, 0.01)
        self.assertEqual([item.in_flight for item in pool.snapshot()], [0] * len(pool.engines))
        return count

    def answering(self) -> Router:
        """A router whose engines x0 and x1 have answered well."""
        router = self.lenient(model("x", 2))
        for _, lease in self.in_flight(router, 2):
            router.pools["x"].settle(lease, OK, 0.01)
        self.now_s += 0.1
        return router

    def test_all_that_an_engine_held_when_it_died_moves(self) -> None:
        for died in (RESET, REFUSED, TRUNCATED):
            with self.subTest(kind=died.kind):
                router = self.answering()
                self.assertEqual(self.moved(router, self.in_flight(router, 60), died), 30)
                self.now_s += 0.1
                if died is not REFUSED:  # it is still in, and what it is given now is no orphan
                    self.assertEqual(self.moved(router, self.in_flight(router, 60), died), 24)  # 20 % of 122

    def test_only_of_an_engine_that_had_answered_well_until_then(self) -> None:
        router = self.lenient(model("x", 2))
        self.assertEqual(self.moved(router, self.in_flight(router, 40), RESET), 10)
        router = self.answering()
        self.assertEqual(self.moved(router, self.in_flight(router, 38), ERROR), 10)

    def test_a_try_that_reached_no_engine_is_no_load_on_any(self) -> None:
        for nothing in (REFUSED, Outcome("connect_timeout")):
            with self.subTest(kind=nothing.kind):
                router = self.lenient(model("x", 2))
                self.assertEqual(self.moved(router, self.in_flight(router, 40), nothing), 20)
                self.assertTrue(router.pools["x"].take_retry())

    def test_nor_is_one_that_is_out_asked_for_it_again_and_again(self) -> None:
        router = self.router(model("x", 3))
        nothing = dict.fromkeys(("x0", "x1", "x2"), REFUSED)
        self.assertEqual(len(self.request(router, "x", nothing)[0]), 3)
        while router.pools["x"].take_retry():
            pass
        self.assertEqual(len(self.request(router, "x", nothing)[0]), 1)

    def test_the_error_is_that_of_the_last_try(self) -> None:
        router = self.lenient(model("x", 3))
        for _ in range(5):
            self.request(router, "x", self.dead())
        _, error = self.request(router, "x", dict.fromkeys(self.dead(), TIMEOUT))
        assert error is not None
        self.assertEqual((error.code, error.status), ("gateway_timeout", 504))

    def test_what_is_never_tried_takes_nothing_from_it(self) -> None:
        router = self.lenient(model("x", 3))
        for _ in range(20):
            self.assertEqual(len(self.request(router, "x", self.dead(), attempts=1)[0]), 1)
        self.assertEqual(len(self.request(router, "x", self.dead())[0]), 3)

    def test_models_have_their_own(self) -> None:
        router = self.lenient(model("x", 3), model("y", 2))
        for _ in range(10):
            self.request(router, "x", self.dead())
        self.assertEqual(self.request(router, "y", {"y0": ERROR})[1], None)
        self.assertEqual(self.request(router, "y", {"y1": ERROR})[1], None)

    def test_a_retry_that_the_budget_refuses_holds_nothing(self) -> None:
        router = self.lenient(full_model("x"))
        pool = router.pools["x"]
        while pool.take_retry():
            pass
        tries = Tries(router.route("x"), 3, b"")
        step = tries.next()
        assert step is not None and step.lease is not None
        pool.settle(step.lease, ERROR, 0.01)
        tries.failed(ERROR)
        self.assertIsNone(tries.next())  # it had found its engine free
        self.assertEqual([item.in_flight for item in pool.snapshot()], [0])
        other = pool.acquire((), b"")
        assert other is not None
        self.assertIsNone(tries.next())  # and now full
        self.assertEqual(pool.waiting, 0)


class HedgeTest(RouterTest):
    def first(self, router: Router) -> tuple[Tries, Lease]:
        tries = Tries(router.route("x"), 3, b"")
        step = tries.next()
        assert step is not None and step.lease is not None
        return tries, step.lease

    def test_the_second_engine_is_another_one_of_the_same_model(self) -> None:
        tries, first = self.first(self.router(model("x", 2), model("y", 2)))
        step = tries.hedge()
        assert step is not None and step.lease is not None
        self.assertEqual({first.engine.id, step.lease.engine.id}, {"x0", "x1"})
        self.assertEqual((step.delay_s, tries.sent), (0.0, 2))
        self.assertIsNone(tries.hedge())  # there is no third

    def test_without_another_free_engine_there_is_none_and_nothing_is_held(self) -> None:
        for spec in (model("x", 1), full_model("x")):
            with self.subTest(spec=spec):
                router = self.router(spec, model("y", 2))
                tries, first = self.first(router)
                self.assertIsNone(tries.hedge())
                self.assertEqual(tries.sent, 1)
                router.pools["x"].settle(first, OK, 0.01)
                self.assertEqual([item.in_flight for item in router.pools["x"].snapshot()], [0])

    def test_a_last_resort_has_no_second(self) -> None:
        router = self.router(model("x", 2), fallback="off")
        self.request(router, "x", {"x0": REFUSED, "x1": REFUSED})
        tries, lease = self.first(router)
        self.assertIsNone(tries.hedge())
        router.pools["x"].settle(lease, OK, 0.01)

    def test_after_both_have_failed_the_third_engine_is_tried(self) -> None:
        router = self.router(model("x", 3), fallback="off")
        tries, first = self.first(router)
        step = tries.hedge()
        assert step is not None and step.lease is not None
        for lease in (first, step.lease):
            router.pools["x"].settle(lease, ERROR, 0.01)
            tries.failed(ERROR)
        last = tries.next()
        assert last is not None and last.lease is not None
        self.assertNotIn(last.lease.engine.id, {first.engine.id, step.lease.engine.id})


class SeedTest(RouterTest):
    def chosen(self, seed: int, others: bool = False) -> list[str]:
        fleet = FleetSpec((model("x", 5, strategy="random"), model("y", 5, strategy="random")))
        router = Router(fleet, rng=Random(seed), clock=lambda: self.now_s)
        names = []
        for number in range(50):
            names += self.request(router, "x", {})[0]
            if others and number % 2:
                self.request(router, "y", {})
        return [*names, str(router.jitter())]

    def test_a_seed_makes_choices_and_pauses_repeatable(self) -> None:
        self.assertEqual(self.chosen(1), self.chosen(1))
        self.assertNotEqual(self.chosen(1), self.chosen(2))

    def test_what_a_model_draws_depends_on_its_own_requests_only(self) -> None:
        self.assertEqual(self.chosen(1), self.chosen(1, others=True))

    def test_models_draw_differently(self) -> None:
        fleet = FleetSpec((model("x", 5, strategy="random"), model("y", 5, strategy="random")))
        router = Router(fleet, rng=Random(1), clock=lambda: self.now_s)
        drawn = {n: [self.request(router, n, {})[0][0][1:] for _ in range(50)] for n in ("x", "y")}
        self.assertNotEqual(drawn["x"], drawn["y"])


class BreakerTest(RouterTest):
    def test_an_engine_that_keeps_failing_is_left_alone_until_a_trial_succeeds(self) -> None:
        router = self.router(model("x", 3), fallback="off")
        broken = {"x0": ERROR}
        for _ in range(30):
            self.assertIsNone(self.request(router, "x", broken)[1])
        self.assertEqual([item.breaker for item in router.pools["x"].snapshot()], ["open", "closed", "closed"])
        asked = sum(self.request(router, "x", broken)[0].count("x0") for _ in range(100))
        self.assertEqual(asked, 0)
        self.now_s += 5.0
        asked = sum(self.request(router, "x", broken)[0].count("x0") for _ in range(100))
        self.assertEqual(asked, 1)  # the trial, which fails: ten seconds more
        self.now_s += 5.0
        self.assertEqual(sum(self.request(router, "x", {})[0].count("x0") for _ in range(30)), 0)
        self.now_s += 5.0
        self.assertEqual(sum(self.request(router, "x", {})[0].count("x0") for _ in range(30)), 10)

    def test_a_thousand_requests_that_are_the_callers_fault_move_no_breaker(self) -> None:
        router = self.router(model("x", 3), fallback="off")
        for _ in range(1000):
            lease = router.pools["x"].acquire((), b"")
            assert lease is not None
            self.assertIsNone(router.pools["x"].settle(lease, Outcome("rejected", "bad request", 400), 0.001))
        self.assertEqual({(item.state, item.breaker) for item in router.pools["x"].snapshot()}, {("up", "closed")})

    def test_the_last_engine_is_asked_although_its_breaker_is_open(self) -> None:
        router = self.router(model("x", 1), fallback="off")
        for _ in range(2):
            self.request(router, "x", {"x0": ERROR})
        self.assertEqual(router.pools["x"].snapshot()[0].state, "open")
        asked, error = self.request(router, "x", {"x0": ERROR})
        assert error is not None
        self.assertEqual((asked, error.code), (["x0"], "backend_error"))
        self.assertEqual(self.request(router, "x", {}), (["x0"], None))
        self.assertEqual(router.pools["x"].snapshot()[0].state, "up")

    def test_while_all_breakers_are_open_another_model_answers(self) -> None:
        router = self.router(model("x", 1), model("y", 1))
        for _ in range(2):
            self.request(router, "x", {"x0": ERROR})
        self.assertEqual(self.request(router, "x", {"x0": ERROR}), (["y0"], None))


class RestTest(RouterTest):
    def test_a_resting_engine_is_skipped_without_a_failure(self) -> None:
        router = self.router(model("x", 2), model("y", 1))
        for _ in range(2):  # whichever is first: after two requests x0 has been met
            self.request(router, "x", {"x0": rate_limited(10.0)})
        self.assertEqual([self.request(router, "x", {})[0] for _ in range(4)], [["x1"]] * 4)

    def test_when_all_rest_the_client_is_told_the_shortest_wait_at_once(self) -> None:
        router = self.router(model("x", 2), model("y", 1))
        resting = {"x0": rate_limited(30.0), "x1": rate_limited(12.0), "y0": rate_limited(20.0)}
        asked, error = self.request(router, "x", resting)
        assert error is not None
        self.assertEqual(sorted(asked), ["x0", "x1", "y0"])
        self.assertEqual((error.code, error.status, error.retry_after_s), ("backend_rate_limited", 429, 12.0))
        self.now_s += 2.0
        asked, error = self.request(router, "x", resting)
        assert error is not None
        self.assertEqual(asked, [])  # nothing is sent to who asked for a pause
        self.assertEqual((error.code, error.retry_after_s), ("backend_rate_limited", 10.0))

    def test_after_the_shortest_wait_a_request_goes_through(self) -> None:
        router = self.router(model("x", 2), fallback="off")
        _, error = self.request(router, "x", {"x0": rate_limited(30.0), "x1": rate_limited(12.0)})
        assert error is not None and error.retry_after_s is not None
        self.now_s += error.retry_after_s
        self.assertEqual(self.request(router, "x", {}), (["x1"], None))

    def test_a_rest_of_zero_seconds_ends_at_the_limit_of_attempts(self) -> None:
        asked, error = self.request(self.router(model("x", 1)), "x", {"x0": rate_limited(0.0)})
        assert error is not None
        self.assertEqual((asked, error.code), (["x0"] * 3, "backend_rate_limited"))
        self.assertIsNotNone(error.retry_after_s)

    def test_a_failure_tells_more_than_a_rest(self) -> None:
        for order in ({"x0": rate_limited(5.0), "x1": ERROR}, {"x0": ERROR, "x1": rate_limited(5.0)}):
            with self.subTest(order=order):
                _, error = self.request(self.router(model("x", 2)), "x", order, attempts=2)
                assert error is not None
                self.assertEqual(error.code, "backend_error")


class LastResortTest(RouterTest):
    def test_the_last_engine_is_tried_although_it_is_out(self) -> None:
        router = self.router(model("x", 1), fallback="off")
        self.request(router, "x", {"x0": REFUSED})
        self.assertFalse(router.pools["x"].any_available())
        self.assertEqual(self.request(router, "x", {}), (["x0"], None))
        self.assertTrue(router.pools["x"].any_available())  # a good answer brings it back

    def test_no_last_resort_while_a_fallback_is_in(self) -> None:
        router = self.router(model("x", 1), model("y", 1))
        self.request(router, "x", {"x0": REFUSED})
        self.assertEqual(self.request(router, "x", {})[0], ["y0"])

    def test_no_last_resort_while_a_fallback_is_merely_full(self) -> None:
        router = self.router(model("x", 1), full_model("y"))
        self.request(router, "x", {"x0": REFUSED})
        self.assertIsNotNone(router.pools["y"].acquire((), b""))
        step = Tries(router.route("x"), 3, b"").next()
        assert step is not None
        self.assertIsNotNone(step.waiter)
        self.assertIs(step.pool, router.pools["y"])

    def test_a_lone_misconfigured_engine_is_a_backend_error(self) -> None:
        router = self.router(model("x", 1), fallback="off")
        for _ in range(2):  # at first, and while it is out
            asked, error = self.request(router, "x", {"x0": UNAUTHORIZED})
            assert error is not None
            self.assertEqual((asked, error.code, error.status), (["x0"], "backend_error", 502))

    def test_a_lone_misconfigured_engine_serves_again_once_its_key_is_right(self) -> None:
        router = self.router(model("x", 1), fallback="off")
        self.request(router, "x", {"x0": UNAUTHORIZED})
        self.assertEqual(self.request(router, "x", {}), (["x0"], None))
        self.assertTrue(router.pools["x"].any_available())

    def test_a_resting_engine_is_never_the_last_resort(self) -> None:
        router = self.router(model("x", 2), fallback="off")
        behaviour = {"x0": rate_limited(60.0), "x1": REFUSED}
        self.request(router, "x", behaviour)
        asked, error = self.request(router, "x", behaviour)
        assert error is not None
        self.assertEqual((asked, error.code), (["x1"], "backend_unavailable"))

    def test_of_all_candidate_models_the_engine_that_returns_soonest_is_tried_first(self) -> None:
        router = self.router(model("x", 1), model("y", 1), model("z", 1))
        behaviour = {"x0": UNAUTHORIZED, "y0": UNAUTHORIZED, "z0": REFUSED}
        self.request(router, "x", behaviour)
        self.assertEqual(self.request(router, "x", {}), (["z0"], None))

    def test_the_models_own_engine_wins_among_equals(self) -> None:
        router = self.router(model("x", 1), model("y", 1))
        self.request(router, "x", {"x0": REFUSED, "y0": REFUSED})
        self.assertEqual(self.request(router, "y", {}), (["y0"], None))

    def test_each_engine_is_a_last_resort_once_at_most(self) -> None:
        router = self.router(model("x", 2), model("y", 2))
        dead = dict.fromkeys(("x0", "x1", "y0", "y1"), REFUSED)
        self.request(router, "x", dead)
        asked, error = self.request(router, "x", dead)
        assert error is not None
        self.assertEqual(len(asked), len(set(asked)))
        self.assertLessEqual(len(asked), 3)
        self.assertEqual(error.code, "backend_unavailable")


class ReloadTest(RouterTest):
    def test_models_come_go_and_stay(self) -> None:
        router = self.router(model("x", 1), model("y", 1))
        self.request(router, "x", {"x0": REFUSED}, allow_fallback=False)
        stays = router.pools["x"]
        gone = router.reload(FleetSpec((model("x", 2), model("z", 1))))
        self.assertEqual([engine.id for engine in gone], ["y0"])
        self.assertIs(router.pools["x"], stays)
        self.assertEqual([item.state for item in stays.snapshot()], ["down", "up"])
        self.assertEqual(self.path(router, "x"), ["x", "z"])
        with self.assertRaises(RequestRefused):
            router.route("y")

    def test_a_route_taken_before_a_reload_still_works(self) -> None:
        router = self.router(model("x", 1), fallback="off")
        route = router.route("x")
        router.reload(FleetSpec((model("x", 1), model("y", 1))))
        step = Tries(route, 3, b"").next()
        assert step is not None and step.lease is not None
        self.assertEqual(step.lease.engine.id, "x0")

    def test_what_is_listed_is_made_once_until_an_engine_says_something_else(self) -> None:
        fleet = FleetSpec((model("default", 1),), wildcard=True)
        router = Router(fleet)
        (engine,) = router.pools["default"].engines
        for names in (["a", "b", "a"], ["c"], ["c"], []):
            engine.listed = tuple(map(ListedModel, names))
            listed, counted = router.listed(), router.counted_names()
            self.assertEqual([one.id for one in listed], list(dict.fromkeys(names)))
            self.assertIs(router.listed(), listed)
            self.assertIs(router.counted_names(), counted)
        self.assertEqual(set(counted), {"default", "a", "b", "c"})
        router.reload(FleetSpec((ModelSpec("default", (EngineSpec("http://x:1", model="own"),)),), wildcard=True))
        self.assertEqual(router.listed(), (ListedModel("own"),))
        router.reload(FleetSpec((model("default", 1),)))
        self.assertEqual(router.listed(), ())


if __name__ == "__main__":
    unittest.main()
