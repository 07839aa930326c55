"""Servers that say where engines are, for the tests of discovery: a DNS server, an API server, Consul's HTTP API.

Each listens on 127.0.0.1 with threads of its own, and says what the test has set. Every wait is bounded.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Callable, Optional
from urllib.parse import parse_qs, urlsplit

from gateway.discovery.message import AAAA, CNAME, SRV, A, parse
from tests.dnsbytes import a, answer, cname, soa, srv
from tests.support import TIMEOUT_S

Reply = Callable[[bytes, bool], list[bytes]]
"""What is said to a question (its bytes; whether it came over TCP)."""


class DnsServer:
    """A DNS server over UDP and TCP at one port. `zone` holds records as bytes by (name, kind); `reply` may say
    anything else. A context manager."""

    def __init__(self) -> None:
        self.zone: dict[tuple[str, int], list[bytes]] = {}
        self.reply: Reply = self.usual
        self.asked: list[tuple[str, int, bool]] = []
        self.rcode: Optional[int] = None
        self._tcp, self._udp = _pair()
        self.port = self._tcp.getsockname()[1]
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._serve_udp, self._serve_tcp)]

    def __enter__(self) -> DnsServer:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(OSError):
            self._tcp.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._udp.shutdown(socket.SHUT_RDWR)
        self._tcp.close()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as waker:
            waker.sendto(b"", ("127.0.0.1", self.port))
        self._udp.close()
        for thread in self._threads:
            thread.join(TIMEOUT_S)

    def addresses(self, name: str, *addresses: str, ttl_s: int = 1) -> None:
        """From now on the name has these."""
        self.zone[name, A] = [a(name, one, ttl_s) for one in addresses if ":" not in one]
        self.zone[name, AAAA] = [a(name, one, ttl_s) for one in addresses if ":" in one]

    def service(self, name: str, *targets: tuple[str, int, int, int], ttl_s: int = 1) -> None:
        """From now on the service has these: target, port, priority, weight."""
        self.zone[name, SRV] = [srv(name, *target, ttl_s=ttl_s) for target in targets]

    def alias(self, name: str, target: str) -> None:
        """The name stands for another one."""
        self.zone[name, CNAME] = [cname(name, target)]

    def usual(self, asked: bytes, tcp: bool) -> list[bytes]:
        """What the zone says."""
        question = parse(asked).question
        assert question is not None
        name, kind = _text(question[0]).lower(), question[1]
        records = self.zone.get((name, CNAME)) or self.zone.get((name, kind), [])
        there = any(known == name for known, _ in self.zone)
        rcode = self.rcode if self.rcode is not None else 0 if there else 3
        said = answer("x", kind, [] if self.rcode else records, 0x8180 | rcode, authority=[soa("test", 60, 5)])
        return [with_question(said, asked)]

    def _serve_udp(self) -> None:
        while True:
            try:
                asked, client = self._udp.recvfrom(65_535)
            except OSError:
                return
            if not asked:
                return
            for said in self._said(asked, False):
                with contextlib.suppress(OSError):  # it is being closed
                    self._udp.sendto(said, client)

    def _serve_tcp(self) -> None:
        while True:
            try:
                connection, _ = self._tcp.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(TIMEOUT_S)
                (size,) = struct.unpack(">H", connection.recv(2, socket.MSG_WAITALL))
                for said in self._said(connection.recv(size, socket.MSG_WAITALL), True):
                    connection.sendall(struct.pack(">H", len(said)) + said)

    def _said(self, asked: bytes, tcp: bool) -> list[bytes]:
        question = parse(asked).question
        assert question is not None
        self.asked.append((_text(question[0]).lower(), question[1], tcp))
        return self.reply(asked, tcp)


def with_question(said: bytes, asked: bytes, id: Optional[bytes] = None) -> bytes:
    """An answer made for another question as one to this, spelt as it was asked."""
    end = asked.index(b"\0", 12) + 5  # no label of a name has a zero in it
    other_end = said.index(b"\0", 12) + 5
    return (id or asked[:2]) + said[2:12] + asked[12:end] + said[other_end:]


def _text(name: bytes) -> str:
    labels = []
    while name[0]:
        labels.append(name[1 : 1 + name[0]].decode())
        name = name[1 + name[0] :]
    return ".".join(labels)


def _pair() -> tuple[socket.socket, socket.socket]:
    """Two sockets at one port, which nobody else has."""
    for _ in range(20):
        tcp = socket.create_server(("127.0.0.1", 0))
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            udp.bind(tcp.getsockname())
            return tcp, udp
        except OSError:
            tcp.close()
            udp.close()
    raise AssertionError("no port is free for both")


class HttpServer:
    """A server that answers each GET by `respond(path, query, headers)`: (status, headers, body as JSON). With `tls` it
    speaks TLS. A context manager."""

    def __init__(self, tls: Optional[ssl.SSLContext] = None) -> None:
        self.requests: list[tuple[str, dict[str, list[str]], dict[str, str]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                query, headers = parse_qs(parts.query), {k.lower(): v for k, v in self.headers.items()}
                outer.requests.append((parts.path, query, headers))
                status, more, said = outer.respond(parts.path, query, headers)
                body = said if isinstance(said, bytes) else json.dumps(said).encode()
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    for name, value in {"Content-Length": str(len(body)), **more}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def respond(
        self, path: str, query: dict[str, list[str]], headers: dict[str, str]
    ) -> tuple[int, dict[str, str], Any]:
        raise NotImplementedError

    def __enter__(self) -> Any:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(TIMEOUT_S)


class KubernetesApi(HttpServer):
    """Lists EndpointSlices to who shows the token, `page` at a time, as the API's documents have it."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        super().__init__(tls)
        self.token = "first"
        self.slices: list[dict[str, Any]] = []
        self.page = 500
        self.broken = False

    def put(self, *addresses: str, port: int, ending: tuple[str, ...] = ()) -> None:
        """One slice with these ready addresses; those `ending` are not ready any more."""
        endpoints = [{"addresses": [one], "conditions": {"ready": True, "serving": True}} for one in addresses]
        conditions = {"ready": False, "serving": True, "terminating": True}
        endpoints += [{"addresses": [one], "conditions": conditions} for one in ending]
        ports = [{"name": "http", "port": port, "protocol": "TCP"}]
        self.slices = [{"metadata": {"name": "s"}, "addressType": "IPv4", "endpoints": endpoints, "ports": ports}]

    def respond(
        self, path: str, query: dict[str, list[str]], headers: dict[str, str]
    ) -> tuple[int, dict[str, str], Any]:
        if headers.get("authorization") != f"Bearer {self.token}":
            return 401, {}, {"kind": "Status", "reason": "Unauthorized", "code": 401}
        if path != "/apis/discovery.k8s.io/v1/namespaces/llm/endpointslices" or query.get("labelSelector") != [
            "app=vllm"
        ]:
            return 404, {}, {"kind": "Status", "reason": "NotFound", "code": 404}
        if self.broken:
            return 200, {}, b'{"items": ['
        first = int(query.get("continue", ["0"])[0])
        after = first + min(self.page, int(query["limit"][0]))
        onward = {"continue": str(after)} if after < len(self.slices) else {}
        listed = {"kind": "EndpointSliceList", "metadata": {"resourceVersion": "7", **onward}}
        return 200, {}, {**listed, "items": self.slices[first:after]}


