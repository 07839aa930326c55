"""The answers that are kept: which go first, what they take, who is told, and many threads at once."""

from __future__ import annotations

import functools
import gc
import hashlib
import importlib.util
import json
import random
import threading
import unittest
from collections.abc import Sequence
from typing import Any, Callable, Optional

from gateway.reuse.store import AnswerStore, size_of
from gateway.reuse.stored import Chosen, Stored
from gateway.reuse.vectors import VectorIndex, unit

LARGE = 10**9
NOW_S = 1_000_000.0


def name(text: object) -> bytes:
    """16 bytes of its own for each text."""
    return hashlib.blake2b(str(text).encode(), digest_size=16).digest()


def answer(key: str, size: int = 100, **fields: Any) -> Stored:
    """An answer whose body has so many bytes."""
    values: dict[str, Any] = {
        "scope": "ann",
        "model": "13b",
        "path": "/chat/completions",
        "body": b"x" * size,
        "request_id": "r",
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "cost_usd": 0.5,
        "stored_unix_s": NOW_S,
        **fields,
    }
    return Stored(name(key), **values)


def bytes_of(*answers: Stored) -> int:
    return sum(size_of(each, len(each.body)) for each in answers)


def vector(*values: float) -> bytes:
    return unit(values)


TRACES_MEMORY = importlib.util.find_spec("_tracemalloc") is not None
if TRACES_MEMORY:
    import tracemalloc


class StoreTest(unittest.TestCase):
    """A store that tells who is gone in `gone`, and is looked at while it tells: so its lock is not held then."""

    def setUp(self) -> None:
        self.gone: list[bytes] = []

    def store(self, max_bytes: int = LARGE, ttl_s: float = 60.0, vectors: Optional[VectorIndex] = None) -> AnswerStore:
        store = AnswerStore(max_bytes, ttl_s, lambda keys: self.told(store, keys), vectors)
        return store

    def told(self, store: AnswerStore, keys: Sequence[bytes]) -> None:
        self.gone += keys
        free = store._lock.acquire(blocking=False)
        self.assertTrue(free, "told under the lock")
        store._lock.release()
        for key in keys:
            self.assertIsNone(store.get(key, NOW_S))
        self.assertEqual(len(list(store.keys())), len(store))

    def has(self, store: AnswerStore, *names: str, now_s: float = NOW_S) -> list[str]:
        """Which of these there are, without one of them being used."""
        keys = set(store.keys())
        return [each for each in names if name(each) in keys]

    def assert_gone(self, *names: str) -> None:
        self.assertEqual(self.gone, [name(each) for each in names])
        self.gone.clear()


