"""On which side of random hyperplanes a vector lies: signatures, and how far those of similar vectors differ.

Owns the hyperplanes, each made of a seed and a dimension, and the limit up to which two signatures are looked at. Pure
values: nothing changes once it is made, and what is remembered here is only what would be computed again, so there is
no lock. Keeps no vector and no signature, compares no vectors exactly, does no I/O, reads no clock.
"""

from __future__ import annotations

import functools
import math
import random
import struct
from collections.abc import Sequence
from typing import Callable

SIGNATURE_BITS = 2048
MISS_PROBABILITY = 0.0005
_TURNED_RADIANS = 0.002  # by how much rounding for a signature may turn a vector


@functools.lru_cache(maxsize=256)
def differing_at_most(cosine: float) -> int:
    """In how many bits two signatures of vectors with this cosine differ, but for `MISS_PROBABILITY` of them."""
    angle = min(math.acos(min(cosine, 1.0)) + _TURNED_RADIANS, math.pi / 2)
    differs = angle / math.pi
    tail = 0.0
    most = min(int(SIGNATURE_BITS * differs + 8 * math.sqrt(SIGNATURE_BITS * differs) + 8), SIGNATURE_BITS)
    while tail < MISS_PROBABILITY:
        ways = math.lgamma(SIGNATURE_BITS + 1) - math.lgamma(most + 1) - math.lgamma(SIGNATURE_BITS - most + 1)
        tail += math.exp(ways + most * math.log(differs) + (SIGNATURE_BITS - most) * math.log1p(-differs))
        most -= 1
    return most + 1


def count_ones_by_halves(number: int) -> int:
    """How many bits of a signature are 1."""
    # Within pairs, fours and bytes; then the bytes of one half of it with those of the other, until 16 are left.
    number -= (number >> 1) & _BY_HALVES[0]
    number = (number & _BY_HALVES[1]) + ((number >> 2) & _BY_HALVES[1])
    number = (number + (number >> 4)) & _BY_HALVES[2]
    for bits in (1024, 512, 256, 128):
        number = (number >> bits) + (number & ((1 << bits) - 1))
    return sum(number.to_bytes(16, "little"))


_BY_HALVES = [int.from_bytes(pattern * (SIGNATURE_BITS // 8), "little") for pattern in (b"\x55", b"\x33", b"\x0f")]
count_ones: Callable[[int], int] = getattr(int, "bit_count", count_ones_by_halves)  # CPython 3.9 has none


@functools.lru_cache(maxsize=8)
def planes_for(dimension: int, seed: int) -> Planes:
    """The hyperplanes for vectors of `dimension`, always the same for one `seed`."""
    return Planes(dimension, seed)


class Planes:
    """The hyperplanes for one dimension: rows of two randomised Walsh-Hadamard transforms. Never changes.

    The bits of such rows vary no more than those of independent ones, for the rows of a transform are orthogonal (Ji
    and others, Super-Bit Locality-Sensitive Hashing, NIPS 2012); the first of the two spreads a vector that has few
    large coordinates. All coordinates are lanes of one big integer, which holds each with an offset, so that none is
    negative: a step of the transform is then nine operations on integers instead of hundreds on floats.
    """

    def __init__(self, dimension: int, seed: int) -> None:
        size = 256  # in fewer lanes the few large coordinates of a vector would not be spread enough
        while size < dimension:
            size *= 2
        self._lane_bits = lane_bits = 32 if size <= 512 else 64
        self._offset = 1 << (lane_bits - 2)
        self._most = (1 << min(lane_bits - 2 * size.bit_length() - 1, 24)) - 1  # grows by `size` in each transform
        self._pack = struct.Struct(f"<{size}{'I' if lane_bits == 32 else 'Q'}").pack
        self._padding = [self._offset] * (size - dimension)
        self._ones = self._lanes([1] * size)
        offsets = self._ones * self._offset
        full = (1 << lane_bits) - 1
        self._steps = []
        for stride in (1 << step for step in range(size.bit_length() - 1)):
            mask = self._lanes(([full] * stride + [0] * stride) * (size // (2 * stride)))
            self._steps.append((stride * lane_bits, mask, mask & offsets))
        self._blocks = max(SIGNATURE_BITS // size, 1)
        chance = random.Random(f"{seed}/{dimension}")
        self._signs = []
        for _ in range(1 + self._blocks):
            mask = self._lanes([chance.choice((0, full)) for _ in range(size)])
            self._signs.append((mask, mask & (2 * offsets)))
        self._width = min(size, SIGNATURE_BITS) * lane_bits

    def signature(self, vector: Sequence[float]) -> int:
        """A bit for each plane: on which side of it `vector` lies."""
        scale = self._most / (max(map(abs, vector), default=0.0) or 1.0)
        offset = self._offset + 0.5
        lanes = [int(value * scale + offset) for value in vector]
        spread = self._transformed(int.from_bytes(self._pack(*lanes, *self._padding), "little"), *self._signs[0])
        sides = 0
        for block in range(self._blocks):
            image = self._transformed(spread, *self._signs[1 + block])
            sides |= ((image >> (self._lane_bits - 2)) & self._ones) << block
        # Each lane has as many bits of it as there are blocks; the empty bits of one half take those of the other.
        width, used = self._width, self._blocks
        sides &= (1 << width) - 1
        while width > SIGNATURE_BITS:
            width //= 2
            sides = (sides & ((1 << width) - 1)) | ((sides >> width) << used)
            used *= 2
        return sides

    def _transformed(self, lanes: int, signs: int, doubled_offsets: int) -> int:
        kept = lanes & ~signs
        lanes = kept | (doubled_offsets - (lanes ^ kept))
        for shift, mask, offsets in self._steps:
            one = lanes & mask
            other = (lanes >> shift) & mask
            lanes = (one + other - offsets) | ((one + offsets - other) << shift)
        return lanes

    def _lanes(self, values: Sequence[int]) -> int:
        return int.from_bytes(self._pack(*values), "little")
