"""The gateway's own metrics that are counted, from batches of finished requests (those that are read: gauges.py).

`GatewayMetrics` declares them in a Registry, whose lock guards every number and is held for a batch. Nothing on a
request's own thread takes it.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping, Sequence
from typing import Any, Callable

from gateway.telemetry.departed import Departed
from gateway.telemetry.events import OUTCOMES, AttemptRecord, RequestEvent
from gateway.telemetry.genai import GenAiMetrics
from gateway.telemetry.registry import Counter, Histogram, Metric, Registry, Traced
from gateway.telemetry.usual import Key, Kind, UsualRequests, traced_of
from gateway.telemetry.verifications import VerificationMetrics

DURATION_BUCKETS_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0),
)
QUEUE_BUCKETS_S = (
    *(0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0),
)
CACHE_RESULTS = ("hit", "near", "miss", "bypass")
BATCH_BUCKETS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
OVERHEAD_BUCKETS_S = (*(0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1),)
OTHER = "other"
"""The label value of everything outside the closed set."""
MODEL_PATH = "/v1/models/{id}"


class _Pairs:
    """The counter and the histogram of what has the same labels; the counter has one label more, the last."""

    __slots__ = ("_counter", "_found", "_spread")

    def __init__(self, counter: Metric[Counter], spread: Metric[Histogram]) -> None:
        self._counter = counter
        self._spread = spread
        self._found: dict[tuple[str, str, object], tuple[Counter, Histogram]] = {}

    def at_locked(self, first: str, second: str, last: object) -> tuple[Counter, Histogram]:
        """Those with these labels; `last` becomes text, but only once."""
        key = (first, second, last)
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = (
                self._counter.labels_locked(first, second, str(last)),
                self._spread.labels_locked(first, second),
            )
        return found

    def drop_locked(self, pairs: Collection[tuple[str, str]]) -> None:
        """Find those with these two labels anew when they are counted again."""
        self._found = {key: found for key, found in self._found.items() if key[:2] not in pairs}


class GatewayMetrics:
    """The gateway's metrics, fed with batches of finished requests.

    `known_models` gives every name that a request may use now, with the configured model it stands for, and
    `known_paths` the served paths; a label outside them counts under `other`, so that callers cannot invent series. A
    request that names no model has the empty label, which Prometheus reads as absent. `provider_of`: whose an engine
    is, by model and engine, as in GenAiMetrics. What belongs to a sampled trace becomes an exemplar. Thread safe.
    """

    def __init__(
        self,
        registry: Registry,
        known_models: Callable[[], Mapping[str, str]],
        known_paths: Container[str],
        provider_of: Callable[[str, str], str] = lambda model, engine: "",
    ) -> None:
        self.registry = registry
        self._known_models = known_models
        self._known_paths = known_paths
        self._declare_requests(registry)
        self._declare_engines(registry)
        self._declare_reuse(registry)
        self._verifications = VerificationMetrics(registry)
        self._genai = GenAiMetrics(registry, provider_of)
        self._usual = UsualRequests(self._kind_locked)
        registry.catch_up_locked = self._usual.count_locked
        self.cache_totals: dict[str, float] = dict.fromkeys((*CACHE_RESULTS, "saved_tokens", "saved_usd"), 0)
        """Of all models: requests by what the cache did for them, and what hits have saved."""
        # What is added up as it stands; True counts as one.
        self._sums = {
            "cost_usd": self._cost,
            "hedged": self._hedges,
            "resumed": self._resumes,
            "saved_tokens": self._saved_tokens,
            "coalesced": self._coalesced,
        }
        # Series by the raw label values: one dict lookup per event instead of one call per metric.
        self._of_requests = _Pairs(self._requests, self._duration)
        self._of_attempts = _Pairs(self._engine_requests, self._engine_duration)
        of_engines = (self._engine_requests, self._engine_duration, self._rescued, self._usage_rejected)
        self.departed = Departed(registry, of_engines, self._usual.forget_locked, self._of_attempts.drop_locked)
        self._by_model: dict[str, tuple[Counter, Counter]] = {}
        self._by_cache: dict[tuple[str, str], Counter] = {}

    def _declare_requests(self, registry: Registry) -> None:
        self._requests = registry.counter("gateway_requests_total", "Requests answered.", ("path", "model", "status"))
        self._duration = registry.histogram(
            "gateway_request_duration_seconds",
            "From a request's first byte to its answer's last byte.",
            ("path", "model"),
            buckets=DURATION_BUCKETS_S,
        )
        self._ttft = registry.histogram(
            "gateway_time_to_first_token_seconds",
            "From a streamed request's first byte to its first event.",
            ("model",),
            buckets=DURATION_BUCKETS_S,
        )
        self._tokens = registry.counter(
            "gateway_tokens_total", "Tokens, as the engines counted them.", ("model", "kind")
        )
        self._queue_wait = registry.histogram(
            "gateway_queue_wait_seconds", "Waiting for a worker.", buckets=QUEUE_BUCKETS_S
        ).labels()
        self._overhead = registry.histogram(
            "gateway_overhead_seconds",
            "Time of a non-streaming answer spent neither waiting for a worker nor for an engine.",
            buckets=OVERHEAD_BUCKETS_S,
        ).labels()
        self.log_lines_dropped = registry.counter(
            "gateway_log_lines_dropped_total",
            "Log lines lost because the log's stream was blocked or failed.",
        ).labels()

    def _declare_engines(self, registry: Registry) -> None:
        self._engine_requests = registry.counter(
            "gateway_engine_requests_total",
            "Attempts at an engine, by outcome.",
            ("model", "engine", "outcome"),
        )
        self._engine_duration = registry.histogram(
            "gateway_engine_duration_seconds",
            "Duration of attempts at an engine, failed ones included.",
            ("model", "engine"),
            buckets=DURATION_BUCKETS_S,
        )
        self._retries = registry.counter(
            "gateway_retries_total",
            "Attempts repeated on an engine of the same model.",
            ("model", "reason"),
        )
        self._rescued = registry.counter(
            "gateway_rescued_total",
            "Attempts without an answer ended because the engine had gone out: the requests were passed to another.",
            ("model", "engine"),
        )
        self._cost = registry.counter(
            "gateway_cost_usd_total", "Cost of the answers, by the models' prices.", ("model",)
        )
        self._usage_rejected = registry.counter(
            "gateway_usage_rejected_total",
            "Answers whose tokens, as the engine reported them, were not believed but estimated.",
            ("model", "engine"),
        )
        self._hedges = registry.counter(
            "gateway_hedges_total", "Requests for which a second engine was asked.", ("model",)
        )
        self._resumes = registry.counter(
            "gateway_stream_resumes_total", "Streams that went on at another engine.", ("model",)
        )
        self._fallbacks = registry.counter(
            "gateway_fallbacks_total",
            "Requests answered by another model than the one asked for.",
            ("from_model", "to_model"),
        )

    def _declare_reuse(self, registry: Registry) -> None:
        self._cache_requests = registry.counter(
            "gateway_cache_requests_total", "Requests by what the cache did for them.", ("model", "result")
        )
        self._coalesced = registry.counter(
            "gateway_coalesced_total", "Requests that another one's call has answered.", ("model",)
        )
        self._saved_tokens = registry.counter(
            "gateway_saved_tokens_total", "Tokens of answers that were given from the cache.", ("model",)
        )
        self._batch_size = registry.histogram(
            "gateway_batch_size", "Requests in one call to an engine.", buckets=BATCH_BUCKETS
        ).labels()
        self._batch_wait = registry.histogram(
            "gateway_batch_wait_seconds", "How long a batch has gathered.", buckets=QUEUE_BUCKETS_S
        ).labels()

    def observe(self, events: Sequence[RequestEvent]) -> None:
        """Counts every event of the batch, under one hold of the registry's lock; usual ones later, with more of them.

        Raises what the first one raised that cannot be counted, when all others have been.
        """
        known = self._known_models()
        failed: Exception | None = None
        take_locked = self._usual.take_locked
        with self.registry.lock:
            for event in events:
                try:
                    if not take_locked(event, known):
                        self._count_event_locked(event, known)
                except Exception as error:
                    failed = failed or error
        if failed is not None:
            raise failed

    def _count_event_locked(self, event: RequestEvent, known: Mapping[str, str]) -> None:
        model = _model_label(event.model, known)
        traced = traced_of(event) if event.trace is not None and event.trace.sampled else None
        answered = event.extra is None or "part_of" not in event.extra
        self._count_locked(event, model, answered, traced)
        for record in event.attempt_records:
            self._count_attempt_locked(record, traced)
        self._genai.count_locked(event, model, known, answered, traced)
        if event.extra is not None:
            self._count_extra_locked(event, event.extra, model)
        if event.retries or event.fallback is not None:
            self._count_detours_locked(event, known)

    def _count_locked(self, event: RequestEvent, model: str, answered: bool, traced: Traced | None) -> None:
        if answered:
            requests, latency = self._of_requests.at_locked(
                _path_label(event.path, self._known_paths), model, event.status
            )
            requests.value += 1
            latency.observe_locked(event.latency_s, traced)
        if event.attempts or event.queue_s:
            self._queue_wait.observe_locked(event.queue_s, traced)
        if event.stream:
            if event.ttft_s is not None:
                self._ttft.labels_locked(model).observe_locked(event.ttft_s, traced)
        elif event.attempts:
            overhead_s = event.latency_s - event.queue_s - event.engine_s
            self._overhead.observe_locked(max(overhead_s, 0.0), traced)
        if event.prompt_tokens is not None or event.completion_tokens is not None:
            prompt, completion = self._token_series_locked(model)
            prompt.value += event.prompt_tokens or 0
            completion.value += event.completion_tokens or 0

    def _kind_locked(self, key: Key, known: Mapping[str, str]) -> Kind:
        """Where a usual request counts."""
        path, name, engine, status, asked, at, _ = key
        model = _model_label(name, known)
        return Kind(
            *self._of_requests.at_locked(_path_label(path, self._known_paths), model, status),
            *self._of_attempts.at_locked(asked, at, "ok"),
            *self._token_series_locked(model),
            queue=self._queue_wait,
            overhead=self._overhead,
            genai=self._genai.usual_locked(path, model, engine, known),
        )

    def _count_extra_locked(self, event: RequestEvent, extra: Mapping[str, Any], model: str) -> None:
        for key, value in extra.items():
            if key == "cache":
                found = self._by_cache.get((model, value))
                if found is None:
                    found = self._by_cache[model, value] = self._cache_requests.labels_locked(model, value)
                found.value += 1
                self.cache_totals[value] += 1
            elif key in self._sums:
                self._sums[key].labels_locked(model).value += value
                if key == "saved_tokens":
                    self.cache_totals[key] += value
            elif key == "saved_usd":
                self.cache_totals[key] += value
            elif key == "usage_rejected":
                self._usage_rejected.labels_locked(model, event.engine or "").value += 1
            elif key == "verification":
                self._verifications.count_locked(value)
            elif key == "batch_wait_ms":  # of the one that has led it
                self._batch_wait.observe_locked(value / 1000)
                self._batch_size.observe_locked(extra.get("batch", 1))

    def _token_series_locked(self, model: str) -> tuple[Counter, Counter]:
        found = self._by_model.get(model)
        if found is None:
            found = self._by_model[model] = (
                self._tokens.labels_locked(model, "prompt"),
                self._tokens.labels_locked(model, "completion"),
            )
        return found

    def _count_attempt_locked(self, record: AttemptRecord, traced: Traced | None) -> None:
        model, engine, outcome, duration_s = record[:4]
        if outcome not in OUTCOMES:
            outcome = OTHER
        found = self._of_attempts.at_locked(model, engine, outcome)
        found[0].value += 1
        if traced is not None and record.span_id:
            traced = (traced[0], record.span_id, traced[2])
        found[1].observe_locked(duration_s, traced)
        if outcome == "hung":
            self._rescued.labels_locked(model, engine).value += 1

    def _count_detours_locked(self, event: RequestEvent, known: Mapping[str, str]) -> None:
        for model, reason in event.retries:
            reason_label = reason if reason in OUTCOMES else OTHER
            self._retries.labels_locked(_model_label(model, known), reason_label).value += 1
        if event.fallback is not None and event.error is None:
            asked, _, answered = event.fallback.partition("->")
            labels = (_model_label(asked, known), _model_label(answered, known))
            self._fallbacks.labels_locked(*labels).value += 1


def _path_label(path: str, known: Container[str]) -> str:
    if path in known:
        return path
    single_model = path.startswith("/v1/models/") and MODEL_PATH in known
    return MODEL_PATH if single_model else OTHER


def _model_label(model: str | None, known: Mapping[str, str]) -> str:
    return "" if model is None else known.get(model, OTHER)
