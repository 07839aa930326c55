"""The OpenAPI 3.1 document, made of the operations.

Pure. Made once for each of the few ways in which gateways differ, and kept as bytes; asking for it costs nothing
then. Run as `python -m gateway.api.document` it prints the document of a gateway that has keys.
"""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from collections.abc import Iterable
from typing import NamedTuple

from gateway import __version__
from gateway.api import inference, managing, own
from gateway.api.operation import JSON_TYPE, Answer, Json, Operation, ref
from gateway.api.page import page_of
from gateway.api.schemas import SCHEMAS
from gateway.dialects.bypath import ANTHROPIC, OLLAMA, OPENAI, STATUS_FOR
from gateway.ending import run_to_end
from gateway.errors import ERRORS, GatewayError

OPERATIONS: tuple[Operation, ...] = (*inference.OPERATIONS, *own.OPERATIONS, *managing.OPERATIONS)
SECURITY_SCHEMES: Json = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A key, or a token made of one."},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "A key, or a token made of one."},
}
_TEXT: Json = {"type": "string"}
_COUNT: Json = {"type": "integer", "minimum": 0}
_AMOUNT: Json = {"type": "number", "minimum": 0}
HEADERS: dict[str, tuple[str, Json]] = {
    "X-Request-ID": ("The request's id, as in the log line.", {**_TEXT, "minLength": 1, "maxLength": 128}),
    "WWW-Authenticate": ("How to show a key.", {"const": "Bearer"}),
    "Retry-After": ("Seconds to wait.", {"type": "integer", "minimum": 1}),
    "X-Should-Retry": ("`false`: OpenAI's SDKs shall not try again by themselves.", {"const": "false"}),
    "Allow": ("The methods of the path.", _TEXT),
    "ETag": ("Names this version; to be sent in `If-None-Match`.", _TEXT),
    "X-Gateway-Engine": ("The engine that has answered; none where the cache has.", _TEXT),
    "X-Gateway-Model": ("The model that has answered.", _TEXT),
    "X-Gateway-Attempts": ("Requests that were sent to engines.", _COUNT),
    "X-Gateway-Fallback": ("`asked->answered`, where another model has answered.", _TEXT),
    "X-Gateway-Cost-Usd": ("What it has cost, where prices are known.", _AMOUNT),
    "X-Gateway-Cache": ("What the cache did.", {"enum": ["hit", "near", "miss", "bypass"]}),
    "X-Gateway-Coalesced": ("`true`: the call was another's, too.", {"enum": ["true", True]}),
    "Age": ("Seconds since a kept answer was made.", _COUNT),
    "Server-Timing": ("Milliseconds in the queue, at engines and in the gateway.", _TEXT),
    "x-ratelimit-limit-requests": ("Requests per minute.", _COUNT),
    "x-ratelimit-remaining-requests": ("Requests left at once.", _COUNT),
    "x-ratelimit-reset-requests": ("Until all are there again, for example 1s.", _TEXT),
    "x-ratelimit-limit-tokens": ("Tokens per minute.", _COUNT),
    "x-ratelimit-remaining-tokens": ("Tokens left at once.", _COUNT),
    "x-ratelimit-reset-tokens": ("Until all are there again, for example 1s.", _TEXT),
}
_ALWAYS_THERE = ("X-Request-ID",)
_ERROR_HEADERS = {
    401: ("WWW-Authenticate",),
    429: ("Retry-After", "X-Should-Retry"),
    503: ("Retry-After",),
    529: ("Retry-After",),
}
ERROR_SCHEMAS = {"": "Error", OPENAI: "OpenAIError", ANTHROPIC: "AnthropicError", OLLAMA: "OllamaError"}
_ABOUT = """\
An OpenAI-compatible gateway in front of language models.

* `HEAD` works where `GET` does, `OPTIONS` answers everywhere, without a key.
* Every answer has an `X-Request-ID`.
* Errors have the shape `SimpleError`, for OpenAI's SDKs `OpenAIError`, at other dialects' paths theirs.
* A field whose value is null counts as absent."""


class Documents(NamedTuple):
    """The document and the page, as they are sent, each with its ETag."""

    document: bytes
    document_tag: str
    page: bytes
    page_tag: str


@functools.cache
def documents(needs_key: bool, metrics_open: bool) -> Documents:
    """The document in JSON, and the page that shows it.

    `needs_key`: whether any key is configured. `metrics_open`: whether `/metrics` is open all the same.
    """
    document = openapi(needs_key, metrics_open)
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    page = page_of(document)
    return Documents(text, _tag_of(text), page, _tag_of(page))


