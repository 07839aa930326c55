"""Clients of other dialects, asking over real sockets: their answers, their errors, their rights."""

from __future__ import annotations

import json
import unittest
from typing import Any, Optional
from unittest import mock

from gateway.dialects.anthropic.requests import MessagesConversation
from gateway.dialects.ollama.conversation import Conversation as OllamaConversation
from gateway.dialects.responses.conversation import Conversation as ResponsesConversation
from tests.access import AccessTest, bearer
from tests.dialects import (
    COUNT,
    EMBED,
    EMBEDDINGS,
    GENERATE,
    MESSAGES,
    OLLAMA_CHAT,
    RESPONSES,
    SPEAKING,
    DialectTest,
    Json,
    asking,
    calls_of,
    error_of,
    text_of,
    tools_of,
    usage_of,
    without_stream,
)
from tests.scripted import EngineSide
from tests.support import CHAT, Response, RunningGateway, dead_url, eventually, request_bytes

ALL = (*SPEAKING, COUNT, EMBED, EMBEDDINGS)
CONVERSATIONS: tuple[tuple[str, Any], ...] = (
    (MESSAGES, MessagesConversation),
    (RESPONSES, ResponsesConversation),
    (OLLAMA_CHAT, OllamaConversation),
)


def request_of(path: str, **options: Any) -> Json:
    """A right request to any of the paths."""
    if path == EMBED:
        return {"model": "m", "input": "hi there", **options}
    if path == EMBEDDINGS:
        return {"model": "m", "prompt": "hi there", **options}
    return without_stream(asking(path, **options)) if path == COUNT else asking(path, **options)


def labelled(path: str, body: Json, headers: list[tuple[str, str]]) -> bytes:
    """A POST with these headers alone."""
    said = json.dumps(body).encode()
    lines = "".join(f"{name}: {value}\r\n" for name, value in [("Host", "127.0.0.1"), *headers])
    return f"POST {path} HTTP/1.1\r\n{lines}Content-Length: {len(said)}\r\n\r\n".encode() + said


def status_of(path: str, status: int) -> int:
    """How a dialect tells a status."""
    return 529 if status == 503 and path in (MESSAGES, COUNT) else status


