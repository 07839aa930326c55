"""The engines of one model: what an outcome or a probe changes, who is asked next, reload, and counting under
threads."""

from __future__ import annotations

import threading
import unittest
from collections import Counter
from collections.abc import Iterable
from random import Random
from typing import Any, Optional, Union
from unittest import mock

from gateway.routing.engine import Engine
from gateway.routing.line import Lease
from gateway.routing.pool import ModelPool
from gateway.routing.retry import Outcome, judge
from gateway.routing.specs import EngineSpec, ModelSpec, model_from
from gateway.routing.standing import StateChange
from gateway.telemetry.events import OUTCOMES

OK = Outcome("ok")
REFUSED = Outcome("refused", "connection refused")
ERROR = Outcome("error", "the engine answered 500", 500)
UNAUTHORIZED = Outcome("unauthorized", "the engine refuses the key", 401)


def rate_limited(retry_after_s: Optional[float] = None) -> Outcome:
    return Outcome("rate_limited", "slow down", 429, retry_after_s)


class PoolTest(unittest.TestCase):
    def setUp(self) -> None:
        self.now_s = 5000.0
        self.pool = self.make("a", "b", "c")

    def make(self, *ids: str, strategy: str = "round_robin", **fields: int) -> ModelPool:
        return ModelPool(self.spec(*ids, **fields), strategy, Random(3), lambda: self.now_s)

    def spec(self, *ids: str, **fields: int) -> ModelSpec:
        return ModelSpec("m", tuple(EngineSpec(f"http://{name}:8000/v1", id=name, **fields) for name in ids))  # type: ignore[arg-type]

    def take(self, tried: Iterable[Engine] = ()) -> Lease:
        lease = self.pool.acquire(list(tried), b"")
        assert lease is not None
        return lease

    def take_named(self, name: str) -> Lease:
        """Take a place on that engine; the others met on the way are given back."""
        others = []
        while True:
            lease = self.take()
            if lease.engine.id == name:
                break
            others.append(lease)
        for other in others:
            self.pool.settle(other, Outcome("cancelled"), 0.0)
        return lease

    def hit(self, name: str, outcome: Outcome) -> Optional[StateChange]:
        return self.pool.settle(self.take_named(name), outcome, 0.01)

    def states(self) -> dict[str, str]:
        return {item.id: item.state for item in self.pool.snapshot()}

    def in_turn(self, count: int = 60) -> set[str]:
        """The engines that balancing uses now."""
        seen = set()
        for _ in range(count):
            lease = self.pool.acquire((), b"")
            if lease is not None:
                seen.add(lease.engine.id)
                self.pool.settle(lease, Outcome("cancelled"), 0.0)
        return seen


