"""Strategies by behaviour, through a model's pool: who gets how much, and what draws load or does not."""

from __future__ import annotations

import unittest
from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Optional

from gateway.routing.line import Lease
from gateway.routing.pool import ModelPool
from gateway.routing.retry import Outcome
from gateway.routing.specs import STRATEGIES, EngineSpec, ModelSpec
from gateway.routing.strategies import STRATEGY_BY_NAME

OK = Outcome("ok")
ERROR = Outcome("error", "the engine answered 500", 500)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def make_pool(
    strategy: str,
    weights: Sequence[int],
    clock: Optional[Clock] = None,
    seed: int = 7,
    max_concurrency: Optional[int] = None,
    scattered: bool = False,
) -> ModelPool:
    """A pool of engines named a, b, c, ..., from the 27th on e26, ..., with those weights."""
    names = [chr(97 + i) if i < 26 else f"e{i}" for i in range(len(weights))]
    engines = tuple(
        EngineSpec(f"http://127.0.0.1:{9000 + i}/v1", id=name, weight=weight, max_concurrency=max_concurrency)
        for i, (name, weight) in enumerate(zip(names, weights))
    )
    return ModelPool(ModelSpec("m", engines), strategy, Random(seed), clock or Clock(), scattered=scattered)


def take(pool: ModelPool, affinity: bytes = b"") -> Lease:
    lease = pool.acquire((), affinity)
    assert lease is not None
    return lease


def ask(pool: ModelPool, affinity: bytes = b"", outcome: Outcome = OK) -> str:
    """One request that comes and goes at once; returns the engine's id."""
    lease = take(pool, affinity)
    pool.settle(lease, outcome, 0.01)
    return lease.engine.id


def shares(pool: ModelPool, count: int) -> Counter[str]:
    return Counter(ask(pool) for _ in range(count))


def chi_square(counts: Counter[str], weights: dict[str, int]) -> float:
    total, whole = sum(counts.values()), sum(weights.values())
    return sum((counts[k] - total * w / whole) ** 2 / (total * w / whole) for k, w in weights.items())


