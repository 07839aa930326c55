"""One open stream that several clients follow: each gets what has come so far, then what comes.

A `Crowd` stands where a stream has its one client: to `relayed.py` it is a client that takes everything at once. It
keeps the lines that have come, for who comes later, and for the cache. While somebody keeps up, the engine is read on,
and who falls too far behind is cut off with an error event; when everybody is behind, the engine is not read
(back-pressure, as with one client). The engine is left when the last client has. Who has begun the stream pays for all
of it, to its end, even if its client leaves before.

All of it is for the relay's thread but `join`, which passes a client on, as `Relay.take` does.
"""

from __future__ import annotations

import functools
import math
from typing import Callable, Optional, Protocol, Union

from gateway.reuse.flights import Flight
from gateway.reuse.serving import Shared
from gateway.routing.retry import Outcome
from gateway.server.exchange import Exchange
from gateway.server.flow import Failure
from gateway.server.following import Follower
from gateway.server.loop import Loop
from gateway.server.relayed import Owner, Relayed
from gateway.upstream.attempt import EngineFault
from gateway.upstream.call import Call
from gateway.upstream.stream import EngineStream

LINES_MAX_BYTES = 4_194_304  # kept of one stream; then nobody can join any more


class SharingRelay(Owner, Protocol):
    """The relay, as a crowd sees it."""

    lines_bytes: int
    """Kept of all shared streams."""
    lines_max_bytes: int

    def call_soon(self, step: Callable[[], None]) -> None:
        """Have the relay's thread run a step, which raises nothing."""

    def add_follower(self, follower: Follower) -> None:
        """Look after the time of one."""

    def drop_follower(self, follower: Follower) -> None:
        """A follower is over."""


