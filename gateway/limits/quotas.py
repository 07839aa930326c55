"""The limits of one key, one address, one model or of everybody, and how much of them is left.

Owns the shapes of limits and quotas and the state of each scope. It has no lock and reads no clock: the `Limiter`
guards it and brings the time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Optional, TypeVar, Union

from gateway.limits.addresses import address_group
from gateway.limits.gcra import Gcra, TokenGcra
from gateway.limits.places import Places
from gateway.limits.recentlyused import RecentlyUsed

Header = tuple[str, str]
GcraT = TypeVar("GcraT", bound=Gcra)
Reading = tuple[Optional[Gcra], float, Optional[Gcra], float, float]
"""A limit of requests and its TAT, a limit of tokens and its TAT, the time: enough to tell later what was left then."""
NOTHING_READ: Reading = (None, 0.0, None, 0.0, 0.0)
EVERYBODY = "global"
_LINES = "x-ratelimit-limit-{0}: %d\r\nx-ratelimit-remaining-{0}: %d\r\nx-ratelimit-reset-{0}: %d\r\n"
_REQUESTS_LINES = _LINES.format("requests").encode("ascii")
_TOKENS_LINES = _LINES.format("tokens").encode("ascii")

ADDRESSES_MAX = 32_768
"""Addresses remembered, some 5 MB. One that is forgotten too early only gets its burst again."""


class RateLimits(NamedTuple):
    """Requests and tokens a minute; None and 0: no limit."""

    rpm: Optional[int] = None
    tpm: Optional[int] = None


class KeyLimits(NamedTuple):
    """What one key may do: requests and tokens a minute, requests at a time; None and 0: no limit."""

    rpm: Optional[int] = None
    tpm: Optional[int] = None
    concurrency: Optional[int] = None


class Bursts(NamedTuple):
    """Which shares of a minute's amount may pass at once.

    Of tokens usually all: a request reserves what it may take, mostly far more than it uses. With a smaller share, what
    one request may take is no less than before, up to the minute's amount; beyond the share it passes alone, when all
    before it is paid off, and those after it wait until it is.
    """

    requests: float
    tokens: float


class Quota(NamedTuple):
    """One limit as its caller sees it: the minute's amount, how much may pass at once now, seconds until all may."""

    limit: int
    remaining: int
    reset_s: float


class Quotas(NamedTuple):
    """The tightest limits that apply to a caller; None: there is none."""

    requests: Optional[Quota] = None
    tokens: Optional[Quota] = None

    @classmethod
    def at(cls, reading: Reading) -> Quotas:
        """What was left when `reading` was taken."""
        requests, requests_tat_s, tokens, tokens_tat_s, now_s = reading
        return cls(_quota(requests, requests_tat_s, now_s), _quota(tokens, tokens_tat_s, now_s))


class Scope:
    """Limits and what they have let pass. Not thread-safe. `name` is what a refusal calls it."""

    __slots__ = ("factor", "limits", "name", "places", "requests", "tokens")

    def __init__(self, name: str) -> None:
        self.name = name
        self.limits: Union[RateLimits, KeyLimits, None] = None
        self.factor = 1.0
        self.places: Optional[Places] = None  # made by the first request that a limit of concurrency counts
        self.requests: Optional[Gcra] = None
        self.tokens: Optional[TokenGcra] = None

    def set(self, limits: Union[RateLimits, KeyLimits], factor: float, bursts: Bursts, now_s: float) -> None:
        """Make `limits` times `factor` the limits; what has passed and is not paid off yet stays so."""
        self.limits = limits
        self.factor = factor
        self.requests = sized(self.requests, Gcra(1, 1), limits.rpm, factor, bursts.requests, now_s)
        self.tokens = sized(self.tokens, TokenGcra(1, 1), limits.tpm, factor, bursts.tokens, now_s)

    @property
    def in_flight(self) -> int:
        """Requests that hold a place now."""
        return 0 if self.places is None else len(self.places)

    def is_active(self, now_s: float) -> bool:
        """Whether forgetting it would let anything pass that must wait."""
        requests, tokens = self.requests, self.tokens
        return (
            self.in_flight > 0
            or (requests is not None and requests.tat_s > now_s)
            or (tokens is not None and (tokens.open_count > 0 or tokens.tat_s > now_s))
        )


