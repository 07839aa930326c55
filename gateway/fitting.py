"""Whether what a model answers fits what its request asks for, by `response_format` or strict functions; and asking it
again where it does not.

Owns the schemas of late requests, compiled: `lru_cache` guards them. Asks nobody but by the ask that it is given, and
sends nothing; what cannot be mended is an error, and never passed on as an answer.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, Callable, NamedTuple, Optional, Union

from gateway.dialects.cutting import Cutter
from gateway.errors import GatewayError, RequestRefused
from gateway.hedging import Answer
from gateway.schemas.faults import Fault, SchemaRefused, TooComplex
from gateway.schemas.reading import ANY_OBJECT, faults_prompt, read_answer
from gateway.schemas.schema import Schema, compile_schema
from gateway.schemas.tools import StrictTools, strict_tools
from gateway.steps import ASIDE, Steps
from gateway.upstream import answers
from gateway.upstream.answers import Usage, dump
from gateway.upstream.assembly import Assembly, Unfit
from gateway.upstream.call import CHAT, Call
from gateway.upstream.stream import EngineStream

Given = Union[Answer, EngineStream]

_KEPT = 256  # compiled schemas
_CUT_SHORT = ("length", "content_filter")
"""What ends an answer before it is whole, and is told to the client: that it does not fit says nothing of the model."""
_LARGE_BYTES = 65_536
_STREAM_MAX_BYTES = 4_194_304  # that are kept of a stream until its end
_DONE = b"data: [DONE]"
_SCHEMA = "response_format.json_schema.schema"


class Fitted(NamedTuple):
    """An answer, and what is wrong with it. `repairs`: what was wrong, and has been put right in it."""

    answer: dict[str, Any]
    faults: Sequence[Fault]
    repairs: tuple[str, ...]
    text: str
    """What the first choice that does not fit says."""


class Shape:
    """What the answers to one request have to be like. Immutable."""

    __slots__ = ("_schema", "_tools")

    def __init__(self, schema: Optional[Schema], tools: Optional[StrictTools]) -> None:
        self._schema = schema
        self._tools = tools

    def fit(self, answer: dict[str, Any]) -> Fitted:
        """Check every choice of a chat answer that is whole. Changes `answer` where it repairs something."""
        faults: list[Fault] = []
        repairs: dict[str, None] = {}
        text = ""
        for choice in answer.get("choices") or ():
            message = choice.get("message") or {}
            if choice.get("finish_reason") in _CUT_SHORT or message.get("refusal"):
                continue
            try:
                found = self._check(message, repairs)
            except TooComplex as error:
                found = [Fault("$", f"cannot be checked: {error}")]
            if found and not faults:
                text = message.get("content") or dump(message.get("tool_calls")).decode()
            faults += found
        return Fitted(answer, faults, tuple(repairs), text)

    def _check(self, message: dict[str, Any], repairs: dict[str, None]) -> list[Fault]:
        calls = message.get("tool_calls")
        if calls and self._tools is not None:
            read = self._tools.read(calls)
            for number, arguments in read.arguments.items():
                calls[number]["function"]["arguments"] = arguments
            repairs.update(dict.fromkeys(read.repairs))
            return list(read.faults)
        if calls or self._schema is None:
            return []
        content = message.get("content")
        reading = read_answer(content if isinstance(content, str) else "", self._schema)
        if reading.repairs:
            message["content"] = reading.text
            repairs.update(dict.fromkeys(reading.repairs))
        return list(reading.faults)


def shape_of(request: dict[str, Any], kept: Mapping[str, Schema]) -> Optional[Shape]:
    """What a chat request asks its answers to be like; None: nothing that is checked.

    `kept`: the schemas that are used by their name alone; one that is stands in `request` afterwards. Raises
    `invalid_response_format`.
    """
    form, tools = request.get("response_format"), request.get("tools")
    schema = None if form is None else _schema_of(form, request, kept)
    try:
        strict = strict_tools(tools) if tools else None
    except SchemaRefused as error:
        raise _unfit(error.path, error.message) from error
    return None if schema is None and strict is None else Shape(schema, strict)


def _schema_of(form: Any, request: dict[str, Any], kept: Mapping[str, Schema]) -> Optional[Schema]:
    kind = form.get("type") if isinstance(form, dict) else None
    if kind == "json_object":
        return ANY_OBJECT
    if kind != "json_schema":
        return None  # text, or what only some engines know
    told = form.get("json_schema")
    if not isinstance(told, dict):
        raise _unfit("response_format.json_schema", "must be an object")
    if told.get("schema") is not None:
        try:
            return _compiled(json.dumps(told["schema"], sort_keys=True))
        except SchemaRefused as error:
            raise _unfit(f"{_SCHEMA}{error.path[1:]}", error.message) from error
    name = told.get("name")
    schema = kept.get(name) if isinstance(name, str) else None
    if schema is None:
        raise _unfit("response_format.json_schema.name", "has no schema, and is none that the gateway keeps")
    request["response_format"] = {**form, "json_schema": {**told, "schema": schema.document}}
    return schema


@functools.lru_cache(maxsize=_KEPT)
def _compiled(text: str) -> Schema:
    return compile_schema(json.loads(text))


def _unfit(where: str, what: str) -> RequestRefused:
    return RequestRefused("invalid_response_format", f"{where} {what}", param=where)


# --- asking again --------------------------------------------------------------------------------------------------


def fitting(ask: Callable[[Call], Steps[Given]], call: Call, shape: Shape, retries: int) -> Steps[Given]:
    """An answer that fits, of at most so many more asks; or a stream, which is judged as it goes (`Judging`).

    Each ask names the faults of the answer before. What they take adds up in `call`. Raises GatewayError.
    """
    asked = call
    while True:
        given = yield from ask(asked)
        if asked is not call:
            _add(call, asked)
        if isinstance(given, EngineStream):
            return given
        if given.parsed is None or len(given.body) > _LARGE_BYTES:
            yield ASIDE
        fitted = shape.fit(_whole(call, given))
        if not fitted.faults:
            return _told(call, given, fitted)
        if call.schema_retries >= retries:
            raise misfit(fitted)
        call.schema_retries += 1
        asked = call.again(_corrected(fitted))


def _whole(call: Call, given: Answer) -> dict[str, Any]:
    """The answer as an object that may be changed."""
    if given.parsed is not None:
        return given.parsed
    answer: dict[str, Any] = json.loads(given.body)  # too large for a stream to be made of it: so it is none
    return answer


def _told(call: Call, given: Answer, fitted: Fitted) -> Answer:
    """The answer for the client: as it came, unless it has been repaired, or asked for more than once."""
    call.repairs = fitted.repairs
    usage = call.usage
    if usage is None or not (fitted.repairs or call.schema_retries):
        return given
    answer = {**fitted.answer, "id": call.request_id, "model": call.served_model}
    total = usage.prompt_tokens + usage.completion_tokens
    answer["usage"] = {
        **(answer.get("usage") or {}),
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": total,
    }
    if not call.stream:
        return Answer(dump(answer), usage, answer)
    if not call.wants_usage():
        answer.pop("usage", None)
    return Answer(answers.as_stream(answer, CHAT), usage, answer)


def _corrected(fitted: Fitted) -> list[dict[str, Any]]:
    """What another ask says more: the answer, and what is wrong with it."""
    choices: list[Any] = fitted.answer.get("choices") or []
    if len(choices) != 1:
        return []  # which of several answers is to be corrected cannot be said
    said = choices[0]["message"]
    told = faults_prompt(fitted.faults)
    calls = said.get("tool_calls")
    if not calls:
        return [{"role": "assistant", "content": fitted.text}, {"role": "user", "content": told}]
    results = [{"role": "tool", "tool_call_id": one.get("id") or "", "content": told} for one in calls]
    again = {"role": "assistant", "content": said.get("content"), "tool_calls": calls}
    if said.get("thinking_blocks"):
        again["thinking_blocks"] = said["thinking_blocks"]
    return [again, *results]


def _add(call: Call, again: Call) -> None:
    """Note in a call what another ask of it has taken, and who has answered that."""
    call.tell_of(again)
    call.attempts += again.attempts
    call.engine_id, call.served_model, call.fallback = again.engine_id, again.served_model, again.fallback
    call.context_tokens = again.context_tokens
    before, more = call.usage, again.usage
    if before is not None and more is not None:
        call.usage = Usage(
            before.prompt_tokens + more.prompt_tokens,
            before.completion_tokens + more.completion_tokens,
            before.estimated or more.estimated,
        )


def misfit(fitted: Fitted) -> GatewayError:
    """The error of an answer that does not fit."""
    details = [{"path": fault.path, "message": fault.message} for fault in fitted.faults]
    first = next(iter(fitted.faults))
    text = f"the model's answer does not fit its schema: {first.path} {first.message[:500]}"
    return GatewayError("invalid_model_output", text, details={"details": details, "text": fitted.text})


# --- streams -------------------------------------------------------------------------------------------------------


class Judging:
    """One client's stream on its way: its end is held back until it is known whether the whole fits.

    Used by one thread at a time.
    """

    __slots__ = ("_assembly", "_cutter", "_shape", "_size")

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._cutter = Cutter()
        self._assembly = Assembly(CHAT)
        self._size = 0

    def lines(self, lines: bytes) -> tuple[bytes, Optional[GatewayError]]:
        """Of whole lines those that the client gets, and the error that it gets in the place of the end."""
        at = 0 if lines.startswith(_DONE) else lines.find(b"\n" + _DONE) + 1
        ends = at > 0 or lines.startswith(_DONE)
        before = lines[:at] if ends else lines
        self._size += len(before)
        for event in self._cutter.feed(before):
            if not event.is_comment and self._size <= _STREAM_MAX_BYTES:
                self._add(event.data)
        if not ends:
            return lines, None
        error = self._judge()
        return (lines, None) if error is None else (before, error)

    def _add(self, data: bytes) -> None:
        try:
            self._assembly.add(json.loads(data))
        except (Unfit, ValueError, RecursionError):
            self._size = _STREAM_MAX_BYTES + 1

    def _judge(self) -> Optional[GatewayError]:
        if self._size > _STREAM_MAX_BYTES:
            fault = Fault("$", f"cannot be checked: it has more than {_STREAM_MAX_BYTES} bytes, or makes no answer")
            return misfit(Fitted({}, [fault], (), ""))
        fitted = self._shape.fit(json.loads(self._assembly.body()))
        if fitted.repairs:  # what has been sent cannot be repaired
            return misfit(fitted._replace(faults=[Fault("$", "is not JSON alone")]))
        return misfit(fitted) if fitted.faults else None
