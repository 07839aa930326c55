"""The one thread that listens, accepts, and notices callers that leave.

Owns the listening socket and a selector with every caller that waits for a silent answer. Both
are touched by the loop's own thread alone; other threads hand it commands through a deque and a
waker, so there is no lock. It never reads a request, writes an answer or decides a behaviour.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

_BACKLOG = 1024
_COMMAND_TIMEOUT_S = 5.0
_IDLE_TURN_S = 60.0
_REBIND_PAUSE_S = 0.05
_PEEK = socket.MSG_PEEK | getattr(socket, "MSG_DONTWAIT", 0)


class SelectorLoop:
    """Accepts connections at one address and watches callers; public methods are thread safe."""

    def __init__(
        self,
        host: str,
        port: int,
        accepted: Callable[[socket.socket], None],
        reopened: Callable[[], None],
    ) -> None:
        """`accepted` gets each new connection, `reopened` is called when a refusal has ended.

        Both are called by the loop's thread and must not block. Raises OSError when `host` does
        not resolve or the port is taken.
        """
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self._family: int = found[0][0]
        self._address: Any = found[0][4]
        self._accepted = accepted
        self._reopened = reopened
        self._listener: socket.socket | None = self._bound()
        self._address = self._listener.getsockname()
        self.port: int = self._address[1]
        self._listening = False
        self._reopen_at: float | None = None
        self._stopping = False
        self._commands: deque[Callable[[], None]] = deque()
        self._selector = selectors.DefaultSelector()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self._selector.register(self._wake_reader, selectors.EVENT_READ, self._drain_wakes)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self, name: str, refuse_s: float | None) -> None:
        """Listen, or refuse for `refuse_s` seconds first (None: listen at once).

        Raises OSError when the port is taken; everything is closed then.
        """
        try:
            if refuse_s is None:
                self._listen()
        except OSError:
            self._shut()
            raise
        if refuse_s is not None:
            self._reopen_at = time.monotonic() + refuse_s
        self._thread.name = name
        self._thread.start()

    def refuse(self, seconds: float) -> None:
        """Close the listening socket for `seconds`; connects are refused once this returns."""
        self._perform(partial(self._stop_listening, seconds))

    def listen(self) -> None:
        """End a refusal early. Connects are accepted once this returns, unless somebody else has
        the port just then; it is tried again until it works."""
        self._perform(partial(self._reopen, announce=False))

    def watch(self, sock: socket.socket, left: Callable[[], None]) -> None:
        """Call `left` (from the loop's thread) once the other side of `sock` has closed.

        Bytes that arrive instead, the next request of an impatient caller, end the watch.
        """
        self._command(partial(self._watch, sock, left))

    def unwatch(self, sock: socket.socket) -> None:
        """End a watch; must be called before `sock` is closed."""
        self._command(partial(self._unwatch, sock))

    def stop(self, timeout_s: float) -> None:
        """Close the listening socket and end the thread, waiting for it up to `timeout_s`."""
        self._command(self._request_stop)
        self._thread.join(timeout_s)

    def _command(self, command: Callable[[], None]) -> None:
        self._commands.append(command)
        with contextlib.suppress(OSError):  # full: it is awake anyhow; closed: it has ended
            self._wake_writer.send(b"\0")

    def _perform(self, command: Callable[[], None]) -> None:
        done = threading.Event()

        def perform() -> None:
            command()
            done.set()

        self._command(perform)
        if not done.wait(_COMMAND_TIMEOUT_S):
            raise RuntimeError(f"{self._thread.name} does not respond")

    def _run(self) -> None:
        try:
            while not self._stopping:
                for key, _ in self._selector.select(self._turn_s()):
                    key.data()
                while self._commands:
                    self._commands.popleft()()
                if self._reopen_at is not None and time.monotonic() >= self._reopen_at:
                    self._reopen(announce=True)
        finally:
            self._shut()

    def _turn_s(self) -> float:
        if self._reopen_at is None:
            return _IDLE_TURN_S
        return min(_IDLE_TURN_S, max(0.0, self._reopen_at - time.monotonic()))

    def _request_stop(self) -> None:
        self._stopping = True

    def _drain_wakes(self) -> None:
        with contextlib.suppress(OSError):
            while self._wake_reader.recv(4096):
                pass

    def _bound(self) -> socket.socket:
        sock = socket.socket(self._family, socket.SOCK_STREAM)
        try:
            if os.name == "posix":  # elsewhere this option lets two servers share a port
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setblocking(False)
            sock.bind(self._address)
        except OSError:
            sock.close()
            raise
        return sock

    def _listen(self) -> None:
        if self._listener is None:
            self._listener = self._bound()
        self._listener.listen(_BACKLOG)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._listening = True

    def _accept(self) -> None:
        assert self._listener is not None
        for _ in range(_BACKLOG):
            try:
                sock, _address = self._listener.accept()
            except BlockingIOError:
                return
            except ConnectionError:  # it left while it waited; the next may be fine
                continue
            except OSError:  # out of descriptors: pause rather than spin on a ready socket
                self._rest()
                return
            sock.setblocking(True)
            self._accepted(sock)

    def _rest(self) -> None:
        assert self._listener is not None
        self._selector.unregister(self._listener)
        self._listening = False
        self._reopen_at = time.monotonic() + _REBIND_PAUSE_S

    def _stop_listening(self, seconds: float) -> None:
        if self._listener is not None:
            if self._listening:
                self._selector.unregister(self._listener)
            self._listener.close()
        self._listening = False
        # Bound without listening, a port still refuses connects, and nobody else can take it.
        try:
            self._listener = self._bound()
        except OSError:
            self._listener = None
        self._reopen_at = time.monotonic() + seconds

    def _reopen(self, announce: bool) -> None:
        self._reopen_at = None
        if self._listening:
            return
        try:
            self._listen()
        except OSError:  # somebody holds the port for a moment: try again
            self._reopen_at = time.monotonic() + _REBIND_PAUSE_S
            return
        if announce:
            self._reopened()

    def _watch(self, sock: socket.socket, left: Callable[[], None]) -> None:
        look = partial(self._look, sock, left)
        with contextlib.suppress(ValueError, KeyError, OSError):  # closed meanwhile
            self._selector.register(sock, selectors.EVENT_READ, look)

    def _unwatch(self, sock: socket.socket) -> None:
        with contextlib.suppress(ValueError, KeyError):
            self._selector.unregister(sock)

    def _look(self, sock: socket.socket, left: Callable[[], None]) -> None:
        try:
            gone = not sock.recv(1, _PEEK)
        except BlockingIOError:  # its own thread has read the bytes already
            return
        except OSError:
            gone = True
        self._unwatch(sock)
        if gone:
            left()

    def _shut(self) -> None:
        for sock in (self._listener, self._wake_reader, self._wake_writer):
            if sock is not None:
                sock.close()
        self._selector.close()
