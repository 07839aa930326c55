"""Engines whose answers hold NaN or an infinity: null in what clients get, and the answer stands."""

from __future__ import annotations

import json
import threading
import unittest
from typing import Any

from inference import InferenceFactory
from tests.http.test_without_epoll import WithoutEpoll
from tests.onloop import OnLoopTest
from tests.resilience import ask
from tests.support import CHAT, COMPLETIONS, EMBEDDINGS, TIMEOUT_S, Response

TEXT = 'NaN is "NaN", -Infinity \\" too'
NUMBERS = "[NaN,Infinity,-Infinity,1e999,-0.5]"
NULLS = [None, None, None, float("inf"), -0.5]
LARGE = 1_200_000  # more than is parsed as a whole


def chat(**changes: Any) -> bytes:
    """A chat answer with each such number, and their names in a text."""
    choice = {"index": 0, "message": {"role": "assistant", "content": TEXT}, "logprobs": "-", "finish_reason": "stop"}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    answer = {"id": "a", "model": "b", "choices": [choice], "usage": usage, **changes}
    return json.dumps(answer).replace('"-"', NUMBERS).encode()


class Nonfinite(OnLoopTest):
    def answered(self, body: bytes, path: str = CHAT, **request: Any) -> Response:
        """The good response to a request that one engine has answered so."""
        running, engine = self.one_engine()
        client = self.enter(running.connect())
        client.request("POST", path, request or ask())
        engine.take().answer(body)
        response = client.read_response()
        self.assertEqual(response.status, 200, response.body[:500])
        self.assertEqual(response.header("x-gateway-attempts"), "1")
        return response

    def assert_strict(self, body: bytes) -> None:
        json.loads(body, parse_constant=self.fail)

    def test_a_chat_answer(self) -> None:
        response = self.answered(chat())
        self.assert_strict(response.body)
        choice = response.json()["choices"][0]
        self.assertEqual((choice["logprobs"], choice["message"]["content"]), (NULLS, TEXT))
        self.assertEqual(response.json()["usage"]["total_tokens"], 5)

    def test_one_that_has_to_be_written_anew(self) -> None:
        for usage in (None, {"prompt_tokens": 3, "seconds": "-"}):
            response = self.answered(chat(usage=usage, created="-", id=None))
            self.assert_strict(response.body)
            self.assertEqual(response.json()["created"], [None, None, None, None, -0.5])
            self.assertGreater(response.json()["usage"]["total_tokens"], 0)

    def test_usage_of_such_numbers_is_none(self) -> None:
        body = chat().replace(b'"prompt_tokens": 3', b'"prompt_tokens": NaN')
        self.assertEqual(self.answered(body).json()["usage"]["prompt_tokens"], 2)

    def test_completions_and_embeddings(self) -> None:
        body = '{"choices": [{"text": "NaN", "logprobs": {"token_logprobs": -}, "finish_reason": "stop"}]}'
        response = self.answered(body.replace("-}", NUMBERS + "}").encode(), COMPLETIONS, prompt="hi")
        choice = response.json()["choices"][0]
        self.assertEqual((choice["text"], choice["logprobs"]["token_logprobs"][:3]), ("NaN", NULLS[:3]))
        body = '{"data": [{"index": 0, "embedding": -}], "usage": {"prompt_tokens": 1, "total_tokens": 1}}'
        response = self.answered(body.replace("-", NUMBERS).encode(), EMBEDDINGS, input="hi")
        self.assert_strict(response.body)
        self.assertEqual(response.json()["data"][0]["embedding"][:3], NULLS[:3])

    def test_a_large_answer(self) -> None:
        for many in ("x" * LARGE, ["-"] * (LARGE // 30)):
            response = self.answered(chat(extra=many))
            self.assert_strict(response.body)
            answer = response.json()
            self.assertEqual(answer["choices"][0]["logprobs"], NULLS)
            self.assertEqual(answer["choices"][0]["message"]["content"], TEXT)
            self.assertEqual(answer["extra"][-1:], many[-1:] if isinstance(many, str) else [NULLS])

    def test_an_answer_that_becomes_a_stream(self) -> None:
        running, engine = self.one_engine()
        client = self.begin(running, ask(stream=True))
        engine.take().answer(chat())
        client.read_head()
        first = (client.read_event() or "")[6:]
        self.assert_strict(first.encode())
        choice = json.loads(first)["choices"][0]
        self.assertEqual((choice["logprobs"][:4], choice["delta"]["content"]), ([None] * 4, TEXT))

    def test_what_is_no_json_for_another_reason_is_still_none(self) -> None:
        running, engine = self.one_engine()
        for body in (b'{"choices": [NaN}', b'{"choices": [1NaN]}', b'{"choices": [], NaN: 1}', b'{"choices": ["NaN]}'):
            for padding in (b"", b" " * LARGE):
                client = self.begin(running)
                side = engine.take()
                side.answer(body + padding)
                self.assert_error(client.read_response(), 502, "backend_error")
                side.close()


class NonfiniteWithoutEpoll(WithoutEpoll, Nonfinite):
    pass


class LibraryTest(OnLoopTest):
    def test_the_library_gives_none(self) -> None:
        engine = self.scripted()
        answers: list[dict[str, Any]] = []
        with InferenceFactory({"m": [engine.url]}, health_interval_s=0) as factory:
            asking = threading.Thread(
                target=lambda: answers.append(factory.chat([{"role": "user", "content": "hi"}])), name="asking"
            )
            asking.start()
            engine.take().answer(chat())
            asking.join(TIMEOUT_S)
        self.assertEqual(answers[0]["choices"][0]["logprobs"], NULLS)


if __name__ == "__main__":
    unittest.main()
