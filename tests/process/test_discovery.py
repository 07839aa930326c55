"""Engines that a real DNS server (dnsmasq) knows: read again while it runs, cut to fit a datagram, killed, come back.

Skipped where dnsmasq is missing; with REQUIRE_DNS=1 that is a failure.
"""

from __future__ import annotations

import json
import os
import pwd
import signal
import socket
import subprocess
import tempfile
import unittest
from pathlib import Path
from typing import Any, Optional
from unittest import mock

from gateway.discovery import client as dns_client
from gateway.discovery import watch
from gateway.discovery.answers import DiscoveryError
from gateway.discovery.client import DnsClient, Records
from gateway.discovery.message import AAAA, SRV, A, SrvData
from tests.http.test_discovery import Load
from tests.ports import free_port
from tests.programs import program
from tests.resilience import ResilienceTest, ask
from tests.support import (
    CHAT,
    HAS_SIGHUP,
    TIMEOUT_S,
    RunningGateway,
    eventually,
    gateway_process,
    mock_engine,
    run_main,
)

DNSMASQ = program("dnsmasq")
TTL_S = 2


class RequirementTest(unittest.TestCase):
    @unittest.skipUnless(os.environ.get("REQUIRE_DNS") == "1", "REQUIRE_DNS=1 is not set")
    def test_a_dns_server_is_there(self) -> None:
        self.assertIsNotNone(DNSMASQ, "REQUIRE_DNS=1, but dnsmasq is missing")


