"""Limits that shrink while the gateway is behind: who first, how far, and how they come back."""

from __future__ import annotations

import unittest
from typing import Optional

from gateway.limits.adaptive import FLOORS, AdaptiveLimits

ALL = {"low": 1.0, "normal": 1.0, "high": 1.0}


class AdaptiveLimitsTest(unittest.TestCase):
    def setUp(self) -> None:
        self.limits = AdaptiveLimits(target_queue_wait_s=0.5, target_error_rate=0.1)
        self.now_s = 100.0
        self.tick(None, None)

    def tick(self, queue_wait_s: Optional[float], error_rate: Optional[float], times: int = 1) -> list[bool]:
        """That many seconds, each judged once."""
        changed = []
        for _ in range(times):
            self.now_s += 1.0
            changed.append(self.limits.tick(self.now_s, queue_wait_s, error_rate))
        return changed

    def test_nothing_shrinks_while_all_is_well(self) -> None:
        self.assertEqual(self.tick(0.3, 0.05, 5) + self.tick(None, None, 5), [False] * 10)
        self.assertEqual(self.limits.factors(), ALL)

    def test_either_signal_shrinks_the_lowest_priority_first(self) -> None:
        for wait_s, rate in ((0.6, 0.0), (0.0, 0.2), (None, 0.2), (0.6, None)):
            with self.subTest(queue_wait_s=wait_s, error_rate=rate):
                self.setUp()
                self.assertEqual(self.tick(wait_s, rate), [True])
                self.assertEqual(self.limits.factors(), {**ALL, "low": 0.5})

    def test_higher_priorities_follow_when_the_lower_have_reached_their_floor(self) -> None:
        seen = []
        for _ in range(9):
            self.tick(5.0, 0.0)
            seen.append(tuple(round(factor, 4) for factor in self.limits.factors().values()))
        self.assertEqual(
            seen,
            [
                (0.5, 1.0, 1.0),
                (0.25, 1.0, 1.0),
                (0.125, 1.0, 1.0),
                (0.1, 1.0, 1.0),
                (0.1, 0.5, 1.0),
                (0.1, 0.25, 1.0),
                (0.1, 0.25, 0.5),
                (0.1, 0.25, 0.5),
                (0.1, 0.25, 0.5),
            ],
        )

    def test_never_falls_below_a_floor(self) -> None:
        self.tick(1000.0, 1.0, 100)
        self.assertEqual(self.limits.factors(), FLOORS)

    def test_a_step_gets_time_to_show(self) -> None:
        self.tick(5.0, 0.0)
        for now_s in (self.now_s + 0.1, self.now_s + 0.5, self.now_s + 0.9):
            self.assertFalse(self.limits.tick(now_s, 5.0, 0.0))
        self.assertTrue(self.limits.tick(self.now_s + 1.0, 5.0, 0.0))

    def test_recovers_in_equal_steps_the_highest_first(self) -> None:
        self.tick(5.0, 0.0, 7)
        self.tick(0.1, 0.0, 5)
        self.assertEqual([round(f, 6) for f in self.limits.factors().values()], [0.1, 0.25, 0.6])
        self.tick(0.1, 0.0, 20)
        self.assertEqual(self.limits.factors()["high"], 1.0)
        self.tick(0.1, 0.0, 200)
        self.assertEqual(self.limits.factors(), ALL)
        self.assertEqual(self.tick(0.1, 0.0, 3), [False] * 3)

    def test_recovery_goes_by_time_not_by_ticks(self) -> None:
        self.tick(5.0, 0.0)
        for tenth in range(1, 101):
            self.limits.tick(self.now_s + tenth / 10, 0.0, 0.0)
        self.assertAlmostEqual(self.limits.factors()["low"], 0.7)

    def test_stays_between_calm_and_target(self) -> None:
        self.tick(5.0, 0.0)
        self.assertEqual(self.tick(0.45, 0.09, 10), [False] * 10)
        self.assertEqual(self.limits.factors()["low"], 0.5)

    def test_a_clock_that_stands_still_or_steps_back_changes_nothing_for_the_better(self) -> None:
        self.tick(5.0, 0.0)
        self.assertFalse(self.limits.tick(self.now_s, 0.0, 0.0))
        self.assertFalse(self.limits.tick(self.now_s - 50.0, 0.0, 0.0))
        self.assertEqual(self.limits.factors()["low"], 0.5)

    def test_a_signal_without_target_counts_for_nothing(self) -> None:
        limits = AdaptiveLimits(target_queue_wait_s=None, target_error_rate=0.1)
        self.assertFalse(limits.tick(1.0, 1000.0, 0.0))
        self.assertTrue(limits.tick(2.0, 0.0, 0.5))

    def test_what_was_read_does_not_change(self) -> None:
        before = self.limits.factors()
        self.tick(5.0, 0.0)
        self.assertEqual(before, ALL)
        with self.assertRaises(TypeError):
            before["low"] = 0.0  # type: ignore[index]

    def test_refuses_what_cannot_work(self) -> None:
        for wait_s, rate, floors in ((0.0, None, FLOORS), (None, -1.0, FLOORS), (1.0, 1.0, {"low": 0.0})):
            with self.subTest(wait_s=wait_s, rate=rate), self.assertRaises(ValueError):
                AdaptiveLimits(wait_s, rate, floors)


if __name__ == "__main__":
    unittest.main()