class AnswersTest(DialectTest):
    def test_each_gets_the_answer_in_its_own_form(self) -> None:
        engine = self.engine()
        running = self.serve({"m": {"engines": [engine.url]}})
        said = running.post(asking(CHAT), CHAT).json()["choices"][0]["message"]["content"]
        for path in SPEAKING:
            with self.subTest(path):
                answer = running.post(asking(path), path)
                self.assertEqual((answer.status, answer.header("content-type")), (200, "application/json"))
                self.assertEqual(text_of(path, [answer.json()]), said)
                self.assertEqual(answer.header("x-gateway-engine"), f"127.0.0.1:{engine.port}")
                self.assertEqual(answer.header("x-gateway-model"), "m")
                self.assertEqual(answer.header("x-gateway-attempts"), "1")
                self.assertEqual(answer.header("request-id"), answer.request_id if path == MESSAGES else None)
                line = running.request_line(answer.request_id)
                self.assertEqual((line["path"], line["status"], line["model"]), (path, 200, "m"))
                counted = (line["prompt_tokens"], line["completion_tokens"])
                self.assertEqual(usage_of(path, [answer.json()]), counted)
        metrics = running.metrics()
        for path in SPEAKING:
            self.assertEqual(metrics[f'gateway_requests_total{{path="{path}",model="m",status="200"}}'], 1, path)
        total = sum(line["completion_tokens"] for line in running.request_lines() if line["path"] != "/metrics")
        self.assertEqual(metrics['gateway_tokens_total{model="m",kind="completion"}'], total)

    def test_embeddings(self) -> None:
        running = self.serve({"m": {"engines": [self.engine().url]}})
        several = running.post({"model": "m", "input": ["one", "two"]}, EMBED).json()["embeddings"]
        (first,) = running.post({"model": "m", "input": "one"}, EMBED).json()["embeddings"]
        self.assertEqual((len(several), several[0]), (2, first))
        self.assertEqual(running.post({"model": "m", "prompt": "one"}, EMBEDDINGS).json(), {"embedding": first})

    def test_tools_are_called_and_their_results_are_read(self) -> None:
        running = self.serve({"m": {"engines": [self.engine().url]}})
        question = "get_weather in Rome"
        for path in (MESSAGES, RESPONSES, OLLAMA_CHAT):
            with self.subTest(path):
                answer = running.post(asking(path, question, tools=tools_of(path)), path).json()
                ((name, arguments),) = calls_of(path, answer)
                self.assertEqual((name, list(arguments)), ("get_weather", ["city"]))
                body = asking(path, question, tools=tools_of(path))
                if path == MESSAGES:
                    self.assertEqual(answer["stop_reason"], "tool_use")
                    result = {"type": "tool_result", "tool_use_id": answer["content"][0]["id"], "content": "sunny"}
                    body["messages"] += [
                        {"role": "assistant", "content": answer["content"]},
                        {"role": "user", "content": [result]},
                    ]
                elif path == RESPONSES:
                    call_id = answer["output"][0]["call_id"]
                    result = {"type": "function_call_output", "call_id": call_id, "output": "sunny"}
                    body["input"] = [{"role": "user", "content": question}, *answer["output"], result]
                else:
                    body["messages"] += [answer["message"], {"role": "tool", "tool_name": name, "content": "sunny"}]
                self.assertIn("sunny", text_of(path, [running.post(body, path).json()]))

    def test_another_model_answers_for_one_that_fails_and_no_body_tells_it(self) -> None:
        models = {"m": {"engines": [dead_url()], "fallbacks": ["n"]}, "n": {"engines": [self.engine(model="n").url]}}
        running = self.serve(models)
        for path in SPEAKING:
            answer = running.post(asking(path), path)
            self.assertEqual((answer.status, answer.header("x-gateway-fallback")), (200, "m->n"), path)
            self.assertIn("from n at", text_of(path, [answer.json()]))

    def test_old_clients_get_them_too(self) -> None:
        running = self.serve({"m": {"engines": [self.engine().url]}})
        for path in SPEAKING:
            with self.subTest(path), running.connect() as client:
                client.send(request_bytes("POST", path, asking(path), version="HTTP/1.0"))
                answer = client.read_response()
                self.assertEqual((answer.status, answer.header("connection")), (200, "close"))
                client.assert_closed()

    def test_a_model_may_be_called_as_ollamas_clients_do(self) -> None:
        engine = self.engine()
        running = self.serve({"m": {"engines": [engine.url]}})
        for path in (OLLAMA_CHAT, GENERATE, EMBED):
            answer = running.post({**request_of(path), "model": "m:latest", "stream": False}, path)
            self.assertEqual((answer.status, answer.json()["model"]), (200, "m:latest"))
            self.assertEqual(answer.header("x-gateway-model"), "m")
        self.assertEqual({request["body"]["model"] for request in engine.requests}, {"m"})
        self.assertEqual(running.post({"model": "m:latest"}, "/api/show").status, 200)
        self.assertEqual([one["name"] for one in running.get("/api/tags").json()["models"]], ["m"])
        self.assertEqual(running.post({**asking(OLLAMA_CHAT), "model": "m:7b"}, OLLAMA_CHAT).status, 404)

    def test_ollamas_clients_are_told_what_a_model_can_do(self) -> None:
        engines = {"engines": [{"url": dead_url(), "endpoints": ["/v1/embeddings"]}]}
        sees = {"engines": ["echo:"], "capabilities": ["completion", "tools", "vision"]}
        plain = {"engines": ["echo:"]}
        models = {"e": engines, "sees": sees, "plain": plain, "either": {"split": {"sees": 1, "plain": 1}}}
        running = self.serve({**models, "all": {"consensus": {"members": ["sees", "plain"]}}}, SANDBOX="off")
        told = {one["name"]: one["capabilities"] for one in running.get("/api/tags").json()["models"]}
        tools = ["completion", "tools"]
        expected = {"e": ["embedding"], "sees": [*tools, "vision"], "plain": tools, "either": tools}
        self.assertEqual(told, {**expected, "all": ["completion"]})
        for name in ("plain", "sees", "e", "either", "all"):
            self.assertEqual(running.post({"model": name}, "/api/show").json()["capabilities"], told[name], name)
            count = {"model": name, "messages": [{"role": "user", "content": "hi"}]}
            self.assertEqual(running.post(count, COUNT).json(), {"input_tokens": 1}, name)

    def test_a_model_that_comes_or_goes_meanwhile_leaves_the_others_listed(self) -> None:
        running = self.serve({"m": {"engines": ["echo:"]}})
        router = running.app.factory.router
        with mock.patch.object(router, "names", return_value=("m", "gone")):
            told = [one["id"] for one in running.get("/v1/models").json()["data"]]
            told += [one["name"] for one in running.get("/api/tags").json()["models"]]
        self.assertEqual(told, ["m", "m"])

    def test_curl_needs_no_media_type_at_ollamas_paths_and_a_page_is_not_let_in(self) -> None:
        running = self.serve({"m": {"engines": [self.engine().url]}}, CORS_ORIGINS="https://a.example")
        label = ("Content-Type", "application/x-www-form-urlencoded")
        own, allowed, other = "http://127.0.0.1:80", "https://a.example", "https://b.example"
        for path, body in [(path, request_of(path)) for path in ALL] + [("/api/show", {"model": "m"})]:
            for headers, status in (
                ([], 200 if path.startswith("/api/") else 415),
                ([("Origin", own)], 415),
                ([("Origin", allowed)], 415),
                ([("Sec-Fetch-Site", "same-origin")], 415),
                ([("Sec-Fetch-Site", "none")], 415),
                ([("Origin", other)], 403),
                ([("Origin", "null")], 403),
                ([("Sec-Fetch-Site", "cross-site")], 403),
            ):
                with self.subTest(path, headers=headers), running.connect() as client:
                    client.send(labelled(path, body, [label, *headers]))
                    self.assertEqual(client.read_response().status, status)
            for kind in ("text/plain", "application/x-www-form-urlencoded; charset=utf-8", "multipart/form-data"):
                with self.subTest(path, kind=kind), running.connect() as client:
                    client.send(labelled(path, body, [("Content-Type", kind)]))
                    self.assertEqual(client.read_response().status, 415)

    def test_a_large_body_that_curl_has_labelled_is_read(self) -> None:
        running = self.serve({"m": {"engines": [self.engine().url]}})
        body = {**without_stream(asking(OLLAMA_CHAT, "x" * 50_000)), "stream": False}
        label = [("Content-Type", "application/x-www-form-urlencoded"), ("Expect", "100-continue")]
        with running.connect() as client:
            head, _, rest = labelled(OLLAMA_CHAT, body, label).partition(b"\r\n\r\n")
            client.send(head + b"\r\n\r\n")
            self.assertEqual(client.read_response().status, 100)
            client.send(rest)
            self.assertEqual(client.read_response().status, 200)

    def test_what_is_answered_without_an_engine(self) -> None:
        running = self.serve({"m": {"engines": [dead_url()]}})
        loaded = running.post({"model": "m"}, OLLAMA_CHAT)
        self.assertEqual((loaded.status, loaded.json()["done_reason"]), (200, "load"))
        self.assertEqual(running.post({"model": "m", "keep_alive": 0}, GENERATE).json()["done_reason"], "unload")
        self.assertEqual(running.post({"model": "m"}, EMBED).json()["embeddings"], [])
        counted = running.post(request_of(COUNT), COUNT)
        self.assertEqual(counted.status, 200)
        self.assertGreater(counted.json()["input_tokens"], 0)
        self.assertEqual((counted.header("x-gateway-attempts"), counted.header("x-gateway-engine")), ("0", None))
        line = running.request_line(counted.request_id)
        self.assertEqual((line["path"], line["status"], line["model"], line["error"]), (COUNT, 200, "m", None))
        self.assertNotIn('gateway_tokens_total{model="m",kind="prompt"}', running.metrics())
        self.assertEqual(running.app.pipeline.in_flight, 0)

    def test_what_the_client_has_sent_can_be_logged(self) -> None:
        running = self.serve({"m": {"engines": [self.engine().url]}}, LOG_BODIES="on")
        for path in SPEAKING:
            with self.subTest(path):
                answer = running.post(asking(path, "a word"), path)
                line = running.request_line(answer.request_id)
                self.assertIn("a word", line["request_body"])
                self.assertEqual(json.loads(line["answer_body"]), answer.json())


