"""Every path over a real socket: what it answers, to which methods, and what it says of a fleet that is not well."""

from __future__ import annotations

import json
import tempfile
import unittest
from pathlib import Path
from typing import Any

from gateway.calling import PASSED
from gateway.dialects.bypath import ENDPOINTS
from tests.support import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    HI,
    SocketTest,
    dead_url,
    engines,
    eventually,
    gateway,
    mock_engine,
    parse_metrics,
)

GETS = ("/", "/healthz", "/readyz", "/health", "/metrics", "/v1/models", "/v1/models/echo")
GETS += ("/api/v1/models", "/api/v1/health", "/openapi.json", "/docs")
POSTS = (CHAT, COMPLETIONS, EMBEDDINGS)


class Paths(SocketTest):
    def setUp(self) -> None:
        self.gateway = self.enter(gateway())

    def test_every_get_path_answers_200(self) -> None:
        for path in GETS:
            with self.subTest(path=path):
                response = self.gateway.get(path)
                self.assertEqual(response.status, 200)
                self.assertTrue(response.body)
                self.assertTrue(response.request_id)

    def test_a_query_does_not_change_the_path(self) -> None:
        self.assertEqual(self.gateway.get("/healthz?verbose=1&x=/nope").status, 200)

    def test_the_absolute_form_of_a_target_is_understood(self) -> None:
        self.assertEqual(self.gateway.get("http://gateway/healthz").json(), {"status": "ok"})

    def test_an_unknown_path_is_404_whatever_the_method(self) -> None:
        for method in ("GET", "POST", "DELETE", "OPTIONS"):
            for path in ("/nope", "/v1", "/v1/chat", CHAT + "/", "/healthz/x"):
                with self.subTest(method=method, path=path):
                    response = self.gateway.ask(method, path)
                    self.assertEqual((response.status, response.error), (404, "not_found"))

    def test_a_wrong_method_is_405_and_names_the_right_ones(self) -> None:
        wrong = [(method, path) for path in GETS for method in ("POST", "PUT", "DELETE", "PATCH", "TRACE")]
        wrong += [(method, path) for path in POSTS for method in ("GET", "PUT", "DELETE")]
        for method, path in wrong:
            with self.subTest(method=method, path=path):
                response = self.gateway.ask(method, path)
                self.assertEqual((response.status, response.error), (405, "method_not_allowed"))
                allowed = {name.strip() for name in (response.header("allow") or "").split(",")}
                self.assertEqual(allowed, {"POST", "OPTIONS"} if path in POSTS else {"GET", "HEAD", "OPTIONS"})

    def test_methods_are_case_sensitive(self) -> None:
        self.assertEqual(self.gateway.ask("get", "/healthz").status, 405)

    def test_head_gives_what_get_gives_without_the_body(self) -> None:
        for path in (*GETS, "/nope", "/v1/models/nope", CHAT):
            with self.subTest(path=path), self.gateway.connect() as client:
                asked = client.ask("GET", path)
                head = client.ask("HEAD", path)
                if path != CHAT:  # a wrong method for both: the message may name it
                    self.assertEqual(head.status, asked.status)
                self.assertEqual(head.body, b"")
                self.assertEqual(head.header("content-type"), asked.header("content-type"))
                self.assertTrue(head.header("content-length"))
                client.assert_quiet()
                self.assertEqual(client.ask("GET", "/healthz").status, 200)

    def test_the_index_lists_the_endpoints(self) -> None:
        endpoints = self.gateway.get("/").json()["endpoints"]
        gets = ("/", "/v1/models", "/v1/models/{id}", "/healthz", "/readyz", "/health", "/metrics", "/admin/usage")
        gets += ("/api/v1/cache/stats", "/api/v1/models", "/api/v1/health", "/openapi.json", "/docs")
        gets += ("/api/v1/alerts", "/api/v1/live", "/console/{file}")
        gets += ("/api/tags", "/api/ps", "/api/version", "/admin/schemas", "/props", "/slots")
        keys = {"/admin/keys": "GET, POST", "/admin/keys/{name}": "DELETE", "/admin/keys/{name}/rotate": "POST"}
        keys["/admin/schemas/{name}"] = "GET, PUT, DELETE"
        engines = {f"/admin/engines/{{id}}/{what}": "POST" for what in ("drain", "enable", "weight")}
        passed = (path for path in PASSED if path not in gets)
        posts = (*POSTS, *ENDPOINTS, *passed, "/query", "/api/v1/inference", "/auth/token", "/api/v1/cache/clear")
        self.assertEqual(endpoints, {**dict.fromkeys(posts, "POST"), **dict.fromkeys(gets, "GET"), **keys, **engines})
        for path, methods in endpoints.items():
            for method in methods.split(", "):
                method = "HEAD" if path == "/api/v1/live" else method  # it has no end
                answer = self.gateway.ask(method, path, b"{}" if method == "POST" else None)
                self.assertNotEqual(answer.status, 405, path)
                self.assertNotIn(f"there is no {path}", answer.body.decode())

    def test_metrics_are_prometheus_text(self) -> None:
        response = self.gateway.get("/metrics")
        kind = response.header("content-type") or ""
        self.assertTrue(kind.startswith("text/plain"), kind)
        self.assertIn("version=0.0.4", kind)
        self.assertIn("process_start_time_seconds", parse_metrics(response.body))

    def test_a_get_with_a_body_is_answered_and_the_connection_stays_in_step(self) -> None:
        with self.gateway.connect() as client:
            response = client.ask("GET", "/healthz", b"x" * 100)
            self.assertEqual(response.status, 200)
            if response.header("connection") == "close":
                client.assert_closed()
            else:
                self.assertEqual(client.ask("GET", "/readyz").status, 200)


