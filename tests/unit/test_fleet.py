"""Engines, models and fleets as configured: what is taken, and how each fault is named."""

from __future__ import annotations

import json
import tempfile
import unittest
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

from gateway.configuration import ConfigurationError
from gateway.fleet import ENGINE_KEYS, MODEL_KEYS, load_engines_file
from gateway.fleetlines import echo_fleet, parse_backend_url, parse_engines
from gateway.routing.specs import (
    ENGINE_CHECKS,
    MODEL_CHECKS,
    STRATEGIES,
    EngineSpec,
    FleetSpec,
    ModelSpec,
    model_from,
)

CONTRACT_EXAMPLE = """
{"default_model": "13b",
 "models": {
  "70b": {"strategy": "least_connections", "fallbacks": ["13b"], "max_model_len": 8192,
          "engines": ["http://127.0.0.1:8000/v1",
                      {"url": "http://127.0.0.1:8001/v1", "weight": 2, "max_concurrency": 16,
                       "model": "llama-3.3-70b", "api_key_env": "GROQ_API_KEY",
                       "health_path": "/health"}]},
  "13b": {"engines": ["http://127.0.0.1:8010/v1"], "aliases": ["default-chat"]}}}
"""


class EngineSpecTest(unittest.TestCase):
    def test_url_is_taken_apart_and_spelled_in_one_way(self) -> None:
        cases = {
            "http://a:8000": ("http", "a", 8000, "/v1", "http://a:8000/v1", "a:8000"),
            "http://a:8000/": ("http", "a", 8000, "/v1", "http://a:8000/v1", "a:8000"),
            "http://a:8000/v1/": ("http", "a", 8000, "/v1", "http://a:8000/v1", "a:8000"),
            "HTTP://A.Example": ("http", "a.example", 80, "/v1", "http://a.example/v1", None),
            "http://a:80": ("http", "a", 80, "/v1", "http://a/v1", "a:80"),
            "https://a": ("https", "a", 443, "/v1", "https://a/v1", "a:443"),
            "https://a/openai/v1": ("https", "a", 443, "/openai/v1", None, None),
            "http://[::1]:9/v1": ("http", "::1", 9, "/v1", "http://[::1]:9/v1", "[::1]:9"),
            "http://my_engine.local.:9": (
                "http",
                "my_engine.local.",
                9,
                "/v1",
                "http://my_engine.local.:9/v1",
                None,
            ),
        }
        for url, (scheme, host, port, base_path, spelled, engine_id) in cases.items():
            with self.subTest(url):
                engine = EngineSpec(url)
                parts = (engine.scheme, engine.host, engine.port, engine.base_path)
                self.assertEqual(parts, (scheme, host, port, base_path))
                self.assertEqual(engine.url, spelled or url)
                self.assertEqual(engine.id, engine_id or f"{host}:{port}")
                self.assertFalse(engine.is_echo)

    def test_echo_engine_has_no_host(self) -> None:
        engine = EngineSpec("echo:")
        self.assertTrue(engine.is_echo)
        self.assertEqual((engine.url, engine.id, engine.host), ("echo:", "echo", ""))
        self.assertEqual(EngineSpec("echo:", id="second").id, "second")

    def test_bad_urls_are_refused_with_the_field_named(self) -> None:
        bad = [
            "", "a:8000", "ftp://a", "http:/a", "http://", "http:///v1", "http://:80", "http://a:",
            "http://a:0", "http://a:65536", "http://a:8x", "http://a:\u0663", "http://a:-1",
            "http://a b", "http://a/ b", "http://a/%zz", "http://a/v1?x=1", "http://a/v1#x",
            "http://a..b", "http://.a", "http://-a", "http://" + "a" * 64, "http://1.2.3.256",
            "http://::1", "http://[::1", "http://[::1]8", "http://[1.2.3.4]", "http://[fe80::1%1]",
            "http://b\u00fccher", "http://a\r\nHost: b", "http\u017f://a", "echo", "echo:x",
            "ECHO:", "http://a\\b", "http://a/v1/chat/completions", "http://a/v1/messages/",
        ]  # fmt: skip
        for url in bad:
            with self.subTest(url), self.assertRaisesRegex(ValueError, "^url: must"):
                EngineSpec(url)

    def test_user_names_passwords_and_queries_are_refused_and_never_shown(self) -> None:
        urls = ["http://u:hunter2@a", "http://u:hunt/hunter2@a", "http:/u:hunter2@a"]
        for url in [*urls, "http://a/v1?key=hunter2", "http://a#hunter2"]:
            with self.subTest(url), self.assertRaises(ValueError) as caught:
                EngineSpec(url)
            self.assertNotIn("hunter2", str(caught.exception))

    def test_every_faulty_field_is_named_at_once(self) -> None:
        with self.assertRaises(ValueError) as caught:
            EngineSpec(
                "x", id="a b", weight=0, max_concurrency=0, max_batch=0, model="", api_key_env="sk-secret",
                health_path="health", resume=1, usage_in_streams=1,  # type: ignore[arg-type]
                provider="x", dialect="x", api_version="x", endpoints=("/v1/x",), region="x y", priority=-1,
            )  # fmt: skip
        faults = str(caught.exception).split("; ")
        names = [fault.split(":")[0].partition("[")[0] for fault in faults]
        self.assertEqual(names, list(ENGINE_CHECKS))
        self.assertNotIn("sk-secret", str(caught.exception))

    def test_weight_is_an_integer_from_1_to_1000000(self) -> None:
        self.assertEqual(EngineSpec("http://a", weight=1_000_000).weight, 1_000_000)
        for weight in (0, -1, 1_000_001, 1.0, True, "2", None):
            with (
                self.subTest(weight),
                self.assertRaisesRegex(ValueError, "^weight: must be an int"),
            ):
                EngineSpec("http://a", weight=weight)  # type: ignore[arg-type]

    def test_a_region_counts_in_any_case(self) -> None:
        self.assertIsNone(EngineSpec("http://a").region)
        self.assertEqual(EngineSpec("http://a", region="EU-West-1").region, "eu-west-1")
        for region in ("", "a b", "a/b", "x" * 65, 1, ("eu",)):
            with self.subTest(region), self.assertRaisesRegex(ValueError, "^region: must be 1 to 64 letters"):
                EngineSpec("http://a", region=region)  # type: ignore[arg-type]

    def test_specs_are_frozen(self) -> None:
        with self.assertRaises(FrozenInstanceError):
            EngineSpec("http://a").weight = 2  # type: ignore[misc]


