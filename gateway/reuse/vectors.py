"""Which vector of a group is most like a given one: signatures and exact cosines, in pure Python or with numpy.

`VectorIndex` owns the groups; signatures are made in `planes.py`. Its one lock guards the tables of keys and groups and
every change to a chunk; it is held for microseconds, for a millisecond or two when a chunk grows or one of mostly gaps
is dissolved. Searching needs no lock: within a chunk entries are only ever appended, a place that was emptied is never
used again, and a chunk that is dissolved stays as it was; so what a group had when a search began means the same as
long as that lasts. Does no I/O, reads no clock, and imports numpy only when an index is made that may use it.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import operator
import struct
import threading
from collections.abc import Iterable, Sequence
from typing import Any, Callable, NamedTuple, Optional

from gateway.reuse.planes import Planes, count_ones, differing_at_most, planes_for

SIGNED_FROM = 64
"""A group of fewer is compared as it is: that takes no longer than a signature of what is looked for."""
CHUNK_ENTRIES = 2048
_UNIT_TOLERANCE = 1e-3
_PRODUCT_ERROR = 1e-5  # of a cosine that numpy has computed in float32


def unit(values: Sequence[float]) -> bytes:
    """`values` scaled to length 1, as little-endian float32.

    Raises ValueError when there are none, when all are zero, or when one is NaN, infinite or too big for a float.
    """
    try:
        floats = [float(value) for value in values]
    except OverflowError as error:
        raise ValueError("a vector's number is too big") from error
    largest = max(map(abs, floats), default=0.0)
    if not (largest > 0 and all(map(math.isfinite, floats))):
        raise ValueError("a vector needs finite numbers that are not all zero")
    floats = [value / largest for value in floats]  # else the squares of very big ones were infinite
    length = math.sqrt(math.fsum(value * value for value in floats))
    return struct.pack(f"<{len(floats)}f", *(value / length for value in floats))


def cosine_of(one: bytes, other: bytes) -> Optional[float]:
    """The cosine of two vectors of `unit`; None: they cannot be compared."""
    vector, another = _floats(one), _floats(other)
    if len(vector) != len(another) or not (_is_unit(vector) and _is_unit(another)):
        return None
    return _cosine(_dot(vector, another), _dot(vector, vector), _dot(another, another))


def _cosine(product: float, square: float, other_square: float) -> float:
    # Divided by the lengths, which float32 has left not quite 1: the cosine of a vector to itself is to be 1.
    return min(product / math.sqrt(square * other_square), 1.0)


class VectorIndex:
    """Finds, among vectors of length 1 within one group, one that is as similar as wanted. Thread-safe.

    Without numpy the entries of a group of `SIGNED_FROM` and more have signatures of 2048 bits: on which side of as
    many random hyperplanes each lies. Two vectors differ in a bit with the probability angle / pi (Goemans and
    Williamson, J. ACM 42, 1995; Charikar, STOC 2002), so in a binomially distributed number of bits. Compared exactly
    is what differs in so few that the tail beyond, at exactly the cosine wanted, is below 0.05 %. So at most about one
    in 2000 that lies just at the limit is missed, fewer above it; and as the exact cosine alone decides, nothing is
    found that is less similar than wanted. With numpy there are no signatures, but one product for 2048 entries.

    Memory for an entry of d dimensions: 4 d + 700 bytes; with numpy 4 d + 400, and up to 4 d more while a chunk fills.
    One that is alone in its group takes 4 d + 950. Gaps are closed when two thirds of a chunk are. `seed` chooses the
    hyperplanes. `use_numpy`: None where it is installed; True raises ImportError where it is not.
    """

    def __init__(self, seed: int = 1995, use_numpy: Optional[bool] = None) -> None:
        self._numpy = None if use_numpy is False else _import_numpy(required=use_numpy is True)
        self._seed = seed
        self._lock = threading.Lock()
        self._signing = threading.Lock()  # only one thread signs; no look-up waits for it
        self._groups: dict[_GroupId, _Group] = {}
        self._places: dict[bytes, _Place] = {}

    def __len__(self) -> int:
        """How many vectors there are."""
        return len(self._places)

    def extra_bytes(self, vector_bytes: int) -> int:
        """What an entry with a vector of so many bytes takes at most, besides that."""
        return 700 if self._numpy is None else 400 + 2 * vector_bytes

    def add(self, key: bytes, group: bytes, vector: bytes) -> None:
        """Have `vector` found in `group` as `key`, instead of what `key` was before.

        `vector`: little-endian float32 of length 1. Anything else is left out: a broken one is found by nothing. Takes
        some 20 microseconds for 384 dimensions, without numpy in a larger group half a millisecond, during which no
        look-up waits. For any thread; raises nothing.
        """
        floats = _floats(vector)
        if not _is_unit(floats):
            self.remove(key)
            return
        planes = planes_for(len(floats), self._seed) if self._numpy is None else None
        group_id = (group, len(vector))
        with self._lock:
            self._remove_locked(key)
            entries = self._groups.get(group_id)
            if entries is None:
                entries = self._groups[group_id] = _Group(planes, self._numpy)
            self._places[key] = _Place(entries, group_id, *entries.append(key, vector))
        if planes is not None and entries.living >= SIGNED_FROM and entries.unsigned:
            with self._signing:
                # Two, so that what was there before the group was large is signed little by little.
                entries.sign_one(planes)
                entries.sign_one(planes)

    def remove(self, key: bytes) -> None:
        """Have `key` no longer found; nothing when it is not there."""
        with self._lock:
            self._remove_locked(key)

    def clear(self) -> None:
        """Remove everything."""
        with self._lock:
            self._groups = {}
            self._places = {}

    def nearest(self, group: bytes, vector: bytes, at_least: float) -> Optional[tuple[bytes, float]]:
        """The key of the most similar vector in `group` and its cosine, when that is `at_least` or more; else None.

        `vector`: like that of `add`; those of another dimension never match it. `at_least`: above 0 (else, and for
        NaN, nothing is found); the higher, the faster. What is added or removed meanwhile may be found or not. For any
        thread; raises nothing.
        """
        with self._lock:
            entries = self._groups.get((group, len(vector)))
            if entries is None or not at_least > 0:
                return None
            chunks, unsigned = entries.chunks, tuple(entries.unsigned)
        floats = _floats(vector)
        if not _is_unit(floats):
            return None
        best = _Best(floats, at_least)
        if entries.planes is None:
            _search_products(self._numpy, chunks, vector, best)
            return best.found
        for chunk, place in unsigned:
            best.offer(chunk, place)
        if entries.signed:
            _search_signatures(entries.planes, chunks, best)
        return best.found

    def _remove_locked(self, key: bytes) -> None:
        place = self._places.pop(key, None)
        if place is None:
            return
        entries = place.entries
        moved = entries.forget(place.chunk, place.number)
        for moved_key, chunk, index in moved:
            self._places[moved_key] = _Place(entries, place.group_id, chunk, index)
        if not entries.living:
            del self._groups[place.group_id]


def _import_numpy(*, required: bool) -> Any:
    try:
        return importlib.import_module("numpy")
    except ImportError:
        if required:
            raise
        return None


def _floats(vector: bytes) -> tuple[float, ...]:
    whole = len(vector) // 4
    return struct.unpack_from(f"<{whole}f", vector) if whole * 4 == len(vector) else ()


def _is_unit(vector: Sequence[float]) -> bool:
    return abs(_dot(vector, vector) - 1) <= _UNIT_TOLERANCE  # false also for a NaN


def _sum_of_products(one: Iterable[float], other: Iterable[float]) -> float:
    return float(sum(map(operator.mul, one, other)))


_dot: Callable[[Iterable[float], Iterable[float]], float] = getattr(math, "sumprod", _sum_of_products)  # from 3.12 on


class _Chunk:
    """Up to `CHUNK_ENTRIES` entries of a group. Changed under the index's lock, read without."""

    __slots__ = ("_vectors", "keys", "living", "signatures")

    def __init__(self) -> None:
        self.keys: list[Optional[bytes]] = []  # None: there is no longer one
        self.living = 0
        self.signatures: list[int] = []  # 0: not yet signed
        self._vectors: list[bytes] = []

    def append(self, key: bytes, vector: bytes, signature: int) -> int:
        self._vectors.append(vector)
        self.keys.append(key)
        self.signatures.append(signature)  # last: it is by the signatures that a search comes upon an entry
        self.living += 1
        return len(self.keys) - 1

    def vector(self, index: int) -> bytes:
        return self._vectors[index]

    def forget(self, index: int) -> None:
        self.keys[index] = None
        self._vectors[index] = b""
        self.signatures[index] = 0
        self.living -= 1


