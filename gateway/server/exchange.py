"""One request's answer: its bytes, its stream, its end.

The loop's thread does all of it, but for what the relay does with a stream that it has taken over; so at any moment one
thread may write to the client. `answered` turns True just before the last write, `finished` after it. What the request
costs is kept in its `Account`, what is told of it is made by `report.py`.
"""

from __future__ import annotations

import math
import time
from typing import Callable, Optional, Protocol, Union

from gateway.account import Account
from gateway.errors import ClientGone, GatewayError, HttpError
from gateway.inference import Answer
from gateway.pipeline import PATHS, Asked, Pipeline, shutting_down
from gateway.routing.retry import Outcome
from gateway.server import responses
from gateway.server.errorformat import error_format_of
from gateway.server.headers import answer_headers, cors_headers, refusal_headers, request_id_of
from gateway.server.parsing import RequestHead
from gateway.server.report import LOGGED_BYTES, event_of, least_event
from gateway.steps import drive
from gateway.upstream import answers
from gateway.upstream.attempt import EngineFault
from gateway.upstream.bounds import bounds_of
from gateway.upstream.call import Call
from gateway.upstream.estimates import tokens_of
from gateway.upstream.stream import EngineStream

_TELL_LIMITS_THEMSELVES = ("rate_limit_exceeded", "request_exceeds_limit")


class Client(Protocol):
    """The client's side of an exchange: its connection, as far as an answer needs it."""

    holds_large: bool
    """Whether the rest of a large answer waits for the client."""

    def set_deadline(self, deadline_s: float) -> None:
        """When the connection is to be ended unless something happens before (monotonic seconds)."""
        ...

    def send_last(
        self, exchange: Exchange, data: bytes, keep_alive: bool, body: responses.Text = b""
    ) -> Optional[bool]:
        """Write an answer's `data`, then `body`; False when the client is gone, None when the rest is written by and by
        and `exchange.sent` is called then."""
        ...

    def before_last(self, exchange: Exchange, keep_alive: bool) -> None:
        """Say that the last write of a stream comes now."""
        ...

    def shut_writing(self) -> None:
        """Tell the client that nothing more comes."""
        ...

    def send_now(self, data: Union[bytes, memoryview]) -> int:
        """Write what the socket takes without waiting; returns its length. Raises OSError."""
        ...

    def stream_over(self) -> None:
        """The relay has ended a stream, and concluded its exchange."""
        ...

    def fileno(self) -> int:
        """The client socket's descriptor, for a selector."""
        ...


class StreamRelay(Protocol):
    """Where open streams live, so that they occupy no worker."""

    def take(self, exchange: Exchange, stream: EngineStream, unsent: bytes) -> None: ...


