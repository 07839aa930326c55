"""From the bytes of an engine's stream to whole lines for the client, and how it may end.

Receives nothing and waits for nothing. Used by one thread at a time.
"""

from __future__ import annotations

from gateway.routing.retry import CRASHED, Outcome
from gateway.upstream.attempt import EngineFault
from gateway.upstream.framing import FramingError
from gateway.upstream.response import EngineResponse
from gateway.upstream.sse import EventStream, StreamBroken


class StreamLines:
    """Lines of a stream in order. `done` = the client has everything; `drained` = so has the connection; `finished` =
    the gateway has ended it."""

    __slots__ = ("events", "finished", "response")

    def __init__(self, response: EngineResponse, events: EventStream) -> None:
        self.response = response
        self.events = events
        self.finished = False

    @property
    def done(self) -> bool:
        """Return whether the answer is complete: nothing more will come for the client."""
        return self.events.done

    @property
    def drained(self) -> bool:
        """Return whether the connection's body has ended, so that the connection can be used again."""
        return self.response.decoder.complete

    def finish(self, lines: bytes = b"") -> bytes:
        """End a finished stream, whatever its engine does: `lines`, then what is still due to the client. Nothing is to
        be read any more, and the connection is closed with the stream unless its body has ended."""
        if self.done:
            return lines
        self.finished = True
        return lines + self.events.finish()

    def _finish_or_raise(self, fault: EngineFault) -> bytes:
        if fault.outcome is CRASHED or not self.events.finished:
            raise fault
        return self.finish(fault.lines)

    def _reset(self, error: OSError, lines: bytes) -> bytes:
        if self.done:
            return self._feed(b"", lines)
        raise EngineFault(Outcome("reset", "the engine closed the connection mid-stream"), lines) from error

    def _feed(self, raw: bytes, lines: bytes) -> bytes:
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
        if not (raw or decoder.pending):
            closed_well = decoder.end()
            decoder.reusable = False
            decoder.complete = True
            if self.done:
                return b""
            if not closed_well:
                raise EngineFault(Outcome("truncated", "the engine's stream was cut short"))
            return b""
        try:
            payload = decoder.feed(raw)
        except FramingError as error:
            lines = self._events(error.payload) if error.payload and not self.events.done else b""
            if self.events.done:  # instead of the body's end, which the client does not need
                decoder.complete = decoder.surplus = True
                return lines
            raise EngineFault(Outcome(error.kind, f"the engine's stream is broken: {error}"), lines) from error
        except Exception as error:  # nobody had foreseen what it has sent
            raise self._crashed() from error
        if not self.events.done:
            return self._events(payload) if payload else b""
        decoder.surplus = decoder.surplus or bool(payload.strip())
        return b""

    def _events(self, payload: bytes) -> bytes:
        try:
            return self.events.feed(payload)
        except StreamBroken as error:
            raise self._fault("invalid", error) from error
        except Exception as error:
            raise self._crashed() from error

    def _end(self) -> bytes:
        try:
            return self.events.end()
        except StreamBroken as error:
            raise self._fault("truncated", error) from error
        except Exception as error:
            raise self._crashed() from error

    def _crashed(self) -> EngineFault:
        self.events.finished = self.events.complete  # else it was about to say more
        return EngineFault(CRASHED)

    def _fault(self, kind: str, broken: StreamBroken) -> EngineFault:
        self.events.finished = self.events.complete  # as above
        outcome = Outcome(kind, str(broken), details=broken.details)
        return EngineFault(self.response.attempt.masked(outcome), broken.lines)
