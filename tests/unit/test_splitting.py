"""One answer split among those who shared the call: nobody gets another's part, nor another number than was sent."""

from __future__ import annotations

import json
import random
import struct
import unittest
from base64 import b64encode
from typing import Any

from gateway.reuse.splitting import Parts, WrongCount, choices_of, embeddings_body, embeddings_of, shares, usages
from gateway.upstream.answers import Usage


def choice(index: object, text: object = "a") -> dict[str, Any]:
    return {"index": index, "text": text, "finish_reason": "stop"}


def item(vector: str, *, index: Any = None, **fields: Any) -> str:
    """One input's part of an answer, whose embedding stands there as it is given."""
    members = {"object": "embedding", **fields}
    if index is not None:
        members["index"] = index
    return json.dumps(members)[:-1] + f', "embedding" :{vector}' + "}"


def answer(*items: str, more: str = "") -> bytes:
    return (
        '{"object":"list","data":[' + ", ".join(items) + '],"model":"e","usage":{"prompt_tokens":3}' + more + "}"
    ).encode()


class ChoicesTest(unittest.TestCase):
    def assert_wrong(self, choices: object, count: int) -> None:
        with self.assertRaises(WrongCount, msg=repr(choices)):
            choices_of({"choices": choices}, count)

    def test_by_index_in_whatever_order_they_come(self) -> None:
        for seed in range(50):
            chance = random.Random(seed)
            count = chance.randrange(1, 12)
            choices = [choice(index, f"text {index}") for index in range(count)]
            mixed = chance.sample(choices, count)
            self.assertEqual(choices_of({"choices": mixed}, count), choices)

    def test_an_empty_text_is_one(self) -> None:
        self.assertEqual(choices_of({"choices": [choice(0, ""), choice(1, "")]}, 2)[1]["text"], "")

    def test_the_only_one_needs_no_index(self) -> None:
        self.assertEqual(choices_of({"choices": [{"text": "a"}]}, 1), [{"text": "a"}])

    def test_of_several_each_needs_one(self) -> None:
        self.assert_wrong([{"text": "a"}, {"text": "b"}], 2)
        self.assert_wrong([choice(0), {"text": "b"}], 2)

    def test_too_few_or_too_many(self) -> None:
        choices = [choice(index) for index in range(3)]
        self.assert_wrong(choices, 2)
        self.assert_wrong(choices, 4)
        self.assert_wrong([], 1)
        self.assert_wrong([choice(0)], 0)
        self.assert_wrong([choice(0), choice(1)], 1)

    def test_twice_the_same_index(self) -> None:
        self.assert_wrong([choice(0), choice(0)], 2)
        self.assert_wrong([choice(1), choice(2), choice(1)], 3)

    def test_an_index_out_of_range_or_none_at_all(self) -> None:
        for index in (2, -1, 10**30, True, False, "1", 1.0, None, [1]):
            self.assert_wrong([choice(0), choice(index)], 2)
        self.assert_wrong([choice(1)], 1)
        self.assert_wrong([choice(None)], 1)

    def test_what_has_no_text(self) -> None:
        for text in (None, 5, ["a"], {"text": "a"}):
            self.assert_wrong([choice(0), choice(1, text)], 2)
        self.assert_wrong([{"index": 0, "message": {"content": "a"}}], 1)

    def test_what_is_no_list_of_choices(self) -> None:
        cases: tuple[object, ...] = (None, {}, {"0": choice(0)}, "a", 1, [None], ["a"], [[]], [1])
        for choices in cases:
            self.assert_wrong(choices, 1)
        with self.assertRaises(WrongCount):
            choices_of({}, 1)


