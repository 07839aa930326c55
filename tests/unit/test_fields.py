"""Each path reads its own fields and no other: types shuffled, fields of other paths added, numbers without end."""

from __future__ import annotations

import random
import unittest
from collections.abc import Iterator
from typing import Any

from gateway.admitting import tokens_at_most
from gateway.errors import RequestRefused
from gateway.upstream import echo
from gateway.upstream.call import Call
from gateway.upstream.fields import BY_PATH

CHAT, COMPLETIONS, EMBEDDINGS = "/chat/completions", "/completions", "/embeddings"
TEXT = "what is python " * 9
PARTS = [{"type": "text", "text": TEXT}, {"type": "image_url", "image_url": {"url": "data:,"}}]
CALLS = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "required": ["a"]}}}]

VALID: dict[str, list[dict[str, Any]]] = {
    CHAT: [
        {"messages": [{"role": "user", "content": TEXT}]},
        {"messages": [{"role": "user", "content": PARTS}], "n": 2, "max_tokens": 7, "stream": True},
        {"messages": [{"role": "assistant", "tool_calls": CALLS}, {"role": "tool", "content": "42"}], "tools": TOOLS},
        {"model": "m", "messages": [{"role": "user", "content": ""}], "max_completion_tokens": 9, "stop": ["a"]},
    ],
    COMPLETIONS: [
        {"prompt": TEXT, "stream": True, "stream_options": {"include_usage": True}},
        {"prompt": [TEXT, "b", ""], "n": 3, "best_of": 5, "max_tokens": 20},
        {"prompt": [1, 2, 3], "suffix": "end", "temperature": 0.5},
        {"prompt": [[1, 2], [3]], "top_p": 1, "n": 2},
    ],
    EMBEDDINGS: [
        {"input": TEXT},
        {"input": [TEXT, "b"], "model": "m", "stream": False},
        {"input": [1, 2, 3], "encoding_format": "float"},
        {"input": [[1, 2], [3]]},
    ],
}
READ = {
    path: {row.own, *dict(row.optional), *row.asked}
    | ({"tools", "functions", "response_format", "grammar", "json_schema"} if path == CHAT else set())
    | ({"suffix", "best_of"} if path == COMPLETIONS else set())
    for path, row in BY_PATH.items()
}
EVERY = set().union(*READ.values()) | {"logprobs", "echo", "user", "dimensions", "anything"}
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 128, 10**999, -(10**999), 0.5, 1e308, "", "x", "\ud800", "x" * 5000, [], [1], [None],
    ["x"], [[]], [[1]], [{}], [[["x"]]], {}, {"a": 1}, {"include_usage": True}, {"role": "user", "content": "x"},
    [{"role": "user", "content": "x"}], [{"role": "user", "content": [1]}], [{"role": {}, "content": "x"}], ["x"] * 3,
    [{"role": "user", "content": "x", "name": 1, "tool_calls": {"a": [None, 1, {}]}}], [{"type": "function"}],
]  # fmt: skip


def estimates(path: str, request: dict[str, Any]) -> tuple[Any, ...]:
    """All that the gateway reads of a request, but for its checks."""
    call = Call(path, request)
    told = (call.prompt_weight(), call.estimated_tokens(), call.choices(), call.affinity(), call.wants_usage())
    return (*told, call.stream, call.can_resume(), tokens_at_most(call), told_by_echo(path, request))


def told_by_echo(path: str, request: dict[str, Any]) -> Any:
    try:
        answer = echo.answer(path, request, 8)
    except echo.TooMuch as error:
        return str(error)
    return [answer.get("data"), answer.get("choices"), answer["usage"]]


def tokens(path: str, **request: Any) -> int:
    return tokens_at_most(Call(path, request)).prompt


class ForeignFieldsTest(unittest.TestCase):
    def valid(self) -> Iterator[tuple[str, dict[str, Any]]]:
        return ((path, request) for path, requests in VALID.items() for request in requests)

    def test_the_examples_are_valid(self) -> None:
        for path, request in self.valid():
            BY_PATH[path].validate(request)

    def test_a_field_of_another_path_changes_nothing_whatever_it_holds(self) -> None:
        for path, request in self.valid():
            told = estimates(path, request)
            for key in sorted(EVERY - READ[path]):
                for value in VALUES:
                    with self.subTest(path=path, key=key, value=str(value)[:20]):
                        added = {**request, key: value}
                        BY_PATH[path].validate(added)
                        self.assertEqual(estimates(path, added), told)

    def test_a_field_of_any_type_is_refused_or_read(self) -> None:
        rng = random.Random(5)
        taken = 0
        for path, request in self.valid():
            for key in sorted(READ[path]):
                for value in VALUES:
                    for more in ({}, {rng.choice(sorted(EVERY)): rng.choice(VALUES) for _ in range(3)}):
                        changed = {**request, **more, key: value}
                        with self.subTest(path=path, request=str(changed)[:200]):
                            try:
                                BY_PATH[path].validate(changed)
                            except RequestRefused as refusal:
                                self.assertEqual(refusal.status, 400)
                                self.assertLess(len(refusal.message), 500)
                                continue
                            estimates(path, changed)
                            taken += 1
        self.assertGreater(taken, 100)

    def test_what_nobody_has_checked_is_estimated_too(self) -> None:
        # A library's caller brings its own requests.
        for path, row in BY_PATH.items():
            for value in VALUES:
                for key in (row.own, "n", *row.asked):
                    call = Call(path, {row.own: "x", key: value})
                    call.prompt_weight(), call.estimated_tokens(), call.affinity(), call.choices()


