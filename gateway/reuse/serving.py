"""What a request is spared: a kept answer, another's call, a batch. The step of `serve` between its limits and its ask.

Steps (see `steps.py`). `Reuse` owns the parts that are switched on; it holds no lock of its own. It opens no socket and
asks no engine but by the ask that it is given. Nothing here counts: what is noted in `Asked.reused` is counted with the
event of the request.
"""

from __future__ import annotations

import functools
import threading
import time
from typing import Any, Callable, NamedTuple, Optional, Union

from gateway.asked import BYPASS, MISS, Asked, Reused
from gateway.clock import unix_s
from gateway.errors import GatewayError
from gateway.hedging import Answer
from gateway.reuse import keeping, likeness
from gateway.reuse.caches import NOTHING_NEAR, Caches
from gateway.reuse.flights import LATE_CODES, Flight, Flights, Following, again
from gateway.reuse.store import Found
from gateway.reuse.stored import Stored
from gateway.reuse.together import EMBEDDINGS, QUERIES, Together, adopt
from gateway.routing.regions import within
from gateway.routing.router import Router
from gateway.shared.leases import Lease, Leases
from gateway.steps import ASIDE, Flag, Steps
from gateway.threads import Threads
from gateway.upstream.answers import Usage, dump
from gateway.upstream.call import Call
from gateway.upstream.fields import BY_PATH
from gateway.upstream.stream import EngineStream

NOTHING_USED = Usage(0, 0, False)
QUERY = "/query"
KEEPING_MAX = 64  # streams that wait to be put together, and are held until then
LARGE_BYTES = 65_536  # of an answer: to make a stream of more takes a while
LATE = 0.9  # who has waited for so much of the time that its leader has waited is late, too
Given = Union[Answer, EngineStream, Following]


class Wishes(NamedTuple):
    """What the headers of a request say."""

    cache: bool
    """Deterministic because its client says so."""
    look: bool
    keep: bool
    """False: nor is it looked for."""
    max_age_s: Optional[float]
    coalesce: Optional[bool]


NO_WISHES = Wishes(False, True, True, None, None)


class Likeness(NamedTuple):
    """By what a request is known to be like another one."""

    scope: str
    path: str
    model: str
    key: bytes


