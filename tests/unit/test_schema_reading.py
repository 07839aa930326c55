"""What is made of a model's answer: strict JSON, known habits repaired, everything else named; and tool calls alike."""

from __future__ import annotations

import json
import unittest
from typing import Any

from gateway.schemas.faults import Fault, SchemaRefused
from gateway.schemas.reading import ANY_OBJECT, PROMPT_CHARACTERS_MAX, Reading, faults_prompt, read_answer
from gateway.schemas.relaxed import pieces
from gateway.schemas.schema import compile_schema
from gateway.schemas.tools import strict_tools

CITY = compile_schema(
    {
        "type": "object",
        "properties": {"name": {"type": "string"}, "big": {"type": ["boolean", "null"]}},
        "required": ["name"],
        "additionalProperties": False,
    }
)
BONN = '{"name": "Bonn"}'


class ReadingTest(unittest.TestCase):
    def read(self, text: str) -> Reading:
        return read_answer(text, CITY)

    def assert_repaired(self, text: str, value: Any, *repairs: str) -> None:
        reading = self.read(text)
        self.assertEqual((reading.value, reading.faults, tuple(reading.repairs)), (value, [], repairs))
        self.assertEqual(json.loads(reading.text), value)

    def assert_misfit(self, text: str, *mentions: str, path: str = "$") -> None:
        reading = self.read(text)
        self.assertEqual((reading.text, tuple(reading.repairs)), (text, ()))
        self.assertEqual(reading.faults[0].path, path)
        for mention in mentions:
            self.assertIn(mention, reading.faults[0].message)

    def test_json_that_fits_is_left_as_it_is(self) -> None:
        for text in (BONN, f" \n{BONN}\n"):
            self.assertEqual(self.read(text), Reading({"name": "Bonn"}, text, [], ()))

    def test_json_that_does_not_fit_has_its_faults(self) -> None:
        self.assert_misfit('{"name": 5}', "must be a string, is 5", path="$.name")

    def test_known_habits_are_repaired(self) -> None:
        bonn = {"name": "Bonn"}
        self.assert_repaired(f"```json\n{BONN}\n```", bonn, "code_fence")
        self.assert_repaired(f"Here it is:\n```\n{BONN}\n```\nAnything else?", bonn, "code_fence", "text_around")
        self.assert_repaired(f"<think>Hm.</think> {BONN}", bonn, "text_around")
        self.assert_repaired('{"name": "Bonn",}', bonn, "trailing_comma")
        self.assert_repaired('{"name": "Bonn", // on the Rhine\n}', bonn, "comment", "trailing_comma")
        self.assert_repaired('{/* a, b} */"name": "Bonn"}', bonn, "comment")
        self.assert_repaired("{'name': 'Bonn'}", bonn, "single_quotes")
        self.assert_repaired("{'name': 'it\\'s \"B\"', 'big': None}", {"name": 'it\'s "B"', "big": None}, *PYTHON)
        self.assert_repaired('{"name": "B", "big": True}', {"name": "B", "big": True}, "python_literal")
        self.assert_repaired('{"name": "a\nb"}', {"name": "a\nb"}, "control_character")
        self.assert_repaired(f"{BONN}\n\nOnce more: {BONN}", bonn, "text_around")

    def test_what_stands_in_strings_is_left_alone(self) -> None:
        name = "```json // None, } [1,] /* True"
        self.assert_repaired("x" + json.dumps({"name": name}), {"name": name}, "text_around")

    def test_what_is_repaired_and_does_not_fit_has_its_faults_and_no_repairs(self) -> None:
        self.assert_misfit('```json\n{"name": 5}\n```', "must be a string", path="$.name")

    def test_nothing_is_made_up(self) -> None:
        self.assert_misfit('{"name": "Bonn"', "JSON")
        self.assert_misfit('{"name": "Bo', "JSON")
        self.assert_misfit('[{"name": "Bonn"}, {"name": ', "JSON")  # the part that fits is a part
        self.assert_misfit('{"city": {"name": "Bonn"} oops}', "JSON")
        self.assert_misfit("{name: 'Bonn'}", "JSON")
        self.assert_misfit('{"name": "Bonn",,}', "JSON")
        self.assert_misfit("", "empty")
        self.assert_misfit("I cannot do that.", "JSON")

    def test_of_two_answers_none_is_chosen(self) -> None:
        self.assert_misfit(f'{BONN} or {{"name": "Ulm"}}', "not several")

    def test_what_parsers_read_differently_is_refused(self) -> None:
        self.assert_misfit('{"name": "a", "name": "b"}', "twice")
        self.assert_misfit('```\n{"name": "a", "name": "b"}\n```', "JSON")
        self.assert_misfit('{"name": NaN}', "NaN")
        self.assert_misfit('{"name": 1e999}', "too large")

    def test_deep_and_large_answers_are_read_within_bounds(self) -> None:
        for text in ("[" * 5000 + "]" * 5000, "[" * 100_000, "x" + "[" * 200 + "]" * 200, '{"' + "\\" * 50_000):
            self.assertTrue(read_answer(text, ANY_OBJECT).faults)
        self.assertEqual(len(list(pieces("[] " * 1000))), 16)

    def test_any_object_is_what_json_object_asks_for(self) -> None:
        self.assertEqual(read_answer("{}", ANY_OBJECT).faults, [])
        self.assertEqual(read_answer("[]", ANY_OBJECT).faults[0].message, "must be an object, is an empty array")

    def test_half_a_character_is_read(self) -> None:
        self.assertEqual(read_answer('{"a": "\ud800"}', ANY_OBJECT).faults, [])