class OutcomeTest(PoolTest):
    def test_every_outcome_of_telemetry_is_judged(self) -> None:
        for kind in OUTCOMES:
            judge(Outcome(kind))

    def test_only_the_engines_failures_are_tried_elsewhere(self) -> None:
        retried = {kind for kind in OUTCOMES if judge(Outcome(kind)).retry}
        self.assertEqual(retried, OUTCOMES - {"ok", "rejected", "cancelled"})

    def test_a_refused_connection_takes_the_engine_out_and_says_why(self) -> None:
        change = self.hit("b", REFUSED)
        self.assertEqual(change, StateChange("m", "b", "up", "down", "connection refused"))
        self.assertEqual(self.in_turn(), {"a", "c"})
        self.assertEqual({i.id: i.last_error for i in self.pool.snapshot()}["b"], "connection refused")

    def test_other_failures_leave_the_engine_in(self) -> None:
        for kind in ("connect_timeout", "reset", "timeout", "error", "invalid", "truncated"):
            with self.subTest(kind=kind):
                self.pool = self.make("a", "b", "c")  # a breaker that knows of one failure
                self.assertIsNone(self.hit("b", Outcome(kind, "broken")))
                self.assertEqual(self.in_turn(), {"a", "b", "c"})

    def test_a_callers_fault_and_a_cancelled_request_change_nothing(self) -> None:
        for kind in ("rejected", "cancelled"):
            with self.subTest(kind=kind):
                self.assertIsNone(self.hit("b", Outcome(kind, "bad request", 400)))
                self.assertEqual(self.states(), {"a": "up", "b": "up", "c": "up"})
                self.assertIsNone({i.id: i.last_error for i in self.pool.snapshot()}["b"])

    def test_a_rest_lasts_as_long_as_the_engine_asked(self) -> None:
        change = self.hit("b", rate_limited(7.5))
        assert change is not None
        self.assertEqual((change.before, change.after), ("up", "resting"))
        self.now_s += 7.4
        self.assertEqual(self.in_turn(), {"a", "c"})
        self.assertAlmostEqual(self.pool.shortest_rest_s() or 0.0, 0.1)
        self.now_s += 0.1
        self.assertEqual(self.in_turn(), {"a", "b", "c"})
        self.assertIsNone(self.pool.shortest_rest_s())

    def test_a_rest_without_retry_after_lasts_one_second(self) -> None:
        self.hit("b", rate_limited())
        self.now_s += 0.99
        self.assertEqual(self.states()["b"], "resting")
        self.now_s += 0.01
        self.assertEqual(self.states()["b"], "up")

    def test_an_absurd_retry_after_is_bounded(self) -> None:
        self.hit("b", rate_limited(1e12))
        self.now_s += 86400.0
        self.assertEqual(self.states()["b"], "up")

    def test_a_shorter_second_rest_does_not_shorten_the_first(self) -> None:
        first, second = self.take_named("b"), self.take_named("b")
        self.pool.settle(first, rate_limited(30.0), 0.01)
        self.pool.settle(second, rate_limited(1.0), 0.01)
        self.now_s += 29.0
        self.assertEqual(self.states()["b"], "resting")

    def test_a_misconfigured_engine_is_out_for_a_minute(self) -> None:
        change = self.hit("b", UNAUTHORIZED)
        assert change is not None
        self.assertEqual(change.after, "misconfigured")
        self.now_s += 59.9
        self.assertEqual(self.in_turn(), {"a", "c"})
        self.now_s += 0.1
        self.assertEqual(self.in_turn(), {"a", "b", "c"})

    def test_the_shortest_rest_is_told(self) -> None:
        for name, wait_s in (("a", 9.0), ("b", 4.0), ("c", 6.0)):
            self.hit(name, rate_limited(wait_s))
        self.assertEqual(self.pool.shortest_rest_s(), 4.0)
        self.assertFalse(self.pool.any_available())
        self.now_s += 4.0
        self.assertEqual(self.in_turn(), {"b"})

    def test_a_good_answer_brings_a_refused_engine_back(self) -> None:
        slow = self.take_named("b")
        self.hit("b", REFUSED)
        change = self.pool.settle(slow, OK, 0.5)
        assert change is not None
        self.assertEqual((change.before, change.after), ("down", "up"))
        self.assertEqual(self.in_turn(), {"a", "b", "c"})

    def test_a_good_answer_does_not_end_a_rest(self) -> None:
        slow = self.take_named("b")
        self.hit("b", rate_limited(30.0))
        self.pool.settle(slow, OK, 0.5)
        self.assertEqual(self.states()["b"], "resting")


