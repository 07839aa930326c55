"""Engines that answer each request with the nonce it carries, and misbehave at random: a process of its own.

`python -m tests.fuzz.nonceengines SEED COUNT [CERTIFICATE KEY]` prints the ports as a JSON list (with a certificate
the last one speaks TLS). For each line on its stdin, which says that no request is under way, half of its
connections send what nobody asked for, and then it prints a line: whatever is asked later must not meet these
bytes. At the end of stdin it prints what it did as a JSON object: how often it did what, and `undecidable`, the
nonces of requests that may have had another's answer through nobody's fault.

Those are: requests that were on their way while the engine sent bytes that nobody had asked for. HTTP/1.1 has
nothing but the order on a connection to tell what answers what, so such bytes cannot be told from the answer. The
engine looks before it sends late bytes (when a request is there it sends none) and waits TAINTED_S behind them: a
request that comes meanwhile is undecidable, is not answered, and its connection is closed. One that comes later was
sent when the bytes had long been there to be seen.

A thread for each connection, which owns everything about it; the counts are one Counter under a lock.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import re
import select
import socket
import ssl
import struct
import sys
import threading
import time
from collections import Counter
from typing import Optional

from tests.fuzz.engine import text_of, wants_stream
from tests.scripted import STREAM_HEAD, chunked

TAINTED_S = 0.25  # a gateway's thread may wait so long between its look and its sending, on a busy machine
REST_S = 2.0
REST_POLL_S = 0.25
LATE_SHARE = 0.5  # of the connections at rest
LATE_S = (0.002, 0.02)  # how long the connection has been idle when late bytes come
READ_BYTES = 65536  # what gateways read at a time: an answer that ends exactly there leaves what is behind for later
NONCE = re.compile(rb"n-[0-9a-f]{12}")

# How often each happens, of 100 requests.
WEIGHTS = {
    "good": 35,
    "good of exactly a read": 8,
    "surplus": 6,
    "surplus behind exactly a read": 5,
    "surplus of a few bytes": 3,
    "surplus behind 4xx": 5,
    "4xx": 3,
    "5xx": 3,
    "early": 3,
    "early refusal": 2,
    "cut": 3,
    "reset": 2,
    "closed": 2,
    "length too long": 2,
    "length too short": 3,
    "late answer": 9,
    "late bytes": 2,
    "slow": 1,
    "closed behind the answer": 2,
    "interim": 1,
}
_numbers = itertools.count(1)
KINDS, SHARES = tuple(WEIGHTS), tuple(WEIGHTS.values())


class Ended(Exception):
    """The connection is over."""


class Counts:
    """What all engines did. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kinds: Counter[str] = Counter()
        self._undecidable: list[str] = []

    def count(self, kind: str) -> None:
        """It happened once more."""
        with self._lock:
            self._kinds[kind] += 1

    def undecidable(self, nonce: bytes) -> None:
        """This request may have had another's answer."""
        with self._lock:
            self._undecidable.append(nonce.decode())

    def told(self) -> str:
        """All of it as JSON."""
        with self._lock:
            return json.dumps({"kinds": self._kinds, "undecidable": self._undecidable})


def answer(nonce: bytes, stream: bool, total: int = 0, status: str = "200 OK", shift: int = 0) -> bytes:
    """A whole response with the nonce. `total`: its length in bytes, head included (0: as it comes); `shift`: how much
    its Content-Length is wrong."""
    text = text_of(nonce)
    if status != "200 OK":
        body = json.dumps({"error": {"message": text}}).encode()
    elif stream:
        return _streamed(text, total)
    else:
        usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        body = json.dumps({"id": "e", "model": "m", "choices": [choice], "usage": usage, "p": ""}).encode()
    head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nX-Nonce: %b\r\nContent-Length: %d\r\n\r\n"
    padding = max(0, total - len(head % (status.encode(), nonce, total)) - len(body))
    if padding:
        body = body[:-2] + b"p" * padding + body[-2:]
    return head % (status.encode(), nonce, len(body) + shift) + body