class ModelSpecTest(unittest.TestCase):
    def test_urls_and_specs_mean_the_same(self) -> None:
        model = model_from("m", ["http://a", EngineSpec("http://b")], "random")
        self.assertEqual(model, model_from("m", [EngineSpec("http://a"), "http://b"], "random"))
        self.assertEqual(model.strategy, "random")

    def test_faults_name_the_field(self) -> None:
        one = (EngineSpec("http://a"),)
        cases: list[tuple[dict[str, object], str]] = [
            ({"name": "a b"}, "^name: must be"),
            ({"engines": ()}, "^engines: must be a list of at least one"),
            ({"engines": (*one, *one)}, r'^engines\[1\].id: "a:80" is the id of engines\[0\] too'),
            ({"strategy": "fastest"}, "^strategy: must be one of round_robin, .*fastest"),
            ({"max_model_len": 0}, "^max_model_len: must be an integer from 1"),
            ({"fallbacks": ("x", "x")}, r'^fallbacks\[1\]: "x" is named twice'),
            ({"fallbacks": "x"}, "^fallbacks: must be a list"),
            ({"aliases": ("a", "")}, r"^aliases\[1\]: must be"),
            ({"attempt_timeout_s": 0}, "^attempt_timeout_s: must be a number from 0.001 to 86400, not 0"),
            ({"attempt_timeout_s": True}, "^attempt_timeout_s: must be a number"),
            ({"hedge_after_ms": "p99"}, '^hedge_after_ms: must be milliseconds from 1 to 3600000 or "p95", not "p99"'),
            ({"hedge_after_ms": 0.5}, "^hedge_after_ms: must be milliseconds"),
            ({"hedge_ratio": 1.1}, "^hedge_ratio: must be a number from 0 to 1, not 1.1"),
            ({"hedge_ratio": None}, "^hedge_ratio: must be a number"),
            ({"context_fallbacks": ("x", "x")}, r'^context_fallbacks\[1\]: "x" is named twice'),
        ]
        for change, expected in cases:
            with self.subTest(change), self.assertRaisesRegex(ValueError, expected):
                ModelSpec(**{"name": "m", "engines": one, **change})  # type: ignore[arg-type]

    def test_every_strategy_of_the_contract_is_taken(self) -> None:
        self.assertEqual(len(STRATEGIES), 6)
        for strategy in STRATEGIES:
            self.assertEqual(model_from("m", ["http://a"], strategy).strategy, strategy)


