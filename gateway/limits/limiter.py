"""How much each caller, address and model may ask for, and all of them together.

`Limiter` owns the state of every limit. Its one lock guards all of it and is held for some microseconds: no I/O, no
callback and no wait happens under it. A request takes of all limits that apply to it or, when one refuses, of none.
Requests are counted when they are admitted; tokens are reserved by an estimate then and settled with the real number
later. Nothing here knows of HTTP: what a refusal becomes is for the caller to say.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Callable, NamedTuple, Optional, Union

from gateway.limits.gcra import NEVER_S, TokenGcra
from gateway.limits.places import Places, averaged
from gateway.limits.quotas import (
    EVERYBODY,
    NOTHING_READ,
    AddressScopes,
    Bursts,
    Header,
    KeyLimits,
    Quota,
    Quotas,
    RateLimits,
    Reading,
    Scope,
    header_lines_of,
    headers_of,
    read_scopes,
)
from gateway.limits.recentlyused import RecentlyUsed

__all__ = ["Admission", "KeyLimits", "Limiter", "Quota", "Quotas", "RateLimits", "Refusal", "Subject"]

Reservations = tuple[tuple[Scope, TokenGcra, int], ...]
Slot = tuple[Scope, Places, int]
"""Whose place a request holds, and its number there."""

KEYS_MAX = 20_000
"""Keys remembered though they are not in use, some 20 MB."""
KEY_LIFETIME_S = 120.0
SHARE_TOLERANCE = 1e-9  # a third of 3 places is one

NO_KEY_LIMITS = KeyLimits()
NO_RATE_LIMITS = RateLimits()


class Subject(NamedTuple):
    """Who asks for what."""

    key_name: Optional[str]
    """None: without a key; all of these count as one."""
    key_limits: KeyLimits = NO_KEY_LIMITS
    address: str = ""
    model: str = ""
    model_limits: RateLimits = NO_RATE_LIMITS
    tokens_estimate: int = 0
    """The prompt's tokens and the most that may be answered."""
    priority: str = "normal"


class Refusal(NamedTuple):
    """Why a request may not pass now. Nothing was taken."""

    limit_name: str
    """E.g. `key requests per minute`."""
    limit: int
    """The amount of that limit."""
    retry_after_s: float
    """Then the same request passes, if nothing else has taken its place; infinity when it never can.

    For concurrent requests an estimate: what is left of the time for which places were held lately.
    """
    never: bool
    """The request is larger than the limit's whole minute."""
    reading: Reading

    @property
    def quotas(self) -> Quotas:
        """What is left."""
        return Quotas.at(self.reading)

    def headers(self) -> tuple[Header, ...]:
        """The same as `x-ratelimit-{limit,remaining,reset}-{requests,tokens}`; reset in whole seconds, rounded up."""
        return headers_of(self.reading)


class Admission:
    """A request that passed, and what it holds. Thread-safe."""

    __slots__ = ("_limiter", "_reading", "_reservations", "_slot", "_tokens", "header_lines", "holds")

    def __init__(
        self, limiter: Limiter, reading: Reading, slot: Optional[Slot], reservations: Reservations, tokens: int
    ) -> None:
        self._limiter = limiter
        self._reading = reading
        self._slot = slot
        self._reservations = reservations
        self._tokens = tokens
        self.header_lines = header_lines_of(reading)
        """`headers` as lines of a response's head; empty when nothing limits the request."""
        self.holds = slot is not None or bool(reservations)
        """Whether there is anything to settle or to release."""

    @property
    def quotas(self) -> Quotas:
        """What was left when it had passed."""
        return Quotas.at(self._reading)

    def headers(self) -> tuple[Header, ...]:
        """The same as `x-ratelimit-{limit,remaining,reset}-{requests,tokens}`; reset in whole seconds, rounded up."""
        return headers_of(self._reading)

    def settle(self, real_tokens: int) -> None:
        """Correct the tokens reserved to those really used (0: none). Only the first call counts."""
        if self._reservations:
            self._limiter._settle(self, real_tokens)

    def release_concurrency(self) -> None:
        """Free the slot; before the answer's last byte, or its client finds it taken. Only the first call counts."""
        if self._slot is not None:
            self._limiter._release(self)


class WrappedAdmission(Admission):
    """The same admission, with something more to be given back. To be subclassed."""

    __slots__ = ("_admission",)

    def __init__(self, admission: Admission) -> None:
        super().__init__(admission._limiter, admission._reading, None, (), 0)
        self._admission = admission
        self.holds = True

    def settle(self, real_tokens: int) -> None:
        self._admission.settle(real_tokens)

    def release_concurrency(self) -> None:
        self._admission.release_concurrency()


