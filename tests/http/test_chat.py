"""What may be asked and what is answered: chat completions, completions and embeddings over real sockets."""

from __future__ import annotations

import json
import re
import tempfile
import unittest
import uuid
from pathlib import Path
from typing import Any

from gateway.mock.server import MockEngine
from tests.support import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    HI,
    RunningGateway,
    SocketTest,
    chunk_of,
    content_of,
    dead_url,
    engines,
    gateway,
    mock_engine,
)

USER = {"role": "user", "content": "hi"}
CALLS = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]


def chat(**fields: Any) -> dict[str, Any]:
    return {"messages": [USER], **fields}


def said(**message: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hi", **message}]}


# What is sent, the code, and the path of the faulty field.
FAULTY_CHATS: list[tuple[Any, str, Any]] = [
    (b"", "invalid_json", None),
    (b"{", "invalid_json", None),
    (b"hello", "invalid_json", None),
    (b'{"messages": [{"role": "user", "content": "\xff"}]}', "invalid_json", None),
    (json.dumps(HI).encode("utf-16"), "invalid_json", None),
    (b"[" * 10_000 + b"]" * 10_000, "invalid_json", None),
    (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "invalid_json", None),
    (b'{"messages": [{"role": "user", "content": "hi"}], "temperature": NaN}', "invalid_json", None),
    (b'{"messages": [{"role": "user", "content": "hi"}], "temperature": -Infinity}', "invalid_json", None),
    (b'{"messages": [{"role": "user", "content": "hi"}], "seed": ' + b"9" * 5_000 + b"}", "invalid_json", None),
    (b'{"messages": [{"role": "user", "content": "hi"}], "seed": 1e999}', "invalid_json", None),
    (b'{"messages": [], "messages": [{"role": "user", "content": "hi"}]}', "invalid_json", None),
    (b'{"messages": [{"role": "user", "content": "hi"}]} {}', "invalid_json", None),
    ([], "invalid_body", None),
    ("text", "invalid_body", None),
    (7, "invalid_body", None),
    ({}, "invalid_messages", "messages"),
    ({"messages": None}, "invalid_messages", "messages"),
    ({"messages": []}, "invalid_messages", "messages"),
    ({"messages": "hi"}, "invalid_messages", "messages"),
    ({"messages": {"role": "user", "content": "hi"}}, "invalid_messages", "messages"),
    ({"messages": [USER, "hi"]}, "invalid_messages", "messages[1]"),
    ({"messages": [{"content": "hi"}]}, "invalid_messages", "messages[0].role"),
    (said(role="robot"), "invalid_messages", "messages[0].role"),
    (said(role=None), "invalid_messages", "messages[0].role"),
    (said(role=["user"]), "invalid_messages", "messages[0].role"),
    ({"messages": [USER, {"role": "user"}]}, "invalid_messages", "messages[1].content"),
    (said(content=None), "invalid_messages", "messages[0].content"),
    (said(content=7), "invalid_messages", "messages[0].content"),
    (said(content={"type": "text"}), "invalid_messages", "messages[0].content"),
    (said(content=[]), "invalid_messages", "messages[0].content"),
    (said(content=["hi"]), "invalid_messages", "messages[0].content[0]"),
    (said(content=[{"type": "text", "text": "a"}, {"text": "b"}]), "invalid_messages", "messages[0].content[1]"),
    (said(content=[{"type": 1}]), "invalid_messages", "messages[0].content[0]"),
    (said(content=[{"type": "text", "text": 1}]), "invalid_messages", "messages[0].content[0].text"),
    (said(role="assistant", content=None), "invalid_messages", "messages[0].content"),
    (said(role="assistant", content=None, tool_calls=[]), "invalid_messages", "messages[0].content"),
    (said(role="assistant", content=[]), "invalid_messages", "messages[0].content"),
    (said(role="tool", content=None, tool_calls=CALLS), "invalid_messages", "messages[0].content"),
    (chat(model=7), "invalid_model", "model"),
    (chat(model=["13b"]), "invalid_model", "model"),
    (chat(stream="yes"), "invalid_stream", "stream"),
    (chat(stream=1), "invalid_stream", "stream"),
    (chat(stream=True, stream_options=[]), "invalid_stream", "stream_options"),
    (chat(stream=True, stream_options="usage"), "invalid_stream", "stream_options"),
]
for _field in ("max_tokens", "max_completion_tokens"):
    for _value in (0, -2, 1_000_001, 1.5, "10", True, [1]):
        FAULTY_CHATS.append((chat(**{_field: _value}), "invalid_max_tokens", _field))
for _value in (-0.1, 2.1, "1", True, [1], {}):
    FAULTY_CHATS.append((chat(temperature=_value), "invalid_temperature", "temperature"))
for _value in (-0.1, 1.1, "1", False):
    FAULTY_CHATS.append((chat(top_p=_value), "invalid_top_p", "top_p"))
for _value in (7, ["a"] * 65, ["a", 1], {"a": 1}, True):
    FAULTY_CHATS.append((chat(stop=_value), "invalid_stop", "stop"))
for _value in (0, -1, 129, 1.0, "1", True):
    FAULTY_CHATS.append((chat(n=_value), "invalid_n", "n"))

GOOD_CHATS: list[dict[str, Any]] = [
    chat(model="13b", stream=False, max_tokens=1, temperature=0, top_p=0, stop="x", n=1),
    chat(max_tokens=1_000_000, temperature=2, top_p=1, stop=["a", "b", "c", "d"]),
    chat(max_completion_tokens=1_000_000, temperature=1.5, top_p=0.5, stop=[]),
    chat(n=128, stop=["a"] * 64),
    chat(max_tokens=-1, max_completion_tokens=-1),
    chat(
        model=None,
        stream=None,
        stream_options=None,
        max_tokens=None,
        max_completion_tokens=None,
        temperature=None,
        top_p=None,
        stop=None,
        n=None,
    ),
    said(content=""),
    said(content=[{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:,"}}]),
    {"messages": [{"role": role, "content": "x"} for role in ("system", "developer", "user", "assistant")]},
    {"messages": [{"role": role, "content": "x", "tool_call_id": "c1"} for role in ("tool", "function")] + [USER]},
    {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": CALLS}, USER]},
    {"messages": [USER, {"role": "assistant", "tool_calls": CALLS}, USER]},
    {"messages": [USER, {"role": "assistant", "content": [], "tool_calls": CALLS}, USER]},
    {"messages": [USER, {"role": "assistant", "content": None, "reasoning_content": "hm"}, USER]},
    chat(unknown={"deep": [[[[1]]]]}, seed=7, tools=[], response_format={"type": "text"}),
]


class OneEngine(SocketTest):
    """A gateway in front of one good engine."""

    engine: MockEngine
    gateway: RunningGateway

    @classmethod
    def setUpClass(cls) -> None:
        cls.engine = mock_engine()
        cls.addClassCleanup(cls.engine.close)
        manager = gateway(ENGINES=engines(_13b=cls.engine.url))
        cls.gateway = manager.__enter__()
        cls.addClassCleanup(manager.__exit__, None, None, None)

    def asked(self) -> dict[str, Any]:
        """The last request that the engine has seen."""
        return self.engine.requests[-1]


class Validation(OneEngine):
    def assert_refused(self, path: str, body: Any, code: str, param: Any) -> None:
        with self.subTest(path=path, body=body if not isinstance(body, bytes) else body[:80]):
            before = self.engine.stats()["requests"]
            response = self.client.post(body, path)
            self.assertEqual((response.status, response.error), (400, code), response.body)
            error = response.json()
            self.assertEqual(error["param"], param)
            self.assertTrue(error["message"])
            self.assertEqual(error["request_id"], response.request_id)
            self.assertEqual(self.engine.stats()["requests"], before)

    def setUp(self) -> None:
        self.client = self.enter(self.gateway.connect())

    def test_a_faulty_chat_is_refused_by_name_on_a_connection_that_goes_on(self) -> None:
        for body, code, param in FAULTY_CHATS:
            body = json.dumps(body).encode() if isinstance(body, str) else body
            self.assert_refused(CHAT, body, code, param)
        self.assertEqual(self.client.post().status, 200)

    def test_a_good_chat_reaches_the_engine(self) -> None:
        for body in GOOD_CHATS:
            with self.subTest(body=body):
                before = self.engine.stats()["requests"]
                response = self.client.post(body)
                self.assertEqual(response.status, 200, response.body)
                self.assertEqual(self.engine.stats()["requests"], before + 1)

    def test_a_faulty_completion_is_refused(self) -> None:
        for prompt in (None, 7, [], {}, True, ["a", 1], [1, "a"], [[]], [[1], "a"], [["a"]], [True], [1.5]):
            self.assert_refused(COMPLETIONS, {"prompt": prompt}, "invalid_prompt", "prompt")
        self.assert_refused(COMPLETIONS, {}, "invalid_prompt", "prompt")
        for field, value, code in (
            ("model", 7, "invalid_model"),
            ("stream", "x", "invalid_stream"),
            ("max_tokens", 0, "invalid_max_tokens"),
            ("temperature", 3, "invalid_temperature"),
            ("top_p", 2, "invalid_top_p"),
            ("stop", 7, "invalid_stop"),
            ("n", 0, "invalid_n"),
        ):
            self.assert_refused(COMPLETIONS, {"prompt": "x", field: value}, code, field)
        self.assert_refused(COMPLETIONS, b"{", "invalid_json", None)

    def test_a_faulty_embedding_is_refused(self) -> None:
        for value in (None, "", 7, [], {}, ["a", 1], [[]], [1.5]):
            self.assert_refused(EMBEDDINGS, {"input": value}, "invalid_input", "input")
        self.assert_refused(EMBEDDINGS, {}, "invalid_input", "input")
        self.assert_refused(EMBEDDINGS, {"input": "x", "model": 7}, "invalid_model", "model")
        self.assert_refused(EMBEDDINGS, {"input": "x", "stream": True}, "invalid_stream", "stream")
        self.assert_refused(EMBEDDINGS, b"[]", "invalid_body", None)

    def test_an_embedding_with_null_fields_is_answered(self) -> None:
        response = self.client.post({"input": "x", "model": None, "stream": None}, EMBEDDINGS)
        self.assertEqual(response.status, 200, response.body)

    def test_an_unknown_model_is_404_and_named(self) -> None:
        for path, body in ((CHAT, HI), (COMPLETIONS, {"prompt": "x"}), (EMBEDDINGS, {"input": "x"})):
            with self.subTest(path=path):
                response = self.client.post({**body, "model": "nope"}, path)
                self.assertEqual((response.status, response.error), (404, "model_not_found"))
                self.assertEqual(response.json()["param"], "model")
                self.assertIn("nope", response.json()["message"])

    def test_a_content_type_other_than_json_is_415(self) -> None:
        body = json.dumps(HI).encode()
        for kind, status in (
            ("application/json", 200),
            ("application/json; charset=utf-8", 200),
            ("APPLICATION/JSON", 200),
            ("text/plain", 415),
            ("application/x-www-form-urlencoded", 415),
            ("multipart/form-data; boundary=x", 415),
        ):
            with self.subTest(kind=kind):
                head = f"POST {CHAT} HTTP/1.1\r\nHost: g\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
                self.client.send(head.encode() + body)
                response = self.client.read_response()
                self.assertEqual(response.status, status)
                if status == 415:
                    self.assertEqual(response.error, "unsupported_media_type")

    def test_a_compressed_body_is_415(self) -> None:
        response = self.gateway.post(headers=[("Content-Encoding", "gzip")])
        self.assertEqual((response.status, response.error), (415, "unsupported_media_type"))

    def test_a_body_without_a_content_type_is_taken_for_json(self) -> None:
        body = json.dumps(HI).encode()
        self.client.send(f"POST {CHAT} HTTP/1.1\r\nHost: g\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        self.assertEqual(self.client.read_response().status, 200)


class Answers(OneEngine):
    def test_the_answer_has_openai_shape(self) -> None:
        response = self.gateway.post()
        self.assertEqual(response.header("content-type"), "application/json")
        answer = response.json()
        self.assertEqual(answer["object"], "chat.completion")
        (choice,) = answer["choices"]
        self.assertEqual(choice["index"], 0)
        self.assertEqual(choice["finish_reason"], "stop")
        self.assertEqual(choice["message"]["role"], "assistant")
        self.assertIn("hi there", choice["message"]["content"])
        usage = answer["usage"]
        self.assertEqual(usage["total_tokens"], usage["prompt_tokens"] + usage["completion_tokens"])
        self.assertEqual(usage["prompt_tokens"], 2)

    def test_engine_fields_beyond_the_shape_are_kept(self) -> None:
        answer = self.gateway.post().json()
        self.assertEqual(answer["system_fingerprint"], f"mock-{self.engine.port}")
        self.assertIs(type(answer["created"]), int)

    def test_several_choices_are_all_kept(self) -> None:
        self.assertEqual(len(self.gateway.post({**HI, "n": 3}).json()["choices"]), 3)

    def test_supported_and_unknown_fields_reach_the_engine_untouched(self) -> None:
        fields = {
            **HI,
            "model": "13b",
            "max_tokens": 50,
            "max_completion_tokens": 60,
            "temperature": 0.25,
            "top_p": 0.125,
            "stop": ["x1", "x2"],
            "n": 2,
            "seed": 12345678901234567890,
            "logit_bias": {"50256": -100},
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
            "unknown": {"nested": [1, 2.5, None, True, 'é \\ " \u2028']},
            "user": None,
        }
        self.assertEqual(self.gateway.post(fields).status, 200)
        self.assertEqual(self.asked()["body"], fields)
        self.assertEqual(self.asked()["path"], CHAT)

    def test_a_body_that_needs_no_change_arrives_byte_for_byte(self) -> None:
        body = b' {"model" : "13b",\n "messages":[{"role":"user","content":"\\u00e9 \xc3\xa9"}], "seed": 1.50e1 } '
        self.assertEqual(self.gateway.post(body).status, 200)
        self.assertEqual(self.asked()["body_bytes"], len(body))
        self.assertEqual(self.asked()["body"]["messages"][0]["content"], "é é")

    def test_a_missing_model_is_filled_in_for_the_engine(self) -> None:
        answer = self.gateway.post(HI).json()
        self.assertEqual(answer["model"], "13b")
        self.assertEqual(self.asked()["body"]["messages"], HI["messages"])
        self.assertEqual(self.asked()["body"].get("model"), "13b")

    def test_an_empty_or_null_model_means_the_default(self) -> None:
        for model in ("", None):
            self.assertEqual(self.gateway.post({**HI, "model": model}).json()["model"], "13b")

    def test_every_inference_answer_says_how_it_came_about(self) -> None:
        for path, body in ((CHAT, HI), (COMPLETIONS, {"prompt": "x"}), (EMBEDDINGS, {"input": "x"})):
            for stream in (False, True) if path != EMBEDDINGS else (False,):
                with self.subTest(path=path, stream=stream), self.gateway.connect() as client:
                    client.request("POST", path, {**body, "stream": stream})
                    head = client.read_head()
                    self.assertEqual(head.status, 200)
                    self.assertEqual(head.header("x-gateway-engine"), f"127.0.0.1:{self.engine.port}")
                    self.assertEqual(head.header("x-gateway-model"), "13b")
                    self.assertEqual(head.header("x-gateway-attempts"), "1")
                    self.assertIsNone(head.header("x-gateway-fallback"))
                    timing = head.header("server-timing") or ""
                    number = r";dur=[0-9]+(\.[0-9]+)?"
                    self.assertRegex(timing, f"^queue{number}, engine{number}, gateway{number}$")

    def test_a_completion_has_openai_shape(self) -> None:
        answer = self.gateway.post({"prompt": "once upon"}, COMPLETIONS).json()
        self.assertEqual(answer["object"], "text_completion")
        self.assertIn("once upon", answer["choices"][0]["text"])
        self.assertEqual(answer["usage"]["prompt_tokens"], 2)
        self.assertEqual(self.asked()["path"], COMPLETIONS)

    def test_every_kind_of_prompt_is_taken(self) -> None:
        for prompt, choices in (("x", 1), (["x", "y"], 2), ([1, 2, 3], 1), ([[1, 2], [3]], 2), ("", 1)):
            with self.subTest(prompt=prompt):
                response = self.gateway.post({"prompt": prompt}, COMPLETIONS)
                self.assertEqual(response.status, 200, response.body)
                self.assertEqual(len(response.json()["choices"]), choices)

    def test_a_completion_can_be_streamed(self) -> None:
        with self.gateway.connect() as client:
            client.request("POST", COMPLETIONS, {"prompt": "once upon", "stream": True})
            self.assertEqual(client.read_head().header("content-type"), "text/event-stream")
            events = client.read_events()
            self.assertEqual(events[-1], "data: [DONE]")
            text = "".join(c["text"] for event in events[:-1] for c in chunk_of(event)["choices"])
            self.assertIn("once upon", text)

    def test_embeddings_have_openai_shape(self) -> None:
        answer = self.gateway.post({"input": ["one", "two"], "dimensions": 4}, EMBEDDINGS).json()
        self.assertEqual(answer["object"], "list")
        self.assertEqual(answer["model"], "13b")
        self.assertEqual([entry["index"] for entry in answer["data"]], [0, 1])
        self.assertTrue(all(len(entry["embedding"]) == 4 for entry in answer["data"]))
        self.assertEqual(answer["usage"]["prompt_tokens"], 2)
        self.assertEqual(answer["usage"]["total_tokens"], 2)
        self.assertEqual(self.asked()["path"], EMBEDDINGS)

    def test_large_answers_and_requests_pass(self) -> None:
        text = "word " * 100_000
        response = self.gateway.post({"messages": [{"role": "user", "content": text}]})
        self.assertEqual(response.status, 200)
        self.assertIn(text, response.json()["choices"][0]["message"]["content"])


class RequestIds(OneEngine):
    def assert_id_everywhere(self, headers: list[tuple[str, str]], expected: str) -> None:
        response = self.gateway.post(headers=headers)
        self.assertEqual(response.request_id, expected)
        self.assertEqual(response.json()["id"], expected)
        self.assertEqual(self.asked()["headers"]["x-request-id"], expected)
        self.assertEqual(self.gateway.request_line(expected)["status"], 200)

    def test_an_acceptable_id_is_taken_over_everywhere(self) -> None:
        for index, text in enumerate(("a", "abc-123_X.y:z/+=", "q" * 128)):
            with self.subTest(text=text):
                self.assert_id_everywhere([("X-Request-ID", text)], text)
                self.assert_id_everywhere([("Request-Id", f"r{index}")], f"r{index}")

    def test_x_request_id_goes_before_request_id(self) -> None:
        self.assert_id_everywhere([("Request-Id", "second"), ("X-Request-ID", "first")], "first")
        self.assert_id_everywhere([("X-Request-ID", "not fit!"), ("Request-Id", "fit")], "fit")

    def test_an_unfit_id_is_replaced_by_a_uuid4(self) -> None:
        for text in ("", "a b", "q" * 129, "é", 'a"b', "a,b", "<script>", "a\tb"):
            with self.subTest(text=text):
                response = self.gateway.post(headers=[("X-Request-ID", text)])
                self.assertEqual(uuid.UUID(response.request_id).version, 4)
                self.assertEqual(response.json()["id"], response.request_id)
                self.assertEqual(self.asked()["headers"]["x-request-id"], response.request_id)

    def test_made_up_ids_differ(self) -> None:
        self.assertEqual(len({self.gateway.post().request_id for _ in range(20)}), 20)

    def test_every_response_carries_it_errors_included(self) -> None:
        for method, path, body in (
            ("GET", "/healthz", None),
            ("GET", "/metrics", None),
            ("GET", "/nope", None),
            ("PUT", CHAT, None),
            ("OPTIONS", CHAT, None),
            ("POST", CHAT, b"{"),
            ("POST", CHAT, {**HI, "model": "nope"}),
        ):
            with self.subTest(method=method, path=path):
                response = self.gateway.ask(method, path, body, [("X-Request-ID", "my-id")])
                self.assertEqual(response.request_id, "my-id")
                if response.status >= 400:
                    self.assertEqual(response.json()["request_id"], "my-id")

    def test_a_stream_carries_it_in_its_header(self) -> None:
        with self.gateway.connect() as client:
            client.request("POST", CHAT, {**HI, "stream": True}, [("X-Request-ID", "stream-1")])
            self.assertEqual(client.read_head().request_id, "stream-1")
            client.read_events()
        self.assertEqual(self.asked()["headers"]["x-request-id"], "stream-1")


class Usage(SocketTest):
    def test_missing_figures_are_estimated_at_four_characters_a_token(self) -> None:
        engine = self.enter(mock_engine(behaviour="no_usage"))
        running = self.enter(gateway(ENGINES=engines(_13b=engine.url)))
        response = running.post({"messages": [{"role": "user", "content": "x" * 40}]})
        answer = response.json()
        text = answer["choices"][0]["message"]["content"]
        expected = {"prompt_tokens": 10, "completion_tokens": -(-len(text) // 4)}
        self.assertEqual(answer["usage"], {**expected, "total_tokens": sum(expected.values())})
        line = running.request_line(response.request_id)
        self.assertIs(line["usage_estimated"], True)
        self.assertEqual({key: line[key] for key in expected}, expected)

    def test_the_engines_figures_are_used_where_there_are_any(self) -> None:
        engine = self.enter(mock_engine())
        running = self.enter(gateway(ENGINES=engines(_13b=engine.url)))
        response = running.post()
        line = running.request_line(response.request_id)
        self.assertIs(line["usage_estimated"], False)
        self.assertEqual(line["prompt_tokens"], response.json()["usage"]["prompt_tokens"])
        self.assertEqual(line["completion_tokens"], response.json()["usage"]["completion_tokens"])


class Names(SocketTest):
    def start(self, models: dict[str, Any], **variables: object) -> RunningGateway:
        directory = self.enter(tempfile.TemporaryDirectory())
        path = Path(directory) / "engines.json"
        path.write_text(json.dumps({"models": models}), "utf-8")
        return self.enter(gateway(ENGINES_FILE=path, **variables))

    def test_the_client_sees_the_gateways_name_and_the_engine_its_own(self) -> None:
        engine = self.enter(mock_engine(model="llama-3.3-70b-instruct"))
        own = {"url": engine.url, "model": "llama-3.3-70b", "id": "big one"}
        running = self.start({"70b": {"engines": [{**own, "id": "big-one"}], "aliases": ["big"]}})
        for asked in ("70b", "big", None):
            with self.subTest(asked=asked):
                response = running.post({**HI, "model": asked})
                self.assertEqual(response.json()["model"], "70b")
                self.assertEqual(response.header("x-gateway-model"), "70b")
                self.assertEqual(response.header("x-gateway-engine"), "big-one")
                self.assertEqual(engine.requests[-1]["body"]["model"], "llama-3.3-70b")

    def test_default_model_answers_requests_that_name_none(self) -> None:
        small, large = self.enter(mock_engine("7b")), self.enter(mock_engine("70b"))
        running = self.start({"7b": {"engines": [small.url]}, "70b": {"engines": [large.url]}}, DEFAULT_MODEL="70b")
        self.assertEqual(running.post().json()["model"], "70b")
        self.assertEqual(small.stats()["requests"], 0)

    def test_a_fallback_is_told_and_can_be_forbidden(self) -> None:
        engine = self.enter(mock_engine())
        running = self.start({"70b": {"engines": [dead_url()]}, "13b": {"engines": [engine.url]}})
        response = running.post({**HI, "model": "70b"})
        self.assertEqual(response.json()["model"], "13b")
        self.assertEqual(response.header("x-gateway-fallback"), "70b->13b")
        self.assertEqual(response.header("x-gateway-model"), "13b")
        self.assertEqual(response.header("x-gateway-attempts"), "2")
        forbidden = running.post({**HI, "model": "70b"}, headers=[("X-Gateway-Fallback", "off")])
        self.assertEqual((forbidden.status, forbidden.error), (502, "backend_unavailable"))

    def test_one_engine_serves_every_name_with_backend_url(self) -> None:
        engine = self.enter(mock_engine())
        for url in (engine.url, engine.url[: -len("/v1")]):
            running = self.enter(gateway(BACKEND_URL=url))
            response = running.post({**HI, "model": "any/name:at-all"})
            self.assertEqual(response.json()["model"], "any/name:at-all")
            self.assertEqual(engine.requests[-1]["body"]["model"], "any/name:at-all")
            self.assertEqual(engine.requests[-1]["path"], CHAT)

    def test_a_name_of_any_characters_cannot_break_the_headers(self) -> None:
        engine = self.enter(mock_engine())
        running = self.enter(gateway(BACKEND_URL=engine.url))
        for name in ("a\r\nX-Evil: 1", "é漢字", "\ud800", "x" * 5_000, '"\\', "\x00"):
            with self.subTest(name=name[:20]):
                response = running.post({**HI, "model": name})
                self.assertEqual(response.status, 200)
                self.assertIsNone(response.header("x-evil"))
                self.assertEqual(response.json()["model"], name)


class Echo(SocketTest):
    def setUp(self) -> None:
        self.gateway = self.enter(gateway())

    def content(self, messages: list[dict[str, Any]]) -> str:
        answer = self.gateway.post({"messages": messages}).json()
        content = answer["choices"][0]["message"]["content"]
        assert isinstance(content, str)
        return content

    def test_the_last_user_message_comes_back(self) -> None:
        self.assertEqual(self.content([{"role": "user", "content": "what is python"}]), "Echo: what is python")
        self.assertEqual(
            self.content(
                [
                    {"role": "system", "content": "be kind"},
                    {"role": "user", "content": "first"},
                    {"role": "assistant", "content": "answer"},
                    {"role": "user", "content": "last é漢字"},
                    {"role": "assistant", "content": "more"},
                ]
            ),
            "Echo: last é漢字",
        )

    def test_the_texts_of_typed_parts_come_back(self) -> None:
        parts = [{"type": "text", "text": "one"}, {"type": "image_url", "image_url": {}}, {"type": "text", "text": "2"}]
        content = self.content([{"role": "user", "content": parts}])
        self.assertTrue(re.fullmatch(r"Echo: one\s?2", content), content)

    def test_without_a_user_message_there_is_nothing_to_echo(self) -> None:
        self.assertEqual(self.content([{"role": "system", "content": "x"}]).strip(), "Echo:")

    def test_it_has_the_shape_of_any_answer(self) -> None:
        response = self.gateway.post({**HI, "model": "gpt-4o"})
        answer = response.json()
        self.assertEqual(answer["id"], response.request_id)
        self.assertEqual(answer["object"], "chat.completion")
        self.assertEqual(answer["model"], "gpt-4o")
        self.assertEqual(answer["choices"][0]["finish_reason"], "stop")
        usage = answer["usage"]
        self.assertGreater(usage["prompt_tokens"], 0)
        self.assertEqual(usage["total_tokens"], usage["prompt_tokens"] + usage["completion_tokens"])
        self.assertEqual(response.header("x-gateway-attempts"), "1")

    def test_it_streams(self) -> None:
        with self.gateway.connect() as client:
            client.request("POST", CHAT, {**HI, "stream": True})
            self.assertEqual(client.read_head().header("content-type"), "text/event-stream")
            events = client.read_events()
            self.assertEqual(events[-1], "data: [DONE]")
            self.assertEqual(content_of(events), "Echo: hi there")
            reasons = [c["finish_reason"] for e in events[:-1] for c in chunk_of(e)["choices"]]
            self.assertEqual([reason for reason in reasons if reason], ["stop"])
            self.assertEqual(client.post().status, 200)

    def test_completions_and_embeddings_answer_too(self) -> None:
        completion = self.gateway.post({"prompt": "once"}, COMPLETIONS).json()
        self.assertEqual(completion["choices"][0]["text"], "Echo: once")
        embeddings = self.gateway.post({"input": ["a", "b"]}, EMBEDDINGS).json()
        first, second = (entry["embedding"] for entry in embeddings["data"])
        self.assertNotEqual(first, second)
        again = self.gateway.post({"input": "a"}, EMBEDDINGS).json()
        self.assertEqual(again["data"][0]["embedding"], first)

    def test_a_list_of_prompts_gets_a_choice_each(self) -> None:
        answer = self.gateway.post({"prompt": ["one", "two"]}, COMPLETIONS).json()
        self.assertEqual([choice["text"] for choice in answer["choices"]], ["Echo: one", "Echo: two"])

    def test_an_engine_of_type_echo_stands_beside_others(self) -> None:
        engine = self.enter(mock_engine())
        running = self.enter(gateway(ENGINES=f"13b={engine.url};echo=echo:"))
        answer = running.post({**HI, "model": "echo"}).json()
        self.assertEqual(answer["choices"][0]["message"]["content"], "Echo: hi there")
        self.assertEqual(answer["model"], "echo")
        self.assertEqual(engine.stats()["requests"], 0)


if __name__ == "__main__":
    unittest.main()
