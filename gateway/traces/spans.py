"""The spans of a finished request, from its event alone: the request, what it has waited for, each attempt.

Pure functions. Names follow OpenTelemetry's conventions for HTTP and for generative AI, which still change (of the
latter: `gen_ai.…`, all here and in telemetry/genai.py); what they have no word for is `gateway.…`.
https://opentelemetry.io/docs/specs/semconv/http/http-spans/
https://github.com/open-telemetry/semantic-conventions-genai/blob/main/docs/gen-ai/client-inference.md
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Callable, NamedTuple, Optional

from gateway.telemetry.events import AttemptRecord, Mark, RequestEvent, Trace
from gateway.telemetry.genai import OPERATIONS, PROVIDERS
from gateway.telemetry.logs import quoted
from gateway.traces.context import new_span_id
from gateway.traces.encoding import Json, attribute_texts, nanos, text_of

INTERNAL, SERVER, CLIENT = 1, 2, 3
ERROR = 2  # a status
CONTENT_CHARS = 65_536  # of a prompt, and of an answer
CONTENT = frozenset({"request_body", "answer_body"})
"""Of a request's further keys, those that LOG_BODIES=on adds."""
_REMOTE_KNOWN, _REMOTE = 0x100, 0x200  # of a span's flags: whether its parent is elsewhere


class EngineAt(NamedTuple):
    """Where an engine is, and whose it is."""

    address: str
    port: int
    provider: str


Find = Callable[[str, str], Optional[EngineAt]]
"""The engine of a model by its id; None: it is no longer there."""


def is_failure(event: RequestEvent) -> bool:
    """Whether the service has failed a request: its answer says so, or a stream of it has broken."""
    return event.status >= 500 or (event.error is not None and event.status < 400)


def span_count(event: RequestEvent) -> int:
    """How many spans `spans_of` makes of it."""
    return 1 + len(event.attempt_records) + len(event.marks)


def spans_of(event: RequestEvent, trace: Trace, find: Find) -> list[str]:
    """The spans of a request, each as JSON: its own first."""
    request = _Request(event, trace)
    marks = [(mark, new_span_id()) for mark in event.marks]
    spans = [request.own_span(), *(request.mark_span(mark, span_id) for mark, span_id in marks)]
    for number, record in enumerate(event.attempt_records, 1):
        within = next((span_id for mark, span_id in marks if _is_within(record, mark)), trace.span_id)
        spans.append(request.attempt_span(number, record, within, find(record.model, record.engine)))
    return spans


def _is_within(record: AttemptRecord, mark: Mark) -> bool:
    """Whether an attempt was made for what is marked: an embedding for a look into the cache."""
    if mark.name != "cache":
        return False
    return mark.began_s <= record.began_s and record.began_s + record.duration_s <= mark.began_s + mark.duration_s


