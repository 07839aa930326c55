"""The usual request, counted many at a time: a whole good answer by one attempt.

Most requests are such, and all that they are counted in is the same for those of one path, model and engine. So each
only goes to the others of its kind, and what they come to is added up by columns, by C: two thirds of what each by
itself takes. Everything else is counted at once, by `metrics.py`. Owns the requests that wait, at most MOST; what
guards them is the registry's lock, which whoever calls anything here holds. Nobody sees that they wait: who reads the
registry has them counted first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable, NamedTuple

from gateway.telemetry.events import AttemptRecord, RequestEvent
from gateway.telemetry.registry import Counter, Histogram, Traced

MOST = 64
"""Requests that wait to be counted; they have no bodies with them. Counting them takes 0.05 to 0.1 ms, on the loop's
thread where that helps, so not more: of 256, a request would take 0.4 us less, but others wait for 0.2 ms."""
KINDS_MAX = 4096
TOKENS_MAX = 1 << 53  # of one request: more is no number of tokens, and may be too much for a float

Key = tuple[str, "str | None", "str | None", int, str, str, bool]
"""Path, model, engine, status; the model and the engine of the attempt; whether its trace is sampled."""


class Kind(NamedTuple):
    """What requests that are alike are counted in."""

    requests: Counter
    latency: Histogram
    attempts: Counter
    attempt_latency: Histogram
    prompt: Counter
    completion: Counter
    queue: Histogram
    overhead: Histogram
    genai: tuple[Histogram, Histogram, Histogram] | None
    """Latency, prompt, completion; None: its path has no name there."""


class UsualRequests:
    """Those that wait to be counted. `kind_of` makes the series of one kind, with the registry's lock held."""

    def __init__(self, kind_of: Callable[[Key, Mapping[str, str]], Kind]) -> None:
        self._kind_of = kind_of
        self._known: Mapping[str, str] = {}
        self._waiting: dict[Key, tuple[Kind, list[RequestEvent]]] = {}
        self._count = 0

    def take_locked(self, event: RequestEvent, known: Mapping[str, str]) -> bool:
        """Take it over, if it is a usual one. `known`: the models of now by their names."""
        # By slices, which are plain tuples: unpacked at once, where each field by its name is looked up.
        path, status, error, latency_s, queue_s, engine_s, _, stream, model, engine, attempts, fallback = event[3:15]
        prompt, completion = event[15:17]
        records, retries, extra, _, trace, _ = event[20:]
        if error is not None or stream or fallback is not None or extra is not None or retries or len(records) != 1:
            return False
        asked, at, outcome, duration_s = records[0][:4]
        if (
            outcome != "ok"
            or not attempts
            or type(prompt) is not int
            or type(completion) is not int
            or not 0 < prompt < TOKENS_MAX
            or not 0 < completion < TOKENS_MAX
            or not (queue_s + engine_s <= latency_s and duration_s >= 0.0)
        ):
            return False
        if known is not self._known:  # other models, perhaps: what their names stand for has changed
            self.forget_locked()
            self._known = known
        key = (path, model, engine, status, asked, at, trace is not None and trace.sampled)
        found = self._waiting.get(key)
        if found is None:
            if len(self._waiting) >= KINDS_MAX:
                self.forget_locked()
            found = self._waiting[key] = (self._kind_of(key, known), [])
        found[1].append(event)
        self._count += 1
        if self._count >= MOST:
            self.count_locked()
        return True

    def forget_locked(self) -> None:
        """Count all that wait, and find the series of the next ones anew."""
        self.count_locked()
        self._waiting.clear()

    def count_locked(self) -> None:
        """Count all that wait."""
        if not self._count:
            return
        self._count = 0
        for key, (kind, events) in self._waiting.items():
            if events:
                _count_locked(kind, events, key[-1])
                events.clear()


def _count_locked(kind: Kind, events: Sequence[RequestEvent], sampled: bool) -> None:
    """Count requests of one kind."""
    columns: Any = RequestEvent._make(zip(*events))  # each field's value of all of them
    latencies_s, times_s = columns.latency_s, zip(columns.latency_s, columns.queue_s, columns.engine_s)
    traced = (lambda index: traced_of(events[index])) if sampled else None
    attempt_traced = (lambda index: traced_of(events[index], events[index].attempt_records[0])) if sampled else None
    kind.requests.value += len(events)
    kind.latency.observe_all_locked(latencies_s, traced)
    kind.attempts.value += len(events)
    kind.attempt_latency.observe_all_locked([record[3] for (record,) in columns.attempt_records], attempt_traced)
    kind.prompt.value += sum(columns.prompt_tokens)
    kind.completion.value += sum(columns.completion_tokens)
    kind.queue.observe_all_locked(columns.queue_s, traced)
    overheads_s = [max(0.0, total_s - queue_s - asking_s) for total_s, queue_s, asking_s in times_s]
    kind.overhead.observe_all_locked(overheads_s, traced)
    if kind.genai is not None:
        latency, prompt, completion = kind.genai
        latency.observe_all_locked(latencies_s, traced)
        prompt.observe_all_locked(columns.prompt_tokens)
        completion.observe_all_locked(columns.completion_tokens)


def traced_of(event: RequestEvent, attempt: AttemptRecord | None = None) -> Traced:
    """Whose observation it is: of a request that has a trace, or of one of its attempts."""
    assert event.trace is not None
    span_id = event.trace.span_id if attempt is None else attempt.span_id or event.trace.span_id
    return event.trace.trace_id, span_id, event.finished_unix_s
