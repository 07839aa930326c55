"""What must stay in a region leaves it by no way: every engine elsewhere notes what it gets, and gets nothing of it.

A request that must stay says so in its text (SECRET) and in its id (`stay-…`), which its parts, its batch and all its
attempts carry. When a test has ended, no engine outside has seen either.
"""

from __future__ import annotations

import base64
import itertools
import json
import threading
import unittest
from collections.abc import Iterable
from random import Random
from typing import Any, Callable, Optional
from unittest import mock

from gateway.mock.server import MockEngine
from gateway.rescue import Onward
from gateway.reuse.caches import Caches
from gateway.reuse.store import AnswerStore
from gateway.routing.pool import ModelPool
from gateway.routing.regions import within
from gateway.settings import reload
from gateway.steps import Flag
from tests.access import ADMIN_KEYS, AS_ROOT, AccessTest, ask, bearer, token
from tests.access import SECRET as JWT_SECRET
from tests.support import CHAT, COMPLETIONS, EMBEDDINGS, Header, Response, RunningGateway, eventually

SECRET = "the patients are"
FORM = "multipart/form-data; boundary=xyz"
FIELDS = (("model", ""), ("file", '; filename="a.wav"'))
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
SHAPE = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA, "strict": True}}
INFERENCE, QUERY = "/api/v1/inference", "/query"


class StayTest(AccessTest):
    """Engines in eu, engines abroad. What is sent by `stay` must stay in eu."""

    def setUp(self) -> None:
        super().setUp()
        self._numbers = itertools.count(1)
        self.outside: list[MockEngine] = []
        self.addCleanup(self.look_outside)

    def at(self, region: Optional[str], behaviour: str = "ok", **more: Any) -> dict[str, Any]:
        """One mock engine there, as the engines file names it."""
        own = {key: more.pop(key) for key in ("lacks", "after", "delay", "retry_after", "times") if key in more}
        engine = self.engine(behaviour, **own)
        if region is None or not within(region.lower(), "eu"):
            self.outside.append(engine)
        self.last = engine
        return {"url": engine.url, **({} if region is None else {"region": region}), **more}

    def elsewhere(self, **more: Any) -> list[dict[str, Any]]:
        """Engines that are glad of whatever they get."""
        return [self.at("us", **more), self.at(None, **more), self.at("europe", **more)]

    def look_outside(self) -> None:
        for engine in self.outside:
            for seen in engine.requests:
                self.assertFalse(seen["headers"].get("x-request-id", "").startswith("stay-"), seen)
                self.assertNotIn(SECRET, json.dumps(seen["body"]), seen)

    def stay(
        self,
        running: RunningGateway,
        body: Any = None,
        path: str = CHAT,
        headers: Iterable[Header] = (),
        by: str = "eu",
    ) -> Response:
        """A request that must stay. `by`: the header that says so; "": its key does."""
        said = [("X-Gateway-Residency", by)] if by else []
        own = [*headers, *said, ("X-Request-ID", f"stay-{next(self._numbers)}")]
        return running.post(ask(SECRET, "m") if body is None else body, path, own)

    def assert_stayed(self, answer: Response, *engines: dict[str, Any]) -> None:
        """It was answered by one of these engines."""
        self.assertEqual(answer.status, 200, answer.body)
        self.assertIn(f"http://{answer.header('x-gateway-engine')}/v1", [engine["url"] for engine in engines])


