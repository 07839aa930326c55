"""One HTTP request and what becomes of it.

At any moment exactly one thread may write to the client: the handler, unless the exchange is queued; then the worker
that runs it; then the relay that has its stream, or the loop that has what the client did not take. `answered` turns
True just before the last write, `finished` after it.
"""

from __future__ import annotations

import math
import time
from typing import Callable, Optional, Protocol, Union

from gateway.clock import unix_s
from gateway.errors import ClientGone, GatewayError, HttpError
from gateway.inference import Answer, Asking, Call
from gateway.pipeline import PATHS, Pipeline, shutting_down
from gateway.policy.auth import Identity
from gateway.policy.limits import Admission
from gateway.routing.retry import Outcome
from gateway.server import responses
from gateway.server.errorformat import error_format_of
from gateway.server.headers import answer_headers, refusal_headers, request_id_of
from gateway.server.parsing import RequestHead
from gateway.telemetry.events import RequestEvent
from gateway.upstream import answers
from gateway.upstream.attempt import EngineFault
from gateway.upstream.bounds import bounds_of
from gateway.upstream.estimates import tokens_of
from gateway.upstream.stream import EngineStream
from gateway.workers import Job

LOGGED_BYTES = 65536
MODEL_NAME_CHARS = 256  # as many as a configured name may have
_TELL_LIMITS_THEMSELVES = ("rate_limit_exceeded", "request_exceeds_limit")


class Client(Protocol):
    """The client's side of an exchange: its connection, as far as the pipeline needs it."""

    def set_deadline(self, deadline_s: float) -> None:
        """When the connection is to be ended unless something happens before (monotonic seconds)."""
        ...

    def send_last(
        self, exchange: Exchange, data: bytes, keep_alive: bool, body: responses.Text = b""
    ) -> Optional[bool]:
        """Write an answer's `data`, then `body`; False when the client is gone, None when another thread writes the
        rest and calls `exchange.sent` then."""
        ...

    def before_last(self, exchange: Exchange, keep_alive: bool) -> None:
        """Say that the last write of an exchange comes now."""
        ...

    def shut_writing(self) -> None:
        """Tell the client that nothing more comes."""
        ...

    def await_previous(self, exchange: Exchange) -> None:
        """Wait until the answer before this one has been written."""
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


