"""One client's connection: a state, and what happens in it.

The loop's thread owns every client's socket, from accept to close, so nothing here locks or blocks. It reads what the
client sends, runs the request's steps (`task.py`), sees the client leave, and writes the answer when the client takes
it. A stream's bytes are written by the relay, which says when it is over.

    state      the socket is ready                its time is over             left for
    READING    read; a whole request is served    408 or an end                ASKING, HELD, CLOSED
    HELD       (the body waits in the socket)     an end                       READING, CLOSED
    ASKING     read ahead, see the client leave   see it, or give up the wait  all but HELD
    WRITING    write on                           an end: nothing was taken    READING, LINGERING, CLOSED
    STREAMING  read ahead, see the client leave   (the relay keeps the time)   READING, LINGERING, CLOSED
    LINGERING  drop what comes                    an end                       CLOSED

Who leaves is seen at once while a request is queued or a stream is open, and after LOOK_S while an engine is asked: a
client may close its side and still want the answer.

In WRITING and HELD what comes is left in the socket: READING begins with reading, so nothing of it is missed.
"""

from __future__ import annotations

import socket
import time
from typing import Any, Callable, Optional, Union

from gateway.errors import ClientGone
from gateway.server.clientside import LINGER_S
from gateway.server.door import address_behind, unreadable_head
from gateway.server.exchange import Exchange
from gateway.server.loop import HUNG_UP
from gateway.server.reader import Refusal, Request
from gateway.server.receiving import RECV_BYTES, State
from gateway.server.underway import Server, UnderWay
from gateway.server.uploading import Uploading

LOOK_S = 0.25  # after this, a request under way is watched for its client leaving; who has closed its side has left
LINGER_READS = 2  # in a connection's turn
READ_AHEAD_BYTES = 65536
_dropped = bytearray(RECV_BYTES)  # nobody reads it


