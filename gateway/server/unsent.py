"""What a client has not taken yet of its answer.

Owns views of the answer's bytes, which are not copied. For the loop's thread; never blocks.
"""

from __future__ import annotations

import socket
from typing import Callable

from gateway.server import responses

TAKEN_BYTES = 1048576  # of an answer that a client must take in each CLIENT_TIMEOUT, or what is left of it


class Unsent:
    """The rest of an answer: `data`, then `body`. `on_taken` is called whenever the client has taken TAKEN_BYTES."""

    __slots__ = ("_on_taken", "_parts", "_taken_bytes")

    def __init__(self, data: memoryview, body: responses.Text, on_taken: Callable[[], None]) -> None:
        self._parts = [part for part in (data, memoryview(body)) if part]
        self._on_taken = on_taken
        self._taken_bytes = 0

    def write(self, sock: socket.socket) -> bool:
        """Write what the client takes; True: it has all of it, False: it takes more, but others have their turn first.

        Raises BlockingIOError when it takes nothing more now, OSError when it has left.
        """
        parts = self._parts
        while parts:
            piece = parts[0][:TAKEN_BYTES]
            sent = sock.send(piece)
            self._taken_bytes += sent
            if self._taken_bytes >= TAKEN_BYTES:
                self._taken_bytes = 0
                self._on_taken()
            parts[0] = parts[0][sent:]
            if not parts[0]:
                del parts[0]
            elif sent == len(piece):
                return False
        return True
