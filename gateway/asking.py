"""Asking engines for one call: try, wait for a place, pause, hedge, go on elsewhere.

The one place where routing (who is asked) meets upstream (asking). `Asker` owns the prepared endpoints and the
watchdog; it holds no lock of its own: choosing is locked per model in routing/, and a `Call` belongs to one thread.
Two attempts of a hedged call meet in a `Race`, whose lock guards who has won; an attempt that is ended because its
engine has gone out meets whoever waits for it in `Rescue`.
"""

from __future__ import annotations

import functools
import json
import threading
import time
from collections.abc import Collection
from typing import Any, Callable, NamedTuple, Optional, Union

from gateway.deadlines import Watchdog
from gateway.errors import ClientGone, EngineFailed, GatewayError, RequestRefused
from gateway.hedging import Answer, Race, Tried
from gateway.rescue import Leaver, Onward, Rescue
from gateway.routing.engine import Engine
from gateway.routing.line import Lease, Waiter
from gateway.routing.pool import ModelPool
from gateway.routing.retry import CANCELLED, CRASHED, OK, Outcome
from gateway.routing.router import Router
from gateway.routing.standing import StateChange
from gateway.routing.tries import Step, Tries
from gateway.telemetry.events import AttemptRecord
from gateway.upstream import answers, assembly, echo
from gateway.upstream.attempt import HUNG, Attempt, EngineFault, UsageRefused
from gateway.upstream.bounds import bounds_of
from gateway.upstream.call import Call
from gateway.upstream.client import EngineClient
from gateway.upstream.endpoint import Endpoint
from gateway.upstream.estimates import weight_of_choices
from gateway.upstream.fields import BY_PATH
from gateway.upstream.response import ANSWER_MAX_BYTES, EngineResponse
from gateway.upstream.sent import Sent
from gateway.upstream.skim import LARGE_BYTES
from gateway.upstream.sniff import EMPTY, EVENTS, OTHER
from gateway.upstream.sse import EVENT_MAX_BYTES, EventStream
from gateway.upstream.stream import GRACE_S, EngineStream

HEDGE_TICK_S = 0.01
LINE_LOOK_S = 0.25  # how often who waits looks for an engine whose time outside has ended


class Asking:
    """A call on its way through the engines. For one thread at a time.

    From `Asker.begin` it has its first `step` and, where that needs no waiting, `sent`: the engine has been asked.
    """

    __slots__ = ("asked", "attempt", "began_s", "call", "deadline_s", "limit_s", "sent", "step", "tried", "tries")

    def __init__(self, call: Call, tries: Tries, asked: ModelPool, deadline_s: float, limit_s: float) -> None:
        self.call = call
        self.tries = tries
        self.asked = asked
        self.deadline_s = deadline_s
        self.limit_s = limit_s
        self.step: Optional[Step] = None
        self.attempt: Optional[Attempt] = None
        self.sent: Optional[Sent] = None
        self.began_s = 0.0
        self.tried: Optional[Tried] = None


class TimeLimits(NamedTuple):
    """Seconds: for all attempts of a complete answer, until a stream's first event, for a place on an engine, for the
    end of a complete stream."""

    request_s: float = 60.0
    first_token_s: float = 60.0
    place_s: float = 30.0
    stream_end_s: float = GRACE_S


class SizeLimits(NamedTuple):
    """Bytes: of a complete answer, and of one event of a stream, or of what comes before the first one."""

    answer_bytes: int = ANSWER_MAX_BYTES
    event_bytes: int = EVENT_MAX_BYTES


USUAL_SIZES = SizeLimits()

OnCrash = Callable[[Exception, str, str], None]
"""Told of what nobody had foreseen in an attempt: the exception, the model and the engine."""


