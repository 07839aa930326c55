"""A model that is made of others, behind /v1/chat/completions: what any OpenAI client gets of it."""

from __future__ import annotations

import importlib.util
import json
import tempfile
import threading
import time
import unittest
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Optional, cast
from unittest import mock

from gateway.errors import ClientGone, GatewayError
from gateway.inference import Answer, Call
from gateway.keys.auth import Identity
from gateway.server.exchange import Exchange
from gateway.upstream.answers import Usage
from gateway.upstream.call import CHAT as CHAT_CALL
from gateway.verify import panel
from gateway.verify.panel import COMMENT
from tests.panels import code
from tests.resilience import fleet
from tests.support import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    RawClient,
    RunningGateway,
    chunk_of,
    content_of,
    eventually,
    load_settings,
    request_bytes,
)
from tests.verified import PROMPT, VerifiedTest, adds_one, answer, completion

RIGHT, WRONG = code("return x + 1"), code("return x")
MEMBERS = {"members": ["a", "b", "c"]}
TWO = {"members": ["a", "b"]}
ABSTAINS = {"members": ["a", "b"], "fallback": "abstain"}
SAID = COMMENT.decode().strip()
KEYS = {"API_KEYS": "u:sk-u", "ADMIN_KEYS": "root:sk-r"}


class ModelTest(VerifiedTest):
    def verified(
        self, names: str = "abc", consensus: Any = MEMBERS, runs: bool = True, **variables: object
    ) -> RunningGateway:
        running = self.several(names, virtual={"v": consensus}, **variables)
        if runs:
            self.jail(running)
        return running


