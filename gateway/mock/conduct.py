"""Which answer, or which failure, a request gets under the behaviour in force.

Owns the table of failing behaviours. Functions only: the exchange carries all state, and no lock
is needed. It never accepts, reads requests or changes the behaviour.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.mock import answers, wire
from gateway.mock.answers import BadRequest, Identity
from gateway.mock.exchange import Ending, Exchange
from gateway.mock.streaming import NOT_JSON, SPOILT_MID_ANSWER, Stream


def conduct(exchange: Exchange, identity: Identity) -> Ending:
    """Answer by the behaviour in force and return what becomes of the connection.

    Raises CallerLeft when the caller closed before the answer was complete, EngineClosed when the
    engine itself did.
    """
    while exchange.behaviour.name == "hang":
        exchange.wait_for_another_mode()
    exchange.caller.pause(exchange.behaviour.delay_s)
    failure = _FAILURES.get(exchange.behaviour.name)
    if exchange.behaviour.name == "flaky" and exchange.is_unlucky():
        failure = _error
    if failure is not None:
        return failure(exchange, identity)
    try:
        return _answer(exchange, identity)
    except BadRequest as fault:
        return exchange.fail(400, str(fault), "invalid_request_error")


def _answer(exchange: Exchange, identity: Identity) -> Ending:
    path, body, behaviour = exchange.path, exchange.body, exchange.behaviour
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object")
    usage = behaviour.name != "no_usage"
    if exchange.streams and behaviour.name != "plain_json":
        script = answers.stream(path, body, identity, behaviour.events, usage)
        return Stream(exchange, script).run()
    whole = answers.encode(answers.plain(path, body, identity, behaviour.events, usage))
    if behaviour.name == "error_first_event":
        return exchange.fail(500, "mock error instead of an answer", "server_error")
    if behaviour.name == "malformed":
        whole = NOT_JSON
    response = wire.whole(200, whole, exchange.keep_alive)
    if behaviour.name in SPOILT_MID_ANSWER:
        exchange.send(response[: len(response) - len(whole) // 2 - 1], last=True)
        return Ending.RESET if behaviour.name == "reset_mid_stream" else Ending.CLOSE
    exchange.send(response, last=True)
    return exchange.kept()


def _error(exchange: Exchange, identity: Identity) -> Ending:
    status = exchange.behaviour.status
    return exchange.fail(status, f"mock error {status} from {identity.model}", "server_error")


def _rate_limit(exchange: Exchange, identity: Identity) -> Ending:
    return exchange.fail(429, f"{identity.model} is rate limited", "rate_limit_error")


def _unauthorized(exchange: Exchange, _identity: Identity) -> Ending:
    return exchange.fail(401, "Invalid API Key", "authentication_error")


def _bad_request(exchange: Exchange, identity: Identity) -> Ending:
    return exchange.fail(400, f"{identity.model} rejects this request", "invalid_request_error")


def _loading(exchange: Exchange, _identity: Identity) -> Ending:
    return exchange.fail(503, "Loading model", "unavailable_error")


def _reset(exchange: Exchange, _identity: Identity) -> Ending:
    exchange.end()
    return Ending.RESET


def _refuse(exchange: Exchange, _identity: Identity) -> Ending:
    exchange.end()  # it arrived just before the engine began to refuse
    return Ending.CLOSE


_FAILURES: dict[str, Callable[[Exchange, Identity], Ending]] = {
    "error": _error,
    "rate_limit": _rate_limit,
    "unauthorized": _unauthorized,
    "bad_request": _bad_request,
    "loading": _loading,
    "reset": _reset,
    "refuse": _refuse,
}