def _tag_of(data: bytes) -> str:
    return f'"{hashlib.sha256(data).hexdigest()[:16]}"'


def openapi(needs_key: bool = True, metrics_open: bool = True) -> Json:
    """The document, as `documents` has it."""
    paths: dict[str, Json] = {}
    for operation in OPERATIONS:
        described = _operation(operation)
        described["security"] = _security(operation, needs_key, metrics_open)
        paths.setdefault(operation.path, {})[operation.method.lower()] = described
    codes = {code for operation in OPERATIONS for code in operation.all_errors}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Inference gateway",
            "version": __version__,
            "description": _ABOUT,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name} for name in dict.fromkeys(operation.tag for operation in OPERATIONS)],
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "responses": {code: _error(ERRORS[code].status, [code]) for code in sorted(codes)},
            "headers": {name: {"description": text, "schema": schema} for name, (text, schema) in HEADERS.items()},
            "securitySchemes": SECURITY_SCHEMES,
        },
        "x-errors": {code: row._asdict() for code, row in ERRORS.items()},
    }


def _security(operation: Operation, needs_key: bool, metrics_open: bool) -> list[Json]:
    """Which keys it takes, with the permission; {}: none is needed."""
    if operation.permission is None or not needs_key:
        return []
    needed = [operation.permission] if operation.permission else []
    schemes: list[Json] = [{name: needed} for name in SECURITY_SCHEMES]
    return [{}, *schemes] if operation is own.METRICS and metrics_open else schemes


def _operation(operation: Operation) -> Json:
    described: Json = {
        "operationId": operation.name,
        "tags": [operation.tag],
        "summary": operation.summary,
    }
    permission = f"Needs the permission `{operation.permission}`." if operation.permission else ""
    text = " ".join(filter(None, (operation.text, permission)))
    if text:
        described["description"] = text
    if operation.parameters:
        described["parameters"] = [
            {
                "name": parameter.name,
                "in": parameter.place,
                "required": parameter.place == "path",
                "description": parameter.description,
                "schema": parameter.schema,
            }
            for parameter in operation.parameters
        ]
    body = operation.body
    if body is not None:
        content = {"schema": body.schema, **({} if body.example is None else {"example": body.example})}
        described["requestBody"] = {"required": body.required, "content": {body.media_type: content}}
    described["responses"] = _responses(operation)
    return described


def _responses(operation: Operation) -> Json:
    responses = {str(answer.status): _good(answer) for answer in operation.answers}
    error_format = operation.error_format
    codes_by_status: dict[int, list[str]] = {}
    for code in sorted(set(operation.all_errors)):
        codes_by_status.setdefault(_status_of(code, error_format), []).append(code)
    for status, codes in sorted(codes_by_status.items()):
        good = responses.get(str(status))
        if len(codes) == 1 and good is None and not error_format:
            responses[str(status)] = {"$ref": f"#/components/responses/{codes[0]}"}
            continue
        described = _error(status, codes, error_format)
        if good is not None:  # an answer of that status, too: as with /readyz
            described["description"] = f"{good['description']} Or: {described['description']}"
            schema = described["content"][JSON_TYPE]["schema"]
            described["content"][JSON_TYPE]["schema"] = {"anyOf": [good["content"][JSON_TYPE]["schema"], schema]}
        responses[str(status)] = described
    if "backend_rejected" in operation.errors:
        responses["4XX"] = {
            **_error(400, ["backend_rejected"], error_format),
            "description": "`backend_rejected`, with its status.",
        }
    return responses


def _good(answer: Answer) -> Json:
    described: Json = {"description": answer.description, "headers": _headers(answer.headers)}
    if answer.content:
        described["content"] = {kind: {"schema": schema} for kind, schema in answer.content.items()}
    return described


def _status_of(code: str, error_format: str) -> int:
    """The status that a code has in a dialect."""
    status_for = STATUS_FOR.get(error_format)
    return ERRORS[code].status if status_for is None else status_for(GatewayError(code, ""))


def _error(status: int, codes: list[str], error_format: str = "") -> Json:
    return {
        "description": f"{', '.join(f'`{code}`' for code in codes)}.",
        "headers": _headers(_ERROR_HEADERS.get(status, ())),
        "content": {JSON_TYPE: {"schema": ref(ERROR_SCHEMAS[error_format])}},
        "x-codes": codes,
    }


def _headers(names: Iterable[str]) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in (*_ALWAYS_THERE, *names)}


def _main() -> int:
    sys.stdout.buffer.write(documents(needs_key=True, metrics_open=True).document)
    return 0


if __name__ == "__main__":
    run_to_end(_main, printing=True)
