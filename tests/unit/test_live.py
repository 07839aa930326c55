"""The console's series and its feed's events, by a clock that the test turns."""

from __future__ import annotations

import json
import math
import platform
import random
import statistics
import unittest
from array import array
from collections.abc import Callable
from typing import Any, Optional

from gateway.clock import JUMP_S
from gateway.showing import is_own
from gateway.telemetry import live, liveview
from gateway.telemetry.events import AttemptRecord, Mark, RequestEvent, Trace
from gateway.telemetry.live import COLUMNS, POINTS, REQUESTS, SAMPLES_MAX, SPARK_POINTS, LiveSeries, percentile_ms
from gateway.telemetry.liveticker import LiveTicker
from gateway.telemetry.liveview import SLOS_EVERY, TOLD_MAX, EngineView, Sources

CHAT = "/v1/chat/completions"
ENGINE = EngineView("m", "a", "http://a", "up", True, "closed", 0, None, 1, None)
SECRETS = ("the prompt", "the answer", "alice", "192.0.2.7")


def event(latency_s: float = 0.1, **more: Any) -> RequestEvent:
    known: dict[str, Any] = {"model": "m", "engine": "a", "accepted_s": 50.0, "key": "alice", "client": "192.0.2.7"}
    known.update(more)
    path = known.pop("path", CHAT)
    error = known.pop("error", None)
    return RequestEvent(
        1e9, known.pop("id", "r"), "POST", path, 200 if error is None else 502, error, latency_s, **known
    )


def attempt(duration_s: float, engine: str = "a", outcome: str = "ok", model: str = "m") -> AttemptRecord:
    return AttemptRecord(model, engine, outcome, duration_s, 50.01)


class Listener:
    """Who watches: keeps what it is given."""

    def __init__(self) -> None:
        self.any = True
        self.wished = True
        self.given: list[tuple[bytes, bytes, bool]] = []

    def take_wish(self) -> bool:
        wished, self.wished = self.wished, False
        return wished

    def publish(self, tick: bytes, history: bytes, anew: bool) -> None:
        self.given.append((tick, history, anew))


def told(data: bytes) -> tuple[str, Any]:
    """An event's name, and what it says."""
    head, _, rest = data.decode("ascii").partition("\n")
    lines = rest.split("\n")
    assert lines[1:] == ["", ""], "an event is two lines and a blank one"
    name, text = head.removeprefix("event: "), lines[0].removeprefix("data: ")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return name, json.loads(text, parse_constant=refuse)


class LiveTest(unittest.TestCase):
    def setUp(self) -> None:
        self.now_s = 1000.0
        self.wall_s = 1.8e9
        self.gauges = (0, 0, 0)
        self.engines: list[EngineView] = []
        self.alerts: list[dict[str, Any]] = []
        self.slos: list[dict[str, Any]] = []
        self.pauses = 0
        self.errors: list[BaseException] = []
        self.series = LiveSeries({CHAT}, is_own, random.Random(7).random)
        self.sources = Sources(
            lambda: {"version": "1.0", "started": 1},
            lambda: list(self.engines),
            lambda: list(self.alerts),
            lambda: list(self.slos),
        )
        self.ticker = LiveTicker(
            self.series,
            self.sources,
            lambda: self.gauges,
            self.errors.append,
            clock=lambda: self.now_s,
            wall=lambda: self.wall_s,
            pause=self.pause,
        )
        self.listener = Listener()

    def pause(self) -> None:
        self.pauses += 1

    def pass_time(self, seconds: float = 1.0) -> None:
        self.now_s += seconds
        self.wall_s += seconds

    def tick(self, *events: RequestEvent, seconds: float = 1.0) -> None:
        if events:
            self.ticker.observe(events)
        self.pass_time(seconds)
        self.ticker.tick()

    def point(self, age: int = 0) -> dict[str, float]:
        return dict(zip(COLUMNS, self.series.points[-1 - age]))

    def watch(self) -> dict[str, Any]:
        """Begin to watch; returns the history."""
        self.ticker.watchers = self.listener
        self.listener.wished = True
        self.ticker.serve()
        return self.last_history()

    def last_history(self) -> dict[str, Any]:
        name, said = told(self.listener.given[-1][1])
        self.assertEqual(name, "history")
        history: dict[str, Any] = said
        return history

    def last_tick(self) -> dict[str, Any]:
        name, said = told(self.listener.given[-1][0])
        self.assertEqual(name, "tick")
        tick: dict[str, Any] = said
        return tick


