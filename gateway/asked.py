"""One request, as the steps of `serve` know it: what they read of it, and what they note for the answer and the report.

Owns the shape only. An `Asked` belongs to one thread at a time, but for `left`, which the server sets, and `flight`,
`batch` and `reused`, which who leads others notes in theirs while they wait.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple, Optional, Protocol

from gateway.account import Account
from gateway.errors import GatewayError
from gateway.inference import Call
from gateway.keys.auth import Identity
from gateway.telemetry.events import Mark, Trace
from gateway.telling import Telling
from gateway.uploads import Upload
from gateway.workers import Job


class Head(Protocol):
    """What is looked at of a request's head. Header names are in lower case; `content_length` None: there is none."""

    method: str
    path: str
    query: str
    headers: dict[bytes, bytes]
    repeated: frozenset[bytes]
    content_length: Optional[int]
    chunked: bool
    version_1_1: bool
    keep_alive: bool


class Party(Protocol):
    """Several requests of which one asks for all."""

    def needs(self, asked: Asked, /) -> bool:
        """Whether others wait for what `asked` is given. From any thread."""


class Reused(NamedTuple):
    """How a request was spared its call, or might have been. `cache` "": the cache is off, or it is not for it."""

    cache: str = ""
    """`hit`, `near`, `miss` or `bypass`."""
    age_s: float = 0.0
    similarity: Optional[float] = None
    """The cosine of a near hit that was found, or confirmed, by an embedding."""
    coalesced: bool = False
    """Another request's call has answered it."""
    saved_tokens: int = 0
    saved_usd: float = 0.0
    batch: int = 0
    """So many requests shared its call; 0: it had one of its own."""
    batch_wait_s: Optional[float] = None
    """How long a batch has gathered; only of the request that has led it."""


NOT_REUSED = Reused()
MISS = Reused("miss")
BYPASS = Reused("bypass")


class Asked(Job):
    """One request: what `serve` reads of it, and what it notes for the answer and the report."""

    body = b""
    body_taken = False  # it was wanted
    upload: Optional[Upload] = None  # the rest of it, which comes meanwhile
    fault: Optional[GatewayError] = None  # what is wrong with it
    identity: Optional[Identity] = None
    call: Optional[Call] = None
    account: Optional[Account] = None  # since it has been admitted
    limit_headers = b""  # lines that tell what is left to the caller
    named_model = ""  # by an invalid request
    model = ""  # the configured one that it asks for, whatever alias it uses; where one engine serves all, the first
    residency = ""  # the region that it must not leave; "": it may
    restricted = False  # its caller may not use all models
    left = False  # the client has
    cut = False  # by the gateway's own end
    enqueued_s = 0.0
    queue_s = 0.0
    trace: Optional[Trace] = None  # None: it is not traced
    marks: tuple[Mark, ...] = ()  # what it has done besides asking
    feed_began_s = 0.0  # when the console's feed, which is open for hours, had its head: that is its latency

    flight: Optional[Party] = None  # that it leads: others may wait for what it is given
    batch: Optional[Party] = None  # likewise
    shared: Optional[Any] = None  # what else its stream is for: a `reuse.serving.Shared`
    reused = NOT_REUSED
    telling: Optional[Telling] = None  # how its answer is told to a client of another dialect
    near: Optional[Any] = None  # by what a near duplicate of it is to be found (see reuse/caches.py)
    part_of = ""  # the id of the request that this one is a part of
    verification: Optional[dict[str, Any]] = None  # what is logged of it
    redis_s = 0.0  # that it has waited for Redis
    placed = False  # it has a worker's place, or has had it

    def __init__(self, head: Head, client_address: str, request_id: str, accepted_s: float) -> None:
        self.head = head
        self.client_address = client_address
        self.request_id = request_id
        self.accepted_s = accepted_s

    def note(self, name: str, began_s: float, attributes: Optional[dict[str, object]] = None, *others: Asked) -> None:
        """It has done something since then that is told of: one of MARKS. `others`: the requests it had to do with."""
        links = tuple((one.trace.trace_id, one.trace.span_id) for one in others if one.trace is not None)
        self.marks += (Mark(name, began_s, time.monotonic() - began_s, attributes, links),)

    @property
    def needed(self) -> bool:
        """Whether others wait for what it is given, so that its steps go on when its client has left."""
        flight, batch = self.flight, self.batch
        return (flight is not None and flight.needs(self)) or (batch is not None and batch.needs(self))