class EveryStrategyTest(unittest.TestCase):
    def test_configurable_names_are_those_that_exist(self) -> None:
        self.assertEqual(set(STRATEGIES), set(STRATEGY_BY_NAME))

    def test_an_engine_that_is_out_is_never_chosen(self) -> None:
        for name in STRATEGIES:
            with self.subTest(strategy=name):
                pool = make_pool(name, (1, 2, 3, 1))
                down = take(pool)
                pool.settle(down, Outcome("refused", "refused"), 0.0)
                chosen = {ask(pool, b"key-%d" % i) for i in range(300)}
                self.assertEqual(chosen, {"a", "b", "c", "d"} - {down.engine.id})

    def test_a_single_engine_gets_everything(self) -> None:
        for name in STRATEGIES:
            with self.subTest(strategy=name):
                self.assertEqual(shares(make_pool(name, (3,)), 20), {"a": 20})

    def test_every_engine_of_a_healthy_model_gets_requests(self) -> None:
        for name in STRATEGIES:
            with self.subTest(strategy=name):
                pool = make_pool(name, (1, 1, 1))
                self.assertEqual({ask(pool, b"key-%d" % i) for i in range(200)}, {"a", "b", "c"})

    def test_a_full_engine_is_passed_over(self) -> None:
        for name in STRATEGIES:
            with self.subTest(strategy=name):
                pool = make_pool(name, (1, 5), max_concurrency=2)
                held = [take(pool) for _ in range(4)]
                self.assertEqual(Counter(lease.engine.id for lease in held), {"a": 2, "b": 2})
                self.assertIsNone(pool.acquire((), b""))
                pool.settle(held[0], OK, 0.01)
                self.assertIs(take(pool).engine, held[0].engine)

    def test_another_weight_counts_from_the_next_choice_on(self) -> None:
        for name in STRATEGIES:
            with self.subTest(strategy=name):
                pool = make_pool(name, (1, 1))
                for number in range(50):
                    ask(pool, b"key-%d" % number)
                for weight, least, most in ((9, 80, 98), (1, 30, 70)):
                    pool.set_weight("b", weight)
                    held = [take(pool, b"key-%d" % number) for number in range(100)]
                    counts = Counter(lease.engine.id for lease in held)
                    for lease in held:
                        pool.settle(lease, OK, 0.01)
                    self.assertTrue(least <= counts["b"] <= most, (weight, counts))

    def test_a_weight_that_changes_while_its_engine_is_out_counts_when_it_is_back(self) -> None:
        for name in STRATEGIES:
            with self.subTest(strategy=name):
                clock = Clock()
                pool = make_pool(name, (1, 1), clock)
                ask(pool)
                pool.set_draining("b", True)
                ask(pool)
                pool.set_weight("b", 9)
                self.assertEqual(shares(pool, 10), {"a": 10})
                pool.set_draining("b", False)
                clock.now_s += 1000  # how fast `a` was is forgotten
                counts = Counter(take(pool, b"key-%d" % number).engine.id for number in range(100))
                self.assertTrue(80 <= counts["b"] <= 98, counts)

    def test_an_engine_that_fails_fast_does_not_attract_load(self) -> None:
        # Open loop: a request every 10 ms; healthy engines take 5 s each, the broken one fails within 1 ms.
        for name in STRATEGIES:
            with self.subTest(strategy=name):
                clock = Clock()
                pool = make_pool(name, (1, 1, 1, 1), clock)
                busy: list[tuple[float, Lease]] = []
                counts: Counter[str] = Counter()
                for number in range(4000):
                    clock.now_s += 0.01
                    while busy and busy[0][0] <= clock.now_s:
                        pool.settle(busy.pop(0)[1], OK, 5.0)
                    lease = take(pool, b"key-%d" % number)
                    counts[lease.engine.id] += 1
                    if lease.engine.id == "a":
                        pool.settle(lease, ERROR, 0.001)
                    else:
                        busy.append((clock.now_s + 5.0, lease))
                # A blind choice gives it its fair share, 1000; one that looks at load or latency stays away from it.
                limit = 1100 if name in ("round_robin", "random") else 300
                self.assertLessEqual(counts["a"], limit, counts)


