"""ERROR_FORMAT=auto: OpenAI's SDKs get errors in their own shape, wherever these come from; others get `simple`."""

from __future__ import annotations

import json
import unittest
from collections.abc import Sequence
from typing import Any
from unittest import mock

from gateway.errors import GatewayError
from gateway.server.errorformat import error_format_of
from gateway.server.parsing import RequestHead, parse_head
from gateway.server.responses import error_headers
from tests.resilience import ResilienceTest, ask
from tests.scripted import STREAM_HEAD, chunked, delta
from tests.support import CHAT, HI, Header, Response, RunningGateway, dead_url, eventually, request_bytes

SDKS: tuple[Header, ...] = (("X-Stainless-Lang", "js"), ("User-Agent", "AsyncOpenAI/Python 3.52.0"))
CLIENTS: tuple[tuple[str, Sequence[Header]], ...] = (
    ("simple", ()),
    ("simple", [("User-Agent", "curl/8.14.1")]),
    *(("openai", [header]) for header in SDKS),
)
KEY = "sk-user-0123456789"
ADMIN = "sk-admin-0123456789"

OPENAI_AGENTS = (
    "OpenAI/Python 1.2.3", "AsyncOpenAI/Python 3.52.0", "AzureOpenAI/Python 1.0.0", "AsyncAzureOpenAI/Python 1.0.0",
    "OpenAI/JS 4.104.0", "AzureOpenAI/JS 6.49.0", "OpenAI/Go 1.12.0", "OpenAI/Java 2.0.0", "OpenAI/Ruby 0.16.0",
    "OpenAI/2.9.1 (.NET 8.0.25; Ubuntu 24.04)", "OpenAI/2.9.1, (.NET 8.0.25; Debian), MEAI/10.4.0",
    "azsdk-net-AI.OpenAI/2.1.0 (.NET 9.0.0; Linux)", "OpenAI/v1 PythonBindings/0.28.1", "OpenAI/NodeJS/3.3.0",
    "MyOpenAI/Python 1.0",
)  # fmt: skip
OTHER_AGENTS = (
    "", "curl/8.14.1", "python-requests/2.32", "python-httpx/0.28", "Mozilla/5.0 (X11; Linux) Chrome/140", "OpenAI",
    "Go-http-client/1.1", "app/1.0 OpenAI/Python 1.2", "x/OpenAI/1", "OpenAIs/1.0", "ChatGPT-User/1.0",
)  # fmt: skip


def head_of(*headers: Header) -> RequestHead:
    return parse_head(request_bytes("GET", "/", None, headers)[:-4])


class Rule(unittest.TestCase):
    def test_openai_sdks_are_known_by_their_user_agent(self) -> None:
        for wanted, agents in (("openai", OPENAI_AGENTS), ("simple", OTHER_AGENTS)):
            for agent in agents:
                with self.subTest(agent=agent):
                    self.assertEqual(error_format_of("auto", head_of(("User-Agent", agent))), wanted)

    def test_or_by_the_header_that_says_their_language(self) -> None:
        for value in ("python", "js", "java", "anything", ""):
            for name in ("X-Stainless-Lang", "x-stainless-lang"):
                head = head_of((name, value), ("User-Agent", "mine/1.0"))
                self.assertEqual(error_format_of("auto", head), "openai")
        self.assertEqual(error_format_of("auto", head_of(("X-Stainless-OS", "Linux"))), "simple")

    def test_a_dialects_own_paths_have_its_shape_also_those_that_are_not_here(self) -> None:
        ours = ("/api/v1/inference", "/v1/models", "/v1/messagesx", "/apis")
        shapes = {"/v1/messages/batches": "anthropic", "/v1/messages": "anthropic", "/api/pull": "ollama"}
        for path, shape in {**shapes, "/api/tags": "ollama", **dict.fromkeys(ours, "simple")}.items():
            head = parse_head(request_bytes("GET", path, None, ())[:-4])
            self.assertEqual(error_format_of("auto", head), shape, path)

    def test_where_nothing_is_known_it_is_simple(self) -> None:
        self.assertEqual(error_format_of("auto", None), "simple")
        self.assertEqual(error_format_of("auto", head_of()), "simple")

    def test_a_configured_shape_is_everybodys(self) -> None:
        for configured in ("simple", "openai"):
            for head in (None, head_of(), head_of(SDKS[0]), head_of(SDKS[1])):
                self.assertEqual(error_format_of(configured, head), configured)