class ProbeTest(PoolTest):
    def engine(self, name: str) -> Engine:
        return next(engine for engine in self.pool.engines if engine.id == name)

    def test_an_engine_goes_out_after_the_configured_failures_in_a_row(self) -> None:
        b = self.engine("b")
        self.assertIsNone(self.pool.record_probe(b, "503", 3, 1))
        self.assertIsNone(self.pool.record_probe(b, "503", 3, 1))
        self.assertIsNone(self.pool.record_probe(b, None, 3, 1))  # not in a row any more
        self.assertIsNone(self.pool.record_probe(b, "503", 3, 1))
        self.assertIsNone(self.pool.record_probe(b, "503", 3, 1))
        self.assertEqual(
            self.pool.record_probe(b, "answered 503", 3, 1), StateChange("m", "b", "up", "down", "answered 503")
        )
        self.assertEqual(self.in_turn(), {"a", "c"})

    def test_what_is_recorded_is_the_number_of_failures_that_counted(self) -> None:
        records: list[dict[str, Any]] = []
        spec = model_from("m", ["http://a:1"])
        pool = ModelPool(spec, "round_robin", Random(1), lambda: self.now_s, recorder=records.append)
        change = pool.record_probe(pool.engines[0], "503", 3, 1, 1)
        self.assertEqual(change and change.after, "down")
        pool.record_probe(pool.engines[0], None, 3, 1, 1)
        self.assertIsNone(pool.record_probe(pool.engines[0], "503", 3, 1, 1))
        self.assertEqual([record["fails"] for record in records], [1, 3, 3])

    def test_an_engine_returns_after_the_configured_passes_in_a_row(self) -> None:
        self.hit("b", REFUSED)
        b = self.engine("b")
        self.pool.record_probe(b, None, 2, 2)
        self.pool.record_probe(b, "503", 2, 2)
        self.pool.record_probe(b, None, 2, 2)
        self.assertEqual(self.in_turn(), {"a", "c"})
        change = self.pool.record_probe(b, None, 2, 2)
        assert change is not None
        self.assertEqual((change.before, change.after), ("down", "up"))
        self.assertEqual(self.in_turn(), {"a", "b", "c"})

    def test_passes_from_before_a_refusal_do_not_count(self) -> None:
        b = self.engine("b")
        for _ in range(5):
            self.pool.record_probe(b, None, 2, 2)
        self.hit("b", REFUSED)
        self.pool.record_probe(b, None, 2, 2)
        self.assertEqual(self.states()["b"], "down")

    def test_a_good_probe_ends_neither_a_rest_nor_a_misconfiguration(self) -> None:
        self.hit("a", rate_limited(30.0))
        self.hit("b", UNAUTHORIZED)
        for name in ("a", "b"):
            self.assertIsNone(self.pool.record_probe(self.engine(name), None, 2, 1))
        self.assertEqual(self.states(), {"a": "resting", "b": "misconfigured", "c": "up"})
        self.assertEqual(self.in_turn(), {"c"})

    def test_probes_during_a_rest_count_once_it_is_over(self) -> None:
        b = self.engine("b")
        self.hit("b", rate_limited(10.0))
        for _ in range(2):
            self.pool.record_probe(b, "503", 2, 1)
        self.now_s += 10.0
        self.assertEqual(self.in_turn(), {"a", "c"})
        self.hit("a", rate_limited(10.0))
        self.pool.record_probe(b, None, 2, 1)
        self.assertEqual(self.in_turn(), {"b", "c"})

    def test_a_fresh_good_answer_spares_the_probe(self) -> None:
        self.hit("b", OK)
        self.assertEqual([e.id for e in self.pool.due_for_probe(5.0)], ["a", "c"])
        self.now_s += 5.0
        self.assertEqual([e.id for e in self.pool.due_for_probe(5.0)], ["a", "b", "c"])

    def test_an_engine_under_suspicion_is_probed_all_the_same(self) -> None:
        for name in "abc":
            self.hit(name, OK)
        self.hit("a", REFUSED)
        self.pool.record_probe(self.engine("b"), "503", 2, 1)
        self.assertEqual([e.id for e in self.pool.due_for_probe(5.0)], ["a", "b"])

    def test_the_echo_engine_is_never_probed(self) -> None:
        pool = ModelPool(ModelSpec("m", (EngineSpec("echo:"),)), "round_robin", Random(1), lambda: 0.0)
        self.assertEqual(pool.due_for_probe(5.0), [])


