"""Engines that are discovered: asked for at real servers, joining and leaving a gateway under load."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import ssl
import subprocess
import tempfile
import threading
import time
import unittest
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional
from unittest import mock

from gateway.discovery import client as dns_client
from gateway.discovery import kubernetes, watch
from gateway.discovery.answers import Cancelled, DiscoveryError
from gateway.discovery.client import DnsClient, Records
from gateway.discovery.message import AAAA, SRV, A, SrvData
from gateway.fleet import load_engines_file
from gateway.mock.server import MockEngine
from gateway.tools.replay import replay
from tests.discovering import ConsulApi, DnsServer, KubernetesApi, with_question
from tests.dnsbytes import a, answer
from tests.resilience import ResilienceTest, ask
from tests.support import RunningGateway, dead_url, eventually, mock_engine

OPENSSL = shutil.which("openssl")
SPELLING = 0x20


class SystemTest(ResilienceTest):
    """With files of a system that lead to the test's own DNS server."""

    def setUp(self) -> None:
        super().setUp()
        self.folder = Path(self.enter(tempfile.TemporaryDirectory()))
        self.conf, self.hosts = self.folder / "resolv.conf", self.folder / "hosts"
        self.hosts.write_text("")
        self.server = self.enter(DnsServer())
        self.conf.write_text(f"nameserver [127.0.0.1]:{self.server.port}\noptions timeout:5 attempts:1\n")


