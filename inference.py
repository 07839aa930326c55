"""The library's face, and the one place where routing (who is asked) meets upstream (asking).

    from inference import InferenceFactory, EngineSpec
    with InferenceFactory({"13b": ["http://127.0.0.1:8010/v1"]}) as factory:
        print(factory.generate("what is python", model="13b"))

`InferenceFactory` owns the router, the connections, the health checker and the watchdog. It holds no lock of its own:
choosing is locked per model in routing/, and a `Call` belongs to one thread, except for `cancel`.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any, Callable, Optional, Union

from gateway.deadlines import Watchdog
from gateway.errors import ClientGone, EngineFailed, GatewayError, RequestRefused
from gateway.routing.engine import Engine
from gateway.routing.pool import EngineSnapshot, ModelPool, StateChange
from gateway.routing.retry import Outcome
from gateway.routing.router import Router, Tries
from gateway.routing.specs import EngineSpec, FleetSpec, ModelSpec, model_from
from gateway.telemetry.events import AttemptRecord
from gateway.upstream import answers, echo
from gateway.upstream.client import Attempt, Endpoint, EngineClient, EngineFault
from gateway.upstream.prober import HealthChecker
from gateway.upstream.sse import EventStream
from gateway.upstream.stream import EngineStream

__all__ = ["Answer", "Call", "EngineSpec", "GatewayError", "InferenceFactory", "ModelSpec"]

CHAT = "/chat/completions"
COMPLETIONS = "/completions"
EMBEDDINGS = "/embeddings"
AFFINITY_PREFIX_CHARS = 1024


class Call:
    """One request on its way: what is asked, and afterwards what happened. `cancel` may be called from any thread."""

    __slots__ = (
        "_attempt",
        "_payloads",
        "allow_fallback",
        "attempts",
        "body",
        "cancelled",
        "engine_id",
        "engine_s",
        "fallback",
        "idempotency_key",
        "model",
        "path",
        "records",
        "request",
        "request_id",
        "retries",
        "served_model",
        "session",
        "stream",
        "usage",
    )

    def __init__(
        self,
        path: str,
        request: dict[str, Any],
        body: Optional[bytes] = None,
        *,
        request_id: Optional[str] = None,
        session: str = "",
        allow_fallback: bool = True,
        idempotency_key: str = "",
    ) -> None:
        self.path = path
        self.request = request
        self.body = answers.dump(request) if body is None else body
        model = request.get("model")
        self.model: Optional[str] = model if model else None
        self.stream = bool(request.get("stream"))
        self.request_id = request_id or str(uuid.uuid4())
        self.session = session
        self.allow_fallback = allow_fallback
        self.idempotency_key = idempotency_key
        self.cancelled = False
        self.attempts = 0
        self.engine_s = 0.0
        self.engine_id: Optional[str] = None
        self.served_model: Optional[str] = None
        self.fallback: Optional[str] = None
        self.usage: Optional[answers.Usage] = None
        self.records: list[AttemptRecord] = []
        self.retries: list[tuple[str, str]] = []
        self._attempt: Optional[Attempt] = None
        self._payloads: dict[Optional[str], bytes] = {}

    def cancel(self) -> None:
        """Give up: what waits for an engine is woken and its connection closed. Idempotent, never blocks."""
        self.cancelled = True
        attempt = self._attempt
        if attempt is not None:
            attempt.abort("cancelled")

    def begin(self, deadline_s: float) -> Attempt:
        """A new attempt; raises ClientGone when the call has been cancelled.

        `cancel` sets the flag and then looks for an attempt, this stores the attempt and then looks at the flag: one of
        the two sees the other.
        """
        attempt = self._attempt = Attempt(deadline_s)
        if self.cancelled:
            raise ClientGone()
        return attempt

    def payload(self, model: Optional[str]) -> bytes:
        """The body to send to an engine that knows the model as `model` (None: leave it as it is)."""
        payload = self._payloads.get(model)
        if payload is None:
            payload = self._payloads[model] = self._build_payload(model)
        return payload

    def _build_payload(self, model: Optional[str]) -> bytes:
        request = self.request
        ask_usage = self.stream and self.path != EMBEDDINGS
        same_model = model is None or request.get("model") == model
        if same_model and not ask_usage:
            return self.body
        if same_model and "stream_options" not in request:
            # The object is known to be valid and not empty: the key goes in front, the rest stays as it came.
            start = self.body.index(b"{") + 1
            return b'{"stream_options":{"include_usage":true},' + self.body[start:]
        changed = dict(request)
        if model is not None:
            changed["model"] = model
        if ask_usage:
            options = changed.get("stream_options") or {}
            changed["stream_options"] = {**options, "include_usage": True}
        return answers.dump(changed)

    def wants_usage(self) -> bool:
        """Whether the client itself asked for a stream's usage event."""
        options = self.request.get("stream_options")
        return isinstance(options, dict) and options.get("include_usage") is True

    def choices(self) -> int:
        """How many choices a complete answer has: `n` for each prompt."""
        prompt = self.request.get("prompt") if self.path == COMPLETIONS else None
        several = isinstance(prompt, list) and len(prompt) > 1 and not isinstance(prompt[0], int)
        return (self.request.get("n") or 1) * (len(prompt or ()) if several else 1)

    def prompt_chars(self) -> int:
        """Characters of the prompt, for estimates."""
        return len(self._prompt_text())

    def affinity(self) -> bytes:
        """What `prefix_affinity` hashes: the session, or the prompt's first characters."""
        text = self.session or self._prompt_text()[:AFFINITY_PREFIX_CHARS]
        return text.encode("utf-8", "surrogatepass")

    def _prompt_text(self) -> str:
        messages = self.request.get("messages")
        if isinstance(messages, list):
            return "\n".join(echo.content_text(m.get("content")) for m in messages)
        value = self.request.get("prompt", self.request.get("input"))
        return value if isinstance(value, str) else "".join(map(str, value or ()))