class RoundRobinTest(unittest.TestCase):
    def test_three_engines_get_exactly_equal_counts(self) -> None:
        pool = make_pool("round_robin", (1, 1, 1))
        self.assertEqual(shares(pool, 3000), {"a": 1000, "b": 1000, "c": 1000})

    def test_equal_engines_take_turns(self) -> None:
        pool = make_pool("round_robin", (4, 4, 4))
        turns = [ask(pool) for _ in range(12)]
        self.assertEqual(turns, turns[:3] * 4)
        self.assertEqual(set(turns[:3]), {"a", "b", "c"})

    def test_weights_give_exact_proportions_in_every_round(self) -> None:
        pool = make_pool("round_robin", (1, 2, 3))
        for _ in range(50):
            self.assertEqual(shares(pool, 6), {"a": 1, "b": 2, "c": 3})

    def test_weights_without_a_common_measure_stay_exact(self) -> None:
        weights = (7, 13, 1, 29)
        pool = make_pool("round_robin", weights)
        for _ in range(5):
            self.assertEqual(shares(pool, sum(weights)), dict(zip("abcd", weights)))

    def test_a_heavy_engine_is_spread_out_not_bunched(self) -> None:
        pool = make_pool("round_robin", (1, 5))
        turns = "".join(ask(pool) for _ in range(60))
        self.assertLessEqual(max(map(len, turns.split("a"))), 6)  # five turns in a row, never ten
        heavy = make_pool("round_robin", (2, 3))
        self.assertNotIn("bbb", "".join(ask(heavy) for _ in range(60)))

    def test_turns_go_on_where_they_were_when_weights_change(self) -> None:
        pool = make_pool("round_robin", (1, 1, 1, 1))
        self.assertEqual([ask(pool) for _ in range(6)], list("abcdab"))
        pool.set_weight("d", 2)  # it is the turn of those that have not had theirs
        self.assertEqual({ask(pool), ask(pool)}, {"c", "d"})
        pool.set_weight("d", 2)  # says nothing new
        for _ in range(10):
            self.assertEqual(shares(pool, 5), {"a": 1, "b": 1, "c": 1, "d": 2})

    def test_weights_stay_exact_after_they_have_changed(self) -> None:
        pool = make_pool("round_robin", (7, 13, 1, 29))
        shares(pool, 17)
        for name, weight in (("a", 1), ("c", 1000), ("d", 13), ("b", 1), ("c", 1), ("d", 1)):
            pool.set_weight(name, weight)
            shares(pool, 3)
        pool.set_weight("a", 3)
        shares(pool, 6)
        for _ in range(20):
            self.assertEqual(shares(pool, 6), {"a": 3, "b": 1, "c": 1, "d": 1})

    def test_rotations_of_several_gateways_begin_at_places_of_their_own_and_stay_exact(self) -> None:
        for weights in ((3, 3, 3, 3), (7, 13, 5, 29), (1, 1, 2, 2)):
            firsts: Counter[str] = Counter()
            for seed in range(300):
                pool = make_pool("round_robin", weights, seed=seed, scattered=True)
                first = ask(pool)
                firsts[first] += 1
                if seed < 10:
                    total = sum(weights)
                    self.assertEqual(shares(pool, total - 1) + Counter(first), dict(zip("abcd", weights)))
                    pool.set_weight("a", 1)
                    pool.set_weight("b", 1)
                    pool.set_weight("c", 2)
                    pool.set_weight("d", 4)
                    shares(pool, 8)
                    self.assertEqual(shares(pool, 8), {"a": 1, "b": 1, "c": 2, "d": 4})
            self.assertGreater(min(firsts[name] for name in "abcd"), 10, firsts)
            self.assertLess(max(firsts.values()), 240, firsts)

    def test_however_often_weights_change_nobody_gets_much_more_or_less_than_they_say(self) -> None:
        for seed in range(12):
            rng = Random(seed)
            every, names = rng.choice((1, 2, 7, 20)), "abcde"[: rng.choice((2, 3, 5))]
            pool = make_pool("round_robin", (1,) * len(names))
            due: Counter[str] = Counter()
            got: Counter[str] = Counter()
            for number in range(1000):
                if number % every == 0:
                    pool.set_weight(rng.choice(names), rng.choice((1, 1, 2, 3, 5, 9)))
                weights = {engine.id: engine.weight for engine in pool.engines}
                got[ask(pool)] += 1
                for name, weight in weights.items():
                    due[name] += weight / sum(weights.values())  # type: ignore[assignment]
                    self.assertLess(abs(got[name] - due[name]), 2, (seed, every, number, name))

    def test_order_survives_requests_that_stay_long(self) -> None:
        pool = make_pool("round_robin", (1, 1, 1))
        self.assertEqual(Counter(take(pool).engine.id for _ in range(30)), {"a": 10, "b": 10, "c": 10})

    def test_an_engine_that_returns_does_not_catch_up(self) -> None:
        pool = make_pool("round_robin", (1, 1, 1))
        away = take(pool)
        pool.settle(away, Outcome("refused", "refused"), 0.0)
        shares(pool, 100)
        pool.record_probe(away.engine, None, 2, 1)
        self.assertEqual(set(shares(pool, 30).values()), {10})


class RandomTest(unittest.TestCase):
    def test_shares_follow_the_weights(self) -> None:
        # 99.9 % quantiles of chi-square with 2 and 3 degrees of freedom.
        for weights, limit in (((1, 1, 1), 13.82), ((1, 2, 3), 13.82), ((10, 1, 5, 3), 16.27)):
            with self.subTest(weights=weights):
                counts = shares(make_pool("random", weights, seed=20), 12000)
                self.assertLess(chi_square(counts, dict(zip("abcd", weights))), limit, counts)

    def test_choices_are_independent_of_each_other(self) -> None:
        pool = make_pool("random", (1, 1, 1), seed=21)
        turns = [ask(pool) for _ in range(9001)]
        pairs = Counter(a + b for a, b in zip(turns, turns[1:]))
        self.assertLess(chi_square(pairs, dict.fromkeys((a + b for a in "abc" for b in "abc"), 1)), 26.12)


