"""What can be said of one operation, a method of a path: who may ask, with what, and what answers there are.

Owns the shapes, and the errors that operations have in common. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional

Json = dict[str, Any]
JSON_TYPE = "application/json"

ANY = (
    *("bad_request", "request_timeout", "body_too_large", "misdirected_request", "headers_too_large"),
    *("internal_error", "not_implemented", "overloaded", "http_version_not_supported"),
)
"""Errors of every operation: HTTP's own, and the gateway's."""
IDENTIFIED = ("unauthorized", "forbidden")
"""Of all but the open ones; `forbidden` also without keys, for pages of other origins."""
BODY = ("invalid_json", "invalid_body", "length_required", "unsupported_media_type")
"""Of those that read a JSON body."""


class Parameter(NamedTuple):
    """A parameter of the path, the query or the headers (`place`)."""

    place: str
    name: str
    description: str
    schema: Json


class Body(NamedTuple):
    """A body. `schema` may be a reference to a component."""

    schema: Json
    required: bool = True
    example: Optional[Json] = None
    media_type: str = JSON_TYPE


class Answer(NamedTuple):
    """A good answer. `content`: its schema by media type; {}: it has no body. `headers`: names of components."""

    status: int
    description: str
    content: Mapping[str, Json]
    headers: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Operation:
    """One method of one path, in which `{…}` stands for any one part.

    `permission`: what a caller's role must have; "": the caller must be known; None: open to all. `text` and `summary`
    are Markdown. `errors` are codes of `gateway.errors`, beside those that `all_errors` adds.
    """

    method: str
    path: str
    name: str
    tag: str
    summary: str
    permission: Optional[str]
    answers: tuple[Answer, ...]
    text: str = ""
    parameters: tuple[Parameter, ...] = ()
    body: Optional[Body] = None
    errors: tuple[str, ...] = ()
    error_format: str = ""
    """The shape of its errors, as `errorformat.py` says it; "": `Error`."""

    @property
    def all_errors(self) -> tuple[str, ...]:
        """Every code that its answers may have."""
        known = () if self.permission is None else IDENTIFIED
        return (*ANY, *known, *(BODY if self.body is not None else ()), *self.errors)


def ref(name: str) -> Json:
    """A reference to the schema of that name."""
    return {"$ref": f"#/components/schemas/{name}"}


def json_answer(status: int, description: str, schema: Json, *headers: str) -> Answer:
    """A good answer in JSON."""
    return Answer(status, description, {JSON_TYPE: schema}, headers)
