"""Every error a client can meet today: status, code, shape in both formats, and the headers that belong to it."""

from __future__ import annotations

import json
import unittest
from typing import Any, Callable, Optional
from unittest import mock

from gateway.mock.server import MockEngine
from tests.support import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    HI,
    RawClient,
    Response,
    RunningGateway,
    SocketTest,
    dead_url,
    engines,
    eventually,
    gateway,
    mock_engine,
    request_bytes,
)

TYPES = {401: "authentication_error", 429: "rate_limit_error"}


class ErrorTest(SocketTest):
    """Helps to look at an error from all sides."""

    def assert_error(self, response: Response, status: int, code: str, error_format: str = "simple") -> dict[str, Any]:
        """Check the whole shape of an error; returns its body."""
        self.assertEqual((response.status, response.error), (status, code), response.body)
        self.assertEqual(response.header("content-type"), "application/json")
        body: dict[str, Any] = response.json()
        self.assertEqual(body["request_id"], response.request_id)
        error = body if error_format == "simple" else body["error"]
        self.assertIsInstance(error["message"], str)
        self.assertTrue(error["message"])
        self.assertIn("param", error)
        if error_format == "openai":
            own_type = "invalid_request_error" if status < 500 else "server_error"
            self.assertEqual(error["type"], TYPES.get(status, own_type))
        self.assertNotIn(b"Traceback", response.body)
        return error

    def assert_retry_after(self, response: Response, at_least_s: int = 1) -> None:
        """Retry-After is there: whole seconds."""
        value = response.header("retry-after") or ""
        self.assertRegex(value, r"\A[0-9]+\Z")
        self.assertGreaterEqual(int(value), at_least_s)


class Shapes(ErrorTest):
    def cases(self, running: RunningGateway) -> list[tuple[int, str, Callable[[], Response]]]:
        def raw(data: bytes) -> Callable[[], Response]:
            def send() -> Response:
                with running.connect() as client:
                    client.send(data)
                    return client.read_response()

            return send

        big = b"x" * 3_000
        return [
            (400, "invalid_json", lambda: running.post(b"{")),
            (400, "invalid_body", lambda: running.post(b"[]")),
            (400, "invalid_model", lambda: running.post({**HI, "model": 1})),
            (400, "invalid_messages", lambda: running.post({})),
            (400, "invalid_stream", lambda: running.post({**HI, "stream": 1})),
            (400, "invalid_max_tokens", lambda: running.post({**HI, "max_tokens": 0})),
            (400, "invalid_temperature", lambda: running.post({**HI, "temperature": 3})),
            (400, "invalid_top_p", lambda: running.post({**HI, "top_p": 3})),
            (400, "invalid_stop", lambda: running.post({**HI, "stop": 3})),
            (400, "invalid_n", lambda: running.post({**HI, "n": 0})),
            (400, "invalid_input", lambda: running.post({}, "/v1/embeddings")),
            (400, "invalid_prompt", lambda: running.post({}, "/v1/completions")),
            (400, "bad_request", raw(b"GET /\r\n\r\n")),
            (404, "not_found", lambda: running.get("/nope")),
            (404, "model_not_found", lambda: running.post({**HI, "model": "nope"})),
            (405, "method_not_allowed", lambda: running.get(CHAT)),
            (411, "length_required", raw(request_bytes("POST", CHAT))),
            (413, "body_too_large", lambda: running.post(big)),
            (415, "unsupported_media_type", lambda: running.post(headers=[("Content-Encoding", "br")])),
            (431, "headers_too_large", lambda: running.get("/", [("X-Big", "x" * 3_000)])),
            (501, "not_implemented", raw(request_bytes("POST", CHAT, None, [("Transfer-Encoding", "gzip")]))),
            (505, "http_version_not_supported", raw(b"GET / HTTP/2.0\r\nHost: g\r\n\r\n")),
        ]

    def test_errors_found_at_the_door_have_one_shape(self) -> None:
        for error_format in ("simple", "openai"):
            running = self.enter(
                gateway(ENGINES="13b=echo:", ERROR_FORMAT=error_format, MAX_BODY_BYTES=2_000, MAX_HEADER_BYTES=2_000)
            )
            for status, code, ask in self.cases(running):
                with self.subTest(error_format=error_format, code=code):
                    self.assert_error(ask(), status, code, error_format)
            self.assertEqual(running.post().status, 200)

    def test_every_refusal_of_an_inference_request_says_that_no_engine_was_asked_and_where_the_time_went(self) -> None:
        running = self.enter(gateway(ENGINES="13b=echo:", MAX_BODY_BYTES=2_000, API_KEYS="sk-1234567890"))
        limited = self.enter(gateway(ENGINES="13b=echo:", RATE_LIMIT_IP_RPM=1))
        self.assertEqual(limited.post().status, 200)
        draining = self.enter(gateway(ENGINES="13b=echo:"))
        draining.app.pipeline.draining = True
        key = [("X-API-Key", "sk-1234567890")]
        for path in (CHAT, COMPLETIONS, EMBEDDINGS):
            for status, response in (
                (401, running.post(path=path)),
                (400, running.post(b"{", path, key)),
                (400, running.post({}, path, key)),
                (405, running.get(path, key)),
                (411, running.ask("POST", path, headers=key)),
                (413, running.post(b"x" * 3_000, path, key)),
                (415, running.post(HI, path, [*key, ("Content-Encoding", "br")])),
            ):
                self.assert_nobody_asked(response, status)
        self.assert_nobody_asked(running.post({**HI, "model": "nope"}, headers=key), 404)
        self.assert_nobody_asked(limited.post(), 429)
        self.assert_nobody_asked(draining.post(), 503)
        for elsewhere in (running.get("/nope", key), running.get("/v1/models/nope", key)):
            self.assertEqual(elsewhere.status, 404)
            self.assertIsNone(elsewhere.header("x-gateway-attempts"))

    def assert_nobody_asked(self, response: Response, status: int) -> None:
        self.assertEqual(response.status, status)
        self.assertEqual(response.header("x-gateway-attempts"), "0")
        number = r";dur=[0-9]+\.[0-9]+"
        self.assertRegex(response.header("server-timing") or "", f"^queue{number}, engine{number}, gateway{number}$")
        self.assertIsNone(response.header("x-gateway-engine"))
        self.assertIsNone(response.header("x-gateway-model"))

    def test_param_names_the_field_or_is_null(self) -> None:
        for error_format in ("simple", "openai"):
            running = self.enter(gateway(ERROR_FORMAT=error_format))
            body = {"messages": [{"role": "x", "content": "y"}]}
            error = self.assert_error(running.post(body), 400, "invalid_messages", error_format)
            self.assertEqual(error["param"], "messages[0].role")
            self.assertIsNone(self.assert_error(running.get("/nope"), 404, "not_found", error_format)["param"])

    def test_a_key_is_missing(self) -> None:
        for error_format in ("simple", "openai"):
            running = self.enter(gateway(ERROR_FORMAT=error_format, API_KEYS="sk-1234567890"))
            response = running.post()
            self.assert_error(response, 401, "unauthorized", error_format)
            self.assertEqual(response.header("www-authenticate"), "Bearer")


