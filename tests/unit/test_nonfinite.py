"""Numbers that JSON has no words for become null, wherever a text is cut into slices; nothing else changes."""

from __future__ import annotations

import json
import random
import re
import unittest
from typing import Any
from unittest import mock

from gateway.upstream import nonfinite
from gateway.upstream.nonfinite import has_nonfinite, pieces_with_nulls, with_nulls

NOT_IN_STRINGS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|-?\b(?:NaN|Infinity)\b', re.S)
TEXTS = ("NaN", "-Infinity", '"NaN"', "\\", '\\"', "\\\\NaN", "é Infinity", "", "a" * 30, 'NaN"', "[NaN]", "\n")
NUMBERS = (float("nan"), float("inf"), float("-inf"), 1e300, -1.5, 0, None, True)


def plainly(text: bytes) -> bytes:
    """The same as `with_nulls`, string by string."""
    return NOT_IN_STRINGS.sub(lambda found: found[0] if found[0][:1] == b'"' else b"null", text)


def value(rng: random.Random, depth: int = 0) -> Any:
    """Something that Python's json writes."""
    kind = rng.randrange(4 if depth < 4 else 2)
    if kind == 0:
        return "".join(rng.choices(TEXTS, k=rng.randrange(3)))
    if kind == 1:
        return rng.choice(NUMBERS)
    if kind == 2:
        return [value(rng, depth + 1) for _ in range(rng.randrange(5))]
    return {value(rng, 9) if rng.random() < 0.2 else "k": value(rng, depth + 1) for _ in range(rng.randrange(4))}


class NonfiniteTest(unittest.TestCase):
    def test_numbers_become_null_and_strings_stay(self) -> None:
        text = (
            b'{"a": NaN, "NaN": [Infinity,-Infinity , "-Infinity", "\\\\", NaN, "\\"NaN"], "b":1e999,"c\\\\\\"": NaN}'
        )
        expected = b'{"a": null, "NaN": [null,null , "-Infinity", "\\\\", null, "\\"NaN"], "b":1e999,"c\\\\\\"": null}'
        for kind in (bytes, bytearray):
            self.assertTrue(has_nonfinite(kind(text)))
            self.assertEqual(with_nulls(kind(text)), expected)
        self.assertEqual(with_nulls(b"NaN"), b"null")
        self.assertEqual(with_nulls(b""), b"")
        self.assertFalse(has_nonfinite(b'{"a": 1e999, "b": "nan inf"}'))

    def test_the_same_however_a_text_is_sliced(self) -> None:
        rng = random.Random(5)
        for round_ in range(400):
            text = json.dumps(
                [value(rng) for _ in range(8)], ensure_ascii=rng.random() < 0.5, indent=rng.choice((None, 1))
            ).encode()
            expected = plainly(text)
            for size in (12, 13, 16, 31, 64, 65_536):
                with mock.patch.object(nonfinite, "SLICE_BYTES", size), self.subTest(round=round_, size=size):
                    self.assertEqual(with_nulls(text), expected)
                    self.assertEqual(has_nonfinite(text), text.count(b"NaN") + text.count(b"Infinity") > 0)
            json.loads(expected, parse_constant=self.fail)

    def test_what_is_no_json_does_not_become_any(self) -> None:
        for text in (
            b"1NaN",
            b"NaNNaN",
            b"[NaN",
            b"{NaN: 1}",
            b"[aNaN]",
            b'["\x01\x01\\\\", NaN\x02]',
            b'"\\',
            b"[\\\\ NaN]",
        ):
            changed = with_nulls(text)
            with self.subTest(text=text), self.assertRaises(ValueError):
                json.loads(changed)
        marked = b'{"\x01\x01": NaN}'
        self.assertEqual(with_nulls(marked), b'{"\x01\x01": null}')

    def test_nothing_is_held_but_a_slice(self) -> None:
        text = b"[" + b'"NaN",NaN,' * 50_000 + b"1]"
        pieces = list(pieces_with_nulls(text))
        self.assertEqual(b"".join(pieces), plainly(text))
        self.assertLess(max(map(len, pieces)), 2 * nonfinite.SLICE_BYTES)


if __name__ == "__main__":
    unittest.main()
