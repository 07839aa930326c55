"""Discovery of engines: what is configured, what sources say, when a watch believes it, what becomes of engines."""

from __future__ import annotations

import json
import os
import tempfile
import time
import unittest
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, Optional, Union
from unittest import mock

from gateway.configuration import ConfigurationError
from gateway.discovery import consul, files, slices, watch
from gateway.discovery.answers import Answer, Cancelled, DiscoveryError
from gateway.discovery.discoveries import refuse_templates
from gateway.discovery.files import FileAsker
from gateway.discovery.watch import Change, Watch
from gateway.fleet import load_engines_file
from gateway.offered import Offered
from gateway.routing import found
from gateway.routing.engine import UNPROVEN, ListedModel
from gateway.routing.found import Found, engine_of, engines_of
from gateway.routing.router import Router
from gateway.routing.sources import (
    ConsulSource,
    DiscoverSpec,
    DnsSource,
    FileSource,
    KubernetesSource,
    SrvSource,
)
from gateway.routing.specs import EngineSpec, FleetSpec, ModelSpec
from gateway.settings import load
from gateway.tools.replay import void

DNS = DiscoverSpec(DnsSource("engines.test:8000"))


def specs(*hosts: str, **more: Any) -> tuple[EngineSpec, ...]:
    return tuple(EngineSpec(f"http://{host}:8000", **more) for host in hosts)


