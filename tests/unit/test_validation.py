"""JSON read strictly, and every field of contract 5: what passes, what is refused, with which code and path."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import unittest
from pathlib import Path
from typing import Any, Callable, Optional

from gateway.calling import NATIVE, PATHS
from gateway.errors import RequestRefused
from gateway.upstream.fields import BY_PATH
from gateway.validation import parse_json

ROOT = Path(__file__).resolve().parents[2]
HI: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
validate_chat = BY_PATH["/chat/completions"].validate
validate_completion = BY_PATH["/completions"].validate
validate_embedding = BY_PATH["/embeddings"].validate


class RefusalTest(unittest.TestCase):
    def refusal(self, call: Callable[[], object]) -> RequestRefused:
        with self.assertRaises(RequestRefused) as caught:
            call()
        error = caught.exception
        self.assertEqual(error.status, 400)
        error.message.encode("utf-8")  # it is sent to the client
        self.assertLess(len(error.message), 1000)
        return error

    def assert_invalid_json(self, body: bytes, *mentions: str) -> None:
        error = self.refusal(lambda: parse_json(body))
        self.assertEqual(error.code, "invalid_json")
        for mention in mentions:
            self.assertIn(mention, error.message)


class JsonTest(RefusalTest):
    def test_an_object_is_read_as_it_stands(self) -> None:
        request = {"a": [1, -2.5e3, True, None, "ü \u2028 \U0001f600"], "b": {"c": {}, "": ""}}
        for body in (json.dumps(request), json.dumps(request, ensure_ascii=False), json.dumps(request, indent=2)):
            self.assertEqual(parse_json(body.encode()), request)

    def test_what_is_not_an_object_is_refused(self) -> None:
        for body in (b"[]", b'"text"', b"1", b"null", b"true"):
            with self.subTest(body=body):
                self.assertEqual(self.refusal(lambda body=body: parse_json(body)).code, "invalid_body")  # type: ignore[misc]

    def test_what_is_not_json_is_refused(self) -> None:
        for body in (b"", b" ", b"{", b"{}{}", b"{} x", b'{"a":1,}', b"{'a':1}", b'{"a" 1}', b'{"a":01}', b"<html>"):
            with self.subTest(body=body):
                self.assert_invalid_json(body)

    def test_bytes_that_are_not_utf_8_are_refused_and_placed(self) -> None:
        self.assert_invalid_json(b'{"a":"\xff"}', "UTF-8", "6")
        self.assert_invalid_json(b'{"a":"\xc0\x80"}', "UTF-8")  # an overlong NUL
        self.assert_invalid_json(b'{"a":"\xed\xa0\x80"}', "UTF-8")  # an encoded surrogate
        self.assert_invalid_json('{"a":"ü"}'.encode("latin-1"), "UTF-8")

    def test_other_unicode_encodings_and_byte_order_marks_are_refused(self) -> None:
        for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-8-sig"):
            with self.subTest(encoding=encoding):
                self.assert_invalid_json('{"a":"b"}'.encode(encoding))

    def test_control_characters_in_strings_are_refused(self) -> None:
        for body in (b'{"a":"\n"}', b'{"a":"\x00"}', b'{"a\t":1}'):
            with self.subTest(body=body):
                self.assert_invalid_json(body)

    def test_numbers_that_are_not_json_or_too_large_are_refused(self) -> None:
        for number in ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" * 400 + ".0"):
            with self.subTest(number=number[:12]):
                self.assert_invalid_json(b'{"temperature": %b}' % number.encode())

    def test_an_integer_of_5000_digits_is_refused_on_every_python(self) -> None:
        set_limit = getattr(sys, "set_int_max_str_digits", None)
        if set_limit is not None:  # as on a Python without a limit of its own
            self.addCleanup(set_limit, sys.get_int_max_str_digits())  # type: ignore[attr-defined,unused-ignore]
            set_limit(0)
        for digits in (5000, 100_000):
            for sign in ("", "-"):
                self.assert_invalid_json(f'{{"max_tokens": {sign}{"7" * digits}}}'.encode(), "digits")

    def test_large_numbers_that_can_be_read_are_passed_on(self) -> None:
        self.assertEqual(parse_json(b'{"seed": %b}' % (b"9" * 40))["seed"], int("9" * 40))
        self.assertEqual(parse_json(b'{"x": 1e308}')["x"], 1e308)

    def test_a_key_that_stands_twice_is_refused_at_any_depth_and_named(self) -> None:
        self.assert_invalid_json(b'{"model":"a","model":"b"}', "'model'")
        self.assert_invalid_json(b'{"a":[{"b":{"c":1,"d":2,"c":3}}]}', "'c'")
        self.assert_invalid_json(b'{"model":"a","m\\u006fdel":"b"}', "'model'")
        self.assert_invalid_json(b'{"' + b"k" * 5000 + b'":1,"' + b"k" * 5000 + b'":2}')
        self.assert_invalid_json(b'{"\\ud800":1,"\\ud800":2}')

    def test_the_same_key_in_different_objects_is_fine(self) -> None:
        self.assertEqual(parse_json(b'{"a":{"a":1},"b":{"a":2}}'), {"a": {"a": 1}, "b": {"a": 2}})


class DepthTest(RefusalTest):
    def nested(self, depth: int, opening: str = "[", closing: str = "]") -> bytes:
        """An object of that depth in all."""
        return ('{"a":' + opening * (depth - 1) + closing * (depth - 1) + "}").encode()

    def test_10000_levels_are_refused(self) -> None:
        self.assert_invalid_json(self.nested(10_000), "deeper")
        self.assert_invalid_json(b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "deeper")
        self.assert_invalid_json(b"[" * 10_000, "deeper")  # not even closed

    def test_as_deep_as_allowed_is_read_and_one_more_is_not(self) -> None:
        self.assertIsInstance(parse_json(self.nested(128)), dict)
        self.assert_invalid_json(self.nested(129), "deeper")

    def test_many_brackets_side_by_side_are_not_deep(self) -> None:
        self.assertEqual(len(parse_json(b'{"a":[' + b"[]," * 5000 + b"{}]}")["a"]), 5001)

    def test_brackets_in_strings_do_not_count(self) -> None:
        texts = ["[" * 1000, '"' + "{" * 1000, "\\" + "[" * 1000, '\\"[' * 500, '[\\\\"{' * 500]
        texts.append("\\\\\\" * 99 + "[")
        for text in texts:
            with self.subTest(text=text[:12]):
                request = {"a": text, "b": [text, {text: text}]}
                self.assertEqual(parse_json(json.dumps(request).encode()), request)

    def test_depth_behind_escaped_strings_is_seen(self) -> None:
        for text in ("\\", '"', '\\"', '"\\', "\\\\"):
            with self.subTest(text=text):
                body = json.dumps({"a": text, "b": [text, "MARK"]}).encode()
                self.assert_invalid_json(body.replace(b'"MARK"', b"[" * 500 + b"]" * 500), "deeper")

    def test_the_bound_is_exact_for_any_document(self) -> None:
        rng = random.Random(11)

        def document(depth: int) -> Any:
            """A value nested exactly `depth` deep, with strings full of brackets around."""
            value: Any = "".join(rng.choices('[]{}"\\ab', k=5))
            for _ in range(depth):
                filler = "".join(rng.choices('[]{}"\\ab', k=rng.randrange(12)))
                value = [filler, value, filler] if rng.random() < 0.5 else {"k": filler, filler + "x": value}
            return value

        for depth in [rng.randrange(100, 160) for _ in range(60)]:
            body = json.dumps({"a": document(depth - 1)}).encode()
            if depth <= 128:
                parse_json(body)
            else:
                self.assert_invalid_json(body, "deeper")

    def test_a_body_made_to_make_the_check_slow_does_not(self) -> None:
        # In a process of its own, so that a check that goes through the body again from each quote can be ended.
        code = (
            "from gateway.errors import RequestRefused\n"
            "from gateway.validation import parse_json\n"
            "for text in (b'\\\\\\\\\\\"', b'\\\\\"', b'\"', b'\\\\', b'\"[', b'[\"]', b'\"\\\\', b'\\\\[\"'):\n"
            "    for tail in (b'', b'\"', b'}'):\n"
            "        try:\n"
            "            parse_json(b'[' * 200 + b'\"' + text * 400000 + tail)\n"
            "        except RequestRefused as refused:\n"
            "            assert refused.code == 'invalid_json', refused.code\n"
            "        else:\n"
            "            raise SystemExit('taken')\n"
        )
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=50)


class ChatTest(RefusalTest):
    def assert_refused(self, request: dict[str, Any], code: str, param: str) -> None:
        error = self.refusal(lambda: validate_chat(request))
        self.assertEqual((error.code, error.param), (code, param))
        self.assertIn(param, error.message)

    def test_a_whole_request_passes_untouched(self) -> None:
        request: dict[str, Any] = {
            "model": "13b",
            "messages": [
                {"role": "system", "content": ""},
                {"role": "developer", "content": "be brief"},
                {"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {}}]},
                {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {}}]},
                {"role": "assistant", "tool_calls": [{"id": "2"}]},
                {"role": "tool", "tool_call_id": "1", "content": "42"},
                {"role": "function", "name": "f", "content": "42"},
            ],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": 1,
            "max_completion_tokens": 1_000_000,
            "temperature": 2,
            "top_p": 0.0,
            "stop": ["a", "b", "c", "d"],
            "n": 128,
            "response_format": {"type": "json_object"},
            "unknown": [1],
        }
        copy = json.loads(json.dumps(request))
        validate_chat(request)
        self.assertEqual(request, copy)

    def test_a_null_optional_field_counts_as_absent(self) -> None:
        names = ("model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature", "top_p")
        validate_chat({**HI, **dict.fromkeys((*names, "stop", "n"))})

    def test_messages_must_be_a_list_that_is_not_empty(self) -> None:
        for value in (None, [], {}, "hi", 1):
            self.assert_refused({"messages": value}, "invalid_messages", "messages")
        self.assert_refused({}, "invalid_messages", "messages")

    def test_a_faulty_message_is_named_by_its_place(self) -> None:
        good = {"role": "user", "content": "hi"}
        cases: list[tuple[Any, str]] = [
            ("hi", "messages[1]"),
            (None, "messages[1]"),
            ({"content": "hi"}, "messages[1].role"),
            ({"role": "robot", "content": "hi"}, "messages[1].role"),
            ({"role": ["user"], "content": "hi"}, "messages[1].role"),
            ({"role": None, "content": "hi"}, "messages[1].role"),
            ({"role": "user"}, "messages[1].content"),
            ({"role": "user", "content": None}, "messages[1].content"),
            ({"role": "user", "content": 1}, "messages[1].content"),
            ({"role": "user", "content": {}}, "messages[1].content"),
            ({"role": "user", "content": None, "tool_calls": [{}]}, "messages[1].content"),
            ({"role": "assistant", "content": None}, "messages[1].content"),
            ({"role": "assistant", "content": None, "tool_calls": []}, "messages[1].content"),
            ({"role": "assistant", "content": [], "tool_calls": []}, "messages[1].content"),
            ({"role": "assistant", "content": [], "refusal": None, "audio": {}}, "messages[1].content"),
            ({"role": "user", "content": []}, "messages[1].content"),
            ({"role": "tool", "content": [], "reasoning": "hm"}, "messages[1].content"),
            ({"role": "user", "content": None, "reasoning_content": "hm"}, "messages[1].content"),
            ({"role": "user", "content": ["hi"]}, "messages[1].content[0]"),
            ({"role": "user", "content": [{"type": "text", "text": "a"}, {}]}, "messages[1].content[1]"),
            ({"role": "user", "content": [{"type": 1}]}, "messages[1].content[0]"),
            ({"role": "user", "content": [{"type": "text"}]}, "messages[1].content[0].text"),
            ({"role": "user", "content": [{"type": "text", "text": 1}]}, "messages[1].content[0].text"),
        ]
        for message, param in cases:
            with self.subTest(message=message):
                self.assert_refused({"messages": [good, message]}, "invalid_messages", param)

    def test_an_assistant_says_something_in_any_of_the_fields_that_answers_have(self) -> None:
        calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
        for key, value in (
            ("tool_calls", calls),
            ("function_call", {"name": "f", "arguments": "{}"}),
            ("refusal", "no"),
            ("audio", {"id": "a1"}),
            ("reasoning_content", "hm"),
            ("reasoning_content", ""),
            ("reasoning", "hm"),
        ):
            for content in ({}, {"content": None}, {"content": ""}, {"content": []}):
                with self.subTest(key=key, content=content):
                    validate_chat({"messages": [{"role": "assistant", key: value, **content}]})

    def test_what_sdks_make_of_an_answer_passes_when_it_is_sent_back(self) -> None:
        dumped = {"refusal": None, "annotations": [], "audio": None, "function_call": None, "tool_calls": None}
        for message in (
            {**dumped, "role": "assistant", "content": "hi"},
            {**dumped, "role": "assistant", "content": "hi", "tool_calls": []},
            {**dumped, "role": "assistant", "content": "", "tool_calls": [{"id": "1"}]},
            {**dumped, "role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
            {**dumped, "role": "assistant", "content": None, "refusal": "no"},
            {**dumped, "role": "assistant", "content": None, "reasoning_content": "cut off in its thou"},
            {**dumped, "role": "assistant", "content": ""},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
            {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]},
            {"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]},
        ):
            with self.subTest(message=message):
                validate_chat({"messages": [message]})

    def test_an_assistant_that_says_nothing_is_told_what_it_may_say(self) -> None:
        error = self.refusal(lambda: validate_chat({"messages": [{"role": "assistant", "content": None}]}))
        for key in ("tool_calls", "function_call", "refusal", "audio", "reasoning_content", "reasoning"):
            self.assertIn(key, error.message)

    def test_each_optional_field_has_its_range_and_its_code(self) -> None:
        whole = ["1", 1.0, 0, True, [], {}]
        cases: dict[str, tuple[str, list[Any]]] = {
            "model": ("invalid_model", [1, [], {}, True, 0]),
            "stream": ("invalid_stream", ["true", 1, 0, [], {}]),
            "stream_options": ("invalid_stream", [True, [], "x", 0]),
            "max_tokens": ("invalid_max_tokens", [*whole, -2, -1.0, "-1", 1_000_001, 10**100]),
            "max_completion_tokens": ("invalid_max_tokens", [*whole, -2, -1.0, 1_000_001]),
            "temperature": ("invalid_temperature", ["1", -0.1, 2.1, True, [], 10**400]),
            "top_p": ("invalid_top_p", ["1", -0.1, 1.1, 2, False, []]),
            "stop": ("invalid_stop", [1, ["a", 1], ["a"] * 65, {}, [None], True]),
            "n": ("invalid_n", [*whole, -1, 129]),
        }
        for key, (code, values) in cases.items():
            for value in values:
                with self.subTest(key=key, value=str(value)[:20]):
                    self.assert_refused({**HI, key: value}, code, key)

    def test_the_ends_of_each_range_pass(self) -> None:
        cases: dict[str, list[Any]] = {
            "max_tokens": [1, 1_000_000, -1],
            "max_completion_tokens": [1, 1_000_000, -1],
            "temperature": [0, 2, 0.0, 2.0],
            "top_p": [0, 1, 0.5],
            "stop": ["", "x", [], ["a"], ["a"] * 64],
            "n": [1, 128],
            "stream": [True, False],
            "model": ["", "x"],
        }
        for key, values in cases.items():
            for value in values:
                with self.subTest(key=key, value=value):
                    validate_chat({**HI, key: value})

    def test_a_refusal_never_repeats_a_long_value(self) -> None:
        error = self.refusal(lambda: validate_chat({"messages": [{"role": "x" * 100_000, "content": "y"}]}))
        self.assertNotIn("xxx", error.message)


class CompletionTest(RefusalTest):
    def test_prompts_of_every_shape_pass(self) -> None:
        for prompt in ("hi", "", ["a", "b"], [1, 2, 3], [[1, 2], [3]]):
            with self.subTest(prompt=prompt):
                validate_completion({"prompt": prompt})

    def test_other_prompts_are_refused(self) -> None:
        for prompt in (None, [], {}, 1, ["a", 1], [True], [[]], [["a"]], [None], [1.5]):
            with self.subTest(prompt=prompt):
                error = self.refusal(lambda prompt=prompt: validate_completion({"prompt": prompt}))  # type: ignore[misc]
                self.assertEqual((error.code, error.param), ("invalid_prompt", "prompt"))

    def test_common_fields_are_checked_as_for_chat(self) -> None:
        error = self.refusal(lambda: validate_completion({"prompt": "hi", "n": 0}))
        self.assertEqual((error.code, error.param), ("invalid_n", "n"))


class EmbeddingTest(RefusalTest):
    def refused(self, request: dict[str, Any]) -> tuple[str, Optional[str]]:
        error = self.refusal(lambda: validate_embedding(request))
        return error.code, error.param

    def test_inputs_of_every_shape_pass(self) -> None:
        for value in ("hi", ["a", "b"], [1, 2, 3], [[1, 2], [3]]):
            validate_embedding({"input": value})

    def test_other_inputs_are_refused(self) -> None:
        for value in (None, "", [], {}, 1, ["a", 1], [[]]):
            with self.subTest(value=value):
                self.assertEqual(self.refused({"input": value}), ("invalid_input", "input"))

    def test_a_stream_of_them_is_refused_in_plain_words(self) -> None:
        error = self.refusal(lambda: validate_embedding({"input": "hi", "stream": True}))
        self.assertEqual((error.code, error.param), ("invalid_stream", "stream"))
        self.assertEqual(error.message, "stream must be false: embeddings are not streamed")

    def test_a_null_model_or_stream_counts_as_absent(self) -> None:
        validate_embedding({"input": "hi", "model": None, "stream": None})
        validate_embedding({"input": "hi", "model": "m", "stream": False})

    def test_a_faulty_model_or_any_stream_is_refused(self) -> None:
        self.assertEqual(self.refused({"input": "hi", "model": 1}), ("invalid_model", "model"))
        for value in (True, 0, "no"):
            self.assertEqual(self.refused({"input": "hi", "stream": value}), ("invalid_stream", "stream"))


class TableTest(unittest.TestCase):
    def test_every_inference_path_has_its_validator(self) -> None:
        self.assertEqual(set(BY_PATH), {*PATHS.values(), NATIVE})
        read = {path for path, fields in BY_PATH.items() if not fields.passes}
        self.assertEqual(read, {"/chat/completions", "/completions", "/embeddings"})


if __name__ == "__main__":
    unittest.main()
