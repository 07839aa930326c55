"""Limits shrink by what befalls most callers: none of them shrinks those of others, an overload of all still does."""

from __future__ import annotations

import time
import unittest
from typing import Optional

from gateway.errors import STATUS_BY_CODE
from gateway.guard import Guard
from gateway.limits.shares import ALONE_S, CALLERS_MAX, FAILURES, WAITS_MAX, Measured, Shares
from gateway.pipeline import PATHS
from gateway.telemetry.events import RequestEvent
from tests.access import Clock
from tests.support import CHAT, load_settings

NOTHING = Measured(None, None)


def finished(
    key: Optional[str] = "alice",
    error: Optional[str] = None,
    wait_s: float = 0.001,
    *,
    attempts: int = 1,
    client: str = "10.0.0.1",
    status: Optional[int] = None,
    method: str = "POST",
) -> RequestEvent:
    status = status or (200 if error is None else STATUS_BY_CODE[error])
    return RequestEvent(
        time.time(), "r", method, CHAT, status, error, 0.1, wait_s, attempts=attempts, key=key, client=client
    )


class SharesTest(unittest.TestCase):
    def setUp(self) -> None:
        self.shares = Shares()
        self.now_s = 1_000.0

    def measured(self, *events: RequestEvent, after_s: float = 0.5) -> Measured:
        self.now_s += after_s
        for event in events:
            self.shares.count(event)
        return self.shares.measure(self.shares.take(), self.now_s)

    def test_who_is_alone_is_judged_by_its_own_outcomes(self) -> None:
        events = [finished(error="backend_error")] * 3 + [finished()]
        self.assertEqual(self.measured(*events), Measured(0.001, 0.75))

    def test_only_what_engines_and_queues_cause_is_a_failure(self) -> None:
        for code in sorted(STATUS_BY_CODE):
            with self.subTest(code=code):
                self.shares = Shares()
                waits_s, rate = self.measured(finished(error=code, wait_s=3.0))
                if code in FAILURES:
                    self.assertEqual((waits_s, rate), (3.0, 1.0))
                elif code == "client_closed_request":  # how long it waited before it left says something
                    self.assertEqual((waits_s, rate), (3.0, None))
                else:
                    self.assertEqual((waits_s, rate), NOTHING)

    def test_a_stream_that_an_engine_broke_is_a_failure_and_one_that_a_drain_broke_is_none(self) -> None:
        self.assertEqual(self.measured(finished(error="backend_error", status=200)).error_rate, 1.0)
        self.assertEqual(self.measured(finished(error="draining", status=200)), NOTHING)

    def test_what_never_came_to_an_engine_counts_when_a_queue_refused_it_and_else_not(self) -> None:
        for code in ("overloaded", "queue_timeout"):
            self.assertEqual(self.measured(finished(error=code, wait_s=0.0, attempts=0)).error_rate, 1.0)
        preflight = finished(None, wait_s=0.0, attempts=0, status=204, method="OPTIONS")
        self.assertEqual(self.measured(preflight), NOTHING)
        self.assertEqual(self.measured(finished(error="client_closed_request", wait_s=0.0, attempts=0)), NOTHING)

    def test_one_of_many_decides_nothing_however_often_it_fails(self) -> None:
        for error, wait_s in (("backend_error", 0.001), ("queue_timeout", 30.0), (None, 30.0)):
            with self.subTest(error=error, wait_s=wait_s):
                good = [finished(f"good-{n}") for n in range(10)]
                self.assertEqual(self.measured(*good, *[finished("bad", error, wait_s)] * 500), Measured(0.001, 0.0))

    def test_not_even_beside_one_other_or_in_intervals_that_it_has_for_itself(self) -> None:
        bad = [finished("bad", "backend_error", 30.0)] * 500
        self.assertEqual(self.measured(finished("good"), *bad), Measured(0.001, 0.0))
        for _ in range(int(ALONE_S / 0.5)):
            self.assertEqual(self.measured(*bad), NOTHING)
        self.assertEqual(self.measured(*bad), Measured(30.0, 1.0))
        self.assertEqual(self.measured(finished("good")), NOTHING, "it is not alone either")

    def test_an_overload_of_all_is_seen_whoever_sends_most(self) -> None:
        all_of_them = [finished(f"k{n}", "overloaded", 5.0) for n in range(10)]
        self.assertEqual(self.measured(*all_of_them, *[finished("k0", "overloaded", 9.0)] * 500), Measured(5.0, 1.0))
        both = [finished("a", "backend_error", 5.0), finished("b", "backend_error", 6.0)]
        self.assertEqual(self.measured(*both), Measured(5.0, 1.0))

    def test_callers_weigh_the_same_however_much_they_send(self) -> None:
        failing = [finished("a", "backend_error")] * 300 + [finished("b", "backend_error")] * 300
        good = [finished(name) for name in "cdefg"]
        self.assertEqual(self.measured(*failing, *good).error_rate, 1 / 6)  # a or b is left out
        good = [finished(name) for name in "cdefg" for _ in range(300)]
        self.assertEqual(self.measured(finished("a", "backend_error"), finished("b", "backend_error"), *good)[1], 1 / 6)

    def test_the_wait_is_a_percentile_of_requests_each_of_its_callers_weight(self) -> None:
        some = [finished(f"k{n}", wait_s=wait_s) for n in range(4) for wait_s in [0.1] * 38 + [4.0] * 2]
        self.assertEqual(self.measured(*some).wait_s, 0.1)  # exactly 5 % of each: not exceeded
        more = [finished(f"k{n}", wait_s=wait_s) for n in range(4) for wait_s in [0.1] * 36 + [4.0] * 4]
        self.assertEqual(self.measured(*more).wait_s, 4.0)
        once = [finished("a", wait_s=wait_s) for wait_s in [0.1] * 39 + [100.0]]
        self.assertEqual(self.measured(*once, finished("b", wait_s=5.0)).wait_s, 0.1)  # b is left out
        alone = [finished("a", wait_s=n / 10) for n in range(20)]
        self.shares = Shares()
        self.assertEqual(self.measured(*alone).wait_s, 1.9)

    def test_without_keys_an_address_is_a_caller_and_ipv6_by_its_64(self) -> None:
        bad = [finished(None, "backend_error", client=f"2001:db8::{n:x}") for n in range(1, 200)]
        self.assertEqual(self.measured(finished(None, client="10.0.0.1"), *bad).error_rate, 0.0)
        mapped = [finished(None, "backend_error", client=c) for c in ("10.0.0.9", "::ffff:10.0.0.9")]
        self.assertEqual(self.measured(finished(None, client="10.0.0.1"), *mapped).error_rate, 0.0)
        named = [finished("10.0.0.1", "backend_error"), finished(None, client="10.0.0.1")]
        self.assertEqual(self.measured(*named).error_rate, 0.0, "a key may be named like an address")

    def test_memory_is_bounded_by_callers_and_waits(self) -> None:
        for number in range(3 * CALLERS_MAX):
            self.shares.count(finished(f"k{number}", "backend_error"))
        for _ in range(10 * WAITS_MAX):
            self.shares.count(finished("k0", wait_s=2.0))
        self.assertLessEqual(len(self.shares._counts), CALLERS_MAX + 1)
        self.assertLessEqual(max(len(one.waits_s) for one in self.shares._counts.values()), WAITS_MAX)
        self.assertEqual(self.shares._counts[("k0",)].outcomes, 1 + 10 * WAITS_MAX)
        self.assertEqual(set(self.shares._counts[("k0",)].waits_s), {2.0})  # the latest
        self.measured()
        self.assertEqual(self.shares._counts, {})


