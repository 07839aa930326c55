"""The server whose idle connections have no thread: it accepts on the loop (`loop.py`), and parks (`parked.py`).

`ParkingServer` owns the loop and the threads for what must wait. Its connections are taken in and let go on either, by
single operations on a dict; everything else here belongs to the loop's thread, so there is no lock.
"""

from __future__ import annotations

import select
import socket
import time
from typing import Any

from gateway.server.loop import Loop, Threads
from gateway.server.parked import ParkedConnection
from gateway.server.server import ACCEPT_PAUSE_S, EXHAUSTED, GatewayServer, ServerContext

CLOSE_POLL_S = 0.005
ACCEPTED_MAX = 16  # connections in a turn of the loop (one each: 200 instead of 140 us a request at 32 at a time)


class ParkingServer(GatewayServer):
    """Serves clients with one thread for all that wait and more for what must."""

    def __init__(self, address: tuple[str, int], context: ServerContext) -> None:
        super().__init__(address, context)
        self.socket.setblocking(False)
        self.loop = Loop("clients", self._crashed, self._after_turn)
        self.threads = Threads("client")
        self.asked = 0  # engines, in this turn of the loop
        self._turn = 0
        self._full_turn = -2  # the last in which as many connections were accepted as were to be
        self._at_once = 1  # so many are, in a turn: as many as seem to wait, since asking in vain costs 20 us

    def _connections_max(self, wanted: int) -> int:
        return wanted

    def _crashed(self, error: BaseException) -> None:
        self.context.pipeline.internal_error(error, "-")

    def start(self) -> None:
        self.watchdog.start()
        self.threads.start()
        self.loop.start()
        self.loop.watch(self.socket.fileno(), self._accept_ready, each=False)

    def _after_turn(self) -> None:
        """Until the engines answer, there is time for what earlier requests have left to be counted."""
        self._turn += 1
        if self.asked:
            asked, self.asked = self.asked, 0
            self.context.spare_time(asked)

    def _accept_ready(self, events: int) -> None:
        if self._full_turn == self._turn - 1:  # in the turn before, more were waiting than were taken
            self._at_once = min(2 * self._at_once, ACCEPTED_MAX)
        for number in range(self._at_once):
            try:
                request, client_address = self.socket.accept()
            except BlockingIOError:
                self._at_once = max(1, number)
                return
            except OSError as error:
                if error.errno in EXHAUSTED:  # wait instead of spinning
                    self._report("accept_failed", reason=error.strerror)
                    self.loop.unwatch(self.socket.fileno())
                    self.loop.later(ACCEPT_PAUSE_S, self._accept_again)
                return
            self._accepted(request, client_address)
        self._full_turn = self._turn

    def _accepted(self, request: socket.socket, client_address: Any) -> None:
        if len(self._open) >= self.connections_max or self._closing.is_set():
            self._refuse(request)
            return
        connection = ParkedConnection(request, client_address, self)
        self._open[request] = connection
        connection.client_ready(0)

    def _accept_again(self, events: int) -> None:
        if not self._closing.is_set():
            self.loop.watch(self.socket.fileno(), self._accept_ready, each=False)

    def closed(self, request: socket.socket) -> None:
        """A connection is over."""
        self._open.pop(request, None)
        try:
            request.close()
        except OSError:
            pass

    def shutdown(self) -> None:
        self._closing.set()
        self.loop.unwatch(self.socket.fileno())

    def end_connections(self, timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        self._shut_all()
        while self._open and time.monotonic() < deadline_s:
            time.sleep(CLOSE_POLL_S)
        self.watchdog.close()
        self.loop.close(max(0.0, deadline_s - time.monotonic()))
        self.threads.close()


def new_server(address: tuple[str, int], context: ServerContext) -> GatewayServer:
    """The server for this system: with parked connections where it has epoll, else with a thread for each."""
    return (ParkingServer if hasattr(select, "epoll") else GatewayServer)(address, context)
