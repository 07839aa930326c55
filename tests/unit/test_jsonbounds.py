"""How many values, how deep: exact for any JSON text, wherever it is cut into slices, and cheap for any other."""

from __future__ import annotations

import json
import random
import unittest
from typing import Any
from unittest import mock

from gateway import jsonbounds
from gateway.errors import RequestRefused
from gateway.jsonbounds import passed, takes_long
from gateway.validation import parse_json


def values_in(value: Any) -> int:
    if isinstance(value, list):
        return 1 + sum(map(values_in, value))
    if isinstance(value, dict):
        return 1 + len(value) + sum(map(values_in, value.values()))
    return 1


def depth_of(value: Any) -> int:
    if isinstance(value, (list, dict)):
        return 1 + max(map(depth_of, value.values() if isinstance(value, dict) else value), default=0)
    return 0


def document(rng: random.Random, depth: int) -> Any:
    kind = rng.randrange(7) if depth else rng.randrange(4)
    if kind < 2:
        return "".join(rng.choices('[]{},:"\\ab \u00e9\n', k=rng.randrange(8)))
    if kind < 4:
        return rng.choice([1, -2.5, None, True, [], {}])
    if kind < 6:
        return [document(rng, depth - 1) for _ in range(rng.randrange(5))]
    keys = ("".join(rng.choices('[]{},:"\\ab', k=rng.randrange(5))) for _ in range(rng.randrange(4)))
    return {key: document(rng, depth - 1) for key in keys}


class ExactTest(unittest.TestCase):
    def test_both_bounds_are_exact_wherever_the_text_is_cut(self) -> None:
        rng = random.Random(4)
        for _ in range(3000):
            value = {"a": document(rng, rng.randrange(8))}
            separators = rng.choice([(",", ":"), (", ", ": "), (" ,\n", "\t: ")])
            indent = rng.choice([None, None, 1])
            data = json.dumps(value, ensure_ascii=rng.random() < 0.5, separators=separators, indent=indent).encode()
            values, depth = values_in(value), depth_of(value)
            size = rng.choice([1, 2, 3, 5, 8, 1 << 16])
            with mock.patch.object(jsonbounds, "SLICE_BYTES", size), self.subTest(size=size, data=data):
                self.assertIsNone(passed(data, values, depth))
                self.assertIsNone(jsonbounds._look(data, values, depth))
                self.assertEqual(passed(data, values - 1, depth), "values")
                self.assertEqual(passed(data, values, depth - 1), "depth")

    def test_nothing_in_a_string_counts(self) -> None:
        for text in ("[]{},:" * 50_000, ",", '"' * 50_000, "\\" * 50_001, '\\"[,' * 50_000, '",[' * 50_000):
            data = json.dumps({"a": text, "b": [1, text, {text: text}]}).encode()
            self.assertIsNone(passed(data, 10, 3))
            self.assertEqual(passed(data, 9, 3), "values")
            self.assertEqual(passed(data, 10, 2), "depth")

    def test_empty_lists_and_objects_are_one_value(self) -> None:
        for data in (b"[[],{},[ ],{ \n}]", b"[[ \t\r\n],{},[],{}]"):
            with mock.patch.object(jsonbounds, "SLICE_BYTES", 2):
                self.assertEqual((passed(data, 5, 2), passed(data, 4, 2)), (None, "values"))

    def test_what_is_no_json_is_looked_at_too(self) -> None:
        rng = random.Random(6)
        for _ in range(2000):
            data = bytes(rng.choices(b'[]{},:"\\1 \xff', k=rng.randrange(60)))
            with mock.patch.object(jsonbounds, "SLICE_BYTES", rng.choice([1, 3, 1 << 16])):
                self.assertIn(passed(data, rng.randrange(30), rng.randrange(9)), (None, "values", "depth"))


class CostTest(unittest.TestCase):
    def assert_small(self, data: bytes, expected: Any) -> None:
        """The bound is found with little memory beside the text."""
        try:
            import tracemalloc
        except ImportError:
            self.skipTest("this interpreter does not trace memory")
        tracemalloc.start()
        try:
            self.assertEqual(passed(data, 1_000_000, 128), expected)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        self.assertLess(peak, 8 << 20)

    def test_it_takes_little_memory(self) -> None:
        size = 8 << 20
        self.assert_small(b'{"a":[' + b"[]," * (size // 3) + b"1]}", "values")
        self.assert_small(b'{"a":[' + b'"",' * (size // 3) + b"1]}", "values")
        self.assert_small(b'{"a":"' + b"," * size + b'"}', None)
        self.assert_small(b'{"a":"' + b'\\",' * (size // 3) + b'"}', None)
        self.assert_small(b"\\" * size, None)

    def test_as_many_as_may_be_are_parsed(self) -> None:
        request = parse_json(b'{"a":[' + b"[]," * 996 + b"1]}", 1000)
        self.assertEqual(len(request["a"]), 997)
        with self.assertRaises(RequestRefused) as caught:
            parse_json(b'{"a":[' + b"[]," * 997 + b"1]}", 1000)
        self.assertEqual(caught.exception.code, "invalid_json")
        self.assertIn("1000", caught.exception.message)

    def test_what_takes_long_is_told_by_its_marks(self) -> None:
        self.assertTrue(takes_long(b"[" + b"1," * 11 + b"1]", 10))
        self.assertTrue(takes_long(b"[{}" * 6, 10))
        self.assertFalse(takes_long(b"a" * 1000 + b"," * 10, 10))


if __name__ == "__main__":
    unittest.main()