class FindTest(StoreTest):
    def test_what_was_put_is_found(self) -> None:
        store = self.store()
        one, other = answer("a"), answer("b", body=b"other")
        self.assertTrue(store.put(one))
        self.assertTrue(store.put(other))
        for each in (one, other):
            found = store.get(each.key, NOW_S)
            assert found is not None
            self.assertEqual(found.stored, each)
            self.assertEqual((found.in_file, found.similarity), (False, None))
        self.assertIsNone(store.get(name("c"), NOW_S))
        self.assertEqual(len(store), 2)
        self.assertEqual(store.bytes, bytes_of(one, other))

    def test_the_last_one_put_is_found_and_the_one_before_counts_no_longer(self) -> None:
        store = self.store()
        store.put(answer("a", 5000))
        store.put(answer("b"))
        last = answer("a", 10)
        store.put(last)
        found = store.get(last.key, NOW_S)
        assert found is not None
        self.assertEqual(found.stored, last)
        self.assertEqual(store.bytes, bytes_of(last, answer("b")))
        self.assertEqual((len(store), store.evictions, self.gone), (2, 0, []))

    def test_until_it_is_too_old(self) -> None:
        store = self.store(ttl_s=60.0)
        store.put(answer("a"))
        self.assertIsNotNone(store.get(name("a"), NOW_S + 60.0))
        self.assertEqual(self.gone, [])
        self.assertIsNone(store.get(name("a"), NOW_S + 60.1))
        self.assert_gone("a")
        self.assertEqual((len(store), store.bytes, store.evictions), (0, 0, 0))

    def test_its_age_is_that_of_the_answer_however_often_it_was_used(self) -> None:
        store = self.store(ttl_s=60.0)
        store.put(answer("a"))
        for after_s in (20.0, 40.0, 59.0):
            self.assertIsNotNone(store.get(name("a"), NOW_S + after_s))
        self.assertIsNone(store.get(name("a"), NOW_S + 61.0))

    def test_a_clock_that_was_set_back_drops_nothing(self) -> None:
        store = self.store()
        store.put(answer("a"))
        self.assertIsNotNone(store.get(name("a"), NOW_S - 3600.0))
        self.assertIsNotNone(store.get(name("a"), NOW_S - 3600.0, 5.0))

    def test_who_wants_a_newer_one_gets_none_but_others_still_do(self) -> None:
        store = self.store()
        store.put(answer("a"))
        self.assertIsNone(store.get(name("a"), NOW_S + 10.0, 9.0))
        self.assertIsNone(store.get(name("a"), NOW_S + 1.0, 0.0))
        self.assertIsNotNone(store.get(name("a"), NOW_S + 10.0, 10.0))
        self.assertIsNotNone(store.get(name("a"), NOW_S, 0.0))
        self.assertIsNotNone(store.get(name("a"), NOW_S + 10.0))
        self.assertEqual(self.gone, [])

    def test_none_older_than_the_store_keeps_them_whoever_would_take_it(self) -> None:
        store = self.store(ttl_s=60.0)
        store.put(answer("a"))
        self.assertIsNone(store.get(name("a"), NOW_S + 61.0, 1000.0))

    def test_expire_drops_all_that_is_too_old(self) -> None:
        store = self.store(ttl_s=60.0)
        for after_s in range(5):
            store.put(answer(str(after_s), stored_unix_s=NOW_S + after_s))
        store.expire(NOW_S + 62.0)
        self.assert_gone("0", "1")
        self.assertEqual(len(store), 3)


class RoomTest(StoreTest):
    def test_the_least_recently_used_goes_first(self) -> None:
        answers = {each: answer(each) for each in "abcde"}
        store = self.store(bytes_of(*[answers[each] for each in "abc"]))
        for each in "abc":
            store.put(answers[each])
        store.get(name("a"), NOW_S)
        store.put(answers["d"])
        self.assert_gone("b")
        store.get(name("c"), NOW_S)
        store.put(answers["e"])
        self.assert_gone("a")
        self.assertEqual(list(store.keys()), [name(each) for each in "dce"])
        self.assertEqual(store.evictions, 2)

    def test_one_that_is_put_again_was_used_last(self) -> None:
        store = self.store(bytes_of(*[answer(each) for each in "abc"]))
        for each in "abcad":
            store.put(answer(each))
        self.assert_gone("b")

    def test_a_near_hit_uses_it_a_vain_look_does_not(self) -> None:
        store = self.store(bytes_of(*[answer(each) for each in "abc"]))
        for each in "abc":
            store.put(answer(each, near=name("near " + each)))
        store.get_near(name("near a"), NOW_S)
        store.get(name("b"), NOW_S + 9.0, max_age_s=1.0)
        store.put(answer("d"))
        self.assert_gone("b")

    def test_a_large_one_takes_the_room_of_several(self) -> None:
        small = [answer(each, 1000) for each in "abcd"]
        store = self.store(bytes_of(*small))
        for each in small:
            store.put(each)
        large = answer("e", 2000 + bytes_of(answer("", 0)))
        store.put(large)
        self.assert_gone("a", "b")
        self.assertEqual((store.evictions, store.bytes), (2, bytes_of(*small[2:], large)))

    def test_the_budget_is_never_exceeded_nor_wasted(self) -> None:
        chance = random.Random(3)
        budget = 100_000
        store = self.store(budget)
        for _ in range(3000):
            each = answer(str(chance.randrange(400)), chance.choice((0, 50, 900, 5000, 30_000)))
            before = store.bytes
            had = len(self.gone)
            store.put(each)
            self.assertLessEqual(store.bytes, budget)
            if len(self.gone) > had:
                self.assertGreater(store.bytes, budget - 30_000 - bytes_of(answer("", 0)))
                self.assertGreater(before + bytes_of(each), budget)
        self.assertEqual(store.bytes, sum(entry[1] for entry in store._entries.values()))
        self.assertEqual(store.evictions, len(self.gone))

    def test_one_that_is_larger_than_all_the_room_is_not_taken_and_drops_nothing(self) -> None:
        store = self.store(bytes_of(answer("a")))
        self.assertTrue(store.put(answer("a")))
        self.assertFalse(store.put(answer("b", 101)))
        self.assertEqual((self.has(store, "a", "b"), self.gone), (["a"], []))

    def test_names_and_vectors_count_as_well(self) -> None:
        plain = bytes_of(answer("a"))
        for fields in (
            {"scope": "annabel"},
            {"model": "13b-long"},
            {"request_id": "r" * 5},
            {"path": "/chat/completions/x"},
            {"vector": vector(1, 2)},
        ):
            self.assertGreater(bytes_of(answer("a", **fields)), plain, fields)


