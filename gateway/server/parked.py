"""Connections that have a thread only while something must be waited for (`loop.py`).

An idle connection is *parked*: the loop's thread reads what arrives. A whole request of the usual kind is served right
there: checked, sent to an engine, and answered when the engine has, or passed to the relay when a stream has begun.
So is what needs no engine, and whatever is refused by its head, well-formed or not: who has no key gets no thread,
whatever is sent and however slowly. What a client does not take of its answer is written here when it does, and what
still comes behind a refusal is dropped here until the client has closed. The rest (of callers who are known: a large
body, a busy engine, a retry, what needs the database) is passed to a thread, which runs the same code of `handler.py`,
may block, and parks the connection again when it is idle or its stream is open.

Measured (docs/PERFORMANCE.md): with a thread a connection, 32 busy ones hand the interpreter's lock over eight times a
request, which costs more than the request itself; and an idle one takes 39 KB.

Who owns a connection is said by `_parked`: True, the loop's thread; False, the thread it was passed to. Each passes it
on as the last thing it does with it, so there is no lock. Never blocks on the loop's thread.
"""

from __future__ import annotations

import functools
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Callable, Optional

from gateway.errors import GatewayError, HttpError
from gateway.inference import Asking
from gateway.jsonbounds import takes_long
from gateway.pipeline import PATHS
from gateway.policy.auth import Identity
from gateway.server import responses
from gateway.server.exchange import Exchange
from gateway.server.handler import (
    LINGER_S,
    LOOK_S,
    RECV_BYTES,
    TAKEN_BYTES,
    ClientConnection,
    check_media_type,
    drops_body,
    has_begun,
)
from gateway.server.loop import HUNG_UP, nothing
from gateway.server.parsing import RequestHead, parse_head
from gateway.upstream.connections import DONTWAIT
from gateway.upstream.shortage import overloaded

if TYPE_CHECKING:
    from gateway.server.parkingserver import ParkingServer

DROPPED_MAX = 16  # reads of what is not wanted
LINGER_READS = 2  # of the same, in a connection's turn
FOR_THREAD, KEYS_LATER, COUNTS_LATER = -1, -2, -3  # instead of the bytes that a request has: it cannot be served here
KEYS_LATER_S = 0.1  # until it is seen again whether an identity provider's keys have come
COUNTS_LATER_S = 0.002  # until it is seen again whether what has finished can be counted
COUNT_LOOKS = 20  # then it is shown as it is
ALWAYS_OPEN = ("/healthz", "/readyz")
_READING, _WAITING, _LINGERING = 0, 1, 2
_dropped = bytearray(RECV_BYTES)  # nobody reads it
MARKS_MAX = 4000  # commas and brackets in a body that is read here: a millisecond's work at most


