"""The GCRA against a model that keeps everything and looks at every window, on thousands of random schedules."""

from __future__ import annotations

import math
import unittest
from random import Random

from gateway.limits.gcra import NEVER_S, Gcra, TokenGcra

SCHEDULES = 10_000


class Log:
    """A limit that keeps all that passed, and looks at every window that ends now. Exact: times are whole 64ths."""

    def __init__(self, rate_per_minute: int, burst: int, largest: int) -> None:
        self.rate_per_minute = rate_per_minute
        self.burst = burst
        self.largest = largest
        self.taken: list[list[int]] = []  # when, how much

    def may_pass(self, amount: int, now_64ths: int) -> bool:
        if amount > self.largest:
            return False
        allowed = max(self.burst, amount)  # one above the burst passes alone
        total = amount
        for then_64ths, taken in reversed(self.taken):
            total += taken
            if (total - allowed) * 60 * 64 > self.rate_per_minute * (now_64ths - then_64ths):
                return False
        return True

    def take(self, amount: int, now_64ths: int) -> int:
        self.taken.append([now_64ths, amount])
        return len(self.taken) - 1


class Schedule:
    """A random limit and random arrivals, at times that floats hold exactly."""

    def __init__(self, seed: int, whole_minute: bool = False) -> None:
        self.random = random = Random(seed)
        self.rate_per_minute = random.choice((1, 6, 7, 60, 100, 600, 977))
        self.burst = self.rate_per_minute if whole_minute else random.randint(1, 12)
        self.largest = self.burst + random.choice((0, 0, 5, 20)) * (not whole_minute)
        # So that arrivals come about as fast as they are paid off.
        usual = self.rate_per_minute / 4 if whole_minute else 1
        self.mean_gap_64ths = max(int(64 * 60 * usual / self.rate_per_minute * random.choice((0.1, 1.0, 3.0))), 1)
        self.now_64ths = random.choice((0, 12_345, 640_000_001))

    def advance(self) -> int:
        if self.random.random() < 0.6:
            self.now_64ths += int(self.random.random() * 2 * self.mean_gap_64ths)
        return self.now_64ths

    def amount(self) -> int:
        return self.random.choice((1, 1, 2, int(self.random.random() * (self.largest + 3))))

    def both(self) -> tuple[TokenGcra, Log]:
        log = Log(self.rate_per_minute, self.burst, self.largest)
        return TokenGcra(self.rate_per_minute, self.burst, self.largest), log


class GcraTest(unittest.TestCase):
    def test_lets_the_burst_pass_at_once_and_then_the_rate(self) -> None:
        limit = Gcra(60, burst=6)
        self.assertEqual([limit.try_take(1, 100.0).allowed for _ in range(8)], [True] * 6 + [False] * 2)
        self.assertEqual([limit.try_take(1, 100.0 + n / 2).allowed for n in range(1, 7)], [False, True] * 3)

    def test_says_what_is_left_and_when_all_is_back(self) -> None:
        limit = Gcra(60, burst=6)
        self.assertEqual(limit.try_take(2, 100.0), (True, 4, 2.0, 0.0))
        self.assertEqual(limit.try_take(4, 101.0), (True, 1, 5.0, 0.0))
        self.assertEqual(limit.try_take(3, 101.0), (False, 1, 5.0, 2.0))
        self.assertEqual(limit.try_take(6, 106.0), (True, 0, 6.0, 0.0))

    def test_what_is_idle_longer_saves_up_no_more_than_the_burst(self) -> None:
        limit = Gcra(60, burst=3)
        limit.take(3, 0.0)
        self.assertEqual(sum(limit.try_take(1, 86_400.0).allowed for _ in range(100)), 3)

    def test_an_amount_above_the_burst_passes_alone_and_is_paid_off(self) -> None:
        limit = Gcra(600, burst=60, largest=600)
        self.assertTrue(limit.try_take(600, 0.0).allowed)
        self.assertAlmostEqual(limit.wait_s(600, 0.0), 60.0)
        self.assertAlmostEqual(limit.wait_s(60, 0.0), 60.0)
        self.assertFalse(limit.try_take(61, 59.9).allowed)
        self.assertTrue(limit.try_take(600, 60.0).allowed)

    def test_what_is_too_large_never_passes_and_costs_nothing(self) -> None:
        limit = Gcra(60, burst=6)
        self.assertEqual(limit.try_take(7, 0.0), (False, 6, 0.0, NEVER_S))
        self.assertTrue(limit.try_take(6, 0.0).allowed)

    def test_zero_passes_as_long_as_nothing_is_overdrawn(self) -> None:
        limit = Gcra(60, burst=2)
        limit.take(2, 0.0)
        self.assertTrue(limit.try_take(0, 0.0).allowed)
        limit.take(1, 0.0)
        self.assertEqual(limit.try_take(0, 0.0).retry_after_s, 1.0)

    def test_a_resized_limit_remembers_units_not_seconds(self) -> None:
        for limit in (Gcra(60, 10), TokenGcra(60, 10)):
            limit.take(8, 0.0)
            limit.resize(30, 5, None, 0.0)
            self.assertEqual((limit.remaining(0.0), limit.reset_s(0.0)), (0, 16.0))
            limit.resize(60, 10, None, 0.0)
            self.assertEqual((limit.remaining(0.0), limit.reset_s(0.0)), (2, 8.0))

    def test_refuses_limits_that_cannot_work(self) -> None:
        for rate, burst in ((0, 1), (-1, 1), (math.inf, 1), (math.nan, 1), (60, 0), (60, math.nan)):
            with self.subTest(rate=rate, burst=burst), self.assertRaises(ValueError):
                Gcra(rate, burst)

    def test_a_million_a_minute_loses_nothing_to_rounding(self) -> None:
        limit = Gcra(1_000_000, burst=1000)
        now_s = 5_000_000.25  # two months of uptime
        passed = 0
        for _ in range(10_000):
            passed += limit.try_take(100, now_s).allowed
            now_s += 0.003
        self.assertAlmostEqual(passed * 100, 1000 + 30 * 1_000_000 / 60, delta=100)


