"""What is passed on as it is: a request's body whose type is not JSON, and an answer, as it comes.

Pure, but for an upload that a body refers to.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple, Optional, Union

from gateway.dialects.forms import FormReader, without_end
from gateway.steps import Steps
from gateway.uploads import Upload
from gateway.upstream.answers import Usage
from gateway.upstream.estimates import weigh_escaped
from gateway.upstream.response import EngineResponse
from gateway.upstream.sse import EVENT_MAX_BYTES, EventStream, StreamBroken

JSON_TYPE = b"application/json"
EVENTS_TYPE = b"text/event-stream"
TELLING_BYTES = 4096  # of a large JSON answer, at its begin and at its end
_USAGE = re.compile(rb'"usage"\s*:\s*(?=\{)')  # in a text, quotes have backslashes
_LAST = re.compile(rb'"type"\s*:\s*"response\.(?:completed|incomplete|failed)"')  # in a text, quotes have backslashes
_LAST_TYPES = ("response.completed", "response.incomplete", "response.failed")
_DELTA = re.compile(rb'"delta"\s*:\s*"')


class Sent(NamedTuple):
    """What a request to an engine begins with, and how long its body is; None: it comes in chunks."""

    begin: bytes
    length: Optional[int]


class Form:
    """A form, of which `begin` has come. `upload`: the rest; None: it is whole. `length`: of all of it, in bytes; None:
    nobody knows. `place`: where the model's name stands; None: nowhere. `reader`: has read so far."""

    __slots__ = ("_begin", "_come", "_length", "_place", "_reader", "content_type", "upload")

    def __init__(
        self,
        content_type: bytes,
        begin: bytes,
        place: Optional[tuple[int, int]],
        reader: FormReader,
        upload: Optional[Upload] = None,
        length: Optional[int] = None,
    ) -> None:
        self.content_type = content_type
        self._begin = begin
        self._come = len(begin)
        self._place = place
        self._reader = reader
        self.upload = upload
        self._length = length if upload is not None else len(begin)

    @property
    def in_chunks(self) -> bool:
        """Whether nobody knows how long it will be."""
        return self._length is None

    @property
    def spent(self) -> bool:
        """Whether something of it has been sent that nobody holds any more."""
        return self.upload is not None and self.upload.spent

    def take(self, upload: Upload) -> Steps[bytes]:
        """More of it; b"" at its end. Raises what the upload has failed with, and `invalid_body` for what may be no
        part of it: nothing of that must be sent."""
        data = yield from upload.take()
        self._reader.go_on(data)
        self._come += len(data)
        if not self._reader.over and (not data or self._come == self._length):
            raise without_end()  # while the engine has not all of it still
        return data

    def for_model(self, name: Optional[str]) -> Sent:
        """The form as an engine gets it that knows the model as `name`; None: as it is."""
        if name is None:
            return Sent(self._begin, self._length)
        model = name.encode("utf-8", "surrogatepass")
        if self._place is None:
            boundary = self._reader.boundary
            field = b'--%b\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n' % (boundary, model)
            begin = field + self._begin
        else:
            start, end = self._place
            begin = self._begin[:start] + model + self._begin[end:]
        length = self._length
        return Sent(begin, None if length is None else length + len(begin) - len(self._begin))