class ChoiceTest(StayTest):
    def test_every_endpoint_asks_engines_there_alone(self) -> None:
        home = self.at("eu-west-1", lacks="")
        running = self.serve({"m": {"engines": [*self.elsewhere(lacks=""), home]}}, WORKERS=4)
        messages = [{"role": "user", "content": SECRET}]
        bodies: list[tuple[str, dict[str, Any]]] = [
            (CHAT, ask(SECRET, "m")),
            (CHAT, ask(SECRET, "m", stream=True)),
            (COMPLETIONS, {"model": "m", "prompt": SECRET}),
            (EMBEDDINGS, {"model": "m", "input": SECRET}),
            (QUERY, {"model": "m", "query": SECRET}),
            ("/v1/responses", {"model": "m", "input": SECRET}),
            ("/v1/messages", {"model": "m", "messages": messages, "max_tokens": 9}),
            ("/api/chat", {"model": "m", "messages": messages, "stream": False}),
            ("/api/generate", {"model": "m", "prompt": SECRET, "stream": False}),
            ("/v1/rerank", {"model": "m", "query": SECRET, "documents": [SECRET]}),
            ("/v1/moderations", {"model": "m", "input": SECRET}),
            ("/v1/audio/speech", {"model": "m", "input": SECRET, "voice": "x"}),
            ("/v1/images/generations", {"model": "m", "prompt": SECRET}),
            ("/tokenize", {"model": "m", "content": SECRET}),
            ("/detokenize", {"model": "m", "tokens": [1]}),
        ]
        for path, body in bodies:
            for _ in range(4):  # as many as there are engines: each would have its turn
                answer = self.stay(running, body, path)
                self.assertEqual(answer.status, 200, (path, answer.body))
                self.assertEqual(answer.header("x-gateway-engine"), f"127.0.0.1:{self.port(home)}", path)

    def port(self, engine: dict[str, Any]) -> str:
        return str(engine["url"]).split(":")[2].split("/")[0]

    def test_forms_go_there_alone(self) -> None:
        home = self.at("eu", lacks="")
        running = self.serve({"m": {"engines": [*self.elsewhere(lacks=""), home]}})
        parts = [f'--xyz\r\nContent-Disposition: form-data; name="{n}"{more}\r\n\r\nm\r\n' for n, more in FIELDS]
        form = ("".join(parts) + "--xyz--\r\n").encode()
        lines = ("Host: gateway", f"Content-Type: {FORM}", f"Content-Length: {len(form)}", "X-Gateway-Residency: eu")
        for number in range(4):
            head = ("POST /v1/audio/transcriptions HTTP/1.1", *lines, f"X-Request-ID: stay-{number}", "", "")
            with running.connect() as client:
                client.send("\r\n".join(head).encode() + form)
                self.assert_stayed(client.read_response(), home)

    def test_the_strategy_and_the_own_region_make_no_difference(self) -> None:
        for strategy in ("round_robin", "random", "least_connections", "power_of_two", "latency", "prefix_affinity"):
            for region in ("", "us", "eu", "ap"):
                with self.subTest(strategy, region=region):
                    homes = [self.at("eu-west-1"), self.at("eu")]
                    models = {"m": {"engines": [*self.elsewhere(), *homes], "strategy": strategy}}
                    running = self.serve(models, **({"REGION": region} if region else {}))
                    for _ in range(6):
                        self.assert_stayed(self.stay(running), *homes)

    def test_a_model_without_an_engine_there_is_refused_and_asked_nowhere(self) -> None:
        running = self.serve({"m": {"engines": self.elsewhere()}, "n": {"engines": [self.at("eu")]}})
        answer = self.stay(running)
        self.assert_error(answer, 400, "residency_not_served")
        self.assertEqual(answer.json()["param"], "model")
        self.assertIn("no engine of the model m is in the region eu", answer.json()["message"])
        self.assertIsNone(answer.header("x-gateway-engine"))
        self.assertEqual(running.request_line(answer.request_id)["attempts"], 0)

    def test_an_endpoint_that_only_engines_elsewhere_have_is_not_served(self) -> None:
        home = {**self.at("eu", lacks=""), "endpoints": ["/v1/chat/completions"]}
        running = self.serve({"m": {"engines": [home, *self.elsewhere(lacks="")]}})
        answer = self.stay(running, {"model": "m", "query": SECRET, "documents": [SECRET]}, "/v1/rerank")
        self.assert_error(answer, 400, "endpoint_not_served")
        self.assertEqual(running.post({"model": "m", "query": "q", "documents": ["d"]}, "/v1/rerank").status, 200)
        self.assert_stayed(self.stay(running), home)

    def test_retries_and_the_last_resort_stay(self) -> None:
        homes = [self.at("eu", "error"), self.at("eu", "reset"), self.at("eu")]
        running = self.serve({"m": {"engines": [*homes, *self.elsewhere()]}}, BREAKER_MIN_REQUESTS=1000)
        for _ in range(8):
            self.assert_stayed(self.stay(running), homes[2])
        for engine in running.app.factory.router.pools["m"].engines[:3]:
            running.app.factory.router.pools["m"].record_probe(engine, "gone", 1, 1)
        self.assertIn(self.stay(running).status, (200, 502, 503))

    def test_when_all_there_fail_the_client_is_told_so(self) -> None:
        for behaviour in ("error", "reset", "refuse", "rate_limit", "unauthorized", "malformed", "truncate"):
            with self.subTest(behaviour):
                running = self.serve({"m": {"engines": [self.at("eu", behaviour), *self.elsewhere()]}})
                for stream in (False, True):
                    answer = self.stay(running, ask(SECRET, "m", stream=stream))
                    self.assertFalse(answer.status == 200 and b"[DONE]" in answer.body, answer.body)
                self.assertEqual(running.post(ask("hi", "m")).status, 200)

    def test_a_full_region_is_waited_for_while_another_has_room(self) -> None:
        home = self.at("eu", max_concurrency=1)
        engine = self.last
        running = self.serve({"m": {"engines": [home, self.at("us")]}})
        with engine.hold_after(0) as gate:
            held = threading.Thread(target=self.stay, args=(running, ask(SECRET, "m", stream=True)))
            held.start()
            self.assertTrue(gate.wait_for_held(1, 10))
            answers: list[Response] = []
            waiting = threading.Thread(target=lambda: answers.append(self.stay(running)))
            waiting.start()
            eventually(lambda: running.app.factory.router.pools["m"].waiting == 1)
            self.assertEqual(running.post(ask("hi", "m")).status, 200)
        waiting.join(20)
        held.join(20)
        self.assert_stayed(answers[0], home)
        self.assertEqual(running.app.factory.router.pools["m"].waiting, 0)