class CompletionTest(ModelTest):
    def test_it_is_an_ordinary_completion_with_a_verification(self) -> None:
        running = self.verified()
        client = self.chat(running)
        sides = self.take()
        answer(sides["a"], WRONG)
        answer(sides["b"], RIGHT)
        answer(sides["c"], RIGHT)
        response = client.read_response()
        self.assertEqual(response.status, 200, response.body)
        self.assertEqual(response.header("x-gateway-model"), "v")
        self.assertEqual(response.header("x-gateway-attempts"), "3")
        self.assertIsNone(response.header("x-gateway-engine"))
        told = response.json()
        verification = told.pop("verification")
        self.assertLess(abs(told.pop("created") - time.time()), 100)
        self.assertEqual(
            told,
            {
                "id": response.request_id,
                "object": "chat.completion",
                "model": "v",
                "choices": [{"index": 0, "message": {"role": "assistant", "content": RIGHT}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 30, "completion_tokens": 9, "total_tokens": 39},
            },
        )
        self.assertEqual(verification["groups"], [["b", "c"]])
        self.assertEqual(
            (verification["verified"], verification["consensus"], verification["agreement"]), (True, True, 0.6667)
        )
        self.assertEqual((verification["synthesis_strategy"], verification["details"]["chosen"]), ("consensus", "b"))

    def test_a_member_that_is_not_waited_for_costs_what_it_has_told(self) -> None:
        running = self.verified()
        client = self.chat(running)
        sides = self.take()
        answer(sides["a"], RIGHT)
        answer(sides["b"], RIGHT)
        told = client.read_response().json()
        self.assertEqual(told["usage"]["total_tokens"], 26)
        self.assertTrue(sides["c"].wait_until_left())

    def test_members_are_asked_what_the_client_asked(self) -> None:
        running = self.verified("ab", TWO)
        tools = [{"type": "function", "function": {"name": "g", "parameters": {"type": "object"}}}]
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 6 * 7?"}]
        fields = {
            "messages": messages,
            "tools": tools,
            "response_format": {"type": "json_object"},
            "temperature": 0.3,
            "top_p": 0.9,
            "max_tokens": 77,
            "stop": ["x"],
            "seed": 4,
        }
        client = self.chat(running, n=1, user="me", **fields)
        for name, side in self.say({"a": '{"n": 42}', "b": '{"n":42}'}).items():
            self.assertEqual(side.json, {"model": name, "user": "me", **fields})
        self.assertEqual(client.read_response().json()["verification"]["groups"], [["a", "b"]])

    def test_members_are_asked_whole_when_the_client_streams(self) -> None:
        running = self.verified("ab", TWO)
        client = self.chat(running, stream=True, stream_options={"include_usage": True})
        for side in self.say({"a": "42", "b": "42"}).values():
            self.assertEqual(sorted(side.json), ["messages", "model"])
        self.assertEqual(client.read_response().status, 200)

    def test_a_models_own_name_is_used_at_its_engine(self) -> None:
        running = self.verified("ab", TWO, own={"a": {"aliases": ["first"]}})
        client = self.chat(running)
        sides = self.say({"a": "42", "b": "42"})
        self.assertEqual(sides["a"].json["model"], "a")
        client.read_response()

    def test_members_named_by_aliases_are_told_of_by_their_names(self) -> None:
        running = self.verified("ab", {"members": ["first", "b"]}, own={"a": {"aliases": ["first"]}})
        client = self.chat(running)
        self.say({"a": "42", "b": "42"})
        self.assertEqual(client.read_response().json()["verification"]["groups"], [["a", "b"]])

    def test_only_the_first_are_asked_while_they_agree(self) -> None:
        running = self.verified("abc", {**MEMBERS, "start": 2})
        client = self.chat(running)
        self.say({"a": RIGHT, "b": RIGHT})
        told = client.read_response().json()
        self.assertEqual([m["model"] for m in told["verification"]["details"]["members"]], ["a", "b"])
        self.assert_untouched("c")
        client = self.chat(running)
        self.say({"a": RIGHT, "b": None})
        self.say({"c": RIGHT})
        self.assertEqual(client.read_response().json()["verification"]["groups"], [["a", "c"]])

    def test_a_group_of_one_family_does_not_count_where_two_are_demanded(self) -> None:
        own = {"a": {"family": "llama"}, "b": {"family": "llama"}}
        running = self.verified("abc", {**MEMBERS, "min_families": 2, "fallback": "abstain"}, own=own, HEAL_ATTEMPTS=0)
        client = self.chat(running)
        self.say({"a": RIGHT, "b": RIGHT, "c": WRONG})
        self.assert_error(client.read_response(), 422, "no_consensus")
        client = self.chat(running)
        self.say({"a": RIGHT, "b": None, "c": RIGHT})
        self.assertTrue(client.read_response().json()["verification"]["verified"])

    def test_a_judge_says_which_words_mean_the_same(self) -> None:
        running = self.verified("abj", {**TWO, "judge": "j"})
        client = self.chat(running, temperature=1.5, tools=[], messages=[{"role": "user", "content": "Which city?"}])
        self.say({"a": "It is Paris, on the Seine.", "b": "The city that you mean is called Paris."})
        side = self.by_name["j"].take()
        self.assertEqual((side.json["model"], side.json["temperature"], "tools" in side.json), ("j", 0, False))
        answer(side, "[[1, 2]]")
        told = client.read_response().json()
        self.assertEqual(told["verification"]["synthesis_strategy"], "majority")
        self.assertEqual(told["verification"]["details"]["judge"], "j")
        self.assertEqual(told["usage"]["total_tokens"], 39)

    def test_it_may_be_called_by_an_alias(self) -> None:
        self.by_name = {name: self.scripted() for name in "ab"}
        models = self.models({"v": TWO})
        models["v"]["aliases"] = ["sure"]
        running = self.serve(models, SANDBOX="off")
        client = self.chat(running, model="sure")
        self.say({"a": "42", "b": "42"})
        response = client.read_response()
        self.assertEqual(response.json()["model"], "v")
        self.assertEqual(running.request_line(response.request_id)["model"], "v")

    def test_examples_in_what_users_said_count(self) -> None:
        running = self.verified("ab", TWO)
        jail = self.jail(running)
        parts = [{"type": "text", "text": ">>> f(1)"}, {"type": "text", "text": "2"}]
        messages = [
            {"role": "system", "content": ">>> f(9)"},
            {"role": "user", "content": "first"},
            {"role": "assistant", "content": ">>> f(8)"},
            {"role": "user", "content": parts},
        ]
        client = self.chat(running, messages=messages)
        self.say({"a": RIGHT, "b": RIGHT})
        self.assertEqual(client.read_response().status, 200)
        self.assertEqual(jail.of("generate")[0].payload["prompt"], "first\n\n>>> f(1)\n\n2")


class NoAgreementTest(ModelTest):
    def test_best_answers_with_the_best_there_is(self) -> None:
        running = self.verified("ab", TWO, HEAL_ATTEMPTS=0)
        client = self.chat(running)
        self.say({"a": WRONG, "b": RIGHT})
        told = client.read_response().json()
        self.assertEqual(told["choices"][0]["message"]["content"], RIGHT)
        verification = told["verification"]
        self.assertEqual((verification["verified"], verification["consensus"]), (False, False))
        self.assertEqual(verification["synthesis_strategy"], "best_available")

    def test_best_answers_even_when_no_program_does_anything(self) -> None:
        running = self.verified("ab", TWO, runs=False, HEAL_ATTEMPTS=0)

        def run(job: Any) -> Any:
            report = {"error": {"kind": "syntax", "text": "no"}, "keys": None}
            made = adds_one(job)
            return made if job.harness != "judge" else made._replace(report=json.dumps(report).encode())

        self.jail(running, run)
        client = self.chat(running)
        self.say({"a": None, "b": WRONG})
        told = client.read_response().json()
        self.assertEqual(told["choices"][0]["message"]["content"], WRONG)
        self.assertEqual(told["verification"]["synthesis_strategy"], "best_available")
        self.assertEqual(told["verification"]["details"]["chosen"], "b")

    def test_abstain_answers_with_an_error_that_tells_what_was_found(self) -> None:
        running = self.verified("ab", ABSTAINS, HEAL_ATTEMPTS=0)
        client = self.chat(running)
        self.say({"a": WRONG, "b": RIGHT})
        response = client.read_response()
        self.assert_error(response, 422, "no_consensus")
        verification = response.json()["verification"]
        self.assertEqual((verification["synthesis_strategy"], verification["verified"]), ("abstained", False))
        self.assertEqual((verification["groups"], verification["details"]["chosen"]), ([["b"]], None))
        line = running.request_line(response.request_id)
        self.assertEqual(
            (line["status"], line["error"], line["verification"]["result"]), (422, "no_consensus", "abstained")
        )
        self.assertEqual(running.metrics()['gateway_verifications_total{result="abstained"}'], 1)

    def test_abstain_answers_where_there_is_agreement(self) -> None:
        running = self.verified("ab", ABSTAINS)
        client = self.chat(running)
        self.say({"a": RIGHT, "b": RIGHT})
        self.assertTrue(client.read_response().json()["verification"]["verified"])

    def test_an_sdk_reads_the_error_in_its_own_shape(self) -> None:
        running = self.verified("ab", ABSTAINS, HEAL_ATTEMPTS=0)
        client = self.chat(running, headers=[("User-Agent", "OpenAI/Python 1.2")])
        self.say({"a": WRONG, "b": RIGHT})
        error = client.read_response().json()["error"]
        self.assertEqual((error["code"], error["type"]), ("no_consensus", "invalid_request_error"))

    def test_when_all_members_fail_that_is_told(self) -> None:
        running = self.verified("ab", TWO)
        client = self.chat(running)
        self.say({"a": None, "b": None})
        response = client.read_response()
        self.assert_error(response, 503, "no_model_answered")
        self.assertEqual(sorted(response.json()["details"]), ["a", "b"])


class RefusedTest(ModelTest):
    def test_several_choices_are_not_given(self) -> None:
        running = self.verified("ab", TWO)
        for fields in ({"n": 2}, {"n": 2, "stream": True}):
            response = self.chat(running, **fields).read_response()
            self.assert_error(response, 400, "invalid_n")
            self.assertEqual(response.json()["param"], "n")
        self.assert_untouched("a", "b")

    def test_a_request_is_checked_as_any(self) -> None:
        running = self.verified("ab", TWO)
        self.assert_error(self.chat(running, messages=[]).read_response(), 400, "invalid_messages")
        self.assert_error(self.chat(running, temperature=3).read_response(), 400, "invalid_temperature")

    def test_other_endpoints_are_not_served(self) -> None:
        running = self.verified("ab", TWO)
        for path, body in (
            (COMPLETIONS, {"model": "v", "prompt": "hi"}),
            (EMBEDDINGS, {"model": "v", "input": "hi"}),
            ("/query", {"model": "v", "query": "hi"}),
        ):
            response = running.post(body, path)
            self.assert_error(response, 400, "endpoint_not_served")
            self.assertEqual(response.json()["param"], "model")
        self.assert_untouched("a", "b")

    def test_elsewhere_too_who_may_not_use_it_is_told_that_only(self) -> None:
        running = self.verified("abc", TWO, STATE_DB=self.state_db(), **KEYS)
        secret = running.app.guard.store.create("one", models=("a",))[1]
        headers = [("Authorization", f"Bearer {secret}")]
        for path, body in ((COMPLETIONS, {"prompt": "hi"}), (EMBEDDINGS, {"input": "hi"}), ("/query", {"query": "hi"})):
            told = []
            for name in ("v", "c"):
                response = running.post({"model": name, **body}, path, headers)
                self.assert_error(response, 403, "forbidden")
                told.append(response.json())
            self.assertEqual(told[0]["message"].replace(" v ", " c "), told[1]["message"])

    def test_as_the_default_it_answers_requests_that_name_no_model(self) -> None:
        running = self.verified("ab", TWO, DEFAULT_MODEL="v")
        client = self.enter(running.connect())
        client.request("POST", CHAT, {"messages": [{"role": "user", "content": PROMPT}]})
        self.say({"a": RIGHT, "b": RIGHT})
        response = client.read_response()
        self.assertEqual((response.status, response.header("x-gateway-model")), (200, "v"))
        self.assertTrue(response.json()["verification"]["verified"])
        self.assertEqual(running.request_line(response.request_id)["model"], "v")

    def test_as_the_default_it_answers_nothing_but_chats(self) -> None:
        running = self.verified("ab", TWO, DEFAULT_MODEL="v")
        for path, body in ((COMPLETIONS, {"prompt": "hi"}), (EMBEDDINGS, {"input": "hi"}), ("/query", {"query": "hi"})):
            response = running.post(body, path)
            self.assert_error(response, 400, "endpoint_not_served")
            self.assertIn("the default model 'v' is made of others", response.json()["message"])
        client = self.enter(running.connect())
        client.request("POST", COMPLETIONS, {"model": "a", "prompt": "hi"})
        side = self.next_of(self.by_name["a"])
        side.answer(json.dumps({"choices": [{"index": 0, "text": "x", "finish_reason": "stop"}]}).encode())
        self.assertEqual(client.read_response().status, 200)

    def test_as_the_default_it_is_for_those_who_may_use_it(self) -> None:
        running = self.verified("ab", TWO, DEFAULT_MODEL="v", STATE_DB=self.state_db(), **KEYS)
        secret = running.app.guard.store.create("one", models=("a", "b"))[1]
        body = {"messages": [{"role": "user", "content": PROMPT}]}
        self.assert_error(running.post(body, CHAT, [("Authorization", f"Bearer {secret}")]), 403, "forbidden")

    def test_the_log_lists_it_among_the_models(self) -> None:
        running = self.verified("ab", TWO)
        lines = eventually(lambda: [line for line in running.log_lines() if line["event"] == "started"])
        self.assertEqual(lines[0]["models"], ["a", "b", "v (of a, b)"])

    def test_the_log_tells_where_it_will_never_be_verified(self) -> None:
        running = self.verified("ab", TWO, runs=False)
        lines = eventually(lambda: [line for line in running.log_lines() if line["event"] == "sandbox"])
        told = "no program is run for v, so no answer is verified: off, nothing is run"
        self.assertEqual([(line["level"], line["message"]) for line in lines], [("warning", told)])

    def test_who_may_use_it_may_use_what_it_is_made_of_by_it_alone(self) -> None:
        running = self.verified("ab", TWO, STATE_DB=self.state_db(), **KEYS)
        secret = running.app.guard.store.create("one", models=("v",))[1]
        headers = [("Authorization", f"Bearer {secret}")]
        client = self.chat(running, headers)
        self.say({"a": RIGHT, "b": RIGHT})
        self.assertEqual(client.read_response().status, 200)
        self.assert_error(self.chat(running, headers, model="a").read_response(), 403, "forbidden")
        self.assertEqual([e["id"] for e in running.get("/v1/models", headers).json()["data"]], ["v"])

    def test_who_may_use_its_members_only_may_not_use_it(self) -> None:
        running = self.verified("ab", TWO, STATE_DB=self.state_db(), **KEYS)
        secret = running.app.guard.store.create("one", models=("a", "b"))[1]
        headers = [("Authorization", f"Bearer {secret}")]
        response = self.chat(running, headers).read_response()
        self.assert_error(response, 403, "forbidden")
        self.assertEqual(response.json()["param"], "model")
        self.assertEqual([e["id"] for e in running.get("/v1/models", headers).json()["data"]], ["a", "b"])
        self.assertEqual(running.get("/v1/models/v", headers).status, 404)
        self.assert_untouched("a", "b")

    def test_the_limits_of_a_key_refuse_its_members(self) -> None:
        running = self.verified("ab", TWO, STATE_DB=self.state_db(), RATE_LIMIT_BURST=1, **KEYS)
        secret = running.app.guard.store.create("one", rpm=2)[1]
        headers = [("Authorization", f"Bearer {secret}")]
        client = self.chat(running, headers)
        self.say({"a": RIGHT, "b": RIGHT})
        self.assertEqual(client.read_response().status, 200)
        self.assert_error(self.chat(running, headers).read_response(), 429, "rate_limit_exceeded")


class StreamTest(ModelTest):
    def setUp(self) -> None:
        super().setUp()
        comments = mock.patch.object(panel, "COMMENT_S", 0.05)
        comments.start()
        self.addCleanup(comments.stop)

    def open(self, running: RunningGateway, **fields: Any) -> RawClient:
        """A client that has read the head of its stream, and two comments, while nobody has answered yet."""
        client = self.chat(running, stream=True, **fields)
        head = client.read_head("POST")
        self.assertEqual((head.status, head.header("content-type")), (200, "text/event-stream"))
        self.assertEqual([client.read_event(), client.read_event()], [SAID, SAID])
        return client

    def events(self, client: RawClient) -> list[str]:
        """The events that are left, but for comments."""
        return [event for event in client.read_events() if event != SAID]

    def test_it_comes_once_decided_and_is_announced_until_then(self) -> None:
        running = self.verified("ab", TWO)
        client = self.open(running)
        self.say({"a": RIGHT, "b": RIGHT})
        events = self.events(client)
        self.assertEqual(events[-1], "data: [DONE]")
        self.assertEqual(content_of(events), RIGHT)
        chunks = [chunk_of(event) for event in events[:-1]]
        self.assertEqual({chunk["object"] for chunk in chunks}, {"chat.completion.chunk"})
        self.assertEqual({chunk["model"] for chunk in chunks}, {"v"})
        self.assertEqual(len({chunk["id"] for chunk in chunks}), 1)
        self.assertEqual(chunks[0]["choices"][0]["delta"]["role"], "assistant")
        self.assertEqual(chunks[-1]["choices"][0]["finish_reason"], "stop")
        self.assertEqual(["verification" in chunk for chunk in chunks], [False] * (len(chunks) - 1) + [True])
        self.assertTrue(chunks[-1]["verification"]["verified"])
        self.assertFalse(any(chunk.get("usage") for chunk in chunks))
        line = running.request_line(chunks[0]["id"])
        self.assertEqual((line["status"], line["stream"], line["model"]), (200, True, "v"))

    def test_one_that_is_decided_at_once_has_no_comment(self) -> None:
        running = self.verified("ab", TWO)
        panel.COMMENT_S = 60
        client = self.chat(running, stream=True)
        self.say({"a": RIGHT, "b": RIGHT})
        head = client.read_head("POST")
        self.assertEqual(head.header("content-type"), "text/event-stream")
        self.assertEqual(content_of(client.read_events()), RIGHT)

    def test_usage_is_told_to_who_asks_for_it(self) -> None:
        running = self.verified("ab", TWO)
        client = self.open(running, stream_options={"include_usage": True})
        self.say({"a": RIGHT, "b": RIGHT})
        last = chunk_of(self.events(client)[-2])
        self.assertEqual((last["choices"], last["usage"]["total_tokens"]), ([], 26))
        self.assertTrue(last["verification"]["verified"])

    def test_an_error_after_the_head_is_an_event(self) -> None:
        for consensus, texts, expected in (
            (ABSTAINS, {"a": WRONG, "b": RIGHT}, "no_consensus"),
            (TWO, {"a": None, "b": None}, "no_model_answered"),
        ):
            running = self.verified("ab", consensus, HEAL_ATTEMPTS=0)
            client = self.open(running, messages=[{"role": "user", "content": "q"}])
            self.say(texts)
            events = self.events(client)
            self.assertEqual(len(events), 1, events)
            error = chunk_of(events[0])
            self.assertEqual(error["error"], expected)
            self.assertEqual(("verification" in error), expected == "no_consensus")
            line = running.request_line(error["request_id"])
            self.assertEqual((line["status"], line["error"]), (200, expected))
            client.request("GET", "/healthz")
            self.assertEqual(client.read_response().status, 200)

    def test_an_error_before_the_head_is_an_answer(self) -> None:
        running = self.verified("ab", ABSTAINS, HEAL_ATTEMPTS=0)
        panel.COMMENT_S = 60
        client = self.chat(running, stream=True)
        self.say({"a": WRONG, "b": RIGHT})
        self.assert_error(client.read_response(), 422, "no_consensus")

    def test_a_connection_serves_the_next_request(self) -> None:
        running = self.verified("ab", TWO)
        client = self.open(running)
        self.say({"a": RIGHT, "b": RIGHT})
        self.events(client)
        client.assert_quiet()
        body = {"model": "v", "messages": [{"role": "user", "content": PROMPT}]}
        client.request("POST", CHAT, body)
        self.say({"a": RIGHT, "b": RIGHT})
        self.assertEqual(client.read_response().json()["choices"][0]["message"]["content"], RIGHT)

    def test_http_1_0_gets_it_bare_and_the_end_of_the_connection(self) -> None:
        running = self.verified("ab", TWO)
        client = self.enter(running.connect())
        body = {"model": "v", "messages": [{"role": "user", "content": PROMPT}], "stream": True}
        client.send(request_bytes("POST", CHAT, body, version="HTTP/1.0"))
        head = client.read_head("POST")
        self.assertEqual((head.header("transfer-encoding"), head.header("connection")), (None, "close"))
        self.assertEqual(client.read_event(), SAID)
        self.say({"a": RIGHT, "b": RIGHT})
        events = self.events(client)
        self.assertEqual((content_of(events), events[-1]), (RIGHT, "data: [DONE]"))
        client.assert_closed()

    def test_a_client_that_leaves_leaves_nothing(self) -> None:
        running = self.verified("ab", TWO)
        client = self.open(running)
        sides = self.take("ab")
        client.close()
        for side in sides.values():
            self.assertTrue(side.wait_until_left())
        self.assert_idle(running)
        line = eventually(lambda: [one for one in running.request_lines() if not one.get("part_of")])[0]
        self.assertEqual((line["status"], line["error"]), (499, "client_closed_request"))

    def test_the_end_of_the_gateway_is_told_as_an_event(self) -> None:
        running = self.verified("ab", TWO)
        client = self.open(running)
        self.take("ab")
        running.stop(0)
        events = self.events(client)
        self.assertEqual(chunk_of(events[0])["error"], "draining")
        client.assert_closed()

    def test_a_client_that_reads_nothing_is_not_waited_for_and_holds_nobody(self) -> None:
        running = self.verified("ab", TWO, runs=False, CLIENT_TIMEOUT=0.5, WORKERS=2)
        client = self.chat(running, stream=True)
        large = "x" * 5_000_000
        for side in self.take("ab").values():
            side.answer(completion(large))
        self.assert_idle(running)
        client.wait_until_ended()
        line = eventually(lambda: [one for one in running.request_lines() if not one.get("part_of")])[0]
        self.assertEqual((line["status"], line["error"]), (499, "client_closed_request"))

    def test_a_large_answer_is_given_whole(self) -> None:
        running = self.verified("ab", TWO, runs=False)
        client = self.open(running)
        large = "y" * 400_000
        for side in self.take("ab").values():
            side.answer(completion(large))
        self.assertEqual(content_of(self.events(client)), large)


class ReloadTest(ModelTest):
    def reload(self, running: RunningGateway, virtual: Any) -> None:
        path = Path(self.enter(tempfile.TemporaryDirectory())) / "engines.json"
        path.write_text(fleet(self.models(virtual)), "utf-8")
        running.app.reload(load_settings({"ENGINES_FILE": path}))

    def test_models_made_of_others_come_and_go(self) -> None:
        running = self.verified("ab", TWO)
        self.reload(running, None)
        self.assert_error(self.chat(running).read_response(), 404, "model_not_found")
        self.reload(running, {"w": TWO})
        self.assertEqual([entry["id"] for entry in running.get("/v1/models").json()["data"]], ["a", "b", "w"])
        client = self.chat(running, model="w")
        self.say({"a": RIGHT, "b": RIGHT})
        self.assertEqual(client.read_response().json()["model"], "w")

    def test_one_under_way_goes_on_as_it_is(self) -> None:
        running = self.verified("ab", TWO)
        client = self.chat(running)
        sides = self.take("ab")
        self.reload(running, None)
        for side in sides.values():
            answer(side, RIGHT)
        self.assertTrue(client.read_response().json()["verification"]["verified"])


class CountedTest(ModelTest):
    def test_it_is_one_request_of_its_own_name_and_its_members_are_none(self) -> None:
        running = self.verified("ab", TWO)
        client = self.chat(running)
        self.say({"a": RIGHT, "b": RIGHT})
        response = client.read_response()
        line = running.request_line(response.request_id)
        self.assertEqual(line["verification"]["result"], "consensus")
        self.assertNotIn("cost_usd", line)
        self.assertEqual([p["model"] for p in self.parts(running, response.request_id, 2)], ["a", "b"])
        metrics = running.metrics()
        requests = {name: value for name, value in metrics.items() if name.startswith("gateway_requests_total")}
        self.assertEqual(requests, {f'gateway_requests_total{{path="{CHAT}",model="v",status="200"}}': 1})
        self.assertEqual(metrics['gateway_tokens_total{model="a",kind="prompt"}'], 10)
        self.assertNotIn('gateway_tokens_total{model="v",kind="prompt"}', metrics)
        self.assertEqual(metrics['gateway_verifications_total{result="consensus"}'], 1)


class SlowClient:
    """The client's side of an exchange that takes only so many bytes at a time."""

    holds_large = False

    def __init__(self) -> None:
        self.takes = 0
        self.got = b""
        self.kept: Optional[bool] = None

    def send_now(self, data: bytes) -> int:
        if not self.takes:
            raise BlockingIOError
        taken, self.takes = min(self.takes, len(data)), max(0, self.takes - len(data))
        self.got += data[:taken]
        return taken

    def send_last(self, exchange: Any, data: bytes, keep_alive: bool, body: bytes = b"") -> bool:
        self.got += data + body
        self.kept = keep_alive
        return True

    def set_deadline(self, deadline_s: float) -> None:
        pass


class SayTest(unittest.TestCase):
    """A stream that is begun before there is an answer, towards a client that hardly reads."""

    def setUp(self) -> None:
        self.client = SlowClient()
        self.concluded: list[Any] = []
        pipeline = SimpleNamespace(
            settings=SimpleNamespace(cors_origins=(), log_bodies=False, error_format="simple"),
            draining=False,
            concluded=lambda job, event: self.concluded.append(event),
            internal_error=self.fail_with,
        )
        head = SimpleNamespace(
            method="POST", path=CHAT, headers={b"x-request-id": b"r"}, version_1_1=True, keep_alive=True
        )
        self.exchange = Exchange(
            cast(Any, pipeline), cast(Any, None), cast(Any, self.client), "::1", cast(Any, head), 0.0
        )
        self.exchange.call = Call(CHAT_CALL, {"messages": [], "stream": True}, request_id="r")
        self.exchange.identity = cast(Identity, SimpleNamespace(name="k"))

    def fail_with(self, error: BaseException, request_id: str) -> GatewayError:
        raise error

    def whole(self, *lines: bytes) -> bytes:
        return b"".join(b"%x\r\n%b\r\n" % (len(line), line) for line in lines) + b"0\r\n\r\n"

    def body(self) -> bytes:
        return self.client.got.partition(b"\r\n\r\n")[2]

    def answer(self, lines: bytes) -> None:
        self.exchange.answer(Answer(lines, Usage(0, 0, False)))

    def test_what_is_said_comes_before_what_is_answered(self) -> None:
        self.client.takes = 10_000
        self.exchange.say(b": a\n\n")
        self.exchange.say(b": b\n\n")
        self.answer(b"data: x\n\n")
        self.assertEqual(self.body(), self.whole(b": a\n\n", b": b\n\n", b"data: x\n\n"))
        self.assertEqual([(event.status, event.error) for event in self.concluded], [(200, None)])
        self.assertTrue(self.client.kept)

    def test_what_is_not_taken_is_kept_and_no_more_is_added_to_it(self) -> None:
        for _ in range(1000):
            self.exchange.say(b": a\n\n")
        self.assertLess(len(self.exchange._unsaid), 1000)
        self.answer(b"data: x\n\n")
        self.assertEqual(self.body(), self.whole(b": a\n\n", b"data: x\n\n"))

    def test_what_is_taken_in_part_is_never_torn(self) -> None:
        for takes in (*range(1, 40), 0, 7, 0, 1):
            self.client.takes = takes
            self.exchange.say(b": a\n\n")
        self.answer(b"data: x\n\n")
        count = self.body().count(b": a\n\n")
        self.assertGreater(count, 1)
        self.assertEqual(self.body(), self.whole(*[b": a\n\n"] * count, b"data: x\n\n"))

    def test_an_error_ends_it_with_an_event(self) -> None:
        self.exchange.say(b": a\n\n")
        self.exchange.fail(GatewayError("no_consensus", "no"))
        self.assertRegex(self.body(), rb'data: \{"error": ?"no_consensus"[^\n]*\}\n\n\r\n0\r\n\r\n$')
        self.assertEqual([(event.status, event.error) for event in self.concluded], [(200, "no_consensus")])

    def test_a_client_that_has_left_is_told_nothing(self) -> None:
        self.exchange.say(b": a\n\n")
        self.exchange.fail(ClientGone())
        self.assertEqual(self.client.got, b"")
        self.assertEqual([(event.status, event.error) for event in self.concluded], [(499, "client_closed_request")])

    def test_one_that_is_cut_off_is_told_why(self) -> None:
        self.exchange.say(b": a\n\n")
        self.exchange.cut = True
        self.exchange.fail(ClientGone())
        self.assertIn(b"draining", self.body())
        self.assertFalse(self.client.kept)


@unittest.skipIf(importlib.util.find_spec("openai") is None, "the openai package is not installed")
class OpenAITest(ModelTest):
    def sdk(self, running: RunningGateway) -> Any:
        import openai

        return self.enter(openai.OpenAI(base_url=f"{running.url}/v1", api_key="k", max_retries=0, timeout=10))

    def serve_mocks(self, consensus: Any) -> RunningGateway:
        engines = {name: self.engine(model=name) for name in "ab"}
        models: dict[str, Any] = {name: {"engines": [engine.url]} for name, engine in engines.items()}
        return self.serve({**models, "v": {"consensus": consensus}}, SANDBOX="off")

    def test_a_completion_and_what_stands_beside_it(self) -> None:
        client = self.sdk(self.serve_mocks(TWO))
        told = client.chat.completions.create(model="v", messages=[{"role": "user", "content": "hi there"}])
        self.assertEqual(told.model, "v")
        self.assertTrue(told.choices[0].message.content)
        self.assertFalse(told.model_extra["verification"]["verified"])
        self.assertIn("v", [model.id for model in client.models.list()])

    def test_a_stream_with_comments_in_it(self) -> None:
        client = self.sdk(self.serve_mocks(TWO))
        with mock.patch.object(panel, "COMMENT_S", 0.0):
            with client.chat.completions.create(
                model="v",
                messages=[{"role": "user", "content": "hi there"}],
                stream=True,
                stream_options={"include_usage": True},
            ) as stream:
                chunks = list(stream)
        self.assertTrue("".join(c.choices[0].delta.content or "" for c in chunks if c.choices))
        self.assertIn("agreement", chunks[-1].model_extra["verification"])
        self.assertGreater(chunks[-1].usage.total_tokens, 0)

    def test_abstention_is_an_error_that_the_sdk_raises(self) -> None:
        import openai

        running = self.verified("ab", ABSTAINS, HEAL_ATTEMPTS=0)
        client = self.sdk(running)
        raised: list[Exception] = []

        def ask() -> None:
            try:
                client.chat.completions.create(model="v", messages=[{"role": "user", "content": "q"}])
            except Exception as error:
                raised.append(error)

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        self.say({"a": WRONG, "b": RIGHT})
        asking.join(20)
        self.assertIsInstance(raised[0], openai.UnprocessableEntityError)
        self.assertEqual(cast(Any, raised[0]).code, "no_consensus")


if __name__ == "__main__":
    unittest.main()
