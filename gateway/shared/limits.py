"""Limits that hold for all gateways together: decided in Redis, and by each gateway alone when that cannot be asked.

`SharedLimits` owns which requests of this gateway hold a place of their key, what has passed without Redis since it was
left alone, and how many gateways there are. Its lock guards these; it is held for some microseconds and never while a
limiter, the line or a callback is called. A request waits on a flag, without a thread, and for a bounded time.

**With Redis** one script takes of all limits of a request or of none. What it tells of each scope is noted in the local
`Limiter`, too, which so knows what was used when it has to decide. **Without** (the line is open, or an answer does not
come in time) `fail` says what becomes of a request that a limit applies to: it is refused, or the local limiter decides
at a share of all limits: one by the number of gateways last known (1 where none is). It lets no more than LOCAL_BURST
of a minute pass at once: the others may still have Redis, and with it the whole burst. When Redis is back it is told
what was known of it, in case that it has forgotten, and what has passed meanwhile, before anybody asks it again.

**Places** of a key are held in Redis for LEASE_S and renewed as long as their requests go on. So those of a gateway
that has died come free, a release that was lost is made up for, and a Redis that was emptied learns of them again.
"""

from __future__ import annotations

import functools
import itertools
import os
import threading
import time
from collections.abc import Mapping
from typing import Any, Callable, Optional, Union

from gateway.errors import GatewayError
from gateway.limits.limiter import KEY_LIFETIME_S, Admission, Limiter, Refusal, Slot, Subject, WrappedAdmission
from gateway.limits.quotas import Header, headers_of
from gateway.limits.recentlyused import RecentlyUsed
from gateway.shared.alone import NOTHING_KNOWN, Alone, Tats
from gateway.shared.line import BEAT_S, RETRY_S, Job, Line
from gateway.shared.scopes import (
    OWN_TIME,
    PEERS,
    Counted,
    Question,
    Scopes,
    Told,
    admitting,
    charging,
    reading_of,
    refusal_in,
    rooms_of,
    settling,
    told_in,
    with_time,
)
from gateway.shared.scripts import BEAT, RENEW
from gateway.steps import Flag, Flagged, Steps

LEASE_S = 15.0
PEER_S = 2.0
"""A gateway that has not been heard of for so long is silent."""
ASIDE_S = 120.0
"""So long a silent one has its share left to it, to go on alone by; then it is none any more."""
FEWER_S = 5.0  # until it is believed that there are fewer gateways
RENEW_MAX = 500  # places in one command
ALONE_MAX = 20_000  # scopes of which it is known what has passed without Redis
NOT_FEWER = (float("inf"), 0)
"""Since when there were fewer gateways than known, and how many at most."""
MODES = ("shared", "local", "closed")


