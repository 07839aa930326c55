"""Who leaves a hung engine, and when: the registry of waiting attempts, and the rule of a request, on a fake clock."""

from __future__ import annotations

import math
import unittest
from collections.abc import Sequence
from random import Random
from typing import Optional

from gateway.errors import ClientGone
from gateway.rescue import Onward, Rescue
from gateway.routing.decisions import Decisions
from gateway.routing.engine import Engine
from gateway.routing.line import Lease
from gateway.routing.pool import ModelPool
from gateway.routing.retry import Outcome
from gateway.routing.router import Router
from gateway.routing.specs import EngineSpec, FleetSpec, ModelSpec
from gateway.routing.tries import Step, Tries
from gateway.upstream.attempt import Attempt, EngineFault

HUNG = Outcome("hung", "the engine has stopped answering")
OK = Outcome("ok")
PLACE_S = 30.0


def model(name: str, engines: int, places: Optional[int] = None) -> ModelSpec:
    """A model whose engines are called <name>0, <name>1, ..."""
    ids = [f"{name}{number}" for number in range(engines)]
    return ModelSpec(name, tuple(EngineSpec(f"http://{i}:1/v1", id=i, max_concurrency=places) for i in ids))


class RoutingTest(unittest.TestCase):
    def setUp(self) -> None:
        self.now_s = 100.0

    def router(self, *models: ModelSpec) -> Router:
        return Router(FleetSpec(models), rng=Random(5), clock=lambda: self.now_s)

    def tries(self, router: Router, attempts: int = 3, name: str = "m") -> Tries:
        return Tries(router.route(name), attempts, b"")

    def goes_to(self, tries: Tries) -> Lease:
        """The place that the request takes next."""
        step = tries.next()
        assert isinstance(step, Step)
        assert step.lease is not None
        return step.lease

    def goes_out(self, pool: ModelPool, *engines: Engine) -> None:
        """Their probes fail."""
        for engine in engines:
            pool.record_probe(engine, "no answer", 1, 1)

    def comes_back(self, pool: ModelPool, engine: Engine) -> None:
        pool.record_probe(engine, None, 1, 1)

    def no_budget(self, pool: ModelPool) -> None:
        while pool.take_retry():
            pass


