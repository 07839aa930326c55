"""Asking engines for one call: try, wait for a place, pause, go on elsewhere.

The one place where routing (who is asked) meets upstream (asking). `Asker` holds no lock of its own: choosing is locked
per model in routing/, and a `Call` belongs to one thread at a time. One try is made by `attempts.py`.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import Callable, Optional, Union

from gateway.attempts import Attempts, OnCrash, TimeLimits
from gateway.engines import SizeLimits
from gateway.errors import EngineFailed, RequestRefused
from gateway.hedging import Answer, Tried
from gateway.rescue import Onward
from gateway.routing.engine import Engine
from gateway.routing.pool import ModelPool
from gateway.routing.providers import endpoint_of
from gateway.routing.regions import within
from gateway.routing.retry import CANCELLED, Outcome
from gateway.routing.router import Router
from gateway.routing.splits import SplitSpec
from gateway.routing.standing import StateChange
from gateway.routing.tries import Step, Tries
from gateway.steps import Steps
from gateway.upstream.call import CHAT, Call
from gateway.upstream.client import EngineClient
from gateway.upstream.fields import BY_PATH
from gateway.upstream.stream import EngineStream
from gateway.waiting import step_after_wait


class Asker:
    """Asks engines for calls. Thread-safe."""

    def __init__(
        self,
        router: Router,
        client: EngineClient,
        limits: TimeLimits,
        retry_attempts: int,
        on_change: Callable[[StateChange], None],
        sizes: SizeLimits,
        on_crash: OnCrash,
    ) -> None:
        self._router = router
        self._limits = limits
        self._retry_attempts = retry_attempts
        self._attempts = Attempts(router, client, limits, on_change, sizes, on_crash)

    def close(self) -> None:
        """Stop watching deadlines."""
        self._attempts.close()

    def forget_changed(self, renewed: Collection[str] = ()) -> None:
        """Take over a reload: see `Engines.forget_changed`."""
        self._attempts.forget_changed(renewed)

    def ask(self, call: Call) -> Steps[Union[Answer, EngineStream]]:
        """Ask engines until one answers; for a stream, until one has sent its first event.

        An `EngineStream` must be closed by the caller with the outcome. Raises GatewayError (ClientGone when
        cancelled). `call` tells afterwards what happened.
        """
        limit_s = self._limits.first_token_s if call.stream else self._limits.request_s
        if call.limit_s is not None:
            limit_s = min(limit_s, call.limit_s)
        deadline_s = time.monotonic() + limit_s
        tries, asked = self._plan(call)
        failed: Optional[tuple[str, str]] = None
        while True:
            step = tries.next()
            if step is None or step.lease is None or step.delay_s:
                step = yield from step_after_wait(call, tries, step, self._limits.place_s, deadline_s)
            if failed is not None and failed[0] == step.pool.name:  # else it is a fallback
                call.retries.append(failed)
            began_s = time.monotonic()
            tried = yield from self._attempts.try_step(call, tries, step, deadline_s)
            call.engine_s += time.monotonic() - began_s
            self._adopt(call, asked, tried)
            result = tried.result
            if not isinstance(result, Outcome):
                return result
            if result.kind == "rejected":
                raise RequestRefused("backend_rejected", result.message, status=result.status, engine=result.details)
            if result.kind == "not_implemented":
                self._pass_over(call, tries, tried.engine, result)
            tries.failed(result)
            if call.form is not None and call.form.spent:
                raise tries.error()  # nobody has the form any more
            failed = (tried.pool.name, result.kind)
            if time.monotonic() >= deadline_s:
                raise EngineFailed("gateway_timeout", f"no answer within {limit_s:g} s")

    def _pass_over(self, call: Call, tries: Tries, engine: Engine, said: Outcome) -> None:
        """Ask others, where there are any: the engine's dialect has no words for the request, or it has said that it
        has no such endpoint. Raises RequestRefused."""
        if said.status is None:  # it has not been asked
            call.attempts -= 1
            if not tries.pass_over(lambda one: one.spec.dialect == engine.spec.dialect):
                param = (said.details or {}).get("param")
                raise RequestRefused("not_supported", said.message, param=param if type(param) is str else None)
        elif BY_PATH[call.path].passes and not tries.pass_over(lambda one: one is engine):
            raise _not_served(call.path, tries.asked.name)

    def _plan(self, call: Call) -> tuple[Tries, ModelPool]:
        """The tries of a call, and the model that it asks for. Raises GatewayError."""
        router = self._router
        if call.model is None:
            call.model = router.unnamed()
        if router.splits is not None:
            self.choose(call, call.session or call.caller)
        asked = router.route(call.model, call.allow_fallback, call.may_use)
        named: Sequence[str] = ()
        if call.stand_ins is not None:
            if call.allow_fallback:
                asked = router.with_stand_ins(asked, call.stand_ins)
            named = [pool.name for pool in asked[1:]]
        if asked[0].spec.params is not None:
            call.adapt(asked[0].spec.params)
        pools = self._that_fit(call, asked) if router.knows_context else asked
        own, may_use = pools[0], call.may_use
        if may_use is not None:  # a key that may not ask a model does not fall back to it either
            pools = tuple(pool for pool in pools if may_use(pool.name))
            if not pools:
                raise RequestRefused("forbidden", "no model with room for the request is allowed for this key")
        if call.residency:
            named = named or router.named_by(own)
            pools = _that_are_within(call, pools, named)
        unable: tuple[Engine, ...] = ()
        if call.path != CHAT or router.engines_differ:
            named = named or router.named_by(own)
            pools, unable = _that_serve(call, pools, named)
        affinity = b""
        if router.uses_affinity and any(pool.strategy_name == "prefix_affinity" for pool in pools):
            affinity = call.affinity()
        accusers = router.accusers
        avoid = accusers.avoided(call.caller) if accusers.told else ()
        limit = self._retry_attempts
        reaches = router.reaches
        tries = Tries(
            pools, limit, affinity, call.priority, router.jitter, avoid, reaches, named, unable, own, call.residency
        )
        return tries, asked[0]

    def choose(self, call: Call, key: str) -> Optional[SplitSpec]:
        """Where others answer for the model that a call asks for, have it ask one of those; None: it has engines of its
        own. `key`: whose request it is, "": nobody's. Raises `backend_unavailable` when none of them is there."""
        split = (self._router.splits or {}).get(call.model)
        if split is None:
            return None
        stand_ins = self._router.stand_ins_of(split)
        there = self._router.there([name for name, _ in split.shares], call.path, call.residency)
        chosen = split.choose(key, there, self._router.jitter)
        if chosen is None and call.allow_fallback:
            chosen = self._router.stand_in(stand_ins or ())
        if chosen is None:
            raise EngineFailed("backend_unavailable", f"no engine lists what {split.name} is made of")
        call.split, call.model, call.stand_ins = split.name, chosen, stand_ins
        if split.params is not None:
            call.change(split.params)
        return split

    def _that_fit(self, call: Call, pools: tuple[ModelPool, ...]) -> tuple[ModelPool, ...]:
        """The pools whose context has room for the call. Raises `context_too_long`."""
        if all(pool.spec.max_model_len is None for pool in pools):
            return pools
        own = pools[0].spec
        tokens = call.estimated_tokens(own.params)
        if own.max_model_len is not None and tokens > own.max_model_len:
            for name in own.context_fallbacks if call.allow_fallback else ():
                larger = self._router.route_beyond(pools[0], name)
                limit = larger[0].spec.max_model_len
                if not larger[0].is_within(call.residency):
                    continue
                if limit is None or _takes(call, larger[0], tokens) <= limit:
                    pools = larger
                    break
            else:
                raise RequestRefused(
                    "context_too_long",
                    f"the request takes about {tokens} tokens, {own.name} has room for {own.max_model_len}",
                    param=BY_PATH[call.path].own,
                    details={"estimated_tokens": tokens, "max_model_len": own.max_model_len},
                )
        limits = ((pool, pool.spec.max_model_len) for pool in pools)
        return tuple(pool for pool, limit in limits if limit is None or _takes(call, pool, tokens) <= limit)

    def _adopt(self, call: Call, asked: ModelPool, tried: Tried) -> None:
        """Note the try that counts, for what the client is told."""
        call.engine_id, call.region = tried.engine.id, tried.engine.spec.region
        call.context_tokens = tried.pool.spec.max_model_len
        call.served_model = tried.pool.name if tried.pool.spec.prefix is None else call.model or tried.pool.name
        call.fallback = None if tried.pool is asked else f"{asked.name}->{tried.pool.name}"
        if isinstance(tried.result, Answer):
            call.usage = tried.result.usage

    def resume(self, call: Call, broken: EngineStream) -> Steps[Optional[EngineStream]]:
        """Ask another engine of the same model to go on after the text that a broken stream has given; None: cannot.

        The new stream must be closed by the caller. Raises ClientGone.
        """
        text = broken.events.text
        pool = self._router.pools.get(call.served_model or "")
        if text is None or pool is None or call.resumed >= self._retry_attempts:
            return None
        if call.must_stay and not self._router.is_near(pool):  # by now
            return None
        onward = call.continuation(text, pool.spec.params)
        deadline_s = time.monotonic() + self._limits.first_token_s
        others = [engine for engine in pool.engines if not engine.spec.resume or engine.id == call.engine_id]
        request = Onward(pool, others, call.residency)
        while time.monotonic() < deadline_s and request.take_retry():
            lease = pool.acquire(others, b"", (), call.residency)
            if lease is None:
                return None
            if lease.engine in others:
                pool.settle(lease, CANCELLED, 0.0)
                return None
            others.append(lease.engine)
            call.attempts += 1
            step = Step(pool, lease)
            began_s = time.monotonic()
            try:
                attempt = self._attempts.new_attempt(request, step, deadline_s, call.must_stay)
                tried = yield from self._attempts.attempt(onward, step, attempt, broken.events)
            except EngineFailed:
                return None  # the gateway itself has run short of something
            call.engine_s += time.monotonic() - began_s
            if isinstance(tried.result, EngineStream):
                call.resumed += 1
                call.engine_id, call.region = tried.engine.id, tried.engine.spec.region
                return tried.result
            if isinstance(tried.result, Answer):
                return None
        return None


