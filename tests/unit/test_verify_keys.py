"""Keys of what programs return: equal where the values are, and no object of a program is asked for its own."""

from __future__ import annotations

import unittest
from typing import Any

from gateway.verify.harness.keys import KEY_CHARS, NOT, Opaque, comparable, error_key, is_error, key_of, matches


class EqualityTest(unittest.TestCase):
    def test_equal_values_have_one_key(self) -> None:
        for values in (
            [1, 1.0, True],
            [0, 0.0, -0.0, False, 1e-17],
            [0.1 + 0.2, 0.3, 0.30000000001],
            [3, 2.9999999999],
            [1234567, 1234566.9999999998],
            [10**20, 1e20],
            [float("nan"), float("inf") - float("inf")],
            [complex(2, 0), 2],
            [{1, 2}, frozenset({2, 1}), {2.0, True}],
            [{0, 8}, {8, 0}],  # whose order is the one of insertion
            [{"a": 1, "b": [2]}, {"b": [2.0], "a": True}],
            [b"x", bytearray(b"x")],
            [[1, (2, "x")], [1.0, (2, "x")]],
        ):
            self.assertEqual(len({key_of(value) for value in values}), 1, values)

    def test_different_values_have_different_keys(self) -> None:
        values: list[Any] = [
            *(None, 0, 1, "1", b"1", 1.5, [1], (1,), {1}, {1: 1}, [], (), {}, "", b"", "None", "[]"),
            *(10**30, 10**30 + 1, 2**5000, 2**5000 + 1, 1.00001, 1.23456e-9, -1.5, 1e300, float("inf"), -float("inf")),
            *(float("nan"), ["a", "b"], ["a,b"], ["a','b"], {"a": 1}, {"a"}, [[1], 2], [[1, 2]], complex(1, 1)),
        ]
        keys = [key_of(value) for value in values]
        self.assertEqual(len(set(keys) | {key_of(set())}), len(values) + 1, keys)

    def test_an_empty_set_is_not_an_empty_dict(self) -> None:
        self.assertNotEqual(key_of(set()), key_of({}))

    def test_floats_are_compared_to_six_digits(self) -> None:
        self.assertEqual(key_of(1.2345678e20), key_of(1.2345679e20))
        self.assertEqual(key_of(0.12345678), key_of(0.12345679))
        self.assertNotEqual(key_of(0.123456), key_of(0.123457))

    def test_a_float_that_is_whole_is_as_exact_as_an_int(self) -> None:
        self.assertNotEqual(key_of(1234567.0), key_of(1234568.0))
        self.assertEqual(key_of(1234567.0), key_of(1234567))


class BoundsTest(unittest.TestCase):
    def test_every_key_is_short_and_none_looks_like_an_exception(self) -> None:
        deep: list[Any] = []
        for _ in range(500):
            deep = [deep]
        wide: list[Any] = []
        for _ in range(60):
            wide = [wide, wide]
        for value in (
            "!",
            "x" * 5_000_000,
            list(range(60_000)),
            deep,
            wide,
            7**100_000,
            dict.fromkeys(range(999), "v" * 99),
        ):
            key = key_of(value)
            self.assertLessEqual(len(key), KEY_CHARS)
            self.assertFalse(is_error(key))

    def test_long_values_that_differ_at_the_end_have_different_keys(self) -> None:
        self.assertNotEqual(key_of("x" * 9_000_000 + "a"), key_of("x" * 9_000_000 + "b"))
        self.assertNotEqual(key_of([0] * 9_000 + [1]), key_of([0] * 9_000 + [2]))

    def test_a_value_that_contains_itself_has_a_key(self) -> None:
        loop: list[Any] = [1]
        loop.append(loop)
        self.assertNotEqual(key_of(loop), key_of([1]))

    def test_what_is_contained_twice_is_no_loop(self) -> None:
        part = [1]
        self.assertEqual(key_of([part, part]), key_of([[1], [1]]))


class ForeignTest(unittest.TestCase):
    def test_nothing_of_a_foreign_class_is_called(self) -> None:
        def fail(*_: object) -> Any:
            raise AssertionError("called")

        class Kind(type):
            __name__ = property(fail)  # type: ignore[assignment]
            __eq__ = fail
            __hash__ = type.__hash__
            __instancecheck__ = fail

        names = ("__eq__", "__repr__", "__str__", "__len__", "__iter__", "__getattribute__")
        members = dict.fromkeys(names, fail)
        foreign = Kind("Odd", (), {**members, "__class__": property(fail)})
        listlike = Kind("Listlike", (list,), {**members})
        self.assertEqual(key_of(foreign()), "oOdd")
        self.assertEqual(key_of([listlike()]), "o[oListlike]")

    def test_what_stands_for_a_foreign_object_has_the_key_of_its_type(self) -> None:
        class Point:
            pass

        self.assertEqual(key_of(Opaque("Point")), key_of(Point()))


class ErrorTest(unittest.TestCase):
    def test_all_exceptions_compare_as_one(self) -> None:
        self.assertEqual(comparable(error_key("ValueError")), comparable(error_key("timeout")))
        self.assertNotEqual(comparable(error_key("ValueError")), comparable(key_of("!")))

    def test_a_result_matches_what_an_example_gives(self) -> None:
        self.assertTrue(matches(key_of(2.0), key_of(2)))
        self.assertFalse(matches(key_of(2), key_of(3)))
        self.assertFalse(matches(error_key("x"), error_key("x")))

    def test_what_an_example_denies_is_matched_by_every_other_result(self) -> None:
        self.assertTrue(matches("5", NOT + "4"))
        for key in ("4", "(4)", "!ValueError"):
            self.assertFalse(matches(key, NOT + "4"), key)

    def test_a_single_value_in_parentheses_means_the_tuple_of_one(self) -> None:
        self.assertTrue(matches(key_of(("Venus",)), key_of("Venus")))
        self.assertFalse(matches(key_of("Venus"), key_of(("Venus",))))


if __name__ == "__main__":
    unittest.main()