class EmbeddingsTest(unittest.TestCase):
    def assert_wrong(self, body: bytes, count: int) -> None:
        with self.assertRaises(WrongCount, msg=repr(body)):
            embeddings_of(body, count)

    def test_each_is_what_the_engine_has_sent_byte_for_byte(self) -> None:
        vectors = [
            "[0.1,0.2]",
            "[ 0.10 ,\n\t-2.0E-08, 1e+3 ]",
            "[-0.0,0,1.0000000000000000000001,123456789012345678901234567890]",
            "[0.30000000000000004,5e-324,-1.7976931348623157e308]",
            "[]",
            "[null,1]",
        ]
        body = answer(*[item(vector, index=index) for index, vector in enumerate(vectors)])
        self.assertEqual([vector.decode() for vector in embeddings_of(body, len(vectors)).vectors], vectors)
        self.assertEqual(embeddings_of(bytearray(body), len(vectors)), embeddings_of(body, len(vectors)))

    def test_odd_spacing_and_order_of_members(self) -> None:
        body = b"""
            { "model" : "e" , "usage" : { "prompt_tokens" : 3 } , "data" :
                [ { "embedding"
                    :
                    [ 1 ,
                      2 ] , "index" : 1 } ,
                  {"index":0,"embedding":[3],"object":"embedding"} ] , "object":"list"}\r\n"""
        parts = embeddings_of(body, 2)
        self.assertEqual(parts.common, {"model": "e", "object": "list"})
        self.assertEqual(parts.vectors[0], b"[3]")
        self.assertEqual(json.loads(parts.vectors[1]), [1, 2])

    def test_by_index_or_else_as_they_stand(self) -> None:
        mixed = answer(item("[2]", index=2), item("[0]", index=0), item("[1]", index=1))
        self.assertEqual(embeddings_of(mixed, 3).vectors, [b"[0]", b"[1]", b"[2]"])
        plain = answer(item("[0]"), item("[1]"), item("[2]"))
        self.assertEqual(embeddings_of(plain, 3).vectors, [b"[0]", b"[1]", b"[2]"])

    def test_base64(self) -> None:
        texts = [b64encode(struct.pack("<3f", *vector)).decode() for vector in ((0.1, 0.2, -3), (1e30, -1e-30, 0))]
        texts += ["", "_-8="]
        body = answer(*[item(f'"{text}"', index=index) for index, text in enumerate(texts)])
        self.assertEqual(
            [vector.decode() for vector in embeddings_of(body, 4).vectors], [f'"{text}"' for text in texts]
        )

    def test_base64_with_its_slashes_escaped_is_split_rightly_or_not_at_all(self) -> None:
        body = answer(item(r'"ab\/c"', index=0), item('"abcd"', index=1))
        try:
            vectors = embeddings_of(body, 2).vectors
        except WrongCount:
            return
        self.assertEqual([json.loads(vector) for vector in vectors], ["ab/c", "abcd"])

    def test_too_few_or_too_many(self) -> None:
        body = answer(item("[0]", index=0), item("[1]", index=1))
        self.assert_wrong(body, 1)
        self.assert_wrong(body, 3)
        self.assert_wrong(answer(), 1)

    def test_an_index_twice_or_out_of_range(self) -> None:
        for index in (0, 2, -1, True, "1", 1.0, 10**30, [1]):
            self.assert_wrong(answer(item("[0]", index=0), item("[1]", index=index)), 2)
        self.assert_wrong(answer(item("[0]"), item("[1]", index=0)), 2)

    def test_what_is_no_such_answer(self) -> None:
        for body in (
            b"",
            b"{",
            b"null",
            b"[]",
            b"{}",
            b'{"data":null}',
            b'{"data":{}}',
            b'{"data":[5]}',
            b'{"data":[null]}',
            b'{"data":["a"]}',
            b'{"data":[{}]}',
            b'{"data":[{"embedding":null}]}',
            b'{"data":[{"embedding":5}]}',
            b'{"data":[{"embedding":{"a":1}}]}',
            b'{"data":[{"embedding":[[1,2]]}]}',
            b'{"data":[{"embedding":["a"]}]}',
            b'{"data":[{"embedding":"not base 64"}]}',
            b'{"embedding":[1]}',
            b'\xff{"data":[{"embedding":[1]}]}',
            b'{"data":[{"embedding":[1]}]',
            b"[" * 100_000,
        ):
            self.assert_wrong(body, 1)

    def test_the_word_in_a_text_is_not_taken_for_one(self) -> None:
        for text in (
            '"embedding":[9]',
            'x "embedding" : [9, 8] y',
            '\\"embedding":[9]',
            "embedding",
            '"embedding":"QQ=="',
        ):
            note = f',"note":{json.dumps(text)},{json.dumps(text)}:1'
            parts = embeddings_of(answer(item("[1]", index=0), item("[2]", index=1), more=note), 2)
            self.assertEqual(parts.vectors, [b"[1]", b"[2]"], text)
            self.assertEqual((parts.common["note"], parts.common[text]), (text, 1))

    def test_one_that_stands_elsewhere_is_not_taken_for_anybodys(self) -> None:
        self.assert_wrong(answer(item("[1]", index=0), more=',"extra":{"embedding":[9]}'), 1)
        self.assert_wrong(answer(item("[1]", index=0), item("[[2]]", index=1), more=',"extra":{"embedding":[[9]]}'), 2)

    def test_one_is_not_taken_for_that_of_an_item_that_has_none(self) -> None:
        for body in (
            b'{"data":[{"index":0,"embedding":null}],"embedding":[9]}',
            b'{"data":[{"index":0,"sparse":{"embedding":[9]}}]}',
            b'{"extra":{"embedding":[9]},"data":[{"index":0}]}',
        ):
            self.assert_wrong(body, 1)

    def test_what_else_is_said_of_one_is_not_lost(self) -> None:
        self.assert_wrong(answer(item("[1]", index=0, tokens=3)), 1)
        self.assert_wrong(answer(item("[1]", index=0, sparse={"a": [1]})), 1)

    def test_what_else_is_said_of_one_that_leaves_something_out_is_not_lost(self) -> None:
        self.assert_wrong(b'{"data":[{"index":0,"embedding":[1],"truncated":true}]}', 1)


