"""Models that others answer for: who answers, for whom always the same one, what the file may say of it."""

from __future__ import annotations

import json
import tempfile
import unittest
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

from gateway.configuration import ConfigurationError
from gateway.errors import RequestRefused
from gateway.fleet import load_engines_file
from gateway.routing.router import Router
from gateway.routing.specs import FleetSpec, model_from
from gateway.routing.splits import SplitSpec
from gateway.routing.tries import Tries
from gateway.settings import load

THERE = frozenset(("a", "b", "c"))
ECHO = {"engines": ["echo:"]}
KEYS = [f"session-{number}" for number in range(4000)]


def never() -> float:
    raise AssertionError("nothing was left to chance")


class ChoiceTest(unittest.TestCase):
    def test_shares_are_by_weight(self) -> None:
        split = SplitSpec("m", (("a", 9), ("b", 1)))
        counts = Counter(split.choose(key, THERE, never) for key in KEYS)
        self.assertAlmostEqual(counts["b"] / len(KEYS), 0.1, delta=0.02)
        chance = Random(7).random
        counts = Counter(split.choose("", THERE, chance) for _ in KEYS)
        self.assertAlmostEqual(counts["b"] / len(KEYS), 0.1, delta=0.02)

    def test_the_same_key_gets_the_same_model_in_every_process(self) -> None:
        split = SplitSpec("m", (("a", 1), ("b", 1)))
        self.assertEqual([split.choose(key, THERE, never) for key in KEYS[:16]], list("aaaaaaabbaaabbab"))
        again = SplitSpec("m", (("b", 1), ("a", 1)))  # in whatever order
        for key in KEYS[:200]:
            self.assertEqual(split.choose(key, THERE, never), again.choose(key, THERE, never))

    def test_of_two_splits_each_draws_for_itself(self) -> None:
        one, two = (SplitSpec(name, (("a", 1), ("b", 1))) for name in ("m", "n"))
        same = sum(one.choose(key, THERE, never) == two.choose(key, THERE, never) for key in KEYS)
        self.assertAlmostEqual(same / len(KEYS), 0.5, delta=0.05)

    def test_a_new_model_takes_its_share_and_moves_nobody_else(self) -> None:
        before = SplitSpec("m", (("a", 1), ("b", 1)))
        after = SplitSpec("m", (("a", 1), ("b", 1), ("c", 2)))
        moved = [(before.choose(k, THERE, never), after.choose(k, THERE, never)) for k in KEYS]
        self.assertEqual({new for old, new in moved if old != new}, {"c"})

    def test_its_name_may_have_ollamas_latest_unless_that_is_another_model(self) -> None:
        split = SplitSpec("m", (("a", 1),))
        router = Router(FleetSpec((model_from("a", ["echo:"]),), splits=(split,)))
        assert router.splits is not None
        self.assertIs(router.splits.get("m:latest"), split)
        self.assertEqual(router.names(), ("a", "m"))
        router.reload(FleetSpec((model_from("a", ["echo:"]), model_from("m:latest", ["echo:"])), splits=(split,)))
        self.assertIsNone(router.splits.get("m:latest"))

    def test_models_that_are_not_there_leave_their_share_to_the_others(self) -> None:
        split = SplitSpec("m", (("a", 9), ("b", 1)))
        self.assertEqual({split.choose(key, {"b"}, never) for key in KEYS[:50]}, {"b"})
        self.assertIsNone(split.choose("k", (), never))


class RouteTest(unittest.TestCase):
    def router(self, fallback: str = "any", **spec: Any) -> Router:
        models = tuple(model_from(name, [f"http://127.0.0.1:{port}"]) for port, name in enumerate("abc", 1))
        fleet = FleetSpec(models, splits=(SplitSpec("m", (("a", 1),), **spec),))
        return Router(fleet, fallback=fallback)

    def names(self, router: Router, stand_ins: tuple[str, ...]) -> list[str]:
        return [pool.name for pool in router.with_stand_ins(router.route("a"), stand_ins)]

    def test_its_own_fallbacks_stand_in_and_no_others(self) -> None:
        self.assertEqual(self.names(self.router(), ("c",)), ["a", "c"])
        self.assertEqual(self.names(self.router(), ()), ["a"])
        self.assertEqual(self.names(self.router(), ("a", "gone", "c")), ["a", "c"])

    def test_where_none_of_its_own_is_there_the_first_of_them_answers(self) -> None:
        self.assertEqual(self.router().stand_in(("gone", "c", "b")), "c")
        self.assertIsNone(self.router().stand_in(("gone",)))

    def test_without_fallbacks_a_chain_has_its_members_and_a_split_has_none(self) -> None:
        router = self.router("off")
        self.assertEqual(router.stand_ins_of(SplitSpec("m", (("a", 1),), ("b",))), ("b",))
        several = SplitSpec("m", (("a", 1), ("b", 1)), ("c",))
        self.assertEqual((router.stand_ins_of(several), self.router().stand_ins_of(several)), ((), ("c",)))

    def test_they_stand_in_wherever_they_are(self) -> None:
        models = (model_from("near", ["http://near"]), model_from("far", ["http://far"]))
        router = Router(FleetSpec(models), is_near=lambda host: host == "near")
        route = router.route("near")
        self.assertFalse(Tries(route, 3, b"", reaches=router.reaches).may_ask(route[1]))
        self.assertTrue(Tries(route, 3, b"", reaches=router.reaches, named=["far"]).may_ask(route[1]))

    def test_it_is_named_with_the_others(self) -> None:
        router = self.router(aliases=("x",), fallbacks=("b",))
        self.assertEqual(router.names(), ("a", "b", "c", "m", "x"))
        self.assertEqual(router.models(), ("a", "b", "c", "m"))
        self.assertEqual(router.names_of("m"), ("m", "x"))
        self.assertIn("m (is a, then b)", router.labels())
        with self.assertRaises(RequestRefused):
            router.route("m")  # who asks has one of the others chosen first

    def test_it_may_be_the_default(self) -> None:
        models = (model_from("a", ["http://127.0.0.1:1"]),)
        router = Router(FleetSpec(models, "m", splits=(SplitSpec("m", (("a", 1),)),)))
        assert router.splits is not None
        self.assertEqual(router.splits[None].name, "m")
        self.assertEqual(router.counted_names(), {"a": "a", "m": "m"})

    def test_a_fleet_without_any_has_none_to_look_through(self) -> None:
        self.assertIsNone(Router(FleetSpec((model_from("a", ["echo:"]),))).splits)