class SharedLimits:
    """Admits requests within the limits of all gateways together. Thread-safe.

    `local` decides where Redis cannot; `fail`: `local`, or `closed`, which refuses instead. `timeout_s` bounds the wait
    of each request. `clock` is the local limiter's. `now_s`: what the scripts take for the time, for tests; negative:
    Redis' own. `place`: PLACE_BYTES bytes, the same ones when this gateway is started again; empty: its own.
    """

    def __init__(
        self,
        line: Line,
        local: Limiter,
        scopes: Scopes,
        fail: str,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
        now_s: Callable[[], float] = lambda: OWN_TIME,
        place: bytes = b"",
    ) -> None:
        self.peers = 1
        """How many gateways there are, this one included, as last known."""
        self.decided = dict.fromkeys(MODES, 0)
        """Requests to which a limit applied, by who has decided: Redis, this gateway, nobody (they were refused)."""
        self.name = os.urandom(6).hex().encode()
        self.peer = (place or self.name) + self.name
        """This gateway's name among the others."""
        self._line = line
        self._local = local
        self._scopes = scopes
        self._fail = fail
        self._timeout_s = timeout_s
        self._clock = clock
        self._now_s = now_s
        self._factors: Mapping[str, float] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._held: dict[bytes, bytes] = {}  # each place's name, and what the places of its key are named
        self._alone: dict[bytes, Alone] = {}
        self._known: RecentlyUsed[bytes, Tats] = RecentlyUsed(KEY_LIFETIME_S, ALONE_MAX)
        self._fewer = NOT_FEWER
        self._renew_at_s = 0.0  # of the thread shared alone

    @property
    def mode(self) -> str:
        """Who decides now, one of MODES."""
        return self._fail if self._line.is_open else "shared"

    def set_factors(self, factor_by_priority: Mapping[str, float]) -> None:
        """As `Limiter.set_factors`, for what this gateway lets pass."""
        self._factors = dict(factor_by_priority)
        self._local.set_factors(factor_by_priority)

    # --- a request ---------------------------------------------------------------------------------------------------

    def admit(self, subject: Subject) -> Steps[Union[Admission, Refusal]]:
        """Take what a request needs of all limits that apply to it, or say which one refuses it.

        Raises `limits_unavailable` where Redis cannot be asked and SHARED_FAIL is `closed`. What is admitted must be
        settled and released, whatever becomes of the request.
        """
        question = self._scopes.question(subject, self._factors.get(subject.priority, 1.0))
        if not question.counted and not question.places:
            return self._local.unlimited
        asked = _Asked(self, question, b"%s-%d" % (self.name, next(self._numbers)) if question.places else b"")
        told: Optional[Told] = None
        if self._line.ask(Job(asked.command, asked.hear, asks=True)):
            try:
                yield Flagged(asked.flag, self._timeout_s)
            except BaseException:
                late = asked.take()
                if late is not None:
                    self._came_late(asked, late)
                raise
            told = asked.take()
        if told is None:
            return self._decide_alone(subject, asked)
        return self._decided(subject, asked, told)

    def headers(self, subject: Subject) -> tuple[Header, ...]:
        """What is left to who asks, as this gateway last heard; takes nothing."""
        now_s = self._clock()
        question = self._scopes.question(subject, self._factors.get(subject.priority, 1.0))
        with self._lock:
            known = [self._known.get(one.key, now_s) or NOTHING_KNOWN for one in question.counted]
        ahead_s = [(max(requests_s - now_s, 0.0), max(tokens_s - now_s, 0.0)) for requests_s, tokens_s in known]
        return headers_of(reading_of(ahead_s, question, now_s))

    def _decided(self, subject: Subject, asked: _Asked, told: Told) -> Union[Admission, Refusal]:
        question, now_s = asked.question, self._clock()
        self.see_peers(told.peers)
        room_s = rooms_of(told.ahead_s, question)
        slot = self._local.learn(subject, now_s, room_s, told.passes and question.places > 0)
        with self._lock:
            self.decided["shared"] += 1
            for one, (requests_s, tokens_s) in zip(question.counted, told.ahead_s):
                self._known.put(one.key, (now_s + requests_s, now_s + tokens_s), now_s)
            if self._alone:
                for one in question.counted:
                    self._alone.pop(one.key, None)  # it is as Redis says now
            if slot is not None:
                self._held[asked.place] = question.held
        if told.passes:
            return _SharedAdmission(self, asked, told, slot, now_s)
        wait_s = self._local.place_wait_s(subject, now_s) if told.full else 0.0
        return refusal_in(told, question, wait_s, now_s)

    def _decide_alone(self, subject: Subject, asked: _Asked) -> Union[Admission, Refusal]:
        with self._lock:
            self.decided[self._fail] += 1
        if self._fail == "closed":
            raise GatewayError(
                "limits_unavailable",
                "the limits that apply to this request cannot be looked up now",
                retry_after_s=RETRY_S,
            )
        now_s = self._clock()
        admission = self._local.admit(subject, now_s)
        if isinstance(admission, Refusal):
            return admission
        asked.stands = True
        question = asked.question
        with self._lock:
            for one in question.counted:
                alone = self._alone.get(one.key)
                if alone is None and len(self._alone) < ALONE_MAX:
                    known = self._known.get(one.key, now_s) or NOTHING_KNOWN
                    alone = self._alone[one.key] = Alone(one, known)
                if alone is not None:
                    alone.take(question.tokens, self.peers, now_s)
            if question.places:
                self._held[asked.place] = question.held
        return _LocalAdmission(self, admission, asked)

    # --- what becomes of it ------------------------------------------------------------------------------------------

    def _settle(self, tokens: tuple[tuple[Counted, float], ...], reserved: int, real: int) -> None:
        now_s = self._now_s()
        self._line.tell(Job(lambda whole: settling(tokens, reserved, real, now_s, whole)))

    def _let_go(self, asked: _Asked) -> None:
        """A place is held no longer. It leaves what is renewed first, so none comes back that has been released."""
        with self._lock:
            self._held.pop(asked.place, None)
        self._line.tell(Job(lambda whole: (b"ZREM", asked.question.held, asked.place)))

    def _settle_alone(self, question: Question, unused: int) -> None:
        """Of what has passed without Redis so many tokens were not used."""
        with self._lock:
            for one in question.counted:
                alone, tokens = self._alone.get(one.key), one.sizes.tokens
                if alone is not None and tokens is not None:
                    back_s = alone.tokens_s - unused * tokens.interval_s * self.peers
                    alone.tokens_s = max(back_s, alone.before_s[1])

    def _came_late(self, asked: _Asked, told: Told) -> None:
        """Redis has let pass what nobody waits for any more. What passed here meanwhile is charged there as well."""
        if told.passes and not asked.stands:
            numbers = _reserved(asked.question, told)
            if numbers:
                self._settle(numbers, asked.question.tokens, 0)
            if asked.place:
                self._let_go(asked)

    # --- on the thread shared ----------------------------------------------------------------------------------------

    def beat(self) -> list[Job]:
        """What is to be done every BEAT_S: to be among the gateways, and to go on holding what is held."""
        now_s = self._now_s()
        seconds = with_time(now_s, PEER_S, ASIDE_S if self._fail == "local" else 0.0)
        jobs: list[Job] = []
        if not self._line.is_open:  # else it is silent, and decides alone, though Redis may hear it late
            jobs = [Job(lambda whole: BEAT.command((PEERS,), (seconds, self.peer), whole), self.see_peers)]
        self._renew_at_s -= BEAT_S
        if self._renew_at_s <= 0:
            self._renew_at_s = LEASE_S / 3
            jobs += self._renewals(now_s)
        return jobs

    def _renewals(self, now_s: float) -> list[Job]:
        with self._lock:
            names_by_key = self._names_by_key_locked()
        seconds = with_time(now_s, LEASE_S)
        return [
            Job(functools.partial(_renewing, key, seconds, names[at : at + RENEW_MAX]))
            for key, names in names_by_key.items()
            for at in range(0, len(names), RENEW_MAX)
        ]

    def _names_by_key_locked(self) -> dict[bytes, list[bytes]]:
        """The names of the places that are held, by what the places of their key are named."""
        names_by_key: dict[bytes, list[bytes]] = {}
        for name, key in self._held.items():
            names_by_key.setdefault(key, []).append(name)
        return names_by_key

    def come_back(self) -> list[Job]:
        """What Redis is to be told first, now that it can be asked: what has passed without it, and who holds what."""
        now_s = self._clock()
        with self._lock:
            alone, self._alone = self._alone, {}
        jobs: list[Job] = []
        for one in alone.values():
            floor_s = (max(one.before_s[0] - now_s, 0.0), max(one.before_s[1] - now_s, 0.0))
            passed_s = one.passed_s(self.peers, now_s)
            if any(floor_s) or any(passed_s):
                jobs.append(Job(functools.partial(charging, one.one, passed_s, floor_s, self._now_s())))
        return jobs + self._renewals(self._now_s())

    def farewell(self) -> list[Job]:
        """What is done last of all: this gateway leaves, and holds nothing."""
        with self._lock:
            names_by_key = self._names_by_key_locked()
            self._held.clear()
        jobs = [Job(functools.partial(_leaving, key, names)) for key, names in names_by_key.items()]
        return [*jobs, Job(lambda whole: (b"ZREM", PEERS, self.peer))]

    def see_peers(self, count: Any) -> None:
        """So many gateways there are; None or garbage: as many as before.

        More are believed at once, fewer when there were no more for FEWER_S: a Redis that was emptied has yet to hear
        of all of them, and who believes to be alone takes all.
        """
        if not isinstance(count, int) or count < 1:
            return
        now_s = self._clock()
        with self._lock:
            if count < self.peers:
                since_s, most = self._fewer
                self._fewer = (min(since_s, now_s), max(most, count))
                if now_s - self._fewer[0] < FEWER_S:
                    return
                count = self._fewer[1]
            self._fewer = NOT_FEWER
            changes, self.peers = count != self.peers, count
        if changes:
            self._local.set_share(1.0 / count, now_s)


