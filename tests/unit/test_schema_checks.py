"""What is said of a schema that is refused and of a value that does not fit, and that both end within bounds."""

from __future__ import annotations

import json
import unittest
from typing import Any

from gateway.schemas.faults import SchemaRefused, TooComplex
from gateway.schemas.node import STEPS_BASE, STEPS_PER_VALUE, Run
from gateway.schemas.schema import FAULTS_MAX, compile_schema


def faults(schema: Any, value: Any, faults_max: int = FAULTS_MAX) -> list[tuple[str, str]]:
    return [tuple(fault) for fault in compile_schema(schema).check(value, faults_max)]  # type: ignore[misc]


def nested(opening: str, inner: str, closing: str, depth: int) -> Any:
    return json.loads(opening * depth + inner + closing * depth)


class FaultTest(unittest.TestCase):
    def check(self, schema: Any, value: Any, *expected: tuple[str, str]) -> None:
        self.assertEqual(faults(schema, value), list(expected))

    def test_paths_lead_to_the_value(self) -> None:
        schema = {"additionalProperties": {"items": {"type": "integer"}}}
        self.check(schema, {"a": [1, "2"]}, ("$.a[1]", 'must be an integer, is "2"'))
        self.check(schema, {"a b": [None]}, ('$["a b"][0]', "must be an integer, is null"))
        self.check(schema, {"1": [True]}, ('$["1"][0]', "must be an integer, is true"))
        self.assertEqual(faults(schema, {"x" * 500: ["y" * 500]})[0][0], f'$["{"x" * 60}…"][0]')

    def test_half_a_character_can_be_told_to_a_client(self) -> None:
        for path, message in faults({"additionalProperties": {"type": "null"}}, {"\ud800": "\udfff"}):
            (path + message).encode()

    def test_all_faults_are_told_up_to_a_number(self) -> None:
        schema = {"items": {"type": "string"}}
        self.assertEqual(len(faults(schema, [1] * 5)), 5)
        self.assertEqual(len(faults(schema, [1] * 50)), FAULTS_MAX)
        self.assertEqual(len(faults(schema, [1] * 50, 3)), 3)

    def test_messages_say_what_is_wanted_and_what_is_there(self) -> None:
        for schema, value, message in (
            ({"type": ["string", "array", "null"]}, {}, "must be a string, an array or null, is an empty object"),
            ({"type": "integer"}, 1.5, "must be an integer, is 1.5"),
            ({"enum": ["a", 1, None]}, "b", 'must be one of "a", 1, null, is "b"'),
            ({"const": {"a": 1}}, [1], 'must be {"a": 1}, is an array of 1'),
            ({"required": ["a"]}, {}, 'must have the property "a"'),
            ({"dependentRequired": {"a": ["b"]}}, {"a": 1}, 'must have the property "b", since it has "a"'),
            ({"minimum": 1}, 0, "must be at least 1, is 0"),
            ({"exclusiveMaximum": 1}, 1.0, "must be less than 1, is 1.0"),
            ({"multipleOf": 0.1}, 0.25, "must be a multiple of 0.1, is 0.25"),
            ({"minLength": 1}, "", "must have at least 1 character, has 0"),
            ({"maxItems": 2}, [1, 2, 3], "must have at most 2 items, has 3"),
            ({"pattern": "^a"}, "b", 'must match the pattern "^a", is "b"'),
            ({"format": "date"}, "today", 'must have the format date, is "today"'),
            ({"not": {"type": "null"}}, None, "must not be like this: null fits what `not` rules out"),
            (
                {"oneOf": [{"type": "number"}, True]},
                1,
                "must fit exactly one of the 2 alternatives, fits several: 1, 2",
            ),
            ({"maximum": 1}, 10**400, "must be at most 1, is an integer of some 400 digits"),
            (False, 1, "must not be there: nothing is allowed here"),
        ):
            with self.subTest(schema=schema):
                self.check(schema, value, ("$", message))

    def test_formats_of_generators_are_taken(self) -> None:
        self.check({"format": "uuid4"}, "x", ("$", 'must have the format uuid4, is "x"'))
        self.check({"format": "base64"}, "x")

    def test_members_that_are_not_allowed_are_named(self) -> None:
        schema = {"properties": {"a": True, "b": True}, "additionalProperties": False}
        self.check(schema, {"c": 1}, ("$.c", 'is not an allowed property (allowed: "a", "b")'))
        self.check(
            {"propertyNames": {"maxLength": 1}},
            {"ab": 1},
            ("$.ab", "the property's name is not allowed: it must have at most 1 character, has 2"),
        )
        self.check({"uniqueItems": True}, [1, 2, 1.0], ("$[2]", "must differ from item 0: the items must be unique"))

    def test_of_alternatives_the_one_that_was_meant_has_its_faults_told(self) -> None:
        def animal(kind: str, sound: str) -> Any:
            return {
                "type": "object",
                "properties": {"kind": {"const": kind}, sound: {"type": "string"}},
                "required": ["kind", sound],
                "additionalProperties": False,
            }

        for keyword in ("anyOf", "oneOf"):
            schema = {keyword: [animal("cat", "meow"), animal("dog", "bark"), {"type": "null"}]}
            self.check(schema, {"kind": "dog", "bark": 3}, ("$.bark", "must be a string, is 3"))
            self.check(schema, 5, ("$", "must be an object or null, is 5"))
            self.check(
                schema,
                {"kind": "cow", "bark": 3},
                ("$.kind", 'must be "dog", is "cow"'),
                ("$.bark", "must be a string, is 3"),
            )
        optional = {"properties": {"a": {"anyOf": [{"required": ["b", "c"], "type": "object"}, {"type": "null"}]}}}
        self.check(optional, {"a": {}}, ("$.a", 'must have the property "b"'), ("$.a", 'must have the property "c"'))
        (fault,) = faults({"anyOf": [{"minimum": 5}, {"multipleOf": 2}]}, 3)
        self.assertEqual(
            fault[1], "fits none of the 2 alternatives: $ must be at least 5, is 3, $ must be a multiple of 2, is 3"
        )

    def test_a_schema_can_be_used_again_and_gives_the_same(self) -> None:
        schema = compile_schema(
            {"$ref": "#/$defs/a", "$defs": {"a": {"items": {"$ref": "#/$defs/a"}, "type": "array"}}}
        )
        for _ in range(3):
            self.assertEqual(schema.check([[], [[]]]), [])
            self.assertEqual(schema.check([[], [1]])[0].path, "$[1][0]")


