"""Answers that are kept and given again, over sockets: to whom, for how long, which ones, and what is told of it."""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
import threading
import unittest
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Callable, Optional
from unittest import mock

from gateway import clock
from gateway.configuration import ConfigurationError
from gateway.mock import answers as mock_answers
from gateway.reuse.answerfile import AnswerFile
from gateway.settings import reload
from tests.access import ADMIN_KEYS, AS_ROOT, SECRET, AccessTest, ask, bearer, token
from tests.scripted import DONE, STREAM_HEAD, ScriptedEngine, chunked, delta
from tests.support import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    TIMEOUT_S,
    Header,
    Response,
    RunningGateway,
    chunk_of,
    content_of,
    dead_url,
    eventually,
    load_settings,
    run_main,
)

PRICE = {"input": 1_000.0, "output": 2_000.0}
RESULT = "x-gateway-cache"
STATS, CLEAR, QUERY = "/api/v1/cache/stats", "/api/v1/cache/clear", "/query"
WITH_USAGE: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
ON: list[Header] = [("X-Gateway-Cache", "on")]


def fixed(text: str = "hi there", model: Optional[str] = "m", **options: Any) -> dict[str, Any]:
    """A chat request whose answer is always the same."""
    return ask(text, model, **{"temperature": 0, **options})


def said(answer: Response) -> str:
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


def control(value: str) -> list[Header]:
    return [("Cache-Control", value)]


