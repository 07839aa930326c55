"""What a page elsewhere can make a browser send: names that are not the gateway's, requests across origins, /metrics
through a proxy."""

from __future__ import annotations

import json
import unittest
from collections.abc import Iterable
from typing import Any, Optional

from gateway.server.browsers import BrowserRules
from gateway.server.parsing import parse_head
from tests.access import ADMIN_KEYS, AS_ROOT, AccessTest, bearer
from tests.http.test_without_epoll import WithoutEpoll
from tests.support import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    HI,
    Header,
    RawClient,
    Response,
    RunningGateway,
    eventually,
    gateway,
    load_settings,
    request_bytes,
)

EVIL = "https://evil.example"
LONG = {"messages": [{"role": "user", "content": "x" * 100_000}]}  # for a thread to read


def request(
    method: str, path: str, body: Any = None, headers: Iterable[Header] = (), *, host: str = "", kind: str = ""
) -> bytes:
    """A request with that Host and, with a body, that Content-Type; "": without one."""
    if body is None:
        return request_bytes(method, path, None, headers, host=host)
    payload = body if isinstance(body, bytes) else json.dumps(body).encode()
    own = [*[("Content-Type", kind)] * bool(kind), ("Content-Length", str(len(payload)))]
    return request_bytes(method, path, None, [*own, *headers], host=host) + payload


class BrowserTest(AccessTest):
    def ask_for(self, running: RunningGateway, host: str, method: str, path: str, *more: Any, **kind: str) -> Response:
        """The answer to a request with that Host, on a connection of its own."""
        with running.connect() as client:
            client.send(request(method, path, *more, host=host, **kind))
            return client.read_response(method)

    def own(self, running: RunningGateway) -> str:
        return f"127.0.0.1:{running.port}"

    def assert_served(self, client: RawClient) -> None:
        """The connection goes on: the next request on it has its own answer."""
        client.send(request("POST", CHAT, HI, host="127.0.0.1"))
        response = client.read_response()
        self.assertEqual((response.status, response.json()["choices"][0]["message"]["role"]), (200, "assistant"))