class ReferenceTest(unittest.TestCase):
    """Decides as the log does, whatever comes."""

    def test_ten_thousand_schedules(self) -> None:
        refused = 0
        for seed in range(SCHEDULES):
            schedule = Schedule(seed)
            log = schedule.both()[1]
            limit = Gcra(schedule.rate_per_minute, schedule.burst, schedule.largest)
            for _ in range(12):
                now_64ths, amount = schedule.advance(), schedule.amount()
                allowed = limit.try_take(amount, now_64ths / 64).allowed
                self.assertEqual(allowed, log.may_pass(amount, now_64ths), f"seed {seed}")
                if allowed:
                    log.take(amount, now_64ths)
                refused += not allowed
        self.assertGreater(refused, SCHEDULES)

    def test_no_window_holds_more_than_the_rate_and_the_burst(self) -> None:
        for seed in range(500):
            random = Random(seed)
            rate, burst = random.choice((1, 7, 60, 999)), random.randint(1, 20)
            limit = Gcra(rate, burst)
            passed: list[tuple[float, int]] = []
            now_s = random.uniform(0, 1e6)
            for _ in range(60):
                now_s += random.choice((0.0, random.expovariate(rate / 60)))
                amount = random.randint(1, burst)
                if limit.try_take(amount, now_s).allowed:
                    passed.append((now_s, amount))
            for start, (start_s, _) in enumerate(passed):
                total = 0
                for end_s, amount in passed[start:]:
                    total += amount
                    self.assertLessEqual(total, rate * (end_s - start_s) / 60 + burst + 1e-4, f"seed {seed}")

    def test_the_same_amount_passes_after_retry_after_and_not_much_earlier(self) -> None:
        for seed in range(2_000):
            random = Random(seed)
            limit = Gcra(random.uniform(0.5, 1e6), random.uniform(1, 1e4), 2e4)
            now_s = random.uniform(0, 1e7)
            for _ in range(10):
                amount = random.randint(1, 20_000)
                wait_s = limit.wait_s(amount, now_s)
                self.assertLess(wait_s, NEVER_S)
                if wait_s > 0.001:
                    self.assertFalse(limit.try_take(amount, now_s + wait_s * 0.99 - 1e-5).allowed, f"seed {seed}")
                now_s += wait_s
                self.assertTrue(limit.try_take(amount, now_s).allowed, f"seed {seed}")

    def test_who_keeps_asking_gets_the_whole_rate(self) -> None:
        for rate in (1, 7, 60, 1000):
            limit = Gcra(rate, burst=1)
            passed, now_s = 0, 0.0
            while now_s <= 600.0:
                decision = limit.try_take(1, now_s)
                passed += decision.allowed
                now_s += decision.retry_after_s
            self.assertAlmostEqual(passed, 10 * rate, delta=1)


