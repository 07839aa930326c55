"""What the tests of names share: a resolver's system call played by the test, and engines that do not accept.

Owns the answers it is told; every wait is bounded.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any, Union

from tests.support import TIMEOUT_S, eventually

REAL = socket.getaddrinfo


class Names:
    """Stands in for socket.getaddrinfo: says what the test has set, holds what it has held; other hosts are real."""

    def __init__(self, **answers: Union[list[str], Exception]) -> None:
        self.answers: dict[str, Union[list[str], Exception]] = {k.replace("_", "."): v for k, v in answers.items()}
        self.asked: list[str] = []
        self._held: dict[str, threading.Event] = {}
        self._lock = threading.Lock()

    def __call__(self, host: Any, port: Any, *args: Any, **options: Any) -> list[Any]:
        with self._lock:
            known = host in self.answers or host in self._held
            if known:
                self.asked.append(host)
            gate = self._held.get(host)
        if not known:
            return REAL(host, port, *args, **options)
        if gate is not None:
            assert gate.wait(TIMEOUT_S), f"{host} was never released"
        answer = self.answers[host]
        if isinstance(answer, Exception):
            raise answer
        return [entry(address, port or 0) for address in answer]

    def hold(self, host: str) -> threading.Event:
        """From now on, look-ups of `host` hang until the event is set."""
        with self._lock:
            return self._held.setdefault(host, threading.Event())

    def release(self) -> None:
        """Let every look-up go."""
        with self._lock:
            held, self._held = self._held, {}
        for host, gate in held.items():
            self.answers.setdefault(host, socket.gaierror(socket.EAI_NONAME, "unknown"))
            gate.set()

    def wait_for(self, host: str, count: int = 1) -> None:
        """Wait until `host` has been asked for so often."""
        eventually(lambda: self.asked.count(host) >= count)


def entry(address: str, port: int = 0) -> Any:
    """One of getaddrinfo's results."""
    if ":" in address:
        return (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0))
    return (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))


def resolver_threads() -> set[threading.Thread]:
    """Threads that look names up, of whichever resolver."""
    return {thread for thread in threading.enumerate() if thread.name == "resolver"}


@contextlib.contextmanager
def deaf(host: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """The port of a listener whose queue of connections is full: to connect takes for ever (where MSG_DONTWAIT is)."""
    with socket.create_server((host, port), backlog=0) as listener, contextlib.ExitStack() as stack:
        for _ in range(8):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]