def _that_serve(
    call: Call, pools: tuple[ModelPool, ...], named: Sequence[str]
) -> tuple[tuple[ModelPool, ...], tuple[Engine, ...]]:
    """The pools with engines that have the call's path, and those of their engines that have not; for a model that has
    it not, and has not failed elsewhere, only those `named` to stand in. Raises `endpoint_not_served`."""
    path = call.path
    unable = {pool: _with_those_outside(call, pool, pool.unable(path)) for pool in pools}
    if call.lacking is not None:
        for pool in pools:
            lacking = pool.unable(call.lacking)
            unable[pool] = tuple(one for one in pool.engines if one in unable[pool] or one not in lacking)
    elif pools[0].engines and len(unable[pools[0]]) == len(pools[0].engines):
        pools = (pools[0], *(pool for pool in pools[1:] if pool.name in named))
    able = tuple(pool for pool in pools if len(unable[pool]) < len(pool.engines))
    if not able and pools[0].engines:
        raise _not_served(path, pools[0].name)
    return able or pools, tuple(engine for pool in able for engine in unable[pool])


def _with_those_outside(call: Call, pool: ModelPool, unable: tuple[Engine, ...]) -> tuple[Engine, ...]:
    """The engines of a model that are not for a call."""
    if not call.residency:
        return unable
    return tuple(one for one in pool.engines if one in unable or not within(one.spec.region, call.residency))


def _that_are_within(call: Call, pools: tuple[ModelPool, ...], named: Sequence[str]) -> tuple[ModelPool, ...]:
    """The pools with engines that may have what must stay where the call says; where the first has none, which is no
    failure of it, only those `named` to stand in. Raises `residency_not_served`."""
    first = pools[0]
    if not first.is_within(call.residency):
        pools = (first, *(pool for pool in pools[1:] if pool.name in named))
    able = tuple(pool for pool in pools if pool.is_within(call.residency))
    if not able and first.engines:
        text = f"no engine of the model {first.name} is in the region {call.residency}, where the request must stay"
        raise RequestRefused("residency_not_served", text, param="model")
    return able or pools


def _not_served(path: str, model: str) -> RequestRefused:
    text = f"no engine of the model {model} has anything like {endpoint_of(path)}"
    return RequestRefused("endpoint_not_served", text, param="model")


def _takes(call: Call, pool: ModelPool, tokens: int) -> int:
    """Tokens of the context that a call takes of a model, where it takes `tokens` of the one that it asks for."""
    return tokens if pool.spec.params is None and not call.is_adapted else call.estimated_tokens(pool.spec.params)