class Answer:
    """A complete answer. `body` is for the client: JSON, or for a streaming call all events at once."""

    __slots__ = ("body", "json")

    def __init__(self, body: bytes, json: dict[str, Any]) -> None:
        self.body = body
        self.json = json


class InferenceFactory:
    """A dictionary of model name -> engines, asked with balancing, health checks and both kinds of failover.

    `models` maps names to engine URLs or `EngineSpec`s (or is a `FleetSpec`). Times are seconds. `health_interval_s` 0
    switches probes off. Thread-safe; close it, or use it as a context manager.
    """

    def __init__(
        self,
        models: Union[Mapping[str, Sequence[Union[str, EngineSpec]]], FleetSpec],
        *,
        strategy: str = "round_robin",
        fallback: str = "any",
        retry_attempts: int = 3,
        connect_timeout_s: float = 5.0,
        request_timeout_s: float = 60.0,
        first_token_timeout_s: float = 60.0,
        stream_idle_timeout_s: float = 60.0,
        health_interval_s: float = 5.0,
        health_timeout_s: float = 2.0,
        health_fails: int = 2,
        health_passes: int = 1,
        secrets: Optional[Mapping[str, str]] = None,
        rng: Optional[Random] = None,
        on_change: Optional[Callable[[StateChange], None]] = None,
    ) -> None:
        fleet = models if isinstance(models, FleetSpec) else _fleet_from(models)
        self.router = Router(fleet, strategy=strategy, fallback=fallback, rng=rng)
        self._retry_attempts = retry_attempts
        self._request_timeout_s = request_timeout_s
        self._first_token_timeout_s = first_token_timeout_s
        self.stream_idle_timeout_s = stream_idle_timeout_s
        self._on_change = on_change or (lambda change: None)
        self.client = EngineClient(connect_timeout_s, secrets)
        self._endpoints: dict[Engine, Endpoint] = {}
        self._watchdog = Watchdog("engine-deadlines")
        self._watchdog.start()
        self._health = HealthChecker(
            lambda: self.router.pools.values(),
            self._on_change,
            interval_s=health_interval_s,
            timeout_s=health_timeout_s,
            fails=health_fails,
            passes=health_passes,
            housekeeping=self.client.prune,
        )
        self._health.start()

    # --- the library -----------------------------------------------------------------------------------------------

    def generate(self, prompt: str, model: Optional[str] = None, **options: Any) -> str:
        """The answer's text to one user message. `options` are request fields. Raises GatewayError."""
        answer = self.chat([{"role": "user", "content": prompt}], model, **options)
        content = answer["choices"][0]["message"].get("content")
        return content if isinstance(content, str) else ""

    def chat(self, messages: list[dict[str, Any]], model: Optional[str] = None, **options: Any) -> dict[str, Any]:
        """A complete chat answer in OpenAI's shape. Raises GatewayError."""
        request = _request(messages, model, options)
        request.pop("stream", None)
        answer = self.run(Call(CHAT, request))
        assert isinstance(answer, Answer)  # only a streaming call gives a stream
        parsed: dict[str, Any] = json.loads(answer.body)
        return parsed

    def stream(
        self, messages: list[dict[str, Any]], model: Optional[str] = None, **options: Any
    ) -> Iterator[dict[str, Any]]:
        """The chunks of a streamed chat answer, as they arrive. Leaving the loop closes the engine's connection.

        Raises GatewayError, also in the middle when the engine fails there.
        """
        request = _request(messages, model, options)
        request["stream"] = True
        answer = self.run(Call(CHAT, request))
        if isinstance(answer, Answer):
            yield from _events_in(answer.body)
            return
        outcome = Outcome("cancelled")
        answer.sock.settimeout(self.stream_idle_timeout_s)
        try:
            yield from _events_in(answer.first)
            while not answer.done:
                yield from _events_in(answer.read())
            outcome = Outcome("ok")
        except EngineFault as fault:
            outcome = fault.outcome
            yield from _events_in(fault.lines)
            raise EngineFailed("backend_error", outcome.message) from fault
        finally:
            answer.close(outcome)

    def engines(self) -> list[EngineSnapshot]:
        """Every engine of every model as it is now: model, id, url, state, weight, in_flight, last_error."""
        return [item for pool in self.router.pools.values() for item in pool.snapshot()]

    def reload(self, fleet: FleetSpec, secrets: Optional[Mapping[str, str]] = None) -> None:
        """Serve another fleet from now on; what is in flight goes on. One thread at a time."""
        if secrets is not None:
            self.client.secrets = secrets
        self.router.reload(fleet)
        kept = {engine: engine.spec for pool in self.router.pools.values() for engine in pool.engines}
        old = dict(self._endpoints)
        self._endpoints = {e: p for e, p in old.items() if kept.get(e) == p.spec}
        used = {endpoint.spec for endpoint in self._endpoints.values()}
        self.client.forget([p.spec for p in old.values() if p.spec not in used])

    def close(self) -> None:
        """Stop probing and close idle connections. Idempotent."""
        self._health.close()
        self._watchdog.close()
        self.client.close()

    def __enter__(self) -> InferenceFactory:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- one call --------------------------------------------------------------------------------------------------

    def run(self, call: Call) -> Union[Answer, EngineStream]:
        """Ask engines until one answers; for a stream, until one has sent its first event.

        An `EngineStream` must be closed by the caller with the outcome. Raises GatewayError (ClientGone when
        cancelled). `call` tells afterwards what happened.
        """
        limit_s = self._first_token_timeout_s if call.stream else self._request_timeout_s
        deadline_s = time.monotonic() + limit_s
        pools = self.router.route(call.model, call.allow_fallback)
        wants_affinity = any(pool.strategy_name == "prefix_affinity" for pool in pools)
        tries = Tries(pools, self._retry_attempts, call.affinity() if wants_affinity else b"")
        failed: Optional[tuple[str, str]] = None
        while True:
            step = tries.next()
            if step is None:
                raise tries.error()
            pool, engine = step
            if failed is not None:
                call.retries.append(failed)
            result = self._attempt(call, pools[0], pool, engine, deadline_s)
            if not isinstance(result, Outcome):
                return result
            if result.kind == "rejected":
                raise RequestRefused("backend_rejected", result.message, status=result.status)
            tries.failed(result)
            failed = (pool.name, result.kind)
            if time.monotonic() >= deadline_s:
                raise EngineFailed("gateway_timeout", f"no answer within {limit_s:g} s")

    def _attempt(
        self, call: Call, asked: ModelPool, pool: ModelPool, engine: Engine, deadline_s: float
    ) -> Union[Answer, EngineStream, Outcome]:
        """One try of one engine, whose place is held: given back here, or by the stream when it is closed."""
        started_s = time.monotonic()
        call.engine_id = engine.id
        wildcard = self.router.fleet.wildcard
        call.served_model = (call.model or pool.name) if wildcard else pool.name
        call.fallback = None if pool is asked else f"{asked.name}->{pool.name}"
        call.attempts += 1
        outcome = Outcome("cancelled")
        stream: Optional[EngineStream] = None
        try:
            result = self._ask(call, pool, engine, deadline_s)
            outcome = Outcome("ok")
            if isinstance(result, EngineStream):
                stream = result
            return result
        except EngineFault as fault:
            outcome = fault.outcome
            return outcome
        finally:
            now_s = time.monotonic()
            if stream is None:
                self._settle(call, pool, engine, outcome, now_s - started_s, now_s - started_s)
            else:
                first_s = now_s - started_s
                call.engine_s += first_s
                stream.on_close(
                    lambda end: self._settle(call, pool, engine, end, first_s, time.monotonic() - started_s, first_s)
                )

    def _settle(
        self,
        call: Call,
        pool: ModelPool,
        engine: Engine,
        outcome: Outcome,
        answer_s: float,
        total_s: float,
        counted_s: float = 0.0,
    ) -> None:
        call.engine_s += total_s - counted_s
        call.records.append(AttemptRecord(pool.name, engine.id, outcome.kind, total_s))
        change = pool.settle(engine, outcome, answer_s)
        if change is not None:
            if change.after == "down":
                endpoint = self._endpoints.get(engine)
                if endpoint is not None:
                    endpoint.pool.discard_idle()
            self._on_change(change)

    def _ask(self, call: Call, pool: ModelPool, engine: Engine, deadline_s: float) -> Union[Answer, EngineStream]:
        if engine.spec.is_echo:
            return self._echo(call)
        endpoint = self._endpoints.get(engine)
        if endpoint is None:
            endpoint = self._endpoints[engine] = self.client.endpoint(engine.spec)
        attempt = call.begin(deadline_s)
        headers = b"X-Request-ID: %b\r\n" % call.request_id.encode("latin-1")
        if call.idempotency_key:
            headers += b"Idempotency-Key: %b\r\n" % call.idempotency_key.encode("latin-1")
        payload = call.payload(engine.spec.model or self._wire_model(call, pool))
        self._watchdog.watch(attempt)
        try:
            response = self.client.ask(endpoint, call.path, attempt, payload, headers)
            try:
                if call.stream and b"json" not in response.head.headers.get(b"content-type", b""):
                    events = EventStream(not call.wants_usage(), call.choices())
                    stream = EngineStream(response, events)
                    stream.wait_first()
                    return stream
                body = response.read_all()
                response.release()
            except BaseException:
                response.close()
                raise
        finally:
            self._watchdog.forget(attempt)
        return self._complete(call, body)

    def _wire_model(self, call: Call, pool: ModelPool) -> Optional[str]:
        fleet = self.router.fleet
        if not fleet.wildcard:
            return pool.name
        return call.model or (fleet.default_model if fleet.default_model != pool.name else None)

    def _complete(self, call: Call, body: bytes) -> Answer:
        try:
            parsed = answers.parse_answer(body, call.path)
        except answers.InvalidAnswer as error:
            raise EngineFault(Outcome("invalid", str(error))) from error
        usage = answers.usage_of(parsed.get("usage"), 0, 0)
        if usage.estimated:
            usage = answers.usage_of(None, call.prompt_chars(), answers.completion_chars(parsed))
        call.usage = usage
        complete = answers.complete(parsed, body, call.request_id, call.served_model or "", usage)
        if call.stream:
            return Answer(answers.as_stream(json.loads(complete), call.path), parsed)
        return Answer(complete, parsed)

    def _echo(self, call: Call) -> Answer:
        answer = echo.answer(call.path, call.request, call.prompt_chars())
        answer["id"] = call.request_id
        answer["model"] = call.served_model
        reported = answer["usage"]
        call.usage = answers.Usage(reported["prompt_tokens"], reported.get("completion_tokens", 0), False)
        if not call.stream:
            return Answer(answers.dump(answer), answer)
        chunks = echo.chunks(call.path, answer, call.wants_usage())
        lines = b"".join(b"data: %b\n\n" % answers.dump(chunk) for chunk in chunks)
        return Answer(lines + b"data: [DONE]\n\n", answer)


def _fleet_from(models: Mapping[str, Sequence[Union[str, EngineSpec]]]) -> FleetSpec:
    return FleetSpec(tuple(model_from(name, engines) for name, engines in models.items()))


def _request(messages: list[dict[str, Any]], model: Optional[str], options: dict[str, Any]) -> dict[str, Any]:
    request: dict[str, Any] = {"messages": messages, **options}
    if model is not None:
        request["model"] = model
    return request


def _events_in(lines: bytes) -> Iterator[dict[str, Any]]:
    for line in lines.splitlines():
        if line.startswith(b"data:"):
            payload = line[5:].strip()
            if payload != b"[DONE]":
                yield json.loads(payload)
