"""Models that are there because engines list them: which, with which engines, and how many at most."""

from __future__ import annotations

import json
import math
import tempfile
import time
import unittest
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional
from unittest import mock

from gateway.configuration import ConfigurationError
from gateway.errors import RequestRefused
from gateway.fleet import load_engines_file
from gateway.fleetlines import provider_fleet
from gateway.offered import Offered
from gateway.routing import listed
from gateway.routing.engine import Engine, ListedModel
from gateway.routing.listed import with_listed
from gateway.routing.router import Router
from gateway.routing.specs import EngineSpec, FleetSpec, ModelSpec, model_from
from gateway.routing.splits import SplitSpec
from gateway.tools.replay import void
from gateway.upstream.listing import REMOTE_INTERVAL_S, ModelLists

A, B = EngineSpec("http://127.0.0.1:1"), EngineSpec("http://127.0.0.1:2")
GROUP = ModelSpec("local", (A, B))


def fleet_of(*models: ModelSpec, groups: Sequence[ModelSpec] = (GROUP,), **more: Any) -> FleetSpec:
    return FleetSpec(models, groups=tuple(groups), **more)


def offered(fleet: FleetSpec, said: dict[EngineSpec, list[str]], ever: Optional[dict[str, None]] = None) -> FleetSpec:
    """The fleet when these engines list these names."""

    def look(group: str, engine: EngineSpec) -> list[ListedModel]:
        return [ListedModel(name, 100 if name == "long" else None) for name in said.get(engine, [])]

    return with_listed(fleet, look, {} if ever is None else ever)


def engines(fleet: FleetSpec) -> dict[str, list[Optional[str]]]:
    return {model.name: [engine.id for engine in model.engines] for model in fleet.models}


class OfferTest(unittest.TestCase):
    def test_a_name_that_several_list_is_one_model_with_several_engines(self) -> None:
        fleet = offered(fleet_of(), {A: ["x", "y"], B: ["y", "z"]})
        self.assertEqual(engines(fleet), {"x": [A.id], "y": [A.id, B.id], "z": [B.id]})
        self.assertEqual({model.source for model in fleet.models}, {"local"})

    def test_what_was_configured_goes_before_what_is_listed(self) -> None:
        real = ModelSpec("real", (B,), aliases=("alias",))
        fleet = fleet_of(real, splits=(SplitSpec("split", (("real", 1),)),))
        self.assertEqual(list(engines(offered(fleet, {A: ["real", "alias", "split", "x"]}))), ["real", "x"])

    def test_nothing_listed_is_no_model(self) -> None:
        self.assertEqual(offered(fleet_of(), {}).models, ())

    def test_the_groups_settings_are_its_models(self) -> None:
        group = ModelSpec("g", (A,), strategy="latency", fallbacks=("x", "y"), strip=("temperature",), tpm=5)
        x, y = offered(fleet_of(groups=[group]), {A: ["x", "y"]}).models
        self.assertEqual((x.strategy, x.tpm, x.fallbacks, y.fallbacks), ("latency", 5, ("y",), ("x",)))
        self.assertIsNotNone(x.params)

    def test_the_context_is_as_listed_unless_it_was_said(self) -> None:
        self.assertEqual([m.max_model_len for m in offered(fleet_of(), {A: ["long", "x"]}).models], [100, None])
        group = ModelSpec("g", (A,), max_model_len=7)
        self.assertEqual(offered(fleet_of(groups=[group]), {A: ["long"]}).models[0].max_model_len, 7)

    def test_names_are_bounded_for_ever(self) -> None:
        ever: dict[str, None] = {}
        with mock.patch.object(listed, "LISTED_MAX", 3):
            self.assertEqual(list(engines(offered(fleet_of(), {A: ["a", "b"]}, ever))), ["a", "b"])
            self.assertEqual(list(engines(offered(fleet_of(), {A: ["c", "d"]}, ever))), ["c"])
            self.assertEqual(list(engines(offered(fleet_of(), {A: ["d", "b", "a"]}, ever))), ["b", "a"])

    def test_two_groups_may_have_the_same_engine(self) -> None:
        fleet = fleet_of(groups=[GROUP, ModelSpec("other", (EngineSpec(A.url, weight=5),))])
        model = with_listed(fleet, lambda group, engine: [ListedModel("x")], {}).models[0]
        self.assertEqual([(e.id, e.weight) for e in model.engines], [(A.id, 1), (B.id, 1)])


