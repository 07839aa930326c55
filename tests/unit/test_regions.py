"""Regions: which engines come first, how much spills over, and that what must stay somewhere is placed nowhere else."""

from __future__ import annotations

import unittest
from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any, Optional

from gateway.errors import RequestRefused
from gateway.keys.residency import residency_of
from gateway.rescue import Onward
from gateway.routing.engine import Engine
from gateway.routing.line import Lease, Waiter
from gateway.routing.pool import ModelPool
from gateway.routing.regions import levels_of, within
from gateway.routing.retry import Outcome
from gateway.routing.router import Router
from gateway.routing.specs import STRATEGIES, EngineSpec, FleetSpec, ModelSpec
from gateway.routing.tries import Tries
from gateway.telemetry.events import OUTCOMES

OK = Outcome("ok")
REFUSED = Outcome("refused", "connection refused")
HEADER = b"x-gateway-residency"


def spec(number: int, region: Optional[str], **more: Any) -> EngineSpec:
    return EngineSpec(f"http://127.0.0.1:{9000 + number}/v1", id=chr(97 + number), region=region, **more)


class Pool:
    """A pool of engines named a, b, c, ... in these regions, on a clock of its own."""

    def __init__(
        self,
        regions: Sequence[Optional[str]],
        home: Optional[str] = "eu",
        strategy: str = "round_robin",
        weights: Sequence[int] = (),
        max_concurrency: Optional[int] = None,
        seed: int = 7,
    ) -> None:
        self.now_s = 1000.0
        specs = tuple(
            spec(number, region, max_concurrency=max_concurrency, weight=weights[number] if weights else 1)
            for number, region in enumerate(regions)
        )
        model = ModelSpec("m", specs)
        self.pool = ModelPool(model, strategy, Random(seed), lambda: self.now_s, home=home)
        self.by_id = {engine.id: engine for engine in self.pool.engines}

    def take(self, affinity: bytes = b"", tried: Sequence[Engine] = (), residency: str = "") -> Lease:
        lease = self.pool.acquire(tried, affinity, (), residency)
        assert lease is not None
        return lease

    def ask(self, affinity: bytes = b"", residency: str = "") -> str:
        """One request that comes and goes at once; returns the engine's id."""
        lease = self.take(affinity, (), residency)
        self.pool.settle(lease, OK, 0.01)
        return lease.engine.id

    def shares(self, count: int, residency: str = "") -> Counter[str]:
        return Counter(self.ask(residency=residency) for _ in range(count))

    def of_regions(self, count: int) -> Counter[Optional[str]]:
        return Counter(self.by_id[self.ask()].spec.region for _ in range(count))

    def down(self, *ids: str) -> None:
        for engine_id in ids:
            self.pool.record_probe(self.by_id[engine_id], "gone", 1, 1)

    def up(self, *ids: str) -> None:
        for engine_id in ids:
            self.pool.record_probe(self.by_id[engine_id], None, 1, 1)

    def ways_out(self) -> dict[str, Any]:
        """Every way in which an engine is out."""
        pool = self.pool

        def rest(engine: Engine, outcome: Outcome) -> None:
            lease = self.take(tried=[other for other in pool.engines if other is not engine])
            while lease.engine is not engine:  # the tried ones are as good where it is not in reach first
                pool.settle(lease, OK, 0.01)
                lease = self.take(tried=[other for other in pool.engines if other is not engine])
            pool.settle(lease, outcome, 0.01)

        def open_breaker(engine: Engine) -> None:
            for _ in range(50):
                if not engine.available(self.now_s):
                    return
                rest(engine, Outcome("error", "500", 500))

        return {
            "down": lambda engine: self.down(engine.id),
            "draining": lambda engine: pool.set_draining(engine.id, True),
            "resting": lambda engine: rest(engine, Outcome("rate_limited", "", 429, 60.0)),
            "misconfigured": lambda engine: rest(engine, Outcome("unauthorized", "", 401)),
            "breaker": open_breaker,
        }


class WithinTest(unittest.TestCase):
    def test_a_region_lies_within_what_stands_before_one_of_its_hyphens(self) -> None:
        for region, residency in (("eu", "eu"), ("eu-west-1", "eu"), ("eu-west-1", "eu-west"), ("eu", "")):
            self.assertTrue(within(region, residency), (region, residency))
        self.assertTrue(within(None, ""))
        outside = (("us", "eu"), ("eu", "eu-west"), ("europe", "eu"), ("eu-west-10", "eu-west-1"), (None, "eu"))
        for region, residency in (*outside, ("eu.west", "eu"), ("eu_west", "eu"), ("xeu", "eu"), ("", "eu")):
            self.assertFalse(within(region, residency), (region, residency))


