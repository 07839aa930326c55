"""An engine's open event stream: the bytes of its connection on one side, whole lines for the client on the other.

Owns the response (and with it the connection) until `close`. Used by one thread at a time: the worker that waits for
the first event, then whoever relays. Blocking and non-blocking reading meet in `_take`.
"""

from __future__ import annotations

import ssl
from typing import Callable, Optional

from gateway.routing.retry import CRASHED, Outcome
from gateway.upstream.attempt import EngineFault
from gateway.upstream.framing import FramingError
from gateway.upstream.response import RECV_BYTES, EngineResponse
from gateway.upstream.sse import EventStream, StreamBroken

_BACKSLASH = 0x5C


class EngineStream:
    """Lines of a stream in order. `done` = the client has everything; `drained` = so has the connection."""

    __slots__ = ("_alike", "_behind", "_early", "_held", "_on_close", "_tls", "events", "first", "response", "sock")

    def __init__(self, response: EngineResponse, events: EventStream) -> None:
        self.response = response
        self.events = events
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
    def done(self) -> bool:
        """Whether the answer is complete: nothing more will come for the client."""
        return self.events.done

    @property
    def drained(self) -> bool:
        """Whether the connection's body has ended, so that the connection can be used again."""
        return self.response.decoder.complete

    def begin(self) -> bool:
        """Look at what has been received meanwhile: is the first event there? As `wait_first`, but without blocking."""
        payload = self.response.take_buffered()
        if payload:
            self._early += self._events(payload)
        if self.drained and not self.events.started:
            self._early += self._end()
        return self._has_begun()

    def _has_begun(self) -> bool:
        if not (self.events.started or self.events.done):
            return False
        if self._early:
            self.first += bytes(self._early)
            self._early = bytearray()
        return True

    def wait_first(self) -> None:
        """Block until the first event has come; it is in `first` then. Raises EngineFault, ClientGone."""
        while not self._has_begun():
            payload = self.response.read_some()
            self._early += self._events(payload) if payload else self._end()

    def read(self) -> bytes:
        """Block for more lines; b"" only when the stream is done. Raises EngineFault, ClientGone."""
        while not self.events.done:
            payload = self.response.read_some()
            lines = self._events(payload) if payload else self._end()
            if lines:
                return lines
        return b""

    def detach(self) -> bytes:
        """Make reading non-blocking from now on; returns lines that had been received already."""
        self.sock.setblocking(False)
        payload = self.response.take_buffered()
        return self._with_end(self._events(payload) if payload else b"")

    def pull_chunk(self) -> bytes:
        """What has arrived, without blocking, if that is one whole chunk that the client may get as it is; else b"".
        Raises EngineFault.

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
            and raw.find(b'"', first, last) < 0
            and raw.find(b"\n", first, last) < 0
            and raw.find(b"\r", first, last) < 0
            and raw[last - 1] != _BACKSLASH
            and raw.startswith(b"%x\r\n" % (len(raw) - start - 2))
        ):
            self.events.note_alike(raw[first:last])
            return raw
        self._held = raw
        return b""

    def pull(self) -> bytes:
        """The lines that have arrived, without blocking; b"" when there is none yet. Raises EngineFault."""
        if self._tls:
            return self._pull_tls()
        raw, self._held = self._held, b""
        try:
            raw = raw or self.sock.recv(RECV_BYTES)
        except BlockingIOError:
            return b""
        except OSError as error:
            return self._reset(error, b"")
        lines = self._take(raw, b"")
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
                raw = self.sock.recv(RECV_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError):
                return out
            except OSError as error:
                return self._reset(error, out)
            out = self._take(raw, out)
            # A TLS record may hold more than was asked for, and no selector would tell.
            if not (raw and self.sock.pending()):  # type: ignore[attr-defined]
                return out

    def _reset(self, error: OSError, lines: bytes) -> bytes:
        if self.done:
            return self._take(b"", lines)
        raise EngineFault(Outcome("reset", "the engine closed the connection mid-stream"), lines) from error

    def _take(self, raw: bytes, lines: bytes) -> bytes:
        """`lines`, then those in `raw`; b"" = the connection has closed."""
        try:
            more = self._lines(raw)
        except EngineFault as fault:
            fault.lines = lines + fault.lines
            raise
        return self._with_end(lines + more if lines else more)

    def _with_end(self, lines: bytes) -> bytes:
        """`lines`, then what ends the stream if the body has ended."""
        if not self.response.decoder.complete or self.events.done:
            return lines
        try:
            return lines + self._end()
        except EngineFault as fault:
            fault.lines = lines + fault.lines
            raise

    def _lines(self, raw: bytes) -> bytes:
        decoder = self.response.decoder
        if not raw:
            closed_well = decoder.end()
            decoder.reusable = False
            decoder.complete = True
            if self.done:
                return b""
            if not closed_well and not self.events.finished:
                raise EngineFault(Outcome("truncated", "the engine's stream was cut short"))
            return b""
        try:
            payload = decoder.feed(raw)
            if not self.events.done:
                return self.events.feed(payload) if payload else b""
            decoder.surplus = decoder.surplus or bool(payload.strip())
            return b""
        except FramingError as error:
            if self.events.done:  # instead of the body's end, which the client does not need
                decoder.complete = decoder.surplus = True
                return b""
            raise EngineFault(Outcome("invalid", f"the engine's stream is broken: {error}")) from error
        except StreamBroken as error:
            raise EngineFault(Outcome("invalid", str(error)), error.lines) from error
        except Exception as error:  # nobody had foreseen what it has sent
            raise EngineFault(CRASHED) from error

    def _events(self, payload: bytes) -> bytes:
        try:
            return self.events.feed(payload)
        except StreamBroken as error:
            raise EngineFault(Outcome("invalid", str(error)), error.lines) from error
        except Exception as error:
            raise EngineFault(CRASHED) from error

    def _end(self) -> bytes:
        try:
            return self.events.end()
        except StreamBroken as error:
            raise EngineFault(Outcome("truncated", str(error)), error.lines) from error
        except Exception as error:
            raise EngineFault(CRASHED) from error

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
            try:
                self.sock.setblocking(True)
                self.response.release()
                return
            except OSError:
                pass
        self.response.close()