class Engines(ErrorTest):
    """What an engine does to a request that only it can answer."""

    def ask(self, behaviour: str = "ok", variables: Optional[dict[str, object]] = None, **options: Any) -> Response:
        engine = self.enter(mock_engine(behaviour=behaviour, **options))
        self.running = self.enter(gateway(variables or {}, ENGINES=engines(_13b=engine.url)))
        return self.running.post()

    def test_no_engine_listens(self) -> None:
        for error_format in ("simple", "openai"):
            running = self.enter(gateway(ENGINES=engines(_13b=dead_url()), ERROR_FORMAT=error_format))
            response = running.post()
            self.assert_error(response, 502, "backend_unavailable", error_format)
            self.assertEqual(response.header("x-gateway-attempts"), "1")
            self.assertEqual(response.header("x-gateway-model"), "13b")

    def test_the_engine_resets(self) -> None:
        self.assert_error(self.ask("reset"), 502, "backend_unavailable")

    def test_the_engine_fails(self) -> None:
        for behaviour, options in (
            ("error", {"status": 500}),
            ("error", {"status": 503}),
            ("error", {"status": 408}),
            ("malformed", {}),
            ("truncate", {}),
            ("loading", {}),
            ("unauthorized", {}),
        ):
            with self.subTest(behaviour=behaviour, **options):
                self.assert_error(self.ask(behaviour, **options), 502, "backend_error")

    def test_the_engine_is_silent(self) -> None:
        for error_format in ("simple", "openai"):
            response = self.ask("hang", {"REQUEST_TIMEOUT": "0.2", "ERROR_FORMAT": error_format})
            self.assert_error(response, 504, "gateway_timeout", error_format)

    def test_the_engine_never_begins_a_stream(self) -> None:
        engine = self.enter(mock_engine(behaviour="hang"))
        running = self.enter(gateway(ENGINES=engines(_13b=engine.url), FIRST_TOKEN_TIMEOUT="0.2"))
        self.assert_error(running.post({**HI, "stream": True}), 504, "gateway_timeout")

    def test_the_engine_rests(self) -> None:
        response = self.ask("rate_limit", retry_after=7)
        self.assert_error(response, 429, "backend_rate_limited")
        self.assert_retry_after(response)
        self.assertLessEqual(int(response.header("retry-after") or ""), 7)
        again = self.running.post()
        self.assert_error(again, 429, "backend_rate_limited")
        self.assert_retry_after(again)

    def test_the_engine_rests_without_saying_how_long(self) -> None:
        response = self.ask("rate_limit", {"ERROR_FORMAT": "openai"})
        self.assert_error(response, 429, "backend_rate_limited", "openai")
        self.assertEqual(response.header("retry-after"), "1")

    def test_the_engine_refuses_the_request_itself(self) -> None:
        for status in (400, 404, 413, 422):
            with self.subTest(status=status):
                response = self.ask("error", status=status)
                error = self.assert_error(response, status, "backend_rejected")
                self.assertTrue(error["message"])
                self.assertEqual(response.header("x-gateway-attempts"), "1")

    def test_the_engines_own_message_is_passed_on(self) -> None:
        engine = self.enter(mock_engine(behaviour="bad_request"))
        running = self.enter(gateway(ENGINES=engines(_13b=engine.url)))
        direct = RawClient(engine.port)
        direct.request("POST", CHAT, HI)
        said = direct.read_response().json()["error"]["message"]
        direct.close()
        self.assertIn(said, self.assert_error(running.post(), 400, "backend_rejected")["message"])

    def test_the_connection_goes_on_after_an_engines_failure(self) -> None:
        engine = self.enter(mock_engine(behaviour="error"))
        running = self.enter(gateway(ENGINES=engines(_13b=engine.url)))
        client = self.enter(running.connect())
        self.assertEqual(client.post().status, 502)
        engine.control("ok")
        self.assertEqual(client.post().status, 200)


