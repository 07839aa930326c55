"""Which requests are alike: the digest of what a request asks for, whatever order and spelling it has.

Pure functions. Fields that change nothing in an answer are left out, and so are those that say what every engine takes
for granted. What engines take for granted differently counts: a `temperature` of 1 is not the same as none (llama.cpp's
is 0.8), nor is a `top_p` of 1, but where a temperature of 0 makes it irrelevant.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Callable, NamedTuple, Optional

from gateway.reuse.stored import KEY_BYTES

Request = dict[str, Any]

EMBEDDINGS = "/embeddings"
LEFT_OUT = frozenset(
    (
        *("model", "stream", "stream_options", "user", "metadata", "store", "service_tier"),
        *("safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    )
)
"""Say who asks, how the answer is to come, or what else becomes of it. (The model counts by its configured name.)"""
DEFAULTS: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (False,),  # 0 asks for something, of a completion
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "functions": ([],),
    "suffix": ("",),
    "encoding_format": ("float",),
    "modalities": (["text"],),
}
TO_THE_LETTER: dict[str, Any] = {
    "echo": False,
    "suffix": "",
    "prompt_logprobs": None,
    "return_token_ids": False,
    "continue_final_message": False,
    "add_generation_prompt": True,
}
"""Where it is anything else than this, the answer repeats or goes on from the very words asked."""
SAMPLING = ("top_p", "top_k", "min_p")  # of no effect where the likeliest token is always taken


def _refuse(value: object) -> object:
    raise TypeError(f"{type(value).__name__} is nothing of JSON")


def _encoder() -> Callable[[Any], str]:
    """Compact JSON with sorted keys. (JSONEncoder makes an encoder of C each time: 2.6 of 3.9 us.)"""
    c_make_encoder = getattr(json.encoder, "c_make_encoder", None)
    if c_make_encoder is None:  # an interpreter with its own json
        return json.JSONEncoder(separators=(",", ":"), sort_keys=True).encode
    quote = json.encoder.encode_basestring_ascii
    pieces = c_make_encoder(None, _refuse, quote, None, ":", ",", True, False, True)
    return lambda value: "".join(pieces(value, 0))


_encode = _encoder()


class Near(NamedTuple):
    """What a near duplicate is looked for by: `text` are the last words asked, `group` all else that is asked."""

    group: bytes
    text: str


def is_deterministic(path: str, request: Request) -> bool:
    """Whether the same request is to get the same answer: nothing is drawn, or with a seed. (Embeddings never are.)"""
    if path == EMBEDDINGS:
        return True
    temperature = request.get("temperature")
    return (temperature is not None and temperature == 0) or request.get("seed") is not None


def digest(*parts: bytes) -> bytes:
    """Of these parts, which are told apart by their lengths."""
    hashed = hashlib.blake2b(digest_size=KEY_BYTES)
    for part in parts:
        hashed.update(b"%d:" % len(part))
        hashed.update(part)
    return hashed.digest()


def canonical(path: str, request: Request, model: str) -> bytes:
    """What is asked of a model, the same for all requests that ask for it. Raises RecursionError."""
    asked: dict[str, Any] = {}
    for key, value in request.items():
        if value is None or key in LEFT_OUT or (key in DEFAULTS and _is_default(key, value)):
            continue
        # 1 and 1.0 are the same number.
        asked[key] = int(value) if type(value) is float and value.is_integer() else value
    if asked.get("temperature") == 0:
        for key in SAMPLING:
            if key in asked and (key == "top_k" or asked[key] == 1):
                del asked[key]
    return _encode([path, model, asked]).encode()


def _is_default(key: str, value: Any) -> bool:
    return any(type(value) is type(default) and value == default for default in DEFAULTS[key])


def key_of(scope: str, asked: bytes) -> bytes:
    """The digest of what somebody has asked."""
    whose = scope.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(b"%d:%b%b" % (len(whose), whose, asked), digest_size=KEY_BYTES).digest()


def near_of(path: str, request: Request, model: str, scope: str) -> Optional[Near]:
    """What to look for a near duplicate by; None: it has no last words, or not only words, or the answer depends on
    them to the letter. Raises RecursionError."""
    place = _LAST_WORDS.get(path)
    found = None if place is None or _is_to_the_letter(request) else place(request)
    if found is None:
        return None
    text, rest = found
    scope_bytes = scope.encode("utf-8", "surrogatepass")
    return Near(digest(b"near", scope_bytes, canonical(path, rest, model)), text)


def _is_to_the_letter(request: Request) -> bool:
    return any(request.get(key) not in (None, usual) for key, usual in TO_THE_LETTER.items())


def _last_message(request: Request) -> Optional[tuple[str, Request]]:
    """The text of the last message, if a user says it and it is one text; and the request without that."""
    messages = request["messages"]
    last = messages[-1]
    content = last.get("content")
    if type(content) is list and len(content) == 1 and content[0].keys() == {"type", "text"}:
        content = content[0]["text"] if content[0]["type"] == "text" else None
    if last.get("role") != "user" or type(content) is not str:
        return None
    return content, {**request, "messages": [*messages[:-1], {**last, "content": None}]}


def _prompt(request: Request) -> Optional[tuple[str, Request]]:
    prompt = request.get("prompt")
    return (prompt, {**request, "prompt": None}) if type(prompt) is str else None


_LAST_WORDS: dict[str, Callable[[Request], Optional[tuple[str, Request]]]] = {
    "/chat/completions": _last_message,
    "/completions": _prompt,
    "/query": _prompt,
}
