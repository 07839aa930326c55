"""One inference request between its arrival and the end of its answer.

Owns whether the request still counts as in flight, and how its answer's bytes go out. An exchange
belongs to its connection's thread and has no lock; numbers go to the ledger, waiting to the
caller. It does not decide what the answer is.
"""

from __future__ import annotations

import enum
import json
import random
import threading
from collections.abc import Callable
from typing import Any

from gateway.mock import answers, wire
from gateway.mock.behaviours import Behaviour
from gateway.mock.caller import Caller
from gateway.mock.gate import Gate
from gateway.mock.ledger import Ledger


class Ending(enum.Enum):
    """What becomes of the connection once a request has been dealt with."""

    KEEP = "keep"
    CLOSE = "close"
    RESET = "reset"


class Mode:
    """A behaviour in force, with the dice that `flaky` throws. Thread safe."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self._dice = random.Random(behaviour.seed)
        self._throwing = threading.Lock()

    def fails(self) -> bool:
        """Return whether this request is one of the `ratio` that fails, in seeded order."""
        with self._throwing:
            return self._dice.random() < self.behaviour.ratio


class Exchange:
    """A request, the caller who waits for its answer, and the behaviour it meets."""

    def __init__(
        self,
        caller: Caller,
        request: wire.Request,
        ledger: Ledger,
        mode: Callable[[], Mode],
        gate: Gate | None,
    ) -> None:
        """Note the request's arrival. `mode` returns what is in force whenever it is asked;
        `gate` (None: none) holds this exchange's stream."""
        self.caller = caller
        self.path = request.path
        self.chunked = request.chunked_answers
        self.keep_alive = request.keep_alive
        self.gate = gate
        self._mode_now = mode
        self._mode = mode()
        self._ledger = ledger
        self.body: Any = _parsed(request.body)
        size = len(request.body)
        self.number = ledger.arrived(request.path, request.headers, self.body, size)
        self._in_flight = True

    @property
    def behaviour(self) -> Behaviour:
        """The behaviour that answers this request."""
        return self._mode.behaviour

    @property
    def streams(self) -> bool:
        """Whether the request asks for an event stream."""
        asked = isinstance(self.body, dict) and self.body.get("stream") is True
        return asked and self.path != answers.EMBEDDINGS

    def wait_for_another_mode(self) -> None:
        """Be silent until the behaviour changes, then go on by the new one."""
        hung = self._mode
        self.caller.wait_until(lambda: self._mode_now() is not hung, None)
        self._mode = self._mode_now()

    def is_unlucky(self) -> bool:
        """Throw the dice of `flaky`."""
        return self._mode.fails()

    def send(self, data: bytes, last: bool = False) -> None:
        """Write `data`; the `last` bytes take the request out of flight before they go.

        Before, not after: whoever has read a whole answer finds the counts settled.
        """
        if self.behaviour.name == "drip":
            for position in range(len(data) - int(last)):
                self.caller.send(data[position : position + 1])
                self.caller.pause(self.behaviour.gap_s)
            data = data[-1:] if last else b""
        if last:
            self.end()
        if data:
            self.caller.send(data)

    def fail(self, status: int, message: str, kind: str) -> Ending:
        """Answer with an error, and Retry-After when the behaviour has one."""
        retry_after_s = self.behaviour.retry_after_s
        extra = [] if retry_after_s is None else [("Retry-After", f"{retry_after_s:.15g}")]
        body = answers.encode(answers.error_body(status, message, kind))
        if status == 304:  # the one status here that must not have a body
            body = b""
        self.send(wire.whole(status, body, self.keep_alive, extra), last=True)
        return self.kept()

    def end(self) -> None:
        """Take the request out of flight, once."""
        if self._in_flight:
            self._in_flight = False
            self._ledger.ended()

    def cancel(self) -> None:
        """Note that the caller left before the answer was complete."""
        self._ledger.cancelled(self._in_flight)
        self._in_flight = False

    def kept(self) -> Ending:
        """Return the ending of a complete answer."""
        return Ending.KEEP if self.keep_alive else Ending.CLOSE


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None