@unittest.skipUnless(TRACES_MEMORY, "this interpreter does not trace memory")
class HonestTest(unittest.TestCase):
    """What the store says that it takes, and what it takes."""

    def answers(self, count: int, size: Callable[[int], int], dimension: int, chance: random.Random) -> list[Stored]:
        """As they come: the names are shared, all else is each one's own."""
        scopes, models = ["key-1", "key-2"], ["13b", "70b"]
        found = []
        for number in range(count):
            said = {"role": "assistant", "content": "x" * size(number)}
            body = {"id": f"{number:036}", "choices": [{"index": 0, "message": said, "finish_reason": "stop"}]}
            found.append(
                Stored(
                    name(number),
                    scopes[number % 2],
                    models[number % 2],
                    "/chat/completions",
                    json.dumps(body).encode(),
                    f"{number:036}",
                    1000 + number,
                    2000 + number,
                    0.001 * number,
                    NOW_S + number,
                    name(f"near {number}"),
                    name(f"group {number % 5}") if dimension else b"",
                    unit([chance.gauss(0, 1) for _ in range(dimension)]) if dimension else b"",
                )
            )
        return found

    def measured(
        self, count: int, size: Callable[[int], int], dimension: int = 0, use_numpy: Optional[bool] = None
    ) -> tuple[int, int]:
        """Bytes that filling a store takes, and that it counts. Skips without numpy, should it be wanted."""
        if use_numpy and importlib.util.find_spec("numpy") is None:
            self.skipTest("numpy is not installed")
        vectors = VectorIndex(use_numpy=use_numpy) if dimension else None
        if vectors is not None:  # what it has once, for all
            vectors.add(b"", b"", unit([1.0] * dimension))
        gc.collect()
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            store = AnswerStore(LARGE, 60.0, vectors=vectors)
            answers = self.answers(count, size, dimension, random.Random(1))
            for each in answers:
                store.put(each)
            del answers, each
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        return after - before, store.bytes

    def assert_honest(self, real: int, counted: int, what: object) -> None:
        self.assertLessEqual(real, counted, what)
        self.assertLessEqual(counted, 1.6 * real, what)

    def test_of_small_large_and_mixed_answers(self) -> None:
        sizes: dict[str, Callable[[int], int]] = {
            "tiny": lambda number: 1,
            "small": lambda number: 300,
            "usual": lambda number: 2000,
            "large": lambda number: 40_000,
            "mixed": lambda number: (5, 300, 2500, 20_000)[number % 4],
        }
        for what, size in sizes.items():
            self.assert_honest(*self.measured(400, size), what)

    def test_just_after_its_dicts_have_grown(self) -> None:
        for count in (172, 345, 690, 1370, 2740):
            self.assert_honest(*self.measured(count, lambda number: 60), count)

    def test_with_vectors_it_never_takes_more_than_it_says(self) -> None:
        for use_numpy in (False, True):
            for count, dimension in ((200, 48), (150, 384), (70, 1536)):
                with self.subTest(use_numpy=use_numpy, count=count, dimension=dimension):
                    real, counted = self.measured(count, lambda number: 300, dimension, use_numpy)
                    self.assertLessEqual(real, counted)

    def test_with_vectors_it_does_not_say_much_more_than_it_takes(self) -> None:
        for use_numpy in (False, True):
            with self.subTest(use_numpy=use_numpy):
                real, counted = self.measured(150, lambda number: 300, 384, use_numpy)
                self.assertLessEqual(counted, 1.6 * real)

    def test_what_is_dropped_is_given_back(self) -> None:
        gc.collect()
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            store = AnswerStore(LARGE, 60.0, vectors=VectorIndex(use_numpy=False))
            for each in self.answers(300, lambda number: 3000, 0, random.Random(1)):
                store.put(each)
            del each
            store.clear(Chosen(NOW_S))
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        self.assertEqual(store.bytes, 0)
        self.assertLess(after - before, 100_000)