class PassedEvents(EventStream):
    """A body of any type where a stream has its events: nothing in it is looked at."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(hide_usage=False)
        self.started = True

    def feed(self, data: bytes) -> bytes:
        """Take payload, return it."""
        return data

    def end(self) -> bytes:
        """The body has ended well."""
        self.done = True
        return b""


class PassedJson(PassedEvents):
    """A large JSON answer, of which is kept what may tell of its usage: its begin and its end."""

    __slots__ = ("_begin", "_end")

    def __init__(self) -> None:
        super().__init__()
        self._begin = self._end = b""

    def feed(self, data: bytes) -> bytes:
        """Take payload, return it."""
        if len(self._begin) < TELLING_BYTES:
            self._begin += data[: TELLING_BYTES - len(self._begin)]
        self._end = (self._end + data)[-TELLING_BYTES:]
        return data

    def end(self) -> bytes:
        """The body has ended well."""
        self._look()
        return super().end()

    def _look(self) -> None:
        usage = _usage_told(self._begin, False) or _usage_told(self._end, True)
        if usage is not None and not usage.estimated:
            self.usage = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}


class UsageEvents(PassedJson):
    """Events of any endpoint, of which is kept what the last says that tells its usage: of each line, what of a large
    JSON answer."""

    __slots__ = ()

    def feed(self, data: bytes) -> bytes:
        """Take payload, return it."""
        first, *lines = data.split(b"\n")
        super().feed(first)
        if lines:
            self._look()
            for line in lines[:-1] if b'"usage"' in data else ():
                if b'"usage"' in line:
                    self._keep_alone(line)
                    self._look()
            self._keep_alone(lines[-1])
        return data

    def _keep_alone(self, line: bytes) -> None:
        self._begin = self._end = b""
        super().feed(line)


class ResponsesEvents(PassedEvents):
    """The events of OpenAI's Responses: passed on as they are, but it is seen what was used, and whether they end.

    `holds_last`: what comes from the last event on is given at the end, all at once.
    """

    __slots__ = ("_event", "_holds_last", "_line_begin")

    def __init__(self, holds_last: bool = False) -> None:
        super().__init__()
        self._holds_last = holds_last
        self._line_begin = bytearray()
        self._event = bytearray()  # the lines of one that has not ended, or of what is held back

    def feed(self, data: bytes) -> bytes:
        """Take payload, return whole events. Raises StreamBroken."""
        cut = data.rfind(b"\n") + 1
        given = bytearray()
        if cut:
            for line in (bytes(self._line_begin) + data[:cut]).splitlines(keepends=True):
                self._event += line
                if line.startswith(b"data:"):
                    self._look_at(line[5:])
                elif not (line.strip() or (self._holds_last and self.complete)):
                    given += self._event
                    self._event.clear()
            self._line_begin.clear()
        self._line_begin += data[cut:]
        if len(self._line_begin) + len(self._event) > EVENT_MAX_BYTES:
            raise StreamBroken(f"the engine sent more than {EVENT_MAX_BYTES} bytes for one event")
        return bytes(given)

    def _rest(self) -> bytes:
        rest = bytes(self._event + self._line_begin)
        self._event, self._line_begin = bytearray(), bytearray()
        return rest

    def _look_at(self, event: bytes) -> None:
        last = last_told(event)
        if last is None:
            self.weight += weigh_escaped(_delta_in(event))
            return
        self.finished = self.complete = True
        usage = usage_in(last.get("response"), 0)
        if not usage.estimated:
            self.usage = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}

    def end(self) -> bytes:
        """The body has ended. Raises StreamBroken where the events have not."""
        if not self.complete:
            raise StreamBroken("the engine's stream ended before its last event")
        return self._rest() + super().end()

    def finish(self) -> bytes:
        """End it, whatever its engine does: all of it has come."""
        return self._rest() + super().end()


def may_be_last(event: bytes) -> bool:
    """Whether it may be the last event of Responses, by a look at its bytes."""
    return _LAST.search(event) is not None


def last_told(event: bytes) -> Optional[dict[str, Any]]:
    """What the last event of Responses says, empty where that is no JSON; None: it is another one, though its client's
    words, given back, may have the type of a last one."""
    if not may_be_last(event):
        return None
    told = decoded(event)
    if not isinstance(told, dict):
        return {}
    return told if told.get("type") in _LAST_TYPES else None


def _delta_in(event: bytes) -> bytes:
    """The text that is new, as it is between its quotes; b"": there is none."""
    found = _DELTA.search(event)
    if found is None:
        return b""
    start = found.end()
    # A regular expression would need memory for each escape.
    plain = event[start:].replace(b"\\\\", b"__").replace(b'\\"', b"__")
    return event[start : start + max(0, plain.find(b'"'))]


def decoded(text: bytes) -> Any:
    """JSON; None: it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def media_type_of(response: EngineResponse) -> bytes:
    """What an engine says that its answer is."""
    return response.head.headers.get(b"content-type") or b"application/octet-stream"


def usage_in(answer: Any, prompt_tokens: int) -> Usage:
    """What an answer says of the tokens that it took, in the words of whichever endpoint; else `prompt_tokens`, as an
    estimate."""
    told = answer.get("usage") if isinstance(answer, dict) else None
    if isinstance(told, dict):
        prompt = _count(told, "prompt_tokens", "input_tokens", "total_tokens")
        if prompt is not None:
            return Usage(prompt, _count(told, "completion_tokens", "output_tokens") or 0, False)
    return Usage(prompt_tokens, 0, True)


def _usage_told(part: bytes, is_end: bool) -> Optional[Usage]:
    """What the begin or the end of a JSON answer says of the tokens that it took; None: nothing. What an inner object
    says is not it: that may be the client's own, given back."""
    for found in _USAGE.finditer(part):
        try:
            told, size = _DECODER.raw_decode(part[found.end() :].decode("latin-1"))
        except (ValueError, RecursionError):
            continue
        outside = part[found.end() + size :] if is_end else part[: found.start()]
        if (outside.count(b"}"), outside.count(b"{")) == ((1, 0) if is_end else (0, 1)):
            return usage_in({"usage": told}, 0)
    return None


def _count(told: dict[str, Any], *names: str) -> Optional[int]:
    for name in names:
        value: Union[object, int] = told.get(name)
        if type(value) is int and 0 <= value <= _TOKENS_MAX:
            return value
    return None


_TOKENS_MAX = 10_000_000
_DECODER = json.JSONDecoder()
