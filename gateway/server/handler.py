"""One client connection: reads requests, answers what needs no engine, queues the rest, notices the client leaving.

The handler thread (one per connection) owns the reading side of the socket and `_buffer`. While a request is in
flight it goes on reading: the next thing it sees is the next request, kept aside until the answer has been sent, or
the client leaving, which cancels the request wherever it is. Sockets block; `deadline_s` is watched from outside, and
`expire` wakes this thread by shutting the socket down.
"""

from __future__ import annotations

import http.server
import math
import select
import socket
import sys
import time
from typing import TYPE_CHECKING, Any, Optional, Union

from gateway.errors import ClientGone, GatewayError, HttpError, RequestRefused
from gateway.pipeline import PATHS
from gateway.policy.addresses import client_address, unmapped
from gateway.server import responses
from gateway.server.exchange import Exchange
from gateway.server.headers import cors_headers
from gateway.server.parsing import RequestHead, parse_head
from gateway.upstream.connections import DONTWAIT
from gateway.upstream.framing import ChunkedBody, FramingError, TrailersTooLarge

if TYPE_CHECKING:
    from gateway.server.server import GatewayServer

RECV_BYTES = 65536
LOOK_S = 0.25  # how often a request under way is asked whether its client is still there
LINGER_S = 2.0  # how long a connection that is being closed waits for its client to close
READ_AHEAD_BYTES = 65536
SMALL_BODY_BYTES = 4096  # so much of a body that nobody wants is awaited and dropped; more closes the connection
BLANK_LINES_MAX = 64  # before a request line
TAKEN_BYTES = 1048576  # of a large answer that a client must take in each CLIENT_TIMEOUT, or what is left of it
COUNT_TIMEOUT_S = 1.0  # until all that has finished is counted, before a scrape
# An interpreter may not name it (PyPy 3.9); it is the same on every Linux.
_POLLRDHUP = getattr(select, "POLLRDHUP", 0x2000 if sys.platform == "linux" else 0)
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class ClientConnection(http.server.BaseHTTPRequestHandler):
    """Serves one connection from accept to close, on its own thread."""

    server: GatewayServer

    # --- life of the connection ------------------------------------------------------------------------------------

    def setup(self) -> None:
        sock: socket.socket = self.request
        self.sock = sock
        context = self.server.context
        self.settings = context.settings
        self.pipeline = context.pipeline
        self._buffer = b""
        self._exchange: Optional[Exchange] = None
        self._eof = False
        self._expired = False
        self._body_due = False  # the body of the request under way has not been read
        self._first_byte_s = 0.0
        self._arrived_s = 0.0  # when the first byte of what is in `_buffer` came; 0 = not known
        self._running = False
        self._unread = False  # bytes of a refused request are still to come
        self._blank_lines = 0  # before the request line that is due
        self._unsent: Optional[list[memoryview]] = None  # of the last answer: what the loop is to write
        self.set_deadline(time.monotonic() + self.settings.keepalive_timeout_s)
        self.server.watchdog.watch(self)

    def handle(self) -> None:
        try:
            while self._serve_one():
                pass
        except OSError:
            pass  # the client has gone while it was being answered here
        finally:
            self._await_turn()

    def finish(self) -> None:
        self.server.watchdog.forget(self)

    def set_deadline(self, deadline_s: float) -> None:
        """When this connection is to be ended unless something happens before (monotonic seconds)."""
        self._due_s = deadline_s
        if not self._running:
            self.deadline_s = deadline_s

    def _follow_due(self) -> None:
        """Watch for `_due_s` again.

        Another thread may set it meanwhile: it sets `_due_s` first, so it is seen here or its own store of `deadline_s`
        comes last.
        """
        while True:
            due_s = self._due_s
            self.deadline_s = due_s
            if due_s == self._due_s:
                return

    def expire(self) -> None:
        """Look after the connection; on the watchdog's thread, when `deadline_s` has passed.

        While its own thread runs an exchange: has the client left? Else the deadline is real, and who is stuck on the
        socket is woken. A deadline that another thread has just moved is only taken note of.
        """
        now_s = time.monotonic()
        if self._running:
            self.deadline_s = now_s + LOOK_S
            exchange = self._exchange
            if exchange is not None and not exchange.answered:
                if not self._client_is_there():
                    exchange.cancel()
                if now_s < self._due_s:
                    return
        if now_s < self._due_s:
            if not self._running:
                self._follow_due()
            return
        exchange = self._exchange
        stuck_writing = self._running or (exchange is not None and exchange.answered and not exchange.finished)
        self._expired = True
        self._due_s = self.deadline_s = math.inf
        try:
            self.sock.shutdown(socket.SHUT_RDWR if stuck_writing else socket.SHUT_RD)
        except OSError:
            pass

    def _client_is_there(self) -> bool:
        """Whether the client has not closed its side; never blocks and takes nothing from the socket."""
        try:
            if _POLLRDHUP:  # sees a client leave behind bytes that it had sent before
                poll = select.poll()
                poll.register(self.sock, _POLLRDHUP)
                return not poll.poll(0)
            if DONTWAIT:
                return self.sock.recv(1, socket.MSG_PEEK | DONTWAIT) != b""
            readable, _, _ = select.select([self.sock], [], [], 0)
            return not readable or self.sock.recv(1, socket.MSG_PEEK) != b""
        except BlockingIOError:
            return True
        except (OSError, ValueError):
            return False

    # --- one request -----------------------------------------------------------------------------------------------

    def _serve_one(self) -> bool:
        """Read one request and see to it; False when the connection is to be closed."""
        exchange: Optional[Exchange] = None
        self._body_due = False
        try:
            head = self._read_head()
            if head is None:
                return False
            if self._is_over():
                return self._await_close()
            self._body_due = head.chunked or bool(head.content_length)
            exchange = self._new_exchange(head)
            self.server.context.routes.check_browser(exchange, head)
            if head.path in PATHS and head.method == "POST":
                self._infer(exchange, head)
            else:
                self._serve_here(exchange, head)
        except GatewayError as error:
            if isinstance(error, HttpError):
                self._unread = True
            if exchange is None:
                if self._is_over():
                    return self._await_close()
                exchange = self._new_exchange(_unreadable_head())
                exchange.keep_alive = False
            self._refuse(exchange, error)
        except Exception as error:
            if exchange is None or exchange.status:
                raise  # nothing to answer, or too late for another answer
            self._refuse(exchange, self.pipeline.internal_error(error, exchange.request_id))
        return self._after(exchange)

    def _after(self, exchange: Exchange) -> bool:
        """Whether the connection stays open behind an exchange."""
        return self._await_close() if not exchange.keep_alive or self._eof else True

    def _is_over(self) -> bool:
        """Whether the answer before was this connection's last, or its client has left: what came behind it is void."""
        previous = self._exchange
        if previous is None:
            return False
        if not previous.answered:
            self._await_turn()
        over = not previous.keep_alive or (self._eof and not self._expired)
        self._unread = self._unread or over
        return over

    def _new_exchange(self, head: RequestHead) -> Exchange:
        previous = self._exchange
        exchange = Exchange(
            self.pipeline,
            self.server.context.relay,
            self,
            self._address_of(head),
            head,
            self._first_byte_s,
        )
        # Usually finished by now; if not, whoever answers next waits until the last write is over.
        exchange.previous = None if previous is None or previous.finished else previous
        self._exchange = exchange
        return exchange

    def _address_of(self, head: RequestHead) -> str:
        """The client's address; behind trusted proxies, the one that they name."""
        trusted = self.settings.trusted_proxies
        peer = unmapped(str(self.client_address[0]))
        if not trusted:
            return peer
        forwarded = head.headers.get(b"x-forwarded-for")
        return client_address(peer, None if forwarded is None else forwarded.decode("latin-1"), trusted)

    def _infer(self, exchange: Exchange, head: RequestHead) -> None:
        exchange.identity = self.pipeline.identify(head.headers, head.repeated, exchange.client_address)
        exchange.identity.require("infer")
        check_media_type(head)
        body = self._read_body(head)
        self._body_due = False
        if exchange.submit(body):
            self._run_here(exchange)

    def _run_here(self, exchange: Exchange) -> None:
        """Run an exchange on this thread, which cannot read meanwhile: `expire` looks whether the client is still
        there."""
        self._running = True
        self.deadline_s = exchange.enqueued_s + LOOK_S
        try:
            exchange.run()
        finally:
            self._ran(exchange)

    def _ran(self, exchange: Exchange) -> None:
        self._running = False
        self._follow_due()
        self._leave(exchange)

    def _leave(self, exchange: Exchange) -> None:
        self.pipeline.workers.leave(exchange)

    def _serve_here(self, exchange: Exchange, head: RequestHead) -> None:
        """Answer what needs no engine, on this thread."""
        if head.path == "/metrics":
            self._count_finished()
        answer = self.server.context.routes.answer(exchange, head, lambda: self._take_body(head))
        self._skip_body(exchange, head)
        headers = b"%bX-Request-ID: %b\r\n%b" % (
            responses.header_lines(answer.headers),
            exchange.request_id.encode("latin-1"),
            cors_headers(head, self.settings.cors_origins),
        )
        exchange.finish_with(answer.status, headers, answer.body)

    def _count_finished(self) -> None:
        """Have what has finished counted before it is shown."""
        self.pipeline.telemetry.flush(COUNT_TIMEOUT_S)

    def _take_body(self, head: RequestHead) -> bytes:
        check_media_type(head)
        body = self._read_body(head)
        self._body_due = False
        return body

    def _refuse(self, exchange: Exchange, error: GatewayError) -> None:
        if isinstance(error, HttpError):
            exchange.keep_alive = False
        self._skip_body(exchange, exchange.head)
        exchange.fail(error)

    # --- reading ---------------------------------------------------------------------------------------------------

    def _receive(self) -> bytes:
        """Block for more bytes; b"" when there will be none. A client that leaves cancels what is in flight."""
        data = self._received()
        if not data:
            self._eof = True
            exchange = self._exchange
            if exchange is not None and not exchange.finished:
                self._left(exchange)
        return data

    def _received(self) -> bytes:
        try:
            return self.sock.recv(RECV_BYTES)
        except OSError:
            return b""

    def _left(self, exchange: Exchange) -> None:
        self._give_up(exchange)
        self._await_turn()

    def _give_up(self, exchange: Exchange) -> None:
        """Nothing more will be read: the exchange has waited too long for a worker, or the client has left."""
        if self._expired:
            if not exchange.answered and exchange.claim():
                exchange.queue_timed_out()
        elif not exchange.answered:
            if exchange.claim():  # still waiting for a worker: its place in the queue is free again
                exchange.left_the_queue()
            else:
                exchange.cancel()

    def _read_head(self) -> Optional[RequestHead]:
        self._first_byte_s = self._arrived_s or time.monotonic()
        self._arrived_s = 0.0
        self._drop_blank_lines()
        buffer = self._buffer
        if has_begun(buffer) and b"\r\n\r\n" not in buffer:
            buffer = self._begun(buffer)
        while True:
            end = buffer.find(b"\r\n\r\n")
            if end >= 0:
                break
            if len(buffer) > self.settings.max_header_bytes + 3:  # a part of the end may be among them
                self._buffer = b""
                raise HttpError("headers_too_large", "the request line and headers are too large")
            fresh = not has_begun(buffer)
            data = self._receive()
            if not data:
                return self._no_head(buffer)
            self._buffer = buffer + data
            if fresh:
                self._drop_blank_lines()
            buffer = self._buffer
            if fresh:
                if not has_begun(buffer):  # the connection is idle as before, and not for longer
                    if self._expired:
                        return None
                    continue
                self._first_byte_s = time.monotonic()
            exchange = self._exchange
            if exchange is not None and not exchange.answered:
                self._await_turn()
                buffer = self._buffer
            if fresh and buffer.find(b"\r\n\r\n") < 0:
                self.set_deadline(self._first_byte_s + self.settings.client_timeout_s)
        self._blank_lines = 0
        if end > self.settings.max_header_bytes:
            raise HttpError("headers_too_large", "the request line and headers are too large")
        self._buffer = buffer[end + 4 :]
        return parse_head(buffer[:end])

    def _drop_blank_lines(self) -> None:
        """Drop what a client sends between requests (RFC 9112, 2.2): empty lines, each ended by CRLF and nothing else.

        Raises HttpError when there are too many.
        """
        buffer = self._buffer
        if buffer[:2] != b"\r\n":
            return
        start, last = 2, 2 * (BLANK_LINES_MAX - self._blank_lines)
        while buffer.startswith(b"\r\n", start) and start <= last:
            start += 2
        if start > last:
            raise HttpError("bad_request", "there are too many empty lines before the request line")
        self._buffer = buffer[start:]
        self._blank_lines += start // 2

    def _begun(self, buffer: bytes) -> bytes:
        """A part of a head came behind the request before: the rest is due as if it had come alone."""
        self._buffer = buffer
        exchange = self._exchange
        if exchange is not None and not exchange.answered:
            self._await_turn()  # until its last write the deadline belongs to the exchange
            self._first_byte_s = time.monotonic()
        self.set_deadline(self._first_byte_s + self.settings.client_timeout_s)
        return self._buffer

    def _no_head(self, buffer: bytes) -> Optional[RequestHead]:
        if self._expired and has_begun(buffer):
            raise HttpError("request_timeout", "the request was not sent in time")
        return None

    def _read_body(self, head: RequestHead) -> bytes:
        limit = self.settings.max_body_bytes
        length = head.content_length
        if head.chunked:
            return self._read_chunked(head, limit)
        if length is None:
            raise RequestRefused("length_required", "a Content-Length or chunked body is required")
        if length > limit:
            raise _too_large(limit)
        buffer = self._buffer
        if len(buffer) >= length:
            self._buffer = buffer[length:]
            return buffer[:length] if len(buffer) > length else buffer
        self._expect_more(head)
        parts = [buffer]
        missing = length - len(buffer)
        while missing > 0:
            data = self._receive_body()
            if len(data) > missing:
                self._buffer = data[missing:]
                data = data[:missing]
            else:
                self._buffer = b""
            parts.append(data)
            missing -= len(data)
        return b"".join(parts)

    def _read_chunked(self, head: RequestHead, limit: int) -> bytes:
        decoder = ChunkedBody(self.settings.max_header_bytes)
        data, self._buffer = self._buffer, b""
        if not data:
            self._expect_more(head)
        parts: list[bytes] = []
        size = 0
        try:
            while True:
                part = decoder.feed(data)
                parts.append(part)
                size += len(part)
                if size + decoder.left_bytes > limit:  # what a chunk announces need not be awaited
                    raise _too_large(limit)
                if decoder.complete:
                    self._buffer = decoder.rest
                    return b"".join(parts)
                self.set_deadline(self._first_byte_s + self.settings.client_timeout_s)
                data = self._receive_body()
        except TrailersTooLarge as error:
            raise HttpError("headers_too_large", f"the chunked body is refused: {error}") from error
        except FramingError as error:
            raise HttpError("bad_request", f"the chunked body is broken: {error}") from error

    def _expect_more(self, head: RequestHead) -> None:
        self.set_deadline(self._first_byte_s + self.settings.client_timeout_s)
        if head.expects_continue and head.version_1_1:
            self._await_turn_of_previous()
            try:
                self.sock.sendall(_CONTINUE)
            except OSError as error:
                self._eof = True
                raise ClientGone from error

    def _receive_body(self) -> bytes:
        data = self._received()
        if data:
            return data
        self._eof = True
        if self._expired:
            raise HttpError("request_timeout", "the request was not sent in time")
        raise HttpError("bad_request", "the body ended early")

    def _skip_body(self, exchange: Exchange, head: RequestHead) -> None:
        """Drop the body of a request that is not wanted; what has not arrived yet closes the connection."""
        if not self._body_due:
            return
        length = head.content_length or 0
        if not exchange.keep_alive or not drops_body(head):
            # Whether or not all of it is there: what becomes of the connection depends on no segment's border.
            exchange.keep_alive = False
            if head.chunked or length > len(self._buffer):
                self._unread = True
            else:
                self._buffer = self._buffer[length:]
            return
        try:
            while len(self._buffer) < length:
                self.set_deadline(self._first_byte_s + self.settings.client_timeout_s)
                self._buffer += self._receive_body()
        except HttpError:
            exchange.keep_alive = False
            self._unread = True
            return
        self._buffer = self._buffer[length:]

    # --- writing ---------------------------------------------------------------------------------------------------

    def await_previous(self, exchange: Exchange) -> None:
        """Wait until the answer before this one has been written."""
        previous = exchange.previous
        if previous is not None:
            exchange.previous = None
            previous.wait(self.settings.client_timeout_s)

    def send_last(
        self, exchange: Exchange, data: bytes, keep_alive: bool, body: responses.Text = b""
    ) -> Optional[bool]:
        """Write an answer's `data`, then `body`, which is not copied; False when the client is gone, None when another
        thread is to see to it.

        All is set before the write: as soon as the client has the answer, its next request may be under way. A client
        that does not take a large answer (TAKEN_BYTES of it in each CLIENT_TIMEOUT) is cut off.
        """
        self.before_last(exchange, keep_alive)
        due_s = self._due_s - time.monotonic()
        self.await_previous(exchange)
        sent = True
        try:
            rest = memoryview(body)
            if rest:
                self.set_deadline(time.monotonic() + self.settings.client_timeout_s)
            self.sock.sendall(data)
            while rest:
                self.set_deadline(time.monotonic() + self.settings.client_timeout_s)
                self.sock.sendall(rest[:TAKEN_BYTES])
                rest = rest[TAKEN_BYTES:]
            if body:
                self.set_deadline(time.monotonic() + due_s)
        except OSError:
            sent = False
            exchange.keep_alive = False  # its client has left: nothing of what it had sent behind this is served
        if not sent or not (keep_alive or self._running):
            self.shut_writing()  # this connection's own thread, where it is the writer, closes it right after
        return sent

    def before_last(self, exchange: Exchange, keep_alive: bool) -> None:
        """Say that the last write of an exchange comes now."""
        idle_s = self.settings.keepalive_timeout_s if keep_alive else LINGER_S
        self.set_deadline(time.monotonic() + idle_s)
        exchange.about_to_finish()
        exchange.answered = True

    def send_now(self, data: Union[bytes, memoryview]) -> int:
        """Write what the socket takes without waiting; raises BlockingIOError when that is nothing, else OSError."""
        return self.sock.send(data, DONTWAIT)

    def stream_over(self) -> None:
        """The relay has ended a stream: here a thread waits for that."""

    def fileno(self) -> int:
        """The client socket's descriptor, for a selector."""
        return self.sock.fileno()

    def shut_writing(self) -> None:
        """Tell the client that nothing more comes."""
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    # --- turns -----------------------------------------------------------------------------------------------------

    def _await_turn(self) -> None:
        """Wait until the exchange in flight has finished; goes on noticing a client that leaves (pipelining is rare,
        so it may poll). What the loop is to write, it writes only when this thread has left the connection to it."""
        exchange = self._exchange
        while exchange is not None and self._unsent is None and not exchange.wait(0.25):
            if self._expired:
                self._give_up(exchange)
            if self._eof or not DONTWAIT or len(self._buffer) > READ_AHEAD_BYTES:
                continue
            try:
                data = self.sock.recv(RECV_BYTES, DONTWAIT)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            self._buffer += data
            if not data:
                self._eof = True
                self._give_up(exchange)

    def _await_turn_of_previous(self) -> None:
        exchange = self._exchange
        if exchange is not None and exchange.previous is not None:
            exchange.previous.wait(self.settings.client_timeout_s)

    def _await_close(self) -> bool:
        """The answer closes the connection: wait for it, then for the client to close, so that nothing is reset."""
        exchange = self._exchange
        if exchange is None:
            return False
        if not exchange.answered:
            while not self._eof and not exchange.finished:
                if not self._receive():
                    break
        self._await_turn()
        if self._eof or not (self._unread or self._buffer or self._more_has_come()):
            return False  # nothing more can come that closing would answer with a reset
        return self._linger()

    def _more_has_come(self) -> bool:
        """Whether something waits behind the request that was the last."""
        try:
            return bool(DONTWAIT) and self.sock.recv(1, socket.MSG_PEEK | DONTWAIT) != b""
        except OSError:
            return False

    def _linger(self) -> bool:
        """Wait for the client to close, for a while; returns whether somebody else does."""
        self.shut_writing()
        self.set_deadline(min(self._due_s, time.monotonic() + LINGER_S))
        seen = 0
        while not self._eof and not self._expired and seen <= self.settings.max_body_bytes:
            try:
                data = self.sock.recv(RECV_BYTES)
            except OSError:
                break
            if not data:
                break
            seen += len(data)
        return False

    def log_message(self, format: str, *args: Any) -> None:
        """http.server's own log is not used."""


