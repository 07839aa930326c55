"""From a request's path to its answer: probes, the control endpoint, inference.

Owns the table of paths. Works on the connection's thread and has no lock of its own; what it needs
of the engine is the protocol `Desk`. It never decides how a behaviour answers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Protocol

from gateway.mock import answers, wire
from gateway.mock.answers import Identity
from gateway.mock.behaviours import Behaviour, BehaviourError, settle
from gateway.mock.caller import Caller, CallerLeft
from gateway.mock.conduct import conduct
from gateway.mock.exchange import Ending, Exchange, Mode
from gateway.mock.gate import Gate
from gateway.mock.ledger import Ledger

_METHODS_BY_PATH = {
    "/health": ("GET",),
    "/v1/models": ("GET",),
    "/control": ("GET", "POST"),
    "/control/requests": ("GET",),
    answers.CHAT: ("POST",),
    answers.COMPLETIONS: ("POST",),
    answers.EMBEDDINGS: ("POST",),
}


class Desk(Protocol):
    """What answering needs to know of the engine, and the one thing it may change."""

    model: str
    port: int

    @property
    def mode(self) -> Mode: ...

    @property
    def gate(self) -> Gate | None: ...

    @property
    def requests(self) -> list[dict[str, Any]]: ...

    def stats(self) -> dict[str, Any]: ...

    def change(self, mode: Mode, spared: Caller | None) -> None: ...


class Routes:
    """Answers the requests of every connection of one engine. Thread safe."""

    def __init__(self, desk: Desk, ledger: Ledger) -> None:
        self._desk = desk
        self._ledger = ledger

    def answer_all(self, caller: Caller) -> Ending:
        """Answer one request after the other and return how the connection is to end.

        Raises OSError, CallerLeft or EngineClosed when it has ended already.
        """
        reader = wire.RequestReader(caller.sock)
        ending = Ending.KEEP
        while ending is Ending.KEEP:
            try:
                request = reader.next()
            except wire.ProtocolError as fault:
                body = _fault(fault.status, str(fault))
                caller.send(wire.whole(fault.status, answers.encode(body), keep_alive=False))
                return Ending.CLOSE
            if request is None:
                return Ending.CLOSE
            ending = self._answer(caller, request)
        return ending

    def _answer(self, caller: Caller, request: wire.Request) -> Ending:
        allowed = _METHODS_BY_PATH.get(request.path)
        if allowed is None:
            body = answers.error_body(404, f"no such path {request.path}", "not_found_error")
            return _reply(caller, request, 404, body)
        if request.method not in allowed:
            body = _fault(405, f"use {' or '.join(allowed)}")
            return _reply(caller, request, 405, body, [("Allow", ", ".join(allowed))])
        if request.path == "/control/requests":
            return _reply(caller, request, 200, {"requests": self._desk.requests})
        if request.path == "/control":
            return self._answer_control(caller, request)
        if request.method == "POST":
            return self._answer_inference(caller, request)
        return self._answer_probe(caller, request)

    def _answer_probe(self, caller: Caller, request: wire.Request) -> Ending:
        self._ledger.count("probes")
        if request.path == "/v1/models":
            return _reply(caller, request, 200, answers.models(self._identity(0)))
        if self._desk.mode.behaviour.name == "loading":
            body = answers.error_body(503, "Loading model", "unavailable_error")
            return _reply(caller, request, 503, body)
        return _reply(caller, request, 200, {"status": "ok"})

    def _answer_inference(self, caller: Caller, request: wire.Request) -> Ending:
        desk = self._desk
        exchange = Exchange(caller, request, self._ledger, lambda: desk.mode, desk.gate)
        try:
            return conduct(exchange, self._identity(exchange.number))
        except CallerLeft:
            exchange.cancel()
            return Ending.CLOSE
        finally:
            exchange.end()
            caller.unwatch()

    def _answer_control(self, caller: Caller, request: wire.Request) -> Ending:
        if request.method == "GET":
            return _reply(caller, request, 200, self._desk.stats())
        try:
            mode = Mode(_settled(request.body))
        except BehaviourError as fault:
            return _reply(caller, request, 400, _fault(400, str(fault)))
        self._desk.change(mode, spared=caller)
        if mode.behaviour.name != "refuse":
            return _reply(caller, request, 200, self._desk.stats())
        body = answers.encode(self._desk.stats())
        caller.send(wire.whole(200, body, keep_alive=False))  # the last connection to close
        return Ending.CLOSE

    def _identity(self, number: int) -> Identity:
        return Identity(self._desk.model, self._desk.port, number)


def _settled(body: bytes) -> Behaviour:
    try:
        options = json.loads(body)
    except (ValueError, RecursionError):
        raise BehaviourError("the body is not JSON") from None
    if not isinstance(options, dict):
        raise BehaviourError("the body must be a JSON object")
    return settle(options.pop("behaviour", None), options)


def _fault(status: int, message: str) -> dict[str, Any]:
    return answers.error_body(status, message, "invalid_request_error")


def _reply(
    caller: Caller,
    request: wire.Request,
    status: int,
    body: object,
    extra: Sequence[wire.Header] = (),
) -> Ending:
    caller.send(wire.whole(status, answers.encode(body), request.keep_alive, extra))
    return Ending.KEEP if request.keep_alive else Ending.CLOSE