class SecondWayTest(StayTest):
    def test_hedges_stay(self) -> None:
        homes = [self.at("eu", "slow", delay=0.15), self.at("eu", "slow", delay=0.15)]
        model = {"hedge_after_ms": 10, "hedge_ratio": 1.0, "engines": [homes[0], *self.elsewhere(), homes[1]]}
        running = self.serve({"m": model})
        for stream in (False, True, False, True):
            answer = self.stay(running, ask(SECRET, "m", stream=stream))
            self.assert_stayed(answer, *homes)
            self.assertTrue(running.request_line(answer.request_id)["hedged"])

    def test_with_one_engine_there_nothing_is_hedged(self) -> None:
        home = self.at("eu", "slow", delay=0.1)
        model = {"hedge_after_ms": 10, "hedge_ratio": 1.0, "engines": [home, *self.elsewhere()]}
        running = self.serve({"m": model})
        answer = self.stay(running)
        self.assert_stayed(answer, home)
        self.assertNotIn("hedged", running.request_line(answer.request_id))

    def test_a_broken_stream_goes_on_there_or_not_at_all(self) -> None:
        for both in (True, False):
            with self.subTest(both=both):
                homes = [self.at("eu", "drop_mid_stream", after=2, resume=True, times=1)]
                homes += [self.at("eu", resume=True)] if both else []
                abroad = self.elsewhere(resume=True)
                running = self.serve({"m": {"engines": [homes[0], *abroad, *homes[1:]]}})
                body = ask(f"{SECRET} one two three four", "m", stream=True)
                with running.connect() as client, mock.patch("gateway.dispatch.Onward", wraps=Onward) as onward:
                    client.request("POST", CHAT, body, [("X-Gateway-Residency", "eu"), ("X-Request-ID", "stay-r")])
                    self.assertEqual(client.read_head().status, 200)
                    events = client.read_events()
                self.assertEqual(events[-1] == "data: [DONE]", both, events)
                line = running.request_line("stay-r")
                self.assertEqual(onward.call_args[0][2], "eu")  # what it may leave a hung engine for
                self.assertEqual((line.get("resumed"), line["attempts"]), (1, 2) if both else (None, 1))

    def test_fallbacks_stay(self) -> None:
        models = {
            "m": {"engines": [self.at("eu", "error")], "fallbacks": ["abroad", "home"]},
            "abroad": {"engines": self.elsewhere()},
            "home": {"engines": [*self.elsewhere(), self.at("eu")]},
        }
        running = self.serve(models)
        answer = self.stay(running)
        self.assertEqual((answer.status, answer.header("x-gateway-fallback")), (200, "m->home"))

    def test_a_model_that_is_not_there_has_not_failed_so_only_its_own_list_stands_in(self) -> None:
        models: dict[str, Any] = {"m": {"engines": self.elsewhere()}, "home": {"engines": [self.at("eu")]}}
        self.assert_error(self.stay(self.serve(models)), 400, "residency_not_served")
        models["m"]["fallbacks"] = ["home"]
        running = self.serve(models)
        answer = self.stay(running)
        self.assertEqual((answer.status, answer.header("x-gateway-fallback")), (200, "m->home"))
        off = self.stay(running, headers=[("X-Gateway-Fallback", "off")])
        self.assert_error(off, 400, "residency_not_served")

    def test_what_is_too_long_goes_to_a_larger_model_there(self) -> None:
        models: dict[str, Any] = {
            "m": {"engines": [self.at("eu")], "max_model_len": 50, "context_fallbacks": ["abroad", "large"]},
            "abroad": {"engines": self.elsewhere(), "max_model_len": 10_000},
            "large": {"engines": [self.at("eu")], "max_model_len": 10_000},
        }
        running = self.serve(models)
        body = ask(f"{SECRET} " * 60, "m")
        self.assertEqual(self.stay(running, body).header("x-gateway-model"), "large")
        models["m"]["context_fallbacks"] = ["abroad"]
        self.assert_error(self.stay(self.serve(models), body), 400, "context_too_long")

    def test_splits_and_chains_choose_among_those_there(self) -> None:
        models: dict[str, Any] = {
            "abroad": {"engines": self.elsewhere()},
            "home": {"engines": [self.at("eu")]},
            "s": {"split": {"abroad": 99, "home": 1}},
            "c": {"chain": ["abroad", "home"]},
            "n": {"split": {"abroad": 1}},
        }
        running = self.serve(models)
        for name in ("s", "c"):
            for number in range(5):
                answer = self.stay(running, ask(SECRET, name), headers=[("X-Session-ID", f"s{number}")])
                self.assertEqual((answer.status, answer.header("x-gateway-model")), (200, "home"), answer.body)
        self.assert_error(self.stay(running, ask(SECRET, "n")), 400, "residency_not_served")

    def test_an_answer_that_does_not_fit_is_asked_for_again_there(self) -> None:
        home = self.at("eu", "misfit", times=1)
        running = self.serve({"m": {"engines": [*self.elsewhere(), home]}})
        answer = self.stay(running, ask(SECRET, "m", response_format=SHAPE))
        self.assert_stayed(answer, home)
        self.assertEqual(running.request_line(answer.request_id)["schema_retries"], 1)

    def test_what_is_said_in_chat_instead_of_responses_stays(self) -> None:
        home = self.at("eu")  # has chat only
        abroad = [
            {**engine, "endpoints": ["/v1/responses", "/v1/chat/completions"]} for engine in self.elsewhere(lacks="")
        ]
        running = self.serve({"m": {"engines": [*abroad, home]}})
        for _ in range(4):
            answer = self.stay(running, {"model": "m", "input": SECRET}, "/v1/responses")
            self.assert_stayed(answer, home)