class _Asked:
    """One question to Redis. `flag` is set when its answer has come; guarded by the lock of its limits."""

    __slots__ = ("_given_up", "_limits", "_told", "flag", "place", "question", "stands")

    def __init__(self, limits: SharedLimits, question: Question, place: bytes) -> None:
        self._limits = limits
        self.question = question
        self.place = place
        self.flag = Flag()
        self.stands = False  # it has passed here meanwhile
        self._told: Optional[Told] = None
        self._given_up = False

    def command(self, whole: bool) -> Any:
        """Ask."""
        return admitting(self.question, self.place, LEASE_S, self._limits._now_s(), whole)

    def hear(self, reply: Any) -> None:
        """The reply, on the thread shared; None: there is none."""
        told = told_in(reply)
        with self._limits._lock:
            self._told, given_up = told, self._given_up
        if not given_up:
            self.flag.set()
        elif told is not None:
            self._limits._came_late(self, told)

    def take(self) -> Optional[Told]:
        """What has been decided; None: nothing, and what comes later is given back."""
        with self._limits._lock:
            self._given_up = self._told is None
            return self._told


class _SharedAdmission(Admission):
    """A request that Redis has let pass."""

    __slots__ = ("_asked", "_place", "_shared", "_tokens_by_scope")

    def __init__(self, shared: SharedLimits, asked: _Asked, told: Told, slot: Optional[Slot], now_s: float) -> None:
        reading = reading_of(told.ahead_s, asked.question, now_s)
        super().__init__(shared._local, reading, None, (), asked.question.tokens)
        self._shared = shared
        self._asked = asked
        self._place = slot
        self._tokens_by_scope = _reserved(asked.question, told)
        self.holds = slot is not None or bool(self._tokens_by_scope)

    def settle(self, real_tokens: int) -> None:
        with self._shared._lock:
            numbers, self._tokens_by_scope = self._tokens_by_scope, ()
        if numbers:
            self._shared._settle(numbers, self._tokens, real_tokens)

    def release_concurrency(self) -> None:
        with self._shared._lock:
            slot, self._place = self._place, None
        if slot is not None:
            self._shared._local.give_back(slot)
            self._shared._let_go(self._asked)


