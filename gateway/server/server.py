"""The listening socket, the loop that serves all who are connected, and the limit of how many may be.

`GatewayServer` owns the loop, the map of open connections (a dict whose single operations are atomic) and the few
threads for what blocks and has no worker's place. All of it but `shutdown` and `end_connections` is for the loop's
thread, so there is no lock. Refusing at the limit never blocks.

One of several processes has been handed the listening sockets of all: it accepts on its own, and on those of which it
is told that nobody does.
"""

from __future__ import annotations

import errno
import http.server
import math
import os
import socket
import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from gateway.errors import GatewayError
from gateway.server import responses
from gateway.server.connection import Connection
from gateway.server.errorformat import error_format_of
from gateway.server.headers import new_request_id
from gateway.server.loop import CONNECTIONS_MAX, Loop
from gateway.server.underway import ServerContext
from gateway.threads import Threads

EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
ACCEPT_PAUSE_S = 0.1
ACCEPTED_MAX = 16  # connections in a turn of the loop (one each: 200 instead of 140 us a request at 32 at a time)
ASIDE_THREADS = 4  # for what blocks and has no worker's place: large bodies, what administrators ask
SWEEP_S = 0.25  # how late a connection's deadline may be seen
REPORT_EVERY_S = 10.0
CLOSE_POLL_S = 0.005


