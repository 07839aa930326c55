"""Does the time of refusing a wrong key or token tell where it differs from a right one? In this process.

Owns nothing. After Reparaz, Balasch and Verbauwhede, "Dude, is my code constant time?" (2017): guesses that differ from
the right secret in the first, a middle or the last place are judged in random order, each call is timed, the slowest
tenth of all (interruptions of any kind) is cut off, and Welch's t-test compares each class with the guesses that are
wrong in every place. |t| beyond 4.5 is a leak: by chance alone it happens once in some 100 000 comparisons.
"""

from __future__ import annotations

import hashlib
import math
import random
import statistics
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Callable

from .processes import BenchError

if TYPE_CHECKING:
    from gateway.policy.auth import Authenticator

LEAK_T = 4.5
_CALLS = 60_000
_WARM_UP_CALLS = 2_000
_KEPT = 0.9
_LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_EVERYWHERE = "everywhere"


def refusal_times() -> dict[str, dict[str, float]]:
    """Returns, by what was guessed and where it differs: the mean nanoseconds, and t against wrong everywhere.

    Raises BenchError when this checkout cannot recognise keys and tokens.
    """
    try:
        from gateway.policy.auth import Authenticator
        from gateway.policy.tokens import TokenVerifier
        from gateway.settings import ApiKey
    except ImportError as exc:
        raise BenchError(f"authtiming: this checkout has no keys yet: {exc}") from exc
    rng = random.Random(7)
    key = _word(rng, 47)
    verifier = TokenVerifier(_word(rng, 32))
    token = verifier.sign({"sub": "alice", "exp": time.time() + 3_600}).encode()
    keys = Authenticator([ApiKey("alice", hashlib.sha256(key).digest(), "user")])
    tokens = Authenticator(verifier=verifier)
    signature = token.rindex(b".") + 1
    return {
        **_compare("key", keys, key, 0, len(key), rng),
        # Not its last character, which holds only some bits and may not be any letter.
        **_compare("token's signature", tokens, token, signature, len(token) - 1, rng),
    }


def _word(rng: random.Random, length: int) -> bytes:
    return bytes(rng.choice(_LETTERS) for _ in range(length))


def _compare(
    name: str, door: Authenticator, right: bytes, start: int, end: int, rng: random.Random
) -> dict[str, dict[str, float]]:
    places = {
        _EVERYWHERE: tuple(range(start, end)),
        "first place": (start,),
        "middle": ((start + end) // 2,),
        "last place": (end - 1,),
    }
    order = [place for place in places for _ in range(_CALLS // len(places))]
    rng.shuffle(order)
    # Another guess for each call: no text, with its place in memory and in the caches, stands for a class.
    guesses = [b"Bearer " + _changed(right, places[place], rng) for place in order]
    _time(door, guesses[:_WARM_UP_CALLS])
    times_ns = _time(door, guesses)
    limit_ns = sorted(times_ns)[int(len(times_ns) * _KEPT)]
    kept: dict[str, list[int]] = {place: [] for place in places}
    for place, time_ns in zip(order, times_ns):
        if time_ns <= limit_ns:
            kept[place].append(time_ns)
    return {
        f"{name}, wrong in the {place}" if place != _EVERYWHERE else f"{name}, wrong {place}": {
            "mean_ns": statistics.fmean(times),
            "t": 0.0 if place == _EVERYWHERE else _welch_t(times, kept[_EVERYWHERE]),
        }
        for place, times in kept.items()
    }


def _changed(right: bytes, places: Sequence[int], rng: random.Random) -> bytes:
    """`right` with another letter in each of these places."""
    wrong = bytearray(right)
    for place in places:
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


def _welch_t(ones: Sequence[int], others: Sequence[int]) -> float:
    """Welch's t of two samples; 0 when neither varies."""
    error = math.sqrt(statistics.variance(ones) / len(ones) + statistics.variance(others) / len(others))
    return (statistics.fmean(ones) - statistics.fmean(others)) / error if error else 0.0
