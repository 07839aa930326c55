"""Asking one engine for a call: the request in its words, the head of the answer, a stream or a complete answer.

`Engines` owns the prepared endpoints and the watchdog of attempts; it holds no lock of its own. It chooses no engine
and judges no outcome: what fails is raised.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import NamedTuple, Optional, Union

from gateway.completing import complete, echoed, kind_by_label
from gateway.deadlines import Expirable, Watchdog
from gateway.hedging import Answer
from gateway.routing.engine import Engine
from gateway.routing.pool import ModelPool
from gateway.routing.providers import RESPONSES
from gateway.routing.regions import within
from gateway.routing.retry import Outcome
from gateway.routing.router import Router
from gateway.steps import ASIDE, Opened, Steps
from gateway.traces.context import lines_for, new_span_id
from gateway.upstream import assembly
from gateway.upstream.attempt import Attempt, EngineFault, UsageRefused
from gateway.upstream.call import Call
from gateway.upstream.client import Conversation, EngineClient, refused
from gateway.upstream.endpoint import Endpoint
from gateway.upstream.estimates import tokens_of
from gateway.upstream.fields import BY_PATH
from gateway.upstream.passed import (
    EVENTS_TYPE,
    JSON_TYPE,
    PassedEvents,
    PassedJson,
    ResponsesEvents,
    UsageEvents,
    decoded,
    media_type_of,
    usage_in,
)
from gateway.upstream.response import ANSWER_MAX_BYTES, EngineResponse
from gateway.upstream.skim import LARGE_BYTES
from gateway.upstream.sniff import EMPTY, EVENTS, OTHER
from gateway.upstream.sse import EVENT_MAX_BYTES, EventStream
from gateway.upstream.stream import EngineStream
from gateway.upstream.translated import BY_DIALECT, Dialect, TranslatedEvents, answered, payload, refusal


class SizeLimits(NamedTuple):
    """Bytes: of a complete answer, and of one event of a stream, or of what comes before the first one."""

    answer_bytes: int = ANSWER_MAX_BYTES
    event_bytes: int = EVENT_MAX_BYTES


HELD_BYTES = 65_536  # of an answer that is passed on: a larger one begins before it has come
LACKING = (404, 405, 501)  # what an engine says of an endpoint that it has not
USUAL_SIZES = SizeLimits()


class Engines:
    """Asks engines. Thread-safe. `stream_end_s`: what an engine gets to end a complete stream."""

    def __init__(self, router: Router, client: EngineClient, stream_end_s: float, sizes: SizeLimits) -> None:
        self._router = router
        self._client = client
        self._stream_end_s = stream_end_s
        self._sizes = sizes
        self._endpoints: dict[Engine, Endpoint] = {}
        self._watchdog = Watchdog("engine-deadlines")
        self._watchdog.start()

    def watch(self, item: Expirable) -> None:
        """Have the thread of deadlines look at something more."""
        self._watchdog.watch(item)

    def close(self) -> None:
        """Stop watching deadlines."""
        self._watchdog.close()

    def forget_changed(self, renewed: Collection[str] = ()) -> None:
        """Take over a reload: prepare engines anew whose configuration has changed, close what belonged to those gone.

        `renewed` names the variables (`api_key_env`) whose secrets have changed.
        """
        kept = {engine: engine.spec for pool in self._router.pools.values() for engine in pool.engines}
        old = dict(self._endpoints)
        still = {e: p for e, p in old.items() if kept.get(e) == p.spec and p.spec.api_key_env not in renewed}
        used = {endpoint.spec for endpoint in still.values()}
        # First, so that who misses one in `still` gets one with the new key; in `old` it is found, closed or not.
        self._client.forget([p.spec for p in old.values() if p.spec not in used])
        self._endpoints = still  # from now on requests add to it

    def discard_idle(self, engine: Engine) -> None:
        """Close what is kept open to an engine that has gone."""
        endpoint = self._endpoints.get(engine)
        if endpoint is not None:
            endpoint.pool.discard_idle()

    def served_model(self, call: Call, pool: ModelPool) -> str:
        """The name by which the client is told of a model."""
        return pool.name if pool.spec.prefix is None else call.model or pool.name

    def ask(
        self, call: Call, pool: ModelPool, engine: Engine, attempt: Attempt, earlier: Optional[EventStream]
    ) -> Steps[Union[Answer, EngineStream]]:
        """One engine's answer to a call, or the stream of it that has begun; `earlier` is the broken stream that is to
        go on. Raises EngineFault, GatewayError."""
        if call.residency and not within(engine.spec.region, call.residency):
            # A reload has just said so, or it would not be here.
            raise EngineFault(Outcome("moved", f"the engine is not in the region {call.residency}"))
        model = pool.name if pool.spec.prefix is None else self.served_model(call, pool)
        if engine.spec.is_echo:
            yield ASIDE  # it may be asked for much
            return echoed(call, model)
        dialect, passes = BY_DIALECT.get(engine.spec.dialect), BY_PATH[call.path].passes
        try:
            response = yield Opened(self._conversation(call, pool, engine, attempt, dialect, passes))
            if passes:
                passed = yield from self._passed(response, call, pool, engine)
                if not isinstance(passed, EngineStream):
                    call.end(attempt)
                return passed
            if not 200 <= response.status < 300:
                response = yield from self._see_refused(response, call, pool, engine, attempt, dialect)
            try:
                body = None if call.stream else response.take_object(self._sizes.answer_bytes)
                if body is None:
                    attempt.begun = not call.stream  # else nobody knows yet of what
                    kind = response.kind()
                    if kind is None:
                        kind = yield from response.await_kind()
                    stream = self._open_stream(call, engine, earlier, response, kind)
                    if stream is None:
                        body = yield from response.read_all(self._sizes.answer_bytes)
                    elif call.stream:
                        yield from stream.wait_first()
                        return stream
                    else:
                        body = yield from assembly.assemble(stream, call.path, self._sizes.answer_bytes)
                        dialect = None  # it has been read from that
                        stream.give_back()
                response.release()
            except BaseException:
                response.close()
                raise
        except BaseException:
            call.end(attempt)
            raise
        finally:
            self._watchdog.forget(attempt)
        call.end(attempt)
        if dialect is not None:
            if len(body) > LARGE_BYTES:
                yield ASIDE
            body = answered(dialect, body)
        return complete(call, body, model, pool.spec.max_model_len, self._sizes.event_bytes)

    def _passed(
        self, response: EngineResponse, call: Call, pool: ModelPool, engine: Engine
    ) -> Steps[Union[Answer, EngineStream]]:
        """The answer as it is: whole, where it is JSON and not large or was asked for with GET, or as it comes."""
        try:
            if not 200 <= response.status < 300:
                yield from self._see_lacking(response, call, pool, engine)
            pool.found_having(engine, call.path)
            media_type = media_type_of(response)
            is_json = media_type.lower().startswith(JSON_TYPE)
            is_read = BY_PATH[call.path].method == "GET"  # or HEAD, whose answer must not begin to come
            is_events = not is_read and media_type.lower().startswith(EVENTS_TYPE)
            if is_read or (call.shape is not None and not is_events):
                body = bytes((yield from response.read_all(self._sizes.answer_bytes)))
            else:
                body = yield from response.read_begin(
                    HELD_BYTES if is_json else 1
                )  # who has begun is tried nowhere else
            if is_events or not response.decoder.complete:
                events = PassedJson() if is_json else PassedEvents()
                if is_events:
                    is_native = call.path == RESPONSES
                    events = ResponsesEvents(call.shape is not None) if is_native else UsageEvents()
                stream = EngineStream(response, events, self._stream_end_s)
                stream.begin_with(body)
                return stream
            response.release()
        except BaseException:
            response.close()
            raise
        usage = usage_in(decoded(body) if is_json else None, tokens_of(call.prompt_weight()))
        return Answer(body, usage, None, media_type)

    def _see_lacking(self, response: EngineResponse, call: Call, pool: ModelPool, engine: Engine) -> Steps[None]:
        """See to a refusal of what is passed on. An engine that has not the endpoint is remembered. Raises
        EngineFault."""
        try:
            yield from refused(response)
        except EngineFault as fault:
            said = fault.outcome
            if said.status not in LACKING or "model" in said.message.lower():  # it has the endpoint, not the model
                raise
            if not pool.found_lacking(engine, call.path, said.status):
                raise
            raise EngineFault(said._replace(kind="not_implemented")) from fault

    def _conversation(
        self,
        call: Call,
        pool: ModelPool,
        engine: Engine,
        attempt: Attempt,
        dialect: Optional[Dialect],
        passes: bool = False,
        ask_usage: bool = True,
    ) -> Conversation:
        """The request to be opened; the attempt is watched from now on. Raises ClientGone.

        `dialect`: the engine's. `passes`: the request is passed on as it is. `ask_usage` False: not for a stream's
        usage, unless the client does.
        """
        endpoints = self._endpoints  # before `spec`: one that a reload has changed meanwhile must not get into the new
        endpoint = endpoints.get(engine)
        if endpoint is None:
            endpoint = endpoints[engine] = self._client.endpoint(engine.spec)
        attempt.masked = endpoint.masked
        call.begin(attempt)
        lines, trace = f"X-Request-ID: {call.request_id}\r\n", call.trace
        if call.idempotency_key:
            lines += f"Idempotency-Key: {call.idempotency_key}\r\n"
        if trace is not None:
            span_id = attempt.span_id = attempt.span_id or new_span_id()  # asked once more, it is the same attempt
            if trace.told:
                lines += lines_for(trace, span_id)
        headers = lines.encode("latin-1")
        attempt.asks_usage = (
            call.stream and ask_usage and dialect is None and endpoint.asks_usage and not call.wants_usage()
        )
        spec = pool.spec
        name = engine.spec.model
        if name is None:
            name = pool.name if spec.prefix is None else call.model and call.model[len(spec.prefix) :]
        if passes and (call.form is not None or BY_PATH[call.path].method == "GET"):
            self._watchdog.watch(attempt)
            return self._client.passing(endpoint, call.path, attempt, call.form, name, headers)
        if dialect is None:
            body = call.payload(name, attempt.asks_usage, spec.params)
        else:
            body = payload(dialect, call, name, spec.params)
        self._watchdog.watch(attempt)
        return self._client.conversation(endpoint, call.path, attempt, body, headers)

    def _see_refused(
        self,
        response: EngineResponse,
        call: Call,
        pool: ModelPool,
        engine: Engine,
        attempt: Attempt,
        dialect: Optional[Dialect],
    ) -> Steps[EngineResponse]:
        """See to an answer other than 2xx. Raises EngineFault.

        An engine that refuses to be asked for a stream's usage, which is the gateway's own wish, is asked again at once
        without, as part of the same attempt; one that answers then is not asked for it any more.
        """
        try:
            yield from refused(response, None if dialect is None else functools.partial(refusal, dialect))
        except UsageRefused:  # by one that speaks OpenAI's: others are not asked for it
            pass
        (call.origin or call).attempts += 1
        attempt.begun = False  # its answer is to come still
        response = yield Opened(self._conversation(call, pool, engine, attempt, None, ask_usage=False))
        if not 200 <= response.status < 300:
            yield from refused(response)
        endpoint = self._endpoints.get(engine)
        if endpoint is not None:  # else a reload has taken it
            endpoint.asks_usage = False
        return response

    def _open_stream(
        self,
        call: Call,
        engine: Engine,
        earlier: Optional[EventStream],
        response: EngineResponse,
        kind: Optional[str],
    ) -> Optional[EngineStream]:
        """The answer as a stream, if it is one, by how it begins; `earlier` is what it goes on after. Raises
        EngineFault for what cannot be one though one was asked for.

        One that nobody asked for is to be put together.
        """
        if call.stream and kind == EMPTY:
            raise EngineFault(Outcome("truncated", "the engine's answer is empty"))
        if call.stream and kind == OTHER:
            kind = kind_by_label(response)
        # Of a stream, there is nothing until its first event.
        response.attempt.begun = not call.stream or kind not in (None, EVENTS)
        if kind != EVENTS:
            return None
        resumes = engine.spec.resume and call.can_resume()
        dialect, hides = BY_DIALECT.get(engine.spec.dialect), call.stream and not call.wants_usage()
        if dialect is None:
            events = EventStream(hides, call.choices(), resumes, self._sizes.event_bytes)
        else:
            events = TranslatedEvents(dialect, hides, call.choices(), resumes, self._sizes.event_bytes)
        if earlier is not None:
            events.continue_from(earlier)
        return EngineStream(response, events, self._stream_end_s)
