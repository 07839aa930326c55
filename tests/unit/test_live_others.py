"""The console of one process shows the seconds of all."""

from __future__ import annotations

import json
import math
import random
import unittest
from typing import Any

from gateway.showing import is_own
from gateway.telemetry.events import RequestEvent
from gateway.telemetry.live import COLUMNS, LiveSeries
from gateway.telemetry.liveothers import KEPT, SILENT_ROLLS, Others, Spread, percentiles_s, spread_of
from gateway.telemetry.liveticker import LiveTicker
from gateway.telemetry.liveview import TOLD_MAX, EngineView, Sources
from tests.unit.test_live import CHAT, ENGINE, SECRETS, Listener, attempt, event, told


class Process:
    """One process's ticker, by the test's clock."""

    def __init__(self, case: OthersTest) -> None:
        self.gauges = (0, 0, 0)
        self.engine: EngineView = ENGINE
        self.series = LiveSeries({CHAT}, is_own, random.Random(7).random)
        self.series.shares = True
        self.listener = Listener()
        self.listener.any = False
        self.said: list[str] = []
        self.ticker = LiveTicker(
            self.series,
            Sources(dict, lambda: [self.engine], tuple, tuple),
            lambda: self.gauges,
            case.errors.append,
            clock=lambda: case.now_s,
            wall=lambda: case.wall_s,
            pause=lambda: None,
        )
        self.ticker.others = Others()
        self.ticker.watchers = self.listener

    def point(self, age: int = 0) -> dict[str, float]:
        return dict(zip(COLUMNS, self.series.points[-1 - age]))

    def tick(self) -> dict[str, Any]:
        """What its last tick has said to who watches."""
        said: dict[str, Any] = told(self.listener.given[-1][0])[1]
        return said