class ReloadTest(StayTest):
    def test_an_engine_that_a_reload_moves_abroad_gets_nothing_more(self) -> None:
        engine = self.at("eu")
        running = self.serve({"m": {"engines": [engine]}})
        self.assertEqual(self.stay(running).status, 200)
        self.outside.append(self.last)
        before = len(self.last.requests)
        self.file("engines.json", {"models": {"m": {"engines": [{**engine, "region": "us"}]}}})
        running.app.reload(reload(running.app.settings, {}, None))
        self.assert_error(self.stay(running), 400, "residency_not_served")
        self.assertEqual(len(self.last.requests), before)
        self.outside.remove(self.last)

    def test_what_was_placed_wrongly_is_not_sent(self) -> None:
        """The last look, right before it is sent: as if the engine had moved between the choice and that."""
        running = self.serve({"m": {"engines": [self.at("us"), self.at("eu")]}})
        acquire: Callable[..., Any] = ModelPool.acquire

        def heedless(pool: ModelPool, tried: Any, affinity: bytes, avoid: Any = (), residency: str = "") -> Any:
            return acquire(pool, tried, affinity, avoid, "us" if not tried else residency)

        with mock.patch.object(ModelPool, "acquire", heedless):
            answer = self.stay(running)
        self.assertEqual(answer.status, 200, answer.body)  # another one is asked
        self.assertEqual(answer.header("x-gateway-attempts"), "2")


class TogetherTest(StayTest):
    def test_nothing_is_batched_with_what_may_go_elsewhere(self) -> None:
        running = self.serve(
            {"m": {"engines": [*self.elsewhere(), self.at("eu")]}},
            BATCH_MAX_WAIT_MS=150,
            BATCH_EMBEDDINGS="on",
            WORKERS=20,
        )
        for path, body in (
            (QUERY, lambda text: {"model": "m", "query": text}),
            (EMBEDDINGS, lambda text: {"model": "m", "input": text}),
        ):
            threads = []
            for number in range(12):
                if number % 3 == 0:
                    threads.append(threading.Thread(target=self.stay, args=(running, body(f"{SECRET} {number}"), path)))
                else:
                    free = running.post, (body(f"hi {number}"), path)
                    threads.append(threading.Thread(target=free[0], args=free[1]))
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(20)
        batched = [line for line in running.request_lines() if line.get("batch", 0) > 1]
        self.assertTrue(batched)

    def test_no_call_is_shared_with_what_may_go_elsewhere(self) -> None:
        abroad, home = self.at("us"), self.at("eu")
        running = self.serve({"m": {"engines": [abroad, home], "strategy": "round_robin"}})
        body = ask("the same", "m", temperature=0)
        with self.outside[0].hold_after(0) as gate:
            first = threading.Thread(target=running.post, args=({**body, "stream": True},))
            first.start()
            self.assertTrue(gate.wait_for_held(1, 10))
            with running.connect() as client:
                said = [("X-Gateway-Residency", "eu"), ("X-Request-ID", "stay-f")]
                client.request("POST", CHAT, {**body, "stream": True}, said)
                self.assertEqual(client.read_head().header("x-gateway-engine"), home["url"][7:-3])
                client.read_events()
        first.join(20)
        self.assertNotIn("coalesced", running.request_line("stay-f"))

    def test_requests_that_must_stay_in_the_same_region_share_a_call(self) -> None:
        home = self.at("eu")
        engine = self.last
        running = self.serve({"m": {"engines": [home, self.at("us")]}})
        body = ask(SECRET, "m", temperature=0, stream=True)
        with engine.hold_after(0) as gate:
            threads = [threading.Thread(target=self.stay, args=(running, body)) for _ in range(3)]
            for thread in threads:
                thread.start()
            self.assertTrue(gate.wait_for_held(1, 10))
            eventually(lambda: len(running.app.pipeline.reuse.flights) == 1 and running.app.pipeline.in_flight == 3)
        for thread in threads:
            thread.join(20)
        eventually(lambda: len(running.request_lines()) == 3)
        self.assertEqual(sum(line.get("coalesced", False) for line in running.request_lines()), 2)


