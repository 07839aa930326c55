"""Random schemas and values: the same verdicts as the `jsonschema` package's, where that is installed."""

from __future__ import annotations

import random
import unittest
from typing import Any

from gateway.schemas.schema import compile_schema

try:
    import jsonschema
except ImportError:
    jsonschema = None  # type: ignore[assignment,unused-ignore]

ROUNDS = 300
NAMES = ("a", "b", "ab", "c", "")
TEXTS = ("", "a", "ab", "bb", "abc", "\U0001f600", "é")
NUMBERS = (0, 1, -1, 2, 3, 1.0, 2.5, -0.5, 0.1, 1e300, 10**20, 4.0)
PATTERNS = ("a", "^a", "b$", "^a*$", "^[ab]+$", "^.$", "^$", "a|b")


class Maker:
    """Makes schemas and values by chance."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def value(self, depth: int = 3) -> Any:
        pick = self.random
        kind = pick.randrange(8 if depth else 5)
        if kind == 0:
            return pick.choice((None, True, False))
        if kind <= 2:
            return pick.choice(NUMBERS)
        if kind <= 4:
            return pick.choice(TEXTS)
        if kind == 5:
            return [self.value(depth - 1) for _ in range(pick.randrange(4))]
        return {name: self.value(depth - 1) for name in pick.sample(NAMES, pick.randrange(4))}

    def schemas(self, depth: int, least: int = 1) -> list[Any]:
        return [self.schema(depth) for _ in range(self.random.randrange(least, 4))]

    def named(self, names: tuple[str, ...], depth: int) -> dict[str, Any]:
        return {name: self.schema(depth) for name in self.random.sample(names, self.random.randrange(1, 4))}

    def schema(self, depth: int) -> Any:
        pick = self.random
        if depth == 0 or pick.random() < 0.1:
            return pick.choice(
                (True, True, False, {}, {"type": "string"}, {"type": ["integer", "null"]}, {"minimum": 1})
            )
        inner = depth - 1
        makers: dict[str, Any] = {
            "type": lambda: pick.choice(
                ("object", "array", "string", "number", "integer", ["boolean", "null", "object"])
            ),
            "enum": lambda: [self.value(2) for _ in range(3)],
            "const": lambda: self.value(1),
            "properties": lambda: self.named(NAMES, inner),
            "patternProperties": lambda: self.named(PATTERNS, inner),
            "additionalProperties": lambda: self.schema(inner),
            "propertyNames": lambda: {"pattern": pick.choice(PATTERNS)},
            "required": lambda: pick.sample(NAMES, 2),
            "dependentRequired": lambda: {"a": ["b"]},
            "dependentSchemas": lambda: self.named(NAMES, inner),
            "minProperties": lambda: pick.randrange(3),
            "maxProperties": lambda: pick.randrange(3),
            "items": lambda: self.schema(inner),
            "prefixItems": lambda: self.schemas(inner),
            "contains": lambda: self.schema(inner),
            "minContains": lambda: pick.randrange(3),
            "maxContains": lambda: pick.randrange(3),
            "minItems": lambda: pick.randrange(3),
            "maxItems": lambda: pick.randrange(3),
            "uniqueItems": lambda: True,
            "anyOf": lambda: self.schemas(inner),
            "allOf": lambda: self.schemas(inner),
            "oneOf": lambda: self.schemas(inner),
            "not": lambda: self.schema(inner),
            "if": lambda: self.schema(inner),
            "then": lambda: self.schema(inner),
            "else": lambda: self.schema(inner),
            "minimum": lambda: pick.choice(NUMBERS),
            "exclusiveMaximum": lambda: pick.choice(NUMBERS),
            "multipleOf": lambda: pick.choice((1, 2, 0.5)),
            "minLength": lambda: pick.randrange(3),
            "maxLength": lambda: pick.randrange(3),
            "pattern": lambda: pick.choice(PATTERNS),
            "unevaluatedProperties": lambda: pick.choice((False, {"type": "string"})),
            "unevaluatedItems": lambda: pick.choice((False, {"type": "string"})),
        }
        schema = {keyword: makers[keyword]() for keyword in pick.sample(sorted(makers), pick.randrange(1, 6))}
        if pick.random() < 0.1:
            schema[pick.choice(("items", "additionalProperties"))] = {"$ref": "#"}
        return schema


@unittest.skipIf(jsonschema is None, "needs jsonschema")
class DifferentialTest(unittest.TestCase):
    def test_verdicts_are_the_same(self) -> None:
        verdicts = {True: 0, False: 0}
        for seed in range(ROUNDS):
            maker = Maker(seed)
            schema = maker.schema(3)
            ours, theirs = compile_schema(schema), jsonschema.Draft202012Validator(schema)
            for _ in range(10):
                value = maker.value()
                fits = theirs.is_valid(value)
                verdicts[fits] += 1
                self.assertEqual(not ours.check(value), fits, f"seed {seed}: {schema} of {value!r}")
        self.assertGreater(min(verdicts.values()), ROUNDS)


if __name__ == "__main__":
    unittest.main()