class AddressScopes:
    """The requests a minute of each address: one Scope, and one number per address that is loaded into it."""

    def __init__(self, rpm: int, bursts: Bursts, share: float = 1.0) -> None:
        self._scope = Scope("address")
        self._scope.set(RateLimits(rpm), share, bursts, 0.0)
        gcra = self._scope.requests
        assert gcra is not None
        self._gcra = gcra
        # No TAT is further ahead than the burst lasts: what was used longer ago has recovered.
        self._tat_s_by_group: RecentlyUsed[Union[str, bytes], float] = RecentlyUsed(gcra.burst_s, ADDRESSES_MAX)
        self._group: Union[str, bytes] = ""

    def __len__(self) -> int:
        """How many addresses are remembered."""
        return len(self._tat_s_by_group)

    def load(self, address: str, now_s: float) -> Scope:
        """The limits of `address`, valid until the next load."""
        self._group = address_group(address)
        tat_s = self._tat_s_by_group.get(self._group, now_s)
        self._gcra.tat_s = now_s if tat_s is None else tat_s
        return self._scope

    def save(self, now_s: float) -> None:
        """Remember what the loaded address has taken."""
        self._tat_s_by_group.put(self._group, self._gcra.tat_s, now_s)


def read_scopes(scopes: Sequence[Scope], now_s: float) -> Reading:
    """The tightest of the caller's own limits; those of everybody only where it has none."""
    requests: Optional[Gcra] = None
    tokens: Optional[Gcra] = None
    requests_tat_s = tokens_tat_s = 0.0
    for scope in scopes:
        everybody = scope.name == EVERYBODY
        found = scope.requests
        if found is not None and (requests is None or (not everybody and _is_tighter(found, requests, now_s))):
            requests, requests_tat_s = found, found.tat_s
        found = scope.tokens
        if found is not None and (tokens is None or (not everybody and _is_tighter(found, tokens, now_s))):
            tokens, tokens_tat_s = found, found.tat_s
    return (requests, requests_tat_s, tokens, tokens_tat_s, now_s)


def header_lines_of(reading: Reading) -> bytes:
    """`x-ratelimit-{limit,remaining,reset}-{requests,tokens}` as lines ending in CRLF; reset in whole seconds, rounded
    up. Every answer has them, so they are made at once (3 us less than by pairs)."""
    requests, requests_tat_s, tokens, tokens_tat_s, now_s = reading
    lines = b""
    if requests is not None:
        lines = _REQUESTS_LINES % _numbers(requests, requests_tat_s, now_s)
    if tokens is not None:
        lines += _TOKENS_LINES % _numbers(tokens, tokens_tat_s, now_s)
    return lines


def headers_of(reading: Reading) -> tuple[Header, ...]:
    """The same as pairs, read from the lines: for refusals, which are rare."""
    lines = header_lines_of(reading).decode("ascii").splitlines()
    return tuple((name, value) for name, _, value in (line.partition(": ") for line in lines))


def _numbers(gcra: Gcra, tat_s: float, now_s: float) -> tuple[int, int, int]:
    """The minute's amount, how much may pass at once now, whole seconds until all of the burst may."""
    ahead_s = tat_s - now_s
    return int(gcra.rate_per_minute) or 1, gcra.remaining(now_s, tat_s), math.ceil(ahead_s) if ahead_s > 0.0 else 0


def _is_tighter(gcra: Gcra, than: Gcra, now_s: float) -> bool:
    return gcra.remaining(now_s) < than.remaining(now_s)


def _quota(gcra: Optional[Gcra], tat_s: float, now_s: float) -> Optional[Quota]:
    if gcra is None:
        return None
    return Quota(int(gcra.rate_per_minute) or 1, gcra.remaining(now_s, tat_s), max(tat_s - now_s, 0.0))


def sized(
    gcra: Optional[GcraT], fresh: GcraT, amount: Optional[int], factor: float, burst_share: float, now_s: float
) -> Optional[GcraT]:
    """A limit of `amount` times `factor` a minute. A shrunk one still lets the largest request pass, only later."""
    if not amount:
        return None
    rate_per_minute = amount * factor
    burst = max(rate_per_minute * burst_share, 1.0)
    gcra = gcra or fresh
    gcra.resize(rate_per_minute, burst, max(amount, burst), now_s)
    return gcra
