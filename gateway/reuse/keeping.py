"""Which answers are worth keeping, and how a kept one is given again: whole, or as a stream.

Pure functions over bytes and objects.
"""

from __future__ import annotations

import json
import re
from typing import Any, Optional

from gateway.upstream import answers
from gateway.upstream.assembly import Unfit, assembled
from gateway.upstream.nonfinite import dump_with_nulls

ANSWER_MAX_BYTES = 1_048_576  # a larger one is not kept
_CUT = re.compile(rb'"finish_reason"\s*:\s*"(?:length|content_filter|tool_calls|function_call)"')
_NO_TEXT = ("tool_calls", "function_call", "refusal")
_OF_CHAT, _OF_EMBEDDINGS = "/chat/completions", "/embeddings"


def is_worth_keeping(answer: dict[str, Any], path: str, count: Optional[int] = None) -> bool:
    """Whether a complete answer may be given to others: it has ended by itself, and says something, in as many choices
    as were asked for (None: any). What was cut off or filtered, refuses, or calls a tool is another one each time."""
    if path == _OF_EMBEDDINGS:
        return bool(answer.get("data"))
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or count not in (None, len(choices)):
        return False
    return all(_has_ended(choice, path) for choice in choices)


def _has_ended(choice: Any, path: str) -> bool:
    if not isinstance(choice, dict) or choice.get("finish_reason") != "stop":
        return False
    if path != _OF_CHAT:
        return bool(choice.get("text"))
    message = choice.get("message")
    if not isinstance(message, dict) or not message.get("content"):
        return False
    return not any(map(message.get, _NO_TEXT))


def stamped(body: bytes, request_id: str, own_id: str) -> bytes:
    """A complete answer whose `id` is `request_id`, for the request of another id."""
    before = b'"id":"%b"' % request_id.encode("latin-1")
    if body.count(before) == 1:  # inside a text its quotes would be escaped
        return body.replace(before, b'"id":"%b"' % own_id.encode("latin-1"), 1)
    answer = json.loads(body)
    if isinstance(answer, dict) and answer.get("id") == request_id:
        answer["id"] = own_id
        return dump_with_nulls(answer)
    return body


def stamped_events(lines: bytes, request_id: str, own_id: str) -> bytes:
    """The same of a stream."""
    return lines.replace(b'"id":"%b"' % request_id.encode("latin-1"), b'"id":"%b"' % own_id.encode("latin-1"))


def whole_of_answer(answer: dict[str, Any], request_id: str, model: str, usage: answers.Usage) -> bytes:
    """The complete answer of what an engine has given whole, though a stream was asked for."""
    return answers.complete(dict(answer), b"", request_id, model, usage)


def as_events(body: bytes, path: str, include_usage: bool, in_last: Optional[dict[str, Any]] = None) -> bytes:
    """A complete answer as its stream: what each choice says, its reason, usage if that is asked for, `[DONE]`.

    `in_last` is told in the last chunk, too."""
    answer = json.loads(body)
    chat = path == _OF_CHAT
    common = {key: value for key, value in answer.items() if key not in ("choices", "usage", "object")}
    common["object"] = "chat.completion.chunk" if chat else "text_completion"
    said, ends = [], []
    for place, choice in enumerate(answer["choices"]):
        choice.setdefault("index", place)
        rest = {key: value for key, value in choice.items() if key not in ("message", "text", "finish_reason")}
        delta = {"delta": dict(choice["message"])} if chat else {"text": choice["text"]}
        nothing: dict[str, Any] = {"delta": {}} if chat else {"text": ""}
        said.append({**rest, **delta, "finish_reason": None})
        ends.append({"index": rest["index"], **nothing, "finish_reason": choice["finish_reason"]})
    chunks = [{**common, "choices": [choice]} for choice in (*said, *ends)]
    if include_usage:
        chunks.append({**common, "choices": [], "usage": answer.get("usage")})
    chunks[-1].update(in_last or {})
    return b"".join(b"data: %b\n\n" % dump_with_nulls(chunk) for chunk in chunks) + b"data: [DONE]\n\n"


def whole_of(
    lines: bytes,
    path: str,
    request_id: str,
    model: str,
    usage: answers.Usage,
    reported: Optional[dict[str, Any]],
    count: Optional[int] = None,
) -> Optional[bytes]:
    """The complete answer of a stream that has ended well with `count` choices (None: any), if it is worth keeping.
    `reported`: the engine's own usage, None: it has told none."""
    if _CUT.search(lines) is not None:  # whatever it has said after that
        return None
    try:
        body = bytes(assembled(lines, path))
        answer = answers.parse_answer(body, path)
    except (Unfit, ValueError, RecursionError, answers.InvalidAnswer):
        return None
    if not is_worth_keeping(answer, path, count):
        return None
    answer["usage"] = reported
    return answers.complete(answer, b"", request_id, model, usage)
