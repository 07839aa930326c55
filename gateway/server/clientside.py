"""The writing side of a client's connection: what an exchange and the relay see of it.

Owns the socket, which does not block, and what the client has not taken yet. For the thread that may write: the loop's,
or while a stream is open, the relay's. The one passes it on with `Relay.take`, the other with `stream_over`, each as
the last thing done with it. `deadline_s` is only stored here; the loop looks at it.
"""

from __future__ import annotations

import socket
import time
from typing import Optional, Union

from gateway.server import responses
from gateway.server.answering import Answering
from gateway.server.unsent import Unsent
from gateway.settings import Settings

LINGER_S = 2.0  # how long a connection that is being closed waits for its client to close


class ClientSide:
    """Writes answers to one client. `deadline_s`: when the connection is to be ended (monotonic seconds)."""

    def __init__(self, sock: socket.socket, settings: Settings) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.settings = settings
        self.deadline_s = time.monotonic() + settings.keepalive_timeout_s
        self._descriptor = sock.fileno()
        self._eof = False  # the client sends nothing more, or has left
        self._unsent: Optional[Unsent] = None  # of the answer
        self.holds_large = False  # the rest of a large one

    def set_deadline(self, deadline_s: float) -> None:
        """Set when this connection is to be ended unless something happens before (monotonic seconds)."""
        self.deadline_s = deadline_s

    def before_last(self, exchange: Answering, keep_alive: bool) -> None:
        """Say that the last write of a stream comes now."""
        self._give_idle_time(keep_alive)
        exchange.about_to_finish()
        exchange.answered = True

    def send_last(
        self, exchange: Answering, data: bytes, keep_alive: bool, body: responses.Text = b""
    ) -> Optional[bool]:
        """Write an answer's `data`, then `body`, which is not copied; False when the client is gone, None when the rest
        is written when the client takes it.

        A client that does not take it (1 MiB of it, or what is left, in each CLIENT_TIMEOUT) is cut off.
        """
        self._give_idle_time(keep_alive)
        exchange.answered = True
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._has_gone(exchange)
            return False
        if sent == len(data) and not body:
            return True
        self._give_time()
        self.holds_large = body != b""
        self._unsent = Unsent(memoryview(data)[sent:], body, self._give_time)
        return None

    def _give_idle_time(self, keep_alive: bool) -> None:
        self.deadline_s = time.monotonic() + (self.settings.keepalive_timeout_s if keep_alive else LINGER_S)

    def _give_time(self) -> None:
        self.set_deadline(time.monotonic() + self.settings.client_timeout_s)

    def _has_gone(self, exchange: Answering) -> None:
        """Nothing can be written: what the client had sent behind this is served to nobody."""
        exchange.keep_alive = False
        self._eof = True

    def send_now(self, data: Union[bytes, memoryview]) -> int:
        """Write what the socket takes without waiting; raises BlockingIOError when that is nothing, else OSError."""
        return self.sock.send(data)

    def fileno(self) -> int:
        """The client socket's descriptor, for a loop."""
        return self.sock.fileno()

    def limit_buffer(self, size_bytes: int) -> None:
        """Have the kernel keep no more than about so much of what the client has not taken."""
        try:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size_bytes)
        except OSError:
            pass

    def shut_writing(self) -> None:
        """Tell the client that nothing more comes."""
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass
