"""The errors a client can meet, and what each tells the caller to do.

Owns the closed set of error codes (`ERRORS`), from which docs/ERRORS.md and the OpenAPI document are made. Foreign
exceptions become one of these at one boundary (upstream/ for engines, server/ for HTTP); nothing here knows about
sockets or threads. Run as `python -m gateway.errors` it prints docs/ERRORS.md.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import NamedTuple, Optional

from gateway.ending import run_to_end


class ErrorCode(NamedTuple):
    """What one code says. Both texts are Markdown of one line."""

    status: int
    meaning: str
    action: str
    """What the caller does."""


ERRORS: Mapping[str, ErrorCode] = {
    "backend_rejected": ErrorCode(
        400,
        "The engine has refused the request. Status and message are the engine's own: 400 or another 4xx.",
        "Change the request as the message says. Sent again as it is, it will be refused again.",
    ),
    "bad_request": ErrorCode(
        400,
        "The bytes are no HTTP request that all servers would read alike. The connection is closed.",
        "Mend the client, or the proxy in front of the gateway.",
    ),
    "context_too_long": ErrorCode(
        400,
        "No model that may answer has room for the prompt and the tokens asked for.",
        "Shorten the prompt, ask for fewer tokens, or name a model with a larger context.",
    ),
    "endpoint_not_served": ErrorCode(
        400,
        "The model does not answer on this path.",
        "Ask another model, or this one on another path; the message names what there is.",
    ),
    "invalid_body": ErrorCode(
        400,
        "The body is JSON, but not an object that this path takes; or a query parameter is wrong.",
        "Change what `param` or the message names.",
    ),
    "invalid_execution_config": ErrorCode(
        400,
        "`execution_config` asks for what no run can have.",
        "Change the member that `param` names.",
    ),
    "invalid_input": ErrorCode(
        400,
        "`input` is neither a text, nor texts, nor tokens.",
        "Send a text that is not empty, a list of texts, or lists of tokens.",
    ),
    "invalid_inputs": ErrorCode(
        400,
        "`inputs` are no lists of arguments, too many or too long.",
        "Send a list of lists, one for each call.",
    ),
    "invalid_json": ErrorCode(
        400,
        "The body is not JSON that every parser reads alike: a syntax error, a double key, NaN, too deep, not UTF-8.",
        "Mend what writes the body; the message says where it goes wrong.",
    ),
    "invalid_max_tokens": ErrorCode(
        400,
        "`max_tokens` or `max_completion_tokens` is no number of tokens.",
        "Send an integer of at least 1, or leave it out.",
    ),
    "invalid_messages": ErrorCode(
        400,
        "`messages` is empty or a message has not the shape of one.",
        "Change what `param` names, for example `messages[2].role`.",
    ),
    "invalid_model": ErrorCode(
        400,
        "`model` is not a text.",
        "Send a model's name, or leave it out for the default.",
    ),
    "invalid_models": ErrorCode(
        400,
        "`models` is no list of names, names a model twice, or one that is made of others.",
        "Name each model once, and only such as answer themselves.",
    ),
    "invalid_n": ErrorCode(
        400,
        "`n` is no number of choices, or more than the model gives.",
        "Send a smaller integer of at least 1; to a model that is made of others 1.",
    ),
    "invalid_prompt": ErrorCode(
        400,
        "`prompt` is missing, or neither a text, nor texts, nor tokens.",
        "Send a text, a list of texts, or lists of tokens.",
    ),
    "invalid_query": ErrorCode(
        400,
        "`query` is missing or says nothing.",
        "Send a text that is not empty.",
    ),
    "invalid_residency": ErrorCode(
        400,
        "`X-Gateway-Residency` is no name of a region, or is sent twice.",
        "Send one name of letters, digits, dots, underscores and hyphens, as in `eu`.",
    ),
    "invalid_stop": ErrorCode(
        400,
        "`stop` is neither a text nor a short list of texts.",
        "Send a text, or fewer of them.",
    ),
    "invalid_stream": ErrorCode(
        400,
        "`stream` is neither true nor false, or `stream_options` is no object; embeddings are not streamed.",
        "Send a value of that type, or leave it out.",
    ),
    "invalid_temperature": ErrorCode(
        400,
        "`temperature` is no number from 0 to 2.",
        "Send such a number, or leave it out.",
    ),
    "invalid_response_format": ErrorCode(
        400,
        "The schema in `response_format`, or of a strict function, is none, cannot be checked, or is not kept here.",
        "Change what `param` names: the message says which keyword, or what is wrong with it.",
    ),
    "invalid_tests": ErrorCode(
        400,
        "`tests` hold something that is no test, too many or too long.",
        "Send texts that assert something, or pairs of `input` and `output`.",
    ),
    "invalid_top_p": ErrorCode(
        400,
        "`top_p` is no number from 0 to 1.",
        "Send such a number, or leave it out.",
    ),
    "key_exists": ErrorCode(
        400,
        "A key of that name exists already, or did and was revoked.",
        "Choose another name, or rotate the key that there is.",
    ),
    "not_supported": ErrorCode(
        400,
        "A field asks for what is not done here, or cannot be said to the engine. It may be right elsewhere.",
        "Leave out what `param` names, or ask an engine that has this endpoint itself.",
    ),
    "residency_not_served": ErrorCode(
        400,
        "The model has no engine in the region that the request must not leave. It was sent nowhere.",
        "Ask another model, or have an engine there (`region`).",
    ),
    "thread_unsupported_request": ErrorCode(
        400,
        "A message asks for a thread that Anthropic would keep the conversation of; no conversation is kept here.",
        "Send the whole conversation, without `thread`, as Anthropic's clients then do by themselves.",
    ),
    "request_exceeds_limit": ErrorCode(
        400,
        "The request alone needs more tokens than the caller's limit allows at all.",
        "Ask for fewer tokens, or have the limit raised; waiting does not help.",
    ),
    "unauthorized": ErrorCode(
        401,
        "No key or token was sent, or one that is not known or not good any more.",
        "Send `Authorization: Bearer <key>` or `X-API-Key: <key>` with a good one.",
    ),
    "forbidden": ErrorCode(
        403,
        "The caller is known but may not do this; or a page of another origin has asked.",
        "Use a key that has what the message names; for a page, add its origin to `CORS_ORIGINS`.",
    ),
    "residency_conflict": ErrorCode(
        403,
        "`X-Gateway-Residency` and the residency of the key exclude each other.",
        "Ask for a region within the key's, leave the header out, or use another key.",
    ),
    "model_not_found": ErrorCode(
        404,
        "There is no model of that name, or none for this caller.",
        "Take a name that `GET /v1/models` lists.",
    ),
    "not_found": ErrorCode(
        404,
        "There is no such path, key or engine.",
        "Take a path that the message lists; look the name up.",
    ),
    "method_not_allowed": ErrorCode(
        405,
        "The path exists, but not for this method.",
        "Use a method that the `Allow` header lists.",
    ),
    "request_timeout": ErrorCode(
        408,
        "The request did not come in time.",
        "Send it again, and faster; `CLIENT_TIMEOUT` says how long it may take.",
    ),
    "length_required": ErrorCode(
        411,
        "The request has no body, and nothing says how long one is.",
        "Send a body with `Content-Length`, or in chunks.",
    ),
    "body_too_large": ErrorCode(
        413,
        "The body is larger than `MAX_BODY_BYTES`.",
        "Send less.",
    ),
    "unsupported_media_type": ErrorCode(
        415,
        "The body is compressed, or not said to be JSON.",
        "Send plain JSON with `Content-Type: application/json`.",
    ),
    "misdirected_request": ErrorCode(
        421,
        "The `Host` that was asked for is no name of this gateway.",
        "Ask for one of its names, or add this one to `ALLOWED_HOSTS`.",
    ),
    "no_consensus": ErrorCode(
        422,
        "The members of the model do not agree, and it is to give no answer then. `verification` says what they said.",
        "Ask in other words, or a model that gives its best answer in any case.",
    ),
    "backend_rate_limited": ErrorCode(
        429,
        "Every engine that could answer has asked for a pause.",
        "Wait as long as `Retry-After` says, or ask another model.",
    ),
    "budget_exceeded": ErrorCode(
        429,
        "The caller's budget is used up, or what is under way may use it up.",
        "Wait as long as `Retry-After` says, or have the budget raised.",
    ),
    "rate_limit_exceeded": ErrorCode(
        429,
        "The caller has reached a limit of requests or tokens per minute, or of requests at once.",
        "Wait as long as `Retry-After` says; the `x-ratelimit-` headers tell what is left.",
    ),
    "headers_too_large": ErrorCode(
        431,
        "The request line and the headers are larger than `MAX_HEADER_BYTES`, or too many.",
        "Send fewer or shorter headers.",
    ),
    "client_closed_request": ErrorCode(
        499,
        "The client has left before its answer. In the log only.",
        "Nothing: nobody is left to read it.",
    ),
    "internal_error": ErrorCode(
        500,
        "The gateway has failed; its log has the reason under the request's id.",
        "Send it again; if it stays so, report it with the `request_id`.",
    ),
    "not_implemented": ErrorCode(
        501,
        "The request uses a transfer coding other than chunked.",
        "Send the body plain, or in chunks.",
    ),
    "backend_error": ErrorCode(
        502,
        "The engine has answered with a failure, with something that is no answer, or has broken off. The status is "
        "503 where the engine says that it is overloaded (529).",
        "Send it again later, with 503 when `Retry-After` says; `details` has what the engine said.",
    ),
    "invalid_model_output": ErrorCode(
        502,
        "The model's answer does not fit the schema that was asked for, after all asks. `details` name the faults, "
        "`text` is what it said last, at most 64 KiB of it: it is `truncated` beyond.",
        "Ask a better model, or for something simpler; describe the fields in the schema.",
    ),
    "backend_unavailable": ErrorCode(
        502,
        "No engine could be reached; with 503, none has been discovered.",
        "Send it again later; `GET /health` says which engines are out, and why.",
    ),
    "draining": ErrorCode(
        503,
        "The gateway is being stopped and takes nothing new.",
        "Send it again: another gateway, or this one once it is back, will take it.",
    ),
    "limits_unavailable": ErrorCode(
        503,
        "The limits that apply are counted in Redis, which cannot be asked; `SHARED_FAIL` lets nothing pass without.",
        "Wait as long as `Retry-After` says.",
    ),
    "no_model_answered": ErrorCode(
        503,
        "None of the models that were asked has answered; `details` has each one's error.",
        "As those errors say; else send it again later.",
    ),
    "overloaded": ErrorCode(
        503,
        "Too many requests are waiting, or too many connections are open.",
        "Wait as long as `Retry-After` says.",
    ),
    "queue_timeout": ErrorCode(
        503,
        "The request has waited for its turn as long as it may.",
        "Wait as long as `Retry-After` says.",
    ),
    "gateway_timeout": ErrorCode(
        504,
        "No answer came in time.",
        "Send it again, ask for fewer tokens, or stream: the time then counts to the first token only.",
    ),
    "http_version_not_supported": ErrorCode(
        505,
        "The request is of another version than HTTP/1.1 or HTTP/1.0.",
        "Speak HTTP/1.1.",
    ),
}
STATUS_BY_CODE: Mapping[str, int] = {code: row.status for code, row in ERRORS.items()}

OPENAI_TYPE_BY_STATUS: dict[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}


class GatewayError(Exception):
    """Ends a request with `code`; `str(error)` is what the client reads and never holds a secret.

    `param` is the JSON path of the faulty field or None. `retry_after_s` becomes `Retry-After` (rounded up to whole
    seconds, at least 1); None sends none. `details` are further keys of the error object. `engine` is the engine's own
    `code`, `type` and `param`, as far as it gave them; None: it is no engine's error. `status`: instead of the code's.
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
    return OPENAI_TYPE_BY_STATUS.get(status, "invalid_request_error" if status < 500 else "server_error")


def errors_document() -> str:
    """Render docs/ERRORS.md."""
    head = ["# Errors", ""]
    lines = [
        "Every code that an answer of the gateway can have, what it means, and what the caller does about it.",
        "How errors look: [RELIABILITY.md](RELIABILITY.md#errors). The same is in the OpenAPI document",
        "(`GET /openapi.json`, `x-errors`) and at `/docs`. This file is made by `python -m gateway.errors`.",
        "",
        "| status | code | meaning | what to do |",
        "|---|---|---|---|",
    ]
    rows = [f"| {row.status} | `{code}` | {row.meaning} | {row.action} |" for code, row in ERRORS.items()]
    return "\n".join(head + lines + rows) + "\n"


def _main() -> int:
    sys.stdout.buffer.write(errors_document().encode())
    return 0


if __name__ == "__main__":
    run_to_end(_main, printing=True)
