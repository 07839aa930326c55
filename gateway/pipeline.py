"""The way of a request, on one screen.

    handler thread:   identify -> validate -> take a worker's place   (a refusal raises GatewayError, written at once)
    the same thread, or a worker's when the places are taken and it had to queue:
                      ask engines (inference.py) -> write the answer, or the stream's head -> hand the stream on
    relay thread:     the stream's lines -> its end
    whoever is last:  one immutable RequestEvent

HTTP stays in server/: an exchange there is the `Job` that is queued here. `Pipeline` owns the set of jobs in flight
(a dict whose single operations are atomic) and the draining flag; it holds no lock.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Mapping
from typing import Any, Optional

from gateway import validation
from gateway.errors import GatewayError, RequestRefused
from gateway.policy.auth import Identity
from gateway.policy.guard import Guard
from gateway.policy.limits import Admission
from gateway.policy.prices import TokensAtMost
from gateway.routing.line import RANK_BY_PRIORITY
from gateway.settings import Settings
from gateway.telemetry.events import RequestEvent
from gateway.telemetry.observe import Telemetry
from gateway.upstream.call import COMPLETIONS, EMBEDDINGS
from gateway.workers import Job, Overloaded, WorkerPool
from inference import Call, InferenceFactory

PATHS = {
    "/v1/chat/completions": "/chat/completions",
    "/v1/completions": "/completions",
    "/v1/embeddings": "/embeddings",
}

USAGE_REJECTED_LOG_S = 10.0  # an engine that is wrong once is wrong with each answer
BEST_OF_MAX = 1_000_000  # beyond it nothing is reserved: what an engine would never do need not be a number for floats


class Pipeline:
    """Takes requests from handlers and sees them through. Thread-safe."""

    def __init__(
        self,
        settings: Settings,
        factory: InferenceFactory,
        guard: Guard,
        workers: WorkerPool,
        telemetry: Telemetry,
    ) -> None:
        self.settings = settings
        self.factory = factory
        self.guard = guard
        self.workers = workers
        self.telemetry = telemetry
        self.draining = False
        self.started_unix_s = int(time.time())
        self._open: dict[Job, None] = {}
        self._rejected_at_s: dict[str, float] = {}  # by engine: callers may choose the models' names

    def identify(self, headers: Mapping[bytes, bytes], repeated: frozenset[bytes], address: str) -> Identity:
        """Who is asking. Raises `unauthorized`."""
        return self.guard.identify(headers, repeated, address)

    def admit(self, call: Call, model: str, identity: Identity, address: str) -> Admission:
        """Take what the call needs of every limit; its places are given back by the admission. Raises GatewayError.

        `model` is what `servable` gives.
        """
        router = self.factory.router
        # Where one engine serves every name, the name asked for is the model.
        named = (call.model or model) if router.fleet.wildcard else model
        if not identity.may_use(named):
            raise RequestRefused("forbidden", f"the model {named[:200]} is not allowed for this key", param="model")
        if (identity.models or identity.rights.models) and not router.fleet.wildcard:
            call.may_use = identity.may_use
        return self.guard.admit(identity, model, address, lambda: tokens_at_most(call))

    def limit_headers(self, call: Optional[Call], identity: Identity, address: str) -> tuple[tuple[str, str], ...]:
        """What is left to the caller of a request that was not admitted. `call` None: it was not even valid."""
        try:
            model = self.factory.router.route(None if call is None else call.model)[0].name
        except GatewayError:
            model = ""
        return self.guard.limit_headers(identity, model, address)

    @staticmethod
    def parse(body: bytes) -> dict[str, Any]:
        """The JSON object of a request, which may still hold anything. Raises GatewayError."""
        return validation.parse_json(body)

    def validate(
        self,
        path: str,
        body: bytes,
        request: dict[str, Any],
        headers: Mapping[bytes, bytes],
        request_id: str,
        identity: Optional[Identity],
    ) -> Call:
        """The call that a request asks for; nothing has been sent anywhere yet. Raises GatewayError.

        `request` is what `parse` has found in `body`.
        """
        engine_path = PATHS[path]
        validation.VALIDATOR_BY_PATH[engine_path](request)
        return Call(
            engine_path,
            request,
            body,
            request_id=request_id,
            session=headers.get(b"x-session-id", b"").decode("latin-1"),
            allow_fallback=headers.get(b"x-gateway-fallback", b"").lower() != b"off",
            idempotency_key=headers.get(b"idempotency-key", b"").decode("latin-1"),
            priority=priority_of(headers, identity),
        )

    def servable(self, call: Call) -> str:
        """The configured name of the call's model. Raises GatewayError for what needs no worker: any call while
        draining, and one for an unknown model."""
        if self.draining:
            raise shutting_down()
        return self.factory.router.route(call.model)[0].name

    def enqueue(self, job: Job) -> bool:
        """True: a worker's place is free, run the job now and `leave` after it. False: it is queued. Raises
        `overloaded`."""
        self._open[job] = None
        try:
            return self.workers.submit(job)
        except Overloaded as refusal:
            self._open.pop(job, None)
            wait_s = refusal.wait_s
            text = "too many requests are waiting" if wait_s is None else f"a worker is {wait_s:.0f} s away"
            raise GatewayError("overloaded", text, retry_after_s=1.0 if wait_s is None else wait_s) from None

    def queue_timeout(self) -> GatewayError:
        """The error of a job that waited too long."""
        message = f"no worker within {self.settings.queue_timeout_s:g} s"
        return GatewayError("queue_timeout", message, retry_after_s=1.0)

    def concluded(self, job: Job, event: RequestEvent) -> None:
        """A request has ended, after its last byte: report it."""
        self._open.pop(job, None)
        self.telemetry.emit(event)

    @property
    def in_flight(self) -> int:
        """Requests queued and not yet concluded."""
        return len(self._open)

    def cut_off(self) -> int:
        """End every request that is under way: each is told so. Returns how many have not begun their last write.

        Never blocks. To be called again until that is 0: a request may just have been on its way here.
        """
        jobs = list(self._open)
        for job in jobs:
            job.cut_off()
        return sum(not job.answered for job in jobs)

    def usage_rejected(self, model: str, engine: str, figures: str) -> None:
        """Log tokens that an engine has reported and that cannot be; once in a while for each engine."""
        now_s = time.monotonic()
        if now_s - self._rejected_at_s.get(engine, -math.inf) >= USAGE_REJECTED_LOG_S:
            self._rejected_at_s[engine] = now_s  # two at once: at worst a line more
            self.telemetry.log("warning", "usage_rejected", model=model[:256], engine=engine, figures=figures)

    def internal_error(self, error: BaseException, request_id: str) -> GatewayError:
        """Log an unexpected exception; what the client is told names nothing of it."""
        trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        self.telemetry.log("error", "internal_error", request_id=request_id, traceback=trace)
        return GatewayError("internal_error", "the gateway failed; see its log for this request id")


def shutting_down() -> GatewayError:
    """The error of a request that comes while the gateway drains, or that the end of the drain cuts off."""
    return GatewayError("draining", "the gateway is shutting down", retry_after_s=1.0)


def tokens_at_most(call: Call) -> TokensAtMost:
    """The tokens to reserve: the prompt's, estimated, and all that each of the choices may have.

    Also of those that `best_of` has an engine make and throw away: they are counted and paid for.
    """
    request = call.request
    asked = request.get("max_completion_tokens") or request.get("max_tokens") or 0
    choices = call.choices()
    best_of = request.get("best_of")
    if type(best_of) is int and call.path == COMPLETIONS:
        count = request.get("n") or 1
        choices = choices // count * max(count, min(best_of, BEST_OF_MAX))
    prompt = call.estimated_tokens() - int(asked)
    return TokensAtMost(prompt, 0 if call.path == EMBEDDINGS else int(asked) or None, choices)


def priority_of(headers: Mapping[bytes, bytes], identity: Optional[Identity]) -> str:
    """The key's own priority, or what X-Gateway-Priority asks for, from keys whose role may set it."""
    if identity is None:
        return "normal"
    asked = headers.get(b"x-gateway-priority")
    if asked is None or not identity.rights.may_set_priority:
        return identity.priority
    text = asked.decode("latin-1").lower()
    return text if text in RANK_BY_PRIORITY else identity.priority