class EmbeddingsBodyTest(unittest.TestCase):
    def part(self, parts: Parts, first: int, count: int) -> dict[str, Any]:
        body = embeddings_body(parts, first, count, "r-7", Usage(5, 0, False))
        found: dict[str, Any] = json.loads(body)
        return found

    def test_everybody_gets_their_own_numbered_from_0(self) -> None:
        parts = embeddings_of(answer(*[item(f"[{index}]", index=index) for index in range(5)]), 5)
        for first, count in ((0, 1), (0, 5), (1, 3), (4, 1)):
            found = self.part(parts, first, count)
            expected = [{"object": "embedding", "index": i, "embedding": [first + i]} for i in range(count)]
            self.assertEqual(found["data"], expected)
            self.assertEqual((found["id"], found["object"], found["model"]), ("r-7", "list", "e"))
            self.assertEqual(found["usage"], {"prompt_tokens": 5, "total_tokens": 5})

    def test_with_what_the_engine_says_of_all_but_its_id(self) -> None:
        parts = embeddings_of(answer(item("[1]"), more=',"id":"emb-1","created":5,"x":"é"'), 1)
        found = self.part(parts, 0, 1)
        self.assertEqual((found["id"], found["created"], found["x"]), ("r-7", 5, "é"))

    def test_random_answers_byte_for_byte(self) -> None:
        for seed in range(200):
            chance = random.Random(seed)
            count = chance.randrange(1, 9)
            vectors = [self.vector(chance) for _ in range(count)]
            order = chance.sample(range(count), count)
            body = answer(*[item(vectors[index], index=index) for index in order])
            parts = embeddings_of(body, count)
            self.assertEqual([vector.decode() for vector in parts.vectors], vectors)
            first = chance.randrange(count)
            size = chance.randrange(1, count - first + 1)
            found = embeddings_body(parts, first, size, "r", Usage(1, 0, False))
            for vector in vectors[first : first + size]:
                self.assertIn(b'"embedding":' + vector.encode(), found)
            own = [each["embedding"] for each in json.loads(found)["data"]]
            self.assertEqual(own, [json.loads(vector) for vector in vectors[first : first + size]])

    def vector(self, chance: random.Random) -> str:
        space = chance.choice(("", " ", "\n "))
        if chance.random() < 0.3:
            return '"' + b64encode(chance.randbytes(chance.randrange(40))).decode() + '"'
        numbers = [repr(chance.gauss(0, 10 ** chance.randrange(-9, 9))) for _ in range(chance.randrange(1, 9))]
        return "[" + ("," + space).join(numbers) + space + "]"


