"""What is told of a finished request: one event.

Reads requests and changes nothing.
"""

from __future__ import annotations

import time
from typing import Optional

from gateway.asked import MISS, NOT_REUSED, Asked, Reused
from gateway.clock import unix_s
from gateway.inference import Call
from gateway.telemetry.events import Mark, RequestEvent

QUEUED_S = 0.001  # below that, it has come to its place without a wait
LOGGED_BYTES = 65536  # of a body
MODEL_NAME_CHARS = 256  # as many as a configured name may have


def least_event(asked: Asked, error: Optional[str], status: int) -> RequestEvent:
    """Return what can be told of a request in any case."""
    head = asked.head
    latency_s = time.monotonic() - asked.accepted_s
    extra = None
    if asked.feed_began_s:
        open_s, latency_s = latency_s, asked.feed_began_s - asked.accepted_s
        extra = {"open_s": round(open_s - latency_s, 3)}
    return RequestEvent(
        *(unix_s(), asked.request_id, head.method, head.path, status, error, latency_s),
        extra=extra,
        accepted_s=asked.accepted_s,
        trace=asked.trace,
        marks=asked.marks,
    )


def event_of(
    asked: Asked, error: Optional[str], status: int, ttft_s: Optional[float], logged_answer: Optional[bytes]
) -> RequestEvent:
    """All that is told of a request. `logged_answer` None: bodies are not logged."""
    call, identity, head = asked.call, asked.identity, asked.head
    key = identity.name if identity is not None else None
    if call is None:
        event = least_event(asked, error, status)
        return event._replace(model=_model_name(asked.named_model or None), key=key, client=asked.client_address)
    usage = call.usage
    # In the order of its fields. By their names it takes 2 us more, of each request.
    return RequestEvent._make(
        (
            unix_s(),
            asked.request_id,
            head.method,
            head.path,
            status,
            error,
            time.monotonic() - asked.accepted_s,
            asked.queue_s + call.waited_s,
            call.engine_s,
            ttft_s,
            call.stream,
            _model_name(call.served_model if error is None else (call.model or call.served_model)),
            call.engine_id,
            call.attempts,
            call.fallback,
            usage.prompt_tokens if usage else None,
            usage.completion_tokens if usage else None,
            usage.estimated if usage else False,
            key,
            asked.client_address,
            tuple(call.records),
            tuple(call.retries),
            _extra(asked, call, logged_answer),
            asked.accepted_s,
            asked.trace,
            asked.marks if asked.queue_s < QUEUED_S and not call.marks else _marks(asked, call),
        )
    )


def _marks(asked: Asked, call: Call) -> tuple[Mark, ...]:
    """What it has done besides asking."""
    queued = (Mark("queue", asked.enqueued_s, asked.queue_s),) if asked.queue_s >= QUEUED_S else ()
    return queued + call.marks + asked.marks


def _extra(asked: Asked, call: Call, logged_answer: Optional[bytes]) -> Optional[dict[str, object]]:
    """Further keys of the log line, for what most requests do not have."""
    # What must not leave a region is written into no line: nobody knows where that goes.
    extra = {} if logged_answer is None or call.residency else _bodies(call, logged_answer)
    if call.region is not None:
        extra["region"] = call.region
    if call.residency:
        extra["residency"] = call.residency
    if asked.account is not None and asked.account.cost_usd is not None:
        extra["cost_usd"] = asked.account.cost_usd
    if call.usage is not None and call.usage.rejected:
        extra["usage_rejected"] = call.usage.rejected
    if call.split:
        extra["split"] = call.split
    if call.hedged:
        extra["hedged"] = True
    if call.shape is not None:
        if call.schema_retries:
            extra["schema_retries"] = call.schema_retries
        if call.repairs:
            extra["repaired"] = list(call.repairs)
    if call.resumed:
        extra["resumed"] = call.resumed
    if asked.part_of:
        extra["part_of"] = asked.part_of
    if asked.verification is not None:
        extra["verification"] = asked.verification
    if asked.reused is not NOT_REUSED:
        if not extra and asked.reused is MISS:
            return _MISSED
        extra.update(_reused(asked.reused))
    return extra or None


_MISSED: dict[str, object] = {"cache": "miss"}  # nobody changes it


def _reused(reused: Reused) -> dict[str, object]:
    extra: dict[str, object] = {}
    if reused.cache:
        extra["cache"] = reused.cache
    if reused.saved_tokens:
        extra["saved_tokens"] = reused.saved_tokens
    if reused.saved_usd:
        extra["saved_usd"] = reused.saved_usd
    if reused.similarity is not None:
        extra["similarity"] = round(reused.similarity, 4)
    if reused.coalesced:
        extra["coalesced"] = True
    if reused.batch:
        extra["batch"] = reused.batch
    if reused.batch_wait_s is not None:
        extra["batch_wait_ms"] = round(reused.batch_wait_s * 1000, 3)
    return extra


def _bodies(call: Call, answer: bytes) -> dict[str, object]:
    """What LOG_BODIES=on adds to the log line; of a stream only the request."""
    texts = {"request_body": call.body, "answer_body": answer}
    return {name: body[:LOGGED_BYTES].decode("utf-8", "replace") for name, body in texts.items() if body}


def _model_name(asked: Optional[str]) -> Optional[str]:
    """A model as it is reported: what a client asks for may be as long as its body."""
    if asked is None or len(asked) <= MODEL_NAME_CHARS:
        return asked
    return asked[:MODEL_NAME_CHARS] + "…"  # no configured name: those are ASCII