class FleetSpecTest(unittest.TestCase):
    def model(self, name: str, **changes: object) -> ModelSpec:
        values = {"name": name, "engines": (EngineSpec("http://a"),), **changes}
        return ModelSpec(**values)  # type: ignore[arg-type]

    def test_first_model_is_the_default(self) -> None:
        fleet = FleetSpec((self.model("b"), self.model("a")))
        self.assertEqual(fleet.default_model, "b")

    def test_default_and_fallbacks_may_be_aliases(self) -> None:
        models = (self.model("a", fallbacks=("bee",)), self.model("b", aliases=("bee",)))
        self.assertEqual(FleetSpec(models, "bee").default_model, "bee")

    def test_clashes_and_dead_ends_are_refused(self) -> None:
        m = self.model
        cases: list[tuple[tuple[ModelSpec, ...], str]] = [
            ((), "^models: must hold at least one"),
            ((m("a"), m("a")), "^models.a: is defined twice"),
            ((m("a", aliases=("b",)), m("b")), r'^models.a.aliases\[0\]: "b" is taken'),
            ((m("a", aliases=("x",)), m("b", aliases=("x",))), r"^models.b.aliases\[0\]: .*taken"),
            ((m("a", aliases=("a",)),), r"^models.a.aliases\[0\]: .*taken"),
            ((m("a", fallbacks=("c",)),), r'^models.a.fallbacks\[0\]: there is no model "c"'),
            ((m("a", fallbacks=("a",)),), r"^models.a.fallbacks\[0\]: .* the model itself"),
            ((m("a", context_fallbacks=("c",)),), r'^models.a.context_fallbacks\[0\]: there is no model "c"'),
            ((m("a", context_fallbacks=("a",)),), r"^models.a.context_fallbacks\[0\]: .* the model itself"),
            ((m("a", aliases=("x",), fallbacks=("x",)),), "the model itself"),
            ((m("a.b", fallbacks=("c",)),), r'^models\["a.b"\].fallbacks\[0\]: '),
        ]
        for models, expected in cases:
            with self.subTest(expected), self.assertRaisesRegex(ValueError, expected):
                FleetSpec(models)
        with self.assertRaisesRegex(ValueError, '^default_model: there is no model "z"'):
            FleetSpec((m("a"),), "z")

    def test_wildcard_has_one_model_and_any_default(self) -> None:
        self.assertEqual(FleetSpec((self.model("a"),), "z", wildcard=True).default_model, "z")
        with self.assertRaisesRegex(ValueError, "exactly one model"):
            FleetSpec((self.model("a"), self.model("b")), wildcard=True)


