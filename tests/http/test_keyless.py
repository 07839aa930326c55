"""Who shows no key costs no thread, whatever is sent or not read; what tells of the gateway's health needs none."""

from __future__ import annotations

import contextlib
import select
import socket
import sys
import threading
import unittest
from collections.abc import Iterator
from unittest import mock

from tests.http.test_loop_connections import narrow, unknown_token
from tests.onloop import OnLoopTest, asked_threads, client_threads
from tests.resilience import ask
from tests.support import CHAT, HI, TIMEOUT_S, RawClient, RunningGateway, eventually, gateway, request_bytes

HAS_EPOLL = hasattr(select, "epoll")
KEY = "sk-alice-0123456789abcdef"
GOOD = [("Authorization", f"Bearer {KEY}")]
WRONG = [("Authorization", "Bearer sk-wrong")]
UPLOADS = 1500
DESCRIPTORS = 2 * UPLOADS + 500
LARGE = "x" * 100_000  # more than is served without a thread


def upload(*lines: str, length: int = 1_000_000, target: str = CHAT) -> bytes:
    """The head of a request with a wrong key."""
    fields = "".join(f"{line}\r\n" for line in lines)
    return f"POST {target} HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer sk-wrong\r\n{fields}".encode() + (
        b"Content-Length: %d\r\n\r\n" % length if length else b"\r\n"
    )


