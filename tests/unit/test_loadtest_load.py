"""When a load test asks, and how it counts what came of it: arrivals, both loops, histograms, memory."""

from __future__ import annotations

import heapq
import itertools
import math
import unittest
from random import Random
from typing import Optional

from gateway.tools.loadtest.arrivals import Stage, due_ns, rate_at
from gateway.tools.loadtest.durations import NS
from gateway.tools.loadtest.exchange import Exchange
from gateway.tools.loadtest.histogram import RELATIVE_ERROR, Histogram, index_of, middle_of
from gateway.tools.loadtest.measures import LABELS_MAX, OTHER, POINTS, Measures
from gateway.tools.loadtest.schedule import BACKOFF_MAX_NS, BACKOFF_NS, ClosedLoop, OpenLoop, Schedule

MS = NS // 1000


def answered(body: bytes = b'{"usage":{"completion_tokens":3}}', engine: bytes = b"") -> Exchange:
    """A complete answer."""
    exchange = Exchange(stream=False)
    head = b"HTTP/1.1 200 OK\r\nX-Gateway-Engine: %b\r\nContent-Length: %d\r\n\r\n" % (engine, len(body))
    assert exchange.feed(head + body, 0)
    return exchange


class HistogramTest(unittest.TestCase):
    def test_a_bucket_stands_for_its_values_within_the_stated_error(self) -> None:
        self.assertLessEqual(RELATIVE_ERROR, 0.01)
        chance = Random(5)
        values = [*range(2000), *(chance.randrange(1 << chance.randrange(1, 50)) for _ in range(2000))]
        for value in values:
            histogram = Histogram()
            histogram.record(value)
            self.assertEqual(list(histogram.counts), [index_of(value)])
            self.assertLessEqual(abs(middle_of(index_of(value)) - value), value * RELATIVE_ERROR)
        indexes = [index_of(value) for value in sorted(values)]
        self.assertEqual(indexes, sorted(indexes))

    def test_percentiles_are_those_of_the_sorted_values(self) -> None:
        chance = Random(7)
        for size in (1, 2, 9, 1000, 20_000):
            values = [round(chance.lognormvariate(16, 1.5)) for _ in range(size)]
            histogram = Histogram()
            for value in values:
                histogram.record(value)
            values.sort()
            for percent in (0, 1, 50, 75, 90, 95, 99, 99.9, 99.99, 100):
                exact = values[max(0, math.ceil(round(percent * size / 100, 6)) - 1)]
                (found,) = histogram.percentiles((percent,))
                assert found is not None
                self.assertLessEqual(abs(found - exact), exact * RELATIVE_ERROR, (size, percent))
            self.assertEqual((histogram.least, histogram.largest), (values[0], values[-1]))
            self.assertEqual(histogram.mean, sum(values) / size)

    def test_several_percentiles_at_once_are_those_one_by_one(self) -> None:
        histogram = Histogram()
        for value in range(1, 1001):
            histogram.record(value * 1000)
        percents = (0.0, 50.0, 50.0, 99.0, 99.9, 100.0)
        self.assertEqual(histogram.percentiles(percents), [histogram.percentiles((one,))[0] for one in percents])

    def test_an_empty_one_has_no_percentiles(self) -> None:
        self.assertEqual(Histogram().percentiles((50,)), [None])
        self.assertIsNone(Histogram().mean)
        self.assertEqual(list(Histogram().spread()), [])

    def test_two_added_are_as_one_that_counted_all_and_so_is_one_that_was_packed(self) -> None:
        one, two, both = Histogram(), Histogram(), Histogram()
        for number, value in enumerate(Random(3).choices(range(1 << 30), k=500)):
            (one, two)[number % 2].record(value)
            both.record(value)
        one.add(two)
        one.add(Histogram())
        unpacked = one.packed().unpacked()
        for found in (one, unpacked):
            self.assertEqual(found.counts, both.counts)
            self.assertEqual((found.count, found.total), (both.count, both.total))
            self.assertEqual((found.least, found.largest), (both.least, both.largest))

    def test_the_spread_rises_to_the_largest(self) -> None:
        histogram = Histogram()
        for value in Random(4).choices(range(1 << 40), k=3000):
            histogram.record(value)
        spread = list(histogram.spread())
        self.assertEqual(spread, sorted(spread))
        self.assertEqual(spread[-1], (100.0, float(histogram.largest)))

    def test_memory_is_bounded_whatever_is_counted(self) -> None:
        histogram = Histogram()
        for value in Random(6).choices(range(1 << 42), k=50_000):
            histogram.record(value)
        for value in range(20_000):
            histogram.record(value)
        self.assertLessEqual(len(histogram.counts), 43 * 128)

    def test_a_stall_is_corrected_as_the_callers_who_did_not_ask_would_have_seen_it(self) -> None:
        histogram = Histogram()
        histogram.record_expected(1000, 100)
        self.assertEqual(histogram.count, 10)  # 1000, 900, ... 100
        self.assertEqual((histogram.least, histogram.largest), (100, 1000))
        histogram.record_expected(50, 100)
        self.assertEqual(histogram.count, 11)


