"""Models made of others: what may stand in the engines file, how a fault is named, what the router knows."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import unittest
from pathlib import Path
from typing import Any

from gateway.announcing import LINES_MAX, describe, sandbox_lines, start_lines
from gateway.configuration import ConfigurationError
from gateway.errors import RequestRefused
from gateway.fleet import CONSENSUS_KEYS, VIRTUAL_KEYS, load_engines_file
from gateway.routing.router import Router
from gateway.routing.specs import FleetSpec, ModelSpec, model_from
from gateway.routing.virtual import FALLBACKS, MEMBERS_MAX, VIRTUAL_CHECKS, VirtualLinks, VirtualSpec, virtual_faults
from gateway.settings import load

THREE = ("a", "b", "c")


def model(name: str, **changes: Any) -> ModelSpec:
    """A model with one engine."""
    base = model_from(name, [f"http://{name}"])
    return ModelSpec(**{**{key: getattr(base, key) for key in ("name", "engines")}, **changes})


def fleet(*virtual: VirtualSpec, models: tuple[ModelSpec, ...] = (), default: Any = None) -> FleetSpec:
    return FleetSpec(models or tuple(map(model, THREE)), default, virtual=virtual)


class VirtualSpecTest(unittest.TestCase):
    def test_what_is_left_out_has_the_usual_value(self) -> None:
        spec = VirtualSpec("v", THREE)
        self.assertEqual((spec.start, spec.min_families, spec.fallback), (None, 1, "best"))
        self.assertEqual((spec.judge, spec.aliases), (None, ()))

    def test_faults_name_the_field(self) -> None:
        cases: list[tuple[dict[str, object], str]] = [
            ({"name": "a b"}, "^name: must be"),
            ({"members": ("a",)}, f"^members: must be a list of 2 to {MEMBERS_MAX} models"),
            ({"members": tuple(map(str, range(MEMBERS_MAX + 1)))}, "^members: must be a list"),
            ({"members": "abc"}, "^members: must be a list"),
            ({"members": ["a", "b"]}, "^members: must be a list"),
            ({"members": ("a", "b c")}, r"^members\[1\]: must be"),
            ({"members": ("a", 5)}, r"^members\[1\]: must be"),
            ({"members": ("a", "b", "a")}, r'members\[2\]: "a" is'),
            ({"start": 1}, "^start: must be an integer from 2"),
            ({"start": True}, "^start: must be an integer"),
            ({"start": 4}, "^start: must be at most 3, the number of members"),
            ({"min_families": 0}, "^min_families: must be an integer from 1"),
            ({"min_families": None}, "^min_families: must be an integer"),
            ({"fallback": "worst"}, '^fallback: must be one of best, abstain, not "worst"'),
            ({"judge": ""}, "^judge: must be"),
            ({"aliases": ("x", "x")}, r'^aliases\[1\]: "x"'),
        ]
        for change, expected in cases:
            with self.subTest(change), self.assertRaisesRegex(ValueError, expected):
                VirtualSpec(**{"name": "v", "members": THREE, **change})  # type: ignore[arg-type]

    def test_every_faulty_field_is_named_at_once(self) -> None:
        with self.assertRaises(ValueError) as caught:
            VirtualSpec("", (), 0, 0, "", "", ("",))
        faults = str(caught.exception).split("; ")
        self.assertEqual([fault.split(":")[0].partition("[")[0] for fault in faults], list(VIRTUAL_CHECKS))

    def test_each_fallback_and_the_most_members_are_taken(self) -> None:
        for fallback in FALLBACKS:
            self.assertEqual(VirtualSpec("v", THREE, fallback=fallback).fallback, fallback)
        names = tuple(map(str, range(MEMBERS_MAX)))
        self.assertEqual(VirtualSpec("v", names, start=MEMBERS_MAX).members, names)

    def test_specs_are_frozen(self) -> None:
        with self.assertRaises(dataclasses.FrozenInstanceError):
            VirtualSpec("v", THREE).start = 2  # type: ignore[misc]


class LinksTest(unittest.TestCase):
    def assert_faults(self, expected: list[str], *virtual: VirtualSpec, **options: Any) -> None:
        with self.assertRaises(ValueError) as caught:
            fleet(*virtual, **options)
        self.assertEqual(str(caught.exception).split("; "), expected)

    def test_members_exist_once_each_and_are_real(self) -> None:
        aliased = (model("a", aliases=("first",)), model("b"))
        self.assert_faults(
            ['models.v.consensus.members[1]: the model "z" does not exist'], VirtualSpec("v", ("a", "z"))
        )
        self.assert_faults(
            ['models.v.consensus.members[2]: "first" is "a" again: one model has one voice'],
            VirtualSpec("v", ("a", "b", "first")),
            models=aliased,
        )
        self.assert_faults(
            ['models.w.consensus.members[0]: the model "v" is made of others itself'],
            VirtualSpec("v", ("a", "b")),
            VirtualSpec("w", ("v", "b")),
        )
        self.assert_faults(
            ['models.v.consensus.members[0]: the model "v" is made of others itself'], VirtualSpec("v", ("v", "b"))
        )

    def test_members_may_be_named_by_their_aliases(self) -> None:
        aliased = (model("a", aliases=("first",)), model("b"))
        self.assertEqual(fleet(VirtualSpec("v", ("first", "b")), models=aliased).virtual[0].members, ("first", "b"))

    def test_a_judge_exists_and_may_be_a_member(self) -> None:
        self.assertEqual(fleet(VirtualSpec("v", THREE, judge="a")).virtual[0].judge, "a")
        self.assert_faults(
            ['models.v.consensus.judge: the model "z" does not exist'], VirtualSpec("v", THREE, judge="z")
        )

    def test_names_and_aliases_are_nobody_elses(self) -> None:
        aliased = (model("a", aliases=("first",)), model("b"))
        for virtual, expected in (
            ((VirtualSpec("a", ("a", "b")),), ["models.a: the name is taken"]),
            ((VirtualSpec("first", ("a", "b")),), ["models.first: the name is taken"]),
            (
                (VirtualSpec("v", ("a", "b"), aliases=("ok", "b")),),
                ['models.v.aliases[1]: "b" is taken'],
            ),
            (
                (VirtualSpec("v", ("a", "b"), aliases=("w",)), VirtualSpec("w", ("a", "b"))),
                ['models.v.aliases[0]: "w" is taken'],
            ),
            (
                (VirtualSpec("v", ("a", "b"), aliases=("x",)), VirtualSpec("w", ("a", "b"), aliases=("x",))),
                ['models.w.aliases[0]: "x" is taken'],
            ),
            ((VirtualSpec("v", ("a", "b"), aliases=("v",)),), ['models.v.aliases[0]: "v" is taken']),
        ):
            with self.subTest(virtual):
                self.assert_faults(expected, *virtual, models=aliased)

    def test_there_are_as_many_families_as_are_demanded(self) -> None:
        models = (model("a", family="llama"), model("b", family="llama"), model("c"))
        self.assertEqual(fleet(VirtualSpec("v", THREE, min_families=2), models=models).virtual[0].min_families, 2)
        self.assert_faults(
            ["models.v.consensus.min_families: the members are of 2 families only"],
            VirtualSpec("v", THREE, min_families=3),
            models=models,
        )
        self.assertEqual(fleet(VirtualSpec("v", THREE, min_families=3)).virtual[0].min_families, 3)

    def test_the_judge_is_of_no_family_that_counts(self) -> None:
        models = (model("a", family="llama"), model("b", family="llama"), model("c"))
        self.assert_faults(
            ["models.v.consensus.min_families: the members are of 1 families only"],
            VirtualSpec("v", ("a", "b"), min_families=2, judge="c"),
            models=models,
        )

    def test_it_may_be_the_default(self) -> None:
        spec = VirtualSpec("v", THREE, aliases=("sure",))
        for name in ("v", "sure"):
            self.assertEqual(fleet(spec, default=name).default_model, name)
        self.assert_faults(['default_model: there is no model "w"'], spec, default="w")

    def test_it_stands_in_for_nobody(self) -> None:
        spec = VirtualSpec("v", THREE, aliases=("sure",))
        for key, name in (("fallbacks", "v"), ("fallbacks", "sure"), ("context_fallbacks", "v")):
            models = (model("a", **{key: ("b", name)}), model("b"), model("c"))
            told = f'models.a.{key}[1]: "{name}" is made of others: only a model with engines can stand in'
            self.assert_faults([told], spec, models=models)

    def test_a_name_that_stands_twice_in_a_list_is_told_once(self) -> None:
        links = VirtualLinks("v", ("x", "x"), ("a", "a", None))
        self.assertEqual(list(virtual_faults([links], {"a": "a", "b": "b"}, {"a": "a", "b": "b"})), [])

    def test_a_models_family_is_its_name_unless_it_says_so(self) -> None:
        one = fleet(models=(model("a", family="llama"), model("b")))
        self.assertEqual(one.family_by_model(), {"a": "llama", "b": "b"})


class FileTest(unittest.TestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name) / "engines.json"

    def load(self, models: Any, **more: Any) -> FleetSpec:
        text = models if isinstance(models, str) else json.dumps({"models": models, **more})
        self.path.write_text(text, "utf-8")
        return load_engines_file(self.path)

    def with_v(self, value: Any, **more: Any) -> FleetSpec:
        return self.load({"a": {"engines": ["http://a"]}, "b": {"engines": ["http://b"], **more}, "v": value})

    def faults(self, value: Any, **more: Any) -> list[str]:
        with self.assertRaises(ConfigurationError) as caught:
            self.with_v(value, **more)
        return list(caught.exception.faults)

    def test_the_example_of_the_contract(self) -> None:
        models = {name: {"engines": ["http://x/v1"]} for name in ("70b", "13b", "7b")}
        verified = {"consensus": {"members": ["70b", "13b", "7b"], "fallback": "best"}}
        one = self.load({**models, "verified": verified})
        self.assertEqual(one.virtual, (VirtualSpec("verified", ("70b", "13b", "7b")),))
        self.assertEqual([m.name for m in one.models], ["70b", "13b", "7b"])
        self.assertEqual(one.default_model, "70b")

    def test_every_key_is_read(self) -> None:
        consensus = {"members": ["b", "a"], "start": 2, "min_families": 2, "fallback": "abstain", "judge": "a"}
        one = self.with_v({"consensus": consensus, "aliases": ["sure", "safe"]}, family="llama")
        expected = VirtualSpec("v", ("b", "a"), 2, 2, "abstain", "a", ("sure", "safe"))
        self.assertEqual(one.virtual, (expected,))
        self.assertEqual(one.models[1].family, "llama")
        self.assertEqual(set(one.virtual_by_name()), {"v", "sure", "safe"})

    def test_it_may_stand_before_what_it_is_made_of(self) -> None:
        document = {"v": {"consensus": {"members": ["a", "b"]}}, "a": {"engines": ["http://a"]}}
        one = self.load({**document, "b": {"engines": ["http://b"]}})
        self.assertEqual((one.default_model, one.virtual[0].name), ("a", "v"))

    def test_faults_are_named_with_their_paths(self) -> None:
        good = {"members": ["a", "b"]}
        cases: list[tuple[Any, str]] = [
            ({"consensus": []}, r"models\.v\.consensus: must be an object, not \[\]"),
            ({"consensus": None}, r"models\.v\.consensus: must be an object"),
            ({"consensus": {}}, r"models\.v\.consensus\.members: is missing"),
            ({"consensus": {"members": "ab"}}, r"models\.v\.consensus\.members: must be a list of 2"),
            ({"consensus": {"members": ["a", 5]}}, r"models\.v\.consensus\.members\[1\]: must be"),
            ({"consensus": {**good, "start": 3}}, r"models\.v\.consensus\.start: must be at most 2"),
            ({"consensus": {**good, "start": "2"}}, r"models\.v\.consensus\.start: must be an integer"),
            ({"consensus": {**good, "fallback": 1}}, r"models\.v\.consensus\.fallback: must be one of"),
            (
                {"consensus": {**good, "quorum": 1}},
                r"models\.v\.consensus\.quorum: is not a known key; known here: mem",
            ),
            ({"consensus": good, "engin": []}, r"models\.v\.engin: is not a known key; known here: consensus"),
            *[
                ({"consensus": good, key: []}, rf"models\.v\.{key}: is for models with engines, not for those made of")
                for key in ("engines", "fallbacks", "context_fallbacks", "price")
            ],
            ({"consensus": good, "aliases": "x"}, r"models\.v\.aliases: must be a list"),
            (
                {"consensus": {"members": ["a", "z"]}},
                r'models\.v\.consensus\.members\[1\]: the model "z" does not exist',
            ),
        ]
        for value, expected in cases:
            with self.subTest(value):
                found = self.faults(value)
                self.assertEqual(len(found), 1, found)
                self.assertRegex(found[0], f"^{expected}")
        self.assertRegex(self.faults({"consensus": good}, family=5)[0], r"^models\.b\.family: must be")
        self.assertRegex(self.faults({"consensus": good}, family="")[0], r"^models\.b\.family: must be")

    def test_null_is_refused_for_every_key(self) -> None:
        for row in CONSENSUS_KEYS:
            found = self.faults({"consensus": {"members": ["a", "b"], row.key: None}})
            self.assertRegex(found[0], rf"^models\.v\.consensus\.{row.key}: must ")
        for row in VIRTUAL_KEYS:
            found = self.faults({"consensus": {"members": ["a", "b"]}, row.key: None})
            self.assertRegex(found[0], rf"^models\.v\.{row.key}: must ")
        self.assertRegex(
            self.faults({"consensus": {"members": ["a", "b"]}}, family=None)[0], r"^models\.b\.family: must"
        )

    def test_a_name_with_a_dot_is_quoted_in_paths(self) -> None:
        with self.assertRaises(ConfigurationError) as caught:
            self.load({"a": {"engines": ["http://a"]}, "v.1": {"consensus": {"members": ["a", "z"]}}})
        self.assertEqual(caught.exception.faults, ('models["v.1"].consensus.members[1]: the model "z" does not exist',))

    def test_all_faults_are_named_at_once_whatever_they_are_of(self) -> None:
        consensus = {"members": ["a", 5, "z", "w"], "start": 9, "min_families": 0, "judge": "y", "quorum": 1}
        models = {
            "a": {"engines": ["http://a"], "aliases": [5, "w"], "fallbacks": [5, "x", "v"], "wieght": 1},
            "b": {"engines": []},
            "v": {"consensus": consensus, "aliases": ["a", "ok", "ok"]},
            "w": {"consensus": {"members": ["a", "b"], "min_families": 3}},
            "o": {"consensus": []},
        }
        with self.assertRaises(ConfigurationError) as caught:
            self.load(models, default_model="y")
        faults = list(caught.exception.faults)
        expected = [
            "models.a.aliases[0]: must be",
            "models.a.fallbacks[0]: must be",
            "models.a.wieght: is not a known key",
            "models.b.engines: must be a list",
            "models.v.consensus.members[1]: must be",
            "models.v.consensus.min_families: must be an integer",
            "models.v.consensus.quorum: is not a known key",
            "models.v.consensus.start: must be at most 4, the number of members",
            'models.v.aliases[2]: "ok" is named twice',
            "models.o.consensus: must be an object, not []",
            'models.a.fallbacks[1]: there is no model "x"',
            'models.a.fallbacks[2]: "v" is made of others: only',
            "models.w: the name is taken",
            'models.v.aliases[0]: "a" is taken',
            'models.v.consensus.members[2]: the model "z" does not exist',
            'models.v.consensus.members[3]: "w" is "a" again',
            'models.v.consensus.judge: the model "y" does not exist',
            "models.w.consensus.min_families: the members are of 2 families only",
            'default_model: there is no model "y"',
        ]
        self.assertEqual(len(faults), len(expected), faults)
        for start in expected:
            with self.subTest(start):
                self.assertEqual(sum(fault.startswith(start) for fault in faults), 1, faults)

    def test_a_file_of_nothing_real_is_refused(self) -> None:
        with self.assertRaises(ConfigurationError) as caught:
            self.load({"v": {"consensus": {"members": ["a", "b"]}}})
        first, *others = caught.exception.faults
        self.assertEqual(
            first, "models: all of them are made of others, and what they are made of must be here, too, with engines"
        )
        self.assertEqual(
            others,
            [f'models.v.consensus.members[{i}]: the model "{name}" does not exist' for i, name in enumerate("ab")],
        )

    def test_the_files_default_may_be_made_of_others(self) -> None:
        models = {"a": {"engines": ["http://a"]}, "b": {"engines": ["http://b"]}}
        virtual = {"v": {"consensus": {"members": ["a", "b"]}, "aliases": ["sure"]}}
        self.assertEqual(self.load({**models, **virtual}, default_model="sure").default_model, "sure")

    def settings_faults(self, **variables: str) -> list[str]:
        self.with_v({"consensus": {"members": ["a", "b"]}, "aliases": ["sure"]})
        with self.assertRaises(ConfigurationError) as caught:
            load({"ENGINES_FILE": str(self.path), "STATE_DB": "none.db", **variables}, None)
        return list(caught.exception.faults)

    def test_the_settings_default_may_be_made_of_others(self) -> None:
        self.with_v({"consensus": {"members": ["a", "b"]}, "aliases": ["sure"]})
        for name in ("v", "sure"):
            settings = load({"ENGINES_FILE": str(self.path), "STATE_DB": "none.db", "DEFAULT_MODEL": name}, None)
            self.assertEqual(settings.fleet.default_model, name)
        self.assertEqual(
            self.settings_faults(DEFAULT_MODEL="w"), ['DEFAULT_MODEL: there is no model "w"; known: a, b, v']
        )

    def test_no_embeddings_come_of_it(self) -> None:
        near = {"CACHE": "on", "CACHE_NEAR": "on"}
        self.assertEqual(
            self.settings_faults(EMBEDDINGS_MODEL="v", **near),
            ['EMBEDDINGS_MODEL: the model "v" is made of others: it answers chat completions only'],
        )


class RouterTest(unittest.TestCase):
    def setUp(self) -> None:
        self.spec = VirtualSpec("v", ("a", "b"), aliases=("sure",))
        self.router = Router(fleet(self.spec))

    def test_it_is_known_by_its_names_and_has_no_engines(self) -> None:
        self.assertIs(self.router.virtual("v"), self.router.virtual("sure"))
        self.assertEqual(self.router.virtual("v"), self.spec)
        self.assertIsNone(self.router.virtual("a"))
        self.assertIsNone(self.router.virtual(None))
        self.assertEqual(self.router.names(), ("a", "b", "c", "v", "sure"))
        self.assertEqual(self.router.names_of("v"), ("v", "sure"))
        self.assertEqual(list(self.router.pools), ["a", "b", "c"])

    def test_it_has_a_count_of_its_own_under_its_own_name(self) -> None:
        counted = self.router.counted_names()
        self.assertEqual((counted["v"], counted["sure"]), ("v", "v"))

    def test_it_is_no_fallback_of_others(self) -> None:
        self.assertEqual([pool.name for pool in self.router.route("a")], ["a", "b", "c"])

    def refusal(self, router: Router, name: Any, may_use: Any = None) -> RequestRefused:
        with self.assertRaises(RequestRefused) as caught:
            router.route(name, may_use=may_use)
        return caught.exception

    def test_it_has_no_route(self) -> None:
        for name in ("v", "sure"):
            refusal = self.refusal(self.router, name)
            self.assertEqual((refusal.code, refusal.param), ("endpoint_not_served", "model"))

    def test_who_may_not_use_it_hears_no_more_than_of_another_model(self) -> None:
        for name in ("v", "sure"):
            refusal = self.refusal(self.router, name, {"a"}.__contains__)
            self.assertEqual((refusal.code, refusal.param), ("forbidden", "model"))
            self.assertEqual(str(refusal), f"the model {name} is not allowed for this key")
            self.assertEqual(self.refusal(self.router, name, {"v"}.__contains__).code, "endpoint_not_served")

    def test_it_is_known_to_who_asks_for_what_is_not(self) -> None:
        self.assertEqual(str(self.refusal(self.router, "z")), "the model 'z' does not exist; known: a, b, c, v")
        refusal = self.refusal(self.router, "z", {"b"}.__contains__)
        self.assertEqual(str(refusal), "the model 'z' does not exist; known: b")

    def test_as_the_default_it_is_what_requests_get_that_name_none(self) -> None:
        self.assertIsNone(self.router.virtual(None))
        for name in ("v", "sure"):
            router = Router(fleet(self.spec, default=name))
            self.assertEqual(router.virtual(None), self.spec)
            self.assertEqual(router.names(), ("a", "b", "c", "v", "sure"))
            refusal = self.refusal(router, None)
            self.assertEqual((refusal.code, refusal.param), ("endpoint_not_served", "model"))
            self.assertRegex(str(refusal), "^the default model 'v' is made of others")
            router.reload(fleet(self.spec))
            self.assertIsNone(router.virtual(None))
            self.assertEqual(router.route(None)[0].name, "a")

    def test_people_are_told_of_it_with_its_members(self) -> None:
        self.assertEqual(self.router.labels(), ["a", "b", "c", "v (of a, b)"])

    def test_reload_adds_and_removes_it(self) -> None:
        other = VirtualSpec("w", ("b", "c"))
        self.router.reload(fleet(other))
        self.assertIsNone(self.router.virtual("v"))
        self.assertIsNone(self.router.virtual("sure"))
        self.assertEqual(self.router.virtual("w"), other)
        self.assertEqual(self.router.names(), ("a", "b", "c", "w"))
        with self.assertRaises(RequestRefused) as caught:
            self.router.route("v")
        self.assertEqual(caught.exception.code, "model_not_found")


class CheckTest(unittest.TestCase):
    def described(self, *virtual: VirtualSpec, sandbox: tuple[str, ...] = (), default: Any = None) -> list[str]:
        spec = fleet(*virtual, default=default)
        settings = dataclasses.replace(load({"STATE_DB": "none.db"}, None), fleet=spec)
        return describe(settings, Router(spec), sandbox).splitlines()

    def test_check_tells_what_agrees_and_on_what_terms(self) -> None:
        v = VirtualSpec("v", THREE, 2, 2, "abstain", "a", ("sure",))
        lines = self.described(v, VirtualSpec("w", ("c", "a")), default="sure")
        start = lines.index("model v (of a, b, c) (default)")
        self.assertEqual(
            lines[start:],
            [
                "model v (of a, b, c) (default)",
                "  aliases: sure",
                "  asked first: a, b",
                "  of 2 families at least",
                "  answers without code are compared by a, where words do not decide",
                "  without agreement: an error",
                "model w (of c, a)",
                "  without agreement: the best answer",
            ],
        )

    def started(self, *virtual: VirtualSpec, models: tuple[ModelSpec, ...] = ()) -> list[str]:
        router = Router(fleet(*virtual, models=models))
        settings = load({"STATE_DB": "none.db"}, None)
        return start_lines(settings, router, "http://x", authenticated=False, terminal=False).splitlines()

    def test_the_start_tells_of_it_behind_the_others(self) -> None:
        lines = self.started(VirtualSpec("v", ("a", "b")))
        self.assertEqual([line for line in lines if not line.startswith(" ")][-2:], ["model c", "model v (of a, b)"])

    def test_the_start_tells_of_no_more_than_can_be_read(self) -> None:
        many = [VirtualSpec(f"v{i}", ("a", "b")) for i in range(100)]
        lines = self.started(*many, models=tuple(model(name) for name in ("a", "b", *(f"m{i}" for i in range(100)))))
        self.assertLessEqual(len(lines), LINES_MAX + 2)
        self.assertIn("model a (default)", lines)
        self.assertIn("model v0 (of a, b)", lines)
        shown = sum(line.startswith("model v") for line in lines)
        self.assertEqual(lines[-1], f"... and {100 - shown} more models made of others")

    def test_what_is_switched_off_is_said_without_trying_anything(self) -> None:
        settings = load({"STATE_DB": "none.db", "SANDBOX": "off"}, None)
        self.assertEqual(sandbox_lines(settings), ["sandbox: off, nothing is run"])

    def test_a_level_below_the_least_is_said_to_be(self) -> None:
        settings = load({"STATE_DB": "none.db", "SANDBOX": "process"}, None)
        lines = sandbox_lines(settings)
        self.assertIn("sandbox: process is weaker than namespaces, the least that is demanded", lines)

    def test_check_tells_where_programs_would_run(self) -> None:
        lines = self.described(sandbox=("sandbox: process", "sandbox: not namespaces: no"))
        self.assertIn("sandbox: process", lines)
        self.assertIn("sandbox: not namespaces: no", lines)


if __name__ == "__main__":
    unittest.main()
