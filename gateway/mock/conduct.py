"""From a request to its answer: probes, the control endpoint, and inference as the behaviour in force wants it.

Works on the connection's thread and has no lock. It never accepts or reads, and does not know what an answer's text
says, nor in which dialect.
"""

from __future__ import annotations

import contextlib
import json
from itertools import chain
from typing import Any, Optional

from gateway.mock import answers, messages
from gateway.mock.behaviours import Behaviour, BehaviourError
from gateway.mock.connection import CallerLeft, Connection, EngineClosed, ProtocolError
from gateway.mock.endpoints import ANTHROPIC, ENDPOINTS, OPENAI, Dialect, Endpoint
from gateway.mock.passing import Raw, form
from gateway.mock.saying import Asked, BadRequest, encode
from gateway.mock.state import Gate

_INVALID = "invalid_request_error"
_NOT_JSON = b'{"choices": [this is not JSON'
_CUT = ("drop_mid_stream", "end_mid_stream", "reset_mid_stream", "truncate")
# After so many content events a stream is spoilt; None: after `events`, or two.
_SPOILT_AFTER = {
    "malformed": 0,
    "truncate": 1,
    "drop_mid_stream": None,
    "end_mid_stream": None,
    "reset_mid_stream": None,
    "error_mid_stream": None,
    "hang_mid_stream": None,
}
_ERRORS: dict[str, tuple[Optional[int], str, str]] = {
    "error": (None, "server_error", "mock error {status} from {model}"),
    "rate_limit": (429, "rate_limit_error", "{model} is rate limited"),
    "unauthorized": (401, "authentication_error", "Invalid API Key"),
    "bad_request": (400, _INVALID, "{model} rejects this request"),
    "loading": (503, "unavailable_error", "Loading model"),
    "overloaded": (529, "overloaded_error", "{model} is overloaded"),
}
_METHODS_BY_PATH = {
    "/health": ("GET",),
    "/v1/models": ("GET",),
    "/control": ("GET", "POST"),
    "/control/requests": ("GET",),
    **{path: (endpoint.method,) for path, endpoint in ENDPOINTS.items()},
}