class NearTest(StoreTest):
    def key_near(self, store: AnswerStore, near: str) -> Optional[bytes]:
        found = store.get_near(name(near), NOW_S)
        return None if found is None else found.stored.key

    def test_by_what_a_near_duplicate_has_in_common(self) -> None:
        store = self.store()
        store.put(answer("a", near=name("n")))
        store.put(answer("b"))
        self.assertEqual(self.key_near(store, "n"), name("a"))
        self.assertIsNone(self.key_near(store, "m"))
        self.assertIsNone(store.get_near(b"", NOW_S))

    def test_the_newest_of_several(self) -> None:
        store = self.store()
        store.put(answer("a", near=name("n")))
        store.put(answer("b", near=name("n")))
        self.assertEqual(self.key_near(store, "n"), name("b"))
        store.forget(name("a"))
        self.assertEqual(self.key_near(store, "n"), name("b"))
        store.forget(name("b"))
        self.assertIsNone(self.key_near(store, "n"))

    def test_it_follows_replacement(self) -> None:
        store = self.store()
        store.put(answer("a", near=name("n")))
        store.put(answer("a", near=name("m")))
        self.assertIsNone(self.key_near(store, "n"))
        self.assertEqual(self.key_near(store, "m"), name("a"))
        store.put(answer("a"))
        self.assertIsNone(self.key_near(store, "m"))
        self.assertEqual(store._by_near, {})

    def test_it_follows_every_removal(self) -> None:
        one = answer("a", near=name("n"), vector=vector(1, 0), group=b"g")
        removals: dict[str, Callable[[AnswerStore], object]] = {
            "too old": lambda store: store.get(one.key, NOW_S + 61.0),
            "evicted": lambda store: [store.put(answer(str(number))) for number in range(9)],
            "cleared": lambda store: store.clear(Chosen(NOW_S)),
            "forgotten": lambda store: store.forget(one.key),
            "its model is no more": lambda store: store.keep_models(["70b"]),
            "expired": lambda store: store.expire(NOW_S + 61.0),
        }
        for what, remove in removals.items():
            with self.subTest(what):
                vectors = VectorIndex(use_numpy=False)
                store = self.store(2 * bytes_of(one), vectors=vectors)
                store.put(one)
                self.assertIsNotNone(store.get_near(name("n"), NOW_S))
                self.assertIsNotNone(store.nearest(b"g", one.vector, 0.9, NOW_S))
                remove(store)
                self.assertIsNone(store.get_near(name("n"), NOW_S))
                self.assertIsNone(store.nearest(b"g", one.vector, 0.9, NOW_S))
                self.assertEqual((store._by_near, len(vectors)), ({}, 0))
                self.assertIn(one.key, self.gone)

    def test_age_counts_as_it_does_for_the_same_request(self) -> None:
        store = self.store(ttl_s=60.0)
        store.put(answer("a", near=name("n")))
        self.assertIsNone(store.get_near(name("n"), NOW_S + 5.0, 4.0))
        self.assertIsNotNone(store.get_near(name("n"), NOW_S + 5.0, 5.0))
        self.assertIsNone(store.get_near(name("n"), NOW_S + 61.0))
        self.assert_gone("a")

    def test_by_vector_within_its_group(self) -> None:
        store = self.store(vectors=VectorIndex(use_numpy=False))
        store.put(answer("a", vector=vector(1, 0), group=b"g"))
        store.put(answer("b", vector=vector(0, 1), group=b"g"))
        store.put(answer("c", vector=vector(1, 0.1), group=b"h"))
        hit = store.nearest(b"g", vector(1, 0.1), 0.9, NOW_S)
        assert hit is not None
        key, similarity, found = hit
        assert found is not None
        self.assertEqual((key, found.stored.key), (name("a"), name("a")))
        self.assertAlmostEqual(similarity, 1 / 1.01**0.5, 5)
        self.assertEqual(found.similarity, similarity)
        self.assertIsNone(store.nearest(b"g", vector(1, 1), 0.9, NOW_S))
        self.assertIsNone(store.nearest(b"i", vector(1, 0), 0.9, NOW_S))

    def test_a_vector_follows_replacement(self) -> None:
        vectors = VectorIndex(use_numpy=False)
        store = self.store(vectors=vectors)
        store.put(answer("a", vector=vector(1, 0), group=b"g"))
        store.put(answer("a", vector=vector(0, 1), group=b"g"))
        self.assertIsNone(store.nearest(b"g", vector(1, 0), 0.9, NOW_S))
        self.assertIsNotNone(store.nearest(b"g", vector(0, 1), 0.9, NOW_S))
        store.put(answer("a"))
        self.assertIsNone(store.nearest(b"g", vector(0, 1), 0.9, NOW_S))
        self.assertEqual(len(vectors), 0)

    def test_one_that_another_gateway_keeps(self) -> None:
        store = self.store(vectors=VectorIndex(use_numpy=False))
        store.add_vector(name("a"), b"g", vector(1, 0))
        hit = store.nearest(b"g", vector(1, 0), 0.9, NOW_S)
        self.assertEqual(hit, (name("a"), 1.0, None))
        store.forget(name("a"))
        self.assertIsNone(store.nearest(b"g", vector(1, 0), 0.9, NOW_S))
        self.assert_gone("a")

    def test_without_an_index_nothing_is_found_by_vector(self) -> None:
        store = self.store()
        store.put(answer("a", vector=vector(1, 0), group=b"g"))
        store.add_vector(name("b"), b"g", vector(1, 0))
        self.assertIsNone(store.nearest(b"g", vector(1, 0), 0.9, NOW_S))


