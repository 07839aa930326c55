"""What a request asks for: JSON, a form, which is passed on while it comes, or a query.

Steps. A form is held until its model is known, which is mostly with its first bytes; one that names it behind its files
is held up to there. Owns nothing.
"""

from __future__ import annotations

import urllib.parse
from typing import Any, Callable, NamedTuple, Optional

from gateway.asked import Asked
from gateway.dialects.forms import FormReader, Named, without_end
from gateway.errors import HttpError, RequestRefused
from gateway.labels import check_media_type, refuse_compressed
from gateway.settings import Settings
from gateway.steps import ASIDE, Steps
from gateway.upstream.passed import Form

ASIDE_BYTES = 1_048_576  # a form of which so much is held is put together on a thread
QUERY_FIELDS_MAX = 100


class Passing(NamedTuple):
    """A request that is passed on: what the gateway reads of it, and the form that it is."""

    request: dict[str, Any]
    form: Optional[Form] = None


def take_json(asked: Asked, settings: Settings) -> bytes:
    """The body of a request that has to have one of JSON. Raises GatewayError."""
    headers = asked.head.headers
    if headers.get(b"content-type") != b"application/json" or b"content-encoding" in headers:
        check_media_type(asked.head)
    return _take(asked, settings.max_body_bytes)


def _take(asked: Asked, limit_bytes: int) -> bytes:
    length = asked.head.content_length
    if length is None and not asked.head.chunked:
        raise RequestRefused("length_required", "a Content-Length or chunked body is required")
    if (length or 0) > limit_bytes:
        raise HttpError("body_too_large", f"the body is larger than {limit_bytes} bytes")
    if asked.fault is not None:
        raise asked.fault
    asked.body_taken = True
    return asked.body


def form_of(asked: Asked, settings: Settings) -> Steps[Passing]:
    """The form, as soon as its model is known. Raises GatewayError, also for what the client then sends no more of."""
    headers, length = asked.head.headers, asked.head.content_length
    refuse_compressed(asked.head)
    content_type = headers.get(b"content-type", b"")
    reader = FormReader(content_type)
    _take(asked, settings.max_upload_bytes)
    form, asked.body = bytearray(asked.body), b""
    upload, limit_bytes, is_aside = asked.upload, settings.max_body_bytes, False
    named = reader.find(form)
    while named is None and not reader.over and upload is not None:
        if len(form) > limit_bytes:
            text = f"the form names no model in its first {limit_bytes} bytes: let the field stand before the files"
            raise HttpError("body_too_large", text)
        if len(form) > ASIDE_BYTES and not is_aside:
            is_aside = True
            yield ASIDE
        piece = yield from upload.take()
        if not piece:
            break
        form += piece
        named = reader.find(form)
    if named is not None or reader.over:
        reader.go_on(form)
    if not reader.over and (named is None or upload is None):
        raise without_end()
    begin = bytes(form)
    if named is None:
        named = Named("", 0, 0)
    place = (named.start, named.end) if named.end else None
    request = {"model": named.model} if named.model else {}
    return Passing(request, Form(content_type, begin, place, reader, upload, length))


def query_of(asked: Asked, settings: Settings) -> Steps[Passing]:
    """What a request without a body asks for: of the model that its query names. Raises `bad_request`."""
    try:
        values = urllib.parse.parse_qs(asked.head.query, max_num_fields=QUERY_FIELDS_MAX).get("model")
    except ValueError as error:
        raise HttpError("bad_request", f"the query has more than {QUERY_FIELDS_MAX} fields") from error
    yield from ()  # they wait for nothing
    return Passing({"model": values[-1]} if values else {})


BODIES: dict[str, Callable[[Asked, Settings], Steps[Passing]]] = {
    "/v1/audio/transcriptions": form_of,
    "/v1/audio/translations": form_of,
    "/v1/images/edits": form_of,
    "/v1/images/variations": form_of,
    "/props": query_of,
    "/slots": query_of,
}
FORMS = frozenset(path for path, read in BODIES.items() if read is form_of)
"""Paths whose requests are forms."""
