"""The mock engine: a server like a provider's that misbehaves on demand, on `http.server.ThreadingHTTPServer`.

Owns the listening socket, and the connections with their threads, which a server's lock guards. An engine's `_turning`
makes one change at a time: it is held while the listening socket is opened and closed, which waits for no client.
Imports nothing of the gateway it is there to test.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import itertools
import os
import signal
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, Optional

from gateway.mock.behaviours import MEANINGS, OPTIONS, Behaviour, BehaviourError
from gateway.mock.conduct import Conduct
from gateway.mock.connection import readable
from gateway.mock.endpoints import PATH_BY_NAME
from gateway.mock.state import State

LACKS = "responses"  # unless it is said
_CLOSE_TIMEOUT_S = 5.0
_LONGEST_WAIT_S = 60.0
_REST_S = 0.05  # before what the system has refused is tried again


class _Server(http.server.ThreadingHTTPServer):
    """Holds a port from the start, and accepts connections from `listen` to `stop`; each has a thread of its own."""

    request_queue_size = 1024
    allow_reuse_address = os.name == "posix"  # elsewhere two servers could share a port
    allow_reuse_port = False
    server_bind = socketserver.TCPServer.server_bind  # HTTPServer's looks up the host's name, which may take seconds

    def __init__(self, state: State, host: str) -> None:
        """Raises OSError when `host` does not resolve or the port is taken."""
        found = socket.getaddrinfo(host or None, state.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family = found[0][0]
        super().__init__(found[0][4], Conduct, bind_and_activate=False)  # type: ignore[arg-type]
        try:
            self.server_bind()
        except BaseException:
            self.server_close()
            raise
        self.state = state
        state.port = self.server_address[1]
        self._name = f"mock-{state.model}-{state.port}"
        self._numbers = itertools.count(1)
        self._accepting: Optional[threading.Thread] = None
        self._lock = threading.Lock()
        self._connections: dict[Any, threading.Thread] = {}
        self._ending: list[threading.Thread] = []  # have closed theirs
        self._stopped = False
        self._spared: Optional[socket.socket] = None

    def listen(self) -> None:
        """Accept connections, on a thread. May be called again. Raises OSError, and has closed, when it cannot."""
        if self._accepting is None:
            self.socket.setblocking(False)
            try:
                self.server_activate()
            except OSError:
                self.server_close()
                raise
            self._accepting = threading.Thread(target=self._accept_all, name=self._name, daemon=True)
            self._accepting.start()

    def _accept_all(self) -> None:
        stopped = False
        while not stopped:
            with self.state.bell() as bell:
                stopped = self._stopped  # whoever came before that is still accepted, and closed in order
                if not stopped:
                    readable([self.socket, bell], _LONGEST_WAIT_S)
            try:
                while True:
                    sock, address = self.get_request()
                    sock.setblocking(True)
                    self.process_request(sock, address)
            except (BlockingIOError, ConnectionError):
                pass
            except OSError:  # out of descriptors: rest rather than spin
                time.sleep(_REST_S)

    def stop(self, spared: Optional[socket.socket] = None) -> list[threading.Thread]:
        """Close the listening socket and all connections but one; returns their threads, which end soon."""
        self._stopped, self._spared = True, spared
        self.state.ring()
        if self._accepting is not None:
            self._accepting.join(_CLOSE_TIMEOUT_S)
        self.server_close()
        with self._lock:  # a connection's thread takes it from the table before it closes it
            threads = [*self._connections.values(), *self._ending]
            for sock in self._connections.keys() - {spared}:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        self.state.ring()
        return [thread for thread in threads if thread.is_alive()]

    def has_ended(self, sock: socket.socket) -> bool:
        """Whether `stop` has closed this connection."""
        return self._stopped and sock is not self._spared

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection, on a thread."""
        name, args = f"{self._name}-{next(self._numbers)}", (request, client_address)
        thread = threading.Thread(target=self.process_request_thread, args=args, name=name, daemon=True)
        with self._lock:
            self._connections[request] = thread
        self.state.count(connections=1, connections_total=1)
        try:
            thread.start()
        except RuntimeError:  # no more threads: this caller goes, the server must not
            self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection in good order."""
        self.forget(request)
        super().shutdown_request(request)

    def forget(self, request: Any) -> None:
        """Count a connection no longer: its thread is about to close it. May be called again."""
        with self._lock:
            thread = self._connections.pop(request, None)
            if thread is not None:
                # Not asked by `is_alive`: beside the `join` of `close` it may raise there, before CPython 3.13.
                alive = frozenset(threading.enumerate())
                self._ending = [*(one for one in self._ending if one in alive), thread]
        if thread is not None:
            self.state.count(connections=-1)


class MockEngine(State):
    """A mock engine in this process, on threads of its own. Public methods are thread safe."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        model: str = "mock",
        behaviour: str = "ok",
        api_key: str = "",
        lacks: str = LACKS,
        lacks_status: int = 404,
        **options: object,
    ) -> None:
        """Prepare an engine; nothing listens before `start`.

        `port` 0 takes a free one. Requests must bring `api_key` in their dialect's header, unless it is "", and to
        `/v1/messages` their version. `lacks` and `lacks_status` are those of `lack`. `options` are those of the control
        endpoint: delay, status, ratio, seed, events, gap, after, retry_after, seconds, times. Raises BehaviourError.
        """
        super().__init__(model, port, Behaviour(behaviour, options))
        self.api_key = api_key
        self.lack(lacks, lacks_status)
        self.host = host
        self._turning = threading.Lock()
        self._server: Optional[_Server] = None  # None as well while a port that refuses cannot be held
        self._started = self._closed = False
        self._timer: Optional[threading.Timer] = None  # ends a refusal

    def start(self) -> MockEngine:
        """Listen (or refuse, if that is the behaviour) and return self.

        Raises OSError when the address cannot be had, RuntimeError when started before.
        """
        with self._turning:
            if self._started or self._closed:
                raise RuntimeError("a mock engine starts once")
            server = _Server(self, self.host)
            if self.behaviour.name == "refuse":
                self._listen_in(self.behaviour.seconds)
            else:
                server.listen()
            self._server, self._started = server, True
        return self

    @property
    def url(self) -> str:
        """The base URL for clients, `http://127.0.0.1:PORT/v1`."""
        host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/v1"

    def lack(self, names: str, status: int = 404) -> None:
        """Have the endpoints of these names, joined by commas, answer `status`, and all others answer.

        A name is a path without `/v1/`. Raises BehaviourError for an unknown one.
        """
        listed = [name for name in names.replace(" ", "").split(",") if name]
        unknown = [name for name in listed if name not in PATH_BY_NAME]
        if unknown:
            raise BehaviourError(f"lacks: unknown {', '.join(unknown)!r:.80}; of: {', '.join(PATH_BY_NAME)}")
        self.lacks, self.lacks_status = frozenset(PATH_BY_NAME[name] for name in listed), status

    def control(self, behaviour: str, **options: object) -> None:
        """Change the behaviour for requests that arrive from now on, and for those that hang.

        Options not given fall back to their defaults. When this returns from `refuse`, connects are refused and all
        connections closed. Raises BehaviourError and then changes nothing.
        """
        self.change(Behaviour(behaviour, options), spared=None)

    def change(self, behaviour: Behaviour, spared: Optional[socket.socket]) -> None:
        with self._turning:
            self.behaviour = behaviour
            if self._started and not self._closed and behaviour.name == "refuse":
                if self._server is not None:
                    self._server.stop(spared)
                self._server = None
                with contextlib.suppress(OSError):
                    # Bound without listening, a port still refuses connects, and nobody else can take it.
                    self._server = _Server(self, self.host)
                self._listen_in(behaviour.seconds)
            elif self._started and not self._closed:
                self._listen()
        self.ring()

    def _listen(self) -> None:
        """Listen, unless somebody else has the port just then: it is tried again until it works."""
        self._forget_timer()
        server, self._server = self._server, None
        try:
            server = server or _Server(self, self.host)
            server.listen()
            self._server = server
        except OSError:
            self._listen_in(_REST_S)

    def _listen_in(self, seconds: float) -> None:
        self._forget_timer()
        self._timer = threading.Timer(seconds, self._end_refusal)
        self._timer.name, self._timer.daemon = f"mock-{self.model}-{self.port}-timer", True
        self._timer.start()

    def _forget_timer(self) -> list[threading.Thread]:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        return [] if timer is None else [timer]

    def _end_refusal(self) -> None:
        with self._turning:
            if self._timer is threading.current_thread():  # else it was cancelled too late
                if self.behaviour.name == "refuse":
                    self.behaviour = Behaviour("ok", {})
                self._listen()

    def close(self) -> None:
        """Close the listener and every connection, and join all threads. May be called again."""
        with self._turning:
            self._closed = True
            threads = self._forget_timer() + ([] if self._server is None else self._server.stop())
        ends_at = time.monotonic() + _CLOSE_TIMEOUT_S
        for thread in threads:
            thread.join(max(0.0, ends_at - time.monotonic()))

    def __enter__(self) -> MockEngine:
        return self if self._started else self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def main(argv: Sequence[str], prog: str = "python -m gateway.mock") -> int:
    """Run one mock engine until SIGTERM or SIGINT; `prog` is how it was called.

    Prints one line with its address once it listens. Returns 0 when asked to end, 1 when the
    address cannot be had, 2 for options that cannot work. Must run in the main thread.
    """
    options = vars(_parser(prog).parse_args(argv))
    host, port, model = options.pop("host"), options.pop("port"), options.pop("model")
    try:
        engine = MockEngine(host, port, model, **options)
    except BehaviourError as fault:
        print(f"mock engine {model}: {fault}", file=sys.stderr)
        return 2
    asked_to_end = _end_signals()
    try:
        engine.start()
        _say(f"mock engine {model} at {engine.url}")
        asked_to_end.recv(1)
        return 0
    except (OSError, OverflowError) as fault:
        why = (isinstance(fault, OSError) and fault.strerror) or fault
        print(f"mock engine {model}: cannot listen on {host}:{port}: {why}; --port names another port", file=sys.stderr)
        return 1
    finally:
        engine.close()