class EnginesFileTest(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "engines.json"

    def load(self, content: object) -> FleetSpec:
        if not isinstance(content, bytes):
            text = content if isinstance(content, str) else json.dumps(content)
            content = text.encode()
        self.path.write_bytes(content)
        return load_engines_file(self.path)

    def faults(self, content: object) -> tuple[str, ...]:
        with self.assertRaises(ConfigurationError) as caught:
            self.load(content)
        self.assertEqual(str(caught.exception), "\n".join(caught.exception.faults))
        return caught.exception.faults

    def test_example_of_the_contract(self) -> None:
        fleet = self.load(CONTRACT_EXAMPLE)
        self.assertEqual([model.name for model in fleet.models], ["70b", "13b"])
        self.assertEqual((fleet.default_model, fleet.wildcard), ("13b", False))
        big, small = fleet.models
        self.assertEqual((big.strategy, big.fallbacks), ("least_connections", ("13b",)))
        self.assertEqual(big.max_model_len, 8192)
        expected = EngineSpec(
            "http://127.0.0.1:8001/v1", weight=2, max_concurrency=16, model="llama-3.3-70b",
            api_key_env="GROQ_API_KEY", health_path="/health",
        )  # fmt: skip
        self.assertEqual(big.engines, (EngineSpec("http://127.0.0.1:8000/v1"), expected))
        self.assertEqual((small.aliases, small.fallbacks), (("default-chat",), None))

    def test_what_happens_to_a_slow_engine_and_a_long_prompt_is_read(self) -> None:
        engine = {"url": "http://a", "resume": True, "usage_in_streams": False}
        model = {"engines": [engine], "attempt_timeout": 2.5, "hedge_after_ms": "p95", "hedge_ratio": 0.05}
        fleet = self.load({"models": {"a": {**model, "context_fallbacks": ["b"]}, "b": {"engines": ["http://b"]}}})
        small, large = fleet.models
        self.assertEqual((small.engines[0].resume, small.engines[0].usage_in_streams), (True, False))
        self.assertEqual((small.attempt_timeout_s, small.hedge_after_ms, small.hedge_ratio), (2.5, "p95", 0.05))
        self.assertEqual(small.context_fallbacks, ("b",))
        self.assertEqual((large.engines[0].resume, large.engines[0].usage_in_streams), (False, True))
        self.assertEqual((large.attempt_timeout_s, large.hedge_after_ms, large.hedge_ratio), (None, None, 0.1))

    def test_one_server_may_serve_several_models(self) -> None:
        self.load({"models": {"a": {"engines": ["http://h"]}, "b": {"engines": ["http://h"]}}})

    def test_byte_order_mark_is_ignored(self) -> None:
        self.load(b"\xef\xbb\xbf" + CONTRACT_EXAMPLE.encode())

    def test_all_faults_are_named_at_once_with_their_paths(self) -> None:
        engines = ["http://a", {"url": "http://b", "weight": "two", "wieght": 1}, {"id": "x"}, 7]
        faults = self.faults(
            {
                "default_model": "9b",
                "modells": {},
                "models": {
                    "70b": {"engines": engines, "strategy": "fast", "fallbacks": ["13b", "x"]},
                    "13b": {"engines": ["http://u:pw@c"], "max_model_len": 1e3, "fallbacks": "70b"},
                    "7 b": {"engines": []},
                    "1b": {"aliases": ["13b", 5]},
                    "0b": [],
                },
            }
        )
        expected = [
            "modells: is not a known key",
            'models.70b.engines[1].weight: must be an integer from 1 to 1000000, not "two"',
            "models.70b.engines[1].wieght: is not a known key; known here: url, id, weight",
            "models.70b.engines[2].url: is missing",
            "models.70b.engines[3]: must be a URL or an object, not 7",
            "models.70b.strategy: must be one of",
            "models.13b.engines[0].url: must not hold a user name",
            "models.13b.max_model_len: must be an integer",
            "models.13b.fallbacks: must be a list of names",
            'models["7 b"]: must be 1 to 256 printable ASCII',
            'models["7 b"].engines: must be a list of at least one engine',
            "models.1b.aliases[1]: must be",
            "models.1b.engines: is missing",
            "models.0b: must be an object",
            'models.1b.aliases[0]: "13b" is taken',
            'models.70b.fallbacks[1]: there is no model "x"',
            'default_model: there is no model "9b"',
        ]
        self.assertEqual(len(faults), len(expected), faults)
        for start in expected:
            with self.subTest(start):
                self.assertEqual(sum(fault.startswith(start) for fault in faults), 1, faults)

    def test_a_misspelt_kind_of_model_is_told_the_kinds_that_there_are(self) -> None:
        faults = self.faults({"models": {"a": {"engines": ["http://a"]}, "m": {"chian": ["a"]}}})
        self.assertRegex(faults[0], r"^models\.m\.chian: is not a known key; .* consensus, split, chain, models$")

    def test_a_word_that_is_no_provider_is_one_fault(self) -> None:
        faults = self.faults({"models": {"m": {"engines": [{"provider": "grok", "model": "x"}]}}})
        self.assertEqual(len(faults), 1, faults)
        self.assertRegex(faults[0], r'^models\.m\.engines\[0\]\.provider: must be one of .*, not "grok"$')

    def test_duplicate_ids_are_found_beside_an_unreadable_engine(self) -> None:
        engines = [7, "http://a", {"url": "http://b", "id": "a:80"}]
        faults = self.faults({"models": {"m": {"engines": engines}}})
        self.assertEqual(len(faults), 2, faults)
        self.assertRegex(faults[1], r'^models.m.engines\[2\].id: "a:80" is the id of engines\[1\]')

    def test_duplicate_keys_are_named_at_every_level(self) -> None:
        for content, path in (
            ('{"models": {}, "models": {"m": {"engines": ["http://a"]}}}', "models"),
            ('{"models": {"m": {}, "m": {"engines": ["http://a"]}}}', "models.m"),
            ('{"models": {"m": {"engines": [], "engines": ["http://a"]}}}', "models.m.engines"),
            (
                '{"models": {"m": {"engines": [{"url": "x", "url": "http://a"}]}}}',
                "models.m.engines[0].url",
            ),
            (
                '{"models": {"m": {"engines": ["http://a"], "price": {"input": 1, "input": 2}}}}',
                "models.m.price.input",
            ),
        ):
            with self.subTest(path):
                self.assertEqual(self.faults(content), (f"{path}: is there more than once",))

    def test_null_is_refused_for_every_key(self) -> None:
        for row in ENGINE_KEYS:
            faults = self.faults({"models": {"m": {"engines": [{"url": "http://a", row.key: None}]}}})
            self.assertRegex(faults[0], rf"^models.m.engines\[0\].{row.key}: must not be null")
        for row in MODEL_KEYS:
            faults = self.faults({"models": {"m": {"engines": ["http://a"], row.key: None}}})
            self.assertRegex(faults[0], rf"^models.m.{row.key}: must ")

    def test_what_is_not_a_usable_document_is_one_clear_fault(self) -> None:
        for content, expected in (
            (b"", "is not JSON: line 1 column 1"),
            (b'{"models": {\n  "a" 1}}', "is not JSON: line 2 column 7"),
            (b'{"models": "\xff"}', "is not UTF-8: byte 12"),
            (b'{"models": NaN}', "NaN is not a JSON value"),
            (b'{"models": -Infinity}', "-Infinity is not a JSON value"),
            (
                b"[" * 200_000,
                "the file is n",
            ),  # nested too deeply, or cut short: by the interpreter
            (b"[]", r"the file: must be an object, not \[\]"),
            (b"{}", "models: is missing"),
            (b'{"models": {}}', "models: must be an object with at least one model"),
            (b'{"models": []}', "models: must be an object with at least one model"),
        ):
            with self.subTest(content[:40]):
                faults = self.faults(content)
                self.assertEqual(len(faults), 1)
                self.assertRegex(faults[0], expected)

    def test_number_of_5000_digits_is_a_fault(self) -> None:
        content = '{"models": {"m": {"engines": [{"url": "http://a", "weight": %s}]}}}' % ("9" * 5000)
        self.assertEqual(len(self.faults(content)), 1)

    def test_unreadable_file_is_a_fault(self) -> None:
        for path in (self.path, self.path.parent):
            with self.subTest(path), self.assertRaises(ConfigurationError) as caught:
                load_engines_file(path)
            self.assertRegex(caught.exception.faults[0], "^the file cannot be read: ")

    def test_every_field_of_a_spec_has_its_key_and_its_check(self) -> None:
        for spec, rows, checks, others in (
            (EngineSpec, ENGINE_KEYS, ENGINE_CHECKS, {"address", "is_echo"}),
            (ModelSpec, MODEL_KEYS, MODEL_CHECKS, {"name", "discover"}),
        ):
            names = {f.name for f in fields(spec)} - {"prefix", "source", "params"}  # which no file says
            self.assertEqual({row.field for row in rows} | others, names)
            self.assertEqual(set(checks) | (others - {"name", "discover"}), names)


class InlineFormTest(unittest.TestCase):
    def faults(self, text: str) -> tuple[str, ...]:
        with self.assertRaises(ConfigurationError) as caught:
            parse_engines(text)
        return caught.exception.faults

    def test_models_and_engines_keep_their_order(self) -> None:
        fleet = parse_engines(
            " 13b = http://127.0.0.1:8010/v1 , http://127.0.0.1:8011 ;meta/llama=https://a/x=y,echo: ; "
        )
        self.assertEqual([model.name for model in fleet.models], ["13b", "meta/llama"])
        ids = [[engine.id for engine in model.engines] for model in fleet.models]
        self.assertEqual(ids, [["127.0.0.1:8010", "127.0.0.1:8011"], ["a:443", "echo"]])
        self.assertEqual(fleet.models[1].engines[0].base_path, "/x=y")
        self.assertEqual((fleet.default_model, fleet.wildcard), ("13b", False))

    def test_all_faults_are_named_at_once(self) -> None:
        faults = self.faults("a=http://x,ftp://y;a=http://z;b=;c=http://x,http://x;http://u:pw@q")
        expected = [
            "must be model=url,url;model=url",
            "a: is defined twice",
            "a.engines[1].url: must be",
            "b.engines: must be a list of at least one engine",
            "c.engines[1].id: ",
        ]
        self.assertEqual(len(faults), len(expected), faults)
        for start in expected:
            self.assertEqual(sum(fault.startswith(start) for fault in faults), 1, faults)
        self.assertNotIn("pw", " ".join(faults))

    def test_behind_a_url_stands_the_engine_s_own_name_of_the_model(self) -> None:
        for text, model in (
            ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct"),
            ("llama3.2:latest", "llama3.2:latest"),
            ("@cf/meta/llama-3=1#x%20?", "@cf/meta/llama-3=1#x%20?"),
            ("a%2Cb%3bc", "a,b;c"),
        ):
            with self.subTest(text):
                fleet = parse_engines(f"m=http://a/v1#{text}, http://b/v1 # {text} ;n=http://a/v1")
                urls = [("http://a/v1", model), ("http://b/v1", model)]
                self.assertEqual([(e.url, e.model) for e in fleet.models[0].engines], urls)
                self.assertEqual([(e.url, e.model) for e in fleet.models[1].engines], [("http://a/v1", None)])

    def test_a_name_that_cannot_work_is_one_fault(self) -> None:
        for text in ("m=http://a/v1#", "m=http://a/v1#a\tb", f"m=http://a/v1#{'x' * 257}"):
            with self.subTest(text):
                (fault,) = self.faults(text)
                self.assertRegex(fault, r"^m\.engines\[0\]\.model: must be ")

    def test_a_password_with_a_hash_is_not_shown(self) -> None:
        for text in ("m=http://u:hunter2#x@a/v1", "m=http://u:hun#ter2@a/v1"):
            (fault,) = self.faults(text)
            self.assertIn("must not hold a user name or password", fault)
            self.assertNotIn("hun", fault)
            with self.assertRaises(ConfigurationError) as caught:
                parse_backend_url(text[2:])
            self.assertNotIn("hun", caught.exception.faults[0])

    def test_a_url_alone_is_told_what_to_set(self) -> None:
        (fault,) = self.faults("http://a:8000/v1")
        self.assertIn("model=url", fault)
        self.assertIn("BACKEND_URL", fault)

    def test_url_without_a_model_and_nothing_at_all_are_faults(self) -> None:
        for text in ("http://a:8000/v1", "http://a/v1?x=1", ";;", "=http://a"):
            with self.subTest(text):
                self.assertEqual(len(self.faults(text)), 1)


class WildcardFleetTest(unittest.TestCase):
    def test_backend_url_serves_every_model_name(self) -> None:
        fleet = parse_backend_url("http://127.0.0.1:8000")
        self.assertTrue(fleet.wildcard)
        self.assertEqual(fleet.models, (model_from("default", ["http://127.0.0.1:8000/v1"]),))
        self.assertEqual(fleet.default_model, "default")

    def test_behind_backend_url_stands_the_one_model_it_is_asked_for(self) -> None:
        fleet = parse_backend_url("http://127.0.0.1:8000#Qwen/Qwen2.5-7B-Instruct")
        self.assertTrue(fleet.wildcard)
        self.assertEqual(fleet.models[0].engines[0].model, "Qwen/Qwen2.5-7B-Instruct")
        with self.assertRaises(ConfigurationError) as caught:
            parse_backend_url("http://127.0.0.1:8000#")
        self.assertRegex(caught.exception.faults[0], "^the model behind its #: must be ")

    def test_bad_backend_url_is_one_fault_without_its_secret(self) -> None:
        for url in ("x", "http://u:pw@a", "http://a:1,http://b:2"):
            with self.subTest(url), self.assertRaises(ConfigurationError) as caught:
                parse_backend_url(url)
            self.assertEqual(len(caught.exception.faults), 1)
            self.assertRegex(caught.exception.faults[0], "^must ")
            self.assertNotIn("pw", caught.exception.faults[0])

    def test_echo_fleet_needs_no_engine(self) -> None:
        fleet = echo_fleet()
        self.assertTrue(fleet.wildcard)
        self.assertTrue(fleet.models[0].engines[0].is_echo)
        self.assertEqual(fleet.default_model, "echo")


if __name__ == "__main__":
    unittest.main()