class KeptTest(StayTest):
    """CACHE=on."""

    def cached(self, **variables: object) -> RunningGateway:
        return self.serve(
            {"m": {"engines": [self.at("us"), self.at("eu-west-1")]}, **self.more}, CACHE="on", **variables
        )

    more: dict[str, Any] = {}

    def result(self, running: RunningGateway, residency: str = "", text: str = "hi") -> Optional[str]:
        headers = [("X-Gateway-Residency", residency)] if residency else []
        answer = running.post(ask(text, "m", temperature=0), CHAT, headers)
        self.assertEqual(answer.status, 200, answer.body)
        return answer.header("x-gateway-cache")

    def test_an_answer_is_kept_where_the_gateway_is_within_and_for_its_like_alone(self) -> None:
        running = self.cached(REGION="eu-west-1")
        self.assertEqual([self.result(running, "eu") for _ in range(2)], ["miss", "hit"])
        self.assertEqual(self.result(running, "eu-west-1"), "miss")
        self.assertEqual([self.result(running) for _ in range(2)], ["miss", "hit"])
        self.assertEqual(self.result(running, "eu"), "hit")

    def test_elsewhere_it_is_not_kept(self) -> None:
        for variables in ({}, {"REGION": "us"}, {"REGION": "europe"}):
            with self.subTest(variables):
                running = self.cached(**variables)
                self.assertEqual([self.result(running, "eu") for _ in range(2)], ["bypass", "bypass"])
                self.assertEqual([self.result(running) for _ in range(2)], ["miss", "hit"])
                caches = running.app.caches
                assert caches is not None
                self.assertEqual(len(caches.store), 1)

    def test_a_stream_is_not_kept_elsewhere_either(self) -> None:
        running = self.cached()
        for _ in range(2):
            self.stay(running, ask(SECRET, "m", temperature=0, stream=True))
        running.app.pipeline.reuse._threads.close(5)
        caches = running.app.caches
        assert caches is not None
        self.assertEqual(len(caches.store), 0)

    def test_a_near_duplicate_is_looked_for_by_an_embedding_from_there_or_by_none(self) -> None:
        for abroad in (True, False):
            with self.subTest(abroad=abroad):
                engines = self.elsewhere() if abroad else [*self.elsewhere(), self.at("eu")]
                home, self.more = self.last, {"e": {"engines": engines}}
                running = self.cached(REGION="eu", CACHE_NEAR="on", CACHE_GUARD="off", EMBEDDINGS_MODEL="e")
                for _ in range(3):
                    answer = self.stay(running, ask(SECRET, "m", temperature=0))
                    self.assertEqual(answer.status, 200)
                asked = any(seen["path"].endswith("/embeddings") for seen in home.requests)
                self.assertEqual(asked, not abroad)

    def test_a_near_duplicate_of_what_must_stay_is_not_given_to_others(self) -> None:
        running = self.cached(REGION="eu", CACHE_NEAR="on")
        words = ("What is the capital of France?", "what is the capital of France")
        self.assertEqual(self.result(running, "eu", words[0]), "miss")
        self.assertEqual(self.result(running, "", words[1]), "miss")
        self.assertEqual(self.result(running, "eu", words[1]), "near")


