"""The circuit breaker and the budget of retries, by table and against plain models of them on random schedules."""

from __future__ import annotations

import unittest
from collections.abc import Iterator
from random import Random
from typing import Optional

from gateway.routing.breaker import BUCKETS, CLOSED, HALF_OPEN, OPEN, Breaker, BreakerPolicy, RetryBudget

POLICY = BreakerPolicy()
START_S = 1000.0


class BreakerTest(unittest.TestCase):
    def setUp(self) -> None:
        self.now_s = START_S
        self.breaker = Breaker(POLICY)

    def ask(self, failed: Optional[bool]) -> None:
        """One request that comes and ends at once."""
        self.breaker.record(self.breaker.admit(self.now_s), failed, self.now_s)

    def ask_all(self, pattern: str) -> None:
        """Requests one after the other: `x` fails, `.` is answered, `-` is cancelled."""
        for sign in pattern:
            self.ask({"x": True, ".": False, "-": None}[sign])

    def open(self) -> None:
        """Open a closed breaker."""
        self.ask_all("xxxxx")
        self.assertEqual(self.breaker.state, OPEN)

    def passes(self) -> bool:
        return self.breaker.passes(self.now_s)


class OpeningTest(BreakerTest):
    def test_it_opens_at_half_of_at_least_five_outcomes(self) -> None:
        cases = {
            "xxxx": CLOSED,  # four say too little
            "xxxxx": OPEN,
            "..xxx": OPEN,
            "...xx": CLOSED,
            "...xxx": OPEN,
            ".....xxxx": CLOSED,
            ".....xxxxx": OPEN,
            "x.x.x": OPEN,
            "xx----------xx": CLOSED,  # a cancelled request says nothing
            "----------": CLOSED,
        }
        for pattern, expected in cases.items():
            with self.subTest(pattern=pattern):
                self.breaker = Breaker(POLICY)
                self.ask_all(pattern)
                self.assertEqual(self.breaker.state, expected)
                self.assertEqual(self.passes(), expected == CLOSED)

    def test_its_policy_decides(self) -> None:
        for policy, pattern, expected in (
            (BreakerPolicy(min_requests=1), "x", OPEN),
            (BreakerPolicy(min_requests=10), "x" * 9, CLOSED),
            (BreakerPolicy(min_requests=10), "x" * 10, OPEN),
            (BreakerPolicy(failure_ratio=1.0), "x.xxxxxxxx", CLOSED),
            (BreakerPolicy(failure_ratio=1.0), "xxxxx", OPEN),
            (BreakerPolicy(failure_ratio=0.1), ".........x", OPEN),
            (BreakerPolicy(failure_ratio=0.1), "..........x", CLOSED),
        ):
            with self.subTest(policy=policy, pattern=pattern):
                self.breaker = Breaker(policy)
                self.ask_all(pattern)
                self.assertEqual(self.breaker.state, expected)

    def test_failures_older_than_the_window_are_forgotten(self) -> None:
        self.ask_all("xxxx")
        self.now_s += POLICY.window_s
        self.ask_all("xxxx")
        self.assertEqual(self.breaker.state, CLOSED)
        self.ask_all("x")
        self.assertEqual(self.breaker.state, OPEN)

    def test_failures_of_nearly_the_whole_window_count(self) -> None:
        self.ask_all("xxxx")
        self.now_s += POLICY.window_s * (BUCKETS - 1) / BUCKETS - 0.01
        self.ask_all("x")
        self.assertEqual(self.breaker.state, OPEN)

    def test_old_answers_do_not_hide_new_failures(self) -> None:
        self.ask_all("." * 1000)
        self.now_s += POLICY.window_s
        self.ask_all("xxxxx")
        self.assertEqual(self.breaker.state, OPEN)

    def test_slow_traffic_never_collects_enough(self) -> None:
        for number in range(100):
            self.ask_all("." if number % 9 == 0 else "x")
            self.now_s += POLICY.window_s / 4 + 0.1  # four in a window
        self.assertEqual(self.breaker.state, CLOSED)

    def test_a_busy_engine_that_breaks_down_is_out_after_ten_failures_in_a_row(self) -> None:
        self.ask_all("." * 1000 + "x" * 9)
        self.assertEqual(self.breaker.state, CLOSED)
        self.ask_all("-x")  # a cancelled request is no break in the row
        self.assertEqual(self.breaker.state, OPEN)

    def test_one_good_answer_starts_the_row_anew(self) -> None:
        self.ask_all("." * 1000 + "xxxxxxxxx." * 20)
        self.assertEqual(self.breaker.state, CLOSED)

    def test_the_row_starts_anew_after_a_good_trial(self) -> None:
        self.ask_all("." * 1000 + "x" * 10)
        self.now_s = self.breaker.until_s
        self.ask_all("." + "." * 1000 + "x" * 9)
        self.assertEqual(self.breaker.state, CLOSED)


