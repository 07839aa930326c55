"""The index of vectors: what it finds, with numpy and without; how often signatures miss; many threads at once."""

from __future__ import annotations

import importlib.util
import math
import random
import struct
import threading
import unittest
from collections.abc import Sequence
from typing import Optional

from gateway.reuse import planes, vectors
from gateway.reuse.vectors import VectorIndex, cosine_of, unit

WAYS = (False, True) if importlib.util.find_spec("numpy") else (False,)
D = 48


def gauss(chance: random.Random, dimension: int = D) -> list[float]:
    return [chance.gauss(0, 1) for _ in range(dimension)]


def floats(vector: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{len(vector) // 4}f", vector)


def cosine(one: bytes, other: bytes) -> float:
    return math.fsum(x * y for x, y in zip(floats(one), floats(other)))


def at_cosine(vector: bytes, towards: Sequence[float], wanted: float) -> bytes:
    """A vector whose cosine to `vector` is the one wanted."""
    own = floats(vector)
    along = math.fsum(x * y for x, y in zip(own, towards))
    across = [y - along * x for x, y in zip(own, towards)]
    length = math.sqrt(math.fsum(x * x for x in across))
    return unit([wanted * x + math.sqrt(1 - wanted * wanted) * y / length for x, y in zip(own, across)])


def number(i: int) -> bytes:
    return i.to_bytes(16, "big")


def by_looking_at_all(entries: dict[bytes, bytes], query: bytes, at_least: float) -> Optional[bytes]:
    best = max(entries, key=lambda key: cosine(entries[key], query), default=None)
    return best if best is not None and cosine(entries[best], query) >= at_least else None


class UnitVectorTest(unittest.TestCase):
    def test_has_length_1_and_the_direction(self) -> None:
        self.assertEqual(floats(unit([3, 4])), struct.unpack("<2f", struct.pack("<2f", 0.6, 0.8)))
        self.assertEqual(unit([3e300, 4e300]), unit([3, 4]))
        self.assertEqual(unit([3e-300, 4e-300]), unit([3, 4]))
        self.assertEqual(unit([5e-324]), struct.pack("<f", 1))

    def test_refuses_what_has_no_direction(self) -> None:
        for values in ([], [0.0, 0.0], [math.nan, 1.0], [1.0, math.nan], [math.inf, 1.0], [1.0, -math.inf], [10**400]):
            with self.assertRaises(ValueError, msg=values):
                unit(values)


class CosineTest(unittest.TestCase):
    def test_of_a_vector_and_itself_is_exactly_1(self) -> None:
        chance = random.Random(7)
        for dimension in (1, 2, 3, 384):
            vector = unit([chance.gauss(0, 1) for _ in range(dimension)])
            self.assertEqual(cosine_of(vector, vector), 1.0, dimension)

    def test_is_that_of_the_angle(self) -> None:
        for degrees in (0, 30, 90, 120, 180):
            angle = math.radians(degrees)
            cosine = cosine_of(unit([1.0, 0.0]), unit([math.cos(angle), math.sin(angle)]))
            assert cosine is not None
            self.assertAlmostEqual(cosine, math.cos(angle), places=6)

    def test_what_cannot_be_compared_has_none(self) -> None:
        whole = unit([3.0, 4.0])
        for other in (b"", whole[:4], whole[:-1], unit([1.0, 2.0, 3.0]), b"\0" * 8, struct.pack("<2f", math.nan, 1.0)):
            self.assertIsNone(cosine_of(whole, other), other)
            self.assertIsNone(cosine_of(other, whole), other)
        self.assertIsNone(cosine_of(b"", b""))


class IndexTest(unittest.TestCase):
    def test_finds_the_most_similar_within_the_group(self) -> None:
        chance = random.Random(1)
        for use_numpy in WAYS:
            index = VectorIndex(use_numpy=use_numpy)
            query = unit(gauss(chance))
            index.add(b"near", b"g", at_cosine(query, gauss(chance), 0.95))
            index.add(b"nearer", b"g", at_cosine(query, gauss(chance), 0.97))
            index.add(b"elsewhere", b"h", query)
            key, similarity = index.nearest(b"g", query, 0.9) or (b"", 0.0)
            self.assertEqual(key, b"nearer")
            self.assertAlmostEqual(similarity, 0.97, 5)
            self.assertIsNone(index.nearest(b"g", query, 0.971))
            self.assertIsNone(index.nearest(b"nobody's", query, 0.1))
            self.assertEqual(len(index), 3)

    def test_a_vector_is_found_by_itself_at_exactly_1(self) -> None:
        chance = random.Random(2)
        for use_numpy in WAYS:
            index = VectorIndex(use_numpy=use_numpy)
            entries = {number(i): unit(gauss(chance)) for i in range(200)}
            for key, vector in entries.items():
                index.add(key, b"g", vector)
            for key, vector in entries.items():
                self.assertEqual(index.nearest(b"g", vector, 1.0), (key, 1.0))
                self.assertIsNone(index.nearest(b"g", vector, 1.01))

    def test_nothing_is_found_at_0_and_below_or_at_no_number(self) -> None:
        for use_numpy in WAYS:
            index = VectorIndex(use_numpy=use_numpy)
            index.add(b"key", b"g", unit([1, 2]))
            for at_least in (0.0, -1.0, math.nan):
                self.assertIsNone(index.nearest(b"g", unit([1, 2]), at_least))
            self.assertIsNotNone(index.nearest(b"g", unit([1, 2]), 0.001))

    def test_another_dimension_never_matches(self) -> None:
        for use_numpy in WAYS:
            index = VectorIndex(use_numpy=use_numpy)
            index.add(b"two", b"g", unit([1, 0]))
            index.add(b"three", b"g", unit([1, 0, 0]))
            self.assertEqual(index.nearest(b"g", unit([1, 0]), 0.5), (b"two", 1.0))
            self.assertEqual(index.nearest(b"g", unit([1, 0, 0]), 0.5), (b"three", 1.0))
            self.assertIsNone(index.nearest(b"g", unit([1, 0, 0, 0]), 0.5))
            for broken in (b"", b"\0", unit([1, 0])[:-1], b"\0" * 8, struct.pack("<2f", math.nan, math.nan)):
                self.assertIsNone(index.nearest(b"g", broken, 0.5), broken)
            for i in range(2 * vectors.SIGNED_FROM):
                index.add(number(i), b"g", unit([1, i]))
            for broken in (struct.pack("<2f", math.nan, 1), struct.pack("<2f", math.inf, 0), b"\0" * 8):
                self.assertIsNone(index.nearest(b"g", broken, 0.5), broken)

    def test_what_has_not_length_1_is_left_out(self) -> None:
        for use_numpy in WAYS:
            index = VectorIndex(use_numpy=use_numpy)
            index.add(b"other", b"g", unit([1, 0]))
            for broken in (b"", b"abc", struct.pack("<2f", 1, 1), struct.pack("<2f", math.nan, 1), b"\0" * 8):
                index.add(b"key", b"g", unit([0, 1]))
                index.add(b"key", b"g", broken)
                self.assertIsNone(index.nearest(b"g", unit([0, 1]), 0.5))
            self.assertEqual(len(index), 1)

    def test_a_key_added_again_moves(self) -> None:
        for use_numpy in WAYS:
            index = VectorIndex(use_numpy=use_numpy)
            index.add(b"key", b"g", unit([1, 0]))
            index.add(b"key", b"h", unit([0, 1]))
            self.assertEqual(len(index), 1)
            self.assertIsNone(index.nearest(b"g", unit([1, 0]), 0.5))
            self.assertEqual(index.nearest(b"h", unit([0, 1]), 0.5), (b"key", 1.0))

    def test_removed_and_cleared(self) -> None:
        for use_numpy in WAYS:
            index = VectorIndex(use_numpy=use_numpy)
            for i in range(3):
                index.add(number(i), b"g", unit([1, i]))
            index.remove(number(0))
            index.remove(number(0))
            index.remove(b"never there")
            self.assertEqual(len(index), 2)
            found = index.nearest(b"g", unit([1, 0]), 0.5)
            self.assertEqual(found and found[0], number(1))
            index.clear()
            self.assertEqual(len(index), 0)
            self.assertIsNone(index.nearest(b"g", unit([1, 1]), 0.5))
            index.remove(number(1))
            index.add(number(1), b"g", unit([1, 1]))
            self.assertEqual(index.nearest(b"g", unit([1, 1]), 0.5), (number(1), 1.0))

    def test_numpy_that_is_missing_is_said_only_where_it_is_asked_for(self) -> None:
        VectorIndex()
        if len(WAYS) == 1:
            with self.assertRaises(ImportError):
                VectorIndex(use_numpy=True)

    def test_agrees_with_looking_at_all_while_entries_come_and_go(self) -> None:
        for use_numpy in WAYS:
            chance = random.Random(3)
            index = VectorIndex(use_numpy=use_numpy)
            entries: dict[bytes, bytes] = {}
            for step in range(4_000):
                # It grows over several chunks and shrinks again to a few.
                if entries and chance.random() < (0.25 if step < 2_800 else 0.95):
                    key = chance.choice(list(entries)) if chance.random() < 0.5 else next(iter(entries))
                    del entries[key]
                    index.remove(key)
                else:
                    entries[number(step)] = unit(gauss(chance))
                    index.add(number(step), b"g", entries[number(step)])
                if step % 40 == 0 and entries:
                    query = at_cosine(chance.choice(list(entries.values())), gauss(chance), 0.94)
                    found = index.nearest(b"g", query, 0.9)
                    self.assertEqual(found and found[0], by_looking_at_all(entries, query, 0.9), (step, use_numpy))
            self.assertEqual(len(index), len(entries))


class SignatureTest(unittest.TestCase):
    def test_at_most_one_in_a_thousand_is_missed_at_exactly_the_limit(self) -> None:
        # With fixed seeds, so that this is no gamble. The common part is what embeddings of sentences have.
        for common in (0.0, 0.9):
            chance = random.Random(4)
            middle = floats(unit(gauss(chance, 384)))
            made = planes.Planes(384, 1)
            limit = planes.differing_at_most(0.9)
            missed = 0
            for _ in range(300):
                one, other = (
                    unit([common * x + math.sqrt(1 - common**2) * y for x, y in zip(middle, floats(unit(g)))])
                    for g in (gauss(chance, 384), gauss(chance, 384))
                )
                near = at_cosine(one, floats(other), 0.9)
                missed += bin(made.signature(floats(one)) ^ made.signature(floats(near))).count("1") > limit
            self.assertLessEqual(missed, 1)

    def test_bits_differ_as_the_angle_says_in_each_dimension(self) -> None:
        chance = random.Random(5)
        for dimension in (2, 64, 65, 512, 513, 1536, 3072):
            made = planes.Planes(dimension, 1)
            differing = 0
            for _ in range(12):
                one = unit(gauss(chance, dimension))
                near = at_cosine(one, gauss(chance, dimension), 0.8)
                signature, other = made.signature(floats(one)), made.signature(floats(near))
                self.assertLess(max(signature, other), 1 << planes.SIGNATURE_BITS)
                differing += bin(signature ^ other).count("1")
            share = differing / 12 / planes.SIGNATURE_BITS
            self.assertAlmostEqual(share, math.acos(0.8) / math.pi, delta=0.02, msg=dimension)

    def test_the_limit_is_the_binomial_tail(self) -> None:
        for wanted in (0.5, 0.9, 0.99):
            limit = planes.differing_at_most(wanted)
            share = (math.acos(wanted) + 0.002) / math.pi
            tail = [
                math.exp(
                    math.log(math.comb(planes.SIGNATURE_BITS, k))
                    + k * math.log(share)
                    + (planes.SIGNATURE_BITS - k) * math.log(1 - share)
                )
                for k in range(limit + 1, limit + 60)
            ]
            self.assertLess(math.fsum(tail), planes.MISS_PROBABILITY)
            self.assertGreater(math.fsum(tail), planes.MISS_PROBABILITY / 3)

    def test_ones_are_counted_without_bit_count_too(self) -> None:
        chance = random.Random(6)
        for value in (0, 1, (1 << 2048) - 1, *(chance.getrandbits(2048) for _ in range(50))):
            self.assertEqual(planes.count_ones_by_halves(value), bin(value).count("1"))


class ThreadsTest(unittest.TestCase):
    def test_searches_while_others_add_and_remove(self) -> None:
        for use_numpy in WAYS:
            self.many_threads(VectorIndex(use_numpy=use_numpy))

    def many_threads(self, index: VectorIndex) -> None:
        chance = random.Random(7)
        staying = {number(i): unit(gauss(chance)) for i in range(150)}
        passing = [unit(gauss(chance)) for _ in range(100)]
        for key, vector in staying.items():
            index.add(key, b"g", vector)
        faults: list[object] = []
        done = threading.Event()

        def come_and_go(first: int) -> None:
            try:
                while not done.is_set():
                    for i, vector in enumerate(passing):
                        index.add(number(first + i), b"g", vector)
                    for i in range(len(passing)):
                        index.remove(number(first + i))
            except Exception as error:
                faults.append(error)

        def search() -> None:
            try:
                for key, vector in [*staying.items()] * 2:
                    found = index.nearest(b"g", vector, 0.99)
                    if found != (key, 1.0):
                        faults.append((key, found))
            except Exception as error:
                faults.append(error)

        changing = [threading.Thread(target=come_and_go, args=(1_000_000 * n,)) for n in (1, 2)]
        searching = threading.Thread(target=search)
        for thread in [*changing, searching]:
            thread.start()
        searching.join()
        done.set()
        for thread in changing:
            thread.join()
        self.assertEqual(faults[:3], [])
        self.assertEqual(len(index), len(staying))


if __name__ == "__main__":
    unittest.main()