class RouterTest(unittest.TestCase):
    def test_listed_models_come_and_go(self) -> None:
        base = fleet_of(model_from("real", ["http://127.0.0.1:9"]))
        router = Router(offered(base, {A: ["x", "y"]}))
        kept = router.pools["x"]
        self.assertEqual(router.names(), ("real", "x", "y"))
        gone = router.reload(offered(base, {A: ["x"], B: ["z"]}))
        self.assertEqual((router.names(), [engine.model_name for engine in gone]), (("real", "x", "z"), ["y"]))
        self.assertIs(router.pools["x"], kept)

    def test_the_groups_engines_stay(self) -> None:
        router = Router(fleet_of())
        before = router.sources["local"].engines
        router.reload(offered(fleet_of(), {A: ["x"]}))
        self.assertEqual(router.sources["local"].engines, before)
        router.reload(FleetSpec((model_from("real", ["echo:"]),)))
        self.assertEqual(router.sources, {})
        self.assertTrue(before[0].removed)

    def test_none_of_them_stands_in_unless_it_is_named(self) -> None:
        real = ModelSpec("real", (EngineSpec("http://127.0.0.1:9"),), fallbacks=None)
        named = ModelSpec("named", (EngineSpec("http://127.0.0.1:8"),), fallbacks=("x", "not-yet"))
        router = Router(offered(fleet_of(real, named), {A: ["x", "y"]}))
        self.assertEqual([pool.name for pool in router.route("real")], ["real", "named"])
        self.assertEqual([pool.name for pool in router.route("named")], ["named", "x", "real"])
        self.assertEqual([pool.name for pool in router.route("x")], ["x"])

    def test_without_any_model_yet_there_is_none_to_ask(self) -> None:
        router = Router(fleet_of())
        for name in ("x", None):
            with self.subTest(name), self.assertRaises(RequestRefused) as caught:
                router.route(name)
            self.assertEqual(caught.exception.code, "model_not_found")

    def test_the_default_may_be_one_that_comes(self) -> None:
        router = Router(fleet_of(default_model="y"))
        router.reload(offered(fleet_of(default_model="y"), {A: ["x", "y"]}))
        self.assertEqual(router.route(None)[0].name, "y")


class OfferedTest(unittest.TestCase):
    def setUp(self) -> None:
        fleet = fleet_of(ModelSpec("real", (B,)))
        self.router = Router(fleet)
        self.offered = Offered(self.router, fleet, lambda *change: void(self.router.reload(*change)))

    def say(self, *names: str) -> None:
        """The group's first engine lists these models."""
        engine = self.router.sources["local"].engines[0]
        engine.listed = tuple(ListedModel(name) for name in names)
        self.offered.relist(engine)

    def weights(self) -> dict[str, list[int]]:
        return {name: [engine.weight for engine in pool.snapshot()] for name, pool in self.router.pools.items()}

    def test_an_operators_weights_outlast_another_list_but_not_a_reload(self) -> None:
        self.say("x")
        for name, spec in (("real", B), ("x", A)):
            self.router.pools[name].set_weight(spec.id or "", 5)
        self.assertEqual(self.weights(), {"real": [5], "x": [5]})
        self.say("x", "y")
        self.assertEqual(self.weights(), {"real": [5], "x": [5], "y": [1]})
        self.offered.reload(self.offered.configured, ())
        self.assertEqual(self.weights(), {"real": [1], "x": [1], "y": [1]})


class PrefixTest(unittest.TestCase):
    def router(self, **more: Any) -> Router:
        fleet = provider_fleet({"GROQ_API_KEY", "OPENROUTER_API_KEY"}.__contains__)
        assert fleet is not None
        return Router(FleetSpec(fleet.models, **more))

    def test_a_prefix_leads_to_its_provider_whatever_stands_behind_it(self) -> None:
        router = self.router()
        for name, pool in (("groq/x", "groq"), ("groq/meta/x", "groq"), ("openrouter/a/b:free", "openrouter")):
            self.assertEqual([p.name for p in router.route(name)], [pool])

    def test_who_names_none_is_served_as_the_default_is(self) -> None:
        fleet = provider_fleet({"OPENAI_API_KEY", "GROQ_API_KEY"}.__contains__)
        assert fleet is not None
        for default, has_it in (("openai/x", True), ("groq/x", False), (None, False)):
            router = Router(FleetSpec(fleet.models, default_model=default))
            for named in (None, ""):
                self.assertIs(router.serves(named, "/responses"), has_it, default)
            self.assertTrue(router.serves("openai/y", "/responses"))

    def test_nothing_else_leads_anywhere(self) -> None:
        router = self.router()
        for name in ("groq", "groq/", "openai/x", "x", "", None):
            with self.subTest(name), self.assertRaisesRegex(RequestRefused, "begin with groq/…, openrouter/…"):
                router.route(name)

    def test_listed_names_stand_behind_the_prefix(self) -> None:
        router = self.router()
        router.pools["openrouter"].engines[0].listed = (ListedModel("a/b"),)
        router.pools["groq"].engines[0].listed = (ListedModel("x", 5), ListedModel("y"))
        expected = (ListedModel("groq/x", 5), ListedModel("groq/y"), ListedModel("openrouter/a/b"))
        self.assertEqual(router.listed(), expected)
        self.assertIs(router.listed(), router.listed())
        self.assertLessEqual({"groq/x", "openrouter/a/b"}, set(router.counted_names()))

    def test_a_default_is_said_or_there_is_none(self) -> None:
        self.assertIsNone(self.router().unnamed())
        self.assertEqual(self.router(default_model="groq/x").unnamed(), "groq/x")
        with self.assertRaises(ValueError):
            self.router(default_model="gpt-4o")