class ConfigurationTest(unittest.TestCase):
    def fleet(self, **model: Any) -> FleetSpec:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "engines.json")
            path.write_text(json.dumps({"models": {"m": model}}))
            return load_engines_file(path)

    def test_each_source_is_said_in_one_object(self) -> None:
        kubernetes = {"namespace": "llm", "selector": "app=vllm", "port": "http"}
        consul_said = {"url": "http://127.0.0.1:8500", "service": "vllm", "tags": ["gpu"], "datacenter": "eu1"}
        for said, source in (
            ({"dns": "Engines.internal:8000"}, DnsSource("Engines.internal:8000")),
            ({"dns": "[fd00::1]:8000", "family": "ipv6"}, DnsSource("[fd00::1]:8000", "ipv6")),
            ({"srv": "_http._tcp.engines.internal"}, SrvSource("_http._tcp.engines.internal")),
            ({"kubernetes": kubernetes}, KubernetesSource("app=vllm", "llm", "http")),
            ({"kubernetes": {"selector": "app in (a, b)"}}, KubernetesSource("app in (a, b)")),
            ({"consul": consul_said}, ConsulSource("http://127.0.0.1:8500", "vllm", ("gpu",), "eu1")),
            ({"file": "engines.d/13b.json"}, FileSource("engines.d/13b.json")),
        ):
            with self.subTest(said):
                (model,) = self.fleet(discover=said).models
                self.assertEqual((model.discover, model.engines), (DiscoverSpec(source), ()))
        self.assertEqual(DiscoverSpec(DnsSource("a:1")).interval_s, 10.0)

    def test_what_engines_have_in_common_is_the_template(self) -> None:
        template = {"scheme": "https", "path": "/api", "max_concurrency": 4, "weight": 2, "api_key_env": "KEY"}
        (model,) = self.fleet(discover={"dns": "a:1", "interval": 2.5, "template": template}).models
        assert model.discover is not None
        self.assertEqual(model.discover.interval_s, 2.5)
        engine = engine_of(Found("fd00::1", 8000), model.discover.template)
        self.assertEqual(engine.url, "https://[fd00::1]:8000/api")
        self.assertEqual((engine.max_concurrency, engine.weight, engine.api_key_env), (4, 2, "KEY"))
        self.assertEqual(engine_of(Found("10.0.0.1", 8000), {}).url, "http://10.0.0.1:8000/v1")

    def test_engines_that_list_their_models_may_be_discovered(self) -> None:
        fleet = self.fleet(models="auto", discover={"dns": "a:1"})
        self.assertEqual([(group.name, group.engines) for group in fleet.groups], [("m", ())])

    def test_faults_name_what_and_where(self) -> None:
        at = "models.m.discover"
        for said, fault in (
            ([], f"{at}: must be an object, not []"),
            ({}, f"{at}: must have one of dns, srv, kubernetes, consul, file, not none"),
            ({"dns": "a:1", "file": "x"}, f"{at}: must have one of dns, srv, kubernetes, consul, file, not dns"),
            ({"dns": "a"}, f'{at}.dns: must be a name with a port, as in "engines.internal:8000", not "a"'),
            ({"dns": "a:0"}, f"{at}.dns: must be a name with a port"),
            ({"dns": "::1:80"}, f"{at}.dns: must be a name with a port"),
            ({"dns": "http://a:80"}, f"{at}.dns: must be a name with a port"),
            ({"dns": "a:1", "family": "inet"}, f"{at}.family: must be one of ipv4, ipv6"),
            ({"srv": "engines.internal"}, f'{at}.srv: must be a name such as "_http._tcp.engines.internal"'),
            ({"srv": "_http._tcp.a", "family": "ipv4"}, f"{at}.family: is not a known key; known here: srv, interval"),
            ({"kubernetes": {}}, f"{at}.kubernetes.selector: is missing"),
            ({"kubernetes": {"selector": "a", "namespace": "A"}}, f"{at}.kubernetes.namespace: must be the name"),
            ({"kubernetes": {"selector": "a\n"}}, f"{at}.kubernetes.selector: must be a label selector"),
            ({"kubernetes": {"selector": "a", "port": 0}}, f"{at}.kubernetes.port: must be a port from 1 to 65535"),
            ({"consul": {"url": "consul:8500", "service": "x"}}, f"{at}.consul.url: must be http://host[:port]"),
            ({"consul": {"url": "http://a/v1", "service": "x"}}, f"{at}.consul.url: must be http://host[:port]"),
            ({"consul": {"url": "http://a:99999", "service": "x"}}, f"{at}.consul.url: must be http://host[:port]"),
            ({"consul": {"url": "http://a"}}, f"{at}.consul.service: is missing"),
            ({"consul": {"url": "http://a", "service": "x", "tags": "x"}}, f"{at}.consul.tags: must be a list"),
            ({"file": ""}, f"{at}.file: must be the path of a file"),
            ({"file": "x", "interval": 0.5}, f"{at}.interval: must be a number from 1 to 3600, not 0.5"),
            ({"file": "x", "template": {"path": "/v1"}}, f"{at}.template.path: is not a known key; known here: w"),
            ({"dns": "a:1", "template": {"url": "http://a"}}, f"{at}.template.url: is not a known key"),
            ({"dns": "a:1", "template": {"weight": 0}}, f"{at}.template.weight: must be an integer from 1 to "),
            ({"dns": "a:1", "template": {"scheme": "ftp"}}, f"{at}.template.scheme: must be one of http, https"),
            ({"dns": "a:1", "template": {"path": "/chat/completions"}}, f"{at}.template: url: must end before /chat/"),
            ({"dns": "a:1", "intervall": 1}, f"{at}.intervall: is not a known key; known here: dns, family, interval"),
        ):  # fmt: skip
            with self.subTest(said), self.assertRaises(ConfigurationError) as caught:
                self.fleet(discover=said)
            self.assertEqual(len(caught.exception.faults), 1, caught.exception.faults)
            self.assertTrue(caught.exception.faults[0].startswith(fault), caught.exception.faults[0])

    def test_a_password_in_an_address_is_not_shown(self) -> None:
        with self.assertRaises(ConfigurationError) as caught:
            self.fleet(discover={"consul": {"url": "http://u:hunter2@a", "service": "x"}})
        self.assertNotIn("hunter2", str(caught.exception))

    def test_a_model_has_engines_or_discover(self) -> None:
        with self.assertRaises(ConfigurationError) as caught:
            self.fleet(engines=["http://a"], discover={"dns": "a:1"})
        self.assertEqual(caught.exception.faults, ("models.m.engines: a model has engines or discover, not both",))
        with self.assertRaises(ConfigurationError) as caught:
            self.fleet(engines=[])
        self.assertIn("at least one engine", caught.exception.faults[0])

    def test_a_group_whose_template_names_one_model_is_a_fault(self) -> None:
        with self.assertRaises(ConfigurationError) as caught:
            self.fleet(models="auto", discover={"dns": "a:1", "template": {"model": "x"}})
        self.assertIn("models.m.discover.template.model: says one name", caught.exception.faults[0])

    def test_keys_of_templates_and_the_token_of_consul_are_secrets_of_the_settings(self) -> None:
        said = {"consul": {"url": "http://a", "service": "x"}, "template": {"api_key_env": "VLLM_KEY"}}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "engines.json")
            path.write_text(json.dumps({"models": {"m": {"discover": said}}}))
            environ = {"ENGINES_FILE": str(path), "VLLM_KEY": "sk-1", "CONSUL_HTTP_TOKEN": "t", "OTHER": "x"}
            settings = load(environ, None)
        self.assertEqual(dict(settings.engine_keys), {"VLLM_KEY": "sk-1", "CONSUL_HTTP_TOKEN": "t"})

    def test_a_program_gets_a_bad_template_told_at_once(self) -> None:
        model = ModelSpec("m", (), discover=DiscoverSpec(DnsSource("a:1"), template={"wieght": 2}))
        with self.assertRaisesRegex(ValueError, "discover of m: template.wieght: is not a known key"):
            refuse_templates(FleetSpec((model,)))
        with self.assertRaisesRegex(ValueError, "at least one engine"):
            ModelSpec("m", ())


