"""What one request calls on the loop's thread: `python -m tests.bench.trace`.

A gateway in this process stands before an engine that answers at once. A kept-alive client asks again and again; each
request is traced by itself, and the shortest trace that comes regularly is told (in others the loop does a turn of
the telemetry's work): calls of the gateway's own functions (as `sys.setprofile` sees them, so a generator that goes on
is a call, too), the modules they are in, and how often a call is in another module than the one before it. Nothing is
timed: the profile itself would be most of it.
"""

from __future__ import annotations

import argparse
import collections
import dis
import inspect
import io
import socket
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import NamedTuple, Optional

from gateway import settings
from gateway.app import Gateway

from . import payloads

GATEWAY = Path(settings.__file__).resolve().parent
WARM_UP = 50
TIMEOUT_S = 10.0
REGULAR = 0.1  # of all requests
QUIET_S = 0.02  # nothing called for so long: the request is over
REQUEST = b"POST %b HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"


class Called(NamedTuple):
    """One call: how deep it is among the gateway's own, and whether a generator went on."""

    depth: int
    module: str
    function: str
    resumed: bool


Trace = tuple[Called, ...]


class Recorder:
    """The calls of the threads of one name, while `on`. `calls` may be read by another thread."""

    def __init__(self, thread: str) -> None:
        self.calls: list[Called] = []
        self.on = False
        self._thread = thread
        self._depth = 0
        self._names: dict[str, Optional[str]] = {}

    def profile(self, frame: FrameType, event: str, argument: object) -> None:
        """What `threading.setprofile` takes."""
        if event not in ("call", "return") or not self.on or threading.current_thread().name != self._thread:
            return
        module = self._module(frame.f_code.co_filename)
        if module is None:
            return
        if event == "call":
            name = getattr(frame.f_code, "co_qualname", frame.f_code.co_name)  # 3.11
            self.calls.append(Called(self._depth, module, name, _goes_on(frame)))
        self._depth = max(0, self._depth + (1 if event == "call" else -1))

    def begin(self) -> None:
        """Forget what was called, and record from now on."""
        self.calls, self._depth = [], 0
        self.on = True

    def end(self) -> Trace:
        """Wait until nothing is called any more; returns what was."""
        seen = -1
        while seen != len(self.calls):
            seen = len(self.calls)
            time.sleep(QUIET_S)
        self.on = False
        return tuple(self.calls)

    def _module(self, path: str) -> Optional[str]:
        if path not in self._names:
            file = Path(path)
            inside = GATEWAY in file.parents
            self._names[path] = ".".join(file.relative_to(GATEWAY).with_suffix("").parts) if inside else None
        return self._names[path]


def _goes_on(frame: FrameType) -> bool:
    """Whether the frame has run before: it is a generator's, which is resumed."""
    code, at = frame.f_code, frame.f_lasti
    if not code.co_flags & inspect.CO_GENERATOR or at < 0:
        return False
    # From 3.11 on a frame begins with RESUME 0; the last two bits say what it resumes from.
    return dis.opname[code.co_code[at]] != "RESUME" or bool(code.co_code[at + 1] & 3)


class Engine:
    """Answers every request on every connection at once. Its threads end with the process."""

    def __init__(self) -> None:
        body = payloads.chat_answer()
        self._answer = ANSWER % (len(body), body)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        threading.Thread(target=self._accept, name="trace-engine", daemon=True).start()

    def _accept(self) -> None:
        while True:
            sock, _address = self._listener.accept()
            threading.Thread(target=self._serve, args=(sock,), name="trace-engine", daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        while _message(sock):
            sock.sendall(self._answer)


def _message(sock: socket.socket) -> bytes:
    """One message whose body has a length; b"": the connection has ended."""
    data = b""
    while True:
        head, end, body = data.partition(b"\r\n\r\n")
        if end:
            lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            if not lengths or len(body) >= int(lengths[0].partition(b":")[2]):
                return data
        piece = sock.recv(65536)
        if not piece:
            return b""
        data += piece


def trace(requests: int, thread: str = "clients") -> collections.Counter[Trace]:
    """How often each trace came; raises RuntimeError when a request was answered otherwise than with 200."""
    recorder, body = Recorder(thread), payloads.chat_request()
    texts = {"PORT": "0", "HEALTH_INTERVAL": "0", "ENGINES": f"{payloads.MODEL}={Engine().url}"}
    texts["STATE_DB"] = str(GATEWAY / "no-such-folder" / "gateway.db")
    threading.setprofile(recorder.profile)  # for threads that begin from now on
    gateway = Gateway(settings.load(texts, None), io.StringIO()).start()
    traces: collections.Counter[Trace] = collections.Counter()
    try:
        threading.setprofile(None)
        with socket.create_connection(gateway.address, TIMEOUT_S) as client:
            for number in range(WARM_UP + requests):
                if number >= WARM_UP:
                    recorder.begin()
                client.sendall(REQUEST % (payloads.CHAT_PATH.encode(), len(body), body))
                answer = _message(client)
                if not answer.startswith(b"HTTP/1.1 200 "):
                    raise RuntimeError(f"not answered well: {answer[:200]!r}")
                if number >= WARM_UP:
                    traces[recorder.end()] += 1
    finally:
        gateway.stop(0)
    return traces


def main(argv: list[str]) -> int:
    """Prints the shortest trace that comes regularly; returns 0, 1 when the thread called nothing."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.trace", description="What one kept-alive chat request calls on the loop's thread."
    )
    parser.add_argument("--requests", type=int, default=50, help="requests that are traced (default 50)")
    parser.add_argument("--thread", default="clients", help="the thread's name (default clients)")
    options = parser.parse_args(argv)
    traces = trace(options.requests, options.thread)
    regular = [calls for calls, times in traces.items() if times >= REGULAR * options.requests] or list(traces)
    calls = min(regular, key=len)
    print(f"{traces[calls]} of {options.requests} requests, {sys.implementation.name} {sys.version.split()[0]}:\n")
    for called in calls:
        print("  " * called.depth + f"{called.module}: {called.function}" + (" (goes on)" if called.resumed else ""))
    modules = [called.module for called in calls]
    resumed = sum(called.resumed for called in calls)
    print(f"\n{len(calls)} calls, {resumed} of them of generators that go on")
    print(f"{len(set(modules))} modules")
    others = sorted((len(other), times) for other, times in traces.items() if other != calls)
    print(f"{sum(one != other for one, other in zip(modules, modules[1:]))} module changes")
    if others:
        print("others: " + ", ".join(f"{times} with {count} calls" for count, times in others))
    return 0 if calls else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
