"""Engines that become slower, and engines that only vary: series made by chance, always the same."""

from __future__ import annotations

import json
import math
import random
import unittest
from typing import Callable, Optional

from gateway.alerts.anomaly import WARM_UP, WARM_UP_S, Baseline, Group
from gateway.alerts.slowdowns import Slowdowns
from gateway.telemetry.events import AttemptRecord, RequestEvent

HOUR_S = 3600.0
WEEK_S = 7 * 24 * HOUR_S
STEP_S = 5.0
AT_LEAST = 20
FOR_S = 120.0  # as the usual rule has it


def by_day(now_s: float) -> float:
    """Slower by half in the afternoon, faster by a third at night."""
    return math.pow(1.5, math.sin(2 * math.pi * now_s / 86_400))


def steady(now_s: float) -> float:
    return 1.0


class Engine:
    """Answers at a rate, with lognormal latencies around `usual_s`; looked at every five seconds, as the rule does."""

    def __init__(self, seed: int, rate_per_s: float, sigma: float, usual_s: Callable[[float], float] = by_day) -> None:
        self.random = random.Random(seed)
        self.rate_per_s = rate_per_s
        self.sigma = sigma
        self.usual_s = usual_s
        self.now_s = 0.0
        self.baseline = Baseline(0.0)
        self.factor = 1.0
        self.answers = 0

    def step(self) -> bool:
        """Five seconds later; returns whether the condition holds."""
        self.now_s += STEP_S
        count = self._arrived(self.rate_per_s * STEP_S)
        mean = math.log(self.usual_s(self.now_s) * self.factor)
        if count > 20:  # their sums, rather than each
            mean = self.random.gauss(mean, self.sigma / math.sqrt(count))
            group = Group(count, count * mean, count * (mean * mean + self.sigma * self.sigma))
        else:
            values = [self.random.gauss(mean, self.sigma) for _ in range(count)]
            group = Group(count, sum(values), sum(value * value for value in values))
        self.answers += count
        self.baseline.learn(group, self.now_s)
        slower = self.baseline.slower(self.now_s) > 2
        return slower and self.baseline.recent_at(self.now_s) >= AT_LEAST

    def _arrived(self, expected: float) -> int:
        if expected > 30:
            return max(0, round(self.random.gauss(expected, math.sqrt(expected))))
        limit, count, product = math.exp(-expected), 0, self.random.random()  # Knuth's way to a Poisson number
        while product > limit:
            count += 1
            product *= self.random.random()
        return count

    def fires(self, for_s: float) -> int:
        """How often the alert would fire in that time."""
        held_s, fired, end_s = 0.0, 0, self.now_s + for_s
        while self.now_s < end_s:
            before_s, held_s = held_s, held_s + STEP_S if self.step() else 0.0
            fired += before_s < FOR_S <= held_s
        return fired

    def answers_until_slow(self, most_s: float) -> Optional[int]:
        """How many more answers it takes until the condition holds."""
        before, end_s = self.answers, self.now_s + most_s
        while self.now_s < end_s:
            if self.step():
                return self.answers - before
        return None


class FalseAlarmTest(unittest.TestCase):
    def test_a_week_of_usual_answers_fires_never(self) -> None:
        for rate_per_s, sigma in ((1 / 60, 0.3), (1 / 60, 1.2), (1 / 20, 2.0), (0.2, 0.8), (1.0, 0.5), (1.0, 1.2)):
            with self.subTest(rate_per_s=rate_per_s, sigma=sigma):
                self.assertEqual(Engine(7, rate_per_s, sigma).fires(WEEK_S), 0)

    def test_an_engine_with_three_requests_an_hour_is_never_judged(self) -> None:
        engine = Engine(3, 3 / HOUR_S, 0.5)
        self.assertEqual(engine.fires(WEEK_S), 0)
        engine.factor = 10
        self.assertIsNone(engine.answers_until_slow(WEEK_S))

    def test_a_start_that_is_slow_at_first_and_faster_later_does_not_fire(self) -> None:
        self.assertEqual(Engine(5, 2.0, 0.5, lambda now_s: 10.0 if now_s < 300 else 1.0).fires(6 * HOUR_S), 0)

    def test_nothing_is_said_before_the_warm_up_is_over(self) -> None:
        few = Baseline(0.0)
        few.learn(Group(WARM_UP - 1, 0.0, 0.0), WARM_UP_S)
        few.learn(Group(0, 0.0, 0.0), WARM_UP_S + 5)
        self.assertEqual(few.slower(WARM_UP_S + 5), 1.0)
        early = Engine(1, 10.0, 0.3, lambda now_s: 1.0 if now_s < 300 else 9.0)
        while early.now_s < 600 - STEP_S:
            early.step()
            self.assertEqual(early.baseline.slower(early.now_s), 1.0)

    def test_a_few_answers_that_took_for_ever_are_no_slowdown(self) -> None:
        engine = Engine(2, 0.2, 0.3, steady)
        engine.fires(4 * HOUR_S)
        for _ in range(3):
            engine.baseline.learn(Group(1, math.log(3600), math.log(3600) ** 2), engine.now_s)
        self.assertEqual(engine.baseline.slower(engine.now_s), 1.0)

    def test_faster_than_usual_is_no_slowdown(self) -> None:
        engine = Engine(2, 1.0, 0.3, steady)
        engine.fires(2 * HOUR_S)
        engine.factor = 0.1
        self.assertEqual(engine.fires(2 * HOUR_S), 0)


