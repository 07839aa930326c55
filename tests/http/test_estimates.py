"""Estimated tokens over real sockets: the same for the same text, streamed or not, escaped or not, large or small."""

from __future__ import annotations

import json
import unittest
from typing import Any, Optional

from tests.access import AccessTest, ask
from tests.scripted import DONE, STREAM_HEAD, ScriptedEngine, chunked
from tests.support import CHAT, COMPLETIONS, Header, Response, RunningGateway

SENTENCE = 'She said: "C:\\temp\\n", naïve — 你好，世界! привет 😀🎉\n'
WEIGHT, TOKENS = 84, 21
"""Of the sentence."""


def tool_call(arguments: str) -> list[dict[str, Any]]:
    return [{"index": 0, "id": "c1", "type": "function", "function": {"name": "find", "arguments": arguments}}]


class EstimatesTest(AccessTest):
    """A scripted engine that gives no usage, behind a gateway whose clock of the limits stands still."""

    def setUp(self) -> None:
        super().setUp()
        self.scripted = self.enter(ScriptedEngine())

    def start(self, **model: Any) -> RunningGateway:
        running = self.serve({"m": {"engines": [self.scripted.url], **model}}, HEALTH_INTERVAL=0)
        self.freeze(running)
        return running

    def completed(
        self,
        running: RunningGateway,
        said: dict[str, Any],
        body: Optional[dict[str, Any]] = None,
        path: str = CHAT,
        ascii_only: bool = True,
        headers: Optional[list[Header]] = None,
    ) -> Response:
        """The client's answer when the engine's only choice is `said`."""
        with running.connect() as client:
            client.request("POST", path, body or ask("hi"), headers or [])
            side = self.scripted.take()
            choice = {"index": 0, **said, "finish_reason": "stop"}
            answer = {"id": "a", "object": "x", "model": "m", "choices": [choice]}
            side.answer(json.dumps(answer, ensure_ascii=ascii_only).encode())
            found = client.read_response()
            side.close()
        self.assertEqual(found.status, 200, found.body[:200])
        return found

    def streamed(
        self, running: RunningGateway, deltas: list[dict[str, Any]], path: str = CHAT, ascii_only: bool = True
    ) -> dict[str, Any]:
        """The log line of a stream of choices, in events of their own."""
        with running.connect() as client:
            client.request("POST", path, {**(ask("hi") if path == CHAT else {"prompt": "hi"}), "stream": True})
            side = self.scripted.take()
            side.send(STREAM_HEAD)
            for number, said in enumerate(deltas, 1):
                finish = "stop" if number == len(deltas) else None
                event = {"id": "a", "choices": [{"index": 0, **said, "finish_reason": finish}]}
                side.send(chunked(b"data: %b\n\n" % json.dumps(event, ensure_ascii=ascii_only).encode()))
            side.send(chunked(DONE) + b"0\r\n\r\n")
            head = client.read_head()
            self.assertEqual(client.read_events()[-1], "data: [DONE]")
            side.close()
        return running.request_line(head.request_id)


