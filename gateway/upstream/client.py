"""Asking engines over a urllib opener with a keep-alive pool.

Owns the opener, the resolver, the map of endpoints and the counts of surpluses; the lock guards the latter two. How one
request goes is said by `conversation.py`, as steps: whoever may block has them driven by urllib, a loop runs them
itself. Never chooses an engine, never retries one.
"""

from __future__ import annotations

import os
import re
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Callable, NoReturn, Optional

from gateway.routing.nearness import is_near_address, is_near_host
from gateway.routing.specs import EngineSpec
from gateway.steps import Steps, drive
from gateway.upstream.attempt import Attempt, EngineFault, UsageRefused
from gateway.upstream.connection import Asked
from gateway.upstream.connections import is_numeric
from gateway.upstream.conversation import converse, pass_on
from gateway.upstream.endpoint import Endpoint
from gateway.upstream.passed import Form
from gateway.upstream.resolver import Resolver
from gateway.upstream.response import EngineResponse
from gateway.upstream.status import status_outcome

ERROR_MAX_BYTES = 65_536  # of what an engine says to an error; one that says more is not heard out
# What refuses `"stream_options": {"include_usage": true}` names one of the two somewhere: in a message, in `param`, in
# FastAPI's `loc`. (An error that repeats the request does, too: the request is sent once more then, to no avail.)
_NAMES_USAGE = re.compile(rb"stream[ _]?options|include[ _]?usage", re.I)


class EngineRequest(urllib.request.Request):
    """A urllib request made from a prepared one: Request.__init__ would parse the URL again (30 of 96 µs a call)."""

    def __init__(self, prepared: dict[str, object], conversation: Conversation) -> None:
        self.__dict__.update(prepared)
        self.conversation = conversation


class PooledHandler(urllib.request.BaseHandler):
    """Serves http and https for the opener on kept connections (urllib's own handlers close after each request)."""

    def http_open(self, request: EngineRequest) -> EngineResponse:
        return drive(request.conversation.converse())

    https_open = http_open


class Conversation:
    """A request to an engine, to be opened by urllib or run as steps (see `steps.Opened`)."""

    __slots__ = ("_attempt", "_endpoint", "_form", "_opener", "_path", "_wire")

    def __init__(
        self,
        opener: urllib.request.OpenerDirector,
        endpoint: Endpoint,
        path: str,
        attempt: Attempt,
        wire: bytes,
        form: Optional[Form] = None,
    ) -> None:
        self._opener = opener
        self._endpoint = endpoint
        self._path = path
        self._attempt = attempt
        self._wire = wire
        self._form = form

    def open(self) -> EngineResponse:
        """Block for the head of the answer."""
        response: EngineResponse = self._opener.open(EngineRequest(self._endpoint.prepare(self._path)[1], self))
        return response

    def converse(self) -> Steps[EngineResponse]:
        """The same as steps."""
        form = self._form
        if form is not None and form.upload is not None:
            return pass_on(self._endpoint.pool, self._attempt, self._wire, form, form.upload)
        return converse(self._endpoint.pool, self._attempt, self._wire)