class DetectionTest(unittest.TestCase):
    def test_three_times_as_slow_is_noticed_within_a_hundred_and_fifty_answers(self) -> None:
        """At 10 a second a look comes every 50 answers; at lower rates it is within 60 unless latencies vary wildly."""
        for sigma, most in ((0.3, 75), (0.5, 75), (0.8, 75), (1.2, 150)):
            for rate_per_s in (0.05, 1.0, 10.0):
                with self.subTest(sigma=sigma, rate_per_s=rate_per_s):
                    for seed in range(12):
                        engine = Engine(100 + seed, rate_per_s, sigma)
                        engine.fires(3 * HOUR_S)
                        engine.factor = 3.0
                        taken = engine.answers_until_slow(2 * HOUR_S)
                        self.assertIsNotNone(taken)
                        self.assertLessEqual(taken or 0, most)

    def test_half_as_slow_again_is_not_called_slow(self) -> None:
        engine = Engine(4, 1.0, 0.5, steady)
        engine.fires(3 * HOUR_S)
        engine.factor = 1.5
        self.assertEqual(engine.fires(HOUR_S), 0)

    def test_below_twice_the_usual_nothing_is_called_slow_however_regular_the_engine_was(self) -> None:
        engine = Engine(4, 1.0, 0.05, steady)
        engine.fires(3 * HOUR_S)
        engine.factor = 1.9
        for _ in range(100):
            engine.step()
            self.assertEqual(engine.baseline.slower(engine.now_s), 1.0)

    def test_what_stays_slow_is_told_for_hours_and_then_usual(self) -> None:
        engine = Engine(8, 0.5, 0.5, steady)
        engine.fires(3 * HOUR_S)
        engine.factor = 3.0
        self.assertEqual(engine.fires(HOUR_S), 1)
        self.assertTrue(engine.step())
        engine.fires(12 * HOUR_S)
        self.assertFalse(engine.step())

    def test_it_ends_when_the_engine_is_as_fast_as_before(self) -> None:
        engine = Engine(8, 0.5, 0.5, steady)
        engine.fires(3 * HOUR_S)
        engine.factor = 3.0
        engine.fires(HOUR_S / 2)
        engine.factor = 1.0
        engine.fires(180.0)
        self.assertFalse(engine.step())


def event(engine: str, took_s: float, first_s: Optional[float] = None, outcome: str = "ok") -> RequestEvent:
    record = AttemptRecord("m", engine, outcome, took_s, 0.0, first_s)
    return RequestEvent(0.0, "id", "POST", "/", 200, None, took_s, attempt_records=(record,))


class SlowdownsTest(unittest.TestCase):
    def setUp(self) -> None:
        self.slowdowns = Slowdowns(True)
        self.now_s = 0.0
        self.random = random.Random(1)

    def run_for(self, steps: int, **seconds: float) -> dict[str, float]:
        """So many looks, between each ten answers of each engine; `x_first`: streams. Returns how slow each is."""
        for _ in range(steps):
            self.now_s += STEP_S
            events = []
            for name, usual_s in seconds.items():
                engine, _, stream = name.partition("_")
                for _ in range(10):
                    took_s = usual_s * math.exp(self.random.gauss(0, 0.3))
                    events.append(event(engine, 60.0, took_s) if stream else event(engine, took_s))
            self.slowdowns.observe(events)
            found = self.slowdowns.look(self.now_s, {("m", "a"), ("m", "b")})
        return {engine: slowdown.times for (_, engine), slowdown in found.items()}

    def test_each_engine_has_its_own_usual(self) -> None:
        self.run_for(200, a=0.1, b=10.0)
        found = self.run_for(20, a=0.4, b=10.0)
        self.assertGreater(found["a"], 2)
        self.assertEqual(found["b"], 1.0)

    def test_streams_are_told_by_their_first_event_and_apart_from_answers(self) -> None:
        self.run_for(200, a=5.0, a_first=0.2)
        self.assertEqual(self.run_for(100, a=5.0), {"a": 1.0})  # nobody streams any more: that is no slowdown
        self.assertGreater(self.run_for(20, a=5.0, a_first=0.9)["a"], 2)

    def test_failures_say_nothing(self) -> None:
        self.run_for(200, a=1.0)
        self.slowdowns.observe([event("a", 60.0, outcome="timeout")] * 100)
        self.assertEqual(self.run_for(1, a=1.0), {"a": 1.0})

    def test_an_engine_that_is_gone_is_forgotten(self) -> None:
        self.run_for(3, a=1.0, c=1.0)
        self.assertEqual({key[1] for key in self.slowdowns._baselines}, {"a"})

    def test_what_one_process_counts_all_learn_once(self) -> None:
        alone, both = Slowdowns(True), [Slowdowns(True), Slowdowns(True)]
        for one in both:
            one.shares = True
        engines = {("m", "a"), ("m", "b")}
        for number in range(200):
            self.now_s += STEP_S
            for one, batch in zip(both, ([event("a", 0.1 + number / 1000)] * 3, [event("a", 0.2), event("b", 1.0)])):
                one.observe(batch)
                alone.observe(batch)
            for one, told in zip(reversed(both), [one.take() for one in both]):
                one.add(json.loads(json.dumps(told)))
            expected = alone.look(self.now_s, engines)
            for one in both:
                found = one.look(self.now_s, engines)
                for key, slowdown in expected.items():
                    self.assertAlmostEqual(found[key].times, slowdown.times, 9)
                    self.assertAlmostEqual(found[key].answers, slowdown.answers, 9)
        self.assertGreater(expected["m", "a"].answers, 20)
        self.assertIsNone(both[0].take())

    def test_no_time_at_all_is_counted_and_without_a_rule_nothing_is(self) -> None:
        engines = {("m", "a")}
        self.slowdowns.observe([event("a", 0.0)])
        self.assertEqual(self.slowdowns.look(1.0, engines)["m", "a"].answers, 1)
        idle = Slowdowns(False)
        idle.observe([event("a", 1.0)])
        self.assertEqual(idle.look(1.0, engines), {})
