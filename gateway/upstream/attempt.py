"""One try of one engine: who may end it, and how it failed.

Owns nothing but an attempt's own state, which needs no lock (see `Attempt`). Never reads or writes a connection.
"""

from __future__ import annotations

import socket
import ssl
import time
from typing import Callable, Optional

from gateway.errors import ClientGone
from gateway.routing.nearness import is_near_address
from gateway.routing.retry import Outcome
from gateway.upstream.connection import Asked, Connection
from gateway.upstream.shortage import in_connecting, overloaded

NO_ANSWER = "the engine closed the connection without an answer"
NOT_ACCEPTED = "the engine did not accept a connection in time"
MOVED = "the engine's name has moved out of the private network"
HUNG = "hung"  # why an attempt is ended whose request goes to another engine


class EngineFault(Exception):
    """An attempt failed; `outcome` says how. `lines` are whole lines of a stream that had come before; from the reading
    of a body, the payload before what is wrong with it."""

    def __init__(self, outcome: Outcome, lines: bytes = b"") -> None:
        super().__init__(outcome.message)
        self.outcome = outcome
        self.lines = lines


class UsageRefused(EngineFault):
    """The engine refuses the request, by what it says because the gateway has asked it for a stream's usage."""


def _as_it_is(outcome: Outcome) -> Outcome:
    return outcome


class Attempt:
    """One try of one engine, and the owner of the connection it runs on.

    The thread that makes the attempt and any thread that ends it early (`abort`: the client left, the deadline passed)
    meet here without a lock: `abort` sets `aborted` and then looks for a connection, `attach` stores the connection and
    then looks at `aborted`, so at least one of them sees the other.
    """

    __slots__ = (
        "_answer_s",
        "aborted",
        "asked",
        "asks_usage",
        "begun",
        "connection",
        "deadline_s",
        "masked",
        "must_stay",
        "replays",
        "span_id",
    )

    def __init__(self, deadline_s: float, asked: Asked = ("", "")) -> None:
        self.deadline_s = deadline_s
        self.asked = asked
        self.span_id = ""  # that the engine was told; "": none
        self.must_stay = False  # nothing may be sent but to an address that is near
        self.asks_usage = False  # whether the gateway has added to the request that a stream's usage be told
        # What is left of the one replay of a request, shared by all of its attempts: whoever takes it out may send once
        # more when a kept connection has died. Without it only a fresh one will do, whose end means something.
        self.replays = [True]
        self._answer_s: Optional[float] = None  # the deadline proper, while `deadline_s` is the connection's
        self.begun = False  # there is something of the answer: its head, or of a stream the first event
        # What became of it as others may read it: without the key that the engine was asked with.
        self.masked: Callable[[Outcome], Outcome] = _as_it_is
        self.aborted: Optional[str] = None
        self.connection: Optional[Connection] = None

    def attach(self, connection: Connection) -> None:
        """Run on `connection`; raises what `failure()` gives if the attempt has been ended meanwhile, and EngineFault
        where it leads too far: the name has got other addresses since it was chosen."""
        if self.must_stay and connection.address is not None and not is_near_address(connection.address[1][0]):
            connection.close()
            raise EngineFault(Outcome("moved", MOVED))
        connection.own(self)
        connection.asked = self.asked
        self.connection = connection
        if self.aborted is not None:
            connection.close()
            raise self.failure()

    def abort(self, reason: str) -> None:
        """End the attempt: `cancelled`, `timeout` or `hung`. From any thread; never blocks; the first reason stays."""
        if self.aborted is None:
            self.aborted = reason
        connection = self.connection
        if connection is not None:
            connection.abort(self)

    def connecting(self, timeout_s: float) -> None:
        """Until `connected`, the deadline is at most `timeout_s` seconds from now, and half of the time there is.

        The other half is for another engine: neither a name that is not found nor a host that does not answer is to
        cost a client the answer that another one has.
        """
        now_s = time.monotonic()
        self._answer_s = self.deadline_s
        self.deadline_s = now_s + min(timeout_s, (self.deadline_s - now_s) / 2)

    def connected(self) -> None:
        """End the connection's own deadline: the answer's counts from now on."""
        if self._answer_s is not None:
            self.deadline_s, self._answer_s = self._answer_s, None

    def expire(self) -> None:
        """The deadline has passed (called by the watchdog)."""
        self.abort("timeout")

    def failure(self) -> Exception:
        """The exception for an attempt that was ended early."""
        if self.aborted == HUNG:
            return EngineFault(Outcome("hung", "the engine has stopped answering"))
        if self.aborted != "timeout":
            return ClientGone()
        if self._answer_s is not None:
            return EngineFault(Outcome("connect_timeout", NOT_ACCEPTED))
        return EngineFault(Outcome("timeout", "the engine did not answer in time"))


def not_connected(error: OSError) -> Exception:
    """Return what it means that a connection could not be opened: EngineFault, or GatewayError if that is the gateway's
    own fault."""
    if in_connecting(error):
        return overloaded(error)
    if isinstance(error, socket.timeout):
        return EngineFault(Outcome("connect_timeout", NOT_ACCEPTED))
    if isinstance(error, ConnectionResetError):
        return EngineFault(Outcome("reset", "the engine closed the connection"))
    if isinstance(error, ssl.SSLError):
        return EngineFault(Outcome("error", f"TLS failed: {error.reason}"))
    # Refused, no route, unknown host.
    return EngineFault(Outcome("refused", f"cannot connect to the engine: {error.strerror or 'unknown error'}"))