class MayLeaveTest(RoutingTest):
    def hangs(self, tries: Tries, pool: ModelPool) -> Lease:
        """The request waits on an engine that goes out."""
        lease = self.goes_to(tries)
        self.goes_out(pool, lease.engine)
        return lease

    def moves(self, tries: Tries, pool: ModelPool, lease: Lease) -> Lease:
        """It leaves, and has another place."""
        self.assertTrue(tries.may_leave([lease], PLACE_S))
        pool.settle(lease, HUNG, 1.0)
        tries.failed(HUNG)
        return self.goes_to(tries)

    def test_another_engine_of_the_model_takes_over(self) -> None:
        router = self.router(model("m", 2))
        tries, pool = self.tries(router), router.pools["m"]
        lease = self.hangs(tries, pool)
        self.assertIsNot(self.moves(tries, pool, lease).engine, lease.engine)

    def test_a_lone_engine_is_waited_for(self) -> None:
        router = self.router(model("m", 1))
        tries = self.tries(router)
        self.assertFalse(tries.may_leave([self.hangs(tries, router.pools["m"])], PLACE_S))

    def test_when_all_are_out_each_is_waited_for(self) -> None:
        router = self.router(model("m", 3))
        tries, pool = self.tries(router), router.pools["m"]
        lease = self.hangs(tries, pool)
        self.goes_out(pool, *pool.engines)
        self.assertFalse(tries.may_leave([lease], PLACE_S))
        self.comes_back(pool, next(engine for engine in pool.engines if engine is not lease.engine))
        self.assertTrue(tries.may_leave([lease], PLACE_S))

    def test_a_fallback_model_takes_over(self) -> None:
        router = self.router(model("m", 1), model("n", 1))
        tries = self.tries(router)
        lease = self.hangs(tries, router.pools["m"])
        self.assertEqual(self.moves(tries, router.pools["m"], lease).engine.id, "n0")

    def test_a_request_whose_tries_are_used_up_waits_on(self) -> None:
        router = self.router(model("m", 2))
        tries = self.tries(router, attempts=1)
        self.assertFalse(tries.may_leave([self.hangs(tries, router.pools["m"])], PLACE_S))
        router = self.router(model("m", 2), model("n", 1))
        tries = self.tries(router, attempts=1)
        lease = self.hangs(tries, router.pools["m"])
        # Another model has tries of its own.
        self.assertEqual(self.moves(tries, router.pools["m"], lease).engine.id, "n0")

    def test_engines_that_hang_in_turn_are_not_asked_in_circles(self) -> None:
        router = self.router(model("m", 2))
        tries, pool = self.tries(router, attempts=9), router.pools["m"]
        first = self.hangs(tries, pool)
        second = self.moves(tries, pool, first)
        self.comes_back(pool, first.engine)
        self.goes_out(pool, second.engine)
        self.assertFalse(tries.may_leave([second], PLACE_S))

    def test_an_engine_that_had_only_failed_is_asked_again(self) -> None:
        router = self.router(model("m", 2))
        tries, pool = self.tries(router), router.pools["m"]
        first = self.goes_to(tries)
        error = Outcome("error", "the engine answered 500", 500)
        pool.settle(first, error, 0.1)
        tries.failed(error)
        self.assertIs(self.moves(tries, pool, self.hangs(tries, pool)).engine, first.engine)

    def test_it_takes_a_retry_from_the_budget_and_without_one_waits_on(self) -> None:
        router = self.router(model("m", 2))
        tries, pool = self.tries(router), router.pools["m"]
        lease = self.hangs(tries, pool)
        self.no_budget(pool)
        self.assertFalse(tries.may_leave([lease], PLACE_S))
        self.now_s += 11
        self.moves(tries, pool, lease)
        left = 0
        while pool.take_retry():
            left += 1
        self.assertEqual(left, 9)  # one was taken, not two

    def test_what_has_been_taken_for_it_is_there_however_the_try_ends(self) -> None:
        router = self.router(model("m", 2))
        tries, pool = self.tries(router), router.pools["m"]
        lease = self.hangs(tries, pool)
        self.assertTrue(tries.may_leave([lease], PLACE_S))
        self.no_budget(pool)
        pool.settle(lease, OK, 0.1)
        tries.failed(Outcome("timeout", "the engine did not answer in time"))
        self.goes_to(tries)
        tries.failed(Outcome("timeout", "the engine did not answer in time"))
        self.assertIsNone(tries.next())

    def test_who_looks_for_a_retry_in_vain_leaves_no_trace_in_the_decisions(self) -> None:
        router = self.router(model("m", 2))
        tries, pool = self.tries(router), router.pools["m"]
        lease = self.hangs(tries, pool)
        self.no_budget(pool)
        records: list[object] = []
        pool._decisions = Decisions(records.append, pool.name, pool._members)
        self.assertFalse(tries.may_leave([lease], PLACE_S))
        self.assertEqual(records, [])
        self.now_s += 11
        self.assertTrue(tries.may_leave([lease], PLACE_S))
        self.assertEqual(len(records), 1)

    def test_what_an_engine_held_that_had_answered_well_moves_beyond_the_budget(self) -> None:
        router = self.router(model("m", 2))
        pool = router.pools["m"]
        for _ in range(2):
            lease = pool.acquire((), b"")
            assert lease is not None
            pool.settle(lease, OK, 0.1)
        tries = self.tries(router)
        lease = self.hangs(tries, pool)
        self.no_budget(pool)
        self.moves(tries, pool, lease)

    def test_an_engine_that_had_hung_before_is_not_proven(self) -> None:
        router = self.router(model("m", 2))
        pool = router.pools["m"]
        for outcome in (OK, OK, HUNG, HUNG):
            lease = pool.acquire((), b"")
            assert lease is not None
            pool.settle(lease, outcome, 0.1)
            self.now_s += 1
        tries = self.tries(router)
        lease = self.hangs(tries, pool)
        self.no_budget(pool)
        self.assertFalse(tries.may_leave([lease], PLACE_S))

    def test_full_engines_are_stood_in_line_for_only_when_that_ends_in_time(self) -> None:
        router = self.router(model("m", 2, places=1))
        tries, pool = self.tries(router), router.pools["m"]
        lease = self.hangs(tries, pool)
        held = pool.acquire((), b"")
        assert held is not None
        pool.settle(held, OK, 40.0)  # a place is usually held for so long
        held = pool.acquire((), b"")
        self.assertIsNotNone(held)
        self.assertTrue(tries.may_leave([lease], 41.0))
        self.assertFalse(tries.may_leave([lease], 39.0))

    def test_from_a_last_resort_to_an_engine_that_has_come_in(self) -> None:
        router = self.router(model("m", 2))
        tries, pool = self.tries(router), router.pools["m"]
        self.goes_out(pool, *pool.engines)
        lease = self.goes_to(tries)
        self.goes_out(pool, lease.engine)
        self.assertFalse(tries.may_leave([lease], PLACE_S))
        other = next(engine for engine in pool.engines if engine is not lease.engine)
        self.comes_back(pool, other)
        self.assertIs(self.moves(tries, pool, lease).engine, other)

    def test_when_the_other_engine_goes_out_in_between_the_client_is_told(self) -> None:
        router = self.router(model("m", 2))
        tries, pool = self.tries(router, attempts=1), router.pools["m"]
        lease = self.hangs(tries, pool)
        pool.settle(lease, HUNG, 1.0)
        tries.failed(HUNG)
        self.assertIsNone(tries.next())
        self.assertEqual(tries.error().code, "backend_unavailable")


