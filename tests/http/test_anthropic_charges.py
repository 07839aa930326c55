"""What an answer of an engine of Anthropic's dialect is charged, in budgets and limits of tokens: what its usage says.

Its `input_tokens` are only those that no cache had anything to do with: the prompt is these, what was written to a
cache and what was read from one.
"""

from __future__ import annotations

import json
import unittest
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.access import AccessTest
from tests.clients import ANTHROPIC, LACKED
from tests.dialects import MESSAGES, OLLAMA_CHAT, RESPONSES, asking
from tests.scripted import STREAM_HEAD, EngineSide, ScriptedEngine, chunked
from tests.support import CHAT, Header, Response, RunningGateway, eventually

PRICE = {"input": 1_000.0, "output": 2_000.0}
MARK = {"cache_control": {"type": "ephemeral"}}
USAGE = {"input_tokens": 7, "cache_creation_input_tokens": 20, "cache_read_input_tokens": 300, "output_tokens": 4}
PROMPT_TOKENS, ANSWER_TOKENS = 327, 4


def cost_usd(prompt_tokens: int, answer_tokens: int) -> float:
    return (prompt_tokens * PRICE["input"] + answer_tokens * PRICE["output"]) / 1e6


def message(usage: Any, text: str = "ok") -> dict[str, Any]:
    said = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn"}
    return {**said, "stop_sequence": None, "content": [{"type": "text", "text": text}], "usage": usage}


def events(started: Any, ended: Any, text: str = "ok") -> bytes:
    """A stream whose message_start and message_delta tell these usages; None: none."""
    begun: dict[str, Any] = {**message(started, text), "content": [], "stop_reason": None}
    if started is None:
        del begun["usage"]
    delta: dict[str, Any] = {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}}
    if ended is not None:
        delta["usage"] = ended
    told: list[dict[str, Any]] = [
        {"type": "message_start", "message": begun},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}},
        {"type": "content_block_stop", "index": 0},
        delta,
        {"type": "message_stop"},
    ]
    return b"".join(b"event: %b\ndata: %b\n\n" % (one["type"].encode(), json.dumps(one).encode()) for one in told)


class ChargesTest(AccessTest):
    def start(self, url: str, **variables: object) -> RunningGateway:
        engines = [{"url": url, "dialect": ANTHROPIC}]
        return self.serve({"m": {"engines": engines, "price": PRICE}}, HEALTH_INTERVAL=0, **variables)

    def assert_charged(self, running: RunningGateway, answer: Response, prompt_tokens: int, answer_tokens: int) -> None:
        """That much, and nothing else, has been charged to the key `alice`, and is told everywhere."""
        line = running.request_line(answer.request_id)
        self.assertEqual((line["prompt_tokens"], line["completion_tokens"]), (prompt_tokens, answer_tokens))
        self.assertFalse(line["usage_estimated"])
        cost = cost_usd(prompt_tokens, answer_tokens)
        self.assertAlmostEqual(line["cost_usd"], cost, places=12)
        eventually(lambda: abs(running.app.guard.budgets.spent_usd("alice") - cost) < 1e-12)


class MockTest(ChargesTest):
    def test_every_clients_answer_whole_and_streamed(self) -> None:
        engine = self.engine(lacks=LACKED[ANTHROPIC])
        for path in (CHAT, MESSAGES, RESPONSES, OLLAMA_CHAT):
            for stream in (False, True):
                with self.subTest(path, stream=stream):
                    self.db = self.directory / f"{path.replace('/', '-')}-{stream}.db"
                    running = self.start(engine.url)
                    key = self.make(running, budget_usd=100.0)
                    answer = running.post(asking(path, stream=stream), path, key)
                    self.assertEqual(answer.status, 200, answer.body)
                    self.assert_charged(running, answer, 2, 8)
                    running.stop()

    def test_what_a_cache_has_written_and_read_is_of_the_prompt(self) -> None:
        engine = self.engine(lacks=LACKED[ANTHROPIC])
        text = {"type": "text", **MARK}
        for path, stream in ((path, stream) for path in (CHAT, MESSAGES) for stream in (False, True)):
            with self.subTest(path, stream=stream):
                self.db = self.directory / f"{path.replace('/', '-')}-{stream}.db"
                running = self.start(engine.url)
                key = self.make(running, budget_usd=100.0)
                system: list[Any] = [{**text, "text": "five words make this up"}]
                body = asking(path, stream=stream)
                body["messages"][0]["content"] = [{**text, "text": "two words"}, {"type": "text", "text": " more"}]
                if path == CHAT:
                    body["messages"].insert(0, {"role": "system", "content": system})
                else:
                    body["system"] = system
                answer = running.post(body, path, key)
                self.assertEqual(answer.status, 200, answer.body)
                self.assert_charged(running, answer, 5 + 2 + 1, 9)
                running.stop()