class Reuse:
    """Spares requests their calls. Thread-safe. `caches` None: CACHE=off. `ask` has a call asked, once there is a place
    for it. `region`: where answers are kept; those that must stay elsewhere are not, nor any such where it is None.
    `leases`: of gateways that share their cache.
    """

    def __init__(
        self,
        router: Router,
        ask: Callable[[Asked, Call], Steps[Any]],
        *,
        coalesce: bool,
        share_all: bool,
        caches: Optional[Caches],
        together: Together,
        batch_embeddings: bool,
        region: Optional[str] = None,
        leases: Optional[Leases] = None,
    ) -> None:
        self._router = router
        self._ask = ask
        self._coalesce = coalesce
        self._share_all = share_all
        self.caches = caches
        self._together = together
        self._batch_embeddings = batch_embeddings
        self._region = region
        self._leases = None if caches is None or caches.shared is None or not coalesce else leases
        self.flights = Flights()
        self._threads = Threads("reuse", 1)
        self._keeping = threading.Semaphore(KEEPING_MAX)  # less the streams that are still to be put together

    def serve(self, asked: Asked, call: Call) -> Steps[Given]:
        """The answer to a request, or the stream of it that has begun. Raises GatewayError."""
        headers, wishes = asked.head.headers, NO_WISHES
        caches, coalesce = self.caches, self._coalesce
        if b"cache-control" in headers or b"x-gateway-cache" in headers or b"x-gateway-coalesce" in headers:
            wishes = wishes_of(headers)
            coalesce = coalesce if wishes.coalesce is None else wishes.coalesce
        if coalesce or caches is not None:
            like = self._likeness(asked, call, wishes)
            if caches is not None and (like is None or not (wishes.keep and within(self._region, call.residency))):
                asked.reused = BYPASS
                caches = None
            if like is not None and (coalesce or caches is not None):
                return self._reuse(asked, call, like, wishes, caches, coalesce)
        if call.is_query or self._batch_embeddings:
            return self._ask_engines(asked, call)
        return self._ask(asked, call)  # without steps of its own: most requests come by here

    def _reuse(
        self, asked: Asked, call: Call, like: Likeness, wishes: Wishes, caches: Optional[Caches], coalesce: bool
    ) -> Steps[Given]:
        """A kept answer, another's, or one that may be kept and given to others."""
        if caches is not None:
            began_s = time.monotonic()
            found = caches.here(like.key, wishes.max_age_s) if wishes.look else None
            if found is not None and found.in_file:
                found = yield from caches.whole(found)
            if goes_on := found is None and wishes.look and caches.looks_elsewhere:
                found = yield from self._look(caches, asked, call, like, wishes)
            if goes_on or found is not None:  # a look into memory for nothing is none to tell of
                asked.note("cache", began_s, {"found": found is not None})
            if found is not None:
                if len(found.stored.body) > LARGE_BYTES:
                    yield ASIDE
                return self._given_again(found, asked, call, like)
            asked.reused = MISS if wishes.look else BYPASS
        if not coalesce:
            return (yield from self._lead(Flight(None, asked), asked, call, like, caches))
        key = _flight_key(asked, call, like)
        came_s = time.monotonic()
        while True:
            flight, flag = self.flights.join(key, asked)
            if flag is None:
                return (yield from self._lead(flight, asked, call, like, caches))
            given = yield from self._follow(flight, flag, asked, call)
            if given is not None:
                return given
            now_s = time.monotonic()
            if flight.error is not None and flight.error.code in LATE_CODES:
                if now_s - came_s >= LATE * (now_s - flight.began_s):
                    raise again(flight.error)  # it has waited as long

    def _likeness(self, asked: Asked, call: Call, wishes: Wishes) -> Optional[Likeness]:
        """None: it is like no other."""
        if not (wishes.cache or likeness.is_deterministic(call.path, call.request)) or BY_PATH[call.path].passes:
            return None  # what is passed on is read by nobody, a form least of all
        scope = "" if self._share_all or asked.identity is None else asked.identity.name or ""
        model = (call.model or "") if self._router.fleet.by_engines else asked.model
        path = QUERY if call.is_query else call.path
        try:
            text = likeness.canonical(path, call.richest, model)
        except (RecursionError, ValueError):
            return None
        return Likeness(scope, path, model, likeness.key_of(whose(scope, call.residency), text))

    # --- the cache -------------------------------------------------------------------------------------------------

    def _look(self, caches: Caches, asked: Asked, call: Call, like: Likeness, wishes: Wishes) -> Steps[Optional[Found]]:
        """What other gateways have kept, or is kept for a near duplicate."""
        found: Optional[Found] = yield from caches.elsewhere(asked, like.key, wishes.max_age_s)
        if found is None and caches.near is not None:
            found = yield from self._look_near(caches, asked, call, like, wishes)
        return found

    def _given_again(self, found: Found, asked: Asked, call: Call, like: Likeness) -> Answer:
        """A kept answer, as this request's own."""
        stored = found.stored
        body = keeping.stamped(stored.body, stored.request_id, asked.request_id)
        if call.stream:
            body = keeping.as_events(body, call.path, call.wants_usage())
        call.served_model = stored.model
        call.usage = NOTHING_USED
        age_s = unix_s() - stored.stored_unix_s
        asked.reused = Reused(
            "hit" if stored.key == like.key else "near",
            age_s if age_s > 0 else 0.0,
            found.similarity,
            saved_tokens=stored.prompt_tokens + stored.completion_tokens,
            saved_usd=stored.cost_usd,
        )
        return Answer(body, NOTHING_USED)

    def _look_near(self, caches: Caches, asked: Asked, call: Call, like: Likeness, wishes: Wishes) -> Steps[Any]:
        near = likeness.near_of(like.path, call.richest, like.model, whose(like.scope, call.residency))
        return None if near is None else (yield from caches.find_near(asked, near, wishes.max_age_s))

    # --- single flight ---------------------------------------------------------------------------------------------

    def _follow(self, flight: Flight, flag: Flag, asked: Asked, call: Call) -> Steps[Optional[Given]]:
        """What another's call is given; None: it has failed by what was its own."""
        began_s = time.monotonic()
        try:
            yield from call.wait_flagged(flag)
        except BaseException:
            self.flights.leave(flight, asked)
            raise
        finally:
            asked.note("shared", began_s, None, flight.leader)
        if flight.error is not None and not flight.own_fault:
            raise again(flight.error)
        result, leader = flight.result, flight.leader.call
        if result is None:
            return None
        assert leader is not None
        adopt(call, leader, leads=False)
        call.usage = NOTHING_USED
        asked.reused = Reused(asked.reused.cache, coalesced=True)
        if not isinstance(result, Answer):
            return Following(result)
        stamp = keeping.stamped_events if call.stream else keeping.stamped
        return Answer(stamp(bytes(result.body), flight.leader.request_id, asked.request_id), NOTHING_USED)

    def _lead(self, flight: Flight, asked: Asked, call: Call, like: Likeness, caches: Optional[Caches]) -> Steps[Given]:
        """Ask, and give it to all who follow."""
        result: Union[Answer, EngineStream]
        lease: Optional[Lease] = None
        try:
            shares = flight.key is not None and asked.reused == MISS and not (call.stream or call.residency)
            if self._leases is not None and shares:
                taken = yield from self._leases.take(call, like.key, lambda: _look_again(self.caches, asked, like))
                if isinstance(taken, Found):
                    result = self._given_again(taken, asked, call, like)
                    self.flights.landed(flight, result)
                    return result
                lease = taken
            result = yield from self._ask_engines(asked, call)
        except BaseException as error:
            if lease is not None:
                lease.give_back(False)
            self.flights.failed(flight, error if isinstance(error, GatewayError) else None)
            raise
        if not isinstance(result, Answer):  # a stream has no lease
            asked.shared = Shared(flight, self, functools.partial(self._keep_stream, caches, asked, call, like))
            return result
        self.flights.landed(flight, result)
        if lease is not None:
            lease.give_back(True)  # before what may raise; who looks for the answer looks for a while
        if caches is not None:
            self._keep_answer(caches, asked, call, like, result)
        return result

    def _keep_answer(self, caches: Caches, asked: Asked, call: Call, like: Likeness, answer: Answer) -> None:
        parsed = answer.parsed
        count = None if call.is_query else call.choices()
        if parsed is None or not keeping.is_worth_keeping(parsed, call.path, count):
            return
        if call.stream:  # what the client has got is the stream of it
            body = keeping.whole_of_answer(parsed, asked.request_id, call.served_model or "", answer.usage)
        else:
            body = bytes(answer.body)
        _keep(caches, asked, call, like, body)

    def _keep_stream(
        self,
        caches: Optional[Caches],
        asked: Asked,
        call: Call,
        like: Likeness,
        lines: Optional[bytes],
        reported: Optional[dict[str, Any]],
    ) -> None:
        """A stream has ended well: keep its answer, which is put together on a thread."""
        usage = call.usage
        if caches is None or lines is None or usage is None or not self._keeping.acquire(blocking=False):
            return

        def keep() -> None:
            self._keeping.release()
            model = call.served_model or ""
            whole = keeping.whole_of(lines, call.path, asked.request_id, model, usage, reported, call.choices())
            if whole is not None:
                _keep(caches, asked, call, like, whole)

        self._threads.run(keep)

    # --- batches ---------------------------------------------------------------------------------------------------

    def _ask_engines(self, asked: Asked, call: Call) -> Steps[Any]:
        if call.is_query:
            text = call.request["prompt"]
            return self._together.serve(asked, call, QUERIES, [text], self._batch_max(call))
        if self._batch_embeddings and call.path == likeness.EMBEDDINGS:
            inputs = texts_in(call.request.get("input"))
            if inputs is not None:
                return self._together.serve(asked, call, EMBEDDINGS, inputs, self._batch_max(call))
        return self._ask(asked, call)

    def _batch_max(self, call: Call) -> Optional[int]:
        """Inputs that every engine which may be asked takes at once; None: any."""
        pools = self._router.route(call.model, call.allow_fallback)
        limits = [engine.spec.max_batch for pool in pools for engine in pool.engines]
        return min((limit for limit in limits if limit is not None), default=None)

    def close(self, timeout_s: float) -> None:
        """End what runs in the background."""
        self._threads.close(timeout_s)
        if self.caches is not None:
            self.caches.close(timeout_s)


