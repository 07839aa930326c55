"""An engine that knows its models by names of its own, and no other: what vLLM and Ollama do.

Owns one listening server with a thread for each connection. What `GET /v1/models` says can be changed and held back;
requests are kept in the order in which they came.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Optional, Union

from tests.support import TIMEOUT_S


def listing(*names: str) -> dict[str, Any]:
    """The answer that lists these models."""
    return {"object": "list", "data": [{"id": name, "object": "model", "owned_by": "somebody"} for name in names]}


class NamingEngine:
    """Serves `names` and answers 404 for any other, and for none; a context manager that ends it.

    `listed` is what it says to `GET /v1/models`: JSON, bytes as they are, or None for 404, with the status `status`.
    """

    def __init__(self, *names: str) -> None:
        self.names = names
        self.listed: Union[dict[str, Any], list[Any], bytes, None] = listing(*names)
        self.status = 200
        self.status_of_posts = 200
        self.gate = threading.Event()  # lists are answered when it is set
        self.gate.set()
        self.asked: list[dict[str, str]] = []  # headers of the requests for the list
        self.models: list[Optional[str]] = []  # that have been asked for
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []  # path, headers and body of each
        self.moved: Optional[str] = None  # where it sends everybody else, if anywhere
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.engine = self  # type: ignore[attr-defined]
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), name="naming-engine")
        self._thread.start()

    def serve(self, *names: str) -> None:
        """Be another server from now on, which serves and lists these."""
        self.names, self.listed = names, listing(*names)

    def close(self) -> None:
        """End it."""
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(TIMEOUT_S)

    def __enter__(self) -> NamingEngine:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        engine: NamingEngine = self.server.engine  # type: ignore[attr-defined]
        if engine.moved is not None:
            engine.asked.append(dict(self.headers.items()))
            self._send(302, b"", location=engine.moved)
            return
        if self.path.partition("?")[0] != "/v1/models":
            self._send(200, b"{}")
            return
        engine.asked.append(dict(self.headers.items()))
        engine.gate.wait(TIMEOUT_S)
        listed = engine.listed
        if listed is None:
            self._send(404, b"404 page not found")
        else:
            self._send(engine.status, listed if isinstance(listed, bytes) else json.dumps(listed).encode())

    def do_POST(self) -> None:
        engine: NamingEngine = self.server.engine  # type: ignore[attr-defined]
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = body.get("model")
        engine.models.append(name)
        engine.requests.append((self.path, dict(self.headers.items()), body))
        if engine.status_of_posts != 200:
            self._send(engine.status_of_posts, b"{}")
        elif engine.moved is not None:
            self._send(307, b"", location=engine.moved)
        elif name not in engine.names:
            self._send(404, json.dumps({"error": {"message": f'model "{name}" not found'}}).encode())
        elif body.get("stream"):
            choice = {"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}
            chunk = json.dumps({"model": name, "choices": [choice]}).encode()
            self._send(200, b"data: " + chunk + b"\n\ndata: [DONE]\n\n", "text/event-stream")
        elif self.path.endswith("/embeddings"):
            self._send(200, json.dumps({"model": name, "data": [{"index": 0, "embedding": [0.5]}]}).encode())
        else:
            choice = {"index": 0, "finish_reason": "stop", "text": "hi", "message": {"role": "assistant"}}
            choice["message"] = {"role": "assistant", "content": "hi"}
            self._send(200, json.dumps({"model": name, "choices": [choice]}).encode())

    def _send(
        self, status: int, body: bytes, content_type: str = "application/json", location: Optional[str] = None
    ) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            if location is not None:
                self.send_header("Location", location)
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            self.close_connection = True  # who asked has left

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the test looks at what it kept."""