def _streamed(text: str, total: int) -> bytes:
    end = b"0\r\n\r\n"
    words = re.split("(?<= )", text)
    events = [{"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]} for word in words]
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    chunks = [chunked(f"data: {json.dumps(event)}\n\n".encode()) for event in (*events, last)]
    chunks.append(chunked(b"data: [DONE]\n\n"))
    missing = total - len(STREAM_HEAD) - len(end) - sum(map(len, chunks))
    if missing > 20:
        digits = len(f"{missing - 6:x}")
        chunks.insert(1, chunked(b":" + b"p" * (missing - digits - 4 - 3) + b"\n\n"))
    return STREAM_HEAD + b"".join(chunks) + end


class Rests:
    """Tells all connections that no request is under way. `told` is set by one thread; each connection notes in its own
    `_seen` that it has heard, and is counted by `heard`."""

    def __init__(self) -> None:
        self.told = 0
        self.receiver, self._sender = socket.socketpair()
        self.connections: dict[Connection, None] = {}

    def tell(self) -> None:
        """Let every idle connection say what nobody asked for; returns when all have heard, or after REST_S."""
        self.told += 1
        self._sender.send(b"x")
        end_s = time.monotonic() + REST_S
        while not all(connection.heard for connection in list(self.connections)) and time.monotonic() < end_s:
            time.sleep(0.002)
        self.receiver.recv(1)


class Connection:
    """One connection of the gateway's to an engine, served on a thread of its own."""

    def __init__(self, sock: socket.socket, rng: random.Random, counts: Counts, rests: Rests) -> None:
        self._sock = sock
        self._rests = rests
        self._seen = rests.told
        self._asked = b""  # the last nonce
        self._rng = rng
        self._counts = counts
        self._buffer = b""
        self._number = f"connection {next(_numbers)}"

    @property
    def heard(self) -> bool:
        """Whether it has heard of the rest that there is now."""
        return self._seen == self._rests.told

    def serve(self) -> None:
        """Until it ends, by whichever side."""
        self._rests.connections[self] = None
        try:
            while True:
                self._one()
        except (Ended, OSError):
            pass
        finally:
            self._rests.connections.pop(self, None)
            with contextlib.suppress(OSError):
                self._sock.close()

    def _one(self) -> None:
        self._rest()
        head = self._head()
        nonce_match = NONCE.search(head)
        nonce = nonce_match[0] if nonce_match else b"none"
        length = re.search(rb"\r\ncontent-length: *([0-9]+)", head, re.IGNORECASE)
        size = int(length[1]) if length else 0
        self._asked = nonce
        kind = self._rng.choices(KINDS, SHARES)[0]
        if kind.startswith("early"):
            self._did(kind, nonce)
            self._early(kind, nonce, size)
            return
        body = self._take(size)
        self._did(kind, nonce)
        self._answer(kind, nonce, wants_stream(body))

    def _rest(self) -> None:
        """Wait for a request; when all connections are at rest, say something that nobody asked for."""
        while not self._buffer:
            told = self._rests.told
            watched = [self._sock] if self._seen == told else [self._sock, self._rests.receiver]
            if self._sock in select.select(watched, [], [], REST_POLL_S)[0]:
                break
            if self._seen != self._rests.told:
                if self._asked and self._rng.random() < LATE_SHARE:
                    self._did("at rest: bytes sent", b"-")
                    self._sock.sendall(self._rng.choice((answer(self._asked, self._rng.random() < 0.5), b"\r\n")))
                self._seen = self._rests.told
        self._seen = self._rests.told

    def _did(self, kind: str, nonce: bytes) -> None:
        """Count it, and write it down for whoever wants to know what came before a foreign answer."""
        self._counts.count(kind)
        tls = " TLS" if isinstance(self._sock, ssl.SSLSocket) else ""
        sys.stderr.write(f"{self._number}{tls} {time.monotonic():.4f} {nonce.decode()} {kind}\n")

    def _early(self, kind: str, nonce: bytes, size: int) -> None:
        """Answer before the body has been read; then read it, or close without."""
        if kind == "early":
            self._sock.sendall(answer(nonce, False))
            self._take(size)
            return
        self._sock.sendall(answer(nonce, False, status="413 Too Large"))
        if self._rng.random() < 0.5:
            self._reset()
        raise Ended

    def _answer(self, kind: str, nonce: bytes, stream: bool) -> None:
        rng, send = self._rng, self._sock.sendall
        another = answer(nonce, rng.random() < 0.5)
        exact = READ_BYTES * rng.choice((1, 1, 1, 2)) + rng.choice((0, 0, 0, 0, 1, -1))
        refusal = rng.choice(("400 Bad", "404 Not Found", "422 Unprocessable"))
        if kind == "good":
            send(answer(nonce, stream, rng.choice((0, 0, 0, 5000, 70_000))))
        elif kind == "good of exactly a read":
            send(answer(nonce, stream, exact))
        elif kind == "surplus":
            send(answer(nonce, stream) + another)
        elif kind == "surplus behind exactly a read":
            data = answer(nonce, stream, exact) + another
            sent = self._sock.send(data)
            if sent < len(data) or isinstance(self._sock, ssl.SSLSocket):
                send(data[sent:])
                self._tainted(TAINTED_S)
            else:
                self._tainted(0)  # the bytes were there before the answer could be read to its end
        elif kind == "surplus of a few bytes":
            send(answer(nonce, stream) + rng.choice((b"\r\n", b"\0", b"x", b"HTTP/1.1 ", b"0\r\n\r\n")))
        elif kind == "surplus behind 4xx":
            send(answer(nonce, False, status=refusal) + another)
        elif kind == "4xx":
            send(answer(nonce, False, status=refusal))
        elif kind == "5xx":
            send(answer(nonce, False, status=rng.choice(("500 No", "503 Busy"))) + rng.choice((b"", another)))
        elif kind == "cut":
            whole = answer(nonce, stream, rng.choice((0, 5000, READ_BYTES + 100)))
            send(whole[: rng.randrange(1, len(whole))])
            raise Ended
        elif kind == "reset":
            whole = answer(nonce, stream)
            send(whole[: rng.randrange(len(whole))])
            self._reset()
        elif kind == "closed":
            raise Ended
        elif kind == "length too long":
            send(answer(nonce, False, shift=rng.choice((1, 100, len(another)))) + rng.choice((b"", another)))
            raise Ended
        elif kind == "length too short":
            send(answer(nonce, False, shift=-rng.randint(1, 60)) + rng.choice((b"", another)))
        elif kind.startswith("late"):
            send(answer(nonce, stream))
            self._late(another if kind == "late answer" else rng.choice((b"\r\n", b"x", b"HTTP/1.1 408 Idle\r\n\r\n")))
        elif kind == "slow":
            self._slowly(answer(nonce, stream))
        elif kind == "closed behind the answer":
            send(answer(nonce, stream))
            raise Ended
        else:
            send(
                b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nX-Nonce: %b\r\n\r\n" % nonce
                + answer(nonce, stream)
            )

    def _slowly(self, data: bytes) -> None:
        for start in range(0, len(data), 200):
            self._sock.sendall(data[start : start + 200])
            self._waits(0.002)

    def _late(self, data: bytes) -> None:
        """Send bytes on the idle connection, unless a request is there by then."""
        if self._waits(self._rng.uniform(*LATE_S)):
            self._counts.count("late: a request was there, nothing sent")
            return
        self._sock.sendall(data)
        self._did("late: sent", b"-")
        if self._waits(0):
            self._counts.count("late: a request was there right after")
        self._tainted(TAINTED_S)

    def _tainted(self, wait_s: float) -> None:
        """Bytes that nobody asked for have just been sent: was a request on its way?"""
        if not self._waits(wait_s):
            return
        head = self._head()  # Ended, mostly: the gateway has seen them
        found = NONCE.search(head)
        self._counts.count("undecidable")
        self._counts.undecidable(found[0] if found else b"none")
        self._reset()

    def _waits(self, wait_s: float) -> bool:
        """Whether something comes within that time."""
        if isinstance(self._sock, ssl.SSLSocket) and self._sock.pending():
            return True
        return bool(self._buffer) or bool(select.select([self._sock], [], [], wait_s)[0])

    def _reset(self) -> None:
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise Ended

    def _head(self) -> bytes:
        while b"\r\n\r\n" not in self._buffer:
            self._more()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        return head

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._more()
        body, self._buffer = self._buffer[:size], self._buffer[size:]
        return body

    def _more(self) -> None:
        data = self._sock.recv(1 << 18)
        if not data:
            raise Ended
        self._buffer += data


def _listen(seed: int, counts: Counts, rests: Rests, tls: Optional[ssl.SSLContext]) -> int:
    """Serve on a port of its own, on threads; returns the port."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    rng = random.Random(seed)

    def serve(sock: socket.socket, own: random.Random) -> None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls is not None:
                sock = tls.wrap_socket(sock, server_side=True)
            Connection(sock, own, counts, rests).serve()

    def accept() -> None:
        while True:
            sock, _ = listener.accept()
            own = random.Random(rng.getrandbits(64))
            threading.Thread(target=serve, args=(sock, own), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    port: int = listener.getsockname()[1]
    return port


def main() -> None:
    """Run the process."""
    seed, count, *files = sys.argv[1:]
    counts = Counts()
    tls: Optional[ssl.SSLContext] = None
    if files:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(*files)
    last = int(count) - 1
    rests = Rests()
    ports = [_listen(int(seed) * 100 + n, counts, rests, tls if n == last else None) for n in range(int(count))]
    print(json.dumps(ports), flush=True)
    for _line in sys.stdin:
        rests.tell()
        print("{}", flush=True)
    print(counts.told(), flush=True)


if __name__ == "__main__":
    main()