class Exchange(Job):
    """One request and what becomes of it."""

    __slots__ = (
        "accepted_s",
        "admission",
        "asked",
        "call",
        "client",
        "client_address",
        "cost_usd",
        "cut",
        "enqueued_s",
        "error",
        "head",
        "identity",
        "keep_alive",
        "limit_headers",
        "logged_answer",
        "on_cancel",
        "pipeline",
        "previous",
        "queue_s",
        "relay",
        "request_id",
        "settled",
        "status",
        "stream",
        "ttft_s",
    )

    def __init__(
        self,
        pipeline: Pipeline,
        relay: StreamRelay,
        client: Client,
        client_address: str,
        head: RequestHead,
        accepted_s: float,
    ) -> None:
        super().__init__()
        self.pipeline = pipeline
        self.relay = relay
        self.client = client
        self.client_address = client_address
        self.head = head
        self.accepted_s = accepted_s
        self.enqueued_s = 0.0
        self.queue_s = 0.0
        self.request_id = request_id_of(head)
        self.identity: Optional[Identity] = None
        self.keep_alive = head.keep_alive
        self.call: Optional[Call] = None
        self.asked = ""  # the model that an invalid request names
        self.status = 0
        self.error: Optional[str] = None
        self.ttft_s: Optional[float] = None
        self.on_cancel: Optional[Callable[[], None]] = None
        self.previous: Optional[Exchange] = None
        self.logged_answer = b""
        self.admission: Optional[Admission] = None
        self.limit_headers = b""
        self.cost_usd: Optional[float] = None
        self.settled = False
        self.cut = False  # by the gateway's own end
        self.stream: Optional[EngineStream] = None

    @property
    def error_format(self) -> str:
        """The shape in which this client reads errors: `simple` or `openai`."""
        return error_format_of(self.pipeline.settings.error_format, self.head)

    def cancel(self) -> None:
        """The client has left: end whatever is under way for it. Called by the handler; never blocks."""
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
        if self.queued:  # no worker may come in time: the connection's own thread answers
            self.client.set_deadline(time.monotonic())

    def submit(self, body: bytes) -> bool:
        """Validate, then True: run it now, on this thread, and `leave` the place after it; False: it is queued.

        Raises GatewayError. A queued exchange is concluded by another thread.
        """
        pipeline = self.pipeline
        head = self.head
        request = pipeline.parse(body)
        try:
            self.call = pipeline.validate(head.path, body, request, head.headers, self.request_id, self.identity)
        except GatewayError:
            asked = request.get("model")
            self.asked = asked if type(asked) is str else ""
            raise
        model = pipeline.servable(self.call)  # not before the call is known: what is reported names its model
        self.priority = self.call.priority
        self._admit(pipeline, self.call, model)
        self.enqueued_s = time.monotonic()
        # Before it is queued: the worker that takes it lifts the deadline again.
        self.client.set_deadline(self.enqueued_s + pipeline.settings.queue_timeout_s)
        return pipeline.enqueue(self)

    def _admit(self, pipeline: Pipeline, call: Call, model: str) -> None:
        identity = self.identity
        assert identity is not None  # the door was first
        admission = pipeline.admit(call, model, identity, self.client_address)
        self.admission = admission
        self.limit_headers = admission.header_lines()

    def about_to_finish(self) -> None:
        """Called before the last write: the caller's slot is free before it can know that the answer has ended."""
        stream, call = self.stream, self.call
        try:
            if stream is not None and call is not None:
                self._count(call, stream)
                self._settle(call)
            elif self.admission is not None:
                self.admission.release_concurrency()
        except Exception as error:  # the client gets its answer all the same
            self._report(error)

    def queue_timed_out(self) -> None:
        """Answer after waiting too long for a worker. The caller holds the claim."""
        self.pipeline.workers.gave_up(self)
        self.queue_s = time.monotonic() - self.enqueued_s
        self.keep_alive = False
        self.fail(shutting_down() if self.cut else self.pipeline.queue_timeout())

    def left_the_queue(self) -> None:
        """The client has left before a worker came. The caller holds the claim."""
        self.pipeline.workers.gave_up(self)
        self.queue_s = time.monotonic() - self.enqueued_s
        self.fail(ClientGone())

    def run(self) -> None:
        """Ask and answer. Runs on the thread that has a worker's place; raises nothing."""
        call = self._leave_queue()
        self._conclude_with(call, lambda: self.pipeline.factory.run(call))

    def begin(self) -> Optional[Asking]:
        """As `run`, but never waiting: what is returned is to be passed to `take` or `go_on`; None: it is answered."""
        call = self._leave_queue()
        try:
            return self.pipeline.factory.asker.begin(call)
        except Exception as error:
            self._fail_with(error)
        return None

    def take(self, asking: Asking) -> bool:
        """Answer with what the engine has sent, if that is a whole answer and a good one, or begin the stream that it
        has begun; never waits. False: see `go_on`."""
        call = self.call
        assert call is not None
        try:
            result = self.pipeline.factory.asker.take(asking)
        except Exception as error:
            self._fail_with(error)
            return True
        if result is None:
            return False
        self._go_out(call, result)
        return True

    def go_on(self, asking: Asking) -> None:
        """The rest of `run` after `begin`; may wait."""
        call = self.call
        assert call is not None
        self._conclude_with(call, lambda: self.pipeline.factory.asker.go_on(asking))

    def _leave_queue(self) -> Call:
        call = self.call
        assert call is not None  # submit has set it
        self.client.set_deadline(math.inf)
        self.queue_s = time.monotonic() - self.enqueued_s
        return call

    def _conclude_with(self, call: Call, ask: Callable[[], Union[Answer, EngineStream]]) -> None:
        try:
            result = ask()
        except Exception as error:
            self._fail_with(error)
        else:
            self._go_out(call, result)

    def _go_out(self, call: Call, result: Union[Answer, EngineStream]) -> None:
        try:
            if isinstance(result, Answer):
                self._answer(call, result)
            else:
                self._open(call, result)
        except Exception as error:
            if isinstance(result, EngineStream):
                result.close(Outcome("cancelled"))
            self._give_up(error)

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
                self.finish_with(500, refusal_headers(self, None), body)
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

    def _fail_with(self, error: Exception) -> None:
        if isinstance(error, GatewayError):
            self.fail(error)
        else:
            self.fail(self.pipeline.internal_error(error, self.request_id))

    def _answer(self, call: Call, answer: Answer) -> None:
        if call.stream:
            self.ttft_s = time.monotonic() - self.accepted_s
        if self.pipeline.settings.log_bodies:
            self.logged_answer = bytes(answer.body[:LOGGED_BYTES])
        kind = responses.EVENT_STREAM if call.stream else responses.JSON
        self._settle(call)
        if self.cost_usd is not None:
            kind += b"X-Gateway-Cost-Usd: %.9f\r\n" % self.cost_usd
        self.finish_with(200, answer_headers(self, call, kind), answer.body)

    def _open(self, call: Call, stream: EngineStream) -> None:
        self.ttft_s = time.monotonic() - self.accepted_s
        headers = answer_headers(self, call, responses.EVENT_STREAM)
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
        self.client.await_previous(self)
        try:
            data = data[self.client.send_now(data) :]
        except BlockingIOError:
            pass
        except OSError:
            stream.close(Outcome("cancelled"))
            self.conclude("client_closed_request", 499)
            return
        self.stream = stream
        self.relay.take(self, stream, data)

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
            onward = self.pipeline.factory.asker.resume(call, broken)
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
            if not self.settled:
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

    def fail(self, error: GatewayError) -> None:
        """Answer with an error (or with nothing, when the client has left) and conclude. Raises nothing."""
        try:
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
        if self.admission is None:
            self._tell_limits(error)
        elif call is not None:
            self._settle(call)
        if call is not None and call.engine_id is not None:
            headers = answer_headers(self, call, responses.JSON)
        else:
            headers = refusal_headers(self, call)
        body = responses.error_body(error, self.error_format, self.request_id)
        self.finish_with(error.status, headers + responses.error_headers(error), body)

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
        sent = self.client.send_last(self, data, self.keep_alive, body)
        if sent is not None:
            self.sent(sent)

    def sent(self, complete: bool) -> None:
        """The last write is over: conclude. Not `complete`: the client has left before it had everything, or has been
        cut off."""
        if complete:
            self.conclude(self.error, self.status)
        elif self.cut:
            self.conclude("draining", self.status)
        else:
            self.conclude("client_closed_request", 499)

    def conclude(self, error: Optional[str], status: int) -> None:
        """Report the finished request, once, after its last byte. Raises nothing: whatever goes wrong here, the
        exchange has ended."""
        if self.finished:
            return
        self.answered = True
        if self.call is not None:
            self._settle(self.call)
        try:
            try:
                event = self._event(error, status)
            except Exception as unforeseen:
                self._report(unforeseen)
                event = self._least_event(error, status)
            self.pipeline.concluded(self, event)
        except Exception as unforeseen:
            self._report(unforeseen)
        finally:
            self.finish()

    def _least_event(self, error: Optional[str], status: int) -> RequestEvent:
        """What can be told of a request in any case."""
        head = self.head
        latency_s = time.monotonic() - self.accepted_s
        return RequestEvent(unix_s(), self.request_id, head.method, head.path, status, error, latency_s)

    def _event(self, error: Optional[str], status: int) -> RequestEvent:
        """All that is told of a request."""
        now_s = time.monotonic()
        call = self.call
        identity = self.identity
        key = identity.name if identity is not None else None
        head = self.head
        if call is None:
            event = self._least_event(error, status)
            return event._replace(model=_model_name(self.asked or None), key=key, client=self.client_address)
        usage = call.usage
        return RequestEvent(
            unix_s(),
            self.request_id,
            head.method,
            head.path,
            status,
            error,
            now_s - self.accepted_s,
            self.queue_s + call.waited_s,
            call.engine_s,
            self.ttft_s,
            call.stream,
            _model_name(call.served_model if error is None else (call.model or call.served_model)),
            call.engine_id,
            call.attempts,
            call.fallback,
            usage.prompt_tokens if usage else None,
            usage.completion_tokens if usage else None,
            usage.estimated if usage else False,
            key,
            self.client_address,
            tuple(call.records),
            tuple(call.retries),
            self._extra(call),
        )

    def _cost(self, call: Call) -> Optional[float]:
        usage = call.usage
        if usage is None:
            return None
        return self.pipeline.guard.cost(call.served_model, usage.prompt_tokens, usage.completion_tokens)

    def _settle(self, call: Call) -> None:
        """Give back what was reserved beyond the tokens really used, and charge for those; once.

        Before the last write where the usage is known by then: the client's next request finds it done. Raises nothing:
        each step is taken whatever becomes of the others.
        """
        if self.settled:
            return
        self.settled = True
        usage = call.usage
        try:
            self.cost_usd = self._cost(call)
            if self.cost_usd:  # before what was reserved for it is given back
                self.pipeline.guard.spend(self.identity, self.cost_usd)
        except Exception as error:
            self._report(error)
        admission = self.admission
        if admission is None:
            return
        try:
            admission.release_concurrency()
        except Exception as error:
            self._report(error)
        try:
            admission.settle(0 if usage is None else usage.prompt_tokens + usage.completion_tokens)
        except Exception as error:
            self._report(error)

    def _extra(self, call: Call) -> Optional[dict[str, object]]:
        """Further keys of the log line, for what most requests do not have."""
        extra = self._bodies(call) if self.pipeline.settings.log_bodies else {}
        self._settle(call)
        if self.cost_usd is not None:
            extra["cost_usd"] = self.cost_usd
        if call.usage is not None and call.usage.rejected:
            extra["usage_rejected"] = call.usage.rejected
            self.pipeline.usage_rejected(call.served_model or "", call.engine_id or "", call.usage.rejected)
        if call.hedged:
            extra["hedged"] = True
        if call.resumed:
            extra["resumed"] = call.resumed
        return extra or None

    def _bodies(self, call: Call) -> dict[str, object]:
        """What LOG_BODIES=on adds to the log line; of a stream only the request."""
        texts = {"request_body": call.body, "answer_body": self.logged_answer}
        return {name: body[:LOGGED_BYTES].decode("utf-8", "replace") for name, body in texts.items() if body}


def _model_name(asked: Optional[str]) -> Optional[str]:
    """A model as it is reported: what a client asks for may be as long as its body."""
    if asked is None or len(asked) <= MODEL_NAME_CHARS:
        return asked
    return asked[:MODEL_NAME_CHARS] + "…"  # no configured name: those are ASCII