class Errors(ResilienceTest):
    """Every place where an error is written, asked as each kind of client."""

    def assert_shape(self, body: Any, shape: str, code: str) -> None:
        if shape == "openai":
            self.assertIsInstance(body["error"], dict, body)
            self.assertEqual(body["error"]["code"], code)
            self.assertLessEqual({"message", "type", "param", "code"}, set(body["error"]))
        else:
            self.assertEqual(body["error"], code)
            self.assertIsInstance(body["message"], str)

    def assert_told(self, response: Response, status: int, code: str, shape: str) -> None:
        self.assertEqual(response.status, status, response.body)
        self.assert_shape(response.json(), shape, code)
        self.assertEqual(response.json()["request_id"], response.request_id)

    def raw(self, running: RunningGateway, data: bytes) -> Response:
        with running.connect() as client:
            client.send(data)
            return client.read_response()

    def test_what_is_refused_by_the_head_or_the_body_of_a_request(self) -> None:
        running = self.serve({"m": {"engines": ["echo:"]}}, API_KEYS=KEY, ADMIN_KEYS=ADMIN, MAX_BODY_BYTES=2_000)
        key = ("X-API-Key", KEY)
        chunks = b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n"
        for shape, client in CLIENTS:
            own = [*client, key]
            head = request_bytes("POST", CHAT, None, own)[:-2]
            cases = (
                (400, "invalid_json", lambda o=own: running.post(b"{", headers=o)),
                (400, "invalid_temperature", lambda o=own: running.post({**HI, "temperature": 3}, headers=o)),
                (400, "invalid_input", lambda o=own: running.post({}, "/v1/embeddings", headers=o)),
                (400, "bad_request", lambda h=head: self.raw(running, h + chunks)),
                (401, "unauthorized", lambda c=client: running.post(headers=c)),
                (401, "unauthorized", lambda c=client: running.get("/v1/models", c)),
                (401, "unauthorized", lambda c=client: running.get("/admin/keys", c)),
                (401, "unauthorized", lambda c=client: running.ask("POST", "/auth/token", None, c)),
                (403, "forbidden", lambda o=own: running.get("/admin/keys", o)),
                (404, "not_found", lambda o=own: running.get("/nope", o)),
                (404, "not_found", lambda o=own: running.get("/admin/nope", o)),
                (404, "model_not_found", lambda o=own: running.get("/v1/models/nope", o)),
                (404, "model_not_found", lambda o=own: running.post(ask(model="nope"), headers=o)),
                (405, "method_not_allowed", lambda o=own: running.get(CHAT, o)),
                (405, "method_not_allowed", lambda o=own: running.ask("PUT", "/admin/keys", b"{}", o)),
                (411, "length_required", lambda h=head: self.raw(running, h + b"\r\n")),
                (413, "body_too_large", lambda o=own: running.post(b"x" * 3_000, headers=o)),
                (413, "body_too_large", lambda h=head: self.raw(running, h + b"Content-Length: 3000\r\n\r\n")),
                (415, "unsupported_media_type", lambda o=own: running.post(headers=[*o, ("Content-Encoding", "br")])),
            )
            for status, code, send in cases:
                with self.subTest(client=client, code=code):
                    self.assert_told(send(), status, code, shape)
            with self.subTest(client=client, method="HEAD"), running.connect() as connection:
                self.assertEqual(connection.ask("HEAD", "/v1/models/nope", None, own).body, b"")
                self.assertEqual(connection.ask("GET", "/v1/models", None, own).status, 200)

    def test_a_foreign_name_of_the_gateway(self) -> None:
        running = self.serve({"m": {"engines": ["echo:"]}})
        for shape, client in CLIENTS:
            response = self.raw(running, request_bytes("POST", CHAT, HI, client, host="evil.example"))
            self.assert_told(response, 421, "misdirected_request", shape)

    def test_a_limit_and_a_body_that_comes_too_late(self) -> None:
        for shape, client in CLIENTS:
            running = self.serve({"m": {"engines": ["echo:"]}}, RATE_LIMIT_IP_RPM=1, CLIENT_TIMEOUT="0.3")
            self.assertEqual(running.post(headers=client).status, 200)
            self.assert_told(running.post(headers=client), 429, "rate_limit_exceeded", shape)
            late = request_bytes("POST", CHAT, HI, client)[:-5]
            self.assert_told(self.raw(running, late), 408, "request_timeout", shape)

    def test_what_engines_do(self) -> None:
        for shape, client in CLIENTS:
            engine = self.engine()
            models = {"m": {"engines": [engine.url]}, "gone": {"engines": [dead_url()]}}
            running = self.serve(models, FALLBACK="off", RETRY_ATTEMPTS=1)
            for model, status, code, behaviour, options in (
                ("gone", 502, "backend_unavailable", "ok", {}),
                ("m", 502, "backend_error", "error", {"status": 500}),
                ("m", 429, "backend_rate_limited", "rate_limit", {"retry_after": 100}),
            ):
                engine.control(behaviour, **options)
                for stream in (False, True):
                    with self.subTest(client=client, code=code, stream=stream):
                        response = running.post(ask(model=model, stream=stream), headers=client)
                        self.assert_told(response, status, code, shape)

    def test_an_engine_that_does_not_answer_in_time(self) -> None:
        engine = self.engine("hang")
        running = self.serve({"m": {"engines": [engine.url]}}, FALLBACK="off", REQUEST_TIMEOUT="0.3")
        for shape, client in CLIENTS:
            with self.subTest(client=client):
                self.assert_told(running.post(ask(), headers=client), 504, "gateway_timeout", shape)

    def test_an_engines_verdict_on_a_request(self) -> None:
        scripted = self.scripted()
        running = self.serve({"m": {"engines": [scripted.url]}})
        for shape, client in CLIENTS:
            connection = self.begin(running, ask(), client)
            side = scripted.take()
            side.answer(b'{"error": {"message": "no such thing", "code": "odd"}}', status="422 Unprocessable Entity")
            response = connection.read_response()
            self.assertEqual(response.status, 422)
            # In OpenAI's shape an engine's verdict has the engine's own code.
            self.assert_shape(response.json(), shape, "odd" if shape == "openai" else "backend_rejected")
            side.close()

    def test_waiting_in_vain_and_a_full_queue(self) -> None:
        for shape, client in CLIENTS:
            for code, timeout_s in (("queue_timeout", "0.2"), ("overloaded", "300")):
                with self.subTest(client=client, code=code):
                    engine = self.scripted()
                    running = self.serve(
                        {"m": {"engines": [engine.url]}}, WORKERS=1, QUEUE_SIZE=1, QUEUE_TIMEOUT=timeout_s
                    )
                    self.begin(running)
                    engine.take()
                    waiting = self.begin(running, headers=client)
                    if code == "overloaded":
                        eventually(lambda r=running: r.app.pipeline.in_flight == 2)
                        waiting = self.begin(running, headers=client)
                    self.assert_told(waiting.read_response(), 503, code, shape)

    def test_the_gateways_own_failures(self) -> None:
        running = self.serve({"m": {"engines": ["echo:"]}})
        for shape, client in CLIENTS:
            for where in ("gateway.pipeline.call_of", "gateway.server.exchange.answer_headers"):
                with mock.patch(where, side_effect=RuntimeError("inner detail")):
                    self.assert_told(running.post(headers=client), 500, "internal_error", shape)
        running.app.pipeline.draining = True
        for shape, client in CLIENTS:
            self.assert_told(running.post(headers=client), 503, "draining", shape)

    def test_streams_that_break_are_cut_off_or_find_nobody_to_go_on(self) -> None:
        for resumes in (False, True):
            for shape, client in CLIENTS:
                with self.subTest(client=client, resumes=resumes):
                    body = self.last_event(client, resume=resumes)
                    self.assert_shape(body, shape, "backend_error")

    def test_streams_that_are_cut_off_by_the_end_of_the_drain(self) -> None:
        for shape, client in CLIENTS:
            with self.subTest(client=client):
                self.assert_shape(self.last_event(client, stop=True), shape, "draining")

    def last_event(self, client: Sequence[Header], event: bytes = b"", stop: bool = False, resume: bool = False) -> Any:
        """The last event of a stream that is broken off after its first one: by its engine, which sends `event` before,
        or by the gateway's stop."""
        engine = self.scripted()
        running = self.serve({"m": {"engines": [{"url": engine.url, "resume": resume}]}})
        connection = self.begin(running, ask(stream=True), client)
        side = engine.take()
        side.send(STREAM_HEAD + chunked(delta("Once upon")))
        connection.read_head()
        connection.read_event()
        if stop:
            running.stop()
        else:
            side.send(chunked(event) if event else b"")
            side.close()
            engine.close()
        last = connection.read_events()[-1]
        self.assertTrue(last.startswith("data: "), last)
        return json.loads(last[len("data: ") :])

    def test_an_engines_own_error_event(self) -> None:
        event = b'data: {"error": {"message": "out of memory", "type": "server_error", "code": 500}}\n\n'
        for shape, client in CLIENTS:
            with self.subTest(client=client):
                body = self.last_event(client, event)
                self.assert_shape(body, shape, "backend_error")
                error = body["error"] if shape == "openai" else body
                self.assertIn("out of memory", error["message"])
                self.assertEqual(error["details"]["code"], 500)


