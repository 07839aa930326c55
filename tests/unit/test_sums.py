"""The metrics of all processes, asked of any of them."""

from __future__ import annotations

import unittest
from typing import Any, Optional

from gateway.agreeing.sums import PROCESSES, SETTLE_LOOKS, Sums
from gateway.processes.bus import Alone, Bus
from gateway.telemetry.exposition import Family
from gateway.telemetry.merging import EARLIEST, LEADER, SUM
from gateway.telemetry.registry import Registry
from tests.wires import Wires


class Process:
    """One process: its counter, its gauges, its sums."""

    def __init__(self, bus: Bus, began: float = 0.0) -> None:
        self.bus = bus
        self.registry = Registry()
        self.requests = self.registry.counter("requests_total", "R.").labels()
        self.busy = self.registry.gauge("busy", "B.", merge=SUM).labels()
        self.said = self.registry.gauge("said", "S.", merge=LEADER).labels()
        self.registry.callback("began", "gauge", "B.", (), lambda: [((), began)], EARLIEST)
        self.lines: list[tuple[Any, ...]] = []
        self.pauses = 0
        self.waiting = 0  # requests that have been answered, and not been counted
        self.sums = Sums(bus, self.registry, lambda *line, **fields: self.lines.append((*line, fields)), self._sleep)
        self.sums.bind(lambda: self._settled)
        self.bus.start()

    def _sleep(self, pause_s: float) -> None:
        self.pauses += 1

    def _settled(self) -> bool:
        if self.waiting and self.pauses >= 3:
            self.requests.inc(self.waiting)
            self.waiting = 0
        return not self.waiting

    def seen(self, names: Optional[list[str]] = None) -> dict[str, float]:
        """What a scrape here shows, by name."""
        families: list[Family] = self.sums.collect(names)
        found: dict[str, float] = {}
        for family in families:
            for labels, value in family.series:
                assert isinstance(value, (int, float))
                found[" ".join((family.name, *labels))] = value
        return found


