"""One answer, read as it comes: framing, head, body or events; and what it counts as.

Sans-I/O and without a clock: `feed` gets bytes and the time. The framing is the gateway's own (`upstream.framing`),
which takes nothing that two parsers might read differently. One object for one answer and one thread.
"""

from __future__ import annotations

import json
import re
from typing import Optional

from gateway.tools.loadtest.events import Events, error_name, usage_of
from gateway.upstream.framing import (
    HEAD_MAX_BYTES,
    BodyDecoder,
    FramingError,
    ResponseHead,
    body_decoder,
    parse_response_head,
)

KEPT_BYTES = 1 << 20  # of a body; of a larger one only its end is looked at
_TAIL_BYTES = 8192
_USAGE = re.compile(rb'"usage"\s*:\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})')
_REFUSALS = (429, 503)


class Exchange:
    """The answer to one request. `complete`: it has ended; then `failure` says why it is none, `refused` that it is a
    refusal, and `reusable` that its connection may carry another."""

    __slots__ = (
        "_body",
        "_decoder",
        "_head_bytes",
        "_stream",
        "body_bytes",
        "complete",
        "completion_tokens",
        "engine",
        "events",
        "failure",
        "first_ns",
        "head",
        "last_ns",
        "longest_gap_ns",
        "prompt_tokens",
        "refused",
        "reusable",
        "tokens",
    )

    def __init__(self, stream: bool) -> None:
        self._stream = stream
        self._head_bytes = b""
        self._body: list[bytes] = []
        self._decoder: Optional[BodyDecoder] = None
        self.head: Optional[ResponseHead] = None
        self.events: Optional[Events] = None
        self.body_bytes = 0
        self.first_ns = self.last_ns = 0  # of events with text
        self.longest_gap_ns = 0
        self.complete = False
        self.failure: Optional[str] = None
        self.refused = False
        self.reusable = False
        self.tokens = 0  # told, or counted where none are told
        self.completion_tokens: Optional[int] = None
        self.prompt_tokens: Optional[int] = None
        self.engine = b""

    @property
    def begun(self) -> bool:
        """Whether anything of it has come."""
        return self.head is not None or bool(self._head_bytes)

    def feed(self, data: bytes, now_ns: int) -> bool:
        """Take what came at that time; returns whether the answer is complete. Never raises: what is wrong is
        `failure`."""
        try:
            if self._decoder is None:
                data = self._read_head(data)
                if self._decoder is None:
                    return self.complete
            return self._read_body(self._decoder, data, now_ns)
        except FramingError as error:
            return self.fail(f"not HTTP: {error}")

    def closed(self) -> bool:
        """The connection has ended. Returns True: the answer is complete, well or not."""
        if self.complete:
            return True
        if self._decoder is None:
            return self.fail("closed without an answer" if not self.begun else "closed in the head")
        if self._decoder.end():
            return self._finish()
        return self.fail(self._early())

    def fail(self, why: str) -> bool:
        """It is an error, and over."""
        self.complete, self.failure, self.reusable = True, why, False
        return True

    def _early(self) -> str:
        if self.events is None:
            return "closed in the body"
        self.events.end()
        return self.events.error or "stream: closed before its end"

    def _read_head(self, data: bytes) -> bytes:
        """Look for the head; returns what came behind it."""
        if self._head_bytes:
            data = self._head_bytes + data
        while True:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                if len(data) > HEAD_MAX_BYTES:
                    raise FramingError("a head that is too large")
                if data[:5] != b"HTTP/"[: len(data)]:
                    raise FramingError("the answer does not begin with HTTP/")
                self._head_bytes = data
                return b""
            head = parse_response_head(data[:end])
            data = data[end + 4 :]
            if not (100 <= head.status < 200 and head.status != 101):
                break
        self.head = head
        self._head_bytes = b""
        self._decoder = body_decoder(head)
        self.engine = head.headers.get(b"x-gateway-engine", b"")
        if self._stream and head.status == 200:
            if b"event-stream" in head.headers.get(b"content-type", b"").lower():
                self.events = Events()
        return data

    def _read_body(self, decoder: BodyDecoder, data: bytes, now_ns: int) -> bool:
        payload = decoder.feed(data)
        self.body_bytes += len(payload)
        events = self.events
        if events is not None:
            if payload:
                before = events.texts
                events.feed(payload)
                if events.texts != before:
                    self._arrived(now_ns)
                if events.error is not None:
                    # The rest of it is of no interest, and where it would end is not known.
                    return self.fail(f"stream: {events.error}")
        elif payload:
            self._body.append(payload)
            if self.body_bytes > KEPT_BYTES:
                self._body = [b"".join(self._body[-64:])[-_TAIL_BYTES:]]
        return self._finish() if decoder.complete else False

    def _arrived(self, now_ns: int) -> None:
        if self.first_ns:
            self.longest_gap_ns = max(self.longest_gap_ns, now_ns - self.last_ns)
        else:
            self.first_ns = now_ns
        self.last_ns = now_ns

    def _finish(self) -> bool:
        head, decoder, events = self.head, self._decoder, self.events
        assert head is not None and decoder is not None
        self.complete = True
        self.reusable = head.keep_alive and decoder.reusable
        if events is not None:
            events.end()
            self.completion_tokens, self.prompt_tokens = events.completion_tokens, events.prompt_tokens
            self.tokens = events.texts if events.completion_tokens is None else events.completion_tokens
            if events.error is not None:
                self.failure = f"stream: {events.error}"
            elif not events.done:
                self.failure = "stream: ended without [DONE]"
        elif 200 <= head.status < 300:
            self._read_answer()
        else:
            self._read_error(head)
        self._body.clear()
        return True

    def _read_answer(self) -> None:
        if self._stream:
            self.failure = "stream: the answer is no event stream"
            return
        body = b"".join(self._body)
        if self.body_bytes > KEPT_BYTES:
            self._read_tail(body)
            return
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            self.failure = "the answer is not JSON"
            return
        if type(answer) is not dict:
            self.failure = "the answer is no JSON object"
        elif answer.get("error"):
            self.failure = f"200 with an error: {error_name(answer)}"
        else:
            self.completion_tokens, self.prompt_tokens = usage_of(answer)
            self.tokens = self.completion_tokens or 0

    def _read_tail(self, tail: bytes) -> None:
        if not tail.rstrip().endswith(b"}"):
            self.failure = "the answer is not JSON"
            return
        for found in _USAGE.finditer(tail):
            try:
                self.completion_tokens, self.prompt_tokens = usage_of({"usage": json.loads(found[1])})
            except ValueError:
                continue
            self.tokens = self.completion_tokens or 0

    def _read_error(self, head: ResponseHead) -> None:
        name = ""
        if self.body_bytes <= KEPT_BYTES:
            try:
                name = error_name(json.loads(b"".join(self._body)))
            except (ValueError, RecursionError):
                pass
        self.failure = str(head.status) if name == str(head.status) else f"{head.status} {name}".rstrip()
        self.refused = head.status in _REFUSALS and b"retry-after" in head.headers