class OrderTest(unittest.TestCase):
    def order(self, home: Optional[str], *regions: Optional[str]) -> list[list[Optional[str]]]:
        engines = Pool(regions, home).pool.engines
        return [[engine.spec.region for engine in level] for level in levels_of(engines, home)]

    def test_the_own_region_comes_first_then_those_near_it_by_name_then_the_files_order_last_the_unknown(self) -> None:
        regions = ("us-east-1", None, "eu-north-1", "ap-south-1", "eu-west-1", "eu-west-2", "us-east-1")
        self.assertEqual(
            self.order("eu-west-1", *regions),
            [["eu-west-1"], ["eu-west-2"], ["eu-north-1"], ["us-east-1", "us-east-1"], ["ap-south-1"], [None]],
        )

    def test_all_that_lies_within_the_own_region_is_one_level(self) -> None:
        self.assertEqual(self.order("eu", "us", "eu-west-1", "eu", "eu-north-1")[0], ["eu-west-1", "eu", "eu-north-1"])

    def test_a_wider_region_is_another_one(self) -> None:
        self.assertEqual(self.order("eu-west-1", "us", "eu", "eu-west-1"), [["eu-west-1"], ["eu"], ["us"]])

    def test_without_an_own_region_there_is_one_level(self) -> None:
        self.assertEqual(self.order(None, "us", "eu", None), [["us", "eu", None]])


class PreferenceTest(unittest.TestCase):
    """a and b are in eu, c and d in us, e nowhere; the gateway is in eu."""

    def pool(self, strategy: str, **more: Any) -> Pool:
        return Pool(("eu", "eu", "us", "us", None), strategy=strategy, **more)

    def test_with_all_in_the_own_region_gets_everything(self) -> None:
        for strategy in STRATEGIES:
            with self.subTest(strategy):
                shares = self.pool(strategy).shares(400)
                self.assertEqual(set(shares), {"a", "b"})
                self.assertGreater(min(shares.values()), 100)

    def test_whichever_way_the_own_region_is_out_the_next_one_gets_everything(self) -> None:
        for strategy in STRATEGIES:
            for way in ("down", "draining", "resting", "misconfigured", "breaker"):
                with self.subTest(strategy, way=way):
                    pool = self.pool(strategy)
                    for engine in pool.pool.engines[:2]:
                        pool.ways_out()[way](engine)
                    self.assertEqual([e.available(pool.now_s) for e in pool.pool.engines[:3]], [False, False, True])
                    self.assertEqual(set(pool.shares(60)), {"c", "d"})

    def test_an_engine_of_which_nobody_has_said_where_it_is_comes_last(self) -> None:
        for strategy in STRATEGIES:
            with self.subTest(strategy):
                pool = self.pool(strategy)
                pool.down("a", "b", "c", "d")
                self.assertEqual(set(pool.shares(10)), {"e"})

    def test_a_full_region_leaves_the_rest_to_the_next_one_and_gets_all_again(self) -> None:
        for strategy in STRATEGIES:
            with self.subTest(strategy):
                pool = self.pool(strategy, max_concurrency=2)
                leases = [pool.take() for _ in range(10)]
                regions = [lease.engine.spec.region for lease in leases]
                self.assertEqual(regions, [*("eu",) * 4, *("us",) * 4, *(None,) * 2])
                self.assertIsNone(pool.pool.acquire((), b""))
                pool.pool.settle(leases[0], OK, 0.01)
                self.assertEqual(pool.take().engine.spec.region, "eu")

    def test_a_retry_and_a_hedge_go_to_an_untried_engine_of_the_own_region_first(self) -> None:
        for strategy in STRATEGIES:
            with self.subTest(strategy):
                pool = self.pool(strategy)
                tried: list[Engine] = []
                for _ in range(6):
                    tried.append(pool.take(tried=tried).engine)
                regions = [engine.spec.region for engine in tried]
                self.assertEqual(regions, ["eu", "eu", "us", "us", None, "eu"])

    def test_who_waits_gets_a_place_of_the_own_region_first(self) -> None:
        for seed in range(10):  # among equals it would be drawn
            pool = self.pool("round_robin", max_concurrency=1, seed=seed)
            leases = {lease.engine.id: lease for lease in [pool.take() for _ in range(5)]}
            waiter = pool.pool.join_line("normal", b"")
            assert waiter is not None and waiter.lease is None
            for engine_id in "ac":
                pool.pool.set_draining(engine_id, True)
                pool.pool.settle(leases[engine_id], OK, 0.01)
            self.assertIsNone(waiter.lease)
            with pool.pool._lock:  # both are let in at once
                pool.by_id["c"].draining = pool.by_id["a"].draining = False
                pool.pool._members.stale = True
            pool.pool.serve_line()
            assert waiter.lease is not None
            self.assertEqual(waiter.lease.engine.id, "a")

    def test_without_an_own_region_regions_do_not_count(self) -> None:
        pool = Pool(("eu", "us", None), None)
        self.assertEqual(pool.shares(300), {"a": 100, "b": 100, "c": 100})

    def test_an_own_region_that_no_engine_is_in_is_no_reason_to_refuse_any(self) -> None:
        for strategy in STRATEGIES:
            with self.subTest(strategy):
                self.assertEqual(set(Pool(("us", "us"), "eu", strategy).shares(100)), {"a", "b"})

    def test_a_reload_counts_from_the_next_request_on(self) -> None:
        pool = Pool(("eu", "us"))
        self.assertEqual(set(pool.shares(10)), {"a"})
        moved = (spec(0, "us"), spec(1, "eu"))
        pool.pool.reconfigure(ModelSpec("m", moved), "round_robin")
        self.assertEqual(set(pool.shares(10)), {"b"})

    def test_a_strategy_goes_on_where_it_was_while_another_region_changes(self) -> None:
        pool = Pool(("eu", "eu", "eu", "us", "us"))
        turns = [pool.ask()]
        for engine_id in ("d", "e", "d"):
            pool.down(engine_id)
            turns.append(pool.ask())
            pool.up(engine_id)
            turns.append(pool.ask())
        self.assertEqual("".join(turns), "abcabca")
        # What a strategy has computed it keeps as long as it gets the same tuple.
        level = pool.pool._chooser._regions._views[""].levels[0]
        before = level.engines
        pool.down("d")
        pool.ask()
        self.assertIs(level.engines, before)
        pool.pool.set_weight("a", 2)
        pool.ask()
        self.assertIsNot(level.engines, before)

    def test_other_weights_count_at_once_and_within_the_region(self) -> None:
        pool = Pool(("eu", "eu", "us"))
        self.assertEqual(pool.shares(100), {"a": 50, "b": 50})
        pool.pool.set_weight("b", 3)
        self.assertEqual(pool.shares(400), {"a": 100, "b": 300})
        pool.pool.set_weight("c", 1_000_000)
        self.assertEqual(set(pool.shares(50)), {"a", "b"})


