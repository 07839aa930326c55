"""The listening socket: accepts connections, one thread each, up to a limit.

`GatewayServer` owns the listening socket and the watchdog of client connections. `_lock` guards the map of open
connections and the number of threads that accept. Refusing at the limit never blocks.
"""

from __future__ import annotations

import errno
import http.server
import math
import os
import socket
import threading
import time
from typing import Any, Callable, NamedTuple

from gateway.deadlines import Watchdog
from gateway.errors import GatewayError
from gateway.pipeline import Pipeline
from gateway.server import responses
from gateway.server.errorformat import error_format_of
from gateway.server.handler import ClientConnection
from gateway.server.headers import new_request_id
from gateway.server.relay import Relay
from gateway.server.routes import Routes
from gateway.settings import Settings

EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
ACCEPT_PAUSE_S = 0.1
SPARE_ACCEPTORS = 16  # threads that may wait in accept(), 26 KB each
REPORT_EVERY_S = 10.0
# Connections at a time where each has a thread (26 KB, and its turn at the interpreter's lock): systems without epoll
# give a process few of them (macOS 2048 or 4096), and one that cannot be had is a client refused.
THREADED_CONNECTIONS_MAX = 1000


class ServerContext(NamedTuple):
    """What a connection needs."""

    settings: Settings
    pipeline: Pipeline
    relay: Relay
    routes: Routes
    log: Callable[..., None]
    spare_time: Callable[[int], None]  # what a thread may do while it waits for so many engines; never blocks


class GatewayServer(http.server.ThreadingHTTPServer):
    """Serves clients from `start` until `shutdown`; one thread a connection.

    A connection's thread accepts it itself, and starts another acceptor first when it was the last one (leader and
    followers). ThreadingHTTPServer's own way, a new thread for each connection and a wake-up to hand it over, costs
    300 us CPU a connection; a thread that has served its client goes back to accepting here.
    """

    request_queue_size = 1024
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], context: ServerContext) -> None:
        self.context = context
        self.watchdog = Watchdog("client-deadlines", tick_s=0.25)
        self.connections_max = self._connections_max(context.settings.max_connections)
        self._lock = threading.Lock()
        self._open: dict[socket.socket, object] = {}  # what serves it
        self._acceptors = 0
        self._closing = threading.Event()
        self._reported_s = -math.inf
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, ClientConnection)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it

    def server_bind(self) -> None:
        """Bind without http.server's reverse name look-up, which can take seconds."""
        if os.name == "posix":  # on Windows the option would let another process take the port
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def _connections_max(self, wanted: int) -> int:
        """How many clients may be connected at a time, where the settings allow `wanted`."""
        return min(wanted, THREADED_CONNECTIONS_MAX)

    def start(self) -> None:
        """Begin to accept."""
        wanted = self.context.settings.max_connections
        if wanted > self.connections_max:
            self.context.log(
                "info",
                "threaded_connections",
                possible_connections=self.connections_max,
                max_connections=wanted,
                message="without epoll each connection has a thread, and so many connections are the most",
            )
        self.watchdog.start()
        with self._lock:
            self._acceptors += 1
        self._start_acceptor()

    def _start_acceptor(self) -> None:
        threading.Thread(target=self._accept_and_serve, name="client", daemon=True).start()

    def _accept_and_serve(self) -> None:
        """Accept a connection, serve it, and so on, unless enough other threads are accepting."""
        accepting = True
        while accepting and not self._closing.is_set():
            try:
                request, client_address = self.socket.accept()
            except OSError as error:
                if error.errno in EXHAUSTED:
                    self._report("accept_failed", reason=error.strerror)
                self._closing.wait(ACCEPT_PAUSE_S)  # out of descriptors, say: wait instead of spinning
                continue
            if not self._admit(request):
                self._refuse(request)
                continue
            accepting = self._serve(request, client_address)
        if accepting:
            with self._lock:
                self._acceptors -= 1

    def _admit(self, request: socket.socket) -> bool:
        """Count a connection in, and see to it that somebody goes on accepting; False at a limit."""
        with self._lock:
            if len(self._open) >= self.connections_max or self._closing.is_set():
                return False
            self._open[request] = threading.current_thread()
            last = self._acceptors == 1
            if not last:
                self._acceptors -= 1  # else the place is the new thread's
        if last:
            try:
                self._start_acceptor()
            except RuntimeError:  # the system gives no more threads: this one has to go on accepting
                with self._lock:
                    del self._open[request]
                return False
        return True

    def _serve(self, request: socket.socket, client_address: Any) -> bool:
        """Serve one connection; returns whether this thread is to accept again."""
        try:
            self.finish_request(request, client_address)
        except Exception as error:
            self.context.pipeline.internal_error(error, "-")
        with self._lock:
            self._open.pop(request, None)
            accept = self._acceptors < SPARE_ACCEPTORS
            if accept:
                self._acceptors += 1
        try:
            request.close()
        except OSError:
            pass
        return accept

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

    @property
    def connections(self) -> int:
        """Open client connections."""
        return len(self._open)

    def shutdown(self) -> None:
        """Accept nothing more; what is open stays open. Waits for the accepting threads, for at most two seconds."""
        self._closing.set()
        try:
            self.socket.shutdown(socket.SHUT_RDWR)  # wakes accept() on Linux
        except OSError:
            pass
        deadline_s = time.monotonic() + 2.0
        while self._acceptors and time.monotonic() < deadline_s:
            self._wake_acceptor()
            time.sleep(0.005)

    def _wake_acceptor(self) -> None:
        host, port = self.server_address[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(str(host), str(host))
        try:
            socket.create_connection((host, int(port)), 0.1).close()
        except OSError:
            pass

    def end_connections(self, timeout_s: float) -> None:
        """Shut every open connection down and wait for their threads, at most `timeout_s` in all."""
        deadline_s = time.monotonic() + timeout_s
        for thread in self._shut_all():
            if isinstance(thread, threading.Thread):
                thread.join(max(0.0, deadline_s - time.monotonic()))
        self.watchdog.close()

    def _shut_all(self) -> list[object]:
        """Shut every open connection's socket down; returns what serves them."""
        with self._lock:
            left = list(self._open.items())
        for request, _ in left:
            try:
                request.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        return [serving for _, serving in left]