class RefusedTest(unittest.TestCase):
    def check(self, schema: Any, path: str, *mentions: str) -> None:
        with self.assertRaises(SchemaRefused) as caught:
            compile_schema(schema)
        self.assertEqual(caught.exception.path, path, caught.exception.message)
        for mention in mentions:
            self.assertIn(mention, caught.exception.message)

    def test_keywords_that_cannot_be_checked_are_refused_where_they_stand(self) -> None:
        self.check({"properties": {"a": {"nullable": True}}}, "$.properties.a.nullable", '"nullable"')
        for keyword in (
            "$dynamicRef",
            "$dynamicAnchor",
            "$vocabulary",
            "$recursiveRef",
            "dependencies",
            "additionalItems",
            "id",
        ):
            self.check({"anyOf": [{keyword: {}}]}, f"$.anyOf[0].{keyword}", keyword)

    def test_annotations_change_nothing(self) -> None:
        schema = {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": 1,
            "x-order": 2,
            "default": {"$ref": 3},
        }
        self.assertEqual(faults({**schema, "discriminator": {"propertyName": "kind"}, "format": "int32"}, "x"), [])
        self.assertEqual(faults({"$schema": "http://json-schema.org/draft-07/schema#"}, "x"), [])
        self.check({"$schema": "http://json-schema.org/draft-04/schema#"}, "$.$schema")

    def test_values_of_keywords_are_checked(self) -> None:
        for schema, path in (
            (3, "$"),
            ({"properties": []}, "$.properties"),
            ({"properties": {"a": 1}}, "$.properties.a"),
            ({"items": [{}]}, "$.items"),
            ({"anyOf": []}, "$.anyOf"),
            ({"type": "strin"}, "$.type"),
            ({"type": []}, "$.type"),
            ({"required": "a"}, "$.required"),
            ({"dependentRequired": {"a": "b"}}, "$.dependentRequired.a"),
            ({"enum": "a"}, "$.enum"),
            ({"minimum": "1"}, "$.minimum"),
            ({"minimum": True}, "$.minimum"),
            ({"multipleOf": 0}, "$.multipleOf"),
            ({"minLength": -1}, "$.minLength"),
            ({"maxItems": 1.5}, "$.maxItems"),
            ({"uniqueItems": 1}, "$.uniqueItems"),
            ({"pattern": "("}, "$.pattern"),
            ({"patternProperties": {"(?=a)": {}}}, '$.patternProperties["(?=a)"]'),
            ({"format": "phone"}, "$.format"),
            ({"$ref": 3}, "$.$ref"),
            ({"$anchor": "1a"}, "$.$anchor"),
            ({"maximum": float("inf")}, "$"),
            ({"const": 10**2000}, "$"),
        ):
            with self.subTest(schema=str(schema)[:40]):
                self.check(schema, path)

    def test_references_that_lead_nowhere_are_refused(self) -> None:
        for reference in (
            "#/$defs/b",
            "#b",
            "#/default",
            "https://example.com/a",
            "b.json",
            "#/$defs/a/type",
            "#/allOf/1",
        ):
            with self.subTest(reference=reference):
                schema = {
                    "$defs": {"a": {"type": "null"}},
                    "default": {},
                    "allOf": [True],
                    "items": {"$ref": reference},
                }
                self.check(schema, "$.items.$ref")

    def test_references_that_never_go_into_the_value_are_refused(self) -> None:
        for schema in (
            {"$ref": "#"},
            {"allOf": [{"anyOf": [{"not": {"$ref": "#"}}]}]},
            {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"if": {"$ref": "#/$defs/a"}}}},
            {"dependentSchemas": {"a": {"$ref": "#"}}},
        ):
            with self.subTest(schema=schema), self.assertRaisesRegex(SchemaRefused, "back to itself"):
                compile_schema(schema)

    def test_size_and_depth_are_bounded(self) -> None:
        self.check(nested('{"items":', "{}", "}", 200), "$", "nested")
        self.check({"enum": list(range(60_000))}, "$", "values")
        self.check({"allOf": [True] * 7000}, "$", "schemas")
        self.check(
            {"properties": {str(n): {"pattern": "a{900}" + "b" * n} for n in range(40)}},
            '$.properties["18"].pattern',
            "patterns",
        )
        chain: dict[str, Any] = {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}]} for n in range(60)}
        with self.assertRaisesRegex(SchemaRefused, "within each other"):
            compile_schema({"$defs": {**chain, "a60": {}}})