class Connection(Uploading):
    """Serves one client, on the loop's thread. `deadline_s`: when `due` is called unless it is moved (monotonic)."""

    def __init__(self, request: socket.socket, client_address: Any, server: Server) -> None:
        super().__init__(request, client_address, server)
        self._request: Optional[UnderWay] = None
        self._dropped_bytes = 0

    def ready(self, events: int) -> None:
        """The socket has something, takes something, or has ended; also to be called in vain."""
        if events & HUNG_UP or (events and self.state is State.WRITING):
            self._more = True
        try:
            _ON_READY[self.state](self, events)
        except Exception as error:
            self._crashed(error)

    def due(self, now_s: float) -> None:
        """`deadline_s` has passed."""
        try:
            _WHEN_DUE[self.state](self, now_s)
        except Exception as error:
            self._crashed(error)

    def _crashed(self, error: Exception) -> None:
        self.pipeline.internal_error(error, "-")
        if self._request is None or not self._request.runs:
            self._end()

    def _see(self) -> None:
        """Be told of what comes, if that is not so already."""
        if not self._watched or self._loop.each_once:
            self._watch()
        elif self._more and self._request is not None:
            self._read_ahead(0)

    def _end(self) -> None:
        self.state = State.CLOSED
        self._conclude_unsent(False)
        self._request = None  # it refers to this connection
        self._loop.forget(self._descriptor)
        self.server.closed(self.sock)

    def _nothing(self, events: float) -> None:
        """Ignore it: the next state begins by reading, and the relay keeps the time."""

    # --- a request -------------------------------------------------------------------------------------------------

    def _serve(self, event: Union[Request, Refusal]) -> None:
        self._judged = False
        self._unread = isinstance(event, Refusal) or not event.whole
        self.state = State.ASKING
        self.deadline_s = self._arrived_s + LOOK_S
        head = event.head or unreadable_head()
        trusted = self.settings.trusted_proxies
        address = address_behind(head, self._peer, trusted) if trusted else self._peer
        exchange = Exchange(self.pipeline, self.server.context.relay, self, address, head, self._arrived_s)
        self._arrived_s = 0.0
        if event.uploads:
            self._begin_upload(exchange)
        request = self._request = UnderWay(exchange, self.server, self._after_answer)
        request.begin(event)
        if request.runs:
            if self._upload is not None:
                self._take_body(self._upload)
            elif exchange.queued:
                self._see()

    def _read_ahead(self, events: int) -> None:
        """A request is under way: take what comes of its body, or behind it, for a while, and see whether the client
        leaves."""
        request = self._request
        assert request is not None
        if self._upload is not None:
            self._take_body(self._upload)
            if not self._eof:
                return
        while len(self._ahead) < READ_AHEAD_BYTES and not self._eof:
            try:
                data = self.sock.recv(RECV_BYTES)
            except BlockingIOError:
                self._more = False
                self._watch()
                return
            except OSError:
                self._ahead = b""
                self._reader.over = True
                self._eof = True
                request.leave()
                return
            self._ahead += data
            self._eof = not data
        self._more = True
        if self._eof or (events & HUNG_UP and len(self._ahead) >= READ_AHEAD_BYTES):
            if self.state is State.STREAMING or request.exchange.queued:
                request.leave()
            else:  # an answer that is about to come may still be taken
                self._eof = True
                self.set_deadline(time.monotonic() + LOOK_S)

    def _look_after(self, now_s: float) -> None:
        """A request has been under way for a while."""
        request = self._request
        assert request is not None
        self.set_deadline(now_s + LOOK_S)
        if self._upload is not None:
            self._look_after_upload(self._upload, now_s)
        if self._eof:
            request.leave()
        elif not request.give_up_waiting(now_s):
            self._see()

    def _after_answer(self) -> None:
        """See what becomes of the connection now that a request has its answer, or what there is of it."""
        request = self._request
        assert request is not None
        if self._upload is not None:  # nobody takes the rest
            self._end_upload(self._upload, ClientGone())
        if self._unsent is not None:
            self.state = State.WRITING
            self._write_on()
        elif not request.exchange.finished:
            self.state = State.STREAMING
            if self._eof:
                request.leave()
            else:
                self._see()
        elif not request.exchange.keep_alive:
            self._close_behind()
        else:
            self._request = None
            self.state = State.READING
            if self._more or self._ahead or self._reader.buffered_bytes or self._eof:
                self._loop.again(self._next, 0)
            else:
                self._see()

    # --- writing ---------------------------------------------------------------------------------------------------

    def _write_on(self, events: int = 0) -> None:
        """Write what the client takes of the rest of its answer."""
        request, unsent = self._request, self._unsent
        assert request is not None
        assert unsent is not None
        try:
            if not unsent.write(self.sock):
                self._loop.again(self.ready, 0)
                return
        except BlockingIOError:
            self._watch(writing=True)
            return
        except OSError:
            self._end()
            return
        keep_alive = request.exchange.keep_alive
        self._give_idle_time(keep_alive)
        self._conclude_unsent(True)
        if keep_alive:
            self._request = None
            self.state = State.READING
            self._loop.again(self._next, 0)
        else:
            self._unread = True  # nobody has looked whether it is so
            self._close_behind()

    def _conclude_unsent(self, complete: bool) -> None:
        """The client has all of its answer; or it has left before, or has been cut off."""
        if self._unsent is not None and self._request is not None:
            self._unsent = None
            self.holds_large = False
            self._request.exchange.written(complete)
            self._request.leave_place()

    def stream_over(self) -> None:
        """The relay has ended a stream, on its own thread."""
        self._loop.soon(self._behind_stream)

    def _behind_stream(self, events: int) -> None:
        request = self._request
        if self.state is State.STREAMING and request is not None and request.exchange.finished:
            self._after_answer()

    # --- closing ---------------------------------------------------------------------------------------------------

    def _close_behind(self) -> None:
        """The last answer has been written. Closing with something unread is a reset, which may overtake it."""
        if self._eof or not (self._unread or self._ahead or self._reader.buffered_bytes):
            self._end()
            return
        self._request = None
        self.state = State.LINGERING
        self.shut_writing()
        self.set_deadline(min(self.deadline_s, time.monotonic() + LINGER_S))
        self._drop()

    def _drop(self, events: int = 0) -> None:
        """Drop what still comes behind the last answer, until the client has closed, or for long enough."""
        try:
            for _ in range(LINGER_READS):
                size = self.sock.recv_into(_dropped, RECV_BYTES)
                self._dropped_bytes += size
                if not size or self._dropped_bytes > self.settings.max_body_bytes:
                    self._end()
                    return
        except BlockingIOError:
            self._watch()
        except OSError:
            self._end()
        else:
            self._loop.again(self.ready, 0)

    def _end_in_time(self, now_s: float) -> None:
        self._end()


_ON_READY: dict[State, Callable[[Connection, int], None]] = {
    State.READING: Connection._read,
    State.HELD: Connection._nothing,
    State.ASKING: Connection._read_ahead,
    State.WRITING: Connection._write_on,
    State.STREAMING: Connection._read_ahead,
    State.LINGERING: Connection._drop,
    State.CLOSED: Connection._nothing,
}
_WHEN_DUE: dict[State, Callable[[Connection, float], None]] = {
    State.READING: Connection._be_late,
    State.HELD: Connection._end_in_time,
    State.ASKING: Connection._look_after,
    State.WRITING: Connection._end_in_time,
    State.STREAMING: Connection._nothing,
    State.LINGERING: Connection._end_in_time,
    State.CLOSED: Connection._nothing,
}