class ClearTest(StoreTest):
    def setUp(self) -> None:
        super().setUp()
        self.answers = {
            f"{model} {scope} {age_s}": answer(
                f"{model} {scope} {age_s}", model=model, scope=scope, stored_unix_s=NOW_S - age_s
            )
            for model in ("13b", "70b")
            for scope in ("ann", "bob", "")
            for age_s in (0, 10, 20)
        }

    def filled(self) -> AnswerStore:
        store = self.store()
        for each in self.answers.values():
            store.put(each)
        self.gone.clear()
        return store

    def test_by_each_and_by_all_together(self) -> None:
        for model in (None, "13b", "none"):
            for scope in (None, "ann", "", "none"):
                for older_than_s in (None, -1.0, 0.0, 10.0, 15.0, 99.0):
                    store = self.filled()
                    expected = {
                        each.key
                        for each in self.answers.values()
                        if (model is None or each.model == model)
                        and (scope is None or each.scope == scope)
                        and (older_than_s is None or NOW_S - each.stored_unix_s > older_than_s)
                    }
                    what = (model, scope, older_than_s)
                    self.assertEqual(store.clear(Chosen(NOW_S, model, scope, older_than_s)), len(expected), what)
                    self.assertEqual((set(self.gone), len(self.gone)), (expected, len(expected)), what)
                    left = [each for each in self.answers.values() if each.key not in expected]
                    self.assertEqual(set(store.keys()), {each.key for each in left}, what)
                    self.assertEqual(store.bytes, bytes_of(*left), what)
                    self.assertEqual(store.evictions, 0)

    def test_only_the_models_that_are_left_are_kept_and_taken(self) -> None:
        store = self.filled()
        store.keep_models(["70b", "new"])
        self.assertEqual(len(store), 9)
        self.assertEqual(len(self.gone), 9)
        self.assertEqual(set(self.gone), {each.key for each in self.answers.values() if each.model == "13b"})
        self.assertFalse(store.put(answer("late", model="13b")))
        self.assertFalse(store.add(answer("late", model="13b"), 5))
        self.assertTrue(store.put(answer("new", model="new")))
        self.assertEqual(store.bytes, sum(entry[1] for entry in store._entries.values()))
        store.keep_models(["13b"])
        self.assertEqual((len(store), store.bytes), (0, 0))
        self.assertTrue(store.put(answer("back", model="13b")))

    def test_models_that_are_all_left_lose_nothing(self) -> None:
        store = self.filled()
        store.keep_models({"13b", "70b"})
        self.assertEqual((len(store), self.gone), (18, []))

    def test_forget_tells_even_of_what_is_not_here(self) -> None:
        store = self.store()
        store.forget(name("a"))
        self.assert_gone("a")
        store.put(answer("a"))
        store.forget(name("a"))
        self.assert_gone("a")
        self.assertEqual((len(store), store.bytes), (0, 0))