class SpillTest(unittest.TestCase):
    """1.4 times the share of the weight that is in, at most all: the rest goes to the next region."""

    def assert_shares(self, pool: Pool, count: int, **share_by_region: float) -> None:
        counted = pool.of_regions(count)
        for region, share in share_by_region.items():
            self.assertAlmostEqual(counted[region], share * count, delta=1, msg=f"{region}: {counted}")

    def test_so_much_spills_over_as_the_own_region_has_lost_beyond_what_the_others_can_take(self) -> None:
        for strategy in STRATEGIES:
            for out in range(11):
                with self.subTest(strategy, out=out):
                    pool = Pool(("eu",) * 10 + ("us",) * 3, strategy=strategy, seed=out)
                    pool.down(*(chr(97 + number) for number in range(out)))
                    own = min(1.0, 1.4 * (10 - out) / 10)
                    self.assert_shares(pool, 1000, eu=own, us=1 - own)

    def test_five_of_seven_take_everything(self) -> None:
        pool = Pool(("eu",) * 7 + ("us",))
        pool.down("a", "b")
        self.assertEqual(set(pool.of_regions(100)), {"eu"})
        view = pool.pool._chooser._regions._views[""]
        self.assertEqual([level.share for level in view._open], [1.0])

    def test_what_a_share_is_short_of_by_rounding_is_left_to_nobody(self) -> None:
        pool = Pool(("eu",) * 2 + ("us",) * 14 + ("ap",))
        pool.down("a", *(chr(97 + number) for number in range(5, 16)))  # 1.4 * 1/2 and 1.4 * 3/14
        self.assertEqual(set(pool.of_regions(100)), {"eu", "us"})
        self.assertEqual(len(pool.pool._chooser._regions._views[""]._open), 2)

    def test_it_is_the_weight_that_counts(self) -> None:
        pool = Pool(("eu", "eu", "us"), weights=(3, 1, 1))
        pool.down("b")
        self.assertEqual(set(pool.of_regions(100)), {"eu"})  # three quarters are left
        pool.up("b")
        pool.down("a")
        self.assert_shares(pool, 1000, eu=0.35, us=0.65)
        pool.pool.set_weight("b", 3)
        self.assert_shares(pool, 1000, eu=0.7, us=0.3)

    def test_three_regions_fill_up_one_after_the_other(self) -> None:
        pool = Pool(("eu",) * 4 + ("us",) * 4 + ("ap",) * 4)
        pool.down("a", "b", "c")
        self.assert_shares(pool, 1000, eu=0.35, us=0.65, ap=0.0)
        pool.down("e", "f", "g")
        self.assert_shares(pool, 1000, eu=0.35, us=0.35, ap=0.3)

    def test_where_all_are_short_each_gets_its_part(self) -> None:
        pool = Pool(("eu",) * 10 + ("us",) * 10)
        pool.down(*"abcdefgh", *"klmnopqrs")
        self.assert_shares(pool, 900, eu=2 / 3, us=1 / 3)

    def test_the_share_is_evenly_spread(self) -> None:
        pool = Pool(("eu", "eu", "us"))
        pool.down("a")
        turns = [pool.by_id[pool.ask()].spec.region for _ in range(100)]
        for first in range(90):
            self.assertIn(turns[first : first + 10].count("us"), (2, 3, 4), first)

    def test_shares_are_kept_while_engines_come_and_go(self) -> None:
        pool = Pool(("eu", "eu", "us", "us"))
        counted: Counter[Optional[str]] = Counter()
        for number in range(1000):
            away = "ab"[number % 2]
            pool.down(away)
            counted[pool.by_id[pool.ask()].spec.region] += 1
            pool.up(away)
        self.assertAlmostEqual(counted["us"], 300, delta=1)

    def test_a_session_stays_in_its_region_and_on_its_engine(self) -> None:
        pool = Pool(("eu",) * 4 + ("us",) * 4, strategy="prefix_affinity")
        pool.down("a", "b")
        engines: dict[bytes, set[str]] = {}
        sessions = [b"session-%d" % number for number in range(500)]
        for seed in range(3):
            Random(seed).shuffle(sessions)
            for session in sessions:
                engines.setdefault(session, set()).add(pool.ask(session))
        self.assertEqual({len(used) for used in engines.values()}, {1})
        abroad = sum(used <= set("efgh") for used in engines.values())
        self.assertAlmostEqual(abroad / 500, 0.3, delta=0.06)  # three standard deviations
        self.assertEqual(set.union(*engines.values()), set("cdefgh"))