class RetryTest(PoolTest):
    def test_each_retry_goes_to_another_engine_while_there_is_one(self) -> None:
        tried: list[Engine] = []
        for _ in range(3):
            tried.append(self.take(tried).engine)
        self.assertEqual({engine.id for engine in tried}, {"a", "b", "c"})
        self.assertIn(self.take(tried).engine.id, {"a", "b", "c"})

    def test_a_retry_goes_to_the_idlest(self) -> None:
        busy, failed, idle = self.take_named("a").engine, self.take_named("b").engine, "c"
        self.assertEqual(self.take([failed]).engine.id, idle)
        self.assertIn(busy.id, self.states())

    def test_retries_do_not_disturb_the_rotation(self) -> None:
        counts: Counter[str] = Counter()
        for number in range(300):
            lease = self.take()
            counts[lease.engine.id] += 1
            if number % 7 == 0:
                self.pool.settle(self.take([lease.engine]), OK, 0.01)
            self.pool.settle(lease, OK, 0.01)
        self.assertEqual(counts, {"a": 100, "b": 100, "c": 100})

    def test_a_retry_prefers_any_free_engine_over_a_full_one(self) -> None:
        self.pool = self.make("a", "b", max_concurrency=1)
        a = self.take_named("a")
        b = self.take([a.engine])
        self.assertEqual(b.engine.id, "b")
        self.assertIsNone(self.pool.acquire([a.engine], b""))
        self.assertTrue(self.pool.all_full())
        self.pool.settle(a, OK, 0.01)
        self.assertIs(self.take([a.engine]).engine, a.engine)

    def test_last_resort_is_the_engine_that_returns_soonest(self) -> None:
        self.hit("a", UNAUTHORIZED)
        self.now_s += 30.0
        self.hit("b", UNAUTHORIZED)
        self.hit("c", UNAUTHORIZED)
        first = self.pool.acquire_last_resort(())
        assert first is not None
        self.assertEqual(first.engine.id, "a")
        self.assertEqual(self.pool.last_resort_wait_s(()), 30.0)
        second = self.pool.acquire_last_resort([first.engine])
        assert second is not None
        self.assertIn(second.engine.id, {"b", "c"})

    def test_a_down_engine_is_a_better_last_resort_than_a_misconfigured_one(self) -> None:
        self.hit("a", UNAUTHORIZED)
        self.hit("b", UNAUTHORIZED)
        self.hit("c", REFUSED)
        lease = self.pool.acquire_last_resort(())
        assert lease is not None
        self.assertEqual(lease.engine.id, "c")

    def test_a_resting_full_or_tried_engine_is_no_last_resort(self) -> None:
        self.pool = self.make("a", "b", "c", max_concurrency=1)
        self.hit("a", rate_limited(60.0))
        self.hit("b", REFUSED)
        c = self.take_named("c")
        self.pool.record_probe(c.engine, "503", 1, 1)  # out, and still busy with one request
        b = self.pool.acquire_last_resort(())
        assert b is not None
        self.assertEqual(b.engine.id, "b")
        self.assertIsNone(self.pool.acquire_last_resort([b.engine]))


