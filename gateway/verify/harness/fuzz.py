"""Values like those seen: fresh ones and variations, in the near domain or outside of it.

Runs inside the sandbox. All randomness comes from the `Random` given, so equal arguments give equal values. Small
values come first and often: nearly every mistake shows on a short list or a small number, and on repeats and ties.
"""

from __future__ import annotations

from random import Random
from typing import Union

from gateway.verify.harness.domain import Shape  # in the sandbox this file stands before
from gateway.verify.harness.mining import Pool
from gateway.verify.harness.texts import Texts

LIST_MAX = 40
DEPTH_MAX_MADE = 5
_ROUND_INTS = (10, 11, 12, 13, 20, 49, 50, 99, 100, 101)


class Fuzz:
    """Makes values. `near`: keep to what a Shape shows. Not thread-safe."""

    def __init__(self, pool: Pool, rng: Random, near: bool) -> None:
        self._pool = pool
        self._rng = rng
        self._near = near
        self._texts = Texts(pool, rng, near)

    def fresh(self, shape: Shape, depth: int = 0) -> object:
        """Returns a new value of one of the kinds that `shape` shows."""
        kind = self._rng.choice(shape.kinds) if shape.kinds else "int"
        if kind == "bool":
            return self._rng.random() < 0.5
        if kind == "int":
            return self._int(shape)
        if kind == "float":
            return self._float(shape)
        if kind == "str":
            return self._texts.fresh(shape)
        if kind == "bytes":
            return self._texts.fresh(shape).encode("utf-8", "replace")
        if kind in ("list", "tuple", "set", "dict") and depth < DEPTH_MAX_MADE:
            return self._container(kind, shape, depth)
        return None

    def varied(self, value: object, shape: Shape, depth: int = 0) -> object:
        """Returns `value` with a small change, or a fresh one."""
        rng = self._rng
        if rng.random() < 0.25 or depth >= DEPTH_MAX_MADE:
            return self.fresh(shape, depth)
        if isinstance(value, bool) or value is None:
            return self.fresh(shape, depth)
        if isinstance(value, int):
            if self._near and shape.is_binary():
                return 1 - value
            return self._allowed_int(value + rng.choice((1, -1, 2, -2, value, -2 * value)), shape, value)
        if isinstance(value, float):
            step = rng.choice((1.0, -1.0, 0.5, -0.5, 0.01, -0.01, -value / 2, value, -2 * value))
            return self._allowed_float(value + step, shape, value)
        if isinstance(value, str):
            return self._texts.varied(value, shape)
        if isinstance(value, (list, tuple)):
            changed = self._varied_list(list(value), shape, depth)
            return changed if isinstance(value, list) else tuple(changed)
        if isinstance(value, dict):
            return self._varied_dict(dict(value), shape, depth)
        return self.fresh(shape, depth)

    def _int(self, shape: Shape) -> int:
        rng, pool = self._rng, self._pool
        if self._near and shape.is_binary():
            return rng.randrange(2)
        way = rng.randrange(10)
        seen = [int(number) for number in shape.numbers()] or [3]
        if way <= 1 and pool.bounds:
            made = rng.choice(pool.bounds) + rng.choice((0, 1, -1))
        elif way <= 3 and pool.ints:
            made = rng.choice(pool.ints) + rng.choice((0, 0, 1, -1))
        elif way <= 5:
            made = rng.randint(0, 12)
        elif way == 6:
            made = rng.randint(0, max(12, int(min(shape.largest, 1000) * 1.5)))
        elif way == 7:
            made = rng.choice(_ROUND_INTS)
        else:
            made = rng.choice(seen) + rng.choice((0, 1, -1, 2))
        if rng.random() < 0.35:
            made = -made
        return self._allowed_int(made, shape, rng.choice(seen))

    def _allowed_int(self, made: int, shape: Shape, otherwise: int) -> int:
        if abs(made) > max(150, 2 * shape.largest):
            made = otherwise
        if made < 0 and self._near and not shape.negative:
            made = -made
        if made == 0 and self._near and not (shape.zero or shape.negative):
            made = 1
        return made

    def _float(self, shape: Shape) -> float:
        rng = self._rng
        seen = [float(number) for number in shape.numbers()] or [1.5]
        way = rng.randrange(7)
        if way == 0:
            made = float(rng.randint(0, 10))
        elif way == 1:
            made = rng.randint(0, 20) / 2
        elif way == 2:
            made = round(rng.uniform(0, max(4.0, min(shape.largest, 1e6))), rng.choice((1, 1, 2, 3)))
        elif way == 3 and self._pool.floats:
            made = rng.choice(self._pool.floats)
        elif way == 4 and self._pool.ints:
            made = float(rng.choice(self._pool.ints))
        else:
            made = rng.choice(seen) + rng.choice((0.0, 1.0, -1.0, 0.5, 0.1, -0.01))
        if rng.random() < 0.3:
            made = -made
        return self._allowed_float(made, shape, rng.choice(seen))

    def _allowed_float(self, made: float, shape: Shape, otherwise: float) -> float:
        if not abs(made) <= 1e12:
            made = otherwise
        if made < 0 and self._near and not shape.negative:
            made = -made
        if made == 0 and self._near and not (shape.zero or shape.negative):
            made = 0.5
        return round(made, 4)

    def _container(self, kind: str, shape: Shape, depth: int) -> object:
        rng = self._rng
        elements = shape.elements or _INTS
        size = rng.choice((0, 1, 1, 2, 2, 3, 3, 4, 5, 6, min(12, max(1, shape.longest))))
        if size == 0 and self._near and not shape.empty:
            size = 1
        if self._near and shape.is_pair():
            size = 2
        if kind == "dict":
            entries = shape.entries or _INTS
            return {_hashable(self.fresh(elements, depth + 1)): self.fresh(entries, depth + 1) for _ in range(size)}
        made = self._allowed_list(self._elements(elements, size, depth), shape)
        if kind == "set":
            return {_hashable(part) for part in made}
        return made if kind == "list" else tuple(made)

    def _elements(self, elements: Shape, size: int, depth: int) -> list[object]:
        """New ones, ones seen, and repeats; in no order, in order, or the same from both ends."""
        rng = self._rng
        seen = elements.seen
        made: list[object] = []
        for _ in range(size):
            way = rng.random()
            if made and way < 0.25:
                made.append(rng.choice(made))
            elif seen and way < 0.45:
                made.append(rng.choice(seen))
            else:
                made.append(self.fresh(elements, depth + 1))
        order = rng.randrange(8)
        if order <= 1:
            made = _sorted(made)
        if order == 1:
            made.reverse()
        elif order == 2:
            made += made[::-1][rng.randrange(2) :]
        return made

    def _varied_list(self, values: list[object], shape: Shape, depth: int) -> list[object]:
        rng = self._rng
        elements = shape.elements or _INTS
        place = rng.randrange(len(values)) if values else 0
        way = rng.randrange(12)
        if way == 0:
            values = values[:place] + values[place + 1 :]
        elif way <= 2 and values:
            values.insert(rng.randint(0, len(values)), rng.choice(values))
        elif way == 3 and values:
            other = rng.randrange(len(values))
            values[place], values[other] = values[other], values[place]
        elif way == 4:
            rng.shuffle(values)
        elif way == 5:
            values.reverse()
        elif way == 6:
            values = _sorted(values)
        elif way == 7 and values:
            values = values[place:] if rng.random() < 0.5 else values[: place + 1]
        elif way == 8:
            values = values + [self.fresh(elements, depth + 1) for _ in range(rng.randint(1, 3))]
        elif way == 9:
            values = [self.varied(value, elements, depth + 1) for value in values]
        elif values:
            values[place] = self.varied(values[place], elements, depth + 1)
        if not values and self._near and not shape.empty:
            values = [self.fresh(elements, depth + 1)]
        return self._allowed_list(values[:LIST_MAX], shape)

    def _allowed_list(self, values: list[object], shape: Shape) -> list[object]:
        """Rows of one length, where all seen are so; of a pair, two; an even number where no other is seen."""
        if not self._near:
            return values
        if shape.is_pair() and len(values) != 2:
            values = (values + [self.fresh(shape.elements or _INTS, 1) for _ in range(2)])[:2]
        if len(values) % 2 and shape.is_even():
            values = values[:-1] or [*values, self.fresh(shape.elements or _INTS, 1)]
        rows = [value for value in values if isinstance(value, list)]
        if rows and len(rows) == len(values) and shape.rectangular and len(shape.seen) > 1:
            size = max(1, min(map(len, rows)))
            return [row[:size] for row in rows]
        return values

    def _varied_dict(self, values: dict[object, object], shape: Shape, depth: int) -> object:
        rng = self._rng
        keys = sorted(values, key=repr)
        key = rng.choice(keys) if keys else None
        way = rng.randrange(4)
        if way == 0 and keys:
            del values[key]
        elif way == 1 and keys:
            values[key] = self.varied(values[key], shape.entries or _INTS, depth + 1)
        elif way == 2 and keys:
            entry = values.pop(key)
            values[_hashable(self.varied(key, shape.elements or _INTS, depth + 1))] = entry
        else:
            values[_hashable(self.fresh(shape.elements or _INTS, depth + 1))] = self.fresh(
                shape.entries or _INTS, depth + 1
            )
        return values if values or shape.empty or not self._near else self.fresh(shape, depth)


def _sorted(values: list[object]) -> list[object]:
    try:
        return sorted(values)  # type: ignore[type-var]
    except TypeError:
        return sorted(values, key=repr)


def _hashable(value: object) -> Union[str, int, float, tuple[object, ...], None]:
    if isinstance(value, (str, int, float, type(None))):
        return value
    return tuple(_hashable(part) for part in value) if isinstance(value, (list, tuple)) else repr(value)


_INTS = Shape()
for _number_seen in (1, 2, 3, 10):
    _INTS.observe(_number_seen)