class Full(ErrorTest):
    """One worker, one place in the queue, and an engine that holds the worker."""

    def start(self, **variables: object) -> None:
        self.engine: MockEngine = self.enter(mock_engine(behaviour="hang"))
        self.gateway = self.enter(gateway(ENGINES=engines(_13b=self.engine.url), WORKERS=1, QUEUE_SIZE=1, **variables))

    def occupy(self, count: int) -> list[RawClient]:
        """Send `count` requests one after the other; the first has the worker, the others wait."""
        clients = []
        for number in range(count):
            client = self.enter(self.gateway.connect())
            client.request("POST", CHAT, HI)
            clients.append(client)
            if number == 0:
                self.assertTrue(self.engine.wait_for_requests(1, 5))
            eventually(lambda wanted=number + 1: self.gateway.app.pipeline.in_flight >= wanted)
        return clients

    def test_a_full_queue_is_overloaded_and_those_that_wait_are_served(self) -> None:
        for error_format in ("simple", "openai"):
            self.start(ERROR_FORMAT=error_format)
            clients = self.occupy(2)
            with self.gateway.connect() as refused:
                response = refused.post()
                self.assert_error(response, 503, "overloaded", error_format)
                self.assert_retry_after(response)
                self.assertEqual(self.engine.stats()["requests"], 1)
                self.engine.control("ok")
                for client in clients:
                    self.assertEqual(client.read_response().status, 200)
                self.assertEqual(refused.post().status, 200)
            eventually(lambda: self.gateway.app.pipeline.in_flight == 0)

    def test_waiting_too_long_is_a_queue_timeout(self) -> None:
        for error_format in ("simple", "openai"):
            self.start(QUEUE_TIMEOUT="0.2", ERROR_FORMAT=error_format)
            first, second = self.occupy(2)
            response = second.read_response()
            self.assert_error(response, 503, "queue_timeout", error_format)
            self.assert_retry_after(response)
            self.assertEqual(self.engine.stats()["requests"], 1)
            line = self.gateway.request_line(response.request_id)
            self.assertGreaterEqual(line["queue_ms"], 200)
            self.engine.control("ok")
            self.assertEqual(first.read_response().status, 200)
            self.assertEqual(self.gateway.post().status, 200)

    def test_a_queue_timeout_is_told_and_is_the_end_although_another_request_came_behind(self) -> None:
        self.start(QUEUE_TIMEOUT="0.2")
        (first,) = self.occupy(1)
        waiting = self.enter(self.gateway.connect())
        waiting.request("POST", CHAT, HI, [("X-Request-ID", "late")])
        eventually(lambda: self.gateway.app.pipeline.in_flight == 2)
        waiting.request("POST", CHAT, HI)
        response = waiting.read_response()
        self.assert_error(response, 503, "queue_timeout")
        self.assertEqual(response.request_id, "late")
        self.assertEqual(response.header("connection"), "close")
        waiting.assert_closed()
        self.engine.control("ok")
        self.assertEqual(first.read_response().status, 200)
        eventually(lambda: self.gateway.app.pipeline.in_flight == 0)
        self.assertEqual(self.engine.stats()["requests"], 1)  # what came behind a last answer is void

    def test_a_client_that_leaves_the_queue_makes_no_request(self) -> None:
        self.start()
        first, second = self.occupy(2)
        second.close()
        self.engine.control("ok")
        self.assertEqual(first.read_response().status, 200)
        eventually(lambda: self.gateway.app.pipeline.in_flight == 0)
        self.assertEqual(self.gateway.post().status, 200)
        self.assertEqual(self.engine.stats()["requests"], 2)
        left = eventually(lambda: [line for line in self.gateway.request_lines() if line["status"] == 499])
        self.assertEqual([line["error"] for line in left], ["client_closed_request"])

    def test_streams_wait_in_the_same_queue(self) -> None:
        self.start()
        self.occupy(2)
        response = self.gateway.post({**HI, "stream": True})
        self.assert_error(response, 503, "overloaded")


