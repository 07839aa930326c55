"""Asking engines for a call as its client wants it: in whose words, and until the answer is like what it has to be.

No state but what it is made with, no lock. How one engine is found is for `dispatch`, what fits for `fitting`.
"""

from __future__ import annotations

import time
from typing import Optional

from gateway.asked import Asked
from gateway.calling import NATIVE, in_chat
from gateway.dialects.bypath import in_own_words
from gateway.dispatch import Asker
from gateway.errors import EngineFailed, GatewayError, RequestRefused
from gateway.fitting import Given, Limits, fitting, give_shape, takes_long_to_shape
from gateway.nativefit import give_native_shape, takes_long_to_shape_native
from gateway.routing.router import Router
from gateway.schemas.registry import SchemaRegistry
from gateway.settings import Settings
from gateway.steps import ASIDE, Steps
from gateway.upstream.call import CHAT, Call

_LACKED = ("endpoint_not_served", "not_supported")
"""What is refused because no engine has the endpoint."""
_LARGE_BYTES = 65_536  # of a request, which takes a while to be said in other words
_SHAPES = {CHAT: (give_shape, takes_long_to_shape), NATIVE: (give_native_shape, takes_long_to_shape_native)}


class Asking:
    """Asks for calls. Thread-safe. `schemas`: those that are used by their name alone; None: there are none."""

    def __init__(self, asker: Asker, router: Router, settings: Settings, schemas: Optional[SchemaRegistry]) -> None:
        self._asker = asker
        self._router = router
        self._settings = settings
        self._limits = Limits(settings.schema_retries, settings.request_timeout_s)
        self._schemas = schemas

    def shape(self, asked: Asked, call: Call) -> Steps[None]:
        """Have the answers checked for what the call asks of them. Raises `invalid_response_format`."""
        give, takes_long = _SHAPES[call.path]
        if takes_long(call.request):
            yield ASIDE
        try:
            give(call, {} if self._schemas is None else self._schemas.schemas())
        except RequestRefused as refusal:
            raise in_own_words(asked.head.path, refusal) from refusal

    def ask(self, asked: Asked, call: Call) -> Steps[Given]:
        """An answer that fits, or a stream, which is judged as it goes. Raises GatewayError."""
        if call.path == NATIVE:
            return (yield from self._natively(asked, call))
        return (yield from self._fitting(call))

    def _fitting(self, call: Call) -> Steps[Given]:
        if call.shape is None:
            return (yield from self._asker.ask(call))
        limits = self._limits if call.limit_s is None else self._limits._replace(total_s=call.limit_s)
        return (yield from fitting(self._asker.ask, call, call.shape, limits))

    def _natively(self, asked: Asked, call: Call) -> Steps[Given]:
        """What engines with the endpoint give, if the model that is to answer has such; where it has not, or they have
        all failed, what those that have only chat give to the same in its words, in the time that is left."""
        settings = self._settings
        until_s = time.monotonic() + settings.request_timeout_s
        if self._router.route(call.model, may_use=call.may_use)[0].lacks(NATIVE):
            other = yield from _other_words(asked, call)
            if other is not None:
                return (yield from self._in_chat(asked, call, other))
        try:
            return (yield from self._fitting(call))
        except (EngineFailed, RequestRefused) as failure:
            left_s = until_s - time.monotonic()
            is_ours = isinstance(failure, EngineFailed) or failure.code in _LACKED
            if not is_ours or left_s <= 0 or call.schema_retries:
                raise
            first: GatewayError = failure
        other = yield from _other_words(asked, call)
        if other is None:
            raise first
        other.limit_s, other.lacking = left_s, NATIVE
        try:
            return (yield from self._in_chat(asked, call, other))
        except (EngineFailed, RequestRefused) as failure:
            raise (failure if other.attempts > call.attempts else first) from None  # else it has asked nobody

    def _in_chat(self, asked: Asked, call: Call, other: Call) -> Steps[Given]:
        """What is given to `other` in the place of `call`."""
        asked.call = other
        other.take_over(call)
        yield from self.shape(asked, other)
        split = (self._router.splits or {}).get(call.split)
        if split is not None and split.params is not None:
            other.change(split.params)  # also what Responses have no words for
        return (yield from self._fitting(other))


def _other_words(asked: Asked, call: Call) -> Steps[Optional[Call]]:
    """See `in_chat`."""
    if len(call.body) > _LARGE_BYTES:
        yield ASIDE
    return in_chat(asked, call)