class SeriesTest(LiveTest):
    def test_a_second_counts_what_has_ended_in_it_and_the_next_begins_with_nothing(self) -> None:
        self.gauges = (3, 2, 1)
        good = event(prompt_tokens=10, completion_tokens=20, extra={"cache": "miss", "cost_usd": 0.25}, ttft_s=0.02)
        self.tick(good, event(0.3, error="backend_error"), event(0.2, extra={"cache": "near"}))
        for name, value in zip(COLUMNS, (3, 1, 200, 300, 300, 20, 20, 10, 20, 3, 2, 1, 1, 1, 0.25)):
            self.assertAlmostEqual(self.point()[name], value, msg=name)
        self.gauges = (0, 0, 0)
        self.tick()
        nothing = self.point()
        self.assertEqual(
            [name for name, value in nothing.items() if value == 0], [n for n in COLUMNS if "_ms" not in n]
        )
        self.assertTrue(all(math.isnan(nothing[name]) for name in COLUMNS if name.endswith("_ms")))

    def test_percentiles_are_of_nearest_rank(self) -> None:
        for size in (1, 2, 3, 10, 19, 20, 99, 100, 101, 1000):
            values = sorted(random.Random(size).random() for _ in range(size))
            for share in (0.5, 0.95, 0.99):
                with self.subTest(size=size, share=share):
                    least = next(v for v in values if sum(w <= v for w in values) >= share * size - 1e-9)
                    self.assertEqual(percentile_ms(values, share), least * 1e3)
        self.assertTrue(math.isnan(percentile_ms([], 0.5)))

    def test_of_more_latencies_than_are_kept_a_fair_share_stands_for_all(self) -> None:
        self.ticker.observe([event(n / 40_000) for n in range(40_000)])
        self.assertEqual(len(self.series._second.latencies.values), SAMPLES_MAX)
        self.pass_time()
        self.ticker.tick()
        self.assertEqual(self.point()["requests"], 40_000)
        self.assertAlmostEqual(self.point()["p50_ms"], 500, delta=30)
        self.assertAlmostEqual(self.point()["p95_ms"], 950, delta=15)

    def test_the_gateways_own_paths_are_neither_counted_nor_kept_but_lost_ones_are(self) -> None:
        own = (
            "/healthz",
            "/metrics",
            "/",
            "/console/app.js",
            "/api/v1/live",
            "/v1/models/m",
            "/admin/keys",
            "/favicon.ico",
        )
        self.tick(*(event(path=path) for path in own))
        self.assertEqual((self.point()["requests"], len(self.series.requests)), (0, 0))
        self.tick(event()._replace(method="OPTIONS"))
        self.assertEqual(self.point()["requests"], 0)
        self.tick(event(path="/v1/chat/completion", error="not_found"), event())
        self.assertEqual((self.point()["requests"], len(self.series.requests)), (2, 2))

    def test_a_part_of_a_request_is_shown_and_its_tokens_count_but_it_is_no_request(self) -> None:
        part = event(extra={"part_of": "r"}, prompt_tokens=5, attempt_records=(attempt(0.1),))
        self.tick(part, event())
        self.assertEqual((self.point()["requests"], self.point()["prompt_tokens"]), (1, 5))
        self.assertEqual(len(self.series.requests), 2)
        self.assertEqual(list(self.series.last_sparks()), [("m", "a")])

    def test_seconds_that_nobody_has_ended_have_points_without_anything(self) -> None:
        self.tick(event())
        self.tick(event(), event(), seconds=4.2)
        self.assertEqual([point[0] for point in self.series.points], [1, 0, 0, 0, 2])
        self.tick(seconds=0.8)
        self.assertEqual(len(self.series.points), 6)
        self.tick(seconds=1e9)
        self.assertEqual(len(self.series.points), POINTS)

    def test_all_that_is_kept_is_bounded(self) -> None:
        for second in range(POINTS + 50):
            self.tick(*(event(id=f"{second}-{n}", attempt_records=(attempt(0.1, f"e{second}"),)) for n in range(3)))
        self.assertEqual((len(self.series.points), len(self.series.requests)), (POINTS, REQUESTS))
        self.assertEqual(self.series.requests[-1].request_id, f"{POINTS + 49}-2")
        self.assertEqual(len(self.series._sparks), SPARK_POINTS)
        for number in range(live.FAILED_MAX + 10):
            self.ticker.failed("m", f"e{number}")
        self.assertEqual(len(self.series._failed), live.FAILED_MAX)
        self.assertIsNone(self.series.failed_at(("m", "e0")))

    def test_a_line_has_a_mean_for_each_second_and_is_forgotten_after_a_minute_without_any(self) -> None:
        self.tick(event(attempt_records=(attempt(0.1), attempt(0.3), attempt(0.5, "b"))))
        self.assertEqual(
            {key[1]: round(value) for key, value in self.series.last_sparks().items()}, {"a": 200, "b": 500}
        )
        for _ in range(SPARK_POINTS - 1):
            self.tick()
        self.assertEqual(self.series.last_sparks(), {})
        self.assertEqual(round(self.series.sparks()["m", "a"][0]), 200)
        self.tick()
        self.assertEqual(self.series.sparks(), {})

    def test_one_that_cannot_be_counted_loses_no_other(self) -> None:
        with self.assertRaises(TypeError):
            self.ticker.observe([event(), event(prompt_tokens="ten"), event()])
        self.tick()
        self.assertEqual(self.point()["requests"], 2)

    def test_one_that_cannot_be_counted_has_no_other_counted_twice(self) -> None:
        usual = event(prompt_tokens=10, completion_tokens=20, extra={"cache": "hit", "cost_usd": 0.5})
        with self.assertRaises(TypeError):
            self.ticker.observe([usual, event(attempt_records=(None,)), usual])
        self.tick()
        point = self.point()
        told = [point[name] for name in ("prompt_tokens", "completion_tokens", "cache_hits", "cost_usd")]
        self.assertEqual(told, [20, 40, 2, 1.0])

    def test_what_is_kept_of_a_request_has_no_bodies_and_does_not_know_who_has_asked(self) -> None:
        extra = {"request_body": "the prompt", "answer_body": "the answer", "cache": "hit", "verification": {"x": 1}}
        self.tick(event(extra=extra), event(path="/" + "x" * 9000, error="not_found"))
        kept, lost = self.series.requests
        self.assertEqual((kept.extra, kept.key, kept.client), ({"cache": "hit"}, None, ""))
        self.assertEqual(len(lost.path), live.PATH_CHARS)

    @unittest.skipUnless(platform.python_implementation() == "CPython", "PyPy does not trace what is allocated")
    def test_its_memory_is_as_stated(self) -> None:
        import tracemalloc

        engines = [f"engine-{number}" for number in range(800)]
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            series = LiveSeries({CHAT}, is_own)
            for second in range(POINTS):
                if second in (1, POINTS - 20):
                    series.observe([event(attempt_records=(attempt(0.1, name),)) for name in engines])
                series.roll((1, 2, 3))
                series.observe([event(id=f"{second}", attempt_records=(attempt(0.1),))])
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        self.assertEqual(len(series._sparks), len(engines) + 1)
        self.assertLess(after - before, 1_000_000)


