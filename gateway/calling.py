"""Which call a request asks for: what its body says, checked, and translated where its client speaks another dialect.

Pure, but for the clock that some dialects tell of. Asks nobody, admits nobody.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Callable, Optional

from gateway.asked import Asked
from gateway.clock import unix_s
from gateway.dialects.bypath import ENDPOINTS
from gateway.dialects.ollama.times import Times
from gateway.errors import GatewayError
from gateway.inference import Call
from gateway.keys.auth import Identity
from gateway.reuse.serving import QUERY
from gateway.routing.line import RANK_BY_PRIORITY
from gateway.routing.router import Router
from gateway.telling import Native, Telling
from gateway.upstream.fields import BY_PATH, completion_of


def methods_of(path: str) -> tuple[str, ...]:
    """How an endpoint (of OpenAI's) is asked by clients."""
    return ("GET", "HEAD") if BY_PATH[path].method == "GET" else (BY_PATH[path].method,)


INFERENCE = "/api/v1/inference"
PASSED = {
    "/v1/rerank": "/rerank",
    "/v1/moderations": "/moderations",
    "/v1/audio/speech": "/audio/speech",
    "/v1/audio/transcriptions": "/audio/transcriptions",
    "/v1/audio/translations": "/audio/translations",
    "/v1/images/generations": "/images/generations",
    "/v1/images/edits": "/images/edits",
    "/v1/images/variations": "/images/variations",
    "/tokenize": "/tokenize",
    "/detokenize": "/detokenize",
    "/props": "/props",
    "/slots": "/slots",
}
PATHS = {
    "/v1/chat/completions": "/chat/completions",
    "/v1/completions": "/completions",
    "/v1/embeddings": "/embeddings",
    QUERY: "/completions",
    INFERENCE: "/chat/completions",
    **dict.fromkeys(ENDPOINTS, "/chat/completions"),  # or what the request is translated to
    **PASSED,
}
ASKED = frozenset((method, name) for name, path in PATHS.items() for method in methods_of(path))
"""Methods and paths of requests that engines answer."""
RESPONSES, NATIVE = "/v1/responses", "/responses"
TRANSLATED = frozenset((QUERY, *ENDPOINTS))
FEW_BYTES = 4096  # of a body that is looked through in no time


def call_of(
    asked: Asked,
    request: dict[str, Any],
    identity: Identity,
    router: Router,
    allowed_to: Callable[[Identity], Optional[Callable[[str], bool]]],
) -> Call:
    """The call that the body asks for; nothing has been sent anywhere yet. `allowed_to`: which models somebody who
    may not use all may use. Raises GatewayError: what is wrong with it is reported with the model that it names."""
    named, headers = asked.head.path, asked.head.headers
    path, body = PATHS[named], asked.body or None  # none of what has come in another way than as JSON
    telling: Optional[Telling] = None
    try:
        if named in TRANSLATED:
            path, request, telling = _translated(asked, request, router)
            body = asked.body if path == NATIVE else None
        else:
            BY_PATH[path].validate(request)
        call = Call(
            path,
            request,
            body,
            request_id=asked.request_id,
            session=headers.get(b"x-session-id", b"").decode("latin-1"),
            allow_fallback=headers.get(b"x-gateway-fallback", b"").lower() != b"off",
            idempotency_key=headers.get(b"idempotency-key", b"").decode("latin-1"),
        )
        if named in TRANSLATED:
            call.is_query = named == QUERY
            if telling is not None:
                telling.call = call
                call.rich = telling.rich
                asked.telling = telling
        if call.model is None:
            call.model = router.unnamed()
    except GatewayError:
        model = request.get("model")
        asked.named_model = model if type(model) is str else ""
        raise
    call.residency = asked.residency
    call.priority = asked.priority = identity.priority
    if b"x-gateway-priority" in headers:
        call.priority = asked.priority = priority_of(headers, identity)
    if len(asked.body) > FEW_BYTES:
        call.prompts()  # here, where it may take its time, and not when a stream ends, on the thread of all streams
    if not identity.may_use_all:
        asked.restricted = True
        call.may_use = allowed_to(identity)
    return call


def _translated(asked: Asked, request: dict[str, Any], router: Router) -> tuple[str, dict[str, Any], Optional[Telling]]:
    """Where a request that is said in other words goes, the request in ours, and how its answer is told, where not as
    others' are. Raises GatewayError."""
    named = asked.head.path
    if named == QUERY:
        return PATHS[QUERY], completion_of(request), None
    if named == RESPONSES and router.serves(request.get("model"), NATIVE):
        telling: Telling = Native(NATIVE, request)  # it keeps conversations there, and may know more than chat
    else:
        telling = _told(asked, request)
    if not telling.is_immediate:
        BY_PATH[telling.path].validate(telling.request)
    return telling.path, telling.request, telling


def _told(asked: Asked, request: dict[str, Any]) -> Telling:
    return Telling(ENDPOINTS[asked.head.path].read(request, Times(unix_s, time.monotonic, asked.accepted_s)))


def in_chat(asked: Asked, call: Call) -> Optional[Call]:
    """What asks engines that have only chat for the same as a native call, whose client is told their answer from now
    on; None: chat has no words for it."""
    try:
        telling = _told(asked, call.unadapted)
        BY_PATH[telling.path].validate(telling.request)
    except GatewayError:
        return None
    other = call.part(telling.path, telling.request)
    other.prompts()  # as in `call_of`
    telling.call = other
    asked.telling = telling
    return other


def priority_of(headers: Mapping[bytes, bytes], identity: Identity) -> str:
    """The key's own priority, or what X-Gateway-Priority asks for, from keys whose role may set it."""
    asked = headers.get(b"x-gateway-priority")
    if asked is None or not identity.rights.may_set_priority:
        return identity.priority
    text = asked.decode("latin-1").lower()
    return text if text in RANK_BY_PRIORITY else identity.priority