class TrialTest(BreakerTest):
    def test_it_lets_one_request_through_when_its_time_is_over(self) -> None:
        self.open()
        self.now_s += POLICY.open_s - 0.001
        self.assertFalse(self.passes())
        self.now_s += 0.001
        self.assertTrue(self.passes())
        self.assertEqual(self.breaker.state, OPEN)  # nobody has asked yet
        self.breaker.admit(self.now_s)
        self.assertEqual((self.breaker.state, self.breaker.state_name), (HALF_OPEN, "half_open"))
        self.assertFalse(self.passes())
        self.now_s += 3600.0
        self.assertFalse(self.passes())  # however long it takes

    def test_a_good_trial_closes_it_and_the_past_is_forgotten(self) -> None:
        self.open()
        self.now_s += POLICY.open_s
        self.ask_all(".")
        self.assertEqual((self.breaker.state, self.breaker.state_name), (CLOSED, "closed"))
        self.ask_all("xxxx")
        self.assertEqual(self.breaker.state, CLOSED)
        self.ask_all("x")
        self.assertEqual(self.breaker.state, OPEN)

    def test_each_failed_trial_doubles_the_time_up_to_a_minute(self) -> None:
        self.open()
        spells_s = []
        for _ in range(6):
            spells_s.append(self.breaker.until_s - self.now_s)
            self.now_s = self.breaker.until_s
            self.ask_all("x")
            self.assertEqual(self.breaker.state, OPEN)
        self.assertEqual(spells_s, [5.0, 10.0, 20.0, 40.0, 60.0, 60.0])

    def test_after_a_good_trial_the_first_spell_is_short_again(self) -> None:
        self.open()
        for _ in range(3):
            self.now_s = self.breaker.until_s
            self.ask_all("x")
        self.now_s = self.breaker.until_s
        self.ask_all(".")
        self.open()
        self.assertEqual(self.breaker.until_s - self.now_s, POLICY.open_s)

    def test_a_cancelled_trial_frees_the_place_for_another(self) -> None:
        self.open()
        self.now_s += POLICY.open_s
        ticket = self.breaker.admit(self.now_s)
        self.assertFalse(self.passes())
        self.breaker.record(ticket, None, self.now_s)
        self.assertEqual(self.breaker.state, HALF_OPEN)
        self.assertTrue(self.passes())
        self.ask_all(".")
        self.assertEqual(self.breaker.state, CLOSED)


class TicketTest(BreakerTest):
    def test_what_began_before_it_opened_changes_nothing_afterwards(self) -> None:
        for failed in (True, False, None):
            with self.subTest(failed=failed):
                self.breaker = Breaker(POLICY)
                late = self.breaker.admit(self.now_s)
                self.open()
                until_s = self.breaker.until_s
                self.breaker.record(late, failed, self.now_s)
                self.assertEqual((self.breaker.state, self.breaker.until_s), (OPEN, until_s))

    def test_a_late_outcome_cannot_end_a_trial_or_its_place(self) -> None:
        for failed in (True, False, None):
            with self.subTest(failed=failed):
                self.breaker = Breaker(POLICY)
                late = self.breaker.admit(self.now_s)
                self.open()
                self.now_s = self.breaker.until_s
                trial = self.breaker.admit(self.now_s)
                self.breaker.record(late, failed, self.now_s)
                self.assertEqual(self.breaker.state, HALF_OPEN)
                self.assertFalse(self.passes())
                self.breaker.record(trial, False, self.now_s)
                self.assertEqual(self.breaker.state, CLOSED)

    def test_late_failures_do_not_count_against_a_breaker_that_has_closed_again(self) -> None:
        late = [self.breaker.admit(self.now_s) for _ in range(20)]
        self.open()
        self.now_s = self.breaker.until_s
        self.ask_all(".")
        for ticket in late:
            self.breaker.record(ticket, True, self.now_s)
        self.assertEqual(self.breaker.state, CLOSED)
        self.ask_all("xxxx")
        self.assertEqual(self.breaker.state, CLOSED)  # four of its own

    def test_a_late_trial_cannot_overwrite_what_came_after_it(self) -> None:
        self.open()
        self.now_s = self.breaker.until_s
        trial = self.breaker.admit(self.now_s)
        self.breaker.record(trial, True, self.now_s)
        self.breaker.record(trial, False, self.now_s)
        self.assertEqual(self.breaker.state, OPEN)