class Patient:
    """A request that leaves when the test says so."""

    def __init__(self, leaves: bool = True) -> None:
        self.leaves = leaves
        self.asked: list[list[str]] = []

    def may_leave(self, leases: Sequence[Lease], place_s: float, ahead: int = 0) -> bool:
        assert place_s == PLACE_S
        self.asked.append([lease.engine.id for lease in leases])
        return self.leaves


class RescueTest(RoutingTest):
    def setUp(self) -> None:
        super().setUp()
        self.pool = self.router(model("m", 3)).pools["m"]
        self.rescue = Rescue(PLACE_S)

    def waits(self, request: Patient) -> tuple[Attempt, Lease]:
        """One more attempt of the request."""
        attempt, lease = Attempt(math.inf), self.pool.acquire((), b"")
        assert lease is not None
        self.rescue.enter(attempt, request, lease)
        return attempt, lease

    def test_attempts_on_an_engine_that_is_out_are_ended_and_no_others(self) -> None:
        first, second = Patient(), Patient()
        (gone, lease), (stays, _) = self.waits(first), self.waits(second)
        self.rescue.expire()
        self.assertEqual((gone.aborted, stays.aborted), (None, None))
        self.goes_out(self.pool, lease.engine)
        self.rescue.expire()
        self.assertEqual((gone.aborted, stays.aborted), ("hung", None))
        self.rescue.expire()
        self.assertEqual((len(first.asked), len(second.asked)), (1, 0))
        failure = gone.failure()
        assert isinstance(failure, EngineFault)
        self.assertEqual(failure.outcome.kind, "hung")

    def test_a_refused_connection_is_as_good_as_a_probe(self) -> None:
        attempt, lease = self.waits(Patient())
        tried = [engine for engine in self.pool.engines if engine is not lease.engine]
        refused = self.pool.acquire(tried, b"")
        assert refused is not None
        self.pool.settle(refused, Outcome("refused", "cannot connect"), 0.0)
        self.rescue.expire()
        self.assertEqual(attempt.aborted, "hung")

    def test_who_has_left_or_has_an_answer_or_was_ended_already_is_let_be(self) -> None:
        request = Patient()
        (left, lease), (begun, other), (late, third) = (self.waits(request) for _ in range(3))
        self.assertTrue(self.rescue.leave(left))
        self.assertFalse(self.rescue.leave(left))
        begun.begun = True
        late.abort("cancelled")
        self.goes_out(self.pool, lease.engine, other.engine, third.engine)
        self.rescue.expire()
        self.assertEqual((left.aborted, begun.aborted, request.asked), (None, None, []))
        self.assertIsInstance(late.failure(), ClientGone)

    def test_who_may_not_leave_is_looked_at_again(self) -> None:
        request = Patient(leaves=False)
        attempt, lease = self.waits(request)
        self.goes_out(self.pool, lease.engine)
        self.rescue.expire()
        self.assertIsNone(attempt.aborted)
        request.leaves = True
        self.rescue.expire()
        self.assertEqual(attempt.aborted, "hung")

    def test_no_more_leave_at_once_than_get_a_place_in_time(self) -> None:
        hung, other = EngineSpec("http://a:1/v1"), EngineSpec("http://b:1/v1", max_concurrency=2)
        router = self.router(ModelSpec("m", (hung, other)))
        pool = router.pools["m"]
        usual = pool.acquire((), b"")
        assert usual is not None
        pool.settle(usual, OK, 40.0)  # a place is usually held for so long
        attempts: list[Attempt] = []
        for _ in range(8):
            tries = Tries((pool,), 3, b"", avoid=(pool.engines[1],))
            lease = self.goes_to(tries)
            self.assertIs(lease.engine, pool.engines[0])
            attempts.append(Attempt(math.inf))
            self.rescue.enter(attempts[-1], tries, lease)
        self.goes_out(pool, pool.engines[0])
        self.rescue.expire()
        # Two places are free, and the next one is in 20 s.
        self.assertEqual([attempt.aborted for attempt in attempts], ["hung"] * 3 + [None] * 5)

    def test_after_a_long_look_it_is_not_due_for_a_while(self) -> None:
        for takes_s, due_s in ((0.0, 100.0), (2.0, 120.0)):
            clock = iter((100.0, 100.0 + takes_s))
            self.rescue = Rescue(PLACE_S, clock.__next__)
            self.goes_out(self.pool, self.waits(Patient(leaves=False))[1].engine)
            self.rescue.expire()
            self.assertAlmostEqual(self.rescue.deadline_s, due_s)
        self.assertLess(Rescue(PLACE_S).deadline_s, 0)  # else at each tick

    def test_an_attempt_that_was_ended_has_left(self) -> None:
        attempt, lease = self.waits(Patient())
        self.goes_out(self.pool, lease.engine)
        self.rescue.expire()
        self.assertFalse(self.rescue.leave(attempt))

    def test_an_engine_that_goes_between_choice_and_entry_is_seen(self) -> None:
        attempt, lease = Attempt(math.inf), self.pool.acquire((), b"")
        assert lease is not None
        self.goes_out(self.pool, lease.engine)
        self.rescue.enter(attempt, Patient(), lease)
        self.rescue.expire()
        self.assertEqual(attempt.aborted, "hung")

    def test_one_that_was_asked_although_it_was_out_is_left_when_it_is_found_gone_again(self) -> None:
        self.goes_out(self.pool, *self.pool.engines)
        attempt, lease = Attempt(math.inf), self.pool.acquire_last_resort(())
        assert lease is not None
        self.rescue.enter(attempt, Patient(), lease)
        self.rescue.expire()
        self.assertIsNone(attempt.aborted)  # it may be back, and nobody has looked yet
        self.goes_out(self.pool, lease.engine)
        self.rescue.expire()
        self.assertEqual(attempt.aborted, "hung")

    def test_with_a_second_attempt_at_an_engine_that_is_well_nobody_leaves(self) -> None:
        request = Patient()
        (first, lease), (second, other) = self.waits(request), self.waits(request)
        self.goes_out(self.pool, lease.engine)
        self.rescue.expire()
        self.assertEqual((first.aborted, request.asked), (None, []))
        self.goes_out(self.pool, other.engine)
        self.rescue.expire()
        self.assertEqual((first.aborted, second.aborted), ("hung", "hung"))
        self.assertEqual(request.asked, [[lease.engine.id, other.engine.id]])  # one request, asked once


class OnwardTest(RoutingTest):
    def test_a_broken_stream_leaves_for_a_free_engine_that_can_go_on_with_it(self) -> None:
        pool = self.router(model("m", 3, places=1)).pools["m"]
        lease, held = pool.acquire((), b""), pool.acquire((), b"")
        assert lease is not None
        assert held is not None
        onward = Onward(pool, [lease.engine, held.engine])
        self.assertTrue(onward.may_leave([lease], PLACE_S))
        self.no_budget(pool)
        self.assertTrue(onward.take_retry())  # what leaving has taken
        self.assertFalse(onward.take_retry())
        self.assertFalse(onward.may_leave([lease], PLACE_S))
        self.now_s += 11
        self.assertIsNotNone(pool.acquire((), b""))
        self.assertFalse(onward.may_leave([lease], PLACE_S))  # it has no place free, and this is no time to wait


if __name__ == "__main__":
    unittest.main()