class Shared:
    """What else an open stream is for: others follow it, its answer is kept. Used by the relay."""

    def __init__(
        self, flight: Flight, reuse: Reuse, keep: Callable[[Optional[bytes], Optional[dict[str, Any]]], None]
    ) -> None:
        self.flight = flight
        self.flights = reuse.flights
        self.keep = keep


def whose(scope: str, residency: str) -> str:
    """Among whose requests one may be like another: what must stay somewhere is like nothing that need not, or must
    elsewhere. (No name has a line's end.)"""
    return f"{scope}\n{residency}" if residency else scope


def texts_in(value: Any) -> Optional[list[str]]:
    """The texts of an `input`; None: it is tokens."""
    if type(value) is str:
        return [value]
    if type(value) is list and all(type(item) is str for item in value):
        return value
    return None


def wishes_of(headers: dict[bytes, bytes]) -> Wishes:
    """What a request's headers say of the cache and of sharing calls."""
    cache = headers.get(b"x-gateway-cache", b"").strip().lower()
    coalesce = headers.get(b"x-gateway-coalesce", b"").strip().lower()
    look = keep = cache != b"off"
    max_age_s: Optional[float] = None
    for part in headers.get(b"cache-control", b"").lower().split(b","):
        name, _, value = part.strip().partition(b"=")
        if name == b"no-store":
            look = keep = False
        elif name == b"no-cache":
            look = False
        elif name == b"max-age":
            digits = value.strip(b'" ')
            max_age_s = float(digits) if digits.isdigit() and len(digits) < 12 else max_age_s
    return Wishes(cache == b"on", look, keep, max_age_s, {b"on": True, b"off": False}.get(coalesce))


