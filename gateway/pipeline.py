"""The way of a request, on one screen: `serve`.

Its steps are a generator, which waits nowhere itself (`steps.py`): the loop of the server runs it, or a thread where it
has to block. The server writes what it gives to the client (server/exchange.py); a refusal is a GatewayError.

`Pipeline` owns the set of requests in flight (a dict whose single operations are atomic) and the draining flag; it
holds no lock. It knows no socket and no HTTP but a request's head.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Mapping
from typing import Callable, Optional, Union

from gateway.admitting import Admitting, forbidden
from gateway.asked import Asked, Head
from gateway.asking import Asking
from gateway.bodies import BODIES, take_json
from gateway.calling import ASKED as ASKED
from gateway.calling import INFERENCE as INFERENCE
from gateway.calling import NATIVE, call_of
from gateway.calling import PATHS as PATHS
from gateway.clock import unix_s
from gateway.dispatch import Asker
from gateway.errors import ClientGone, GatewayError
from gateway.guard import Guard
from gateway.inference import Answer, Call, InferenceFactory
from gateway.jsonbounds import takes_long
from gateway.keys.auth import Identity
from gateway.keys.residency import residency_of
from gateway.limits.addresses import address_group
from gateway.reuse.building import reuse_of
from gateway.reuse.caches import Caches
from gateway.reuse.serving import Given
from gateway.routing.capabilities import capabilities_at
from gateway.routing.virtual import VirtualSpec
from gateway.schemas.registry import SchemaRegistry
from gateway.settings import Settings
from gateway.steps import ASIDE, Pause, Steps, Turn
from gateway.telemetry.events import RequestEvent
from gateway.telemetry.observe import Telemetry
from gateway.telling import Telling
from gateway.traces.context import Begin, beginner
from gateway.upstream.call import CHAT
from gateway.upstream.stream import EngineStream
from gateway.validation import parse_json
from gateway.verify.late import Late
from gateway.workers import Job, Overloaded, WorkerPool

PERMISSIONS = {"/props": "metrics", "/slots": "admin"}  # of what is passed on; "infer" else. Slots show others' prompts
ASIDE_BYTES = 65536  # a body of more is read on a thread
MARKS_MAX = 4000  # commas and brackets in a body that is read on the loop: a millisecond's work at most
KEYS_PAUSE_S = 0.1  # until it is seen again whether an identity provider's keys have come
USAGE_REJECTED_LOG_S = 10.0  # an engine that is wrong once is wrong with each answer


class Pipeline:
    """Sees requests through. Thread-safe."""

    check_origin: Callable[[Asked], None]
    """Raises GatewayError for what a page elsewhere may have had a browser send; set before anything is served."""

    def __init__(
        self,
        settings: Settings,
        factory: InferenceFactory,
        guard: Guard,
        workers: WorkerPool,
        telemetry: Telemetry,
        caches: Optional[Caches] = None,
        schemas: Optional[SchemaRegistry] = None,
    ) -> None:
        self.settings = settings
        self.factory = factory
        self.guard = guard
        self.schemas = schemas
        self._asking = Asking(factory.asker, factory.router, settings, schemas)
        self._admitting = Admitting(guard, factory, self.internal_error)
        self.workers = workers
        self.telemetry = telemetry
        self.reuse = reuse_of(settings, factory, self.ask, caches, guard.shared)
        self.verify = Late(settings, factory.router)
        self._begin_trace = _tracing(settings)
        self.draining = self.lingering = self.handing_over = False  # what each means: `Draining`
        self.started_unix_s = int(unix_s())
        self._open: dict[Job, None] = {}
        self._rejected_at_s: dict[str, float] = {}  # by engine: callers may choose the models' names

    def serve(self, asked: Asked) -> Steps[Given]:
        """The answer to an inference request, or the stream of it that has begun. Raises GatewayError.

        An `EngineStream` must be closed by the caller with the outcome. The caller gives the worker's place back.
        """
        head = asked.head
        if self._begin_trace is not None:
            asked.trace = self._begin_trace(head.headers, head.repeated, asked.request_id)
        self.check_origin(asked)
        while self.guard.reads_keys and self.guard.may_wait(head.headers):
            yield Pause(KEYS_PAUSE_S)
        identity = asked.identity = self.guard.identify(head.headers, head.repeated, asked.client_address)
        asked.residency = residency_of(head.headers, head.repeated, identity.residency)
        read = BODIES.get(head.path)
        if read is not None:
            identity.require(PERMISSIONS.get(head.path, "infer"))
            request, form = yield from read(asked, self.settings)
            call = asked.call = call_of(asked, request, identity, self.factory.router, self.allowed_to)
            call.form = form
            return (yield from self._given(asked, call, identity))
        verifies = head.path == INFERENCE
        identity.require("verify" if verifies else "infer")
        take_json(asked, self.settings)
        if len(asked.body) > ASIDE_BYTES or (len(asked.body) > MARKS_MAX and takes_long(asked.body, MARKS_MAX)):
            yield ASIDE
        if verifies:
            return (yield from self._verify(asked, identity))
        request = parse_json(asked.body, self.settings.max_json_values)
        call = asked.call = call_of(asked, request, identity, self.factory.router, self.allowed_to)
        telling = asked.telling
        if "response_format" in call.request or "tools" in call.request:
            if call.path == CHAT and (telling is None or not telling.is_immediate):
                yield from self._asking.shape(asked, call)
        if telling is not None:
            return (yield from self._tell(asked, call, identity, telling))
        return (yield from self._given(asked, call, identity))

    def _given(self, asked: Asked, call: Call, identity: Identity) -> Steps[Given]:
        """What engines, or other requests, give to a call."""
        router = self.factory.router
        if router.splits is not None:
            _choose(self.factory.asker, asked, call, identity)
        virtual = router.virtual(call.model) if router.has_virtual and call.path == CHAT else None
        if virtual is not None:
            return self._agree(asked, call, identity, virtual)
        if self.guard.shared is not None:
            return self.serve_part(asked, call)
        self._admit(asked, call, identity)
        self._open[asked] = None
        return self.reuse.serve(asked, call)

    def _tell(self, asked: Asked, call: Call, identity: Identity, telling: Telling) -> Steps[Given]:
        """The same for a client of another dialect; its stream is told as it comes, by who relays it."""
        if telling.is_immediate:
            return (yield from self._at_once(asked, call, identity, telling))
        if call.path == NATIVE:
            yield from self._asking.shape(asked, call)
        given = yield from self._given(asked, call, identity)
        if not isinstance(given, Answer):
            return given
        if len(given.body) > ASIDE_BYTES:
            yield ASIDE
        return (asked.telling or telling).answer(given)  # it may be told in other words by now

    def _at_once(self, asked: Asked, call: Call, identity: Identity, telling: Telling) -> Steps[Answer]:
        """What no engine is asked for."""
        router, named, context_tokens = self.factory.router, call.model, None
        if router.splits is not None:
            _choose(self.factory.asker, asked, call, identity)
        virtual = router.virtual(call.model) if router.has_virtual else None
        if virtual is not None:
            self._admit_to(virtual, asked, call, identity)
        else:
            yield from self._admitted(asked, call, identity, asks=False)
            context_tokens = router.route(call.model)[0].spec.max_model_len
        call.served_model = asked.model
        return telling.immediate(context_tokens, capabilities_at(router, named))

    def _verify(self, asked: Asked, identity: Identity) -> Steps[Answer]:
        """The answers of several models, compared. What they are asked is admitted by itself."""
        router = self.factory.router
        self._refuse_when_draining()
        asked.restricted = not identity.may_use_all
        known = [name for name in router.models() if not asked.restricted or identity.may_use(*router.names_of(name))]
        self._open[asked] = None
        return (yield from self.verify.get().infer(asked, parse_json(asked.body, self.settings.max_json_values), known))

    def _agree(self, asked: Asked, call: Call, identity: Identity, virtual: VirtualSpec) -> Steps[Answer]:
        """The answer of a model that is made of others."""
        self._admit_to(virtual, asked, call, identity)
        self._open[asked] = None
        return (yield from self.verify.get().agree(asked, call, virtual))

    def _admit_to(self, virtual: VirtualSpec, asked: Asked, call: Call, identity: Identity) -> None:
        """See that the caller may ask such a model, whose parts are admitted by themselves. Raises GatewayError."""
        self._refuse_when_draining()
        asked.model = virtual.name
        if asked.restricted:
            if not identity.may_use(virtual.name, *virtual.aliases):
                raise forbidden(call.model or virtual.name)
            asked.restricted = False  # who may use it may use what it is made of
        call.caller = identity.name or str(address_group(asked.client_address))

    def serve_part(self, part: Asked, call: Call) -> Steps[Given]:
        """The answer to a request, or to a part of one, that has been seen to be right."""
        identity = part.identity
        assert identity is not None
        yield from self._admitted(part, call, identity)
        self._open[part] = None
        return (yield from self.reuse.serve(part, call))

    def ask(self, asked: Asked, call: Call) -> Steps[Union[Answer, EngineStream]]:
        """Ask engines for a call, as soon as the request has a worker's place."""
        if not asked.placed:
            asked.placed = True
            asked.enqueued_s = time.monotonic()
            if asked.left and not asked.needed:
                raise ClientGone()
            try:
                yield Turn(self.workers, asked)
            except Overloaded as refusal:
                self._open.pop(asked, None)
                raise _overloaded(refusal) from None
            finally:
                asked.queue_s = time.monotonic() - asked.enqueued_s
        if call.shape is None and call.path != NATIVE:
            return (yield from self.factory.asker.ask(call))  # without steps of its own: most requests come by here
        return (yield from self._asking.ask(asked, call))

    def _admitted(self, asked: Asked, call: Call, identity: Identity, asks: bool = True) -> Steps[None]:
        """As `_admit`, where gateways share their limits by what Redis says."""
        if self.guard.shared is None:
            return self._admit(asked, call, identity, asks)
        self._refuse_when_draining()
        yield from self._admitting.admit_shared(self.guard.shared, asked, call, identity, asks)

    def _admit(self, asked: Asked, call: Call, identity: Identity, asks: bool = True) -> None:
        """Take what the call needs of every limit. Raises GatewayError, also for what needs no worker: any call while
        draining (and no longer lingering), and one for an unknown model. `asks`: engines, too."""
        self._refuse_when_draining()
        self._admitting.admit(asked, call, identity, asks)

    def _refuse_when_draining(self) -> None:
        if self.draining and not self.lingering:
            raise shutting_down()

    def identify(self, headers: Mapping[bytes, bytes], repeated: frozenset[bytes], address: str) -> Identity:
        """Return the caller. Raises `unauthorized`."""
        return self.guard.identify(headers, repeated, address)

    def known(self, head: Head) -> Identity:
        """Return the caller, unaudited. Raises `unauthorized`."""
        value_of = head.headers.get
        return self.guard.authenticator.identify(value_of(b"authorization"), value_of(b"x-api-key"), head.repeated)

    def allowed_to(self, identity: Identity) -> Optional[Callable[[str], bool]]:
        """Whether the caller may use a configured model, by its aliases of then; None: any, or they are not these."""
        router = self.factory.router
        if identity.may_use_all or router.fleet.by_engines:
            return None
        return lambda model: identity.may_use(*router.names_of(model))

    def limit_headers(self, call: Optional[Call], identity: Identity, address: str) -> tuple[tuple[str, str], ...]:
        """Tell what is left to the caller of a request that was not admitted. `call` None: it was not even valid."""
        try:
            model = self.factory.router.route(None if call is None else call.model)[0].name
        except GatewayError:
            model = ""
        return self.guard.limit_headers(identity, model, address)

    def queue_timeout(self) -> GatewayError:
        """The error of a job that waited too long."""
        message = f"no worker within {self.settings.queue_timeout_s:g} s"
        return GatewayError("queue_timeout", message, retry_after_s=1.0)

    def concluded(self, job: Job, event: RequestEvent) -> None:
        """A request has ended, after its last byte: report it."""
        try:
            self.telemetry.emit(event)  # first: who finds nobody concluding finds all of them there
        finally:
            self._open.pop(job, None)

    @property
    def in_flight(self) -> int:
        """Requests queued and not yet concluded."""
        return len(self._open)

    def concluding(self) -> Optional[list[Job]]:
        """The requests that have their answer, or most of it, and are not reported yet; None: unknown. Never blocks."""
        try:
            return [job for job in list(self._open) if job.answered and not job.finished]
        except RuntimeError:  # an interpreter whose list(dict) is not atomic
            return None

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