class SharesTest(unittest.TestCase):
    def test_they_sum_to_the_whole_and_none_is_off_by_one(self) -> None:
        for seed in range(2000):
            chance = random.Random(seed)
            total = chance.choice((0, 1, 7, chance.randrange(1000), chance.randrange(10**12), 10**25 + 1))
            weights = [chance.choice((0, 1, 3, chance.randrange(10**6))) for _ in range(chance.randrange(1, 40))]
            parts = shares(total, weights)
            self.assertEqual(sum(parts), total, seed)
            self.assertEqual(len(parts), len(weights))
            whole = sum(weights)
            for part, weight in zip(parts, weights):
                if whole:
                    self.assertLess(abs(part * whole - total * weight), whole, (total, weights))
                else:
                    self.assertIn(part - total // len(weights), (0, 1))

    def test_what_is_left_over_goes_to_the_largest_remainders_and_then_to_the_first(self) -> None:
        self.assertEqual(shares(10, [1, 1, 1]), [4, 3, 3])
        self.assertEqual(shares(10, [6, 6, 5]), [4, 3, 3])
        self.assertEqual(shares(100, [5, 3, 1]), [56, 33, 11])
        self.assertEqual(shares(1, [1, 2]), [0, 1])
        self.assertEqual(shares(5, [0, 0]), [3, 2])
        self.assertEqual(shares(5, [0, 1]), [0, 5])
        self.assertEqual(shares(7, [3]), [7])
        self.assertEqual(shares(0, []), [])

    def test_who_weighs_more_never_gets_less(self) -> None:
        for seed in range(300):
            chance = random.Random(seed)
            weights: list[int] = [chance.randrange(50) for _ in range(chance.randrange(1, 12))]
            pairs = sorted(zip(weights, shares(chance.randrange(500), weights)))
            for (less, part), (more, other) in zip(pairs, pairs[1:]):
                if more > less and any(weights):
                    self.assertGreaterEqual(other, part, (seed, weights))


class UsagesTest(unittest.TestCase):
    def test_prompt_by_what_was_asked_completion_by_what_was_got(self) -> None:
        found = usages(Usage(10, 6, False), [1, 4], [2, 1])
        self.assertEqual(found, [Usage(2, 4, False), Usage(8, 2, False)])

    def test_they_agree_to_the_token_and_say_whether_they_are_estimates(self) -> None:
        for seed in range(300):
            chance = random.Random(seed)
            count = chance.randrange(1, 33)
            whole = Usage(chance.randrange(5000), chance.randrange(5000), bool(seed % 2), "odd" if seed % 3 else "")
            weights: list[int] = [chance.randrange(300) for _ in range(count)]
            found = usages(whole, weights, [0] * count if seed % 5 == 0 else weights[::-1])
            self.assertEqual(len(found), count)
            self.assertEqual(sum(each.prompt_tokens for each in found), whole.prompt_tokens)
            self.assertEqual(sum(each.completion_tokens for each in found), whole.completion_tokens)
            self.assertEqual({(each.estimated, each.rejected) for each in found}, {(whole.estimated, whole.rejected)})


if __name__ == "__main__":
    unittest.main()
