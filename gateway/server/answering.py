"""One request's end: its complete answer or its error is written, then it is reported, once.

For the loop's thread, but `conclude` of a stream, which is for the relay's; so at any moment one thread may write to
the client. `answered` turns True just before the last write, `finished` after it. What the request costs is kept in its
`Account`, what is told of it is made by `report.py`.
"""

from __future__ import annotations

from typing import Optional, Protocol, Union

from gateway.account import Account
from gateway.asked import Asked
from gateway.dialects.bypath import ENDPOINTS, ID_LINES, STATUS_FOR
from gateway.errors import ClientGone, GatewayError, HttpError
from gateway.pipeline import PATHS, Pipeline, shutting_down
from gateway.server import responses
from gateway.server.errorformat import error_format_of
from gateway.server.headers import answer_headers, cors_headers, refusal_headers, request_id_of
from gateway.server.parsing import RequestHead
from gateway.server.report import event_of, least_event

_TELL_LIMITS_THEMSELVES = ("rate_limit_exceeded", "request_exceeds_limit")


class Client(Protocol):
    """The client's side of an exchange: its connection, as far as an answer needs it."""

    holds_large: bool
    """Return whether the rest of a large answer waits for the client."""

    def set_deadline(self, deadline_s: float) -> None:
        """Set when the connection is to be ended unless something happens before (monotonic seconds)."""
        ...

    def send_last(
        self, exchange: Answering, data: bytes, keep_alive: bool, body: responses.Text = b""
    ) -> Optional[bool]:
        """Write an answer's `data`, then `body`; False when the client is gone, None when the rest is written by and by
        and `exchange.written` is called then."""
        ...

    def before_last(self, exchange: Answering, keep_alive: bool) -> None:
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

    def limit_buffer(self, size_bytes: int) -> None:
        """Have the kernel keep no more than about so much of what the client has not taken."""
        ...


class Answering(Asked):
    """One request and the end of it. `accepted_s`: when its first byte came (monotonic)."""

    head: RequestHead
    status = 0
    error: Optional[str] = None
    ttft_s: Optional[float] = None
    logged_answer = b""
    crashed = False
    """What ends the stream is a fault of the gateway, and not that its client has left."""

    def __init__(
        self, pipeline: Pipeline, client: Client, client_address: str, head: RequestHead, accepted_s: float
    ) -> None:
        super().__init__(head, client_address, request_id_of(head), accepted_s)
        self.pipeline = pipeline
        self.client = client
        self.keep_alive = head.keep_alive

    @property
    def error_format(self) -> str:
        """The shape in which this client reads errors: `simple` or `openai`."""
        return error_format_of(self.pipeline.settings.error_format, self.head)

    @property
    def own_lines(self) -> bytes:
        """The headers that only a client of another dialect gets."""
        line = ID_LINES.get(self.error_format)
        return b"" if line is None else line % self.request_id.encode("latin-1")

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
        status = STATUS_FOR.get(self.error_format)
        self.finish_with(
            error.status if status is None else status(error), headers + responses.error_headers(error), body
        )

    def reply(self, status: int, headers: tuple[tuple[str, str], ...], body: bytes) -> None:
        """Write what needed no engine, and conclude."""
        lines = b"%bX-Request-ID: %b\r\n%b" % (
            responses.header_lines(headers),
            self.request_id.encode("latin-1"),
            cors_headers(self.head, self.pipeline.settings.cors_origins),
        )
        self.finish_with(status, lines, body)

    def _tell_limits(self, error: GatewayError) -> None:
        """Tell what is left of the caller's limits, although nothing was taken; one that refused has done so itself."""
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
        if self.head.path in ENDPOINTS:
            headers += self.own_lines
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
        if sent is not None:
            self.written(sent)

    def written(self, complete: bool) -> None:
        """The last write is over: conclude. Not `complete`: the client has left before it had everything, or has been
        cut off."""
        if complete:
            self.conclude(self.error, self.status)
        elif self.crashed:
            self.conclude("internal_error", self.status)
        elif self.cut:
            self.conclude("draining", self.status)
        else:
            self.conclude("client_closed_request", 499)

    def about_to_finish(self) -> None:
        """Called before the last write: the caller's slot is free before it can know that the answer has ended."""
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
