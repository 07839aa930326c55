"""How the same bytes may be cut into segments, and how bytes may be spoilt. Pure functions of a generator."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

EACH_BYTE_MAX = 400  # longer ones are not sent byte by byte: a segment costs a round
T = TypeVar("T")
ODD_BYTES = (
    b"\0",
    b"\r",
    b"\n",
    b"\r\n",
    b"\t",
    b" ",
    b"\x0b",
    b"\x0c",
    b"\x7f",
    b"\x80",
    b"\xff",
    b"\xc3\xa9",
    b"\x85",
)


def at(data: bytes, places: Sequence[int]) -> list[bytes]:
    """`data` cut at these places."""
    cuts = sorted({place for place in places if 0 < place < len(data)})
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)])] if data else []


def every(data: bytes) -> list[bytes]:
    """A byte each; the middle of something long comes in one piece."""
    if len(data) <= EACH_BYTE_MAX:
        return at(data, range(len(data)))
    half = EACH_BYTE_MAX // 2
    return at(data, [*range(half), *range(len(data) - half, len(data))])


def some(data: bytes, rng: random.Random, most: int = 6) -> list[bytes]:
    """Cut at a few random places."""
    return at(data, [rng.randrange(len(data) + 1) for _ in range(rng.randint(1, most))])


def around(data: bytes, marks: Sequence[bytes], rng: random.Random) -> list[bytes]:
    """Cut inside and around what parsers look for."""
    places = []
    for mark in marks:
        start = data.find(mark)
        while start >= 0:
            places += [start, start + len(mark), start + rng.randrange(len(mark) + 1)]
            start = data.find(mark, start + 1)
    return at(data, rng.sample(places, min(len(places), rng.randint(1, 12))) if places else [])


def spoil(data: bytes, rng: random.Random, times: int) -> bytes:
    """`data` with a few bytes changed, dropped, doubled or put in."""
    for _ in range(times):
        where = rng.randrange(len(data) + 1)
        kind = rng.randrange(5)
        if kind == 0:
            data = data[:where] + rng.choice(ODD_BYTES) + data[where:]
        elif kind == 1:
            data = data[:where] + data[where + rng.randint(1, 3) :]
        elif kind == 2:
            data = data[:where] + bytes((rng.randrange(256),)) + data[where + 1 :]
        elif kind == 3:
            piece = data[where : where + rng.randint(1, 20)]
            data = data[:where] + piece + data[where:]
        else:
            other = rng.randrange(len(data) + 1)
            data = data[:where] + data[other : other + rng.randint(1, 8)] + data[where:]
    return data


def mostly(rng: random.Random, usual: T, *odd: T, share: float = 0.8) -> T:
    """`usual` in that share of cases, else one of the others."""
    return usual if rng.random() < share else rng.choice(odd)