class Exchange(Asked):
    """One request and what becomes of it. `accepted_s`: when its first byte came (monotonic)."""

    head: RequestHead
    status = 0
    error: Optional[str] = None
    ttft_s: Optional[float] = None
    on_cancel: Optional[Callable[[], None]] = None
    logged_answer = b""
    cut = False  # by the gateway's own end
    stream: Optional[EngineStream] = None
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
        super().__init__(head, client_address, request_id_of(head), accepted_s)
        self.pipeline = pipeline
        self.relay = relay
        self.client = client
        self.keep_alive = head.keep_alive

    @property
    def error_format(self) -> str:
        """The shape in which this client reads errors: `simple` or `openai`."""
        return error_format_of(self.pipeline.settings.error_format, self.head)

    def run(self) -> bool:
        if self.resume_work is not None:
            self.resume_work()
        return True  # the loop gives the place back

    def cancel(self) -> None:
        """The client has left: end whatever is under way for it. From any thread; never blocks."""
        self.left = True
        call = self.call
        if call is not None:
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

    def answer(self, result: Union[Answer, EngineStream]) -> None:
        """Write a complete answer, or begin a stream and pass it to the relay. Raises nothing."""
        call = self.call
        assert call is not None
        try:
            if not isinstance(result, Answer):
                self._open(call, result)
                return
            settings, account = self.pipeline.settings, self.account
            if call.stream:
                self.ttft_s = time.monotonic() - self.accepted_s
            if settings.log_bodies:
                self.logged_answer = bytes(result.body[:LOGGED_BYTES])
            kind = responses.EVENT_STREAM if call.stream else responses.JSON
            if account is not None:
                account.settle(call, self.identity)
                if account.cost_usd is not None:
                    kind += b"X-Gateway-Cost-Usd: %.9f\r\n" % account.cost_usd
            self.finish_with(200, answer_headers(self, call, kind, settings.cors_origins), result.body)
        except Exception as error:
            if isinstance(result, EngineStream):
                result.close(Outcome("cancelled"))
            self._give_up(error)

    def _open(self, call: Call, stream: EngineStream) -> None:
        self.ttft_s = time.monotonic() - self.accepted_s
        stream.response.connection.unwatch()  # from now on the relay watches it
        headers = answer_headers(self, call, responses.EVENT_STREAM, self.pipeline.settings.cors_origins)
        if self.pipeline.draining:
            self.keep_alive = False
        if self.head.version_1_1:
            framing = b"Transfer-Encoding: chunked\r\n"
        else:
            self.keep_alive = False  # HTTP/1.0: the stream ends where the connection does
            framing = b""
        close = b"" if self.keep_alive else b"Connection: close\r\n"
        self.status = 200
        data = responses.head(200, headers + framing + close + b"\r\n") + self.frame(stream.first)
        stream.first = b""
        try:
            data = data[self.client.send_now(data) :]
        except BlockingIOError:
            pass
        except OSError:
            stream.close(Outcome("cancelled"))
            self.conclude("client_closed_request", 499)
            return
        self.stream = stream
        self.client.set_deadline(math.inf)  # the relay keeps the time, and sets another one at the end
        self.relay.take(self, stream, data)

    def fail(self, error: Exception) -> None:
        """Answer with an error (or with nothing, when the client has left) and conclude. Raises nothing."""
        try:
            if not isinstance(error, GatewayError):
                error = self.pipeline.internal_error(error, self.request_id)
            self._fail(error)
        except Exception as another:
            self._give_up(another)

    def _fail(self, error: GatewayError) -> None:
        if isinstance(error, ClientGone) and self.cut:
            error = shutting_down()
        elif isinstance(error, ClientGone):
            self.keep_alive = False
            self.answered = True
            self.conclude(error.code, error.status)
            return
        self.error = error.code
        if isinstance(error, HttpError):
            self.keep_alive = False
        call = self.call
        if self.account is None:
            self._tell_limits(error)
        origins = self.pipeline.settings.cors_origins
        if call is not None and call.engine_id is not None:
            headers = answer_headers(self, call, responses.JSON, origins)
        else:
            headers = refusal_headers(self, call, origins)
        body = responses.error_body(error, self.error_format, self.request_id)
        self.finish_with(error.status, headers + responses.error_headers(error), body)

    def reply(self, status: int, headers: tuple[tuple[str, str], ...], body: bytes) -> None:
        """Write what needed no engine, and conclude."""
        lines = b"%bX-Request-ID: %b\r\n%b" % (
            responses.header_lines(headers),
            self.request_id.encode("latin-1"),
            cors_headers(self.head, self.pipeline.settings.cors_origins),
        )
        self.finish_with(status, lines, body)

    def _tell_limits(self, error: GatewayError) -> None:
        """What is left of the caller's limits, although nothing was taken; a limit that refused has told it itself."""
        identity = self.identity
        if identity is None or self.head.path not in PATHS or error.code in _TELL_LIMITS_THEMSELVES:
            return
        limits = self.pipeline.limit_headers(self.call, identity, self.client_address)
        if limits:
            self.limit_headers = responses.header_lines(limits)

    def finish_with(self, status: int, headers: bytes, body: responses.Text) -> None:
        """Send a complete response and conclude. A bytearray is not to be used afterwards."""
        self.status = status
        if self.pipeline.draining:
            self.keep_alive = False
        if self.keep_alive and not self.head.version_1_1:
            headers += b"Connection: keep-alive\r\n"  # HTTP/1.0 clients take silence for close
        if len(body) > responses.LARGE_BYTES:  # not copied, so that who does not take it holds it once
            data = responses.before_body(status, headers, len(body), self.keep_alive)
            if self.head.method == "HEAD":
                body = b""
        else:
            head_only = self.head.method == "HEAD"
            data, body = responses.whole(status, headers, bytes(body), self.keep_alive, head_only), b""
        if self.account is not None and not self.account.settled:
            self._settle(self.account)
        sent = self.client.send_last(self, data, self.keep_alive, body)
        if sent:
            self.conclude(self.error, self.status)
        elif sent is not None:
            self.sent(False)

    def sent(self, complete: bool) -> None:
        """The last write is over: conclude. Not `complete`: the client has left before it had everything, or has been
        cut off."""
        if complete:
            self.conclude(self.error, self.status)
        elif self.cut:
            self.conclude("draining", self.status)
        else:
            self.conclude("client_closed_request", 499)

    def about_to_finish(self) -> None:
        """Called before the last write of a stream: the caller's slot is free before it can know that the answer has
        ended."""
        stream, call = self.stream, self.call
        assert stream is not None
        assert call is not None
        try:
            self._count(call, stream)
        except Exception as error:  # the client gets its answer all the same
            self._report(error)
        if self.account is not None:
            self._settle(self.account)

    def _settle(self, account: Account) -> None:
        if self.call is not None:
            account.settle(self.call, self.identity)

    def conclude(self, error: Optional[str], status: int) -> None:
        """Report the finished request, once, after its last byte. Raises nothing: whatever goes wrong here, the
        exchange has ended."""
        if self.finished:
            return
        self.answered = True
        if self.account is not None and not self.account.settled:
            self._settle(self.account)
        call = self.call
        try:
            try:
                logged = self.logged_answer if self.pipeline.settings.log_bodies else None
                event = event_of(self, error, status, self.ttft_s, logged)
            except Exception as unforeseen:
                self._report(unforeseen)
                event = least_event(self, error, status)
            self.pipeline.concluded(self, event)
            if call is not None and call.usage is not None and call.usage.rejected:
                self.pipeline.usage_rejected(call.served_model or "", call.engine_id or "", call.usage.rejected)
        except Exception as unforeseen:
            self._report(unforeseen)
        finally:
            self.finished = True

    def _give_up(self, error: Exception) -> None:
        """End the exchange though something went wrong that nobody had foreseen: with an error if nothing has been
        written yet, else by closing the connection. Raises nothing."""
        self._report(error)
        if self.finished:
            return
        self.keep_alive = False
        if not (self.status or self.answered):
            self.error = "internal_error"
            try:
                failure = GatewayError(self.error, "the gateway failed; see its log for this request id")
                body = responses.error_body(failure, self.error_format, self.request_id)
                self.finish_with(500, refusal_headers(self, None, self.pipeline.settings.cors_origins), body)
                return
            except Exception as another:
                self._report(another)
        if not self.finished:
            self.client.shut_writing()
            self.conclude("internal_error", self.status or 500)

    def _report(self, error: Exception) -> None:
        """Log what nobody had foreseen. Raises nothing."""
        try:
            self.pipeline.internal_error(error, self.request_id)
        except Exception:
            pass  # then there is no log either

    # --- a stream under way ----------------------------------------------------------------------------------------

    def frame(self, lines: bytes) -> bytes:
        """Lines as the client's connection carries them: one chunk, or bare for HTTP/1.0."""
        if lines and self.head.version_1_1:
            return b"%x\r\n%b\r\n" % (len(lines), lines)
        return lines

    def end_of_stream(self) -> bytes:
        """What ends the body of a stream."""
        return b"0\r\n\r\n" if self.head.version_1_1 else b""

    def resume(self, broken: EngineStream) -> Optional[EngineStream]:
        """Another stream that goes on where a broken one ended, or None. Blocks; for a worker's thread."""
        call = self.call
        assert call is not None
        try:
            onward = drive(self.pipeline.factory.asker.resume(call, broken))
        except ClientGone:
            return None
        self.stream = onward or broken
        return onward

    def stream_failed(self, fault: EngineFault) -> bytes:
        """The one event that tells the client of a stream that broke; the end is never invented."""
        if self.cut:
            error = shutting_down()
            self.keep_alive = False
        else:
            error = GatewayError(
                "backend_error", fault.outcome.message or "the engine failed", engine=fault.outcome.details
            )
        self.error = error.code
        body = responses.error_body(error, self.error_format, self.request_id)
        return b"data: %b\n\n" % body

    def stream_ended(self, stream: EngineStream, outcome: Outcome, keep_open: bool = False) -> None:
        """The stream is over for the client (after the last write): settle and report.

        With `keep_open` the engine's connection stays open until `stream.give_back`.
        """
        call = self.call
        assert call is not None
        try:
            if self.account is not None and not self.account.settled:
                self._count(call, stream)
        except Exception as error:
            self._report(error)
        try:
            stream.close(outcome, keep_open)
        except Exception as error:
            self._report(error)
        self.sent(outcome.kind != "cancelled")

    def _count(self, call: Call, stream: EngineStream) -> None:
        """The tokens of a stream, as far as it has come."""
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
            call.usage = usage._replace(
                prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, estimated=True
            )
