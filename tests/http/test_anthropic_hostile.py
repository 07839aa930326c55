"""Engines that speak Anthropic's Messages and say what nobody expects: too much, nothing, or what is no message."""

from __future__ import annotations

import json
import random
import unittest
from typing import Any

from tests.http.test_anthropic_engine import AnthropicTest
from tests.http.test_anthropic_failures import ENDING, LAST_CHUNK, OPENED, event, start, words
from tests.resilience import ask
from tests.scripted import STREAM_HEAD, chunked
from tests.support import RunningGateway, chunk_of, content_of, eventually

PRICE = {"input": 10, "output": 100}
ODD: list[Any] = [None, True, -1, 0, 2**70, 1e300, "", "x", "\ud800", "text", [], [[]], {}, {"type": {}}, {"text": "a"}]
KEYS = (
    *("type", "index", "message", "content", "content_block", "delta", "text", "thinking", "signature", "partial_json"),
    *("usage", "input_tokens", "output_tokens", "stop_reason", "stop_sequence", "name", "id", "input", "error", "data"),
)
KINDS = (
    *("message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta", "ping"),
    *("text", "tool_use", "thinking", "text_delta", "input_json_delta", "thinking_delta", "message", "x"),
)


def odd(dice: random.Random, depth: int = 3) -> Any:
    """An object such as no engine should send."""
    value: dict[str, Any] = {"type": dice.choice(KINDS)}
    for key in dice.sample(KEYS, dice.randrange(6)):
        if depth and dice.random() < 0.5:
            inner = odd(dice, depth - 1)
            value[key] = [inner] if dice.random() < 0.3 else inner
        else:
            value[key] = dice.choice(ODD)
    return value


class HostileTest(AnthropicTest):
    def answered(self, body: bytes, **variables: object) -> tuple[RunningGateway, Any]:
        """The answer to a chat request for which the engine says this."""
        engine = self.scripted()
        running = self.over(self.spec(engine), RETRY_ATTEMPTS=1, **variables)
        client = self.begin(running)
        engine.take().answer(body)
        return running, client.read_response()

    def test_what_is_no_message_is_the_engines_fault(self) -> None:
        deep = b'{"type":"message","content":' + b"[" * 5000 + b"]" * 5000 + b"}"
        error = b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}'
        for body in (b"", b"{", b"[]", b"7", b"{}", b'{"content":7}', b"\xff", deep, error, b'{"choices":[{}]}'):
            with self.subTest(body[:50]):
                running, response = self.answered(body)
                self.assertEqual((response.status, response.error), (502, "backend_error"), response.body[:500])
                self.assert_nothing_held(running)

    def test_a_message_without_words_is_an_empty_answer(self) -> None:
        _, response = self.answered(b'{"type":"message","content":[],"stop_reason":"end_turn"}')
        choice = response.json()["choices"][0]
        self.assertEqual((choice["message"]["content"], choice["finish_reason"]), ("", "stop"))

    def test_a_large_answer_comes_whole_and_one_that_is_too_large_does_not(self) -> None:
        said = "\u00e4" * 3_000_000
        usage = {"input_tokens": 1, "output_tokens": 2}
        body = json.dumps({"content": [{"type": "text", "text": said}], "usage": usage})
        _, response = self.answered(body.encode())
        self.assertEqual(response.json()["choices"][0]["message"]["content"], said)
        self.assertEqual(response.json()["usage"]["total_tokens"], 3)
        small = json.dumps({"content": [{"type": "text", "text": "a" * 3000}]})
        _, response = self.answered(small.encode(), MAX_ANSWER_BYTES=2000)
        self.assertEqual(response.error, "backend_error")

    def test_large_events(self) -> None:
        engine = self.scripted()
        running = self.over(self.spec(engine), RETRY_ATTEMPTS=1, MAX_EVENT_BYTES=1_000_000)
        for size, is_whole in ((900_000, True), (1_100_000, False)):
            with self.subTest(size):
                client = self.begin(running, ask(stream=True))
                side = engine.take()
                side.send(STREAM_HEAD + chunked(start() + OPENED + words("a")))
                client.read_head()
                side.send(chunked(words("x" * size)))
                if is_whole:
                    side.send(chunked(ENDING) + LAST_CHUNK)
                events = client.read_events()
                self.assertEqual(events[-1] == "data: [DONE]", is_whole)
                self.assertEqual(len(content_of(e for e in events if "error" not in e)), 1 + size * is_whole)
                side.close()

    def test_an_event_of_many_values_or_blocks_without_an_end_break_the_stream(self) -> None:
        begun = [event("content_block_start", index=at, content_block={"type": "thinking"}) for at in range(1100)]
        for name, data in (("values", event("x", v=[0] * 100_000)), ("blocks", b"".join(begun) + ENDING)):
            with self.subTest(name):
                engine = self.scripted()
                running = self.over(self.spec(engine), RETRY_ATTEMPTS=1)
                client = self.begin(running, ask(stream=True))
                engine.take().send(STREAM_HEAD + chunked(start() + OPENED + words("a") + data) + LAST_CHUNK)
                client.read_head()
                self.assertEqual(chunk_of(client.read_events()[-1])["error"], "backend_error")

    def test_whatever_an_engine_says_the_client_gets_an_answer_or_an_error(self) -> None:
        dice = random.Random(14)
        engine = self.scripted()
        running = self.over(self.spec(engine), RETRY_ATTEMPTS=1, BREAKER_FAILURES=1_000_000)
        for at in range(150):
            body = odd(dice)
            if at % 2:
                body.update(type="message", content=[odd(dice) for _ in range(3)])
            client = self.begin(running)
            side = engine.take()
            side.answer(json.dumps(body).encode())
            response = client.read_response()
            self.assertIn(response.status, (200, 502), response.body)
            client.close()
            side.close()
        for _ in range(150):
            client = self.begin(running, ask(stream=True))
            side = engine.take()
            said = b"".join(b"data: %b\n\n" % json.dumps(odd(dice)).encode() for _ in range(12))
            side.send(STREAM_HEAD + chunked(start() + OPENED + words("a") + said + ENDING) + LAST_CHUNK)
            if client.read_head().status == 200:
                events = client.read_events()
                ended = events[-1] == "data: [DONE]"
                self.assertTrue(ended or chunk_of(events[-1])["error"], events)
            client.close()
            side.close()
        self.assertEqual(
            {line["event"] for line in running.log_lines()} - {"started", "request", "engine_state"}, set()
        )
        self.assert_nothing_held(running)