class GatewayServer(http.server.ThreadingHTTPServer):
    """Serves clients from `start` until `shutdown`: one thread for all that wait, and a few for what must block.

    ThreadingHTTPServer's own way, a thread for each connection, costs 1.5 times the CPU of this at 32 busy connections
    and 39 KB for each idle one (docs/PERFORMANCE.md).
    """

    request_queue_size = 1024
    allow_reuse_address = True

    def __init__(
        self,
        address: tuple[str, int],
        context: ServerContext,
        sockets: Sequence[socket.socket] = (),
        slot: int = 0,
    ) -> None:
        self.context = context
        self.connections_max = min(context.settings.max_connections, CONNECTIONS_MAX)
        self.loop = Loop("clients", self._crashed, self._after_turn)
        self.threads = Threads("aside", ASIDE_THREADS)
        self.engines_asked = 0  # in this turn of the loop
        self.ending = False
        self._listening = tuple(sockets)
        self._open: dict[socket.socket, Connection] = {}
        self._closing = threading.Event()
        self._reported_s = -math.inf
        self._turn = 0
        self._full_turn = -2  # the last in which as many connections were accepted as were to be
        self._at_once = 1  # so many are, in a turn: as many as seem to wait, since asking in vain costs 20 us
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        try:
            super().__init__(address, http.server.BaseHTTPRequestHandler, bind_and_activate=not sockets)
        except BaseException:
            self.loop.close(0.0)
            raise
        if sockets:
            self.socket.close()
            self.socket = sockets[slot % len(sockets)]
            self._name()
        else:
            self._listening = (self.socket,)
        self._accepting: set[socket.socket] = set() if sockets else {self.socket}
        self._left = False  # the listening sockets, for another process
        for one in self._listening:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
            one.setblocking(False)

    def server_bind(self) -> None:
        """Bind without http.server's reverse name look-up, which can take seconds."""
        if os.name == "posix":  # on Windows the option would let another process take the port
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self._name()

    def _name(self) -> None:
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def start(self) -> None:
        """Begin to accept; one of several processes does so when it is told on which sockets."""
        wanted = self.context.settings.max_connections
        if wanted > self.connections_max:
            self.context.log(
                "info",
                "few_connections",
                possible_connections=self.connections_max,
                max_connections=wanted,
                message="this system waits for no more connections at a time",
            )
        self.threads.start()
        for listening in self._accepting:
            self._watch(listening)
        self.loop.later(SWEEP_S, self._sweep)
        self.loop.start()

    # --- on the loop's thread --------------------------------------------------------------------------------------

    def _crashed(self, error: BaseException) -> None:
        self.context.pipeline.internal_error(error, "-")

    def _after_turn(self) -> None:
        """Have what earlier requests have left counted: until the engines answer, there is time."""
        self._turn += 1
        if self.engines_asked:
            asked, self.engines_asked = self.engines_asked, 0
            self.context.spare_time(asked)

    def _watch(self, listening: socket.socket) -> None:
        self.loop.watch(listening.fileno(), partial(self._accept_ready, listening))

    def _accept_on(self, wanted: set[socket.socket], events: int) -> None:
        if self._closing.is_set() or self._left:
            return
        before, self._accepting = self._accepting, wanted
        for listening in before - wanted:
            self.loop.unwatch(listening.fileno())
        for listening in wanted - before:
            self._watch(listening)

    def _accept_ready(self, listening: socket.socket, events: int) -> None:
        if self._full_turn == self._turn - 1:  # in the turn before, more were waiting than were taken
            self._at_once = min(2 * self._at_once, ACCEPTED_MAX)
        for number in range(self._at_once):
            try:
                request, client_address = listening.accept()
            except BlockingIOError:
                self._at_once = max(1, number)
                return
            except OSError as error:
                if error.errno in EXHAUSTED:  # wait instead of spinning
                    self._report("accept_failed", reason=error.strerror)
                    self.loop.unwatch(listening.fileno())
                    self.loop.later(ACCEPT_PAUSE_S, partial(self._accept_again, listening))
                return
            self._accepted(request, client_address)
        self._full_turn = self._turn

    def _accepted(self, request: socket.socket, client_address: Any) -> None:
        if len(self._open) >= self.connections_max or self._closing.is_set():
            self._refuse(request)
            return
        connection = Connection(request, client_address, self)
        self._open[request] = connection
        connection.ready(0)

    def _accept_again(self, listening: socket.socket, events: int) -> None:
        if not self._closing.is_set() and listening in self._accepting:
            self._watch(listening)

    def _sweep(self, events: int) -> None:
        """See to the connections whose time is over."""
        self.loop.later(SWEEP_S, self._sweep)
        now_s = time.monotonic()
        for connection in [one for one in self._open.values() if one.deadline_s <= now_s]:
            connection.due(now_s)

    def closed(self, request: socket.socket) -> None:
        """A connection is over."""
        self._open.pop(request, None)
        try:
            request.close()
        except OSError:
            pass

    def _refuse(self, request: socket.socket) -> None:
        self._report("connections_full", connections=len(self._open))
        try:
            request.setblocking(False)
            error = GatewayError("overloaded", "too many open connections", retry_after_s=1.0)
            request_id = new_request_id()
            headers = b"%bX-Request-ID: %b\r\n" % (responses.JSON, request_id.encode())
            body = responses.error_body(error, error_format_of(self.context.settings.error_format, None), request_id)
            request.send(responses.whole(503, headers + responses.error_headers(error), body, keep_alive=False))
            request.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        request.close()

    def _report(self, event: str, **fields: object) -> None:
        """One log line per ten seconds, however many connections are refused."""
        now_s = time.monotonic()
        if now_s - self._reported_s >= REPORT_EVERY_S:
            self._reported_s = now_s
            self.context.log("warning", event, **fields)

    # --- on any ----------------------------------------------------------------------------------------------------

    @property
    def connections(self) -> int:
        """Open client connections."""
        return len(self._open)

    def accept_on(self, slots: Sequence[int]) -> None:
        """Accept on the listening sockets of these slots, of several, beside the own one: nobody else does."""
        others = {self._listening[slot] for slot in slots if slot < len(self._listening)}
        self.loop.soon(partial(self._accept_on, {self.socket} | others))

    def leave_listening(self, timeout_s: float) -> None:
        """Accept nothing more, for another process does: who waits to be accepted waits for that. Returns when it is
        so, or after `timeout_s`."""
        left = threading.Event()

        def leave(events: int) -> None:
            self._accept_on(set(), events)
            self._left = True
            left.set()

        self.loop.soon(leave)
        left.wait(timeout_s)

    def shutdown(self) -> None:
        """Accept nothing more; what is open stays open."""
        self._closing.set()
        for listening in self._listening:
            self.loop.unwatch(listening.fileno())

    def server_close(self) -> None:
        """Close the listening sockets."""
        super().server_close()
        for listening in self._listening:
            listening.close()

    def end_connections(self, timeout_s: float) -> None:
        """Shut every open connection down and wait for their ends, at most `timeout_s` in all."""
        deadline_s = time.monotonic() + timeout_s
        self.ending = True  # for those that look at no socket now
        for request in list(self._open):
            try:
                request.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        while self._open and time.monotonic() < deadline_s:
            time.sleep(CLOSE_POLL_S)
        self.loop.close(max(0.0, deadline_s - time.monotonic()))
        self.threads.close()