class LastResortTest(BreakerTest):
    def test_a_success_while_it_is_open_closes_it(self) -> None:
        self.open()
        self.now_s += 1.0
        self.assertFalse(self.passes())
        self.ask_all(".")
        self.assertEqual(self.breaker.state, CLOSED)
        self.open()
        self.assertEqual(self.breaker.until_s - self.now_s, POLICY.open_s)

    def test_a_failure_while_it_is_open_neither_prolongs_nor_counts(self) -> None:
        self.open()
        until_s = self.breaker.until_s
        self.now_s += 1.0
        self.ask_all("xxxxxx--")
        self.assertEqual((self.breaker.state, self.breaker.until_s), (OPEN, until_s))
        self.now_s = until_s
        self.ask_all(".xxxx")
        self.assertEqual(self.breaker.state, CLOSED)

    def test_a_second_request_beside_a_trial_keeps_the_trial_s_place(self) -> None:
        # The last engine there is gets requests also while it is on trial.
        self.open()
        self.now_s = self.breaker.until_s
        trial, beside = self.breaker.admit(self.now_s), self.breaker.admit(self.now_s)
        self.breaker.record(beside, None, self.now_s)
        self.assertFalse(self.passes())
        self.breaker.record(trial, None, self.now_s)
        self.assertTrue(self.passes())


class PlainBreaker:
    """What the breaker is to do, written down without buckets, totals or tickets: a list of outcomes and two times."""

    def __init__(self, policy: BreakerPolicy) -> None:
        self.policy = policy
        self.state = CLOSED
        self.epoch = 0
        self.outcomes: list[tuple[int, bool]] = []
        self.row = ""
        self.until_s = 0.0
        self.spell_s = policy.open_s
        self.trials = 0

    def passes(self, now_s: float) -> bool:
        return self.state == CLOSED or (now_s >= self.until_s and not self.trials)

    def admit(self, now_s: float) -> int:
        if self.state == OPEN and now_s >= self.until_s:
            self._go(HALF_OPEN)
        if self.state == HALF_OPEN:
            self.trials += 1
        return self.epoch

    def record(self, epoch: int, failed: Optional[bool], now_s: float) -> None:
        if epoch != self.epoch:
            return
        if self.state == HALF_OPEN:
            self.trials -= 1
        if failed is None:
            return
        if self.state == CLOSED:
            tenth = int(now_s * BUCKETS / self.policy.window_s)
            self.outcomes = [o for o in self.outcomes if o[0] > tenth - BUCKETS]
            self.outcomes.append((tenth, failed))
            self.row += "x" if failed else "."
            failures = sum(bad for _, bad in self.outcomes)
            enough = len(self.outcomes) >= self.policy.min_requests
            by_ratio = enough and failures / len(self.outcomes) >= self.policy.failure_ratio
            if failed and (by_ratio or self.row.endswith("x" * 2 * self.policy.min_requests)):
                self._open(now_s)
        elif not failed:
            self.spell_s = self.policy.open_s
            self._go(CLOSED)
        elif self.state == HALF_OPEN:
            self.spell_s = min(2 * self.spell_s, self.policy.max_open_s)
            self._open(now_s)

    def _open(self, now_s: float) -> None:
        self.until_s = now_s + self.spell_s
        self._go(OPEN)

    def _go(self, state: int) -> None:
        self.state, self.epoch, self.outcomes, self.row, self.trials = state, self.epoch + 1, [], "", 0


