"""What a mock engine says in Anthropic's dialect: messages, plain and as named events, their tokens counted, errors.

Pure. Strict about what the API documents as an error, so that a conversation that was translated badly is seen: every
tool_use must be followed by its tool_result, the first message is the user's, `max_tokens` is there.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any, Optional

from gateway.mock.saying import (
    Asked,
    BadRequest,
    Block,
    Call,
    Json,
    Said,
    Stream,
    Tool,
    Wish,
    encode,
    say,
    streamed,
    text_of,
)

MESSAGES = "/v1/messages"
COUNT_TOKENS = "/v1/messages/count_tokens"
SIGNATURE = "bW9jayBzaWduYXR1cmU="

_KINDS = {"text", "image", "document", "search_result", "thinking", "redacted_thinking", "tool_use", "tool_result"}
_LEAST_BUDGET_TOKENS = 1024
_TYPE_BY_STATUS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_REASON = {"stop": "end_turn", "length": "max_tokens", "stop_sequence": "stop_sequence", "tool_calls": "tool_use"}


def error(status: int, message: str, _kind: str = "") -> bytes:
    """Return the error object of the Anthropic API."""
    kind = _TYPE_BY_STATUS.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return encode({"type": "error", "error": {"type": kind, "message": message}, "request_id": None})


def models(model: str) -> Json:
    """Return the answer to GET /v1/models of a client that names its version of the Anthropic API."""
    one = {"type": "model", "id": model, "display_name": model, "created_at": "2026-01-31T12:00:00Z"}
    return {"data": [{**one, "lifecycle": "active"}], "has_more": False, "first_id": model, "last_id": model}


def event(name: str, data: bytes) -> bytes:
    """Return a named event."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)


def count_tokens(asked: Asked) -> Json:
    """Return the size of a request. Raises BadRequest."""
    _check(asked.body)
    return {"input_tokens": sum(_sizes(asked.body))}


def plain(asked: Asked) -> Json:
    """Return the whole answer. Raises BadRequest."""
    said = _answer(asked)
    content: list[Json] = []
    if said.thoughts:
        content.append({"type": "thinking", "thinking": "".join(said.thoughts), "signature": SIGNATURE})
    if said.text:
        content.append({"type": "text", "text": said.text})
    content += [{**_tool_use(asked, index, call), "input": call.value} for index, call in enumerate(said.calls)]
    return {**_message(asked, said.tokens), "content": content, **_ending(said)}


def stream(asked: Asked) -> Stream:
    """Return the events of a streamed answer, from message_start to message_stop. Raises BadRequest."""
    said = _answer(asked)
    start = {"type": "message_start", "message": {**_message(asked, 1), "stop_reason": None, "stop_sequence": None}}
    delta: Json = {"type": "message_delta", "delta": _ending(said)}
    if asked.usage:
        delta["usage"] = {"output_tokens": said.tokens}
    blocks = list(_blocks(asked, said))
    return streamed([start], blocks, [delta, {"type": "message_stop"}], lambda _, value: _rendered(value))


def _rendered(value: Json) -> bytes:
    return event(value["type"], encode(value))


def _blocks(asked: Asked, said: Said) -> Iterator[Block]:
    parts: list[tuple[Json, list[str], str, str, list[Json]]] = []  # block, pieces, type and field of deltas, last ones
    if said.thoughts:
        block: Json = {"type": "thinking", "thinking": "", "signature": ""}
        signed: list[Json] = [{"type": "signature_delta", "signature": SIGNATURE}]
        parts.append((block, list(said.thoughts), "thinking_delta", "thinking", signed))
    if said.pieces:
        parts.append(({"type": "text", "text": ""}, said.pieces, "text_delta", "text", []))
    for number, call in enumerate(said.calls):
        block = {**_tool_use(asked, number, call), "input": {}}
        pieces = ["", *(call.pieces() if call.value else ())]  # as the API does: nothing stands for {}
        parts.append((block, pieces, "input_json_delta", "partial_json", []))
    for index, (block, pieces, kind, field, last) in enumerate(parts):

        def made(piece: str, index: int = index, kind: str = kind, field: str = field) -> Json:
            return {"type": "content_block_delta", "index": index, "delta": {"type": kind, field: piece}}

        before: list[Json] = [{"type": "content_block_start", "index": index, "content_block": block}]
        after: list[Json] = [{"type": "content_block_delta", "index": index, "delta": delta} for delta in last]
        ping: list[Json] = [] if index else [{"type": "ping"}]
        yield Block(before + ping, pieces, made, [*after, {"type": "content_block_stop", "index": index}])


def _message(asked: Asked, output_tokens: int) -> Json:
    message: Json = {"id": asked.identifier("msg_"), "type": "message", "role": "assistant", "model": asked.model}
    message["content"] = []
    if asked.usage:
        fresh, created, read = _sizes(asked.body)
        cached = {"cache_creation_input_tokens": created, "cache_read_input_tokens": read}
        message["usage"] = {"input_tokens": fresh, **cached, "output_tokens": output_tokens}
    return message


def _ending(said: Said) -> Json:
    return {"stop_reason": _REASON[said.finish_reason], "stop_sequence": said.stopped_by}


def _tool_use(asked: Asked, index: int, call: Call) -> Json:
    return {"type": "tool_use", "id": f"{asked.identifier('toolu_')}-{index}", "name": call.name}