class NamesTest(BrowserTest):
    GETS = ("/", "/health", "/metrics", "/v1/models", "/v1/models/echo", "/admin/usage", "/admin/keys", "/nothing")

    def rebound(self, running: RunningGateway) -> list[tuple[str, int, Optional[str]]]:
        """What a page reads whose own name has come to mean this machine."""
        host = f"rebind.evil.example:{running.port}"
        origin = [("Origin", f"http://{host}"), ("Sec-Fetch-Site", "same-origin")]
        answers = [(path, self.ask_for(running, host, "GET", path)) for path in self.GETS]
        for path in (CHAT, COMPLETIONS, EMBEDDINGS, "/auth/token", "/admin/engines/echo/drain"):
            answers.append((path, self.ask_for(running, host, "POST", path, HI, origin, kind="application/json")))
        answers.append((CHAT, self.ask_for(running, host, "POST", CHAT, HI, origin, kind="text/plain")))
        answers.append((CHAT, self.ask_for(running, host, "POST", CHAT, LONG, origin, kind="application/json")))
        answers.append((CHAT, self.ask_for(running, host, "OPTIONS", CHAT, None, origin)))
        return [(path, answer.status, answer.error) for path, answer in answers]

    def test_a_page_whose_name_was_made_to_mean_this_machine_reads_nothing(self) -> None:
        running = self.serve(ALLOWED_HOSTS="")
        told = self.rebound(running)
        self.assertEqual({(status, code) for _, status, code in told}, {(421, "misdirected_request")}, told)
        with_keys = self.serve(ALLOWED_HOSTS="", ADMIN_KEYS=ADMIN_KEYS)
        self.assertEqual({status for _, status, _ in self.rebound(with_keys)}, {421})

    def test_the_refusal_says_what_to_set_and_is_audited(self) -> None:
        running = self.serve(ALLOWED_HOSTS="")
        answer = self.ask_for(running, "gw.example", "GET", "/admin/usage")
        self.assertIn("gw.example", answer.json()["message"])
        self.assertIn("ALLOWED_HOSTS", answer.json()["message"])
        line = eventually(lambda: self.audit(running, "permission_refused"))[0]
        self.assertEqual((line["path"], line["key"]), ("/admin/usage", None))

    def test_names_of_this_machine_are_served_whatever_their_port(self) -> None:
        running = self.serve(ALLOWED_HOSTS="")
        for name in (
            "localhost", "LocalHost", "localhost.", "console.localhost", "127.0.0.1", "127.9.8.7", "[::1]",
            "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]",
        ):  # fmt: skip
            for port in ("", ":", ":1", f":{running.port}"):
                answer = self.ask_for(running, name + port, "GET", "/v1/models")
                self.assertEqual(answer.status, 200, name + port)

    def test_names_that_only_look_like_it_are_not(self) -> None:
        running = self.serve(ALLOWED_HOSTS="")
        for name in (
            "localhost.evil.example", "127.0.0.1.evil.example", "notlocalhost", ".localhost.com", "0.0.0.0",
            "10.0.0.1", "127.1", "2130706433", "[::]", "[::ffff:10.0.0.1]", "[fe80::1]", "localhost..", "a%2elocalhost",
        ):  # fmt: skip
            answer = self.ask_for(running, name, "GET", "/v1/models")
            self.assertEqual(answer.status, 421, name)

    def test_further_names_are_a_setting(self) -> None:
        running = self.serve(ALLOWED_HOSTS="gw.example, 10.1.2.3,[fd00::1]")
        for name, status in (
            ("gw.example", 200),
            ("GW.example.:443", 200),
            ("10.1.2.3:80", 200),
            ("[fd00:0::1]", 200),
            ("localhost", 200),
            ("www.gw.example", 421),
            ("10.1.2.4", 421),
        ):
            self.assertEqual(self.ask_for(running, name, "GET", "/v1/models").status, status, name)

    def test_who_names_nothing_is_no_browser(self) -> None:
        running = self.serve(ALLOWED_HOSTS="")
        self.assertEqual(self.ask_for(running, "", "GET", "/v1/models").status, 200)
        with running.connect() as client:
            client.send(b"GET /v1/models HTTP/1.0\r\n\r\n")
            self.assertEqual(client.read_response().status, 200)
        with running.connect() as client:
            client.send(b"GET /v1/models HTTP/1.0\r\nHost: evil.example\r\n\r\n")
            self.assertEqual(client.read_response().status, 421)

    def test_probes_may_ask_by_any_name(self) -> None:
        running = self.serve(ALLOWED_HOSTS="")
        for path in ("/healthz", "/readyz"):
            for method in ("GET", "HEAD"):
                self.assertEqual(self.ask_for(running, "pod-1.example", method, path).status, 200)
            self.assertEqual(self.ask_for(running, "pod-1.example", "POST", path, b"").status, 421)

    def test_the_connection_goes_on_where_the_body_was_read(self) -> None:
        running = self.serve(ALLOWED_HOSTS="")
        with running.connect() as client:
            for _ in range(3):
                client.send(request("POST", CHAT, HI, host="evil.example", kind="application/json"))
                self.assertEqual(client.read_response().status, 421)
                client.send(request("GET", "/admin/usage", host="evil.example"))
                self.assertEqual(client.read_response().status, 421)
                self.assert_served(client)

    def test_elsewhere_names_count_only_where_they_are_set(self) -> None:
        for hosts, named in (("", 200), ("gw.example", 421)):
            running = self.enter(gateway(HOST="0.0.0.0", AUTH="off", ALLOWED_HOSTS=hosts))
            for name, status in (
                ("evil.example", named),
                ("gw.example", 200),
                ("localhost", 200),
                ("10.0.0.1", 200),  # an address is no name: probes ask by it, and no page can be of it
                ("[fd00::1]:80", 200),
            ):
                self.assertEqual(self.ask_for(running, name, "GET", "/v1/models").status, status, (hosts, name))

    def test_the_address_that_is_listened_on_is_a_name(self) -> None:
        rules = BrowserRules(load_settings({"HOST": "127.0.0.2", "ALLOWED_HOSTS": ""}))
        rules.check(parse_head(b"GET / HTTP/1.1\r\nHost: 127.0.0.2:8080"))
        rules = BrowserRules(load_settings({"HOST": "Gw.Example", "AUTH": "off", "ALLOWED_HOSTS": "other.example"}))
        rules.check(parse_head(b"GET / HTTP/1.1\r\nHost: gw.example:8080"))

    def test_names_that_passed_are_not_kept_without_end(self) -> None:
        rules = BrowserRules(load_settings({"ALLOWED_HOSTS": ""}))
        for port in range(2000):
            rules.check(parse_head(b"GET / HTTP/1.1\r\nHost: localhost:%d" % port))
        self.assertLess(len(rules._known), 300)


