"""One request's answer, complete or a stream.

The loop's thread does all of it, but for what the relay does with a stream that it has taken over (`streaming.py`). How
an answer ends is said by `answering.py`.
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
from gateway.server.answering import Client
from gateway.server.headers import answer_headers
from gateway.server.parsing import RequestHead
from gateway.server.report import LOGGED_BYTES
from gateway.server.streaming import Streaming
from gateway.upstream.call import Call
from gateway.upstream.fields import BY_PATH
from gateway.upstream.passed import media_type_of
from gateway.upstream.stream import EngineStream


class StreamRelay(Protocol):
    """The relay, as an exchange sees it: open streams live there, so that they occupy no worker."""

    def take(self, exchange: Exchange, stream: EngineStream, unsent: bytes) -> None: ...

    def share(self, exchange: Exchange, stream: EngineStream, shared: Shared, head: bytes) -> None: ...


class Exchange(Streaming):
    """One request and what becomes of it. `accepted_s`: when its first byte came (monotonic)."""

    on_cancel: Optional[Callable[[], None]] = None
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
        if self.upload is not None:
            self.upload.fail(ClientGone())
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
            self.media_type = result.media_type
            kind = self._stream_kind() if call.stream or self.media_type else responses.JSON
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
        if BY_PATH[call.path].passes:
            self.media_type = media_type_of(stream.response)
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
        if self.media_type:
            return responses.content_type(self.media_type)
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
