"""What `decode_with` makes of a text is what the decoder itself makes of it, value or error."""

from __future__ import annotations

import json
import json.scanner
import time
import unittest
from typing import Any, Callable, Optional
from unittest import mock

from gateway import jsontext
from gateway.upstream.estimates import weigh

TEXTS = [
    "{}",
    "[]",
    '""',
    "0",
    "-0.0",
    "1.50",
    "1e400",
    "12345678901234567890",
    "true",
    "null",
    "NaN",
    "-Infinity",
    '{"a": 1, "b": [1, 2.5, {"c": null}], "a": 2}',
    '"\\u00e9\\ud83d\\ude00\\n é 😀"',
    "[" * 40 + "]" * 40,
    " {}",
    "{} ",
    " \t\r\n[1]\n\r\t ",
    "[1]\n",
    "\n1",
    "1 ",
    "",
    " ",
    "\ufeff{}",
    "\u00a0{}",
    "{}\x00",
    "\x0b{}",
    "{}{}",
    "{} {}",
    "[1]]",
    "1 2",
    "12a",
    '"a" b',
    "nul",
    "nullx",
    "None",
    "{",
    "[1,",
    "[1,]",
    '{"a"}',
    '{"a":}',
    '{"a":1,}',
    "{'a': 1}",
    '"abc',
    '"a\nb"',
    '"\\x"',
    '"\\ud8"',
    "01",
    "1.",
    ".5",
    "+1",
    "-",
    "--1",
    "}",
    ",",
    "[refused]",
    "1111",
    '{"refused": 1}',
]


def refusing(value: Any) -> Any:
    """A hook that refuses some of what it gets."""
    if value in ("1111", "NaN", [("refused", 1)]):
        raise ValueError(f"{value} is refused")
    return ("hooked", value)


DECODERS = {
    "plain": json.JSONDecoder(),
    "lenient": json.JSONDecoder(strict=False),
    "pairs": json.JSONDecoder(object_pairs_hook=refusing),
    "objects": json.JSONDecoder(object_hook=lambda value: sorted(value)),
    "numbers": json.JSONDecoder(parse_int=refusing, parse_float=refusing, parse_constant=refusing),
}


def result(decode: Callable[[str], Any], text: str) -> tuple[str, str, Optional[int]]:
    """The value (as text: NaN is not equal to itself), or the error with its message and place."""
    try:
        return "value", repr(decode(text)), None
    except json.JSONDecodeError as error:
        return "JSONDecodeError", str(error), error.pos
    except ValueError as error:
        return "ValueError", str(error), None


class DecodeTest(unittest.TestCase):
    def assert_same(self) -> None:
        seen = set()
        for name, decoder in DECODERS.items():
            decode = jsontext.decode_with(decoder)
            for text in TEXTS:
                with self.subTest(decoder=name, text=text):
                    expected = result(decoder.decode, text)
                    self.assertEqual(result(decode, text), expected)
                    seen.add(expected[0])
        self.assertEqual(seen, {"value", "JSONDecodeError", "ValueError"})

    def test_every_text_gives_the_same_value_or_the_same_error(self) -> None:
        self.assert_same()

    def test_so_it_is_on_an_interpreter_without_the_scanner_in_c(self) -> None:
        with mock.patch.object(jsontext, "c_make_scanner", None):
            self.assert_same()

    def test_what_is_no_text_is_refused_as_before(self) -> None:
        for value in (b"{}", None, 1):
            decode: Callable[[Any], Any] = jsontext.decode_with(DECODERS["plain"])
            with self.subTest(value=value), self.assertRaises(TypeError):
                decode(value)

    def test_a_text_nested_too_deeply_ends_in_a_recursion_error(self) -> None:
        for text in ("[" * 200_000, "[" * 200_000 + "]" * 200_000):
            with self.assertRaises(RecursionError):
                jsontext.decode_with(DECODERS["plain"])(text)

    def test_a_usual_text_is_read_in_one_call(self) -> None:
        if json.scanner.c_make_scanner is None:  # type: ignore[attr-defined]
            self.skipTest("its own decoder is used as it is")
        decoder = json.JSONDecoder()
        decode = jsontext.decode_with(decoder)
        with mock.patch.object(decoder, "decode", side_effect=AssertionError("the way around")):
            self.assertEqual(decode('{"a": [1]}'), {"a": [1]})


class Utf8Test(unittest.TestCase):
    def test_halves_of_pairs_are_kept_wherever_they_stand(self) -> None:
        for text in (
            "",
            "a",
            "\u00e9" * 100,
            "\ud800",
            "a" * 31 + "\ud800\udc00",
            "\U0001f600" * 40 + "\udc00",
            "\ud800" * 99,
        ):
            self.assertEqual(jsontext.utf8(text), text.encode("utf-8", "surrogatepass"))

    def test_many_of_them_take_no_longer_than_as_many_others(self) -> None:
        started_s = time.process_time()
        self.assertEqual(len(jsontext.utf8("\ud800" * 100_000)), 300_000)
        self.assertEqual(weigh("\ud800" * 100_000), 400_000)
        self.assertLess(time.process_time() - started_s, 5)  # PyPy's own way: a minute


if __name__ == "__main__":
    unittest.main()
