"""The listening socket: accepts connections, one thread each, up to a limit.

`GatewayServer` owns the listening socket, the count of open connections (guarded by `_lock`) and the watchdog of client
connections. Refusing at the limit happens on the accepting thread and never blocks it.
"""

from __future__ import annotations

import errno
import http.server
import socket
import threading
import time
from typing import Any, Callable, NamedTuple

from gateway.deadlines import Watchdog
from gateway.pipeline import Pipeline
from gateway.server import responses
from gateway.server.handler import ClientConnection
from gateway.server.relay import Relay
from gateway.server.routes import Routes
from gateway.settings import Settings

_FULL = b'{"error":"overloaded","message":"too many open connections","param":null,"request_id":null}'
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
EXHAUSTED_PAUSE_S = 0.1
REPORT_EVERY_S = 10.0


class ServerContext(NamedTuple):
    """What a connection needs."""

    settings: Settings
    pipeline: Pipeline
    relay: Relay
    routes: Routes
    log: Callable[..., None]


class GatewayServer(http.server.ThreadingHTTPServer):
    """Serves clients until `shutdown`; `server_close` ends the connections that are left."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], context: ServerContext) -> None:
        self.context = context
        self.watchdog = Watchdog("client-deadlines", tick_s=0.25)
        self._lock = threading.Lock()
        self._open: dict[socket.socket, threading.Thread] = {}
        self._reported_s = 0.0
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, ClientConnection)
        self.watchdog.start()

    def server_bind(self) -> None:
        """Bind without http.server's reverse name look-up, which can take seconds."""
        if self.allow_reuse_address and hasattr(socket, "SO_REUSEADDR"):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept; when the process is out of descriptors, wait a moment instead of spinning."""
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in _EXHAUSTED:
                self._report("accept_failed", reason=error.strerror)
                time.sleep(EXHAUSTED_PAUSE_S)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve one connection on a thread of its own, or refuse it at the limit."""
        with self._lock:
            full = len(self._open) >= self.context.settings.max_connections
            if not full:
                thread = threading.Thread(
                    target=self._serve, args=(request, client_address), name="client", daemon=True
                )
                self._open[request] = thread
        if full:
            self._refuse(request)
            return
        try:
            thread.start()
        except RuntimeError:  # the system gives no more threads
            with self._lock:
                self._open.pop(request, None)
            self._refuse(request)

    def _serve(self, request: socket.socket, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except Exception as error:
            self.context.pipeline.internal_error(error, "-")
        finally:
            with self._lock:
                self._open.pop(request, None)
            try:
                request.close()
            except OSError:
                pass

    def _refuse(self, request: socket.socket) -> None:
        limit = self.context.settings.max_connections
        self._report("connections_full", max_connections=limit)
        try:
            request.setblocking(False)
            headers = responses.JSON + b"Retry-After: 1\r\n"
            request.send(responses.whole(503, headers, _FULL, keep_alive=False))
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

    def end_connections(self, timeout_s: float) -> None:
        """Shut every open connection down and wait for their threads, at most `timeout_s` in all."""
        deadline_s = time.monotonic() + timeout_s
        with self._lock:
            left = list(self._open.items())
        for request, _ in left:
            try:
                request.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        for _, thread in left:
            if thread.ident is not None:
                thread.join(max(0.0, deadline_s - time.monotonic()))
        self.watchdog.close()
