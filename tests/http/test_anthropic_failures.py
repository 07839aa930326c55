"""Engines that speak Anthropic's Messages alone and fail: how that is judged, and who answers instead."""

from __future__ import annotations

import json
import unittest
from typing import Any

from gateway.mock.messages import SIGNATURE
from tests.http.test_anthropic_engine import KEY, MESSAGES, TOOLS, AnthropicTest, tool
from tests.resilience import ask
from tests.scripted import STREAM_HEAD, EngineSide, chunked
from tests.support import CHAT, COMPLETIONS, EMBEDDINGS, RunningGateway, chunk_of, content_of, eventually

LAST_CHUNK = b"0\r\n\r\n"
FAILED = 'gateway_engine_requests_total{model="m",engine="%s",outcome="error"}'


def event(name: str, **fields: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name, **fields})}\n\n".encode()


def start(**more: Any) -> bytes:
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "x", "content": [], **more}
    return event("message_start", message={**message, "usage": {"input_tokens": 3, "output_tokens": 1}})


def words(text: str, index: int = 0) -> bytes:
    return event("content_block_delta", index=index, delta={"type": "text_delta", "text": text})


OPENED = event("content_block_start", index=0, content_block={"type": "text", "text": ""})
ENDING = (
    event("content_block_stop", index=0)
    + event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 4})
    + event("message_stop")
)