class DueTest(unittest.TestCase):
    def due(self, spec: EngineSpec, asked_before_s: float, interval_s: float, known: bool = False) -> bool:
        engine = Engine(spec, "m")
        engine.list_asked_s = time.monotonic() - asked_before_s
        engine.listed = () if known else None
        return ModelLists(lambda engine: True, dict).due(engine, interval_s)

    def test_an_engine_is_asked_with_its_probes_a_provider_less_often(self) -> None:
        for spec, before_s, interval_s, expected in (
            (A, 1.0, 5.0, False),
            (A, 4.0, 5.0, True),
            (EngineSpec(provider="ollama"), 4.0, 5.0, True),
            (EngineSpec(provider="groq"), 4.0, 5.0, False),
            (EngineSpec(provider="groq"), REMOTE_INTERVAL_S + 1, 5.0, True),
            (EngineSpec(provider="groq"), REMOTE_INTERVAL_S + 1, 3600.0, False),
            (EngineSpec(provider="groq"), math.inf, 3600.0, True),
        ):
            with self.subTest(spec, before_s=before_s, interval_s=interval_s):
                self.assertEqual(self.due(spec, before_s, interval_s), expected)

    def test_without_probes_it_is_asked_until_it_has_said_something(self) -> None:
        self.assertTrue(self.due(A, 0.0, 0.0))
        self.assertFalse(self.due(A, 100.0, 0.0, known=True))
        self.assertFalse(self.due(EngineSpec(provider="groq"), 5.0, 0.0))  # a key that is refused is refused again


class FileTest(unittest.TestCase):
    def load(self, **models: Any) -> FleetSpec:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "engines.json"
            path.write_text(json.dumps({"models": models}))
            return load_engines_file(path)

    def faults(self, **models: Any) -> list[str]:
        with self.assertRaises(ConfigurationError) as caught:
            self.load(**models)
        return list(caught.exception.faults)

    def test_a_group_is_read(self) -> None:
        fleet = self.load(local={"models": "auto", "engines": [{"provider": "ollama"}], "tpm": 5})
        self.assertEqual((fleet.models, fleet.default_model), ((), None))
        self.assertEqual(fleet.groups, (ModelSpec("local", (EngineSpec(provider="ollama"),), tpm=5),))

    def test_others_may_name_what_will_be_listed(self) -> None:
        self.load(
            local={"models": "auto", "engines": ["http://127.0.0.1:1"]},
            real={"engines": ["http://127.0.0.1:2"], "fallbacks": ["x"]},
            m={"split": {"x": 1, "real": 2}},
        )

    def test_what_is_wrong_is_named_where_it_stands(self) -> None:
        engine = "http://127.0.0.1:1"
        for model, expected in (
            (
                {"models": ["x"], "engines": [engine]},
                'models.g.models: must be "auto", for the names that the engines list, not ["x"]',
            ),
            ({"models": "auto"}, "models.g.engines: is missing"),
            (
                {"models": "auto", "engines": [{"url": engine, "model": "x"}]},
                "models.g.engines[0].model: says one name where the engine's list says them all",
            ),
            (
                {"models": "auto", "engines": ["echo:"]},
                "models.g.engines[0]: the echo engine lists nothing: name its models one by one",
            ),
            (
                {"models": "auto", "engines": [{"provider": "azure", "url": "https://x.openai.azure.com"}]},
                "models.g.engines[0]: azure does not list what it serves: name its models one by one",
            ),
            (
                {"engines": [{"provider": "azure"}]},
                "models.g.engines[0].url: is missing: each engine of azure has an address of its own",
            ),
            ({"engines": [{"model": "x"}]}, "models.g.engines[0].url: is missing"),
        ):
            with self.subTest(model):
                self.assertEqual(self.faults(g=model), [expected])

    def test_an_unknown_provider_is_named(self) -> None:
        faults = self.faults(g={"engines": [{"provider": "grok", "url": "http://a"}]})
        self.assertRegex(faults[0], r"^models\.g\.engines\[0\]\.provider: must be one of openai, .*, not \"grok\"$")


if __name__ == "__main__":
    unittest.main()