class LeastConnectionsTest(unittest.TestCase):
    def test_the_emptiest_engine_is_chosen(self) -> None:
        pool = make_pool("least_connections", (1, 1, 1))
        held = [take(pool) for _ in range(9)]
        self.assertEqual(Counter(lease.engine.id for lease in held), {"a": 3, "b": 3, "c": 3})
        for lease in (held[0], held[1]):
            pool.settle(lease, OK, 0.01)
        emptied = {held[0].engine.id, held[1].engine.id}
        self.assertEqual({take(pool).engine.id, take(pool).engine.id}, emptied)

    def test_load_is_counted_per_weight(self) -> None:
        pool = make_pool("least_connections", (1, 2, 3))
        self.assertEqual(Counter(take(pool).engine.id for _ in range(60)), {"a": 10, "b": 20, "c": 30})

    def test_ties_are_broken_fairly(self) -> None:
        counts = shares(make_pool("least_connections", (1, 1, 1, 1), seed=22), 8000)
        self.assertLess(chi_square(counts, dict.fromkeys("abcd", 1)), 16.27, counts)

    def test_a_recent_failure_ranks_behind_a_busy_engine_and_is_forgiven(self) -> None:
        clock = Clock()
        pool = make_pool("least_connections", (1, 1), clock)
        failing = take(pool)
        pool.settle(failing, ERROR, 0.001)
        others = [take(pool).engine for _ in range(5)]
        self.assertNotIn(failing.engine, others)
        clock.now_s += 60.0
        self.assertIs(take(pool).engine, failing.engine)


class PowerOfTwoTest(unittest.TestCase):
    def test_of_two_engines_the_emptier_is_always_chosen(self) -> None:
        pool = make_pool("power_of_two", (1, 1))
        self.assertEqual(Counter(take(pool).engine.id for _ in range(100)), {"a": 50, "b": 50})

    def test_idle_engines_are_chosen_evenly(self) -> None:
        counts = shares(make_pool("power_of_two", (1,) * 5, seed=23), 10000)
        self.assertLess(chi_square(counts, dict.fromkeys("abcde", 1)), 18.47, counts)

    def test_load_stays_far_closer_together_than_at_random(self) -> None:
        def spread(strategy: str) -> int:
            pool = make_pool(strategy, (1,) * 20, seed=24)
            loads = Counter(take(pool).engine.id for _ in range(2000))
            return max(loads.values()) - min(loads.values())

        self.assertLess(spread("power_of_two"), 8)
        self.assertGreater(spread("random"), 15)

    def test_the_fullest_engine_is_left_alone(self) -> None:
        pool = make_pool("power_of_two", (1, 1, 1))
        first = take(pool)
        self.assertNotIn(first.engine.id, {ask(pool) for _ in range(100)})