class Limiter:
    """Admits requests within all limits. Thread-safe.

    `everybody` limits all requests together, `address_rpm` each client's address (None and 0: no limit), IPv6 addresses
    by their /64. `burst_share` of a minute's requests may pass at once, at least one, and `token_burst_share` of its
    tokens (see `Bursts`). `clock` is monotonic, the one behind `admit`'s `now_s`; it is read when more tokens were used
    than reserved. `set_share` has it let pass a share of everything.
    """

    def __init__(
        self,
        everybody: RateLimits = NO_RATE_LIMITS,
        address_rpm: Optional[int] = None,
        burst_share: float = 0.1,
        token_burst_share: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lock = threading.Lock()
        self.clock = clock
        self._bursts = bursts = Bursts(burst_share, token_burst_share)
        self._factors: Mapping[str, float] = {}
        self._share = 1.0
        self._address_rpm = address_rpm
        self._keys: RecentlyUsed[Optional[str], Scope] = RecentlyUsed(
            KEY_LIFETIME_S, KEYS_MAX, lambda scope, now_s: scope.is_active(now_s)
        )
        self._models: dict[str, Scope] = {}
        self._addresses = AddressScopes(address_rpm, bursts) if address_rpm else None
        self._everybody: Optional[Scope] = None
        self._usual_s = 0.0  # how long any key's request holds its place, for keys of which nothing is known yet
        if any(everybody):
            self._everybody = self._new_scope(EVERYBODY, "")
            self._everybody.set(everybody, 1.0, bursts, 0.0)
        self._for_keys_and_models_only = self._addresses is None and self._everybody is None
        self.unlimited = Admission(self, NOTHING_READ, None, (), 0)
        """The admission of a request to which no limit applies: it holds nothing."""

    @property
    def factors(self) -> Mapping[str, float]:
        """By what the limits of keys are multiplied now, by priority; unnamed: 1."""
        return self._factors

    def set_factors(self, factor_by_priority: Mapping[str, float]) -> None:
        """Multiply the limits of every key by the factor of its priority, from its next request on (unnamed: 1)."""
        self._factors = dict(factor_by_priority)

    def set_share(self, share: float, now_s: float) -> None:
        """Let pass `share` (0 < share <= 1) of all limits, from the next request on: others let pass the rest.

        What addresses have used is forgotten where it changes.
        """
        with self._lock:
            if share == self._share:
                return
            self._share = share
            if self._address_rpm:
                self._addresses = AddressScopes(self._address_rpm, self._bursts, share)
            if self._everybody is not None:
                limits = self._everybody.limits
                assert limits is not None
                self._everybody.set(limits, share, self._bursts, now_s)

    def learn(
        self, subject: Subject, now_s: float, room_s: Sequence[tuple[float, float]], holds: bool
    ) -> Optional[Slot]:
        """Take over what is decided elsewhere: how much further the TATs of each scope that has a rate may go ahead, of
        requests and of tokens (negative: so long nothing passes); more than the burst here is none.

        Returns the place that the request holds, when it `holds` one: `give_back` takes it."""
        with self._lock:
            has_key_limits = any(subject.key_limits)
            scopes = self._scopes_locked(subject, now_s, has_key_limits, any(subject.model_limits))
            rated = [scope for scope in scopes if scope.requests is not None or scope.tokens is not None]
            for scope, (requests_s, tokens_s) in zip(rated, room_s):
                if scope.requests is not None:
                    scope.requests.tat_s = now_s + max(scope.requests.burst_s - requests_s, 0.0)
                if scope.tokens is not None:
                    scope.tokens.become(now_s + max(scope.tokens.burst_s - tokens_s, 0.0))
            if self._addresses is not None:
                self._addresses.save(now_s)
            return _slot(scopes[0], now_s) if holds else None

    def place_wait_s(self, subject: Subject, now_s: float) -> float:
        """An estimate of the seconds until a place of the key is given back, by those held here."""
        with self._lock:
            scope = self._key_locked(subject, now_s)
            return (scope.places or Places()).wait_s(now_s, self._usual_s)

    def give_back(self, slot: Slot) -> None:
        """A place that `learn` has given is held no longer; once."""
        now_s = self.clock()
        with self._lock:
            _, places, number = slot
            self._usual_s = averaged(self._usual_s, places.give_back(number, now_s))

    def admit(self, subject: Subject, now_s: float) -> Union[Admission, Refusal]:
        """Take what the request needs of all limits that apply to it, or say which one refuses it.

        `now_s` is monotonic. What is admitted must be settled and released, whatever becomes of the request.
        """
        has_key_limits = subject.key_limits is not NO_KEY_LIMITS and any(subject.key_limits)
        has_model_limits = subject.model_limits is not NO_RATE_LIMITS and any(subject.model_limits)
        if self._for_keys_and_models_only and not has_key_limits and not has_model_limits:
            return self.unlimited
        with self._lock:
            scopes = self._scopes_locked(subject, now_s, has_key_limits, has_model_limits)
            refusal = refusal_of(scopes, subject, now_s, self._usual_s, self._share)
            return refusal or self._admit_locked(scopes, subject, now_s)

    def headers(self, subject: Subject, now_s: float) -> tuple[Header, ...]:
        """What is left to who asks, as an admission would tell it; takes nothing."""
        with self._lock:
            scopes = self._scopes_locked(subject, now_s, any(subject.key_limits), any(subject.model_limits))
            return headers_of(read_scopes(scopes, now_s))

    def look_after(self, log: Callable[..., None]) -> None:
        """Nothing here: what one process knows needs no looking after. For one thread, twice a second."""

    def _new_scope(self, kind: str, name: Optional[str]) -> Scope:
        return Scope(kind)

    def _scopes_locked(
        self, subject: Subject, now_s: float, has_key_limits: bool, has_model_limits: bool
    ) -> list[Scope]:
        """All that limits the request, the key first."""
        scopes: list[Scope] = []
        if has_key_limits:
            scopes.append(self._key_locked(subject, now_s))
        if self._addresses is not None:
            scopes.append(self._addresses.load(subject.address, now_s))
        if has_model_limits:
            scopes.append(self._model_locked(subject, now_s))
        if self._everybody is not None:
            scopes.append(self._everybody)
        return scopes

    def _key_locked(self, subject: Subject, now_s: float) -> Scope:
        scope = self._keys.get(subject.key_name, now_s)
        if scope is None:
            scope = self._new_scope("key", subject.key_name)
            self._keys.put(subject.key_name, scope, now_s)
        factor = self._factors.get(subject.priority, 1.0) * self._share
        limits = subject.key_limits
        if scope.factor != factor or (scope.limits is not limits and scope.limits != limits):
            scope.set(limits, factor, self._bursts, now_s)
        return scope

    def _model_locked(self, subject: Subject, now_s: float) -> Scope:
        scope = self._models.get(subject.model)
        if scope is None:
            scope = self._models[subject.model] = self._new_scope("model", subject.model)
        if scope.limits != subject.model_limits or scope.factor != self._share:
            scope.set(subject.model_limits, self._share, self._bursts, now_s)
        return scope

    def _admit_locked(self, scopes: list[Scope], subject: Subject, now_s: float) -> Admission:
        estimate = subject.tokens_estimate
        reservations: Reservations = ()
        for scope in scopes:
            if scope.requests is not None:
                scope.requests.take(1, now_s)
            if scope.tokens is not None:
                reservations += ((scope, scope.tokens, scope.tokens.reserve(estimate, now_s)),)
        if self._addresses is not None:
            self._addresses.save(now_s)
        slot = _slot(scopes[0], now_s) if subject.key_limits.concurrency else None
        return Admission(self, read_scopes(scopes, now_s), slot, reservations, estimate)

    def _settle(self, admission: Admission, real_tokens: int) -> None:
        reserved = admission._tokens
        now_s = self.clock() if real_tokens > reserved else 0.0
        with self._lock:
            reservations, admission._reservations = admission._reservations, ()
            for _, tokens, number in reservations:
                tokens.settle(number, reserved, real_tokens, now_s)

    def _release(self, admission: Admission) -> None:
        now_s = self.clock()
        with self._lock:
            slot, admission._slot = admission._slot, None
            if slot is not None:
                _, places, number = slot
                self._usual_s = averaged(self._usual_s, places.give_back(number, now_s))


def _slot(scope: Scope, now_s: float) -> Slot:
    """Hold a place of a key."""
    places = scope.places
    if places is None:
        places = scope.places = Places()
    return scope, places, places.take(now_s)


def refusal_of(
    scopes: list[Scope], subject: Subject, now_s: float, usual_s: float, share: float = 1.0
) -> Optional[Refusal]:
    """The limit that the request has to wait for longest; None when it may pass all of them."""
    longest_s, name, limit = 0.0, "", 0.0
    for scope in scopes:
        requests, tokens = scope.requests, scope.tokens
        if requests is not None:
            wait_s = requests.wait_s(1, now_s)
            if wait_s > longest_s:
                longest_s, name, limit = wait_s, f"{scope.name} requests per minute", requests.rate_per_minute
        if tokens is not None:
            wait_s = tokens.wait_s(subject.tokens_estimate, now_s)
            if wait_s > longest_s:
                longest_s, name = wait_s, f"{scope.name} tokens per minute"
                limit = tokens.largest if wait_s == NEVER_S else tokens.rate_per_minute
    concurrency = subject.key_limits.concurrency
    if concurrency and share < 1.0:
        concurrency = max(int(concurrency * share + SHARE_TOLERANCE), 1)
    places = scopes[0].places if concurrency else None
    if concurrency and places is not None and len(places) >= concurrency:
        wait_s = places.wait_s(now_s, usual_s)
        if wait_s > longest_s:
            longest_s, name, limit = wait_s, "key concurrent requests", concurrency
    if longest_s == 0.0:
        return None
    return Refusal(name, int(limit) or 1, longest_s, longest_s == NEVER_S, read_scopes(scopes, now_s))