def _flight_key(asked: Asked, call: Call, like: Likeness) -> tuple[object, ...]:
    """Requests that share a call are alike, and want the same kind of answer from the same engines."""
    stream = dump(call.request.get("stream_options") or {}) if call.stream else None
    may_use = None if call.may_use is None or asked.identity is None else asked.identity.name
    return like.key, stream, call.priority, may_use, call.allow_fallback


def _keep(caches: Caches, asked: Asked, call: Call, like: Likeness, body: bytes) -> None:
    """Keep a complete answer. Raises nothing that the request is to fail by."""
    usage = call.usage
    if usage is None or call.fallback is not None or len(body) > keeping.ANSWER_MAX_BYTES:
        return  # what another model has answered once is not what this one does
    account = asked.account
    cost = None if account is None else account.cost_of(call)
    near, group, vector = NOTHING_NEAR if asked.near is None else asked.near
    stored = Stored(
        like.key,
        like.scope,
        call.served_model or "",
        like.path,
        body,
        asked.request_id,
        usage.prompt_tokens,
        usage.completion_tokens,
        cost or 0.0,
        unix_s(),
        near,
        group,
        vector,
    )
    caches.put(stored, stays=bool(call.residency))


def _look_again(caches: Optional[Caches], asked: Asked, like: Likeness) -> Steps[Optional[Found]]:
    """Look for what another gateway says that it has kept just now."""
    if caches is None:
        return None
    asked.redis_s = 0.0  # it is asked only when there is something
    return (yield from caches.elsewhere(asked, like.key, None))
