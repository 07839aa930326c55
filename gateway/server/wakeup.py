"""Waking a thread that waits for sockets.

Owns a socket pair. What is to be done is left where that thread looks, before `wake`; it looks there after `clear`: so
it is seen, or the thread is woken. There is no lock, and nothing blocks.
"""

from __future__ import annotations

import contextlib
import socket


class Wakeup:
    """Its socket is readable once somebody has called `wake`, until `clear`. Thread-safe."""

    def __init__(self) -> None:
        self.receiver, self._sender = socket.socketpair()
        self.receiver.setblocking(False)
        self._sender.setblocking(False)
        self._awake = False

    def wake(self) -> None:
        """Have the socket readable. May be called after `close`."""
        if not self._awake:
            self._awake = True
            with contextlib.suppress(OSError):  # woken often enough for the pair to be full; closed
                self._sender.send(b"\0")

    def clear(self) -> None:
        """Forget who has called. For the thread that waits, before it looks."""
        with contextlib.suppress(OSError):  # nobody has called; closed
            self.receiver.recv(4096)
        self._awake = False

    def close(self) -> None:
        """Close both ends."""
        self.receiver.close()
        self._sender.close()
