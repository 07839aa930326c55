"""What all operations that ask engines have in common: errors, headers, parameters."""

from __future__ import annotations

from gateway.api.operation import Json, Parameter

ASKING = (
    *("invalid_model", "model_not_found", "context_too_long", "request_exceeds_limit", "endpoint_not_served"),
    *("backend_rejected", "rate_limit_exceeded", "budget_exceeded", "backend_rate_limited"),
    *("backend_error", "backend_unavailable", "draining", "limits_unavailable", "queue_timeout", "gateway_timeout"),
    *("invalid_residency", "residency_conflict", "residency_not_served"),
)
"""Errors of whatever asks engines."""
SHAPED = ("invalid_response_format", "invalid_model_output")
"""Of what may ask for an answer that fits a schema."""
HEADERS = (
    *("X-Gateway-Engine", "X-Gateway-Model", "X-Gateway-Attempts", "X-Gateway-Fallback", "Server-Timing"),
    *("X-Gateway-Cost-Usd", "X-Gateway-Cache", "X-Gateway-Coalesced", "Age"),
    *("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
    *("x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"),
)
_TEXT: Json = {"type": "string"}
_REGION: Json = {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"}
PARAMETERS = (
    Parameter("header", "X-Request-ID", "An id for the request, which its answer then has; else one is made.", _TEXT),
    Parameter("header", "X-Session-ID", "Requests of one session go to one engine (`prefix_affinity`).", _TEXT),
    Parameter("header", "X-Gateway-Fallback", "`off`: no other model may answer.", _TEXT),
    Parameter("header", "X-Gateway-Residency", "The region that the request must not leave, as in `eu`.", _REGION),
    Parameter("header", "X-Gateway-Priority", "`high`, `normal` or `low`, for keys that may say so.", _TEXT),
    Parameter(
        "header", "X-Gateway-Cache", "`on`: an answer may be kept and reused as if it were deterministic.", _TEXT
    ),
    Parameter("header", "X-Gateway-Coalesce", "`off`: shares no call with identical requests under way.", _TEXT),
    Parameter("header", "Cache-Control", "`no-cache`, `no-store`, `max-age=N`: which kept answers will do.", _TEXT),
    Parameter("header", "Idempotency-Key", "Passed on to the engine.", _TEXT),
    Parameter(
        "header", "traceparent", "The caller's trace and span, by W3C Trace Context: engines are told of it.", _TEXT
    ),
    Parameter("header", "tracestate", "Passed on to the engine with the trace.", _TEXT),
)
