"""The caches together: memory, the file, Redis, and the two bars of a near duplicate.

Steps (see `steps.py`). `Caches` owns the store and what is behind it; it holds no lock of its own. A request waits for
Redis without a thread, and for no longer than `redis_timeout_s`; what the file has is read on a thread. What must stay
in a region is neither kept in Redis nor asked for there: nobody knows where that is.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import Callable, NamedTuple, Optional, Protocol

from gateway.asked import Asked
from gateway.clock import unix_s
from gateway.jsontext import utf8
from gateway.reuse import likeness
from gateway.reuse.answerfile import AnswerFile
from gateway.reuse.likeness import Near
from gateway.reuse.store import AnswerStore, Found
from gateway.reuse.stored import Chosen, Stored
from gateway.reuse.vectors import cosine_of
from gateway.reuse.wording import form
from gateway.steps import ASIDE, Flag, Flagged, Steps
from gateway.threads import Threads

CLEAR_S = 5.0  # that Redis may take
LONG_CHARS = 1000  # of a question, whose form takes no millisecond
MANY_VECTORS = 200
EXPIRE_S = 60.0  # between two looks at what is too old


class Lookup(Protocol):
    """A look-up at other gateways' answers."""

    flag: Flag
    found: Optional[Stored]


class SharedStore(Protocol):
    """Answers that several gateways share (`redisstore.py`)."""

    def get(self, *keys: bytes, near: bytes = b"") -> Optional[Lookup]: ...

    def put(self, stored: Stored) -> None: ...

    def clear(self, chosen: Chosen, timeout_s: float) -> int: ...

    def close(self, timeout_s: float) -> None: ...


class NearBars(NamedTuple):
    """What a near duplicate has to pass: the guard of words, the cosine of an embedding, or both."""

    guard: bool
    similarity: float
    embed: Optional[Callable[[Asked, str], Steps[Optional[bytes]]]]
    """The vector of a text; None: no model for that."""


class TakenNear(NamedTuple):
    """By what a near duplicate of a request is to be found."""

    near: bytes = b""
    group: bytes = b""
    vector: bytes = b""


NOTHING_NEAR = TakenNear()


