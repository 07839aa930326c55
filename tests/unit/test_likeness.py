"""Which requests are alike: by their canonical form, by whether they are deterministic, by what is near."""

from __future__ import annotations

import copy
import json
import random
import unittest
from typing import Any, Optional

from gateway.reuse.likeness import canonical, digest, is_deterministic, key_of, near_of
from gateway.reuse.stored import KEY_BYTES

CHAT, COMPLETIONS, EMBEDDINGS, QUERY = "/chat/completions", "/completions", "/embeddings", "/query"
USER = {"role": "user", "content": "What is a heap?"}
BASE: dict[str, Any] = {
    "model": "13b",
    "temperature": 0,
    "messages": [{"role": "system", "content": "Be brief."}, USER],
}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


def chat(**fields: Any) -> bytes:
    return canonical(CHAT, {**BASE, **fields}, "13b")


def says(*messages: dict[str, Any]) -> bytes:
    return chat(messages=list(messages))


def user(content: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **fields}


class AlikeTest(unittest.TestCase):
    def test_order_and_spacing_do_not_matter(self) -> None:
        one = '{"temperature":0,"messages":[{"role":"user","content":"a"}],"tools":[{"b":{"d":1,"c":2},"a":3}],"n":2}'
        other = """{ "n": 2, "tools": [{"a": 3, "b": {"c": 2, "d": 1}}],
            "messages": [ {"content": "\\u0061", "role": "user"} ], "temperature": 0 }"""
        self.assertEqual(canonical(CHAT, json.loads(one), "m"), canonical(CHAT, json.loads(other), "m"))

    def test_what_says_who_asks_or_how_does_not_matter(self) -> None:
        for name, value in (
            ("user", "u-1"),
            ("stream", True),
            ("stream", False),
            ("stream_options", {"include_usage": True}),
            ("metadata", {"a": "b"}),
            ("store", True),
            ("service_tier", "flex"),
            ("safety_identifier", "x"),
            ("prompt_cache_key", "x"),
            ("prompt_cache_retention", "24h"),
        ):
            self.assertEqual(chat(**{name: value}), chat(), name)

    def test_what_engines_take_for_granted_is_the_same_as_nothing(self) -> None:
        for name, value in (
            ("n", 1),
            ("best_of", 1),
            ("echo", False),
            ("logprobs", False),
            ("presence_penalty", 0),
            ("presence_penalty", 0.0),
            ("frequency_penalty", -0.0),
            ("logit_bias", {}),
            ("response_format", {"type": "text"}),
            ("tools", []),
            ("functions", []),
            ("suffix", ""),
            ("encoding_format", "float"),
            ("modalities", ["text"]),
        ):
            self.assertEqual(chat(**{name: value}), chat(), name)

    def test_null_is_the_same_as_nothing(self) -> None:
        for name in ("stop", "seed", "max_tokens", "tools", "response_format", "n", "top_p", "logprobs", "anything"):
            self.assertEqual(chat(**{name: None}), chat(), name)

    def test_the_model_counts_by_its_configured_name_and_not_by_what_it_was_called(self) -> None:
        self.assertEqual(chat(model="alias"), chat(model="13b"))
        self.assertEqual(chat(model=None), chat())
        self.assertNotEqual(canonical(CHAT, BASE, "13b"), canonical(CHAT, BASE, "70b"))

    def test_a_whole_number_is_the_same_however_it_is_written(self) -> None:
        for name, one, other in (
            ("temperature", 0, 0.0),
            ("temperature", 0, -0.0),
            ("max_tokens", 16, 16.0),
            ("seed", 10**22, 1e22),
            ("top_p", 1, 1.0),
        ):
            self.assertEqual(chat(**{name: one}), chat(**{name: other}), name)

    def test_with_a_temperature_of_0_what_is_drawn_from_does_not_matter_where_it_leaves_all(self) -> None:
        for name, value in (("top_p", 1), ("top_p", 1.0), ("min_p", 1), ("top_k", 40), ("top_k", 1)):
            self.assertEqual(chat(**{name: value}), chat(), name)
            self.assertNotEqual(
                chat(**{name: value, "temperature": 0.5}),
                chat(temperature=0.5),
                f"{name} where something is drawn",
            )

    def test_the_request_stays_what_it_was(self) -> None:
        request = {**copy.deepcopy(BASE), "temperature": 0.0, "top_k": 3, "user": "x"}
        before = copy.deepcopy(request)
        canonical(CHAT, request, "13b")
        near_of(CHAT, request, "13b", "a")
        self.assertEqual(request, before)
        self.assertIs(type(request["temperature"]), float)