class DnsClientTest(SystemTest):
    def setUp(self) -> None:
        super().setUp()
        self.ended = threading.Event()
        self.client = DnsClient(self.ended.is_set, self.conf, self.hosts)

    def test_addresses_and_services_come_with_their_time_to_live(self) -> None:
        self.server.addresses("engines.test", "10.0.0.1", "10.0.0.2", "fd00::1", ttl_s=30)
        self.server.service("_http._tcp.engines.test", ("one.test", 8001, 10, 60), ttl_s=9)
        self.assertEqual(self.client.look_up("Engines.TEST.", A), Records(("10.0.0.1", "10.0.0.2"), 30))
        self.assertEqual(self.client.look_up("engines.test", AAAA), Records(("fd00::1",), 30))
        self.assertEqual(
            self.client.look_up("_http._tcp.engines.test", SRV), Records((SrvData(10, 60, 8001, "one.test"),), 9)
        )
        self.assertNotIn(True, [tcp for *_, tcp in self.server.asked])

    def test_questions_are_spelt_and_numbered_at_random(self) -> None:
        self.server.addresses("engines.test", "10.0.0.1")
        seen: list[bytes] = []

        def reply(asked: bytes, tcp: bool) -> list[bytes]:
            seen.append(asked)
            return self.server.usual(asked, tcp)

        self.server.reply = reply
        for _ in range(12):
            self.client.look_up("engines.test", A)
        self.assertGreater(len({asked[:2] for asked in seen}), 8)
        self.assertGreater(len({asked[12:] for asked in seen}), 8)
        self.assertEqual(len({asked[12:].lower() for asked in seen}), 1)

    def test_what_is_not_there_is_known_as_such_for_as_long_as_its_zone_says(self) -> None:
        self.server.addresses("only4.test", "10.0.0.1")
        self.assertEqual(self.client.look_up("nobody.test", A), Records((), 5))
        self.assertEqual(self.client.look_up("only4.test", AAAA), Records((), 5))

    def test_aliases_are_followed_from_answer_to_answer(self) -> None:
        self.server.alias("a.test", "b.test")
        self.server.alias("b.test", "c.test")
        self.server.addresses("c.test", "10.0.0.1", ttl_s=7)
        self.assertEqual(self.client.look_up("a.test", A), Records(("10.0.0.1",), 7))
        self.server.alias("c.test", "a.test")
        with self.assertRaisesRegex(DiscoveryError, "more than 8 aliases"):
            self.client.look_up("a.test", A)

    def test_a_name_is_looked_for_in_the_domains_of_the_system(self) -> None:
        self.conf.write_text(self.conf.read_text() + "search one.test two.test\noptions ndots:2\n")
        self.server.addresses("engines.two.test", "10.0.0.1")
        self.assertEqual(self.client.look_up("engines", A).data, ("10.0.0.1",))
        self.assertEqual([name for name, *_ in self.server.asked], ["engines.one.test", "engines.two.test"])

    def test_what_does_not_fit_a_datagram_is_asked_for_by_tcp(self) -> None:
        self.server.addresses("many.test", *(f"10.0.{n // 200}.{n % 200}" for n in range(1000)))

        def reply(asked: bytes, tcp: bool) -> list[bytes]:
            cut = answer("x", A, [], 0x8380)
            return self.server.usual(asked, tcp) if tcp else [with_question(cut, asked)]

        self.server.reply = reply
        self.assertEqual(len(self.client.look_up("many.test", A).data), 1000)
        self.assertEqual([tcp for *_, tcp in self.server.asked], [False, True])

    def test_an_answer_to_another_spelling_is_asked_for_again_by_tcp(self) -> None:
        self.server.addresses("engines.test", "10.0.0.1")
        forged = answer("engines.test", A, [a("engines.test", "10.6.6.6")])

        def reply(asked: bytes, tcp: bool) -> list[bytes]:
            if tcp:
                return self.server.usual(asked, tcp)
            other = bytes(b ^ SPELLING if chr(b).isalpha() else b for b in asked[12:])
            return [with_question(forged, asked[:12] + other)]

        self.server.reply = reply
        self.assertEqual(self.client.look_up("engines.test", A).data, ("10.0.0.1",))
        self.assertEqual([tcp for *_, tcp in self.server.asked], [False, True])

    def test_one_that_spells_names_its_own_way_and_has_no_tcp_is_heard_and_known_as_such(self) -> None:
        self.server.addresses("engines.test", "10.0.0.1")

        def reply(asked: bytes, tcp: bool) -> list[bytes]:
            lowered = asked[:12] + asked[12:].lower()
            return [] if tcp else self.server.usual(lowered, tcp)

        self.server.reply = reply
        for _ in range(2):
            self.assertEqual(self.client.look_up("engines.test", A).data, ("10.0.0.1",))
        self.assertEqual([tcp for *_, tcp in self.server.asked], [False, True, False])

    def test_forged_answers_are_not_heard(self) -> None:
        self.server.addresses("engines.test", "10.0.0.1")
        evil = answer("engines.test", A, [a("engines.test", "10.6.6.6")])

        def reply(asked: bytes, tcp: bool) -> list[bytes]:
            other_id = bytes((asked[0] ^ 1, asked[1]))
            no_answer = with_question(evil, asked)
            return [
                with_question(evil, asked, other_id),  # another question's
                asked[:2] + answer("other.test", A, [a("other.test", "10.6.6.6")])[2:],
                no_answer[:2] + b"\x01" + no_answer[3:],  # a question itself
                b"",
                asked[:1],
                *self.server.usual(asked, tcp),
            ]

        self.server.reply = reply
        self.assertEqual(self.client.look_up("engines.test", A).data, ("10.0.0.1",))

    def test_a_flood_of_forged_answers_ends(self) -> None:
        self.server.reply = lambda asked, tcp: [b"\0" + asked[1:2] + b"x" * 20 if asked[0] else b"\1" * 20] * 200
        with self.assertRaises(DiscoveryError):
            self.client.look_up("engines.test", A)

    def test_garbage_is_a_failure_and_the_next_server_is_asked(self) -> None:
        self.server.reply = lambda asked, tcp: [asked[:2] + b"\x81\x80" + b"\xff" * 40]
        with self.assertRaisesRegex(DiscoveryError, "engines.test: 127.0.0.1: "):
            self.client.look_up("engines.test", A)
        other = self.enter(DnsServer())
        other.addresses("engines.test", "10.0.0.1")
        self.conf.write_text(self.conf.read_text() + f"nameserver [127.0.0.1]:{other.port}\n")
        self.assertEqual(self.client.look_up("engines.test", A).data, ("10.0.0.1",))

    def test_a_server_that_fails_or_is_not_there_gives_way_to_the_next(self) -> None:
        self.server.rcode = 2
        other = self.enter(DnsServer())
        other.addresses("engines.test", "10.0.0.1")
        gone = dead_url().split(":")[2].partition("/")[0]
        own = self.conf.read_text()
        self.conf.write_text(f"nameserver [127.0.0.1]:{gone}\n{own}nameserver [127.0.0.1]:{other.port}\n")
        self.assertEqual(self.client.look_up("engines.test", A).data, ("10.0.0.1",))
        self.conf.write_text(own)
        with self.assertRaisesRegex(DiscoveryError, "engines.test: 127.0.0.1 says SERVFAIL"):
            self.client.look_up("engines.test", A)

    def test_one_that_leads_to_others_knows_nothing(self) -> None:
        self.server.reply = lambda asked, tcp: [with_question(answer("x", A, [], 0x8000), asked)]
        with self.assertRaisesRegex(DiscoveryError, "says that others know"):
            self.client.look_up("engines.test", A)

    def test_one_that_is_silent_gives_way_after_its_time(self) -> None:
        self.server.reply = lambda asked, tcp: []
        other = self.enter(DnsServer())
        other.addresses("engines.test", "10.0.0.1")
        own = self.conf.read_text().replace("timeout:5", "timeout:1")
        self.conf.write_text(f"{own}nameserver [127.0.0.1]:{other.port}\n")
        self.assertEqual(self.client.look_up("engines.test", A).data, ("10.0.0.1",))

    def test_one_that_is_older_than_edns_is_asked_without(self) -> None:
        self.server.addresses("engines.test", "10.0.0.1")

        def reply(asked: bytes, tcp: bool) -> list[bytes]:
            if asked[11]:  # it has a record beside the question
                return [asked[:2] + b"\x81\x81" + bytes(8)]  # FORMERR, without the question
            return self.server.usual(asked, tcp)

        self.server.reply = reply
        self.assertEqual(self.client.look_up("engines.test", A).data, ("10.0.0.1",))
        self.assertEqual(len(self.server.asked), 2)

    def test_over_tcp_half_an_answer_is_a_failure(self) -> None:
        self.conf.write_text(self.conf.read_text() + "options use-vc\n")

        def reply(asked: bytes, tcp: bool) -> list[bytes]:
            return []

        self.server.reply = reply
        with self.assertRaisesRegex(DiscoveryError, "closed within an answer"):
            self.client.look_up("engines.test", A)

    def test_who_is_not_wanted_any_more_ends_soon(self) -> None:
        waiting = threading.Event()

        def reply(asked: bytes, tcp: bool) -> list[bytes]:
            waiting.set()
            return []

        self.server.reply = reply
        ended: list[type] = []

        def look() -> None:
            try:
                self.client.look_up("engines.test", A)
            except DiscoveryError as error:
                ended.append(type(error))

        thread = threading.Thread(target=look)
        thread.start()
        self.assertTrue(waiting.wait(10))
        self.ended.set()
        thread.join(10)
        self.assertEqual(ended, [Cancelled])

    def test_without_resolv_conf_the_system_is_asked(self) -> None:
        client = DnsClient(resolv_conf=self.folder / "none", hosts=self.hosts)
        self.assertEqual(client.look_up("localhost", A), Records(("127.0.0.1",), None))