class SameTextTest(EstimatesTest):
    KINDS: tuple[tuple[str, Any], ...] = (
        ("content", lambda text: {"content": text}),
        ("reasoning_content", lambda text: {"reasoning_content": text}),
        ("reasoning", lambda text: {"reasoning": text}),
        ("refusal", lambda text: {"refusal": text}),
        ("tool arguments", lambda text: {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}),
        ("function arguments", lambda text: {"function_call": {"arguments": text}}),
    )

    def test_what_was_generated_counts_alike_streamed_and_not(self) -> None:
        running = self.start()
        for name, of in self.KINDS:
            for ascii_only in (True, False):
                with self.subTest(name, ascii_only=ascii_only):
                    answer = self.completed(running, {"message": of(SENTENCE)}, ascii_only=ascii_only)
                    self.assertEqual(answer.json()["usage"]["completion_tokens"], TOKENS)
                    line = running.request_line(answer.request_id)
                    self.assertEqual((line["completion_tokens"], line["usage_estimated"]), (TOKENS, True))
                    pieces = [{"delta": of(SENTENCE[start : start + 5])} for start in range(0, len(SENTENCE), 5)]
                    line = self.streamed(running, [*pieces, {"delta": {}}], ascii_only=ascii_only)
                    self.assertEqual((line["completion_tokens"], line["usage_estimated"]), (TOKENS, True))

    def test_completions_too(self) -> None:
        running = self.start()
        answer = self.completed(running, {"text": SENTENCE}, {"prompt": "hi"}, COMPLETIONS)
        self.assertEqual(answer.json()["usage"]["completion_tokens"], TOKENS)
        pieces = [{"text": SENTENCE[start : start + 5]} for start in range(0, len(SENTENCE), 5)]
        self.assertEqual(self.streamed(running, pieces, COMPLETIONS)["completion_tokens"], TOKENS)

    def test_all_that_one_answer_holds_adds_up(self) -> None:
        running = self.start()
        message = {"content": "x" * 8, "reasoning_content": "y" * 40, "tool_calls": tool_call("z" * 28)}
        answer = self.completed(running, {"message": message})
        self.assertEqual(answer.json()["usage"]["completion_tokens"], (8 + 40 + 4 + 28) // 4)
        deltas = [{"content": "x" * 8}, {"reasoning_content": "y" * 40}, {"tool_calls": tool_call("z" * 28)}, {}]
        line = self.streamed(running, [{"delta": delta} for delta in deltas])
        self.assertEqual(line["completion_tokens"], (8 + 40 + 4 + 28) // 4)

    def test_a_large_answer_too(self) -> None:
        running = self.start()
        many = 16_384  # some megabytes
        for ascii_only in (True, False):
            answer = self.completed(running, {"message": {"content": SENTENCE * many}}, ascii_only=ascii_only)
            self.assertGreater(len(answer.body), 1 << 20)
            tokens = answer.json()["usage"]["completion_tokens"]
            self.assertEqual(tokens, WEIGHT * many // 4)

    def test_the_echo_engine_counts_so(self) -> None:
        running = self.serve()
        for body in (ask("你" * 40), ask("你" * 40, stream=True)):
            answer = running.post(body)
            line = running.request_line(answer.request_id)
            self.assertEqual((line["prompt_tokens"], line["completion_tokens"]), (40, 42))  # "Echo: " before it


class ReservedTest(EstimatesTest):
    def test_limits_and_costs_go_by_the_same_estimates(self) -> None:
        running = self.start(price={"input": 1, "output": 1})
        key = self.make(running, tpm=2_000, budget_usd=1)
        body = ask("你" * 100, max_tokens=300)
        answer = self.completed(running, {"message": {"content": "好" * 50}}, body, headers=key)
        self.assertEqual(answer.header("x-ratelimit-remaining-tokens"), str(2_000 - 400))
        self.assertEqual(float(answer.header("x-gateway-cost-usd") or 0), 150 / 1e6)
        answer = self.completed(running, {"message": {"content": "x"}}, body, headers=key)
        self.assertEqual(answer.header("x-ratelimit-remaining-tokens"), str(2_000 - 150 - 400))
        answer = running.post(ask("你" * 2_000, max_tokens=1), headers=key)
        self.assert_error(answer, 400, "request_exceeds_limit")

    def test_so_does_the_room_in_a_models_context(self) -> None:
        running = self.start(max_model_len=1_000)
        refused = running.post(ask("你" * 1_001))
        self.assert_error(refused, 400, "context_too_long")
        self.assertEqual(refused.json()["estimated_tokens"], 1_001)
        self.completed(running, {"message": {"content": "x"}}, ask("x" * 3_900))


if __name__ == "__main__":
    unittest.main()
