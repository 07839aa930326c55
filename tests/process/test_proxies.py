"""HAProxy and nginx in front of gateways, as docs/deploy has them: the real programs, the real files.

Skipped where haproxy or nginx is missing; with REQUIRE_FRONTS=1 that is a failure.
"""

from __future__ import annotations

import contextlib
import http.server
import re
import signal
import socket
import subprocess
import threading
import unittest
from collections.abc import Iterator, Sequence
from typing import Any

from gateway.settings import load
from tests import proxies
from tests.chaos.traffic import Traffic
from tests.ports import free_port
from tests.programs import program
from tests.scripted import DONE, STREAM_HEAD, ScriptedEngine, chunked, delta
from tests.support import (
    HI,
    GatewayProcess,
    RawClient,
    SocketTest,
    eventually,
    gateway,
    gateway_process,
    mock_engine,
    request_bytes,
)

CLIENTS = 8
LARGE = 4_000_000


class _Told(http.server.BaseHTTPRequestHandler):
    """Stands for a gateway: is ready, takes down what else it is asked, and answers or hangs up."""

    protocol_version = "HTTP/1.1"
    server: _StandIn

    def do_GET(self) -> None:
        self._answer(b"ok")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append(self.path)
        self.server.connections.add(self.client_address[1])
        if self.server.hangs_up:
            self.close_connection = True
            return
        self._answer(b"{}")

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _StandIn(http.server.ThreadingHTTPServer):
    daemon_threads = True
    hangs_up = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Told)
        self.asked: list[str] = []
        self.connections: set[int] = set()  # those that POSTs came on, by the other end's port

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A check that does not wait for its answer is no error."""

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class Proxied:
    """What holds behind either. `drain_delay_s` is as long as its file says that it has to be."""

    drain_delay_s: float
    out_status: int

    def _in_front_of(self: Any, *ports: int) -> int:
        port: int = self.enter(self.front(ports))
        return port

    def test_the_events_of_a_stream_arrive_one_by_one(self: Any) -> None:
        engine = self.enter(ScriptedEngine())
        served = self.enter(gateway(ENGINES=f"m={engine.url}"))
        with RawClient(self._in_front_of(served.port, served.port)) as client:
            client.request("POST", "/v1/chat/completions", {**HI, "stream": True})
            side = engine.take()
            side.send(STREAM_HEAD)
            client_events = []
            for number in range(3):
                # The engine says the next one only when the client has the one before.
                side.send(chunked(delta(f"word {number}", "stop" if number == 2 else None)))
                if number == 0:
                    self.assertEqual(client.read_head().status, 200)
                client_events.append(client.read_event())
            side.send(chunked(DONE) + b"0\r\n\r\n")
            self.assertEqual(client.read_event(), "data: [DONE]")
        for number, event in enumerate(client_events):
            self.assertIn(f"word {number}", event)

    def test_large_bodies_pass_both_ways(self: Any) -> None:
        served = self.enter(gateway(ENGINES="echo=echo:"))
        text = "large " * (LARGE // 6)
        with RawClient(self._in_front_of(served.port, served.port)) as client:
            answer = client.post({"messages": [{"role": "user", "content": text}]})
        self.assertEqual(answer.status, 200)
        self.assertEqual(answer.json()["choices"][0]["message"]["content"], "Echo: " + text)

    def test_the_gateway_is_told_the_clients_address(self: Any) -> None:
        served = self.enter(gateway(ENGINES="echo=echo:", TRUSTED_PROXIES="127.0.0.1"))
        port = self._in_front_of(served.port, served.port)
        with socket.create_connection(("127.0.0.1", port), 20, ("127.0.0.9", 0)) as client:
            client.sendall(request_bytes("POST", "/v1/chat/completions", HI, [("X-Forwarded-For", "192.0.2.1")]))
            self.assertIn(b" 200 ", client.recv(100))
        line = eventually(served.request_lines)[0]
        self.assertEqual(line["client"], "127.0.0.9")  # what the client itself says of others is not believed

    def test_connections_to_a_gateway_are_kept(self: Any) -> None:
        stand_in = self.stand_in()
        with RawClient(self._in_front_of(stand_in.port, stand_in.port)) as client:
            stand_in.hangs_up = False
            for _ in range(8):
                self.assertEqual(client.post().status, 200)
        self.assertLessEqual(len(stand_in.connections), 2)  # one to each of the two that it stands for

    def test_who_was_not_answered_is_asked_for_elsewhere_but_administration_is_done_once(self: Any) -> None:
        first, second = self.stand_in(), self.stand_in()
        port = self._in_front_of(first.port, second.port)
        second.hangs_up = False
        with RawClient(port) as client:
            self.assertEqual([client.post().status for _ in range(4)], [200] * 4)
        self.assertEqual(len(second.asked), 4)
        self.assertGreaterEqual(len(first.asked), 1)
        second.hangs_up = True
        with RawClient(port) as client:
            answer = client.post(path="/admin/keys")
        self.assertEqual((answer.status, answer.header("content-type")), (502, "application/json"))
        self.assertIn(answer.error, ("bad_gateway", "unavailable"))
        self.assertEqual((first.asked + second.asked).count("/admin/keys"), 1)

    def stand_in(self: Any) -> _StandIn:
        server = _StandIn()
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), name="stand-in", daemon=True)
        thread.start()
        self.addCleanup(thread.join, 10)
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        return server

    def test_without_a_gateway_the_error_is_json(self: Any) -> None:
        with RawClient(self._in_front_of(free_port(), free_port())) as client:
            answer = client.post()
        self.assertEqual((answer.status, answer.error), (self.out_status, "unavailable"))
        self.assertEqual(answer.header("retry-after"), "1")

    @contextlib.contextmanager
    def _loaded(self: Any) -> Iterator[tuple[list[GatewayProcess], Traffic]]:
        """Two gateways behind it, and clients that ask all the time."""
        engine = self.enter(mock_engine("13b", delay=0.02, gap=0.005))
        settings = {"ENGINES": f"13b={engine.url}", "HEALTH_INTERVAL": 1, "DRAIN_DELAY": self.drain_delay_s}
        gateways = [self.enter(gateway_process(settings, LOG_LEVEL="warning")) for _ in range(2)]
        eventually(lambda: all(one.ask("GET", "/readyz").status == 200 for one in gateways))
        traffic = Traffic(self._in_front_of(*(one.port for one in gateways)), ("13b",), CLIENTS).start()
        traffic.wait_for_more(4 * CLIENTS)
        try:
            yield gateways, traffic
            traffic.wait_for_more(4 * CLIENTS)
        finally:
            traffic.stop()

    def test_a_gateway_that_is_stopped_costs_no_request(self: Any) -> None:
        with self._loaded() as (gateways, traffic):
            gateways[0].signal(signal.SIGTERM)
            self.assertEqual(gateways[0].wait(30), 0)
        self.assertEqual([result for result in traffic.results if not result.good], [])

    def test_a_gateway_that_is_killed_costs_no_request_that_is_not_streamed(self: Any) -> None:
        with self._loaded() as (gateways, traffic):
            gateways[0].process.kill()
            gateways[0].wait()
        bad = [result for result in traffic.results if not result.good]
        self.assertEqual([result for result in bad if not result.stream], [])
        self.assertLessEqual({result.outcome for result in bad}, {"neither"})  # begun streams alone


class HAProxyTest(Proxied, SocketTest):
    drain_delay_s = 3.0
    out_status = 503

    @classmethod
    def setUpClass(cls) -> None:
        proxies.needed("REQUIRE_FRONTS", "haproxy")

    def front(self, ports: Sequence[int]) -> contextlib.AbstractContextManager[int]:
        return proxies.haproxy(ports)

    def test_its_own_check_finds_nothing_with_two_gateways_or_three(self) -> None:
        for count in (2, 3):
            gateways = [f"10.0.0.1{number}:8080" for number in range(1, count + 1)]
            environment = proxies.haproxy_environment(gateways, ":8080", "127.0.0.1:8404")
            done = subprocess.run(
                [str(program("haproxy")), "-c", "-dW", "-f", str(proxies.HAPROXY_FILE)],
                env=environment,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            self.assertEqual((done.returncode, done.stderr), (0, ""), done.stdout)

    def test_it_is_told_at_each_server_when_to_give_up_what_is_not_acknowledged(self) -> None:
        # 2.6 takes it in default-server and does not pass it on: when a cable was cut, requests waited for a minute
        # (tests/chaos/network.py).
        servers = re.findall(r"^ +server .*$", proxies.HAPROXY_FILE.read_text("utf-8"), re.MULTILINE)
        self.assertEqual(len(servers), 3)
        self.assertEqual([line for line in servers if " tcp-ut 10s" not in line], [])

    def test_its_time_limits_are_longer_than_the_gateways(self) -> None:
        text = proxies.HAPROXY_FILE.read_text("utf-8")
        found = {name: float(value) for name, value in re.findall(r"timeout (server|client) +([0-9]+)s", text)}
        usual = load({}, None)
        longest_s = max(usual.request_timeout_s, usual.first_token_timeout_s, usual.stream_idle_timeout_s)
        self.assertGreater(found["server"], longest_s)
        self.assertGreater(found["client"], longest_s)


class NginxTest(Proxied, SocketTest):
    drain_delay_s = 0.5  # it has no health checks: what is refused with 503 `draining` it sends to another
    out_status = 502

    @classmethod
    def setUpClass(cls) -> None:
        proxies.needed("REQUIRE_FRONTS", "nginx")

    def front(self, ports: Sequence[int]) -> contextlib.AbstractContextManager[int]:
        return proxies.nginx(ports)

    def test_its_time_limits_are_longer_than_the_gateways(self) -> None:
        (read_s,) = re.findall(r"proxy_read_timeout ([0-9]+)s", proxies.NGINX_FILE.read_text("utf-8"))
        usual = load({}, None)
        self.assertGreater(
            float(read_s), max(usual.request_timeout_s, usual.first_token_timeout_s, usual.stream_idle_timeout_s)
        )


if __name__ == "__main__":
    unittest.main()
