"""The library's face: engines asked from a program, as the server asks them.

    from gateway.inference import InferenceFactory, EngineSpec
    with InferenceFactory({"13b": ["http://127.0.0.1:8010/v1"]}) as factory:
        print(factory.generate("what is python", model="13b"))

`InferenceFactory` owns the router, the connections, the health checker and the asker. It holds no lock of its own:
choosing is locked per model in routing/, and a `Call` belongs to one thread, except for `cancel`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any, Callable, Optional, Union

from gateway.attempts import OnCrash, TimeLimits
from gateway.discovery.discoveries import Discoveries, refuse_templates
from gateway.discovery.watch import Change, Take
from gateway.dispatch import Asker
from gateway.engines import SizeLimits
from gateway.errors import EngineFailed, GatewayError
from gateway.hearing import Hearing
from gateway.hedging import Answer
from gateway.offered import Offered
from gateway.routing.breaker import BreakerPolicy
from gateway.routing.checks import is_header_value
from gateway.routing.decisions import Recorder
from gateway.routing.engine import DEFAULT_POLICY
from gateway.routing.members import EngineSnapshot
from gateway.routing.retry import CRASHED, Outcome
from gateway.routing.router import Router
from gateway.routing.sources import DiscoverSpec
from gateway.routing.specs import STRATEGIES, EngineSpec, FleetSpec, ModelSpec, model_from
from gateway.routing.standing import StateChange
from gateway.steps import drive
from gateway.upstream.attempt import EngineFault
from gateway.upstream.call import CHAT, Call
from gateway.upstream.client import EngineClient
from gateway.upstream.eventlines import events_in
from gateway.upstream.listing import ModelLists
from gateway.upstream.peers import Peers
from gateway.upstream.prober import HealthChecker, probe
from gateway.upstream.resolver import Resolver
from gateway.upstream.response import ANSWER_MAX_BYTES
from gateway.upstream.sse import EVENT_MAX_BYTES
from gateway.upstream.stream import GRACE_S, EngineStream

__all__ = ["Answer", "Call", "EngineSpec", "GatewayError", "InferenceFactory", "ModelSpec"]

FALLBACKS = ("any", "configured", "off")


class InferenceFactory:
    """A dictionary of model name -> engines, asked with balancing, health checks and both kinds of failover.

    `models` maps names to engine URLs or `EngineSpec`s (or is a `FleetSpec`). Times are seconds. `health_interval_s` 0
    switches probes off; `dns_ttl_s` is how long the addresses of engines' names are kept, 0 looks them up for each
    connection; `stream_end_grace_s` what an engine gets for usage and `[DONE]` when every choice of a stream has its
    reason, before it is ended without them. A complete answer of more than `max_answer_bytes` is its engine's failure,
    and so is an event of more than `max_event_bytes`, or as many bytes before the first one. `on_crash` is told of
    exceptions that nobody had foreseen, with the model and the engine whose attempt fails by them (None: they are
    logged), `on_fleet` of the fleet that is served from now on, after a reload and when engines list other models or
    others are discovered, `on_discovery` of what is new where engines are discovered. `peers`: other processes that
    serve the same engines. `region` is where this is, whose engines come first (see routing/regions.py); None:
    nobody's. `scattered`: others choose among the same engines, so rotations begin at places of their own. Thread-safe;
    close it, or use it as a context manager. Raises ValueError for an unknown `strategy` or
    `fallback`, an engine's key that cannot be sent, or a `discover` whose template makes no engine.
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
        stream_end_grace_s: float = GRACE_S,
        queue_timeout_s: float = 30.0,
        dns_ttl_s: float = 30.0,
        max_answer_bytes: int = ANSWER_MAX_BYTES,
        max_event_bytes: int = EVENT_MAX_BYTES,
        breaker: BreakerPolicy = DEFAULT_POLICY,
        recorder: Optional[Recorder] = None,
        health_interval_s: float = 5.0,
        health_timeout_s: float = 2.0,
        health_fails: int = 2,
        health_passes: int = 1,
        secrets: Optional[Mapping[str, str]] = None,
        rng: Optional[Random] = None,
        on_change: Optional[Callable[[StateChange], None]] = None,
        on_crash: Optional[OnCrash] = None,
        on_fleet: Optional[Callable[[FleetSpec], None]] = None,
        on_discovery: Optional[Callable[[Change], None]] = None,
        region: Optional[str] = None,
        scattered: bool = False,
        peers: Optional[Peers] = None,
    ) -> None:
        _refuse_unknown("strategy", strategy, STRATEGIES)
        _refuse_unknown("fallback", fallback, FALLBACKS)
        fleet = models if isinstance(models, FleetSpec) else _fleet_from(models)
        _refuse_unusable(fleet, os.environ if secrets is None else secrets)
        self._closed = False
        self._on_fleet = on_fleet or (lambda fleet: None)
        self.client = EngineClient(connect_timeout_s, secrets, Resolver(dns_ttl_s))
        self.router = Router(
            fleet,
            strategy=strategy,
            fallback=fallback,
            rng=rng,
            breaker=breaker,
            recorder=recorder,
            is_near=self.client.is_near,
            region=region,
            scattered=scattered,
        )
        self._offered = Offered(self.router, fleet, self._serve, probes=health_interval_s > 0)
        self.stream_idle_timeout_s = stream_idle_timeout_s
        self._on_change = on_change or (lambda change: None)
        self._on_crash = on_crash or _log_crash
        peers = peers or Peers()
        self._keys = _digests(fleet, self.client.secrets)
        self.client.keep_names(spec for _, spec in fleet.engines())
        limits = TimeLimits(request_timeout_s, first_token_timeout_s, queue_timeout_s, stream_end_grace_s)
        sizes = SizeLimits(max_answer_bytes, max_event_bytes)
        changed = _each(self._on_change, peers.changed)
        self.asker = Asker(self.router, self.client, limits, retry_attempts, changed, sizes, self._on_crash)
        self._health = HealthChecker(
            self._offered.probed_pools,
            self._on_change,
            interval_s=health_interval_s,
            timeout_s=health_timeout_s,
            fails=health_fails,
            passes=health_passes,
            housekeeping=self.client.prune,
            probe=functools.partial(probe, resolver=self.client.resolver),
            lists=ModelLists(
                self._offered.lists,
                lambda: self.client.secrets,
                self.client.resolver,
                lambda engine: self.router.fleet.wildcard,
                self._offered.relist,
            ),
            followers=self._offered.followers,
            pending=lambda: self.discoveries.pending(),
            peers=peers,
        )
        take, told = _taking(self._offered, self._health), on_discovery or (lambda change: None)
        self.discoveries = Discoveries(fleet, take, told, lambda: self.client.secrets)
        self.hearing = Hearing(self.router, self._offered, self._health)
        self._health.start()
        self.discoveries.start()

    # --- the library -----------------------------------------------------------------------------------------------

    def generate(self, prompt: str, model: Optional[str] = None, **options: Any) -> str:
        """The answer's text to one user message. `options` are request fields.

        Raises GatewayError, and RuntimeError when the factory is closed, as `chat` and `stream` do.
        """
        answer = self.chat([{"role": "user", "content": prompt}], model, **options)
        content = answer["choices"][0]["message"].get("content")
        return content if isinstance(content, str) else ""

    def chat(self, messages: list[dict[str, Any]], model: Optional[str] = None, **options: Any) -> dict[str, Any]:
        """A complete chat answer in OpenAI's shape. Raises GatewayError, RuntimeError."""
        self._refuse_closed()
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

        Raises GatewayError, also in the middle when the engine fails there, and RuntimeError.
        """
        self._refuse_closed()
        request = _request(messages, model, options)
        request["stream"] = True
        call = Call(CHAT, request)
        answer = self.run(call)
        if isinstance(answer, Answer):
            yield from events_in(answer.body)
            return
        outcome = Outcome("cancelled")
        try:
            yield from events_in(answer.first)
            while not answer.done:
                yield from _read_events(call, answer, self.stream_idle_timeout_s, self._on_crash)
            outcome = Outcome("ok")
        except EngineFault as fault:
            outcome = fault.outcome
            yield from events_in(fault.lines)
            raise EngineFailed("backend_error", outcome.message, engine=outcome.details) from fault
        finally:
            answer.close(outcome)

    def engines(self) -> list[EngineSnapshot]:
        """Every engine of every model as it is now: model, id, url, state, weight, in_flight, last_error."""
        return [item for pool in self.router.pools.values() for item in pool.snapshot()]

    def wait_probed(self, timeout_s: float) -> bool:
        """Wait until the first round of probes has ended, at most `timeout_s` seconds; returns whether it has.

        It ends when each engine has one result, or has answered a request, and in any case when its own time limit has
        passed; at once without probes (`health_interval_s` 0) and for the echo engine. An engine that serves every name
        has been asked for its models then, also without probes. False when closed meanwhile. `engines()` tells the
        results.
        """
        return self._health.wait_probed(timeout_s)

    @property
    def probed(self) -> bool:
        """Whether the first round of probes has ended."""
        return self._health.probed()

    def reload(self, fleet: FleetSpec, secrets: Optional[Mapping[str, str]] = None) -> None:
        """Serve another fleet from now on, with its weights; what is in flight goes on. One thread at a time.

        Raises ValueError, with nothing changed, for an engine's key or a template as when it was made.
        """
        _refuse_unusable(fleet, self.client.secrets if secrets is None else secrets)
        if secrets is not None:
            self.client.secrets = secrets
        before, self._keys = self._keys, _digests(fleet, self.client.secrets)
        renewed = [name for name, digest in before.items() if self._keys.get(name, digest) != digest]
        self._offered.reload(fleet, renewed)
        self.discoveries.follow(fleet)
        self._health.tick()  # of what nothing is known any more, something soon is

    def _serve(self, fleet: FleetSpec, renewed: Sequence[str], keep_weights: bool, unproven: bool) -> None:
        self.router.reload(fleet, renewed, keep_weights, unproven)
        self.asker.forget_changed(renewed)
        self.client.keep_names(spec for _, spec in fleet.engines())
        self._on_fleet(fleet)

    def set_draining(self, engine_id: str, draining: bool, model: Optional[str] = None) -> list[str]:
        """Take an engine out (it finishes what it has) or let it in again; in one model, or wherever the id occurs.

        Returns the models in which it was found.
        """
        found: list[str] = []
        for name, pool in self.router.pools.items():
            if model not in (None, name):
                continue
            try:
                change = pool.set_draining(engine_id, draining)
            except KeyError:
                continue
            found.append(name)
            if change is not None:
                self._on_change(change)
        return found

    def set_weight(self, engine_id: str, weight: int, model: Optional[str] = None) -> list[str]:
        """Give an engine another weight until the next `reload`; in one model, or wherever the id occurs.

        Returns the models in which it was found. Raises ValueError for a weight that the engines file may not have.
        """
        found: list[str] = []
        for name, pool in self.router.pools.items():
            if model in (None, name):
                with contextlib.suppress(KeyError):
                    pool.set_weight(engine_id, weight)
                    found.append(name)
        return found

    def close(self) -> None:
        """Stop probing and close idle connections; nothing can be asked afterwards. Idempotent."""
        self._closed = True
        self.discoveries.close()
        self._health.close()
        self.asker.close()
        self.client.close()

    def _refuse_closed(self) -> None:
        if self._closed:
            raise RuntimeError("the InferenceFactory is closed")

    def __enter__(self) -> InferenceFactory:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def run(self, call: Call) -> Union[Answer, EngineStream]:
        """Ask engines until one answers; see `Asker.ask`. Blocks."""
        return drive(self.asker.ask(call))


def _read_events(call: Call, stream: EngineStream, idle_s: float, on_crash: OnCrash) -> list[dict[str, Any]]:
    """The next events. Raises EngineFault, also for what nobody had foreseen."""
    try:
        return list(events_in(drive(stream.read(idle_s))))
    except GatewayError:
        raise
    except Exception as error:
        if isinstance(error, EngineFault) and error.outcome is not CRASHED:
            raise
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        on_crash(cause, call.served_model or "", call.engine_id or "")
        if stream.events.complete:
            stream.finish()
            return []
        raise EngineFault(CRASHED) from error


def _taking(offered: Offered, health: HealthChecker) -> Take:
    """What takes over discovered engines; new ones are probed at once."""

    def take(model: str, discover: DiscoverSpec, engines: tuple[EngineSpec, ...]) -> bool:
        changed = offered.rediscover(model, discover, engines)
        if changed:
            health.joined()
        return changed is not None

    return take


def _refuse_unusable(fleet: FleetSpec, secrets: Mapping[str, str]) -> None:
    """Raise ValueError for a template of which no engine can be made, and naming the variables whose text cannot be
    sent in a header; it never shows that text."""
    refuse_templates(fleet)
    for name in sorted({name for name, _ in fleet.secrets()}):
        secret = secrets.get(name, "").strip()
        if secret and not is_header_value(secret):
            raise ValueError(f"{name}: an engine's key must be printable ASCII characters, without line breaks")


def _each(*callbacks: Callable[[StateChange], None]) -> Callable[[StateChange], None]:
    """One that calls all of these, the last ones also when the first ones raise."""

    def call(change: StateChange) -> None:
        with contextlib.ExitStack() as stack:
            for callback in reversed(callbacks):
                stack.callback(callback, change)

    return call


def _log_crash(error: Exception, model: str, engine: str) -> None:
    text = "an attempt at the engine %s of the model %s failed by an exception"
    logging.getLogger("inference").error(text, engine, model, exc_info=error)


def _refuse_unknown(what: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{what} must be one of {', '.join(known)}, not {value!r}")


def _digests(fleet: FleetSpec, secrets: Mapping[str, str]) -> dict[str, bytes]:
    """By the variable's name, what tells whether an engine's key is still the same."""
    names = {name for name, _ in fleet.secrets()}
    return {name: hashlib.sha256(secrets.get(name, "").encode("utf-8", "surrogatepass")).digest() for name in names}


def _fleet_from(models: Mapping[str, Sequence[Union[str, EngineSpec]]]) -> FleetSpec:
    return FleetSpec(tuple(model_from(name, engines) for name, engines in models.items()))


def _request(messages: list[dict[str, Any]], model: Optional[str], options: dict[str, Any]) -> dict[str, Any]:
    request: dict[str, Any] = {"messages": messages, **options}
    if model is not None:
        request["model"] = model
    return request
