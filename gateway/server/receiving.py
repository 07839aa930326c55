"""The receiving side of a client's connection: what comes is read, request by request, and a body is judged before it
has come.

For the loop's thread; never blocks. What is done with a request is for `connection.py` to say.
"""

from __future__ import annotations

import enum
import socket
import time
from typing import Any, Union

from gateway.bodies import FORMS
from gateway.errors import ClientGone
from gateway.limits.addresses import unmapped
from gateway.pipeline import KEYS_PAUSE_S
from gateway.server.clientside import ClientSide
from gateway.server.door import body_limit_bytes, drops_body, wants_body
from gateway.server.parsing import RequestHead
from gateway.server.reader import Refusal, Request, RequestReader
from gateway.server.routes import ALWAYS_OPEN
from gateway.server.underway import Server

RECV_BYTES = 65536
READS_MAX = 16  # in a connection's turn
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class State(enum.Enum):
    """What a connection does."""

    READING = "reading"
    HELD = "held"
    ASKING = "asking"
    WRITING = "writing"
    STREAMING = "streaming"
    LINGERING = "lingering"
    CLOSED = "closed"


class Receiving(ClientSide):
    """Reads what one client sends, and serves it."""

    def __init__(self, request: socket.socket, client_address: Any, server: Server) -> None:
        context = server.context
        super().__init__(request, context.settings)
        self._peer = unmapped(str(client_address[0]))
        self.server = server
        self.pipeline = context.pipeline
        self.state = State.READING
        self._loop = server.loop
        self._watched = False  # by the loop: most connections have their request with them, and many have only one
        self._reader = RequestReader(
            self.settings.max_header_bytes, self.settings.max_body_bytes, FORMS, self.settings.max_upload_bytes
        )
        self._arrived_s = 0.0  # when the first byte of the request that is read came
        self._judged = False  # it is known whether the body of the request that is read is wanted
        self._unread = False  # bytes of a refused request are still to come
        self._ahead = b""  # has come behind the request under way
        self._more = False  # there may be more in the socket, or an end, that will not be told again

    def ready(self, events: int) -> None:
        """The socket has something, takes something, or has ended; also to be called in vain."""
        raise NotImplementedError

    def _serve(self, event: Union[Request, Refusal]) -> None:
        raise NotImplementedError

    def _end(self) -> None:
        raise NotImplementedError

    def _watch(self, writing: bool = False) -> None:
        if not self._watched:
            self._watched = True
            self._loop.add(self._descriptor)
        self._loop.wait_for(self._descriptor, self.ready, writing)

    def _read(self, events: int = 0) -> None:
        if self._ahead:
            self._next(0)  # has come before
            return
        reader = self._reader
        for _ in range(READS_MAX):
            try:
                data = self.sock.recv(RECV_BYTES)
            except BlockingIOError:
                self._more = False
                self._watch()
                return
            except OSError:
                data = b""
            if not data:
                self._has_ended()
                return
            if len(data) == RECV_BYTES:
                self._more = True
            if not self._arrived_s or not reader.begun:
                self._arrived_s = time.monotonic()
            event = reader.feed(data)
            if event is not None:
                self._serve(event)
                return
            if self._serve_what_was_read(None):
                return
        self._loop.again(self.ready, 0)

    def _serve_what_was_read(self, event: Union[Request, Refusal, None]) -> bool:
        """Serve what has been read; False: more is to be."""
        if event is not None:
            self._serve(event)
            return True
        head = self._reader.head
        if head is not None and not self._judged and self._judge(head):
            return True
        if self._reader.begun:
            self.set_deadline(self._arrived_s + self.settings.client_timeout_s)
        return False

    def _judge(self, head: RequestHead) -> bool:
        """The head of a request is there and its body is still to come: is it wanted? True: it is not to be read."""
        if head.path not in ALWAYS_OPEN and self.pipeline.guard.may_wait(head.headers):
            self.state = State.HELD
            self.set_deadline(self._arrived_s + self.settings.client_timeout_s)
            self._loop.later(KEYS_PAUSE_S, self._judge_again)
            return True
        self._judged = True
        if wants_body(head, self.pipeline, self.server.context.routes):
            if head.expects_continue and head.version_1_1:
                try:
                    self.sock.send(_CONTINUE)
                except OSError:
                    self._eof = True
                    self._serve(Refusal(ClientGone(), head))
                    return True
            if head.path in FORMS:
                self._serve(self._reader.begin_upload())
                return True
        elif not drops_body(head) or (head.content_length or 0) > body_limit_bytes(head, self.settings):
            self._serve(self._reader.leave_body())
            return True
        return False

    def _judge_again(self, events: int) -> None:
        if self.state is State.HELD and self.server.ending:
            self._end()
        elif self.state is State.HELD:
            self.state = State.READING
            if not self._serve_what_was_read(None):
                self.ready(0)

    def _has_ended(self) -> None:
        """The client sends nothing more."""
        self._eof = True
        refusal = self._reader.ended()
        if refusal is None:
            self._end()
        else:
            self._serve(refusal)

    def _be_late(self, now_s: float) -> None:
        """The client has not sent a request in time."""
        refusal = self._reader.late()
        if refusal is None:
            self._end()
        else:
            self._serve(refusal)

    def _next(self, events: int) -> None:
        """Serve what has come behind the last request."""
        if self.state is not State.READING:
            return
        self._arrived_s = time.monotonic()
        ahead, self._ahead = self._ahead, b""
        if self._serve_what_was_read(self._reader.feed(ahead)):
            return
        if self._eof:
            self._has_ended()
        else:
            self._read()