class ErrorsTest(DialectTest):
    def assert_tells(self, path: str, answer: Response, status: int, code: str) -> str:
        self.assertEqual(answer.status, status_of(path, status), answer.body)
        found, message = error_of(path, answer.json())
        self.assertIn(found, ("", code))
        self.assertTrue(answer.request_id and message)
        if path in (MESSAGES, COUNT):
            self.assertEqual(answer.header("request-id"), answer.request_id)
            self.assertEqual(answer.json()["request_id"], answer.request_id)
        return message

    def test_whatever_is_wrong_is_told_in_the_dialects_own_shape(self) -> None:
        engine = self.engine()
        models = {"m": {"engines": [engine.url]}}
        running = self.serve(models, API_KEYS="a:sk-a", MAX_BODY_BYTES=5000)
        key = bearer("sk-a")
        for path in ALL:
            with self.subTest(path):
                right = request_of(path)
                self.assert_tells(path, running.post(right, path), 401, "unauthorized")
                unknown = {**right, "model": "nope"}
                message = self.assert_tells(path, running.post(unknown, path, key), 404, "model_not_found")
                self.assertIn("nope", message)
                self.assert_tells(path, running.post({**right, "model": 7}, path, key), 400, "invalid_model")
                self.assert_tells(path, running.post(b"{", path, key), 400, "invalid_json")
                self.assert_tells(path, running.post({**right, "x": "x" * 5000}, path, key), 413, "body_too_large")
                typed = [*key, ("Content-Type", "text/plain")]
                with running.connect() as client:
                    client.send(b"POST %b HTTP/1.1\r\nHost: g\r\nContent-Length: 2\r\n" % path.encode())
                    client.send(b"".join(f"{name}: {value}\r\n".encode() for name, value in typed) + b"\r\n{}")
                    self.assert_tells(path, client.read_response(), 415, "unsupported_media_type")
                self.assert_tells(path, running.get(path), 405, "method_not_allowed")
        self.assertEqual(engine.requests, [])

    def test_a_bad_field_is_named_as_the_client_has_written_it(self) -> None:
        running = self.serve({"m": {"engines": ["echo:"]}})
        for path, change, named in (
            (MESSAGES, {"max_tokens": 0}, "max_tokens"),
            (MESSAGES, {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages"),
            (MESSAGES, {"temperature": 7}, "temperature"),
            (COUNT, {"messages": "hi"}, "messages"),
            (RESPONSES, {"input": [{"role": "user", "content": 1}]}, "input[0]"),
            (RESPONSES, {"previous_response_id": "resp_1"}, "previous_response_id"),
            (OLLAMA_CHAT, {"messages": [{"role": "user", "content": 1}]}, "messages[0]"),
            (OLLAMA_CHAT, {"options": {"temperature": "warm"}}, "options.temperature"),
            (GENERATE, {"stream": "yes"}, "stream"),
            (EMBED, {"input": [1]}, "input"),
        ):
            with self.subTest(path, change=change):
                answer = running.post({**request_of(path), **change}, path)
                self.assertEqual(answer.status, 400, answer.body)
                self.assertIn(named, error_of(path, answer.json())[1])

    def test_engines_that_fail(self) -> None:
        for behaviour, options, status, code in (
            ("error", {"status": 500}, 502, "backend_error"),
            ("rate_limit", {"retry_after": 7}, 429, "backend_rate_limited"),
            ("loading", {}, 502, "backend_error"),
            ("bad_request", {}, 400, "backend_rejected"),
            ("malformed", {}, 502, "backend_error"),
        ):
            engine = self.engine(behaviour, **options)
            running = self.serve({"m": {"engines": [engine.url]}}, RETRY_ATTEMPTS=1, BREAKER_THRESHOLD=1000)
            for path in SPEAKING:
                for stream in (False, True):
                    with self.subTest(behaviour, path=path, stream=stream):
                        told = running.post(asking(path, stream=stream), path)
                        expected = running.post(asking(CHAT, stream=stream), CHAT)
                        self.assertEqual(told.status, status_of(path, expected.status))
                        self.assertEqual(expected.status, status)
                        self.assert_tells(path, told, status, code)
                        self.assertEqual(told.header("retry-after"), expected.header("retry-after"))

    def test_a_gateway_that_drains(self) -> None:
        running = self.serve({"m": {"engines": ["echo:"]}})
        running.app.pipeline.draining = True
        for path in ALL:
            with self.subTest(path):
                answer = running.post(request_of(path), path)
                self.assert_tells(path, answer, 503, "draining")
                self.assertEqual(answer.header("retry-after"), "1")

    def test_a_call_that_ollama_has_no_words_for(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [engine.url]}})
        client = self.client(running, OLLAMA_CHAT, asking(OLLAMA_CHAT, tools=tools_of(OLLAMA_CHAT)))
        function = {"name": "get_weather", "arguments": "{"}
        message = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": function}]}
        self.answer(engine.take(), message)
        self.assert_tells(OLLAMA_CHAT, client.read_response(), 502, "backend_error")

    def answer(self, side: EngineSide, message: Optional[Json] = None) -> None:
        said = message or {"role": "assistant", "content": "yes"}
        choice = {"index": 0, "message": said, "finish_reason": "stop"}
        side.answer(json.dumps({"id": "a", "created": 1, "model": "m", "choices": [choice]}).encode())

    def test_a_translation_that_crashes_is_an_internal_error_and_ends_no_other_request(self) -> None:
        for path, conversation in CONVERSATIONS:
            with self.subTest(path), mock.patch.object(conversation, "answer", side_effect=RuntimeError("a bug")):
                engine = self.scripted()
                running = self.serve({"m": {"engines": [engine.url]}})
                clients = [self.client(running, at, asking(at)) for at in (path, CHAT)]
                for side in [engine.take() for _ in clients]:
                    self.answer(side)
                answer = clients[0].read_response()
                message = self.assert_tells(path, answer, 500, "internal_error")
                self.assertNotIn("a bug", message)
                self.assertEqual(clients[1].read_response().status, 200)
                line = running.request_line(answer.request_id)
                self.assertEqual((line["status"], line["error"]), (500, "internal_error"))
                (told,) = [line for line in running.log_lines() if line["event"] == "internal_error"]
                self.assertIn("a bug", told["traceback"])
                self.assert_nothing_held(running)
                eventually(lambda running=running: running.app.pipeline.in_flight == 0)