@contextlib.contextmanager
def no_new_threads(name: str) -> Iterator[None]:
    """The system gives no more threads of that name."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == name:
            raise RuntimeError("can't start new thread")
        start(thread)

    with mock.patch.object(threading.Thread, "start", refuse):
        yield


@unittest.skipUnless(HAS_EPOLL, "needs epoll")
class WithoutKey(OnLoopTest):
    def setUp(self) -> None:
        super().setUp()
        self.running = self.serve(
            {"m": {"engines": [self.engine().url]}}, API_KEYS=f"alice:{KEY}", CLIENT_TIMEOUT="30", METRICS_AUTH="off"
        )

    def test_what_needs_no_engine_and_every_refusal_needs_no_thread(self) -> None:
        cases: list[tuple[bytes, int]] = [
            *((request_bytes("GET", path), 200) for path in ("/healthz", "/readyz", "/metrics")),
            (request_bytes("HEAD", "/healthz"), 200),
            *((request_bytes("GET", path, None, GOOD), 200) for path in ("/", "/health", "/v1/models", "/v1/models/m")),
            *((request_bytes("GET", path), 401) for path in ("/", "/health", "/v1/models", "/v1/models/m")),
            *((request_bytes("OPTIONS", path), 204) for path in ("/", CHAT, "/v1/models", "/admin/keys")),
            (request_bytes("GET", "/nope"), 404),
            (request_bytes("POST", "/nope", HI), 404),
            (request_bytes("DELETE", "/healthz"), 405),
            (request_bytes("GET", CHAT), 405),
            (b"hello\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\n\r\n", 400),
            (b"GET / HTTP/3.0\r\nHost: g\r\n\r\n", 505),
            (b"POST / HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
            (b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000, 431),
            (b"\r\n" * 100, 400),
            (request_bytes("POST", CHAT, ask(), WRONG), 401),
            (request_bytes("POST", CHAT, b'{"messages":[' + b"1," * 9000 + b"1]}", WRONG), 401),
            (upload(), 401),
            (upload(length=0), 401),
            (upload("Expect: 100-continue"), 401),
            (upload("Transfer-Encoding: chunked", length=0) + b"5\r\n", 401),
            (upload(length=100), 401),
            (upload(target="/admin/keys"), 401),
            (upload(target="/auth/token", length=0), 401),
            (request_bytes("GET", "/admin/usage"), 401),
            (request_bytes("POST", CHAT, None, GOOD), 411),
            (request_bytes("POST", CHAT, None, [*GOOD, ("Content-Length", "999999999")]), 413),
            (request_bytes("POST", CHAT, None, [*GOOD, ("Content-Length", "9999"), ("Content-Type", "a/b")]), 415),
        ]
        with self.no_thread(self.running):
            for data, status in cases:
                with self.subTest(data=data[:60], status=status), self.running.connect() as client:
                    client.send(data)
                    if data == upload(length=100):
                        client.send(b"x" * 100)
                    method = data.partition(b" ")[0].decode()
                    self.assertEqual(client.read_head(method).status, status)  # no 100 before it

    def test_what_a_page_elsewhere_may_have_sent_needs_no_thread_though_nobody_needs_a_key(self) -> None:
        running = self.enter(gateway())
        large = [("Content-Length", "1000000")]
        with self.no_thread(running):
            for method, path in (("POST", CHAT), ("POST", "/admin/keys"), ("GET", "/admin/usage")):
                for host, headers in (("evil.example", large), ("localhost", [*large, ("Origin", "http://evil")])):
                    if host == "localhost" and method == "GET":
                        continue  # which does nothing
                    with self.subTest(method=method, path=path, host=host), running.connect() as client:
                        client.send(request_bytes(method, path, None, headers, host=host))
                        self.assertEqual(client.read_response().status, 421 if host == "evil.example" else 403)

    def test_several_requests_at_once_need_no_thread(self) -> None:
        kinds = [
            (request_bytes("GET", "/healthz"), 200),
            (request_bytes("POST", CHAT, ask(), WRONG), 401),
            (request_bytes("POST", CHAT, ask(), GOOD), 200),
            (request_bytes("GET", "/v1/models"), 401),
            (request_bytes("POST", CHAT, {}, GOOD), 400),
        ]
        self.running.post(ask(), headers=GOOD)
        with self.no_thread(self.running), self.running.connect() as client:
            client.send(b"".join(data for data, _ in kinds) * 400)  # more than one read takes
            for number in range(400):
                found = [client.read_response().status for _ in kinds]
                self.assertEqual(found, [status for _, status in kinds], number)
            client.assert_quiet()

    def test_slow_and_broken_off_requests_need_no_thread(self) -> None:
        running = self.enter(gateway(API_KEYS=f"alice:{KEY}", CLIENT_TIMEOUT="0.3", KEEPALIVE_TIMEOUT="60"))
        begun = (b"G", b"GET / HTTP/1.1\r\nHost", upload(length=100), upload(length=100) + b"x", b"\r\nPOST ")
        with self.no_thread(running):
            clients = [self.enter(running.connect()) for _ in begun]
            for client, data in zip(clients, begun):
                client.send(data)
            statuses = [client.read_response().status for client in clients]
            self.assertEqual(statuses, [408, 408, 401, 401, 408])
            for data in begun:  # cut off by the client
                with running.connect() as client:
                    client.send(data)
                    client.sock.shutdown(socket.SHUT_WR)
                    client.wait_until_ended()
            for client in clients:
                client.close()
            self.wait_for_connections(running, 0)

    def test_who_goes_on_sending_behind_a_refusal_is_closed_without_a_thread(self) -> None:
        with self.no_thread(self.running), self.running.connect() as client:
            client.send(upload(length=10**9))
            self.assertEqual(client.read_response().status, 401)
            with contextlib.suppress(ConnectionError):
                while True:  # the gateway's patience ends, in bytes or seconds
                    client.send(b"x" * 65_536)
            self.wait_for_connections(self.running, 0)

    def test_who_does_not_read_answers_is_asked_no_more_and_cut_off_without_a_thread(self) -> None:
        running = self.enter(gateway(API_KEYS=f"alice:{KEY}", CLIENT_TIMEOUT="0.5"))
        with self.no_thread(running):
            client = self.enter(narrow(running))
            self.wait_for_connections(running, 1)
            client.sock.setblocking(False)
            requests = request_bytes("GET", "/v1/models") * 100

            def cut_off() -> bool:
                with contextlib.suppress(BlockingIOError, ConnectionError):
                    client.sock.send(requests)
                return not running.app.server.connections

            eventually(cut_off)
        eventually(lambda: [line for line in running.log_lines() if line.get("status") == 499])

    def test_a_refusal_that_is_not_read_is_written_when_it_can_be(self) -> None:
        with self.no_thread(self.running):
            client = self.enter(narrow(self.running))
            data = request_bytes("GET", "/v1/models") * 2000
            sender = threading.Thread(target=client.send, args=(data,), daemon=True)
            sender.start()
            eventually(lambda: self.unsent() is not None)
            for _ in range(2000):
                self.assertEqual(client.read_response().status, 401)
            sender.join(TIMEOUT_S)
            self.assertFalse(sender.is_alive())

    def unsent(self) -> object:
        return next((c._unsent for c in list(self.running.app.server._open.values())), None)

    def test_administrators_are_served_by_threads(self) -> None:
        running = self.enter(gateway(ADMIN_KEYS=f"root:{KEY}"))
        with asked_threads(running) as asked:
            self.assertEqual(running.ask("GET", "/admin/usage", None, GOOD).status, 200)
        self.assertEqual(asked(), 1)


@unittest.skipUnless(HAS_EPOLL, "needs epoll")
class OutOfThreads(OnLoopTest):
    def test_health_and_metrics_answer_while_requests_wait_for_a_thread(self) -> None:
        running = self.serve({"m": {"engines": [self.engine().url]}}, API_KEYS=f"alice:{KEY}", METRICS_AUTH="off")
        data = request_bytes("POST", CHAT, ask(LARGE), GOOD)
        before = client_threads()
        with no_new_threads("aside"):
            clients = [self.enter(running.connect()) for _ in range(10)]
            for client in clients:
                client.send(data[:-1])  # one has the only thread there is, the others wait for it
            self.settle(running)
            for path in ("/healthz", "/readyz", "/metrics"):
                self.assertEqual(running.get(path).status, 200)
            self.assertEqual(running.post(ask(), headers=WRONG).status, 401)
            self.assertEqual(client_threads(), before)
            for client in clients:
                client.send(data[-1:])
            for client in clients:
                self.assertEqual(client.read_response().status, 200)

    def test_metrics_wait_for_no_lock(self) -> None:
        running = self.enter(gateway())
        with running.app.telemetry._drain_lock, self.no_thread(running):
            self.assertEqual(running.get("/metrics").status, 200)
            with running.connect() as asking, running.connect() as other:
                asking.request("GET", "/metrics")
                self.assertEqual(other.ask("GET", "/healthz").status, 200)
                self.assertEqual(asking.read_response().status, 200)


class LargeMetrics(OnLoopTest):
    def test_a_text_that_takes_long_is_made_once_for_all_who_ask_at_a_time(self) -> None:
        for at_once_s, texts in ((-1e6, 1), (1e6, 3)):
            self.enter(mock.patch("gateway.server.metricspage.RENDERED_AT_ONCE_S", at_once_s))
            running = self.enter(gateway())
            registry = running.app.registry
            with mock.patch.object(registry, "collect", wraps=registry.collect) as collect:
                for _ in range(3):
                    self.assertEqual(running.get("/metrics").status, 200)
            self.assertEqual(collect.call_count, texts)


@unittest.skipUnless(HAS_EPOLL, "needs epoll")
class UnknownTokens(OnLoopTest):
    """A token that only an identity provider's keys can tell of, while it does not answer."""

    def test_keys_that_are_due_again_when_the_body_has_come_do_not_stop_the_loop(self) -> None:
        provider = self.scripted()
        self.enter(mock.patch("gateway.keys.jwks._implementation"))
        running = self.enter(gateway(JWT_JWKS=provider.url.replace("/v1", "/keys"), JWT_ALGORITHM="RS256"))
        provider.accept().close()
        headers = [("Authorization", f"Bearer {unknown_token()}")]
        self.assertEqual(running.post(HI, headers=headers).status, 401)
        data = request_bytes("POST", CHAT, HI, headers)
        late = self.enter(running.connect())
        late.send(data[:-1])
        self.settle(running)
        with mock.patch("gateway.keys.jwks.RETRY_S", 0.0):
            late.send(data[-1:])
            side = provider.accept()
        self.assertEqual(running.get("/healthz").status, 200)
        late.assert_quiet()  # it would have its answer if the loop had waited for the keys
        side.close()
        self.assert_error(late.read_response(), 401, "unauthorized")

    def test_whoever_waits_for_keys_waits_on_the_loop(self) -> None:
        provider = self.scripted()
        self.enter(mock.patch("gateway.keys.jwks._implementation"))
        running = self.serve(
            {"m": {"engines": [self.engine().url]}},
            JWT_JWKS=provider.url.replace("/v1", "/keys"),
            JWT_ALGORITHM="RS256",
            API_KEYS=f"alice:{KEY}",
        )
        side = provider.accept()  # it will say nothing
        token = unknown_token()
        with self.no_thread(running):
            clients = []
            for headers in ([("Authorization", f"Bearer {token}")], [("X-API-Key", token)]):
                for data in (
                    request_bytes("POST", CHAT, ask(), headers),
                    request_bytes("POST", CHAT, ask(LARGE), headers),
                    request_bytes("GET", "/v1/models", None, headers),
                    request_bytes("GET", "/admin/usage", None, headers),
                ):
                    clients.append(self.enter(running.connect()))
                    clients[-1].send(data)
            half = self.enter(running.connect())
            half.send(request_bytes("POST", CHAT, ask(LARGE), headers)[:-10])
            half.sock.shutdown(socket.SHUT_WR)
            self.settle(running)
            self.assertEqual(running.ask("GET", "/healthz", None, headers).status, 200)
            self.assertEqual(running.post(ask(), headers=GOOD).status, 200)
            for client in clients:
                client.assert_quiet()
            side.close()
            for client in (*clients, half):
                self.assert_error(client.read_response(), 401, "unauthorized")