class ResidencyTest(unittest.TestCase):
    def test_only_engines_within_are_chosen_whatever_the_strategy_and_wherever_the_gateway_is(self) -> None:
        for strategy in STRATEGIES:
            for home in (None, "eu", "us"):
                with self.subTest(strategy, home=home):
                    pool = Pool(("us", "eu-west-1", None, "eu-north-1", "us"), home, strategy)
                    # From elsewhere, the two regions come one after the other.
                    self.assertEqual(set(pool.shares(100, "eu")), {"b"} if home == "us" else {"b", "d"})
                    self.assertEqual(set(pool.shares(100, "eu-west-1")), {"b"})
                    self.assertIsNone(pool.pool.acquire((), b"", (), "ap"))
                    self.assertIsNone(pool.pool.join_line("normal", b"", "ap"))
                    self.assertIsNone(pool.pool.acquire_last_resort((), "ap"))

    def test_among_those_within_the_own_region_comes_first(self) -> None:
        pool = Pool(("eu-north-1", "eu-west-1", "us"), "eu-west-1")
        self.assertEqual(pool.shares(20, "eu"), {"b": 20})
        pool.down("b")
        self.assertEqual(pool.shares(20, "eu"), {"a": 20})
        pool.down("a")
        self.assertIsNone(pool.pool.acquire((), b"", (), "eu"))
        self.assertEqual(pool.ask(), "c")

    def test_names_that_callers_make_up_leave_nothing_behind(self) -> None:
        pool = Pool(("eu-west-1", "us"), None)
        for number in range(1000):
            pool.pool.acquire((), b"", (), f"eu-west-1{number}")
            pool.pool.join_line("normal", b"", f"r{number}")
        self.assertEqual(len(pool.pool._chooser._regions._views), 0)
        self.assertEqual(pool.pool._chooser.staying, {})

    def test_who_must_stay_waits_for_a_place_there_while_others_are_served_elsewhere(self) -> None:
        pool = Pool(("eu", "us"), None, max_concurrency=1)
        held = pool.take(residency="eu")
        waiter = self.waits(pool, "eu")
        elsewhere = pool.take()
        self.assertEqual(elsewhere.engine.id, "b")
        general = self.waits(pool, "")
        pool.pool.settle(elsewhere, OK, 0.01)
        self.assertIsNone(waiter.lease)
        self.assertEqual(self.engine_of(general), "b")
        pool.pool.settle(held, OK, 0.01)
        self.assertEqual(self.engine_of(waiter), "a")
        self.assertEqual(pool.pool._chooser.staying, {})
        self.assertEqual(pool.pool.waiting, 0)

    def test_of_all_lines_the_first_to_have_come_is_served(self) -> None:
        pool = Pool(("eu", "us"), None, max_concurrency=1)
        pool.take(residency="us")
        held = pool.take()
        order = []
        for residency in ("", "eu", "", "eu"):
            pool.now_s += 0.1
            order.append(self.waits(pool, residency))
        self.assertEqual(pool.pool.waiting, 4)
        for waiter in order:
            pool.pool.settle(held, OK, 0.01)
            assert waiter.lease is not None
            held = waiter.lease

    def test_nobody_overtakes_those_who_must_stay(self) -> None:
        pool = Pool(("eu-1", "eu-2", "us"), None, max_concurrency=1)
        pool.take(residency="eu-1")
        pool.pool.settle(pool.take(residency="eu-2"), Outcome("rate_limited", "", 429, 5.0), 0.01)
        waiter = self.waits(pool, "eu")
        pool.now_s += 6.0  # b is back, and nobody has looked yet
        self.assertIsNone(pool.pool.acquire((), b"", (), "eu"))
        self.assertIsNone(pool.pool.acquire((), b"", (), "eu-2"))
        self.assertEqual(pool.take().engine.id, "c")
        self.assertIsNone(pool.pool.acquire((), b""))
        pool.pool.serve_line()
        self.assertEqual(self.engine_of(waiter), "b")

    def test_sessions_stay_where_they_are_while_others_wait_for_a_full_region(self) -> None:
        pool = Pool(("eu", "us", "us", "us"), None, "prefix_affinity", max_concurrency=9)
        used = {session: pool.ask(session) for session in (b"session-%d" % number for number in range(60))}
        for _ in range(9):
            pool.take(residency="eu")
        self.waits(pool, "eu")
        again = {session: pool.ask(session) for session in used}
        elsewhere = [session for session, engine_id in used.items() if engine_id != "a"]
        self.assertGreater(len(elsewhere), 30)
        self.assertEqual([again[session] for session in elsewhere], [used[session] for session in elsewhere])

    def test_a_look_at_lines_that_wait_in_vain_leaves_no_trace(self) -> None:
        """Nothing is recorded of it, so what the next choice is made from must be as if nobody had looked."""
        pool = Pool(("eu", "us", "us"), None, max_concurrency=1)
        pool.take(residency="eu")
        pool.pool.settle(pool.take(residency="us"), Outcome("rate_limited", "", 429, 5.0), 0.01)
        self.waits(pool, "eu")
        before = pool.pool._members._in
        pool.now_s += 6.0
        pool.pool.serve_line()
        self.assertIs(pool.pool._members._in, before)

    def test_engines_that_have_no_words_for_it_are_passed_over_for_others_there(self) -> None:
        for seed in range(10):
            pool = Pool(("eu", "eu", "us", "us"), None, max_concurrency=2, seed=seed)
            a, b = pool.pool.engines[:2]
            other = ModelPool(ModelSpec("n", (spec(7, "eu"),)), "random", Random(1), lambda: 1000.0)
            for _ in range(2):
                step = Tries((pool.pool, other), 3, b"", unable=(a,), residency="eu").next()
                assert step is not None and step.lease is not None
                self.assertIs(step.lease.engine, b)
            # It is full now: the request waits for it, though a has room, and so have those in us.
            step = Tries((pool.pool,), 3, b"", unable=(a,), residency="eu").next()
            assert step is not None
            self.assertEqual((step.lease, step.waiter), (None, None))

    def test_nobody_leaves_a_hung_engine_for_one_that_may_not_have_it(self) -> None:
        pool = Pool(("eu", "us"), None)
        for residency, may_leave in (("eu", False), ("", True)):
            tries = Tries((pool.pool,), 3, b"", residency=residency)
            step = tries.next()
            assert step is not None and step.lease is not None
            self.assertEqual(tries.may_leave([step.lease], 30.0), may_leave)
        lease = pool.take(residency="eu")
        engines = [lease.engine]
        self.assertFalse(Onward(pool.pool, engines, "eu").may_leave([lease], 30.0))
        self.assertTrue(Onward(pool.pool, engines).may_leave([lease], 30.0))

    def test_as_a_last_resort_nobody_leaves_for_one_that_may_not_have_it_either(self) -> None:
        pool = Pool(("eu", "us"), None)
        tries = Tries((pool.pool,), 3, b"", residency="eu")
        pool.down("a", "b")
        step = tries.next()  # of a model of which no engine is in
        assert step is not None and step.lease is not None
        pool.up("b")
        self.assertFalse(tries.may_leave([step.lease], 30.0))

    def test_of_the_engines_there_the_one_that_returns_soonest_is_the_last_resort(self) -> None:
        pool, other = Pool(("eu", "us"), None), Pool(("eu",), None)
        other.pool.settle(other.take(), Outcome("unauthorized", "", 401), 0.01)
        other.now_s += 30.0
        pool.pool.settle(pool.take(residency="eu"), Outcome("unauthorized", "", 401), 0.01)
        pool.down("b")  # it would be back in a second
        step = Tries((pool.pool, other.pool), 3, b"", residency="eu").next()
        assert step is not None
        self.assertIs(step.pool, other.pool)

    def test_when_to_come_again_is_told_by_the_engines_there(self) -> None:
        pool = Pool(("eu", "us"), None)
        pool.pool.settle(pool.take(residency="eu"), Outcome("rate_limited", "", 429, 9.0), 0.01)
        pool.pool.settle(pool.take(residency="us"), Outcome("rate_limited", "", 429, 4.0), 0.01)
        tries = Tries((pool.pool,), 3, b"", residency="eu")
        self.assertIsNone(tries.next())
        self.assertAlmostEqual(tries.error().retry_after_s or 0, 9.0)

    def test_whether_others_could_be_asked_is_seen_from_those_there(self) -> None:
        pool = Pool(("eu", "us"), None)
        tries = Tries((pool.pool,), 3, b"", residency="eu")
        self.assertIsNotNone(tries.next())
        self.assertFalse(tries.pass_over(lambda engine: engine.spec.region == "eu"))
        tries = Tries((pool.pool,), 3, b"")
        self.assertIsNotNone(tries.next())
        self.assertTrue(tries.pass_over(lambda engine: engine.spec.region == "eu"))

    def test_a_model_whose_engines_there_have_no_words_for_it_leaves_it_to_those_named(self) -> None:
        pool = Pool(("eu", "us"), None)
        pools = (pool.pool, ModelPool(ModelSpec("n", (spec(7, "eu"),)), "random", Random(1), lambda: 1000.0))
        for named in ((), ("n",)):
            tries = Tries(pools, 3, b"", named=named, residency="eu")
            self.assertIsNotNone(tries.next())
            tries.pass_over(lambda engine: engine.spec.region == "eu" and engine.model_name == "m")
            step = tries.next()
            self.assertEqual(step is not None and step.pool.name == "n", bool(named))

    def test_those_who_must_stay_are_sent_away_when_the_last_engine_there_goes_out(self) -> None:
        pool = Pool(("eu", "us"), None, max_concurrency=1)
        lease = pool.take(residency="eu")
        waiter = self.waits(pool, "eu")
        pool.pool.settle(lease, REFUSED, 0.01)
        self.assertTrue(waiter.ready.is_set())
        self.assertIsNone(waiter.lease)
        self.assertIsNone(pool.pool.leave_line(waiter))
        self.assertEqual(pool.pool.waiting, 0)

    def test_who_leaves_its_line_is_not_waited_for(self) -> None:
        pool = Pool(("eu", "us"), None, max_concurrency=1)
        lease = pool.take(residency="eu")
        gone, left = self.waits(pool, "eu"), self.waits(pool, "eu")
        self.assertIsNone(pool.pool.leave_line(gone))
        self.assertEqual(pool.pool.waiting, 1)
        pool.pool.settle(lease, OK, 0.01)
        self.assertEqual(self.engine_of(left), "a")
        self.assertIsNone(pool.pool.leave_line(gone))

    def test_a_line_that_all_have_left_keeps_nobody_away(self) -> None:
        pool = Pool(("eu", "us"), None, max_concurrency=1)
        lease = pool.take(residency="eu")
        self.assertIsNone(pool.pool.leave_line(self.waits(pool, "eu")))
        pool.pool.settle(lease, OK, 0.01)
        self.assertEqual({pool.take().engine.id, pool.take().engine.id}, {"a", "b"})

    def test_a_retired_model_sends_all_lines_away(self) -> None:
        pool = Pool(("eu", "us"), None, max_concurrency=1)
        pool.take(residency="eu"), pool.take()
        waiters = [self.waits(pool, residency) for residency in ("eu", "", "us")]
        pool.pool.retire()
        self.assertEqual([waiter.ready.is_set() for waiter in waiters], [True] * 3)

    def test_a_wait_is_predicted_by_the_places_there(self) -> None:
        pool = Pool(("eu", "us", "us", "us"), None, max_concurrency=1)
        for _ in range(30):
            pool.pool.settle(pool.take(), OK, 2.0)
        lease = pool.take(residency="eu")
        waiter = self.waits(pool, "eu")
        self.assertAlmostEqual(waiter.predicted_s, 2.0)
        self.assertAlmostEqual(pool.pool.predicted_wait_s(None, "eu"), 4.0)
        self.assertFalse(pool.pool.takes_over([], 3.0, 0, "eu"))
        self.assertTrue(pool.pool.takes_over([], 5.0, 0, "eu"))
        self.assertFalse(pool.pool.takes_over([lease.engine], 5.0, 0, "eu"))
        self.assertTrue(pool.pool.takes_over([lease.engine], 5.0, 0, ""))

    def test_the_last_resort_and_the_rest_told_are_those_of_the_region(self) -> None:
        pool = Pool(("eu", "us"), None)
        pool.pool.settle(pool.take(residency="eu"), Outcome("rate_limited", "", 429, 9.0), 0.01)
        pool.pool.settle(pool.take(residency="us"), Outcome("rate_limited", "", 429, 4.0), 0.01)
        self.assertAlmostEqual(pool.pool.shortest_rest_s("eu") or 0, 9.0)
        self.assertAlmostEqual(pool.pool.shortest_rest_s() or 0, 4.0)
        pool = Pool(("us", "eu"), None)
        pool.down("a", "b")
        lease = pool.pool.acquire_last_resort((), "eu")
        assert lease is not None
        self.assertEqual(lease.engine.id, "b")
        self.assertIsNone(pool.pool.last_resort_wait_s([lease.engine], "eu"))
        self.assertIsNotNone(pool.pool.last_resort_wait_s([lease.engine]))

    def waits(self, pool: Pool, residency: str, there: bool = True) -> Any:
        waiter = pool.pool.join_line("normal", b"", residency)
        self.assertEqual(waiter is not None, there)
        return waiter

    def engine_of(self, waiter: Waiter) -> str:
        self.assertTrue(waiter.ready.is_set())
        assert waiter.lease is not None
        return waiter.lease.engine.id


