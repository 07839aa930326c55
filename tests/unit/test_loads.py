"""The loads of a large fleet, kept up: they say what looking at each engine would say, after whatever has happened."""

from __future__ import annotations

import json
import unittest
from collections import Counter
from random import Random
from typing import Any, Optional

from gateway.routing.breaker import BreakerPolicy
from gateway.routing.decisions import Record, Recorder
from gateway.routing.engine import Engine
from gateway.routing.line import Lease, Waiter
from gateway.routing.loads import LEAST_ENGINES, Loads
from gateway.routing.pool import ModelPool
from gateway.routing.retry import OK, Outcome
from gateway.routing.router import Router
from gateway.routing.specs import EngineSpec, FleetSpec, ModelSpec
from gateway.routing.strategies import PrefixAffinity, RouteRequest
from gateway.tools.decisionlog import fleet_json
from gateway.tools.replay import _Replay

ENGINES = LEAST_ENGINES + 40  # so many that those that are in are enough whatever is out
STEPS = 1200
NEVER_OPENS = BreakerPolicy(min_requests=1_000_000)
ERROR = Outcome("error", "the engine answered 500", 500)
KINDS = (
    OK,
    OK,
    OK,
    OK,
    OK,
    ERROR,
    Outcome("refused"),
    Outcome("rate_limited", retry_after_s=0.5),
    Outcome("cancelled"),
)


class Fleet:
    """A pool that anything may happen to, by a seed."""

    def __init__(
        self,
        strategy: str,
        seed: int,
        limit: Optional[int],
        weights: tuple[int, ...] = (1,),
        recorder: Optional[Recorder] = None,
    ) -> None:
        self.chance = Random(seed)
        self.now_s = 1000.0
        self.compared = 0
        specs = tuple(
            EngineSpec(f"http://h{i}/v1", id=f"e{i}", weight=self.chance.choice(weights), max_concurrency=limit)
            for i in range(ENGINES)
        )
        self.router = Router(
            FleetSpec((ModelSpec("m", specs),)),
            strategy=strategy,
            rng=Random(seed),
            clock=lambda: self.now_s,
            breaker=NEVER_OPENS,
            recorder=recorder,
        )
        self.pool = self.router.pools["m"]
        self.leases: list[Lease] = []
        self.waiters: list[Waiter] = []

    def happens(self) -> None:
        chance, pool = self.chance, self.pool
        self.now_s += chance.expovariate(20.0)
        what = chance.random()
        if what < 0.55:
            tried = [lease.engine for lease in self.leases[:2]] if chance.random() < 0.2 else []
            lease = pool.acquire(tried, b"%d" % chance.randrange(50), tried[:1])
            if lease is not None:
                self.leases.append(lease)
            else:
                waiter = pool.join_line("normal", b"")
                self.waiters += [] if waiter is None else [waiter]
        elif what < 0.96 and self.leases:
            lease = self.leases.pop(chance.randrange(len(self.leases)))
            pool.settle(lease, chance.choice(KINDS), chance.expovariate(3.0))
        elif what < 0.965:
            pool.set_weight(f"e{chance.randrange(ENGINES)}", chance.randint(1, 4))
        elif what < 0.97:
            pool.set_draining(f"e{chance.randrange(ENGINES)}", chance.random() < 0.2)
        elif what < 0.99:
            down = [engine for engine in pool.engines if engine.down] or list(pool.engines)
            pool.record_probe(chance.choice(down), chance.choice((None, None, "refused")), 2, 1)
        elif self.leases:
            lease = chance.choice(self.leases)
            if lease.counted is None:
                pool.answered(lease, chance.expovariate(3.0))
        for waiter in [one for one in self.waiters if one.ready.is_set()]:
            self.waiters.remove(waiter)
            if waiter.lease is not None:
                self.leases.append(waiter.lease)

    def chosen(self) -> Optional[tuple[list[Engine], Engine]]:
        """Those that are in, and what the strategy says by the loads; None: too few are in for that."""
        chooser: Any = self.pool._chooser
        engines = chooser._members.in_locked(self.now_s)
        chooser._loads_locked(engines, self.now_s)
        if chooser._loads is None:
            return None
        self.compared += 1
        return list(engines), chooser._strategy.select(engines, RouteRequest(b"", self.now_s))