class NotAlikeTest(unittest.TestCase):
    def test_each_of_these_fields_matters(self) -> None:
        for name, values in {
            "temperature": (None, 0, 0.1, 1, 2),
            "seed": (None, 0, 1, 2**53, 2**53 + 1),
            "max_tokens": (None, 1, 2),
            "max_completion_tokens": (None, 1, 2),
            "n": (1, 2, 3),
            "stop": (None, "a", "b", ["a"], ["a", "b"], ["b", "a"], [], ""),
            "logprobs": (None, 0, 1, 5, True),
            "top_logprobs": (None, 0, 1),
            "presence_penalty": (0, 0.5, -0.5),
            "frequency_penalty": (0, 0.5),
            "top_p": (None, 0.5, 0.9),
            "logit_bias": ({}, {"5": 1}, {"5": -1}, {"6": 1}),
            "tools": ([], [TOOL], [TOOL, TOOL]),
            "tool_choice": (None, "auto", "none", "required", {"type": "function", "function": {"name": "look"}}),
            "parallel_tool_calls": (None, True, False),
            "response_format": (None, {"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "a"}}),
            "reasoning_effort": (None, "low", "high"),
            "modalities": (["text"], ["audio"], ["text", "audio"]),
            "prediction": (None, {"type": "content", "content": "x"}),
            "not_known_here": (None, True, False, 0, 1, "", "0", [], {}),
            "echo": (False, True),
            "suffix": ("", " "),
        }.items():
            forms = [chat(**{name: value}) for value in values]
            self.assertEqual(len(set(forms)), len(values), name)

    def test_a_field_is_not_another_one(self) -> None:
        self.assertNotEqual(chat(max_tokens=5), chat(max_completion_tokens=5))
        self.assertNotEqual(chat(tools=[TOOL]), chat(functions=[TOOL]))
        self.assertNotEqual(chat(seed=1), chat(seed="1"))
        self.assertNotEqual(chat(seed=1), chat(seed=True))

    def test_0_asks_for_something_where_false_does_not(self) -> None:
        self.assertEqual(chat(logprobs=False), chat())
        self.assertNotEqual(chat(logprobs=0), chat(logprobs=False))
        self.assertNotEqual(chat(logprobs=1), chat(logprobs=True))
        self.assertNotEqual(chat(n=True), chat(n=1))
        self.assertNotEqual(chat(presence_penalty=False), chat(presence_penalty=0))

    def test_a_default_that_engines_do_not_share_matters(self) -> None:
        self.assertNotEqual(chat(temperature=1), chat(temperature=None))
        self.assertNotEqual(chat(temperature=1, top_p=1), chat(temperature=1))
        self.assertNotEqual(chat(seed=0), chat())

    def test_large_numbers_are_told_apart(self) -> None:
        seeds = [2**53, 2**53 + 1, 2**63, 2**64 - 1, 2**64, 10**30, 10**30 + 1, 10**900, 10**900 + 1, -(2**63)]
        self.assertEqual(len({chat(seed=seed) for seed in seeds}), len(seeds))
        self.assertNotEqual(chat(seed=2**53 + 1), chat(seed=float(2**53)))

    def test_messages_by_role_name_order_and_what_is_said(self) -> None:
        a, b = user("a"), user("b")
        answer = {"role": "assistant", "content": "a"}
        call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
        forms = [
            says(a),
            says(b),
            says(a, b),
            says(b, a),
            says(a, a),
            says(user("a", name="ann")),
            says(user("a", name="bob")),
            says({"role": "system", "content": "a"}),
            says({"role": "developer", "content": "a"}),
            says(answer),
            says(answer, a),
            says(a, answer),
            says(a, {**answer, "tool_calls": [call]}),
            says(a, {**answer, "content": None, "tool_calls": [call]}),
            says(a, {**answer, "tool_calls": [call]}, {"role": "tool", "tool_call_id": "1", "content": "a"}),
            says(a, {**answer, "tool_calls": [call]}, {"role": "tool", "tool_call_id": "2", "content": "a"}),
            says(user([{"type": "text", "text": "a"}])),
            says(user([{"type": "text", "text": "a"}, {"type": "text", "text": "a"}])),
            says(user([{"type": "image_url", "image_url": {"url": "a"}}])),
            says(user([{"type": "image_url", "image_url": {"url": "a", "detail": "low"}}])),
        ]
        self.assertEqual(len(set(forms)), len(forms))

    def test_every_character_of_what_is_said_matters(self) -> None:
        contents = [
            "a",
            "A",
            " a",
            "a ",
            "a a",
            "a  a",
            "a\ta",
            "a\na",
            "a\r\na",
            "a\u00a0a",
            "a\u200ba",
            "\u00e9",
            "e\u0301",
        ]
        contents += [
            "\\u00e9",
            '"',
            '\\"',
            "\\",
            "ß",
            "ss",
            "ſ",
            "s",
            "😀",
            "\ud83d",
            "\ude00",
            "ﬁ",
            "fi",
            "①",
            "1",
            "\x00",
        ]
        contents += ["null", "[]", "{}", "0", ""]
        self.assertEqual(len(set(contents)), len(contents))
        self.assertEqual(len({says(user(content)) for content in contents}), len(contents))

    def test_a_prompt_is_not_a_list_of_it_nor_its_tokens(self) -> None:
        prompts: list[Any] = ["a", ["a"], ["a", "a"], [1], [[1]], [1, 2], [12], "1", ["1", "2"]]
        forms = {canonical(COMPLETIONS, {"prompt": prompt}, "m") for prompt in prompts}
        self.assertEqual(len(forms), len(prompts))

    def test_nothing_passes_for_another_part(self) -> None:
        request = {"prompt": "a"}
        forms = [
            canonical(COMPLETIONS, request, "m"),
            canonical(QUERY, request, "m"),
            canonical(EMBEDDINGS, request, "m"),
            canonical(COMPLETIONS, request, 'm",{"prompt":"a"}'),
            canonical(COMPLETIONS, {}, "m"),
            canonical(COMPLETIONS, {'prompt":"a","b': "a"}, "m"),
        ]
        self.assertEqual(len(set(forms)), len(forms))

    def test_embeddings_by_format_and_dimensions(self) -> None:
        forms = [
            canonical(EMBEDDINGS, {"input": "a", **more}, "m")
            for more in ({}, {"encoding_format": "base64"}, {"dimensions": 64}, {"dimensions": 32}, {"input": ["a"]})
        ]
        self.assertEqual(len(set(forms)), len(forms))
        self.assertEqual(canonical(EMBEDDINGS, {"input": "a", "encoding_format": "float"}, "m"), forms[0])

    def test_what_is_nested_too_deeply_is_like_nothing(self) -> None:
        deep: Any = []
        for _ in range(100_000):
            deep = [deep]
        with self.assertRaises(RecursionError):
            chat(tools=deep)


class PropertyTest(unittest.TestCase):
    """Random requests: what changes nothing never does, what changes something always does."""

    def value(self, chance: random.Random, depth: int = 3) -> Any:
        kind = chance.randrange(8 if depth else 5)
        if kind == 0:
            return chance.choice((True, False))
        if kind == 1:
            return chance.choice((-1, 0, 1, 2, 7, 2**53 + 1, 10**25)) + chance.randrange(3)
        if kind == 2:
            return chance.choice((0.25, -1.5, 1e-9, 3.7e20))
        if kind in (3, 4):
            return "".join(chance.choice('ab "\\\n\u00e9é😀\u2028') for _ in range(chance.randrange(5)))
        if kind == 5:
            return [self.value(chance, depth - 1) for _ in range(chance.randrange(1, 4))]
        return {chance.choice("abcdefgh") * 2: self.value(chance, depth - 1) for _ in range(chance.randrange(1, 5))}

    def request(self, chance: random.Random) -> dict[str, Any]:
        messages = [
            {"role": chance.choice(("system", "user", "assistant")), "content": self.value(chance, 0), "n": "x"}
            for _ in range(chance.randrange(1, 4))
        ]
        names = chance.sample(("seed", "stop", "tools", "response_format", "max_tokens", "extra", "tool_choice"), 4)
        return {"messages": messages, "temperature": 0.5, **{name: self.value(chance) for name in names}}

    def shuffled(self, value: Any, chance: random.Random) -> Any:
        if isinstance(value, list):
            return [self.shuffled(item, chance) for item in value]
        if not isinstance(value, dict):
            return value
        members = [(key, self.shuffled(item, chance)) for key, item in value.items()]
        chance.shuffle(members)
        return dict(members)

    def places(self, value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Where a single value stands."""
        if isinstance(value, dict):
            return [place for key, item in value.items() for place in self.places(item, (*path, key))]
        if isinstance(value, list):
            return [place for i, item in enumerate(value) for place in self.places(item, (*path, i))]
        return [path]

    def changed(self, request: dict[str, Any], chance: random.Random) -> dict[str, Any]:
        """With one value that is another one."""
        other = copy.deepcopy(request)
        *path, last = chance.choice(self.places(other))
        owner: Any = other
        for key in path:
            owner = owner[key]
        old = owner[last]
        if type(old) is bool:
            owner[last] = chance.choice((not old, int(old), str(old).lower()))
        elif type(old) is str:
            owner[last] = chance.choice((old + " ", " " + old, old + "\u0301", [old], old.swapcase() + "x"))
        else:
            owner[last] = chance.choice((old + 1, old * 2 + 5, str(old), [old])) if old != old + 1 else str(old)
        return other

    def test_shuffling_keys_changes_nothing(self) -> None:
        for seed in range(300):
            chance = random.Random(seed)
            request = self.request(chance)
            other = {**self.shuffled(request, chance), "user": "x", "stream": True, "n": 1, "logit_bias": {}}
            other = json.loads(json.dumps(self.shuffled(other, chance), ensure_ascii=bool(seed % 2)))
            self.assertEqual(canonical(CHAT, request, "m"), canonical(CHAT, other, "m"), seed)

    def test_changing_one_value_always_does(self) -> None:
        for seed in range(1000):
            chance = random.Random(seed)
            request = self.request(chance)
            other = self.changed(request, chance)
            one, two = canonical(CHAT, request, "m"), canonical(CHAT, other, "m")
            self.assertNotEqual(one, two, (request, other))
            self.assertNotEqual(key_of("a", one), key_of("a", two))

    def test_leaving_one_field_out_always_does(self) -> None:
        for seed in range(200):
            request = self.request(random.Random(seed))
            for name in request:
                rest = {key: value for key, value in request.items() if key != name}
                self.assertNotEqual(canonical(CHAT, request, "m"), canonical(CHAT, rest, "m"), (seed, name))


class DeterministicTest(unittest.TestCase):
    def test_where_nothing_is_drawn_or_with_a_seed(self) -> None:
        for request, expected in (
            ({}, False),
            ({"temperature": None}, False),
            ({"temperature": 0}, True),
            ({"temperature": 0.0}, True),
            ({"temperature": 1e-9}, False),
            ({"temperature": 1}, False),
            ({"temperature": 1, "seed": 5}, True),
            ({"seed": 0}, True),
            ({"seed": None}, False),
            ({"seed": None, "temperature": 0.7}, False),
            ({"top_k": 1}, False),
            ({"top_p": 0}, False),
        ):
            for path in (CHAT, COMPLETIONS):
                self.assertIs(is_deterministic(path, request), expected, request)

    def test_embeddings_always(self) -> None:
        self.assertIs(is_deterministic(EMBEDDINGS, {"input": "a"}), True)


class KeyTest(unittest.TestCase):
    def test_by_scope_and_what_is_asked(self) -> None:
        keys = [key_of(scope, asked) for scope in ("", "a", "b", "ab") for asked in (b"", b"a", b"b", b"ab")]
        self.assertEqual(len(set(keys)), len(keys))
        self.assertEqual({len(key) for key in keys}, {KEY_BYTES})
        self.assertEqual(key_of("a", b"b"), key_of("a", b"b"))

    def test_parts_are_told_apart_by_their_lengths(self) -> None:
        parts: list[tuple[bytes, ...]] = [(), (b"",), (b"", b""), (b"ab",), (b"a", b"b"), (b"", b"ab"), (b"ab", b"")]
        parts += [(b"1:a",), (b"1:", b"a"), (b"a1:b",), (b"a", b"1:b")]
        self.assertEqual(len({digest(*each) for each in parts}), len(parts))

    def test_a_scope_of_any_characters(self) -> None:
        self.assertNotEqual(key_of("\ud800", b""), key_of("\ud801", b""))
        self.assertNotEqual(key_of("é", b""), key_of("e", b""))


class NearTest(unittest.TestCase):
    def group(self, path: str = CHAT, scope: str = "s", model: str = "m", **fields: Any) -> Optional[bytes]:
        near = near_of(path, {**(BASE if path == CHAT else {"prompt": "a"}), **fields}, model, scope)
        return None if near is None else near.group

    def test_only_the_last_words_of_a_user_may_differ(self) -> None:
        history = [{"role": "system", "content": "Be brief."}]
        one = near_of(CHAT, {**BASE, "messages": [*history, user("What is a heap?")]}, "m", "s")
        other = near_of(CHAT, {**BASE, "messages": [*history, user("what's a heap")]}, "m", "s")
        assert one is not None and other is not None
        self.assertEqual((one.text, other.text), ("What is a heap?", "what's a heap"))
        self.assertEqual(one.group, other.group)

    def test_all_else_has_to_be_the_same(self) -> None:
        system, before = {"role": "system", "content": "Be brief."}, {"role": "assistant", "content": "Hello"}
        groups = [
            self.group(),
            self.group(scope="t"),
            self.group(scope=""),
            self.group(model="other"),
            self.group(messages=[USER]),
            self.group(messages=[{**system, "content": "Be brief!"}, USER]),
            self.group(messages=[{**system, "role": "developer"}, USER]),
            self.group(messages=[system, before, USER]),
            self.group(messages=[system, user("Hello"), USER]),
            self.group(messages=[before, system, USER]),
            self.group(messages=[system, {**USER, "name": "ann"}]),
            self.group(messages=[system, {**USER, "name": "bob"}]),
            self.group(tools=[TOOL]),
            self.group(tools=[TOOL], tool_choice="none"),
            self.group(response_format={"type": "json_object"}),
            self.group(max_tokens=5),
            self.group(max_tokens=6),
            self.group(stop="a"),
            self.group(seed=1),
            self.group(n=2),
            self.group(temperature=0.5),
            self.group(temperature=None),
            self.group(logprobs=True),
            self.group(COMPLETIONS),
            self.group(QUERY),
            self.group(COMPLETIONS, max_tokens=5),
        ]
        self.assertNotIn(None, groups)
        self.assertEqual(len(set(groups)), len(groups))

    def test_what_changes_no_answer_changes_no_group(self) -> None:
        alike: dict[str, Any] = {"user": "x", "stream": True, "n": 1, "temperature": 0.0, "tools": [], "top_k": 4}
        self.assertEqual(self.group(**alike), self.group())

    def test_one_part_of_text_is_a_text(self) -> None:
        part = {"type": "text", "text": "What is a heap?"}
        self.assertEqual(self.group(messages=[user([part])]), self.group(messages=[user("x")]))
        near = near_of(CHAT, {**BASE, "messages": [user([part])]}, "m", "s")
        assert near is not None
        self.assertEqual(near.text, "What is a heap?")

    def test_what_else_a_part_says_has_to_be_the_same(self) -> None:
        parts = [{"type": "text", "text": "a", "lang": lang} for lang in ("en", "de")]
        groups = [self.group(messages=[user([part])]) for part in parts]
        self.assertTrue(None in groups or groups[0] != groups[1])

    def test_without_last_words_there_is_nothing_near(self) -> None:
        image = {"type": "image_url", "image_url": {"url": "x"}}
        text = {"type": "text", "text": "a"}
        for last in (
            {"role": "assistant", "content": "a"},
            {"role": "system", "content": "a"},
            {"role": "tool", "tool_call_id": "1", "content": "a"},
            {"role": "user", "content": None},
            {"role": "user"},
            user([]),
            user([image]),
            user([text, image]),
            user([text, text]),
            user([{"type": "text"}]),
            user([{"type": "text", "text": 5}]),
            user([{"type": "input_image", "text": "a"}]),
            user([{"type": "refusal", "text": "a"}]),
        ):
            self.assertIsNone(self.group(messages=[USER, last]), last)
        for prompt in (None, ["a"], [1, 2], [[1]]):
            self.assertIsNone(self.group(COMPLETIONS, prompt=prompt), prompt)
        self.assertIsNone(near_of(EMBEDDINGS, {"input": "a"}, "m", "s"))

    def test_nor_where_the_answer_repeats_the_words_or_goes_on_from_them(self) -> None:
        for path, more in (
            (COMPLETIONS, {"echo": True}),
            (COMPLETIONS, {"suffix": "x"}),
            (COMPLETIONS, {"prompt_logprobs": 0}),
            (CHAT, {"prompt_logprobs": 1}),
            (CHAT, {"return_token_ids": True}),
            (CHAT, {"continue_final_message": True, "add_generation_prompt": False}),
            (CHAT, {"add_generation_prompt": False}),
        ):
            self.assertIsNone(self.group(path, **more), more)
        for path, more in (
            (COMPLETIONS, {"echo": False, "suffix": "", "prompt_logprobs": None}),
            (CHAT, {"add_generation_prompt": True, "continue_final_message": False, "return_token_ids": False}),
        ):
            self.assertIsNotNone(self.group(path, **more), more)

    def test_a_group_is_no_key(self) -> None:
        rest = {**BASE, "messages": [BASE["messages"][0], {**USER, "content": None}]}
        self.assertNotEqual(self.group(), key_of("s", canonical(CHAT, rest, "m")))


if __name__ == "__main__":
    unittest.main()
