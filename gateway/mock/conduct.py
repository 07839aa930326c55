"""From a request to its answer: probes, the control endpoint, and inference as the behaviour in force wants it.

Owns the table of paths. Works on the connection's thread and has no lock. It never accepts or reads, and does not know
what an answer's text says.
"""

from __future__ import annotations

import contextlib
import json
from itertools import chain
from typing import Any, Optional

from gateway.mock import answers
from gateway.mock.answers import BadRequest
from gateway.mock.behaviours import Behaviour, BehaviourError
from gateway.mock.connection import CallerLeft, Connection, EngineClosed, ProtocolError
from gateway.mock.state import Gate

_INVALID = "invalid_request_error"
_NOT_JSON = b'{"choices": [this is not JSON'
_GARBAGE = b"data: " + _NOT_JSON + b"\n\n"
_CUT = ("drop_mid_stream", "end_mid_stream", "reset_mid_stream", "truncate")
_ERRORS: dict[str, tuple[Optional[int], str, str]] = {
    "error": (None, "server_error", "mock error {status} from {model}"),
    "rate_limit": (429, "rate_limit_error", "{model} is rate limited"),
    "unauthorized": (401, "authentication_error", "Invalid API Key"),
    "bad_request": (400, _INVALID, "{model} rejects this request"),
    "loading": (503, "unavailable_error", "Loading model"),
}
_METHODS_BY_PATH = {
    "/health": ("GET",),
    "/v1/models": ("GET",),
    "/control": ("GET", "POST"),
    "/control/requests": ("GET",),
    answers.CHAT: ("POST",),
    answers.COMPLETIONS: ("POST",),
    answers.EMBEDDINGS: ("POST",),
}


class Conduct(Connection):
    """Answers the requests of one connection, one after the other, until its `keep_alive` is False."""

    _behaviour: Behaviour  # that answers the inference request
    _gate: Optional[Gate]  # that holds its stream
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
        elif self.method == "POST":
            self._infer()
        else:
            self.state.count(probes=1)
            if self.path == "/v1/models":
                self._reply(answers.models(self.state.model))
            elif self.state.behaviour.name == "loading":
                self._refuse(503, "Loading model", "unavailable_error")
            else:
                self._reply({"status": "ok"})

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
        self.send(self.whole(200, answers.encode(body)))

    def _refuse(self, status: int, message: str, kind: str = _INVALID, *lines: str) -> None:
        self.send(self.whole(status, answers.error(status, message, kind), *lines))

    def _infer(self) -> None:
        state, body = self.state, _parsed(self.body)
        self._behaviour, self._gate = state.behaviour, state.gate
        number = state.arrived(self.path, self.headers, body, len(self.body))
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
            self._behaviour = self.state.behaviour
        self._pause(self._behaviour.delay)
        name = self._behaviour.name
        if name in ("reset", "refuse"):  # the second: it arrived just before the engine began to refuse
            self._cut(reset=name == "reset")
            return
        if name == "flaky" and self._behaviour.fails():
            name = "error"
        try:
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
        engine = (self.state.model, self.state.port, number)
        asked = answers.Asked(self.path, body, *engine, self._behaviour.events, usage=name != "no_usage")
        if body.get("stream") is True and self.path != answers.EMBEDDINGS and name != "plain_json":
            self._stream(name, *answers.stream(asked))
            return
        answer = answers.encode(answers.plain(asked))
        if name == "error_first_event":
            self._fail(500, "mock error instead of an answer", "server_error")
            return
        if name == "malformed":
            answer = _NOT_JSON
        response = self.whole(200, answer)
        if name not in _CUT:
            self._write(response, last=True)
        else:
            self._write(response[: len(response) - len(answer) // 2 - 1], last=True)
            self._cut(reset=name == "reset_mid_stream")

    def _fail(self, status: int, message: str, kind: str) -> None:
        """Answer with an error, and Retry-After when the behaviour has one."""
        retry_after_s = self._behaviour.retry_after
        lines = [] if retry_after_s is None else [f"Retry-After: {retry_after_s:.15g}"]
        # 304 is the one status here that must not have a body.
        body = b"" if status == 304 else answers.error(status, message, kind)
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

    def _stream(self, name: str, opening: list[bytes], content: Any, closing: list[bytes]) -> None:
        """Send a stream with the behaviour's gaps, gate and faults; the head travels with its first event."""
        behaviour, gate = self._behaviour, self._gate
        spoilt_after = {"malformed": 0, "truncate": 1}.get(name)  # so many content events; None: never
        if name in _CUT and spoilt_after is None:
            spoilt_after = 2 if behaviour.events is None else behaviour.events
        if spoilt_after is not None and behaviour.after is not None:
            spoilt_after = behaviour.after
        framing = ["Transfer-Encoding: chunked"] if self.chunks else []  # else its end is the connection's
        unsent = self.head(200, "Content-Type: text/event-stream", "Cache-Control: no-cache", *framing)

        def write(events: list[bytes], last: bool = False) -> None:
            nonlocal unsent
            framed = [b"%x\r\n%b\r\n" % (len(event), event) for event in events] if self.chunks else events
            data, unsent = b"".join((unsent, *framed, b"0\r\n\r\n" if last and self.chunks else b"")), b""
            self._write(data, last)

        if name == "error_first_event":
            fault = answers.error(500, "mock error in the first event", "server_error")
            return write([b"data: " + fault + b"\n\n"], last=True)
        if name == "malformed" and not spoilt_after:
            return write([_GARBAGE], last=True)
        if opening:
            write(opening)
        for sent, event in enumerate(chain(content, [None])):
            if gate is not None and gate.after == sent:
                gate.note_held()
                self.wait_until(lambda: gate.released, None)
            if not unsent and name != "drip":  # gaps are between events, or between drip's bytes
                self._pause(behaviour.gap)
            if spoilt_after is not None and (event is None or sent == spoilt_after):
                if name in ("malformed", "end_mid_stream"):
                    return write([_GARBAGE] if name == "malformed" else [], last=True)
                self._settle()
                spoilt = event or closing[0]
                if unsent or name == "truncate":  # a head at least, or it would be no stream
                    write([spoilt[: len(spoilt) // 2]] if name == "truncate" else [])
                return self._cut(reset=name == "reset_mid_stream")
            if event is not None:
                write([event])
        return write(closing + ([] if name == "no_done" else [answers.DONE]), last=True)


def _parsed(body: bytes) -> Any:
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