@unittest.skipUnless(HAS_EPOLL and sys.platform.startswith("linux"), "needs epoll")
class ManyUploads(OnLoopTest):
    def setUp(self) -> None:
        super().setUp()
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard != resource.RLIM_INFINITY and hard < DESCRIPTORS:
            self.skipTest("needs more descriptors than a process may have here")
        if soft != resource.RLIM_INFINITY and soft < DESCRIPTORS:
            resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, hard))
            self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))

    def open_uploads(self, running: RunningGateway) -> list[RawClient]:
        clients = []
        for number in range(UPLOADS):
            client = RawClient(running.port)
            self.addCleanup(client.close)
            client.send(upload() + b"x" * (number % 3))
            clients.append(client)
        return clients

    def test_refused_uploads_that_go_on_cost_no_thread_and_health_answers(self) -> None:
        for module in ("connection", "clientside"):  # all at once, on a slow machine too
            self.enter(mock.patch(f"gateway.server.{module}.LINGER_S", 60.0))
        running = self.enter(gateway(API_KEYS=f"alice:{KEY}", MAX_CONNECTIONS=2 * UPLOADS, LOG_LEVEL="error"))
        self.assertEqual(running.get("/healthz").status, 200)
        before = threading.active_count()
        clients = self.open_uploads(running)
        for round in range(3):
            for client in clients:
                client.send(b"x" * 10)
            self.assertEqual(running.get("/healthz").status, 200, round)
            self.assertLessEqual(threading.active_count(), before)
        for client in clients:
            self.assertEqual(client.read_response().status, 401)
        self.assertGreaterEqual(running.app.server.connections, UPLOADS)
        with no_new_threads("aside"):
            for path in ("/healthz", "/readyz"):
                self.assertEqual(running.get(path).status, 200)
            self.assertEqual(running.post(HI, headers=GOOD).status, 200)
        for client in clients:
            client.close()
        self.wait_for_connections(running, 0)
        self.assertLessEqual(threading.active_count(), before)


if __name__ == "__main__":
    unittest.main()