class ViewTest(LiveTest):
    def test_who_begins_to_watch_gets_all_there_is(self) -> None:
        self.engines = [ENGINE]
        self.alerts, self.slos = [{"name": "x"}], [{"model": "m"}]
        self.tick(event(attempt_records=(attempt(0.1),)))
        self.tick()
        history = self.watch()
        self.assertEqual(history["columns"], ["time", *COLUMNS])
        self.assertEqual((history["now"], history["kept_s"], history["interval_s"]), (self.wall_s, POINTS, 1))
        self.assertEqual([point[0] for point in history["points"]], [self.wall_s - 1, self.wall_s])
        self.assertEqual([point[1] for point in history["points"]], [1, 0])
        self.assertEqual(history["points"][1][3], None)
        self.assertEqual(history["engines"], [{**ENGINE._asdict(), "last_error_at": None}])
        self.assertEqual(history["sparks"], {"m a": [None] * 58 + [100, None]})
        self.assertEqual((history["alerts"], history["slos"]), (self.alerts, self.slos))
        self.assertEqual([request["id"] for request in history["requests"]], ["r"])

    def test_a_request_is_told_with_its_attempts_and_its_other_parts(self) -> None:
        attempts = (attempt(0.05, "a", "reset"), AttemptRecord("m", "b", "ok", 0.04, 50.07, 0.02))
        marks = (Mark("queue", 50.001, 0.004),)
        trace = Trace("ab" * 16, "cd" * 8)
        self.tick(
            event(0.12, attempt_records=attempts, marks=marks, trace=trace, stream=True, ttft_s=0.1, fallback="x->m")
        )
        (request,) = self.watch()["requests"]
        self.assertEqual(request["attempts"][0]["outcome"], "reset")
        second = {"model": "m", "engine": "b", "outcome": "ok", "start_ms": 70, "duration_ms": 40, "ttft_ms": 20}
        self.assertEqual(request["attempts"][1], second)
        self.assertEqual(request["marks"], [{"name": "queue", "start_ms": 1, "duration_ms": 4}])
        self.assertEqual((request["trace"], request["ttft_ms"], request["fallback"]), ("ab" * 16, 100, "x->m"))

    def test_a_tick_tells_only_what_has_changed(self) -> None:
        other = ENGINE._replace(engine="b")
        self.engines = [ENGINE, other]
        self.watch()
        self.tick()
        tick = self.last_tick()
        self.assertEqual((tick["engines"], tick["gone"], tick["sparks"], tick["requests"]), ([], [], {}, []))
        self.assertTrue({"alerts", "slos"}.isdisjoint(tick))
        self.engines = [ENGINE._replace(state="down", available=False)]
        self.alerts = [{"name": "x", "value": math.inf}]
        self.tick(event(attempt_records=(attempt(0.1),)))
        tick = self.last_tick()
        self.assertEqual([(one["engine"], one["state"]) for one in tick["engines"]], [("a", "down")])
        self.assertEqual((tick["gone"], tick["sparks"]), (["m b"], {"m a": 100}))
        self.assertEqual(tick["alerts"], [{"name": "x", "value": None}])
        self.assertEqual((tick["point"][0], tick["point"][1], tick["now"]), (self.wall_s, 1, self.wall_s))
        self.tick()
        self.assertEqual((self.last_tick()["engines"], self.last_tick()["gone"]), ([], []))

    def test_objectives_are_told_every_ten_seconds_at_most(self) -> None:
        self.watch()
        told_at = []
        for second in range(3 * SLOS_EVERY):
            self.slos = [{"model": "m", "budget_remaining": second}]
            self.tick()
            if "slos" in self.last_tick():
                told_at.append(second)
        self.assertEqual([b - a for a, b in zip(told_at, told_at[1:])], [SLOS_EVERY] * (len(told_at) - 1))
        self.assertEqual(len(told_at), 3)

    def test_a_tick_tells_of_twenty_requests_the_newest_and_how_many_more_there_were(self) -> None:
        self.watch()
        self.tick(*(event(id=str(number)) for number in range(500)))
        tick = self.last_tick()
        self.assertEqual(
            [one["id"] for one in tick["requests"]], [str(number) for number in range(500 - TOLD_MAX, 500)]
        )
        self.assertEqual(tick["skipped"], 500 - TOLD_MAX)
        self.tick()
        self.assertEqual((self.last_tick()["requests"], self.last_tick()["skipped"]), ([], 0))

    def test_history_and_the_ticks_behind_it_are_what_a_later_history_says(self) -> None:
        chance = random.Random(3)
        self.engines = [ENGINE._replace(engine=name) for name in "abc"]
        first = self.watch()
        points, engines = first["points"], {one["engine"]: one for one in first["engines"]}
        for _ in range(40):
            self.engines = [
                one._replace(state=chance.choice(("up", "down")), in_flight=chance.randrange(3))
                for one in [ENGINE._replace(engine=name) for name in "abcd"]
                if chance.random() < 0.9
            ]
            if chance.random() < 0.3:  # another begins to watch, between two ticks
                self.listener.wished = True
                self.ticker.serve()
            self.tick(*[event(chance.random(), attempt_records=(attempt(chance.random()),))] * chance.randrange(3))
            tick = self.last_tick()
            points.append(tick["point"])
            for name in tick["gone"]:
                del engines[name.split(" ")[1]]
            engines.update((one["engine"], one) for one in tick["engines"])
        self.listener.wished = True
        self.ticker.serve()
        later = self.last_history()
        self.assertEqual({one["engine"]: one for one in later["engines"]}, engines)
        self.assertEqual([point[1:] for point in later["points"]], [point[1:] for point in points])
        for shown, kept in zip(later["points"], points):
            self.assertAlmostEqual(shown[0], kept[0], places=2)

    def test_a_history_is_made_once_a_second_however_many_begin_to_watch(self) -> None:
        self.tick()
        self.watch()
        first = self.listener.given[-1][1]
        for _ in range(5):
            self.watch()
            self.assertIs(self.listener.given[-1][1], first)
        self.listener.wished = True
        self.tick()
        self.assertIsNot(self.listener.given[-1][1], first)
        self.assertTrue(self.listener.given[-1][0])

    def test_while_nobody_watches_no_text_is_made_and_none_is_kept(self) -> None:
        asked = []
        self.ticker._view._sources = self.sources._replace(engines=lambda: asked.append(1) or [])
        self.watch()
        self.tick()
        self.assertTrue(self.ticker._view._points)
        self.listener.any = False
        count = len(asked)
        for _ in range(5):
            self.tick(event())
        self.assertEqual(len(asked), count)
        self.assertEqual((self.ticker._view._points, self.ticker._view._said), ({}, {}))
        self.assertEqual(len(self.listener.given), 2)
        self.assertEqual(len(self.watch()["points"]), 6)

    def test_a_wall_clock_that_is_set_moves_no_point_and_has_all_told_anew(self) -> None:
        for _ in range(3):
            self.tick()
        self.watch()
        self.tick()
        for jump_s in (-40 * JUMP_S, 1e6):
            self.wall_s += jump_s
            self.tick()
            tick, _, anew = self.listener.given[-1]
            self.assertEqual((tick, anew), (b"", True))
            times = [point[0] for point in self.last_history()["points"]]
            self.assertEqual([round(b - a, 6) for a, b in zip(times, times[1:])], [1] * (len(times) - 1))
            self.assertEqual(times[-1], self.wall_s)
            self.tick()
            self.last_tick()

    def test_after_missed_seconds_all_is_told_anew(self) -> None:
        self.watch()
        self.tick()
        self.tick(event(), seconds=5)
        self.assertTrue(self.listener.given[-1][2])
        self.assertEqual([point[1] for point in self.last_history()["points"]], [0, 0, 0, 0, 0, 1])
        self.tick()
        self.assertEqual(self.last_tick()["point"][1], 0)
        self.tick(seconds=3 * POINTS)
        self.assertEqual(len(self.ticker._view._points), POINTS)

    def test_an_error_has_the_time_of_the_attempt_or_of_when_it_was_seen(self) -> None:
        self.engines = [ENGINE]
        self.watch()
        self.engines = [ENGINE._replace(last_error="reset")]
        self.tick(event(attempt_records=(attempt(0.1, outcome="reset"),)))
        self.assertEqual(self.last_tick()["engines"][0]["last_error_at"], 1e9)
        self.engines = [ENGINE._replace(last_error="no answer to a probe")]
        self.tick()
        self.assertEqual(self.last_tick()["engines"][0]["last_error_at"], self.wall_s)
        self.tick()
        self.assertEqual(self.last_tick()["engines"], [])
        self.pass_time(0.5)
        self.ticker.failed("m", "a")
        self.tick(seconds=0.5)
        self.assertEqual(self.last_tick()["engines"][0]["last_error_at"], self.wall_s - 0.5)

    def test_a_long_history_lets_others_have_their_turn(self) -> None:
        for _ in range(POINTS):
            self.tick()
        self.watch()
        self.assertGreater(self.pauses, POINTS // liveview.AT_ONCE - 2)

    def test_no_text_of_anybody_and_no_name_is_told(self) -> None:
        self.watch()
        extra = {"request_body": "the prompt", "answer_body": "the answer"}
        self.tick(event(extra=extra, path="/the%20answer"[:4], error="not_found"), event(extra=extra))
        self.watch()
        for tick, history, _ in self.listener.given:
            for secret in SECRETS:
                self.assertNotIn(secret.encode(), tick + history)

    def test_what_a_client_has_made_up_is_one_line_of_ascii(self) -> None:
        self.watch()
        name = 'm\n\ndata: {"x"}\u2028\ud800<script>' + "x" * 300
        self.tick(event(model=name, path=f"/{name}", error="not_found", id="\n\n"))
        (request,) = self.last_tick()["requests"]
        self.assertEqual((request["model"], request["path"]), (name, f"/{name}"[: live.PATH_CHARS]))


class TickerTest(LiveTest):
    def test_an_error_in_one_second_does_not_end_the_next(self) -> None:
        ticker = LiveTicker(self.series, self.sources, self.raise_once(), self.errors.append, pause=self.pause)
        seen: list[int] = []
        ticker._clock = self.steps_of(ticker, seen)
        ticker.wake()
        ticker._run()
        self.assertFalse(ticker._wake.is_set())  # or it would never wait again
        self.assertEqual([str(error) for error in self.errors], ["once"])
        self.assertEqual(self.series.number, 3)

    def raise_once(self) -> Callable[[], live.Gauges]:
        raised: list[int] = []

        def gauges() -> live.Gauges:
            if not raised:
                raised.append(1)
                raise RuntimeError("once")
            return (0, 0, 0)

        return gauges

    def steps_of(self, ticker: LiveTicker, seen: list[int]) -> Callable[[], float]:
        """A clock that is always a second further than the ticker waits for, until three seconds are over."""

        def clock() -> float:
            seen.append(1)
            if self.series.number >= 2:
                ticker._closing = True
            return ticker._next_s

        return clock

    def test_it_ends_though_it_has_never_begun(self) -> None:
        self.ticker.close(1.0)

    def test_the_figures_of_an_empty_second(self) -> None:
        self.assertEqual(
            liveview.point_text(array("d", [0, 0, *[math.nan] * 5, 1e7, 12, 3, 0, 0, 0, 0, 1 / 3])),
            "0,0,null,null,null,null,null,10000000,12,3,0,0,0,0,0.333333333",
        )

    def test_a_mean_is_one(self) -> None:
        values = [random.Random(1).random() for _ in range(100)]
        self.tick(event(attempt_records=tuple(attempt(value) for value in values)))
        mean: Optional[float] = self.series.last_sparks()["m", "a"]
        self.assertAlmostEqual(mean or 0, statistics.fmean(values) * 1e3, places=2)


if __name__ == "__main__":
    unittest.main()
