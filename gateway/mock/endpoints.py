"""The table of a mock engine's endpoints: what answers each, and how its dialect words a failure.

Nothing here has a lock, reads a socket or knows a behaviour's name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Optional

from gateway.mock import answers, messages, passing, responses
from gateway.mock.saying import Asked, Stream

_NOT_JSON = b'{"choices": [this is not JSON'
_EVENTS = "text/event-stream"


class Dialect(NamedTuple):
    """How failures are worded: as a body (from status, message and type), as an event with its number in the stream,
    and as an event that is not JSON."""

    error: Callable[[int, str, str], bytes]
    failure: Callable[[int, str, str, int], bytes]
    garbage: bytes
    request_id: str = ""  # the header of an answer with its identifier, "" for none


OPENAI = Dialect(
    answers.error,
    lambda status, message, kind, _: b"data: " + answers.error(status, message, kind) + b"\n\n",
    b"data: " + _NOT_JSON + b"\n\n",
)
ANTHROPIC = Dialect(
    messages.error,
    lambda status, message, kind, _: messages.event("error", messages.error(status, message, kind)),
    messages.event("content_block_delta", _NOT_JSON),
    "request-id",
)
_RESPONSES = Dialect(
    answers.error,
    lambda status, message, _, number: responses.failure(status, message, number),
    messages.event("response.output_text.delta", _NOT_JSON),
)


class Endpoint(NamedTuple):
    """What answers a request: whole, and as a stream (None: always whole), which `always` is asked for or else by
    `stream` in the body."""

    plain: Callable[[Asked], Any]
    stream: Optional[Callable[[Asked], Stream]] = None
    dialect: Dialect = OPENAI
    method: str = "POST"
    media_type: Callable[[Asked], str] = lambda _: _EVENTS
    always: bool = False


ENDPOINTS: dict[str, Endpoint] = {
    answers.CHAT: Endpoint(answers.plain, answers.stream_and_done),
    answers.COMPLETIONS: Endpoint(answers.plain, answers.stream_and_done),
    answers.EMBEDDINGS: Endpoint(answers.plain),
    messages.MESSAGES: Endpoint(messages.plain, messages.stream, ANTHROPIC),
    messages.COUNT_TOKENS: Endpoint(messages.count_tokens, None, ANTHROPIC),
    responses.RESPONSES: Endpoint(responses.plain, responses.stream, _RESPONSES),
    "/v1/rerank": Endpoint(passing.rerank),
    "/v1/moderations": Endpoint(passing.moderation),
    "/v1/audio/transcriptions": Endpoint(passing.transcription),
    "/v1/audio/speech": Endpoint(passing.whole_speech, passing.speech, media_type=passing.speech_type, always=True),
    "/v1/images/generations": Endpoint(passing.images),
    "/tokenize": Endpoint(passing.tokenize),
    "/detokenize": Endpoint(passing.detokenize),
    "/props": Endpoint(passing.props, method="GET"),
    "/slots": Endpoint(passing.slots, method="GET"),
}
PATH_BY_NAME = {path.replace("/v1", "", 1)[1:]: path for path in ENDPOINTS}