class DiscoveryTest(SystemTest):
    """Gateways whose engines are discovered."""

    def setUp(self) -> None:
        super().setUp()
        self.enter(mock.patch.object(dns_client, "RESOLV_CONF", self.conf))
        self.enter(mock.patch.object(dns_client, "HOSTS", self.hosts))
        self.enter(mock.patch.object(watch, "LEAST_S", 0.05))  # between looks; a second in earnest

    def discovering(self, discover: dict[str, Any], **variables: object) -> RunningGateway:
        more = {"HEALTH_INTERVAL": "0.5", **variables}
        running = self.serve({"m": {"discover": {"interval": 1, **discover}}}, **more)
        self.assertTrue(running.app.factory.wait_probed(20))
        return running

    def hosts_of(self, running: RunningGateway) -> list[str]:
        return [engine.spec.host for engine in self.pool(running).engines]

    def up(self, running: RunningGateway) -> set[str]:
        snapshot = self.pool(running).snapshot()
        return {engine.id for engine in snapshot if engine.state == "up"}

    def lines(self, running: RunningGateway) -> list[dict[str, Any]]:
        return [line for line in running.log_lines() if line["event"] == "discovery"]

    def local_engines(self, count: int, **options: Any) -> list[MockEngine]:
        """Engines at different addresses and one port; `options` are the first one's."""
        first = self.enter(mock_engine("m", host="127.0.1.1"))
        return [
            first,
            *(self.enter(mock_engine("m", host=f"127.0.1.{n}", port=first.port)) for n in range(2, count + 1)),
        ]