class OthersTest(unittest.TestCase):
    def setUp(self) -> None:
        self.now_s, self.wall_s = 1000.0, 1.8e9
        self.errors: list[BaseException] = []
        self.processes = [Process(self) for _ in range(3)]
        for process in self.processes:
            process.ticker.share = lambda what, own=process: self.hear(own, what)  # type: ignore[misc]

    def hear(self, sender: Process, what: Any) -> None:
        text = json.dumps(what)
        sender.said.append(text)
        for process in self.processes:
            if process is not sender and process.ticker.others is not None:
                process.ticker.others.hear(json.loads(text))

    def second(self, *batches: list[RequestEvent]) -> None:
        """These have ended at the processes, in their order; then a second is over."""
        for process, batch in zip(self.processes, batches):
            process.ticker.observe(batch)
        self.now_s += 1.0
        self.wall_s += 1.0
        for process in self.processes:
            process.ticker.tick()
        self.assertEqual(self.errors, [])

    def sums(self, name: str) -> list[float]:
        """What each process shows of a column, added up over all its points."""
        return [sum(dict(zip(COLUMNS, point))[name] for point in process.series.points) for process in self.processes]

    def test_each_shows_what_all_have_answered(self) -> None:
        for _ in range(5):
            self.second(
                [event(prompt_tokens=5, completion_tokens=7)] * 3,
                [event(error="backend_error"), event(extra={"cache": "hit", "cost_usd": 0.5})],
                [event(extra={"cache": "miss"})],
            )
        self.second()
        for name, expected in (
            *(("requests", 30), ("errors", 5), ("prompt_tokens", 75), ("completion_tokens", 105)),
            *(("cache_hits", 5), ("cache_misses", 5), ("cost_usd", 2.5)),
        ):
            self.assertEqual(self.sums(name), [expected] * 3, name)

    def test_no_second_is_empty_and_the_next_one_double_when_clocks_beat_apart(self) -> None:
        self.second([], [event()] * 10)
        order = self.processes
        for turn in range(12):
            self.processes = order[::-1] if turn % 2 else order
            order[1].ticker.observe([event()] * 10)
            self.second()
        self.processes = order
        for process in order:
            shown = [dict(zip(COLUMNS, point))["requests"] for point in process.series.points]
            self.assertEqual(shown[3:], [10] * (len(shown) - 3), shown)

    def test_percentiles_are_those_of_all_of_them(self) -> None:
        chance = random.Random(3)
        slow = [chance.uniform(1.0, 2.0) for _ in range(100)]
        fast = [chance.uniform(0.0, 1.0) for _ in range(900)]
        self.second([event(value) for value in slow], [event(value, ttft_s=value / 2) for value in fast])
        point = self.processes[2].point()
        everything = sorted((*slow, *fast))
        for name, share in (("p50_ms", 0.5), ("p95_ms", 0.95), ("p99_ms", 0.99)):
            rank = sum(value * 1e3 <= point[name] + 1e-9 for value in everything) / len(everything)
            self.assertAlmostEqual(rank, share, delta=0.011, msg=name)
        self.assertAlmostEqual(point["ttft_p50_ms"], sorted(fast)[450] / 2 * 1e3, delta=10)

    def test_few_values_are_exact_and_none_are_nothing(self) -> None:
        self.second([event(0.1)], [event(0.3)], [event(0.2)])
        self.assertEqual(round(self.processes[2].point()["p50_ms"], 9), 200)
        self.assertTrue(math.isnan(self.processes[2].point()["ttft_p50_ms"]))

    def test_what_is_in_flight_anywhere_is_shown_and_of_a_process_that_is_gone_no_more(self) -> None:
        for number, process in enumerate(self.processes, 1):
            process.gauges = (number, 10 * number, 100 * number)
            process.engine = ENGINE._replace(in_flight=number)
        self.processes[0].listener.any = True
        for _ in range(3):
            self.second()
        point = self.processes[0].point()
        self.assertEqual((point["in_flight"], point["queue"], point["workers_busy"]), (6, 60, 600))
        self.assertEqual([one.in_flight for one in self.processes[0].ticker._engines()], [6])
        self.processes = self.processes[:1]
        for _ in range(SILENT_ROLLS + 3):
            self.second()
        self.assertEqual(self.processes[0].point()["in_flight"], 1)
        self.assertEqual([one.in_flight for one in self.processes[0].ticker._engines()], [1])

    def test_requests_of_all_are_shown_in_the_order_of_their_ends_and_without_secrets(self) -> None:
        self.processes[0].listener.any = True
        own = [event(id=f"a{n}")._replace(finished_unix_s=float(n)) for n in (1, 4)]
        others = [
            event(id=f"b{n}", extra={"prompt": SECRETS[0], "answer": SECRETS[1]})._replace(finished_unix_s=float(n))
            for n in (2, 3)
        ]
        self.processes = self.processes[::-1]  # so that the first hears the second's second before its own ends
        self.second([], others, own)
        tick = self.processes[-1].tick()
        self.assertEqual([request["id"] for request in tick["requests"]], ["a1", "b2", "b3", "a4"])
        for process in self.processes:
            for secret in SECRETS:
                self.assertNotIn(secret, "".join(process.said))

    def test_of_many_requests_the_last_are_told_and_the_rest_counted(self) -> None:
        self.processes[0].listener.any = True
        self.processes = self.processes[::-1]
        self.second([event()] * 50, [], [event()] * 30)
        tick = self.processes[-1].tick()
        self.assertEqual((len(tick["requests"]), tick["skipped"]), (TOLD_MAX, 80 - TOLD_MAX))

    def test_engines_last_minutes_are_of_all_attempts(self) -> None:
        self.second(
            [event(attempt_records=(attempt(0.1),))],
            [event(attempt_records=(attempt(0.2),)), event(attempt_records=(attempt(0.6),))],
        )
        shown = self.processes[2].series.last_sparks()
        self.assertAlmostEqual(shown["m", "a"], 300, 3)

    def test_processes_without_anything_to_tell_say_so_once(self) -> None:
        for _ in range(5):
            self.second()
        self.assertEqual([len(process.said) for process in self.processes], [1, 1, 1])
        self.second([event()])
        self.second()
        self.second()
        self.assertEqual([len(process.said) for process in self.processes], [3, 1, 1])

    def test_of_one_that_tells_faster_than_seconds_are_ended_no_more_than_one_waits(self) -> None:
        others = Others()
        second = list(self.processes[0].series.told("x", (0, 0, 0), 5, str, watched=False, in_flight=()))
        for _ in range(5):
            others.hear(second)
        self.assertEqual([len(others.take()) for _ in range(3)], [4, 1, 0])

    def test_a_process_is_gone_when_it_has_told_nothing_for_so_long_at_a_time(self) -> None:
        others = Others()
        second = list(self.processes[0].series.told("x", (7, 0, 0), 5, str, watched=False, in_flight=()))
        for _ in range(3):
            others.hear(second)
            for _ in range(SILENT_ROLLS):
                others.take()
            self.assertEqual(others.gauges(), (7, 0, 0))
        for _ in range(2):
            others.take()
        self.assertEqual(others.gauges(), (0, 0, 0))

    def test_a_spread_stands_for_all_of_its_values(self) -> None:
        values = [number / 1000 for number in range(5000)]
        spread = spread_of(values, 80_000)
        self.assertEqual((len(spread.values), spread.values[0], spread.values[-1]), (KEPT, 0.0, 4.999))
        self.assertEqual(percentiles_s([spread, Spread(20_000, [9.0])], (0.79, 0.81, 1.0))[1:], [9.0, 9.0])
        self.assertEqual(percentiles_s([Spread(0, [])], (0.5,)), [None])
        few = self.processes[0].series.told("x", (0, 0, 0), 5, str, watched=False, in_flight=())
        self.assertTrue(few.idle)


if __name__ == "__main__":
    unittest.main()
