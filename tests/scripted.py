"""An engine that says exactly what a test tells it to, byte by byte, on the test's own thread.

A `ScriptedEngine` listens; `take` waits for the gateway's next request and gives the connection it came on. Nothing is
sent that the test did not send. Every wait is bounded.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import ssl
import struct
from typing import Any, Optional

from tests.support import TIMEOUT_S

STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def delta(text: str, finish: Optional[str] = None, index: int = 0) -> bytes:
    """One event of a streamed chat answer."""
    chunk = {"choices": [{"index": index, "delta": {"content": text}, "finish_reason": finish}]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def chunked(data: bytes) -> bytes:
    """`data` as one chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


class EngineSide:
    """The engine's end of one connection, with the request that came last on it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(TIMEOUT_S)
        self.head = b""
        self.body = b""
        self._buffer = b""

    def read_request(self) -> EngineSide:
        """Wait for the next request on this connection. AssertionError when it is closed instead."""
        self.head = self.take_until(b"\r\n\r\n")
        length = next(
            int(line.partition(b":")[2])
            for line in self.head.split(b"\r\n")
            if line.lower().startswith(b"content-length:")
        )
        while len(self._buffer) < length:
            self._more()
        self.body, self._buffer = self._buffer[:length], self._buffer[length:]
        return self

    @property
    def json(self) -> Any:
        """The body of the request that came last."""
        return json.loads(self.body)

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.sock.sendall(data)

    def answer(self, body: bytes, content_type: str = "application/json", status: str = "200 OK") -> None:
        """Send a whole answer with a length."""
        head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        self.send(head.encode() + body)

    def close(self) -> None:
        """Close in good order."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()

    def reset(self) -> None:
        """Close with a reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("hh" if os.name == "nt" else "ii", 1, 0))
        self.sock.close()

    def wait_until_left(self, timeout_s: float = TIMEOUT_S) -> bool:
        """Wait until the gateway closes this connection; False after `timeout_s`."""
        self.sock.settimeout(timeout_s)
        try:
            while self.sock.recv(65536):
                pass
        except socket.timeout:
            return False
        except OSError:
            pass  # a reset: gone as well
        return True

    def _more(self) -> None:
        data = self.sock.recv(65536)
        assert data, f"the gateway closed the connection; so far {self._buffer[:500]!r}"
        self._buffer += data

    def take(self, size: int) -> bytes:
        """So many bytes."""
        while len(self._buffer) < size:
            self._more()
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def take_until(self, mark: bytes) -> bytes:
        while mark not in self._buffer:
            self._more()
        data, _, self._buffer = self._buffer.partition(mark)
        return data


class ScriptedEngine:
    """Listens on a free port; a context manager that closes everything it accepted. `tls` None: plain TCP."""

    def __init__(self, tls: Optional[ssl.SSLContext] = None, port: int = 0) -> None:
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", port), backlog=128)
        self._listener.settimeout(TIMEOUT_S)
        self._sides: list[EngineSide] = []
        self.port: int = self._listener.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}/v1"

    def accept(self) -> EngineSide:
        """Wait for a new connection, without reading from it."""
        sock, _ = self._listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(TIMEOUT_S)
        if self._tls is not None:
            sock = self._tls.wrap_socket(sock, server_side=True)
        side = EngineSide(sock)
        self._sides.append(side)
        return side

    def take(self) -> EngineSide:
        """Wait for a request on a new connection."""
        return self.accept().read_request()

    def nobody_waits(self) -> bool:
        """Whether there is no connection that has not been accepted."""
        return not select.select([self._listener], [], [], 0)[0]

    def close(self) -> None:
        """Stop listening and close every connection."""
        self._listener.close()
        for side in self._sides:
            side.close()

    def __enter__(self) -> ScriptedEngine:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