class SilenceTest(AnthropicTest):
    def test_an_engine_that_says_nothing_more_is_given_up(self) -> None:
        engine = self.anthropic("hang_mid_stream")
        running = self.over(self.spec(engine), STREAM_IDLE_TIMEOUT=0.2)
        events = self.events(running, ask())
        self.assertIn("error", chunk_of(events[-1]))
        self.assertNotIn("data: [DONE]", events)

    def test_pings_before_an_error_begin_no_stream(self) -> None:
        first, other = self.scripted(), self.anthropic()
        model = {"strategy": "round_robin"}
        running = self.over(self.spec(first), self.spec(other), model=model)
        client = self.begin(running, ask(stream=True))
        overloaded = event("error", error={"type": "overloaded_error", "message": "Overloaded"})
        first.take().send(STREAM_HEAD + chunked(event("ping") * 3) + chunked(overloaded) + LAST_CHUNK)
        self.assertEqual(client.read_head().status, 200)
        events = client.read_events()
        self.assertEqual(events[-1], "data: [DONE]")
        eventually(lambda: len(other.requests) == 1)


class CostTest(AnthropicTest):
    def test_cached_tokens_are_charged_with_the_prompt(self) -> None:
        running = self.one_with_price()
        mark = {"cache_control": {"type": "ephemeral"}}
        messages = [{"role": "user", "content": [{"type": "text", "text": "one two three", **mark}]}]
        for stream in (False, True):
            with self.subTest(stream=stream):
                name = f"cost-{stream}"
                with running.connect() as client:
                    body = {"model": "m", "messages": messages, "stream": stream}
                    client.request("POST", "/v1/chat/completions", body, [("X-Request-ID", name)])
                    client.read_response()
                line = running.request_line(name)
                self.assertEqual(line["prompt_tokens"], 4)  # three written to the cache, and at least one besides
                cost = (4 * PRICE["input"] + line["completion_tokens"] * PRICE["output"]) / 1e6
                self.assertAlmostEqual(line["cost_usd"], cost, places=12)

    def one_with_price(self) -> RunningGateway:
        self.mock = self.anthropic()
        return self.over(self.spec(self.mock), model={"price": PRICE})

    def test_usage_that_is_not_told_is_estimated(self) -> None:
        running = self.over(self.spec(self.anthropic("no_usage")))
        response = running.post(ask())
        self.assertTrue(running.request_line(response.request_id)["usage_estimated"])
        self.assertGreater(response.json()["usage"]["prompt_tokens"], 0)


if __name__ == "__main__":
    unittest.main()
