"""The signals of a gateway's process, which are handled here alone.

`Signals` owns their handlers, the descriptors by which one wakes the main thread, and a thread that sees one while the
start stands still. It takes no lock: handlers run on the main thread, between two of its steps, and what the thread
reads is set once. Imported before anything is handled, so it imports little.
"""

from __future__ import annotations

import os
import signal

from gateway.ending import EXIT_INTERRUPTED

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Optional

ENDS = (signal.SIGINT, signal.SIGTERM)
_HANDLED = [
    getattr(signal, name) for name in ("SIGHUP", "SIGINT", "SIGTERM", "SIGUSR2") if hasattr(signal, name)
]  # Windows has two


def hold() -> set[int]:
    """Have the signals wait that are handled here, in a process that is started meanwhile as well: until it handles
    them, its interpreter would die of them. Returns what waited before, for `release`. Not on Windows."""
    return signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)


def release(before: set[int]) -> None:
    """End a `hold`: what came meanwhile comes now."""
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ignore(number: int, frame: object) -> None:
    """Not SIG_IGN, which programs that are started from here would inherit."""


class Signals:
    """SIGTERM, SIGINT, SIGHUP and SIGUSR2, one after another. For the main thread.

    Until `serve`, the first two end the process at once (nothing is under way: exit 0; Ctrl-C: 130), and the others are
    kept: the engines file may have been read before they came. From then on `wait` gives each.

    With `child`, of a parent that supervises several processes, none of them counts: a terminal, a shell or systemd
    sends them to all processes, and the parent says what is to be done about it, by `put`.
    """

    def __init__(self, child: bool = False) -> None:
        self._serving = False
        self._come: list[int] = []
        self._receiver: Optional[socket.socket] = None
        self._sender: Optional[socket.socket] = None
        self._early: Optional[int] = None
        for number in _HANDLED:
            signal.signal(number, _ignore if child else self._handle)
        if child:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)  # which the parent has had wait

    def handle(self, *names: str) -> None:
        """Have `wait` and `take` give these, too, from now on."""
        for name in names:
            signal.signal(getattr(signal, name), self._handle)

    def put(self, number: int) -> None:
        """What a handler does: have `wait` give this. From any thread."""
        self._come.append(number)
        self._wake()

    def _handle(self, number: int, frame: object) -> None:
        if not self._serving and number in ENDS:
            self._end_early(number)
        self.put(number)

    @staticmethod
    def _end_early(number: int) -> None:
        os._exit(0 if number == signal.SIGTERM else EXIT_INTERRUPTED)

    def watch_start(self) -> None:
        """End at once also while the start stands still in one call (a file on a disk that hangs).

        A handler runs when such a call returns, or when the signal comes in the middle of it; a thread need not wait.
        """
        import threading

        reader, self._early = os.pipe()
        os.set_blocking(self._early, False)
        signal.set_wakeup_fd(self._early, warn_on_full_buffer=False)
        threading.Thread(target=self._watch_start, args=(reader,), name="start-signals", daemon=True).start()

    def _watch_start(self, reader: int) -> None:
        while not self._serving:
            for number in os.read(reader, 64):
                # Between this look and the end, `serve` may have come: nothing is under way yet all the same.
                if number in ENDS and not self._serving:
                    self._end_early(number)

    def _wake(self) -> None:
        if self._sender is not None:
            try:
                self._sender.send(b"\0")
            except OSError:
                pass  # full: there is enough to wake up for

    def serve(self) -> None:
        """From now on signals are for `wait`."""
        import socket

        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        # So that `wait` wakes up for a signal that the system gives to another thread, or on Windows.
        signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        self._serving = True
        if self._early is not None:
            os.write(self._early, b"\0")  # ends the thread; the pipe stays: a handler may be about to write to it
        if self._come:
            self._wake()

    def fileno(self) -> int:
        """What is readable when there is something to `take`. After `serve`."""
        assert self._receiver is not None
        return self._receiver.fileno()

    def any(self) -> bool:
        """Whether there is something to `take`, or to `wait` for no longer."""
        return bool(self._come)

    def take(self) -> list[int]:
        """All that have come; never waits."""
        assert self._receiver is not None
        self._receiver.setblocking(False)
        try:
            self._receiver.recv(4096)
        except OSError:
            pass
        return [self._come.pop(0) for _ in range(len(self._come))]

    def wait(self, timeout_s: float = 3600.0) -> Optional[int]:
        """The next signal's number, or None after `timeout_s`, or now and then before."""
        # What the handler appends after this look wakes the receiver: it sends a byte itself. A storm of signals that
        # fills the socket loses bytes, but none of those that have come.
        assert self._receiver is not None
        if not self._come:
            self._receiver.settimeout(timeout_s)
            try:
                self._receiver.recv(4096)
            except OSError:
                return None
        return self._come.pop(0) if self._come else None
