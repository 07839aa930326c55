"""Error budgets and burn rates, by a clock that the test turns."""

from __future__ import annotations

import json
import threading
import unittest
from typing import Any, Optional

from gateway.errors import ERRORS
from gateway.telemetry import slo
from gateway.telemetry.events import RequestEvent
from gateway.telemetry.slo import BUDGET_S, FAULTS, MINUTES, WINDOWS_S, SloFigures, Slos

CHAT = "/v1/chat/completions"


def event(error: Optional[str] = None, latency_s: float = 0.1, model: Optional[str] = "m", **more: Any) -> RequestEvent:
    status = 200 if error is None else ERRORS[error].status
    return RequestEvent(0.0, "id", "POST", more.pop("path", CHAT), status, error, latency_s, model=model, **more)


class SloCase(unittest.TestCase):
    def setUp(self) -> None:
        self.now_s = 1_000_000.0
        self.known = {"m": "m", "alias": "m", "n": "n"}

    def slos(self, availability: Optional[float] = 0.99, latency_ms: Optional[float] = None) -> Slos:
        return Slos(availability, latency_ms, frozenset({CHAT}), lambda: self.known, clock=lambda: self.now_s)

    def only(self, slos: Slos) -> SloFigures:
        figures = slos.read()
        self.assertEqual(len(figures), 1, figures)
        return figures[0]