class EstimateTest(unittest.TestCase):
    def test_a_token_is_a_token_whatever_its_number(self) -> None:
        for path, key in ((COMPLETIONS, "prompt"), (EMBEDDINGS, "input")):
            self.assertEqual(tokens(path, **{key: [1] * 10}), 10)
            self.assertEqual(tokens(path, **{key: [128_255] * 10}), 10)
            self.assertEqual(tokens(path, **{key: [[128_255] * 10, [5] * 3]}), 13)

    def test_each_of_several_texts_has_a_token_at_least(self) -> None:
        for path, key in ((COMPLETIONS, "prompt"), (EMBEDDINGS, "input")):
            self.assertEqual(tokens(path, **{key: ["", "a", "abcd", "abcde"]}), 5)
            self.assertEqual(tokens(path, **{key: "abcde"}), 2)

    def test_a_context_holds_one_of_several_prompts_at_a_time(self) -> None:
        self.assertEqual(Call(EMBEDDINGS, {"input": ["x" * 400] * 50, "max_tokens": 9}).estimated_tokens(), 100)
        call = Call(COMPLETIONS, {"prompt": ["x" * 400, "x"], "suffix": "y" * 40, "max_tokens": 9})
        self.assertEqual(call.estimated_tokens(), 100 + 10 + 9)
        self.assertEqual(tokens_at_most(call).prompt, 100 + 1 + 20)

    def test_all_that_a_model_reads_of_a_chat_counts(self) -> None:
        message = {"role": "assistant", "content": "x"}
        plain = tokens(CHAT, messages=[message])
        long = "y" * 4000
        for more in (
            {"messages": [{**message, "name": long}]},
            {"messages": [{**message, "tool_calls": [{"function": {"name": "f", "arguments": long}}]}]},
            {"messages": [{**message, "function_call": {"name": "f", "arguments": long}}]},
            {"messages": [{**message, "reasoning_content": long}]},
            {"messages": [{"role": "user", "content": [{"type": "text", "text": long}]}]},
            {"messages": [message], "tools": [{"function": {"name": "f", "description": long}}]},
            {"messages": [message], "functions": [{"name": long}]},
        ):
            with self.subTest(more=str(more)[:80]):
                self.assertGreaterEqual(tokens(CHAT, **more), plain + 999)

    def test_the_length_of_an_answer_is_what_an_engine_may_take_for_it(self) -> None:
        def asked(path: str, **request: Any) -> Any:
            call = Call(path, {"messages": [{"role": "user", "content": ""}], "prompt": "", "input": "", **request})
            return tokens_at_most(call).answer, call.estimated_tokens()

        self.assertEqual(asked(CHAT, max_tokens=9), (9, 9))
        self.assertEqual(asked(CHAT, max_completion_tokens=9), (9, 9))
        self.assertEqual(asked(CHAT, max_completion_tokens=1, max_tokens=900), (900, 900))
        self.assertEqual(asked(COMPLETIONS, max_completion_tokens=1, max_tokens=900), (900, 900))
        self.assertEqual(asked(COMPLETIONS, max_completion_tokens=900), (None, 0))
        self.assertEqual(asked(EMBEDDINGS, max_completion_tokens=9, max_tokens=900, n=5), (0, 0))

    def test_the_first_characters_are_those_of_the_whole_text(self) -> None:
        rng = random.Random(3)
        for _ in range(300):
            contents = ["".join(rng.choices("ab \n", k=rng.randrange(9))) for _ in range(rng.randrange(6))]
            limit = rng.randrange(1, 40)
            messages = [{"role": "user", "content": text} for text in contents]
            self.assertEqual(BY_PATH[CHAT].text({"messages": messages}, limit), "\n".join(contents)[:limit])
            self.assertEqual(BY_PATH[COMPLETIONS].text({"prompt": contents}, limit), "".join(contents)[:limit])


class EchoTest(unittest.TestCase):
    def refused(self, path: str, **request: Any) -> str:
        with self.assertRaises(echo.TooMuch) as caught:
            echo.answer(path, request, 1)
        return str(caught.exception)

    def test_an_answer_that_would_be_out_of_proportion_is_refused(self) -> None:
        message = {"role": "user", "content": "x" * (1 << 22)}
        self.assertTrue(self.refused(CHAT, messages=[message], n=128).startswith("n:"))
        self.assertTrue(self.refused(COMPLETIONS, prompt=["x"] * 20_000).startswith("prompt:"))
        self.assertTrue(self.refused(EMBEDDINGS, input=["x"] * 20_000).startswith("input:"))

    def test_a_stream_of_many_words_has_no_more_events_than_may_be(self) -> None:
        text = "a b" * 100_000
        answer = echo.answer(COMPLETIONS, {"prompt": text, "n": 2}, 1)
        chunks = echo.chunks(COMPLETIONS, answer, False)
        self.assertLess(len(chunks), echo.OUTPUTS_MAX + 10)
        for index in (0, 1):
            told = [c["choices"][0]["text"] for c in chunks if c["choices"][0]["index"] == index]
            self.assertEqual("".join(told), f"Echo: {text}")


if __name__ == "__main__":
    unittest.main()
