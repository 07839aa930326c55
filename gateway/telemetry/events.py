"""The facts that telemetry is made of: one immutable record per finished request, one per log line.

Owns the shapes only. A request emits exactly one RequestEvent, after its last byte; metrics, the
log line and everything counted later are derived from it, and nothing else counts anything.
Nothing here locks, formats or does I/O. NamedTuples rather than frozen dataclasses: one is built
per request on the request's own thread, and a tuple is filled by one C call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

OUTCOMES: frozenset[str] = frozenset(
    {
        "ok",
        "refused",
        "connect_timeout",
        "reset",
        "timeout",
        "hung",
        "error",
        "not_implemented",
        "invalid",
        "truncated",
        "unasked_stream",
        "moved",
        "rate_limited",
        "unauthorized",
        "rejected",
        "cancelled",
    }
)
"""Every way an attempt at an engine can end; the closed set behind the label `outcome`."""


class Trace(NamedTuple):
    """Where a request stands in a trace (W3C Trace Context). Ids in lower-case hex."""

    trace_id: str
    """32 digits."""
    span_id: str
    """16 digits: of the request's own span."""
    parent_id: str = ""
    """The caller's span; "": the trace begins here."""
    sampled: bool = False
    """Whether the request is to be traced whatever becomes of it; engines are told so."""
    state: str = ""
    """The caller's `tracestate`, passed on as it is."""
    random: bool = True
    """The right-most 56 bits of the trace id are, as far as anybody has said."""
    told: bool = True
    """Engines are told of it."""


MARKS: frozenset[str] = frozenset({"queue", "place", "pause", "cache", "batch", "shared", "sandbox", "judge"})
"""What a request may have done besides asking engines: waited for a worker's place, for an engine's, before it asked
again; found a kept answer, or looked for one elsewhere or by its meaning; gathered, or waited for its batch; waited for
another's call; had a program run; asked a judge."""


class Mark(NamedTuple):
    """A part of a request's time that is not an attempt: a wait, a look into the cache, a program that ran."""

    name: str
    """One of MARKS."""
    began_s: float
    """Monotonic, as `RequestEvent.accepted_s`."""
    duration_s: float
    attributes: Mapping[str, object] | None = None
    """JSON-like values; never a text of a prompt or an answer."""
    links: tuple[tuple[str, str], ...] = ()
    """The spans of other requests that it had to do with: trace id, span id."""


class AttemptRecord(NamedTuple):
    """One request really sent (or tried to be sent) to one engine."""

    model: str
    """The gateway's name of the model the engine was asked for."""
    engine: str
    """The engine's id."""
    outcome: str
    """One of OUTCOMES."""
    duration_s: float
    """From taking a connection to the answer's last byte, or to the failure."""
    began_s: float = 0.0
    """Monotonic, as `RequestEvent.accepted_s`."""
    first_s: float | None = None
    """From its begin to a stream's first event; None for everything else."""
    status: int | None = None
    """The engine's, of a failure that had one; None: it had none, or it answered."""
    span_id: str = ""
    """Of the attempt's span, which the engine was told; 16 hex digits, or ""."""


class RequestEvent(NamedTuple):
    """Everything that is told about one finished request. Immutable; safe to share."""

    finished_unix_s: float
    """When the last byte was written (Unix seconds)."""
    request_id: str
    method: str
    path: str
    """Path without query, as the client sent it; metrics map unknown paths to `other`."""
    status: int
    """What the client got; 499 when it left first."""
    error: str | None
    """The error code of contract 7, None for a good answer."""
    latency_s: float
    """From the request's first byte to the answer's last."""
    queue_s: float = 0.0
    """Waiting for a worker; 0 when it never queued."""
    engine_s: float = 0.0
    """Spent asking engines, over all attempts; 0 when none was asked."""
    ttft_s: float | None = None
    """Time to the first event of a stream; None for everything else."""
    stream: bool = False
    model: str | None = None
    """The model that answered; for errors the one asked for; None when there is none."""
    engine: str | None = None
    """The engine that answered, or the last one asked; None when none was asked."""
    attempts: int = 0
    fallback: str | None = None
    """`70b->13b` when another model answered than the one asked for."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    usage_estimated: bool = False
    """True when the engine gave no usage and the tokens were estimated by the texts."""
    key: str | None = None
    """The name of the caller's key, never the key."""
    client: str = ""
    """The client's address."""
    attempt_records: tuple[AttemptRecord, ...] = ()
    retries: tuple[tuple[str, str], ...] = ()
    """(model, reason) of each retry; reason is the outcome that made it necessary."""
    extra: Mapping[str, object] | None = None
    """Further keys of the log line (bodies under LOG_BODIES=on); never a secret."""
    accepted_s: float = 0.0
    """When the request's first byte came (monotonic): what attempts and marks begin after."""
    trace: Trace | None = None
    """None: OTEL_PROPAGATORS=none and nobody traces."""
    marks: tuple[Mark, ...] = ()
    """The parts of its time that are no attempts, in the order of their ends."""


class LogRecord(NamedTuple):
    """One line of the gateway's own log: a start, an engine going out, a reload."""

    unix_s: float
    level: str
    """debug, info, warning or error."""
    event: str
    """A short name, e.g. engine_down."""
    fields: Mapping[str, object]
    """JSON-like values; never a secret."""
