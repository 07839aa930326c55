"""A stream under way, as one client gets it: its lines, its end, and what it has taken.

For the relay's thread, which has the stream; so at any moment one thread may write to the client. How it begins is said
by `exchange.py`.
"""

from __future__ import annotations

from typing import Optional

from gateway.errors import ClientGone, GatewayError
from gateway.pipeline import shutting_down
from gateway.routing.retry import Outcome
from gateway.server import responses
from gateway.server.answering import Answering
from gateway.server.flow import Failure
from gateway.steps import drive
from gateway.upstream import answers
from gateway.upstream.attempt import EngineFault
from gateway.upstream.bounds import bounds_of
from gateway.upstream.call import Call
from gateway.upstream.estimates import tokens_of
from gateway.upstream.passed import EVENTS_TYPE
from gateway.upstream.stream import EngineStream


class Streaming(Answering):
    """One request whose answer is a stream."""

    stream: Optional[EngineStream] = None
    media_type = b""  # of an answer that is passed on as it is

    def about_to_finish(self) -> None:
        """Called before the last write of a stream."""
        if self.stream is not None:  # else it follows another's, who pays
            self.count_stream(self.stream)
        super().about_to_finish()

    @property
    def takes_chunks(self) -> bool:
        """Whether the client takes an engine's chunks as they are."""
        return self.head.version_1_1 and self.telling is None

    def frame(self, lines: bytes) -> bytes:
        """Lines as the client's connection carries them: one chunk, or bare for HTTP/1.0."""
        if lines and self.head.version_1_1:
            return b"%x\r\n%b\r\n" % (len(lines), lines)
        return lines

    def carry(self, lines: bytes) -> bytes:
        """A stream's lines as the client reads them, and as its connection carries them."""
        telling = self.telling
        try:
            data = self.frame(lines if telling is None else telling.lines(lines))
        except Exception:
            self.crashed = True
            raise
        if telling is not None and telling.fault is not None:
            self.error = telling.fault.code
        return data

    @property
    def _has_no_words(self) -> bool:
        """Whether what is streamed cannot say that it is broken."""
        return bool(self.media_type) and (self.telling is None or not self.media_type.lower().startswith(EVENTS_TYPE))

    def end_of_stream(self) -> bytes:
        """Return the bytes that end the body of a stream: none where it has broken and has no words for that."""
        if self._has_no_words and self.error is not None:
            return b""
        return b"0\r\n\r\n" if self.head.version_1_1 else b""

    def resume(self, broken: EngineStream) -> Optional[EngineStream]:
        """Another stream that goes on where a broken one ended, or None. Blocks; for the thread "resume"."""
        call = self.call
        assert call is not None
        try:
            onward = drive(self.pipeline.factory.asker.resume(call, broken))
        except ClientGone:
            return None
        self.stream = onward or broken
        return onward

    def stream_failed(self, fault: Failure) -> bytes:
        """The one event that tells the client of a stream that broke, or does not fit; the end is never invented. What
        is passed on has no words for that, and is cut short."""
        error = fault if isinstance(fault, GatewayError) else shutting_down() if self.cut else _failure(fault)
        if self._has_no_words or (self.cut and error is not fault):
            self.keep_alive = False
        if not self._has_no_words:
            return self.stream_refused(error)
        self.error = error.code
        return b""

    def stream_refused(self, error: GatewayError) -> bytes:
        """The event that tells the client why its stream ends."""
        self.error = error.code
        if self.telling is not None:
            return self.telling.failed(error, self.request_id)
        body = responses.error_body(error, self.error_format, self.request_id)
        return b"data: %b\n\n" % body

    def stream_ended(self, stream: EngineStream, outcome: Outcome, keep_open: bool = False) -> None:
        """The stream is over for the client (after the last write): settle and report.

        With `keep_open` the engine's connection stays open until `stream.give_back`.
        """
        if self.account is None or not self.account.settled:
            self.count_stream(stream)
        try:
            stream.close(outcome, keep_open)
        except Exception as error:
            self._report(error)
        self.written(outcome.kind != "cancelled")

    def count_stream(self, stream: EngineStream) -> None:
        """Note the tokens of a stream, as far as it has come. Raises nothing."""
        call = self.call
        assert call is not None
        try:
            _count(call, stream)
        except Exception as error:  # the client gets its answer all the same
            self._report(error)


def _failure(fault: EngineFault) -> GatewayError:
    outcome = fault.outcome
    return GatewayError("backend_error", outcome.message or "the engine failed", engine=outcome.details)


def _count(call: Call, stream: EngineStream) -> None:
    """Note in a call what its stream has taken."""
    earlier = stream.events.earlier_weight
    call.usage = answers.usage_of(
        stream.events.usage,
        call.prompt_weight(),
        stream.events.weight,
        lambda: bounds_of(call, call.context_tokens, earlier),
    )
    if earlier:  # an engine that went on with another's text counts that as prompt
        tokens = tokens_of(earlier)
        usage = call.usage
        prompt_tokens = usage.prompt_tokens if usage.estimated else max(0, usage.prompt_tokens - tokens)
        completion_tokens = usage.completion_tokens + tokens
        call.usage = usage._replace(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, estimated=True)