class Models(SocketTest):
    def setUp(self) -> None:
        self.engine = self.enter(mock_engine())

    def gateway_of(self, models: dict[str, Any]) -> Any:
        directory = self.enter(tempfile.TemporaryDirectory())
        path = Path(directory) / "engines.json"
        path.write_text(json.dumps({"models": models}), "utf-8")
        return self.enter(gateway(ENGINES_FILE=path))

    def test_the_list_names_every_model_in_openai_shape(self) -> None:
        running = self.gateway_of({"70b": {"engines": [dead_url()]}, "13b": {"engines": [self.engine.url]}})
        listed = running.get("/v1/models").json()
        self.assertEqual(listed["object"], "list")
        self.assertEqual([entry["id"] for entry in listed["data"]], ["70b", "13b"])
        for entry in listed["data"]:
            self.assertEqual(entry["object"], "model")
            self.assertIs(type(entry["created"]), int)
            self.assertIsInstance(entry["owned_by"], str)
            self.assertIs(entry["available"], True)
            self.assertEqual(running.get(f"/v1/models/{entry['id']}").json(), entry)
        version = [("anthropic-version", "2023-06-01")]
        for entry in running.get("/v1/models", version).json()["data"]:
            self.assertEqual(entry["display_name"], entry["id"])
            self.assertEqual(running.get(f"/v1/models/{entry['id']}", version).json(), entry)

    def test_a_model_whose_engines_are_out_is_listed_as_not_available(self) -> None:
        running = self.gateway_of({"70b": {"engines": [dead_url()]}, "13b": {"engines": [self.engine.url]}})
        self.assertEqual(running.post({**HI, "model": "70b"}).status, 200)  # the dead one is found out, 13b answers
        self.assertIs(running.get("/v1/models/70b").json()["available"], False)
        self.assertIs(running.get("/v1/models/13b").json()["available"], True)
        by_id = {entry["id"]: entry["available"] for entry in running.get("/v1/models").json()["data"]}
        self.assertEqual(by_id, {"70b": False, "13b": True})

    def test_an_unknown_model_is_404(self) -> None:
        running = self.gateway_of({"13b": {"engines": [self.engine.url]}})
        for name in ("nope", "13B", "13b/x"):
            with self.subTest(name=name):
                response = running.get(f"/v1/models/{name}")
                self.assertEqual((response.status, response.error), (404, "model_not_found"))

    def test_names_with_slashes_are_found_plain_and_percent_encoded(self) -> None:
        running = self.gateway_of({"meta/llama:8b": {"engines": [self.engine.url]}})
        for name in ("meta/llama:8b", "meta%2Fllama%3A8b"):
            with self.subTest(name=name):
                response = running.get(f"/v1/models/{name}")
                self.assertEqual(response.status, 200)
                self.assertEqual(response.json()["id"], "meta/llama:8b")

    def test_an_alias_can_be_looked_up(self) -> None:
        running = self.gateway_of({"13b": {"engines": [self.engine.url], "aliases": ["default-chat"]}})
        self.assertEqual(running.get("/v1/models/default-chat").status, 200)