class Conduct(Connection):
    """Answers the requests of one connection, one after the other, until its `keep_alive` is False."""

    _behaviour: Behaviour  # that answers the inference request
    _gate: Optional[Gate]  # that holds its stream
    _endpoint: Endpoint  # that it asks
    _lines: list[str]  # of the head of its answer
    _in_flight = 0  # 1 until it counts as answered

    def handle(self) -> None:
        """Called by the server, on the connection's thread."""
        with contextlib.suppress(OSError, CallerLeft, EngineClosed):
            try:
                while self.keep_alive:
                    self.read()
                    self._answer()
            except ProtocolError as fault:
                self._refuse(fault.args[0], fault.args[1])

    def _answer(self) -> None:
        allowed = _METHODS_BY_PATH.get(self.path)
        if allowed is None:
            self._refuse(404, f"no such path {self.path}", "not_found_error")
        elif self.method not in allowed:
            self._refuse(405, f"use {' or '.join(allowed)}", _INVALID, f"Allow: {', '.join(allowed)}")
        elif self.path == "/control/requests":
            self._reply({"requests": self.state.requests})
        elif self.path == "/control":
            self._control()
        elif self.path in ENDPOINTS:
            self._infer(ENDPOINTS[self.path])
        else:
            self.state.count(probes=1)
            if self.path == "/v1/models":
                self._list()
            elif self.state.behaviour.name == "loading":
                self._refuse(503, "Loading model", "unavailable_error")
            else:
                self._reply({"status": "ok"})

    def _list(self) -> None:
        dialect = ANTHROPIC if "anthropic-version" in self.headers else OPENAI
        barred = self._barred(dialect)
        if barred is not None:
            self.send(self.whole(barred[0], dialect.error(*barred)))
        else:
            self._reply((messages if dialect is ANTHROPIC else answers).models(self.state.model))

    def _barred(self, dialect: Dialect) -> Optional[tuple[int, str, str]]:
        """Return why the request must not be answered: status, message and type."""
        key, bearer = self.state.api_key, self.headers.get("authorization")
        if not key:
            return None
        if bearer != f"Bearer {key}" and (dialect is not ANTHROPIC or self.headers.get("x-api-key") != key):
            return 401, "Invalid API Key", "authentication_error"
        if dialect is ANTHROPIC and "anthropic-version" not in self.headers:
            return 400, "anthropic-version: header is required", _INVALID
        return None

    def _control(self) -> None:
        if self.method == "POST":
            try:
                behaviour = _asked(self.body)
            except BehaviourError as fault:
                self._refuse(400, str(fault))
                return
            self.state.change(behaviour, spared=self.connection)
            self.keep_alive &= behaviour.name != "refuse"  # the last connection to close
        self._reply(self.state.stats())

    def _reply(self, body: object) -> None:
        self.send(self.whole(200, encode(body)))

    def _refuse(self, status: int, message: str, kind: str = _INVALID, *lines: str) -> None:
        self.send(self.whole(status, answers.error(status, message, kind), *lines))

    def _infer(self, endpoint: Endpoint) -> None:
        state = self.state
        body = {} if self.method == "GET" else _parsed(self.body, self.headers.get("content-type", ""))
        self._behaviour, self._gate, self._endpoint = state.behaviour.take(), state.gate, endpoint
        number = state.arrived(self.path, self.headers, body, len(self.body))
        name = endpoint.dialect.request_id
        self._lines = [f"{name}: req_mock-{state.port}-{number}"] if name else []
        self._in_flight = 1
        try:
            self._conduct(body, number)
        except CallerLeft:
            state.count(cancelled=1, in_flight=-self._in_flight)
            self._in_flight = 0
            raise
        finally:
            self._settle()

    def _settle(self) -> None:
        """Take the request out of flight, once."""
        if self._in_flight:
            self._in_flight = 0
            self.state.count(in_flight=-1)

    def _conduct(self, body: Any, number: int) -> None:
        while self._behaviour.name == "hang":
            self.wait_until(lambda: self.state.behaviour is not self._behaviour, None)
            self._behaviour = self.state.behaviour.take()
        self._pause(self._behaviour.delay)
        name = self._behaviour.name
        if name in ("reset", "refuse"):  # the second: it arrived just before the engine began to refuse
            self._cut(reset=name == "reset")
            return
        if name == "flaky" and self._behaviour.fails():
            name = "error"
        barred = self._barred(self._endpoint.dialect)
        try:
            if self.path in self.state.lacks:
                self._fail(self.state.lacks_status, f"{self.path} is not served", "not_found_error")
                return
            if barred is not None:
                self._fail(*barred)
                return
            if name not in _ERRORS:
                self._speak(name, body, number)
                return
            fixed, kind, message = _ERRORS[name]
            status = fixed or self._behaviour.status
            self._fail(status, message.format(status=status, model=self.state.model), kind)
        except BadRequest as fault:
            self._fail(400, str(fault), _INVALID)

    def _speak(self, name: str, body: Any, number: int) -> None:
        if not isinstance(body, dict):
            raise BadRequest("the body must be a JSON object")
        state, endpoint, usage = self.state, self._endpoint, name != "no_usage"
        engine = (state.model, state.port, number)
        asked = Asked(self.path, body, *engine, self._behaviour.events, usage, name, state.conversations)
        streams = endpoint.stream is not None and (endpoint.always or body.get("stream") is True)
        if endpoint.stream is not None and streams and name != "plain_json":
            self._stream(name, endpoint.media_type(asked), *endpoint.stream(asked))
            return
        said = endpoint.plain(asked)
        media_type, answer = said if isinstance(said, Raw) else ("application/json", encode(said))
        if name in ("error_first_event", "error_mid_stream"):
            self._fail(self._behaviour.status, "mock error instead of an answer", "server_error")
            return
        if name == "malformed":
            answer = _NOT_JSON
        response = self.whole(200, answer, *self._lines, media_type=media_type)
        if name not in _CUT:
            self._write(response, last=True)
        else:
            self._write(response[: len(response) - len(answer) // 2 - 1], last=True)
            self._cut(reset=name == "reset_mid_stream")

    def _fail(self, status: int, message: str, kind: str) -> None:
        """Answer with an error, and Retry-After when the behaviour has one."""
        retry_after_s = self._behaviour.retry_after
        lines = self._lines if retry_after_s is None else [*self._lines, f"Retry-After: {retry_after_s:.15g}"]
        # 304 is the one status here that must not have a body.
        body = b"" if status == 304 else self._endpoint.dialect.error(status, message, kind)
        self._write(self.whole(status, body, *lines), last=True)

    def _cut(self, reset: bool) -> None:
        """Have the connection closed, or reset, though the answer is not complete."""
        self._settle()
        self.keep_alive = False
        if reset:
            self.reset()

    def _pause(self, seconds: float) -> None:
        if seconds > 0:
            self.wait_until(lambda: False, seconds)

    def _write(self, data: bytes, last: bool = False) -> None:
        """Write `data`; the `last` bytes take the request out of flight before they go.

        Before, not after: whoever has read a whole answer finds the counts settled.
        """
        if self._behaviour.name == "drip":
            for position in range(len(data) - int(last)):
                self.send(data[position : position + 1])
                self._pause(self._behaviour.gap)
            data = data[-1:] if last else b""
        if last:
            self._settle()
        if data:
            self.send(data)

    def _stream(self, name: str, media_type: str, opening: list[bytes], content: Any, closing: list[bytes]) -> None:
        """Send a stream with the behaviour's gaps, gate and faults; the head travels with its first event."""
        behaviour, gate, spoilt_after = self._behaviour, self._gate, _spoilt_after(name, self._behaviour)
        framing = ["Transfer-Encoding: chunked"] if self.chunks else []  # else its end is the connection's
        unsent = self.head(200, f"Content-Type: {media_type}", "Cache-Control: no-cache", *self._lines, *framing)

        def write(events: list[bytes], last: bool = False) -> None:
            nonlocal unsent
            framed = [b"%x\r\n%b\r\n" % (len(event), event) for event in events if event] if self.chunks else events
            data, unsent = b"".join((unsent, *framed, b"0\r\n\r\n" if last and self.chunks else b"")), b""
            self._write(data, last)

        if name in ("error_first_event", "malformed") and not spoilt_after:
            return write(self._last_words(name, 0) or [], last=True)
        if opening:
            write(opening)
        for sent, event in enumerate(chain(content, [None])):
            if gate is not None and gate.after == sent:
                gate.note_held()
                self.wait_until(lambda: gate.released, None)
            if not unsent and name != "drip":  # gaps are between events, or between drip's bytes
                self._pause(behaviour.gap)
            if spoilt_after is not None and (event is None or sent == spoilt_after):
                words = self._last_words(name, len(opening) + sent)
                if words is not None:
                    return write(words, last=True)
                if name == "hang_mid_stream":
                    if unsent:
                        write([])
                    self.wait_until(lambda: self.state.behaviour is not behaviour, None)
                self._settle()
                spoilt = event or b"".join(closing[:1])
                if unsent or name == "truncate":  # a head at least, or it would be no stream
                    write([spoilt[: len(spoilt) // 2]] if name == "truncate" else [])
                return self._cut(reset=name == "reset_mid_stream")
            if event is not None:
                write([event])
        return write(closing[:-1] if name == "no_done" else closing, last=True)

    def _last_words(self, name: str, number: int) -> Optional[list[bytes]]:
        """Return the events, from this number on, that end a spoilt stream; None where its connection is cut."""
        dialect = self._endpoint.dialect
        failure = dialect.failure(self._behaviour.status, "mock error in a stream", "server_error", number)
        ends = {"malformed": [dialect.garbage], "end_mid_stream": []}
        return {**ends, "error_first_event": [failure], "error_mid_stream": [failure]}.get(name)


def _spoilt_after(name: str, behaviour: Behaviour) -> Optional[int]:
    """Return the number of content events before a stream is spoilt; None: it is not."""
    if name not in _SPOILT_AFTER:
        return None
    fixed: Optional[int] = behaviour.after
    if fixed is None:
        fixed = _SPOILT_AFTER[name]
    if fixed is None:
        fixed = behaviour.events
    return 2 if fixed is None else fixed


def _parsed(body: bytes, content_type: str) -> Any:
    fields = form(body, content_type)
    if fields is not None:
        return fields
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _asked(body: bytes) -> Behaviour:
    try:
        options = json.loads(body)
    except (ValueError, RecursionError):
        raise BehaviourError("the body is not JSON") from None
    if not isinstance(options, dict):
        raise BehaviourError("the body must be a JSON object")
    return Behaviour(options.pop("behaviour", None), options)
