"""What a step may wait for, and how to run steps on a thread that may block.

Whatever may have to wait is a generator that yields a wait, a frozen value, and is resumed when that is over. `drive`
runs one blocking: a worker, the library's caller, urllib's handler. The loop of the server runs the same generators
without blocking (`server/task.py`), and hands what it cannot wait for to a thread, which drives on. A generator
belongs to one thread at a time; what it holds is given back in its `finally`s, whoever closes it.

Owns nothing, and has no lock.
"""

from __future__ import annotations

import math
import select
import socket
import threading
import time
from collections.abc import Generator
from typing import Any, Callable, NamedTuple, Optional, Protocol, TypeVar, Union

T = TypeVar("T")
Steps = Generator["Wait", Any, T]
"""Steps that end with a T."""


class Watched(Protocol):
    """A connection that may be waited for. Its socket does not block."""

    sock: socket.socket
    descriptor: int
    """The socket's, while a loop watches it; else -1."""

    def watched_by(self, unwatch: Callable[[int], None]) -> None:
        """A loop watches the socket from now on, until it is closed or `unwatch` is called."""

    def unwatch(self) -> None:
        """Have no loop told of what comes from now on."""


class Readable(NamedTuple):
    """Something has come on the connection, or its end; resumed with True, maybe in vain. With False: it is `until_s`
    (of time.monotonic)."""

    connection: Watched
    until_s: float = math.inf

    def block(self) -> bool:
        self.connection.unwatch()
        return _await((self.connection.sock,), self.until_s, writing=False)


class Writable(NamedTuple):
    """One of the connections takes something, is open, or has failed; resumed as with `Readable`."""

    connections: tuple[Watched, ...]
    until_s: float = math.inf

    def block(self) -> bool:
        for connection in self.connections:
            connection.unwatch()
        return _await(tuple(connection.sock for connection in self.connections), self.until_s, writing=True)


class Pause(NamedTuple):
    """So many seconds have passed. Nobody cuts them short."""

    seconds: float

    def block(self) -> None:
        time.sleep(self.seconds)


class Event(NamedTuple):
    """The event is set, or so many seconds have passed; resumed with whether it is set."""

    event: threading.Event
    seconds: float

    def block(self) -> bool:
        return self.event.wait(self.seconds)


class Flag:
    """Set once, from any thread, and waited for by one: on the loop that takes no thread.

    `set` sets the flag and then looks for who waits, `call` notes who waits and then looks at the flag: one of the two
    sees the other. Where both do, `wake` is called twice.
    """

    __slots__ = ("_set", "_wake")

    def __init__(self) -> None:
        self._set = False
        self._wake: Optional[Callable[[], object]] = None

    def set(self) -> None:
        """Wake who waits."""
        self._set = True
        wake = self._wake
        if wake is not None:
            wake()

    def is_set(self) -> bool:
        """Whether `set` has been called."""
        return self._set

    def call(self, wake: Callable[[], object]) -> None:
        """Have `wake` called, on whatever thread, when the flag is set; it must not block, and may be called twice."""
        self._wake = wake
        if self._set:
            wake()


class Flagged(NamedTuple):
    """The flag is set, or so many seconds have passed; resumed with whether it is set. Needs no thread."""

    flag: Flag
    seconds: float

    def block(self) -> bool:
        event = threading.Event()
        self.flag.call(event.set)
        event.wait(self.seconds)
        return self.flag.is_set()


class Say(NamedTuple):
    """The client is told these bytes now, as the beginning of its stream, as far as it takes them. A request's task
    does that; whoever drives steps without a client has nobody to tell."""

    lines: bytes

    def block(self) -> None:
        pass


class Aside(NamedTuple):
    """The steps that follow block or take long, so they need a thread."""

    def block(self) -> None:
        pass


class Opened(NamedTuple):
    """An engine's answer to a request, its head at least; resumed with it. `drive` has it opened by urllib, which
    drives the same conversation; the loop runs `request.converse()` as part of the steps."""

    request: Conversable

    def block(self) -> Any:
        return self.request.open()


class Turn(NamedTuple):
    """A place among those who work. The server's tasks know how to get one; whoever drives steps without has it."""

    pool: Places
    job: Any

    def block(self) -> None:
        pass


class Places(Protocol):
    """Who gives places to jobs (`workers.py`)."""

    def submit(self, job: Any) -> bool:
        """True: the job has a place. False: it is queued."""

    def run(self, job: Callable[[], None]) -> None:
        """Have something run on a thread, for a job that has a place."""


class Conversable(Protocol):
    """A request to an engine that can be asked in either way."""

    def open(self) -> Any:
        """Block for the answer."""

    def converse(self) -> Steps[Any]:
        """The same as steps."""


Wait = Union[Readable, Writable, Pause, Event, Flagged, Say, Aside, Opened, Turn]
ASIDE = Aside()


def drive(steps: Steps[T]) -> T:
    """Run steps to their end on this thread, which blocks where they wait. Returns and raises what they do."""
    try:
        wait = next(steps)
        while True:
            try:
                outcome = wait.block()
            except BaseException as error:
                wait = steps.throw(error)
            else:
                wait = steps.send(outcome)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


def _await(socks: tuple[socket.socket, ...], until_s: float, writing: bool) -> bool:
    """Return whether one of the sockets is ready (or has failed) by then."""
    timeout_s = None if until_s == math.inf else max(0.0, until_s - time.monotonic())
    if hasattr(select, "poll"):  # 1 us; selectors' own takes 5, and select() ends at descriptor 1024
        poll = select.poll()
        for sock in socks:
            poll.register(sock, select.POLLOUT if writing else select.POLLIN)
        return bool(poll.poll(None if timeout_s is None else math.ceil(timeout_s * 1000)))
    return any(select.select(() if writing else socks, socks if writing else (), socks, timeout_s))