class FileTest(StoreTest):
    def row(self, key: str, **fields: Any) -> Stored:
        """What the file's index knows of an answer."""
        return answer(key, body=b"", **fields)

    def test_what_the_file_has_is_known_without_its_body_which_counts(self) -> None:
        store = self.store()
        self.assertTrue(store.add(self.row("a", near=name("n")), 5000))
        found = store.get(name("a"), NOW_S)
        assert found is not None
        self.assertTrue(found.in_file)
        near = store.get_near(name("n"), NOW_S)
        assert near is not None
        self.assertTrue(near.in_file)
        self.assertEqual(store.bytes, bytes_of(answer("a", 5000)))

    def test_one_that_is_here_is_not_replaced_by_one_of_the_file(self) -> None:
        store = self.store()
        here = answer("a", near=name("n"))
        store.put(here)
        self.assertTrue(store.add(self.row("a", near=name("m"), stored_unix_s=NOW_S - 30.0), 5000))
        found = store.get(name("a"), NOW_S)
        assert found is not None
        self.assertEqual(found.stored, here)
        self.assertFalse(found.in_file)
        self.assertIsNone(store.get_near(name("m"), NOW_S))
        self.assertIsNotNone(store.get_near(name("n"), NOW_S))
        self.assertEqual(store.bytes, bytes_of(here))

    def test_a_new_one_replaces_that_of_the_file(self) -> None:
        store = self.store()
        store.add(self.row("a"), 5000)
        here = answer("a")
        store.put(here)
        found = store.get(name("a"), NOW_S)
        assert found is not None
        self.assertEqual((found.stored, found.in_file, store.bytes), (here, False, bytes_of(here)))

    def test_one_that_was_loaded_is_here(self) -> None:
        store = self.store()
        store.add(self.row("a", near=name("n")), 5000)
        whole = answer("a", 5000, near=name("n"))
        store.loaded(whole)
        found = store.get(name("a"), NOW_S)
        assert found is not None
        self.assertEqual(found.stored, whole)
        self.assertFalse(found.in_file)
        store.forget(name("a"))
        self.assertEqual((store.bytes, store._by_near), (0, {}))

    def test_one_that_was_loaded_counts_all_it_takes(self) -> None:
        store = self.store()
        whole = answer("a", 5000, request_id="r" * 128)
        store.add(whole._replace(body=b"", request_id=""), 5000)
        store.loaded(whole)
        self.assertGreaterEqual(store.bytes, bytes_of(whole))

    def test_loading_too_late_changes_nothing(self) -> None:
        store = self.store()
        store.loaded(answer("a"))
        self.assertEqual(len(store), 0)
        here = answer("b", 10)
        store.add(self.row("b"), 5000)
        store.put(here)
        store.loaded(answer("b", 5000))
        found = store.get(name("b"), NOW_S)
        assert found is not None
        self.assertEqual((found.stored, store.bytes), (here, bytes_of(here)))

    def test_too_large_a_one_is_not_taken_and_others_go_for_it(self) -> None:
        store = self.store(bytes_of(answer("a", 1000)))
        self.assertFalse(store.add(self.row("a"), 1001))
        self.assertTrue(store.add(self.row("a"), 1000))
        self.assertTrue(store.add(self.row("b"), 900))
        self.assert_gone("a")