class Own(ErrorTest):
    """The gateway's own failures and states."""

    def test_draining_refuses_inference_and_closes(self) -> None:
        for error_format in ("simple", "openai"):
            running = self.enter(gateway(ERROR_FORMAT=error_format))
            client = self.enter(running.connect())
            self.assertEqual(client.post().status, 200)
            running.app.pipeline.draining = True
            response = client.post()
            self.assert_error(response, 503, "draining", error_format)
            self.assert_retry_after(response)
            self.assertEqual(response.header("connection"), "close")
            client.assert_closed()

    def test_an_unexpected_exception_is_500_and_tells_the_client_nothing(self) -> None:
        for error_format, step in (("simple", "ask"), ("openai", "ask"), ("simple", "_plan")):
            running = self.enter(gateway(ERROR_FORMAT=error_format))
            with mock.patch.object(running.app.factory.asker, step, side_effect=RuntimeError("inner detail")):
                with running.connect() as client:
                    response = client.post()
                    self.assert_error(response, 500, "internal_error", error_format)
                    self.assertNotIn(b"inner detail", response.body)
            self.assertEqual(running.post().status, 200)
            logged = eventually(lambda r=running: [x for x in r.log_lines() if x["event"] == "internal_error"])
            self.assertEqual(len(logged), 1)
            self.assertIn("inner detail", json.dumps(logged[0]))
            self.assertEqual(logged[0]["request_id"], response.request_id)

    def test_an_unexpected_exception_at_the_door_is_500_too(self) -> None:
        running = self.enter(gateway())
        for path, where, name in (
            ("/v1/models", running.app.factory.router, "names"),
            (CHAT, running.app.pipeline, "_admit"),
        ):
            with self.subTest(path=path):
                with mock.patch.object(where, name, side_effect=RuntimeError("inner detail")):
                    response = running.ask("POST" if path == CHAT else "GET", path, HI if path == CHAT else None)
                self.assert_error(response, 500, "internal_error")
                self.assertNotIn(b"inner detail", response.body)
                self.assertEqual(running.request_line(response.request_id)["status"], 500)
        self.assertEqual(running.post().status, 200)

    def test_a_client_that_leaves_is_499_in_the_log_only(self) -> None:
        engine = self.enter(mock_engine(behaviour="hang"))
        running = self.enter(gateway(ENGINES=engines(_13b=engine.url)))
        with running.connect() as client:
            client.request("POST", CHAT, HI, [("X-Request-ID", "leaver")])
            self.assertTrue(engine.wait_for_requests(1, 5))
        self.assertTrue(engine.wait_for_cancelled(1, 5))
        line = running.request_line("leaver")
        self.assertEqual((line["status"], line["error"]), (499, "client_closed_request"))


if __name__ == "__main__":
    unittest.main()
