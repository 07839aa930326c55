"""An engine that says what a script tells it to for the nonce in a request, and the plain good answer otherwise.

One thread and a selector for all of its connections. `script` may be called from any thread (a dict's single
operation). A script is used by the first request with its nonce; requests that come again (another attempt) get the
good answer, so that a gateway that asks another engine is seen to.
"""

from __future__ import annotations

import contextlib
import json
import re
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Optional

from tests.scripted import STREAM_HEAD, chunked

TURN_S = 0.0007
NONCE = re.compile(rb"ask-[0-9a-f]{12}")
KEEP, CLOSE, RESET = "keep", "close", "reset"


class Script(NamedTuple):
    """What is sent, segment by segment, and what becomes of the connection then. `always`: for every attempt."""

    segments: Sequence[bytes]
    end: str = KEEP
    always: bool = False


def text_of(nonce: bytes) -> str:
    """What the good answer to a nonce says."""
    return f"yours is {nonce.decode()}"


def good_answer(nonce: bytes, stream: bool) -> bytes:
    """The whole response that a well-behaved engine gives, head included."""
    figures = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    if not stream:
        choice = {"index": 0, "message": {"role": "assistant", "content": text_of(nonce)}, "finish_reason": "stop"}
        body = json.dumps({"id": "e", "object": "chat.completion", "model": "m", "choices": [choice], "usage": figures})
        return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
            len(body),
            body.encode(),
        )
    parts = [{"role": "assistant", "content": ""}, *({"content": word} for word in re.split("(?<= )", text_of(nonce)))]
    events = [{"choices": [{"index": 0, "delta": part, "finish_reason": None}]} for part in parts]
    events += [{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}, {"choices": [], "usage": figures}]
    payloads = (f"data: {event}\n\n".encode() for event in (*map(json.dumps, events), "[DONE]"))
    return STREAM_HEAD + b"".join(map(chunked, payloads)) + b"0\r\n\r\n"


class _Side:
    """One connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = b""
        self.segments: deque[bytes] = deque()
        self.end = KEEP


class ScriptEngine:
    """Listens on a free port of this machine; a context manager."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.asked: dict[bytes, int] = {}
        self._scripts: dict[bytes, Script] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._sending: set[_Side] = set()
        self._over = False
        self._thread = threading.Thread(target=self._run, name="script-engine", daemon=True)

    def __enter__(self) -> ScriptEngine:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over = True
        self._thread.join(10.0)
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def script(self, nonce: bytes, script: Script) -> None:
        """Answer the first request with that nonce so."""
        self._scripts[nonce] = script

    def _run(self) -> None:
        while not self._over:
            for key, _ in self._selector.select(TURN_S if self._sending else 0.02):
                if key.data is None:
                    self._accept()
                else:
                    self._read(key.data)
            if self._sending:
                for side in list(self._sending):
                    self._send(side)
                time.sleep(TURN_S)

    def _accept(self) -> None:
        for _ in range(64):
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ, _Side(sock))

    def _read(self, side: _Side) -> None:
        try:
            data = side.sock.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(side)
            return
        side.buffer += data
        found = take_request(side.buffer)
        while found is not None:
            body, side.buffer = found
            self._answer(side, body)
            found = take_request(side.buffer)

    def _answer(self, side: _Side, body: bytes) -> None:
        match = NONCE.search(body)
        nonce = match[0] if match else b"none"
        self.asked[nonce] = self.asked.get(nonce, 0) + 1
        script = self._scripts.get(nonce)
        if script is not None and not script.always:
            del self._scripts[nonce]
        if script is None:
            script = Script([good_answer(nonce, wants_stream(body))])
        side.segments.extend(script.segments)
        side.end = script.end
        self._sending.add(side)
        self._send(side)

    def _send(self, side: _Side) -> None:
        """One segment, or the end."""
        try:
            if side.segments:
                segment = side.segments.popleft()
                sent = side.sock.send(segment)
                if sent < len(segment):
                    side.segments.appendleft(segment[sent:])
        except BlockingIOError:
            side.segments.appendleft(segment)
        except OSError:
            self._drop(side)
            return
        if side.segments:
            return
        self._sending.discard(side)
        if side.end == RESET:
            side.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if side.end != KEEP:
            self._drop(side)

    def _drop(self, side: _Side) -> None:
        self._sending.discard(side)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(side.sock)
        side.sock.close()


def take_request(buffer: bytes) -> Optional[tuple[bytes, bytes]]:
    """The body of the request that a buffer begins with, and what follows; None: more is to come."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        return None
    match = re.search(rb"\r\ncontent-length: *([0-9]+)", buffer[:end], re.IGNORECASE)
    stop = end + 4 + (int(match[1]) if match else 0)
    return (buffer[end + 4 : stop], buffer[stop:]) if len(buffer) >= stop else None


def wants_stream(body: bytes) -> bool:
    """Whether a request asks for a stream."""
    return bool(re.search(rb'"stream": ?true', body))
