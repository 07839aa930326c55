"""The way of one streamed answer, spoilt where the behaviour says so.

Owns the order and framing of a stream's writes. Belongs to its connection's thread; no lock. It
does not know what the events say.
"""

from __future__ import annotations

from gateway.mock import answers, wire
from gateway.mock.answers import StreamScript
from gateway.mock.exchange import Ending, Exchange

NOT_JSON = b'{"choices": [this is not JSON'
SPOILT_MID_ANSWER = ("drop_mid_stream", "end_mid_stream", "reset_mid_stream", "truncate")

_EVENTS_BEFORE_A_DROP = 2
_EVENTS_BEFORE_A_CUT = 1
_GARBAGE = b"data: " + NOT_JSON + b"\n\n"


class Stream:
    """Sends a script, with the behaviour's gaps, gate and faults."""

    def __init__(self, exchange: Exchange, script: StreamScript) -> None:
        self._exchange = exchange
        self._script = script
        self._name = exchange.behaviour.name
        self._chunked = exchange.chunked
        # For drip the gap is between bytes, and the exchange keeps it.
        self._gap_s = 0.0 if self._name == "drip" else exchange.behaviour.gap_s
        self._spoilt_after = self._settle_spoilt_after()
        # The head travels with the first event, in one write.
        self._unsent = wire.stream_head(self._chunked, exchange.keep_alive)

    def run(self) -> Ending:
        """Send the stream and return what becomes of the connection.

        Raises CallerLeft or EngineClosed when one of the two closes first.
        """
        script = self._script
        if self._name == "error_first_event":
            fault = answers.error_body(500, "mock error in the first event", "server_error")
            return self._finish([answers.event(fault)])
        if self._name == "malformed" and not self._spoilt_after:
            return self._finish([_GARBAGE])
        if script.opening:
            self._write(b"".join(wire.frame(event, self._chunked) for event in script.opening))
        sent = 0
        for event in script.content:
            self._hold(sent)
            if sent == self._spoilt_after:
                return self._spoil(event)
            self._pause()
            self._write(wire.frame(event, self._chunked))
            sent += 1
        self._hold(sent)
        if self._spoilt_after is not None:
            return self._spoil(script.closing[0])
        self._pause()
        done = [] if self._name == "no_done" else [answers.DONE]
        return self._finish(script.closing + done)

    def _settle_spoilt_after(self) -> int | None:
        """Return after how many content events the stream is spoilt, None for never."""
        after, events = self._exchange.behaviour.after, self._exchange.behaviour.events
        if self._name == "malformed":
            return after or 0
        if self._name == "truncate":
            return _EVENTS_BEFORE_A_CUT if after is None else after
        if self._name in SPOILT_MID_ANSWER:
            default = _EVENTS_BEFORE_A_DROP if events is None else events
            return default if after is None else after
        return None

    def _spoil(self, event: bytes) -> Ending:
        self._pause()
        if self._name == "malformed":
            return self._finish([_GARBAGE])
        if self._name == "end_mid_stream":
            return self._finish([])
        self._exchange.end()
        if self._name == "truncate":
            self._write(wire.frame(event[: len(event) // 2], self._chunked))
        elif self._unsent:  # a head at least, or it would be no stream
            self._write(b"")
        return Ending.RESET if self._name == "reset_mid_stream" else Ending.CLOSE

    def _hold(self, position: int) -> None:
        gate = self._exchange.gate
        if gate is not None and gate.after == position:
            gate.note_held()
            self._exchange.caller.wait_until(gate.is_released, None)

    def _pause(self) -> None:
        if not self._unsent:  # gaps are between events: there is none before the first
            self._exchange.caller.pause(self._gap_s)

    def _write(self, data: bytes) -> None:
        data, self._unsent = self._unsent + data, b""
        self._exchange.send(data)

    def _finish(self, events: list[bytes]) -> Ending:
        """Send the last events and the end of the body in one write."""
        framed = [wire.frame(event, self._chunked) for event in events]
        terminator = b"0\r\n\r\n" if self._chunked else b""
        data, self._unsent = self._unsent + b"".join(framed) + terminator, b""
        if data:
            self._exchange.send(data, last=True)
        self._exchange.end()
        return self._exchange.kept() if self._chunked else Ending.CLOSE