class Crowd:
    """The clients of a shared stream, as one client and one exchange of it."""

    takes_chunks = False
    keep_alive = True
    cut = False
    on_cancel: Optional[Callable[[], None]] = None

    def __init__(self, leader: Exchange, stream: EngineStream, shared: Shared, relay: SharingRelay, loop: Loop) -> None:
        call = leader.call
        assert call is not None
        self.call: Call = call
        self.loop = loop
        self.on_error = relay.on_error
        self._relay = relay
        self._leader = leader
        self._shared = shared
        self._flight: Flight = shared.flight
        self._followers: dict[Follower, None] = {}
        self._chunks: Optional[list[bytes]] = []  # of the lines so far, as HTTP/1.1 frames them
        self._lines_bytes = 0
        self._over = False
        self._fault: Optional[Failure] = None
        self._leader_took: Optional[bool] = None  # all that it was sent; once it is no follower any more
        # None once it is over: each would keep the other in memory.
        self._flow: Optional[_SharedFlow] = _SharedFlow(self, stream, relay, loop)

    @property
    def flow(self) -> Relayed:
        """The stream. To be asked for before anybody has joined."""
        assert self._flow is not None
        return self._flow

    @property
    def client(self) -> Crowd:
        """What the stream's lines are written to."""
        return self

    # --- who comes and goes ----------------------------------------------------------------------------------------

    def join(self, exchange: Exchange, head: bytes) -> None:
        """Pass a client on, whose answer begins with `head`. From the clients' thread."""
        follower = Follower(self, exchange, exchange is self._leader)

        def cancel() -> None:
            self._relay.call_soon(follower.cancel)

        exchange.on_cancel = cancel  # first: who leaves from now on is told here, one before is seen in `_attach`
        self._relay.call_soon(functools.partial(self._attach, follower, head))

    def _attach(self, follower: Follower, head: bytes) -> None:
        self._followers[follower] = None
        self._relay.add_follower(follower)
        exchange = follower.exchange
        try:
            chunks = self._chunks or ()
            follower.begin(head, chunks if exchange.takes_chunks else map(exchange.carry, map(_unframed, chunks)))
            if exchange.left:
                follower.cancel()
            elif self._over:
                follower.finish(self._fault)
            else:
                self.caught_up()  # those who were here may all be behind
        except Exception as error:
            self.on_error(error)
            follower.gone()

    def ended(self, follower: Follower, complete: bool) -> None:
        """A follower is over: its request is concluded, but that of who pays for the stream only with it."""
        self._followers.pop(follower, None)
        self._relay.drop_follower(follower)
        exchange = follower.exchange
        if not follower.leads:
            exchange.written(complete)
            exchange.client.stream_over()
        elif self._over:
            self._conclude_leader(complete)
        else:
            self._leader_took = complete
            if exchange.account is not None:
                exchange.account.leave()
            exchange.left = True
        deserted = self._shared.flights.leave(self._flight, exchange)
        if self._over:
            self._let_go()
        elif deserted and self._flow is not None:
            self._flow.guarded(self._flow.cancel)
        else:
            self.caught_up()

    def _let_go(self) -> None:
        """Keep nothing that would keep this in memory, unless somebody is still on the way here."""
        if not self._flight.followers:
            self._flight.result = None
            self._chunks = None

    def _conclude_leader(self, complete: bool) -> None:
        self._leader.written(complete)
        self._leader.client.stream_over()

    # --- what comes ------------------------------------------------------------------------------------------------

    def send_now(self, data: Union[bytes, memoryview]) -> int:
        """Take lines for all; never less than all of them."""
        lines = bytes(data)
        if not lines:  # as a chunk, that would be the end
            return 0
        chunk = b"%x\r\n%b\r\n" % (len(lines), lines)
        if self._chunks is not None:
            self._keep(chunk)
        behind = 0
        for follower in list(self._followers):
            follower.tell(chunk, lines)
            behind += follower.behind_bytes
        if behind:
            self._see_to_slow_ones()
        return len(data)

    def _keep(self, chunk: bytes) -> None:
        assert self._chunks is not None
        self._chunks.append(chunk)
        self._lines_bytes += len(chunk)
        self._relay.lines_bytes += len(chunk)
        if self._lines_bytes > LINES_MAX_BYTES or self._relay.lines_bytes > self._relay.lines_max_bytes:
            self._stop_keeping()

    def _stop_keeping(self) -> None:
        """Nobody can join any more; who is on the way here still gets all of it."""
        followers = self._shared.flights.close(self._flight)
        attached = sum(not follower.leads for follower in self._followers)
        if followers <= attached:
            self._relay.lines_bytes -= self._lines_bytes
            self._chunks, self._lines_bytes = None, 0

    def _see_to_slow_ones(self) -> None:
        waiting = [follower for follower in self._followers if not follower.behind_bytes]
        if not waiting:
            if self._flow is not None:
                self._flow.pause()
            return
        for follower in [one for one in self._followers if one.is_far_behind]:
            follower.cut_off()

    def caught_up(self) -> None:
        """Somebody waits for more."""
        flow = self._flow
        if flow is not None and any(not follower.behind_bytes for follower in self._followers):
            flow.guarded(flow.go_on)

    # --- as the exchange and the client of the stream --------------------------------------------------------------

    def frame(self, lines: bytes) -> bytes:
        """Each follower's lines are framed for itself."""
        return lines

    carry = frame

    def end_of_stream(self) -> bytes:
        """Each follower's end is its own."""
        return b""

    def resume(self, broken: EngineStream) -> Optional[EngineStream]:
        """See `Exchange.resume`."""
        return self._leader.resume(broken)

    def stream_failed(self, fault: Failure) -> bytes:
        """Each follower is told in its own words."""
        self._fault = fault
        return b""

    def stream_ended(self, stream: EngineStream, outcome: Outcome, keep_open: bool = False) -> None:
        """The stream is over: who has begun it pays, its answer may be kept, each follower gets its end."""
        self._over = True
        leader, self._flow = self._leader, None
        if outcome.kind != "ok" and self._fault is None:
            self._fault = EngineFault(outcome)
        steps: tuple[Callable[[], None], ...] = (
            lambda: leader.count_stream(stream),
            lambda: stream.close(outcome, keep_open),
            lambda: self._shared.flights.end(self._flight),
            lambda: self._keep_answer(stream),
        )
        for step in steps:
            try:
                step()
            except Exception as error:
                self.on_error(error)
        for follower in list(self._followers):
            follower.finish(self._fault)
        if self._leader_took is not None:
            self._conclude_leader(self._leader_took)
        self._relay.lines_bytes -= self._lines_bytes
        self._lines_bytes = 0
        leader.shared = None
        self._let_go()

    def _keep_answer(self, stream: EngineStream) -> None:
        if self._fault is None and self._chunks is not None:
            self._shared.keep(b"".join(map(_unframed, self._chunks)), stream.events.usage)

    def before_last(self, exchange: object, keep_alive: bool) -> None:
        """Each follower has its own last write."""

    def set_deadline(self, deadline_s: float) -> None:
        """Each follower has its own."""

    def fileno(self) -> int:
        """It has no socket."""
        return -1

    def shut_writing(self) -> None:
        """Each follower ends by itself."""

    def stream_over(self) -> None:
        """Each follower's client is told by itself."""


def _unframed(chunk: bytes) -> bytes:
    """The lines in a chunk."""
    return chunk[chunk.index(b"\n") + 1 : -2]


class _SharedFlow(Relayed):
    """A stream that is read as long as one of its clients keeps up."""

    __slots__ = ()

    def pause(self) -> None:
        """Do not read the engine."""
        if not (self._paused or self.over or self.away or self._ending):
            self._paused = True
            self.active_s = math.inf  # it is not the engine that is silent
            self._loop.unwatch(self.stream.sock.fileno())

    def go_on(self) -> None:
        """Read the engine again."""
        if not self._paused or self.over:
            return
        self._paused = False
        self.active_s = self._loop.began_s
        if not (self.away or self._ending):
            self._loop.watch(self.stream.sock.fileno(), self.ready)
            if self.stream.ripe:
                self._loop.again(self._pull_again, 0)

    def _pull_again(self, events: int) -> None:
        if not self._paused:
            super()._pull_again(events)

    def _resumed(self) -> None:
        self._paused = False
        super()._resumed()
