"""Fields by path on real sockets: what a path does not read bends no limit, breaks nothing, and reaches the engine."""

from __future__ import annotations

import json
import random
import unittest
from typing import Any
from unittest import mock

from gateway.upstream.fields import BY_PATH
from tests.access import AccessTest, ask
from tests.onloop import OnLoopTest, completion
from tests.scripted import DONE, STREAM_HEAD, chunked, delta
from tests.support import CHAT, COMPLETIONS, EMBEDDINGS, eventually, gateway
from tests.unit.test_fields import EVERY, VALID, VALUES

HI_BY_PATH: dict[str, dict[str, Any]] = {CHAT: ask(), COMPLETIONS: {"prompt": "hi"}, EMBEDDINGS: {"input": "hi"}}
SMALL = [{"role": "user", "content": "x"}]
LONG = "word " * 4000  # 5 000 tokens


class LimitsTest(AccessTest):
    def test_a_small_field_of_another_path_hides_no_large_prompt_from_limits(self) -> None:
        running = self.serve({"m": {"engines": ["echo:"]}})
        self.freeze(running)
        key = self.make(running, tpm=10_000)
        for path, body in (
            (COMPLETIONS, {"prompt": LONG * 3, "messages": SMALL}),
            (COMPLETIONS, {"prompt": LONG * 3, "input": "x"}),
            (COMPLETIONS, {"prompt": "x", "max_tokens": 12_000, "max_completion_tokens": 1}),
            (EMBEDDINGS, {"input": LONG * 3, "messages": SMALL}),
            (EMBEDDINGS, {"input": LONG * 3, "prompt": "x"}),
            (EMBEDDINGS, {"input": ["x"] * 12_000}),
            (CHAT, ask("x", max_tokens=12_000, max_completion_tokens=1)),
            (CHAT, ask("x", tools=[{"type": "function", "function": {"name": "f", "description": LONG * 3}}])),
        ):
            with self.subTest(path=path, body=str(body)[-60:]):
                self.assert_error(running.post(body, path, key), 400, "request_exceeds_limit")

    def test_a_field_in_other_letters_is_refused_since_some_engines_would_read_it(self) -> None:
        running = self.serve({"m": {"engines": ["echo:"]}})
        for path, body in HI_BY_PATH.items():
            for key in (
                "MODEL",
                "Model",
                "\u017ftream",
                "Stream",
                *(field.upper() for field in body if field != "model"),
            ):
                with self.subTest(path=path, key=key):
                    answer = running.post({**body, key: "other"}, path)
                    self.assert_error(answer, 400, "invalid_body")
                    self.assertEqual(answer.json()["param"], key)
        self.assert_error(running.post({"prompt": "hi", "Best_Of": 20}, COMPLETIONS), 400, "invalid_body")
        # What is not read here may be spelled as it likes to be.
        for path, body in HI_BY_PATH.items():
            self.assertEqual(running.post({**body, "User": "x", "userId": 1, "topK": 2}, path).status, 200)

    def test_a_large_field_of_another_path_costs_nothing(self) -> None:
        running = self.serve({"m": {"engines": ["echo:"]}})
        self.freeze(running)
        key = self.make(running, tpm=10_000)
        for path, body in HI_BY_PATH.items():
            foreign = {field: LONG * 3 for field in ("messages", "prompt", "input") if field not in body}
            answer = running.post({**body, **foreign}, path, key)
            self.assertEqual(answer.status, 200, answer.body[:300])
            self.assertGreater(int(answer.header("x-ratelimit-remaining-tokens") or 0), 900)
        for extra in ({"max_tokens": 10**9}, {"max_tokens": "x"}, {"max_tokens": {}}, {"max_completion_tokens": []}):
            self.assertEqual(running.post({"input": "hi", **extra}, EMBEDDINGS, key).status, 200)

    def test_nor_from_a_models_context(self) -> None:
        running = self.serve({"m": {"engines": ["echo:"], "max_model_len": 1000}})
        for path, body, param in (
            (COMPLETIONS, {"prompt": LONG, "messages": SMALL}, "prompt"),
            (COMPLETIONS, {"prompt": [1] * 1001, "messages": SMALL}, "prompt"),
            (EMBEDDINGS, {"input": LONG, "messages": SMALL, "prompt": "x"}, "input"),
        ):
            with self.subTest(body=str(body)[-60:]):
                answer = running.post(body, path)
                self.assert_error(answer, 400, "context_too_long")
                self.assertEqual(answer.json()["param"], param)
        self.assertEqual(running.post({"input": ["x" * 3000] * 5, "max_tokens": 999}, EMBEDDINGS).status, 200)
        self.assertEqual(running.post({"prompt": [128_000] * 999, "messages": [1]}, COMPLETIONS).status, 200)


