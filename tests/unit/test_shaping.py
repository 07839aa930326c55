"""Requests as a model's engines get them: what is taken out, what is there by default, what is there in any case."""

from __future__ import annotations

import json
import tempfile
import unittest
from pathlib import Path
from typing import Any

from gateway.configuration import ConfigurationError
from gateway.fleet import load_engines_file
from gateway.routing.params import Params, params_of
from gateway.routing.specs import ModelSpec, model_from
from gateway.upstream.call import CHAT, Call
from gateway.upstream.shaping import shaped

MESSAGES = [{"role": "user", "content": "hi"}]


def params(*strip: str, defaults: Any = None, force: Any = None) -> Params:
    made = params_of(strip, defaults or {}, force or {})
    assert made is not None
    return made


def chat(**fields: Any) -> dict[str, Any]:
    return {"messages": MESSAGES, **fields}


class ShapeTest(unittest.TestCase):
    def test_fields_are_taken_out_however_they_are_spelled(self) -> None:
        request = chat(temperature=1, Top_K=3, seed=1)
        self.assertEqual(shaped(CHAT, request, params("temperature", "top_k")), chat(seed=1))
        self.assertEqual(request, chat(temperature=1, Top_K=3, seed=1))

    def test_a_default_is_for_who_has_not_said_it(self) -> None:
        defaults = params(defaults={"temperature": 0.5})
        self.assertEqual(shaped(CHAT, chat(), defaults), chat(temperature=0.5))
        self.assertEqual(shaped(CHAT, chat(temperature=None), defaults), chat(temperature=0.5))
        self.assertEqual(shaped(CHAT, chat(temperature=0), defaults), chat(temperature=0))

    def test_what_is_forced_replaces_what_was_said(self) -> None:
        force = params(force={"top_k": 1, "temperature": 0})
        self.assertEqual(shaped(CHAT, chat(temperature=2, TOP_K=9), force), chat(top_k=1, temperature=0))

    def test_the_names_of_the_limit_of_tokens_are_one(self) -> None:
        defaults, force = params(defaults={"max_tokens": 9}), params(force={"max_tokens": 9})
        self.assertEqual(shaped(CHAT, chat(max_completion_tokens=5), defaults), chat(max_completion_tokens=5))
        self.assertEqual(shaped(CHAT, chat(max_completion_tokens=5), force), chat(max_tokens=9))

    def test_what_was_taken_out_does_not_come_back_by_default(self) -> None:
        both = params("temperature", defaults={"temperature": 1})
        self.assertEqual(shaped(CHAT, chat(temperature=2), both), chat())

    def test_fields_that_a_path_does_not_have_are_not_added_there(self) -> None:
        both = params(defaults={"temperature": 1, "dimensions": 3}, force={"max_completion_tokens": 5})
        self.assertEqual(shaped("/embeddings", {"input": "x"}, both), {"input": "x", "dimensions": 3})
        force = params(force={"max_completion_tokens": 5})
        self.assertEqual(shaped("/completions", {"prompt": "x"}, force), {"prompt": "x"})

    def test_a_request_that_is_right_stays_the_same_object(self) -> None:
        request = chat(seed=1)
        self.assertIs(shaped(CHAT, request, None), request)
        self.assertIs(shaped(CHAT, request, params("temperature", defaults={"seed": 2})), request)

    def test_nothing_to_change_is_none(self) -> None:
        self.assertIsNone(ModelSpec("m", model_from("m", ["echo:"]).engines).params)