class LatencyTest(unittest.TestCase):
    def run_for(self, pool: ModelPool, clock: Clock, took_s: dict[str, float], count: int) -> Counter[str]:
        """One request at a time, each as slow as its engine."""
        counts: Counter[str] = Counter()
        for _ in range(count):
            lease = take(pool)
            name = lease.engine.id
            clock.now_s += took_s[name]
            pool.settle(lease, OK, took_s[name])
            counts[name] += 1
        return counts

    def test_the_faster_engine_gets_more(self) -> None:
        clock = Clock()
        pool = make_pool("latency", (1, 1, 1), clock)
        counts = self.run_for(pool, clock, {"a": 0.5, "b": 0.05, "c": 0.5}, 400)
        self.assertGreater(counts["b"], 300, counts)

    def test_a_queue_outweighs_a_small_difference(self) -> None:
        clock = Clock()
        pool = make_pool("latency", (1, 1), clock)
        self.run_for(pool, clock, {"a": 0.10, "b": 0.11}, 50)
        held = Counter(take(pool).engine.id for _ in range(100))
        self.assertLess(abs(held["a"] - held["b"]), 30, held)

    def test_a_slow_spell_is_noticed_at_once_and_forgotten_later(self) -> None:
        clock = Clock()
        pool = make_pool("latency", (1, 1), clock)
        took_s = {"a": 0.1, "b": 0.3}
        self.run_for(pool, clock, took_s, 50)
        spell = take(pool)
        self.assertEqual(spell.engine.id, "a")
        pool.settle(spell, OK, 5.0)  # one slow answer among many fast ones: no average may hide it
        self.assertEqual(set(self.run_for(pool, clock, took_s, 10)), {"b"})
        clock.now_s += 300.0
        self.assertIn("a", self.run_for(pool, clock, took_s, 60))

    def test_unmeasured_engines_are_not_tried_in_file_order(self) -> None:
        firsts = Counter(take(make_pool("latency", (1, 1, 1), seed=seed)).engine.id for seed in range(120))
        self.assertGreater(min(firsts[name] for name in "abc"), 20, firsts)

    def test_an_engine_that_was_away_is_not_flooded_until_its_first_answer(self) -> None:
        for count in (4, 40):  # of the latter the loads are kept
            with self.subTest(engines=count):
                clock = Clock()
                pool = make_pool("latency", (1,) * count, clock)
                took_s = dict.fromkeys((engine.id for engine in pool.engines), 0.3)
                self.run_for(pool, clock, took_s, 3 * count)
                pool.set_draining("a", True)
                clock.now_s += 60.0
                self.run_for(pool, clock, took_s, 3 * count)
                pool.set_draining("a", False)
                counts = Counter(take(pool).engine.id for _ in range(3 * count))
                self.assertGreater(counts["a"], 0)
                self.assertLess(counts["a"], 10, counts)


class PrefixAffinityTest(unittest.TestCase):
    def test_one_key_stays_on_one_engine(self) -> None:
        pool = make_pool("prefix_affinity", (1,) * 8)
        for number in range(100):
            key = b"session-%d" % number
            self.assertEqual(len({ask(pool, key) for _ in range(5)}), 1)

    def test_keys_spread_by_weight(self) -> None:
        pool = make_pool("prefix_affinity", (1, 1, 2))
        counts = Counter(ask(pool, b"session-%d" % i) for i in range(8000))
        for name, share in (("a", 0.25), ("b", 0.25), ("c", 0.5)):
            self.assertAlmostEqual(counts[name] / 8000, share, delta=0.08)

    def test_losing_an_engine_moves_only_its_own_keys(self) -> None:
        clock = Clock()
        pool = make_pool("prefix_affinity", (1,) * 5, clock)
        keys = [b"session-%d" % i for i in range(500)]
        before = {key: ask(pool, key) for key in keys}
        lost = take(pool, keys[0])
        pool.settle(lost, Outcome("refused", "refused"), 0.0)
        for key in keys:
            after = ask(pool, key)
            if before[key] == lost.engine.id:
                self.assertNotEqual(after, lost.engine.id)
            else:
                self.assertEqual(after, before[key])
        pool.record_probe(lost.engine, None, 2, 1)
        clock.now_s += 60.0
        self.assertEqual({key: ask(pool, key) for key in keys}, before)

    def test_a_hot_key_overflows_to_others_within_the_bound(self) -> None:
        pool = make_pool("prefix_affinity", (1,) * 4)
        held = Counter(take(pool, b"everybody's system prompt").engine.id for _ in range(400))
        self.assertLessEqual(max(held.values()), 1.25 * 400 / 4 + 1, held)

    def test_requests_without_a_key_are_spread(self) -> None:
        counts = shares(make_pool("prefix_affinity", (1, 1, 1)), 3000)
        self.assertGreater(min(counts.values()), 600, counts)

    def test_placement_does_not_depend_on_the_process_or_the_order_of_engines(self) -> None:
        def placed(order: str) -> list[str]:
            engines = tuple(EngineSpec(f"http://h:{ord(name)}/v1", id=name) for name in order)
            pool = ModelPool(ModelSpec("m", engines), "prefix_affinity", Random(), Clock())
            return [ask(pool, b"session-%d" % i) for i in range(100)]

        self.assertEqual(placed("abc"), placed("cab"))


if __name__ == "__main__":
    unittest.main()