class BreakerTest(PoolTest):
    def breakers(self) -> dict[str, str]:
        return {item.id: item.breaker for item in self.pool.snapshot()}

    def open(self, name: str) -> Optional[StateChange]:
        """Let an engine fail until its breaker opens; the last change."""
        change = None
        for _ in range(5):
            change = self.hit(name, ERROR)
        self.assertEqual(self.breakers()[name], "open")
        return change

    def test_five_failures_take_an_engine_out_for_five_seconds(self) -> None:
        self.assertEqual(self.open("b"), StateChange("m", "b", "up", "open", "the engine answered 500"))
        self.now_s += 4.9
        self.assertEqual(self.in_turn(), {"a", "c"})
        self.now_s += 0.1
        self.assertEqual(self.hit("b", OK), StateChange("m", "b", "half_open", "up", ""))
        self.assertEqual(self.in_turn(), {"a", "b", "c"})

    def test_what_is_not_the_engines_failure_moves_no_breaker(self) -> None:
        for outcome in (Outcome("rejected", "bad request", 400), Outcome("cancelled"), rate_limited(0.0)):
            for _ in range(20):
                self.hit("b", outcome)
            self.assertEqual(self.breakers()["b"], "closed")
        self.hit("b", UNAUTHORIZED)
        self.assertEqual(self.breakers()["b"], "closed")

    def test_a_good_probe_does_not_end_it(self) -> None:
        self.open("b")
        engine = next(engine for engine in self.pool.engines if engine.id == "b")
        self.assertIsNone(self.pool.record_probe(engine, None, 2, 1))
        self.assertEqual(self.in_turn(), {"a", "c"})

    def test_exactly_one_request_is_the_trial(self) -> None:
        self.open("b")
        self.now_s += 5.0
        leases = [self.take() for _ in range(30)]
        trials = [lease for lease in leases if lease.engine.id == "b"]
        self.assertEqual([lease.trial for lease in trials], [True])
        self.assertEqual(self.states()["b"], "half_open")
        self.pool.settle(trials[0], Outcome("cancelled"), 0.0)  # its client has left: nothing was learned
        self.assertEqual(
            self.in_turn(1), {self.take([lease.engine for lease in leases if lease not in trials]).engine.id}
        )

    def test_a_failed_trial_keeps_it_out_twice_as_long(self) -> None:
        self.open("b")
        self.now_s += 5.0
        change = self.hit("b", ERROR)
        assert change is not None
        self.assertEqual((change.before, change.after), ("half_open", "open"))
        self.now_s += 9.9
        self.assertEqual(self.in_turn(), {"a", "c"})
        self.now_s += 0.1
        self.assertEqual(self.in_turn(), {"a", "b", "c"})

    def test_what_began_before_cannot_close_it(self) -> None:
        slow = self.take_named("b")
        self.open("b")
        self.assertIsNone(self.pool.settle(slow, OK, 9.0))
        self.assertEqual(self.states()["b"], "open")

    def test_a_last_resort_that_answers_closes_it(self) -> None:
        for name in "abc":
            self.open(name)
        self.assertIsNone(self.pool.acquire((), b""))
        self.assertFalse(self.pool.any_available())
        lease = self.pool.acquire_last_resort(())
        assert lease is not None
        change = self.pool.settle(lease, OK, 0.1)
        assert change is not None
        self.assertEqual((change.before, change.after), ("open", "up"))
        self.assertEqual(self.in_turn(), {lease.engine.id})

    def test_the_last_resort_is_the_engine_whose_breaker_ends_first(self) -> None:
        for name in "bca":
            self.open(name)
            self.now_s += 1.0
        self.assertEqual(self.pool.last_resort_wait_s(()), 2.0)
        lease = self.pool.acquire_last_resort(())
        assert lease is not None
        self.assertEqual(lease.engine.id, "b")

    def test_a_rest_does_not_hide_an_open_breaker(self) -> None:
        self.open("b")
        lone = self.pool.acquire_last_resort([e for e in self.pool.engines if e.id != "b"])
        assert lone is not None
        self.pool.settle(lone, rate_limited(2.0), 0.01)
        self.assertEqual(self.states()["b"], "resting")
        self.now_s += 2.0
        self.assertEqual(self.states()["b"], "open")
        self.assertEqual(self.in_turn(), {"a", "c"})


class LookTest(PoolTest):
    def turns(self, look: bool) -> list[str]:
        """The rotation of a and b while c comes in for a moment in which nobody asks."""
        weights = {"a": 2, "b": 3, "c": 1}
        engines = tuple(EngineSpec(f"http://{n}:8000/v1", id=n, weight=weight) for n, weight in weights.items())
        self.pool = ModelPool(ModelSpec("m", engines), "round_robin", Random(3), lambda: self.now_s)
        first, second = self.take_named("c"), self.take_named("c")
        self.pool.settle(first, rate_limited(5.0), 0.01)
        turns = [self.take().engine.id for _ in range(3)]
        self.now_s += 5.0
        if look:
            self.assertTrue(self.pool.any_available())
            self.assertFalse(self.pool.all_full())
            self.pool.predicted_wait_s()
            self.pool.snapshot()
        self.pool.settle(second, rate_limited(5.0), 0.01)
        return turns + [self.take().engine.id for _ in range(5)]

    def turns_with_a_line(self, look: bool) -> list[str]:
        """The rotation of a and b while somebody waits and c comes in for a moment, but full."""

        def spec(places: int) -> ModelSpec:
            weights = {"a": 2, "b": 3, "c": 1}
            return ModelSpec(
                "m",
                tuple(
                    EngineSpec(f"http://{n}:8000/v1", id=n, weight=w, max_concurrency=places)
                    for n, w in weights.items()
                ),
            )

        self.pool = ModelPool(spec(2), "round_robin", Random(3), lambda: self.now_s)
        first, second = self.take_named("c"), self.take_named("c")
        self.pool.settle(first, rate_limited(5.0), 0.01)
        self.pool.reconfigure(spec(1), "round_robin")
        held = [self.take(), self.take()]
        waiter = self.pool.join_line("normal", b"")
        assert waiter is not None
        self.now_s += 5.0
        if look:
            self.pool.serve_line()
        self.assertFalse(waiter.ready.is_set())
        self.pool.settle(second, rate_limited(5.0), 0.01)
        self.pool.leave_line(waiter)
        turns = [lease.engine.id for lease in held]
        for lease in held:
            self.pool.settle(lease, OK, 0.01)
        for _ in range(5):
            lease = self.take()
            turns.append(lease.engine.id)
            self.pool.settle(lease, OK, 0.01)
        return turns

    def test_looking_for_a_free_place_in_vain_changes_no_decision(self) -> None:
        self.assertEqual(self.turns_with_a_line(look=True), self.turns_with_a_line(look=False))

    def test_a_look_changes_no_decision(self) -> None:
        self.assertEqual(self.turns(look=True), self.turns(look=False))


