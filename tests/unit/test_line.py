"""Waiting for a place on a full engine: who is next, hand-over, leaving, being sent away, and the predicted wait."""

from __future__ import annotations

import threading
import unittest
from random import Random
from typing import Callable, Optional

from gateway.routing.line import AGEING_S, RANK_BY_PRIORITY, Lease, Line, Waiter
from gateway.routing.pool import ModelPool
from gateway.routing.retry import Outcome
from gateway.routing.specs import EngineSpec, ModelSpec
from tests.support import TIMEOUT_S

OK = Outcome("ok")
REFUSED = Outcome("refused", "connection refused")
CANCELLED = Outcome("cancelled")


def served(line: Line) -> list[int]:
    """Everybody who waits, in the order they are served, by number."""
    numbers: list[int] = []
    while True:
        waiter = line.next()
        if waiter is None:
            return numbers
        numbers.append(waiter.number)


class OrderTest(unittest.TestCase):
    def setUp(self) -> None:
        self.line = Line()

    def test_equals_are_served_in_the_order_they_came(self) -> None:
        for number in range(50):
            self.line.join("normal", 1000.0 + number // 10)  # ten at a time in the same instant
        self.assertEqual(served(self.line), list(range(1, 51)))

    def test_higher_priorities_go_first(self) -> None:
        names = {self.line.join(priority, 1000.0).number: priority for priority in ("low", "normal", "high") * 2}
        order = [names[number] for number in served(self.line)]
        self.assertEqual(order, ["high", "high", "normal", "normal", "low", "low"])

    def test_a_lower_priority_is_overtaken_only_by_those_that_come_soon_after(self) -> None:
        low = self.line.join("low", 1000.0)
        soon = self.line.join("high", 1000.0 + 2 * AGEING_S - 0.01)
        late = self.line.join("high", 1000.0 + 2 * AGEING_S)
        normal = self.line.join("normal", 1000.0 + AGEING_S - 0.02)
        self.assertEqual(served(self.line), [normal.number, soon.number, low.number, late.number])

    def test_low_never_starves_however_many_high_ones_come(self) -> None:
        low = self.line.join("low", 1000.0)
        waited = None
        for number in range(200):  # two come for each that is served: the line only grows
            now_s = 1000.0 + number * 0.2
            self.line.join("high", now_s)
            self.line.join("high", now_s)
            if self.line.next() is low:
                waited = number * 0.2
                break
        self.assertIsNotNone(waited)
        # Those ahead of it came within 10 s, at 10 a second; they are served 5 a second.
        self.assertAlmostEqual(waited or 0.0, 2 * AGEING_S * 10 / 5, delta=0.5)

    def test_random_arrivals_are_served_in_the_order_of_their_due_times(self) -> None:
        for seed in range(30):
            rng = Random(seed)
            line = Line()
            now_s = 1000.0
            waiting: dict[int, tuple[float, int]] = {}
            by_number: dict[int, Waiter] = {}
            for _ in range(300):
                now_s += rng.choice((0.0, 0.1, 3.0))
                action = rng.random()
                if action < 0.5:
                    priority = rng.choice(("high", "normal", "low"))
                    waiter = line.join(priority, now_s)
                    waiting[waiter.number] = (now_s + RANK_BY_PRIORITY[priority] * AGEING_S, waiter.number)
                    by_number[waiter.number] = waiter
                elif action < 0.65 and waiting:
                    number = rng.choice(sorted(waiting))
                    line.leave(by_number[number])
                    del waiting[number]
                elif action < 0.95:
                    found = line.next()
                    expected = min(waiting.values())[1] if waiting else None
                    self.assertEqual(found and found.number, expected, seed)
                    waiting.pop(expected or 0, None)
                else:
                    for place, (_, number) in enumerate(sorted(waiting.values()), 1):
                        self.assertEqual(line.place_of(by_number[number]), place, seed)
                self.assertEqual(line.length, len(waiting), seed)


class LeavingTest(unittest.TestCase):
    def test_who_left_is_passed_over_and_counts_no_more(self) -> None:
        line = Line()
        first, second, third = (line.join("normal", 1000.0) for _ in range(3))
        line.leave(second)
        self.assertEqual(line.length, 2)
        self.assertEqual((line.place_of(first), line.place_of(third)), (1, 2))
        self.assertEqual(served(line), [first.number, third.number])
        self.assertEqual(line.length, 0)

    def test_leaving_twice_is_leaving_once(self) -> None:
        line = Line()
        first, second = line.join("normal", 1000.0), line.join("normal", 1000.0)
        line.leave(first)
        line.leave(first)
        self.assertEqual(line.length, 1)
        self.assertEqual(served(line), [second.number])

    def test_who_was_sent_away_may_leave_all_the_same(self) -> None:
        line = Line()
        waiters = [line.join("normal", 1000.0) for _ in range(3)]
        line.leave(waiters[1])
        self.assertEqual(line.dismiss(), [waiters[0], waiters[2]])
        for waiter in waiters:
            line.leave(waiter)
        self.assertEqual(line.length, 0)
        self.assertIsNone(line.next())


class PoolLineTest(unittest.TestCase):
    def setUp(self) -> None:
        self.now_s = 1000.0
        self.pool = self.make("a", "b")

    def make(self, *ids: str, places: Optional[int] = 1) -> ModelPool:
        return ModelPool(self.spec(*ids, places=places), "round_robin", Random(1), lambda: self.now_s)

    def spec(self, *ids: str, places: Optional[int] = 1) -> ModelSpec:
        engines = tuple(EngineSpec(f"http://{name}:1/v1", id=name, max_concurrency=places) for name in ids)
        return ModelSpec("m", engines)

    def fill(self) -> dict[str, Lease]:
        """Take every place; the leases by engine (one place each)."""
        leases: dict[str, Lease] = {}
        while True:
            lease = self.pool.acquire((), b"")
            if lease is None:
                return leases
            leases[lease.engine.id] = lease

    def join(self, priority: str = "normal") -> Waiter:
        waiter = self.pool.join_line(priority, b"")
        assert waiter is not None
        return waiter

    def lease(self, waiter: Waiter) -> Lease:
        """What a waiter has been handed."""
        self.assertTrue(waiter.ready.is_set())
        lease = self.pool.leave_line(waiter)
        assert lease is not None
        return lease

    def in_flight(self) -> dict[str, int]:
        return {item.id: item.in_flight for item in self.pool.snapshot()}


class HandOverTest(PoolLineTest):
    def test_a_place_given_back_is_the_next_waiters_and_nobody_elses(self) -> None:
        held = self.fill()
        first, second = self.join(), self.join()
        self.assertFalse(first.ready.is_set())
        self.pool.settle(held["a"], OK, 0.1)
        self.assertIsNone(self.pool.acquire((), b""))  # who comes now waits behind them
        self.assertEqual(self.pool.waiting, 1)
        lease = self.lease(first)
        self.assertEqual(lease.engine.id, "a")
        self.assertFalse(second.ready.is_set())
        self.pool.settle(held["b"], OK, 0.1)
        self.assertEqual(self.lease(second).engine.id, "b")
        self.assertEqual((self.in_flight(), self.pool.waiting), ({"a": 1, "b": 1}, 0))

    def test_a_place_is_handed_over_however_the_request_before_ended(self) -> None:
        for kind in ("ok", "error", "cancelled", "rejected"):
            with self.subTest(kind=kind):
                self.pool = self.make("a", "b")
                held = self.fill()
                waiter = self.join()
                self.pool.settle(held["a"], Outcome(kind, "x"), 0.1)
                self.assertEqual(self.lease(waiter).engine.id, "a")

    def test_an_engine_that_went_out_is_not_handed_over(self) -> None:
        held = self.fill()
        waiter = self.join()
        self.pool.settle(held["a"], REFUSED, 0.1)
        self.assertFalse(waiter.ready.is_set())
        self.pool.settle(held["b"], OK, 0.1)
        self.assertEqual(self.lease(waiter).engine.id, "b")

    def test_an_engine_that_comes_back_serves_who_waits(self) -> None:
        held = self.fill()
        self.pool.settle(held["a"], REFUSED, 0.1)
        waiter = self.join()
        change = self.pool.record_probe(held["a"].engine, None, 2, 1)
        assert change is not None
        self.assertEqual(self.lease(waiter).engine.id, "a")

    def test_an_operator_who_enables_an_engine_serves_who_waits(self) -> None:
        self.pool.set_draining("a", True)
        self.fill()
        waiter = self.join()
        self.assertFalse(waiter.ready.is_set())
        self.pool.set_draining("a", False)
        self.assertEqual(self.lease(waiter).engine.id, "a")

    def test_new_engines_and_more_places_serve_who_waits(self) -> None:
        self.fill()
        first, second, third = self.join(), self.join(), self.join()
        self.pool.reconfigure(self.spec("a", "b", "c"), "round_robin")
        self.assertEqual(self.lease(first).engine.id, "c")
        self.assertFalse(second.ready.is_set())
        self.pool.reconfigure(self.spec("a", "b", "c", places=2), "round_robin")
        more = [self.lease(second).engine.id, self.lease(third).engine.id]
        self.assertEqual(self.in_flight(), {name: 1 + more.count(name) for name in "abc"})
        self.assertLess(max(self.in_flight().values()), 3)

    def test_no_limit_any_more_serves_everybody(self) -> None:
        self.fill()
        waiters = [self.join() for _ in range(10)]
        self.pool.reconfigure(self.spec("a", "b", places=None), "round_robin")
        self.assertEqual(len([self.lease(waiter) for waiter in waiters]), 10)

    def test_who_joins_when_a_place_has_just_become_free_has_it_at_once(self) -> None:
        held = self.fill()
        self.pool.settle(held["b"], OK, 0.1)
        self.assertEqual(self.lease(self.join()).engine.id, "b")

    def test_an_engine_whose_pause_is_over_serves_those_first_who_waited(self) -> None:
        held = self.fill()
        self.pool.settle(held["a"], Outcome("rate_limited", "", 429, 5.0), 0.1)
        first = self.join()
        self.now_s += 5.0
        self.assertIsNone(self.pool.acquire((), b""))
        second = self.join()  # a request that comes is what notices that the time is over
        self.assertEqual(self.lease(first).engine.id, "a")
        self.assertFalse(second.ready.is_set())

    def test_who_waits_may_look_for_an_engine_whose_pause_is_over(self) -> None:
        held = self.fill()
        self.pool.settle(held["a"], Outcome("rate_limited", "", 429, 5.0), 0.1)
        waiter = self.join()
        self.now_s += 4.9
        self.pool.serve_line()
        self.assertFalse(waiter.ready.is_set())
        self.now_s += 0.1
        self.pool.serve_line()
        self.assertEqual(self.lease(waiter).engine.id, "a")

    def test_an_engine_on_trial_is_handed_to_one_waiter_only(self) -> None:
        self.pool = self.make("a", "b", places=3)
        held = []
        while True:
            lease = self.pool.acquire((), b"")
            if lease is None:
                break
            held.append(lease)
        for _ in range(2):  # b breaks down: twice all three that are there fail
            for lease in [lease for lease in held if lease.engine.id == "b"]:
                held.remove(lease)
                self.pool.settle(lease, Outcome("error", "x"), 0.1)
            lease_b = self.pool.acquire((), b"")
            while lease_b is not None:
                held.append(lease_b)
                lease_b = self.pool.acquire((), b"")
        states = {item.id: item.state for item in self.pool.snapshot()}
        self.assertEqual(states, {"a": "up", "b": "open"})
        for lease in [lease for lease in held if lease.engine.id == "b"]:
            held.remove(lease)
            self.pool.settle(lease, OK, 0.1)
        waiters = [self.join() for _ in range(3)]
        self.now_s += 5.0
        waiters.append(self.join())
        self.assertEqual([waiter.ready.is_set() for waiter in waiters], [True, False, False, False])
        trial = self.lease(waiters[0])
        self.assertEqual(trial.engine.id, "b")
        self.pool.settle(trial, OK, 0.1)  # well again: three places
        self.assertEqual([waiter.ready.is_set() for waiter in waiters], [True] * 4)


class GivingUpTest(PoolLineTest):
    def test_who_leaves_without_a_place_gets_none_later(self) -> None:
        held = self.fill()
        leaver, stayer = self.join(), self.join()
        self.assertIsNone(self.pool.leave_line(leaver))
        self.assertEqual(self.pool.waiting, 1)
        self.pool.settle(held["a"], OK, 0.1)
        self.assertFalse(leaver.ready.is_set())
        self.assertEqual(self.lease(stayer).engine.id, "a")

    def test_a_place_handed_over_while_leaving_is_returned_and_lost_to_nobody(self) -> None:
        held = self.fill()
        leaver, stayer = self.join(), self.join()
        self.pool.settle(held["a"], OK, 0.1)
        lease = self.pool.leave_line(leaver)  # its client went at the same moment
        assert lease is not None
        self.pool.settle(lease, CANCELLED, 0.0)
        self.assertEqual(self.lease(stayer).engine.id, "a")

    def test_nobody_can_wait_where_no_engine_is_in(self) -> None:
        for lease in self.fill().values():
            self.pool.settle(lease, REFUSED, 0.1)
        self.assertIsNone(self.pool.join_line("normal", b""))
        self.assertEqual(self.pool.waiting, 0)

    def test_when_the_last_engine_goes_out_everybody_is_sent_away_at_once(self) -> None:
        outs: dict[str, Callable[[Lease], object]] = {
            "down": lambda lease: self.pool.settle(lease, REFUSED, 0.1),
            "resting": lambda lease: self.pool.settle(lease, Outcome("rate_limited", "", 429, 9.0), 0.1),
            "probed": lambda lease: self.pool.record_probe(lease.engine, "answered 503", 1, 1),
            "draining": lambda lease: self.pool.set_draining(lease.engine.id, True),
        }
        for name, go_out in outs.items():
            with self.subTest(out=name):
                self.pool = self.make("a", "b")
                held = self.fill()
                waiters = [self.join(priority) for priority in ("normal", "low", "high")]
                go_out(held["a"])
                self.assertEqual([waiter.ready.is_set() for waiter in waiters], [False] * 3)
                go_out(held["b"])
                self.assertEqual([waiter.ready.is_set() for waiter in waiters], [True] * 3)
                self.assertEqual([self.pool.leave_line(waiter) for waiter in waiters], [None] * 3)
                self.assertEqual(self.pool.waiting, 0)

    def test_a_retired_model_sends_everybody_away(self) -> None:
        self.fill()
        waiters = [self.join() for _ in range(3)]
        self.pool.retire()
        self.assertEqual([waiter.ready.is_set() for waiter in waiters], [True] * 3)
        self.assertEqual([self.pool.leave_line(waiter) for waiter in waiters], [None] * 3)
        self.assertEqual(self.pool.waiting, 0)


class PredictionTest(PoolLineTest):
    def serve(self, count: int, held_s: float) -> None:
        for _ in range(count):
            lease = self.pool.acquire((), b"")
            assert lease is not None
            self.pool.settle(lease, OK, 0.01, held_s)

    def test_without_experience_or_places_nothing_is_predicted(self) -> None:
        self.assertEqual(self.pool.predicted_wait_s(), 0.0)
        self.pool = self.make("a", places=None)
        self.serve(3, 2.0)
        self.assertEqual(self.pool.predicted_wait_s(), 0.0)

    def test_it_is_the_turns_before_it_at_the_usual_time_over_the_places(self) -> None:
        self.serve(4, 2.0)
        self.fill()
        self.assertAlmostEqual(self.pool.predicted_wait_s(), 2.0 / 2)
        waiters = [self.join() for _ in range(5)]
        self.assertAlmostEqual(self.pool.predicted_wait_s(), 6 * 2.0 / 2)
        waits_s = [self.pool.predicted_wait_s(waiter) for waiter in waiters]
        for wait_s, expected in zip(waits_s, (1.0, 2.0, 3.0, 4.0, 5.0)):
            self.assertAlmostEqual(wait_s, expected)

    def test_who_overtakes_later_is_no_part_of_what_a_request_was_told(self) -> None:
        self.serve(4, 2.0)
        self.fill()
        low = self.join("low")
        self.assertAlmostEqual(self.join("high").predicted_s, 1.0)
        self.assertAlmostEqual(low.predicted_s, 1.0)
        self.assertAlmostEqual(self.pool.predicted_wait_s(low), 2.0)

    def test_it_counts_only_those_who_go_first(self) -> None:
        self.serve(4, 2.0)
        self.fill()
        lows = [self.join("low") for _ in range(50)]
        high = self.join("high")
        self.assertAlmostEqual(self.pool.predicted_wait_s(high), 1.0)
        self.assertAlmostEqual(self.pool.predicted_wait_s(lows[0]), 2.0)
        self.pool.leave_line(high)
        self.assertAlmostEqual(self.pool.predicted_wait_s(lows[0]), 1.0)

    def test_engines_that_are_out_have_no_places(self) -> None:
        self.serve(4, 2.0)
        held = self.fill()
        waiter = self.join()
        self.pool.settle(held["a"], REFUSED, 0.1)
        self.assertAlmostEqual(self.pool.predicted_wait_s(waiter), 2.0)

    def test_it_follows_how_long_places_are_held(self) -> None:
        self.serve(5, 1.0)
        before_s = self.pool.predicted_wait_s()
        self.serve(100, 3.0)
        self.assertAlmostEqual(before_s, 0.5)
        self.assertAlmostEqual(self.pool.predicted_wait_s(), 1.5, places=3)


class ThreadsTest(PoolLineTest):
    def test_everybody_who_waits_is_served_once_and_no_place_is_taken_twice(self) -> None:
        self.pool = self.make("a", "b", places=2)
        lock = threading.Lock()
        over: list[int] = []
        done: list[str] = []

        def work(number: int) -> None:
            rng = Random(number)
            for turn in range(40):
                lease = self.pool.acquire((), b"")
                if lease is None:
                    waiter = self.pool.join_line(("high", "normal", "low")[turn % 3], b"")
                    assert waiter is not None
                    if rng.random() < 0.1:
                        lease = self.pool.leave_line(waiter)  # gives up, perhaps just when it is its turn
                    else:
                        assert waiter.ready.wait(TIMEOUT_S)
                        lease = self.pool.leave_line(waiter)
                        assert lease is not None
                if lease is not None:
                    with lock:
                        over.extend(item.in_flight for item in self.pool.snapshot() if item.in_flight > 2)
                    self.pool.settle(lease, OK, 0.001)
            with lock:
                done.append("done")

        threads = [threading.Thread(target=work, args=(i,), name=f"caller-{i}") for i in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT_S)
        self.assertEqual((len(done), over), (12, []))
        self.assertEqual((self.in_flight(), self.pool.waiting), ({"a": 0, "b": 0}, 0))


if __name__ == "__main__":
    unittest.main()
