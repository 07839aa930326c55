"""Many event streams at once: a light client in a process of its own, and how the bench runs it.

The client is one thread and one selector on raw sockets; it opens every stream at once, counts
content events without parsing them, and reads the gateway's CPU from /proc itself, so that the
figures belong to exact moments: `opening` is included in the whole run, `steady` lies between the
moment every stream has had its first event and the first end. It has no lock; it always ends, at
the latest at its deadline.
"""

from __future__ import annotations

import argparse
import json
import selectors
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from . import measure, payloads
from .client import request_bytes
from .processes import BenchError

_MARK = payloads.CONTENT_MARK
_DONE = b"[DONE]"
# Enough of the last read to find a mark that two reads share, too little to count one twice.
_TAIL_BYTES = len(_MARK) - 1
_READ_BYTES = 65536
_MARGIN_S = 15.0


class StreamResult(NamedTuple):
    """One run of many streams; CPU is the gateway's. Steady figures are 0 when no moment existed
    at which every stream was running."""

    streams: int
    finished: int
    errors: dict[str, int]
    events: int
    events_sent: int
    first_event_p50_ms: float
    first_event_p99_ms: float
    duration_s: float
    cpu_s: float
    steady_cpu_s: float
    steady_events: int
    steady_s: float
    client_cpu_s: float


def run(port: int, headers: Mapping[str, str], pid: int, count: int, stream_s: float, run_dir: Path) -> StreamResult:
    """Opens `count` streams of `stream_s` seconds each against 127.0.0.1:`port`, in a new process.

    `pid` is the root of the gateway's process tree. Raises BenchError when the client fails.
    """
    request = run_dir / "stream-request.http"
    request.write_bytes(request_bytes(port, headers, payloads.chat_request(stream=True)))
    argv = [sys.executable, "-m", "tests.bench.streams", "--port", str(port), "--pid", str(pid)]
    argv += ["--count", str(count), "--seconds", str(stream_s), "--request", str(request)]
    limit_s = _deadline_s(stream_s) + _MARGIN_S
    repository = Path(__file__).resolve().parents[2]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=limit_s, cwd=repository, check=True)
    except subprocess.CalledProcessError as exc:
        raise BenchError(f"stream client failed: {exc.stderr[-500:]}") from exc
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise BenchError(f"stream client: {exc}") from exc
    return StreamResult(**json.loads(done.stdout))


class _Stream:
    """One stream: when it was opened, what has come, how it ended ('' while it runs)."""

    __slots__ = ("end", "events", "first_s", "opened_at", "seen", "sock", "tail")

    def __init__(self, sock: socket.socket, opened_at: float) -> None:
        self.sock = sock
        self.opened_at = opened_at
        self.first_s = 0.0
        self.events = 0
        self.tail = b""
        self.seen = False
        self.end = ""

    def feed(self, data: bytes) -> None:
        """Counts what `data` brings (no bytes: the gateway closed) and notices the end."""
        if not data:
            self.end = "closed before [DONE]"
            return
        if not self.seen:
            self.seen = True
            status = data.split(b" ", 2)[1:2]
            if status != [b"200"]:
                self.end = f"status {status[0].decode('latin-1')}" if status else "not HTTP"
                return
        data = self.tail + data
        self.events += data.count(_MARK)
        if self.events and not self.first_s:
            self.first_s = time.monotonic() - self.opened_at
        if _DONE in data:
            self.end = "done"
        self.tail = data[-_TAIL_BYTES:]


class _Client:
    """Runs all streams to their end or the deadline."""

    def __init__(self, port: int, pid: int, request: bytes) -> None:
        self._port = port
        self._pid = pid
        self._request = request
        self._selector = selectors.DefaultSelector()
        self._streams: list[_Stream] = []
        self._without_event = 0
        self._steady_from: tuple[float, float, int] | None = None
        self._steady_to: tuple[float, float, int] | None = None

    def run(self, count: int, stream_s: float) -> StreamResult:
        """Opens `count` streams, follows them, and returns what was measured."""
        began = self._moment()
        self._open(count)
        self._follow(began[0] + _deadline_s(stream_s))
        ended = self._moment()
        firsts = sorted(stream.first_s for stream in self._streams if stream.first_s)
        ends = Counter(stream.end or "not finished in time" for stream in self._streams)
        finished = ends.pop("done", 0)
        steady_from, steady_to = self._steady_from, self._steady_to or ended
        if steady_from is None or steady_to[2] <= steady_from[2]:
            # Some ended before others had begun: there was no steady time.
            steady_from = steady_to
        return StreamResult(
            streams=count,
            finished=finished,
            errors=dict(ends),
            events=ended[2],
            events_sent=count * round(stream_s * payloads.EVENTS_PER_S),
            first_event_p50_ms=_percentile(firsts, 0.50) * 1000,
            first_event_p99_ms=_percentile(firsts, 0.99) * 1000,
            duration_s=ended[0] - began[0],
            cpu_s=ended[1] - began[1],
            steady_cpu_s=steady_to[1] - steady_from[1],
            steady_events=steady_to[2] - steady_from[2],
            steady_s=steady_to[0] - steady_from[0],
            client_cpu_s=time.process_time(),
        )

    def _moment(self) -> tuple[float, float, int]:
        events = sum(stream.events for stream in self._streams)
        return time.monotonic(), measure.cpu_s(self._pid), events

    def _open(self, count: int) -> None:
        for _ in range(count):
            sock = socket.socket()
            sock.setblocking(False)
            stream = _Stream(sock, time.monotonic())
            sock.connect_ex(("127.0.0.1", self._port))
            self._streams.append(stream)
            self._selector.register(sock, selectors.EVENT_WRITE, stream)
        self._without_event = count

    def _follow(self, deadline: float) -> None:
        running = len(self._streams)
        while running and (left_s := deadline - time.monotonic()) > 0:
            for key, mask in self._selector.select(left_s):
                stream: _Stream = key.data
                if mask & selectors.EVENT_WRITE:
                    self._send(stream)
                else:
                    self._receive(stream)
                if stream.end:
                    running -= 1
                    self._selector.unregister(stream.sock)
                    if self._steady_to is None:
                        self._steady_to = self._moment()

    def _send(self, stream: _Stream) -> None:
        try:
            # A request of one kilobyte fits any socket buffer whole.
            stream.sock.send(self._request)
        except OSError as exc:
            stream.end = type(exc).__name__
            return
        self._selector.modify(stream.sock, selectors.EVENT_READ, stream)

    def _receive(self, stream: _Stream) -> None:
        had_event = bool(stream.first_s)
        try:
            stream.feed(stream.sock.recv(_READ_BYTES))
        except BlockingIOError:
            return
        except OSError as exc:
            stream.end = type(exc).__name__
        if stream.first_s and not had_event:
            self._without_event -= 1
            if self._without_event == 0:
                self._steady_from = self._moment()


def _deadline_s(stream_s: float) -> float:
    """How long a run may take: a gateway three times too slow is still measured."""
    return 3 * stream_s + 5


def _percentile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def main() -> None:
    """The client process: measures once and prints a StreamResult as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--port", "--pid", "--count"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--request", type=Path, required=True)
    options = parser.parse_args()
    client = _Client(options.port, options.pid, options.request.read_bytes())
    result = client.run(options.count, options.seconds)
    print(json.dumps(result._asdict()))


if __name__ == "__main__":
    main()
