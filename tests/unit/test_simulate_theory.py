"""The simulator against queueing theory: what the shipped strategies do over simulated engines is what is known of such
systems, within 99 % confidence intervals by batch means (fixed seeds).

Waiting times: Erlang (1917) for M/M/1 and M/M/c; D/M/1 for what round robin makes of many engines; processor sharing
for a batch (Kleinrock, 1967: no matter which law). Queues of the shorter of two: M. Mitzenmacher, The Power of Two
Choices in Randomized Load Balancing, 2001: the share of engines with at least i requests is load ** (2 ** i - 1).
"""

from __future__ import annotations

import math
import unittest
from typing import Any

from gateway.tools.loadtest.durations import duration_s
from gateway.tools.simulate.arrivals import arrivals
from gateway.tools.simulate.distributions import distribution
from gateway.tools.simulate.measures import Measures
from gateway.tools.simulate.scenario import Fleet, Rules, Scenario, Work
from gateway.tools.simulate.simulator import simulate

RATE = 10.0  # requests a second that a slot does: the service takes 100 ms
FROM_95_TO_99 = 2.861 / 2.093  # of Student's distribution with 19 degrees of freedom


def measured(strategy: str, engines: int, load: float, requests: int, **fleet: Any) -> Measures:
    """A run of about so many requests, at that share of what all slots can do."""
    fleet = {"slots": 1, **fleet}
    rate = load * engines * fleet["slots"] * RATE
    last_s = requests / rate
    scenario = Scenario(
        fleet=Fleet(engines=engines, **fleet),
        arrivals=arrivals(f"poisson:{rate:.6f}/s"),
        work=Work(service=distribution("exponential:100ms", duration_s)),
        rules=Rules(health_interval_s=0),
        duration_s=last_s,
        warmup_s=last_s / 10,
        seed=3,
    )
    found = simulate(scenario, strategy).measures
    assert not found.failures, found.failures
    return found


def erlang_c_wait_s(servers: int, load: float) -> float:
    """The mean wait in an M/M/c queue."""
    offered, blocked = servers * load, 1.0
    for count in range(1, servers + 1):
        blocked = offered * blocked / (count + offered * blocked)
    waits = blocked / (1 - load + load * blocked)
    return waits / (servers * RATE * (1 - load))


class WaitingTest(unittest.TestCase):
    def assert_waits(self, found: Measures, expected_s: float) -> None:
        mean_s, half_s = found.waited_mean_s()
        self.assertLess(half_s, expected_s / 3, "too short a run to say anything")
        self.assertAlmostEqual(mean_s, expected_s, delta=half_s * FROM_95_TO_99)

    def test_one_engine_is_m_m_1(self) -> None:
        self.assert_waits(measured("round_robin", 1, 0.6, 40_000), erlang_c_wait_s(1, 0.6))

    def test_random_makes_an_m_m_1_of_each_engine(self) -> None:
        self.assert_waits(measured("random", 10, 0.7, 40_000), erlang_c_wait_s(1, 0.7))

    def test_an_engine_with_c_slots_is_m_m_c(self) -> None:
        self.assert_waits(measured("round_robin", 1, 0.8, 40_000, slots=5), erlang_c_wait_s(5, 0.8))

    def test_the_line_of_full_engines_makes_an_m_m_c_of_all(self) -> None:
        found = measured("least_connections", 10, 0.85, 40_000, max_concurrency=1)
        self.assert_waits(found, erlang_c_wait_s(10, 0.85))

    def test_so_it_does_of_a_large_fleet_whose_loads_are_kept(self) -> None:
        found = measured("power_of_two", 32, 0.9, 60_000, max_concurrency=1)
        self.assert_waits(found, erlang_c_wait_s(32, 0.9))

    def test_round_robin_makes_a_d_m_1_of_each_of_many_engines(self) -> None:
        load = 0.8
        root = 0.5
        for _ in range(200):
            root = math.exp(-(1 - root) / load)
        found = measured("round_robin", 200, load, 40_000)
        # Of 200 engines each 200th arrival is not quite a metronome: it varies by a fourteenth.
        mean_s, half_s = found.waited_mean_s()
        self.assertAlmostEqual(mean_s, root / (RATE * (1 - root)), delta=half_s * FROM_95_TO_99 + 0.01)

    def test_a_batch_shares_its_speed_whatever_the_law(self) -> None:
        for law in ("exponential:100ms", "lognormal:80ms,0.668", "constant:100ms"):
            service = distribution(law, duration_s)
            load = 0.6
            scenario = Scenario(
                fleet=Fleet(engines=1, slots=1000, batching=1.0),
                arrivals=arrivals(f"poisson:{load / service.mean:.6f}/s"),
                work=Work(service=service),
                rules=Rules(health_interval_s=0),
                duration_s=4000.0,
                warmup_s=200.0,
                seed=4,
            )
            mean_s = (simulate(scenario, "round_robin").measures.latency.mean or 0.0) / 1e9
            self.assertAlmostEqual(mean_s / (service.mean / (1 - load)), 1.0, delta=0.06, msg=law)


class QueuesTest(unittest.TestCase):
    def test_power_of_two_has_the_tail_that_mitzenmacher_gives(self) -> None:
        load = 0.9
        found = measured("power_of_two", 300, load, 70_000)
        for least in (1, 2, 3, 4, 5):
            expected = load ** (2**least - 1)
            self.assertAlmostEqual(found.tail(least), expected, delta=0.03, msg=f"at least {least}")
        self.assertLess(found.tail(7), 0.001)  # a random choice has 0.9 ** 7 = 0.48

    def test_the_shortest_queue_leaves_hardly_anybody_waiting(self) -> None:
        found = measured("least_connections", 300, 0.9, 30_000)
        self.assertAlmostEqual(found.tail(1), 0.9, delta=0.02)
        self.assertLess(found.tail(2), 0.02)
        self.assertEqual(found.tail(3), 0.0)

    def test_strategies_rank_as_they_do_in_theory(self) -> None:
        names = ("least_connections", "power_of_two", "round_robin", "random")
        waits = [measured(name, 50, 0.9, 10_000).waited.mean or 0.0 for name in names]
        self.assertEqual(waits, sorted(waits))


if __name__ == "__main__":
    unittest.main()