class _LocalAdmission(WrappedAdmission):
    """One that this gateway has let pass: Redis hears of that when it is back."""

    __slots__ = ("_asked", "_limits")

    def __init__(self, limits: SharedLimits, admission: Admission, asked: _Asked) -> None:
        super().__init__(admission)
        self._limits = limits
        self._asked = asked
        self.holds = admission.holds

    def settle(self, real_tokens: int) -> None:
        reserved = self._admission._reservations
        super().settle(real_tokens)
        if reserved and not self._admission._reservations:
            self._limits._settle_alone(self._asked.question, self._asked.question.tokens - real_tokens)

    def release_concurrency(self) -> None:
        super().release_concurrency()
        if self._asked.place:
            self._limits._let_go(self._asked)


def _reserved(question: Question, told: Told) -> tuple[tuple[Counted, float], ...]:
    """The scopes of which tokens are reserved, and each one's number."""
    return tuple([(one, number) for one, number in zip(question.counted, told.numbers) if one.sizes.tokens is not None])


def _renewing(key: bytes, seconds: bytes, names: list[bytes], whole: bool) -> Any:
    return RENEW.command((key,), (seconds, *names), whole)


def _leaving(key: bytes, names: list[bytes], whole: bool) -> Any:
    return (b"ZREM", key, *names)