class Asker:
    """Runs calls. Thread-safe."""

    def __init__(
        self,
        router: Router,
        client: EngineClient,
        limits: TimeLimits,
        retry_attempts: int,
        on_change: Callable[[StateChange], None],
        sizes: SizeLimits = USUAL_SIZES,
        on_crash: OnCrash = lambda error, model, engine: None,
    ) -> None:
        self._router = router
        self._client = client
        self._limits = limits
        self._retry_attempts = retry_attempts
        self._told = on_change
        self._sizes = sizes
        self._on_crash = on_crash
        self._endpoints: dict[Engine, Endpoint] = {}
        self._watchdog = Watchdog("engine-deadlines")
        self._rescue = Rescue(limits.place_s)
        self._watchdog.watch(self._rescue)
        self._watchdog.start()
        # Of its own: a hedge wants finer ticks than a deadline, and only where a model hedges.
        self._hedges = Watchdog("hedges", tick_s=HEDGE_TICK_S)
        self._hedging = False
        self._watch_hedges()

    def close(self) -> None:
        """Stop watching deadlines."""
        self._watchdog.close()
        self._hedges.close()

    def _watch_hedges(self) -> None:
        hedging = any(pool.spec.hedge_after_ms is not None for pool in self._router.pools.values())
        if hedging and not self._hedging:
            self._hedging = True
            self._hedges.start()

    def forget_changed(self, renewed: Collection[str] = ()) -> None:
        """After a reload: prepare engines anew whose configuration has changed, close what belonged to those gone.

        `renewed` names the variables (`api_key_env`) whose secrets have changed.
        """
        kept = {engine: engine.spec for pool in self._router.pools.values() for engine in pool.engines}
        old = dict(self._endpoints)
        still = {e: p for e, p in old.items() if kept.get(e) == p.spec and p.spec.api_key_env not in renewed}
        used = {endpoint.spec for endpoint in still.values()}
        # First, so that who misses one in `still` gets one with the new key; in `old` it is found, closed or not.
        self._client.forget([p.spec for p in old.values() if p.spec not in used])
        self._endpoints = still  # from now on requests add to it
        self._watch_hedges()

    # --- a call ----------------------------------------------------------------------------------------------------

    def run(self, call: Call) -> Union[Answer, EngineStream]:
        """Ask engines until one answers; for a stream, until one has sent its first event.

        An `EngineStream` must be closed by the caller with the outcome. Raises GatewayError (ClientGone when
        cancelled). `call` tells afterwards what happened.
        """
        return self._until_answered(self._plan(call))

    def begin(self, call: Call) -> Asking:
        """Begin what `run` does, without ever blocking: choose an engine and, if it can be asked at once, ask it.

        With `sent` in the result: `take` when its socket is readable; without: `go_on`. Raises GatewayError.
        """
        asking = self._plan(call)
        step = asking.step = asking.tries.next()
        if step is None:
            raise asking.tries.error()
        pool, lease = step.pool, step.lease
        if lease is None or step.delay_s or pool.spec.hedge_after_ms is not None:
            return asking
        engine = lease.engine
        if engine.spec.is_echo:
            return asking
        asking.began_s = time.monotonic()
        attempt = self._attempt_of(asking.tries, step, asking.deadline_s)
        try:
            open_stream = functools.partial(self._open_stream, call, engine, None) if call.stream else None
            asking.sent = self._client.send(*self._prepare(call, pool, engine, attempt), open_stream)
        except GatewayError:
            self._over(call, attempt)
            pool.settle(lease, CANCELLED, 0.0)
            raise
        except Exception as error:
            self._over(call, attempt)
            call.attempts += 1
            outcome = self._outcome_of(error, attempt, pool, engine)
            self._settle(call, pool, lease, outcome, 0.0, 0.0)
            asking.tried = Tried(outcome, pool, engine)
            return asking
        if asking.sent is None:
            self._over(call, attempt)
        else:
            asking.attempt = attempt
        return asking

    def take(self, asking: Asking) -> Union[Answer, EngineStream, None]:
        """The answer to what `begin` has sent, when it is all there and good, or a stream whose first event is there.

        None: only `go_on` can tell more. Never blocks. Call it when `sent.receive()` says that there is nothing more to
        wait for.
        """
        assert asking.sent is not None
        if not asking.sent.ready:
            return None
        tried = asking.tried = self._try_sent(asking)
        result = tried.result
        if isinstance(result, Outcome):
            return None
        self._adopt(asking.call, asking.asked, tried)
        return result

    def go_on(self, asking: Asking) -> Union[Answer, EngineStream]:
        """Go on, from what `begin` has begun, as `run` would; may block. Raises GatewayError."""
        return self._until_answered(asking)

    def _plan(self, call: Call) -> Asking:
        limit_s = self._limits.first_token_s if call.stream else self._limits.request_s
        deadline_s = time.monotonic() + limit_s
        if call.model is None:
            call.model = self._router.unnamed()
        asked = self._router.route(call.model, call.allow_fallback, call.may_use)
        pools = self._that_fit(call, asked)
        may_use = call.may_use
        if may_use is not None:  # a key that may not ask a model does not fall back to it either
            pools = tuple(pool for pool in pools if may_use(pool.name))
            if not pools:
                raise RequestRefused("forbidden", "no model with room for the request is allowed for this key")
        affinity = b""
        if self._router.uses_affinity and any(pool.strategy_name == "prefix_affinity" for pool in pools):
            affinity = call.affinity()
        accusers = self._router.accusers
        avoid = accusers.avoided(call.caller) if accusers.told else ()
        router = self._router
        tries = Tries(pools, self._retry_attempts, affinity, call.priority, router.jitter, avoid, router.reaches)
        return Asking(call, tries, asked[0], deadline_s, limit_s)

    def _until_answered(self, asking: Asking) -> Union[Answer, EngineStream]:
        call, tries, deadline_s = asking.call, asking.tries, asking.deadline_s
        failed: Optional[tuple[str, str]] = None
        while True:
            tried = asking.tried
            if tried is None and asking.sent is not None:
                tried = self._try_sent(asking)
            elif tried is None:
                step = self._next(call, tries, deadline_s, asking.step)
                if failed is not None and failed[0] == step.pool.name:  # else it is a fallback
                    call.retries.append(failed)
                tried = self._try_step(call, tries, step, deadline_s)
            asking.tried = asking.sent = asking.step = None
            self._adopt(call, asking.asked, tried)
            result = tried.result
            if not isinstance(result, Outcome):
                return result
            if result.kind == "rejected":
                raise RequestRefused("backend_rejected", result.message, status=result.status, engine=result.details)
            tries.failed(result)
            failed = (tried.pool.name, result.kind)
            if time.monotonic() >= deadline_s:
                raise EngineFailed("gateway_timeout", f"no answer within {asking.limit_s:g} s")

    def _that_fit(self, call: Call, pools: tuple[ModelPool, ...]) -> tuple[ModelPool, ...]:
        """The pools whose context has room for the call. Raises `context_too_long`."""
        if not self._router.knows_context or all(pool.spec.max_model_len is None for pool in pools):
            return pools
        tokens = call.estimated_tokens()
        own = pools[0].spec
        if own.max_model_len is not None and tokens > own.max_model_len:
            for name in own.context_fallbacks if call.allow_fallback else ():
                larger = self._router.route_beyond(pools[0], name)
                limit = larger[0].spec.max_model_len
                if limit is None or tokens <= limit:
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
        return tuple(pool for pool, limit in limits if limit is None or tokens <= limit)

    def _next(self, call: Call, tries: Tries, deadline_s: float, step: Optional[Step] = None) -> Step:
        """The next step with a place on an engine, after waiting for one, and after the pause before a repeated try.

        `step` None: it is still to be found.
        """
        while True:
            if step is None:
                step = tries.next()
            if step is None:
                raise tries.error()
            lease = step.lease
            if step.waiter is not None:
                lease = self._wait_in_line(call, step.pool, step.waiter, deadline_s)
                if lease is not None and not tries.may_ask(step.pool):  # its engines have moved meanwhile
                    step.pool.settle(lease, CANCELLED, 0.0)
                    lease = None
                if lease is None:
                    step = None
                    continue
                step = tries.granted(step.pool, lease)
            assert lease is not None
            if step.delay_s:
                self._pause(call, tries, step, lease, deadline_s)
            return step

    def _pause(self, call: Call, tries: Tries, step: Step, lease: Lease, deadline_s: float) -> None:
        began_s = time.monotonic()
        try:
            if began_s + step.delay_s >= deadline_s:
                raise tries.error()
            call.wait(threading.Event(), step.delay_s)
        except BaseException:
            step.pool.settle(lease, CANCELLED, 0.0)
            raise
        finally:
            call.waited_s += time.monotonic() - began_s

    def _wait_in_line(self, call: Call, pool: ModelPool, waiter: Waiter, deadline_s: float) -> Optional[Lease]:
        """A place; None when no engine of the model is in any more. Raises `overloaded`, `queue_timeout`."""
        began_s = time.monotonic()
        limit_s = min(self._limits.place_s, deadline_s - began_s)
        lease: Optional[Lease] = None
        gone = False
        try:
            left_s = limit_s if waiter.predicted_s <= limit_s else 0.0
            while left_s > 0 and not waiter.ready.is_set():
                call.wait(waiter.ready, min(left_s, LINE_LOOK_S))
                pool.serve_line()
                left_s = began_s + limit_s - time.monotonic()
        except ClientGone:
            gone = True
        finally:
            lease = pool.leave_line(waiter)
            call.waited_s += time.monotonic() - began_s
        if gone:
            if lease is not None:
                pool.settle(lease, CANCELLED, 0.0)
            raise ClientGone()
        if lease is not None or waiter.ready.is_set():
            return lease
        if waiter.predicted_s > limit_s:
            text = f"a place on an engine is {waiter.predicted_s:.0f} s away"
            raise EngineFailed("overloaded", text, retry_after_s=waiter.predicted_s)
        raise EngineFailed("queue_timeout", f"no place on an engine within {limit_s:g} s", retry_after_s=1.0)

    # --- one try ---------------------------------------------------------------------------------------------------

    def _attempt_of(self, tries: Tries, step: Step, deadline_s: float) -> Attempt:
        return self._attempt_for(tries, step, deadline_s, self._router.must_stay(tries.asked, step.pool))

    def _attempt_for(self, request: Leaver, step: Step, deadline_s: float, must_stay: bool) -> Attempt:
        """The attempt at the engine that a step has a place on; it may be ended for another one until `_over`, or the
        end of `_try`."""
        limit_s = step.pool.spec.attempt_timeout_s
        lease = step.lease
        assert lease is not None
        now_s = time.monotonic()
        if lease.others:
            # The engine may still hang: half of the time is left for another, so that no trial costs a client its
            # answer.
            deadline_s = now_s + (deadline_s - now_s) / 2
        if limit_s is not None:
            deadline_s = min(deadline_s, now_s + limit_s)
        attempt = Attempt(deadline_s, (step.pool.name, lease.engine.id))
        attempt.must_stay = must_stay
        self._rescue.enter(attempt, request, lease)
        return attempt

    def _served_model(self, call: Call, pool: ModelPool) -> str:
        return (call.model or pool.name) if self._router.fleet.wildcard else pool.name

    def _adopt(self, call: Call, asked: ModelPool, tried: Tried) -> None:
        """What the client is told: the try that counts."""
        call.engine_id = tried.engine.id
        call.context_tokens = tried.pool.spec.max_model_len
        call.served_model = self._served_model(call, tried.pool)
        call.fallback = None if tried.pool is asked else f"{asked.name}->{tried.pool.name}"
        if isinstance(tried.result, Answer):
            call.usage = tried.result.usage

    def _try_step(self, call: Call, tries: Tries, step: Step, deadline_s: float) -> Tried:
        began_s = time.monotonic()
        if step.pool.spec.hedge_after_ms is None:
            tried = self._try(call, step, self._attempt_of(tries, step, deadline_s))
        else:
            tried = self._try_hedged(call, tries, step, deadline_s)
        call.engine_s += time.monotonic() - began_s
        return tried

    def _try_sent(self, asking: Asking) -> Tried:
        """The rest of a try whose request has been sent."""
        call = asking.call
        assert asking.attempt is not None and asking.step is not None
        tried = self._try(call, asking.step, asking.attempt, None, asking)
        call.engine_s += time.monotonic() - asking.began_s
        return tried

    def _try(
        self,
        call: Call,
        step: Step,
        attempt: Attempt,
        earlier: Optional[EventStream] = None,
        asking: Optional[Asking] = None,
    ) -> Tried:
        """One try of one engine, whose place is given back here, or by the stream when it is closed.

        `earlier` is the broken stream that is to go on; with `asking` the engine has been asked already.
        """
        pool, lease = step.pool, step.lease
        assert lease is not None
        if lease.trial:
            self._on_change(StateChange(pool.name, lease.engine.id, "open", "half_open", "one request on trial"))
        started_s = time.monotonic() if asking is None else asking.began_s
        call.attempts += 1
        outcome = CANCELLED
        stream: Optional[EngineStream] = None
        try:
            result = self._ask(call, pool, lease.engine, attempt, earlier, None if asking is None else asking.sent)
            if isinstance(result, EngineStream):
                if not self._rescue.leave(attempt):  # moved in the moment of its first event, its connection is shut
                    attempt.abort(HUNG)
                    call.end(attempt)
                    result.response.close()
                    raise attempt.failure()
                stream = result
                call.must_stay = attempt.must_stay
            outcome = OK
            return Tried(result, pool, lease.engine)
        except GatewayError:
            raise
        except Exception as error:
            outcome = self._outcome_of(error, attempt, pool, lease.engine)
            return Tried(outcome, pool, lease.engine)
        finally:
            self._rescue.leave(attempt)
            took_s = time.monotonic() - started_s
            if stream is None:
                self._settle(call, pool, lease, outcome, took_s, took_s)
            else:
                change = pool.answered(lease, took_s)  # before anybody else can close the stream
                if change is not None:
                    self._on_change(change)
                stream.on_close(self._settler(call, pool, lease, started_s, took_s))

    def _on_change(self, change: StateChange) -> None:
        """Tell of it; who cannot be told fails no attempt."""
        try:
            self._told(change)
        except Exception as error:
            self._on_crash(error, change.model, change.engine)

    def _outcome_of(self, error: Exception, attempt: Attempt, pool: ModelPool, engine: Engine) -> Outcome:
        """How an attempt has failed. What nobody had foreseen is its failure, too: the engine's answer has brought it
        about, or another engine may do without it."""
        outcome = error.outcome if isinstance(error, EngineFault) else CRASHED
        if outcome is CRASHED:
            cause = error.__cause__ if isinstance(error, EngineFault) else error
            self._on_crash(cause if isinstance(cause, Exception) else error, pool.name, engine.id)
        return attempt.masked(outcome)

    def _settler(
        self, call: Call, pool: ModelPool, lease: Lease, started_s: float, first_s: float
    ) -> Callable[[Outcome], None]:
        def settle(outcome: Outcome) -> None:
            total_s = time.monotonic() - started_s
            (call.origin or call).engine_s += total_s - first_s
            self._settle(call, pool, lease, outcome, first_s, total_s)

        return settle

    def _settle(
        self, call: Call, pool: ModelPool, lease: Lease, outcome: Outcome, answer_s: float, total_s: float
    ) -> None:
        call.records.append(AttemptRecord(pool.name, lease.engine.id, outcome.kind, total_s))
        doubted = (
            outcome.kind == "unauthorized"
            and outcome.status == 403
            and not self._router.accusers.believed(call.caller, lease.engine)
        )
        change = pool.settle(lease, outcome, answer_s, total_s, doubted)
        if change is not None:
            if change.after == "down":
                endpoint = self._endpoints.get(lease.engine)
                if endpoint is not None:
                    endpoint.pool.discard_idle()
            self._on_change(change)

    def _prepare(
        self, call: Call, pool: ModelPool, engine: Engine, attempt: Attempt, ask_usage: bool = True
    ) -> tuple[Endpoint, str, Attempt, bytes, bytes]:
        """What EngineClient is to be told; the attempt is watched from now on, until `_over`. Raises ClientGone.

        `ask_usage` False: not for a stream's usage, unless the client does.
        """
        endpoints = self._endpoints  # before `spec`: one that a reload has changed meanwhile must not get into the new
        endpoint = endpoints.get(engine)
        if endpoint is None:
            endpoint = endpoints[engine] = self._client.endpoint(engine.spec)
        attempt.masked = endpoint.masked
        call.begin(attempt)
        headers = b"X-Request-ID: %b\r\n" % call.request_id.encode("latin-1")
        if call.idempotency_key:
            headers += b"Idempotency-Key: %b\r\n" % call.idempotency_key.encode("latin-1")
        attempt.asks_usage = ask_usage and call.stream and endpoint.asks_usage and not call.wants_usage()
        payload = call.payload(engine.spec.model or self._wire_model(call, pool), attempt.asks_usage)
        self._watchdog.watch(attempt)
        return endpoint, call.path, attempt, payload, headers

    def _over(self, call: Call, attempt: Attempt) -> None:
        self._rescue.leave(attempt)
        self._watchdog.forget(attempt)
        call.end(attempt)

    def _ask(
        self,
        call: Call,
        pool: ModelPool,
        engine: Engine,
        attempt: Attempt,
        earlier: Optional[EventStream],
        sent: Optional[Sent],
    ) -> Union[Answer, EngineStream]:
        model = self._served_model(call, pool)
        if engine.spec.is_echo:
            return _echo(call, model)
        try:
            response = self._head(call, pool, engine, attempt, sent)
            try:
                stream = None if sent is None else sent.stream
                if stream is None and (sent is None or not sent.ready):
                    if call.stream:
                        attempt.begun = False  # nobody knows yet of what
                    response.await_kind()
                    stream = self._open_stream(call, engine, earlier, response)
                if stream is None:
                    body = response.read_all(self._sizes.answer_bytes)
                    response.release()
                elif call.stream:
                    stream.wait_first()
                    return stream
                else:
                    body = assembly.assemble(stream, call.path, self._sizes.answer_bytes)
                    stream.give_back()
            except BaseException:
                response.close()
                raise
        except BaseException:
            call.end(attempt)
            raise
        finally:
            self._watchdog.forget(attempt)
        call.end(attempt)
        return _complete(call, body, model, pool.spec.max_model_len, self._sizes.event_bytes)

    def _head(
        self, call: Call, pool: ModelPool, engine: Engine, attempt: Attempt, sent: Optional[Sent]
    ) -> EngineResponse:
        """The engine's answer, whose body is still to be read. Raises EngineFault.

        An engine that refuses to be asked for a stream's usage, which is the gateway's own wish, is asked again at once
        without, as part of the same attempt; one that answers then is not asked for it any more.
        """
        try:
            if sent is None:
                return self._client.ask(*self._prepare(call, pool, engine, attempt))
            return self._client.answer(sent)
        except UsageRefused:
            pass
        (call.origin or call).attempts += 1
        attempt.begun = False  # its answer is to come still
        prepared = self._prepare(call, pool, engine, attempt, ask_usage=False)
        response = self._client.ask(*prepared)
        prepared[0].asks_usage = False
        return response

    def _open_stream(
        self, call: Call, engine: Engine, earlier: Optional[EventStream], response: EngineResponse
    ) -> Optional[EngineStream]:
        """The answer as a stream, if it is one, as far as can be told yet; `earlier` is what it goes on after. Raises
        EngineFault for what cannot be one though one was asked for.

        One that nobody asked for is to be put together.
        """
        kind = response.kind()
        if call.stream and kind == EMPTY:
            raise EngineFault(Outcome("truncated", "the engine's answer is empty"))
        if call.stream and kind == OTHER:
            kind = _kind_by_label(response)
        # Of a stream, there is nothing until its first event.
        response.attempt.begun = not call.stream or kind not in (None, EVENTS)
        if kind != EVENTS:
            return None
        resumes = engine.spec.resume and call.can_resume()
        events = EventStream(call.stream and not call.wants_usage(), call.choices(), resumes, self._sizes.event_bytes)
        if earlier is not None:
            events.go_on(earlier)
        return EngineStream(response, events, self._limits.stream_end_s)

    def _wire_model(self, call: Call, pool: ModelPool) -> Optional[str]:
        return call.model if self._router.fleet.wildcard else pool.name

    # --- two at once -----------------------------------------------------------------------------------------------

    def _try_hedged(self, call: Call, tries: Tries, step: Step, deadline_s: float) -> Tried:
        """Try one engine, and a second one too when the first has not answered in time; the first answer wins."""
        after_s = step.pool.hedge_after_s()
        attempt = self._attempt_of(tries, step, deadline_s)
        if after_s is None:
            return self._try(call, step, attempt)

        def second() -> Optional[Tried]:
            other = tries.hedge() if step.pool.take_hedge() else None
            if other is None:
                return None
            call.hedged = True
            return self._try(call, other, race.enter(self._attempt_of(tries, other, deadline_s)))

        race = Race(attempt, time.monotonic() + after_s, second)
        self._hedges.watch(race)
        own: Optional[GatewayError] = None
        try:
            first = self._try(call, step, attempt)
        except GatewayError as error:
            if call.cancelled:
                race.close()
                raise
            if not isinstance(error, ClientGone):
                own = error  # the gateway's own fault: only the second attempt may still have an answer
            first = Tried(CANCELLED, step.pool, step.lease.engine)  # type: ignore[union-attr]
        finally:
            self._hedges.forget(race)
        tried = race.finish(first, deadline_s)
        if own is not None and tried is first:
            raise own
        return tried

    # --- going on --------------------------------------------------------------------------------------------------

    def resume(self, call: Call, broken: EngineStream) -> Optional[EngineStream]:
        """Ask another engine of the same model to go on after the text that a broken stream has given; None: cannot.

        The new stream must be closed by the caller. Raises ClientGone.
        """
        text = broken.events.text
        pool = self._router.pools.get(call.served_model or "")
        if text is None or pool is None or call.resumed >= self._retry_attempts:
            return None
        if call.must_stay and not self._router.is_near(pool):  # by now
            return None
        onward = call.continuation(text)
        deadline_s = time.monotonic() + self._limits.first_token_s
        others = [engine for engine in pool.engines if not engine.spec.resume or engine.id == call.engine_id]
        request = Onward(pool, others)
        while time.monotonic() < deadline_s and request.take_retry():
            lease = pool.acquire(others, b"")
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
                attempt = self._attempt_for(request, step, deadline_s, call.must_stay)
                tried = self._try(onward, step, attempt, broken.events)
            except EngineFailed:
                return None  # the gateway itself has run short of something
            call.engine_s += time.monotonic() - began_s
            if isinstance(tried.result, EngineStream):
                call.resumed += 1
                call.engine_id = tried.engine.id
                return tried.result
            if isinstance(tried.result, Answer):
                return None
        return None


