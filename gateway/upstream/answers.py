"""Answers in OpenAI's shape: completed, estimated, turned into a stream's chunk.

Pure functions over bytes and dictionaries; no state.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple, Optional

from gateway.clock import unix_s
from gateway.jsontext import decode_with

CHARS_PER_TOKEN = 4

_LIST_KEY_BY_PATH = {
    "/chat/completions": "choices",
    "/completions": "choices",
    "/embeddings": "data",
}


class Usage(NamedTuple):
    """Tokens of one answer; `estimated` when the engine gave no figures."""

    prompt_tokens: int
    completion_tokens: int
    estimated: bool


class InvalidAnswer(Exception):
    """An engine's 200 is not an answer to what was asked."""


def parse_answer(body: bytes, path: str) -> dict[str, Any]:
    """The JSON object of an engine's answer to POST `path`. Raises InvalidAnswer."""
    try:
        if b"NaN" in body or b"Infinity" in body:  # looked for first: a hook costs a decoder a call
            answer = json.loads(body, parse_constant=_refuse_constant)
        else:
            answer = _decode(body.decode())
    except (ValueError, RecursionError):
        raise InvalidAnswer("the engine's answer is not JSON") from None
    if not isinstance(answer, dict):
        raise InvalidAnswer("the engine's answer is not a JSON object")
    error = answer.get("error")
    if error:
        text = error.get("message") if isinstance(error, dict) else error
        raise InvalidAnswer(f"the engine reported an error: {str(text)[:500]}")
    if not isinstance(answer.get(_LIST_KEY_BY_PATH[path]), list):
        raise InvalidAnswer(f"the engine's answer has no {_LIST_KEY_BY_PATH[path]}")
    return answer


_decode = decode_with(json.JSONDecoder())  # json.loads would guess the encoding first


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def estimate_tokens(chars: int) -> int:
    """Tokens in a text of `chars` characters, at 4 characters a token; at least 1 for any text."""
    return -(-chars // CHARS_PER_TOKEN)


def usage_of(reported: object, prompt_chars: int, completion_chars: int) -> Usage:
    """The engine's figures where they are usable, else estimates."""
    if isinstance(reported, dict):
        prompt = reported.get("prompt_tokens")
        completion = reported.get("completion_tokens", 0)
        if type(prompt) is int and type(completion) is int and prompt >= 0 and completion >= 0:
            return Usage(prompt, completion, False)
    return Usage(estimate_tokens(prompt_chars), estimate_tokens(completion_chars), True)


def completion_chars(answer: dict[str, Any]) -> int:
    """Characters that the engine generated in a complete answer."""
    total = 0
    for choice in answer.get("choices") or ():
        if isinstance(choice, dict):
            message = choice.get("message")
            text = message.get("content") if isinstance(message, dict) else choice.get("text")
            if isinstance(text, str):
                total += len(text)
    return total


def complete(answer: dict[str, Any], body: bytes, request_id: str, model: str, usage: Usage) -> bytes:
    """The body for the client: the engine's, with the request's id, the gateway's model name, and usage.

    Where id and model each stand in the bytes exactly once, unescaped, they are replaced there; else the object is
    written anew. (Patching 400 bytes costs 1.5 us, writing them anew 6.)
    """
    reported = answer.get("usage")
    if (
        isinstance(reported, dict)
        and type(reported.get("completion_tokens")) is int
        and type(reported.get("total_tokens")) is int
        and not usage.estimated
    ):
        patched = _patch(body, b'"id"', answer.get("id"), request_id)
        if patched is not None:
            patched = _patch(patched, b'"model"', answer.get("model"), model)
        if patched is not None:
            return patched
    answer["id"] = request_id
    answer["model"] = model
    kept = reported if isinstance(reported, dict) else {}
    answer["usage"] = {
        **kept,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
    return dump(answer)


def _patch(body: bytes, key: bytes, old: object, new: str) -> Optional[bytes]:
    """`body` with the string value of a key replaced, or None unless key and value stand there exactly once.

    A quoted key cannot stand inside a JSON string (its quotes would be escaped there), so a single occurrence is the
    top-level key that the parsed answer has.
    """
    if type(old) is not str or body.count(key) != 1:
        return None
    if old == new:
        return body
    if not (new.isascii() and new.isprintable()) or '"' in new or "\\" in new:
        return None
    start = body.find(key) + len(key)
    for separator in (b':"', b': "'):
        value = separator + old.encode("utf-8", "surrogatepass") + b'"'
        if body.startswith(value, start):
            stop = start + len(value)
            return b"%b%b%b%b" % (body[:start], b':"', new.encode() + b'"', body[stop:])
    return None


def as_stream(answer: dict[str, Any], path: str) -> bytes:
    """A complete answer as a stream of one chunk, then `[DONE]`."""
    chunk = dict(answer)
    if path == "/chat/completions":
        chunk["object"] = "chat.completion.chunk"
        chunk["choices"] = [_as_delta(choice) for choice in answer.get("choices") or ()]
    return b"data: " + dump(chunk) + b"\n\ndata: [DONE]\n\n"


def _as_delta(choice: Any) -> Any:
    if not isinstance(choice, dict):
        return choice
    delta = {key: value for key, value in choice.items() if key != "message"}
    message = choice.get("message")
    delta["delta"] = dict(message) if isinstance(message, dict) else {}
    calls = delta["delta"].get("tool_calls")
    if isinstance(calls, list):  # chunks number their tool calls, complete answers do not
        delta["delta"]["tool_calls"] = [
            {"index": i, **call} if isinstance(call, dict) else call for i, call in enumerate(calls)
        ]
    delta.setdefault("index", 0)
    delta["finish_reason"] = delta.get("finish_reason") or "stop"
    return delta


def dump(value: object) -> bytes:
    """Compact JSON, ASCII only. Raises ValueError for what JSON cannot say."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def unix_now() -> int:
    """The `created` field of an answer made here."""
    return int(unix_s())
