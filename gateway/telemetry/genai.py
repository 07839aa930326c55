"""OpenTelemetry's metrics of generative AI, by their names there, beside the gateway's own.

The conventions are in development and still move: INSTRUMENTS is all that is named after them, and follows version
1.41.0 of OpenTelemetry's semantic conventions (docs/gen-ai/gen-ai-metrics.md; later ones have them in a project of
their own). Owns its metrics; what guards them is the registry's lock, which whoever calls `count_locked` holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Callable, NamedTuple, Optional

from gateway.errors import ERRORS
from gateway.telemetry.events import RequestEvent
from gateway.telemetry.registry import Histogram, Registry, Traced


class Instrument(NamedTuple):
    """One of their histograms."""

    otel: str
    """Its name there."""
    unit: str
    """UCUM's."""
    name: str
    """Prometheus' name, by OpenTelemetry's rules for it."""
    help: str
    attributes: tuple[str, ...]
    """By their names there; `label_name` is Prometheus'."""
    buckets: tuple[float, ...]


_SHARED = ("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model", "gen_ai.response.model")
_DURATION_S = (*(0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64), *(1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92))
_FIRST_S = (*(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75), *(1.0, 2.5, 5.0, 7.5, 10.0))
_EACH_S = (*(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75), *(1.0, 2.5))
_TOKENS = tuple(4.0**power for power in range(14))

INSTRUMENTS = (
    Instrument(
        *("gen_ai.client.token.usage", "{token}", "gen_ai_client_token_usage"),
        "Tokens that an answer took, by what engines count or, where they do not, estimated.",
        (*_SHARED, "gen_ai.token.type"),
        _TOKENS,
    ),
    Instrument(
        *("gen_ai.server.request.duration", "s", "gen_ai_server_request_duration_seconds"),
        "From an inference request's first byte to its answer's last byte.",
        (*_SHARED, "error.type"),
        _DURATION_S,
    ),
    Instrument(
        *("gen_ai.server.time_to_first_token", "s", "gen_ai_server_time_to_first_token_seconds"),
        "From a streamed request's first byte to its first event, of streams that ended well.",
        _SHARED,
        _FIRST_S,
    ),
    Instrument(
        *("gen_ai.server.time_per_output_token", "s", "gen_ai_server_time_per_output_token_seconds"),
        "From a stream's first event to its last byte, by its tokens but the first one, of streams that ended well.",
        _SHARED,
        _EACH_S,
    ),
)
OPERATIONS: Mapping[str, str] = {
    **dict.fromkeys(("/v1/chat/completions", "/v1/messages", "/v1/responses", "/api/chat"), "chat"),
    **dict.fromkeys(("/query", "/api/v1/inference"), "chat"),
    **dict.fromkeys(("/v1/completions", "/api/generate"), "text_completion"),
    **dict.fromkeys(("/v1/embeddings", "/api/embed", "/api/embeddings"), "embeddings"),
}
"""What they call what is asked for, by the path; other paths have no name there and are not counted."""
PROVIDERS: Mapping[str, str] = {"gemini": "gcp.gemini", "mistral": "mistral_ai", "azure": "azure.ai.openai"}
"""What they call a provider, where they call it otherwise than an engine's `provider` does."""
NOBODY = "gateway"
"""The provider of an answer for which no engine was asked: refused, or kept from before."""
UNKNOWN = "_OTHER"
SERIES_KEPT = 10_000
"""Combinations of labels that are found at once; more are looked up anew."""

_Key = tuple[str, str, Optional[str], Optional[str], Optional[str]]


class _Found:
    """The series of requests that have all labels in common, each made when there is something to count."""

    __slots__ = ("completion", "duration", "each", "error_type", "first", "prompt", "shared")

    def __init__(self, shared: tuple[str, ...], error_type: str) -> None:
        self.shared = shared
        self.error_type = error_type
        self.duration: Optional[Histogram] = None
        self.prompt: Optional[Histogram] = None
        self.completion: Optional[Histogram] = None
        self.first: Optional[Histogram] = None
        self.each: Optional[Histogram] = None