class Load:
    """Clients that ask without a pause; a context manager."""

    def __init__(self, running: RunningGateway, clients: int = 3) -> None:
        self._running = running
        self._ending = threading.Event()
        self.answers: Counter[tuple[int, Optional[str]]] = Counter()
        self.failed: list[bytes] = []
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(30)

    def _ask(self) -> None:
        with self._running.connect() as client:
            while not self._ending.is_set():
                said = client.post(ask())
                self.answers[said.status, said.header("x-gateway-engine")] += 1
                if said.status != 200:
                    self.failed.append(said.body)

    def wait_for(self, engine: str) -> None:
        """Wait until an engine answers some more."""
        before = self.answers[200, engine]
        eventually(lambda: self.answers[200, engine] > before + 3)

    def wait_without(self, engine: str) -> None:
        """Wait until an engine answers no more, while others do."""

        def none() -> bool:
            before, all_before = self.answers[200, engine], sum(self.answers.values())
            eventually(lambda: sum(self.answers.values()) > all_before + 10)
            return self.answers[200, engine] == before

        eventually(none)


class DnsTest(DiscoveryTest):
    def test_engines_join_and_leave_by_dns_under_load_without_a_failed_request(self) -> None:
        one = self.local_engines(3)[0]
        name = f"engines.test:{one.port}"
        self.server.addresses("engines.test", "127.0.1.1", "127.0.1.2")
        running = self.discovering({"dns": name})
        self.assertEqual(self.up(running), {f"127.0.1.1:{one.port}", f"127.0.1.2:{one.port}"})
        with Load(running) as load:
            load.wait_for(f"127.0.1.1:{one.port}")
            self.server.addresses("engines.test", "127.0.1.2", "127.0.1.3")
            load.wait_for(f"127.0.1.3:{one.port}")
            load.wait_without(f"127.0.1.1:{one.port}")
            self.server.addresses("engines.test", "127.0.1.1", "127.0.1.2", "127.0.1.3")
            load.wait_for(f"127.0.1.1:{one.port}")
            self.server.addresses("engines.test", "127.0.1.1")
            load.wait_without(f"127.0.1.2:{one.port}")
            load.wait_without(f"127.0.1.3:{one.port}")
        self.assertEqual(load.failed, [])
        eventually(lambda: len(self.lines(running)) == 4)
        told = [(line["added"], line["removed"]) for line in self.lines(running)]
        self.assertEqual(told[1], ([f"127.0.1.3:{one.port}"], [f"127.0.1.1:{one.port}"]))
        self.assertEqual(running.metrics()['gateway_discovered_engines{model="m"}'], 1)

    def test_what_is_in_flight_on_an_engine_that_leaves_goes_on_to_its_end(self) -> None:
        one, two = self.local_engines(2, gap=0.25)
        self.server.addresses("engines.test", "127.0.1.1")
        running = self.discovering({"dns": f"engines.test:{one.port}"})
        client = self.begin(running, ask(stream=True))
        self.assertEqual(client.read_head().status, 200)
        client.read_event()
        self.server.addresses("engines.test", "127.0.1.2")
        eventually(lambda: self.hosts_of(running) == ["127.0.1.2"])
        events = client.read_events()
        self.assertEqual(events[-1], "data: [DONE]")
        self.assertGreater(len(events), 5)
        eventually(lambda: running.post(ask()).header("x-gateway-engine") == f"127.0.1.2:{two.port}")

    def test_a_new_engine_that_does_not_answer_gets_no_request(self) -> None:
        one = self.local_engines(1)[0]
        self.server.addresses("engines.test", "127.0.1.1")
        running = self.discovering({"dns": f"engines.test:{one.port}"})
        self.server.addresses("engines.test", "127.0.1.1", "127.0.1.9")  # nobody listens there
        eventually(lambda: len(self.hosts_of(running)) == 2)
        for _ in range(10):
            said = running.post(ask())
            self.assertEqual((said.status, said.header("x-gateway-attempts")), (200, "1"))
        self.assertEqual(running.get("/health").json()["status"], "degraded")

    def test_a_source_that_fails_keeps_the_last_list_and_says_so_once(self) -> None:
        one = self.local_engines(1)[0]
        self.server.addresses("engines.test", "127.0.1.1")
        running = self.discovering({"dns": f"engines.test:{one.port}"})
        self.server.rcode = 2
        sample = 'gateway_discovery_failures_total{model="m",source="dns"}'
        running.wait_for_metric(sample, 3)
        self.assertEqual(running.post(ask()).status, 200)
        self.server.rcode = None
        eventually(lambda: [line.get("error") for line in self.lines(running)][-1] is None)
        eventually(lambda: len(self.lines(running)) == 3)
        told = [(line["level"], line.get("error")) for line in self.lines(running)]
        self.assertEqual(told[1][0], "warning")
        self.assertIn("SERVFAIL", told[1][1] or "")
        self.assertLess(running.metrics()['gateway_discovery_age_seconds{model="m"}'], 5)

    def test_nothing_in_dns_is_believed_when_it_lasts(self) -> None:
        one = self.local_engines(1)[0]
        self.server.addresses("engines.test", "127.0.1.1")
        self.enter(mock.patch.object(watch, "EMPTY_HOLD_S", 1.0))
        running = self.discovering({"dns": f"engines.test:{one.port}"})
        self.server.zone.clear()
        eventually(lambda: any(line.get("error") for line in self.lines(running)))
        self.assertEqual(running.post(ask()).status, 200)
        eventually(lambda: not self.hosts_of(running))
        answer_without = running.post(ask())
        self.assert_error(answer_without, 503, "backend_unavailable")
        self.assertIn(b"no engine of the model has been discovered", answer_without.body)
        self.assertEqual(answer_without.header("retry-after"), "1")
        self.assertEqual(running.get("/health").json()["status"], "down")
        self.assertEqual(running.get("/readyz").status, 503)

    def test_a_start_without_an_answer_begins_anyway_and_serves_when_there_is_one(self) -> None:
        one = self.local_engines(1)[0]
        self.server.rcode = 2
        running = self.discovering({"dns": f"engines.test:{one.port}"})
        self.assert_error(running.post(ask()), 503, "backend_unavailable")
        self.server.rcode = None
        self.server.addresses("engines.test", "127.0.1.1")
        eventually(lambda: running.post(ask()).status == 200)

    def test_a_start_waits_for_the_first_answer_and_the_probes_after_it(self) -> None:
        one = self.local_engines(1)[0]
        self.server.addresses("engines.test", "127.0.1.1")
        gate = threading.Event()
        self.addCleanup(gate.set)

        def reply(asked: bytes, tcp: bool) -> list[bytes]:
            gate.wait(20)
            return self.server.usual(asked, tcp)

        self.server.reply = reply
        models = {"m": {"discover": {"dns": f"engines.test:{one.port}"}}}
        running = self.serve(models, HEALTH_INTERVAL="0.5")
        eventually(lambda: self.server.asked)
        self.assertFalse(running.app.factory.wait_probed(0.3))
        self.assertEqual(running.get("/readyz").json(), {"status": "probing"})
        gate.set()
        self.assertTrue(running.app.factory.wait_probed(20))
        self.assertEqual(self.up(running), {f"127.0.1.1:{one.port}"})

    def test_a_model_without_an_engine_is_told_so_at_every_endpoint_or_falls_back(self) -> None:
        self.server.rcode = 2
        engine = self.enter(mock_engine("other"))
        models = {
            "m": {"discover": {"dns": "engines.test:1"}},
            "covered": {"discover": {"dns": "engines.test:1"}, "fallbacks": ["other"]},
            "other": {"engines": [engine.url]},
        }
        running = self.serve(models, HEALTH_INTERVAL="0.5", FALLBACK="configured")
        self.assertTrue(running.app.factory.wait_probed(20))
        for path, body in (
            ("/v1/chat/completions", ask()),
            ("/v1/chat/completions", ask(stream=True)),
            ("/v1/embeddings", {"model": "m", "input": "x"}),
            ("/v1/completions", {"model": "m", "prompt": "x"}),
            ("/v1/responses", {"model": "m", "input": "x"}),
            ("/v1/rerank", {"model": "m", "query": "x", "documents": ["y"]}),
            ("/api/chat", {"model": "m", "messages": [{"role": "user", "content": "x"}]}),
            ("/v1/messages", {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}),
        ):
            with self.subTest(path):
                said = running.post(body, path)
                self.assertEqual(said.status, 529 if path == "/v1/messages" else 503, said.body)
                self.assertIn(b"no engine of the model has been discovered", said.body)
        said = running.post(ask(model="covered"))
        self.assertEqual((said.status, said.header("x-gateway-fallback")), (200, "covered->other"))
        self.assertEqual(running.get("/v1/models/m").json()["available"], False)
        self.assertEqual(running.get("/health").json()["models"]["m"]["engines"], [])
        self.assertEqual(running.post({"model": "m"}, "/api/show").status, 200)

    def test_a_reload_takes_another_source(self) -> None:
        one, two = self.local_engines(2)
        self.server.addresses("one.test", "127.0.1.1")
        self.server.addresses("two.test", "127.0.1.2")
        running = self.discovering({"dns": f"one.test:{one.port}"})
        path = self.folder / "other.json"
        models = {"m": {"discover": {"dns": f"two.test:{two.port}", "template": {"max_concurrency": 3}}}}
        path.write_text(json.dumps({"models": models}))
        threads = {thread.name for thread in threading.enumerate()}
        self.assertIn("discover-m", threads)
        with Load(running) as load:
            running.app.factory.reload(load_engines_file(path))
            load.wait_for(f"127.0.1.2:{two.port}")
            load.wait_without(f"127.0.1.1:{one.port}")
        self.assertEqual(load.failed, [])
        self.assertEqual([engine.spec.max_concurrency for engine in self.pool(running).engines], [3])
        self.assertEqual([thread.name for thread in threading.enumerate()].count("discover-m"), 1)

    def test_a_service_keeps_its_targets_names_and_their_spares_wait(self) -> None:
        one = self.enter(mock_engine("m"))
        other = self.enter(mock_engine("m"))
        self.server.service("_http._tcp.llm.test", ("localhost", other.port, 10, 5), ("localhost", one.port, 20, 0))
        running = self.discovering({"srv": "_http._tcp.llm.test"})
        engines = self.pool(running).engines
        self.assertEqual(
            [(e.spec.host, e.weight, e.spec.priority) for e in engines], [("localhost", 5, 10), ("localhost", 1, 20)]
        )
        self.assertEqual(
            {running.post(ask()).header("x-gateway-engine") for _ in range(4)}, {f"localhost:{other.port}"}
        )