class SumsTest(unittest.TestCase):
    def setUp(self) -> None:
        self.wires = Wires(count=3)

    def three(self) -> list[Process]:
        processes = [Process(self.wires.bus(), began=10.0 + slot) for slot in range(3)]
        for number, process in enumerate(processes):
            process.requests.inc(10**number)
            process.busy.set(number + 1)
            process.said.set(number)
        return processes

    def test_any_process_shows_the_sum_of_all(self) -> None:
        for process in self.three():
            seen = process.seen()
            self.assertEqual(
                (seen["requests_total"], seen["busy"], seen["said"], seen["began"]), (111, 6, 0, 10.0), process.bus.slot
            )
            self.assertEqual((seen[f"{PROCESSES} counted"], seen[f"{PROCESSES} silent"]), (3, 0))

    def test_what_has_been_answered_elsewhere_is_counted_before_it_is_told(self) -> None:
        processes = self.three()
        processes[2].waiting = 5
        self.assertEqual(processes[0].seen()["requests_total"], 116)
        self.assertGreater(processes[2].pauses, 0)

    def test_one_that_cannot_count_now_is_waited_for_but_not_for_ever(self) -> None:
        processes = self.three()
        processes[1].waiting, processes[1].pauses = 5, -(10**6)
        self.assertEqual(processes[0].seen()["requests_total"], 111)
        self.assertEqual(processes[1].pauses, SETTLE_LOOKS - 10**6)

    def test_what_a_process_has_counted_outlives_it(self) -> None:
        processes = self.three()
        processes[1].sums.push()
        processes[1].bus.close(1.0)
        for process in (processes[0], processes[2]):
            seen = process.seen()
            self.assertEqual((seen["requests_total"], seen["busy"], seen[f"{PROCESSES} counted"]), (111, 4, 2))

    def test_those_that_have_ended_are_one_sum_and_a_start_does_not_move_on(self) -> None:
        processes = self.three()
        for process in processes[:2]:
            process.sums.push()
            process.bus.close(1.0)
        later = Process(self.wires.bus(0), began=99.0)
        later.requests.inc(1000)
        self.assertEqual(len(self.wires.left), 1)
        for process in (processes[2], later):
            seen = process.seen()
            self.assertEqual((seen["requests_total"], seen["began"]), (1111, 10.0))

    def test_no_count_goes_down_when_who_has_shown_it_is_killed(self) -> None:
        processes = self.three()
        processes[1].requests.inc(7)
        self.assertEqual(processes[0].seen()["requests_total"], 118)
        self.wires.end(processes[1].bus)  # type: ignore[arg-type]
        self.assertEqual(processes[0].seen()["requests_total"], 118)
        processes[0].requests.inc(2)
        self.assertEqual(processes[0].seen()["requests_total"], 120)  # shown here, of this process
        self.wires.end(processes[0].bus)  # type: ignore[arg-type]
        self.assertEqual(processes[2].seen()["requests_total"], 120)

    def test_what_was_read_earlier_is_not_left_in_the_place_of_what_was_shown_since(self) -> None:
        processes = self.three()
        asked: list[float] = []

        def read() -> list[tuple[tuple[str, ...], float]]:
            if not asked:  # while what is pushed is read, somebody is shown more
                asked.append(0)
                processes[1].requests.inc(5)
                asked.append(processes[0].seen()["requests_total"])
            return []

        processes[1].registry.callback("g", "gauge", "G.", (), read, SUM)
        processes[1].sums.push()
        self.assertEqual(asked[1], 116)
        self.wires.end(processes[1].bus)  # type: ignore[arg-type]
        self.assertEqual(processes[0].seen()["requests_total"], 116)

    def test_one_that_does_not_answer_is_told_of_and_is_there_with_what_it_has_left(self) -> None:
        processes = self.three()
        processes[2].sums.push()
        processes[2].requests.inc(50)
        processes[2].bus.silent = True  # type: ignore[attr-defined]
        for _ in range(2):
            seen = processes[0].seen()
            self.assertEqual((seen["requests_total"], seen["busy"]), (111, 3))
            self.assertEqual((seen[f"{PROCESSES} counted"], seen[f"{PROCESSES} silent"]), (2, 1))
        processes[2].bus.silent = False  # type: ignore[attr-defined]
        self.assertEqual(processes[0].seen()["requests_total"], 161)
        self.assertEqual(
            [(level, event, fields["silent"]) for level, event, fields in processes[0].lines],
            [("warning", "processes_silent", 1), ("info", "processes_silent", 0)],
        )

    def test_one_of_another_version_that_cannot_be_read_is_as_good_as_silent(self) -> None:
        processes = self.three()
        for answer in (
            {"leader": True, "families": [["x"]]},
            {"leader": True, "families": [1]},
            {},
            [[]],
            [["a", "b"]],
        ):
            processes[1].bus.on("metrics", lambda what, slot, answer=answer: answer)  # type: ignore[misc]
            seen = processes[0].seen()
            alive = isinstance(answer, dict)
            self.assertEqual((seen["requests_total"], seen[f"{PROCESSES} silent"]), (101, float(alive)), answer)

    def test_who_asks_for_some_gets_those_alone(self) -> None:
        processes = self.three()
        processes[1].sums.push()
        processes[1].bus.close(1.0)
        seen = processes[0].seen(["requests_total"])
        self.assertEqual(seen, {"requests_total": 111})

    def test_nothing_is_left_with_the_parent_while_nothing_changes(self) -> None:
        process = self.three()[0]
        process.registry.callback("process_cpu_seconds_total", "counter", "C.", (), lambda: [((), process.pauses)])
        process.sums.push()
        kept = process.bus.kept  # type: ignore[attr-defined]
        process.pauses += 1
        process.busy.inc()
        process.sums.push()
        self.assertIs(process.bus.kept, kept)  # type: ignore[attr-defined]
        process.requests.inc()
        process.sums.push()
        self.assertIsNot(process.bus.kept, kept)  # type: ignore[attr-defined]

    def test_a_process_by_itself_asks_nobody_and_shows_no_more_than_its_own(self) -> None:
        process = Process(Alone())
        process.requests.inc(3)
        self.assertFalse(process.sums.waits)
        own = {"requests_total": 3, "busy": 0, "said": 0, "began": 0.0}
        self.assertEqual(process.seen(), {**own, f"{PROCESSES} counted": 1, f"{PROCESSES} silent": 0})


if __name__ == "__main__":
    unittest.main()
