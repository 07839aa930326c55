"""The parent's ends of the links with its children: reads frames, has them routed, writes what follows.

`Links` owns the socket of each child and what is still to be written to it. It is for the parent's one thread and never
blocks: who does not read has its frames kept up to a limit (`Outbox`), then dropped and counted, and neither the parent
nor another child waits for it. Who sends what is no frame loses its link.
"""

from __future__ import annotations

import json
import math
import selectors
import socket
from collections.abc import Sequence
from typing import Callable, Optional

from gateway.processes.frames import Frame, FrameError, Outbox, Unpacker, pack
from gateway.processes.switchboard import Fold, Switchboard

RECV_BYTES = 262_144
READS_MAX = 4  # of one child, before others have their turn
LAST_READS_MAX = 256  # of one that has ended: what the system had kept of what it sent
REPORT_EVERY_S = 10.0

Log = Callable[..., None]
"""Level, event, fields."""


class _Link:
    def __init__(self, child: int, slot: int, sock: socket.socket) -> None:
        self.child = child
        self.slot = slot
        self.sock = sock
        self.unpacker = Unpacker()
        self.outbox = Outbox()
        self.joined = False
        self.told_dropped = 0
        self.told_s = -math.inf


class Links:
    """All children's links. `on_ready(child)`: it says that it serves; `on_round(child)`: that it goes round, as it was
    asked; `on_lost(child, closed)`: nothing can be said to it any more, because it has closed its end, or else for a
    reason that has been logged."""

    def __init__(
        self,
        fold: Fold,
        log: Log,
        on_ready: Callable[[int], None],
        on_round: Callable[[int], None],
        on_lost: Callable[[int, bool], None],
    ) -> None:
        self.selector = selectors.DefaultSelector()
        self._log = log
        self._on_ready = on_ready
        self._on_round = on_round
        self._on_lost = on_lost
        self._board = Switchboard(fold, lambda event, **fields: log("warning", event, **fields))
        self._links: dict[int, _Link] = {}

    def add(self, child: int, slot: int, sock: socket.socket) -> None:
        """A child has been started, with the other end of `sock`."""
        sock.setblocking(False)
        link = self._links[child] = _Link(child, slot, sock)
        self.selector.register(sock, selectors.EVENT_READ, link)

    def order(self, child: int, what: str) -> None:
        """Tell a child what to do. Nothing happens when its link is gone."""
        self._put(child, pack("order", o=what), must=True)

    def ask(self, child: int) -> None:
        """Ask a child whether it goes round."""
        self._put(child, pack("round"), must=True)

    def roster(self, child: int, leader: bool, accept: Sequence[int]) -> None:
        """Tell a child whether it leads, and on which slots' sockets it accepts beside its own."""
        self._put(child, pack("roster", json.dumps(list(accept)).encode(), leader=leader), must=True)

    def ready(self, key: selectors.SelectorKey, events: int) -> None:
        """A link's socket is ready, as the selector says (`key.data` is this object's where it is a link's)."""
        link = key.data
        assert isinstance(link, _Link)
        if self._links.get(link.child) is link and events & selectors.EVENT_READ:
            self._read(link, READS_MAX)
        if self._links.get(link.child) is link and events & selectors.EVENT_WRITE:
            self._write(link)

    def gone(self, child: int) -> None:
        """A child has ended: hear its last words, and pass on what it leaves."""
        link = self._links.get(child)
        if link is not None:
            self._read(link, LAST_READS_MAX)
            self._close(child)

    def report(self, now_s: float) -> None:
        """Log who does not take its frames, each once in ten seconds. To be called now and then."""
        for link in self._links.values():
            dropped = link.outbox.dropped - link.told_dropped
            if dropped and now_s - link.told_s >= REPORT_EVERY_S:
                self._log("warning", "bus_dropped", slot=link.slot, frames=dropped)
                link.told_dropped, link.told_s = link.outbox.dropped, now_s

    def close(self) -> None:
        """Close everything."""
        for child in list(self._links):
            self._close(child)
        self.selector.close()

    def _close(self, child: int) -> None:
        link = self._links.pop(child, None)
        if link is not None:
            self.selector.unregister(link.sock)
            link.sock.close()
            self._deliver(self._board.gone(child))  # it can say nothing more, be it alive

    def _lose(self, link: _Link, error: Optional[FrameError] = None) -> None:
        if link.child in self._links:
            self._close(link.child)
            if error is not None:
                self._log("error", "bus_broken", slot=link.slot, reason=str(error))
            self._on_lost(link.child, error is None)

    def _read(self, link: _Link, reads: int) -> None:
        for _ in range(reads):
            try:
                data = link.sock.recv(RECV_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._lose(link)
                return
            try:
                for frame in link.unpacker.feed(data):
                    self._take(link, frame)
            except FrameError as error:
                self._lose(link, error)
                return

    def _take(self, link: _Link, frame: Frame) -> None:
        if frame.kind == "hello":
            link.joined = True
            self._board.joined(link.child, link.slot)
        elif frame.kind == "ready" and link.joined:
            self._on_ready(link.child)
        elif frame.kind == "round" and link.joined:
            self._on_round(link.child)
        else:
            self._deliver(self._board.route(link.child, frame))

    def _deliver(self, deliveries: Sequence[tuple[int, bytes]]) -> None:
        for child, frame in deliveries:
            self._put(child, frame)

    def _put(self, child: int, frame: bytes, must: bool = False) -> None:
        link = self._links.get(child)
        if link is None:
            return
        first = not link.outbox
        if link.outbox.put(frame, must) and first:
            self._write(link)

    def _write(self, link: _Link) -> None:
        outbox = link.outbox
        while outbox:
            try:
                outbox.sent(link.sock.send(outbox.first()))
            except BlockingIOError:
                self.selector.modify(link.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, link)
                return
            except OSError:  # it is ending: reading tells
                outbox.clear()
        self.selector.modify(link.sock, selectors.EVENT_READ, link)