class DrainTest(PoolTest):
    def test_a_draining_engine_gets_nothing_new_and_finishes_what_it_has(self) -> None:
        held = self.take_named("b")
        self.assertEqual(self.pool.set_draining("b", True), StateChange("m", "b", "up", "draining", "operator"))
        self.assertEqual(self.in_turn(), {"a", "c"})
        self.assertIsNone(self.pool.settle(held, OK, 1.0))
        self.assertEqual(self.in_turn(), {"a", "c"})
        self.assertEqual(self.pool.set_draining("b", False), StateChange("m", "b", "draining", "up", "operator"))
        self.assertEqual(self.in_turn(), {"a", "b", "c"})

    def test_doing_it_twice_changes_nothing(self) -> None:
        self.pool.set_draining("b", True)
        self.assertIsNone(self.pool.set_draining("b", True))
        self.pool.set_draining("b", False)
        self.assertIsNone(self.pool.set_draining("b", False))

    def test_it_is_no_last_resort_and_no_probe_brings_it_back(self) -> None:
        for name in "abc":
            self.pool.set_draining(name, True)
        self.assertIsNone(self.pool.acquire_last_resort(()))
        self.assertIsNone(self.pool.record_probe(self.pool.engines[0], None, 1, 1))
        self.assertFalse(self.pool.any_available())

    def test_enabling_an_engine_that_was_down_lets_it_in(self) -> None:
        self.hit("b", REFUSED)
        change = self.pool.set_draining("b", False)
        assert change is not None
        self.assertEqual((change.before, change.after), ("down", "up"))

    def test_an_unknown_engine_is_named(self) -> None:
        with self.assertRaises(KeyError) as caught:
            self.pool.set_draining("z", True)
        self.assertIn("z", str(caught.exception))