class FoundTest(unittest.TestCase):
    def test_what_a_source_says_goes_before_the_template_but_for_keys(self) -> None:
        discover = DiscoverSpec(FileSource("x"), template={"weight": 2, "api_key_env": "KEY"})
        listing = engines_of(
            [
                Found(own={"url": "http://a", "weight": 7}),
                Found(own={"url": "http://b", "api_key_env": "OPENAI_API_KEY"}),
                Found(own={"url": "http://c", "provider": "openai"}),
                Found(own={"url": "http://d", "wieght": 1}),
            ],
            discover,
        )
        self.assertEqual([(e.url, e.weight, e.api_key_env) for e in listing.engines], [("http://a/v1", 7, "KEY")])
        self.assertIn("[1]: api_key_env: only the template may say this", listing.faults)
        self.assertIn("[2]: provider: only the template may say this", listing.faults)
        self.assertIn("[3]: wieght: is not a known key", listing.faults)

    def test_an_engine_that_is_named_twice_is_one(self) -> None:
        self.assertEqual(len(engines_of([Found("a", 1), Found("a", 1)], DNS).engines), 1)
        twice = engines_of([Found(own={"url": "http://a"}), Found(own={"url": "http://a/v2"})], DNS)
        self.assertEqual((len(twice.engines), len(twice.faults)), (1, 1))

    def test_thousands_are_bounded(self) -> None:
        with mock.patch.object(found, "FOUND_MAX", 3):
            listing = engines_of([Found(f"h{number}", 1) for number in range(5)], DNS)
        self.assertEqual((len(listing.engines), listing.faults), (3, ("5 engines: only the first 3 count",)))


def piece(
    *endpoints: dict[str, Any], ports: Optional[Sequence[dict[str, Any]]] = None, name: str = "vllm-x"
) -> dict[str, Any]:
    own = [{"name": "http", "port": 8000, "protocol": "TCP"}] if ports is None else list(ports)
    return {"metadata": {"name": name}, "addressType": "IPv4", "endpoints": list(endpoints), "ports": own}


def endpoint(address: str, **conditions: Optional[bool]) -> dict[str, Any]:
    return {"addresses": [address], "conditions": conditions, "zone": "eu-1a"}


