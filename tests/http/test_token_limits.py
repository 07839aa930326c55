"""Limits of tokens over real sockets: what may be used is reserved, what was used counts, and nothing else."""

from __future__ import annotations

import json
import unittest
from typing import Any, Optional

from tests.access import AccessTest, Clock, ask
from tests.scripted import EngineSide, ScriptedEngine
from tests.support import CHAT, COMPLETIONS, EMBEDDINGS, Header, RawClient, Response, RunningGateway, eventually

ECHO = {"echo": {"engines": ["echo:"]}}


def remaining(answer: Response) -> int:
    """The tokens that may pass at once, as the answer says."""
    return int(answer.header("x-ratelimit-remaining-tokens") or -1)


def answer_of(prompt: int, completion: int) -> bytes:
    """An engine's answer with that usage."""
    choice = {"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return json.dumps({"id": "a", "model": "m", "choices": [choice], "usage": usage}).encode()


class TokenLimitsTest(AccessTest):
    """One scripted engine; the clock of the limits stands still."""

    def start(self, models: Optional[dict[str, Any]] = None, **variables: object) -> RunningGateway:
        self.scripted = self.enter(ScriptedEngine())
        engines = {"engines": [self.scripted.url]}
        running = self.serve({"m": {**engines, **(models or {})}}, HEALTH_INTERVAL=0, **variables)
        self.clock: Clock = self.freeze(running)
        self.idle: list[EngineSide] = []
        return running

    def take(self) -> EngineSide:
        """The next request, on a connection kept from before or a new one."""
        return self.idle.pop().read_request() if self.idle else self.scripted.take()

    def served(self, running: RunningGateway, key: list[Header], body: Any, prompt: int, completion: int) -> Response:
        """The answer to a request that passes, of which the engine says that it took so many tokens."""
        with running.connect() as client:
            client.request("POST", CHAT, body, key)
            side = self.take()
            side.answer(answer_of(prompt, completion))
            answer = client.read_response()
        self.idle.append(side)
        self.assertEqual(answer.status, 200, answer.body)
        return answer

    def assert_refused(self, answer: Response, retry_after_s: int, limit: str = "key tokens per minute") -> None:
        self.assert_error(answer, 429, "rate_limit_exceeded")
        self.assertEqual((answer.json()["limit"], answer.header("retry-after")), (limit, str(retry_after_s)))

    def storm(self, running: RunningGateway, key: list[Header], limit: str) -> None:
        """30 requests at once of 400 tokens against 2 000: 5 pass, and the next ones when these have used 5 each."""
        body = ask("hi there", max_tokens=398)  # and two of the prompt
        clients: list[RawClient] = []
        for _ in range(30):
            client = self.enter(running.connect())
            client.request("POST", CHAT, body, key)
            clients.append(client)
        sides = [self.take() for _ in range(5)]
        eventually(lambda: [line["status"] for line in running.request_lines()].count(429) == 25)
        for side in sides:
            side.answer(answer_of(2, 3))
        answers = [client.read_response() for client in clients]
        refused = [answer for answer in answers if answer.status != 200]
        self.assertEqual((len(answers), len(refused)), (30, 25))
        for answer in refused:
            self.assert_refused(answer, 12, limit)
        self.idle = sides
        self.assertEqual(remaining(self.served(running, key, body, 2, 3)), 2_000 - 5 * 5 - 400)
        self.assertTrue(self.scripted.nobody_waits())


class WhatPassesTest(TokenLimitsTest):
    def test_a_minute_of_a_key_passes_at_once_and_what_was_not_used_comes_back(self) -> None:
        running = self.start()
        self.storm(running, self.make(running, tpm=2_000), "key tokens per minute")

    def test_of_a_model_likewise(self) -> None:
        running = self.start({"tpm": 2_000})
        self.storm(running, self.make(running), "model tokens per minute")

    def test_of_everybody_likewise(self) -> None:
        running = self.start(RATE_LIMIT_GLOBAL_TPM=2_000)
        self.storm(running, [], "global tokens per minute")

    def test_of_a_key_that_has_the_default_likewise(self) -> None:
        running = self.start(RATE_LIMIT_TPM=2_000)
        self.storm(running, self.make(running), "key tokens per minute")

    def test_who_has_used_nearly_all_waits_for_what_is_lacking(self) -> None:
        running = self.start()
        key = self.make(running, tpm=12_000)
        self.served(running, key, ask("hi there", max_tokens=20), 11_900, 10)
        refused = running.post(ask("hi there", max_tokens=498), headers=key)
        self.assert_refused(refused, 3)  # 2.05, in whole seconds
        self.assertEqual(remaining(refused), 90)
        self.clock.now_s += 2.04
        self.assert_refused(running.post(ask("hi there", max_tokens=498), headers=key), 1)
        self.clock.now_s += 0.02
        self.served(running, key, ask("hi there", max_tokens=498), 2, 3)

    def test_one_that_says_no_length_reserves_its_prompt_and_is_charged_with_its_answer(self) -> None:
        running = self.start()
        key = self.make(running, tpm=1_000)
        for left in (1_000, 690, 380, 70):
            self.assertEqual(remaining(self.served(running, key, ask("hi there"), 10, 300)), left - 2)
        self.assert_refused(running.post(ask("hi there"), headers=key), 15)  # 240 more than a minute's, and 2

    def test_what_fails_or_is_left_takes_nothing(self) -> None:
        running = self.start({"fallbacks": []}, RETRY_ATTEMPTS=1, BREAKER_MIN_REQUESTS=1_000)
        key = self.make(running, tpm=2_000)
        body = ask("hi there", max_tokens=1_998)
        with running.connect() as client:
            client.request("POST", CHAT, body, key)
            side = self.take()
            side.answer(b"{}", status="500 Oops")
            self.assertEqual(client.read_response().status, 502)
        self.idle.append(side)
        left = self.begin(running, key, text="hi there", max_tokens=1_998)
        side = self.take()
        left.close()
        self.assertTrue(side.wait_until_left())
        eventually(lambda: not running.app.pipeline.in_flight)
        self.served(running, key, body, 2, 3)

    def test_refusals_take_nothing(self) -> None:
        running = self.start({"rpm": 600})
        key = self.make(running, tpm=2_000)
        for _ in range(5):
            self.assert_error(running.post(ask(max_tokens=2_000), headers=key), 400, "request_exceeds_limit")
        self.assertEqual(remaining(self.served(running, key, ask("hi there", max_tokens=1_998), 2, 3)), 0)

    def test_the_burst_is_a_setting_and_requests_have_theirs(self) -> None:
        running = self.start(RATE_LIMIT_TOKEN_BURST=0.2, RATE_LIMIT_BURST=1)
        key = self.make(running, tpm=10_000, rpm=8)
        self.assertEqual(remaining(self.served(running, key, ask("hi there", max_tokens=98), 2, 98)), 1_900)
        # More than may pass at once comes through alone, when all before it is paid off.
        self.assert_refused(running.post(ask("hi there", max_tokens=8_998), headers=key), 1)
        self.clock.now_s += 0.61
        answer = self.served(running, key, ask("hi there", max_tokens=8_998), 2, 98)
        self.assertEqual(remaining(answer), 0)
        for _ in range(5):
            answer = self.served(running, key, ask("hi there", max_tokens=98), 2, 3)
        self.assertEqual(answer.header("x-ratelimit-remaining-requests"), "1")

    def test_a_changed_limit_remembers_what_was_used(self) -> None:
        running = self.start()
        key = self.make(running, tpm=2_000)
        self.served(running, key, ask("hi there", max_tokens=1_498), 2, 1_498)
        db = running.app.guard.open_db()
        db.write_now(lambda connection: connection.execute("UPDATE keys SET tpm = 4000"))
        eventually(lambda: running.post(b"{", headers=key).header("x-ratelimit-limit-tokens") == "4000")
        self.assertEqual(remaining(self.served(running, key, ask("hi there", max_tokens=98), 2, 98)), 4_000 - 1_600)


class StreamsTest(TokenLimitsTest):
    def test_a_stream_is_settled_by_what_it_has_given(self) -> None:
        engine = self.engine()
        running = self.serve({"m": {"engines": [engine.url]}})
        self.freeze(running)
        key = self.make(running, tpm=2_000)
        for _ in range(10):  # each on a connection of its own: none would fit if the one before still held its 1 500
            with running.connect() as client:
                client.request("POST", CHAT, ask("hi there", stream=True, max_tokens=1_498), key)
                self.assertEqual(client.read_head().status, 200)
                self.assertEqual(client.read_events()[-1], "data: [DONE]")


class OtherPathsTest(TokenLimitsTest):
    def test_completions_and_embeddings_have_the_minute_at_once_too(self) -> None:
        running = self.serve(ECHO)
        self.freeze(running)
        for path, body in (
            (COMPLETIONS, {"prompt": "x" * 40, "max_tokens": 390}),
            (EMBEDDINGS, {"input": "x" * 1_600}),
        ):
            with self.subTest(path):
                key = self.make(running, path.rsplit("/", 1)[1], tpm=2_000)
                self.assertEqual(remaining(running.post(body, path, key)), 1_600)


if __name__ == "__main__":
    unittest.main()