def label_name(attribute: str) -> str:
    """What Prometheus calls an attribute."""
    return attribute.replace(".", "_")


class GenAiMetrics:
    """Requests of inference as OpenTelemetry counts them.

    `provider_of` says whose an engine is, by model and engine: a `provider` of the engines file, or a dialect; "" where
    there is no such engine any more.
    """

    def __init__(self, registry: Registry, provider_of: Callable[[str, str], str]) -> None:
        self._tokens, self._duration, self._first, self._each = (
            registry.histogram(
                instrument.name,
                instrument.help,
                tuple(map(label_name, instrument.attributes)),
                buckets=instrument.buckets,
            )
            for instrument in INSTRUMENTS
        )
        self._provider_of = provider_of
        self._known: Mapping[str, str] = {}
        self._by_key: dict[_Key, _Found] = {}

    def count_locked(
        self, event: RequestEvent, model: str, known: Mapping[str, str], answered: bool, traced: Optional[Traced]
    ) -> None:
        """Count one request. `model` is its label, `known` the models of now by their names; `answered`: it is no part
        of another one."""
        if event.path not in OPERATIONS:
            return
        found = self._found_locked((event.path, model, event.engine, event.error, event.fallback), known)
        if answered:
            if found.duration is None:
                found.duration = self._duration.labels_locked(*found.shared, found.error_type)
            found.duration.observe_locked(event.latency_s, traced)
        if event.prompt_tokens:
            if found.prompt is None:
                found.prompt = self._tokens.labels_locked(*found.shared, "input")
            found.prompt.observe_locked(event.prompt_tokens)
        tokens = event.completion_tokens
        if tokens:
            if found.completion is None:
                found.completion = self._tokens.labels_locked(*found.shared, "output")
            found.completion.observe_locked(tokens)
        if event.ttft_s is not None and event.error is None:
            if found.first is None:
                found.first = self._first.labels_locked(*found.shared)
            found.first.observe_locked(event.ttft_s, traced)
            if tokens is not None and tokens > 1 and _was_streamed(event):
                if found.each is None:
                    found.each = self._each.labels_locked(*found.shared)
                found.each.observe_locked(max(0.0, event.latency_s - event.ttft_s) / (tokens - 1), traced)

    def usual_locked(
        self, path: str, model: str, engine: Optional[str], known: Mapping[str, str]
    ) -> Optional[tuple[Histogram, Histogram, Histogram]]:
        """Where the duration, the prompt and the completion of a whole good answer count; None: nowhere."""
        if path not in OPERATIONS:
            return None
        found = self._found_locked((path, model, engine, None, None), known)
        duration = self._duration.labels_locked(*found.shared, found.error_type)
        prompt, completion = (self._tokens.labels_locked(*found.shared, kind) for kind in ("input", "output"))
        return duration, prompt, completion

    def _found_locked(self, key: _Key, known: Mapping[str, str]) -> _Found:
        if known is not self._known:  # other engines, perhaps
            self._known = known
            self._by_key.clear()
        return self._by_key.get(key) or self._find_locked(key, known)

    def _find_locked(self, key: _Key, known: Mapping[str, str]) -> _Found:
        path, model, engine, error, fallback = key
        asked, _, answered = (fallback or "").partition("->")
        provider = NOBODY
        if engine is not None:
            provider = self._provider_of(answered or model, engine) or UNKNOWN
        shared = (
            OPERATIONS[path],
            PROVIDERS.get(provider, provider),
            known.get(asked, model) if asked else model,
            model if error is None else "",
        )
        error_type = "" if error is None else error if error in ERRORS else UNKNOWN
        found = _Found(shared, error_type)
        if len(self._by_key) >= SERIES_KEPT:
            self._by_key.clear()
        self._by_key[key] = found
        return found


def _was_streamed(event: RequestEvent) -> bool:
    """Whether an engine has sent a stream, rather than a complete answer that was only told as one."""
    for record in event.attempt_records:  # noqa: SIM110 - any() takes twice as long
        if record.first_s is not None and record.outcome == "ok":
            return True
    return False