class SloTest(SloCase):
    def test_a_budget_is_what_the_objective_leaves_over(self) -> None:
        slos = self.slos()
        slos.observe([event()] * 995 + [event("backend_error")] * 5)
        one = self.only(slos)
        self.assertAlmostEqual(one.remaining, 0.5)
        self.assertEqual({round(burn, 9) for burn in one.burn_by_s.values()}, {0.5})
        self.assertEqual(set(one.count_by_s.values()), {1000})

    def test_only_the_services_own_faults_spend_it(self) -> None:
        self.assertLessEqual({"internal_error", "overloaded", "queue_timeout", "backend_rate_limited"}, FAULTS)
        client = ("invalid_json", "rate_limit_exceeded", "budget_exceeded", "client_closed_request", "not_implemented")
        self.assertFalse(set(client) & FAULTS)
        slos = self.slos()
        slos.observe([event(), *(event(code) for code in client)])
        self.assertEqual(self.only(slos).count_by_s[300], 1)
        slos.observe([event(code) for code in FAULTS])
        self.assertEqual(self.only(slos).count_by_s[300], 1 + len(FAULTS))
        self.assertLess(self.only(slos).remaining, 0)

    def test_a_stream_that_broke_counts_though_it_began_well(self) -> None:
        slos = self.slos()
        slos.observe([event("backend_error")._replace(status=200)])
        self.assertEqual(self.only(slos).burn_by_s[300], 1 / (1 - 0.99))

    def test_parts_of_requests_other_paths_and_unknown_models_do_not_count(self) -> None:
        slos = self.slos()
        slos.observe([event(path="/metrics"), event(model="x"), event(model=None), event(extra={"part_of": "id"})])
        self.assertEqual(slos.read(), [])

    def test_an_alias_counts_for_its_model(self) -> None:
        slos = self.slos()
        slos.observe([event(), event(model="alias")])
        self.assertEqual(self.only(slos).count_by_s[300], 2)

    def test_a_latency_is_that_of_the_first_event_for_streams(self) -> None:
        slos = self.slos(None, 1000)
        slos.observe([event(latency_s=1.0), event(latency_s=9.0, stream=True, ttft_s=0.5)])
        self.assertEqual((self.only(slos).remaining, self.only(slos).target), (1.0, 0.99))
        slos.observe([event(latency_s=1.1), event(latency_s=9.0, stream=True, ttft_s=1.1)])
        self.assertAlmostEqual(self.only(slos).burn_by_s[300], 50)

    def test_who_leaves_after_waiting_too_long_counts_as_late_and_failures_do_not(self) -> None:
        slos = self.slos(None, 1000)
        slos.observe([event("client_closed_request", 0.9), event("backend_error", 9.0)])
        self.assertTrue(not slos.read() or self.only(slos).count_by_s[300] == 0)
        slos.observe([event("client_closed_request", 1.1), event("client_closed_request", 9.0, ttft_s=0.1)])
        self.assertEqual((self.only(slos).count_by_s[300], self.only(slos).remaining), (1, 1 - 1 / (1 - 0.99)))

    def test_both_objectives_are_kept_apart_with_one_target(self) -> None:
        slos = self.slos(0.9, 1000)
        slos.observe([event(), event(latency_s=2.0), event("backend_error")])
        told = {one.objective: (one.target, one.count_by_s[300]) for one in slos.read()}
        self.assertEqual(told, {"availability": (0.9, 3), "latency": (0.9, 2)})

    def test_each_window_forgets_what_is_older(self) -> None:
        self.now_s = begin_s = 60_000.0
        slos = self.slos()
        slos.observe([event("backend_error")])
        for window_s in sorted(WINDOWS_S.values()):
            self.now_s = begin_s + window_s - 0.1
            self.assertEqual(self.only(slos).count_by_s[window_s], 1, window_s)
            self.now_s = begin_s + window_s
            self.assertEqual(self.only(slos).count_by_s[window_s], 0, window_s)

    def test_sums_are_those_of_the_minutes_however_time_goes_on(self) -> None:
        slos = self.slos()
        counted: list[tuple[float, int]] = []
        for step in range(3000):
            self.now_s += (step * 7919) % 400
            if step % 3:
                slos.observe([event()] * (step % 5))
                counted.append((self.now_s, step % 5))
            if step % 50 == 0 and slos.read():
                for window_s, count in self.only(slos).count_by_s.items():
                    since = self.now_s // 60 - window_s // 60
                    self.assertEqual(count, sum(n for at_s, n in counted if at_s // 60 > since), window_s)

    def test_after_days_of_silence_nothing_is_left(self) -> None:
        slos = self.slos()
        slos.observe([event("backend_error")] * 10)
        self.now_s += 5 * BUDGET_S
        self.assertEqual((self.only(slos).remaining, set(self.only(slos).count_by_s.values())), (1.0, {0}))
        slos.observe([event()])
        self.assertEqual(self.only(slos).count_by_s[BUDGET_S], 1)

    def test_requests_count_in_the_minute_in_which_they_ended_whenever_somebody_reads(self) -> None:
        self.now_s = 60_000.0 + 59.9
        slos = self.slos()
        slos.observe([event("backend_error")])
        self.now_s = 60_000.0 + 300
        slos.observe([event()])
        self.assertEqual((self.only(slos).count_by_s[300], self.only(slos).burn_by_s[300]), (1, 0.0))
        self.assertEqual(self.only(slos).count_by_s[1800], 2)

    def test_names_that_callers_invent_do_not_pile_up(self) -> None:
        slos = self.slos()
        for number in range(5000):
            slos.observe([event("overloaded", model=f"x{number}")])
        self.assertLessEqual(len(slos._counts), slo.NAMES_MAX + 1)
        self.assertEqual(slos.read(), [])

    def test_many_threads_lose_nothing(self) -> None:
        slos = self.slos()

        def count() -> None:
            for _ in range(300):
                slos.observe([event()])
                slos.read()

        threads = [threading.Thread(target=count) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        self.assertEqual(self.only(slos).count_by_s[300], 1200)

    def test_a_model_that_is_gone_is_forgotten(self) -> None:
        slos = self.slos()
        slos.observe([event(), event(model="n")])
        self.assertEqual([one.model for one in slos.read()], ["m", "n"])
        del self.known["n"]
        self.assertEqual([one.model for one in slos.read()], ["m"])

    def test_beyond_so_many_models_others_count_together(self) -> None:
        self.known = {f"m{number}": f"m{number}" for number in range(slo.MODELS_MAX + 5)}
        slos = self.slos()
        slos.observe([event(model=name) for name in self.known])
        figures = {one.model: one.count_by_s[300] for one in slos.read()}
        self.assertEqual((len(figures), figures["other"]), (slo.MODELS_MAX + 1, 5))

    def test_what_is_told_names_windows(self) -> None:
        slos = self.slos()
        slos.observe([event(), event("overloaded")])
        expected = {"model": "m", "objective": "availability", "target": 0.99, "budget_remaining": -49.0}
        self.assertEqual(slos.told(), [{**expected, "burn": {"1h": 50.0, "6h": 50.0, "3d": 50.0}}])


class SeveralProcessesTest(SloCase):
    """Two processes, each of which counts what its own requests were."""

    def shared(self) -> list[Slos]:
        both = [self.slos(latency_ms=100.0) for _ in range(2)]
        for slos in both:
            slos.shares = True
        return both

    def exchange(self, both: list[Slos]) -> None:
        """What each has counted since the last time, told to the other as JSON."""
        for number, told in enumerate([slos.take() for slos in both]):
            if told is not None:
                both[1 - number].add(json.loads(json.dumps(told)))

    def test_each_process_has_the_counts_of_all_once(self) -> None:
        both, alone = self.shared(), self.slos(latency_ms=100.0)
        batches = [
            [event()] * 7 + [event("backend_error")] * 2,
            [event(latency_s=0.5, model="alias")] * 3 + [event(model="n"), event("client_closed_request", 0.5)],
        ]
        for turn in range(4):
            for slos, batch in zip(both, batches):
                slos.observe(batch)
                alone.observe(batch)
            if turn % 2:
                self.exchange(both)
                self.now_s += 90.0
        self.exchange(both)
        for slos in both:
            self.assertEqual(slos.read(), alone.read())
            self.assertIsNone(slos.take())

    def test_what_others_have_told_is_not_told_on(self) -> None:
        first, second = self.shared()
        first.observe([event()])
        second.add(first.take() or {})
        second.read()
        self.assertIsNone(second.take())

    def test_a_new_process_takes_over_what_was_counted_for_days(self) -> None:
        old, new = self.shared()
        for minutes in (0, 1, 40, 300, 4000):
            old.observe([event()] * 9 + [event("backend_error"), event(latency_s=1.0, model="n")])
            self.now_s += 60.0 * minutes
        old.observe([event()])
        new.observe([event()] * 2)
        new.restore(json.loads(json.dumps(old.state())))
        self.assertEqual(new.read(), old.read())
        for _ in range(3):
            self.now_s += 3599.0
            self.assertEqual(new.read(), old.read())

    def test_minutes_that_are_not_kept_here_are_passed_over(self) -> None:
        _, new = self.shared()
        new.restore({"m": [[[MINUTES, 5, 5], [-1, 5, 5], [MINUTES - 1, 7, 0]], None]})
        minutes = new._models["m"][0]
        self.assertEqual(None if minutes is None else sum(minutes._total), 7)

    def test_one_process_keeps_nothing_to_tell(self) -> None:
        slos = self.slos()
        slos.observe([event()])
        slos.read()
        self.assertEqual(slos._untold, {})
