"""What Redis is asked of a request's limits, and what its reply says.

Owns nothing but two bounded tables of what has been worked out: the sizes of limits, and the names of scopes. Both are
dicts whose single operations are atomic; two threads that miss at once work the same out twice. No lock, no I/O.

Names in Redis: `{igw}:l:<scope>` is what a scope has let pass, `{igw}:p:<key>` the places held of a key, `{igw}:peers`
the gateways. No name holds a key's, an address's or a model's: these are digests. The braces have a cluster keep all of
them on one node, as one script needs them together.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import NamedTuple, Optional, Union

from gateway.limits.addresses import address_group
from gateway.limits.gcra import NEVER_S, Gcra
from gateway.limits.limiter import Refusal, Subject
from gateway.limits.quotas import EVERYBODY, Bursts, KeyLimits, RateLimits, Reading, sized
from gateway.shared.redislink import Command
from gateway.shared.scripts import ADMIT, CHARGE, SETTLE

PEERS = b"{igw}:peers"
OWN_TIME = -1.0  # Redis' own

_LIMIT = b"{igw}:l:"
_PLACES = b"{igw}:p:"
_TABLE_MAX = 8192
_SCOPE = struct.Struct(">5d")
_CHARGE = struct.Struct(">7d")
_ADMIT = struct.Struct(">4d")


class Sizes(NamedTuple):
    """The limits of one scope as they are counted: None: there is no such limit."""

    requests: Optional[Gcra]
    tokens: Optional[Gcra]
    packed: bytes


class Counted(NamedTuple):
    """A scope of a request that has a rate."""

    name: str
    key: bytes
    sizes: Sizes


class Question(NamedTuple):
    """What is asked for one request."""

    counted: tuple[Counted, ...]
    tokens: int
    places: int
    """How many requests its key may have at a time; 0: any number."""
    held: bytes
    """What the places held of its key are named."""


class Told(NamedTuple):
    """What Redis has decided. `ahead_s`: of each scope, how far the TATs of requests and tokens are ahead."""

    peers: int
    wait_s: float
    which: int
    full: bool
    ahead_s: tuple[tuple[float, float], ...]
    numbers: tuple[float, ...]

    @property
    def passes(self) -> bool:
        """Whether it has taken what was asked for."""
        return self.wait_s == 0.0 and not self.full


class Scopes:
    """Makes questions and reads replies. Thread-safe. `everybody`, `address_rpm`, `bursts`: as of the `Limiter`."""

    def __init__(self, everybody: RateLimits, address_rpm: Optional[int], bursts: Bursts) -> None:
        self._bursts = bursts
        self._table: dict[tuple[Optional[int], Optional[int], float], Sizes] = {}
        self._names: dict[str, bytes] = {}
        self._address = self._sizes(address_rpm, None, 1.0) if address_rpm else None
        self._everybody: Optional[Counted] = None
        if any(everybody):
            sizes = self._sizes(everybody.rpm, everybody.tpm, 1.0)
            self._everybody = Counted(EVERYBODY, _LIMIT + b"g", sizes)

    def question(self, subject: Subject, factor: float) -> Question:
        """What is to be asked for a request, in the order of the `Limiter`'s scopes. `factor`: of its key's limits."""
        counted: list[Counted] = []
        limits: Union[KeyLimits, RateLimits] = subject.key_limits
        key = self._digest("k:" + subject.key_name if subject.key_name is not None else "")
        if limits.rpm or limits.tpm:
            counted.append(Counted("key", _LIMIT + key, self._sizes(limits.rpm, limits.tpm, factor)))
        if self._address is not None:
            group = address_group(subject.address)
            text = group if isinstance(group, str) else group.hex()
            counted.append(Counted("address", _LIMIT + self._digest("a:" + text), self._address))
        limits = subject.model_limits
        if limits.rpm or limits.tpm:
            name = _LIMIT + self._digest("m:" + subject.model)
            counted.append(Counted("model", name, self._sizes(limits.rpm, limits.tpm, 1.0)))
        if self._everybody is not None:
            counted.append(self._everybody)
        return Question(tuple(counted), subject.tokens_estimate, subject.key_limits.concurrency or 0, _PLACES + key)

    def _sizes(self, rpm: Optional[int], tpm: Optional[int], factor: float) -> Sizes:
        sizes = self._table.get((rpm, tpm, factor))
        if sizes is None:
            requests = sized(None, Gcra(1, 1), rpm, factor, self._bursts.requests, 0.0)
            tokens = sized(None, Gcra(1, 1), tpm, factor, self._bursts.tokens, 0.0)
            packed = _SCOPE.pack(*_numbers(requests)[:2], *_numbers(tokens))
            if len(self._table) >= _TABLE_MAX:
                self._table.clear()
            sizes = self._table[rpm, tpm, factor] = Sizes(requests, tokens, packed)
        return sizes

    def _digest(self, text: str) -> bytes:
        digest = self._names.get(text)
        if digest is None:
            digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest().encode()
            if len(self._names) >= _TABLE_MAX:
                self._names.clear()
            self._names[text] = digest
        return digest


def admitting(question: Question, place: bytes, lease_s: float, now_s: float, whole: bool) -> Command:
    """Take what a request needs, or nothing of it. `place`: the name of the place that it would hold."""
    head = _ADMIT.pack(now_s, question.tokens, question.places, lease_s)
    keys = [one.key for one in question.counted]
    if question.places:
        keys.append(question.held)
    keys.append(PEERS)
    return ADMIT.command(keys, (head + b"".join([one.sizes.packed for one in question.counted]), place), whole)


def settling(tokens: Sequence[tuple[Counted, float]], reserved: int, real: int, now_s: float, whole: bool) -> Command:
    """Correct reservations, each a scope and a number, to the tokens really used."""
    numbers: list[float] = [now_s, reserved, real]
    for one, number in tokens:
        numbers += (_numbers(one.sizes.tokens)[0], number)
    packed = struct.pack(f">{len(numbers)}d", *numbers)
    return SETTLE.command([one.key for one, _ in tokens], (packed,), whole)


def charging(
    one: Counted, passed_s: tuple[float, float], floor_s: tuple[float, float], now_s: float, whole: bool
) -> Command:
    """Add what has passed without Redis, of requests and of tokens: so far are the TATs to go ahead, of where they are,
    or of where they are known to have been at least (`floor_s`)."""
    intervals_s = _numbers(one.sizes.requests)[0], _numbers(one.sizes.tokens)[0]
    packed = _CHARGE.pack(now_s, *intervals_s, *passed_s, *floor_s)
    return CHARGE.command([one.key], (packed,), whole)


def with_time(now_s: float, *seconds: float) -> bytes:
    """The argument of the scripts that take so many numbers."""
    return struct.pack(f">{1 + len(seconds)}d", now_s, *seconds)


def told_in(reply: object) -> Optional[Told]:
    """What a reply to `admitting` says; None: it is none."""
    if not isinstance(reply, bytes) or len(reply) < 32 or (len(reply) - 32) % 24:
        return None
    numbers = struct.unpack(f">{len(reply) // 8}d", reply)
    each = [numbers[at : at + 3] for at in range(4, len(numbers), 3)]
    ahead_s = tuple([(requests_s, tokens_s) for requests_s, tokens_s, _ in each])
    return Told(int(numbers[0]), numbers[1], int(numbers[2]), numbers[3] > 0, ahead_s, tuple([n for _, _, n in each]))


def refusal_in(told: Told, question: Question, place_wait_s: float, now_s: float) -> Refusal:
    """The limit that a request has to wait for longest. `place_wait_s`: until a place may be free, an estimate."""
    wait_s, name, limit = told.wait_s, "", 0.0
    if told.which:
        one = question.counted[(told.which - 1) // 2]
        kind = "requests" if told.which % 2 else "tokens"
        gcra = one.sizes.requests if told.which % 2 else one.sizes.tokens
        assert gcra is not None
        name = f"{one.name} {kind} per minute"
        limit = gcra.largest if wait_s == NEVER_S else gcra.rate_per_minute
    if told.full and place_wait_s > wait_s:
        wait_s, name, limit = place_wait_s, "key concurrent requests", question.places
    return Refusal(name, int(limit) or 1, wait_s, wait_s == NEVER_S, reading_of(told.ahead_s, question, now_s))


def reading_of(ahead_s: Sequence[tuple[float, float]], question: Question, now_s: float) -> Reading:
    """The tightest of the caller's own limits; those of everybody only where it has none (as `read_scopes`)."""
    requests: Optional[Gcra] = None
    tokens: Optional[Gcra] = None
    requests_tat_s = tokens_tat_s = 0.0
    for (requests_s, tokens_s), (name, _, sizes) in zip(ahead_s, question.counted):
        everybody = name == EVERYBODY
        found, tat_s = sizes.requests, now_s + requests_s
        if found is not None and (
            requests is None
            or (not everybody and found.remaining(now_s, tat_s) < requests.remaining(now_s, requests_tat_s))
        ):
            requests, requests_tat_s = found, tat_s
        found, tat_s = sizes.tokens, now_s + tokens_s
        if found is not None and (
            tokens is None or (not everybody and found.remaining(now_s, tat_s) < tokens.remaining(now_s, tokens_tat_s))
        ):
            tokens, tokens_tat_s = found, tat_s
    return (requests, requests_tat_s, tokens, tokens_tat_s, now_s)


def rooms_of(ahead_s: Sequence[tuple[float, float]], question: Question) -> list[tuple[float, float]]:
    """How much further the TATs of each scope may go ahead, of requests and of tokens."""
    rooms_s: list[tuple[float, float]] = []
    for (requests_s, tokens_s), (_, _, (requests, tokens, _)) in zip(ahead_s, question.counted):
        rooms_s.append(
            (
                0.0 if requests is None else requests.burst_s - requests_s,
                0.0 if tokens is None else tokens.burst_s - tokens_s,
            )
        )
    return rooms_s


def _numbers(gcra: Optional[Gcra]) -> tuple[float, float, float]:
    """Seconds a unit, and how many at once and at most; zeros: no such limit."""
    return (0.0, 0.0, 0.0) if gcra is None else (gcra.interval_s, gcra.burst, gcra.largest)
