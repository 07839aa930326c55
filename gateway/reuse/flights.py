"""Single flight: identical requests that are under way at once share one call.

The first of them leads: it asks, by its own steps, and pays. The others follow: they wait for what it is given, without
a thread; of a stream they get what has come so far and then the rest (`server/sharing.py`). The leader's client may
leave: its steps go on as long as anybody follows.

`Flights` owns the flights by key; its lock guards them and all their members. What is to be done about a change is done
after it: flags are set and calls cancelled without the lock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable
from typing import Any, Optional, Protocol, Union

from gateway.asked import Asked
from gateway.errors import ClientGone, GatewayError
from gateway.hedging import Answer
from gateway.steps import Flag

OWN_CODES = ("draining", "forbidden", "gateway_timeout", "queue_timeout")
"""What befalls a leader alone, or only those who have waited as long (LATE_CODES): another one leads then."""
LATE_CODES = ("gateway_timeout", "queue_timeout")


class Stream(Protocol):
    """An open stream that several clients follow (`server/sharing.py`)."""

    def join(self, exchange: Any, head: bytes) -> None:
        """Pass a client on, whose answer begins with `head`."""


class Flight:
    """One call, and who waits for it. `key` None: nobody can follow; its stream is only looked at for the cache."""

    __slots__ = ("began_s", "error", "followers", "key", "leader", "over", "own_fault", "result")

    def __init__(self, key: Optional[Hashable], leader: Asked) -> None:
        self.key = key
        self.leader = leader
        self.followers: dict[Asked, Flag] = {}
        self.result: Union[Answer, Stream, None] = None
        self.error: Optional[GatewayError] = None
        self.own_fault = False  # the leader's: its followers try again
        self.over = False
        self.began_s = time.monotonic()

    def needs(self, asked: Asked) -> bool:
        """Whether others wait for what `asked` is given."""
        return asked is self.leader and bool(self.followers) and not self.over


class Following:
    """A stream that another request's call has begun: this one follows it."""

    __slots__ = ("stream",)

    def __init__(self, stream: Stream) -> None:
        self.stream = stream


class Flights:
    """Flights under way. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_key: dict[Hashable, Flight] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def join(self, key: Hashable, asked: Asked) -> tuple[Flight, Optional[Flag]]:
        """The flight of a key, and the flag that is set when it has a result; None: it is a new one, which `asked`
        leads."""
        with self._lock:
            flight = self._by_key.get(key)
            if flight is None:
                flight = self._by_key[key] = Flight(key, asked)
                asked.flight = flight
                return flight, None
            flag = flight.followers[asked] = Flag()
            ready = flight.result is not None
        if ready:
            flag.set()
        return flight, flag

    def leave(self, flight: Flight, asked: Asked) -> bool:
        """A follower waits no more, or the leader's client has left; whether nobody is left to wait for it. Then its
        call is to be cancelled, and is.

        Whoever leads sets `left` and then looks at the followers (`Flight.needs`), this takes a follower out and then
        looks at `left`: one of the two sees the other.
        """
        with self._lock:
            flight.followers.pop(asked, None)
            deserted = flight.leader.left and not flight.followers and not flight.over
            if deserted:
                self._close_locked(flight)
        if deserted and flight.leader.call is not None and not flight.leader.needed:
            flight.leader.call.cancel()
        return deserted

    def landed(self, flight: Flight, answer: Answer) -> None:
        """The leader has a complete answer."""
        self._settle(flight, answer, None)

    def opened(self, flight: Flight, stream: Stream) -> None:
        """The leader has a stream, which may be followed from now on, until `close`."""
        with self._lock:
            flags = list(flight.followers.values())
            if flags or not flight.over:  # it may have ended already; or its only client has left at once
                flight.result = stream
        for flag in flags:
            flag.set()

    def failed(self, flight: Flight, error: Optional[GatewayError]) -> None:
        """The leader has failed; None: by what nobody had foreseen."""
        self._settle(flight, None, error)

    def close(self, flight: Flight) -> int:
        """Nobody more can follow; returns how many do."""
        with self._lock:
            self._close_locked(flight)
            return len(flight.followers)

    def end(self, flight: Flight) -> None:
        """The stream is over."""
        with self._lock:
            self._close_locked(flight)
            flight.over = True
        flight.leader.flight = None  # else each would keep the other in memory

    def _settle(self, flight: Flight, answer: Optional[Answer], error: Optional[GatewayError]) -> None:
        with self._lock:
            self._close_locked(flight)
            flight.over = True
            flight.result, flight.error = answer, error
            flight.own_fault = answer is None and (
                error is None or isinstance(error, ClientGone) or error.code in OWN_CODES
            )
            flags = list(flight.followers.values()) if flight.followers else ()
        flight.leader.flight = None
        for flag in flags:
            flag.set()

    def _close_locked(self, flight: Flight) -> None:
        if flight.key is not None and self._by_key.get(flight.key) is flight:
            del self._by_key[flight.key]


def again(error: GatewayError) -> GatewayError:
    """The same error for another request: an exception belongs to who has it raised."""
    copy: GatewayError = type(error).__new__(type(error), *error.args)
    copy.__dict__.update(error.__dict__)
    return copy