class AccessOfDialectsTest(AccessTest):
    """Keys, and what they may."""

    def serving(self) -> RunningGateway:
        urls = [self.engine(model=name).url for name in ("m", "n")]
        return self.serve({name: {"engines": [url]} for name, url in zip(("m", "n"), urls)})

    def test_a_key_for_one_model_gets_no_other_not_even_its_count(self) -> None:
        running = self.serving()
        key = self.secret(running, models=["m"])
        for path in ALL:
            with self.subTest(path):
                self.assertEqual(running.post(request_of(path), path, bearer(key)).status, 200)
                answer = running.post(request_of(path, model="n"), path, [("X-Api-Key", key)])
                self.assertEqual(answer.status, 403)
                if path in (MESSAGES, COUNT):
                    self.assertEqual(answer.json()["error"]["type"], "permission_error")
        for path in (OLLAMA_CHAT, GENERATE, EMBED):
            self.assertEqual(running.post({"model": "n"}, path, bearer(key)).status, 403)
            self.assertEqual(running.post({"model": "nope"}, path, bearer(key)).status, 404)
            self.assertEqual(running.post({"model": "n:latest"}, path, bearer(key)).status, 403)
            self.assertEqual(running.post({"model": "m:latest"}, path, bearer(key)).status, 200)

    def test_a_role_that_may_not_infer_gets_nothing(self) -> None:
        running = self.serving()
        key = self.make(running, role="viewer")
        for path in ALL:
            self.assertEqual(running.post(request_of(path), path, key).status, 403, path)
        self.assertEqual(running.post({"model": "m"}, OLLAMA_CHAT, key).status, 403)

    def test_a_limit_of_requests_holds_and_is_told(self) -> None:
        running = self.serving()
        for path in ALL:
            with self.subTest(path):
                key = self.make(running, path.replace("/", "-")[1:], rpm=1)
                first, second = (running.post(request_of(path), path, key) for _ in range(2))
                self.assertEqual((first.status, first.header("x-ratelimit-remaining-requests")), (200, "0"))
                self.assertEqual(second.status, 429)
                self.assertIsNotNone(second.header("retry-after"))

    def test_what_needs_no_engine_takes_no_tokens(self) -> None:
        running = self.serving()
        key = self.make(running, tpm=50)
        long = asking(COUNT, "word " * 500)
        self.assertEqual(running.post(without_stream(long), COUNT, key).status, 200)
        self.assertEqual(running.post({"model": "m"}, OLLAMA_CHAT, key).status, 200)


if __name__ == "__main__":
    unittest.main()