class SlicesTest(unittest.TestCase):
    def hosts(self, *pieces: Any, port: Union[int, str, None] = None) -> list[tuple[str, int]]:
        return [(one.host, one.port) for one in slices.found_in(pieces, port)]

    def test_ready_endpoints_are_in_and_unknown_counts_as_ready(self) -> None:
        one = piece(
            endpoint("10.0.0.3", ready=True, serving=True, terminating=False),
            endpoint("10.0.0.2", ready=False, serving=True, terminating=True),
            endpoint("10.0.0.1", ready=None),
            {"addresses": ["10.0.0.4"]},
        )
        self.assertEqual(self.hosts(one), [("10.0.0.1", 8000), ("10.0.0.3", 8000), ("10.0.0.4", 8000)])

    def test_where_none_is_ready_those_that_still_serve_while_they_end_are_in(self) -> None:
        ending = endpoint("10.0.0.2", ready=False, serving=True, terminating=True)
        starting = endpoint("10.0.0.3", ready=False, serving=False)
        self.assertEqual(self.hosts(piece(ending, starting)), [("10.0.0.2", 8000)])
        self.assertEqual(self.hosts(piece(starting)), [])

    def test_slices_of_both_families_are_one_list_without_doubles(self) -> None:
        six = {**piece(endpoint("fd00::1", ready=True)), "addressType": "IPv6"}
        four = piece(endpoint("10.0.0.1", ready=True))
        self.assertEqual(self.hosts(six, four, four), [("10.0.0.1", 8000), ("fd00::1", 8000)])

    def test_a_port_goes_by_name_by_number_or_by_being_the_only_one(self) -> None:
        ports = [
            {"name": "http", "port": 8000},
            {"name": "metrics", "port": 9090},
            {"name": "u", "port": 1, "protocol": "UDP"},
        ]
        both = piece(endpoint("10.0.0.1"), ports=ports)
        self.assertEqual(self.hosts(both, port="metrics"), [("10.0.0.1", 9090)])
        self.assertEqual(self.hosts(both, port=7000), [("10.0.0.1", 7000)])
        with self.assertRaisesRegex(DiscoveryError, r"vllm-x has not one port, but http \(8000\), metrics \(9090\)"):
            self.hosts(both)
        with self.assertRaisesRegex(DiscoveryError, "no port grpc"):
            self.hosts(both, port="grpc")
        self.assertEqual(self.hosts(both, piece(endpoint("10.0.0.2"), ports=[]), port="http"), [("10.0.0.1", 8000)])

    def test_what_is_no_slice_is_passed_over(self) -> None:
        odd = [None, [], {}, {"endpoints": None}, {"endpoints": [None, {"addresses": None}, {"addresses": ["a b"]}, 1]}]
        odd += [piece({"addresses": []}), piece({"addresses": [5]})]
        self.assertEqual(self.hosts(*odd, port=8000), [])


class ConsulAnswerTest(unittest.TestCase):
    def test_a_service_is_where_it_says_or_where_its_node_is(self) -> None:
        node = {"Node": {"Address": "10.1.0.1"}}
        entries = [
            {**node, "Service": {"Address": "10.0.0.2", "Port": 8000, "Weights": {"Passing": 10, "Warning": 1}}},
            {**node, "Service": {"Address": "", "Port": 8000}},
            {**node, "Service": {"Address": "Engine.Consul", "Port": 8001, "Weights": {"Passing": 0}}},
            {**node, "Service": {"Address": "10.0.0.3", "Port": 0}},
            {**node, "Service": {"Address": "10.0.0.4", "Port": True}},
            {"Service": {"Port": 8000}}, {"Service": None}, None, 5,
        ]  # fmt: skip
        self.assertEqual(
            [(one.host, one.port, dict(one.own)) for one in consul.found_in(entries)],
            [("10.0.0.2", 8000, {"weight": 10}), ("10.1.0.1", 8000, {}), ("engine.consul", 8001, {})],
        )