class ThreadsTest(unittest.TestCase):
    def test_many_at_once_leave_the_sums_right(self) -> None:
        gone: list[bytes] = []
        vectors = VectorIndex(use_numpy=False)
        store = AnswerStore(60_000, 60.0, gone.extend, vectors)
        errors: list[BaseException] = []
        begin = threading.Barrier(6)

        def hammer(seed: int) -> None:
            chance = random.Random(seed)
            begin.wait()
            try:
                for step in range(1500):
                    number = chance.randrange(60)
                    each = answer(
                        str(number),
                        chance.choice((10, 500, 3000)),
                        model=chance.choice(("13b", "70b")),
                        near=name(f"near {number % 20}"),
                        group=b"g",
                        vector=vector(1, number / 60) if number % 2 else b"",
                    )
                    action = chance.randrange(12)
                    if action < 4:
                        store.put(each)
                    elif action == 4:
                        store.add(each._replace(body=b""), 700)
                    elif action == 5:
                        store.loaded(each)
                    elif action < 9:
                        found = store.get(each.key, NOW_S + chance.choice((0.0, 59.0, 61.0)))
                        if found is not None and found.stored.key != each.key:
                            raise AssertionError("another's answer")
                    elif action == 9:
                        store.get_near(each.near, NOW_S)
                        store.nearest(b"g", vector(1, 0.5), 0.9, NOW_S)
                    elif action == 10:
                        store.forget(each.key)
                    elif step % 10 == 0:
                        store.clear(Chosen(NOW_S, model="70b"))
                    if step % 400 == 0:
                        store.keep_models(("13b", "70b"))
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=functools.partial(hammer, seed)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(errors, [])
        entries = store._entries
        self.assertEqual(store.bytes, sum(entry[1] for entry in entries.values()))
        self.assertLessEqual(store.bytes, 60_000)
        for near, key in store._by_near.items():
            self.assertEqual(Stored._make(entries[key][0]).near, near)
        self.assertLessEqual(len(vectors), len(entries))
        store.clear(Chosen(NOW_S))
        self.assertEqual((store.bytes, len(store), store._by_near, len(vectors)), (0, 0, {}, 0))


if __name__ == "__main__":
    unittest.main()
