"""An engine's complete answer as the client gets it: checked, with its usage, the gateway's id and the model's name.

Pure functions, but for the clock of the echo engine.
"""

from __future__ import annotations

import json
from typing import Any, Optional, Union

from gateway.hedging import Answer
from gateway.routing.retry import Outcome
from gateway.upstream import answers, echo
from gateway.upstream.attempt import EngineFault
from gateway.upstream.bounds import bounds_of
from gateway.upstream.call import Call
from gateway.upstream.estimates import weight_of_choices
from gateway.upstream.response import EngineResponse
from gateway.upstream.skim import LARGE_BYTES
from gateway.upstream.sniff import EVENTS


def kind_by_label(response: EngineResponse) -> str:
    """What the answer to a call for a stream is, if not even its beginning tells: a stream whose fields nobody knows,
    where it says so or nothing. Raises EngineFault."""
    label = response.head.headers.get(b"content-type", b"").decode("latin-1")[:100]
    if label and not label.lower().startswith("text/event-stream"):
        text = f"the engine's answer is neither JSON nor an event stream, but {label}"
        raise EngineFault(Outcome("invalid", text))
    return EVENTS


def complete(
    call: Call, body: Union[bytes, bytearray], model: str, context_tokens: Optional[int], event_bytes: int
) -> Answer:
    """The engine's complete answer, as the client gets it; `body` is no more than that afterwards. Raises
    EngineFault."""
    try:
        body = answers.readable(body)
        if len(body) > LARGE_BYTES:
            large = body if isinstance(body, bytearray) else bytearray(body)
            return _complete_large(call, large, model, context_tokens, event_bytes)
        body = bytes(body)
        parsed = answers.parse_answer(body, call.path)
        usage = _usage(call, parsed, body, context_tokens)
        complete = answers.complete(parsed, body, call.request_id, model, usage)
    except answers.InvalidAnswer as error:
        raise EngineFault(Outcome("invalid", str(error), details=error.details)) from error
    except ValueError as error:  # more digits than Python writes
        raise EngineFault(Outcome("invalid", str(error))) from error
    return Answer(_as_stream(call, complete) if call.stream else complete, usage, parsed)


def _complete_large(call: Call, body: bytearray, model: str, context_tokens: Optional[int], event_bytes: int) -> Answer:
    """The same without making objects of what may be millions of values."""
    found = answers.outline_answer(body, call.path)
    if call.stream and (len(body) > event_bytes or found.values > answers.STREAMED_VALUES_MAX):
        raise answers.InvalidAnswer("the engine's answer is no stream, and too large to be made one")
    usage = _usage(call, found.members, body, context_tokens)
    body = answers.complete_large(found, body, call.request_id, model, usage)
    if call.stream:
        return Answer(_as_stream(call, body), usage)
    return Answer(body, usage)


def _as_stream(call: Call, body: Union[bytes, bytearray]) -> bytes:
    """The answer that the client would get, for one who has asked for a stream."""
    answer = json.loads(body)
    if not call.wants_usage():
        answer.pop("usage", None)
    return answers.as_stream(answer, call.path)


def _usage(
    call: Call, parsed: dict[str, Any], body: Union[bytes, bytearray], context_tokens: Optional[int]
) -> answers.Usage:
    """Return the usage of the answer in `body`, as far as that can be believed."""
    usage = answers.usage_of(parsed.get("usage"), 0, 0, lambda: bounds_of(call, context_tokens))
    if not usage.estimated:
        return usage
    estimate = answers.usage_of(None, call.prompt_weight(), weight_of_choices(body, parsed.get("choices")))
    return estimate._replace(rejected=usage.rejected)


def echoed(call: Call, model: str) -> Answer:
    try:
        opening = "Processed: " if call.is_query else "Echo: "
        answer = echo.answer(call.path, call.request, call.prompt_weight(), opening)
    except echo.TooMuch as error:
        raise EngineFault(Outcome("rejected", str(error), status=400)) from error
    answer["id"] = call.request_id
    answer["model"] = model
    reported = answer["usage"]
    usage = answers.Usage(reported["prompt_tokens"], reported.get("completion_tokens", 0), False)
    if not call.stream:
        return Answer(answers.dump(answer), usage, answer)
    chunks = echo.chunks(call.path, answer, call.wants_usage())
    lines = b"".join(b"data: %b\n\n" % answers.dump(chunk) for chunk in chunks)
    return Answer(lines + b"data: [DONE]\n\n", usage, answer)