class ArrivalsTest(unittest.TestCase):
    def times(self, *stages: Stage, seed: Optional[int] = None) -> list[float]:
        chance = None if seed is None else Random(seed)
        return [one / NS for one in due_ns(stages, 0, chance)]

    def test_an_even_rate_is_even_and_ends_before_its_end(self) -> None:
        self.assertEqual(self.times(Stage(10, 10, 1.0)), [number / 10 for number in range(10)])
        for rate, duration_s in ((3, 1.0), (0.1, 30.0), (7, 0.3), (333.3, 3.0), (1000, 2.5)):
            self.assertEqual(len(self.times(Stage(rate, rate, duration_s))), math.ceil(round(rate * duration_s, 6)))

    def test_a_ramp_has_as_many_as_the_mean_of_its_rates_and_grows_denser(self) -> None:
        times = self.times(Stage(0, 100, 10.0))
        self.assertEqual(len(times), 500)
        self.assertEqual(sum(one < 5 for one in times), 125)
        gaps = [two - one for one, two in itertools.pairwise(times)] if hasattr(itertools, "pairwise") else []
        self.assertEqual(gaps, sorted(gaps, reverse=True))
        down = self.times(Stage(100, 0, 10.0))
        self.assertEqual(len(down), 500)
        self.assertEqual(sum(one < 5 for one in down), 375)

    def test_stages_follow_each_other_without_a_gap(self) -> None:
        times = self.times(Stage(10, 10, 0.95), Stage(0, 0, 1.0), Stage(20, 20, 1.0))
        self.assertEqual(len(times), 10 + 20)  # 9.5 and 20: the half one is finished in the third
        self.assertAlmostEqual(times[10], 1.95 + 0.5 / 20)
        self.assertEqual(times, sorted(times))

    def test_poisson_arrivals_have_the_rate_and_independent_gaps(self) -> None:
        times = self.times(Stage(1000, 1000, 30.0), seed=1)
        self.assertLess(abs(len(times) - 30_000), 4 * math.sqrt(30_000))
        gaps = [two - one for one, two in zip(times, times[1:])]
        mean = sum(gaps) / len(gaps)
        deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
        self.assertAlmostEqual(deviation / mean, 1.0, delta=0.05)  # an exponential distribution's
        self.assertEqual(times, self.times(Stage(1000, 1000, 30.0), seed=1))
        self.assertNotEqual(times[:9], self.times(Stage(1000, 1000, 30.0), seed=2)[:9])

    def test_a_poisson_ramp_grows_as_the_rate_does(self) -> None:
        times = self.times(Stage(0, 1000, 20.0), seed=3)
        first, second = sum(one < 10 for one in times), sum(one >= 10 for one in times)
        self.assertAlmostEqual(second / first, 3.0, delta=0.2)

    def test_without_an_end_there_is_always_another(self) -> None:
        endless = due_ns([Stage(100, 100, math.inf)], -NS)
        self.assertEqual(list(itertools.islice(endless, 3)), [-NS, -NS + NS // 100, -NS + NS // 50])

    def test_the_rate_at_a_time_is_told(self) -> None:
        stages = [Stage(0, 100, 10.0), Stage(100, 100, math.inf)]
        self.assertEqual([rate_at(stages, at_s) for at_s in (0, 5, 10, 99)], [0, 50, 100, 100])
        self.assertIsNone(rate_at(stages[:1], 11))


class ScheduleTest(unittest.TestCase):
    def test_each_caller_of_a_closed_loop_asks_again_when_its_answer_has_come(self) -> None:
        loop = ClosedLoop(2, 0, 10 * NS)
        for _ in range(2):
            self.assertEqual(loop.due(0), 0)
            loop.take()
        self.assertIsNone(loop.due(5 * NS))
        loop.done(5 * NS, connected=True)
        self.assertEqual(loop.due(6 * NS), 5 * NS)
        self.assertIsNone(loop.due(10 * NS))
        self.assertTrue(loop.over(10 * NS))
        self.assertFalse(loop.over(10 * NS - 1))

    def test_a_caller_who_thinks_asks_later(self) -> None:
        loop = ClosedLoop(1, 0, None, think_ns=(2 * NS, 3 * NS), chance=Random(1))
        loop.take()
        loop.done(NS, connected=True)
        next_ns = loop.next_ns()
        assert next_ns is not None
        self.assertTrue(3 * NS <= next_ns <= 4 * NS)
        self.assertIsNone(loop.due(next_ns - 1))
        self.assertEqual(loop.due(next_ns), next_ns)

    def test_callers_who_cannot_connect_try_less_and_less_often(self) -> None:
        loop = ClosedLoop(1, 0, None)
        now_ns, pauses = 0, []
        for _ in range(8):
            loop.take()
            loop.done(now_ns, connected=False)
            next_ns = loop.next_ns()
            assert next_ns is not None
            pauses.append(next_ns - now_ns)
            now_ns = next_ns
        self.assertEqual(pauses[:3], [BACKOFF_NS, 2 * BACKOFF_NS, 4 * BACKOFF_NS])
        self.assertEqual(pauses[-1], BACKOFF_MAX_NS)
        loop.take()
        loop.done(now_ns, connected=True)
        self.assertEqual(loop.next_ns(), now_ns)

    def test_a_limit_of_requests_ends_both_loops(self) -> None:
        for loop in (ClosedLoop(9, 0, None, limit=3), OpenLoop(due_ns([Stage(9, 9, math.inf)], 0), limit=3)):
            for _ in range(3):
                self.assertIsNotNone(loop.due(NS))
                self.assertFalse(loop.over(NS))
                loop.take()
            self.assertIsNone(loop.due(NS))
            self.assertTrue(loop.over(NS))

    def test_nothing_moves_the_times_of_an_open_loop(self) -> None:
        loop = OpenLoop(due_ns([Stage(10, 10, 1.0)], 0))
        taken = []
        while not loop.over(0):
            due = loop.due(5 * NS)  # much too late
            assert due is not None
            taken.append(due)
            loop.take()
            loop.done(5 * NS, connected=False)
        self.assertEqual(taken, [number * NS // 10 for number in range(10)])

    def test_what_has_waited_for_too_long_is_given_up_and_counted(self) -> None:
        loop = OpenLoop(due_ns([Stage(10, 10, 1.0)], 0))
        self.assertEqual(loop.late(NS // 2), 5)
        self.assertEqual(loop.late(NS // 2), 0)
        self.assertEqual(loop.due(NS), NS // 2)


def simulated(schedule: Schedule, measures: Measures, busy_ns: int, stall: tuple[int, int]) -> None:
    """A run against a server with one place, which takes `busy_ns` for each answer and does nothing in `stall`; as the
    loop does it, with as many connections as it likes, on a clock of its own."""
    free_ns = now_ns = 0
    ends: list[tuple[int, int, int]] = []
    while True:
        while (due := schedule.due(now_ns)) is not None:
            schedule.take()
            measures.began(due, now_ns, waited=False)
            begin_ns = max(now_ns, free_ns)
            end_ns = begin_ns + busy_ns
            if begin_ns < stall[1] and end_ns > stall[0]:
                end_ns = max(begin_ns, stall[1]) + busy_ns
            free_ns = end_ns
            heapq.heappush(ends, (end_ns, due, now_ns))
        next_ns = schedule.next_ns() if not schedule.over(now_ns) else None
        if not ends and next_ns is None:
            break
        now_ns = min(*(one for one in (ends[0][0] if ends else None, next_ns, 1 << 62) if one is not None))
        while ends and ends[0][0] <= now_ns:
            end_ns, due, sent_ns = heapq.heappop(ends)
            measures.ended(answered(), "m", due, sent_ns, end_ns)
            schedule.done(end_ns, connected=True)
    measures.close(now_ns)


class OmissionTest(unittest.TestCase):
    """A server that answers in 1 ms and stands still for one second of ten: one request in ten, of those who come at
    their own times, has waited for half a second in the mean."""

    STALL = (5 * NS, 6 * NS)

    def run_loop(self, schedule: Schedule, open_loop: bool, expected_ns: int = 0) -> Measures:
        measures = Measures(open_loop, expected_ns)
        simulated(schedule, measures, MS, self.STALL)
        return measures

    def test_an_open_loop_shows_a_stall_in_its_percentiles(self) -> None:
        measures = self.run_loop(OpenLoop(due_ns([Stage(100, 100, 10.0)], 0)), open_loop=True)
        response, service = measures.total.response, measures.total.service
        self.assertEqual(response.count, 1000)
        p50, p95, p99 = response.percentiles((50.0, 95.0, 99.0))
        assert p50 is not None and p95 is not None and p99 is not None
        self.assertLess(p50, 2 * MS)
        self.assertGreater(p95, 400 * MS)
        self.assertGreater(p99, 850 * MS)
        self.assertGreater(service.largest, 900 * MS)

    def test_one_that_had_no_connection_shows_it_as_response_and_not_as_service(self) -> None:
        measures = Measures(open_loop=True)
        measures.began(0, NS, waited=True)  # a second late, since all connections were taken
        measures.ended(answered(), "m", 0, NS, NS + MS)
        measures.close(2 * NS)
        self.assertEqual(measures.total.service.largest, MS)
        self.assertEqual(measures.total.response.largest, NS + MS)
        self.assertEqual((measures.late, measures.lag.count), (0, 0))  # that was not the generator

    def test_a_closed_loop_hides_it_unless_it_is_corrected(self) -> None:
        schedule = ClosedLoop(1, 0, 10 * NS, think_ns=(9 * MS, 9 * MS))
        measures = self.run_loop(schedule, open_loop=False, expected_ns=10 * MS)
        (hidden,), (corrected,) = (one.percentiles((99,)) for one in (measures.total.service, measures.total.corrected))
        assert hidden is not None and corrected is not None
        self.assertLess(hidden, 2 * MS)
        self.assertGreater(corrected, 850 * MS)
        self.assertEqual(measures.total.response.count, 0)

    def test_a_generator_that_is_late_says_so(self) -> None:
        measures = Measures(open_loop=True)
        measures.began(0, 20 * MS, waited=False)
        measures.began(10 * MS, 11 * MS, waited=False)
        self.assertEqual((measures.late, measures.lag.count, measures.lag.largest), (1, 2, 20 * MS))


class MeasuresTest(unittest.TestCase):
    def test_the_warm_up_counts_nowhere_but_in_the_rates_of_what_ends_after_it(self) -> None:
        measures = Measures(open_loop=False)
        measures.began(-2 * NS, -2 * NS, waited=False)
        measures.began(-NS, -NS, waited=False)
        measures.began(NS, NS, waited=False)
        measures.ended(answered(), "m", -2 * NS, -2 * NS, -NS)
        measures.ended(answered(), "m", -NS, -NS, 1)
        measures.ended(answered(), "m", NS, NS, 2 * NS)
        measures.close(3 * NS)
        self.assertEqual((measures.warmup_sent, measures.sent), (2, 1))
        self.assertEqual((measures.total.ok, measures.window.ok), (1, 2))
        self.assertEqual(measures.total.service.count, 1)

    def test_what_ends_after_the_end_is_in_no_rate(self) -> None:
        measures = Measures(open_loop=False)
        measures.end_ns = 10 * NS
        for end_ns in (9 * NS, 11 * NS):
            measures.began(NS, NS, waited=False)
            measures.ended(answered(), "m", NS, NS, end_ns)
        measures.close(11 * NS)
        self.assertEqual((measures.total.ok, measures.window.ok), (2, 1))

    def test_every_answer_is_in_one_second_and_one_engine_and_all_add_up(self) -> None:
        measures = Measures(open_loop=False)
        for number in range(100):
            at_ns = number * NS // 10
            measures.began(at_ns, at_ns, waited=False)
            measures.ended(answered(engine=b"e%d" % (number % 3)), f"m{number % 2}", at_ns, at_ns, at_ns + MS)
        measures.close(10 * NS)
        self.assertEqual([point.ok for point in measures.points[:10]], [10] * 10)
        self.assertEqual({name: tally.ok for name, tally in measures.models.items()}, {"m0": 50, "m1": 50})
        self.assertEqual(sum(tally.ok for tally in measures.engines.values()), 100)
        self.assertEqual((measures.total.ok, measures.total.tokens), (100, 300))

    def test_what_is_in_flight_at_the_end_is_abandoned(self) -> None:
        measures = Measures(open_loop=False)
        measures.began(0, 0, waited=False)
        measures.began(-1, -1, waited=False)  # of the warm-up
        measures.close(NS)
        self.assertEqual((measures.abandoned, measures.sent, measures.total.ok), (1, 1, 0))

    def test_a_long_run_takes_no_more_memory_than_a_short_one_and_loses_no_count(self) -> None:
        measures = Measures(open_loop=False)
        seconds = 5 * POINTS + 7
        for second in range(seconds):
            at_ns = second * NS
            measures.began(at_ns, at_ns, waited=False)
            measures.ended(answered(), "m", at_ns, at_ns, at_ns + (second % 900) * MS)
        measures.close(seconds * NS)
        self.assertLessEqual(len(measures.points), POINTS)
        self.assertEqual(sum(point.ok for point in measures.points), seconds)
        self.assertEqual(sum(point.latency.total_count for point in measures.points), seconds)
        begins = [point.at_s for point in measures.points]
        ends = [point.at_s + point.width_s for point in measures.points]
        self.assertEqual(begins[1:], ends[:-1])

    def test_labels_without_end_share_one_place(self) -> None:
        measures = Measures(open_loop=False)
        for number in range(4 * LABELS_MAX):
            at_ns = number * NS // 7
            failed = Exchange(stream=False)
            failed.fail(f"error {number}")
            for exchange in (answered(engine=b"engine-%d" % number), failed):
                measures.began(at_ns, at_ns, waited=False)
                measures.ended(exchange, "m", at_ns, at_ns, at_ns)
        measures.close(99 * NS)
        self.assertLessEqual(len(measures.engines), LABELS_MAX + 1)
        self.assertLessEqual(len(measures.total.errors), LABELS_MAX + 1)
        self.assertIn(OTHER, measures.engines)
        self.assertEqual(sum(measures.total.errors.values()), 4 * LABELS_MAX)
        self.assertEqual(sum(tally.ok for tally in measures.engines.values()), 4 * LABELS_MAX)


if __name__ == "__main__":
    unittest.main()