class FileTest(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "engines.json"

    def load(self, **models: Any) -> FleetSpec:
        self.path.write_text(json.dumps({"models": {"a": ECHO, **models}}))
        return load_engines_file(self.path)

    def faults(self, **models: Any) -> list[str]:
        with self.assertRaises(ConfigurationError) as caught:
            self.load(**models)
        return list(caught.exception.faults)

    def test_a_split_is_read(self) -> None:
        fleet = self.load(b=ECHO, m={"split": {"a": 9, "b": 1}, "aliases": ["x"], "force": {"seed": 7}})
        self.assertEqual([model.name for model in fleet.models], ["a", "b"])
        expected = SplitSpec("m", (("a", 9), ("b", 1)), None, ("x",), force={"seed": 7})
        self.assertEqual(fleet.splits, (expected,))

    def test_a_chain_is_read(self) -> None:
        fleet = self.load(b=ECHO, m={"chain": ["b", "a"]})
        self.assertEqual(fleet.splits, (SplitSpec("m", (("b", 1),), ("a",)),))

    def test_every_fault_is_named_where_it_stands(self) -> None:
        for model, expected in (
            ({"split": {"a": 0}}, "models.m.split.a: must be an integer from 1 to 1000000, not 0"),
            ({"split": {"a": True}}, "models.m.split.a: must be an integer from 1 to 1000000, not true"),
            ({"split": {}}, "models.m.split: must be an object of 1 to 64 models with their weights"),
            ({"split": ["a"]}, 'models.m.split: must be an object of models with their weights, not ["a"]'),
            ({"split": {"z": 1}}, 'models.m.split.z: there is no model "z"'),
            ({"chain": ["a", "z"]}, 'models.m.chain[1]: there is no model "z"'),
            ({"chain": ["a", "a"]}, 'models.m.chain[1]: "a" is named twice'),
            ({"chain": []}, "models.m.chain: must be a list of 1 to 64 models"),
            ({"chain": "a"}, "models.m.chain: must be a list of 1 to 64 models"),
            ({"split": {"a": 1}, "fallbacks": ["z"]}, 'models.m.fallbacks[0]: there is no model "z"'),
            ({"split": {"a": 1}, "aliases": ["a"]}, 'models.m.aliases[0]: "a" is taken'),
            (
                {"split": {"m": 1}},
                'models.m.split.m: "m" has no engines itself: only a model with engines can answer',
            ),
            (
                {"split": {"a": 1}, "rpm": 1},
                "models.m.rpm: is for models with engines, not for those made of others; known here: split, fallbacks,"
                " aliases, strip, defaults, force",
            ),
            ({"chain": ["a"], "force": {"temperature": 3}}, "models.m.force.temperature: must be a number from 0 to 2"),
        ):
            with self.subTest(model):
                self.assertEqual(self.faults(m=model), [expected])

    def test_embeddings_of_several_models_cannot_be_compared(self) -> None:
        self.load(m={"chain": ["a"]})
        with self.assertRaisesRegex(ConfigurationError, '^EMBEDDINGS_MODEL: others answer for the model "m"'):
            load({"ENGINES_FILE": str(self.path), "EMBEDDINGS_MODEL": "m"}, None)

    def test_no_model_falls_back_to_one(self) -> None:
        faults = self.faults(b={**ECHO, "fallbacks": ["m"]}, m={"chain": ["a"]})
        self.assertEqual(
            faults, ['models.b.fallbacks[0]: "m" is made of others: only a model with engines can stand in']
        )


if __name__ == "__main__":
    unittest.main()
