"""Connections that have a thread only while something must be waited for (`loop.py`).

An idle connection is *parked*: the loop's thread reads what arrives. A whole request of the usual kind is served right
there: checked, sent to an engine, and answered when the engine has, or passed to the relay when a stream has begun.
Everything else (a large body, a busy engine, a retry, a slow client) is passed to a thread, which runs the same code of
`handler.py`, may block, and parks the connection again when it is idle or its stream is open.

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
from gateway.jsonbounds import takes_long
from gateway.pipeline import PATHS
from gateway.server.exchange import Exchange
from gateway.server.handler import LOOK_S, RECV_BYTES, ClientConnection, check_media_type
from gateway.server.loop import HUNG_UP, nothing
from gateway.server.parsing import RequestHead, parse_head
from gateway.upstream.connections import DONTWAIT
from inference import Asking

if TYPE_CHECKING:
    from gateway.server.parkingserver import ParkingServer

DROPPED_MAX = 16  # reads of what is not wanted
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
        exchange = self._exchange
        if exchange is not None and exchange.finished:
            if not exchange.keep_alive:
                self._drop()
                return
            self._exchange = None
        if self._watched:
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
                if events & HUNG_UP and self._asking is None and not exchange.answered:
                    exchange.cancel()  # (while an engine is asked, the watchdog sees it)
                return
            if not exchange.keep_alive:
                self._drop()
                return
            self._exchange = None
        self._more = bool(events & HUNG_UP)  # an end behind what is read now is not reported again
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
                if self._buffer:
                    break
                self._end()
                return
            if not self._buffer:
                self._arrived_s = time.monotonic()
            self._buffer = self._buffer + data if self._buffer else data
            expected = self._expected_bytes(self._buffer)
            if expected == len(self._buffer):
                if expected > MARKS_MAX and takes_long(self._buffer, MARKS_MAX):
                    break  # many small values: parsing and checking them would hold everybody else up
                self._step(self._serve_one)
                return
            if expected < len(self._buffer):
                break
            self.set_deadline(self._arrived_s + self.settings.client_timeout_s)
        self._step(self._pass_on)

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
        self._loop.retarget(connection.descriptor, connection.arrived)
        self._step(functools.partial(self._take, asking))

    def _step(self, step: Callable[[], bool]) -> None:
        """Run one step; it returns whether the connection stays open. Then see who has it next."""
        exchange: Optional[Exchange] = None
        try:
            stays = step()
            exchange = self._exchange
            if stays and exchange is not None and self._job is None and self._asking is None:
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
        elif exchange is not None and exchange.stream is not None:
            self.park()
        else:
            self._exchange = None
            if self._more:
                self._loop.again(self.client_ready, HUNG_UP)  # which may have been behind it
            elif not self._watched:
                self._watch()

    def _expected_bytes(self, buffer: bytes) -> int:
        """The length of the request that begins the buffer, if it can be served here once it is complete.

        0: it is for a thread to read. More than the buffer has: more is to come.
        """
        if len(buffer) >= RECV_BYTES or buffer[:2] == b"\r\n":
            return 0
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            return len(buffer) + 1 if len(buffer) <= self.settings.max_header_bytes else 0
        if end > self.settings.max_header_bytes:
            return 0
        if self._head_bytes and self._head is not None:
            return self._head_bytes + (self._head.content_length or 0)  # more of the body has come
        try:
            head = self._head = parse_head(buffer[:end])
        except HttpError:
            return 0
        length = head.content_length
        if head.method != "POST" or head.path not in PATHS or length is None or head.chunked or head.expects_continue:
            return 0
        expected = end + 4 + length
        if expected >= RECV_BYTES or (self.settings.jwt_jwks and self.pipeline.guard.may_wait(head.headers)):
            return 0
        if expected > len(buffer) and self._refused_by_head(head, length):
            return 0
        self._head_bytes = end + 4
        return expected

    def _refused_by_head(self, head: RequestHead, length: int) -> bool:
        """Whether there is no use in waiting for the body. (Who refuses looks again, and tells.)"""
        headers = head.headers
        try:
            check_media_type(head)
            identity = self.pipeline.guard.authenticator.identify(
                headers.get(b"authorization"), headers.get(b"x-api-key"), head.repeated
            )
            identity.require("infer")
        except GatewayError:
            return True
        return length > self.settings.max_body_bytes

    def _read_head(self) -> Optional[RequestHead]:
        end = self._head_bytes
        if not end or not self._on_loop:
            return super()._read_head()
        # `_expected_bytes` has read it.
        self._head_bytes = 0
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

    def _end(self) -> None:
        self._parked = False
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
                self._loop.watch(connection.descriptor, self.engine_ready, writing=bool(asking.sent.unsent))

    def _leave(self, exchange: Exchange) -> None:
        workers = self.pipeline.workers
        if workers.depth and self._on_loop:
            # Who gives up a place that others wait for may have to run one of them.
            self.server.threads.run(functools.partial(workers.leave, exchange))
        else:
            workers.leave(exchange)

    def _await_close(self) -> bool:
        if not self._on_loop:
            return super()._await_close()
        exchange = self._exchange
        if self._job is not None or self._asking is not None or (exchange is not None and not exchange.finished):
            return True  # not yet
        if self._eof or not self._unread:
            return False
        self._job = nothing  # a thread waits until the client has closed
        return True

    def send_last(self, exchange: Exchange, data: bytes, keep_alive: bool) -> Optional[bool]:
        if not self._on_loop:
            return super().send_last(exchange, data, keep_alive)
        self.before_last(exchange, keep_alive)
        try:
            sent = self.sock.send(data, DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError:
            return False
        if sent == len(data):
            return True
        self.set_deadline(time.monotonic() + self.settings.client_timeout_s)
        self._job = functools.partial(self._send_rest, exchange, data[sent:])
        return None

    # --- on a thread -----------------------------------------------------------------------------------------------

    def _on_thread(self, job: Callable[[], None]) -> None:
        """Do `job` and whatever comes behind it, until the connection is idle (parked) or over (closed)."""
        try:
            if self._serve_until_idle(job):
                self.park()
                return
        except OSError:
            pass  # the client has gone while it was being answered here
        except Exception as error:
            self.pipeline.internal_error(error, "-")
        self._await_turn()
        self._end()

    def _serve_until_idle(self, job: Callable[[], None]) -> bool:
        """False when the connection is to be closed."""
        job()
        exchange = self._exchange
        stays = exchange is None or self._after(exchange)
        while stays:
            exchange = self._exchange
            waits = exchange is not None and not exchange.finished and exchange.stream is None
            if not (self._buffer or self._eof or waits):
                return True
            stays = self._serve_one()
        return False

    def _go_on(self, exchange: Exchange, asking: Asking) -> None:
        try:
            exchange.go_on(asking)
        finally:
            self._ran(exchange)

    def _send_rest(self, exchange: Exchange, rest: bytes) -> None:
        complete = self.send_part(exchange, rest)
        if not complete or not exchange.keep_alive:
            self.shut_writing()
        exchange.sent(complete)