class Server:
    """dnsmasq at a free port of 127.0.0.1, which knows what is in `hosts` and nobody else to ask."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.hosts = folder / "engines"
        self.hosts.write_text("")
        self._log = folder / "dnsmasq.log"
        self._process: Optional[subprocess.Popen[bytes]] = None

    def start(self, *services: str) -> None:
        command = [DNSMASQ or "", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"]
        command += [f"--port={self.port}", "--listen-address=127.0.0.1", "--bind-interfaces", "--local=/test/"]
        command += [f"--addn-hosts={self.hosts}", f"--local-ttl={TTL_S}", f"--user={pwd.getpwuid(os.getuid()).pw_name}"]
        command += ["--pid-file=", "--cname=alias.test,engines.test", *(f"--srv-host={one}" for one in services)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        eventually(self._listens)  # before that a SIGHUP would end it

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), TIMEOUT_S).close()
        except ConnectionRefusedError:
            return False
        return True

    def put(self, **names: list[str]) -> None:
        """These names have these addresses from now on."""
        self.hosts.write_text("".join(f"{one} {name}.test\n" for name, those in names.items() for one in those))
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(TIMEOUT_S)
            self._process = None


class CommandTest(ResilienceTest):
    """The program itself, with a file that says where engines are."""

    def setUp(self) -> None:
        super().setUp()
        self.one, self.two = self.enter(mock_engine("m")), self.enter(mock_engine("m"))
        self.folder = Path(self.enter(tempfile.TemporaryDirectory()))

    def fleet(self, name: str, **template: Any) -> str:
        discover = {"file": str(self.folder / name), "interval": 1, "template": template}
        return json.dumps({"models": {"m": {"discover": discover}}})

    def test_check_says_where_engines_are_looked_for_and_what_was_found(self) -> None:
        (self.folder / "a.json").write_text(json.dumps([self.one.url]))
        environment = {"ENGINES_FILE": "engines.json", "HEALTH_INTERVAL": "5"}
        status, stdout, stderr = run_main(environment, "check", files={"engines.json": self.fleet("a.json")})
        self.assertEqual((status, stderr), (0, ""))
        self.assertIn(f"  discovered by file {self.folder}/a.json, every 1 s: 1 engine found\n", stdout)
        self.assertIn(f"  engine 127.0.0.1:{self.one.port}: {self.one.url}, weight 1, reached\n", stdout)
        status, stdout, stderr = run_main(environment, "check", files={"engines.json": self.fleet("b.json")})
        self.assertEqual((status, stderr), (0, ""))
        self.assertIn("every 1 s: no answer yet; ", stdout)
        self.assertIn("b.json: No such file or directory", stdout)

    @unittest.skipUnless(HAS_SIGHUP, "there is no SIGHUP here")
    def test_sighup_takes_another_source_and_the_end_is_clean(self) -> None:
        (self.folder / "a.json").write_text(json.dumps([self.one.url]))
        (self.folder / "b.json").write_text(json.dumps([self.two.url]))
        environment = {"ENGINES_FILE": "engines.json", "HEALTH_INTERVAL": "0.5"}
        with gateway_process(environment, files={"engines.json": self.fleet("a.json")}) as running:

            def engine() -> Optional[str]:
                return running.ask("POST", CHAT, ask()).header("x-gateway-engine")

            eventually(lambda: "1 engine found" in running.stdout)
            self.assertEqual(engine(), f"127.0.0.1:{self.one.port}")
            (running.directory / "engines.json").write_text(self.fleet("b.json", max_concurrency=2))
            running.signal(signal.SIGHUP)
            eventually(lambda: engine() == f"127.0.0.1:{self.two.port}")
            running.signal(signal.SIGTERM)
            self.assertEqual(running.wait(), 0)
            told = [line for line in running.log_lines() if line["event"] == "discovery"]
            self.assertEqual([line["added"] for line in told], [[f"127.0.0.1:{e.port}"] for e in (self.one, self.two)])


@unittest.skipUnless(DNSMASQ, "dnsmasq is missing")
class DnsmasqTest(ResilienceTest):
    def setUp(self) -> None:
        super().setUp()
        folder = Path(self.enter(tempfile.TemporaryDirectory()))
        self.server = Server(folder)
        self.addCleanup(self.server.kill)
        conf, hosts = folder / "resolv.conf", folder / "hosts"
        conf.write_text(f"nameserver [127.0.0.1]:{self.server.port}\noptions timeout:2 attempts:1\n")
        hosts.write_text("")
        self.client = DnsClient(resolv_conf=conf, hosts=hosts)
        self.enter(mock.patch.object(dns_client, "RESOLV_CONF", conf))
        self.enter(mock.patch.object(dns_client, "HOSTS", hosts))

    def known(self, name: str, kind: int) -> Optional[Records]:
        try:
            return self.client.look_up(name, kind)
        except DiscoveryError:  # it does not listen yet
            return None

    def test_what_it_says_is_understood(self) -> None:
        self.server.start("_http._tcp.engines.test,one.test,8001,10,60", "_http._tcp.engines.test,two.test,8002,20,0")
        eventually(lambda: self.known("engines.test", A) is not None)
        many = [f"10.0.{n // 250}.{1 + n % 250}" for n in range(600)]
        self.server.put(engines=["10.0.0.1", "10.0.0.2", "fd00::1"], many=many)
        eventually(lambda: bool((self.known("engines.test", A) or Records((), None)).data))
        for name in ("engines.test", "ALIAS.test"):
            said = self.client.look_up(name, A)
            self.assertEqual((set(said.data), said.ttl_s), ({"10.0.0.1", "10.0.0.2"}, TTL_S))
        self.assertEqual(self.client.look_up("engines.test", AAAA), Records(("fd00::1",), TTL_S))
        self.assertEqual(self.client.look_up("nobody.test", A).data, ())
        services = self.client.look_up("_http._tcp.engines.test", SRV)
        self.assertEqual(set(services.data), {SrvData(10, 60, 8001, "one.test"), SrvData(20, 0, 8002, "two.test")})
        self.assertEqual(set(self.client.look_up("many.test", A).data), set(many))  # by TCP: it is cut in a datagram

    def serving(self, discover: dict[str, Any]) -> RunningGateway:
        running = self.serve({"m": {"discover": {"interval": 10, **discover}}}, HEALTH_INTERVAL="0.5")
        self.assertTrue(running.app.factory.wait_probed(20))
        return running

    def test_engines_join_and_leave_as_it_reads_its_file_again_and_stay_while_it_is_gone(self) -> None:
        one = self.enter(mock_engine("m", host="127.0.1.1"))
        self.enter(mock_engine("m", host="127.0.1.2", port=one.port))
        ids = [f"127.0.1.{number}:{one.port}" for number in (1, 2)]
        self.server.start()
        self.server.put(engines=["127.0.1.1"])
        eventually(lambda: bool((self.known("engines.test", A) or Records((), None)).data))
        running = self.serving({"dns": f"engines.test:{one.port}"})
        with Load(running) as load:
            load.wait_for(ids[0])
            self.server.put(engines=["127.0.1.1", "127.0.1.2"])
            load.wait_for(ids[1])  # when the time to live ends, long before the interval
            self.server.put(engines=["127.0.1.2"])
            load.wait_without(ids[0])
            self.server.kill()
            eventually(lambda: running.app.factory.discoveries.states()[0].error)
            load.wait_for(ids[1])
            self.server.start()
            self.server.put(engines=["127.0.1.1"])
            load.wait_for(ids[0])
            load.wait_without(ids[1])
        self.assertEqual(load.failed, [])

    def test_a_services_spare_serves_when_the_first_are_gone(self) -> None:
        first, spare = self.enter(mock_engine("m")), self.enter(mock_engine("m"))
        self.server.start(f"_llm._tcp.test,localhost,{first.port},10,1", f"_llm._tcp.test,localhost,{spare.port},20,1")
        eventually(lambda: bool((self.known("_llm._tcp.test", SRV) or Records((), None)).data))
        self.enter(mock.patch.object(watch, "LEAST_S", 0.2))
        running = self.serving({"srv": "_llm._tcp.test"})
        for _ in range(5):
            self.assertEqual(running.post(ask()).header("x-gateway-engine"), f"localhost:{first.port}")
        first.close()
        for _ in range(5):
            said = running.post(ask())
            self.assertEqual((said.status, said.header("x-gateway-engine")), (200, f"localhost:{spare.port}"))