class Unknown(ResilienceTest):
    def test_where_no_head_could_be_read_it_is_simple(self) -> None:
        running = self.serve({"m": {"engines": ["echo:"]}}, MAX_HEADER_BYTES=2_000)
        sdk = b"User-Agent: OpenAI/Python 1.0\r\nX-Stainless-Lang: python\r\n"
        for data, status, code in (
            (b"GET /\r\n" + sdk + b"\r\n", 400, "bad_request"),
            (b"GET / HTTP/1.1\r\n" + sdk + b"\r\n", 400, "bad_request"),
            (b"GET / HTTP/2.0\r\nHost: g\r\n" + sdk + b"\r\n", 505, "http_version_not_supported"),
            (b"GET / HTTP/1.1\r\nHost: g\r\n" + sdk + b"X: " + b"x" * 3_000 + b"\r\n\r\n", 431, "headers_too_large"),
        ):
            with running.connect() as client:
                client.send(data)
                response = client.read_response()
                self.assertEqual((response.status, response.json()["error"]), (status, code))

    def test_so_it_is_beyond_the_most_connections(self) -> None:
        running = self.serve({"m": {"engines": ["echo:"]}}, MAX_CONNECTIONS=1)
        first = self.enter(running.connect())
        self.assertEqual(first.post().status, 200)
        with running.connect() as refused:
            self.assertEqual(refused.read_response().json()["error"], "overloaded")


