"""The bench's own upstream, for machines without nginx or without its echo module.

One thread, one selector, no lock: JSON ports answer the chat completion at once, stream ports send
one event every 20 ms to each stream, each on its own clock. It reads bodies by Content-Length only,
which is what gateways send; anything else ends the connection. Runs as a process of its own:
`python -m tests.bench.pure_upstream --json 9001 --stream 9002 --events 250`.
"""

from __future__ import annotations

import argparse
import heapq
import re
import selectors
import socket
import time

from . import payloads

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


class _Connection:
    """A gateway's connection: bytes not yet understood, and how far its stream has come."""

    def __init__(self, sock: socket.socket, streams: bool) -> None:
        self.sock = sock
        self.streams = streams
        self.pending = b""
        self.sent_events = 0
        self.closed = False


class PureUpstream:
    """Serves the given listeners until the process is ended."""

    def __init__(self, json_ports: list[int], stream_ports: list[int], events: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._due: list[tuple[float, int, _Connection]] = []
        self._answer = _plain(payloads.chat_answer())
        self._models = _plain(payloads.models_answer())
        self._health = _plain(b'{"status":"ok"}')
        content, end = payloads.stream_events(events)
        self._chunks = [_chunk(event) for event in content]
        self._end = _chunk(b"".join(end)) + b"0\r\n\r\n"
        for ports, streams in ((json_ports, False), (stream_ports, True)):
            for port in ports:
                listener = socket.create_server(("127.0.0.1", port), backlog=4096)
                listener.setblocking(False)
                self._selector.register(listener, selectors.EVENT_READ, streams)

    def serve_forever(self) -> None:
        """Answers requests and sends due events; returns never."""
        while True:
            wait_s = None if not self._due else max(0.0, self._due[0][0] - time.monotonic())
            for key, _mask in self._selector.select(wait_s):
                if isinstance(key.data, _Connection):
                    self._read(key.data)
                elif isinstance(key.fileobj, socket.socket):
                    self._accept(key.fileobj, key.data)
            now = time.monotonic()
            while self._due and self._due[0][0] <= now:
                due_at, _tie, connection = heapq.heappop(self._due)
                self._send_event(connection, due_at)

    def _accept(self, listener: socket.socket, streams: bool) -> None:
        try:
            sock, _address = listener.accept()
        except OSError:
            return
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.register(sock, selectors.EVENT_READ, _Connection(sock, streams))

    def _read(self, connection: _Connection) -> None:
        try:
            data = connection.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(connection)
            return
        connection.pending += data
        while True:
            head_end = connection.pending.find(b"\r\n\r\n")
            if head_end < 0:
                return
            length = _LENGTH.search(connection.pending, 0, head_end)
            end = head_end + 4 + (int(length.group(1)) if length else 0)
            if len(connection.pending) < end:
                return
            target = connection.pending.split(b" ", 2)[1]
            connection.pending = connection.pending[end:]
            self._respond(connection, target)

    def _respond(self, connection: _Connection, target: bytes) -> None:
        if target != payloads.CHAT_PATH.encode():
            self._send(connection, self._models if target == b"/v1/models" else self._health)
        elif connection.streams:
            self._send(connection, _STREAM_HEAD)
            connection.sent_events = 0
            self._send_event(connection, time.monotonic())
        else:
            self._send(connection, self._answer)

    def _send_event(self, connection: _Connection, due_at: float) -> None:
        if connection.closed:
            return
        if connection.sent_events == len(self._chunks):
            self._send(connection, self._end)
            return
        self._send(connection, self._chunks[connection.sent_events])
        connection.sent_events += 1
        entry = (due_at + payloads.EVENT_GAP_S, id(connection), connection)
        heapq.heappush(self._due, entry)

    def _send(self, connection: _Connection, data: bytes) -> None:
        # A gateway that does not read even this little is broken or gone: nothing is buffered.
        try:
            sent = connection.sock.send(data)
        except OSError:
            sent = -1
        if sent != len(data):
            self._close(connection)

    def _close(self, connection: _Connection) -> None:
        if not connection.closed:
            connection.closed = True
            self._selector.unregister(connection.sock)
            connection.sock.close()


def _plain(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def main() -> None:
    """Reads the ports from the command line and serves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=int, action="append", default=[])
    parser.add_argument("--stream", type=int, action="append", default=[])
    parser.add_argument("--events", type=int, default=250)
    options = parser.parse_args()
    try:
        PureUpstream(options.json, options.stream, options.events).serve_forever()
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