class RandomScheduleTest(unittest.TestCase):
    """Thousands of requests that overlap, end late, fail, are cancelled or come as a last resort."""

    def steps(self, rng: Random) -> Iterator[tuple[float, str]]:
        now_s = rng.uniform(0.0, 10_000.0)
        for _ in range(400):
            now_s += rng.choice((0.0, 0.01, 0.3, 2.0, 7.0)) * rng.random()
            yield now_s, rng.choice(("ask", "ask", "end", "end", "last resort" if rng.random() < 0.2 else "ask"))

    def test_it_does_what_the_plain_one_does(self) -> None:
        seen = set()
        for seed in range(150):
            rng = Random(seed)
            policy = BreakerPolicy(
                window_s=float(rng.choice((1, 10, 30))),
                min_requests=rng.choice((1, 2, 5)),
                failure_ratio=rng.choice((0.25, 0.5, 1.0)),
                open_s=rng.choice((0.5, 5.0)),
                max_open_s=rng.choice((5.0, 60.0)),
            )
            breaker, plain = Breaker(policy), PlainBreaker(policy)
            held: list[tuple[int, int]] = []
            faulty = rng.random()
            for now_s, step in self.steps(rng):
                self.assertEqual(breaker.passes(now_s), plain.passes(now_s), seed)
                if step == "end" and held:
                    ticket, epoch = held.pop(rng.randrange(len(held)))
                    failed = None if rng.random() < 0.1 else rng.random() < faulty
                    breaker.record(ticket, failed, now_s)
                    plain.record(epoch, failed, now_s)
                elif step == "last resort" or (step == "ask" and breaker.passes(now_s)):
                    held.append((breaker.admit(now_s), plain.admit(now_s)))
                self.assertEqual(breaker.state, plain.state, seed)
                if breaker.state == OPEN:
                    self.assertEqual(breaker.until_s, plain.until_s, seed)
                seen.add(breaker.state)
        self.assertEqual(seen, {CLOSED, HALF_OPEN, OPEN})

    def test_without_last_resorts_there_is_never_a_second_trial(self) -> None:
        trials = 0
        for seed in range(100):
            rng = Random(seed)
            breaker = Breaker(BreakerPolicy(min_requests=2, open_s=0.5, max_open_s=2.0))
            held: list[tuple[int, bool]] = []
            for now_s, step in self.steps(rng):
                if step == "end" and held:
                    breaker.record(held.pop(rng.randrange(len(held)))[0], rng.choice((True, True, False, None)), now_s)
                elif breaker.passes(now_s):
                    ticket = breaker.admit(now_s)
                    on_trial = breaker.state == HALF_OPEN
                    trials += on_trial
                    held.append((ticket, on_trial))
                self.assertLessEqual(sum(t == breaker.ticket and trial for t, trial in held), 1, seed)
        self.assertGreater(trials, 100)


class RetryBudgetTest(unittest.TestCase):
    def take_all(self, budget: RetryBudget, now_s: float) -> int:
        """Take until there is none left."""
        taken = 0
        while budget.take(now_s):
            taken += 1
            self.assertLess(taken, 10_000)
        return taken

    def test_ten_are_always_there_even_without_a_request(self) -> None:
        self.assertEqual(self.take_all(RetryBudget(), START_S), 10)

    def test_a_busy_model_may_retry_a_fifth(self) -> None:
        for requests, retries in ((0, 10), (10, 10), (50, 10), (54, 10), (55, 11), (61, 12), (100, 20), (1000, 200)):
            with self.subTest(requests=requests):
                budget = RetryBudget()
                for _ in range(requests):
                    budget.request(START_S)
                self.assertEqual(self.take_all(budget, START_S), retries)

    def test_it_fills_up_again_as_ten_seconds_pass(self) -> None:
        budget = RetryBudget()
        self.assertEqual(self.take_all(budget, START_S), 10)
        self.assertEqual(self.take_all(budget, START_S + 9.9), 0)
        self.assertEqual(self.take_all(budget, START_S + 10.0), 10)

    def test_requests_older_than_ten_seconds_give_nothing(self) -> None:
        budget = RetryBudget()
        for _ in range(1000):
            budget.request(START_S)
        self.assertEqual(self.take_all(budget, START_S + 9.9), 200)
        self.assertEqual(self.take_all(budget, START_S + 10.0), 0)  # those retries count still
        self.assertEqual(self.take_all(budget, START_S + 3600.0), 10)

    def test_a_ratio_of_zero_without_a_least_gives_none(self) -> None:
        budget = RetryBudget(0.0, least=0)
        for _ in range(1000):
            budget.request(START_S)
        self.assertFalse(budget.take(START_S))

    def test_random_schedules_never_exceed_the_share_of_the_window(self) -> None:
        for seed in range(60):
            rng = Random(seed)
            budget = RetryBudget()
            now_s = rng.uniform(0.0, 1000.0)
            requests: list[int] = []
            retries: list[int] = []
            for _ in range(600):
                now_s += rng.choice((0.0, 0.0, 0.05, 0.5, 15.0 if rng.random() < 0.05 else 0.1))
                second = int(now_s)
                requests = [s for s in requests if s > second - 10]
                retries = [s for s in retries if s > second - 10]
                if rng.random() < 0.7:
                    budget.request(now_s)
                    requests.append(second)
                    continue
                allowed = len(retries) + 1 <= max(10, 0.2 * len(requests))
                self.assertEqual(budget.take(now_s), allowed, seed)
                if allowed:
                    retries.append(second)


if __name__ == "__main__":
    unittest.main()