class SharedCacheTest(StayTest):
    def test_nothing_that_must_stay_is_sent_to_or_looked_for_in_redis(self) -> None:
        running = self.serve(
            {"m": {"engines": [self.at("us"), self.at("eu")]}}, CACHE="on", REGION="eu", CACHE_NEAR="on"
        )
        calls: list[str] = []

        class Redis:
            def get(self, *keys: bytes, near: bytes = b"") -> Any:
                calls.append("get")
                found = mock.Mock(flag=Flag(), found=None)
                found.flag.set()
                return found

            def put(self, stored: Any) -> None:
                calls.append("put")

            def clear(self, chosen: Any, timeout_s: float) -> int:
                return 0

            def close(self, timeout_s: float) -> None:
                pass

        caches = Caches(AnswerStore(1 << 20, 60.0), near=running.app.caches and running.app.caches.near, shared=Redis())
        running.app.pipeline.reuse.caches = caches
        for _ in range(2):
            self.assertEqual(self.stay(running, ask(SECRET, "m", temperature=0)).status, 200)
        self.stay(running, ask(SECRET, "m", temperature=0, stream=True, seed=3))
        running.app.pipeline.reuse._threads.close(5)
        self.assertEqual(calls, [])
        self.assertEqual(len(caches.store), 2)
        running.post(ask("hi", "m", temperature=0))
        self.assertEqual(set(calls), {"get", "put"})


class VerifiedTest(StayTest):
    def fleet(self) -> dict[str, Any]:
        return {
            "a": {"engines": [self.at("eu")]},
            "b": {"engines": [*self.elsewhere(), self.at("eu-west-1")]},
            "abroad": {"engines": self.elsewhere()},
            "team": {"consensus": {"members": ["abroad", "a", "b"], "fallback": "best"}},
            "judged": {"consensus": {"members": ["a", "b"], "judge": "abroad", "fallback": "best"}},
            "lost": {"consensus": {"members": ["abroad", "far"], "fallback": "best"}},
            "far": {"engines": self.elsewhere()},
        }

    def test_members_and_judges_are_asked_there_alone(self) -> None:
        running = self.serve(self.fleet(), SANDBOX="off")
        answer = self.stay(running, {"prompt": SECRET, "models": ["abroad", "a", "b"]}, INFERENCE)
        self.assertEqual(answer.status, 200, answer.body)
        said = {one["model_name"]: one.get("error") for one in answer.json()["model_responses"]}
        self.assertTrue(said["abroad"], answer.body)
        self.assertFalse(said["a"] or said["b"], answer.body)

    def test_where_no_model_is_named_those_there_are_asked(self) -> None:
        running = self.serve(self.fleet(), SANDBOX="off")
        answer = self.stay(running, {"prompt": SECRET}, INFERENCE)
        self.assertEqual({one["model_name"] for one in answer.json()["model_responses"]}, {"a", "b"})

    def test_a_model_made_of_others_is_made_of_those_there(self) -> None:
        running = self.serve(self.fleet(), SANDBOX="off")
        for stream in (False, True):
            answer = self.stay(running, ask(SECRET, "team", stream=stream))
            self.assertEqual(answer.status, 200, answer.body)
        eventually(lambda: sum(one["status"] == 200 for one in running.request_lines() if one.get("part_of")) == 4)
        asked = {one["model"] for one in running.request_lines() if one.get("part_of")}
        self.assertEqual(asked, {"a", "b"})
        self.assert_error(self.stay(running, ask(SECRET, "lost")), 400, "residency_not_served")

    def test_a_judge_elsewhere_is_not_asked(self) -> None:
        running = self.serve(self.fleet(), SANDBOX="off")
        answer = self.stay(running, ask(SECRET, "judged"))
        self.assertEqual(answer.status, 200, answer.body)
        self.assertEqual(sum(line["attempts"] for line in running.request_lines() if line["model"] == "abroad"), 0)