class SettlementTest(unittest.TestCase):
    def test_a_refund_is_there_at_once(self) -> None:
        limit = TokenGcra(60, burst=10)
        number = limit.reserve(10, 0.0)
        self.assertFalse(limit.try_take(1, 0.0).allowed)
        limit.settle(number, 10, 4, 0.0)
        self.assertEqual(limit.remaining(0.0), 6)

    def test_what_could_not_have_been_saved_up_is_not_refunded(self) -> None:
        # Without the reservation the limit would have been idle until 8 s: only the 3 taken then count, whatever comes
        # back from before.
        limit = TokenGcra(60, burst=10)
        number = limit.reserve(10, 0.0)
        limit.take(3, 8.0)
        limit.settle(number, 10, 0, 8.0)
        self.assertEqual(limit.remaining(8.0), 7)

    def test_a_long_request_gets_its_refund_while_others_keep_the_limit_busy(self) -> None:
        limit = TokenGcra(60, burst=10)
        number = limit.reserve(9, 0.0)
        for second in range(1, 31):
            limit.settle(limit.reserve(1, float(second)), 1, 1, float(second))
        self.assertEqual(limit.remaining(30.0), 1)
        limit.settle(number, 9, 1, 30.0)
        self.assertEqual(limit.remaining(30.0), 9)

    def test_more_than_reserved_is_charged_even_beyond_the_burst(self) -> None:
        limit = TokenGcra(60, burst=10)
        number = limit.reserve(5, 0.0)
        limit.settle(number, 5, 25, 20.0)
        self.assertEqual(limit.wait_s(1, 20.0), 11.0)

    def test_a_refund_after_a_resize_is_in_units_too(self) -> None:
        limit = TokenGcra(60, burst=10)
        first, second = limit.reserve(4, 0.0), limit.reserve(4, 0.0)
        limit.resize(30, 5, None, 1.0)
        self.assertEqual(limit.reset_s(1.0), 14.0)
        limit.settle(first, 4, 0, 1.0)
        self.assertEqual(limit.reset_s(1.0), 6.0)  # of the second alone three would be left
        limit.settle(second, 4, 0, 1.0)
        self.assertEqual(limit.remaining(1.0), 5)

    def test_ten_thousand_schedules_of_reservations_settled_in_any_order(self) -> None:
        refused = sum(self.compare(seed, 14) for seed in range(SCHEDULES))
        self.assertGreater(refused, SCHEDULES)

    def test_long_schedules_with_much_in_flight(self) -> None:
        refused = sum(self.compare(seed, 100) for seed in range(1_000))
        self.assertGreater(refused, 1_000)

    def test_bursts_of_a_whole_minute(self) -> None:
        refused = sum(self.compare(seed, 40, whole_minute=True) for seed in range(2_000))
        self.assertGreater(refused, 10_000)

    def compare(self, seed: int, steps: int, whole_minute: bool = False) -> int:
        """Run a schedule against the log; returns how many were refused."""
        schedule = Schedule(seed, whole_minute)
        random = schedule.random
        limit, log = schedule.both()
        in_flight: list[tuple[int, int, int]] = []  # number, entry in the log, amount
        refused = 0
        for _ in range(steps):
            now_64ths = schedule.advance()
            now_s = now_64ths / 64
            if in_flight and random.random() < 0.45:
                number, entry, reserved = in_flight.pop(int(random.random() * len(in_flight)))
                real = int(random.random() * (reserved + (3 if random.random() < 0.1 else 1)))
                limit.settle(number, reserved, real, now_s)
                log.taken[entry][1] = min(real, reserved)
                if real > reserved:
                    log.take(real - reserved, now_64ths)
                continue
            amount = schedule.amount()
            allowed = limit.wait_s(amount, now_s) == 0.0
            self.assertEqual(allowed, log.may_pass(amount, now_64ths), f"seed {seed}")
            if allowed:
                in_flight.append((limit.reserve(amount, now_s), log.take(amount, now_64ths), amount))
            refused += not allowed
        return refused

    def test_remembers_no_more_than_what_is_open(self) -> None:
        limit = TokenGcra(60_000, burst=10_000)
        numbers = [limit.reserve(1, 0.0) for _ in range(50)]
        self.assertLessEqual(len(limit._marks), 51)
        for number in numbers[1:]:
            limit.settle(number, 1, number % 2, 0.0)
        self.assertLessEqual(len(limit._marks), 2)
        for _ in range(1000):  # settled at once: nothing open but the first
            limit.settle(limit.reserve(1, 0.0), 1, 1, 0.0)
        self.assertLessEqual(len(limit._marks), 2)


if __name__ == "__main__":
    unittest.main()