class Caches:
    """Finds and keeps answers. Thread-safe. `near` None: exact duplicates only."""

    def __init__(
        self,
        store: AnswerStore,
        *,
        near: Optional[NearBars] = None,
        file: Optional[AnswerFile] = None,
        shared: Optional[SharedStore] = None,
        redis_timeout_s: float = 0.05,
        ttl_s: float = 3600.0,
        log: Callable[..., None] = lambda *told, **more: None,
    ) -> None:
        self._log = log
        self._threads = Threads("cache", 1)
        self._expire_at_s = time.monotonic() + EXPIRE_S
        self._models: Optional[frozenset[str]] = None  # None: any
        self._reading = False  # the index of the file
        self._cleared: list[Chosen] = []  # meanwhile
        self.store = store
        self.near = near
        self.file = file
        self.shared = shared
        self.looks_elsewhere = near is not None or shared is not None
        self._redis_timeout_s = redis_timeout_s
        self._ttl_s = ttl_s

    def start(self) -> None:
        """Have the index of the file read, on a thread."""
        file = self.file
        if file is not None:
            self._reading = True
            self._threads.run(lambda: self._read_index(file))

    def _read_index(self, file: AnswerFile) -> None:
        try:
            oldest_unix_s = unix_s() - self._ttl_s
            for row in file.index():
                if row.stored_unix_s < oldest_unix_s:
                    file.remove((row.key,))
                    continue
                stored = Stored(
                    row.key,
                    row.scope,
                    row.model,
                    row.path,
                    body=b"",
                    request_id="",
                    prompt_tokens=row.tokens,
                    completion_tokens=0,
                    cost_usd=row.cost_usd,
                    stored_unix_s=row.stored_unix_s,
                    near=row.near,
                    group=row.group,
                    vector=row.vector,
                )
                if not self.store.add(stored, row.size_bytes):
                    file.remove((row.key,))
                # Behind that: who clears says so first, and then looks at what is here.
                if any(cleared.takes(stored) for cleared in self._cleared):
                    self.store.forget(row.key)
        except Exception as error:
            self._log("warning", "cache_db", message=f"its answers cannot be used: {error}")
        finally:
            self._reading = False
            self._cleared = []

    def keep_models(self, models: Collection[str]) -> None:
        """Only these models are left: the answers of those that were there before and are gone are dropped, in Redis by
        and by."""
        gone = [] if self._models is None else sorted(self._models.difference(models))
        self._models = frozenset(models)
        self.store.keep_models(models)
        shared = self.shared
        if gone and shared is not None:
            self._threads.run(lambda: self._clear_shared(shared, gone))

    def _clear_shared(self, shared: SharedStore, models: Sequence[str]) -> None:
        try:
            for model in models:
                shared.clear(Chosen(unix_s(), model), CLEAR_S)
        except Exception as error:
            self._log("warning", "redis", message=f"answers of models that are gone may be left there: {error}")

    def see_to_age(self) -> None:
        """Have what is too old dropped, once in a while, on a thread. Never blocks."""
        now_s = time.monotonic()
        if now_s >= self._expire_at_s:  # two at once: at worst it is done twice
            self._expire_at_s = now_s + EXPIRE_S
            self._threads.run(lambda: self.store.expire(unix_s()))

    def here(self, key: bytes, max_age_s: Optional[float]) -> Optional[Found]:
        """The answer to a request, if this gateway has it; see `whole`."""
        return self._used(self.store.get(key, unix_s(), max_age_s))

    def _used(self, found: Optional[Found]) -> Optional[Found]:
        if self.file is not None and found is not None:
            self.file.touch((found.stored.key,))
        return found

    def whole(self, found: Found) -> Steps[Optional[Found]]:
        """An answer with its body, which may be in the file alone; None: it is no longer there."""
        if self.file is None or not found.in_file:
            return found
        yield ASIDE
        stored = self.file.load(found.stored.key)
        if stored is None:
            self.store.forget(found.stored.key)
            return None
        self.store.loaded(stored)
        return Found(stored, False, found.similarity)

    def elsewhere(self, asked: Asked, key: bytes, max_age_s: Optional[float]) -> Steps[Optional[Found]]:
        """The answer to a request, if another gateway has kept it."""
        if self.shared is None or asked.residency:
            return None
        return (yield from self._shared(asked, self.shared.get(key), max_age_s))

    def _shared(self, asked: Asked, lookup: Optional[Lookup], max_age_s: Optional[float]) -> Steps[Optional[Found]]:
        """What another gateway has kept; it is kept here, too."""
        if lookup is None:
            return None
        if not lookup.flag.is_set() and asked.redis_s < self._redis_timeout_s:
            began_s = time.monotonic()
            yield Flagged(lookup.flag, self._redis_timeout_s - asked.redis_s)
            asked.redis_s += time.monotonic() - began_s
        stored = lookup.found
        if stored is None:
            return None
        age_s = unix_s() - stored.stored_unix_s
        if age_s > self._ttl_s or (max_age_s is not None and age_s > max_age_s):
            return None
        self.store.put(stored)
        return Found(stored, False)

    def find_near(self, asked: Asked, near: Near, max_age_s: Optional[float]) -> Steps[Optional[Found]]:
        """The answer to a near duplicate. What it has been looked for by is noted, to keep its own answer with."""
        bars = self.near
        assert bars is not None
        if len(near.text) > LONG_CHARS:
            yield ASIDE
        words = form(near.text)
        by_words = b"" if words is None else likeness.digest(near.group, utf8(words))
        if words is None and bars.guard:
            return None
        if bars.embed is None:
            asked.near = TakenNear(by_words)
            return (yield from self._by_words(asked, by_words, max_age_s)) if by_words and bars.guard else None
        vector = yield from bars.embed(asked, near.text)
        if vector is None:
            return None
        asked.near = TakenNear(by_words, near.group, vector)
        if not bars.guard:
            return (yield from self._by_vector(asked, near.group, vector, bars.similarity, max_age_s))
        found = (yield from self._by_words(asked, by_words, max_age_s)) if by_words else None
        if found is None:
            return None
        cosine = cosine_of(found.stored.vector, vector)
        return found._replace(similarity=cosine) if cosine is not None and cosine >= bars.similarity else None

    def _by_words(self, asked: Asked, near: bytes, max_age_s: Optional[float]) -> Steps[Optional[Found]]:
        found = self._used(self.store.get_near(near, unix_s(), max_age_s))
        if found is not None:
            return (yield from self.whole(found))
        if self.shared is None or asked.residency:
            return None
        return (yield from self._shared(asked, self.shared.get(near=near), max_age_s))

    def _by_vector(
        self, asked: Asked, group: bytes, vector: bytes, at_least: float, max_age_s: Optional[float]
    ) -> Steps[Optional[Found]]:
        if self.store.vectors > MANY_VECTORS:
            yield ASIDE  # it may be milliseconds
        hit = self.store.nearest(group, vector, at_least, unix_s(), max_age_s)
        if hit is None:
            return None
        key, similarity, found = hit
        if found is not None:
            self._used(found)
            return (yield from self.whole(found))
        found = yield from self.elsewhere(asked, key, max_age_s)
        if found is None:
            if max_age_s is None:
                self.store.forget(key)
            return None
        return found._replace(similarity=similarity)

    def put(self, stored: Stored, stays: bool = False) -> None:
        """Keep an answer; here alone if it `stays`. Never blocks."""
        self.see_to_age()
        if not self.store.put(stored):
            return
        if self.file is not None:
            self.file.put(stored)
        if self.shared is not None and not stays:
            self.shared.put(stored)

    def clear(self, chosen: Chosen, timeout_s: float = CLEAR_S) -> int:
        """Drop what is chosen, here and in Redis, which may take `timeout_s`; returns how many, the larger number of
        both. Blocks. Raises RedisUnavailable, with those here dropped."""
        cleared = self.clear_here(chosen)
        if self.shared is not None:
            cleared = max(cleared, self.shared.clear(chosen, timeout_s))
        return cleared

    def clear_here(self, chosen: Chosen) -> int:
        """Drop what is chosen, but not in Redis; returns how many. May take long."""
        if self._reading:
            self._cleared.append(chosen)
        cleared = self.store.clear(chosen)
        if self.file is not None and chosen.everything:
            self.file.clear()
        return cleared

    def close(self, timeout_s: float) -> None:
        """Write down what is left."""
        self._threads.close(timeout_s)
        if self.file is not None:
            self.file.close(timeout_s)
        if self.shared is not None:
            self.shared.close(timeout_s)
