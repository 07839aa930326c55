"""Whether what an engine's own `/v1/responses` answers is what its client has asked for, as `fitting` has it of chat.

No state, no lock, no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional

from gateway.dialects.cutting import Cutter
from gateway.dialects.responses.native import asked_of, corrected, put_back, said_in, with_schema
from gateway.errors import GatewayError
from gateway.fitting import Fitted, Judging, Shape, judged, shape_of, takes_long_to_shape, with_totals
from gateway.hedging import Answer
from gateway.schemas.reading import calls_prompt, faults_prompt
from gateway.schemas.schema import Schema
from gateway.upstream.answers import Usage, dump
from gateway.upstream.call import Call
from gateway.upstream.passed import decoded, last_told, may_be_last


def takes_long_to_shape_native(request: dict[str, Any]) -> bool:
    """Whether `give_native_shape` has to compile so much that it is for a thread."""
    return takes_long_to_shape(asked_of(request))


def give_native_shape(call: Call, kept: Mapping[str, Schema]) -> None:
    """Have the answers to a call of an engine's own endpoint checked for what it asks of them, if that is anything; as
    `fitting.give_shape` does. Raises `invalid_response_format`."""
    asked = asked_of(call.request)
    before = asked.get("response_format")
    shape = shape_of(asked, kept)
    if asked.get("response_format") is not before:
        schema = asked["response_format"]["json_schema"]["schema"]
        call.put("text", with_schema(call.request, schema)["text"])
    call.shape = None if shape is None else NativeShape(shape)


class NativeShape(Shape):
    """What Responses have to be like. Immutable."""

    __slots__ = ()

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape.schema, shape.tools)

    def fit(self, answer: dict[str, Any]) -> Fitted:
        said = said_in(answer)
        fitted = super().fit(said)
        if fitted.repairs and not fitted.faults:
            put_back(answer, said)
        return fitted._replace(answer=answer)

    def whole(self, call: Call, given: Answer) -> dict[str, Any]:
        answer = decoded(bytes(given.body))
        return answer if isinstance(answer, dict) else {}  # which says nothing, and does not fit

    def told(self, call: Call, usage: Usage, fitted: Fitted) -> Answer:
        totals = with_totals(fitted.answer, usage, ("input_tokens", "output_tokens"))
        return Answer(dump({**fitted.answer, "usage": totals}), usage)

    def again(self, call: Call, fitted: Fitted) -> Call:
        text, result = faults_prompt(fitted.faults), calls_prompt(fitted.faults)
        return call.part(call.path, corrected(call.unadapted, fitted.answer, text, result))

    def judging(self) -> Judging:
        return NativeJudging(self)


class NativeJudging(Judging):
    """One stream of such an engine: its last event, which repeats the whole, is held back."""

    __slots__ = ()

    def lines(self, lines: bytes, done: bool) -> tuple[bytes, bytes]:
        """Whole events; apart, where the stream is `done`, its last one."""
        if not done:
            return lines, b""
        start = _last_start(lines)
        told = next((event.data for event in Cutter().feed(lines[start:] + b"\n\n") if not event.is_comment), b"")
        self._body = bytearray(told)
        return lines[:start], lines[start:]

    def error(self) -> Optional[GatewayError]:
        """See `Judging.error`."""
        event = decoded(bytes(self._body or b""))
        answer = event.get("response") if isinstance(event, dict) else None
        return judged(self._shape, answer if isinstance(answer, dict) else None)


def _last_start(lines: bytes) -> int:
    """Where the last event begins, which is among these; their end: there is none."""
    found: list[tuple[int, bytes]] = []
    start = at = 0
    for line in lines.splitlines(keepends=True):
        if line.startswith(b"data:") and may_be_last(line):
            found.append((start, line[5:]))
        at += len(line)
        if not line.strip():
            start = at
    if len(found) == 1:  # mostly, and it may be large
        return found[0][0]
    return next((place for place, event in found if last_told(event) is not None), at)