class WeightTest(PoolTest):
    def counts(self, count: int = 60) -> Counter[str]:
        counts: Counter[str] = Counter()
        for _ in range(count):
            lease = self.take()
            counts[lease.engine.id] += 1
            self.pool.settle(lease, OK, 0.01)
        return counts

    def weights(self) -> dict[str, int]:
        return {engine.id: engine.weight for engine in self.pool.snapshot()}

    def test_an_operators_weight_is_shown_and_gone_by_at_once(self) -> None:
        self.assertEqual(self.counts(), {"a": 20, "b": 20, "c": 20})
        self.pool.set_weight("b", 4)
        self.assertEqual(self.weights(), {"a": 1, "b": 4, "c": 1})
        self.assertEqual(self.counts(), {"a": 10, "b": 40, "c": 10})

    def test_a_retry_goes_by_it_too(self) -> None:
        self.pool.set_weight("c", 1000)
        tried = self.take_named("a")
        self.assertEqual({self.take((tried.engine,)).engine.id for _ in range(20)}, {"b", "c"})
        self.assertGreater({i.id: i.in_flight for i in self.pool.snapshot()}["c"], 15)

    def test_what_is_in_flight_and_what_is_known_of_it_stay(self) -> None:
        held = self.take_named("b")
        self.hit("a", REFUSED)
        self.pool.set_weight("a", 2)
        self.pool.set_weight("b", 2)
        self.assertEqual(self.states(), {"a": "down", "b": "up", "c": "up"})
        self.assertEqual({i.id: i.in_flight for i in self.pool.snapshot()}["b"], 1)
        self.pool.settle(held, OK, 0.01)

    def test_an_unknown_engine_is_named(self) -> None:
        with self.assertRaises(KeyError) as caught:
            self.pool.set_weight("z", 2)
        self.assertIn("z", str(caught.exception))

    def test_what_the_engines_file_may_not_have_is_refused_with_its_fault(self) -> None:
        bad: tuple[Any, ...] = (0, -1, 1_000_001, 1.5, 2.0, True, "2", None)
        for weight in bad:
            with self.subTest(weight=weight), self.assertRaises(ValueError) as caught:
                self.pool.set_weight("b", weight)
            self.assertIn("weight: must be an integer from 1 to 1000000, not ", str(caught.exception))
        self.assertEqual(self.weights(), {"a": 1, "b": 1, "c": 1})
        self.pool.set_weight("b", 1_000_000)
        self.assertEqual(self.weights()["b"], 1_000_000)

    def test_a_reload_sets_the_files_weights_again(self) -> None:
        self.pool.set_weight("b", 9)
        self.pool.reconfigure(self.spec("a", "b", "c"), "round_robin")
        self.assertEqual(self.weights(), {"a": 1, "b": 1, "c": 1})
        self.assertEqual(self.counts(), {"a": 20, "b": 20, "c": 20})

    def test_it_can_be_kept_by_engines_that_stay(self) -> None:
        self.pool.set_weight("b", 9)
        self.pool.reconfigure(self.spec("b", "d", weight=2), "round_robin", keep_weights=True)
        self.assertEqual(self.weights(), {"b": 9, "d": 2})
        self.assertEqual(self.counts(110), {"b": 90, "d": 20})


class HedgeTest(PoolTest):
    def hedging(self, after_ms: Union[float, str, None], ratio: float = 0.1) -> ModelPool:
        spec = ModelSpec("m", self.spec("a", "b").engines, hedge_after_ms=after_ms, hedge_ratio=ratio)
        return ModelPool(spec, "round_robin", Random(3), lambda: self.now_s)

    def test_a_fixed_time_is_that_time(self) -> None:
        self.assertEqual(self.hedging(250).hedge_after_s(), 0.25)
        self.assertIsNone(self.hedging(None).hedge_after_s())

    def test_p95_is_that_of_the_last_answers_once_there_are_enough(self) -> None:
        self.pool = self.hedging("p95")
        for number in range(1, 101):
            if number <= 20:
                self.assertIsNone(self.pool.hedge_after_s())
            self.pool.settle(self.take(), OK, number / 100, held_s=50.0)  # a stream's end does not matter
        for _ in range(50):
            self.pool.settle(self.take(), ERROR, 60.0)
            self.now_s += 60.0  # nor do failures
        self.assertAlmostEqual(self.pool.hedge_after_s() or 0.0, 0.96)
        for _ in range(200):
            lease = self.pool.acquire((), b"") or self.pool.acquire_last_resort(())
            assert lease is not None
            self.pool.settle(lease, OK, 3.0)
        self.assertEqual(self.pool.hedge_after_s(), 3.0)

    def hedges(self, requests: int, ratio: float) -> int:
        pool = self.hedging(1, ratio)
        taken = 0
        for _ in range(requests):
            pool.hedge_after_s()
            taken += pool.take_hedge()
        return taken

    def test_at_most_the_ratio_of_the_requests_but_one_are_hedged(self) -> None:
        for requests, ratio, expected in ((1, 0.1, 1), (19, 0.1, 1), (20, 0.1, 2), (200, 0.1, 20), (50, 1.0, 50)):
            with self.subTest(requests=requests, ratio=ratio):
                self.assertEqual(self.hedges(requests, ratio), expected)

    def test_a_ratio_of_zero_hedges_nothing(self) -> None:
        self.assertEqual(self.hedges(100, 0.0), 0)


