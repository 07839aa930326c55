"""The headers of answers: which engine, how many attempts, where the time went, what a browser may read; request ids.

Owns the generator of request ids, whose only call is atomic. Reads requests and changes nothing.
"""

from __future__ import annotations

import functools
import random
import time
from typing import Optional

from gateway.asked import MISS, NOT_REUSED, Asked, Head, Reused
from gateway.inference import Call
from gateway.pipeline import PATHS
from gateway.server import responses

_CONTROLS = bytes((*range(32), 127))  # what no header value may hold
_REQUEST_ID_CHARS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:/+=-")
_random = random.Random()  # seeded by the operating system; getrandbits is one atomic C call
_UUID_MASK = ~((0xF000 << 64) | (0xC000 << 48)) & ((1 << 128) - 1)
_UUID_4 = (0x4000 << 64) | (0x8000 << 48)


def answer_headers(asked: Asked, call: Call, kind: bytes, cors_origins: tuple[str, ...]) -> bytes:
    """The headers of an answer that an engine has given, or failed to give. `kind` are lines that it begins with."""
    now_s = time.monotonic()
    total_s = now_s - asked.accepted_s
    queue_s = asked.queue_s + call.waited_s
    own_s = total_s - queue_s - call.engine_s
    fallback = call.fallback
    return (
        b"%bX-Request-ID: %b\r\n%bX-Gateway-Model: %b\r\n"
        b"X-Gateway-Attempts: %d\r\n%b"
        b"Server-Timing: queue;dur=%.3f, engine;dur=%.3f, gateway;dur=%.3f\r\n%b%b%b"
        % (
            kind,
            asked.request_id.encode("latin-1"),
            _engine_line(call.engine_id),
            _header_text(call.served_model or ""),
            call.attempts,
            b"X-Gateway-Fallback: %b\r\n" % _header_text(fallback) if fallback else b"",
            queue_s * 1e3,
            call.engine_s * 1e3,
            max(0.0, own_s) * 1e3,
            asked.limit_headers,
            b"" if asked.reused is NOT_REUSED else _reused_lines(asked.reused),
            cors_headers(asked.head, cors_origins) if cors_origins else b"",
        )
    )


@functools.lru_cache(maxsize=1024)
def _engine_line(engine_id: Optional[str]) -> bytes:
    """Which engine has answered; none where the cache has."""
    return b"" if engine_id is None else b"X-Gateway-Engine: %b\r\n" % engine_id.encode("latin-1")


def _reused_lines(reused: Reused) -> bytes:
    """What an answer was spared."""
    if reused is MISS:
        return b"X-Gateway-Cache: miss\r\n"
    lines = b""
    if reused.cache:
        lines = b"X-Gateway-Cache: %b\r\n" % reused.cache.encode()
        if reused.cache in ("hit", "near"):
            lines += b"Age: %d\r\n" % reused.age_s
        if reused.similarity is not None:
            lines += b"X-Gateway-Cache-Similarity: %.4f\r\n" % reused.similarity
    return lines + b"X-Gateway-Coalesced: true\r\n" if reused.coalesced else lines


def refusal_headers(asked: Asked, call: Optional[Call], cors_origins: tuple[str, ...]) -> bytes:
    """The headers of an error that is no engine's. `call` None: the request was not even valid."""
    return b"%bX-Request-ID: %b\r\n%b%b%b" % (
        responses.JSON,
        asked.request_id.encode("latin-1"),
        _attempts_and_timing(asked, call) if asked.head.path in PATHS else b"",
        asked.limit_headers,
        cors_headers(asked.head, cors_origins),
    )


def _attempts_and_timing(asked: Asked, call: Optional[Call]) -> bytes:
    attempts, waited_s, engine_s = (0, 0.0, 0.0) if call is None else (call.attempts, call.waited_s, call.engine_s)
    queue_s = asked.queue_s + waited_s
    own_s = time.monotonic() - asked.accepted_s - queue_s - engine_s
    return b"X-Gateway-Attempts: %d\r\nServer-Timing: queue;dur=%.3f, engine;dur=%.3f, gateway;dur=%.3f\r\n" % (
        attempts,
        queue_s * 1e3,
        engine_s * 1e3,
        max(0.0, own_s) * 1e3,
    )


def cors_headers(head: Head, allowed: tuple[str, ...]) -> bytes:
    """The CORS headers of an answer to this request; empty when CORS is off or the client is no browser."""
    if not allowed:
        return b""
    origin = head.headers.get(b"origin")
    if origin is None:
        return b""
    if allowed != ("*",) and origin.decode("latin-1") not in allowed:
        return b"Vary: Origin\r\n"
    value = b"*" if allowed == ("*",) else origin
    return (
        b"Access-Control-Allow-Origin: %b\r\nVary: Origin\r\nAccess-Control-Expose-Headers: "
        b"X-Request-ID, X-Gateway-Engine, X-Gateway-Model, X-Gateway-Attempts, "
        b"X-Gateway-Fallback, X-Gateway-Cost-Usd, X-Gateway-Cache, X-Gateway-Cache-Similarity, Age, "
        b"X-Gateway-Coalesced, Server-Timing, Retry-After, X-Should-Retry, "
        b"x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, "
        b"x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens\r\n" % value
    )


def request_id_of(head: Head) -> str:
    """The client's request id where it is acceptable, else a new UUID4."""
    headers = head.headers
    for name in (b"x-request-id", b"request-id"):
        value = headers.get(name)
        if value is not None and 1 <= len(value) <= 128:
            text = value.decode("latin-1")
            if _REQUEST_ID_CHARS.issuperset(text):
                return text
    return new_request_id()


def new_request_id() -> str:
    """A UUID4. Not from uuid.uuid4: its system call for random bits costs 14 us and a GIL hand-over."""
    text = f"{_random.getrandbits(128) & _UUID_MASK | _UUID_4:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _header_text(value: str) -> bytes:
    """A model name as a header value: names of requests may hold anything when one engine serves every model."""
    return value.encode("ascii", "backslashreplace").translate(None, _CONTROLS)[:256]
