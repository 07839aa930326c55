"""One request's answer, complete or a stream.

The loop's thread does all of it, but for what the relay does with a stream that it has taken over. How an answer ends
is said by `answering.py`.
"""

from __future__ import annotations

import math
import time
from typing import Callable, Optional, Protocol, Union

from gateway.errors import ClientGone, GatewayError
from gateway.inference import Answer
from gateway.pipeline import Pipeline, shutting_down
from gateway.reuse.flights import Following
from gateway.reuse.serving import Shared
from gateway.routing.retry import Outcome
from gateway.server import responses
from gateway.server.answering import Answering, Client
from gateway.server.flow import Failure
from gateway.server.headers import answer_headers
from gateway.server.parsing import RequestHead
from gateway.server.report import LOGGED_BYTES
from gateway.steps import drive
from gateway.upstream import answers
from gateway.upstream.bounds import bounds_of
from gateway.upstream.call import Call
from gateway.upstream.estimates import tokens_of
from gateway.upstream.stream import EngineStream


class StreamRelay(Protocol):
    """The relay, as an exchange sees it: open streams live there, so that they occupy no worker."""

    def take(self, exchange: Exchange, stream: EngineStream, unsent: bytes) -> None: ...

    def share(self, exchange: Exchange, stream: EngineStream, shared: Shared, head: bytes) -> None: ...