def _tracing(settings: Settings) -> Optional[Begin]:
    """What begins the trace of a request; None: nobody is told of any."""
    tells = settings.propagates_traces
    if not tells and (settings.otlp_endpoint is None or settings.traces_exporter == "none"):
        return None
    return beginner(settings.traces_sampler, settings.traces_ratio, tells)


def _choose(asker: Asker, asked: Asked, call: Call, identity: Identity) -> None:
    """Where others answer for the model, have one of them do so: always the same one for a session, else a caller."""
    named = call.model
    split = asker.choose(call, call.session or identity.name or "")
    if split is not None and asked.restricted:
        if not identity.may_use(split.name, *split.aliases):
            raise forbidden(named or split.name)
        asked.restricted, call.may_use = False, None  # who may use it may use what it is made of


def _overloaded(refusal: Overloaded) -> GatewayError:
    wait_s = refusal.wait_s
    text = "too many requests are waiting" if wait_s is None else f"a worker is {wait_s:.0f} s away"
    return GatewayError("overloaded", text, retry_after_s=1.0 if wait_s is None else wait_s)


def shutting_down() -> GatewayError:
    """The error of a request that comes while the gateway drains, or that the end of the drain cuts off."""
    return GatewayError("draining", "the gateway is shutting down", retry_after_s=1.0)