def _say(line: str) -> None:
    try:
        print(line, flush=True)
    except OSError:  # nobody reads it; nor would anybody at the end, where what is left is written
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (as long as the process)


def _end_signals() -> socket.socket:
    """Return a socket that becomes readable with the first SIGTERM or SIGINT; a sleep might miss one."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: None)
    signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)
    return reader


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="One mock engine that speaks llama.cpp's, OpenAI's and Anthropic's API.",
        epilog="behaviours: "
        + "; ".join(f"{name} {text}" for name, text in MEANINGS.items())
        + ". Endpoints: "
        + ", ".join(PATH_BY_NAME),
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free port")
    parser.add_argument("--model", default="mock", help="the model's name")
    parser.add_argument("--api-key", default="", metavar="KEY", help="the key that requests must bring; default none")
    parser.add_argument("--lacks", default=LACKS, metavar="NAMES", help="endpoints it has not; default %(default)s")
    parser.add_argument("--lacks-status", type=int, default=404, metavar="N", help="what those answer; default 404")
    parser.add_argument("--behaviour", default="ok", metavar="NAME", help="see below; default ok")
    for name, option in OPTIONS.items():
        flag, number = "--" + name.replace("_", "-"), int if option.whole else float
        parser.add_argument(flag, type=number, metavar="N", help="option of the behaviour")
    return parser
