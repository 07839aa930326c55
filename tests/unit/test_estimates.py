"""Estimates of tokens: what a text weighs, decoded or escaped, whole or in pieces, and what of an answer is weighed."""

from __future__ import annotations

import importlib.util
import json
import unittest
from random import Random
from typing import Any
from unittest import mock

from gateway.upstream import estimates
from gateway.upstream.call import Call
from gateway.upstream.estimates import tokens_of, weigh, weigh_escaped, weight_of_choices
from gateway.upstream.fields import BY_PATH
from gateway.upstream.skim import outline

CHAT, COMPLETIONS, EMBEDDINGS = "/chat/completions", "/completions", "/embeddings"
KINDS = (range(0x20, 0x7F), range(0xA0, 0x100), range(0x100, 0x2E00), range(0x2E80, 0xA000), range(0x1F300, 0x1F700))
LINE = 'He said: "C:\\temp", naïve — 你好, привет, 😀\n\t'


def text_of(random: Random, size: int) -> str:
    """A text with characters of all kinds, and many backslashes and quotes."""
    return "".join(random.choice(("\\", '"', "\n", chr(random.choice(random.choice(KINDS))))) for _ in range(size))


def by_character(text: str) -> int:
    return sum(1 if c < "\u0100" else 2 if c < "\u2e00" else 4 if c < "\U00010000" else 8 for c in text)


class WeightTest(unittest.TestCase):
    def test_four_usual_characters_two_of_other_alphabets_and_one_of_cjk_are_a_token(self) -> None:
        for text, tokens in (
            ("", 0),
            ("a", 1),
            ("abcd", 1),
            ("abcde", 2),
            ("größer als café", 4),
            ("привет", 3),
            ("नमस्ते", 3),
            ("你好世界", 4),
            ("こんにちは", 5),
            ("안녕하세요", 5),
            ("，。「」", 4),
            ("😀🎉", 4),
            ("x" * 4_000, 1_000),
        ):
            with self.subTest(text[:20]):
                self.assertEqual(tokens_of(weigh(text)), tokens)

    def test_each_character_weighs_by_its_kind(self) -> None:
        for seed in range(500):
            random = Random(seed)
            text = text_of(random, 40) + chr(random.randrange(0x110000))
            self.assertEqual(weigh(text), by_character(text))

    def test_the_pieces_of_a_text_weigh_as_much_as_the_whole(self) -> None:
        for seed in range(500):
            random = Random(seed)
            text = text_of(random, 40)
            cut = random.randrange(40)
            self.assertEqual(weigh(text[:cut]) + weigh(text[cut:]), weigh(text))
        self.assertEqual(weigh("\ud83d") + weigh("\ude00"), weigh("😀"))  # as some engines cut them

    @unittest.skipUnless(importlib.util.find_spec("_tracemalloc"), "memory is not traced here")
    def test_a_long_text_weighs_as_its_characters_do_and_is_not_held_again(self) -> None:
        import tracemalloc

        for piece in ("é", "aé你", "😀", "\ud800", "\ude00a\ud83d\ufffd"):
            text = piece * 1_000_000
            tracemalloc.start()
            try:
                weight = weigh(text)
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            self.assertEqual(weight, by_character(piece) * 1_000_000)
            self.assertLess(peak, 3 << 20)

    def test_an_escaped_text_weighs_as_much_as_the_text(self) -> None:
        for seed in range(500):
            text = text_of(Random(seed), 30)
            for ascii_only in (True, False):
                raw = json.dumps(text, ensure_ascii=ascii_only)[1:-1].encode("utf-8")
                self.assertEqual(weigh_escaped(raw), weigh(text), raw)

    def test_what_is_no_json_string_weighs_as_its_bytes(self) -> None:
        for raw in (b"\\", b"\\x", b'\\n"', b"\\u12", b"\xff\xfe", b"\xe4\xbd", b'a"b\\n'):
            self.assertEqual(weigh_escaped(raw), len(raw), raw)


