"""A large JSON text is skimmed: accepted when it is JSON and only then, wherever it is cut, and without objects."""

from __future__ import annotations

import importlib.util
import json
import random
import unittest
from typing import Any, Optional
from unittest import mock

from gateway.upstream import skim
from gateway.upstream.skim import NotJson, Outline, Span, outline

PIECES = (
    *("{", "}", "[", "]", ",", ":", '"', '"a"', '"a":', '"b":', "0", "1", "-1", "01", "1.5", "-0.0", "1e5", "1E+05"),
    *("1e", "-", ".5", "true", "false", "null", "nul", "NaN", "Infinity", " ", "\n", "\t", "\\", '\\"', '"\\""'),
    *('"\\\\"', '"\\u00e9"', '"\\u00"', '"\\x"', '"é"', '"\x01"', "{}", "[]", "[0]", '{"c":0}', "[1,2]", "x", "\x00"),
)


def random_value(rng: random.Random, depth: int) -> Any:
    kind = rng.randrange(9 if depth else 6)
    if kind == 0:
        return rng.choice((True, False, None))
    if kind == 1:
        return rng.randrange(-(10 ** rng.randrange(1, 20)), 10 ** rng.randrange(1, 20))
    if kind == 2:
        return rng.uniform(-1, 1) * 10 ** rng.randrange(-30, 30)
    if kind <= 5:
        return "".join(rng.choice('ab"\\/\n\t{}[],:é€😀\u0007 0-') for _ in range(rng.randrange(12)))
    if kind <= 7:
        return [random_value(rng, depth - 1) for _ in range(rng.randrange(5))]
    return {f"k{i}{rng.choice(',]}{')}": random_value(rng, depth - 1) for i in range(rng.randrange(5))}


def mutated(rng: random.Random, text: str) -> str:
    at = rng.randrange(len(text) + 1)
    return text[:at] + rng.choice(("", rng.choice(PIECES))) + text[at + rng.randrange(3) :]


def is_object(text: bytes) -> bool:
    """Whether the standard library reads an object there, by the rules of RFC 8259."""

    def refuse(name: str) -> None:
        raise ValueError(name)

    try:
        return isinstance(json.loads(text.decode(), parse_constant=refuse), dict)
    except ValueError:
        return False


def skimmed(text: bytes) -> Optional[Outline]:
    try:
        return outline(text)
    except NotJson:
        return None