class BoundTest(unittest.TestCase):
    def test_work_that_multiplies_is_ended(self) -> None:
        for keyword in ("anyOf", "oneOf"):
            both = {f"a{n}": {keyword: [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(30)}
            schema = compile_schema({"$ref": "#/$defs/a0", "$defs": {**both, "a30": {"type": "null"}}})
            with self.subTest(keyword=keyword), self.assertRaises(TooComplex):
                schema.check(5)

    def test_patterns_are_paid_for(self) -> None:
        with self.assertRaises(TooComplex):
            compile_schema({"pattern": "(a|b|ab){0,400}c$"}).check("ab" * 2000)

    def test_a_large_value_may_take_as_much_work_as_its_size_needs(self) -> None:
        item = {
            "type": "object",
            "properties": {"a": {"$ref": "#/$defs/n"}},
            "required": ["a"],
            "additionalProperties": False,
        }
        schema = {"items": item, "$defs": {"n": {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}]}}}
        self.assertEqual(faults(schema, [{"a": 1}, {"a": None}] * 8000), [])
        self.assertEqual(faults({"pattern": "^[a-z ]*$"}, "lorem ipsum " * 40_000), [])

    def test_the_steps_are_those_said(self) -> None:
        run = Run([1, {"a": "x" * 16}], 1)
        run.spend(STEPS_BASE)
        run.spend(STEPS_PER_VALUE * 7)  # the array, 1, the object, "a", the text and twice eight characters of it
        with self.assertRaises(TooComplex):
            run.spend(1)

    def test_faults_and_trials_are_paid_for(self) -> None:
        anything = compile_schema({})._root
        run = Run(None, 10)
        run.fits(anything, 1, None)
        tried = STEPS_BASE - run.steps_left
        self.assertGreater(tried, anything.weight)
        run.fault(None, "must be told")
        self.assertGreater(STEPS_BASE - run.steps_left, 2 * tried)

    def test_values_nested_deep_are_checked_or_refused(self) -> None:
        schema = {"items": {"$ref": "#"}}
        self.assertEqual(faults(schema, nested("[", "", "]", 120)), [])
        for one in (schema, {"uniqueItems": True, "items": {"$ref": "#"}}, {"enum": [[1]]}):
            deep: list[Any] = []
            for _ in range(5000):
                deep = [deep]
            with self.assertRaises(TooComplex):
                faults(one, deep)

    def test_numbers_are_compared_exactly(self) -> None:
        for schema, value, fits in (
            ({"multipleOf": 0.01}, 19.99, True),
            ({"multipleOf": 1e-300}, 1e308, True),
            ({"multipleOf": 3}, 10**900, False),
            ({"multipleOf": 1}, float("inf"), False),
            ({"multipleOf": 10**900}, 10**901, True),  # no float is as large
            ({"minimum": -(10**900), "exclusiveMaximum": 10**900}, 1e308, True),
            ({"maximum": 2**53}, 2**53 + 1, False),
            ({"const": 2**53}, 2.0**53, True),
            ({"const": 2**53 + 1}, 2.0**53, False),
            ({"enum": [1]}, True, False),
            ({"enum": [[0]]}, [False], False),
            ({"uniqueItems": True}, [1, True, "1", [1], {"1": 1}], True),
            ({"uniqueItems": True}, [{"a": 1, "b": [2]}, {"b": [2.0], "a": 1}], False),
            ({"uniqueItems": True}, ["a", "s1:a", ["a"], ["a", ""], [["a"], ""]], True),
        ):
            with self.subTest(schema=schema, value=str(value)[:30]):
                self.assertEqual(not faults(schema, value), fits)

    def test_equal_hashes_do_not_make_unique_items_quadratic(self) -> None:
        # Python hashes all of these to 0: a set of them compares each with each.
        self.assertEqual(faults({"uniqueItems": True}, [number * (2**61 - 1) for number in range(20_000)]), [])


if __name__ == "__main__":
    unittest.main()