class KeysTest(StayTest):
    def test_a_keys_residency_holds_for_all_that_it_asks(self) -> None:
        home = self.at("eu-west-1")
        running = self.serve({"m": {"engines": [*self.elsewhere(), home]}}, ADMIN_KEYS=ADMIN_KEYS)
        key = self.make(running, residency="EU")
        for _ in range(8):
            self.assert_stayed(self.stay(running, headers=key, by=""), home)
        self.assert_stayed(self.stay(running, headers=key, by="eu-west-1"), home)
        self.assert_stayed(self.stay(running, headers=key, by="EU"), home)
        self.assert_error(self.stay(running, headers=key, by="us"), 403, "residency_conflict")
        self.assert_error(self.stay(running, headers=key, by="eu-north-1"), 400, "residency_not_served")

    def test_a_header_that_is_no_region_is_refused(self) -> None:
        running = self.serve({"m": {"engines": [self.at("eu"), self.at("us")]}})
        for value in ("", "eu, us", "e/u", "x" * 65):
            answer = running.post(headers=[("X-Gateway-Residency", value)])
            self.assert_error(answer, 400, "invalid_residency")
        twice = running.post(headers=[("X-Gateway-Residency", "eu"), ("X-Gateway-Residency", "eu")])
        self.assertEqual(twice.status, 400)

    def test_the_header_is_for_the_gateway_and_not_passed_on(self) -> None:
        running = self.serve({"m": {"engines": [self.at("eu")]}})
        self.assertEqual(self.stay(running).status, 200)
        self.assertNotIn("x-gateway-residency", self.last.requests[0]["headers"])

    def test_the_admin_api_and_the_command_line_make_such_keys(self) -> None:
        running = self.serve({"m": {"engines": [self.at("eu")]}}, ADMIN_KEYS=ADMIN_KEYS)
        made = running.ask("POST", "/admin/keys", {"name": "bob", "residency": "EU-West-1"}, [AS_ROOT])
        self.assertEqual(made.status, 201, made.body)
        self.assertEqual(made.json()["residency"], "eu-west-1")
        listed = running.get("/admin/keys", [AS_ROOT]).json()["keys"]
        self.assertEqual([key["residency"] for key in listed], ["eu-west-1"])
        for wrong in ("e u", "", 5, ["eu"]):
            refused = running.ask("POST", "/admin/keys", {"name": "eve", "residency": wrong}, [AS_ROOT])
            self.assert_error(refused, 400, "invalid_body")
            self.assertIn("residency: must be 1 to 64", refused.json()["message"])
        status, out, _ = self.cli("keys", "create", "--name", "carol", "--residency", "eu")
        self.assertEqual(status, 0)
        self.assertRegex(out, r"(?m)^residency +eu$")
        status, out, _ = self.cli("keys", "list")
        self.assertRegex(out, r"(?m)^carol .* eu  ")
        rotated = running.ask("POST", "/admin/keys/bob/rotate", {}, [AS_ROOT])
        self.assertEqual(rotated.json()["residency"], "eu-west-1")

    def test_tokens_have_it_too(self) -> None:
        home = self.at("eu")
        running = self.serve(
            {"m": {"engines": [*self.elsewhere(), home]}}, ADMIN_KEYS=ADMIN_KEYS, JWT_SECRET=JWT_SECRET
        )
        given = bearer(token(residency="EU"))
        for _ in range(4):
            self.assert_stayed(self.stay(running, headers=given, by=""), home)
        for wrong in ("", "e u", 5, ["eu"], {"a": 1}):
            self.assertEqual(running.post(headers=bearer(token(residency=wrong))).status, 401, wrong)
        key = self.make(running, residency="eu")
        given_for_it = running.ask("POST", "/auth/token", {}, key).json()["token"]
        claims = json.loads(base64.urlsafe_b64decode(given_for_it.split(".")[1] + "=="))
        self.assertEqual(claims["residency"], "eu")  # for another gateway, which knows no more of the key
        exchanged = bearer(given_for_it)
        for _ in range(4):
            self.assert_stayed(self.stay(running, headers=exchanged, by=""), home)

    def test_the_models_listed_are_those_that_the_key_can_reach(self) -> None:
        models = {
            "m": {"engines": [*self.elsewhere(), self.at("eu")]},
            "abroad": {"engines": self.elsewhere()},
            "s": {"split": {"abroad": 1, "m": 1}},
            "lost": {"chain": ["abroad"]},
            "team": {"consensus": {"members": ["abroad", "m"]}},
        }
        running = self.serve(models, ADMIN_KEYS=ADMIN_KEYS)
        key = self.make(running, residency="eu")
        names = {model["id"] for model in running.get("/v1/models", key).json()["data"]}
        self.assertEqual(names, {"m", "s", "team"})
        self.assertEqual(running.get("/v1/models/abroad", key).status, 404)
        everybody = {model["id"] for model in running.get("/v1/models", [AS_ROOT]).json()["data"]}
        self.assertEqual(everybody, set(models))
        pool = running.app.factory.router.pools["m"]
        pool.set_draining(pool.engines[-1].id, True)
        self.assertFalse(running.get("/v1/models/m", key).json()["available"])
        self.assertTrue(running.get("/v1/models/m", [AS_ROOT]).json()["available"])