class FileTest(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name, "engines.json")
        self.asker = FileAsker(FileSource(str(self.path)))

    def write(self, text: str, age_s: float = 10.0) -> None:
        self.path.write_text(text)
        then_s = time.time() - age_s
        os.utime(self.path, (then_s, then_s))

    def urls(self) -> list[str]:
        return [one.own["url"] for one in self.asker.ask().found]

    def test_a_list_of_urls_and_objects_is_read(self) -> None:
        self.write('["http://a", {"url": "http://b", "weight": 2, "endpoints": ["/v1/embeddings"]}]')
        self.assertEqual(self.urls(), ["http://a", "http://b"])
        self.assertEqual(self.asker.ask().found[1].own["endpoints"], ("/v1/embeddings",))
        self.write("[]", age_s=9)
        self.assertEqual(self.urls(), [])

    def test_a_file_that_looks_the_same_is_not_read_again(self) -> None:
        self.write('["http://a"]')
        self.urls()
        with mock.patch.object(files, "found_in", side_effect=AssertionError("read again")):
            self.assertEqual(self.urls(), ["http://a"])

    def test_one_that_was_written_a_moment_ago_is_read_again_as_it_may_look_the_same(self) -> None:
        self.write('["http://a"]', age_s=0.0)
        self.urls()
        before = self.path.stat()
        self.path.write_text('["http://b"]')
        os.utime(self.path, ns=(before.st_atime_ns, before.st_mtime_ns))
        self.assertEqual(self.urls(), ["http://b"])

    def test_what_is_no_list_of_engines_is_told(self) -> None:
        for text, why in (
            ('["http://a"', "is no JSON .line 1, column 12."),
            ("", "is no JSON"),
            ('{"engines": []}', "must be a list"),
            ("[5]", r"\[0\]: must be a URL or an object"),
            ('[{"weight": 1}]', r"\[0\].url: is missing"),
            ('[{"url": "http://a", "url": "http://b"}]', "the key 'url' stands twice in one object"),
            ("[" * 100_000, "is no JSON"),
            ("[NaN]", "NaN is not JSON"),
            ('[{"url": "http://a", "weight": %s}]' % ("9" * 5000), "a number has more than 1000 digits"),
        ):
            with self.subTest(text[:40]):
                self.write(text)
                with self.assertRaisesRegex(DiscoveryError, why):
                    self.asker.ask()

    def test_a_file_that_is_gone_or_is_none_is_told(self) -> None:
        with self.assertRaisesRegex(DiscoveryError, "No such file"):
            self.asker.ask()
        self.path.mkdir()
        with self.assertRaisesRegex(DiscoveryError, "is not a file"):
            self.asker.ask()

    @unittest.skipUnless(hasattr(os, "mkfifo"), "there are no pipes with names here")
    def test_a_pipe_is_not_opened(self) -> None:
        os.mkfifo(self.path)
        with self.assertRaisesRegex(DiscoveryError, "is not a file"):
            self.asker.ask()

    def test_one_that_is_too_long_is_told(self) -> None:
        with mock.patch.object(files, "FILE_MAX_BYTES", 10):
            self.write('["http://abcdef"]')
            with self.assertRaisesRegex(DiscoveryError, "longer than 10 bytes"):
                self.asker.ask()


class Script:
    """An asker that answers what the test has set."""

    def __init__(self) -> None:
        self.says: Union[Answer, Exception] = Answer([])

    def hosts(self, *hosts: str, **more: Any) -> None:
        self.says = Answer([Found(host, 8000) for host in hosts], **more)

    def ask(self) -> Answer:
        if isinstance(self.says, Exception):
            raise self.says
        return self.says

    def cancel(self) -> None:
        pass