class ParkedConnection(ClientConnection):
    """Serves one connection from accept to close, on the loop's thread and, when it must wait, on another."""

    server: ParkingServer

    def __init__(self, request: socket.socket, client_address: Any, server: ParkingServer) -> None:
        # Not BaseRequestHandler's: that serves the connection to its end.
        self.request = request
        self.client_address = client_address
        self.server = server
        self.setup()
        self._loop = server.loop
        self._descriptor = request.fileno()
        self._parked = True
        self._watched = False  # by the loop
        self._more = False  # something has arrived behind the request under way
        self._behind = False  # what is in `_buffer` has not been looked at
        self._state = _READING  # or what this connection does instead
        self._looks = 0  # at whether what has finished can be counted
        self._dropped_bytes = 0
        self._unsent_is_large = False
        self._has_place = False  # a worker's, for what is unsent
        self._taken_bytes = 0  # since its deadline was set
        self._thread_id = 0  # of the thread that has the connection
        self._asking: Optional[Asking] = None  # what an engine has been asked on the loop's thread
        self._head: Optional[RequestHead] = None  # of the request in `_buffer`, with `_head_bytes`
        self._head_bytes = 0  # 0: it has not been read
        self._job: Optional[Callable[[], None]] = None  # what a thread is to begin with

    def park(self) -> None:
        """Let the loop's thread have the connection. The last thing that a thread does with it."""
        self._more = False
        self._head_bytes = 0
        self._parked = True
        if self._on_loop:
            self._look(0)
        elif not self._loop.soon(self._look):
            self._end()

    def _watch(self) -> None:
        """From now on the loop tells when something comes. Not before: most connections have their request with them,
        and many have only one."""
        self._watched = True
        self._loop.watch(self._descriptor, self.client_ready)

    def stream_over(self) -> None:
        """The relay has ended a stream."""
        self._loop.soon(self._look)

    # --- on the loop's thread --------------------------------------------------------------------------------------

    def _look(self, events: int) -> None:
        """What has come from the client meanwhile was reported to nobody, or too early."""
        if not self._parked:
            return
        if self._unsent is not None:
            self._watch_writing()
            return
        if self._state == _LINGERING:
            self._exchange = None
            self._drop_on()
            return
        exchange = self._exchange
        if exchange is not None and exchange.finished:
            if not exchange.keep_alive:
                self._drop()
                return
            self._exchange = exchange = None
        if exchange is None and self._buffer:
            self._behind = True
            self._loop.again(self.client_ready, HUNG_UP)
        elif self._watched:
            self._loop.look(self._descriptor)
        else:
            self._watch()

    def client_ready(self, events: int) -> None:
        """Something has come from the client, or it has left."""
        if not self._parked:
            return  # a thread is reading, or nobody any more
        exchange = self._exchange
        if exchange is not None:
            if not exchange.finished:
                self._more = True  # looked at when it has its answer, or its stream is over
                if self._unsent is not None:
                    self._step(self._write_on)
                elif events & HUNG_UP and self._asking is None and not exchange.answered:
                    exchange.cancel()  # (while an engine is asked, the watchdog sees it)
                return
            if not exchange.keep_alive and self._state != _LINGERING:
                self._drop()
                return
            self._exchange = None
        if self._state:
            if self._state == _LINGERING:
                self._drop_on()
            return  # else it is looked at when its time has come
        self._more = bool(events & HUNG_UP)  # an end behind what is read now is not reported again
        if self._behind:
            self._behind = False
            self._arrived_s = self._arrived_s or time.monotonic()
            if self._see_to(self._expected_bytes(self._buffer)):
                return
        while True:
            try:
                data = self.sock.recv(RECV_BYTES, DONTWAIT)
            except BlockingIOError:
                if not self._watched:
                    self._watch()
                return
            except OSError:
                data = b""
            if not data:
                self._ended()
                return
            if len(self._buffer) < 2:  # it has not begun before, but for what may become an empty line
                self._arrived_s = time.monotonic()
            self._buffer = self._buffer + data if self._buffer else data
            expected = self._expected_bytes(self._buffer)
            if expected == len(self._buffer):
                self._serve_or_pass_on(expected)
                return
            if self._see_to(expected):
                return

    def _see_to(self, expected: int) -> bool:
        """Serve the request that begins the buffer, or see who does; False: more is to come."""
        if expected > len(self._buffer):
            if has_begun(self._buffer):
                self.set_deadline(self._arrived_s + self.settings.client_timeout_s)
            return False
        if expected >= 0:
            self._more = True  # there may be more than one read has taken
            self._serve_or_pass_on(expected)
        elif expected == FOR_THREAD:
            self._step(self._pass_on)
        else:
            self._look_later(KEYS_LATER_S if expected == KEYS_LATER else COUNTS_LATER_S)
        return True

    def _serve_or_pass_on(self, expected: int) -> None:
        self._step(self._pass_on if expected > MARKS_MAX and self._takes_long(expected) else self._serve_one)

    def _takes_long(self, expected: int) -> bool:
        """Whether a body is one of many small values, which would hold everybody else up, and its caller is known."""
        head = self._head
        assert head is not None
        if head.method != "POST" or head.path not in PATHS or not takes_long(self._buffer[:expected], MARKS_MAX):
            return False
        return not self._refused_by_head(head)

    def _ended(self) -> None:
        """The client sends nothing more, or had its time to."""
        head = self._head if self._head_bytes else None
        if not has_begun(self._buffer):
            self._end()
        elif head is not None and self._keys_are_awaited(head):
            self._look_later(KEYS_LATER_S)
        else:
            self._step(self._serve_one)  # as far as it has come

    def _look_later(self, delay_s: float) -> None:
        self._state = _WAITING
        self.set_deadline(self._arrived_s + self.settings.client_timeout_s)
        self._loop.later(delay_s, self._look_again)

    def _look_again(self, events: int) -> None:
        if self._parked and self._state == _WAITING:
            if self._expired:
                self._end()  # what it waited for has not come in time
                return
            self._state = _READING
            self._behind = True
            self.client_ready(HUNG_UP)

    def _drop(self) -> None:
        """The last answer has been written: what has come behind its request is void."""
        try:
            for _ in range(DROPPED_MAX):  # closing with something unread is a reset, which may overtake the answer
                if not self.sock.recv(RECV_BYTES, DONTWAIT):
                    break
        except OSError:
            pass
        self._end()

    def engine_ready(self, events: int) -> None:
        """The engine has answered, or its connection has ended."""
        asking = self._asking
        if asking is None or asking.sent is None:
            return
        connection = asking.sent.connection
        if not asking.sent.receive():
            return
        self._asking = None
        self._loop.forget(connection.descriptor)  # what comes from now on is seen by who takes the connection next
        self._step(functools.partial(self._take, asking))

    def _step(self, step: Callable[[], bool]) -> None:
        """Run one step; it returns whether the connection stays open. Then see who has it next."""
        exchange: Optional[Exchange] = None
        try:
            stays = step()
            exchange = self._exchange
            under_way = self._job is not None or self._asking is not None or self._unsent is not None
            if stays and exchange is not None and not under_way:
                if exchange.finished:
                    stays = self._after(exchange)
                elif exchange.stream is None:
                    self._job = nothing  # it waits for a worker: a thread sees to the client meanwhile
        except OSError:
            stays = False  # the client has gone while it was being answered
        except Exception as error:
            self.pipeline.internal_error(error, "-")
            stays = False
        job, self._job = self._job, None
        if job is not None:
            self._parked = False
            self.server.threads.run(functools.partial(self._on_thread, job))
        elif self._asking is not None:
            pass
        elif not stays:
            self._end()
        elif self._unsent is not None:
            self._watch_writing()
        elif exchange is not None and exchange.stream is not None:
            self.park()
        elif self._state == _LINGERING:
            self._exchange = None
            self._drop_on()
        else:
            self._exchange = None
            if self._more or self._buffer:
                self._behind = self._buffer != b""
                self._loop.again(self.client_ready, HUNG_UP)  # which may have been behind it
            elif not self._watched:
                self._watch()

    def _expected_bytes(self, buffer: bytes) -> int:
        """The bytes of the buffer's first request that must be there before it can be served or refused here.

        More than the buffer has: more is to come. Negative: FOR_THREAD, KEYS_LATER or COUNTS_LATER.
        """
        if self._head_bytes and self._head is not None:
            expected = self._head_bytes + (self._head.content_length or 0)  # more of the body has come
            again = self.settings.jwt_jwks and expected <= len(buffer)  # since the head came, keys may be due again
            return KEYS_LATER if again and self._keys_are_awaited(self._head) else expected
        if buffer[:1] == b"\r":
            try:
                self._drop_blank_lines()
            except HttpError:
                return 0  # `_serve_one` refuses it
            buffer = self._buffer
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            return len(buffer) + 1 if len(buffer) <= self.settings.max_header_bytes + 3 else 0
        if end > self.settings.max_header_bytes:
            return 0
        try:
            head = self._head = parse_head(buffer[:end])
        except HttpError:
            return 0
        begins = end + 4
        if self.settings.jwt_jwks and self._keys_are_awaited(head):
            return KEYS_LATER
        if head.method != "POST" or head.path not in PATHS:
            return self._expected_elsewhere(head, begins)
        length = head.content_length
        if length is None or begins + length >= RECV_BYTES or head.chunked or head.expects_continue:
            return self._unread_body(head, begins) if self._refused_by_head(head) else FOR_THREAD
        if begins + length > len(buffer) and self._refused_by_head(head):
            return self._unread_body(head, begins)
        self._head_bytes = begins
        return begins + length

    def _unread_body(self, head: RequestHead, begins: int) -> int:
        """As `_expected_bytes`, of a request whose body nobody reads."""
        self._head_bytes = begins
        length = head.content_length or 0
        return begins + length if drops_body(head) and length <= self.settings.max_body_bytes else begins

    def _expected_elsewhere(self, head: RequestHead, begins: int) -> int:
        """As `_expected_bytes`, of a request that needs no engine."""
        path = head.path
        if path.startswith(("/admin/", "/auth/")):
            if head.method != "OPTIONS" and self._is_known(head):
                return FOR_THREAD  # it may wait for the database
        elif path == "/metrics" and self._looks < COUNT_LOOKS:
            # Who has just been answered by a thread finds that in the numbers, too.
            if self.pipeline.is_concluding() or not self.pipeline.telemetry.flush(0.0):
                self._looks += 1
                return COUNTS_LATER
        self._looks = 0
        return self._unread_body(head, begins)

    def _keys_are_awaited(self, head: RequestHead) -> bool:
        """Whether looking at a token would have to wait for an identity provider's keys, which are being read now."""
        return head.path not in ALWAYS_OPEN and self.pipeline.guard.may_wait(head.headers)

    def _is_known(self, head: RequestHead) -> bool:
        try:
            self._identify(head)
        except GatewayError:
            return False
        return not self.server.context.routes.is_foreign(head)

    def _identify(self, head: RequestHead) -> Identity:
        """Who is asking, unaudited. Raises GatewayError."""
        headers = head.headers
        return self.pipeline.guard.authenticator.identify(
            headers.get(b"authorization"), headers.get(b"x-api-key"), head.repeated
        )

    def _refused_by_head(self, head: RequestHead) -> bool:
        """Whether there is no use in waiting for the body. (Who refuses looks again, and tells.)"""
        length = head.content_length
        try:
            check_media_type(head)
            self._identify(head).require("infer")
        except GatewayError:
            return True
        if not head.chunked and (length is None or length > self.settings.max_body_bytes):
            return True
        return self.server.context.routes.is_foreign(head)

    def _read_head(self) -> Optional[RequestHead]:
        end = self._head_bytes
        if not end or not self._on_loop:
            return super()._read_head()
        # `_expected_bytes` has read it.
        self._head_bytes = 0
        self._blank_lines = 0
        self._buffer = self._buffer[end:]
        self._first_byte_s = self._arrived_s
        self._arrived_s = 0.0
        return self._head

    def _pass_on(self) -> bool:
        self._head_bytes = 0
        self._job = nothing
        return True

    def _take(self, asking: Asking) -> bool:
        exchange = self._exchange
        assert exchange is not None
        assert asking.sent is not None
        if asking.sent.stream is not None or not asking.sent.ready:
            asking.sent.connection.unwatch()  # the relay watches it, or a thread waits
        taken = True
        try:
            taken = exchange.take(asking)
        finally:
            if taken:
                self._ran(exchange)
        if not taken:
            asking.sent.connection.unwatch()
            self._job = functools.partial(self._go_on, exchange, asking)
        return True

    def _watch_writing(self) -> None:
        """Have the rest of the answer written when the client takes something."""
        if self._watched:
            self._loop.watch_writing(self._descriptor, True)
        else:
            self._watched = True
            self._loop.watch(self._descriptor, self.client_ready, writing=True)

    def _write_on(self) -> bool:
        """Write what the client takes of the rest of its answer; False when it has left or is cut off."""
        exchange = self._exchange
        unsent = self._unsent
        assert exchange is not None
        assert unsent is not None
        try:
            while unsent:
                piece = unsent[0][:TAKEN_BYTES]
                sent = self.sock.send(piece, DONTWAIT)
                self._note_taken(sent)
                unsent[0] = unsent[0][sent:]
                if not unsent[0]:
                    del unsent[0]
                elif sent == len(piece):
                    self._loop.again(self.client_ready, 0)  # others have their turn between
                    return True
        except BlockingIOError:
            return True
        except OSError:
            self._give_up_writing()
            return False
        self._unsent = None
        self._loop.watch_writing(self._descriptor, False)
        self.set_deadline(time.monotonic() + (self.settings.keepalive_timeout_s if exchange.keep_alive else LINGER_S))
        self._concluded(exchange, True)
        return True

    def _note_taken(self, size: int) -> None:
        self._taken_bytes += size
        if self._taken_bytes >= TAKEN_BYTES:
            self._taken_bytes = 0
            self.set_deadline(time.monotonic() + self.settings.client_timeout_s)

    def _give_up_writing(self) -> None:
        """The client has left before it had all of its answer, or has been cut off."""
        exchange = self._exchange
        if self._unsent is not None and exchange is not None:
            self._unsent = None
            self._concluded(exchange, False)

    def _concluded(self, exchange: Exchange, complete: bool) -> None:
        exchange.sent(complete)
        if self._has_place:
            self._has_place = False
            self._leave(exchange)

    def _drop_on(self) -> None:
        """Drop what still comes behind the last answer, until the client has closed, or for long enough."""
        try:
            for _ in range(LINGER_READS):
                size = self.sock.recv_into(_dropped, RECV_BYTES, DONTWAIT)
                self._dropped_bytes += size
                if not size or self._expired or self._dropped_bytes > self.settings.max_body_bytes:
                    self._end()
                    return
        except BlockingIOError:
            if not self._watched:
                self._watch()
        except OSError:
            self._end()
        else:
            self._loop.again(self.client_ready, 0)

    def _end(self) -> None:
        self._parked = False
        self._give_up_writing()
        self.finish()
        self._exchange = None  # it refers to this connection
        self._loop.forget(self._descriptor)
        self.server.closed(self.sock)

    # --- on either -------------------------------------------------------------------------------------------------

    @property
    def _on_loop(self) -> bool:
        return threading.get_ident() == self._loop.thread_id

    def _run_here(self, exchange: Exchange) -> None:
        if not self._on_loop:
            super()._run_here(exchange)
            return
        self._running = True
        self.deadline_s = exchange.enqueued_s + LOOK_S
        asking = exchange.begin()
        if asking is None:
            self._ran(exchange)
        elif asking.sent is None:
            self._job = functools.partial(self._go_on, exchange, asking)
        else:
            self._asking = asking
            self.server.asked += 1
            connection = asking.sent.connection
            if connection.descriptor >= 0:
                self._loop.retarget(connection.descriptor, self.engine_ready)
            else:
                connection.watched_by(self._loop.unwatch)
                try:
                    self._loop.watch(connection.descriptor, self.engine_ready, writing=bool(asking.sent.unsent))
                except OSError as error:  # the system lets nobody watch more: the gateway's own fault
                    connection.unwatch()
                    asking.sent.fault = overloaded(error)
                    self._asking = None
                    self._job = functools.partial(self._go_on, exchange, asking)

    def _leave(self, exchange: Exchange) -> None:
        if self._unsent is not None and self._unsent_is_large:
            self._has_place = True  # until the client has it all: so there are not more large answers than places
            return
        workers = self.pipeline.workers
        if workers.depth and self._on_loop:
            # Who gives up a place that others wait for may have to run one of them.
            self.server.threads.run(functools.partial(workers.leave, exchange))
        else:
            workers.leave(exchange)

    def _await_close(self) -> bool:
        if self._unsent is not None or self._state == _LINGERING:
            return True
        if not self._on_loop:
            return super()._await_close()
        exchange = self._exchange
        if self._job is not None or self._asking is not None or (exchange is not None and not exchange.finished):
            return True  # not yet
        if self._eof or not (self._unread or self._buffer or self._more):
            return False
        return self._linger()

    def _linger(self) -> bool:
        # The loop drops what comes, once it has the connection.
        if self._state != _LINGERING:
            self._state = _LINGERING
            self._buffer = b""
            self.shut_writing()
            self.set_deadline(min(self._due_s, time.monotonic() + LINGER_S))
        return True

    def _received(self) -> bytes:
        # What has not come when the loop serves a request does not come.
        return b"" if self._on_loop else super()._received()

    def _count_finished(self) -> None:
        if not self._on_loop:  # else `_expected_elsewhere` has
            super()._count_finished()

    def send_last(
        self, exchange: Exchange, data: bytes, keep_alive: bool, body: responses.Text = b""
    ) -> Optional[bool]:
        thread_id = threading.get_ident()
        if thread_id != self._loop.thread_id and thread_id != self._thread_id:
            return super().send_last(exchange, data, keep_alive, body)  # a worker, while a thread sees to the client
        self.before_last(exchange, keep_alive)
        if exchange.previous is not None:
            self.await_previous(exchange)  # never on the loop, where each is finished before the next begins
        try:
            sent = self.sock.send(data, DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._eof = True  # it has left: what it had sent behind this is not served to nobody
            return False
        if sent == len(data) and not body:
            return True
        # The loop writes the rest, at once where it is called here.
        self._taken_bytes = 0
        self.set_deadline(time.monotonic() + self.settings.client_timeout_s)
        self._unsent_is_large = body != b""
        self._unsent = [memoryview(part) for part in (data[sent:], body) if part]
        return None

    # --- on a thread -----------------------------------------------------------------------------------------------

    def _on_thread(self, job: Callable[[], None]) -> None:
        """Do `job` and whatever comes behind it, until the loop can see to the connection (parked) or it is over
        (closed)."""
        self._thread_id = threading.get_ident()
        stays = False
        try:
            stays = self._serve_until_idle(job)
        except OSError:
            pass  # the client has gone while it was being answered here
        except Exception as error:
            self.pipeline.internal_error(error, "-")
        self._thread_id = 0  # which may be another's later
        if stays:
            self.park()
            return
        self._give_up_writing()
        self._await_turn()
        self._end()

    def _serve_until_idle(self, job: Callable[[], None]) -> bool:
        """False when the connection is to be closed."""
        job()
        exchange = self._exchange
        stays = exchange is None or self._after(exchange)
        while stays:
            if self._unsent is not None or self._state == _LINGERING:
                return True
            exchange = self._exchange
            waits = exchange is not None and not exchange.finished and exchange.stream is None
            if not (self._buffer or self._eof or waits):
                return True
            stays = self._serve_one()
        return self._unsent is not None

    def _go_on(self, exchange: Exchange, asking: Asking) -> None:
        try:
            exchange.go_on(asking)
        finally:
            self._ran(exchange)
