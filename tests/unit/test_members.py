"""Members taken out of a JSON object's text."""

from __future__ import annotations

import json
import random
import unittest
from typing import Any

from gateway.upstream.members import without_members

VALUES: tuple[Any, ...] = (
    0,
    -1,
    1.5,
    "",
    "x",
    'a"b\\',
    "é,:{}[]",
    None,
    True,
    [],
    [1, [{"a": -1}]],
    {},
    {"a": {"b": "}"}},
)
SPACES = ("", " ", "\n", "\t ", "\r\n  ")


class WithoutMembers(unittest.TestCase):
    def test_what_is_left_is_the_rest_as_it_was_written(self) -> None:
        for text, keys, left in (
            ('{"a":1,"b":2,"c":3}', ("b",), '{"a":1,"c":3}'),
            ('{"a":1,"b":2,"c":3}', ("a",), '{"b":2,"c":3}'),
            ('{"a":1,"b":2,"c":3}', ("c",), '{"a":1,"b":2}'),
            ('{"a":1,"b":2,"c":3}', ("b", "c"), '{"a":1}'),
            ('{"a":1,"b":2,"c":3}', ("a", "b"), '{"c":3}'),
            ('{"a":1,"b":2,"c":3}', ("a", "c"), '{"b":2}'),
            (' { "a" : 1.50 ,\n "b" : -1 ,\n "c" : "\\u00e9é" } ', ("b",), ' { "a" : 1.50 ,\n "c" : "\\u00e9é" } '),
            ('{"a":{"b":1},"\\u0062":-1}', ("b",), '{"a":{"b":1}}'),
            ('{ "a": 1 }', ("a",), "{  }"),
        ):
            with self.subTest(text=text, keys=keys):
                self.assertEqual(without_members(text.encode(), keys).decode(), left)

    def test_it_is_the_object_without_them_whatever_that_holds(self) -> None:
        drawn = random.Random(1)
        for case in range(2_000):
            names = drawn.sample("abcdefgh", drawn.randint(1, 8))
            value = {name: drawn.choice(VALUES) for name in names}
            gone = drawn.sample(names, drawn.randint(1, len(names)))
            parts = [
                "{0}{1}{0}:{2}{3}{0}".format(
                    drawn.choice(SPACES), json.dumps(name), drawn.choice(SPACES), json.dumps(of)
                )
                for name, of in value.items()
            ]
            text = "{" + ",".join(parts) + "}" + drawn.choice(SPACES)
            left = without_members(text.encode(), gone)
            wanted = {name: of for name, of in value.items() if name not in gone}
            self.assertEqual(list(json.loads(left).items()), list(wanted.items()), f"case {case}: {text}")


if __name__ == "__main__":
    unittest.main()