def completion(finish: str = "stop", **message: Any) -> bytes:
    """A scripted engine's answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": "four", **message}, "finish_reason": finish}
    usage = {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}
    return json.dumps({"id": "a", "model": "m", "choices": [choice], "usage": usage}).encode()


class CacheTest(AccessTest):
    """A gateway with CACHE=on before a mock engine, whose model has a price."""

    def setUp(self) -> None:
        super().setUp()
        self.mock = self.engine()
        self.fleet: dict[str, dict[str, Any]] = {"m": {"engines": [self.mock.url], "price": PRICE}}

    def cached(self, **variables: object) -> RunningGateway:
        return self.serve(self.fleet, **{"CACHE": "on", **variables})

    def turn(self) -> mock.Mock:
        """Stop the wall clock; the test moves it by setting `return_value`."""
        stopped = mock.Mock(return_value=1_800_000_000.0)
        patcher = mock.patch.object(clock, "_read", stopped)
        patcher.start()
        self.addCleanup(patcher.stop)
        return stopped

    @property
    def asked(self) -> int:
        """Requests that the engine has got."""
        return int(self.mock.stats()["requests"])

    def entries(self, running: RunningGateway) -> int:
        caches = running.app.caches
        assert caches is not None
        return len(caches.store)

    def wait_for_entries(self, running: RunningGateway, count: int) -> None:
        """What a stream has said is put together after its end, on a thread."""
        eventually(lambda: self.entries(running) == count)

    def result(self, answer: Response) -> Optional[str]:
        self.assertEqual(answer.status, 200, answer.body)
        return answer.header(RESULT)

    def results(
        self, running: RunningGateway, *bodies: dict[str, Any], path: str = CHAT, headers: Iterable[Header] = ()
    ) -> list[Optional[str]]:
        """What the cache did for these requests, one after the other."""
        return [self.result(running.post(body, path, headers)) for body in bodies]

    def stream(self, running: RunningGateway, body: dict[str, Any], path: str = CHAT) -> tuple[Response, list[str]]:
        """The head of a streamed answer and its events."""
        with running.connect() as client:
            client.request("POST", path, body)
            head = client.read_head()
            self.assertEqual((head.status, head.header("content-type")), (200, "text/event-stream"))
            return head, client.read_events()

    def reload(self, running: RunningGateway, fleet: Mapping[str, Any]) -> None:
        self.file("engines.json", {"models": fleet})
        running.app.reload(reload(running.app.settings, {}, None))

    def clear(
        self, running: RunningGateway, body: Optional[dict[str, Any]] = None, headers: Iterable[Header] = (AS_ROOT,)
    ) -> int:
        answer = running.ask("POST", CLEAR, body, headers)
        self.assertEqual(answer.status, 200, answer.body)
        cleared: int = answer.json()["cleared"]
        self.assertEqual(answer.json(), {"cleared": cleared})
        return cleared


class HitTest(CacheTest):
    def test_an_answer_is_given_again_under_its_own_id_for_nothing(self) -> None:
        running = self.cached()
        first, second = running.post(fixed()), running.post(fixed())
        self.assertEqual((self.result(first), self.result(second)), ("miss", "hit"))
        self.assertEqual((first.header("age"), second.header("age")), (None, "0"))
        self.assertEqual((first.header("x-gateway-attempts"), second.header("x-gateway-attempts")), ("1", "0"))
        self.assertEqual(first.header("x-gateway-engine"), f"127.0.0.1:{self.mock.port}")
        self.assertIsNone(second.header("x-gateway-engine"))
        self.assertIsNone(second.header("x-gateway-cache-similarity"))
        self.assertEqual(second.header("x-gateway-model"), "m")
        self.assertGreater(float(first.header("x-gateway-cost-usd") or 0), 0)
        self.assertEqual(second.header("x-gateway-cost-usd"), "0.000000000")
        self.assertNotEqual(first.request_id, second.request_id)
        self.assertEqual((first.json()["id"], second.json()["id"]), (first.request_id, second.request_id))
        self.assertEqual({**first.json(), "id": ""}, {**second.json(), "id": ""})
        self.assertEqual(self.asked, 1)
        self.assertEqual(self.entries(running), 1)

    def test_an_id_that_the_client_has_chosen_stands_in_the_answer(self) -> None:
        running = self.cached()
        for number in range(3):
            answer = running.post(fixed(), headers=[("X-Request-ID", f"own-{number}")])
            self.assertEqual((answer.json()["id"], answer.request_id), (f"own-{number}", f"own-{number}"))
        self.assertEqual(self.asked, 1)

    def test_an_answer_that_speaks_of_ids_comes_unchanged(self) -> None:
        running = self.cached()
        text = 'say "id":"own-0" and {"id":"own-0"}'
        first = running.post(fixed(text), headers=[("X-Request-ID", "own-0")])
        second = running.post(fixed(text), headers=[("X-Request-ID", "own-1")])
        self.assertEqual((self.result(second), said(second)), ("hit", said(first)))
        self.assertEqual(second.json()["id"], "own-1")

    def test_it_is_as_old_as_the_header_says_and_goes_with_its_time(self) -> None:
        now = self.turn()
        running = self.cached(CACHE_TTL=60)
        self.assertEqual(self.results(running, fixed()), ["miss"])
        now.return_value += 59.5
        hit = running.post(fixed())
        self.assertEqual((self.result(hit), hit.header("age")), ("hit", "59"))
        now.return_value += 1
        self.assertEqual(self.result(running.post(fixed())), "miss")  # a hit has not made it younger
        hit = running.post(fixed())
        self.assertEqual((self.result(hit), hit.header("age"), self.asked), ("hit", "0", 2))

    def test_a_clock_that_is_set_back_makes_no_negative_age(self) -> None:
        now = self.turn()
        running = self.cached()
        self.assertEqual(self.results(running, fixed()), ["miss"])
        now.return_value -= 100
        hit = running.post(fixed())
        self.assertEqual((self.result(hit), hit.header("age")), ("hit", "0"))

    def test_only_what_is_deterministic_is_kept(self) -> None:
        running = self.cached()
        for options in ({}, {"temperature": 0.7}, {"temperature": 1, "top_p": 0}, {"seed": None}):
            with self.subTest(options):
                self.assertEqual(self.results(running, *[ask("a", "m", **options)] * 2), ["bypass", "bypass"])
        self.assertEqual((self.entries(running), self.asked), (0, 8))
        for options in ({"seed": 0}, {"seed": 7, "temperature": 1.5}, {"temperature": 0.0}):
            with self.subTest(options):
                self.assertEqual(self.results(running, *[ask("b", "m", **options)] * 2), ["miss", "hit"])

    def test_a_request_may_say_that_it_is_deterministic_or_not_for_the_cache(self) -> None:
        running = self.cached()
        body = ask(model="m")
        for value, expected in (("on", "miss"), ("ON", "hit"), ("off", "bypass"), ("on", "hit"), ("maybe", "bypass")):
            self.assertEqual(self.result(running.post(body, headers=[("X-Gateway-Cache", value)])), expected, value)
        self.assertEqual(self.results(running, body), ["bypass"])
        off: list[Header] = [("X-Gateway-Cache", "off")]
        self.assertEqual(self.results(running, fixed(), headers=off), ["bypass"])
        self.assertEqual(self.results(running, fixed()), ["miss"])
        self.assertEqual(self.results(running, fixed(), headers=off), ["bypass"])
        self.assertEqual(self.entries(running), 2)

    def test_cache_control_is_honoured(self) -> None:
        now = self.turn()
        running = self.cached()
        self.assertEqual(self.results(running, fixed(), headers=control("no-store")), ["bypass"])
        self.assertEqual(self.entries(running), 0)
        self.assertEqual(self.results(running, fixed(), headers=control("no-cache")), ["bypass"])
        self.assertEqual(self.results(running, fixed()), ["hit"])
        self.assertEqual(self.results(running, fixed(), headers=control("no-store")), ["bypass"])
        now.return_value += 30
        hit = running.post(fixed(), headers=control("max-age=30"))
        self.assertEqual((self.result(hit), hit.header("age")), ("hit", "30"))
        self.assertEqual(self.results(running, fixed(), headers=control("private, Max-Age=29")), ["miss"])
        self.assertEqual(running.post(fixed()).header("age"), "0")  # the new answer is kept
        now.return_value += 10
        self.assertEqual(self.results(running, fixed(), headers=control("foo, No-Cache")), ["bypass"])
        self.assertEqual(running.post(fixed()).header("age"), "0")
        self.assertEqual(self.asked, 5)

    def test_several_lines_of_cache_control_are_one(self) -> None:
        running = self.cached()
        self.assertEqual(self.results(running, fixed()), ["miss"])
        both = [*control("max-age=100"), *control("no-store")]
        self.assertEqual(self.results(running, fixed(), headers=both), ["bypass"])

    def test_max_age_that_says_nothing_is_no_limit(self) -> None:
        now = self.turn()
        running = self.cached()
        self.assertEqual(self.results(running, fixed()), ["miss"])
        now.return_value += 30
        for value in ("max-age", "max-age=", "max-age=soon", "max-age=-1", "", "max-age=" + "9" * 40):
            with self.subTest(value):
                self.assertEqual(self.results(running, fixed(), headers=control(value)), ["hit"])

    def test_with_the_cache_off_nothing_of_it_is_told(self) -> None:
        running = self.serve(self.fleet, ADMIN_KEYS=ADMIN_KEYS)
        for _ in range(2):
            answer = running.post(fixed(), headers=[AS_ROOT, *ON])
            self.assertIsNone(self.result(answer))
            self.assertIsNone(answer.header("age"))
            self.assertEqual(answer.header("x-gateway-attempts"), "1")
        self.assertEqual(self.asked, 2)
        line = running.request_line(answer.request_id)
        self.assertEqual([key for key in line if key in ("cache", "saved_tokens", "similarity", "coalesced")], [])
        stats = running.get(STATS, [AS_ROOT]).json()
        self.assertEqual(set(stats.values()), {0})
        self.assertEqual(self.clear(running), 0)
        samples = [name for name in running.metrics() if name.startswith("gateway_cache_requests_total")]
        self.assertEqual(samples, [])

    def test_the_least_recently_used_go_when_there_is_no_room(self) -> None:
        running = self.cached(CACHE_MAX_BYTES=65_536)
        a, b, c, d = (fixed(name + " word" * 3_600) for name in "abcd")  # 18 kB each
        self.assertEqual(self.results(running, a, b, c, a), ["miss", "miss", "miss", "hit"])
        self.assertEqual(self.results(running, d), ["miss"])  # in the place of b
        self.assertEqual(self.results(running, a, c, d), ["hit"] * 3)
        self.assertEqual(self.results(running, b), ["miss"])  # in the place of a
        self.assertEqual(self.results(running, a), ["miss"])
        self.assertEqual(self.entries(running), 3)
        samples = running.metrics()
        self.assertEqual((samples["gateway_cache_entries"], samples["gateway_cache_evictions_total"]), (3, 3))
        self.assertTrue(54_000 < samples["gateway_cache_bytes"] <= 65_536)

    def test_what_is_too_large_drives_nothing_out(self) -> None:
        running = self.cached(CACHE_MAX_BYTES=65_536)
        large = fixed("word " * 20_000)
        self.assertEqual(self.results(running, fixed(), large, large, fixed()), ["miss", "miss", "miss", "hit"])
        self.assertEqual((self.entries(running), running.metrics()["gateway_cache_evictions_total"]), (1, 0))

    def test_a_hit_needs_no_engine(self) -> None:
        running = self.cached(RETRY_ATTEMPTS=1)
        self.assertEqual(self.results(running, fixed()), ["miss"])
        self.mock.control("refuse", seconds=1_000)
        self.assertEqual(self.results(running, fixed()), ["hit"])
        self.assertEqual(running.post(fixed("other")).status, 502)

    def test_a_hit_needs_no_place(self) -> None:
        running = self.cached(WORKERS=1, QUEUE_SIZE=1)
        self.assertEqual(self.results(running, fixed()), ["miss"])
        self.mock.control("hang")
        for text in ("a", "b"):
            self.begin(running, text=text, model="m")
            self.assertTrue(self.mock.wait_for_requests(2, TIMEOUT_S))
        eventually(lambda: running.app.workers.depth == 1)
        self.assertEqual(running.post(fixed("c")).status, 503)
        self.assertEqual(self.results(running, fixed(), fixed()), ["hit", "hit"])
        self.mock.control("ok")

    def test_browsers_may_read_the_headers_of_it(self) -> None:
        running = self.cached(CORS_ORIGINS="https://app.example")
        answer = running.post(fixed(), headers=[("Origin", "https://app.example")])
        exposed = (answer.header("access-control-expose-headers") or "").split(", ")
        for name in ("X-Gateway-Cache", "X-Gateway-Cache-Similarity", "Age", "X-Gateway-Coalesced"):
            self.assertIn(name, exposed)


class AlikeTest(CacheTest):
    """Which requests are the same one."""

    def test_what_changes_no_answer_makes_no_difference(self) -> None:
        running = self.cached()
        base = fixed(max_tokens=50)
        self.assertEqual(self.results(running, base), ["miss"])
        same: list[dict[str, Any]] = [
            {"user": "anna"},
            {"metadata": {"a": "b"}},
            {"store": False},
            {"temperature": 0.0},
            {"n": 1},
            {"top_p": 1},
            {"presence_penalty": 0, "frequency_penalty": 0.0},
            {"logit_bias": {}},
            {"response_format": {"type": "text"}},
            {"tools": []},
            {"seed": None},
            {"stream": False},
        ]
        for options in same:
            with self.subTest(options):
                self.assertEqual(self.results(running, {**base, **options}), ["hit"])
        self.assertEqual(self.results(running, dict(reversed(list(base.items())))), ["hit"])
        turned = (
            b'{"max_tokens":50,"temperature":0,"messages":[{"content":"hi\\u0020there", "role":"user"}],"model":"m"}'
        )
        self.assertEqual(self.result(running.post(turned)), "hit")
        self.assertEqual(self.asked, 1)

    def test_texts_that_no_bytes_can_hold(self) -> None:
        running = self.cached(CACHE_NEAR="on")
        for path, asked in (
            (CHAT, b'"messages": [{"role": "user", "content": "\\ud800 hi"}]'),
            (COMPLETIONS, b'"prompt": "\\ud800 hi"'),
            (QUERY, b'"query": "\\ud800 hi"'),
            (EMBEDDINGS, b'"input": "\\ud800 hi"'),
        ):
            with self.subTest(path):
                body = b'{"model": "m", "temperature": 0, %b}' % asked
                answers = [running.post(body, path) for _ in range(2)]
                self.assertEqual([self.result(answer) for answer in answers], ["miss", "hit"])

    def test_all_else_does(self) -> None:
        running = self.cached()
        base = fixed(max_tokens=50)
        others: list[dict[str, Any]] = [
            base,
            {**base, "max_tokens": 51},
            {**base, "max_completion_tokens": 50},
            {**base, "seed": 1},
            {**base, "n": 2},
            {**base, "top_p": 0.5},
            {**base, "stop": "x"},
            {**base, "stop": ["x"]},
            {**base, "response_format": {"type": "json_object"}},
            {**base, "logprobs": True},
            {**base, "an_engine_s_own": 1},
            {**base, "an_engine_s_own": True},
            {**base, "an_engine_s_own": "1"},
            {**base, "messages": [{"role": "system", "content": "hi there"}]},
            {**base, "messages": [{"role": "user", "content": "hi  there"}]},
            {**base, "messages": [{"role": "user", "content": "hi there", "name": "bob"}]},
            {**base, "messages": [{"role": "user", "content": "hi"}, {"role": "user", "content": "there"}]},
        ]
        self.assertEqual(self.results(running, *others), ["miss"] * len(others))
        self.assertEqual(self.results(running, *others), ["hit"] * len(others))

    def test_an_alias_or_no_name_at_all_is_the_same_model(self) -> None:
        other = self.engine(model="other")
        self.fleet["m"]["aliases"] = ["chat", "default"]
        self.fleet["other"] = {"engines": [other.url]}
        running = self.cached(DEFAULT_MODEL="m")
        bodies = [fixed(model=name) for name in ("chat", "m", "default", None, "other")]
        self.assertEqual(self.results(running, *bodies), ["miss", "hit", "hit", "hit", "miss"])
        hit = running.post(fixed(model="default"))
        self.assertEqual((hit.header("x-gateway-model"), hit.json()["model"]), ("m", "m"))

    def test_where_one_engine_serves_every_name_each_name_is_a_model(self) -> None:
        running = self.enter_plain(self.mock.url)
        bodies = [fixed(model=name) for name in ("a", "b", "a")]
        self.assertEqual(self.results(running, *bodies), ["miss", "miss", "hit"])

    def enter_plain(self, url: str) -> RunningGateway:
        return self.serve(None, BACKEND_URL=url, CACHE="on")


class NeverKeptTest(CacheTest):
    def assert_never(self, running: RunningGateway, body: dict[str, Any], path: str = CHAT) -> None:
        """Asked for twice, the engine is asked twice."""
        before = self.asked
        for _ in range(2):
            with running.connect() as client:
                client.request("POST", path, body)
                head = client.read_head()
                self.assertEqual(head.header(RESULT) if head.status == 200 else "miss", "miss")
                if body.get("stream"):
                    with contextlib.suppress(AssertionError):
                        client.read_events()
            eventually(lambda: not running.app.pipeline.in_flight)
        self.assertGreaterEqual(self.asked - before, 2)

    def assert_empty(self, running: RunningGateway) -> None:
        """Also after a stream that has ended since, whose answer is put together behind these."""
        self.mock.control("ok")
        self.stream(running, fixed("the last one", stream=True))
        self.wait_for_entries(running, 1)

    def test_errors_and_broken_answers(self) -> None:
        running = self.cached(RETRY_ATTEMPTS=1, BREAKER_MIN_REQUESTS=1_000_000)
        for behaviour in (
            *("error", "malformed", "truncate", "drop_mid_stream", "end_mid_stream", "reset_mid_stream"),
            *("bad_request", "error_first_event", "unauthorized"),
        ):
            self.mock.control(behaviour)
            for options in ({}, {"stream": True}, WITH_USAGE):
                with self.subTest(behaviour, **options):
                    self.assert_never(running, fixed(behaviour, **options))
                    self.assertEqual(self.entries(running), 0)
        self.assert_empty(running)

    def test_what_was_cut_off_at_its_length(self) -> None:
        running = self.cached()
        for field in ("max_tokens", "max_completion_tokens"):
            for options in ({}, {"stream": True}, {"n": 2}):
                with self.subTest(field, **options):
                    self.assert_never(running, {**fixed(), field: 2, **options})
        self.assert_never(running, {"model": "m", "prompt": "one two", "temperature": 0, "max_tokens": 2}, COMPLETIONS)
        self.assert_empty(running)

    def test_what_an_engine_filtered_refused_or_called(self) -> None:
        engine = self.enter(ScriptedEngine())
        self.fleet = {"m": {"engines": [engine.url]}}
        running = self.cached()
        call = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
        for body in (
            completion("tool_calls", tool_calls=call, content=None),
            completion("stop", tool_calls=call),
            completion("stop", function_call={"name": "f", "arguments": "{}"}),
            completion("content_filter"),
            completion("length"),
            completion("stop", refusal="I will not"),
            completion("stop", content=""),
            completion("stop", content=None),
        ):
            with self.subTest(body.decode()[:120]):
                self.assertEqual(self.scripted(running, engine, body), "miss")
        self.assertEqual(self.entries(running), 0)
        self.assertEqual(self.scripted(running, engine, completion()), "miss")
        self.assertEqual(self.results(running, fixed()), ["hit"])

    def scripted(self, running: RunningGateway, engine: ScriptedEngine, body: bytes) -> Optional[str]:
        """What the cache did for a request that the engine answers with this."""
        client = self.enter(running.connect())
        client.request("POST", CHAT, fixed())
        side = engine.take()
        side.answer(body)
        side.close()
        return self.result(client.read_response())

    def test_streams_that_an_engine_filtered_cut_or_called_in(self) -> None:
        engine = self.enter(ScriptedEngine())
        self.fleet = {"m": {"engines": [engine.url]}}
        running = self.cached()
        call = {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}]}
        calls = b"data: " + json.dumps({"choices": [{"index": 0, "delta": call, "finish_reason": None}]}).encode()
        ends = {
            "calls": calls + b"\n\n" + delta("", "tool_calls"),
            "calls and stops": calls + b"\n\n" + delta("", "stop"),
            "filtered": delta("fo") + delta("ur", "content_filter"),
            "cut": delta("fo") + delta("ur", "length"),
            "empty": delta("", "stop"),
        }
        for name, events in ends.items():
            with self.subTest(name):
                self.streamed(running, engine, events + DONE)
                self.assertEqual(self.entries(running), 0)
        self.streamed(running, engine, delta("fo") + delta("ur", "stop") + DONE)
        self.wait_for_entries(running, 1)
        answer = running.post(fixed())
        self.assertEqual((self.result(answer), said(answer)), ("hit", "four"))

    def streamed(self, running: RunningGateway, engine: ScriptedEngine, events: bytes) -> None:
        client = self.enter(running.connect())
        client.request("POST", CHAT, fixed(stream=True))
        side = engine.take()
        side.send(STREAM_HEAD + chunked(events) + b"0\r\n\r\n")
        head = client.read_head()
        self.assertEqual((head.status, head.header(RESULT)), (200, "miss"))
        self.assertEqual(client.read_events()[-1], "data: [DONE]")
        side.close()

    def test_what_a_fallback_has_answered(self) -> None:
        self.fleet["large"] = {"engines": [dead_url()], "fallbacks": ["m"]}
        running = self.cached()
        for options in ({}, {}, {"stream": True}, {"stream": True}):
            answer = running.post({**fixed(model="large"), **options})
            self.assertEqual((self.result(answer), answer.header("x-gateway-model")), ("miss", "m"))
            eventually(lambda: not running.app.pipeline.in_flight)
        self.assert_empty(running)
        self.assertEqual(self.results(running, fixed(model="m"), fixed(model="large")), ["miss", "miss"])

    def test_a_stream_that_nobody_has_read_to_its_end(self) -> None:
        running = self.cached()
        with self.mock.hold_after(1) as gate:
            client = self.enter(running.connect())
            client.request("POST", CHAT, fixed(stream=True))
            self.assertTrue(gate.wait_for_held(1, TIMEOUT_S))
            client.read_head()
            client.close()
            self.assertTrue(self.mock.wait_for_cancelled(1, TIMEOUT_S))
        eventually(lambda: not running.app.pipeline.in_flight)
        self.assert_empty(running)
        self.assertEqual(self.results(running, fixed()), ["miss"])

    def test_invalid_requests_and_unknown_models(self) -> None:
        running = self.cached()
        for body, status in ((fixed(model="nope"), 404), ({"model": "m", "temperature": 0}, 400), ([], 400)):
            for _ in range(2):
                answer = running.post(body)
                self.assertEqual((answer.status, answer.header(RESULT)), (status, None))
        self.assertEqual((self.entries(running), self.asked), (0, 0))


class StreamTest(CacheTest):
    def chunks(self, events: list[str]) -> list[dict[str, Any]]:
        """The chunks of a complete stream."""
        self.assertEqual(events[-1], "data: [DONE]")
        self.assertEqual(events.count("data: [DONE]"), 1)
        return [chunk_of(event) for event in events[:-1]]

    def usages(self, events: list[str]) -> list[Any]:
        return [chunk["usage"] for chunk in self.chunks(events) if chunk.get("usage")]

    def test_a_streamed_answer_is_given_whole(self) -> None:
        for options in ({"stream": True}, WITH_USAGE):
            with self.subTest(**options):
                running = self.cached()
                head, events = self.stream(running, fixed(**options))
                self.assertEqual(head.header(RESULT), "miss")
                self.wait_for_entries(running, 1)
                answer = running.post(fixed())
                self.assertEqual((self.result(answer), answer.header("x-gateway-attempts")), ("hit", "0"))
                whole = answer.json()
                self.assertEqual((whole["id"], whole["object"]), (answer.request_id, "chat.completion"))
                self.assertEqual(whole["model"], "m")
                self.assertIsInstance(whole["created"], int)
                choice = whole["choices"][0]
                self.assertEqual(choice["message"], {"role": "assistant", "content": content_of(events)})
                self.assertEqual((choice["index"], choice["finish_reason"]), (0, "stop"))
                self.assertNotIn("delta", choice)
                words = len(content_of(events).split())
                if options is WITH_USAGE:
                    self.assertEqual(whole["usage"], self.usages(events)[0])
                    self.assertEqual(whole["usage"]["completion_tokens"], words)
                line = running.request_line(head.request_id)
                self.assertEqual(whole["usage"]["prompt_tokens"], line["prompt_tokens"])
                self.assertEqual(whole["usage"]["completion_tokens"], line["completion_tokens"])
                running.stop()

    def test_what_is_not_shared_while_it_is_under_way_is_kept_all_the_same(self) -> None:
        running = self.cached(COALESCE="off")
        _, events = self.stream(running, fixed(stream=True))
        self.wait_for_entries(running, 1)
        self.assertEqual(said(running.post(fixed())), content_of(events))
        self.assertEqual(self.results(running, fixed("b"), fixed("b")), ["miss", "hit"])
        self.assertEqual(self.asked, 2)

    def test_a_whole_answer_is_given_as_a_stream(self) -> None:
        running = self.cached()
        whole = running.post(fixed())
        for options in ({"stream": True}, WITH_USAGE, {"stream": True, "stream_options": {"include_usage": False}}):
            with self.subTest(**options):
                head, events = self.stream(running, fixed(**options))
                self.assertEqual((head.header(RESULT), head.header("age")), ("hit", "0"))
                self.assertEqual(head.header("x-gateway-attempts"), "0")
                self.assertIsNone(head.header("x-gateway-engine"))
                self.assertEqual(content_of(events), said(whole))
                chunks = self.chunks(events)
                for chunk in chunks:
                    self.assertEqual((chunk["id"], chunk["object"]), (head.request_id, "chat.completion.chunk"))
                    self.assertEqual((chunk["model"], chunk["created"]), ("m", whole.json()["created"]))
                self.assertEqual(chunks[0]["choices"][0]["delta"]["role"], "assistant")
                reasons = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]]
                self.assertEqual((reasons[-1], set(reasons[:-1])), ("stop", {None}))
                if options is WITH_USAGE:
                    self.assertEqual((chunks[-1]["choices"], chunks[-1]["usage"]), ([], whole.json()["usage"]))
                    self.assertEqual(len(self.usages(events)), 1)
                else:
                    self.assertEqual(self.usages(events), [])
                    self.assertTrue(all(chunk["choices"] for chunk in chunks))
                line = running.request_line(head.request_id)
                self.assertEqual((line["stream"], line["cache"], line["completion_tokens"]), (True, "hit", 0))
        self.assertEqual(self.asked, 1)

    def test_a_stream_is_given_as_a_stream_and_on_a_connection_that_is_kept(self) -> None:
        running = self.cached()
        _, first = self.stream(running, fixed(**WITH_USAGE))
        self.wait_for_entries(running, 1)
        with running.connect() as client:
            for _ in range(3):
                client.request("POST", CHAT, fixed(**WITH_USAGE))
                self.assertEqual(client.read_head().header(RESULT), "hit")
                again = client.read_events()
                self.assertEqual(content_of(again), content_of(first))
                self.assertEqual(self.usages(again), self.usages(first))
                self.assertEqual(client.post(fixed()).header(RESULT), "hit")
            client.assert_quiet()

    def test_what_an_engine_answers_whole_though_a_stream_was_asked_for(self) -> None:
        self.mock.control("plain_json")
        running = self.cached()
        _, events = self.stream(running, fixed(stream=True))
        self.wait_for_entries(running, 1)
        whole = running.post(fixed())
        self.assertEqual((self.result(whole), said(whole)), ("hit", content_of(events)))
        self.assertEqual(whole.json()["object"], "chat.completion")
        self.assertEqual(whole.json()["usage"]["completion_tokens"], len(said(whole).split()))
        _, again = self.stream(running, fixed(**WITH_USAGE))
        self.assertEqual(self.usages(again), [whole.json()["usage"]])

    def test_an_engine_that_reports_no_usage(self) -> None:
        self.mock.control("no_usage")
        running = self.cached()
        head, _ = self.stream(running, fixed(stream=True))
        self.wait_for_entries(running, 1)
        line = running.request_line(head.request_id)
        usage = running.post(fixed()).json()["usage"]
        told = (usage["prompt_tokens"], usage["completion_tokens"])
        self.assertEqual(told, (line["prompt_tokens"], line["completion_tokens"]))
        self.assertEqual(usage["total_tokens"], sum(told))

    def test_both_of_two_choices(self) -> None:
        for first in ({}, {"stream": True}):
            with self.subTest(first=first):
                running = self.cached()
                body = fixed(n=2)
                self.assertEqual(self.result(running.post({**body, **first})), "miss")
                self.wait_for_entries(running, 1)
                whole = running.post(body)
                self.assertEqual(self.result(whole), "hit")
                choices = whole.json()["choices"]
                self.assertEqual(
                    [(choice["index"], choice["finish_reason"]) for choice in choices], [(0, "stop"), (1, "stop")]
                )
                texts = [choice["message"]["content"] for choice in choices]
                head, events = self.stream(running, {**body, "stream": True})
                self.assertEqual(head.header(RESULT), "hit")
                parts = [choice for chunk in self.chunks(events) for choice in chunk["choices"]]
                for index in (0, 1):
                    own = [part for part in parts if part["index"] == index]
                    self.assertEqual("".join(part["delta"].get("content") or "" for part in own), texts[index])
                    self.assertEqual([part["finish_reason"] for part in own if part["finish_reason"]], ["stop"])
                running.stop()

    def test_completions_both_ways(self) -> None:
        running = self.cached()
        body: dict[str, Any] = {"model": "m", "prompt": "once upon", "temperature": 0}
        whole = running.post(body, COMPLETIONS)
        self.assertEqual(self.result(whole), "miss")
        head, events = self.stream(running, {**body, **WITH_USAGE}, COMPLETIONS)
        self.assertEqual(head.header(RESULT), "hit")
        chunks = self.chunks(events)
        self.assertEqual({chunk["object"] for chunk in chunks}, {"text_completion"})
        text = "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])
        self.assertEqual(text, whole.json()["choices"][0]["text"])
        self.assertEqual(self.usages(events), [whole.json()["usage"]])

        other = {**body, "prompt": "twice upon"}
        _, events = self.stream(running, {**other, "stream": True}, COMPLETIONS)
        self.wait_for_entries(running, 2)
        again = running.post(other, COMPLETIONS)
        self.assertEqual((self.result(again), again.json()["object"]), ("hit", "text_completion"))
        text = "".join(choice["text"] for chunk in self.chunks(events) for choice in chunk["choices"])
        self.assertEqual(again.json()["choices"][0]["text"], text)
        self.assertEqual(self.results(running, {**body, "prompt": ["once upon"]}, path=COMPLETIONS), ["miss"])

    def test_embeddings(self) -> None:
        running = self.cached()
        body: dict[str, Any] = {"model": "m", "input": "once upon"}
        packed = {**body, "encoding_format": "base64"}
        others = [{**body, "dimensions": 4}, {**body, "input": ["once upon"]}, {**body, "input": [1, 2]}]
        self.assertEqual(self.results(running, body, packed, *others, path=EMBEDDINGS), ["miss"] * 5)
        self.assertEqual(self.results(running, body, packed, *others, path=EMBEDDINGS), ["hit"] * 5)
        self.assertEqual(self.results(running, {**body, "encoding_format": "float"}, path=EMBEDDINGS), ["hit"])
        self.assertEqual(self.asked, 5)
        vector = running.post(body, EMBEDDINGS).json()["data"][0]["embedding"]
        self.assertEqual(vector, mock_answers._vector("once upon", 8, False))
        self.assertIsInstance(running.post(packed, EMBEDDINGS).json()["data"][0]["embedding"], str)

    def test_queries(self) -> None:
        running = self.cached()
        body: dict[str, Any] = {"query": "What is AI?", "model": "m", "temperature": 0}
        first, second = running.post(body, QUERY), running.post(body, QUERY)
        self.assertEqual((self.result(first), self.result(second)), ("miss", "hit"))
        self.assertEqual(first.json(), second.json())
        self.assertEqual(list(second.json()), ["result"])
        self.assertEqual(self.results(running, {**body, "query": "What is BI?"}, path=QUERY), ["miss"])
        self.assertEqual(self.results(running, {"query": "What is AI?", "model": "m"}, path=QUERY), ["bypass"])
        same = {"model": "m", "prompt": "What is AI?", "temperature": 0}
        completion = running.post(same, COMPLETIONS)
        self.assertEqual(self.result(completion), "miss")  # another shape
        self.assertIn("choices", completion.json())


class KeysTest(CacheTest):
    def test_keys_never_see_each_other_s_answers(self) -> None:
        running = self.cached()
        alice, bob = self.make(running, "alice"), self.make(running, "bob")
        first = running.post(fixed(), headers=alice)
        second = running.post(fixed(), headers=bob)
        self.assertEqual((self.result(first), self.result(second)), ("miss", "miss"))
        self.assertEqual(self.results(running, fixed(), headers=alice), ["hit"])
        self.assertEqual(self.results(running, fixed(), headers=bob), ["hit"])
        self.assertEqual((self.asked, self.entries(running)), (2, 2))

    def test_nor_those_of_the_settings_nor_a_token_s(self) -> None:
        running = self.cached(API_KEYS="sk-one-0123456789,sk-two-0123456789", ADMIN_KEYS=ADMIN_KEYS, JWT_SECRET=SECRET)
        callers = [bearer("sk-one-0123456789"), bearer("sk-two-0123456789"), [AS_ROOT], bearer(token(sub="tina"))]
        for headers in (*callers, bearer(token(sub="otto"))):
            self.assertEqual(self.results(running, fixed(), fixed(), headers=headers), ["miss", "hit"])
        self.assertEqual(self.asked, 5)

    def test_a_token_that_a_key_was_exchanged_for_is_that_key(self) -> None:
        running = self.cached(JWT_SECRET="x" * 32)
        key = self.make(running)
        self.assertEqual(self.results(running, fixed(), headers=key), ["miss"])
        issued = bearer(running.ask("POST", "/auth/token", None, key).json()["token"])
        self.assertEqual(self.results(running, fixed(), headers=issued), ["hit"])

    def test_they_do_when_the_operator_says_so(self) -> None:
        running = self.cached(CACHE_SCOPE="global")
        alice, bob = self.make(running, "alice", budget_usd=1.0), self.make(running, "bob", budget_usd=1.0)
        self.assertEqual(self.results(running, fixed(), headers=alice), ["miss"])
        hit = running.post(fixed(), headers=bob)
        self.assertEqual((self.result(hit), hit.json()["id"]), ("hit", hit.request_id))
        budgets = running.app.guard.budgets
        self.assertGreater(budgets.spent_usd("alice"), 0)
        self.assertEqual(budgets.spent_usd("bob"), 0)

    def test_a_key_gets_nothing_of_a_model_that_it_may_not_use(self) -> None:
        self.fleet["secret"] = {"engines": [self.mock.url]}
        running = self.cached(CACHE_SCOPE="global")
        boss, clerk = self.make(running, "boss"), self.make(running, "clerk", models=("m",))
        self.assertEqual(self.results(running, fixed(model="secret"), fixed(), headers=boss), ["miss", "miss"])
        refused = running.post(fixed(model="secret"), headers=clerk)
        self.assert_error(refused, 403, "forbidden")
        self.assertIsNone(refused.header(RESULT))
        self.assertEqual(self.results(running, fixed(), headers=clerk), ["hit"])
        self.assert_error(running.post(fixed(), headers=bearer("sk-unknown")), 401, "unauthorized")

    def test_a_hit_is_a_request_but_no_tokens_and_no_cost(self) -> None:
        running = self.cached()
        self.freeze(running)
        key = self.make(running, rpm=100, tpm=10_000, budget_usd=10.0)
        miss = running.post(fixed(max_tokens=100), headers=key)
        spent = running.app.guard.budgets.spent_usd("alice")
        tokens = int(running.post(fixed(max_tokens=100), headers=key).header("x-ratelimit-remaining-tokens") or 0)
        hits = [running.post(fixed(max_tokens=100), headers=key) for _ in range(3)]
        self.assertEqual([self.result(hit) for hit in hits], ["hit"] * 3)
        left = [int(hit.header("x-ratelimit-remaining-requests") or -1) for hit in (miss, *hits)]
        self.assertEqual(left, [9, 7, 6, 5])
        self.assertEqual({hit.header("x-ratelimit-remaining-tokens") for hit in hits}, {str(tokens)})
        self.assertEqual(running.app.guard.budgets.spent_usd("alice"), spent)
        self.assert_idle(running)

    def test_a_limit_and_a_spent_budget_hold_for_hits_too(self) -> None:
        running = self.cached()
        self.freeze(running)
        limited, poor = self.make(running, "limited", rpm=20), self.make(running, "poor", budget_usd=0.001)
        self.assertEqual(self.results(running, fixed(), fixed(), headers=limited), ["miss", "hit"])
        self.assert_error(running.post(fixed(), headers=limited), 429, "rate_limit_exceeded")
        self.assertEqual(self.results(running, fixed(), headers=poor), ["miss"])
        self.assert_error(running.post(fixed(), headers=poor), 429, "budget_exceeded")


class ReloadTest(CacheTest):
    def test_other_engines_and_prices_leave_answers(self) -> None:
        running = self.cached()
        self.assertEqual(self.results(running, fixed()), ["miss"])
        other = self.engine(model="m")
        model = {"engines": [other.url], "price": {"input": 1.0, "output": 1.0}, "aliases": ["new"]}
        self.reload(running, {"m": model})
        self.assertEqual(self.results(running, fixed(), fixed(model="new")), ["hit", "hit"])
        self.assertEqual(other.stats()["requests"], 0)

    def test_a_model_that_is_gone_takes_its_answers_along(self) -> None:
        self.fleet["other"] = {"engines": [self.mock.url]}
        running = self.cached()
        self.assertEqual(self.results(running, fixed(), fixed(model="other")), ["miss", "miss"])
        self.reload(running, {"other": self.fleet["other"]})
        self.assertEqual(self.entries(running), 1)
        self.assertEqual(running.post(fixed()).status, 404)
        self.assertEqual(self.results(running, fixed(model="other")), ["hit"])
        self.reload(running, self.fleet)
        self.assertEqual(self.results(running, fixed(), fixed(), fixed(model="other")), ["miss", "hit", "hit"])

    def test_a_model_that_has_another_name_does_too(self) -> None:
        running = self.cached()
        self.assertEqual(self.results(running, fixed()), ["miss"])
        self.reload(running, {"renamed": {**self.fleet["m"], "aliases": ["m"]}})
        self.assertEqual(self.entries(running), 0)
        self.assertEqual(self.results(running, fixed(), fixed(model="renamed")), ["miss", "hit"])

    def test_an_answer_that_is_under_way_meanwhile_is_not_kept(self) -> None:
        engine = self.enter(ScriptedEngine())
        self.fleet["m"] = {"engines": [engine.url]}
        self.fleet["other"] = {"engines": [self.mock.url]}
        running = self.cached()
        client = self.begin(running, model="m", temperature=0)
        side = engine.take()
        self.reload(running, {"other": self.fleet["other"]})
        side.answer(completion())
        self.assertEqual(self.result(client.read_response()), "miss")
        self.assertEqual(self.entries(running), 0)


class PagesTest(CacheTest):
    def cached(self, **variables: object) -> RunningGateway:
        return super().cached(**{"ADMIN_KEYS": ADMIN_KEYS, **variables})

    def test_the_figures(self) -> None:
        running = self.cached()
        first = running.post(fixed(), headers=[AS_ROOT])
        self.results(running, fixed(), fixed(), fixed("other"), ask(model="m"), headers=[AS_ROOT])
        stats = running.get(STATS, [AS_ROOT])
        self.assertEqual((stats.status, stats.header("content-type")), (200, "application/json"))
        tokens = first.json()["usage"]["total_tokens"]
        usd = float(first.header("x-gateway-cost-usd") or 0)
        found = stats.json()
        self.assertTrue(1_000 < found["bytes"] < 10_000)
        expected: dict[str, Any] = {"entries": 2, "bytes": found["bytes"], "hits": 2, "near_hits": 0, "misses": 2}
        self.assertEqual(
            {**found, "saved_usd": 0}, {**expected, "evictions": 0, "saved_tokens": 2 * tokens, "saved_usd": 0}
        )
        self.assertAlmostEqual(found["saved_usd"], 2 * usd, places=9)

    def test_metrics_and_log_lines(self) -> None:
        running = self.cached()
        key = self.make(running)
        miss, hit = running.post(fixed(), headers=key), running.post(fixed(), headers=key)
        bypass = running.post(ask(model="m"), headers=key)
        tokens = miss.json()["usage"]["total_tokens"]
        running.wait_for_metric('gateway_cache_requests_total{model="m",result="bypass"}', 1)
        samples = running.metrics()
        for result in ("hit", "miss", "bypass"):
            self.assertEqual(samples[f'gateway_cache_requests_total{{model="m",result="{result}"}}'], 1)
        self.assertEqual(samples['gateway_saved_tokens_total{model="m"}'], tokens)
        self.assertEqual(samples["gateway_cache_entries"], 1)
        self.assertGreater(samples["gateway_cache_bytes"], 500)
        line = running.request_line(hit.request_id)
        self.assertEqual(
            (line["cache"], line["saved_tokens"], line["attempts"], line["cost_usd"]), ("hit", tokens, 0, 0)
        )
        self.assertEqual((line["prompt_tokens"], line["completion_tokens"], line.get("engine")), (0, 0, None))
        self.assertEqual((line["model"], line["key"], line["status"]), ("m", "alice", 200))
        self.assertAlmostEqual(line["saved_usd"], float(miss.header("x-gateway-cost-usd") or 0), places=9)
        line = running.request_line(miss.request_id)
        self.assertEqual((line["cache"], line["attempts"], line.get("saved_tokens")), ("miss", 1, None))
        self.assertEqual(running.request_line(bypass.request_id)["cache"], "bypass")

    def test_one_that_waits_for_another_s_call_is_a_miss_and_coalesced(self) -> None:
        engine = self.enter(ScriptedEngine())
        self.fleet["m"]["engines"] = [engine.url]
        running = self.cached()
        clients = [self.enter(running.connect()) for _ in range(3)]
        clients[0].request("POST", CHAT, fixed(), [AS_ROOT])
        side = engine.take()
        for client in clients[1:]:
            client.request("POST", CHAT, fixed(), [AS_ROOT])
        reuse = running.app.pipeline.reuse
        eventually(lambda: sum(len(flight.followers) for flight in reuse.flights._by_key.values()) == 2)
        side.answer(completion())
        answers = [client.read_response() for client in clients]
        self.assertEqual([self.result(answer) for answer in answers], ["miss"] * 3)
        coalesced = [answer.header("x-gateway-coalesced") for answer in answers]
        self.assertEqual(coalesced, [None, "true", "true"])
        self.assertEqual([answer.json()["id"] for answer in answers], [answer.request_id for answer in answers])
        self.assertEqual(
            [answer.header("x-gateway-cost-usd") != "0.000000000" for answer in answers], [True, False, False]
        )
        line = running.request_line(answers[1].request_id)
        self.assertEqual((line["cache"], line["coalesced"], line["cost_usd"]), ("miss", True, 0))
        self.assertEqual((line["prompt_tokens"], line["completion_tokens"]), (0, 0))
        running.request_line(answers[2].request_id)
        self.assertEqual(running.wait_for_metric('gateway_coalesced_total{model="m"}', 2), 2)
        self.assertEqual(self.results(running, fixed(), headers=[AS_ROOT]), ["hit"])
        self.assertTrue(engine.nobody_waits())

    def test_who_may(self) -> None:
        running = self.cached()
        user = self.make(running, "user")
        viewer = self.make(running, "viewer", role="viewer")
        self.assertEqual(running.get(STATS, [AS_ROOT]).status, 200)
        self.assertEqual(running.get(STATS, viewer).status, 200)
        self.assert_error(running.get(STATS, user), 403, "forbidden")
        self.assert_error(running.get(STATS), 401, "unauthorized")
        self.assertEqual(self.results(running, fixed(), headers=user), ["miss"])
        for headers, status in ((user, 403), (viewer, 403), ([], 401)):
            self.assertEqual(running.ask("POST", CLEAR, None, headers).status, status)
        self.assertEqual(self.results(running, fixed(), headers=user), ["hit"])
        refusals = eventually(lambda: self.audit(running, "permission_refused"))
        self.assertEqual({line["path"] for line in refusals} <= {STATS, CLEAR}, True)

    def test_cleared_by_model_key_and_age(self) -> None:
        now = self.turn()
        self.fleet["other"] = {"engines": [self.mock.url], "aliases": ["alias"]}
        running = self.cached()
        alice, bob = self.make(running, "alice"), self.make(running, "bob")

        def fill() -> None:
            self.clear(running)
            for headers in (alice, bob):
                self.results(running, fixed(), fixed(model="other"), headers=headers)
            now.return_value += 100
            self.results(running, fixed("young"), headers=alice)
            self.assertEqual(self.entries(running), 5)

        for wanted, cleared in (
            (None, 5),
            ({}, 5),
            ({"model": None}, 5),
            ({"model": "m"}, 3),
            ({"model": "nope"}, 0),
            ({"key": "bob"}, 2),
            ({"key": "b"}, 0),
            ({"older_than_s": 50}, 4),
            ({"older_than_s": 99.5}, 4),
            ({"older_than_s": 101}, 0),
            ({"model": "m", "key": "alice", "older_than_s": 1}, 1),
        ):
            with self.subTest(wanted):
                fill()
                self.assertEqual(self.clear(running, wanted), cleared)
                self.assertEqual(self.entries(running), 5 - cleared)
        fill()
        self.clear(running, {"key": "bob"})
        self.assertEqual(self.results(running, fixed(), headers=alice), ["hit"])
        self.assertEqual(self.results(running, fixed(), headers=bob), ["miss"])

    def test_a_body_that_makes_no_sense_is_400_and_names_the_field(self) -> None:
        running = self.cached()
        self.results(running, fixed(), headers=[AS_ROOT])
        for body, field in (
            ({"model": 1}, "model"),
            ({"model": ["m"]}, "model"),
            ({"key": {}}, "key"),
            ({"key": "x" * 300}, "key"),
            ({"older_than_s": "1"}, "older_than_s"),
            ({"older_than_s": -1}, "older_than_s"),
            ({"older_than_s": True}, "older_than_s"),
            ({"older_than_s": 1e300}, "older_than_s"),
            ({"modell": "m"}, "modell"),
            ({"model": "m", "all": True}, "all"),
        ):
            with self.subTest(str(body)):
                answer = running.ask("POST", CLEAR, body, [AS_ROOT])
                self.assert_error(answer, 400, "invalid_body")
                self.assertIn(field, answer.json()["message"])
        for raw in (b"[]", b"7", b"{", b'{"older_than_s": 1e999}', b"\xff"):
            with self.subTest(raw):
                self.assertEqual(running.ask("POST", CLEAR, raw, [AS_ROOT]).status, 400)
        self.assertEqual(self.results(running, fixed(), headers=[AS_ROOT]), ["hit"])

    def test_methods(self) -> None:
        running = self.cached()
        self.results(running, fixed(), headers=[AS_ROOT])
        with running.connect() as client:
            head = client.ask("HEAD", STATS, None, [AS_ROOT])
            self.assertEqual((head.status, head.body), (200, b""))
            self.assertGreater(int(head.header("content-length") or 0), 50)
            client.assert_quiet()
        for path, wrong, allowed in (
            (STATS, ("POST", "DELETE"), "GET, HEAD, OPTIONS"),
            (CLEAR, ("GET", "HEAD", "DELETE"), "POST, OPTIONS"),
        ):
            for method in wrong:
                with self.subTest(path, method=method):
                    answer = running.ask(method, path, None, [AS_ROOT])
                    self.assertEqual((answer.status, answer.header("allow")), (405, allowed))
            answer = running.ask("OPTIONS", path, None, [AS_ROOT])
            self.assertEqual((answer.status, answer.header("allow")), (204, allowed))
        self.assertEqual(running.get("/api/v1/cache/nope", [AS_ROOT]).status, 404)
        self.assertEqual(running.get("/api/v1/cache/", [AS_ROOT]).status, 404)
        self.assertEqual(self.entries(running), 1)

    def test_who_has_cleared_what_is_audited(self) -> None:
        running = self.cached()
        self.results(running, fixed(), headers=[AS_ROOT])
        self.clear(running, {"model": "m", "older_than_s": 0})
        running.ask("POST", CLEAR, {"model": 7}, [AS_ROOT])
        eventually(lambda: len(self.audit(running, "admin")) == 2)
        done, failed = self.audit(running, "admin")
        told = {name: done.get(name) for name in ("level", "key", "action", "model", "older_than_s", "cleared")}
        expected = {
            "level": "info",
            "key": "root",
            "action": "clear_cache",
            "model": "m",
            "older_than_s": 0,
            "cleared": 1,
        }
        self.assertEqual(told, expected)
        self.assertEqual(
            (failed["level"], failed["action"], failed["error"]), ("warning", "clear_cache", "invalid_body")
        )
        self.assertNotIn("cleared", failed)


class FileTest(CacheTest):
    def setUp(self) -> None:
        super().setUp()
        self.answers = self.directory / "answers.db"

    def cached(self, **variables: object) -> RunningGateway:
        return super().cached(**{"CACHE_DB": self.answers, "ADMIN_KEYS": ADMIN_KEYS, **variables})

    def again(self, running: RunningGateway, entries: int, **variables: object) -> RunningGateway:
        """The gateway after a restart, once it knows what the file has."""
        running.stop()
        other = self.cached(**variables)
        self.wait_for_entries(other, entries)
        return other

    def test_it_outlives_a_restart(self) -> None:
        now = self.turn()
        running = self.cached()
        first = running.post(fixed(), headers=[AS_ROOT])
        embedding = {"model": "m", "input": "once upon"}
        vector = running.post(embedding, EMBEDDINGS, [AS_ROOT]).json()["data"]
        running.post(fixed("streamed", **WITH_USAGE), headers=[AS_ROOT])
        self.wait_for_entries(running, 3)
        running = self.again(running, 3)
        now.return_value += 5
        hit = running.post(fixed(), headers=[AS_ROOT])
        self.assertEqual((self.result(hit), hit.header("age")), ("hit", "5"))
        self.assertEqual({**first.json(), "id": ""}, {**hit.json(), "id": ""})
        self.assertEqual(hit.json()["id"], hit.request_id)
        self.assertEqual(running.post(embedding, EMBEDDINGS, [AS_ROOT]).json()["data"], vector)
        self.assertEqual(self.results(running, fixed("streamed", stream=True), headers=[AS_ROOT]), ["hit"])
        self.assertEqual(self.asked, 3)
        stats = running.get(STATS, [AS_ROOT]).json()
        self.assertEqual((stats["entries"], stats["hits"], stats["misses"]), (3, 3, 0))
        line = running.request_line(hit.request_id)
        self.assertEqual(line["saved_tokens"], first.json()["usage"]["total_tokens"])
        self.assertGreater(line["saved_usd"], 0)

    def test_answers_are_read_when_they_are_asked_for(self) -> None:
        running = self.cached()
        bodies = [fixed(f"question {number}") for number in range(5)]
        self.results(running, *bodies, headers=[AS_ROOT])
        loads: list[bytes] = []
        plain = AnswerFile.load

        def load(file: AnswerFile, key: bytes) -> Any:
            loads.append(key)
            return plain(file, key)

        with mock.patch.object(AnswerFile, "load", load):
            running = self.again(running, 5)
            self.assertEqual(loads, [])
            self.assertEqual(self.results(running, bodies[3], bodies[3], headers=[AS_ROOT]), ["hit", "hit"])
            self.assertEqual(len(loads), 1)

    def test_what_was_cleared_stays_so(self) -> None:
        self.fleet["other"] = {"engines": [self.mock.url]}
        running = self.cached()
        self.results(running, fixed(), fixed(model="other"), fixed("b", "other"), headers=[AS_ROOT])
        running = self.again(running, 3)
        self.assertEqual(self.clear(running, {"model": "m"}), 1)
        running = self.again(running, 2)
        self.assertEqual(self.results(running, fixed(model="other"), headers=[AS_ROOT]), ["hit"])
        self.assertEqual(self.clear(running), 2)
        running = self.again(running, 0)
        self.assertEqual(self.results(running, fixed(), fixed(model="other"), headers=[AS_ROOT]), ["miss", "miss"])

    def test_what_is_cleared_while_the_file_is_read_does_not_come_back(self) -> None:
        self.fleet["other"] = {"engines": [self.mock.url]}
        for wanted in ({"model": "m"}, {}):
            with self.subTest(wanted):
                running = self.cached()
                self.results(running, fixed(), headers=[AS_ROOT])
                running.stop()
                with self.reading_held() as let_go:
                    running = self.cached()
                    self.clear(running, wanted)
                    let_go(running)
                self.assertEqual(self.results(running, fixed(), headers=[AS_ROOT]), ["miss"])
                running.stop()

    @contextlib.contextmanager
    def reading_held(self) -> Iterator[Callable[[RunningGateway], None]]:
        """A gateway begun meanwhile takes its file's answers over only when it is let go, which waits for that."""
        gate = threading.Event()
        plain = AnswerFile.index

        def index(file: AnswerFile) -> Iterator[Any]:
            rows = list(plain(file))
            gate.wait(TIMEOUT_S)
            yield from rows

        def let_go(running: RunningGateway) -> None:
            gate.set()
            caches = running.app.caches
            assert caches is not None
            caches._threads.close(TIMEOUT_S)

        with mock.patch.object(AnswerFile, "index", index):
            try:
                yield let_go
            finally:
                gate.set()

    def test_what_is_too_old_or_of_a_model_that_is_gone_is_not_there(self) -> None:
        now = self.turn()
        running = self.cached()
        self.results(running, fixed("old"), headers=[AS_ROOT])
        now.return_value += 3_000
        self.results(running, fixed("young"), headers=[AS_ROOT])
        now.return_value += 1_000
        running = self.again(running, 1)
        self.assertEqual(self.results(running, fixed("old"), fixed("young"), headers=[AS_ROOT]), ["miss", "hit"])
        self.fleet = {"n": self.fleet["m"]}
        running = self.again(running, 0)
        self.fleet = {"m": self.fleet["n"]}
        running = self.again(running, 0)
        self.assertEqual(self.results(running, fixed("young"), headers=[AS_ROOT]), ["miss"])

    def test_what_is_given_up_for_want_of_room_goes_from_the_file(self) -> None:
        running = self.cached(CACHE_MAX_BYTES=65_536)
        bodies = [fixed(name + " word" * 3_600) for name in "abcd"]
        self.results(running, *bodies, headers=[AS_ROOT])
        running = self.again(running, 3, CACHE_MAX_BYTES=65_536)
        self.assertEqual(self.results(running, *reversed(bodies), headers=[AS_ROOT]), ["hit", "hit", "hit", "miss"])

    def test_an_answer_that_the_file_has_lost_is_asked_for_again(self) -> None:
        running = self.cached()
        self.results(running, fixed(), headers=[AS_ROOT])
        running = self.again(running, 1)
        with contextlib.closing(sqlite3.connect(str(self.answers))) as connection:
            connection.execute("UPDATE answers SET value = x'00'")
            connection.commit()
        self.assertEqual(self.results(running, fixed(), fixed(), headers=[AS_ROOT]), ["miss", "hit"])

    def test_a_file_that_cannot_be_used_is_named_at_start(self) -> None:
        engines = self.file("engines.json", {"models": {"m": {"engines": ["echo:"]}}})
        self.answers.write_bytes(b"no database " * 1_000)
        with contextlib.closing(sqlite3.connect(str(self.directory / "other.db"))) as connection:
            connection.execute("CREATE TABLE mine (a)")
        for path in (self.answers, self.directory / "other.db", self.directory, self.directory / "none" / "answers.db"):
            with self.subTest(path.name):
                status, _, errors = run_main({"ENGINES_FILE": engines, "CACHE": "on", "CACHE_DB": path})
                self.assertNotEqual(status, 0)
                self.assertIn("CACHE_DB", errors)
                self.assertIn(str(path), errors)
                self.assertNotIn("Traceback", errors)


