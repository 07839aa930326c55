"""Engines that send as much as they can, and what a gateway in front of them takes of the machine's memory.

`python -m tests.hostile [MiB]` prints a table: the peak over rest and the slowest `/healthz` for each of them, with
that many MiB as MAX_ANSWER_BYTES (default: 64). Linux only: the peak is read from /proc. Every wait is bounded.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gzip
import itertools
import json
import random
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable, NamedTuple, Optional

from tests.scripted import STREAM_HEAD, chunked
from tests.support import CHAT, EMBEDDINGS, GatewayProcess, gateway_process, request_bytes

MIB = 1 << 20
JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
PIECE = 65_536
FIRST = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
ENDLESS = 1 << 40

Pieces = Iterator[bytes]


class Hostile(NamedTuple):
    """An engine: what it answers, and what the client is to get."""

    name: str
    pieces: Callable[[], Pieces]
    stream: bool = False
    status: int = 502
    path: str = CHAT


def repeated(unit: bytes, size: int = ENDLESS) -> Pieces:
    """`unit` again and again, `size` bytes or a little more."""
    block = unit * max(1, PIECE // len(unit))
    for _ in range(-(-size // len(block))):
        yield block


def answer(unit: bytes, size: int, last: bytes, kind: str = "length") -> Pieces:
    """A whole answer of about `size` bytes with `unit` again and again among its choices, `last` behind them."""
    block = unit * max(1, PIECE // len(unit))
    count = max(1, size // len(block) - 1)
    begin, end = b'{"id":"x","model":"y","choices":[', last + b'],"usage":{"prompt_tokens":1,"completion_tokens":1}}'
    return framed(itertools.chain((begin,), itertools.repeat(block, count), (end,)), kind)


def framed(body: Pieces, kind: str) -> Pieces:
    """A body with its head."""
    if kind == "chunks":
        yield JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
        for piece in body:
            yield chunked(piece)
        yield b"0\r\n\r\n"
        return
    if kind == "length":
        pieces = list(body)
        yield JSON_HEAD + b"Content-Length: %d\r\n\r\n" % sum(map(len, pieces))
        yield from pieces
        return
    yield JSON_HEAD + b"Connection: close\r\n\r\n"
    yield from body


def text_answer(size: int) -> Pieces:
    begin = b'{"choices":[{"message":{"role":"assistant","content":"'
    end = b'"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}'
    return framed(itertools.chain((begin,), repeated("é".encode(), size - 2 * PIECE), (end,)), "length")


def embeddings(size: int) -> Pieces:
    """What a lawful engine says of 2 048 texts."""
    rng = random.Random(1)
    vector = json.dumps([rng.uniform(-1, 1) for _ in range(1536)]).encode()
    one = b'{"object":"embedding","index":0,"embedding":' + vector + b"}"
    count = size // (len(one) + 1) - 1
    body = b'{"object":"list","data":[' + b",".join([one] * count) + b'],"usage":{"prompt_tokens":1,"total_tokens":1}}'
    return framed(iter((body,)), "length")


def logprobs(size: int) -> Pieces:
    """What a lawful engine says of each of very many tokens."""
    one = b'{"token":" a","logprob":-0.5,"bytes":[32,97],"top_logprobs":[{"token":"b","logprob":-1.5,"bytes":null}]}'
    body = b'{"choices":[{"message":{"content":"hi"},"finish_reason":"stop","logprobs":{"content":['
    body += b",".join([one] * (size // (len(one) + 1) - 1)) + b"]}}]}"
    return framed(iter((body,)), "length")


def event(unit: bytes, size: int) -> Pieces:
    """A stream with one large event, then its end."""
    yield STREAM_HEAD
    yield chunked(FIRST + b'data: {"choices":[{"index":0,"delta":{"content":"b","x":[')
    for piece in repeated(unit, size - 2 * PIECE):
        yield chunked(piece)
    yield chunked(unit[:-1] + b']},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n') + b"0\r\n\r\n"


def unasked(choice: Callable[[int], object], size: int) -> Pieces:
    """A whole stream of about `size` bytes, of events whose one choice is what `choice` gives for its number."""
    yield STREAM_HEAD
    sent = 0
    for number in itertools.count():
        event = chunked(b"data: %b\n\n" % json.dumps({"choices": [choice(number)]}, separators=(",", ":")).encode())
        sent += len(event)
        if sent > size:
            break
        yield event
    yield chunked(b'data: {"choices":[{"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n') + b"0\r\n\r\n"


def streamed(unit: bytes) -> Pieces:
    yield STREAM_HEAD
    for piece in repeated(unit):
        yield chunked(piece)


def after_head(head: bytes, unit: bytes, size: int = ENDLESS) -> Pieces:
    yield head
    yield from repeated(unit, size)


def compressed(head: bytes, begin: bytes, unit: bytes, size: int = ENDLESS, codings: int = 1) -> Pieces:
    """A body of `begin`, then `unit` again and again, compressed: a thousandth of what it stands for, or less."""
    yield head.replace(b"\r\n", b"\r\nContent-Encoding: %b\r\n" % b",".join([b"gzip"] * codings), 1)
    compressors = [zlib.compressobj(wbits=31) for _ in range(codings)]
    for piece in itertools.chain((begin,), repeated(unit, size)):
        for compressor in compressors:
            piece = compressor.compress(piece) + compressor.flush(zlib.Z_SYNC_FLUSH)
        yield chunked(piece)


def drip(size: int) -> Pieces:
    """An answer in chunks of one byte each."""
    body = b'{"choices":[{"message":{"content":"' + b"x" * size + b'"}}]}'
    yield JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    for start in range(0, len(body), 4096):
        yield b"".join(b"1\r\n%c\r\n" % byte for byte in body[start : start + 4096])
    yield b"0\r\n\r\n"


def hostile(answer_bytes: int, event_bytes: int) -> list[Hostile]:
    """Every kind, in front of a gateway with these limits."""
    large = answer_bytes - PIECE
    chunks = JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    return [
        *(many(unit, large, kind) for kind in ("length", "chunks", "close") for unit in (b"{},", b"[],")),
        many(b"0,", large, "length"),
        many(b"{},", large * 5 // 8, "length"),
        Hostile("one long text", lambda: text_answer(large), status=200),
        Hostile("embeddings", lambda: embeddings(large), status=200, path=EMBEDDINGS),
        Hostile("logprobs", lambda: logprobs(large), status=200),
        Hostile("too large, by length", lambda: after_head(JSON_HEAD + b"Content-Length: 99999999999\r\n\r\n", b"{},")),
        Hostile("without end, in chunks", lambda: after_head(chunks, chunked(b"x" * 9000))),
        Hostile("compressed without end", lambda: compressed(chunks, b"{", b" ")),
        Hostile("compressed twice without end", lambda: compressed(chunks, b"{", b" ", codings=2)),
        Hostile("an error compressed without end", lambda: compressed(chunks.replace(b"200", b"500"), b"{", b" ")),
        Hostile("compressed empty members", lambda: compressed(chunks, b"", gzip.compress(b""), large, 2)),
        Hostile("without end, by close", lambda: after_head(JSON_HEAD + b"\r\n", b"[[{")),
        many(b"NaN,", large // 2, "chunks"),
        many(b'"NaN",-Infinity,', large, "length"),
        Hostile("chunks of one byte", lambda: drip(answer_bytes // 16), status=200),
        Hostile("no JSON", lambda: answer(b"{[},", large, b"")),
        Hostile("nested", lambda: answer(b"[", large, b"")),
        Hostile("an error without end", lambda: after_head(b"HTTP/1.1 500 No\r\n\r\n", b"no ")),
        Hostile("heads without end", lambda: repeated(b"HTTP/1.1 103 Early\r\nLink: a\r\n\r\n")),
        Hostile("a head without end", lambda: after_head(b"HTTP/1.1 200 OK\r\n", b"X-Very: long\r\n")),
        Hostile("a line of a head without end", lambda: after_head(b"HTTP/1.1 200 OK\r\nX: ", b"x")),
        Hostile("comments without end", lambda: streamed(b":\n"), stream=True),
        Hostile("empty events without end", lambda: streamed(b"\n\n"), stream=True),
        Hostile("a line without end", lambda: streamed(b"x"), stream=True),
        Hostile("an event of lines without end", lambda: streamed(b"event: x\n"), stream=True),
        Hostile("a large event of {},", lambda: event(b"{},", event_bytes), stream=True, status=200),
        Hostile(
            "a large event of texts", lambda: event(b'"' + b"x" * 9000 + b'",', event_bytes), stream=True, status=200
        ),
        Hostile(
            "a compressed event without an end",
            lambda: compressed(STREAM_HEAD, FIRST + b'data: {"x":"', b" "),
            True,
            200,
        ),
        *unasked_streams(large),
        Hostile("an event too large", lambda: event(b"{},", 2 * event_bytes), stream=True, status=200),
    ]


def unasked_streams(size: int) -> Iterator[Hostile]:
    """Streams that are to be put together, though nobody asked for them."""
    kinds: list[tuple[str, Callable[[int], object], int]] = [
        ("small texts", lambda number: {"delta": {"content": "ab"}}, 200),
        ("small objects", lambda number: {"delta": {}, "logprobs": {"content": [{}] * 9_000}}, 200),
        ("choices without end", lambda number: {"index": number, "delta": {}, "finish_reason": "x"}, 502),
        ("calls without end", lambda number: {"delta": {"tool_calls": [{"index": number}]}}, 502),
        ("keys without end", lambda number: {"delta": {f"key{number}": 1}}, 502),
    ]
    for name, choice, status in kinds:
        pieces = functools.partial(unasked, choice, size)
        yield Hostile(f"unasked events of {name}", pieces, status=status)


def many(unit: bytes, size: int, kind: str) -> Hostile:
    """A whole answer of very many values."""
    name = f"{size // MIB} MiB of {unit.decode()} by {kind}"
    return Hostile(name, lambda: answer(unit, size, unit[:-1], kind), status=200)


class HostileEngine:
    """Answers each connection's first request with the pieces of `kind`, until nobody takes them; a context manager."""

    def __init__(self) -> None:
        self.kind: Optional[Hostile] = None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        self._thread = threading.Thread(target=self._serve, name="hostile-engine", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with sock, contextlib.suppress(OSError):
                sock.settimeout(60)
                sock.recv(65_536)
                if self.kind is not None:
                    for piece in self.kind.pieces():
                        sock.sendall(piece)

    def __enter__(self) -> HostileEngine:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(60)


class Measured(NamedTuple):
    """What one of them did: the client's status and bytes, the peak over rest, seconds in all and of `/healthz`."""

    status: int
    size: int
    peak_bytes: int
    took_s: float
    health_s: float


class HostileGateway:
    """A gateway process in front of one hostile engine."""

    def __init__(self, process: GatewayProcess, engine: HostileEngine) -> None:
        self._process = process
        self._engine = engine
        self._status = Path(f"/proc/{process.process.pid}/status")
        self._rest_bytes = 0

    def _memory(self, name: str) -> int:
        line = next(line for line in self._status.read_text().splitlines() if line.startswith(name))
        return int(line.split()[1]) * 1024

    def rest(self) -> None:
        """What it takes now is what it takes at rest."""
        self._rest_bytes = self._memory("VmRSS")

    def measure(self, kind: Hostile) -> Measured:
        """Have one request answered by it."""
        self._engine.kind = kind
        Path(self._status.parent / "clear_refs").write_text("5")  # the peak begins anew
        done = threading.Event()
        with ThreadPoolExecutor(1, "prober") as pool:
            probing = pool.submit(self._probe, done)
            began_s = time.monotonic()
            try:
                status, size = self._ask(kind)
            finally:
                done.set()
            took_s = time.monotonic() - began_s
            health_s = probing.result()
        return Measured(status, size, self._memory("VmHWM") - self._rest_bytes, took_s, health_s)

    def _ask(self, kind: Hostile) -> tuple[int, int]:
        field = "input" if kind.path == EMBEDDINGS else "messages"
        value: object = ["hi"] if kind.path == EMBEDDINGS else [{"role": "user", "content": "hi"}]
        body = {field: value, **({"stream": True} if kind.stream else {})}
        with socket.create_connection(("127.0.0.1", self._process.port), timeout=120) as client:
            client.sendall(request_bytes("POST", kind.path, body, [("Connection", "close")]))
            head = b""
            size = 0
            while True:
                data = client.recv(1 << 18)
                if not data:
                    return int(head[9:12]), size
                head = head or data[:12]
                size += len(data)

    def _probe(self, done: threading.Event) -> float:
        """The slowest `/healthz` until then, in seconds."""
        slowest_s = 0.0
        while not done.wait(0.01):
            began_s = time.monotonic()
            assert self._process.ask("GET", "/healthz").status == 200
            slowest_s = max(slowest_s, time.monotonic() - began_s)
        return slowest_s


@contextlib.contextmanager
def hostile_gateway(answer_bytes: int, event_bytes: int, **variables: object) -> Iterator[HostileGateway]:
    """A gateway with these limits and variables, whose memory has settled."""
    settings = {
        "MAX_ANSWER_BYTES": answer_bytes,
        "MAX_EVENT_BYTES": event_bytes,
        "RETRY_ATTEMPTS": 1,
        "BREAKER_MIN_REQUESTS": 1000,
        "LOG_LEVEL": "error",
        **variables,
    }
    with HostileEngine() as engine, gateway_process(settings, ENGINES=f"m={engine.url}") as process:
        running = HostileGateway(process, engine)
        small = Hostile("small", lambda: answer(b"0,", 1, b"0", "close"))
        for _ in range(20):
            running.measure(small)
        running.rest()
        yield running


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.hostile", description="What engines that send as much as they can cost a gateway."
    )
    parser.add_argument("mib", nargs="?", type=int, default=64, help="MAX_ANSWER_BYTES in MiB (default 64)")
    answer_bytes = parser.parse_args().mib * MIB
    event_bytes = answer_bytes // 8
    with hostile_gateway(answer_bytes, event_bytes) as running:
        print(f"{'engine':40} status   sent MiB   peak MiB   seconds   /healthz ms")
        for kind in hostile(answer_bytes, event_bytes):
            status, size, peak, took_s, health_s = running.measure(kind)
            row = f"{status:6} {size / MIB:10.1f} {peak / MIB:10.1f} {took_s:9.2f} {1000 * health_s:13.0f}"
            print(f"{kind.name:40} {row}", flush=True)


if __name__ == "__main__":
    main()