class TurmoilTest(unittest.TestCase):
    """Random fleets, faults, reloads: no place that what must stay is given, by whatever way, is outside."""

    REGIONS = ("eu-west-1", "eu-north-1", "eu", "us-east-1", "us", "europe", None)
    RESIDENCIES = ("", "eu", "eu-west-1", "us", "eu-west", "ap")

    def test_no_place_is_ever_outside(self) -> None:
        placed = 0
        for seed in range(60):
            placed += self.turmoil(Random(seed))
        self.assertGreater(placed, 4000)

    def fleet(self, rng: Random) -> FleetSpec:
        def model(name: str) -> ModelSpec:
            engines = tuple(
                spec(number, rng.choice(self.REGIONS), max_concurrency=rng.choice((None, 1, 2)))
                for number in range(rng.randint(1, 6))
            )
            return ModelSpec(name, engines, rng.choice(STRATEGIES))

        return FleetSpec((model("m"), model("n")))

    def turmoil(self, rng: Random) -> int:
        self.now_s = 1000.0
        home = rng.choice((None, "eu", "eu-west-1", "us"))
        router = Router(self.fleet(rng), rng=rng, clock=lambda: self.now_s, region=home)
        held: list[tuple[ModelPool, Lease]] = []
        lines: list[tuple[Tries, ModelPool, Waiter, str]] = []
        under_way: list[tuple[Tries, str]] = []
        placed = 0

        def seen(pool: ModelPool, lease: Lease, residency: str) -> None:
            nonlocal placed
            placed += bool(residency)
            self.assertTrue(within(lease.engine.spec.region, residency), (lease.engine.spec, residency))
            held.append((pool, lease))

        for _ in range(400):
            self.now_s += rng.choice((0.0, 0.01, 1.0))
            what = rng.random()
            if what < 0.35 or not under_way:
                residency = rng.choice(self.RESIDENCIES)
                pools = tuple(p for p in router.route("m") if p.is_within(residency))
                if not pools:
                    continue
                affinity = rng.choice((b"", b"s%d" % rng.randrange(9)))
                unable = tuple(rng.sample(pools[0].engines, 1)) if rng.random() < 0.2 else ()
                tries = Tries(pools, 3, affinity, unable=unable, residency=residency)
                under_way.append((tries, residency))
            elif what < 0.5 and held:
                pool, lease = held.pop(rng.randrange(len(held)))
                kind = rng.choice(sorted(OUTCOMES)) if rng.random() < 0.5 else "ok"
                pool.settle(lease, Outcome(kind, "it failed", None, rng.choice((None, 3.0))), 0.01)
            elif what < 0.55:
                pool = rng.choice(list(router.pools.values()))
                engine = rng.choice(pool.engines)
                pool.record_probe(engine, rng.choice((None, "gone")), 1, 1)
            elif what < 0.6:
                pool = rng.choice(list(router.pools.values()))
                pool.set_draining(rng.choice(pool.engines).id, rng.random() < 0.3)
            elif what < 0.62:
                # What is under way there is settled first: it was right when it was placed.
                for pool, lease in held:
                    pool.settle(lease, OK, 0.01)
                held.clear()
                router.reload(self.fleet(rng))
            for tries, residency in rng.sample(under_way, min(2, len(under_way))):
                step = tries.hedge() if tries.sent and rng.random() < 0.3 else tries.next()
                if step is None:
                    under_way.remove((tries, residency))
                elif step.lease is not None:
                    seen(step.pool, step.lease, residency)
                    tries.failed(Outcome(rng.choice(("refused", "error", "rate_limited")), "it failed"))
                elif step.waiter is not None:
                    lines.append((tries, step.pool, step.waiter, residency))
            for pool in router.pools.values():
                pool.serve_line()
            for line in list(lines):
                tries, pool, waiter, residency = line
                if waiter.ready.is_set() or rng.random() < 0.1:
                    lines.remove(line)
                    got = pool.leave_line(waiter)
                    if got is not None and not tries.can_ask(got):  # a reload has moved the engine since
                        pool.settle(got, Outcome("cancelled"), 0.0)
                    elif got is not None:
                        seen(pool, got, residency)
        for pool in router.pools.values():
            for _, p, waiter, _ in lines:
                if p is pool:
                    pool.leave_line(waiter)
        return placed