class LimitsTest(unittest.TestCase):
    """The case itself: minutes of it, as the guard sees them."""

    def setUp(self) -> None:
        self.clock = Clock(1_000.0)
        self.guard = Guard(load_settings({"LEDGER": "off"}), lambda *_, **__: None, frozenset(PATHS), self.clock)
        self.addCleanup(self.guard.close, 5.0)
        self.guard.tick()

    def run_for(self, seconds: float, second: list[RequestEvent], sparse: Optional[list[RequestEvent]] = None) -> None:
        """Every second these events, and those of `sparse` in every fifth."""
        for number in range(int(seconds)):
            for half in (second[::2], second[1::2]):
                self.clock.now_s += 0.5
                self.guard.observe(half)
                self.guard.tick()
            if sparse is not None and number % 5 == 0:
                self.guard.observe(sparse)

    def test_one_key_with_1000_failing_requests_a_second_shrinks_nobodys_limits(self) -> None:
        for error in ("backend_error", "gateway_timeout", "overloaded"):
            bad = [finished("bad", error, 30.0)] * 1_000
            good = [finished(f"good-{n}") for n in range(10)]
            self.run_for(10, bad + good)
            self.assertEqual(set(self.guard.adaptive.factors().values()), {1.0})
            self.run_for(60, bad, sparse=good)  # most intervals hold nothing but its failures
            self.assertEqual(set(self.guard.adaptive.factors().values()), {1.0})

    def test_an_overload_of_all_shrinks_them(self) -> None:
        self.run_for(10, [finished(f"k{n}", "overloaded", 0.0, attempts=0) for n in range(11)] * 10)
        self.assertEqual(dict(self.guard.adaptive.factors()), {"low": 0.1, "normal": 0.25, "high": 0.5})

    def test_waits_of_all_shrink_them_also_when_everybody_leaves(self) -> None:
        self.run_for(10, [finished(f"k{n}", "client_closed_request", 5.0, attempts=0) for n in range(4)])
        self.assertLess(self.guard.adaptive.factors()["normal"], 1.0)

    def test_who_is_alone_may_shrink_its_own_and_has_them_back_when_others_come(self) -> None:
        bad = [finished("bad", "backend_error")] * 100
        self.run_for(10, bad)
        self.assertLess(self.guard.adaptive.factors()["normal"], 1.0)
        self.run_for(120, [*bad, finished("good")])
        self.assertEqual(set(self.guard.adaptive.factors().values()), {1.0})


if __name__ == "__main__":
    unittest.main()
