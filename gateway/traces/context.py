"""Trace context: what a caller's `traceparent` and `tracestate` say, what engines are told, and what is sampled.

Pure, but for the ids that are made in advance: a list whose single operations are atomic. What a caller says is read
strictly and written anew: nothing of it gets to an engine that does not fit the grammar.

Headers: https://www.w3.org/TR/trace-context-2/, sampling: https://opentelemetry.io/docs/specs/otel/trace/sdk/#sampling
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Callable, NamedTuple, Optional

from gateway.telemetry.events import Trace

PARENT_CHARS = 55  # of a `traceparent` of version 00
MEMBERS_MAX = 32
STATE_CHARS_MAX = 512  # of a `tracestate`: what everybody has to pass on
LONG_MEMBER_CHARS = 128  # the first to be left out of a longer one
RANDOM_DIGITS = 14  # at the end of a trace id: 56 bits, that are random by W3C's level 2
MADE_AT_ONCE = 256  # ids of spans
NO_SPAN = "0" * 16
_ID = re.compile("[0-9a-f]{16}")
NEVER = "g"  # behind all hex digits
_SAMPLED, _RANDOM = 1, 2  # bits of the flags
_FLAGS = ("00", "01", "02", "03")

# 00 has nothing behind its flags; what later versions have there stands behind a dash.
_PARENT = re.compile("(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_MEMBER = re.compile(rb"[a-z0-9][a-z0-9_*/@-]{0,255}=[ -+\--<>-~]{0,255}[!-+\--<>-~]")
_RANDOMNESS = re.compile(r"(?:^|,)ot=(?:[^,]*;)?rv:([0-9a-f]{14})(?=[;,]|$)")
_random = random.Random()  # seeded by the operating system
_ids: list[str] = []  # made already, by many: one at a time takes half as long again

_new = tuple.__new__
Begin = Callable[[Mapping[bytes, bytes], frozenset[bytes], str], Trace]


class Caller(NamedTuple):
    """What a request's headers say of its trace."""

    trace_id: str
    span_id: str
    sampled: bool
    random: bool
    """The right-most 56 bits of the trace id are."""
    state: str


def new_span_id() -> str:
    """16 hex digits, never all zero. Thread-safe."""
    try:
        return _ids.pop()
    except IndexError:
        made = _ID.findall(_random.randbytes(8 * MADE_AT_ONCE).hex())
        _ids.extend(filter(NO_SPAN.__ne__, made))  # two threads at once make twice as many
        return new_span_id()


def new_trace_id() -> str:
    """32 hex digits, of which no half is all zero. Thread-safe."""
    return new_span_id() + new_span_id()


def read(headers: Mapping[bytes, bytes], repeated: frozenset[bytes]) -> Optional[Caller]:
    """What the headers of a request say, by their names in lower case; None: nothing, or nothing that is right.
    `repeated`: those that came more than once, joined by commas."""
    value = headers.get(b"traceparent")
    if value is None or b"traceparent" in repeated:
        return None
    match = _PARENT.fullmatch(value.decode("latin-1"))
    if match is None or (len(value) != PARENT_CHARS and value.startswith(b"00")):
        return None
    trace_id, span_id, flags = match.groups()
    bits, state = int(flags, 16), headers.get(b"tracestate")
    return Caller(trace_id, span_id, bits & _SAMPLED > 0, bits & _RANDOM > 0, read_state(state) if state else "")


def read_state(value: bytes) -> str:
    """A `tracestate` as it is passed on; "": there is none, or it breaks its grammar somewhere.

    Members and their order stay, the space around them goes. Of one that is too long, first the long members are left
    out, then those at its end.
    """
    members = [member for member in (part.strip(b" \t") for part in value.split(b",")) if member]
    if len(members) > MEMBERS_MAX or not all(map(_MEMBER.fullmatch, members)):
        return ""
    while sum(map(len, members)) + len(members) - 1 > STATE_CHARS_MAX:
        long = [index for index, member in enumerate(members) if len(member) > LONG_MEMBER_CHARS]
        del members[long[-1] if long else -1]
    return b",".join(members).decode()


def lines_for(trace: Trace, span_id: str) -> str:
    """The header lines by which an engine is told of the trace, with the span that asks it."""
    trace_id, _, _, sampled, state, is_random, _ = trace
    line = f"traceparent: 00-{trace_id}-{span_id}-{_FLAGS[sampled + is_random * 2]}\r\n"
    return f"{line}tracestate: {state}\r\n" if state else line


def part_of(trace: Trace) -> Trace:
    """The trace of a request that is a part of another one: a child of its span."""
    return trace._replace(span_id=new_span_id(), parent_id=trace.span_id)


def is_sampled(trace_id: str, state: str, ratio: float) -> bool:
    """Whether a trace is among so large a share of all: the same ones for everybody, and for a larger share those of a
    smaller one, too. Decides by the last 56 bits of its id, or by the randomness that its `tracestate` has instead.

    https://opentelemetry.io/docs/specs/otel/trace/tracestate-probability-sampling/
    """
    given = _RANDOMNESS.search(state) if state else None
    return (trace_id[-RANDOM_DIGITS:] if given is None else given[1]) >= rejected_below(ratio)


def rejected_below(ratio: float) -> str:
    """The hex digits below which a trace's randomness is not sampled; "g", which is above all, where none is."""
    digits = f"{round((1.0 - ratio) * (1 << 4 * RANDOM_DIGITS)):0{RANDOM_DIGITS}x}"
    return digits if len(digits) == RANDOM_DIGITS else NEVER


def beginner(sampler: str, ratio: float, tells: bool) -> Begin:
    """What begins the trace of a request, with its headers, those that are repeated, and its id. Thread-safe.

    `sampler`: as OTEL_TRACES_SAMPLER names it, `ratio` for those that need one. `tells`: engines are told of it, and
    what a caller says counts. Where the gateway has made the request's id, a UUID, the trace's is the same. The span
    with which a trace begins has half of its id: one random number is enough, and more would take time.
    """
    by_parent, kind = sampler.startswith("parentbased_"), sampler.rpartition("parentbased_")[2]
    threshold = {"always_on": "", "always_off": NEVER}.get(kind, rejected_below(ratio))

    def begin(headers: Mapping[bytes, bytes], repeated: frozenset[bytes], request_id: str) -> Trace:
        if tells and b"traceparent" in headers:
            caller = read(headers, repeated)
            if caller is not None:
                sampled = caller.sampled if by_parent else _sampled(caller.trace_id, caller.state)
                trace_id, span_id, _, is_random, state = caller
                return Trace(trace_id, new_span_id(), span_id, sampled, state, is_random, tells)
        if b"x-request-id" in headers or b"request-id" in headers:
            trace_id = new_trace_id()
        else:
            trace_id = request_id.replace("-", "")  # its last 62 bits are random
        # Not by `Trace(...)`, which takes twice as long.
        return _new(Trace, (trace_id, trace_id[16:], "", trace_id[-RANDOM_DIGITS:] >= threshold, "", True, tells))

    def _sampled(trace_id: str, state: str) -> bool:
        if kind == "traceidratio":
            return is_sampled(trace_id, state, ratio)
        return kind == "always_on"

    return begin