class SaidTest(unittest.TestCase):
    def said(self, value: Optional[bytes], of_key: str = "") -> str:
        return residency_of({} if value is None else {HEADER: value}, (), of_key)

    def refused(self, value: bytes, of_key: str = "") -> str:
        with self.assertRaises(RequestRefused) as caught:
            self.said(value, of_key)
        return caught.exception.code

    def test_both_hold_so_the_narrower_counts(self) -> None:
        self.assertEqual(self.said(None), "")
        self.assertEqual(self.said(None, "eu"), "eu")
        self.assertEqual(self.said(b" EU "), "eu")
        self.assertEqual(self.said(b"eu", "eu"), "eu")
        self.assertEqual(self.said(b"eu-west-1", "eu"), "eu-west-1")
        self.assertEqual(self.said(b"eu", "eu-west-1"), "eu-west-1")

    def test_what_excludes_each_other_is_refused(self) -> None:
        for value, of_key in ((b"us", "eu"), (b"eu-west-1", "eu-west-2"), (b"e", "eu"), (b"europe", "eu")):
            with self.subTest(value):
                self.assertEqual(self.refused(value, of_key), "residency_conflict")

    def test_what_is_no_name_is_refused_and_never_taken_for_nothing(self) -> None:
        for value in (b"", b" ", b"eu us", b"eu,us", b"\xe9u", b"x" * 65, b"eu/west"):
            with self.subTest(value):
                self.assertEqual(self.refused(value), "invalid_residency")
                self.assertEqual(self.refused(value, "eu"), "invalid_residency")
        with self.assertRaises(RequestRefused) as caught:
            residency_of({HEADER: b"eu"}, frozenset((HEADER,)), "")
        self.assertEqual(caught.exception.code, "invalid_residency")


if __name__ == "__main__":
    unittest.main()