def _answer(asked: Asked) -> Said:
    body = asked.body
    _check(body)
    limit, thinking = body.get("max_tokens"), _object(body.get("thinking"))
    if type(limit) is not int or limit < 1:
        raise BadRequest("max_tokens: must be a whole number of at least 1")
    budget = thinking.get("budget_tokens")
    if thinking.get("type") == "enabled" and not (type(budget) is int and _LEAST_BUDGET_TOKENS <= budget < limit):
        raise BadRequest(f"thinking.budget_tokens: must be at least {_LEAST_BUDGET_TOKENS} and below max_tokens")
    return say(asked, _wish(body, thinks=thinking.get("type") in ("enabled", "adaptive")))


def _wish(body: Json, thinks: bool) -> Wish:
    messages: list[Json] = body["messages"]
    texts = [text_of(message["content"], "text") if message["role"] == "user" else "" for message in messages]
    last = max((at for at, text in enumerate(texts) if text), default=0)
    since = [block for message in messages[last:] for block in _parts(message)]
    choice = _object(body.get("tool_choice"))
    style = _object(_object(body.get("output_config")).get("format") or body.get("output_format"))
    tools = [Tool(tool["name"], tool["input_schema"]) for tool in body.get("tools") or [] if "input_schema" in tool]
    return Wish(
        text=texts[last],
        called=[block["name"] for block in since if block["type"] == "tool_use"],
        results=[text_of(block.get("content")) for block in since if block["type"] == "tool_result"],
        tools=[] if choice.get("type") == "none" else tools,
        demanded=choice.get("name") if choice.get("type") == "tool" else choice.get("type") == "any",
        one_at_a_time=choice.get("disable_parallel_tool_use") is True,
        schema=_object(style.get("schema")) if style.get("type") == "json_schema" else _told(body.get("system")),
        stops=body.get("stop_sequences"),
        limit=body.get("max_tokens"),
        thinks=thinks,
    )


def _told(system: object) -> Optional[Json]:
    """Return the JSON Schema in a line of a system prompt, or that of any object where it only speaks of JSON."""
    prompt = "\n".join(text_of([part]) for part in system) if isinstance(system, list) else str(system or "")
    for line in prompt.splitlines():
        if line.startswith("{"):
            with contextlib.suppress(ValueError, RecursionError):
                return _object(json.loads(line))
    return {"type": "object"} if "JSON" in prompt else None


def _object(value: object) -> Json:
    return value if isinstance(value, dict) else {}


def _parts(message: Json) -> list[Json]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _check(body: Json) -> None:
    """Raise BadRequest for what the API refuses."""
    messages, tools = body.get("messages"), body.get("tools") or []
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages: at least one message is required")
    waiting: list[object] = []  # the tool_use blocks of the message before, by their ids
    for at, message in enumerate(messages):
        fault = _fault(message, waiting)
        if fault is None and at == 0 and message["role"] != "user":
            fault = "the first message must use the user role"
        if fault is not None:
            raise BadRequest(f"messages.{at}: {fault}")
        waiting = [block.get("id") for block in _parts(message) if block["type"] == "tool_use"]
    for at, tool in enumerate(tools if isinstance(tools, list) else [None]):
        if not isinstance(tool, dict) or not re.fullmatch(r"[a-zA-Z0-9_-]{1,128}", str(tool.get("name"))):
            raise BadRequest(f"tools.{at}.name: must be 1 to 128 letters, digits, '_' or '-'")
        if (tool.get("type") or "custom") == "custom" and _object(tool.get("input_schema")).get("type") != "object":
            raise BadRequest(f"tools.{at}.input_schema.type: must be 'object'")


def _fault(message: Any, waiting: list[object]) -> Optional[str]:
    """Return what is wrong with a message behind one that used the tools of `waiting`."""
    if not isinstance(message, dict) or message.get("role") not in ("user", "assistant", "system"):
        return "must be an object with a role: user or assistant"
    content = message.get("content")
    if not isinstance(content, (str, list)) or not content:
        return "content must not be empty"
    answered: list[object] = []
    for at, block in enumerate(_parts(message)):
        kind = block.get("type") if isinstance(block, dict) else None
        if kind not in _KINDS:
            return f"unknown content block {kind!r}"
        if kind == "text" and not block.get("text"):
            return "text content blocks must be non-empty"
        if kind == "tool_use" and not (isinstance(block.get("name"), str) and isinstance(block.get("input"), dict)):
            return "tool_use needs a name, and an input that is an object"
        if kind == "tool_result":
            if len(answered) < at:
                return "tool_result blocks must come before all others"
            answered.append(block.get("tool_use_id"))
    if sorted(map(str, answered)) != sorted(map(str, waiting)):
        return "each tool_use of the message before needs its tool_result, and no other"
    return None


def _sizes(body: Json) -> tuple[int, int, int]:
    """Return the words of a request that count as fresh, as written to the cache, and as read from it.

    What a message marks with `cache_control` is written, what the system prompt marks is read.
    """
    system = body.get("system")
    prompt = (
        [part for part in system if isinstance(part, dict)] if isinstance(system, list) else [{"text": system or ""}]
    )
    read = sum(_size(part) for part in prompt if part.get("cache_control"))
    fresh = sum(map(_size, prompt)) - read
    blocks = [block for message in body["messages"] for block in _parts(message)]
    created = sum(_size(block) for block in blocks if block.get("cache_control"))
    return max(1, fresh + sum(map(_size, blocks)) - created), created, read


def _size(block: Json) -> int:
    text = block.get("text") or block.get("thinking") or text_of(block.get("content"))
    return len(str(text).split())
