"""Whether what a model answers fits what its request asks for, by `response_format` or strict functions; and asking it
again where it does not.

Owns the schemas of late requests, compiled. Asks nobody but by the ask that it is given, and sends nothing; what cannot
be mended is an error, and never passed on as an answer.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, Callable, NamedTuple, Optional, Union

from gateway.dialects.cutting import Cutter
from gateway.errors import GatewayError, RequestRefused
from gateway.hedging import Answer
from gateway.jsontext import utf8
from gateway.schemas.compiled import Compiled, Together
from gateway.schemas.faults import Fault, SchemaRefused, TooComplex
from gateway.schemas.reading import ANY_OBJECT, calls_prompt, faults_prompt, read_answer
from gateway.schemas.schema import Schema
from gateway.schemas.tools import StrictTools, strict_parameters, strict_tools
from gateway.steps import ASIDE, Steps
from gateway.upstream import answers
from gateway.upstream.answers import Usage, dump
from gateway.upstream.assembly import Assembly, Unfit
from gateway.upstream.call import CHAT, Call
from gateway.upstream.stream import EngineStream

Given = Union[Answer, EngineStream]

_COMPILED = Compiled()
_SMALL_CHARACTERS = 512  # of schemas that are compiled in few milliseconds, whatever they are
_CUT_SHORT = ("length", "content_filter")
"""What ends an answer before it is whole, and is told to the client: that it does not fit says nothing of the model."""
_LARGE_BYTES = 65_536
_SMALL_BYTES = 16_384  # of a whole answer, which are judged in 4 ms at most
_TOLD_MAX_BYTES = 65_536  # of an answer that does not fit
_STREAM_MAX_BYTES = 4_194_304  # that are kept of a stream until its end
_DONE = re.compile(rb"(?:\A|(?<=[\r\n]))data:[ \t\v\f]*\[DONE\][ \t\v\f]*(?=[\r\n]|\Z)")
"""The end of a stream, however an engine has written it."""
_SCHEMA = "response_format.json_schema.schema"


class Fitted(NamedTuple):
    """An answer, and what is wrong with it. `repairs`: what was wrong, and has been put right in it."""

    answer: dict[str, Any]
    faults: Sequence[Fault]
    repairs: tuple[str, ...] = ()
    text: str = ""
    """What the first choice says that does not fit, as it came; where all fit, the first that has been repaired."""
    is_final: bool = False
    """Another answer would not be better: it is the schema that cannot be checked."""

    @property
    def fits_as_it_is(self) -> bool:
        """Whether it needs no repairs, either."""
        return not (self.faults or self.repairs)


class Limits(NamedTuple):
    """How long a model may be asked: so many times more, and so many seconds in all."""

    retries: int
    total_s: float


class Shape:
    """What the answers to one chat request have to be like, and how they are judged and asked for again. Immutable."""

    __slots__ = ("schema", "tools")

    def __init__(self, schema: Optional[Schema], tools: Optional[StrictTools]) -> None:
        self.schema = schema
        self.tools = tools

    def fit(self, answer: dict[str, Any]) -> Fitted:
        """Check every choice of a chat answer that is whole. Changes `answer` where it repairs something."""
        faults: list[Fault] = []
        repairs: dict[str, None] = {}
        faulty, repaired = "", ""
        for choice in answer.get("choices") or ():
            message = choice.get("message") if type(choice) is dict else None
            if type(message) is not dict:
                message = {}
            elif choice.get("finish_reason") in _CUT_SHORT or message.get("refusal"):
                continue
            said, before = _said(message), len(repairs)
            try:
                found = self._check(message, repairs)
            except TooComplex as error:
                return Fitted(answer, [Fault("$", f"cannot be checked: {error}")], (), said, is_final=True)
            if found:
                faulty = faulty if faults else said
                faults += found
            elif len(repairs) > before:
                repaired = repaired or said
        return Fitted(answer, faults, tuple(repairs), faulty if faults else repaired)

    def _check(self, message: dict[str, Any], repairs: dict[str, None]) -> list[Fault]:
        calls = message.get("tool_calls")
        if calls and self.tools is not None:
            read = self.tools.read(calls)
            for number, arguments in read.arguments.items():
                calls[number]["function"]["arguments"] = arguments
            repairs.update(dict.fromkeys(read.repairs))
            return list(read.faults)
        if calls or self.schema is None:
            return []
        content = message.get("content")
        reading = read_answer(content if isinstance(content, str) else "", self.schema)
        if reading.repairs:
            message["content"] = reading.text
            repairs.update(dict.fromkeys(reading.repairs))
        return list(reading.faults)

    def whole(self, call: Call, given: Answer) -> dict[str, Any]:
        """The answer as an object that may be changed."""
        if given.parsed is not None:
            return given.parsed
        body: Union[bytes, bytearray] = given.body
        if call.stream and not call.schema_retries:  # it has been made a stream; what is asked for again is none
            assembly = Assembly(CHAT)
            for event in Cutter().feed(_DONE.split(given.body)[0]):
                assembly.add(json.loads(event.data))
            body = assembly.body()
        answer: dict[str, Any] = json.loads(body)
        return answer

    def told(self, call: Call, usage: Usage, fitted: Fitted) -> Answer:
        """The answer for the client where it has been repaired, or asked for more than once. `usage`: of all asks."""
        answer = {**fitted.answer, "id": call.request_id, "model": call.served_model}
        answer["usage"] = with_totals(answer, usage, ("prompt_tokens", "completion_tokens"))
        if not call.stream:
            return Answer(dump(answer), usage, answer)
        if not call.wants_usage():
            answer.pop("usage", None)
        return Answer(answers.as_stream(answer, CHAT), usage, answer)

    def again(self, call: Call, fitted: Fitted) -> Call:
        """The call that asks for another answer, with the one that does not fit and what is wrong with it."""
        return call.again(_corrected(fitted))

    def judging(self) -> Judging:
        """What judges one stream."""
        return Judging(self)


def with_totals(answer: dict[str, Any], usage: Usage, names: tuple[str, str]) -> dict[str, Any]:
    """What an answer says of its usage, with the tokens of prompts and answers, by their `names` there."""
    theirs, (prompt, completion) = answer.get("usage"), names
    return {
        **(theirs if type(theirs) is dict else {}),
        prompt: usage.prompt_tokens,
        completion: usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _said(message: dict[str, Any]) -> str:
    content, calls = message.get("content"), message.get("tool_calls")
    if isinstance(content, str) and content:
        return content
    return dump(calls).decode() if calls else ""


def takes_long_to_shape(request: dict[str, Any]) -> bool:
    """Whether `give_shape` has to compile so much that it is for a thread."""
    form = request.get("response_format")
    told = form.get("json_schema") if isinstance(form, dict) else None
    documents = strict_parameters(request.get("tools"))
    if isinstance(told, dict) and told.get("schema") is not None:
        documents.append(told["schema"])
    return sum(map(_COMPILED.missing, documents)) > _SMALL_CHARACTERS


def give_shape(call: Call, kept: Mapping[str, Schema]) -> None:
    """Have a chat call's answers checked for what it asks of them, if that is anything.

    `kept`: the schemas that are used by their name alone; one that is stands in the request afterwards. Raises
    `invalid_response_format`.
    """
    request = dict(call.request)
    call.shape = shape_of(request, kept)
    if request.get("response_format") is not call.request.get("response_format"):
        call.put("response_format", request["response_format"])


def shape_of(request: dict[str, Any], kept: Mapping[str, Schema]) -> Optional[Shape]:
    """What a chat request asks its answers to be like; None: nothing that is checked.

    `kept`: the schemas that are used by their name alone; one that is stands in `request` afterwards. Raises
    `invalid_response_format`.
    """
    form, tools = request.get("response_format"), request.get("tools")
    together = Together(_COMPILED)
    schema = None if form is None else _schema_of(form, request, kept, together)
    try:
        strict = strict_tools(tools, together.schema) if tools else None
    except SchemaRefused as error:
        raise _unfit(error.path, error.message) from error
    return None if schema is None and strict is None else Shape(schema, strict)


def _schema_of(form: Any, request: dict[str, Any], kept: Mapping[str, Schema], together: Together) -> Optional[Schema]:
    if not isinstance(form, dict):
        raise _unfit("response_format", "must be an object with a type")
    kind = form.get("type")
    if kind == "json_object":
        return ANY_OBJECT
    if kind != "json_schema":
        return None  # text, or what only some engines know
    told = form.get("json_schema")
    if not isinstance(told, dict):
        raise _unfit("response_format.json_schema", "must be an object")
    if told.get("schema") is not None:
        try:
            return together.schema(told["schema"])
        except SchemaRefused as error:
            raise _unfit(f"{_SCHEMA}{error.path[1:]}", error.message) from error
    name = told.get("name")
    schema = kept.get(name) if isinstance(name, str) else None
    if schema is None:
        raise _unfit("response_format.json_schema.name", "has no schema, and is none that the gateway keeps")
    request["response_format"] = {**form, "json_schema": {**told, "schema": schema.document}}
    return schema


def _unfit(where: str, what: str) -> RequestRefused:
    return RequestRefused("invalid_response_format", f"{where} {what}", param=where)


# --- asking again --------------------------------------------------------------------------------------------------


def fitting(ask: Callable[[Call], Steps[Given]], call: Call, shape: Shape, limits: Limits) -> Steps[Given]:
    """An answer that fits, of at most so many more asks; or a stream, which is judged as it goes (`Judging`).

    Each ask names the faults of the answer before. What they take adds up in `call`. Raises GatewayError.
    """
    until_s = time.monotonic() + limits.total_s
    given = yield from ask(call)
    while not isinstance(given, EngineStream):
        if given.parsed is None or len(given.body) > _LARGE_BYTES:
            yield ASIDE
        fitted = shape.fit(shape.whole(call, given))
        if not fitted.faults:
            call.repairs, usage = fitted.repairs, call.usage
            if usage is None or not (fitted.repairs or call.schema_retries):
                return given
            return shape.told(call, usage, fitted)
        left_s = until_s - time.monotonic()
        if fitted.is_final or call.schema_retries >= limits.retries or left_s <= 0:
            raise misfit(fitted)
        call.schema_retries += 1
        asked = shape.again(call, fitted)
        asked.limit_s = left_s
        try:
            given = yield from ask(asked)
        except RequestRefused as refusal:  # of what the client has not written
            raise misfit(fitted) from refusal
        finally:
            _add(call, asked)
    return given


def _corrected(fitted: Fitted) -> list[dict[str, Any]]:
    """What another ask says more: the answer, and what is wrong with it."""
    choices: list[Any] = fitted.answer.get("choices") or []
    if len(choices) != 1:
        return []  # which of several answers is to be corrected cannot be said
    said = choices[0].get("message") if type(choices[0]) is dict else None
    said = said if type(said) is dict else {}
    calls = said.get("tool_calls")
    calls = [one for one in calls if type(one) is dict] if type(calls) is list else []
    if not calls:
        told = faults_prompt(fitted.faults)
        return [{"role": "assistant", "content": fitted.text}, {"role": "user", "content": told}]
    told = calls_prompt(fitted.faults)
    results = [{"role": "tool", "tool_call_id": one.get("id") or "", "content": told} for one in calls]
    again = {"role": "assistant", "content": said.get("content"), "tool_calls": calls}
    if said.get("thinking_blocks"):
        again["thinking_blocks"] = said["thinking_blocks"]
    return [again, *results]


def _add(call: Call, again: Call) -> None:
    """Note in a call what another ask of it has taken, and who has answered that."""
    call.tell_of(again)
    call.attempts += again.attempts
    before, more = call.usage, again.usage
    if before is not None and not call.asks:
        call.asks.append((call.served_model, before))
    if more is not None:
        call.asks.append((again.served_model, more))
    if again.engine_id is not None:
        call.engine_id, call.served_model, call.fallback = again.engine_id, again.served_model, again.fallback
        call.region = again.region
        call.context_tokens = again.context_tokens
    if before is not None and more is not None:
        call.usage = Usage(
            before.prompt_tokens + more.prompt_tokens,
            before.completion_tokens + more.completion_tokens,
            before.estimated or more.estimated,
        )


def misfit(fitted: Fitted) -> GatewayError:
    """The error of an answer that does not fit. Of a long one it has the beginning."""
    details = [{"path": fault.path, "message": fault.message} for fault in fitted.faults]
    first = next(iter(fitted.faults))
    text = f"the model's answer does not fit its schema: {first.path} {first.message[:500]}"
    said = utf8(fitted.text)
    told: dict[str, Any] = {"details": details, "text": fitted.text}
    if len(said) > _TOLD_MAX_BYTES:
        told = {"details": details, "text": said[:_TOLD_MAX_BYTES].decode("utf-8", "ignore"), "truncated": True}
    return GatewayError("invalid_model_output", text, details=told)


# --- streams -------------------------------------------------------------------------------------------------------


class Judging:
    """One stream on its way: its end is held back until it is known whether the whole fits.

    Used by one thread at a time.
    """

    __slots__ = ("_assembly", "_body", "_cutter", "_shape", "_size")

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._cutter = Cutter()
        self._assembly = Assembly(CHAT)
        self._size = 0
        self._body: Optional[bytearray] = None  # the whole answer; None: it has not ended, or makes none

    def lines(self, lines: bytes, done: bool) -> tuple[bytes, bytes]:
        """Whole lines; apart, where the stream is `done`, its `[DONE]`: `error` says whether the client gets that."""
        before, end = lines, b""
        if done:
            before, mark, rest = lines.rpartition(b"data:")
            end = mark + rest
        self._size += len(before)
        for event in self._cutter.feed(before):
            if not event.is_comment and self._size <= _STREAM_MAX_BYTES:
                self._add(event.data)
        if done and self._size <= _STREAM_MAX_BYTES:
            with contextlib.suppress(Unfit):
                self._body = self._assembly.body()
        return before, end

    @property
    def takes_long(self) -> bool:
        """Whether `error` looks at so much that it is for a thread."""
        return self._body is not None and len(self._body) > _SMALL_BYTES

    def _add(self, data: bytes) -> None:
        try:
            self._assembly.add(json.loads(data))
        except (Unfit, ValueError, RecursionError):
            self._size = _STREAM_MAX_BYTES + 1

    def error(self) -> Optional[GatewayError]:
        """What the client gets in the place of the end, which has come; None: the end."""
        return judged(self._shape, None if self._body is None else json.loads(self._body))


def judged(shape: Shape, answer: Optional[dict[str, Any]]) -> Optional[GatewayError]:
    """What is wrong with the answer that a stream, which has been sent, makes; None: it fits. `answer` None: it makes
    none."""
    if answer is None:
        fault = Fault("$", f"cannot be checked: it has more than {_STREAM_MAX_BYTES} bytes, or makes no answer")
        return misfit(Fitted({}, [fault]))
    fitted = shape.fit(answer)
    if fitted.fits_as_it_is:
        return None
    if not fitted.faults:  # what has been sent cannot be repaired
        fitted = fitted._replace(faults=[Fault("$", f"is not JSON alone: {', '.join(fitted.repairs)}")])
    return misfit(fitted)
