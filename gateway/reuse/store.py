"""The answers that are kept: by the request's digest, the least recently used go first.

`AnswerStore` owns them, and the indexes by which a near duplicate is found. Its lock guards all of that, and is held
for a few dict operations; nothing is read or written under it. What is in a file (`answerfile.py`) may be known here
without its body: who finds it so has it loaded.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Callable, NamedTuple, Optional

from gateway.reuse.stored import Chosen, Stored
from gateway.reuse.vectors import VectorIndex

ENTRY_BYTES = 880
"""What one answer takes besides its body, its vector and its names: objects, and places in the dicts (measured)."""
DROPPED_AT_ONCE = 500
OTHERS_MAX = 20_000  # vectors of answers that other gateways keep


STORED_AT, NEAR = (Stored._fields.index(name) for name in ("stored_unix_s", "near"))


class Found(NamedTuple):
    """An answer that is kept. `in_file`: without its body, which is to be loaded."""

    stored: Stored
    in_file: bool
    similarity: Optional[float] = None


def size_of(stored: Stored, body_bytes: int) -> int:
    """The bytes of memory that an answer takes with a body of so many, but for what its vector takes in an index."""
    names = len(stored.scope) + len(stored.model) + len(stored.request_id) + len(stored.path)
    return ENTRY_BYTES + body_bytes + names + len(stored.vector)


_Entry = tuple[tuple[Any, ...], int, bool]
"""A `Stored`, its bytes, whether its body is in the file alone. Plain tuples of what is no container: the collector of
circles looks at each once and never again (named ones would be looked at each time: 8 us a request with 100 000)."""


class AnswerStore:
    """Keeps answers for `ttl_s` seconds, and of the most recently used `max_bytes` in all. Thread-safe.

    `on_gone` is called with the keys that are gone, but not those that `put` replaces; never under the lock.
    """

    def __init__(
        self,
        max_bytes: int,
        ttl_s: float,
        on_gone: Callable[[Sequence[bytes]], None] = lambda keys: None,
        vectors: Optional[VectorIndex] = None,
    ) -> None:
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._on_gone = on_gone
        self._vectors = vectors
        self._lock = threading.Lock()
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()  # the one used last is last
        self._by_near: dict[bytes, bytes] = {}
        self._models: Optional[frozenset[str]] = None  # whose answers are taken; None: all
        self._others: OrderedDict[bytes, None] = OrderedDict()  # keys of vectors whose answers others keep
        self.bytes = 0
        self.evictions = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes, now_unix_s: float, max_age_s: Optional[float] = None) -> Optional[Found]:
        """The answer to a request, if one is kept that is no older than `max_age_s` (None: any)."""
        gone: Sequence[bytes] = ()
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            age_s = now_unix_s - entry[0][STORED_AT]
            if age_s > self._ttl_s:
                self._drop_locked(key)
                gone = (key,)
            elif max_age_s is not None and age_s > max_age_s:
                return None
            else:
                self._entries.move_to_end(key)
        if gone:
            self._tell_gone(gone)
            return None
        return Found(Stored._make(entry[0]), entry[2])

    def get_near(self, near: bytes, now_unix_s: float, max_age_s: Optional[float] = None) -> Optional[Found]:
        """The answer to a near duplicate by the guard of words."""
        key = self._by_near.get(near)
        return None if key is None else self.get(key, now_unix_s, max_age_s)

    @property
    def vectors(self) -> int:
        """How many there are to be compared."""
        return 0 if self._vectors is None else len(self._vectors)

    def nearest(
        self, group: bytes, vector: bytes, at_least: float, now_unix_s: float, max_age_s: Optional[float] = None
    ) -> Optional[tuple[bytes, float, Optional[Found]]]:
        """The key of what is most similar within a group, its cosine, and the answer if it is here."""
        if self._vectors is None:
            return None
        hit = self._vectors.nearest(group, vector, at_least)
        if hit is None:
            return None
        found = self.get(hit[0], now_unix_s, max_age_s)
        return hit[0], hit[1], None if found is None else found._replace(similarity=hit[1])

    def put(self, stored: Stored) -> bool:
        """Keep an answer; False: it is too large, or of a model that is no more."""
        return self._put(stored, len(stored.body), in_file=False)

    def add(self, stored: Stored, body_bytes: int) -> bool:
        """Know of an answer that is in the file, with a body of so many bytes; as `put`, but one that is here already
        stays."""
        return self._put(stored, body_bytes, in_file=True)

    def _put(self, stored: Stored, body_bytes: int, in_file: bool) -> bool:
        size = self._size_of(stored, body_bytes)
        if size > self._max_bytes:
            return False
        gone: list[bytes] = []
        with self._lock:
            if self._models is not None and stored.model not in self._models:
                return False
            self._others.pop(stored.key, None)
            if stored.key in self._entries:
                if in_file:
                    return True
                self._drop_locked(stored.key)
            self._entries[stored.key] = (tuple(stored), size, in_file)
            self.bytes += size
            if stored.near:
                self._by_near[stored.near] = stored.key
            while self.bytes > self._max_bytes:
                key = next(iter(self._entries))
                self._drop_locked(key)
                self.evictions += 1
                gone.append(key)
        if gone:
            self._tell_gone(gone)
        if self._vectors is not None:  # it has a lock of its own, and takes a while
            self._vectors.remove(stored.key)
            if stored.vector:
                self._vectors.add(stored.key, stored.group, stored.vector)
                if stored.key not in self._entries:  # who has dropped it meanwhile may have come too early for that
                    self._vectors.remove(stored.key)
        return True

    def _size_of(self, stored: Stored, body_bytes: int) -> int:
        size = size_of(stored, body_bytes)
        if stored.vector and self._vectors is not None:
            size += self._vectors.extra_bytes(len(stored.vector))
        return size

    def loaded(self, stored: Stored) -> None:
        """The body of one that is in the file has been loaded."""
        with self._lock:
            entry = self._entries.get(stored.key)
            if entry is not None and entry[2]:
                size = self._size_of(stored, len(stored.body))
                self._entries[stored.key] = (tuple(stored), size, False)
                self.bytes += size - entry[1]  # an index does not tell all

    def add_vector(self, key: bytes, group: bytes, vector: bytes) -> None:
        """Another gateway keeps an answer with this vector."""
        if self._vectors is None:
            return
        with self._lock:
            if key in self._entries:
                return
            self._others[key] = None
            oldest = self._others.popitem(last=False)[0] if len(self._others) > OTHERS_MAX else None
        if oldest is not None:
            self._vectors.remove(oldest)
        self._vectors.add(key, group, vector)

    def forget(self, key: bytes) -> None:
        """An answer has turned out to be gone."""
        with self._lock:
            self._others.pop(key, None)
            if key in self._entries:
                self._drop_locked(key)
        self._tell_gone((key,))

    def _tell_gone(self, keys: Sequence[bytes]) -> None:
        """Without the lock. (One that is kept anew just now may lose its vector, or its row, by that: until then it is
        found less often.)"""
        if not keys:
            return
        if self._vectors is not None:
            for key in keys:
                self._vectors.remove(key)
        self._on_gone(keys)

    def clear(self, chosen: Chosen) -> int:
        """Drop what is chosen; returns how many."""
        return self._drop_all(chosen.takes)

    def _drop_all(self, takes: Callable[[Stored], bool]) -> int:
        """Drop what is taken, a few at a time: between, others get the lock."""
        with self._lock:
            keys = list(self._entries)
        gone: list[bytes] = []
        for first in range(0, len(keys), DROPPED_AT_ONCE):
            with self._lock:
                for key in keys[first : first + DROPPED_AT_ONCE]:
                    entry = self._entries.get(key)
                    if entry is not None and takes(Stored._make(entry[0])):
                        self._drop_locked(key)
                        gone.append(key)
        self._tell_gone(gone)
        return len(gone)

    def keep_models(self, models: Collection[str]) -> None:
        """Only these models are left: drop the answers of all others, and take none of theirs."""
        left = frozenset(models)
        with self._lock:
            self._models = left
        self._drop_all(lambda stored: stored.model not in left)

    def expire(self, now_unix_s: float) -> None:
        """Drop what is too old."""
        self.clear(Chosen(now_unix_s, older_than_s=self._ttl_s))

    def keys(self) -> Iterable[bytes]:
        """Of all answers, the least recently used first."""
        with self._lock:
            return list(self._entries)

    def _drop_locked(self, key: bytes) -> None:
        stored, size, _ = self._entries.pop(key)
        self.bytes -= size
        near = stored[NEAR]
        if near and self._by_near.get(near) == key:
            del self._by_near[near]
