"""The mock engine: a llama.cpp-style server that misbehaves on demand.

Owns the behaviour in force, the gate and the open connections. Its lock guards these three, is
held for a few assignments only and never while a socket or a callback is used. Imports nothing of
the gateway it is there to test.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from gateway.mock.behaviours import MEANINGS, OPTION_NAMES, WHOLE_OPTIONS, BehaviourError, settle
from gateway.mock.caller import Caller, CallerLeft, EngineClosed
from gateway.mock.exchange import Ending, Mode
from gateway.mock.gate import Gate
from gateway.mock.ledger import Ledger
from gateway.mock.loop import SelectorLoop
from gateway.mock.routes import Routes

_CLOSE_TIMEOUT_S = 5.0


class MockEngine:
    """A mock engine in this process, on threads of its own. Public methods are thread safe."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        model: str = "mock",
        behaviour: str = "ok",
        **behaviour_options: object,
    ) -> None:
        """Prepare an engine; nothing listens before `start`.

        `port` 0 takes a free one. `behaviour_options` are those of the control endpoint: delay,
        status, ratio, seed, events, gap, after, retry_after, seconds. Raises BehaviourError.
        """
        self.host = host
        self.port = port
        self.model = model
        self._lock = threading.Lock()
        self._mode = Mode(settle(behaviour, behaviour_options))
        self._gate: Gate | None = None
        self._connections: dict[Caller, threading.Thread] = {}
        self._connection_numbers = itertools.count(1)
        self._ledger = Ledger()
        self._routes = Routes(self, self._ledger)
        self._loop: SelectorLoop | None = None
        self._closed = False

    def start(self) -> MockEngine:
        """Listen (or refuse, if that is the behaviour) and return self.

        Raises OSError when the address cannot be had, RuntimeError when started before.
        """
        if self._loop is not None or self._closed:
            raise RuntimeError("a mock engine starts once")
        loop = SelectorLoop(self.host, self.port, self._accepted, self._refusal_ended)
        behaviour = self._mode.behaviour
        self._loop = loop
        self.port = loop.port
        refuse_s = behaviour.seconds if behaviour.name == "refuse" else None
        try:
            loop.start(f"mock-{self.model}-{self.port}", refuse_s)
        except OSError:
            self._loop = None
            raise
        return self

    @property
    def url(self) -> str:
        """The base URL for clients, `http://127.0.0.1:PORT/v1`."""
        host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/v1"

    @property
    def requests(self) -> list[dict[str, Any]]:
        """The last 64 inference requests, oldest first: dicts with `path`, `headers` (names in
        lower case), `body` (parsed; None if not JSON or above 1 MiB) and `body_bytes`."""
        return self._ledger.requests()

    def stats(self) -> dict[str, Any]:
        """Return the behaviour's name and options, and all counts as of one moment.

        `requests`, `in_flight` and `cancelled` count inference requests; `probes` counts GETs of
        /health and /v1/models; `connections` are open now; `request_ids` counts distinct
        X-Request-ID headers and `duplicates` requests that brought one seen before.
        """
        behaviour = self._mode.behaviour
        named = {"behaviour": behaviour.name, "options": behaviour.options()}
        return {**named, "model": self.model, "port": self.port, **self._ledger.snapshot()}

    def control(self, behaviour: str, **options: object) -> None:
        """Change the behaviour for requests that arrive from now on, and for those that hang.

        Options not given fall back to their defaults. When this returns from `refuse`, connects
        are refused and all connections closed. Raises BehaviourError and then changes nothing.
        """
        self.change(Mode(settle(behaviour, options)), spared=None)

    def hold_after(self, events: int) -> Gate:
        """Stop streams that arrive from now on after `events` content events, until released.

        For chat, 0 means after the role event. A gate set before is released.
        """
        gate = Gate(events, self._nudge_all)
        with self._lock:
            previous, self._gate = self._gate, gate
        if previous is not None:
            previous.release()
        return gate

    def wait_for_requests(self, count: int, timeout_s: float) -> bool:
        """Wait until `count` inference requests have arrived in all; False after `timeout_s`."""
        return self._ledger.wait_until(lambda counts: counts["requests"] >= count, timeout_s)

    def wait_for_cancelled(self, count: int, timeout_s: float) -> bool:
        """Wait until `count` callers have left before their answer; False after `timeout_s`."""
        return self._ledger.wait_until(lambda counts: counts["cancelled"] >= count, timeout_s)

    def wait_for_idle(self, timeout_s: float) -> bool:
        """Wait until no inference request is in flight; False after `timeout_s`."""
        return self._ledger.wait_until(lambda counts: counts["in_flight"] == 0, timeout_s)

    def close(self) -> None:
        """Close the listener and every connection, and join all threads. May be called again."""
        with self._lock:
            self._closed = True
        if self._loop is not None:
            self._loop.stop(_CLOSE_TIMEOUT_S)
        with self._lock:
            connections = dict(self._connections)
        for caller in connections:
            caller.abort()
        ends_at = time.monotonic() + _CLOSE_TIMEOUT_S
        for thread in connections.values():
            if thread is not threading.current_thread():
                thread.join(max(0.0, ends_at - time.monotonic()))

    def __enter__(self) -> MockEngine:
        return self.start() if self._loop is None else self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def mode(self) -> Mode:
        """What is in force now."""
        return self._mode

    @property
    def gate(self) -> Gate | None:
        """The gate that holds streams which begin now; None without one."""
        return self._gate

    def change(self, mode: Mode, spared: Caller | None) -> None:
        """Put `mode` in force; `spared` is the connection that asked, closed by its own thread."""
        with self._lock:
            self._mode = mode
        if self._loop is None or self._closed:
            return
        if mode.behaviour.name != "refuse":
            self._loop.listen()
            self._nudge_all()
            return
        self._loop.refuse(mode.behaviour.seconds)
        for caller in self._callers():
            if caller is not spared:
                caller.abort()

    def _refusal_ended(self) -> None:
        with self._lock:
            if self._mode.behaviour.name == "refuse":
                self._mode = Mode(settle("ok", {}))

    def _callers(self) -> list[Caller]:
        with self._lock:
            return list(self._connections)

    def _nudge_all(self) -> None:
        for caller in self._callers():
            caller.nudge()

    def _accepted(self, sock: socket.socket) -> None:
        assert self._loop is not None
        caller = Caller(sock, self._loop)
        name = f"mock-{self.model}-{self.port}-{next(self._connection_numbers)}"
        thread = threading.Thread(target=self._serve, args=(caller,), name=name, daemon=True)
        with self._lock:
            self._connections[caller] = thread
        self._ledger.count("connections")
        self._ledger.count("connections_total")
        try:
            thread.start()
        except RuntimeError:  # no more threads: this caller goes, the loop must not
            self._forget(caller)

    def _serve(self, caller: Caller) -> None:
        try:
            with contextlib.suppress(OSError, CallerLeft, EngineClosed):
                caller.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                ending = self._routes.answer_all(caller)
                if ending is Ending.RESET:
                    caller.reset()
        finally:
            self._forget(caller)

    def _forget(self, caller: Caller) -> None:
        caller.close()
        with self._lock:
            self._connections.pop(caller, None)
        self._ledger.count("connections", -1)


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
        print(f"mock engine {model}: cannot listen on {host}:{port}: {fault}", file=sys.stderr)
        return 1
    finally:
        engine.close()


def _say(line: str) -> None:
    try:
        print(line, flush=True)
    except OSError:  # nobody reads it; nor would anybody at the end, where what is left is written
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (as long as the process)


def _end_signals() -> socket.socket:
    """Return a socket that becomes readable with the first SIGTERM or SIGINT.

    A sleep that a signal interrupts would miss one that comes just before it, or that the system
    gives to another thread; the wake-up descriptor misses none.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: None)
    signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)
    return reader


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="One mock engine that speaks llama.cpp's API.",
        epilog="behaviours: " + "; ".join(f"{name} {text}" for name, text in MEANINGS.items()),
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free port")
    parser.add_argument("--model", default="mock", help="the model's name")
    parser.add_argument("--behaviour", default="ok", metavar="NAME", help="see below; default ok")
    for name in OPTION_NAMES:
        number = int if name in WHOLE_OPTIONS else float
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=number, metavar="N", help="option of the behaviour")
    return parser
