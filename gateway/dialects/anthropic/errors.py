"""Errors: the gateway's as Anthropic's clients read them, an engine's as OpenAI would have said it. Pure functions."""

from __future__ import annotations

import re
from typing import Any

from gateway.dialects.dialect import Json
from gateway.dialects.reading import text_in
from gateway.errors import GatewayError

OVERLOADED = 529

_TYPE_BY_STATUS = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    OVERLOADED: "overloaded_error",
}

# What OpenAI has for Anthropic's types: its own type, and a code.
_WORDS_BY_TYPE = {
    "invalid_request_error": ("invalid_request_error", None),
    "authentication_error": ("authentication_error", "invalid_api_key"),
    "billing_error": ("insufficient_quota", "insufficient_quota"),
    "permission_error": ("permission_error", None),
    "not_found_error": ("invalid_request_error", "not_found"),
    "request_too_large": ("invalid_request_error", "request_too_large"),
    "rate_limit_error": ("rate_limit_error", "rate_limit_exceeded"),
    "timeout_error": ("server_error", "timeout"),
    "overloaded_error": ("server_error", "overloaded"),
}
_TOO_LONG = re.compile("prompt is too long|exceed context limit", re.I)
_UNPAID = re.compile("credit balance is too low", re.I)
_MESSAGE_CHARS = 2000  # of which it is judged


def status_for(error: GatewayError) -> int:
    """The HTTP status of an error for a client: who is to come later is told 529, as clients know it, and not 503."""
    return OVERLOADED if error.status == 503 else error.status


def error_message(error: GatewayError, request_id: str) -> Json:
    """The body of an error, and the data of the event that ends a broken stream. The gateway's own code is where
    Anthropic has its own."""
    status = status_for(error)
    kind = _TYPE_BY_STATUS.get(status) or ("invalid_request_error" if status < 500 else "api_error")
    told = {"type": kind, "message": error.message, "details": {**(error.details or {}), "error_code": error.code}}
    return {"type": "error", "error": told, "request_id": request_id}


def chat_error(body: Json) -> Json:
    """An engine's error as a chat engine would have told it: `{"error": {"message", "type", "code", "param"}}`."""
    error: Any = body.get("error")
    if type(error) is not dict:
        error = {"message": error}
    message = text_in(error, "message") or "the engine reported an error"
    kind, code = _WORDS_BY_TYPE.get(text_in(error, "type"), ("server_error", None))
    own = text_in(error.get("details"), "error_code")
    if own:
        code = own
    elif kind == "invalid_request_error" and _TOO_LONG.search(message, 0, _MESSAGE_CHARS):
        code = "context_length_exceeded"
    return {"error": {"message": message, "type": kind, "code": code, "param": None}}


def chat_status(status: int, body: Json) -> int:
    """The status with which a chat engine would have told it: an account without money is 429, so that it is not taken
    for the client's fault."""
    message = text_in(body.get("error"), "message")
    if status == 402 or (status == 400 and _UNPAID.search(message, 0, _MESSAGE_CHARS)):
        return 429
    return status
