"""What a result is compared by: one text per value, equal where the values are equal.

Runs inside the sandbox, in front of the harness that uses it, and in tests; standard library only. Equal means `==`
(1, 1.0 and True are one), but for floats, which are compared to six significant digits, so that the order of an
addition makes no difference. Looks only into objects whose type is exactly a built-in one: no method of a class that
a program defined is ever called. Time and length are bounded, whatever the value.

Whole numbers are exact whatever their size, and so are floats that are whole and below 1e15, because `==` is what
they would be compared by; above, a float keeps six digits.
"""

from __future__ import annotations

import hashlib

KEY_CHARS = 300  # a longer key is replaced by its digest
DEPTH_MAX = 64
NODES_MAX = 50_000
TEXT_CHARS_MAX = 1 << 20  # of one text; of a longer one the start, the end and the length count
INT_BITS_TEXT_MAX = 4096  # longer ones are not written in decimal: that takes quadratic time, and may be forbidden
WHOLE_FLOAT_MAX = 1e15
NOISE_ABSOLUTE = 1e-14  # 0.1 + 0.2 - 0.3 is nothing
NOISE_RELATIVE = 1e-9

UNSEEN = "o"  # begins the key of what only its type's name is known of, or of a part of it
JUDGE = "judge"  # the kind of an error that is none of the program's: it could not be judged
NOT = "≠"  # begins what an example demands that the result is not
ERROR = "!"  # a call that raised or took too long; what follows it is for people
NO_INPUT = "no input"  # what follows it, where a program failed that had nothing to read


class Opaque:
    """Stands for a value that only the program's own process can hold: `name` is its type's."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class _TooLarge(Exception):
    pass


def key_of(value: object) -> str:
    """Returns the key of `value`: at most KEY_CHARS characters and a mark of one, never beginning with "!".

    Raises nothing; a value with more than NODES_MAX parts is told from others by its type and length only.
    Thread-safe as long as nothing changes the value meanwhile.
    """
    walk = _Walk()
    try:
        key = walk.key(value, 0)
        return UNSEEN + key if walk.has_opaque and not key.startswith(UNSEEN) else key
    except _TooLarge:
        return f"large {_type_name(type(value))} {len(value)}"  # type: ignore[arg-type]
    except (RuntimeError, MemoryError):  # changed under the hand, or too much for this process
        return "unreadable"


def error_key(name: str) -> str:
    """Returns the key of a call that gave no value. `name` says why; `comparable` takes it off again."""
    return ERROR + name[: KEY_CHARS - 1]


def is_error(key: str) -> bool:
    """Whether `key` stands for an exception or a call that took too long."""
    return key.startswith(ERROR)


def is_unseen(key: str) -> bool:
    """Whether two values with this key may differ in what no key tells: functions, objects of unknown classes, and
    values with too many parts."""
    return key.startswith((UNSEEN, "large ", "unreadable"))


def comparable(key: str) -> str:
    """Returns what `key` is compared by: all exceptions are one, since which one is raised is seldom specified."""
    return ERROR if key.startswith(ERROR) else key


def is_denial(expected: str) -> bool:
    """Whether an example demands only what the result is not."""
    return expected.startswith(NOT)


def matches(key: str, expected: str) -> bool:
    """Whether a result is the one an example gives, or not the one that it denies. `("a")` in a prompt often means the
    tuple of one."""
    if is_denial(expected):
        return not is_error(key) and not matches(key, expected[len(NOT) :])
    return not is_error(key) and (key == expected or key == f"({expected})")


class _Walk:
    """One value's way to its key: counts the parts seen, and knows the containers it is inside of."""

    def __init__(self) -> None:
        self._nodes = 0
        self._path: set[int] = set()
        self.has_opaque = False

    def key(self, value: object, depth: int) -> str:
        self._nodes += 1
        if self._nodes > NODES_MAX:
            raise _TooLarge
        kind = type(value)
        if value is None:
            return "None"
        if kind is bool or kind is int:
            return _int_key(int(value))  # type: ignore[call-overload]
        if kind is float:
            return _float_key(value)  # type: ignore[arg-type]
        if kind is str:
            return _short("s" + repr(_cut_text(value)))  # type: ignore[arg-type]
        if kind is bytes or kind is bytearray:
            return _short("b" + repr(_cut_bytes(bytes(value))))  # type: ignore[call-overload]
        if kind is complex:
            return _complex_key(value)  # type: ignore[arg-type]
        if kind in _CONTAINERS:
            return self._container(value, kind, depth)
        self.has_opaque = True
        return UNSEEN + _short(value.name if kind is Opaque else _type_name(kind))  # type: ignore[attr-defined]

    def _container(self, value: object, kind: type, depth: int) -> str:
        if depth >= DEPTH_MAX:
            self.has_opaque = True
            return "deep"
        if id(value) in self._path:
            return "cycle"
        self._path.add(id(value))
        try:
            if kind is dict:
                pairs = [f"{self.key(k, depth + 1)}:{self.key(v, depth + 1)}" for k, v in value.items()]  # type: ignore[attr-defined]
                return _short("{:" + ",".join(sorted(pairs)) + "}")
            parts = [self.key(part, depth + 1) for part in value]  # type: ignore[attr-defined]
        finally:
            self._path.discard(id(value))
        if kind is list:
            return _short("[" + ",".join(parts) + "]")
        if kind is tuple:
            return _short("(" + ",".join(parts) + ")")
        return _short("{" + ",".join(sorted(parts)) + "}")


_CONTAINERS = frozenset({list, tuple, set, frozenset, dict})


def _int_key(value: int) -> str:
    if value.bit_length() <= INT_BITS_TEXT_MAX:
        return _short(str(value))
    return _digest(value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def _float_key(value: float) -> str:
    if value != value:
        return "nan"
    if value in (float("inf"), float("-inf")):
        return str(value)
    if abs(value) < NOISE_ABSOLUTE:
        return "0"
    if abs(value) < WHOLE_FLOAT_MAX:
        nearest = round(value)
        if abs(value - nearest) <= abs(value) * NOISE_RELATIVE:
            return str(nearest)
    text = f"{value:.6g}"
    rounded = float(text)
    return _int_key(int(rounded)) if rounded.is_integer() else text  # (6 digits of 2.9999999 are those of 3)


def _complex_key(value: complex) -> str:
    if abs(value.imag) < NOISE_ABSOLUTE:
        return _float_key(value.real)
    return f"c{_float_key(value.real)},{_float_key(value.imag)}"


def _cut_text(text: str) -> str:
    if len(text) <= TEXT_CHARS_MAX:
        return text
    half = TEXT_CHARS_MAX // 2
    return f"{text[:half]}{len(text)}{text[-half:]}"


def _cut_bytes(data: bytes) -> bytes:
    if len(data) <= TEXT_CHARS_MAX:
        return data
    half = TEXT_CHARS_MAX // 2
    return b"%b%d%b" % (data[:half], len(data), data[-half:])


def _type_name(kind: type) -> str:
    # Not `kind.__name__`: a metaclass may have made that a method of its own.
    return str(vars(type)["__name__"].__get__(kind))


def _short(key: str) -> str:
    return key if len(key) <= KEY_CHARS else _digest(key.encode("utf-8", "surrogatepass"))


def _digest(data: bytes) -> str:
    return "h" + hashlib.sha256(data).hexdigest()[:40]