class SkimTest(unittest.TestCase):
    def small_slices(self, slice_bytes: int = 7) -> None:
        """Cut texts everywhere, and read nothing of them: all is passed over."""
        for name, value in (("SLICE_BYTES", slice_bytes), ("READ_TOTAL_BYTES", 0)):
            patch = mock.patch.object(skim, name, value)
            patch.start()
            self.addCleanup(patch.stop)

    def test_what_the_standard_library_reads_is_accepted_wherever_it_is_cut(self) -> None:
        rng = random.Random(8)
        self.small_slices()
        for _ in range(400):
            value = {"v": [random_value(rng, 4)], "choices": [{"message": random_value(rng, 3)}]}
            indent = rng.choice((None, None, 1))
            text = json.dumps(value, ensure_ascii=rng.random() < 0.5, indent=indent).encode()
            self.assertIsNotNone(skimmed(text), text)

    def test_what_the_standard_library_refuses_is_refused_wherever_it_is_cut(self) -> None:
        rng = random.Random(9)
        self.small_slices()
        refused = 0
        for _ in range(2000):
            text = json.dumps({"v": [random_value(rng, 3), 0]}, ensure_ascii=False)
            for _ in range(rng.randrange(1, 3)):
                text = mutated(rng, text)
            data = text.encode()
            good = is_object(data)
            refused += not good
            found = skimmed(data)
            if good and found is None:
                pairs: list[list[tuple[str, Any]]] = []
                json.loads(text, object_pairs_hook=pairs.append)
                if any(len({key for key, _ in found}) < len(found) for found in pairs):
                    continue  # a key stands twice: refused where it is looked for
            self.assertEqual(found is not None, good, text)
        self.assertGreater(refused, 500)

    def test_any_row_of_tokens_is_judged_as_by_the_standard_library(self) -> None:
        rng = random.Random(10)
        self.small_slices()
        for _ in range(10_000):
            data = ('{"v":[' + "".join(rng.choice(PIECES) for _ in range(rng.randrange(6))) + "]}").encode()
            self.assertEqual(skimmed(data) is not None, is_object(data), data)

    def test_small_values_near_the_top_are_read_and_others_stay_where_they_are(self) -> None:
        long = "x" * 100_000
        usage = {"prompt_tokens": 3, "completion_tokens": 4}
        choice = {"index": 0, "message": {"role": "assistant", "content": long}, "finish_reason": "stop"}
        text = json.dumps({"id": "é", "choices": [choice], "data": [[0] * 50_000], "usage": usage}).encode()
        found = outline(text)
        self.assertEqual((found.members["id"], found.members["usage"]), ("é", usage))
        seen = found.members["choices"][0]
        content = seen["message"]["content"]
        self.assertEqual((seen["index"], seen["finish_reason"]), (0, "stop"))
        self.assertEqual((content.kind, text[content.start : content.end]), ('"', f'"{long}"'.encode()))
        data = found.members["data"]
        self.assertIsInstance(data, Span)
        self.assertEqual(json.loads(text[data.start : data.end]), [[0] * 50_000])
        for name, (start, end) in found.places.items():
            self.assertEqual(json.loads(text[start:end]), json.loads(text)[name])

    def test_what_has_too_many_members_is_passed_over(self) -> None:
        text = b'{"choices":[' + b"{}," * 50_000 + b'{}],"id":1}'
        found = outline(text)
        self.assertEqual((found.members["choices"].kind, found.members["id"]), ("[", 1))
        self.assertIsNone(skimmed(b"{" + b",".join(b'"%d":0' % i for i in range(5_000)) + b"}"))

    def test_lists_with_too_many_members_in_each_other_are_gone_through_once(self) -> None:
        body = b"[0" + b",0" * 500_000 + b"]"
        for _ in range(skim.LOOK_MAX - 2):
            body = b"[" + body + b",0" * (skim.MEMBERS_MAX + 1) + b"]"
        text = b'{"choices":' + body + b',"id":1}'
        seen = 0
        piece = skim._Skim._piece

        def counted(self: skim._Skim, position: int, size: int) -> bytes:
            nonlocal seen
            found = piece(self, position, size)
            seen += len(found)
            return found

        with mock.patch.object(skim._Skim, "_piece", counted):
            found = outline(text)
        self.assertEqual((found.members["choices"].kind, found.members["id"]), ("[", 1))
        start, end = found.places["choices"]
        self.assertEqual(text[start:end], body)
        self.assertLess(seen, len(text) + 8 * skim.SLICE_BYTES)

    def test_what_is_given_up_on_half_way_is_judged_as_by_the_standard_library(self) -> None:
        rng = random.Random(11)
        self.small_slices()
        with mock.patch.object(skim, "MEMBERS_MAX", 2):
            for _ in range(4000):
                delta = {"message": random_value(rng, 3)}
                value = {"choices": [random_value(rng, 4) for _ in range(4)], "delta": delta}
                text = json.dumps({"choices": value, "message": [value, 0, [value]]}, ensure_ascii=False)
                if rng.random() < 0.7:
                    text = mutated(rng, text)
                data = text.encode()
                good = is_object(data)
                if skimmed(data) is not None:
                    self.assertTrue(good, text)
                elif good:
                    pairs: list[list[tuple[str, Any]]] = []
                    json.loads(text, object_pairs_hook=pairs.append)
                    self.assertTrue(any(len(dict(found)) < len(found) for found in pairs), text)

    def test_depth_is_bounded(self) -> None:
        for depth, good in ((skim.DEPTH_MAX - 2, True), (skim.DEPTH_MAX + 9, False), (200_000, False)):
            with self.subTest(depth=depth):
                text = b'{"v":' + b"[" * depth + b"]" * depth + b"}"
                self.assertEqual(skimmed(text) is not None, good)
                text = b'{"choices":[' + b'{"message":' * depth + b"0" + b"}" * depth + b"]}"
                self.assertEqual(skimmed(text) is not None, good)

    @unittest.skipUnless(importlib.util.find_spec("_tracemalloc"), "memory is not traced here")
    def test_many_small_values_take_no_memory(self) -> None:
        import tracemalloc

        for item in (b"{}", b"[]", b"0", b'""', b'{"a":[0]}', b"1.5"):
            with self.subTest(item=item):
                text = b'{"choices":[' + (item + b",") * (2_000_000 // len(item)) + item + b"]}"
                tracemalloc.start()
                try:
                    found = outline(text)
                    peak = tracemalloc.get_traced_memory()[1]
                finally:
                    tracemalloc.stop()
                self.assertIsInstance(found.members["choices"], Span)
                self.assertLess(peak, 8_000_000)

    def test_a_cut_text_is_refused(self) -> None:
        text = json.dumps({"choices": [{"message": {"content": 'a\\"bé' * 9}}], "usage": {"x": [1, {}]}}).encode()
        self.small_slices()
        for end in range(len(text)):
            self.assertIsNone(skimmed(text[:end]), text[:end])
        self.assertIsNone(skimmed(text + b"x"))
        self.assertIsNone(skimmed(b"\xff" + text))
        self.assertIsNone(skimmed(text.replace(b"usage", b"us\xffge")))
        self.assertIsNotNone(skimmed(b" \n" + text + b"\r\n\t "))


if __name__ == "__main__":
    unittest.main()