class NearTest(CacheTest):
    """Near duplicates; the embeddings are what the test says."""

    def setUp(self) -> None:
        super().setUp()
        self.vectors: dict[str, list[float]] = {}
        self.embedder = self.engine(model="e")
        self.fleet["e"] = {"engines": [self.embedder.url]}

    def near(self, **variables: object) -> RunningGateway:
        return self.cached(CACHE_NEAR="on", **variables)

    def with_model(self, **variables: object) -> RunningGateway:
        def vector(text: str, size: int, packed: bool) -> list[float]:
            return self.vectors[text]

        self.enter(mock.patch.object(mock_answers, "_vector", vector))
        return self.near(EMBEDDINGS_MODEL="e", **variables)

    def test_another_wording_hits_and_another_question_does_not(self) -> None:
        running = self.near()
        question = "What is the capital of France?"
        self.assertEqual(self.results(running, fixed(question)), ["miss"])
        same = running.post(fixed("what is the capital of France"))
        self.assertEqual(self.result(same), "near")
        self.assertEqual((same.header("age"), same.header("x-gateway-attempts")), ("0", "0"))
        self.assertIsNone(same.header("x-gateway-cache-similarity"))
        self.assertIsNone(same.header("x-gateway-engine"))
        self.assertEqual(same.json()["id"], same.request_id)
        self.assertIn(question, said(same))
        self.assertEqual(self.results(running, fixed(question)), ["hit"])
        for text in (
            "What is the capital of Germany?",
            "What is not the capital of France?",
            "What was the capital of France?",
            "What is the capital of France in 1850?",
            "What is the 'capital' of France?",
            "Was ist die Hauptstadt von Frankreich?",
        ):
            with self.subTest(text):
                self.assertEqual(self.results(running, fixed(text)), ["miss"])
        line = running.request_line(same.request_id)
        self.assertEqual((line["cache"], line["prompt_tokens"], line.get("similarity")), ("near", 0, None))

    def test_only_where_all_else_is_the_same(self) -> None:
        running = self.near()
        system = [{"role": "system", "content": "Be short."}]
        asked, wording = "What is the capital of France?", "what is the capital of France"

        def body(text: str, before: list[dict[str, str]] = system, **options: Any) -> dict[str, Any]:
            return {**fixed(**options), "messages": [*before, {"role": "user", "content": text}]}

        self.assertEqual(self.results(running, body(asked)), ["miss"])
        self.assertEqual(self.results(running, body(wording)), ["near"])
        others = (
            body(wording, []),
            body(wording, [{"role": "system", "content": "Be long."}]),
            body(wording, [*system, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]),
            body(wording, max_tokens=100),
            body(wording, seed=3),
            body(wording, model="e"),
            body(wording, response_format={"type": "json_object"}),
        )
        self.assertEqual(self.results(running, *others), ["miss"] * len(others))
        image = {"type": "image_url", "image_url": {"url": "http://localhost/a.png"}}
        for parts, result in (([], "near"), ([image], "miss")):
            content = [{"type": "text", "text": "what's the capital of France"}, *parts]
            messages = [*system, {"role": "user", "content": content}]
            self.assertEqual(self.result(running.post({**fixed(), "messages": messages})), result)

    def test_keys_do_not_see_each_other_s(self) -> None:
        running = self.near()
        alice, bob = self.make(running, "alice"), self.make(running, "bob")
        self.assertEqual(self.results(running, fixed("What is the capital of France?"), headers=alice), ["miss"])
        wording = fixed("what is the capital of France")
        self.assertEqual(self.results(running, wording, headers=bob), ["miss"])
        self.assertEqual(self.results(running, wording, headers=alice), ["near"])

    def test_max_age_and_time_hold_for_near_ones(self) -> None:
        now = self.turn()
        running = self.near(CACHE_TTL=60)
        asked, wording = fixed("What is the capital of France?"), fixed("what is the capital of France")
        self.assertEqual(self.results(running, asked), ["miss"])
        now.return_value += 50
        near = running.post(wording)
        self.assertEqual((self.result(near), near.header("age")), ("near", "50"))
        self.assertEqual(self.results(running, wording, headers=control("max-age=40")), ["miss"])
        self.assertEqual(self.results(running, wording, headers=control("max-age=40")), ["hit"])
        now.return_value += 61
        self.assertEqual(self.results(running, asked), ["miss"])

    def test_streams_queries_and_completions(self) -> None:
        running = self.near()
        self.assertEqual(self.results(running, fixed("What is the capital of France?")), ["miss"])
        head, events = self.stream(running, fixed("what is the capital of France", **WITH_USAGE))
        self.assertEqual(head.header(RESULT), "near")
        self.assertEqual((events[-1], chunk_of(events[-2])["choices"]), ("data: [DONE]", []))
        for path, field in ((COMPLETIONS, "prompt"), (QUERY, "query")):
            bodies = [
                {"model": "m", "temperature": 0, field: text}
                for text in ("What is the capital of France?", "what is the capital of France")
            ]
            self.assertEqual(self.results(running, *bodies, path=path), ["miss", "near"], path)
        self.assertEqual(self.results(running, {"model": "m", "input": "What is it?"}, path=EMBEDDINGS), ["miss"])
        self.assertEqual(self.results(running, {"model": "m", "input": "what is it"}, path=EMBEDDINGS), ["miss"])

    def test_near_hits_are_counted(self) -> None:
        running = self.near()
        self.results(running, fixed("What is the capital of France?"), fixed("what is the capital of France"))
        sample = 'gateway_cache_requests_total{model="m",result="near"}'
        self.assertEqual(running.wait_for_metric(sample, 1), 1)
        stats = running.get(STATS).json()
        self.assertEqual((stats["hits"], stats["near_hits"], stats["misses"]), (0, 1, 1))
        self.assertGreater(stats["saved_tokens"], 0)

    def test_a_restart_leaves_near_ones(self) -> None:
        db = self.directory / "answers.db"
        running = self.near(CACHE_DB=db)
        self.results(running, fixed("What is the capital of France?"))
        running.stop()
        running = self.near(CACHE_DB=db)
        self.wait_for_entries(running, 1)
        self.assertEqual(self.results(running, fixed("what is the capital of France")), ["near"])

    def test_with_a_model_both_bars_must_be_passed(self) -> None:
        running = self.with_model(CACHE_SIMILARITY=0.9)
        asked, wording, other = "What is the capital of France?", "what is the capital of France", "Where is Paris?"
        self.vectors[asked] = [1.0, 0.0]
        self.vectors[other] = [1.0, 0.0]
        self.assertEqual(self.results(running, fixed(asked)), ["miss"])
        self.assertEqual(self.results(running, fixed(other)), ["miss"])  # alike, but not by its words
        self.vectors[wording] = [0.89, math.sqrt(1 - 0.89**2)]
        self.assertEqual(self.results(running, fixed(wording), headers=control("no-store")), ["bypass"])
        self.assertEqual(self.results(running, fixed(wording, stream=True), headers=control("max-age=1000")), ["miss"])

    def test_with_a_model_the_similarity_is_told(self) -> None:
        running = self.with_model(CACHE_SIMILARITY=0.9)
        asked, wording = "What is the capital of France?", "what is the capital of France"
        self.vectors = {asked: [2.0, 0.0], wording: [0.91, math.sqrt(1 - 0.91**2)]}
        self.assertEqual(self.results(running, fixed(asked)), ["miss"])
        near = running.post(fixed(wording))
        self.assertEqual((self.result(near), near.header("x-gateway-cache-similarity")), ("near", "0.9100"))
        self.assertAlmostEqual(running.request_line(near.request_id)["similarity"], 0.91, places=4)
        self.assertIn(asked, said(near))
        hit = running.post(fixed(asked))
        self.assertEqual((self.result(hit), hit.header("x-gateway-cache-similarity")), ("hit", None))

    def test_without_the_guard_the_similarity_alone_decides(self) -> None:
        running = self.with_model(CACHE_SIMILARITY=0.9, CACHE_GUARD="off")
        self.vectors = {
            "What is the capital of France?": [1.0, 0.0],
            "Name France's seat of government": [0.95, math.sqrt(1 - 0.95**2)],
            "How tall is it?": [0.85, -math.sqrt(1 - 0.85**2)],
            "alone": [0.0, -1.0],
        }
        first, similar, less, alone = (fixed(text) for text in self.vectors)
        self.assertEqual(self.results(running, first), ["miss"])
        near = running.post(similar)
        self.assertEqual((self.result(near), near.header("x-gateway-cache-similarity")), ("near", "0.9500"))
        self.assertEqual(self.results(running, less, alone), ["miss", "miss"])
        self.assertEqual(self.results(running, {**similar, "max_tokens": 77}), ["miss"])
        self.assertEqual(running.get(STATS).json()["near_hits"], 1)

    def test_no_key_s_question_is_compared_with_another_s_but_in_the_global_scope(self) -> None:
        self.vectors = {"What is the capital of France?": [1.0, 0.0], "Name France's seat of government": [1.0, 0.0]}
        asked, similar = (fixed(text) for text in self.vectors)
        for scope, result in (("key", "miss"), ("global", "near")):
            with self.subTest(scope):
                running = self.with_model(CACHE_GUARD="off", CACHE_SCOPE=scope)
                alice, bob = self.make(running, f"alice-{scope}"), self.make(running, f"bob-{scope}")
                self.assertEqual(self.results(running, asked, headers=alice), ["miss"])
                self.assertEqual(self.results(running, similar, headers=bob), [result])
                self.assertEqual(self.results(running, similar, headers=alice), ["near"])

    def test_an_embedding_that_cannot_be_had_is_a_miss(self) -> None:
        self.fleet["e"]["fallbacks"] = []
        for guard in ("on", "off"):
            running = self.with_model(CACHE_GUARD=guard, RETRY_ATTEMPTS=1, BREAKER_MIN_REQUESTS=1_000_000)
            asked, wording = "What is the capital of France?", "what is the capital of France"
            self.vectors = {asked: [1.0, 0.0], wording: [1.0, 0.0]}
            self.assertEqual(self.results(running, fixed(asked)), ["miss"])
            for behaviour in ("error", "malformed", "reset", "truncate"):
                with self.subTest(behaviour, guard=guard):
                    self.embedder.control(behaviour)
                    answer = running.post(fixed(wording), headers=control("max-age=1000"))
                    self.assertEqual(self.result(answer), "miss")
                    self.assertIn(wording, said(answer))
                    self.forget_newest(running)
            self.embedder.control("ok")
            odd: tuple[Any, ...] = ([], [0.0, 0.0], [1.0], [math.nan, 1.0], ["x"], "x")
            for vector in odd:
                with self.subTest(vector=vector, guard=guard):
                    self.vectors[wording] = vector
                    self.assertEqual(self.results(running, fixed(wording)), ["miss"])
                    self.forget_newest(running)
            running.stop()

    def test_another_model_s_embedding_says_nothing(self) -> None:
        asked, other = "What is the capital of France?", "How tall is the tower?"
        self.vectors = {asked: [1.0, 0.0], other: [1.0, 0.0]}
        self.fleet["e"]["fallbacks"] = ["m"]
        running = self.with_model(CACHE_GUARD="off", RETRY_ATTEMPTS=1)
        self.assertEqual(self.results(running, fixed(asked)), ["miss"])
        self.embedder.control("error")
        self.assertEqual(self.results(running, fixed(other)), ["miss"])

    def test_a_model_that_hangs_holds_nobody_up(self) -> None:
        with mock.patch("gateway.reuse.building.EMBEDDING_S", 0.3):
            running = self.with_model(WORKERS=2)
            self.embedder.control("hang")
            clients = [self.enter(running.connect()) for _ in range(6)]
            for number, client in enumerate(clients):
                client.request("POST", CHAT, fixed(f"question {number}?"))
            answers = [client.read_response() for client in clients]
        self.assertEqual([a.header("x-gateway-cache") for a in answers], ["miss"] * 6)
        self.assertLessEqual(self.embedder.stats()["requests"], 2)  # as many as there are workers

    def test_who_leaves_does_not_wait_for_an_embedding(self) -> None:
        running = self.with_model()
        self.embedder.control("hang")
        client = self.enter(running.connect())
        client.request("POST", CHAT, fixed("one question"))
        eventually(lambda: self.embedder.stats()["in_flight"] == 1)
        client.close()
        eventually(lambda: self.embedder.stats()["cancelled"] == 1, 2.0)

    def forget_newest(self, running: RunningGateway) -> None:
        """Forget what was kept last, so that it is no exact hit."""
        caches = running.app.caches
        assert caches is not None
        caches.store.forget(list(caches.store.keys())[-1])

    def test_a_client_that_asks_for_embeddings_itself_is_not_asked_about(self) -> None:
        running = self.with_model()
        self.vectors = {"hi": [1.0, 0.0]}
        self.assertEqual(self.results(running, *[{"model": "e", "input": "hi"}] * 2, path=EMBEDDINGS), ["miss", "hit"])
        self.assertEqual(self.embedder.stats()["requests"], 1)

    def test_an_exact_hit_needs_no_embedding(self) -> None:
        running = self.with_model()
        question = "What is the capital of France?"
        self.vectors = {question: [1.0, 0.0]}
        self.assertEqual(self.results(running, *[fixed(question)] * 3), ["miss", "hit", "hit"])
        self.assertEqual(self.embedder.stats()["requests"], 1)