class _Request:
    """One request and its clock: monotonic seconds become Unix seconds, within the request's own."""

    def __init__(self, event: RequestEvent, trace: Trace) -> None:
        self._event = event
        self._trace = trace
        self._ended_s = event.accepted_s + event.latency_s
        self._unix_s = event.finished_unix_s - self._ended_s
        self._operation = OPERATIONS.get(event.path) or event.path.rpartition("/")[2] or "request"

    def _span(
        self,
        *named: object,
        parent_id: str,
        times: tuple[float, float],
        attributes: list[str],
        flags: int = 0,
        more: str = "",
    ) -> str:
        """`named`: name, kind and id. `more` is JSON of further members, each with a comma before it."""
        trace, event = self._trace, self._event
        name, kind, span_id = named
        began_s = min(max(times[0], event.accepted_s), self._ended_s)
        ended_s = max(began_s, min(times[1], self._ended_s))
        flags |= _REMOTE_KNOWN | trace.sampled | trace.random << 1
        parent = f',"parentSpanId":"{parent_id}"' if parent_id else ""
        state = f',"traceState":{quoted(trace.state)}' if trace.state else ""
        return (
            f'{{"traceId":"{trace.trace_id}","spanId":"{span_id}"{parent}{state},"flags":{flags},'
            f'"name":{quoted(str(name))},"kind":{kind},"startTimeUnixNano":"{nanos(self._unix_s + began_s)}",'
            f'"endTimeUnixNano":"{nanos(self._unix_s + ended_s)}","attributes":[{",".join(attributes)}]{more}}}'
        )

    def own_span(self) -> str:
        """The span of the request as its client sees it."""
        event, trace = self._event, self._trace
        extra = event.extra or {}
        asked_for, arrow, _ = (event.fallback or "").partition("->")
        attributes = attribute_texts(
            {
                "http.request.method": event.method,
                "http.route": event.path,
                "url.path": event.path,
                "url.scheme": "http",
                "http.response.status_code": event.status,
                "client.address": event.client or None,
                "error.type": event.error,
                "gen_ai.operation.name": self._operation,
                "gen_ai.request.model": (asked_for if arrow else extra.get("split")) or event.model,
                "gen_ai.request.stream": True if event.stream else None,
                "gen_ai.response.model": event.model if event.error is None else None,
                "gen_ai.response.time_to_first_chunk": event.ttft_s,
                "gen_ai.usage.input_tokens": event.prompt_tokens,
                "gen_ai.usage.output_tokens": event.completion_tokens,
                "gateway.request_id": event.request_id,
                "gateway.key": event.key,
                "gateway.engine": event.engine,
                "gateway.attempts": event.attempts,
                "gateway.fallback": event.fallback,
                "gateway.usage_estimated": True if event.usage_estimated else None,
                # Why it is here: it was chosen at its begin, or only since it has failed.
                "gateway.sampled_by": "sampler" if trace.sampled else "error",
            }
        )
        if extra:
            attributes += attribute_texts(_flat("gateway", extra))
            attributes += attribute_texts(content_of(extra), CONTENT_CHARS)
        is_called = bool(trace.parent_id) and "part_of" not in extra
        return self._span(
            *(f"{event.method} {event.path}", SERVER, trace.span_id),
            parent_id=trace.parent_id,
            times=(event.accepted_s, self._ended_s),
            attributes=attributes,
            flags=_REMOTE if is_called else 0,
            more=_failed(event.error or f"status {event.status}" if is_failure(event) else "")
            + self._first_event(event.accepted_s, event.ttft_s),
        )

    def mark_span(self, mark: Mark, span_id: str) -> str:
        """The span of something else than an attempt."""
        links = [f'{{"traceId":"{trace_id}","spanId":"{linked}"}}' for trace_id, linked in mark.links]
        return self._span(
            *(mark.name, INTERNAL, span_id),
            parent_id=self._trace.span_id,
            times=(mark.began_s, mark.began_s + mark.duration_s),
            attributes=attribute_texts(_flat(f"gateway.{mark.name}", mark.attributes)) if mark.attributes else [],
            more=f',"links":[{",".join(links)}]' if links else "",
        )

    def attempt_span(self, number: int, record: AttemptRecord, parent_id: str, at: Optional[EngineAt]) -> str:
        """The span of one engine's try; it has the id that the engine was told."""
        failed = record.outcome not in ("ok", "cancelled")
        has_address = at is not None and bool(at.address)
        attributes = attribute_texts(
            {
                "gen_ai.operation.name": self._operation,
                "gen_ai.provider.name": None if at is None else PROVIDERS.get(at.provider, at.provider),
                "gen_ai.request.model": record.model,
                "gen_ai.response.time_to_first_chunk": record.first_s,
                "server.address": at.address if at is not None and has_address else None,
                "server.port": at.port if at is not None and has_address else None,
                "http.response.status_code": record.status,
                "error.type": record.outcome if failed else None,
                "gateway.engine": record.engine,
                "gateway.outcome": record.outcome,
                "gateway.attempt": number,
            }
        )
        return self._span(
            *(f"{self._operation} {text_of(record.model)}", CLIENT, record.span_id or new_span_id()),
            parent_id=parent_id,
            times=(record.began_s, record.began_s + record.duration_s),
            attributes=attributes,
            more=_failed(record.outcome if failed else "") + self._first_event(record.began_s, record.first_s),
        )

    def _first_event(self, began_s: float, first_s: Optional[float]) -> str:
        """When a stream's first event came; None: it is none, or has none."""
        if first_s is None:
            return ""
        at = nanos(self._unix_s + min(began_s + first_s, self._ended_s))
        return f',"events":[{{"name":"first_event","timeUnixNano":"{at}"}}]'


def _failed(why: str) -> str:
    """The status of a span that has failed; "": it has not."""
    return f',"status":{{"code":{ERROR},"message":{quoted(why)}}}' if why else ""


def _flat(prefix: str, values: Mapping[str, object]) -> dict[str, object]:
    """What attributes can hold of a mapping, with a name for each."""
    flat: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flat(f"{prefix}.{key}", value))
        elif key not in CONTENT and isinstance(value, (str, int, float)):
            flat[f"{prefix}.{key}"] = value
    return flat


# --- prompts and answers -------------------------------------------------------------------------------------------


def content_of(extra: Mapping[str, object]) -> dict[str, object]:
    """What LOG_BODIES=on has kept of a request, as messages in JSON; what cannot be read as such, as it is."""
    told: dict[str, object] = {}
    for key, name, read in (
        ("request_body", "gen_ai.input.messages", _asked),
        ("answer_body", "gen_ai.output.messages", _answered),
    ):
        body = extra.get(key)
        if isinstance(body, str) and body:
            messages = _messages(body, read)
            told[name if messages else f"gateway.{key}"] = messages or body
    return told


def _messages(body: str, read: Callable[[Any], list[Json]]) -> str:
    try:
        messages = read(json.loads(body))
        text = json.dumps(messages, ensure_ascii=False)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return ""
    return text if messages and len(text) <= CONTENT_CHARS else ""  # half of JSON is none


def _asked(request: Any) -> list[Json]:
    if "messages" in request:
        return [_message(one["role"], one.get("content")) for one in request["messages"]]
    return [_message("user", request["prompt"] if "prompt" in request else request["input"])]


def _answered(answer: Any) -> list[Json]:
    messages = []
    for choice in answer["choices"]:
        said = choice.get("message") or {"content": choice.get("text")}
        message = _message(said.get("role") or "assistant", said.get("content"))
        messages.append({**message, "finish_reason": choice.get("finish_reason") or ""})
    return messages


def _message(role: object, content: object) -> Json:
    if isinstance(content, str):
        return {"role": role, "parts": [{"type": "text", "content": content}]}
    parts = content if isinstance(content, list) else [] if content is None else [content]
    return {"role": role, "parts": [_part(part) for part in parts]}


def _part(part: object) -> object:
    if isinstance(part, dict) and part.get("type") == "text":
        return {"type": "text", "content": part.get("text")}
    return part if isinstance(part, dict) else {"type": "text", "content": str(part)}
