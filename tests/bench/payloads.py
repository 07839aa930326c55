"""What travels in the bench: the chat request and the engine's answers, in realistic sizes.

Owns constants only. The request asks for the usage event, so that no gateway has a reason to drop
it and events sent and received can be compared.
"""

from __future__ import annotations

import json

MODEL = "13b"
API_KEY = "sk-bench-4d7c1f0a9e"
CHAT_PATH = "/v1/chat/completions"
EVENTS_PER_S = 50
EVENT_GAP_S = 1 / EVENTS_PER_S
CONTENT_MARK = b'"content":"'

_CREATED = 1730000000
_HEAD = {"id": "chatcmpl-9f3b2c71d5e84a06", "created": _CREATED, "model": MODEL}
_WORDS = (" Paris", " is", " the", " capital", " of", " France", " since", " the", " tenth", ".")
_USAGE = {"prompt_tokens": 31, "completion_tokens": 24, "total_tokens": 55}


def chat_request(stream: bool = False) -> bytes:
    """Returns the JSON body (about 200 bytes) of the chat request every gateway gets."""
    body: dict[str, object] = {
        "model": MODEL,
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "What is the capital of France, and since when?"},
        ],
        "temperature": 0.7,
        "max_tokens": 256,
    }
    if stream:
        body["stream"] = True
        body["stream_options"] = {"include_usage": True}
    return compact(body)


def chat_answer() -> bytes:
    """Returns the engine's JSON answer (about 400 bytes)."""
    text = (
        "The capital of France is Paris. It has been the seat of its kings since the late tenth "
        "century, with few interruptions."
    )
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "logprobs": None,
        "finish_reason": "stop",
    }
    return compact({**_HEAD, "object": "chat.completion", "choices": [choice], "usage": _USAGE})


def models_answer() -> bytes:
    """Returns the engine's list of models, which health checks read."""
    model = {"id": MODEL, "object": "model", "created": _CREATED, "owned_by": "bench"}
    return compact({"object": "list", "data": [model]})


def stream_events(count: int) -> tuple[list[bytes], list[bytes]]:
    """Returns a stream as whole events (blank line included): `count` of content, sent one every
    20 ms, and the closing ones (finish_reason, usage, [DONE]), sent at once after them."""
    content = [_event(_delta(index)) for index in range(count)]
    finish = {"index": 0, "delta": {}, "finish_reason": "stop"}
    end = [_event({"choices": [finish]}), _event({"choices": [], "usage": _USAGE})]
    return content, [*end, b"data: [DONE]\n\n"]


def compact(value: object) -> bytes:
    """Returns `value` as JSON without spaces, as engines send it."""
    return json.dumps(value, separators=(",", ":")).encode()


def _delta(index: int) -> dict[str, object]:
    delta = {"role": "assistant"} if index == 0 else {}
    delta["content"] = _WORDS[index % len(_WORDS)]
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}


def _event(fields: dict[str, object]) -> bytes:
    return b"data: " + compact({**_HEAD, "object": "chat.completion.chunk", **fields}) + b"\n\n"
