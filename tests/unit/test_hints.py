"""Engines whose breakers have opened at other gateways: what is told, what is believed, and for how long."""

from __future__ import annotations

import time
import unittest
from random import Random
from typing import Any, cast

from gateway.routing.pool import ModelPool
from gateway.routing.retry import Outcome
from gateway.routing.router import Router
from gateway.routing.specs import FleetSpec, model_from
from gateway.routing.standing import HINTED, StateChange
from gateway.shared.hints import Hints, digest_of
from gateway.shared.line import Job, Line

ERROR = Outcome("error", "the engine answered 500", 500)


class PoolTest(unittest.TestCase):
    def setUp(self) -> None:
        self.now_s = 100.0
        spec = model_from("x", [f"http://x{i}:8000/v1" for i in range(3)])
        self.router = Router(FleetSpec((spec,)), rng=Random(5), clock=lambda: self.now_s)
        self.pool: ModelPool = self.router.pools["x"]
        self.ids = [engine.id for engine in self.pool.engines]

    def states(self) -> list[str]:
        return [engine.state(self.now_s) for engine in self.pool.engines]

    def test_an_engine_is_left_alone_for_the_told_time_and_then_tried(self) -> None:
        change = self.pool.hint(self.ids[0], 4.0)
        self.assertEqual(change, StateChange("x", self.ids[0], "up", "open", HINTED))
        for _ in range(20):
            lease = self.pool.acquire((), b"")
            assert lease is not None
            self.assertNotEqual(lease.engine.id, self.ids[0])
        self.now_s += 4.0
        leases = [self.pool.acquire((), b"") for _ in range(20)]
        on_trial = [one for one in leases if one is not None and one.engine.id == self.ids[0]]
        self.assertEqual([one.trial for one in on_trial], [True])
        self.pool.settle(on_trial[0], Outcome("ok"), 0.01)
        self.assertEqual(self.states(), ["up"] * 3)

    def test_no_hint_lasts_longer_than_a_breaker_of_ones_own(self) -> None:
        self.pool.hint(self.ids[0], 1e9)
        self.now_s += 60.0
        self.assertTrue(self.pool.engines[0].available(self.now_s))

    def test_the_last_engine_that_is_in_stays_in(self) -> None:
        for engine_id in (*self.ids, *self.ids):
            self.pool.hint(engine_id, 5.0)
        self.assertEqual(self.states(), ["open", "open", "up"])

    def test_what_is_known_here_counts_more(self) -> None:
        others = self.pool.engines[1:]
        for _ in range(5):
            lease = self.pool.acquire(others, b"")
            assert lease is not None
            self.pool.settle(lease, ERROR, 0.01)
        until_s = self.pool.engines[0].breaker.until_s
        self.assertIsNone(self.pool.hint(self.ids[0], 50.0))
        self.assertEqual(self.pool.engines[0].breaker.until_s, until_s)
        self.pool.set_draining(self.ids[1], True)
        self.assertIsNone(self.pool.hint(self.ids[1], 5.0))
        with self.assertRaises(KeyError):
            self.pool.hint("nobody", 5.0)


class HintsTest(unittest.TestCase):
    def setUp(self) -> None:
        spec = model_from("x", [f"http://x{i}:8000/v1" for i in range(3)])
        self.router = Router(FleetSpec((spec,)), rng=Random(5), clock=time.monotonic)
        self.pool: ModelPool = self.router.pools["x"]
        self.jobs: list[Job] = []
        self.changes: list[StateChange] = []
        self.is_open = False
        self.hints = Hints(cast(Line, self), b"me")
        self.hints.bind(lambda: self.router.pools, self.changes.append)

    def tell(self, job: Job) -> None:
        self.jobs.append(job)

    def hear(self, *entries: tuple[Any, ...]) -> tuple[Any, ...]:
        """Read these; returns what is asked for next."""
        [job] = self.hints.beat()
        assert job.heard is not None
        job.heard([value for entry in entries for value in entry])
        [job] = self.hints.beat()
        return job.command(False)[4:]

    def test_an_opening_is_told_with_its_time_and_without_a_name(self) -> None:
        engine = self.pool.engines[0]
        engine.breaker.until_s = time.monotonic() + 5.0
        self.hints.changed(StateChange("x", engine.id, "up", "open", "500"))
        [job] = self.jobs
        origin, digest, left_ms = job.command(False)[-3:]
        self.assertEqual((origin, digest), (b"me", digest_of("http://x0:8000/v1", "x")))
        self.assertIn(left_ms, range(1, 5001))
        self.assertNotIn(b"x0", digest)

    def test_what_is_no_opening_or_a_hint_itself_is_not_told(self) -> None:
        for change in (
            StateChange("x", self.pool.engines[0].id, "open", "up", ""),
            StateChange("x", self.pool.engines[0].id, "up", "open", HINTED),
            StateChange("y", self.pool.engines[0].id, "up", "open", "500"),
            StateChange("x", self.pool.engines[0].id, "up", "open", "its time is over already"),
        ):
            self.hints.changed(change)
        self.is_open = True
        self.pool.engines[0].breaker.until_s = time.monotonic() + 5.0
        self.hints.changed(StateChange("x", self.pool.engines[0].id, "up", "open", "500"))
        self.assertEqual(self.jobs, [])

    def test_hints_of_others_are_applied_to_the_same_engine_of_the_same_model_once(self) -> None:
        x0 = digest_of("http://x0:8000/v1", "x")
        asked = self.hear(
            (b"1-0", b"me", x0, 5000),
            (b"2-0", b"you", digest_of("http://x1:8000/v1", "y"), 5000),
            (b"3-0", b"you", x0, -1),
            (b"4-0", b"you", b"garbage", 5000),
            (b"5-0", b"you", x0, 5000),
            (b"6-0", b"you", x0, 5000),
        )
        self.assertEqual([change[1:4] for change in self.changes], [(self.pool.engines[0].id, "up", "open")])
        self.assertEqual(asked[0], b"6-0")

    def test_what_is_no_reply_is_passed_over(self) -> None:
        [job] = self.hints.beat()
        assert job.heard is not None
        for reply in (None, b"x", [], [b"1-0"], 7):
            job.heard(reply)
        self.assertEqual(self.changes, [])


if __name__ == "__main__":
    unittest.main()
