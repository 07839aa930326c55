"""The errors a client can meet, and what each tells the caller to do.

Owns the closed set of error codes with their HTTP statuses (`STATUS_BY_CODE`). Foreign exceptions become one of these
at one boundary (upstream/ for engines, server/ for HTTP); nothing here knows about sockets or threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Optional

STATUS_BY_CODE: dict[str, int] = {
    "backend_rejected": 400,
    "bad_request": 400,
    "context_too_long": 400,
    "endpoint_not_served": 400,
    "invalid_body": 400,
    "invalid_execution_config": 400,
    "invalid_input": 400,
    "invalid_inputs": 400,
    "invalid_json": 400,
    "invalid_max_tokens": 400,
    "invalid_messages": 400,
    "invalid_model": 400,
    "invalid_models": 400,
    "invalid_n": 400,
    "invalid_prompt": 400,
    "invalid_query": 400,
    "invalid_stop": 400,
    "invalid_stream": 400,
    "invalid_temperature": 400,
    "invalid_tests": 400,
    "invalid_top_p": 400,
    "key_exists": 400,
    "not_supported": 400,
    "request_exceeds_limit": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "model_not_found": 404,
    "not_found": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "length_required": 411,
    "body_too_large": 413,
    "unsupported_media_type": 415,
    "misdirected_request": 421,
    "no_consensus": 422,
    "backend_rate_limited": 429,
    "budget_exceeded": 429,
    "rate_limit_exceeded": 429,
    "headers_too_large": 431,
    "client_closed_request": 499,
    "internal_error": 500,
    "not_implemented": 501,
    "backend_error": 502,
    "backend_unavailable": 502,
    "draining": 503,
    "no_model_answered": 503,
    "overloaded": 503,
    "queue_timeout": 503,
    "gateway_timeout": 504,
    "http_version_not_supported": 505,
}

OPENAI_TYPE_BY_STATUS: dict[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}


class GatewayError(Exception):
    """Ends a request with `code`; `str(error)` is what the client reads and never holds a secret.

    `param` is the JSON path of the faulty field or None. `retry_after_s` becomes `Retry-After` (rounded up to whole
    seconds, at least 1); None sends none. `details` are further keys of the error object. `engine` is the engine's own
    `code`, `type` and `param`, as far as it gave them; None: it is no engine's error. `status` overrides the code's own
    status (an engine's 4xx is passed on with its status).
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: Optional[str] = None,
        retry_after_s: Optional[float] = None,
        status: Optional[int] = None,
        details: Optional[Mapping[str, object]] = None,
        engine: Optional[Mapping[str, object]] = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.status = STATUS_BY_CODE[code] if status is None else status
        self.details = details
        self.engine = engine
        self.headers = headers


class RequestRefused(GatewayError):
    """The caller's fault: sending the same request again gives the same answer."""


class EngineFailed(GatewayError):
    """No engine could answer: the same request may succeed later."""


class ClientGone(GatewayError):
    """The client closed its connection; nobody is left to read an answer (499, in the log only)."""

    def __init__(self) -> None:
        super().__init__("client_closed_request", "the client closed the connection")


class HttpError(GatewayError):
    """The bytes were not an acceptable HTTP request: answered, then the connection is closed."""


def openai_type(status: int) -> str:
    """The `type` that the OpenAI error shape carries for an HTTP status."""
    kind = OPENAI_TYPE_BY_STATUS.get(status)
    if kind is not None:
        return kind
    return "invalid_request_error" if status < 500 else "server_error"
