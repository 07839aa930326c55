"""An engine's open event stream: the bytes of its connection on one side, whole lines for the client on the other.

When every choice that has come has its reason, what breaks the stream is no fault any more. When so many have as were
asked for, it is complete and over for its client, whatever its engine does then: for `[DONE]` and usage that gets
`grace_s`.

What comes behind the gateway's own `[DONE]` is never read: that connection is closed.

Owns the response (and with it the connection) until `close`. Used by one thread at a time: that of the steps which wait
for the first event, then whoever relays, and pulls what has come without waiting.
"""

from __future__ import annotations

import math
import ssl
import time
from typing import Callable, Optional

from gateway.routing.retry import Outcome
from gateway.steps import Steps
from gateway.upstream.attempt import EngineFault
from gateway.upstream.connection import RECV_BYTES
from gateway.upstream.deltas import text_weight
from gateway.upstream.response import EngineResponse
from gateway.upstream.sse import EventStream
from gateway.upstream.streamlines import StreamLines

GRACE_S = 1.0


class EngineStream(StreamLines):
    """A stream whose connection is read: waiting, or as much as has come."""

    __slots__ = (
        "_alike",
        "_behind",
        "_early",
        "_end_s",
        "_held",
        "_late",
        "_on_close",
        "_tls",
        "first",
        "grace_s",
        "sock",
    )

    def __init__(self, response: EngineResponse, events: EventStream, grace_s: float = GRACE_S) -> None:
        super().__init__(response, events)
        self.grace_s = grace_s
        self._end_s: Optional[float] = None  # when `read` ends it
        self._late = False  # it was read at that time or after it
        self.sock = response.connection.sock
        self._tls = isinstance(self.sock, ssl.SSLSocket)
        self.first = b""
        self._early = bytearray()  # lines before the first event, until that is in `first` behind them
        self._alike: Optional[tuple[bytes, bytes]] = None  # what `events` says of the last delta, if a chunk comes next
        self._behind = b""  # its second part, with the chunk's end
        self._held = b""  # received, but not looked at by `pull` yet
        self._on_close: Optional[Callable[[Outcome], None]] = None

    def on_close(self, settle: Callable[[Outcome], None]) -> None:
        """Call `settle(outcome)` once, when the stream is closed."""
        self._on_close = settle

    @property
    def ripe(self) -> bool:
        """Return whether `pull` gives more although no selector would tell."""
        return self.response.decoder.pending or (self._tls and self.sock.pending() > 0)  # type: ignore[attr-defined]

    def begin_with(self, payload: bytes) -> None:
        """Take what has come before this was known to be a stream. Raises EngineFault."""
        self.first = self._events(payload)

    def _has_begun(self) -> bool:
        if not (self.events.started or self.events.done):
            return False
        if self._early:
            self.first += bytes(self._early)
            self._early = bytearray()
        return True

    def wait_first(self) -> Steps[None]:
        """The first event has come; it is in `first` then. Raises EngineFault, ClientGone."""
        while not self._has_begun():
            try:
                payload = yield from self._read_some(math.inf)
                self._early += self._events(payload) if payload else self._end()
            except EngineFault as fault:
                self._early += self._finish_or_raise(fault)

    def read(self, idle_timeout_s: float = math.inf) -> Steps[bytes]:
        """More lines; b"" only when the stream is done. Raises EngineFault, also when nothing comes for
        `idle_timeout_s`, and ClientGone."""
        while not self.events.done:
            try:
                payload = yield from self._read_some(self._until_s(idle_timeout_s))
                lines = self._events(payload) if payload else self._end()
            except EngineFault as fault:
                lines = self._finish_or_raise(fault)
            if lines:
                return lines
        return b""

    def _read_some(self, until_s: float) -> Steps[bytes]:
        try:
            return (yield from self.response.read_some(until_s))
        except EngineFault as fault:
            if fault.lines:
                fault.lines = self._events(fault.lines)
            raise

    def _until_s(self, idle_timeout_s: float) -> float:
        """Return until when to wait for more. Raises EngineFault when a complete stream's engine has had its time."""
        now_s = time.monotonic()
        if not self.events.complete or self.drained:
            return now_s + idle_timeout_s
        if self._end_s is None:
            self._end_s = now_s + self.grace_s
        elif now_s >= self._end_s and self._late:
            raise EngineFault(Outcome("timeout", "the engine did not end its stream"))
        self._late = now_s >= self._end_s  # what has come while nobody was reading is still taken, once
        return self._end_s

    def detach(self) -> bytes:
        """Lines that had been received already, for who pulls from now on. Raises EngineFault."""
        try:
            payload = self.response.take_buffered()
        except EngineFault as fault:
            if fault.lines:
                fault.lines = self._events(fault.lines)
            raise
        return self._with_end(self._events(payload) if payload else b"")

    def pull_chunk(self) -> bytes:
        """Return what has arrived, without blocking, if that is one whole chunk that the client may get as it is; else
        b"". Raises EngineFault.

        Then `pull` tells more. Most events are such a chunk: the one before with another text (1.5 instead of 3.5 us).
        """
        alike = self._alike
        if alike is None:
            return b""
        try:
            raw = self.sock.recv(RECV_BYTES)
        except BlockingIOError:
            return b""
        except OSError as error:
            return self._reset(error, b"")
        before, behind = alike[0], self._behind
        start = raw.find(b"\n", 0, 18) + 1
        first, last = start + len(before), len(raw) - len(behind)
        if (
            first < last
            and raw.startswith(before, start)
            and raw.endswith(behind)
            and raw.startswith(b"%x\r\n" % (len(raw) - start - 2))
        ):
            weight = text_weight(raw, first, last)
            if weight >= 0:
                self.events.note_alike(weight)
                return raw
        self._held = raw
        return b""

    def pull(self) -> bytes:
        """The lines that have arrived, without blocking; b"" when there is none yet. Raises EngineFault."""
        if self._tls:
            return self._pull_tls()
        raw, self._held = self._held, b""
        try:
            raw = raw or (b"" if self.response.decoder.pending else self.sock.recv(RECV_BYTES))
        except BlockingIOError:
            return b""
        except OSError as error:
            return self._reset(error, b"")
        lines = self._feed(raw, b"")
        alike = self.events.alike
        if alike is not None and self.response.decoder.between_chunks:
            self._alike = alike
            self._behind = alike[1] + b"\r\n"
        else:
            self._alike = None
        return lines

    def _pull_tls(self) -> bytes:
        out = b""
        while True:
            try:
                raw = b"" if self.response.decoder.pending else self.sock.recv(RECV_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError):
                return out
            except OSError as error:
                return self._reset(error, out)
            out = self._feed(raw, out)
            # A TLS record may hold more than was asked for, and no selector would tell.
            if not (raw and self.sock.pending()):  # type: ignore[attr-defined]
                return out

    def close(self, outcome: Outcome, keep_open: bool = False) -> None:
        """End the stream: give the engine's place back, and the connection unless `keep_open`. Idempotent; the first
        outcome counts."""
        settle, self._on_close = self._on_close, None
        if settle is None:
            return
        if not keep_open:
            self.give_back()
        settle(outcome)

    def give_back(self) -> None:
        """Keep the connection for another request if its body has ended cleanly, else close it."""
        decoder = self.response.decoder
        decoder.surplus = decoder.surplus or self.events.surplus
        if self.done and (self.drained or decoder.surplus):
            self.response.release()
            return
        self.response.close()