class ConsulApi(HttpServer):
    """Answers `/v1/health/service/vllm` as Consul does: with an index, after which it can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.token: Optional[str] = None
        self.index = 10
        self.entries: list[dict[str, Any]] = []
        self.status = 200
        self._changed = threading.Condition()

    def put(self, *instances: tuple[str, int], step: int = 1, weight: int = 1) -> None:
        """These instances pass from now on."""
        entries = [
            {
                "Node": {"Address": "192.0.2.1"},
                "Service": {"Address": host, "Port": port, "Weights": {"Passing": weight}},
            }
            for host, port in instances
        ]
        with self._changed:
            self.entries = entries
            self.index += step
            self._changed.notify_all()

    def release(self) -> None:
        """Whoever waits gets an answer."""
        self.put_status(self.status)

    def put_status(self, status: int) -> None:
        """Answer with this status from now on, also who waits."""
        with self._changed:
            self.status = status
            self.index += 1
            self._changed.notify_all()

    def respond(
        self, path: str, query: dict[str, list[str]], headers: dict[str, str]
    ) -> tuple[int, dict[str, str], Any]:
        if path != "/v1/health/service/vllm" or "passing" not in query:
            return 404, {}, "no such thing"
        if self.token is not None and headers.get("x-consul-token") != self.token:
            return 403, {}, b"Permission denied"
        index = int(query.get("index", ["0"])[0])
        with self._changed:
            if index:
                wait_s = float(query["wait"][0].removesuffix("ms")) / 1000
                self._changed.wait_for(lambda: self.index > index or self.index < index, min(wait_s, TIMEOUT_S))
            if self.status != 200:
                return self.status, {}, b"No cluster leader"
            return 200, {"X-Consul-Index": str(self.index)}, self.entries