class Retries(ResilienceTest):
    def test_who_would_ask_again_too_early_is_told_not_to(self) -> None:
        for wait_s, told in ((None, None), (0.0, None), (60.0, None), (60.001, "false"), (86_400.0, "false")):
            for code in ("budget_exceeded", "rate_limit_exceeded", "overloaded"):
                lines = error_headers(GatewayError(code, "not now", retry_after_s=wait_s)).decode().splitlines()
                headers = dict(line.split(": ") for line in lines)
                self.assertEqual(headers.get("X-Should-Retry"), told, wait_s)
                self.assertEqual("Retry-After" in headers, wait_s is not None)

    def test_seconds_are_rounded_up_but_for_what_is_left_of_sums(self) -> None:
        for wait_s, told in ((0.0, "1"), (0.4, "1"), (12.000000000003638, "12"), (12.001, "13")):
            self.assertIn(
                f"Retry-After: {told}\r\n".encode(), error_headers(GatewayError("overloaded", "", retry_after_s=wait_s))
            )

    def test_over_a_socket(self) -> None:
        for wait_s, told in ((60, None), (61, "false")):
            engine = self.engine()
            engine.control("rate_limit", retry_after=wait_s)
            answer = self.serve({"m": {"engines": [engine.url]}}).post(ask())
            self.assertEqual((answer.status, answer.error), (429, "backend_rate_limited"))
            self.assertEqual(answer.header("x-should-retry"), told)


class GoesWell(ResilienceTest):
    def test_no_request_that_goes_well_is_looked_at_for_it(self) -> None:
        running = self.serve({"m": {"engines": [self.engine().url]}})
        with mock.patch("gateway.server.answering.error_format_of") as asked:
            for _, client in CLIENTS:
                self.assertEqual(running.post(ask(), headers=client).status, 200)
                self.assertEqual(running.post(ask(stream=True), headers=client).status, 200)
                self.assertEqual(running.get("/v1/models", client).status, 200)
        self.assertEqual(asked.call_count, 0)


if __name__ == "__main__":
    unittest.main()
