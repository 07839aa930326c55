"""The body of a request that is passed on while it comes: from the client's socket into an `Upload`.

For the loop's thread, but for `_has_room`, which whoever takes calls; never blocks. When its `Upload` is full the
socket is not read, so that a client sends no faster than its engine takes.
"""

from __future__ import annotations

import time
from typing import Optional

from gateway.errors import ClientGone
from gateway.server.exchange import Exchange
from gateway.server.reader import Refusal
from gateway.server.receiving import READS_MAX, RECV_BYTES, Receiving, State
from gateway.uploads import Upload

AT_LEAST_BYTES = 65_536  # of a body in CLIENT_TIMEOUT: who sends less keeps an engine's place for nothing
IN_ALL = 60
"""Times CLIENT_TIMEOUT that a client is waited for while it sends a form: just enough each time is no way to hold an
engine's place for hours. While the engine is what takes its time, nobody waits for the client."""


class Uploading(Receiving):
    """Passes bodies on."""

    _upload: Optional[Upload] = None  # of the request under way, as long as something of it is to come
    _came_s = 0.0  # when enough had come last, or none could because of the engine
    _came_bytes = 0  # since then
    _waited_s = 0.0  # for the client, in all
    _looked_s = 0.0  # when it was last looked whether that is so

    def _begin_upload(self, exchange: Exchange) -> None:
        """The rest of the request's body is still to come."""
        self._upload = exchange.upload = Upload(self._has_room)
        self._came_s = self._looked_s = time.monotonic()
        self._came_bytes, self._waited_s = 0, 0.0

    def _has_room(self) -> None:
        """There is room again. From any thread."""
        self._loop.soon(self._go_on)

    def _go_on(self, events: int) -> None:
        if self._upload is not None and self.state is State.ASKING:
            self._take_body(self._upload)

    def _take_body(self, upload: Upload) -> None:
        """Put what has come."""
        for _ in range(READS_MAX):
            if upload.full:
                self._more = True  # nobody tells again
                return
            try:
                data = self.sock.recv(RECV_BYTES)
            except BlockingIOError:
                self._more = False
                self._watch()
                return
            except OSError:
                self._eof = True
                self._end_upload(upload, ClientGone())
                return
            self._came_bytes += len(data)
            if self._came_bytes >= AT_LEAST_BYTES:
                self._came_s, self._came_bytes = time.monotonic(), 0
            if len(data) == RECV_BYTES:
                self._more = True
            if not data:
                self._eof = True
                refusal = self._reader.ended()
                self._end_upload(upload, ClientGone() if refusal is None else refusal.error)
                return
            piece = self._reader.upload(data)
            if isinstance(piece, Refusal):
                self._end_upload(upload, piece.error)
                return
            upload.put(piece)
            if self._reader.head is None:
                self._upload = None
                upload.end()
                return
        self._loop.again(self.ready, 0)

    def _look_after_upload(self, upload: Upload, now_s: float) -> None:
        """Some time has passed: does the client still send, and enough?"""
        timeout_s, looked_s = self.settings.client_timeout_s, self._looked_s
        self._looked_s = now_s
        if upload.full:
            self._came_s = now_s
            return
        self._waited_s += now_s - looked_s
        if now_s - self._came_s >= timeout_s or self._waited_s >= IN_ALL * timeout_s:
            refusal = self._reader.late()
            if refusal is not None:
                self._end_upload(upload, refusal.error)

    def _end_upload(self, upload: Upload, error: Exception) -> None:
        """Nothing more of the body is taken, for this reason."""
        self._upload = None
        self._unread = True
        self._reader.over = True
        upload.fail(error)