class ToldTest(StayTest):
    def test_the_log_tells_the_region_and_no_body_of_what_must_stay(self) -> None:
        running = self.serve(
            {"m": {"engines": [self.at("EU-West-1")]}, "n": {"engines": [self.at(None)]}}, LOG_BODIES="on"
        )
        line = running.request_line(self.stay(running).request_id)
        self.assertEqual((line["region"], line["residency"]), ("eu-west-1", "eu"))
        self.assertNotIn(SECRET, running.log.getvalue())
        line = running.request_line(running.post(ask("hello you", "m")).request_id)
        self.assertEqual(line["region"], "eu-west-1")
        self.assertNotIn("residency", line)
        self.assertIn("hello you", running.log.getvalue())
        line = running.request_line(running.post(ask("hi", "n")).request_id)
        self.assertNotIn("region", line)

    def test_health_tells_the_region_of_each_engine(self) -> None:
        running = self.serve({"m": {"engines": [self.at("eu"), self.at(None)]}})
        engines = running.get("/health").json()["models"]["m"]["engines"]
        self.assertEqual([engine["region"] for engine in engines], ["eu", None])

    def test_check_tells_it_too(self) -> None:
        path = self.file("engines.json", {"models": {"m": {"engines": [{"url": "echo:", "region": "EU"}]}}})
        status, out, _ = self.cli("check", ENGINES_FILE=path, REGION="eu")
        self.assertEqual(status, 0)
        self.assertIn("region: eu, whose engines come first", out)
        self.assertRegex(out, r"engine echo: .*, region eu")
        status, out, _ = self.cli("check", ENGINES_FILE=path, REGION="us")
        self.assertIn("region: us, where no engine is", out)


class PreferenceTest(StayTest):
    def test_the_own_region_gets_all_and_the_next_one_what_it_cannot_take(self) -> None:
        homes, abroad = [self.at("eu"), self.at("eu")], [self.at("us"), self.at(None)]
        running = self.serve({"m": {"engines": [*abroad, *homes]}}, REGION="eu")
        for _ in range(8):
            self.assert_stayed(running.post(ask("hi", "m")), *homes)
        pool = running.app.factory.router.pools["m"]
        pool.record_probe(pool.engines[2], "gone", 1, 1)
        used = [running.post(ask("hi", "m")).header("x-gateway-engine") for _ in range(20)]
        counted = {url["url"]: used.count(url["url"][7:-3]) for url in (*abroad, *homes)}
        self.assertEqual(list(counted.values()), [6, 0, 0, 14])


class RandomTest(StayTest):
    """Random fleets, faults, hedges, fallbacks; requests that must stay among those that need not."""

    REGIONS = ("eu", "eu-west-1", "us", "europe", None)
    BEHAVIOURS = ("ok", "ok", "error", "flaky", "reset", "rate_limit", "drop_mid_stream", "malformed", "slow")

    def test_nothing_leaves(self) -> None:
        stayed = 0
        for seed in range(8):
            with self.subTest(seed=seed):
                stayed += self.play(Random(seed))
        self.assertGreater(stayed, 40)

    def play(self, rng: Random) -> int:
        def model(**more: Any) -> dict[str, Any]:
            engines = []
            for _ in range(rng.randint(1, 4)):
                behaviour = rng.choice(self.BEHAVIOURS)
                delay = {"delay": 0.03} if behaviour == "slow" else {}
                limit = {"max_concurrency": 1} if rng.random() < 0.3 else {}
                engines.append(self.at(rng.choice(self.REGIONS), behaviour, resume=True, **delay, **limit))
            hedging = {"hedge_after_ms": 10, "hedge_ratio": 1.0} if rng.random() < 0.5 else {}
            return {"engines": engines, **hedging, **more}

        strategies = ("round_robin", "least_connections", "prefix_affinity")
        models: dict[str, Any] = {
            "m": model(fallbacks=["n"], strategy=rng.choice(strategies)),
            "n": model(),
            "o": model(),
            "s": {"split": {"m": 1, "o": 2}},
            "t": {"consensus": {"members": ["m", "n", "o"], "fallback": "best"}},
        }
        running = self.serve(
            models,
            **({"REGION": rng.choice(("eu", "us"))} if rng.random() < 0.6 else {}),
            CACHE=rng.choice(("on", "off")),
            BREAKER_OPEN_SECONDS=1,
            SANDBOX="off",
            WORKERS=12,
            BATCH_MAX_WAIT_MS=5,
            BATCH_EMBEDDINGS="on",
            QUEUE_TIMEOUT=5,
        )
        stayed: list[int] = []

        def one(number: int, stays: bool, path: str, body: dict[str, Any]) -> None:
            if stays:
                answer = self.stay(running, body, path)
                if answer.status == 200:
                    stayed.append(number)
            else:
                running.post(body, path)

        threads = []
        for number in range(30):
            stays = rng.random() < 0.5
            text, name = SECRET if stays else "hello", rng.choice("mnost")
            body = ask(text, name, stream=rng.random() < 0.4, **({"temperature": 0} if rng.random() < 0.3 else {}))
            path = CHAT
            if name in "mno" and rng.random() < 0.4:
                path, body = rng.choice(
                    ((QUERY, {"model": name, "query": text}), (EMBEDDINGS, {"model": name, "input": text}))
                )
            threads.append(threading.Thread(target=one, args=(number, stays, path, body)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        self.look_outside()  # each engine keeps its last requests only
        running.stop()
        return len(stayed)


if __name__ == "__main__":
    unittest.main()