PYTHON = ("python_literal", "single_quotes")


class PromptTest(unittest.TestCase):
    def test_every_fault_is_named(self) -> None:
        text = faults_prompt([Fault("$.a", "must be 1"), Fault("$.b[0]", "must be 2")])
        self.assertIn("- $.a: must be 1\n- $.b[0]: must be 2\n", text)

    def test_its_length_is_bounded(self) -> None:
        text = faults_prompt([Fault("$", "x" * 1000)] * 20)
        self.assertLess(len(text), PROMPT_CHARACTERS_MAX + 300)
        self.assertIn("and 17 more", text)


def tool(name: str, strict: Any = True, **parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "strict": strict, "parameters": parameters}}


def call(name: Any, arguments: Any) -> dict[str, Any]:
    return {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}


WEATHER = tool("weather", type="object", properties={"city": {"type": "string"}}, required=["city"])
NOW = tool("now", type="object", properties={}, additionalProperties=False)
LOOSE = tool("loose", strict=False, type="nonsense")


class ToolsTest(unittest.TestCase):
    def setUp(self) -> None:
        tools = strict_tools([WEATHER, NOW, LOOSE, {"type": "custom", "custom": {"name": "c"}}])
        assert tools is not None
        self.tools = tools

    def test_without_a_strict_function_nothing_is_checked(self) -> None:
        for tools in (None, [], [LOOSE], [None, 3, {"function": None}, {"function": {"name": 3, "strict": True}}]):
            self.assertIsNone(strict_tools(tools))

    def test_calls_that_fit_have_no_faults(self) -> None:
        for calls in (None, [], [call("weather", '{"city": "Bonn"}'), call("loose", "no JSON")], [{"type": "custom"}]):
            read = self.tools.read(calls)
            self.assertEqual((read.faults, read.arguments, read.repairs), ([], {}, ()))

    def test_faults_name_the_call(self) -> None:
        calls = [
            call("now", "{}"),
            call("weather", '{"city": 3}'),
            call("wether", "{}"),
            call("weather", {"city": "B"}),
        ]
        self.assertEqual(
            [(fault.path, fault.message) for fault in self.tools.read(calls).faults],
            [
                ("$.tool_calls[1].function.arguments.city", "must be a string, is 3"),
                ("$.tool_calls[2].function.name", 'must be one of "loose", "now", "weather"'),
                ("$.tool_calls[3].function.arguments", "must be a string that holds JSON"),
            ],
        )

    def test_arguments_are_repaired_like_answers(self) -> None:
        read = self.tools.read([call("weather", "```\n{'city': 'Bonn'}\n```"), call("now", ""), call("now", None)])
        self.assertEqual(read.faults, [])
        self.assertEqual(read.arguments, {0: '{"city": "Bonn"}', 1: "{}", 2: "{}"})
        self.assertEqual(tuple(read.repairs), ("code_fence", "single_quotes", "empty_arguments"))

    def test_no_arguments_where_some_are_required_are_a_fault(self) -> None:
        read = self.tools.read([call("weather", "")])
        self.assertEqual([fault.message for fault in read.faults], ['must have the property "city"'])

    def test_parameters_that_cannot_be_checked_are_refused_with_their_place(self) -> None:
        with self.assertRaises(SchemaRefused) as caught:
            strict_tools([WEATHER, tool("x", type="object", properties={"a": {"nullable": True}})])
        self.assertEqual(caught.exception.path, "tools[1].function.parameters.properties.a.nullable")


if __name__ == "__main__":
    unittest.main()