@unittest.skipUnless(OPENSSL, "the openssl command is missing: no certificate for the API server")
class KubernetesTest(DiscoveryTest):
    def setUp(self) -> None:
        super().setUp()
        self.account = self.folder / "account"
        self.account.mkdir()
        self.api = self.enter(KubernetesApi(self.certificate("127.0.0.1")))
        (self.account / "token").write_text("first\n")
        (self.account / "namespace").write_text("llm")
        address = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(self.api.port)}
        self.enter(mock.patch.dict(os.environ, address))
        self.enter(mock.patch.object(kubernetes, "SERVICE_ACCOUNT", self.account))

    def certificate(self, address: str) -> ssl.SSLContext:
        key, certificate = self.folder / "key.pem", self.account / "ca.crt"
        command = f"req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=kubernetes -keyout {key} -out {certificate}"
        names = ["-addext", f"subjectAltName=IP:{address}"]
        subprocess.run([OPENSSL or "", *command.split(), *names], stderr=subprocess.DEVNULL, check=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(str(certificate), str(key))
        return context

    def serving(self, **more: Any) -> RunningGateway:
        return self.discovering({"kubernetes": {"selector": "app=vllm", "port": "http", **more}})

    def test_ready_endpoints_join_and_ending_ones_leave_under_load(self) -> None:
        one, two = self.local_engines(2)
        self.api.put("127.0.1.1", port=one.port)
        running = self.serving()
        with Load(running) as load:
            load.wait_for(f"127.0.1.1:{one.port}")
            self.api.put("127.0.1.1", "127.0.1.2", port=one.port)
            load.wait_for(f"127.0.1.2:{two.port}")
            self.api.put("127.0.1.2", port=one.port, ending=("127.0.1.1",))
            load.wait_without(f"127.0.1.1:{one.port}")
        self.assertEqual(load.failed, [])
        self.assertEqual({headers["host"] for *_, headers in self.api.requests}, {f"127.0.0.1:{self.api.port}"})

    def test_a_token_that_was_renewed_is_the_next_one_shown(self) -> None:
        one = self.local_engines(1)[0]
        self.api.put("127.0.1.1", port=one.port)
        running = self.serving()
        self.api.token = "second"
        sample = 'gateway_discovery_failures_total{model="m",source="kubernetes"}'
        running.wait_for_metric(sample, 1)
        eventually(lambda: len(self.lines(running)) == 2)
        self.assertIn("answered 401", self.lines(running)[-1]["error"])
        self.assertNotIn("first", running.log.getvalue())
        (self.account / "token").write_text("second")
        eventually(lambda: running.app.factory.discoveries.states()[0].error == "")
        self.assertEqual(running.post(ask()).status, 200)

    def test_pages_are_one_list_and_half_an_answer_is_none(self) -> None:
        one = self.local_engines(2)[0]
        self.api.put("127.0.1.1", port=one.port)
        first = self.api.slices
        self.api.put("127.0.1.2", port=one.port)
        self.api.slices, self.api.page = first + self.api.slices, 1
        running = self.serving()
        self.assertEqual(self.hosts_of(running), ["127.0.1.1", "127.0.1.2"])
        self.api.broken = True
        eventually(lambda: running.app.factory.discoveries.states()[0].error)
        self.assertEqual(len(self.hosts_of(running)), 2)
        self.api.broken = False
        self.api.slices = []
        eventually(lambda: not self.hosts_of(running))  # a list without any is believed
        self.assert_error(running.post(ask()), 503, "backend_unavailable")

    def test_a_server_that_is_not_the_clusters_is_shown_no_token(self) -> None:
        self.certificate("127.0.0.1")  # other authorities than those that the server has
        running = self.serving()
        self.assertIn("TLS failed", running.app.factory.discoveries.states()[0].error)
        self.assertEqual(self.api.requests, [])

    def test_outside_of_a_cluster_it_says_so(self) -> None:
        with mock.patch.dict(os.environ):
            del os.environ["KUBERNETES_SERVICE_HOST"]
            running = self.serving()
        self.assertIn("this is no pod of Kubernetes", running.app.factory.discoveries.states()[0].error)


class ConsulTest(DiscoveryTest):
    def setUp(self) -> None:
        super().setUp()
        self.api = self.enter(ConsulApi())
        self.addCleanup(self.api.release)

    def serving(self, interval: float = 10, **variables: object) -> RunningGateway:
        consul = {"url": f"http://127.0.0.1:{self.api.port}", "service": "vllm", "tags": ["gpu"]}
        return self.discovering({"consul": consul, "interval": interval}, **variables)

    def indexes(self) -> list[Optional[str]]:
        return [query.get("index", [None])[0] for _, query, _ in self.api.requests]

    def test_a_change_is_there_at_once_and_nobody_is_asked_meanwhile(self) -> None:
        one, two = self.local_engines(2)
        self.api.put(("127.0.1.1", one.port))
        running = self.serving()
        eventually(lambda: self.indexes() == [None, "11"])
        with Load(running) as load:
            load.wait_for(f"127.0.1.1:{one.port}")
            self.api.put(("127.0.1.1", one.port), ("127.0.1.2", two.port), weight=3)
            load.wait_for(f"127.0.1.2:{two.port}")
            eventually(lambda: self.indexes() == [None, "11", "12"])
            self.api.put(("127.0.1.2", two.port))
            load.wait_without(f"127.0.1.1:{one.port}")
        self.assertEqual(load.failed, [])
        _, query, headers = self.api.requests[1]
        self.assertEqual((query["wait"], query["tag"], query["passing"]), (["10000ms"], ["gpu"], ["1"]))
        self.assertNotIn("x-consul-token", headers)

    def test_an_index_that_goes_back_begins_anew(self) -> None:
        one = self.local_engines(1)[0]
        self.api.put(("127.0.1.1", one.port))
        self.serving(interval=1)  # after which it is asked again
        eventually(lambda: self.indexes()[:2] == [None, "11"])
        self.api.put(("127.0.1.1", one.port), step=-9)  # another Consul: its state was restored
        eventually(lambda: "2" in self.indexes())
        self.assertEqual([index for index, _ in itertools.groupby(self.indexes())], [None, "11", None, "2"])

    def test_the_token_goes_along_and_is_not_shown(self) -> None:
        one = self.local_engines(1)[0]
        self.api.token = "s3cret-token"
        self.api.put(("127.0.1.1", one.port))
        running = self.serving(CONSUL_HTTP_TOKEN="s3cret-token")
        self.assertEqual(self.hosts_of(running), ["127.0.1.1"])
        other = self.serving(CONSUL_HTTP_TOKEN="wrong-token")
        self.assertIn("answered 403: Permission denied", other.app.factory.discoveries.states()[0].error)
        for gateway in (running, other):
            self.assertNotIn("-token", gateway.log.getvalue())

    def test_a_failure_keeps_the_list_and_the_next_query_waits_for_nothing(self) -> None:
        one = self.local_engines(1)[0]
        self.api.put(("127.0.1.1", one.port))
        running = self.serving()
        eventually(lambda: self.indexes() == [None, "11"])
        self.api.put_status(500)
        eventually(lambda: running.app.factory.discoveries.states()[0].error)
        self.assertIn("answered 500: No cluster leader", running.app.factory.discoveries.states()[0].error)
        self.assertEqual(running.post(ask()).status, 200)
        self.api.put_status(200)
        eventually(lambda: running.app.factory.discoveries.states()[0].error == "")
        self.assertEqual(self.indexes()[2], None)

    def test_a_gateway_that_waits_for_a_change_stops_at_once(self) -> None:
        running = self.serving(interval=600)
        eventually(lambda: self.indexes() == [None, "10"])
        began_s = time.monotonic()
        running.stop()
        self.assertLess(time.monotonic() - began_s, 2.0)
        eventually(lambda: not [t for t in threading.enumerate() if t.name.startswith("discover-")])


class FilesTest(DiscoveryTest):
    def write(self, engines: Sequence[object]) -> None:
        whole = self.folder / "new.json"
        whole.write_text(json.dumps(engines))
        whole.replace(self.folder / "list.json")

    def test_a_file_that_changes_is_read_under_load_and_half_a_file_is_not(self) -> None:
        one, two = self.local_engines(2)
        self.write([one.url])
        running = self.discovering({"file": str(self.folder / "list.json"), "template": {"max_concurrency": 4}})
        with Load(running) as load:
            load.wait_for(f"127.0.1.1:{one.port}")
            self.write([one.url, {"url": two.url, "weight": 2, "id": "second"}])
            load.wait_for("second")
            (self.folder / "list.json").write_text(f'["{one.url}", {{"url"')
            eventually(lambda: running.app.factory.discoveries.states()[0].error)
            load.wait_for("second")
            self.write([{"url": two.url, "id": "second"}])
            load.wait_without(f"127.0.1.1:{one.port}")
        self.assertEqual(load.failed, [])
        eventually(lambda: len(self.lines(running)) > 2)
        self.assertIn("is no JSON", self.lines(running)[2]["error"])
        self.assertEqual([e.spec.max_concurrency for e in self.pool(running).engines], [4])

    def test_the_engines_key_goes_to_discovered_engines(self) -> None:
        one = self.enter(mock_engine("m", api_key="sk-engine"))
        self.write([one.url])
        running = self.discovering(
            {"file": str(self.folder / "list.json"), "template": {"api_key_env": "VLLM_KEY"}}, VLLM_KEY="sk-engine"
        )
        self.assertEqual(running.post(ask()).status, 200)

    def test_without_probes_an_engine_gets_requests_at_once(self) -> None:
        one = self.local_engines(1)[0]
        self.write([one.url])
        running = self.discovering({"file": str(self.folder / "list.json")}, HEALTH_INTERVAL=0)
        self.assertEqual(self.up(running), {f"127.0.1.1:{one.port}"})

    def test_what_was_decided_while_engines_came_and_went_can_be_replayed(self) -> None:
        one, two = self.local_engines(2)
        self.write([one.url])
        log = self.folder / "decisions.jsonl"
        running = self.discovering({"file": str(self.folder / "list.json")}, DECISION_LOG=log)
        with Load(running) as load:
            load.wait_for(f"127.0.1.1:{one.port}")
            self.write([one.url, {"url": two.url, "priority": 1, "weight": 2}])
            eventually(lambda: len(self.up(running)) == 2)
            self.write([two.url])
            load.wait_for(f"127.0.1.2:{two.port}")
            self.write([])
            eventually(lambda: not self.hosts_of(running))
            self.write([one.url])
            eventually(lambda: load.answers[200, f"127.0.1.1:{one.port}"])
        running.stop()
        count, difference = replay(log)
        self.assertIsNone(difference)
        self.assertGreater(count, 50)
        text = log.read_text()
        self.assertTrue('"unproven":true' in text and '"priority":1' in text)