class WatchTest(unittest.TestCase):
    def setUp(self) -> None:
        self.now_s = 100.0
        self.script = Script()
        self.taken: list[tuple[str, ...]] = []
        self.changes: list[Change] = []
        self.wanted = True
        self.watch = self.new_watch(DNS)

    def new_watch(self, discover: DiscoverSpec) -> Watch:
        rng = mock.Mock(spec=Random)
        rng.random.return_value = 0.0
        return Watch("m", discover, self.script, self.take, self.changes.append, clock=lambda: self.now_s, rng=rng)

    def take(self, model: str, discover: DiscoverSpec, engines: tuple[EngineSpec, ...]) -> bool:
        self.taken.append(tuple(engine.host for engine in engines))
        return self.wanted

    def test_what_is_found_is_handed_on_and_told_once(self) -> None:
        self.script.hosts("a", "b")
        self.assertEqual(self.watch.step(), 10.0)
        self.assertTrue(self.watch.first.is_set())
        self.script.hosts("b", "c")
        self.watch.step()
        self.watch.step()
        self.assertEqual(self.taken, [("a", "b"), ("b", "c"), ("b", "c")])
        source = "dns engines.test:8000"
        self.assertEqual(
            self.changes,
            [
                Change("m", source, 2, ("a:8000", "b:8000"), ()),
                Change("m", source, 2, ("c:8000",), ("a:8000",)),
            ],
        )

    def test_a_time_to_live_brings_the_next_look_but_none_sooner_than_a_second_or_later_than_the_interval(self) -> None:
        for ttl_s, wait_s in ((3.0, 3.0), (0.0, 1.0), (3600.0, 10.0), (None, 10.0)):
            with self.subTest(ttl_s):
                self.script.hosts("a", again_s=ttl_s)
                self.assertEqual(self.watch.step(), wait_s)

    def test_waits_differ_by_a_tenth(self) -> None:
        self.script.hosts("a")
        waits = {Watch("m", DNS, self.script, self.take, self.changes.append).step() for _ in range(20)}
        self.assertGreater(len(waits), 10)
        self.assertTrue(all(8.9 < wait_s <= 10.0 for wait_s in waits))

    def test_a_failure_keeps_the_list_and_is_told_once_until_it_is_over(self) -> None:
        self.script.hosts("a")
        self.watch.step()
        self.script.says = DiscoveryError("SERVFAIL")
        self.now_s += 5
        self.assertEqual([self.watch.step() for _ in range(6)], [1.0, 2.0, 4.0, 8.0, 10.0, 10.0])
        self.assertEqual(self.taken, [("a",)])
        state = self.watch.look()
        self.assertEqual((state.engines, state.failures, state.age_s, state.error), (1, 6, 5.0, "SERVFAIL"))
        self.script.hosts("a")
        self.watch.step()
        self.assertEqual([change.error for change in self.changes], [None, "SERVFAIL", ""])
        self.assertEqual((self.watch.look().error, self.watch.look().age_s), ("", 0.0))

    def test_what_nobody_had_foreseen_is_a_failure_like_others(self) -> None:
        self.script.says = RuntimeError("odd")
        self.watch.step()
        self.assertEqual(self.watch.look().error, "RuntimeError: odd")
        self.assertIsNone(self.watch.look().age_s)

    def test_nothing_is_believed_of_dns_after_a_while_only(self) -> None:
        self.script.hosts("a")
        self.watch.step()
        self.script.hosts(doubtful=True)
        self.watch.step()
        self.now_s += watch.EMPTY_HOLD_S - 1
        self.watch.step()
        self.assertEqual(self.taken, [("a",)])
        self.now_s += 1
        self.watch.step()
        self.assertEqual(self.taken, [("a",), ()])
        self.script.hosts("a", doubtful=True)
        self.watch.step()
        self.script.hosts(doubtful=True)
        self.watch.step()  # the time begins anew
        self.assertEqual(self.taken[-1], ("a",))

    def test_nothing_is_an_answer_of_others_at_once_and_of_dns_when_nothing_was_there(self) -> None:
        self.script.hosts("a")
        self.watch.step()
        self.script.hosts()
        self.watch.step()
        self.assertEqual(self.taken, [("a",), ()])
        self.script.hosts(doubtful=True)
        other = self.new_watch(DNS)
        other.step()
        self.assertEqual(self.taken[-1], ())
        self.assertEqual(other.look().error, "")

    def test_a_file_with_one_bad_engine_keeps_the_list(self) -> None:
        self.script.hosts("a", strict=True)
        self.watch.step()
        self.script.says = Answer([Found("b", 8000), Found(own={"url": "ftp://x"})], strict=True)
        self.watch.step()
        self.assertEqual(self.taken, [("a",)])
        self.assertIn("[1]: url: must be http://", self.watch.look().error)

    def test_of_others_an_engine_that_cannot_be_one_is_left_out_and_told_once(self) -> None:
        self.script.says = Answer([Found("b", 8000), Found("a b", 1)])
        self.watch.step()
        self.watch.step()
        self.assertEqual(self.taken, [("b",), ("b",)])
        told = [change.error for change in self.changes if change.error]
        self.assertEqual(len(told), 1)
        self.assertIn("left out: [1]: url", told[0])

    def test_many_that_come_are_not_all_named(self) -> None:
        self.script.hosts(*(f"h{number}" for number in range(50)))
        self.watch.step()
        self.assertEqual((self.changes[0].added[-1], len(self.changes[0].added)), ("and 30 more", watch.IDS_MAX + 1))

    def test_who_is_not_wanted_any_more_ends(self) -> None:
        self.script.hosts("a")
        self.wanted = False
        with self.assertRaises(Cancelled):
            self.watch.step()
        self.watch.start()
        self.watch.join(5.0)
        self.assertEqual(self.changes, [])


