"""The endpoints for clients of other dialects: how each reads a request, and in which shape it tells an error.

One table, for the paths that translate; what a path only shows is in `server/routes.py`.
"""

from __future__ import annotations

from typing import Callable, NamedTuple, Optional

from gateway.dialects.anthropic.errors import error_message, status_for
from gateway.dialects.anthropic.requests import counted, read_count
from gateway.dialects.anthropic.requests import read as read_messages
from gateway.dialects.dialect import Counted, Json, Read
from gateway.dialects.ollama.conversation import error_of
from gateway.dialects.ollama.request import read_chat, read_embed, read_embeddings, read_generate, read_show
from gateway.dialects.ollama.times import Times
from gateway.dialects.responses.conversation import read as read_responses
from gateway.errors import GatewayError, RequestRefused

OPENAI = "openai"
OLLAMA = "ollama"
ANTHROPIC = "anthropic"
_OLLAMAS = tuple(
    f"/api/{name}" for name in ("tags", "ps", "version", "pull", "push", "create", "copy", "delete", "blobs/")
)


class Endpoint(NamedTuple):
    """One path for clients of another dialect."""

    read: Callable[[Json, Times], Read]
    """The request, translated. Raises RequestRefused."""
    error_format: str
    """A shape of `ERROR_BODIES`, or one that the gateway has anyway."""
    places: tuple[tuple[str, str], ...] = ()
    """Parts of a place in a chat request, and what they are in this one: where a schema stands."""


_FORM = "response_format.json_schema"
_MESSAGES_PLACES = ((_FORM, "output_config.format"), (".function.parameters", ".input_schema"))
_RESPONSES_PLACES = ((_FORM, "text.format"), (".function.parameters", ".parameters"))
_OLLAMA_PLACES = ((f"{_FORM}.schema", "format"), (_FORM, "format"))
ENDPOINTS: dict[str, Endpoint] = {
    "/v1/messages": Endpoint(lambda request, times: read_messages(request), ANTHROPIC, _MESSAGES_PLACES),
    "/v1/messages/count_tokens": Endpoint(lambda request, times: Counted(read_count(request), counted), ANTHROPIC),
    "/v1/responses": Endpoint(lambda request, times: read_responses(request), OPENAI, _RESPONSES_PLACES),
    "/api/show": Endpoint(read_show, OLLAMA),
    "/api/chat": Endpoint(read_chat, OLLAMA, _OLLAMA_PLACES),
    "/api/generate": Endpoint(read_generate, OLLAMA, _OLLAMA_PLACES),
    "/api/embed": Endpoint(read_embed, OLLAMA),
    "/api/embeddings": Endpoint(lambda request, times: read_embeddings(request), OLLAMA),
}

ERROR_BODIES: dict[str, Callable[[GatewayError, str], Json]] = {
    ANTHROPIC: error_message,
    OLLAMA: lambda error, request_id: error_of(error),
}


ID_LINES: dict[str, bytes] = {ANTHROPIC: b"Request-Id: %b\r\n"}
"""Where a dialect's clients look for the request's id."""

STATUS_FOR: dict[str, Callable[[GatewayError], int]] = {ANTHROPIC: status_for}
"""Where a dialect has another status for an error."""


def in_own_words(path: str, refusal: RequestRefused) -> RequestRefused:
    """A refusal of a chat request, with the place in the request that has been translated to it."""
    endpoint, param = ENDPOINTS.get(path), refusal.param or ""
    for chats, own in () if endpoint is None else endpoint.places:
        if chats in param:
            return RequestRefused(
                refusal.code, refusal.message.replace(chats, own, 1), param=param.replace(chats, own, 1)
            )
    return refusal


def error_format_at(path: str) -> Optional[str]:
    """In which shape errors are told at a path, also at one that a dialect has and the gateway lacks; None: where that
    is for others to say."""
    endpoint = ENDPOINTS.get(path)
    if endpoint is not None:
        return endpoint.error_format
    if path.startswith(_OLLAMAS):
        return OLLAMA
    return ANTHROPIC if path.startswith("/v1/messages/") else None