class _MatrixChunk(_Chunk):
    """One whose vectors are the rows of a matrix."""

    __slots__ = ("_numpy", "matrix")

    def __init__(self, numpy: Any) -> None:
        super().__init__()
        self._numpy = numpy
        self.matrix: Any = None

    def append(self, key: bytes, vector: bytes, signature: int) -> int:
        used = len(self.keys)
        if self.matrix is None or used == len(self.matrix):
            # A new matrix: a search may be reading the old one.
            grown = self._numpy.zeros((max(2 * used, 1), len(vector) // 4), "<f4")
            if used:
                grown[:used] = self.matrix
            self.matrix = grown
        self.matrix[used] = self._numpy.frombuffer(vector, "<f4")
        self.keys.append(key)  # last: a search looks at as many rows as there are keys
        self.living += 1
        return used

    def vector(self, index: int) -> bytes:
        row: bytes = self.matrix[index].tobytes()
        return row

    def forget(self, index: int) -> None:
        self.keys[index] = None
        self.matrix[index] = 0
        self.living -= 1


class _Group:
    """The entries of a group that have one dimension, in chunks. Changed under the index's lock."""

    __slots__ = ("_numpy", "chunks", "living", "planes", "signed", "unsigned")

    def __init__(self, planes: Optional[Planes], numpy: Any) -> None:
        self._numpy = numpy
        self.planes = planes
        self.chunks: tuple[_Chunk, ...] = ()
        self.living = 0
        self.unsigned: list[tuple[_Chunk, int]] = []
        self.signed = False

    def append(self, key: bytes, vector: bytes, signature: int = 0) -> tuple[_Chunk, int]:
        if not self.chunks or len(self.chunks[-1].keys) >= CHUNK_ENTRIES:
            self.chunks += (_Chunk() if self.planes else _MatrixChunk(self._numpy),)
        chunk = self.chunks[-1]
        place = chunk, chunk.append(key, vector, signature)
        if self.planes and not signature:
            self.unsigned.append(place)
        self.living += 1
        return place

    def forget(self, chunk: _Chunk, index: int) -> list[tuple[bytes, _Chunk, int]]:
        """Remove an entry; returns where others are now that had to move."""
        chunk.forget(index)
        self.living -= 1
        with contextlib.suppress(ValueError):
            self.unsigned.remove((chunk, index))
        if 3 * chunk.living > len(chunk.keys) or (self.living and len(chunk.keys) < SIGNED_FROM):
            return []
        # Most of it is gaps. The others move to the end, and a search that is under way still has it as it was.
        self.chunks = tuple(other for other in self.chunks if other is not chunk)
        self.unsigned = [place for place in self.unsigned if place[0] is not chunk]
        self.living -= chunk.living
        moved = []
        for place, key in enumerate(chunk.keys):
            if key is not None:
                signature = chunk.signatures[place] if self.planes else 0
                moved.append((key, *self.append(key, chunk.vector(place), signature)))
        return moved

    def sign_one(self, planes: Planes) -> None:
        """Compute a missing signature. One thread at a time, and without the lock."""
        try:
            chunk, index = place = self.unsigned[0]
            chunk.signatures[index] = planes.signature(_floats(chunk.vector(index)))
            self.signed = True
            self.unsigned.remove(place)  # last: until then it is looked at as it is
        except (IndexError, ValueError):
            pass  # none is missing, or it was removed meanwhile


_GroupId = tuple[bytes, int]  # the name and the bytes of a vector


class _Place(NamedTuple):
    entries: _Group
    group_id: _GroupId
    chunk: _Chunk
    number: int


class _Best:
    """The most similar entry that was offered. Of one search."""

    def __init__(self, query: tuple[float, ...], at_least: float) -> None:
        self.query = query
        self.at_least = at_least
        self.found: Optional[tuple[bytes, float]] = None
        self._square = _dot(query, query)

    def offer(self, chunk: _Chunk, index: int) -> None:
        """Compare an entry exactly."""
        other = _floats(chunk.vector(index))
        key = chunk.keys[index]  # after the vector: that is taken away last, so what has a key has had its vector
        if key is None:
            return
        product = _dot(self.query, other)
        if not product >= self.at_least - 2 * _UNIT_TOLERANCE:
            return
        cosine = _cosine(product, self._square, _dot(other, other))
        if cosine >= self.at_least and (self.found is None or cosine > self.found[1]):
            self.found = (key, cosine)
            self.at_least = cosine


def _search_products(numpy: Any, chunks: Iterable[_Chunk], vector: bytes, best: _Best) -> None:
    query = numpy.frombuffer(vector, "<f4")
    for chunk in chunks:
        assert isinstance(chunk, _MatrixChunk)
        entries = len(chunk.keys)
        if not entries:
            continue
        products = _products(numpy, chunk.matrix[:entries], query)
        near = numpy.flatnonzero(products >= best.at_least - _PRODUCT_ERROR)
        if not len(near):
            continue
        for index in near[numpy.argsort(-products[near])].tolist():
            if products[index] < best.at_least - _PRODUCT_ERROR:
                break
            best.offer(chunk, index)


def _products(numpy: Any, rows: Any, query: Any) -> Any:
    # Not `rows @ query`: the linear algebra library would divide that among threads of its own, and where the cores
    # have other work each product then waits for the slowest of them, for 40 ms instead of 0.1.
    if hasattr(numpy, "vecdot"):  # from 2.0 on
        return numpy.vecdot(rows, query)
    return numpy.einsum("ij,j->i", rows, query)


def _search_signatures(planes: Planes, chunks: Iterable[_Chunk], best: _Best) -> None:
    query = planes.signature(best.query)
    limit = differing_at_most(best.at_least)
    near = [
        (differing, chunk, index)
        for chunk in chunks
        for index, signature in enumerate(chunk.signatures)
        if (differing := count_ones(signature ^ query)) <= limit
    ]
    near.sort(key=operator.itemgetter(0))
    for differing, chunk, index in near:
        # What has been found already asks for more; by hundredths, for the table of limits.
        if differing > limit and differing > differing_at_most(math.floor(best.at_least * 100) / 100):
            break
        best.offer(chunk, index)