def _unreadable_head() -> RequestHead:
    head = RequestHead("-", "-", True)
    head.keep_alive = False
    return head


def has_begun(buffer: bytes) -> bool:
    """Whether there is more in a connection's buffer than what may become an empty line."""
    return buffer != b"" and buffer != b"\r"


def drops_body(head: RequestHead) -> bool:
    """Whether the body of a request that is refused or needs none is awaited and dropped, so that the connection goes
    on behind it. A client that waits to be told to continue may send it, or not."""
    if head.expects_continue and head.version_1_1:
        return False
    return not head.chunked and head.keep_alive and (head.content_length or 0) <= SMALL_BODY_BYTES


def check_media_type(head: RequestHead) -> None:
    """Raise `unsupported_media_type` for a body that is not said to be plain JSON."""
    if b"content-encoding" in head.headers:
        if head.headers[b"content-encoding"].lower() != b"identity":
            raise RequestRefused("unsupported_media_type", "compressed bodies are not supported")
    kind = head.headers.get(b"content-type")
    if kind is None or kind == b"application/json":
        return
    media = kind.partition(b";")[0].strip().lower()
    if media != b"application/json" and not media.endswith(b"+json"):
        raise RequestRefused("unsupported_media_type", "send JSON with Content-Type: application/json")


def _too_large(limit: int) -> HttpError:
    return HttpError("body_too_large", f"the body is larger than {limit} bytes")
