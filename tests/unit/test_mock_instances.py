"""What a mock engine fills in where a schema is given fits it, misfits fail in one place, and any schema ends."""

from __future__ import annotations

import json
import time
import unittest
from typing import Any

from gateway.mock.instances import HABITS, instance, misfit, written


def properties(**schemas: Any) -> dict[str, Any]:
    return {"type": "object", "properties": schemas, "required": list(schemas)}


class InstanceTest(unittest.TestCase):
    def test_each_keyword_is_fitted(self) -> None:
        cases: list[tuple[Any, Any]] = [
            ({"type": "string"}, "text"),
            ({"type": "string", "minLength": 6}, "textxx"),
            ({"type": "string", "maxLength": 2}, "te"),
            ({"type": "string", "format": "date"}, "2026-01-31"),
            ({"enum": ["b", "a"], "type": "string"}, "b"),
            ({"const": {"a": 1}}, {"a": 1}),
            ({"type": "integer"}, 1),
            ({"type": "integer", "minimum": 5, "multipleOf": 4}, 8),
            ({"type": "integer", "exclusiveMinimum": 1}, 2),
            ({"type": "integer", "maximum": -2}, -2),
            ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, 0.5),
            ({"type": "number", "minimum": 0.2, "maximum": 0.3}, 0.25),
            ({"type": ["null", "string"]}, None),
            ({"type": "boolean"}, True),
            ({"type": "array", "items": {"type": "integer"}}, [1]),
            ({"type": "array", "items": {"type": "integer"}, "minItems": 3}, [1, 1, 1]),
            ({"type": "array", "prefixItems": [{"type": "null"}, {"const": 2}], "items": False}, [None, 2]),
            ({"type": "array", "maxItems": 0}, []),
            ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, 1),
            ({"oneOf": [{"const": 3}, {"const": 4}]}, 3),
            ({"allOf": [properties(a={"const": 1}), properties(b={"const": 2})]}, {"a": 1, "b": 2}),
            (properties(city={"type": "string"}), {"city": "city"}),
            ({"type": "object", "properties": {"left_out": {"const": 1}}}, {"left_out": 1}),
            ({"type": "object", "required": ["named"]}, {"named": "named"}),
            ({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"const": 7}}}, 7),
            (True, "text"),
        ]
        for schema, expected in cases:
            with self.subTest(schema):
                self.assertEqual(instance(schema), expected)

    def test_recursion_ends_where_the_schema_lets_it(self) -> None:
        node = properties(next={"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]})
        made, depth = instance({"$ref": "#/$defs/node", "$defs": {"node": node}}), 0
        while made is not None:
            self.assertEqual(list(made), ["next"])
            made, depth = made["next"], depth + 1
        self.assertGreater(depth, 1)
        listed = instance(properties(children={"type": "array", "items": {"$ref": "#"}}))
        self.assertIsInstance(listed["children"][0]["children"], list)

    def test_hostile_schemas_end_soon_and_small(self) -> None:
        wide = {"type": "object", "properties": {str(number): {"$ref": "#"} for number in range(100)}}
        hostile: list[Any] = [
            {"$ref": "#"},
            {"anyOf": [{"$ref": "#"}]},
            {"allOf": [{"$ref": "#"}, {"$ref": "#"}]},
            {"type": "array", "items": {"$ref": "#"}, "minItems": 10**9},
            properties(again={"$ref": "#"}),
            wide,
            {"type": "integer", "minimum": 10**400},
            {"type": "number", "multipleOf": 1e-320},
            {"type": "string", "minLength": 10**12},
            {"type": [], "enum": [], "anyOf": [], "properties": 3, "required": 4},
            None,
        ]
        for schema in hostile:
            with self.subTest(str(schema)[:60]):
                started = time.process_time()
                self.assertLess(len(json.dumps(instance(schema))), 1 << 20)
                self.assertLess(time.process_time() - started, 2.0)


class SpoiltTest(unittest.TestCase):
    def test_a_misfit_has_another_type_in_its_first_property_or_as_a_whole(self) -> None:
        for value, expected in (
            ({"a": 1, "b": 2}, {"a": ["misfit"], "b": 2}),
            ({"a": {}}, {"a": "misfit"}),
            ({}, "misfit"),
            (1, ["misfit"]),
        ):
            self.assertEqual(misfit(value), expected)

    def test_habits_spoil_the_text_and_leave_the_value_in_it(self) -> None:
        texts = {habit: written({"a": [1]}, habit) for habit in HABITS}
        self.assertEqual(texts["code_fence"], '```json\n{"a": [1]}\n```')
        self.assertEqual(texts["trailing_comma"], '{"a": [1],}')
        self.assertTrue(texts["prose_before"].endswith(': {"a": [1]}'))
        self.assertEqual(written({"a": 1}, "ok"), '{"a": 1}')
        for text in texts.values():
            self.assertRaises(ValueError, json.loads, text)


if __name__ == "__main__":
    unittest.main()