class CrossSiteTest(BrowserTest):
    def setUp(self) -> None:
        super().setUp()
        self.mock = self.engine()
        self.models = {"m": {"engines": [{"url": self.mock.url, "id": "a"}]}}

    def foreign(self, running: RunningGateway) -> list[list[Header]]:
        """What browsers say of requests that another origin's page has made them send."""
        own = f"http://{self.own(running)}"
        return [
            [("Origin", EVIL)],
            [("Origin", "null")],
            [("Origin", EVIL), ("Sec-Fetch-Site", "cross-site")],
            [("Sec-Fetch-Site", "cross-site")],
            [("Sec-Fetch-Site", "same-site")],
            [("Origin", own), ("Sec-Fetch-Site", "cross-site")],
            [("Origin", "http://127.0.0.1:3000"), ("Sec-Fetch-Site", "same-site")],
            [("Origin", own.replace("http:", "ftp:"))],
            [("Origin", own + ".evil.example")],
            [("Origin", own), ("Origin", EVIL)],
            [("Origin", "tauri://localhost")],
            [("Origin", "chrome-extension://abcdef"), ("Sec-Fetch-Site", "none")],
            [("Origin", EVIL), ("X-API-Key", "sk-user")],
        ]

    def test_a_page_elsewhere_has_nothing_done(self) -> None:
        running = self.serve(self.models)
        host = self.own(running)
        with running.connect() as client:
            for headers in self.foreign(running):
                for method, path, body, kind in (
                    ("POST", CHAT, HI, "text/plain"),  # sent without a preflight
                    ("POST", CHAT, HI, "text/plain;application/json"),
                    ("POST", CHAT, HI, "application/json"),
                    ("POST", CHAT, HI, ""),
                    ("POST", CHAT, b"a=%7B%22messages%22", "application/x-www-form-urlencoded"),
                    ("POST", COMPLETIONS, {"prompt": "hi"}, "text/plain"),
                    ("POST", EMBEDDINGS, {"input": "hi"}, "text/plain"),
                    ("POST", "/auth/token", b"", ""),
                    ("POST", "/admin/engines/a/drain", b"", "text/plain"),
                    ("POST", "/admin/keys", {"name": "x"}, "text/plain"),
                    ("DELETE", "/admin/keys/x", None, ""),
                    ("PUT", "/v1/models", b"{}", "text/plain"),
                    ("POST", "/nothing", b"{}", "text/plain"),
                    ("GET", "/admin/usage", None, ""),
                ):
                    with self.subTest(headers=headers, method=method, path=path, kind=kind):
                        client.send(request(method, path, body, headers, host=host, kind=kind))
                        response = client.read_response()
                        self.assert_error(response, 403, "forbidden")
                        self.assertIn("CORS_ORIGINS", response.json()["message"])
                        self.assertIsNone(response.header("access-control-allow-origin"))
            self.assert_served(client)
        self.assertEqual(self.mock.stats()["requests"], 1)
        self.assertEqual([engine.state for engine in running.app.factory.engines()], ["up"])

    def test_nor_with_a_large_or_chunked_body(self) -> None:
        running = self.serve(self.models)
        chunked = (
            f"POST {CHAT} HTTP/1.1\r\nHost: {self.own(running)}\r\nOrigin: {EVIL}\r\nContent-Type: text/plain\r\n"
            "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
        )
        large = request("POST", CHAT, LONG, [("Origin", EVIL)], host=self.own(running), kind="text/plain")
        for data in (chunked.encode(), large):
            with running.connect() as client:
                client.send(data)
                self.assertEqual(client.read_response().status, 403)
        self.assertEqual(self.mock.stats()["requests"], 0)

    def test_what_nobody_is_misled_to_send_is_served(self) -> None:
        running = self.serve(self.models)
        own = self.own(running)
        for host, headers in (
            (own, []),
            (own, [("Origin", f"http://{own}")]),
            (own, [("Origin", f"HTTP://{own}"), ("Sec-Fetch-Site", "same-origin")]),
            (own, [("Sec-Fetch-Site", "none")]),
            ("localhost", [("Origin", "https://localhost")]),  # behind a proxy that speaks TLS
            ("localhost:443", [("Origin", "https://localhost")]),
            ("localhost", [("Origin", "http://localhost:80")]),
            # Behind a proxy that puts its own name into Host; a page cannot say this of itself.
            (own, [("Origin", "https://gw.example"), ("Sec-Fetch-Site", "same-origin")]),
        ):
            with self.subTest(host=host, headers=headers):
                answer = self.ask_for(running, host, "POST", CHAT, HI, headers, kind="application/json")
                self.assertEqual(answer.status, 200, answer.body[:300])

    def test_origins_that_may_are_a_setting(self) -> None:
        allowed = ["https://app.example", "tauri://localhost", "chrome-extension://abc", "vscode-webview://1-a"]
        running = self.serve(self.models, CORS_ORIGINS=",".join(allowed))
        own = self.own(running)
        for origin in allowed:
            for site in ("cross-site", "same-site", "none", ""):
                headers = [("Origin", origin), *([("Sec-Fetch-Site", site)] if site else [])]
                answer = self.ask_for(running, own, "POST", CHAT, HI, headers, kind="application/json")
                self.assertEqual((answer.status, answer.header("access-control-allow-origin")), (200, origin))
        for headers in self.foreign(running):
            if headers[0][1] not in allowed:
                answer = self.ask_for(running, own, "POST", CHAT, HI, headers, kind="application/json")
                self.assert_error(answer, 403, "forbidden")
        everybody = self.serve(self.models, CORS_ORIGINS="*")
        for headers in self.foreign(everybody):
            answer = self.ask_for(everybody, self.own(everybody), "POST", CHAT, HI, headers, kind="application/json")
            self.assertEqual(answer.status, 200, headers)

    def test_what_does_nothing_is_answered_and_stays_unreadable(self) -> None:
        running = self.serve(self.models)
        for path in ("/", "/healthz", "/readyz", "/health", "/metrics", "/v1/models"):
            for method in ("GET", "HEAD", "OPTIONS"):
                answer = self.ask_for(running, self.own(running), method, path, None, [("Origin", EVIL)])
                self.assertIn(answer.status, (200, 204))
                self.assertFalse([name for name, _ in answer.headers if name.startswith("access-control-")])
        preflight = [("Origin", EVIL), ("Sec-Fetch-Site", "cross-site"), ("Access-Control-Request-Method", "POST")]
        for path in (CHAT, "/admin/keys", "/auth/token"):
            self.assertEqual(self.ask_for(running, self.own(running), "OPTIONS", path, None, preflight).status, 204)

    def test_a_page_elsewhere_takes_no_consoles_place(self) -> None:
        """There are not so many of them, and each would be held for as long as that page is open."""
        running = self.serve(self.models)
        for headers in self.foreign(running):
            with self.subTest(headers=headers), running.connect() as client:
                client.send(request("GET", "/api/v1/live", headers=headers, host=self.own(running)))
                self.assertEqual(client.read_head().status, 403)
        with running.connect() as client:
            client.send(
                request("GET", "/api/v1/live", headers=[("Sec-Fetch-Site", "same-origin")], host=self.own(running))
            )
            self.assertEqual(client.read_head().status, 200)

    def test_what_administrators_may_is_audited_when_a_page_tries_it(self) -> None:
        running = self.serve(self.models)
        drain = "/admin/engines/a/drain"
        self.ask_for(running, self.own(running), "POST", drain, b"", [("Origin", EVIL)])
        line = eventually(lambda: self.audit(running, "permission_refused"))[0]
        self.assertEqual((line["method"], line["path"], line["key"]), ("POST", drain, None))