class OfferedTest(unittest.TestCase):
    def setUp(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.now_s = 0.0

    def offer(self, fleet: FleetSpec) -> None:
        self.router = Router(fleet, clock=lambda: self.now_s, recorder=self.records.append)
        self.offered = Offered(self.router, fleet, lambda *change: void(self.router.reload(*change)))

    def fleet(self, discover: DiscoverSpec = DNS, **more: Any) -> FleetSpec:
        return FleetSpec((ModelSpec("m", (), discover=discover, **more), ModelSpec("other", specs("o"))))

    def states(self, model: str = "m") -> dict[str, str]:
        return {engine.id.partition(":")[0]: engine.state for engine in self.router.pools[model].snapshot()}

    def prove(self, host: str) -> None:
        pool = self.router.pools["m"]
        engine = next(engine for engine in pool.engines if engine.spec.host == host)
        pool.record_probe(engine, None, 2, 1)

    def test_a_new_engine_gets_nothing_until_a_probe_of_it_has_passed(self) -> None:
        self.offer(self.fleet())
        self.assertEqual(self.states(), {})
        self.assertTrue(self.offered.rediscover("m", DNS, specs("a", "b")))
        pool = self.router.pools["m"]
        self.assertEqual((self.states(), pool.acquire((), b"")), ({"a": "down", "b": "down"}, None))
        self.assertEqual(pool.snapshot()[0].last_error, UNPROVEN)
        self.assertEqual(len(pool.due_for_probe(5.0)), 2)
        self.prove("b")
        lease = pool.acquire((), b"")
        assert lease is not None
        self.assertEqual((lease.engine.spec.host, self.states()), ("b", {"a": "down", "b": "up"}))

    def test_the_first_probe_of_a_new_engine_is_told_whichever_way_it_ends(self) -> None:
        self.offer(self.fleet())
        self.offered.rediscover("m", DNS, specs("a", "b"))
        pool = self.router.pools["m"]
        a, b = pool.engines
        told = [pool.record_probe(a, "refused", 2, 1), pool.record_probe(a, "refused", 2, 1)]
        told += [pool.record_probe(b, None, 2, 1), pool.record_probe(b, None, 2, 1)]
        self.assertEqual(
            [change and (change.before, change.after) for change in told], [("new", "down"), None, ("new", "up"), None]
        )
        self.assertEqual((a.last_error, b.last_error), ("refused", None))

    def test_engines_that_stay_keep_their_state_and_those_that_are_gone_finish_what_they_have(self) -> None:
        self.offer(self.fleet())
        self.offered.rediscover("m", DNS, specs("a", "b"))
        self.prove("a")
        self.prove("b")
        pool = self.router.pools["m"]
        lease = pool.acquire((), b"")
        assert lease is not None and lease.engine.spec.host == "a"
        stays = pool.engines[1]
        self.offered.rediscover("m", DNS, specs("b", "c"))
        self.assertTrue(lease.engine.removed)
        self.assertEqual((lease.engine.in_flight, pool.engines[0]), (1, stays))
        self.assertEqual(self.states(), {"b": "up", "c": "down"})

    def test_an_unchanged_list_changes_nothing(self) -> None:
        self.offer(self.fleet())
        self.offered.rediscover("m", DNS, specs("a"))
        before, count = self.router.fleet, len(self.records)
        self.assertIs(self.offered.rediscover("m", DNS, specs("a")), False)
        self.assertIs(self.router.fleet, before)
        self.assertEqual(len(self.records), count)

    def test_a_weight_that_a_source_changes_counts_unless_an_operator_has_said_another(self) -> None:
        self.offer(self.fleet())
        self.offered.rediscover("m", DNS, specs("a", "b"))
        self.router.pools["m"].set_weight("a:8000", 5)
        self.offered.rediscover("m", DNS, specs("a", "b", weight=3))
        self.assertEqual([engine.weight for engine in self.router.pools["m"].engines], [5, 3])

    def test_word_from_a_source_that_is_not_asked_any_more_is_not_heard(self) -> None:
        self.offer(self.fleet())
        other = DiscoverSpec(DnsSource("other.test:1"))
        self.assertIsNone(self.offered.rediscover("m", other, specs("a")))
        self.assertIsNone(self.offered.rediscover("nobody", DNS, specs("a")))
        self.assertIsNone(self.offered.rediscover("other", DNS, specs("a")))
        self.assertEqual(self.states(), {})

    def test_a_reload_keeps_what_was_found_until_the_new_source_has_spoken(self) -> None:
        self.offer(self.fleet())
        self.offered.rediscover("m", DNS, specs("a"))
        self.prove("a")
        other = DiscoverSpec(DnsSource("other.test:1"))
        self.offered.reload(self.fleet(other, strategy="random"), ())
        self.assertEqual((self.states(), self.router.pools["m"].strategy_name), ({"a": "up"}, "random"))
        self.offered.rediscover("m", other, specs("b"))
        self.assertEqual(self.states(), {"b": "down"})

    def test_a_reload_from_named_engines_to_discovered_ones_leaves_no_gap(self) -> None:
        self.offer(FleetSpec((ModelSpec("m", specs("a")),)))
        self.offered.reload(self.fleet(), ())
        self.assertEqual(self.states(), {"a": "up"})
        self.offered.reload(FleetSpec((ModelSpec("m", specs("x")),)), ())
        self.assertEqual(self.states(), {"x": "up"})

    def test_the_engines_of_a_group_may_be_discovered(self) -> None:
        group = ModelSpec("g", (), discover=DNS)
        self.offer(FleetSpec((), groups=(group,)))
        self.offered.rediscover("g", DNS, specs("a"))
        (engine,) = self.router.sources["g"].engines
        self.assertTrue(engine.down)
        self.router.sources["g"].record_probe(engine, None, 2, 1)
        engine.listed = (ListedModel("13b"),)
        self.offered.relist(engine)
        self.assertEqual(self.states("13b"), {"a": "up"})
        self.offered.rediscover("g", DNS, ())
        self.assertEqual(self.router.pools, {})

    def test_spare_engines_get_nothing_while_one_of_a_lower_number_is_in(self) -> None:
        self.offer(FleetSpec((ModelSpec("m", (*specs("a", priority=1), *specs("b", priority=2))),)))
        pool = self.router.pools["m"]
        leases = [pool.acquire((), b"") for _ in range(4)]
        self.assertEqual({lease.engine.spec.host for lease in leases if lease is not None}, {"a"})
        pool.set_draining("a:8000", True)
        lease = pool.acquire((), b"")
        assert lease is not None
        self.assertEqual(lease.engine.spec.host, "b")
        pool.set_draining("a:8000", False)
        back = pool.acquire((), b"")
        assert back is not None
        self.assertEqual(back.engine.spec.host, "a")

    def test_a_spare_stands_in_for_its_own_region(self) -> None:
        def spec(host: str, region: str, priority: int) -> tuple[EngineSpec, ...]:
            return specs(host, region=region, priority=priority)

        engines = (*spec("a", "us", 0), *spec("b", "us", 1), *spec("c", "eu", 1), *spec("d", "eu", 1))
        fleet = FleetSpec((ModelSpec("m", engines),))
        self.router = Router(fleet, clock=lambda: self.now_s, region="us")
        pool = self.router.pools["m"]

        def chosen(residency: str = "") -> set[str]:
            leases = [pool.acquire((), b"", (), residency) for _ in range(20)]
            return {lease.engine.spec.host for lease in leases if lease is not None}

        self.assertEqual((chosen(), chosen("eu")), ({"a"}, {"c", "d"}))  # nothing spills: no engine of us is out
        pool.set_draining("a:8000", True)
        self.assertIn("b", chosen())