def _kind_by_label(response: EngineResponse) -> str:
    """What the answer to a call for a stream is, if not even its beginning tells: a stream whose fields nobody knows,
    where it says so or nothing. Raises EngineFault."""
    label = response.head.headers.get(b"content-type", b"").decode("latin-1")[:100]
    if label and not label.lower().startswith("text/event-stream"):
        text = f"the engine's answer is neither JSON nor an event stream, but {label}"
        raise EngineFault(Outcome("invalid", text))
    return EVENTS


def _complete(
    call: Call, body: Union[bytes, bytearray], model: str, context_tokens: Optional[int], event_bytes: int
) -> Answer:
    """The engine's complete answer, as the client gets it; `body` is no more than that afterwards. Raises
    EngineFault."""
    try:
        body = answers.readable(body)
        if len(body) > LARGE_BYTES:
            large = body if isinstance(body, bytearray) else bytearray(body)
            return _complete_large(call, large, model, context_tokens, event_bytes)
        body = bytes(body)
        parsed = answers.parse_answer(body, call.path)
        usage = _usage(call, parsed, body, context_tokens)
        complete = answers.complete(parsed, body, call.request_id, model, usage)
    except answers.InvalidAnswer as error:
        raise EngineFault(Outcome("invalid", str(error), details=error.details)) from error
    except ValueError as error:  # more digits than Python writes
        raise EngineFault(Outcome("invalid", str(error))) from error
    if call.stream:
        return Answer(_as_stream(call, complete), usage)
    return Answer(complete, usage)