class CallTest(unittest.TestCase):
    def test_the_payload_of_each_model_is_made_of_what_the_client_said(self) -> None:
        call = Call(CHAT, chat(model="m", temperature=1))
        first, second = params("temperature", force={"max_tokens": 5}), params(defaults={"seed": 3})
        call.adapt(first)
        self.assertEqual(json.loads(call.payload("x", False, first)), chat(model="x", max_tokens=5))
        self.assertEqual(json.loads(call.payload("y", False, second)), chat(model="y", temperature=1, seed=3))
        for model in ("z", "x", "y"):  # whatever another one's engine calls it
            self.assertEqual(json.loads(call.payload(model, False, None)), chat(model=model, temperature=1))
        self.assertEqual(json.loads(call.payload("m", False, None)), chat(model="m", temperature=1))

    def test_estimates_go_by_what_is_sent(self) -> None:
        call = Call(CHAT, chat(max_tokens=1000))
        force = params(force={"max_tokens": 5})
        self.assertGreater(call.estimated_tokens(), 1000)
        self.assertLess(call.estimated_tokens(force), 100)
        call.adapt(force)
        self.assertEqual(call.request["max_tokens"], 5)
        self.assertLess(call.estimated_tokens(force), 100)
        self.assertGreater(call.estimated_tokens(None), 1000)

    def test_a_call_goes_back_to_what_was_said(self) -> None:
        call = Call(CHAT, chat(), b'{"messages": 1 }')
        call.adapt(params(force={"seed": 1}))
        self.assertNotEqual(call.body, b'{"messages": 1 }')
        call.adapt(None)
        self.assertEqual((call.body, call.request), (b'{"messages": 1 }', chat()))

    def test_a_change_is_for_all_models(self) -> None:
        call = Call(CHAT, chat(temperature=1))
        call.change(params("temperature"))
        force = params(force={"seed": 1})
        call.adapt(force)
        self.assertEqual(json.loads(call.payload(None, False, force)), chat(seed=1))
        self.assertEqual(json.loads(call.payload(None, False, None)), chat())

    def test_a_streams_usage_is_asked_for_in_each(self) -> None:
        call = Call(CHAT, chat(stream=True))
        force = params(force={"seed": 1})
        expected = chat(stream=True, seed=1, stream_options={"include_usage": True})
        self.assertEqual(json.loads(call.payload(None, True, force)), expected)
        call.adapt(force)
        self.assertEqual(json.loads(call.payload(None, True, force)), expected)

    def test_a_continuation_is_not_changed_twice(self) -> None:
        call = Call(CHAT, chat(stream=True))
        force = params(force={"max_tokens": 100})
        onward = call.continuation("x" * 200, force)
        self.assertEqual(json.loads(onward.payload(None, False, force))["max_tokens"], 50)


class FileTest(unittest.TestCase):
    def load(self, **keys: Any) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "engines.json"
            path.write_text(json.dumps({"models": {"m": {"engines": ["echo:"], **keys}}}))
            return load_engines_file(path).models[0]

    def faults(self, **keys: Any) -> list[str]:
        with self.assertRaises(ConfigurationError) as caught:
            self.load(**keys)
        return list(caught.exception.faults)

    def test_all_three_are_read(self) -> None:
        spec = self.load(strip=["Temperature"], defaults={"max_tokens": 9}, force={"chat_template_kwargs": {"a": 1}})
        found = spec.params
        self.assertEqual((found.strip, found.defaults), (frozenset(("temperature",)), {"max_tokens": 9}))
        self.assertEqual(found.force, {"chat_template_kwargs": {"a": 1}})

    def test_what_an_answer_has_to_fit_may_be_taken_out_and_not_put_in(self) -> None:
        self.assertEqual(self.load(strip=["response_format"]).params.strip, frozenset(("response_format",)))
        for key in ("defaults", "force"):
            for name in ("response_format", "Response_Format"):
                fault = f'models.m.{key}.{name}: "{name}" is the client\'s own: only a request says'
                faults = self.faults(**{key: {name: {"type": "json_object"}}})
                self.assertTrue(faults[0].startswith(fault), faults)

    def test_functions_may_be_put_in_and_no_strict_one(self) -> None:
        def tools(**more: Any) -> list[dict[str, Any]]:
            return [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, **more}}]

        self.assertEqual(self.load(force={"tools": tools()}).params.force["tools"], tools())
        for key in ("defaults", "force"):
            faults = self.faults(**{key: {"tools": tools(strict=True)}})
            self.assertTrue(faults[0].startswith(f"models.m.{key}.tools: a function must not be strict"), faults)

    def test_what_is_wrong_is_named_where_it_stands(self) -> None:
        for keys, expected in (
            ({"strip": ["model"]}, 'models.m.strip[0]: "model" is the client\'s own'),
            ({"strip": ["Messages"]}, 'models.m.strip[0]: "Messages" is the client\'s own'),
            ({"force": {"stream": True}}, 'models.m.force.stream: "stream" is the client\'s own'),
            ({"force": {"n": 2}}, 'models.m.force.n: "n" is the client\'s own'),
            ({"defaults": {"temperature": "hot"}}, "models.m.defaults.temperature: must be a number from 0 to 2"),
            ({"defaults": {"Temperature": 1}}, "models.m.defaults.Temperature: is spelled temperature"),
            ({"force": {"max_tokens": -1}}, "models.m.force.max_tokens: must not be -1: it stands for no limit"),
            (
                {"force": {"top_k": None}},
                "models.m.force.top_k: must not be null; leave the key out, or strip the field",
            ),
            (
                {"strip": "seed"},
                'models.m.strip: must be a list of at most 64 names of fields, not "seed"',
            ),
            ({"force": [1]}, "models.m.force: must be an object of at most 64 fields, not [1]"),
        ):
            with self.subTest(keys):
                self.assertEqual(self.faults(**keys), [expected])


if __name__ == "__main__":
    unittest.main()