class SettingsTest(unittest.TestCase):
    def faults(self, **variables: object) -> tuple[str, ...]:
        with self.assertRaises(ConfigurationError) as caught:
            load_settings(variables)
        return caught.exception.faults

    def test_what_says_nothing_alone_is_named(self) -> None:
        near = {"CACHE": "on", "CACHE_NEAR": "on"}
        for variables, name in (
            ({"CACHE_NEAR": "on"}, "CACHE_NEAR"),
            ({"CACHE_DB": "answers.db"}, "CACHE_DB"),
            ({"CACHE": "on", "CACHE_GUARD": "off"}, "CACHE_GUARD"),
            ({**near, "CACHE_GUARD": "off"}, "CACHE_GUARD"),
            ({**near, "ENGINES": "m=echo:", "EMBEDDINGS_MODEL": "e"}, "EMBEDDINGS_MODEL"),
        ):
            with self.subTest(**variables):
                faults = self.faults(**variables)
                self.assertEqual(len(faults), 1, faults)
                self.assertTrue(faults[0].startswith(f"{name}: "), faults)

    def test_values_out_of_range_are_named(self) -> None:
        for name, value in (
            ("CACHE", "yes please"),
            ("CACHE_TTL", 0),
            ("CACHE_MAX_BYTES", 1),
            ("CACHE_SCOPE", "all"),
            ("CACHE_SIMILARITY", 1.5),
            ("CACHE_NEAR", 2),
            ("COALESCE", "perhaps"),
        ):
            with self.subTest(name):
                faults = self.faults(**{"CACHE": "on", "CACHE_NEAR": "on", name: value})
                self.assertTrue(any(fault.startswith(f"{name}: ") for fault in faults), faults)

    def test_what_goes_together_is_taken(self) -> None:
        settings = load_settings(
            {"CACHE": "on", "CACHE_NEAR": "on", "CACHE_GUARD": "off", "ENGINES": "e=echo:", "EMBEDDINGS_MODEL": "e"}
        )
        self.assertEqual((settings.cache, settings.cache_guard, settings.embeddings_model), (True, False, "e"))
        self.assertEqual(load_settings({"CACHE": "on", "CACHE_TTL": 2}).cache_ttl_s, 2.0)


if __name__ == "__main__":
    unittest.main()