class MetricsTest(BrowserTest):
    PASSED_ON: tuple[Header, ...] = (
        ("X-Forwarded-For", "203.0.113.9"),
        ("Forwarded", "for=203.0.113.9"),
        ("X-Real-IP", "203.0.113.9"),
        ("Via", "1.1 front"),
        ("X-Forwarded-Host", "gw.example"),
        ("X-Forwarded-Proto", "https"),
    )

    def test_what_a_proxy_passes_on_is_not_local(self) -> None:
        running = self.serve(ADMIN_KEYS=ADMIN_KEYS, API_KEYS="user:sk-user")
        self.assertEqual(running.get("/metrics").status, 200)
        for header in self.PASSED_ON:
            self.assert_error(running.get("/metrics", [header]), 401, "unauthorized")
            self.assert_error(running.get("/metrics", [header, *bearer("sk-user")]), 403, "forbidden")
            self.assertEqual(running.get("/metrics", [header, AS_ROOT]).status, 200)
            self.assertEqual(running.get("/healthz", [header]).status, 200)

    def test_where_metrics_are_open_to_all_they_are_to_proxies(self) -> None:
        running = self.serve(ADMIN_KEYS=ADMIN_KEYS, METRICS_AUTH="off")
        self.assertEqual(running.get("/metrics", self.PASSED_ON).status, 200)

    def test_without_keys_there_is_none_to_ask_for(self) -> None:
        # As everything else: who puts a gateway without keys behind a proxy has the proxy decide who may what.
        running = self.serve()
        self.assertEqual(running.get("/metrics", self.PASSED_ON).status, 200)


class NamesOnThreads(WithoutEpoll, NamesTest):
    pass


class CrossSiteOnThreads(WithoutEpoll, CrossSiteTest):
    pass


if __name__ == "__main__":
    unittest.main()