class UsageTest(ChargesTest):
    """A scripted engine tells the usage; the clock of the limits stands still."""

    def setUp(self) -> None:
        super().setUp()
        self.scripted = self.enter(ScriptedEngine())
        self.running = self.start(self.scripted.url)
        self.freeze(self.running)
        self.key: list[Header] = self.make(self.running, budget_usd=100.0, tpm=10_000)

    def ask(self, said: bytes, stream: bool = False) -> Response:
        """The answer to a chat request of which the engine says that."""
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(self.running.post, asking(CHAT, stream=stream), CHAT, self.key)
            side: EngineSide = self.scripted.take()
            if stream:
                side.send(STREAM_HEAD + chunked(said) + b"0\r\n\r\n")
            else:
                side.answer(said)
            answer = asked.result()
        side.close()
        self.assertEqual(answer.status, 200, answer.body)
        return answer

    def assert_tokens_taken(self, tokens: int) -> None:
        """Of the key's limit, that many are gone."""
        scope = self.key_scopes(self.running)["alice"]
        self.assertEqual(scope.in_flight, 0)
        left = self.running.post({"model": "nope", **asking(CHAT), "temperature": 7}, CHAT, self.key)
        self.assertEqual(left.header("x-ratelimit-remaining-tokens"), str(10_000 - tokens))

    def test_a_whole_answer(self) -> None:
        answer = self.ask(json.dumps(message(USAGE)).encode())
        self.assert_charged(self.running, answer, PROMPT_TOKENS, ANSWER_TOKENS)
        self.assert_tokens_taken(PROMPT_TOKENS + ANSWER_TOKENS)
        self.assertAlmostEqual(
            float(answer.header("x-gateway-cost-usd") or 0), cost_usd(PROMPT_TOKENS, ANSWER_TOKENS), places=9
        )

    def test_a_stream_that_tells_the_prompt_first_and_the_answer_last(self) -> None:
        answer = self.ask(events({**USAGE, "output_tokens": 1}, {"output_tokens": 4}), stream=True)
        self.assert_charged(self.running, answer, PROMPT_TOKENS, ANSWER_TOKENS)
        self.assert_tokens_taken(PROMPT_TOKENS + ANSWER_TOKENS)

    def test_a_stream_that_tells_all_at_its_end(self) -> None:
        """The figures are totals; what is null or left out has not changed."""
        first = {"input_tokens": 0, "output_tokens": 0, "cache_read_input_tokens": 300}
        last = {**USAGE, "cache_read_input_tokens": None}
        answer = self.ask(events(first, last), stream=True)
        self.assert_charged(self.running, answer, PROMPT_TOKENS, ANSWER_TOKENS)
        self.assert_tokens_taken(PROMPT_TOKENS + ANSWER_TOKENS)

    def test_what_no_cache_has_seen(self) -> None:
        none = {
            "input_tokens": 9,
            "output_tokens": 2,
            "cache_creation_input_tokens": None,
            "cache_read_input_tokens": None,
        }
        answer = self.ask(json.dumps(message(none)).encode())
        self.assert_charged(self.running, answer, 9, 2)

    def test_figures_of_a_beginning_are_not_those_of_the_whole(self) -> None:
        """What a stream has said of its answer before there was any is no reason to charge nothing for it."""
        said = "four words, and more " * 20
        for ended in (None, {}):
            with self.subTest(ended=ended):
                answer = self.ask(events({**USAGE, "output_tokens": 1}, ended, said), stream=True)
                line = self.running.request_line(answer.request_id)
                self.assertTrue(line["usage_estimated"])
                self.assertGreater(line["completion_tokens"], 80)


if __name__ == "__main__":
    unittest.main()