def _complete_large(call: Call, body: bytearray, model: str, context_tokens: Optional[int], event_bytes: int) -> Answer:
    """The same without making objects of what may be millions of values."""
    found = answers.outline_answer(body, call.path)
    if call.stream and (len(body) > event_bytes or found.values > answers.STREAMED_VALUES_MAX):
        raise answers.InvalidAnswer("the engine's answer is no stream, and too large to be made one")
    usage = _usage(call, found.members, body, context_tokens)
    body = answers.complete_large(found, body, call.request_id, model, usage)
    if call.stream:
        return Answer(_as_stream(call, body), usage)
    return Answer(body, usage)


def _as_stream(call: Call, body: Union[bytes, bytearray]) -> bytes:
    """The answer that the client would get, for one who has asked for a stream."""
    answer = json.loads(body)
    if not call.wants_usage():
        answer.pop("usage", None)
    return answers.as_stream(answer, call.path)


def _usage(
    call: Call, parsed: dict[str, Any], body: Union[bytes, bytearray], context_tokens: Optional[int]
) -> answers.Usage:
    """What the answer in `body` has taken, as far as that can be believed."""
    usage = answers.usage_of(parsed.get("usage"), 0, 0, lambda: bounds_of(call, context_tokens))
    if not usage.estimated:
        return usage
    estimate = answers.usage_of(None, call.prompt_weight(), weight_of_choices(body, parsed.get("choices")))
    return estimate._replace(rejected=usage.rejected)


def _echo(call: Call, model: str) -> Answer:
    try:
        answer = echo.answer(call.path, call.request, call.prompt_weight())
    except echo.TooMuch as error:
        raise EngineFault(Outcome("rejected", str(error), status=400)) from error
    answer["id"] = call.request_id
    answer["model"] = model
    reported = answer["usage"]
    usage = answers.Usage(reported["prompt_tokens"], reported.get("completion_tokens", 0), False)
    if not call.stream:
        return Answer(answers.dump(answer), usage)
    chunks = echo.chunks(call.path, answer, call.wants_usage())
    lines = b"".join(b"data: %b\n\n" % answers.dump(chunk) for chunk in chunks)
    return Answer(lines + b"data: [DONE]\n\n", usage)