class AnswerTest(unittest.TestCase):
    CALL = {"type": "function", "function": {"name": "find", "arguments": '{"q": "né"}'}}

    def weight(self, choices: Any) -> int:
        return weight_of_choices(b"", choices)

    def test_all_that_was_generated_counts_alike(self) -> None:
        name_and_arguments = len("find") + len('{"q": "né"}')
        for said, weight in (
            ({"content": LINE}, weigh(LINE)),
            ({"content": None}, 0),
            (
                {"content": [{"type": "text", "text": LINE}, {"type": "text", "text": "ab"}, {"type": "image"}]},
                weigh(LINE) + 2,
            ),
            ({"refusal": "No."}, 3),
            ({"content": "ab", "reasoning_content": "cde"}, 5),
            ({"content": "ab", "reasoning": "cde"}, 5),
            ({"content": "ab", "reasoning": "cde", "reasoning_content": "cde"}, 5),  # the same in two places
            ({"content": None, "tool_calls": [self.CALL, self.CALL]}, 2 * name_and_arguments),
            ({"function_call": self.CALL["function"]}, name_and_arguments),
            ({"content": "ab", "role": "assistant", "annotations": [{"text": "cde"}]}, 2),
        ):
            with self.subTest(said=said):
                for key in ("message", "delta"):
                    self.assertEqual(
                        self.weight([{key: said, "finish_reason": "stop", "logprobs": {"content": []}}]), weight
                    )

    def test_of_all_choices(self) -> None:
        self.assertEqual(
            self.weight([{"message": {"content": "abc"}}, {"text": "de"}, {"message": {"content": "f"}}]), 6
        )

    def test_what_is_odd_counts_for_nothing(self) -> None:
        for choices in (None, [], {}, [None, 1, []], [{"message": None}], [{"message": {"tool_calls": [None, 1, {}]}}]):
            self.assertEqual(self.weight(choices), 0, choices)
        self.assertEqual(
            self.weight([{"message": {"content": {"a": 1}, "tool_calls": {"a": 1}, "function_call": [1]}}]), 0
        )

    def test_a_large_answer_weighs_as_much_without_being_read(self) -> None:
        text = LINE * 5_000
        for ascii_only in (True, False):
            for message in (
                {"content": text},
                {"content": "x", "reasoning_content": text},
                {"content": text + "\\" * 99_999},
            ):
                choices = [{"message": message}, {"message": {"content": "other"}}]
                body = json.dumps({"choices": choices}, ensure_ascii=ascii_only).encode()
                self.assertEqual(
                    weight_of_choices(bytearray(body), outline(body).members["choices"]), self.weight(choices)
                )

    def test_wherever_it_is_cut_on_the_way(self) -> None:
        for seed in range(300):
            random = Random(seed)
            text = text_of(random, 60)
            body = json.dumps({"choices": [{"text": text}]}, ensure_ascii=random.random() < 0.5).encode()
            with mock.patch("gateway.upstream.skim.READ_BYTES", 8):
                choices = outline(body).members["choices"]
            with mock.patch.object(estimates, "SLICE_BYTES", random.randrange(7, 20)):
                self.assertEqual(weight_of_choices(body, choices), weigh(text), f"seed {seed}")

    def test_calls_of_a_large_answer_count_about(self) -> None:
        arguments = json.dumps({"text": "word " * 20_000})
        choices = [{"message": {"tool_calls": [{"function": {"name": "write", "arguments": arguments}}]}}]
        body = json.dumps({"choices": choices}).encode()
        self.assertAlmostEqual(
            weight_of_choices(body, outline(body).members["choices"]), self.weight(choices), delta=100
        )


class PromptTest(unittest.TestCase):
    def weight(self, path: str, **request: Any) -> int:
        return Call(path, request).prompt_weight()

    def test_texts_weigh_the_same_wherever_they_stand(self) -> None:
        user = {"role": "user", "content": LINE}
        parts = {"role": "user", "content": [{"type": "text", "text": LINE}, {"type": "image_url", "image_url": {}}]}
        self.assertEqual(self.weight(CHAT, messages=[user]), weigh(LINE))
        self.assertEqual(self.weight(CHAT, messages=[parts]), weigh(LINE))
        self.assertEqual(self.weight(CHAT, messages=[user, user]), 2 * weigh(LINE) + 1)
        self.assertEqual(self.weight(COMPLETIONS, prompt=LINE), weigh(LINE))
        self.assertEqual(self.weight(COMPLETIONS, prompt=LINE, suffix=LINE), 2 * weigh(LINE))
        self.assertEqual(tokens_of(self.weight(EMBEDDINGS, input=[LINE, LINE])), 2 * tokens_of(weigh(LINE)))

    def test_tools_and_what_was_thought_are_read_too(self) -> None:
        user = {"role": "user", "content": "x"}
        for key in ("reasoning_content", "reasoning", "refusal"):
            told = {"role": "assistant", "content": "y", key: "你" * 100}
            self.assertAlmostEqual(self.weight(CHAT, messages=[user, told]), 400, delta=8)
        tool = {"type": "function", "function": {"name": "f", "description": "你" * 100}}
        self.assertAlmostEqual(self.weight(CHAT, messages=[user], tools=[tool]), 400, delta=80)

    def test_a_token_number_weighs_as_a_token(self) -> None:
        self.assertEqual(tokens_of(self.weight(COMPLETIONS, prompt=[1, 2, 3])), 3)
        self.assertEqual(BY_PATH[EMBEDDINGS].prompts({"input": [[1, 2], [3]]}), (12, 8))


if __name__ == "__main__":
    unittest.main()
