"""A server that alerts are sent to, in the test's own process: keeps what it gets, answers as it is told.

Every wait has a bound. `Receiver` owns its socket and threads until `close`.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Optional

GATE_S = 20.0


class Receiver:
    """A webhook's other side. `status`: what it answers; `gate`: while it is clear, requests hang."""

    def __init__(self, status: int = 200, port: int = 0) -> None:
        self.status = status
        self.headers: tuple[tuple[str, str], ...] = ()
        self.gate = threading.Event()
        self.gate.set()
        self.paths: list[str] = []
        self.bodies: list[Any] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                owner.paths.append(self.path)
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                owner.gate.wait(GATE_S)
                owner.bodies.append(body)
                self.send_response(owner.status)
                for name, value in owner.headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), name="receiver", daemon=True)

    def __enter__(self) -> Receiver:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(GATE_S)

    def alerts(self, name: str, status: Optional[str] = None) -> list[dict[str, Any]]:
        """The alerts of that name (and status) that came in webhooks so far, oldest first."""
        found = [alert for body in list(self.bodies) for alert in body["alerts"]]
        named = [alert for alert in found if alert["labels"]["alertname"] == name]
        return [alert for alert in named if status in (None, alert["status"])]