class CountingTest(PoolTest):
    def in_flight(self) -> dict[str, int]:
        return {item.id: item.in_flight for item in self.pool.snapshot()}

    def test_a_place_is_held_until_it_is_settled(self) -> None:
        held = [self.take() for _ in range(4)]
        self.assertEqual(sum(self.in_flight().values()), 4)
        for lease, outcome in zip(held, (OK, REFUSED, ERROR, Outcome("cancelled"))):
            self.pool.settle(lease, outcome, 0.01)
        self.assertEqual(self.in_flight(), {"a": 0, "b": 0, "c": 0})

    def test_threads_never_exceed_a_limit_and_leave_nothing_behind(self) -> None:
        pool = self.pool = self.make("a", "b", "c", strategy="least_connections", max_concurrency=2)
        over: list[str] = []
        turned_away = Counter[str]()

        def work(seed: int) -> None:
            rng = Random(seed)
            for _ in range(300):
                lease = pool.acquire((), b"")
                if lease is None:
                    turned_away["all full"] += 1
                    continue
                over.extend(item.id for item in pool.snapshot() if item.in_flight > 2)
                pool.settle(lease, OK if rng.random() < 0.9 else ERROR, 0.001)

        threads = [threading.Thread(target=work, args=(i,), name=f"caller-{i}") for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30.0)
        self.assertEqual(over, [])
        self.assertEqual(self.in_flight(), {"a": 0, "b": 0, "c": 0})


class ReloadTest(PoolTest):
    def test_engines_that_stay_keep_their_state(self) -> None:
        held = self.take_named("b")
        self.hit("a", REFUSED)
        gone = self.pool.reconfigure(self.spec("a", "b", "d"), "round_robin")
        self.assertEqual([engine.id for engine in gone], ["c"])
        self.assertEqual(self.states(), {"a": "down", "b": "up", "d": "up"})
        self.assertEqual(self.in_turn(), {"b", "d"})
        self.assertEqual({i.id: i.in_flight for i in self.pool.snapshot()}["b"], 1)
        self.pool.settle(held, OK, 0.01)

    def test_a_removed_engine_gets_nothing_more_and_settles_as_usual(self) -> None:
        c = self.take_named("c")
        self.pool.reconfigure(self.spec("a", "b"), "round_robin")
        self.assertEqual(self.in_turn(), {"a", "b"})
        self.pool.settle(c, OK, 0.01)
        self.assertEqual(self.in_turn(), {"a", "b"})

    def test_new_weights_and_a_new_strategy_apply_at_once(self) -> None:
        self.pool.reconfigure(self.spec("a"), "random")
        heavy = ModelSpec("m", (*self.spec("a").engines, EngineSpec("http://b:8000/v1", id="b", weight=3)))
        self.pool.reconfigure(heavy, "round_robin")
        counts = Counter(self.take().engine.id for _ in range(40))
        self.assertEqual(counts, {"a": 10, "b": 30})
        self.assertEqual(self.pool.strategy_name, "round_robin")

    def test_the_same_id_at_another_address_is_another_engine(self) -> None:
        self.hit("a", REFUSED)
        moved = ModelSpec("m", (EngineSpec("http://elsewhere:8000/v1", id="a"), *self.spec("b").engines))
        self.pool.reconfigure(moved, "round_robin")
        self.assertEqual(self.states(), {"a": "up", "b": "up"})

    def test_a_models_own_strategy_wins_over_the_default(self) -> None:
        spec = ModelSpec("m", self.spec("a").engines, strategy="latency")
        self.pool.reconfigure(spec, "random")
        self.assertEqual(self.pool.strategy_name, "latency")

    def test_a_fleet_of_hundreds_is_not_compared_engine_by_engine(self) -> None:
        count = 300
        pool = self.make(*(f"old{number}" for number in range(count)))
        compared = 0

        def same(one: Engine, other: object) -> bool:
            nonlocal compared
            compared += 1
            return one is other

        with mock.patch.object(Engine, "__eq__", same), mock.patch.object(Engine, "__hash__", object.__hash__):
            gone = pool.reconfigure(self.spec(*(f"new{number}" for number in range(count))), "round_robin")
        self.assertEqual(len(gone), count)
        self.assertLess(compared, count)

    def test_a_retired_model_has_no_engine_left(self) -> None:
        self.assertEqual({engine.id for engine in self.pool.retire()}, {"a", "b", "c"})
        self.assertIsNone(self.pool.acquire((), b""))
        self.assertFalse(self.pool.any_available())


if __name__ == "__main__":
    unittest.main()