class EngineClient:
    """Asks engines. Thread-safe. `resolver` is closed with it; None: a new one."""

    def __init__(
        self,
        connect_timeout_s: float = 5.0,
        secrets: Optional[Mapping[str, str]] = None,
        resolver: Optional[Resolver] = None,
    ) -> None:
        self._connect_timeout_s = connect_timeout_s
        self.resolver = Resolver() if resolver is None else resolver
        self.resolver.on_change = self._moved
        self.secrets = os.environ if secrets is None else secrets
        self._lock = threading.Lock()
        self._endpoints: dict[EngineSpec, Endpoint] = {}
        self._surplus: Counter[Asked] = Counter()
        self._opener = urllib.request.OpenerDirector()
        self._opener.add_handler(PooledHandler())

    def endpoint(self, spec: EngineSpec) -> Endpoint:
        """The prepared endpoint of an engine, made at its first use."""
        endpoint = self._endpoints.get(spec)
        if endpoint is None:
            with self._lock:
                endpoint = self._endpoints.get(spec)
                if endpoint is None:
                    endpoint = Endpoint(spec, self.secrets, self._connect_timeout_s, self.resolver, self._note_surplus)
                    self._endpoints[spec] = endpoint
        return endpoint

    def _note_surplus(self, asked: Asked) -> None:
        with self._lock:
            self._surplus[asked] += 1

    def surplus(self, asked: Asked) -> int:
        """Return how often more has come on a connection than this model had asked this engine for."""
        return self._surplus.get(asked, 0)

    def conversation(
        self, endpoint: Endpoint, path: str, attempt: Attempt, body: bytes, headers: bytes
    ) -> Conversation:
        """A POST of `body`, to be opened (see `steps.Opened`), which gives the response whose head has come.

        `headers` are extra header lines, each ending in CRLF. Opening raises EngineFault for every failure, ClientGone
        when the attempt was cancelled. An answer other than 2xx is for `refused`.
        """
        return Conversation(self._opener, endpoint, path, attempt, endpoint.wire(path, body, headers))

    def passing(
        self,
        endpoint: Endpoint,
        path: str,
        attempt: Attempt,
        form: Optional[Form],
        model: Optional[str],
        headers: bytes,
    ) -> Conversation:
        """The same for a `form`, or None: without a body. `model`: as the engine knows it; None: as the form has it."""
        if form is None:
            wire = endpoint.wire_of_nothing(path, headers)
        else:
            wire = endpoint.wire_of_form(path, form, model, headers)
        return Conversation(self._opener, endpoint, path, attempt, wire, form)

    def forget(self, specs: list[EngineSpec]) -> None:
        """Close the idle connections of engines that are gone; those in use are closed when they are given back."""
        with self._lock:
            gone = [self._endpoints.pop(spec) for spec in specs if spec in self._endpoints]
        for endpoint in gone:
            endpoint.pool.close()

    def keep_names(self, specs: Iterable[EngineSpec]) -> None:
        """Look up the names of these engines, now and whenever they get old; forget all others."""
        self.resolver.keep(spec.host for spec in specs if not spec.is_echo and not is_numeric(spec.host))

    def is_near(self, host: str) -> Optional[bool]:
        """Whether a host is this machine or in a private network; None: its name was never found. Never blocks."""
        near = is_near_host(host)
        if near is None:
            addresses = self.resolver.last_known(host)
            near = None if addresses is None else all(is_near_address(address[0]) for _, address in addresses)
        return near

    def _moved(self, host: str) -> None:
        """The addresses of a name have changed (on a thread of the resolver)."""
        for endpoint in list(self._endpoints.values()):
            if endpoint.spec.host == host:
                endpoint.pool.let_go()

    def prune(self) -> None:
        """Close connections that nobody has used for a minute; begin to look up names that are due."""
        self.resolver.tick()
        for endpoint in list(self._endpoints.values()):
            endpoint.pool.prune()

    def close(self) -> None:
        """Close every idle connection, and the resolver."""
        self.forget(list(self._endpoints))
        self.resolver.close()


def refused(
    response: EngineResponse, translate: Optional[Callable[[int, bytes], tuple[int, bytes]]] = None
) -> Steps[NoReturn]:
    """Raise what an answer other than 2xx means; `translate` gives its status and body as chat engines have them."""
    try:
        text = yield from response.read_up_to(ERROR_MAX_BYTES)
        status = response.status
        if translate is not None:
            status, text = translate(status, text)
        outcome = status_outcome(status, response.head.headers, text)
    except BaseException:
        response.close()
        raise
    response.release()
    # Some answer 500 or 501.
    kinds = ("rejected", "error", "not_implemented")
    if response.attempt.asks_usage and outcome.kind in kinds and _NAMES_USAGE.search(text):
        raise UsageRefused(outcome)
    raise EngineFault(outcome)
