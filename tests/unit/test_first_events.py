"""A stream counts as good from its first event on: for the breaker, for a trial, for the engine's record."""

from __future__ import annotations

import json
import tempfile
import unittest
from pathlib import Path
from random import Random
from typing import Any, Optional

from gateway.routing.breaker import CLOSED, OPEN, Breaker, BreakerPolicy
from gateway.routing.engine import Engine
from gateway.routing.line import Lease
from gateway.routing.pool import ModelPool
from gateway.routing.retry import CANCELLED, OK, Outcome
from gateway.routing.router import Router
from gateway.routing.specs import EngineSpec, ModelSpec
from gateway.routing.standing import StateChange
from gateway.tools.decisionlog import header
from gateway.tools.replay import replay
from tests.support import load_settings

POLICY = BreakerPolicy()
BROKE = Outcome("truncated", "the engine's stream was cut short")


class Stream:
    """One stream as the breaker sees it."""

    def __init__(self, breaker: Breaker, now_s: float) -> None:
        self.breaker = breaker
        self.counted = breaker.answer(breaker.admit(now_s), now_s)

    def breaks(self, now_s: float) -> None:
        self.breaker.broke(*self.counted, now_s)


class BreakerTest(unittest.TestCase):
    def setUp(self) -> None:
        self.now_s = 1000.0
        self.breaker = Breaker(POLICY)

    def fail_often(self, times: int = 1) -> None:
        for _ in range(times):
            self.breaker.record(self.breaker.admit(self.now_s), True, self.now_s)

    def begin(self, count: int = 1) -> list[Stream]:
        return [Stream(self.breaker, self.now_s) for _ in range(count)]

    def open(self) -> None:
        self.fail_often(5)
        self.assertEqual(self.breaker.state, OPEN)
        self.now_s = self.breaker.until_s

    def test_open_streams_weigh_against_a_burst_of_failures(self) -> None:
        self.begin(6)
        self.fail_often(5)
        self.assertEqual(self.breaker.state, CLOSED)
        self.fail_often()
        self.assertEqual(self.breaker.state, OPEN)

    def test_a_stream_that_ends_well_is_one_outcome(self) -> None:
        self.begin(3)  # and no more is said of them
        self.fail_often(2)
        self.assertEqual(self.breaker.state, CLOSED)
        self.fail_often()
        self.assertEqual(self.breaker.state, OPEN)

    def test_a_broken_stream_is_one_failure_and_no_longer_good(self) -> None:
        for stream in self.begin(4):
            stream.breaks(self.now_s)
        self.assertEqual(self.breaker.state, CLOSED)  # four say too little
        (fifth,) = self.begin()
        self.assertEqual(self.breaker.state, CLOSED)
        fifth.breaks(self.now_s)
        self.assertEqual(self.breaker.state, OPEN)

    def test_what_was_good_is_taken_back_where_it_was_counted(self) -> None:
        streams = self.begin(5)
        self.now_s += POLICY.window_s / 2
        others = self.begin(6)
        for stream in streams:
            stream.breaks(self.now_s)
        self.assertEqual(self.breaker.state, CLOSED)  # five of eleven
        others[0].breaks(self.now_s)
        self.assertEqual(self.breaker.state, OPEN)  # six of eleven

    def test_a_break_counts_also_when_the_first_event_is_forgotten(self) -> None:
        streams = self.begin(5)
        self.now_s += 10 * POLICY.window_s
        for stream in streams:
            self.assertEqual(self.breaker.state, CLOSED)
            stream.breaks(self.now_s)
        self.assertEqual(self.breaker.state, OPEN)

    def test_a_trial_is_good_at_its_first_event_and_its_break_counts_later(self) -> None:
        self.open()
        ticket = self.breaker.admit(self.now_s)
        self.assertFalse(self.breaker.passes(self.now_s))
        trial = self.breaker.answer(ticket, self.now_s)
        self.assertEqual(self.breaker.state, CLOSED)
        self.fail_often(4)
        self.assertEqual(self.breaker.state, CLOSED)
        self.breaker.broke(*trial, self.now_s)
        self.assertEqual(self.breaker.state, OPEN)

    def test_a_break_from_before_the_last_change_of_state_is_ignored(self) -> None:
        (old,) = self.begin()
        self.open()
        (trial,) = self.begin()
        self.assertEqual(self.breaker.state, CLOSED)
        self.fail_often(4)
        old.breaks(self.now_s)
        self.assertEqual(self.breaker.state, CLOSED)
        trial.breaks(self.now_s)
        self.assertEqual(self.breaker.state, OPEN)

    def test_a_first_event_from_before_the_last_change_of_state_is_ignored(self) -> None:
        ticket = self.breaker.admit(self.now_s)
        self.open()
        trial = self.breaker.admit(self.now_s)
        late = self.breaker.answer(ticket, self.now_s)
        self.assertFalse(self.breaker.passes(self.now_s))  # the trial goes on
        self.breaker.broke(*late, self.now_s)
        self.breaker.record(trial, False, self.now_s)
        self.assertEqual(self.breaker.state, CLOSED)

    def test_the_counts_are_those_of_a_plain_list_of_outcomes(self) -> None:
        policy = BreakerPolicy(min_requests=1_000_000)  # it never opens
        for seed in range(20):
            rng = Random(seed)
            breaker, now_s = Breaker(policy), 1000.0
            outcomes: list[tuple[int, bool]] = []  # (bucket, failed)
            streams: list[tuple[int, tuple[int, int]]] = []
            for _ in range(400):
                now_s += rng.choice((0.0, 0.1, 3.0))
                bucket = int(now_s * 10 / policy.window_s)
                if rng.random() < 0.3 and streams:
                    began, counted = streams.pop(rng.randrange(len(streams)))
                    if (began, False) in outcomes:
                        outcomes.remove((began, False))
                    breaker.broke(*counted, now_s)
                    outcomes.append((bucket, True))
                elif rng.random() < 0.5:
                    streams.append((bucket, breaker.answer(breaker.admit(now_s), now_s)))
                    outcomes.append((bucket, False))
                else:
                    failed = rng.random() < 0.5
                    breaker.record(breaker.admit(now_s), failed, now_s)
                    outcomes.append((bucket, failed))
                outcomes = [one for one in outcomes if one[0] > bucket - 10]
                known = [(breaker._bucket, breaker._total, breaker._failures), *breaker._buckets]
                self.assertEqual(sum(one[1] for one in known), len(outcomes))
                self.assertEqual(sum(one[2] for one in known), sum(failed for _, failed in outcomes))