class Exchange(Answering):
    """One request and what becomes of it. `accepted_s`: when its first byte came (monotonic)."""

    on_cancel: Optional[Callable[[], None]] = None
    stream: Optional[EngineStream] = None
    begun = False  # its stream, before there is an answer
    _unsaid = b""  # of that, what the client has not taken
    resume_work: Optional[Callable[[], None]] = None  # when it has waited for a place, and has got it

    def __init__(
        self,
        pipeline: Pipeline,
        relay: StreamRelay,
        client: Client,
        client_address: str,
        head: RequestHead,
        accepted_s: float,
    ) -> None:
        super().__init__(pipeline, client, client_address, head, accepted_s)
        self.relay = relay

    def run(self) -> bool:
        if self.resume_work is not None:
            self.resume_work()
        return True  # the loop gives the place back

    def cancel(self) -> None:
        """The client has left: end whatever is under way for it. From any thread; never blocks."""
        self.left = True  # first: see `Flights.leave`
        call = self.call
        if call is not None and not self.needed:
            call.cancel()
        on_cancel = self.on_cancel
        if on_cancel is not None:
            on_cancel()

    def cut_off(self) -> None:
        call = self.call
        if self.cut or call is None or call.cancelled:
            return
        self.cut = True  # first: who notices that it is cancelled asks why
        if self.answered:
            return
        self.cancel()
        if self.queued:  # no worker may come in time: the loop answers
            self.client.set_deadline(time.monotonic())

    # --- the answer ------------------------------------------------------------------------------------------------

    def answer(self, result: Union[Answer, EngineStream, Following]) -> None:
        """Write a complete answer, or begin a stream and pass it to the relay. Raises nothing."""
        call = self.call
        assert call is not None
        try:
            if not isinstance(result, Answer):
                if isinstance(result, Following):
                    self.client.set_deadline(math.inf)
                    result.stream.join(self, self._begin_stream(call))
                else:
                    self._open(call, result)
                return
            settings, account = self.pipeline.settings, self.account
            if call.stream:
                self.ttft_s = time.monotonic() - self.accepted_s
            if settings.log_bodies:
                self.logged_answer = bytes(result.body[:LOGGED_BYTES])
            if self.begun:
                self._finish_begun(bytes(result.body))
                return
            kind = self._stream_kind() if call.stream else responses.JSON
            if account is not None:
                account.settle(call, self.identity)
                if account.cost_usd is not None:
                    kind += b"X-Gateway-Cost-Usd: %.9f\r\n" % account.cost_usd
            self.finish_with(200, answer_headers(self, call, kind, settings.cors_origins), result.body)
        except Exception as error:
            if isinstance(result, EngineStream):
                result.close(Outcome("cancelled"))
            if self.shared is not None:
                self.shared.flights.failed(self.shared.flight, None)
            self._give_up(error)

    def say(self, lines: bytes) -> None:
        """Begin a stream's answer before there is one, with lines that say nothing of it. What a client does not take
        is kept; more is not added to that. Raises nothing."""
        call, data = self.call, self._unsaid
        assert call is not None
        if not self.begun:
            self.begun = True
            data = self._begin_stream(call) + self.carry(lines)
        elif not data:
            data = self.carry(lines)
        try:
            self._unsaid = data[self.client.send_now(data) :]
        except BlockingIOError:
            self._unsaid = data
        except OSError:
            pass  # who has left is seen by the connection

    def _finish_begun(self, lines: bytes) -> None:
        """End a stream's answer that `say` has begun, with all that it consists of."""
        if self.pipeline.draining:
            self.keep_alive = False
        data = self._unsaid + self.frame(lines) + self.end_of_stream()
        self._unsaid = b""
        sent = self.client.send_last(self, data, self.keep_alive)
        if sent is not None:
            self.written(sent)

    def _fail(self, error: GatewayError) -> None:
        if not self.begun or (isinstance(error, ClientGone) and not self.cut):
            super()._fail(error)
            return
        if isinstance(error, ClientGone):
            error = shutting_down()
            self.keep_alive = False
        self.ttft_s = None
        self._finish_begun(self.stream_refused(error))

    def _open(self, call: Call, stream: EngineStream) -> None:
        stream.response.connection.unwatch()  # from now on the relay watches it
        if self.shared is not None:
            self.stream = stream
            self.client.set_deadline(math.inf)
            self.relay.share(self, stream, self.shared, self._begin_stream(call))
            return
        lines = b""
        if call.shape is None:  # else the relay has to hold its end back
            lines, stream.first = self.carry(stream.first), b""  # before the head: if it crashes, there can be another
        data = self._begin_stream(call) + lines
        try:
            data = data[self.client.send_now(data) :]
        except BlockingIOError:
            pass
        except OSError:
            self.stream_ended(stream, Outcome("cancelled"))
            return
        self.stream = stream
        self.client.set_deadline(math.inf)  # the relay keeps the time, and sets another one at the end
        self.relay.take(self, stream, data)

    def _stream_kind(self) -> bytes:
        """The header lines that say what a streamed answer is."""
        telling = self.telling
        return responses.EVENT_STREAM if telling is None else responses.stream_of(telling.stream_type) + self.own_lines

    def _begin_stream(self, call: Call) -> bytes:
        """The head of a stream's answer."""
        self.ttft_s = time.monotonic() - self.accepted_s
        headers = answer_headers(self, call, self._stream_kind(), self.pipeline.settings.cors_origins)
        if self.pipeline.draining:
            self.keep_alive = False
        if self.head.version_1_1:
            framing = b"Transfer-Encoding: chunked\r\n"
        else:
            self.keep_alive = False  # HTTP/1.0: the stream ends where the connection does
            framing = b""
        close = b"" if self.keep_alive else b"Connection: close\r\n"
        self.status = 200
        return responses.head(200, headers + framing + close + b"\r\n")

    def about_to_finish(self) -> None:
        """Called before the last write of a stream."""
        if self.stream is not None:  # else it follows another's, who pays
            self.count_stream(self.stream)
        super().about_to_finish()

    # --- a stream under way ----------------------------------------------------------------------------------------

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

    def end_of_stream(self) -> bytes:
        """Return the bytes that end the body of a stream."""
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
        """The one event that tells the client of a stream that broke, or does not fit; the end is never invented."""
        if isinstance(fault, GatewayError):
            error = fault
        elif self.cut:
            error = shutting_down()
            self.keep_alive = False
        else:
            error = GatewayError(
                "backend_error", fault.outcome.message or "the engine failed", engine=fault.outcome.details
            )
        return self.stream_refused(error)

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