class Health(SocketTest):
    def test_a_sound_fleet_is_ok(self) -> None:
        engine = self.enter(mock_engine())
        running = self.enter(gateway(ENGINES=engines(_13b=engine.url)))
        response = running.get("/health")
        self.assertEqual((response.status, response.json()["status"]), (200, "ok"))
        model = response.json()["models"]["13b"]
        (described,) = model["engines"]
        self.assertEqual(described["id"], f"127.0.0.1:{engine.port}")
        self.assertEqual(described["state"], "up")
        self.assertEqual(described["in_flight"], 0)
        self.assertIsNone(described["last_error"])
        self.assertEqual(running.get("/readyz").status, 200)

    def test_requests_in_flight_are_shown_on_their_engine(self) -> None:
        engine = self.enter(mock_engine(behaviour="hang"))
        running = self.enter(gateway(ENGINES=engines(_13b=engine.url)))
        client = self.enter(running.connect())
        client.request("POST", CHAT, HI)
        self.assertTrue(engine.wait_for_requests(1, 5))
        (described,) = running.get("/health").json()["models"]["13b"]["engines"]
        self.assertEqual(described["in_flight"], 1)
        engine.control("ok")
        self.assertEqual(client.read_response().status, 200)
        (described,) = running.get("/health").json()["models"]["13b"]["engines"]
        self.assertEqual(described["in_flight"], 0)

    def test_one_engine_out_is_degraded_and_still_ready(self) -> None:
        engine = self.enter(mock_engine())
        running = self.enter(gateway(ENGINES=engines(_13b=[dead_url(), engine.url])))
        for _ in range(2):
            self.assertEqual(running.post().status, 200)
        response = running.get("/health")
        self.assertEqual((response.status, response.json()["status"]), (200, "degraded"))
        down, up = response.json()["models"]["13b"]["engines"]
        self.assertEqual((down["state"], up["state"]), ("down", "up"))
        self.assertTrue(down["last_error"])
        self.assertEqual(running.get("/readyz").status, 200)

    def test_every_engine_out_is_down_and_not_ready_but_the_process_is_alive(self) -> None:
        running = self.enter(gateway(ENGINES=engines(_13b=dead_url(), _7b=dead_url())))
        self.assertEqual(running.post().status, 502)
        health = running.get("/health")
        self.assertEqual((health.status, health.json()["status"]), (503, "down"))
        self.assertEqual(running.get("/readyz").status, 503)
        self.assertEqual(running.get("/healthz").status, 200)

    def test_probes_find_a_dead_fleet_without_any_request(self) -> None:
        running = self.enter(gateway(ENGINES=engines(_13b=dead_url()), HEALTH_INTERVAL="0.02"))
        eventually(lambda: running.get("/readyz").json()["status"] == "no engine is available")  # no more "probing"
        self.assertEqual(running.get("/health").json()["status"], "down")

    def test_draining_is_alive_but_not_ready(self) -> None:
        running = self.enter(gateway())
        running.app.pipeline.draining = True
        self.assertEqual(running.get("/healthz").status, 200)
        self.assertEqual(running.get("/readyz").status, 503)


class Cors(SocketTest):
    ORIGIN = ("Origin", "https://a.example")

    def test_without_cors_origins_no_header_says_anything_of_cors(self) -> None:
        running = self.enter(gateway())
        for response in (
            running.get("/healthz", [self.ORIGIN]),
            running.post(headers=[self.ORIGIN]),
            running.ask("OPTIONS", CHAT, None, [self.ORIGIN]),
        ):
            self.assertFalse([name for name, _ in response.headers if name.startswith("access-control-")])

    def test_a_preflight_needs_no_key(self) -> None:
        running = self.enter(gateway(CORS_ORIGINS="https://a.example,https://b.example", API_KEYS="k:secret-key"))
        asked = [
            self.ORIGIN,
            ("Access-Control-Request-Method", "POST"),
            ("Access-Control-Request-Headers", "authorization,content-type,x-mine"),
        ]
        response = running.ask("OPTIONS", CHAT, None, asked)
        self.assertIn(response.status, (200, 204))
        self.assertEqual(response.header("access-control-allow-origin"), "https://a.example")
        self.assertIn("POST", response.header("access-control-allow-methods") or "")
        allowed = (response.header("access-control-allow-headers") or "").lower()
        for name in ("authorization", "content-type", "x-mine"):
            self.assertIn(name, allowed)
        self.assertIn("POST", response.header("allow") or "")

    def test_answers_and_errors_name_an_allowed_origin_and_what_it_may_read(self) -> None:
        running = self.enter(gateway(CORS_ORIGINS="https://a.example"))
        for response in (running.post(headers=[self.ORIGIN]), running.post({}, headers=[self.ORIGIN])):
            self.assertEqual(response.header("access-control-allow-origin"), "https://a.example")
            self.assertIn("origin", (response.header("vary") or "").lower())
            self.assertIn("X-Request-ID", response.header("access-control-expose-headers") or "")

    def test_another_origin_is_not_allowed(self) -> None:
        running = self.enter(gateway(CORS_ORIGINS="https://a.example"))
        for origin in ("https://evil.example", "https://a.example.evil", "null"):
            for response in (
                running.post(headers=[("Origin", origin)]),
                running.ask("OPTIONS", CHAT, None, [("Origin", origin)]),
            ):
                self.assertIsNone(response.header("access-control-allow-origin"))

    def test_a_star_allows_every_origin(self) -> None:
        running = self.enter(gateway(CORS_ORIGINS="*"))
        response = running.post(headers=[("Origin", "https://anything.example")])
        self.assertIn(response.header("access-control-allow-origin"), ("*", "https://anything.example"))

    def test_options_for_the_whole_server_is_answered(self) -> None:
        running = self.enter(gateway())
        self.assertIn(running.ask("OPTIONS", "*").status, (200, 204))


if __name__ == "__main__":
    unittest.main()