class LoadsTest(unittest.TestCase):
    def test_least_connections_chooses_as_if_it_looked_at_each(self) -> None:
        for seed, (limit, weights) in enumerate([(None, (1,)), (4, (1,)), (3, (1, 2, 3)), (None, (1, 5))]):
            fleet = Fleet("least_connections", seed, limit, weights)
            for step in range(STEPS):
                fleet.happens()
                found = fleet.chosen()
                if found is None:
                    continue
                engines, engine = found
                free = [one for one in engines if not one.full()]
                if not free:
                    self.assertTrue(engine.full())
                    continue

                def load(one: Engine, now_s: float = fleet.now_s) -> tuple[bool, float]:
                    return one.suspect(now_s), one.in_flight / one.weight

                self.assertEqual(load(engine), min(map(load, free)), f"seed {seed}, step {step}")
            self.assertGreater(fleet.compared, STEPS // 2)

    def test_latency_chooses_as_if_it_looked_at_each(self) -> None:
        for seed, (limit, weights) in enumerate([(None, (1,)), (4, (1, 2))]):
            fleet = Fleet("latency", seed, limit, weights)
            for step in range(STEPS):
                fleet.happens()
                if step % 300 == 299:
                    fleet.now_s += 150.0  # what was measured has faded to nothing
                found = fleet.chosen()
                if found is None:
                    continue
                engines, engine = found

                costs = fleet.pool._chooser._loads.costs if fleet.pool._chooser._loads else None
                assert costs is not None

                def cost(
                    one: Engine, now_s: float = fleet.now_s, usual_s: float = costs.usual_s(fleet.now_s)
                ) -> tuple[bool, float]:
                    return one.suspect(now_s), one.expected_cost(now_s, usual_s)

                suspect, least = min(map(cost, engines))
                self.assertEqual(cost(engine)[0], suspect)
                self.assertLessEqual(cost(engine)[1], least * (1 + 1e-6), f"seed {seed}, step {step}")
            self.assertGreater(fleet.compared, STEPS // 2)

    def test_by_latency_an_engine_that_has_not_answered_yet_does_not_get_all_there_is(self) -> None:
        for engines in (4, ENGINES):
            specs = tuple(EngineSpec(f"http://h{i}/v1", id=f"e{i}") for i in range(engines))
            pool = ModelPool(ModelSpec("m", specs), "latency", Random(1), lambda: 1000.0)
            newest = pool.engines[0]
            for engine in pool.engines[1:]:
                engine.observe_latency(0.5, 1000.0)
            for _ in range(5 * engines):
                self.assertIsNotNone(pool.acquire((), b""))
            self.assertIn(newest.in_flight, (4, 5, 6), f"of {engines}")

    def test_prefix_affinity_knows_the_same_sums(self) -> None:
        fleet = Fleet("prefix_affinity", 5, 4, (1, 2))
        for step in range(STEPS):
            fleet.happens()
            found = fleet.chosen()
            if found is None:
                continue
            engines = found[0]
            strategy = fleet.pool._chooser._strategy
            assert isinstance(strategy, PrefixAffinity)
            kept = strategy._trusted(strategy._engines or (), fleet.now_s)
            strategy.loads = None
            self.assertEqual(kept, strategy._trusted(engines, fleet.now_s), f"step {step}")
            strategy.loads = fleet.pool._chooser._loads

    def test_points_on_the_ring_do_not_depend_on_who_came_and_went(self) -> None:
        engines = tuple(Engine(EngineSpec(f"http://h{i}/v1", id=f"e{i}", weight=1 + i % 3), "m") for i in range(20))
        kept = PrefixAffinity(Random(1))
        for part in (engines[3:], engines[:5], engines, engines[1:19:2]):
            fresh = PrefixAffinity(Random(1))
            for key in range(200):
                request = RouteRequest(b"key %d" % key, 0.0)
                self.assertIs(kept.select(part, request), fresh.select(part, request))

    def test_who_waits_gets_the_place_that_becomes_free(self) -> None:
        fleet = Fleet("round_robin", 1, 1)
        leases = [fleet.pool.acquire((), b"") for _ in range(ENGINES)]
        self.assertEqual(len({lease.engine for lease in leases if lease}), ENGINES)
        self.assertIsNone(fleet.pool.acquire((), b""))
        waiter = fleet.pool.join_line("normal", b"")
        assert waiter is not None and leases[7] is not None
        fleet.pool.serve_line()
        self.assertFalse(waiter.ready.is_set())
        fleet.pool.settle(leases[7], OK, 1.0)
        assert waiter.lease is not None
        self.assertIs(waiter.lease.engine, leases[7].engine)

    def test_a_retry_goes_to_an_engine_that_was_not_tried(self) -> None:
        fleet = Fleet("least_connections", 1, None)
        tried: list[Engine] = []
        for _ in range(ENGINES):
            lease = fleet.pool.acquire(tried, b"")
            assert lease is not None
            self.assertNotIn(lease.engine, tried)
            tried.append(lease.engine)
            fleet.pool.settle(lease, Outcome("cancelled"), 0.0)
        self.assertIsNotNone(fleet.pool.acquire(tried, b""))

    def test_engines_that_fail_where_nobody_asks_which_carries_least_leave_nothing_behind(self) -> None:
        fleet = Fleet("round_robin", 1, 4)
        for _ in range(40 * ENGINES):
            fleet.now_s += 0.1
            lease = fleet.pool.acquire((), b"")
            assert lease is not None
            fleet.pool.settle(lease, ERROR, 0.01)
        loads = fleet.pool._chooser._loads
        assert loads is not None
        self.assertLess(len(loads._suspects), ENGINES)

    def test_recorded_decisions_of_a_large_fleet_can_be_repeated(self) -> None:
        for strategy in ("least_connections", "latency", "prefix_affinity"):
            records: list[Record] = []
            fleet = Fleet(strategy, 9, 3, (1, 2), records.append)
            fleet.chance.seed(9)
            first = {
                "seed": 9,
                "strategy": strategy,
                "fallback": "any",
                "breaker": list(NEVER_OPENS),
                "models": fleet_json(fleet.router.fleet),
            }
            for _ in range(STEPS):
                fleet.happens()
                fleet.pool.serve_line()  # of which nothing is recorded, in vain
            again = _Replay(first)
            for line in json.loads(json.dumps(records)):
                self.assertEqual(again.step(line), line)

    def test_among_equals_the_weight_decides_how_often(self) -> None:
        engines = tuple(Engine(EngineSpec(f"http://h{i}/v1", weight=1 + 2 * (i % 2)), "m") for i in range(ENGINES))
        loads = Loads(engines, Random(3), 1000.0)
        found = Counter(one.weight for _ in range(20_000) if (one := loads.least(1000.0)) is not None)
        self.assertAlmostEqual(found[3] / found[1], 3.0, delta=0.15)


if __name__ == "__main__":
    unittest.main()
