"""Does the time of refusing a wrong key or token tell where it differs from a right one? In this process.

Owns nothing. After Reparaz, Balasch and Verbauwhede, "Dude, is my code constant time?" (2017): guesses that differ from
the right secret in one place, the first, the middle or the last, are judged in random order, each call is timed, and
the slowest tenth of all (interruptions of any kind) is cut off. That is repeated with one secret after the other, and
Student's t-test asks whether a place's mean differs from the first place's; between repetitions, because within one
the times are not independent: what lies where in the caches stays so. |t| beyond 4.5 is a leak: by chance alone it
happens once in some 2 000 comparisons. Guesses that are wrong everywhere are no class: how long a guess takes to be
read depends on its own letters, which whoever guesses knows anyway.
"""

from __future__ import annotations

import gc
import hashlib
import math
import random
import statistics
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Callable

from .processes import BenchError

if TYPE_CHECKING:
    from gateway.keys.auth import Authenticator

LEAK_T = 4.5
_REPETITIONS = 16
_CALLS = 6_000
_WARM_UP_CALLS = 500
_KEPT = 0.9
_LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_PLACES = ("first place", "middle", "last place")

Secret = tuple["Authenticator", bytes, int, int]
"""Who knows it, the right text, and from where up to where a guess may differ."""


def refusal_times() -> dict[str, dict[str, float]]:
    """Returns, by what was guessed and where it differs: the mean nanoseconds, and t against the first place.

    Raises BenchError when this checkout cannot recognise keys and tokens.
    """
    try:
        import gateway.keys.auth  # noqa: F401
    except ImportError as exc:
        raise BenchError(f"authtiming: this checkout has no keys yet: {exc}") from exc
    rng = random.Random()  # never the same order: whatever else has a rhythm would meet the same places each time
    return {**_compare("key", _key, rng), **_compare("token's signature", _token, rng)}


def _key(rng: random.Random) -> Secret:
    from gateway.keys.auth import Authenticator
    from gateway.settingvalues import ApiKey

    key = _word(rng, 47)
    return Authenticator([ApiKey("alice", hashlib.sha256(key).digest(), "user")]), key, 0, len(key)


def _token(rng: random.Random) -> Secret:
    from gateway.keys.auth import Authenticator
    from gateway.keys.jwt import TokenVerifier

    verifier = TokenVerifier(_word(rng, 32))
    token = verifier.sign({"sub": "alice", "exp": time.time() + 3_600}).encode()
    # Not its last character, which holds only some bits and may not be any letter.
    return Authenticator(verifier=verifier), token, token.rindex(b".") + 1, len(token) - 1


def _word(rng: random.Random, length: int) -> bytes:
    return bytes(rng.choice(_LETTERS) for _ in range(length))


def _compare(name: str, make: Callable[[random.Random], Secret], rng: random.Random) -> dict[str, dict[str, float]]:
    means_ns: list[list[float]] = []
    for _ in range(_REPETITIONS):
        means_ns.append(_mean_times_ns(make(rng), rng))
    result = {}
    for index, place in enumerate(_PLACES):
        differences = [means[index] - means[0] for means in means_ns]
        mean_ns = statistics.fmean(means[index] for means in means_ns)
        result[f"{name}, wrong in the {place}"] = {"mean_ns": mean_ns, "t": _student_t(differences)}
    return result


def _mean_times_ns(secret: Secret, rng: random.Random) -> list[float]:
    """Returns the mean time of refusing guesses at one secret, for each of the places."""
    door, right, start, end = secret
    places = (start, (start + end) // 2, end - 1)
    order = [index for index in range(len(places)) for _ in range(_CALLS // len(places))]
    rng.shuffle(order)
    # Another guess for each call: no text, with its place in memory and in the caches, stands for a class.
    guesses = [b"Bearer " + _changed(right, places[index], rng) for index in order]
    _time(door, guesses[:_WARM_UP_CALLS])
    gc.disable()
    try:
        times_ns = _time(door, guesses)
    finally:
        gc.enable()
    limit_ns = sorted(times_ns)[int(len(times_ns) * _KEPT)]
    kept: list[list[int]] = [[] for _ in places]
    for index, time_ns in zip(order, times_ns):
        if time_ns <= limit_ns:
            kept[index].append(time_ns)
    return [statistics.fmean(times) for times in kept]


def _changed(right: bytes, place: int, rng: random.Random) -> bytes:
    """`right` with another letter in that place."""
    wrong = bytearray(right)  # not put together from slices: their lengths would lead each class to its own memory
    wrong[place] = rng.choice([letter for letter in _LETTERS if letter != right[place]])
    return bytes(wrong)


def _time(door: Authenticator, headers: Sequence[bytes]) -> list[int]:
    """Returns the nanoseconds of each refusal."""
    from gateway.errors import RequestRefused

    clock: Callable[[], int] = time.perf_counter_ns
    nothing: frozenset[bytes] = frozenset()
    times_ns = []
    for header in headers:
        began_ns = clock()
        try:
            door.identify(header, None, nothing)
        except RequestRefused:
            times_ns.append(clock() - began_ns)
        else:
            raise BenchError("authtiming: a wrong key or token was accepted")
    return times_ns


def _student_t(differences: Sequence[float]) -> float:
    """Student's t of paired differences; 0 when they do not vary."""
    error = math.sqrt(statistics.variance(differences) / len(differences))
    return statistics.fmean(differences) / error if error else 0.0