class TypesTest(OnLoopTest):
    def test_no_type_of_any_field_breaks_anything(self) -> None:
        running = self.enter(gateway(RATE_LIMIT_TPM=10**9, RATE_LIMIT_GLOBAL_TPM=10**9, ERROR_FORMAT="openai"))
        rng = random.Random(8)
        statuses = set()
        with running.connect() as client:
            for number in range(600):
                path, requests = rng.choice(sorted(VALID.items()))
                body = dict(rng.choice(requests))
                for key in rng.sample(sorted(EVERY), rng.randrange(1, 4)):
                    body[key] = rng.choice(VALUES)
                if number % 3 == 0:
                    body["messages"] = [1]
                with self.subTest(path=path, body=str(body)[:300]):
                    response = client.post(body, f"/v1{path}")
                    self.assertIn(response.status, (200, 400), response.body[:300])
                    statuses.add(response.status)
        self.assertEqual(statuses, {200, 400})
        self.assertNotIn("internal_error", running.log.getvalue())

    def test_numbers_without_end_are_refused_or_passed_on(self) -> None:
        running = self.enter(gateway(RATE_LIMIT_GLOBAL_TPM=10**9))
        for digits in (1000, 5000):
            for key in ("n", "max_tokens", "max_completion_tokens", "best_of", "temperature", "top_p", "seed", "stop"):
                for number in ("9" * digits, "-" + "9" * digits, "0." + "9" * digits, "1e-" + "9" * digits):
                    for path, body in HI_BY_PATH.items():
                        raw = json.dumps(body)[:-1].encode() + f', "{key}": {number}}}'.encode()
                        with self.subTest(path=path, key=key, number=number[:9], digits=digits):
                            response = running.post(raw, path)
                            self.assertIn(response.status, (200, 400), response.body[:300])
        self.assertNotIn("internal_error", running.log.getvalue())

    def test_what_is_not_read_comes_to_the_engine_as_it_was_sent(self) -> None:
        running, engine = self.one_engine()
        client = self.enter(running.connect())
        side = None
        for value in ([1], {}, None, "x", 10**300):
            foreign = dict.fromkeys(("prompt", "input", "suffix", "best_of", "mine"), value)
            body = {**ask(model="m"), **foreign}
            client.request("POST", CHAT, body)
            side = engine.take() if side is None else side.read_request()
            self.assertEqual(side.json, body)
            side.answer(completion())
            self.assert_says(client, "fine")

    def test_a_large_prompt_is_looked_through_before_its_stream_begins(self) -> None:
        running, engine = self.one_engine()
        client = self.begin(running, ask("x" * 5000, model="m", stream=True))
        side = engine.take()
        side.send(STREAM_HEAD + chunked(delta("x", "stop")))
        self.assertEqual(client.read_head().status, 200)
        row = BY_PATH["/chat/completions"]._replace(prompts=mock.Mock(side_effect=AssertionError("looked at again")))
        with mock.patch.dict(BY_PATH, {"/chat/completions": row}):
            side.send(chunked(DONE) + b"0\r\n\r\n")
            self.assertEqual(client.read_events()[-1], "data: [DONE]")
        line = eventually(running.request_lines)[0]
        self.assertEqual((line["prompt_tokens"], line["usage_estimated"]), (1250, True))

    def test_a_stream_of_a_completion_is_not_bent_by_a_chats_fields(self) -> None:
        running, engine = self.one_engine()
        with running.connect() as client:
            client.request("POST", COMPLETIONS, {"prompt": "hi", "messages": [1], "tools": 1, "stream": True})
            side = engine.take()
            self.assertEqual(side.json["stream_options"], {"include_usage": True})
            event = b'data: {"choices": [{"index": 0, "text": "x", "finish_reason": "stop"}]}\n\n'
            side.send(STREAM_HEAD + chunked(event + DONE) + b"0\r\n\r\n")
            self.assertEqual(client.read_head().status, 200)
            self.assertEqual(client.read_events()[-1], "data: [DONE]")
        self.assertNotIn("internal_error", running.log.getvalue())


if __name__ == "__main__":
    unittest.main()
