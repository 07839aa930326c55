"""Telemetry's thread: everything counted, everything written, nobody held up."""

from __future__ import annotations

import io
import json
import threading
import time
import unittest
from collections.abc import Sequence
from functools import partial
from typing import Any, Callable
from unittest import mock

from gateway.telemetry import exposition, observe
from gateway.telemetry.events import RequestEvent
from gateway.telemetry.metrics import GatewayMetrics
from gateway.telemetry.observe import Observer, Telemetry
from gateway.telemetry.registry import Registry


def event(request_id: str = "r", **changes: Any) -> RequestEvent:
    return RequestEvent(1.0, request_id, "POST", "/v1", 200, None, 0.25)._replace(**changes)


def wait_until(condition: Callable[[], bool]) -> bool:
    deadline_s = time.monotonic() + 10
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.002)
    return True


class Pipe(io.StringIO):
    """A stream that can block, fail, and tell how it was used."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = threading.Event()
        self.opened.set()
        self.entered = threading.Event()
        self.error: OSError | None = None
        self.writes = 0

    def write(self, text: str) -> int:
        self.entered.set()
        self.writes += 1
        self.opened.wait(30)
        if self.error is not None:
            raise self.error
        return super().write(text)

    def block(self) -> None:
        self.entered.clear()
        self.opened.clear()

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.getvalue().splitlines()]


class TelemetryFixture(unittest.TestCase):
    """A pipe, a registry, and a telemetry that is closed at the end."""

    def setUp(self) -> None:
        self.pipe = Pipe()
        self.registry = Registry()
        self.metrics = GatewayMetrics(self.registry, lambda: {"13b": "13b"}, {"/v1"})

    def start(self, level: str = "info", log_format: str = "json", observers: Sequence[Observer] = ()) -> Telemetry:
        telemetry = Telemetry(self.pipe, log_format, level, self.metrics, observers)
        self.addCleanup(telemetry.close, 10)
        self.addCleanup(self.pipe.opened.set)
        return telemetry

    def counted(self, name: str = "gateway_requests_total") -> int:
        lines = exposition.text(self.registry.collect()).decode().splitlines()
        return sum(int(line.split()[-1]) for line in lines if line.startswith(name))

    def block_on_first_line(self, telemetry: Telemetry) -> None:
        self.pipe.block()
        telemetry.emit(event("first"))
        self.assertTrue(self.pipe.entered.wait(10))


class TelemetryTest(TelemetryFixture):
    def test_an_event_is_counted_observed_and_written_without_being_asked(self) -> None:
        seen: list[RequestEvent] = []
        telemetry = self.start(observers=[seen.extend])
        telemetry.emit(event("r1"))
        self.assertTrue(wait_until(lambda: len(self.pipe.getvalue()) > 0))
        self.assertEqual(self.pipe.lines()[0]["request_id"], "r1")
        self.assertEqual(seen, [event("r1")])
        self.assertEqual(self.counted(), 1)

    def test_many_threads_lose_nothing_and_keep_their_order(self) -> None:
        telemetry = self.start()

        def emit(name: str) -> None:
            for i in range(500):
                telemetry.emit(event(f"{name}:{i}"))
                if i % 100 == 0:
                    telemetry.flush(10)
                elif i % 3 == 0:
                    telemetry.help(2)

        threads = [threading.Thread(target=emit, args=(str(n),)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        self.assertTrue(telemetry.close(20))
        self.assertEqual(self.counted(), 3000)
        ids = [line["request_id"] for line in self.pipe.lines()]
        self.assertEqual(len(ids), 3000)
        for n in range(6):
            expected = [f"{n}:{i}" for i in range(500)]
            self.assertEqual([i for i in ids if i.startswith(f"{n}:")], expected)

    def test_lines_are_written_in_batches(self) -> None:
        telemetry = self.start()
        self.block_on_first_line(telemetry)
        lines, writes = len(self.pipe.lines()), self.pipe.writes
        for i in range(observe.AT_ONCE * 2):
            telemetry.emit(event(str(i)))
        self.pipe.opened.set()
        self.assertTrue(telemetry.close(10))
        self.assertEqual(len(self.pipe.lines()) - lines, observe.AT_ONCE * 2 + 1)
        self.assertEqual(self.pipe.writes - writes, 2)  # behind the one that was blocked

    def test_who_helps_counts_what_waits_and_leaves_the_writing(self) -> None:
        seen: list[RequestEvent] = []
        telemetry = self.start("warning", observers=[seen.extend])
        self.pipe.block()
        telemetry.log("error", "blocks")
        self.assertTrue(self.pipe.entered.wait(10))
        for i in range(5):
            telemetry.emit(event(str(i), status=200 + i % 2 * 300))
        telemetry.help(3)
        self.assertEqual([e.request_id for e in seen], ["0", "1", "2"])
        telemetry.help(9)
        telemetry.help(9)  # nothing is left
        self.assertEqual(len(seen), 5)
        self.assertEqual(self.counted(), 5)
        self.pipe.opened.set()
        self.assertTrue(telemetry.close(10))
        self.assertEqual([line.get("request_id") for line in self.pipe.lines()], [None, "1", "3"])

    def test_who_helps_never_waits_for_another_who_counts(self) -> None:
        gate, entered = threading.Event(), threading.Event()

        def hold(events: Sequence[RequestEvent]) -> None:
            entered.set()
            gate.wait(20)

        telemetry = self.start(observers=[hold])
        self.addCleanup(gate.set)
        telemetry.emit(event("1"))
        self.assertTrue(entered.wait(10))
        telemetry.emit(event("2"))
        telemetry.help(9)
        self.assertEqual(self.counted(), 1)
        gate.set()
        self.assertTrue(telemetry.close(10))
        self.assertEqual(self.counted(), 2)

    def test_flush_counts_everything_while_the_stream_is_blocked(self) -> None:
        telemetry = self.start()
        self.block_on_first_line(telemetry)
        for _ in range(100):
            telemetry.emit(event())
        self.assertTrue(telemetry.flush(5))
        self.assertEqual(self.counted(), 101)
        self.assertEqual(self.pipe.getvalue(), "")
        self.pipe.opened.set()
        self.assertTrue(telemetry.close(10))
        self.assertEqual(len(self.pipe.lines()), 101)

    def test_flush_waits_for_a_drain_under_way_but_not_for_ever(self) -> None:
        entered, leave = threading.Event(), threading.Event()

        def slow(_: Sequence[RequestEvent]) -> None:
            entered.set()
            leave.wait(30)

        telemetry = self.start(observers=[slow])
        self.addCleanup(leave.set)
        telemetry.emit(event())
        self.assertTrue(entered.wait(10))
        self.assertFalse(telemetry.flush(0.01))
        leave.set()
        self.assertTrue(telemetry.flush(10))

    def test_a_blocked_stream_drops_lines_beyond_the_bound_and_no_counts(self) -> None:
        telemetry = self.start()
        self.block_on_first_line(telemetry)
        with mock.patch.object(observe, "MAX_WAITING_LINES", 10):
            for i in range(25):
                telemetry.emit(event(str(i)))
            self.assertTrue(telemetry.flush(5))
        self.assertEqual(self.counted(), 26)
        self.assertEqual(self.counted("gateway_log_lines_dropped_total"), 15)
        self.pipe.opened.set()
        self.assertTrue(telemetry.close(10))
        lines = self.pipe.lines()
        self.assertEqual([x["request_id"] for x in lines[1:11]], [str(i) for i in range(10)])
        self.assertEqual((lines[11]["event"], lines[11]["lines"]), ("log_lines_dropped", 15))
        self.assertEqual(len(lines), 12)

    def test_without_scrapes_a_blocked_stream_does_not_pile_up_uncounted_events(self) -> None:
        telemetry = self.start()
        self.block_on_first_line(telemetry)
        with mock.patch.object(observe, "MAX_WAITING_EVENTS", 20):
            for _ in range(50):
                telemetry.emit(event())
        self.assertGreaterEqual(self.counted(), 42)

    def test_a_failing_stream_is_counted_and_used_again_when_it_recovers(self) -> None:
        telemetry = self.start()
        self.pipe.error = OSError(28, "No space left on device")
        for i in range(3):
            telemetry.emit(event(str(i)))
        self.assertTrue(wait_until(lambda: self.counted("gateway_log_lines_dropped_total") == 3))
        self.pipe.error = None
        telemetry.emit(event("after"))
        self.assertTrue(wait_until(lambda: "log_lines_dropped" in self.pipe.getvalue()))
        telemetry.emit(event("later"))
        self.assertTrue(telemetry.close(10))
        self.assertEqual(self.counted(), 5)
        lines = self.pipe.lines()
        self.assertEqual(len(lines), 3)
        self.assertEqual(lines[0]["request_id"], "after")
        self.assertEqual((lines[1]["event"], lines[1]["lines"]), ("log_lines_dropped", 3))

    def test_a_closed_stream_does_not_end_the_counting(self) -> None:
        telemetry = self.start()
        self.pipe.close()
        telemetry.emit(event())
        self.assertTrue(wait_until(lambda: self.counted("gateway_log_lines_dropped_total") == 1))
        telemetry.emit(event())
        self.assertTrue(telemetry.close(10))
        self.assertEqual(self.counted(), 2)

    def test_a_line_that_cannot_be_formatted_costs_only_itself(self) -> None:
        class Sulky:
            def __str__(self) -> str:
                raise RuntimeError("no")

            __repr__ = __str__

        telemetry = self.start()
        telemetry.log("info", "bad", value=Sulky())
        telemetry.emit(event("good"))
        self.assertTrue(telemetry.close(10))
        self.assertEqual(self.pipe.lines()[0]["request_id"], "good")
        self.assertEqual(self.counted("gateway_log_lines_dropped_total"), 1)

    def test_a_raising_observer_is_reported_once_and_the_others_go_on(self) -> None:
        seen: list[RequestEvent] = []

        def broken(_: Sequence[RequestEvent]) -> None:
            raise KeyError("ledger")

        telemetry = self.start(observers=[broken, seen.extend])
        for i in range(3):
            telemetry.emit(event(str(i)))
            self.assertTrue(telemetry.flush(10))
        self.assertTrue(telemetry.close(10))
        self.assertEqual(len(seen), 3)
        self.assertEqual(self.counted(), 3)
        reports = [line for line in self.pipe.lines() if line["event"] == "observer_failed"]
        self.assertEqual(len(reports), 1)
        self.assertIn("broken", reports[0]["observer"])
        self.assertEqual(reports[0]["error"], "KeyError: 'ledger'")

    def test_levels_filter_lines_and_never_counts(self) -> None:
        expected = {
            "debug": ["probe", "good", "bad", "d", "i", "w", "e"],
            "info": ["good", "bad", "i", "w", "e"],
            "warning": ["bad", "w", "e"],
            "error": ["e"],
        }
        for level, names in expected.items():
            with self.subTest(level=level):
                self.setUp()
                telemetry = self.start(level)
                telemetry.emit(event("probe", method="GET", path="/healthz"))
                telemetry.emit(event("good"))
                telemetry.emit(event("bad", status=502))
                for of in ("debug", "info", "warning", "error"):
                    telemetry.log(of, of[0])
                self.assertTrue(telemetry.close(10))
                found = [line.get("request_id", line["event"]) for line in self.pipe.lines()]
                self.assertEqual(found, names)
                self.assertEqual(self.counted(), 3)

    def test_log_carries_level_and_fields_in_text_too(self) -> None:
        telemetry = self.start(log_format="text")
        telemetry.log("warning", "engine_down", engine="h:1")
        self.assertTrue(telemetry.close(10))
        self.assertTrue(self.pipe.getvalue().endswith(f"Z WARN  {'engine_down':31} engine=h:1\n"))

    def test_a_slow_request_is_written_where_only_warnings_are(self) -> None:
        for log_format in ("json", "text"):
            for slow_s, names in ((0.0, []), (2.0, ["slow"])):
                self.setUp()
                telemetry = Telemetry(self.pipe, log_format, "warning", self.metrics, slow_s=slow_s)
                self.addCleanup(telemetry.close, 10)
                telemetry.emit(event("slow", latency_s=2.5))
                telemetry.emit(event("quick", latency_s=1.5))
                self.assertTrue(telemetry.close(10))
                found = [name for name in ("slow", "quick") if name in self.pipe.getvalue().replace("slow:", "")]
                self.assertEqual([name for name in found if name != "slow" or slow_s], names)
                self.assertEqual(len(self.pipe.getvalue().splitlines()), len(names))
                self.assertEqual(self.counted(), 2)

    def test_wrong_settings_are_refused_before_a_thread_starts(self) -> None:
        before = set(threading.enumerate())
        with self.assertRaisesRegex(ValueError, "xml"):
            Telemetry(self.pipe, "xml", "info", self.metrics)
        with self.assertRaisesRegex(ValueError, "loud"):
            Telemetry(self.pipe, "json", "loud", self.metrics)
        self.assertEqual([one for one in threading.enumerate() if one not in before], [])


class SleepTest(TelemetryTest):
    """The same promises, and two more, when the thread falls asleep at once, and for long."""

    def setUp(self) -> None:
        super().setUp()
        for name, value in (("QUIET_DRAINS", 1), ("DRAIN_INTERVAL_S", 0.001), ("ASLEEP_S", 60.0)):
            patch = mock.patch.object(observe, name, value)
            patch.start()
            self.addCleanup(patch.stop)

    def test_every_event_emitted_at_any_moment_of_falling_asleep_is_written(self) -> None:
        telemetry = self.start()
        for i in range(200):
            telemetry.emit(event(str(i)))
            if i % 3 == 0:
                telemetry.flush(10)
            elif i % 3 == 1:
                telemetry.help(10)
            mark = f'"request_id": "{i}"'
            # Sleeping for 60 s on a line would fail here.
            self.assertTrue(wait_until(partial(self.is_written, mark)), mark)

    def test_an_event_that_arrives_between_the_last_drain_and_the_sleep(self) -> None:
        write = Telemetry._write
        late = [event("late")]

        def write_then_miss_one(telemetry: Telemetry) -> bool:
            written = write(telemetry)
            if late:
                # What emit does when it still finds the thread awake: no wake-up.
                telemetry._waiting.append(late.pop())
            return written

        with mock.patch.object(Telemetry, "_write", write_then_miss_one):
            self.start()
            self.assertTrue(wait_until(partial(self.is_written, "late")))

    def test_lines_that_a_flush_takes_from_under_the_sleeper_are_written(self) -> None:
        telemetry = self.start()
        self.assertTrue(wait_until(lambda: telemetry._state == observe._ASLEEP))
        telemetry._waiting.append(event("taken"))
        self.assertTrue(telemetry.flush(10))
        self.assertTrue(wait_until(partial(self.is_written, "taken")))

    def test_lines_that_a_helper_takes_from_under_the_sleeper_are_written(self) -> None:
        telemetry = self.start()
        self.assertTrue(wait_until(lambda: telemetry._state == observe._ASLEEP))
        telemetry._waiting.append(event("taken"))
        telemetry.help(1)
        self.assertTrue(wait_until(partial(self.is_written, "taken")))

    def is_written(self, text: str) -> bool:
        return text in self.pipe.getvalue()

    def test_close_wakes_the_sleeper(self) -> None:
        telemetry = self.start()
        self.assertTrue(wait_until(lambda: telemetry._state == observe._ASLEEP))
        self.assertTrue(telemetry.close(10))


class CloseTest(TelemetryFixture):
    def test_gives_up_on_a_blocked_stream_with_everything_counted(self) -> None:
        telemetry = self.start()
        self.block_on_first_line(telemetry)
        telemetry.emit(event("second"))
        self.assertFalse(telemetry.close(0.05))
        self.assertEqual(self.counted(), 2)

    def test_ends_the_thread(self) -> None:
        telemetry = self.start()
        self.assertTrue(telemetry.close(10))
        self.assertNotIn("telemetry", [thread.name for thread in threading.enumerate()])

    def test_what_comes_after_is_written_by_the_next_close(self) -> None:
        telemetry = self.start()
        self.assertTrue(telemetry.close(10))
        telemetry.emit(event("late"))
        telemetry.log("info", "stopped")
        self.assertTrue(telemetry.close(10))
        self.assertEqual(len(self.pipe.lines()), 2)
        self.assertEqual(self.counted(), 1)


if __name__ == "__main__":
    unittest.main()