def refusal(kind: str, message: str = "no") -> bytes:
    return json.dumps({"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}).encode()


class RefusalsTest(AnthropicTest):
    def answered(self, status: str, body: bytes, headers: str = "") -> tuple[RunningGateway, Any]:
        """The answer to a chat request of an engine that says this to each of its tries."""
        engine = self.scripted()
        running = self.over(self.spec(engine), RETRY_ATTEMPTS=1)
        client = self.begin(running)
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
        engine.take().send(head.encode() + body)
        return running, client.read_response()

    def test_a_request_that_is_wrong_is_the_clients(self) -> None:
        for status, kind in (("400 Bad", "invalid_request_error"), ("404 No", "not_found_error"), ("413 Big", "")):
            with self.subTest(status):
                running, response = self.answered(status, refusal(kind, "said so"))
                self.assertEqual((response.status, response.error), (int(status[:3]), "backend_rejected"))
                self.assertEqual(response.json()["message"], "said so")
                self.assertEqual(self.states(running), ["up"])

    def test_a_prompt_that_is_too_long_has_its_code(self) -> None:
        _, response = self.answered("400 Bad", refusal("invalid_request_error", "prompt is too long: 9 > 8"))
        self.assertEqual(response.json()["details"]["code"], "context_length_exceeded")

    def test_keys_that_are_refused_take_the_engine_out_and_are_named_nowhere(self) -> None:
        for status, kind in (("401 No", "authentication_error"), ("403 No", "permission_error")):
            running, response = self.answered(status, refusal(kind, f"the key {KEY} is none"))
            self.assertEqual((response.status, response.error), (502, "backend_error"))
            self.assertNotIn(KEY, response.body.decode() + running.log.getvalue())

    def test_too_many_requests_and_too_little_money_are_a_pause(self) -> None:
        for status, kind in (("429 Slow", "rate_limit_error"), ("402 Pay", "billing_error")):
            with self.subTest(status):
                running, response = self.answered(status, refusal(kind), "Retry-After: 7\r\n")
                self.assertEqual((response.status, response.error), (429, "backend_rate_limited"), response.body)
                self.assertEqual(response.header("retry-after"), "7")
                self.assertEqual(self.states(running), ["resting"])
        running, response = self.answered("400 Bad", refusal("invalid_request_error", "Your credit balance is too low"))
        self.assertEqual(response.error, "backend_rate_limited")

    def test_what_fails_within_is_the_engines_fault(self) -> None:
        for status, kind in (("500 Oh", "api_error"), ("504 Late", "timeout_error")):
            with self.subTest(status):
                running, response = self.answered(status, refusal(kind, "oh no"))
                self.assertEqual((response.status, response.error), (502, "backend_error"))
                self.assertIn("oh no", response.json()["message"])
                self.assertEqual(running.metrics()[FAILED % self.pool(running).engines[0].id], 1)

    def test_an_engine_that_is_overloaded_is_told_as_that_in_every_dialect(self) -> None:
        said = refusal("overloaded_error", "Overloaded")
        for path, status, kind in ((CHAT, 503, ""), (MESSAGES, 529, "overloaded_error")):
            for told, wait in (("Retry-After: 7\r\n", "7"), ("", "1")):
                with self.subTest(path, wait=wait):
                    engine = self.scripted()
                    running = self.over(self.spec(engine), RETRY_ATTEMPTS=1)
                    client = self.enter(running.connect())
                    client.request("POST", path, {**ask(), "max_tokens": 9})
                    engine.take().send(
                        b"HTTP/1.1 529 Full\r\n%bContent-Length: %d\r\n\r\n" % (told.encode(), len(said)) + said
                    )
                    response = client.read_response()
                    self.assertEqual((response.status, response.header("retry-after")), (status, wait))
                    body = response.json()["error"] if kind else response.json()
                    self.assertEqual(body["message"], "the engine answered 529: Overloaded")
                    self.assertEqual(body.get("type", ""), kind)
                    self.assertEqual(running.metrics()[FAILED % self.pool(running).engines[0].id], 1)

    def test_garbage_for_an_error(self) -> None:
        for body in (b"", b"[]", b"<html>", b'{"error": 7}', b'{"error": {"message": {}}}', b"{}", b"\xff"):
            with self.subTest(body):
                _, response = self.answered("500 Oh", body)
                self.assertEqual((response.status, response.error), (502, "backend_error"))


class MixedTest(AnthropicTest):
    """An engine of each dialect."""

    def mixed(self, *behaviours: str, first: str = "anthropic", **variables: object) -> RunningGateway:
        """One model; both are asked in their order."""
        self.claude, self.gpt = self.anthropic(behaviours[0]), self.engine(behaviours[1])
        specs = [self.spec(self.claude), {"url": self.gpt.url}]
        strategy = {"strategy": "round_robin"}
        return self.over(*(specs if first == "anthropic" else specs[::-1]), model=strategy, **variables)

    def test_either_takes_over_for_the_other(self) -> None:
        for behaviour in ("error", "overloaded", "rate_limit", "unauthorized", "reset", "malformed", "truncate"):
            for first in ("anthropic", "openai"):
                with self.subTest(behaviour, first=first):
                    bad, good = (behaviour, "ok"), ("ok", behaviour)
                    running = self.mixed(*(bad if first == "anthropic" else good), first=first)
                    other = self.gpt if first == "anthropic" else self.claude
                    self.assert_answered_by(running.post(ask()), other.port, 2)

    def test_streams_that_break_before_their_first_word_go_to_the_other(self) -> None:
        for behaviour in ("error_first_event", "malformed"):
            for first in ("anthropic", "openai"):
                with self.subTest(behaviour, first=first):
                    bad, good = (behaviour, "ok"), ("ok", behaviour)
                    running = self.mixed(*(bad if first == "anthropic" else good), first=first)
                    events = self.events(running, ask())
                    self.assertEqual(events[-1], "data: [DONE]")
                    self.assertTrue(content_of(e for e in events if not e.startswith(":")))

    def test_a_request_that_only_one_can_say_goes_there(self) -> None:
        running = self.mixed("ok", "ok")
        for _ in range(4):
            self.assert_answered_by(running.post({"model": "m", "prompt": "hi"}, COMPLETIONS), self.gpt.port, 1)
            self.assert_answered_by(running.post({"model": "m", "input": "hi"}, EMBEDDINGS), self.gpt.port, 1)
        self.assertEqual(self.claude.requests, [])

    def test_who_cannot_be_asked_stands_in_for_nobody(self) -> None:
        asked = {"model": "m", "prompt": "hi"}
        running = self.mixed("ok", "error")
        response = running.post(asked, COMPLETIONS)
        self.assert_error(response, 502, "backend_error")
        self.assertIn("mock error", response.json()["message"])
        self.assertEqual(len(self.gpt.requests), 3)
        self.gpt.control("reset")
        for _ in range(10):
            self.assertEqual(running.post(asked, COMPLETIONS).status, 502)
        self.assertEqual(self.states(running)[1], "open")
        self.gpt.control("ok")
        self.assert_answered_by(running.post(asked, COMPLETIONS), self.gpt.port, 1)  # its last resort
        self.assertEqual(self.claude.requests, [])
        self.assert_nothing_held(running)

    def test_who_cannot_be_asked_is_no_place_for_who_waits(self) -> None:
        self.claude, self.gpt = self.anthropic("hang"), self.engine("hang")
        specs = [{**self.spec(self.claude), "max_concurrency": 1}, {"url": self.gpt.url, "max_concurrency": 1}]
        running = self.over(*specs, model={"strategy": "round_robin"})
        chats = [self.begin(running) for _ in range(2)]
        eventually(lambda: self.claude.requests and self.gpt.requests)
        waiting = self.enter(running.connect())
        waiting.request("POST", COMPLETIONS, {"model": "m", "prompt": "hi"})
        self.wait_for_waiting(running, 1)
        self.claude.control("ok")
        self.assertEqual(chats[0].read_response().status, 200)
        self.wait_for_waiting(running, 0)  # it has been given that engine's place, and waits on for the other's
        self.gpt.control("ok")
        self.assertEqual(chats[1].read_response().status, 200)
        self.assert_answered_by(waiting.read_response(), self.gpt.port, 1)
        self.assertEqual(len(self.claude.requests), 1)
        self.assert_nothing_held(running)

    def test_a_field_that_only_one_has_words_for_goes_there(self) -> None:
        running = self.mixed("ok", "ok", RETRY_ATTEMPTS=1)
        for _ in range(3):
            response = running.post(ask(n=2))
            self.assert_answered_by(response, self.gpt.port)
            self.assertEqual(len(response.json()["choices"]), 2)
        self.gpt.control("error")
        self.assert_error(running.post(ask(n=2)), 502, "backend_error")
        self.assertEqual(self.claude.requests, [])
        self.assert_nothing_held(running)

    def test_thinking_in_the_history_is_given_back_to_the_one_alone(self) -> None:
        running = self.mixed("ok", "ok", first="anthropic")
        thinking = {"type": "thinking", "thinking": "hm", "signature": SIGNATURE, "index": 0}
        said = {"role": "assistant", "content": "well", "reasoning_content": "hm", "thinking_blocks": [thinking]}
        body = ask()
        body["messages"] += [said, {"role": "user", "content": "and"}]
        for _ in range(2):
            self.assertEqual(running.post(body).status, 200)
        asked = self.claude.requests[-1]["body"]["messages"][1]["content"]
        self.assertEqual(asked[0], {"type": "thinking", "thinking": "hm", "signature": SIGNATURE})
        self.assertNotIn("thinking_blocks", self.gpt.requests[-1]["body"]["messages"][1])
        self.assertEqual(self.gpt.requests[-1]["body"]["messages"][1]["content"], "well")

    def test_a_fallback_gets_the_history_in_its_own_words(self) -> None:
        claude, gpt = self.anthropic(), self.engine(model="g")
        models = {"m": {"engines": [self.spec(claude)], "fallbacks": ["g"]}, "g": {"engines": [{"url": gpt.url}]}}
        running = self.serve(models, MY_KEY=KEY, RETRY_ATTEMPTS=1)
        body = ask("weather", tools=TOOLS, reasoning_effort="low")
        said = running.post(body).json()["choices"][0]["message"]
        self.assertIn("thinking_blocks", said)
        claude.control("overloaded")
        result = {"role": "tool", "tool_call_id": said["tool_calls"][0]["id"], "content": "rain"}
        response = running.post({**body, "messages": [*body["messages"], said, result]})
        self.assert_answered_by(response, gpt.port, 2)
        self.assertIn("rain", response.json()["choices"][0]["message"]["content"])
        self.assertNotIn("thinking_blocks", json.dumps(gpt.requests[-1]["body"]))

    def test_a_second_engine_is_asked_when_the_first_is_slow(self) -> None:
        for first in ("anthropic", "openai"):
            with self.subTest(first):
                self.claude, self.gpt = self.anthropic(), self.engine()
                specs = [self.spec(self.claude), {"url": self.gpt.url}]
                specs = specs if first == "anthropic" else specs[::-1]
                running = self.over(*specs, model={"strategy": "round_robin", "hedge_after_ms": 10, "hedge_ratio": 1})
                slow, quick = (self.claude, self.gpt) if first == "anthropic" else (self.gpt, self.claude)
                slow.control("hang")
                self.assert_answered_by(running.post(ask()), quick.port)
                slow.control("ok")

    def test_a_forced_value_of_a_split_reaches_every_dialect(self) -> None:
        claude = self.anthropic(model="c")
        models = {
            "c": {"engines": [self.spec(claude)]},
            "v": {"split": {"c": 1}, "force": {"temperature": 0.5}},
        }
        running = self.serve(models, MY_KEY=KEY)
        message = {"role": "user", "content": "hi"}
        self.assertEqual(running.post({"model": "v", "messages": [message]}).status, 200)
        self.assertEqual(claude.requests[-1]["body"]["temperature"], 0.5)
        answer = running.ask("POST", MESSAGES, {"model": "v", "max_tokens": 9, "messages": [message]})
        self.assertEqual(answer.status, 200, answer.body)
        self.assertEqual(claude.requests[-1]["body"]["temperature"], 0.5)


class NotServedTest(AnthropicTest):
    def test_what_no_engine_of_the_model_can_say_is_refused(self) -> None:
        running = self.one()
        for path, body in ((COMPLETIONS, {"prompt": "hi"}), (EMBEDDINGS, {"input": "hi"}), ("/query", {"query": "hi"})):
            with self.subTest(path):
                self.assert_error(running.post({"model": "m", **body}, path), 400, "endpoint_not_served")
        self.assertEqual(self.mock.requests, [])

    def test_a_fallback_that_can_answers(self) -> None:
        claude, gpt = self.anthropic(), self.engine(model="g")
        models = {"m": {"engines": [self.spec(claude)], "fallbacks": ["g"]}, "g": {"engines": [{"url": gpt.url}]}}
        running = self.serve(models, MY_KEY=KEY)
        self.assert_answered_by(running.post({"model": "m", "prompt": "hi"}, COMPLETIONS), gpt.port, 1)
        response = running.post({"model": "m", "prompt": "hi"}, COMPLETIONS, [("X-Gateway-Fallback", "off")])
        self.assert_error(response, 400, "endpoint_not_served")

    def test_nobody_else_answers_unless_the_model_names_it(self) -> None:
        claude, gpt = self.anthropic(), self.engine(model="g")
        models = {"m": {"engines": [self.spec(claude)]}, "g": {"engines": [{"url": gpt.url}]}}
        running = self.serve(models, MY_KEY=KEY)
        self.assert_error(running.post({"model": "m", "prompt": "hi"}, COMPLETIONS), 400, "endpoint_not_served")
        self.assert_error(running.post({**ask(), "model": "m", "n": 2}), 400, "not_supported")
        self.assertEqual(gpt.stats()["requests"], 0)


class BrokenStreamsTest(AnthropicTest):
    def begin_stream(self, **more: Any) -> tuple[RunningGateway, Any, EngineSide]:
        """A stream whose first words have come."""
        engine = self.scripted()
        running = self.over(self.spec(engine, **more), RETRY_ATTEMPTS=1)
        client = self.begin(running, ask(stream=True), [("X-Request-ID", "broken")])
        side = engine.take()
        side.send(STREAM_HEAD + chunked(start() + OPENED + words("Once ")))
        self.assertEqual(client.read_head().status, 200)
        return running, client, side

    def test_every_way_to_break_off_is_told(self) -> None:
        overloaded = event("error", error={"type": "overloaded_error", "message": "Overloaded"})
        breaks: dict[str, Any] = {
            "closed": lambda side: side.close(),
            "reset": lambda side: side.reset(),
            "ended": lambda side: side.send(LAST_CHUNK),
            "an error": lambda side: side.send(chunked(overloaded)),
            "an error without a name": lambda side: side.send(chunked(overloaded.split(b"\n", 1)[1])),
            "no JSON": lambda side: side.send(chunked(b"event: x\ndata: {\n\n")),
            "half an event": lambda side: (side.send(chunked(words("more")[:-9])), side.send(LAST_CHUNK)),
        }
        for name, breaks_off in breaks.items():
            with self.subTest(name):
                running, client, side = self.begin_stream()
                breaks_off(side)
                events = client.read_events()
                self.assertEqual(content_of(events[:-1]), "Once ")
                self.assertEqual(chunk_of(events[-1])["error"], "backend_error")
                line = running.request_line("broken")
                self.assertEqual((line["error"], line["status"]), ("backend_error", 200))
                self.assert_nothing_held(running)

    def test_an_anthropic_clients_stream_breaks_in_its_own_words(self) -> None:
        running = self.over(self.spec(self.anthropic("drop_mid_stream")))
        body = {"model": "m", "max_tokens": 99, "messages": [{"role": "user", "content": "hi there you"}]}
        events = self.events(running, body, MESSAGES)
        self.assertTrue(events[-1].startswith("event: error\n"))
        self.assertNotIn("message_stop", "".join(events))

    def test_a_message_that_has_ended_but_for_its_last_event_is_whole(self) -> None:
        running = self.over(self.spec(self.anthropic("no_done")))
        chunks = self.chunks(running, ask())
        self.assertEqual(chunks[-1]["choices"][0]["finish_reason"], "stop")

    def test_pings_keep_a_stream_alive_and_are_comments(self) -> None:
        running, client, side = self.begin_stream()
        side.send(chunked(event("ping")))
        events = [client.read_event() for _ in range(3)]
        self.assertEqual(events[-1], ": ping")
        side.send(chunked(words("upon") + ENDING) + LAST_CHUNK)
        self.assertEqual(content_of(client.read_events()), "upon")
        line = running.request_line("broken")
        self.assertEqual((line["prompt_tokens"], line["completion_tokens"], line["error"]), (3, 4, None))

    def test_a_stream_goes_on_at_another_engine(self) -> None:
        first, second = self.scripted(), self.scripted()
        model = {"strategy": "round_robin"}
        running = self.over(self.spec(first, resume=True), self.spec(second, resume=True), model=model)
        client = self.begin(running, ask(stream=True, reasoning_effort="low"))
        side = first.take()
        side.send(STREAM_HEAD + chunked(start() + OPENED + words("Once upon ")))
        client.read_head()
        side.close()
        other = second.take()
        asked = other.json
        said = [{"type": "text", "text": "Once upon"}]
        self.assertEqual(asked["messages"][-1], {"role": "assistant", "content": said})
        self.assertNotIn("thinking", asked)  # who thinks cannot go on with what was said
        self.assertNotIn("continue_final_message", asked)
        other.send(STREAM_HEAD + chunked(start() + OPENED + words("a time") + ENDING) + LAST_CHUNK)
        events = client.read_events()
        self.assertEqual(content_of(events), "Once upon a time")
        self.assertEqual(events[-1], "data: [DONE]")

    def test_an_unasked_stream_is_put_together(self) -> None:
        engine = self.scripted()
        running = self.over(self.spec(engine))
        client = self.begin(running)
        thought = event("content_block_start", index=0, content_block={"type": "thinking", "thinking": ""})
        for delta in ({"type": "thinking_delta", "thinking": "h"}, {"type": "thinking_delta", "thinking": "m"}):
            thought += event("content_block_delta", index=0, delta=delta)
        thought += event("content_block_delta", index=0, delta={"type": "signature_delta", "signature": "sig"})
        thought += event("content_block_stop", index=0)
        used = {"type": "tool_use", "id": "t1", "name": "weather", "input": {}}
        call = event("content_block_start", index=2, content_block=used)
        for piece in ('{"city":', '"Rome"}'):
            call += event("content_block_delta", index=2, delta={"type": "input_json_delta", "partial_json": piece})
        said = event("content_block_start", index=1, content_block={"type": "text", "text": ""}) + words("Once", 1)
        ending = event("message_delta", delta={"stop_reason": "tool_use"}, usage={"output_tokens": 4})
        body = start() + thought + said + call + ending + event("message_stop")
        engine.take().send(STREAM_HEAD + chunked(body) + LAST_CHUNK)
        choice = client.read_response().json()["choices"][0]
        message = choice["message"]
        self.assertEqual((message["content"], message["reasoning_content"]), ("Once", "hm"))
        self.assertEqual(message["tool_calls"][0]["function"]["arguments"], '{"city":"Rome"}')
        self.assertEqual(choice["finish_reason"], "tool_calls")
        self.assertEqual(message["thinking_blocks"], [{"type": "thinking", "thinking": "hm", "signature": "sig"}])


class CorrectedTest(AnthropicTest):
    def test_a_call_that_was_wrong_is_corrected_behind_its_thinking(self) -> None:
        running = self.one()
        self.mock.control("misfit", times=1)
        strict = tool("weather", city={"type": "string"})
        strict["function"]["strict"] = True
        strict["function"]["parameters"]["additionalProperties"] = False
        response = running.post(ask("weather", tools=[strict], reasoning_effort="low"))
        self.assertEqual(response.status, 200, response.body)
        self.assertEqual(len(self.mock.requests), 2)
        self.assertEqual([b["type"] for b in self.asked["messages"][1]["content"]], ["thinking", "tool_use"])


class ReuseTest(AnthropicTest):
    def test_a_kept_answer_is_given_and_one_with_other_thinking_is_not(self) -> None:
        running = self.one(CACHE="on")
        headers = [("X-Gateway-Cache", "on")]
        first = running.post(ask(temperature=0), headers=headers)
        again = running.post(ask(temperature=0), headers=headers)
        self.assertEqual(first.json()["choices"], again.json()["choices"])
        self.assertEqual(len(self.mock.requests), 1)
        body = {"model": "m", "max_tokens": 5000, "temperature": 0, "messages": ask()["messages"]}
        for budget in (1024, 2048):
            thinking = {"type": "enabled", "budget_tokens": budget}
            self.assertEqual(running.ask("POST", MESSAGES, {**body, "thinking": thinking}).status, 200)
        self.assertEqual(len(self.mock.requests), 3)

    def test_an_answer_to_other_words_is_none_to_other_thinking(self) -> None:
        running = self.one(CACHE="on", CACHE_NEAR="on")
        found = []
        for question, budget in (("What is", 1024), ("what is", 1024), ("what's", 2048)):
            message = {"role": "user", "content": f"{question} the capital of France?"}
            body = {"model": "m", "max_tokens": 5000, "temperature": 0, "messages": [message]}
            body["thinking"] = {"type": "enabled", "budget_tokens": budget}
            found.append(running.ask("POST", MESSAGES, body).header("x-gateway-cache"))
        self.assertEqual(found, ["miss", "near", "miss"])

    def test_requests_alike_are_asked_once(self) -> None:
        running = self.one()
        self.mock.control("hang")
        clients = [self.begin(running, ask(temperature=0)) for _ in range(3)]
        eventually(lambda: len(self.mock.requests) == 1)
        self.mock.control("ok")
        answers = [client.read_response().json()["choices"] for client in clients]
        self.assertEqual(answers, [answers[0]] * 3)
        self.assertEqual(len(self.mock.requests), 1)


class WatchedTest(AnthropicTest):
    def test_models_that_the_engines_list(self) -> None:
        claude = self.anthropic(model="claude-x")
        group = {"models": "auto", "engines": [self.spec(claude)]}
        running = self.serve({"local": group}, MY_KEY=KEY, HEALTH_INTERVAL=0.05)
        eventually(lambda: "claude-x" in [model["id"] for model in running.get("/v1/models").json()["data"]])
        self.assert_answered_by(running.post(ask(model="claude-x")), claude.port, 1)
        self.assertEqual(claude.requests[-1]["body"]["model"], "claude-x")

    def test_probes_see_an_engine_go_and_come_back(self) -> None:
        running = self.one(HEALTH_INTERVAL="0.05", HEALTH_TIMEOUT="5")
        self.mock.control("loading")
        eventually(lambda: self.states(running) == ["down"])
        self.mock.control("ok")
        eventually(lambda: self.states(running) == ["up"])


if __name__ == "__main__":
    unittest.main()