class PoolTest(unittest.TestCase):
    def setUp(self) -> None:
        self.now_s = 5000.0
        self.pool = self.make("a")

    def make(self, *ids: str, **fields: Any) -> ModelPool:
        engines = tuple(EngineSpec(f"http://{name}:8000/v1", id=name, **fields) for name in ids)
        return ModelPool(ModelSpec("m", engines), "round_robin", Random(3), lambda: self.now_s)

    def take(self) -> Lease:
        lease = self.pool.acquire((), b"") or self.pool.acquire_last_resort(())
        assert lease is not None
        return lease

    @property
    def engine(self) -> Engine:
        return self.pool.engines[0]

    def open(self) -> None:
        for _ in range(5):
            self.pool.settle(self.take(), Outcome("error"), 0.1)
        self.assertEqual(self.engine.state(self.now_s), "open")
        self.now_s = self.engine.breaker.until_s

    def test_the_engine_is_in_again_while_the_trials_stream_goes_on(self) -> None:
        self.pool = self.make("a", max_concurrency=2)
        self.open()
        trial = self.take()
        self.assertIsNone(self.pool.acquire((), b""))
        change = self.pool.answered(trial, 0.1)
        self.assertEqual(change, StateChange("m", "a", "half_open", "up", ""))
        self.assertEqual(self.engine.in_flight, 1)
        other = self.pool.acquire((), b"")
        assert other is not None
        self.assertIsNone(self.pool.acquire((), b""))  # the trial still has its place
        self.assertIsNone(self.pool.settle(trial, OK, 0.1, 600.0))
        self.pool.settle(other, OK, 0.1)
        self.assertEqual(self.engine.in_flight, 0)

    def test_who_waits_in_line_is_served_when_the_trial_is_over(self) -> None:
        self.pool = self.make("a", "b", max_concurrency=1)
        first, second = self.take(), self.take()
        one = first if first.engine is self.engine else second
        self.open_with(one)
        trial = self.pool.acquire_last_resort([e for e in self.pool.engines if e is not self.engine])
        assert trial is not None
        waiter = self.pool.join_line("normal", b"")
        assert waiter is not None
        self.assertFalse(waiter.ready.is_set())
        self.pool.answered(trial, 0.1)
        self.assertFalse(waiter.ready.is_set())  # its place stays taken
        self.pool.settle(trial, OK, 0.1, 0.5)
        self.assertIs(waiter.lease and waiter.lease.engine, self.engine)

    def open_with(self, lease: Lease) -> None:
        for _ in range(5):
            self.pool.settle(lease, Outcome("error"), 0.1)
            again = self.pool.acquire_last_resort([e for e in self.pool.engines if e is not lease.engine])
            assert again is not None
            lease = again
        self.pool.settle(lease, CANCELLED, 0.1)
        self.now_s = self.engine.breaker.until_s

    def test_a_cancelled_stream_takes_nothing_back(self) -> None:
        self.open()
        trial = self.take()
        self.pool.answered(trial, 0.1)
        self.assertIsNone(self.pool.settle(trial, CANCELLED, 0.1))
        self.assertEqual(self.engine.state(self.now_s), "up")

    def test_a_break_after_the_first_event_is_an_ordinary_failure(self) -> None:
        lease = self.take()
        self.pool.answered(lease, 0.1)
        self.now_s += 40.0
        self.pool.settle(lease, BROKE, 0.1, 40.0)
        self.assertEqual((self.engine.failed_at_s, self.engine.last_error), (self.now_s, BROKE.message))
        for _ in range(4):
            lease = self.take()
            self.pool.answered(lease, 0.1)
            self.assertEqual(self.engine.state(self.now_s), "up")
            change = self.pool.settle(lease, BROKE, 0.1)
        self.assertEqual(change, StateChange("m", "a", "up", "open", BROKE.message))

    def test_the_engine_has_answered_from_then_on(self) -> None:
        self.pool.settle(self.take(), Outcome("error"), 0.1)
        self.now_s += 1.0
        self.assertFalse(self.take().proven)
        lease = self.take()
        self.pool.answered(lease, 0.3)
        self.assertTrue(self.take().proven)
        self.assertEqual(self.engine.ok_at_s, self.now_s)
        self.assertEqual(self.pool.due_for_probe(5.0), [])
        before = self.engine.ewma_s
        self.now_s += 30.0
        self.pool.settle(lease, OK, 0.3, 30.0)
        self.assertEqual(self.engine.ewma_s, before)  # measured once
        self.assertEqual(self.engine.ok_at_s, self.now_s)

    def test_an_engine_that_went_down_meanwhile_is_back_with_the_streams_good_end(self) -> None:
        lease = self.take()
        self.pool.answered(lease, 0.1)
        for _ in range(2):
            self.pool.record_probe(self.engine, "no answer", 2, 1)
        self.assertEqual(self.engine.state(self.now_s), "down")
        self.assertEqual(self.pool.settle(lease, OK, 0.1, 9.0), StateChange("m", "a", "down", "up", ""))

    def test_recorded_decisions_with_streams_come_out_the_same(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        path = Path(folder.name) / "decisions.jsonl"
        settings = load_settings({"ENGINES": "m=http://127.0.0.1:9001/v1,http://127.0.0.1:9002/v1"})
        for seed in range(10):
            lines: list[dict[str, Any]] = [header(settings, seed)]
            rng = Random(seed)
            router = Router(settings.fleet, rng=Random(seed), clock=lambda: self.now_s, recorder=lines.append)
            pool = router.pools["m"]
            held: list[Lease] = []
            for _ in range(400):
                self.now_s += rng.choice((0.01, 0.3, 2.0))
                if rng.random() < 0.5:
                    lease: Optional[Lease] = pool.acquire((), b"") or pool.acquire_last_resort(())
                    if lease is not None:
                        held.append(lease)
                elif held:
                    lease = held.pop(rng.randrange(len(held)))
                    if lease.counted is None and rng.random() < 0.6:
                        pool.answered(lease, 0.1)
                        held.append(lease)
                    else:
                        pool.settle(lease, rng.choice((OK, BROKE, BROKE, CANCELLED)), 0.1, 0.2)
            self.assertIn("answered", {line["op"] for line in lines})
            self.assertTrue(
                {"open", "half_open"} & {c[1] for x in lines if x["op"] == "acquire" for c in x["candidates"]}
            )
            path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
            self.assertEqual(replay(path), (len(lines) - 1, None))


if __name__ == "__main__":
    unittest.main()
